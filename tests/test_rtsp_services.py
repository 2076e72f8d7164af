"""rtsp_recorder.py services: units as text, checked by systemd's own tools, and everything else below a prefix.

systemd itself does not run in a test. What would be told to it is recorded by a small program called systemctl; where
the real systemctl can work on files alone (enable, disable), it is used.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import NOT_TESTED, ROOT, need

import rtsp_recorder as recorder
from rhombus_logging import UsageError, load_config, run_lock

ALL_PROGRAMS = ("rtsp_recorder.py", "copy_footage.py", "nas_sync.py", "capture_analyzer.py")
SECTIONS = ("cameras", "recording", "storage", "rhombus", "nas", "s3", "retention", "analysis", "capture")
EVERYTHING = {
    "nas": {"nas_target_dir": "nas@host:/volume", "success_log_dir": "/var/log/nas_sync"},
    "rhombus": {"output_dir": "/srv/rhombus"},
    "capture": {"grabbers": ["/dev/video0|hw:1|/var/www/stream/capture1/captures|25"]},
}
GOOD_EXPOSURE = 3.0  # systemd-analyze security: 0 is closed, 10 wide open; "OK" begins at 2, "MEDIUM" at 5
STAND_IN = """#!/bin/sh
# Records how it is called; a unit is active when its name stands in the file `active` beside this program.
folder=$(dirname "$0")
case $1 in --root=*) shift ;; esac
echo "$*" >> "$folder/calls"
case $1 in
    is-active) grep -qx "$3" "$folder/active" 2>/dev/null ;;
    is-enabled) false ;;
    start) shift; for unit in "$@"; do echo "$unit" >> "$folder/active"; done ;;
esac
"""


@dataclass
class Site:
    """An installation below a prefix, with a config that can be changed, and what systemctl was told."""

    folder: Path
    document: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root, self.bin = self.folder / "root", self.folder / "bin"
        self.units, self.system = self.root / "etc/cameras", self.root / "etc/systemd/system"
        for place in (self.root, self.bin, self.system):
            place.mkdir(parents=True)
        program = self.bin / "systemctl"
        program.write_text(STAND_IN)
        program.chmod(0o755)
        self.cameras("Gate", "Yard")

    def cameras(self, *names: str) -> None:
        self.document = {"storage": {"local_path": str(self.folder / "footage")}, "cameras": [
            {"name": name, "rtsp_url": "rtsp://viewer:${NO_SUCH_VARIABLE}hunter22@192.0.2.7/x"} for name in names]}

    def run(self, *words: str, real_systemctl: bool = False) -> subprocess.CompletedProcess:
        config = self.folder / "config.yaml"
        config.write_text(json.dumps(self.document))
        config.chmod(0o600)
        path = os.environ["PATH"] if real_systemctl else f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        command = [sys.executable, str(ROOT / "rtsp_recorder.py"), "services", *words, "--config", str(config),
                   "--units_dir", "/etc/cameras", "--prefix", str(self.root)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False,
                              env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL)

    def unit(self, name: str) -> Path:
        return self.units / ("timers" if name.endswith(".timer") else "services") / name

    def calls(self) -> list[str]:
        file = self.bin / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def activate(self, *names: str) -> None:
        (self.bin / "active").write_text("".join(f"{name}\n" for name in names))

    def older(self, name: str, *, enabled: bool = True) -> Path:
        file = self.system / name
        file.write_text("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n")
        if enabled:
            wants = self.system / "multi-user.target.wants"
            wants.mkdir(exist_ok=True)
            (wants / name).symlink_to(file)
        return file


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def plan(document: dict, *, there=ALL_PROGRAMS, cores: int = 4, **place) -> dict[str, str]:
    """Names and texts of the units of a config; the pure core."""
    config = load_config(Path(os.devnull), SECTIONS, Path(), {**EVERYTHING, **document})
    cameras = recorder.settle_cameras(config, {}, ()) if document.get("cameras") else []
    values = {"python": sys.executable, "programs": ROOT, "config": Path("/etc/cameras/config.yaml"), "overlays": (),
              "units": Path("/etc/cameras"), "user": "footage", "prefix": None, **place}
    return {unit.name: unit.text for unit in recorder.plan_units(recorder.Site(cores=cores, **values), config, cameras,
                                                                 there)}


def three(local_path: str = "/srv/recordings") -> dict:
    return {"storage": {"local_path": local_path}, "cameras": [
        {"name": "Gate", "rtsp_url": "rtsp://viewer:hunter22@192.0.2.7/x"}, {"station": "ROST2", "ip": "192.0.2.8"},
        {"name": "Yard", "rtsp_url": "rtsp://192.0.2.9/x", "core": 0}]}


def value(text: str, name: str) -> str:
    return re.search(rf"(?m)^{name}=(.*)$", text)[1]


# --- what the units say ---


def test_every_camera_has_a_unit_and_the_cpu_cores_take_turns():
    units = plan(three(), cores=2)
    texts = [units[f"record_camera_{name}.service"] for name in ("Gate", "ROST2", "Yard")]
    assert [value(text, "CPUAffinity") for text in texts] == ["0", "1", "0"]
    for text in texts:
        assert value(text, "Type") == "notify" and int(value(text, "WatchdogSec")) > 0
        assert (value(text, "Restart"), value(text, "RestartPreventExitStatus")) == ("always", "2 4")
        assert (value(text, "ProtectSystem"), value(text, "ReadWritePaths")) == ("strict", "-/srv/recordings")
        assert value(text, "User") == "footage"


def test_a_core_that_the_config_names_is_taken():
    units = plan(three(), cores=4)
    assert value(units["record_camera_Yard.service"], "CPUAffinity") == "0"
    assert value(units["record_camera_ROST2.service"], "CPUAffinity") == "1"


def test_timers_are_two_minutes_apart():
    units = plan(three())
    calendars = {name: value(text, "OnCalendar") for name, text in units.items() if name.endswith(".timer")}
    assert calendars == {"nas_sync.timer": "*:0/10", "nas_sync_verify.timer": "Sun 02:28", "watch.timer": "*:2/5",
                         "clean.timer": "*:4/10", "copy_footage.timer": "*:06"}  # fmt: skip
    for name in calendars:
        service = units[name.replace(".timer", ".service")]
        assert value(service, "SuccessExitStatus") == "4" and "[Install]" not in service


def test_a_timer_comes_when_it_should():
    need("systemd-analyze")
    minutes = {}
    for name, text in plan(three()).items():
        if name.endswith(".timer"):
            done = subprocess.run(["systemd-analyze", "calendar", "--iterations=3", "--base-time=2026-01-01 12:00:30",
                                   value(text, "OnCalendar")], capture_output=True, text=True, check=True)  # fmt: skip
            minutes[name] = re.findall(r"2026-01-01 (\d\d:\d\d):00", done.stdout)[:3]
    assert minutes["nas_sync.timer"][-1] == "12:30" and minutes["watch.timer"][-1] == "12:12"
    assert minutes["copy_footage.timer"] == ["12:06", "13:06", "14:06"]


def test_jobs_have_units_only_where_the_config_uses_them():
    nothing = {"nas": {}, "rhombus": {}, "capture": {}}
    names = set(plan({**three(), **nothing}))
    assert names == {"record_camera_Gate.service", "record_camera_ROST2.service", "record_camera_Yard.service",
                     "watch.service", "watch.timer"}  # fmt: skip
    assert set(plan({**three(), **nothing, "analysis": {"capture_dirs": ["/srv/stills/*/captures"]}})) - names == {
        "monitor.service", "clean.service", "clean.timer"}  # fmt: skip
    default = {"capture_dirs": ["/var/www/html/stream/capture*/captures"]}
    assert set(plan({**three(), **nothing, "analysis": default})) - names == {
        "monitor.service", "clean.service", "clean.timer"}, "named in the config, be it the default"  # fmt: skip
    ring = plan({**three(), **nothing, "retention": {"without_archive": True}})
    assert "nas_sync.timer" in ring and "nas_sync_verify.timer" not in ring, "there is no target to look at"


def test_a_program_that_is_not_there_gets_no_unit_and_is_named(caplog):
    assert "nas_sync.service" not in plan(three(), there=("rtsp_recorder.py", "copy_footage.py", "capture_analyzer.py"))
    assert "nas_sync: no unit, because nas_sync.py is not in" in caplog.text


def test_a_monitor_is_told_the_folders_of_the_grabbers_unless_the_config_names_them():
    command = value(plan(three())["monitor.service"], "ExecStart")
    assert command.split()[2:4] == ["monitor", "/var/www/stream/capture1/captures"]
    given = {**three(), "analysis": {"capture_dirs": ["/srv/stills/*/captures"]}}
    assert value(plan(given)["monitor.service"], "ExecStart").split()[2:4] == ["monitor", "--config"]
    assert value(plan(given)["monitor.service"], "ReadWritePaths") == "-/srv/stills -/var/www/stream/capture1"


def test_only_what_restarts_units_runs_as_root():
    users = {name: value(text, "User") for name, text in plan(three()).items() if name.endswith(".service")}
    assert {name for name, user in users.items() if user != "footage"} == {"watch.service"}
    assert users["watch.service"] == "root"


def test_no_unit_holds_a_secret_or_an_address():
    for text in plan(three()).values():
        assert not re.search(r"hunter22|rtsp://|192\.0\.2|viewer", text)


def test_the_same_config_makes_the_same_bytes():
    assert plan(three()) == plan(three())


def test_every_command_of_a_unit_is_one_that_its_program_understands():
    there = [name for name in ALL_PROGRAMS if (ROOT / name).is_file()]
    seen = 0
    for name, text in plan(three(), there=there, overlays=("--cameras_config", "/c.json")).items():
        if not name.endswith(".service"):
            continue
        _python, program, *words = shlex.split(value(text, "ExecStart"))
        parser = importlib.import_module(Path(program).stem).build_parser()
        commands = next((action.choices for action in parser._actions if isinstance(action.choices, dict)), None)
        if name == "watch.service" and "watch" not in commands:
            continue
        parser.parse_args(words)
        seen += 1
    assert seen >= 4


HOSTILE = "/srv/re c%o\"r'd\\i$n$gü;s"


def verify(folder: Path, units: dict[str, str]) -> str:
    """What systemd has to say about the units."""
    folder.mkdir(exist_ok=True)
    for name, text in units.items():
        (folder / name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", *(str(folder / name) for name in units)], capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip
    return f"{done.returncode} {done.stdout}{done.stderr}".strip()


@pytest.mark.parametrize("path", ["/srv/recordings", HOSTILE])
def test_systemd_finds_nothing_wrong_with_any_unit(path, tmp_path):
    need("systemd-analyze")
    programs, config = Path(path) / "${HOME}", Path(path) / "config.yaml"
    units = plan(three(path), programs=programs, config=config, overlays=("--cameras_config", path))
    assert verify(tmp_path / "units", units) == "0"


def test_systemd_reads_a_path_with_any_character_as_it_is(tmp_path):
    """It looks for the program of ExecStart, so that a path that it misreads is found out."""
    need("systemd-analyze")
    folder = tmp_path / "re c%o$r${HOME}dü;"
    folder.mkdir()
    python = folder / "python"
    python.symlink_to(sys.executable)
    unit = "record_camera_Gate.service"
    assert verify(tmp_path / "units", {unit: plan(three(), python=str(python))[unit]}) == "0"
    python.unlink()
    assert "No such file" in verify(tmp_path / "units", {unit: plan(three(), python=str(python))[unit]})


def test_every_service_is_well_shut_off_from_the_system(tmp_path):
    need("systemd-analyze")
    units = {name: text for name, text in plan(three()).items() if name.endswith(".service")}
    verify(tmp_path, units)
    for name in units:
        done = subprocess.run(["systemd-analyze", "security", "--offline=true", str(tmp_path / name)],
                              capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
        assert float(re.search(r"exposure level for \S+ ([\d.]+)", done.stdout)[1]) <= GOOD_EXPOSURE, name


def test_a_path_that_no_unit_can_name_is_refused():
    with pytest.raises(UsageError, match="quote or backslash"):
        plan(three(), python='/opt/"python"')
    with pytest.raises(UsageError, match="control characters"):
        plan(three("/srv/a\nUser=root"))


# --- generate ---


def test_generate_needs_no_password_and_writes_the_units_once(site):
    done = site.run("generate")
    assert done.returncode == 0, done.stderr
    unit = site.unit("record_camera_Gate.service")
    assert str(unit) in done.stdout.splitlines()
    assert stat.S_IMODE(unit.stat().st_mode) == 0o644
    before = {file: file.stat().st_mtime_ns for file in site.units.rglob("*.*")}
    again = site.run("generate")
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")
    assert {file: file.stat().st_mtime_ns for file in site.units.rglob("*.*")} == before


def test_a_camera_that_is_gone_loses_its_unit_and_its_link(site):
    site.run("generate", "link")
    assert (site.system / "record_camera_Yard.service").is_symlink()
    site.cameras("Gate")
    done = site.run("generate")
    assert done.returncode == 0 and "record_camera_Yard.service: removed" in done.stderr
    assert "disable record_camera_Yard.service" in site.calls()
    assert not (site.system / "record_camera_Yard.service").is_symlink()
    assert not site.unit("record_camera_Yard.service").exists() and site.unit("record_camera_Gate.service").exists()


def test_a_file_of_somebody_else_is_named_and_left_and_the_others_are_made(site):
    mine = site.unit("record_camera_Gate.service")
    gone = site.unit("record_camera_Old.service")
    mine.parent.mkdir(parents=True)
    mine.write_text("[Service]\n")
    gone.write_text("[Service]\n")
    done = site.run("generate", "link")
    assert done.returncode == 1
    assert f"{mine}: not made by this program" in done.stderr
    assert mine.read_text() == gone.read_text() == "[Service]\n"
    assert (site.system / "record_camera_Yard.service").is_symlink()
    assert not os.path.lexists(site.system / "record_camera_Gate.service")


@pytest.mark.parametrize("document, message", [
    ({"cameras": []}, "nothing to make a unit for"),
    ({"cameras": [{"name": "../x", "rtsp_url": "rtsp://h"}], "storage": {"local_path": "/x"}}, "a name is"),
    ({"cameras": [{"name": "x", "rtsp_url": "rtsp://h"}], "storage": {"local_path": "footage"}}, "begin with /"),
    ({"storag": {}}, "did you mean storage"),
])  # fmt: skip
def test_a_wrong_config_ends_with_status_2_and_writes_nothing(site, document, message):
    site.document = document
    done = site.run("generate", "link", "start")
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr
    assert not site.units.exists() and site.calls() == []


# --- link, enable, start, stop, status ---


def test_several_verbs_are_done_in_their_order(site):
    done = site.run("generate", "link", "enable", "start", "stop")
    assert done.returncode == 0, done.stderr
    told = [call.split()[0] for call in site.calls() if not call.startswith("is-")]
    assert told == ["enable", "start", "stop"]
    started = next(call for call in site.calls() if call.startswith("start")).split()[1:]
    assert started == ["record_camera_Gate.service", "record_camera_Yard.service", "watch.timer"]


def test_a_foreign_unit_of_the_same_name_is_not_replaced_by_a_link(site):
    older = site.older("record_camera_Gate.service")
    done = site.run("generate", "link")
    assert done.returncode == 1 and f"{older}: not made by this program" in done.stderr
    assert not older.is_symlink() and (site.system / "record_camera_Yard.service").is_symlink()


def test_a_link_points_to_where_the_units_are_without_the_prefix(site):
    site.run("generate", "link")
    link = site.system / "watch.timer"
    assert str(link.readlink()) == "/etc/cameras/timers/watch.timer"
    again = site.run("link")
    assert (again.returncode, again.stderr) == (0, "")


def test_link_before_generate_says_what_is_missing(site):
    done = site.run("link")
    assert done.returncode == 1 and "begin with: services generate" in done.stderr


def test_the_real_systemctl_enables_what_is_linked_disables_it_and_forgets_what_is_gone(site):
    need("systemctl")
    done = site.run("generate", "link", "enable", real_systemctl=True)
    assert done.returncode == 0, done.stderr
    wanted = [site.system / "multi-user.target.wants/record_camera_Gate.service",
              site.system / "timers.target.wants/watch.timer"]  # fmt: skip
    assert all(link.is_symlink() for link in wanted)
    rows = [json.loads(line) for line in site.run("status", "--json", real_systemctl=True).stdout.splitlines()]
    assert [row["unit"] for row in rows[:-1] if row["enabled"]] == [
        "record_camera_Gate.service", "record_camera_Yard.service", "watch.timer"]
    site.cameras("Gate")
    done = site.run("generate", real_systemctl=True)
    assert done.returncode == 0, done.stderr
    assert not [path for path in site.root.rglob("*") if "Yard" in path.name], "gone with all its links"
    done = site.run("disable", real_systemctl=True)
    assert done.returncode == 0, done.stderr
    assert not any(link.is_symlink() for link in wanted)
    assert (site.system / "watch.timer").is_symlink(), "start works without enable"


@pytest.mark.parametrize("name, cameras", [("camera-recorder-Gate.service", {"Gate"}),
                                           ("camera-recorder@Yard.service", {"Yard"}),
                                           ("record_camera_Gate.service", {"Gate"}),
                                           ("rtsp-recorder.service", {"Gate", "Yard"})])  # fmt: skip
def test_start_refuses_what_an_older_unit_records_already(site, name, cameras):
    site.older(name)
    site.activate(name)
    done = site.run("generate", "start")
    refused = set(re.findall(r"record_camera_(\w+)\.service: not started: the older unit", done.stderr))
    assert refused == cameras
    assert f"{name}: an older unit, still enabled and active" in done.stderr
    assert done.returncode == (4 if len(cameras) == 2 else 1)
    assert [call for call in site.calls() if call.startswith("start") and f"camera_{min(cameras)}." in call] == []


def test_start_refuses_a_camera_whose_lock_another_process_holds(site):
    site.run("generate", "link")
    lock = site.folder / "footage/.rtsp_recorder/lock/Gate"
    with run_lock(lock, "Gate"):
        done = site.run("start")
        assert done.returncode == 1
        assert f"record_camera_Gate.service: not started: process {os.getpid()} records it" in done.stderr
        assert site.calls()[-1] == "start record_camera_Yard.service watch.timer"
        site.activate("record_camera_Gate.service")
        assert site.run("start").returncode == 0, "our own unit holds it"
    site.activate()
    assert site.run("start").returncode == 0
    assert lock.read_text() == str(os.getpid()), "looking does not write"


def test_an_older_unit_that_is_neither_enabled_nor_active_is_not_worth_a_word(site):
    site.older("camera-recorder-Gate.service", enabled=False)
    assert "an older unit" not in site.run("generate").stderr


def test_status_shows_what_is_not_as_the_config_wants_it(site):
    site.run("generate", "link")
    site.activate("record_camera_Gate.service", "record_camera_Yard.service", "watch.timer")
    done = site.run("status")
    assert done.returncode == 0 and done.stdout.splitlines()[1].split() == [
        "record_camera_Gate.service", "as", "planned", "yes", "no", "yes"]
    site.document["cameras"].append({"name": "New", "ip": "192.0.2.1"})
    site.document["storage"]["local_path"] = "/elsewhere"
    rows = [json.loads(line) for line in site.run("status", "--json").stdout.splitlines()]
    files = {row["unit"]: row["file"] for row in rows if "unit" in row}
    assert files["record_camera_New.service"] == "missing" and files["record_camera_Gate.service"] == "old"
    assert rows[-1] == {"summary": {"units": 5, "active": 3, "well": False}}


# --- install ---


def test_install_is_for_root_only():
    code = ("import locale, os, sys, rtsp_recorder, rhombus_logging\n"  # Python itself may lie where only root may read
            "os.getuid() or os.setuid(65534)\n"
            "sys.exit(rhombus_logging.run(lambda: rtsp_recorder.main(['services', 'install'])))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert done.returncode == 3 and "only root can" in done.stderr


def test_install_makes_a_config_that_only_the_recorder_can_read_and_says_what_it_did(site):
    command = [sys.executable, str(ROOT / "rtsp_recorder.py"), "services", "install", "--config",
               "/etc/rtsp_recorder/config.yaml", "--prefix", str(site.root)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    config = site.root / "etc/rtsp_recorder/config.yaml"
    assert f"{config}: made" in done.stderr and "enter the cameras" in done.stderr
    assert stat.S_IMODE(config.stat().st_mode) == 0o640
    assert stat.S_IMODE(config.with_name("environment").stat().st_mode) == 0o600
    assert load_config(config, SECTIONS, ROOT)["storage"]["local_path"] == "/srv/recordings"
    config.write_text(config.read_text().replace("cameras: []", "cameras: [{name: Gate, ip: 192.0.2.1}]"))
    both = [*command[:4], "generate", *command[4:]]
    done = subprocess.run(both, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (site.root / "etc/rtsp_recorder/services/record_camera_Gate.service").is_file()
    assert (site.root / "srv/recordings").is_dir()
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not re.search("made$|mode |owned|given", again.stderr, re.MULTILINE)


def test_install_makes_the_user_and_gives_it_the_folders(site):
    need("useradd")
    if os.geteuid():
        pytest.skip(NOT_TESTED + "root, who alone can make a user")
    for name in ("passwd", "group", "shadow", "gshadow"):
        (site.root / "etc" / name).touch()
    (site.root / "etc/login.defs").write_text("SYS_UID_MIN 100\nSYS_UID_MAX 999\nSYS_GID_MIN 100\nSYS_GID_MAX 999\n")
    footage = site.root / "srv/recordings"
    left = footage / ".rtsp_recorder/state/Gate.json"
    left.parent.mkdir(parents=True)
    left.touch()
    footage.chmod(0o2775)
    site.document["storage"]["local_path"] = "/srv/recordings"
    inside = site.root / site.folder.relative_to("/") / "config.yaml"
    inside.parent.mkdir(parents=True)
    inside.write_text(json.dumps(site.document))
    done = site.run("install", "--run_as", "cameras")
    assert done.returncode == 0 and "user cameras: made" in done.stderr, done.stderr
    name, _, uid, gid, _, home, shell = (site.root / "etc/passwd").read_text().strip().split(":")
    assert (name, home, shell) == ("cameras", "/var/lib/cameras", "/usr/sbin/nologin")
    assert stat.S_IMODE(footage.stat().st_mode) == 0o2775, "others may use it"
    assert (footage.stat().st_uid, left.stat().st_uid, left.parent.stat().st_gid) == (int(uid), int(uid), int(gid))
    assert (inside.stat().st_uid, inside.stat().st_gid, stat.S_IMODE(inside.stat().st_mode)) == (0, int(gid), 0o640)
    assert "user cameras: is there" in site.run("install", "--run_as", "cameras").stderr


def test_a_user_name_that_would_break_a_unit_is_refused(site):
    done = site.run("generate", "--run_as", "root\nExecStart=x")
    assert done.returncode == 2 and "no name of a user" in done.stderr
