"""copy_footage.py under every fault: it recovers, or keeps what it has, says why, and the next run ends it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import need
from copy_footage_helpers import (
    CAMERA,
    NOW,
    Clock,
    Cloud,
    Clouds,
    close_to,
    content,
    eventually,
    frames,
    running,
    sidecar,
    silent_camera,
)
from rhombus_simulator import LOGIN_PAGE, Alert, Camera, Fault, World, ruuid

KINDS = [
    "status",
    "reset",
    "reset_midway",
    "stall",
    "stall_headers",
    "truncate",
    "short",
    "html",
    "empty",
    "in_band",
    "garbage",
]


@pytest.fixture
def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Clouds]:
    with Clouds(tmp_path, monkeypatch, capsys) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, str]]:
    """Name → hash of what a run without faults makes of so many seconds, filled when first asked for."""
    return {}


def whole(clouds: Clouds, cache: dict[int, dict[str, str]], seconds: int) -> dict[str, str]:
    if seconds not in cache:
        cloud = clouds()
        cloud.clip(seconds, "-w")
        cache[seconds] = content(cloud)
        assert len(cache[seconds]) == 1
    return cache[seconds]


# --- what passes ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("match", [r"seg_\d+\.m4v", r"\.mpd", r"seg_init"])
def test_a_fault_that_passes_leaves_the_bytes_of_an_undisturbed_run(
    clouds: Clouds, undisturbed: dict[int, dict[str, str]], kind: str, match: str
) -> None:
    wanted = whole(clouds, undisturbed, 20)
    cloud = clouds()
    cloud.sim.add_fault(Fault(f"^wan GET .*{match}", kind, times=2, after=1 if "m4v" in match else 0))
    cloud.clip(20, "-w")
    assert cloud.sim.faults[0].times == 0, "the fault was met"
    assert content(cloud) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["status", "reset", "short", "html", "empty", "in_band", "truncate"])
def test_a_fault_of_the_api_passes(clouds: Clouds, undisturbed: dict[int, dict[str, str]], kind: str) -> None:
    """Each operation of a run fails once; only refusals are believed at once."""
    wanted = whole(clouds, undisturbed, 20)
    retried = kind in ("status", "reset", "truncate")
    for operation in ("getMinimalCameraStateList", "getPresenceWindows", "getBulkMediaDeviceDetails", "Federated"):
        cloud = clouds()
        cloud.sim.add_fault(Fault(operation, kind))
        if operation == "getMinimalCameraStateList" and not retried:
            cloud.clip(20, "-w", ok=3)
            continue
        run = cloud.clip(20, ok=None)
        if retried:
            assert run.status == 0 and content(cloud) == wanted, operation
        else:
            cloud.clip(20)
            assert content(cloud) == wanted, operation


@pytest.mark.parametrize("kind", ["slow"])
def test_a_segment_that_trickles_is_waited_for(
    clouds: Clouds, undisturbed: dict[int, dict[str, str]], kind: str
) -> None:
    wanted = whole(clouds, undisturbed, 20)
    cloud = clouds()
    cloud.sim.add_fault(Fault(r"seg_3\.m4v", kind, bytes_per_sec=40_000))
    cloud.clip(20, "-w")
    assert content(cloud) == wanted and cloud.segments("m4v").count(3) == 1


def test_chunked_answers_without_a_length_are_fine(clouds: Clouds, undisturbed: dict[int, dict[str, str]]) -> None:
    wanted = whole(clouds, undisturbed, 20)
    cloud = clouds(content_length=False)
    cloud.sim.add_fault(Fault(r"seg_3\.m4v", "truncate"))
    cloud.sim.add_fault(Fault(r"seg_5\.m4v", "short"))
    cloud.clip(20, "-w")
    assert content(cloud) == wanted


def test_random_faults_everywhere_change_nothing(clouds: Clouds, undisturbed: dict[int, dict[str, str]]) -> None:
    wanted = whole(clouds, undisturbed, 60)
    dice = random.Random(7)
    for _ in range(3):
        cloud = clouds()
        cloud.configure(tries=8, retry_wait=0.01, read_timeout=0.3)
        for _ in range(12):
            kind = dice.choice([one for one in KINDS if "stall" not in one])
            cloud.sim.add_fault(Fault(rf"seg_{dice.randint(1, 30)}\.(m4v|webm)", kind, times=dice.randint(1, 3)))
        cloud.clip(60, "-w")
        assert content(cloud) == wanted


# --- what does not pass ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_stays_keeps_the_part_and_the_next_run_fetches_only_what_is_missing(
    clouds: Clouds, undisturbed: dict[int, dict[str, str]], kind: str
) -> None:
    wanted = whole(clouds, undisturbed, 20)
    cloud = clouds()
    cloud.sim.add_fault(Fault(r"^wan GET .*seg_4\.m4v", kind, times=-1))
    run = cloud.clip(20, "-w", ok=1)
    assert cloud.files("*.mp4") == [] and len(cloud.files("*_video.mp4.part")) == 1
    assert re.search(r"kept as .*\.part: 1 of 10 segments missing", run.err)
    assert LOGIN_PAGE not in (cloud.folder / cloud.files("*_video.mp4.part")[0]).read_bytes()
    cloud.sim.faults.clear()
    cloud.sim.clear()
    cloud.clip(20, "-w")
    assert cloud.segments("m4v") == [4], "only what was missing"
    assert cloud.segments("webm") == [], "the sound was there"
    assert content(cloud) == wanted
    assert cloud.files("*.part*") == []


def test_a_host_that_always_fails_ends_its_clip_early(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"seg_\d+\.m4v", "status", times=-1, after=5))
    began = time.monotonic()
    cloud.clip(600, "-w", ok=1)
    assert len(cloud.segments()) < 120, "300 segments were not each tried three times"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("seconds", [2, 4, 20])
def test_a_clip_that_failed_whole_says_what_failed(clouds: Clouds, seconds: int) -> None:
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault("m4v", "status", times=-1))
    run = cloud.clip(seconds, "-w", ok=1)
    assert "503" in run.err and "offline" not in run.err


def test_one_bad_camera_stops_nobody(clouds: Clouds) -> None:
    names = [ruuid(str(n)) for n in range(4)]
    cloud = clouds(World([Camera(uuid, f"Camera {n}") for n, uuid in enumerate(names)]))
    cloud.sim.add_fault(Fault(f"{names[1]}.*m4v", "garbage", times=-1))
    cloud.sim.add_fault(Fault(f"{names[2]}.*mpd", "stall_headers", times=-1))
    run = cloud.clip(10, "--json", ok=1)
    states = {line["camera"]: line["state"] for line in run.lines[:-1]}
    assert states[names[0]] == states[names[3]] == "done"
    assert states[names[1]] in ("failed", "incomplete") and states[names[2]] in ("failed", "incomplete")
    close_to(frames(next(cloud.folder.glob(f"*{names[3]}*.mp4"))), cloud.pictures(cloud.start, cloud.start + 10))


def test_a_source_that_dies_midway_is_never_mixed_with_another(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"^lan GET .*m4v", "reset", times=-1, after=6))
    cloud.clip(40)
    assert sidecar(cloud.only())["source"] == "wan"
    assert sorted(set(cloud.segments("m4v", "wan"))) == list(range(1, 21)), "all of it comes from the WAN"
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 40))
    assert cloud.files("*part*") == []


def test_when_both_sources_break_off_the_longer_part_is_kept(
    clouds: Clouds, undisturbed: dict[int, dict[str, str]]
) -> None:
    cloud, wanted = clouds(silent_camera()), clouds(silent_camera())
    wanted.clip(40, "-w")
    cloud.sim.add_fault(Fault(r"^lan GET .*m4v", "reset", times=-1, after=15))
    cloud.sim.add_fault(Fault(r"^wan GET .*m4v", "reset", times=-1, after=3))
    cloud.clip(40, ok=1)
    assert len(set(cloud.segments("m4v", "lan"))) > 12
    cloud.sim.faults.clear()
    cloud.sim.clear()
    cloud.clip(40)
    assert content(cloud) == content(wanted)
    assert len(cloud.segments("m4v")) <= 8, "the longer part was taken up"


# --- tokens and limits ---


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_ends_midway_is_renewed_once_for_all_threads(clouds: Clouds, status: int) -> None:
    clock = Clock(NOW, ticking=True)
    cloud = clouds(clock=clock, token_life_sec=1.2, expired_status=status, latency_sec=0.08)
    cloud.clip(80, "--segment_workers", 4)
    assert sidecar(cloud.only())["source"] == "lan"
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 80))
    refused = [record for record in cloud.sim.requests if record.kind == "lan" and record.status == status]
    assert refused, "the token has ended"
    assert 2 <= cloud.sim.tokens_minted <= 4


def test_a_refused_token_is_replaced(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"^lan GET .*seg_5\.m4v", "refuse_token"))
    cloud.clip(40)
    assert sidecar(cloud.only())["source"] == "lan" and cloud.sim.tokens_minted == 2
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 40))


@pytest.mark.slow
@pytest.mark.parametrize("match", [r"^wan GET .*seg_7\.m4v", r"^wan GET .*mpd", "getPresenceWindows", "Federated"])
def test_after_429_nobody_sends_anything_until_the_wait_is_over(
    clouds: Clouds, undisturbed: dict[int, dict[str, str]], match: str
) -> None:
    wanted = whole(clouds, undisturbed, 60)
    cloud = clouds(clock=Clock(NOW, ticking=True), latency_sec=0.03)
    cloud.sim.add_fault(Fault(match, "status", status=429, headers={"Retry-After": "2"}))
    run = cloud.clip(60, *(["-w"] if "Federated" not in match else []))
    asked = list(cloud.sim.requests)
    at = next(record.at for record in asked if record.status == 429)
    during = [record.line for record in asked if at + 0.25 < record.at < at + 1.95 and record.kind != "lan"]
    assert during == [] and not any(record.early for record in asked)
    assert any(record.at >= at + 1.95 for record in asked)
    assert "too many requests" in run.err
    assert content(cloud) == wanted


@pytest.mark.slow
def test_the_rate_limit_of_the_organisation_is_sat_out(clouds: Clouds) -> None:
    cloud = clouds(
        World([Camera(ruuid(str(n)), f"Camera {n}") for n in range(6)]),
        clock=Clock(NOW, ticking=True),
        rate_limit_per_sec=4,
        burst=5,
        bulk=False,
    )
    cloud.clip(4)
    assert len(cloud.files("*.mp4")) == 6
    refused = [record for record in cloud.sim.requests if record.status == 429]
    assert refused and not any(record.early for record in refused)


# --- whole processes: kill and signals ---


def downloading(cloud: Cloud, segments: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many media segments were answered."""
    eventually(
        lambda: process.poll() is not None or cloud.sim.count(r"seg_\d+\.(m4v|webm) 200") >= segments,
        f"{segments} segments",
    )
    assert process.poll() is None, process.communicate()


def received(cloud: Cloud) -> int:
    """Segments that the part has on record."""
    text = "".join(path.read_text() for path in cloud.folder.glob("*_video.mp4.part.json"))
    return sum(
        len(json.loads(line).get("have", ()))
        for line in text.splitlines()
        if line.startswith("{") and line.endswith("}")
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(clouds: Clouds) -> None:
    cloud, calm = clouds(real=True, latency_sec=0.05), clouds(real=True)
    calm.start = cloud.start
    calm.clip(240, "-w")
    words = ["-s", cloud.start, "-u", 240, "-w", "--segment_workers", 2]
    dice, killed = random.Random(1), 0
    for attempt in range(3):
        with running(cloud.spawn(*words)) as process:
            eventually(lambda: process.poll() is not None or cloud.media(), "a media request")  # noqa: B023
            time.sleep(dice.uniform(0.1, 2.4))
            killed += process.poll() is None
            process.kill()
            process.communicate()
        before = received(cloud)
        cloud.sim.clear()
        assert cloud.files("*.mp4") == [] or attempt, "no incomplete bytes under a final name"
    cloud.sim.switches.latency_sec = 0
    cloud.clip(240, "-w")
    assert killed >= 2
    assert len(cloud.segments("m4v")) == 120 - before, "only what was missing"
    assert content(cloud) == content(calm)
    assert sidecar(cloud.only())["complete"] is True and cloud.files("*.part*") == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("stuck", [False, True])
def test_a_signal_ends_the_run_within_two_seconds_and_keeps_the_part(
    clouds: Clouds, number: signal.Signals, status: int, stuck: bool
) -> None:
    cloud = clouds(real=True, latency_sec=0.05)
    cloud.configure(read_timeout=30)
    if stuck:
        cloud.sim.add_fault(Fault(r"seg_(9|1\d|2\d)\.m4v", "stall_headers", times=-1))
    with running(cloud.spawn("-s", cloud.start, "-u", 120, "-w", "--segment_workers", 2)) as process:
        downloading(cloud, 8, process)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(number)
        run = cloud.finish(process, ok=status)
    assert time.monotonic() - began < 2
    assert "Traceback" not in run.err and "parts are kept" in run.err
    assert received(cloud) >= 3
    kept = received(cloud)
    cloud.sim.faults.clear()
    cloud.sim.clear()
    cloud.sim.switches.latency_sec = 0
    cloud.clip(120, "-w")
    assert len(cloud.segments("m4v")) == 60 - kept
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 120))


def test_a_part_made_without_the_package_isal_is_gone_on_with(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True)
    place = cloud.work / "without"
    place.mkdir()
    (place / "sitecustomize.py").write_text("import sys; sys.modules['isal'] = None")
    cloud.sim.add_fault(Fault(r"seg_4\.m4v", "reset", times=-1))
    with running(cloud.spawn("-s", cloud.start, "-u", 20, "-w", PYTHONPATH=str(place))) as process:
        cloud.finish(process, ok=1)
    cloud.sim.faults.clear()
    cloud.sim.clear()
    cloud.clip(20, "-w")
    assert len(cloud.segments("m4v")) == 1, "checksums are the same with and without it"
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))


def test_a_second_ctrl_c_ends_the_run_at_once_and_a_rerun_finishes_the_clip(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True)
    cloud.configure(read_timeout=30)
    cloud.sim.add_fault(Fault(r"seg_[4-9]\.m4v", "stall_headers", times=-1))
    with running(cloud.spawn("-s", cloud.start, "-u", 20, "-w", "--segment_workers", 1)) as process:
        eventually(lambda: cloud.asked(r"seg_4\.m4v"), "the segment that hangs")
        time.sleep(0.3)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        run = cloud.finish(process, ok=130)
    assert "Traceback" not in run.err
    assert f"parts are kept for the next run; to go on, say --start_time {cloud.start}" in run.err
    assert len(cloud.files("*_video.mp4.part")) == 1, "what was not yet on the disk is fetched again"
    cloud.sim.faults.clear()
    cloud.clip(20, "-w")
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))


def test_a_range_from_words_says_which_start_makes_the_same_clips_again(clouds: Clouds) -> None:
    world = silent_camera()
    world.alerts = [Alert(ruuid("a"), int(NOW - 4000) * 1000, device_uuid=CAMERA)]
    cloud = clouds(world)
    cloud.sim.add_fault(Fault(r"m4v", "reset", times=-1))
    said = f"to go on, say --start_time {cloud.start}"
    assert said in cloud.copy("-s", "2 hours ago", "-u", 20, ok=1).err
    assert "--start_time" not in cloud.copy("--alerts", ok=1).err, "alerts keep their clips"
    cloud.sim.faults.clear()
    assert "--start_time" not in cloud.copy("-s", cloud.start, "-u", 20).err


def test_a_signal_while_the_api_hangs_ends_the_run_within_two_seconds(clouds: Clouds) -> None:
    for match in ("getMinimalCameraStateList", "getPresenceWindows"):
        cloud = clouds(real=True)
        cloud.sim.add_fault(Fault(match, "stall_headers"))
        with running(cloud.spawn("-s", cloud.start, "-u", 20)) as process:
            eventually(lambda: cloud.asked(match), match)  # noqa: B023
            time.sleep(0.2)
            began = time.monotonic()
            process.terminate()
            run = cloud.finish(process, ok=143)
        assert time.monotonic() - began < 2, match
        assert "Traceback" not in run.err


@pytest.mark.slow
def test_max_duration_ends_a_run_and_keeps_parts(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), clock=Clock(NOW, ticking=True), latency_sec=0.1)
    run = cloud.clip(120, "--max_duration", 2, "--segment_workers", 1, ok=1)
    assert "--max_duration" in run.err
    first = len(set(cloud.segments()))
    assert 3 < first < 60
    cloud.sim.clear()
    cloud.sim.switches.latency_sec = 0
    cloud.clip(120)
    assert len(cloud.segments()) <= 60 - first + 2
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 120))


def test_max_duration_that_is_over_before_the_api_has_answered_is_said_in_one_line(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True)
    cloud.configure(retry_wait=1)
    cloud.sim.add_fault(Fault("getMinimalCamera", "status", times=-1))
    run = cloud.finish(cloud.spawn("--catch_up", "--max_duration", 1), ok=3)
    assert run.sentence() == "--max_duration is over"


def test_max_duration_ends_a_long_pause_that_a_host_asks_for(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True)
    cloud.sim.add_fault(Fault("getMinimalCamera", "status", status=429, headers={"Retry-After": "60"}))
    begin = time.monotonic()
    cloud.clip(8, "--max_duration", 2, ok=3)
    assert time.monotonic() - begin < 10


def test_two_runs_at_once_share_the_work_and_both_end_well(clouds: Clouds) -> None:
    cloud = clouds(real=True, latency_sec=0.1)
    words = ["-s", cloud.start, "-u", 60, "-w", "--segment_workers", 2]
    with running(cloud.spawn(*words)) as first:
        downloading(cloud, 2, first)
        second = cloud.clip(60, "-w", "--json")
        assert second.summary["elsewhere"] == 1 and "in progress elsewhere" in second.err
        cloud.finish(first, ok=0)
    assert sorted(set(cloud.segments("m4v"))) == cloud.segments("m4v"), "no segment was fetched twice"
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 60))


def test_a_second_run_of_the_same_catch_up_is_told_to_wait(clouds: Clouds) -> None:
    cloud = clouds(real=True, latency_sec=0.1)
    words = ["--catch_up", "-s", cloud.start, "--clip_length", 600, "-w"]
    with running(cloud.spawn(*words)) as first:
        downloading(cloud, 2, first)
        run = cloud.copy("--catch_up", "-s", cloud.start, "--clip_length", 600, "-w", ok=4)
        assert str(first.pid) in run.sentence()
        other = cloud.copy("--catch_up", "--alerts")
        assert "No policy alerts found" in other.err, "another query has a lock of its own"


# --- records that a crash may leave ---


def half_done(clouds: Clouds, seconds: int = 20) -> Cloud:
    """A part that lacks segment 4."""
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"seg_4\.m4v", "status", times=-1))
    cloud.clip(seconds, "-w", ok=1)
    cloud.sim.faults.clear()
    cloud.sim.clear()
    return cloud


def part_of(cloud: Cloud) -> tuple[Path, Path]:
    part = cloud.only("*_video.mp4.part")
    return part, part.with_name(part.name + ".json")


def torn_record(part: Path, record: Path) -> None:
    record.write_bytes(record.read_bytes()[:-15])


def nul_record(part: Path, record: Path) -> None:
    record.write_bytes(record.read_bytes() + b"\0" * 300)


def doubled_record(part: Path, record: Path) -> None:
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join([*lines, lines[-1], lines[-1]]))


def foreign_record(part: Path, record: Path) -> None:
    lines = [b"[1]", b'{"have": [[0, 0]]}', b'{"have": "x"}', b"null", b'{"have": [[-5, 10, 5, 1]]}']
    lines += [b'{"have": [[1e9, 10, 5, 1]]}', b'{"have": [[1, -10, -5, 1]]}', b""]
    record.write_bytes(record.read_bytes() + b"\n".join(lines))


def huge_index(part: Path, record: Path) -> None:
    record.write_bytes(record.read_bytes() + b'{"have": [[99999999999, 0, 4, 0]]}\n')


def no_record(part: Path, record: Path) -> None:
    record.unlink()


def empty_record(part: Path, record: Path) -> None:
    record.write_bytes(b"")


def cut_data(part: Path, record: Path) -> None:
    with part.open("rb+") as handle:
        handle.truncate(part.stat().st_size // 2)


def nul_data(part: Path, record: Path) -> None:
    data = bytearray(part.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    part.write_bytes(data)


def spoilt_init(part: Path, record: Path) -> None:
    data = bytearray(part.read_bytes())
    data[40] ^= 255
    part.write_bytes(data)


def longer_data(part: Path, record: Path) -> None:
    part.write_bytes(part.read_bytes() + b"\x17" * 5000)


def no_data(part: Path, record: Path) -> None:
    part.unlink()


def swapped(part: Path, record: Path) -> None:
    """A byte in each segment is not what was recorded."""
    data = bytearray(part.read_bytes())
    for at in range(2000, len(data), 3000):
        data[at] ^= 1
    part.write_bytes(data)


DAMAGES = [
    torn_record,
    nul_record,
    doubled_record,
    foreign_record,
    huge_index,
    no_record,
    empty_record,
    cut_data,
    nul_data,
    spoilt_init,
    longer_data,
    no_data,
    swapped,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_what_a_crash_or_a_bad_disk_does_to_a_part_is_repaired(clouds: Clouds, damage: object) -> None:
    cloud = half_done(clouds)
    damage(*part_of(cloud))  # type: ignore[operator]
    cloud.clip(20, "-w")
    assert 4 in cloud.segments()
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))
    assert cloud.files("*part*") == []


def test_a_crash_between_rename_and_sidecar_heals_without_fetching_again(clouds: Clouds) -> None:
    for lost in (("ledger",), ("sidecar", "ledger"), ("sidecar",)):
        cloud = clouds()
        cloud.clip(20)
        before, side = content(cloud), sidecar(cloud.only())
        if "ledger" in lost:
            (cloud.folder / ".copy_footage" / "clips.jsonl").unlink()
        if "sidecar" in lost:
            cloud.only("*.json").unlink()
        cloud.sim.clear()
        cloud.clip(20)
        assert cloud.media() == [] and content(cloud) == before, lost
        if "ledger" in lost:
            again = sidecar(cloud.only())
            assert again["requested"] == side["requested"] and again["complete"] is True
            assert len(cloud.ledger()) == 1


def test_a_crash_before_the_record_leaves_part_and_file_and_the_rerun_ends_with_the_same_bytes(clouds: Clouds) -> None:
    """As if killed after the rename: the final name is there, and the part is not removed yet."""
    cloud, calm = half_done(clouds), clouds(silent_camera())
    calm.clip(20, "-w")
    shutil.copy(calm.only(), cloud.folder)
    cloud.clip(20, "-w")
    assert cloud.segments() == [4]
    assert content(cloud) == content(calm) and cloud.files("*part*") == []
    assert sidecar(cloud.only())["source"] == "wan"


@pytest.mark.parametrize(
    "tail", [b'{"schema": 1, "camera": "x', b"\0\0\0\0\0\0", b"not json\n", b"null\n", b"[]\n{}\n"]
)
def test_a_damaged_ledger_costs_at_most_work(clouds: Clouds, tail: bytes) -> None:
    cloud = clouds(silent_camera())
    cloud.clip(20, "--clip_length", 10)
    before = content(cloud)
    ledger = cloud.folder / ".copy_footage" / "clips.jsonl"
    first, second = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(first + tail)
    cloud.sim.clear()
    cloud.clip(20, "--clip_length", 10)
    assert content(cloud) == before and cloud.media() == []
    cloud.clip(20, "--clip_length", 10)
    assert (
        len(
            [
                line
                for line in ledger.read_bytes().splitlines()
                if line.startswith(b'{"schema": 1') and line.endswith(b"}")
            ]
        )
        == 2
    )


# --- the disk ---


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    mount = need("mount")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("not tested, because this program is missing: the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.slow
def test_a_full_disk_ends_cleanly_and_the_rerun_finishes_when_there_is_room(clouds: Clouds) -> None:
    cloud, calm = clouds(silent_camera()), clouds(silent_camera())
    calm.clip(60, "-w")
    for free_kb, phase in ((600, "part"), (1250, "final file")):
        cloud.folder = cloud.work / f"disk{free_kb}"
        cloud.sim.clear()
        slowly = ["--bwlimit", "200K"] if phase == "part" else []  # so slow that something is on record by then
        with small_disk(cloud.folder, "8m"):
            ballast = cloud.folder / "ballast"
            ballast.write_bytes(bytes((8192 - free_kb) * 1024))
            run = cloud.clip(60, "-w", "--ignore_space", *slowly, ok=1)
            assert re.search("disk is full|No space left", run.err) and "Traceback" not in run.err
            assert cloud.files("*.mp4") == []
            ballast.unlink()
            cloud.sim.clear()
            cloud.clip(60, "-w", "--ignore_space")
            assert content(cloud) == content(calm)
            assert len(cloud.segments()) < 25 if phase == "part" else cloud.segments() == []
            assert cloud.files("*part*") == []


def test_a_run_that_cannot_fit_is_refused_before_it_begins(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    with small_disk(cloud.folder, "8m"):
        run = cloud.clip(3600, ok=3)
        assert "free" in run.sentence() and "MB" in run.sentence()
        assert cloud.media() == []


def test_an_output_folder_that_cannot_be_written_is_named(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    with small_disk(cloud.folder, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(cloud.folder)], check=True)
        assert str(cloud.folder) in cloud.clip(10, ok=3).sentence()
    cloud.folder = cloud.work / "file"
    cloud.folder.write_text("a file")
    assert str(cloud.folder) in cloud.clip(10, ok=3).sentence()
    cloud.folder = Path("/proc/nowhere")
    assert "/proc/nowhere" in cloud.clip(10, ok=3).sentence()
    assert cloud.media() == []


def test_an_output_folder_that_vanishes_midway_is_a_failure_with_a_sentence(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), latency_sec=0.05)

    def vanish() -> None:
        eventually(lambda: len(cloud.segments()) > 5, "segments")
        shutil.rmtree(cloud.folder)

    thread = threading.Thread(target=vanish)
    thread.start()
    run = cloud.clip(120, ok=None)
    thread.join()
    assert run.status in (1, 3) and "Traceback" not in run.err and " ERROR " in run.err


# --- giving up ---


def tried_without_a_segment(clouds: Clouds) -> tuple[Cloud, Clock]:
    """A clip of 20 s that lacks the segment from 6 to 8 s."""
    clock = Clock(NOW)
    cloud = clouds(silent_camera(), clock=clock)
    cloud.sim.add_fault(Fault(r"seg_4\.m4v", "status", times=-1))
    cloud.clip(20, "-w", ok=1)
    return cloud, clock


def test_after_give_up_what_there_is_becomes_a_partial_clip_once_and_no_longer_fails(clouds: Clouds) -> None:
    cloud, clock = tried_without_a_segment(clouds)
    clock.advance(6 * 86400)
    cloud.clip(20, "-w", ok=1)
    clock.advance(2 * 86400)
    run = cloud.clip(20, "-w")
    file = cloud.only()
    assert file.name == f"LoadingDockEast_{CAMERA}_{cloud.start}_video_partial.mp4" and file.name in run.err
    side = sidecar(file)
    assert side["complete"] is False
    gap = {"start_ms": (cloud.start + 6) * 1000, "end_ms": (cloud.start + 8) * 1000, "reason": "unavailable"}
    assert side["gaps"] == [gap]
    close_to(frames(file), cloud.pictures(cloud.start, cloud.start + 20, gaps=[(cloud.start + 6, cloud.start + 8)]))
    assert cloud.files("*part*") == [file.with_suffix(".json").name, file.name]
    cloud.sim.clear()
    cloud.clip(20, "-w")
    assert cloud.media() == []


def test_a_partial_clip_stays_also_when_the_ledger_is_lost_and_less_of_it_can_be_had_by_now(clouds: Clouds) -> None:
    cloud, clock = tried_without_a_segment(clouds)
    clock.advance(8 * 86400)
    cloud.clip(20, "-w")
    before = content(cloud)
    (cloud.folder / ".copy_footage" / "clips.jsonl").unlink()
    cloud.sim.world.cameras[0].local = cloud.sim.world.cameras[0].cloud = [(cloud.start + 16, int(NOW))]
    assert cloud.clip(20, "-w", "--dry_run", "--json").summary["planned"] == 0
    cloud.clip(20, "-w")
    assert content(cloud) == before and cloud.ledger()[0]["state"] == "partial"


def test_give_up_after_is_a_setting(clouds: Clouds) -> None:
    clock = Clock(NOW)
    cloud = clouds(silent_camera(), clock=clock)
    cloud.sim.add_fault(Fault(r"seg_4\.m4v", "status", times=-1))
    cloud.clip(20, "-w", ok=1)
    clock.advance(3601)
    cloud.clip(20, "-w", "--give_up_after", "1h")
    assert cloud.only().name.endswith("_video_partial.mp4")


def test_what_expired_before_it_could_be_had_is_published_as_partial(clouds: Clouds) -> None:
    cloud = half_done(clouds)
    start = cloud.start
    cloud.sim.world.cameras[0].local = cloud.sim.world.cameras[0].cloud = [(start + 12, int(NOW))]
    cloud.clip(20, "-w")
    side = sidecar(cloud.only("*_video_partial.mp4"))
    assert side["complete"] is False
    assert side["gaps"] == [{"start_ms": (start + 6) * 1000, "end_ms": (start + 8) * 1000, "reason": "expired"}]
    close_to(frames(cloud.only()), cloud.pictures(start, start + 20, gaps=[(start + 6, start + 8)]))


def test_what_is_in_the_part_already_need_not_exist_any_more(clouds: Clouds) -> None:
    cloud = half_done(clouds)
    start = cloud.start
    cloud.sim.world.cameras[0].status = "RED"
    cloud.sim.world.cameras[0].cloud = [(start + 6, start + 8)]
    cloud.clip(20)
    side = sidecar(cloud.only("*_video.mp4"))
    assert side["complete"] is True and side["gaps"] == [] and cloud.segments() == [4]
    close_to(frames(cloud.only()), cloud.pictures(start, start + 20))


def test_footage_that_expired_whole_is_lost_and_no_failure_any_more(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"m4v", "status", times=-1))
    cloud.clip(20, "-w", ok=1)
    cloud.sim.world.cameras[0].local = cloud.sim.world.cameras[0].cloud = []
    run = cloud.clip(20, "-w", "--json")
    assert run.summary["lost"] == 1 and "expired" in run.err
    assert cloud.files() == []


@pytest.mark.parametrize("held", [False, True])
def test_what_expired_is_not_called_unrecorded_when_the_first_run_could_not_learn_of_it(
    clouds: Clouds, held: bool
) -> None:
    cloud = clouds(silent_camera(), presence=False)
    cloud.sim.add_fault(Fault(r"seg_4\.m4v" if held else "m4v", "status", times=-1))
    cloud.clip(20, "-w", ok=1)
    cloud.sim.switches.presence = True
    cloud.clip(20, "-w", ok=1)
    cloud.sim.world.cameras[0].local = cloud.sim.world.cameras[0].cloud = []
    run = cloud.clip(20, "-w", "--json")
    assert run.summary["partial" if held else "lost"] == 1
    assert not held or sidecar(cloud.only())["gaps"][0]["reason"] == "expired"


# --- FFmpeg ---


def fake_ffmpeg(folder: Path, script: str) -> str:
    folder.mkdir(exist_ok=True)
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "echo 'cannot do that' >&2; exit 1",
        "exit 0",
        "kill -9 $$",
        'for last; do :; done; echo rubbish > "$last"; exit 0',
        'for last; do :; done; : > "$last"; exit 0',
    ],
)
def test_an_ffmpeg_that_fails_costs_no_segment(clouds: Clouds, script: str) -> None:
    cloud, calm = clouds(), clouds()
    calm.clip(20)
    path = os.environ["PATH"]
    cloud.monkeypatch.setenv("PATH", fake_ffmpeg(cloud.work / "bin", script))
    run = cloud.clip(20, ok=1)
    assert "Traceback" not in run.err and "bug in the program" not in run.err and " ERROR " in run.err
    if "cannot do that" in script:
        assert "cannot do that" in run.err
    assert cloud.files("*.mp4") == [] and cloud.files("*mux*") == []
    cloud.monkeypatch.setenv("PATH", path)
    cloud.sim.clear()
    cloud.clip(20)
    assert cloud.segments("m4v") == [] and cloud.segments("webm") == []
    assert content(cloud) == content(calm)


def test_without_any_ffmpeg_the_sentence_says_how_to_get_one(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.monkeypatch.setenv("PATH", str(cloud.work))
    cloud.monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(cloud.work / "nowhere"))
    cloud.monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    sentence = cloud.clip(10, ok=3).sentence()
    assert "ffmpeg" in sentence and "pip install imageio-ffmpeg" in sentence
    assert cloud.media() == []
