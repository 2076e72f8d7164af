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
import errno
import glob
import itertools
import logging
import math
import os
import re
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from rhombus_logging import (
    Busy,
    CannotStart,
    Status,
    UsageError,
    add_common_flags,
    find_ffmpeg,
    hide_secret,
    load_config,
    lock_file,
    mask,
    read_json,
    run,
    run_lock,
    start_logging,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Gray = NDArray[np.uint8]  # HEIGHT rows of WIDTH pixels, 0 black to 255 white

STATE_FOLDER = ".capture_analyzer"
WIDTH, HEIGHT = 160, 90  # what is measured; exactly an eighth of 720p, which JPEG decoders give away
CELL_ROWS, CELL_COLUMNS = 8, 20
STILL_NAME = re.compile(r"capture_(\d{14})(?:_\d+)?\.jpg")
STILL_TIME = "%Y%m%d%H%M%S"  # local time, as the older captures have it
SEGMENT_PATTERN = "segment_*.ts"
NAME_AHEAD_SEC = 86400  # a still whose name is further in the future was named by a wrong clock: its mtime counts
TYPES = ("blackscreen", "freeze", "audio_loss")

THUMBNAIL_WIDTH = 498  # as the older captures have it
HLS_SEC, HLS_LIST = 2, 5
HARDWARE_ENCODERS = ("h264_v4l2m2m", "h264_nvenc")  # Raspberry Pi and its like; need no other pixel format
PROBE_TIMEOUT_SEC = 15
TICK_SEC = 0.1  # how long a finished still may wait for its name
FIRST_FRAME_SEC = 60  # then FFmpeg is started anew
STOP_STEP_SEC = 2.0  # TERM, this, TERM, this, KILL
RETRY_MAX_SEC, RETRY_FAST_FOR_SEC, RETRY_SLOW_SEC, RETRY_REFUSED_SEC = 5.0, 600.0, 30.0, 60.0
SOUND_RETRY_SEC = 60.0  # how often a sound device that could not be opened is tried
WATCHDOG_QUIET_SEC = 30  # a thread that is silent so long hangs: systemd is no longer told that all is well
STDERR_LINES = 40
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
DEFAULT_CAPTURE_DIRS = "/var/www/html/stream/capture*/captures"
OLDER_NAME = re.compile(r"test_capture_(?!.*_thumbnail\.jpg).*\.jpg")
UNFINISHED_SEC = 10.0  # a JPEG that has not grown so long and has no end mark stays cut off
RESCAN_SEC = 1.0
CAPTURED_NAME = re.compile(r"capture_\d{14}(?:_\d+)?(?:_thumbnail)?\.jpg")
SEGMENT_NAME = re.compile(r"segment_[^/]*\.ts(?:\.tmp)?")

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
    folder = Path(os.path.abspath(Path(own["capture_dir"]).expanduser()))  # noqa: PTH100  links stay as they are
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

    A still is the first picture of each second of the host's clock (`time(0)`), whatever the rate of the source.
    """
    every = f"floor(time(0)*{grabber.stills_per_sec:g})"
    graph = (f"[0:v:0]split=2[all][some];[all]fps={grabber.fps:g},format=yuv420p[hls];"
             f"[some]select='if(gt({every},ld(0)),st(0,{every});1,0)',split=2[still][large];"
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
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                              timeout=PROBE_TIMEOUT_SEC, start_new_session=True)  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and "frame=5" in done.stdout.replace(" ", "")


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
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # ended, or another user's
            one = handle.stat()
            is_device = stat.S_ISCHR(wanted.st_mode) and stat.S_ISCHR(one.st_mode) and one.st_rdev == wanted.st_rdev
            if is_device or (one.st_dev, one.st_ino) == (wanted.st_dev, wanted.st_ino):
                process = handle.parent.parent
                found.append((int(process.name), (process / "comm").read_text(encoding="utf-8").strip()))
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


def end_writers(staging: Path) -> None:
    for what in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if not (processes := writers_in(staging)):
            return
        log.warning("%s: ending FFmpeg %s of a capture that was killed", staging, processes[0])
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, what)
        until = time.monotonic() + STOP_STEP_SEC
        while time.monotonic() < until and writers_in(staging):
            time.sleep(0.05)


def still_names(taken_sec: float) -> Iterator[str]:
    """`capture_YYYYMMDDHHMMSS`, then with _1, _2, ...: for a second that has a still, the hour that comes twice too."""
    stem = f"capture_{datetime.fromtimestamp(math.floor(taken_sec)).strftime(STILL_TIME)}"
    return (f"{stem}_{number}" if number else stem for number in itertools.count())


def publish_still(still: Path, thumbnail: Path | None, folder: Path, taken_sec: float) -> Path:
    """Give a finished still the first free name, its thumbnail first; never overwrites a still.

    A crash at any instant may be followed by the same call. Without links (exFAT, SMB) it is a rename.
    """
    for final in (folder / f"{stem}.jpg" for stem in still_names(taken_sec)):
        if final.exists() and not final.samefile(still):
            continue
        if thumbnail and thumbnail.exists():
            thumbnail.replace(thumbnail_of(final))
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


def capture_wait_sec(attempt: int, down_sec: float, said: str) -> float:
    """Seconds until the next attempt; a refused login is asked for rarely, so that no account is locked."""
    if re.search(r"\b40[134]\b|(?i:unauthori[sz]ed)", said):
        return RETRY_REFUSED_SEC
    return RETRY_SLOW_SEC if down_sec > RETRY_FAST_FOR_SEC else min(RETRY_MAX_SEC, 1.3 ** min(attempt, 20))


class Capturer:
    """Keeps one grabber captured until it is told to stop. `work` is the whole life of its thread."""

    def __init__(self, grabber: Grabber, ffmpeg: str, encoder: str, stopping: threading.Event) -> None:
        self.grabber, self.ffmpeg, self.encoder, self.stopping = grabber, ffmpeg, encoder, stopping
        self.beat = time.monotonic()
        self.busy: str | None = None  # as long as it has never captured: who has the device
        self.stills = 0
        self.with_sound = True
        self.sound_due = math.inf
        self.down_since = time.monotonic()
        self.said = ""
        self.attempt = 0
        self.runs = itertools.count(1)

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
        end_writers(self.grabber.staging)
        for folder in sorted(self.grabber.staging.iterdir()):
            self.publish(folder)
            shutil.rmtree(folder, ignore_errors=True)
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
            while current.poll(TICK_SEC) and ours is None:
                self.publish(folder)
                ours = self.verdict(current)
            lines = list(current.stderr)  # not what our TERM makes it say
        finally:
            current.stop()
            self.publish(folder)
            shutil.rmtree(folder, ignore_errors=True)
        if ours is not None:
            return ours
        return self.explain(current, lines)

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
        text = "\n".join(lines)
        told = [line for line in lines if re.search(r"\[(error|fatal)\]", line)] or [*lines[-1:]]
        said = re.sub("(?i)error", "failure", re.sub(r"\[[^\]]*\] ", "", told[-1])) if told else "FFmpeg ended"
        held = None if current.frames else busy_sentence(self.grabber, lines)
        if self.with_sound and is_alsa(self.grabber) and not current.frames and re.search(r"(?i)alsa", text):
            log.warning("%s: going on without sound, %s: %s", self.grabber.name, self.grabber.audio, held or said)
            self.with_sound, self.sound_due = False, time.monotonic() + SOUND_RETRY_SEC
            return ""
        if held:
            self.busy = None if self.stills else held
            return held.partition(": ")[2]
        return said

    def sound_works(self) -> bool:
        command = [self.ffmpeg, "-hide_banner", "-nostdin", "-loglevel", "quiet", "-f", "alsa", "-i",
                   self.grabber.audio, "-t", "0.1", "-f", "null", "-"]  # fmt: skip
        try:
            return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False,
                                  timeout=STOP_STEP_SEC, start_new_session=True).returncode == 0  # fmt: skip
        except subprocess.TimeoutExpired:
            return False

    def publish(self, folder: Path) -> None:
        """Stills whose thumbnail is there as well get their names; the time is that of their writing."""
        names = {entry.name for entry in os.scandir(folder)}
        numbers = sorted(int(name[:-4]) for name in names if name[:-4].isdigit() and name.endswith(".jpg"))
        for number in numbers:
            if f"{number}_thumbnail.jpg" in names:
                still = folder / f"{number}.jpg"
                publish_still(still, folder / f"{number}_thumbnail.jpg", self.grabber.captures, still.stat().st_mtime)
                self.stills += 1


def check_devices(ffmpeg: str, grabbers: Sequence[Grabber]) -> None:
    """CannotStart when this FFmpeg was built without what a grabber needs."""
    if all(grabber.kind != "device" and not is_alsa(grabber) for grabber in grabbers):
        return
    done = subprocess.run([ffmpeg, "-hide_banner", "-devices"], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=False, timeout=PROBE_TIMEOUT_SEC)  # fmt: skip
    for grabber in grabbers:
        needs = [*(["v4l2"] if grabber.kind == "device" else []), *(["alsa"] if is_alsa(grabber) else [])]
        for device in needs:
            if not re.search(rf"(?m)^ D.*\b{device}\b", done.stdout):
                raise CannotStart(f"{grabber.name}: {ffmpeg} was built without {device}; install your system's ffmpeg")


def capture_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grabber", metavar="GRABBER", nargs="*",
                        help="names of capture.grabbers (default: all), or video_device|audio_device|capture_dir|fps "
                             "with a file, an rtsp:// address or 'test' in place of the device")  # fmt: skip
    parser.add_argument("--max_duration", metavar="SEC", help="end after so long (default: 0, no limit)")


def capture_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Capture until a signal: SIGTERM and SIGHUP are the ordinary end of a service, SIGINT is 130."""
    limit_sec = duration_sec(arguments.max_duration)
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
        threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        with signals_as(stopping) as signals:
            watch_capturers(capturers, stopping, limit_sec)
        for thread in threads:
            thread.join(4 * STOP_STEP_SEC)
    if all(capturer.busy for capturer in capturers) and not signals:
        raise Busy("; ".join(str(capturer.busy) for capturer in capturers))
    return Status.SIGINT if signals[:1] == [signal.SIGINT] else Status.DONE


def watch_capturers(capturers: Sequence[Capturer], stopping: threading.Event, limit_sec: float) -> None:
    """Until the end: tell systemd that all is well; with every device in use by others there is nothing to do."""
    until = time.monotonic() + limit_sec if limit_sec else math.inf
    tell_systemd("READY=1")
    while not stopping.wait(0.2):
        if time.monotonic() > until or all(capturer.busy for capturer in capturers):
            stopping.set()
        if all(time.monotonic() - capturer.beat < WATCHDOG_QUIET_SEC for capturer in capturers):
            tell_systemd("WATCHDOG=1")
    tell_systemd("STOPPING=1")


@contextmanager
def signals_as(stopping: threading.Event) -> Iterator[list[int]]:
    """Within the block a signal sets the event, and is noted in the list."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        noted.append(number)
        stopping.set()

    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    for one, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(one, note)
    try:
        yield noted
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def tell_systemd(message: str) -> None:
    """sd_notify: one datagram to the socket that systemd names, nothing without it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier, suppress(OSError):
        notifier.connect("\0" + address[1:] if address.startswith("@") else address)
        notifier.sendall(message.encode())


def duration_sec(text: str | None) -> float:
    """Seconds, or text such as 90m, 1h30m; 0 without."""
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", str(text or 0).strip())
    if not found:
        raise UsageError(f"{text!r} is no duration; expected seconds, or text such as 90m or 1h30m")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


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
    ready, broken = waiting_stills(folder, now_sec)
    for still in ready:
        thumbnail = own / f"{still.stem}.{os.getpid()}.part"
        try:
            make_thumbnail(still, thumbnail)
            final = publish_still(still, thumbnail, folder, still.stat().st_mtime)
            log.debug("%s: renamed to %s", still, final.name)
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
    if ready:
        log.info("%s: %d stills renamed", folder, len(ready) - sum(str(still) in " ".join(broken) for still in ready))
    return len(broken)


@contextmanager
def waker(folders: Sequence[Path], changed: threading.Event) -> Iterator[None]:
    """Within the block the event is set when something appears in a folder; where inotify cannot, it just stays."""
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if event.event_type in ("created", "moved", "closed"):
                changed.set()

    observer = Observer()
    for folder in folders:
        try:
            observer.schedule(Handler(), str(folder))
        except OSError as problem:
            log.debug("%s: looked at once a second: %s", folder, problem)
    observer.start()
    try:
        yield
    finally:
        observer.stop()
        observer.join()


def rename_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", nargs="*", type=Path,
                        help="capture folders (default: analysis.capture_dirs)")  # fmt: skip
    parser.add_argument("--watch", action="store_true", help="go on with new ones until SIGTERM")


def rename_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Once, or as a service that ends 0 on SIGTERM; a folder that is away is looked for again."""
    folders = capture_folders(arguments.folder, config)
    told: set[str] = set()
    if not arguments.watch:
        with ExitStack() as held:
            for folder in folders:
                held.enter_context(run_lock(folder / STATE_FOLDER / "rename.lock", str(folder)))
            left = sum(rename_stills(folder, time.time(), told) for folder in folders)
        return Status.PARTIAL if left else Status.DONE
    stopping, changed = threading.Event(), threading.Event()
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(run_lock(folder / STATE_FOLDER / "rename.lock", str(folder)))
        held.enter_context(waker(folders, changed))
        signals = held.enter_context(signals_as(stopping))
        tell_systemd("READY=1")
        while not stopping.is_set():
            changed.clear()
            for folder in folders:
                with each_folder(folder, told):
                    rename_stills(folder, time.time(), told)
            tell_systemd("WATCHDOG=1")
            until = time.monotonic() + RESCAN_SEC  # network mounts tell nothing, and events may be missed
            while not stopping.is_set() and not changed.wait(0.1) and time.monotonic() < until:
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


def capture_folders(given: Sequence[Path], config: Mapping[str, Any]) -> list[Path]:
    """The folders named, else what `analysis.capture_dirs` finds (its patterns are of glob). Raises UsageError."""
    if missing := [folder for folder in given if not folder.is_dir()]:
        raise UsageError(f"{missing[0]}: there is no such folder")
    patterns = config["analysis"]["capture_dirs"] or [DEFAULT_CAPTURE_DIRS]
    found = [Path(place) for pattern in patterns for place in sorted(glob.glob(str(Path(str(pattern)).expanduser())))]  # noqa: PTH207
    folders = [*given] or [place for place in found if place.is_dir()]
    if not folders:
        raise CannotStart(f"no capture folder: {', '.join(map(str, patterns))} (analysis.capture_dirs) finds none")
    return folders


# --- clean -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Litter:
    """A file of a capture that could be removed."""

    path: Path
    size: int
    written_sec: float
    analysed: bool  # or nobody analyses


@dataclass(frozen=True)
class Tidiness:
    """How much of a capture is kept; each a key of `capture`."""

    clean_after: float
    clean_max_bytes: int
    clean_wait: float


def litter_of(folder: Path, now_sec: float) -> list[Litter]:
    """Stills and thumbnails in a capture folder, segments in the folder above; nothing else is ever looked at."""
    progress = read_json(folder / STATE_FOLDER / "progress.json") or {}
    has_monitor = is_held(folder / STATE_FOLDER / "monitor.lock")
    until_sec = float(progress.get("analysed_until_sec") or 0) if has_monitor else math.inf
    awaiting = {str(name) for name in progress.get("awaiting") or []} if has_monitor else set()
    found = []
    for place, pattern in ((folder, CAPTURED_NAME), (folder.parent, SEGMENT_NAME)):
        for entry in os.scandir(place):
            if not pattern.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(FileNotFoundError):
                about = entry.stat(follow_symlinks=False)
                still = Path(place, entry.name.replace("_thumbnail.jpg", ".jpg"))
                taken_sec = time_of_still(still, now_sec) if place == folder else about.st_mtime
                analysed = max(taken_sec, about.st_mtime) <= until_sec and not {entry.name, still.name} & awaiting
                found.append(Litter(Path(place, entry.name), about.st_size, about.st_mtime, analysed))
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

    What awaits its analysis stays for `clean_wait` more; a segment that a playlist offers goes by age only.
    """
    removed: list[Litter] = []
    kept: list[Litter] = []
    for one in sorted(litter, key=lambda one: (one.written_sec, one.path)):
        age_sec = now_sec - one.written_sec
        too_old = age_sec > rules.clean_after + (0 if one.analysed else rules.clean_wait)
        (removed if too_old else kept).append(one)
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
    place = folder.resolve()
    for section, key in (("storage", "local_path"), ("rhombus", "output_dir"), ("analysis", "evidence_dir")):
        given = config[section][key]
        kept = Path(str(given)).expanduser().resolve() if given and str(given) != "." else None
        if kept and (place == kept or kept in place.parents):
            raise UsageError(f"{folder}: is in {section}.{key}; clean removes captures, not footage or evidence")


def clean_folders(folders: Sequence[Path], rules: Tidiness, told: set[str], *, dry_run: bool) -> int:
    """One round; how many files could not be removed."""
    failed = 0
    for folder in folders:
        with each_folder(folder, told):
            now_sec = time.time()
            litter = litter_of(folder, now_sec)
            plan = plan_cleaning(litter, listed_segments(folder), rules, now_sec)
            for path in plan:
                if dry_run:
                    sys.stdout.write(f"{path}\n")
                    continue
                try:
                    path.unlink(missing_ok=True)
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
    folders = capture_folders(arguments.folder, config)
    for folder in folders:
        refuse_to_clean(folder, config)
    rules = Tidiness(**{name: config["capture"][name] for name in Tidiness.__dataclass_fields__})
    for name in Tidiness.__dataclass_fields__:
        if getattr(rules, name) < 0:
            raise UsageError(f"capture.{name}: must not be less than 0")
    every_sec, stopping, told = duration_sec(arguments.every), threading.Event(), set[str]()
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


# --- command line ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One word of the command line: what it is for, its flags, and what it does."""

    what: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    act: Callable[[argparse.Namespace, Mapping[str, Any]], int]  # gets the whole config, returns the exit status


COMMANDS = {
    "frame": Command("analyse single stills", frame_flags, frame_command),
    "capture": Command("make stills and HLS from capture devices", capture_flags, capture_command),
    "rename": Command("give test_capture_*.jpg timestamped names and thumbnails", rename_flags, rename_command),
    "clean": Command("remove old captures", clean_flags, clean_command),
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
