"""copy_footage.py --catch_up: every second and every alert once, whatever happens between and during the runs."""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from copy_footage_helpers import (
    CAMERA,
    NOW,
    Clock,
    Cloud,
    Clouds,
    close_to,
    eventually,
    frames,
    one_camera,
    running,
    sidecar,
    silent_camera,
)
from rhombus_simulator import Alert, Camera, Fault, ruuid

import copy_footage

HOUR, DAY = 3600, 86400
ALERTS = ["--alerts", "--catch_up", "-ab", 0]


@pytest.fixture
def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Clouds]:
    with Clouds(tmp_path, monkeypatch, capsys) as found:
        yield found


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


def ranges(cloud: Cloud, camera: str = CAMERA) -> list[tuple[int, int]]:
    """[start, end) of every finished clip of a camera by its sidecar, in order."""
    sides = [json.loads(path.read_text()) for path in cloud.folder.glob("*.json")]
    return sorted(
        (side["requested"]["start_ms"] // 1000, side["requested"]["end_ms"] // 1000)
        for side in sides
        if side["camera"]["uuid"] == camera
    )


def is_seamless(found: list[tuple[int, int]]) -> bool:
    return all(end == start for (_, end), (start, _) in zip(found, found[1:], strict=False))


def state(cloud: Cloud) -> dict[str, Any]:
    (path,) = (cloud.folder / ".copy_footage" / "catch_up").glob("*.json")
    return dict(json.loads(path.read_text()))


def alert(name: str, ago_sec: float, device: str = CAMERA, now: float = NOW, **more: object) -> Alert:
    return Alert(ruuid(name), int((now - ago_sec) * 1000), device_uuid=device, **{"duration_sec": 4, **more})


# --- ranges ---


def test_ranges_follow_each_other_without_hole_or_repeat(clouds: Clouds, clock: Clock) -> None:
    second = ruuid("second")
    world = silent_camera()
    world.cameras.append(Camera(second, "Gate", lan=False))
    cloud = clouds(world, clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 400)
    for pause in (61, 7, 200, 0, 33.7):
        clock.advance(pause)
        cloud.copy("--catch_up")
    for camera in (CAMERA, second):
        found = ranges(cloud, camera)
        assert found[0][0] == int(NOW) - 400 and is_seamless(found)
        assert clock() - 310 < found[-1][1] <= clock() - 290, "up to what the cloud has by now"
    numbers = cloud.asked("m4v")
    assert len(numbers) == len(set(numbers))


def test_every_frame_is_there_once_over_several_runs(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    begin = int(NOW) - 360
    for _ in range(3):
        cloud.copy("--catch_up", "-s", begin)
        clock.advance(30)
    found = [one for start, end in ranges(cloud) for _, one in frames(next(cloud.folder.glob(f"*_{start}_video.mp4")))]
    assert found == [one for _, one in cloud.pictures(begin, ranges(cloud)[-1][1])]


def test_after_a_long_downtime_the_range_is_cut_into_clips(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 320, "--clip_length", 60)
    clock.advance(400)
    cloud.copy("--catch_up", "--clip_length", 60)
    found = ranges(cloud)
    assert is_seamless(found) and len(found) >= 7 and all(end - start <= 60 for start, end in found)


def test_space_is_judged_by_what_the_camera_took_before_also_for_a_long_clip(
    clouds: Clouds, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 340)
    monkeypatch.setattr(copy_footage, "disk_free", lambda _: 100_000_000)
    clock.advance(300)
    cloud.copy("--catch_up")
    assert is_seamless(ranges(cloud)) and len(ranges(cloud)) == 2


def test_a_failed_clip_is_tried_again_and_the_mark_leaves_no_hole(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    cloud.sim.add_fault(Fault("m4v", "status", times=-1))
    cloud.copy("--catch_up", "-s", int(NOW) - 340, ok=1)
    clock.advance(60)
    cloud.copy("--catch_up", ok=1)
    cloud.sim.faults.clear()
    clock.advance(60)
    cloud.copy("--catch_up")
    found = ranges(cloud)
    assert found[0][0] == int(NOW) - 340 and is_seamless(found) and len(found) == 3
    assert state(cloud)["pending"] == []


def test_an_outage_of_the_api_keeps_the_mark(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 340)
    for fault in (Fault("api/", "status", times=-1), Fault("^wan|MediaUris|Bulk|Presence", "reset", times=-1)):
        cloud.sim.faults[:] = [fault]
        clock.advance(50)
        cloud.copy("--catch_up", ok=3 if fault.kind == "status" else 1)
    cloud.sim.faults.clear()
    clock.advance(50)
    cloud.copy("--catch_up")
    found = ranges(cloud)
    assert is_seamless(found) and found[0][0] == int(NOW) - 340 and found[-1][1] >= NOW + 150 - 310


@pytest.mark.slow
def test_an_offline_camera_that_delivers_later_is_taken_up_then(clouds: Clouds, clock: Clock) -> None:
    begin = int(NOW) - 400
    cloud = clouds(silent_camera(status="RED", cloud=[(begin - DAY, begin + 20)]), clock=clock)
    cloud.sim.switches.presence_hides_offline = True
    cloud.copy("--catch_up", "-s", begin)
    assert cloud.files("*.mp4") == [], "what may still come is waited for"
    clock.advance(2 * HOUR)
    cloud.copy("--catch_up")
    assert len(state(cloud)["pending"]) == 2  # type: ignore[arg-type]
    camera = cloud.sim.world.cameras[0]
    camera.status, camera.cloud = "GREEN", None
    clock.advance(HOUR)
    cloud.copy("--catch_up")
    found = ranges(cloud)
    assert found[0][0] == begin and is_seamless(found) and state(cloud)["pending"] == []
    first = next(cloud.folder.glob(f"*_{begin}_video.mp4"))
    close_to(frames(first), cloud.pictures(begin, found[0][1]))
    assert sidecar(first)["gaps"] == []


@pytest.mark.parametrize("words", [ALERTS, ["--alerts", "-ab", 0]], ids=["catch_up", "by hand"])
def test_what_an_offline_camera_delivers_after_a_run_by_hand_is_taken_up_too(
    clouds: Clouds, clock: Clock, words: list[object]
) -> None:
    begin, world = int(NOW) - 1020, silent_camera(status="RED", cloud=[(int(NOW) - DAY, int(NOW) - 1010)])
    world.alerts = [alert("a", 1020, duration_sec=20)]
    cloud = clouds(world, clock=clock)
    cloud.sim.switches.presence_hides_offline = True
    cloud.copy("--alerts", "-ab", 0, "-at", int(NOW) - HOUR)
    close_to(frames(cloud.only()), cloud.pictures(begin, begin + 10))
    cloud.sim.clear()
    cloud.copy("--alerts", "-ab", 0, "-at", int(NOW) - HOUR)
    assert cloud.media() == []
    world.cameras[0].status, world.cameras[0].cloud = "GREEN", None
    clock.advance(HOUR)
    world.alerts[0].duration_sec = 12
    cloud.copy(*words, "-at", int(NOW) - HOUR)
    close_to(frames(cloud.only()), cloud.pictures(begin, begin + 20))
    cloud.sim.clear()
    cloud.copy(*words, "-at", int(NOW) - HOUR)
    assert cloud.media() == [] and sidecar(cloud.only())["gaps"] == []


def test_pictures_that_come_later_are_not_forgotten_over_sound_that_comes_later(clouds: Clouds, clock: Clock) -> None:
    begin, world = int(NOW) - 1020, one_camera(status="RED", cloud=[(int(NOW) - DAY, int(NOW) - 1010)])
    cloud = clouds(world, clock=clock)
    cloud.sim.switches.presence_hides_offline = True
    cloud.sim.add_fault(Fault("webm|hdr", "status", times=-1))
    cloud.clip(20, start=begin, ok=1)
    cloud.sim.faults.clear()
    world.cameras[0].status, world.cameras[0].cloud = "GREEN", None
    cloud.clip(20, start=begin)
    close_to(frames(cloud.only()), cloud.pictures(begin, begin + 20))
    assert sidecar(cloud.only())["audio"]["status"] == "ok"


def test_what_an_offline_camera_never_delivers_is_settled_after_the_lookback(clouds: Clouds, clock: Clock) -> None:
    begin = int(NOW) - 400
    cloud = clouds(silent_camera(status="RED", cloud=[(begin - DAY, begin + 20)]), clock=clock)
    cloud.sim.switches.presence_hides_offline = True
    cloud.copy("--catch_up", "-s", begin, "--lookback", "1h")
    clock.advance(5 * HOUR)
    cloud.copy("--catch_up", "--lookback", "1h")
    first = next(cloud.folder.glob(f"*_{begin}_video.mp4"))
    assert sidecar(first)["gaps"][0]["start_ms"] == (begin + 20) * 1000
    close_to(frames(first), cloud.pictures(begin, begin + 20))


@pytest.mark.slow
def test_a_killed_catch_up_leaves_no_hole(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True, latency_sec=0.05)
    begin, dice = int(time.time()) // 2 * 2 - 600, random.Random(3)
    words = ["--catch_up", "-s", begin, "--clip_length", 60, "-w", "--workers", 2, "--segment_workers", 2]
    for _ in range(3):
        with running(cloud.spawn(*words)) as process:
            eventually(lambda: process.poll() is not None or cloud.media(), "a media request")  # noqa: B023
            time.sleep(dice.uniform(0, 1))
            process.kill()
            process.communicate()
        cloud.sim.clear()
    cloud.sim.switches.latency_sec = 0
    cloud.copy(*words)
    found = ranges(cloud)
    assert found[0][0] == begin and is_seamless(found) and found[-1][1] >= time.time() - 315
    for start, end in found:
        close_to(frames(next(cloud.folder.glob(f"*_{start}_video.mp4"))), cloud.pictures(start, end))


def test_different_queries_keep_marks_of_their_own(clouds: Clouds, clock: Clock) -> None:
    second = ruuid("second")
    world = silent_camera()
    world.cameras.append(Camera(second, "Gate"))
    cloud = clouds(world, clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 400, "-cam", CAMERA)
    clock.advance(50)
    cloud.copy("--catch_up", "-s", int(NOW) - 330, "-cam", "Gate")
    assert ranges(cloud)[0][0] == int(NOW) - 400
    assert ranges(cloud, second)[0][0] == int(NOW) - 330
    assert len(list((cloud.folder / ".copy_footage" / "catch_up").glob("*.json"))) == 2


def test_a_clock_that_is_ahead_leaves_no_hole(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock, date=True)
    cloud.copy("--catch_up", "-s", int(NOW) - 400)
    cloud.sim.clock = lambda: NOW + 60
    clock.advance(2 * HOUR)
    assert "1h59m ahead" in cloud.copy("--catch_up", ok=3).sentence()
    assert "1h59m ahead" in cloud.copy("-s", int(NOW) + HOUR, "-u", 10, ok=3).sentence()
    before = set(cloud.files("*.mp4"))
    cloud.copy("-s", int(NOW) - HOUR, "-u", 10)
    (past,) = set(cloud.files("*.mp4")) - before
    cloud.folder.joinpath(past).unlink()
    cloud.folder.joinpath(past).with_suffix(".json").unlink()
    clock.advance(120 - 2 * HOUR)
    cloud.copy("--catch_up")
    found = ranges(cloud)
    assert is_seamless(found) and len(found) == 2 and found[-1][1] == int(NOW) - 180


def test_a_new_camera_begins_where_the_query_begins(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 400)
    cloud.sim.world.cameras.append(Camera(ruuid("new"), "New"))
    clock.advance(60)
    cloud.copy("--catch_up", "-s", int(NOW) - 400)
    assert ranges(cloud, ruuid("new"))[0][0] == int(NOW) - 400


def test_a_dry_run_moves_no_mark(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    first = cloud.copy("--catch_up", "-s", int(NOW) - 400, "--dry_run", "--json")
    clock.advance(60)
    cloud.copy("--catch_up", "-s", int(NOW) - 400)
    assert ranges(cloud)[0][0] == int(NOW) - 400 and len(first.lines) == 2


def test_a_state_file_that_is_damaged_is_refused_and_not_taken_for_a_beginning(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 340)
    (path,) = (cloud.folder / ".copy_footage" / "catch_up").glob("*.json")
    for damage in ("", "{", "[]", "{}", '{"marks": 3}'):
        path.write_text(damage)
        assert str(path) in cloud.copy("--catch_up", ok=3).sentence(), damage


# --- alerts ---


def test_each_alert_is_taken_once(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera()
    world.alerts = [alert("a", 3000), alert("b", 2000)]
    cloud = clouds(world, clock=clock)
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    assert len(cloud.files("*.mp4")) == 2
    for path in cloud.folder.glob("*.mp4"):
        path.unlink()  # moved to the archive
    cloud.sim.clear()
    clock.advance(HOUR)
    world.alerts.append(alert("c", 1000, now=clock()))
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    assert cloud.only().name.endswith(f"{ruuid('c')}_video.mp4")
    assert len({line.split("/")[-4] for line in cloud.media()}) == 1


def test_alerts_of_the_same_instant_are_not_lost_at_the_mark(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera()
    world.alerts = [alert("a", 2000)]
    cloud = clouds(world, clock=clock)
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    world.alerts.append(alert("b", 2000))
    cloud.copy(*ALERTS)
    assert len(cloud.files("*.mp4")) == 2


def test_an_alert_that_arrives_late_is_found_within_the_lookback(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera()
    world.alerts = [alert("a", 2000)]
    cloud = clouds(world, clock=clock)
    cloud.copy(*ALERTS, "-at", int(NOW) - 3 * DAY)
    clock.advance(HOUR)
    world.alerts.append(alert("late", 2 * DAY, now=clock()))
    cloud.copy(*ALERTS, "-at", int(NOW) - 3 * DAY)
    assert len(cloud.files(f"*{ruuid('late')}_video.mp4")) == 1


def test_an_alert_that_grows_until_it_is_finalized_is_taken_up_again(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera()
    world.alerts = [alert("a", 1000, finalized=False)]
    cloud = clouds(world, clock=clock)
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    clock.advance(600)
    world.alerts[0].duration_sec, world.alerts[0].finalized = 20, True
    cloud.copy(*ALERTS)
    file = cloud.only()
    close_to(frames(file), cloud.pictures(int(NOW) - 1000, int(NOW) - 980))
    assert sidecar(file)["alert"]["finalized"] is True
    cloud.sim.clear()
    cloud.copy(*ALERTS)
    assert cloud.media() == []


def test_max_alerts_takes_the_oldest_first_and_the_rest_next_time(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera()
    world.alerts = [alert(f"a{n}", 3000 - 60 * n) for n in range(7)]
    cloud = clouds(world, clock=clock, page_cap=2)
    taken: list[set[int]] = []
    for _ in range(4):
        before = set(cloud.files("*.mp4"))
        cloud.copy(*ALERTS, "-at", int(NOW) - HOUR, "--max_alerts", 3)
        new = set(cloud.files("*.mp4")) - before
        taken.append({n for n in range(7) for name in new if ruuid(f"a{n}") in name})
    assert taken == [{0, 1, 2}, {3, 4, 5}, {6}, set()]


def test_an_alert_whose_footage_is_not_there_yet_waits_for_the_next_run(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera(lan=False)
    world.alerts = [alert("new", 60), alert("old", 1000)]
    cloud = clouds(world, clock=clock)
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    assert len(cloud.files("*.mp4")) == 1
    clock.advance(600)
    cloud.copy(*ALERTS)
    (file,) = cloud.folder.glob(f"*{ruuid('new')}_video.mp4")
    close_to(frames(file), cloud.pictures(int(NOW) - 60, int(NOW) - 56))


def test_an_outage_while_alerts_are_listed_loses_none(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera()
    world.alerts = [alert(f"a{n}", 3000 - 60 * n) for n in range(6)]
    cloud = clouds(world, clock=clock, page_cap=2)
    cloud.sim.add_fault(Fault("getPolicyAlerts", "status", after=2, times=-1))
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR, ok=3)
    assert cloud.files("*.mp4") == [], "a list that broke off is not a list"
    cloud.sim.faults.clear()
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    assert len(cloud.files("*.mp4")) == 6


def test_an_alert_whose_clip_failed_is_tried_again_and_the_others_not(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera()
    world.alerts = [alert("a", 3000), alert("b", 2000)]
    cloud = clouds(world, clock=clock)
    cloud.sim.add_fault(Fault(f"{int(NOW) - 3000}.*m4v", "status", times=-1))
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR, ok=1)
    assert cloud.only().name.endswith(f"{ruuid('b')}_video.mp4")
    cloud.sim.faults.clear()
    cloud.sim.clear()
    clock.advance(HOUR)
    cloud.copy(*ALERTS)
    assert len(cloud.files("*.mp4")) == 2
    assert all(str(int(NOW) - 3000) in line for line in cloud.media())


@pytest.mark.slow
def test_a_killed_catch_up_of_alerts_leaves_no_hole(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True, latency_sec=0.1)
    now = time.time()
    cloud.sim.world.alerts = [alert(f"a{n}", 3000 - 100 * n, now=now, duration_sec=20) for n in range(8)]
    words = ["--alerts", "--catch_up", "-ab", 0, "-at", int(now) - HOUR, "-w", "--workers", 2, "--segment_workers", 1]
    dice = random.Random(5)
    for _ in range(3):
        with running(cloud.spawn(*words)) as process:
            eventually(lambda: process.poll() is not None or cloud.media(), "a media request")  # noqa: B023
            time.sleep(dice.uniform(0, 1.2))
            process.kill()
            process.communicate()
        cloud.sim.clear()
    cloud.sim.switches.latency_sec = 0
    cloud.copy(*words)
    assert len(cloud.files("*.mp4")) == 8 and cloud.files("*part*") == []
    for path in cloud.folder.glob("*.mp4"):
        side = sidecar(path)
        begin = side["requested"]["start_ms"] // 1000
        close_to(frames(path), cloud.pictures(begin - begin % 2, -(-(side["requested"]["end_ms"] // 1000) // 2) * 2))


def test_an_alert_of_a_camera_that_is_gone_does_not_block_the_query(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera()
    world.alerts = [alert("a", 2000, ruuid("gone")), alert("b", 1000)]
    cloud = clouds(world, clock=clock)
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR, "--max_alerts", 1)
    assert cloud.only().name.endswith(f"{ruuid('b')}_video.mp4")
    assert [entry["alert"]["id"] for entry in state(cloud)["pending"]] == [ruuid("a")], "it may be listed again"
    clock.advance(8 * DAY)
    cloud.copy(*ALERTS)
    assert state(cloud)["pending"] == [] and [one["clip"] for one in state(cloud)["lost"]] == [ruuid("a")]


def test_overlapping_windows_of_alerts_need_no_flags_to_agree(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera()
    world.alerts = [alert("a", 2000), alert("b", 1998)]
    cloud = clouds(world, clock=clock)
    cloud.copy("--alerts", "--catch_up", "-ab", 4, "-at", int(NOW) - HOUR)
    assert len(cloud.files("*.mp4")) == 2


# --- status ---


def test_status_tells_of_each_query_and_ends_well_within_the_limits(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 340)
    cloud.copy("--alerts", "--catch_up", "-loc", "Site")
    before = len(cloud.sim.requests)
    rows = {row["query"]: row for row in cloud.copy("--status", "--json").lines[:-1]}
    assert set(rows) == {"manual", "alerts loc=Site"}
    assert rows["manual"]["pending"] == rows["manual"]["lost"] == 0
    assert rows["manual"]["last_good_run"] == "2025-08-05T13:20:00Z"
    assert len(cloud.sim.requests) == before, "it needs no network"
    assert cloud.copy("--status", key="").status == 0, "and no key"


def test_status_has_numbers_for_programs_and_words_for_people(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    cloud.configure(status_max_age="30d")
    cloud.sim.add_fault(Fault(r"seg_4\.m4v", "reset", times=-1))
    cloud.copy("--catch_up", "-s", int(NOW) - 340, ok=1)
    clock.advance(90)
    run = cloud.copy("--status", "--json", ok=1)
    assert run.lines[0]["last_good_run"] is None and run.lines[0]["oldest_pending_sec"] == 90
    part = cloud.only("*_video.mp4.part")
    summary = run.summary
    assert (summary["rows"], summary["problems"], summary["parts"]) == (1, 1, 1) and summary["free_bytes"] > 0
    assert summary["part_bytes"] == part.stat().st_size > 0
    run = cloud.copy("--status", ok=1)
    assert re.search(r"manual +never +1 +1m30s", run.out) and ", 1 part of " in run.err


def test_status_fails_when_no_run_ended_well_for_too_long(clouds: Clouds, clock: Clock) -> None:
    cloud = clouds(silent_camera(), clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 340)
    clock.advance(25 * HOUR)
    cloud.copy("--status")
    clock.advance(2 * HOUR)
    assert "no good run for 27h" in cloud.copy("--status", ok=1).sentence()
    cloud.configure(status_max_age="30h")
    cloud.copy("--status")


def test_status_fails_when_much_is_pending_lost_or_the_disk_is_full(clouds: Clouds, clock: Clock) -> None:
    world = silent_camera()
    world.alerts = [alert("a", 3000), alert("b", 2000)]
    cloud = clouds(world, clock=clock)
    cloud.configure(status_max_pending=1, status_max_age="30d")
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    world.alerts += [alert("c", 1900), alert("d", 1800)]
    cloud.sim.add_fault(Fault("m4v", "status", times=-1))
    cloud.copy(*ALERTS, ok=1)
    assert "2 pending" in cloud.copy("--status", ok=1).sentence()
    clock.advance(8 * DAY)
    cloud.copy(*ALERTS)
    assert "2 lost" in cloud.copy("--status", ok=1).sentence()
    cloud.configure(status_max_lost=2, status_max_age="30d")
    cloud.copy("--status")
    cloud.configure(status_max_lost=2, status_max_age="30d", status_min_free_bytes=10**15)
    assert "free" in cloud.copy("--status", ok=1).sentence()


@pytest.mark.parametrize("flag", [["-u", "60"], ["-bt", "now"], ["--overwrite"]])
def test_catch_up_refuses_flags_that_would_tear_holes(clouds: Clouds, flag: list[str]) -> None:
    cloud = clouds(silent_camera())
    assert "--catch_up" in cloud.copy("--catch_up", *flag, ok=2).sentence()
    assert cloud.files() == []
