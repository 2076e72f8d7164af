"""Find black, frozen and silent stretches in stills, recordings and live captures of cameras and grabbers.

Examples:
  capture_analyzer.py frame /srv/captures/capture_20260131120000.jpg     one still: a JSON object
  capture_analyzer.py video /srv/footage --json                          every recording in a folder, as JSON Lines
  capture_analyzer.py video clip.mp4 --precise --metrics clip.csv        every picture looked at, all numbers kept

Needs: numpy and OpenCV (opencv-python-headless); FFmpeg 5.1 or newer (pip brings one) for recordings and sound.
State: none for `frame` and `video`.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhombus_logging import Status, UsageError, add_common_flags, load_config, run, start_logging

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Gray = NDArray[np.uint8]  # HEIGHT rows of WIDTH pixels, 0 black to 255 white

STATE_FOLDER = ".capture_analyzer"
WIDTH, HEIGHT = 160, 90  # what is measured; exactly an eighth of 720p, which JPEG decoders give away
CELL_ROWS, CELL_COLUMNS = 8, 20
STILL_NAME = re.compile(r"capture_(\d{14})\.jpg")
STILL_TIME = "%Y%m%d%H%M%S"  # local time, as the older captures have it
SEGMENT_PATTERN = "segment_*.ts"
NAME_AHEAD_SEC = 86400  # a still whose name is further in the future was named by a wrong clock: its mtime counts
TYPES = ("blackscreen", "freeze", "audio_loss")

log = logging.getLogger("capture_analyzer")

Interval = tuple[float, float]  # [start, end) in seconds


class Unreadable(Exception):
    """A file holds no picture or sound that could be read; the sentence says why."""


@dataclass(frozen=True)
class Rules:
    """When a picture is black or frozen and sound is lost; each field is a key of `analysis`.

    Brightness is 0 to 255, differences are its mean over pixels, sound is dB below full scale.
    """

    black_mean: float
    black_range: float
    black_sec: float
    freeze_same: float
    freeze_noise: float
    freeze_noise_share: float
    freeze_ignore_percent: float
    freeze_sec: float
    silence_db: float
    silence_sec: float
    quiet_db: float
    quiet_sec: float
    audio_required: bool
    cut_percent: float


@dataclass(frozen=True)
class Picture:
    """What was measured on one picture."""

    time_sec: float
    mean: float
    cell_range: float  # brightest minus darkest cell
    spread: float  # standard deviation over the pixels
    difference: float  # to the first picture of the run that it belongs to; 0 for that one
    since_sec: float  # when that run began
    is_key: bool = False


@dataclass(frozen=True)
class Still:
    """A still with its verdicts: True bad, False good, None unknown."""

    path: Path
    time_sec: float
    quality: str  # ok or unknown
    reason: str  # why the quality, or a verdict, is unknown; else empty
    picture: Picture | None
    blackscreen: bool | None
    freeze: bool | None
    freeze_since_sec: float | None  # start of a freeze, at or before this still


# --- rules -------------------------------------------------------------------------------------------------------


def rules_of(settings: Mapping[str, Any]) -> Rules:
    """The rules of section `analysis`; UsageError for what cannot be meant."""
    rules = Rules(**{name: settings[name] for name in Rules.__dataclass_fields__})
    if not 0 <= rules.cut_percent < 50:
        raise UsageError(f"analysis.cut_percent: {rules.cut_percent} is not from 0 to 49")
    if not 0 <= rules.freeze_ignore_percent < 50:
        raise UsageError(f"analysis.freeze_ignore_percent: {rules.freeze_ignore_percent} is not from 0 to 49")
    for name in ("black_sec", "freeze_sec", "silence_sec", "quiet_sec"):
        if getattr(rules, name) <= 0:
            raise UsageError(f"analysis.{name}: must be more than 0")
    return rules


def mask_of(settings: Mapping[str, Any], camera: str) -> Gray:
    """1 where a camera's pictures count, 0 where not: its rectangles of `analysis.masks`, else top and bottom.

    A rectangle is [left, top, right, bottom] in percent of the picture.
    """
    import numpy as np

    mask = np.ones((HEIGHT, WIDTH), np.uint8)
    masks = settings["masks"]
    if camera not in masks:
        cut = round(HEIGHT * float(settings["cut_percent"]) / 100)
        mask[:cut], mask[HEIGHT - cut :] = 0, 0
        return mask
    for box in masks[camera] or []:
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(edge, (int, float)) for edge in box):
            raise UsageError(f"analysis.masks.{camera}: expected rectangles [left, top, right, bottom] in percent")
        left, top, right, bottom = (min(max(edge, 0), 100) / 100 for edge in box)
        mask[round(top * HEIGHT) : round(bottom * HEIGHT), round(left * WIDTH) : round(right * WIDTH)] = 0
    if mask.mean() < 0.1:
        raise UsageError(f"analysis.masks.{camera}: leaves less than a tenth of the picture")
    return mask


def judge_black(picture: Picture, rules: Rules) -> bool:
    """Dark and without structure: a night with lamps is dark too, but its lamps stand out."""
    return picture.mean <= rules.black_mean and picture.cell_range <= rules.black_range


def is_same(difference: float, spread: float, rules: Rules) -> bool:
    """Whether two pictures differ by no more than coding one picture twice: then no sensor is behind them."""
    return difference <= rules.freeze_same or difference <= min(rules.freeze_noise, rules.freeze_noise_share * spread)


def judge_freeze(picture: Picture, rules: Rules) -> bool:
    """The run of same pictures has lasted long enough. Black pictures have nothing that could move."""
    return picture.time_sec - picture.since_sec >= rules.freeze_sec and not judge_black(picture, rules)


# --- pictures ----------------------------------------------------------------------------------------------------


class PictureMeter:
    """Measures the pictures of one camera in the order of time, each against the START of the run of same pictures.

    Neighbours cannot be compared: at night they hardly differ although the camera is alive.
    """

    def __init__(self, rules: Rules, mask: Gray) -> None:
        import numpy as np

        self.rules = rules
        self.inside = np.flatnonzero(mask)
        used = np.flatnonzero(mask.any(axis=1))
        rows = (np.arange(HEIGHT) - used[0]) * CELL_ROWS // (used[-1] - used[0] + 1)
        cells = (rows.clip(0, CELL_ROWS - 1)[:, None] * CELL_COLUMNS) + np.arange(WIDTH) * CELL_COLUMNS // WIDTH
        self.cells = cells.ravel()[self.inside]
        counts = np.bincount(self.cells, minlength=CELL_ROWS * CELL_COLUMNS)
        self.full = counts >= counts.max() / 2  # a cell that is mostly masked says little
        self.counts = counts[self.full]
        self.keep = self.inside.size - round(self.inside.size * rules.freeze_ignore_percent / 100)
        self.reference: NDArray[np.int16] | None = None
        self.since_sec = 0.0
        self.spread = 0.0

    def measure(self, gray: Gray, time_sec: float, *, is_key: bool = False) -> Picture:
        import numpy as np

        values = gray.ravel()[self.inside]
        sums = np.bincount(self.cells, values, minlength=CELL_ROWS * CELL_COLUMNS)
        means = sums[self.full] / self.counts
        signed, difference = values.astype(np.int16), 0.0
        spread = float(values.std())
        if self.reference is not None:
            difference = self.difference(signed, self.reference)
        if self.reference is None or time_sec < self.since_sec or not is_same(difference, self.spread, self.rules):
            self.reference, self.since_sec, self.spread, difference = signed, time_sec, spread, 0.0
        return Picture(time_sec, float(values.mean()), float(means.max() - means.min()), spread, difference,
                       self.since_sec, is_key)  # fmt: skip

    def difference(self, one: NDArray[np.int16], other: NDArray[np.int16]) -> float:
        """Mean absolute difference without the largest ones, so that a ticking clock does not count."""
        import numpy as np

        counts = np.bincount(np.abs(one - other), minlength=256)
        below = np.minimum(np.cumsum(counts), self.keep)
        kept = np.diff(below, prepend=0)
        return float(kept @ np.arange(len(kept)) / self.keep)


# --- stills ------------------------------------------------------------------------------------------------------


def time_of_still(path: Path, now_sec: float) -> float:
    """From the name `capture_YYYYMMDDHHMMSS.jpg` (local time), else when it was written."""
    if found := STILL_NAME.fullmatch(path.name):
        try:
            named_sec = datetime.strptime(found[1], STILL_TIME).timestamp()
        except (ValueError, OverflowError, OSError):
            named_sec = now_sec + 2 * NAME_AHEAD_SEC
        if named_sec <= now_sec + NAME_AHEAD_SEC:
            return named_sec
    try:
        return path.stat().st_mtime
    except OSError:
        return now_sec


def thumbnail_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_thumbnail.jpg")


def is_cut(data: bytes) -> bool:
    """A JPEG without its end mark; some decoders fill up the missing part with grey and say nothing."""
    return data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


def decode_still(data: bytes, reduction: int = 8) -> Gray:
    """The picture in 160x90 gray; raises Unreadable. `reduction` is what the decoder leaves out: 8, 4, 2 or 1."""
    import cv2
    import numpy as np

    if not data:
        raise Unreadable("the file is empty")
    if is_cut(data):
        raise Unreadable("the file is cut off")
    flags = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
             1: cv2.IMREAD_GRAYSCALE}  # fmt: skip
    try:
        gray = cv2.imdecode(np.frombuffer(data, np.uint8), flags[reduction])
    except cv2.error:  # an image of more pixels than OpenCV takes
        gray = None
    if gray is None:
        raise Unreadable("this is no picture")
    if reduction > 1 and (gray.shape[0] < HEIGHT or gray.shape[1] < WIDTH):
        return decode_still(data, reduction // 2)
    if gray.shape != (HEIGHT, WIDTH):
        gray = cv2.resize(gray, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(gray, np.uint8)


class StillReader:
    """Reads the stills of one capture folder in the order of time; keeps the start of the present run for freeze."""

    def __init__(self, rules: Rules, mask: Gray) -> None:
        self.rules = rules
        self.meter = PictureMeter(rules, mask)
        self.checksum = 0
        self.gray: Gray | None = None

    def read(self, path: Path, time_sec: float | None = None) -> Still:
        """Measure and judge one still; never raises for what lies in the file."""
        time_sec = time_of_still(path, time.time()) if time_sec is None else time_sec
        try:
            data = path.read_bytes()
            checksum = zlib.crc32(data)
            if self.gray is None or checksum != self.checksum:  # the same bytes are the same picture
                self.gray, self.checksum = decode_still(data), checksum
        except (OSError, Unreadable) as problem:
            reason = str(problem.strerror if isinstance(problem, OSError) else problem)
            return Still(path, time_sec, "unknown", reason, None, None, None, None)
        picture = self.meter.measure(self.gray, time_sec)
        is_frozen = judge_freeze(picture, self.rules)
        return Still(path, time_sec, "ok", "", picture, judge_black(picture, self.rules), is_frozen,
                     picture.since_sec if is_frozen else None)  # fmt: skip


# --- sound -------------------------------------------------------------------------------------------------------


# --- frame -------------------------------------------------------------------------------------------------------


def frame_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", nargs="?", type=Path, help="a still")


def frame_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:  # noqa: ARG001
    return Status.DONE


# --- video -------------------------------------------------------------------------------------------------------


# --- incidents ---------------------------------------------------------------------------------------------------


# --- database ----------------------------------------------------------------------------------------------------


# --- evidence and alerts -----------------------------------------------------------------------------------------


# --- monitor -----------------------------------------------------------------------------------------------------


# --- capture -----------------------------------------------------------------------------------------------------


# --- rename ------------------------------------------------------------------------------------------------------


# --- clean -------------------------------------------------------------------------------------------------------


# --- report ------------------------------------------------------------------------------------------------------


# --- command line ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One word of the command line: what it is for, its flags, and what it does."""

    what: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    act: Callable[[argparse.Namespace, Mapping[str, Any]], int]  # gets the whole config, returns the exit status


COMMANDS = {
    "frame": Command("analyse single stills", frame_flags, frame_command),
}


def build_parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    parser = argparse.ArgumentParser(prog="capture_analyzer.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        made = commands.add_parser(name, help=command.what, description=command.what, allow_abbrev=False)
        command.add_flags(made)
        add_common_flags(made)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, configure, act; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    start_logging(arguments)
    sections = ("analysis", "capture", "notify", "storage", "rhombus", "cameras")
    config = load_config(arguments.config, sections, Path(__file__).resolve().parent)
    return COMMANDS[arguments.command].act(arguments, config)


if __name__ == "__main__":
    sys.exit(run(main))
