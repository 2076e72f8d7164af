#!/usr/bin/env python3
"""A strict Rhombus-shaped cloud on this machine: API, LAN devices and WAN edge, with real H.264 and Opus.

For tests, benchmarks and the demo. It refuses what the real one refuses, can be slow, rude and broken by switches,
and remembers every request. Everything listens on 127.0.0.1 only.

examples:
  python tests/rhombus_simulator.py
  python tests/rhombus_simulator.py --tls --cameras 8 --alerts 20
  python tests/rhombus_simulator.py --latency_sec 0.04 --link_bytes_per_sec 25000000 --connection_bytes_per_sec 6000000
  python tests/rhombus_simulator.py --fault '{"match": "wan GET .*m4v", "kind": "status", "status": 503, "times": 3}'
  python tests/rhombus_simulator.py --media_width 1280 --media_height 720 --media_fps 25 --media_bitrate 3000000

One line of JSON on stdout says where everything is; the process then runs until SIGINT or SIGTERM.
Other processes steer it through the API port: POST /_sim/switches (object), POST /_sim/faults (list, replaces),
POST /_sim/clear, GET /_sim/requests, GET /_sim/counts.

Needs: FFmpeg (on PATH, or the package imageio-ffmpeg); with --tls also the package trustme.
State: media is made once and kept in the temporary folder (rhombus_simulator_media-UID).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import selectors
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid as uuidlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, BinaryIO

SEGMENT_SEC = 2  # every device cuts on even seconds
VIDEO_TIMESCALE = 90_000
OPUS_PACKET_MS = 20
RETENTION_SEC = 30 * 86_400
CLOUD_LAG_SEC = 240  # archiving runs about four minutes behind live
PIECE_BYTES = 32 * 1024  # a throttled link is shared in pieces of this size
PACER_SLACK_SEC = 0.02  # what a late wake-up may catch up, so that a limit is met and not undercut
IN_FLIGHT_SEC = 0.2  # a request this soon after a 429 (plus latency) was sent before the client could know
MAX_HEAD_BYTES = 64 * 1024
IDLE_SEC = 120  # a kept connection without a request is closed after this
DELETE = "\0delete"  # as a value in Alert.extra: this key is left out
MAIN_HOST, EU_HOST = "api2.rhombussystems.com", "api2.eu.rhombussystems.com"
REAL_WAN_HOST = "media.us-west-2.dash.rhombussystems.com"
CERTIFIED_NAMES = ("127.0.0.1", "localhost", MAIN_HOST, EU_HOST, "*.dash.rhombussystems.com", REAL_WAN_HOST,
                   "media.us-west-2.dash-internal.rhombussystems.com")
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
           405: "Method Not Allowed", 429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway",
           503: "Service Unavailable"}
LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>"


def ruuid(seed: str) -> str:
    """An identifier of 22 characters, always the same for the same seed."""
    return base64.urlsafe_b64encode(hashlib.sha256(seed.encode()).digest()[:16]).decode().rstrip("=")


def plain(device: str) -> str:
    """The identifier without its facet."""
    return re.sub(r"\.[va]\d+$", "", device)


# --- the world: what exists and what was recorded ---

Windows = list[tuple[int, int]]  # [start, end) in epoch seconds


@dataclass
class Camera:
    uuid: str = field(default_factory=lambda: ruuid(str(uuidlib.uuid4())))
    name: str | None = "Camera"
    location_uuid: str | None = None
    status: str = "GREEN"
    facets: list[str] = field(default_factory=lambda: ["v0"])
    hw_variation: str = "CAMERA_R200"
    lan: bool = True  # its LAN device answers
    lan_addresses: int = 1
    lan_dead_addresses: int = 0  # so many of them, the first ones, do not answer
    local: Windows | None = None  # on the device; None: 30 days up to now
    cloud: Windows | None = None  # archived; None: 30 days up to four minutes ago
    own_audio: bool = False  # a doorbell: its MPD has a second AdaptationSet
    media_storage_device_uuid: str | None = None
    mummified: bool = False
    null_fields: bool = False  # null wherever the schema allows it

    def recorded(self, store: str, now: float) -> Windows:
        """The windows of one store, "local" or "cloud"."""
        windows: Windows | None = getattr(self, store)
        if windows is not None:
            return windows
        end = int(now) - (CLOUD_LAG_SEC if store == "cloud" else 0)
        return [(int(now) - RETENTION_SEC, end)]

    def answers_lan(self) -> bool:
        return self.lan and self.status != "RED" and not self.mummified


@dataclass
class Gateway(Camera):
    """An audio gateway; `cameras` are identifiers with or without facet."""

    name: str | None = "Audio gateway"
    facets: list[str] = field(default_factory=lambda: ["a0"])
    hw_variation: str = "AUDIO_GATEWAY_A100"
    cameras: list[str] = field(default_factory=list)


@dataclass
class Location:
    uuid: str
    name: str
    tz: str = "UTC"
    sub_locations: list[Location] = field(default_factory=list)


@dataclass
class Alert:
    uuid: str
    timestamp_ms: int
    duration_sec: int = 30
    device_uuid: str | None = None
    device_type: str = "CAMERA"
    triggers: list[str] = field(default_factory=lambda: ["MOTION_HUMAN"])
    clip_devices: list[str] | None = None  # None: the device itself
    finalized: bool = True
    location_uuid: str | None = None
    door: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # laid over the JSON entry; DELETE removes a key

    def clips(self) -> list[str]:
        if self.clip_devices is not None:
            return self.clip_devices
        return [self.device_uuid] if self.device_uuid else []


@dataclass
class World:
    cameras: list[Camera] = field(default_factory=list)
    gateways: list[Gateway] = field(default_factory=list)
    locations: list[Location] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    org_uuid: str = ruuid("organisation")

    def device(self, uuid: str) -> Camera | None:
        """The camera or gateway with this identifier; a facet is ignored."""
        return next((d for d in [*self.cameras, *self.gateways] if d.uuid == plain(uuid)), None)

    def path_to(self, location_uuid: str | None) -> list[str]:
        """The identifiers from the top location down to this one."""

        def search(locations: list[Location]) -> list[str]:
            for location in locations:
                below = search(location.sub_locations)
                if location.uuid == location_uuid or below:
                    return [location.uuid, *below]
            return []

        return search(self.locations)


def default_world(now: float) -> World:
    """Four cameras in two locations (one below another), two gateways, and alerts of the last hours."""
    cold = Location(ruuid("cold store"), "Cold store", "America/Los_Angeles")
    warehouse = Location(ruuid("warehouse"), "Warehouse", "America/Los_Angeles", [cold])
    office = Location(ruuid("office"), "Head Office", "Europe/Berlin")
    dock = Camera("xYz0aBcDeFgHiJkLmNoPqQ", "Loading Dock / East", warehouse.uuid)
    lobby = Camera("-LobbyDeFgHiJkLmNoPqRA", "Lobby", office.uuid, facets=["v0", "v1"], hw_variation="CAMERA_R600")
    yard = Camera("_YardBcDeFgHiJkLmNoPqg", "Yard", warehouse.uuid, status="RED")
    freezer = Camera(ruuid("freezer"), "Freezer", cold.uuid, null_fields=True)
    dock_mic = Gateway("-GwAbCdEfGhIjKlMnOpQrQ", "Dock mic", warehouse.uuid, cameras=[dock.uuid + ".v0"])
    lobby_mic = Gateway(ruuid("lobby mic"), "Lobby mic", office.uuid, cameras=[lobby.uuid])

    def alert(name: str, minutes_ago: float, device: Camera | None, **more: Any) -> Alert:
        at_ms = int((now - minutes_ago * 60) * 1000)
        place = device.location_uuid if device else warehouse.uuid
        return Alert(ruuid("alert " + name), at_ms, device_uuid=device.uuid if device else None, location_uuid=place,
                     **more)

    alerts = [
        alert("person", 21, dock), alert("car", 47.3, yard, triggers=["MOTION_CAR"]),
        alert("face", 68, lobby, triggers=["FACE_ALERT", "MOTION_HUMAN"]),
        alert("door", 95, None, door=True, duration_sec=60, triggers=["AC_DPI_DOOR_FORCED_OPEN"],
              clip_devices=[dock.uuid]),
        alert("noise", 120, dock_mic, device_type="AUDIO_GATEWAY", triggers=["SOUND_LOUD"]),
        alert("tamper", 185, freezer, triggers=["TAMPER"]),
    ]
    return World([dock, lobby, yard, freezer], [dock_mic, lobby_mic], [warehouse, office], alerts)


def wide_world(now: float, cameras: int, alerts: int = 0) -> World:
    """So many equal cameras in one location, every second one with a gateway, and alerts a minute apart."""
    place = Location(ruuid("site"), "Site")
    fleet = [Camera(ruuid(f"camera {n}"), f"Camera {n:03d}", place.uuid) for n in range(cameras)]
    gateways = [Gateway(ruuid(f"gateway {n}"), f"Mic {n:03d}", place.uuid, cameras=[camera.uuid + ".v0"])
                for n, camera in enumerate(fleet) if n % 2 == 0]
    events = [Alert(ruuid(f"alert {n}"), int(now - 900 - 60 * n) * 1000, device_uuid=fleet[n % cameras].uuid,
                    location_uuid=place.uuid) for n in range(alerts)]
    return World(fleet, gateways, [place], events)


# --- switches and faults: how it behaves ---


@dataclass
class Switches:
    """All may change while it runs."""

    latency_sec: float = 0.0  # before the first byte of every answer
    link_bytes_per_sec: float = 0  # shared by all LAN and WAN media; 0: no limit
    connection_bytes_per_sec: float = 0
    rate_limit_per_sec: float = 0  # API requests of the organisation; 0: no limit
    burst: float = 10
    retry_after_sec: float = 1  # length of the wait behind a 429; the header says at least 1
    token_life_sec: float = 3600  # a token lives no longer, whatever durationSec asked for
    expired_status: int = 401  # what media hosts say to an expired token: 401 or 403
    page_cap: int = 100  # alerts per page, whatever maxResults says
    alert_form: str = "real"  # or "old"
    alert_bounds: str = "inclusive"  # or "exclusive": are afterTimestampMs and beforeTimestampMs part of the interval
    bulk: bool = True  # False: getBulkMediaDeviceDetails answers 403
    presence: bool | str = True  # False: answers 500; "null": presenceWindows is null
    presence_hides_offline: bool = False  # VideoLocal of a RED camera is left out
    missing: str = "placeholder"  # or "404": what the WAN answers for times without footage
    lan_missing: str = "placeholder"
    timestamps: str = "zero"  # or "absolute": times inside the segments
    lan_start_number: int = 0
    wan_start_number: int = 1
    lan_auth: str = "federated"  # takes cookie or federated token; "cookie": older firmware, refuses
    # x-auth-scheme; "federated-only": refuses the cookie
    lan_tls: str = "self-signed"  # or "valid": signed by the CA of this simulator
    dead_lan: str = "refused"  # or "silent": how a LAN address that does not answer behaves
    content_length: bool = True  # False: media is sent chunked
    date: bool = False  # answers carry the header Date
    real_names: bool = False  # WAN addresses carry the real host name (reach them through proxy_url)


@dataclass
class Fault:
    """A rule; of all rules the first that matches and has times left applies.

    kind: status, reset, reset_midway, stall (half the body, then silence), stall_headers (nothing at all), truncate
    (full length announced, half sent, closed), short (a whole HTTP answer with half the body), html, empty, in_band,
    garbage, slow, refuse_token (this token is dead from now on), body (the given bytes).
    """

    match: str  # a regular expression, searched in "KIND METHOD PATH", KIND is api, wan or lan
    kind: str
    times: int = 1  # -1: for ever
    after: int = 0  # leave the first so many matches alone
    status: int = 0  # 0: 503, for refuse_token 401, for body 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | str = b""
    stall_sec: float = 3600
    bytes_per_sec: float = 10_000

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"fault kind {self.kind!r}: not one of {', '.join(sorted(FAULT_KINDS))}")
        try:
            re.compile(self.match)
        except re.error as exc:
            raise ValueError(f"fault match {self.match!r}: {exc}") from None

    def takes(self, line: str) -> bool:
        """Does the rule apply to this request? Counts."""
        if self.times == 0 or not re.search(self.match, line):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1 if self.times > 0 else 0
        return True


FAULT_KINDS = {"status", "reset", "reset_midway", "stall", "stall_headers", "truncate", "short", "html", "empty",
               "in_band", "garbage", "slow", "refuse_token", "body"}
HALF_KINDS = {"reset_midway", "stall", "truncate"}


class Pacer:
    """Lets bytes pass at a rate, first come, first served, in pieces; safe to share between threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free_at = time.monotonic()

    def wait(self, size: int, bytes_per_sec: float) -> None:
        if bytes_per_sec <= 0:
            return
        with self.lock:
            now = time.monotonic()
            self.free_at = max(self.free_at, now - PACER_SLACK_SEC) + size / bytes_per_sec
            pause = self.free_at - now
        if pause > 0:
            time.sleep(pause)


# --- media: made by FFmpeg once, renumbered and timed when served ---


def find_ffmpeg() -> str:
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg
    except ImportError:
        raise RuntimeError("ffmpeg not found: install it, or the package imageio-ffmpeg (makes the media)") from None
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@functools.lru_cache
def version_of(ffmpeg: str) -> str:
    """Its first line; asked once, because a test process starts hundreds of simulators."""
    return subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the ISO BMFF boxes in a stretch of bytes."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start, start + size
        start += size


@dataclass(frozen=True)
class Segment:
    """A media segment: a head with places to write number and time into, and the rest."""

    head: bytes
    rest: memoryview
    number_at: int  # offset of mfhd's sequence number in the head; -1 in WebM
    time_at: int  # offset of the 8 bytes of tfdt, or of the cluster's timecode

    def at(self, number: int, start_sec: int) -> list[bytes | memoryview]:
        head = bytearray(self.head)
        if self.number_at >= 0:
            struct.pack_into(">I", head, self.number_at, number)
        scale = VIDEO_TIMESCALE if self.number_at >= 0 else 1000
        struct.pack_into(">Q", head, self.time_at, start_sec * scale)
        return [bytes(head), self.rest]


def split_mp4(data: bytes) -> tuple[bytes, list[Segment]]:
    """Init segment and media segments of a fragmented MP4."""
    tops = list(boxes(data))
    moofs = [(start, end) for kind, start, end in tops if kind == b"moof"]
    mdats = [(start, end) for kind, start, end in tops if kind == b"mdat"]
    segments = []
    for (moof, moof_end), (mdat, mdat_end) in zip(moofs, mdats, strict=True):
        number_at, time_at = data.index(b"mfhd", moof) + 8 - moof, data.index(b"tfdt", moof) + 8 - moof
        assert mdat == moof_end and data[moof + time_at - 4] == 1, "tfdt is of version 1, mdat follows moof"
        segments.append(Segment(data[moof : mdat + 8], memoryview(data)[mdat + 8 : mdat_end], number_at, time_at))
    return data[: moofs[0][0]], segments


def ebml(data: bytes, at: int) -> tuple[int, int, int]:
    """(identifier, start of the content, its size; -1 where it is unknown) of the element at this offset."""
    id_length = 9 - data[at].bit_length()
    ident = int.from_bytes(data[at : at + id_length], "big")
    at += id_length
    length = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return ident, at + length, -1 if size == (1 << 7 * length) - 1 else size


def split_webm(data: bytes, segment_count: int) -> tuple[bytes, list[Segment]]:
    """Header and clusters of two seconds each, cut anew from the packets of an Opus WebM file."""
    segment_id, cluster_id, block_id = 0x18538067, 0x1F43B675, 0xA3
    header_end, packets, at = 0, [], 0
    while at < len(data):
        ident, content, size = ebml(data, at)
        if ident == cluster_id and not header_end:
            header_end = at
        if ident == block_id:
            packets.append(data[content : content + size])
        at = content if ident in (segment_id, cluster_id) else content + size
    per_segment = SEGMENT_SEC * 1000 // OPUS_PACKET_MS
    assert len(packets) >= segment_count * per_segment, "the sound is at least as long as the picture"
    segments = []
    for first in range(0, segment_count * per_segment, per_segment):
        rest = b""
        for n, packet in enumerate(packets[first : first + per_segment]):  # track, time in the cluster, flags, data
            block = packet[:1] + struct.pack(">h", n * OPUS_PACKET_MS) + packet[3:]
            rest += b"\xa3" + struct.pack(">I", 0x10000000 | len(block)) + block
        timecode = b"\xe7\x88" + bytes(8)
        head = b"\x1f\x43\xb6\x75" + struct.pack(">Q", 1 << 56 | len(timecode) + len(rest)) + timecode
        segments.append(Segment(head, memoryview(rest), -1, len(head) - 8))
    return data[:header_end], segments


@dataclass(frozen=True)
class MediaKit:
    """What the pictures and the sound are like; every bank of segments repeats after `bank` * 2 seconds.

    The bank is chosen by wall-clock time: the segment of an even second T always shows bank segment (T / 2) % bank.
    """

    width: int = 320
    height: int = 180
    fps: int = 10
    bitrate: int = 150_000  # bits/s, met within a few per cent: the way to a wanted segment size
    bank: int = 30
    b_frames: int = 0
    audio_bitrate: int = 32_000
    folder: Path | None = None  # None: in the temporary folder

    def load(self) -> Media:
        """The media, made when it is not there yet."""
        ffmpeg = find_ffmpeg()
        key = hashlib.sha256(repr((self._commands(), version_of(ffmpeg))).encode()).hexdigest()[:16]
        uid = getattr(os, "getuid", lambda: 0)()
        root = self.folder or Path(tempfile.gettempdir()) / f"rhombus_simulator_media-{uid}"
        if not (root / key).is_dir():
            self._make(ffmpeg, root, key)
        return read_media(self, root / key)

    def _commands(self) -> dict[str, list[list[str]]]:
        """File → command lines (without the program) that make it; the second is tried when the first fails."""
        size, seconds, gop = f"{self.width}x{self.height}", self.bank * SEGMENT_SEC, str(self.fps * SEGMENT_SEC)
        x264 = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-g", gop, "-keyint_min", gop,
                "-sc_threshold", "0", "-flags", "+cgop+bitexact", "-fflags", "+bitexact", "-bf", str(self.b_frames),
                "-b:v", str(self.bitrate), "-maxrate", str(self.bitrate), "-bufsize", str(self.bitrate),
                "-x264-params", "stitchable=1", "-video_track_timescale", str(VIDEO_TIMESCALE), "-f", "mp4",
                "-movflags", "+frag_keyframe+empty_moov+default_base_moof+negative_cts_offsets"]
        opus = ["-ac", "1", "-c:a", "libopus", "-b:a", str(self.audio_bitrate), "-frame_duration", str(OPUS_PACKET_MS),
                "-fflags", "+bitexact", "-f", "webm", "-live", "1"]
        text = f"drawtext=text='VIDEO NOT AVAILABLE':fontcolor=white:fontsize={max(6, self.width // 16)}"
        navy = f"color=c=navy:s={size}:r={self.fps}"

        def lavfi(source: str, length: int, codec: list[str]) -> list[str]:
            return ["-f", "lavfi", "-i", source, "-t", str(length), *codec]

        return {
            "video.mp4": [lavfi(f"testsrc2=s={size}:r={self.fps}", seconds, x264)],
            "placeholder.mp4": [lavfi(f"{navy},{text}:x=(w-tw)/2:y=(h-th)/2", SEGMENT_SEC, x264),
                                lavfi(f"{navy},drawgrid=w=iw/8:h=ih/8:c=white", SEGMENT_SEC, x264)],
            "audio.webm": [lavfi("aevalsrc=0.3*sin(2*PI*(300*t+10*t*t)):s=48000", seconds + 1, opus)],
            "silence.webm": [lavfi("anullsrc=r=48000:cl=mono", SEGMENT_SEC + 1, opus)],
        }

    def _make(self, ffmpeg: str, root: Path, key: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="making-", dir=root))
        try:
            for name, commands in self._commands().items():
                for command in commands:  # no font: the pattern instead of the words
                    made = subprocess.run([ffmpeg, "-nostdin", "-v", "error", "-y", *command, str(work / name)],
                                          capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
                    if made.returncode == 0:
                        break
                else:
                    raise RuntimeError(f"ffmpeg could not make {name}: {made.stderr.strip()[-500:]}")
            try:
                work.rename(root / key)
            except OSError:  # another process was faster; its media is the same
                if not (root / key).is_dir():
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


class Media:
    """Init segments and banks in memory."""

    def __init__(self, kit: MediaKit, folder: Path) -> None:
        self.kit = kit
        self.video_init, self.video = split_mp4((folder / "video.mp4").read_bytes())
        placeholder_init, (self.placeholder,) = split_mp4((folder / "placeholder.mp4").read_bytes())
        self.audio_init, self.audio = split_webm((folder / "audio.webm").read_bytes(), kit.bank)
        self.silence = split_webm((folder / "silence.webm").read_bytes(), 1)[1][0]
        parameter_sets = [init[init.index(b"avcC") - 4 :][: struct.unpack_from(">I", init, init.index(b"avcC") - 4)[0]]
                          for init in (self.video_init, placeholder_init)]
        assert len(self.video) == kit.bank and parameter_sets[0] == parameter_sets[1], "one init serves all segments"


@functools.lru_cache(maxsize=4)
def read_media(kit: MediaKit, folder: Path) -> Media:
    """Read and cut once; simulators share it, for nobody changes it."""
    return Media(kit, folder)


# --- HTTP: the little of it that is needed, quickly ---


@dataclass
class Request:
    kind: str  # "api", "wan", "lan"
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    device: str = ""
    internal: bool = False  # came in at the twin host that demands a client certificate
    client_certificate: bool = False

    @functools.cached_property
    def cookies(self) -> dict[str, str]:
        pairs = (pair.strip().partition("=") for pair in self.headers.get("cookie", "").split(";"))
        return {name: value for name, _, value in pairs if name}

    def tokens(self) -> list[str]:
        """Every federated token it carries, wherever."""
        cookies = [value[4:] for value in self.cookies.values() if value.startswith("RFT:")]
        return [t for t in (*cookies, self.headers.get("x-auth-ft"), self.query.get("x-auth-ft")) if t]

    def credentials(self) -> tuple[str, ...]:
        """Every credential it carries: "cookie", and the schemes of headers and query."""
        cookie = ["cookie"] if self.cookies.keys() & {"RSESSIONID", "RHOMBUS_SESSIONID"} else []
        schemes = [s for s in (self.headers.get("x-auth-scheme"), self.query.get("x-auth-scheme")) if s]
        return tuple(cookie + schemes)


@dataclass
class Response:
    status: int
    body: list[bytes | memoryview]
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


def json_response(status: int, value: Any) -> Response:
    return Response(status, [json.dumps(value).encode()])


def refusal(status: int, message: str = "") -> Response:
    """An answer other than 200, worded as the real one words it."""
    if status == 401:
        return json_response(401, {"authenticationFailed": True})
    if status == 403:
        return json_response(403, {"status": 403, "error": "Forbidden", "timestamp": int(time.time() * 1000),
                                   "msg": "Access Denied"})
    return json_response(status, {"error": REASONS.get(status, "Failure"), "msg": message})


@dataclass
class RequestRecord:
    at: float  # epoch seconds, when it had been read
    kind: str
    method: str
    path: str
    query: str
    device: str
    credentials: tuple[str, ...]  # names only, see Request.credentials
    cookies: tuple[str, ...]
    api_key: bool  # an API key came with it
    host: str
    client_certificate: bool
    body: str = ""  # of API requests
    status: int = 0  # 0: not answered
    sent_bytes: int = 0  # of the body, when all that was to be sent could be written
    early: bool = False  # sent during the wait that a 429 had asked for
    fault: str = ""

    @property
    def line(self) -> str:
        return f"{self.kind} {self.method} {self.path}"


@dataclass
class Wait:
    """What a 429 asked for, in monotonic seconds."""

    known_from: float  # a request before this was on its way when the 429 was sent
    end: float
    length_sec: float


@dataclass
class Listener:
    kind: str  # "api", "wan", "internal", "lan", "proxy"
    sock: socket.socket
    device: str = ""

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])


class Connection:
    """One accepted connection; reads requests and writes answers."""

    def __init__(self, sock: socket.socket, listener: Listener) -> None:
        self.sock = sock
        self.listener = listener
        self.buffer = bytearray()
        self.client_certificate = isinstance(sock, ssl.SSLSocket) and bool(sock.getpeercert())

    def _read_more(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def read_head(self) -> list[str] | None:
        """The lines before the empty line; None when the client is gone."""
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if len(self.buffer) > MAX_HEAD_BYTES or not self._read_more():
                return None
        lines = self.buffer[:end].decode("latin-1").split("\r\n")
        del self.buffer[: end + 4]
        return lines

    def read_request(self) -> Request | None:
        lines = self.read_head()
        if lines is None:
            return None
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            if not self._read_more():
                return None
        body = bytes(self.buffer[:length])
        del self.buffer[:length]
        path, _, query = target.partition("?")
        kind, internal = self.listener.kind, self.listener.kind == "internal"
        device = self.listener.device
        if kind in ("wan", "internal") and path.startswith("/dash/api/"):
            device = plain(path.split("/")[3])
        return Request("wan" if internal else kind, method, path, dict(urllib.parse.parse_qsl(query)) if query else {},
                       headers, body, device, internal, self.client_certificate)

    def reset(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()


# --- the API ---


RUUID, FACET = re.compile(r"[\w-]{22}", re.ASCII), re.compile(r"[\w-]{22}(\.[va]\d)?", re.ASCII)
TYPES: dict[str, Callable[[Any], Any]] = {  # what a request field may hold; null always stands for "left out"
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "positive": lambda v: TYPES["integer"](v) and 0 < v < 2**31,
    "text": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "ruuid": lambda v: isinstance(v, str) and RUUID.fullmatch(v),
    "facet": lambda v: isinstance(v, str) and FACET.fullmatch(v),
    "ruuids": lambda v: isinstance(v, list) and all(map(TYPES["ruuid"], v)),
    "facets": lambda v: isinstance(v, list) and all(map(TYPES["facet"], v)),
}


@dataclass(frozen=True)
class Key:
    value: str
    scheme: str = "api-token"
    denied: str = ""  # a regular expression over paths that answer 403
    host: str = MAIN_HOST


@dataclass
class Token:
    minted_at: float
    duration_sec: int
    device: str | None
    dead: bool = False


ALERT_FIELDS = {"maxResults": "positive", "afterTimestampMs": "integer", "beforeTimestampMs": "integer",
                "deviceFilter": "ruuids", "locationFilter": "ruuids", "lastTimestampMs": "integer", "lastUuid": "ruuid"}
WINDOW_FIELDS = {"startTimeSec!": "integer", "durationSec!": "positive"}
# path → (method of Api, its fields; "!" marks a required one); any other field is refused as a misspelling
ENDPOINTS: dict[str, tuple[str, dict[str, str]]] = {
    "/api/org/generateFederatedSessionToken": (
        "mint", {"durationSec": "positive", "domain": "text", "deviceUUid": "facet"}),
    "/api/camera/getMinimalCameraStateList": ("cameras", {"includeMummified": "boolean"}),
    "/api/audiogateway/getMinimalAudioGatewayStateList": ("gateways", {}),
    "/api/location/getLocations": ("locations", {"subLocationsIncluded": "boolean"}),
    "/api/mediadevice/getBulkMediaDeviceDetails": ("bulk", {"devices!": "facets"}),
    "/api/event/getPolicyAlerts": ("alerts", {**ALERT_FIELDS, "accessControlledDoorFilter": "ruuids"}),
    "/api/event/getPolicyAlertsV2": ("alerts_v2", ALERT_FIELDS),
    "/api/camera/getPresenceWindows": ("presence", {"cameraUuid!": "ruuid", **WINDOW_FIELDS}),
    "/api/audiogateway/getPresenceWindows": ("presence", {"deviceUuid!": "ruuid", **WINDOW_FIELDS}),
    "/api/camera/getMediaUris": ("media_uris", {"cameraUuid!": "facet"}),
    "/api/audiogateway/getMediaUris": ("media_uris", {"gatewayUuid!": "facet"}),
    "/api/doorbellcamera/getMediaUris": ("doorbell_uris", {"deviceUuid!": "facet"}),
    "/api/camera/getFullCameraState": ("full_state", {"cameraUuid!": "ruuid"}),
    "/api/partner/getClientsV2": ("clients", {}),
}
CLIENT_LIST = "/api/partner/getClientsV2"


class Api:
    """The answers of the API; knows the simulator for its world, switches, keys, tokens and addresses."""

    def __init__(self, sim: Simulator) -> None:
        self.sim = sim

    def answer(self, request: Request) -> Response:
        endpoint = ENDPOINTS.get(request.path)
        if endpoint is None:
            return refusal(404, "no such operation")
        if request.method != "POST":
            return refusal(405, "every operation is POST")
        if status := self.refuses(request):
            return refusal(status)
        method, fields = endpoint
        try:
            body = json.loads(request.body)
        except ValueError:
            return refusal(400, "the body is not JSON")
        if wrong := self._misfit(body, fields):
            return refusal(400, f"JSON does not match the expected object structure: {wrong}")
        result = getattr(self, method)(body)
        if isinstance(result, Response):
            return result
        return json_response(200, {**result, "error": False, "errorMsg": None, "warningMsg": None})

    def refuses(self, request: Request) -> int:
        """The status with which these credentials are refused, else 0."""
        headers, path = request.headers, request.path
        scheme = headers.get("x-auth-scheme")
        if scheme == "federated-token":
            token = self.sim.tokens.get(headers.get("x-auth-ft", ""))
            if token is None or not self.sim.lives(token):
                return 401
            return 403 if token.device or path.endswith("getPresenceWindows") or path == CLIENT_LIST else 0
        if scheme not in ("api-token", "api", "partner-api-token") or not headers.get("x-auth-apikey"):
            return 401
        key = self.sim.keys.get(headers["x-auth-apikey"])
        host = EU_HOST if headers.get("host", "").partition(":")[0] == EU_HOST else MAIN_HOST
        if key is None or key.host != host:
            return 403
        if key.scheme != scheme or (scheme == "api" and not request.client_certificate):
            return 401
        partner = scheme == "partner-api-token"
        if path == CLIENT_LIST:
            return 0 if partner else 403
        if partner and headers.get("x-auth-org") != self.sim.world.org_uuid:
            return 403
        return 403 if key.denied and re.search(key.denied, path) else 0

    @staticmethod
    def _misfit(body: Any, fields: dict[str, str]) -> str:
        """What is wrong with a request body; empty when nothing is."""
        if not isinstance(body, dict):
            return "an object is expected"
        for name in fields:
            if name.endswith("!") and body.get(name[:-1]) is None:
                return f"{name[:-1]} is missing"
        for name, value in body.items():
            wanted = fields.get(name) or fields.get(name + "!")
            if wanted is None:
                return f"unknown field {name}"
            if value is not None and not TYPES[wanted](value):
                return f"{name} is not of the type {wanted}"
        return ""

    def mint(self, body: dict[str, Any]) -> dict[str, Any]:
        value = ruuid(str(uuidlib.uuid4()))
        self.sim.tokens[value] = Token(self.sim.clock(), body.get("durationSec") or 3600, body.get("deviceUUid"))
        self.sim.tokens_minted += 1
        return {"federatedSessionToken": value}

    def clients(self, body: dict[str, Any]) -> dict[str, Any]:
        world = self.sim.world
        client = {"clientOrgUuid": world.org_uuid, "clientOrgName": "Client", "totalCameras": len(world.cameras)}
        return {"clients": [client]}

    def _state(self, device: Camera) -> dict[str, Any]:
        red = device.status == "RED"
        state: dict[str, Any] = {
            "uuid": device.uuid, "name": device.name, "locationUuid": device.location_uuid,
            "subLocationsHierarchyKey": ".".join(self.sim.world.path_to(device.location_uuid)) or None,
            "connectionStatus": device.status, "healthStatus": device.status,
            "healthStatusDetails": "DISCONNECTED" if red else "NONE", "hwVariation": device.hw_variation,
            "mediaRegion": "us-west-2", "region": "us-west-2", "serialNumber": "SIM" + device.uuid[:6],
            "firmwareVersion": "1.2.3", "lanAddresses": ["127.0.0.1"] * device.lan_addresses,
            "mummified": device.mummified, "somethingNew": {"unheard": ["of"]}}
        if device.null_fields:
            state.update(subLocationsHierarchyKey=None, healthStatusDetails=None, lanAddresses=None, serialNumber=None)
        return state

    def cameras(self, body: dict[str, Any]) -> dict[str, Any]:
        shown = [c for c in self.sim.world.cameras if body.get("includeMummified") or not c.mummified]
        return {"cameraStates": [{
            **self._state(c), "mediaStorageDeviceUuid": c.media_storage_device_uuid,
            "supportedFacets": None if c.null_fields else c.facets,
            "facetNameMap": None if c.null_fields else {f: f"{c.name} {f}" for f in c.facets}} for c in shown]}

    def gateways(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"audioGatewayStates": [{**self._state(g), "associatedCameras": None if g.null_fields else g.cameras}
                                       for g in self.sim.world.gateways]}

    def locations(self, body: dict[str, Any]) -> dict[str, Any]:
        def shown(location: Location) -> dict[str, Any]:
            below = [shown(sub) for sub in location.sub_locations] if body.get("subLocationsIncluded") else None
            return {"uuid": location.uuid, "name": location.name, "tz": location.tz, "subLocations": below}

        return {"locations": [shown(location) for location in self.sim.world.locations]}

    def _uris(self, asked: str, device: Camera | None) -> dict[str, Any]:
        """Media addresses of a device facet; of an unknown one, no addresses and no WAN field."""
        facet = asked[23:] or (device.facets[0] if device else "")
        if device is None or facet not in device.facets:
            return {"lanCheckUrls": [], "lanVodMpdUrisTemplates": [], "lanVodM3u8UrisTemplates": []}
        named = device.uuid if facet in ("v0", "a0") else f"{device.uuid}.{facet}"
        bases = [f"{base}/{named}/" for base in self.sim.lan_urls(device)]
        wan = f"https://{REAL_WAN_HOST}" if self.sim.switches.real_names else self.sim.wan_url
        wan = f"{wan}/dash/api/{device.uuid}.{facet}/{{START_TIME}}/{{DURATION}}/vod/file"
        lists = {"lanCheckUrls": bases,
                 "lanVodMpdUrisTemplates": [f"{b}dash/{{START_TIME}}_{{DURATION}}/clip.mpd" for b in bases]}
        uris = {"wanVodMpdUriTemplate": f"{wan}.mpd"}
        if not isinstance(device, Gateway):
            lists["lanVodM3u8UrisTemplates"] = [f"{b}hls/{{START_TIME}}_{{DURATION}}/clip.m3u8" for b in bases]
            uris["wanVodM3u8UriTemplate"] = f"{wan}.m3u8"
        unneeded = {"lanCheckUrls", "lanVodM3u8UrisTemplates"} if device.null_fields else set()
        return {**uris, **{n: None if n in unneeded or not v and device.null_fields else v for n, v in lists.items()}}

    def _device(self, body: dict[str, Any]) -> tuple[str, Camera | None]:
        """The identifier in a request and its device, None when that is not of the kind that the field says."""
        name, asked = next((n, body[n]) for n in ("cameraUuid", "gatewayUuid", "deviceUuid") if body.get(n))
        device = self.sim.world.device(asked)
        return asked, device if isinstance(device, Gateway) != (name == "cameraUuid") else None

    def media_uris(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._uris(*self._device(body))

    def doorbell_uris(self, body: dict[str, Any]) -> dict[str, Any]:
        device = self.sim.world.device(body["deviceUuid"])
        return self._uris(body["deviceUuid"], device if device and device.own_audio else None)

    def bulk(self, body: dict[str, Any]) -> dict[str, Any] | Response:
        if not self.sim.switches.bulk:
            return refusal(403)
        world, details = self.sim.world, {}
        for asked in body["devices"]:
            device = world.device(asked)
            if device is None:
                continue
            gateways = [f"{g.uuid}.a0" for g in world.gateways if device.uuid in map(plain, g.cameras)]
            details[asked if "." in asked else f"{asked}.{device.facets[0]}"] = {
                "name": device.name, "deviceType": "AUDIO_GATEWAY" if isinstance(device, Gateway) else "CAMERA",
                "hwVariation": device.hw_variation, "timezone": "UTC", "region": "us-west-2",
                "audioGateways": None if device.null_fields else gateways, **self._uris(asked, device)}
        return {"mediaDeviceDetails": details}

    def full_state(self, body: dict[str, Any]) -> dict[str, Any]:
        camera = self.sim.world.device(body["cameraUuid"])
        if camera is None:
            return {"fullCameraState": None}
        local = camera.recorded("local", self.sim.clock())
        return {"fullCameraState": {"onCameraState": {"oldest_segment_secs": min((w[0] for w in local), default=None)},
                                    "onCloudState": {"cloud_archive_days": RETENTION_SEC // 86_400}}}

    def presence(self, body: dict[str, Any]) -> dict[str, Any] | Response:
        switches, now = self.sim.switches, self.sim.clock()
        if switches.presence is False:
            return refusal(500, "presence is not available")
        if switches.presence == "null":
            return {"presenceWindows": None}
        _, device = self._device(body)
        if device is None:
            return {"presenceWindows": {}}
        first, last = body["startTimeSec"], body["startTimeSec"] + body["durationSec"]
        windows: dict[str, Any] = {}
        for store in ("cloud", "local"):
            if store == "local" and device.status == "RED" and switches.presence_hides_offline:
                continue
            trimmed = [(max(start, first, int(now) - RETENTION_SEC), min(end, last))
                       for start, end in device.recorded(store, now)]
            kind = ("Audio" if isinstance(device, Gateway) else "Video") + store.capitalize()
            windows[kind] = [{"startSeconds": start, "durationSeconds": end - start}
                             for start, end in trimmed if end > start]
            if device.null_fields and not windows[kind]:
                windows[kind] = None
        return {"presenceWindows": windows}

    def alerts(self, body: dict[str, Any]) -> dict[str, Any] | Response:
        if (body.get("lastTimestampMs") is None) != (body.get("lastUuid") is None):
            return refusal(400, "the cursor needs lastTimestampMs and lastUuid")
        chosen = [a for a in self.sim.world.alerts if self._asked_for(a, body)]
        chosen.sort(key=lambda a: (a.timestamp_ms, a.uuid), reverse=True)
        page = chosen[: min(body.get("maxResults") or self.sim.switches.page_cap, self.sim.switches.page_cap)]
        if self.sim.switches.alert_form == "old":
            return {"alerts": [self._merged(self._old_entry(a), a) for a in page]}
        return {"policyAlerts": [self._merged(self._entry(a), a) for a in page]}

    def alerts_v2(self, body: dict[str, Any]) -> dict[str, Any] | Response:
        result = self.alerts(body)
        if isinstance(result, dict) and "policyAlerts" in result:
            oldest = min(self.sim.world.alerts, key=lambda a: a.timestamp_ms, default=None)
            result["oldestPolicyAlert"] = oldest and self._entry(oldest)
        return result

    def _asked_for(self, alert: Alert, body: dict[str, Any]) -> bool:
        edge = 0 if self.sim.switches.alert_bounds == "inclusive" else 1
        after, before = body.get("afterTimestampMs"), body.get("beforeTimestampMs")
        if after is not None and alert.timestamp_ms < after + edge:
            return False
        if before is not None and alert.timestamp_ms > before - edge:
            return False
        if body.get("lastUuid") and (alert.timestamp_ms, alert.uuid) >= (body["lastTimestampMs"], body["lastUuid"]):
            return False
        devices, places, doors = (body.get(f) for f in ("deviceFilter", "locationFilter", "accessControlledDoorFilter"))
        raised_by = alert.clips() if alert.door else [alert.device_uuid]
        if devices is not None and not set(map(plain, filter(None, raised_by))) & set(devices):
            return False
        if places is not None and alert.location_uuid not in places:
            return False
        return doors is None or (alert.door and ruuid("door") in doors)

    @staticmethod
    def _merged(entry: dict[str, Any], alert: Alert) -> dict[str, Any]:
        return {name: value for name, value in {**entry, **alert.extra}.items() if value != DELETE}

    def _entry(self, alert: Alert) -> dict[str, Any]:
        region = {"region": "us-west-2"}
        entry = {
            "type": "ACCESS_CONTROLLED_DOOR_POLICY_ALERT" if alert.door else "POLICY_ALERT_V2", "uuid": alert.uuid,
            "timestampMs": alert.timestamp_ms, "durationSec": alert.duration_sec, "policyAlertTriggers": alert.triggers,
            "textDescription": None, "locationUuid": alert.location_uuid, "policyUuid": ruuid("policy"),
            "orgUuid": self.sim.world.org_uuid, "finalized": alert.finalized, "saved": False, "deleted": False,
            "thumbnailLocation": region, "clipLocationMap": dict.fromkeys(alert.clips(), region)}
        if alert.door:
            return {**entry, "accessControlledDoorUuid": ruuid("door"), "originatorEntityName": "Side door"}
        return {**entry, "deviceUuid": alert.device_uuid, "deviceType": alert.device_type, "clipLocation": region}

    def _old_entry(self, alert: Alert) -> dict[str, Any]:
        uuid = alert.device_uuid or next(iter(alert.clips()), None)
        device = self.sim.world.device(uuid or "")
        return {"alertId": alert.uuid, "alertType": "_".join(alert.triggers).lower(), "deviceUuid": uuid,
                "deviceName": device.name if device else None, "timestampMs": alert.timestamp_ms,
                "eventEndMs": alert.timestamp_ms + alert.duration_sec * 1000}


# --- the media hosts ---

WAN_PATH = re.compile(r"/dash/api/([\w-]{22})\.([va]\d)/(\d+)/(\d+)/vod/([\w.]+)", re.ASCII)
LAN_PATH = re.compile(r"/([\w-]{22})(?:\.([va]\d))?/dash/(\d+)_(\d+)/([\w.]+)", re.ASCII)
SEGMENT_NAME = re.compile(r"seg_(\d+)\.(m4v|webm)")


class MediaHosts:
    """The answers of LAN devices and of the WAN edge."""

    def __init__(self, sim: Simulator) -> None:
        self.sim = sim

    def answer(self, request: Request) -> Response:
        if request.method != "GET":
            return refusal(405)
        lan = request.kind == "lan"
        if lan and "/" + request.device + "/" == request.path:
            return Response(200, [b"OK"], "text/plain")  # lanCheckUrls
        if status := (self.lan_refuses(request) if lan else self.wan_refuses(request)):
            return refusal(status)
        found = (LAN_PATH if lan else WAN_PATH).fullmatch(request.path)
        device = self.sim.world.device(found[1]) if found else None
        if not found or device is None or (lan and device.uuid != request.device):
            return refusal(404)
        facet, start, duration, name = found[2] or device.facets[0], int(found[3]), int(found[4]), found[5]
        if facet not in device.facets:
            return refusal(404)
        if duration < 1:
            return refusal(400, "the duration is at least a second")
        return self._part(device, facet, start, duration, name, lan)

    def wan_refuses(self, request: Request) -> int:
        credentials = request.credentials()
        if len(credentials) != 1 or credentials == ("cookie",):
            return 403
        if credentials == ("federated-token",):
            return 403 if "x-auth-apikey" in request.headers else self._token_refused(request)
        key, scheme = self.sim.keys.get(request.headers.get("x-auth-apikey", "")), credentials[0]
        if key is None or key.scheme != scheme or key.host != MAIN_HOST or (scheme == "api") != request.internal:
            return 403
        if scheme == "partner-api-token" and request.headers.get("x-auth-org") != self.sim.world.org_uuid:
            return 403
        return 0

    def lan_refuses(self, request: Request) -> int:
        credentials = request.credentials()
        if "x-auth-apikey" in request.headers or "x-auth-apikey" in request.query:
            self.sim.leaks.append(request)
        mode = self.sim.switches.lan_auth
        known = [c for c in credentials if c in ("cookie", "federated-token")]
        if not credentials:
            return 401
        if len(known) != 1 or (mode == "cookie" and len(credentials) > 1):
            return 403
        if mode == ("federated-only" if known == ["cookie"] else "cookie"):
            return 403
        return self._token_refused(request)

    def _token_refused(self, request: Request) -> int:
        values = request.tokens()
        for value in values:
            token = self.sim.tokens.get(value)
            if token is None or (token.device and plain(token.device) != request.device):
                return 403
            if not self.sim.lives(token):
                return self.sim.switches.expired_status
        return 0 if values else 401

    def _part(self, device: Camera, facet: str, start: int, duration: int, name: str, lan: bool) -> Response:
        media, switches = self.sim.media, self.sim.switches
        offered = {"webm"} if isinstance(device, Gateway) else {"m4v", "webm"} if device.own_audio else {"m4v"}
        if name == ("clip.mpd" if lan else "file.mpd"):
            return Response(200, [self._mpd(device, facet, duration, lan).encode()], "application/dash+xml")
        if name == "seg_init.mp4" and "m4v" in offered:
            return Response(200, [media.video_init], "video/mp4")
        if name == "seg_init_audio.hdr" and "webm" in offered:
            return Response(200, [media.audio_init], "audio/webm")
        found = SEGMENT_NAME.fullmatch(name)
        if not found or found[2] not in offered:
            return refusal(404)
        sound = found[2] == "webm"
        index = int(found[1]) - (1 if sound else switches.lan_start_number if lan else switches.wan_start_number)
        if not 0 <= index < math.ceil(duration / SEGMENT_SEC):
            return refusal(404)
        even = start - start % SEGMENT_SEC
        at = even + index * SEGMENT_SEC
        bank = media.audio if sound else media.video
        segment = bank[(at // SEGMENT_SEC + 7 * int(facet[1:])) % len(bank)]  # facets of a camera look different
        if not self._recorded(device, at, lan):
            if (switches.lan_missing if lan else switches.missing) == "404":
                return refusal(404)
            segment = media.silence if sound else media.placeholder
        clock = at if switches.timestamps == "absolute" else index * SEGMENT_SEC
        return Response(200, segment.at(index + 1, clock), "audio/webm" if sound else "video/mp4")

    def _recorded(self, device: Camera, at: int, lan: bool) -> bool:
        """Is the segment that starts at this second there? Its middle decides at the edge of a window."""
        now = self.sim.clock()
        offline = device.status == "RED" or device.mummified
        stores = ["local"] if lan else ["cloud"] if offline else ["local", "cloud"]
        middle = at + SEGMENT_SEC // 2
        return at + SEGMENT_SEC <= now and any(
            start <= middle < end for store in stores for start, end in device.recorded(store, now))

    def _mpd(self, device: Camera, facet: str, duration: int, lan: bool) -> str:
        kit, switches = self.sim.media.kit, self.sim.switches
        number = switches.lan_start_number if lan else switches.wan_start_number
        size = f'width="{kit.width}" height="{kit.height}"'
        video = f"""    <AdaptationSet id="0" contentType="video" mimeType="video/mp4" segmentAlignment="true">
      <SegmentTemplate timescale="1000" duration="2000" startNumber="{number}"
                       initialization="seg_init.mp4" media="seg_$Number$.m4v"/>
      <Representation id="{facet}" codecs="avc1.640028" {size} bandwidth="{kit.bitrate}"/>
    </AdaptationSet>
"""
        audio = f"""    <AdaptationSet id="1" contentType="audio" mimeType="audio/webm" segmentAlignment="true">
      <Representation id="a0" codecs="opus" audioSamplingRate="48000" bandwidth="{kit.audio_bitrate}">
        <SegmentTemplate timescale="1000" duration="2000" startNumber="1"
                         initialization="seg_init_audio.hdr" media="seg_$Number$.webm"/>
      </Representation>
    </AdaptationSet>
"""
        sets = audio if isinstance(device, Gateway) else video + (audio if device.own_audio else "")
        return f"""<?xml version="1.0" encoding="UTF-8"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static"
     mediaPresentationDuration="PT{duration}S" minBufferTime="PT4S">
  <Period id="0" start="PT0S">
{sets}  </Period>
</MPD>
"""


# --- the simulator: listeners, connections, memory ---


class Simulator:
    """The whole cloud, in daemon threads of this process; a context manager."""

    def __init__(self, world: World | None = None, switches: Switches | None = None, *, tls: bool = False,
                 media: MediaKit | None = None, clock: Callable[[], float] = time.time, port: int = 0) -> None:
        self.clock = clock
        self.world = world or default_world(clock())
        self.switches = switches or Switches()
        self.tls = tls
        self.faults: list[Fault] = []
        self.requests: list[RequestRecord] = []
        self.leaks: list[Request] = []  # requests that brought an API key to a LAN device
        self.connects: list[tuple[str, int]] = []  # what the proxy was asked for, and its answer
        self.max_parallel: Counter[str] = Counter()  # "wan", "lan UUID" …: most requests in progress at once
        self.tokens: dict[str, Token] = {}
        self.tokens_minted = 0
        self.api_key, self.partner_key, self.cert_key = (ruuid(f"{n} key") for n in ("token", "partner", "certificate"))
        self.no_alerts_key, self.no_bulk_key, self.other_region_key = (
            ruuid(f"{n} key") for n in ("no alerts", "no bulk", "other region"))
        self.keys = {key.value: key for key in (
            Key(self.api_key), Key(self.partner_key, "partner-api-token"), Key(self.cert_key, "api"),
            Key(self.no_alerts_key, denied="/event/"), Key(self.no_bulk_key, denied="/mediadevice/"),
            Key(self.other_region_key, host=EU_HOST))}
        self.media = (media or MediaKit()).load()
        self._api, self._hosts = Api(self), MediaHosts(self)
        self._lock = threading.Lock()
        self._busy: Counter[str] = Counter()
        self._link = Pacer()
        self._allowance, self._allowance_at = self.switches.burst, time.monotonic()
        self._waits: dict[str, Wait] = {}
        self._stopping = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._listeners: list[Listener] = []
        self._sockets: set[socket.socket] = set()
        self._lan: dict[str, Listener] = {}
        self._dead: dict[tuple[str, int], list[socket.socket]] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="rhombus_simulator-"))
        self._contexts: dict[str, ssl.SSLContext] = {}
        self.ca_file = self.client_cert = self.client_key = self.proxy_url = ""
        if tls:
            self._make_certificates()
        http = "https" if tls else "http"
        api, wan = self._listen("api", port=port), self._listen("wan")
        self.api_url, self.wan_url = (f"{http}://127.0.0.1:{listener.port}" for listener in (api, wan))
        self._named_ports = {MAIN_HOST: api.port, EU_HOST: api.port, ".dash.rhombussystems.com": wan.port}
        if tls:
            self._named_ports[".dash-internal.rhombussystems.com"] = self._listen("internal").port
            self.proxy_url = f"http://127.0.0.1:{self._listen('proxy').port}"
        for device in [*self.world.cameras, *self.world.gateways]:
            self._lan_listener(device)
        threading.Thread(target=self._accept, name="simulator", daemon=True).start()

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._stopping.set()
        with self._lock:
            open_sockets = [*self._sockets, *(listener.sock for listener in self._listeners),
                            *(sock for socks in self._dead.values() for sock in socks)]
        for sock in open_sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # wakes a thread that is reading, also below TLS
            with contextlib.suppress(OSError):
                sock.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # what tests ask

    def add_fault(self, fault: Fault) -> None:
        with self._lock:
            self.faults.append(fault)

    def count(self, regex: str) -> int:
        """How many requests match, as "KIND METHOD PATH STATUS"."""
        with self._lock:
            return sum(bool(re.search(regex, f"{r.line} {r.status}")) for r in self.requests)

    def clear(self) -> None:
        """Forgets requests, leaks, waits and counts; world, switches, faults and tokens stay."""
        with self._lock:
            for memory in (self.requests, self.leaks, self.connects, self.max_parallel, self._waits):
                memory.clear()
            self.tokens_minted = 0

    def lives(self, token: Token) -> bool:
        life = min(token.duration_sec, self.switches.token_life_sec)
        return not token.dead and self.clock() < token.minted_at + life

    def lan_urls(self, device: Camera) -> list[str]:
        """A base address per LAN address of the device, those that do not answer first."""
        scheme = "https" if self.tls else "http"
        dead = device.lan_dead_addresses if device.answers_lan() else device.lan_addresses
        ports = [self._dead_port(n) for n in range(min(dead, device.lan_addresses))]
        ports += [self._lan_listener(device).port] * (device.lan_addresses - len(ports))
        return [f"{scheme}://127.0.0.1:{port}" for port in ports]

    # listening

    def _listen(self, kind: str, device: str = "", port: int = 0) -> Listener:
        listener = Listener(kind, socket.create_server(("127.0.0.1", port), backlog=256), device)
        listener.sock.setblocking(False)
        with self._lock:
            self._listeners.append(listener)
            self._selector.register(listener.sock, selectors.EVENT_READ, listener)
        return listener

    def _lan_listener(self, device: Camera) -> Listener:
        if device.uuid not in self._lan:
            self._lan[device.uuid] = self._listen("lan", device.uuid)
        return self._lan[device.uuid]

    def _dead_port(self, number: int) -> int:
        """A port on which nobody listens, or where connecting hangs (its queue is full and never emptied)."""
        mode = self.switches.dead_lan
        if (mode, number) not in self._dead:
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            held = [sock]
            if mode == "silent":
                sock.listen(0)
                for _ in range(4):
                    held.append(filler := socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex(sock.getsockname())
            self._dead[mode, number] = held
        return int(self._dead[mode, number][0].getsockname()[1])

    def _make_certificates(self) -> None:
        import trustme

        authority, device_authority = trustme.CA(), trustme.CA()
        paths = {name: str(self._folder / name) for name in ("ca.pem", "client.pem", "client.key", "device.pem")}
        self.ca_file, self.client_cert, self.client_key = paths["ca.pem"], paths["client.pem"], paths["client.key"]
        authority.cert_pem.write_to_path(self.ca_file)
        client = authority.issue_cert("client@example.org")
        client.cert_chain_pems[0].write_to_path(self.client_cert)
        client.private_key_pem.write_to_path(self.client_key)
        server = authority.issue_cert(*CERTIFIED_NAMES)
        for kind, verify in (("api", ssl.CERT_OPTIONAL), ("wan", ssl.CERT_NONE), ("internal", ssl.CERT_REQUIRED)):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.configure_cert(context)
            authority.configure_trust(context)
            context.verify_mode = verify
            self._contexts[kind] = context
        Path(paths["device.pem"]).write_bytes(
            device_authority.private_key_pem.bytes() + device_authority.cert_pem.bytes())
        self._contexts["lan self-signed"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._contexts["lan self-signed"].load_cert_chain(paths["device.pem"])
        self._contexts["lan valid"] = self._contexts["wan"]

    def _accept(self) -> None:
        while not self._stopping.is_set():
            for key, _ in self._selector.select(timeout=0.2):
                with contextlib.suppress(OSError):
                    sock, _ = key.data.sock.accept()
                    sock.setblocking(True)
                    sock.settimeout(IDLE_SEC)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._serve, args=(sock, key.data), daemon=True).start()

    def _serve(self, sock: socket.socket, listener: Listener) -> None:
        """One connection from its first byte to its last."""
        with self._lock:
            self._sockets.add(sock)
        secured: socket.socket = sock
        try:
            if listener.kind == "lan" and self._is_off(listener.device):
                Connection(sock, listener).reset()
                return
            name = f"lan {self.switches.lan_tls}" if listener.kind == "lan" else listener.kind
            if context := self._contexts.get(name):
                secured = context.wrap_socket(sock, server_side=True)
                with self._lock:
                    self._sockets.add(secured)
            connection = Connection(secured, listener)
            if listener.kind == "proxy":
                self._tunnel(connection)
                return
            while not self._stopping.is_set() and (request := connection.read_request()):
                if not self._handle(connection, request):
                    break
        except (OSError, ValueError):
            pass  # the client went away, or does not speak HTTP: nobody is left to tell
        finally:
            with self._lock:
                self._sockets -= {sock, secured}
            secured.close()

    def _is_off(self, device_uuid: str) -> bool:
        device = self.world.device(device_uuid)
        return device is None or not device.answers_lan()

    # answering

    def _handle(self, connection: Connection, request: Request) -> bool:
        """Answers one request; True when the connection stays open."""
        if request.path.startswith("/_sim/") and request.kind == "api":
            return self._send(connection, request, self._control(request), None)[0]
        if request.kind == "lan" and self._is_off(request.device):
            connection.reset()
            return False
        record = RequestRecord(
            time.time(), request.kind, request.method, request.path, urllib.parse.urlencode(request.query),
            request.device, request.credentials(), tuple(request.cookies),
            "x-auth-apikey" in request.headers or "x-auth-apikey" in request.query, request.headers.get("host", ""),
            request.client_certificate, request.body.decode("utf-8", "replace"))
        places = (request.kind, f"{request.kind} {request.device}")
        with self._lock:
            self.requests.append(record)
            record.early, wait_sec = self._waiting(request.kind)
            fault = None if wait_sec else next((f for f in self.faults if f.takes(record.line)), None)
            record.fault = fault.kind if fault else ""
            for place in places:
                self._busy[place] += 1
                self.max_parallel[place] = max(self.max_parallel[place], self._busy[place])
        try:
            response = self._too_many(wait_sec) if wait_sec else self._respond(request, fault)
            record.status = response.status if response else 0
            if self.switches.latency_sec:
                self._stopping.wait(self.switches.latency_sec)
            if response is None:  # reset, stall_headers
                if fault and fault.kind == "stall_headers":
                    self._stopping.wait(fault.stall_sec)
                connection.reset()
                return False
            keep, record.sent_bytes = self._send(connection, request, response, fault)
            return keep
        finally:
            with self._lock:
                for place in places:
                    self._busy[place] -= 1

    def _respond(self, request: Request, fault: Fault | None) -> Response | None:
        """The answer; None: none at all."""
        if fault and fault.kind in ("reset", "stall_headers"):
            return None
        if fault and (invented := self._invented(request, fault)):
            return invented
        if request.kind == "api" and self._over_limit():
            return self._too_many(self.switches.retry_after_sec)
        response = self._api.answer(request) if request.kind == "api" else self._hosts.answer(request)
        if fault and fault.kind in ("short", "garbage"):
            body = b"".join(response.body)
            response.body = [body[: len(body) // 2] if fault.kind == "short" else os.urandom(len(body))]
        return response

    def _invented(self, request: Request, fault: Fault) -> Response | None:
        """The answer of a fault that does not need the true one."""
        body = fault.body.encode() if isinstance(fault.body, str) else fault.body
        if fault.kind == "status" and fault.status == 429:
            asked = next((value for name, value in fault.headers.items() if name.lower() == "retry-after"), "")
            with self._lock:
                self._begin_wait(request.kind, float(asked) if asked.isdigit() else self.switches.retry_after_sec)
        if fault.kind == "refuse_token":
            for token in filter(None, map(self.tokens.get, request.tokens())):
                token.dead = True
            return refusal(fault.status or 401)
        return {"status": Response(fault.status or 503, [body], "text/plain", fault.headers),
                "html": Response(200, [LOGIN_PAGE], "text/html"), "empty": Response(200, [b""], "video/mp4"),
                "in_band": json_response(200, {"error": True, "errorMsg": "simulated failure", "warningMsg": None}),
                "body": Response(fault.status or 200, [body], "application/octet-stream", fault.headers),
                }.get(fault.kind)

    # rate limit

    def _begin_wait(self, kind: str, length_sec: float) -> None:
        """A 429 is about to be sent. Holds the lock."""
        now = time.monotonic()
        self._waits[kind] = Wait(now + self.switches.latency_sec + IN_FLIGHT_SEC, now + length_sec, length_sec)

    def _waiting(self, kind: str) -> tuple[bool, float]:
        """Of a request that comes now: is it early, and the wait for which it is refused, 0 if not. Holds the lock."""
        wait, now = self._waits.get(kind), time.monotonic()
        if wait is None or now >= wait.end:
            return False, 0
        early = now > wait.known_from
        if early:
            wait.end = now + wait.length_sec
        return early, wait.length_sec if early or kind == "api" else 0

    def _over_limit(self) -> bool:
        rate = self.switches.rate_limit_per_sec
        if rate <= 0:
            return False
        with self._lock:
            now = time.monotonic()
            self._allowance = min(self.switches.burst, self._allowance + (now - self._allowance_at) * rate)
            self._allowance_at = now
            if self._allowance >= 1:
                self._allowance -= 1
                return False
            self._begin_wait("api", self.switches.retry_after_sec)
            return True

    @staticmethod
    def _too_many(wait_sec: float) -> Response:
        after = {"Retry-After": str(max(1, math.ceil(wait_sec)))}
        return Response(429, [b"Too many api requests. Enhance your calm."], "text/plain", after)

    # sending

    def _send(self, connection: Connection, request: Request, response: Response,
              fault: Fault | None) -> tuple[bool, int]:
        """(connection stays open, bytes of the body that were sent)."""
        media, kind = request.kind != "api", fault.kind if fault else ""
        keep = request.headers.get("connection", "").lower() != "close"
        lines = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Other')}",
                 f"Content-Type: {response.content_type}", *(f"{n}: {v}" for n, v in response.headers.items())]
        if not keep:
            lines.append("Connection: close")
        if self.switches.date:
            lines.append(f"Date: {formatdate(self.clock(), usegmt=True)}")
        body = response.body
        if media and not self.switches.content_length:
            lines.append("Transfer-Encoding: chunked")
            whole = b"".join(body)
            pieces = [whole[at : at + PIECE_BYTES] for at in range(0, len(whole), PIECE_BYTES)] + [b""]
            body = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
        else:
            lines.append(f"Content-Length: {sum(map(len, body))}")
        if kind in HALF_KINDS:
            whole = b"".join(body)
            body = [whole[: len(whole) // 2]]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        self._write(connection, [head, *body], media, fault.bytes_per_sec if fault and kind == "slow" else 0)
        if kind in HALF_KINDS:
            if kind == "stall" and fault:
                self._stopping.wait(fault.stall_sec)
            if kind == "reset_midway":
                time.sleep(0.05)  # what was sent arrives before the reset discards it
                connection.reset()
            keep = False
        return keep, sum(map(len, body))

    def _write(self, connection: Connection, parts: list[bytes | memoryview], media: bool, slow: float) -> None:
        wire, switches = b"".join(parts), self.switches
        if not slow and not (media and (switches.link_bytes_per_sec or switches.connection_bytes_per_sec)):
            connection.sock.sendall(wire)
            return
        view, slow_pacer, connection_pacer = memoryview(wire), Pacer(), Pacer()  # idle time earns nothing
        piece_bytes = PIECE_BYTES if not slow else max(1, min(PIECE_BYTES, int(slow / 10)))
        for at in range(0, len(view), piece_bytes):
            piece = view[at : at + piece_bytes]
            slow_pacer.wait(len(piece), slow)
            if media:
                connection_pacer.wait(len(piece), switches.connection_bytes_per_sec)
                self._link.wait(len(piece), switches.link_bytes_per_sec)
            connection.sock.sendall(piece)

    # proxy and control

    def _tunnel(self, connection: Connection) -> None:
        """CONNECT: the real names lead to the listeners of this simulator, everything else nowhere."""
        lines = connection.read_head()
        method, target = (lines[0].split(" ") + [""])[:2] if lines else ("", "")
        host, _, port = target.rpartition(":")
        inner = next((p for name, p in self._named_ports.items()
                      if host == name or (name.startswith(".") and host.endswith(name))), None)
        if method != "CONNECT" or port != "443" or inner is None:
            self.connects.append((target, 502))
            connection.sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        self.connects.append((target, 200))
        with socket.create_connection(("127.0.0.1", inner)) as far:
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(far, connection.sock), daemon=True)
            back.start()
            far.sendall(bytes(connection.buffer))
            _pump(connection.sock, far)
            back.join(IDLE_SEC)

    def _control(self, request: Request) -> Response:
        command = f"{request.method} {request.path.removeprefix('/_sim/')}"
        try:
            sent = json.loads(request.body or b"{}")
            if command == "POST switches":
                for name in sent.keys() - {f.name for f in dataclasses.fields(Switches)}:
                    return refusal(400, f"unknown switch {name}")
                for name, value in sent.items():
                    setattr(self.switches, name, value)
                return json_response(200, dataclasses.asdict(self.switches))
            if command == "POST faults":
                self.faults[:] = [Fault(**entry) for entry in sent]
                return json_response(200, {"faults": len(self.faults)})
        except (ValueError, TypeError, AttributeError) as exc:
            return refusal(400, str(exc))
        with self._lock:
            records = list(self.requests)
        if command == "GET requests":
            return json_response(200, [dataclasses.asdict(record) for record in records])
        if command == "GET counts":
            kinds = Counter(f"{record.kind} {record.status}" for record in records)
            return json_response(200, {
                "requests": kinds, "early": sum(r.early for r in records), "leaks": len(self.leaks),
                "tokens_minted": self.tokens_minted, "max_parallel": self.max_parallel,
                "media_bytes": sum(r.sent_bytes for r in records if r.kind != "api")})
        if command == "POST clear":
            self.clear()
            return json_response(200, {})
        return refusal(404, "no such control")

    def description(self) -> dict[str, Any]:
        """What another process needs to know to use it."""
        world, keys = self.world, ("api", "partner", "cert", "no_alerts", "no_bulk", "other_region")
        return {
            "api_url": self.api_url, "wan_url": self.wan_url, "api_key": self.api_key,
            "keys": {name: getattr(self, f"{name}_key") for name in keys}, "org_uuid": world.org_uuid,
            "ca_file": self.ca_file, "proxy_url": self.proxy_url, "client_cert": self.client_cert,
            "client_key": self.client_key, "pid": os.getpid(), "alerts": len(world.alerts),
            "cameras": [{"uuid": c.uuid, "name": c.name, "location_uuid": c.location_uuid, "status": c.status}
                        for c in world.cameras],
            "locations": [{"uuid": place.uuid, "name": place.name} for place in world.locations]}


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass  # one side is gone; the other is told below
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


# --- by hand ---


def build_parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=rest, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port of the API (default: any free one)")
    parser.add_argument("--tls", action="store_true", help="https everywhere, client certificates, CONNECT proxy")
    parser.add_argument("--cameras", type=int, metavar="N", help="so many equal cameras (default: a small mixed world)")
    parser.add_argument("--alerts", type=int, default=0, metavar="N", help="with --cameras: so many alerts")
    for name in ("latency_sec", "link_bytes_per_sec", "connection_bytes_per_sec"):
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="X", help="0: no limit (default)")
    parser.add_argument("--switch", action="append", default=[], metavar="NAME=JSON",
                        help="any other switch, e.g. missing='\"404\"'; repeatable")
    parser.add_argument("--fault", action="append", default=[], metavar="JSON", help="a fault rule; repeatable")
    for name in ("width", "height", "fps", "bitrate", "bank", "b_frames"):
        default = getattr(MediaKit, name)
        parser.add_argument(f"--media_{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--exit_with_stdin", action="store_true", help="end when standard input is closed")
    return parser


def _set_at_end(stream: BinaryIO, done: threading.Event) -> None:
    stream.read()
    done.set()


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    switches = Switches(args.latency_sec, args.link_bytes_per_sec, args.connection_bytes_per_sec)
    try:
        for name, _, value in (entry.partition("=") for entry in args.switch):
            if not hasattr(switches, name):
                parser.error(f"unknown switch {name}")
            setattr(switches, name, json.loads(value))
        faults = [Fault(**json.loads(entry)) for entry in args.fault]
    except (ValueError, TypeError) as exc:
        parser.error(str(exc))
    kit = MediaKit(args.media_width, args.media_height, args.media_fps, args.media_bitrate, args.media_bank,
                   args.media_b_frames)
    world = wide_world(time.time(), args.cameras, args.alerts) if args.cameras else None
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    try:
        simulator = Simulator(world, switches, tls=args.tls, media=kit, port=args.port)
    except (OSError, RuntimeError, ImportError) as exc:  # the port is taken, no FFmpeg, no trustme
        sys.stderr.write(f"the simulator cannot start: {exc}\n")
        return 3
    with simulator as sim:
        sim.faults.extend(faults)
        sys.stdout.write(json.dumps(sim.description()) + "\n")
        sys.stdout.flush()
        if args.exit_with_stdin:
            threading.Thread(target=_set_at_end, args=(sys.stdin.buffer, done), daemon=True).start()
        while not done.wait(1):  # in steps: a signal is seen on every platform
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
