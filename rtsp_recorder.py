"""Record RTSP cameras around the clock into files of equal length, and keep account of every second that is missing.

Examples:
  rtsp_recorder.py record                                              all enabled cameras of config.yaml
  rtsp_recorder.py record Gate Yard                                    these two
  rtsp_recorder.py record --station Gate --ip 192.0.2.7 --user admin   without a config; password in RTSP_PASSWORD
  rtsp_recorder.py watch --quiet                                       restart and tell what is dead; every 5 minutes
  rtsp_recorder.py gaps Gate --since yesterday --max_lost 1            what is missing, and why
  rtsp_recorder.py check --snapshot pictures                           what the cameras send, compared and looked at
  rtsp_recorder.py services generate link enable start                 systemd units for all of it

Needs: FFmpeg 5 or newer (pip brings one) and config.yaml with `cameras` and `storage.local_path`, or the flags above.
State: finished files as CAMERA/NAME under storage.local_path; `.rtsp_recorder/` beside them holds the journal (what was
recorded, when nothing was, and why), files that are being recorded (`staging`), one state file and one lock per camera.
"""

from __future__ import annotations

import argparse
import csv
import errno
import filecmp
import itertools
import json
import logging
import logging.handlers
import math
import os
import re
import select
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone, tzinfo
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rhombus_logging import (
    CONFIG_KEYS,
    LOCK_POLL_SEC,
    Busy,
    CannotStart,
    Status,
    UsageError,
    absolute,
    add_common_flags,
    append_line,
    channels,
    end_processes,
    find_ffmpeg,
    find_program,
    fsync_folder,
    hide_secret,
    load_config,
    lock_file,
    mask,
    notify,
    parse_span,
    parse_zone,
    part_file,
    ping,
    read_json,
    read_overlay,
    run,
    run_lock,
    send_message,
    start_logging,
    tell_systemd,
    utc_day,
    write_json,
)

STATE_FOLDER = ".rtsp_recorder"
STAGED_NAME = "%Y%m%dT%H%M%SZ"  # UTC, so that no change of the clock to summer time repeats a name
STAGED = (".mkv", ".mp4", ".json")  # recorded, made of it, what the journal is to hold of it
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DEFAULT_RTSP_PATH = "/Streaming/Channels/101"
FILENAME_OF_NAMED, FILENAME_OF_STATION = "%Y%m%d_%H%M%S.mp4", "{camera}_%Y%m%dT%H%M%S.mkv"  # as installations have them
LOG_LEVELS = ("quiet", "panic", "fatal", "error", "warning", "info", "verbose", "debug")
QUIETLY = ("-hide_banner", "-nostdin", "-nostats", "-loglevel")
PROTOCOLS = "pipe,file,fd,rtsp,rtp,tcp,udp,tls"
RETRY_GROWTH = 1.3
STEADY_SEC = 10  # a run that recorded so long counts as a success: the next wait is the shortest again
TICK_SEC = 1.25  # at most, how long a thread waits for FFmpeg to say something, which it does each second
ADOPT_SEC = 0.05  # so soon a new file has its own name
STATE_EVERY_SEC, TABLE_EVERY_SEC, ALIVE_EVERY_SEC = 0.9, 1.0, 5.0  # a bit less than FFmpeg's second; to systemd
SILENT = {"fps": 0.0, "bytes_per_sec": 0.0}  # of a camera that is not recorded
STATE_BYTES = 1024  # of a state file, filled up with spaces
STATE_STALE_SEC = 30  # older states are of a recorder that was killed
START_SPACING_SEC = 0.05  # between the first starts of two cameras
TABLE_FRAME_LINES = 4
SPACE_EVERY_SEC, SPACE_RECHECK_SEC = 1.0, 2.0  # while recording, and while waiting for space
SPACE_HYSTERESIS = 0.1  # of the reserve: so much more must be free before a camera goes on
STOP_WITHIN_SEC = 5.0  # from the signal to the end of the process; what is not checked by then is at the next start
STOP_STEP_SEC = 1.2  # TERM, this, TERM, this, KILL: leaves half of STOP_WITHIN_SEC for checking the last files
FINISH_WORKERS = 3  # files that are checked and published at once, over all cameras
FINISH_RETRY_SEC = 30.0  # a file that could not be published (full disk, folder away) is tried again
DURATION_SLACK_SEC = 2.0  # between the length of a file and the time that it was recorded in
CHECK_ENDS_SEC = 10  # of a big file so much is read at its head and at its tail
CHECK_TIMEOUT_SEC, CHECK_BYTES_PER_SEC = 60, 2_000_000  # the slowest disk that we wait for
ANCHOR_SAMPLES, ANCHOR_ENOUGH = 60, 3
LOG_BYTES = 5_000_000  # of FFmpeg's log per camera, and as much again in its older half
OPEN_FILES = 16384  # at most, of this process: enough for thousands of cameras
NOT_STARTED = "FFmpeg cannot be started"
STDERR_LINES = 40  # the last ones decide what a failure is called
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
GAP_SEC = 0.5  # shorter distances between two segments are the inaccuracy of their times
TIME_IN_NAME = re.compile(
    r"(?<!\d)(?=(\d{4})[-_]?(\d\d)[-_]?(\d\d)[T_ -]?(\d\d)[-_.:]?(\d\d)[-_.:]?(\d\d)(Z?)(?!\d))")  # fmt: skip
USUAL_SHARE = 1.05  # of the usual distance between two files: a longer one is no file's length without a look into it
WATCHDOG_QUIET_SEC = 30  # a camera's thread that is silent so long hangs: systemd is no longer told that all is well
KEPT_AWAY_SEC = 5.0  # after a bug in a camera's thread
EMPTY_BYTES = 4096  # a file up to this size without a readable picture is a bare header
CHECK_SAMPLE_SEC = 5  # of each camera; rates over less say little
CHECK_CAMERA_SEC = 30.0  # connecting and learning what a stream is may take 10 s
CHECK_WORKERS = 32  # cameras looked at side by side; they do little but wait
TELL_EVERY_SEC = 2.0  # the alerts' thread looks at cameras and disks
COLLECT_SEC = 3.0  # changes of many cameras within this time become one message
MAIL_AGAIN_SEC, MAIL_AGAIN_MAX_SEC = 2.0, 600.0  # after a failure; doubled from try to try up to the second
WAITING_MOST = 1000  # messages kept while no channel takes them; the oldest are given up
SUBJECT_NAMES = 5  # more cameras are a number in the subject, and names in the text
FRESH_SEC = 3.0  # a state file so young is of a recorder that lives, whatever else is seen of it
STATE_ROOM_BYTES = 1_000_000  # with less free, a state file may be old although its recorder lives
SPARE_BYTES = 65536  # for a few generations of an outbox
SYSTEMCTL_SEC = 90.0  # a unit that has to be killed takes TimeoutStopSec
RESTART_WORKERS, RESTART_WINDOW_SEC = 8, 3600.0
OUTBOX_WAIT_SEC = 60.0  # a recorder may just be sending
FULL_HYSTERESIS_PERCENT = 1.0
NAME_AGAIN_SEC = 25 * 3600.0  # a name may come again: when a clock is set back, after a day where it holds no date
STAGED_SLACK_SEC = 1.2  # from the start of a later file of a run to the second in its name
NAME_LATE_SEC = 10  # a staged name may be later than the first frame: FFmpeg looks at a stream for up to 5 s first
_CAMERAS, _ALERTS = ("cameras", "recording", "storage"), ("retention", "notify", "watch")
SECTIONS = {"record": _CAMERAS + _ALERTS, "watch": _CAMERAS + _ALERTS}  # of the config; the rest reads _CAMERAS
SECRETS: dict[str, bool | tuple[str, ...]] = {"watch": _ALERTS, "gaps": False}  # needed by it; the rest needs all

log = logging.getLogger("rtsp_recorder")

Interval = tuple[float, float]  # [start, end) in epoch seconds


class Unreadable(Exception):
    """A file holds no video that could be read."""


@dataclass(frozen=True)
class Limits:
    """How patient a recorder is; each a key of `recording`, in seconds unless it says otherwise."""

    first_frame: float
    stall: float
    socket_timeout: float
    retry_wait: float
    retry_max: float
    retry_fast_for: float
    retry_slow: float
    retry_refused: float
    fsync_every: float
    clock_step: float
    stop_wait: float
    check_bytes: int


@dataclass(frozen=True)
class Camera:
    """One camera as it is to be recorded. `url` holds the password and is shown nowhere."""

    name: str
    url: str = field(repr=False)
    root: Path
    segment_sec: int
    filename: str  # strftime pattern without the extension
    container: str
    zone: tzinfo
    audio: str
    transport: str
    tls_verify: bool
    tls_ca_file: str | None
    loglevel: str
    logs_dir: Path | None
    core: int | None
    require_mount: bool
    space_bytes: float  # recording stops when less is free
    space_again_bytes: float  # and goes on when more is free
    limits: Limits
    expected_video: Any = None  # for `check`, as it stands in the config
    expected_audio: Any = None

    def own(self, kind: str) -> Path:
        """Where this camera's `staging`, `journal`, ... lies."""
        return self.root / STATE_FOLDER / kind / self.name

    @property
    def state_file(self) -> Path:
        return self.own("state").with_name(f"{self.name}.json")


# --- cameras -----------------------------------------------------------------------------------------------------


def split_login(rest: str) -> tuple[str, str]:
    """`user:password@` and what follows, of an address after its `://`; also with '@' or '/' left as they are.

    The host is the first name, a port perhaps, that '/' or the end follows. UsageError when a later one is plainer, or
    as plain after a login: a part of the password would be taken for a host, and shown.
    """
    begins = [found.end() for found in re.finditer("^|@", rest)]
    hosts = [at for at in begins if re.match(r"(\[[^]/@]+\]|[^][/@:?#]+)(:\d+)?([/?]|$)", rest[at:])] or [0]
    plain = [bool(re.match(r"\[|[^/@:]+:\d|\d+(\.\d+){3}([/?]|$)", rest[at:])) for at in hosts]
    with_path = hosts[0] > 0 and any(re.match("[^/?]+/", rest[at:]) for at in hosts[1:])
    if not plain[0] and (any(plain) or with_path):
        raise UsageError("rtsp_url: where its host begins cannot be told; write '@' in the password as %40 and '/' as "
                         "%2F, and the port behind the host, such as HOST:554")  # fmt: skip
    return rest[: max(0, hosts[0] - 1)], rest[hosts[0] :]


def camera_url(values: Mapping[str, Any]) -> str:
    """The address with percent-encoded credentials: of `rtsp_url`, or made from `ip`, port and path.

    `rtsp_url` may hold the password encoded or as it is; `user` and `password` beside it fill in what it lacks.
    """
    address = str(values.get("rtsp_url") or "")
    if not address:
        host = str(values["ip"])
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        path = str(values.get("rtsp_path") or DEFAULT_RTSP_PATH).lstrip("/")
        address = f"rtsp://{host}:{values['rtsp_port']}/{path}"
    scheme, _, rest = address.partition("://")
    login, place = split_login(rest)
    user, _, password = map(unquote, login.partition(":")) if login else (str(values.get("user") or ""), "", "")
    password = password or str(values.get("password") or "")
    hide_secret(password)
    login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    return f"{scheme.lower()}://{login}{'@' if login else ''}{place}"


def settle_camera(given: Mapping[str, Any], config: Mapping[str, Any], rank: tuple[int, int]) -> Camera:
    """One entry of `cameras`: its own keys over `recording.defaults` over `recording`. Raises UsageError.

    `rank` is (place, number of cameras): the later ones stop earlier when the disk fills up.
    """
    recording, storage = config["recording"], config["storage"]
    shared = {name: value for name, value in (recording["defaults"] or {}).items() if value is not None}
    own = {name: value for name, value in given.items() if value is not None}
    chosen: dict[str, Any] = {**recording, "rtsp_port": 554, "loglevel": "warning", **shared, **own}
    name = str(own.get("name") or own.get("station") or "")
    where = f"camera {name!r}"
    if not NAME.fullmatch(name):
        raise UsageError(f"{where}: a name is 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit")
    if not own.get("rtsp_url") and not own.get("ip"):
        raise UsageError(f"{where}: neither rtsp_url nor ip is given")
    if own.get("rtsp_url") and not re.match(r"(?i)rtsps?://[^/]", str(own["rtsp_url"])):
        raise UsageError(f"{where}: rtsp_url does not begin with rtsp:// or rtsps://")
    places = [own.get("output_dir"), shared.get("output_dir"), storage["local_path"]]
    root = next((place for place in (places if own.get("station") else [places[0], places[2], places[1]]) if place), "")
    if not root:
        raise UsageError(f"{where}: nowhere to record to; set storage.local_path, or give --output_dir")
    pattern = str(chosen["filename"] or (FILENAME_OF_STATION if own.get("station") else FILENAME_OF_NAMED))
    stem, dot, extension = pattern.rpartition(".")
    if extension not in ("mkv", "mp4"):
        stem, extension = pattern, ""
    place, of = rank
    reserve = max(0, storage["reserve_bytes"])
    settled = Camera(
        name=name, url=camera_url(chosen), root=absolute(root),
        segment_sec=int(chosen.get("segment_time", recording["segment_duration"])),
        filename=stem, container=str(chosen["container"] or extension or "mkv"),
        zone=parse_zone(recording["timezone"]), audio=chosen["audio"], transport=chosen["transport"],
        tls_verify=chosen["tls_verify"], tls_ca_file=chosen["tls_ca_file"], loglevel=str(chosen["loglevel"]),
        logs_dir=Path(str(chosen["logs_dir"])).expanduser() if chosen.get("logs_dir") else None,
        expected_video=chosen["expected_video"], expected_audio=chosen["expected_audio"],
        core=chosen.get("core"), require_mount=storage["require_mount"], space_bytes=reserve * (1 + place / of),
        space_again_bytes=reserve * (1 + place / of + SPACE_HYSTERESIS),
        limits=Limits(**{name: chosen[name] for name in Limits.__dataclass_fields__}))  # fmt: skip
    refuse(settled)
    return settled


def refuse(camera: Camera) -> None:
    """UsageError for what cannot be meant."""
    where = f"camera {camera.name!r}"
    shown = final_stem(camera, 0)
    if not shown or shown.startswith(".") or re.search(r"[/\\\0]", shown) or len(shown.encode()) > 200:
        raise UsageError(f"{where}: recording.filename {camera.filename!r} makes no usable file name: {shown!r}")
    if camera.loglevel not in LOG_LEVELS:
        raise UsageError(f"{where}: loglevel {camera.loglevel!r} is none of {', '.join(LOG_LEVELS)}")
    if not 1 <= camera.segment_sec <= 86400:
        raise UsageError(f"{where}: segment_time {camera.segment_sec} is not from 1 to 86400 seconds")
    if re.search(r"[\x00-\x1f\x7f]", camera.url):
        raise UsageError(f"{where}: its address holds control characters, a line break perhaps")
    if camera.core is not None and not 0 <= camera.core < (os.cpu_count() or 1):
        raise UsageError(f"{where}: this machine has no CPU core {camera.core}")
    for name, value in asdict(camera.limits).items():
        if value <= 0:
            raise UsageError(f"{where}: recording.{name} must be more than 0")


def settle_cameras(config: Mapping[str, Any], flags: Mapping[str, Any], wanted: Sequence[str]) -> list[Camera]:
    """The cameras to record, in the order of the config: all enabled ones, or those wanted by name."""
    entries = [dict(entry) for entry in config["cameras"] if entry]
    if flags.get("station") and not flags.get("ip") and not flags.get("rtsp_url"):
        raise UsageError("--station needs --ip or --rtsp_url; a camera of the config is named without a flag")
    if flags.get("ip") or flags.get("rtsp_url"):
        if wanted:
            raise UsageError("--ip and --rtsp_url describe one camera; leave out the names")
        url = str(flags.get("rtsp_url") or "")
        host = re.sub(r"[^A-Za-z0-9.-]", "_", re.sub(r"[:/?].*", "", split_login(url.partition("://")[2])[1]))
        entries = [{"station" if flags.get("station") else "name": flags.get("station") or host}]
        if flags.get("ip") and not flags.get("station"):
            raise UsageError("--ip needs --station, the name of the camera")
    entries = [{**entry, **{name: value for name, value in flags.items() if name != "station"}} for entry in entries]
    cameras = [settle_camera(entry, config, (place, len(entries))) for place, entry in enumerate(entries)]
    lower = [camera.name.lower() for camera in cameras]
    if twice := sorted({name for name in lower if lower.count(name) > 1}):
        raise UsageError(f"cameras: {', '.join(twice)}: two cameras have this name (capitals do not count)")
    if unknown := [name for name in wanted if name.lower() not in lower]:
        known = ", ".join(camera.name for camera in cameras) or "none"
        raise UsageError(f"{', '.join(unknown)}: no such camera in the config; there is {known}")
    chosen = [camera for camera, entry in zip(cameras, entries, strict=True)
              if (camera.name.lower() in map(str.lower, wanted) if wanted else entry.get("enabled", True))]  # fmt: skip
    if not chosen:
        raise UsageError("no camera to record: add one to `cameras` in config.yaml, or give --station and --ip")
    return chosen


# --- what FFmpeg is told, and what it says -----------------------------------------------------------------------


def ffconcat(camera: Camera, tls_options: bool, *, clock: str = "host") -> str:
    """The text for FFmpeg's stdin: what it shall open. On the command line everybody could read the password.

    `clock` is whose times the frames get: `host` survives jumps of the camera's, `camera` shows its frame rate.
    """

    def quoted(value: str) -> str:
        return "'" + value.replace("'", r"'\''") + "'"

    options = {"rtsp_transport": camera.transport, "timeout": str(round(camera.limits.socket_timeout * 1e6)),
               "use_wallclock_as_timestamps": str(int(clock == "host"))}  # fmt: skip
    if tls_options and camera.url.startswith("rtsps:"):
        options |= {"tls_verify": str(int(camera.tls_verify))}
        options |= {"ca_file": camera.tls_ca_file} if camera.tls_ca_file else {}
    lines = ["ffconcat version 1.0", f"file {quoted(camera.url)}"]
    return "\n".join(lines + [f"option {name} {quoted(value)}" for name, value in options.items()]) + "\n"


def record_command(ffmpeg: str, camera: Camera, progress_fd: int, list_fd: int) -> list[str]:
    """FFmpeg started in the staging folder, so that its arguments are the same for every camera."""
    level = max("warning", camera.loglevel, key=LOG_LEVELS.index)  # what is said is needed to know what happened
    period = min(1.0, camera.limits.stall / 10)
    sound = {"copy": ["-map", "0:a:0?"], "aac": ["-map", "0:a:0?", "-c:a", "aac"], "none": []}[camera.audio]
    return [
        ffmpeg, "-hide_banner", "-loglevel", f"level+{level}", "-nostats", "-stats_period", f"{period:g}",
        "-progress", f"pipe:{progress_fd}", "-f", "concat", "-safe", "0", "-protocol_whitelist", PROTOCOLS,
        "-i", "pipe:0", "-map", "0:v:0", "-c", "copy", *sound, "-f", "segment", "-segment_format", "matroska",
        "-segment_format_options", "flush_packets=1:cluster_time_limit=1000", "-segment_time", str(camera.segment_sec),
        "-segment_atclocktime", "1", "-reset_timestamps", "1", "-strftime", "1", "-segment_list", f"pipe:{list_fd}",
        "-segment_list_type", "csv", f"{STAGED_NAME}.mkv",
    ]  # fmt: skip


def read_progress(text: str) -> tuple[int, float | None]:
    """Of FFmpeg's -progress, last block: video frames so far, and the end of what is written, in stream time."""
    values = dict(PROGRESS.findall(text))
    out = values.get("out_time_us")
    return int(values.get("frame", 0)), int(out) / 1e6 if out else None


def read_row(line: str) -> tuple[str, float, float] | None:
    """A line of the segment list: file, start and end in stream time; None for what is no such line."""
    try:
        name, start, end = next(csv.reader([line.strip()]))
        return name, float(start), float(end)
    except (ValueError, StopIteration):
        return None


PROGRESS = re.compile(r"(?m)^(frame|out_time_us)= *(-?\d+)")
# Of what FFmpeg says, with versions 5 to 9. All but the disk only count without any video: a stream that breaks later
# says "timed out" too.
DISK_WORDS = re.compile(r"No space left|Disk quota|Read-only file system|(?i:mkv.*Input/output)|File too large")
UNAUTHORISED_WORDS = re.compile(r"\b40[13]\b|(?i:unauthori[sz]ed|forbidden)")
LOGIN_WORDS = re.compile(UNAUTHORISED_WORDS.pattern + r"|\b404\b")  # asking again soon may lock the account
REFUSED_WORDS = re.compile(
    r"refused|unreachable|No route to host|not known|name resolution|resolve host|\b404\b|\b4\d\d \(?[A-Z]|4XX|5XX|"
    r"\b5\d\d \(?[A-Z]|timed out|reset by peer|matches no streams|(?i:certificate)"
)
CAUSES = ("unknown", "stall", "video_dead", "crashed", "clock", "refused", "unauthorised", "disk", "stopped")


def classify(lines: Sequence[str], status: int, frames: int) -> str:
    """Why FFmpeg ended by itself. Its status says little: 0 after a stall, anything for the rest."""
    text = "\n".join(lines)
    if DISK_WORDS.search(text):
        return "disk"
    if status < 0:
        return "crashed"
    if frames:
        return "stall"
    if UNAUTHORISED_WORDS.search(text):
        return "unauthorised"
    if REFUSED_WORDS.search(text):
        return "refused"
    if "dimensions not set" in text:  # the picture's: there was sound alone for as long as FFmpeg waits for both
        return "video_dead"
    return "stall" if status == 0 else "unknown"


def plainest(lines: Iterable[str]) -> str:
    """Why FFmpeg failed, in its words: the first line that tells a cause, else the last one; nothing without any."""
    failed = [line for line in lines if re.search(r"\[(error|fatal)\] .", line)]
    plain = [line for line in failed if any(words.search(line) for words in (DISK_WORDS, LOGIN_WORDS, REFUSED_WORDS))]
    return re.sub(r"\?timeout=\d+", "", next(iter([*plain, *failed[-1:]]), ""))


def quotable(words: object) -> str:
    """What FFmpeg or the system said, for a log line that is no ERROR: people search logs for that word.

    The camera is `pipe:0` to FFmpeg, which tells nobody anything.
    """
    return re.sub("(?i)error", "failure", re.sub(r"\[[^\]]*\] |\bpipe:0: ", "", str(words)))


def telling(before: str | None, now: str) -> str:
    """The cause of a whole down time: what began it, unless a later attempt shows more plainly what is wrong."""
    if before is None or before == "unknown":
        return now
    return now if now in ("refused", "unauthorised", "disk") and CAUSES.index(now) > CAUSES.index(before) else before


def retry_wait_sec(attempt: int, down_sec: float, refused: bool, limits: Limits) -> float:
    """Seconds until the next attempt; `attempt` counts from 0, `refused` means password or path (see retry_refused)."""
    if refused:
        return limits.retry_refused
    if down_sec > limits.retry_fast_for:
        return limits.retry_slow
    return min(limits.retry_max, limits.retry_wait * RETRY_GROWTH ** min(attempt, 50))


def dead_cause(silent_sec: float, frames: int, sound_sec: float, limits: Limits) -> str | None:
    """`stall` or `video_dead` when the last new video frame is too long ago, else None.

    `sound_sec` is how far the stream came since that frame, without video.
    """
    if silent_sec < (limits.stall if frames else limits.first_frame):
        return None
    return "video_dead" if frames and sound_sec > limits.stall / 2 else "stall"


def final_stem(camera: Camera, start_sec: float) -> str:
    moment = datetime.fromtimestamp(math.floor(start_sec), camera.zone)
    return moment.strftime(camera.filename.replace("{camera}", camera.name.replace("%", "%%")))


def names_for(stem: str, extension: str) -> Iterator[str]:
    """`stem.ext`, then with _1, _2, ... before the extension: an hour that comes twice, a restart in a second."""
    return (f"{stem}{f'_{number}' if number else ''}.{extension}" for number in itertools.count())


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def clock_text(moment_sec: float, zone: tzinfo) -> str:
    return datetime.fromtimestamp(moment_sec, zone).isoformat(" ", "seconds")


# --- journal and gaps --------------------------------------------------------------------------------------------


def write_journal(camera: Camera, kind: str, start_sec: float, **values: Any) -> None:
    """One line in the journal of the UTC day of `start_sec`, synced."""
    refuse_unmounted(camera)
    file = camera.own("journal") / f"{utc_day(start_sec)}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    line = {"kind": kind, **values, "start": round(start_sec, 3)}
    append_line(file, json.dumps(line, ensure_ascii=False, sort_keys=True))


def write_down(camera: Camera, start_sec: float, end_sec: float, cause: str) -> None:
    """A time without recording: a line for every UTC day that it touches, so that each day's file is complete."""
    while start_sec < end_sec:
        end = min(end_sec, (math.floor(start_sec / 86400) + 1) * 86400.0)
        write_journal(camera, "down", start_sec, end=round(end, 3), cause=cause)
        start_sec = end


def journal_files(folder: Path, since_sec: float, until_sec: float | None = None) -> list[Path]:
    """In order, those of the UTC days from that of `since_sec` to that of `until_sec`; None: to the last one."""
    first, last = utc_day(max(0, since_sec)), "9999" if until_sec is None else utc_day(until_sec)
    return [file for file in sorted(folder.glob("????-??-??.jsonl")) if first <= file.stem <= last]


def read_journal(folder: Path, since_sec: float, until_sec: float) -> list[dict[str, Any]]:
    """The lines that touch the time, in order; a torn line is left out. A segment may begin a day before its end."""
    lines: list[dict[str, Any]] = []
    for file in journal_files(folder, since_sec - 2 * 86400, until_sec):
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                if line["start"] < until_sec and line["end"] > since_sec:
                    lines.append(line)
            except (ValueError, TypeError, KeyError):
                log.debug("%s: a torn line is left out", file)
    return sorted(lines, key=lambda line: float(line["start"]))


def journaled_names(folder: Path, since_sec: float, stem: str) -> set[str]:
    """The files, as JSON strings, that begin with `stem` in the journal from the day of `since_sec` on; its lines are
    not parsed, since this is asked of each file."""
    like = re.compile(f'"file": ({re.escape(json.dumps(stem, ensure_ascii=False)[:-1])}[^"]*")')
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in journal_files(folder, since_sec))
    return {name for text in texts for name in like.findall(text)}


def joined(intervals: Iterable[Interval], slack_sec: float = 0.0) -> list[Interval]:
    """Sorted, overlapping and touching ones made one."""
    result: list[Interval] = []
    for start, end in sorted(intervals):
        if result and start <= result[-1][1] + slack_sec:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        elif end > start:
            result.append((start, end))
    return result


def without(whole: Interval, covered: Sequence[Interval]) -> list[Interval]:
    """What of `whole` is in none of the joined intervals."""
    left, at = [], whole[0]
    for start, end in covered:
        if start > at:
            left.append((at, min(start, whole[1])))
        at = max(at, end)
    return [gap for gap in [*left, (at, whole[1])] if gap[1] > gap[0]]


@dataclass(frozen=True)
class Gap:
    """A time without footage."""

    camera: str
    start: float
    end: float
    cause: str
    basis: str  # journal: the recorder wrote the cause down; inferred: nothing did


@dataclass(frozen=True)
class Coverage:
    """What the journal says about a camera and a time."""

    camera: str
    span: Interval
    covered: list[Interval]
    gaps: list[Gap]
    unjournaled: list[Interval] = field(default_factory=list)  # of files that the journal does not know

    def lost_percent(self, span: Interval | None = None) -> float:
        return self.percent([(gap.start, gap.end) for gap in self.gaps], span or self.span)

    def percent(self, intervals: Iterable[Interval], span: Interval) -> float:
        start, end = span
        both = sum(max(0.0, min(one[1], end) - max(one[0], start)) for one in intervals)
        return 100 * both / (end - start) if end > start else 0.0


def cause_of(gap: Interval, downs: Iterable[Gap]) -> str | None:
    """That of the down times, in order of their start, which covers most of it."""
    shares: dict[str, float] = {}
    for down in itertools.takewhile(lambda down: down.start < gap[1], downs):
        if (both := min(gap[1], down.end) - max(gap[0], down.start)) > 0:
            shares[down.cause] = shares.get(down.cause, 0.0) + both
    return max(shares, key=lambda cause: shares[cause], default=None)


def coverage(camera: str, lines: Sequence[Mapping[str, Any]], span: Interval, downs: Sequence[Gap] = (),
             now_open: Sequence[Interval] = (), files: Sequence[Interval] = ()) -> Coverage:  # fmt: skip
    """Gaps are the time between segments; their cause is that of the down time which covers most of each.

    `downs` and `now_open` come from the state file: a down time that lasts, the segment that is being recorded. `files`
    are those without a line.
    """
    recorded = [(float(line["start"]), float(line["end"])) for line in lines if line.get("kind") == "segment"]
    covered = joined([*recorded, *now_open], GAP_SEC)
    known = [Gap(camera, float(line["start"]), float(line["end"]), str(line.get("cause", "unknown")), "journal")
             for line in lines if line.get("kind") == "down"]  # fmt: skip
    causes = deque(sorted([*known, *downs], key=lambda down: down.start))
    extra = [part for start, end in joined(files, GAP_SEC)
             for part in without((max(start, span[0]), min(end, span[1])), covered) if part[1] - part[0] > GAP_SEC]
    gaps = []
    for start, end in without(span, joined([*covered, *extra], GAP_SEC)):
        if end - start <= GAP_SEC:
            continue
        while causes and causes[0].end <= start:
            causes.popleft()
        cause = cause_of((start, end), causes)
        gaps.append(Gap(camera, start, end, cause or "unknown", "journal" if cause else "inferred"))
    return Coverage(camera, span, joined(covered), gaps, extra)


def days_of(span: Interval, zone: tzinfo) -> Iterator[tuple[str, Interval]]:
    """The days of a zone that the time touches, cut to it; a day may have 23 or 25 hours."""
    day = datetime.fromtimestamp(span[0], zone).date()
    while True:
        start, end = (datetime(one.year, one.month, one.day, tzinfo=zone).timestamp()
                      for one in (day, day + timedelta(days=1)))  # fmt: skip
        if start >= span[1]:
            return
        yield day.isoformat(), (max(start, span[0]), min(end, span[1]))
        day += timedelta(days=1)


def state_text(state: Mapping[str, Any]) -> str:
    """`down refused`, `recording`, `stopped`."""
    return " ".join(dict.fromkeys(str(word) for word in (state.get("state"), state.get("cause")) if word))


def read_state(file: Path) -> dict[str, Any]:
    return read_json(file) or read_json(file) or {}  # the first reading may have met the moment of writing


def named_sec(name: str, zone: tzinfo) -> float | None:
    """When a file begins by its name, epoch seconds; a trailing Z means UTC, else it is a time of `zone`."""
    for found in TIME_IN_NAME.finditer(name):
        with suppress(ValueError):  # digits that are no time
            moment = datetime.strptime("".join(found.groups()[:6]), "%Y%m%d%H%M%S")
            return moment.replace(tzinfo=timezone.utc if found[7] else zone).timestamp()
    return None


def held_sec(path: Path) -> float:
    """How long a file plays; 0 for one that does not."""
    try:
        ffmpeg = find_ffmpeg("the length of files without a journal")
        media = read_media(ffmpeg, path, ["-t", "1"])
        return (media if media.finalised else read_media(ffmpeg, path)).duration_sec
    except (Unreadable, OSError) as problem:
        log.warning("%s: counts as nothing: %s", path, quotable(problem))
        return 0.0


def unjournaled(folder: Path, journaled: set[str], span: Interval, zone: tzinfo) -> list[Interval]:
    """When the files of a time that the journal does not know were recorded, those of an older recorder for example.

    A file goes from the time in its name to its last write, or to the next file where it was copied and the last write
    says nothing. It is looked into only where both would make it longer than files are here, or its name says nothing.
    """
    files: list[tuple[float | None, float, Path]] = []
    for entry in os.scandir(folder) if folder.is_dir() else ():
        known = f"{folder.name}/{entry.name}" in journaled or entry.name.startswith(".")
        if entry.name.endswith((".mkv", ".mp4")) and not known and entry.is_file() and entry.stat().st_size:
            files.append((named_sec(entry.name, zone), entry.stat().st_mtime, Path(entry.path)))
    starts = sorted({start for start, _, _ in files if start is not None})
    steps = sorted(after - start for start, after in itertools.pairwise(starts))
    longest = steps[len(steps) // 2] * USUAL_SHARE + DURATION_SLACK_SEC if steps else 0.0
    following = dict(itertools.pairwise([*starts, math.inf]))
    found = []
    for start, written, path in files:
        end = written if start is None else min(written if written > start else math.inf, following[start])
        if end <= span[0] or (start or 0) >= span[1]:
            continue
        if start is None:
            found.append((written - held_sec(path), written))
        else:
            found.append((start, end if end - start <= longest else min(end, start + held_sec(path))))
    return found


def coverage_of(root: Path, camera: str, since_sec: float | None, until_sec: float,
                zone: tzinfo | None = None) -> Coverage | None:  # fmt: skip
    """From the journal, and for what is not in it yet from the state file; None when there is neither.

    With the `zone` of file names, files without a line in the journal count as well. What was before all is no gap.
    """
    folder = root / STATE_FOLDER / "journal" / camera
    state = read_state(root / STATE_FOLDER / "state" / f"{camera}.json")
    lines = read_journal(folder, 0 if since_sec is None else since_sec, until_sec)
    opened, last, updated = (float(state.get(name) or 0) for name in ("recording_since", "last_frame_at", "updated_at"))
    alive = time.time() - updated < STATE_STALE_SEC
    fresh = alive and state.get("state") == "recording"
    now_open = [(opened, until_sec if fresh else last)] if opened and last else []
    files: list[Interval] = []
    if zone:
        around = read_journal(folder, (since_sec or 0) - 2 * 86400, until_sec + 2 * 86400)
        files = unjournaled(root / camera, {str(one.get("file")) for one in around}, (since_sec or 0, until_sec), zone)
    day = next((file.stem for file in journal_files(folder, 0)), "1970-01-01")
    oldest = read_journal(folder, 0, datetime.fromisoformat(f"{day}T00:00+00:00").timestamp() + 86400)
    starts = [float(line["start"]) for line in [*oldest, *lines]] + [start for start, _ in now_open + files]
    if (first := min([*starts, float(state["since"])] if state else starts, default=until_sec)) >= until_sec:
        return None
    span = (max(first, since_sec or first), until_sec)
    downs = []
    if state.get("state") in ("down", "stopped") or (alive and state.get("state") == "starting"):
        downs = [Gap(camera, float(state["since"]), until_sec, str(state["cause"] or "stopped"), "journal")]
    elif state and not fresh:
        downs = [Gap(camera, last or updated, until_sec, "crashed", "journal")]
    return coverage(camera, lines, span, downs, now_open, files)


# --- files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Media:
    """What reading a file showed. `frames` is None where not all of it was read."""

    duration_sec: float
    frames: int | None
    codec: str
    finalised: bool  # its header was completed: nobody was killed while writing it
    problems: tuple[str, ...]


def run_aside(command: Sequence[str], timeout_sec: float | None = None) -> subprocess.CompletedProcess[str]:
    """A program that asks nothing, in a session of its own: a hangup does not reach it."""
    return subprocess.run(list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                          check=False, timeout=timeout_sec, start_new_session=True)  # fmt: skip


def run_ffmpeg(command: Sequence[str], size_bytes: int) -> subprocess.CompletedProcess[str]:
    return run_aside(command, CHECK_TIMEOUT_SEC + size_bytes / CHECK_BYTES_PER_SEC)


def read_media(ffmpeg: str, path: Path, window: Sequence[str] = ()) -> Media:
    """Read a file, or the `window` of it (FFmpeg's input options), without decoding. Raises Unreadable."""
    command = [ffmpeg, *QUIETLY, "level+info", "-progress", "pipe:1", *window, "-i", f"file:{path}",
               "-map", "0:v:0", "-map", "0:a?", "-c", "copy", "-f", "null", "-"]  # fmt: skip
    try:
        done = run_ffmpeg(command, path.stat().st_size)
    except subprocess.TimeoutExpired as problem:
        raise Unreadable(f"{path.name}: reading it took longer than {problem.timeout:.0f} s") from problem
    frames, out_sec = read_progress(done.stdout)
    header = re.search(r"Duration: (\d+):(\d+):([\d.]+)", done.stderr)
    codec = re.search(r"Video: (\w+)", done.stderr)
    problems = [line for line in done.stderr.splitlines() if "[error]" in line or "[fatal]" in line]
    if done.returncode < 0:  # for want of memory, say: it tells nothing about the file
        raise OSError(f"{path.name}: FFmpeg was killed while it read this")
    if done.returncode or not frames or not codec:
        raise Unreadable(f"{path.name}: {problems[-1] if problems else 'it holds no video'}")
    length = out_sec or 0.0
    if header and (window or not problems):  # in a file with a hole or a torn end the header promises too much
        length = int(header[1]) * 3600 + int(header[2]) * 60 + float(header[3])
    return Media(length, None if window else frames, codec[1], header is not None, tuple(problems))


def examine(ffmpeg: str, path: Path, check_bytes: int) -> Media:
    """Read all of a file, of a big one its head and its tail; all, too, where these are not as usual.

    A head of sound alone waits for the first key frame. Raises Unreadable.
    """
    if path.stat().st_size > check_bytes:
        with suppress(Unreadable):
            head = read_media(ffmpeg, path, ["-t", str(CHECK_ENDS_SEC)])
            if not head.finalised:
                return head
            if not head.problems and not read_media(ffmpeg, path, ["-sseof", f"-{CHECK_ENDS_SEC}"]).problems:
                return head
    return read_media(ffmpeg, path)


def remux(ffmpeg: str, source: Path, target: Path, held: Media, sound: str = "copy") -> Media | None:
    """Copy the streams into a file of the kind that `target` is called; None when that did not work.

    `target` (which may be `source`) appears whole or not at all, and only if it holds no less video than was `held`.
    H.265 gets the tag that players of MP4 expect.
    """
    kind = "mp4" if target.suffix == ".mp4" else "matroska"
    tag = ["-tag:v", "hvc1"] if kind == "mp4" and held.codec == "hevc" else []
    try:
        with part_file(target) as part:
            command = [ffmpeg, *QUIETLY, "error", "-y", "-i", f"file:{source}", "-map", "0:v:0", "-map", "0:a?",
                       "-c", "copy", "-c:a", sound, *tag, "-f", kind, f"file:{part}"]  # fmt: skip
            done = run_ffmpeg(command, source.stat().st_size)
            if done.returncode:
                raise Unreadable(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no reason given")
            made = read_media(ffmpeg, part)
            if (made.frames or 0) < (held.frames or 0) or made.duration_sec < held.duration_sec - DURATION_SLACK_SEC:
                raise Unreadable(f"{made.frames} frames of {held.frames}, {made.duration_sec} s")
    except (Unreadable, subprocess.TimeoutExpired) as problem:
        log.debug("%s: not copied to %s: %s", source.name, target.name, problem)
        return None
    return made


def sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)  # without Python's file around it: this is done all the time
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(staged: Path, folder: Path, names: Iterable[str]) -> Path:
    """Give a finished file the first free name; never overwrites. Where links exist, `staged` stays as well.

    A crash at any instant may be followed by the same call: a name that already is this file is taken as done. Without
    links an empty file reserves the name; the camera's lock is ours, so one that is found was left by a crash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for final in (folder / name for name in names):
        try:
            os.link(staged, final)
        except FileExistsError:
            if final.is_file() and not final.stat().st_size:
                staged.replace(final)
            elif not (final.samefile(staged) or filecmp.cmp(final, staged, shallow=False)):
                continue
        except OSError as problem:
            if problem.errno == errno.EXDEV:  # the camera's folder is on another disk
                near = folder / f".{staged.name}.part"
                shutil.copy2(staged, near)
                sync_file(near)
                final = publish(near, folder, itertools.chain([final.name], names))
                near.unlink(missing_ok=True)
                return final
            if problem.errno not in NO_LINKS:
                raise
            try:
                final.touch(exist_ok=False)
            except FileExistsError:
                if final.stat().st_size:
                    continue
            staged.replace(final)
        fsync_folder(folder)
        return final
    raise AssertionError("names do not end")


def is_mounted(folder: Path) -> bool:
    """On another filesystem than the system's root."""
    with suppress(OSError):
        return folder.stat().st_dev != Path("/").stat().st_dev
    return False


def refuse_unmounted(camera: Camera) -> None:
    """OSError where a disk has to be mounted and is not: what is written there now would be hidden by it later."""
    if camera.require_mount and not is_mounted(camera.root):
        raise OSError(errno.ENODEV, "not mounted (storage.require_mount)", str(camera.root))


def writers_in(folder: Path) -> list[int]:
    """FFmpegs of a killed recorder that still write into a staging folder: they were started inside of it."""
    ours = f"{STAGED_NAME}.mkv".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*") if Path("/proc/self/cwd").exists() else ():
        with suppress(OSError):  # ended, or another user's
            if (entry / "cwd").samefile(folder) and ours in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


# --- one FFmpeg --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A staged file that waits for being checked and published; times where FFmpeg told them."""

    path: Path
    start_sec: float | None = None
    end_sec: float | None = None
    first: bool = False  # of its run: it may begin with sound alone, until the camera's next key frame
    found: bool = False  # left by an earlier process: it may have been published, but not recorded as such


class Run:
    """One FFmpeg process from its start to its end, and what it said meanwhile."""

    def __init__(self, camera: Camera, ffmpeg: str, folder: Path, tls_options: bool) -> None:
        self.folder = folder
        self.started = self.last_rise = time.monotonic()
        self.frames, self.out_sec, self.out_at_rise_sec = 0, 0.0, 0.0
        self.last_frame_at = 0.0  # epoch seconds
        self.blind_sec = 0.0  # stream time up to which there was sound alone, until the first key frame
        self._clock_offset, self._clock_step_sec = time.time() - time.monotonic(), camera.limits.clock_step
        self.anchors: deque[float] = deque(maxlen=ANCHOR_SAMPLES)  # epoch seconds of stream time 0, each a bit late
        self.stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self.new_stderr: list[str] = []
        self.rows: list[tuple[Job, float, float]] = []  # start and end in stream time
        self.jobs: list[Job] = []
        self.adopted = self.closed = 0  # files that got their own name; those that FFmpeg has closed
        self.open: deque[Path] = deque()  # the difference: one, for an instant two
        self.astray = 0  # how often in a row the file that FFmpeg writes to was not there
        self._buffers: dict[int, bytes] = {}
        self._selector = selectors.DefaultSelector()
        pipes: list[int] = []
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            progress, progress_in, rows, rows_in = pipes
            self.process = subprocess.Popen(
                record_command(ffmpeg, camera, progress_in, rows_in), cwd=folder, stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(progress_in, rows_in),
                start_new_session=True, env={**os.environ, "TZ": "UTC", "AV_LOG_FORCE_NOCOLOR": "1"})  # fmt: skip
        except OSError:
            for number in pipes[::2]:
                os.close(number)
            self._selector.close()
            raise
        finally:
            for number in pipes[1::2]:  # FFmpeg's ends
                os.close(number)
        assert self.process.stdin and self.process.stderr
        self._stderr = self.process.stderr
        for number, take, end in ((progress, self._take_progress, b"progress="), (rows, self._take_row, b"\n"),
                                  (self._stderr.fileno(), self._take_stderr, b"\n")):  # fmt: skip
            os.set_blocking(number, False)
            self._selector.register(number, selectors.EVENT_READ, (take, end))
        try:
            self.process.stdin.write(ffconcat(camera, tls_options).encode())
            self.process.stdin.close()
        except BrokenPipeError:
            log.debug("%s: FFmpeg ended before it was told what to record", camera.name)
        if camera.core is not None:
            with suppress(OSError, AttributeError):  # it has ended already; this system cannot do that
                os.sched_setaffinity(self.process.pid, {camera.core})

    @property
    def anchor(self) -> float | None:
        """When the stream's time 0 was: a block of progress is read late at times, but never early."""
        return min(self.anchors, default=None)

    @property
    def media_end(self) -> float:
        """The end of the newest frame, epoch seconds."""
        told = self.last_frame_at if self.anchor is None else self.anchor + self.out_at_rise_sec
        return min(self.last_frame_at, told)

    def poll(self, timeout_sec: float) -> bool:
        """Read what FFmpeg says; False once it has ended and everything is read."""
        if not self._selector.get_map():
            return False
        if self.frames and not self.open:  # the next file is about to be
            self.adopt()
            timeout_sec = timeout_sec if self.open else min(timeout_sec, ADOPT_SEC)
        for key, _ in self._selector.select(timeout_sec):
            try:
                data = os.read(key.fd, 65536)
            except BlockingIOError:
                continue
            if not data:
                self._selector.unregister(key.fd)
                if key.fd != self._stderr.fileno():
                    os.close(key.fd)
                continue
            take, end = key.data
            *pieces, rest = (self._buffers.get(key.fd, b"") + data).split(end)
            self._buffers[key.fd] = rest[-65536:]
            for piece in pieces:
                take(piece.decode("utf-8", "replace"))
        return bool(self._selector.get_map())

    def _take_progress(self, block: str) -> None:
        (frames, out_sec), now = read_progress(block), time.time()
        if out_sec is not None and out_sec > self.out_sec:
            self.out_sec = out_sec
            offset = now - time.monotonic()
            if abs(offset - self._clock_offset) <= self._clock_step_sec:  # else the clock was set: this run ends
                self.anchors.append(now - out_sec)
                self._clock_offset = offset
            self.blind_sec = self.blind_sec if frames else out_sec
        if frames > self.frames:
            self.frames, self.last_rise, self.out_at_rise_sec = frames, time.monotonic(), self.out_sec
            self.last_frame_at = now

    def _take_row(self, line: str) -> None:
        row = read_row(line)
        self.adopt()
        if row and self.open:
            self.rows.append((Job(self.open.popleft(), first=not self.closed), *row[1:]))
            self.closed += 1

    def adopt(self) -> None:
        """Rename what FFmpeg has begun to write: when the clock is set back a little, it takes the name once more."""
        with suppress(OSError):
            for path in sorted(self.folder.glob("*Z.mkv")):
                self.open.append(path.rename(path.with_stem(f"{path.stem}-{self.adopted}")))
                self.adopted += 1

    def settle_rows(self) -> None:
        """Make jobs of the rows: soon after the start there are too few anchors to tell when stream time 0 was."""
        zero = self.anchor
        for job, start, end in self.rows:
            self.jobs.append(job if zero is None else replace(job, start_sec=zero + start, end_sec=zero + end))
        self.rows.clear()

    def _take_stderr(self, line: str) -> None:
        text = mask(line.strip())
        if text and "[info] " not in text:
            self.stderr.append(text)
        self.new_stderr.append(text)

    def sync(self) -> None:
        """fsync the open file. Somebody may have removed it, or its folder: FFmpeg would not notice for an hour."""
        is_gone = self.frames > 0
        for path in self.open:
            try:
                sync_file(path)
            except FileNotFoundError:
                continue
            except OSError as problem:  # a disk that fails ends FFmpeg, which says so
                log.debug("%s: not synced: %s", path, problem)
            is_gone = False
        self.astray = self.astray + 1 if is_gone else 0

    def stop(self, step_sec: float) -> None:
        """TERM lets FFmpeg finish its file; one that waits for its camera needs the second; then KILL."""
        for what in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                break
            self.process.send_signal(what)
            until = time.monotonic() + step_sec
            while self.process.poll() is None and time.monotonic() < until:
                self.poll(0.05)
                time.sleep(0.01)
        until = time.monotonic() + step_sec
        while time.monotonic() < until and self.poll(0.05):
            pass

    def close(self) -> None:
        """The process has ended: free what belongs to it, and take files that it did not close as they are."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for key in list(self._selector.get_map().values()):
            if key.fd != self._stderr.fileno():
                os.close(key.fd)
        self._selector.close()
        self._stderr.close()
        self.settle_rows()
        self.adopt()
        self.jobs += [Job(path, first=not self.closed) for path in self.open]


# --- finished files ----------------------------------------------------------------------------------------------


class Finisher:
    """Takes a camera's staged files: checks, repairs, changes the container, publishes, records."""

    def __init__(self, camera: Camera, ffmpeg: str) -> None:
        self.camera, self.ffmpeg = camera, ffmpeg
        self.sound = "copy"  # for mp4; aac once a file has shown that mp4 cannot hold the sound as it is
        self.last_file: str | None = None
        self.journaled_until = 0.0

    def finish(self, job: Job) -> None:
        """Raises OSError when the disk or the folder is the problem: then nothing is lost, and it can be repeated.

        Until the journal has its line a note holds it: the published file may soon be moved into the archive.
        """
        refuse_unmounted(self.camera)
        cut = job.path.with_stem(job.path.stem + "-cut")  # its name after a first try that did not get through
        path = cut if any(cut.with_suffix(kind).exists() for kind in STAGED) else job.path
        ready, note = path.with_suffix(".mp4"), path.with_suffix(".json")
        source = ready if ready.exists() else path
        if line := read_state(note):
            if not source.exists() or source.stat().st_nlink > 1:
                source.unlink(missing_ok=True)
                self.record(line, note, again=True)
                return
            note.unlink()
        try:
            if source == ready:  # made and checked by a process that was killed before it published it
                media, whole = read_media(self.ffmpeg, ready), "-cut" not in path.stem
                path = path if path.exists() else source
            elif not path.exists():
                return
            else:
                path, source, media, whole = self.prepare(replace(job, path=path))
        except Unreadable as problem:
            self.set_aside(path, problem)
            return
        if job.found and job.start_sec is None:
            job = replace(job, start_sec=self.end_before(path))
        silent_sec = silent_start_sec(self.ffmpeg, source) if job.first or job.found else 0.0
        start, end = segment_times(job, path, media, silent_sec)
        if source != path:  # first: where publishing is a rename, a crash after it must not find the MKV and redo it
            path.unlink()
        named, note = named_sec(path.name, timezone.utc), path.with_suffix(".json")
        stem = final_stem(self.camera, start if named is None or abs(named - start) > 1 else named)
        line = {"start": round(start, 3), "end": round(end, 3), "frames": media.frames, "whole": whole,
                "bytes": source.stat().st_size}  # fmt: skip

        told = journaled_names(self.camera.own("journal"), start - NAME_AGAIN_SEC, f"{self.camera.name}/{stem}")

        def noted() -> Iterator[str]:
            for name in names_for(stem, source.suffix[1:]):
                file = f"{self.camera.name}/{name}"
                if json.dumps(file, ensure_ascii=False) not in told:  # what had it may be in the archive, not here
                    write_json(note, line | {"file": file})
                    yield name

        try:
            final = publish(source, self.camera.root / self.camera.name, noted())
        except OSError:
            note.unlink(missing_ok=True)
            raise
        source.unlink(missing_ok=True)
        self.record(line | {"file": f"{self.camera.name}/{final.name}"}, note)

    def end_before(self, path: Path) -> float | None:
        """When the file before this one of the same run ended, by the journal: then this one began."""
        number, named = re.search(r"Z-(\d+)", path.stem), named_sec(path.name, timezone.utc)
        if named is None or not number or int(number[1]) == 0:
            return None
        near = read_journal(self.camera.own("journal"), named - STAGED_SLACK_SEC, named + STAGED_SLACK_SEC)
        ends = [float(line["end"]) for line in near if line["kind"] == "segment"]
        return min((end for end in ends if abs(end - named) <= STAGED_SLACK_SEC), default=None)

    def record(self, line: Mapping[str, Any], note: Path, *, again: bool = False) -> None:
        """Into the journal, `again` only what it lacks. Without the staged file the note is all that is left of it."""
        start, end = line["start"], line["end"]
        known = read_journal(self.camera.own("journal"), start - 1, end + 1) if again else []
        if {"kind": "segment", **line} not in known:
            write_journal(self.camera, "segment", start, **line)
        note.unlink(missing_ok=True)
        ends = [one for one in (self.journaled_until, end) if one <= time.time()]  # else the clock was set back
        self.last_file, self.journaled_until = line["file"], max(ends, default=0.0)
        log.info("%s: %s: %.1f s, %s frames, %.1f MB%s", self.camera.name, Path(line["file"]).name, end - start,
                 line["frames"] or "?", line["bytes"] / 1e6, "" if line["whole"] else ", cut short")  # fmt: skip

    def prepare(self, job: Job) -> tuple[Path, Path, Media, bool]:
        """(what was staged, what to publish, what it holds, is all of it there). Raises Unreadable."""
        path = job.path
        sync_file(path)
        written = path.stat().st_mtime
        media = examine(self.ffmpeg, path, self.camera.limits.check_bytes)
        planned = None if job.start_sec is None or job.end_sec is None else job.end_sec - job.start_sec
        fits = planned is None or media.duration_sec >= planned - DURATION_SLACK_SEC
        whole = media.finalised and fits and not media.problems and "-cut" not in path.stem
        if not whole and "-cut" not in path.stem:
            path = path.rename(path.with_stem(path.stem + "-cut"))  # so that it is known after a crash, too
        if not media.finalised or media.problems:
            media = remux(self.ffmpeg, path, path, media) or media
            os.utime(path, (written, written))  # the time of its last frame
        if self.camera.container != "mp4":
            return path, path, media, whole
        ready = path.with_suffix(".mp4")
        made = remux(self.ffmpeg, path, ready, media, self.sound)
        if not made and self.sound == "copy" and (made := remux(self.ffmpeg, path, ready, media, "aac")):
            self.sound = "aac"
            log.info("%s: MP4 cannot hold its sound as it is, it becomes AAC", self.camera.name)
        if not made:
            log.warning("%s: %s: no MP4 could be made of it, it stays MKV", self.camera.name, path.name)
            return path, path, media, whole
        os.utime(ready, (written, written))
        return path, ready, made, whole

    def set_aside(self, path: Path, problem: Unreadable) -> None:
        """What cannot be read is kept where nobody takes it for footage; a header without a picture is removed."""
        if path.stat().st_size <= EMPTY_BYTES:
            log.debug("%s: %s: removed, it is empty", self.camera.name, path.name)
            path.unlink()
            return
        aside = self.camera.own("unreadable")
        aside.mkdir(parents=True, exist_ok=True)
        path.replace(aside / f"{path.parent.name}_{path.name}")
        log.warning("%s: %s; kept in %s", self.camera.name, quotable(problem), aside)


def silent_start_sec(ffmpeg: str, path: Path) -> float:
    """How long after the start of a file its video begins: a camera's first key frame may be long in coming.

    FFmpeg writes the first frame of a run without its time, which makes it 0; the second one shows where it was.
    """
    command = [ffmpeg, *QUIETLY, "error", "-copyts", "-i", f"file:{path}", "-map", "0:v:0", "-c", "copy",
               "-frames:v", "3", "-f", "framecrc", "-"]  # fmt: skip
    text = run_ffmpeg(command, 0).stdout
    scale, times = re.search(r"#tb 0: (\d+)/(\d+)", text), re.findall(r"(?m)^0, +-?\d+, +(\d+)", text)
    if not scale or len(times) < 3:
        return 0.0
    second, third = (int(moment) * int(scale[1]) / int(scale[2]) for moment in times[1:])
    return max(0.0, second - (third - second))


def segment_times(job: Job, path: Path, media: Media, silent_sec: float) -> Interval:
    """Of the video of a file, in epoch seconds. Its last write says little: FFmpeg closes it late without frames."""
    named, start, length_sec = named_sec(path.name, timezone.utc), job.start_sec, media.duration_sec
    end = path.stat().st_mtime
    if start is not None and job.end_sec is not None:
        end = max(start, min(job.end_sec, start + length_sec + 1))
        return min(end, start + silent_sec), end
    if named is not None and start is not None and -NAME_LATE_SEC <= start - named <= DURATION_SLACK_SEC:
        end = start + length_sec
    elif named is not None and abs(named + length_sec - end) > NAME_LATE_SEC:
        end = named + length_sec
    return end - length_sec + silent_sec, end


def left_by(folder: Path, start_sec: float | None) -> list[Job]:
    """What an earlier process left of one run: the first file began at `start_sec`, each next with its last write."""
    jobs = []
    for stem in sorted({file.stem for file in folder.iterdir() if file.suffix in STAGED}):
        jobs.append(Job(folder / f"{stem}.mkv", start_sec, found=True))
        written = [file.stat().st_mtime for kind in STAGED if (file := folder / f"{stem}{kind}").exists()]
        start_sec = read_state(folder / f"{stem}.json").get("end") or written[0]
    return jobs


# --- one camera --------------------------------------------------------------------------------------------------


class Recorder:
    """Keeps one camera recorded until it is told to stop. `work` is the whole life of its thread.

    With `lock_into` the camera is not locked yet, because its folder could not be written: that comes first then.
    """

    def __init__(self, camera: Camera, ffmpeg: str, tls_options: bool, pool: ThreadPoolExecutor,
                 stopping: threading.Event, lock_into: ExitStack | None = None) -> None:  # fmt: skip
        self.camera, self.ffmpeg, self.tls_options, self.pool = camera, ffmpeg, tls_options, pool
        self.stopping, self.lock_into = stopping, lock_into
        self.finisher = Finisher(camera, ffmpeg)
        self.pending: dict[Future[None], Job] = {}
        self.again: list[tuple[float, Job]] = []
        self.beat = time.monotonic()
        self.state: dict[str, Any] = {"camera": camera.name, "pid": os.getpid(), "state": "starting",
                                      "since": time.time(), "cause": None, "last_frame_at": None,
                                      "recording_since": None, "fps": 0.0, "bytes_per_sec": 0.0,
                                      "last_file": None, "lost_today_sec": 0.0}  # fmt: skip
        self.down_since, self.today = time.time(), time.time() // 86400
        self.down_cause: str | None = None
        self.state_file, self.state_size = camera.state_file, 0
        self.unwritten: deque[tuple[float, float, str]] = deque()  # what the journal did not take yet
        self.default_cause = "stopped"  # of the seconds between the program's start and the first frame
        self.said: str | None = None
        self.detail, self.shut_out = "", False  # of the last failure: what was said; was password or path refused
        self.attempt = 0
        self.run_count = itertools.count(1)
        self.clock_offset = time.time() - time.monotonic()
        self.stepped_at = 0.0  # what the clock would show had it not jumped, when that was seen
        self.next_state = self.next_sync = self.next_space_check = 0.0
        self.rate = (0.0, 0, 0)  # when, frames, bytes: at the last state
        self.ffmpeg_log = open_ffmpeg_log(camera)

    def work(self, delay_sec: float) -> None:
        """Whatever goes wrong with this camera, it is tried again, and the others do not notice."""
        self.stopping.wait(delay_sec)
        steps = [self.wait_for_lock, self.take_over, self.record]
        while not self.stopping.is_set():
            try:
                steps[0]()
                steps = steps[1:] or steps
            except Exception as problem:  # noqa: BLE001  a bug must not end the recording of a camera for ever
                log.exception("%s: this is a bug in the program; trying again in %d s", self.camera.name, KEPT_AWAY_SEC)
                if self.state["state"] == "recording":
                    self.down_since = self.state["last_frame_at"] or time.time()
                self.down("crashed", f"a bug in the program: {problem}")
                self.stopping.wait(KEPT_AWAY_SEC)
        if self.lock_into is None:
            self.end()

    def wait_for_lock(self) -> None:
        """Until the folder can be written. Without the lock nothing is written there, the state neither."""
        if (lock_into := self.lock_into) is None:
            return
        self.said = self.down_cause = "disk"  # as it was told at the start
        self.state |= {"state": "down", "cause": "disk"}
        for attempt in itertools.count():
            self.rest(retry_wait_sec(attempt, time.time() - self.down_since, False, self.camera.limits))
            if self.stopping.is_set():
                return
            try:
                take_lock(self.camera, lock_into)
                self.lock_into = None
                return
            except Busy as problem:
                if self.state["state"] != "held":
                    log.warning("%s", problem)
                self.state["state"], self.down_since = "held", time.time()
            except CannotStart as problem:
                self.detail = str(problem)

    def take_over(self) -> None:
        """Account for the time since the last process, and publish what it left."""
        before = read_state(self.camera.state_file)
        if before:
            stopped = before.get("state") in ("stopped", "down")
            since = before.get("since") if stopped else before.get("last_frame_at") or before.get("since")
            since, midnight = float(since or self.down_since), self.today * 86400
            self.default_cause = str(before.get("cause") or "stopped") if stopped else "crashed"
            self.try_journal(since, self.down_since, self.default_cause)
            lost = before.get("lost_today_sec") if float(before.get("updated_at") or 0) >= midnight else 0
            self.state["lost_today_sec"] = round(float(lost or 0) + max(0.0, self.down_since - max(since, midnight)), 1)
            if before.get("state") != "stopped":
                self.default_cause = "crashed"
        staging = self.camera.own("staging")
        staging.mkdir(parents=True, exist_ok=True)
        opened = float(before.get("recording_since") or 0) if before.get("state") == "recording" else 0.0
        with suppress(OSError):  # the state may be older than the journal
            lines = read_journal(self.camera.own("journal"), opened, time.time()) if opened else []
            ends = [line["end"] for line in lines if line["kind"] == "segment"]
            opened = max(ends, default=opened - before.get("blind_sec", 0.0))
        for folder in (folders := sorted(entry for entry in staging.iterdir() if entry.is_dir())):
            end_processes(partial(writers_in, folder), self.camera.name, "recorder", self.camera.limits.stop_wait)
            last = folder == folders[-1] and f"-{before.get('pid')}-" in folder.name
            for job in (jobs := left_by(folder, opened if opened and last else None)):
                self.submit(job)
            if jobs:
                log.info("%s: %d files of an earlier run are checked and published", self.camera.name, len(jobs))
            self.tidy(folder)

    def record(self) -> None:
        """Attempt after attempt until the end."""
        while not self.stopping.is_set():
            if problem := self.obstacle(going=False):
                self.down("disk", problem)
                self.rest(SPACE_RECHECK_SEC)
                continue
            started = time.monotonic()
            cause, detail, refused = self.one_run()
            if self.stopping.is_set():
                return
            steady = self.state["state"] == "recording" and time.monotonic() - started > STEADY_SEC
            self.attempt = 0 if steady else self.attempt
            self.down(cause, detail, shut_out=refused)
            down_sec = time.time() - self.down_since
            wait_sec = retry_wait_sec(self.attempt, down_sec, refused, self.camera.limits)
            self.attempt += 1
            self.rest(0 if cause == "clock" else wait_sec)

    def one_run(self) -> tuple[str, str, bool]:
        """One FFmpeg from start to end: (cause, what it said last, was password or path refused)."""
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}-{next(self.run_count)}"
        folder = self.camera.own("staging") / name
        try:
            folder.mkdir(parents=True)
        except OSError as problem:
            return "disk", str(problem), False
        try:
            current = Run(self.camera, self.ffmpeg, folder, self.tls_options)
        except OSError as problem:  # open files, processes or memory have run out, or FFmpeg was removed
            self.tidy(folder)
            return "crashed", f"{NOT_STARTED}: {problem.strerror}", False
        ours: str | None = None
        try:
            tick_sec = min(TICK_SEC, self.camera.limits.stall / 10)
            while current.poll(tick_sec) and not ours:
                self.look_after(current)
                ours = self.verdict(current)
            lines = list(current.stderr)  # not what our TERM makes it say
            ours = ours or ("clock" if self.has_jumped() else None)  # FFmpeg may have ended before we saw it
            if ours:
                self.note(current)
                current.stop(STOP_STEP_SEC if self.stopping.is_set() else self.camera.limits.stop_wait)
        finally:
            current.close()
            self.note(current)
            if ours in ("video_dead", "clock"):  # the file goes on: with sound alone, or with times of the new clock
                last = current.media_end if ours == "video_dead" else self.stepped_at
                current.jobs = [replace(job, end_sec=min(job.end_sec, last)) if job.end_sec else job
                                for job in current.jobs]  # fmt: skip
            self.take_jobs(current)
        if current.frames:
            if self.state["state"] != "recording":  # too short for that; the time before is written down all the same
                self.up(current)
            self.down_since = min(self.stepped_at, time.time()) if ours == "clock" else current.media_end
        self.tidy(folder)
        refused = not current.frames and any(map(LOGIN_WORDS.search, lines))
        return ours or classify(lines, current.process.returncode, current.frames), plainest(lines), refused

    def look_after(self, current: Run) -> None:
        """What has to be done several times a second while FFmpeg runs."""
        self.take_jobs(current)
        now = time.monotonic()
        settled = len(current.anchors) >= ANCHOR_ENOUGH or now - current.started > STEADY_SEC
        if settled and current.frames and self.state["state"] != "recording":
            self.up(current)
        if now >= self.next_sync:
            self.next_sync = now + self.camera.limits.fsync_every
            current.sync()
        if now >= self.next_state:
            self.note(current)

    def verdict(self, current: Run) -> str | None:
        """Why the running FFmpeg has to end now, None while all is well."""
        if self.stopping.is_set():
            return "stopped"
        if self.has_jumped():
            return "clock"
        if current.astray > 1:
            log.warning("%s: the file that is being recorded was removed by somebody", self.camera.name)
            return "disk"
        now = time.monotonic()
        if now >= self.next_space_check:
            self.next_space_check = now + SPACE_EVERY_SEC
            if self.obstacle(going=True):
                return "disk"
        return dead_cause(now - current.last_rise, current.frames, current.out_sec - current.out_at_rise_sec,
                          self.camera.limits)  # fmt: skip

    def has_jumped(self) -> bool:
        """Whether the host's clock was set since the last look."""
        now = time.monotonic()
        before, self.clock_offset = self.clock_offset, time.time() - now
        if abs(jump := self.clock_offset - before) <= self.camera.limits.clock_step:
            return False
        log.warning("%s: the clock of this machine jumped by %.1f s", self.camera.name, jump)
        self.stepped_at = now + before
        return True

    def obstacle(self, *, going: bool) -> str | None:
        """Why there must be no recording now: mount away, too little space. Going on needs more than not stopping."""
        camera = self.camera
        if camera.require_mount and not is_mounted(camera.root):
            return f"{camera.root} is not mounted"
        try:
            free = shutil.disk_usage(camera.root).free
        except OSError as problem:
            return f"{camera.root}: {problem.strerror}"
        needed = camera.space_bytes if going else camera.space_again_bytes
        return None if free >= needed else f"{free / 1e6:.0f} MB free, {needed / 1e6:.0f} are needed"

    def up(self, current: Run) -> None:
        since = time.time() if current.anchor is None else current.anchor + current.blind_sec
        if self.down_since - since > self.camera.limits.clock_step:  # set back meanwhile: this time comes twice
            self.down_since = since
        since = max(since, self.down_since + 0.001)  # a line in any case: the wait for a key frame has its cause there
        cause = self.down_cause or self.default_cause
        self.try_journal(self.down_since, since, cause)
        lost = max(0.0, since - self.down_since)
        self.state |= {"state": "recording", "since": since, "recording_since": since, "cause": None,
                       "blind_sec": current.blind_sec,
                       "lost_today_sec": round(self.state["lost_today_sec"] + lost, 1)}  # fmt: skip
        log.info("%s: recording; %.1f s were lost (%s)", self.camera.name, lost, cause)
        self.down_cause = self.said = None

    def down(self, cause: str, detail: str, *, shut_out: bool = False) -> None:
        """Remember since when and why; said once, and again when the cause shows more plainly."""
        self.detail, self.shut_out = detail, shut_out
        self.down_cause = telling(self.down_cause, cause)
        news = detail if detail.startswith(NOT_STARTED) else self.down_cause  # also after one that crashed
        if self.said != news:
            log.warning("%s: not recording: %s%s", self.camera.name, cause, f": {quotable(detail)}" if detail else "")
            self.said = news
        midnight = time.time() // 86400 * 86400
        if self.down_since < midnight:  # the past day's journal is complete in itself
            self.try_journal(self.down_since, midnight, self.down_cause)
            self.down_since = midnight
        self.state |= {"state": "down", "since": self.down_since, "cause": self.down_cause, **SILENT}
        self.write_state()

    def try_journal(self, start_sec: float, end_sec: float, cause: str) -> None:
        """What a full disk does not take is written the next time: the gap shows all the same, only not why."""
        self.unwritten.append((start_sec, end_sec, cause))
        with suppress(OSError):
            while self.unwritten:
                write_down(self.camera, *self.unwritten[0])
                self.unwritten.popleft()

    def rest(self, wait_sec: float) -> None:
        until = time.monotonic() + wait_sec
        while (left := until - time.monotonic()) > 0 and not self.stopping.is_set():
            self.write_state()
            self.collect()
            self.stopping.wait(min(left, STATE_EVERY_SEC))

    def end(self) -> None:
        """The last state; the time from here on counts as stopped, whoever asks."""
        now = time.time()
        if self.state["state"] == "recording":
            self.state["since"] = self.down_since
        else:
            self.try_journal(self.down_since, now, self.down_cause or self.default_cause)
            self.state["since"] = now
        self.state |= {"state": "stopped", "cause": "stopped", **SILENT}
        self.write_state()

    def note(self, current: Run) -> None:
        """Take over what FFmpeg told into the state, once a second."""
        now = time.monotonic()
        for line in current.new_stderr:
            self.ffmpeg_log.info("%s", line)
        current.new_stderr.clear()
        if current.frames:
            self.state["last_frame_at"] = round(current.media_end, 3)
        size = 0
        with suppress(OSError):  # gone with its folder, or published at the end of the run
            size = current.open[-1].stat().st_size if current.open else 0
        then, frames, before = self.rate
        if now - then >= STATE_EVERY_SEC:
            self.state["fps"] = round(max(0, current.frames - frames) / (now - then), 1)
            if size >= before:  # else a file was published meanwhile
                self.state["bytes_per_sec"] = round((size - before) / (now - then))
            self.rate = (now, current.frames, size)
        self.write_state()
        self.collect()

    def write_state(self) -> None:
        """Overwrite the state file where it lies: a rename, as for other files, would cost as much as all the rest.

        Always as long, in one write, without fsync: a reader sees the old or the new one, a power cut may lose it.
        """
        self.beat = time.monotonic()
        self.next_state = self.beat + STATE_EVERY_SEC
        file = self.state_file
        now = time.time()
        if (today := now // 86400) != self.today:
            self.today, self.state["lost_today_sec"] = today, 0.0
        self.state |= {"updated_at": round(now, 3), "last_file": self.finisher.last_file}
        if self.lock_into is not None:
            return
        data = json.dumps(self.state).ljust(STATE_BYTES - 1).encode() + b"\n"
        try:
            if not self.state_size:  # else it was written before, and as long
                refuse_unmounted(self.camera)
                file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | (0 if self.state_size else os.O_TRUNC), 0o644)
            try:
                self.state_size = os.pwrite(handle, data, 0)
            finally:
                os.close(handle)
        except OSError:  # `watch` sees that the state is old
            self.state_size = 0

    def take_jobs(self, current: Run) -> None:
        if len(current.anchors) >= ANCHOR_ENOUGH:
            current.settle_rows()
        for job in current.jobs:
            self.submit(job)
        current.jobs.clear()

    def submit(self, job: Job) -> None:
        self.pending[self.pool.submit(self.finisher.finish, job)] = job

    def collect(self) -> None:
        """See what became of submitted files; one that could not be published is tried again later."""
        for done in [future for future in self.pending if future.done()]:
            job = self.pending.pop(done)
            if problem := (None if done.cancelled() else done.exception()):
                log.warning("%s: %s: not published, trying again: %s", self.camera.name, job.path.name,
                            quotable(problem))  # fmt: skip
                self.again.append((time.monotonic() + FINISH_RETRY_SEC, job))
            else:
                self.tidy(job.path.parent)
        while self.again and self.again[0][0] <= time.monotonic():
            self.submit(self.again.pop(0)[1])
        opened = self.state["recording_since"]
        if opened and opened < self.finisher.journaled_until <= time.time():
            self.state |= {"recording_since": self.finisher.journaled_until, "blind_sec": 0.0}

    def tidy(self, folder: Path) -> None:
        with suppress(OSError):  # files in it are still to be published, or FFmpeg is at work
            for part in () if any(folder.glob("*.m[kp][v4]")) else folder.glob("*.part"):
                part.unlink()
            folder.rmdir()


def open_ffmpeg_log(camera: Camera) -> logging.Logger:
    """What FFmpeg says about one camera, masked already, in logs_dir; at most 2 x LOG_BYTES."""
    own = logging.getLogger(f"rtsp_recorder.ffmpeg.{camera.name}")
    own.propagate = False
    if camera.logs_dir is None:
        own.addHandler(logging.NullHandler())
        return own
    try:
        camera.logs_dir.mkdir(parents=True, exist_ok=True)
        file = camera.logs_dir / f"{camera.name}.log"
        handler = logging.handlers.RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
    except OSError as problem:  # recording matters more
        log.error("%s: logs_dir %s: cannot be written: %s; recorded without it", camera.name, camera.logs_dir,
                  problem.strerror)  # fmt: skip
        own.addHandler(logging.NullHandler())
        return own
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    own.addHandler(handler)
    return own


# --- alerts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What became of something that is watched, for the people who get mail. `word` and `name` make the subject."""

    tag: str  # CAMERA or DISK
    word: str
    name: str
    text: str
    at: float
    left: tuple[str, ...] = ()  # channels that do not have it yet


def subject_of(told: Sequence[Told]) -> str:
    """`[CAMERA] Auto-restart Gate`; of many, those with the same word together, each by the last that is known."""
    names: dict[str, list[str]] = {}
    for name, word in {one.name: one.word for one in told}.items():
        names.setdefault(word, []).append(name)
    many = "cameras" if told[0].tag == "CAMERA" else "disks"
    parts = [f"{word} {', '.join(of) if len(of) <= SUBJECT_NAMES else f'{len(of)} {many}'}"
             for word, of in names.items()]  # fmt: skip
    return f"[{told[0].tag}] {'; '.join(parts)}"


def body_of(told: Sequence[Told], host: str, zone: tzinfo) -> str:
    lines = [f"{clock_text(one.at, zone)}  {one.text}" for one in told] if len(told) > 1 else [told[0].text]
    return "\n".join([*lines, "", f"host: {host}", f"time: {clock_text(told[-1].at, zone)}"]) + "\n"


def adopt(path: Path) -> None:
    """Give what root made (`watch` from root's cron) to the owner of the folder: the recorder must be able to write."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        with suppress(OSError):  # a mount that does not let root
            owner = path.parent.stat()
            os.chown(path, owner.st_uid, owner.st_gid)


def own_folder(root: Path) -> Path:
    folder = root / STATE_FOLDER
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)  # without its parents: they are away, perhaps
        adopt(folder)
    return folder


def keep_json(root: Path, name: str, value: Any) -> None:
    write_json(own_folder(root) / name, value)
    adopt(root / STATE_FOLDER / name)


class Outbox:
    """What was told about each camera and disk, and what is still to be told; shared by all recorders of a storage.

    A message stays in its file until the channel has taken it, so a mail server that is away delays it only. While the
    disk cannot be written, this process goes on in memory.
    """

    def __init__(self, root: Path, settings: Mapping[str, Any]) -> None:
        self.root = root
        self.channels = channels(settings)
        self.unsaved: dict[str, Any] | None = None
        self.idle_stamp: tuple[int, ...] | None = None  # of the file when nothing in it waited for our channels

    def stamp(self) -> tuple[int, ...] | None:
        """Tells whether the file is another one than before; None for what has no file."""
        if self.unsaved:
            return None
        try:
            found = (self.root / STATE_FOLDER / "alerts.json").stat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> dict[str, Any]:
        box = self.unsaved or read_state(self.root / STATE_FOLDER / "alerts.json")
        told, waiting = box.get("told"), box.get("waiting")
        waiting = [Told(**{**one, "left": tuple(one["left"])}) for one in (waiting if isinstance(waiting, list) else [])
                   if isinstance(one, dict) and set(one) == set(Told.__dataclass_fields__)]  # fmt: skip
        return {"told": told if isinstance(told, dict) else {}, "waiting": waiting,
                "tries": int(box.get("tries") or 0), "again_at": float(box.get("again_at") or 0)}  # fmt: skip

    @property
    def spare(self) -> Path:
        return self.root / STATE_FOLDER / "alerts.spare"

    def keep_spare(self) -> None:
        """Space that only this outbox takes: a disk that others fill to the last byte must not be told every time."""
        with suppress(OSError):
            if self.channels and not self.spare.exists() and shutil.disk_usage(self.root).free > STATE_ROOM_BYTES:
                own_folder(self.root)
                self.spare.write_bytes(os.urandom(SPARE_BYTES))  # zeros would take no space where files are compressed
                adopt(self.spare)

    def save(self, box: Mapping[str, Any]) -> None:
        plain = {**box, "waiting": [asdict(one) for one in box["waiting"]]}
        try:
            try:
                keep_json(self.root, "alerts.json", plain)
            except OSError:
                self.spare.unlink()
                keep_json(self.root, "alerts.json", plain)
        except OSError as problem:
            log.debug("alerts: kept in memory, because the disk cannot be written: %s", problem)
            self.unsaved = plain
        else:
            self.unsaved = None
            self.keep_spare()

    @contextmanager
    def held(self, wait_sec: float = 0.0) -> Iterator[bool]:
        """Whether this process may change the outbox now; another one may be sending."""
        until = time.monotonic() + wait_sec
        try:
            file = own_folder(self.root) / "alerts.lock"
            handle = file.open("a")
            adopt(file)
        except OSError:  # no inode left: others cannot write it either
            yield True
            return
        with handle:
            while not (ours := lock_file(handle)) and time.monotonic() < until:
                time.sleep(LOCK_POLL_SEC)
            yield ours

    def tell(self, key: str, now_told: dict[str, Any] | None, message: Told, wait_sec: float = 0.0) -> bool:
        """Note a change of state and what to say about it; not when another process has, or when nobody is to know.

        `now_told` None is the good state. False: the outbox is in use, ask again.
        """
        if not self.channels:
            return True
        with self.held(wait_sec) as ours:
            box = self.read()
            if ours and box["told"].get(key) != now_told:
                box["told"].pop(key, None)
                box["told"] |= {key: now_told} if now_told else {}
                message = replace(message, text=mask(message.text), left=tuple(self.channels))
                box["waiting"] = [*box["waiting"], message][-WAITING_MOST:]
                self.save(box)
        return ours

    def send(self, *, at_once: bool) -> list[str]:
        """Send what waits, a message for all cameras and one for all disks, once others could join; what failed."""

        def due() -> dict[str, Any] | None:
            box, now = self.read(), time.time()
            ours = [one for one in box["waiting"] if set(one.left) & set(self.channels)]
            self.idle_stamp = None if ours else stamp
            joining = ours and 0 <= now - ours[0].at < COLLECT_SEC
            resting = 0 < box["again_at"] - now <= MAIL_AGAIN_MAX_SEC  # farther off: the clock jumped
            return box if ours and (at_once or not (joining or resting)) else None

        stamp = self.stamp()
        if not self.channels or (stamp is not None and stamp == self.idle_stamp) or not due():
            return []
        with self.held() as ours:
            if not ours or not (box := due()):
                return []
            failed = [problem for tag in ("CAMERA", "DISK") for name in self.channels
                      if (problem := self.hand_over(box, tag, name))]  # fmt: skip
            box["tries"] = box["tries"] + 1 if failed else 0
            wait_sec = min(MAIL_AGAIN_MAX_SEC, MAIL_AGAIN_SEC * 2 ** min(box["tries"] - 1, 50)) if failed else 0.0
            box["again_at"] = time.time() + wait_sec if failed else 0.0
            self.save(box)
        if failed and (at_once or box["tries"] == 1):
            log.warning("alert not sent, it is kept and tried again: %s", quotable("; ".join(failed)))
        return failed

    def hand_over(self, box: dict[str, Any], tag: str, channel: str) -> str:
        """Give one channel what it lacks, and note that at once; what went wrong, else nothing."""
        lacking = [one for one in box["waiting"] if one.tag == tag and channel in one.left]
        if not lacking:
            return ""
        try:
            send_message(self.channels[channel], subject_of(lacking),
                         body_of(lacking, socket.gethostname(), parse_zone(None)))  # fmt: skip
        except Exception as problem:  # noqa: BLE001  a channel may fail in any way
            return f"{channel}: {mask(str(problem))}"
        rest = [replace(one, left=tuple(name for name in one.left if name != channel)) if one in lacking else one
                for one in box["waiting"]]  # fmt: skip
        box["waiting"] = [one for one in rest if one.left]
        self.save(box)
        return ""


def lost_text(root: Path, camera: str, since_sec: float, until_sec: float) -> str:
    """What the journal says about a time: `83.2 s were lost (refused 80.1 s, stall 3.1 s)`."""
    report = coverage_of(root, camera, since_sec, until_sec)
    causes: dict[str, float] = {}
    for gap in report.gaps if report else []:
        causes[gap.cause] = causes.get(gap.cause, 0.0) + gap.end - gap.start
    several = ", ".join(f"{cause} {seconds:.1f} s" for cause, seconds in causes.items())
    return f"{sum(causes.values()):.1f} s were lost ({several if len(causes) > 1 else ''.join(causes) or 'no gap'})"


class Pulse:
    """One camera seen every two seconds: is it to be told that it is down, or that it records again?

    Down is what lost `after_sec` seconds in all, recording again what recorded so long without a break: so a camera
    that comes and goes is one message, and not one for each attempt. `told` is what an earlier process has told.
    """

    def __init__(self, after_sec: float, patience_sec: float, told: Mapping[str, Any] | None) -> None:
        self.after_sec, self.patience_sec = after_sec, patience_sec
        self.down, self.urgent = told is not None, bool(told and told.get("urgent"))
        self.since = float((told or {}).get("since") or 0)  # epoch seconds, when the trouble began
        self.lost_sec = self.well_sec = 0.0

    def beat(self, *, recording: bool, since_sec: float, now_sec: float, step_sec: float, urgent: bool) -> bool:
        """True when there is something to tell. Seconds are added up step by step, because the clock may jump."""
        gone = max(0.0, now_sec - since_sec)
        if recording:
            self.well_sec += min(step_sec, gone)
            changed = self.down and self.well_sec >= self.after_sec
            if self.well_sec >= self.after_sec:
                self.lost_sec, self.down, self.urgent = 0.0, False, False
            return changed
        if not self.lost_sec and not self.down:
            self.since = since_sec
        if self.well_sec or not self.lost_sec:  # that nothing comes is noticed only after `patience_sec`
            step_sec += self.patience_sec
        self.lost_sec, self.well_sec = self.lost_sec + min(step_sec, gone), 0.0
        changed = (urgent and not self.urgent) or (not self.down and self.lost_sec >= self.after_sec)
        self.down, self.urgent = self.down or changed, self.urgent or urgent
        return changed


def is_low(free_bytes: int, least_bytes: float, *, was_low: bool) -> bool:
    return free_bytes < least_bytes * (1 + SPACE_HYSTERESIS if was_low else 1)


def least_told(root: Path, free_bytes: int, least_bytes: float, *, low: bool) -> Told:
    text = f"{root}: {free_bytes / 1e6:.0f} MB free; retention.min_free_bytes is {least_bytes / 1e6:.0f} MB"
    return Told("DISK", "Low space" if low else "Well again", str(root),
                f"{text}; make room, the recorder deletes nothing" if low else text, time.time())  # fmt: skip


class Teller:
    """Tells what became of the cameras and the disks, in a thread of its own: recording never waits for it."""

    def __init__(self, recorders: Sequence[Recorder], config: Mapping[str, Any], stopping: threading.Event) -> None:
        self.stopping, self.recorders, self.zone = stopping, list(recorders), parse_zone(None)
        self.outboxes = {root: Outbox(root, config["notify"]) for root in {one.camera.root for one in recorders}}
        self.least_bytes = config["retention"]["min_free_bytes"]
        for outbox in self.outboxes.values():
            outbox.keep_spare()
        told = {key: value for outbox in self.outboxes.values() for key, value in outbox.read()["told"].items()}
        self.pulses = {one.camera.name: Pulse(
            config["notify"]["after"], max(one.camera.limits.stall, one.camera.limits.first_frame),
            told.get(camera_key(one.camera))) for one in recorders}  # fmt: skip
        self.low = {root: disk_key(root) in told for root in self.outboxes}
        self.logged_low: set[Path] = set()
        self.news: deque[tuple[Path, str, dict[str, Any] | None, Told]] = deque()  # until its outbox is free

    def work(self) -> None:
        if not self.least_bytes and not any(outbox.channels for outbox in self.outboxes.values()):
            return  # nobody is to be told anything
        before, said = time.monotonic(), False
        while not self.stopping.wait(TELL_EVERY_SEC):
            now = time.monotonic()
            try:
                self.look(now - before)
                while self.news and self.outboxes[self.news[0][0]].tell(*self.news[0][1:]):
                    self.news.popleft()
                for outbox in self.outboxes.values():
                    outbox.send(at_once=False)
            except Exception:  # noqa: BLE001  a bug here must not end the alerts for ever
                log.log(logging.DEBUG if said else logging.ERROR, "alerts: this is a bug in the program; trying again",
                        exc_info=True)  # fmt: skip
                said = True
            before = now

    def look(self, step_sec: float) -> None:
        for one in self.recorders:
            state, pulse = dict(one.state), self.pulses[one.camera.name]
            if state["state"] in ("recording", "down") and pulse.beat(
                    recording=state["state"] == "recording", since_sec=state["since"], now_sec=time.time(),
                    step_sec=step_sec, urgent=one.shut_out):  # fmt: skip
                told = None if state["state"] == "recording" else {
                    "since": round(pulse.since, 3), "cause": state["cause"] or "unknown", "urgent": pulse.urgent}
                message = self.down(one, state, pulse.since) if told else self.recovered(one.camera, state, pulse.since)
                self.news.append((one.camera.root, camera_key(one.camera), told, message))
        for root in self.low if self.least_bytes else ():
            self.look_at_disk(root)

    def down(self, one: Recorder, state: Mapping[str, Any], since_sec: float) -> Told:
        last, now, detail = state["last_frame_at"], time.time(), quotable(one.detail)
        seen = f"last picture at {clock_text(last, self.zone)}" if last else "no picture since the recorder began"
        text = (f"{one.camera.name} idle for {max(0.0, now - (last or since_sec)):.0f} s → connecting again until it "
                f"records; cause: {state['cause'] or 'unknown'}{f' ({detail})' if detail else ''}; {seen}")  # fmt: skip
        return Told("CAMERA", "Auto-restart", one.camera.name, text, now)

    def recovered(self, camera: Camera, state: Mapping[str, Any], since_sec: float) -> Told:
        lost = lost_text(camera.root, camera.name, since_sec, state["since"])
        text = f"{camera.name} records again since {clock_text(state['since'], self.zone)}: {lost}"
        return Told("CAMERA", "Recovered", camera.name, text, time.time())

    def look_at_disk(self, root: Path) -> None:
        try:
            free = shutil.disk_usage(root).free
        except OSError:  # the cameras say so
            return
        was_low, low = self.low[root], is_low(free, self.least_bytes, was_low=self.low[root])
        message = least_told(root, free, self.least_bytes, low=low)
        if low != (root in self.logged_low):
            log.log(logging.ERROR if low else logging.INFO, "%s", message.text)
            self.logged_low ^= {root}
        if low != was_low:
            self.low[root] = low
            self.news.append((root, disk_key(root), {"low": True} if low else None, message))


def camera_key(camera: Camera) -> str:
    return f"camera {camera.root / camera.name}"


def disk_key(root: Path) -> str:
    return f"disk {root}"


# --- record ------------------------------------------------------------------------------------------------------


def knows_tls_options(ffmpeg: str) -> bool:
    """Whether this FFmpeg checks the certificates of rtsps cameras. Raises CannotStart for one that is too old."""
    try:
        text = run_ffmpeg([ffmpeg, "-hide_banner", "-h", "demuxer=rtsp"], 0).stdout
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise CannotStart(f"{ffmpeg}: cannot be started: {problem}") from problem
    if "-timeout" not in text or "-stimeout" in text:
        raise CannotStart(f"{ffmpeg}: FFmpeg 5 or newer with RTSP is needed; pip install imageio-ffmpeg brings one")
    return "-tls_verify" in text


def prepare(camera: Camera) -> None:
    """Folders that can be written; CannotStart when not."""
    if camera.require_mount and not is_mounted(camera.root):
        raise CannotStart(f"{camera.root}: not mounted (storage.require_mount)")
    try:
        for folder in (camera.own("staging"), camera.own("lock").parent, camera.own("state").parent):
            folder.mkdir(parents=True, exist_ok=True)
        probe = camera.own("staging") / f"probe.{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        if problem.errno == errno.ENOSPC:
            return  # it waits for space like any other time
        raise CannotStart(f"{camera.root}: cannot be written: {problem.strerror}") from problem


def take_lock(camera: Camera, held: ExitStack) -> None:
    """From now on this process records the camera, until `held` is closed. Busy or CannotStart when it cannot."""
    prepare(camera)
    try:
        held.enter_context(run_lock(camera.own("lock"), camera.name))
    except OSError as problem:
        raise CannotStart(f"{camera.own('lock')}: cannot be opened: {problem.strerror}") from problem


def lock_cameras(cameras: Sequence[Camera], held: ExitStack) -> tuple[list[Camera], list[Camera]]:
    """(locked, to be locked when their folder can be written) of those that nobody else records, at least one locked.

    With none locked, Busy if all are held by others, else CannotStart.
    """
    locked, late = [], []
    for camera in cameras:
        try:
            take_lock(camera, held)
            locked.append(camera)
        except Busy as problem:
            if len(cameras) == 1:
                raise
            log.warning("%s", problem)
        except CannotStart as problem:
            if len(cameras) == 1:
                raise
            log.error("%s: not recording: disk: %s; it is tried again", camera.name, problem)
            late.append(camera)
    if not locked:
        names = ", ".join(camera.name for camera in cameras)
        raise (CannotStart if late else Busy)(f"no camera left to record of {names}")
    return locked, late


def allow_many_files() -> None:
    """Four are open for each camera; shells and systemd begin with 1024, and let a program have more by itself."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))


def warn_about_tls(cameras: Sequence[Camera], tls_options: bool) -> None:
    secure = [camera for camera in cameras if camera.url.startswith("rtsps:")]
    if secure and not tls_options:
        log.warning("%s: this FFmpeg does not check certificates; version 8 and newer do",
                    ", ".join(camera.name for camera in secure))  # fmt: skip
    elif unchecked := [camera.name for camera in secure if not camera.tls_verify]:
        log.warning("%s: the certificate is not checked (tls_verify: false)", ", ".join(unchecked))


def record(cameras: Sequence[Camera], quiet: bool, config: Mapping[str, Any]) -> int:
    """Record until a signal; SIGTERM and SIGHUP are the ordinary end of a service, SIGINT is 130."""
    signals: list[int] = []
    woken, waking = socket.socketpair()  # a signal ends a wait at once
    waking.setblocking(False)
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(one) is not signal.SIG_IGN:  # nohup
            signal.signal(one, lambda number, _frame: signals.append(number))
    ffmpeg = find_ffmpeg("recording")
    tls_options = knows_tls_options(ffmpeg)
    allow_many_files()
    with ExitStack() as held:
        signal.set_wakeup_fd(waking.fileno())
        held.callback(signal.set_wakeup_fd, -1)
        cameras, late = lock_cameras(cameras, held)
        warn_about_tls([*cameras, *late], tls_options)
        stopping = threading.Event()
        pool = ThreadPoolExecutor(FINISH_WORKERS, thread_name_prefix="finish")
        recorders = [Recorder(camera, ffmpeg, tls_options, pool, stopping) for camera in cameras]
        recorders += [Recorder(camera, ffmpeg, tls_options, pool, stopping, lock_into=held) for camera in late]
        threads = [threading.Thread(target=recorder.work, args=(place * START_SPACING_SEC,), daemon=True,
                                    name=recorder.camera.name) for place, recorder in enumerate(recorders)]  # fmt: skip
        teller = threading.Thread(target=Teller(recorders, config, stopping).work, daemon=True, name="alerts")
        for thread in [*threads, teller]:
            thread.start()
        log.info("recording %s with %s", ", ".join(camera.name for camera in cameras), ffmpeg)
        tell_systemd("READY=1")
        shown = sys.stderr.isatty() and not quiet
        with live_table(recorders, shown=shown) as update:
            while not signals:
                select.select([woken], [], [], TABLE_EVERY_SEC if shown else ALIVE_EVERY_SEC)
                update()
                alive = all(time.monotonic() - recorder.beat < WATCHDOG_QUIET_SEC for recorder in recorders)
                well = sum(recorder.state["state"] == "recording" for recorder in recorders)
                tell_systemd(f"STATUS={well} of {len(recorders)} recorded" + ("\nWATCHDOG=1" if alive else ""))
        tell_systemd("STOPPING=1")
        deadline = time.monotonic() + STOP_WITHIN_SEC - 0.7  # to end, on a machine that has much else to do
        stopping.set()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        wait_for_files(recorders, deadline)
        teller.join(min(TELL_EVERY_SEC, max(0.0, deadline - time.monotonic())))  # half a mail would come twice
        pool.shutdown(wait=False, cancel_futures=True)
    return Status.SIGINT if signals[0] == signal.SIGINT else Status.DONE


def wait_for_files(recorders: Sequence[Recorder], deadline: float) -> None:
    """The last files are checked and published as far as time allows; the next start takes the rest."""
    jobs = [future for recorder in recorders for future in list(recorder.pending)]
    left = wait(jobs, max(0.0, deadline - time.monotonic())).not_done
    for recorder in recorders:
        recorder.collect()
        recorder.write_state()
    if left:
        log.info("%d files are left for the next start to check and publish", len(left))


@contextmanager
def live_table(recorders: Sequence[Recorder], *, shown: bool) -> Iterator[Callable[[], None]]:
    """A table of the cameras where stderr is a terminal, log lines above it; yields what brings it up to date."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def update() -> None:
        table = Table("camera", "state", "since", "Mbit/s", "fps", "last file", "lost today")
        states = [dict(recorder.state) for recorder in recorders]
        if len(states) + TABLE_FRAME_LINES > live.console.height:  # the last ones are not to be seen
            states.sort(key=lambda state: state["state"] == "recording")
        for state in states:
            since = datetime.fromtimestamp(state["since"]).astimezone().strftime("%a %H:%M:%S")
            lasting_sec = max(0.0, time.time() - state["since"]) if state["state"] in ("down", "starting") else 0.0
            table.add_row(
                state["camera"], state_text(state), since, f"{state['bytes_per_sec'] * 8 / 1e6:.2f}",
                f"{state['fps']:.1f}", Path(str(state["last_file"] or "-")).name,
                f"{state['lost_today_sec'] + lasting_sec:.0f} s",
                style="red" if state["state"] == "down" else "")  # fmt: skip
        with suppress(OSError):  # the terminal was closed; the hangup that follows is what ends us
            live.update(table, refresh=True)

    live = Live(console=Console(stderr=True), auto_refresh=False, redirect_stdout=False)
    try:
        live.start()
        yield update
    finally:
        with suppress(OSError):
            live.stop()


# --- gaps --------------------------------------------------------------------------------------------------------


def show_gaps(reports: Sequence[Coverage], zone: tzinfo, form: str) -> None:
    """To stdout: a table, JSON Lines or CSV."""
    gaps = [gap for report in reports for gap in report.gaps]
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("camera", "start", "end", "seconds", "cause", "basis"))
        there = [Gap(report.camera, *part, "unjournaled", "file") for report in reports for part in report.unjournaled]
        for gap in gaps + there:
            writer.writerow((gap.camera, clock_text(gap.start, zone), clock_text(gap.end, zone),
                             round(gap.end - gap.start, 3), gap.cause, gap.basis))  # fmt: skip
        return
    if form == "json":
        for gap in gaps:
            sys.stdout.write(json.dumps({name: round(value, 3) if isinstance(value, float) else value
                                         for name, value in asdict(gap).items()}) + "\n")  # fmt: skip
        sys.stdout.write(json.dumps({"summary": {one.camera: summary_of(one, zone) for one in reports}}) + "\n")
        return
    for report in reports:
        summary = summary_of(report, zone)
        start, end = (clock_text(moment, zone) for moment in report.span)
        extra = f"{summary['unjournaled_percent']:.3f} % unjournaled, " if report.unjournaled else ""
        sys.stdout.write(f"{report.camera}: {summary['recorded_percent']:.3f} % of {start} to {end}, {extra}"
                         f"{len(report.gaps)} gap{'' if len(report.gaps) == 1 else 's'}\n")  # fmt: skip
        for day, percent in summary["days"].items():
            sys.stdout.write(f"  {day}  {percent:7.3f} %\n")
        for gap in report.gaps:
            sys.stdout.write(f"  {clock_text(gap.start, zone)}  {gap.end - gap.start:>10.1f} s  {gap.cause}"
                             f"{'' if gap.basis == 'journal' else ' (inferred)'}\n")  # fmt: skip
        for begin, until in report.unjournaled:
            sys.stdout.write(f"  {clock_text(begin, zone)}  {until - begin:>10.1f} s  is there, unjournaled\n")


def summary_of(report: Coverage, zone: tzinfo) -> dict[str, Any]:
    causes: dict[str, float] = {}
    for gap in report.gaps:
        causes[gap.cause] = round(causes.get(gap.cause, 0.0) + gap.end - gap.start, 3)
    days = {day: round(100 - report.lost_percent(span), 3) for day, span in days_of(report.span, zone)}
    return {"start": round(report.span[0], 3), "end": round(report.span[1], 3), "gaps": len(report.gaps),
            "recorded_percent": round(100 - report.lost_percent(), 4), "lost_sec_by_cause": causes, "days": days,
            "intervals": [[round(start, 3), round(end, 3)] for start, end in report.covered],
            "unjournaled": [[round(start, 3), round(end, 3)] for start, end in report.unjournaled],
            "unjournaled_percent": round(report.percent(report.unjournaled, report.span), 4)}  # fmt: skip


def gaps_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    zone = parse_zone(arguments.timezone)
    since, until = parse_span(arguments, zone)
    until = time.time() if until is None else until
    limit = 100.0 if arguments.max_lost is None else arguments.max_lost
    if not 0 <= limit <= 100:
        raise UsageError(f"--max_lost {limit:g}: expected 0 to 100 percent")
    known = known_cameras(arguments, config)
    names_zone = parse_zone(config["recording"]["timezone"])
    reports = [report for root, name in known if (report := coverage_of(root, name, since, until, names_zone))]
    show_gaps(reports, zone, "json" if arguments.json else "csv" if arguments.csv else "table")
    beyond = [report.camera for report in reports if report.lost_percent() > limit]
    if beyond:
        log.error("%s: more than %g %% is missing", ", ".join(beyond), limit)
    return Status.PARTIAL if beyond or not reports else Status.DONE


def known_cameras(arguments: argparse.Namespace, config: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Every camera that a recorder has left a journal or a state of, also those that are gone; or those named.

    Cameras of the config, and those that are named, may also have nothing but a folder of files.
    """
    given = [config["storage"]["local_path"], (config["recording"]["defaults"] or {}).get("output_dir")]
    given += [entry.get("output_dir") for entry in config["cameras"]]
    names = [str(entry.get("name") or entry.get("station") or "") for entry in config["cameras"]]
    given = [arguments.output_dir] if arguments.output_dir else [place for place in given if place]
    if not given:
        raise UsageError("nowhere to look for journals; set storage.local_path, or give --output_dir")
    files = [(Path(str(place)).expanduser(), pattern) for place in given for pattern in ("journal/*", "state/*.json")]
    folders = {(root, name) for root, _ in files for name in (*names, *arguments.camera)
               if NAME.fullmatch(name) and (root / name).is_dir()}  # fmt: skip
    found = sorted({(root, file.name.removesuffix(".json")) for root, pattern in files
                    for file in (root / STATE_FOLDER).glob(pattern)} | folders)  # fmt: skip
    wanted = [name.lower() for name in arguments.camera]
    if unknown := [name for name in arguments.camera if name.lower() not in {known.lower() for _, known in found}]:
        raise UsageError(f"{', '.join(unknown)}: no recorder has left a journal of it, or files")
    return [(root, name) for root, name in found if not wanted or name.lower() in wanted]


# --- services ----------------------------------------------------------------------------------------------------

UNIT_HEAD = "# made by rtsp_recorder.py services generate, which will replace it: change the settings instead"
SYSTEM_UNITS, SYSTEM_USERS = Path("/etc/systemd/system"), Path("/etc/passwd")
ENVIRONMENT_FILE = "environment"  # beside the config: NAME=value lines, for the ${NAME} of the config
OLDER_UNITS = ("camera-recorder", "camera_recorder", "record-camera", "record_camera", "rtsp-recorder", "rtsp_recorder")
TOP_LEVEL_PARTS = 2  # of a path such as /srv, which is not given to anybody
RESTART_SEC, UNIT_WATCHDOG_SEC, UNIT_STOP_SEC = 2, 60, 15  # a recorder ends within 5 s, a monitor within seconds
HARDENING = """
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0027
""".strip().splitlines()
CONFIG_TEMPLATE = """\
# Settings of rtsp_recorder.py, made by its `services install`. The README explains every key.
# Secrets may stand here (only root and the group of the recorder can read this file), or as ${NAME}, with NAME=value
# in the file `environment` beside this one.
storage:
  local_path: /srv/recordings
cameras: []
#  - name: Gate
#    rtsp_url: rtsp://viewer:${GATE_PASSWORD}@192.0.2.7:554/stream1
"""


@dataclass(frozen=True)
class UnitJob:
    """What a unit runs; `calendar` for what a timer starts, None for what runs all the time."""

    name: str
    program: str
    words: tuple[str, ...]
    calendar: str | None
    what: str
    hardening: tuple[str, ...] = ()  # lines instead of those of HARDENING
    is_root: bool = False
    takes_overlays: bool = False


PUBLIC = ("UMask=0022",)  # what a web server shows
DEVICES = (*PUBLIC, "PrivateDevices=no", "DeviceAllow=char-video4linux rw", "DeviceAllow=char-alsa rw",
           "DeviceAllow=char-drm rw", "SupplementaryGroups=video audio")  # fmt: skip
JOBS = (  # the minutes of those that a timer starts are two apart, so that they do not compete for the disk
    UnitJob("nas_sync", "nas_sync.py", ("run",), "*:0/10", "Bring footage to the NAS and to S3",
        ("RestrictSUIDSGID=no",), takes_overlays=True),  # rsync keeps the setgid bit of shared folders
    UnitJob("nas_sync_verify", "nas_sync.py", ("verify", "--max_duration", "6h"), "Sun 02:28",
        "See whether the NAS and S3 hold what was archived", takes_overlays=True),
    UnitJob("watch", "rtsp_recorder.py", ("watch",), "*:2/5", "Look after the recorders of the cameras",
        ("CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_CHOWN", "ProtectProc=default",
         "StateDirectory=rtsp_recorder"), is_root=True,
        takes_overlays=True),  # only root may restart units; its files are given to the recorder's user
    UnitJob("clean", "capture_analyzer.py", ("clean",), "*:4/10", "Remove old stills of the captures"),
    UnitJob("copy_footage", "copy_footage.py", ("--alerts", "--catch_up"), "*:06", "Copy footage of Rhombus alerts"),
    UnitJob("capture", "capture_analyzer.py", ("capture",), None, "Capture from video grabbers", DEVICES),
    UnitJob("monitor", "capture_analyzer.py", ("monitor",), None, "Look for black, frozen and silent pictures", PUBLIC),
)  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """A unit as it has to be; `camera` of one that records."""

    name: str
    text: str
    camera: Camera | None = None

    @property
    def is_enabled(self) -> bool:
        """Started with the machine; the others by their timer."""
        return "\n[Install]\n" in self.text


@dataclass(frozen=True)
class Site:
    """Where the units lie and what they name. Everything is written below `prefix`, and names no part of it."""

    python: str
    programs: Path  # the folder of the programs
    config: Path
    units: Path
    user: str
    overlays: tuple[str, ...]  # flags for units: --cameras_config and --backup_config
    cores: int
    prefix: Path | None

    def real(self, path: Path) -> Path:
        return path if self.prefix is None else self.prefix / path.relative_to("/")

    def file(self, name: str) -> Path:
        return self.real(self.units / ("timers" if name.endswith(".timer") else "services") / name)

    def link(self, name: str) -> Path:
        return self.real(SYSTEM_UNITS / name)

    @property
    def config_file(self) -> Path:
        """The one below the prefix, unless only the other is there."""
        inside = self.real(self.config)
        return self.config if self.config.is_file() and not inside.is_file() else inside


# Units are text. In all of them `%` begins a specifier, in Exec lines `$` a variable; words with spaces are quoted.


def unit_word(text: str | Path, *, is_argument: bool = False) -> str:
    """A word of a unit that means exactly this text. Raises UsageError for what no unit can say."""
    word = str(text)
    if re.search(r"[\x00-\x1f\x7f]", word):
        raise UsageError(f"{word!r}: a unit cannot name a path with control characters")
    word = word.replace("%", "%%").replace("$", "$$" if is_argument else "$")
    if re.fullmatch(r"[A-Za-z0-9_./:@%$+,=-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def exec_line(site: Site, program: str, words: Sequence[str | Path]) -> str:
    if re.search(r"[\"'\\]", site.python):
        raise UsageError(f"{site.python}: systemd starts no program with a quote or backslash in its path; move it")
    arguments = [site.programs / program, *words, "--config", site.config]
    return " ".join([unit_word(site.python), *(unit_word(word, is_argument=True) for word in arguments)])


def hardened(own: Sequence[str], writable: Iterable[Path]) -> list[str]:
    """Lines that keep a unit from everything but its folders; folders that are not there yet do not end it."""
    replaced = {line.partition("=")[0] for line in own}
    lines = [*(line for line in HARDENING if line.partition("=")[0] not in replaced), *own]
    places = " ".join(unit_word(f"-{path}") for path in sorted(set(writable)))
    return [*lines, f"ReadWritePaths={places}"] if places else lines


def unit_text(sections: Mapping[str, Iterable[str]]) -> str:
    return "\n\n".join(["\n".join([UNIT_HEAD] if name == "" else [f"[{name}]", *lines])
                        for name, lines in {"": (), **sections}.items()]) + "\n"  # fmt: skip


def long_running(site: Site, user: str, command: str) -> list[str]:
    return ["Type=notify", "NotifyAccess=main", f"User={user}", f"EnvironmentFile=-{environment_of(site)}",
            f"ExecStart={command}", "Restart=always", f"RestartSec={RESTART_SEC}", "RestartPreventExitStatus=2 4",
            f"WatchdogSec={UNIT_WATCHDOG_SEC}", "KillMode=mixed", f"TimeoutStopSec={UNIT_STOP_SEC}"]  # fmt: skip


def environment_of(site: Site) -> str:
    """The value of EnvironmentFile= is taken as it stands, without quotes."""
    return str(site.config.with_name(ENVIRONMENT_FILE)).replace("%", "%%")


def camera_unit(site: Site, camera: Camera, place: int) -> Unit:
    """One process for each camera, so that none can do another harm, on a CPU core in turn."""
    command = exec_line(site, "rtsp_recorder.py", ["record", camera.name, *site.overlays])
    core = place % site.cores if camera.core is None else camera.core
    folders = [camera.root, *([camera.logs_dir] if camera.logs_dir else [])]
    text = unit_text({
        "Unit": [f"Description=Record camera {camera.name}", "Wants=network-online.target",
                 "After=network-online.target time-sync.target", "StartLimitIntervalSec=0",
                 f"RequiresMountsFor={unit_word(camera.root)}"],
        "Service": [*long_running(site, site.user, command), f"CPUAffinity={core}", *hardened((), folders)],
        "Install": ["WantedBy=multi-user.target"]})  # fmt: skip
    return Unit(f"record_camera_{camera.name}.service", text, camera)


def job_units(site: Site, job: UnitJob, writable: Iterable[Path], folders: Sequence[Path]) -> list[Unit]:
    """The service of a job, and its timer if it has one. `folders` are those that it is told to work on."""
    words: list[str | Path] = [*job.words, *folders, *(site.overlays if job.takes_overlays else ())]
    command, user = exec_line(site, job.program, words), "root" if job.is_root else site.user
    lines = long_running(site, user, command)
    if job.calendar:  # 4: busy, another run is at work
        lines = ["Type=oneshot", *lines[2:5], "SuccessExitStatus=4"]
    sections = {
        "Unit": [f"Description={job.what}", "Wants=network-online.target", "After=network-online.target"],
        "Service": [*lines, *hardened(job.hardening, writable)]}  # fmt: skip
    if not job.calendar:
        sections["Unit"].append("StartLimitIntervalSec=0")
        return [Unit(f"{job.name}.service", unit_text({**sections, "Install": ["WantedBy=multi-user.target"]}))]
    timer = unit_text({
        "Unit": [f"Description={job.what}: when"],
        "Timer": [f"OnCalendar={job.calendar}", "AccuracySec=5s", "Persistent=yes"],
        "Install": ["WantedBy=timers.target"]})  # fmt: skip
    return [Unit(f"{job.name}.service", unit_text(sections)), Unit(f"{job.name}.timer", timer)]


def fixed_part(pattern: str) -> Path:
    """The folder that all paths of a glob pattern are in."""
    parts = Path(pattern).parts
    count = next((place for place, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    return Path(*parts[:count])


def capture_folders(config: Mapping[str, Any]) -> list[Path]:
    """Of the grabbers, as `capture` writes them: a map with capture_dir, or "video|audio|capture_dir|fps"."""
    found = []
    for entry in config["capture"]["grabbers"] or []:
        parts = str(entry).rsplit("|", 3)
        given = str(entry.get("capture_dir") or "") if isinstance(entry, Mapping) else parts[2] if parts[3:] else ""
        if given:
            found.append(Path(given).parent if Path(given).name == "captures" else Path(given))
    return found


def jobs_of(config: Mapping[str, Any], cameras: Sequence[Camera]) -> list[tuple[UnitJob, list[Path], list[Path]]]:
    """(job, folders that it may write to, folders that it is told) of what the config uses."""
    nas, rhombus = config["nas"], config["rhombus"]
    captures, given = capture_folders(config), config["analysis"]["capture_dirs"]
    patterns = [str(one) for one in given or [] if given is not CONFIG_KEYS["analysis"]["capture_dirs"].default]
    roots = [camera.root for camera in cameras]
    copied = [Path(str(rhombus["output_dir"]))]
    evidence = [Path(str(one)) for one in [config["analysis"]["evidence_dir"]] if one]
    looked_at = [*captures, *(fixed_part(pattern) for pattern in patterns)]
    looked_at = [folder.parent if folder.name == "captures" else folder for folder in looked_at]
    own = [Path(str(nas[name])) for name in ("ready_for_backup_dir", "nas_target_dir", "success_log_dir", "lock_dir")
           if str(nas[name] or "").startswith("/")]  # a target may be HOST:PATH
    told = [] if patterns else [folder / "captures" for folder in captures]
    uses_rhombus = any(value != CONFIG_KEYS["rhombus"][name].default for name, value in rhombus.items()
                       if name != "api_url")  # which the environment may set  # fmt: skip
    has_target = nas["nas_target_dir"] or config["s3"]["bucket"]
    uses_archive = has_target or nas["ready_for_backup_dir"] or config["retention"]["without_archive"]
    archived = [*roots, *own, *evidence, *(copied if uses_rhombus else [])]
    wanted = {
        "nas_sync": (uses_archive, archived, []),
        "nas_sync_verify": (has_target, archived, []),
        "watch": (bool(cameras), roots, []),
        "clean": (captures or patterns, looked_at, told),
        "copy_footage": (uses_rhombus, copied, []),
        "capture": (captures, captures, []),
        "monitor": (captures or patterns, [*looked_at, *evidence], told)}  # fmt: skip
    return [(job, *wanted[job.name][1:]) for job in JOBS if wanted[job.name][0]]


def refuse_relative(config: Mapping[str, Any]) -> None:
    """A unit runs in no folder of yours and perhaps as another user: paths that depend on either are refused."""
    shared = config["recording"]["defaults"] or {}
    own = (("storage", "local_path"), ("rhombus", "output_dir"), ("analysis", "evidence_dir"))
    places = {f"{section}.{name}": config[section][name] for section, name in own}
    places |= {f"recording.defaults.{name}": shared.get(name) for name in ("output_dir", "logs_dir")}
    places |= {f"cameras: {entry.get('name') or entry.get('station')}: {name}": entry.get(name)
               for entry in config["cameras"] for name in ("output_dir", "logs_dir")}  # fmt: skip
    places |= {f"capture.grabbers: {folder}": folder for folder in capture_folders(config)}
    uses_rhombus = any(job.name == "copy_footage" for job, *_ in jobs_of(config, ()))
    wrong = [name for name, value in places.items() if value and not str(value).startswith("/")
             and (name != "rhombus.output_dir" or uses_rhombus)]  # fmt: skip
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: units need paths that begin with /")


def plan_units(site: Site, config: Mapping[str, Any], cameras: Sequence[Camera], there: Iterable[str]) -> list[Unit]:
    """Every unit of this installation; `there` are the programs that it has."""
    jobs = jobs_of(config, cameras)
    units = [camera_unit(site, camera, place) for place, camera in enumerate(cameras)]
    for job, writable, folders in jobs:
        if job.program in there:
            units += job_units(site, job, writable, folders)
        else:
            log.warning("%s: no unit, because %s is not in %s", job.name, job.program, site.programs)
    return units


def planned(site: Site, arguments: argparse.Namespace, *, empty: bool = False) -> list[Unit]:
    """From the config as it is now. Passwords are neither needed nor read."""
    file = site.config_file
    if not file.is_file():
        raise UsageError(f"{file}: there is no such file; give --config, or begin with: services install")
    overlays = [read_overlay(one) for one in (arguments.cameras_config, arguments.backup_config)]
    names = ("cameras", "recording", "storage", "rhombus", "nas", "s3", "retention", "analysis", "capture")
    config: dict[str, Any] = {**load_config(file, names, site.programs, *overlays, secrets=False)}
    # Addresses are secrets, too: none is known here, and none is looked at.
    entries = config["cameras"] = [{**entry, "ip": entry.get("ip") or "-"} for entry in config["cameras"] if entry]
    refuse_relative(config)
    enabled = any(entry.get("enabled", True) for entry in entries)
    cameras = settle_cameras(config, {}, ()) if enabled else []
    units = plan_units(site, config, cameras, {file.name for file in site.programs.glob("*.py")})
    if not units and not empty and not made_units(site):
        raise UsageError(f"{file}: nothing to make a unit for: no enabled camera, no grabber")
    return units


# What is on the disk


def is_ours(file: Path) -> bool:
    try:
        return file.read_text(encoding="utf-8", errors="replace").startswith(UNIT_HEAD)
    except OSError:
        return False


def target_of(site: Site, link: Path) -> Path | None:
    """Where a link points to, as it is to be found now."""
    return site.real(Path(os.path.normpath(link.parent / link.readlink()))) if link.is_symlink() else None


def link_is_ours(site: Site, link: Path) -> bool:
    """A link to a unit of ours, also to one that is gone, or a unit of ours itself."""
    target = target_of(site, link)
    if target is None:
        return is_ours(link)
    return is_ours(target) or (not target.exists() and site.real(site.units) in target.parents)


def made_units(site: Site) -> list[str]:
    """Names of all units of ours in the folder of units."""
    found = [file for folder in ("services", "timers") for file in site.real(site.units / folder).glob("*.*")]
    return sorted(file.name for file in found if file.suffix in (".service", ".timer") and is_ours(file))


def systemctl(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    program = find_program("systemctl", "starting and stopping units", "this system seems to have no systemd")
    root = [] if site.prefix is None else [f"--root={site.prefix}"]
    return run_aside([program, *root, *words])


def told_systemd(site: Site, verb: str, *words: str) -> bool:
    """Whether systemctl did it; what it says otherwise is logged. Nothing is told about no units."""
    if not words and verb != "daemon-reload":
        return True
    words = (verb, *words)
    done = systemctl(site, *words)
    if done.returncode:
        log.error("systemctl %s: status %d: %s", " ".join(words), done.returncode, " ".join(done.stderr.split()))
    return done.returncode == 0


def reload_systemd(site: Site) -> bool:
    return site.prefix is not None or told_systemd(site, "daemon-reload")  # below a prefix nothing runs


def is_active(site: Site, name: str) -> bool:
    return systemctl(site, "is-active", "--quiet", name).returncode == 0


def older_units(site: Site) -> list[tuple[str, bool, bool]]:
    """(name, enabled, active) of units of older recorders, found by their names."""
    folder = site.real(SYSTEM_UNITS)
    files = [file for start in OLDER_UNITS for kind in ("service", "timer") for place in ("", "*.wants/")
             for file in folder.glob(f"{place}{start}[-_@.]*{kind}")]  # fmt: skip
    enabled, made = {file.name for file in files if file.parent != folder}, set(made_units(site))
    names = sorted(name for name in {file.name for file in files} if not (
        link_is_ours(site, site.link(name)) if os.path.lexists(site.link(name)) else name in made))
    return [(name, name in enabled, is_active(site, name)) for name in names]


def name_older(site: Site) -> None:
    for name, enabled, active in older_units(site):
        if enabled or active:
            states = " and ".join(word for word, true in (("enabled", enabled), ("active", active)) if true)
            log.warning("%s: an older unit, still %s; when ours shall record: systemctl disable --now %s",
                        name, states, name)  # fmt: skip


# What the user asks for; each returns whether all of it was done


def services_generate(site: Site, arguments: argparse.Namespace) -> bool:
    """Write what is new or changed, and remove units of ours that the config has no use for any more."""
    units, well = planned(site, arguments), True
    for unit in units:
        file = site.file(unit.name)
        if file.exists() and not is_ours(file):
            log.error("%s: not made by this program, so it is left as it is; rename or remove it", file)
            well = False
        elif file.exists() and file.read_text(encoding="utf-8", errors="replace") == unit.text:
            log.debug("%s: unchanged", file)
        else:
            how = "changed" if file.exists() else "made"
            file.parent.mkdir(parents=True, exist_ok=True)
            with part_file(file) as part:
                part.write_text(unit.text, encoding="utf-8")
                part.chmod(0o644)
            log.info("%s: %s", file, how)
    gone = [name for name in made_units(site) if name not in {unit.name for unit in units}]
    for name in sorted(gone, key=lambda name: not name.endswith(".timer")):
        link = site.link(name)
        if link.is_symlink() and link_is_ours(site, link):
            if not ((site.prefix or told_systemd(site, "stop", name)) and told_systemd(site, "disable", name)):
                well = False  # it may still run; `disable` removes the link, without which nothing can be stopped
                continue
            link.unlink(missing_ok=True)  # `disable` removes it by itself, where it could
        site.file(name).unlink()
        log.info("%s: removed, the config has no use for it", site.file(name))
    if gone:
        well = reload_systemd(site) and well
    sys.stdout.write("".join(f"{site.file(unit.name)}\n" for unit in units))
    name_older(site)
    return well


def services_link(site: Site, arguments: argparse.Namespace) -> bool:
    """Make systemd see the units."""
    well = True
    for unit in planned(site, arguments):
        file, link = site.file(unit.name), site.link(unit.name)
        target = site.units / file.parent.name / unit.name
        if not is_ours(file):
            log.error("%s: no unit of ours is there; begin with: services generate", file)
            well = False
        elif link.is_symlink() and link.readlink() == target:
            log.debug("%s: linked already", link)
        elif os.path.lexists(link) and not link_is_ours(site, link):
            log.error("%s: not made by this program, so it is left as it is; rename or remove it", link)
            well = False
        else:
            link.parent.mkdir(parents=True, exist_ok=True)
            part = link.with_name(f".{link.name}.{os.getpid()}.part")
            part.unlink(missing_ok=True)
            part.symlink_to(target)
            part.replace(link)
            log.info("%s: linked to %s", link, target)
    return reload_systemd(site) and well


def recorded_elsewhere(site: Site, unit: Unit, older: Sequence[str]) -> str | None:
    """Who records a camera already, if it is not this unit."""
    if not unit.camera:
        return None
    general = {f"{start}.service" for start in OLDER_UNITS}
    own = re.compile(rf"[-_@]{re.escape(unit.camera.name)}\.service", re.IGNORECASE)
    for name in older:
        if name in general or own.search(name):
            return f"the older unit {name} is active"
    if is_active(site, unit.name):
        return None
    lock = unit.camera.own("lock")
    try:  # only looked at: made by root, it could not be written by the recorder
        with lock.open(encoding="utf-8") as handle:
            return None if lock_file(handle) else f"process {handle.read().strip() or 'unknown'} records it"
    except OSError:
        return None


def services_start(site: Site, arguments: argparse.Namespace) -> bool:
    """Start what is not recorded by anybody else. Raises Busy when every camera is."""
    units = [unit for unit in planned(site, arguments) if unit.is_enabled]
    older = [name for name, _, active in older_units(site) if active]
    refused = {unit.name: reason for unit in units if (reason := recorded_elsewhere(site, unit, older))}
    for name, reason in refused.items():
        log.error("%s: not started: %s; end that first", name, reason)
    names = [unit.name for unit in units if unit.name not in refused]
    if refused and not any(unit.camera for unit in units if unit.name not in refused):
        raise Busy("no camera is left to start a recorder for")
    return told_systemd(site, "start", *names) and not refused


def services_stop(site: Site, arguments: argparse.Namespace) -> bool:
    names = {unit.name for unit in planned(site, arguments)} | set(made_units(site))
    return told_systemd(site, "stop", *sorted(names, key=lambda name: (not name.endswith(".timer"), name)))


def services_enable(site: Site, arguments: argparse.Namespace) -> bool:
    """Start with the machine from now on. `disable` of systemd removes links, so they are made again."""
    well = services_link(site, arguments)
    name_older(site)
    return told_systemd(site, "enable", *[unit.name for unit in planned(site, arguments) if unit.is_enabled]) and well


def services_disable(site: Site, arguments: argparse.Namespace) -> bool:
    units = planned(site, arguments)
    well = told_systemd(site, "disable", *[unit.name for unit in units if unit.is_enabled])
    return services_link(site, arguments) and well


def services_status(site: Site, arguments: argparse.Namespace) -> bool:
    """A line for each unit: is it as the config wants it, does systemd see it, does it run."""
    rows, well = [], True
    for unit in planned(site, arguments):
        file = site.file(unit.name)
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else None
        made = "missing" if text is None else "old" if is_ours(file) else "foreign"
        made = "as planned" if text == unit.text else made
        runs = is_active(site, unit.name)
        state = read_state(unit.camera.state_file) if unit.camera else {}
        rows.append({"unit": unit.name, "file": made, "linked": link_is_ours(site, site.link(unit.name)),
                     "enabled": systemctl(site, "is-enabled", "--quiet", unit.name).returncode == 0,
                     "active": runs, "camera": state_text(state)})  # fmt: skip
        well = well and made == "as planned" and (runs or not unit.is_enabled)
    if arguments.json:
        count = {"units": len(rows), "active": sum(bool(row["active"]) for row in rows), "well": well}
        for row in [*rows, {"summary": count}]:
            sys.stdout.write(json.dumps(row) + "\n")
        return well
    cells = [["unit", "file", "linked", "enabled", "active", "camera"]]
    cells += [[str(value) if not isinstance(value, bool) else "yes" if value else "no" for value in row.values()]
              for row in rows]  # fmt: skip
    sys.stdout.write("".join(f"{line}\n" for line in in_columns(cells)))
    name_older(site)
    return well


# Install


def account(site: Site) -> tuple[int, int] | None:
    """User and group id of the recorder's user; None when there is no such user."""
    if site.prefix is None:
        import pwd

        try:
            found = pwd.getpwnam(site.user)
        except KeyError:
            return None
        return found.pw_uid, found.pw_gid
    users = site.real(SYSTEM_USERS)
    lines = users.read_text(encoding="utf-8", errors="replace").splitlines() if users.is_file() else []
    fields = next((line.split(":") for line in lines if line.startswith(f"{site.user}:")), None)
    return (int(fields[2]), int(fields[3])) if fields else None


def make_user(site: Site) -> None:
    """A user without a password and a shell, with a home for the keys of ssh."""
    if account(site):
        log.info("user %s: is there", site.user)
        return
    if site.prefix and not site.real(SYSTEM_USERS).is_file():
        log.warning("user %s: not made, %s has no users", site.user, site.prefix)
        return
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if not (program := shutil.which("useradd", path=path)):
        raise CannotStart(f"useradd was not found; make the user {site.user} yourself, or name another by --run_as")
    command = [program, *(["--prefix", str(site.prefix)] if site.prefix else []), "--system", "--user-group",
               "--create-home", "--home-dir", f"/var/lib/{site.user}", "--shell", "/usr/sbin/nologin",
               site.user]  # fmt: skip
    done = run_aside(command)
    if done.returncode:
        raise CannotStart(f"useradd: status {done.returncode}: {' '.join(done.stderr.split())}")
    log.info("user %s: made", site.user)


def settle_mode(path: Path, mode: int, owner: tuple[int, int] | None) -> None:
    """Owner and mode of a file or folder; says what it changed. Without a known owner it is left as it is."""
    before = path.stat()
    if owner and (before.st_uid, before.st_gid) != owner:
        os.chown(path, *owner, follow_symlinks=False)
        log.info("%s: now owned by %d:%d", path, *owner)
    if stat.S_IMODE(before.st_mode) != mode:
        path.chmod(mode)
        log.info("%s: mode %04o", path, mode)


def make_folder(path: Path, mode: int, owner: tuple[int, int] | None) -> None:
    """A folder that `owner` can write to. One that is there keeps its mode, because others may use it."""
    if not path.is_dir():
        path.mkdir(parents=True)
        log.info("%s: made", path)
        settle_mode(path, mode, owner)
        return
    found = path.stat()
    by_group = found.st_mode & stat.S_IWGRP and owner and found.st_gid == owner[1]
    if owner is None or found.st_uid == owner[0] or by_group or found.st_mode & stat.S_IWOTH:
        return
    if len(path.parts) <= TOP_LEVEL_PARTS:
        log.warning("%s: belongs to the system, so its owner is not changed; record to a folder in it", path)
        return
    settle_mode(path, stat.S_IMODE(found.st_mode), owner)


def write_once(path: Path, text: str, mode: int, owner: tuple[int, int] | None) -> None:
    """A file with this text where there is none; who may read it in any case."""
    if not path.exists():
        with part_file(path) as part:
            part.touch(0o600)
            part.write_text(text, encoding="utf-8")
        log.info("%s: made", path)
    settle_mode(path, mode, owner)


def adopt_state(root: Path, names: Iterable[str], owner: tuple[int, int]) -> None:
    """What an older recorder of another user left is written on: its own files, and the folders of cameras.

    A file with a second name is left alone: that one might be anywhere.
    """
    folders = [root / name for name in names if (root / name).is_dir()]
    own = [root / STATE_FOLDER, *(root / STATE_FOLDER).rglob("*")] if (root / STATE_FOLDER).is_dir() else []
    changed = 0
    for path in [*folders, *own]:
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1):
            changed += found.st_uid != owner[0]
            os.chown(path, *owner, follow_symlinks=False)
    if changed:
        log.info("%s: %d files and folders of another user given to the recorder's", root, changed)


def services_install(site: Site, arguments: argparse.Namespace) -> bool:
    """User, folders and a config, with the right modes. Done again, it changes nothing. Nothing is removed."""
    root_owner = None
    if site.prefix is None:
        if os.geteuid() != 0:
            raise CannotStart("install makes a user and folders of the system, so only root can; or give --prefix DIR")
        root_owner = (0, 0)
    file = site.config_file
    units = planned(site, arguments, empty=True) if file.exists() else []
    make_user(site)
    owner = account(site) if os.geteuid() == 0 else None
    for folder in (site.config.parent, site.units, site.units / "services", site.units / "timers"):
        make_folder(site.real(folder), 0o755, None)
    if file == site.real(site.config):  # else it is one of this machine, not of the tree that is made
        write_once(file, CONFIG_TEMPLATE, 0o640, (0, owner[1]) if owner else None)
    write_once(site.real(site.config.with_name(ENVIRONMENT_FILE)), "# NAME=value, for the ${NAME} of the config\n",
               0o600, root_owner)  # fmt: skip
    cameras = [unit.camera for unit in units if unit.camera]
    for folder in sorted({place for camera in cameras for place in (camera.root, camera.logs_dir) if place}):
        make_folder(site.real(folder), 0o750, owner)
    for place in sorted({camera.root for camera in cameras}):
        if owner:
            adopt_state(site.real(place), [camera.name for camera in cameras], owner)
    if site.prefix is None:
        warn_unreachable(site)
    if not units:
        log.info("%s: enter the cameras, then: services install generate link enable start", file)
    return True


def warn_unreachable(site: Site) -> None:
    """A virtual environment below /root works for root only."""
    for path in (Path(site.python), Path(site.python).resolve(), site.programs / "rtsp_recorder.py", site.config):
        closed = [folder for folder in path.parents if not folder.stat().st_mode & stat.S_IXOTH]
        if closed:
            log.warning("%s: the user %s cannot get there, because %s is closed to others; move it, say to /opt", path,
                        site.user, closed[-1])  # fmt: skip


VERBS = {"generate": services_generate, "install": services_install, "link": services_link, "start": services_start,
         "stop": services_stop, "enable": services_enable, "disable": services_disable,
         "status": services_status}  # fmt: skip


def services_command(arguments: argparse.Namespace) -> int:
    """One verb after the other; a later one is done although an earlier one was incomplete."""
    programs = Path(__file__).resolve().parent
    config = absolute(arguments.config or programs / "config.yaml")
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", arguments.run_as):
        raise UsageError(f"--run_as {arguments.run_as!r}: this is no name of a user")
    given = (("--cameras_config", arguments.cameras_config), ("--backup_config", arguments.backup_config))
    site = Site(
        sys.executable, programs, config, absolute(arguments.units_dir or config.parent), arguments.run_as,
        tuple(word for flag, file in given if file for word in (flag, str(absolute(file)))), os.cpu_count() or 1,
        absolute(arguments.prefix) if arguments.prefix else None)  # fmt: skip
    well = True
    for verb in arguments.verb:
        try:
            well = VERBS[verb](site, arguments) and well
        except PermissionError as problem:
            raise CannotStart(f"{problem.filename}: {problem.strerror}; run it as root") from problem
        except OSError as problem:
            raise CannotStart(f"{verb}: {problem.filename}: {problem.strerror}") from problem
    return Status.DONE if well else Status.PARTIAL


# --- check -------------------------------------------------------------------------------------------------------

# What people and cameras call a codec, without ".", "-" and "_" -> what FFmpeg calls it
CODEC_NAMES = {"avc": "h264", "h265": "hevc", "mpeg4aac": "aac", "pcma": "pcm_alaw", "alaw": "pcm_alaw",
               "g711a": "pcm_alaw", "pcmalaw": "pcm_alaw", "pcmu": "pcm_mulaw", "mulaw": "pcm_mulaw",
               "ulaw": "pcm_mulaw", "g711u": "pcm_mulaw", "g711mu": "pcm_mulaw", "pcmmulaw": "pcm_mulaw",
               "mjpg": "mjpeg"}  # fmt: skip
CHANNEL_NAMES = {1: "mono", 2: "stereo"}
QUANTITIES = {  # of a short text, with how far what is found may be off where no range is given
    "size": (r"(?P<a>\d+x\d+)", 0.0),
    "fps": (r"(?P<a>[\d.]+)(?:\s*-\s*(?P<b>[\d.]+))?\s*fps", 0.1),
    "bit_rate": (r"(?P<a>[\d.]+)(?:\s*-\s*(?P<b>[\d.]+))?\s*(?P<unit>[kM])(?:bit/s|bps)", 0.5),  # so do scenes
    "sample_rate": (r"(?P<a>[\d.]+)\s*(?P<unit>k?)Hz", 0.0),
    "channels": (r"(?P<a>mono|stereo|\d+ channels?)", 0.0),
}
SHOWN_IN = {"fps": (1, ""), "bit_rate": (1e6, " Mbit/s"), "sample_rate": (1, " Hz"), "channels": (1, "")}
EXPECTED_KEYS = {  # of a map, also as ffprobe calls them
    "video": {"codec", "codec_name", "size", "width", "height", "fps", "frame_rate", "r_frame_rate", "bit_rate"},
    "audio": {"codec", "codec_name", "sample_rate", "channels"},
}


@dataclass(frozen=True)
class Expected:
    """What `expected_video` or `expected_audio` says; what is not named in it is not compared."""

    nothing: bool = False  # none: the camera shall have no such stream
    codec: str | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    size: str | None = None


@dataclass(frozen=True)
class Stream:
    """What a camera sends, as measured; `packets` 0 for a stream that is announced and does not come."""

    codec: str
    packets: int
    bit_rate: float
    size: str = ""
    fps: float = 0.0
    sample_rate: int = 0
    channels: int = 0

    def __str__(self) -> str:
        """In the form of expected_video and expected_audio."""
        if self.size:
            return f"{self.codec} {self.size} {self.fps:.3g} fps {self.bit_rate / 1e6:.2g} Mbit/s"
        return f"{self.codec} {self.sample_rate} Hz {CHANNEL_NAMES.get(self.channels, f'{self.channels} channels')}"


@dataclass(frozen=True)
class Finding:
    """The result of one camera."""

    camera: Camera
    video: Stream | None = None
    audio: Stream | None = None
    cause: str = ""  # of no answer: as in the journal
    detail: str = ""
    differences: tuple[tuple[str, str, str], ...] = ()  # (what, expected, found)
    snapshot: Path | None = None

    @property
    def result(self) -> str:
        return self.cause or ("differs" if self.differences else "ok")


def expected_text(kind: str, value: Any, where: str) -> str:
    """The short text of a map; a text as it is."""
    if not isinstance(value, Mapping):
        return str(value or "")
    if unknown := sorted(set(map(str, value)) - EXPECTED_KEYS[kind]):
        raise UsageError(f"{where}: {', '.join(unknown)}: there is no such key; there is "
                         f"{', '.join(sorted(EXPECTED_KEYS[kind]))}")  # fmt: skip
    given = {str(name): one for name, one in value.items() if one is not None}
    rate = next((given[name] for name in ("fps", "frame_rate", "r_frame_rate") if name in given), None)
    size = f"{given['width']}x{given['height']}" if {"width", "height"} <= set(given) else given.get("size")
    words = [given.get("codec", given.get("codec_name")), size]
    if rate is not None:
        top, _, bottom = str(rate).partition("/")  # 30000/1001
        with suppress(ValueError, ZeroDivisionError):
            top = f"{float(top) / float(bottom or 1):g}"
        words.append(top if "fps" in top else f"{top} fps")
    for name, factor, unit in (("bit_rate", 1e6, "Mbit/s"), ("sample_rate", 1, "Hz"), ("channels", 1, "channels")):
        if name in given:
            plain = re.fullmatch(r"[\d.]+", str(given[name]))
            words.append(f"{float(given[name]) / factor:.10g} {unit}" if plain else given[name])
    return " ".join(str(word) for word in words if word is not None)


def read_expected(kind: str, value: Any, where: str) -> Expected | None:
    """`kind` is video or audio; None where nothing is expected. Raises UsageError."""
    text = expected_text(kind, value, where).strip()
    if text.lower() in ("none", "no"):
        return Expected(nothing=True)
    ranges, size, left = {}, None, text
    for name in ("size", "fps", "bit_rate") if kind == "video" else ("sample_rate", "channels"):
        pattern, slack = QUANTITIES[name]
        if not (found := re.search(rf"(?<![\w.])(?:{pattern})(?!\w)", left, re.IGNORECASE)):
            continue
        left = left[: found.start()] + " " + left[found.end() :]
        if name == "size":
            size = found["a"].lower()
            continue
        parts = found.groupdict()
        factor = {"k": 1e3, "m": 1e6}.get((parts.get("unit") or "").lower(), 1.0)
        word = found["a"].lower().split()[0]
        try:
            low = float({"mono": "1", "stereo": "2"}.get(word, word)) * factor
            high = float(parts["b"]) * factor if parts.get("b") else low * (1 + slack)
        except ValueError as problem:
            raise UsageError(f"{where}: {found[0]!r} is no quantity") from problem
        ranges[name] = (low if parts.get("b") else low * (1 - slack), high)
    names = re.split(r"[,\s]+", left.strip(" ,\t\n"))
    if len(names) > 1:
        example = "h264 1920x1080 25 fps 2-6 Mbit/s" if kind == "video" else "pcm_alaw 8000 Hz mono, or none"
        raise UsageError(f"{where}: {text!r} is not understood; expected such as: {example}")
    return Expected(codec=plain_codec(names[0]) or None, ranges=ranges, size=size) if text else None


def plain_codec(name: str) -> str:
    """One name for all the names of a codec."""
    plain = re.sub(r"[._-]", "", name.lower())
    return CODEC_NAMES.get(plain, plain)


def compare(kind: str, expected: Expected | None, found: Stream | None) -> list[tuple[str, str, str]]:
    """(what, expected, found) of everything that is not as expected."""
    if expected is None:
        return []
    if found is None or expected.nothing:
        right = (found is None) == expected.nothing
        return [] if right else [(kind, "none" if expected.nothing else expected.codec or "any", str(found or "none"))]
    if not found.packets:
        return [(kind, expected.codec or "any", f"{found.codec} is announced, but does not come")]
    differences = []
    if expected.codec and expected.codec != plain_codec(found.codec):
        differences.append((f"{kind} codec", expected.codec, found.codec))
    if expected.size and expected.size != found.size:
        differences.append((f"{kind} size", expected.size, found.size))
    for name, (low, high) in expected.ranges.items():
        value = float(getattr(found, name))
        if not low <= value <= high:
            divisor, unit = SHOWN_IN[name]
            limits = sorted({f"{one / divisor:.4g}" for one in (low, high)}, key=float)
            differences.append((f"{kind} {name}", f"{' to '.join(limits)}{unit}", f"{value / divisor:.4g}{unit}"))
    return differences


def look_command(ffmpeg: str, picture: Path | None) -> list[str]:
    """FFmpeg that reads for a while: a line for each packet on stdout, and a picture of the first key frame."""
    still = ["-map", "0:v:0", "-frames:v", "1", "-q:v", "2", "-f", "mjpeg", f"file:{picture}"] if picture else []
    return [
        ffmpeg, "-hide_banner", "-loglevel", "level+info", "-nostats", "-y", "-skip_frame", "nokey", "-f", "concat",
        "-safe", "0", "-protocol_whitelist", PROTOCOLS, "-i", "pipe:0", "-map", "0:v:0", "-map", "0:a:0?",
        "-c", "copy", "-copyinkf", "-t", str(CHECK_SAMPLE_SEC), "-flush_packets", "1", "-f", "framecrc", "pipe:1",
        *still,
    ]  # fmt: skip


def read_packets(text: str, stderr: str = "") -> dict[str, Stream]:
    """The streams in the output of FFmpeg's framecrc, by their kind. The first packets of a run have no true time."""
    heads = {(name, int(number)): value for name, number, value in re.findall(r"(?m)^#(\w+) (\d+): (.*)$", text)}
    packets: dict[int, list[tuple[int, int]]] = {}
    for number, moment, size in re.findall(r"(?m)^(\d+), *-?\d+, *(-?\d+), *\d+, *(\d+),", text):
        packets.setdefault(int(number), []).append((int(moment), int(size)))
    streams = {}
    for (name, number), kind in heads.items():
        if name != "media_type":
            continue
        sent = packets.get(number, [])
        up, _, down = heads.get(("tb", number), "1/1").partition("/")
        timed = sent[2:]
        moments = [moment for moment, _ in timed]  # with B-frames not in order
        span_sec = (max(moments) - min(moments)) * int(up) / int(down) if moments else 0.0
        layout = re.search(r"Audio: [^\n]* Hz, (?:(mono)|(stereo)|(\d+) channels)", stderr)
        streams[kind] = Stream(
            heads.get(("codec_id", number), "unknown"), len(sent),
            sum(size for _, size in timed[1:]) * 8 / span_sec if span_sec else 0.0,
            heads.get(("dimensions", number), "") if kind == "video" else "",
            (len(timed) - 1) / span_sec if kind == "video" and span_sec else 0.0,
            int(heads.get(("sample_rate", number), 0)),
            next((count or int(layout[3]) for count, word in ((1, 1), (2, 2), (0, 3)) if layout[word]), 0)
            if layout and kind == "audio" else 0)  # fmt: skip
    return streams


def run_for(command: Sequence[str], text: str, until: float,
            stopping: threading.Event) -> tuple[bytes, bytes, int | None]:  # fmt: skip
    """(stdout, stderr, status) of a process that gets `text`; None if killed, at `until` or when all are to stop."""
    process = subprocess.Popen(
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "AV_LOG_FORCE_NOCOLOR": "1"})  # fmt: skip
    given: bytes | None = text.encode()
    while True:
        try:
            stdout, stderr = process.communicate(given, timeout=TICK_SEC)
            return stdout, stderr, process.returncode
        except subprocess.TimeoutExpired:
            given = None
            if stopping.is_set() or time.monotonic() > until:
                process.kill()
                return *process.communicate(), None


def look_at(camera: Camera, ffmpeg: str, tls_options: bool, timeout_sec: float, picture: Path | None,
            stopping: threading.Event) -> Finding:  # fmt: skip
    """One connection to one camera; a picture is written to `picture`."""
    text, until = ffconcat(camera, tls_options, clock="camera"), time.monotonic() + timeout_sec
    stdout, stderr, status = run_for(look_command(ffmpeg, picture), text, until, stopping)
    told = mask(stderr.decode("utf-8", "replace"))
    streams = read_packets(stdout.decode("utf-8", "replace"), told)
    video = streams.get("video")
    if video and video.packets:
        few = f"{video.packets} frames came, but not {CHECK_SAMPLE_SEC} s of them within {timeout_sec:g} s"
        return Finding(camera, video, streams.get("audio"), *(("stall", few) if status is None else ()))
    lines = told.splitlines()
    reason = quotable(plainest(lines)) or f"no picture within {timeout_sec:g} s"
    state = read_state(camera.state_file)
    if state.get("state") == "recording" and time.time() - float(state.get("updated_at") or 0) < STATE_STALE_SEC:
        reason += " (it is being recorded; some cameras allow one connection only)"
    return Finding(camera, cause=classify(lines, status or 0, 0), detail=reason)


def check_camera(camera: Camera, look: Callable[[Path | None], Finding], timeout_sec: float,
                 expected: Sequence[Expected | None], folder: Path | None) -> Finding:  # fmt: skip
    """Look at a camera, compare, and keep its picture: whole or not at all."""
    kept = folder / f"{camera.name}.jpg" if folder else None
    try:
        if kept is None:
            finding = look(None)
        else:
            with part_file(kept) as part:
                finding = look(part)
                if finding.cause or not is_jpeg(part):
                    raise Unreadable(f"no picture came within {timeout_sec:g} s")
                finding = replace(finding, snapshot=kept)
    except Unreadable as problem:
        if not finding.cause:
            finding = replace(finding, differences=(("snapshot", "a picture", str(problem)),))
    except OSError as problem:
        return Finding(camera, cause="disk", detail=f"{kept or problem.filename}: {problem.strerror}")
    if finding.cause:
        return finding
    found = compare("video", expected[0], finding.video) + compare("audio", expected[1], finding.audio)
    return replace(finding, differences=(*found, *finding.differences))


def is_jpeg(file: Path) -> bool:
    """With its first and its last marker: all of it."""
    data = file.read_bytes() if file.exists() else b""
    return data.startswith(b"\xff\xd8") and data.rstrip(b"\0").endswith(b"\xff\xd9")


def finding_json(finding: Finding) -> dict[str, Any]:
    streams = {kind: None if stream is None else {name: round(value, 3) if isinstance(value, float) else value
                                                  for name, value in asdict(stream).items() if value}
               for kind, stream in (("video", finding.video), ("audio", finding.audio))}  # fmt: skip
    named = ("what", "expected", "found")
    return {"camera": finding.camera.name, "result": finding.result, "detail": finding.detail, **streams,
            "differences": [dict(zip(named, one, strict=True)) for one in finding.differences],
            "snapshot": str(finding.snapshot) if finding.snapshot else None}  # fmt: skip


def show_findings(findings: Sequence[Finding], form: str) -> None:
    """To stdout: a table, JSON Lines, or lines for the config."""
    answered = [finding for finding in findings if finding.video]
    if form == "json":
        for finding in findings:
            sys.stdout.write(json.dumps(finding_json(finding), ensure_ascii=False) + "\n")
        count = {"cameras": len(findings), "ok": sum(finding.result == "ok" for finding in findings),
                 "differ": sum(bool(finding.differences) for finding in findings),
                 "no_answer": len(findings) - len(answered)}  # fmt: skip
        sys.stdout.write(json.dumps({"summary": count}) + "\n")
        return
    if form == "yaml":
        for finding in answered:
            sys.stdout.write(f"  # {finding.camera.name}\n    expected_video: {finding.video}\n"
                             f"    expected_audio: {finding.audio or 'none'}\n")  # fmt: skip
        return
    rows = [("camera", "result", "video", "audio")]
    rows += [(finding.camera.name, finding.result, str(finding.video or "-"),
              str(finding.audio or ("none" if finding.video else "-"))) for finding in findings]  # fmt: skip
    for line, one in zip(in_columns(rows), [None, *findings], strict=True):
        sys.stdout.write(f"{line}\n")
        if one and one.detail:
            sys.stdout.write(f"  {one.detail}\n")
        for what, expected, found in one.differences if one else ():
            sys.stdout.write(f"  {what}: expected {expected}, found {found}\n")


def check_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Look at all cameras side by side and tell what was found."""
    timeout_sec = CHECK_CAMERA_SEC if arguments.timeout is None else arguments.timeout
    if timeout_sec <= 0:
        raise UsageError(f"--timeout {timeout_sec:g}: expected more than 0 seconds")
    flags = camera_flags(arguments)
    if not config["storage"]["local_path"]:
        flags.setdefault("output_dir", ".")  # nothing is written there
    cameras = settle_cameras(config, flags, arguments.camera)
    expected = {camera.name: [read_expected(kind, value, f"camera {camera.name!r}: expected_{kind}")
                              for kind, value in (("video", camera.expected_video), ("audio", camera.expected_audio))]
                for camera in cameras}  # fmt: skip
    ffmpeg = find_ffmpeg("checking cameras")
    tls_options = knows_tls_options(ffmpeg)
    warn_about_tls(cameras, tls_options)
    if arguments.snapshot:
        try:
            arguments.snapshot.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise CannotStart(f"--snapshot {arguments.snapshot}: {problem.strerror}") from problem
    stopping = threading.Event()

    def check(camera: Camera) -> Finding:
        look = partial(look_at, camera, ffmpeg, tls_options, timeout_sec, stopping=stopping)
        return check_camera(camera, look, timeout_sec, expected[camera.name], arguments.snapshot)

    with ThreadPoolExecutor(CHECK_WORKERS, thread_name_prefix="check") as pool:
        try:
            findings = list(pool.map(check, cameras))
        except BaseException:  # Ctrl-C: no camera is waited for
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    show_findings(findings, "json" if arguments.json else "yaml" if arguments.yaml else "table")
    for finding in findings:
        if finding.cause:
            log.error("%s: no answer: %s: %s", finding.camera.name, finding.cause, finding.detail)
        if finding.differences:
            log.error("%s: %s", finding.camera.name, "; ".join(
                f"{what}: expected {wanted}, found {found}" for what, wanted, found in finding.differences))
    return Status.PARTIAL if any(finding.result != "ok" for finding in findings) else Status.DONE


# --- watch -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A camera that should be recorded, and how long its recorder may take for what."""

    name: str
    root: Path
    segment_sec: float
    stall_sec: float

    @property
    def key(self) -> str:
        return f"watch {self.root / self.name}"

    @property
    def unit(self) -> str:
        return f"record_camera_{self.name}.service"


@dataclass(frozen=True)
class Health:
    """How a camera is. `dead` is what its recorder cannot tell or mend by itself: it is restarted, and told."""

    state: str
    since: float  # epoch seconds: of the last picture known, or of the state; 0 for never
    cause: str = ""
    well: bool = False
    dead: bool = False


def judge(target: Target, state: Mapping[str, Any], *, alive: bool, newest_sec: float | None, multiplier: float,
          after_sec: float, now_sec: float) -> Health:  # fmt: skip
    """From the recorder's state file and its lock; without a state file from the newest file in the folder."""
    longest_sec = target.segment_sec * multiplier
    if not state:
        if alive:
            return Health("starting", now_sec, well=True)
        if newest_sec is None:
            return Health("no files", 0.0, "the folder never had a file", dead=True)
        idle = now_sec - newest_sec > longest_sec
        return Health("idle" if idle else "files", newest_sec, "no new file" if idle else "", not idle, idle)
    updated, since = float(state.get("updated_at") or 0), float(state.get("since") or 0)
    last = float(state.get("last_frame_at") or since or updated)
    word, cause = str(state.get("state")), str(state.get("cause") or "")
    if not alive and now_sec - updated > FRESH_SEC:
        return Health("not running", last, "stopped" if word == "stopped" else "crashed", dead=True)
    if now_sec - updated > STATE_STALE_SEC:
        return Health("stale", last, "the recorder hangs", dead=True)
    if word == "down":
        return Health("down", since, cause, well=now_sec - since < after_sec)
    if word != "recording" and now_sec - since <= target.stall_sec + STATE_STALE_SEC:
        return Health("starting", since, well=True)
    if word != "recording" or now_sec - last > target.stall_sec + STATE_STALE_SEC:
        return Health("no video", last, "the recorder does not notice", dead=True)
    opened = float(state.get("recording_since") or since)
    if now_sec - opened > longest_sec + STATE_STALE_SEC:
        return Health("no files", opened, "no file was finished", dead=True)
    return Health("recording", since, well=True)


def is_held(lock: Path) -> bool:
    """Whether a process holds a recorder's lock. Trying to take it could keep a recorder from starting just then."""
    try:
        process = int(lock.read_text(encoding="utf-8"))
        with suppress(PermissionError):  # it lives, as another user
            os.kill(process, 0)
        rows = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as problem:  # without /proc, that it lives has to do
        return isinstance(problem, FileNotFoundError) and problem.filename == "/proc/locks"
    return str(process) in {word for row in rows for word in row.split()[4:5]}


def newest_file_sec(folder: Path) -> float | None:
    """When a file of a folder was written last; None when it holds none."""
    try:
        found = [entry.stat().st_mtime for entry in os.scandir(folder)
                 if entry.is_file() and not entry.name.startswith(".") and Path(entry.name).suffix != ".part"]
    except OSError:
        return None
    return max(found, default=None)


def health_of(target: Target, multiplier: float, after_sec: float) -> Health:
    own, newest = target.root / STATE_FOLDER, newest_file_sec(target.root / target.name)
    state = read_state(own / "state" / f"{target.name}.json")
    finding = judge(target, state, alive=is_held(own / "lock" / target.name), newest_sec=newest, multiplier=multiplier,
                    after_sec=after_sec, now_sec=time.time())  # fmt: skip
    if finding.state == "stale" and shutil.disk_usage(target.root).free < STATE_ROOM_BYTES:
        return replace(finding, state="down", cause="disk", dead=False)  # it lives, but cannot write its state
    return finding


def watch_targets(arguments: argparse.Namespace, config: Mapping[str, Any]) -> list[Target]:
    """The cameras of the config, or with --recording_dir those that have a folder there."""
    recording = config["recording"]
    if not arguments.recording_dir:
        flags = {name: value for name, value in (("output_dir", arguments.output_dir),
                                                 ("segment_time", arguments.segment_time)) if value}  # fmt: skip
        unseen = [{**entry, **({} if entry.get("ip") else {"rtsp_url": "rtsp://not-needed/"})}  # it is a secret
                  for entry in config["cameras"] if entry]  # fmt: skip
        cameras = settle_cameras({**config, "cameras": unseen}, flags, arguments.camera)
        return [Target(one.name, one.root, one.segment_sec, max(one.limits.stall, one.limits.first_frame))
                for one in cameras]  # fmt: skip
    if arguments.segment_time is not None and arguments.segment_time < 1:
        raise UsageError("--segment_time has to be at least 1")
    root = absolute(arguments.recording_dir)
    if not root.is_dir():
        raise CannotStart(f"--recording_dir {root}: there is no such folder")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and NAME.fullmatch(entry.name))
    names += [name for name in arguments.camera if name not in names]  # one that is asked for may lack its folder
    names = [name for name in names if not arguments.camera or name in arguments.camera]
    if not names or not all(map(NAME.fullmatch, names)):
        raise UsageError(f"--recording_dir {root}: no folder of a camera, or a name that none can have")
    length = (recording["defaults"] or {}).get("segment_time") or recording["segment_duration"]
    length = arguments.segment_time or length
    return [Target(name, root, length, max(recording["stall"], recording["first_frame"])) for name in names]


def missing_roots(roots: Iterable[Path], *, require_mount: bool) -> dict[Path, str]:
    """Folders that nothing can be recorded to, and why."""
    found = {}
    for root in roots:
        if not root.is_dir():
            found[root] = "there is no such folder, so nothing is recorded to it"
        elif require_mount and not is_mounted(root):
            found[root] = "not mounted (storage.require_mount), so nothing is recorded to it"
    return found


def tell_missing(root: Path, sentence: str, settings: Mapping[str, Any]) -> None:
    """Mail that a storage is away, once, and that it is back. What was told cannot be kept on the storage itself."""
    folder = os.environ.get("STATE_DIRECTORY") or Path.home() / ".local" / "state" / "rtsp_recorder"
    notify({**settings, "on": "failure", "ping_url": None}, Path(folder) / f"watch_{quote(str(root), safe='')}.json",
           "DISK", Status.CANNOT_START if sentence else Status.DONE, sentence or "the storage is there")  # fmt: skip


def ask_systemd(*words: str) -> tuple[int, str]:
    """(status, what it printed or said); 1 where there is no systemd."""
    try:
        done = run_aside(["systemctl", *words], SYSTEMCTL_SEC)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return 1, str(problem)
    return done.returncode, (done.stdout if not done.returncode else done.stderr or done.stdout).strip()


def wanted_unit(unit: str) -> bool:
    """Whether systemd has the unit and somebody wants it to run; one that was disabled and stopped stays as it is."""
    status, text = ask_systemd("show", "--property=LoadState,UnitFileState,ActiveState", unit)
    shown = dict(line.partition("=")[::2] for line in text.splitlines())
    if status or shown.get("LoadState") != "loaded":
        return False
    return shown.get("UnitFileState") not in ("disabled", "masked") or shown.get("ActiveState") not in ("inactive", "")


class Restarts:
    """How often each unit was restarted within the last hour; kept before the restart that it counts."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        kept = read_state(root / STATE_FOLDER / "watch.json").get("restarts")
        self.times: dict[str, list[float]] = kept if isinstance(kept, dict) else {}

    def count(self, unit: str) -> bool:
        """Take one restart from what is allowed; False when nothing is left of it."""
        now = time.time()
        recent = {name: [one for one in times if 0 <= now - one < RESTART_WINDOW_SEC]
                  for name, times in self.times.items()}  # fmt: skip
        self.times = {name: times for name, times in recent.items() if times}
        if len(self.times.get(unit, [])) >= self.limit:
            return False
        self.times.setdefault(unit, []).append(now)
        keep_json(self.root, "watch.json", {"restarts": self.times})
        return True


def why_not(target: Target, restarts: Restarts, *, dry: bool) -> str:
    """Why a dead recorder is left as it is; nothing when it is to be restarted, and then that is counted."""
    if not wanted_unit(target.unit):
        return f"not restarted: systemd has no {target.unit} that is enabled or active"
    if dry:
        return f"would restart {target.unit}"
    try:
        if not restarts.count(target.unit):
            return f"not restarted again: {target.unit} had {restarts.limit} restarts within the hour"
    except OSError as problem:
        return f"not restarted: the restart cannot be counted: {problem.strerror}"
    return ""


def restart(target: Target) -> str:
    status, said = ask_systemd("restart", target.unit)
    return f"restarting {target.unit}" if not status else f"not restarted: {target.unit}: {quotable(mask(said))}"


def restart_dead(targets: Sequence[Target], findings: Sequence[Health], restarts: Mapping[Path, Restarts], *,
                 dry: bool) -> dict[Target, str]:  # fmt: skip
    """What was done about each dead recorder. Side by side, because one may take a quarter of a minute to end."""
    actions = {target: why_not(target, restarts[target.root], dry=dry)
               for target, finding in zip(targets, findings, strict=True) if finding.dead}  # fmt: skip
    due = [target for target, action in actions.items() if not action]
    with ThreadPoolExecutor(RESTART_WORKERS) as pool:
        return actions | dict(zip(due, pool.map(restart, due), strict=True))


@dataclass(frozen=True)
class Report:
    """One line of the result."""

    kind: str  # camera or disk
    name: str
    state: str
    well: bool
    text: str
    idle_sec: float | None = None
    cause: str = ""
    action: str = ""


def idle_text(finding: Health) -> str:
    return f"idle for {time.time() - finding.since:.0f} s" if finding.since else "never had a file"


def tell_camera(target: Target, finding: Health, action: str, outbox: Outbox) -> None:
    """Dead, or well again after that; what a living recorder says of its camera is its own to tell."""
    told, now = outbox.read()["told"].get(target.key), time.time()
    if finding.dead:
        word = "Auto-restart" if action.startswith("restarting") else "Down"
        text = f"{target.name} {idle_text(finding)} → {action}; cause: {finding.state} ({finding.cause})"
        told = told or {"since": round(finding.since or now, 3), "cause": finding.cause}
        told = {**told, "left_alone": told.get("left_alone") or word == "Down"}  # said once, when it comes to that
        outbox.tell(target.key, told, Told("CAMERA", word, target.name, text, now), OUTBOX_WAIT_SEC)
    elif told and finding.well and finding.state in ("recording", "files"):
        since = float(told.get("since") or now)
        lost = f"no new file for {finding.since - since:.0f} s"
        lost = lost_text(target.root, target.name, since, now) if finding.state == "recording" else lost
        text = f"{target.name} records again: {lost}"
        outbox.tell(target.key, None, Told("CAMERA", "Recovered", target.name, text, now), OUTBOX_WAIT_SEC)


def camera_report(target: Target, finding: Health, action: str) -> Report:
    words = f"since {clock_text(finding.since, parse_zone(None))}" if finding.well else idle_text(finding)
    words += f" ({finding.cause})" if finding.cause and finding.since else ""
    idle = None if finding.well or not finding.since else round(time.time() - finding.since, 1)
    return Report("camera", target.name, finding.state, finding.well, "; ".join(filter(None, [words, action])), idle,
                  finding.cause, action)  # fmt: skip


def watch_disk(root: Path, least_bytes: float, percent: float, outbox: Outbox) -> Report:
    """Both limits of a disk: bytes that have to be free (shared with `record`), and how full it may be."""
    try:
        usage, now, told = shutil.disk_usage(root), time.time(), outbox.read()["told"]
    except OSError as problem:
        return Report("disk", str(root), "unknown", False, f"{problem.strerror}")
    used = 100 * usage.used / max(1, usage.used + usage.free)  # as df counts: without what root keeps for itself
    full_key = f"full {root}"
    low = least_bytes > 0 and is_low(usage.free, least_bytes, was_low=disk_key(root) in told)
    full = percent < 100 and used >= percent - (FULL_HYSTERESIS_PERCENT if full_key in told else 0)
    text = f"{used:.0f} % used, {usage.free / 1e6:.0f} MB free"
    if low != (disk_key(root) in told):
        message = least_told(root, usage.free, least_bytes, low=low)
        outbox.tell(disk_key(root), {"low": True} if low else None, message, OUTBOX_WAIT_SEC)
    if full != (full_key in told):
        message = Told("DISK", "Nearly full" if full else "Well again", str(root),
                       f"{root}: {text}; the limit is {percent:g} % (watch.disk_percent)", now)  # fmt: skip
        outbox.tell(full_key, {"full": True} if full else None, message, OUTBOX_WAIT_SEC)
    over = [f"less than {least_bytes / 1e6:.0f} MB free"] * low + [f"over {percent:g} %"] * full
    return Report("disk", str(root), "low" if over else "ok", not over, "; ".join([text, *over]))


def show_reports(reports: Sequence[Report], form: str) -> None:
    if form == "json":
        for one in reports:
            sys.stdout.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
        counts = {"cameras": sum(one.kind == "camera" for one in reports), "well": all(one.well for one in reports),
                  "down": [one.name for one in reports if not one.well]}  # fmt: skip
        sys.stdout.write(json.dumps({"summary": counts}, ensure_ascii=False) + "\n")
    elif form == "table":
        for line in in_columns([(one.name, one.state, one.text) for one in reports]):
            sys.stdout.write(f"{line}\n")


@contextmanager
def only_watch(roots: Iterable[Path]) -> Iterator[None]:
    """One watch of a storage at a time; a disk that is full to the last byte is to be told all the same."""
    with ExitStack() as held:
        for root in roots:
            try:
                lock = own_folder(root) / "watch.lock"
                held.enter_context(run_lock(lock, "watch"))
                adopt(lock)
            except OSError as problem:
                if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise CannotStart(f"{root / STATE_FOLDER}: cannot be written: {problem.strerror}") from problem
        yield


def watch_all(targets: Sequence[Target], config: Mapping[str, Any], *, dry: bool) -> list[Report]:
    """Look, restart, note what changed, send; a report for each camera and each disk."""
    settings = {**config["notify"], "smtp_host": None, "urls": []} if dry else config["notify"]
    limits, roots = config["watch"], sorted({target.root for target in targets})
    outboxes = {root: Outbox(root, settings) for root in roots}
    restarts = {root: Restarts(root, limits["restart_limit"]) for root in roots}
    findings = [health_of(target, limits["multiplier"], settings["after"]) for target in targets]
    done = restart_dead(targets, findings, restarts, dry=dry)
    reports = []
    for target, finding in zip(targets, findings, strict=True):
        tell_camera(target, finding, done.get(target, ""), outboxes[target.root])
        reports.append(camera_report(target, finding, done.get(target, "")))
    least = config["retention"]["min_free_bytes"]
    reports += [watch_disk(root, least, limits["disk_percent"], outbox) for root, outbox in outboxes.items()]
    for root, outbox in outboxes.items():
        reports += [Report("alerts", str(root), "not sent", False, quotable(problem))
                    for problem in outbox.send(at_once=True)]  # fmt: skip
        outbox.keep_spare()
    return reports


def watch_command(arguments: argparse.Namespace, config: Mapping[str, Any]) -> int:
    """Look at everything once, restart what is dead, tell what changed."""
    for name in ("multiplier", "disk_percent"):
        given = getattr(arguments, name)
        config["watch"][name] = config["watch"][name] if given is None else given
    if config["watch"]["multiplier"] < 1 or not 0 < config["watch"]["disk_percent"] <= 100:
        raise UsageError("multiplier has to be at least 1, disk_percent more than 0 and at most 100")
    targets = watch_targets(arguments, config)
    roots = sorted({target.root for target in targets})
    missing = missing_roots(roots, require_mount=config["storage"]["require_mount"] and not arguments.recording_dir)
    sentence = "; ".join(f"{root}: {why}" for root, why in missing.items())
    if not arguments.dry_run:
        tell_missing(roots[0], sentence, config["notify"])
    if len(missing) == len(roots):
        raise CannotStart(sentence)
    roots = [root for root in roots if root not in missing]
    with ExitStack() as held:
        if not arguments.dry_run:
            held.enter_context(only_watch(roots))
        reports = watch_all([target for target in targets if target.root in roots], config, dry=bool(arguments.dry_run))
    reports += [Report("disk", str(root), "unknown", False, why) for root, why in missing.items()]
    staged = [(root / STATE_FOLDER, folder) for root in roots for folder in (root / STATE_FOLDER).glob("staging/*")]
    reports += [Report("leftovers", folder.name, "forgotten", False, f"{folder} holds footage that only a recorder of "
                       "this camera publishes: add it to the config again, and record it")
                for own, folder in staged if not arguments.camera and any(folder.glob("*/*.m[kp][v4]"))
                and folder.name not in {one.name for one in targets} and not is_held(own / "lock" / folder.name)]
    show_reports(reports, "json" if arguments.json else "none" if arguments.quiet else "table")
    for one in reports:
        if not one.well:
            log.error("%s: %s: %s", one.name, one.state, one.text)
    well = all(one.well for one in reports)
    if well and not arguments.dry_run:
        ping(config["notify"]["ping_url"])
    return Status.DONE if well else Status.PARTIAL


# --- command line ------------------------------------------------------------------------------------------------

FORMS = {"check": ("--yaml", "what was found, in the form of config.yaml"),
         "gaps": ("--csv", "one line per gap, with a head line")}  # beside --json  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Every command with its flags; what is not given is None: config.yaml or the default decides."""
    parser = argparse.ArgumentParser(prog="rtsp_recorder.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, what: str, *, named: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        if named:
            made.add_argument("camera", metavar="CAMERA", nargs="*", help="only these cameras (default: all)")
        made.add_argument("--cameras_config", metavar="FILE", type=Path, help="an older cameras.json, over config.yaml")
        made.add_argument("--backup_config", metavar="FILE", type=Path, help="an older backup.json, over config.yaml")
        if named:
            made.add_argument("--output_dir", metavar="DIR", help="where files go (default: storage.local_path)")
        form = made.add_mutually_exclusive_group()
        if name != "record":
            form.add_argument("--json", action="store_true", default=None, help="JSON Lines, the last one a summary")
        if name in FORMS:
            form.add_argument(FORMS[name][0], action="store_true", help=FORMS[name][1])
        add_common_flags(made)
        return made

    recorder = command("record", "record cameras until SIGTERM, SIGHUP or SIGINT")
    one = recorder.add_argument_group("one camera without a config, or other settings for all")
    one.add_argument("--station", metavar="NAME", help="name of the camera, and of its folder")
    one.add_argument("--ip", metavar="HOST", help="address of the camera")
    one.add_argument("--rtsp_url", metavar="URL", help="the whole address, instead of --ip, --rtsp_port, --rtsp_path")
    one.add_argument("--user", metavar="NAME", help="of the camera (default: RTSP_USER)")
    one.add_argument("--password", metavar="WORD", help="of the camera; others can see flags, so better RTSP_PASSWORD")
    one.add_argument("--rtsp_port", metavar="PORT", type=int, help="default: 554")
    one.add_argument("--rtsp_path", metavar="PATH", help=f"default: {DEFAULT_RTSP_PATH}")
    one.add_argument("--segment_time", metavar="SEC", type=int, help="length of the files in seconds (default: 3600)")
    one.add_argument("--logs_dir", metavar="DIR", help="a bounded log of FFmpeg per camera goes there (default: none)")
    one.add_argument("--core", metavar="N", type=int, help="CPU core for FFmpeg (default: any)")
    one.add_argument("--loglevel", choices=LOG_LEVELS, help="of FFmpeg, for --logs_dir (default: warning)")

    check = command("check", "connect to each camera and compare what it sends with expected_video and expected_audio")
    check.add_argument("--snapshot", metavar="DIR", type=Path, help="keep a picture of each camera there, CAMERA.jpg")
    check.add_argument("--timeout", metavar="SEC", type=float, help="wait so long for each camera (default: 30)")

    services = command("services", "systemd units for all of this: make them, start them, show them", named=False)
    services.add_argument("verb", metavar="VERB", nargs="+", choices=list(VERBS), help=f"in order: {', '.join(VERBS)}")
    services.add_argument("--units_dir", metavar="DIR", type=Path, help="for services/ and timers/ (default: config's)")
    services.add_argument("--run_as", metavar="USER", default="footage", help="user of the units (default: footage)")
    services.add_argument("--prefix", metavar="DIR", type=Path, help="write below DIR instead of /, to try or to pack")
    watch = command("watch", "find cameras without fresh video, restart their units, tell what changed; for cron")
    watch.add_argument("--recording_dir", metavar="DIR", help="cameras are the folders in there, without a config")
    watch.add_argument("--segment_time", metavar="SEC", type=int, help="length of the files (default: of the config)")
    watch.add_argument("--multiplier", metavar="N", type=float,
                       help="a file has to appear within so many lengths of a file (default: 2)")  # fmt: skip
    watch.add_argument("--disk_percent", metavar="N", type=float, help="tell when a disk is fuller (default: 85)")
    watch.add_argument("--dry_run", action="store_true", default=None, help="restart nothing, tell nobody")

    gaps = command("gaps", "what is recorded, what is missing, and why; from the journal")
    gaps.add_argument("--since", metavar="TIME", help="from when on (default: the first recording)")
    gaps.add_argument("--until", metavar="TIME", help="until when (default: now)")
    gaps.add_argument("--max_lost", metavar="PERCENT", type=float, help="exit 1 when more is missing (default: any)")
    gaps.add_argument("--timezone", metavar="ZONE", help="of times without a zone, and of days (default: the host's)")
    return parser


def camera_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that stand for keys of a camera, as far as given; RTSP_USER and RTSP_PASSWORD count like flags."""
    names = ("station", "ip", "rtsp_url", "user", "password", "rtsp_port", "rtsp_path", "segment_time", "output_dir",
             "logs_dir", "core", "loglevel")  # fmt: skip
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    login, _ = split_login(str(given.get("rtsp_url", "")).partition("://")[2])
    for secret in (given.get("password"), unquote(login.partition(":")[2])):
        if secret:
            hide_secret(str(secret))
            log.warning("a password among the flags can be seen by others on this machine; better set RTSP_PASSWORD")
    environment = {"user": os.environ.get("RTSP_USER"), "password": os.environ.get("RTSP_PASSWORD")}
    return {**{name: value for name, value in environment.items() if value}, **given}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, configure, refuse early, act; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    start_logging(arguments)
    if arguments.command == "services":
        return services_command(arguments)
    overlays = [read_overlay(file) for file in (arguments.cameras_config, arguments.backup_config)]
    beside = Path(__file__).resolve().parent
    config: dict[str, Any] = {**load_config(arguments.config, SECTIONS.get(arguments.command, _CAMERAS), beside,
                                            *overlays, secrets=SECRETS.get(arguments.command, True))}  # fmt: skip
    if arguments.command == "gaps":
        return gaps_command(arguments, config)
    if arguments.command == "check":
        return check_command(arguments, config)
    if arguments.command == "watch":
        return watch_command(arguments, config)
    flags = camera_flags(arguments)
    if not config["storage"]["local_path"] and ("ip" in flags or "rtsp_url" in flags):
        flags.setdefault("output_dir", ".")
    return record(settle_cameras(config, flags, arguments.camera), arguments.quiet, config)


if __name__ == "__main__":
    sys.exit(run(main))
