"""rtsp_recorder.py check: what cameras send, compared with what the config expects; real cameras, both FFmpegs.

A dozen cameras are looked at twice, with the FFmpeg on PATH and the one that pip brings; both calls run at the same
time, once for all tests.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, need
from fake_camera import FakeCamera
from rtsp_server import GstServer, gst_problem, need_gst_server

import rtsp_recorder as recorder
from rhombus_logging import UsageError

pytestmark = pytest.mark.slow  # cameras are measured for seconds

PASSWORD = "p@:/%#$ü' \"&?"
WRONG = "wrong-hunter22"
FFMPEGS = ("path", "pip")
SUMMARY_OF_FAKES = {"cameras": 9, "ok": 3, "differ": 4, "no_answer": 2}


def both_ffmpegs(folder: Path) -> dict[str, dict[str, str]]:
    """The environment for each FFmpeg."""
    import imageio_ffmpeg

    folder.mkdir()
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    path = os.environ["PATH"]
    return {"path": {**os.environ}, "pip": {**os.environ, "PATH": f"{folder}{os.pathsep}{path}"}}


def write_config(folder: Path, cameras: list[dict], recording: dict | None = None) -> Path:
    file = folder / "config.yaml"
    storage = {"local_path": str(folder / "footage")}
    file.write_text(json.dumps({"storage": storage, "cameras": cameras, "recording": recording or {}}))
    file.chmod(0o600)
    return file


def start(config: Path, *words: str, environment: dict | None = None) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "rtsp_recorder.py"), "check", *words, "--config", str(config)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env=environment)  # fmt: skip


def seen_in_process_list(word: str, processes: list[subprocess.Popen]) -> bool:
    """Look at all command lines until the processes have ended."""
    found = False
    while any(process.poll() is None for process in processes):
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found = found or word.encode() in file.read_bytes()
            except OSError:
                continue
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """{ffmpeg: (status, lines by camera, stderr, folder of pictures)}, and whether a password was to be seen."""
    need("ffmpeg")
    folder = tmp_path_factory.mktemp("check")
    fakes = {
        "Gate": FakeCamera(fps=20, audio="pcma", user="viewer", password=PASSWORD),
        "Mulaw": FakeCamera(fps=10, audio="pcmu"),
        "Hevc": FakeCamera(fps=10, codec="h265", width=640, height=360, bitrate=800_000, gop_sec=2),
        "Mute": FakeCamera(fps=10),
        "Sound": FakeCamera(fps=10, audio="aac"),
        "Slow": FakeCamera(fps=5, audio="aac"),
        "Any": FakeCamera(fps=10, audio="aac"),
        "Off": FakeCamera(plugged=False),
        "Login": FakeCamera(user="viewer", password=PASSWORD),
    }
    expected = {
        "Gate": {"expected_video": "h264 160x120 20 fps 0.1-0.3 Mbit/s", "expected_audio": "G.711A 8 kHz mono"},
        "Mulaw": {"expected_video": "h264", "expected_audio": "pcm_alaw"},
        "Hevc": {"expected_video": {"codec": "H.264", "width": 640, "height": 480, "bit_rate": 4_000_000},
                 "expected_audio": "none"},
        "Mute": {"expected_audio": "none"},
        "Sound": {"expected_audio": "none"},
        "Slow": {"expected_video": {"codec_name": "h264", "r_frame_rate": "10/1"},
                 "expected_audio": {"codec": "aac", "sample_rate": 16000, "channels": 1}},
    }  # fmt: skip
    entries = [{"name": name, "rtsp_url": camera.url, **expected.get(name, {})} for name, camera in fakes.items()]
    entries[-1]["rtsp_url"] = fakes["Login"].url_without_credentials.replace("://", f"://viewer:{WRONG}@")
    server = None if gst_problem() else GstServer(fps=10, user="viewer", password=PASSWORD)
    if server:
        entries += [{"name": "RealHevc", "rtsp_url": server.url("/h265_aac"), "expected_video": "hevc 160x120 10 fps",
                     "expected_audio": "aac 16000 Hz mono"},
                    {"name": "RealMulaw", "rtsp_url": server.url("/h264_pcmu"),
                     "expected_audio": "pcm_alaw"}]  # fmt: skip
    config = write_config(folder, entries)
    try:
        seen, result = False, {}
        for name, environment in both_ffmpegs(folder / "bin").items():
            for _ in range(3):  # a live server on a machine that has much else to do sends fewer frames
                process = start(config, "--json", "--snapshot", str(folder / name), environment=environment)
                seen = seen_in_process_list(WRONG, [process]) or seen
                stdout, stderr = process.communicate(timeout=60)
                lines = [json.loads(line) for line in stdout.splitlines()]
                found = {line["camera"]: line for line in lines[:-1]}
                result[name] = (process.returncode, found, stderr, folder / name, lines[-1]["summary"])
                if not found.get("RealHevc", {}).get("differences"):
                    break
        yield {"seen": seen, **result}
    finally:
        for camera in fakes.values():
            camera.stop()
        if server:
            server.stop()


def differences(looked, ffmpeg: str, camera: str) -> dict[str, tuple[str, str]]:
    return {one["what"]: (one["expected"], one["found"]) for one in looked[ffmpeg][1][camera]["differences"]}


each_ffmpeg = pytest.mark.parametrize("ffmpeg", FFMPEGS)


@each_ffmpeg
def test_a_camera_that_sends_what_is_expected_is_well(looked, ffmpeg):
    found = looked[ffmpeg][1]["Gate"]
    assert (found["result"], found["differences"]) == ("ok", [])
    video, audio = found["video"], found["audio"]
    assert (video["codec"], video["size"]) == ("h264", "160x120") and video["fps"] == pytest.approx(20, rel=0.05)
    assert (audio["codec"], audio["sample_rate"], audio["channels"]) == ("pcm_alaw", 8000, 1)


@each_ffmpeg
def test_a_camera_that_switched_to_pcm_mulaw_is_noticed(looked, ffmpeg):
    status, found, stderr, *_ = looked[ffmpeg]
    assert status == 1 and found["Mulaw"]["result"] == "differs"
    assert differences(looked, ffmpeg, "Mulaw") == {"audio codec": ("pcm_alaw", "pcm_mulaw")}
    assert "ERROR Mulaw: audio codec: expected pcm_alaw, found pcm_mulaw" in stderr


@each_ffmpeg
def test_codec_size_and_bit_rate_that_differ_are_each_named(looked, ffmpeg):
    told = differences(looked, ffmpeg, "Hevc")
    assert told["video codec"] == ("h264", "hevc") and told["video size"] == ("640x480", "640x360")
    assert told["video bit_rate"][0] == "2 to 6 Mbit/s" and set(told) == {"video codec", "video size", "video bit_rate"}


@each_ffmpeg
def test_a_frame_rate_that_fell_is_noticed(looked, ffmpeg):
    assert set(differences(looked, ffmpeg, "Slow")) == {"video fps"}
    assert looked[ffmpeg][1]["Slow"]["video"]["fps"] == pytest.approx(5, rel=0.1)


@each_ffmpeg
def test_sound_where_none_is_expected_differs_and_silence_is_as_expected(looked, ffmpeg):
    assert looked[ffmpeg][1]["Mute"]["result"] == "ok"
    assert differences(looked, ffmpeg, "Sound") == {"audio": ("none", "aac 16000 Hz mono")}


@each_ffmpeg
def test_a_camera_that_does_not_answer_is_named_with_the_reason(looked, ffmpeg):
    found = looked[ffmpeg][1]
    assert (found["Off"]["result"], found["Login"]["result"]) == ("refused", "unauthorised")
    assert "Connection refused" in found["Off"]["detail"] and "401" in found["Login"]["detail"]
    assert not re.search("error", found["Off"]["detail"] + found["Login"]["detail"], re.IGNORECASE)


@each_ffmpeg
def test_the_last_line_of_json_counts(looked, ffmpeg):
    real = {name for name in looked[ffmpeg][1] if name.startswith("Real")}
    expected = {**SUMMARY_OF_FAKES}
    if real:
        expected = {**expected, "cameras": 11, "ok": 4, "differ": 5}
    assert looked[ffmpeg][-1] == expected


@each_ffmpeg
def test_a_server_of_others_is_understood_as_well(looked, ffmpeg):
    need_gst_server()
    assert looked[ffmpeg][1]["RealHevc"]["differences"] == []
    assert differences(looked, ffmpeg, "RealMulaw") == {"audio codec": ("pcm_alaw", "pcm_mulaw")}


@each_ffmpeg
def test_a_picture_of_each_camera_that_answers_is_kept_whole(looked, ffmpeg, tmp_path):
    folder = looked[ffmpeg][3]
    answered = {name for name, line in looked[ffmpeg][1].items() if line["video"]}
    assert {file.name for file in folder.iterdir()} == {f"{name}.jpg" for name in answered}
    assert recorder.is_jpeg(folder / "Hevc.jpg")
    command = ["ffmpeg", "-v", "error", "-i", str(folder / "Hevc.jpg"), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert len(done.stdout) == 640 * 360 * 3 and done.stderr == b""
    assert len(set(done.stdout)) > 50, "a picture, not one colour"


def test_no_password_is_to_be_seen_in_output_log_or_process_list(looked):
    assert not looked["seen"]
    for ffmpeg in FFMPEGS:
        _status, found, stderr, *_ = looked[ffmpeg]
        assert not re.search(f"{re.escape(WRONG)}|{re.escape(PASSWORD)}|p%40", json.dumps(found) + stderr)


# --- what it prints ---


def test_what_was_found_can_be_pasted_into_the_config(tmp_path):
    with FakeCamera(fps=10, audio="aac") as camera:
        entries = [{"name": "Gate", "rtsp_url": camera.url}]
        stdout, stderr = start(write_config(tmp_path, entries), "--yaml").communicate(timeout=60)
        lines = re.findall(r"# (\w+)\n    expected_video: (.*)\n    expected_audio: (.*)\n", stdout)
        assert [line[0] for line in lines] == ["Gate"], stdout + stderr
        entries = [{**entry, "expected_video": video, "expected_audio": audio}
                   for entry, (_, video, audio) in zip(entries, lines, strict=True)]  # fmt: skip
        process = start(write_config(tmp_path, entries))
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (0, ""), stdout
        assert [line.split()[:2] for line in stdout.splitlines()] == [["camera", "result"], ["Gate", "ok"]]


def test_a_camera_that_sends_no_picture_keeps_the_old_one_and_ends_in_time(tmp_path):
    kept = tmp_path / "pictures/Gate.jpg"
    kept.parent.mkdir()
    kept.write_bytes(b"an older picture")
    with FakeCamera() as camera:
        camera.wedge()
        config = write_config(tmp_path, [{"name": "Gate", "rtsp_url": camera.url}])
        started = time.monotonic()
        process = start(config, "--timeout", "2", "--snapshot", str(kept.parent))
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and time.monotonic() - started < 20
    assert stdout.splitlines()[1].split() == ["Gate", "stall", "-", "-"]
    assert "no picture within 2 s" in stderr
    assert kept.read_bytes() == b"an older picture" and len(list(kept.parent.iterdir())) == 1


def test_ctrl_c_waits_for_no_camera_and_leaves_nothing_behind(tmp_path):
    with FakeCamera() as camera:
        camera.wedge()
        config = write_config(tmp_path, [{"name": "Gate", "rtsp_url": camera.url}])
        process = start(config, "--snapshot", str(tmp_path / "pictures"))
        deadline = time.monotonic() + 20
        while not camera.sessions and time.monotonic() < deadline:
            time.sleep(0.05)
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        stdout, _stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (130, "") and time.monotonic() - pressed < 10
        assert list((tmp_path / "pictures").iterdir()) == []


# --- reading expectations, pure ---


@pytest.mark.parametrize("kind, given, codec, size, ranges", [
    ("video", "h264 1920x1080 25 fps 4 Mbit/s", "h264", "1920x1080", {"fps": (22.5, 27.5), "bit_rate": (2e6, 6e6)}),
    ("video", "H.265, 2560x1440, 12-15fps, 500-900 kbit/s", "hevc", "2560x1440",
     {"fps": (12, 15), "bit_rate": (5e5, 9e5)}),
    ("video", {"codec": "avc", "width": 640, "height": 480, "fps": 30}, "h264", "640x480", {"fps": (27, 33)}),
    ("video", {"codec_name": "hevc", "r_frame_rate": "30000/1001"}, "hevc", None, {"fps": (26.973, 32.967)}),
    ("video", {"fps": "10-12", "bit_rate": "1-2 Mbit/s"}, None, None, {"fps": (10, 12), "bit_rate": (1e6, 2e6)}),
    ("audio", "pcm_alaw 8000 Hz mono", "pcm_alaw", None, {"sample_rate": (8000, 8000), "channels": (1, 1)}),
    ("audio", "G.711 A", None, None, None),
    ("audio", "g711u 8 kHz", "pcm_mulaw", None, {"sample_rate": (8000, 8000)}),
    ("audio", {"codec": "AAC", "sample_rate": 16000, "channels": 2}, "aac", None,
     {"sample_rate": (16000, 16000), "channels": (2, 2)}),
    ("audio", {"codec": "aac", "bitrate": 5}, None, None, None),
    ("video", "h264 1.2.3 fps", None, None, None),
    ("video", "h264 25", None, None, None),
])  # fmt: skip
def test_expectations_are_read_as_text_and_as_a_map(kind, given, codec, size, ranges):
    if ranges is None:
        with pytest.raises(UsageError, match="camera 'Gate'"):
            recorder.read_expected(kind, given, "camera 'Gate'")
        return
    expected = recorder.read_expected(kind, given, "")
    assert (expected.codec, expected.size, set(expected.ranges)) == (codec, size, set(ranges))
    for name, limits in ranges.items():
        assert expected.ranges[name] == pytest.approx(limits)


@pytest.mark.parametrize("given", [None, ""])
def test_without_an_expectation_nothing_is_compared(given):
    assert recorder.read_expected("video", given, "") is None
    assert recorder.compare("video", None, None) == []


def test_a_stream_that_is_announced_and_does_not_come_differs():
    silent = recorder.Stream("pcm_alaw", packets=0, bit_rate=0, sample_rate=8000, channels=1)
    expected = recorder.read_expected("audio", "pcm_alaw", "")
    assert recorder.compare("audio", expected, silent) == [
        ("audio", "pcm_alaw", "pcm_alaw is announced, but does not come")]  # fmt: skip


def test_a_wrong_expectation_ends_with_status_2_before_any_camera_is_asked(tmp_path):
    with FakeCamera() as camera:
        entries = [{"name": "Gate", "rtsp_url": camera.url, "expected_video": {"codek": "h264"}}]
        process = start(write_config(tmp_path, entries))
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout, camera.sessions) == (2, "", [])
    assert "camera 'Gate': expected_video: codek: there is no such key" in stderr


def test_a_camera_takes_the_expectation_of_all_unless_it_has_its_own():
    from test_rtsp_recorder import settled

    both = [{"name": "a", "rtsp_url": "rtsp://h"}, {"name": "b", "rtsp_url": "rtsp://h", "expected_audio": "aac"}]
    first, second = settled(both, recording={"expected_audio": "none", "expected_video": {"codec": "h264"}})
    assert (first.expected_audio, second.expected_audio) == ("none", "aac")
    assert first.expected_video == second.expected_video == {"codec": "h264"}
