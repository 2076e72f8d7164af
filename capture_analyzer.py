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
import csv
import heapq
import importlib
import json
import logging
import math
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone, tzinfo
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

from rhombus_logging import (
    CannotStart,
    Status,
    UsageError,
    add_common_flags,
    cluster,
    find_ffmpeg,
    load_config,
    part_file,
    read_json,
    run,
    start_logging,
    watch_sign,
)

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
SAMPLE_SEC = 0.2  # of a recording, so often is a picture looked at; decoding costs the same for fewer
SELECT = "isnan(prev_selected_t)+gte(t-prev_selected_t,0.19)+key*gte(t-prev_selected_t,0.03)"
KEY_GAP_SEC = 5.0  # between key pictures further apart too much can hide
PICTURE_GAP_SEC = 6.0  # pictures further apart than this say nothing about the time between them
JOIN_SEC = 1.0  # parts of one incident that the coder's new start at a key picture tore apart
LIVELY_PICTURES = 20  # so many live pictures say how noisy a camera is,
LIVELY_LEAST = 0.15  # if in nearly all of them at least this share of the pixels changed
CALM_MOST, CALM_SHARE = 0.15, 0.4  # calm: fewer changed pixels than this, and than this share of the live ones
KEY_SETTLE_SEC = 0.5  # after a key picture everything changes a little
SUSPICIOUS_SHARE, SUSPICIOUS_MOST = 0.75, 0.8  # key pictures that differ less than usual, and no more than this
PRECISE_SHARE = 0.6  # of a file to be looked at precisely: one pass over all of it is cheaper
SOUND_RATE, SOUND_WINDOW_SEC = 8000, 0.25
SOUND_WINDOWS_AT_ONCE = 240
FLOOR_DB = -120.0  # of digital silence
QUIETLY = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info")
SHOWN_PICTURE = re.compile(r"\bpts_time:(NOPTS|[-\d.e+]+) .*\biskey:(\d)")
LISTED_LENGTH = re.compile(r"Duration: (\d+):(\d+):([\d.]+), start")
COMPLAINT = re.compile(r"\[(?:error|fatal)\] (.*)")
COMPLAINTS_KEPT = 20
STALL_SEC = 120
STILLS_LOOKED_AT, STILL_GAP_SEC = 60, 60.0  # `frame` looks back so far at most, and over no longer pause
SEGMENT_SEC, CLASSIC_SEGMENT_SEC = 30, 300  # older sound does not belong to a still
SEGMENT_AHEAD_SEC, SEGMENT_REST_SEC = 10.0, 1.0
SEGMENTS_LISTENED_TO = 3  # of 2 s: enough for quiet_sec
NO_SOUND_DB = -100.0  # what the older analyzer said where there was nothing to listen to
CLASSIC_DARK, CLASSIC_BLACK_PERCENT, CLASSIC_FREEZE = 10, 95.0, 0.5
RECORDINGS = tuple(f".{name}" for name in "mp4 mkv ts mov avi m4v webm flv mpg mpeg m2ts h264 hevc".split())  # noqa: SIM905
RHOMBUS_NAME = re.compile(r"_(\d{9,11})_(?:video|videoWithAudio|combined)(?:_partial)?$")
NAMED_TIME = re.compile(r"(?<!\d)(\d{8})[_T-]?(\d{6})(Z?)(?![\dA-Za-z])")

log = logging.getLogger("capture_analyzer")

Interval = tuple[float, float]  # [start, end) in seconds


class Unreadable(Exception):
    """A file holds no picture or sound that could be read; the sentence says why."""


class NoStream(Exception):
    """A file has no pictures, or no sound."""


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
    difference: float  # to the first picture of the run before it; 0 for the very first picture
    changed: float  # share of the pixels that differ from the picture before; 1 for the very first
    since_sec: float  # when the run began that it belongs to; equal to time_sec where it began a new one
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
        self.before: Gray | None = None
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
            self.reference, self.since_sec, self.spread = signed, time_sec, spread
        changed = 1.0 if self.before is None else np.count_nonzero(values != self.before) / values.size
        self.before = values
        return Picture(time_sec, float(values.mean()), float(means.max() - means.min()), spread, difference, changed,
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


# --- FFmpeg ------------------------------------------------------------------------------------------------------


class Pipe:
    """One FFmpeg process that writes to a pipe; what it says about pictures and about trouble is kept.

    Every process ends with its `with` block, however that ends.
    """

    def __init__(self, ffmpeg: str, source: Path | bytes, before: Sequence[str], after: Sequence[str]) -> None:
        given = "pipe:0" if isinstance(source, bytes) else f"file:{source.absolute()}"
        self.process = subprocess.Popen(
            [ffmpeg, *QUIETLY, "-protocol_whitelist", "file,pipe,fd", *before, "-i", given, *after, "pipe:1"],
            stdin=subprocess.PIPE if isinstance(source, bytes) else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        self.pictures: SimpleQueue[tuple[float, bool] | None] = SimpleQueue()
        self.complaints: list[str] = []
        self.listed_sec = 0.0  # the length that the container claims: a hint at most
        self.threads = [threading.Thread(target=self.listen, daemon=True)]
        if isinstance(source, bytes):
            self.threads.append(threading.Thread(target=self.feed, args=(source,), daemon=True))
        for thread in self.threads:
            thread.start()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self.threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()

    def feed(self, data: bytes) -> None:
        assert self.process.stdin
        with suppress(OSError), self.process.stdin as stdin:  # FFmpeg may have had enough of it
            stdin.write(data)

    def listen(self) -> None:
        assert self.process.stderr
        for raw in self.process.stderr:
            line = raw.decode(errors="replace")
            if found := SHOWN_PICTURE.search(line):
                self.pictures.put((float(found[1]) if found[1] != "NOPTS" else math.nan, found[2] == "1"))
            elif found := LISTED_LENGTH.search(line):
                self.listed_sec = int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
            elif (found := COMPLAINT.search(line)) and len(self.complaints) < COMPLAINTS_KEPT:
                self.complaints.append(found[1].strip())
        self.pictures.put(None)

    def blocks(self, size_bytes: int) -> Iterator[bytes]:
        """What FFmpeg writes, in blocks; the last may be shorter. Raises Unreadable when nothing comes any more."""
        assert self.process.stdout
        stdout, held = self.process.stdout.fileno(), bytearray()
        while select.select([stdout], [], [], STALL_SEC)[0]:
            data = os.read(stdout, size_bytes - len(held))
            held += data
            if len(held) == size_bytes or (held and not data):
                yield bytes(held)
                held.clear()
            if not data:
                return
        raise Unreadable(f"FFmpeg gave nothing for {STALL_SEC} s")

    def check(self, is_any: bool) -> None:
        """After the last block: raises NoStream or Unreadable when FFmpeg failed and gave nothing."""
        failed = self.process.wait() != 0
        self.threads[0].join()
        if any("matches no streams" in line or "AVOption skip_frame" in line for line in self.complaints):
            raise NoStream  # FFmpeg 9 finds an option for pictures before it finds that there are none
        if not is_any:
            raise Unreadable(self.complaints[0] if self.complaints else "it holds nothing that can be decoded")
        if failed:
            log.debug("FFmpeg ended with %s: %s", self.process.returncode, self.complaints)


def read_pictures(ffmpeg: str, file: Path, *, keys_only: bool = False, start_sec: float = 0,
                  end_sec: float | None = None, threads: int = 0) -> Iterator[tuple[Gray, float, bool]]:  # fmt: skip
    """Pictures in 160x90 gray, each with its time from the start of the file and whether it is a key picture.

    Either the key pictures alone, or five a second and every key picture. Raises NoStream and Unreadable.
    """
    import numpy as np

    before = ["-threads", str(threads), *(["-skip_frame", "nokey"] if keys_only else [])]
    before += ["-ss", f"{start_sec:.3f}"] if start_sec else []
    before += ["-t", f"{end_sec - start_sec:.3f}"] if end_sec is not None else []
    filters = "" if keys_only else f"select='{SELECT}',"
    filters += f"scale={WIDTH}:{HEIGHT}:flags=area,format=gray,showinfo=checksum=0"
    after = ["-map", "0:V:0", "-vf", filters, "-fps_mode", "passthrough", "-f", "rawvideo"]
    latest = -math.inf
    with Pipe(ffmpeg, file, before, after) as pipe:
        for block in pipe.blocks(WIDTH * HEIGHT):
            shown = pipe.pictures.get()
            if shown is None or len(block) < WIDTH * HEIGHT:
                break
            time_sec, is_key = shown
            if math.isnan(time_sec):  # a stream without times: the spacing that was asked for
                time_sec = max(latest, 0) + SAMPLE_SEC
            if time_sec <= latest:  # times that jump back
                continue
            latest = time_sec
            yield np.frombuffer(block, np.uint8).reshape(HEIGHT, WIDTH), start_sec + time_sec, is_key
        pipe.check(latest > -math.inf)


# --- sound -------------------------------------------------------------------------------------------------------


def measure_sound(ffmpeg: str, source: Path | bytes) -> list[float]:
    """The level in dB below full scale of each quarter of a second; gaps between packets count as silence.

    `source` is a file, or the bytes of MPEG-TS segments one after another. Raises NoStream and Unreadable.
    """
    import numpy as np

    after = ["-map", "0:a:0", "-af", f"aresample={SOUND_RATE}:async=1:first_pts=0", "-ac", "1", "-f", "s16le"]
    window, levels = round(SOUND_RATE * SOUND_WINDOW_SEC), []
    with Pipe(ffmpeg, source, ["-vn"], after) as pipe:
        for block in pipe.blocks(2 * window * SOUND_WINDOWS_AT_ONCE):
            samples = np.frombuffer(block[: len(block) // 2 * 2], np.int16).astype(np.float32) / 32768
            whole = len(samples) // window * window
            power = [*(samples[:whole].reshape(-1, window) ** 2).mean(axis=1)]
            if len(samples) - whole >= window / 2:  # the last of a file; a shorter rest says nothing
                power.append((samples[whole:] ** 2).mean())
            levels += [max(10 * math.log10(one), FLOOR_DB) if one > 0 else FLOOR_DB for one in power]
        pipe.check(bool(levels))
    return levels


def mean_level_db(levels: Sequence[float]) -> float:
    """The level of all of it together, as FFmpeg's volumedetect gives it."""
    power = sum(10 ** (level / 10) for level in levels if level > FLOOR_DB) / max(len(levels), 1)
    return max(10 * math.log10(power), FLOOR_DB) if power > 0 else FLOOR_DB


def find_audio_loss(levels: Sequence[float], rules: Rules) -> list[Interval]:
    """Where sound is lost: below silence_db for silence_sec, or below quiet_db for quiet_sec."""
    found = []
    for limit_db, least_sec in ((rules.silence_db, rules.silence_sec), (rules.quiet_db, rules.quiet_sec)):
        first = 0
        for place, level in enumerate([*levels, 0.0]):
            if level >= limit_db:
                if (place - first) * SOUND_WINDOW_SEC >= least_sec:
                    found.append((first * SOUND_WINDOW_SEC, place * SOUND_WINDOW_SEC))
                first = place + 1
    return joined(found, 0)


def joined(intervals: Iterable[Interval], gap_sec: float) -> list[Interval]:
    """Sorted, with those made one that touch, overlap, or lie within `gap_sec`."""
    result: list[Interval] = []
    for start, end in sorted(intervals):
        if result and start - result[-1][1] <= gap_sec:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


# --- frame -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sound:
    """What is heard beside a still; `is_there` None is unknown."""

    is_there: bool | None
    mean_db: float = NO_SOUND_DB
    reason: str = ""

    @property
    def volume_percent(self) -> float:
        return min(max((self.mean_db + 60) / 60 * 100, 0), 100)


def stills_until(path: Path, time_sec: float, span_sec: float) -> list[Path]:
    """The stills of its folder that end with `path`, in name order: three, or as many as `span_sec` takes."""
    try:
        with os.scandir(path.parent) as entries:  # there may be a hundred thousand
            names = [entry.name for entry in entries if entry.name < path.name and entry.name.endswith(path.suffix)
                     and not entry.name.endswith("_thumbnail.jpg")]  # fmt: skip
    except OSError:
        names = []
    chosen, latest = [path], time_sec
    for name in heapq.nlargest(STILLS_LOOKED_AT, names):
        before_sec = time_of_still(path.with_name(name), time_sec)
        if latest - before_sec > STILL_GAP_SEC or (len(chosen) >= 3 and time_sec - latest >= span_sec):
            break
        chosen.insert(0, path.with_name(name))
        latest = before_sec
    return chosen


def segments_beside(still: Path, time_sec: float, oldest_sec: float) -> list[Path]:
    """The last finished `segment_*.ts` beside a still or its folder, up to its time; the newest last.

    Finished are those that a playlist names; without a playlist, all but the one that was written to just now.
    """
    for folder in (still.absolute().parent.parent, still.absolute().parent):
        found = []
        with suppress(OSError):
            listed = "".join(file.read_text("utf-8", "replace") for file in folder.glob("*.m3u8"))
            for segment in folder.glob(SEGMENT_PATTERN):
                written_sec = segment.stat().st_mtime
                is_done = segment.name in listed if listed else time.time() - written_sec >= SEGMENT_REST_SEC
                if is_done and time_sec - oldest_sec <= written_sec <= time_sec + SEGMENT_AHEAD_SEC:
                    found.append((written_sec, segment.name, segment))
        if found:
            return [segment for *_, segment in sorted(found)[-SEGMENTS_LISTENED_TO:]]
    return []


def listen(still: Path, time_sec: float, rules: Rules, *, classic: bool) -> Sound:
    """Is there sound in the segments beside a still?"""
    oldest_sec = CLASSIC_SEGMENT_SEC if classic else SEGMENT_SEC
    segments = segments_beside(still, time.time() if classic else time_sec, oldest_sec)
    if not segments:
        return Sound(False if classic else None, reason=f"no sound segment of the last {oldest_sec} s")
    try:
        data = b"".join(segment.read_bytes() for segment in (segments[-1:] if classic else segments))
        levels = measure_sound(find_ffmpeg("listening to segments"), data)
    except NoStream:
        return Sound(False if classic or rules.audio_required else None, reason="the segments have no sound stream")
    except (OSError, Unreadable, CannotStart) as problem:  # the picture can be judged without FFmpeg
        return Sound(False if classic else None, reason=f"sound: {problem}")
    heard = Sound(None, mean_level_db(levels))
    lost = find_audio_loss(levels, rules)
    is_lost = bool(lost) and lost[-1][1] >= len(levels) * SOUND_WINDOW_SEC
    return replace(heard, is_there=heard.volume_percent > 5 if classic else not is_lost)


def classic_verdict(stills: Sequence[Path]) -> tuple[float, list[float | None]]:
    """The older measure of up to three stills: percent of dark pixels in the last, differences of the pairs."""
    import cv2
    import numpy as np

    grays = [cv2.imdecode(np.frombuffer(still.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE) for still in stills]
    dark_percent = float(np.mean(np.asarray(grays[-1]) <= CLASSIC_DARK) * 100)
    sparse = [None if gray is None else gray[::10, ::10].astype(np.int16) for gray in grays]
    return dark_percent, pair_differences(sparse, lambda one, other: float(np.abs(one - other).mean())
                                          if one.shape == other.shape else 255.0)  # fmt: skip


def pair_differences(three: Sequence[Any], differ: Callable[[Any, Any], float]) -> list[float | None]:
    """Of n-2 and n-1, n-2 and n, n-1 and n; None where a picture is missing."""
    padded = [*[None] * (3 - len(three)), *three]
    return [None if padded[one] is None or padded[other] is None else round(differ(padded[one], padded[other]), 2)
            for one, other in ((0, 1), (0, 2), (1, 2))]  # fmt: skip


def grays_of(stills: Sequence[Path]) -> list[NDArray[np.int16] | None]:
    grays: list[NDArray[np.int16] | None] = []
    for still in stills:
        try:
            grays.append(decode_still(still.read_bytes()).astype("int16"))
        except (OSError, Unreadable):
            grays.append(None)
    return grays


def analyse_frame(path: Path, device: str, config: Mapping[str, Any], *, classic: bool) -> dict[str, Any]:
    """Everything that `frame` says about one still, by the older names and ours."""
    rules, time_sec = rules_of(config["analysis"]), time_of_still(path, time.time())
    stills = stills_until(path, time_sec, rules.freeze_sec)
    reader = StillReader(rules, mask_of(config["analysis"], device))
    for still in stills:
        seen = reader.read(still, time_of_still(still, time_sec))
    sound, three = listen(path, time_sec, rules, classic=classic), stills[-3:]
    black, freeze, dark_percent, reasons = seen.blackscreen, seen.freeze, 0.0, [seen.reason]
    diffs: list[float | None] = [None, None, None]
    if seen.quality == "ok" and reader.gray is not None:
        meter, grays = reader.meter, grays_of(three)
        inside = [None if gray is None else gray.ravel()[meter.inside] for gray in grays]
        dark_percent = float((reader.gray <= CLASSIC_DARK).mean() * 100)
        diffs = pair_differences(inside, meter.difference)
        first_sec = time_of_still(stills[0], time_sec)
        if classic:
            dark_percent, diffs = classic_verdict(three)
            black = dark_percent > CLASSIC_BLACK_PERCENT
            freeze = None not in diffs and all(value < CLASSIC_FREEZE for value in diffs if value is not None)
        elif len(stills) < 3 or time_sec - first_sec < rules.freeze_sec:
            freeze = None
            reasons.append(f"freeze needs 3 stills that span {rules.freeze_sec:g} s")
    reasons.append(sound.reason)
    return {
        "timestamp": iso_time(time.time()), "filename": path.name, "thumbnail": thumbnail_of(path).name,
        "blackscreen": black, "blackscreen_percentage": round(dark_percent, 1), "freeze": freeze, "freeze_diffs": diffs,
        "last_3_filenames": [still.name for still in three],
        "last_3_thumbnails": [thumbnail_of(still).name for still in three],
        "audio": sound.is_there, "volume_percentage": round(sound.volume_percent),
        "mean_volume_db": round(sound.mean_db, 1),
        "quality": seen.quality, "reason": "; ".join(reason for reason in reasons if reason),
        "frame_time": iso_time(time_sec), "method": "classic" if classic else "rules",
        "mean": round(seen.picture.mean, 2) if seen.picture else None,
        "cell_range": round(seen.picture.cell_range, 2) if seen.picture else None,
    }  # fmt: skip


def carried_on(state: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The incident state after one more still: bad ones count on, good ones end, unknown ones stay as they are."""
    bad = {"blackscreen": result["blackscreen"], "freeze": result["freeze"],
           "audio_loss": None if result["audio"] is None else not result["audio"]}  # fmt: skip
    after: dict[str, Any] = {}
    for kind, is_bad in bad.items():
        before = state.get(kind) if isinstance(state.get(kind), dict) else None
        if is_bad is False or (is_bad is None and before is None):
            continue
        entry = {"alert_id": None, "start_time": result["frame_time"], "consecutive_count": 0, **(before or {})}
        if is_bad:
            entry |= {"consecutive_count": int(entry["consecutive_count"]) + 1, "last_updated": result["frame_time"]}
        after[kind] = entry
    return after


def state_of(text: str | None) -> dict[str, Any]:
    """`active_incidents` of STATE_JSON, which may also be given bare."""
    try:
        state = json.loads(text or "{}")
    except ValueError:
        state = None
    active = state.get("active_incidents", state) if isinstance(state, dict) else None
    if not isinstance(active, dict):
        raise UsageError("STATE_JSON: expected a JSON object such as {\"active_incidents\": {}}")
    return active


def frame_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", nargs="?", type=Path, help="a still")
    parser.add_argument("host", metavar="HOST", nargs="?", help="default: HOST_NAME, USER, or the host's name")
    parser.add_argument("device", metavar="DEVICE", nargs="?", help="default: the folder that the captures are of")
    parser.add_argument("state", metavar="STATE_JSON", nargs="?", help="active incidents so far; they are carried on")
    parser.add_argument("--images", metavar="IMAGE", nargs="+", type=Path, default=[], help="several stills, in order")
    parser.add_argument("--method", choices=("rules", "classic"), default="rules", help="classic: the older thresholds")


def frame_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """One JSON object on stdout for each still."""
    images = [*([arguments.image] if arguments.image else []), *arguments.images]
    if not images:
        raise UsageError("no still was named; give IMAGE or --images")
    host = arguments.host or os.environ.get("HOST_NAME") or os.environ.get("USER") or socket.gethostname()
    state, failed = state_of(arguments.state), 0
    for image in images:
        device = arguments.device or camera_of(image)
        result = analyse_frame(image, device, config, classic=arguments.method == "classic")
        state = carried_on(state, result)
        result |= {"host_name": host, "device_id": device, "active_incidents": state}
        sys.stdout.write(json.dumps(result) + "\n")
        if result["quality"] == "unknown":
            failed += 1
            log.error("%s: quality unknown: %s", image, result["reason"])
    return Status.PARTIAL if failed else Status.DONE


# --- video -------------------------------------------------------------------------------------------------------


class Metrics:
    """Everything that was measured, as CSV: thresholds can be chosen from it, and curves drawn. For many threads."""

    COLUMNS = ("file", "kind", "time_sec", "mean", "cell_range", "spread", "difference", "changed", "since_sec",
               "level_db")  # fmt: skip

    def __init__(self, stream: TextIO) -> None:
        self.writer = csv.writer(stream, lineterminator="\n")
        self.lock = threading.Lock()
        self.writer.writerow(self.COLUMNS)

    def write(self, rows: Iterable[Sequence[Any]]) -> None:
        with self.lock:
            self.writer.writerows(rows)


class KeptMetrics:
    """The same, kept to be sent on from a worker of a cluster."""

    def __init__(self) -> None:
        self.rows: list[Sequence[Any]] = []

    def write(self, rows: Iterable[Sequence[Any]]) -> None:
        self.rows += rows


def picture_row(file: Path, one: Picture) -> list[Any]:
    """A line of --metrics: brightness 0 to 255, difference to the start of the run before this picture."""
    values = (one.time_sec, one.mean, one.cell_range, one.spread, one.difference, one.changed, one.since_sec)
    return [file, "picture", *(round(value, 3) for value in values), ""]


def sound_row(file: Path, place: int, level_db: float) -> list[Any]:
    return [file, "sound", place * SOUND_WINDOW_SEC, "", "", "", "", "", "", round(level_db, 1)]


@dataclass(frozen=True)
class Scan:
    """What was found in one recording. Times are seconds from its start."""

    file: Path
    camera: str
    pictures: str  # how the pictures were looked at: keyframes, precise, none, unknown
    sound: str  # ok, none, unknown
    reason: str  # what could not be read, and why
    length_sec: float
    incidents: tuple[tuple[str, Interval], ...] = ()


@dataclass(frozen=True)
class Scanner:
    """What all recordings of a run are scanned with."""

    ffmpeg: str
    rules: Rules
    settings: Mapping[str, Any]
    precise: bool = False
    threads: int = 0
    metrics: Metrics | KeptMetrics | None = None
    stopped: threading.Event | None = None  # on a cluster: nobody waits for the result any more

    def scan(self, file: Path) -> Scan:
        """Look at one recording; raises nothing for what lies in it."""
        camera = camera_of(file)
        if reason := refusal(file):
            return Scan(file, camera, "unknown", "unknown", reason, 0.0)
        pictures, reasons, found, length_sec = "none", [], [], 0.0
        with ThreadPoolExecutor(1) as side:
            listening = side.submit(self.listen, file)
            try:
                pictures, black_and_frozen, length_sec = self.scan_pictures(file, mask_of(self.settings, camera))
                found += black_and_frozen
            except NoStream:
                pass
            except Unreadable as problem:
                pictures, reasons = "unknown", [str(problem)]
            sound, levels, trouble = listening.result()
        reasons += [] if reasons or not trouble else [trouble]  # a file that cannot be opened needs one reason
        sound_sec = len(levels) * SOUND_WINDOW_SEC
        if sound == "ok" or (sound == "none" and pictures != "none" and self.rules.audio_required):
            lost = find_audio_loss(levels, self.rules)
            if pictures == "keyframes" and length_sec > sound_sec:  # the last key picture is not the end
                length_sec = self.end_of(file, length_sec)
            if length_sec - sound_sec >= self.rules.quiet_sec:  # the pictures go on without sound
                lost = joined([*lost, (sound_sec, length_sec)], SOUND_WINDOW_SEC)
            found += [("audio_loss", interval) for interval in lost]
        if self.metrics:
            self.metrics.write(sound_row(file, place, level) for place, level in enumerate(levels))
        if pictures == sound == "none":
            reasons = ["it holds neither pictures nor sound"]
        return Scan(file, camera, pictures, sound, "; ".join(reasons), max(length_sec, sound_sec),
                    tuple(sorted(found, key=lambda one: (one[1], one[0]))))  # fmt: skip

    def listen(self, file: Path) -> tuple[str, list[float], str]:
        """Whether there is sound, its levels, and what was wrong."""
        try:
            return "ok", measure_sound(self.ffmpeg, file), ""
        except NoStream:
            return "none", [], ""
        except Unreadable as problem:
            return "unknown", [], f"sound: {problem}"

    def scan_pictures(self, file: Path, mask: Gray) -> tuple[str, list[tuple[str, Interval]], float]:
        """How it was done, what was found, and where the pictures end."""
        if not self.precise:
            keys = list(self.measured(file, mask, keys_only=True))
            windows = suspicious(keys, self.rules)
            if windows is not None:
                found, end_sec = [], keys[-1].time_sec + SAMPLE_SEC
                for start_sec, stop_sec in windows:
                    parts, part_end_sec = self.find(file, mask, start_sec, stop_sec)
                    found += parts
                    end_sec = max(end_sec, part_end_sec)
                return "keyframes", found, end_sec
        found, end_sec = self.find(file, mask)
        return "precise", found, end_sec

    def end_of(self, file: Path, key_sec: float) -> float:
        """Where the pictures end, if `key_sec` is shortly after the last key picture."""
        with suppress(NoStream, Unreadable):
            for _, time_sec, _ in read_pictures(self.ffmpeg, file, start_sec=key_sec, threads=self.threads):
                key_sec = max(key_sec, time_sec + SAMPLE_SEC)
        return key_sec

    def find(self, file: Path, mask: Gray, start_sec: float = 0,
             end_sec: float | None = None) -> tuple[list[tuple[str, Interval]], float]:  # fmt: skip
        finder = Finder(self.rules)
        for picture in self.measured(file, mask, start_sec=start_sec, end_sec=end_sec):
            finder.take(picture)
        return finder.finish(), finder.latest_sec + SAMPLE_SEC

    def measured(self, file: Path, mask: Gray, *, keys_only: bool = False, start_sec: float = 0,
                 end_sec: float | None = None) -> Iterator[Picture]:  # fmt: skip
        meter = PictureMeter(self.rules, mask)
        for gray, time_sec, is_key in read_pictures(self.ffmpeg, file, keys_only=keys_only, start_sec=start_sec,
                                                    end_sec=end_sec, threads=self.threads):  # fmt: skip
            if self.stopped and self.stopped.is_set():
                raise Unreadable("stopped")
            picture = meter.measure(gray, time_sec, is_key=is_key or keys_only)
            if self.metrics:
                self.metrics.write([picture_row(file, picture)])
            yield picture


@dataclass(frozen=True)
class RemoteScan:
    """One recording for a worker of a cluster."""

    file: Path
    sign: Path
    scanner: Scanner
    with_metrics: bool


@lru_cache(maxsize=4)
def remote_stop(sign: Path) -> threading.Event:
    """On a worker: set when the program that asked for the run has ended it, or has died."""
    stopped = threading.Event()
    threading.Thread(target=watch_sign, args=(sign, lambda _: stopped.set()), daemon=True, name="sign").start()
    return stopped


def remote_scan(job: RemoteScan) -> tuple[Scan, list[Sequence[Any]]]:
    """On a worker: look at one recording; with it come its metrics."""
    kept = KeptMetrics()
    scanner = replace(job.scanner, ffmpeg=find_ffmpeg("looking at recordings"), stopped=remote_stop(job.sign),
                      metrics=kept if job.with_metrics else None)  # fmt: skip
    return scanner.scan(job.file), kept.rows


def scan_on_cluster(scheduler: str, scanner: Scanner, files: Sequence[Path]) -> Generator[Scan, None, None]:
    """As Scanner.scan of each file, in their order, by the workers of a Dask cluster. Raises CannotStart."""
    if not files:
        return
    places = [Path(os.path.abspath(file)) for file in files]  # noqa: PTH100  links stay
    folder = Path(os.path.commonpath([place.parent for place in places])) / STATE_FOLDER
    here = Path(__file__).resolve()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as problem:
        raise CannotStart(f"{folder}: cannot be made, and --scheduler needs a folder there that all workers see: "
                          f"{problem.strerror}") from problem  # fmt: skip
    with cluster(scheduler, folder, [here.with_name("rhombus_logging.py"), here]) as joined:
        executor = joined.client.get_executor(pure=False)
        bare = replace(scanner, metrics=None, threads=1)
        futures = [executor.submit(remote_scan, RemoteScan(place, joined.sign, bare, scanner.metrics is not None))
                   for place in places]  # fmt: skip
        for file, future in zip(files, futures, strict=True):
            try:
                scan, rows = future.result()
            except (Exception, CancelledError) as problem:  # noqa: BLE001  whatever Dask raises when machines are lost
                reason = f"the cluster gave no result ({type(problem).__name__})"
                scan, rows = Scan(file, camera_of(file), "unknown", "unknown", reason, 0.0), []
            if scanner.metrics:
                scanner.metrics.write([str(file), *row[1:]] for row in rows)
            yield replace(scan, file=file)


class Stillness:
    """Freezes of cameras whose noise is in every picture: it is gone all at once, and back with the first live one.

    A coder with bits to spare renders a frozen picture a little differently at every key picture, by more than
    `is_same` allows, but between them nothing moves. A camera whose coder drops the noise anyway is left to `is_same`.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.lively: deque[float] = deque(maxlen=LIVELY_PICTURES)
        self.forget()

    def forget(self) -> None:
        self.start_sec: float | None = None
        self.has_key = False
        self.loud = 0
        self.key_sec = -math.inf

    def limit(self) -> float:
        """Up to this share of changed pixels a picture is calm; below 0 while too little is known of the live ones."""
        known = sorted(self.lively)
        if len(known) < LIVELY_PICTURES // 2 or known[len(known) // 10] < LIVELY_LEAST:
            return -1.0
        return min(CALM_MOST, known[len(known) // 2] * CALM_SHARE)

    def take(self, picture: Picture) -> float | None:
        """Where the freeze began that this picture belongs to."""
        if picture.is_key:
            self.key_sec = picture.time_sec
            self.has_key |= self.start_sec is not None
        if picture.time_sec - self.key_sec <= KEY_SETTLE_SEC:
            return None
        if picture.changed <= self.limit():
            self.start_sec = picture.time_sec if self.start_sec is None else self.start_sec
            self.loud = 0
        else:
            self.loud += 1
            if self.start_sec is None or self.loud > 1:
                self.start_sec, self.has_key = None, False
                self.lively.append(picture.changed)
        if self.start_sec is None or self.loud or not self.has_key:
            return None
        return self.start_sec if picture.time_sec - self.start_sec >= self.rules.freeze_sec else None


class Finder:
    """Turns the measured pictures of one stretch of a recording into black and frozen intervals."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.latest_sec = self.known_sec = 0.0  # time of the last picture; since when there was no hole
        self.since_sec = -1.0  # start of the present run of same pictures
        self.has_key = False  # a coder repeats a live picture exactly until its next key picture
        self.stillness = Stillness(rules)
        self.open: dict[str, Interval] = {}
        self.found: list[tuple[str, Interval]] = []

    def take(self, picture: Picture) -> None:
        if picture.time_sec - self.latest_sec > PICTURE_GAP_SEC:  # nobody knows what was between
            self.close()
            self.known_sec = picture.time_sec
        if picture.since_sec != self.since_sec:
            self.since_sec, self.has_key = picture.since_sec, False
        self.has_key |= picture.is_key and picture.time_sec > picture.since_sec
        is_black = judge_black(picture, self.rules)
        self.extend("blackscreen", picture, picture.time_sec if is_black else None)
        seen = replace(picture, since_sec=max(picture.since_sec, self.known_sec))
        is_frozen = self.has_key and judge_freeze(seen, self.rules)
        if is_black:
            self.stillness.forget()
        calm_sec = None if is_black else self.stillness.take(picture)
        starts = [start for start in (seen.since_sec if is_frozen else None, calm_sec) if start is not None]
        self.extend("freeze", picture, min(starts) if starts else None)
        self.latest_sec = picture.time_sec

    def extend(self, kind: str, picture: Picture, start_sec: float | None) -> None:
        if start_sec is not None:
            start_sec = min(start_sec, self.open.get(kind, (start_sec, 0))[0])
            self.open[kind] = (start_sec, picture.time_sec + SAMPLE_SEC)
        elif kind in self.open:
            self.found.append((kind, self.open.pop(kind)))

    def close(self) -> None:
        self.stillness.forget()
        self.found += list(self.open.items())
        self.open.clear()

    def finish(self) -> list[tuple[str, Interval]]:
        self.close()
        result = []
        for kind, least_sec in (("blackscreen", self.rules.black_sec), ("freeze", self.rules.freeze_sec)):
            parts = joined((interval for found, interval in self.found if found == kind), JOIN_SEC)
            result += [(kind, (start, end)) for start, end in parts if end - start >= least_sec]
        return result


def suspicious(keys: Sequence[Picture], rules: Rules) -> list[tuple[float, float | None]] | None:
    """The stretches of a recording that have to be looked at precisely; None for all of it.

    A stretch begins two key pictures before the suspicion, so that Stillness knows the camera, and ends with the one
    after it; None is the end of the file.
    """
    if len(keys) < 3:
        return None
    marks = [judge_black(picture, rules) for picture in keys]
    usual = sorted(picture.difference for picture in keys[1:])[(len(keys) - 1) // 2]
    likely = min(SUSPICIOUS_SHARE * usual, SUSPICIOUS_MOST)
    starts = []
    for place, (one, other) in enumerate(zip(keys, keys[1:], strict=False)):
        is_same_run = other.since_sec < other.time_sec or other.difference <= likely
        if marks[place] or marks[place + 1] or is_same_run:
            starts.append((max(place - 2, 0), place + 2))
        elif other.time_sec - one.time_sec > KEY_GAP_SEC:
            starts.append((place, place + 1))
    if keys[-1].since_sec < keys[-1].time_sec or marks[-1]:
        starts.append((len(keys) - 2, len(keys)))
    times = [picture.time_sec for picture in keys]
    windows = joined(((times[first], times[last] if last < len(times) else math.inf) for first, last in starts), 0)
    looked_at = sum(min(end, times[-1]) - start for start, end in windows)
    if looked_at > PRECISE_SHARE * (times[-1] - times[0]):
        return None
    return [(start, None if math.isinf(end) else end) for start, end in windows]


def refusal(file: Path) -> str:
    """Why a file need not be given to FFmpeg at all; empty when it may."""
    try:
        with file.open("rb") as handle:
            return "" if handle.read(1) else "the file is empty"
    except OSError as problem:
        return str(problem.strerror)


def camera_of(file: Path) -> str:
    """The name that masks go by: the folder of a recording; of `NAME/captures/still.jpg`, NAME."""
    folder = file.absolute().parent
    return folder.parent.name if folder.name == "captures" else folder.name


def start_of_recording(file: Path, zone: tzinfo | None) -> tuple[float, str]:
    """When a recording begins, in epoch seconds, and what says so: sidecar, journal, name or mtime.

    Names without a zone are in `zone`. mtime is a guess, and of the end: when the file was written last.
    """
    sidecar = read_json(file.with_suffix(".json")) or {}
    for part in ("obtained", "requested"):
        with suppress(KeyError, TypeError, ValueError):
            return float(sidecar[part]["start_ms"]) / 1000, "sidecar"
    for journal in sorted((file.parent.parent / ".rtsp_recorder" / "journal" / file.parent.name).glob("*.jsonl")):
        with suppress(OSError):
            for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
                if json.dumps(file.name)[1:-1] in line:
                    with suppress(KeyError, TypeError, ValueError):
                        entry = json.loads(line)
                        if entry["kind"] == "segment" and Path(entry["file"]).name == file.name:
                            return float(entry["start"]), "journal"
    if found := RHOMBUS_NAME.search(file.stem):
        return float(found[1]), "name"
    if found := NAMED_TIME.search(file.stem):
        with suppress(ValueError, OverflowError, OSError):
            named = datetime.strptime("".join(found.group(1, 2)), STILL_TIME)
            return named.replace(tzinfo=timezone.utc if found[3] else zone).timestamp(), "name"
    try:
        return file.stat().st_mtime, "mtime"
    except OSError:
        return 0.0, "unknown"


def recordings_in(places: Sequence[Path]) -> list[Path]:
    """Files as given; of folders every recording below them, without parts and what lies in dot folders."""
    files: list[Path] = []
    for place in places:
        below = [Path(folder) / name for folder, _, names in os.walk(place) for name in names]
        files += sorted(file for file in below if file.suffix.lower() in RECORDINGS
                        and not any(part.startswith(".") for part in file.relative_to(place).parts))  # fmt: skip
        files += [] if place.is_dir() else [place]
    return files


def scan_report(scan: Scan, zone: tzinfo | None) -> dict[str, Any]:
    """One line of --json."""
    began_sec, basis = start_of_recording(scan.file, zone)
    began_sec -= scan.length_sec if basis == "mtime" else 0
    quality = "unknown" if "unknown" in (scan.pictures, scan.sound) or scan.pictures == scan.sound == "none" else "ok"
    return {
        "file": str(scan.file), "camera": scan.camera, "quality": quality, "reason": scan.reason,
        "pictures": scan.pictures, "sound": scan.sound, "length_sec": round(scan.length_sec, 2),
        "start": iso_time(began_sec), "time_basis": basis,
        "incidents": [{"type": kind, "start_sec": round(start, 2), "end_sec": round(end, 2),
                       "start": iso_time(began_sec + start), "end": iso_time(began_sec + end)}
                      for kind, (start, end) in scan.incidents],
    }  # fmt: skip


def iso_time(epoch_sec: float) -> str:
    return datetime.fromtimestamp(epoch_sec, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(seconds: float) -> str:
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


def show_scan(report: Mapping[str, Any], *, as_json: bool) -> None:
    """To stdout: a line of JSON, or a few lines for people."""
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        what = report["reason"] or ("nothing found" if not report["incidents"] else "")
        sys.stdout.write(f"{report['file']}  {clock(report['length_sec'])}  {what}".rstrip() + "\n")
        for one in report["incidents"]:
            sys.stdout.write(f"  {one['type']:<11}  {clock(one['start_sec'])} to {clock(one['end_sec'])}  "
                             f"{one['end_sec'] - one['start_sec']:8.1f} s  {one['start']}\n")  # fmt: skip
    sys.stdout.flush()


def video_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="+", type=Path, help="recordings, or folders of them")
    parser.add_argument("--precise", action="store_true", help="five pictures a second everywhere, not only where the "
                        "key pictures raise a suspicion")  # fmt: skip
    parser.add_argument("--json", action="store_true", default=None, help="JSON Lines, the last one a summary")
    parser.add_argument("--metrics", metavar="FILE", type=Path, help="everything measured goes there, as CSV")
    parser.add_argument("--fail_on_incident", action="store_true", help="exit 1 when an incident was found")
    parser.add_argument("--workers", metavar="N", type=int, help="files side by side (default: one per CPU core)")
    parser.add_argument("--scheduler", metavar="URL", help="scan on the Dask cluster of this scheduler: tcp://host:8786")


def video_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Scan recordings side by side and show them in their order."""
    files = recordings_in(arguments.file)
    at_once = min(arguments.workers or os.cpu_count() or 1, len(files))
    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError("--workers: must be 1 or more")
    rules, zone = rules_of(config["analysis"]), zone_of(config["recording"]["timezone"])
    for camera in config["analysis"]["masks"]:
        mask_of(config["analysis"], camera)
    ffmpeg, counts = find_ffmpeg("looking at recordings"), dict.fromkeys(TYPES, 0)
    failed, length_sec = 0, 0.0
    with ExitStack() as stack:
        metrics = None
        if arguments.metrics:
            part = stack.enter_context(writable(arguments.metrics))
            metrics = Metrics(stack.enter_context(part.open("w", newline="", encoding="utf-8")))
        scanner = Scanner(ffmpeg, rules, config["analysis"], arguments.precise, 1 if at_once > 1 else 0, metrics)
        pool = ThreadPoolExecutor(max(at_once, 1))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # a signal must not wait for a long file
        remote = scan_on_cluster(arguments.scheduler, scanner, files) if arguments.scheduler else None
        stack.callback(remote.close) if remote else None
        for scan in remote or pool.map(scanner.scan, files):
            report = scan_report(scan, zone)
            show_scan(report, as_json=bool(arguments.json))
            length_sec += scan.length_sec
            for kind, _ in scan.incidents:
                counts[kind] += 1
            if report["quality"] == "unknown":
                failed += 1
                log.error("%s: quality unknown: %s", scan.file, scan.reason)
    total = sum(counts.values())
    if arguments.json:
        summary = {"files": len(files), "unknown": failed, "length_sec": round(length_sec, 2), "incidents": counts}
        sys.stdout.write(json.dumps({"summary": summary}) + "\n")
    log.info("%d files, %s of footage: %d incidents, %d files unknown", len(files), clock(length_sec), total, failed)
    return Status.PARTIAL if failed or (total and arguments.fail_on_incident) else Status.DONE


@contextmanager
def writable(path: Path) -> Iterator[Path]:
    """part_file, with a sentence where the folder does not take it."""
    if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: cannot be written; name a file in a folder that is there")
    with part_file(path) as part:
        yield part


def zone_of(name: str) -> tzinfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return timezone.utc if name.upper() == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as problem:
        raise UsageError(f"timezone {name!r} is not known; expected a name such as Europe/Berlin") from problem


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
    "frame": Command("say whether a still is black or frozen, and whether there is sound", frame_flags, frame_command),
    "video": Command("find black, frozen and silent stretches in recordings", video_flags, video_command),
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
    arguments.debug |= os.environ.get("DEBUG", "").lower() == "true"
    start_logging(arguments)
    if getattr(arguments, "scheduler", None) and __name__ == "__main__":  # workers find classes by their module's name
        return int(importlib.import_module(Path(__file__).stem).main(argv))
    sections = ("analysis", "capture", "notify", "storage", "recording", "rhombus", "cameras")
    config = load_config(arguments.config, sections, Path(__file__).resolve().parent)
    return COMMANDS[arguments.command].act(arguments, config)


if __name__ == "__main__":
    sys.exit(run(main))
