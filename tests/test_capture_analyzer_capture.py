"""capture, rename and clean of capture_analyzer.py: real FFmpeg, real processes, real files."""

from __future__ import annotations

import gc
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from conftest import NOT_TESTED, ROOT
from fake_camera import FakeCamera
from hypothesis import given
from hypothesis import strategies as st

import capture_analyzer
from capture_analyzer import Litter, Tidiness, capture_wait_sec, plan_cleaning, publish_still
from rhombus_logging import CONFIG_KEYS, UsageError, find_ffmpeg

pytestmark = pytest.mark.slow  # captures run in real time

PROGRAM = [sys.executable, str(ROOT / "capture_analyzer.py")]
SETTINGS = {name: key.default for name, key in CONFIG_KEYS["capture"].items()}


def until(condition: Callable[[], object], timeout_sec: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_sec
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class Running:
    """A program of ours in its own process, its output in files."""

    def __init__(self, folder: Path, *words: str, config: str = "", **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        self.out, self.err = folder / "stdout.txt", folder / "stderr.txt"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*PROGRAM, *words, "--config", str(folder / "config.yaml")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **environment},
            )

    @property
    def log(self) -> str:
        return self.err.read_text(encoding="utf-8")

    def end(self, number: int = signal.SIGTERM, timeout_sec: float = 15.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_sec)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for child in ffmpegs_in(self.out.parent):
            os.kill(child, signal.SIGKILL)


def ffmpegs_in(folder: Path) -> list[int]:
    """Processes that were started somewhere below a folder of this test."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            inside = folder in (entry / "cwd").readlink().parents
        except OSError:
            continue
        if inside and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def need_device(name: str) -> None:
    """Skips the test where FFmpeg was built without it, as the one of pip is without ALSA."""
    command = [find_ffmpeg("tests"), "-hide_banner", "-devices"]
    if name not in subprocess.run(command, capture_output=True, text=True, check=False).stdout:
        pytest.skip(f"{NOT_TESTED}ffmpeg with {name}")


def stills(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("capture_*.jpg") if "thumbnail" not in path.name)


def holder_of(path: str | Path) -> subprocess.Popen[bytes]:
    code = f"import os, time; os.open({str(path)!r}, os.O_RDWR | os.O_NOCTTY); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process


def picture(path: Path, size: str = "320x180", written_sec: float | None = None) -> Path:
    command = ["-f", "lavfi", "-i", f"testsrc2=size={size}", "-frames:v", "1", "-y", str(path)]
    subprocess.run([find_ffmpeg("tests"), "-loglevel", "error", *command], check=True)
    if written_sec is not None:
        os.utime(path, (written_sec, written_sec))
    return path


# --- capture: one run on the test pattern that several tests look at ---


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """7 s of a test pattern, ended by SIGTERM."""
    folder = tmp_path_factory.mktemp("captured")
    with Running(folder, "capture", f"test||{folder}/yard|10") as running:
        until(lambda: len(stills(folder / "yard/captures")) >= 7)
        running.children = ffmpegs_in(folder)  # type: ignore[attr-defined]
        running.status = running.end()  # type: ignore[attr-defined]
        yield running


def place_of(captured: Running) -> Path:
    return captured.out.parent / "yard"


def test_sigterm_is_the_ordinary_end_of_a_capture_and_leaves_no_process(captured):
    assert captured.status == 0
    assert captured.out.read_text() == ""
    assert [line.partition(" ")[2] for line in captured.log.splitlines()] == [
        f"INFO yard: capturing to {place_of(captured)}, libx264",
        f"INFO yard: {len(stills(place_of(captured) / 'captures'))} stills",
    ]
    assert ffmpegs_in(captured.out.parent) == []


def test_one_ffmpeg_makes_hls_stills_and_thumbnails(captured):
    assert len(captured.children) == 1
    names = {path.name for path in place_of(captured).iterdir()}
    assert "output.m3u8" in names
    assert len([name for name in names if re.fullmatch(r"segment_\d+\.ts", name)]) >= 3
    assert not [name for name in names if name.endswith(".tmp")]


def test_there_is_a_still_for_every_second_and_its_name_is_its_time(captured):
    found = stills(place_of(captured) / "captures")
    named = [datetime.strptime(path.stem[:22], "capture_%Y%m%d%H%M%S").timestamp() for path in found]  # without _1
    assert max(later - earlier for earlier, later in zip(named, named[1:], strict=False)) <= 2
    late = [path.stat().st_mtime - second for path, second in zip(found, named, strict=True)]
    assert sorted(late)[len(late) // 2] < 0.5, "a still is there as soon as its second has begun"


def test_every_still_has_a_thumbnail_498_pixels_wide(captured):
    import cv2

    for still in stills(place_of(captured) / "captures"):
        thumbnail = cv2.imread(str(still.with_name(f"{still.stem}_thumbnail.jpg")))
        assert thumbnail.shape == (280, 498, 3)
        assert cv2.imread(str(still)).shape == (720, 1280, 3)


def test_segments_are_2_s_long_and_hold_sound(captured):
    playlist = (place_of(captured) / "output.m3u8").read_text()
    lengths = [float(text) for text in re.findall(r"#EXTINF:([\d.]+)", playlist)]
    assert all(1.9 <= length <= 2.1 for length in lengths[:-1]), "the last one was cut by the end"
    assert len(lengths) <= 5
    first = place_of(captured) / re.findall(r"segment_\d+\.ts", playlist)[0]
    told = subprocess.run([find_ffmpeg("tests"), "-i", str(first)], capture_output=True, text=True, check=False).stderr
    assert "Video: h264" in told
    assert "Audio: aac" in told


# --- capture: what goes wrong ---


def test_an_ffmpeg_that_dies_is_started_again_and_segments_go_on_counting(tmp_path):
    with Running(tmp_path, "capture", f"test||{tmp_path}/yard|10") as running:
        until(lambda: len(list((tmp_path / "yard").glob("segment_*.ts"))) >= 1)
        before = {path.name: path.stat().st_ino for path in (tmp_path / "yard").glob("segment_*.ts")}
        taken = {path: path.stat().st_ino for path in stills(tmp_path / "yard/captures")}
        (child,) = ffmpegs_in(tmp_path)
        os.kill(child, signal.SIGKILL)
        until(lambda: "not capturing: FFmpeg ended" in running.log)
        until(lambda: running.log.count("INFO yard: capturing") == 2)
        until(lambda: len(set((tmp_path / "yard").glob("segment_*.ts"))) > len(before))
        assert len(list((tmp_path / "yard").glob("*.ts.tmp"))) <= 1, "the torn segment of the dead one has gone"
        assert running.end() == 0
    assert {path: path.stat().st_ino for path in taken} == taken, "no still was overwritten"
    assert all((tmp_path / "yard" / name).stat().st_ino == inode for name, inode in before.items())


@pytest.mark.slow
def test_an_ffmpeg_that_stops_making_pictures_is_ended_and_started_again(tmp_path):
    config = "capture: {stall: 2}"
    with Running(tmp_path, "capture", f"test||{tmp_path}/yard|10", config=config) as running:
        until(lambda: "INFO yard: capturing" in running.log)
        (child,) = ffmpegs_in(tmp_path)
        os.kill(child, signal.SIGSTOP)  # deaf to TERM as well
        until(lambda: running.log.count("INFO yard: capturing") == 2, 30)
        assert "no picture for" in running.log
        assert running.end() == 0
        assert ffmpegs_in(tmp_path) == []


@pytest.mark.slow
def test_what_a_killed_capture_left_is_ended_and_published_by_the_next(tmp_path):
    words = ("capture", f"test||{tmp_path}/yard|10")
    with Running(tmp_path / "1", *words) as first:
        until(lambda: stills(tmp_path / "yard/captures"))
        first.process.kill()
        first.process.wait()
        (orphan,) = ffmpegs_in(tmp_path)
        stranger = subprocess.Popen(["sleep", "60"], cwd=tmp_path / "yard")
        seen = len(stills(tmp_path / "yard/captures"))
        staging = tmp_path / "yard/captures/.capture_analyzer/staging"
        until(lambda: len(list(staging.glob("*/[0-9].jpg"))) >= 2)  # it goes on without its supervisor
        with Running(tmp_path / "2", *words) as second:
            until(lambda: len(stills(tmp_path / "yard/captures")) >= seen + 3)
            until(lambda: "capturing to" in second.log)
            assert f"ending FFmpeg {orphan} of a capture that was killed" in second.log
            assert second.end() == 0
        assert stranger.poll() is None, "only what we started is ended"
        stranger.kill()
        stranger.wait()
    assert ffmpegs_in(tmp_path) == []
    assert list(staging.iterdir()) == []


def test_a_busy_device_is_one_sentence_with_the_process_that_has_it_and_exit_4(tmp_path):
    need_device("v4l2")
    _, follower = pty.openpty()
    device = os.ttyname(follower)
    holder = holder_of(device)
    try:
        with Running(tmp_path, "capture", f"{device}||{tmp_path}/yard|10") as running:
            assert running.process.wait(20) == 4
        lines = running.log.splitlines()
        assert len(lines) == 2, running.log
        assert re.search(rf"WARNING yard: {device} is in use by .*python\S* \(process {holder.pid}\)", lines[-1])
        assert holder.poll() is None, "it is not ours to end"
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_whoever_holds_a_file_is_found(make, tmp_path):
    make(tmp_path / "video0")
    holder = holder_of(tmp_path / "video0")
    try:
        assert [process for process, _ in capture_analyzer.holders_of(tmp_path / "video0")] == [holder.pid]
    finally:
        holder.kill()
        holder.wait()
    assert capture_analyzer.holders_of(tmp_path / "video0") == []
    assert capture_analyzer.holders_of(tmp_path / "gone") == []


@pytest.mark.slow
def test_two_captures_of_one_folder_are_one_too_many(tmp_path):
    with Running(tmp_path / "1", "capture", f"test||{tmp_path}/yard|10") as first:
        until(lambda: "capturing" in first.log)
        with Running(tmp_path / "2", "capture", f"test||{tmp_path}/yard|10") as second:
            assert second.process.wait(20) == 4
        assert f"another run holds {tmp_path}/yard/captures/.capture_analyzer/capture.lock" in second.log
        assert first.end() == 0


def test_sound_that_cannot_be_opened_does_not_stop_the_pictures(tmp_path):
    need_device("alsa")
    with Running(tmp_path, "capture", f"test|plughw:7,0|{tmp_path}/yard|10") as running:
        until(lambda: "libx264, without sound" in running.log)
        until(lambda: stills(tmp_path / "yard/captures"))
        assert running.end() == 0
    assert "WARNING yard: going on without sound: cannot open audio device plughw:7,0 (No such" in running.log


def test_a_grabber_that_fails_does_not_stop_the_others(tmp_path):
    config = f"""capture:
  grabbers:
    - {{name: gone, video_device: "rtsp://127.0.0.1:9/none", capture_dir: {tmp_path}/gone}}
    - "test|none|{tmp_path}/yard/captures|5"
"""
    with Running(tmp_path, "capture", config=config) as running:
        until(lambda: len(stills(tmp_path / "yard/captures")) >= 2)
        until(lambda: "gone: not capturing:" in running.log)
        assert running.end() == 0
    assert "refused" in running.log
    assert len([line for line in running.log.splitlines() if "not capturing" in line]) == 1, "said once"


@pytest.fixture(scope="module")
def camera() -> Iterator[FakeCamera]:
    with FakeCamera(fps=10, user="viewer", password="s3cret pass") as camera:
        yield camera


def test_an_rtsp_camera_is_captured_and_its_password_is_in_no_process_list_and_no_log(camera, tmp_path):
    words = ("capture", f"{camera.url_without_credentials}||{tmp_path}/gate|10", "--debug")
    with Running(tmp_path, *words, RTSP_USER="viewer", RTSP_PASSWORD="s3cret pass") as running:
        until(lambda: stills(tmp_path / "gate/captures"))
        (child,) = ffmpegs_in(tmp_path)
        shown = Path(f"/proc/{child}/cmdline").read_bytes()
        assert running.end() == 0
    for text in (shown.decode(), running.log, str(list((tmp_path / "gate").rglob("*")))):
        assert "s3cret" not in text


def test_a_wrong_password_is_a_sentence_without_it(camera, tmp_path):
    address = camera.url_without_credentials.replace("://", "://viewer:wr0ng-one@")
    config = f"capture: {{grabbers: ['{address}|none|{tmp_path}/gate|10']}}"
    with Running(tmp_path, "capture", config=config) as running:
        until(lambda: "not capturing" in running.log)
        assert running.end() == 0
    assert "401" in running.log
    assert "wr0ng" not in running.log


@pytest.mark.slow
def test_a_file_is_captured_at_its_own_speed_and_over_and_over(tmp_path):
    clip = tmp_path / "clip.mp4"
    command = ["-f", "lavfi", "-i", "testsrc2=size=320x180:rate=5", "-t", "1", str(clip)]
    subprocess.run([find_ffmpeg("tests"), "-loglevel", "error", *command], check=True)
    with Running(tmp_path, "capture", f"{clip}||{tmp_path}/yard|5", "--max_duration", "5") as running:
        assert running.process.wait(30) == 0
    assert 3 <= len(stills(tmp_path / "yard/captures")) <= 7


def test_systemd_is_told_when_it_is_ready_that_it_is_alive_and_that_it_stops(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        words = ("capture", f"test|none|{tmp_path}/yard|5")
        with Running(tmp_path, *words, NOTIFY_SOCKET=str(tmp_path / "notify")) as running:
            assert systemd.recv(100) == b"READY=1"
            assert systemd.recv(100) == b"WATCHDOG=1"
            assert running.end() == 0
            told = b"WATCHDOG=1"
            while told == b"WATCHDOG=1":
                told = systemd.recv(100)
            assert told == b"STOPPING=1"


@pytest.mark.slow
def test_capture_and_monitor_run_in_one_process(tmp_path):
    folder = tmp_path / "yard/captures"
    with Running(tmp_path, "capture", f"test||{tmp_path}/yard|5", "--monitor") as running:
        until(lambda: stills(folder) and (folder / ".capture_analyzer/progress.json").exists())
        taken = stills(folder)[0]
        progress = folder / ".capture_analyzer/progress.json"
        until(lambda: json.loads(progress.read_text())["analysed_until_sec"] >= taken.stat().st_mtime - 1)
        assert running.end() == 0
    assert "watching yard" in running.log


def test_an_ffmpeg_without_alsa_is_refused_before_anything_starts(tmp_path):
    bare = tmp_path / "bin" / "ffmpeg"  # the real one, asked with a filter on what it says it can do
    bare.parent.mkdir()
    bare.write_text(f"#!/bin/sh\n'{find_ffmpeg('tests')}' \"$@\" | grep -v alsa\n")
    bare.chmod(0o755)
    words = ("capture", f"test|plughw:2,0|{tmp_path}/yard|10")
    with Running(tmp_path, *words, PATH=f"{bare.parent}:{os.environ['PATH']}") as running:
        assert running.process.wait(20) == 3
    assert f"yard: {bare} was built without alsa; install your system's ffmpeg" in running.log
    assert not (tmp_path / "yard").exists()


# --- capture: what it is told ---


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("/dev/video0", "expected video_device|audio_device|capture_dir|fps"),
        ("/dev/video0||/srv/yard|fast", "fps 'fast' is no number"),
        ("/dev/video0||/srv/yard|0", "fps 0 is not from 1 to 240"),
        ("/dev/video0|||25", "it has no capture_dir"),
        ("missing.mp4||/srv/yard|25", "missing.mp4: is no device, no file, no rtsp:// address and not 'test'"),
        ({"video_device": "test"}, "it has no capture_dir"),
        ({"video_device": "test", "capture_dir": "/srv/a", "size": "big"}, "size 'big' is not of the form 1280x720"),
    ],
)
def test_a_grabber_that_cannot_be_meant_is_refused(entry, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        capture_analyzer.settle_grabber(entry, SETTINGS)


def test_the_older_form_and_a_map_mean_the_same():
    older = capture_analyzer.settle_grabber("/dev/video0|plughw:2,0|/var/www/html/stream/capture1|25", SETTINGS)
    words = {"video_device": "/dev/video0", "audio_device": "plughw:2,0", "fps": 25}
    same = capture_analyzer.settle_grabber({**words, "capture_dir": "/var/www/html/stream/capture1/captures"}, SETTINGS)
    assert older == same
    assert (older.name, older.kind, str(older.captures)) == (
        "capture1",
        "device",
        "/var/www/html/stream/capture1/captures",
    )
    command = capture_analyzer.ffmpeg_capture("ffmpeg", older, "h264_v4l2m2m", with_sound=True)
    text = " ".join(command)
    assert "-f v4l2 -thread_queue_size 256 -framerate 25 -i /dev/video0 -f alsa" in text
    assert "-i plughw:2,0" in text
    assert "-c:v h264_v4l2m2m -b:v 2M -g 50" in text


def test_an_unknown_key_of_a_grabber_is_refused_with_its_place(tmp_path):
    (tmp_path / "config.yaml").write_text("capture: {grabbers: [{video_devise: test}]}")
    sentence = "capture.grabbers.video_devise: there is no such key (did you mean video_device?)"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        capture_analyzer.main(["capture", "--config", str(tmp_path / "config.yaml")])


@pytest.mark.parametrize("entry", ["rtsp://a:secret@127.0.0.1:9/x||/tmp/a|5", "{video_device: 'rtsp://a:secret@h/x'}"])
def test_a_password_in_a_config_that_others_can_read_is_warned_about(entry, tmp_path):
    text = entry if entry.startswith("{") else f"'{entry}'"
    with Running(tmp_path, "capture", "nobody", config=f"capture: {{grabbers: [{text}]}}") as running:
        assert running.process.wait(20) == 2
    assert "others can read capture.grabbers" in running.log
    assert "secret" not in running.log


@pytest.mark.parametrize(
    ("config", "words", "sentence"),
    [
        ("", [], "no grabber: set capture.grabbers"),
        ("", ["yard"], "yard: no such grabber in capture.grabbers; there is none"),
        ("capture: {grabbers: ['test||/tmp/a|5', 'test||/tmp/b/a|5']}", [], "two have the name a"),
        ("capture: {stills_per_sec: 0}", ["test||/tmp/a|5"], "capture.stills_per_sec is not more than 0"),
        ("", ["test||/tmp/a|5", "--max_duration", "soon"], "--max_duration: 'soon' is not a duration"),
    ],
)
def test_what_cannot_be_captured_is_refused_with_one_sentence(config, words, sentence, tmp_path):
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(UsageError, match=re.escape(sentence)):
        capture_analyzer.main(["capture", *words, "--config", str(tmp_path / "config.yaml")])


def test_an_encoder_counts_only_when_it_really_encodes():
    ffmpeg = find_ffmpeg("tests")
    assert capture_analyzer.encodes(ffmpeg, "libx264")
    assert not capture_analyzer.encodes(ffmpeg, "h264_v4l2m2m_of_nobody")
    if not Path("/dev/video11").exists() and not shutil.which("nvidia-smi"):
        assert capture_analyzer.choose_encoder(ffmpeg, "auto") == "libx264"
    with pytest.raises(capture_analyzer.CannotStart, match="cannot encode with it"):
        capture_analyzer.choose_encoder(ffmpeg, "h264_of_nobody")


def test_waiting_times_grow_and_a_refused_login_is_asked_for_rarely():
    assert [round(capture_wait_sec(attempt, 0, "ended"), 1) for attempt in (0, 1, 5, 100)] == [1, 1.3, 3.7, 5]
    assert capture_wait_sec(3, 3600, "ended") == 30
    assert capture_wait_sec(0, 0, "method DESCRIBE failed: 401 Unauthorized") == 60


@pytest.mark.parametrize("words", [["capture", "nothing", "--max_duration"], ["clean", ".", "--every"]])
@pytest.mark.parametrize("text", ["", "soon", "-5", "1x"])
def test_what_is_no_duration_is_refused_by_the_name_of_its_flag(words, text, capfd):
    *words, flag = words
    command = [*words, f"{flag}={text}", "--config", os.devnull]
    assert capture_analyzer.run(lambda: capture_analyzer.main(command)) == 2
    assert f"{flag}: {text!r} is not a duration; say seconds, or for example 90m" in capfd.readouterr().err


# --- rename ---


def test_older_names_become_timestamps_with_thumbnails(tmp_path):
    import cv2

    still = picture(tmp_path / "test_capture_000001.jpg", "1280x720", 1_790_000_000.7)
    data = still.read_bytes()
    assert capture_analyzer.main(["rename", str(tmp_path), "--config", os.devnull]) == 0
    name = time.strftime("capture_%Y%m%d%H%M%S", time.localtime(1_790_000_000))
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == [f"{name}.jpg", f"{name}_thumbnail.jpg"]
    assert (tmp_path / f"{name}.jpg").read_bytes() == data
    assert cv2.imread(str(tmp_path / f"{name}_thumbnail.jpg")).shape == (280, 498, 3)


def test_stills_of_one_second_keep_their_order_and_none_is_overwritten(tmp_path):
    data = {}
    for number, moment in ((3, 0.1), (1, 0.5), (2, 0.9)):
        still = picture(tmp_path / f"test_capture_{number}.jpg", f"{160 * number}x90", 1_790_000_000 + moment)
        data[number] = still.read_bytes()
    capture_analyzer.rename_stills(tmp_path, 1_790_000_100, set())
    stem = time.strftime("capture_%Y%m%d%H%M%S", time.localtime(1_790_000_000))
    found = [(tmp_path / f"{stem}{suffix}.jpg").read_bytes() for suffix in ("", "_1", "_2")]
    assert found == [data[3], data[1], data[2]]
    assert len(list(tmp_path.glob("*_thumbnail.jpg"))) == 3
    assert capture_analyzer.time_of_still(tmp_path / f"{stem}_2.jpg", 1_790_000_100) == 1_790_000_000


def test_the_hour_that_comes_twice_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        summer, winter = 1_792_888_200.0, 1_792_891_800.0  # 02:30 on 2026-10-25, twice
        for name, moment in (("a", summer), ("b", winter)):
            picture(tmp_path / f"test_capture_{name}.jpg", written_sec=moment)
            capture_analyzer.rename_stills(tmp_path, moment + 1, set())
        names = [path.name for path in stills(tmp_path)]
        assert names == ["capture_20261025023000.jpg", "capture_20261025023000_1.jpg"]
        assert [(tmp_path / name).stat().st_mtime for name in names] == [summer, winter]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_still_that_is_being_written_waits_and_one_that_stays_cut_is_told_once(tmp_path, caplog):
    data = picture(tmp_path / "test_capture_1.jpg").read_bytes()
    (tmp_path / "test_capture_1.jpg").write_bytes(data[:-100])
    (tmp_path / "test_capture_2.jpg").touch()
    (tmp_path / "test_capture_3.jpg").write_bytes(b"\xff\xd8 no picture \xff\xd9")
    told: set[str] = set()
    now = time.time()
    assert capture_analyzer.rename_stills(tmp_path, now, told) == 1, "only the third will never be one"
    assert capture_analyzer.rename_stills(tmp_path, now + 60, told) == 3
    assert capture_analyzer.rename_stills(tmp_path, now + 61, told) == 3
    messages = [record.getMessage() for record in caplog.records if "left as it is" in record.getMessage()]
    reasons = sorted(message.rpartition(": ")[2] for message in messages)
    assert reasons == ["is cut off", "is empty", "this is no picture"]
    (tmp_path / "test_capture_1.jpg").write_bytes(data)
    assert capture_analyzer.rename_stills(tmp_path, now + 62, told) == 2
    assert len(stills(tmp_path)) == 1


def test_a_folder_that_is_away_is_not_made(tmp_path):
    (tmp_path / "here").mkdir()
    words = ["rename", str(tmp_path / "here"), str(tmp_path / "away"), "--config", os.devnull]
    assert capture_analyzer.main(words) == 1
    assert not (tmp_path / "away").exists()


def test_a_crash_between_the_new_name_and_the_old_one_leaves_one_still(tmp_path):
    still = picture(tmp_path / "test_capture_1.jpg", written_sec=1_790_000_000)
    stem = next(capture_analyzer.still_names(1_790_000_000))
    os.link(still, tmp_path / f"{stem}.jpg")
    assert publish_still(still, None, tmp_path, 1_790_000_000) == tmp_path / f"{stem}.jpg"
    assert [path.name for path in tmp_path.iterdir()] == [f"{stem}.jpg"]


def test_where_links_do_not_exist_nothing_is_overwritten_either(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for number in (1, 2):
        (tmp_path / f"test_capture_{number}.jpg").write_text(str(number))
        publish_still(tmp_path / f"test_capture_{number}.jpg", None, tmp_path, 1_790_000_000)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.slow
def test_rename_as_a_service_takes_new_stills_at_once_and_ends_0(tmp_path):
    folder = tmp_path / "captures"
    folder.mkdir()
    with Running(tmp_path / "run", "rename", str(folder), "--watch") as running:
        until(lambda: (folder / ".capture_analyzer/rename.lock").exists())
        picture(folder / "test_capture_1.jpg")
        until(lambda: len(stills(folder)) == 1)
        shutil.rmtree(folder)  # a NAS that goes away, and returns
        until(lambda: "trying again" in running.log)
        folder.mkdir()
        picture(folder / "test_capture_1.jpg")
        until(lambda: len(stills(folder)) == 1)
        assert running.end() == 0


def test_rename_as_a_service_remembers_no_names_for_ever(tmp_path):
    """A name for each event, some a second: a gigabyte in a season."""
    ready, left = tmp_path / "ready", list[int]()
    ready.mkdir()
    stills_made = [picture(ready / f"test_capture_{number}.jpg", "64x48") for number in range(5)]
    folder = tmp_path / "captures"
    folder.mkdir()

    def feed() -> None:
        try:
            for still in stills_made:
                still.rename(folder / still.name)
            until(lambda: len(stills(folder)) == len(stills_made))
            wakers = [one for one in gc.get_objects() if isinstance(one, capture_analyzer.Waker)]
            with suppress(AssertionError):
                until(lambda: not any(waker.names.qsize() for waker in wakers), 5)
            left.extend(waker.names.qsize() for waker in wakers)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=feed)
    thread.start()
    assert capture_analyzer.main(["rename", "--watch", str(folder), "--config", os.devnull]) == 0
    thread.join()
    assert left == [0]


# --- clean ---

RULES = Tidiness(clean_after=600, clean_max_bytes=0, clean_wait=3600)


def test_old_captures_go_and_nothing_else_ever(tmp_path):
    folder = tmp_path / "captures"
    evidence = folder / "blackscreen" / "yard"
    evidence.mkdir(parents=True)
    (folder / ".capture_analyzer").mkdir()
    goes = ["captures/capture_20260101000000.jpg", "captures/capture_20260101000000_thumbnail.jpg",
            "captures/capture_20260101000000_1.jpg", "segment_7.ts", "segment_8.ts.tmp"]  # fmt: skip
    stays = ["output.m3u8", "captures/output.m3u8", "captures/incidents.json", "captures/segment_1.ts", "a.jpg",
             "captures/blackscreen/yard/capture_20260101000000.jpg", "captures/.capture_analyzer/incidents.sqlite",
             "capture_20260101000000.jpg", "captures/notes_capture_20260101000000.jpg",
             "captures/test_capture_1.jpg"]  # fmt: skip
    for name in [*goes, *stays]:
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / "captures/capture_20990101000000.jpg").write_text("new")
    (tmp_path / "kept.jpg").write_text("kept")
    os.utime(tmp_path / "kept.jpg", (0, 0))
    (folder / "capture_20260101000009.jpg").symlink_to(tmp_path / "kept.jpg")
    dry = subprocess.run([*PROGRAM, "clean", str(folder), "--dry_run", "--config", os.devnull],
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert (dry.returncode, sorted(dry.stdout.split())) == (0, sorted(str(tmp_path / name) for name in goes))
    assert all((tmp_path / name).exists() for name in goes)
    assert capture_analyzer.main(["clean", str(folder), "--config", os.devnull]) == 0
    assert not [name for name in goes if (tmp_path / name).exists()]
    assert not [name for name in [*stays, "captures/capture_20990101000000.jpg", "kept.jpg"]
                if not (tmp_path / name).exists()]  # fmt: skip


def test_what_a_running_monitor_has_not_analysed_waits_but_not_for_ever(tmp_path):
    folder = tmp_path / "captures"
    own = folder / ".capture_analyzer"
    own.mkdir(parents=True)
    now = time.time()
    names = {}
    for age in (5000, 3000, 2000, 1000, 10):
        name = f"{next(capture_analyzer.still_names(now - age))}.jpg"
        (folder / name).touch()
        os.utime(folder / name, (now - age, now - age))
        names[age] = name
    progress = {"schema": 1, "analysed_until_sec": now - 1500, "awaiting": [names[3000]]}
    (own / "progress.json").write_text(json.dumps(progress))
    code = f"import fcntl, time; f = open({str(own / 'monitor.lock')!r}, 'w'); fcntl.flock(f, 2); print(flush=True); "
    holder = subprocess.Popen([sys.executable, "-c", code + "time.sleep(60)"], stdout=subprocess.PIPE)
    assert holder.stdout
    holder.stdout.readline()
    try:
        assert capture_analyzer.main(["clean", str(folder), "--config", os.devnull]) == 0
        assert [age for age, name in names.items() if (folder / name).exists()] == [3000, 1000, 10]
        held = {one.path.name: one.analysed for one in capture_analyzer.litter_of(folder, now)}
        assert held == {names[3000]: False, names[1000]: False, names[10]: False}
        later = plan_cleaning(capture_analyzer.litter_of(folder, now), set(), RULES, now + 3300)
        assert [path.name for path in later] == [names[1000]], "600 s + 3600 s are over; evidence stays until copied"
    finally:
        holder.kill()
        holder.wait()
    assert capture_analyzer.main(["clean", str(folder), "--config", os.devnull]) == 0
    left = [age for age, name in names.items() if (folder / name).exists()]
    assert left == [3000, 10], "nobody is at work any more; a monitor that is being restarted finds its evidence"
    later = plan_cleaning(capture_analyzer.litter_of(folder, now), set(), RULES, now + 1300)
    assert names[3000] in [path.name for path in later]


def litter(name: str, age: float, size: int = 10, *, analysed: bool = True) -> Litter:
    return Litter(Path(name), size, 1_000_000 - age, analysed)


def test_beyond_the_bytes_the_oldest_go_but_no_segment_that_a_playlist_offers():
    found = [litter("d", 40), litter("c", 30), litter("b", 20, analysed=False), litter("a", 10)]
    rules = Tidiness(600, 20, 3600)
    assert plan_cleaning(found, {"d"}, rules, 1_000_000) == [Path("c"), Path("a")]
    assert plan_cleaning(found, set(), rules, 1_000_000) == [Path("d"), Path("c")]
    assert plan_cleaning(found, {"d"}, RULES, 1_000_700) == [Path("d"), Path("c"), Path("a")]


@given(st.lists(st.tuples(st.floats(-1e5, 1e5), st.integers(0, 100), st.booleans()), max_size=20), st.integers(0, 500))
def test_whatever_lies_there_nothing_young_and_unanalysed_goes(entries, limit):
    found = [litter(str(number), age, size, analysed=done) for number, (age, size, done) in enumerate(entries)]
    removed = set(plan_cleaning(found, set(), Tidiness(600, limit, 3600), 1_000_000))
    for one in found:
        age = 1_000_000 - one.written_sec
        if one.path in removed:
            assert age > 4200 or (one.analysed and (age > 600 or limit))
        else:
            assert age <= 4200
    kept = sum(one.size for one in found if one.path not in removed and one.analysed)
    assert not limit or kept <= limit


@pytest.mark.parametrize("key", ["storage: {local_path", "rhombus: {output_dir", "analysis: {evidence_dir"])
def test_folders_of_footage_and_evidence_are_refused(key, tmp_path):
    (tmp_path / "archive" / "Gate").mkdir(parents=True)
    (tmp_path / "archive" / "Gate" / "capture_20260101000000.jpg").touch()
    (tmp_path / "config.yaml").write_text(f"{key}: {tmp_path}/archive}}")
    words = ["clean", str(tmp_path / "archive" / "Gate"), "--config", str(tmp_path / "config.yaml")]
    with pytest.raises(UsageError, match="clean removes captures, not footage or evidence"):
        capture_analyzer.main(words)
    assert (tmp_path / "archive" / "Gate" / "capture_20260101000000.jpg").exists()


def test_a_link_among_footage_to_a_capture_folder_elsewhere_is_refused_too(tmp_path):
    footage, elsewhere = tmp_path / "archive" / "Gate" / "segment_20260101.ts", tmp_path / "elsewhere"
    footage.parent.mkdir(parents=True)
    elsewhere.mkdir()
    footage.touch()
    os.utime(footage, (0, 0))
    (footage.parent / "captures").symlink_to(elsewhere)
    (tmp_path / "config.yaml").write_text(f"storage: {{local_path: {tmp_path}/archive}}")
    with pytest.raises(UsageError, match="clean removes captures, not footage or evidence"):
        capture_analyzer.main(
            ["clean", str(footage.parent / "captures"), "--config", str(tmp_path / "config.yaml")])  # fmt: skip
    assert footage.exists()


@pytest.mark.slow
def test_clean_as_a_service_goes_on_when_a_folder_comes_and_goes(tmp_path):
    folder = tmp_path / "stream" / "captures"
    folder.mkdir(parents=True)
    with Running(tmp_path / "run", "clean", str(folder), "--every", "1") as running:
        for _ in range(2):
            (folder / "capture_20260101000000.jpg").touch()
            os.utime(folder / "capture_20260101000000.jpg", (0, 0))
            until(lambda: not (folder / "capture_20260101000000.jpg").exists())
            shutil.rmtree(folder)
            until(lambda: "trying again" in running.log)
            folder.mkdir()
        assert running.end() == 0


@pytest.mark.slow
def test_100000_stills_are_cleaned_without_ado(tmp_path):
    folder = tmp_path / "captures"
    folder.mkdir()
    for number in range(100_000):
        os.mknod(folder / f"capture_{20260101000000 + number}.jpg")
    started = time.monotonic()
    found = capture_analyzer.litter_of(folder, time.time())
    plan_cleaning(found, set(), RULES, time.time())
    assert len(found) == 100_000
    assert time.monotonic() - started < 20


def test_without_a_folder_the_configured_ones_are_taken(tmp_path):
    for name in ("capture1", "capture2"):
        (tmp_path / name / "captures").mkdir(parents=True)
        (tmp_path / name / "captures" / "capture_20260101000000.jpg").touch()
        os.utime(tmp_path / name / "captures" / "capture_20260101000000.jpg", (0, 0))
    config = f"analysis: {{capture_dirs: ['{tmp_path}/capture*/captures']}}"
    with Running(tmp_path / "run", "clean", config=config) as running:
        assert running.process.wait(20) == 0
    assert list(tmp_path.glob("*/captures/*.jpg")) == []
    with Running(tmp_path / "run", "clean", config=config.replace("capture*", "nothing*")) as running:
        assert running.process.wait(20) == 3
    assert "no folder matches analysis.capture_dirs" in running.log
