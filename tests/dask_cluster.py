"""A Dask scheduler and its workers as processes of their own, for the tests and benchmarks of --scheduler."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

READY_SEC = 60
LOOPBACK = ("--host", "127.0.0.1")


class DaskCluster:
    """`dask scheduler` on a free port of loopback, and workers with a nanny, which starts a worker anew that dies.

    The logs of all of them lie in `folder`, which has to be outside of what a test searches for other reasons.
    """

    def __init__(self, folder: Path, workers: int = 2, threads: int = 4) -> None:
        self.folder, self.threads = folder, threads
        self.processes: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0")
        found = self.wait_for("scheduler", r"Scheduler at:\s+(tcp://127\.0\.0\.1:\d+)")
        self.address = found[1]
        for _ in range(workers):
            self.add_worker()
        for number in range(workers):
            self.wait_for(f"worker{number}", r"Registered to:")

    def start(self, name: str, *words: str, environment: Mapping[str, str] | None = None) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *words, "--no-dashboard"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env={**os.environ, "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "100", **(environment or {})},
                    start_new_session=True,
                )
            )

    def add_worker(self, environment: Mapping[str, str] | None = None, place: tuple[str, ...] = LOOPBACK) -> str:
        """Start one more worker, that listens in `place`; its name."""
        name = f"worker{len(self.processes) - 1}"
        words = ["--nthreads", str(self.threads), "--local-directory", str(self.folder), "--name", name]
        self.start(name, "worker", self.address, *place, *words, environment=environment)
        return name

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def wait_for(self, name: str, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + READY_SEC
        while not (found := re.search(pattern, self.log(name))):
            assert time.monotonic() < deadline, f"{name} is not ready:\n{self.log(name)}"
            time.sleep(0.05)
        return found

    def worker_pids(self) -> list[int]:
        """The processes that work, children of the nannies that were started here."""
        nannies = {process.pid for process in self.processes[1:] if process.poll() is None}
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                command = (stat.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if parent in nannies and b"spawn_main" in command:
                found.append(int(stat.parent.name))
        return sorted(found)

    def cpu_sec(self) -> float:
        """CPU seconds of scheduler, nannies and workers so far, with those of their children that have ended."""
        pids = [process.pid for process in self.processes] + self.worker_pids()
        fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
        return sum(sum(map(int, found[11:15])) for found in fields) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End all of them and their children at once; asked kindly, they take ten seconds for it."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
