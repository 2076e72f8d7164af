"""Faults that rtsp_recorder.py has to survive beside those of a season: clocks, terminals, power cuts, real servers.

Fake cameras and gst-rtsp-server on loopback, real FFmpeg, real files; losses are counted in frames. What takes seconds
is a scene, and a test looks at what it left; scenes run side by side where the tests themselves do not.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import imageio_ffmpeg
import pytest
import trustme
from conftest import NOT_TESTED, ROOT, need
from fake_camera import CameraLoop, frame_numbers
from rtsp_server import GstServer, need_gst_server
from test_rtsp_recorder import FPS, PASSWORD, Site, end, segment, settled, until

import rtsp_recorder as recorder

pytestmark = pytest.mark.slow  # clocks, disks and many cameras take their time
STOP_SEC = 5 + 2  # the rest is for a machine that has much else to do
PATIENCE_SEC = 60.0
NOT_HASTY = {"stall": 8, "socket_timeout": 4, "first_frame": 20}  # where it is not about a camera that fails
# libfaketime 0.9 returns at once from a sleep until a time of the monotonic clock when that one is not faked
SLEEPS_OTHERWISE = """import runpy, select, sys, time
time.sleep = lambda seconds: select.select([], [], [], seconds)
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass
class Place(Site):
    """A site with settings of its own, which may have its own clock."""

    recording: dict = field(default_factory=dict)

    def config(self) -> Path:
        file = super().config()
        document = json.loads(file.read_text())
        document["recording"] |= self.recording
        file.write_text(json.dumps(document))
        return file

    def start_with_clock(self, shown: str) -> subprocess.Popen:
        """A recorder that believes it is `shown` (ISO 8601); see step()."""
        self.offset_sec = datetime.fromisoformat(shown).timestamp() - time.time()
        self.step(0)
        need("faketime")
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        python, *rest = self.command("record")
        environment = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"),
                       "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}  # fmt: skip
        log = (self.folder / f"log{len(self.processes)}").open("wb")
        self.processes.append(subprocess.Popen([python, "-c", SLEEPS_OTHERWISE, *rest], stdin=subprocess.DEVNULL,
                                               stdout=log, stderr=log, env={**os.environ, **environment}))  # fmt: skip
        return self.processes[-1]

    def step(self, seconds: float) -> None:
        self.offset_sec += seconds
        part = self.folder / "clock.part"
        part.write_text(f"{self.offset_sec:+.3f}")
        part.replace(self.folder / "clock")


@pytest.fixture
def site(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


@contextmanager
def loop_device(image: Path):
    """What FUSE wants instead of an image."""
    command = [need("losetup"), "--find", "--show", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(NOT_TESTED + f"losetup (it is there, but does not work here: {done.stderr.strip()})")
    device = done.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def mounted(image: Path, folder: Path, *command: str):
    """An image of a file system; the tests that need it are skipped where this user may not mount."""
    folder.mkdir()
    done = subprocess.run([*command, str(image), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(NOT_TESTED + f"mount (it is there, but does not work here: {done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# --- scenes: each a function from a folder to what tests look at ---


def clock_changes(folder: Path, shown: str, step_sec: float) -> Place:
    """Eight seconds before local time changes, through the change, then the clock is set."""
    site = Place(folder, recording={"timezone": "Europe/Berlin", **NOT_HASTY})
    site.add("Gate", gop_sec=0.5, entry={"filename": "%Y%m%d_%H%M.mkv"})  # the same name for a minute
    try:
        process = site.start_with_clock(shown)
        until(lambda: site.state("Gate").get("state") == "recording", "recording", PATIENCE_SEC)
        before_sec = 8 - (time.time() + site.offset_sec - datetime.fromisoformat(shown).timestamp())
        site.in_time = before_sec > 1
        site.cameras["Gate"].wait_for_frames(round((1 + max(0, before_sec)) * FPS), PATIENCE_SEC)
        site.step(step_sec)
        until(lambda: "jumped" in site.log(), "noticed", PATIENCE_SEC)
        site.cameras["Gate"].wait_for_frames(3 * FPS, PATIENCE_SEC)
        site.status = end(process, within_sec=PATIENCE_SEC)[0]
    finally:
        site.close()
    return site


def autumn(folder: Path) -> Place:
    return clock_changes(folder, "2026-10-25T00:59:52+00:00", -3600)


def spring(folder: Path) -> Place:
    return clock_changes(folder, "2026-03-29T00:59:52+00:00", 3600)


def same_second(folder: Path) -> Place:
    """FFmpeg is killed as soon as it records, again and again."""
    site = Place(folder, recording=NOT_HASTY)
    camera = site.add("Gate", gop_sec=0.2, entry={"filename": "%Y%m%d_%H%M"})  # a second that lasts a minute
    try:
        process = site.start()
        enough = 2 * recorder.EMPTY_BYTES
        for killed in range(4):
            until(lambda: any(file.stat().st_size > enough for file in site.staged()), "recorded", PATIENCE_SEC)
            os.kill(site.ffmpegs("Gate/")[0], signal.SIGKILL)
            until(lambda killed=killed: len(site.files("Gate")) > killed, "published", PATIENCE_SEC)
        camera.wait_for_frames(FPS, PATIENCE_SEC)
        site.status = end(process, within_sec=PATIENCE_SEC)[0]
    finally:
        site.close()
    return site


def terminal(folder: Path) -> Place:
    """Started in a terminal; the config is broken meanwhile, FFmpeg is killed, and then the terminal is closed."""
    site = Place(folder, recording=NOT_HASTY)
    camera = site.add("Gate")
    master, slave = os.openpty()
    shown = []

    def read() -> None:
        with suppress(OSError):
            while data := os.read(master, 65536):
                shown.append(data)

    try:
        process = subprocess.Popen([need("setsid"), "--ctty", *site.command("record")], stdin=slave, stdout=slave,
                                   stderr=slave)  # fmt: skip
        site.processes.append(process)
        os.close(slave)
        reader = threading.Thread(target=read)
        reader.start()
        site.wait_for("recording", timeout_sec=PATIENCE_SEC)
        camera.wait_for_frames(FPS, PATIENCE_SEC)
        (folder / "config.yaml").write_text("cameras: [")
        os.kill(site.ffmpegs()[0], signal.SIGKILL)
        until(lambda: site.state("Gate").get("state") == "down", "down", PATIENCE_SEC)
        site.wait_for("recording", timeout_sec=PATIENCE_SEC)
        camera.wait_for_frames(FPS, PATIENCE_SEC)
        closed = time.monotonic()
        os.dup2(os.open(os.devnull, os.O_RDWR), master)  # closes the terminal's only master
        site.status, site.seconds = process.wait(PATIENCE_SEC), time.monotonic() - closed
        reader.join(5)
        site.shown = b"".join(shown).decode()
        command = site.command("record")
        (folder / "config.yaml").write_text("cameras: [")
        site.again = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    finally:
        site.close()
        os.close(master)
    return site


def many(folder: Path) -> Place:
    site = Place(folder, recording={"segment_duration": 60, **NOT_HASTY})
    loop = CameraLoop()
    try:
        for number in range(32):
            site.add(f"C{number}", loop=loop)
        process = site.start()
        site.wait_for("recording", timeout_sec=PATIENCE_SEC)
        site.cameras["C31"].wait_for_frames(FPS, PATIENCE_SEC)
        site.status, site.seconds = end(process, within_sec=PATIENCE_SEC)
    finally:
        site.close()
        loop.stop()
    return site


def power_cut(folder: Path, fsync_every: float) -> SimpleNamespace:
    """The image of a mounted file system is copied while everything stands still: what a power cut leaves."""
    image, after = folder / "image", folder / "after"
    with image.open("wb") as handle:
        handle.truncate(64 << 20)
    subprocess.run([need("mkfs.ext4"), "-q", "-F", str(image)], check=True, stdin=subprocess.DEVNULL)
    site = Place(folder, recording={"fsync_every": fsync_every, "segment_duration": 86400, **NOT_HASTY})
    camera = site.add("Gate")
    try:
        with mounted(image, folder / "disk", need("mount"), "-o", "loop,commit=300") as disk:
            site.storage["local_path"] = str(disk)
            process = site.start()
            site.wait_for("recording", timeout_sec=PATIENCE_SEC)
            camera.wait_for_frames(6 * FPS, PATIENCE_SEC)
            for one in [process.pid, *site.ffmpegs()]:
                os.kill(one, signal.SIGSTOP)
            cut = camera.frame_log[-1][0]
            shutil.copyfile(image, after)
            for one in [*site.ffmpegs(), process.pid]:
                os.kill(one, signal.SIGKILL)
            process.wait()
            until(lambda: not site.ffmpegs(), "ended", PATIENCE_SEC)
        with mounted(after, folder / "again", need("mount"), "-o", "loop") as disk:
            site.storage["local_path"] = str(disk)
            process = site.start()
            site.wait_for("recording", timeout_sec=PATIENCE_SEC)
            camera.wait_for_frames(FPS, PATIENCE_SEC)
            status = end(process, within_sec=PATIENCE_SEC)[0]
            kept = [number for number in site.numbers("Gate") if number <= cut]
            lines = {line["file"]: line["frames"] for line in site.journal("Gate", "segment")}
            held = {f"Gate/{file.name}": len(frame_numbers(file)) for file in site.files("Gate")}
            causes = {line["cause"] for line in site.journal("Gate", "down")}
    finally:
        site.close()
    first = min(kept, default=cut - 6 * FPS)
    return SimpleNamespace(status=status, lost_sec=(cut - max(kept, default=first)) / FPS, lines=lines, held=held,
                           whole=kept == list(range(first, first + len(kept))), causes=causes)  # fmt: skip


def power_cuts(folder: Path) -> list[SimpleNamespace]:
    """With the open file synced all the time, and never."""
    for name in ("synced", "never"):
        (folder / name).mkdir()
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(power_cut, (folder / "synced", folder / "never"), (0.2, 3600)))


def no_links(folder: Path) -> Place:
    """exFAT knows no hard links; the recorder is killed there, taken over, and ended."""
    image = folder / "image"
    with image.open("wb") as handle:
        handle.truncate(32 << 20)
    subprocess.run([need("mkfs.exfat"), str(image)], check=True, capture_output=True)
    site = Place(folder, recording=NOT_HASTY)
    camera = site.add("Gate")
    site.add("Yard", entry={"filename": "%Y%m%d_%H%M.mp4"})
    try:
        with loop_device(image) as device, mounted(device, folder / "disk", need("mount.exfat-fuse")) as disk:
            site.storage["local_path"] = str(disk)
            probe = disk / "probe"
            probe.touch()
            with pytest.raises(OSError):
                os.link(probe, disk / "link")
            process = site.start()
            site.wait_for("recording", timeout_sec=PATIENCE_SEC)
            camera.wait_for_frames(2 * FPS, PATIENCE_SEC)
            for one in [process.pid, *site.ffmpegs()]:
                os.kill(one, signal.SIGKILL)
            process.wait()
            site.killed_at = {name: camera.frame_log[-1][0] for name, camera in site.cameras.items()}
            process = site.start()
            until(lambda: site.state("Yard").get("pid") == process.pid, "taken over", PATIENCE_SEC)
            site.wait_for("recording", timeout_sec=PATIENCE_SEC)
            camera.wait_for_frames(FPS, PATIENCE_SEC)
            site.status = end(process, within_sec=PATIENCE_SEC)[0]
            site.left = site.staged()
            site.held = {name: {f"{name}/{file.name}": frame_numbers(file) for file in site.files(name)}
                         for name in site.cameras}  # fmt: skip
            site.lines = {name: site.journal(name, "segment") for name in site.cameras}
    finally:
        site.close()
    return site


def real_server(folder: Path, ffmpeg: str) -> Place:
    """gst-rtsp-server: digest without TLS, basic with it; every codec, TCP and UDP."""
    need_gst_server()
    site = Place(folder, recording={"segment_duration": 60, **NOT_HASTY})
    (folder / "bin").mkdir()
    (folder / "bin" / "ffmpeg").symlink_to(ffmpeg)
    mp4 = {"filename": "%Y%m%d_%H%M%S.mp4"}
    login = {"user": "us er", "password": PASSWORD, "fps": FPS}
    with GstServer(**login) as plain, GstServer(**login, auth="basic", tls=True) as secure:
        stranger = folder / "stranger.pem"
        trustme.CA().cert_pem.write_to_path(stranger)
        for name, server, mount, more in (
            ("Tcp", plain, "/h264", {}), ("H265Aac", plain, "/h265_aac", mp4), ("Pcmu", plain, "/h264_pcmu", mp4),
            ("Udp", plain, "/h265_pcma", {"transport": "udp"}), ("SelfSigned", secure, "/h264_aac",
            {"tls_verify": False}), ("WithCa", secure, "/h265_pcmu", {"tls_ca_file": str(secure.ca_file)}),
            ("Stranger", secure, "/h264", {"tls_ca_file": str(stranger)}), ("Locked", secure, "/h264", {}),
        ):  # fmt: skip
            more = {"filename": "%Y%m%d_%H%M%S.mkv", **more}
            site.entries.append({"name": name, "rtsp_url": server.url(mount), **more})
        site.entries[-1] |= {"rtsp_url": secure.url("/h264").replace("p%40", "wrong"), "tls_verify": False}
        site.servers = {"SelfSigned": secure, "WithCa": secure, "Stranger": secure}
        try:
            process = site.start(environment={"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"})
            until(lambda: site.state("Locked").get("cause") == "unauthorised", "refused", PATIENCE_SEC)
            well = ("Tcp", "H265Aac", "Pcmu", "Udp", "SelfSigned", "WithCa")
            site.wait_for("recording", *well, timeout_sec=PATIENCE_SEC)
            time.sleep(2)
            site.stopped_at = time.time()
            site.before_end = {name: site.state(name) for name in ("Stranger", "Locked")}
            site.status = end(process, within_sec=PATIENCE_SEC)[0]
            site.expected = {name: site.servers.get(name, plain).expected(0, site.stopped_at)[-1]
                             for name in (entry["name"] for entry in site.entries)}  # fmt: skip
        finally:
            site.close()
    return site


def real_server_old(folder: Path) -> Place:
    return real_server(folder, need("ffmpeg"))


def real_server_new(folder: Path) -> Place:
    return real_server(folder, imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, request):
    """Asked for a scene, its result; an assertion that failed in it, or a skip, belongs to the test that asks.

    A worker of pytest-xdist has only some of the tests: there a scene begins when it is asked for.
    """
    wanted = {item.callspec.params["scene"] for item in request.session.items
              if item.module is request.module and hasattr(item, "callspec") and "scene" in item.callspec.params}
    wanted = () if "PYTEST_XDIST_WORKER" in os.environ else wanted
    with ThreadPoolExecutor(max(1, len(wanted))) as pool:
        running = {scene: pool.submit(scene, tmp_path_factory.mktemp(scene.__name__)) for scene in wanted}
        yield lambda scene: (running[scene].result() if scene in running
                             else scene(tmp_path_factory.mktemp(scene.__name__)))  # fmt: skip


# --- clocks ---


@pytest.mark.parametrize("scene", [autumn, spring])
def test_neither_summer_time_nor_a_clock_that_is_set_overwrites_a_file_or_costs_more_than_seconds(scenes, scene):
    site = scenes(scene)
    assert site.status == 0
    files = {f"Gate/{file.name}": frame_numbers(file) for file in site.files("Gate")}
    journal = recorder.read_journal(site.footage / ".rtsp_recorder" / "journal" / "Gate", 0, 4e9)
    lines = {line["file"]: line for line in journal if line["kind"] == "segment"}
    assert set(files) == set(lines) and len(files) >= 3
    came_twice = any(re.search(r"_\d{4}_\d", name) for name in files)
    assert came_twice or scene is spring, "no name came twice: nothing was tested"
    lost = site.lost_sec("Gate")
    print(f"{scene.__name__}: {lost} s lost")
    assert lost <= 5
    for name, numbers in files.items():
        assert (lines[name]["frames"], lines[name]["whole"]) == (len(numbers), True)
        assert lines[name]["end"] - lines[name]["start"] <= len(numbers) / FPS + 0.6, name
    short = [name for name, numbers in files.items()
             if lines[name]["end"] - lines[name]["start"] < len(numbers) / FPS - 0.6]  # fmt: skip
    assert len(short) <= 1, "after a step back FFmpeg has no times for the frames until it ends"
    hours = {name.partition("_")[2][:2] for name in files}
    if not site.in_time:
        print("the machine was too slow: summer time began before the recording, only the clock step was tested")
    assert hours - {"01"} == ({"02"} if scene is autumn else {"03", "04"})
    assert scene is autumn or not site.in_time or "01" in hours
    clock = [line for line in journal if line.get("cause") == "clock"]
    missing = sum(line["end"] - line["start"] for line in clock)
    assert missing == pytest.approx(lost + (3600 if scene is spring else 0), abs=2), clock


@pytest.mark.parametrize("scene", [same_second])
def test_restarts_in_the_same_second_never_overwrite_a_file(scenes, scene):
    site = scenes(scene)
    assert site.status == 0
    assert site.lost_sec("Gate") <= 4 * 3, site.log()
    names = [file.name for file in site.files("Gate")]
    assert any("_1." in name for name in names), "no name came twice: nothing was tested"
    assert len(names) >= 5 and sorted(f"Gate/{name}" for name in names) == sorted(
        line["file"] for line in site.journal("Gate", "segment"))  # fmt: skip


# --- terminal, config ---


@pytest.mark.parametrize("scene", [terminal])
def test_a_closed_terminal_is_an_ordinary_end_and_a_config_that_breaks_meanwhile_disturbs_nobody(scenes, scene):
    site = scenes(scene)
    assert site.status == 0 and site.seconds < STOP_SEC
    assert "lost today" in site.shown, "the live table was shown"
    assert site.lost_sec("Gate") <= 3
    assert site.staged() == [] and site.ffmpegs() == []
    last = site.numbers("Gate")[-1]
    assert last >= site.cameras["Gate"].frame_log[-1][0] - FPS
    assert site.state("Gate")["state"] == "stopped"
    assert site.again.returncode == 2 and "not valid YAML" in site.again.stderr, site.again.stderr


def test_32_cameras_that_start_at_once_are_all_recorded_whole(scenes, tmp_path):  # after the scenes, not beside them
    site = many(tmp_path)
    assert site.status == 0 and site.seconds < STOP_SEC
    assert "not recording" not in site.log()
    for name in site.cameras:  # what could not be checked within 5 s waits, whole, for the next start
        waiting = [file for file in site.staged() if f"/staging/{name}/" in str(file)]
        numbers = sorted(number for file in {*site.files(name), *waiting} for number in frame_numbers(file))
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > FPS, name


# --- a server of others ---


def sound_of(file):
    done = subprocess.run([recorder.find_ffmpeg("this test"), "-i", file], capture_output=True, text=True, check=False)
    found = re.search(r"Audio: (\w+)", done.stderr)
    return found[1] if found else None


@pytest.mark.parametrize("scene", [real_server_old, real_server_new])
def test_the_streams_of_a_real_server_are_recorded_whole_and_an_unchecked_certificate_is_said(scenes, scene):
    site = scenes(scene)
    assert site.status == 0 and site.staged() == []
    sounds = {"Tcp": None, "H265Aac": "aac", "Pcmu": "aac", "Udp": "pcm_alaw", "SelfSigned": "aac",
              "WithCa": "pcm_mulaw"}  # fmt: skip
    for name, sound in sounds.items():
        assert site.lost_sec(name) == 0, name
        assert len(site.numbers(name)) >= 2 * FPS and site.numbers(name)[-1] >= site.expected[name] - FPS, name
        assert {sound_of(file) for file in site.files(name)} == {sound}, name
        assert all(line["whole"] for line in site.journal(name, "segment")), name
    assert {file.suffix for name in ("H265Aac", "Pcmu") for file in site.files(name)} == {".mp4"}
    assert site.before_end["Locked"]["cause"] == "unauthorised"
    said = site.log()
    assert "p%40%3A" not in said and PASSWORD not in said
    if recorder.knows_tls_options(str(site.folder / "bin" / "ffmpeg")):
        assert "SelfSigned, Locked: the certificate is not checked (tls_verify: false)" in said
        assert site.before_end["Stranger"]["cause"] == "refused" and site.files("Stranger") == []
    else:
        assert "SelfSigned, WithCa, Stranger, Locked: this FFmpeg does not check certificates" in said


# --- disks ---


@pytest.mark.parametrize("scene", [power_cuts])
def test_a_power_cut_costs_seconds_because_the_open_file_is_synced(scenes, scene):
    synced, unsynced = scenes(scene)
    print(f"lost by a power cut: {synced.lost_sec} s, without fsync {unsynced.lost_sec} s")
    assert synced.lost_sec <= 2.5
    assert unsynced.lost_sec >= 4, "the image held what was never synced: nothing was tested"
    for left in (synced, unsynced):
        assert left.status == 0
        assert left.whole, "a hole within what was kept"
        assert left.lines == left.held
        assert left.causes <= {"stopped", "crashed"}


@pytest.mark.parametrize("scene", [no_links])
def test_where_there_are_no_hard_links_every_file_is_published_once(scenes, scene):
    site = scenes(scene)
    assert site.status == 0 and site.left == []
    for name in site.cameras:
        assert {line["file"]: line["frames"] for line in site.lines[name]} == {
            file: len(numbers) for file, numbers in site.held[name].items()}  # fmt: skip
        there = sorted(number for numbers in site.held[name].values() for number in numbers)
        assert there == sorted(set(there))
        assert sum(number <= site.killed_at[name] for number in there) >= FPS, "what the killed one recorded"
        assert there[-1] > site.killed_at[name]
    assert {Path(line["file"]).suffix for line in site.lines["Yard"]} == {".mp4"}


# --- full length ---


@pytest.mark.slow
@pytest.mark.full_length
@pytest.mark.timeout(1800)
def test_with_the_limits_that_users_have_no_fault_costs_more_than_its_goal():
    """Ten minutes; prints what was lost, also by the older command lines."""
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "bench_recorder.py"), "faults", "gop"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0


# --- big files ---


def recording(path, video, sound):
    """A Matroska file with video and sound in these seconds."""
    sources = []
    for (start, end_sec), source in ((video, "testsrc2=r=10:s=64x48"), (sound, "anoisesrc=r=8000")):
        sources += ["-itsoffset", str(start), "-f", "lavfi", "-t", str(end_sec - start), "-i", source]
    command = [recorder.find_ffmpeg("this test"), "-v", "error", *sources, "-c:v", "mpeg4", "-g", "10", "-c:a",
               "pcm_alaw", "-map", "0", "-map", "1", str(path)]  # fmt: skip
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


@pytest.mark.parametrize(
    "video, sound",
    [((0, 40), (0, 40)), ((0, 15), (0, 40)), ((20, 40), (0, 40))],
    ids=["all along", "video died", "key frame late"],
)
def test_a_big_file_is_checked_at_its_ends_and_sound_alone_there_is_no_reason_to_refuse_it(tmp_path, video, sound):
    entry = {"name": "a", "rtsp_url": "rtsp://h", "filename": "%Y%m%d_%H%M%S.mkv"}
    (camera,) = settled([entry], storage={"local_path": str(tmp_path)}, recording={"check_bytes": 1000})
    folder = camera.own("staging") / "run"
    folder.mkdir(parents=True)
    path = recording(folder / "20260101T120000Z.mkv", video, sound)
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone.utc).timestamp()
    ffmpeg = recorder.find_ffmpeg("this test")
    media = recorder.examine(ffmpeg, path, camera.limits.check_bytes)
    assert media.finalised and media.problems == () and media.duration_sec == pytest.approx(40, abs=0.5)
    recorder.Finisher(camera, ffmpeg).finish(recorder.Job(path, noon, noon + 40))
    (line,) = recorder.read_journal(camera.own("journal"), 0, 4e9)
    assert (line["file"], line["whole"]) == ("a/20260101_120000.mkv", True)


def test_a_big_file_with_a_broken_end_is_published_as_far_as_it_can_be_read(tmp_path):
    entry = {"name": "a", "rtsp_url": "rtsp://h", "filename": "%Y%m%d_%H%M%S.mkv"}
    (camera,) = settled([entry], storage={"local_path": str(tmp_path)}, recording={"check_bytes": 1000})
    folder = camera.own("staging") / "run"
    folder.mkdir(parents=True)
    path = recording(folder / "20260101T120000Z.mkv", (0, 40), (0, 40))
    size = path.stat().st_size
    os.truncate(path, size * 2 // 3)
    os.truncate(path, size)  # as a disk that lost its last writes
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone.utc).timestamp()
    ffmpeg = recorder.find_ffmpeg("this test")
    recorder.Finisher(camera, ffmpeg).finish(recorder.Job(path, noon, noon + 40))
    (line,) = recorder.read_journal(camera.own("journal"), 0, 4e9)
    assert line["whole"] is False and 200 < line["frames"] < 320
    assert line["end"] - line["start"] == pytest.approx(line["frames"] / 10, abs=1.5)
    held = recorder.read_media(ffmpeg, tmp_path / line["file"])
    assert (held.frames, held.finalised, held.problems) == (line["frames"], True, ())


# --- files without a journal ---


@pytest.mark.parametrize(
    "name, zone, when",
    [
        ("20260720_120000.mp4", "UTC", "2026-07-20T12:00:00+00:00"),
        ("20260720_120000_1.mp4", "Europe/Berlin", "2026-07-20T12:00:00+02:00"),
        ("ROST2_20260120T120000.mkv", "Europe/Berlin", "2026-01-20T12:00:00+01:00"),
        ("20260720T120000Z.mkv", "Europe/Berlin", "2026-07-20T12:00:00+00:00"),
        ("Cam12345678_2026-07-20_12-00-00.mkv", "UTC", "2026-07-20T12:00:00+00:00"),
        ("holiday.mp4", "UTC", None),
        ("99999999_999999.mp4", "UTC", None),
    ],
)
def test_the_name_of_a_file_tells_when_it_begins(name, zone, when):
    expected = None if when is None else datetime.fromisoformat(when).timestamp()
    assert recorder.named_sec(name, ZoneInfo(zone)) == expected


def clip(path, seconds, started=None, written=None):
    """A small MP4; its last write is at the end of its footage, unless told otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make = [recorder.find_ffmpeg("this test"), "-v", "error", "-f", "lavfi", "-i", "testsrc2=r=1:s=64x48", "-t",
            str(seconds), "-c:v", "mpeg4", str(path)]  # fmt: skip
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    end = written if started is None else started + seconds
    os.utime(path, (end, end))


def test_files_of_an_older_recorder_are_no_gap_and_are_shown_apart(site):
    noon = datetime(2026, 7, 20, 12, tzinfo=timezone.utc).timestamp()

    def name(start):
        return datetime.fromtimestamp(start, timezone.utc).strftime("%Y%m%d_%H%M%S.mp4")

    folder = site.footage / "Gate"
    site.entries.append({"name": "Gate", "rtsp_url": "rtsp://u:${NOT_SET}@192.0.2.7/1"})
    for start in (0, 60, 120):
        clip(folder / name(noon + start), 60, noon + start)
    clip(folder / name(noon + 180), 60, written=noon + 9000)  # copied later: its last write says nothing
    clip(folder / "holiday.mp4", 30, written=noon + 330)  # only its last write and its length tell when it was
    clip(folder / name(noon + 400), 20, noon + 400)  # ours has a line for it
    (folder / name(noon + 500)).write_bytes(b"cut short, never to be played")  # last write: now
    (folder / name(noon + 600)).touch()
    journal = site.footage / ".rtsp_recorder" / "journal" / "Gate" / "2026-07-20.jsonl"
    journal.parent.mkdir(parents=True)
    line = {**segment(noon + 400, noon + 420), "file": f"Gate/{name(noon + 400)}"}
    journal.write_text(json.dumps(line) + "\n")
    span = ("--since", str(noon), "--until", str(noon + 500), "--timezone", "UTC")
    done = site.gaps("--json", *span)
    assert done.returncode == 0, done.stderr
    *gaps, summary = map(json.loads, done.stdout.splitlines())
    summary = summary["summary"]["Gate"]
    assert [(gap["start"] - noon, gap["end"] - noon) for gap in gaps] == [(240, 300), (330, 400), (420, 500)]
    assert summary["intervals"] == [[noon + 400, noon + 420]]
    assert summary["unjournaled"] == [[noon, noon + 240], [noon + 300, noon + 330]]
    assert (summary["recorded_percent"], summary["unjournaled_percent"]) == (58, 54)
    assert done.stderr == "", "only files of that time are looked into"
    table = site.gaps(*span).stdout
    assert ", 54.000 % unjournaled, 3 gaps" in table
    assert "2026-07-20 12:05:00+00:00        30.0 s  is there, unjournaled" in table
    rows = site.gaps("--csv", *span).stdout.splitlines()
    assert rows[-1] == "Gate,2026-07-20 12:05:00+00:00,2026-07-20 12:05:30+00:00,30.0,unjournaled,file"
    whole = site.gaps("--until", str(noon + 700), "--timezone", "UTC")
    assert "to 2026-07-20 12:11:40+00:00" in whole.stdout and "counts as nothing" in whole.stderr
    assert whole.stdout.startswith("Gate: 41.429 % of 2026-07-20 12:00:00+00:00")


def test_what_was_before_the_first_recording_is_no_gap_and_what_was_after_it_is(site):
    noon = datetime(2026, 7, 20, 12, tzinfo=timezone.utc).timestamp()
    site.entries.append({"name": "Gate", "rtsp_url": "rtsp://192.0.2.7/1"})
    journal = site.footage / ".rtsp_recorder" / "journal" / "Gate" / "2026-07-20.jsonl"
    journal.parent.mkdir(parents=True)
    lines = [{"kind": "down", "start": noon, "end": noon + 30, "cause": "refused"}, segment(noon + 30, noon + 100),
             segment(noon + 200, noon + 300)]  # fmt: skip
    journal.write_text("".join(json.dumps({**line, "file": "Gate/a.mkv"}) + "\n" for line in lines))

    def gaps(since, until):
        done = site.gaps("--json", "--since", str(since), "--until", str(until))
        *found, summary = map(json.loads, done.stdout.splitlines())
        return [(gap["start"] - noon, gap["end"] - noon, gap["cause"]) for gap in found], summary["summary"], done

    found, summary, done = gaps(noon - 2 * 86400, noon + 300)
    assert found == [(0, 30, "refused"), (100, 200, "unknown")] and done.returncode == 0
    assert (summary["Gate"]["start"], summary["Gate"]["end"]) == (noon, noon + 300)
    assert gaps(noon + 150, noon + 250)[0] == [(150, 200, "unknown")], "it was recorded before"
    assert gaps(noon + 2 * 86400, noon + 3 * 86400)[0] == [(2 * 86400, 3 * 86400, "unknown")], "days later, too"
    found, summary, done = gaps(noon - 86400, noon - 10)
    assert (found, summary, done.returncode) == ([], {}, 1), "then there was no such camera"
