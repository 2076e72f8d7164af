"""rhombus_logging.py: how a run is configured, logged and ended; tested by itself and through whole runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

sys.path.insert(0, str(Path(__file__).parent))
from copy_footage_helpers import NOW, Clock, Cloud, Clouds, silent_camera
from rhombus_simulator import Alert, Fault, ruuid

import rhombus_logging as rl

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Clouds]:
    with Clouds(tmp_path, monkeypatch, capsys) as found:
        yield found


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    rl.start_logging(argparse.Namespace(quiet=False, debug=True, log_file=None))
    yield
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler.formatter, rl.MaskingFormatter)]


# --- log ---


def test_a_hidden_secret_is_masked_in_messages_arguments_and_tracebacks(
    logged: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rl.hide_secret("s3cr+t/word")
    log = logging.getLogger("anything")
    log.info("key s3cr+t/word, in an address s3cr%%2Bt%%2Fword, as an argument %s", {"a": ["s3cr+t/word"]})
    try:
        raise ValueError("password s3cr+t/word")
    except ValueError:
        log.exception("it failed")
    err = capsys.readouterr().err
    assert "s3cr" not in err and err.count("***") == 5 and "ValueError" in err


@pytest.mark.parametrize(
    "text",
    [
        "GET /x?x-auth-ft=SECRETvalue&a=1",
        "{'x-auth-apikey': 'SECRETvalue'}",
        '"x-auth-access-token": "SECRETvalue"',
        "Cookie: RSESSIONID=RFT:SECRETvalue; a=b",
        "rtsp://user:SECRETvalue@10.0.0.1/stream",
        "X-Auth-Ft: SECRETvalue",
    ],
)
def test_what_looks_like_a_secret_is_masked_even_if_nobody_named_it(
    logged: None, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    logging.getLogger("urllib3").warning(text)
    err = capsys.readouterr().err
    assert "SECRET" not in err and "***" in err
    assert "SECRET" not in rl.mask(text)


def test_a_log_line_has_local_time_with_its_offset(logged: None, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("x").info("hello")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} INFO MainThread hello\n", capsys.readouterr().err)


def test_log_file_gets_the_log_also_when_stderr_is_quiet_and_after_rotation(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    file = cloud.work / "run.log"
    assert cloud.clip(4, "--quiet", "--log_file", file).err == ""
    assert "1 done" in file.read_text()
    file.rename(cloud.work / "run.log.1")
    cloud.clip(4, "--log_file", file, start=cloud.start + 60)
    assert "1 done" in file.read_text()


def test_a_log_file_that_cannot_be_written_is_refused(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True)
    run = cloud.finish(cloud.spawn("--log_file", "/proc/nowhere/log"), ok=2)
    assert run.err.count("\n") == 1 and " ERROR --log_file /proc/nowhere/log: " in run.err, "people grep for ERROR"


def test_the_word_error_is_only_in_error_lines(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(lan=False))
    cloud.sim.add_fault(Fault("m4v", "status", times=2))
    run = cloud.clip(10, "--debug")
    ours = [line for line in run.err.splitlines() if " ERROR " not in line and "HTTP/1.1" not in line]
    assert not [line for line in ours if re.search("error", line, re.IGNORECASE) and " DEBUG " not in line]


# --- config ---


def load(tmp_path: Path, text: str, *sections: str) -> dict[str, Any]:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    file.chmod(0o600)
    return rl.load_config(None, sections or ("rhombus", "notify"), tmp_path)


def test_without_a_config_file_every_key_has_its_default(tmp_path: Path) -> None:
    config = rl.load_config(None, ("rhombus", "notify"), tmp_path)
    assert config["rhombus"]["workers"] == 4 and config["notify"]["smtp_port"] == 587
    assert set(config["rhombus"]) == set(rl.CONFIG_KEYS["rhombus"])


def test_an_empty_config_file_and_empty_sections_are_fine(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "rhombus:\n", "rhombus: {}\nnotify:\n", "rhombus:\n  workers:\n"):
        assert load(tmp_path, text)["rhombus"]["workers"] == 4


@pytest.mark.parametrize(("text", "named"), [
    ("rhombus: {api_key: '${MY_KEY}'}", ""), ("cameras: [{name: a, rtsp_url: 'rtsp://192.0.2.7/stream'}]", ""),
    ("cameras: [{name: a, rtsp_url: 'rtsp://u:secret@192.0.2.7/stream'}]", "cameras.rtsp_url"),
    ("recording: {defaults: {password: secret}}", "recording.defaults.password"),
    ("rhombus: {api_key: abc}", "rhombus.api_key"),
])  # fmt: skip
def test_only_secrets_that_stand_in_the_file_itself_must_not_be_read_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, named: str
) -> None:
    monkeypatch.setenv("MY_KEY", "from-outside")
    monkeypatch.setenv("INVOCATION_ID", "systemd sets this")
    file = tmp_path / "config.yaml"
    file.write_text(text)
    file.chmod(0o644)
    try:
        rl.load_config(file, ("rhombus", "cameras", "recording"), tmp_path)
    except rl.UsageError as problem:
        assert named and f"others can read {named};" in str(problem) and "secret@" not in str(problem)
    else:
        assert not named


def test_names_in_a_value_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_FOLDER", "/data")
    assert load(tmp_path, "rhombus: {output_dir: '${MY_FOLDER}/clips'}")["rhombus"]["output_dir"] == "/data/clips"


def test_the_environment_stands_above_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHOMBUS_API_KEY", "from-environment")
    monkeypatch.setenv("ALERT_TO", "a@example.org, b@example.org")
    monkeypatch.setenv("SMTP_PORT", "2525")
    config = load(tmp_path, "rhombus: {api_key: from-file}\nnotify: {smtp_port: 1}")
    assert config["rhombus"]["api_key"] == "from-environment"
    assert config["notify"]["alert_to"] == ["a@example.org", "b@example.org"] and config["notify"]["smtp_port"] == 2525


def test_a_number_in_the_environment_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_PORT", "high")
    with pytest.raises(rl.UsageError, match="SMTP_PORT"):
        load(tmp_path, "")


def test_sections_of_other_programs_are_checked_for_names_but_not_for_values(tmp_path: Path) -> None:
    load(tmp_path, "s3: {bucket: YOUR_BUCKET, endpoint: '${NOT_SET}'}\ncameras: [{name: a, rtsp_url: x}]\n")
    with pytest.raises(rl.UsageError, match=r"s3\.buckett"):
        load(tmp_path, "s3: {buckett: x}")
    with pytest.raises(rl.UsageError, match=r"recording\.defaults\.usr"):
        load(tmp_path, "recording: {defaults: {usr: x}}")
    with pytest.raises(rl.UsageError, match=r"YOUR_BUCKET"):
        load(tmp_path, "s3: {bucket: YOUR_BUCKET}", "s3")


def test_a_command_that_needs_no_secrets_starts_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs `gaps` need not have the variables of the cameras' passwords."""
    monkeypatch.setenv("SMTP_PASS", "hunter2")
    text = """cameras: [{name: a, rtsp_url: 'rtsp://u:${NOT_SET}@h/1', output_dir: /x}, {name: b, password: YOUR_WORD}]
recording: {defaults: {user: u, password: '${NOT_SET}'}, segment_duration: 60}
notify: {urls: ['${NOT_SET}'], smtp_pass: hunter2}"""
    file = tmp_path / "config.yaml"
    file.write_text(text)
    file.chmod(0o600)
    sections = ("cameras", "recording", "notify")
    config = rl.load_config(None, sections, tmp_path, secrets=False)
    assert config["cameras"] == [{"name": "a", "rtsp_url": None, "output_dir": "/x"}, {"name": "b", "password": None}]
    assert config["recording"]["defaults"] == {"user": "u", "password": None}
    assert (config["recording"]["segment_duration"], config["notify"]["urls"], config["notify"]["smtp_pass"]) == (
        60, [], None)  # fmt: skip
    with pytest.raises(rl.UsageError, match="NOT_SET.*NOT_SET"):
        rl.load_config(None, sections, tmp_path)
    file.write_text(text.replace("output_dir: /x", "output_dir: '${NOT_SET}'"))
    with pytest.raises(rl.UsageError, match=r"cameras\[a\]\.output_dir"):
        rl.load_config(None, sections, tmp_path, secrets=False)


def test_a_secret_of_a_wrong_type_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(rl.UsageError) as refused:
        load(tmp_path, "notify: {smtp_pass: {a: hunter2}}\nrhombus: {api_key: [hunter2]}")
    assert "hunter2" not in str(refused.value) and "notify.smtp_pass" in str(refused.value)


def test_one_text_stands_for_a_list_of_one(tmp_path: Path) -> None:
    assert load(tmp_path, "notify: {alert_to: me@example.org}")["notify"]["alert_to"] == ["me@example.org"]


@pytest.mark.parametrize(("text", "line"), [
    ("cameras: [{name: a}]\ncameras: [{name: b}]", 2), ("rhombus:\n  workers: 4\nnotify:\nrhombus:\n  lag: 5", 4),
    ("notify: {}\nrhombus:\n  workers: 4\n  lag: 5\n  workers: 8", 5),
])  # fmt: skip
def test_what_is_given_twice_is_refused_because_one_of_the_two_would_be_forgotten(
    tmp_path: Path, text: str, line: int
) -> None:
    """A pasted second `cameras:` would else take the cameras of the first away, without a word."""
    with pytest.raises(rl.UsageError, match=f"line {line}: .* is given twice"):
        load(tmp_path, text)


def test_a_password_of_digits_is_taken_as_it_is_written(tmp_path: Path) -> None:
    """YAML 1.1 reads 0123 as 83 and 12:30 as 750."""
    text = "recording: {segment_duration: 1_800, defaults: {password: 0123, user: '12', rtsp_path: 12:30}}"
    recording = load(tmp_path, text, "recording")["recording"]
    assert recording["segment_duration"] == 1800
    assert recording["defaults"] == {"password": "0123", "user": "12", "rtsp_path": "12:30"}


def test_a_number_or_a_yes_may_come_from_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "2525")
    monkeypatch.setenv("WAN", "true")
    monkeypatch.setenv("NESTED", "${PORT}")
    config = load(tmp_path, "notify: {smtp_port: '${PORT}', smtp_host: '${NESTED}'}\nrhombus: {usewan: '${WAN}'}")
    assert (config["notify"]["smtp_port"], config["rhombus"]["usewan"]) == (2525, True)
    assert config["notify"]["smtp_host"] == "${PORT}", "what comes from the environment is a value, not a pattern"
    monkeypatch.setenv("PORT", "high")
    with pytest.raises(rl.UsageError, match="notify.smtp_port: expected a whole number, found 'high'"):
        load(tmp_path, "notify: {smtp_port: '${PORT}'}")


def test_cameras_are_a_list_also_when_there_are_none(tmp_path: Path) -> None:
    for text in ("", "cameras:", "cameras: []"):
        assert load(tmp_path, text, "cameras")["cameras"] == []
    with pytest.raises(rl.UsageError, match="cameras: expected a list"):
        load(tmp_path, "cameras: {name: a, rtsp_url: 'rtsp://h/1'}")


def test_a_mistake_says_which_camera_has_it(tmp_path: Path) -> None:
    text = "cameras: [{name: Yard, enabled: maybe}, {station: Gate, ipp: 192.0.2.8}, Dock, {enabled: 1}]"
    with pytest.raises(rl.UsageError) as refused:
        load(tmp_path, text, "cameras")
    told = str(refused.value).partition(": ")[2].split("; ")
    assert told == ["cameras[Yard].enabled: expected true or false, found 'maybe'",
                    "cameras[Gate].ipp: there is no such key (did you mean ip?)", "cameras[3]: expected a map of keys",
                    "cameras[4].enabled: expected true or false, found 1"]  # fmt: skip


def test_a_mistake_in_an_older_file_is_not_blamed_on_the_config_alone(tmp_path: Path) -> None:
    older = tmp_path / "cameras.json"
    older.write_text('[{"station": "Gate", "ipp": "192.0.2.8"}]')
    with pytest.raises(rl.UsageError, match=r"config.yaml, or what was given over it: cameras\[Gate\].ipp"):
        rl.load_config(None, ("cameras",), tmp_path, rl.read_overlay(older), rl.read_overlay(None))


def test_the_config_file_that_comes_with_the_programs_passes_as_it_is() -> None:
    assert (ROOT / "config.yaml").exists()
    rl.load_config(ROOT / "config.yaml", tuple(rl.CONFIG_KEYS), ROOT)


# --- files ---


def test_a_part_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    with rl.part_file(target) as part:
        part.write_text("one")
        assert not target.exists() and part.name.endswith(".part")
    assert target.read_text() == "one"
    with pytest.raises(RuntimeError), rl.part_file(target) as part:
        part.write_text("two")
        raise RuntimeError
    assert target.read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_lines_of_programs_side_by_side_never_mix_and_a_torn_line_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"torn": ')
    threads = [
        threading.Thread(
            target=lambda n=n: [rl.append_line(path, json.dumps({"n": n, "x": "y" * 500})) for _ in range(5)]
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, *lines = path.read_text().splitlines()
    assert first == '{"torn": ' and sorted(json.loads(line)["n"] for line in lines) == sorted(list(range(8)) * 5)


def test_write_json_keeps_names_readable(tmp_path: Path) -> None:
    rl.write_json(tmp_path / "x.json", {"name": "Käse 入口"})
    assert "Käse 入口" in (tmp_path / "x.json").read_text(encoding="utf-8")


# --- locks ---


def test_a_lock_is_held_by_one_and_names_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    with (
        rl.run_lock(path, "the job"),
        pytest.raises(rl.Busy, match=f"the job.*{os.getpid()}"),
        rl.run_lock(path, "the job"),
    ):
        pass
    with rl.run_lock(path, "the job"):
        pass


def test_a_lock_is_waited_for_as_long_as_asked(tmp_path: Path) -> None:
    path, released = tmp_path / "lock", []

    def hold() -> None:
        with rl.run_lock(path, "the job"):
            holding.set()
            time.sleep(0.5)
            released.append(time.monotonic())

    holding = threading.Event()
    threading.Thread(target=hold).start()
    holding.wait()
    with rl.run_lock(path, "the job", wait_sec=5):
        assert released


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = f"""import rhombus_logging, pathlib, time
with rhombus_logging.run_lock(pathlib.Path({str(path)!r}), "x"):
    print("held", flush=True)
    time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        with pytest.raises(rl.Busy, match=str(process.pid)), rl.run_lock(path, "x"):
            pass
        process.kill()
        process.wait()
        with rl.run_lock(path, "x"):
            pass


# --- programs ---


def test_a_missing_program_is_named_with_its_use_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(rl.CannotStart, match="no-such-thing was not found; it is needed for tea; buy a kettle"):
        rl.find_program("no-such-thing", "tea", "buy a kettle")
    assert rl.find_program(sys.executable, "x", "y") == sys.executable


# --- times ---


def test_a_span_has_no_side_that_was_not_given_and_an_empty_one_is_a_mistake() -> None:
    """`--since "$FROM"` with nothing in it must not mean everything."""
    given = argparse.Namespace(since=None, until="2026-01-31T12:00:00Z")
    assert rl.parse_span(given, timezone.utc) == (None, 1_769_860_800)
    with pytest.raises(rl.UsageError, match="--since: '' is not a time"):
        rl.parse_span(argparse.Namespace(since="", until=None), timezone.utc)
    for since, until in (("2026-01-31", "2026-01-30"), ("2099-01-01", None)):
        with pytest.raises(rl.UsageError, match="--since is not before --until"):
            rl.parse_span(argparse.Namespace(since=since, until=until), timezone.utc)


@pytest.mark.parametrize("text", ["2026-13-01", "2026-13-01T09:00", "2026-11-31", "05/06/2026", "20.11.2026", "-1"])
def test_a_date_that_is_no_date_or_could_be_two_is_refused_instead_of_guessed(text: str) -> None:
    """May or June, the first of January or a slip: footage of another day would be copied, or the wrong gaps filled."""
    with pytest.raises(rl.UsageError, match=f"--since: '{text}' is not a time"):
        rl.parse_time(text, "--since", timezone.utc, 1_795_161_600.0)


@pytest.mark.parametrize(("text", "ago_sec"), [
    ("now", 0), ("09:30", 22.5 * 3600), ("7am", 3600), ("90m ago", 5400), ("yesterday 08:00", 86400),
    ("2026-11-20 07:00", 3600), ("20261120T0700Z", 3600), ("3 days ago", 3 * 86400),
])  # fmt: skip
def test_words_and_hours_are_understood(text: str, ago_sec: float) -> None:
    now = 1_795_161_600.0  # Friday, 2026-11-20 08:00 UTC
    assert rl.parse_time(text, "--since", timezone.utc, now) == now - ago_sec


@pytest.mark.parametrize(("text", "seconds"), [
    ("90", 90), ("1h30m", 5400), ("2.5", 2.5), ("1d", 86400), (90, 90), (" 90M ", 5400), ("0", 0)])  # fmt: skip
def test_durations_are_seconds_or_have_units(text: str | float, seconds: float) -> None:
    assert rl.parse_duration(text, "--every") == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "1x", "1h30", "h", "1e3"])
def test_what_is_no_duration_is_refused_also_where_its_unit_is_anybodys_guess(text: str) -> None:
    with pytest.raises(rl.UsageError, match=f"--every: '{text}' is not a duration"):
        rl.parse_duration(text, "--every")


@pytest.mark.parametrize(("text", "bytes_per_sec"), [("500K", 512_000), ("1.5M", 1_572_864), ("2 GiB/s", 2**31)])
def test_rates_need_a_unit_because_tools_differ_in_what_a_bare_number_means(text: str, bytes_per_sec: int) -> None:
    assert rl.parse_rate(text, "--bwlimit") == bytes_per_sec
    with pytest.raises(rl.UsageError, match="--bwlimit: '500' needs a unit"):
        rl.parse_rate("500", "--bwlimit")


# --- the end of a run ---

ENDS = {
    "return 0": (0, ""), "return 1": (1, ""), "raise r.UsageError('bad flag')": (2, "bad flag"),
    "raise r.CannotStart('no key')": (3, "no key"), "raise r.Busy('held')": (4, "held"),
    "raise KeyboardInterrupt": (130, ""),
    "os.kill(os.getpid(), 15); time.sleep(5)": (143, ""), "os.kill(os.getpid(), 2); time.sleep(5)": (130, ""),
    "open('/dev/full', 'w').write('x' * 99999)": (1, "No space left on device: what is done is kept"),
    "1 / 0": (1, "bug in the program"), "sys.exit(2)": (2, ""),
    "threading.Thread(target=time.sleep, args=(30,)).start(); return 1": (1, ""),
    "threading.Thread(target=time.sleep, args=(30,)).start(); raise r.Busy('held')": (4, "held"),
    "threading._limbo[0] = threading.Thread(); raise r.Terminated": (143, ""),  # a signal while a thread is started
    "late = type('', (), {'__del__': lambda _: [os.kill(os.getpid(), 15), time.sleep(1)]})(); del late; time.sleep(5)":
        (143, ""),
    "late = type('', (), {'__del__': lambda _: [os.kill(os.getpid(), 2), time.sleep(1)]})(); del late; time.sleep(5)":
        (130, ""),
}  # fmt: skip


def test_only_threads_of_the_program_that_hang_end_the_process_around_it() -> None:
    """A program that is called from another one takes it down neither for its threads nor for some that just end."""
    over = threading.Event()
    other = threading.Thread(target=over.wait, args=(30,))
    other.start()

    def main() -> int:
        threading.Thread(target=time.sleep, args=(0.2,)).start()
        return 1

    try:
        assert rl.run(main) == 1
        assert other.is_alive()
    finally:
        over.set()


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX closes them")
def test_what_is_printed_never_gets_into_footage_where_the_shell_has_closed_stdout(tmp_path: Path) -> None:
    code = """import os, sys, rhombus_logging as r
def main():
    with open(sys.argv[1], 'w') as footage:
        print('printed')
        os.system('echo said; echo said >&2')
        footage.write('footage')
    return 0
sys.exit(r.run(main))"""
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, str(tmp_path / "clip")]
    assert subprocess.run(command, cwd=ROOT, timeout=20).returncode == 0
    assert (tmp_path / "clip").read_text() == "footage"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(("closed", "status", "said"), [("stderr", 0, ""), ("stdout", 1, "stdout: No space left")])
def test_what_a_closed_terminal_or_full_disk_does_not_take_is_no_status_of_python(
    closed: str, status: int, said: str
) -> None:
    code = f"""import contextlib, sys, rhombus_logging as r
def main():
    with contextlib.suppress(OSError):
        print('for nobody', file=sys.{closed})
    return 0
sys.exit(r.run(main))"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        files: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, closed: full}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=buffered, timeout=20, text=True, **files)
    assert done.returncode == status and said in (done.stderr or ""), done.stderr
    assert "ignored" not in (done.stderr or "")


@pytest.mark.parametrize("body", ENDS)
def test_every_way_to_end_has_its_status_and_at_most_one_sentence(body: str) -> None:
    status, said = ENDS[body]
    code = f"""import argparse, os, sys, threading, time, rhombus_logging as r
def main():
    r.start_logging(argparse.Namespace(quiet=False, debug=False, log_file=None))
    {body}
sys.exit(r.run(main))"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == status, done.stderr
    assert said in done.stderr and "ignored" not in done.stderr and time.monotonic() - began < 4
    assert ("Traceback" in done.stderr) == (body == "1 / 0")
    assert done.stderr.count(" WARNING " if status == 4 else " ERROR ") == bool(said)
    assert status != 4 or " ERROR " not in done.stderr, "a busy run is no failure: cron must stay quiet"


def test_importing_the_module_changes_nothing() -> None:
    code = """import logging, signal, sys, threading
before = signal.getsignal(15), list(logging.getLogger().handlers)
import rhombus_logging
assert before == (signal.getsignal(15), list(logging.getLogger().handlers)) and threading.active_count() == 1
assert not {"yaml", "fcntl", "smtplib", "apprise"} & set(sys.modules)"""
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": ""})


# --- notifications ---


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Mails:
    """A mail server that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []  # subject, body
        self.mails: list[Any] = []
        self.wait_sec = 0.0  # before it takes a mail
        self.logins: list[tuple[str, str]] = []
        self.tls: list[bool] = []
        self.port = free_port()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        import asyncio
        from email import message_from_bytes, policy

        await asyncio.sleep(self.wait_sec)
        mail = message_from_bytes(envelope.content, policy=policy.default)
        self.mails.append(mail)
        self.got.append((mail["Subject"], mail.get_content()))
        self.tls.append(bool(session.ssl or server.transport.get_extra_info("ssl_object")))
        return "250 OK"

    def login(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=data.password == b"pass-word")


@pytest.fixture
def mails() -> Iterator[Mails]:
    handler = Mails()
    server = Controller(
        handler, hostname="127.0.0.1", port=handler.port, authenticator=handler.login, auth_require_tls=False
    )
    server.start()
    try:
        yield handler
    finally:
        server.stop()


@pytest.fixture
def mailing(clouds: Clouds, mails: Mails) -> Cloud:
    cloud = clouds(silent_camera(), clock=Clock(NOW))
    cloud.configure(notify=settings(mails))
    return cloud


def settings(mails: Mails, **more: Any) -> dict[str, Any]:
    return {"smtp_host": "127.0.0.1", "smtp_port": mails.port, "alert_to": ["ops@example.org"], **more}


def break_it(cloud: Cloud) -> None:
    cloud.sim.faults[:] = [Fault("m4v", "status", times=-1)]


def test_a_run_that_ends_well_sends_no_mail(mailing: Cloud, mails: Mails) -> None:
    mailing.clip(4)
    assert mails.got == []


def test_a_failure_is_told_once_then_again_after_repeat_after_and_its_end_is_told(mailing: Cloud, mails: Mails) -> None:
    break_it(mailing)
    mailing.clip(4, ok=1)
    ((subject, body),) = mails.got
    assert "failed" in subject and "1 clip:" in subject and f"{mailing.start}" in body
    mailing.clip(4, ok=1)
    assert len(mails.got) == 1, "the same failure is not told again"
    mailing.clock.advance(86401)  # type: ignore[attr-defined]
    mailing.clip(4, ok=1, start=mailing.start)
    assert len(mails.got) == 2
    mailing.sim.faults.clear()
    mailing.clip(4)
    assert len(mails.got) == 3 and "recovered" in mails.got[2][0] and "failing since 2025-08-05" in mails.got[2][1]
    mailing.clip(4)
    assert len(mails.got) == 3


def test_a_run_that_cannot_start_is_told_but_a_wrong_flag_is_not(mailing: Cloud, mails: Mails) -> None:
    mailing.copy("-u", "0", ok=2)
    assert mails.got == []
    mailing.copy(key="A" * 22, ok=3)
    assert len(mails.got) == 1 and "refuses the key" in mails.got[0][0] + mails.got[0][1]
    assert "A" * 22 not in mails.got[0][1]


def test_looking_sends_no_mail(mailing: Cloud, mails: Mails) -> None:
    mailing.copy("--list", "cameras", key="A" * 22, ok=3)
    mailing.copy("--check", key="A" * 22, ok=3)
    assert mails.got == []


def test_each_query_is_told_for_itself(mailing: Cloud, mails: Mails) -> None:
    break_it(mailing)
    mailing.clip(4, ok=1)
    mailing.sim.add_fault(Fault("getPolicyAlerts", "in_band", times=-1))
    mailing.copy("--alerts", ok=3)
    assert len(mails.got) == 2 and "alerts" in mails.got[1][0]


def test_notify_on_always_tells_of_every_run_and_on_warning_of_warnings(mailing: Cloud, mails: Mails) -> None:
    mailing.configure(notify=settings(mails, on="always"))
    mailing.clip(4)
    assert len(mails.got) == 1 and "done" in mails.got[0][0]
    mailing.sim.world.alerts = [
        Alert(ruuid(str(n)), int(NOW - 3600 - 99 * n) * 1000, 4, mailing.sim.world.cameras[0].uuid) for n in range(3)
    ]
    mailing.configure(notify=settings(mails, on="warning"))
    mailing.copy("--alerts", "-ma", 1, "-ab", 0)
    assert len(mails.got) == 2


def test_a_password_is_given_to_a_server_on_this_machine_and_shown_nowhere(mailing: Cloud, mails: Mails) -> None:
    mailing.configure(notify=settings(mails, smtp_user="me@example.org", smtp_pass="pass-word"))
    mailing.config.chmod(0o600)
    mailing.secrets.discard("pass-word")
    break_it(mailing)
    run = mailing.clip(4, "--debug", ok=1)
    assert mails.logins == [("me@example.org", "pass-word")] and len(mails.got) == 1
    assert "pass-word" not in run.err


def test_a_mail_that_cannot_be_sent_is_a_warning_and_tried_again_next_time(mailing: Cloud, mails: Mails) -> None:
    mailing.configure(notify=settings(mails, smtp_port=1))
    break_it(mailing)
    run = mailing.clip(4, ok=1)
    assert re.search("WARNING.*notification not sent", run.err) and "Traceback" not in run.err
    mailing.configure(notify=settings(mails))
    mailing.clip(4, ok=1)
    assert len(mails.got) == 1
    mailing.sim.faults.clear()
    mailing.configure(notify=settings(mails, smtp_port=1))
    run = mailing.clip(4)
    assert "notification not sent" in run.err
    mailing.configure(notify=settings(mails))
    mailing.clip(4)
    assert "recovered" in mails.got[-1][0], "that it is well again is told when that can be told"


def test_a_damaged_record_of_what_was_told_does_no_harm(mailing: Cloud, mails: Mails) -> None:
    break_it(mailing)
    mailing.clip(4, ok=1)
    told = mailing.folder / ".copy_footage" / "notified.json"
    for text in ("", "{", "[]", "3", json.dumps({json.loads(told.read_text()).popitem()[0]: {}})):
        told.write_text(text)
        run = mailing.clip(4, ok=1)
        assert "Traceback" not in run.err, text


def test_runs_that_fail_side_by_side_do_not_forget_each_other(mails: Mails, tmp_path: Path) -> None:
    """A loop over locations: while one waits for the mail server, the others record what they have told."""
    mails.wait_sec = 0.5
    told = tmp_path / "notified.json"
    config = load(tmp_path, json.dumps({"notify": settings(mails)}))["notify"]
    names = [f"location {number}" for number in range(4)]
    threads = [threading.Thread(target=rl.notify, args=(config, told, name, 1, "it failed")) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(json.loads(told.read_text())) == names
    assert len(mails.got) == 4


def test_a_mail_has_a_date_and_an_id_of_its_own(mailing: Cloud, mails: Mails) -> None:
    """Without them it counts as spam for many, and some servers refuse it."""
    break_it(mailing)
    mailing.clip(4, ok=1)
    mailing.sim.faults.clear()
    mailing.clip(4)
    dates, ids = zip(*((mail["Date"], mail["Message-ID"]) for mail in mails.mails), strict=True)
    assert all(date.datetime.utcoffset() is not None for date in dates)
    assert len({*ids}) == 2 and all(re.fullmatch(r"<[^<>@\s]+@[^<>@\s]+>", one) for one in ids)


@contextlib.contextmanager
def encrypted_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, port: int = 0, known: bool = True
) -> Iterator[Mails]:
    """A mail server with TLS from the first byte (`implicit`), after STARTTLS, or without ("")."""
    import ssl

    import trustme

    authority = trustme.CA()
    (authority if known else trustme.CA()).cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    handler = Mails()
    handler.port = port or handler.port
    server = Controller(
        handler,
        hostname="127.0.0.1",
        port=handler.port,
        ssl_context=context if kind == "implicit" else None,
        tls_context=context if kind == "starttls" else None,
        authenticator=handler.login,
        auth_require_tls=kind == "starttls",
    )
    server.start()
    try:
        yield handler
    finally:
        server.stop()


@pytest.mark.parametrize("encrypted", [True, False])
def test_starttls_is_used_where_it_is_offered(
    mailing: Cloud, encrypted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with encrypted_server(tmp_path, monkeypatch, "starttls" if encrypted else "") as handler:
        mailing.configure(notify=settings(handler, smtp_user="me", smtp_pass="pass-word"))
        break_it(mailing)
        mailing.clip(4, ok=1)
    assert handler.tls == [encrypted] and handler.logins == [("me", "pass-word")]


@pytest.mark.parametrize("known", [True, False])
def test_port_465_is_encrypted_from_the_first_byte_and_a_foreign_certificate_gets_no_password(
    mailing: Cloud, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another port stands for 465, which only root may listen on; what the program knows of it is the number."""
    import smtplib

    port = free_port()
    monkeypatch.setattr(smtplib, "SMTP_SSL_PORT", port)
    with encrypted_server(tmp_path, monkeypatch, "implicit", port, known) as handler:
        mailing.configure(notify=settings(handler, smtp_user="me", smtp_pass="pass-word"))
        break_it(mailing)
        run = mailing.clip(4, ok=1)
    assert handler.tls == [True] * known and handler.logins == [("me", "pass-word")] * known
    assert ("notification not sent" in run.err) is not known


class Pinged(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802
        self.server.paths.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass


def test_ping_url_is_called_after_a_good_run_and_not_after_a_bad_one(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    with HTTPServer(("127.0.0.1", 0), Pinged) as server:
        server.paths = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cloud.configure(notify={"ping_url": f"http://127.0.0.1:{server.server_port}/ping/abcdef123"})
        break_it(cloud)
        run = cloud.clip(4, "--debug", ok=1)
        assert server.paths == []  # type: ignore[attr-defined]
        cloud.sim.faults.clear()
        run = cloud.clip(4, "--debug")
        assert server.paths == ["/ping/abcdef123"] and "abcdef123" not in run.err  # type: ignore[attr-defined]
        server.shutdown()
    run = cloud.clip(4)
    assert "notify.ping_url: not told" in run.err and run.status == 0 and "abcdef123" not in run.err
