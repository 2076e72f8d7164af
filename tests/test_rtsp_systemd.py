"""What `services` makes, under a systemd that really runs: in namespaces of its own, over a copy of this machine.

Needs root, Linux namespaces and a cgroup2; nothing of the machine is changed: its root lies below an overlay in memory.
The cameras and the mail server are outside, on the loopback that both share.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import NOT_TESTED, ROOT, need
from fake_camera import FakeCamera, frame_numbers
from test_rtsp_recorder import until
from test_rtsp_watch import Mails

import rtsp_recorder as recorder

pytestmark = pytest.mark.slow
FPS, SEGMENT_SEC, PATIENCE_SEC = 10, 10, 60.0
PASSWORD = "secr:et%i$HOME"
CLEAN = {"container": "other", "HOME": "/root", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
# A cgroup of its own: two of these machines, or one and the real systemd, would otherwise share the cgroups of units.
BOOT = r"""
set -e
mount --make-rprivate /
mkdir "$1/cgroup"
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir "$1/cgroup/$4"
echo $$ > "$1/cgroup/$4/cgroup.procs"
exec unshare --cgroup /bin/sh -c "$5" boot "$@"
"""
BOOT_INSIDE = r"""
set -e
mount -t tmpfs tmpfs "$1/layers"
mkdir "$1/layers/up" "$1/layers/work" "$1/layers/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/layers/up,workdir=$1/layers/work" "$1/layers/root"
cd "$1/layers/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p srv opt/python
mount --bind "$1/srv" srv
mount --bind "$3" opt/python  # wherever it lies, also in a folder for temporary files
rm -rf etc/systemd/system/*.wants lib/systemd/system/*.target.wants lib/systemd/system/systemd-udevd*
: > etc/fstab
chmod 755 root  # the user of the recorder has to reach a Python that may lie there
printf '[Unit]\nRequires=basic.target\nWants=dbus.socket systemd-journald.service\n' > etc/systemd/system/tiny.target
exec env -i container=other PATH="$PATH" chroot . "$2" --system --unit=tiny.target --log-target=console --show-status=no
"""
# Once everybody in them is dead.
REMOVE_CGROUPS = 'mount -t cgroup2 cgroup2 "$1/cgroup" && find "$1/cgroup/$2" -depth -type d -exec rmdir {} +'


class Machine:
    """A booted systemd with an installation of ours; what is below `srv` is seen from outside as well."""

    def __init__(self, folder: Path, systemd: str) -> None:
        self.folder, self.srv, self.cgroup = folder, folder / "srv", f"footage-test-{os.getpid()}"
        self.srv.mkdir()
        (folder / "layers").mkdir()
        self.said = (folder / "said").open("wb")
        self.process = subprocess.Popen(
            [need("unshare"), "--fork", "--pid", "--mount", "--uts", "--ipc", "--kill-child", "/bin/sh", "-c", BOOT,
             "boot", str(folder), systemd, sys.prefix, self.cgroup, BOOT_INSIDE],
            stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said)  # fmt: skip

    def boot(self) -> None:
        """Skips the test where this machine does not permit it, and says why."""
        end = time.monotonic() + PATIENCE_SEC
        while self.run("systemctl", "is-system-running").stdout.strip() != "running":
            if self.process.poll() is not None or time.monotonic() > end:
                reason = " ".join((self.folder / "said").read_text(errors="replace").split())[-300:]
                pytest.skip(NOT_TESTED + f"a systemd in namespaces (it does not run here: {reason})")
            time.sleep(0.2)

    def run(self, *command: str) -> subprocess.CompletedProcess:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        enter = [need("nsenter"), "-t", *(children[:1] or ["0"]), "-m", "-p", "-u", "-i", "-C", "-r", "-w"]
        return subprocess.run([*enter, *command], env=CLEAN, capture_output=True, text=True, timeout=120, check=False,
                              stdin=subprocess.DEVNULL, errors="replace")  # fmt: skip

    def services(self, *verbs: str) -> subprocess.CompletedProcess:
        return self.run("/opt/python/bin/python", "/opt/footage/rtsp_recorder.py", "services", *verbs, "--config",
                        "/etc/cameras/config.yaml")  # fmt: skip

    def install(self, cameras: dict[str, FakeCamera], mails: Mails) -> None:
        config = {
            "storage": {"local_path": "/srv/100% of it", "reserve_bytes": 1},
            "recording": {"segment_duration": SEGMENT_SEC, "stall": 8, "socket_timeout": 4, "first_frame": 20},
            "cameras": [{"name": name, "rtsp_url": camera.url_without_credentials, "user": "u",
                         "password": "${CAMERA_PASSWORD}"} for name, camera in cameras.items()],
            "notify": {**mails.settings(), "after": 3}, "watch": {"disk_percent": 100},
        }  # fmt: skip
        (self.srv / "config.yaml").write_text(json.dumps(config))
        (self.srv / "environment").write_text(f"CAMERA_PASSWORD='{PASSWORD}'\n")
        for name in ("rtsp_recorder.py", "rhombus_logging.py"):
            shutil.copy(ROOT / name, self.srv / name)
        done = self.run("/bin/sh", "-c", "mkdir -p /opt/footage /etc/cameras; mv /srv/*.py /opt/footage; "
                        "mv /srv/config.yaml /srv/environment /etc/cameras")  # fmt: skip
        assert done.returncode == 0, done.stderr

    def show(self, unit: str) -> dict[str, str]:
        return dict(line.partition("=")[::2] for line in self.run("systemctl", "show", unit).stdout.splitlines())

    def state(self, name: str) -> dict:
        return recorder.read_state(self.footage / ".rtsp_recorder" / "state" / f"{name}.json")

    @property
    def footage(self) -> Path:
        return self.srv / "100% of it"

    def recorded(self, name: str, process: str) -> None:
        until(lambda: (self.state(name).get("state"), self.state(name).get("pid")) == ("recording", int(process)),
              f"{name} is recorded by {process}", PATIENCE_SEC)  # fmt: skip

    def journal(self, name: str) -> list[dict]:
        return recorder.read_journal(self.footage / ".rtsp_recorder" / "journal" / name, 0, time.time() + 10)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.said.close()
        command = [need("unshare"), "--mount", "/bin/sh", "-c", REMOVE_CGROUPS, "remove", self.folder, self.cgroup]
        until(lambda: subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0, "all is dead")


@pytest.fixture(scope="module")
def mails():
    made = Mails()
    made.start()
    yield made
    made.server.stop()


@pytest.fixture(scope="module")
def cameras():
    made = {name: FakeCamera(fps=FPS, user="u", password=PASSWORD) for name in ("Gate", "Yard")}
    yield made
    for camera in made.values():
        camera.stop()


@pytest.fixture(scope="module")
def machine(tmp_path_factory, cameras, mails):
    """One machine for all tests of this file, which follow each other."""
    systemd = next((path for path in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd") if Path(path).exists()), "")
    if not systemd or os.geteuid() != 0:
        pytest.skip(NOT_TESTED + "a systemd in namespaces (systemd is not there, or this is not root)")
    made = Machine(tmp_path_factory.mktemp("machine"), systemd)
    try:
        made.boot()
        made.install(cameras, mails)
        made.first = made.services("install", "generate", "link", "enable", "start")
        yield made
    finally:
        made.close()


def unit(name: str) -> str:
    return f"record_camera_{name}.service"


def test_install_to_start_needs_no_more_than_the_commands_of_the_readme(machine):
    assert machine.first.returncode == 0, machine.first.stderr
    done = machine.services("status", "--json")
    rows = {row["unit"]: row for row in map(json.loads, done.stdout.splitlines()[:-1])}
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"record_camera_Gate.service", "record_camera_Yard.service", "watch.service", "watch.timer"} == set(rows)
    assert all(row["active"] and row["enabled"] for name, row in rows.items() if name != "watch.service")


def test_systemd_sees_it_ready_alive_and_recording_as_a_user_without_rights(machine):
    for name in ("Gate", "Yard"):
        shown = machine.show(unit(name))
        machine.recorded(name, shown["MainPID"])
        until(lambda name=name: machine.show(unit(name)).get("StatusText") == "1 of 1 recorded", "status", PATIENCE_SEC)
        shown = machine.show(unit(name))
        assert (shown["ActiveState"], shown["SubState"], shown["NRestarts"]) == ("active", "running", "0")
        assert shown["WatchdogTimestamp"] > shown["ActiveEnterTimestamp"]
    listing = machine.run("ps", "-eo", "user,args").stdout
    assert sum(line.startswith("footage ") and "-i pipe:0" in line for line in listing.splitlines()) == 2
    assert "secr" not in listing
    until(lambda: list((machine.footage / "Gate").glob("*.mp4")), "published", PATIENCE_SEC)


def test_kill_9_of_a_recorder_costs_seconds_and_the_journal_says_why(machine, cameras):
    machine.run("kill", "-9", machine.show(unit("Gate"))["MainPID"])
    until(lambda: machine.show(unit("Gate"))["NRestarts"] == "1", "restarted", PATIENCE_SEC)
    until(lambda: machine.show(unit("Gate"))["SubState"] == "running", "running", PATIENCE_SEC)
    machine.recorded("Gate", machine.show(unit("Gate"))["MainPID"])
    down = [line for line in machine.journal("Gate") if line["kind"] == "down"]
    assert "crashed" in {line["cause"] for line in down}
    assert sum(line["end"] - line["start"] for line in down if line["cause"] == "crashed") < 20


def test_a_recorder_that_hangs_is_restarted_by_watch_and_mailed(machine, mails):
    before = machine.show(unit("Yard"))["MainPID"]
    machine.run("kill", "-STOP", before)
    old = {**machine.state("Yard"), "updated_at": time.time() - recorder.STATE_STALE_SEC - 1}  # as after that time
    (machine.footage / ".rtsp_recorder" / "state" / "Yard.json").write_text(json.dumps(old))
    machine.run("systemctl", "start", "watch.service")
    after = machine.show(unit("Yard"))["MainPID"]
    assert after not in ("0", before)
    assert "[CAMERA] Auto-restart Yard" in mails.subjects
    machine.recorded("Yard", after)
    assert machine.run("systemctl", "start", "watch.service").returncode == 0
    until(lambda: "[CAMERA] Recovered Yard" in mails.subjects, "told", PATIENCE_SEC)
    user = (machine.footage / ".rtsp_recorder" / "state").stat().st_uid
    foreign = [path for path in (machine.footage / ".rtsp_recorder").rglob("*") if path.stat().st_uid != user]
    assert user != 0 and foreign == [], "what watch wrote as root belongs to the recorder"


def test_the_watchdog_of_systemd_ends_a_recorder_that_hangs(machine):
    """Without `watch`: after WatchdogSec, which the unit states; here it is made shorter, as an administrator would."""
    assert machine.show(unit("Yard"))["WatchdogUSec"] == "1min" and recorder.UNIT_WATCHDOG_SEC == 60
    folder = f"/etc/systemd/system/{unit('Yard')}.d"
    machine.run("/bin/sh", "-c", f"mkdir {folder}; printf '[Service]\\nWatchdogSec=12\\n' > {folder}/short.conf; "
                f"systemctl daemon-reload; systemctl restart {unit('Yard')}")  # fmt: skip
    before = machine.show(unit("Yard"))
    assert before["WatchdogUSec"] == "12s"
    machine.recorded("Yard", before["MainPID"])
    machine.run("kill", "-STOP", before["MainPID"])
    limit = 12 + recorder.UNIT_STOP_SEC + 30
    until(lambda: int(machine.show(unit("Yard"))["NRestarts"]) > int(before["NRestarts"]), "restarted", limit)
    until(lambda: machine.show(unit("Yard"))["SubState"] == "running", "running", PATIENCE_SEC)
    machine.recorded("Yard", machine.show(unit("Yard"))["MainPID"])


def test_systemctl_stop_publishes_the_last_file_within_seconds(machine, cameras):
    until(lambda: 3 < time.time() % SEGMENT_SEC < 6, "amid a file")
    last = cameras["Gate"].frame_log[-1][0]
    began = time.monotonic()
    machine.run("systemctl", "stop", unit("Gate"))
    assert time.monotonic() - began < recorder.STOP_WITHIN_SEC + 2
    shown = machine.show(unit("Gate"))
    assert (shown["ActiveState"], shown["Result"]) == ("inactive", "success")
    files = sorted((machine.footage / "Gate").glob("*.mp4"))
    assert max(frame_numbers(files[-1])) >= last - FPS
    left = [path for path in (machine.footage / ".rtsp_recorder" / "staging" / "Gate").rglob("*") if path.is_file()]
    assert left == [], machine.run("journalctl", "--no-pager", "-o", "cat", "-u", unit("Gate")).stdout


def test_a_camera_that_the_config_has_no_more_loses_its_unit_and_the_other_goes_on(machine):
    process = machine.show(unit("Yard"))["MainPID"]
    machine.run("sed", "-i", 's/"name": "Gate"/"name": "Gate", "enabled": false/', "/etc/cameras/config.yaml")
    done = machine.services("generate", "link", "enable", "start")
    assert done.returncode == 0, done.stderr
    assert machine.show(unit("Gate"))["LoadState"] == "not-found"
    assert machine.show(unit("Yard"))["MainPID"] == process


def test_neither_the_log_of_the_machine_nor_a_unit_holds_the_password(machine):
    text = machine.run("journalctl", "--no-pager", "-o", "cat").stdout
    assert "recording Yard with" in text
    assert not re.search(r"secr(:|%3A)", text)
    assert not re.search("secr", machine.run("grep", "-rs", "secr", "/etc/cameras/services", "/srv").stdout)
