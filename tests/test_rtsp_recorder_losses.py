"""A second reading of rtsp_recorder.py that only looked for footage lost, gaps not told, and a false "all well".

Each test is a fault that it found: real cameras on loopback, real FFmpeg, real files, a real mail server.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from conftest import need
from fake_camera import frame_numbers
from test_rtsp_recorder import FPS, end, site, until
from test_rtsp_recorder_faults import NOT_HASTY, PATIENCE_SEC, Place, mounted
from test_rtsp_watch import Watched, mails

import rtsp_recorder as recorder
from rhombus_logging import Status

__all__ = ["mails", "site"]  # fixtures
pytestmark = pytest.mark.slow  # recorders, cameras and mail servers come and go


@pytest.fixture
def watched(tmp_path):
    made = Watched(tmp_path)
    yield made
    made.close()


# --- footage ---


def test_a_clock_set_back_by_less_than_the_step_just_after_a_file_began_costs_no_file(tmp_path):
    """FFmpeg gives the next file the same name once more: the full second comes twice."""
    site = Place(tmp_path, recording={"segment_duration": 8, "stall": 8, "socket_timeout": 4, "first_frame": 20})
    camera = site.add("Gate", gop_sec=0.2)
    try:
        process = site.start_with_clock("2026-01-01T00:00:00+00:00")
        until(lambda: site.state("Gate").get("state") == "recording", "recording", PATIENCE_SEC)
        for _ in range(2):
            until(lambda: 0.4 < (time.time() + site.offset_sec) % 8 < 0.6, "just after a file began")
            site.step(-1.5)
            camera.wait_for_frames(7 * FPS, PATIENCE_SEC)
        until(lambda: 2 < (time.time() + site.offset_sec) % 8 < 6, "amid a file")
        assert end(process, within_sec=PATIENCE_SEC)[0] == 0
        print([(file.name, len(frame_numbers(file))) for file in site.files("Gate")])
        print(site.log())
        assert site.lost_sec("Gate") <= 0.5
    finally:
        site.close()


def test_a_staging_folder_that_vanishes_costs_seconds_and_not_the_rest_of_the_hour(site):
    camera = site.add("Gate", entry={"segment_time": 3600})
    process = site.start()
    site.wait_for("recording")
    camera.wait_for_frames(FPS)
    subprocess.run(["rm", "-rf", str(site.footage / ".rtsp_recorder" / "staging" / "Gate")], check=True)
    gone = camera.frame_log[-1][0]
    camera.wait_for_frames(6 * FPS)
    end(process)
    assert [line["cause"] for line in site.journal("Gate", "down")][-1] == "disk"
    assert min(site.numbers("Gate")) - gone <= 3.5 * FPS
    assert "bug" not in site.log()


def test_an_open_file_that_is_deleted_costs_seconds_and_not_the_rest_of_the_hour(site):
    camera = site.add("Gate", entry={"segment_time": 3600})
    process = site.start()
    site.wait_for("recording")
    camera.wait_for_frames(FPS)
    for file in site.staged():
        file.unlink()
    gone = camera.frame_log[-1][0]
    camera.wait_for_frames(6 * FPS)
    end(process)
    assert [line["cause"] for line in site.journal("Gate", "down")][-1] == "disk"
    assert min(site.numbers("Gate")) - gone <= 3.5 * FPS


def test_what_lies_among_the_leftovers_never_keeps_a_camera_from_being_recorded(site):
    camera = site.add("Gate")
    (site.footage / ".rtsp_recorder" / "staging" / "Gate" / "20260101T000000Z-1-1" / "odd.part").mkdir(parents=True)
    process = site.start()
    site.wait_for("recording")
    camera.wait_for_frames(FPS)
    end(process)
    assert site.numbers("Gate") and "bug" not in site.log()


def test_a_folder_of_a_camera_that_is_on_another_disk_gets_its_files_once(site, tmp_path):
    camera = site.add("Gate")
    (tmp_path / "other").mkdir()
    subprocess.run([need("mount"), "-t", "tmpfs", "tmpfs", str(tmp_path / "other")], check=True)
    try:
        site.footage.mkdir()
        (site.footage / "Gate").symlink_to(tmp_path / "other")
        for _ in range(2):
            process = site.start()
            until(lambda process=process: site.state("Gate").get("pid") == process.pid, "taken over")
            site.wait_for("recording")
            camera.wait_for_frames(2 * FPS)
            end(process)
        assert site.staged() == []
        names = {f"Gate/{file.name}" for file in site.files("Gate")}
        assert names == {line["file"] for line in site.journal("Gate", "segment")} and len(names) >= 2
        assert site.lost_sec("Gate") < 5, "and no frame is there twice"
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "other")], check=True)


def test_a_camera_whose_folder_cannot_be_written_at_the_start_is_recorded_as_soon_as_it_can(site, tmp_path):
    disk = tmp_path / "disk"
    disk.write_text("a file where the folder has to be")
    fine, late = site.add("Fine"), site.add("Late", entry={"output_dir": str(disk)})
    began = time.time()
    process = site.start()
    site.wait_for("recording", "Fine")
    fine.wait_for_frames(2 * FPS)
    assert not late.sessions
    disk.unlink()
    state = disk / ".rtsp_recorder" / "state" / "Late.json"
    until(lambda: recorder.read_state(state).get("state") == "recording", "the other camera, too")
    late.wait_for_frames(FPS)
    assert end(process)[0] == 0
    assert site.log().count("Late: not recording: disk:") == 1, "it is told once"
    down = recorder.read_journal(disk / ".rtsp_recorder" / "journal" / "Late", began - 5, time.time())[0]
    assert down["cause"] == "disk" and down["start"] - began < 2 and down["end"] - down["start"] > 2
    assert list((disk / "Late").glob("*.mkv"))


def test_a_camera_that_another_process_takes_while_its_folder_was_away_is_left_to_it(site, tmp_path):
    disk = tmp_path / "disk"
    disk.write_text("a file where the folder has to be")
    fine, late = site.add("Fine"), site.add("Late", entry={"output_dir": str(disk)})
    process = site.start()
    site.wait_for("recording", "Fine")
    disk.unlink()
    disk.mkdir()
    other = site.start("Late")
    until(lambda: "Late: another run holds" in site.log(), "one of them is told")
    fine.wait_for_frames(FPS)
    winner = recorder.read_state(disk / ".rtsp_recorder" / "state" / "Late.json")["pid"]
    assert late.connected == 1 and winner in (process.pid, other.pid)
    if winner == other.pid:
        assert end(other)[0] == 0
    assert end(process)[0] == 0


def test_nothing_is_written_where_a_disk_has_to_be_mounted_and_is_gone(site, tmp_path):
    """Also no state and no journal: the disk would hide them when it is back."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run([need("mount"), "-t", "tmpfs", "tmpfs", str(disk)], check=True)
    try:
        site.storage |= {"local_path": str(disk), "require_mount": True}
        camera = site.add("Gate")
        process = site.start()
        site.wait_for("recording")
        camera.wait_for_frames(FPS)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    until(lambda: "not mounted" in site.log(), "noticed")
    time.sleep(3)  # in which the state was written three times
    assert end(process)[0] == 0
    assert list(disk.rglob("*")) == [] and "bug" not in site.log()


def test_logs_that_cannot_be_written_keep_no_camera_from_being_recorded(site, tmp_path):
    (tmp_path / "file").write_text("in the way")
    camera = site.add("Gate", entry={"logs_dir": str(tmp_path / "file" / "logs")})
    process = site.start()
    site.wait_for("recording")
    camera.wait_for_frames(FPS)
    assert end(process)[0] == 0 and site.numbers("Gate")
    assert re.search("ERROR Gate: logs_dir .*: cannot be written", site.log())


def test_when_no_file_can_be_opened_any_more_that_is_told_and_not_called_a_full_disk(site):
    camera = site.add("Gate")
    process = site.start()
    site.wait_for("recording")
    camera.wait_for_frames(FPS)
    opened = Path(f"/proc/{process.pid}/fd")
    numbers = [int(file.name) for file in opened.iterdir()]
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (max(numbers) + 1, limits[1]))
    os.kill(site.ffmpegs("Gate")[0], signal.SIGKILL)
    until(lambda: "Too many open files" in site.log(), "told")
    time.sleep(2)  # some attempts
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
    frames = len(camera.frame_log)
    until(lambda: site.state("Gate").get("state") == "recording" and len(camera.frame_log) > frames, "recording")
    camera.wait_for_frames(FPS)
    until(lambda: len(list(opened.iterdir())) <= len(numbers), "what failed attempts had opened is closed")
    end(process)
    assert "disk" not in {line["cause"] for line in site.journal("Gate", "down")}
    assert "not recording: disk" not in site.log()


def test_a_good_file_whose_check_was_killed_is_checked_again_and_not_set_aside(site, tmp_path):
    """As the kernel does when memory runs out."""
    camera = site.add("Gate")
    real = need("ffmpeg")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ffmpeg"
    program.write_text(f"#!/bin/sh\ncase \"$*\" in *'-f null'*) [ -e {tmp_path}/once ] || {{ touch {tmp_path}/once; "
                       f"kill -9 $$; }} ;; esac\nexec {real} \"$@\"\n")  # fmt: skip
    program.chmod(0o755)
    process = site.start(environment={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    site.wait_for("recording")
    camera.wait_for_frames(6 * FPS)
    until(lambda: (tmp_path / "once").exists(), "a check was killed")
    end(process)
    assert not (site.footage / ".rtsp_recorder" / "unreadable").exists(), site.log()
    again = site.start()
    until(lambda: site.state("Gate").get("pid") == again.pid, "taken over")
    site.wait_for("recording")
    end(again)
    assert site.lost_sec("Gate") < 5


def left_behind(site, seconds=3, container="mp4"):
    """(camera, staged file): what a recorder and its FFmpeg that were killed leave, without its last third."""
    site.entries.append({"name": "Gate", "rtsp_url": "rtsp://h", "filename": "%Y%m%d_%H%M%S", "container": container})
    config = recorder.load_config(site.config(), ("cameras", "recording", "storage"), site.folder)
    (camera,) = recorder.settle_cameras(config, {}, ())
    staged = camera.own("staging") / "run" / "20260101T120000Z-0.mkv"
    staged.parent.mkdir(parents=True)
    make = [need("ffmpeg"), "-v", "error", "-f", "lavfi", "-i", "testsrc2=r=10:s=160x120", "-t", str(seconds),
            "-c:v", "mpeg4", "-g", "5", "-f", "matroska", "-cluster_time_limit", "1000", "-live", "1",
            str(staged)]  # fmt: skip
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    os.truncate(staged, staged.stat().st_size * 2 // 3)
    return camera, staged


def organized(camera) -> list[Path]:
    """Move what was published away, as `nas_sync.py organize` does; all that it ever moved."""
    there = camera.root / "organized"
    there.mkdir(exist_ok=True)
    for file in (camera.root / camera.name).glob("*.mp4"):
        assert file.stat().st_size
        file.rename(there / f"{file.stem}.{len(list(there.iterdir()))}")
    return list(there.iterdir())


def finish_all(camera, folder: Path) -> None:
    """As a recorder does at its start."""
    for stem in sorted({file.stem for file in folder.iterdir() if file.suffix in recorder.STAGED}):
        recorder.Finisher(camera, need("ffmpeg")).finish(recorder.Job(folder / f"{stem}.mkv", found=True))


@pytest.mark.parametrize(("number", "start_sec"), [(1, 0.4), (0, 3.0)])
def test_a_file_that_a_full_disk_cut_and_a_kill_left_begins_where_the_one_before_it_ended(site, number, start_sec):
    """Its last write was later than its last frame: FFmpeg went on trying. The first file of a run follows nothing."""
    camera, staged = left_behind(site)
    path = staged.rename(staged.with_stem(f"20260101T120000Z-{number}"))
    noon = recorder.named_sec(path.name, timezone.utc)
    recorder.write_journal(camera, "segment", noon - 10, end=noon + 0.4, file="Gate/before.mp4", frames=104, whole=True,
                           bytes=1)  # fmt: skip
    length_sec = recorder.read_media(need("ffmpeg"), path).duration_sec
    os.utime(path, (noon + 3 + length_sec,) * 2)
    recorder.Finisher(camera, need("ffmpeg")).finish(recorder.Job(path, found=True))
    (_, line) = site.journal("Gate", "segment")
    assert line["start"] - noon == pytest.approx(start_sec, abs=0.15)
    assert line["end"] - line["start"] == pytest.approx(length_sec, abs=0.15)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_file_whose_line_the_journal_did_not_take_is_not_published_again_when_it_was_moved_away(site, restarted):
    """The disk is full between the two; `organize` moves the file, and the archive gets it twice."""
    camera, staged = left_behind(site)
    journal = camera.own("journal")
    journal.parent.mkdir(parents=True)
    journal.write_text("in the way")
    job, finisher = recorder.Job(staged), recorder.Finisher(camera, need("ffmpeg"))
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        finisher.finish(job)
    moved = organized(camera)
    journal.unlink()
    finish_all(camera, staged.parent) if restarted else finisher.finish(job)
    assert organized(camera) == moved and len(moved) == 1
    (line,) = site.journal("Gate")
    assert line["file"] == "Gate/20260101_120000.mp4" and line["bytes"] == moved[0].stat().st_size
    assert not line["whole"] and site.staged() == []


@pytest.mark.parametrize("stems", [("20260101T120000Z-0", "20260101T120000Z-1"),
                                   ("20261025T003000Z-0", "20261025T013000Z-0")])  # fmt: skip
def test_a_name_is_not_given_again_when_its_file_was_moved_away(site, stems):
    """A restart within a second, the hour that comes twice: two files of one name would meet in the archive."""
    camera, staged = left_behind(site)
    camera = replace(camera, zone=ZoneInfo("Europe/Berlin"))
    first, second = (staged.with_stem(stem) for stem in stems)
    shutil.copy2(staged, second)
    staged.rename(first)
    moved = []
    for path in (first, second):
        start = recorder.named_sec(path.name, timezone.utc)
        recorder.Finisher(camera, need("ffmpeg")).finish(recorder.Job(path, start, start + 1))
        moved = organized(camera)
    names = sorted(Path(line["file"]).name for line in site.journal("Gate", "segment"))
    assert names == sorted(path.stem + ".mp4" for path in moved)
    assert len(names) == 2 and names[1] == names[0].replace(".mp4", "_1.mp4")


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_file_that_could_not_be_published_is_tried_again_also_when_it_was_cut_short(site, container):
    camera, staged = left_behind(site, container=container)
    (camera.root / "Gate").write_text("in the way")
    finisher = recorder.Finisher(camera, need("ffmpeg"))
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        finisher.finish(recorder.Job(staged))
    (camera.root / "Gate").unlink()
    finisher.finish(recorder.Job(staged))
    assert len(site.files("Gate")) == len(site.journal("Gate", "segment")) == 1 and site.staged() == []


def test_kill_9_before_any_step_of_publishing_archives_a_file_once_and_writes_one_line(site):
    """Each time one step later, until nothing is left to be killed; what was published is moved away meanwhile.

    To open something for reading is no step: the disk is then as before the next one.
    """
    camera, staged = left_behind(site, seconds=2)
    held = staged.read_bytes()
    steps = ("open", "os.link", "os.rename", "os.remove", "os.utime", "os.mkdir")
    kills = killed_in_publish = 0
    ended = -signal.SIGKILL
    while ended:
        if not (child := os.fork()):
            left = kills

            def count(event: str, arguments: tuple) -> None:
                nonlocal left
                reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
                if event in steps and not reads and str(camera.root) in str(arguments[0]):
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            try:
                sys.addaudithook(count)
                finish_all(camera, staged.parent)
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, -signal.SIGKILL), kills
        moved = organized(camera)
        killed_in_publish += bool(moved and not site.journal("Gate"))
        finish_all(camera, staged.parent)
        assert len(organized(camera)) == 1, f"before step {kills}"
        (line,) = site.journal("Gate")
        assert not line["whole"] and line["frames"] > 5
        assert [file for file in site.staged() if file.suffix != ".part"] == []
        kills += bool(ended)
        (staged.write_bytes(held), shutil.rmtree(camera.root / "organized"), shutil.rmtree(camera.own("journal")))
    print(f"killed before {kills} steps, {killed_in_publish} times between the file and its line")
    assert kills > 15 and killed_in_publish


# --- gaps ---


def test_what_was_lost_today_outlives_a_restart_and_counts_the_time_without_a_process(site):
    site.add("Gate")
    end_of = site.start()
    site.wait_for("recording")
    os.kill(end_of.pid, signal.SIGKILL)
    for one in site.ffmpegs():
        os.kill(one, signal.SIGKILL)
    time.sleep(3)
    site.start()
    until(lambda: site.state("Gate").get("pid") == site.processes[-1].pid, "taken over")
    site.wait_for("recording")
    assert site.state("Gate")["lost_today_sec"] >= 3


@pytest.mark.parametrize("state", ["recording", "down"])
def test_a_cause_that_could_not_be_written_down_is_written_when_it_can_be(site, state):
    """The journal cannot be written at the start, and over midnight."""
    site.add("Gate")
    own = site.footage / ".rtsp_recorder"
    (own / "state").mkdir(parents=True)
    began = time.time() - 2 * 86400
    before = {"state": state, "since": began, "last_frame_at": began, "cause": "refused" if state == "down" else None}
    (own / "state" / "Gate.json").write_text(json.dumps(before))
    (own / "journal").mkdir()
    (own / "journal" / "Gate").write_text("in the way")
    site.cameras["Gate"].refuse()
    process = site.start()
    site.wait_for("down")
    time.sleep(1)
    (own / "journal" / "Gate").unlink()
    site.cameras["Gate"].refuse(False)
    site.wait_for("recording")
    end(process)
    downs = site.journal("Gate", "down")
    assert downs and downs[0]["start"] == pytest.approx(began, abs=1)
    assert downs[0]["cause"] == ("crashed" if state == "recording" else "refused")
    assert len(downs) >= 3, "a line for each day"


def test_a_camera_that_comes_back_for_an_instant_keeps_the_cause_of_the_time_before(site):
    """Too short to be called recording; the time before it was forgotten."""
    camera = site.add("Gate")
    site.start()
    site.wait_for("recording")
    camera.refuse()
    camera.reset()
    site.wait_for("down")
    time.sleep(3)
    until(lambda: not site.staged(), "published")
    camera.refuse(False)
    until(site.staged, "there again")
    camera.reset()
    camera.refuse()
    time.sleep(1)
    camera.refuse(False)
    until(lambda: "bug" in site.log() or site.state("Gate")["state"] == "recording", "recording")
    camera.wait_for_frames(2 * FPS)
    end(site.processes[-1])
    found = json.loads(site.gaps("--json").stdout.splitlines()[-1])["summary"]["Gate"]
    assert "unknown" not in found["lost_sec_by_cause"], (found, site.journal("Gate"), site.log())


@pytest.mark.parametrize("sound", ["pcma", "aac"])
def test_a_camera_that_sends_sound_and_no_picture_from_the_start_is_named_so(tmp_path, sound):
    """FFmpeg gives up after 5 s, with a line that says nothing; `first_frame` must not end it before that."""
    site = Place(tmp_path, recording=NOT_HASTY)
    site.add("Gate", audio=sound).kill_video()
    try:
        process = site.start()
        site.wait_for("down", timeout_sec=PATIENCE_SEC)
        site.cameras["Gate"].restore_video()
        site.wait_for("recording", timeout_sec=PATIENCE_SEC)
        end(process, within_sec=PATIENCE_SEC)
    finally:
        site.close()
    assert site.journal("Gate", "down")[0]["cause"] == "video_dead", (site.journal("Gate"), site.log())
    assert "not recording: video_dead: " in site.log() and "[failure]" not in site.log()


def test_a_disk_that_turns_read_only_is_noticed_and_after_its_return_the_gap_has_a_cause(site, tmp_path):
    """As a disk with bad sectors does: the system forces it, while files are open for writing."""
    camera, image = site.add("Gate"), tmp_path / "image"
    with image.open("wb") as handle:
        handle.truncate(64 << 20)
    subprocess.run([need("mkfs.ext4"), "-q", "-F", str(image)], check=True, stdin=subprocess.DEVNULL)
    loop = ["-o", "loop,errors=remount-ro"]
    with mounted(image, tmp_path / "disk", need("mount"), *loop) as disk:
        site.storage["local_path"] = str(disk)
        process = site.start()
        site.wait_for("recording")
        camera.wait_for_frames(2 * FPS)
        device = subprocess.run(["findmnt", "-no", "SOURCE", str(disk)], check=True, capture_output=True, text=True)
        (Path("/sys/fs/ext4") / Path(device.stdout.strip()).name / "trigger_fs_error").write_text("1")
        until(lambda: "not recording: disk" in site.log(), "noticed")
        time.sleep(3)
        assert end(process)[0] == 0
        assert "bug" not in site.log()
    with mounted(image, tmp_path / "again", need("mount"), *loop) as disk:
        site.storage["local_path"] = str(disk)
        process = site.start()
        site.wait_for("recording")
        camera.wait_for_frames(2 * FPS)
        end(process)
        causes = json.loads(site.gaps("--json").stdout.splitlines()[-1])["summary"]["Gate"]["lost_sec_by_cause"]
        assert sum(causes.values()) >= 3 and set(causes) <= {"crashed", "disk", "stopped"}
        assert site.staged() == []


@pytest.mark.parametrize("segments", [1, 2])
def test_a_file_found_after_kill_9_begins_when_its_first_frame_was_made(site, segments):
    """Its last write may be long after its last frame: sound went on, or FFmpeg waited for a silent camera."""
    entry = {"segment_time": 4 if segments > 1 else 3600, "stall": 20, "socket_timeout": 20}
    wedged, blind = (site.add(name, audio="pcma", entry=entry) for name in ("Wedged", "Blind"))
    process = site.start()
    site.wait_for("recording")
    until(lambda: all(len(site.journal(name, "segment")) >= segments - 1 for name in site.cameras), "recorded")
    until(lambda: 1.2 < time.time() % 4 < 1.6, "amid a file")
    wedged.wedge(), blind.kill_video()
    time.sleep(2.2)
    process.kill()
    process.wait()
    wedged.unwedge(), blind.restore_video()
    for one in site.ffmpegs():
        os.kill(one, signal.SIGTERM)
    until(lambda: not site.ffmpegs(), "they have ended")
    again = site.start()
    until(lambda: all(site.state(name).get("pid") == again.pid for name in site.cameras), "taken over")
    site.wait_for("recording")
    end(again)
    for name, camera in site.cameras.items():
        for line in site.journal(name, "segment")[:segments]:
            made = camera.wall(frame_numbers(site.footage / line["file"])[0] / FPS)
            print(name, line, made, line["start"] - made)
            assert line["start"] == pytest.approx(made, abs=0.4)


def test_what_is_recorded_after_the_clock_was_set_back_is_no_gap_while_it_is_recorded(tmp_path, monkeypatch):
    """The last file of the old clock ends in the future."""
    site = Place(tmp_path, recording={"segment_duration": 3600, "stall": 8, "socket_timeout": 4, "first_frame": 20})
    camera = site.add("Gate", gop_sec=0.5)
    try:
        process = site.start_with_clock("2026-01-01T12:10:00+00:00")
        until(lambda: site.state("Gate").get("state") == "recording", "recording", PATIENCE_SEC)
        camera.wait_for_frames(FPS, PATIENCE_SEC)
        site.step(-300)
        until(lambda: site.journal("Gate", "segment"), "the file of the old clock", PATIENCE_SEC)
        until(lambda: site.state("Gate")["state"] == "recording", "recording again", PATIENCE_SEC)
        camera.wait_for_frames(6 * FPS, PATIENCE_SEC)
        now = time.time() + site.offset_sec
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: now)
            report = recorder.coverage_of(site.footage, "Gate", now - 3, now)
        assert report and report.gaps == []
        end(process, within_sec=PATIENCE_SEC)
    finally:
        site.close()


# --- all well? ---


def test_check_does_not_call_a_camera_well_that_sends_one_picture_and_then_nothing(site):
    camera = site.add("Gate")
    done = []

    def wedge() -> None:
        until(lambda: camera.frames_sent > 4 * FPS, "connected")
        camera.wedge()
        done.append(1)

    thread = threading.Thread(target=wedge)
    thread.start()
    found = subprocess.run(site.command("check", "--timeout", "15", "--json"), capture_output=True, text=True,
                           timeout=60, check=False)  # fmt: skip
    thread.join()
    first = json.loads(found.stdout.splitlines()[0])
    assert done and first["result"] == "stall" and found.returncode == Status.PARTIAL, found.stdout


def test_a_storage_that_is_gone_is_mailed_once_and_so_is_its_return(watched, mails, tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "kept"))
    watched.add("Gate")
    watched.more = {"notify": mails.settings()}
    watched.storage = {"reserve_bytes": 1, "require_mount": True}
    for _ in range(2):
        assert watched.watch().returncode == Status.CANNOT_START
    assert [subject.partition("/")[0].strip() for subject in mails.subjects] == ["[DISK] failed:"]
    assert "not mounted" in mails.got[0][1]
    watched.storage = {"reserve_bytes": 1}
    watched.watch()
    assert sum(subject.startswith("[DISK] recovered") for subject in mails.subjects) == 1


def test_a_storage_that_is_gone_beside_one_that_is_there_is_in_the_table_and_in_the_json(watched, tmp_path):
    watched.add("Gate")
    watched.folder_of("Gate", 1)
    watched.add("Yard", entry={"output_dir": str(tmp_path / "gone")})
    done = watched.watch()
    assert done.returncode == Status.PARTIAL
    assert re.search(rf"(?m)^{tmp_path}/gone +unknown +there is no such folder", done.stdout)
    *rows, last = map(json.loads, watched.watch("--json").stdout.splitlines())
    assert last["summary"]["well"] is False and str(tmp_path / "gone") in last["summary"]["down"]
    assert {row["name"]: row["well"] for row in rows if row["kind"] == "disk"}[str(tmp_path / "gone")] is False


def test_watch_does_not_call_it_well_when_what_there_is_to_tell_reaches_nobody(watched, mails):
    mails.refusing = True
    watched.more = {"notify": mails.settings()}
    watched.add("Gate")
    watched.folder_of("Gate", 100000)
    assert watched.watch().returncode == Status.PARTIAL
    watched.folder_of("Gate", 1)
    second = watched.watch()
    assert second.returncode == Status.PARTIAL and "not sent" in second.stdout
    mails.refusing = False
    assert watched.watch().returncode == Status.DONE


def test_that_a_dead_recorder_is_not_restarted_any_more_is_mailed(watched, mails):
    watched.more = {"notify": mails.settings(), "watch": {"restart_limit": 1}}
    watched.add("Gate")
    watched.folder_of("Gate", 100000)
    for _ in range(4):
        watched.watch()
    assert mails.subjects == ["[CAMERA] Auto-restart Gate", "[CAMERA] Down Gate"]


def test_footage_that_a_camera_no_longer_in_the_config_left_behind_is_told(watched):
    watched.add("Gate")
    watched.folder_of("Gate", 1)
    run = watched.footage / ".rtsp_recorder" / "staging" / "Older" / "20260101T000000Z-1-1"
    run.mkdir(parents=True)
    (run / "20260101T000000Z.mkv").write_bytes(b"x" * 10000)
    found = watched.watch()
    assert found.returncode == Status.PARTIAL and "Older" in found.stdout


# --- what others wrote ---


@pytest.mark.parametrize("values", [{"rtsp_url": "rtsp://h/a\nfile x"}, {"ip": "h", "rtsp_path": "a\nfile x"}])
def test_an_address_with_a_line_break_cannot_add_to_what_ffmpeg_is_told(values, site):
    site.entries.append({"name": "Gate", **values})
    done = subprocess.run(site.command("record"), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == Status.USAGE and "control" in done.stderr


@pytest.mark.parametrize(
    "address, login",
    [
        ("admin:p@ss:/%#$ü@127.0.0.1:8554/x", "admin:p@ss:/%#$ü"),
        ("u:p/w@10.0.0.7:554/x?a=b", "u:p/w"),
        ("u:p@ss:w%rd#@host/a", "u:p@ss:w%rd#"),
        ("u:p%40w@host:8554/a@b", "u:p%40w"),
        ("u:p@10.0.0.9/live/user@10.0.0.1/x", "u:p"),
        ("host:554/a@10.0.0.1:554/x", ""),
        ("u:p@host:554/a@b/c", "u:p"),
        ("host/a@b/c", ""),
    ],
)
def test_a_password_with_at_signs_and_slashes_ends_where_the_host_begins(address, login):
    assert recorder.split_login(address) == (login, address[len(login) + bool(login) :])


@pytest.mark.parametrize("host", ["10.0.0.7", "host", "host:554", "cam.example.com"])
def test_a_password_that_may_as_well_be_a_host_is_refused_with_what_to_do_about_it(site, host):
    site.entries.append({"name": "Gate", "rtsp_url": f"rtsp://admin:se@cret/w@{host}/x"})
    done = subprocess.run(site.command("record"), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == Status.USAGE and "%40" in done.stderr and "cret" not in done.stderr


def test_no_part_of_a_password_becomes_the_name_of_a_camera():
    config = {**recorder.load_config(Path(os.devnull), ("cameras", "recording", "storage"), Path())}
    config["cameras"], config["storage"] = [], {**config["storage"], "local_path": "/footage"}
    (camera,) = recorder.settle_cameras(config, {"rtsp_url": "rtsp://admin:se@cret:/x@10.0.0.7:554/x"}, ())
    assert camera.name == "10.0.0.7"


# --- a bug ---


class Buggy(recorder.Recorder):
    """Has a bug that shows once, after the camera was recorded for a while."""

    bugs = 1

    def verdict(self, current: recorder.Run) -> str | None:
        if self.state["state"] == "recording" and current.frames > 3 * FPS and self.bugs:
            self.bugs -= 1
            raise ZeroDivisionError("a bug")
        return super().verdict(current)


def test_a_bug_in_the_thread_of_a_camera_is_a_down_time_and_never_looks_like_recording(site):
    camera = site.add("Gate")
    site.config()
    config = recorder.load_config(site.folder / "config.yaml", ("cameras", "recording", "storage"), site.folder)
    stopping = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        one = Buggy(recorder.settle_cameras(config, {}, ())[0], need("ffmpeg"), tls_options=False, pool=pool,
                    stopping=stopping)  # fmt: skip
        thread = threading.Thread(target=one.work, args=(0,))
        thread.start()
        until(lambda: one.state["state"] == "recording", "recording")
        until(lambda: one.state["state"] == "down", "down")
        until(lambda: one.state["state"] == "recording", "recording again")
        camera.wait_for_frames(FPS)
        stopping.set()
        thread.join(10)
    assert [line["cause"] for line in site.journal("Gate", "down")][-1] == "crashed"
    assert site.lost_sec("Gate") < recorder.KEPT_AWAY_SEC + 5


def test_a_recorder_that_says_starting_for_ever_is_dead():
    target = recorder.Target("Gate", Path("/nowhere"), 3600, 75)
    state = {"state": "starting", "since": 1000.0, "updated_at": 1200.0}
    finding = recorder.judge(target, state, alive=True, newest_sec=None, multiplier=2, after_sec=60, now_sec=1200)
    assert finding.dead
    state["since"] = 1150.0
    assert recorder.judge(target, state, alive=True, newest_sec=None, multiplier=2, after_sec=60, now_sec=1200).well
