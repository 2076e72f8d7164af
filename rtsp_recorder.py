"""Record RTSP cameras around the clock into files of equal length, and keep account of every second that is missing.

Examples:
  rtsp_recorder.py record                                              all enabled cameras of config.yaml
  rtsp_recorder.py record Gate Yard                                    these two
  rtsp_recorder.py record --station Gate --ip 192.0.2.7 --user admin   without a config; password in RTSP_PASSWORD
  rtsp_recorder.py gaps Gate --since yesterday --limit 1               what is missing, and why

Needs: FFmpeg 5 or newer (pip brings one) and config.yaml with `cameras` and `storage.local_path`, or the flags above.
State: finished files as CAMERA/NAME under storage.local_path; `.rtsp_recorder/` beside them holds the journal (what was
recorded, when nothing was, and why), files that are being recorded (`staging`), one state file and one lock per camera.
"""

from __future__ import annotations

import argparse
import csv
import errno
import itertools
import json
import logging
import logging.handlers
import math
import os
import re
import selectors
import shutil
import signal
import socket
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
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rhombus_logging import (
    Busy,
    CannotStart,
    Status,
    UsageError,
    add_common_flags,
    append_line,
    find_ffmpeg,
    fsync_folder,
    hide_secret,
    load_config,
    mask,
    part_file,
    run,
    run_lock,
    start_logging,
)

STATE_FOLDER = ".rtsp_recorder"
STAGED_NAME = "%Y%m%dT%H%M%SZ"  # UTC, so that no change of the clock to summer time repeats a name
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DEFAULT_RTSP_PATH = "/Streaming/Channels/101"
FILENAME_OF_NAMED, FILENAME_OF_STATION = "%Y%m%d_%H%M%S.mp4", "{camera}_%Y%m%dT%H%M%S.mkv"  # as installations have them
LOG_LEVELS = ("quiet", "panic", "fatal", "error", "warning", "info", "verbose", "debug")
QUIETLY = ("-hide_banner", "-nostdin", "-nostats", "-loglevel")
PROTOCOLS = "pipe,file,fd,rtsp,rtp,tcp,udp,tls"
RETRY_GROWTH = 1.3
STEADY_SEC = 10  # a run that recorded so long counts as a success: the next wait is the shortest again
TICK_SEC = 1.0  # at most, how long a camera's thread waits for FFmpeg to say something
STATE_EVERY_SEC = 1.0
STATE_BYTES = 1024  # of a state file, filled up with spaces
STATE_STALE_SEC = 30  # older states are of a recorder that was killed
START_SPACING_SEC = 0.05  # between the first starts of two cameras
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
STDERR_LINES = 40  # the last ones decide what a failure is called
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
GAP_SEC = 0.5  # shorter distances between two segments are the inaccuracy of their times
TIME_IN_NAME = re.compile(
    r"(?<!\d)(?=(\d{4})[-_]?(\d\d)[-_]?(\d\d)[T_ -]?(\d\d)[-_.:]?(\d\d)[-_.:]?(\d\d)(Z?)(?!\d))")  # fmt: skip
USUAL_SHARE = 1.05  # of the usual distance between two files: a longer one is no file's length without a look into it
WATCHDOG_QUIET_SEC = 30  # a camera's thread that is silent so long hangs: systemd is no longer told that all is well
KEPT_AWAY_SEC = 5.0  # after a bug in a camera's thread
EMPTY_BYTES = 4096  # a file up to this size without a readable picture is a bare header
NAME_LATE_SEC = 10  # a staged name may be later than the first frame: FFmpeg looks at a stream for up to 5 s first

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

    def own(self, kind: str) -> Path:
        """Where this camera's `staging`, `journal`, ... lies."""
        return self.root / STATE_FOLDER / kind / self.name

    @property
    def state_file(self) -> Path:
        return self.own("state").with_name(f"{self.name}.json")


# --- cameras -----------------------------------------------------------------------------------------------------


def split_login(rest: str) -> tuple[str, str]:
    """`user:password@` and what follows, of an address after its `://`; also with '@' or '/' left as they are."""
    host, slash, path = rest.partition("/")
    if "@" in host:
        login, _, host = host.rpartition("@")
        return login, host + slash + path
    if "@" in path and not re.search(r"^[^:]*$|:\d+$|\]$", host):  # `user:pass` before the slash: no host, no port
        login, _, place = rest.rpartition("@")
        return login, place
    return "", rest


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
        name=name, url=camera_url(chosen), root=Path(os.path.abspath(Path(str(root)).expanduser())),  # noqa: PTH100
        segment_sec=int(own.get("segment_time") or shared.get("segment_time") or recording["segment_duration"]),
        filename=stem, container=str(chosen["container"] or extension or "mkv"),
        zone=parse_zone(recording["timezone"]), audio=chosen["audio"], transport=chosen["transport"],
        tls_verify=chosen["tls_verify"], tls_ca_file=chosen["tls_ca_file"], loglevel=str(chosen["loglevel"]),
        logs_dir=Path(str(chosen["logs_dir"])).expanduser() if chosen.get("logs_dir") else None,
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
        host = re.sub(r"[^A-Za-z0-9.-]", "_", re.sub(r"^\w+://([^/]*@)?|[:/].*", "", flags.get("rtsp_url") or ""))
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


def as_sections(document: Any) -> dict[str, Any]:
    """An older cameras.json or backup.json as sections of config.yaml.

    A list is `cameras`, `defaults` belongs to `recording`, flat keys of a backup belong to `nas`.
    """
    if isinstance(document, list):
        return {"cameras": document}
    sections: dict[str, Any] = {}
    for name, value in document.items():
        if name == "defaults":
            sections.setdefault("recording", {})["defaults"] = value
        elif isinstance(value, dict) or name == "cameras":
            sections[name] = {**sections.get(name, {}), **value} if isinstance(value, dict) else value
        else:
            sections.setdefault("nas", {})[name] = value
    return sections


def read_overlay(file: Path | None) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError) as problem:
        raise UsageError(f"{file}: cannot be read as JSON: {problem}") from problem
    if not isinstance(document, (dict, list)):
        raise UsageError(f"{file}: expected a map of keys or a list of cameras")
    return as_sections(document)


def parse_zone(name: str | None) -> tzinfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    if not name:
        return datetime.now().astimezone().tzinfo or timezone.utc
    try:
        return timezone.utc if name.upper() == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as problem:
        raise UsageError(f"timezone {name!r} is not known; expected a name such as Europe/Berlin") from problem


# --- what FFmpeg is told, and what it says -----------------------------------------------------------------------


def ffconcat(camera: Camera, tls_options: bool) -> str:
    """The text for FFmpeg's stdin: what it shall open. On the command line everybody could read the password."""

    def quoted(value: str) -> str:
        return "'" + value.replace("'", r"'\''") + "'"

    options = {"rtsp_transport": camera.transport, "timeout": str(round(camera.limits.socket_timeout * 1e6)),
               "use_wallclock_as_timestamps": "1"}  # fmt: skip
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


def read_progress(lines: Iterable[str]) -> tuple[int, float | None]:
    """Of a block of FFmpeg's -progress: video frames so far, and the end of what is written, in stream time."""
    values = dict(line.strip().partition("=")[::2] for line in lines)
    frames, out = values.get("frame", "").strip(), values.get("out_time_us", "").strip()
    return int(frames) if frames.isdigit() else 0, int(out) / 1e6 if out.lstrip("-").isdigit() else None


def read_row(line: str) -> tuple[str, float, float] | None:
    """A line of the segment list: file, start and end in stream time; None for what is no such line."""
    try:
        name, start, end = next(csv.reader([line.strip()]))
        return name, float(start), float(end)
    except (ValueError, StopIteration):
        return None


# Of what FFmpeg says, with versions 5 to 9. All but the disk only count without any video: a stream that breaks later
# says "timed out" too.
DISK_WORDS = re.compile(r"No space left|Disk quota|Read-only file system|(?i:mkv.*Input/output)|File too large")
UNAUTHORISED_WORDS = re.compile(r"\b40[13]\b|(?i:unauthori[sz]ed|forbidden)")
LOGIN_OR_PATH = UNAUTHORISED_WORDS.pattern + r"|\b404\b"  # asking again soon does not help, and may lock the account
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
    return "stall" if status == 0 else "unknown"


def quotable(words: object) -> str:
    """What FFmpeg or the system said, for a log line that is no ERROR: people search logs for that word."""
    return re.sub("(?i)error", "failure", re.sub(r"\[[^\]]*\] ", "", str(words)))


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


def staged_sec(name: str) -> float | None:
    """The time in the name of a staged file, epoch seconds."""
    try:
        moment = datetime.strptime(name.partition(".")[0].partition("-")[0], STAGED_NAME)
    except ValueError:
        return None
    return moment.replace(tzinfo=timezone.utc).timestamp()


def utc_day(moment_sec: float) -> str:
    return datetime.fromtimestamp(moment_sec, timezone.utc).strftime("%Y-%m-%d")


def clock_text(moment_sec: float, zone: tzinfo) -> str:
    return datetime.fromtimestamp(moment_sec, zone).isoformat(" ", "seconds")


# --- journal and gaps --------------------------------------------------------------------------------------------


def write_journal(camera: Camera, kind: str, start_sec: float, **values: Any) -> None:
    """One line in the journal of the UTC day of `start_sec`, synced."""
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


def read_journal(folder: Path, since_sec: float, until_sec: float) -> list[dict[str, Any]]:
    """The lines that touch the time, in order; a torn line is left out. A segment may begin a day before its end."""
    lines: list[dict[str, Any]] = []
    for file in sorted(folder.glob("????-??-??.jsonl")):
        if not utc_day(max(0, since_sec - 2 * 86400)) <= file.stem <= utc_day(until_sec):
            continue
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                if line["start"] < until_sec and line["end"] > since_sec:
                    lines.append(line)
            except (ValueError, TypeError, KeyError):
                log.debug("%s: a torn line is left out", file)
    return sorted(lines, key=lambda line: float(line["start"]))


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


def coverage(camera: str, lines: Sequence[Mapping[str, Any]], span: Interval, downs: Sequence[Gap] = (),
             now_open: Sequence[Interval] = (), files: Sequence[Interval] = ()) -> Coverage:  # fmt: skip
    """Gaps are the time between segments; their cause is that of the down time which covers most of each.

    `downs` and `now_open` come from the state file: a down time that lasts, the segment that is being recorded. `files`
    are those without a line.
    """
    recorded = [(float(line["start"]), float(line["end"])) for line in lines if line.get("kind") == "segment"]
    covered = joined([*recorded, *now_open], GAP_SEC)
    causes = [Gap(camera, float(line["start"]), float(line["end"]), str(line.get("cause", "unknown")), "journal")
              for line in lines if line.get("kind") == "down"] + list(downs)  # fmt: skip
    extra = [part for start, end in joined(files, GAP_SEC)
             for part in without((max(start, span[0]), min(end, span[1])), covered) if part[1] - part[0] > GAP_SEC]
    gaps = []
    for start, end in without(span, joined([*covered, *extra], GAP_SEC)):
        if end - start <= GAP_SEC:
            continue
        overlaps = {cause: sum(max(0.0, min(end, down.end) - max(start, down.start)) for down in causes
                               if down.cause == cause) for cause in {down.cause for down in causes}}  # fmt: skip
        best = max(overlaps, key=lambda cause: overlaps[cause], default="unknown")
        known = overlaps.get(best, 0) > 0
        gaps.append(Gap(camera, start, end, best if known else "unknown", "journal" if known else "inferred"))
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


def read_state(file: Path) -> dict[str, Any]:
    for _ in range(2):  # the first reading may have met the moment of writing
        with suppress(OSError, ValueError):
            state = json.loads(file.read_text(encoding="utf-8"))
            return state if isinstance(state, dict) else {}
    return {}


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

    With the `zone` of file names, files without a line in the journal count as well.
    """
    folder = root / STATE_FOLDER / "journal" / camera
    state = read_state(root / STATE_FOLDER / "state" / f"{camera}.json")
    lines = read_journal(folder, 0 if since_sec is None else since_sec, until_sec)
    opened, last, updated = (float(state.get(name) or 0) for name in ("recording_since", "last_frame_at", "updated_at"))
    fresh = state.get("state") == "recording" and time.time() - updated < STATE_STALE_SEC
    now_open = [(opened, until_sec if fresh else last)] if opened and last else []
    files: list[Interval] = []
    if zone:
        around = read_journal(folder, (since_sec or 0) - 2 * 86400, until_sec + 2 * 86400)
        journaled = {str(line.get("file")) for line in around}
        files = unjournaled(root / camera, journaled, (since_sec or 0, until_sec), zone)
    starts = [float(line["start"]) for line in lines] + [start for start, _ in now_open + files]
    first = min([*starts, float(state["since"])] if state else starts, default=None)
    if since_sec is None and first is None:
        return None
    span = (first if since_sec is None else since_sec, until_sec)
    downs = []
    if state.get("state") in ("down", "stopped"):
        downs = [Gap(camera, float(state["since"]), until_sec, str(state["cause"]), "journal")]
    elif state and not fresh:
        downs = [Gap(camera, last or updated, until_sec, "crashed", "journal")]
    return coverage(camera, lines, (float(span[0] or 0), span[1]), downs, now_open, files)


# --- files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Media:
    """What reading a file showed. `frames` is None where not all of it was read."""

    duration_sec: float
    frames: int | None
    codec: str
    finalised: bool  # its header was completed: nobody was killed while writing it
    problems: tuple[str, ...]


def run_ffmpeg(command: Sequence[str], size_bytes: int) -> subprocess.CompletedProcess[str]:
    """A helper run of FFmpeg with a timeout for its size, in a session of its own: a hangup does not reach it."""
    return subprocess.run(
        list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        timeout=CHECK_TIMEOUT_SEC + size_bytes / CHECK_BYTES_PER_SEC, start_new_session=True)  # fmt: skip


def read_media(ffmpeg: str, path: Path, window: Sequence[str] = ()) -> Media:
    """Read a file, or the `window` of it (FFmpeg's input options), without decoding. Raises Unreadable."""
    command = [ffmpeg, *QUIETLY, "level+info", "-progress", "pipe:1", *window, "-i", f"file:{path}",
               "-map", "0:v:0", "-map", "0:a?", "-c", "copy", "-f", "null", "-"]  # fmt: skip
    try:
        done = run_ffmpeg(command, path.stat().st_size)
    except subprocess.TimeoutExpired as problem:
        raise Unreadable(f"{path.name}: reading it took longer than {problem.timeout:.0f} s") from problem
    frames, out_sec = read_progress(done.stdout.splitlines())
    header = re.search(r"Duration: (\d+):(\d+):([\d.]+)", done.stderr)
    codec = re.search(r"Video: (\w+)", done.stderr)
    problems = [line for line in done.stderr.splitlines() if "[error]" in line or "[fatal]" in line]
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
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


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
            if not final.samefile(staged):
                continue
        except OSError as problem:
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


def writers_in(folder: Path) -> list[int]:
    """FFmpegs of a killed recorder that still write into a staging folder: they were started inside of it."""
    ours = f"{STAGED_NAME}.mkv".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*") if Path("/proc/self/cwd").exists() else ():
        with suppress(OSError):  # ended, or another user's
            if (entry / "cwd").readlink() == folder and ours in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def end_writers(folder: Path, step_sec: float) -> None:
    """TERM, TERM, KILL; the first makes FFmpeg finish its file, the second ends one that waits for the camera."""
    for what in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if not (processes := writers_in(folder)):
            return
        log.warning("%s: ending FFmpeg %s of a recorder that was killed", folder.parent.name, processes[0])
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, what)
        until = time.monotonic() + step_sec
        while time.monotonic() < until and writers_in(folder):
            time.sleep(0.02)


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
        self.closed: set[str] = set()  # names of files that FFmpeg has closed
        self._open: Path | None = None
        self._block: list[str] = []
        self._buffers: dict[int, bytes] = {}
        self._selector = selectors.DefaultSelector()
        progress, progress_in = os.pipe()
        rows, rows_in = os.pipe()
        try:
            self.process = subprocess.Popen(
                record_command(ffmpeg, camera, progress_in, rows_in), cwd=folder, stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(progress_in, rows_in),
                start_new_session=True, env={**os.environ, "TZ": "UTC", "AV_LOG_FORCE_NOCOLOR": "1"})  # fmt: skip
        except OSError:
            os.close(progress)
            os.close(rows)
            raise
        finally:
            os.close(progress_in)
            os.close(rows_in)
        assert self.process.stdin and self.process.stderr
        self._stderr = self.process.stderr
        for number, take in ((progress, self._take_progress), (rows, self._take_row),
                             (self._stderr.fileno(), self._take_stderr)):  # fmt: skip
            os.set_blocking(number, False)
            self._selector.register(number, selectors.EVENT_READ, take)
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
            *lines, rest = (self._buffers.get(key.fd, b"") + data).split(b"\n")
            self._buffers[key.fd] = rest[-65536:]
            for line in lines:
                key.data(line.decode("utf-8", "replace"))
        return bool(self._selector.get_map())

    def _take_progress(self, line: str) -> None:
        self._block.append(line)
        if not line.startswith("progress="):
            return
        (frames, out_sec), self._block = read_progress(self._block), []
        now = time.time()
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
        if row and Path(row[0]).name == row[0]:
            name, start, end = row
            self.rows.append((Job(self.folder / name, first=not self.closed), start, end))
            self.closed.add(name)

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

    def open_file(self) -> Path | None:
        """The file that FFmpeg is writing: the newest that it has not closed."""
        if self._open is None or self._open.name in self.closed:
            names = sorted(entry.name for entry in os.scandir(self.folder) if entry.name not in self.closed)
            self._open = self.folder / names[-1] if names else None
        return self._open

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
        for entry in sorted(os.scandir(self.folder), key=lambda entry: entry.name):
            if entry.name.endswith(".mkv") and entry.name not in self.closed:
                self.jobs.append(Job(self.folder / entry.name, first=not self.closed))


# --- finished files ----------------------------------------------------------------------------------------------


class Finisher:
    """Takes a camera's staged files: checks, repairs, changes the container, publishes, records."""

    def __init__(self, camera: Camera, ffmpeg: str) -> None:
        self.camera, self.ffmpeg = camera, ffmpeg
        self.sound = "copy"  # for mp4; aac once a file has shown that mp4 cannot hold the sound as it is
        self.last_file: str | None = None
        self.journaled_until = 0.0

    def finish(self, job: Job) -> None:
        """Raises OSError when the disk or the folder is the problem: then nothing is lost, and it can be repeated."""
        cut = job.path.with_stem(job.path.stem + "-cut")  # its name after a first try that did not get through
        path = cut if cut.exists() else job.path
        ready = path.with_suffix(".mp4")
        try:
            if ready.exists():  # made and checked by a process that was killed before it published it
                source, media, whole = ready, read_media(self.ffmpeg, ready), "-cut" not in path.stem
                path = path if path.exists() else source
            elif not path.exists():
                return
            else:
                path, source, media, whole = self.prepare(job)
        except Unreadable as problem:
            self.set_aside(path, problem)
            return
        start, end = segment_times(job, path, media)
        start = min(end, start + (silent_start_sec(self.ffmpeg, source) if job.first or job.found else 0.0))
        if source != path:  # first: where publishing is a rename, a crash after it must not find the MKV and redo it
            path.unlink()
        size, named = source.stat().st_size, staged_sec(path.name)
        stem = final_stem(self.camera, start if named is None or abs(named - start) > 1 else named)
        final = publish(source, self.camera.root / self.camera.name, names_for(stem, source.suffix[1:]))
        name = final.relative_to(self.camera.root).as_posix()
        known = read_journal(self.camera.own("journal"), start - 86400, end + 86400) if job.found else []
        if name not in (line.get("file") for line in known):
            write_journal(self.camera, "segment", start, file=name, end=round(end, 3), frames=media.frames,
                          bytes=size, whole=whole)  # fmt: skip
        self.last_file, self.journaled_until = name, max(self.journaled_until, end)
        source.unlink(missing_ok=True)
        log.info("%s: %s: %.1f s, %s frames, %.1f MB%s", self.camera.name, final.name, end - start,
                 "?" if media.frames is None else media.frames, size / 1e6, "" if whole else ", cut short")  # fmt: skip

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


def segment_times(job: Job, path: Path, media: Media) -> Interval:
    """Start and end of a file in epoch seconds: as FFmpeg told, else from its last write or its name."""
    if job.start_sec is not None and job.end_sec is not None:
        return job.start_sec, max(job.start_sec, min(job.end_sec, job.start_sec + media.duration_sec + 1))
    written = path.stat().st_mtime
    named = staged_sec(path.name)
    if named is None or abs(named + media.duration_sec - written) <= NAME_LATE_SEC:
        return written - media.duration_sec, written
    return named, named + media.duration_sec


# --- one camera --------------------------------------------------------------------------------------------------


class Recorder:
    """Keeps one camera recorded until it is told to stop. `work` is the whole life of its thread."""

    def __init__(self, camera: Camera, ffmpeg: str, tls_options: bool, pool: ThreadPoolExecutor,
                 stopping: threading.Event) -> None:  # fmt: skip
        self.camera, self.ffmpeg, self.tls_options, self.pool = camera, ffmpeg, tls_options, pool
        self.stopping = stopping
        self.finisher = Finisher(camera, ffmpeg)
        self.pending: dict[Future[None], Job] = {}
        self.again: list[tuple[float, Job]] = []
        self.beat = time.monotonic()
        self.state: dict[str, Any] = {"camera": camera.name, "pid": os.getpid(), "state": "starting",
                                      "since": time.time(), "cause": None, "last_frame_at": None,
                                      "recording_since": None, "fps": 0.0, "bytes_per_sec": 0.0,
                                      "last_file": None, "lost_today_sec": 0.0}  # fmt: skip
        self.down_since, self.today = time.time(), utc_day(time.time())
        self.down_cause: str | None = None
        self.state_file = camera.state_file
        self.default_cause = "stopped"  # of the seconds between the program's start and the first frame
        self.said: str | None = None
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
        steps = [self.take_over, self.record]
        while not self.stopping.is_set():
            try:
                steps[0]()
                steps = steps[-1:]
            except Exception:  # noqa: BLE001  a bug must not end the recording of a camera for ever
                log.exception("%s: this is a bug in the program; trying again in %d s", self.camera.name, KEPT_AWAY_SEC)
                self.stopping.wait(KEPT_AWAY_SEC)
        self.end()

    def take_over(self) -> None:
        """Account for the time since the last process, and publish what it left."""
        before = read_state(self.camera.state_file)
        if before:
            stopped = before.get("state") in ("stopped", "down")
            since = before.get("since") if stopped else before.get("last_frame_at") or before.get("since")
            self.default_cause = str(before.get("cause") or "stopped") if stopped else "crashed"
            self.try_journal(float(since or self.down_since), self.down_since, self.default_cause)
            if before.get("state") != "stopped":
                self.default_cause = "crashed"
        staging = self.camera.own("staging")
        staging.mkdir(parents=True, exist_ok=True)
        for folder in sorted(entry for entry in staging.iterdir() if entry.is_dir()):
            end_writers(folder, self.camera.limits.stop_wait)
            for part in folder.glob("*.part"):
                part.unlink()
            stems = sorted({file.stem for file in folder.glob("*.m[kp][v4]")})
            for stem in stems:
                self.submit(Job(folder / f"{stem}.mkv", found=True))
            if stems:
                log.info("%s: %d files of an earlier run are checked and published", self.camera.name, len(stems))
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
            self.down(cause, detail)
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
            current = Run(self.camera, self.ffmpeg, folder, self.tls_options)
        except OSError as problem:
            return "disk", str(problem), False
        ours: str | None = None
        try:
            tick_sec = min(TICK_SEC, self.camera.limits.stall / 10)
            while current.poll(tick_sec) and not ours:
                self.look_after(current)
                ours = self.verdict(current)
            lines = list(current.stderr)  # not what our TERM makes it say
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
            self.down_since = min(self.stepped_at, time.time()) if ours == "clock" else current.media_end
        self.tidy(folder)
        refused = not current.frames and bool(re.search(LOGIN_OR_PATH, "\n".join(lines)))
        failed = ["", *(line for line in lines if re.search(r"\[(error|fatal)\]", line))]
        return ours or classify(lines, current.process.returncode, current.frames), failed[-1], refused

    def look_after(self, current: Run) -> None:
        """What has to be done several times a second while FFmpeg runs."""
        self.take_jobs(current)
        now = time.monotonic()
        settled = len(current.anchors) >= ANCHOR_ENOUGH or now - current.started > STEADY_SEC
        if settled and current.frames and self.state["state"] != "recording":
            self.up(current)
        if now >= self.next_sync:
            self.next_sync = now + self.camera.limits.fsync_every
            with suppress(OSError):  # published while we looked; a disk that fails ends FFmpeg, which says so
                if opened := current.open_file():
                    sync_file(opened)
        if now >= self.next_state:
            self.note(current)

    def verdict(self, current: Run) -> str | None:
        """Why the running FFmpeg has to end now, None while all is well."""
        if self.stopping.is_set():
            return "stopped"
        now = time.monotonic()
        before, self.clock_offset = self.clock_offset, time.time() - now
        if abs(jump := self.clock_offset - before) > self.camera.limits.clock_step:
            log.warning("%s: the clock of this machine jumped by %.1f s", self.camera.name, jump)
            self.stepped_at = now + before
            return "clock"
        if now >= self.next_space_check:
            self.next_space_check = now + SPACE_EVERY_SEC
            if self.obstacle(going=True):
                return "disk"
        return dead_cause(now - current.last_rise, current.frames, current.out_sec - current.out_at_rise_sec,
                          self.camera.limits)  # fmt: skip

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
                       "lost_today_sec": round(self.state["lost_today_sec"] + lost, 1)}  # fmt: skip
        log.info("%s: recording; %.1f s were lost (%s)", self.camera.name, lost, cause)
        self.down_cause = self.said = None

    def down(self, cause: str, detail: str) -> None:
        """Remember since when and why; said once, and again when the cause shows more plainly."""
        self.down_cause = telling(self.down_cause, cause)
        if self.said != self.down_cause:
            log.warning("%s: not recording: %s%s", self.camera.name, cause, f": {quotable(detail)}" if detail else "")
            self.said = self.down_cause
        midnight = time.time() // 86400 * 86400
        if self.down_since < midnight:  # the past day's journal is complete in itself
            self.try_journal(self.down_since, midnight, self.down_cause)
            self.down_since = midnight
        self.state |= {"state": "down", "since": self.down_since, "cause": self.down_cause}
        self.write_state()

    def try_journal(self, start_sec: float, end_sec: float, cause: str) -> None:
        with suppress(OSError):  # a full disk: the gap shows in the journal all the same, only not why
            write_down(self.camera, start_sec, end_sec, cause)

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
        self.state |= {"state": "stopped", "cause": "stopped"}
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
        with suppress(OSError):  # published while we looked, at the end of the run
            opened = current.open_file()
            size = opened.stat().st_size if opened else 0
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
        if (today := utc_day(time.time())) != self.today:
            self.today, self.state["lost_today_sec"] = today, 0.0
        self.state |= {"updated_at": round(time.time(), 3), "last_file": self.finisher.last_file}
        data = json.dumps(self.state).ljust(STATE_BYTES - 1).encode() + b"\n"
        try:
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(handle, data, 0)
                os.ftruncate(handle, len(data))
            finally:
                os.close(handle)
        except OSError as problem:
            log.debug("%s: %s", file, problem)

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
        due = [job for when, job in self.again if when <= time.monotonic()]
        self.again = [(when, job) for when, job in self.again if when > time.monotonic()]
        for job in due:
            self.submit(job)
        opened = self.state["recording_since"]
        if opened and self.finisher.journaled_until > opened:
            self.state["recording_since"] = self.finisher.journaled_until

    def tidy(self, folder: Path) -> None:
        with suppress(OSError):  # files in it are still to be published, or FFmpeg is at work
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
    except OSError as problem:
        raise CannotStart(f"logs_dir {camera.logs_dir}: cannot be written: {problem.strerror}") from problem
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    own.addHandler(handler)
    return own


# --- record ------------------------------------------------------------------------------------------------------


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


def lock_cameras(cameras: Sequence[Camera], held: ExitStack) -> list[Camera]:
    """The cameras that nobody else records, locked. With none left, Busy if all are held, else CannotStart."""
    free: list[Camera] = []
    kind: type[Busy | CannotStart] = Busy
    for camera in cameras:
        try:
            prepare(camera)
            held.enter_context(run_lock(camera.own("lock"), camera.name))
            free.append(camera)
        except (Busy, CannotStart) as problem:
            if len(cameras) == 1:
                raise
            log.log(logging.WARNING if isinstance(problem, Busy) else logging.ERROR, "%s", problem)
            kind = kind if isinstance(problem, Busy) else CannotStart
    if not free:
        raise kind(f"no camera left to record of {', '.join(camera.name for camera in cameras)}")
    return free


def warn_about_tls(cameras: Sequence[Camera], tls_options: bool) -> None:
    secure = [camera for camera in cameras if camera.url.startswith("rtsps:")]
    if secure and not tls_options:
        log.warning("%s: this FFmpeg does not check certificates; version 8 and newer do",
                    ", ".join(camera.name for camera in secure))  # fmt: skip
    elif unchecked := [camera.name for camera in secure if not camera.tls_verify]:
        log.warning("%s: the certificate is not checked (tls_verify: false)", ", ".join(unchecked))


def record(cameras: Sequence[Camera], quiet: bool) -> int:
    """Record until a signal; SIGTERM and SIGHUP are the ordinary end of a service, SIGINT is 130."""
    signals: list[int] = []
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(one) is not signal.SIG_IGN:  # nohup
            signal.signal(one, lambda number, _frame: signals.append(number))
    ffmpeg = find_ffmpeg("recording")
    tls_options = knows_tls_options(ffmpeg)
    with ExitStack() as held:
        cameras = lock_cameras(cameras, held)
        warn_about_tls(cameras, tls_options)
        stopping = threading.Event()
        pool = ThreadPoolExecutor(FINISH_WORKERS, thread_name_prefix="finish")
        recorders = [Recorder(camera, ffmpeg, tls_options, pool, stopping) for camera in cameras]
        threads = [threading.Thread(target=recorder.work, args=(place * START_SPACING_SEC,), daemon=True,
                                    name=recorder.camera.name) for place, recorder in enumerate(recorders)]  # fmt: skip
        for thread in threads:
            thread.start()
        log.info("recording %s with %s", ", ".join(camera.name for camera in cameras), ffmpeg)
        tell_systemd("READY=1")
        with live_table(recorders, shown=sys.stderr.isatty() and not quiet) as update:
            while not signals:
                time.sleep(0.2)
                update()
                if all(time.monotonic() - recorder.beat < WATCHDOG_QUIET_SEC for recorder in recorders):
                    tell_systemd("WATCHDOG=1")
        tell_systemd("STOPPING=1")
        deadline = time.monotonic() + STOP_WITHIN_SEC - 0.7  # until a signal is noticed, and to end
        stopping.set()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        wait_for_files(recorders, deadline)
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
        for recorder in recorders:
            state = dict(recorder.state)
            since = datetime.fromtimestamp(state["since"]).astimezone().strftime("%a %H:%M:%S")
            table.add_row(
                recorder.camera.name, f"{state['state']} {state['cause'] or ''}".strip(), since,
                f"{state['bytes_per_sec'] * 8 / 1e6:.2f}", f"{state['fps']:.1f}",
                Path(str(state["last_file"] or "-")).name, f"{state['lost_today_sec']:.0f} s",
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


def parse_time(text: str | None, flag: str, zone: tzinfo) -> float | None:
    """Epoch seconds, ISO 8601 or words such as "2 hours ago"; without a zone in `zone`."""
    if text is None:
        return None
    if re.fullmatch(r"\d{9,11}(\.\d+)?", text):
        return float(text)
    from dateutil.parser import isoparse

    try:
        moment: datetime | None = isoparse(text)
    except ValueError:
        import dateparser

        base = datetime.now(zone).replace(tzinfo=None)
        moment = dateparser.parse(text, settings={"RELATIVE_BASE": base, "PREFER_DATES_FROM": "past"})
    if moment is None:
        raise UsageError(f"{flag}: {text!r} is no time; say 2026-01-31T12:00, epoch seconds or '2 hours ago'")
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


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
    since, until = (parse_time(text, flag, zone) for text, flag in ((arguments.since, "--since"),
                                                                    (arguments.until, "--until")))  # fmt: skip
    until = time.time() if until is None else until
    if since is not None and since >= until:
        raise UsageError("--since is not before --until")
    known = known_cameras(arguments, config)
    names_zone = parse_zone(config["recording"]["timezone"])
    reports = [report for root, name in known if (report := coverage_of(root, name, since, until, names_zone))]
    show_gaps(reports, zone, "json" if arguments.json else "csv" if arguments.csv else "table")
    limit = 100.0 if arguments.limit is None else arguments.limit
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


# --- command line ------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Every command with its flags; what is not given is None: config.yaml or the default decides."""
    parser = argparse.ArgumentParser(prog="rtsp_recorder.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, what: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        made.add_argument("camera", metavar="CAMERA", nargs="*", help="only these cameras (default: all)")
        made.add_argument("--cameras_config", metavar="FILE", type=Path, help="an older cameras.json, over config.yaml")
        made.add_argument("--backup_config", metavar="FILE", type=Path, help="an older backup.json, over config.yaml")
        made.add_argument("--output_dir", metavar="DIR", help="where files go (default: storage.local_path)")
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

    gaps = command("gaps", "what is recorded, what is missing, and why; from the journal")
    gaps.add_argument("--since", metavar="TIME", help="from when on (default: the first recording)")
    gaps.add_argument("--until", metavar="TIME", help="until when (default: now)")
    gaps.add_argument("--limit", metavar="PERCENT", type=float, help="exit 1 when more is missing (default: no limit)")
    gaps.add_argument("--timezone", metavar="ZONE", help="of times without a zone, and of days (default: the host's)")
    gaps.add_argument("--json", action="store_true", default=None, help="JSON Lines, the last one a summary")
    gaps.add_argument("--csv", action="store_true", help="one line per gap, with a head line")
    return parser


def camera_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that stand for keys of a camera, as far as given; RTSP_USER and RTSP_PASSWORD count like flags."""
    names = ("station", "ip", "rtsp_url", "user", "password", "rtsp_port", "rtsp_path", "segment_time", "output_dir",
             "logs_dir", "core", "loglevel")  # fmt: skip
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
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
    overlays = [read_overlay(file) for file in (arguments.cameras_config, arguments.backup_config)]
    beside = Path(__file__).resolve().parent
    config: dict[str, Any] = {**load_config(arguments.config, ("cameras", "recording", "storage"), beside, *overlays,
                                            secrets=arguments.command != "gaps")}  # fmt: skip
    config["cameras"] = config["cameras"] if isinstance(config["cameras"], list) else []  # the section may be missing
    if arguments.command == "gaps":
        return gaps_command(arguments, config)
    flags = camera_flags(arguments)
    if not config["storage"]["local_path"] and ("ip" in flags or "rtsp_url" in flags):
        flags.setdefault("output_dir", ".")
    return record(settle_cameras(config, flags, arguments.camera), arguments.quiet)


if __name__ == "__main__":
    sys.exit(run(main))
