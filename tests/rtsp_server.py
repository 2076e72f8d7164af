#!/usr/bin/env python3
"""A real RTSP server, not of our making: gst-rtsp-server, with the numbered frames of the fake camera.

What works with fake_camera.py might only work because both ends share a misunderstanding; here the other end is the
GStreamer project's. It runs as a process of its own, under the system's Python:

    with GstServer(user="viewer", password="secret", tls=True) as server:
        record(server.url("/h265_aac"))
        assert lost(frame_numbers(file), server.expected(start, end)) == []

Mounts: /h264 and /h265, each also with _pcma, _pcmu or _aac behind it; TCP and UDP. Every client has a stream of its
own, which begins with the next key frame.

Needs: Debian's python3-gi, gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good, and glib-networking for TLS.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parent))
import fake_camera

SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's GStreamer bindings are not visible from a virtual environment
READY_TIMEOUT_SEC = 20
STOP_TIMEOUT_SEC = 5
CHECK_TIMEOUT_SEC = 20
TICK_MS = 20
ROLE = "viewer"
SOUNDS = ("", "pcma", "pcmu", "aac")
VIDEO_CHAIN = {
    "h264": "appsrc name=video caps=video/x-h264,stream-format=byte-stream,alignment=au,framerate={rate} "
            "! rtph264pay name=pay0 pt=96 config-interval=-1",
    "h265": "appsrc name=video caps=video/x-h265,stream-format=byte-stream,alignment=au,framerate={rate} "
            "! rtph265pay name=pay0 pt=96 config-interval=-1",
}
AUDIO_CHAIN = {
    "pcma": "appsrc name=audio caps=audio/x-alaw,rate=8000,channels=1 ! rtppcmapay name=pay1 pt=8",
    "pcmu": "appsrc name=audio caps=audio/x-mulaw,rate=8000,channels=1 ! rtppcmupay name=pay1 pt=0",
    "aac": "appsrc name=audio caps=audio/mpeg,mpegversion=4,stream-format=raw,rate=16000,channels=1,"
           "codec_data=(buffer)1408 ! rtpmp4gpay name=pay1 pt=97",
}


# --- what a test uses ---


def gst_problem() -> str:
    """Why the server cannot run here; "" when it can."""
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              timeout=CHECK_TIMEOUT_SEC)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def need_gst_server() -> None:
    """Skip the test, loudly, where the server cannot run."""
    if gst_problem():
        import pytest
        from conftest import NOT_TESTED

        pytest.skip(NOT_TESTED + "gst-rtsp-server")


class GstServer:
    """The server's process, ready when this is made; ends with stop() or the with block."""

    def __init__(self, *, fps: float = 10, gop_sec: float = 1.0, user: str | None = None, password: str | None = None,
                 auth: str = "digest", tls: bool = False, width: int = 160, height: int = 120, bitrate: int = 150_000,
                 port: int = 0) -> None:
        self.fps, self.user, self.password, self.tls = fps, user, password, tls
        self._folder = tempfile.TemporaryDirectory(prefix="rtsp_server-")
        self._errors = Path(self._folder.name) / "errors"
        self.ca_file = Path(self._folder.name) / "ca.pem"  # with tls: who vouches for the server
        self._process: subprocess.Popen[str] | None = None
        try:
            gop_frames = max(1, round(gop_sec * fps))
            task = {"fps": fps, "port": port, "user": user, "password": password, "auth": auth, "certificate": "",
                    "media": self._media(width, height, gop_frames, bitrate)}
            if tls:
                task["certificate"] = self._certificate()
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen([SYSTEM_PYTHON, "-B", __file__], stdin=subprocess.PIPE, text=True,
                                                 stdout=subprocess.PIPE, stderr=errors)
            assert self._process.stdin
            self._process.stdin.write(json.dumps(task) + "\n")  # not in its arguments: there is a password in it
            self._process.stdin.flush()
            ready = self._ready()
            self.port, self.started = int(ready["port"]), float(ready["started"])
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> GstServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, mount: str = "/h264") -> str:
        login = f"{quote(self.user, safe='')}:{quote(self.password or '', safe='')}@" if self.user is not None else ""
        return f"{'rtsps' if self.tls else 'rtsp'}://{login}{fake_camera.HOST}:{self.port}{mount}"

    def expected(self, start: float, end: float | None = None) -> list[int]:
        """The numbers of the frames of [start, end), epoch seconds; also of those that nobody asked for."""
        return fake_camera.numbers_between(self.started, self.fps, start, time.time() if end is None else end)

    def kill(self) -> None:
        """SIGKILL; whoever is connected sees the connection end."""
        if self._process:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_SEC)

    def stop(self) -> None:
        if self._process:
            assert self._process.stdin and self._process.stdout
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # it ends with its standard input
            try:
                self._process.wait(STOP_TIMEOUT_SEC)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process.stdout.close()
            self._process = None
        self._folder.cleanup()

    def _media(self, width: int, height: int, gop_frames: int, bitrate: int) -> dict[str, str]:
        """Elementary streams as files: the system's Python need not have an FFmpeg."""
        commands = {codec: fake_camera.video_command(codec, width, height, self.fps, gop_frames, bitrate)
                    for codec in VIDEO_CHAIN}
        commands |= {kind: fake_camera.sound_command(kind) for kind in AUDIO_CHAIN}
        paths = {}
        for name, command in commands.items():
            path = Path(self._folder.name) / name
            path.write_bytes(fake_camera.made_by_ffmpeg(command))
            paths[name] = str(path)
        return paths

    def _certificate(self) -> str:
        import trustme

        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        issued = authority.issue_cert(fake_camera.HOST, "localhost")
        path = Path(self._folder.name) / "certificate.pem"
        issued.private_key_and_cert_chain_pem.write_to_path(path)
        return str(path)

    def _ready(self) -> dict[str, Any]:
        assert self._process and self._process.stdout
        watchdog = threading.Timer(READY_TIMEOUT_SEC, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line:
            self._process.wait(STOP_TIMEOUT_SEC)
            raise RuntimeError(f"the server did not start: {self._errors.read_text(errors='replace')[-1000:]}")
        return dict(json.loads(line))


# --- the process: under the system's Python ---


class Source:
    """Hands one client's stream to GStreamer, item by item, as they become due."""

    def __init__(self, appsrc: Any, per_sec: float, started: float, item: Callable[[int], bytes | None]) -> None:
        self.appsrc, self.per_sec, self.started, self.item = appsrc, per_sec, started, item
        self.next = math.ceil((time.monotonic() - started) * per_sec)
        self.first: tuple[int, int] | None = None  # index of the first item, its running time in ns

    def push_due(self, gst: Any) -> bool:
        """False when the client has gone."""
        while self.next <= (time.monotonic() - self.started) * self.per_sec:
            data = self.item(self.next)
            if data is not None:
                if self.first is None:  # not yet playing: time is 0. There may be a clock then that shows the uptime.
                    running = self.appsrc.get_current_running_time() if self.appsrc.get_base_time() else 0
                    self.first = self.next, 0 if running == gst.CLOCK_TIME_NONE else running
                buffer = gst.Buffer.new_wrapped(data)
                buffer.pts = self.first[1] + round((self.next - self.first[0]) / self.per_sec * gst.SECOND)
                buffer.duration = round(gst.SECOND / self.per_sec)
                if self.appsrc.emit("push-buffer", buffer) != gst.FlowReturn.OK:
                    return False
            self.next += 1
        return True


def video_items(codec: str, stream: bytes) -> Callable[[], Callable[[int], bytes | None]]:
    """Makes, for each client, the function from a frame number to its bytes; None until the first key frame."""
    pictures = fake_camera.access_units(codec, stream)

    def for_client() -> Callable[[int], bytes | None]:
        begun = False

        def item(number: int) -> bytes | None:
            nonlocal begun
            key, before, slices = pictures[number % len(pictures)]
            begun = begun or key
            units = [*before, fake_camera.numbered_sei(codec, number), *slices]
            return b"".join(b"\0\0\0\1" + unit for unit in units) if begun else None

        return item

    return for_client


def serve(task: dict[str, Any]) -> int:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer

    Gst.init(None)
    started, started_wall = time.monotonic(), time.time()
    media = {name: Path(path).read_bytes() for name, path in task["media"].items()}
    videos = {codec: video_items(codec, media[codec]) for codec in VIDEO_CHAIN}
    sounds = {kind: fake_camera.sound_of(kind, media[kind]) for kind in AUDIO_CHAIN}

    def configure(_factory: Any, prepared: Any, codec: str, kind: str) -> None:
        """A client asks for its stream: feed it from now on."""
        bin_ = prepared.get_element()
        sources = [Source(bin_.get_by_name("video"), task["fps"], started, videos[codec]())]
        if kind:
            sound = sounds[kind]
            pieces = [piece[4:] for piece in sound.payloads] if kind == "aac" else sound.payloads  # no RTP header
            sources.append(Source(bin_.get_by_name("audio"), sound.clock_hz / sound.packet_samples, started,
                                  lambda index: pieces[index % len(pieces)]))
        for source in sources:
            for name, value in (("format", Gst.Format.TIME), ("is-live", True), ("block", False)):
                source.appsrc.set_property(name, value)
        gone = threading.Event()
        prepared.connect("unprepared", lambda *_: gone.set())
        GLib.timeout_add(TICK_MS, lambda: not gone.is_set() and all(source.push_due(Gst) for source in sources))

    server = GstRtspServer.RTSPServer.new()
    server.set_address(fake_camera.HOST)
    server.set_service(str(task["port"]))
    mounts = server.get_mount_points()
    for codec, chain in VIDEO_CHAIN.items():
        for kind in SOUNDS:
            factory = GstRtspServer.RTSPMediaFactory.new()
            parts = [chain.replace("{rate}", f"{round(task['fps'] * 1000)}/1000"), AUDIO_CHAIN.get(kind, "")]
            factory.set_launch(f"( {' '.join(parts)} )")
            factory.set_protocols(GstRtsp.RTSPLowerTrans.TCP | GstRtsp.RTSPLowerTrans.UDP)
            factory.set_shared(False)
            factory.connect("media-configure", configure, codec, kind)
            permissions = GstRtspServer.RTSPPermissions.new()
            for right in ("access", "construct"):  # without the second one a client gets 404
                permissions.add_permission_for_role(ROLE, f"media.factory.{right}", True)
            factory.set_permissions(permissions)
            mounts.add_factory(f"/{codec}" + (f"_{kind}" if kind else ""), factory)
    if task["user"] is not None or task["certificate"]:
        server.set_auth(make_auth(task, GstRtsp, GstRtspServer, Gio))
    if server.attach(None) == 0:  # the only sign of a port that is taken
        raise RuntimeError(f"port {task['port']} is taken")
    sys.stdout.write(json.dumps({"port": server.get_bound_port(), "started": started_wall}) + "\n")
    sys.stdout.flush()
    loop = GLib.MainLoop()

    def end_with_stdin() -> None:
        sys.stdin.read()
        GLib.idle_add(loop.quit)

    threading.Thread(target=end_with_stdin, daemon=True).start()
    loop.run()
    return 0


def make_auth(task: dict[str, Any], rtsp: Any, rtsp_server: Any, gio: Any) -> Any:
    """Who may come in: with a name and password, or (TLS only) everybody."""
    auth = rtsp_server.RTSPAuth.new()
    token = rtsp_server.RTSPToken.new()
    token.set_string("media.factory.role", ROLE)
    if task["user"] is None:
        auth.set_default_token(token)
    elif task["auth"] == "digest":
        auth.set_supported_methods(rtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(task["user"], task["password"] or "", token)
    else:
        auth.set_supported_methods(rtsp.RTSPAuthMethod.BASIC)
        auth.add_basic(rtsp_server.RTSPAuth.make_basic(task["user"], task["password"] or ""), token)
    if task["certificate"]:
        auth.set_tls_certificate(gio.TlsCertificate.new_from_file(task["certificate"]))
    return auth


if __name__ == "__main__":
    sys.exit(serve(json.loads(sys.stdin.readline())))
