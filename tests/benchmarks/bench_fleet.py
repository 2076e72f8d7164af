#!/usr/bin/env python3
"""How the programs fare with very many cameras, alerts, files and machines.

examples:
  python tests/benchmarks/bench_fleet.py                        everything, about ten minutes
  python tests/benchmarks/bench_fleet.py plan alerts help       these parts
  python tests/benchmarks/bench_fleet.py status --files 100000  a smaller archive

parts:
  plan     1,000 cameras: API calls and seconds until the first footage is asked for, presence queries apart
  alerts   5,000 alerts on 200 cameras, planned
  dask     two workers with four clips each at once against eight clips at once here, the same clips; what a task costs
  report   100 cameras x 1 day and one camera x 1 year: seconds and megabytes of the page
  status   nas_sync.py status over --files archived files
  help     CPU seconds of each program's --help

How it is measured:
  Whole processes, as a user runs them; the simulator is a process of its own. The plan part ends each run as soon as
  media is asked for, and counts what the simulator's log holds of API calls. The dask part runs clips of 20 s,
  one request at a time behind 200 ms, so that threads wait and neither CPU nor disk decides; it is VOID when the clips
  here do not reach twice the rate of one. As many clips are fetched at once there as here, and as many threads finish
  others meanwhile. Connecting to the cluster is part of its time; its first run, in which workers import what they
  need, is not counted. CPU seconds hold under load as well; those of the cluster include what idle processes take,
  about a tenth of a CPU. A task's cost is the time of 1,000 empty tasks with arguments of that size, divided by their
  number.
  Goals in seconds hold on a machine whose Python starts in at most 0.03 s; on slower ones they are scaled by it.

Needs: what bench_copy.py needs, and distributed. Leaves nothing behind. Exit status 1: a goal was missed, or VOID.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
import bench_copy as common  # noqa: E402
from bench_copy import ROOT, SERVER_CPUS, TINY_MEDIA, Bench, Cloud, Ended, Figure, say  # noqa: E402
from dask_cluster import DaskCluster  # noqa: E402

CAMERAS, ALERTS, ALERT_CAMERAS = 1000, 5000, 200
DASK_CAMERAS, DASK_THREADS = 100, 8
LATENCY_SEC = 0.2
USUAL_START_SEC = 0.03
HELP_GOAL_SEC, PLAN_GOAL_SEC, PAGE_GOAL_SEC, STATUS_GOAL_SEC, TASK_GOAL_SEC = 0.2, 3.0, 10.0, 10.0, 0.005
PAGE_GOAL_BYTES = 5_000_000
DAY_SEC = 86400
PROGRAMS = ("copy_footage.py", "rtsp_recorder.py", "nas_sync.py", "capture_analyzer.py")


def call(bench: Bench, program: str, *words: object, statuses: tuple[int, ...] = (0,), **environment: str) -> Ended:
    command = [sys.executable, str(ROOT / program), *map(str, words)]
    return common.run(command, common.clean_env(**environment), statuses=statuses)


def scaled(bench: Bench, goal_sec: float) -> float:
    return goal_sec * max(1.0, bench.samples["python start s"] / USUAL_START_SEC)


def timed(bench: Bench, part: str, what: str, seconds: float, goal_sec: float, limit: str = "") -> None:
    goal = scaled(bench, goal_sec)
    bench.add(Figure(part, what, f"{seconds:.2f} s", f"{goal:.2f} s", seconds <= goal, limit))


# --- copy_footage.py ---


def api_calls(cloud: Cloud) -> tuple[int, int]:
    """(calls that list and address, presence queries) in the simulator's log."""
    log = [one for one in cloud.ask("GET", "/_sim/requests") if one["kind"] == "api"]
    presence = sum("PresenceWindows" in one["path"] for one in log)
    return len(log) - presence, presence


def account(cloud: Cloud) -> dict[str, str]:
    return {"RHOMBUS_API_KEY": cloud.about["api_key"], "RHOMBUS_API_URL": cloud.about["api_url"]}


def part_plan(bench: Bench) -> None:
    with Cloud("--cameras", str(CAMERAS), *TINY_MEDIA) as cloud:
        start = str(common.range_start(3600))
        words = ["-s", start, "-u", "2", "--output_dir", bench.fresh(), "--quiet"]
        dry = call(bench, "copy_footage.py", *words, "--dry_run", **account(cloud))
        timed(bench, "plan", f"{CAMERAS} cameras, --dry_run", dry.wall_sec, PLAN_GOAL_SEC)
        cloud.clear()
        call(bench, "copy_footage.py", *words, "--max_duration", "2", statuses=(0, 1), **account(cloud))
        calls, presence = api_calls(cloud)
        bench.add(Figure("plan", f"{CAMERAS} cameras, a real run: API calls", str(calls), "15", calls <= 15,
                         f"and {presence} presence queries in the first 2 s"))


def part_alerts(bench: Bench) -> None:
    with Cloud("--cameras", str(ALERT_CAMERAS), "--alerts", str(ALERTS), *TINY_MEDIA) as cloud:
        cloud.ask("POST", "/_sim/switches", {"page_cap": 1000})
        words = ["--alerts", "--max_alerts", ALERTS, "--output_dir", bench.fresh(), "--dry_run", "--quiet"]
        ended = call(bench, "copy_footage.py", *words, **account(cloud))
        timed(bench, "alerts", f"{ALERTS} alerts on {ALERT_CAMERAS} cameras, --dry_run", ended.wall_sec, PLAN_GOAL_SEC,
              f"{api_calls(cloud)[0]} API calls")


def part_dask(bench: Bench) -> None:
    folder = bench.fresh("dask")
    with Cloud("--cameras", str(DASK_CAMERAS), *TINY_MEDIA) as cloud:
        cloud.switch({"latency_sec": LATENCY_SEC})
        with common.pinned(common.CLIENT_CPUS):
            cluster = DaskCluster(folder, workers=2, threads=DASK_THREADS)
        try:
            start = common.range_start(3600)

            cpu: dict[bool, list[float]] = {False: [], True: []}  # of one run, by: was it on the cluster

            def once(*words: object) -> float:
                place, before = bench.fresh(), cluster.cpu_sec()
                fixed = ["-s", start, "-u", 20, "--no_audio", "-w", "--output_dir", place, "--quiet"]
                ended = call(bench, "copy_footage.py", *fixed, "--segment_workers", 1, *words, **account(cloud))
                there = "--scheduler" in words
                cpu[there].append(ended.cpu_sec + (cluster.cpu_sec() - before) * there)
                return ended.wall_sec

            once("--workers", DASK_THREADS // 2, "--scheduler", cluster.address)  # workers import what they need once
            few = [word for number in range(DASK_CAMERAS // 20) for word in ("-cam", f"Camera {number:03}")]
            here, there, alone = [], [], once("--workers", "1", *few) * DASK_CAMERAS / (DASK_CAMERAS // 20)
            for _ in range(bench.repeat):
                here.append(once("--workers", DASK_THREADS))
                there.append(once("--workers", DASK_THREADS // 2, "--scheduler", cluster.address))
            ratio = common.median(here) / common.median(there)
            if alone / common.median(here) < common.VOID_BELOW:
                bench.add(Figure("dask", "VOID: threads here are no faster than one", f"{alone:.1f} s", "", False))
            bench.add(Figure("dask", f"{DASK_CAMERAS} clips, two workers against the same threads here",
                             f"{ratio:.2f} x ({common.median(there):.1f} and {common.median(here):.1f} s)", "0.90 x",
                             ratio >= 0.9))
            far, near = (common.median(cpu[there][1:]) / DASK_CAMERAS * 1000 for there in (True, False))
            bench.add(Figure("dask", "CPU of a clip there, in all processes, and here", f"{far:.0f} and {near:.0f} ms"))
            cost = task_cost_sec(cluster)
            bench.add(Figure("dask", "cost of a task", f"{cost * 1000:.1f} ms", f"{TASK_GOAL_SEC * 1000:.0f} ms",
                             cost <= TASK_GOAL_SEC))
        finally:
            cluster.close()


def task_cost_sec(cluster: DaskCluster, count: int = 1000) -> float:
    """Seconds per task of so many empty ones, with arguments as large as those of a clip."""
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client, client.get_executor(pure=False) as pool:
        payload = {"settings": "x" * 2000, "addresses": "y" * 1000}
        list(pool.map(len, [payload] * 10))
        began = time.monotonic()
        futures = [pool.submit(len, payload) for _ in range(count)]
        assert sum(future.result() for future in futures) == 2 * count
        return (time.monotonic() - began) / count


# --- the archive ---


def journal_lines(start: int, days: int, segment_sec: int, dice: random.Random) -> Iterator[tuple[str, str]]:
    """(day, line) of a recorder that lost a minute now and then."""
    at = start
    while at < start + days * DAY_SEC:
        end = at + segment_sec
        day = time.strftime("%Y-%m-%d", time.gmtime(at))
        name = time.strftime("%Y%m%dT%H%M%S.mkv", time.gmtime(at))
        yield day, json.dumps({"kind": "segment", "file": name, "start": at, "end": end, "frames": segment_sec * 25,
                               "bytes": segment_sec * 300_000, "whole": True})
        if dice.random() < 0.02:
            yield day, json.dumps({"kind": "down", "start": end, "end": end + 60, "cause": "stall"})
            end += 60
        at = end


def make_recordings(root: Path, cameras: int, days: int, segment_sec: int = 3600) -> None:
    """Journals and empty-looking files, as `record` leaves them: what `report` reads."""
    dice, start = random.Random(1), int(time.time()) // DAY_SEC * DAY_SEC - days * DAY_SEC
    for number in range(cameras):
        camera = f"Cam{number:03}"
        journal = root / ".rtsp_recorder" / "journal" / camera
        journal.mkdir(parents=True)
        (root / camera).mkdir()
        days_of: dict[str, list[str]] = {}
        for day, line in journal_lines(start, days, segment_sec, dice):
            days_of.setdefault(day, []).append(line)
        for day, lines in days_of.items():
            (journal / f"{day}.jsonl").write_text("\n".join(lines) + "\n")


def part_report(bench: Bench) -> None:
    for cameras, days in ((100, 1), (1, 365)):
        root = bench.fresh("recordings")
        make_recordings(root, cameras, days)
        page = root / "report.html"
        ended = call(bench, "capture_analyzer.py", "report", root, "--output", page, "--quiet")
        what = f"{cameras} camera{'s' * (cameras > 1)} x {days} day{'s' * (days > 1)}"
        timed(bench, "report", what, ended.wall_sec, PAGE_GOAL_SEC)
        size = page.stat().st_size
        bench.add(Figure("report", f"{what}: size", f"{size / 1e6:.2f} MB", "5 MB", size <= PAGE_GOAL_BYTES))


def synced_line(path: str, target: str, at: int) -> str:
    body = f"{path}\t1000000\t{at}000000000\t{hashlib.sha256(path.encode()).hexdigest()}\t{target}\tchecksum\t" + (
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)))
    return f"{body}\t{zlib.crc32(body.encode()):08x}"


def part_status(bench: Bench) -> None:
    root, files = bench.fresh("archive"), bench.samples["files"]
    logs, now = root / "success", int(time.time())
    logs.mkdir()
    state = root / "ready" / ".nas_sync"
    state.mkdir(parents=True)
    (state / "targets.json").write_text(json.dumps({"nas": {"id": "nas-1", "address": str(root / "nas")}}))
    per_day = 10 * 24
    for day in range(files // per_day + 1):
        at = now - day * DAY_SEC
        stamp = time.strftime("%Y-%m-%d", time.gmtime(at))
        paths = [f"Cam{number % 10:03}/{stamp}/{number:06}.mkv" for number in range(per_day)]
        (logs / f"{stamp}.synced").write_text("".join(synced_line(path, "nas-1", at) + "\n" for path in paths))
    (root / "nas").mkdir()
    config = root / "config.yaml"
    config.write_text(json.dumps({
        "storage": {"local_path": str(root / "recordings")}, "nas": {
            "ready_for_backup_dir": str(root / "ready"), "nas_target_dir": str(root / "nas"),
            "success_log_dir": str(logs), "lock_dir": str(root / "lock")}}))
    (root / "recordings").mkdir()
    ended = call(bench, "nas_sync.py", "status", "--config", config, "--quiet")
    timed(bench, "status", f"{files:,} archived files", ended.wall_sec, STATUS_GOAL_SEC, f"{ended.cpu_sec:.2f} CPU s")


def part_help(bench: Bench) -> None:
    for program in PROGRAMS:
        seconds = common.median([call(bench, program, "--help").cpu_sec for _ in range(bench.repeat)])
        timed(bench, "help", f"{program} --help, CPU", seconds, HELP_GOAL_SEC)


PARTS: dict[str, Callable[[Bench], None]] = {
    "plan": part_plan, "alerts": part_alerts, "dask": part_dask, "report": part_report, "status": part_status,
    "help": part_help,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} or all (default: all)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="medians of so many (default: 3)")
    parser.add_argument("--files", type=int, default=1_000_000, metavar="N", help="of the status part")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    names = [name for name in arguments.parts if name != "all"] or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}")
    os.sched_setaffinity(0, SERVER_CPUS)
    with tempfile.TemporaryDirectory(prefix="bench_fleet-") as folder:
        calibration = common.calibrate(Path(folder))
        samples = {"python start s": calibration["python start s"], "files": arguments.files}
        bench = Bench(ROOT, arguments.repeat, Path(folder), samples=samples)
        for name in names:
            say(name)
            PARTS[name](bench)
    print("\n".join(f"{name}: {value}" for name, value in calibration.items()) + "\n\n" + common.table(bench.figures))
    return 1 if any(one.met is False for one in bench.figures) else 0


if __name__ == "__main__":
    sys.exit(main())
