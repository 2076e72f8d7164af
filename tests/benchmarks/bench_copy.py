#!/usr/bin/env python3
"""How fast and how frugal copy_footage.py is, as ratios to its peers, measured in one run on one machine.

examples:
  python tests/benchmarks/bench_copy.py                         everything, about twenty minutes
  python tests/benchmarks/bench_copy.py wan --repeat 5          against curl -Z with 16 transfers of the same bytes
  python tests/benchmarks/bench_copy.py lan memory --json now.json
  python tests/benchmarks/bench_copy.py wan --program /tmp/try/copy_footage.py     a changed copy of the program

parts:
  wan      40 ms a request, 200 Mbit/s link, 6 MB/s a connection, 3 Mbit/s footage: ours, curl, yt-dlp, requests
  lan      TLS without limits: client CPU seconds per GB of ours, curl, urllib3, requests
  memory   peak of our process and FFmpeg together, for few, many, large and parallel segments
  fleet    100 cameras: share of the link, and whether each gets its part of it
  rerun    over 1,000 finished clips
  startup  --help, and what the packages cost that we import

How it is measured:
  The simulator runs in a process of its own on the first CPU, everything that downloads is pinned to the last one
  (with its children, FFmpeg too), so that neither takes time from the other; this script sits beside the simulator.
  Where it may (root), all of them run at a higher priority than the rest of the machine; the line "others" of the
  calibration says how much of the time somebody still had to wait for a CPU (pressure, proc(5)).
  The network phase runs from the simulator having read the first request for a media segment to its having written
  the last byte of the last one (asked for every 20 ms); end to end runs from the start of the process to its end.
  curl writes files and syncs nothing; ours also asks the API, hashes, muxes, checks and syncs.
  CPU per GB is (CPU of a long clip - CPU of a clip of one segment) / bytes, for ours and for every peer alike, so start
  and API calls are left out. "To the part file" is the program itself with an `ffmpeg` that is /bin/false: it ends when
  the part file is complete and the mux fails. Peers write to /dev/null; what writing a file costs stands in the
  calibration. The goals hold where urllib3 alone takes 0.9 to 1.1 s per GB; on other machines they are scaled by it.
  Memory is read every 5 ms from /proc/PID/status of the whole process tree: anonymous pages of all, and the file pages
  (code) of each program once, however many FFmpegs run.
  wan is VOID when curl is not at least twice as fast without the limits: then the simulator was measured.

Needs: Linux, curl (Debian's will do), the program's own packages and trustme. Only for this script, and optional:
  yt-dlp   pip install yt-dlp   a peer of the wan part; used where it is on PATH or beside this Python
Leaves nothing behind, except the simulator's media in the temporary folder. Exit status 1: a goal was missed, or VOID.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import platform
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent.parent
SIMULATOR = ROOT / "tests" / "rhombus_simulator.py"
CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPUS, CLIENT_CPUS = {CPUS[0]}, {CPUS[-1]}
LINK_BYTES_PER_SEC, CONNECTION_BYTES_PER_SEC, LATENCY_SEC = 25_000_000, 6_000_000, 0.04
SLOW = {"latency_sec": LATENCY_SEC, "link_bytes_per_sec": LINK_BYTES_PER_SEC,
        "connection_bytes_per_sec": CONNECTION_BYTES_PER_SEC}
FAST = dict.fromkeys(SLOW, 0.0)
HD_MEDIA = ("--media_width", "1280", "--media_height", "720", "--media_fps", "25", "--media_bitrate", "3000000")
TINY_MEDIA = ("--media_width", "64", "--media_height", "48", "--media_fps", "1", "--media_bitrate", "8000")
SMALL_MEDIA = ("--media_width", "64", "--media_height", "48", "--media_fps", "25", "--media_bitrate", "20000")
CURL_TRANSFERS = 16
SEQUENTIAL_SEGMENTS = 40  # enough for the rate of one request after another
SAMPLE_SEC = 0.005
PHASE_POLL_SEC = 0.02
VOID_BELOW = 2.0  # curl without limits must be so many times faster than with them
PRIORITY = -10
LONGEST_SILENCE_SEC = 5.0  # a camera that waits longer between two of its segments counts as starved
USUAL_URLLIB3_SEC_PER_GB = (0.9, 1.1)
LAN_GOALS = {"ours, network to part file": 1.4, "ours, all in": 3.5}  # CPU seconds per GB
BUSY_SHARE = 0.9  # of a CPU: this is what limits
SAME_MEMORY = 1.25
RUN_LIMIT_SEC = 1800
TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")
MB, GB = 1e6, 1e9

URLLIB3_LOOP = """
import json, sys, urllib3
urllib3.disable_warnings()
job = json.load(open(sys.argv[1]))
pool = urllib3.PoolManager(cert_reqs="CERT_NONE", retries=False)
with open("/dev/null", "wb") as target:
    for url in job["urls"]:
        response = pool.request("GET", url, headers=job["headers"], preload_content=False)
        assert response.status == 200, response.status
        target.write(response.read())
        response.release_conn()
"""
REQUESTS_LOOP = """
import json, sys, requests, urllib3
urllib3.disable_warnings()
job = json.load(open(sys.argv[1]))
session = requests.Session()
session.trust_env = False
with open("/dev/null", "wb") as target:
    for url in job["urls"]:
        response = session.get(url, headers=job["headers"], verify=False)
        assert response.status_code == 200, response.status_code
        target.write(response.content)
"""


# --- values ---


@dataclass(frozen=True)
class Figure:
    """A line of the result. `met` is None where there is no goal."""

    part: str
    what: str
    reached: str
    goal: str = ""
    met: bool | None = None
    limit: str = ""  # what limits: link, disk, our CPU, the peer …


@dataclass(frozen=True)
class Ended:
    """A process that has ended; CPU seconds are user and system together."""

    status: int
    began_at: float  # epoch seconds
    wall_sec: float
    own_cpu_sec: float
    children_cpu_sec: float
    words: str

    @property
    def cpu_sec(self) -> float:
        return self.own_cpu_sec + self.children_cpu_sec


@dataclass(frozen=True)
class Sample:
    """One measured download."""

    wall_sec: float
    bytes_per_sec: float  # of the network phase
    before_sec: float  # process start to first segment request
    after_sec: float  # last byte to process end
    client_cpu_share: float
    server_cpu_share: float


@dataclass
class Bench:
    """What the parts share: settings, and where results go."""

    program: Path
    repeat: int
    folder: Path
    figures: list[Figure] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)

    def add(self, *figures: Figure) -> None:
        self.figures += figures

    def fresh(self, name: str = "out") -> Path:
        """An empty folder; what earlier runs wrote is gone, also from the queue to the disk."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        folder.mkdir()
        return folder


def say(words: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {words}\n")


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


# --- processes ---


@contextmanager
def pinned(cpus: set[int]) -> Iterator[None]:
    """Children that are started inside run on these CPUs only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_of(pid: int) -> tuple[float, float]:
    """CPU seconds of a process, and of its children that were waited for (proc(5), fields 14 to 17)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, child_user, child_system = (int(value) / TICKS_PER_SEC for value in fields[11:15])
    return user + system, child_user + child_system


def run(command: Sequence[str | Path], env: dict[str, str] | None = None, watch: Callable[[int], None] | None = None,
        statuses: tuple[int, ...] = (0,)) -> Ended:
    """Run a program on the client's CPU to its end. `watch` is told its pid. Raises when the status is another."""
    with tempfile.TemporaryFile("w+") as stderr:
        with pinned(CLIENT_CPUS):
            began_at, began = time.time(), time.monotonic()
            process = subprocess.Popen([str(word) for word in command], env=env or clean_env(),
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        limit = threading.Timer(RUN_LIMIT_SEC, process.kill)
        limit.start()
        if watch:
            watch(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # the zombie still has its figures
        wall = time.monotonic() - began
        own, children = cpu_of(process.pid)
        status = process.wait()
        limit.cancel()
        stderr.seek(0)
        words = stderr.read()
    if status not in statuses:
        raise RuntimeError(f"{Path(str(command[0])).name} ended with status {status}: {words.strip()[-2000:]}")
    return Ended(status, began_at, wall, own, children, words)


def clean_env(**more: str) -> dict[str, str]:
    """The environment without what would change a peer or ours: keys, proxies, certificates."""
    unwanted = ("RHOMBUS_", "REQUESTS_", "CURL_", "SSL_", "HTTP", "ALL_PROXY", "NO_PROXY", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(unwanted)}
    return kept | more


# --- the simulator ---


class Cloud:
    """The simulator in a process of its own, on its own CPU; a context manager."""

    def __init__(self, *options: str) -> None:
        with pinned(SERVER_CPUS):
            self.process = subprocess.Popen([sys.executable, str(SIMULATOR), "--exit_with_stdin", *options],
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the simulator did not start")
        self.about: dict[str, Any] = json.loads(line)
        self._local = threading.local()

    def __enter__(self) -> Cloud:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(10)

    @property
    def tls(self) -> bool:
        return bool(self.about["ca_file"])

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """A request to the API port, over a connection that each thread keeps."""
        if not hasattr(self._local, "connection"):
            parts = urlsplit(self.about["api_url"])
            assert parts.hostname
            context = ssl.create_default_context(cafile=self.about["ca_file"]) if self.tls else None
            self._local.connection = (http.client.HTTPSConnection(parts.hostname, parts.port, context=context)
                                      if context else http.client.HTTPConnection(parts.hostname, parts.port))
        connection = self._local.connection
        connection.request(method, path, json.dumps(body) if body is not None else None, headers or {})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"{path}: the simulator answers {answer.status}: {content}")
        return content

    def switch(self, switches: dict[str, float]) -> None:
        self.ask("POST", "/_sim/switches", switches)

    def clear(self) -> None:
        self.ask("POST", "/_sim/clear", {})

    def media_bytes(self) -> int:
        return int(self.ask("GET", "/_sim/counts")["media_bytes"])

    def segments(self) -> list[dict[str, Any]]:
        """The log's requests for media segments that were answered, in the order in which they came."""
        return [one for one in self.ask("GET", "/_sim/requests")
                if one["kind"] != "api" and "/seg_" in one["path"] and "init" not in one["path"]
                and one["status"] == 200]

    def media_requests(self) -> int:
        return sum(one["kind"] != "api" for one in self.ask("GET", "/_sim/requests"))

    def cpu_sec(self) -> float:
        return cpu_of(self.process.pid)[0]

    def token(self) -> str:
        headers = {"x-auth-scheme": "api-token", "x-auth-apikey": self.about["api_key"]}
        answer = self.ask("POST", "/api/org/generateFederatedSessionToken", {"durationSec": 3600}, headers)
        return str(answer["federatedSessionToken"])


@dataclass(frozen=True)
class Job:
    """What a peer fetches: the same segments with the same kind of credential."""

    urls: list[str]
    headers: dict[str, str]
    size_bytes: int


def job_of(cloud: Cloud, headers: dict[str, str]) -> Job:
    """The segments that ours has just fetched, each once."""
    scheme = "https" if cloud.tls else "http"
    found = {f"{scheme}://{one['host']}{one['path']}": one["sent_bytes"] for one in cloud.segments()}
    if not found:
        raise RuntimeError("no media segment was requested")
    return Job(list(found), headers, sum(found.values()))


class PhaseWatch(threading.Thread):
    """Notes when the simulator has written the last byte of media: when its count last grew."""

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(daemon=True)
        self.cloud, self.sent_bytes, self.ended_at = cloud, 0, 0.0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(PHASE_POLL_SEC):
            try:
                sent = self.cloud.media_bytes()
            except (OSError, http.client.HTTPException):  # it has died; who asks next says so
                return
            if sent > self.sent_bytes:
                self.sent_bytes, self.ended_at = sent, time.time()


def measure(cloud: Cloud, size_bytes: int, download: Callable[[], Ended]) -> Sample:
    """One download of so many bytes of segments (0: of any number), seen from both ends."""
    cloud.clear()
    watch = PhaseWatch(cloud)
    watch.start()
    server_cpu = cloud.cpu_sec()
    ended = download()
    if cloud.process.poll() is not None:
        raise RuntimeError(f"the simulator ended with status {cloud.process.returncode}")
    server_cpu = cloud.cpu_sec() - server_cpu
    time.sleep(10 * PHASE_POLL_SEC)
    watch.over.set()
    watch.join()
    log = cloud.segments()
    got = sum(one["sent_bytes"] for one in log)
    if got < size_bytes:
        raise RuntimeError(f"only {got} of {size_bytes} bytes were fetched")
    finished = ended.began_at + ended.wall_sec
    first, last = min(one["at"] for one in log), min(watch.ended_at, finished)  # curl ends before the next question
    return Sample(ended.wall_sec, got / (last - first), first - ended.began_at, finished - last,
                  ended.cpu_sec / ended.wall_sec, server_cpu / ended.wall_sec)


# --- ours and the peers ---


def ours(bench: Bench, cloud: Cloud, words: Sequence[str], folder: Path, *, ffmpeg: Path | None = None,
         watch: Callable[[int], None] | None = None, statuses: tuple[int, ...] = (0,)) -> Ended:
    """The program as a user starts it. `ffmpeg` is a folder to find an FFmpeg in before all others."""
    config = bench.folder / "empty.yaml"
    config.write_text("{}\n")
    env = clean_env(RHOMBUS_API_KEY=cloud.about["api_key"], RHOMBUS_API_URL=cloud.about["api_url"])
    if cloud.tls:
        env["REQUESTS_CA_BUNDLE"] = cloud.about["ca_file"]
    if ffmpeg:
        env["PATH"] = f"{ffmpeg}{os.pathsep}{env['PATH']}"
    command: list[str | Path] = [sys.executable, bench.program, *words]
    command += ["--output_dir", folder, "--config", config, "--quiet"]
    return run(command, env, watch, statuses)


def curl(job: Job, folder: Path, transfers: int, *, keep: bool = True) -> Ended:
    """curl -Z with all addresses in a config file. --parallel-immediate: no waiting for HTTP/2 on a connection."""
    lines = [f'header = "{name}: {value}"' for name, value in job.headers.items()]
    for number, url in enumerate(job.urls):
        lines += [f'url = "{url}"', f'output = "{folder / str(number) if keep else os.devnull}"']
    config = folder / "curl.config"
    config.write_text("\n".join(lines) + "\n")
    ended = run(["curl", "-q", "-Z", "--parallel-max", str(transfers), "--parallel-immediate", "--fail", "--silent",
                 "--show-error", "--insecure", "--config", config])
    got = sum(path.stat().st_size for path in folder.iterdir() if path != config)
    if keep and got != job.size_bytes:
        raise RuntimeError(f"curl wrote {got} of {job.size_bytes} bytes")
    return ended


def loop(code: str, job: Job, folder: Path) -> Ended:
    """A few lines of Python that fetch one segment after another, and keep nothing."""
    task = folder / "job.json"
    task.write_text(json.dumps({"urls": job.urls, "headers": job.headers}))
    return run([sys.executable, "-c", code, task])


def yt_dlp(program: str, mpd_url: str, headers: dict[str, str], folder: Path) -> Ended:
    flags = [word for name, value in headers.items() for word in ("--add-headers", f"{name}:{value}")]
    return run([program, "--ignore-config", "--quiet", "--no-warnings", "-N", "8", "--fixup", "never", *flags,
                "-o", folder / "target.mp4", mpd_url])


def find_yt_dlp() -> str | None:
    beside = Path(sys.executable).with_name("yt-dlp")
    return shutil.which("yt-dlp") or (str(beside) if beside.exists() else None)


def key_headers(cloud: Cloud) -> dict[str, str]:
    return {"x-auth-scheme": "api-token", "x-auth-apikey": cloud.about["api_key"]}


def range_start(seconds: int) -> int:
    """The start of a range that ended some hours ago, on an even second."""
    return int(time.time() - 6 * 3600 - seconds) // 2 * 2


def what_limits(sample: Sample) -> str:
    if sample.server_cpu_share > BUSY_SHARE:
        return "the load generator"
    if sample.client_cpu_share > BUSY_SHARE:
        return "client CPU"
    if sample.bytes_per_sec > 0.95 * LINK_BYTES_PER_SEC:
        return "link"
    return "latency"


# --- wan ---


def part_wan(bench: Bench) -> None:
    with Cloud("--cameras", "8", *HD_MEDIA) as cloud:
        cloud.switch(SLOW)
        start = str(range_start(600))
        common = ["-s", start, "-w", "--no_audio"]
        compare_wan(bench, cloud, "one 10-minute clip", [*common, "-u", "600", "-cam", "Camera 000"], 0.97, 0.88, True)
        compare_wan(bench, cloud, "eight 2-minute clips", [*common, "-u", "120"], 0.97, 0.93, False)


def compare_wan(bench: Bench, cloud: Cloud, name: str, words: list[str], phase_goal: float, whole_goal: float,
                all_peers: bool) -> None:
    """Ours and curl in turns; medians of the ratios' two sides."""
    say(f"wan, {name}: warming up")
    cloud.clear()
    ours(bench, cloud, words, bench.fresh())
    job = job_of(cloud, key_headers(cloud))
    mine, peer = [], []
    for turn in range(bench.repeat):
        mine.append(measure(cloud, job.size_bytes, lambda: ours(bench, cloud, words, bench.fresh())))
        peer.append(measure(cloud, job.size_bytes, lambda: curl(job, bench.fresh(), CURL_TRANSFERS)))
        say(f"wan, {name}: {turn + 1} of {bench.repeat}: ours {brief(mine[-1])}; curl {brief(peer[-1])}")
    bench.samples[f"wan {name}"] = {"ours": [asdict(one) for one in mine], "curl": [asdict(one) for one in peer]}
    report_wan(bench, name, mine, peer, phase_goal, whole_goal)
    if all_peers:
        check_generator(bench, cloud, job, median([one.bytes_per_sec for one in peer]))
        other_peers(bench, cloud, job)


def brief(sample: Sample) -> str:
    return (f"{sample.bytes_per_sec / MB:.2f} MB/s, {sample.wall_sec:.2f} s "
            f"(before {sample.before_sec:.2f}, after {sample.after_sec:.2f})")


def report_wan(bench: Bench, name: str, mine: list[Sample], peer: list[Sample], phase_goal: float,
               whole_goal: float) -> None:
    def middle(samples: list[Sample], what: str) -> float:
        return median([float(getattr(one, what)) for one in samples])

    rates = middle(mine, "bytes_per_sec"), middle(peer, "bytes_per_sec")
    walls = middle(mine, "wall_sec"), middle(peer, "wall_sec")
    phase, whole = rates[0] / rates[1], walls[1] / walls[0]
    typical = sorted(mine, key=lambda one: one.wall_sec)[len(mine) // 2]
    bench.add(
        Figure("wan", f"{name}: network phase, of curl's", f"{phase:.3f} ({rates[0] / MB:.2f} to {rates[1] / MB:.2f} "
               f"MB/s)", f">= {phase_goal}", phase >= phase_goal, what_limits(typical)),
        Figure("wan", f"{name}: end to end, of curl's", f"{whole:.3f} ({walls[0]:.2f} to {walls[1]:.2f} s)",
               f">= {whole_goal}", whole >= whole_goal,
               f"{middle(mine, 'before_sec'):.2f} s before the first segment, {middle(mine, 'after_sec'):.2f} s after "
               "the last (curl: "
               f"{middle(peer, 'before_sec'):.2f} and {middle(peer, 'after_sec'):.2f})"),
        Figure("wan", f"{name}: share of the link", f"ours {rates[0] / LINK_BYTES_PER_SEC:.1%}, "
               f"curl {rates[1] / LINK_BYTES_PER_SEC:.1%}"))


def check_generator(bench: Bench, cloud: Cloud, job: Job, limited_rate: float) -> None:
    """Is the simulator so fast that its limits, and not itself, were measured?"""
    cloud.switch(FAST)
    free = measure(cloud, job.size_bytes, lambda: curl(job, bench.fresh(), CURL_TRANSFERS))
    cloud.switch(SLOW)
    factor = free.bytes_per_sec / limited_rate
    bench.add(Figure("wan", "curl without the limits, times as fast", f"{factor:.1f}" + (
        "" if factor >= VOID_BELOW else " VOID: the simulator limits"), f">= {VOID_BELOW}", factor >= VOID_BELOW))


def other_peers(bench: Bench, cloud: Cloud, job: Job) -> None:
    """yt-dlp, and one request after another."""
    if program := find_yt_dlp():
        mpd = f"{job.urls[0].rpartition('/')[0]}/file.mpd"
        say("wan: yt-dlp")
        sample = measure(cloud, job.size_bytes, lambda: yt_dlp(program, mpd, job.headers, bench.fresh()))
        bench.add(Figure("wan", "yt-dlp -N 8: share of the link", f"{sample.bytes_per_sec / LINK_BYTES_PER_SEC:.1%} "
                         f"(end to end {sample.wall_sec:.2f} s)"))
    few = Job(job.urls[:SEQUENTIAL_SEGMENTS], job.headers, 0)
    cloud.clear()
    say("wan: one request after another")
    began = time.monotonic()
    loop(REQUESTS_LOOP, few, bench.fresh())
    rate = sum(one["sent_bytes"] for one in cloud.segments()) / (time.monotonic() - began)
    bench.add(Figure("wan", "requests, one after another: share of the link", f"{rate / LINK_BYTES_PER_SEC:.1%}"))


# --- lan ---


def part_lan(bench: Bench) -> None:
    """CPU per GB on TLS, each the median of --repeat."""
    nothing = bench.fresh("no_ffmpeg")
    (nothing / "ffmpeg").symlink_to(shutil.which("false") or "/bin/false")
    with Cloud("--tls", "--cameras", "1", *HD_MEDIA) as cloud:
        start = range_start(1200)

        def words(seconds: int) -> list[str]:
            return ["-s", str(start), "-u", str(seconds), "--no_audio", "--lan_only"]

        cloud.clear()
        ours(bench, cloud, words(1200), bench.fresh())
        token = cloud.token()
        job = job_of(cloud, {"x-auth-scheme": "federated-token", "x-auth-ft": token})
        first = [one["sent_bytes"] for one in cloud.segments() if job.urls[0].endswith(one["path"])][0]
        one = Job(job.urls[:1], job.headers, first)
        ways: dict[str, Callable[[bool], Ended]] = {
            "ours, network to part file": lambda whole: to_part(bench, cloud, words(1200 if whole else 2), nothing),
            "ours, all in": lambda whole: ours(bench, cloud, words(1200 if whole else 2), bench.fresh()),
            "curl -Z, 2 transfers": lambda whole: curl(job if whole else one, bench.fresh(), 2, keep=False),
            "urllib3 alone": lambda whole: loop(URLLIB3_LOOP, job if whole else one, bench.fresh()),
            "requests alone": lambda whole: loop(REQUESTS_LOOP, job if whole else one, bench.fresh()),
        }
        costs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for turn in range(bench.repeat):
            for name, way in ways.items():
                long, short = way(True), way(False)
                gb = (job.size_bytes - first) / GB
                costs[name].append(((long.own_cpu_sec - short.own_cpu_sec) / gb,
                                    (long.children_cpu_sec - short.children_cpu_sec) / gb, long.wall_sec))
            say(f"lan: {turn + 1} of {bench.repeat}: " + ", ".join(
                f"{name} {sum(cost[-1][:2]):.2f}" for name, cost in costs.items()))
    bench.samples["lan"] = costs
    scale = machine_scale(median([sum(cost[:2]) for cost in costs["urllib3 alone"]]))
    for name, cost in costs.items():
        report_lan(bench, name, cost, job.size_bytes, scale)


def machine_scale(urllib3_sec_per_gb: float) -> float:
    """How much slower this machine is than those for which the goals were set."""
    low, high = USUAL_URLLIB3_SEC_PER_GB
    return urllib3_sec_per_gb / min(max(urllib3_sec_per_gb, low), high)


def to_part(bench: Bench, cloud: Cloud, words: list[str], nothing: Path) -> Ended:
    folder = bench.fresh()
    ended = ours(bench, cloud, words, folder, ffmpeg=nothing, statuses=(1,))
    if not list(folder.glob("*.mp4.part")):
        raise RuntimeError(f"no part file was left: {ended.words}")
    return ended


def report_lan(bench: Bench, name: str, cost: list[tuple[float, float, float]], size_bytes: int, scale: float) -> None:
    own, children, wall = (median([one[column] for one in cost]) for column in range(3))
    total, goal = own + children, LAN_GOALS.get(name, 0.0) * scale
    bench.add(Figure("lan", f"{name}: CPU s per GB", f"{total:.2f}" + (f" (FFmpeg {children:.2f})" if children > 0.05
              else ""), f"<= {goal:.2f}" if goal else "", total <= goal if goal else None,
              f"{size_bytes / wall / MB:.0f} MB/s end to end"))


# --- memory ---


@dataclass(frozen=True)
class Memory:
    """Of one process, in MB."""

    name: str
    anonymous: float
    file: float


class MemoryWatch(threading.Thread):
    """Memory of a process tree, every 5 ms, and what it was at its peak."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.pid = 0
        self.over = threading.Event()
        self.peak_mb = 0.0
        self.highest: dict[str, float] = {}  # name → the most that one process of it had, MB

    def begin(self, pid: int) -> None:
        self.pid = pid
        self.start()

    def run(self) -> None:
        while not self.over.wait(SAMPLE_SEC):
            seen = [one for pid in tree_of(self.pid) if (one := memory_of(pid))]
            self.peak_mb = max(self.peak_mb, together(seen))
            for one in seen:
                self.highest[one.name] = max(self.highest.get(one.name, 0.0), one.anonymous + one.file)


def together(seen: Sequence[Memory]) -> float:
    """Anonymous pages of all, and the file pages of each program once."""
    files: dict[str, float] = {}
    for one in seen:
        files[one.name] = max(files.get(one.name, 0.0), one.file)
    return sum(one.anonymous for one in seen) + sum(files.values())


def tree_of(pid: int) -> list[int]:
    """The process and all below it that live."""
    found = [pid]
    for parent in found:
        try:
            for thread in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
        except OSError:  # the thread or the process has ended meanwhile
            continue
    return found


def memory_of(pid: int) -> Memory | None:
    """None when the process is gone, or has no memory left."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    if "RssAnon" not in values:
        return None
    anonymous, file, shared = (int(values[name].split()[0]) * 1024 / MB for name in ("RssAnon", "RssFile", "RssShmem"))
    return Memory(values["Name"], anonymous, file + shared)


def part_memory(bench: Bench) -> None:
    peaks: dict[int, float] = {}
    with Cloud("--cameras", "1", *TINY_MEDIA) as cloud:
        for count in (300, 43_200):
            name = f"{count:,} tiny segments (1 fps)"
            peaks[count] = memory_case(bench, cloud, name, ["-u", str(2 * count)], 2 * count)
    ratio = peaks[43_200] / peaks[300]
    bench.add(Figure("memory", "43,200 to 300 segments", f"{ratio:.2f}", f"the same (<= {SAME_MEMORY})",
                     ratio <= SAME_MEMORY, "FFmpeg keeps about 125 bytes a frame"))
    with Cloud("--cameras", "4", *HD_MEDIA) as cloud:
        memory_case(bench, cloud, "300 segments of 3 Mbit/s", ["-u", "600", "-cam", "Camera 000"], 600)
        memory_case(bench, cloud, "4 x 300 segments of 3 Mbit/s at once", ["-u", "600"], 600)
    with Cloud("--cameras", "1", *SMALL_MEDIA) as cloud:
        memory_case(bench, cloud, "43,200 small segments (25 fps)", ["-u", "86400"], 86_400, goal_mb=0)


def memory_case(bench: Bench, cloud: Cloud, name: str, words: list[str], seconds: int, goal_mb: float = 150) -> float:
    """Peak of one run over an unlimited WAN, in MB."""
    watch = MemoryWatch()
    start = ["-s", str(range_start(seconds)), "-w", "--no_audio", "--ignore_space"]  # planned for real footage
    ended = ours(bench, cloud, [*start, *words], bench.fresh(), watch=watch.begin)
    watch.over.set()
    watch.join()
    peak = watch.peak_mb
    parts = ", ".join(f"{who} {size:.0f}" for who, size in sorted(watch.highest.items()))
    say(f"memory: {name}: {peak:.0f} MB in {ended.wall_sec:.0f} s, {ended.own_cpu_sec:.1f} + "
        f"{ended.children_cpu_sec:.1f} CPU s")
    bench.add(Figure("memory", f"{name}: peak MB", f"{peak:.0f}", f"< {goal_mb:.0f}" if goal_mb else "",
                     peak < goal_mb if goal_mb else None, f"each at most: {parts}"))
    return peak


# --- fleet ---


def part_fleet(bench: Bench) -> None:
    """100 cameras with 20 s each over the slow WAN, and as much of one camera to compare with."""
    with Cloud("--cameras", "100", *HD_MEDIA) as cloud:
        cloud.switch(SLOW)
        start = str(range_start(2000))
        common = ["-s", start, "-w", "--no_audio"]
        single = fleet_case(bench, cloud, "", [*common, "-u", "1000", "-cam", "Camera 000"], 0)
        fleet_case(bench, cloud, "100 cameras", [*common, "-u", "20"], single)
        fleet_case(bench, cloud, "100 cameras at once (--workers 100 --segment_workers 1)",
                   [*common, "-u", "20", "--workers", "100", "--segment_workers", "1"], 0)


def fleet_case(bench: Bench, cloud: Cloud, name: str, words: list[str], single: float) -> float:
    """Bytes per second of the network phase; reports when there is a name."""
    sample = measure(cloud, 0, lambda: ours(bench, cloud, words, bench.fresh()))
    rate = sample.bytes_per_sec
    if not name:
        say(f"fleet: one camera: {rate / LINK_BYTES_PER_SEC:.1%} of the link")
        return rate
    share = f"{rate / LINK_BYTES_PER_SEC:.1%}"
    met = rate / single >= 0.97 if single else None
    bench.add(Figure("fleet", f"{name}: share of the link", share + (
        f" (one camera {single / LINK_BYTES_PER_SEC:.1%})" if single else ""), "the same (>= 0.97)" if single else "",
        met, f"{what_limits(sample)}; {sample.wall_sec:.1f} s, CPU {sample.client_cpu_share:.0%}"))
    report_fairness(bench, name, cloud.segments())
    return rate


def report_fairness(bench: Bench, name: str, log: list[dict[str, Any]]) -> None:
    """How long each camera took from its first request to its last, and the longest silence of any in between."""
    times: dict[str, list[float]] = {}
    for one in log:
        times.setdefault(one["device"], []).append(one["at"])
    counts = {len(stamps) for stamps in times.values()}
    spans = sorted(max(stamps) - min(stamps) for stamps in times.values())
    silence = max(after - before for stamps in times.values()
                  for before, after in zip(sorted(stamps), sorted(stamps)[1:], strict=False))
    none_starved = len(times) == 100 and counts == {10} and silence < LONGEST_SILENCE_SEC
    bench.add(Figure("fleet", f"{name}: seconds a camera is at work", f"median {median(spans):.2f}, longest "
                     f"{spans[-1]:.2f}; longest silence {silence:.2f}", "none starved", none_starved,
                     f"{len(times)} cameras, {sorted(counts)} segments each"))


# --- rerun ---


def part_rerun(bench: Bench) -> None:
    """1,000 clips of 2 s are made by a real run, then found finished; again after the files have moved on."""
    with Cloud("--cameras", "10", *TINY_MEDIA) as cloud:
        folder = bench.fresh()
        words = ["-s", str(range_start(200)), "-u", "200", "--clip_length", "2", "-w", "--no_audio"]
        say("rerun: making 1,000 clips")
        made = ours(bench, cloud, words, folder)
        bench.add(Figure("rerun", "1,000 clips of 2 s: making them", f"{made.wall_sec:.0f} s", limit=f"CPU: ours "
                         f"{made.own_cpu_sec:.0f} s, FFmpeg {made.children_cpu_sec:.0f} s"))
        cloud.switch({"latency_sec": LATENCY_SEC})
        rerun_case(bench, cloud, "files in place", words, folder)
        archive = bench.fresh("archive")
        for path in folder.glob("*.mp4"):
            path.rename(archive / path.name)
        rerun_case(bench, cloud, "files moved on to the archive", words, folder)


def rerun_case(bench: Bench, cloud: Cloud, name: str, words: list[str], folder: Path) -> None:
    runs = []
    cloud.clear()
    for _ in range(bench.repeat):
        runs.append(ours(bench, cloud, words, folder))
    media, wall = cloud.media_requests(), median([one.wall_sec for one in runs])
    bench.add(Figure("rerun", f"over 1,000 finished clips, {name}", f"{wall:.2f} s, {media} media requests",
                     "< 2 s, none", wall < 2 and media == 0, f"CPU {median([one.cpu_sec for one in runs]):.2f} s"))


# --- startup ---


def part_startup(bench: Bench) -> None:
    def cost(*words: str | Path) -> tuple[float, float]:
        runs = [run([sys.executable, *words]) for _ in range(max(5, bench.repeat))]
        return median([one.cpu_sec for one in runs]), median([one.wall_sec for one in runs])

    bare = cost("-c", "pass")
    cpu, wall = cost(bench.program, "--help")
    bench.add(Figure("startup", "--help", f"{wall:.2f} s, CPU {cpu:.2f} s (Python alone {bare[0]:.2f})",
                     "instant (< 0.3 s)", wall < 0.3))
    for module in ("requests", "urllib3", "yaml", "tzlocal", "dateparser", "rich.progress", "imageio_ffmpeg"):
        cpu, wall = cost("-c", f"import {module}")
        bench.add(Figure("startup", f"import {module}", f"{wall - bare[1]:.3f} s, CPU {cpu - bare[0]:.2f} s"))


# --- calibration ---


def calibrate(folder: Path) -> dict[str, Any]:
    """What this machine can do, for comparing figures of different machines."""
    say("calibration")
    return {
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}, {len(CPUS)} CPUs, "
                   f"simulator on {sorted(SERVER_CPUS)}, clients on {sorted(CLIENT_CPUS)}",
        "load before": load(), "priority": raise_priority(),
        "python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION,
        "curl": first_words(["curl", "--version"]), "ffmpeg": first_words([find_ffmpeg(), "-version"]),
        "sha256 MB/s": round(sha256_rate()),
        "file write with fsync MB/s": round(write_rate(folder)),
        "CPU s per GB: page cache, crc32, sha256": ", ".join(f"{cost:.2f}" for cost in byte_costs(folder)),
        "bare scan of a folder, files/s": round(scan_rate(folder)),
        "python start s": round(start_sec("pass"), 3),
        "import requests s": round(start_sec("import requests"), 3),
    }


def raise_priority() -> str:
    """So that what else runs here disturbs less; children inherit it."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    except OSError:
        return "as usual"
    return f"nice {PRIORITY}"


def pressure_sec() -> float:
    """How long in all some process had to wait for a CPU since the start of the machine; 0 where that is not known."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]) / 1e6
    except (OSError, IndexError):
        return 0.0


def find_ffmpeg() -> str:
    """The one that the program uses."""
    sys.path.insert(0, str(ROOT))
    import rhombus_logging

    return rhombus_logging.find_ffmpeg("the calibration")


def first_words(command: Sequence[str]) -> str:
    """Name and version of a program, the first three words it says."""
    said = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    return " ".join(said.split()[:3])


def load() -> str:
    return ", ".join(f"{value:.2f}" for value in os.getloadavg())


def start_sec(code: str) -> float:
    return median([run([sys.executable, "-c", code]).wall_sec for _ in range(5)])


def sha256_rate() -> float:
    block, rounds = bytes(1 << 20), 256
    digest, began = hashlib.sha256(), time.monotonic()
    for _ in range(rounds):
        digest.update(block)
    return rounds * len(block) / MB / (time.monotonic() - began)


def byte_costs(folder: Path) -> Iterator[float]:
    """CPU seconds per GB for writing to a file (no sync), crc32 and sha256, in pieces as large as segments."""
    body, rounds = os.urandom(750_000), 300
    with (folder / "costs").open("wb", buffering=0) as target:
        ways: tuple[Callable[[bytes], object], ...] = (
            target.write, zlib.crc32, lambda data: hashlib.sha256(data).digest())
        for way in ways:
            began = time.process_time()
            for _ in range(rounds):
                way(body)
            yield (time.process_time() - began) / (rounds * len(body) / GB)


def write_rate(folder: Path) -> float:
    block, rounds = os.urandom(1 << 20), 256
    path, began = folder / "calibration", time.monotonic()
    with path.open("wb") as target:
        for _ in range(rounds):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    rate = rounds * len(block) / MB / (time.monotonic() - began)
    path.unlink()
    return rate


def scan_rate(folder: Path, count: int = 5000) -> float:
    place = folder / "scan"
    place.mkdir()
    for number in range(count):
        (place / f"{number}.mp4").touch()
    began = time.monotonic()
    assert sum(entry.stat().st_size for entry in os.scandir(place)) == 0
    rate = count / (time.monotonic() - began)
    shutil.rmtree(place)
    return rate


# --- report ---


def table(figures: Sequence[Figure]) -> str:
    rows = [("part", "what", "reached", "goal", "", "limited by")]
    verdict = {True: "met", False: "MISSED", None: ""}
    rows += [(one.part, one.what, one.reached, one.goal, verdict[one.met], one.limit) for one in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)


PARTS: dict[str, Callable[[Bench], None]] = {
    "startup": part_startup, "wan": part_wan, "lan": part_lan, "memory": part_memory, "fleet": part_fleet,
    "rerun": part_rerun,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} or all (default: all)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="medians of so many (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--program", type=Path, default=ROOT / "copy_footage.py", metavar="FILE",
                        help="measure this copy of the program")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    names = [name for name in arguments.parts if name != "all"] or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}")
    if not shutil.which("curl"):
        parser.error("curl is missing: it is the peer that all ratios are to")
    os.sched_setaffinity(0, SERVER_CPUS)
    with tempfile.TemporaryDirectory(prefix="bench_copy-") as folder:
        waited, began = pressure_sec(), time.monotonic()
        calibration = calibrate(Path(folder))
        bench = Bench(arguments.program.resolve(), arguments.repeat, Path(folder))
        for name in names:
            PARTS[name](bench)
    calibration["others"] = f"waited for a CPU {pressure_sec() - waited:.0f} of {time.monotonic() - began:.0f} s"
    print("\n".join(f"{name}: {value}" for name, value in calibration.items()) + "\n\n" + table(bench.figures))
    if arguments.json:
        figures = [asdict(one) for one in bench.figures]
        arguments.json.write_text(json.dumps({"calibration": calibration, "figures": figures,
                                              "samples": bench.samples}, indent=1) + "\n")
    return 1 if any(one.met is False for one in bench.figures) else 0


if __name__ == "__main__":
    sys.exit(main())
