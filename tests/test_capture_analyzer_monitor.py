"""The monitor: real stills and sound made by FFmpeg, real folders, databases and mail servers, real signals."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timezone
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from conftest import NOT_TESTED, ROOT, need

import capture_analyzer as ca
from rhombus_logging import find_ffmpeg, parse_time

PROGRAM = [sys.executable, str(ROOT / "capture_analyzer.py")]
NOISE = "noise=alls=24:allf=t"
SIZE = "160x90"
DEADLINE_SEC = 20  # for what takes a moment on a machine that is not busy


@pytest.fixture(autouse=True)
def _known_host(monkeypatch):
    monkeypatch.setenv("HOST_NAME", "tower")


def ffmpeg(*arguments: str) -> None:
    command = [find_ffmpeg("tests"), "-v", "fatal", "-nostdin", "-y", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=60)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, list[bytes]]:
    """JPEGs as a capture writes them: a live scene with sensor noise, a black one, a frozen one."""
    folder = tmp_path_factory.mktemp("pictures")
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=5,{NOISE}", "-frames:v", "24", "-q:v", "3",
           str(folder / "l%03d.jpg"))  # fmt: skip
    ffmpeg("-f", "lavfi", "-i", f"color=black:s={SIZE}:r=5,noise=alls=3:allf=t", "-frames:v", "4",
           str(folder / "b%03d.jpg"))  # fmt: skip
    read = {kind: [path.read_bytes() for path in sorted(folder.glob(f"{kind[0]}*.jpg"))] for kind in ("live", "black")}
    return {**read, "frozen": read["live"][:1]}


def still_name(at: float) -> str:
    return time.strftime("capture_%Y%m%d%H%M%S.jpg", time.localtime(at))


class Captures:
    """A capture folder as `capture` makes it, filled by a test."""

    def __init__(self, root: Path, pictures: dict[str, list[bytes]], name: str = "cam1") -> None:
        self.folder = root / name / "captures"
        self.folder.mkdir(parents=True)
        self.pictures = pictures
        self.config, self.log = root / "config.yaml", root / "log"
        self.made = 0
        self.settings: dict[str, object] = {
            "evidence_dir": str(root / "evidence"),
            "database": str(root / "all.sqlite3"),
            "no_data_alarm_sec": 100_000,
        }
        self.notify: dict[str, object] = {}
        self.configure()

    def configure(self, **settings: object) -> None:
        self.settings = {key: value for key, value in {**self.settings, **settings}.items() if value is not None}
        self.config.write_text(json.dumps({"analysis": self.settings, "notify": self.notify}))

    def still(self, at: float, kind: str = "live", *, written: bool = True) -> Path:
        """One still, published whole by a rename; `written` false: as if written now."""
        self.made += 1
        chosen = self.pictures[kind]
        path = self.folder / still_name(at)
        part = path.with_suffix(".part")
        part.write_bytes(chosen[self.made % len(chosen)])
        if written:
            os.utime(part, (at, at))
        part.replace(path)
        return path

    def fill(self, start: float, *runs: tuple[int, str]) -> float:
        """One still a second; the time after the last."""
        for count, kind in runs:
            for _ in range(count):
                self.still(start, kind)
                start += 1
        return start

    def once(self) -> int:
        return ca.main(["monitor", "--once", str(self.folder), "--config", str(self.config)])

    def watched(self) -> int:
        return ca.main(["monitor", "--once", "--fail_on_incident", str(self.folder), "--config", str(self.config)])

    def rows(self) -> list[ca.Incident]:
        return ca.read_incidents(str(self.settings.get("database") or self.own / "incidents.sqlite3"))

    def told(self) -> list[tuple[str, float, float | None]]:
        return [(row.incident_type, row.start_sec, row.end_sec) for row in self.rows()]

    @property
    def own(self) -> Path:
        return self.folder / ".capture_analyzer"

    def state(self) -> dict:
        return json.loads((self.own / "monitor.json").read_text())

    def active(self) -> dict:
        return json.loads((self.folder / "incidents.json").read_text())["active_incidents"]

    @contextmanager
    def service(self, *others: str, environment: dict[str, str] | None = None):
        """The monitor as a service; ended with SIGKILL at the end if the test has not ended it."""
        files = ["--config", str(self.config), "--log_file", str(self.log)]
        command = [*PROGRAM, "monitor", str(self.folder), *others, *files]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              env={**os.environ, **(environment or {})}) as process:  # fmt: skip
            try:
                yield process
            except BaseException:
                process.kill()
                print(process.communicate(timeout=DEADLINE_SEC)[1])
                raise
            finally:
                process.kill()


@pytest.fixture
def captures(tmp_path, pictures):
    return Captures(tmp_path, pictures)


def until(condition, what: str = "", patience_sec: float = DEADLINE_SEC):
    """The first true answer; a condition may fail while a file is not there yet."""
    deadline = time.monotonic() + patience_sec
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, KeyError, IndexError, ca.CannotStart):  # a database may be starting up
            if answer := condition():
                return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {patience_sec} s: {what}")


def minute_ago(seconds: float) -> float:
    return float(int(time.time() - seconds))


# --- what is found ---


def test_every_still_is_looked_at_in_order_not_only_the_newest_ones(captures):
    start = minute_ago(300)
    end = captures.fill(start, (20, "live"), (12, "black"), (200, "live"), (15, "frozen"), (20, "live"))
    assert captures.once() == 0
    assert captures.told() == [("blackscreen", start + 20, start + 32), ("freeze", start + 232, start + 247)]
    assert captures.active() == {} and end <= time.time()
    assert captures.once() == 0
    assert len(captures.rows()) == 2


def test_ten_alternating_pictures_open_no_incident(captures):
    start = minute_ago(40)
    for place in range(20):
        captures.still(start + place, "black" if place % 2 else "live")
    captures.once()
    assert "blackscreen" not in [row.incident_type for row in captures.rows()]


def test_stills_that_are_broken_cut_or_empty_are_unknown_and_neither_black_nor_missing(captures, pictures):
    start = minute_ago(60)
    captures.fill(start, (5, "live"))
    for place, data in enumerate([b"", b"no picture", pictures["black"][0][:200], pictures["black"][0][:-2]] * 5):
        path = captures.folder / still_name(start + 5 + place)
        path.write_bytes(data)
        os.utime(path, (start + 5 + place,) * 2)
    captures.fill(start + 25, (5, "live"))
    assert captures.once() == 0
    assert [kind for kind, begun, _end in captures.told() if begun < start + 29] == []


def test_for_cron_an_incident_that_is_active_or_was_raised_in_this_pass_is_a_failure_if_so_asked(captures):
    start = minute_ago(280)
    end = captures.fill(start, (20, "live"), (12, "black"), (20, "live"))
    assert captures.watched() == 1, "raised, and over again"
    assert captures.watched() == 0, "nothing since"
    end = captures.fill(end + 1, (5, "live"), (10, "black"))
    assert captures.watched() == 1, "the same one came back"
    assert captures.watched() == 1, "still active, although nothing is new"
    end = captures.fill(end, (20, "live"))
    assert captures.watched() == 0, "over"
    captures.fill(end + 90, (5, "live"), (10, "black"))
    assert captures.once() == 0, "not asked"
    assert captures.watched() == 1
    assert len(captures.rows()) == 2


def test_a_capture_that_stopped_is_a_failure_for_cron_too_and_a_service_has_no_such_status(captures):
    captures.configure(no_data_alarm_sec=None)
    end = captures.fill(minute_ago(100), (10, "live"))
    assert captures.watched() == captures.watched() == 1
    captures.fill(end + 60, (30, "live"))
    assert captures.watched() == 0
    with pytest.raises(ca.UsageError, match="--fail_on_incident: goes with --once"):
        ca.main(["monitor", "--fail_on_incident", str(captures.folder), "--config", str(captures.config)])


def test_the_incidents_file_has_the_older_names(captures):
    start = minute_ago(20)
    captures.fill(start, (10, "live"), (10, "black"))
    captures.once()
    (kind, values), = captures.active().items()
    assert kind == "blackscreen"
    assert sorted(values) == ["alert_id", "consecutive_count", "last_updated", "start_time"]
    assert values["consecutive_count"] == 10
    assert values["alert_id"] == captures.rows()[0].alert_id
    assert parse_time(values["start_time"], "", timezone.utc) == start + 10


def test_evidence_is_copied_and_named_by_the_keys_that_the_upload_gives(captures):
    start = minute_ago(60)
    captures.fill(start, (10, "live"), (10, "black"), (10, "live"))
    captures.once()
    row = captures.rows()[0]
    evidence = row.metadata["evidence"]
    stamps = {"last_good": start + 9, "first_bad": start + 10, "first_good": start + 20}
    assert sorted(evidence) == sorted(stamps)
    for role, at in stamps.items():
        place, _, key = evidence[role].partition("/")
        assert (place, key.split("/")[:2]) == ("alerts", ["blackscreen", "cam1"])
        copied = Path(row.metadata["evidence_dir"]) / key
        assert copied.read_bytes() == (captures.folder / still_name(at)).read_bytes()


def test_evidence_that_is_gone_before_it_was_copied_is_not_named(captures, caplog):
    start = minute_ago(60)
    captures.configure(evidence_dir=str(captures.config))  # a file, so nothing can be copied
    captures.fill(start, (10, "live"), (10, "black"), (10, "live"))
    assert captures.once() == 1
    waiting = json.loads((captures.own / "progress.json").read_text())["awaiting"]
    assert {still_name(start + place) for place in (9, 10, 20)} <= set(waiting), "clean keeps what is not copied yet"
    (captures.folder / still_name(start + 9)).unlink()
    captures.configure(evidence_dir=str(captures.config.parent / "other"))
    assert captures.once() == 0
    assert sorted(captures.rows()[0].metadata["evidence"]) == ["first_bad", "first_good"]
    assert "evidence lost" in caplog.text


def test_devices_are_named_after_their_folders_and_never_alike(tmp_path):
    names = ca.device_names([Path("/srv/capture1/captures"), Path("/srv/capture2/captures"), Path("/srv/door one")])
    assert names == ["capture1", "capture2", "door_one"]
    assert ca.device_names([Path("/a/cam/captures"), Path("/b/cam/captures")]) == ["a_cam", "b_cam"]


# --- no data, clocks ---


def test_a_capture_that_stopped_is_an_incident_and_its_return_the_end(captures):
    captures.configure(no_data_alarm_sec=None)
    start = minute_ago(100)
    end = captures.fill(start, (10, "live"))
    captures.once()
    assert captures.told() == [("no_data", end - 1, None)]
    assert "no_data" in captures.active()
    captures.fill(end + 60, (5, "live"))
    captures.once()
    assert captures.told() == [("no_data", end - 1, end + 60)]


def test_a_gap_while_the_monitor_was_away_is_unknown_when_its_captures_were_removed(captures):
    start = minute_ago(1000)
    end = captures.fill(start, (10, "live"))
    captures.once()
    captures.configure(no_data_alarm_sec=30)
    for path in captures.folder.glob("*.jpg"):
        path.unlink()  # as `clean` does
    captures.fill(end + 960, (20, "live"))
    captures.once()
    assert captures.told() == []


def test_a_still_named_by_a_wrong_clock_neither_wedges_the_monitor_nor_opens_anything(captures):
    start = minute_ago(30)
    captures.fill(start, (10, "live"))
    wrong = captures.folder / "capture_20361231235959.jpg"
    wrong.write_bytes(captures.pictures["live"][5])
    os.utime(wrong, (start + 10, start + 10))
    captures.fill(start + 11, (8, "live"), (8, "black"))
    captures.once()
    assert captures.told() == [("blackscreen", start + 19, None)]


def test_the_hour_that_summer_time_repeats_is_told_apart_and_stills_of_the_same_name_too(captures, monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        first = 1761438600.0  # 2025-10-26 02:30:00 +0200, and again at +0100 an hour later
        assert still_name(first) == still_name(first + 3600)
        captures.fill(first, (10, "live"))
        captures.once()
        captures.fill(first + 3600, (4, "live"), (8, "black"))
        captures.once()
        assert [row.incident_type for row in captures.rows()] == ["no_data", "blackscreen"], "it is a long time ago"
        captures.rows()
        assert ("blackscreen", first + 3604, None) in captures.told()
    finally:
        monkeypatch.undo()
        time.tzset()


# --- sound ---


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> dict[str, bytes]:
    """Segments of 2 s: with a tone, silent, a quiet room at about -60 dB, and without any audio stream."""
    folder = tmp_path_factory.mktemp("sounds")
    sources = {"tone": "sine=f=440:r=48000", "silent": "anullsrc=r=48000", "quiet": "anoisesrc=a=0.003:r=48000"}
    for name, source in sources.items():
        ffmpeg("-f", "lavfi", "-i", f"testsrc2=s=160x90:r=5:d=2,{NOISE}", "-f", "lavfi", "-t", "2", "-i", source,
               "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", str(folder / f"{name}.ts"))  # fmt: skip
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x90:r=5:d=2", "-c:v", "libx264", "-preset", "ultrafast",
           str(folder / "mute.ts"))  # fmt: skip
    return {path.stem: path.read_bytes() for path in folder.glob("*.ts")}


def add_segments(captures: Captures, start: float, kinds: list[bytes]) -> float:
    """Segments of 2 s beside the captures folder, with the playlist that names them; the time after the last."""
    for place, data in enumerate(kinds):
        path = captures.folder.parent / f"segment_{int(start) % 100000 + place:06d}.ts"
        path.write_bytes(data)
        start += 2
        os.utime(path, (start, start))
    playlist = captures.folder.parent / "output.m3u8"
    playlist.write_text("#EXTM3U\n" + "".join(f"{path.name}\n" for path in captures.folder.parent.glob("*.ts")))
    return start


def test_sound_that_is_lost_is_an_incident_with_the_segments_as_evidence(captures, sounds):
    start = minute_ago(60)
    captures.fill(start, (50, "live"))
    kinds = ["tone"] * 2 + ["silent"] * 7 + ["tone"] * 4
    add_segments(captures, start, [sounds[kind] for kind in kinds])
    captures.once()
    (row,) = captures.rows()
    assert row.incident_type == "audio_loss"
    assert row.start_sec == pytest.approx(start + 4, abs=2.1)
    assert row.end_sec == pytest.approx(start + 18, abs=2.1)
    assert sorted(row.metadata["evidence"]) == ["clip", "first_bad", "first_good", "last_good"]
    clip = Path(row.metadata["evidence_dir"]) / row.metadata["evidence"]["clip"].partition("/")[2]
    assert len(ca.measure_sound(find_ffmpeg("tests"), clip)) > 8 * 4, "the clip holds several segments and plays"


def test_a_quiet_room_and_a_camera_without_a_microphone_are_no_loss(captures, sounds):
    start = minute_ago(60)
    captures.fill(start, (50, "live"))
    add_segments(captures, start, [sounds["quiet"]] * 7)
    captures.once()
    add_segments(captures, start + 16, [sounds["mute"]] * 7)
    captures.once()
    assert captures.told() == []


def test_a_missing_microphone_is_a_loss_where_audio_is_required(captures, sounds):
    captures.configure(audio_required=True)
    start = minute_ago(60)
    captures.fill(start, (50, "live"))
    add_segments(captures, start, [sounds["mute"]] * 7)
    captures.once()
    (row,) = captures.rows()
    assert (row.incident_type, row.metadata["detail"]) == ("audio_loss", "there is no audio stream")


def test_a_segment_that_is_still_being_written_is_never_judged(captures, sounds):
    start = minute_ago(30)
    captures.fill(start, (28, "live"))
    add_segments(captures, start, [sounds["tone"]] * 3)
    half = captures.folder.parent / "segment_999999.ts"
    half.write_bytes(sounds["silent"][: 188 * 20])  # being written now: newer than the playlist
    captures.once()
    assert "segment_999999.ts" not in captures.state()["segments"]["ahead"]
    half.write_bytes(sounds["tone"])
    add_segments(captures, start + 10, [sounds["tone"]])
    captures.once()
    assert "segment_999999.ts" in captures.state()["segments"]["ahead"]


# --- databases ---


def test_the_database_itself_allows_one_active_incident_of_a_kind(captures):
    captures.fill(minute_ago(20), (10, "live"), (10, "black"))
    captures.once()
    row = captures.rows()[0]
    with sqlite3.connect(captures.settings["database"]) as connection:
        names = [column[1] for column in connection.execute("PRAGMA table_info(incidents)")]
        assert names == list(ca.INCIDENT_COLUMNS)
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            connection.execute("INSERT INTO incidents SELECT 'another', host_name, device_id, incident_type, status, "
                               "consecutive_count, start_time, end_time, metadata FROM incidents")  # fmt: skip
    connection.close()
    assert row.status == "active" and row.end_sec is None


def test_without_a_configured_database_incidents_are_stored_beside_the_captures(captures):
    captures.configure(database=None, evidence_dir=None)
    captures.fill(minute_ago(20), (10, "live"), (10, "black"))
    captures.once()
    assert [row.incident_type for row in captures.rows()] == ["blackscreen"]
    assert (captures.own / "incidents.sqlite3").exists()
    assert len(list((captures.own / "evidence/blackscreen/cam1").glob("*.jpg"))) == 2


def test_a_locked_database_holds_up_nothing_and_gets_everything_once_it_is_free(captures, monkeypatch):
    monkeypatch.setattr(ca, "DATABASE_TIMEOUT_SEC", 0.1)  # the limit is tried, not the wait
    start = minute_ago(60)
    captures.fill(start, (10, "live"))
    captures.once()
    ca.Database(str(captures.settings["database"])).read()
    holder = sqlite3.connect(captures.settings["database"], isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    captures.fill(start + 10, (10, "black"))
    assert captures.once() == 1
    assert "blackscreen" in captures.active(), "the machine decides, not the database"
    captures.fill(start + 20, (10, "live"), (10, "black"))
    assert captures.once() == 1
    holder.execute("ROLLBACK")
    holder.close()
    assert captures.once() == 0
    assert captures.told()[0] == ("blackscreen", start + 10, None), "reopened: one incident, not two"
    assert [row.incident_type for row in captures.rows()].count("blackscreen") == 1


def test_a_database_that_cannot_be_reached_loses_and_doubles_nothing(captures):
    """The older scripts knew an incident only once the database had answered: five black stills, five uploads."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place = captures.settings["database"]
    captures.config.touch(mode=0o600)
    captures.configure(database=f"postgresql://someone:sesame@127.0.0.1:{port}/nothing")
    start = minute_ago(60)
    for round_number in range(3):
        captures.fill(start + 10 * round_number, (10, ["live", "black", "live"][round_number]))
        assert captures.once() == (1 if round_number else 0)
    captures.configure(database=place)
    assert captures.once() == 0
    assert captures.told()[0] == ("blackscreen", start + 10, start + 20)
    assert sorted(captures.rows()[0].metadata["evidence"]) == ["first_bad", "first_good", "last_good"]


def test_the_password_of_a_database_is_never_logged(captures, capfd):
    captures.configure(database="postgresql://someone:sesame@127.0.0.1:1/nothing")
    captures.fill(minute_ago(20), (10, "live"), (10, "black"))
    assert captures.once() == 1
    seen = capfd.readouterr()
    assert "sesame" not in seen.out + seen.err
    assert "sesame" not in (captures.own / "monitor.json").read_text()
    assert "database does not take" in seen.err


def test_a_lost_state_ends_the_incident_that_it_left_active(captures):
    start = minute_ago(40)
    captures.fill(start, (10, "live"), (10, "black"))
    captures.once()
    (captures.own / "monitor.json").write_text("{ this is no json")
    for path in captures.folder.glob("*.jpg"):
        path.unlink()
    captures.fill(start + 25, (10, "black"))
    captures.once()
    first, second = captures.rows()
    assert (first.status, first.metadata["superseded_by"]) == ("resolved", second.alert_id)
    assert (second.status, second.start_sec) == ("active", start + 25)


def test_a_damaged_state_is_said_and_begun_anew_instead_of_disabling_anything(captures, caplog):
    captures.own.mkdir()
    (captures.own / "monitor.json").write_bytes(b"\x80\x04\x95")  # what the older cache looked like
    captures.fill(minute_ago(60), (10, "live"), (16, "frozen"), (20, "live"))
    assert captures.once() == 0
    assert "is damaged; begun anew" in caplog.text
    assert captures.told()[0][0] == "freeze"


def test_incidents_of_a_recording_are_stored_once_however_often_it_is_scanned(tmp_path):
    place, found = str(tmp_path / "db.sqlite3"), (("blackscreen", (5.0, 9.0)), ("freeze", (20.0, 31.5)))
    scan = ca.Scan(Path("a.mp4"), "gate", "precise", "ok", "", 60, found)
    for file, known in ((Path("a.mp4"), None), (Path("moved/a.mp4"), "a.mp4")):
        for incident in ca.video_incidents(replace(scan, file=file), "ab12", 1000):
            assert (ca.Database(place).store(incident) or {}).get("file") == known
    assert [(row.start_sec, row.end_sec, row.device_id) for row in ca.read_incidents(place)] == [
        (1005, 1009, "gate"), (1020, 1031.5, "gate")]  # fmt: skip


def test_a_recording_that_is_scanned_again_even_elsewhere_adds_nothing_to_the_database(captures, tmp_path, capsys):
    recording = tmp_path / "gate" / "20260131_120000Z.mp4"
    recording.parent.mkdir()
    sources = [f"testsrc2=s={SIZE}:r=5:d=5,{NOISE}", f"color=black:s={SIZE}:r=5:d=8"]
    ffmpeg("-f", "lavfi", "-i", sources[0], "-f", "lavfi", "-i", sources[1], "-filter_complex", "[0:v][1:v]concat=n=2",
           "-g", "5", "-pix_fmt", "yuv420p", str(recording))  # fmt: skip
    for _ in range(2):
        assert ca.main(["video", "--store", str(recording), "--config", str(captures.config)]) == 0
        recording = recording.rename(tmp_path / recording.name)
    (row,) = captures.rows()
    assert (row.incident_type, row.status) == ("blackscreen", "resolved")
    assert row.start_sec == pytest.approx(parse_time("2026-01-31T12:00:05Z", "", timezone.utc), abs=1)
    captures.configure(database=None)
    with pytest.raises(ca.UsageError, match="--store: set analysis.database"):
        ca.main(["video", "--store", str(tmp_path), "--config", str(captures.config)])


# --- where SQLite is safe ---

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:40 / /mnt/nas rw,relatime shared:20 - nfs4 nas:/export rw,vers=4.2
41 22 0:41 / /mnt/with\\040space rw - cifs //nas/share rw
42 40 0:42 / /mnt/nas/local rw - tmpfs tmpfs rw
43 22 0:43 / /mnt/shell rw - fuse.sshfs me@nas: rw
"""


@pytest.mark.parametrize(
    ("place", "kind", "remote"),
    [("/srv/captures", "ext4", False), ("/mnt/nas/cam1", "nfs4", True), ("/mnt/nas", "nfs4", True),
     ("/mnt/with space/cam", "cifs", True), ("/mnt/nas/local/x", "tmpfs", False), ("/mnt/nasty", "ext4", False),
     ("/mnt/shell/a", "fuse.sshfs", True)],
)  # fmt: skip
def test_a_network_mount_is_known_by_its_filesystem(tmp_path, place, kind, remote):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert ca.filesystem_of(Path(place), mounts) == kind
    assert kind.startswith(ca.NETWORK_FILESYSTEMS) is remote


def test_this_machine_tells_what_its_folders_lie_on(tmp_path):
    assert ca.filesystem_of(tmp_path)
    assert ca.filesystem_of(Path("/proc/self")) == "proc"


# --- mail ---


class Mailbox:
    """Takes what a mail server is given."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def handle_DATA(self, _server, _session, envelope):  # noqa: N802
        self.messages.append(envelope.content.decode())
        return "250 taken"

    def subjects(self) -> list[str]:
        return [re.search(r"(?m)^Subject: (.*)", text)[1].replace("\r", "") for text in self.messages]


@contextmanager
def mail_server(port: int):
    mailbox = Mailbox()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_mail_server_that_is_down_gets_each_alert_once_when_it_is_back(captures):
    port = free_port()
    captures.notify = {"smtp_host": "127.0.0.1", "smtp_port": port, "alert_to": ["guard@example.org"]}
    captures.configure(reopen_sec=0, blackscreen_alarm_sec=2, freeze_alarm_sec=0, audio_loss_alarm_sec=0)
    start = minute_ago(50)
    captures.fill(start, (10, "live"), (10, "black"), (25, "live"))
    assert captures.once() == 1
    assert len(captures.rows()) == 1, "the database does not wait for the mail"
    time.sleep(2)  # until the end can be told: nothing can be reopened any more
    with mail_server(port) as mailbox:
        assert captures.once() == 0
        assert captures.once() == 0
        opened, resolved = mailbox.subjects()
    assert "blackscreen on cam1: since" in opened
    assert "blackscreen on cam1: over after 10 s" in resolved
    assert "Message-ID: <opened." in mailbox.messages[0]


def test_an_incident_that_comes_and_goes_is_told_once(captures):
    port = free_port()
    with mail_server(port) as mailbox:
        captures.notify = {"smtp_host": "127.0.0.1", "smtp_port": port, "alert_to": ["guard@example.org"]}
        captures.configure()
        start = minute_ago(100)
        for _ in range(4):
            start = captures.fill(start, (8, "black"), (12, "live"))
            assert captures.once() == 0
        assert len([subject for subject in mailbox.subjects() if "blackscreen" in subject]) == 1
    assert [row.incident_type for row in captures.rows()].count("blackscreen") == 1


# --- the service ---


def test_an_alert_is_there_within_a_second_of_the_still_that_decides_and_sigterm_ends_with_0(captures):
    captures.configure(blackscreen_alarm_sec=2)
    now = minute_ago(5)
    captures.fill(now, (5, "live"))
    with captures.service() as process:
        until(lambda: captures.state()["stills"]["cursor_ns"] > 0, "the first stills are seen")
        now = float(int(time.time()))
        for place in range(3):
            captures.still(now + place, "black", written=False)
        written = time.time()
        until(lambda: "blackscreen" in captures.active(), "incidents.json")
        latency = (captures.folder / "incidents.json").stat().st_mtime - written
        until(lambda: captures.rows()[0].metadata["evidence"]["first_bad"], "database and evidence")
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        out, err = process.communicate(timeout=DEADLINE_SEC)
        assert (process.returncode, out) == (0, "")
        assert time.monotonic() - begun < 5
        assert latency < 1
    assert "blackscreen opened" in err and "ERROR" not in err
    assert captures.told() == [("blackscreen", now, None)]


def test_kill_9_loses_no_incident_and_doubles_none(captures):
    now = minute_ago(20)
    captures.fill(now, (10, "live"), (9, "black"))
    with captures.service() as process:
        alert = until(lambda: captures.active()["blackscreen"]["alert_id"], "the incident")
        process.kill()
        process.wait()
    before = captures.rows()
    captures.fill(now + 19, (1, "black"))
    with captures.service() as process:
        until(lambda: captures.active()["blackscreen"]["consecutive_count"] >= 10, "the count goes on")
        process.terminate()
        assert process.wait(DEADLINE_SEC) == 0
    assert len(before) <= 1
    (row,) = [row for row in captures.rows() if row.incident_type == "blackscreen"]
    assert (row.alert_id, row.start_sec, row.status) == (alert, now + 10, "active")


def test_two_monitors_on_one_folder_are_one_too_many(captures):
    captures.fill(minute_ago(5), (3, "live"))
    with captures.service() as process:
        until(lambda: (captures.own / "monitor.lock").read_text().strip(), "the lock")
        second = subprocess.run([*PROGRAM, "monitor", "--once", str(captures.folder), "--config", str(captures.config)],
                                capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert second.returncode == 4
        assert f"another run holds {captures.own / 'monitor.lock'} (process {process.pid})" in second.stderr


def test_a_folder_that_vanishes_and_returns_is_watched_on_while_the_others_never_stopped(captures, tmp_path, pictures):
    other = Captures(tmp_path, pictures, "cam2")
    away = captures.folder.parent / "away"
    captures.configure(blackscreen_alarm_sec=1)
    now = minute_ago(5)
    captures.fill(now, (3, "live"))
    other.fill(now, (3, "live"))
    with captures.service(str(other.folder)) as process:
        until(captures.state, "the first look")
        until(other.state, "the first look at the other")
        captures.folder.rename(away)
        other.fill(now + 3, (3, "black"))
        until(lambda: other.active()["blackscreen"], "the other folder goes on")
        until(lambda: "No such file or directory; waiting for it" in captures.log.read_text(), "it is said")
        assert not captures.folder.exists(), "a folder that is away is not made anew"
        away.rename(captures.folder)
        captures.fill(now + 3, (3, "black"))
        until(lambda: captures.active()["blackscreen"], "seen after the return")
        process.terminate()
        process.communicate(timeout=DEADLINE_SEC)
        assert process.returncode == 0
    assert "is there again" in captures.log.read_text()


def test_systemd_is_told_that_the_service_is_ready_and_well(captures, tmp_path):
    captures.fill(minute_ago(5), (3, "live"))
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(DEADLINE_SEC)
        with captures.service(environment={"NOTIFY_SOCKET": address}) as process:
            assert [listener.recv(100) for _ in range(2)] == [b"READY=1", b"WATCHDOG=1"]
            process.terminate()
            said = b""
            while said != b"STOPPING=1":
                said = listener.recv(100)
            assert process.wait(DEADLINE_SEC) == 0


def test_a_still_that_is_written_slowly_is_looked_at_when_it_is_whole(captures, pictures):
    captures.configure(blackscreen_alarm_sec=1)
    now = minute_ago(5)
    captures.fill(now, (3, "live"))
    data = pictures["live"][7]
    with captures.service() as process:
        until(captures.state, "the first look")
        slow = captures.folder / still_name(now + 3)
        with slow.open("wb") as handle:
            for part in (data[:2000], data[2000:]):
                handle.write(part)
                handle.flush()
                time.sleep(0.7)
        for place in range(3):
            captures.still(now + 4 + place, "black", written=False)
        until(lambda: captures.active()["blackscreen"], "what comes after it")
        key = until(lambda: captures.rows()[0].metadata["evidence"]["last_good"])
        process.terminate()
        process.communicate(timeout=DEADLINE_SEC)
    assert re.search(rf"_last_good_[0-9a-f]{{8}}_{slow.name}$", key), "it was known to be good"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB, where root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True)
    if done.returncode:
        pytest.skip(NOT_TESTED + "mount (as root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_no_detection_and_all_of_it_arrives_when_there_is_room(captures, small_disk):
    filler = small_disk / "filler"
    captures.configure(database=str(small_disk / "db.sqlite3"), evidence_dir=str(small_disk / "evidence"))
    with suppress(OSError):
        filler.write_bytes(b"x" * (2 << 20))
    start = minute_ago(30)
    captures.fill(start, (10, "live"), (10, "black"), (8, "live"))
    assert captures.once() == 1
    assert captures.once() == 1
    filler.unlink()
    assert captures.once() == 0
    assert captures.told()[0] == ("blackscreen", start + 10, start + 20)
    assert len(list((small_disk / "evidence/blackscreen/cam1").glob("*.jpg"))) == 3


@pytest.mark.slow
def test_a_full_capture_disk_keeps_everything_in_memory_until_there_is_room(tmp_path, pictures, small_disk):
    captures = Captures(small_disk, pictures)
    captures.configure(database=str(tmp_path / "db.sqlite3"), evidence_dir=None, blackscreen_alarm_sec=2)
    start = minute_ago(14)
    captures.fill(start, (6, "live"), (8, "black"))
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as handle:
        while True:
            handle.write(b"x" * 4096)
    with captures.service() as process:
        until(lambda: captures.told()[0] == ("blackscreen", start + 6, None), "stored elsewhere, the disk is full")
        assert not (captures.own / "monitor.json").exists()
        (small_disk / "filler").unlink()
        until(lambda: len(captures.rows()[0].metadata["evidence"]) == 2, "evidence")
        until(lambda: captures.active()["blackscreen"], "incidents.json")
        process.terminate()
        assert process.wait(DEADLINE_SEC) == 0


def test_captures_on_a_disk_that_may_only_be_read_are_watched_with_the_state_elsewhere(
    tmp_path, pictures, small_disk, monkeypatch
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    captures = Captures(small_disk, pictures)
    captures.configure(database=None, evidence_dir=str(tmp_path / "evidence"))
    start = minute_ago(30)
    captures.fill(start, (10, "live"), (10, "black"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert captures.once() == 0
    assert captures.once() == 0
    (database,) = (tmp_path / "state").rglob("incidents.sqlite3")
    assert [(row.incident_type, row.start_sec) for row in ca.read_incidents(str(database))] == [
        ("blackscreen", start + 10)]  # fmt: skip
    assert len(list((tmp_path / "evidence").rglob("*.jpg"))) == 2


# --- calls that cannot work ---


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [(["monitor", "{root}/nowhere"], 3, "there is no such folder"),
     (["monitor", "{root}/config.yaml"], 2, "is no folder"),
     (["monitor"], 3, "no folder matches analysis.capture_dirs"),
     (["incidents", "show"], 2, "name at least one id"),
     (["incidents", "show", "ffff"], 2, "ffff: no incident has this id")],
)  # fmt: skip
def test_a_call_that_cannot_work_ends_with_one_sentence(captures, tmp_path, arguments, status, sentence):
    captures.configure(capture_dirs=["/nowhere/*"])
    given = [text.format(root=tmp_path) for text in arguments]
    done = subprocess.run([*PROGRAM, *given, "--config", str(captures.config)], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (status, "")
    assert sentence in done.stderr and done.stderr.count("\n") == 1


# --- incidents on the command line ---


def command(captures: Captures, *arguments: str) -> int:
    return ca.main(["incidents", *arguments, "--config", str(captures.config)])


def test_incidents_are_listed_shown_acknowledged_and_exported(captures, capsys):
    start = minute_ago(60)
    captures.fill(start, (10, "live"), (10, "black"), (10, "live"), (28, "frozen"))
    captures.once()
    capsys.readouterr()
    assert command(captures, "list") == 0
    black, freeze = capsys.readouterr().out.splitlines()
    assert "10 s  blackscreen  cam1" in black and "active  freeze       cam1" in freeze
    identity = black.split()[0]
    assert command(captures, "ack", identity) == 0
    captures.fill(start + 58, (2, "frozen"))
    captures.once()
    capsys.readouterr()
    assert command(captures, "show", identity) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["metadata"]["acknowledged_by"] == "tower" and "evidence" in shown["metadata"]
    command(captures, "list", "--json", "--since", str(start + 25))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("incident_type") for line in lines[:-1]] == ["freeze"]
    assert lines[-1] == {"summary": {"incidents": 1, "active": 1}}
    command(captures, "export")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["incident_type"] for row in rows] == ["blackscreen", "freeze"]
    assert rows[0]["start_time"].endswith("+00:00")
    command(captures, "list", identity)
    assert capsys.readouterr().out.split()[0] == identity, "and no other"


def test_incidents_are_read_beside_the_captures_that_are_named(captures, capfd):
    captures.configure(database=None, capture_dirs=["/nowhere/*"])
    captures.fill(minute_ago(60), (10, "live"), (10, "black"), (10, "live"))
    assert captures.once() == 0
    capfd.readouterr()
    assert command(captures, "list", str(captures.folder)) == 0
    listed = capfd.readouterr()
    assert "blackscreen  cam1" in listed.out
    assert listed.err.endswith("INFO 1 incidents, 0 of them active\n")
    assert command(captures, "show", str(captures.folder), listed.out[:8]) == 0
    assert json.loads(capfd.readouterr().out)["device_id"] == "cam1"
    captures.configure(database=str(captures.folder / "other.sqlite3"))
    assert ca.run(lambda: command(captures, "list", str(captures.folder))) == 2
    assert "incidents are kept in analysis.database" in capfd.readouterr().err


# --- slow ---


@contextmanager
def postgres():
    """Start and stop a PostgreSQL of our own, on loopback; yields (its address without the password, start, stop)."""
    found = sorted(Path("/").glob("usr/lib/postgresql/*/bin/initdb")) or [Path(need("initdb"))]
    programs = found[-1].parent
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    port, running = free_port(), []
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "password"
        secret.write_text("sesame")
        if user:
            for path in (folder, secret):
                shutil.chown(path, user)
        data = f"{folder}/data"
        make = [programs / "initdb", "-D", data, "-U", "guard", "-A", "scram-sha-256", "--pwfile", secret, "-N"]
        subprocess.run(make, user=user, check=True, capture_output=True, cwd=folder)

        def start() -> None:
            running.append(subprocess.Popen([programs / "postgres", "-D", data, "-p", str(port), "-k", folder, "-h",
                                             "127.0.0.1", "-F"], user=user, cwd=folder,
                                            stderr=subprocess.DEVNULL))  # fmt: skip
            until(lambda: socket.create_connection(("127.0.0.1", port)).close() or True, "postgres")

        def stop() -> None:
            for process in running:
                process.send_signal(signal.SIGINT)
                process.wait(DEADLINE_SEC)
            running.clear()

        try:
            yield f"postgresql://guard:${{DATABASE_PASSWORD}}@127.0.0.1:{port}/postgres", start, stop
        finally:
            stop()


@pytest.mark.slow
def test_postgresql_gets_every_incident_once_although_it_goes_down_in_between(captures, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_PASSWORD", "sesame")
    with postgres() as (address, start_server, stop_server):
        captures.configure(database=address, blackscreen_alarm_sec=2)
        now = minute_ago(200)
        now = captures.fill(now, (10, "live"), (10, "black"), (10, "live"))
        assert captures.once() == 1
        start_server()
        until(lambda: captures.once() == 0, "everything arrives")
        with captures.service() as process:
            until(captures.state)
            stop_server()
            now = captures.fill(now + 90, (10, "live"), (10, "black"))
            until(lambda: captures.active()["blackscreen"], "found without the database")
            start_server()
            place = f"postgresql://guard:sesame@127.0.0.1:{address.rpartition(':')[2]}"
            until(lambda: len(ca.read_incidents(place)) == 2, "arrives in the service")
            process.terminate()
            _out, err = process.communicate(timeout=DEADLINE_SEC)
        assert process.returncode == 0 and "sesame" not in err
        first, second = ca.read_incidents(place)
        assert (first.end_sec - first.start_sec, first.status, second.status) == (10, "resolved", "active")
        assert sorted(first.metadata["evidence"]) == ["first_bad", "first_good", "last_good"]
        from sqlalchemy.exc import IntegrityError

        database = ca.Database(place)
        with pytest.raises(IntegrityError, match="incidents_one_active"), database.transaction() as connection:
            copied = {**ca.asdict(second), "alert_id": "another"}
            times = {"start_time": ca.moment(copied.pop("start_sec")), "end_time": copied.pop("end_sec")}
            connection.execute(database.table.insert().values(**copied, **times))
        capsys.readouterr()
        assert command(captures, "list", "--since", str(now - 60)) == 0
        assert capsys.readouterr().out.startswith(second.alert_id[:8])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_folder_of_100000_stills_is_caught_up_and_then_watched_without_delay(captures, pictures):
    """All of them show the same, which costs less to make and to look at."""
    captures.configure(blackscreen_alarm_sec=2)
    start = minute_ago(101_000)
    for place in range(100_000):
        path = captures.folder / still_name(start + place)
        path.write_bytes(pictures["frozen"][0])
        os.utime(path, (start + place,) * 2)
    with captures.service() as process:
        last = int((start + 99_999) * 1e9)
        until(lambda: captures.state()["stills"]["cursor_ns"] == last, "caught up", 500)
        for place in range(3):
            captures.still(start + 100_000 + place, "black", written=False)
        written = time.time()
        until(lambda: captures.active()["blackscreen"], "the incident")
        assert (captures.folder / "incidents.json").stat().st_mtime - written < 2
        assert memory_bytes(process.pid) < 400e6
        until(lambda: len(captures.rows()) == 2, "stored")
        process.terminate()
        assert process.wait(DEADLINE_SEC) == 0
    assert [row.incident_type for row in captures.rows()] == ["freeze", "blackscreen"]


def memory_bytes(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_stays_flat_over_24_hours_of_stills(captures, pictures, monkeypatch):
    """The stills of a day, one every four seconds, removed ten minutes later; only the clock is made up."""
    now = [1.8e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    config = ca.load_config(captures.config, ("analysis", "notify"), ROOT)
    place = ca.CaptureFolder(captures.folder, "cam1", ca.make_setup(config), ca.threading.Event())
    seen = []
    for number in range(24 * 900):
        now[0] += 4
        path = captures.folder / still_name(now[0])
        path.write_bytes(pictures["black" if number % 900 < 20 else "live"][number % 4])
        os.utime(path, (now[0], now[0]))
        assert place.take_still(path.name, path.stat().st_mtime_ns)
        (captures.folder / still_name(now[0] - 600)).unlink(missing_ok=True)
        if number % 150 == 0:
            place.scan()
            ca.Courier("database", [place], place.stopping).deliver_due(place)
            ca.Courier("evidence", [place], place.stopping).deliver_due(place)
            place.save()
        if number % 900 == 899:
            seen.append(memory_bytes(os.getpid()))
    assert len(place.stills.names) <= 330
    assert (captures.own / "monitor.json").stat().st_size < 60_000
    assert max(seen[2:]) - seen[1] < 10e6, [value // 1_000_000 for value in seen]
    assert [row.incident_type for row in captures.rows()].count("blackscreen") == 24


# --- what outlasts a restart, and what is said of a freeze ---


def test_a_freeze_is_found_by_runs_that_see_one_still_each(captures):
    start = minute_ago(60)
    for second in range(16):
        captures.still(start + second, "live" if second < 3 else "frozen")
        assert captures.once() == 0
    (row,) = captures.rows()
    assert (row.incident_type, row.start_sec, row.metadata["freeze_kind"]) == ("freeze", start + 3, "all")
    assert row.metadata["severity"] == "alarm"


@pytest.mark.slow
def test_a_freeze_that_begins_before_kill_9_starts_where_it_began_although_its_stills_are_gone(captures):
    start = minute_ago(40)
    captures.fill(start, (5, "live"), (3, "frozen"))
    with captures.service() as process:
        until(lambda: (captures.state()["picture"] or {})["since_sec"] == start + 5, "the run is in the state")
        process.kill()
        process.wait()
    for still in captures.folder.glob("capture_*.jpg"):
        still.unlink()
    captures.fill(start + 8, (14, "frozen"))
    with captures.service() as process:
        until(lambda: captures.told() == [("freeze", start + 5, None)], "the incident")
        process.terminate()
        assert process.wait(DEADLINE_SEC) == 0


@pytest.mark.parametrize("damage", [{"first": "?"}, {"first": 5}, {"since_sec": None}, None])
def test_a_damaged_picture_in_the_state_is_as_good_as_none(captures, damage):
    start = minute_ago(60)
    captures.fill(start, (3, "live"), (6, "frozen"))
    assert captures.once() == 0
    state = captures.state()
    state["picture"] = damage and {**state["picture"], **damage}
    (captures.own / "monitor.json").write_text(json.dumps(state))
    captures.fill(start + 9, (20, "frozen"))
    assert captures.once() == 0
    assert [row.incident_type for row in captures.rows()] == ["freeze"]


def test_a_still_picture_under_a_clock_that_ticks_is_a_warning(captures, tmp_path):
    start = minute_ago(60)
    captures.fill(start, (4, "live"))
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=1,trim=end_frame=1,loop=20:1,setpts=N/TB,"
           "drawbox=x=20:y=4:w=6:h=8:c=white:t=fill:enable='eq(mod(n,2),0)'", "-frames:v", "20",
           str(tmp_path / "c%03d.jpg"))  # fmt: skip
    for number, path in enumerate(sorted(tmp_path.glob("c*.jpg"))):
        captures.pictures = {**captures.pictures, "clock": [path.read_bytes()]}
        captures.still(start + 4 + number, "clock")
    assert captures.once() == 0
    (row,) = captures.rows()
    assert row.incident_type == "freeze"
    assert (row.metadata["freeze_kind"], row.metadata["severity"]) == ("picture", "warning")
