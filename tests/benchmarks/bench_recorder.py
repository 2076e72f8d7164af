#!/usr/bin/env python3
"""What rtsp_recorder.py loses and costs, beside the two older command lines: same streams, same faults, same machine.

examples:
  python tests/benchmarks/bench_recorder.py                                   everything, about an hour
  python tests/benchmarks/bench_recorder.py faults --after 40 --settle 15     a first look, two minutes
  python tests/benchmarks/bench_recorder.py many --cameras 64 --minutes 10 --json now.json
  python tests/benchmarks/bench_recorder.py faults cpu --program /tmp/try/rtsp_recorder.py    a changed copy

parts:
  faults   seconds lost per fault; unreadable and overwritten files; where the password was seen
  gop      false restarts where key frames are a minute apart
  cpu      CPU seconds per camera-hour against bare FFmpeg with the same options, in one process and a process each
  memory   per further camera, all in one process and a process each
  many     many cameras at once: frames lost
  publish  how long after its last frame a file has its final name

The older ones, each with the restart loop of its unit:
  A   ffmpeg -i URL -c copy -map 0 -f segment -segment_format mp4 -segment_atclocktime 1, again after 60 s
  B   ffmpeg -timeout 30000000 -rtsp_transport tcp -use_wallclock_as_timestamps 1 … -segment_format matroska, after 5 s
  B's monitor is left out: it looks every 5 minutes for files older than twice their length, too late for any of these.

How it is measured:
  Every frame of a fake camera carries its number. Lost are frames that the camera made and no readable file holds: from
  the fault to --after seconds later (which counts the whole dead time of a camera), and of what was recorded before.
  wedge, video_dead   The session of that time stays silent (reports, or sound, go on) until somebody connects anew.
  stop_wedged         The recorder is told to stop while its camera is wedged: what of the time before is kept.
  freeze, reboot      --freeze and --dead seconds; what was frozen comes in a burst, up to 1 MB.
  CPU is that of whole process trees between two moments while all cameras are recorded. Memory is the proportional set
  size. The cameras live in one process; a figure is VOID where that process needed most of a CPU: it was measured then.

Needs: Linux, the program's own packages and FFmpeg. Leaves nothing behind, except the cameras' pictures in the
temporary folder. Exit status 1: a goal was missed, or VOID.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench_copy import (
    Figure,
    cpu_of,
    find_ffmpeg,
    first_words,
    load,
    median,
    pressure_sec,
    raise_priority,
    say,
    scan_rate,
    sha256_rate,
    start_sec,
    table,
    tree_of,
)
from fake_camera import frame_numbers, numbers_between

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE_CAMERA = ROOT / "tests" / "fake_camera.py"
PASSWORD = "sw0rdf1sh-of-the-bench"
KINDS = ("ours", "A", "B")
FAULTS = ("kill", "reboot", "wedge", "video_dead", "jump", "freeze", "stop_wedged")
FIXED_GOALS_SEC = {"kill": 3.0, "wedge": 25.0, "video_dead": 25.0, "jump": 0.0, "freeze": 0.0, "stop_wedged": 1.0}
REBOOT_MORE_SEC = 2.0
RESTART_SEC = {"A": 60.0, "B": 5.0}  # of the older units
SEGMENT_SEC = {"A": 3600, "B": 600}
UNIT_STOP_SEC = 90.0  # after which systemd kills what does not end
FPS = 20
PICTURE = ("--fps", str(FPS), "--width", "640", "--height", "360", "--bitrate", "1000000")
SMALL = ("--bitrate", "400000")  # so that 15 s fit into the 1 MB that a camera keeps for its client
CPU_RATIO = 1.15
BUSY_SHARE = 0.9  # of a CPU: the cameras' process is what was measured
PUBLISH_SEC = 0.5
POLL_SEC = 0.2
WEDGED_FOR_SEC = 3.0  # before the recorder of a wedged camera is told to stop
READY_SEC = 90.0
STATE_FOLDER = ".rtsp_recorder"


@dataclass
class Bench:
    """What the parts share: settings, and where results go."""

    arguments: argparse.Namespace
    folder: Path
    figures: list[Figure] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)

    def add(self, *figures: Figure) -> None:
        self.figures += figures

    def fresh(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


# --- cameras ---


class Cameras:
    """Fake cameras in a process of their own; a context manager."""

    def __init__(self, count: int, *options: str) -> None:
        command = [sys.executable, str(FAKE_CAMERA), "--exit_with_stdin", "--cameras", str(count), *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about: list[dict[str, Any]] = json.loads(self._line())["cameras"]
        self.began = (time.monotonic(), self.cpu_sec())

    def __enter__(self) -> Cameras:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(20)

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the cameras did not start")
        return line

    def tell(self, words: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def status(self) -> list[dict[str, Any]]:
        self.tell("status")
        return list(json.loads(self._line()))

    def url(self, index: int) -> str:
        return str(self.about[index]["url"])

    def numbers(self, index: int, start: float, end: float) -> set[int]:
        """Frames that the camera made in [start, end), epoch seconds."""
        return set(numbers_between(self.about[index]["started"], FPS, start, end))

    def cpu_sec(self) -> float:
        return cpu_of(self.process.pid)[0]

    def cpu_share(self) -> float:
        """Of one CPU, since the start."""
        return (self.cpu_sec() - self.began[1]) / (time.monotonic() - self.began[0])

    def limit(self) -> str:
        share = self.cpu_share()
        return f"cameras used {share:.0%} of a CPU" + (" VOID: they limit" if share > BUSY_SHARE else "")


# --- recorders ---


class Ours:
    """rtsp_recorder.py with some cameras; a context manager that kills what is left."""

    def __init__(self, bench: Bench, folder: Path, urls: dict[str, str], **recording: Any) -> None:
        self.folder, self.names, self.footage = folder, list(urls), folder / "footage"
        entries = [{"name": name, "rtsp_url": url, "filename": "%Y%m%d_%H%M%S.mkv"} for name, url in urls.items()]
        document = {"storage": {"local_path": str(self.footage), "reserve_bytes": 1}, "cameras": entries,
                    "recording": recording}
        config = folder / "config.yaml"
        config.touch(0o600)
        config.write_text(json.dumps(document))
        self.log = folder / "log"
        command = [sys.executable, str(bench.arguments.program.resolve()), "record", "--config", str(config)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for name in self.names:
            for pid in self.ffmpegs(name):
                os.kill(pid, signal.SIGKILL)

    def state(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.footage / STATE_FOLDER / "state" / f"{name}.json").read_text()))
        except (OSError, ValueError):
            return {}

    def ready(self) -> None:
        end = time.monotonic() + READY_SEC
        while missing := [name for name in self.names if self.state(name).get("state") != "recording"]:
            if time.monotonic() > end:
                raise RuntimeError(f"not recording: {', '.join(missing)}: {self.log.read_text()[-2000:]}")
            time.sleep(POLL_SEC)

    def ffmpegs(self, name: str) -> list[int]:
        staging, found = str(self.footage / STATE_FOLDER / "staging" / name) + "/", []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str((entry / "cwd").readlink()).startswith(staging):
                    found.append(int(entry.name))
        return found

    def stop(self) -> float:
        """TERM; how long it took to end."""
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(60)
        return time.monotonic() - began

    def files(self, name: str) -> list[Path]:
        return sorted((self.footage / name).glob("*.mkv"))

    def overwritten(self) -> int:
        """Lines in the journal whose file is not there, or not as it was published."""
        lost = 0
        for file in (self.footage / STATE_FOLDER / "journal").rglob("*.jsonl"):
            for line in map(json.loads, file.read_text().splitlines()):
                path = self.footage / line.get("file", "")
                lost += line["kind"] == "segment" and (not path.is_file() or path.stat().st_size != line["bytes"])
        return lost


class Older(threading.Thread):
    """One of the older command lines and the restart loop of its unit, for one camera."""

    def __init__(self, kind: str, folder: Path, url: str, ffmpeg: str) -> None:
        super().__init__(daemon=True)
        self.kind, self.folder, self.stopping = kind, folder, threading.Event()
        folder.mkdir(parents=True)
        self.log, length = folder / "log", str(SEGMENT_SEC[kind])
        self.process: subprocess.Popen[bytes] | None = None
        if kind == "A":
            self.command = [ffmpeg, "-i", url, "-c", "copy", "-map", "0", "-f", "segment", "-segment_time", length,
                            "-segment_format", "mp4", "-segment_atclocktime", "1", "-strftime", "1",
                            str(folder / "%Y%m%d_%H%M%S.mp4")]
        else:
            self.command = [ffmpeg, "-timeout", "30000000", "-rtsp_transport", "tcp", "-use_wallclock_as_timestamps",
                            "1", "-i", url, "-c", "copy", "-map", "0", "-f", "segment", "-segment_time", length,
                            "-segment_atclocktime", "1", "-segment_format", "matroska", "-strftime", "1",
                            str(folder / "STATION_%Y%m%dT%H%M%S.mkv")]
        self.start()

    def run(self) -> None:
        with self.log.open("ab") as log:
            while not self.stopping.is_set():
                self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                self.process.wait()
                self.stopping.wait(RESTART_SEC[self.kind])

    def kill(self) -> None:
        assert self.process
        self.process.kill()

    def stop(self, patience_sec: float = UNIT_STOP_SEC) -> None:
        """As systemd: TERM, and KILL for what does not end."""
        self.stopping.set()
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(patience_sec)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.join(5)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.suffix in (".mp4", ".mkv"))

    def overwritten(self) -> int:
        opened = re.findall(r"Opening '([^']+)' for writing", self.log.read_text(errors="replace"))
        return len(opened) - len(set(opened))


# --- counting ---


def read_files(files: Sequence[Path]) -> tuple[set[int], int]:
    """(numbers of the frames that they hold, how many of them nobody can read)."""
    held: set[int] = set()
    unreadable = 0
    for file in files:
        try:
            numbers = frame_numbers(file)
        except RuntimeError:
            numbers = []
        held.update(numbers)
        unreadable += not numbers
    return held, unreadable


def cpu_of_trees(pids: Sequence[int]) -> float:
    """CPU seconds of processes, all below them, and all of those that have ended."""
    total = 0.0
    for pid in pids:
        for one in tree_of(pid):
            with contextlib.suppress(OSError):
                total += sum(cpu_of(one))
    return total


def memory_mb(pids: Sequence[int]) -> float:
    """Proportional set size of processes and all below them."""
    total = 0
    for pid in pids:
        for one in tree_of(pid):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{one}/smaps_rollup").read_text()
                total += int(re.findall(r"(?m)^Pss: +(\d+)", text)[0]) * 1024
    return total / 1e6


class PasswordWatch(threading.Thread):
    """Looks into the arguments of all processes for the password, and remembers whose they were."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over, self.seen = threading.Event(), dict.fromkeys(KINDS, 0)

    def run(self) -> None:
        while not self.over.wait(POLL_SEC):
            now = dict.fromkeys(KINDS, 0)
            for entry in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes()
                    if PASSWORD.encode() in words and b"fake_camera" not in words:
                        now["A" if b".mp4" in words else "B" if b"STATION_" in words else "ours"] += 1
            self.seen = {kind: max(self.seen[kind], now[kind]) for kind in KINDS}


def sightings_in(folder: Path) -> int:
    """Files, other than a config that nobody else can read, which hold the password."""
    return sum(PASSWORD.encode() in file.read_bytes() for file in folder.rglob("*")
               if file.is_file() and file.name != "config.yaml")


# --- faults ---


@dataclass
class Stage:
    """All recorders of the part `faults`: camera number = place of (kind, fault)."""

    cameras: Cameras
    ours: Ours
    stopped: Ours  # the one that is told to stop
    older: dict[tuple[str, str], Older]

    def index(self, kind: str, fault: str) -> int:
        return KINDS.index(kind) * len(FAULTS) + FAULTS.index(fault)

    def stop(self, kind: str, fault: str) -> None:
        if kind == "ours":
            self.stopped.stop()
        else:
            self.older[kind, fault].stop()


def part_faults(bench: Bench) -> None:
    arguments, folder, ffmpeg = bench.arguments, bench.fresh("faults"), find_ffmpeg()
    options = (*PICTURE, *SMALL, "--audio", "aac", "--user", "bench", "--password", PASSWORD, "--sessions_max", "1")
    with contextlib.ExitStack() as held:
        cameras = held.enter_context(Cameras(len(KINDS) * len(FAULTS), *options))
        urls = {fault: cameras.url(place) for place, fault in enumerate(FAULTS)}
        last = {"stop_wedged": urls.pop("stop_wedged")}
        for name in ("ours", "stopped"):
            (folder / name).mkdir()
        ours = held.enter_context(Ours(bench, folder / "ours", urls, segment_duration=600))
        stopped = held.enter_context(Ours(bench, folder / "stopped", last, segment_duration=600))
        stage = Stage(cameras, ours, stopped, {})
        for kind in KINDS[1:]:
            for fault in FAULTS:
                older = Older(kind, folder / kind / fault, cameras.url(stage.index(kind, fault)), ffmpeg)
                stage.older[kind, fault] = older
                held.callback(older.stop, 0.5)
        watch = PasswordWatch()
        watch.start()
        ours.ready()
        stopped.ready()
        say(f"faults: settling for {arguments.settle:g} s, then {arguments.after:g} s of faults")
        began = time.time()
        time.sleep(arguments.settle)
        fault_at = time.time()
        throw_all(stage, arguments)
        end = fault_at + arguments.after
        endings = [threading.Thread(target=stage.stop, args=(kind, "stop_wedged")) for kind in KINDS]
        cure(stage, fault_at, end, endings)
        for thread in endings:
            thread.join()
        ours.stop()
        with ThreadPoolExecutor(len(stage.older)) as pool:
            list(pool.map(Older.stop, stage.older.values()))
        watch.over.set()
        watch.join()
        limit = cameras.limit()
        report_faults(bench, stage, folder, (began, fault_at, end), limit, watch.seen)


def throw_all(stage: Stage, arguments: argparse.Namespace) -> None:
    """Every fault at every kind, within a moment."""
    words = {"reboot": f"reboot {arguments.dead:g}", "wedge": "wedge", "video_dead": "kill_video",
             "jump": "rtp_jump 1000", "freeze": f"freeze {arguments.freeze:g}", "stop_wedged": "wedge"}
    for kind in KINDS:
        for fault, command in words.items():
            stage.cameras.tell(f"{stage.index(kind, fault)}: {command}")
    for pid in stage.ours.ffmpegs("kill"):
        os.kill(pid, signal.SIGKILL)
    for kind in KINDS[1:]:
        stage.older[kind, "kill"].kill()


def cure(stage: Stage, fault_at: float, end: float, endings: list[threading.Thread]) -> None:
    """Until `end`: a session that began after the fault gets media again; the wedged ones are told to stop."""
    cures = {"wedge": "unwedge", "video_dead": "restore_video"}
    waiting = {stage.index(kind, fault): word for kind in KINDS for fault, word in cures.items()}
    before = {index: one["sessions"] for index, one in enumerate(stage.cameras.status())}
    while time.time() < end:
        if time.time() > fault_at + WEDGED_FOR_SEC and not any(thread.ident for thread in endings):
            for thread in endings:
                thread.start()
        now = stage.cameras.status()
        for index, word in list(waiting.items()):
            if now[index]["sessions"] > before[index]:
                stage.cameras.tell(f"{index}: {word}")
                del waiting[index]
        time.sleep(POLL_SEC)


def report_faults(bench: Bench, stage: Stage, folder: Path, times: tuple[float, float, float], limit: str,
                  seen: dict[str, int]) -> None:
    began, fault_at, end = times
    totals = {kind: [0, 0] for kind in KINDS}  # unreadable, overwritten
    dead_sec = {"reboot": bench.arguments.dead}
    for fault in FAULTS:
        for kind in KINDS:
            recorder = stage.stopped if fault == "stop_wedged" else stage.ours
            files = recorder.files(fault) if kind == "ours" else stage.older[kind, fault].files()
            held, unreadable = read_files(files)
            totals[kind][0] += unreadable
            index = stage.index(kind, fault)
            after = len(stage.cameras.numbers(index, fault_at, end) - held) / FPS
            before = len(stage.cameras.numbers(index, began, fault_at) - held) / FPS
            lost = before if fault == "stop_wedged" else after + before
            bench.samples[f"faults {kind} {fault}"] = {"after_sec": after, "before_sec": before}
            goal = FIXED_GOALS_SEC.get(fault, dead_sec.get(fault, 0.0) + REBOOT_MORE_SEC)
            words = f"{lost:.1f}" + (f" ({before:.1f} of them before the fault)" if before and lost > before else "")
            bench.add(Figure("faults", f"{fault}, {kind}: seconds lost", words, f"<= {goal:g}", lost <= goal, limit)
                      if kind == "ours" else Figure("faults", f"{fault}, {kind}: seconds lost", words))
    totals["ours"][1] = stage.ours.overwritten() + stage.stopped.overwritten()
    for (kind, _), older in stage.older.items():
        totals[kind][1] += older.overwritten()
    places = {"ours": [folder / "ours", folder / "stopped"], "A": [folder / "A"], "B": [folder / "B"]}
    for kind in KINDS:
        logged, mine = sum(map(sightings_in, places[kind])), kind == "ours"
        for what, count in (("unreadable files", totals[kind][0]), ("overwritten files", totals[kind][1]),
                            ("password in ps", seen[kind]), ("password in logs and other files", logged)):
            bench.add(Figure("faults", f"{what}, {kind}", str(count), "0", count == 0) if mine
                      else Figure("faults", f"{what}, {kind}", str(count)))


# --- gop ---


def part_gop(bench: Bench) -> None:
    """Key frames a minute apart: a session more than the first one is a false restart."""
    seconds = bench.arguments.gop_minutes * 60
    with Cameras(2, *PICTURE, "--gop_sec", "60") as cameras, contextlib.ExitStack() as held:
        folder = bench.fresh("gop")
        say(f"gop: {seconds:g} s")
        held.enter_context(Ours(bench, folder, {"smart": cameras.url(0)}))
        older = Older("B", folder / "B", cameras.url(1), find_ffmpeg())
        held.callback(older.stop, 2.0)
        time.sleep(seconds)
        ours, theirs = (one["sessions"] - 1 for one in cameras.status())
        bench.add(Figure("gop", f"false restarts in {seconds / 60:g} minutes, ours", str(ours), "0", ours == 0,
                         cameras.limit()),
                  Figure("gop", f"false restarts in {seconds / 60:g} minutes, B", str(theirs)))


# --- cpu ---


def bare_ffmpegs(bench: Bench, cameras: Cameras, count: int, held: contextlib.ExitStack) -> list[int]:
    """FFmpeg with the options of the program, and nothing around it."""
    sys.path.insert(0, str(bench.arguments.program.resolve().parent))
    import rtsp_recorder as program
    from rhombus_logging import load_config

    config = load_config(Path(os.devnull), ("recording", "storage"), ROOT)
    entries = [{"name": f"C{number}", "rtsp_url": cameras.url(number)} for number in range(count)]
    everything = {**config, "cameras": entries}
    folder = bench.fresh("bare")
    everything["storage"]["local_path"] = str(folder)
    ffmpeg, pids = find_ffmpeg(), []
    for camera in program.settle_cameras(everything, {}, []):
        place = folder / camera.name
        place.mkdir()
        sink = held.enter_context(open(os.devnull, "wb"))  # noqa: SIM115
        command = program.record_command(ffmpeg, camera, sink.fileno(), sink.fileno())
        process = subprocess.Popen(command, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, pass_fds=[sink.fileno()], env={**os.environ, "TZ": "UTC"})
        held.callback(process.kill)
        assert process.stdin
        process.stdin.write(program.ffconcat(camera, program.knows_tls_options(ffmpeg)).encode())
        process.stdin.close()
        pids.append(process.pid)
    return pids


def part_cpu(bench: Bench) -> None:
    """All three at the same time, window after window: what else the machine does meets them alike."""
    count, windows = bench.arguments.cpu_cameras, bench.arguments.cpu_windows
    seconds, each = bench.arguments.cpu_minutes * 60 / windows, min(4, count)
    with Cameras(2 * count + each, *PICTURE) as cameras, contextlib.ExitStack() as held:
        groups = {"bare FFmpeg": bare_ffmpegs(bench, cameras, count, held)}
        all_urls = {f"C{number}": cameras.url(count + number) for number in range(count)}
        together = [held.enter_context(Ours(bench, bench.fresh("cpu"), all_urls))]
        alone = [held.enter_context(Ours(bench, bench.fresh(f"cpu{number}"), {"C": cameras.url(2 * count + number)}))
                 for number in range(each)]
        for ours in together + alone:
            ours.ready()
        groups["one process"] = [together[0].process.pid]
        groups["a process each"] = [ours.process.pid for ours in alone]
        share = {"bare FFmpeg": count, "one process": count, "a process each": each}
        time.sleep(min(10.0, seconds / 4))
        say(f"cpu: {count} cameras twice and {each} for {windows} times {seconds:g} s")
        costs: dict[str, list[float]] = {name: [] for name in groups}
        for _ in range(windows):  # the last one ends before anybody stops
            before, began = {name: cpu_of_trees(pids) for name, pids in groups.items()}, time.monotonic()
            time.sleep(seconds)
            hours = (time.monotonic() - began) / 3600
            for name, pids in groups.items():
                costs[name].append((cpu_of_trees(pids) - before[name]) / share[name] / hours)
        limit = cameras.limit()
    bench.samples["cpu"] = costs
    bare = costs["bare FFmpeg"]
    for name, goal in (("one process", CPU_RATIO), ("a process each", None)):
        ratios = [ours / theirs for ours, theirs in zip(costs[name], bare, strict=True)]
        ratio = sum(costs[name]) / sum(bare)
        bench.add(Figure("cpu", f"CPU s per camera-hour, ours to bare FFmpeg, {name}", f"{ratio:.2f} ("
                         f"{sum(costs[name]) / windows:.1f} to {sum(bare) / windows:.1f}; windows {min(ratios):.2f} to "
                         f"{max(ratios):.2f})", f"<= {goal}" if goal else "", ratio <= goal if goal else None, limit))


# --- memory ---


def part_memory(bench: Bench) -> None:
    """The slope between a few and many cameras in one process; and of processes with one camera each."""
    few, many, each = 2, bench.arguments.memory_cameras, 4
    with Cameras(many + each, *PICTURE) as cameras:
        sizes = {}
        for count in (few, many):
            with Ours(bench, bench.fresh("memory"), {f"C{n}": cameras.url(n) for n in range(count)}) as ours:
                ours.ready()
                time.sleep(5)
                sizes[count] = memory_mb([ours.process.pid])
                say(f"memory: {count} cameras in one process: {sizes[count]:.0f} MB")
        slope = (sizes[many] - sizes[few]) / (many - few)
        bench.add(Figure("memory", "MB per further camera, one process", f"{slope:.1f}", "", None,
                         f"{sizes[few]:.0f} MB for {few}, {sizes[many]:.0f} MB for {many}"))
        steps = []
        with contextlib.ExitStack() as held:
            alone: list[Ours] = []
            for number in range(each):
                folder = bench.fresh(f"memory{number}")
                alone.append(held.enter_context(Ours(bench, folder, {"C": cameras.url(many + number)})))
                alone[-1].ready()
                time.sleep(3)
                steps.append(memory_mb([one.process.pid for one in alone]))
        bench.samples["memory"] = {"one process": sizes, "a process each": steps}
        bench.add(Figure("memory", "MB per further camera, a process each",
                         f"{(steps[-1] - steps[0]) / (each - 1):.1f}", "", None, f"{steps[0]:.0f} MB for the first"))


# --- many ---


def part_many(bench: Bench) -> None:
    count, seconds = bench.arguments.cameras, bench.arguments.minutes * 60
    with Cameras(count, *PICTURE) as cameras, contextlib.ExitStack() as held:
        urls = {f"C{number}": cameras.url(number) for number in range(count)}
        began = time.monotonic()
        ours = held.enter_context(Ours(bench, bench.fresh("many"), urls, segment_duration=60))
        ours.ready()
        ready_sec = time.monotonic() - began
        say(f"many: {count} cameras, all recorded after {ready_sec:.1f} s; now {seconds:g} s")
        start = time.time()
        time.sleep(seconds)
        end, cpu, limit = time.time(), cpu_of_trees([ours.process.pid]), cameras.limit()
        dropped = sum(one["frames_dropped"] for one in cameras.status())
        stop_sec = ours.stop()
        left = list((ours.footage / STATE_FOLDER / "staging").rglob("*.mkv"))
        lost = unreadable = 0
        for number in range(count):
            name = f"C{number}"
            held_numbers, broken = read_files(ours.files(name) + [file for file in left if f"/{name}/" in str(file)])
            lost += len(cameras.numbers(number, start, end) - held_numbers)
            unreadable += broken
    met = lost == 0 and "VOID" not in limit
    bench.add(Figure("many", f"{count} cameras for {seconds / 60:g} minutes: frames lost", f"{lost} (cameras dropped "
                     f"{dropped}, unreadable files {unreadable})", "0", met, limit),
              Figure("many", "until all were recorded, stop", f"{ready_sec:.1f} s, {stop_sec:.1f} s", "stop <= 5 s",
                     stop_sec <= 5, f"{len(left)} files left for the next start; CPU {cpu:.0f} s"))


# --- publish ---


def part_publish(bench: Bench) -> None:
    """A folder is looked at every few milliseconds; the end of a file's footage stands in the journal."""
    length, wanted = bench.arguments.publish_length, bench.arguments.publish_files
    with Cameras(1, *PICTURE, "--gop_sec", "0.5") as cameras:
        folder = bench.fresh("publish")
        with Ours(bench, folder, {"C": cameras.url(0)}, segment_duration=length) as ours:
            ours.ready()
            seen: dict[str, float] = {}
            limit = time.monotonic() + (wanted + 2) * length + 30
            while len(seen) < wanted + 1 and time.monotonic() < limit:
                for file in ours.files("C"):
                    seen.setdefault(f"C/{file.name}", time.time())
                time.sleep(0.005)
            time.sleep(1)
            journal = [json.loads(line) for file in (ours.footage / STATE_FOLDER / "journal").rglob("*.jsonl")
                       for line in file.read_text().splitlines()]
            ends = {line["file"]: line["end"] for line in journal if line["kind"] == "segment"}
            ours.stop()
            newest = ours.files("C")[0]
            reading = median([reading_sec(newest) for _ in range(5)])
    first, *late = [seen[name] - ends[name] for name in sorted(ends, key=lambda name: ends[name]) if name in seen]
    bench.samples["publish"] = [first, *late]
    worst = max(late)
    bench.add(Figure("publish", "the first file of a run, whose times need 3 s of recording", f"{first:.2f}"))
    bench.add(Figure("publish", "seconds from the last frame to the final name", f"{median(late):.2f}, at most "
                     f"{worst:.2f} of {len(late)} files", f"<= {PUBLISH_SEC} + {reading:.2f} (one reading)",
                     worst <= PUBLISH_SEC + reading))


def reading_sec(file: Path) -> float:
    began = time.monotonic()
    subprocess.run([find_ffmpeg(), "-v", "error", "-i", str(file), "-c", "copy", "-f", "null", "-"], check=True,
                   stdin=subprocess.DEVNULL)
    return time.monotonic() - began


# --- report ---


def calibrate(folder: Path) -> dict[str, Any]:
    """What this machine can do, for comparing figures of different machines."""
    say("calibration")
    return {
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs",
        "load before": load(), "priority": raise_priority(), "python": platform.python_version(),
        "ffmpeg": first_words([find_ffmpeg(), "-version"]), "sha256 MB/s": round(sha256_rate()),
        "bare scan of a folder, files/s": round(scan_rate(folder)), "python start s": round(start_sec("pass"), 3),
    }


PARTS: dict[str, Callable[[Bench], None]] = {
    "faults": part_faults, "gop": part_gop, "cpu": part_cpu, "memory": part_memory, "many": part_many,
    "publish": part_publish,
}


def numbers(parser: argparse.ArgumentParser) -> Iterator[str]:
    for name, kind, default, what in (
        ("after", float, 100.0, "seconds after a fault in which losses are counted"),
        ("settle", float, 60.0, "seconds of recording before the faults"),
        ("dead", float, 8.8, "seconds that a rebooting camera is away"),
        ("freeze", float, 15.0, "seconds that a freezing camera is silent"),
        ("gop_minutes", float, 5.0, "length of the part gop"),
        ("cpu_cameras", int, 8, "recorded twice in the part cpu"),
        ("cpu_minutes", float, 10.0, "length of the part cpu"),
        ("cpu_windows", int, 5, "equal parts of it, compared one by one"),
        ("memory_cameras", int, 18, "at most, in the part memory"),
        ("cameras", int, 64, "in the part many"),
        ("minutes", float, 10.0, "length of the part many"),
        ("publish_length", int, 10, "seconds of a file in the part publish"),
        ("publish_files", int, 10, "of which the latency is taken"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{what} (default: {default:g})")
        yield name


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} or all (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--program", type=Path, default=ROOT / "rtsp_recorder.py", metavar="FILE",
                        help="measure this copy of the program")
    list(numbers(parser))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    names = [name for name in arguments.parts if name != "all"] or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}")
    with tempfile.TemporaryDirectory(prefix="bench_recorder-", ignore_cleanup_errors=True) as folder:
        waited, began = pressure_sec(), time.monotonic()
        calibration = calibrate(Path(folder))
        bench = Bench(arguments, Path(folder))
        for name in names:
            PARTS[name](bench)
    calibration["others"] = f"waited for a CPU {pressure_sec() - waited:.0f} of {time.monotonic() - began:.0f} s"
    print("\n".join(f"{name}: {value}" for name, value in calibration.items()) + "\n\n" + table(bench.figures))
    if arguments.json:
        arguments.json.write_text(json.dumps({"calibration": calibration, "samples": bench.samples,
                                              "figures": [asdict(one) for one in bench.figures]}, indent=1) + "\n")
    void = any("VOID" in one.limit for one in bench.figures)
    return 1 if void or any(one.met is False for one in bench.figures) else 0


if __name__ == "__main__":
    sys.exit(main())
