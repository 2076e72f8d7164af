"""The fake camera does what it says, no more and no less: every figure about lost frames rests on it.

A client of a few lines looks at single packets; FFmpeg, ours and Debian's, has the last word on whether it plays.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import need

sys.path.insert(0, str(Path(__file__).parent))
import fake_camera
from fake_camera import FakeCamera, SessionRecord, find_ffmpeg, frame_numbers, numbers_between
from rtsp_server import GstServer, need_gst_server

# The camera of the tests, measured in tenths of a second, which a busy machine spoils: then once more, and it is said.
pytestmark = [pytest.mark.slow, pytest.mark.flaky(reruns=2, reruns_delay=1)]
PASSWORD = "p@:/%#$ü ?"
VIDEO, VIDEO_RTCP, AUDIO, AUDIO_RTCP = range(4)  # interleaved channels, as this client asks for them
TCP = ("-rtsp_transport", "tcp")
FAST = ("-analyzeduration", "800000")  # FFmpeg otherwise looks at the stream for seconds before it writes


# --- a client of a few lines ---


@dataclass
class Packet:
    channel: int
    data: bytes
    at: float  # epoch seconds

    @property
    def timestamp(self) -> int:
        return int.from_bytes(self.data[4:8], "big")

    @property
    def number(self) -> int | None:
        found = fake_camera.NUMBERED.search(self.data)
        return int(found[1]) if found else None


class Client:
    """Asks, and sorts what comes into answers and packets."""

    def __init__(self, camera: FakeCamera, receive_bytes: int = 0) -> None:
        self.url = camera.url_without_credentials
        self.sock = socket.socket()
        if receive_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.connect((camera.host, camera.port))
        self.buffer, self.sequence, self.session = b"", 0, ""
        self.packets: list[Packet] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, method: str, path: str = "", **headers: str) -> None:
        self.sequence += 1
        lines = [f"{method} {self.url}{path} RTSP/1.0", f"CSeq: {self.sequence}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Session: {self.session}"] if self.session else []
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    def ask(self, method: str, path: str = "", **headers: str) -> tuple[int, dict[str, str], bytes]:
        self.send(method, path, **headers)
        until = time.monotonic() + 5
        while not self.answers:
            assert time.monotonic() < until, f"{method} was not answered"
            self.listen(0.05)
        return self.answers.pop(0)

    def setup(self, control: str, transport: str = "RTP/AVP/TCP;unicast;interleaved={}-{}") -> int:
        first = {"video": VIDEO, "audio": AUDIO}[control]
        status, headers, _ = self.ask("SETUP", f"/{control}", Transport=transport.format(first, first + 1))
        if status == 200:
            self.session = headers["session"].partition(";")[0]
        return status

    def play(self, *controls: str) -> Client:
        for control in controls or ("video",):
            assert self.setup(control) == 200
        assert self.ask("PLAY")[0] == 200
        return self

    def listen(self, seconds: float) -> list[Packet]:
        """What comes in that time; ConnectionError when the camera ends the connection."""
        before, until = len(self.packets), time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65_536)
            except TimeoutError:
                break
            if not data:
                raise ConnectionAbortedError("closed")
            self.buffer += data
            self.sort()
            if self.answers:
                break
        return self.packets[before:]

    def sort(self) -> None:
        while self.buffer:
            if self.buffer[0] == 0x24:
                if len(self.buffer) < 4 or len(self.buffer) < (end := 4 + int.from_bytes(self.buffer[2:4], "big")):
                    return
                self.packets.append(Packet(self.buffer[1], self.buffer[4:end], time.time()))
            else:
                head, found, rest = self.buffer.partition(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                pairs = [line.partition(": ") for line in lines[1:]]
                headers = {name.lower(): value for name, _, value in pairs}
                size = int(headers.get("content-length", 0))
                if not found or len(rest) < size:
                    return
                self.answers.append((int(lines[0].split()[1]), headers, rest[:size]))
                end = len(head) + 4 + size
            self.buffer = self.buffer[end:]

    def drain(self) -> None:
        self.listen(0.05)


def numbers(packets: list[Packet]) -> list[int]:
    return [packet.number for packet in packets if packet.number is not None]


def on(channel: int, packets: list[Packet]) -> list[Packet]:
    return [packet for packet in packets if packet.channel == channel]


def kinds(packets: list[Packet]) -> set[int]:
    return {packet.channel for packet in packets}


@contextlib.contextmanager
def playing(*controls: str, **options: Any) -> Iterator[tuple[FakeCamera, Client]]:
    """A camera and a client that has had its first frame."""
    with FakeCamera(**{"fps": 20, "gop_sec": 0.2} | options) as camera, Client(camera) as client:
        client.play(*controls)
        camera.wait_for_frames(1)
        yield camera, client


# --- FFmpeg ---


def ffconcat_command(ffmpeg: str, target: Path) -> list[str]:
    options = ["-hide_banner", "-loglevel", "level+warning", "-f", "concat", "-safe", "0", "-protocol_whitelist",
               "pipe,file,fd,rtsp,rtp,tcp,udp,tls", "-i", "pipe:0", "-map", "0:v:0", "-map", "0:a:0?", "-c", "copy"]
    segments = ["-f", "segment", "-segment_format", "matroska", "-segment_format_options",
                "flush_packets=1:cluster_time_limit=1000", "-segment_time", "3600", "-segment_atclocktime", "1",
                "-reset_timestamps", "1", "-strftime", "1", str(target)]
    return [ffmpeg, *options, *segments]


def ffconcat_text(url: str, *more: str) -> str:
    options = ["rtsp_transport tcp", "timeout 3000000", "use_wallclock_as_timestamps 1", *more]
    return "\n".join(["ffconcat version 1.0", f"file '{url}'", *(f"option {option}" for option in options), ""])


def start_taking(url: str, target: Path, *options: str, ffmpeg: str = "") -> subprocess.Popen[str]:
    """FFmpeg, recording about a second."""
    command = [ffmpeg or find_ffmpeg(), "-nostdin", "-v", "error", *FAST, *options, "-i", url, "-map", "0",
               "-c", "copy", "-t", "1", str(target)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def taken(recorder: subprocess.Popen[str]) -> None:
    _, complaints = recorder.communicate(timeout=30)
    assert recorder.returncode == 0, complaints


def assert_gapless(found: list[int], at_least: int) -> None:
    assert len(found) >= at_least
    assert found == list(range(found[0], found[0] + len(found)))


def no_certificate_check(ffmpeg: str) -> tuple[str, ...]:
    """FFmpeg knows the option since it checks certificates."""
    known = subprocess.run([ffmpeg, "-hide_banner", "-h", "demuxer=rtsp"], capture_output=True, text=True).stdout
    return ("-tls_verify", "0") if "-tls_verify" in known else ()


@pytest.fixture(params=["ours", "Debian's"])
def ffmpeg(request: pytest.FixtureRequest) -> str:
    return find_ffmpeg() if request.param == "ours" else need("ffmpeg")


def test_ffmpeg_records_with_the_url_on_stdin_and_every_frame_of_the_time_is_in_the_file(ffmpeg, tmp_path):
    with FakeCamera(fps=20, gop_sec=0.5, audio="pcma", user="viewer", password=PASSWORD) as camera:
        recorder = subprocess.Popen(ffconcat_command(ffmpeg, tmp_path / "%Y%m%dT%H%M%SZ.mkv"), stdin=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True)
        assert recorder.stdin and recorder.stderr
        recorder.stdin.write(ffconcat_text(camera.url))
        recorder.stdin.close()
        camera.wait_for_frames(50)
        recorder.send_signal(signal.SIGINT)
        complaints = recorder.stderr.read()
        recorder.wait(10)
        recorder.stderr.close()
    (file,) = tmp_path.glob("*.mkv")
    found = frame_numbers(file)
    assert_gapless(found, 48)  # the parser holds the last one or two back
    assert found[0] == camera.frame_log[0][0]
    assert "[error]" not in complaints
    assert camera.logins_refused == 0


def test_numbers_survive_copies_to_mkv_and_mp4(ffmpeg, tmp_path):
    kinds = {"h264": "pcmu", "h265": "aac"}
    with contextlib.ExitStack() as stack:
        cameras = [stack.enter_context(FakeCamera(fps=20, gop_sec=0.5, codec=codec, audio=audio))
                   for codec, audio in kinds.items()]
        recorders = [start_taking(camera.url, tmp_path / f"{camera.codec}.mkv", *TCP, ffmpeg=ffmpeg)
                     for camera in cameras]
        for recorder in recorders:
            taken(recorder)
    for codec in kinds:
        first = tmp_path / f"{codec}.mkv"
        found = frame_numbers(first)
        assert_gapless(found, 8)
        for name in (f"{codec}.mp4", f"{codec}-again.mkv"):
            command = [ffmpeg, "-nostdin", "-v", "error", "-i", str(first), "-map", "0:v", "-c", "copy"]
            subprocess.run([*command, str(tmp_path / name)], check=True, timeout=30)
            assert frame_numbers(tmp_path / name) == found
            assert frame_numbers(tmp_path / name, ffmpeg) == found


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_ffmpeg_decodes_large_frames_without_a_complaint(codec):
    with FakeCamera(fps=20, gop_sec=0.5, codec=codec, width=640, height=360, bitrate=2_000_000) as camera:
        command = [find_ffmpeg(), "-nostdin", "-v", "error", "-xerror", *FAST, *TCP, "-i",
                   camera.url, "-frames:v", "25", "-f", "null", "-"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")


def test_ffmpeg_plays_over_udp_where_the_camera_has_it_and_over_tcp_where_not(tmp_path):
    for udp, used in ((True, "udp"), (False, "tcp")):
        with FakeCamera(fps=20, gop_sec=0.5, audio="pcma", udp=udp) as camera:
            taken(start_taking(camera.url, tmp_path / f"{used}.mkv"))  # it asks for UDP by itself
            assert [session.transport for session in camera.sessions] == [used]
        assert_gapless(frame_numbers(tmp_path / f"{used}.mkv"), 8)


def test_ffmpeg_plays_over_tls_with_a_certificate_that_nobody_knows(ffmpeg, tmp_path):
    with FakeCamera(fps=20, gop_sec=0.5, tls=True, user="viewer", password=PASSWORD, auth="basic") as camera:
        assert camera.url.startswith("rtsps://viewer:p%40")
        taken(start_taking(camera.url, tmp_path / "taken.mkv", *no_certificate_check(ffmpeg), ffmpeg=ffmpeg))
    assert_gapless(frame_numbers(tmp_path / "taken.mkv"), 15)


@pytest.mark.parametrize("auth", ["digest", "basic"])
def test_a_wrong_password_is_refused_and_counted(auth):
    with FakeCamera(user="viewer", password=PASSWORD, auth=auth) as camera:
        wrong = camera.url.replace("viewer:", "viewer:x")
        command = [find_ffmpeg(), "-nostdin", "-v", "error", *TCP, "-i", wrong, "-f", "null", "-"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
        assert done.returncode != 0
        assert "401" in done.stderr
        assert (camera.logins_refused, camera.sessions) == (1, [])


def test_a_file_lacks_exactly_the_frames_that_the_camera_did_not_send(tmp_path):
    with FakeCamera(fps=20, gop_sec=0.5, audio="pcma") as camera:
        command = [find_ffmpeg(), "-v", "error", *FAST, *TCP, "-use_wallclock_as_timestamps", "1",
                   "-i", camera.url, "-map", "0", "-c", "copy", str(tmp_path / "taken.mkv")]
        recorder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        camera.wait_for_frames(20)
        camera.wedge()
        time.sleep(1)
        camera.unwedge()
        camera.wait_for_frames(5)
        camera.kill_video()
        time.sleep(1)
        camera.restore_video()
        camera.wait_for_frames(5)
        camera.rtp_jump(3600)
        camera.wait_for_frames(5)
        camera.freeze(1)
        time.sleep(1.1)
        end = camera.wall()
        camera.wait_for_frames(15)
        recorder.send_signal(signal.SIGINT)
        recorder.wait(10)
    start = camera.frame_log[0][1] - 0.04
    unsent = sorted(set(camera.expected(start, end)) - {number for number, _ in camera.frame_log})
    assert 38 <= len(unsent) <= 44, "two seconds of 20 frames"
    assert camera.lost([tmp_path / "taken.mkv"], start, end) == unsent


# --- numbering ---


def test_frames_are_numbered_by_time_whether_or_not_somebody_is_connected():
    with FakeCamera(fps=20, gop_sec=0.2) as camera:
        camera.wait_until(1)
        with Client(camera) as client:
            got = numbers(client.play().listen(0.6))
        assert 20 <= got[0] <= 26
        assert_gapless(got, 6)
        for number, wall in camera.frame_log:
            assert 0 <= wall - (camera.started + number / camera.fps) < 0.2
        assert camera.frames_sent == len(camera.frame_log)
        assert camera.expected(camera.started + 1, camera.started + 2) == list(range(20, 40))


def test_expected_takes_the_start_and_leaves_out_the_end():
    assert numbers_between(100.0, 10, 100.0, 100.5) == [0, 1, 2, 3, 4]
    assert numbers_between(100.0, 10, 99.0, 100.1) == [0]
    assert numbers_between(100.0, 10, 100.45, 100.7) == [5, 6]
    assert numbers_between(100.0, 10, 90.0, 95.0) == []


@pytest.mark.parametrize(("start", "first_is_key"), [("next_key", True), ("new_key", True), ("at_once", False)])
def test_a_client_begins_where_the_camera_begins(start, first_is_key):
    with FakeCamera(fps=20, gop_sec=1, start=start) as camera, Client(camera) as client:
        camera.wait_until(0.3)
        asked = camera.wall()
        client.play()
        camera.wait_for_frames(1)
        waited = camera.frame_log[0][1] - asked
        packets = on(VIDEO, client.listen(0.2))
        assert (waited > 0.4) == (start == "next_key")
        assert (packets[0].data[12] & 31 == 7) == first_is_key  # begins with an SPS


def test_two_clients_get_the_same_frames_and_count_once():
    with playing() as (camera, one), Client(camera) as other:
        other.play()
        camera.wait_for_frames(10)
        assert camera.connected == 2
        assert len(set(camera.frame_log)) == camera.frames_sent
        assert set(numbers(other.listen(0.1))) <= set(numbers(one.listen(0.1)))


def test_a_file_that_is_none_is_said_and_counts_as_holding_nothing(tmp_path):
    (tmp_path / "junk.mkv").write_bytes(b"junk")
    with pytest.raises(RuntimeError, match="not readable"):
        frame_numbers(tmp_path / "junk.mkv")
    with FakeCamera() as camera:
        camera.wait_until(0.35)
        assert camera.lost([tmp_path / "junk.mkv"], camera.started, camera.started + 0.35) == [0, 1, 2, 3]


# --- switches ---


def test_wedge_stops_all_media_while_reports_and_answers_go_on():
    with playing("video", "audio", audio="pcma") as (camera, client):
        camera.wedge()
        client.drain()
        before = camera.frames_sent
        assert kinds(client.listen(1.3)) == {VIDEO_RTCP, AUDIO_RTCP}
        assert client.ask("GET_PARAMETER")[0] == 200
        with Client(camera) as another:
            assert on(VIDEO, another.play().listen(0.5)) == []
        assert camera.frames_sent == before
        camera.unwedge()
        assert {VIDEO, AUDIO} <= kinds(client.listen(0.5))


def test_kill_video_leaves_audio_and_reports():
    with playing("video", "audio", audio="pcma") as (camera, client):
        camera.kill_video()
        client.drain()
        assert kinds(client.listen(1.3)) == {AUDIO, VIDEO_RTCP, AUDIO_RTCP}
        camera.restore_video()
        assert VIDEO in kinds(client.listen(0.5))


def test_a_freeze_sends_nothing_and_then_everything_at_once():
    with playing("video", "audio", audio="pcmu") as (camera, client):
        camera.freeze(1.2)
        client.drain()
        last = client.packets[-1].at
        client.send("GET_PARAMETER")
        burst = client.listen(1.6)
        assert client.answers[0][0] == 200
        assert burst == [] or burst[0].at - last > 1.0
        burst += client.listen(0.3)
        assert max(packet.at for packet in burst[:20]) - burst[0].at < 0.1
        assert_gapless(numbers(client.packets), 25)
        assert camera.frames_dropped == []


def test_a_buffer_that_is_full_drops_frames_until_there_is_room():
    with playing(buffer_bytes=10_000) as (camera, client):
        camera.freeze(1)
        time.sleep(1)
        client.listen(0.3)
        got = numbers(client.packets)
        assert 5 <= len(camera.frames_dropped) <= 19
        assert sorted(got + camera.frames_dropped) == list(range(got[0], got[-1] + 1))
        sequence = [int.from_bytes(packet.data[2:4], "big") for packet in on(VIDEO, client.packets)]
        assert all((after - before) & 0xFFFF == 1 for before, after in zip(sequence, sequence[1:], strict=False))


def test_a_client_that_does_not_read_loses_frames_when_its_buffer_is_full():
    options = {"width": 640, "height": 360, "bitrate": 4_000_000, "buffer_bytes": 200_000}
    with FakeCamera(fps=20, gop_sec=0.5, **options) as camera, Client(camera, 4096) as lazy, Client(camera) as keen:
        lazy.play()
        keen.play()
        until = time.monotonic() + 10
        while not camera.frames_dropped and time.monotonic() < until:
            keen.listen(0.1)
        assert camera.frames_dropped
        assert_gapless(numbers(keen.listen(0.5)), 8)


@pytest.mark.parametrize("jump_sec", [3600.0, -3600.0])
def test_an_rtp_jump_moves_timestamps_and_nothing_else(jump_sec):
    with playing("video", "audio", audio="pcma") as (camera, client):
        client.drain()
        camera.rtp_jump(jump_sec)
        client.listen(0.6)
        for channel, clock_hz in ((VIDEO, 90_000), (AUDIO, 8000)):
            packets = on(channel, client.packets)
            pairs = zip(packets, packets[1:], strict=False)
            steps = {(after.timestamp - before.timestamp) % 2**32 for before, after in pairs}
            jumps = [step for step in steps if clock_hz < step < 2**32 - clock_hz]
            assert len(jumps) == 1
            assert abs((jumps[0] - jump_sec * clock_hz) % 2**32) <= clock_hz / 20
        assert_gapless(numbers(client.packets), 8)


def test_bye_is_said_once_per_track_and_then_there_is_silence():
    with playing("video", "audio", audio="pcma") as (camera, client):
        client.drain()
        camera.bye()
        said = [packet for packet in client.listen(1.3) if packet.data[1] == 200 and b"\x81\xcb\0\x01" in packet.data]
        assert kinds(said) == {VIDEO_RTCP, AUDIO_RTCP}
        assert client.packets[-1] in said
        with Client(camera) as another:
            assert numbers(another.play().listen(0.5))


def test_reset_ends_every_connection_with_an_rst():
    with playing() as (camera, client), Client(camera) as idle:
        idle.ask("OPTIONS")
        camera.reset()
        for one in (client, idle):
            with pytest.raises(ConnectionResetError):
                one.listen(2)
        assert [session.how for session in camera.sessions] == ["reset"]


def test_half_open_connections_stay_and_say_nothing_while_new_ones_are_served():
    with playing(sessions_max=1) as (camera, client):
        camera.half_open()
        client.drain()
        client.send("OPTIONS")
        assert (client.listen(1.2), client.answers) == ([], [])
        with Client(camera) as another:
            assert numbers(another.play().listen(0.5))
        assert [session.how for session in camera.sessions] == ["half-open", "closed"] or camera.connected


def test_a_reboot_refuses_until_it_is_over_and_numbers_go_on():
    with playing() as (camera, client):
        port = camera.port
        camera.reboot(1.0)
        rebooted = camera.wall()
        with pytest.raises(ConnectionError):
            client.listen(2)
        with pytest.raises(ConnectionRefusedError):
            Client(camera)
        back = wait_for_connection(camera)
        assert 0.9 < back - rebooted < 1.3
        assert camera.port == port
        with Client(camera) as again:
            got = numbers(again.play().listen(0.6))
        assert camera.expected(back - 0.06)[0] <= got[0] <= camera.expected(back - 0.06)[0] + 6
        assert [session.how for session in camera.sessions][0] == "reboot"


def test_a_silent_reboot_leaves_the_old_connection_half_open():
    with playing() as (camera, client):
        camera.reboot(0.3, silent=True)
        client.drain()
        assert client.listen(0.8) == []
        with Client(camera) as another:
            assert numbers(another.play().listen(0.5))


def test_a_camera_that_is_unplugged_at_the_start_has_its_port_already():
    with FakeCamera(plugged=False) as camera:
        with pytest.raises(ConnectionRefusedError):
            Client(camera)
        camera.plug()
        with Client(camera) as client:
            assert client.ask("OPTIONS")[0] == 200


def test_refuse_and_not_found_hold_for_new_requests_only():
    with playing() as (camera, client), Client(camera) as another:
        for switch, status in ((camera.refuse, 401), (camera.not_found, 404)):
            switch(True)
            assert another.ask("DESCRIBE")[0] == status
            assert numbers(client.listen(0.2))
            switch(False)
            assert another.ask("DESCRIBE")[0] == 200


def test_one_session_only_until_it_is_torn_down_or_its_client_is_gone():
    with FakeCamera(sessions_max=1) as camera, Client(camera) as one, Client(camera) as two:
        one.play()
        assert two.setup("video") == 453
        assert one.ask("TEARDOWN")[0] == 200
        two.play()
        assert (camera.connected, one.setup("video")) == (1, 453)
        two.sock.close()
        time.sleep(0.1)
        one.session = ""
        assert one.setup("video") == 200
        ended: list[SessionRecord] = camera.sessions
        assert [session.how for session in ended] == ["teardown", "closed"]
        assert all(session.ended and session.ended >= session.started for session in ended)


# --- the protocol ---


def test_what_a_client_asks_wrongly_is_answered_with_the_right_status():
    with FakeCamera(path="/Streaming/Channels/101") as camera, Client(camera) as client:
        assert client.ask("OPTIONS")[1]["public"].startswith("OPTIONS, DESCRIBE")
        assert client.ask("RECORD")[0] == 405
        assert client.ask("PLAY")[0] == 454
        assert client.ask("SETUP", "/audio", Transport="RTP/AVP/TCP;unicast;interleaved=0-1")[0] == 404
        assert client.setup("video", "RTP/AVP;unicast;client_port=5000-5001") == 461
        client.url = client.url.replace("101", "102")
        assert client.ask("DESCRIBE")[0] == 404


def test_the_description_names_every_stream():
    for options, wanted in (({"codec": "h264", "audio": "pcmu"}, ["H264/90000", "sprop-parameter-sets=", "PCMU/8000"]),
                            ({"codec": "h265", "audio": "aac"}, ["H265/90000", "sprop-vps=", "config=1408"])):
        with FakeCamera(**options) as camera, Client(camera) as client:
            _, headers, body = client.ask("DESCRIBE")
            assert headers["content-base"] == camera.url_without_credentials + "/"
            assert [word for word in wanted if word not in body.decode()] == []


def test_sender_reports_pair_the_wall_clock_with_the_timestamps_of_each_stream():
    with playing("video", "audio", audio="pcma") as (camera, client):
        client.listen(1.3)
        for channel, clock_hz in ((VIDEO, 90_000), (AUDIO, 8000)):
            report = on(channel + 1, client.packets)[-1].data
            seconds, fraction, paired = struct.unpack(">III", report[8:20])
            wall = seconds - fake_camera.NTP_EPOCH_SEC + fraction / 2**32
            assert report[1] == 200
            assert abs(wall - time.time()) < 1.5
            for packet in on(channel, client.packets):
                ahead_sec = ((packet.timestamp - paired + 2**31) % 2**32 - 2**31) / clock_hz
                made = camera.started + packet.number / camera.fps if packet.number is not None else packet.at - 0.1
                if packet.number is not None or channel == AUDIO:
                    assert abs(wall + ahead_sec - made) < (0.001 if channel == VIDEO else 0.3)


def test_it_is_ready_at_once():
    FakeCamera(audio="pcma").stop()  # the pictures are there now
    waits = []
    for _ in range(3):  # on a busy machine one of them may be slow
        began = time.monotonic()
        with FakeCamera(audio="pcma") as camera, Client(camera) as client:
            assert client.ask("OPTIONS")[0] == 200
        waits.append(time.monotonic() - began)
    assert min(waits) < 0.2


def test_options_that_it_does_not_know_are_refused():
    with pytest.raises(ValueError, match="not one of none, pcma"):
        FakeCamera(audio="mp3")


def wait_for_connection(camera: FakeCamera, timeout_sec: float = 5) -> float:
    """When the camera takes connections again, in epoch seconds."""
    until = time.monotonic() + timeout_sec
    while time.monotonic() < until:
        try:
            Client(camera).sock.close()
            return camera.wall()
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise AssertionError("the camera did not come back")


# --- by hand ---


def start_by_hand(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen([sys.executable, fake_camera.__file__, *arguments], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, json.loads(process.stdout.readline())


def test_by_hand_it_says_where_it_is_follows_a_script_and_takes_commands():
    process, said = start_by_hand("--cameras", "3", "--script", "0.2 unplug; 0.6 plug", "--exit_with_stdin",
                                  "--user", "u", "--password", "p")
    assert process.stdin and process.stdout
    assert len({camera["port"] for camera in said["cameras"]}) == 3
    assert re.fullmatch(r"rtsp://u:p@127\.0\.0\.1:\d+/stream", said["url"])
    seen = []
    for _ in range(60):
        time.sleep(0.02)
        try:
            socket.create_connection(("127.0.0.1", said["cameras"][0]["port"])).close()
            seen.append("there")
        except ConnectionRefusedError:
            seen.append("away")
    assert " ".join(word for word, before in zip(seen, ["", *seen], strict=False) if word != before) in (
        "there away there", "away there")
    process.stdin.write("1: unplug\nstatus\n")
    process.stdin.flush()
    assert [camera["sessions"] for camera in json.loads(process.stdout.readline())] == [0, 0, 0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", said["cameras"][1]["port"]))
    process.stdin.close()
    assert process.wait(5) == 0
    process.stdout.close()


@pytest.mark.parametrize("script", ["wedge", "5 dance", "5 reboot", "5 wedge 3"])
def test_a_script_with_a_mistake_is_refused(script, capsys):
    with pytest.raises(SystemExit):
        fake_camera.main(["--script", script])
    assert "--script" in capsys.readouterr().err


@pytest.mark.slow
def test_64_cameras_in_one_process_take_a_fraction_of_a_core():
    process, said = start_by_hand("--cameras", "64", "--audio", "pcma", "--exit_with_stdin")
    assert process.stdin and process.stdout

    def cpu_sec() -> float:
        words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    with contextlib.ExitStack() as stack:
        for number, camera in enumerate(said["cameras"]):
            known = FakeCameraElsewhere(camera["url"], camera["port"])
            client = stack.enter_context(Client(known, 4096 if number % 2 else 0))  # type: ignore[arg-type]
            client.play("video", "audio")
        began, used = time.monotonic(), cpu_sec()
        time.sleep(10)  # what nobody reads fits into the buffers
        share = (cpu_sec() - used) / (time.monotonic() - began)
    process.stdin.write("status\n")
    process.stdin.flush()
    state = json.loads(process.stdout.readline())
    process.stdin.close()
    process.wait(5)
    process.stdout.close()
    assert sum(camera["frames_dropped"] for camera in state) == 0
    assert all(camera["frames_sent"] >= 85 for camera in state)  # the first second is spent waiting for a key frame
    assert share < 0.25


@dataclass
class FakeCameraElsewhere:
    """What Client needs to know of a camera in another process."""

    url_without_credentials: str
    port: int
    host: str = "127.0.0.1"


# --- the real server ---


@pytest.mark.parametrize(
    ("mount", "transport", "options"),
    [
        ("/h264_pcma", "tcp", {}),
        ("/h265_aac", "udp", {"user": "viewer", "password": PASSWORD}),
        ("/h264_aac", "tcp", {"user": "viewer", "password": PASSWORD, "auth": "basic"}),
        ("/h265_pcmu", "tcp", {"user": "viewer", "password": PASSWORD, "tls": True}),
    ],
    ids=["H.264 and A-law", "H.265 and AAC, UDP, digest", "H.264 and AAC, basic", "H.265 and u-law, TLS, digest"],
)
def test_the_frames_of_the_real_server_are_numbered_alike(mount, transport, options, tmp_path):
    need_gst_server()
    with GstServer(fps=20, gop_sec=0.5, **options) as server:
        began = time.time()
        more = no_certificate_check(find_ffmpeg()) if server.tls else ()
        taken(start_taking(server.url(mount), tmp_path / "taken.mkv", "-rtsp_transport", transport, *more))
        found = frame_numbers(tmp_path / "taken.mkv")
        assert_gapless(found, 8)
        assert set(found) <= set(server.expected(began))


def test_the_real_server_refuses_a_wrong_password(tmp_path):
    need_gst_server()
    with GstServer(user="viewer", password="right") as server, pytest.raises(AssertionError, match="401"):
        taken(start_taking(server.url().replace("right", "wrong"), tmp_path / "taken.mkv", *TCP))


def test_the_real_server_says_when_its_port_is_taken():
    need_gst_server()
    with FakeCamera() as camera, pytest.raises(RuntimeError, match=f"port {camera.port} is taken"):
        GstServer(port=camera.port)
