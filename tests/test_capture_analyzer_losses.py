"""What capture_analyzer.py must not lose, double, overwrite, give away or pass over in silence: each a fault once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import ROOT, need, seen_on_a_terminal
from test_capture_analyzer_monitor import (
    Captures,
    _known_host,
    add_segments,
    ffmpeg,
    minute_ago,
    pictures,
    sounds,
    still_name,
    until,
)
from test_capture_analyzer_report import browse

import capture_analyzer as ca

__all__ = ["_known_host", "pictures", "sounds"]  # fixtures

PROGRAM = [sys.executable, str(ROOT / "capture_analyzer.py")]
PATIENCE_SEC = 20
START_SEC = 1_795_046_400.0  # 2026-11-19T00:00:00Z


@pytest.fixture
def captures(tmp_path, pictures):
    return Captures(tmp_path, pictures)


def clean(captures: Captures, *words: str, **settings: object) -> int:
    config = captures.config.with_name("clean.yaml")
    config.write_text(json.dumps({"capture": settings}))
    return ca.main(["clean", str(captures.folder), "--config", str(config), *words])


def segment(captures: Captures, name: str, age_sec: float, size: int = 1000) -> Path:
    path = captures.folder.parent / name
    path.write_bytes(b"s" * size)
    os.utime(path, (time.time() - age_sec,) * 2)
    return path


# --- evidence ---


def test_evidence_never_changes_once_it_is_there_also_when_its_incident_is_reopened(captures, sounds):
    """nas_sync.py may have archived it: other bytes under the same name would be a conflict for ever."""
    start, seen, clips = minute_ago(100), {}, []
    for _ in range(2):
        add_segments(captures, start, [sounds["tone"]] * 5)
        start = captures.fill(start, (10, "live"))
        assert captures.once() == 0
        start = captures.fill(start, (8, "black"), (12, "live"))
        assert captures.once() == 0
        evidence = {file: file.read_bytes() for file in (captures.config.parent / "evidence").glob("*/*/*.*")}
        assert {file: evidence[file] for file in seen} == seen
        seen = evidence
        (row,) = [one for one in captures.rows() if one.incident_type == "blackscreen"]
        clips.append(Path(row.metadata["evidence_dir"]) / row.metadata["evidence"]["clip"].partition("/")[2])
    assert len(seen[clips[1]]) > len(seen[clips[0]]), "the incident names the clip that shows more of it"


def test_evidence_of_a_name_that_was_used_again_is_another_file_and_a_second_delivery_changes_none(captures):
    incident = ca.Incident("0123abcd", "host", "cam1", "freeze", "active", 1, START_SEC, None, {})
    evidence, copies = captures.config.parent / "evidence", {}
    for age_sec in (20, 10):
        refs = []
        for name in ("a.ts", "b.ts"):
            file = segment(captures, name, age_sec, 1000 + age_sec).rename(captures.folder / name)
            refs.append(f"{name}@{file.stat().st_mtime_ns}")
        (letter,) = ca.evidence_letters(ca.Event("opened", incident), refs)
        assert ca.copy_evidence(captures.folder, evidence, letter.payload)
        copies[evidence / letter.payload["target"]] = b"s" * 2 * (1000 + age_sec)
        (captures.folder / "b.ts").unlink()
        assert ca.copy_evidence(captures.folder, evidence, letter.payload), "as after kill -9"
    assert {file: file.read_bytes() for file in evidence.glob("*/*/*")} == copies
    assert len(copies) == 2


# --- clean ---


def test_what_a_monitor_from_cron_has_yet_to_copy_or_to_look_at_is_not_cleaned_between_two_passes(captures):
    start = minute_ago(900)
    captures.configure(evidence_dir=str(captures.config))  # a file: nothing can be copied
    captures.fill(start, (10, "live"), (10, "black"), (10, "live"))
    assert captures.once() == 1
    captures.fill(start + 60, (10, "live"))  # not looked at yet, and old enough
    assert clean(captures) == 0
    needed = {still_name(start + at) for at in (9, 10, 20)} | {still_name(start + 60 + at) for at in range(10)}
    assert needed <= {path.name for path in captures.folder.glob("*.jpg")}
    assert not (captures.folder / still_name(start + 2)).exists(), "what was looked at goes"
    captures.configure(evidence_dir=str(captures.config.parent / "evidence"))
    assert captures.once() == 0
    assert len(captures.rows()[0].metadata["evidence"]) == 3


def test_captures_that_no_pass_came_to_look_at_are_cleaned_in_the_end(captures):
    captures.fill(minute_ago(900), (10, "live"))
    captures.once()
    late = minute_ago(800)
    captures.fill(late, (10, "live"))
    assert clean(captures, clean_wait=100) == 0
    assert not (captures.folder / still_name(late)).exists()


def test_the_byte_limit_takes_nothing_that_is_being_written(captures):
    writing = segment(captures, "segment_00012.ts.tmp", 0)
    young = captures.still(time.time())
    old = segment(captures, "segment_00001.ts", 100)
    assert clean(captures, clean_max_bytes=10) == 0
    assert (writing.exists(), young.exists(), old.exists()) == (True, True, False)


def test_a_name_that_is_written_anew_while_clean_is_at_work_stays(captures):
    paths = [segment(captures, f"segment_{number:05d}.ts", 5000) for number in range(2000)]
    last = paths[-1]

    def write_anew() -> None:
        until(lambda: not paths[0].exists())
        part = last.with_name("new.part")
        part.write_bytes(b"a new segment of an old name")
        part.replace(last)

    writer = threading.Thread(target=write_anew)
    writer.start()
    clean(captures)
    writer.join()
    assert last.read_bytes() == b"a new segment of an old name"
    assert not any(path.exists() for path in paths[:-1])


# --- rename ---


def older_still(folder: Path, data: bytes, name: str = "test_capture_0001.jpg", at: float = 1_770_000_000) -> Path:
    path = folder / name
    path.write_bytes(data)
    os.utime(path, (at, at))
    return path


def rename(folder: Path) -> int:
    return ca.main(["rename", str(folder), "--config", os.devnull])


def test_rename_overwrites_no_thumbnail_of_somebody_else(tmp_path, pictures):
    foreign = tmp_path / still_name(1_770_000_000).replace(".jpg", "_thumbnail.jpg")
    foreign.write_bytes(b"of somebody else")
    older_still(tmp_path, pictures["live"][0])
    assert rename(tmp_path) == 0
    assert foreign.read_bytes() == b"of somebody else"
    assert len(list(tmp_path.glob("capture_*_1.jpg"))) == 1


def test_a_link_that_leads_nowhere_under_a_wanted_name_is_left_and_holds_nothing_up(tmp_path, pictures):
    link = tmp_path / still_name(1_770_000_000)
    link.symlink_to(tmp_path / "nowhere.jpg")
    older_still(tmp_path, pictures["live"][0])
    older_still(tmp_path, pictures["live"][1], "test_capture_0002.jpg", 1_770_000_005)
    assert rename(tmp_path) == 0
    assert link.is_symlink() and not list(tmp_path.glob("test_capture_*"))
    assert (tmp_path / still_name(1_770_000_005)).is_file()


# --- nothing wedges ---


def test_a_pipe_named_like_a_recording_or_a_still_holds_nothing_up(captures, tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    done = subprocess.run([*PROGRAM, "video", str(tmp_path / "a.mp4")], capture_output=True, text=True, check=False,
                          timeout=PATIENCE_SEC)  # fmt: skip
    assert done.returncode == 1 and "is no file" in done.stderr
    os.mkfifo(captures.folder / still_name(minute_ago(25)))
    start = minute_ago(20)
    captures.fill(start, (10, "live"), (10, "black"))
    done = subprocess.run([*PROGRAM, "monitor", "--once", str(captures.folder), "--config", str(captures.config)],
                          check=False, timeout=PATIENCE_SEC)  # fmt: skip
    assert done.returncode == 0
    assert captures.told() == [("blackscreen", start + 10, None)]


@pytest.mark.slow
def test_stills_that_the_folder_did_not_take_are_published_as_soon_as_it_does(tmp_path):
    captures, pattern = tmp_path / "cam" / "captures", "capture_*.jpg"
    staging = captures / ".capture_analyzer" / "staging"
    words = as_ordinary_user("capture", f"test||{captures.parent}|5")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert until(lambda: list(captures.glob(pattern)))
            captures.chmod(0o555)
            assert until(lambda: len(list(staging.iterdir())) > 1)
            waiting = list(staging.rglob("*.jpg"))
            captures.chmod(0o755)
            many = len(list(captures.glob(pattern))) + 6
            assert until(lambda: len(list(captures.glob(pattern))) > many)
        finally:
            process.terminate()
            told = process.communicate(timeout=PATIENCE_SEC)[1]
    assert process.returncode == 0 and waiting and "Permission denied" in told, told
    assert list(staging.rglob("*.jpg")) == []


# --- no false "all well" ---


def as_ordinary_user(*words: object) -> list[str]:
    powers = "-dac_override,-dac_read_search"  # without which root is an ordinary user
    drop = [need("setpriv"), f"--bounding-set={powers}"] if os.geteuid() == 0 else []
    return [*drop, *PROGRAM, *map(str, words)]


def test_a_folder_that_cannot_be_looked_through_is_told_and_no_success(tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    done = subprocess.run(as_ordinary_user("video", tmp_path), capture_output=True, text=True, check=False,
                          timeout=60)  # fmt: skip
    (tmp_path / "closed").chmod(0o755)
    assert done.returncode == 1, done.stderr
    assert "closed: not looked through: Permission denied" in done.stderr


@pytest.mark.parametrize("is_named", [True, False], ids=["named", "found"])
def test_a_file_that_may_not_be_asked_for_does_not_keep_the_others_from_being_looked_at(tmp_path, whole, is_named):
    """Also on a terminal, where the bar wants to know how large it is."""
    closed, good = tmp_path / "closed", tmp_path / "good.mp4"
    closed.mkdir()
    closed.joinpath("one.mp4").symlink_to(whole)
    good.symlink_to(whole)
    closed.chmod(0o444)
    places = [closed / "one.mp4", good] if is_named else [tmp_path]
    status, seen, out = seen_on_a_terminal(as_ordinary_user("video", *places, "--json"), cwd=tmp_path)
    closed.chmod(0o755)
    reports = {Path(one["file"]).name: one["reason"] for one in map(json.loads, out.splitlines()) if "file" in one}
    assert (status, reports) == (1, {"one.mp4": "Permission denied", "good.mp4": ""}), seen


@pytest.mark.parametrize("mode", [0, 0o444], ids=["closed", "names_only"])
@pytest.mark.parametrize("place", ["Yard", ".rtsp_recorder/journal", ".rtsp_recorder/journal/Gate"])
def test_a_report_tells_what_it_cannot_look_through_and_is_no_success(tmp_path, whole, place, mode):
    line = {"kind": "segment", "file": "Gate/20260131_120000Z.mp4", "start": 1769860800, "end": 1769860830}
    journal, page = tmp_path / ".rtsp_recorder" / "journal" / "Gate" / "2026-01-31.jsonl", tmp_path / "page.html"
    for folder in (journal.parent, tmp_path / "Gate", tmp_path / "Yard"):
        folder.mkdir(parents=True)
    journal.write_text(json.dumps(line) + "\n")
    for camera in ("Gate", "Yard"):
        (tmp_path / camera / "20260131_120000Z.mp4").symlink_to(whole)
    (tmp_path / place).chmod(mode)
    done = subprocess.run(as_ordinary_user("report", tmp_path, "--output", page), capture_output=True, text=True,
                          check=False, timeout=60)  # fmt: skip
    (tmp_path / place).chmod(0o755)
    assert (done.returncode, page.is_file()) == (1, True), done.stderr
    told = [line for line in done.stderr.splitlines() if " ERROR " in line]
    assert len(told) == 1 and f"{tmp_path / place}" in told[0] and "not looked through: Permission denied" in told[0]


def test_pictures_that_cannot_be_read_for_long_are_an_incident_and_not_silence(captures):
    captures.configure(no_data_alarm_sec=None)
    start = minute_ago(100)
    captures.fill(start, (20, "live"))
    for at in range(60):
        path = captures.folder / still_name(start + 20 + at)
        path.write_bytes(b"")
        os.utime(path, (start + 20 + at,) * 2)
    captures.once()
    assert captures.told() == [("no_data", start + 19, None)]
    assert "empty" in captures.rows()[0].metadata["detail"]
    captures.fill(start + 80, (19, "live"))
    captures.once()
    assert captures.told() == [("no_data", start + 19, start + 80)]


def test_a_pass_that_cannot_keep_its_state_is_no_success(captures):
    captures.fill(minute_ago(30), (10, "live"))
    (captures.own / "monitor.json").mkdir(parents=True)  # cannot be replaced by a file
    assert captures.once() == 1


def test_a_state_that_could_not_be_written_a_moment_ago_is_written_at_the_end(captures, monkeypatch):
    monkeypatch.setattr(ca, "SAVE_AGAIN_SEC", 100)  # of any speed
    captures.fill(minute_ago(30), (10, "live"), (10, "black"))
    (captures.folder / "incidents.json").mkdir()  # which fails, each time
    captures.once()
    assert len(captures.rows()) == 1
    state = captures.state()
    assert state["machine"]["watches"]["blackscreen"]["phase"] == "active", "as it was at the end"
    assert state["outbox"] == [], "what was delivered is not delivered again"


def test_one_folder_that_cannot_be_locked_stops_no_other(captures, tmp_path, pictures):
    broken = Captures(tmp_path, pictures, "cam2")
    (broken.own / "monitor.lock").mkdir(parents=True)
    start = minute_ago(30)
    captures.fill(start, (10, "live"), (10, "black"))
    words = [str(broken.folder), str(captures.folder), "--config", str(captures.config)]
    assert ca.main(["monitor", "--once", *words]) == 1
    assert captures.told() == [("blackscreen", start + 10, None)]


def told_within(listener: socket.socket, seconds: float) -> list[bytes]:
    """What systemd would have heard."""
    heard, deadline = [], time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            heard.append(listener.recv(100))
        except TimeoutError:
            break
    return heard


@pytest.mark.slow
def test_capture_with_a_monitor_tells_systemd_that_all_is_well_only_while_both_say_so(tmp_path, monkeypatch):
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        settings = {name: key.default for name, key in ca_keys("capture").items()}
        stopping = threading.Event()
        capturer = ca.Capturer(ca.settle_grabber(f"test||{tmp_path}|5", settings), "ffmpeg", "libx264", stopping)
        beats = deque([time.monotonic() - 100], maxlen=1)  # the monitor hangs
        thread = threading.Thread(target=ca.watch_capturers, args=([capturer], beats, stopping, 0))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stopping.set)
        assert told_within(listener, 1.5) == [b"READY=1"]
        beats.append(time.monotonic())
        assert b"WATCHDOG=1" in told_within(listener, 1.5)


def ca_keys(section: str):
    from rhombus_logging import CONFIG_KEYS

    return CONFIG_KEYS[section]


def test_a_folder_that_another_monitor_has_taken_over_stops_no_watchdog(captures):
    """It came back while another one was quicker: the other folders are watched on."""
    setup = ca.make_setup({"analysis": {name: key.default for name, key in ca_keys("analysis").items()},
                           "notify": {name: key.default for name, key in ca_keys("notify").items()}})  # fmt: skip
    place = ca.CaptureFolder(captures.folder, "cam1", setup, threading.Event())
    place.is_missing = True  # as when it was away
    with captures.service():
        until(lambda: "watching" in captures.log.read_text())
        ca.FolderWatch(place, None).work()
    assert time.monotonic() - place.beat < 0


# --- secrets ---


def test_a_password_in_the_query_of_a_database_address_is_shown_nowhere(tmp_path, capfd):
    config = tmp_path / "config.yaml"
    address = "postgresql://127.0.0.1:9/films?user=me&password=hunter22secret"
    config.write_text(json.dumps({"analysis": {"database": address}}))
    config.chmod(0o600)
    done = subprocess.run([*PROGRAM, "incidents", "list", "--config", str(config), "--debug"], capture_output=True,
                          text=True, check=False, timeout=60)  # fmt: skip
    assert done.returncode == 3
    assert "hunter22secret" not in done.stderr + done.stdout


# --- names ---


@pytest.mark.slow
def test_a_file_whose_name_is_no_text_leaves_the_page_whole(tmp_path):
    """An incident's footage is linked by its name, and the page shows gaps by their causes."""
    folder = tmp_path / "Gate"
    folder.mkdir()
    file = folder / os.fsdecode(b"20260131_120000Z_caf\xe9.mp4")
    file.write_bytes(b"x")
    os.utime(file, (1_769_864_460,) * 2)
    journal = tmp_path / ".rtsp_recorder" / "journal" / "Gate"
    journal.mkdir(parents=True)
    rows = [{"kind": "down", "start": 1_769_864_460, "end": 1_769_864_900, "cause": "__proto__"},
            {"kind": "segment", "file": "Gate/later.mp4", "start": 1_769_864_900, "end": 1_769_865_000}]  # fmt: skip
    (journal / "2026-01-31.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {"file": str(file), "camera": "Gate", "incidents": [{"type": "freeze", "start_sec": 10, "end_sec": 20}]}
    (tmp_path / "found.jsonl").write_text(json.dumps(found) + "\n")
    page = tmp_path / "report.html"
    words = ["report", str(tmp_path), "--output", str(page), "--incidents", str(tmp_path / "found.jsonl")]
    assert ca.main(words) == 0
    document, console, _ = browse(page, tmp_path)
    assert console == []
    assert "freeze" in document and "__proto__: 1, together 7 min" in document


@pytest.mark.slow
def test_a_name_that_is_no_text_is_shown_and_stored_like_any_other(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    file = folder / "20260131_120000Z.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=black:s=160x90:r=5:d=4", "-g", "5", "-pix_fmt", "yuv420p",
           str(tmp_path / "a.mp4"))  # fmt: skip
    (tmp_path / "a.mp4").rename(file)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"analysis": {"database": str(tmp_path / "db.sqlite3")}}))
    for words in (["video", str(folder), "--store"], ["video", str(folder), "--json"], ["incidents", "list"],
                  ["incidents", "list", "--json"], ["incidents", "export"], ["report", str(folder), "--output",
                  str(tmp_path / "report.html")]):  # fmt: skip
        done = subprocess.run([*PROGRAM, *words, "--config", str(config)], capture_output=True, check=False, timeout=60,
                              env={**os.environ, "PYTHONIOENCODING": "utf-8", "LC_ALL": "C.UTF-8"})  # fmt: skip
        assert done.returncode == 0, (words, done.stderr.decode(errors="replace")[-600:])
        assert b"Traceback" not in done.stderr


def test_a_recording_named_through_its_parent_folder_has_the_name_of_its_camera(tmp_path, monkeypatch):
    (tmp_path / "Gate" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "Gate" / "below")
    assert ca.camera_of(Path("../a.mp4")) == "Gate"


# --- settings are refused before the work ---


@pytest.mark.parametrize(("database", "status"), [("nonsense://x y/z", 2), ("mysql://host/films", 3)])
def test_a_database_that_can_never_be_is_refused_before_hours_of_work(tmp_path, database, status, capfd):
    ffmpeg("-f", "lavfi", "-i", "color=black:s=160x90:r=5:d=4", str(tmp_path / "a.mp4"))
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"analysis": {"database": database}}))
    done = subprocess.run([*PROGRAM, "video", str(tmp_path), "--store", "--config", str(config)], capture_output=True,
                          text=True, check=False, timeout=60)  # fmt: skip
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert "Traceback" not in done.stderr


# --- recordings that are not whole ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Thirty seconds of moving pictures and a tone, a key picture each second."""
    file = tmp_path_factory.mktemp("whole") / "whole.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=320x180:r=10:d=30", "-f", "lavfi", "-i", "sine=d=30", "-c:v", "libx264",
           "-preset", "ultrafast", "-g", "10", "-c:a", "aac", "-movflags", "+faststart", str(file))  # fmt: skip
    return file


@pytest.mark.parametrize("way", [[], ["--precise"]], ids=["keyframes", "precise"])
@pytest.mark.parametrize("spoilt", ["cut", "hole", "whole"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mute.mkv"])
def test_a_recording_that_is_cut_off_or_spoilt_inside_is_not_called_well(tmp_path, whole, capsys, suffix, spoilt, way):
    file = tmp_path / f"one.{suffix}"
    mute = ["-an"] if "mute" in suffix else []
    ffmpeg("-i", str(whole), "-c", "copy", *mute, "-movflags", "+faststart", str(file))
    data = file.read_bytes()
    third = len(data) // 3
    hole = data[:third] + bytes(third) + data[2 * third :]
    file.write_bytes({"cut": data[:third], "hole": hole, "whole": data}[spoilt])
    status = ca.main(["video", str(file), "--json", *way])
    report = json.loads(capsys.readouterr().out.splitlines()[0])
    if spoilt == "whole":
        assert (status, report["quality"], report["reason"]) == (0, "ok", "")
    else:
        assert (status, report["quality"]) == (1, "unknown")
        assert report["reason"].startswith("it is damaged: about ")
        missing_sec = int(report["reason"].split("about ")[1].split()[0])
        assert abs(missing_sec - (20 if spoilt == "cut" else 10)) <= 3


@pytest.mark.parametrize("way", [[], ["--precise"]], ids=["keyframes", "precise"])
@pytest.mark.parametrize(("pictures_sec", "reason"), [(10, "its pictures end 20 s before its sound"), (27, "")])
def test_a_recording_whose_sound_goes_on_without_pictures_is_not_called_well(
    tmp_path, whole, capsys, pictures_sec, reason, way
):
    file, mute = tmp_path / "one.mp4", tmp_path / "mute.mp4"
    ffmpeg("-i", str(whole), "-t", str(pictures_sec), "-map", "0:v", "-c", "copy", str(mute))
    ffmpeg("-i", str(mute), "-i", str(whole), "-map", "0:v", "-map", "1:a", "-c", "copy", str(file))
    status = ca.main(["video", str(file), "--json", *way])
    report = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (status, report["reason"], report["incidents"]) == (1 if reason else 0, reason, [])
    assert abs(report["length_sec"] - 30) < 0.5


@pytest.mark.parametrize("record", ["sidecar", "journal", "none"])
def test_mpeg_ts_that_is_cut_off_is_told_from_what_was_recorded_and_from_nothing_else(tmp_path, whole, capsys, record):
    file = tmp_path / "Gate" / "20260131_120000Z.ts"
    file.parent.mkdir()
    ffmpeg("-i", str(whole), "-c", "copy", str(file))
    size = file.stat().st_size
    line = {"kind": "segment", "file": f"Gate/{file.name}", "start": 1769860800, "end": 1769860830, "bytes": size}
    journal = tmp_path / ".rtsp_recorder" / "journal" / "Gate" / "2026-01-31.jsonl"
    journal.parent.mkdir(parents=True)
    if record == "journal":
        journal.write_text(json.dumps(line) + "\n")
    elif record == "sidecar":
        file.with_suffix(".json").write_text(json.dumps({"obtained": {"start_ms": 0, "end_ms": 30000}, "bytes": size}))

    def looked_at() -> tuple[int, str]:
        status = ca.main(["video", str(file), "--json"])
        return status, json.loads(capsys.readouterr().out.splitlines()[0])["reason"]

    assert looked_at() == (0, "")
    half = size // 2 // 188 * 188
    os.truncate(file, half)
    cut = f"it is cut off: {half:,} of the {size:,} bytes that were recorded are here"
    assert looked_at() == ((0, "") if record == "none" else (1, cut))
