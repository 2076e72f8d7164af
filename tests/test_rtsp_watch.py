"""Alerts of `record` and `watch`: a real mail server, real cameras on loopback, recorders that are really killed.

The one stand-in is `systemctl`: an executable of that name on PATH that keeps what it was called with.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from test_rtsp_recorder import A_TENTH, PASSWORD, Site, end, small_disk, until  # noqa: F401

import rtsp_recorder as recorder
from rhombus_logging import Status, load_config, run_lock

pytestmark = pytest.mark.slow  # recorders and mail servers come and go

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$0.calls"
case "$1" in
  show) case "$3" in
    record_camera_Off.service) echo LoadState=loaded; echo UnitFileState=disabled; echo ActiveState=inactive;;
    record_camera_None.service) echo LoadState=not-found; echo UnitFileState=; echo ActiveState=inactive;;
    *) echo LoadState=loaded; echo UnitFileState=enabled; echo ActiveState=failed;;
  esac;;
  restart) case "$2" in
    record_camera_Broken.service) echo "Job for $2 failed, Error 5" >&2; exit 1;;
  esac;;
esac
"""


class Mails:
    """A mail server that keeps what it gets; not listening until it is started."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []  # subject, body
        self.refusing = False
        self.taken = socket.socket()  # bound, but not listening: connections are refused, and nobody else gets the port
        self.taken.bind(("127.0.0.1", 0))
        self.port = int(self.taken.getsockname()[1])
        self.server = Controller(self, hostname="127.0.0.1", port=self.port)

    def start(self) -> None:
        self.taken.close()
        self.server.start()

    async def handle_DATA(self, server, session, envelope) -> str:  # noqa: N802
        if self.refusing:
            return "451 try again later"
        mail = message_from_bytes(envelope.content, policy=policy.default)
        self.got.append((mail["Subject"], mail.get_content().replace("\r\n", "\n")))
        return "250 OK"

    @property
    def subjects(self) -> list[str]:
        return [subject for subject, _ in self.got]

    def settings(self, **more) -> dict:
        return {"smtp_host": "127.0.0.1", "smtp_port": self.port, "alert_to": ["ops@example.org"], **more}


@pytest.fixture
def mails():
    made = Mails()
    made.start()
    yield made
    made.server.stop()


@dataclass
class Watched(Site):
    """A site whose config has more sections, and whose PATH has our systemctl."""

    more: dict = field(default_factory=dict)

    def config(self) -> Path:
        file = super().config()
        file.write_text(json.dumps({**json.loads(file.read_text()), **self.more}))
        return file

    @property
    def environment(self) -> dict[str, str]:
        folder = self.folder / "bin"
        if not folder.exists():
            folder.mkdir()
            (folder / "systemctl").write_text(SYSTEMCTL)
            (folder / "systemctl").chmod(0o755)
        return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    def calls(self, word: str = "restart") -> list[str]:
        kept = self.folder / "bin" / "systemctl.calls"
        lines = kept.read_text().splitlines() if kept.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(word)]

    def watch(self, *arguments: str, config: bool = True) -> subprocess.CompletedProcess:
        self.footage.mkdir(exist_ok=True)
        command = self.command("watch", *arguments)
        if not config:
            command[command.index("--config") + 1] = os.devnull
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=self.environment)

    def box(self, root: Path | None = None) -> dict:
        return recorder.read_state((root or self.footage) / ".rtsp_recorder" / "alerts.json")

    def waiting(self) -> set[str]:
        return {one["name"] for one in self.box().get("waiting", [])}

    def folder_of(self, name: str, *ages_sec: float) -> Path:
        """Files as an older recorder leaves them."""
        folder = self.footage / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, age in enumerate(ages_sec):
            file = folder / f"{number}.mkv"
            file.write_bytes(b"x")
            os.utime(file, (time.time() - age,) * 2)
        return folder


@pytest.fixture
def site(tmp_path):
    made = Watched(tmp_path)
    yield made
    made.close()


# --- what is told, and when ---


def told(name: str, word: str = "Auto-restart", tag: str = "CAMERA", at: float = 1e9) -> recorder.Told:
    return recorder.Told(tag, word, name, f"{name} …", at)


def test_the_subject_names_the_cameras_as_older_mails_did():
    assert recorder.subject_of([told("ROST2")]) == "[CAMERA] Auto-restart ROST2"
    assert recorder.subject_of([told("A"), told("B"), told("C", "Recovered")]) == (
        "[CAMERA] Auto-restart A, B; Recovered C")  # fmt: skip
    assert recorder.subject_of([told("A"), told("A", "Recovered")]) == "[CAMERA] Recovered A"
    assert recorder.subject_of([told(f"C{n}") for n in range(32)]) == "[CAMERA] Auto-restart 32 cameras"


def beats(pulse: recorder.Pulse, states: str, step_sec: float = 1.0, urgent: bool = False) -> list[int]:
    """Feed a second for each letter, r for recording; answers in which seconds something was to be told."""
    found, since = [], 0.0
    for second, letter in enumerate(states, 1):
        if second == 1 or letter != states[second - 2]:
            since = second - 1
        if pulse.beat(recording=letter == "r", since_sec=since, now_sec=float(second), step_sec=step_sec,
                      urgent=urgent and letter != "r"):  # fmt: skip
            found.append(second)
    return found


@pytest.mark.parametrize(
    "states, told_at",
    [
        ("r" * 20, []),
        ("rrrrr" + "d" * 20, [10]),  # down for 5 s
        ("d" * 10 + "r" * 10, [5, 15]),  # well for 5 s
        ("d" * 4 + "r" * 20, []),  # short enough
        ("ddddrr" * 10, [7]),  # it comes and goes: one message
        ("ddddrr" * 5 + "r" * 10, [7, 33]),
        ("dddd" + "r" * 6 + "dddd" + "r" * 6, []),  # two short ones that have nothing to do with each other
    ],
)  # fmt: skip
def test_a_camera_is_told_down_after_a_while_and_well_after_a_while(states, told_at):
    assert beats(recorder.Pulse(5, 0, None), states) == told_at


def test_a_refused_password_is_told_at_once_also_of_a_camera_that_is_down_already_and_only_once():
    assert beats(recorder.Pulse(60, 20, None), "rrdddddd", urgent=True) == [3]
    assert beats(recorder.Pulse(60, 20, {"since": 0, "cause": "refused"}), "ddddd", urgent=True) == [1]
    assert beats(recorder.Pulse(60, 20, {"since": 0, "cause": "unauthorised", "urgent": True}), "dd", urgent=True) == []


def test_what_an_earlier_process_told_is_not_told_again_but_its_end_is():
    pulse = recorder.Pulse(5, 0, {"since": 77.0, "cause": "refused"})
    assert beats(pulse, "d" * 20 + "r" * 9) == [25]
    assert pulse.since == 77.0


def test_a_thread_that_was_held_up_or_a_clock_that_jumped_makes_no_camera_down():
    assert not recorder.Pulse(60, 20, None).beat(recording=False, since_sec=99, now_sec=100, step_sec=500, urgent=False)
    assert not recorder.Pulse(60, 20, None).beat(recording=False, since_sec=0, now_sec=9e5, step_sec=1, urgent=False)


def settings(**more) -> dict:
    return {**load_config(Path(os.devnull), ("notify",), Path())["notify"], **more}


def test_a_subject_with_a_long_path_arrives_as_it_is(tmp_path, mails):
    outbox = recorder.Outbox(tmp_path, settings(**mails.settings()))
    for length in (30, 55, 60, 100):
        name = "/srv/" + "x" * length
        outbox.tell(f"disk {name}", {"low": True}, told(name, "Low space", "DISK"))
        outbox.send(at_once=True)
        assert mails.subjects[-1] == f"[DISK] Low space {name}"


def test_each_channel_gets_a_message_once_though_another_one_fails(tmp_path, mails):
    posts, answers = [], [500, 200]

    class Channel(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answers[min(len(posts), 2) - 1])
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Channel) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"json://someone:p4ssw0rd@127.0.0.1:{server.server_port}/"
        both = recorder.Outbox(tmp_path, settings(**mails.settings(urls=[url])))
        assert both.tell("camera A", {"since": 1.0}, told("A"))
        both.send(at_once=True)
        assert (len(mails.got), len(posts)) == (1, 1)
        again = recorder.Outbox(tmp_path, settings(**mails.settings(urls=[url])))  # another process
        again.send(at_once=True)
        again.send(at_once=True)
        server.shutdown()
    assert (len(mails.got), len(posts)) == (1, 2)
    assert posts[1]["title"] == "[CAMERA] Auto-restart A"
    assert "p4ssw0rd" not in (tmp_path / ".rtsp_recorder" / "alerts.json").read_text()


def test_a_mail_server_that_is_away_is_asked_less_and_less_often_and_nothing_is_lost_or_doubled(
        tmp_path, mails, monkeypatch, caplog):  # fmt: skip
    now = [1e9]
    monkeypatch.setattr(recorder.time, "time", lambda: now[0])
    outbox = recorder.Outbox(tmp_path, settings(**mails.settings()))
    mails.refusing = True
    outbox.tell("camera A", {"since": 1.0}, told("A", at=1e9))
    outbox.tell("camera A", {"since": 1.0}, told("A", at=1e9))  # the same is told once
    tried = []
    for second in range(1100):
        now[0] = 1e9 + second
        if second == 1000:
            mails.refusing = False
            outbox.tell("camera A", None, told("A", "Recovered", at=now[0]))
        before = outbox.read()["tries"]
        outbox.send(at_once=False)
        tried += [second] * (outbox.read()["tries"] != before)
    assert tried == [3, 5, 9, 17, 33, 65, 129, 257, 513, 1025]
    assert mails.subjects == ["[CAMERA] Recovered A"]
    assert mails.got[0][1].count("A …") == 2, "that it was down is told, too"
    assert caplog.text.count("alert not sent") == 1
    assert recorder.Outbox(tmp_path, settings(**mails.settings())).read()["waiting"] == []


def test_recorders_in_processes_of_their_own_send_one_mail_together(tmp_path, mails):
    one, other = (recorder.Outbox(tmp_path, settings(**mails.settings())) for _ in range(2))
    now = time.time()
    assert one.tell("camera A", {"since": 1.0}, told("A", at=now))
    assert other.tell("camera B", {"since": 1.0}, told("B", at=now))
    with one.held() as ours:
        assert ours and not other.tell("camera C", {"since": 1.0}, told("C", at=now)), "asked again a second later"
    threads = [threading.Thread(target=box.send, kwargs={"at_once": True}) for box in (one, other) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mails.subjects == ["[CAMERA] Auto-restart A, B"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"told": 3, "waiting": 4}', '{"waiting": [3, {}, {"at": 1}]}'])
def test_a_damaged_outbox_does_no_harm(tmp_path, mails, text):
    (tmp_path / ".rtsp_recorder").mkdir()
    (tmp_path / ".rtsp_recorder" / "alerts.json").write_text(text)
    outbox = recorder.Outbox(tmp_path, settings(**mails.settings()))
    outbox.tell("camera A", {"since": 1.0}, told("A"))
    outbox.send(at_once=True)
    assert mails.subjects == ["[CAMERA] Auto-restart A"]


def test_a_disk_that_cannot_be_written_delays_no_alert(tmp_path, mails, monkeypatch):
    outbox = recorder.Outbox(tmp_path, settings(**mails.settings()))
    monkeypatch.setattr(recorder, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
    for _ in range(3):
        outbox.tell("disk /x", {"low": True}, told("/x", "Low space", "DISK"))
        outbox.send(at_once=True)
    assert mails.subjects == ["[DISK] Low space /x"]


# --- record ---


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Two cameras fail at once while the mail server is away, the recorder is killed, watch finds it, all is mended."""
    site, mails = Watched(tmp_path_factory.mktemp("night")), Mails()
    site.add("A"), site.add("B"), site.add("Locked", user="user", password=PASSWORD)
    site.entries[2]["rtsp_url"] = site.cameras["Locked"].url.replace("p%40", "wrong")
    site.more = {"notify": mails.settings(after=2), "retention": {"min_free_bytes": 10**15}}
    site.notes = {}
    try:
        first = site.start()
        site.wait_for("recording", "A", "B")
        site.wait_for("down", "Locked")
        site.cameras["A"].unplug(), site.cameras["B"].unplug()
        until(lambda: len(site.waiting()) == 4, "three cameras and a disk are to be told")
        until(lambda: "alert not sent" in site.log(), "tried in vain")
        mails.start()
        until(lambda: site.waiting() == set(), "told by mail")  # a kill before this is noted would double one
        first.kill()
        first.wait()
        time.sleep(recorder.FRESH_SEC + 0.5)
        site.notes["killed"] = [site.watch(), site.watch()]
        site.more["retention"] = {"min_free_bytes": 1}
        second = site.start()
        until(lambda: site.state("A").get("pid") == second.pid, "taken over")
        site.cameras["A"].plug(), site.cameras["B"].plug()
        site.wait_for("recording", "A", "B")
        until(lambda: any("Recovered" in subject for subject in mails.subjects), "recovery told")
        site.notes["mended"] = site.watch("--json")
        site.notes["end"] = end(second)
        site.mails = mails
        yield site
    finally:
        site.close()
        mails.server.stop()


def bodies(site, subject: str) -> list[str]:
    return [body for one, body in site.mails.got if one == subject]


def test_cameras_that_fail_at_once_are_one_mail_that_waited_for_the_mail_server(night):
    subject, body = next(mail for mail in night.mails.got if mail[0].startswith("[CAMERA]"))
    assert subject in ("[CAMERA] Auto-restart Locked, A, B", "[CAMERA] Auto-restart Locked, B, A")
    for name, cause in (("A", "refused"), ("B", "refused"), ("Locked", "unauthorised")):
        assert re.search(rf"{name} idle for \d+ s → connecting again until it records; cause: {cause} \(", body)
    assert re.search(rf"\nhost: {re.escape(socket.gethostname())}\ntime: \d{{4}}-\d\d-\d\d ", body)


def test_a_full_disk_is_a_mail_of_its_own_and_one_line_in_the_log_and_its_end_is_told(night):
    low, well = (bodies(night, f"[DISK] {word} {night.footage}") for word in ("Low space", "Well again"))
    assert len(low) == 1 and "MB free; retention.min_free_bytes is 1000000000 MB" in low[0]
    assert len(well) == 1
    assert len(re.findall("ERROR .* MB free; ret", night.log())) == 1


def test_recovery_tells_what_was_lost_although_the_recorder_was_killed_meanwhile(night):
    (body,) = [body for subject, body in night.mails.got if "Recovered" in subject and "records again since" in body]
    for name in ("A", "B"):
        (seconds,) = re.findall(rf"{name} records again since .*: ([\d.]+) s were lost \(", body)
        assert float(seconds) == pytest.approx(night.lost_sec(name), abs=1.5)
    assert body.count("(refused)") == 2


def test_a_killed_recorder_is_found_its_units_restarted_and_told_once(night):
    first, second = night.notes["killed"]
    assert (first.returncode, second.returncode) == (Status.PARTIAL, Status.PARTIAL)
    units = [f"record_camera_{name}.service" for name in ("A", "B", "Locked")]
    assert sorted(night.calls()) == sorted(units * 2)
    for line, name in zip(first.stdout.splitlines(), ("A", "B", "Locked"), strict=False):
        done = rf"idle for \d+ s \(crashed\); restarting record_camera_{name}\.service"
        assert re.fullmatch(rf"{name} +not running +{done}", line)
    (mail,) = [body for subject, body in night.mails.got if "restarting record_camera" in body]
    assert re.search(r"A idle for \d+ s → restarting record_camera_A\.service; cause: not running \(crashed\)", mail)


def test_when_the_recorder_runs_again_watch_tells_it_and_leaves_the_cameras_to_it(night):
    done = night.notes["mended"]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["name"]: line["state"] for line in lines[:-1]} == {
        "A": "recording", "B": "recording", "Locked": "down", str(night.footage): "ok"}  # fmt: skip
    assert lines[-1] == {"summary": {"cameras": 3, "well": False, "down": ["Locked"]}}
    assert done.returncode == Status.PARTIAL
    assert bodies(night, "[CAMERA] Recovered A, B")[-1].count("records again: ") == 2


def test_no_change_of_state_is_told_twice_over_a_killed_recorder(night):
    counts = {subject: night.mails.subjects.count(subject) for subject in night.mails.subjects}
    text = "\n".join(body for _, body in night.mails.got)
    assert text.count("Locked idle") == 2, "once by record, once by watch"
    assert counts[f"[DISK] Low space {night.footage}"] == 1
    assert night.box()["waiting"] == []


def test_sigterm_ends_a_recorder_with_alerts_as_fast_as_ever(night):
    status, seconds = night.notes["end"]
    assert status == 0 and seconds < 5


def test_no_password_is_in_any_mail_or_in_the_outbox(night):
    texts = [*map("\n".join, night.mails.got), json.dumps(night.box()), night.log()]
    texts += [file.read_text() for file in (night.footage / ".rtsp_recorder").glob("*.json")]
    words = (PASSWORD, "p%40%3A", "wrong%3A", "user:")
    assert [word for word in words for text in texts if word in text] == []
    assert len(night.mails.got) >= 6


def test_a_mail_server_that_hangs_neither_delays_recording_nor_the_end(site):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        site.add("Gate"), site.add("Dead", plugged=False)
        site.more = {"notify": {"smtp_host": "127.0.0.1", "smtp_port": silent.getsockname()[1],
                                "alert_to": ["a@example.org"], "after": 1}}  # fmt: skip
        process = site.start()
        connection, _ = silent.accept()
        with connection:
            site.wait_for("recording", "Gate")
            last = site.state("Gate")["last_frame_at"]
            until(lambda: site.state("Gate")["last_frame_at"] > last + 1, "goes on recording")
            status, seconds = end(process)
    assert status == 0 and seconds < 5
    assert site.lost_sec("Gate") == 0
    assert site.waiting() == {"Dead"}


def test_without_anybody_to_tell_nothing_is_kept(tmp_path):
    outbox = recorder.Outbox(tmp_path, settings(smtp_host="127.0.0.1"))
    assert outbox.tell("camera A", {"since": 1.0}, told("A"))
    outbox.send(at_once=True)
    assert list(tmp_path.iterdir()) == []


# --- watch ---

NOW = 1e9
TARGET = recorder.Target("A", Path("/x"), 100, 20)


def state(word: str, **more) -> dict:
    return {"state": word, "updated_at": NOW - 1, "since": NOW - 50, "last_frame_at": NOW - 1, **more}


@pytest.mark.parametrize(
    "content, alive, newest, found, well, dead",
    [
        ({}, True, None, "starting", True, False),
        ({}, False, None, "no files", False, True),
        ({}, False, NOW - 199, "files", True, False),
        ({}, False, NOW - 201, "idle", False, True),
        (state("recording"), True, None, "recording", True, False),
        (state("recording"), False, None, "recording", True, False),  # a lock that cannot be seen, a fresh state
        (state("recording", updated_at=NOW - 4), False, None, "not running", False, True),
        (state("recording", updated_at=NOW - 29), True, None, "recording", True, False),
        (state("recording", updated_at=NOW - 31), True, None, "stale", False, True),
        (state("recording", updated_at=NOW + 900), True, None, "recording", True, False),  # the clock was set back
        (state("recording", last_frame_at=NOW - 51), True, None, "no video", False, True),
        (state("recording", recording_since=NOW - 229), True, None, "recording", True, False),
        (state("recording", recording_since=NOW - 231), True, None, "no files", False, True),
        (state("down", cause="stall"), True, None, "down", True, False),  # for 50 s, notify.after is 60
        (state("down", cause="stall", since=NOW - 61), True, None, "down", False, False),
        (state("starting"), True, None, "starting", True, False),
        (state("stopped", updated_at=NOW - 9), False, NOW, "not running", False, True),
    ],
)  # fmt: skip
def test_what_is_dead_is_what_its_recorder_cannot_tell_itself(content, alive, newest, found, well, dead):
    finding = recorder.judge(TARGET, content, alive=alive, newest_sec=newest, multiplier=2, after_sec=60, now_sec=NOW)
    assert (finding.state, finding.well, finding.dead) == (found, well, dead)


def test_folders_of_an_older_recorder_are_watched_without_a_config(site):
    site.folder_of("Fresh", 1000, 5), site.folder_of("Idle", 1210), site.folder_of("Empty"), site.folder_of(".hidden")
    (site.footage / "Empty" / "x.mkv.part").touch()
    done = site.watch("--recording_dir", str(site.footage), "--segment_time", "600", config=False)
    assert done.returncode == Status.PARTIAL
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert re.match(r"no files +never had a file; restarting record_camera_Empty\.service", lines["Empty"])
    assert re.match(r"idle +idle for 12\d\d s \(no new file\); restarting record_camera_Idle.service", lines["Idle"])
    assert lines["Fresh"].startswith("files ") and len(lines) == 4
    assert sorted(site.calls()) == ["record_camera_Empty.service", "record_camera_Idle.service"]
    assert re.search("ERROR Idle: idle: ", done.stderr) and "Traceback" not in done.stderr
    wide = ["--recording_dir", str(site.footage), "--segment_time", "600", "--multiplier", "3"]
    assert site.watch(*wide, "Idle", "Fresh", config=False).returncode == 0


def test_a_unit_is_restarted_three_times_in_an_hour_and_that_it_is_given_up_is_told_too(site, mails):
    site.folder_of("Idle", 9900)
    site.more = {"notify": mails.settings()}
    call = ["--recording_dir", str(site.footage), "--segment_time", "600"]
    last = [site.watch(*call) for _ in range(5)][-1]
    assert site.calls() == ["record_camera_Idle.service"] * 3
    assert "not restarted again: record_camera_Idle.service had 3 restarts within the hour" in last.stdout
    assert mails.subjects == ["[CAMERA] Auto-restart Idle", "[CAMERA] Down Idle"]
    assert re.match(r"Idle idle for 99\d\d s → restarting record_camera_Idle.service; cause: idle", mails.got[0][1])
    assert "not restarted again" in mails.got[1][1]
    site.folder_of("Idle", 1)
    assert site.watch(*call).returncode == 0
    assert mails.subjects[2:] == ["[CAMERA] Recovered Idle"]
    assert re.match(r"Idle records again: no new file for \d+ s", mails.got[2][1])


def test_only_a_unit_that_somebody_wants_is_restarted_and_a_failure_says_why(site, mails):
    for name in ("Off", "None", "Broken"):
        site.folder_of(name, 99999)
    site.more = {"notify": mails.settings()}
    done = site.watch("--recording_dir", str(site.footage))
    assert site.calls() == ["record_camera_Broken.service"]
    assert "systemd has no record_camera_None.service that is enabled or active" in done.stdout
    assert "not restarted: record_camera_Broken.service: Job for record_camera_Broken.service failed" in done.stdout
    assert mails.subjects == ["[CAMERA] Down Broken, None, Off"]


def test_a_dry_run_touches_nothing_and_tells_nobody(site, mails):
    site.folder_of("Idle", 9900)
    site.more = {"notify": mails.settings()}
    done = site.watch("--recording_dir", str(site.footage), "--dry_run")
    assert done.returncode == Status.PARTIAL and "would restart record_camera_Idle.service" in done.stdout
    assert (site.calls(), mails.got) == ([], [])
    assert sorted(path.name for path in site.footage.iterdir()) == ["Idle"]


def test_watch_needs_no_password_of_a_camera_but_that_of_the_mail_server(site):
    site.entries.append({"name": "Gate", "rtsp_url": "rtsp://u:${NOT_SET_HERE}@192.0.2.7/x"})
    done = site.watch("--quiet")
    assert (done.returncode, done.stdout) == (Status.PARTIAL, "")
    assert re.search("ERROR Gate: no files: never had a file; restarting", done.stderr)
    site.more = {"notify": {"smtp_pass": "${NOT_SET_HERE}"}}
    done = site.watch()
    assert done.returncode == Status.USAGE and "notify.smtp_pass" in done.stderr


def test_a_disk_over_85_percent_is_told_once_and_told_when_it_is_well_again(site, mails):
    site.folder_of("Fresh", 5)
    call = ["--recording_dir", str(site.footage), "--segment_time", "600", "--disk_percent"]
    site.more = {"notify": mails.settings()}
    done = [site.watch(*call, limit) for limit in ("0.001", "0.001", "100")]
    assert [one.returncode for one in done] == [1, 1, 0]
    assert "over 0.001 %" in done[0].stdout
    assert mails.subjects == [f"[DISK] Nearly full {site.footage}", f"[DISK] Well again {site.footage}"]
    assert "the limit is 0.001 % (watch.disk_percent)" in mails.got[0][1]
    site.more["retention"] = {"min_free_bytes": 10**15}
    assert site.watch(*call, "100").returncode == 1
    assert mails.subjects[2] == f"[DISK] Low space {site.footage}"


def test_the_dead_mans_switch_is_told_only_when_all_is_well(site):
    asked = []

    class Switch(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    call = ["--recording_dir", str(site.footage), "--segment_time", "600"]
    site.folder_of("Gate", 5)
    with HTTPServer(("127.0.0.1", 0), Switch) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site.more = {"notify": {"ping_url": f"http://127.0.0.1:{server.server_port}/alive"}}
        done = [site.watch(*call), site.watch(*call, "--dry_run"), site.watch(*call, "--disk_percent", "0.001")]
        server.shutdown()
    assert [one.returncode for one in done] == [0, 0, 1]
    assert asked == ["/alive"]


@pytest.mark.parametrize(
    "arguments, storage, status, said",
    [
        (["--recording_dir", "/not/there"], {}, Status.CANNOT_START, "there is no such folder"),
        ([], {"local_path": "/not/there"}, Status.CANNOT_START, "/not/there: there is no such folder"),
        (["Nobody"], {}, Status.USAGE, "no such camera in the config"),
        (["--multiplier", "0"], {}, Status.USAGE, "multiplier has to be at least 1"),
        (["--recording_dir", "/", "../x"], {}, Status.USAGE, "a name that none can have"),
        (["--segment_time", "-5", "--recording_dir", "/"], {}, Status.USAGE, "at least 1"),
    ],
)  # fmt: skip
def test_what_watch_cannot_do_ends_with_a_sentence(site, arguments, storage, status, said):
    site.entries.append({"name": "Gate", "rtsp_url": "rtsp://192.0.2.7/x"})
    site.footage.mkdir()
    site.storage |= storage
    done = subprocess.run(site.command("watch", *arguments), capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_disk_that_is_full_to_the_last_byte_is_told_once_and_not_every_five_minutes(small_disk, site, mails):  # noqa: F811
    site.storage["local_path"] = str(small_disk)
    site.folder_of("Fresh", 5)
    site.more = {"notify": mails.settings()}
    call = ["--recording_dir", str(small_disk), "--segment_time", "600"]
    assert site.watch(*call).returncode == 0
    with suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    done = [site.watch(*call) for _ in range(3)]
    assert [one.returncode for one in done] == [1, 1, 1] and "Traceback" not in done[0].stderr
    assert "100 % used, 0 MB free; over 85 %" in done[2].stdout
    os.truncate(small_disk / "ballast", 0)
    assert site.watch(*call).returncode == 0
    assert mails.subjects == [f"[DISK] Nearly full {small_disk}", f"[DISK] Well again {small_disk}"]


def test_two_watches_never_restart_the_same(site):
    site.folder_of("Idle", 9900)
    with run_lock(site.footage / ".rtsp_recorder" / "watch.lock", "watch"):
        done = site.watch("--recording_dir", str(site.footage))
    assert done.returncode == Status.BUSY and site.calls() == []


def test_looking_at_a_lock_never_takes_it_and_tells_a_dead_process_from_a_living_one(tmp_path):
    lock = tmp_path / "A"
    assert not recorder.is_held(lock)
    with run_lock(lock, "A"):
        assert recorder.is_held(lock)
    dead = subprocess.Popen(["true"])
    dead.wait()
    lock.write_text(str(dead.pid))
    assert not recorder.is_held(lock)


def test_what_root_makes_belongs_to_the_owner_of_the_recordings(site, mails):
    if os.geteuid():
        pytest.skip("needs root: it is about what root leaves behind")
    site.folder_of("Idle", 9900)
    os.chown(site.footage, 4321, 4321)
    site.more = {"notify": mails.settings()}
    site.watch("--recording_dir", str(site.footage))
    own = site.footage / ".rtsp_recorder"
    assert {file.name for file in own.iterdir()} == {
        "alerts.json", "alerts.lock", "alerts.spare", "watch.json", "watch.lock"}  # fmt: skip
    assert {path.stat().st_uid for path in (own, *own.iterdir())} == {4321}


def test_a_recorder_that_hangs_is_found_by_its_stale_state(site):
    site.add("Gate")
    process = site.start()
    site.wait_for("recording")
    assert site.watch().returncode == 0
    process.send_signal(signal.SIGSTOP)
    file = site.footage / ".rtsp_recorder" / "state" / "Gate.json"
    old = {**site.state("Gate"), "updated_at": time.time() - 40}  # what half a minute of waiting would show
    file.write_text(json.dumps(old))
    done = site.watch()
    process.send_signal(signal.SIGCONT)
    assert done.returncode == 1 and re.search(r"Gate +stale ", done.stdout)
    assert site.calls() == ["record_camera_Gate.service"]
    assert A_TENTH["stall"] < recorder.STATE_STALE_SEC
