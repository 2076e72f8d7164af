#!/usr/bin/env python3
"""A scriptable RTSP camera on this machine: real H.264 or H.265, every frame numbered, every fault on command.

For tests and benchmarks of recorders. A frame carries its number inside the picture data (in an SEI message), so it
can be counted in any recorded file which of the frames that the camera made are there, and which were lost.

examples:
  python tests/fake_camera.py
  python tests/fake_camera.py --port 8554 --fps 10 --audio pcma --user u --password p
  python tests/fake_camera.py --port 8554 --script "10 wedge; 20 unwedge; 30 reboot 5"
  python tests/fake_camera.py --cameras 64
  ffmpeg -rtsp_transport tcp -i rtsp://127.0.0.1:8554/stream -c copy -t 20 taken.mkv
  python tests/fake_camera.py --numbers taken.mkv

One line of JSON on stdout says where the cameras are; the process then runs until SIGINT or SIGTERM.
With --exit_with_stdin it ends with its standard input, and takes commands there, a line each: "wedge" for all cameras,
"3: reboot 5" for the one with index 3, "status" for a line of JSON.

How it behaves where cameras differ:
  frames    Frame n is made at start + n / fps, whether or not anybody is connected, through wedges and reboots.
  start     A client gets frames from the next key frame on (start="at_once": from the middle of a GOP;
            start="new_key": the encoder makes a key frame for it).
  buffer    What a client does not take is kept, up to buffer_bytes per client. A frame (or audio packet) that finds no
            room is dropped, each by itself: no waiting for a key frame. RTP sequence numbers show no gap for it.
  wedge     Nothing but RTCP sender reports and answers to requests, for new clients too.

Needs: FFmpeg with libx264 and libx265 (the package imageio-ffmpeg, or on PATH); with --tls also the package trustme.
State: pictures are made once and kept in the temporary folder (fake_camera_media-UID).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
import json
import math
import os
import random
import re
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
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

HOST = "127.0.0.1"
REALM = "fake camera"
MARK = b"fake camera No. "  # the 16 bytes that stand where an SEI of this kind has its UUID
NUMBER_DIGITS = 12  # decimal: no byte of it can look like a start code
NUMBERED = re.compile(re.escape(MARK) + rb"(\d{%d})" % NUMBER_DIGITS)
VIDEO_CLOCK_HZ = 90_000  # RFC 6184 and RFC 7798
VIDEO_PAYLOAD_TYPE, AAC_PAYLOAD_TYPE = 96, 97  # dynamic ones; G.711 has fixed numbers (RFC 3551)
PAYLOAD_BYTES = 1400  # of one RTP packet: fits an Ethernet frame with all headers
ROUNDING_FRAMES = 1e-4  # epoch seconds as a float are off by up to a quarter of a microsecond
LOOP_SEC = 4  # pictures repeat after this, or after one GOP where that is longer
G711_RATE_HZ, G711_SAMPLES = 8000, 320  # 40 ms in a packet, as many cameras do
AAC_RATE_HZ, AAC_SAMPLES = 16_000, 1024
AUDIO_TICKS_PER_SEC = 10  # audio is sent at least so often, also at one frame per second
REPORT_SEC = 1.0  # between RTCP sender reports
NTP_EPOCH_SEC = 2_208_988_800  # from 1900 to 1970
SESSION_TIMEOUT_SEC = 60  # announced, so that clients send keep-alives; not enforced
SEND_BUFFER_BYTES = 65_536  # the kernel's share of a client's buffer, small so that buffer_bytes decides
MAX_HEAD_BYTES = 64 * 1024
SWITCH_TIMEOUT_SEC = 10  # a switch takes effect within microseconds, or something is badly wrong
MAKE_TIMEOUT_SEC = 300  # FFmpeg, for the pictures or for reading a file
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
           453: "Not Enough Bandwidth", 454: "Session Not Found", 461: "Unsupported Transport",
           455: "Method Not Valid in This State"}
AUDIO, CODECS = ("none", "pcma", "pcmu", "aac"), ("h264", "h265")
AUTH, STARTS = ("digest", "basic", "none"), ("next_key", "at_once", "new_key")
METHODS = "OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, SET_PARAMETER, TEARDOWN"

Result = TypeVar("Result")


# --- frame numbers: written by the camera, read from recorded files ---


def numbered_sei(codec: str, number: int) -> bytes:
    """A NAL unit with the number: SEI, user_data_unregistered (type 5 in ITU-T H.264 D.1.7 and H.265 D.2.7)."""
    header = b"\x06" if codec == "h264" else b"\x4e\x01"  # SEI; prefix SEI
    text = MARK + b"%0*d" % (NUMBER_DIGITS, number)
    return header + bytes([5, len(text)]) + text + b"\x80"


def frame_numbers(path: str | Path, ffmpeg: str | None = None) -> list[int]:
    """The numbers of the video frames that FFmpeg can read from a file, in the file's order; also of a broken file.

    RuntimeError when it can read none at all.
    """
    command = [ffmpeg or find_ffmpeg(), "-nostdin", "-v", "error", "-i", str(path), "-map", "0:v:0", "-c", "copy",
               "-f", "rawvideo", "pipe:1"]  # packets one after the other, whatever container and codec
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=MAKE_TIMEOUT_SEC)
    numbers = [int(found[1]) for found in NUMBERED.finditer(done.stdout)]
    if done.returncode and not numbers:
        raise RuntimeError(f"{path}: not readable: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return numbers


def numbers_between(started: float, fps: float, start: float, end: float) -> list[int]:
    """The numbers of the frames that a camera makes in [start, end): epoch seconds, as `started`, its own start."""
    first, behind = (max(0, math.ceil((when - started) * fps - ROUNDING_FRAMES)) for when in (start, end))
    return list(range(first, behind))


def find_ffmpeg() -> str:
    try:
        import imageio_ffmpeg
    except ImportError:
        if found := shutil.which("ffmpeg"):
            return found
        raise RuntimeError("ffmpeg not found: install it, or the package imageio-ffmpeg (makes the pictures)") from None
    return str(imageio_ffmpeg.get_ffmpeg_exe())


# --- pictures and sound: made by FFmpeg once ---


@dataclass(frozen=True)
class Picture:
    """An access unit as RTP payloads; the numbered SEI is sent between `before` and `after`."""

    key: bool
    before: tuple[bytes, ...]  # parameter sets
    after: tuple[bytes, ...]  # slices
    size: int


@dataclass(frozen=True)
class Footage:
    pictures: tuple[Picture, ...]
    parameter_sets: tuple[bytes, ...]  # SPS, PPS; in H.265 VPS, SPS, PPS


@dataclass(frozen=True)
class Sound:
    """Audio in packets that repeat."""

    payload_type: int
    clock_hz: int
    rtpmap: str
    fmtp: str
    packet_samples: int
    payloads: tuple[bytes, ...]


def nal_units(stream: bytes) -> list[bytes]:
    """The NAL units of an Annex B stream."""
    return [unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1")[1:]]


def nal_type(codec: str, unit: bytes) -> int:
    return unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63


def rtp_payloads(codec: str, unit: bytes) -> list[bytes]:
    """One NAL unit as a single packet, or in fragments (FU-A of RFC 6184, FU of RFC 7798)."""
    if len(unit) <= PAYLOAD_BYTES:
        return [unit]
    if codec == "h264":
        indicator, kind, body = bytes([unit[0] & 0xE0 | 28]), unit[0] & 31, unit[1:]
    else:
        indicator, kind, body = bytes([unit[0] & 0x81 | 49 << 1, unit[1]]), unit[0] >> 1 & 63, unit[2:]
    room = PAYLOAD_BYTES - len(indicator) - 1
    pieces = [body[at : at + room] for at in range(0, len(body), room)]
    flags = [0x80, *[0] * (len(pieces) - 2), 0x40]
    return [indicator + bytes([flag | kind]) + piece for flag, piece in zip(flags, pieces, strict=True)]


def access_units(codec: str, stream: bytes) -> list[tuple[bool, list[bytes], list[bytes]]]:
    """(whether it is a key frame, parameter sets, slices) of each picture.

    Cut at the access unit delimiters; delimiters and SEI are left out, as many cameras do.
    """
    delimiter, sets, sei, keys = (9, (7, 8), (6,), (5,)) if codec == "h264" else (35, (32, 33, 34), (39, 40), (19, 20))
    units: list[tuple[list[bytes], list[bytes]]] = []
    for unit in nal_units(stream):
        kind = nal_type(codec, unit)
        if kind == delimiter:
            units.append(([], []))
        elif kind not in sei:
            units[-1][kind not in sets].append(unit)
    if not units or len(units[0][0]) != len(sets) or nal_type(codec, units[0][1][0]) not in keys:
        raise RuntimeError("the pictures that FFmpeg made do not begin with a key frame and its parameter sets")
    return [(nal_type(codec, slices[0]) in keys, before, slices) for before, slices in units]


def split_pictures(codec: str, stream: bytes) -> Footage:
    pictures = []
    for key, before, slices in access_units(codec, stream):
        after = [payload for unit in slices for payload in rtp_payloads(codec, unit)]
        pictures.append(Picture(key, tuple(before), tuple(after), sum(map(len, [*before, *after]))))
    return Footage(tuple(pictures), pictures[0].before)


def video_command(codec: str, width: int, height: int, fps: float, gop_frames: int, bitrate: int) -> list[str]:
    """Closed GOPs without B-frames, so that pictures can be looped and sent in the order of their display."""
    gops = 2 * math.ceil(LOOP_SEC * fps / gop_frames / 2) if gop_frames < LOOP_SEC * fps else 1
    rate = Fraction(fps).limit_denominator(1001)
    common = ["-f", "lavfi", "-i", f"testsrc2=s={width}x{height}:r={rate}", "-frames:v", str(gops * gop_frames),
              "-pix_fmt", "yuv420p", "-threads", "1", "-preset", "ultrafast", "-g", str(gop_frames), "-bf", "0",
              "-b:v", str(bitrate), "-maxrate", str(bitrate), "-bufsize", str(bitrate)]
    if codec == "h264":
        return [*common, "-c:v", "libx264", "-flags", "+cgop", "-sc_threshold", "0", "-x264-params", "aud=1",
                "-f", "h264"]
    x265 = f"aud=1:repeat-headers=1:open-gop=0:scenecut=0:keyint={gop_frames}:min-keyint={gop_frames}:bframes=0"
    return [*common, "-c:v", "libx265", "-x265-params", f"{x265}:info=0:log-level=error:pools=none:frame-threads=1",
            "-f", "hevc"]


def made_by_ffmpeg(command: list[str]) -> bytes:
    """What the command (without program and output) makes, from the cache where it has been made before."""
    ffmpeg = find_ffmpeg()
    state = Path(ffmpeg).stat()
    key = hashlib.sha256(repr((command, ffmpeg, state.st_size, state.st_mtime)).encode()).hexdigest()[:20]
    root = Path(tempfile.gettempdir()) / f"fake_camera_media-{getattr(os, 'getuid', int)()}"
    if (root / key).is_file():
        return (root / key).read_bytes()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=root) as work:
        made = Path(work) / "made"
        done = subprocess.run([ffmpeg, "-nostdin", "-v", "error", *command, str(made)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=MAKE_TIMEOUT_SEC)
        if done.returncode:
            raise RuntimeError(f"ffmpeg could not make the pictures: {done.stderr.strip()[-500:]}")
        made.replace(root / key)  # whole or not at all; who is slower replaces the same by the same
    return (root / key).read_bytes()


@functools.lru_cache(maxsize=8)  # cameras of one kind in a process share their pictures
def load_footage(codec: str, width: int, height: int, fps: float, gop_frames: int, bitrate: int) -> Footage:
    return split_pictures(codec, made_by_ffmpeg(video_command(codec, width, height, fps, gop_frames, bitrate)))


def sound_command(kind: str) -> list[str]:
    rate_hz = AAC_RATE_HZ if kind == "aac" else G711_RATE_HZ
    chirp = ["-f", "lavfi", "-i", f"aevalsrc=0.3*sin(2*PI*(300*t+50*t*t)):s={rate_hz}:d={LOOP_SEC}", "-ac", "1"]
    if kind == "aac":
        return [*chirp, "-c:a", "aac", "-b:a", "32000", "-f", "adts"]
    return [*chirp, "-f", {"pcma": "alaw", "pcmu": "mulaw"}[kind]]


def sound_of(kind: str, raw: bytes) -> Sound:
    if kind == "aac":
        # config is the AudioSpecificConfig (ISO 14496-3): object type 2 (LC), frequency index 8 (16 kHz), one channel
        sizes = "sizelength=13;indexlength=3;indexdeltalength=3"
        fmtp = f"streamtype=5;profile-level-id=15;mode=AAC-hbr;config=1408;{sizes}"
        return Sound(AAC_PAYLOAD_TYPE, AAC_RATE_HZ, f"mpeg4-generic/{AAC_RATE_HZ}/1", fmtp, AAC_SAMPLES,
                     tuple(aac_payloads(raw)))
    pieces = tuple(raw[at : at + G711_SAMPLES] for at in range(0, len(raw), G711_SAMPLES))
    return Sound({"pcmu": 0, "pcma": 8}[kind], G711_RATE_HZ, f"{kind.upper()}/{G711_RATE_HZ}", "", G711_SAMPLES, pieces)


@functools.lru_cache(maxsize=8)
def load_sound(kind: str) -> Sound:
    return sound_of(kind, made_by_ffmpeg(sound_command(kind)))


def aac_payloads(adts: bytes) -> list[bytes]:
    """Each AAC frame behind its AU header section (RFC 3640, AAC-hbr: 13 bits of size, 3 of index)."""
    payloads, at = [], 0
    while at + 7 <= len(adts):
        length = (adts[at + 3] & 3) << 11 | adts[at + 4] << 3 | adts[at + 5] >> 5
        frame = adts[at + (7 if adts[at + 1] & 1 else 9) : at + length]
        payloads.append(struct.pack(">HH", 16, len(frame) << 3) + frame)
        at += length
    return payloads


# --- RTP: one track of one session ---


@dataclass
class Track:
    """Numbers the packets of one stream for one client."""

    control: str  # its name in the SDP
    clock_hz: int
    payload_type: int
    channel: int = 0  # of RTP over TCP; RTCP has the next one
    sockets: tuple[socket.socket, ...] = ()  # UDP: RTP and RTCP, connected to the client
    ssrc: int = field(default_factory=lambda: random.getrandbits(32))
    sequence: int = field(default_factory=lambda: random.getrandbits(16))
    offset: int = field(default_factory=lambda: random.getrandbits(32))
    packets: int = 0
    octets: int = 0

    def timestamp(self, media_sec: float) -> int:
        return (self.offset + round(media_sec * self.clock_hz)) & 0xFFFFFFFF

    def rtp(self, payloads: list[bytes], timestamp: int, *, marked: bool) -> list[bytes]:
        """The packets; the last one with the marker bit, if any."""
        packets, last = [], len(payloads) - 1
        for index, payload in enumerate(payloads):
            marker = 0x80 if marked and index == last else 0
            packets.append(struct.pack(">BBHII", 0x80, marker | self.payload_type, self.sequence, timestamp, self.ssrc)
                           + payload)
            self.sequence = (self.sequence + 1) & 0xFFFF
            self.octets += len(payload)
        self.packets += len(payloads)
        return packets

    def sender_report(self, wall: float, timestamp: int) -> bytes:
        """RTCP: SR and the SDES that has to follow it (RFC 3550)."""
        seconds, fraction = divmod(wall + NTP_EPOCH_SEC, 1)
        report = struct.pack(">BBHIIIIII", 0x80, 200, 6, self.ssrc, int(seconds) & 0xFFFFFFFF, int(fraction * 2**32),
                             timestamp, self.packets & 0xFFFFFFFF, self.octets & 0xFFFFFFFF)
        return report + struct.pack(">BBHIBB6s", 0x81, 202, 3, self.ssrc, 1, 6, b"camera")

    def goodbye(self) -> bytes:
        return struct.pack(">BBHI", 0x81, 203, 1, self.ssrc)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@dataclass
class SessionRecord:
    """A client that played, for the test to read."""

    started: float  # epoch seconds
    ended: float | None = None
    how: str = ""  # teardown, closed (by the client), reset, half-open, reboot, stop; "": lives
    transport: str = "tcp"
    user_agent: str = ""
    frames: int = 0


# --- RTSP: one connection ---


@dataclass(frozen=True)
class Request:
    method: str
    url: str
    headers: dict[str, str]  # names in lower case


def parse_request(head: bytes) -> Request | None:
    lines = head.decode("utf-8", "surrogateescape").split("\r\n")
    first = lines[0].split(" ")
    if len(first) != 3 or not first[2].startswith("RTSP/"):
        return None
    pairs = (line.partition(":") for line in lines[1:])
    return Request(first[0], first[1], {name.strip().lower(): value.strip() for name, _, value in pairs})


class Connection(asyncio.Protocol):
    """What one client sees: requests answered, its tracks, and the buffer of what it has not taken yet."""

    def __init__(self, camera: FakeCamera) -> None:
        self.camera = camera
        self.nonce = f"{random.getrandbits(128):032x}"
        self.buffer = bytearray()
        self.session = ""
        self.tracks: dict[str, Track] = {}
        self.playing = False
        self.awaits_key = False
        self.silent = False  # after BYE: no media, no reports
        self.dead = False  # half open: nothing in, nothing out
        self.held: deque[tuple[socket.socket | None, bytes]] = deque()  # while the camera is frozen
        self.held_bytes = 0
        self.record: SessionRecord | None = None
        self.ending = ""  # why the camera itself ends it

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.camera.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.camera.connections.discard(self)
        self.end_session(self.ending or "closed")

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.buffer and not self.dead:
            if self.buffer[0] == 0x24:  # "$": interleaved RTCP from the client
                if len(self.buffer) < 4 or len(self.buffer) < (size := 4 + int.from_bytes(self.buffer[2:4], "big")):
                    return
                del self.buffer[:size]
                continue
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self.buffer) > MAX_HEAD_BYTES:
                    self.transport.abort()
                return
            request = parse_request(bytes(self.buffer[:end]))
            if request is None:
                self.transport.abort()
                return
            size = end + 4 + int(request.headers.get("content-length", 0))
            if len(self.buffer) < size:
                return
            del self.buffer[:size]
            self.answer(request)

    # requests

    def answer(self, request: Request) -> None:
        camera, method = self.camera, request.method
        if method == "OPTIONS":  # open to everybody, as in most cameras
            self.reply(request, 200, {"Public": METHODS})
        elif not self.allowed(request):
            if "authorization" in request.headers:
                camera.logins_refused += 1
            self.reply(request, 401, {"WWW-Authenticate": self.challenge()})
        elif camera.is_not_found or not self.known(request.url):
            self.reply(request, 404)
        elif method == "DESCRIBE":
            body = camera.sdp().encode()
            self.reply(request, 200, {"Content-Base": camera.url_without_credentials + "/",
                                      "Content-Type": "application/sdp"}, body)
        elif method == "SETUP":
            self.setup(request)
        elif method in ("PLAY", "GET_PARAMETER", "SET_PARAMETER", "TEARDOWN"):
            self.in_session(request)
        else:
            self.reply(request, 405, {"Allow": METHODS})

    def known(self, url: str) -> bool:
        path = unquote(urlsplit(url).path).rstrip("/")
        return path == self.camera.path or path.startswith(self.camera.path + "/") or url == "*"

    def allowed(self, request: Request) -> bool:
        camera, given = self.camera, request.headers.get("authorization", "")
        if camera.refuses:
            return False
        if camera.auth == "none" or camera.user is None:
            return True
        scheme, _, rest = given.partition(" ")
        if scheme.lower() != camera.auth:
            return False
        if camera.auth == "basic":
            expected = base64.b64encode(f"{camera.user}:{camera.password}".encode()).decode()
            return hmac.compare_digest(rest.strip().encode("utf-8", "surrogateescape"), expected.encode())
        fields = dict(re.findall(r'(\w+)="?((?:(?<==")[^"]*)|[^",\s]*)"?', rest))

        def md5(*parts: str) -> str:
            return hashlib.md5(":".join(parts).encode("utf-8", "surrogateescape")).hexdigest()

        owner = md5(camera.user, REALM, camera.password or "")
        wanted = md5(owner, self.nonce, md5(request.method, fields.get("uri", "")))
        return fields.get("username") == camera.user and fields.get("response") == wanted

    def challenge(self) -> str:
        if self.camera.auth == "basic":
            return f'Basic realm="{REALM}"'
        return f'Digest realm="{REALM}", nonce="{self.nonce}", stale="FALSE"'

    def setup(self, request: Request) -> None:
        camera = self.camera
        control = unquote(urlsplit(request.url).path).rpartition("/")[2]
        made = camera.new_track(control)
        if made is None:
            return self.reply(request, 404)
        if self.playing:
            return self.reply(request, 455)
        if not self.session and camera.sessions_max and camera.sessions_open() >= camera.sessions_max:
            return self.reply(request, 453)
        for offer in request.headers.get("transport", "").split(","):
            if transport := self.accept(offer.strip(), made):
                self.session = self.session or f"{random.randrange(10**8):08d}"
                self.tracks[control] = made
                return self.reply(request, 200, {"Transport": f"{transport};ssrc={made.ssrc:08X}"})
        return self.reply(request, 461)

    def accept(self, offer: str, track: Track) -> str:
        """The transport as it will be, "" when this offer is none that the camera can take."""
        profile, *options = offer.split(";")
        values = dict(option.partition("=")[::2] for option in options)
        if "multicast" in values:
            return ""
        if profile.upper() == "RTP/AVP/TCP":
            first = int(values.get("interleaved", str(2 * len(self.tracks))).partition("-")[0])
            track.channel = first
            return f"RTP/AVP/TCP;unicast;interleaved={first}-{first + 1}"
        if profile.upper() not in ("RTP/AVP", "RTP/AVP/UDP") or not self.camera.udp or "client_port" not in values:
            return ""
        low = int(values["client_port"].partition("-")[0])
        track.sockets = udp_pair(self.transport.get_extra_info("peername")[0], low)
        here = track.sockets[0].getsockname()[1]
        return f"RTP/AVP;unicast;client_port={low}-{low + 1};server_port={here}-{here + 1}"

    def in_session(self, request: Request) -> None:
        asked = request.headers.get("session", "").partition(";")[0]
        keep_alive = request.method in ("GET_PARAMETER", "SET_PARAMETER")
        if asked != self.session if asked else not keep_alive:
            return self.reply(request, 454)
        if request.method == "PLAY":
            return self.play(request)
        self.reply(request, 200)
        if request.method == "TEARDOWN":
            self.end_session("teardown")
        return None

    def play(self, request: Request) -> None:
        camera, now = self.camera, self.camera.elapsed()
        media_sec = now + camera.jump_sec
        streams = [f"url={camera.url_without_credentials}/{track.control};seq={track.sequence}"
                   f";rtptime={track.timestamp(media_sec)}" for track in self.tracks.values()]
        newly, self.playing = not self.playing, True
        self.reply(request, 200, {"Range": "npt=now-", "RTP-Info": ",".join(streams)})
        if newly:
            self.awaits_key = camera.start != "at_once"
            if camera.start == "new_key":
                camera.make_key_frame()
            kind = "udp" if any(track.sockets for track in self.tracks.values()) else "tcp"
            self.record = SessionRecord(camera.wall(now), None, "", kind, request.headers.get("user-agent", ""))
            camera.sessions.append(self.record)
            self.report()

    def reply(self, request: Request, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        lines = [f"RTSP/1.0 {status} {REASONS[status]}", f"CSeq: {request.headers.get('cseq', '0')}"]
        if self.session and status == 200:
            lines.append(f"Session: {self.session};timeout={SESSION_TIMEOUT_SEC}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.put(None, ("\r\n".join(lines) + "\r\n\r\n").encode() + body)

    # what goes out

    def put(self, sock: socket.socket | None, data: bytes) -> None:
        """To the client, over TCP or (sock) UDP; kept while the camera is frozen."""
        if self.dead:
            return
        if self.camera.frozen:
            self.held.append((sock, data))
            self.held_bytes += len(data)
        elif sock is None:
            self.transport.write(data)
        else:
            with contextlib.suppress(OSError):  # nobody listens there any more, or the kernel has no room: UDP
                sock.send(data)

    def release(self) -> None:
        """The freeze is over: all that was held, at once."""
        held, self.held, self.held_bytes = self.held, deque(), 0
        for sock, data in held:
            self.put(sock, data)

    def has_room(self, size: int) -> bool:
        return self.held_bytes + self.transport.get_write_buffer_size() + size <= self.camera.buffer_bytes

    def put_packets(self, track: Track, packets: list[bytes], part: int) -> None:
        """RTP (part 0) or RTCP (part 1) of a track."""
        if track.sockets:
            for packet in packets:
                self.put(track.sockets[part], packet)
        else:
            channel = track.channel + part
            framed = [piece for p in packets for piece in (struct.pack(">BBH", 0x24, channel, len(p)), p)]
            self.put(None, b"".join(framed))

    def takes_media(self) -> bool:
        return self.playing and not self.silent and not self.dead

    def put_frame(self, picture: Picture, number: int) -> bool | None:
        """Whether the frame was taken into the client's buffer; None: it is not for this client."""
        track = self.tracks.get("video")
        if track is None or not self.takes_media() or (self.awaits_key and not picture.key):
            return None
        if not self.has_room(picture.size):
            return False
        self.awaits_key = False
        camera = self.camera
        payloads = [*picture.before, numbered_sei(camera.codec, number), *picture.after]
        timestamp = track.timestamp(number / camera.fps + camera.jump_sec)
        self.put_packets(track, track.rtp(payloads, timestamp, marked=True), 0)
        if self.record:
            self.record.frames += 1
        return True

    def put_audio(self, sound: Sound, index: int) -> None:
        track = self.tracks.get("audio")
        payload = sound.payloads[index % len(sound.payloads)]
        if track is None or not self.takes_media() or not self.has_room(len(payload)):
            return
        media_sec = index * sound.packet_samples / sound.clock_hz + self.camera.jump_sec
        marked = sound.payload_type == AAC_PAYLOAD_TYPE  # RFC 3640: the end of an AU; RFC 3551: only after a silence
        self.put_packets(track, track.rtp([payload], track.timestamp(media_sec), marked=marked), 0)

    def report(self, *, goodbye: bool = False) -> None:
        """RTCP sender reports; a BYE has to stand behind one (RFC 3550 6.1), alone FFmpeg ignores it."""
        if self.takes_media():
            now = self.camera.elapsed()
            for track in self.tracks.values():
                timestamp = track.timestamp(now + self.camera.jump_sec)
                packet = track.sender_report(self.camera.wall(now), timestamp)
                self.put_packets(track, [packet + track.goodbye() if goodbye else packet], 1)

    # the end

    def say_goodbye(self) -> None:
        if self.takes_media():
            self.report(goodbye=True)
            self.silent = True

    def end_session(self, how: str) -> None:
        for track in self.tracks.values():
            track.close()
        if self.record and self.record.ended is None:
            self.record.ended, self.record.how = self.camera.wall(), how
        self.record, self.tracks, self.session, self.playing, self.silent = None, {}, "", False, False

    def abandon(self) -> None:
        """Half open: the connection stays, nobody is there any more."""
        self.end_session("half-open")
        self.dead = True
        self.transport.pause_reading()

    def close(self, how: str, *, reset: bool) -> None:
        self.ending = how
        if reset:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def udp_pair(client: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Sockets on two neighbouring ports, for RTP and RTCP, connected to the client's pair."""
    while True:
        pair = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        pair[0].bind((HOST, 0))
        try:
            pair[1].bind((HOST, pair[0].getsockname()[1] + 1))
        except (OSError, OverflowError):  # taken, or the last port of all
            for sock in pair:
                sock.close()
            continue
        for index, sock in enumerate(pair):
            sock.setblocking(False)
            sock.connect((client, port + index))
        return pair[0], pair[1]


# --- the camera ---


class CameraLoop:
    """A thread with an event loop; many cameras may live in one."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="fake cameras", daemon=True)
        self.thread.start()

    def call(self, work: Callable[[], Result]) -> Result:
        """Run in the loop's thread; the result, or what it raised."""
        if threading.current_thread() is self.thread:
            return work()

        async def wrapped() -> Result:
            return work()

        return asyncio.run_coroutine_threadsafe(wrapped(), self.loop).result(SWITCH_TIMEOUT_SEC)

    def stop(self) -> None:
        if not self.loop.is_closed():
            self.call(lambda: None)  # what was scheduled before is done
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(SWITCH_TIMEOUT_SEC)
            self.loop.close()


class FakeCamera:
    """Works from the moment it is made until stop() or the end of its with block; see the text above."""

    def __init__(self, *, fps: float = 10, gop_sec: float = 1.0, audio: str = "none", codec: str = "h264",
                 user: str | None = None, password: str | None = None, auth: str = "digest", sessions_max: int = 0,
                 tls: bool = False, udp: bool = False, width: int = 160, height: int = 120, bitrate: int = 150_000,
                 port: int = 0, path: str = "/stream", buffer_bytes: int = 1_000_000, start: str = "next_key",
                 plugged: bool = True, loop: CameraLoop | None = None) -> None:
        for name, value, known in (("audio", audio, AUDIO), ("codec", codec, CODECS), ("auth", auth, AUTH),
                                   ("start", start, STARTS)):
            if value not in known:
                raise ValueError(f"{name} {value!r}: not one of {', '.join(known)}")
        self.fps, self.codec, self.audio, self.start = fps, codec, audio, start
        self.user, self.password, self.auth = user, password, auth
        self.sessions_max, self.udp, self.path, self.buffer_bytes = sessions_max, udp, path.rstrip("/"), buffer_bytes
        self._footage = load_footage(codec, width, height, fps, max(1, round(gop_sec * fps)), bitrate)
        self._sound = load_sound(audio) if audio != "none" else None
        self._tls = server_context() if tls else None

        self.frame_log: list[tuple[int, float]] = []  # (number, epoch seconds) of frames taken for at least one client
        self.frames_dropped: list[int] = []  # numbers of frames that found no room in a client's buffer
        self.sessions: list[SessionRecord] = []  # everybody who ever played
        self.logins_refused = 0  # requests with credentials that were answered with 401
        self.connections: set[Connection] = set()
        self.wedged = self.video_killed = self.frozen = self.refuses = self.is_not_found = False
        self.jump_sec = 0.0

        self._own_loop = loop is None
        self._loop = loop or CameraLoop()
        self._started_wall, self._started_monotonic = time.time(), time.monotonic()
        self._next_number = self._next_packet = self._shift = 0
        self._next_report_sec = 0.0
        self._server: asyncio.AbstractServer | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._stopped = False
        try:
            self._socket = listening_place(port)
            self.host, self.port = HOST, int(self._socket.getsockname()[1])
            if plugged:
                self.plug()
            self._loop.call(self._tick)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> FakeCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._loop.call(self._shut_down)
            if self._own_loop:
                self._loop.stop()

    # where it is and what it did

    @property
    def url_without_credentials(self) -> str:
        return f"{'rtsps' if self._tls else 'rtsp'}://{self.host}:{self.port}{quote(self.path)}"

    @property
    def url(self) -> str:
        if self.user is None:
            return self.url_without_credentials
        login = f"{quote(self.user, safe='')}:{quote(self.password or '', safe='')}@"
        return self.url_without_credentials.replace("://", "://" + login, 1)

    @property
    def started(self) -> float:
        """When frame 0 was made, in epoch seconds; steps of the host's clock do not change it."""
        return self._started_wall

    @property
    def frames_sent(self) -> int:
        """Video frames taken for a playing client since the start."""
        return len(self.frame_log)

    @property
    def connected(self) -> int:
        """Clients that play."""
        return sum(connection.playing for connection in list(self.connections))

    def elapsed(self) -> float:
        return time.monotonic() - self._started_monotonic

    def wall(self, elapsed_sec: float | None = None) -> float:
        return self._started_wall + (self.elapsed() if elapsed_sec is None else elapsed_sec)

    def expected(self, start: float, end: float | None = None) -> list[int]:
        """The numbers of the frames that the camera made in [start, end), epoch seconds; connected or not."""
        return numbers_between(self._started_wall, self.fps, start, self.wall() if end is None else end)

    def lost(self, files: Iterable[str | Path], start: float, end: float | None = None) -> list[int]:
        """Of those the ones that none of the files holds."""
        missing = set(self.expected(start, end))
        for file in files:
            with contextlib.suppress(RuntimeError):  # a file that nobody can read holds nothing
                missing.difference_update(frame_numbers(file))
        return sorted(missing)

    def wait_until(self, elapsed_sec: float) -> None:
        """Until the camera is so old."""
        time.sleep(max(0.0, elapsed_sec - self.elapsed()))

    def wait_for_frames(self, count: int, timeout_sec: float = 20.0) -> None:
        """Until so many more frames were taken for a client."""
        until, goal = time.monotonic() + timeout_sec, self.frames_sent + count
        while self.frames_sent < goal:
            if time.monotonic() > until:
                raise TimeoutError(f"{self.url_without_credentials}: {goal - self.frames_sent} of {count} frames were "
                                   f"not asked for within {timeout_sec} s")
            time.sleep(0.01)

    # switches, to be used from any thread

    def wedge(self) -> None:
        """No more media, but RTCP sender reports, answers, and an open connection."""
        self._set(wedged=True)

    def unwedge(self) -> None:
        self._set(wedged=False)

    def kill_video(self) -> None:
        """No more video; audio and RTCP flow on."""
        self._set(video_killed=True)

    def restore_video(self) -> None:
        self._set(video_killed=False)

    def refuse(self, on: bool = True) -> None:
        """401 to every request but OPTIONS; who plays already goes on playing."""
        self._set(refuses=on)

    def not_found(self, on: bool = True) -> None:
        self._set(is_not_found=on)

    def rtp_jump(self, seconds: float) -> None:
        """RTP timestamps of all tracks go on that much later (or earlier); the wall clock in the reports does not."""
        self._set(jump_sec=self.jump_sec + seconds)

    def freeze(self, seconds: float) -> None:
        """Nothing at all is sent; what fits into the buffers is, afterwards, all at once."""

        def begin() -> None:
            self.frozen = True
            self._later("thaw", seconds, self._thaw)

        self._loop.call(begin)

    def bye(self) -> None:
        """RTCP BYE to every client that plays, then silence on that connection. Who connects anew is served."""
        self._loop.call(lambda: self._each(Connection.say_goodbye))

    def reset(self) -> None:
        """All connections end with a TCP RST. Who connects anew is served."""
        self._loop.call(lambda: self._each(lambda connection: connection.close("reset", reset=True)))

    def half_open(self) -> None:
        """All connections stay, but nothing is read or sent there any more. Who connects anew is served."""
        self._loop.call(lambda: self._each(Connection.abandon))

    def reboot(self, dead_sec: float, *, silent: bool = False) -> None:
        """Away for so long: connections are closed (silent: left half open), new ones refused."""

        def begin() -> None:
            self._unplug("reboot", silent=silent)
            self._later("plug", dead_sec, self._plug)

        self._loop.call(begin)

    def unplug(self, *, silent: bool = False) -> None:
        """Away until plug(); the port stays reserved."""
        self._loop.call(lambda: self._unplug("unplugged", silent=silent))

    def plug(self) -> None:
        self._loop.call(self._plug)

    # in the loop's thread

    def _set(self, **values: Any) -> None:
        self._loop.call(lambda: self.__dict__.update(values))

    def _each(self, work: Callable[[Connection], object]) -> None:
        for connection in list(self.connections):
            if not connection.dead:
                work(connection)

    def _later(self, name: str, seconds: float, work: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = self._loop.loop.call_later(seconds, work)

    def _cancel(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def _thaw(self) -> None:
        self._cancel("thaw")
        self.frozen = False
        self._each(Connection.release)

    def _plug(self) -> None:
        self._cancel("plug")
        if self._server is None and not self._stopped:
            self._server = Listener(self, self._socket, self._tls)

    def _unplug(self, how: str, *, silent: bool) -> None:
        self._cancel("plug")
        self._thaw()
        if self._server:
            self._server.close()
            self._server = None
            self._socket = listening_place(self.port)
        self._each(Connection.abandon if silent else lambda connection: connection.close(how, reset=False))

    def _shut_down(self) -> None:
        for name in list(self._timers):
            self._cancel(name)
        if self._server:
            self._server.close()
        elif hasattr(self, "_socket"):
            self._socket.close()
        for connection in list(self.connections):
            connection.close("stop", reset=False)

    def _tick(self) -> None:
        """Everything that is due by now; runs whether or not anybody is connected."""
        now = self.elapsed()
        while self._next_number <= now * self.fps:
            self._send_frame(self._next_number)
            self._next_number += 1
        if self._sound:
            packets_per_sec = self._sound.clock_hz / self._sound.packet_samples
            while self._next_packet + 1 <= now * packets_per_sec:  # a packet is there when its last sample is
                if not self.wedged:
                    self._each(lambda connection, i=self._next_packet: connection.put_audio(self._sound, i))
                self._next_packet += 1
        if now >= self._next_report_sec:
            self._next_report_sec = now + REPORT_SEC
            self._each(Connection.report)
        due = self._next_number / self.fps
        if self._sound:
            due = min(due, now + 1 / AUDIO_TICKS_PER_SEC)
        due = min(due, self._next_report_sec)
        self._later("tick", max(0.0, due - self.elapsed()), self._tick)

    def _send_frame(self, number: int) -> None:
        if self.wedged or self.video_killed or not self.connections:
            return
        picture = self._footage.pictures[(number - self._shift) % len(self._footage.pictures)]
        taken = [connection.put_frame(picture, number) for connection in self.connections]
        if True in taken:
            self.frame_log.append((number, self.wall()))
        if False in taken:
            self.frames_dropped.append(number)

    def make_key_frame(self) -> None:
        """The next frame is a key frame: the pictures are begun anew."""
        self._shift = self._next_number

    def sessions_open(self) -> int:
        return sum(bool(connection.session) for connection in self.connections)

    def new_track(self, control: str) -> Track | None:
        if control == "video":
            return Track("video", VIDEO_CLOCK_HZ, VIDEO_PAYLOAD_TYPE)
        if control == "audio" and self._sound:
            return Track("audio", self._sound.clock_hz, self._sound.payload_type)
        return None

    def sdp(self) -> str:
        sets = [base64.b64encode(one).decode() for one in self._footage.parameter_sets]
        if self.codec == "h264":
            profile = self._footage.parameter_sets[0][1:4].hex().upper()
            rtpmap = "H264/90000"
            fmtp = f"packetization-mode=1;profile-level-id={profile};sprop-parameter-sets={','.join(sets)}"
        else:
            rtpmap, fmtp = "H265/90000", "sprop-vps={};sprop-sps={};sprop-pps={}".format(*sets)
        video = VIDEO_PAYLOAD_TYPE
        lines = ["v=0", f"o=- {int(self._started_wall)} 1 IN IP4 {self.host}", "s=fake camera", "c=IN IP4 0.0.0.0",
                 "t=0 0", "a=control:*", f"m=video 0 RTP/AVP {video}", f"a=rtpmap:{video} {rtpmap}",
                 f"a=fmtp:{video} {fmtp}", f"a=framerate:{self.fps:g}", "a=control:video"]
        if sound := self._sound:
            lines += [f"m=audio 0 RTP/AVP {sound.payload_type}", f"a=rtpmap:{sound.payload_type} {sound.rtpmap}"]
            lines += [f"a=fmtp:{sound.payload_type} {sound.fmtp}"] if sound.fmtp else []
            lines += ["a=control:audio"]
        return "\r\n".join(lines) + "\r\n"


class Listener:
    """Accepts connections on a socket until it is closed."""

    def __init__(self, camera: FakeCamera, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        self.sock = sock
        self.sock.listen(128)
        self.sock.setblocking(False)
        self.camera, self.tls = camera, tls
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(sock.fileno(), self._accept)
        self.tasks: set[asyncio.Task[Any]] = set()

    def _accept(self) -> None:
        try:
            taken, _ = self.sock.accept()
        except OSError:  # gone again already
            return
        connecting = self.loop.connect_accepted_socket(lambda: Connection(self.camera), taken, ssl=self.tls)
        task = self.loop.create_task(connecting)
        self.tasks.add(task)
        task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a client that fails the TLS handshake is no fault of the camera

    def close(self) -> None:
        self.loop.remove_reader(self.sock.fileno())
        self.sock.close()
        for task in self.tasks:
            task.cancel()


def listening_place(port: int) -> socket.socket:
    """A socket that has the port (0: any) and does not listen yet: who connects is refused."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
    except OSError:
        sock.close()
        raise
    return sock


def server_context() -> ssl.SSLContext:
    """TLS with a certificate that nobody knows, as cameras have it."""
    import trustme

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(HOST, "localhost").configure_cert(context)
    return context


# --- by hand ---

Step = tuple[float, str, float | None]  # seconds after the start, switch, argument
PLAIN_SWITCHES = ("wedge", "unwedge", "kill_video", "restore_video", "bye", "reset", "half_open", "unplug", "plug")
SWITCHES_WITH_NUMBER = ("freeze", "rtp_jump", "reboot", "refuse", "not_found")


def parse_switch(words: list[str]) -> tuple[str, float | None]:
    if len(words) == 1 and words[0] in PLAIN_SWITCHES:
        return words[0], None
    if len(words) == 2 and words[0] in SWITCHES_WITH_NUMBER:
        return words[0], float(words[1])
    raise ValueError(f"{' '.join(words)!r}: not a switch; there are {', '.join(PLAIN_SWITCHES)}, and with a number "
                     f"{', '.join(SWITCHES_WITH_NUMBER)}")


def parse_script(text: str) -> list[Step]:
    """"10 wedge; 20 unwedge; 30 reboot 5" as steps."""
    entries = [entry.split() for entry in text.split(";") if entry.strip()]
    return sorted((float(words[0]), *parse_switch(words[1:])) for words in entries)


def throw(camera: FakeCamera, switch: str, argument: float | None) -> None:
    method = getattr(camera, switch)
    if argument is None:
        method()
    else:
        method(bool(argument) if switch in ("refuse", "not_found") else argument)


def follow_script(cameras: list[FakeCamera], steps: list[Step], done: threading.Event) -> None:
    began = time.monotonic()
    for at_sec, switch, argument in steps:
        if done.wait(max(0.0, began + at_sec - time.monotonic())):
            return
        for camera in cameras:
            throw(camera, switch, argument)


def status(cameras: list[FakeCamera]) -> list[dict[str, Any]]:
    return [{"url": camera.url, "port": camera.port, "fps": camera.fps, "started": camera.started,
             "frames_sent": camera.frames_sent, "frames_dropped": len(camera.frames_dropped),
             "connected": camera.connected, "sessions": len(camera.sessions), "logins_refused": camera.logins_refused}
            for camera in cameras]


def follow_stdin(cameras: list[FakeCamera], done: threading.Event) -> None:
    """Commands, a line each, until the end of standard input."""
    for line in sys.stdin:
        which, _, rest = line.rpartition(":")
        try:
            chosen = [cameras[int(which)]] if which else cameras
            if rest.split() == ["status"]:
                sys.stdout.write(json.dumps(status(chosen)) + "\n")
                sys.stdout.flush()
            elif rest.split():
                for camera in chosen:
                    throw(camera, *parse_switch(rest.split()))
        except (ValueError, IndexError) as exc:
            sys.stderr.write(f"{line.strip()}: {exc}\n")
    done.set()


def build_parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=rest, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the first camera (default: any free one)")
    parser.add_argument("--cameras", type=int, default=1, metavar="N", help="in this process, each on its own port")
    parser.add_argument("--path", default="/stream", metavar="PATH", help="default /stream")
    parser.add_argument("--fps", type=float, default=10, metavar="X", help="default 10")
    parser.add_argument("--gop_sec", type=float, default=1.0, metavar="X", help="between key frames (default 1)")
    parser.add_argument("--codec", choices=CODECS, default="h264")
    parser.add_argument("--audio", choices=AUDIO, default="none")
    for name, default in (("width", 160), ("height", 120), ("bitrate", 150_000), ("buffer_bytes", 1_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--user", metavar="NAME")
    parser.add_argument("--password", metavar="TEXT")
    parser.add_argument("--auth", choices=AUTH, default="digest")
    parser.add_argument("--sessions_max", type=int, default=0, metavar="N", help="0: no limit (default)")
    parser.add_argument("--start", choices=STARTS, default="next_key", help="what a client gets first")
    parser.add_argument("--tls", action="store_true", help="rtsps with a self-signed certificate")
    parser.add_argument("--udp", action="store_true", help="also RTP over UDP")
    parser.add_argument("--script", default="", metavar="TEXT", help='e.g. "10 wedge; 20 unwedge; 30 reboot 5"')
    parser.add_argument("--exit_with_stdin", action="store_true", help="end when standard input is closed")
    parser.add_argument("--numbers", metavar="FILE", help="only print the frame numbers that a recorded file holds")
    return parser


def make_cameras(args: argparse.Namespace, loop: CameraLoop) -> list[FakeCamera]:
    names = ("path", "fps", "gop_sec", "codec", "audio", "width", "height", "bitrate", "buffer_bytes", "user",
             "password", "auth", "sessions_max", "start", "tls", "udp")
    options = {name: getattr(args, name) for name in names}
    return [FakeCamera(port=args.port and args.port + n, loop=loop, **options) for n in range(args.cameras)]


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        steps = parse_script(args.script)
    except (ValueError, IndexError) as exc:
        parser.error(f"--script: {exc}")
    if args.numbers:
        sys.stdout.write("".join(f"{number}\n" for number in frame_numbers(args.numbers)))
        return 0
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    loop = CameraLoop()
    try:
        cameras = make_cameras(args, loop)
    except (OSError, RuntimeError, ImportError) as exc:  # the port is taken, no FFmpeg, no trustme
        sys.stderr.write(f"the camera cannot start: {exc}\n")
        return 3
    sys.stdout.write(json.dumps({"url": cameras[0].url, "pid": os.getpid(), "cameras": status(cameras)}) + "\n")
    sys.stdout.flush()
    threading.Thread(target=follow_script, args=(cameras, steps, done), daemon=True).start()
    if args.exit_with_stdin:
        threading.Thread(target=follow_stdin, args=(cameras, done), daemon=True).start()
    while not done.wait(1):  # in steps: a signal is seen on every platform
        pass
    for camera in cameras:
        camera.stop()
    loop.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
