"""copy_footage.py --scheduler: the same clips, messages, statuses and resume on a Dask cluster as in threads here."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from copy_footage_helpers import Cloud, Clouds, content, eventually, one_camera, running
from dask_cluster import DaskCluster
from rhombus_simulator import Camera, Fault, World, ruuid

pytestmark = pytest.mark.slow  # a cluster takes seconds to start
CLIPS = 6


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    found = DaskCluster(tmp_path_factory.mktemp("dask"))
    yield found
    found.close()


@pytest.fixture
def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Clouds]:
    with Clouds(tmp_path, monkeypatch, capsys) as found:
        yield found


def on(cluster: DaskCluster, cloud: Cloud, *words: object, seconds: int = 120) -> list[object]:
    range_words = ["-s", cloud.start, "-u", seconds, "--clip_length", seconds // CLIPS]
    return [*range_words, "--scheduler", cluster.address, *words]


def in_threads(cloud: Cloud, seconds: int = 120) -> dict[str, str]:
    """What a run without a cluster makes of the same range."""
    other = cloud.work / "threads"
    process = cloud.spawn("-s", cloud.start, "-u", seconds, "--clip_length", seconds // CLIPS)
    process.communicate(timeout=60)
    assert process.returncode == 0
    cloud.folder.rename(other)
    cloud.folder, here = other, cloud.folder
    found = content(cloud)
    cloud.folder = here
    return found


def test_a_cluster_makes_the_same_files_and_says_the_same(clouds: Clouds, cluster: DaskCluster) -> None:
    cloud = clouds(one_camera(), real=True)
    wanted = in_threads(cloud)
    run = cloud.finish(cloud.spawn(*on(cluster, cloud, "--json")))
    assert content(cloud) == wanted
    assert len(wanted) == CLIPS
    assert (run.summary["clips"], run.summary["done"]) == (CLIPS, CLIPS)
    assert {line["file"] for line in run.lines[:-1]} == {str(cloud.folder / name) for name in wanted}
    assert len(re.findall(r"INFO \[\d/6\] .*: saved ", run.err)) == CLIPS
    assert cloud.files("*.part*") == []
    again = cloud.finish(cloud.spawn(*on(cluster, cloud, "--json")))
    assert again.summary["already"] == CLIPS
    assert not list((cloud.folder / ".copy_footage").glob("cluster.*"))


@pytest.mark.slow
def test_a_clip_that_fails_on_a_worker_ends_the_run_with_1_and_a_rerun_heals_it(
    clouds: Clouds, cluster: DaskCluster
) -> None:
    cloud = clouds(one_camera(), real=True)
    cloud.sim.faults.append(Fault(r"seg_\d*7\.m4v", "status", times=-1, status=500))
    run = cloud.finish(cloud.spawn(*on(cluster, cloud, "--json")), ok=1)
    assert run.summary["incomplete"] >= 1
    assert " ERROR " in run.err
    cloud.sim.faults.clear()
    assert cloud.finish(cloud.spawn(*on(cluster, cloud, "--json"))).summary["done"] >= 1
    assert content(cloud) == in_threads_after(cloud)


def in_threads_after(cloud: Cloud) -> dict[str, str]:
    kept = cloud.folder.with_name("kept")
    cloud.folder.rename(kept)
    found = in_threads(cloud)
    kept.rename(cloud.folder)
    return found


@pytest.mark.slow
def test_killed_workers_lose_no_clip_and_repeat_none(clouds: Clouds, cluster: DaskCluster) -> None:
    cloud = clouds(one_camera(), real=True)
    wanted = in_threads(cloud)
    cloud.sim.switches.latency_sec = 0.06
    with running(cloud.spawn(*on(cluster, cloud, "--json"))) as process:
        for _ in range(2):
            seen = len(cloud.sim.requests)
            eventually(lambda seen=seen: len(cloud.sim.requests) > seen + 10, "the workers are fetching", 40)
            eventually(cluster.worker_pids, "a worker runs", 40)
            os.kill(cluster.worker_pids()[0], signal.SIGKILL)
        run = cloud.finish(process)
    assert content(cloud) == wanted
    assert run.summary["done"] == CLIPS
    names = [json.loads(line)["file"] for line in (cloud.folder / ".copy_footage/clips.jsonl").read_text().splitlines()]
    assert sorted(names) == sorted(wanted), "each clip was made once"


@pytest.mark.slow
def test_ctrl_c_stops_the_work_on_the_cluster_and_a_rerun_goes_on(clouds: Clouds, cluster: DaskCluster) -> None:
    cloud = clouds(one_camera(), real=True)
    wanted = in_threads(cloud)
    cloud.sim.switches.latency_sec = 0.15
    asked_before = len(cloud.sim.requests)
    with running(cloud.spawn(*on(cluster, cloud))) as process:
        eventually(lambda: len(cloud.sim.requests) > asked_before + 20, "the workers are fetching", 40)
        process.send_signal(signal.SIGINT)
        cloud.finish(process, ok=130, timeout=15)
    time.sleep(2.5)
    asked = len(cloud.sim.requests)
    time.sleep(1.5)
    assert len(cloud.sim.requests) == asked, "nobody fetches any more"
    cloud.sim.switches.latency_sec = 0.0
    cloud.finish(cloud.spawn(*on(cluster, cloud)))
    assert content(cloud) == wanted


@pytest.mark.slow
def test_a_429_keeps_all_workers_away_from_the_api(clouds: Clouds, cluster: DaskCluster) -> None:
    cameras = [Camera(ruuid(f"c{n}"), f"Camera {n}", ruuid("site")) for n in range(8)]
    cloud = clouds(World(cameras), real=True)
    cloud.sim.faults.append(Fault("getPresenceWindows", "status", status=429, headers={"Retry-After": "3"}))
    run = cloud.finish(cloud.spawn("-s", cloud.start, "-u", 10, "--scheduler", cluster.address))
    assert "WARNING api: too many requests" in run.err, "what a worker warns about is said here"
    calls = [record for record in cloud.sim.requests if "getPresenceWindows" in record.line]
    refused = next(record for record in calls if record.status == 429)
    early = [record for record in calls if 1.0 < record.at - refused.at < 2.9]
    assert early == [], "after a second at most every worker has heard of it"


@pytest.mark.slow
def test_no_secret_reaches_the_logs_of_scheduler_and_workers(clouds: Clouds, cluster: DaskCluster) -> None:
    cloud = clouds(one_camera(), real=True)
    cloud.finish(cloud.spawn(*on(cluster, cloud, "--debug")))
    assert not [secret for secret in (*cloud.sim.keys, *cloud.sim.tokens) if secret in cluster.logs()]


def test_the_key_is_not_sent_over_a_road_that_others_can_read_and_workers_with_their_own_need_none(
    clouds: Clouds, tmp_path: Path
) -> None:
    """To everybody but the kernel, 0.0.0.0 is an address like those of other machines."""
    cloud, open_cluster = clouds(one_camera(), real=True), DaskCluster(tmp_path / "dask", workers=0)

    def join(**environment: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        place = ("--listen-address", f"tcp://127.0.0.1:{port}", "--contact-address", f"tcp://0.0.0.0:{port}")
        name = open_cluster.add_worker(environment, (*place, "--no-nanny"))
        open_cluster.wait_for(name, "Registered to:")
        return f"tcp://0.0.0.0:{port}"

    try:
        bare = join()
        run = cloud.finish(cloud.spawn(*on(open_cluster, cloud)), ok=3)
        assert f"{bare}: RHOMBUS_API_KEY is not set there" in run.sentence()
        assert cloud.media() == []
        open_cluster.processes.pop().terminate()
        join(RHOMBUS_API_KEY=cloud.environment()["RHOMBUS_API_KEY"])
        cloud.finish(cloud.spawn(*on(open_cluster, cloud)))
        assert len(content(cloud)) == CLIPS
    finally:
        open_cluster.close()
    assert not [secret for secret in (*cloud.sim.keys, *cloud.sim.tokens) if secret in open_cluster.logs()]


def test_what_a_killed_run_has_left_for_its_workers_is_removed_by_a_later_one(
    clouds: Clouds, cluster: DaskCluster
) -> None:
    cloud = clouds(one_camera(), real=True)
    state = cloud.folder / ".copy_footage"
    state.mkdir(parents=True)
    for name, age_sec in (("cluster.1.a.run", 7200), ("cluster.1.a.quiet", 7200), ("cluster.2.b.run", 5)):
        (state / name).touch()
        os.utime(state / name, (time.time() - age_sec, time.time() - age_sec))
    cloud.finish(cloud.spawn(*on(cluster, cloud)))
    assert [file.name for file in state.glob("cluster.*")] == ["cluster.2.b.run"], "that one may be at work"


def test_a_scheduler_that_is_not_there_is_a_clear_refusal(clouds: Clouds) -> None:
    cloud = clouds(one_camera(), real=True)
    run = cloud.finish(cloud.spawn("-s", cloud.start, "-u", 10, "--scheduler", "tcp://127.0.0.1:9"), ok=3)
    assert "no Dask scheduler there" in run.sentence()
    assert cloud.media() == []


def test_without_the_package_the_refusal_says_what_to_install(clouds: Clouds, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "distributed"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not here')\n")
    cloud = clouds(one_camera(), real=True)
    words = ("-s", cloud.start, "-u", 10, "--scheduler", "tcp://127.0.0.1:9")
    run = cloud.finish(cloud.spawn(*words, PYTHONPATH=str(hidden.parent)), ok=3)
    assert "pip install distributed" in run.sentence()


def test_a_worker_that_does_not_see_the_folder_is_named(clouds: Clouds, cluster: DaskCluster) -> None:
    """A folder of this process alone: under /proc/self/fd, what a worker would find there is its own."""
    cloud = clouds(one_camera(), real=True)
    cloud.folder.mkdir()
    handle = os.open(cloud.folder, os.O_RDONLY)
    try:
        cloud.monkeypatch.setattr(type(cloud), "words", lambda self, *words: [
            *map(str, words), "--config", str(self.config), "--output_dir", f"/proc/self/fd/{handle}"])  # fmt: skip
        os.set_inheritable(handle, True)
        import subprocess

        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent.parent / "copy_footage.py"),
             *cloud.words(*on(cluster, cloud))], env=cloud.environment(), close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        run = cloud.finish(process, ok=3)
    finally:
        os.close(handle)
    assert "that all workers share" in run.sentence()
    assert "tcp://127.0.0.1" in run.sentence()
