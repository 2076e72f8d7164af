"""capture_analyzer.py video --scheduler: the same results on a Dask cluster as in threads here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from dask_cluster import DaskCluster

from capture_analyzer import read_incidents

pytestmark = pytest.mark.slow  # a cluster takes seconds to start
PROGRAM = Path(__file__).resolve().parent.parent / "capture_analyzer.py"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    found = DaskCluster(tmp_path_factory.mktemp("dask"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Live, black, and cut in the middle of a byte."""
    folder = tmp_path_factory.mktemp("footage") / "Gate"
    folder.mkdir()
    for name, source in (("live", "testsrc2=size=320x180:rate=5"), ("black", "color=black:size=320x180:rate=5")):
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source, "-t", "8", "-g", "5"]
        subprocess.run([*command, "-c:v", "libx264", "-preset", "ultrafast", str(folder / f"{name}.mkv")], check=True)
    (folder / "broken.mkv").write_bytes(b"this is no video")
    return folder


def video(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PROGRAM), "video", *map(str, words)], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=100, check=False)  # fmt: skip


def test_a_cluster_finds_the_same_and_ends_with_the_same_status(
    recordings: Path, cluster: DaskCluster, tmp_path: Path
) -> None:
    words = (recordings, "--json", "--precise")
    here = video(*words, "--workers", 1, "--metrics", tmp_path / "here.csv")
    there = video(*words, "--scheduler", cluster.address, "--metrics", tmp_path / "there.csv")
    assert here.stdout == there.stdout
    assert "blackscreen" in here.stdout
    assert (here.returncode, there.returncode) == (1, 1), "broken.mkv is of unknown quality"
    assert sorted((tmp_path / "here.csv").read_text().splitlines()) == sorted(
        (tmp_path / "there.csv").read_text().splitlines()
    )
    assert not list((recordings / ".capture_analyzer").glob("cluster.*"))


@pytest.mark.slow
def test_a_killed_worker_loses_no_file(recordings: Path, cluster: DaskCluster) -> None:
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "video", str(recordings), "--json", "--scheduler", cluster.address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)  # fmt: skip
    time.sleep(1)
    for pid in cluster.worker_pids()[:1]:
        os.kill(pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=100)
    assert out == video(recordings, "--json", "--workers", 1).stdout


def test_what_a_cluster_finds_is_stored_with_its_evidence(
    recordings: Path, cluster: DaskCluster, tmp_path: Path
) -> None:
    settings = {"database": str(tmp_path / "db.sqlite3"), "evidence_dir": str(tmp_path / "evidence")}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"analysis": settings}))
    for _ in range(2):
        video(recordings, "--store", "--scheduler", cluster.address, "--config", config)
    (row,) = [row for row in read_incidents(settings["database"]) if row.incident_type == "blackscreen"]
    assert sorted(row.metadata["evidence"]) == ["clip", "first_bad"], "it is black from its first picture to its last"
    kept = [file for file in (tmp_path / "evidence" / "blackscreen").rglob("*.*") if file.is_file()]
    assert len(kept) == 2


def test_a_scheduler_that_is_not_there_is_a_clear_refusal(recordings: Path) -> None:
    done = video(recordings, "--scheduler", "tcp://127.0.0.1:9")
    assert done.returncode == 3
    assert "no Dask scheduler there" in done.stderr
    assert "Traceback" not in done.stderr
