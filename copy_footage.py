"""Copy recorded footage from Rhombus cameras to local files: a range of time, or what policy alerts point to.

Examples:
  copy_footage.py --demo                                          try it without an account
  copy_footage.py -s "2 hours ago" -u 30m -cam "Loading Dock"     half an hour of one camera
  copy_footage.py --alerts --after_time yesterday --usewan        what the alerts since yesterday show
  copy_footage.py --alerts --catch_up --quiet                     for cron: what is new since the last run
  rtsp_recorder.py gaps --json | copy_footage.py --fill_gaps -    what our own recorder missed

Needs: an API key (--api_key, RHOMBUS_API_KEY, or rhombus.api_key in config.yaml) and FFmpeg (pip brings one).
State: finished clips `NAME.mp4` with a sidecar `NAME.json`; unfinished ones as `NAME.mp4.part`, taken up by the next
run; `.copy_footage/` in the output folder remembers what is done and how far --catch_up has come.
"""

from __future__ import annotations

import argparse
import array
import errno
import fnmatch
import hashlib
import json
import logging
import math
import mmap
import os
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import wait as wait_for
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone, tzinfo
from functools import lru_cache, partial
from itertools import groupby, pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import rhombus_mpd_info as mpd_info

from rhombus_logging import (  # isort: skip
    EARLIEST_SEC, LATEST_SEC, Busy, CannotStart, Cluster, MaskingFormatter, Status, Terminated, UsageError,
    add_common_flags, append_line, cluster, find_ffmpeg, fsync_folder, hide_secret, is_open_road, load_config,
    lock_file, mask, notify, parse_duration, parse_rate, parse_time, parse_zone, progress_bars, read_json, run,
    run_lock, sha256_of, size_text, start_logging, watch_sign, write_json,
)  # fmt: skip

if TYPE_CHECKING:
    import requests
    import urllib3

API_BASES = {"us": "https://api2.rhombussystems.com", "eu": "https://api2.eu.rhombussystems.com"}
STATE_FOLDER = ".copy_footage"
SEGMENT_SEC = 2  # devices cut on even seconds (API reference), so ranges are fetched from and to even seconds
TOKEN_LIFE_SEC = 3600
TOKEN_RENEW_SHARE = 0.9  # of its life; vendor players use 0.97, our requests may last longer
BULK_DEVICES = 200  # per call: 1,000 cameras and their gateways in ten calls
ALERT_PAGE = 1000  # the advised ceiling
COUNT_PAGES = 10  # pages read only to say how many alerts were not taken
API_TRIES, API_WAIT_MAX_SEC = 6, 60  # as the API's documentation advises
API_READ_FACTOR = 4  # the API may take longer than a media host: a list of 1,000 cameras is made while we wait
PRESENCE_LAG_SEC = 120  # the presence report is unknown, not empty, for the last two minutes
CLOCK_AHEAD_SEC = 60  # more than that before the API's, and what is still to come would count as never recorded
LIVE_EDGE_SEC = 10  # a device needs a moment to finish its newest segment
CLOUD_LAG_SEC = 300  # cloud archiving runs about four minutes behind
NOT_FOUND_TRIES = 3  # a 404 is believed after two more tries
TIME_IS_UP = "--max_duration is over"
MAX_WAIT_SEC = 20  # longest wait between two tries of a segment
PAUSES_MAX = 20  # 429 answers in a row that one request sits out
DEVICE_FAILS = 3  # segments in a row that failed with all their tries: the device is given up for this clip
SEGMENT_DEADLINE_SEC = 900  # a segment that trickles longer than this counts as a device that hangs
MAX_SEGMENT_BYTES = 64 << 20  # 2 s of video are below 5 MB; this only bounds what a wrong host can make us hold
READ_PIECE_BYTES = 64 << 10  # with --bwlimit bodies are read in pieces, so that the limit shapes the stream
WINDOW_BYTES = 8 << 20  # bodies that one clip may hold while it waits for an earlier segment
FRAGMENT_HEAD_BYTES = 1024  # the time of a segment stands in its first boxes
CHECKPOINT_SEC = 2.0  # at most this much work is repeated after a power cut
WAN_REQUESTS, LAN_REQUESTS = 8, 2  # at once: to the cloud for one clip, to a LAN device for all its clips
CONNECTIONS = 1000  # to one host that are kept open between two requests
AT_ONCE = 1000  # most that --workers or --segment_workers can be: each is a thread
START_SPACING_SEC = 0.1  # between the starts of two clips
REMOTE_TELL_SEC = 1.0  # how often a worker of a cluster tells how far a clip is
REMOTE_LOCK = threading.Lock()  # a worker process has one Copier per run, however many of its threads begin at once
LOOK_SEC = 0.5  # how soon Ctrl-C is seen where nothing else wakes the program
STOP_GRACE_SEC = 1.5  # how long a stopped run waits for its threads to put down what they hold
DURATION_SLACK_SEC = 2.5  # a file may differ this much from its plan: one segment and a frame
WEBM_EBML, WEBM_SEGMENT, WEBM_CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
HD_BYTES_PER_SEC, UHD_BYTES_PER_SEC, AUDIO_BYTES_PER_SEC = 50_000_000 / 60, 150_000_000 / 60, 1_000_000 / 60
UHD_WIDTH = 2600
TYPE_CHARACTERS, ID_CHARACTERS, NAME_CHARACTERS = 60, 48, 60  # keeps every name below 255 bytes with `.part.json`
LONGEST_SEC = 86400  # of a clip after an outage, without --clip_length: FFmpeg takes 334 MB for a day of footage
DEFAULT_ALERT_SEC = 30  # an alert without a length; uploaded clips come in blocks of 30 s
RUUID = re.compile(r"[A-Za-z0-9_-]{22}(\.[va][0-9])?")
DURATIONS = ("duration", "alert_buffer", "clip_length", "max_duration", "lag", "lookback", "give_up_after",
             "retry_wait", "connect_timeout", "read_timeout", "status_max_age")  # fmt: skip

log = logging.getLogger("copy_footage")

Windows = list[tuple[float, float]]  # [start, end) in epoch seconds, sorted and joined
T = TypeVar("T")


class ApiError(Exception):
    """The API answered, but not with what was asked for."""


class ApiRefused(ApiError):
    """401 or 403: the key may not do this."""


class Stopped(CannotStart):
    """The run is ending (signal, --max_duration, full disk): put down what you hold. Before any clip it is the end."""


class TransferError(Exception):
    """A request failed in a way that may pass: reset, stall, 5xx, short or foreign body."""


class BadBody(TransferError):
    """What came is not a media segment."""


class Unreachable(TransferError):
    """No connection at all."""


class NotFound(Exception):
    """404: nothing there."""


class MediaRefused(Exception):
    """The media host refuses every credential that we have."""


class ClipError(Exception):
    """This clip cannot go on in this run; the sentence says why."""


# --- values ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Flags, environment and config, checked; named as the flag or key, with the unit where it has one."""

    api_key: str = field(repr=False)  # a cluster's dashboard and logs show what tasks are given
    api_url: str
    cert: str | None
    private_key: str | None
    org_uuid: str | None
    output_dir: Path
    cameras: tuple[str, ...]
    locations: tuple[str, ...]
    start_sec: int
    end_sec: int
    alerts: bool
    max_alerts: int
    after_sec: float | None
    before_sec: float | None
    alert_buffer_sec: int
    usewan: bool
    lan_only: bool
    verify_lan: bool
    workers: int
    segment_workers: int
    clip_length_sec: int
    no_audio: bool
    audio_offset_sec: float
    audio_codec: str
    bwlimit_bytes_per_sec: float
    max_duration_sec: float
    zone: tzinfo
    overwrite: bool
    dry_run: bool
    json: bool
    quiet: bool
    catch_up: bool
    lag_sec: float | None
    lookback_sec: float
    give_up_after_sec: float
    tries: int
    retry_wait_sec: float
    connect_timeout_sec: float
    read_timeout_sec: float
    ignore_space: bool
    scheduler: str | None
    status_max_age_sec: float
    status_max_pending: int
    status_max_lost: int
    status_min_free_bytes: int
    gaps: tuple[tuple[str, int, int], ...]  # of --fill_gaps: (UUID with facet, start, end), joined and sorted
    filling: bool
    now: float


@dataclass(frozen=True)
class Gateway:
    """An audio gateway: a microphone that is paired with cameras."""

    uuid: str
    name: str
    online: bool


UNKNOWN_GATEWAY = Gateway("", "", online=False)  # the list of gateways could not be had


@dataclass(frozen=True)
class Place:
    """A location or sub-location; `chain` is its own UUID and those of all above it."""

    uuid: str
    name: str
    tz: str
    chain: tuple[str, ...]


@dataclass(frozen=True)
class Camera:
    """One video channel (facet) of a device. `facet` is "" for the only or first channel, else "v1", "v2" …"""

    uuid: str
    facet: str
    name: str
    location_uuid: str
    location: str
    online: bool
    hardware: str
    storage: str  # another device that keeps the footage (NVR), or ""
    gateway: Gateway | None
    device_name: str  # of a camera with several channels, which have names of their own
    retired: bool = False

    @property
    def address(self) -> str:
        return f"{self.uuid}.{self.facet}" if self.facet else self.uuid


@dataclass(frozen=True)
class Addresses:
    """Address templates of one device, with {START_TIME} and {DURATION}."""

    lan: tuple[str, ...] = ()
    wan: str | None = None
    lan_check: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alert:
    """A policy alert in either shape of the API; `devices` are RUUIDs without facet, in the alert's order."""

    id: str
    kind: str
    start_ms: int
    end_ms: int
    devices: tuple[str, ...]
    device_type: str
    finalized: bool


@dataclass(frozen=True)
class Clip:
    """A requested stretch of one camera: one file."""

    camera: Camera
    start_sec: int
    end_sec: int
    stem: str  # file name up to the media kind
    alert: Alert | None = None
    audio: bool = False

    @property
    def fetch_start_sec(self) -> int:
        return self.start_sec - self.start_sec % SEGMENT_SEC

    @property
    def segments(self) -> int:
        return math.ceil((self.end_sec - self.fetch_start_sec) / SEGMENT_SEC)

    @property
    def fetch_duration_sec(self) -> int:
        return self.segments * SEGMENT_SEC

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes it the same clip in another run, also after the camera was renamed."""
        return self.camera.uuid, self.camera.facet, self.start_sec * 1000, self.alert.id if self.alert else ""

    def file_name(self, with_audio: bool, partial: bool = False) -> str:
        kind = ("combined" if self.alert else "videoWithAudio") if with_audio else "video"
        return f"{self.stem}_{kind}{'_partial' if partial else ''}.mp4"


@dataclass(frozen=True)
class Outcome:
    """What became of a clip. `state` is one of OUTCOMES."""

    clip: Clip
    state: str
    detail: str = ""
    file: Path | None = None
    size_bytes: int = 0
    audio: str = ""  # "", ok, none, not_recorded, failed

    @property
    def lacks_audio(self) -> bool:
        return self.audio == "failed" and self.state == "done"

    @property
    def fails_run(self) -> bool:
        return OUTCOMES[self.state][0] or self.lacks_audio


# state: does it fail the run, is the clip settled (never tried again)
OUTCOMES = {"done": (False, True), "already": (False, True), "empty": (False, True), "partial": (False, True),
            "lost": (False, True), "elsewhere": (False, False), "not_yet": (False, False), "incomplete": (True, False),
            "failed": (True, False), "conflict": (True, False), "stopped": (True, False),
            "later": (False, False)}  # fmt: skip


# --- times, sizes and names (pure) -------------------------------------------------------------------------------


def clock_text(epoch_sec: float, zone: tzinfo = timezone.utc) -> str:
    return datetime.fromtimestamp(epoch_sec, zone).isoformat(timespec="seconds").replace("+00:00", "Z")


def duration_text(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    parts = [f"{value}{unit}" for value, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if value]
    return "".join(parts) or "0s"


def count_text(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def safe_word(word: str, characters: int) -> str:
    """An alert's type or id for a file name. What had to be changed gets a short hash, so that two stay two."""
    kept = re.sub(r"[^A-Za-z0-9_-]", "", word)
    if kept == word and len(kept) <= characters and kept:
        return kept
    return f"{kept[: characters - 9]}-{hashlib.sha256(word.encode()).hexdigest()[:8]}"


def strip_facet(identifier: str) -> str:
    return re.sub(r"\.[va]\d+$", "", identifier)


# --- plan (pure) -------------------------------------------------------------------------------------------------


def read_cameras(states: Sequence[Any], gateways: Sequence[Any] | None, locations: Mapping[str, str]) -> list[Camera]:
    """Every video channel of every camera in the API's answers, with its audio gateway; any field may be null."""
    paired: dict[str, list[Gateway]] = {}
    for state in gateways or ():
        if has_identifier(state):
            gateway = Gateway(str(state["uuid"]), str(state.get("name") or ""), state.get("connectionStatus") != "RED")
            for device in state.get("associatedCameras") or []:
                paired.setdefault(strip_facet(str(device)), []).append(gateway)
    cameras = []
    for state in states:
        if not has_identifier(state):
            log.warning("a camera without a valid UUID was left out")
            continue
        uuid, names = strip_facet(str(state["uuid"])), state.get("facetNameMap") or {}
        facets = sorted({str(name) for name in state.get("supportedFacets") or [] if re.fullmatch(r"v\d", str(name))})
        best = sorted(paired.get(uuid, []), key=lambda one: (not one.online, one.uuid))
        for facet in facets or ["v0"]:
            own = "" if facet == "v0" else facet
            device_name = str(state.get("name") or "")
            name = str((names.get(facet) if len(facets) > 1 else None) or device_name)
            place = str(state.get("locationUuid") or "")
            cameras.append(Camera(
                uuid, own, name, place, locations.get(place, ""),
                state.get("connectionStatus") != "RED" and not state.get("mummified"),
                str(state.get("hwVariation") or ""), str(state.get("mediaStorageDeviceUuid") or ""),
                UNKNOWN_GATEWAY if gateways is None else best[0] if best else None, device_name,
                bool(state.get("mummified"))))  # fmt: skip
    return cameras


def has_identifier(state: Any) -> bool:
    """Identifiers become part of file names, so nothing else than a UUID of the API's form is let in."""
    return isinstance(state, dict) and bool(RUUID.fullmatch(str(state.get("uuid"))))


def flatten_locations(locations: Iterable[Any], above: tuple[str, ...] = ()) -> Iterator[Place]:
    """Locations and their sub-locations, depth first."""
    for place in locations or []:
        if isinstance(place, dict) and place.get("uuid"):
            chain = (str(place["uuid"]), *above)
            yield Place(chain[0], str(place.get("name") or ""), str(place.get("tz") or ""), chain)
            yield from flatten_locations(place.get("subLocations") or [], chain)


def resolve(wanted: str, known: Sequence[tuple[str, str]], what: str) -> str:
    """The identifier among (uuid, name) pairs that `wanted` means: a UUID, or a name that only one has."""
    if any(uuid == strip_facet(wanted) for uuid, _ in known):
        return strip_facet(wanted)
    named = sorted({uuid for uuid, name in known if name == wanted and wanted})  # an empty $SITE of a shell is no name
    if len(named) == 1:
        return named[0]
    if named:
        raise UsageError(f"{what} {wanted!r} is the name of {len(named)}; say which UUID: {', '.join(named)}")
    from difflib import get_close_matches

    near = get_close_matches(wanted, [text for pair in known for text in pair if text], n=3, cutoff=0.5)
    hint = f"; the nearest are {', '.join(map(repr, near))}" if near else "; --list shows what there is"
    raise UsageError(f"{what} {wanted!r} is not known{hint}")


def choose_cameras(cameras: Sequence[Camera], places: Sequence[Place],
                   settings: Settings) -> tuple[list[Camera], list[str]]:  # fmt: skip
    """The cameras that the filters leave, and the location UUIDs (with all below them) that were asked for."""
    below: list[str] = []
    if settings.locations:
        pairs = [(place.uuid, place.name) for place in places]
        pairs += [(one.location_uuid, "") for one in cameras if one.location_uuid]
        asked = {resolve(wanted, pairs, "--location_uuid") for wanted in settings.locations}
        below = sorted(asked | {place.uuid for place in places if asked & set(place.chain)})
        cameras = [camera for camera in cameras if camera.location_uuid in below]
    chosen = set(() if settings.cameras else cameras)
    for wanted in settings.cameras:
        by_name = [camera for camera in cameras if camera.name == wanted]
        pairs = [(one.uuid, one.name) for one in by_name or cameras]
        pairs += [(one.uuid, one.device_name) for one in cameras if not by_name]
        uuid = resolve(wanted, pairs, "--camera_uuid")
        facet = wanted.partition(".")[2] if RUUID.fullmatch(wanted) else ""
        chosen |= {camera for camera in by_name or [camera for camera in cameras if camera.uuid == uuid]
                   if facet in ("", camera.facet or "v0")}  # fmt: skip
    return [camera for camera in cameras if camera in chosen], below


def split_range(start_sec: int, end_sec: int, length_sec: int) -> list[tuple[int, int]]:
    """[start, end) in pieces of `length_sec` (0: one piece); the last may be shorter."""
    step = length_sec or max(1, end_sec - start_sec)
    return [(at, min(at + step, end_sec)) for at in range(start_sec, end_sec, step)]


def clip_of(camera: Camera, start_sec: int, end_sec: int, settings: Settings, alert: Alert | None = None) -> Clip:
    """A clip with its file name up to the media kind. Of a camera's name only letters and digits reach a disk."""
    name = re.sub(r"[^A-Za-z0-9]", "", camera.name)[:NAME_CHARACTERS] or "camera"
    when = str(start_sec)
    if alert:
        local = datetime.fromtimestamp(start_sec, settings.zone).strftime("%Y%m%d_%H%M%S")
        when = f"{local}_alert_{safe_word(alert.kind, TYPE_CHARACTERS)}_{safe_word(alert.id, ID_CHARACTERS)}"
    audio = bool(camera.gateway) and not settings.no_audio
    return Clip(camera, start_sec, end_sec, f"{name}_{camera.address}_{when}", alert, audio)


def read_gaps(lines: Iterable[str], cameras: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, int, int], ...]:
    """What `rtsp_recorder.py gaps --json` lists, as (UUID, start, end) of the Rhombus cameras that show the same.

    Gaps of a camera with less than a segment between them become one. Raises UsageError for a line that is no gap.
    """
    uuids = {str(one.get("name") or one.get("station")).lower(): str(one["rhombus_uuid"]) for one in cameras
             if one.get("rhombus_uuid")}  # fmt: skip
    if wrong := [uuid for uuid in uuids.values() if not RUUID.fullmatch(uuid)]:
        raise UsageError(f"cameras.rhombus_uuid: {', '.join(wrong)} is no UUID; --list cameras shows those there are")
    windows: dict[str, list[tuple[float, float]]] = {}
    unpaired: Counter[str] = Counter()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if "summary" in entry:
                continue
            name, start, end = str(entry["camera"]), math.floor(entry["start"]), math.ceil(entry["end"])
            if not EARLIEST_SEC <= start < end <= LATEST_SEC:
                raise ValueError
        except (ValueError, TypeError, KeyError, OverflowError) as problem:
            raise UsageError(f"--fill_gaps: line {number} is no gap; give what rtsp_recorder.py gaps --json "
                             "prints") from problem  # fmt: skip
        if name.lower() in uuids:
            windows.setdefault(uuids[name.lower()], []).append((start, end))
        else:
            unpaired[safe_word(name, NAME_CHARACTERS)] += 1
    for name, count in sorted(unpaired.items()):
        log.warning("%s: %s gaps left out, the config names no rhombus_uuid of this camera", name, count)
    return tuple((uuid, int(start), int(end)) for uuid in sorted(windows) for start, end in join_windows(windows[uuid]))


def newest_end(camera: Camera | None, settings: Settings) -> int:
    """The last second that can be there by now: devices need a moment, the cloud (None) some minutes (--lag)."""
    cloud = settings.usewan or settings.catch_up or not camera or not camera.online
    lag_sec = settings.lag_sec if settings.lag_sec is not None else (CLOUD_LAG_SEC if cloud else LIVE_EDGE_SEC)
    return int((settings.now - lag_sec) // SEGMENT_SEC * SEGMENT_SEC)


def alert_window(alert: Alert, settings: Settings) -> tuple[int, int]:
    return (alert.start_ms // 1000 - settings.alert_buffer_sec,
            math.ceil(alert.end_ms / 1000) + settings.alert_buffer_sec)  # fmt: skip


def read_alert(entry: Mapping[str, Any]) -> Alert | None:
    """An alert from either form of the API (reference 5.1); None when it has no usable time."""
    start = entry.get("timestampMs") or entry.get("eventStartMs")
    if isinstance(start, bool) or not isinstance(start, (int, float)) or not EARLIEST_SEC <= start / 1000 <= LATEST_SEC:
        return None
    length, end = entry.get("durationSec"), entry.get("eventEndMs")
    if not isinstance(end, (int, float)) or not start < end <= start + 86_400_000:
        length = length if isinstance(length, (int, float)) and 0 < length <= 86400 else DEFAULT_ALERT_SEC
        end = start + length * 1000
    triggers = [str(one) for one in entry.get("policyAlertTriggers") or [] if one]
    kind = "-".join(triggers) or str(entry.get("alertType") or entry.get("type") or "UNKNOWN")
    device = entry.get("deviceUuid") or entry.get("cameraUuid")
    devices = [device] if device else list(entry.get("clipLocationMap") or entry.get("clipLocationMapV2") or {})
    devices = list(dict.fromkeys(strip_facet(str(one)) for one in devices))
    identity = str(entry.get("uuid") or entry.get("alertId") or f"{(devices or ['?'])[0]}-{int(start)}-{kind}")
    finalized = entry.get("finalized") is not False
    return Alert(identity, kind, int(start), int(end), tuple(devices), str(entry.get("deviceType") or ""), finalized)


def join_windows(windows: Iterable[tuple[float, float]]) -> Windows:
    """Sorted [start, end) windows, joined where less than one segment lies between them (seams, reference 6)."""
    joined: Windows = []
    for start, end in sorted(windows):
        if joined and start - joined[-1][1] < SEGMENT_SEC:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def covered(windows: Windows, start: float, end: float) -> bool:
    """Does any part of [start, end) lie in one of the joined windows? A camera can have thousands of them in a day."""
    before = bisect_left(windows, (end, -math.inf))
    return before > 0 and start < windows[before - 1][1]


def misplaced(times: Mapping[int, int]) -> list[int]:
    """Segments (index -> start in ticks) that lie elsewhere than their neighbours say; [] where times tell nothing."""
    pairs = list(pairwise(times))
    steps = [(times[right] - times[left]) / (right - left) for left, right in pairs]
    step = sorted(steps)[len(steps) // 2] if steps else 0
    is_off = [abs(one - step) * (right - left) > step * 0.9 + step * (right - left) / 100  # cameras are not exact
              for one, (left, right) in zip(steps, pairs, strict=True)]  # fmt: skip
    alone = {index for at, index in enumerate(times) if all(is_off[max(0, at - 1) : at + 1])}
    doubled = {index for one, pair in zip(steps, pairs, strict=True) if one <= 0 for index in pair}
    found = alone or doubled
    return sorted(found) if step > 0 and 2 * len(found) < len(times) else []


def runs_of(indexes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as [first, last + 1)."""
    for _, group in groupby(enumerate(indexes), key=lambda pair: pair[1] - pair[0]):
        numbers = [index for _, index in group]
        yield numbers[0], numbers[-1] + 1


# --- the API -----------------------------------------------------------------------------------------------------


class Context:
    """What the threads of one run share: the stop sign, the pauses that hosts asked for, and the bandwidth limit."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.started = time.monotonic()
        self.stop = threading.Event()
        self.stop_reason = ""
        self._lock = threading.Lock()
        self._quiet_until: dict[str, float] = {}
        self._bandwidth_free_at = 0.0
        self.quiet_file: Path | None = None  # on a cluster: until when all workers leave the API alone

    def end(self, reason: str) -> None:
        with self._lock:
            self.stop_reason = self.stop_reason or reason
        self.stop.set()

    def check(self) -> None:
        limit = self.settings.max_duration_sec
        if limit and time.monotonic() - self.started > limit:
            self.end(TIME_IS_UP)
        if self.stop.is_set():
            raise Stopped(self.stop_reason)

    def sleep(self, seconds: float) -> None:
        """Raises Stopped as soon as the run is to end, also by --max_duration: a host may ask for an hour's pause."""
        limit, until = self.settings.max_duration_sec, time.monotonic() + seconds
        self.stop.wait(max(0.0, (min(until, self.started + limit) if limit else until) - time.monotonic()))
        self.check()

    def hush(self, realm: str, seconds: float) -> None:
        """Nobody sends anything to `realm` for so long: requests during the wait gain nothing (reference 1)."""
        with self._lock:
            before, until = self._quiet_until.get(realm, 0.0), time.monotonic() + seconds
            self._quiet_until[realm] = max(before, until)
        if self.quiet_file and realm == "api":
            with suppress(OSError):
                write_json(self.quiet_file, {"until": time.time() + seconds})
        if until > before + 0.5:
            log.warning("%s: too many requests, all threads wait %.0f s", realm, seconds)

    def wait_turn(self, realm: str) -> None:
        if self.quiet_file and realm == "api" and (said := read_json(self.quiet_file)):
            rest_sec = min(float(said.get("until", 0)) - time.time(), API_WAIT_MAX_SEC)
            with self._lock:
                self._quiet_until[realm] = max(self._quiet_until.get(realm, 0.0), time.monotonic() + rest_sec)
        while (rest := self._quiet_until.get(realm, 0.0) - time.monotonic()) > 0:
            self.sleep(rest)
        self.check()

    def take_bandwidth(self, size_bytes: int) -> None:
        """Sleep so long that all threads together stay below --bwlimit."""
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._bandwidth_free_at)
            self._bandwidth_free_at = begin + size_bytes / self.settings.bwlimit_bytes_per_sec
        self.sleep(begin - now)


def retry_after_sec(headers: Mapping[str, str], default_sec: float) -> float:
    value = headers.get("Retry-After") or ""
    return max(1.0, float(value)) if re.fullmatch(r"\d+(\.\d+)?", value) else default_sec


def ahead_sec(headers: Mapping[str, str], asked_at: float) -> float:
    """How far our clock was ahead of that of the host which answered; 0 when it does not say."""
    from email.utils import parsedate_to_datetime

    try:
        return asked_at - parsedate_to_datetime(headers.get("Date", "")).timestamp()
    except (ValueError, TypeError):
        return 0.0


def ca_bundle() -> str:
    """File or folder of the certificate authorities that API and WAN media are verified with. Raises UsageError."""
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        if path := os.environ.get(name):
            if not os.access(path, os.R_OK):
                raise UsageError(f"{name} in the environment: {path} cannot be read")
            return path
    import certifi

    return certifi.where()


def tls_trouble(problem: Exception) -> str:
    return "its certificate is not trusted" if "CERTIFICATE_VERIFY" in str(problem) else "TLS failed"


def is_loopback(host: str | None) -> bool:
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d+){3}", host or ""))


class Api:
    """The Rhombus API: POST, JSON in and out, errors in the body, one rate limit for the whole organisation."""

    def __init__(self, settings: Settings) -> None:
        import requests

        self.settings, self.context = settings, Context(settings)
        self.session: requests.Session = requests.Session()
        pool = requests.adapters.HTTPAdapter(pool_maxsize=max(10, settings.workers * 2))
        self.session.mount("https://", pool)
        self.session.mount("http://", pool)
        self.session.verify = ca_bundle()
        self.session.headers.update(self.key_headers() | {"Accept": "application/json"})
        if settings.cert and settings.private_key:
            self.session.cert = (settings.cert, settings.private_key)
        self._lock = threading.Lock()
        self._token, self._minted_at = "", 0.0
        self.ahead_sec = 0.0  # of our clock, by the last answer

    def key_headers(self) -> dict[str, str]:
        """The headers of the API key; also what WAN media hosts accept, but never sent to a LAN device."""
        scheme = "api" if self.settings.cert else "api-token"
        headers = {"x-auth-scheme": scheme, "x-auth-apikey": self.settings.api_key}
        if self.settings.org_uuid:
            headers |= {"x-auth-scheme": f"partner-{scheme}", "x-auth-org": self.settings.org_uuid}
        return headers

    def call(self, operation: str, **body: Any) -> dict[str, Any]:
        """The answer of one operation. Raises ApiRefused, ApiError (also for `error: true` in a 200), Stopped."""
        import requests

        patience = self.settings.connect_timeout_sec, self.settings.read_timeout_sec * API_READ_FACTOR
        for attempt in range(API_TRIES):
            self.context.wait_turn("api")
            wait_sec, asked_at = min(2.0**attempt, API_WAIT_MAX_SEC), time.time()
            try:
                url = f"{self.settings.api_url}/api/{operation}"
                answer = self.session.post(url, json=body, timeout=patience, allow_redirects=False)
            except requests.exceptions.SSLError as problem:
                raise ApiError(f"{operation}: {self.settings.api_url}: {tls_trouble(problem)}") from problem
            except requests.RequestException as problem:
                failure = f"{operation}: {self.settings.api_url} does not answer ({type(problem).__name__})"
            else:
                log.debug("api %s -> %s, %s bytes", operation, answer.status_code, len(answer.content))
                self.ahead_sec = ahead_sec(answer.headers, asked_at)
                if answer.status_code == 429:
                    failure = f"{operation}: the rate limit of the organisation is used up (429)"
                    self.context.hush("api", retry_after_sec(answer.headers, wait_sec))
                    continue
                if answer.status_code < 500:
                    return read_answer(operation, answer)
                failure = f"{operation}: the API answers {answer.status_code}"
            if attempt + 1 < API_TRIES:
                log.info("%s, trying again in %.1f s", failure, wait_sec * self.settings.retry_wait_sec)
                self.context.sleep(wait_sec * self.settings.retry_wait_sec * random.uniform(0.5, 1))
        raise ApiError(failure)

    def token(self, refused: str = "") -> str:
        """The federated session token of all threads: minted when first needed, before it ends, and when `refused`.

        Raises ClipError when there is none to be had.
        """
        with self._lock:
            asked_at = time.monotonic()
            fresh = asked_at - self._minted_at <= TOKEN_LIFE_SEC * TOKEN_RENEW_SHARE
            if self._token and fresh and self._token != refused:  # else another thread has already replaced it
                return self._token
            try:
                answer = self.call("org/generateFederatedSessionToken", durationSec=TOKEN_LIFE_SEC)
            except ApiError as problem:
                raise ClipError(f"no session token: {problem}") from problem
            token = answer.get("federatedSessionToken")
            if not isinstance(token, str) or not token:
                raise ClipError("no session token: the API answered without one")
            hide_secret(token)
            self._token, self._minted_at = token, asked_at
            return token


def read_answer(operation: str, answer: requests.Response) -> dict[str, Any]:
    """The JSON object of an API answer, or the exception that its status or its content asks for."""
    if answer.status_code in (401, 403):
        raise ApiRefused(f"{operation}: the API refuses the key ({answer.status_code})")
    try:
        content = answer.json()
    except ValueError as problem:
        kind = answer.headers.get("Content-Type", "no content type")
        raise ApiError(f"{operation}: answered {answer.status_code} with {kind} instead of JSON") from problem
    if answer.status_code != 200 or not isinstance(content, dict):
        said = content.get("msg") or content.get("errorMsg") if isinstance(content, dict) else ""
        raise ApiError(f"{operation}: answered {answer.status_code} {said or ''}".rstrip())
    if content.get("error"):
        raise ApiError(f"{operation}: {content.get('errorMsg') or 'failed without a message'}")
    if content.get("warningMsg"):
        log.warning("%s: the API says: %s", operation, content["warningMsg"])
    return content


def list_alerts(api: Api, devices: Sequence[str], locations: Sequence[str], after_sec: float | None,
                most: int | None) -> tuple[list[dict[str, Any]], int, bool]:  # fmt: skip
    """Alerts newest first, page by page: (entries, how many more there are, is that count only a lower bound).

    `most` None takes all that lie within the bounds. The cursor is the last alert of a page; the order of the API is
    only documented for groups, so reading stops early only while the pages were seen to be sorted.
    """
    low_ms, high_ms = (after_sec or 0) * 1000, (api.settings.before_sec or LATEST_SEC) * 1000
    filters = {"deviceFilter": list(devices), "locationFilter": list(locations),
               # one more millisecond on each side: whether bounds are inclusive is unknown
               "afterTimestampMs": after_sec and int(low_ms) - 1,
               "beforeTimestampMs": api.settings.before_sec and int(high_ms) + 1}  # fmt: skip
    body: dict[str, Any] = {"maxResults": ALERT_PAGE} | {name: value for name, value in filters.items() if value}
    entries: dict[str, dict[str, Any]] = {}
    is_sorted, extra_pages, more_pages = True, 0, True
    while more_pages and not (is_sorted and extra_pages > COUNT_PAGES):
        answer = api.call("event/getPolicyAlerts", **body)
        page = next((answer[name] for name in ("policyAlerts", "alerts") if isinstance(answer.get(name), list)), None)
        if page is None:
            raise ApiError("event/getPolicyAlerts: answered without a list of alerts")
        page = [entry for entry in page if isinstance(entry, dict)]
        stamps = [stamp for entry in page if (stamp := alert_stamp(entry))]
        is_sorted = is_sorted and stamps == sorted(stamps, reverse=True)
        fresh = {alert_identity(entry): entry for entry in page if alert_identity(entry) not in entries}
        entries |= fresh
        extra_pages += most is not None and len(entries) > most
        cursors = [(alert_stamp(one), uuid) for one in page if (uuid := one.get("uuid") or one.get("alertId"))]
        stamp_ms, uuid = next((one for one in reversed(cursors) if one[0]), (0, ""))
        body |= {"lastTimestampMs": stamp_ms, "lastUuid": str(uuid)}
        if fresh and not stamp_ms:
            log.warning("a page of alerts carries neither times nor ids to go on from; older ones may be missing")
        more_pages = bool(fresh and stamp_ms) and not (is_sorted and stamps[-1] < low_ms)
    kept = [entry for entry in entries.values() if low_ms <= alert_stamp(entry) <= high_ms or not alert_stamp(entry)]
    kept.sort(key=alert_stamp, reverse=True)
    taken = kept if most is None else kept[:most]
    return taken, len(kept) - len(taken), more_pages


def alert_stamp(entry: Mapping[str, Any]) -> int:
    stamp = entry.get("timestampMs") or entry.get("eventStartMs")
    return int(stamp) if isinstance(stamp, (int, float)) and math.isfinite(stamp) else 0


def alert_identity(entry: Mapping[str, Any]) -> str:
    return str(entry.get("uuid") or entry.get("alertId") or json.dumps(entry, sort_keys=True))


class Directory:
    """What the API knows about devices: addresses and presence windows, each asked for once per run."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._lock = threading.Lock()
        self._locks: dict[tuple[int, str], threading.Lock] = {}
        self._addresses: dict[str, Addresses] = {}
        self._presence: dict[str, dict[str, Windows] | None] = {}
        self.ranges: dict[str, tuple[int, int]] = {}  # device -> union of the ranges of this run

    def want(self, clips: Iterable[Clip]) -> None:
        """Note which device is needed for which time, so that one presence query covers all its clips."""
        for clip in clips:
            start, end = clip.fetch_start_sec, clip.fetch_start_sec + clip.fetch_duration_sec
            gateway = clip.camera.gateway.uuid if clip.audio and clip.camera.gateway else None
            for device in filter(None, (clip.camera.uuid, gateway)):
                low, high = self.ranges.get(device, (start, end))
                self.ranges[device] = min(low, start), max(high, end)

    def load_addresses(self, devices: Sequence[str]) -> None:
        """Ask for many devices at once; a key that may not do that leaves them to single questions."""
        for at in range(0, len(devices), BULK_DEVICES):
            batch = list(devices[at : at + BULK_DEVICES])
            try:
                answer = self.api.call("mediadevice/getBulkMediaDeviceDetails", devices=batch)
            except ApiError as problem:
                log.debug("no addresses in bulk (%s), asking for each device", problem)
                return
            details = answer.get("mediaDeviceDetails") or {}
            for device in batch:  # the answer may name the first channel where the question left it out
                detail = details.get(device) or details.get(f"{device}.v0") or details.get(f"{device}.a0")
                found = read_addresses(detail) if isinstance(detail, dict) else Addresses()
                if found.lan or found.wan:  # else there may be some by another way: a doorbell's, or of its storage
                    self._addresses[device] = found

    def known(self, devices: Iterable[str]) -> tuple[dict[str, Addresses], dict[str, tuple[int, int]]]:
        """Addresses and wanted ranges of `devices`, as far as there are any."""
        bare = [strip_facet(device) for device in devices]
        return ({device: self._addresses[device] for device in (*devices, *bare) if device in self._addresses},
                {device: self.ranges[device] for device in bare if device in self.ranges})  # fmt: skip

    def take(self, addresses: Mapping[str, Addresses], ranges: Mapping[str, tuple[int, int]]) -> None:
        """What `known` gave in the program that sends clips to workers."""
        with self._lock:
            self._addresses = {**addresses, **self._addresses}
            self.ranges = {**ranges, **self.ranges}

    def _once(self, known: dict[str, T], device: str, ask: Callable[[], T]) -> T:
        """What is known of a device, after at most one thread has asked."""
        with self._lock:
            lock = self._locks.setdefault((id(known), device), threading.Lock())
        with lock:
            if device not in known:
                known[device] = ask()
            return known[device]

    def addresses(self, device: str, camera: Camera, *, audio: bool) -> Addresses:
        """The addresses of a camera facet or of an audio gateway; no addresses are a normal answer."""
        ways = [("camera", "cameraUuid", device)]
        if "DOORBELL" in camera.hardware.upper():
            ways.append(("doorbellcamera", "deviceUuid", device))
        if camera.storage:
            ways.append(("camera", "cameraUuid", camera.storage))

        def ask() -> Addresses:
            for kind, name, uuid in [("audiogateway", "gatewayUuid", device)] if audio else ways:
                found = read_addresses(self.api.call(f"{kind}/getMediaUris", **{name: uuid}))
                if found.lan or found.wan:
                    break
            return found

        return self._once(self._addresses, device, ask)

    def presence(self, device: str, *, audio: bool) -> dict[str, Windows] | None:
        """Joined windows by "local" and "cloud" over all that this run wants of `device`; None when unknown."""
        return self._once(self._presence, device, lambda: self._ask_presence(device, audio))

    def _ask_presence(self, device: str, audio: bool) -> dict[str, Windows] | None:
        start, end = self.ranges[device]
        operation = "audiogateway/getPresenceWindows" if audio else "camera/getPresenceWindows"
        query = {"deviceUuid" if audio else "cameraUuid": device, "startTimeSec": start, "durationSec": end - start}
        try:
            windows = self.api.call(operation, **query).get("presenceWindows")
            if not isinstance(windows, dict):
                raise ApiError(f"{operation}: answered without presenceWindows")
        except ApiError as problem:
            log.warning("%s: what was recorded is unknown (%s), going on", device, problem)
            return None
        found: dict[str, Windows] = {"local": [], "cloud": []}
        for name, spans in windows.items():
            numbers = [(span.get("startSeconds"), span.get("durationSeconds")) for span in spans or []
                       if isinstance(span, dict)]  # fmt: skip
            read = [(float(low), float(low) + float(length)) for low, length in numbers
                    if isinstance(low, (int, float)) and isinstance(length, (int, float))]  # fmt: skip
            for place in found:  # a kind that says neither Local nor Cloud may be either
                if place in name.lower() or not any(other in name.lower() for other in found):
                    found[place] += read
        return {place: join_windows(spans) for place, spans in found.items()}


def read_addresses(detail: Mapping[str, Any]) -> Addresses:
    """LAN and WAN templates of an answer; addresses that are not https (http on loopback alone) are left out."""

    def usable(templates: Sequence[Any] | None) -> Iterator[str]:
        for template in filter(None, templates or ()):
            try:
                parts = urlsplit(template if isinstance(template, str) else "")
            except ValueError:
                parts = urlsplit("")
            if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname)):
                yield template
            else:
                log.warning("a media address that is not https was left out: %s", mask(str(template))[:100])

    lan, checks = usable(detail.get("lanVodMpdUrisTemplates")), usable(detail.get("lanCheckUrls"))
    return Addresses(tuple(lan), next(usable([detail.get("wanVodMpdUriTemplate")]), None), tuple(checks))


# --- media hosts -------------------------------------------------------------------------------------------------


class MediaClient:
    """GET from LAN devices and from the WAN edge, each with the credential that it accepts and no other."""

    def __init__(self, api: Api) -> None:
        self.api, self.context, self.settings = api, api.context, api.settings
        self._lock = threading.Lock()
        self._scheme_at: dict[str, int] = {}  # host -> which of its schemes is in use
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._proxies: dict[tuple[str, str], str | None] = {}  # (kind, host) -> the proxy on the way to it
        self._turns: dict[str, threading.Semaphore] = {}  # LAN device -> so many requests at once, however many clips

    def _manager(self, kind: str, host: str) -> urllib3.PoolManager:
        """One pool per kind of host: TLS is verified on the WAN always, on the LAN with --verify_lan."""
        import ssl
        from urllib.request import getproxies, proxy_bypass

        import urllib3

        if (kind, host) not in self._proxies:  # the environment is searched, on some systems the name server asked
            direct = kind == "lan" or is_loopback(host) or proxy_bypass(host)
            self._proxies[kind, host] = None if direct else getproxies().get("https")
        proxy = self._proxies[kind, host]
        name = f"{kind} {proxy or ''}"
        with self._lock:
            if name not in self._managers:
                bundle = ca_bundle()
                folder = Path(bundle).is_dir()
                tls = ssl.create_default_context(cafile=None if folder else bundle, capath=bundle if folder else None)
                if kind == "lan" and not self.settings.verify_lan:
                    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
                    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
                if kind == "wan" and self.settings.cert:
                    tls.load_cert_chain(self.settings.cert, self.settings.private_key)
                size = min(CONNECTIONS, self.settings.workers * (self.settings.segment_workers or WAN_REQUESTS) * 2)
                options: dict[str, Any] = {"num_pools": 64, "maxsize": size, "ssl_context": tls, "retries": False}
                made = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
                self._managers[name] = made
            return self._managers[name]

    def schemes(self, kind: str, host: str) -> tuple[str, ...]:
        """Credentials to try, best first. The API key goes only to WAN hosts of the API's own domain."""
        if kind == "lan":
            return ("cookie", "federated")
        api_host = urlsplit(self.settings.api_url).hostname or ""
        own = host.split(".")[-2:] == api_host.split(".")[-2:] or (is_loopback(host) and is_loopback(api_host))
        return ("key", "federated") if own else ("federated",)

    def get(self, kind: str, url: str, limit_bytes: int = MAX_SEGMENT_BYTES) -> bytes:
        """The whole body of a 200. Raises NotFound, MediaRefused, Unreachable, TransferError, Stopped.

        On 401/403 the token is renewed once for everybody, then the host's next scheme is tried, then it is refused.
        """
        host = urlsplit(url).hostname or ""
        schemes = self.schemes(kind, host)
        realm = "api" if kind == "wan" else host
        most = (self.settings.segment_workers or LAN_REQUESTS) if kind == "lan" else 0
        renewed = False
        for _ in range(PAUSES_MAX):
            at = self._scheme_at.get(host, 0)
            scheme, token = schemes[at], "" if schemes[at] == "key" else self.api.token()
            with self._turns.setdefault(urlsplit(url).netloc, threading.Semaphore(most)) if most else nullcontext():
                self.context.wait_turn(realm)
                status, headers, body = self._request(kind, url, scheme, token, limit_bytes)
            if status == 200:
                return body
            if status == 404:
                raise NotFound(f"{host} answers 404")
            if status == 429:
                self.context.hush(realm, retry_after_sec(headers, 1.0))
            elif status not in (401, 403):
                raise TransferError(f"{host} answers {status}")
            elif token and not renewed:
                renewed = True
                self.api.token(refused=token)
            elif at + 1 < len(schemes):
                log.debug("%s refuses %s, trying %s", host, scheme, schemes[at + 1])
                with self._lock:
                    self._scheme_at[host] = max(at + 1, self._scheme_at.get(host, 0))
            else:
                raise MediaRefused(f"{host} refuses our credentials ({status})")
        raise TransferError(f"{host} keeps asking for a pause (429)")

    def _request(self, kind: str, url: str, scheme: str, token: str,
                 limit_bytes: int) -> tuple[int, Mapping[str, str], bytes]:  # fmt: skip
        import urllib3

        headers = {"Accept-Encoding": "identity"}
        if scheme == "key":
            headers |= self.api.key_headers()
            if self.settings.cert:  # the twin host that demands the client certificate
                url = url.replace(".dash.rhombussystems.com", ".dash-internal.rhombussystems.com", 1)
        elif scheme == "cookie":
            headers["Cookie"] = f"RSESSIONID=RFT:{token}; RHOMBUS_SESSIONID=RFT:{token}"
        else:
            headers |= {"x-auth-scheme": "federated-token", "x-auth-ft": token}
        timeout = urllib3.Timeout(connect=self.settings.connect_timeout_sec, read=self.settings.read_timeout_sec)
        host = urlsplit(url).hostname or ""
        try:
            response = self._manager(kind, host).request("GET", url, headers=headers, timeout=timeout, redirect=False,
                                                         preload_content=False)  # fmt: skip
            try:
                return response.status, response.headers, self._read(response, limit_bytes)
            finally:
                response.release_conn()
        except (urllib3.exceptions.ConnectTimeoutError, urllib3.exceptions.NewConnectionError) as problem:
            raise Unreachable(f"{host} does not answer") from problem
        except urllib3.exceptions.SSLError as problem:
            raise Unreachable(f"{host}: {tls_trouble(problem)}") from problem
        except urllib3.exceptions.ProxyError as problem:
            raise Unreachable(f"{host} cannot be reached through the proxy") from problem
        except (urllib3.exceptions.HTTPError, OSError) as problem:
            words = "stalled" if isinstance(problem, urllib3.exceptions.TimeoutError) else "broke the connection off"
            raise TransferError(f"{host} {words}") from problem

    def _read(self, response: urllib3.BaseHTTPResponse, limit_bytes: int) -> bytes:
        """The body: in one piece where its length is announced and nothing slows us down (half the CPU of pieces)."""
        announced = response.headers.get("Content-Length", "")
        if announced.isdigit() and int(announced) <= limit_bytes and not self.settings.bwlimit_bytes_per_sec:
            return response.read(decode_content=False)
        body = bytearray()
        for piece in response.stream(READ_PIECE_BYTES, decode_content=False):
            self.context.check()
            if self.settings.bwlimit_bytes_per_sec:
                self.context.take_bandwidth(len(piece))
            body += piece
            if len(body) > limit_bytes:
                response.close()
                raise TransferError(f"a body larger than {size_text(limit_bytes)}")
        return bytes(body)

    def fetch(self, kind: str, url: str, check: Callable[[bytes], None], limit_bytes: int = MAX_SEGMENT_BYTES, *,
              hurry: bool = False) -> bytes:  # fmt: skip
        """`get` with patience: growing, jittered waits; a 404 is believed after two more tries.

        `hurry` is for where there is another way to go: then a host that is not reached is not asked again.
        """
        not_found = 0
        for attempt in range(self.settings.tries):
            if attempt:
                pause = min(self.settings.retry_wait_sec * 2.0 ** (attempt - 1), MAX_WAIT_SEC)
                self.context.sleep(pause * random.uniform(0.5, 1))
            try:
                body = self.get(kind, url, limit_bytes)
                check(body)
                return body
            except NotFound:
                not_found += 1
                if not_found >= min(NOT_FOUND_TRIES, self.settings.tries):
                    raise
            except TransferError as problem:
                if hurry and isinstance(problem, Unreachable):
                    raise
                log.debug("%s: %s (try %s of %s)", urlsplit(url).path[-60:], problem, attempt + 1, self.settings.tries)
                failure = problem
        if not_found:
            raise NotFound("404 between other failures")
        raise failure


def boxes_in(body: bytes | mmap.mmap, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start and end of the content) of ISO BMFF boxes (ISO/IEC 14496-12, 4.2); BadBody if they do not fit."""
    while at < end:
        size, name = struct.unpack_from(">I4s", body, at) if at + 8 <= end else (1, b"")
        head = 8
        if size == 1 and at + 16 <= end:
            size, head = struct.unpack_from(">Q", body, at + 8)[0], 16
        size = end - at if size == 0 else size
        if not head <= size <= end - at:
            raise BadBody("a body that is not a whole MP4 segment")
        yield name, at + head, at + size
        at += size


def check_boxes(body: bytes, needed: tuple[bytes, ...]) -> None:
    """Is `body` whole boxes up to its last byte, with the `needed` ones among them, and are there pictures in it?"""
    if not body:
        raise BadBody("an empty body")
    tops = list(boxes_in(body, 0, len(body)))
    if not {name for name, _, _ in tops}.issuperset(needed):
        raise BadBody("a body that is not a whole MP4 segment")
    tracks = [traf for name, *moof in tops if name == b"moof" for traf in boxes_in(body, *moof)]
    runs = [trun for name, *traf in tracks if name == b"traf" for trun in boxes_in(body, *traf)]
    if b"moof" in needed and not sum(samples_in(body, *run) for name, *run in runs if name == b"trun"):
        raise BadBody("an MP4 segment without a sample")


def samples_in(body: bytes, at: int, end: int) -> int:
    """How many samples a track run (8.8.8) lists; BadBody when it is too short for so many."""
    flags, count = map(int, struct.unpack_from(">II", body, at) if at + 8 <= end else (0, 1))
    if at + 8 + 4 * ((flags & 5).bit_count() + count * (flags >> 8 & 15).bit_count()) > end:
        raise BadBody("an MP4 segment with a list of samples that is cut off")
    return count


def check_webm(body: bytes, first: bytes) -> None:
    """Is `body` whole EBML elements (RFC 8794) that begin with the element `first`?"""
    at, whole = 0, body.startswith(first)
    while whole and at < len(body):
        id_bytes = 9 - body[at].bit_length() if body[at] else 9
        size_at = at + id_bytes
        size_bytes = 9 - body[size_at].bit_length() if size_at < len(body) and body[size_at] else 9
        if id_bytes > 4 or size_bytes > 8 or size_at + size_bytes > len(body):
            whole = False
            break
        size = int.from_bytes(body[size_at : size_at + size_bytes], "big") & ((1 << 7 * size_bytes) - 1)
        if size == (1 << 7 * size_bytes) - 1:  # unknown size: a live Segment or Cluster, which lasts to the end
            return
        at = size_at + size_bytes + size
        if body[size_at - id_bytes : size_at] == WEBM_SEGMENT and at > len(body):
            return  # an init whose Segment announces what the media segments will bring
    if not whole or at != len(body):
        raise BadBody("an empty body" if not body else "a body that is not a whole WebM segment")


def check_mpd(body: bytes, url: str) -> None:
    try:
        mpd_info.parse_mpd(body, url, SEGMENT_SEC)
    except mpd_info.MpdError as problem:
        raise BadBody(str(problem)) from problem


def segment_check(track: mpd_info.Track, *, init: bool) -> Callable[[bytes], None]:
    if "webm" in track.mime_type or (track.kind == "audio" and "mp4" not in track.mime_type):
        return partial(check_webm, first=WEBM_EBML if init else WEBM_CLUSTER)
    return partial(check_boxes, needed=(b"moov",) if init else (b"moof", b"mdat"))


# --- what is kept on disk ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """What clips.jsonl says of a finished clip; `state` is done, partial or lost."""

    state: str
    end_ms: int
    file: str
    size_bytes: int
    audio: str
    made_at: float
    may_grow: bool = False  # its camera was offline, and may deliver what nobody knew of


class Ledger:
    """`.copy_footage/clips.jsonl`: one line per finished clip. It decides "done", also when the file has moved on."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clips.jsonl"
        self._lock = threading.Lock()
        self._read_bytes = 0
        self._done: dict[tuple[str, str, int, str], Done] = {}

    def refresh(self) -> None:
        """Take in what this run or another has appended; torn and foreign lines are passed over."""
        if not self.path.exists():
            return
        with self._lock, self.path.open("rb") as handle:
            handle.seek(self._read_bytes)
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                self._read_bytes += len(line)
                try:
                    self._take(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    log.debug("%s: a line that is not a record was passed over", self.path)

    def _take(self, line: dict[str, Any]) -> None:
        key = (str(line["camera"]), str(line["facet"]), int(line["start_ms"]), str(line["alert"]))
        self._done[key] = Done(str(line["state"]), int(line["end_ms"]), str(line["file"]), int(line["bytes"]),
                               str(line["audio"]), float(line["made_at"]), bool(line.get("may_grow")))  # fmt: skip

    def find(self, clip: Clip) -> Done | None:
        return self._done.get(clip.key)

    def holds(self, address: str, second: int) -> bool:
        """Is this second of this camera in any finished clip?"""
        camera, _, facet = address.partition(".")
        return any((one, other) == (camera, facet) and start_ms <= second * 1000 < done.end_ms
                   for (one, other, start_ms, _), done in self._done.items())  # fmt: skip

    def add(self, clip: Clip, state: str, file: str, size_bytes: int, sha256: str, audio: str, *,
            may_grow: bool = False) -> None:  # fmt: skip
        camera, facet, start_ms, alert = clip.key
        line = {"schema": 1, "camera": camera, "facet": facet, "start_ms": start_ms, "end_ms": clip.end_sec * 1000,
                "alert": alert, "state": state, "file": file, "bytes": size_bytes, "sha256": sha256, "audio": audio,
                "made_at": round(time.time()), "may_grow": may_grow}  # fmt: skip
        append_line(self.path, json.dumps(line))
        self.refresh()

    def bytes_per_sec(self) -> dict[tuple[str, str], float]:
        """What footage of each (camera, facet) took so far, for the estimate of space."""
        sizes, lengths_ms = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        with self._lock:
            known = list(self._done.items())
        for (camera, facet, start_ms, _), done in known:
            if done.size_bytes and done.end_ms > start_ms:
                sizes[camera, facet] += done.size_bytes
                lengths_ms[camera, facet] += done.end_ms - start_ms
        return {camera: size * 1000 / lengths_ms[camera] for camera, size in sizes.items()}


@lru_cache(maxsize=1)
def crc32_function() -> Callable[[bytes], int]:
    """CRC-32 (ISO 3309): ISA-L makes the same as zlib in a tenth of the time, 0.2 s of CPU less per GB."""
    try:
        from isal.isal_zlib import crc32
    except ImportError:
        from zlib import crc32
    made: Callable[[bytes], int] = crc32
    return made


NOWHERE: dict[str, Any] = {"source": "", "init_bytes": 0, "init_crc32": 0, "length_ms": SEGMENT_SEC * 1000}


class Part:
    """`X.part` (init and media segments as they came) and `X.part.json` (what lies where), locked while in use.

    Segment data is synced before the line that records it; what is not recorded, or does not have its CRC-32, is cut
    off or fetched again. Lines of the record: {first_try_at, recorded}, {source, init_bytes, init_crc32, …},
    {have: [[index, offset, length, crc32], …]}, and {drop: [index, …]}.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.record_path, self.crc32 = path, record_path(path), crc32_function()
        self.handle = self._lock_path()
        if self._finish_exchange():
            self.handle.close()
            self.handle = self._lock_path()
        self.first_try_at = time.time()
        self.recorded: list[list[float]] | None = None
        self._fresh: list[list[int]] = []
        self._synced_at = time.monotonic()
        self._hold()
        self._load()

    def _hold(self, origin: Mapping[str, Any] = NOWHERE, count: int = 0) -> None:
        """Forget all segments: what there is, is the init segment of `origin`, or nothing."""
        self.origin = {name: type(kind)(origin[name]) for name, kind in NOWHERE.items()}
        self.source, self.init_bytes = self.origin["source"], self.origin["init_bytes"]
        self.end, self.step_sec = self.init_bytes, self.origin["length_ms"] / 1000
        self.offsets, self.lengths = array.array("q"), array.array("q")
        self.resize(count)

    def _lock_path(self) -> Any:
        """Open and lock; Busy when another run has it. A file that its owner removed meanwhile is opened anew."""
        while True:
            handle = self.path.open("ab+")
            if not lock_file(handle):
                handle.close()
                raise Busy(f"{self.path.name}: in progress elsewhere")
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle.fileno()), self.path.stat()):
                    return handle
            handle.close()

    def _load(self) -> None:
        for line in self.record_path.read_bytes().split(b"\n") if self.record_path.exists() else ():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, OSError):
                continue  # the torn last line of a crash
        if self.source and not self._intact(0, self.init_bytes, self.origin["init_crc32"]):
            self._hold()
        if self.handle.seek(0, os.SEEK_END) > self.end:  # what lies behind the last recorded byte
            self.handle.truncate(self.end)

    def _take(self, line: dict[str, Any]) -> None:
        if "first_try_at" in line:
            self.first_try_at, self.recorded = float(line["first_try_at"]), line.get("recorded")
        if "source" in line:
            self._hold(line, int(line["segments"]))
        for index, offset, length, crc in line.get("have", ()):
            if 0 <= index < mpd_info.MAX_SEGMENTS and self._intact(offset, length, crc):
                self.resize(index + 1)
                self.offsets[index], self.lengths[index] = offset, length
                self.end = max(self.end, offset + length)
        for index in line.get("drop", ()):
            self.offsets[index] = -1

    def _intact(self, offset: int, length: int, crc: int) -> bool:
        self.handle.seek(offset)
        data = self.handle.read(length)
        return len(data) == length and self.crc32(data) == crc

    def resize(self, count: int) -> None:
        grow = max(0, count - len(self.offsets))
        self.offsets.extend([-1] * grow)
        self.lengths.extend([0] * grow)

    def has(self, index: int) -> bool:
        return index < len(self.offsets) and self.offsets[index] >= 0

    def have(self, count: int | None = None) -> list[int]:
        """The segments that are there, in order; with `count` only those of a plan of so many."""
        return [index for index, offset in enumerate(self.offsets[:count]) if offset >= 0]

    def begin(self, source: str, init: bytes, track: mpd_info.Track) -> None:
        """Make ready for segments of `source`: go on where the part has the same source and init, else start anew.

        A part of another source is set aside as `*.old.part` until the new one is longer: sources are never mixed.
        """
        wanted = {"source": source, "init_bytes": len(init), "init_crc32": self.crc32(init),
                  "length_ms": round(track.segment_sec * 1000)}  # fmt: skip
        if self.origin != wanted and self.have():
            self._set_aside()
            if self.origin != wanted and self.have():
                self.prefer(-1)  # of two that do not fit, the longer one is kept
        if self.origin == wanted:
            self.resize(track.segment_count())
            return
        self.handle.truncate(0)
        self.handle.write(init)
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self._hold(wanted, track.segment_count())
        self._write_head(**wanted, segments=track.segment_count())

    def _set_aside(self) -> None:
        """Exchange this part with `*.old.part`, if there is one; what an older one held is then ours to go on with."""
        tried_at, recorded = self.first_try_at, self.recorded
        self._let_go()
        self.path.replace(self._sibling(".spare.part"))
        self._finish_exchange()
        self.handle.close()
        self.__init__(self.path)  # type: ignore[misc]
        self.first_try_at, self.recorded = min(tried_at, self.first_try_at), recorded or self.recorded

    def _finish_exchange(self) -> bool:
        """Do what is left of an exchange, ours or one that a crash broke off; was there one?"""
        old, spare = self._sibling(".old.part"), self._sibling(".spare.part")
        if not spare.exists() and not record_path(spare).exists():
            return False
        self._let_go()
        for source, target in ((self.record_path, record_path(spare)), (old, self.path),
                               (record_path(old), self.record_path), (spare, old),
                               (record_path(spare), record_path(old))):  # fmt: skip
            if not target.exists() or not target.stat().st_size:  # an empty part is one that was just opened
                with suppress(FileNotFoundError):
                    source.replace(target)
        return True

    def prefer(self, sign: int = 1) -> None:
        """Take the part of the other source, where that has more (with a `sign` of -1: less)."""
        mine = len(self.have())
        if self._sibling(".old.part").exists():
            self._set_aside()
            if sign * (len(self.have()) - mine) <= 0:
                self._set_aside()

    def drop_misplaced(self) -> list[int]:
        """Give up video segments of another time than their neighbours', and return their indexes."""
        times = {}
        for index in self.have():
            self.handle.seek(self.offsets[index])
            head = self.handle.read(FRAGMENT_HEAD_BYTES)
            at = head.find(b"tfdt")  # ISO/IEC 14496-12, 8.8.12: the decode time, 32 bits in version 0
            if at > 0 and at + 16 <= len(head):
                times[index] = struct.unpack_from(">Q" if head[at + 4] else ">I", head, at + 8)[0]
        wrong = misplaced(times)
        if wrong:
            append_line(self.record_path, json.dumps({"drop": wrong}))
            for index in wrong:
                self.offsets[index] = -1
        return wrong

    def _sibling(self, ending: str) -> Path:
        return self.path.with_name(self.path.name.removesuffix(".part") + ending)

    def note_try(self, recorded: Sequence[tuple[float, float]] | None) -> None:
        """Remember when this clip was first tried, and all that was ever recorded of it, so that waiting has an end."""
        before, known = self.recorded, [(low, high) for low, high in self.recorded or ()]
        self.recorded = before if recorded is None else [list(span) for span in join_windows([*known, *recorded])]
        if not self.record_path.exists():
            self._write_head()
        elif self.recorded != before:
            append_line(self.record_path, json.dumps({"first_try_at": self.first_try_at, "recorded": self.recorded}))

    def _write_head(self, **source: Any) -> None:
        lines = [{"schema": 1, "first_try_at": self.first_try_at, "recorded": self.recorded}, *filter(None, [source])]
        new = self.record_path.with_name(self.record_path.name + ".part")
        new.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        sync_file(new)
        new.replace(self.record_path)
        fsync_folder(self.path.parent)

    def add(self, index: int, body: bytes) -> None:
        self.handle.write(body)
        self.offsets[index], self.lengths[index] = self.end, len(body)
        self._fresh.append([index, self.end, len(body), self.crc32(body)])
        self.end += len(body)
        if time.monotonic() - self._synced_at > CHECKPOINT_SEC:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Sync the data, then record it."""
        if self._fresh:
            self.handle.flush()
            os.fsync(self.handle.fileno())
            append_line(self.record_path, json.dumps({"have": self._fresh}, separators=(",", ":")))
            self._fresh = []
        self._synced_at = time.monotonic()

    def in_order(self, indexes: Sequence[int]) -> Path:
        """A file with the init and the segments `indexes` in this order: the part itself where it is that already."""
        self.handle.flush()
        offsets, lengths = [self.offsets[i] for i in indexes], [self.lengths[i] for i in indexes]
        is_dense = self.init_bytes + sum(lengths) == self.end
        if offsets == sorted(offsets) and len(indexes) == len(self.have()) and is_dense:
            return self.path
        ordered = self._sibling(".ordered.part")
        with ordered.open("wb") as target:
            for offset, length in zip((0, *offsets), (self.init_bytes, *lengths), strict=True):
                self.handle.seek(offset)
                target.write(self.handle.read(length))
        return ordered

    def close(self) -> None:
        """Let go of the part; one that holds nothing and was never noted leaves nothing behind."""
        if not (self.record_path.exists() or self._sibling(".old.part").exists() or self.handle.closed):
            self.discard()
        self.handle.close()

    def _let_go(self) -> None:
        """Windows neither renames nor removes a file that is open; elsewhere the lock is held until that is done."""
        if os.name == "nt":
            self.handle.close()

    def discard(self) -> None:
        """Remove the part and its leftovers; the lock goes with it."""
        self._let_go()
        for ending in (".old.part", ".spare.part", ".ordered.part", ".mux.part", ".part"):
            path = self._sibling(ending)
            record_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        self.handle.close()


def record_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


# --- download ----------------------------------------------------------------------------------------------------


UNAVAILABLE = frozenset({"unavailable", "invalid", "not_yet"})  # reasons that another run may overcome


@dataclass
class Stream:
    """Video or audio of one clip: where it comes from, what it is kept in, what is missing of it and why."""

    kind: str  # lan or wan
    track: mpd_info.Track
    part: Part
    missing: dict[int, str] = field(default_factory=dict)
    trouble: str = ""  # why the device was given up
    failure: str = ""  # of the last segment that could not be had
    inside: mpd_info.Track | None = None  # audio that the camera carries in its own MPD
    count: int = 0  # segments of the whole clip, of which an MPD with a timeline may list fewer

    def unavailable(self) -> list[int]:
        """Segments that exist, or may, but could not be had."""
        return [index for index, reason in self.missing.items() if reason in UNAVAILABLE]


def download(context: Context, media: MediaClient, stream: Stream, workers: int, tell: Callable[[int], None]) -> None:
    """Fetch what `stream.part` lacks, several requests side by side, written in order.

    At most a window of bodies is held, so memory does not grow with the clip. A device that keeps failing ends the
    work early (`stream.trouble`). Raises Stopped and OSError (disk) with everything that arrived in order recorded.
    """
    check = segment_check(stream.track, init=False)
    todo = deque(i for i in range(stream.track.segment_count()) if i not in stream.missing and not stream.part.has(i))
    flying: deque[tuple[int, Future[bytes]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix=f"{threading.current_thread().name}-{stream.track.kind}")
    fails, largest = 0, 1
    try:
        while todo or flying:
            room = max(workers + 1, min(2 * workers, WINDOW_BYTES // largest))
            while todo and len(flying) < room and not stream.trouble:
                index = todo.popleft()
                flying.append((index, pool.submit(media.fetch, stream.kind, stream.track.segment(index).url, check)))
            if not flying:
                break
            index, future = flying.popleft()
            try:
                body = result_of(future, context)
            except NotFound:
                stream.missing[index] = "not_found"
            except (TransferError, MediaRefused) as problem:
                stream.missing[index] = "invalid" if isinstance(problem, BadBody) else "unavailable"
                stream.failure, fails = str(problem), fails + 1
                if fails >= DEVICE_FAILS or isinstance(problem, MediaRefused):
                    stream.trouble = stream.trouble or str(problem)
            else:
                fails, largest = 0, max(largest, len(body))
                stream.part.add(index, body)
                tell(len(body))
        stream.missing |= dict.fromkeys(todo, "unavailable")
        stream.missing |= dict.fromkeys(range(stream.track.segment_count(), stream.count), "not_found")
        stream.part.checkpoint()
    except Stopped:
        stream.part.checkpoint()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def result_of(future: Future[bytes], context: Context) -> bytes:
    """The body, while the run goes on; a segment that takes for ever counts as a device that hangs."""
    deadline = time.monotonic() + SEGMENT_DEADLINE_SEC
    while True:
        try:
            return future.result(timeout=0.25)
        except FutureTimeout:
            context.check()
            if time.monotonic() > deadline:
                raise MediaRefused(f"a segment took longer than {SEGMENT_DEADLINE_SEC} s") from None


# --- MP4 ---------------------------------------------------------------------------------------------------------


def mux(ffmpeg: str, video: Path, audio: Path | None, shift_sec: float, codec: str, created_sec: float,
        target: Path, context: Context) -> None:  # fmt: skip
    """Copy video and audio streams into one plain MP4 with its index in front; the same input gives the same bytes.

    `shift_sec` moves the audio against the video. Raises ClipError with FFmpeg's last words; `target` is then gone.
    """
    command = [ffmpeg, "-v", "error", "-nostdin", "-y", "-f", "mp4", "-i", str(video)]
    if audio:
        command += ["-itsoffset", f"{shift_sec:.3f}", "-i", str(audio), "-map", "0:v", "-map", "1:a:0"]
    else:
        command += ["-map", "0:v", "-map", "0:a?"]
    command += ["-c", "copy", *(["-c:a", codec] if codec != "copy" else []), "-map_metadata", "-1", "-fflags",
                "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact", "-metadata",
                f"creation_time={clock_text(created_sec)}", "-strict", "experimental", "-movflags", "+faststart",
                "-f", "mp4", str(target)]  # fmt: skip
    log.debug("ffmpeg: %s", " ".join(command))
    target.unlink(missing_ok=True)  # an FFmpeg that outlived a killed run goes on writing to its own, nameless file
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    except OSError as problem:
        raise ClipError(f"FFmpeg cannot be started: {problem}") from problem
    try:
        while True:
            try:
                _, words = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                context.check()
    except BaseException:
        process.kill()
        process.communicate()
        target.unlink(missing_ok=True)
        raise
    if process.returncode:
        target.unlink(missing_ok=True)
        if b"No space left" in words:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        last = words.decode(errors="replace").strip().splitlines()[-2:]
        raise ClipError(f"FFmpeg failed with status {process.returncode}: {' / '.join(last) or 'without a word'}")


def mp4_duration_sec(path: Path) -> float | None:
    """The duration of the first track of an MP4, the pictures in ours; None when the file is no whole MP4."""
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at, end = 0, len(data)
            for wanted in (b"moov", b"trak", b"mdia", b"mdhd"):
                at, end = next((low, high) for name, low, high in list(boxes_in(data, at, end)) if name == wanted)
            scale, ticks = struct.unpack_from(*(">IQ", data, at + 20) if data[at] else (">II", data, at + 12))
            return float(ticks / scale)
    except (BadBody, StopIteration, ValueError, ZeroDivisionError, struct.error):  # ValueError: an empty file
        return None


def sync_file(path: Path) -> None:
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


# --- one clip ----------------------------------------------------------------------------------------------------


class Copier:
    """What the clips of one run share, and the door that every clip goes through. Called from several threads."""

    def __init__(self, api: Api, ledger: Ledger, progress: Any) -> None:
        self.settings, self.context, self.ledger, self.progress = api.settings, api.context, ledger, progress
        self.media, self.directory, self.ffmpeg = MediaClient(api), Directory(api), ""
        self.lan_dead: set[str] = set()  # cameras of which no LAN address answered in this run
        self.downloads = threading.BoundedSemaphore(self.settings.workers)  # others are finished meanwhile
        self.muxes = threading.BoundedSemaphore(1)  # an FFmpeg needs 50 MB, and two are no faster than one
        self._start_lock = threading.Lock()
        self._started_at = 0.0
        names = os.listdir(self.settings.output_dir) if self.settings.output_dir.is_dir() else []  # noqa: PTH208
        self._parts = sorted(name for name in names if name.endswith(".part"))

    def part_path(self, clip: Clip, *, sound: bool = False) -> Path:
        """Where what came of a clip is kept: under the name that its camera and its alert had when it was begun."""
        path = self.settings.output_dir / f"{clip.file_name(sound)}{'.audio' if sound else ''}.part"
        when, ending = clip.stem.partition(f"_{clip.camera.address}_")[2], path.name.removeprefix(clip.stem)
        if clip.alert:
            when = f"{when[:15]}_alert_*_{safe_word(clip.alert.id, ID_CHARACTERS)}"
        older = [] if path.exists() else fnmatch.filter(self._parts, f"*_{clip.camera.address}_{when}{ending}")
        return next((one for name in older if (one := path.with_name(name)).exists()), path)

    def copy(self, clip: Clip) -> Outcome:
        """One clip, whatever happens: every failure becomes an Outcome, so that it stops nobody else."""
        threading.current_thread().name = clip.camera.address
        try:
            with self._start_lock:  # a real pause between starts, so that devices and API see no burst
                self.context.sleep(self._started_at + START_SPACING_SEC - time.monotonic())
                self._started_at = time.monotonic()
            self.context.check()
            if found := self.settled(clip):
                return found
            with closing(Job(self, clip)) as job:
                self.ledger.refresh()  # another run may have finished it while we waited for the lock
                return self.settled(clip) or job.copy()
        except Stopped as stop:
            planned = self.settings.catch_up and str(stop) == TIME_IS_UP  # what is pending goes on in the next run
            return Outcome(clip, "later" if planned else "stopped", str(stop))
        except Busy as busy:
            log.debug("%s", busy)
            return Outcome(clip, "elsewhere")
        except (ClipError, ApiError, TransferError, MediaRefused, mpd_info.MpdError) as problem:
            return Outcome(clip, "failed", str(problem))
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                self.context.end("the disk is full")
            return Outcome(clip, "failed", f"{problem.strerror or problem}: {problem.filename or 'the output folder'}")
        except Exception as problem:
            log.exception("%s: this is a bug in the program", clip.stem)
            return Outcome(clip, "failed", f"unexpected {type(problem).__name__}")

    def settled(self, clip: Clip) -> Outcome | None:
        """What is already there of this clip, without any request; None when there is something to do."""
        done = None if self.settings.overwrite else self.ledger.find(clip) or self._adopt(clip)
        if not done or done.end_ms < clip.end_sec * 1000:
            return None
        if done.state == "lost":
            return Outcome(clip, "lost", "in an earlier run")
        file = self.settings.output_dir / done.file
        here = bool(done.file) and file.exists()
        if here and file.stat().st_size != done.size_bytes:
            return Outcome(clip, "conflict", "its size is not the recorded one; move it away, or use --overwrite", file)
        if done.may_grow and (self.settings.catch_up or clip.camera.online):
            return None
        is_silent = done.audio == "failed"
        if clip.audio and here and is_silent and self.settings.now - done.made_at <= self.settings.give_up_after_sec:
            return None  # the audio is still worth trying
        audio = "" if is_silent else done.audio
        return Outcome(clip, "already", done.state, file if here else None, done.size_bytes, audio)

    def _adopt(self, clip: Clip) -> Done | None:
        """A finished file without a record: believed on its sidecar, else on its length; never fetched again."""
        for with_audio, is_partial in ((True, False), (False, False), (True, True), (False, True)):
            file = self.settings.output_dir / clip.file_name(with_audio, is_partial)
            if not file.exists() or record_path(self.part_path(clip)).exists():
                continue  # with a part beside it, a crash came between the two: finishing the part finds the same bytes
            size_bytes, state = file.stat().st_size, "partial" if is_partial else "done"
            if facts := sidecar_facts(file, size_bytes):
                end_ms, audio, sha256 = facts
            else:
                length = None if is_partial else mp4_duration_sec(file)  # which segments it holds, only a sidecar tells
                if not length or abs(length - clip.fetch_duration_sec) > DURATION_SLACK_SEC:
                    raise ClipError(f"{file.name} exists and is not this clip; move it away, or use --overwrite")
                end_ms, audio, sha256 = clip.end_sec * 1000, "ok" if with_audio else "none", ""
            if self.settings.dry_run:
                return Done(state, end_ms, file.name, size_bytes, audio, self.settings.now)
            if not facts:
                sha256 = sha256_of(file)
                contents = Contents("unknown", SEGMENT_SEC, clip.segments, list(range(clip.segments)), {})
                write_json(file.with_suffix(".json"), sidecar_of(clip, file, sha256, contents, {"status": audio}, True))
            self.ledger.add(replace(clip, end_sec=end_ms // 1000), state, file.name, size_bytes, sha256, audio)
            return self.ledger.find(clip)
        return None


def sidecar_facts(file: Path, size_bytes: int) -> tuple[int, str, str] | None:
    """(end in ms, audio status, sha256) from the sidecar of `file`; None when there is none that speaks of it."""
    sidecar = read_json(file.with_suffix(".json")) or {}
    try:
        facts = int(sidecar["requested"]["end_ms"]), str(sidecar["audio"]["status"]), str(sidecar["sha256"])
    except (KeyError, TypeError, ValueError):
        return None
    return facts if (sidecar.get("bytes"), sidecar.get("file")) == (size_bytes, file.name) else None


@dataclass(frozen=True)
class Contents:
    """What a finished clip holds, for its sidecar: segments by index, and why others are missing."""

    source: str
    segment_sec: float
    expected: int
    have: list[int]
    missing: dict[int, str]


@dataclass
class Sound:
    """The audio of one clip. `status` is none, ok, not_recorded or failed; `stream` only when ok."""

    status: str = "none"
    gateway: str | None = None
    detail: str = ""
    stream: Stream | None = None


class Job:
    """One clip on its way: which sources, which segments, then publishing. Holds the locked parts of the clip."""

    def __init__(self, run: Copier, clip: Clip) -> None:
        self.run, self.clip, self.settings = run, clip, run.settings
        self.part = Part(run.part_path(clip))
        self.sound_part: Part | None = None
        self.opening, self.is_closed = threading.Lock(), False

    def close(self) -> None:
        """Nothing is opened any more: what a thread that nobody waits for opened would stay locked on a worker."""
        with self.opening:
            self.is_closed = True
            for part in filter(None, (self.part, self.sound_part)):
                part.close()

    def copy(self) -> Outcome:
        clip, part, done = self.clip, self.part, self.run.ledger.find(self.clip)
        lacks_audio = done and done.audio == "failed" and not done.may_grow and not self.settings.overwrite
        if done and lacks_audio and done.end_ms >= clip.end_sec * 1000:
            sidecar = read_json((self.settings.output_dir / done.file).with_suffix(".json"))
            if sidecar:  # without one nobody knows which segments the file holds
                return self._add_audio(done, sidecar)
        count, failed, sound = clip.segments, False, None
        if not part.have():
            part.prefer()
        reasons = self._reasons("lan" if self.settings.lan_only else "wan")
        if len(reasons) == count and not part.have():
            return self._nothing(reasons)
        part.note_try(self._recorded())
        with self.run.progress.clip(clip, count) as tell:
            try:
                with self.run.downloads:
                    video, sound = self._fetch(tell)
                reasons, count, trouble = video.missing, video.count, video.trouble or video.failure
            except (ClipError, TransferError, MediaRefused) as problem:
                failed, trouble = True, str(problem)
            if wrong := part.drop_misplaced():
                reasons, trouble = reasons | dict.fromkeys(wrong, "invalid"), "segments of another time came"
            for is_last in (False, True):
                missing = {i: reasons.get(i, "unavailable") for i in range(count) if not part.has(i)}
                may_come = UNAVAILABLE.intersection(missing.values()) and not self._given_up(part)
                if not missing or is_last or (may_come and part.have()):
                    break
                part.prefer()
            if len(missing) == count:
                no_hope = not failed or self._given_up(part)
                return self._nothing(missing, trouble) if no_hope else Outcome(clip, "failed", trouble)
            if may_come:
                return self._kept(missing, count, trouble)
            sound = sound or self._fetch_sound(part.source, None)
            contents = Contents(part.source, part.step_sec, count, part.have(count), missing)
            return self._make(part.in_order(contents.have), contents, sound)

    def _given_up(self, part: Part) -> bool:
        return self.settings.now - part.first_try_at > self.settings.give_up_after_sec

    def _kept(self, missing: Mapping[int, str], count: int, trouble: str) -> Outcome:
        short = [reason for reason in missing.values() if reason in UNAVAILABLE]
        not_yet = set(short) == {"not_yet"}
        why = trouble or ("not there yet" if not_yet else "")
        detail = f"kept as {self.part.path.name}: {len(short)} of {count} segments missing{why and ', '}{why}"
        return Outcome(self.clip, "not_yet" if not_yet and self.settings.catch_up else "incomplete", detail)

    def _nothing(self, reasons: Mapping[int, str], trouble: str = "") -> Outcome:
        """No segment at all: settled when nothing can come any more, else to be tried again."""
        clip, kinds = self.clip, set(reasons.values()) - {"not_recorded"}
        if "not_found" in kinds and self._windows("wan")[0] is None:
            kinds.remove("not_found")  # else all that was recorded answers 404, which is hard to believe
        if not kinds:
            self.part.discard()
            return Outcome(clip, "empty", "no footage recorded")
        if kinds == {"expired"} or self._given_up(self.part):
            self.run.ledger.add(clip, "lost", "", 0, "", "")
            self.part.discard()
            return Outcome(clip, "lost", "expired" if "expired" in kinds else "given up after --give_up_after")
        self.part.note_try(self._recorded())
        if kinds == {"not_yet"} and self.settings.catch_up:
            return Outcome(clip, "not_yet", "it may still come")
        if not trouble and "not_found" in kinds:
            trouble = "every segment answers 404, although there are recordings"
        elif not trouble and "unavailable" in kinds:
            trouble = ("only the cloud has it, and --lan_only forbids that" if clip.camera.online else
                       "it lies on the camera, which is offline")  # fmt: skip
        return Outcome(clip, "incomplete", trouble or "not there yet")

    # What exists, and where from

    def _recorded(self) -> Windows | None:
        """What exists of the time of this clip; None when that is unknown."""
        start, end = self.clip.fetch_start_sec, self.clip.fetch_start_sec + self.clip.fetch_duration_sec
        windows = self._windows("wan")[1]
        return windows and [(max(low, start), min(high, end)) for low, high in windows if low < end and start < high]

    def _windows(self, kind: str) -> tuple[Windows | None, Windows | None]:
        """What a source ("lan", "wan", "gateway") can serve, and what exists anywhere; None when that is unknown."""
        camera, gateway = self.clip.camera, self.clip.camera.gateway if kind == "gateway" else None
        presence = self.run.directory.presence(gateway.uuid if gateway else camera.uuid, audio=bool(gateway))
        if presence is None:
            return None, None
        anywhere = join_windows(presence["local"] + presence["cloud"])
        if kind == "lan":
            return presence["local"], anywhere
        return (anywhere if gateway or camera.online else presence["cloud"]), anywhere

    def _reasons(self, kind: str, track: mpd_info.Track | None = None) -> dict[int, str]:
        """Segments (of `track`, or as planned) that need not be asked for at this source, and why."""
        here, anywhere = self._windows(kind)
        if here is None or anywhere is None:
            return {}
        clip, settings, missing = self.clip, self.settings, dict[int, str]()
        step_sec, count = (track.segment_sec, track.segment_count()) if track else (SEGMENT_SEC, clip.segments)
        is_video = kind != "gateway"
        before = join_windows((low, high) for low, high in self.part.recorded or () if is_video)
        late = is_video and settings.catch_up and self._may_deliver()
        for index in range(count):
            start, end = clip.fetch_start_sec + index * step_sec, clip.fetch_start_sec + (index + 1) * step_sec
            if covered(here, start, end):
                continue
            if end > settings.now - PRESENCE_LAG_SEC:  # unknown: ask a device; the cloud would show a placeholder
                if kind == "wan":
                    missing[index] = "not_yet"
            elif covered(anywhere, start, end):
                missing[index] = "unavailable"
            elif covered(before, start, end):
                missing[index] = "expired"
            else:
                missing[index] = "not_yet" if late else "not_recorded"
        return missing

    def _may_deliver(self) -> bool:
        """An offline camera may deliver later what nobody knows of yet, so its gaps are not final at once."""
        is_away = not self.clip.camera.online and not self.clip.camera.retired
        return is_away and self.clip.end_sec > self.settings.now - self.settings.lookback_sec

    def _kinds(self) -> list[str]:
        """Kinds of source to try, in order. The LAN is left out where only the cloud has all that exists."""
        clip, settings = self.clip, self.settings
        if settings.lan_only:
            return ["lan"]
        if settings.usewan or clip.camera.uuid in self.run.lan_dead:
            return ["wan"]
        if not clip.camera.online:
            why = "the camera is offline, using its cloud footage over WAN"
        elif "unavailable" in self._reasons("lan").values():
            why = "the cloud has more of it than the camera, using WAN"
        else:
            return ["lan", "wan"]
        log.info("%s: %s", clip.stem, why)
        return ["wan"]

    def _open(self, kind: str, addresses: Addresses, part: Part, device: str = "") -> Stream:
        """The first address of this kind that gives an MPD and an init segment; `device` is a gateway's, for audio.

        Raises ClipError, Unreachable.
        """
        clip, media = self.clip, self.run.media
        failure: Exception = Unreachable(f"there is no {kind.upper()} address")
        for template in addresses.lan if kind == "lan" else filter(None, [addresses.wan]):
            url = template.replace("{START_TIME}", str(clip.fetch_start_sec))
            url = url.replace("{DURATION}", str(clip.fetch_duration_sec))
            try:
                check = partial(check_mpd, url=url)
                document = media.fetch(kind, url, check, mpd_info.MAX_MPD_BYTES, hurry=kind == "lan")
                tracks = mpd_info.parse_mpd(document, url, clip.fetch_duration_sec)
                track = mpd_info.audio_track(tracks) if device else mpd_info.video_track(tracks)
                if track is None or not track.init_url:
                    raise mpd_info.MpdError("the MPD names no init segment")
                count = track.segment_count()
                last = track.segment(count - 1)
                if last.start_sec >= count * track.segment_sec:  # a place in the list would stand for another time
                    raise mpd_info.MpdError("the MPD leaves out segments before its last one")
                init = media.fetch(kind, track.init_url, segment_check(track, init=True))
            except (TransferError, NotFound, MediaRefused, mpd_info.MpdError) as problem:
                log.debug("%s: %s: %s", clip.stem, kind, problem)
                failure = problem if isinstance(problem, Unreachable) else ClipError(str(problem))
                continue
            part.begin(f"{kind} {device}".strip(), init, track)
            rest_sec = clip.fetch_duration_sec - last.start_sec - last.duration_sec
            count += max(0, int(rest_sec / track.segment_sec))
            return Stream(kind, track, part, {}, inside=None if device else mpd_info.audio_track(tracks), count=count)
        raise failure

    # Fetch

    def _fetch(self, tell: Callable[[int], None]) -> tuple[Stream, Sound]:
        """Video from the first source that gives all of it, else from the last that gave some; the audio beside it."""
        clip, run, settings = self.clip, self.run, self.settings
        addresses = run.directory.addresses(clip.camera.address, clip.camera, audio=False)
        if not addresses.lan and not addresses.wan:
            raise ClipError("the API gives no media addresses for this camera")
        video: Stream | None = None
        failures: list[Exception] = []
        with background(f"{clip.camera.address}-audio") as beside:
            sound: Future[Sound] | None = None
            for kind in self._kinds():
                try:
                    video = self._open(kind, addresses, self.part)
                except (ClipError, Unreachable) as problem:
                    failures.append(problem)
                    if kind == "lan" and not settings.lan_only:
                        run.lan_dead.add(clip.camera.uuid)
                        log.info("%s: no answer on the LAN (%s), using WAN", clip.stem, problem)
                    continue
                for is_last in (False, True):
                    video.missing = self._reasons(kind, video.track)
                    self._check_space(video)
                    if sound is None:
                        sound = beside.submit(self._fetch_sound, kind, video)
                    download(run.context, run.media, video, self._workers(kind), tell)
                    if not self._doubt_404(kind, video) or is_last:
                        break
                    with suppress(ClipError, Unreachable):  # a device that was restarted has to be told the range anew
                        video = self._open(kind, addresses, self.part)
                if not video.unavailable():
                    break
                log.debug("%s: %s lacks %s segments", clip.stem, kind, len(video.unavailable()))
            if video is None:
                refused = [one for one in failures if not isinstance(one, Unreachable)]
                raise refused[-1] if refused else ClipError(
                    f"Connection timeout: nothing answers{self._way_out(addresses)} ({failures[-1]})")  # fmt: skip
            return video, sound.result() if sound else Sound()

    def _doubt_404(self, kind: str, video: Stream) -> bool:
        """What answers 404 is no gap where it is too new, or where the cloud has it; are there 404s to ask anew?"""
        presence, step_sec = self.run.directory.presence(self.clip.camera.uuid, audio=False), video.track.segment_sec
        found = [index for index, reason in video.missing.items() if reason == "not_found"]
        for index in found:
            start, end = (self.clip.fetch_start_sec + at * step_sec for at in (index, index + 1))
            if end > self.settings.now - CLOUD_LAG_SEC:
                video.missing[index] = "not_yet"
            elif kind == "lan" and presence and covered(presence["cloud"], start, end):
                video.missing[index] = "unavailable"
                video.failure = "the camera answers 404 where the cloud has footage"
        return presence is not None and bool(found)

    def _way_out(self, addresses: Addresses) -> str:
        if self.settings.usewan or not addresses.wan:
            return " over WAN (--usewan)" if self.settings.usewan else " on the LAN; there is no address for --usewan"
        return " on the LAN; try --usewan" if self.settings.lan_only else ", neither on the LAN nor over WAN (--usewan)"

    def _workers(self, kind: str) -> int:
        return self.settings.segment_workers or (WAN_REQUESTS if kind == "wan" else LAN_REQUESTS)

    def _fetch_sound(self, kind: str, video: Stream | None) -> Sound:
        """The audio of the paired gateway, or of a camera that carries its own; failures never reach the video."""
        gateway = self.clip.camera.gateway if self.clip.audio else None
        inside = video.inside if video else None
        if self.settings.no_audio or not (gateway or inside):
            return Sound()
        sound = Sound("failed", gateway.uuid if gateway else None)
        try:
            if gateway and not gateway.uuid:
                sound.detail = "the list of audio gateways could not be had"
            elif gateway:
                lan = ["lan"] if kind == "lan" and gateway.online else []
                self._fetch_gateway(sound, gateway, lan if self.settings.lan_only else [*lan, "wan"])
            elif inside and inside.init_url:
                init = self.run.media.fetch(kind, inside.init_url, segment_check(inside, init=True))
                part = self._open_sound_part()
                part.begin(kind, init, inside)
                self._download_sound(sound, Stream(kind, inside, part, self._reasons(kind, inside)))
            else:
                sound.detail = "the MPD names no init segment for the audio"
        except (TransferError, MediaRefused, NotFound, ClipError, ApiError, Busy, mpd_info.MpdError) as problem:
            sound.detail = str(problem)
        return sound

    def _fetch_gateway(self, sound: Sound, gateway: Gateway, kinds: Sequence[str]) -> None:
        missing = self._reasons("gateway")
        if len(missing) == self.clip.segments and not self.run.part_path(self.clip, sound=True).exists():
            sound.status = "not_recorded"
            return
        part = self._open_sound_part()
        addresses = self.run.directory.addresses(gateway.uuid, self.clip.camera, audio=True)
        for kind in kinds:
            try:
                stream = self._open(kind, addresses, part, gateway.uuid)
            except (ClipError, Unreachable) as problem:
                sound.detail = sound.detail or str(problem)
                continue
            stream.missing = dict(missing)
            self._download_sound(sound, stream)
            if sound.status != "failed":
                return

    def _open_sound_part(self) -> Part:
        with self.opening:
            if self.is_closed:
                raise Stopped("nobody waits for the sound any more")
            if not self.sound_part:
                self.sound_part = Part(self.run.part_path(self.clip, sound=True))
                self.sound_part.note_try(None)
            return self.sound_part

    def _download_sound(self, sound: Sound, stream: Stream) -> None:
        download(self.run.context, self.run.media, stream, max(1, self._workers(stream.kind) // 2), lambda _: None)
        have, short = stream.part.have(), stream.unavailable()
        if not have and not short:
            sound.status, sound.detail = "not_recorded", ""
        elif have and (self._given_up(stream.part) or not short):
            sound.status, sound.stream = "ok", stream
            lacking = stream.track.segment_count() - len(have)
            sound.detail = f"{lacking} of {lacking + len(have)} segments of the sound missing" if lacking else ""
        else:
            sound.detail = (f"{len(short)} of {stream.track.segment_count()} segments missing, "
                            f"{stream.trouble or stream.failure}")  # fmt: skip

    def _check_space(self, video: Stream) -> None:
        """Refuse a clip of which part and final file cannot fit: better here than at the last segment."""
        have, part = len(video.part.have()), video.part
        planning = UHD_BYTES_PER_SEC if video.track.width >= UHD_WIDTH else HD_BYTES_PER_SEC
        if have:
            segment_bytes = (part.end - part.init_bytes) / have
        else:  # as in the check before the run
            rates = self.run.ledger.bytes_per_sec()
            segment_bytes = rates.get(self.clip.key[:2], planning) * video.track.segment_sec
        needed = 2 * segment_bytes * (video.track.segment_count() - len(video.missing)) - part.end
        free = disk_free(self.settings.output_dir)
        if needed > free and not self.settings.ignore_space:
            raise ClipError(f"only {size_text(free)} free, but about {size_text(needed)} needed (--ignore_space)")

    # Publish

    def _add_audio(self, done: Done, sidecar: Mapping[str, Any]) -> Outcome:
        """A clip that was kept without its audio: fetch that, and put it beside the video that is there."""
        clip, file = self.clip, self.settings.output_dir / done.file
        start_ms, held = clip.fetch_start_sec * 1000, sidecar.get("segments") or {}
        step_ms, missing = int(held.get("length_ms", SEGMENT_SEC * 1000)), set(held.get("missing", ()))
        reasons = {index: gap["reason"] for gap in sidecar.get("gaps", ()) for index in missing
                   if gap["start_ms"] <= start_ms + index * step_ms < gap["end_ms"]}  # fmt: skip
        expected = int(held.get("expected", clip.segments))
        have = [index for index in range(expected) if index not in missing]
        contents = Contents(str(sidecar.get("source", "unknown")), step_ms / 1000, expected, have, reasons)
        sound = self._fetch_sound(self._kinds()[0], None)
        if sound.status == "failed":
            return Outcome(clip, "done", f"still no audio: {sound.detail}", file, done.size_bytes, "failed")
        return self._make(file, contents, sound)

    def _make(self, pictures: Path, contents: Contents, sound: Sound) -> Outcome:
        """Mux, check, sync, rename; then the sidecar, the record, and only then the parts go."""
        clip, settings, have = self.clip, self.settings, contents.have
        heard = []
        if sound.stream:
            heard = [i for i in sound.stream.part.have(sound.stream.track.segment_count()) if i >= have[0]]
        if sound.status == "ok" and not heard:
            sound = Sound("not_recorded", sound.gateway)
        made = settings.output_dir / f"{clip.file_name(False)}.mux.part"
        created_sec = clip.fetch_start_sec + have[0] * contents.segment_sec
        voice = sound.stream.part.in_order(heard) if sound.stream and heard else None
        shift_sec = (heard[0] - have[0]) * contents.segment_sec + settings.audio_offset_sec if heard else 0.0
        with self.run.muxes:
            mux(self.run.ffmpeg, pictures, voice, shift_sec, settings.audio_codec, created_sec, made, self.run.context)
        planned_sec, length_sec = (have[-1] + 1 - have[0]) * contents.segment_sec, mp4_duration_sec(made)
        if length_sec is None or abs(length_sec - planned_sec) > DURATION_SLACK_SEC:
            made.unlink(missing_ok=True)
            raise ClipError(f"the finished file lasts {length_sec or 0:.1f} s instead of {planned_sec:.1f} s; "
                            f"kept as {self.part.path.name}")  # fmt: skip
        with background("sync") as beside:
            synced = beside.submit(sync_file, made)
            sha256 = sha256_of(made)
            synced.result()
        return self._finish(made, sha256, contents, sound)

    def _finish(self, made: Path, sha256: str, contents: Contents, sound: Sound) -> Outcome:
        clip, settings, ledger = self.clip, self.settings, self.run.ledger
        partial = bool((UNAVAILABLE | {"expired"}) & set(contents.missing.values()))
        final = settings.output_dir / clip.file_name(sound.status == "ok", partial)
        before, heard = ledger.find(clip), sound.stream.part.have() if sound.stream else []
        clash, holds_more = "", bool(before and before.file and self._lost_since(before, contents, heard))
        if before and holds_more:
            clash = f"{before.file} holds footage that this one lacks; ask for the rest, or move it and --overwrite"
            holds_more = (settings.output_dir / before.file).exists()
        elif not final.exists() or (before and before.file == final.name):
            pass
        elif (facts := sidecar_facts(final, final.stat().st_size)) and facts[0] <= clip.end_sec * 1000:
            pass  # a shorter one of ours, which stayed because it has sound
        elif sha256_of(final) != sha256:
            clash = f"{final.name} has other content; move it away, or use --overwrite"
        if clash and (holds_more or not settings.overwrite):
            made.unlink()
            return Outcome(clip, "conflict", clash)
        made.replace(final)
        fsync_folder(final.parent)
        size_bytes = final.stat().st_size
        about = {"status": sound.status, "gateway": sound.gateway, "offset_ms": round(settings.audio_offset_sec * 1000),
                 "missing": sorted(set(range(contents.expected)) - set(heard)) if heard else []}  # fmt: skip
        write_json(final.with_suffix(".json"), sidecar_of(clip, final, sha256, contents, about, not partial))
        # Our own earlier files of the same footage, which hold no more than this one, go before the record stands.
        forms = {clip.file_name(audio, old) for audio in {False, sound.status == "ok"} for old in {True, partial}}
        if before and before.file and not clash and (sound.status == "ok" or before.audio != "ok"):
            forms.add(before.file)  # under the name that the camera or the alert had then
        for name in forms - {final.name}:
            final.with_name(name).unlink(missing_ok=True)
            final.with_name(name).with_suffix(".json").unlink(missing_ok=True)
        may_grow = "not_recorded" in contents.missing.values() and self._may_deliver()
        ledger.add(clip, "partial" if partial else "done", final.name, size_bytes, sha256, sound.status,
                   may_grow=may_grow)  # fmt: skip
        self.part.discard()
        if self.sound_part and sound.status != "failed":
            self.sound_part.discard()
        detail = [("no audio: " if sound.status == "failed" else "") + sound.detail] if sound.detail else []
        if contents.missing:
            detail.append(f"{duration_text(len(contents.missing) * contents.segment_sec)} without footage")
        return Outcome(clip, "partial" if partial else "done", "; ".join(detail), final, size_bytes, sound.status)

    def _lost_since(self, before: Done, contents: Contents, heard: Sequence[int]) -> bool:
        """Does the file of an earlier run hold segments that this one lacks? One without sound takes no sound away."""
        sidecar = read_json((self.settings.output_dir / before.file).with_suffix(".json")) or {}
        held, silent = sidecar.get("segments") or {}, (sidecar.get("audio") or {}).get("missing")
        whole = math.ceil((before.end_ms / 1000 - self.clip.fetch_start_sec) / SEGMENT_SEC)
        expected = set(range(int(held.get("expected", whole))))
        could_hear = bool(heard) and before.audio == "ok" and silent is not None
        is_quieter = could_hear and not (expected - set(silent or ())).issubset(heard)
        return is_quieter or not (expected - set(held.get("missing", ()))).issubset(contents.have)


@contextmanager
def background(name: str) -> Iterator[ThreadPoolExecutor]:
    """One thread beside this one; whatever happens here, nobody waits for it."""
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def sidecar_of(clip: Clip, file: Path, sha256: str, contents: Contents, audio: Mapping[str, Any],
               complete: bool) -> dict[str, Any]:  # fmt: skip
    """The sidecar of a finished clip, schema 1; times in epoch milliseconds, segments by their index in the plan."""
    start_ms, step_ms = clip.fetch_start_sec * 1000, round(contents.segment_sec * 1000)
    camera, have = clip.camera, contents.have
    gaps = [{"start_ms": start_ms + first * step_ms, "end_ms": start_ms + last * step_ms, "reason": reason}
            for reason in set(contents.missing.values())
            for first, last in runs_of(sorted(i for i, why in contents.missing.items() if why == reason))]  # fmt: skip
    return {
        "schema": 1,
        "camera": {"uuid": camera.uuid, "facet": camera.facet or "v0", "name": camera.name,
                   "location": camera.location},
        "kind": "alert" if clip.alert else "manual",
        "requested": {"start_ms": clip.start_sec * 1000, "end_ms": clip.end_sec * 1000},
        "obtained": {"start_ms": start_ms + have[0] * step_ms, "end_ms": start_ms + (have[-1] + 1) * step_ms},
        "source": contents.source,
        "segments": {"length_ms": step_ms, "expected": contents.expected, "received": len(have),
                     "missing": sorted(contents.missing)},
        "gaps": sorted(gaps, key=lambda gap: int(str(gap["start_ms"]))),
        "audio": dict(audio), "alert": asdict(clip.alert) if clip.alert else None, "complete": complete,
        "file": file.name, "bytes": file.stat().st_size, "sha256": sha256, "created_at": clock_text(time.time()),
    }  # fmt: skip


# --- catch up ----------------------------------------------------------------------------------------------------


def query_words(settings: Settings) -> str:
    """What makes two runs the same query, in words: for the state file, the lock, and the subject of mails."""
    words = ["alerts" if settings.alerts else "manual", *(f"loc={one}" for one in sorted(settings.locations)),
             *(f"cam={one}" for one in sorted(settings.cameras))]  # fmt: skip
    return " ".join([*words, f"org={settings.org_uuid}"] if settings.org_uuid else words)


class CatchUp:
    """How far one query has come: `.copy_footage/catch_up/HASH.json`, replaced whole at the plan and at the end.

    `pending` holds all that was planned and is not settled: it is written before the marks move on, so a crash at any
    instant leaves no hole, and what a crash finished is in the ledger, so nothing is fetched twice.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings, self.words = settings, query_words(settings)
        identity = f"{self.words} {settings.api_url} {settings.alert_buffer_sec if settings.alerts else ''}"
        self.path = folder / "catch_up" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
        self.state: dict[str, Any] = {}
        self.gone: set[str] = set()  # alerts of cameras that are not listed

    def load(self) -> None:
        """Read the state, under the query's lock."""
        found, refusal = read_json(self.path), ""
        shapes = {"marks": dict, "seen": dict, "pending": list, "lost": list}
        if found is None:
            refusal = "cannot be read as state" if self.path.exists() else ""
        elif not all(isinstance(found.get(name), kind) for name, kind in shapes.items()):
            refusal = "is not a state of ours"
        if refusal:
            raise CannotStart(f"{self.path}: {refusal}; move it away to begin anew from --after_time")
        self.state = found or {"schema": 1, "query": self.words, **{name: kind() for name, kind in shapes.items()}}

    def save(self, status: int | None = None) -> None:
        if status is not None:
            self.state |= {"last_run_at": self.settings.now, "status": status}
            if status == Status.DONE:
                self.state["last_good_at"] = self.settings.now
        if not self.settings.dry_run:
            write_json(self.path, self.state)

    def plan_ranges(self, cameras: Sequence[Camera], ledger: Ledger) -> list[Clip]:
        """Every camera from its mark to the newest second that can be there, after what is pending; oldest first.

        Of a retired one that was kept up with, the rest is taken. One that stays away is lost, unless it goes on in
        another query.
        """
        marks, pending, settings = self.state["marks"], self.state["pending"], self.settings
        known = {camera.address: camera for camera in cameras}
        for name in marks.keys() - known.keys():
            if settings.now - marks[name] > settings.give_up_after_sec:
                since = int(marks.pop(name))
                if not ledger.holds(name, since):
                    self.state["lost"].append({"clip": f"{name}_{since}", "state": "camera is gone",
                                               "at": settings.now})  # fmt: skip
        for name, camera in known.items():
            is_over = camera.retired and not settings.cameras
            if is_over and name not in marks:
                continue
            begin, end = int(marks.get(name, settings.start_sec)), newest_end(camera, settings)
            if end > begin:
                pieces = split_range(begin, end, settings.clip_length_sec or LONGEST_SEC)
                pending += [{"camera": name, "start": start, "end": stop, "since": settings.now}
                            for start, stop in pieces]  # fmt: skip
                marks[name] = end
            if is_over:
                del marks[name]
        self.save()
        clips = [clip_of(known[entry["camera"]], entry["start"], entry["end"], settings)
                 for entry in pending if entry["camera"] in known]  # fmt: skip
        return sorted(clips, key=lambda clip: clip.start_sec)

    def alerts_since(self) -> float:
        """From when on alerts are listed: the mark less --lookback, because offline cameras deliver late."""
        begin = self.settings.after_sec or self.settings.now - self.settings.lookback_sec
        mark, now = self.state["marks"].get("alerts"), self.settings.now
        if mark is None:
            return begin
        return float(max(min(mark, now) - self.settings.lookback_sec, self.state.setdefault("begin", begin)))

    def plan_alerts(self, alerts: Sequence[Alert], listed: set[str]) -> list[Alert]:
        """New and changed alerts become pending; returned are the oldest --max_alerts whose window is over.

        Alerts of cameras that are not `listed` come last, and wait: they may be listed again in the next run.
        """
        state, settings = self.state, self.settings
        state.setdefault("begin", self.alerts_since())
        pending = {entry["alert"]["id"]: entry for entry in state["pending"]}
        for alert in alerts:
            mine = {"start_ms": alert.start_ms, "end_ms": alert.end_ms, "finalized": alert.finalized,
                    "devices": list(alert.devices)}  # fmt: skip
            if state["seen"].get(alert.id) != mine:
                since = pending.get(alert.id, {}).get("since", settings.now)
                pending[alert.id] = {"alert": asdict(alert), "since": since}
            state["seen"][alert.id] = mine
            mark = max(state["marks"].get("alerts", 0), alert.start_ms / 1000)
            state["marks"]["alerts"] = min(mark, settings.now)  # a camera's clock may be wrong
        oldest_ms = (state["marks"].get("alerts", settings.now) - settings.lookback_sec - 86400) * 1000
        state["seen"] = {one: seen for one, seen in state["seen"].items() if seen["start_ms"] >= oldest_ms}
        state["pending"] = sorted(pending.values(), key=lambda entry: entry["alert"]["start_ms"])
        self.save()
        waiting = [Alert(**{**entry["alert"], "devices": tuple(entry["alert"]["devices"])})
                   for entry in state["pending"]]  # fmt: skip
        ripe = [alert for alert in waiting if alert_window(alert, settings)[1] <= newest_end(None, settings)]
        self.gone = {alert.id for alert in ripe if alert.devices and alert.device_type in ("", "CAMERA")
                     and not listed.intersection(alert.devices)}  # fmt: skip
        ripe.sort(key=lambda alert: alert.id in self.gone)
        if len(ripe) > settings.max_alerts:
            log.warning("%s more alerts wait for the next run (--max_alerts)", len(ripe) - settings.max_alerts)
        return ripe[: settings.max_alerts]

    def settle(self, outcomes: Sequence[Outcome], taken: Sequence[Alert]) -> None:
        """Drop from `pending` what is settled, note why the rest is not, and what is lost for good."""
        settings, open_reasons = self.settings, dict[Any, str]()
        tried: set[Any] = {alert.id for alert in taken}
        for outcome in outcomes:
            clip = outcome.clip
            key = clip.alert.id if clip.alert else (clip.camera.address, clip.start_sec)
            tried.add(key)
            if not OUTCOMES[outcome.state][1] or outcome.lacks_audio:
                open_reasons[key] = mask(outcome.detail) or outcome.state
            elif outcome.state in ("lost", "partial"):
                self.state["lost"].append({"clip": clip.stem, "state": outcome.state, "at": settings.now})
        kept = []
        for entry in self.state["pending"]:
            key = entry["alert"]["id"] if "alert" in entry else (entry["camera"], entry["start"])
            if key in open_reasons:
                kept.append(entry | {"reason": open_reasons[key]})
            elif key in self.gone or key not in tried:
                is_gone = key in self.gone or "camera" in entry
                if is_gone and settings.now - entry["since"] > settings.give_up_after_sec:
                    name = f"{entry['camera']}_{entry['start']}" if "camera" in entry else str(key)
                    self.state["lost"].append({"clip": name, "state": "camera is gone", "at": settings.now})
                else:
                    kept.append(entry)
        self.state["pending"] = kept


# --- reports -----------------------------------------------------------------------------------------------------


@contextmanager
def counted(clip: Clip, count: int, say: Callable[[dict[str, Any]], None],
            every_sec: float = 0) -> Iterator[Callable[[int], None]]:  # fmt: skip
    """Yield what is told the bytes of each segment; `say` hears of it, at most so often, and of the end."""
    seen, told_at = [0, 0], time.monotonic()
    event = {"clip": clip.stem, "name": clip.camera.name, "start": clip.start_sec, "count": count, "over": False}

    def tell(size_bytes: int) -> None:
        nonlocal told_at
        seen[0], seen[1] = seen[0] + 1, seen[1] + size_bytes
        if time.monotonic() - told_at >= every_sec:
            told_at = time.monotonic()
            say(event | {"segments": list(seen)})

    say(event | {"segments": [0, 0]})
    try:
        yield tell
    finally:
        say(event | {"over": True})


class Progress:
    """A bar per clip where stderr is a terminal; a line per finished clip, and its result on stdout, everywhere."""

    def __init__(self, settings: Settings, total: int) -> None:
        self.settings, self.total, self.finished = settings, total, 0
        self.bars: Any = None
        self.bar_of: dict[str, Any] = {}  # stem of a clip -> its bar

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self.settings.quiet:
            self.bars = progress_bars()
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    def clip(self, clip: Clip, count: int) -> AbstractContextManager[Callable[[int], None]]:
        return counted(clip, count, self.hear)

    def hear(self, said: Mapping[str, Any]) -> None:
        """The progress of a clip, here or on a worker of the cluster; its total is estimated from what came so far."""
        if not self.bars:
            return
        if said["over"]:
            task = self.bar_of.pop(said["clip"], None)
            if task is not None:
                self.bars.remove_task(task)
            return
        if said["clip"] not in self.bar_of:
            title = f"{said['name'][:24]} {clock_text(said['start'])[5:16]}"
            self.bar_of[said["clip"]] = self.bars.add_task(title, total=None)
        segments, size_bytes = said["segments"]
        total = size_bytes / segments * said["count"] if segments else None
        self.bars.update(self.bar_of[said["clip"]], completed=size_bytes, total=total)

    def report(self, outcome: Outcome) -> None:
        self.finished += 1
        clip, state, file = outcome.clip, outcome.state, outcome.file
        levels = {"already": logging.DEBUG, "lost": logging.WARNING, "partial": logging.WARNING}
        level = logging.ERROR if outcome.fails_run else levels.get(state, logging.INFO)
        size = size_text(outcome.size_bytes)
        words = {"done": f"saved {size}", "partial": f"published as it is, {size}", "already": "already there",
                 "elsewhere": "in progress elsewhere"}  # fmt: skip
        said = words.get(state, state.replace("_", " ")) + (f" ({outcome.detail})" if outcome.detail else "")
        log.log(level, "[%s/%s] %s: %s", self.finished, self.total, file.name if file else clip.stem, said)
        if self.settings.json:
            print(json.dumps(row_of(outcome), ensure_ascii=False), flush=True)
        elif file and state in ("done", "partial") and not self.settings.quiet:
            print(file, flush=True)


def row_of(outcome: Outcome) -> dict[str, Any]:
    """A line of --json; `start` and `end` are epoch seconds as requested."""
    clip, file = outcome.clip, outcome.file
    return {"clip": clip.stem, "camera": clip.camera.address, "name": clip.camera.name, "start": clip.start_sec,
            "end": clip.end_sec, "alert": clip.alert.id if clip.alert else None, "state": outcome.state,
            "detail": mask(outcome.detail), "file": str(file) if file else None, "bytes": outcome.size_bytes,
            "audio": outcome.audio}  # fmt: skip


def summary_of(outcomes: Sequence[Outcome], notes: Mapping[str, int]) -> dict[str, Any]:
    states = [outcome.state for outcome in outcomes]
    size_bytes = sum(outcome.size_bytes for outcome in outcomes if outcome.state in ("done", "partial"))
    return {"clips": len(outcomes), **{state: states.count(state) for state in OUTCOMES if state in states},
            "audio_failed": sum(outcome.lacks_audio for outcome in outcomes), "bytes": size_bytes, **notes}  # fmt: skip


def summary_text(summary: Mapping[str, Any]) -> str:
    parts = [f"{count} {state.replace('_', ' ')}" for state, count in summary.items()
             if state not in ("clips", "bytes") and count]  # fmt: skip
    clips = count_text(summary["clips"], "clip")
    return f"{clips}: {', '.join(parts) or 'nothing to do'}, {size_text(summary['bytes'])}"


def how_to_go_on(settings: Settings) -> str:
    """Which flag makes the same clips again: a start such as "1 hour ago" is another one by then."""
    is_range = not (settings.alerts or settings.catch_up or settings.filling)
    return f"; to go on, say --start_time {settings.start_sec}" if is_range else ""


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool, **summary: Any) -> None:
    """Results on stdout: JSON Lines, or columns as wide as their widest value."""
    if as_json:
        for row in (*rows, {"summary": {"rows": len(rows), **summary}}):
            print(json.dumps(row, ensure_ascii=False))
    elif rows:
        table = [list(rows[0])] + [["" if value is None else str(value) for value in row.values()] for row in rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            print("  ".join(map(str.ljust, line, widths)).rstrip())


def estimate_bytes(clips: Sequence[Clip], ledger: Ledger) -> list[int]:
    rates = ledger.bytes_per_sec()
    known = (rates.get((clip.camera.uuid, clip.camera.facet), HD_BYTES_PER_SEC) + AUDIO_BYTES_PER_SEC * clip.audio
             for clip in clips)  # fmt: skip
    return [round(rate * (clip.end_sec - clip.start_sec)) for rate, clip in zip(known, clips, strict=True)]


def disk_free(folder: Path) -> int:
    """Free bytes where `folder` lies, or will lie."""
    return shutil.disk_usage(next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())).free


def check_space(clips: Sequence[Clip], settings: Settings, ledger: Ledger) -> None:
    """CannotStart when parts and final files cannot fit, by what the cameras took before, else by planning figures."""
    sizes = sorted(estimate_bytes(clips, ledger), reverse=True)
    needed, free = sum(sizes) + sum(sizes[: settings.workers]), disk_free(settings.output_dir)
    if needed > free and not settings.ignore_space:
        raise CannotStart(f"{settings.output_dir}: {size_text(free)} free, but the clips need about "
                          f"{size_text(needed)}; ask for less, make room, or use --ignore_space")  # fmt: skip


def show_plan(clips: Sequence[Clip], settings: Settings, ledger: Ledger) -> None:
    """What a run would fetch: a table, or lines of JSON as those of a run with the state `planned`."""
    sizes = estimate_bytes(clips, ledger)
    rows: list[dict[str, Any]]
    if settings.json:
        rows = [row_of(Outcome(clip, "planned", "", settings.output_dir / clip.file_name(clip.audio)))
                | {"estimate_bytes": size} for clip, size in zip(clips, sizes, strict=True)]  # fmt: skip
    else:
        rows = [{"clip": clip.file_name(clip.audio), "camera": clip.camera.name,
                 "start": clock_text(clip.start_sec, settings.zone),
                 "duration": duration_text(clip.end_sec - clip.start_sec), "estimate": size_text(size)}
                for clip, size in zip(clips, sizes, strict=True)]  # fmt: skip
    print_rows(rows, settings.json, planned=len(clips), estimate_bytes=sum(sizes))
    log.info("dry run: %s, about %s, nothing was downloaded", count_text(len(clips), "clip"), size_text(sum(sizes)))


def part_sizes(folder: Path) -> Iterator[int]:
    """Bytes of each unfinished clip in `folder`."""
    for path in folder.glob("*.mp4.part"):
        with suppress(FileNotFoundError):  # finished by another run meanwhile
            yield path.stat().st_size


def show_status(settings: Settings) -> int:
    """--status: each catch-up query of this folder, and the space; PARTIAL beyond the limits of config.yaml."""
    rows, bad, now = [], [], settings.now
    for path in sorted((settings.output_dir / STATE_FOLDER / "catch_up").glob("*.json")):
        state = read_json(path) or {}
        query, good, pending = state.get("query", path.name), state.get("last_good_at"), state.get("pending", [])
        lost = [one["clip"] for one in state.get("lost", []) if now - one["at"] < settings.give_up_after_sec]
        oldest_sec = round(now - min(entry["since"] for entry in pending)) if pending else None
        oldest = {"oldest_pending_sec": oldest_sec} if settings.json else {
            "oldest_pending": duration_text(oldest_sec) if oldest_sec else ""}  # fmt: skip
        never = None if settings.json else "never"
        rows.append({"query": query, "last_good_run": clock_text(good) if good else never, "pending": len(pending),
                     **oldest, "lost": len(lost), "status": state.get("status")})  # fmt: skip
        if not good or now - good > settings.status_max_age_sec:
            since = f"no good run for {duration_text(now - good)}" if good else "never a good run"
            bad.append(f"{query}: {since} (no longer wanted? remove {path})")
        if len(pending) > settings.status_max_pending:
            bad.append(f"{query}: {len(pending)} pending")
        if len(lost) > settings.status_max_lost:
            bad.append(f"{query}: {len(lost)} lost: {', '.join(lost[:3])}")
    free = disk_free(settings.output_dir)
    if free < settings.status_min_free_bytes:
        bad.append(f"{settings.output_dir}: only {size_text(free)} free")
    parts = list(part_sizes(settings.output_dir))
    print_rows(rows, settings.json, problems=len(bad), free_bytes=free, parts=len(parts), part_bytes=sum(parts))
    for sentence in bad:
        log.error("%s", sentence)
    unfinished = f", {count_text(len(parts), 'part')} of {size_text(sum(parts))}" if parts else ""
    log.info("catch-up queries: %s; %s free%s in %s", len(rows), size_text(free), unfinished, settings.output_dir)
    return Status.PARTIAL if bad else Status.DONE


# --- a run -------------------------------------------------------------------------------------------------------


def list_in(answer: Mapping[str, Any], name: str) -> list[Any]:
    """A list of an answer, which may be null; ApiError when it is something else."""
    found = answer.get(name) or []
    if not isinstance(found, list):
        raise ApiError(f"the API answered with {name} that is not a list")
    return found


@dataclass(frozen=True)
class World:
    """What the API lists: all cameras, those that the filters leave, and locations."""

    cameras: list[Camera]
    chosen: list[Camera]
    places: list[Place]
    location_filter: list[str]


def load_world(api: Api) -> World:
    """Cameras, gateways and locations, asked for side by side. CannotStart when the cameras cannot be had."""
    settings = api.settings
    with ThreadPoolExecutor(3) as pool:
        # what is named, raised an alert, or was kept up with may have been retired since; its cloud footage is kept
        is_known = settings.cameras or settings.alerts or settings.filling or settings.catch_up
        retired = {"includeMummified": True} if is_known else {}
        cameras = pool.submit(api.call, "camera/getMinimalCameraStateList", **retired)
        gateways = pool.submit(api.call, "audiogateway/getMinimalAudioGatewayStateList")
        locations = pool.submit(api.call, "location/getLocations", subLocationsIncluded=True)
    try:
        states = list_in(cameras.result(), "cameraStates")
    except ApiRefused as problem:
        raise CannotStart(f"{problem}: it is wrong, expired, of another region (--api_url us or eu), or lacks the "
                          "permission") from problem  # fmt: skip
    except ApiError as problem:
        raise CannotStart(f"no camera list: {problem}") from problem
    sites: list[Any] = []
    try:
        sites = list_in(locations.result(), "locations")
    except ApiError as problem:
        if settings.locations:
            raise CannotStart(f"no list of locations to filter by: {problem}") from problem
        log.warning("going on without names of locations: %s", problem)
    paired: list[Any] | None = None
    try:
        paired = list_in(gateways.result(), "audioGatewayStates")
    except ApiError as problem:
        if not settings.no_audio:
            log.warning("going on without audio: %s", problem)
    places = list(flatten_locations(sites))
    known = read_cameras(states, paired, {place.uuid: place.name for place in places})
    chosen, below = choose_cameras(known, places, settings)
    return World(known, chosen, places, below)


def fetch_alerts(api: Api, world: World, after_sec: float | None, most: int | None,
                 notes: dict[str, int]) -> list[Alert]:  # fmt: skip
    """Alerts newest first, as values; what has no time is counted and passed over. CannotStart when the API fails."""
    devices = sorted({camera.uuid for camera in world.chosen}) if api.settings.cameras else []
    try:
        entries, more, at_least = list_alerts(api, devices, world.location_filter, after_sec, most)
    except ApiError as problem:
        raise CannotStart(f"Failed to retrieve policy alerts: {problem}") from problem
    alerts = []
    for entry in entries:
        if alert := read_alert(entry):
            alerts.append(alert)
        else:
            log.warning("Alert missing timestamp: %s skipped", safe_word(alert_identity(entry), ID_CHARACTERS))
            notes["alerts_without_time"] = notes.get("alerts_without_time", 0) + 1
    if more:
        least = "at least " if at_least else ""
        log.warning("%s%s more not taken: only the newest %s are (--max_alerts)", least, more, most)
        notes["alerts_not_taken"] = more
    if not alerts:
        log.info("No policy alerts found")
    return alerts


def cameras_of(alert: Alert, cameras: Iterable[Camera]) -> list[Camera]:
    return [camera for device in alert.devices for camera in cameras if camera.uuid == device]


def clips_of_alerts(alerts: Sequence[Alert], world: World, settings: Settings, notes: dict[str, int]) -> list[Clip]:
    """One clip for each video channel of each camera that an alert points to; none for other devices."""
    known = {camera.uuid for camera in world.cameras}
    clips = []
    for alert in alerts:
        start, end = alert_window(alert, settings)
        cameras = cameras_of(alert, world.chosen)
        if not cameras and not settings.cameras:  # an alert of this location, by a camera that has moved to another
            cameras = cameras_of(alert, world.cameras)
        ends = [min(end, newest_end(camera, settings)) for camera in cameras]
        clips += [clip_of(one, start, last, settings, alert) for one, last in zip(cameras, ends, strict=True)
                  if last > start]  # fmt: skip
        why, what = "", alert.device_type or "what raised it"
        if not known.intersection(alert.devices):
            why = "its camera is not listed" if what == "CAMERA" else f"{what} is no camera"
            note = "alerts_of_no_camera"
        elif min(ends, default=end) <= start:
            why, note = "its footage is not there yet", "alerts_not_yet"
        if why:
            words = safe_word(alert.id, ID_CHARACTERS), safe_word(alert.kind, TYPE_CHARACTERS)
            log.info("alert %s (%s): skipped, %s", *words, why)
            notes[note] = notes.get(note, 0) + 1
    return clips


def plan_ranges(world: World, settings: Settings) -> list[Clip]:
    """Manual mode: the range of every chosen camera, cut into clips, and not beyond what can be there by now."""
    ends = {camera: min(settings.end_sec, newest_end(camera, settings)) for camera in world.chosen}
    latest = min(ends.values(), default=settings.end_sec)
    if latest < settings.end_sec:
        log.info("up to %s: later footage is not there yet (--lag)", clock_text(latest, settings.zone))
    clips = [clip_of(camera, start, stop, settings) for camera, end in ends.items()
             for start, stop in split_range(settings.start_sec, end, settings.clip_length_sec)]  # fmt: skip
    return sorted(clips, key=lambda clip: clip.start_sec)  # cameras take turns


def plan_gaps(world: World, settings: Settings) -> list[Clip]:
    """--fill_gaps: each gap as far as its footage can be there by now, cut into clips; oldest first."""
    clips = []
    for uuid, start, end in settings.gaps:
        device, facet = strip_facet(uuid), uuid.partition(".")[2] or "v0"
        found = [one for one in world.chosen if (one.uuid, one.facet or "v0") == (device, facet)]
        if not found and device not in {one.uuid for one in world.chosen}:
            log.warning("%s: gap at %s not filled, there is no such camera%s", uuid, clock_text(start, settings.zone),
                        " left by the filters" if settings.cameras or settings.locations else "")  # fmt: skip
        for camera in found or [one for one in world.chosen if one.uuid == device][:1]:
            last = min(end, newest_end(camera, settings))
            clips += [clip_of(camera, begin, stop, settings)
                      for begin, stop in split_range(start, last, settings.clip_length_sec)]  # fmt: skip
    return sorted(clips, key=lambda clip: clip.start_sec)


def copy_all(copier: Copier, clips: Sequence[Clip], joined: Cluster | None = None) -> list[Outcome]:
    """Every clip, several side by side, here or on a cluster. A signal stops all within two seconds; parts are kept."""
    outcomes: list[Outcome] = []
    remote = ClusterCopier(copier, joined) if joined else None
    pool = ThreadPoolExecutor(2 * copier.settings.workers, thread_name_prefix="clip")  # as many download, others finish
    clip_of_future: dict[Future[Outcome], Clip] = {}
    finished = SimpleQueue[Future[Outcome]]()
    try:
        clip_of_future = {remote.submit(clip) if remote else pool.submit(copier.copy, clip): clip for clip in clips}
        for future in clip_of_future:
            future.add_done_callback(finished.put)
        while len(outcomes) < len(clips):
            try:
                future = finished.get(timeout=LOOK_SEC)  # where a wait without end cannot be broken off (Windows)
            except Empty:
                continue
            outcome = outcome_of(future, clip_of_future[future])
            file = outcome.file and copier.settings.output_dir / outcome.file.name  # as it was asked for
            outcomes.append(replace(outcome, file=file))
            copier.progress.report(outcomes[-1])
    except (KeyboardInterrupt, Terminated):
        copier.context.end("stopped by a signal")
        log.warning("stopped: %s of %s clips are finished, parts are kept for the next run%s",
                    len(outcomes), len(clips), how_to_go_on(copier.settings))  # fmt: skip
        if joined:
            joined.sign.unlink(missing_ok=True)  # what makes the workers stop
        pool.shutdown(wait=False, cancel_futures=True)
        wait_for(clip_of_future, timeout=STOP_GRACE_SEC)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return outcomes


def refuse_future(api: Api, end_sec: float) -> None:
    """CannotStart where our clock is ahead, and what is still to come would be taken for never recorded."""
    if api.ahead_sec > CLOCK_AHEAD_SEC and end_sec > api.settings.now - api.ahead_sec:
        raise CannotStart(f"the clock of this host is {duration_text(api.ahead_sec)} ahead of the API's: what is still "
                          "to come would be taken for never recorded; set it, and keep it with NTP")  # fmt: skip


def work(settings: Settings) -> tuple[int, str]:
    """Plan, act, report: (status, report for notifications)."""
    api = Api(settings)
    state_folder = settings.output_dir / STATE_FOLDER
    ledger = Ledger(state_folder)
    ledger.refresh()
    world = load_world(api)
    if settings.catch_up:
        refuse_future(api, math.inf)
    notes: dict[str, int] = {}
    catch_up = CatchUp(state_folder, settings) if settings.catch_up else None
    taken: list[Alert] = []
    if catch_up:
        catch_up.load()
    if settings.alerts:
        after_sec = catch_up.alerts_since() if catch_up else settings.after_sec
        taken = fetch_alerts(api, world, after_sec, None if catch_up else settings.max_alerts, notes)
        taken = catch_up.plan_alerts(taken, {camera.uuid for camera in world.cameras}) if catch_up else taken
        clips = clips_of_alerts(taken, world, settings, notes)
    else:
        plan = plan_gaps if settings.filling else plan_ranges
        clips = catch_up.plan_ranges(world.chosen, ledger) if catch_up else plan(world, settings)
    refuse_future(api, max((clip.end_sec for clip in clips), default=0))
    copier = Copier(api, ledger, Progress(settings, len(clips)))
    outcomes, todo = sort_out(copier, clips)
    if settings.dry_run:
        show_plan(todo, settings, ledger)
        return Status.PARTIAL if any(outcome.fails_run for outcome in outcomes) else Status.DONE, ""
    if todo:
        outcomes += act(copier, todo)
    summary = summary_of(outcomes, notes)
    failed = [outcome for outcome in outcomes if outcome.fails_run]
    status = Status.PARTIAL if failed else Status.DONE
    if catch_up:
        catch_up.settle(outcomes, taken)
        catch_up.save(status)
    if settings.json:
        print(json.dumps({"summary": summary}))
    more = how_to_go_on(settings) if failed else ""
    log.log(logging.ERROR if failed else logging.INFO, "%s%s", summary_text(summary), more)
    lines = [f"{outcome.clip.stem}: {outcome.state} {outcome.detail}" for outcome in failed]
    return status, "\n".join([summary_text(summary), "", *lines])


@dataclass(frozen=True)
class RemoteJob:
    """A clip for a worker of the cluster. What its repr shows may stand in the cluster's dashboard and logs."""

    stem: str
    sign: Path
    settings: Settings = field(repr=False)
    clip: Clip = field(repr=False)
    addresses: dict[str, Addresses] = field(repr=False)
    ranges: dict[str, tuple[int, int]] = field(repr=False)


class RemoteVoice(logging.Handler):
    """On a worker: log lines, masked, and the progress of clips go to whoever asked for the run, as Dask events."""

    def __init__(self, topic: str) -> None:
        from distributed import get_worker

        super().__init__()
        self.topic, self.worker = topic, get_worker()
        self.setFormatter(MaskingFormatter("%(message)s"))
        self.addFilter(lambda record: record.name in ("copy_footage", "rhombus_logging"))

    def emit(self, record: logging.LogRecord) -> None:
        self.worker.log_event(self.topic, {"level": record.levelno, "message": self.format(record)})

    def clip(self, clip: Clip, count: int) -> AbstractContextManager[Callable[[int], None]]:
        return counted(clip, count, partial(self.worker.log_event, self.topic), REMOTE_TELL_SEC)


@lru_cache(maxsize=4)
def remote_copier(sign: Path, settings: Settings) -> Copier:
    """On a worker: what all clips of one run share in this process; ends when `sign` goes, and hears other workers."""
    voice = RemoteVoice(sign.name)
    root, ours = logging.getLogger(), logging.getLogger("copy_footage")
    root.addHandler(voice)
    ours.setLevel(logging.INFO)
    key = settings.api_key or os.environ.get("RHOMBUS_API_KEY", "")
    hide_secret(key)
    api = Api(replace(settings, api_key=key))
    api.context.quiet_file = sign.with_suffix(".quiet")
    ledger = Ledger(settings.output_dir / STATE_FOLDER)
    copier = Copier(api, ledger, voice)
    copier.ffmpeg = find_ffmpeg("making MP4 files")

    def watch() -> None:
        watch_sign(sign, api.context.end)
        root.removeHandler(voice)

    threading.Thread(target=watch, daemon=True, name="sign").start()
    return copier


def remote_clip(job: RemoteJob) -> Outcome:
    """On a worker: one clip. A clip that this run has finished before its worker died counts as done by it."""
    with REMOTE_LOCK:
        copier = remote_copier(job.sign, job.settings)
    copier.directory.take(job.addresses, job.ranges)
    copier.ledger.refresh()
    outcome, done = copier.copy(job.clip), copier.ledger.find(job.clip)
    if outcome.state == "already" and done:  # act() has looked before: it was not there when the run began
        return replace(outcome, state=done.state, detail="")
    return outcome


class ClusterCopier:
    """In place of Copier.copy in a pool of threads: the same clips, on the workers of a cluster."""

    def __init__(self, copier: Copier, joined: Cluster) -> None:
        self.copier, self.sign = copier, joined.sign
        self.executor = joined.client.get_executor(pure=False, retries=0)
        settings, workers = copier.settings, joined.client.scheduler_info(n_workers=-1)["workers"]
        self.settings = replace(
            settings, output_dir=settings.output_dir.absolute(),
            api_key="" if any(map(is_open_road, workers)) else settings.api_key,
            bwlimit_bytes_per_sec=settings.bwlimit_bytes_per_sec / max(1, len(workers)))  # fmt: skip
        joined.client.subscribe_topic(joined.sign.name, self.hear)

    def submit(self, clip: Clip) -> Future[Outcome]:
        devices = [clip.camera.address, clip.camera.gateway.uuid if clip.camera.gateway else ""]
        known, ranges = self.copier.directory.known(devices)
        job = RemoteJob(clip.stem, self.sign, self.settings, clip, known, ranges)
        future: Future[Outcome] = self.executor.submit(remote_clip, job)
        return future

    def hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        _, said = event
        if "message" in said:
            log.log(said["level"], "%s", said["message"])
        else:
            self.copier.progress.hear(said)


def outcome_of(future: Future[Outcome], clip: Clip) -> Outcome:
    """What became of a clip, also when its worker did not come to say it."""
    try:
        return future.result()
    except (Exception, CancelledError) as problem:  # noqa: BLE001  whatever Dask raises when its machines are lost
        return Outcome(clip, "failed", f"the cluster gave no result ({type(problem).__name__}); a rerun goes on")


def sort_out(copier: Copier, clips: Sequence[Clip]) -> tuple[list[Outcome], list[Clip]]:
    """What is there, already reported, and what is to be copied."""
    outcomes, todo = list[Outcome](), list[Clip]()
    for clip in clips:
        try:
            found = copier.settled(clip)
        except (ClipError, OSError) as problem:
            found = Outcome(clip, "conflict", str(problem))
        if found:
            outcomes.append(found)
            copier.progress.report(found)
        else:  # of a longer clip that lacks its sound, or was made while the camera was away, the whole is looked at
            done = None if copier.settings.overwrite else copier.ledger.find(clip)
            todo.append(replace(clip, end_sec=max(clip.end_sec, done.end_ms // 1000)) if done else clip)
    return outcomes, todo


def act(copier: Copier, todo: Sequence[Clip]) -> list[Outcome]:
    """Check the space, ask for addresses in bulk, and copy."""
    settings = copier.settings
    check_space(todo, settings, copier.ledger)
    copier.ffmpeg = find_ffmpeg("making MP4 files")
    copier.directory.want(todo)
    devices = {clip.camera.address: None for clip in todo}
    devices |= {one.uuid: None for clip in todo if clip.audio and (one := clip.camera.gateway) and one.uuid}
    if len(devices) > 1:
        copier.directory.load_addresses(list(devices))
    with ExitStack() as stack:
        joined = None
        if scheduler := settings.scheduler:
            here = Path(__file__).resolve()
            modules = [here.with_name(name) for name in ("rhombus_logging.py", "rhombus_mpd_info.py")]
            state_folder = settings.output_dir.absolute() / STATE_FOLDER
            joined = stack.enter_context(cluster(scheduler, state_folder, [*modules, here], "RHOMBUS_API_KEY"))
        stack.enter_context(copier.progress)
        return copy_all(copier, todo, joined)


def show_list(api: Api, what: str) -> int:
    """--list: cameras, locations, or alerts within the bounds, as a table or JSON Lines."""
    world, settings = load_world(api), api.settings
    rows: list[dict[str, Any]]
    if what == "cameras":
        rows = [{"uuid": camera.address, "name": camera.name, "location": camera.location,
                 "state": "online" if camera.online else "offline", "hardware": camera.hardware,
                 "audio": camera.gateway.name or camera.gateway.uuid if camera.gateway else ""}
                for camera in world.chosen]  # fmt: skip
    elif what == "locations":
        rows = [{"uuid": place.uuid, "name": place.name, "within": place.chain[1] if len(place.chain) > 1 else "",
                 "tz": place.tz, "cameras": sum(camera.location_uuid == place.uuid for camera in world.cameras)}
                for place in world.places]  # fmt: skip
    else:
        names = {camera.uuid: camera.device_name for camera in world.cameras}
        rows = [{"time": clock_text(alert.start_ms / 1000, settings.zone), "id": alert.id, "type": alert.kind,
                 "seconds": round((alert.end_ms - alert.start_ms) / 1000),
                 "camera": ", ".join(names.get(device, device) for device in alert.devices),
                 "finalized": alert.finalized, **({"devices": alert.devices} if settings.json else {})}
                for alert in fetch_alerts(api, world, settings.after_sec, settings.max_alerts, {})]  # fmt: skip
    print_rows(rows, settings.json)
    return Status.DONE


def show_check(api: Api) -> int:
    """--check: key, region, rights, FFmpeg, space, LAN reach of every camera; PARTIAL when something is amiss."""
    rows: list[dict[str, str]] = []
    world, settings = load_world(api), api.settings

    def note(what: str, result: str, detail: str = "") -> None:
        rows.append({"check": what, "result": result, "detail": mask(detail)})

    note("API key and region", "ok", f"{settings.api_url}, {len(world.cameras)} cameras")
    probes: list[tuple[str, str, dict[str, Any]]] = [
        ("right: session token", "org/generateFederatedSessionToken", {"durationSec": 60}),
        ("right: alerts", "event/getPolicyAlerts", {"maxResults": 1}),
        ("right: audio gateways", "audiogateway/getMinimalAudioGatewayStateList", {}),
        ("right: addresses in bulk", "mediadevice/getBulkMediaDeviceDetails", {"devices": []}),
    ]
    for what, operation, body in probes:
        try:
            api.call(operation, **body)
            note(what, "ok")
        except ApiError as problem:
            note(what, "slower" if "bulk" in what else "FAILED", str(problem))
    try:
        ffmpeg = find_ffmpeg("making MP4 files")
        said = subprocess.run([ffmpeg, "-version"], text=True, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=20, check=False)  # fmt: skip
        version = said.stdout.partition("Copyright")[0].strip() or ffmpeg
        note("FFmpeg", "ok" if said.returncode == 0 else "FAILED", version)
    except (CannotStart, OSError, subprocess.TimeoutExpired) as problem:
        note("FFmpeg", "FAILED", str(problem))
    note("space", "ok", f"{size_text(disk_free(settings.output_dir))} free in {settings.output_dir}")
    media, directory = MediaClient(api), Directory(api)
    with ThreadPoolExecutor(8) as pool:
        rows += pool.map(lambda camera: reach_of(camera, directory, media), world.chosen)
    print_rows(rows, settings.json)
    failed = [row["check"] for row in rows if row["result"] == "FAILED"]
    if failed:
        log.error("failed: %s", ", ".join(failed))
    return Status.PARTIAL if failed else Status.DONE


def reach_of(camera: Camera, directory: Directory, media: MediaClient) -> dict[str, str]:
    """One row of --check: does any LAN address of the camera answer, whatever it says?"""
    row = {"check": f"LAN: {camera.name} ({camera.address})", "result": "WAN only", "detail": ""}
    if not camera.online:
        return row | {"detail": "the camera is offline; its cloud footage can be had"}
    try:
        addresses = directory.addresses(camera.address, camera, audio=False)
        for template in addresses.lan_check or addresses.lan:
            try:
                media.get("lan", template.partition("{")[0])
            except Unreachable as problem:
                row["detail"] = str(problem)
                continue
            except (TransferError, NotFound, MediaRefused) as problem:
                log.debug("%s answers: %s", camera.address, problem)
            return row | {"result": "ok", "detail": urlsplit(template).netloc}
    except (ApiError, ClipError) as problem:
        return row | {"result": "FAILED", "detail": str(problem)}
    if not addresses.lan and not addresses.wan:
        return row | {"result": "FAILED", "detail": "the API gives no media addresses"}
    return row


def demo(arguments: argparse.Namespace) -> int:
    """Start the simulator that comes with the tests, and copy from it: a range with sound, and what alerts point to."""
    simulator = Path(__file__).resolve().parent / "tests" / "rhombus_simulator.py"
    if not simulator.exists():
        raise CannotStart(f"--demo needs {simulator}, which comes with the whole repository")
    log.info("starting a simulated camera cloud on this machine; making its footage takes some seconds the first time")
    with subprocess.Popen([sys.executable, str(simulator), "--exit_with_stdin"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:  # fmt: skip
        assert process.stdout and process.stdin
        try:
            ready = json.loads(process.stdout.readline() or "{}")
            if "api_url" not in ready:
                raise CannotStart("the simulator did not start; see why: python tests/rhombus_simulator.py")
            folder = str(arguments.output_dir or "demo_footage")
            Path(folder).mkdir(parents=True, exist_ok=True)
            statuses = []
            for words in (["-s", "20 minutes ago", "-u", "60"], ["--alerts", "--after_time", "6 hours ago"]):
                log.info("copy_footage.py %s", shlex.join([*words, "--output_dir", folder]))
                part = build_parser().parse_args([*words, "--output_dir", folder])
                part.quiet, config = arguments.quiet, load_config(Path(os.devnull), ("rhombus",), Path())["rhombus"]
                settings = settle(part, config | {"api_key": ready["api_key"], "api_url": ready["api_url"]})
                output_folder(settings)
                statuses.append(work(settings)[0])
        finally:
            process.stdin.close()
            process.terminate()
    log.info("done: open the .mp4 files in %s with a player; each .json beside them says what it is", folder)
    return max(statuses)


# --- command line ------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Every flag with its unit and default. A flag that is not given is None: config.yaml or the default decides."""
    parser = argparse.ArgumentParser(
        prog="copy_footage.py", usage="copy_footage.py [flags]", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip

    def flag(group: Any, *names: str, **options: Any) -> None:
        if "metavar" not in options and "choices" not in options:
            options |= {"action": "store_true", "default": None}
        group.add_argument(*names, **options)

    what = parser.add_argument_group("what to copy")
    flag(what, "-s", "--start_time", metavar="TIME", help="start of the range (default: 1 hour ago)")
    flag(what, "-u", "--duration", metavar="SEC", help="length of the range, seconds or 1h30m (default: 3600)")
    flag(what, "-al", "--alerts", help="what policy alerts point to, instead of a range")
    flag(what, "-ma", "--max_alerts", metavar="N", type=int, help="at most this many alerts (default: 100)")
    flag(what, "-bt", "--before_time", metavar="TIME", help="alerts before this time")
    flag(what, "-at", "--after_time", metavar="TIME", help="alerts after this time")
    flag(what, "-ab", "--alert_buffer", metavar="SEC", help="before and after each alert (default: 30)")
    flag(what, "-loc", "--location_uuid", metavar="ID", action="append",
         help="only this location and what is below it: UUID or exact name; repeatable")  # fmt: skip
    flag(what, "-cam", "--camera_uuid", metavar="ID", action="append", help="only this camera: as --location_uuid")
    flag(what, "--clip_length", metavar="SEC", help="cut a range into clips of this length (default: 0, one clip)")
    flag(what, "--fill_gaps", metavar="FILE", help="only the gaps that rtsp_recorder.py gaps --json lists; - is stdin")
    flag(what, "--timezone", metavar="ZONE", help="of times without a zone and of alert names (default: the host's)")
    who = parser.add_argument_group("account")
    flag(who, "-a", "--api_key", metavar="KEY", help="API key; others can see flags, so better RHOMBUS_API_KEY")
    flag(who, "-c", "--cert", metavar="FILE", help="client certificate (PEM) of a certificate key")
    flag(who, "-p", "--private_key", metavar="FILE", help="private key (PEM) of --cert")
    flag(who, "--api_url", metavar="URL", help="us, eu, or an address (default: RHOMBUS_API_URL, else us)")
    flag(who, "--org_uuid", metavar="ID", help="client organisation, for partner keys")
    how = parser.add_argument_group("how to copy")
    flag(how, "--output_dir", metavar="DIR", help="where files go (default: the current folder)")
    flag(how, "-w", "--usewan", help="over WAN only")
    flag(how, "--lan_only", help="over LAN only")
    flag(how, "--verify_lan", help="verify the TLS certificates of LAN devices, which are mostly self-signed")
    flag(how, "--workers", metavar="N", type=int, help="clips side by side (default: 4)")
    flag(how, "--segment_workers", metavar="N", type=int, help="requests at once in a clip (default: 0: WAN 8, LAN 2)")
    flag(how, "--scheduler", metavar="URL", help="copy on the Dask cluster of this scheduler: tcp://host:8786")
    flag(how, "--no_audio", help="video only")
    flag(how, "--audio_offset", metavar="SEC", type=float, help="audio so much later (default: 0)")
    flag(how, "--audio_codec", choices=("copy", "aac"), help="copy keeps Opus, aac suits old players (default: copy)")
    flag(how, "--bwlimit", metavar="RATE", help="bytes a second, such as 500K or 10M (default: 0, no limit)")
    flag(how, "--max_duration", metavar="SEC", help="end the run after so long, keep parts (default: 0, no limit)")
    flag(how, "--overwrite", help="fetch again and replace what is there, but never by less")
    flag(how, "--ignore_space", help="start although the estimate says that the disk is too small")
    cron = parser.add_argument_group("catching up, for cron")
    flag(cron, "--catch_up", help="go on where the last run of the same query ended")
    flag(cron, "--lag", metavar="SEC", help="leave the newest footage for later (default: cloud 5m, LAN 10)")
    flag(cron, "--lookback", metavar="SEC", help="list alerts again so far back (default: 72h)")
    flag(cron, "--give_up_after", metavar="SEC", help="publish what there is after trying so long (default: 7d)")
    show = parser.add_argument_group("looking")
    flag(show, "--dry_run", help="names, ranges and estimated sizes; nothing is downloaded")
    flag(show, "--list", choices=("cameras", "locations", "alerts"), help="what there is")
    flag(show, "--check", help="key, region, rights, LAN reach of each camera, FFmpeg, space")
    flag(show, "--status", help="state of the catch-up queries in --output_dir; exit 1 beyond the limits")
    flag(show, "--json", help="results as JSON Lines, the last one a summary")
    flag(show, "--demo", help="try everything on a simulated cloud, without an account, into demo_footage/")
    add_common_flags(parser)
    return parser


def join_identifiers(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """`-cam -Gw…` as one word: a value flag takes a next word of 22 identifier characters whatever it begins with."""
    flags = {name: action.nargs != 0 for action in parser._actions for name in action.option_strings}
    words: list[str] = []
    for word in argv:
        if words and flags.get(words[-1]) and word.startswith("-") and RUUID.fullmatch(word) and word not in flags:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def gaps_of(source: str, config: Path | None) -> tuple[tuple[str, int, int], ...]:
    """The gaps in the file `source`, or in standard input, of the cameras of config.yaml."""
    cameras: Any = load_config(config, ("cameras",), Path(__file__).resolve().parent, secrets=False)["cameras"]
    try:
        lines = sys.stdin.readlines() if source == "-" else Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"--fill_gaps {source}: cannot be read: {problem}") from problem
    return read_gaps(lines, cameras)


def settle(arguments: argparse.Namespace, config: Mapping[str, Any]) -> Settings:
    """Flag over environment over config over default, every value checked. Raises UsageError."""
    given = {name: value for name, value in vars(arguments).items() if value not in (None, [])}
    values: dict[str, Any] = {**dict.fromkeys(vars(arguments), False), "duration": 3600, **config, **given}
    values |= {"now": time.time(), "zone": parse_zone(values["timezone"], "--timezone"), "gaps": (), "filling": False}
    if values["fill_gaps"]:
        values |= {"gaps": gaps_of(values["fill_gaps"], arguments.config), "filling": True}
    for name in DURATIONS:
        values[f"{name}_sec"] = None if values[name] is None else parse_duration(values[name], f"--{name}")
    for name in ("start", "after", "before"):
        text, flag = given.get(f"{name}_time"), f"--{name}_time"
        values[f"{name}_sec"] = None if text is None else parse_time(text, flag, values["zone"], values["now"])
    start_sec = math.floor(values["now"] - 3600 if values["start_sec"] is None else values["start_sec"])
    url = str(values["api_url"]).rstrip("/")
    values |= {
        "api_key": str(values["api_key"] or ""), "output_dir": Path(values["output_dir"]).expanduser(),
        "api_url": API_BASES.get(url.lower(), url),
        "cameras": tuple(map(str, values["camera_uuid"])), "locations": tuple(map(str, values["location_uuid"])),
        "start_sec": start_sec, "end_sec": math.ceil(start_sec + values["duration_sec"]),
        "alert_buffer_sec": math.ceil(values["alert_buffer_sec"]), "audio_offset_sec": values["audio_offset"],
        "clip_length_sec": math.ceil(values["clip_length_sec"] / SEGMENT_SEC) * SEGMENT_SEC,
        "bwlimit_bytes_per_sec": parse_rate(values["bwlimit"], "--bwlimit"),
    }  # fmt: skip
    settings = Settings(**{one.name: values[one.name] for one in fields(Settings)})
    refuse(settings, given)
    return settings


def refuse(settings: Settings, given: Mapping[str, Any]) -> None:
    """UsageError for what cannot be meant."""
    url, start_sec, end_sec = urlsplit(settings.api_url), settings.start_sec, settings.end_sec
    start = clock_text(start_sec, settings.zone)
    mistakes = [
        (bool(settings.cert) != bool(settings.private_key),
         "--cert and --private_key belong together: give both or none"),
        *((not os.access(path, os.R_OK), f"{name} {path}: cannot be read")
          for name, path in (("--cert", settings.cert), ("--private_key", settings.private_key)) if path),
        (url.scheme not in ("http", "https") or not url.hostname,
         f"--api_url: {settings.api_url!r} is neither us, eu, nor an address that begins with https://"),
        (url.scheme == "http" and not is_loopback(url.hostname),
         f"--api_url: {settings.api_url} would send the key unprotected; say https://"),
        (settings.usewan and settings.lan_only, "--usewan and --lan_only exclude each other"),
        *((not low <= (value := getattr(settings, name)) <= high,
           f"--{name.removesuffix('_sec')}: {value} is not between {low} and {high}")
          for name, low, high in (("workers", 1, AT_ONCE), ("segment_workers", 0, AT_ONCE), ("tries", 1, 100),
                                  ("max_alerts", 1, 100_000), ("audio_offset_sec", -3600, 3600))),
        (end_sec <= start_sec, "--duration: nothing to copy; say at least one second"),
        (end_sec - start_sec > 366 * 86400, "--duration: more than a year; ask for less at a time"),
        (start_sec >= settings.now and not settings.alerts, f"--start_time: {start} is in the future"),
        (settings.after_sec and settings.before_sec and settings.after_sec >= settings.before_sec,
         "--after_time is not before --before_time"),
        *((settings.catch_up and name in given, f"--catch_up decides itself how far it goes; leave out --{name}")
          for name in ("duration", "before_time", "overwrite")),
        *((settings.filling and name in given, f"--fill_gaps decides itself what to copy; leave out --{name}")
          for name in ("start_time", "duration", "alerts", "catch_up", "list")),
        (settings.alert_buffer_sec > 86400, "--alert_buffer: more than a day"),
    ]  # fmt: skip
    for is_wrong, sentence in mistakes:
        if is_wrong:
            raise UsageError(sentence)
    if settings.cert and settings.private_key:
        check_pair(settings.cert, settings.private_key)
    alerts = settings.alerts or given.get("list") == "alerts"
    for name in ("start_time", "duration") if alerts else ("after_time", "before_time", "max_alerts", "alert_buffer"):
        if name in given:
            log.warning("--%s has no effect %s --alerts", name, "with" if alerts else "without")


def check_pair(cert: str, private_key: str) -> None:
    """UsageError when TLS cannot use them: better here than as a failure of each request, or as a prompt under cron."""
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, private_key, password="")
    except OSError as problem:  # ssl.SSLError is one
        raise UsageError(f"--cert {cert} and --private_key {private_key}: not a certificate and its key as PEM without "
                         f"a passphrase ({getattr(problem, 'reason', None) or problem})") from problem  # fmt: skip


def output_folder(settings: Settings) -> None:
    """Make sure that the output folder is there and takes files; CannotStart when not."""
    try:
        (settings.output_dir / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
        probe = settings.output_dir / STATE_FOLDER / f"probe.{os.getpid()}.part"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as problem:
        raise CannotStart(f"--output_dir {settings.output_dir}: cannot be written: {problem.strerror}") from problem


def perform(settings: Settings, arguments: argparse.Namespace) -> tuple[int, str]:
    """What was asked for, as (status, report for notifications)."""
    if arguments.status:
        return show_status(settings), ""
    if arguments.list or arguments.check:
        return show_list(Api(settings), arguments.list) if arguments.list else show_check(Api(settings)), ""
    if not settings.dry_run:
        output_folder(settings)
    if settings.dry_run or not settings.catch_up:
        return work(settings)
    catch_up = CatchUp(settings.output_dir / STATE_FOLDER, settings)
    with run_lock(catch_up.path.with_suffix(".lock"), f"--catch_up of {catch_up.words!r}"):
        return work(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, configure, refuse early, act, report; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(join_identifiers(sys.argv[1:] if argv is None else argv, parser))
    start_logging(arguments)
    if arguments.scheduler and __name__ == "__main__":  # workers find classes by the name of their module
        import importlib

        return int(importlib.import_module(Path(__file__).stem).main(argv))
    if arguments.demo:
        return demo(arguments)
    config = load_config(arguments.config, ("rhombus", "notify"), Path(__file__).resolve().parent)
    for secret in (arguments.api_key, config["rhombus"]["api_key"]):
        hide_secret(secret)
    settings = settle(arguments, config["rhombus"])
    if arguments.api_key:
        log.warning("--api_key can be seen by others on this machine; better set RHOMBUS_API_KEY")
    if not settings.api_key and not arguments.status:
        raise UsageError("no API key: give --api_key, set RHOMBUS_API_KEY, or put rhombus.api_key into config.yaml; "
                         "--demo works without one")  # fmt: skip
    told, key = settings.output_dir / STATE_FOLDER / "notified.json", f"copy_footage {query_words(settings)}"
    looking = arguments.list or arguments.check or arguments.status or arguments.dry_run
    try:
        status, report = perform(settings, arguments)
    except Exception as problem:
        status = getattr(problem, "status", Status.PARTIAL)
        if not looking and status in (Status.PARTIAL, Status.CANNOT_START):
            notify(config["notify"], told, key, status, str(problem))
        raise
    if not looking:
        notify(config["notify"], told, key, status, report)
    return status


if __name__ == "__main__":
    sys.exit(run(main))
