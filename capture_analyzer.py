"""Find black, frozen and silent stretches in stills, recordings and live captures of cameras and grabbers.

Examples:
  capture_analyzer.py frame /srv/captures/capture_20260131120000.jpg     one still: a JSON object
  capture_analyzer.py video /srv/footage --json                          every recording in a folder, as JSON Lines
  capture_analyzer.py video clip.mp4 --precise --metrics clip.csv        every picture looked at, all numbers kept

Needs: numpy and OpenCV (opencv-python-headless); FFmpeg 5.1 or newer (pip brings one) for recordings and sound.
State: none for `frame` and `video`; `monitor` keeps its own, and incidents, in `.capture_analyzer/` with the captures.
"""

from __future__ import annotations

import argparse
import csv
import errno
import glob
import hashlib
import heapq
import json
import logging
import math
import os
import queue
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from rhombus_logging import (
    Busy,
    CannotStart,
    Status,
    UsageError,
    add_common_flags,
    find_ffmpeg,
    hide_secret,
    load_config,
    mask,
    notify_channels,
    part_file,
    read_json,
    run,
    run_lock,
    send,
    start_logging,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sqlalchemy import Table
    from sqlalchemy.engine import Connection

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
INCIDENT_TYPES = (*TYPES, "no_data")
INCIDENT_COLUMNS = ("alert_id", "host_name", "device_id", "incident_type", "status", "consecutive_count", "start_time",
                    "end_time", "metadata")  # fmt: skip
NO_DATA_INTERVALS = 3  # so many usual distances without a still
INTERVALS_KEPT = 9  # the median of these is the usual distance: an outage among them does not count
BACKDATE_SEC, RECENT_KEPT = 15.0, 64  # good samples that a freeze may turn out to have begun with
NETWORK_FILESYSTEMS = ("nfs", "cifs", "smb", "9p", "ceph", "glusterfs", "afs", "lustre", "davfs", "ncpfs", "fuse.sshfs",
                       "fuse.rclone", "fuse.s3fs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.ceph", "fuse.davfs",
                       "fuse.smbnetfs", "fuse.curlftpfs")  # fmt: skip
HASH_BLOCK_BYTES = 1 << 20
DATABASE_NAME = "incidents.sqlite3"
DATABASE_TIMEOUT_SEC = 5
EVIDENCE_PREFIX = "alerts"  # of the keys that nas_sync.py upload gives to evidence
STATE_SCHEMA = 1
TICK_SEC = 0.5  # how long a folder's thread waits for news
POLL_SEC = 1.0  # network mounts tell nothing
RESCAN_SEC, RESCAN_SHARE = 30.0, 50  # events may be lost; listing takes at most a fiftieth of the time
SETTLE_SEC = 2.0  # younger files that cannot be read may still be written
CLOCK_JUMP_SEC = 10.0
SOUND_EVERY_SEC = 1.0
SOUND_GAP_SEC = 10.0  # between segments: longer ones are no run of silence
SEGMENT_LIES_STILL_SEC = 10.0
CLIP_BEFORE_SEC, CLIP_SEGMENTS = 5.0, 10
SAVE_EVERY_SEC, SAVE_AGAIN_SEC, PROGRESS_EVERY_SEC = 10.0, 1.0, 5.0  # state; spares memory cards
ROWS_EVERY_SEC = 60.0  # active incidents count on in the database
DELIVER_EVERY_SEC = 0.25
RETRY_FIRST_SEC, RETRY_MAX_SEC = 1.0, 60.0
HOLD_MAX_SEC = 7200.0
KEPT_AWAY_SEC = 5.0  # after a bug in a folder's thread
WATCHDOG_EVERY_SEC, WATCHDOG_QUIET_SEC = 1.0, 60  # a thread that is silent so long hangs: systemd is no longer told
STOP_WITHIN_SEC = 3.0
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
            text = f"{found[1][:4]}-{found[1][4:6]}-{found[1][6:8]} {found[1][8:10]}:{found[1][10:12]}:{found[1][12:]}"
            named_sec = datetime.fromisoformat(text).timestamp()  # strptime takes ten times as long
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
    metrics: Metrics | None = None

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
            picture = meter.measure(gray, time_sec, is_key=is_key or keys_only)
            if self.metrics:
                self.metrics.write([picture_row(file, picture)])
            yield picture


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
                        if entry["kind"] == "segment" and entry["file"] == file.name:
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
    parser.add_argument("--store", action="store_true", help="keep what is found in analysis.database, once")
    parser.add_argument("--fail_on_incident", action="store_true", help="exit 1 when an incident was found")
    parser.add_argument("--workers", metavar="N", type=int, help="files side by side (default: one per CPU core)")


def video_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Scan recordings side by side and show them in their order."""
    files = recordings_in(arguments.file)
    at_once = min(arguments.workers or os.cpu_count() or 1, len(files))
    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError("--workers: must be 1 or more")
    if arguments.store and not config["analysis"]["database"]:
        raise UsageError("--store: set analysis.database, where the incidents are to be kept")
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
        for scan in pool.map(scanner.scan, files):
            report = scan_report(scan, zone)
            show_scan(report, as_json=bool(arguments.json))
            if arguments.store and scan.incidents:
                failed += store_scan(scan, zone, database_of(config["analysis"], scan.file.parent))
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


@dataclass(frozen=True)
class Patience:
    """The times of the incident machine, from `analysis`; seconds."""

    alarm_sec: Mapping[str, float]  # of each type: bad for so long before it is an incident
    bad_share: float  # of the samples within that time
    clear_sec: float
    reopen_sec: float
    no_data_sec: float


@dataclass(frozen=True)
class Sample:
    """One verdict on one type: True bad, False good, None unknown. `ref` names what it was seen on."""

    at_sec: float
    bad: bool | None
    ref: str = ""
    since_sec: float | None = None  # a bad sample may know that it began earlier: a freeze, once it has lasted
    detail: str = ""


@dataclass(frozen=True)
class Incident:
    """A verdict with start and end, as a row of the database has it; times in epoch seconds."""

    alert_id: str
    host_name: str
    device_id: str
    incident_type: str
    status: str  # active or resolved
    consecutive_count: int  # bad samples
    start_sec: float
    end_sec: float | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """What happened to an incident, and the stills that show it (empty where there is none)."""

    kind: str  # opened, reopened or resolved
    incident: Incident
    last_good: str = ""
    first_bad: str = ""
    first_good: str = ""


@dataclass(frozen=True)
class Watch:
    """What is known of one type on one camera. JSON carries it over a restart."""

    phase: str = "ok"  # ok, pending, active, clearing
    known_sec: float | None = None  # the last sample, if its verdict was known: else the timers stand still
    timer_sec: float = 0.0  # known time within pending or clearing
    window: tuple[tuple[float, float, bool, str], ...] = ()  # pending: timer, time, bad, ref
    recent: tuple[tuple[float, str], ...] = ()  # the last good samples, for back-dated starts
    start_sec: float = 0.0
    count: int = 0
    good_sec: float = 0.0  # clearing: first good sample
    good_ref: str = ""
    alert_id: str = ""  # of the present incident, or of the last one while it may be reopened
    ended_sec: float | None = None
    detail: str = ""

    def refs(self) -> set[str]:
        """The stills that may yet become evidence."""
        first = {self.window[0][3]} if self.window else set()
        return (first | {self.good_ref} | {ref for _at, ref in self.recent}) - {""}


def watch_from(values: Mapping[str, Any]) -> Watch:
    """From JSON, where tuples are lists; a state of another version is forgotten."""
    try:
        rows = {name: tuple(tuple(row) for row in values.get(name, ())) for name in ("window", "recent")}
        return Watch(**{**values, **rows})
    except TypeError:
        return Watch()


def alert_id_of(host: str, device: str, incident_type: str, start_sec: float) -> str:
    """The same for the same incident, also when it is found again after a crash: nothing is told or stored twice."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{host}/{device}/{incident_type}/{round(start_sec * 1000)}"))


def silent_after_sec(steps: Sequence[float], patience: Patience) -> float:
    """So long without a sample is `no_data`: three usual distances, and at least `no_data_alarm`."""
    usual = sorted(steps)[len(steps) // 2] if len(steps) >= 3 else 0.0
    return max(patience.no_data_sec, NO_DATA_INTERVALS * usual)


class IncidentMachine:
    """The incidents of one camera. Pure: times come in, events come out; it alone decides what is an incident."""

    def __init__(self, host: str, device: str, patience: Patience, state: Mapping[str, Any] | None = None) -> None:
        self.host, self.device, self.patience = host, device, patience
        state = state or {}
        self.watches = {name: watch_from(state.get("watches", {}).get(name, {})) for name in INCIDENT_TYPES}
        self.last_sec: float | None = state.get("last_sec")
        self.last_ref = str(state.get("last_ref", ""))
        self.steps = [float(step) for step in state.get("steps", [])]

    def state(self) -> dict[str, Any]:
        return {"watches": {name: asdict(watch) for name, watch in self.watches.items()}, "last_sec": self.last_sec,
                "last_ref": self.last_ref, "steps": self.steps}  # fmt: skip

    def active(self) -> list[Incident]:
        return [self.incident(name) for name, watch in self.watches.items() if watch.phase in ("active", "clearing")]

    def incident(self, name: str) -> Incident:
        watch = self.watches[name]
        is_active = watch.phase in ("active", "clearing")
        return Incident(watch.alert_id, self.host, self.device, name, "active" if is_active else "resolved",
                        watch.count, watch.start_sec, None if is_active else watch.ended_sec,
                        {"detail": watch.detail} if watch.detail else {})  # fmt: skip

    def refs(self) -> set[str]:
        return set().union(*(watch.refs() for watch in self.watches.values())) | ({self.last_ref} - {""})

    def pause(self) -> None:
        """Time has passed of which nothing is known (a jump of the clock, a restart): no timer counts it."""
        self.watches = {name: replace(watch, known_sec=None) for name, watch in self.watches.items()}
        self.last_sec = None

    def arrived(self, at_sec: float, ref: str = "") -> list[Event]:
        """A still is there, whatever it shows: ends `no_data`, and finds one that is over already."""
        events: list[Event] = []
        if self.last_sec is not None and at_sec > self.last_sec:
            events += self.silence(at_sec)
            self.steps = [*self.steps[1 - INTERVALS_KEPT :], at_sec - self.last_sec]
        watch = self.watches["no_data"]
        if watch.phase == "active":
            ended = replace(watch, phase="ok", ended_sec=max(at_sec, watch.start_sec))
            self.watches["no_data"] = ended
            events.append(Event("resolved", self.incident("no_data"), first_good=ref))
        self.last_sec, self.last_ref = at_sec, ref
        return events

    def silence(self, now_sec: float) -> list[Event]:
        """Nothing has come since the last sample, and it is `now_sec`."""
        watch = self.watches["no_data"]
        if self.last_sec is None or now_sec - self.last_sec < silent_after_sec(self.steps, self.patience):
            return []
        if watch.phase == "active":
            return []
        self.watches["no_data"] = replace(watch, count=0)
        return [self.open("no_data", self.last_sec, 1, "", self.last_ref, "")]

    def open(self, name: str, start_sec: float, count: int, detail: str, last_good: str, first_bad: str) -> Event:
        """The type is an incident from now on: a new one, or the last one once more."""
        watch = self.watches[name]
        kind = "opened"
        if watch.ended_sec is not None and 0 <= start_sec - watch.ended_sec <= self.patience.reopen_sec:
            kind, start_sec, count = "reopened", watch.start_sec, watch.count + count
        else:
            watch = replace(watch, alert_id=alert_id_of(self.host, self.device, name, start_sec))
        self.watches[name] = replace(watch, phase="active", window=(), timer_sec=0.0, start_sec=start_sec, count=count,
                                     ended_sec=None, detail=detail)  # fmt: skip
        return Event(kind, self.incident(name), last_good=last_good, first_bad=first_bad)

    def observe(self, name: str, sample: Sample) -> list[Event]:
        """Take one verdict on one type; an event when an incident opens or ends."""
        watch = self.watches[name]
        if sample.bad is None:
            self.watches[name] = replace(watch, known_sec=None)
            return []
        if watch.phase == "ok" and not sample.bad:  # nearly always
            recent = kept_recent(watch.recent, sample)
            self.watches[name] = replace(watch, known_sec=sample.at_sec, timer_sec=0.0, recent=recent)
            return []
        step_sec = sample.at_sec - watch.known_sec if watch.known_sec is not None else 0.0
        if not 0 <= step_sec <= silent_after_sec(self.steps, self.patience):
            step_sec = 0.0
        watch = replace(watch, known_sec=sample.at_sec, timer_sec=watch.timer_sec + step_sec)
        if watch.phase in ("active", "clearing"):
            return self.observe_active(name, watch, sample)
        return self.observe_ok(name, watch, sample)

    def observe_active(self, name: str, watch: Watch, sample: Sample) -> list[Event]:
        if sample.bad:
            self.watches[name] = replace(watch, phase="active", count=watch.count + 1, good_ref="")
            return []
        if watch.phase == "active":
            watch = replace(watch, phase="clearing", timer_sec=0.0, good_sec=sample.at_sec, good_ref=sample.ref)
        if watch.timer_sec < self.patience.clear_sec or watch.known_sec == watch.good_sec:
            self.watches[name] = watch
            return []
        first_good = watch.good_ref
        recent = ((sample.at_sec, sample.ref),)
        self.watches[name] = replace(watch, phase="ok", timer_sec=0.0, good_ref="", recent=recent,
                                     ended_sec=max(watch.good_sec, watch.start_sec))  # fmt: skip
        return [Event("resolved", self.incident(name), first_good=first_good)]

    def observe_ok(self, name: str, watch: Watch, sample: Sample) -> list[Event]:
        if watch.phase == "ok":
            watch = begun(watch, sample)
        window = [*watch.window, (watch.timer_sec, sample.at_sec, bool(sample.bad), sample.ref)]
        while window and not (window[0][2] and share_of_bad(window) >= self.patience.bad_share):
            _timer, at_sec, was_bad, ref = window.pop(0)
            if not was_bad:
                watch = replace(watch, recent=kept_recent(watch.recent, Sample(at_sec, False, ref)))
        if not window:
            self.watches[name] = replace(watch, phase="ok", timer_sec=0.0, window=())
            return []
        self.watches[name] = replace(watch, phase="pending", window=tuple(window))
        if not sample.bad or len(window) < 2 or watch.timer_sec - window[0][0] < self.patience.alarm_sec[name]:
            return []
        start_sec, count = window[0][1], sum(entry[2] for entry in window)
        last_good = next((ref for at_sec, ref in reversed(watch.recent) if at_sec < start_sec), "")
        return [self.open(name, start_sec, count, sample.detail, last_good, window[0][3])]


def share_of_bad(window: Sequence[tuple[float, float, bool, str]]) -> float:
    return sum(entry[2] for entry in window) / len(window)


def kept_recent(recent: tuple[tuple[float, str], ...], sample: Sample) -> tuple[tuple[float, str], ...]:
    """With `sample`, without what is too long before it; one is always kept."""
    younger = [entry for entry in recent if 0 <= sample.at_sec - entry[0] <= BACKDATE_SEC]
    return (*younger[1 - RECENT_KEPT :], (sample.at_sec, sample.ref))


def begun(watch: Watch, sample: Sample) -> Watch:
    """The first bad sample; where it knows that it began earlier, the samples since then were bad as well."""
    since_sec = sample.at_sec if sample.since_sec is None else min(sample.since_sec, sample.at_sec)
    early = [(at_sec, ref) for at_sec, ref in watch.recent if since_sec <= at_sec < sample.at_sec]
    if since_sec < sample.at_sec and (not early or early[0][0] > since_sec):
        early.insert(0, (since_sec, early[0][1] if early else sample.ref))
    window = tuple((at_sec - sample.at_sec, at_sec, True, ref) for at_sec, ref in early)
    good = tuple(entry for entry in watch.recent if entry[0] < since_sec)
    return replace(watch, timer_sec=0.0, window=window, recent=good)


# --- database ----------------------------------------------------------------------------------------------------


def filesystem_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the filesystem that holds `path`; empty where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    place, best, kind = path.resolve(), -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        if not after or len(before.split()) < 5:
            continue
        mounted = Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), before.split()[4]))
        if len(mounted.parts) >= best and (mounted == place or mounted in place.parents):
            best, kind = len(mounted.parts), after.split()[0]  # of two on the same place the later one counts
    return kind


def is_network_mount(path: Path) -> bool:
    """Whether `path` lies on another machine: no inotify there, and SQLite's locks cannot be trusted."""
    return filesystem_of(path).startswith(NETWORK_FILESYSTEMS)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, which is made itself where only that is missing."""
    try:
        folder.mkdir(exist_ok=True)
        probe = folder / f"probe.{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        return problem.errno in (errno.ENOSPC, errno.ENOENT)  # full or away now, writable later
    return True


def state_folder(folder: Path) -> Path:
    """Where what the monitor knows of a capture folder lies: in it, or, where that is no good, on the system's disk."""
    own = folder / STATE_FOLDER
    if not is_network_mount(folder) and is_writable(own):
        return own
    base = os.environ.get("STATE_DIRECTORY") or os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", str(folder.resolve())).strip("_")
    elsewhere = Path(base.partition(":")[0]).expanduser() / "capture_analyzer" / name
    elsewhere.mkdir(parents=True, exist_ok=True)
    return elsewhere


def database_of(settings: Mapping[str, Any], folder: Path) -> str:
    """`analysis.database` (an address, or the path of an SQLite file), else SQLite beside the captures."""
    place = str(settings["database"] or "")
    if not place:
        beside = folder / STATE_FOLDER / DATABASE_NAME
        is_there = beside.exists()  # also for somebody who may only read it
        return str(beside if is_there else state_folder(folder) / DATABASE_NAME)
    if "://" not in place and is_network_mount(Path(place).parent):
        raise UsageError(f"analysis.database: {place} lies on a network mount ({filesystem_of(Path(place).parent)}), "
                         "where SQLite loses data; name a local path, or a PostgreSQL address")  # fmt: skip
    return place


def database_address(place: str) -> str:
    """What SQLAlchemy wants to hear; PostgreSQL through psycopg, however the address begins."""
    if "://" not in place:
        return f"sqlite:///{Path(place).expanduser().absolute()}"
    return re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg://", place)


def incident_table() -> Table:
    """One row per incident. That there is at most one active row per host, device and type is the database's rule."""
    from sqlalchemy import JSON, CheckConstraint, Column, DateTime, Index, Integer, MetaData, String, Table, text

    is_active = text("status = 'active'")
    return Table(
        "incidents", MetaData(), Column("alert_id", String(64), primary_key=True),
        *(Column(name, String(255), nullable=False) for name in ("host_name", "device_id", "incident_type", "status")),
        Column("consecutive_count", Integer, nullable=False),
        Column("start_time", DateTime(timezone=True), nullable=False, index=True),
        Column("end_time", DateTime(timezone=True)), Column("metadata", JSON, nullable=False),
        CheckConstraint("status IN ('active', 'resolved')"),
        Index("incidents_one_active", "host_name", "device_id", "incident_type", unique=True, sqlite_where=is_active,
              postgresql_where=is_active))  # fmt: skip


def moment(at_sec: float) -> datetime:
    return datetime.fromtimestamp(at_sec, timezone.utc)


def epoch_sec(stored: datetime) -> float:
    """SQLite keeps no zone; what we stored is UTC."""
    return (stored if stored.tzinfo else stored.replace(tzinfo=timezone.utc)).timestamp()


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` over `old`, evidence file by file: acknowledgements and earlier evidence stay."""
    both = {**old, **new}
    if "evidence" in old and "evidence" in new:
        both["evidence"] = {**old["evidence"], **new["evidence"]}
    return both


class Database:
    """Incidents in SQLite or PostgreSQL. Whatever is stored twice is there once."""

    def __init__(self, place: str) -> None:
        from sqlalchemy import create_engine, make_url
        from sqlalchemy.exc import ArgumentError
        from sqlalchemy.pool import NullPool

        try:
            url = make_url(database_address(place))
        except ArgumentError as problem:
            raise UsageError(f"analysis.database: {mask(place)!r} is no database address and no path") from problem
        hide_secret(url.password)
        is_file = url.get_backend_name() == "sqlite"
        self.path = Path(url.database) if is_file and url.database else None
        self.shown = str(self.path or url.render_as_string(hide_password=True))
        patience = {"timeout": DATABASE_TIMEOUT_SEC} if is_file else {"connect_timeout": DATABASE_TIMEOUT_SEC}
        try:
            self.engine = create_engine(url, poolclass=NullPool, connect_args=patience)
        except ImportError as problem:
            raise CannotStart(f"{self.shown}: needs a package: pip install 'psycopg[binary]'") from problem
        self.table = incident_table()
        self.is_ready = False

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        if not self.is_ready:
            if self.path:
                self.path.parent.mkdir(exist_ok=True)  # only this one: a capture folder that is away stays away
            self.table.metadata.create_all(self.engine)
            self.is_ready = True
        try:
            with self.engine.begin() as connection:
                yield connection
        except BaseException:
            self.is_ready = False  # the file may have gone with its folder
            raise

    def store(self, incident: Incident) -> bool:
        """Insert or bring up to date; True for a new row. Another active row of its kind ends where this begins."""
        from sqlalchemy import insert, select, update

        table, key = self.table, self.table.c.alert_id == incident.alert_id
        row = {"host_name": incident.host_name, "device_id": incident.device_id, "status": incident.status,
               "incident_type": incident.incident_type, "consecutive_count": incident.consecutive_count,
               "start_time": moment(incident.start_sec),
               "end_time": None if incident.end_sec is None else moment(incident.end_sec)}  # fmt: skip
        with self.transaction() as connection:
            if incident.status == "active":
                self.end_others(connection, incident)
            found = connection.execute(select(table.c.metadata).where(key)).first()
            if found is None:
                connection.execute(insert(table).values(alert_id=incident.alert_id, metadata=incident.metadata, **row))
            else:
                values = {**row, "metadata": merged(found[0], incident.metadata)}
                connection.execute(update(table).where(key).values(values))
        return found is None

    def end_others(self, connection: Connection, incident: Incident) -> None:
        """What a lost state left active: its end was never seen."""
        from sqlalchemy import select, update

        columns = self.table.c
        same = (columns.host_name == incident.host_name, columns.device_id == incident.device_id,
                columns.incident_type == incident.incident_type, columns.status == "active",
                columns.alert_id != incident.alert_id)  # fmt: skip
        for row in connection.execute(select(self.table).where(*same)).mappings():
            end_sec = max(epoch_sec(row["start_time"]), incident.start_sec)
            connection.execute(update(self.table).where(columns.alert_id == row["alert_id"]).values(
                {"status": "resolved", "end_time": moment(end_sec),
                 "metadata": merged(row["metadata"], {"superseded_by": incident.alert_id})}))  # fmt: skip

    def add_metadata(self, alert_id: str, values: Mapping[str, Any]) -> bool:
        """Merge `values` into an incident's metadata; False when there is no such incident."""
        from sqlalchemy import select, update

        key = self.table.c.alert_id == alert_id
        with self.transaction() as connection:
            found = connection.execute(select(self.table.c.metadata).where(key)).first()
            if found is not None:
                connection.execute(update(self.table).where(key).values({"metadata": merged(found[0], values)}))
        return found is not None

    def read(self, since_sec: float | None = None, until_sec: float | None = None) -> list[Incident]:
        """The incidents that touch the time, in the order of their start."""
        from sqlalchemy import or_, select

        if self.path and not self.path.exists():
            return []
        columns = self.table.c
        query = select(self.table).order_by(columns.start_time)
        if since_sec is not None:
            query = query.where(or_(columns.end_time.is_(None), columns.end_time >= moment(since_sec)))
        if until_sec is not None:
            query = query.where(columns.start_time < moment(until_sec))
        with self.transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [Incident(row["alert_id"], row["host_name"], row["device_id"], row["incident_type"], row["status"],
                         row["consecutive_count"], epoch_sec(row["start_time"]),
                         None if row["end_time"] is None else epoch_sec(row["end_time"]), row["metadata"])
                for row in rows]  # fmt: skip


def read_incidents(place: str, since_sec: float | None = None, until_sec: float | None = None) -> list[Incident]:
    """The incidents of a database, for `report` and `incidents`; CannotStart when it cannot be read."""
    from sqlalchemy.exc import SQLAlchemyError

    database = Database(place)
    try:
        return database.read(since_sec, until_sec)
    except SQLAlchemyError as problem:
        raise CannotStart(f"{database.shown}: cannot be read: {first_line(problem)}") from problem


def store_scan(scan: Scan, zone: tzinfo | None, place: str) -> int:
    """Store what `video` found in one recording; 1 when the database did not take it."""
    from sqlalchemy.exc import SQLAlchemyError

    digest = hashlib.sha256()
    try:
        with scan.file.open("rb") as handle:
            while block := handle.read(HASH_BLOCK_BYTES):
                digest.update(block)
        base_sec, _basis = start_of_recording(scan.file, zone)
        new = store_video_incidents(place, scan.file, digest.hexdigest(), scan.camera, base_sec, scan.incidents)
    except (OSError, SQLAlchemyError) as problem:
        log.error("%s: incidents not stored: %s", scan.file, first_line(problem))
        return 1
    log.info("%s: %d of %d incidents are new in the database", scan.file, new, len(scan.incidents))
    return 0


def store_video_incidents(place: str, file: Path, sha256: str, device: str, base_sec: float,
                          found: Iterable[tuple[str, Interval]]) -> int:  # fmt: skip
    """Store what `video` found as (type, interval in the file); how many are new. A rescan of the same bytes adds none.

    `base_sec` is the epoch time of the file's beginning.
    """
    database, host, new = Database(place), host_name(), 0
    for incident_type, (start_sec, end_sec) in found:
        key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{sha256}/{incident_type}/{round(start_sec * 1000)}"))
        new += database.store(Incident(key, host, device, incident_type, "resolved", 1, base_sec + start_sec,
                                       base_sec + end_sec, {"file": str(file), "sha256": sha256}))  # fmt: skip
    return new


def first_line(problem: BaseException) -> str:
    """A database's complaint without the statement and its values."""
    cause = getattr(problem, "orig", None) or problem
    return mask((str(cause).splitlines() or [type(cause).__name__])[0])


# --- evidence and alerts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Letter:
    """Something that has to arrive: a row, a message, a piece of evidence. The same key replaces what waits."""

    channel: str  # database, evidence, mail, or the name of a notify.urls
    key: str
    payload: dict[str, Any]
    not_before_sec: float = 0.0
    tries: int = 0


class Outbox:
    """What has to arrive from one capture folder. Lies in its state file, so it outlasts this process.

    Used by the folder's thread and by those that deliver; a failed delivery never reaches the detection.
    """

    def __init__(self) -> None:
        self.letters: dict[tuple[str, str], Letter] = {}
        self.lock = threading.Lock()
        self.is_changed = False

    def restore(self, stored: Iterable[Mapping[str, Any]]) -> None:
        """What an earlier run could not deliver, before what there is by now."""
        with self.lock:
            letters = [Letter(**values) for values in stored]
            self.letters = {(letter.channel, letter.key): letter for letter in letters} | self.letters

    def put(self, letter: Letter) -> None:
        with self.lock:
            self.letters[letter.channel, letter.key] = letter
            self.is_changed = True

    def cancel(self, channel: str, key: str) -> bool:
        with self.lock:
            self.is_changed = True
            return self.letters.pop((channel, key), None) is not None

    def due(self, channel: str, now_sec: float) -> list[Letter]:
        """What can be tried now. Messages keep their order; of the rest, what failed before comes last, so that one
        that can never arrive holds up no other, and evidence after the row of its incident.

        A clock that was set back holds nothing up.
        """
        with self.lock:
            waiting = [letter for letter in self.letters.values() if letter.channel == channel]
        ready = [letter for letter in waiting
                 if letter.not_before_sec <= now_sec or letter.not_before_sec - now_sec > HOLD_MAX_SEC]  # fmt: skip
        if channel in ("database", "evidence"):
            ready.sort(key=lambda letter: (letter.key.startswith("evidence"), letter.tries))
        return ready

    def delivered(self, letter: Letter) -> None:
        """Forget it, unless a newer one has taken its place meanwhile."""
        with self.lock:
            if self.letters.get((letter.channel, letter.key)) is letter:
                del self.letters[letter.channel, letter.key]
                self.is_changed = True

    def failed(self, letter: Letter) -> None:
        with self.lock:
            if self.letters.get((letter.channel, letter.key)) is letter:
                self.letters[letter.channel, letter.key] = replace(letter, tries=letter.tries + 1)

    def waiting(self, channel: str | None = None) -> list[Letter]:
        with self.lock:
            return [letter for letter in self.letters.values() if channel in (None, letter.channel)]


def split_ref(ref: str) -> tuple[str, int]:
    """`NAME@MTIME_NS`: capture programs use names again, and then the picture is another one."""
    name, _, mtime_ns = ref.rpartition("@")
    return name, int(mtime_ns)


def evidence_letters(event: Event, clip: Sequence[str]) -> list[Letter]:
    """What to copy for an event, as TYPE/DEVICE/… below the evidence folder."""
    incident = event.incident
    stem = f"{moment(incident.start_sec):%Y%m%dT%H%M%SZ}_{incident.alert_id[:8]}"
    roles = {"last_good": event.last_good, "first_bad": event.first_bad, "first_good": event.first_good}
    sources = {role: [ref] for role, ref in roles.items() if ref}
    if clip and event.kind != "resolved":
        sources["clip"] = list(clip)
    letters = []
    for role, refs in sources.items():
        source = Path(split_ref(refs[0])[0])
        target = f"{incident.incident_type}/{incident.device_id}/{stem}_{role}_{source.name}"
        payload = {"alert_id": incident.alert_id, "role": role, "sources": refs, "target": target}
        letters.append(Letter("evidence", target, payload))
    return letters


def copy_evidence(folder: Path, evidence_dir: Path, payload: Mapping[str, Any]) -> bool:
    """Copy the sources, one after the other, into the target; False when none of them is there any more.

    MPEG-TS segments may simply follow each other in a file.
    """
    target, parts = evidence_dir / payload["target"], []
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the capture folder is away", str(folder))
    for ref in payload["sources"]:
        name, mtime_ns = split_ref(ref)
        source = folder / name
        try:
            if source.stat().st_mtime_ns == mtime_ns:
                parts.append(source.read_bytes())
        except FileNotFoundError:
            continue
    if not parts:
        return bool(target.exists())
    target.parent.mkdir(parents=True, exist_ok=True)
    with part_file(target) as part:
        part.write_bytes(b"".join(parts))
    return True


def local_text(at_sec: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at_sec))


def message_of(event: Event, evidence: Sequence[Letter]) -> dict[str, Any]:
    """Subject, text and identity of an alert."""
    incident = event.incident
    where = f"{incident.incident_type} on {incident.device_id}"
    lines = [f"host: {incident.host_name}", f"since: {local_text(incident.start_sec)}"]
    if event.kind == "resolved" and incident.end_sec is not None:
        subject = f"{where}: over after {incident.end_sec - incident.start_sec:.0f} s"
        lines.append(f"until: {local_text(incident.end_sec)}")
    else:
        subject = f"{where}: {'again' if event.kind == 'reopened' else 'since ' + local_text(incident.start_sec)}"
    if detail := incident.metadata.get("detail"):
        lines.append(f"detail: {detail}")
    lines += [f"evidence: {letter.payload['target']}" for letter in evidence]
    return {"subject": f"[{incident.host_name}] {subject}", "body": "\n".join([*lines, f"id: {incident.alert_id}"]),
            "message_id": f"{event.kind}.{incident.consecutive_count}.{incident.alert_id}"}  # fmt: skip


def post(event: Event, outbox: Outbox, channels: Sequence[str], evidence: Sequence[Letter], hold_sec: float) -> None:
    """Put into the outbox what an event makes necessary.

    The end of an incident is told only when it can no longer be reopened, so that one that comes and goes is told once.
    """
    incident = event.incident
    outbox.put(Letter("database", f"row {incident.alert_id}", asdict(incident)))
    for letter in evidence:
        outbox.put(letter)
    end_key, message = f"resolved {incident.alert_id}", message_of(event, evidence)
    for channel in channels:
        if event.kind == "resolved":
            outbox.put(Letter(channel, end_key, message, time.time() + hold_sec))
        elif not outbox.cancel(channel, end_key):
            outbox.put(Letter(channel, f"{event.kind} {incident.alert_id}", message))


# --- monitor -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What all watched folders have in common."""

    host: str
    rules: Rules
    patience: Patience
    settings: Mapping[str, Any]  # section analysis
    notify: Mapping[str, Any]
    channels: tuple[str, ...]
    ears: threading.BoundedSemaphore  # so many FFmpeg at once, over all folders

    @property
    def hold_sec(self) -> float:
        """After this an incident that has ended can no longer be reopened."""
        return self.patience.reopen_sec + max(self.patience.alarm_sec.values())


def patience_of(settings: Mapping[str, Any]) -> Patience:
    """The machine's times; UsageError for what cannot be meant."""
    names = [f"{name}_alarm_sec" for name in TYPES] + ["clear_sec", "reopen_sec", "no_data_alarm_sec"]
    if wrong := [name for name in names if settings[name] < 0]:
        raise UsageError(f"analysis.{wrong[0]}: {settings[wrong[0]]} is less than 0")
    if not 50 < settings["alarm_percent"] <= 100:
        raise UsageError(f"analysis.alarm_percent: {settings['alarm_percent']} is not from 51 to 100")
    if settings["no_data_alarm_sec"] < 1:
        raise UsageError("analysis.no_data_alarm_sec: must be at least 1")
    return Patience({name: settings[f"{name}_alarm_sec"] for name in TYPES}, settings["alarm_percent"] / 100,
                    settings["clear_sec"], settings["reopen_sec"], settings["no_data_alarm_sec"])  # fmt: skip


def host_name() -> str:
    return os.environ.get("HOST_NAME") or os.environ.get("USER") or socket.gethostname()


def device_names(folders: Sequence[Path]) -> list[str]:
    """What each capture folder's device is called: `capture1` for `/srv/capture1/captures`; more where that repeats."""
    parts = [[part for part in folder.parts if part not in ("/", "captures")] or ["captures"] for folder in folders]
    for used in range(1, max(map(len, parts), default=1) + 1):
        names = [re.sub(r"[^A-Za-z0-9._-]", "_", "_".join(part[-used:])) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def moment_of_still(path: Path, mtime_sec: float, now_sec: float) -> float:
    """The time in the name; in the hour that DST repeats, the one that is nearer to when the file was written."""
    named_sec = time_of_still(path, now_sec)
    again_sec = datetime.fromtimestamp(named_sec).replace(fold=1).timestamp()
    return min(named_sec, again_sec, key=lambda at_sec: abs(at_sec - mtime_sec))


class Seen:
    """Which files were dealt with, by name and mtime: names are used again, and clocks jump.

    Over a restart: everything up to the mtime of the last one, and by name what has a later one.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.cursor_ns = int(state.get("cursor_ns", -1))
        self.names: dict[str, int] = dict(state.get("ahead", {}))
        self.before_ns = self.cursor_ns  # of an earlier process

    def has(self, name: str, mtime_ns: int) -> bool:
        return self.names.get(name) == mtime_ns or (mtime_ns < self.before_ns and name not in self.names)

    def add(self, name: str, mtime_ns: int) -> None:
        self.names[name] = mtime_ns
        self.cursor_ns = mtime_ns

    def keep(self, listed: Mapping[str, int]) -> None:
        """Forget what is no longer there; of an earlier process, know by name from now on what it had seen."""
        self.names = {name: mtime_ns for name, mtime_ns in listed.items() if self.has(name, mtime_ns)}
        self.before_ns = -1

    def state(self) -> dict[str, Any]:
        ahead = {name: mtime_ns for name, mtime_ns in self.names.items() if mtime_ns >= self.cursor_ns}
        return {"cursor_ns": self.cursor_ns, "ahead": ahead}


def is_finished(segment: Path, mtime_ns: int, playlists: Sequence[tuple[str, int]], newest_ns: int) -> bool:
    """Whether FFmpeg is done with a segment: a later playlist names it, a later one exists, or it lies still."""
    if any(segment.name in text and written_ns >= mtime_ns for text, written_ns in playlists):
        return True
    if playlists:
        return mtime_ns < newest_ns and time.time_ns() - mtime_ns > SEGMENT_LIES_STILL_SEC * 1e9
    return mtime_ns < newest_ns or time.time_ns() - mtime_ns > SEGMENT_LIES_STILL_SEC * 1e9


@dataclass(frozen=True)
class Heard:
    """What was measured on one segment: its levels, or why there are none."""

    path: Path
    mtime_ns: int
    levels: list[float] | None
    reason: str = ""
    verdict: bool | None = None  # where there are no levels


def judge_sound(levels: Sequence[float], rules: Rules) -> tuple[bool | None, float]:
    """Whether sound is lost at the end of `levels`, and for how long; None while they are too few to tell."""
    lasted_sec = 0.0
    for limit_db, least_sec in ((rules.quiet_db, rules.quiet_sec), (rules.silence_db, rules.silence_sec)):
        run = next((place for place, level in enumerate(reversed(levels)) if level >= limit_db), len(levels))
        if run * SOUND_WINDOW_SEC >= least_sec:
            lasted_sec = max(lasted_sec, run * SOUND_WINDOW_SEC)
    if lasted_sec:
        return True, lasted_sec
    is_quiet = all(level < rules.quiet_db for level in levels)
    return (None if is_quiet else False), 0.0


class Waker:
    """Takes watchdog's events: names of files that may be new."""

    def __init__(self) -> None:
        self.names: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.wake = threading.Event()

    def dispatch(self, event: Any) -> None:
        if event.event_type in ("closed", "moved", "created"):
            path = os.fsdecode(event.dest_path if event.event_type == "moved" else event.src_path)
            self.names.put(os.path.basename(path))  # noqa: PTH119  Path() of every event would cost more
            self.wake.set()

    def take(self) -> set[str]:
        """The names that have come."""
        names: set[str] = set()
        self.wake.clear()
        with suppress(queue.Empty):
            while True:
                names.add(self.names.get_nowait())
        return names


class CaptureFolder:
    """One capture folder: whatever is new in it goes through the machine, once and in order."""

    def __init__(self, folder: Path, device: str, setup: Setup, stopping: threading.Event) -> None:
        self.folder, self.device, self.setup, self.stopping = folder, device, setup, stopping
        self.held = ExitStack()
        self.own = folder / STATE_FOLDER
        self.state_file = state_folder(folder) / "monitor.json"
        self.database = database_of(setup.settings, folder)
        configured = setup.settings["evidence_dir"]
        self.evidence_dir = Path(str(configured)).expanduser() if configured else self.own / "evidence"
        self.outbox = Outbox()
        self.is_missing = not folder.exists()
        self.restore()
        self.reader = StillReader(setup.rules, mask_of(setup.settings, device))
        self.levels: list[float] = []
        self.sound_sec = -math.inf
        self.heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self.listened: dict[str, int] = {}
        self.listed_segments: dict[str, int] | None = None
        self.ffmpeg = self.deaf = ""
        self.waker = Waker()
        self.beat = self.arrived_mono = time.monotonic()
        self.is_live = False
        self.first_sec: float | None = None
        self.is_urgent = True
        self.again_mono = self.saved_mono = self.noted_mono = self.scan_mono = self.rows_mono = -math.inf
        self.scan_took_sec = 0.0
        self.is_polled = True
        self.sound_folder: Path | None = None
        self.trouble = ""
        self.opened = 0

    def restore(self) -> None:
        """Go on where the last run left off."""
        state = read_json(self.state_file)
        if state is None and self.state_file.exists():
            log.warning("%s: is damaged; begun anew", self.state_file)
        state = state if state is not None and state.get("schema") == STATE_SCHEMA else {}
        self.machine = IncidentMachine(self.setup.host, self.device, self.setup.patience, state.get("machine"))
        self.stills, self.segments = Seen(state.get("stills")), Seen(state.get("segments"))
        self.outbox.restore(state.get("outbox", ()))

    def take_lock(self) -> None:
        """Busy when another run has it. Taken anew when the folder is another one than before."""
        self.held.close()
        lock = (self.own if is_writable(self.own) else self.state_file.parent) / "monitor.lock"
        try:
            self.held.enter_context(run_lock(lock, str(self.folder)))
        except OSError as problem:
            raise CannotStart(f"{lock}: cannot be made: {problem.strerror}") from problem

    # --- pictures

    def scan(self) -> list[tuple[int, str]]:
        """What is new in the folder, in the order of writing."""
        begun, listed, has_segments = time.monotonic(), {}, False
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if STILL_NAME.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        listed[entry.name] = entry.stat().st_mtime_ns
                has_segments = has_segments or (entry.name.startswith("segment_") and entry.name.endswith(".ts"))
        new = sorted((mtime_ns, name) for name, mtime_ns in listed.items() if not self.stills.has(name, mtime_ns))
        if not self.is_live:
            last = split_ref(self.machine.last_ref)[0] if self.machine.last_ref else ""
            if new and last not in listed:  # what came after it may have been removed: nothing is known of that time
                self.machine.pause()
        self.stills.keep(listed)
        self.sound_folder = self.folder if has_segments else self.folder.parent
        self.scan_mono = time.monotonic()
        self.scan_took_sec = self.scan_mono - begun
        return new

    def find_new(self) -> list[tuple[int, str]]:
        names = self.waker.take()
        every_sec = POLL_SEC if self.is_polled else max(RESCAN_SEC, RESCAN_SHARE * self.scan_took_sec)
        if time.monotonic() - self.scan_mono >= every_sec:
            return self.scan()
        new = []
        for name in names:
            with suppress(FileNotFoundError):
                if STILL_NAME.fullmatch(name):
                    mtime_ns = (self.folder / name).stat().st_mtime_ns
                    if not self.stills.has(name, mtime_ns):
                        new.append((mtime_ns, name))
        return sorted(new)

    def take_still(self, name: str, mtime_ns: int) -> bool:
        """Look at one still; False when it is still being written and has to wait, and all later ones with it."""
        path, now_sec = self.folder / name, time.time()
        at_sec = moment_of_still(path, mtime_ns / 1e9, now_sec)
        still = self.reader.read(path, at_sec)
        if still.quality != "ok":
            if not path.exists():
                return True
            if -SETTLE_SEC < now_sec - mtime_ns / 1e9 < SETTLE_SEC:
                return False
        self.note_clock(at_sec)
        ref = f"{name}@{mtime_ns}"
        if still.reason:
            log.debug("%s: %s", path, still.reason)
        events = self.machine.arrived(at_sec, ref)
        events += self.machine.observe("blackscreen", Sample(at_sec, still.blackscreen, ref))
        frozen = self.settled_freeze(still)
        events += self.machine.observe("freeze", Sample(at_sec, frozen, ref, still.freeze_since_sec))
        self.stills.add(name, mtime_ns)
        self.tell(events)
        return True

    def settled_freeze(self, still: Still) -> bool | None:
        """After a start nothing is known until the picture changes, or has stood still for long enough."""
        if still.picture is None or still.freeze:
            return still.freeze
        if self.first_sec is None:
            self.first_sec = still.picture.since_sec
        return None if still.picture.since_sec == self.first_sec else still.freeze

    def note_clock(self, at_sec: float) -> None:
        """Pause the machine where the stills' time went on, but ours did not: the clock was set, or the host slept."""
        now_mono, last_sec = time.monotonic(), self.machine.last_sec
        if self.is_live and last_sec is not None:
            jump_sec = (at_sec - last_sec) - (now_mono - self.arrived_mono)
            if jump_sec > CLOCK_JUMP_SEC or at_sec < last_sec - CLOCK_JUMP_SEC:
                log.warning("%s: the time of the stills jumped by %+.0f s", self.device, jump_sec)
                self.machine.pause()
        self.arrived_mono = now_mono

    # --- sound

    def listen(self) -> None:
        """Measure the segments that are finished and new. In a thread of its own: pictures never wait for sound."""
        place = self.sound_folder
        if place is None:
            return
        listed: dict[str, int] = {}
        playlists: list[tuple[str, int]] = []
        with os.scandir(place) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.name.startswith("segment_") and entry.name.endswith(".ts"):
                        listed[entry.name] = entry.stat().st_mtime_ns
                    elif entry.name.endswith(".m3u8"):
                        playlists.append((Path(entry.path).read_text("utf-8", "replace"), entry.stat().st_mtime_ns))
        newest_ns = max(listed.values(), default=0)
        for mtime_ns, name in sorted((mtime_ns, name) for name, mtime_ns in listed.items()):
            path = place / name
            if self.stopping.is_set():
                return
            if self.segments.has(name, mtime_ns) or self.listened.get(name) == mtime_ns:
                continue
            if is_finished(path, mtime_ns, playlists, newest_ns):
                self.heard.put(self.hear(path, mtime_ns))
                self.listened[name] = mtime_ns
                self.waker.wake.set()
        self.listened = {name: mtime_ns for name, mtime_ns in self.listened.items() if name in listed}
        self.listed_segments = listed

    def hear(self, path: Path, mtime_ns: int) -> Heard:
        self.ffmpeg = self.ffmpeg or find_ffmpeg("sound")
        try:
            with self.setup.ears:
                return Heard(path, mtime_ns, measure_sound(self.ffmpeg, path.read_bytes()))
        except NoStream:
            return Heard(path, mtime_ns, None, "there is no audio stream", self.setup.rules.audio_required or None)
        except (OSError, Unreadable, CannotStart) as problem:
            return Heard(path, mtime_ns, None, str(problem))

    def take_sound(self) -> None:
        """Judge what was measured meanwhile."""
        with suppress(queue.Empty):
            while True:
                self.take_segment(self.heard.get_nowait())
        if self.listed_segments is not None:
            self.segments.keep(self.listed_segments)
            self.listed_segments = None

    def take_segment(self, heard: Heard) -> None:
        """One sample per segment, at its end; runs of silence may have begun in the segments before."""
        at_sec, rules, bad, lasted_sec = heard.mtime_ns / 1e9, self.setup.rules, heard.verdict, 0.0
        if heard.levels is None or not 0 <= at_sec - self.sound_sec <= SOUND_GAP_SEC:
            self.levels = []
        if heard.levels is not None:
            kept = math.ceil(max(rules.silence_sec, rules.quiet_sec, SOUND_GAP_SEC) / SOUND_WINDOW_SEC)
            self.levels = [*self.levels, *heard.levels][-kept:]
            bad, lasted_sec = judge_sound(self.levels, rules)
        if heard.reason and heard.reason != self.deaf:
            log.warning("%s: nothing is known of the sound: %s: %s", self.device, heard.path, heard.reason)
        self.sound_sec, self.deaf = at_sec, heard.reason
        log.debug("%s: sound is lost: %s", heard.path, bad)
        ref = f"{os.path.relpath(heard.path, self.folder)}@{heard.mtime_ns}"
        self.segments.add(heard.path.name, heard.mtime_ns)
        sample = Sample(at_sec, bad, ref, at_sec - lasted_sec, heard.reason)
        self.tell(self.machine.observe("audio_loss", sample))

    def clip(self, start_sec: float) -> list[str]:
        """The segments around the start of an incident, as far as they still exist."""
        place, found = self.sound_folder, []
        if place is None:
            return []
        with suppress(OSError):
            for path in place.glob(SEGMENT_PATTERN):
                mtime_ns = path.stat().st_mtime_ns
                if mtime_ns / 1e9 >= start_sec - CLIP_BEFORE_SEC and self.segments.has(path.name, mtime_ns):
                    found.append((mtime_ns, f"{os.path.relpath(path, self.folder)}@{mtime_ns}"))
        return [ref for _mtime_ns, ref in sorted(found)[:CLIP_SEGMENTS]]

    # --- what comes of it

    def tell(self, events: Sequence[Event]) -> None:
        """Log the events and put what they make necessary into the outbox."""
        for event in events:
            incident = event.incident
            level = logging.INFO if event.kind == "resolved" else logging.WARNING
            log.log(level, "%s: %s %s, since %s", self.device, incident.incident_type, event.kind,
                    local_text(incident.start_sec))  # fmt: skip
            letters = evidence_letters(event, self.clip(incident.start_sec) if event.kind != "resolved" else ())
            post(event, self.outbox, self.setup.channels, letters, self.setup.hold_sec)
            self.opened += event.kind == "opened"
            self.is_urgent = True

    def look_for_silence(self) -> None:
        """No still has come for too long; by our own clock, so that a jump of the system's is no outage."""
        if self.machine.last_sec is None:
            self.machine.last_sec, self.arrived_mono = time.time(), time.monotonic()
        elif not self.is_live:  # since when nothing has come, only the clock can tell
            self.arrived_mono = time.monotonic() - max(0.0, time.time() - self.machine.last_sec)
        self.tell(self.machine.silence(self.machine.last_sec + time.monotonic() - self.arrived_mono))

    def round(self) -> None:
        """Everything once: new stills, sound, silence, state."""
        try:
            new = self.find_new()
            if self.trouble:
                log.info("%s: is there again", self.folder)
            self.trouble = ""
        except OSError as problem:
            new = []
            self.scan_mono = -math.inf
            if not self.trouble:
                self.trouble = problem.strerror or "cannot be read"
                log.warning("%s: %s; waiting for it", self.folder, self.trouble)
        for mtime_ns, name in new:
            self.beat = time.monotonic()
            if self.stopping.is_set():
                break
            if not self.take_still(name, mtime_ns):
                self.scan_mono = -math.inf  # look again soon
                break
            self.save_if_due()
        else:
            self.take_sound()
            self.look_for_silence()
            self.is_live = self.is_live or not self.trouble
        self.save_if_due()

    def save_if_due(self) -> None:
        """State at once when something happened, else every few seconds; then what others read."""
        now_mono = time.monotonic()
        if now_mono - self.rows_mono >= ROWS_EVERY_SEC:
            self.rows_mono = now_mono
            for incident in self.machine.active():
                self.outbox.put(Letter("database", f"row {incident.alert_id}", asdict(incident)))
        is_due = self.is_urgent or self.outbox.is_changed or now_mono - self.saved_mono >= SAVE_EVERY_SEC
        if is_due and now_mono >= self.again_mono:
            is_told, self.is_urgent, self.saved_mono = self.is_urgent, False, now_mono
            try:
                self.save()
                if is_told or self.machine.active():
                    write_json(self.folder / "incidents.json", self.for_others())
            except OSError as problem:  # full or away: all of it stays in memory, and is delivered from there
                log.debug("%s: state not written: %s", self.folder, problem)
                self.again_mono = now_mono + SAVE_AGAIN_SEC
        if now_mono - self.noted_mono >= PROGRESS_EVERY_SEC:
            self.noted_mono = now_mono
            try:
                write_json(self.own / "progress.json", self.progress())
            except OSError as problem:
                log.debug("%s: progress not written: %s", self.folder, problem)

    def save(self) -> None:
        self.outbox.is_changed = False
        state = {"schema": STATE_SCHEMA, "machine": self.machine.state(), "stills": self.stills.state(),
                 "segments": self.segments.state(),
                 "outbox": [asdict(letter) for letter in self.outbox.waiting()]}  # fmt: skip
        try:
            self.state_file.parent.mkdir(parents=False, exist_ok=True)
            write_json(self.state_file, state)
        except OSError:
            self.outbox.is_changed = True
            raise

    def for_others(self) -> dict[str, Any]:
        """`incidents.json`, with the older names."""
        now_text = moment(time.time()).isoformat(timespec="milliseconds")
        return {"active_incidents": {
            incident.incident_type: {"alert_id": incident.alert_id, "consecutive_count": incident.consecutive_count,
                                     "start_time": moment(incident.start_sec).isoformat(timespec="milliseconds"),
                                     "last_updated": now_text} for incident in self.machine.active()}}  # fmt: skip

    def progress(self) -> dict[str, Any]:
        """For `clean`: up to which mtime everything was looked at, and which files are needed longer."""
        waiting = {ref for letter in self.outbox.waiting("evidence") for ref in letter.payload["sources"]}
        names = {Path(split_ref(ref)[0]).name for ref in self.machine.refs() | waiting}
        until_sec = max(self.stills.cursor_ns, 0) / 1e9
        return {"schema": 1, "analysed_until_sec": until_sec, "awaiting": sorted(names)}


# --- what has to arrive


def deliver(place: CaptureFolder, letter: Letter) -> None:
    """Take one letter where it belongs; raises when that failed."""
    if letter.channel == "database":
        payload = letter.payload
        database = Database(place.database)
        if "status" in payload:
            database.store(Incident(**payload))
        elif not database.add_metadata(payload["alert_id"], payload["metadata"]):
            raise CannotStart(f"{database.shown}: incident {payload['alert_id']} is not there yet")
    elif letter.channel == "evidence":
        payload = letter.payload
        if copy_evidence(place.folder, place.evidence_dir, payload):
            key = f"{EVIDENCE_PREFIX}/{payload['target']}"  # as nas_sync.py upload names it
            metadata = {"evidence": {payload["role"]: key}, "evidence_dir": str(place.evidence_dir)}
            place.outbox.put(Letter("database", f"evidence {payload['target']}",
                                    {"alert_id": payload["alert_id"], "metadata": metadata}))  # fmt: skip
        else:
            log.warning("%s: evidence lost, the capture has been removed: %s", place.device, payload["target"])
    else:
        send(place.setup.notify, letter.channel, **letter.payload)


class Courier:
    """Delivers the letters of one channel from all folders. A channel that is down holds up nothing but itself."""

    def __init__(self, channel: str, places: Sequence[CaptureFolder], stopping: threading.Event) -> None:
        self.channel, self.places, self.stopping = channel, places, stopping
        self.failures = dict.fromkeys(places, 0)
        self.again_mono = dict.fromkeys(places, 0.0)

    def work(self) -> None:
        while not self.stopping.wait(DELIVER_EVERY_SEC):
            for place in self.places:
                if time.monotonic() >= self.again_mono[place] and not place.is_urgent:  # the state is saved first
                    self.deliver_due(place)

    def deliver_due(self, place: CaptureFolder) -> bool:
        """False at the first failure: the rest would most likely fail too."""
        for letter in place.outbox.due(self.channel, time.time()):
            if self.stopping.is_set():
                break
            try:
                deliver(place, letter)
            except Exception as problem:  # noqa: BLE001  drivers and servers fail in any way; the letter stays
                self.note_failure(place, letter, problem)
                return False
            place.outbox.delivered(letter)
            place.waker.wake.set()
            if self.failures[place]:
                log.info("%s: %s works again", place.device, self.channel)
            self.failures[place] = 0
        return True

    def note_failure(self, place: CaptureFolder, letter: Letter, problem: Exception) -> None:
        place.outbox.failed(letter)
        self.failures[place] += 1
        wait_sec = min(RETRY_MAX_SEC, RETRY_FIRST_SEC * 2 ** (self.failures[place] - 1))
        self.again_mono[place] = time.monotonic() + wait_sec
        level = logging.WARNING if self.failures[place] == 1 else logging.DEBUG
        log.log(level, "%s: %s does not take %s: %s; %d wait, tried again and again", place.device, self.channel,
                letter.key, first_line(problem), len(place.outbox.waiting(self.channel)))  # fmt: skip


# --- the service


class FolderWatch:
    """The loop of one folder, in a thread of its own: a folder that hangs holds up no other."""

    def __init__(self, place: CaptureFolder, observer: Any) -> None:
        self.place, self.observer = place, observer
        self.identity = None if place.is_missing else self.identify()
        self.is_attached = False
        self.watch: Any = None

    def identify(self) -> tuple[int, int] | None:
        try:
            found = self.place.folder.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def attach(self) -> None:
        """Have inotify tell of new files; after the folder came back, anew. The lock is in the folder, so it too."""
        from watchdog.events import FileClosedEvent, FileCreatedEvent, FileMovedEvent

        identity = self.identify()
        if identity == self.identity and self.is_attached:
            return
        if self.watch is not None:
            with suppress(Exception):
                self.observer.unschedule(self.watch)
        self.watch, self.place.is_polled, self.is_attached = None, True, identity is not None
        is_back, self.identity = identity != self.identity, identity or self.identity
        if identity is None:
            self.place.scan_mono = -math.inf  # which says so
            return
        if is_back or self.place.is_missing:
            self.is_attached = False
            self.place.take_lock()
            self.is_attached = True
        if self.place.is_missing:
            self.place.is_missing = False
            self.place.restore()
        self.place.scan_mono = -math.inf
        if is_network_mount(self.place.folder):
            log.info("%s: a network mount, looked at every %g s", self.place.folder, POLL_SEC)
            return
        try:
            told = [FileClosedEvent, FileCreatedEvent, FileMovedEvent]  # not what we read ourselves
            self.watch = self.observer.schedule(self.place.waker, str(self.place.folder), event_filter=told)
            self.place.is_polled = False
        except OSError as problem:
            log.warning("%s: inotify: %s; looked at every %g s", self.place.folder, problem.strerror, POLL_SEC)

    def work(self) -> None:
        place = self.place
        while not place.stopping.is_set():
            try:
                self.attach()
                place.round()
            except Busy as problem:
                log.warning("%s; this folder is left to it", problem)
                return
            except CannotStart as problem:
                log.warning("%s; tried again", problem)
                place.stopping.wait(KEPT_AWAY_SEC)
            except Exception:
                log.exception("%s: this is a bug in the program, going on", place.folder)
                place.stopping.wait(KEPT_AWAY_SEC)
            place.beat = time.monotonic()
            place.waker.wake.wait(TICK_SEC)
        place.is_urgent = True
        place.save_if_due()

    def listen(self) -> None:
        """The second thread of the folder."""
        while not self.place.stopping.wait(SOUND_EVERY_SEC):
            try:
                self.place.listen()
            except OSError as problem:  # away; the first thread says so
                log.debug("%s: %s", self.place.folder, problem)
            except Exception:
                log.exception("%s: this is a bug in the program, going on", self.place.folder)
                self.place.stopping.wait(KEPT_AWAY_SEC)


def watched_folders(given: Sequence[Path], settings: Mapping[str, Any]) -> list[Path]:
    """The folders of the call, else those that match `analysis.capture_dirs`; CannotStart when there is none."""
    if given:
        found = list(dict.fromkeys(Path(os.path.abspath(folder)) for folder in given))  # noqa: PTH100
    else:
        patterns = [str(Path(str(pattern)).expanduser()) for pattern in settings["capture_dirs"]]
        found = sorted({Path(name) for pattern in patterns for name in glob.glob(pattern)})  # noqa: PTH207
        if not found:
            raise CannotStart(f"no folder matches analysis.capture_dirs ({', '.join(patterns) or 'empty'}); name one")
    if files := [folder for folder in found if folder.exists() and not folder.is_dir()]:
        raise UsageError(f"{files[0]}: is no folder")
    if not any(folder.is_dir() for folder in found):
        raise CannotStart(f"{found[0]}: there is no such folder")
    return found


def make_setup(config: Mapping[str, Any]) -> Setup:
    settings = config["analysis"]
    return Setup(host_name(), rules_of(settings), patience_of(settings), settings, config["notify"],
                 tuple(notify_channels(config["notify"])), threading.BoundedSemaphore(os.cpu_count() or 1))  # fmt: skip


@contextmanager
def taken(folders: Sequence[Path], setup: Setup, stopping: threading.Event) -> Iterator[list[CaptureFolder]]:
    """Those folders that nobody else watches, locked. With none left, Busy."""
    busy = None
    with ExitStack() as held:
        places = []
        for folder, device in zip(folders, device_names(folders), strict=True):
            place = CaptureFolder(folder, device, setup, stopping)
            held.callback(place.held.close)
            try:
                if not place.is_missing:
                    place.take_lock()
                    place.restore()  # what the one before has written last
                places.append(place)
            except Busy as problem:
                busy = problem
                if len(folders) > 1:
                    log.warning("%s", problem)
        if not places and busy:
            raise busy
        yield places


def monitor_folders(folders: Sequence[Path], config: Mapping[str, Any], stopping: threading.Event) -> int:
    """Watch capture folders until `stopping` is set; for `monitor`, and for `capture --monitor`."""
    from watchdog.observers import Observer

    logging.getLogger("watchdog").setLevel(logging.INFO)  # it logs each event
    setup = make_setup(config)
    with taken(folders, setup, stopping) as places:
        observer = Observer()
        observer.daemon = True
        observer.start()
        watches = [FolderWatch(place, observer) for place in places]
        works = [watch.work for watch in watches] + [watch.listen for watch in watches]
        works += [Courier(channel, places, stopping).work for channel in ("database", "evidence", *setup.channels)]
        threads = [threading.Thread(target=work, daemon=True, name=f"monitor {number}")
                   for number, work in enumerate(works)]  # fmt: skip
        for thread in threads:
            thread.start()
        log.info("watching %s", ", ".join(f"{place.device} ({place.folder})" for place in places))
        tell_systemd("READY=1")
        while not stopping.wait(WATCHDOG_EVERY_SEC):
            if not any(thread.is_alive() for thread in threads[: len(places)]):
                raise Busy("every folder is watched by another run")
            if all(time.monotonic() - place.beat < WATCHDOG_QUIET_SEC for place in places):
                tell_systemd("WATCHDOG=1")
        tell_systemd("STOPPING=1")
        deadline = time.monotonic() + STOP_WITHIN_SEC
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        observer.stop()
    return Status.DONE


def monitor_once(folders: Sequence[Path], config: Mapping[str, Any], stopping: threading.Event) -> int:
    """Look at what is new, deliver what is due, end: for cron. What could not be delivered waits for the next run."""
    setup, failed = make_setup(config), False
    with taken(folders, setup, stopping) as places:
        for place in places:
            deadline = time.monotonic() + 2 * SETTLE_SEC
            while not place.is_live and not stopping.is_set() and time.monotonic() < deadline:
                place.round()
                if not place.is_live:
                    time.sleep(TICK_SEC)
            with suppress(OSError):
                place.listen()
            place.take_sound()
        for channel in ("evidence", "database", *setup.channels):  # the row of an incident names its evidence
            courier = Courier(channel, places, stopping)
            for place in places:
                failed = not courier.deliver_due(place) or failed
        for place in places:
            place.is_urgent, place.noted_mono = True, -math.inf
            place.save_if_due()
            failed = failed or bool(place.trouble)
    opened, active = sum(place.opened for place in places), sum(len(place.machine.active()) for place in places)
    log.info("%d incident%s opened, %d active", opened, "" if opened == 1 else "s", active)
    return Status.PARTIAL if failed else Status.DONE


def tell_systemd(message: str) -> None:
    """sd_notify: one datagram to the socket that systemd names, nothing without it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        try:
            notifier.connect("\0" + address[1:] if address.startswith("@") else address)
            notifier.sendall(message.encode())
        except OSError as problem:
            log.debug("systemd was not told %s: %s", message, problem)


def monitor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", nargs="*", type=Path,
                        help="capture folders (default: analysis.capture_dirs)")  # fmt: skip
    parser.add_argument("--once", action="store_true", help="look at what is new, then end (for cron)")


def monitor_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """SIGTERM and SIGHUP are the ordinary end of a service, SIGINT is 130."""
    signals: list[int] = []
    stopping = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        stopping.set()

    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(one) is not signal.SIG_IGN:  # nohup
            signal.signal(one, stop)
    folders = watched_folders(arguments.folder, config["analysis"])
    status = (monitor_once if arguments.once else monitor_folders)(folders, config, stopping)
    return Status.SIGINT if signal.SIGINT in signals else status


# --- incidents on the command line


def incidents_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "show", "ack", "export"),
                        help="list, show or acknowledge incidents, or export them all as CSV")  # fmt: skip
    parser.add_argument("alert_id", metavar="ID", nargs="*", help="show, ack: which; the beginning of the id will do")
    parser.add_argument("--since", metavar="TIME", help="from when on (default: the first)")
    parser.add_argument("--until", metavar="TIME", help="until when (default: now)")
    parser.add_argument("--json", action="store_true", default=None, help="JSON Lines, the last one a summary")


def parse_moment(text: str | None, flag: str) -> float | None:
    """Epoch seconds, ISO 8601 or words such as "2 hours ago"; without a zone in the host's."""
    if text is None:
        return None
    if re.fullmatch(r"\d{9,11}(\.\d+)?", text):
        return float(text)
    from dateutil.parser import isoparse

    try:
        found: datetime | None = isoparse(text)
    except ValueError:
        import dateparser

        found = dateparser.parse(text, settings={"PREFER_DATES_FROM": "past"})
    if found is None:
        raise UsageError(f"{flag}: {text!r} is no time; say 2026-01-31T12:00, epoch seconds or '2 hours ago'")
    return found.timestamp()


def databases(config: Mapping[str, Any]) -> list[str]:
    """The configured one, else those beside the captures."""
    settings = config["analysis"]
    folders = [] if settings["database"] else watched_folders([], settings)
    return list(dict.fromkeys(database_of(settings, folder) for folder in folders or [Path()]))


def row_of(incident: Incident) -> dict[str, Any]:
    """As the table has it, with times that can be read."""
    values = asdict(incident)
    values["start_time"] = moment(values.pop("start_sec")).isoformat()
    end_sec = values.pop("end_sec")
    values["end_time"] = None if end_sec is None else moment(end_sec).isoformat()
    values["metadata"] = values.pop("metadata")
    return values


def chosen(found: Sequence[tuple[str, Incident]], wanted: Sequence[str]) -> list[tuple[str, Incident]]:
    """Those that `wanted` names by id or by its beginning; UsageError for one that is not there, or not clear."""
    result = []
    for text in wanted:
        matching = [pair for pair in found if pair[1].alert_id.startswith(text)]
        if len(matching) != 1:
            raise UsageError(f"{text}: {'no' if not matching else 'more than one'} incident has this id")
        result += matching
    return result


def incidents_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    since_sec, until_sec = parse_moment(arguments.since, "--since"), parse_moment(arguments.until, "--until")
    found = [(place, incident) for place in databases(config)
             for incident in read_incidents(place, since_sec, until_sec)]  # fmt: skip
    found.sort(key=lambda pair: pair[1].start_sec)
    if arguments.action in ("show", "ack"):
        if not arguments.alert_id:
            raise UsageError(f"incidents {arguments.action}: name at least one id")
        found = chosen(found, arguments.alert_id)
    if arguments.action == "ack":
        values = {"acknowledged_at": moment(time.time()).isoformat(timespec="seconds"), "acknowledged_by": host_name()}
        for place, incident in found:
            acknowledge(place, incident, values)
        return Status.DONE
    show_incidents([incident for _place, incident in found], arguments)
    return Status.DONE


def acknowledge(place: str, incident: Incident, values: Mapping[str, Any]) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    database = Database(place)
    try:
        database.add_metadata(incident.alert_id, values)
    except SQLAlchemyError as problem:
        raise CannotStart(f"{database.shown}: cannot be written: {first_line(problem)}") from problem
    log.info("%s acknowledged", incident.alert_id)


def show_incidents(incidents: Sequence[Incident], arguments: argparse.Namespace) -> None:
    """To stdout: a table, all there is about each, CSV, or JSON Lines."""
    rows = [row_of(incident) for incident in incidents]
    if arguments.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        active = sum(incident.status == "active" for incident in incidents)
        print(json.dumps({"summary": {"incidents": len(rows), "active": active}}))
    elif arguments.action == "export":
        writer = csv.DictWriter(sys.stdout, INCIDENT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "metadata": json.dumps(row["metadata"], ensure_ascii=False)} for row in rows)
    elif arguments.action == "show":
        print("\n".join(json.dumps(row, indent=1, ensure_ascii=False) for row in rows))
    else:
        for incident in incidents:
            end = "active" if incident.end_sec is None else f"{incident.end_sec - incident.start_sec:.0f} s"
            seen = "acknowledged" if "acknowledged_at" in incident.metadata else ""
            print(f"{incident.alert_id[:8]}  {local_text(incident.start_sec)}  {end:>8}  {incident.incident_type:<11}  "
                  f"{incident.device_id}  {seen}".rstrip())  # fmt: skip


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
    "monitor": Command("watch capture folders: incidents, evidence, alerts", monitor_flags, monitor_command),
    "incidents": Command("show and acknowledge what monitor found", incidents_flags, incidents_command),
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
    sections = ("analysis", "capture", "notify", "storage", "recording", "rhombus", "cameras")
    config = load_config(arguments.config, sections, Path(__file__).resolve().parent)
    return COMMANDS[arguments.command].act(arguments, config)


if __name__ == "__main__":
    sys.exit(run(main))
