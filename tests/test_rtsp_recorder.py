"""rtsp_recorder.py against scriptable cameras on loopback, real FFmpeg, real files; losses are counted in frames.

Limits are a tenth of the real ones. One recorder keeps a dozen cameras for half a minute while each suffers a fault of
its own (`season`); what it left is then looked at test by test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from conftest import NOT_TESTED, ROOT, need
from fake_camera import FakeCamera, frame_numbers

import rtsp_recorder as recorder
from rhombus_logging import Status, UsageError, as_sections, load_config, parse_time

FPS = 20
PASSWORD = "p@:/%#$ü' \"&?"
A_TENTH = {"segment_duration": 4, "first_frame": 6, "stall": 2, "socket_timeout": 1, "retry_wait": 0.1,
           "retry_max": 0.5, "retry_slow": 3, "retry_refused": 2, "fsync_every": 0.2, "stop_wait": 0.5}  # fmt: skip
LIMITS = recorder.Limits(60, 20, 10, 1, 5, 600, 30, 60, 2, 2, 2, 1 << 28)


def until(condition, what: str, timeout_sec: float = 20.0):
    """Wait for what must become true; returns it."""
    end = time.monotonic() + timeout_sec
    while not (result := condition()):
        assert time.monotonic() < end, f"{what}: not within {timeout_sec} s"
        time.sleep(0.05)
    return result


@dataclass
class Site:
    """A config with cameras, and recorders that run with it."""

    folder: Path
    cameras: dict[str, FakeCamera] = field(default_factory=dict)
    entries: list[dict] = field(default_factory=list)
    processes: list[subprocess.Popen] = field(default_factory=list)
    storage: dict = field(default_factory=lambda: {"reserve_bytes": 1})

    @property
    def footage(self) -> Path:
        return Path(self.storage.get("local_path", self.folder / "footage"))

    def add(self, name: str, *, entry: dict | None = None, **options) -> FakeCamera:
        camera = FakeCamera(fps=FPS, **options)
        self.cameras[name] = camera
        self.entries.append({"name": name, "rtsp_url": camera.url, "filename": "%Y%m%d_%H%M%S.mkv", **(entry or {})})
        return camera

    def config(self) -> Path:
        file = self.folder / "config.yaml"
        storage = {"local_path": str(self.footage), **self.storage}
        file.write_text(json.dumps({"storage": storage, "recording": A_TENTH, "cameras": self.entries}))
        file.chmod(0o600)
        return file

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / "rtsp_recorder.py"), *arguments, "--config", str(self.config())]

    def start(self, *names: str, environment: dict | None = None) -> subprocess.Popen:
        log = (self.folder / f"log{len(self.processes)}").open("wb")
        process = subprocess.Popen(self.command("record", *names), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   env={**os.environ, **(environment or {})}, start_new_session=True)  # fmt: skip
        self.processes.append(process)
        return process

    def log(self) -> str:
        return "".join(file.read_text() for file in sorted(self.folder.glob("log*")) if file.is_file())

    def state(self, name: str) -> dict:
        return recorder.read_state(self.footage / ".rtsp_recorder" / "state" / f"{name}.json")

    def wait_for(self, state: str, *names: str, timeout_sec: float = 20.0) -> None:
        for name in names or self.cameras:
            until(lambda name=name: self.state(name).get("state") == state, f"{name} {state}", timeout_sec)

    def files(self, name: str) -> list[Path]:
        return sorted(path for path in (self.footage / name).glob("*") if path.is_file())

    def journal(self, name: str, kind: str = "") -> list[dict]:
        lines = recorder.read_journal(self.footage / ".rtsp_recorder" / "journal" / name, 0, time.time() + 10)
        return [line for line in lines if kind in ("", line["kind"])]

    def staged(self) -> list[Path]:
        return [path for path in (self.footage / ".rtsp_recorder" / "staging").rglob("*") if path.is_file()]

    def numbers(self, name: str) -> list[int]:
        return sorted(number for file in self.files(name) for number in frame_numbers(file))

    def lost_sec(self, name: str) -> float:
        """Seconds between the first and the last frame that no file holds."""
        there = self.numbers(name)
        assert len(there) == len(set(there)), "a frame is there twice"
        return (there[-1] - there[0] + 1 - len(there)) / FPS

    def ffmpegs(self, name: str = "") -> list[int]:
        """Process ids of what records here, found as the system shows it."""
        staging = str(self.footage / ".rtsp_recorder" / "staging" / name)
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if str((entry / "cwd").readlink()).startswith(staging):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def gaps(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(self.command("gaps", *arguments), capture_output=True, text=True, timeout=30, check=False)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for process in self.ffmpegs():
            os.kill(process, signal.SIGKILL)
        for camera in self.cameras.values():
            camera.stop()


def mid_segment() -> None:
    """Wait until the open files hold something: cut at the first key frame after full 4 s."""
    while not 2.6 < time.time() % A_TENTH["segment_duration"] < 3.6:
        time.sleep(0.05)


def end(process: subprocess.Popen, what: int = signal.SIGTERM, within_sec: float = 5.5) -> tuple[int, float]:
    """(exit status, seconds until it ended)."""
    started = time.monotonic()
    process.send_signal(what)
    return process.wait(within_sec), time.monotonic() - started


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


# --- config ---


def settled(cameras, *wanted, recording=None, storage=None, flags=None):
    defaults = load_config(Path(os.devnull), ("recording", "storage"), Path())
    config = {
        "cameras": cameras,
        "recording": {**defaults["recording"], **(recording or {})},
        "storage": {**defaults["storage"], "local_path": "/footage", **(storage or {})},
    }
    return recorder.settle_cameras(config, flags or {}, wanted)


@pytest.mark.parametrize(
    "values, url",
    [
        ({"rtsp_url": "rtsp://host/a"}, "rtsp://host/a"),
        ({"rtsp_url": "rtsp://u:p%40w@host:8554/a@b"}, "rtsp://u:p%40w@host:8554/a@b"),
        ({"rtsp_url": "rtsp://u:p@ss:w%rd#@host/a"}, "rtsp://u:p%40ss%3Aw%25rd%23@host/a"),
        ({"rtsp_url": "rtsp://u:p/w@host/a"}, "rtsp://u:p%2Fw@host/a"),
        ({"rtsp_url": "rtsp://host:554/a@b"}, "rtsp://host:554/a@b"),
        ({"rtsp_url": "RTSPS://host/a", "user": "ü", "password": "@"}, "rtsps://%C3%BC:%40@host/a"),
        ({"ip": "10.0.0.7", "rtsp_port": 554}, "rtsp://10.0.0.7:554/Streaming/Channels/101"),
        ({"ip": "fe80::1", "rtsp_port": 554, "rtsp_path": "x", "user": "u"}, "rtsp://u@[fe80::1]:554/x"),
        ({"ip": "h", "rtsp_port": 1, "user": "u", "password": PASSWORD},
         "rtsp://u:p%40%3A%2F%25%23%24%C3%BC%27%20%22%26%3F@h:1/Streaming/Channels/101"),
    ],
)  # fmt: skip
def test_credentials_are_percent_encoded_however_they_are_given(values, url):
    assert recorder.camera_url(values) == url


def test_a_camera_with_rtsp_url_and_one_with_station_record_as_older_installations_do():
    named, station = settled(
        [{"name": "Gate", "rtsp_url": "rtsp://h/1"}, {"station": "ROST2", "ip": "10.0.0.2", "segment_time": 300}],
        recording={"defaults": {"user": "u", "password": "secret", "output_dir": "/old", "segment_time": 600}},
    )
    assert (named.container, named.segment_sec, named.root) == ("mp4", 600, Path("/footage"))
    assert (station.container, station.segment_sec, station.root) == ("mkv", 300, Path("/old"))
    assert recorder.final_stem(named, 0) == "19700101_000000"
    assert recorder.final_stem(station, 0) == "ROST2_19700101T000000"
    assert "secret" not in repr(station)


@pytest.mark.parametrize("name", ["../x", "", ".x", "a/b", "a b", "ü", "x" * 65])
def test_a_name_that_could_leave_its_folder_is_refused(name):
    with pytest.raises(UsageError, match="name is"):
        settled([{"name": name, "rtsp_url": "rtsp://h/1"}])


@pytest.mark.parametrize(
    "cameras, wanted, message",
    [
        ([{"name": "a", "rtsp_url": "rtsp://h"}, {"name": "A", "rtsp_url": "rtsp://h"}], (), "two cameras"),
        ([{"name": "a", "rtsp_url": "rtsp://h"}], ("b",), "no such camera"),
        ([{"name": "a", "rtsp_url": "rtsp://h", "enabled": False}], (), "no camera to record"),
        ([{"name": "a", "rtsp_url": "http://h"}], (), "rtsp://"),
        ([{"name": "a"}], (), "neither rtsp_url nor ip"),
        ([{"name": "a", "rtsp_url": "rtsp://h", "filename": "a/%Y"}], (), "no usable file name"),
        ([{"name": "a", "rtsp_url": "rtsp://h", "stall": 0}], (), "more than 0"),
        ([{"name": "a", "rtsp_url": "rtsp://h", "loglevel": "loud"}], (), "loglevel"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(cameras, wanted, message):
    with pytest.raises(UsageError, match=message):
        settled(cameras, *wanted)


def test_a_disabled_camera_is_recorded_only_when_it_is_named():
    both = [{"name": "a", "rtsp_url": "rtsp://h", "enabled": False}, {"name": "b", "rtsp_url": "rtsp://h"}]
    assert [camera.name for camera in settled(both)] == ["b"]
    assert [camera.name for camera in settled(both, "A")] == ["a"]


def test_the_last_camera_of_the_config_stops_first_and_none_uses_the_reserve():
    cameras = settled([{"name": name, "rtsp_url": "rtsp://h"} for name in "abcd"], storage={"reserve_bytes": 100})
    assert [camera.space_bytes for camera in cameras] == [100, 125, 150, 175]
    assert all(camera.space_again_bytes > camera.space_bytes for camera in cameras)


def test_older_files_mean_the_same_as_the_sections():
    assert as_sections([{"station": "a"}]) == {"cameras": [{"station": "a"}]}
    older = {"defaults": {"user": "u"}, "cameras": [], "nas_target_dir": "/nas", "storage": {"local_path": "/x"}}
    assert as_sections(older) == {
        "recording": {"defaults": {"user": "u"}}, "cameras": [], "nas": {"nas_target_dir": "/nas"},
        "storage": {"local_path": "/x"}}  # fmt: skip


def test_an_older_cameras_json_lies_over_the_config(tmp_path):
    older = tmp_path / "cameras.json"
    older.write_text(json.dumps({"defaults": {"user": "u"}, "cameras": [{"station": "a", "ip": "h"}]}))
    sections = recorder.read_overlay(older)
    config = load_config(None, ("cameras", "recording", "storage"), tmp_path, sections)
    assert config["cameras"] == [{"station": "a", "ip": "h"}]
    assert config["recording"]["defaults"] == {"user": "u"}
    older.write_text('{"cameras": [{"statoin": "a"}]}')
    with pytest.raises(UsageError, match="did you mean station"):
        load_config(None, ("cameras",), tmp_path, recorder.read_overlay(older))


def test_the_call_of_the_older_recorder_needs_no_config():
    flags = {"ip": "10.0.0.9", "station": "Yard", "user": "u", "segment_time": 60, "output_dir": "/x"}
    (camera,) = settled([{"name": "other", "rtsp_url": "rtsp://h"}], flags=flags)
    assert (camera.name, camera.root, camera.segment_sec) == ("Yard", Path("/x"), 60)
    (camera,) = settled([], flags={"rtsp_url": "rtsp://u:p@10.0.0.9:554/x"})
    assert camera.name == "10.0.0.9"


@pytest.mark.parametrize("flags", [{"station": "Gate"}, {"ip": "10.0.0.9"}, {"station": "Gate", "ip": ""}])
def test_half_of_one_camera_in_flags_never_records_those_of_the_config(flags):
    with pytest.raises(UsageError, match="--station"):
        settled([{"name": "a", "rtsp_url": "rtsp://h"}], flags=flags)


@pytest.mark.parametrize("login, warned", [("admin@", False), ("", False), ("admin:hunter22@", True)])
def test_only_a_password_in_the_address_is_warned_of_and_masked(login, warned, monkeypatch, caplog):
    hidden = []
    monkeypatch.setattr(recorder, "hide_secret", hidden.append)
    recorder.camera_flags(recorder.build_parser().parse_args(["record", "--rtsp_url", f"rtsp://{login}h/a@b"]))
    assert hidden == (["hunter22"] if warned else [])
    assert ("RTSP_PASSWORD" in caplog.text) == warned


# --- what FFmpeg is told, and what it says ---


def test_the_ffconcat_text_quotes_any_character():
    (camera,) = settled([{"name": "a", "rtsp_url": "rtsps://h/it's", "tls_ca_file": "/c a"}])
    assert recorder.ffconcat(camera, tls_options=True).splitlines() == [
        "ffconcat version 1.0", r"file 'rtsps://h/it'\''s'", "option rtsp_transport 'tcp'", "option timeout '10000000'",
        "option use_wallclock_as_timestamps '1'", "option tls_verify '1'", "option ca_file '/c a'"]  # fmt: skip
    assert "tls_verify" not in recorder.ffconcat(camera, tls_options=False)


def test_the_command_holds_nothing_about_the_camera():
    (camera,) = settled([{"name": "Gate", "rtsp_url": "rtsp://u:secret@h/x"}])
    command = recorder.record_command("ffmpeg", camera, 5, 6)
    assert not [word for word in command if re.search("secret|rtsp://|Gate|footage", word)]
    assert command[command.index("-segment_time") + 1] == "3600"


@pytest.mark.parametrize(
    "text, progress",
    [
        ("frame=17\nout_time_us=1500000\nprogress=continue", (17, 1.5)),
        ("frame=  0\nout_time_us=N/A\nprogress=continue", (0, None)),
        ("continue\nframe= 18\nfps=20.1\nout_time_us=-46\nout_time_ms=-46\nout_time=-00:00:00\n", (18, -46e-6)),
        ("frame=1\nout_time_us=2\nprogress=continue\nframe=3\nout_time_us=4\nprogress=end\n", (3, 4e-6)),
        ("", (0, None)),
    ],
)
def test_a_block_of_progress_is_read(text, progress):
    assert recorder.read_progress(text) == progress


def test_a_row_of_the_segment_list_is_read():
    assert recorder.read_row("20260101T000000Z.mkv,0.000000,3.9\n") == ("20260101T000000Z.mkv", 0.0, 3.9)
    assert recorder.read_row('"a,b.mkv",1,2') == ("a,b.mkv", 1.0, 2.0)
    assert [recorder.read_row(text) for text in ("", "x", "a,b,c", "a,1,2,3")] == [None] * 4


@pytest.mark.parametrize(
    "cause, line, status, frames",
    [
        ("unauthorised", "[rtsp @ 0x1] [error] method DESCRIBE failed: 401 Unauthorized", 1, 0),
        ("unauthorised", "[fatal] Error opening input files: Server returned 401 Unauthorized (authorization failed)",
         8, 0),
        ("refused", "[rtsp @ 0x1] [error] method DESCRIBE failed: 404 (Not Found)", 8, 0),
        ("refused", "[rtsp @ 0x1] [error] method SETUP failed: 453 Not Enough Bandwidth", 1, 0),
        ("refused", "[tcp @ 0x1] [error] Connection to tcp://10.0.0.1:554 failed: Connection refused", 145, 0),
        ("refused", "[error] pipe:0: No route to host", 1, 0),
        ("refused", "[error] pipe:0: Connection timed out", 1, 0),
        ("refused", "[tls @ 0x1] [error] certificate verify failed", 251, 0),
        ("stall", "[error] pipe:0: Connection timed out", 0, 100),
        ("stall", "[rtsp @ 0x1] [warning] Failed reading RTSP data: Connection reset by peer", 0, 100),
        ("stall", "", 0, 0),
        ("disk", "[segment @ 0x1] [error] x.mkv: No space left on device", 228, 100),
        ("disk", "[error] Error writing trailer of x.mkv: Input/output error", 1, 5),
        ("crashed", "", -9, 100),
        ("crashed", "", -11, 0),
        ("unknown", "[error] something new", 1, 0),
    ],
)  # fmt: skip
def test_what_ffmpeg_says_has_a_cause(cause, line, status, frames):
    assert recorder.classify([line], status, frames) == cause


@pytest.mark.parametrize(
    "lines, said",
    [
        (["[tcp @ 0x5] [error] Failed to resolve hostname nvr: Name or service not known",
          "[concat @ 0x5] [error] Impossible to open 'rtsp://nvr/x'", "[error] pipe:0: Input/output error"],
         "Failed to resolve hostname nvr: Name or service not known"),
        (["[tcp @ 0x5] [error] Connection to tcp://10.0.0.1:9?timeout=10000000 failed: Connection refused",
          "[fatal] Error opening input files: Connection refused"],
         "Connection to tcp://10.0.0.1:9 failed: Connection refused"),
        (["[rtsp @ 0x5] [error] method DESCRIBE failed: 404 (Not Found)", "[error] Error opening input file pipe:0."],
         "method DESCRIBE failed: 404 (Not Found)"),
        (["[warning] x", "[error] odd", "[fatal] Conversion failed!"], "Conversion failed!"),
        (["[warning] x"], ""),
    ],
)  # fmt: skip
def test_of_what_ffmpeg_says_the_line_that_tells_most_is_quoted(lines, said):
    assert recorder.quotable(recorder.plainest(lines)) == said


def shown_table(states, capsys):
    """The table at its end, where stderr is no terminal."""
    cameras = settled([{"name": state["camera"], "rtsp_url": "rtsp://h/1"} for state in states])
    recorders = [recorder.Recorder(camera, "ffmpeg", False, None, threading.Event()) for camera in cameras]
    for one, state in zip(recorders, states, strict=True):
        one.state |= state
    with recorder.live_table(recorders, shown=True) as update:
        update()
    return capsys.readouterr().err


def test_the_table_counts_a_loss_that_lasts_and_says_a_state_once(capsys):
    now = time.time()
    shown = shown_table([
        {"camera": "Gate", "state": "down", "cause": "refused", "since": now - 90, "lost_today_sec": 7.0},
        {"camera": "Yard", "state": "recording", "since": now - 90, "lost_today_sec": 7.0},
        {"camera": "Hall", "state": "stopped", "cause": "stopped", "since": now - 90}], capsys)  # fmt: skip
    rows = {line.split()[1]: line for line in shown.splitlines() if line.startswith("│")}
    assert "down refused" in rows["Gate"] and re.search(r"9[78] s", rows["Gate"])
    assert " 7 s" in rows["Yard"] and rows["Hall"].count("stopped") == 1


def test_a_camera_that_is_down_has_no_rates_left_from_when_it_was_recorded(tmp_path):
    (camera,) = settled([{"name": "Gate", "rtsp_url": "rtsp://h/1"}], storage={"local_path": str(tmp_path)})
    one = recorder.Recorder(camera, "ffmpeg", False, None, threading.Event())
    one.state |= {"state": "recording", "fps": 25.0, "bytes_per_sec": 500_000.0}
    one.down("refused", "")
    kept = recorder.read_state(camera.state_file)
    assert (kept["state"], kept["fps"], kept["bytes_per_sec"]) == ("down", 0, 0)


def test_a_table_that_is_longer_than_the_terminal_begins_with_what_is_not_recorded(capsys, monkeypatch):
    monkeypatch.setenv("LINES", "10")
    now = time.time()
    states = [{"camera": f"C{number}", "state": "down" if number == 11 else "recording", "since": now}
              for number in range(12)]  # fmt: skip
    rows = [line.split()[1] for line in shown_table(states, capsys).splitlines() if line.startswith("│")]
    assert rows[0] == "C11"


def test_what_is_quoted_in_a_warning_never_looks_like_an_error():
    line = "[in#0 @ 0x5] [error] Error opening input: Input/output error"
    assert recorder.quotable(line) == "failure opening input: Input/output failure"
    assert recorder.quotable("[error] pipe:0: Connection refused") == "Connection refused"


def test_the_first_file_begins_when_its_first_frame_came_though_few_anchors_are_known_then(tmp_path, monkeypatch):
    (camera,) = settled([{"name": "a", "rtsp_url": "rtsp://h"}])
    says = """import os, sys, time
progress, rows = map(int, sys.argv[1:])
open("20260101T000000Z.mkv", "w").close()
os.write(progress, b"frame=1\\nout_time_us=100000\\nprogress=continue\\n")  # late: it looked at the stream for 3 s
time.sleep(0.2)
os.write(rows, b"20260101T000000Z.mkv,0,3\\n")
time.sleep(0.2)
for number in range(2):
    os.write(progress, b"frame=%d\\nout_time_us=%d\\nprogress=continue\\n" % (70 + number, 3500000 + number))
    time.sleep(0.2)
"""
    monkeypatch.setattr(recorder, "record_command", lambda _ffmpeg, _camera, *fds: [
        sys.executable, "-c", says, *map(str, fds)])  # fmt: skip
    run = recorder.Run(camera, "ffmpeg", tmp_path, tls_options=False)
    while run.poll(1):
        assert run.jobs == []
    run.close()
    assert [(job.path.name, job.first) for job in run.jobs] == [("20260101T000000Z-0.mkv", True)]
    assert run.jobs[0].start_sec == min(run.anchors) < max(run.anchors) - 2.5
    assert run.jobs[0].end_sec == run.jobs[0].start_sec + 3


def test_a_down_time_is_called_by_what_shows_most_plainly():
    assert recorder.telling(None, "stall") == "stall"
    assert recorder.telling("stall", "refused") == "refused"
    assert recorder.telling("refused", "unauthorised") == "unauthorised"
    assert recorder.telling("video_dead", "stall") == "video_dead"
    assert recorder.telling("disk", "refused") == "disk"


def test_retries_start_at_once_slow_down_and_never_lock_an_account():
    waits = [recorder.retry_wait_sec(attempt, 0, False, LIMITS) for attempt in range(9)]
    assert waits[:3] == [1, 1.3, pytest.approx(1.69)] and waits[-1] == 5
    assert recorder.retry_wait_sec(500, 599, False, LIMITS) == 5
    assert recorder.retry_wait_sec(500, 601, False, LIMITS) == 30
    assert recorder.retry_wait_sec(0, 0, True, LIMITS) == 60


def test_liveness_is_a_rising_number_of_video_frames():
    assert recorder.dead_cause(59, 0, 0, LIMITS) is None
    assert recorder.dead_cause(60, 0, 0, LIMITS) == "stall"
    assert recorder.dead_cause(19, 5, 0, LIMITS) is None
    assert recorder.dead_cause(20, 5, 0.1, LIMITS) == "stall"
    assert recorder.dead_cause(20, 5, 19, LIMITS) == "video_dead"


def test_names_are_local_times_where_wanted_and_never_repeat():
    (camera,) = settled([{"name": "a", "rtsp_url": "rtsp://h"}], recording={"timezone": "Europe/Berlin"})
    first, second = (datetime(2026, 10, 25, hour, 30, tzinfo=timezone.utc).timestamp() for hour in (0, 1))
    assert recorder.final_stem(camera, first) == recorder.final_stem(camera, second) == "20261025_023000"
    names = recorder.names_for("20261025_023000", "mp4")
    assert [next(names) for _ in range(3)] == ["20261025_023000.mp4", "20261025_023000_1.mp4", "20261025_023000_2.mp4"]


def test_a_published_file_is_never_overwritten_and_a_repeated_publish_is_one(tmp_path, monkeypatch):
    staged, folder = tmp_path / "s", tmp_path / "f"
    staged.write_text("new")
    folder.mkdir()
    (folder / "n.mkv").write_text("old")
    assert recorder.publish(staged, folder, recorder.names_for("n", "mkv")).name == "n_1.mkv"
    assert recorder.publish(staged, folder, recorder.names_for("n", "mkv")).name == "n_1.mkv"

    staged.unlink()
    staged.write_text("third")
    (folder / "n_2.mkv").touch()  # left by a crash between the two steps: it exists, and the system says only that
    assert recorder.publish(staged, folder, recorder.names_for("n", "mkv")).name == "n_2.mkv"
    staged.write_text("fourth")

    def no_links(*_):
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    (folder / "n_3.mkv").touch()
    assert recorder.publish(staged, folder, recorder.names_for("n", "mkv")).name == "n_3.mkv"
    assert [file.read_text() for file in sorted(folder.iterdir())] == ["old", "new", "third", "fourth"]


@pytest.mark.parametrize("container", ["mkv", "mp4"])
@pytest.mark.parametrize("links", [True, False])
def test_a_crash_at_any_step_of_publishing_ends_with_one_file_and_one_line(tmp_path, monkeypatch, container, links):
    """A file that was being written when everything died, then a crash or a full disk at each step in turn."""
    entry = {"name": "a", "rtsp_url": "rtsp://h", "container": container}
    (camera,) = settled([entry], storage={"local_path": str(tmp_path)})
    folder = camera.own("staging") / "run"
    folder.mkdir(parents=True)
    ffmpeg = recorder.find_ffmpeg("this test")
    staged = folder / "20260101T120000Z.mkv"
    make = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", "testsrc2=r=10:s=160x120", "-t", "6", "-c:v", "mpeg4",
            "-g", "10", "-f", "matroska", "-cluster_time_limit", "1000", "-live", "1", str(staged)]  # fmt: skip
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    os.truncate(staged, staged.stat().st_size * 2 // 3)
    os.utime(staged, (0, 0))
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links here")))
    for step in ("remux", "publish", "write_journal"):
        with monkeypatch.context() as crash:
            crash.setattr(recorder, step, lambda *_, **__: (_ for _ in ()).throw(OSError(28, "no space")))
            for stem in {file.stem for file in folder.iterdir()}:
                with pytest.raises(OSError, match="no space"):
                    recorder.Finisher(camera, ffmpeg).finish(recorder.Job(folder / f"{stem}.mkv", found=True))
    for stem in {file.stem for file in folder.iterdir()}:
        recorder.Finisher(camera, ffmpeg).finish(recorder.Job(folder / f"{stem}.mkv", found=True))
    assert [file.name for file in (tmp_path / "a").iterdir()] == [f"20260101_120000.{container}"]
    lines = recorder.read_journal(camera.own("journal"), 0, 2e9)
    assert list(folder.iterdir()) == []
    (line,) = lines
    assert (line["file"], line["whole"]) == (f"a/20260101_120000.{container}", False)
    assert 20 < line["frames"] < 60 and line["end"] - line["start"] == pytest.approx(line["frames"] / 10, abs=0.3)


# --- gaps, pure ---


def segment(start, end):
    return {"kind": "segment", "start": start, "end": end}


def test_gaps_are_what_no_segment_covers_with_the_cause_of_the_down_time():
    lines = [segment(0, 10), segment(10.2, 20), {"kind": "down", "start": 20, "end": 29, "cause": "refused"},
             segment(30, 40), segment(45, 50)]  # fmt: skip
    found = recorder.coverage("a", lines, (0, 60), [recorder.Gap("a", 50, 60, "stall", "journal")])
    assert [(gap.start, gap.end, gap.cause, gap.basis) for gap in found.gaps] == [
        (20, 30, "refused", "journal"), (40, 45, "unknown", "inferred"), (50, 60, "stall", "journal")]  # fmt: skip
    assert found.lost_percent() == pytest.approx(100 * 25 / 60)
    assert found.lost_percent((0, 20)) == 0


def test_the_causes_of_a_season_with_very_many_gaps_are_found_in_one_pass():
    count = 20_000
    lines = [{"kind": "segment", "start": 10 * place, "end": 10 * place + 5} for place in range(count)]
    lines += [{"kind": "down", "start": 10 * place + 5, "end": 10 * place + 10,
               "cause": recorder.CAUSES[place % len(recorder.CAUSES)]} for place in range(count)]  # fmt: skip
    began = time.process_time()
    found = recorder.coverage("Gate", lines, (0, 10 * count))
    assert [gap.cause for gap in found.gaps] == [line["cause"] for line in lines[count:]]
    assert time.process_time() - began < 5, "with every gap compared to every down time it takes minutes"


def test_a_down_time_that_spans_many_gaps_is_the_cause_of_each_that_it_covers_most_of():
    lines = [{"kind": "segment", "start": start, "end": start + 5} for start in (0, 10, 20)]
    lines += [{"kind": "down", "start": 0, "end": 100, "cause": "stopped"},
              {"kind": "down", "start": 5, "end": 10, "cause": "refused"},
              {"kind": "down", "start": 6, "end": 10, "cause": "stall"},
              {"kind": "down", "start": 15, "end": 16, "cause": "stall"}]  # fmt: skip
    found = recorder.coverage("Gate", lines, (0, 30))
    assert [gap.cause for gap in found.gaps] == ["stopped"] * 3
    assert recorder.coverage("Gate", lines[:3] + lines[4:], (0, 30)).gaps == [
        recorder.Gap("Gate", 5, 10, "refused", "journal"), recorder.Gap("Gate", 15, 20, "stall", "journal"),
        recorder.Gap("Gate", 25, 30, "unknown", "inferred")]  # fmt: skip


@pytest.mark.parametrize("state, cause", [("starting", "stopped"), ("recording", "crashed"), ("down", "refused")])
def test_the_time_without_a_line_has_the_cause_that_the_state_shows(tmp_path, state, cause):
    """A recorder that waits for its first picture has not crashed; one whose state is old has."""
    now = time.time()
    written = {"state": state, "since": now - 90, "cause": cause if state == "down" else None, "last_frame_at": None,
               "recording_since": None, "updated_at": now - (60 if cause == "crashed" else 1)}  # fmt: skip
    (tmp_path / ".rtsp_recorder" / "state").mkdir(parents=True)
    (tmp_path / ".rtsp_recorder" / "state" / "Gate.json").write_text(json.dumps(written))
    assert [gap.cause for gap in recorder.coverage_of(tmp_path, "Gate", None, now).gaps] == [cause]


@pytest.mark.parametrize("arguments, said", [
    (["gaps", "--max_lost", "-5"], "--max_lost"), (["gaps", "--max_lost", "nan"], "--max_lost"),
    (["gaps", "--max_lost", "101"], "--max_lost"), (["gaps", "--json", "--csv"], "not allowed with"),
    (["check", "--json", "--yaml"], "not allowed with"),
    (["record", "--ip", "127.0.0.1", "--station", "Gate", "--segment_time", "0"], "segment_time"),
])  # fmt: skip
def test_flags_that_cannot_be_meant_end_with_status_2_and_nothing_is_made(site, arguments, said):
    done = subprocess.run(site.command(*arguments), capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (Status.USAGE, "") and said in done.stderr
    assert not site.footage.exists()


def test_one_gap_is_not_called_gaps(capsys):
    one = recorder.coverage("a", [segment(0, 10), segment(20, 60)], (0, 60))
    recorder.show_gaps([one, recorder.coverage("b", [], (0, 0))], timezone.utc, "table")
    heads = [line for line in capsys.readouterr().out.splitlines() if "gap" in line]
    assert [line.rpartition(", ")[2] for line in heads] == ["1 gap", "0 gaps"]


def test_words_for_a_time_mean_the_zone_that_is_asked_for():
    zone = ZoneInfo("Pacific/Kiritimati")  # 14 h ahead of UTC
    assert parse_time("2 hours ago", "--since", zone) == pytest.approx(time.time() - 7200, abs=5)
    day = datetime.fromtimestamp(time.time() - 86400, zone)
    nine = day.replace(hour=9, minute=0, second=0, microsecond=0).timestamp()
    assert parse_time("yesterday 09:00", "--since", zone) == nine


def test_the_open_segment_counts_as_covered():
    assert recorder.coverage("a", [segment(0, 10)], (0, 20), (), [(10, 20)]).gaps == []


def test_a_day_may_have_23_or_25_hours():
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2026, 10, 24, 12, tzinfo=berlin).timestamp()
    days = list(recorder.days_of((start, start + 3 * 86400), berlin))
    assert [(day, round((end - start) / 3600)) for day, (start, end) in days] == [
        ("2026-10-24", 12), ("2026-10-25", 25), ("2026-10-26", 24), ("2026-10-27", 11)]  # fmt: skip


def test_a_down_time_has_a_line_in_the_journal_of_every_day(tmp_path):
    (camera,) = settled([{"name": "a", "rtsp_url": "rtsp://h"}], storage={"local_path": str(tmp_path)})
    recorder.write_down(camera, 86400 * 2 - 10, 86400 * 4 + 5, "stall")
    folder = camera.own("journal")
    assert [file.stem for file in sorted(folder.iterdir())] == ["1970-01-02", "1970-01-03", "1970-01-04", "1970-01-05"]
    with (folder / "1970-01-05.jsonl").open("a") as handle:
        handle.write('{"kind": "segm')  # a torn line
    lines = recorder.read_journal(folder, 0, 86400 * 9)
    assert sum(line["end"] - line["start"] for line in lines) == 2 * 86400 + 15
    recorder.write_down(camera, 86400 * 4 + 5, 86400 * 4 + 6, "stall")
    assert len(recorder.read_journal(folder, 0, 86400 * 9)) == len(lines) + 1


# --- a season of faults ---


@pytest.fixture(scope="module")
def season(tmp_path_factory):
    """Every fault at once, each at a camera of its own; then SIGTERM. `notes` holds what was seen meanwhile."""
    site = Site(tmp_path_factory.mktemp("season"))
    logs = {"logs_dir": str(site.folder / "logs")}
    add = site.add
    add("Fine", audio="pcma", entry={"filename": "%Y%m%d_%H%M%S.mp4"})
    add("Killed", sessions_max=1), add("Wedged"), add("Rebooted", sessions_max=1), add("Later"), add("Earlier")
    add("Frozen"), add("Bye"), add("Reset", sessions_max=1)
    add("VideoDead", audio="pcma")
    add("Secret", user="us er", password=PASSWORD, entry=logs)
    add("Locked", user="user", password=PASSWORD, entry=logs)
    add("Unplugged", plugged=False)
    add("Modern", codec="h265", audio="aac", tls=True, entry={"tls_verify": False, "filename": None})
    add("Udp", udp=True, entry={"transport": "udp"})
    site.entries[11]["rtsp_url"] = site.cameras["Locked"].url.replace("p%40", "wrong")
    site.notes = {}
    try:
        process = site.start()
        well = [name for name in site.cameras if name not in ("Locked", "Unplugged")]
        site.wait_for("recording", *well)
        argv = [Path(f"/proc/{one}/cmdline").read_bytes() for one in [process.pid, *site.ffmpegs()]]
        site.notes["argv"] = b"\n".join(argv).decode()
        time.sleep(1)
        mid_segment()
        cameras = site.cameras
        os.kill(site.ffmpegs("Killed/")[0], signal.SIGKILL)
        cameras["Wedged"].wedge(), cameras["VideoDead"].kill_video(), cameras["Rebooted"].reboot(3)
        cameras["Later"].rtp_jump(1000), cameras["Earlier"].rtp_jump(-1000), cameras["Frozen"].freeze(1.4)
        cameras["Bye"].bye(), cameras["Reset"].reset()
        time.sleep(3.5)
        site.notes["states"] = {name: site.state(name) for name in site.cameras}
        cameras["Wedged"].unwedge(), cameras["VideoDead"].restore_video(), cameras["Unplugged"].plug()
        site.wait_for("recording", *well, "Unplugged")
        time.sleep(5)
        site.notes["gaps while recording"] = site.gaps("--json").stdout
        site.notes["end"] = end(process)
        yield site
    finally:
        site.close()


@pytest.mark.slow
def test_sigterm_ends_within_5_s_with_status_0_and_nothing_left_behind(season):
    status, seconds = season.notes["end"]
    assert status == 0 and seconds < 5
    assert season.staged() == []
    assert season.ffmpegs() == []
    assert {season.state(name)["state"] for name in season.cameras} == {"stopped"}


def test_every_published_file_is_readable_and_stands_in_the_journal(season):
    for name in season.cameras:
        segments = season.journal(name, "segment")
        assert sorted(line["file"] for line in segments) == [f"{name}/{file.name}" for file in season.files(name)]
        for line in segments:
            file = season.footage / line["file"]
            assert line["bytes"] == file.stat().st_size
            assert line["frames"] == len(frame_numbers(file)) > 0
            assert line["end"] - line["start"] == pytest.approx(line["frames"] / FPS, abs=1.6), line


def test_times_in_the_journal_are_when_the_frames_were_made(season):
    for name in ("Fine", "Secret"):
        camera = season.cameras[name]
        for line in season.journal(name, "segment"):
            numbers = frame_numbers(season.footage / line["file"])
            assert line["start"] == pytest.approx(camera.started + numbers[0] / FPS, abs=0.3)
            assert line["end"] == pytest.approx(camera.started + (numbers[-1] + 1) / FPS, abs=0.3)


@pytest.mark.parametrize(
    "name, at_most_sec",
    [
        ("Fine", 0), ("Secret", 0), ("Modern", 0), ("Udp", 0), ("Later", 0), ("Earlier", 0), ("Frozen", 0),
        ("Killed", 3), ("Reset", 3), ("Rebooted", 3 + 2), ("Wedged", 3.5 + 2.5), ("VideoDead", 3.5 + 2.5), ("Bye", 5),
    ],
)  # fmt: skip
def test_a_fault_costs_only_seconds(season, name, at_most_sec):
    lost = season.lost_sec(name)
    print(f"{name}: {lost} s lost")
    assert lost <= at_most_sec


@pytest.mark.parametrize(
    "name, cause",
    [("Killed", "crashed"), ("Reset", "stall"), ("Rebooted", "refused"), ("Wedged", "stall"),
     ("VideoDead", "video_dead"), ("Bye", "stall")],
)  # fmt: skip
def test_every_loss_has_its_cause_and_its_length_in_the_journal(season, name, cause):
    downs = [line for line in season.journal(name, "down") if line["cause"] != "stopped"]
    assert {line["cause"] for line in downs} == {cause}
    last = season.journal(name, "segment")[-1]["end"]
    gaps = [json.loads(line) for line in season.gaps(name, "--json", "--until", str(last)).stdout.splitlines()[:-1]]
    gaps = [gap for gap in gaps if gap["cause"] != "stopped"]
    if season.lost_sec(name) > recorder.GAP_SEC:
        assert {(gap["cause"], gap["basis"]) for gap in gaps} == {(cause, "journal")}
    assert sum(gap["end"] - gap["start"] for gap in gaps) == pytest.approx(season.lost_sec(name), abs=0.7)


def test_only_the_file_of_a_killed_ffmpeg_is_cut_short(season):
    short = {name: sum(not line["whole"] for line in season.journal(name, "segment")) for name in season.cameras}
    assert short.pop("Killed") == 1
    stalled = {name: short.pop(name) for name in ("Wedged", "Bye")}  # FFmpeg may end without closing its file
    assert set(short.values()) == {0}, (short, season.log())
    assert set(stalled.values()) <= {0, 1}


def test_a_camera_that_cannot_be_reached_or_refuses_the_password_never_disturbs_the_others(season):
    locked, unplugged = (season.notes["states"][name] for name in ("Locked", "Unplugged"))
    assert (locked["state"], locked["cause"]) == ("down", "unauthorised")
    assert (unplugged["state"], unplugged["cause"]) == ("down", "refused")
    assert season.files("Locked") == []
    assert season.cameras["Locked"].logins_refused <= 20, "an account is not asked over and over"
    assert season.lost_sec("Unplugged") == 0, "recorded from its first key frame on"
    assert [line["cause"] for line in season.journal("Unplugged", "down")] == ["refused"]


def test_warnings_quote_what_happened_and_not_what_our_own_signal_causes(season):
    said = season.log()
    assert "Wedged: not recording: stall" in said and "Unplugged: not recording: refused: Connection to tcp://" in said
    assert "Immediate exit" not in said
    assert [line for line in said.splitlines() if re.search("WARNING|INFO", line) and "error" in line.lower()] == []


def test_sound_that_mp4_cannot_hold_becomes_aac_and_that_is_said_once(season):
    assert {file.suffix for file in season.files("Fine") + season.files("Modern")} == {".mp4"}
    assert season.log().count("it becomes AAC") == 1
    assert b"hvc1" in season.files("Modern")[0].read_bytes()


def test_a_certificate_that_is_not_checked_is_said(season):
    assert re.search("Modern: (the certificate is not checked|this FFmpeg does not check certificates)", season.log())


def test_a_password_with_any_character_works_and_is_seen_nowhere(season):
    assert season.numbers("Secret")
    assert "Unauthorized" in (season.folder / "logs" / "Locked.log").read_text()
    kept = [file for file in season.folder.rglob("*") if file.is_file() and file.name != "config.yaml"]
    texts = [season.notes["argv"], *(file.read_bytes().decode("utf-8", "replace") for file in kept)]
    assert len(texts) > 20
    words = (PASSWORD, "p%40%3A", "wrong%3A", "us%20er:")
    assert [word for word in words for text in texts if word in text] == []


def test_gaps_tell_the_same_while_recording_and_afterwards(season):
    during = [json.loads(line) for line in season.notes["gaps while recording"].splitlines()]
    summary = during[-1]["summary"]
    assert set(summary) == set(season.cameras)
    fine = [gap for gap in during[:-1] if gap["camera"] == "Fine"]
    assert [gap["cause"] for gap in fine] in ([], ["stopped"]), (fine, season.journal("Fine"))
    assert {gap["cause"] for gap in during[:-1] if gap["camera"] == "Locked"} == {"unauthorised"}
    last = season.journal("Fine", "segment")[-1]["end"]
    done = season.gaps("Wedged", "Fine", "--max_lost", "12", "--until", str(last))
    assert done.returncode == Status.PARTIAL
    assert "Wedged: more than 12 % is missing" in done.stderr and "Fine: " in done.stdout
    assert season.gaps("Fine", "--max_lost", "12", "--until", str(last)).returncode == 0
    rows = season.gaps("Wedged", "--csv").stdout.splitlines()
    assert rows[0] == "camera,start,end,seconds,cause,basis" and any(row.endswith(",stall,journal") for row in rows)
    assert season.gaps("Nobody").returncode == Status.USAGE


# --- signals, crashes, locks ---


@pytest.mark.slow
def test_stopping_while_a_camera_is_wedged_keeps_what_was_recorded(site):
    camera = site.add("Gate")
    process = site.start()
    site.wait_for("recording")
    camera.wait_for_frames(20)
    camera.wedge()
    wedged_at = camera.elapsed()
    time.sleep(0.7)
    status, seconds = end(process)
    assert status == 0 and seconds < 5
    numbers = site.numbers("Gate")
    assert numbers[-1] >= (wedged_at - 1) * FPS
    assert len(numbers) == numbers[-1] - numbers[0] + 1
    assert site.staged() == []


@pytest.mark.slow
def test_a_killed_recorder_is_taken_over_with_all_that_it_left(site):
    fine, dead = site.add("Fine"), site.add("Dead", entry={"filename": "%Y%m%d_%H%M%S.mp4"})
    process = site.start()
    site.wait_for("recording")
    fine.wait_for_frames(10), dead.wait_for_frames(10)
    mid_segment()
    process.kill()
    process.wait()
    os.kill(site.ffmpegs("Dead/")[0], signal.SIGKILL)  # this one died with it, the other goes on recording
    time.sleep(0.5)
    again = site.start()
    until(lambda: site.state("Fine").get("pid") == again.pid, "taken over")
    site.wait_for("recording")
    fine.wait_for_frames(20)
    until(lambda: len(site.files("Dead")) >= 2, "leftovers published")
    assert end(again)[0] == 0
    for name, most_sec in (("Fine", 2.5), ("Dead", 3.5)):
        lost = site.lost_sec(name)
        print(f"{name}: {lost} s lost")
        assert lost <= most_sec
        assert "crashed" in {line["cause"] for line in site.journal(name, "down")}
        assert len({line["file"] for line in site.journal(name, "segment")}) == len(site.journal(name, "segment"))
    assert all(line["whole"] for line in site.journal("Fine", "segment"))
    assert [line["whole"] for line in site.journal("Dead", "segment")].count(False) == 1
    assert {file.suffix for file in site.files("Dead")} == {".mp4"}
    assert site.staged() == []
    assert not [gap for gap in map(json.loads, site.gaps("--json").stdout.splitlines()[:-1])
                if gap["basis"] == "inferred"]  # fmt: skip


@pytest.mark.slow
def test_a_hangup_of_the_terminal_is_an_ordinary_end_and_ctrl_c_is_130(site):
    site.add("Gate")
    first = site.start()
    site.wait_for("recording")
    assert end(first, signal.SIGHUP)[0] == 0
    second = site.start()
    until(lambda: site.state("Gate").get("pid") == second.pid, "started")
    site.wait_for("recording")
    assert end(second, signal.SIGINT)[0] == Status.SIGINT
    assert site.numbers("Gate") == sorted(set(site.numbers("Gate")))


@pytest.mark.slow
def test_two_recorders_never_record_one_camera(site):
    site.add("Gate"), site.add("Yard")
    first = site.start("Gate")
    site.wait_for("recording", "Gate")
    done = subprocess.run(site.command("record", "Gate"), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == Status.BUSY
    assert f"process {first.pid}" in done.stderr
    second = site.start()  # takes the one that is free, and names the other
    site.wait_for("recording", "Yard")
    assert "Gate: another run holds" in site.log()
    assert site.cameras["Gate"].connected == 1
    assert (end(second)[0], end(first)[0]) == (0, 0)


def test_a_camera_named_like_a_path_ends_with_status_2_and_nothing_is_made(site):
    site.entries.append({"name": "../x", "rtsp_url": "rtsp://127.0.0.1/x"})
    done = subprocess.run(site.command("record"), capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'../x'" in done.stderr
    assert sorted(path.name for path in site.folder.iterdir()) == ["config.yaml"]


@pytest.mark.parametrize("names", [("Gate",), ("Gate", "Yard")])
def test_a_disk_that_must_be_mounted_and_is_not_ends_with_status_3(site, names):
    for name in names:
        site.add(name)
    missing = site.folder / "missing"
    site.storage |= {"require_mount": True, "local_path": str(missing)}
    done = subprocess.run(site.command("record"), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == Status.CANNOT_START
    assert "not mounted" in done.stderr and not missing.exists()


@pytest.mark.slow
def test_the_older_call_records_without_a_config_and_warns_of_the_password(tmp_path):
    with FakeCamera(fps=FPS, user="u", password="hunter22") as camera:
        call = ["record", "--ip", "127.0.0.1", "--rtsp_port", str(camera.port), "--rtsp_path", "/stream", "--user", "u",
                "--station", "ROST2", "--segment_time", "600", "--logs_dir", "logs", "--core", "0"]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "rtsp_recorder.py"), *call, "--password", "hunter22", "--config", os.devnull],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True)  # fmt: skip
        try:
            state = tmp_path / ".rtsp_recorder" / "state" / "ROST2.json"
            until(lambda: recorder.read_state(state).get("state") == "recording", "recording")
            assert end(process)[0] == 0
        finally:
            process.kill()
        said = process.stderr.read()
    assert "RTSP_PASSWORD" in said and "hunter22" not in said
    files = list((tmp_path / "ROST2").iterdir())  # two, when the clock just passed a full ten minutes
    assert files and all(re.fullmatch(r"ROST2_\d{8}T\d{6}\.mkv", file.name) and frame_numbers(file) for file in files)


def test_systemd_is_told_when_it_is_ready_and_alive(site):
    import socket

    site.add("Gate")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(site.folder / "n"))
        listener.settimeout(15)
        process = site.start(environment={"NOTIFY_SOCKET": str(site.folder / "n")})
        heard = [listener.recv(200)]
        until(lambda: heard.append(listener.recv(200)) or b"1 of 1" in heard[-1], "recorded")
        end(process)
    assert heard[0] == b"READY=1"
    assert set(heard[1:-1]) <= {b"STATUS=0 of 1 recorded\nWATCHDOG=1"}
    assert heard[-1] == b"STATUS=1 of 1 recorded\nWATCHDOG=1"


# --- a full disk ---


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = [need("mount"), "-t", "tmpfs", "-o", "size=24m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip(NOT_TESTED + "mount (it is there, but this user may not mount)")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_the_least_important_cameras_stop_before_the_reserve_is_used_and_go_on_by_themselves(small_disk, site):
    site.storage |= {"local_path": str(small_disk), "reserve_bytes": 6_000_000, "require_mount": True}
    site.add("First"), site.add("Last")
    ballast = small_disk / "ballast"

    def leave_free(size: int) -> None:
        ballast.write_bytes(b"")
        with nullcontext() if size else suppress(OSError):  # to the last byte: a recorder may take it before us
            ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - size))

    process = site.start()
    site.wait_for("recording")
    leave_free(8_000_000)  # First needs 6 MB, Last 9 MB
    site.wait_for("down", "Last")
    assert site.state("First")["state"] == "recording"
    assert site.state("Last")["cause"] == "disk"
    leave_free(5_000_000)
    site.wait_for("down", "First")
    time.sleep(2.5)
    assert site.ffmpegs() == [] and site.staged() == [], "no junk files"
    leave_free(12_000_000)
    site.wait_for("recording")
    leave_free(0)  # somebody else fills it to the last byte
    time.sleep(2)
    leave_free(12_000_000)
    site.wait_for("recording")
    time.sleep(1)
    assert end(process)[0] == 0
    for name in site.cameras:
        numbers = site.numbers(name)
        assert numbers == sorted(set(numbers))
        assert "disk" in {line["cause"] for line in site.journal(name, "down")}
        assert len(site.journal(name, "segment")) == len(site.files(name))


@pytest.mark.slow
def test_a_camera_goes_on_after_a_minute_without_key_frames(site):
    """A smart codec's group of pictures is longer than `stall`: frames count, not key frames."""
    site.add("Smart", gop_sec=5, start="at_once")
    process = site.start()
    site.wait_for("recording")
    time.sleep(5)
    assert end(process)[0] == 0
    assert "not recording" not in site.log()
    assert site.lost_sec("Smart") == 0


@pytest.mark.slow
def test_many_cameras_start_at_once(site):
    for number in range(8):
        site.add(f"C{number}")
    process = site.start()
    site.wait_for("recording")
    assert threading.active_count() < 50
    assert end(process)[0] == 0
    assert {site.lost_sec(name) for name in site.cameras} == {0}
