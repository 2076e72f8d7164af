"""Find black, frozen and silent stretches in stills, recordings and live captures of cameras and grabbers.

Examples:
  capture_analyzer.py frame /srv/captures/capture_20260131120000.jpg     one still: a JSON object
  capture_analyzer.py video /srv/footage --json                          every recording in a folder, as JSON Lines
  capture_analyzer.py video clip.mp4 --precise --metrics clip.csv        every picture looked at, all numbers kept
  capture_analyzer.py capture 'test||/tmp/yard|5' --monitor              a test pattern, captured and watched
  capture_analyzer.py report /srv/footage --output report.html           what there is, what is missing, what was found

Needs: numpy and OpenCV (opencv-python-headless); FFmpeg 5.1 or newer (pip brings one) for recordings and sound.
State: none for `frame` and `video`; `monitor` keeps its own, and incidents, in `.capture_analyzer/` with the captures.
"""

from __future__ import annotations

import argparse
import base64
import csv
import errno
import glob
import hashlib
import heapq
import importlib
import io
import itertools
import json
import logging
import math
import os
import queue
import re
import select
import selectors
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import uuid
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import quote, unquote

from rhombus_logging import (
    Busy,
    CannotStart,
    ProgramError,
    Status,
    UsageError,
    absolute,
    add_common_flags,
    channels,
    cluster,
    end_processes,
    find_ffmpeg,
    hide_secret,
    load_config,
    lock_file,
    mask,
    parse_duration,
    parse_span,
    parse_zone,
    part_file,
    progress_bars,
    read_json,
    run,
    run_lock,
    send_message,
    signals_as,
    start_logging,
    tell_systemd,
    watch_sign,
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
STILL_NAME = re.compile(r"capture_(\d{14})(?:_\d+)?\.jpg")
STILL_TIME = "%Y%m%d%H%M%S"  # local time, as the older captures have it
SEGMENT_PATTERN = "segment_*.ts"
NAME_AHEAD_SEC = 86400  # a still whose name is further in the future was named by a wrong clock: its mtime counts
TYPES = ("blackscreen", "freeze", "audio_loss")
VIEW_TYPES = ("covered", "defocus", "moved", "no_signal")  # against what the camera usually looks at
VIEW_ROWS, VIEW_COLUMNS, VIEW_FLAT_STEP = 18, 32, 2  # blocks of 5 x 5 pixels; flat: a step to the next pixel
VIEW_EVERY_SEC = 0.9  # of a recording, so often is the view looked at
VIEW_NUMBERS = ("time_sec", "mean", "energy", "fine", "spread", "flat")
VIEWS_MOST = 20_000  # of one recording, then every other one: 40 MB
VIEWS_COMPARED = 500  # of these at most the median
VIEW_LEAST = 12  # fewer views do not tell what is usual,
VIEW_LEAST_ENERGY = 2.0  # and less structure cannot be told from another one,
VIEW_STEADY_SHARE = 0.5  # and more than so many of the views have to look alike
VIEW_SAME = 0.5  # correlation from which it is the same view
CARD_FLAT, CARD_FINE, CARD_SPREAD, SNOW_GRAIN = 0.9, 5.0, 0.5, 1.0
VIEW_QUIET_SEC = 4.0  # of a live camera, so often is the view looked at while all is well
VIEWS_KEPT, VIEW_LEARN_FIRST_SEC, VIEW_LEARN_SEC = 15, 4.0, 120.0  # the median of these is usual: half an hour
SAMPLE_SEC = 0.2  # of a recording, so often is a picture looked at; decoding costs the same for fewer
SELECT = "isnan(prev_selected_t)+gte(t-prev_selected_t,0.19)+key*gte(t-prev_selected_t,0.03)"
KEY_GAP_SEC = 5.0  # between key pictures further apart too much can hide
PICTURE_GAP_SEC = 6.0  # pictures further apart than this say nothing about the time between them
JOIN_SEC = 1.0  # parts of one incident that the coder's new start at a key picture tore apart
LIVELY_PICTURES = 20  # so many live pictures say how noisy a camera is,
LIVELY_LEAST = 0.15  # if in nearly all of them at least this share of the pixels changed
CALM_MOST, CALM_SHARE = 0.15, 0.4  # calm: fewer changed pixels than this, and than this share of the live ones
CLOCK_TEXT = "something small goes on, such as a clock"
TICK_LEVEL, TICK_SHARE = 20, 0.5  # a clock: a pixel changes by so much in half the pictures, or half the seconds
KEY_SETTLE_SEC = 0.5  # after a key picture everything changes a little
SUSPICIOUS_SHARE, SUSPICIOUS_MOST = 0.75, 0.8  # key pictures that differ less than usual, and no more than this
PRECISE_SHARE = 0.6  # of a file to be looked at precisely: one pass over all of it is cheaper
SOUND_RATE, SOUND_WINDOW_SEC = 8000, 0.25
SOUND_WINDOWS_AT_ONCE = 240
FLOOR_DB = -120.0  # of digital silence
QUIETLY = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info")
SHOWN_PICTURE = re.compile(r"\bpts_time:(NOPTS|[-\d.e+]+) .*\biskey:(\d)")
LISTED_LENGTH = re.compile(r"Duration: (\d+):(\d+):([\d.]+), (?:start|bitrate)")  # no start: Matroska without sound
COMPLAINT = re.compile(r"\[(?:error|fatal)\] (.*)")
COMPLAINTS_KEPT = 20
STALL_SEC = 120
PROGRESS_SEC = 0.2  # a bar that moves more often costs more than it tells
STILLS_LOOKED_AT, STILL_GAP_SEC = 60, 60.0  # `frame` looks back so far at most, and over no longer pause
SEGMENT_SEC, CLASSIC_SEGMENT_SEC = 30, 300  # older sound does not belong to a still
SEGMENT_AHEAD_SEC, SEGMENT_REST_SEC = 10.0, 1.0
SEGMENTS_LISTENED_TO = 3  # of 2 s: enough for quiet_sec
NO_SOUND_DB = -100.0  # what the older analyzer said where there was nothing to listen to
CLASSIC_DARK, CLASSIC_BLACK_PERCENT, CLASSIC_FREEZE = 10, 95.0, 0.5
RECORDINGS = tuple(f".{name}" for name in "mp4 mkv ts mov avi m4v webm flv mpg mpeg m2ts h264 hevc".split())  # noqa: SIM905
RHOMBUS_NAME = re.compile(r"_(\d{9,11})_(?:video|videoWithAudio|combined)(?:_partial)?$")
INCIDENT_TYPES = (*TYPES, "no_data", *VIEW_TYPES)
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
VIEW_NAME = "view.json"  # what `monitor` has learned of a camera, beside its state
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
CLIP_SEC, STEM_MOST = 20.0, 100  # of a recording: as long as so many segments; characters of its name
CLIP_CODER = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-c:a", "aac")  # where mp4 takes no copy
SEEK_BACK_SEC = {".ts": 10.0, ".m2ts": 10.0, ".mpg": 10.0, ".mpeg": 10.0, ".h264": math.inf, ".hevc": math.inf}
ONSET_SEC = 1.2  # a coder goes on refining a picture that stands still: the freeze may have begun so much earlier
STEP_LEAST_SEC, JUST_BEFORE_SEC = 0.19, 0.004  # between pictures that are looked at, see SELECT; less than a picture
SAVE_EVERY_SEC, SAVE_AGAIN_SEC, PROGRESS_EVERY_SEC = 10.0, 1.0, 5.0  # state; spares memory cards
ROWS_EVERY_SEC = 60.0  # active incidents count on in the database
DELIVER_EVERY_SEC = 0.25
RETRY_FIRST_SEC, RETRY_MAX_SEC = 1.0, 60.0
HOLD_MAX_SEC = 7200.0
KEPT_AWAY_SEC = 5.0  # after a bug in a folder's thread
WATCHDOG_EVERY_SEC, WATCHDOG_QUIET_SEC = 1.0, 60  # a thread that is silent so long hangs: systemd is no longer told
STOP_WITHIN_SEC = 3.0
NAMED_TIME = re.compile(r"(?<!\d)(\d{8})[_T-]?(\d{6})(Z?)(?![\dA-Za-z])")

THUMBNAIL_WIDTH = 498  # as the older captures have it
HLS_SEC, HLS_LIST = 2, 5
HARDWARE_ENCODERS = ("h264_v4l2m2m", "h264_nvenc")  # Raspberry Pi and its like; need no other pixel format
PROBE_TIMEOUT_SEC = 15
CAPTURE_TICK_SEC = 0.1  # how long a finished still may wait for its name
FIRST_FRAME_SEC = 60  # then FFmpeg is started anew
STOP_STEP_SEC = 2.0  # TERM, this, TERM, this, KILL
CAPTURE_RETRY_MAX_SEC, RETRY_FAST_FOR_SEC, RETRY_SLOW_SEC, RETRY_REFUSED_SEC = 5.0, 600.0, 30.0, 60.0
SOUND_RETRY_SEC = 60.0  # how often a sound device that could not be opened is tried
CAPTURE_QUIET_SEC = 30  # a thread that is silent so long hangs: systemd is no longer told that all is well
STDERR_LINES = 40
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
OLDER_NAME = re.compile(r"test_capture_(?!.*_thumbnail\.jpg).*\.jpg")
UNFINISHED_SEC = 10.0  # a JPEG that has not grown so long and has no end mark stays cut off
RENAME_RESCAN_SEC = 1.0
GAP_SEC = 0.5  # shorter distances between two files are the inaccuracy of their times
TAIL_SEC = 5.0  # so much older may the recorder's state of one camera be than that of another that records too
LONGEST_FILE_SEC, DEFAULT_FILE_SEC = 26 * 3600.0, 3600.0  # of recordings that no journal knows
STILLS_APART_SEC = 10.0  # stills further apart than this leave a gap
CURVE_POINTS = 60_000  # of all cameras together on one page; with LINKS_MAX they keep it below 5 MB
LINKS_MAX = 80_000
PAGE_THUMBNAILS, PAGE_THUMBNAIL_WIDTH = 150, 160
THUMBNAILS_SEC, THUMBNAIL_TIMEOUT_SEC = 3.0, 2.0  # no more time goes into pictures: a page is made in seconds
CAPTURED_NAME = re.compile(r"capture_\d{14}(?:_\d+)?(?:_thumbnail)?\.jpg")
CLIP_NAME = re.compile(r"_[\w-]{22}(\.v\d)?_\d.*_(video|videoWithAudio|combined)(_partial)?$")  # of copy_footage.py
JOURNAL_NAME = re.compile(r"\d{4}-\d\d-\d\d\.jsonl")
DATE_FOLDER = re.compile(r"\d{2}|\d{4}(-\d\d-\d\d)?")  # of nas_sync.py: YYYY-MM-DD, and YYYY/MM/DD
EVIDENCE_NAME = re.compile(r"\d{8}T\d{6}Z_[0-9a-f]{8}_(last_good|first_bad|first_good|clip)_")
NO_FOOTAGE = re.compile(f"segment_|{EVIDENCE_NAME.pattern}")
SEGMENT_NAME = re.compile(r"segment_[^/]*\.ts(?:\.tmp)?")

log = logging.getLogger("capture_analyzer")

Interval = tuple[float, float]  # [start, end) in seconds


class Unreadable(Exception):
    """A file holds no picture or sound that could be read; the sentence says why."""


class Empty(Unreadable):
    """FFmpeg had nothing to read, and nothing to complain about."""


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
    views: Sequence[str]
    covered_share: float
    defocus_share: float
    moved_likeness: float
    view_relearn_sec: float


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
    jump: int = 0  # the largest change of a pixel since the picture before, also where a mask is


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
    freeze_kind: str = ""  # of a freeze: all, or picture
    views: Mapping[str, bool | None] = field(default_factory=dict)  # verdicts on the types that are looked for


# --- rules -------------------------------------------------------------------------------------------------------


def rules_of(settings: Mapping[str, Any]) -> Rules:
    """The rules of section `analysis`; UsageError for what cannot be meant."""
    rules = Rules(**{name: settings[name] for name in Rules.__dataclass_fields__})
    if not 0 <= rules.cut_percent < 50:
        raise UsageError(f"analysis.cut_percent: {rules.cut_percent} is not from 0 to 49")
    if not 0 <= rules.freeze_ignore_percent < 50:
        raise UsageError(f"analysis.freeze_ignore_percent: {rules.freeze_ignore_percent} is not from 0 to 49")
    if unknown := [name for key in ("views", "view_messages") for name in settings[key] if name not in VIEW_TYPES]:
        raise UsageError(f"analysis.views: {unknown[0]!r} is none of {', '.join(VIEW_TYPES)}")
    for name in ("black_sec", "freeze_sec", "silence_sec", "quiet_sec", "view_relearn_sec"):
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


def freeze_kind(ticks: int, pictures: int, lasted_sec: float) -> str:
    """`all`: nothing moves; `picture`: something small goes on, as a clock does, over a frozen or noiseless picture."""
    return "picture" if ticks >= max(2, TICK_SHARE * min(pictures, lasted_sec)) else "all"


def severity_of(incident_type: str, kind: str) -> str:
    """`warning` where it may be no fault at all, else `alarm`."""
    is_unsure = incident_type in VIEW_TYPES or (incident_type, kind) == ("freeze", "picture")
    return "warning" if is_unsure else "alarm"


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
        self.full = counts >= int(np.max(counts)) / 2  # a cell that is mostly masked says little
        self.counts = counts[self.full]
        self.keep = self.inside.size - round(self.inside.size * rules.freeze_ignore_percent / 100)
        self.reference: NDArray[np.int16] | None = None
        self.before: Gray | None = None
        self.whole: Gray | None = None  # the picture before, with what is masked
        self.first: Gray | None = None  # of the run, likewise
        self.since_sec = self.latest_sec = self.spread = 0.0
        self.pictures = self.ticks = 0  # of the run, after the first

    def measure(self, gray: Gray, time_sec: float, *, is_key: bool = False) -> Picture:
        import cv2
        import numpy as np

        values = gray.ravel()[self.inside]
        sums = np.bincount(self.cells, values, minlength=CELL_ROWS * CELL_COLUMNS)
        means = sums[self.full] / self.counts
        signed, difference = values.astype(np.int16), 0.0
        spread = float(cv2.meanStdDev(values)[1][0, 0])  # a tenth of the time of values.std()
        if self.reference is not None:
            difference = self.difference(signed, self.reference)
        if self.reference is None or time_sec < self.since_sec or not is_same(difference, self.spread, self.rules):
            self.reference, self.since_sec, self.spread = signed, time_sec, spread
            self.first, self.pictures, self.ticks = gray, -1, 0
        jump = 0 if self.whole is None else int((np.maximum(gray, self.whole) - np.minimum(gray, self.whole)).max())
        self.whole, self.latest_sec, self.pictures = gray, time_sec, self.pictures + 1
        self.ticks += jump >= TICK_LEVEL and self.pictures > 0
        changed = 1.0 if self.before is None else int(np.count_nonzero(values != self.before)) / values.size
        self.before = values
        return Picture(time_sec, float(values.mean()), float(means.max() - means.min()), spread, difference, changed,
                       self.since_sec, is_key, jump)  # fmt: skip

    def state(self, *, is_last: bool) -> dict[str, Any] | None:
        """The run so far, for a restart; of a live camera, where it is another one each time, only when all ends."""
        if self.first is None or (self.latest_sec <= self.since_sec and not is_last):
            return None
        return {"since_sec": self.since_sec, "pictures": self.pictures, "ticks": self.ticks,
                "first": base64.b64encode(zlib.compress(self.first.tobytes())).decode()}  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Go on with the run of an earlier process; False when there is none, or it is damaged."""
        import numpy as np

        with suppress(KeyError, TypeError, ValueError, zlib.error):
            first = np.frombuffer(zlib.decompress(base64.b64decode(state["first"])), np.uint8).reshape(HEIGHT, WIDTH)
            self.measure(first, float(state["since_sec"]))
            self.pictures, self.ticks = int(state["pictures"]), int(state["ticks"])
            return True
        return False

    def difference(self, one: NDArray[np.int16], other: NDArray[np.int16]) -> float:
        """Mean absolute difference without the largest ones, so that a ticking clock does not count."""
        import numpy as np

        counts = np.bincount(np.abs(one - other), minlength=256)
        up_to = np.minimum(np.cumsum(counts), self.keep)  # so many of those that are kept differ by 0, up to 1, 2, ...
        return (255 * self.keep - int(up_to[:-1].sum())) / self.keep


# --- views -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What was measured on one picture about what the camera looks at."""

    time_sec: float
    mean: float
    energy: float  # mean step from block to block, across and down
    fine: float  # root of the mean square step from pixel to pixel
    spread: float
    flat: float  # share of the pixels that hardly differ from the next one
    edges: NDArray[np.float32]  # the steps themselves, in the order of the blocks that count

    @property
    def grain(self) -> float:
        """1 where neighbours have nothing to do with each other, near 0 in pictures of anything."""
        return self.fine**2 / (2 * self.spread**2) if self.spread else 0.0

    @property
    def sharpness(self) -> float:
        return self.fine / self.energy if self.energy else 0.0

    @property
    def is_drawn(self) -> bool:
        """Flat areas with sharp edges, or snow: most likely no camera's picture."""
        return self.fine >= CARD_FINE and (self.flat >= CARD_FLAT or self.grain >= SNOW_GRAIN)


class ViewMeter:
    """Measures the views of one camera."""

    def __init__(self, mask: Gray) -> None:
        import cv2
        import numpy as np

        whole = cv2.erode(mask, np.ones((3, 3), np.uint8), borderValue=1)
        self.pixels = np.minimum(whole[:, 1:], whole[:, :-1]).astype(np.uint8)
        self.counted, self.count = self.pixels > 0, int(self.pixels.sum())
        blocks = cv2.resize(mask.astype(np.float32), (VIEW_COLUMNS, VIEW_ROWS), interpolation=cv2.INTER_AREA) > 0.99
        self.blocks = blocks.astype(np.uint8)
        self.cells = np.flatnonzero(blocks[:-1, :-1] & blocks[:-1, 1:] & blocks[1:, :-1])

    def measure(self, gray: Gray, time_sec: float) -> View:
        import cv2
        import numpy as np

        small = cv2.resize(gray.astype(np.float32), (VIEW_COLUMNS, VIEW_ROWS), interpolation=cv2.INTER_AREA)
        corner = small[:-1, :-1]
        edges = (np.abs(small[:-1, 1:] - corner) + np.abs(small[1:, :-1] - corner)).ravel()[self.cells]
        steps = cv2.absdiff(gray[:, 1:], gray[:, :-1])
        fine = cv2.norm(steps, cv2.NORM_L2, self.pixels) / math.sqrt(self.count)
        flat = 1 - int(np.count_nonzero((steps > VIEW_FLAT_STEP) & self.counted)) / self.count
        mean, spread = cv2.meanStdDev(small, mask=self.blocks)
        return View(time_sec, float(mean[0, 0]), float(edges.mean()), fine, float(spread[0, 0]), flat, edges)


@dataclass(frozen=True)
class UsualView:
    """What a camera usually looks at: medians over many views."""

    energy: float
    fine: float
    sharpness: float
    edges: NDArray[np.float32]


def likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Correlation of the edges: 1 for the same view in whatever light, about 0 for another one."""
    import numpy as np

    first, second = one - one.mean(), other - other.mean()
    size = math.sqrt(float(np.dot(first, first)) * float(np.dot(second, second)))
    return float(np.dot(first, second)) / size if size else 0.0


def usual_view(views: Sequence[View]) -> UsualView | None:
    """None where too little is known: few views, hardly anything to see, or a camera that looks here and there."""
    import numpy as np

    some = list(views)[:: math.ceil(len(views) / VIEWS_COMPARED) or 1]
    if len(some) < VIEW_LEAST:
        return None
    edges = np.median([view.edges for view in some], axis=0)
    alike = [view for view in some if likeness(view.edges, edges) >= VIEW_SAME]
    if len(alike) <= VIEW_STEADY_SHARE * len(some):
        return None
    energy, fine, sharpness = np.median([(one.energy, one.fine, one.sharpness) for one in alike], axis=0).tolist()
    return UsualView(energy, fine, sharpness, edges) if energy >= VIEW_LEAST_ENERGY else None


def judge_view(view: View, usual: UsualView | None, rules: Rules) -> dict[str, bool | None]:
    """The verdict on each type: True bad, False good, None unknown. In the dark nothing is known.

    Fog, dusk and other light leave the edges where they were, only weaker. Something on the lens takes them away; where
    there are as many as before at other places, the camera has moved, or what is shown is no camera's picture.
    """
    verdict: dict[str, bool | None] = dict.fromkeys(VIEW_TYPES)
    if usual is None or view.mean <= rules.black_mean:
        return verdict
    alike, left = likeness(view.edges, usual.edges), min(view.energy / usual.energy, view.fine / usual.fine)
    if alike >= VIEW_SAME:
        is_soft = view.sharpness <= rules.defocus_share * usual.sharpness
        return {"covered": False, "defocus": is_soft, "moved": False, "no_signal": False}
    is_other = alike <= rules.moved_likeness
    if is_other and (view.is_drawn or view.spread <= CARD_SPREAD):
        verdict["no_signal"] = True
    elif left <= rules.covered_share:
        verdict |= {"covered": True, "no_signal": False}
    elif is_other:
        verdict |= {"covered": False, "moved": True, "no_signal": False}
    return verdict


class ViewKeeper:
    """Judges the views of a live camera against the last half hour, of which only good ones count.

    A view that is another one, but steady, for `view_relearn_sec` is the usual one from then on: somebody turned the
    camera. `is_changed` says that there is something to be stored.
    """

    def __init__(self, rules: Rules, mask: Gray) -> None:
        self.rules, self.meter = rules, ViewMeter(mask)
        self.kept: deque[View] = deque(maxlen=VIEWS_KEPT)
        self.other: deque[View] = deque(maxlen=VIEWS_KEPT)  # since the view is another one
        self.usual: UsualView | None = None
        self.is_changed = False
        self.quiet: tuple[float, dict[str, bool | None]] = -math.inf, {}  # the last look, if all was well

    def judge(self, gray: Gray, picture: Picture) -> dict[str, bool | None]:
        """The verdicts on the types that are looked for; as long as all is well, from a look every few seconds."""
        if judge_black(picture, self.rules):
            return dict.fromkeys(self.rules.views)
        if 0 <= picture.time_sec - self.quiet[0] < VIEW_QUIET_SEC:
            return self.quiet[1]
        view = self.meter.measure(gray, picture.time_sec)
        verdict = judge_view(view, self.usual, self.rules)
        shown = {name: verdict[name] for name in self.rules.views}
        is_good = verdict["moved"] is False and not verdict["defocus"]
        self.quiet = (view.time_sec if is_good or self.usual is None else -math.inf), shown
        if self.usual is None or is_good:
            self.other.clear()
            self.learn(view, self.kept, VIEW_LEARN_SEC if self.usual else VIEW_LEARN_FIRST_SEC)
        elif view.mean > self.rules.black_mean:
            self.learn(view, self.other, self.rules.view_relearn_sec / (VIEWS_KEPT - 1))
        return shown

    def learn(self, view: View, views: deque[View], every_sec: float) -> None:
        """Keep one view every so often, no card. A clock that was set back holds nothing up."""
        if view.is_drawn or (views and 0 <= view.time_sec - views[-1].time_sec < every_sec):
            return
        views.append(view)
        if views is self.other and (len(views) < VIEWS_KEPT or usual_view(views) is None):
            return
        self.kept, self.usual, self.is_changed = views.copy(), usual_view(views) or self.usual, True

    def state(self) -> dict[str, Any]:
        """For a restart; edges in sixteenths."""
        rows = [{**{name: getattr(view, name) for name in VIEW_NUMBERS}, "edges": base64.b64encode(zlib.compress(
            (view.edges * 16).round().astype("<u2").tobytes())).decode()} for view in self.kept]  # fmt: skip
        return {"schema": STATE_SCHEMA, "views": rows}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """What an earlier process has learned; nothing, where that is damaged or of another mask."""
        import numpy as np

        with suppress(KeyError, TypeError, ValueError, zlib.error):
            views = [View(**{name: float(row[name]) for name in VIEW_NUMBERS}, edges=np.float32(1 / 16) * np.frombuffer(
                zlib.decompress(base64.b64decode(row["edges"])), "<u2")) for row in (state or {})["views"]]  # fmt: skip
            if all(view.edges.size == self.meter.cells.size for view in views):
                self.kept.extend(views)
                self.usual = usual_view(self.kept)


class ViewFinder:
    """The views of one recording; what is usual is known when all of them are."""

    def __init__(self, rules: Rules, mask: Gray) -> None:
        self.rules, self.meter = rules, ViewMeter(mask)
        self.forget()

    def forget(self) -> None:
        self.views, self.every_sec, self.latest_sec = list[View](), VIEW_EVERY_SEC, -math.inf

    def take(self, gray: Gray, picture: Picture) -> None:
        is_early = picture.time_sec - self.latest_sec < self.every_sec
        if not self.rules.views or is_early or judge_black(picture, self.rules):
            return
        self.latest_sec = picture.time_sec
        self.views.append(self.meter.measure(gray, picture.time_sec))
        if len(self.views) > VIEWS_MOST:
            self.views, self.every_sec = self.views[::2], 2 * self.every_sec

    def find(self, patience: Patience) -> tuple[str, list[tuple[str, Interval]], UsualView | None]:
        """Whether the usual view is known, and the incidents, by the same machine as those of `monitor`."""
        usual = usual_view(self.views)
        if usual is None or not self.rules.views:
            return "unknown" if self.rules.views else "off", [], usual
        machine, found, last = IncidentMachine("", "", patience), dict[str, Incident](), dict[str, float]()
        for view, after in itertools.zip_longest(self.views, self.views[1:]):
            verdict = judge_view(view, usual, self.rules)
            for name in self.rules.views:
                events = machine.observe(name, Sample(view.time_sec, verdict[name]))
                found |= {event.incident.alert_id: event.incident for event in events}
                last[name] = (after or view).time_sec if verdict[name] else last.get(name, 0.0)
        found |= {one.alert_id: one for one in machine.active()}
        return "ok", [(one.incident_type, (one.start_sec, one.end_sec or last[one.incident_type]))
                      for one in found.values()], usual  # fmt: skip


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
    return data[:2] == b"\xff\xd8" and data.find(b"\xff\xda", data.rfind(b"\xff\xd9") + 1) >= 0  # a scan without end


def likely_reduction(data: bytes) -> int:
    """By how much (8, 4, 2, 1) the size in a JPEG's head may shrink and still be 160x90; 8 where that is not found."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 9 <= len(data):
        marker, length, height, width = struct.unpack(">xBHxHH", data[at : at + 9])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, and no table
            return next((by for by in (8, 4, 2) if -(-height // by) >= HEIGHT and -(-width // by) >= WIDTH), 1)
        at += 2 + length
    return 8


def decode_still(data: bytes, reduction: int = 0) -> Gray:
    """The picture in 160x90 gray; raises Unreadable. `reduction` is what the decoder leaves out: 8, 4, 2 or 1."""
    import cv2
    import numpy as np

    if not data:
        raise Unreadable("the file is empty")
    if is_cut(data):
        raise Unreadable("the file is cut off")
    reduction = reduction or likely_reduction(data)
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
        self.keeper = ViewKeeper(rules, mask)
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
            unknown = dict.fromkeys(self.rules.views)
            return Still(path, time_sec, "unknown", reason, None, None, None, None, views=unknown)
        picture = self.meter.measure(self.gray, time_sec)
        is_frozen = judge_freeze(picture, self.rules)
        kind = freeze_kind(self.meter.ticks, self.meter.pictures, time_sec - picture.since_sec)
        views = self.keeper.judge(self.gray, picture) if self.rules.views else {}
        return Still(path, time_sec, "ok", "", picture, judge_black(picture, self.rules), is_frozen,
                     picture.since_sec if is_frozen else None, kind if is_frozen else "", views)  # fmt: skip


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
        """After the last block: raises NoStream, Empty or another Unreadable when FFmpeg failed and gave nothing."""
        failed = self.process.wait() != 0
        self.threads[0].join()
        if any("matches no streams" in line or "AVOption skip_frame" in line for line in self.complaints):
            raise NoStream  # FFmpeg 9 finds an option for pictures before it finds that there are none
        if not is_any:
            kind = Unreadable if failed or self.complaints else Empty
            raise kind(self.complaints[0] if self.complaints else "it holds nothing that can be decoded")
        if failed:
            log.debug("FFmpeg ended with %s: %s", self.process.returncode, self.complaints)


def read_pictures(ffmpeg: str, file: Path, *, keys_only: bool = False, start_sec: float = 0,
                  end_sec: float | None = None, threads: int = 0, damage: list[str] | None = None,
                  listed: list[float] | None = None, tell: Callable[[float, float], None] | None = None,
                  ) -> Iterator[tuple[Gray, float, bool]]:  # fmt: skip
    """Pictures in 160x90 gray, each with its time from the start of the file and whether it is a key picture.

    Either the key pictures alone, or five a second and every key picture. Raises NoStream and Unreadable. `damage`
    becomes what this pass says of a file that is cut off or spoilt inside, in one sentence or none, `listed` the length
    that the container claims. `tell` gets the seconds since the picture before, and that length.
    """
    import numpy as np

    before = ["-threads", str(threads)]  # without `-discard` each key picture waits in the decoder for those between
    before += ["-skip_frame", "nokey", "-discard", "nokey"] if keys_only else []
    before += ["-ss", f"{start_sec:.3f}"] if start_sec else []
    before += ["-t", f"{end_sec - start_sec:.3f}"] if end_sec is not None else []
    filters = "" if keys_only else f"select='{SELECT}',"
    filters += f"scale={WIDTH}:{HEIGHT}:flags=area,format=gray,showinfo=checksum=0"
    after = ["-map", "0:V:0", "-vf", filters, "-fps_mode", "passthrough", "-f", "rawvideo"]
    latest, lost_sec = -math.inf, 0.0
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
            lost_sec += pause_sec(time_sec - max(latest, 0))
            if tell:
                tell(time_sec - max(latest, 0), pipe.listed_sec)
            latest = time_sec
            yield np.frombuffer(block, np.uint8).reshape(HEIGHT, WIDTH), start_sec + time_sec, is_key
        pipe.check(latest > -math.inf)
        lost_sec += pause_sec(pipe.listed_sec - latest)
        if listed is not None:
            listed[:] = [pipe.listed_sec]
        if damage is not None:
            whole_sec = max(pipe.listed_sec, latest)
            damage[:] = [f"it is damaged: about {lost_sec:.0f} of its {whole_sec:.0f} s have no pictures "
                         f"({pipe.complaints[0]})"] if lost_sec and pipe.complaints else []  # fmt: skip


def pause_sec(between_sec: float) -> float:
    """What is missing between two pictures; 0 for those that lie no further apart than key pictures do."""
    return between_sec if between_sec > PICTURE_GAP_SEC else 0.0


def call(command: Sequence[str], timeout_sec: float) -> tuple[bool, bytes]:
    """Whether a program succeeded, and what it wrote to stdout; one that takes longer is killed and has failed."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout_sec,
                              start_new_session=True)  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, b""
    return done.returncode == 0, done.stdout


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
    reader.keeper.restore(read_json(path.parent / STATE_FOLDER / VIEW_NAME))
    for still in stills:
        reader.keeper.quiet = -math.inf, {}  # look at each
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
        "freeze_kind": (seen.freeze_kind or None) if freeze and not classic else None,
        "frame_time": iso_time(time_sec), "method": "classic" if classic else "rules",
        "mean": round(seen.picture.mean, 2) if seen.picture else None,
        "cell_range": round(seen.picture.cell_range, 2) if seen.picture else None,
        **dict.fromkeys(VIEW_TYPES), **seen.views,
    }  # fmt: skip


def carried_on(state: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The incident state after one more still: bad ones count on, good ones end, unknown ones stay as they are."""
    bad = {"blackscreen": result["blackscreen"], "freeze": result["freeze"],
           "audio_loss": None if result["audio"] is None else not result["audio"],
           **{name: result[name] for name in VIEW_TYPES}}  # fmt: skip
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
    host = arguments.host or host_name()
    state, failed = state_of(arguments.state), 0
    for image in images:
        device = arguments.device or camera_of(image)
        result = analyse_frame(image, device, config, classic=arguments.method == "classic")
        state = carried_on(state, result)
        result |= {"host_name": host, "device_id": device, "active_incidents": state}
        sys.stdout.write(json.dumps(result) + "\n")
        if result["quality"] == "unknown":
            failed += 1
            log.error("%s: quality unknown: %s", image, result["reason"].partition("; ")[0])  # not that of the sound
    return Status.PARTIAL if failed else Status.DONE


# --- video -------------------------------------------------------------------------------------------------------


class Metrics:
    """Everything that was measured, as CSV: thresholds can be chosen from it, and curves drawn. For many threads."""

    COLUMNS = ("file", "kind", "time_sec", "mean", "cell_range", "spread", "difference", "changed", "since_sec",
               "level_db", "energy", "fine", "flat", "grain", "likeness")  # fmt: skip

    def __init__(self, stream: TextIO) -> None:
        self.writer = csv.writer(stream, lineterminator="\n")
        self.lock = threading.Lock()
        self.writer.writerow(self.COLUMNS)

    def write(self, rows: Iterable[Sequence[Any]]) -> None:
        with self.lock:
            self.writer.writerows(rows)


class KeptMetrics(list[Sequence[Any]]):
    """The same, kept to be sent on from a worker of a cluster."""

    write = list.extend


def picture_row(file: Path, one: Picture) -> list[Any]:
    """A line of --metrics: brightness 0 to 255, difference to the start of the run before this picture."""
    values = (one.time_sec, one.mean, one.cell_range, one.spread, one.difference, one.changed, one.since_sec)
    return [file, "picture", *(round(value, 3) for value in values), *[""] * 6]


def sound_row(file: Path, place: int, level_db: float) -> list[Any]:
    return [file, "sound", place * SOUND_WINDOW_SEC, "", "", "", "", "", "", round(level_db, 1), *[""] * 5]


def view_row(file: Path, one: View, usual: UsualView | None) -> list[Any]:
    """Of what a camera looks at; likeness to the usual view, where that is known."""
    alike = round(likeness(one.edges, usual.edges), 3) if usual else ""
    values = (one.energy, one.fine, one.flat, one.grain)
    return [file, "view", round(one.time_sec, 3), round(one.mean, 3), "", round(one.spread, 3), *[""] * 4,
            *(round(value, 3) for value in values), alike]  # fmt: skip


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
    clocks: tuple[Interval, ...] = ()  # the freezes under which something small goes on
    views: str = "unknown"  # whether it is known what the camera usually looks at: ok, unknown; off: nobody asked

    def about(self, kind: str, interval: Interval) -> dict[str, str]:
        """What is said of an incident beside its times."""
        what = "" if kind != "freeze" else "picture" if interval in self.clocks else "all"
        return {"severity": severity_of(kind, what), **({"freeze_kind": what} if what else {})}


class Progress:
    """A bar for the bytes that a scan of recordings reads. Called from any thread.

    What is looked at once more makes the total grow.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.bars: Any = progress_bars()
        self.files, self.finished, self.next_sec = len(files), 0, 0.0
        self.size_of = {file: size_of(file) for file in files}
        self.left_of = {file: float(size_bytes) for file, size_bytes in self.size_of.items()}
        self.total_bytes, self.done_bytes = sum(self.left_of.values()), 0.0
        self.lock = threading.Lock()

    def __enter__(self) -> Progress:
        self.bars.start()
        self.task = self.bars.add_task("", total=self.total_bytes)
        self.show()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def read(self, file: Path, more_sec: float, length_sec: float) -> None:
        """So much more of a file has been looked at."""
        with self.lock:
            size_bytes = min(self.size_of[file] * more_sec / length_sec if length_sec else 0.0, self.left_of[file])
            self.left_of[file] -= size_bytes
            self.done_bytes += size_bytes
            if time.monotonic() >= self.next_sec:
                self.show()

    def again(self, file: Path, windows: Sequence[tuple[float, float | None]], length_sec: float) -> None:
        """These stretches of a file will be looked at once more; None is its end."""
        again_sec = sum((length_sec if stop is None else stop) - start for start, stop in windows)
        with self.lock:
            size_bytes = self.size_of[file] * min(again_sec / length_sec, 1.0) if length_sec else 0.0
            self.left_of[file] += size_bytes
            self.total_bytes += size_bytes

    def finish(self, file: Path) -> None:
        """Nothing more of a file will be looked at."""
        with self.lock:
            self.finished += 1
            self.done_bytes += self.left_of[file]
            self.left_of[file] = 0.0
            if time.monotonic() >= self.next_sec or self.finished == self.files:
                self.show()

    def show(self) -> None:
        self.next_sec = time.monotonic() + PROGRESS_SEC
        self.bars.update(self.task, description=f"{self.finished} of {self.files} files", total=self.total_bytes,
                         completed=self.done_bytes)  # fmt: skip


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
    progress: Progress | None = None  # where it is shown

    def scan(self, file: Path) -> Scan:
        """Look at one recording; raises nothing for what lies in it."""
        camera = camera_of(file)
        if reason := refusal(file) or ("" if os.access(file, os.R_OK) else os.strerror(errno.EACCES)):
            return Scan(file, camera, "unknown", "unknown", reason, 0.0)
        mask = mask_of(self.settings, camera)
        clocks: list[Interval] = []
        found: list[tuple[str, Interval]] = []
        pictures, reasons, length_sec, views = "none", list[str](), 0.0, "unknown" if self.rules.views else "off"
        with ThreadPoolExecutor(1) as side:
            listening = side.submit(self.listen, file)
            try:
                finder = ViewFinder(self.rules, mask)
                pictures, found, clocks, length_sec = self.scan_pictures(file, mask, finder, reasons)
                views = self.look(file, finder, found)
            except NoStream:
                pass
            except Unreadable as problem:
                pictures, reasons = "unknown", [str(problem)]
            sound, levels, trouble = listening.result()
        if sound == "empty":  # beside pictures: as if it had ended at once
            sound, trouble = ("ok", "") if length_sec else ("unknown", trouble)
        reasons += [] if reasons or not trouble else [trouble]  # a file that cannot be opened needs one reason
        sound_sec = len(levels) * SOUND_WINDOW_SEC
        if sound == "ok" or (sound == "none" and pictures != "none" and self.rules.audio_required):
            lost = find_audio_loss(levels, self.rules)
            if pictures == "keyframes" and not 0 <= sound_sec - length_sec <= PICTURE_GAP_SEC:
                length_sec = self.end_of(file, length_sec)  # the last key picture is not the end
            if not reasons and length_sec and sound_sec - length_sec > PICTURE_GAP_SEC:
                reasons = [f"its pictures end {sound_sec - length_sec:.0f} s before its sound"]
            if length_sec - sound_sec >= self.rules.quiet_sec:  # the pictures go on without sound
                lost = joined([*lost, (sound_sec, length_sec)], SOUND_WINDOW_SEC)
            found += [("audio_loss", interval) for interval in lost]
        if self.metrics is not None:
            self.metrics.write(sound_row(file, place, level) for place, level in enumerate(levels))
        if pictures == sound == "none":
            reasons = ["it holds neither pictures nor sound"]
        return Scan(file, camera, pictures, sound, "; ".join(reasons), max(length_sec, sound_sec),
                    tuple(sorted(found, key=lambda one: (one[1], one[0]))), tuple(clocks), views)  # fmt: skip

    def look(self, file: Path, finder: ViewFinder, found: list[tuple[str, Interval]]) -> str:
        """Add what is the matter with the view; whether that is known."""
        views, incidents, usual = finder.find(patience_of(self.settings))
        if self.metrics is not None:
            self.metrics.write(view_row(file, view, usual) for view in finder.views)
        found += incidents
        return views

    def listen(self, file: Path) -> tuple[str, list[float], str]:
        """Whether there is sound (ok, empty, none, unknown), its levels, and what was wrong."""
        try:
            return "ok", measure_sound(self.ffmpeg, file), ""
        except NoStream:
            return "none", [], ""
        except Empty as problem:
            return "empty", [], f"sound: {problem}"
        except Unreadable as problem:
            return "unknown", [], f"sound: {problem}"

    def scan_pictures(self, file: Path, mask: Gray,
                      views: ViewFinder, damage: list[str],
                      ) -> tuple[str, list[tuple[str, Interval]], list[Interval], float]:  # fmt: skip
        """How it was done, what was found, which freezes have a clock, and where the pictures end; and the damage."""
        if not self.precise:
            listed = [0.0]
            keys = list(self.measured(file, mask, views, keys_only=True, damage=damage, listed=listed))
            windows = suspicious(keys, self.rules, listed[0])
            if self.progress and keys:
                self.progress.again(file, [(0.0, None)] if windows is None else windows, keys[-1].time_sec)
            if windows is not None:
                finders = [self.find(file, mask, start_sec, stop_sec) for start_sec, stop_sec in windows]
                found = [one for finder in finders for one in finder.finish()]
                end_sec = max([keys[-1].time_sec, *(finder.latest_sec for finder in finders)]) + SAMPLE_SEC
                return "keyframes", found, [one for finder in finders for one in finder.clocks()], end_sec
        views.forget()
        finder = self.find(file, mask, views=views, damage=damage)
        return "precise", finder.finish(), finder.clocks(), finder.latest_sec + SAMPLE_SEC

    def end_of(self, file: Path, key_sec: float) -> float:
        """Where the pictures end, if `key_sec` is shortly after the last key picture."""
        with suppress(NoStream, Unreadable):
            for _, time_sec, _ in read_pictures(self.ffmpeg, file, start_sec=key_sec, threads=self.threads):
                key_sec = max(key_sec, time_sec + SAMPLE_SEC)
        return key_sec

    def find(self, file: Path, mask: Gray, start_sec: float = 0, end_sec: float | None = None,
             views: ViewFinder | None = None, damage: list[str] | None = None) -> Finder:  # fmt: skip
        finder = Finder(self.rules)
        for picture in self.measured(file, mask, views, start_sec=start_sec, end_sec=end_sec, damage=damage):
            finder.take(picture)
        return finder

    def measured(self, file: Path, mask: Gray, views: ViewFinder | None = None, *, keys_only: bool = False,
                 start_sec: float = 0, end_sec: float | None = None, damage: list[str] | None = None,
                 listed: list[float] | None = None) -> Iterator[Picture]:  # fmt: skip
        meter = PictureMeter(self.rules, mask)
        tell = partial(self.progress.read, file) if self.progress else None
        for gray, time_sec, is_key in read_pictures(
            self.ffmpeg, file, keys_only=keys_only, start_sec=start_sec, end_sec=end_sec, threads=self.threads,
            damage=damage, listed=listed, tell=tell):  # fmt: skip
            if self.stopped and self.stopped.is_set():
                raise Unreadable("stopped")
            picture = meter.measure(gray, time_sec, is_key=is_key or keys_only)
            if self.metrics is not None:
                self.metrics.write([picture_row(file, picture)])
            if views:
                views.take(gray, picture)
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
    return scanner.scan(job.file), list(kept)


def scan_on_cluster(scheduler: str, scanner: Scanner, files: Sequence[Path]) -> Generator[Scan, None, None]:
    """As Scanner.scan of each file, in their order, by the workers of a Dask cluster. Raises CannotStart."""
    if not files:
        return
    places = [Path(os.path.abspath(file)) for file in files]  # noqa: PTH100  links stay
    shared = Path(os.path.commonpath([place.parent for place in places]))
    folder = (places[0].parent if shared == Path(shared.anchor) else shared) / STATE_FOLDER
    here = Path(__file__).resolve()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as problem:
        raise CannotStart(f"{folder}: cannot be made, and --scheduler needs a folder there that all workers see: "
                          f"{problem.strerror}") from problem  # fmt: skip
    with cluster(scheduler, folder, [here.with_name("rhombus_logging.py"), here]) as joined:
        executor = joined.client.get_executor(pure=False)
        bare = replace(scanner, metrics=None, threads=1, progress=None)
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
        self.still: list[float] = []  # times of the pictures that may be frozen ones
        self.ticks: list[float] = []  # of those, at which something small changed

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
        if picture.since_sec < picture.time_sec or self.stillness.start_sec is not None:
            self.still.append(picture.time_sec)
            self.ticks += [picture.time_sec] if picture.jump >= TICK_LEVEL else []
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

    def clocks(self) -> list[Interval]:
        """Those of the freezes under which something small goes on."""
        found = [interval for kind, interval in self.finish() if kind == "freeze"]
        return [(start, end) for start, end in found
                if freeze_kind(sum(start < one < end for one in self.ticks),
                               sum(start < one < end for one in self.still), end - start) == "picture"]  # fmt: skip

    def finish(self) -> list[tuple[str, Interval]]:
        self.close()
        result = []
        for kind, least_sec in (("blackscreen", self.rules.black_sec), ("freeze", self.rules.freeze_sec)):
            parts = joined((interval for found, interval in self.found if found == kind), JOIN_SEC)
            result += [(kind, (start, end)) for start, end in parts if end - start >= least_sec]
        return result


def suspicious(keys: Sequence[Picture], rules: Rules, length_sec: float) -> list[tuple[float, float | None]] | None:
    """The stretches of a recording that have to be looked at precisely; None for all of it.

    A stretch begins two key pictures before the suspicion, so that Stillness knows the camera, and ends with the one
    after it; None is the end of the file. `length_sec` is what the container claims, 0 where it does not.
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
    is_long = length_sec - keys[-1].time_sec > KEY_GAP_SEC
    if is_long or keys[-1].since_sec < keys[-1].time_sec or marks[-1]:
        starts.append((len(keys) - 2, len(keys)))
    times = [picture.time_sec for picture in keys]
    windows = joined(((times[first], times[last] if last < len(times) else math.inf) for first, last in starts), 0)
    looked_at = sum(min(end, times[-1]) - start for start, end in windows)
    if looked_at > PRECISE_SHARE * (times[-1] - times[0]):
        return None
    return [(start, None if math.isinf(end) else end) for start, end in windows]


def refusal(file: Path) -> str:
    """Why a file holds no footage at all, without opening it; empty when it may hold some."""
    try:
        about = file.stat()
    except OSError as problem:
        return str(problem.strerror)
    if not stat.S_ISREG(about.st_mode):
        return "it is no file"
    return "" if about.st_size else "the file is empty"


def size_of(file: Path) -> int:
    """0 for what has gone or cannot be asked."""
    with suppress(OSError):
        return file.stat().st_size
    return 0


def camera_of(file: Path) -> str:
    """The name that masks go by: the folder of a recording, above those of dates; of `NAME/captures/still.jpg`, NAME;
    of a clip, wherever it lies, the folder that nas_sync.py gives it: NAME_UUID."""
    if clip := CLIP_NAME.search(file.stem):
        return file.stem[: clip.start() + 23]
    folder = recording_folder(Path(os.path.abspath(file)))  # noqa: PTH100  without `..`
    name = folder.parent.name if folder.name == "captures" else folder.name
    return name.encode(errors="backslashreplace").decode()  # no database takes what is no text


def recording_folder(file: Path) -> Path:
    """The folder of the camera, above those of dates in an archive."""
    return next((part for part in file.parents if not DATE_FOLDER.fullmatch(part.name)), file.parent)


def journals_near(file: Path, zone: tzinfo | None) -> list[Path]:
    """The recorder's journals of the days on which a file may have begun, by its name and its last write."""
    times = [named_sec(file, zone)]
    with suppress(OSError):
        times.append(file.stat().st_mtime)
    folder = file.parent.parent / ".rtsp_recorder" / "journal" / file.parent.name
    days = {time.strftime("%Y-%m-%d", time.gmtime(at + near)) for at in times if at is not None
            for near in (-86400, 0, 86400)}  # fmt: skip
    return [folder / f"{day}.jsonl" for day in sorted(days)]


def named_sec(file: Path, zone: tzinfo | None) -> float | None:
    """The start in the name of a clip or a recording."""
    if found := RHOMBUS_NAME.search(file.stem):
        return float(found[1])
    if found := NAMED_TIME.search(file.stem):
        with suppress(ValueError, OverflowError, OSError):
            named = datetime.strptime("".join(found.group(1, 2)), STILL_TIME)
            return named.replace(tzinfo=timezone.utc if found[3] else zone).timestamp()
    return None


def record_of(file: Path, zone: tzinfo | None) -> tuple[float, str, int]:
    """When a recording begins, in epoch seconds, what says so: sidecar, journal, name or mtime; and how many bytes it
    had when that was written, 0 where nothing tells.

    Names without a zone are in `zone`. mtime is a guess, and of the end: when the file was written last.
    """
    sidecar = read_json(file.with_suffix(".json")) or {}
    for part in ("obtained", "requested"):
        with suppress(KeyError, TypeError, ValueError):
            return float(sidecar[part]["start_ms"]) / 1000, "sidecar", int(sidecar.get("bytes") or 0)
    for journal in journals_near(file, zone):
        with suppress(OSError):
            for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
                if json.dumps(file.name)[1:-1] in line:
                    with suppress(KeyError, TypeError, ValueError):
                        entry = json.loads(line)
                        if entry["kind"] == "segment" and PurePosixPath(entry["file"]).name == file.name:
                            return float(entry["start"]), "journal", int(entry.get("bytes") or 0)
    if (named := named_sec(file, zone)) is not None:
        return named, "name", 0
    try:
        return file.stat().st_mtime, "mtime", 0
    except OSError:
        return 0.0, "unknown", 0


def start_of_scan(scan: Scan, zone: tzinfo | None) -> tuple[float, str]:
    """When it began, and what says so; a file of which only the last write is known, its length before that."""
    began_sec, basis, _ = record_of(scan.file, zone)
    return began_sec - (scan.length_sec if basis == "mtime" else 0), basis


def checked(scan: Scan, zone: tzinfo | None) -> Scan:
    """Unknown, where its record knows a longer file: MPEG-TS, above all, does not tell that its end is missing."""
    with suppress(OSError):
        recorded, here = record_of(scan.file, zone)[2], scan.file.stat().st_size
        if here < recorded:
            cut = f"it is cut off: {here:,} of the {recorded:,} bytes that were recorded are here"
            return replace(scan, reason="; ".join(filter(None, (cut, scan.reason))))
    return scan


def recordings_in(places: Sequence[Path], missed: list[OSError]) -> list[Path]:
    """Files as given; of folders every recording below them, without parts, evidence and dot folders."""
    files: list[Path] = []
    for place in places:
        if not os.path.isdir(place):  # noqa: PTH112  Path raises where a folder is closed
            files.append(place)
            continue
        below = [Path(folder) / name for folder, _, names in os.walk(place, onerror=missed.append) for name in names]
        files += sorted(file for file in below
                        if file.suffix.lower() in RECORDINGS and not EVIDENCE_NAME.match(file.name)
                        and not any(part.startswith(".") for part in file.relative_to(place).parts))  # fmt: skip
    return files


def scan_report(scan: Scan, zone: tzinfo | None) -> dict[str, Any]:
    """One line of --json."""
    began_sec, basis = start_of_scan(scan, zone)
    return {
        "file": str(scan.file), "camera": scan.camera,
        "quality": "unknown" if scan.reason else "ok", "reason": scan.reason,
        "pictures": scan.pictures, "sound": scan.sound, "views": scan.views, "length_sec": round(scan.length_sec, 2),
        "start": iso_time(began_sec), "time_basis": basis,
        "incidents": [{"type": kind, "start_sec": round(start, 2), "end_sec": round(end, 2),
                       "start": iso_time(began_sec + start), "end": iso_time(began_sec + end),
                       **scan.about(kind, (start, end))}
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
            times = f"{clock(one['start_sec'])} to {clock(one['end_sec'])}  {one['end_sec'] - one['start_sec']:8.1f} s"
            line = f"  {one['type']:<11}  {times}  {one['start']}  {', '.join(remarks(one))}"
            sys.stdout.write(f"{line.rstrip()}\n")
    sys.stdout.flush()


def video_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="+", type=Path, help="recordings, or folders of them")
    parser.add_argument("--precise", action="store_true", help="five pictures a second everywhere, not only where the "
                        "key pictures raise a suspicion")  # fmt: skip
    parser.add_argument("--json", action="store_true", default=None, help="JSON Lines, the last one a summary")
    parser.add_argument("--metrics", metavar="FILE", type=Path, help="everything measured goes there, as CSV")
    parser.add_argument("--output", metavar="FILE", type=Path, help="also the page of `report`, about these recordings")
    parser.add_argument("--store", action="store_true", help="keep what is found in analysis.database, once")
    parser.add_argument("--fail_on_incident", action="store_true", help="exit 1 when an incident was found")
    parser.add_argument("--workers", metavar="N", type=int, help="files side by side (default: one per CPU core)")
    parser.add_argument("--scheduler", metavar="URL", help="scan on the Dask cluster of this scheduler: tcp://host:8786")


def video_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Scan recordings side by side and show them in their order."""
    missed: list[OSError] = []
    files = recordings_in(arguments.file, missed)
    at_once = min(arguments.workers or os.cpu_count() or 1, len(files))
    if arguments.workers is not None and arguments.workers < 1:
        raise UsageError("--workers: must be 1 or more")
    if arguments.store and not config["analysis"]["database"]:
        raise UsageError("--store: set analysis.database, where the incidents are to be kept")
    if arguments.store:
        Database(database_of(config["analysis"], Path()))
    refuse_unwritable(arguments.output)
    rules, zone = rules_of(config["analysis"]), parse_zone(config["recording"]["timezone"])
    for camera in config["analysis"]["masks"]:
        mask_of(config["analysis"], camera)
    ffmpeg, counts = find_ffmpeg("looking at recordings"), dict.fromkeys((*TYPES, *rules.views), 0)
    failed, length_sec, reports, told = len(missed), 0.0, [], set[str]()
    for problem in missed:
        log.error("%s: not looked through: %s", problem.filename, problem.strerror)
    with ExitStack() as stack:
        metrics = None
        if arguments.metrics:
            part = stack.enter_context(writable(arguments.metrics))
            metrics = Metrics(stack.enter_context(part.open("w", 1 << 16, "utf-8", "surrogateescape", "")))
        shown = sys.stderr.isatty() and not arguments.quiet
        progress = stack.enter_context(Progress(files)) if shown else None
        scanner = Scanner(ffmpeg, rules, config["analysis"], arguments.precise, 1 if at_once > 1 else 0, metrics,
                          progress=progress)  # fmt: skip
        pool = ThreadPoolExecutor(max(at_once, 1))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # a signal must not wait for a long file
        remote = scan_on_cluster(arguments.scheduler, scanner, files) if arguments.scheduler else None
        stack.callback(remote.close) if remote else None
        for scan in (checked(one, zone) for one in remote or pool.map(scanner.scan, files)):
            if progress:
                progress.finish(scan.file)
            report = scan_report(scan, zone)
            show_scan(report, as_json=bool(arguments.json))
            reports += [report] if arguments.output else []
            if arguments.store and scan.incidents:
                failed += store_scan(scan, zone, config["analysis"], ffmpeg, told)
            length_sec += scan.length_sec
            for kind, _ in scan.incidents:
                counts[kind] += 1
            if report["quality"] == "unknown":
                failed += 1
                log.error("%s: quality unknown: %s", scan.file, scan.reason)
    failed += 1 if arguments.output and not report_of_video(reports, arguments, zone) else 0
    total = sum(counts.values())
    if arguments.json:
        summary = {"files": len(files), "unknown": failed, "length_sec": round(length_sec, 2), "incidents": counts}
        sys.stdout.write(json.dumps({"summary": summary}) + "\n")
    log.info("%d files, %s of footage: %d incidents, %d files unknown", len(files), clock(length_sec), total, failed)
    return Status.PARTIAL if failed or (total and arguments.fail_on_incident) else Status.DONE


def report_of_video(reports: Sequence[Mapping[str, Any]], arguments: argparse.Namespace, zone: tzinfo) -> bool:
    """The page about what was scanned; False when there is nothing that it could show, or not all."""
    survey = Survey(zone)
    try:
        survey.scanned(reports)
        add_found(survey, reports)
        page = write_page(survey, parse_zone(None), arguments.output, arguments.metrics)
    except CannotStart as problem:
        log.error("%s: %s", arguments.output, problem)
        return False
    sys.stdout.write("" if arguments.json else f"{page}\n")
    return not survey.missed


def refuse_unwritable(path: Path | None) -> None:
    if path and (not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK)):
        raise UsageError(f"{path}: cannot be written; name a file in a folder that is there")


@contextmanager
def writable(path: Path) -> Iterator[Path]:
    """part_file, with a sentence where the folder does not take it."""
    refuse_unwritable(path)
    with part_file(path) as part:
        yield part


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
    kind: str = ""  # of a freeze


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
    kind: str = ""

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
                        {"severity": severity_of(name, watch.kind),
                         **({"detail": watch.detail} if watch.detail else {}),
                         **({"freeze_kind": watch.kind} if watch.kind else {})})  # fmt: skip

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

    def silence(self, now_sec: float, detail: str = "") -> list[Event]:
        """Nothing has come since the last sample, or nothing that can be read, and it is `now_sec`."""
        watch = self.watches["no_data"]
        if self.last_sec is None or now_sec - self.last_sec < silent_after_sec(self.steps, self.patience):
            return []
        if watch.phase == "active":
            return []
        self.watches["no_data"] = replace(watch, count=0)
        return [self.open("no_data", self.last_sec, 1, detail, self.last_ref, "")]

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
        watch = replace(watch, known_sec=sample.at_sec, timer_sec=watch.timer_sec + step_sec,
                        kind=sample.kind or watch.kind)  # fmt: skip
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
        while window and not (window[0][2] and sum(one[2] for one in window) / len(window) >= self.patience.bad_share):
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
        from sqlalchemy import URL, create_engine, make_url
        from sqlalchemy.exc import ArgumentError
        from sqlalchemy.pool import NullPool

        shown = mask(place)
        try:
            own = URL.create("sqlite", database=str(Path(place).expanduser().absolute()))  # a path may hold % and #
            address = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql+psycopg://", place)  # whatever it begins with
            url = make_url(address) if "://" in place else own
            for secret in (url.password, *(value for name, value in url.query.items() if "pass" in name)):
                hide_secret(str(secret or ""))
            is_file = url.drivername.startswith("sqlite")
            self.path = Path(url.database) if is_file and url.database else None
            self.shown = shown = str(self.path or url.render_as_string(hide_password=True))
            patience = {"timeout": DATABASE_TIMEOUT_SEC} if is_file else {"connect_timeout": DATABASE_TIMEOUT_SEC}
            self.engine = create_engine(url, poolclass=NullPool, connect_args=patience)
        except ArgumentError as problem:
            raise UsageError(f"analysis.database: {shown!r} is no database address and no path") from problem
        except ImportError as problem:
            raise CannotStart(f"{shown}: needs a package: pip install 'psycopg[binary]'") from problem
        self.table = incident_table()
        self.is_ready = False

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        from sqlalchemy.schema import CreateIndex, CreateTable
        if not self.is_ready:
            if self.path:
                self.path.parent.mkdir(exist_ok=True)  # only this one: a capture folder that is away stays away
            with self.engine.begin() as connection:  # others may do the same at the same time
                connection.execute(CreateTable(self.table, if_not_exists=True))
                for index in self.table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))
            self.is_ready = True
        try:
            with self.engine.begin() as connection:
                yield connection
        except BaseException:
            self.is_ready = False  # the file may have gone with its folder
            raise

    def store(self, incident: Incident) -> dict[str, Any] | None:
        """Insert or update; the metadata before, None for a new row. Another active row of its kind ends here."""
        table, key = self.table, self.table.c.alert_id == incident.alert_id
        row = {"host_name": incident.host_name, "device_id": incident.device_id, "status": incident.status,
               "incident_type": incident.incident_type, "consecutive_count": incident.consecutive_count,
               "start_time": moment(incident.start_sec),
               "end_time": None if incident.end_sec is None else moment(incident.end_sec)}  # fmt: skip
        with self.transaction() as connection:
            if incident.status == "active":
                self.end_others(connection, incident)
            found = connection.execute(table.select().where(key)).mappings().first()
            if found is None:
                connection.execute(table.insert().values(alert_id=incident.alert_id, metadata=incident.metadata, **row))
            else:
                values = {**row, "metadata": merged(found["metadata"], incident.metadata)}
                connection.execute(table.update().where(key).values(values))
        return None if found is None else dict(found["metadata"])

    def end_others(self, connection: Connection, incident: Incident) -> None:
        """What a lost state left active: its end was never seen."""
        columns = self.table.c
        same = (columns.host_name == incident.host_name, columns.device_id == incident.device_id,
                columns.incident_type == incident.incident_type, columns.status == "active",
                columns.alert_id != incident.alert_id)  # fmt: skip
        for row in connection.execute(self.table.select().where(*same)).mappings():
            end_sec = max(epoch_sec(row["start_time"]), incident.start_sec)
            connection.execute(self.table.update().where(columns.alert_id == row["alert_id"]).values(
                {"status": "resolved", "end_time": moment(end_sec),
                 "metadata": merged(row["metadata"], {"superseded_by": incident.alert_id})}))  # fmt: skip

    def add_metadata(self, alert_id: str, values: Mapping[str, Any]) -> bool:
        """Merge `values` into an incident's metadata; False when there is no such incident."""
        key = self.table.c.alert_id == alert_id
        with self.transaction() as connection:
            found = connection.execute(self.table.select().where(key)).mappings().first()
            if found is not None:
                both = {"metadata": merged(found["metadata"], values)}
                connection.execute(self.table.update().where(key).values(both))
        return found is not None

    def read(self, since_sec: float | None = None, until_sec: float | None = None) -> list[Incident]:
        """The incidents that touch the time, in the order of their start."""
        if self.path and not self.path.exists():
            return []
        columns = self.table.c
        query = self.table.select().order_by(columns.start_time)
        if since_sec is not None:
            query = query.where(columns.end_time.is_(None) | (columns.end_time >= moment(since_sec)))
        if until_sec is not None:
            query = query.where(columns.start_time < moment(until_sec))
        with self.transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [Incident(row["alert_id"], row["host_name"], row["device_id"], row["incident_type"], row["status"],
                         row["consecutive_count"], epoch_sec(row["start_time"]),
                         None if row["end_time"] is None else epoch_sec(row["end_time"]), row["metadata"])
                for row in rows]  # fmt: skip


@contextmanager
def reached(place: str, what: str) -> Iterator[Database]:
    """A database for `report` and `incidents`; CannotStart when it cannot be read or written."""
    from sqlalchemy.exc import SQLAlchemyError

    database = Database(place)
    try:
        yield database
    except SQLAlchemyError as problem:
        raise CannotStart(f"{database.shown}: cannot be {what}: {first_line(problem)}") from problem


def read_incidents(place: str, since_sec: float | None = None, until_sec: float | None = None) -> list[Incident]:
    with reached(place, "read") as database:
        return database.read(since_sec, until_sec)


def store_scan(scan: Scan, zone: tzinfo | None, settings: Mapping[str, Any], ffmpeg: str, told: set[str]) -> int:
    """Store what `video` found in one recording, then its evidence; 1 when some of it is left for another run."""
    from sqlalchemy.exc import SQLAlchemyError

    digest, what = hashlib.sha256(), "incidents"
    try:
        with scan.file.open("rb") as handle:
            while block := handle.read(HASH_BLOCK_BYTES):
                digest.update(block)
        database = Database(database_of(settings, scan.file.parent))
        found = video_incidents(scan, digest.hexdigest(), start_of_scan(scan, zone)[0])
        before = [database.store(incident) for incident in found]
        log.info("%s: %d of %d incidents are new in the database", scan.file, before.count(None), len(found))
        what = "evidence"  # all of which is there once an incident names its folder
        lacking = [(one, times) for one, (_, times), known in zip(found, scan.incidents, before, strict=True)
                   if "evidence_dir" not in (known or {})]  # fmt: skip
        return keep_evidence(scan, lacking, database, evidence_folder(settings, scan.file.parent), ffmpeg, told)
    except (OSError, SQLAlchemyError) as problem:
        log.error("%s: %s not stored: %s", scan.file, what, first_line(problem))
        return 1


def video_incidents(scan: Scan, sha256: str, base_sec: float) -> list[Incident]:
    """What `video` found, of a recording that begins at `base_sec`; the same bytes always give the same ids."""
    return [Incident(str(uuid.uuid5(uuid.NAMESPACE_URL, f"{sha256}/{kind}/{round(start_sec * 1000)}")), host_name(),
                     scan.camera, kind, "resolved", 1, base_sec + start_sec, base_sec + end_sec,
                     {"file": str(scan.file), "sha256": sha256, **scan.about(kind, (start_sec, end_sec))})
            for kind, (start_sec, end_sec) in scan.incidents]  # fmt: skip


def remarks(told: Mapping[str, Any]) -> list[str]:
    """What is said of an incident beside its type and times; `told` is its metadata, or what `video --json` says."""
    return [*(["warning"] if told.get("severity") == "warning" else []),
            *([CLOCK_TEXT] if told.get("freeze_kind") == "picture" else []),
            *([str(told["detail"])] if told.get("detail") else []),
            *(["acknowledged"] if "acknowledged_at" in told else [])]  # fmt: skip


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


def evidence_folder(settings: Mapping[str, Any], beside: Path) -> Path:
    """`analysis.evidence_dir`, else with what else is known of the captures or recordings of a folder."""
    configured = settings["evidence_dir"]
    return Path(str(configured)).expanduser() if configured else state_folder(beside) / "evidence"


def evidence_target(incident: Incident, role: str, name: str) -> str:
    """Below the folder of evidence, and below `alerts/` where nas_sync.py takes it, which leaves dot folders out."""
    device = re.sub(r"[^A-Za-z0-9._-]", "_", incident.device_id).lstrip(".") or "_"
    stem = f"{moment(incident.start_sec):%Y%m%dT%H%M%SZ}_{incident.alert_id[:8]}"
    return f"{incident.incident_type}/{device}/{stem}_{role}_{name}"


def evidence_metadata(targets: Mapping[str, str], evidence_dir: Path) -> dict[str, Any]:
    """What an incident says of its evidence: the keys that nas_sync.py upload gives it, by role."""
    keys = {role: f"{EVIDENCE_PREFIX}/{target}" for role, target in targets.items()}
    return {"evidence": keys, "evidence_dir": str(evidence_dir)}


def evidence_letters(event: Event, clip: Sequence[str]) -> list[Letter]:
    """What to copy for an event, as TYPE/DEVICE/… below the evidence folder."""
    incident = event.incident
    roles = {"last_good": event.last_good, "first_bad": event.first_bad, "first_good": event.first_good}
    sources = {role: [ref] for role, ref in roles.items() if ref}
    if clip and event.kind != "resolved":
        sources["clip"] = list(clip)
    letters = []
    for role, refs in sources.items():
        source, shown = Path(split_ref(refs[0])[0]), hashlib.sha256(os.fsencode("\n".join(refs))).hexdigest()[:8]
        target = evidence_target(incident, role, f"{shown}_{source.name}")  # what shows something else is another file
        payload = {"alert_id": incident.alert_id, "role": role, "sources": refs, "target": target}
        letters.append(Letter("evidence", evidence_target(incident, role, source.name), payload))
    return letters


def copy_evidence(folder: Path, evidence_dir: Path, payload: Mapping[str, Any]) -> bool:
    """Copy the sources, one after the other, into the target; False when none of them is there any more.

    MPEG-TS segments may simply follow each other in a file. A target that is there stays as it is: it may be archived.
    """
    target, parts = evidence_dir / payload["target"], []
    if target.exists():
        return True
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the capture folder is away", str(folder))
    for ref in payload["sources"]:
        name, mtime_ns = split_ref(ref)
        source = folder / name
        try:
            content = source.read_bytes()
            if source.stat().st_mtime_ns == mtime_ns:  # asked last, so that nothing was written while it was read
                parts.append(content)
        except FileNotFoundError:
            continue
    if not parts:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with part_file(target) as part:
        part.write_bytes(b"".join(parts))
    return True


def cuts_of(interval: Interval, known_sec: float, length_sec: float,
            back_sec: float) -> dict[str, list[tuple[float, list[str]]]]:  # fmt: skip
    """For each piece of evidence what is tried in turn: where FFmpeg begins to read a recording, and its options.

    It begins `back_sec` early where it cannot be trusted to find the place. The last good picture is the last one that
    is `known_sec` older than the first bad one: what is between was not looked at, or is not sure.
    """

    def still(first_sec: float, until_sec: float, chosen: str, *options: str) -> list[tuple[float, list[str]]]:
        seek_sec = max(0.0, first_sec - back_sec)
        inside = f"gte(t,{first_sec - seek_sec:.3f})*lt(t,{until_sec - seek_sec:.3f})*({chosen})"
        return [(seek_sec, ["-t", f"{until_sec - seek_sec:.3f}", "-map", "0:V:0", "-vf", f"select='{inside}'", "-q:v",
                            "2", "-fps_mode", "passthrough", *options, "-f", "image2", "-update", "1"])]  # fmt: skip

    (start_sec, end_sec), good_sec = interval, interval[0] - known_sec
    seek_sec = max(0.0, start_sec - CLIP_BEFORE_SEC - back_sec)
    first, last = (f"{at - seek_sec:.3f}" for at in (max(0.0, start_sec - CLIP_BEFORE_SEC),
                                                     start_sec - CLIP_BEFORE_SEC + CLIP_SEC))  # fmt: skip
    clip = ["-t", last, "-map", "0:V:0?", "-map", "0:a:0?", "-movflags", "+faststart", "-f", "mp4"]
    trims = ["-vf", f"trim={first}:{last},setpts=PTS-STARTPTS", "-af", f"atrim={first}:{last},asetpts=PTS-STARTPTS"]
    copies = [["-c", "copy"], ["-c:v", "copy", "-c:a", "aac"]] if math.isfinite(back_sec) else []
    often = f"isnan(prev_selected_t)+gte(t-prev_selected_t,{SAMPLE_SEC})"
    after = still(end_sec - JUST_BEFORE_SEC, end_sec + PICTURE_GAP_SEC, "1", "-frames:v", "1")
    return {
        "last_good": still(max(0.0, good_sec - PICTURE_GAP_SEC), good_sec, often) if good_sec > 0 else [],
        "first_bad": still(start_sec - JUST_BEFORE_SEC, end_sec, "1", "-frames:v", "1"),
        "first_good": after if end_sec < length_sec else [],
        "clip": [(seek_sec, [*clip, *coder]) for coder in (*copies, [*CLIP_CODER, *trims])],
    }


def cut(ffmpeg: str, file: Path, seek_sec: float, options: Sequence[str], part: Path) -> bool:
    """Write what FFmpeg makes of a stretch of a recording; False when that is nothing whole.

    Raises OSError when it is the folder that takes nothing.
    """
    command = [ffmpeg, *QUIETLY[:2], "-y", "-loglevel", "fatal", "-protocol_whitelist", "file,pipe,fd",
               "-fflags", "+genpts", *(["-ss", f"{seek_sec:.3f}"] if seek_sec else []),
               "-i", f"file:{file.absolute()}", *options, f"file:{part}"]  # fmt: skip
    is_done = call(command, STALL_SEC)[0]
    with suppress(Unreadable, FileNotFoundError):
        if is_done and "image2" in options and not is_cut(part.read_bytes()):
            return True
        if is_done and "mp4" in options:
            try:
                return bool(list(read_pictures(ffmpeg, part, keys_only=True)))
            except NoStream:
                return bool(measure_sound(ffmpeg, part))
    with part.open("ab") as handle:  # behind what FFmpeg has left: on a full disk this fails too
        handle.write(bytes(HASH_BLOCK_BYTES))
        os.fsync(handle.fileno())
    part.unlink()
    return False


def cut_evidence(scan: Scan, incident: Incident, interval: Interval, evidence_dir: Path, ffmpeg: str) -> dict[str, str]:
    """The evidence of one incident, cut out of its recording: role -> target, where there is such a picture.

    What an earlier run has made is not made again. Raises OSError when the folder does not take it.
    """
    made, name = {}, re.sub(r"[^A-Za-z0-9._-]", "_", scan.file.stem)[:STEM_MOST]
    back_sec = SEEK_BACK_SEC.get(scan.file.suffix.lower(), 0.0)
    known_sec = ONSET_SEC if incident.incident_type == "freeze" else STEP_LEAST_SEC
    for role, tries in cuts_of(interval, known_sec, scan.length_sec, back_sec).items():
        target = evidence_target(incident, role, f"{name}.{'mp4' if role == 'clip' else 'jpg'}")
        with suppress(Unreadable):
            if not (evidence_dir / target).exists():
                (evidence_dir / target).parent.mkdir(parents=True, exist_ok=True)
                with part_file(evidence_dir / target) as part:
                    if not any(cut(ffmpeg, scan.file, seek_sec, options, part) for seek_sec, options in tries):
                        raise Unreadable(role)
            made[role] = target
    return made


def keep_evidence(scan: Scan, lacking: Iterable[tuple[Incident, Interval]], database: Database, evidence_dir: Path,
                  ffmpeg: str, told: set[str]) -> int:  # fmt: skip
    """Cut and note the evidence of a recording's incidents; 1 when the folder did not take it, told once for a run."""
    for incident, interval in lacking:
        try:
            made = cut_evidence(scan, incident, interval, evidence_dir, ffmpeg)
        except OSError as problem:
            log.log(logging.DEBUG if str(evidence_dir) in told else logging.WARNING,
                    "%s: takes no evidence: %s; the incidents are stored, another run tries it again",
                    evidence_dir, problem.strerror or problem)  # fmt: skip
            told.add(str(evidence_dir))
            return 1
        database.add_metadata(incident.alert_id, evidence_metadata(made, evidence_dir))
    return 0


def local_text(at_sec: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at_sec))


def message_of(event: Event, evidence: Sequence[Letter]) -> dict[str, Any]:
    """Subject, text and identity of an alert."""
    incident = event.incident
    where = f"{incident.incident_type} on {incident.device_id}"
    lines = [f"host: {incident.host_name}", f"severity: {incident.metadata['severity']}",
             f"since: {local_text(incident.start_sec)}"]  # fmt: skip
    if event.kind == "resolved" and incident.end_sec is not None:
        subject = f"{where}: over after {incident.end_sec - incident.start_sec:.0f} s"
        lines.append(f"until: {local_text(incident.end_sec)}")
    else:
        subject = f"{where}: {'again' if event.kind == 'reopened' else 'since ' + local_text(incident.start_sec)}"
    is_clock = incident.metadata.get("freeze_kind") == "picture"
    if detail := incident.metadata.get("detail") or (CLOCK_TEXT if is_clock else ""):
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

    def hold_sec(self, incident_type: str) -> float:
        """After this an incident that has ended can no longer be reopened."""
        alarm_sec = self.patience.alarm_sec
        return self.patience.reopen_sec + max(alarm_sec.get(name, 0) for name in (*TYPES, incident_type))

    def channels_for(self, incident_type: str) -> Sequence[str]:
        """Those that are told of it: nobody is woken by what is unsure, unless that is wanted."""
        is_told = incident_type not in VIEW_TYPES or incident_type in self.settings["view_messages"]
        return self.channels if is_told else ()


def patience_of(settings: Mapping[str, Any]) -> Patience:
    """The machine's times; UsageError for what cannot be meant."""
    types = (*TYPES, *settings["views"])
    names = [f"{name}_alarm_sec" for name in types] + ["clear_sec", "reopen_sec", "no_data_alarm_sec"]
    if wrong := [name for name in names if settings[name] < 0]:
        raise UsageError(f"analysis.{wrong[0]}: {settings[wrong[0]]} is less than 0")
    if not 50 < settings["alarm_percent"] <= 100:
        raise UsageError(f"analysis.alarm_percent: {settings['alarm_percent']} is not from 51 to 100")
    if settings["no_data_alarm_sec"] < 1:
        raise UsageError("analysis.no_data_alarm_sec: must be at least 1")
    return Patience({name: settings[f"{name}_alarm_sec"] for name in types}, settings["alarm_percent"] / 100,
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
    signs = (mtime_ns < newest_ns, time.time_ns() - mtime_ns > SEGMENT_LIES_STILL_SEC * 1e9)
    return all(signs) if playlists else any(signs)


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
        self.evidence_dir = evidence_folder(setup.settings, folder)
        self.outbox = Outbox()
        self.is_missing = not folder.exists()
        self.restore()
        self.levels: list[float] = []
        self.sound_sec = -math.inf
        self.heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self.listened: dict[str, int] = {}
        self.listed_segments: dict[str, int] | None = None
        self.ffmpeg = self.deaf = self.trouble = self.blind = ""
        self.waker = Waker()
        self.beat = self.arrived_mono = time.monotonic()
        self.is_live = self.is_leaving = self.is_once = False
        self.is_urgent = self.is_polled = True
        self.again_mono = self.saved_mono = self.noted_mono = self.scan_mono = self.rows_mono = -math.inf
        self.scan_took_sec, self.raised = 0.0, 0
        self.sound_folder: Path | None = None

    def restore(self) -> None:
        """Go on where the last run left off."""
        state = read_json(self.state_file)
        if state is None and self.state_file.exists():
            log.warning("%s: is damaged; begun anew", self.state_file)
        state = state if state is not None and state.get("schema") == STATE_SCHEMA else {}
        self.machine = IncidentMachine(self.setup.host, self.device, self.setup.patience, state.get("machine"))
        self.stills, self.segments = Seen(state.get("stills")), Seen(state.get("segments"))
        self.outbox.restore(state.get("outbox", ()))
        self.reader = StillReader(self.setup.rules, mask_of(self.setup.settings, self.device))
        self.reader.keeper.restore(read_json(self.state_file.with_name(VIEW_NAME)))
        is_known = self.reader.meter.restore(state.get("picture") or {})
        self.first_sec: float | None = -math.inf if is_known else None

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
                if STILL_NAME.fullmatch(entry.name) and entry.is_file():
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
                if STILL_NAME.fullmatch(name) and (self.folder / name).is_file():
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
        ref, self.blind = f"{name}@{mtime_ns}", still.reason
        if still.quality == "ok":
            self.note_clock(at_sec)
            events = self.machine.arrived(at_sec, ref)
        else:  # as good as none
            log.debug("%s: %s", path, still.reason)
            events = self.machine.silence(at_sec, self.blind)
        events += self.machine.observe("blackscreen", Sample(at_sec, still.blackscreen, ref))
        frozen = self.settled_freeze(still)
        events += self.machine.observe("freeze", Sample(at_sec, frozen, ref, still.freeze_since_sec,
                                                        kind=still.freeze_kind))  # fmt: skip
        for kind in VIEW_TYPES:
            if kind in still.views or self.machine.watches[kind].phase != "ok":  # switched off meanwhile: it is over
                events += self.machine.observe(kind, Sample(at_sec, still.views.get(kind, False), ref))
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
            for entry in (entry for entry in entries if entry.is_file()):
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
            name = incident.incident_type
            post(event, self.outbox, self.setup.channels_for(name), letters, self.setup.hold_sec(name))
            self.raised += event.kind != "resolved"
            self.is_urgent = True

    def look_for_silence(self) -> None:
        """No still has come for too long; by our own clock, so that a jump of the system's is no outage."""
        if self.machine.last_sec is None:
            self.machine.last_sec, self.arrived_mono = time.time(), time.monotonic()
        elif not self.is_live:  # since when nothing has come, only the clock can tell
            self.arrived_mono = time.monotonic() - max(0.0, time.time() - self.machine.last_sec)
        self.tell(self.machine.silence(self.machine.last_sec + time.monotonic() - self.arrived_mono, self.blind))

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

    def leave(self) -> None:
        """At the end, at once, also where it failed a moment ago."""
        self.is_urgent, self.is_leaving, self.again_mono = True, True, -math.inf
        self.save_if_due()

    def save(self) -> None:
        self.outbox.is_changed = False
        state = {"schema": STATE_SCHEMA, "machine": self.machine.state(), "stills": self.stills.state(),
                 "segments": self.segments.state(), "picture": self.reader.meter.state(is_last=self.is_leaving),
                 "outbox": [asdict(letter) for letter in self.outbox.waiting()]}  # fmt: skip
        try:
            self.state_file.parent.mkdir(parents=False, exist_ok=True)
            write_json(self.state_file, state)
            if self.reader.keeper.is_changed:
                write_json(self.state_file.with_name(VIEW_NAME), self.reader.keeper.state())
                self.reader.keeper.is_changed = False
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
        return {"schema": 1, "analysed_until_sec": until_sec, "awaiting": sorted(names), "once": self.is_once}


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
            metadata = evidence_metadata({payload["role"]: payload["target"]}, place.evidence_dir)
            place.outbox.put(Letter("database", f"evidence {payload['target']}",
                                    {"alert_id": payload["alert_id"], "metadata": metadata}))  # fmt: skip
        else:
            log.warning("%s: evidence lost, the capture has been removed: %s", place.device, payload["target"])
    else:
        channel = channels(place.setup.notify).get(letter.channel)
        if channel is None:
            raise OSError("is no longer configured")
        send_message(channel, **letter.payload)


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
                place.beat = math.inf  # nobody waits for it any more
                return
            except CannotStart as problem:
                log.warning("%s; tried again", problem)
                place.stopping.wait(KEPT_AWAY_SEC)
            except Exception:
                log.exception("%s: this is a bug in the program, going on", place.folder)
                place.stopping.wait(KEPT_AWAY_SEC)
            place.beat = time.monotonic()
            place.waker.wake.wait(TICK_SEC)
        place.leave()

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
                 tuple(channels(config["notify"])), threading.BoundedSemaphore(os.cpu_count() or 1))  # fmt: skip


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
            except CannotStart as problem:
                if len(folders) == 1:
                    raise
                log.error("%s", problem)
                place.is_missing = True  # which a service tries to take again
                places.append(place)
        if not places and busy:
            raise busy
        yield places


def monitor_folders(folders: Sequence[Path], config: Mapping[str, Any], stopping: threading.Event,
                    tell: Callable[[str], object] = tell_systemd) -> int:  # fmt: skip
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
        tell("READY=1")
        while not stopping.wait(WATCHDOG_EVERY_SEC):
            if not any(thread.is_alive() for thread in threads[: len(places)]):
                raise Busy("every folder is watched by another run")
            if all(time.monotonic() - place.beat < WATCHDOG_QUIET_SEC for place in places):
                tell("WATCHDOG=1")
        tell("STOPPING=1")
        deadline = time.monotonic() + STOP_WITHIN_SEC
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        observer.stop()
    return Status.DONE


def monitor_once(folders: Sequence[Path], config: Mapping[str, Any], stopping: threading.Event,
                 fail_on_incident: bool = False) -> int:  # fmt: skip
    """Look at what is new, deliver what is due, end: for cron. What could not be delivered waits for the next run."""
    setup = make_setup(config)
    with taken(folders, setup, stopping) as every:
        places = [place for place in every if not (place.is_missing and place.folder.exists())]  # those not locked
        failed = len(places) < len(every)
        for place in places:
            place.is_once = True
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
            place.noted_mono = -math.inf
            place.leave()
            failed = failed or bool(place.trouble) or place.is_urgent or place.outbox.is_changed  # state not written
    raised, active = sum(place.raised for place in places), sum(len(place.machine.active()) for place in places)
    log.info("%d incident%s raised, %d active", raised, "" if raised == 1 else "s", active)
    return Status.PARTIAL if failed or (fail_on_incident and (raised or active)) else Status.DONE


def monitor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", nargs="*", type=Path,
                        help="capture folders (default: analysis.capture_dirs)")  # fmt: skip
    parser.add_argument("--once", action="store_true", help="look at what is new, then end (for cron)")
    parser.add_argument("--fail_on_incident", action="store_true",
                        help="with --once: exit 1 when an incident is active, or was raised meanwhile")  # fmt: skip


def monitor_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """SIGTERM and SIGHUP are the ordinary end of a service, SIGINT is 130."""
    stopping = threading.Event()
    if arguments.fail_on_incident and not arguments.once:
        raise UsageError("--fail_on_incident: goes with --once; a service tells its incidents through notify")
    with signals_as(stopping) as signals:
        folders = watched_folders(arguments.folder, config["analysis"])
        status = (monitor_once(folders, config, stopping, arguments.fail_on_incident) if arguments.once
                  else monitor_folders(folders, config, stopping))  # fmt: skip
    return Status.SIGINT if signal.SIGINT in signals else status


# --- incidents on the command line


def incidents_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "show", "ack", "export"),
                        help="list, show or acknowledge incidents, or export them all as CSV")  # fmt: skip
    parser.add_argument("which", metavar="ID|FOLDER", nargs="*", help="the beginning of an id will do; the captures "
                        "beside which they are kept (default: analysis.capture_dirs)")  # fmt: skip
    parser.add_argument("--since", metavar="TIME", help="from when on (default: the first)")
    parser.add_argument("--until", metavar="TIME", help="until when (default: now)")
    parser.add_argument("--json", action="store_true", default=None, help="JSON Lines, the last one a summary")


def databases(given: Sequence[Path], settings: Mapping[str, Any]) -> list[str]:
    """The configured one, else those beside the captures."""
    if given and settings["database"]:
        raise UsageError(f"{given[0]}: incidents are kept in analysis.database, not there; name no folder")
    folders = [Path()] if settings["database"] else watched_folders(given, settings)
    return list(dict.fromkeys(database_of(settings, folder) for folder in folders))


def row_of(incident: Incident) -> dict[str, Any]:
    """As the table has it, with times that can be read."""
    ended = None if incident.end_sec is None else moment(incident.end_sec).isoformat()
    values = asdict(incident) | {"start_time": moment(incident.start_sec).isoformat(), "end_time": ended}
    return {name: values[name] for name in INCIDENT_COLUMNS}


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
    """`show` and `ack` need to be told which; the others take all that there are."""
    since_sec, until_sec = parse_span(arguments, parse_zone(None))
    folders = [word for word in arguments.which if os.sep in word or Path(word).is_dir()]
    wanted = [word for word in arguments.which if word not in folders]
    if arguments.action in ("show", "ack") and not wanted:
        raise UsageError(f"incidents {arguments.action}: name at least one id")
    found = [(place, incident) for place in databases([Path(folder) for folder in folders], config["analysis"])
             for incident in read_incidents(place, since_sec, until_sec)]  # fmt: skip
    found.sort(key=lambda pair: pair[1].start_sec)
    found = chosen(found, wanted) if wanted else found
    if arguments.action == "ack":
        values = {"acknowledged_at": moment(time.time()).isoformat(timespec="seconds"), "acknowledged_by": host_name()}
        for place, incident in found:
            with reached(place, "written") as database:
                database.add_metadata(incident.alert_id, values)
            log.info("%s acknowledged", incident.alert_id)
        return Status.DONE
    show_incidents([incident for _place, incident in found], arguments)
    log.info("%d incidents, %d of them active", len(found), sum(one.status == "active" for _place, one in found))
    return Status.DONE


def show_incidents(incidents: Sequence[Incident], arguments: argparse.Namespace) -> None:
    """To stdout: a table, all there is about each, CSV, or JSON Lines."""
    rows = [row_of(incident) for incident in incidents]
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
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
            print(f"{incident.alert_id[:8]}  {local_text(incident.start_sec)}  {end:>8}  {incident.incident_type:<11}  "
                  f"{incident.device_id}  {', '.join(remarks(incident.metadata))}".rstrip())  # fmt: skip


# --- capture -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grabber:
    """A v4l2/ALSA capture device, or what stands in for it. `video` may hold a password and is shown nowhere."""

    name: str
    kind: str  # device, rtsp, file or test
    video: str = field(repr=False)
    audio: str  # ALSA device, empty for the sound that comes with the video, none for no sound
    folder: Path  # of output.m3u8 and segment_*.ts; stills are in captures/ below it
    fps: float
    stills_per_sec: float
    stall_sec: float
    bitrate: str
    size: str  # WIDTHxHEIGHT that the device is asked for, empty for its own
    input_format: str  # that the device is asked for, such as mjpeg

    @property
    def captures(self) -> Path:
        return self.folder / "captures"

    @property
    def staging(self) -> Path:
        return self.captures / STATE_FOLDER / "staging"


def kind_of_source(video: str) -> str:
    if re.match(r"(?i)rtsps?://", video):
        return "rtsp"
    if video == "test" or video.startswith("/dev/"):
        return "test" if video == "test" else "device"
    return "file"


def with_login(address: str) -> str:
    """An RTSP address with a percent-encoded login: its own, else RTSP_USER and RTSP_PASSWORD; hides the password."""
    scheme, _, rest = address.partition("://")
    login, _, place = rest.rpartition("@")
    user, _, password = login.partition(":")
    user = unquote(user) or os.environ.get("RTSP_USER", "")
    password = unquote(password) or os.environ.get("RTSP_PASSWORD", "")
    hide_secret(password)
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    return f"{scheme.lower()}://{login}{'@' if login else ''}{place}"


def settle_grabber(given: Any, settings: Mapping[str, Any]) -> Grabber:
    """One entry of `capture.grabbers`: a map of keys, or the older "video_device|audio_device|capture_dir|fps"."""
    if not isinstance(given, Mapping):
        parts = str(given).rsplit("|", 3)
        if len(parts) != 4:
            raise UsageError(f"grabber {mask(str(given))!r}: expected video_device|audio_device|capture_dir|fps")
        given = dict(zip(("video_device", "audio_device", "capture_dir", "fps"), parts, strict=True))
    own = {name: str(value).strip() for name, value in given.items() if value is not None}
    if not own.get("capture_dir") or not own.get("video_device"):
        missing = "video_device" if own.get("capture_dir") else "capture_dir"
        raise UsageError(f"grabber {own.get('name') or mask(own.get('video_device', '?'))}: it has no {missing}")
    folder = absolute(own["capture_dir"])
    folder = folder.parent if folder.name == "captures" else folder
    name, kind = own.get("name") or folder.name, kind_of_source(own["video_device"])
    where, numbers = f"grabber {name}", {}
    for key, text in (("fps", own.get("fps") or "25"), ("stills_per_sec", str(settings["stills_per_sec"]))):
        try:
            numbers[key] = float(text)
        except ValueError as problem:
            raise UsageError(f"{where}: {key} {text!r} is no number") from problem
    if not 1 <= numbers["fps"] <= 240:
        raise UsageError(f"{where}: fps {numbers['fps']:g} is not from 1 to 240")
    if not 0 < numbers["stills_per_sec"] <= numbers["fps"]:
        raise UsageError(f"{where}: capture.stills_per_sec is not more than 0 and at most fps")
    if settings["stall"] <= 0:
        raise UsageError(f"capture.stall: {settings['stall']} is not more than 0")
    if own.get("size") and not re.fullmatch(r"\d+x\d+", own["size"]):
        raise UsageError(f"{where}: size {own['size']!r} is not of the form 1280x720")
    if not re.fullmatch(r"\d+[kM]?", str(settings["bitrate"])):
        raise UsageError(f"capture.bitrate: {settings['bitrate']!r} is not of the form 2M or 800k")
    if kind == "file" and not Path(own["video_device"]).expanduser().is_file():
        raise UsageError(f"{where}: {own['video_device']}: is no device, no file, no rtsp:// address and not 'test'")
    video = with_login(own["video_device"]) if kind == "rtsp" else own["video_device"]
    video = os.path.abspath(Path(video).expanduser()) if kind == "file" else video  # noqa: PTH100
    return Grabber(name=name, kind=kind, video=video, audio=own.get("audio_device", ""), folder=folder,
                   fps=numbers["fps"], stills_per_sec=numbers["stills_per_sec"],
                   stall_sec=float(settings["stall"]), bitrate=str(settings["bitrate"]),
                   size=own.get("size", ""), input_format=own.get("input_format", ""))  # fmt: skip


def settle_grabbers(wanted: Sequence[str], settings: Mapping[str, Any]) -> list[Grabber]:
    """All grabbers of the config, or those wanted: by name, or described in the older form with `|`."""
    known = [settle_grabber(entry, settings) for entry in settings["grabbers"]]
    chosen = []
    for text in wanted:
        named = [grabber for grabber in known if grabber.name == text]
        if not named and "|" not in text:
            names = ", ".join(grabber.name for grabber in known) or "none"
            raise UsageError(f"{text}: no such grabber in capture.grabbers; there is {names}")
        if "|" in text and re.match(r"(?i)rtsps?://[^|]*:[^|@]*@", text):
            hide_secret(text.partition("@")[0].rpartition(":")[2])
            log.warning("a password on the command line can be seen by others; better set RTSP_PASSWORD")
        chosen += named or [settle_grabber(text, settings)]
    chosen = chosen or known
    if not chosen:
        raise UsageError("no grabber: set capture.grabbers, or try it with 'test||/tmp/capture1|5'")
    places = [str(one.folder) for one in chosen]
    for what, values in (("name", [one.name for one in chosen]), ("capture_dir", places)):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise UsageError(f"capture.grabbers: two have the {what} {', '.join(twice)}")
    return chosen


def source_options(grabber: Grabber, with_sound: bool) -> list[str]:
    """What FFmpeg reads. An RTSP address stands in the text on its stdin: on the command line all could see it."""
    asked = [("-input_format", grabber.input_format), ("-video_size", grabber.size), ("-framerate", f"{grabber.fps:g}")]
    device = ["-f", "v4l2", "-thread_queue_size", "256", *(word for pair in asked if pair[1] for word in pair)]
    pattern = f"testsrc2=size={grabber.size or '1280x720'}:rate={grabber.fps:g}[out0];sine=sample_rate=48000[out1]"
    video = {
        "device": [*device, "-i", grabber.video],
        "rtsp": ["-f", "concat", "-safe", "0", "-protocol_whitelist", "pipe,file,fd,rtsp,rtp,tcp,udp,tls",
                 "-i", "pipe:0"],
        "file": ["-re", "-stream_loop", "-1", "-i", f"file:{grabber.video}"],
        "test": ["-re", "-f", "lavfi", "-i", pattern],
    }[grabber.kind]  # fmt: skip
    has_own = with_sound and is_alsa(grabber)
    return [*video, *(["-f", "alsa", "-thread_queue_size", "1024", "-i", grabber.audio] if has_own else [])]


def is_alsa(grabber: Grabber) -> bool:
    return grabber.audio not in ("", "none", "test")


def ffmpeg_capture(ffmpeg: str, grabber: Grabber, encoder: str, *, with_sound: bool) -> list[str]:
    """One FFmpeg for HLS, stills and thumbnails, started in a staging folder that the stills are written into.

    A still is the first picture of each second of the host's clock (`time(0)`), whatever the rate of the source, and
    whichever way the clock is set meanwhile.
    """
    every = f"floor(time(0)*{grabber.stills_per_sec:g})"
    graph = (f"[0:v:0]split=2[all][some];[all]fps={grabber.fps:g},format=yuv420p[hls];"
             f"[some]select='if(eq({every},ld(0)),0,st(0,{every});1)',split=2[still][large];"
             f"[large]scale={THUMBNAIL_WIDTH}:-2[thumbnail]")  # fmt: skip
    software = ["-preset", "veryfast", "-tune", "zerolatency", "-crf", "23", "-maxrate", grabber.bitrate,
                "-bufsize", grabber.bitrate]  # fmt: skip
    coded = ["-c:v", encoder, *(software if encoder == "libx264" else ["-b:v", grabber.bitrate])]
    sound = [] if grabber.audio == "none" else ["-map", "1:a:0" if is_alsa(grabber) else "0:a:0?"]
    folder = str(grabber.folder).replace("%", "%%")
    # With more than one thread the encoder gives a still out only when the next one comes, a second later.
    as_stills = ["-fps_mode", "passthrough", "-threads", "1", "-q:v", "3", "-f", "image2", "-atomic_writing", "1"]
    return [
        ffmpeg, "-hide_banner", "-loglevel", "level+warning", "-nostats", "-stats_period", "0.5", "-progress", "pipe:1",
        *([] if grabber.kind == "rtsp" else ["-nostdin"]), *source_options(grabber, with_sound),
        "-filter_complex", graph, "-map", "[hls]", *(sound if with_sound else []), *coded,
        "-g", f"{math.ceil(grabber.fps * HLS_SEC)}", "-force_key_frames", f"expr:gte(t,n_forced*{HLS_SEC})",
        "-c:a", "aac", "-f", "hls", "-hls_time", str(HLS_SEC), "-hls_list_size", str(HLS_LIST),
        "-hls_flags", "append_list+omit_endlist+temp_file", "-hls_start_number_source", "epoch",
        "-hls_segment_filename", f"{folder}/segment_%d.ts", f"{grabber.folder}/output.m3u8",
        "-map", "[still]", *as_stills, "%d.jpg", "-map", "[thumbnail]", *as_stills, "%d_thumbnail.jpg",
    ]  # fmt: skip


def rtsp_text(grabber: Grabber) -> bytes:
    """For FFmpeg's stdin: the address, TCP, and 10 s of patience with a silent connection."""
    address = grabber.video.replace("'", r"'\''")
    return (f"ffconcat version 1.0\nfile '{address}'\noption rtsp_transport tcp\noption timeout 10000000\n"
            "option use_wallclock_as_timestamps 1\n").encode()  # fmt: skip


def encodes(ffmpeg: str, encoder: str) -> bool:
    """Whether an encoder really makes frames here: that FFmpeg lists it says nothing about the hardware."""
    command = [ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "quiet", "-progress", "pipe:1", "-f", "lavfi",
               "-i", "testsrc2=size=640x480:rate=25", "-frames:v", "5", "-pix_fmt", "yuv420p", "-c:v", encoder,
               "-f", "null", "-"]  # fmt: skip
    is_done, told = call(command, PROBE_TIMEOUT_SEC)
    return is_done and b"frame=5" in told.replace(b" ", b"")


def choose_encoder(ffmpeg: str, wanted: str) -> str:
    """`capture.encoder`; with auto the first of the hardware encoders that works, else libx264."""
    if wanted != "auto":
        if not encodes(ffmpeg, wanted):
            raise CannotStart(f"capture.encoder {wanted}: {ffmpeg} cannot encode with it here")
        return wanted
    return next((one for one in HARDWARE_ENCODERS if encodes(ffmpeg, one)), "libx264")


def device_nodes(grabber: Grabber) -> list[Path]:
    """The files below /dev that stand for its devices; of ALSA names only those with numbers tell them."""
    found = re.search(r"hw:(\d+)(?:,(\d+))?", grabber.audio)
    sound = [Path(f"/dev/snd/pcmC{found[1]}D{found[2] or 0}c")] if found else []
    return [*([Path(grabber.video)] if grabber.kind == "device" else []), *sound]


def holders_of(path: Path) -> list[tuple[int, str]]:
    """(process, its name) of who has a file or device open; those of other users are seen by root only."""
    found = []
    try:
        wanted = path.stat()
    except OSError:
        return []
    for process in (entry for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        with suppress(OSError):  # it has ended, or is another user's
            for handle in (process / "fd").iterdir():
                with suppress(OSError):
                    one = handle.stat()
                    is_same = (one.st_dev, one.st_ino) == (wanted.st_dev, wanted.st_ino)
                    is_device = stat.S_ISCHR(wanted.st_mode) and stat.S_ISCHR(one.st_mode)
                    if is_same or (is_device and one.st_rdev == wanted.st_rdev):
                        name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                        found.append((int(process.name), name))
    return sorted({(process, name) for process, name in found if process != os.getpid()})


def busy_sentence(grabber: Grabber, lines: Sequence[str]) -> str | None:
    """Who holds a device that FFmpeg could not open; None when nobody does."""
    for node in device_nodes(grabber):
        if held := holders_of(node):
            names = ", ".join(f"{name} (process {process})" for process, name in held)
            return f"{grabber.name}: {node} is in use by {names}; end that, or leave this grabber out"
    if any("Device or resource busy" in line for line in lines):
        return f"{grabber.name}: {grabber.video} is in use by a process that this user cannot see"
    return None


def writers_in(staging: Path) -> list[int]:
    """FFmpegs of a capture that was killed: they were started in a folder below `staging`, so they are ours."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            folder = (entry / "cwd").readlink()
            if folder.parent == staging and b"_thumbnail.jpg" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def still_names(taken_sec: float) -> Iterator[str]:
    """`capture_YYYYMMDDHHMMSS`, then with _1, _2, ...: for a second that has a still, the hour that comes twice too."""
    stem = f"capture_{datetime.fromtimestamp(math.floor(taken_sec)).strftime(STILL_TIME)}"
    return (f"{stem}_{number}" if number else stem for number in itertools.count())


def publish_still(still: Path, thumbnail: Path | None, folder: Path, taken_sec: float) -> Path:
    """Give a finished still the first free name, its thumbnail first; never overwrites a still.

    A crash at any instant may be followed by the same call. Without links (exFAT, SMB) it is a rename.
    """
    for final in (folder / f"{stem}.jpg" for stem in still_names(taken_sec)):
        small = thumbnail_of(final)
        if os.path.lexists(final) and not (final.exists() and final.samefile(still)):
            continue
        if thumbnail and thumbnail.exists():
            if os.path.lexists(small) and not (small.is_file() and small.read_bytes() == thumbnail.read_bytes()):
                continue  # somebody else's
            thumbnail.replace(small)
        try:
            os.link(still, final)
        except FileExistsError:
            if not final.samefile(still):
                continue
        except OSError as problem:
            if problem.errno not in NO_LINKS:
                raise
            still.rename(final)
        still.unlink(missing_ok=True)
        return final
    raise AssertionError("names do not end")


class CaptureRun:
    """One FFmpeg from its start to its end, and what it said meanwhile."""

    def __init__(self, command: Sequence[str], folder: Path, text: bytes) -> None:
        self.folder = folder
        self.last_rise = time.monotonic()
        self.frames = 0
        self.stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._rest: dict[int, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE if text else subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                                        env={**os.environ, "AV_LOG_FORCE_NOCOLOR": "1"})  # fmt: skip
        assert self.process.stdout and self.process.stderr
        self.pipes = (self.process.stdout, self.process.stderr)
        for pipe, take in zip(self.pipes, (self._take_progress, self._take_stderr), strict=True):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe.fileno(), selectors.EVENT_READ, take)
        if self.process.stdin:
            with suppress(BrokenPipeError):  # it has ended already; its stderr says why
                self.process.stdin.write(text)
                self.process.stdin.close()

    def _take_progress(self, line: str) -> None:
        name, _, value = line.partition("=")
        if name == "frame" and value.strip().isdigit() and int(value) > self.frames:
            self.frames, self.last_rise = int(value), time.monotonic()

    def _take_stderr(self, line: str) -> None:
        if line.strip() and "deprecated pixel format" not in line:
            self.stderr.append(mask(line.strip()))

    def poll(self, timeout_sec: float) -> bool:
        """Read what FFmpeg says; False once it has ended and everything is read."""
        for key, _ in self._selector.select(timeout_sec) if self._selector.get_map() else []:
            data = os.read(key.fd, 65536)
            if not data:
                self._selector.unregister(key.fd)
            *lines, rest = (self._rest.get(key.fd, b"") + data).split(b"\n")
            self._rest[key.fd] = rest[-65536:]
            for line in lines:
                key.data(line.decode("utf-8", "replace"))
        return bool(self._selector.get_map())

    def stop(self) -> None:
        """TERM lets FFmpeg finish its files; one that waits for its source needs the second; then KILL."""
        for what in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                break
            self.process.send_signal(what)
            until = time.monotonic() + STOP_STEP_SEC
            while self.process.poll() is None and time.monotonic() < until:
                self.poll(0.05)
        self.process.wait()
        while self.poll(0):
            pass
        self._selector.close()
        for pipe in self.pipes:
            pipe.close()


def quotable(line: str) -> str:
    """What FFmpeg said, for a log line that is no ERROR: people search logs for that word."""
    return re.sub("(?i)error", "failure", re.sub(r"\[[^\]]*\] ", "", line))


def capture_wait_sec(attempt: int, down_sec: float, said: str) -> float:
    """Seconds until the next attempt; a refused login is asked for rarely, so that no account is locked."""
    if re.search(r"\b40[134]\b|(?i:unauthori[sz]ed)", said):
        return RETRY_REFUSED_SEC
    return RETRY_SLOW_SEC if down_sec > RETRY_FAST_FOR_SEC else min(CAPTURE_RETRY_MAX_SEC, 1.3 ** min(attempt, 20))


class Capturer:
    """Keeps one grabber captured until it is told to stop. `work` is the whole life of its thread."""

    def __init__(self, grabber: Grabber, ffmpeg: str, encoder: str, stopping: threading.Event) -> None:
        self.grabber, self.ffmpeg, self.encoder, self.stopping = grabber, ffmpeg, encoder, stopping
        self.beat = self.down_since = time.monotonic()
        self.busy: str | None = None  # as long as it has never captured: who has the device
        self.stills = self.attempt = 0
        self.with_sound, self.sound_due = True, math.inf
        self.said, self.runs = "", itertools.count(1)
        self.left: list[Path] = []  # folders of stills that could not be published

    def work(self) -> None:
        steps = [self.take_over, self.one_run]
        while not self.stopping.is_set():
            try:
                problem = steps[0]()
                steps = steps[-1:]
            except OSError as failure:
                problem = f"{failure.filename or self.grabber.folder}: {failure.strerror}"
            except Exception:  # noqa: BLE001  a bug must not end the capture of a grabber for ever
                log.exception("%s: this is a bug in the program", self.grabber.name)
                problem = "a bug in the program"
            if self.stopping.is_set():
                return
            down_sec = time.monotonic() - self.down_since
            wait_sec = capture_wait_sec(self.attempt, down_sec, problem) if problem else 0.0
            self.attempt += 1
            if problem and problem != self.said:
                log.warning("%s: not capturing: %s; trying again", self.grabber.name, problem)
                self.said = problem
            until = time.monotonic() + wait_sec
            while time.monotonic() < until and not self.stopping.wait(0.2):
                self.beat = time.monotonic()

    def take_over(self) -> str:
        """Stills that a killed capture left are published; an FFmpeg of it that still runs is ended first."""
        self.grabber.staging.mkdir(parents=True, exist_ok=True)
        staging = self.grabber.staging
        end_processes(lambda: writers_in(staging), str(staging), "capture", STOP_STEP_SEC)
        for folder in sorted(self.grabber.staging.iterdir()):
            self.publish(folder)
            self.tidy(folder)
        return ""

    def one_run(self) -> str:
        """One FFmpeg from start to end; what went wrong, empty when there is nothing to wait for."""
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        folder = self.grabber.staging / f"{stamp}-{os.getpid()}-{next(self.runs)}"
        folder.mkdir(parents=True)
        command = ffmpeg_capture(self.ffmpeg, self.grabber, self.encoder, with_sound=self.with_sound)
        current = CaptureRun(command, folder, rtsp_text(self.grabber) if self.grabber.kind == "rtsp" else b"")
        ours = None
        try:
            while current.poll(CAPTURE_TICK_SEC) and ours is None:
                self.publish(folder)
                self.publish_left()
                ours = self.verdict(current)
            lines = list(current.stderr)  # not what our TERM makes it say
        finally:
            current.stop()
            try:
                self.publish(folder)
            except OSError:
                self.left.append(folder)
                raise
            self.tidy(folder)
        if ours is not None:
            return ours
        return self.explain(current, lines)

    def tidy(self, folder: Path) -> None:
        """Remove what an FFmpeg that has ended did not finish; nobody else writes there, the lock is ours."""
        shutil.rmtree(folder, ignore_errors=True)
        for segment in self.grabber.folder.glob("segment_*.ts*"):
            with suppress(OSError):
                if segment.suffix == ".tmp" or not segment.stat().st_size:
                    segment.unlink()

    def verdict(self, current: CaptureRun) -> str | None:
        """Why the running FFmpeg has to end now, None while all is well."""
        self.beat = now = time.monotonic()
        if self.stopping.is_set():
            return ""
        if current.frames and self.said != "capturing":
            log.info("%s: capturing to %s, %s%s", self.grabber.name, self.grabber.folder, self.encoder,
                     "" if self.with_sound else ", without sound")  # fmt: skip
            self.said = "capturing"
        if current.frames:
            self.down_since, self.busy, self.attempt = current.last_rise, None, 0
        silent_sec = now - current.last_rise
        if silent_sec > (self.grabber.stall_sec if current.frames else FIRST_FRAME_SEC):
            return f"no picture for {silent_sec:.0f} s"
        if now > self.sound_due:
            self.sound_due = now + SOUND_RETRY_SEC
            if self.sound_works():
                self.with_sound, self.sound_due = True, math.inf
                return ""
        return None

    def explain(self, current: CaptureRun, lines: Sequence[str]) -> str:
        """Of an FFmpeg that ended by itself; sound that cannot be opened is left out from now on."""
        told = [line for line in lines if re.search(r"\[(error|fatal)\]", line)] or [*lines[-1:]] or ["FFmpeg ended"]
        held = None if current.frames else busy_sentence(self.grabber, lines)
        sound = [line for line in lines if re.search(r"\[alsa|'alsa'", line)]
        if sound and self.with_sound and is_alsa(self.grabber) and not current.frames:
            log.warning("%s: going on without sound: %s", self.grabber.name, held or quotable(sound[0]))
            self.with_sound, self.sound_due = False, time.monotonic() + SOUND_RETRY_SEC
            return ""
        if held:
            self.busy = None if self.stills else held
            return held.partition(": ")[2]
        return quotable(told[-1])

    def sound_works(self) -> bool:
        command = [self.ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "quiet", "-f", "alsa", "-i",
                   self.grabber.audio, "-t", "0.1", "-f", "null", "-"]  # fmt: skip
        return call(command, STOP_STEP_SEC)[0]

    def publish(self, folder: Path) -> None:
        """Stills whose thumbnail is there as well get their names; the time is that of their writing."""
        names = {entry.name for entry in os.scandir(folder)}
        numbers = sorted(int(name[:-4]) for name in names if name[:-4].isdigit() and name.endswith(".jpg"))
        for number in numbers:
            if f"{number}_thumbnail.jpg" in names:
                still = folder / f"{number}.jpg"
                publish_still(still, folder / f"{number}_thumbnail.jpg", self.grabber.captures, still.stat().st_mtime)
                self.stills += 1

    def publish_left(self) -> None:
        """Those that an earlier run had to leave, if the folder takes them by now."""
        for folder in [*self.left]:
            with suppress(OSError):
                self.publish(folder)
                shutil.rmtree(folder, ignore_errors=True)
                self.left.remove(folder)


def check_devices(ffmpeg: str, grabbers: Sequence[Grabber]) -> None:
    """CannotStart when this FFmpeg was built without what a grabber needs."""
    if all(grabber.kind != "device" and not is_alsa(grabber) for grabber in grabbers):
        return
    told = call([ffmpeg, "-hide_banner", "-devices"], PROBE_TIMEOUT_SEC)[1].decode(errors="replace")
    for grabber in grabbers:
        needs = [*(["v4l2"] if grabber.kind == "device" else []), *(["alsa"] if is_alsa(grabber) else [])]
        for device in needs:
            if not re.search(rf"(?m)^ D.*\b{device}\b", told):
                raise CannotStart(f"{grabber.name}: {ffmpeg} was built without {device}; install your system's ffmpeg")


def capture_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grabber", metavar="GRABBER", nargs="*",
                        help="names of capture.grabbers (default: all), or video_device|audio_device|capture_dir|fps "
                             "with a file, an rtsp:// address or 'test' in place of the device")  # fmt: skip
    parser.add_argument("--monitor", action="store_true", help="also run the monitor on what is captured")
    parser.add_argument("--max_duration", metavar="SEC", help="end after so long (default: 0, no limit)")


def capture_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Capture until a signal: SIGTERM and SIGHUP are the ordinary end of a service, SIGINT is 130."""
    limit_sec = 0.0 if arguments.max_duration is None else parse_duration(arguments.max_duration, "--max_duration")
    grabbers = settle_grabbers(arguments.grabber, config["capture"])
    ffmpeg = find_ffmpeg("capturing")
    check_devices(ffmpeg, grabbers)
    encoder = choose_encoder(ffmpeg, str(config["capture"]["encoder"]))
    with ExitStack() as held:
        for grabber in grabbers:
            try:
                grabber.staging.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise CannotStart(f"{grabber.name}: {problem.filename}: {problem.strerror}") from problem
            held.enter_context(run_lock(grabber.captures / STATE_FOLDER / "capture.lock", grabber.name))
        stopping = threading.Event()
        capturers = [Capturer(grabber, ffmpeg, encoder, stopping) for grabber in grabbers]
        works: list[Callable[[], object]] = [capturer.work for capturer in capturers]
        failures: list[ProgramError] = []
        beats = deque[float](maxlen=1)  # when all was well with the monitor last
        if arguments.monitor:
            beats.append(time.monotonic())
            works.append(lambda: failures.extend(monitor_beside(grabbers, config, stopping, beats)))
        threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        with signals_as(stopping) as signals:
            watch_capturers(capturers, beats, stopping, limit_sec)
        for thread in threads:
            thread.join(4 * STOP_STEP_SEC)
    if failures:
        raise failures[0]
    if all(capturer.busy for capturer in capturers) and not signals:
        raise Busy("; ".join(str(capturer.busy) for capturer in capturers))
    log.info("%s", ", ".join(f"{capturer.grabber.name}: {capturer.stills} stills" for capturer in capturers))
    return Status.SIGINT if signals[:1] == [signal.SIGINT] else Status.DONE


def monitor_beside(grabbers: Sequence[Grabber], config: Mapping[str, Any], stopping: threading.Event,
                   beats: deque[float]) -> list[ProgramError]:  # fmt: skip
    """The monitor in a thread of its own; what it cannot go on with ends the capture too, and is not swallowed."""
    try:
        monitor_folders([grabber.captures for grabber in grabbers], config, stopping,
                        lambda _message: beats.append(time.monotonic()))  # fmt: skip
    except ProgramError as problem:
        return [problem]
    except Exception:  # noqa: BLE001  a bug in a thread must be seen
        log.exception("the monitor ended: this is a bug in the program")
        return [CannotStart("the monitor ended; see above")]
    finally:
        stopping.set()
    return []


def watch_capturers(capturers: Sequence[Capturer], beats: Iterable[float], stopping: threading.Event,
                    limit_sec: float) -> None:  # fmt: skip
    """Until the end: tell systemd that all is well; with every device in use by others there is nothing to do."""
    until = time.monotonic() + limit_sec if limit_sec else math.inf
    tell_systemd("READY=1")
    while not stopping.wait(0.2):
        if time.monotonic() > until or all(capturer.busy for capturer in capturers):
            stopping.set()
        every = [*(capturer.beat for capturer in capturers), *beats]
        if all(time.monotonic() - beat < CAPTURE_QUIET_SEC for beat in every):
            tell_systemd("WATCHDOG=1")
    tell_systemd("STOPPING=1")


# --- rename ------------------------------------------------------------------------------------------------------


def waiting_stills(folder: Path, now_sec: float) -> tuple[list[Path], list[str]]:
    """(finished `test_capture_*.jpg`, oldest first; sentences about those that never will be finished)."""
    ready, broken = [], []
    for entry in os.scandir(folder):
        if not OLDER_NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        with suppress(FileNotFoundError):  # its maker replaced it meanwhile
            data, written = Path(entry.path).read_bytes(), entry.stat().st_mtime
            if data[:2] == b"\xff\xd8" and not is_cut(data):
                ready.append((written, entry.name))
            elif now_sec - written > UNFINISHED_SEC:
                broken.append(f"{entry.path}: left as it is: {'is cut off' if data else 'is empty'}")
    return [folder / name for _, name in sorted(ready)], broken


def make_thumbnail(still: Path, thumbnail: Path) -> None:
    """498 pixels wide. Raises Unreadable for what no decoder takes."""
    import cv2
    import numpy as np

    try:
        picture = cv2.imdecode(np.frombuffer(still.read_bytes(), np.uint8), cv2.IMREAD_REDUCED_COLOR_2)
        if picture is None:
            raise Unreadable(f"{still}: left as it is: this is no picture")
        height = max(1, round(picture.shape[0] * THUMBNAIL_WIDTH / picture.shape[1]))
        small = cv2.resize(picture, (THUMBNAIL_WIDTH, height), interpolation=cv2.INTER_AREA)
        done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])
    except cv2.error as problem:  # more pixels than OpenCV takes
        raise Unreadable(f"{still}: left as it is: no decoder takes it") from problem
    assert done
    thumbnail.write_bytes(data.tobytes())


def rename_stills(folder: Path, now_sec: float, told: set[str]) -> int:
    """Give every finished `test_capture_*.jpg` the name of when it was written; how many could not be, each told once.

    The thumbnail is made in our own folder first, so that the still never appears without it.
    """
    own = folder / STATE_FOLDER
    own.mkdir(exist_ok=True)
    renamed, (ready, broken) = 0, waiting_stills(folder, now_sec)
    for still in ready:
        thumbnail = own / f"{still.stem}.{os.getpid()}.part"
        try:
            make_thumbnail(still, thumbnail)
            final = publish_still(still, thumbnail, folder, still.stat().st_mtime)
            log.debug("%s: renamed to %s", still, final.name)
            renamed += 1
        except Unreadable as problem:
            broken.append(str(problem))
        except FileNotFoundError:
            log.debug("%s: has gone meanwhile", still)
        finally:
            thumbnail.unlink(missing_ok=True)
    for sentence in broken:
        if sentence not in told:
            log.warning("%s", sentence)
            told.add(sentence)
    if renamed:
        log.info("%s: %d stills renamed", folder, renamed)
    return len(broken)


@contextmanager
def woken(folders: Sequence[Path]) -> Iterator[Waker]:
    """It wakes when something appears in a folder; where inotify cannot tell, it just sleeps."""
    from watchdog.observers import Observer

    waker = Waker()
    observer: Any = Observer()
    for folder in folders:
        try:
            observer.schedule(waker, str(folder))
        except OSError as problem:
            log.debug("%s: looked at once a second: %s", folder, problem)
    observer.start()
    try:
        yield waker
    finally:
        observer.stop()
        observer.join()


def rename_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", nargs="*", type=Path,
                        help="capture folders (default: analysis.capture_dirs)")  # fmt: skip
    parser.add_argument("--watch", action="store_true", help="go on with new ones until SIGTERM")


def rename_round(folders: Sequence[Path], held: ExitStack, locked: set[Path], told: set[str]) -> int:
    """How many stills could not be renamed. A folder is locked once it is there: one that is away is not made."""
    left = 0
    for folder in folders:
        with each_folder(folder, told):
            if folder not in locked and folder.is_dir():
                held.enter_context(run_lock(folder / STATE_FOLDER / "rename.lock", str(folder)))
                locked.add(folder)
            left += rename_stills(folder, time.time(), told)
    return left


def rename_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Once, or as a service that ends 0 on SIGTERM; a folder that is away is looked for again."""
    folders = watched_folders(arguments.folder, config["analysis"])
    told, locked, stopping = set[str](), set[Path](), threading.Event()
    with ExitStack() as held:
        if not arguments.watch:
            return Status.PARTIAL if rename_round(folders, held, locked, told) or told else Status.DONE
        waker = held.enter_context(woken(folders))
        signals = held.enter_context(signals_as(stopping))
        tell_systemd("READY=1")
        while not stopping.is_set():
            waker.take()  # whatever they are called
            rename_round(folders, held, locked, told)
            tell_systemd("WATCHDOG=1")
            until = time.monotonic() + RENAME_RESCAN_SEC  # network mounts tell nothing, and events may be missed
            while not stopping.is_set() and not waker.wake.wait(0.1) and time.monotonic() < until:
                pass
    return Status.SIGINT if signals[:1] == [signal.SIGINT] else Status.DONE


@contextmanager
def each_folder(folder: Path, told: set[str]) -> Iterator[None]:
    """A folder that is away or full is told once, and does not stop the others."""
    try:
        yield
        told.discard(str(folder))
    except OSError as problem:
        if str(folder) not in told:
            log.warning("%s: %s; trying again", folder, problem.strerror)
            told.add(str(folder))


# --- clean -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Litter:
    """A file of a capture that could be removed."""

    path: Path
    size: int
    written_sec: float
    analysed: bool  # or nobody analyses; not what may yet be written
    needed: bool = False  # a running monitor has yet to copy it as evidence


@dataclass(frozen=True)
class Tidiness:
    """How much of a capture is kept; each a key of `capture`."""

    clean_after: float
    clean_max_bytes: int
    clean_wait: float


def litter_of(folder: Path, now_sec: float) -> list[Litter]:
    """Stills and thumbnails in a capture folder, segments in the folder above; nothing else is ever looked at."""
    progress = read_json(folder / STATE_FOLDER / "progress.json") or {}
    has_monitor = bool(progress.get("once")) or is_held(folder / STATE_FOLDER / "monitor.lock")  # cron comes back
    until_sec = float(progress.get("analysed_until_sec") or 0) if has_monitor else math.inf
    awaiting = {str(name) for name in progress.get("awaiting") or []}  # also of a monitor that is being restarted
    found = []
    for place, pattern in ((folder, CAPTURED_NAME), (folder.parent, SEGMENT_NAME)):
        for entry in os.scandir(place):
            if not pattern.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(FileNotFoundError):
                about = entry.stat(follow_symlinks=False)
                still = Path(place, entry.name.replace("_thumbnail.jpg", ".jpg"))
                taken_sec = time_of_still(still, now_sec) if place == folder else about.st_mtime
                awaited = bool({entry.name, still.name} & awaiting)
                is_open = 0 <= now_sec - about.st_mtime < SEGMENT_LIES_STILL_SEC  # perhaps still being written
                analysed = max(taken_sec, about.st_mtime) <= until_sec and not awaited and not is_open
                found.append(Litter(Path(place, entry.name), about.st_size, about.st_mtime, analysed,
                                    awaited and has_monitor))  # fmt: skip
    return found


def is_held(lock: Path) -> bool:
    """Whether a running process has a lock."""
    try:
        with lock.open("rb") as handle:
            return not lock_file(handle)
    except OSError:
        return False


def listed_segments(folder: Path) -> set[str]:
    """The segments that the playlists above a capture folder offer at present."""
    names: set[str] = set()
    for playlist in folder.parent.glob("*.m3u8"):
        with suppress(OSError):
            lines = playlist.read_text(encoding="utf-8", errors="replace").splitlines()
            names |= {line.strip() for line in lines if line and not line.startswith("#")}
    return names


def plan_cleaning(litter: Sequence[Litter], listed: set[str], rules: Tidiness, now_sec: float) -> list[Path]:
    """What to remove: what is too old, then the oldest until the rest fits into the bytes.

    What awaits its analysis stays for `clean_wait` more, what is needed as evidence until it has been copied; a segment
    that a playlist offers goes by age only.
    """
    removed: list[Litter] = []
    kept: list[Litter] = []
    for one in sorted(litter, key=lambda one: (one.written_sec, one.path)):
        age_sec = now_sec - one.written_sec
        too_old = age_sec > rules.clean_after + (0 if one.analysed else rules.clean_wait)
        (removed if too_old and not one.needed else kept).append(one)
    surplus = sum(one.size for one in kept) - rules.clean_max_bytes if rules.clean_max_bytes else 0
    for one in kept:
        if surplus <= 0:
            break
        if one.analysed and one.path.name not in listed:
            removed.append(one)
            surplus -= one.size
    return [one.path for one in removed]


def refuse_to_clean(folder: Path, config: Mapping[str, Any]) -> None:
    """UsageError where footage or evidence lies: only nas_sync.py cleanup removes that, and only on proof."""
    places = folder.resolve(), folder.parent.resolve()  # segments go from where a link to the folder lies
    for section, key in (("storage", "local_path"), ("rhombus", "output_dir"), ("analysis", "evidence_dir")):
        given = config[section][key]
        kept = Path(str(given)).expanduser().resolve() if given and str(given) != "." else None
        if kept and any(place == kept or kept in place.parents for place in places):
            raise UsageError(f"{folder}: is in {section}.{key}; clean removes captures, not footage or evidence")


def clean_folders(folders: Sequence[Path], rules: Tidiness, told: set[str], *, dry_run: bool) -> int:
    """One round; how many files could not be removed."""
    failed = 0
    for folder in folders:
        with each_folder(folder, told):
            now_sec = time.time()
            litter = litter_of(folder, now_sec)
            plan = plan_cleaning(litter, listed_segments(folder), rules, now_sec)
            written = {one.path: one.written_sec for one in litter}
            for path in plan:
                if dry_run:
                    sys.stdout.write(f"{path}\n")
                    continue
                try:
                    with suppress(FileNotFoundError):
                        if path.lstat().st_mtime == written[path]:  # else another one has the name by now
                            path.unlink()
                except OSError as problem:
                    failed += 1
                    log.warning("%s: not removed: %s", path, problem.strerror)
            if plan:
                log.info("%s: %d of %d files %s", folder, len(plan), len(litter),
                         "would be removed" if dry_run else "removed")  # fmt: skip
    return failed


def clean_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", nargs="*", type=Path,
                        help="capture folders (default: analysis.capture_dirs)")  # fmt: skip
    parser.add_argument("--every", metavar="SEC", help="again after so long, until SIGTERM (default: once)")
    parser.add_argument("--dry_run", action="store_true", default=None, help="print what would be removed")


def clean_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Once, or every so often as a service that ends 0 on SIGTERM."""
    folders = watched_folders(arguments.folder, config["analysis"])
    for folder in folders:
        refuse_to_clean(folder, config)
    rules = Tidiness(**{name: config["capture"][name] for name in Tidiness.__dataclass_fields__})
    for name in Tidiness.__dataclass_fields__:
        if getattr(rules, name) < 0:
            raise UsageError(f"capture.{name}: must not be less than 0")
    every_sec = 0.0 if arguments.every is None else parse_duration(arguments.every, "--every")
    stopping, told = threading.Event(), set[str]()
    if not every_sec:
        failed = clean_folders(folders, rules, told, dry_run=bool(arguments.dry_run))
        return Status.PARTIAL if failed or told else Status.DONE
    with signals_as(stopping) as signals:
        tell_systemd("READY=1")
        while not stopping.is_set():
            clean_folders(folders, rules, told, dry_run=bool(arguments.dry_run))
            until = time.monotonic() + every_sec
            while not stopping.wait(0.2) and time.monotonic() < until:
                tell_systemd("WATCHDOG=1")
    return Status.SIGINT if signals[:1] == [signal.SIGINT] else Status.DONE


# --- report ------------------------------------------------------------------------------------------------------


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="@POLICY@">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Footage report</title>
<style>@STYLE@</style></head>
<body><main id="page"><noscript>This page draws its timelines with a script, which is switched off.</noscript></main>
<div id="tip" hidden></div>
<script type="application/json" id="data">@DATA@</script>
<script>@SCRIPT@</script></body></html>
"""

PAGE_STYLE = """
:root { --paper: #fff; --ink: #1c2127; --soft: #5d6670; --line: #d5dade; --empty: #eef0f2; --here: #5aa897;
  --gone: #b7d9d0; --camera: #d1495b; --host: #8f5fb5; --off: #9aa1a8; --lost: #e0912f; --unknown: #4a4f55;
  --blackscreen: #14181c; --freeze: #2f7ed8; --audio_loss: #6f8f1f; --no_data: #d1495b; --other: #8f5fb5;
  --alert: #d9a400; --curve: #2f6f9f; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --soft: #9aa4ae; --line: #363d44;
  --empty: #22272c; --here: #3f8f7e; --gone: #28504a; --camera: #ef6f7f; --host: #b58ae0; --off: #767f88;
  --lost: #eda94f; --unknown: #c4cad0; --blackscreen: #f4f6f8; --freeze: #67a9f0; --audio_loss: #a9cf4a;
  --no_data: #ef6f7f; --other: #b58ae0; --alert: #f2c833; --curve: #7db6e0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 1rem 1rem 7rem; }
h1 { font-size: 1.35rem; margin: 0; } h2 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.soft, caption { color: var(--soft); } p { margin: .2rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: .9rem 0; }
.figures b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; font-size: .85rem; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
details { border-top: 1px solid var(--line); } details[open] { padding-bottom: 1.2rem; }
summary, .axis { display: grid; grid-template-columns: 11rem 1fr 5rem; gap: .6rem; align-items: center;
  padding: .2rem 0; }
summary { cursor: pointer; list-style: none; } summary::-webkit-details-marker { display: none; }
summary:focus-visible { outline: 2px solid var(--freeze); }
.name { overflow-wrap: anywhere; line-height: 1.2; } .name::before { content: "\\25b8"; color: var(--soft);
  display: inline-block; width: 1em; } details[open] .name::before { content: "\\25be"; }
.share { text-align: right; font-variant-numeric: tabular-nums; font-size: .85rem; }
.axis { position: sticky; top: 0; background: var(--paper); z-index: 1; }
canvas { display: block; width: 100%; } .days canvas, summary canvas { cursor: pointer; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; } .pictures a { color: var(--soft); font-size: .75rem;
  text-decoration: none; } .pictures img { display: block; width: 160px; border-radius: 3px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
a { color: var(--freeze); }
#tip { position: fixed; left: 0; right: 0; bottom: 0; padding: .6rem 1rem; background: var(--paper);
  border-top: 1px solid var(--line); box-shadow: 0 -2px 12px #0003; font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 640px) { main { padding: .7rem .7rem 7rem; } summary, .axis { grid-template-columns: 1fr auto; }
  summary canvas, .axis canvas { grid-column: 1 / -1; } summary .share { grid-row: 1; grid-column: 2; }
  .axis span { display: none; } .pictures img { width: 104px; } }
"""

PAGE_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page"), tip = document.getElementById("tip");
const DAY = 86400, length = data.length, MANY = 200;
const SHOWN_INCIDENTS = ["blackscreen", "freeze", "audio_loss", "no_data", "alert"];
const GAP_WORDS = {camera: "camera or network", host: "this host", off: "not recorded on purpose", lost: "lost",
  unknown: "cause unknown"};

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }
function kindOf(mark) { return SHOWN_INCIDENTS.includes(mark[2]) ? mark[2] : "other"; }
function others() {
  const marks = data.cameras.flatMap(camera => camera.marks.filter(mark => kindOf(mark) === "other"));
  return [...new Set(marks.map(mark => mark[2]))].sort().join(", ");
}
function offset(t) {
  let found = data.offsets[0][1];
  for (const [from, seconds] of data.offsets) if (from <= t) found = seconds;
  return found;
}
function local(t) { return new Date((data.start + t + offset(t)) * 1000); }
function clock(t) { return local(t).toISOString().slice(11, 19); }
function date(t) { return local(t).toISOString().slice(0, 10); }
function when(t) { return date(t) + " " + clock(t); }
function until(from, to) { return date(from) === date(to) ? clock(to) : when(to); }
function zones() {  // from UTC, each once; two where the clocks change meanwhile
  return [...new Set(data.offsets.map(pair => pair[1]))].map(seconds => "UTC" + (seconds < 0 ? "-" : "+") +
    new Date(Math.abs(seconds) * 1000).toISOString().slice(11, 16)).join(" and ");
}
function what(mark) { return mark[3] ? mark[2] + ": " + mark[3] : mark[2]; }
function why(gap) { return gap[3] === "unknown" ? gap[2] : gap[2] + " (" + GAP_WORDS[gap[3]] + ")"; }
function lasts(seconds) {
  const s = Math.round(seconds), d = Math.floor(s / DAY), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
  if (d) return d + " d " + h + " h";
  if (h) return h + " h " + m + " min";
  return m ? m + " min " + (s % 60) + " s" : s + " s";
}
function lower(count, isBelow) {  // how many of the first are below, by halving
  let low = 0, high = count;
  while (low < high) { const middle = (low + high) >> 1; if (isBelow(middle)) low = middle + 1; else high = middle; }
  return low;
}
function fileAt(camera, t) {
  for (let place = lower(camera.files.length, i => camera.files[i][0] <= t) - 1; place >= 0; place--) {
    const [start, end, folder, name] = camera.files[place];
    if (end >= t) {
      const path = (camera.folders[folder] ? camera.folders[folder] + "/" : "") + name;
      return {path, link: path + "#t=" + Math.max(0, Math.round(t - start))};
    }
    if (t - start > 2 * DAY) break;
  }
  return null;
}
function fit(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.style.height = height + "px"; canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio); pen.font = "11px system-ui, sans-serif";
  return [pen, width];
}
function ticks(from, to, width) {  // [seconds, text] at local days, months or even hours
  const room = Math.max(2, Math.floor(width / 64)), span = to - from, found = [];
  const step = [300, 900, 1800, 3600, 7200, 10800, 21600, 43200].find(s => span / s <= room);
  if (step) {
    for (let d = 0; d + 1 < data.days.length; d++)
      for (let t = data.days[d]; t < data.days[d + 1]; t += step)
        if (t >= from && t <= to) {
          const text = clock(t).slice(0, 5);
          found.push([t, text === "00:00" && span > DAY * 1.5 ? date(t).slice(5) : text]);
        }
    return found;
  }
  const days = data.days.filter(t => t >= from && t <= to);
  const months = days.filter(t => date(t).endsWith("-01"));
  if (days.length > 3 * room && months.length > 2) {
    const every = Math.ceil(months.length / room);
    return months.filter((_, place) => place % every === 0).map(t => [t, date(t).slice(0, 7)]);
  }
  const every = Math.ceil(days.length / room);
  return days.filter((_, place) => place % every === 0).map(t => [t, date(t).slice(5)]);
}
function axis(canvas, from, to) {
  const [pen, width] = fit(canvas, 16);
  pen.fillStyle = colour("soft");
  for (const [t, text] of ticks(from, to, width)) {
    const x = (t - from) / (to - from) * width;
    pen.fillRect(x, 12, 1, 4); pen.fillText(text, Math.min(x + 3, width - pen.measureText(text).width), 10);
  }
}
function bars(pen, pairs, from, to, width, y, height, least) {
  const scale = width / (to - from);
  for (let i = 0; i < pairs.length; i += 2) {
    if (pairs[i + 1] < from || pairs[i] > to) continue;
    const x = Math.max(0, (pairs[i] - from) * scale);
    pen.fillRect(x, y, Math.max(least, Math.min(width, (pairs[i + 1] - from) * scale) - x), height);
  }
}
function strip(pen, camera, from, to, left, width, y, height) {  // one line of time
  const lane = Math.max(2, Math.round(height * .3)), band = height - lane;
  pen.save(); pen.translate(left, y); pen.fillStyle = colour("empty");
  bars(pen, [Math.max(from, 0), Math.min(to, length)], from, to, width, 0, height, 0);
  pen.fillStyle = colour("gone"); bars(pen, camera.gone, from, to, width, 0, band, .5);
  pen.fillStyle = colour("here"); bars(pen, camera.here, from, to, width, 0, band, .5);
  for (const gap of camera.gaps) {
    if (gap[1] < from || gap[0] > to) continue;
    pen.fillStyle = colour(gap[3]); bars(pen, gap, from, to, width, 0, band, 1.5);
  }
  for (const [pairs, name] of [[camera.gone, "gone"], [camera.here, "here"]]) {  // a clip within a long gap
    pen.fillStyle = colour(name);
    for (let i = 0; i < pairs.length; i += 2)
      if ((pairs[i + 1] - pairs[i]) / (to - from) * width < 2)
        bars(pen, pairs.slice(i, i + 2), from, to, width, 0, band, 1.5);
  }
  for (const mark of camera.marks) {
    if (mark[1] < from || mark[0] > to) continue;
    pen.fillStyle = colour(kindOf(mark)); bars(pen, mark, from, to, width, band, lane, 2.5);
  }
  pen.restore();
}
function describe(camera, t, slack) {  // what is at a time, and where it leads
  const hit = one => one[0] - slack <= t && one[1] + slack >= t, words = [];
  for (const mark of camera.marks.filter(hit).slice(0, 4))
    words.push(what(mark) + ", " + clock(mark[0]) + " for " + lasts(mark[1] - mark[0]));
  const gap = camera.gaps.find(hit);
  if (gap) words.push("no footage: " + why(gap) + ", " + when(gap[0]) + " for " + lasts(gap[1] - gap[0]));
  const found = fileAt(camera, t);
  if (!gap && !found) {
    const inside = list => list.some((start, i) => i % 2 === 0 && start <= t && list[i + 1] >= t);
    words.push(inside(camera.here) ? "footage" : inside(camera.gone) ? "recorded, no longer here" : "nothing known");
  }
  return {words, found};
}
function plain(path) { try { return decodeURIComponent(path); } catch { return path; } }  // a name may be no text
function linked(found) {
  return make("a", {href: found.link, textContent: plain(found.path), target: "_blank", rel: "noopener"});
}
function show(camera, t, slack) {
  const {words, found} = describe(camera, t, slack);
  tip.replaceChildren(make("b", {textContent: camera.name + "  " + when(t)}), "  " + words.join("; ") + " ");
  if (found) tip.append(linked(found));
  tip.hidden = false;
  return found;
}
function listen(canvas, camera, timeOf) {
  const at = event => {
    const box = canvas.getBoundingClientRect();
    return timeOf(event.clientX - box.left, event.clientY - box.top, box.width);
  };
  canvas.addEventListener("pointermove", event => { const hit = at(event); if (hit) show(camera, hit[0], hit[1]); });
  canvas.addEventListener("click", event => {
    event.preventDefault();
    const hit = at(event), found = hit && show(camera, hit[0], hit[1]);
    if (found && event.pointerType === "mouse") window.open(found.link, "_blank", "noopener");
  });
}
const drawings = [];
function drawn(canvas, paint) { drawings.push([canvas, paint]); watcher.observe(canvas); return canvas; }
function repaint(canvas) {
  for (const [one, paint] of drawings) if (one === canvas && canvas.clientWidth) paint(canvas);
}
const watcher = new ResizeObserver(entries => requestAnimationFrame(() => {
  for (const {target} of entries)
    if (target.clientWidth !== target.paintedAt) { target.paintedAt = target.clientWidth; repaint(target); }
}));

function line(camera, height) {
  const canvas = drawn(make("canvas", {role: "img", ariaLabel: "timeline of " + camera.name}), canvas => {
    const [pen, width] = fit(canvas, height);
    strip(pen, camera, 0, length, 0, width, 0, height);
  });
  listen(canvas, camera, (x, y, width) => [x / width * length, 3 / width * length]);
  return canvas;
}
function dayRows(camera) {  // a row for every day, so that a short gap can be seen in a year
  const rows = data.days.length - 1, height = rows > 100 ? 8 : rows > 40 ? 12 : 18, left = 76;
  const canvas = drawn(make("canvas", {role: "img", ariaLabel: "days of " + camera.name}), canvas => {
    const [pen, width] = fit(canvas, rows * height + 18), wide = width - left;
    pen.fillStyle = colour("soft");
    for (let hour = 0; hour < 24; hour += wide < 420 ? 6 : 3)
      pen.fillText(String(hour).padStart(2, "0") + ":00", left + hour / 24 * wide, 10);
    let named = -99;
    for (let row = 0; row < rows; row++) {
      const from = data.days[row], y = 16 + row * height;
      strip(pen, camera, from, data.days[row + 1], left, wide, y, height - 1);
      if (y - named >= 14 && (height >= 18 || date(from).endsWith("-01") || rows <= 100 || row === 0)) {
        pen.fillStyle = colour("soft"); pen.fillText(date(from), 0, y + Math.max(height - 1, 9) - 1); named = y;
      }
    }
  });
  listen(canvas, camera, (x, y, width) => {
    const row = Math.floor((y - 16) / height), share = (x - left) / (width - left);
    if (row < 0 || row >= rows || share < 0) return null;
    const from = data.days[row], to = data.days[row + 1], t = from + share * (to - from);
    return t < 0 || t > length ? null : [t, 3 / (width - left) * (to - from)];
  });
  return make("div", {className: "days"}, canvas);
}
function curve(camera, kind) {
  const {step, values} = camera.curves[kind], known = values.filter(v => v !== null);
  const low = kind === "sound" ? Math.min(...known) : 0, high = Math.max(...known, low + 1), height = 64;
  const unit = {brightness: "of 255", motion: "difference", sound: "dB"}[kind];
  const canvas = drawn(make("canvas", {role: "img", ariaLabel: kind + " of " + camera.name}), canvas => {
    const [pen, width] = fit(canvas, height);
    pen.fillStyle = colour("empty"); pen.fillRect(0, 0, width, height); pen.fillStyle = colour("curve");
    const bar = Math.max(1, step / length * width);
    values.forEach((value, place) => {
      if (value === null) return;
      const top = (height - 3) * (1 - (value - low) / (high - low));
      pen.fillRect(place * step / length * width, top, bar, height - top);
    });
  });
  const words = kind + ", " + low.toFixed(0) + " to " + high.toFixed(0) + " " + unit;
  return [make("p", {className: "soft", textContent: words}), canvas];
}
function table(heads, rows) {
  const head = make("tr", {}, ...heads.map(text => make("th", {textContent: text})));
  const body = rows.map(cells => make("tr", {}, ...cells.map(cell => make("td", {}, cell))));
  return make("div", {className: "scroll"}, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}
function detail(camera) {
  const parts = [];
  if (length > 1.6 * DAY) parts.push(make("h2", {textContent: "Day by day"}), dayRows(camera));
  if (camera.pictures.length) parts.push(make("h2", {textContent: "Pictures"}), make("div", {className: "pictures"},
    ...camera.pictures.map(([t, link, picture]) => make("a", {href: link, target: "_blank", rel: "noopener"},
      make("img", {src: picture, alt: camera.name + " at " + when(t)}),
      length > DAY ? when(t).slice(0, 16) : clock(t)))));
  const kinds = ["brightness", "motion", "sound"].filter(kind => camera.curves[kind]);
  if (kinds.length) {
    const canvas = drawn(make("canvas"), canvas => axis(canvas, 0, length));
    parts.push(make("h2", {textContent: "Brightness, motion and sound"}), canvas,
      ...kinds.flatMap(kind => curve(camera, kind)));
  }
  if (camera.marks.length) {
    const latest = camera.marks.slice(-MANY), file = t => fileAt(camera, t);
    const opened = t => file(t) ? linked(file(t)) : "";
    const seen = link => link ? make("a", {href: link, textContent: "picture", target: "_blank", rel: "noopener"}) : "";
    const heads = ["start", "end", "lasted", "what", "footage", ""];
    parts.push(make("h2", {textContent: "Incidents and alerts"}), table(heads, latest.map(
      one => [when(one[0]), until(one[0], one[1]), lasts(one[1] - one[0]), what(one), opened(one[0]), seen(one[4])])));
    if (camera.marks.length > MANY) parts.push(make("p", {className: "soft",
      textContent: "and " + (camera.marks.length - MANY) + " earlier ones"}));
  }
  if (camera.gaps.length) {
    const longest = [...camera.gaps].sort((a, b) => b[1] - b[0] - a[1] + a[0]).slice(0, MANY);
    const causes = Object.create(null);
    for (const gap of camera.gaps) {
      const sum = causes[why(gap)] = causes[why(gap)] || [0, 0];
      sum[0] += 1; sum[1] += gap[1] - gap[0];
    }
    const shares = Object.entries(causes).sort((a, b) => b[1][1] - a[1][1]);
    parts.push(make("h2", {textContent: "Gaps"}), make("p", {className: "soft", textContent: shares.map(
      ([cause, [count, sum]]) => cause + ": " + count + ", together " + lasts(sum)).join("; ")}));
    parts.push(table(["start", "end", "lasted", "cause"], longest.sort((a, b) => a[0] - b[0]).map(
      gap => [when(gap[0]), until(gap[0], gap[1]), lasts(gap[1] - gap[0]), why(gap)])));
    if (camera.gaps.length > MANY) parts.push(make("p", {className: "soft",
      textContent: "and " + (camera.gaps.length - MANY) + " shorter ones"}));
  }
  return parts.length ? parts : [make("p", {className: "soft", textContent: "nothing more is known of this camera"})];
}
function section(camera) {
  const digits = camera.percent > 99 ? 2 : 1, down = Math.floor(camera.percent * 10 ** digits) / 10 ** digits;
  const share = camera.percent === null ? camera.word : down.toFixed(digits) + " %";  // rounded down
  const found = camera.marks.filter(mark => mark[2] !== "alert").length;
  const part = make("details", {}, make("summary", {}, make("span", {className: "name", textContent: camera.name}),
    line(camera, 20), make("span", {className: "share", textContent: share,
      title: camera.gaps.length + " gaps, " + found + " incidents"})));
  part.addEventListener("toggle", () => {
    if (part.open && part.children.length === 1) part.append(...detail(camera));
  });
  part.open = data.cameras.length <= 3;
  return part;
}
function legend() {
  const items = [], has = check => data.cameras.some(check);
  if (has(camera => camera.here.length)) items.push(["here", "footage"]);
  if (has(camera => camera.gone.length)) items.push(["gone", "recorded, no longer here"]);
  for (const [kind, words] of Object.entries(GAP_WORDS))
    if (has(camera => camera.gaps.some(gap => gap[3] === kind))) items.push([kind, "gap: " + words]);
  for (const kind of [...SHOWN_INCIDENTS, "other"])
    if (has(camera => camera.marks.some(mark => kindOf(mark) === kind)))
      items.push([kind, kind === "alert" ? "alert" : "incident: " + (kind === "other" ? others() : kind)]);
  return make("div", {className: "legend"}, ...items.map(([name, words]) => {
    const sign = make("i");
    sign.style.background = "var(--" + name + ")";
    return make("span", {}, sign, words);
  }));
}
function figure(value, words) { return make("div", {}, make("b", {textContent: value}), words); }
function start() {
  const all = kind => data.cameras.reduce((sum, camera) => sum + kind(camera), 0);
  const rated = data.cameras.filter(camera => camera.percent !== null);
  const counted = (count, word) => figure(count, word + (count === 1 ? "" : "s"));
  const figures = [counted(data.cameras.length, "camera")];
  const mean = rated.reduce((sum, one) => sum + one.percent, 0) / rated.length;
  if (rated.length) figures.push(figure((Math.floor(mean * 100) / 100).toFixed(2) + " %", "of the time recorded"));
  const gaps = all(camera => camera.gaps.length), missing = all(camera => camera.missing);
  figures.push(figure(gaps, (gaps === 1 ? "gap" : "gaps") + (gaps ? ", together " + lasts(missing) : "")),
    counted(all(camera => camera.marks.filter(mark => mark[2] !== "alert").length), "incident"),
    counted(all(camera => camera.marks.filter(mark => mark[2] === "alert").length), "alert"));
  page.append(make("h1", {textContent: "Footage report"}),
    make("p", {textContent: when(0) + " to " + when(length)}),
    make("p", {className: "soft",
      textContent: "Times are those of " + data.zone + " (" + zones() + "). Made " + when(data.made) + "."}),
    make("div", {className: "figures"}, ...figures), legend());
  if (data.unlinked) page.append(make("p", {className: "soft",
    textContent: "There are too many files: those of some cameras are shown, but not linked."}));
  const scale = drawn(make("canvas"), canvas => axis(canvas, 0, length));
  page.append(make("div", {className: "axis"}, make("span"), scale, make("span")), ...data.cameras.map(section));
}
start();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [canvas] of drawings) repaint(canvas);
});
document.documentElement.dataset.ready = "yes";
"""


@dataclass(frozen=True)
class Footage:
    """A stretch of footage; `file` is None when journal or sidecar know it and it is no longer here."""

    start_sec: float
    end_sec: float
    file: Path | None


@dataclass(frozen=True)
class Mark:
    """Something that a timeline points at: an incident, an alert, a gap with its cause."""

    start_sec: float
    end_sec: float
    kind: str
    text: str = ""
    file: Path | None = None  # a picture that shows it


@dataclass
class Reported:
    """Everything that is known of one camera."""

    name: str
    footage: list[Footage] = field(default_factory=list)
    unsure: list[Footage] = field(default_factory=list)  # no record tells when they end
    stills: list[tuple[float, Path]] = field(default_factory=list)
    causes: list[Mark] = field(default_factory=list)  # why there is no footage, from the journal
    gaps: list[Mark] = field(default_factory=list)
    present: list[Interval] = field(default_factory=list)  # what clips hold, without their gaps
    marks: list[Mark] = field(default_factory=list)  # incidents and alerts
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    is_live: bool = False  # its recorder was at work when it was looked at
    is_continuous: bool = False  # recorded around the clock: what is missing is a gap; not so clips and captures


@dataclass(frozen=True)
class Journal:
    """What the recorder wrote down about one camera: files by name, and why there were none."""

    segments: dict[str, Interval]
    causes: list[Mark]


def names_in(folder: Path) -> list[str]:
    """What a folder holds, if it is there; raises OSError where it is closed, which a glob takes for empty."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)
    return []


def read_recorder(folder: Path) -> Journal:
    """The journal of one camera, and the recorder's state file where it is beside it; a torn line is left out."""
    journal = Journal({}, [])
    for file in (folder / name for name in names_in(folder) if JOURNAL_NAME.fullmatch(name)):
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError, KeyError):
                line = json.loads(text)
                start_sec, end_sec = float(line["start"]), float(line["end"])
                if line["kind"] == "segment":
                    journal.segments[PurePosixPath(line["file"]).name] = (start_sec, end_sec)
                elif line["kind"] == "down":
                    journal.causes.append(Mark(start_sec, end_sec, str(line["cause"])))
    state = read_json(folder.parent.parent / "state" / f"{folder.name}.json") or {}
    with suppress(ValueError, TypeError, KeyError):
        if state["state"] in ("down", "stopped"):
            journal.causes.append(Mark(float(state["since"]), math.inf, str(state["cause"])))
        elif state.get("recording_since"):  # the file that is being recorded
            journal.segments[""] = (float(state["recording_since"]), float(state["last_frame_at"]))
    return journal


class Survey:
    """Goes through folders and sorts what lies there by camera."""

    def __init__(self, zone: tzinfo) -> None:
        self.zone = zone
        self.cameras: dict[str, Reported] = {}
        self.journals: dict[str, Journal] = {}
        self.databases: set[str] = set()  # beside the captures
        self.clips: dict[str, str] = {}  # what `video` calls the camera of a clip -> camera
        self.starts: dict[str, tuple[str, float]] = {}  # file -> (camera, start), for the metrics
        self.missed: dict[str, OSError] = {}  # folders and journals that are closed
        self.left: list[Path] = []  # sidecars whose clip is not beside them: nas_sync.py cleanup leaves them
        self.files = 0

    def camera(self, key: str, name: str) -> Reported:
        return self.cameras.setdefault(key, Reported(name))

    def miss(self, problem: OSError) -> None:
        self.missed[str(problem.filename)] = problem

    def journal(self, folder: Path) -> None:
        """Take in the journal of the camera that the folder is called after; those of several folders add up."""
        try:
            read, name = read_recorder(folder), folder.name
        except OSError as problem:
            self.miss(problem)
            return
        if read.segments or read.causes:
            known = self.journals.setdefault(name, Journal({}, []))
            known.segments.update(read.segments)
            known.causes[:] = dict.fromkeys([*known.causes, *read.causes])
            self.camera(name, name).is_continuous = True

    def journals_of(self, folder: Path) -> None:
        """A camera's own folder is recognised by the journal beside it."""
        for above in (folder.parent, folder.parent.parent):
            self.journal(above / ".rtsp_recorder" / "journal" / folder.name)

    def look(self, folder: Path) -> None:
        """Take in everything below a folder."""
        self.journals_of(folder)
        for place, folders, names in os.walk(folder, onerror=self.miss):
            here = Path(place)
            if not os.access(here, os.X_OK):
                self.miss(PermissionError(errno.EACCES, os.strerror(errno.EACCES), place))
                folders.clear()
                continue
            try:
                for journals in ("journal", ".rtsp_recorder/journal"):  # the first is that of nas_sync.py's targets
                    for found in names_in(here / journals) if journals.partition("/")[0] in folders else []:
                        self.journal(here / journals / found)
                if (here / STATE_FOLDER / DATABASE_NAME).is_file():
                    self.databases.add(str(here / STATE_FOLDER / DATABASE_NAME))
            except OSError as problem:
                self.miss(problem)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            known = set(names)
            for name in sorted(names):
                if STILL_NAME.fullmatch(name):
                    self.camera(camera_of(here / name), camera_of(here / name)).stills.append((0.0, here / name))
                elif Path(name).suffix.lower() in RECORDINGS and not NO_FOOTAGE.match(name):
                    self.recording(here / name, f"{Path(name).stem}.json" in known)
                    self.files += 1
                elif name.endswith(".json") and CLIP_NAME.search(name[:-5]) and f"{name[:-5]}.mp4" not in known:
                    self.left.append(here / name)

    def recording(self, file: Path, has_sidecar: bool) -> None:
        """Take in one file; one that holds nothing is no footage, whatever its name or its record say."""
        if reason := refusal(file):
            log.warning("%s: left out: %s", file, reason)
            return
        sidecar = read_json(file.with_suffix(".json")) if has_sidecar else None
        if sidecar and self.clip(file, sidecar):
            return
        folder = recording_folder(file)
        camera = self.camera(folder.name, folder.name)
        if times := self.journals.get(folder.name, Journal({}, [])).segments.get(file.name):
            camera.footage.append(Footage(*times, file))
            self.starts[str(file)] = (folder.name, times[0])
            return
        is_clip, named = CLIP_NAME.search(file.stem), NAMED_TIME.search(file.stem)
        start_sec, basis, _ = record_of(file, self.zone) if is_clip or named else (0.0, "mtime", 0)
        if basis == "mtime":
            log.warning("%s: left out: neither a record nor its name tells when it was taken", file)
            return
        camera.is_continuous |= is_clip is None
        written_sec = file.stat().st_mtime
        ends = written_sec if 0 < written_sec - start_sec <= LONGEST_FILE_SEC else math.nan
        camera.unsure.append(Footage(start_sec, ends, file))
        self.starts[str(file)] = (folder.name, start_sec)

    def clip(self, file: Path, sidecar: Mapping[str, Any]) -> bool:
        """A clip of copy_footage.py, by its sidecar (`file` itself when only that is left); False when that is none."""
        try:
            about, alert = sidecar["camera"], sidecar.get("alert")
            key = f"{about['uuid']} {about.get('facet') or ''}"
            start_sec, end_sec = (sidecar["obtained"][name] / 1000 for name in ("start_ms", "end_ms"))
            gaps = [Mark(gap["start_ms"] / 1000, gap["end_ms"] / 1000, str(gap["reason"])) for gap in sidecar["gaps"]]
            when = [alert[name] / 1000 for name in ("start_ms", "end_ms")] if alert else []
            told = [Mark(when[0], when[1], "alert", str(alert["kind"]))] if alert else []
        except (KeyError, TypeError, AttributeError):
            return False
        camera = self.camera(key, str(about.get("name") or about["uuid"]))
        self.clips[camera_of(file)] = key
        is_here = file.suffix != ".json"
        camera.footage.append(Footage(start_sec, end_sec, file if is_here else None))
        camera.gaps += gaps
        holes = joined(((gap.start_sec, gap.end_sec) for gap in gaps), 0)
        ends = [(start_sec, start_sec), *holes, (end_sec, end_sec)]
        camera.present += [(one[1], other[0]) for one, other in zip(ends, ends[1:], strict=False) if one[1] < other[0]]
        camera.marks += told
        if is_here:
            self.starts[str(file)] = (key, start_sec)
        return True

    def scanned(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take in the recordings that `video` has looked at, and what is known of their cameras."""
        files = [Path(os.path.abspath(line["file"])) for line in lines]  # noqa: PTH100
        for folder in {recording_folder(file) for file in files}:
            self.journals_of(folder)
        for file, line in zip(files, lines, strict=True):
            if line["time_basis"] not in ("mtime", "unknown"):
                self.recording(file, os.path.isfile(file.with_suffix(".json")))  # noqa: PTH113  Path may raise
            elif line["length_sec"]:  # a guess, but better than to leave it out
                key, start_sec = line["camera"], iso_sec(line["start"])
                self.camera(key, key).footage.append(Footage(start_sec, start_sec + line["length_sec"], file))
                self.starts[str(file)] = (key, start_sec)
        self.files = len(files)
        self.settle()
        times = [moment_sec for camera in self.cameras.values() for one in camera.footage if one.file
                 for moment_sec in (one.start_sec, one.end_sec)] or [0.0]  # fmt: skip
        for camera in self.cameras.values():  # what the journal knows of other times
            camera.footage = [one for one in camera.footage if one.file or min(times) <= one.start_sec < max(times)]

    def settle(self) -> None:
        """Once everything is found: what has left, when files without a record end, stretches of stills."""
        now_sec = time.time()
        clips = {PurePosixPath(file).stem for file in self.starts}
        for last in {file.stem: file for file in self.left if file.stem not in clips}.values():
            self.clip(last, read_json(last) or {})
        for name, journal in self.journals.items():
            camera = self.camera(name, name)
            here = {one.file.name for one in camera.footage if one.file}
            camera.causes += journal.causes
            camera.is_live = "" in journal.segments
            camera.footage += [Footage(*times, None) for file, times in journal.segments.items() if file not in here]
        for camera in self.cameras.values():
            unsure = sorted(camera.unsure, key=lambda one: one.start_sec)
            following = [one.start_sec for one in unsure[1:]] + [math.inf]
            for one, next_sec in zip(unsure, following, strict=False):
                end_sec = one.start_sec + DEFAULT_FILE_SEC if math.isnan(one.end_sec) else one.end_sec
                camera.footage.append(Footage(one.start_sec, min(end_sec, next_sec), one.file))
            camera.stills = sorted((time_of_still(path, now_sec), path) for _, path in camera.stills)
            times = ((at_sec, at_sec + 1) for at_sec, _ in camera.stills)
            runs = joined(times, STILLS_APART_SEC)
            camera.footage += [Footage(start, end, camera.stills[0][1].parent) for start, end in runs]
            camera.gaps += [Mark(one[1], other[0], "unknown") for one, other in zip(runs, runs[1:], strict=False)]
            camera.footage.sort(key=lambda one: (one.start_sec, one.end_sec))


def uncovered(gaps: Iterable[Mark], present: Iterable[Interval], span: Interval) -> list[Mark]:
    """In order, what of gaps lies in the time of the report and in no other clip; where two overlap, it counts once."""
    left, covered, at_sec = list[Mark](), joined(present, 0), span[0]
    for gap in sorted(gaps, key=lambda gap: gap.start_sec):
        start, end = max(gap.start_sec, at_sec), min(gap.end_sec, span[1])
        place = max(0, bisect_left(covered, (start, start)) - 1)
        at_sec = max(at_sec, end)
        while start < end:
            begins, ends = covered[place] if place < len(covered) else (end, end)
            if begins > start:
                left.append(replace(gap, start_sec=start, end_sec=min(begins, end)))
            start, place = max(start, ends), place + 1
    return left


def find_gaps(camera: Reported, span: Interval, since_sec: float | None) -> list[Mark]:
    """What is missing, each with the cause that covers most of it; of clips only what their sidecars say.

    Before its first footage a camera is not missed, unless the report was asked for a time (`since_sec`).
    """
    known = uncovered(camera.gaps, camera.present, span)
    if not camera.is_continuous:
        return known
    covered = joined(((one.start_sec, one.end_sec) for one in camera.footage), GAP_SEC)
    causes = sorted(camera.causes, key=lambda one: one.start_sec)
    starts = [one.start_sec for one in causes]
    first_sec = min([*starts[:1], *(start for start, _ in covered[:1])], default=span[0])
    at_sec, gaps = span[0] if since_sec is not None else max(span[0], first_sec), []
    for start, end in [*covered, (span[1], math.inf)]:
        if min(start, span[1]) - at_sec > GAP_SEC:
            gaps.append((at_sec, min(start, span[1])))
        at_sec = max(at_sec, end)
    told = []
    for start, end in gaps:
        shares: dict[str, float] = {}
        for one in causes[max(0, bisect_left(starts, start) - 1) : bisect_left(starts, end)]:
            overlap = min(end, one.end_sec) - max(start, one.start_sec)
            if overlap > 0:
                shares[one.kind] = shares.get(one.kind, 0.0) + overlap
        if camera.is_live and end == span[1] and end - start < TAIL_SEC:
            continue
        told.append(Mark(start, end, max(shares, key=lambda kind: shares[kind]) if shares else "unknown"))
    return sorted([*told, *known], key=lambda gap: gap.start_sec)


# What the page calls them, and which colour they have: by what somebody would have to do about it.
GAP_CLASSES = {cause: name for name, causes in {
    "camera": ("refused", "unauthorised", "stall", "video_dead", "unavailable"),
    "host": ("disk", "clock", "crashed"),
    "off": ("stopped", "not_recorded", "not_yet"),
    "lost": ("expired", "not_found", "invalid"),
}.items() for cause in causes}  # fmt: skip


def add_found(survey: Survey, lines: Iterable[Mapping[str, Any]]) -> None:
    """Incidents from the lines of `video --json`, without those that the database has told of already."""
    names = {camera.name: key for key, camera in survey.cameras.items()}
    for line in lines:
        if "summary" in line:
            continue
        file = os.path.abspath(line["file"])  # noqa: PTH100
        key, start_sec = survey.starts.get(file, ("", math.nan))
        key = key or names.get(str(line["camera"]), str(line["camera"]))
        for one in line["incidents"]:
            times = (start_sec + one["start_sec"], start_sec + one["end_sec"])
            if math.isnan(start_sec):
                times = (iso_sec(one["start"]), iso_sec(one["end"]))
            marks, kind = survey.camera(key, key).marks, str(one["type"])
            if not any(mark.kind == kind and abs(mark.start_sec - times[0]) < SAMPLE_SEC for mark in marks):
                marks.append(Mark(*times, kind, ", ".join(remarks(one))))
        if line.get("reason") and line["time_basis"] != "unknown":  # what was not seen is not well
            camera, at_sec = survey.camera(key, key), iso_sec(line["start"]) if math.isnan(start_sec) else start_sec
            ends = [at_sec + line["length_sec"], *(one.end_sec for one in camera.footage if str(one.file) == file)]
            camera.marks.append(Mark(at_sec, max(ends), "quality unknown", str(line["reason"])))


def add_found_in(survey: Survey, file: Path) -> None:
    """Incidents from the output of `video --json`. Raises UsageError."""
    try:
        add_found(survey, [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines() if text.strip()])
    except OSError as problem:
        raise UsageError(f"--incidents {file}: {problem.strerror}") from problem
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UsageError(f"--incidents {file}: is no output of `video --json`") from problem


def add_stored(survey: Survey, configured: str | None) -> None:
    """What monitor found: the databases beside the captures, and of the configured one the cameras that are shown."""
    names = {camera.name: key for key, camera in survey.cameras.items()} | survey.clips
    for place in [*sorted(survey.databases), *([configured] if configured else [])]:
        for incident in read_incidents(place):
            told = incident.metadata or {}
            key = survey.starts.get(str(told.get("file")), (names.get(incident.device_id), 0.0))[0]
            if key is None and place not in survey.databases:
                continue
            said = [*(["active"] if incident.end_sec is None else []), *remarks(told)]
            evidence = str((told.get("evidence") or {}).get("first_bad") or "").removeprefix("alerts/")
            picture = Path(str(told.get("evidence_dir"))) / evidence if evidence else None
            camera = survey.camera(key or incident.device_id, incident.device_id)
            end_sec = time.time() if incident.end_sec is None else incident.end_sec
            camera.marks.append(Mark(incident.start_sec, end_sec, incident.incident_type, ", ".join(said),
                                     picture if picture and picture.is_file() else None))  # fmt: skip


def iso_sec(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def add_curves(survey: Survey, file: Path, span: Interval) -> None:
    """Brightness, motion and sound from the output of `video --metrics`, as means of equal steps. Raises UsageError."""
    steps = max(48, min(1000, CURVE_POINTS // max(1, len(survey.cameras))))
    step_sec = max((span[1] - span[0]) / steps, 0.2)
    columns = {"brightness": "mean", "motion": "difference", "sound": "level_db"}
    foreign: set[str] = set()
    sums: dict[tuple[str, str], dict[int, list[float]]] = {}
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = csv.reader(stream)
            heads = next(rows, [])
            which, kind, moment_sec = (heads.index(name) for name in ("file", "kind", "time_sec"))
            values_of = {"picture": [(curve, heads.index(column)) for curve, column in columns.items()
                                     if curve != "sound"],
                         "view": [], "sound": [("sound", heads.index("level_db"))]}  # fmt: skip
            for row in rows:
                if row[which] not in survey.starts:
                    whole = os.path.abspath(row[which])  # noqa: PTH100  as the survey has it
                    if whole not in survey.starts:
                        foreign.add(row[which])
                        continue
                    survey.starts[row[which]] = survey.starts[whole]
                key, start_sec = survey.starts[row[which]]
                place = int((start_sec + float(row[moment_sec]) - span[0]) / step_sec)
                for curve, column in values_of[row[kind]]:
                    total = sums.setdefault((key, curve), {}).setdefault(place, [0.0, 0.0])
                    total[0] += float(row[column])
                    total[1] += 1
    except OSError as problem:
        raise UsageError(f"--metrics {file}: {problem.strerror}") from problem
    except (ValueError, KeyError, IndexError, csv.Error) as problem:
        raise UsageError(f"--metrics {file}: is no output of `video --metrics`") from problem
    for (key, curve), places in sums.items():
        inside = {place: total / count for place, (total, count) in places.items() if 0 <= place <= steps}
        if inside:
            values = [round(inside[place], 1) if place in inside else None for place in range(max(inside) + 1)]
            survey.cameras[key].curves[curve] = {"step": round(step_sec, 3), "values": values}
    if foreign:
        log.warning("--metrics %s: %d files are not in the folders of the report", file, len(foreign))


def small_picture(ffmpeg: str, file: Path, at_sec: float) -> str | None:
    """A thumbnail as a data: address: of a still, or of a recording at a second; None when there is none."""
    import cv2
    import numpy as np

    if file.suffix == ".jpg":
        small = thumbnail_of(file)
        data = (small if small.is_file() else file).read_bytes()
    else:
        command = [ffmpeg, "-nostdin", "-loglevel", "quiet", "-threads", "1", "-ss", f"{max(0, at_sec):.1f}",
                   "-i", f"file:{file}", "-frames:v", "1", "-vf", f"scale={PAGE_THUMBNAIL_WIDTH}:-2",
                   "-f", "image2pipe", "-c:v", "bmp", "-"]  # fmt: skip
        data = call(command, THUMBNAIL_TIMEOUT_SEC)[1]
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None and at_sec > 0 and file.suffix != ".jpg":  # shorter than its record says
        return small_picture(ffmpeg, file, 0)
    if picture is None:
        return None
    height = max(1, round(picture.shape[0] * PAGE_THUMBNAIL_WIDTH / picture.shape[1]))
    picture = cv2.resize(picture, (PAGE_THUMBNAIL_WIDTH, height), interpolation=cv2.INTER_AREA)
    done, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 60])
    return f"data:image/jpeg;base64,{base64.b64encode(coded.tobytes()).decode()}" if done else None


def take_thumbnails(cameras: Sequence[Reported]) -> list[list[tuple[float, Path, str]]]:
    """(time, file, picture) spread over each camera's footage, as many as THUMBNAILS_SEC allow, every camera first."""
    each = max(1, min(12, PAGE_THUMBNAILS // max(1, len(cameras))))
    wanted: list[tuple[int, int, float, Path]] = []
    for number, camera in enumerate(cameras):
        files = [(one.start_sec, one.end_sec, one.file) for one in camera.footage if one.file and one.file.suffix]
        files += [(at_sec, at_sec, path) for at_sec, path in camera.stills]
        files += [(one.start_sec, one.start_sec, one.file) for one in camera.marks if one.file]
        for place in range(min(each, len(files))):
            start, end, file = files[(2 * place + 1) * len(files) // (2 * min(each, len(files)))]
            wanted.append((place, number, (start + end) / 2, file))
    ffmpeg, deadline = find_ffmpeg("thumbnails"), time.monotonic() + THUMBNAILS_SEC
    began = {str(one.file): one.start_sec for camera in cameras for one in camera.footage}

    def take(job: tuple[int, int, float, Path]) -> tuple[int, float, Path, str] | None:
        _, number, at_sec, file = job
        if time.monotonic() > deadline:
            return None
        with suppress(OSError):
            if picture := small_picture(ffmpeg, file, at_sec - began.get(str(file), at_sec)):
                return number, at_sec, file, picture
        return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        taken = [found for found in pool.map(take, sorted(wanted, key=lambda job: job[:2])) if found]
    return [sorted((at, file, picture) for place, at, file, picture in taken if place == number)
            for number in range(len(cameras))]  # fmt: skip


def link_to(file: Path, base: Path) -> str:
    """Relative to the page, so that both may move together."""
    return quote(os.fsencode(os.path.relpath(file, base)).replace(os.fsencode(os.sep), b"/"), safe="/")


def camera_data(camera: Reported, span: Interval, gaps: Sequence[Mark], base: Path, links_left: int) -> dict[str, Any]:
    """One camera as the page's script reads it; times are whole seconds from the start of the report."""

    def at(moment_sec: float) -> int:
        return round(min(max(moment_sec, span[0]), span[1]) - span[0])

    def flat(footage: Iterable[Footage]) -> list[int]:
        parts = joined(((one.start_sec, one.end_sec) for one in footage), GAP_SEC)
        return [value for start, end in parts for value in (at(start), at(end))]

    shown = [one for one in camera.footage if one.end_sec > span[0] and one.start_sec < span[1]]
    here = [one for one in shown if one.file]
    folders: dict[str, int] = {}
    files = []
    for one in here if len(here) <= links_left else []:
        assert one.file
        folder, _, name = link_to(one.file, base).rpartition("/")
        files.append([at(one.start_sec), at(one.end_sec), folders.setdefault(folder, len(folders)), name])
    whole = sum(end - start for start, end in joined(((max(one.start_sec, span[0]), min(one.end_sec, span[1]))
                                                      for one in shown), GAP_SEC))  # fmt: skip
    missing = sum(min(gap.end_sec, span[1]) - gap.start_sec for gap in gaps)
    return {
        "name": camera.name, "word": "stills" if camera.stills else "clips",
        "here": flat(here), "gone": flat(one for one in shown if not one.file),
        "gaps": [[at(gap.start_sec), at(gap.end_sec), gap.kind, GAP_CLASSES.get(gap.kind, "unknown")] for gap in gaps],
        "marks": [[at(one.start_sec), at(one.end_sec), one.kind, one.text, link_to(one.file, base) if one.file else ""]
                  for one in
                  sorted(camera.marks, key=lambda one: one.start_sec)
                  if one.end_sec >= span[0] and one.start_sec <= span[1]],
        "folders": list(folders), "files": files, "curves": camera.curves, "missing": round(missing),
        "percent": round(100 * whole / (whole + missing), 3) if camera.is_continuous and whole + missing else None,
    }  # fmt: skip


def zone_steps(span: Interval, zone: tzinfo) -> list[list[int]]:
    """[seconds from the start of the report, offset from UTC in seconds], a new pair where the clock changes."""
    steps: list[list[int]] = []
    at_sec = span[0]
    while at_sec < span[1] + 3600:
        offset = datetime.fromtimestamp(at_sec, zone).utcoffset()
        seconds = round(offset.total_seconds()) if offset else 0
        if not steps or steps[-1][1] != seconds:
            steps.append([round(at_sec - span[0]), seconds])
        at_sec += 1800 - at_sec % 1800
    return steps


def midnights(span: Interval, zone: tzinfo) -> list[int]:
    """The local midnights from the one before the report to the one after it; a day may have 23 or 25 hours."""
    day = datetime.fromtimestamp(span[0], zone).date()
    found: list[int] = []
    while not found or found[-1] < span[1] - span[0]:
        moment = datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()
        found.append(round(moment - span[0]))
        day += timedelta(days=1)
    return found


def page_of(data: Mapping[str, Any]) -> str:
    """The whole page: no address in it leads elsewhere, and no name in it can become more than text."""
    script = base64.b64encode(hashlib.sha256(PAGE_SCRIPT.encode()).digest()).decode()
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    text = text.encode("utf-8", "replace").decode()  # a file name may hold what is no character
    return (PAGE.replace("@POLICY@", f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
                         f"script-src 'sha256-{script}'")
            .replace("@STYLE@", PAGE_STYLE).replace("@SCRIPT@", PAGE_SCRIPT).replace("@DATA@", text))  # fmt: skip


def report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", nargs="+", type=Path,
                        help="footage: recordings, clips, captures, an archive")  # fmt: skip
    parser.add_argument("--output", metavar="FILE", type=Path, help="the page (default: report.html)")
    parser.add_argument("--since", metavar="TIME", help="from when on (default: the first footage)")
    parser.add_argument("--until", metavar="TIME", help="until when (default: the last footage)")
    parser.add_argument("--timezone", metavar="ZONE", help="of the times on the page (default: the host's)")
    parser.add_argument("--incidents", metavar="FILE", type=Path, help="output of video --json")
    parser.add_argument("--metrics", metavar="FILE", type=Path, help="output of video --metrics: draws the curves")


def report_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Survey, settle, write one page."""
    zone = parse_zone(arguments.timezone)
    since_sec, until_sec = parse_span(arguments, parse_zone(None))
    survey = Survey(parse_zone(str(config["recording"]["timezone"])))
    for folder in arguments.folder:
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder")
        survey.look(Path(os.path.abspath(folder)))  # noqa: PTH100
    survey.settle()
    add_stored(survey, config["analysis"]["database"])
    if arguments.incidents:
        add_found_in(survey, arguments.incidents)
    output = arguments.output or Path("report.html")
    sys.stdout.write(f"{write_page(survey, zone, output, arguments.metrics, since_sec, until_sec)}\n")
    return Status.PARTIAL if survey.missed else Status.DONE


def write_page(survey: Survey, zone: tzinfo, output: Path, metrics: Path | None, since_sec: float | None = None,
               until_sec: float | None = None) -> Path:  # fmt: skip
    """The page about a settled survey, and where it is. Raises CannotStart when there is nothing to show."""
    for place, problem in survey.missed.items():
        log.error("%s: not looked through: %s", place, problem.strerror)
    cameras = sorted((camera for camera in survey.cameras.values() if camera.footage or camera.marks or camera.gaps),
                     key=lambda camera: camera.name.lower())  # fmt: skip
    times = [moment_sec for camera in cameras for things in (camera.footage, camera.gaps, camera.marks)
             for one in things for moment_sec in (one.start_sec, one.end_sec)]  # fmt: skip
    span = (min(times, default=0.0) if since_sec is None else since_sec,
            max(times, default=0.0) if until_sec is None else until_sec)  # fmt: skip
    if not times or span[0] >= span[1]:
        raise CannotStart("nothing to report: no footage was found in that time")
    if metrics:
        add_curves(survey, metrics, span)
    target = Path(os.path.abspath(output))  # noqa: PTH100
    data = report_data(cameras, span, since_sec, zone, target.parent)
    with writable(target) as part:
        part.write_text(page_of(data), encoding="utf-8")
    log.info("%s: %d cameras, %d files, %.1f MB", target, len(cameras), survey.files, target.stat().st_size / 1e6)
    return target


def report_data(cameras: Sequence[Reported], span: Interval, since_sec: float | None, zone: tzinfo,
                base: Path) -> dict[str, Any]:  # fmt: skip
    """Everything on the page, as its script reads it."""
    links_left, names = LINKS_MAX, [camera.name for camera in cameras]
    shown: list[dict[str, Any]] = []
    for camera, pictures in zip(cameras, take_thumbnails(cameras), strict=True):
        one = camera_data(camera, span, find_gaps(camera, span, since_sec), base, links_left)
        links_left -= len(one["files"])
        one["pictures"] = [[round(at - span[0]), link_to(file, base), picture] for at, file, picture in pictures]
        if names.count(camera.name) > 1:
            one["name"] += f" ({names[: len(shown) + 1].count(camera.name)})"
        shown.append(one)
    return {"start": span[0], "length": round(span[1] - span[0]), "zone": str(zone), "offsets": zone_steps(span, zone),
            "days": midnights(span, zone), "made": round(time.time() - span[0]), "cameras": shown,
            "unlinked": links_left < LINKS_MAX and any(one["here"] and not one["files"] for one in shown)}  # fmt: skip


# --- command line ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One word of the command line: what it is for, its flags, and what it does."""

    what: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    act: Callable[[argparse.Namespace, Mapping[str, Any]], int]  # gets the whole config, returns the exit status


COMMANDS = {
    "frame": Command("say whether a still is black or frozen, and whether there is sound", frame_flags, frame_command),
    "capture": Command("make stills and HLS from capture devices", capture_flags, capture_command),
    "rename": Command("give test_capture_*.jpg timestamped names and thumbnails", rename_flags, rename_command),
    "clean": Command("remove old captures", clean_flags, clean_command),
    "report": Command("draw what there is, what is missing and what was found, as one page", report_flags,
                      report_command),
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files are bytes
    if getattr(arguments, "scheduler", None) and __name__ == "__main__":  # workers find classes by their module's name
        return int(importlib.import_module(Path(__file__).stem).main(argv))
    sections = ("analysis", "capture", "notify", "storage", "recording", "rhombus", "cameras")
    config = load_config(arguments.config, sections, Path(__file__).resolve().parent)
    return COMMANDS[arguments.command].act(arguments, config)


if __name__ == "__main__":
    sys.exit(run(main))
