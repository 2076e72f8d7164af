"""copy_footage.py where footage could be lost, cut, doubled or mixed, or something missing would not be said."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import seen_on_a_terminal
from copy_footage_helpers import (
    CAMERA,
    NOW,
    PROGRAM,
    SITE,
    Clock,
    Cloud,
    Clouds,
    Run,
    check_no_secret,
    close_to,
    content,
    frames,
    one_camera,
    packets,
    running,
    sidecar,
    silent_camera,
)
from rhombus_simulator import Alert, Fault, Gateway, Location, MediaKit, ruuid

import copy_footage

HOUR, DAY = 3600, 86400
ALERTS = ["--alerts", "--catch_up", "-ab", 0]


@pytest.fixture
def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Clouds]:
    with Clouds(tmp_path, monkeypatch, capsys) as found:
        yield found


def alert(name: str, ago_sec: float, device: str = CAMERA, now: float = NOW, **more: object) -> Alert:
    return Alert(ruuid(name), int((now - ago_sec) * 1000), device_uuid=device, **{"duration_sec": 4, **more})


def pending(cloud: Cloud) -> list[dict[str, object]]:
    (path,) = (cloud.folder / ".copy_footage" / "catch_up").glob("*.json")
    return list(json.loads(path.read_text())["pending"])


def body(cloud: Cloud, number: int, at_sec: int) -> bytes:
    """A video segment as the simulator serves it over WAN."""
    return b"".join(map(bytes, cloud.sim.media.video[at_sec // 2 % MediaKit.bank].at(number, 2 * (number - 1))))


# --- keeping up ---


def test_an_alert_from_the_future_does_not_end_the_query_for_ever(clouds: Clouds) -> None:
    """A camera with a wrong clock: what is listed next time must not begin there."""
    clock, world = Clock(NOW), silent_camera()
    world.alerts = [alert("wrong clock", -30 * DAY)]
    cloud = clouds(world, clock=clock)
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    clock.advance(DAY)
    world.alerts.append(alert("true", 2000, now=clock()))
    cloud.copy(*ALERTS)
    assert cloud.only().name.endswith(f"{ruuid('true')}_video.mp4")


@pytest.mark.parametrize("answer", ['{"cameraStates": []}', '{"cameraStates": null}', "other"])
def test_a_camera_that_is_once_not_listed_costs_no_alert(clouds: Clouds, answer: str) -> None:
    """Lists can be null, and what is listed once more an hour later was not gone."""
    clock, world = Clock(NOW), silent_camera()
    world.alerts = [alert("a", 1000)]
    cloud = clouds(world, clock=clock)
    if answer == "other":
        answer = json.dumps({"cameraStates": [{"uuid": ruuid("other"), "name": "Other"}]})
    cloud.sim.add_fault(Fault("getMinimalCameraStateList", "body", body=answer))
    run = cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    assert ruuid("a") in run.err and len(pending(cloud)) == 1
    clock.advance(HOUR)
    cloud.copy(*ALERTS)
    assert cloud.only().name.endswith(f"{ruuid('a')}_video.mp4") and pending(cloud) == []


def test_an_alert_of_a_camera_that_stays_away_is_lost_in_the_end_and_status_says_so(clouds: Clouds) -> None:
    clock, world = Clock(NOW), silent_camera()
    world.alerts = [alert("a", 1000, ruuid("gone"))]
    cloud = clouds(world, clock=clock)
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    clock.advance(8 * DAY)
    cloud.copy(*ALERTS)
    assert pending(cloud) == []
    assert ruuid("a") in cloud.copy("--status", ok=1).err


@pytest.mark.slow
def test_the_last_footage_of_a_camera_that_was_retired_between_two_runs_is_taken(clouds: Clouds) -> None:
    clock, world = Clock(NOW), silent_camera(cloud=[(int(NOW) - DAY, int(NOW) + 100)])
    world.cameras.append(type(world.cameras[0])(ruuid("long gone"), "Long gone", SITE, mummified=True))
    cloud = clouds(world, clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 340)
    clock.advance(3 * HOUR)
    world.cameras[0].mummified, world.cameras[0].local = True, []
    cloud.copy("--catch_up", "-s", int(NOW) - 340)
    last = cloud.only(f"*_{int(NOW) - 300}_video.mp4")
    close_to(frames(last), cloud.pictures(int(NOW) - 300, int(NOW) + 100))
    clock.advance(HOUR)
    before = len(cloud.asked("PresenceWindows"))
    cloud.copy("--catch_up", "-s", int(NOW) - 340)
    assert len(cloud.asked("PresenceWindows")) == before, "nothing is asked for any more"


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_camera_that_is_not_listed_any_more_is_lost_in_the_end_unless_it_goes_on_elsewhere(
    clouds: Clouds, goes_on: bool
) -> None:
    clock, world = Clock(NOW), silent_camera()
    cloud = clouds(world, clock=clock)
    cloud.copy("--catch_up", "-s", int(NOW) - 340, "-loc", "Site")
    world.cameras[0].location_uuid = ruuid("other")
    if goes_on:
        cloud.clip(60, start=int(NOW) - 320)
    clock.advance(8 * DAY)
    cloud.copy("--catch_up", "-loc", "Site")
    run = cloud.copy("--status", ok=0 if goes_on else 1)
    assert goes_on or f"1 lost: {CAMERA}_{int(NOW) - 300}" in run.sentence()


def test_a_camera_that_joins_an_alert_later_is_copied_too(clouds: Clouds) -> None:
    clock, world = Clock(NOW), silent_camera()
    world.cameras.append(type(world.cameras[0])(ruuid("second"), "Second", SITE))
    world.alerts = [alert("door", 1000, door=True, clip_devices=[CAMERA])]
    cloud = clouds(world, clock=clock)
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    world.alerts[0].clip_devices = [CAMERA, ruuid("second")]
    clock.advance(HOUR)
    cloud.copy(*ALERTS)
    assert len(cloud.files("*.mp4")) == 2


def test_an_alert_of_a_camera_that_has_moved_since_is_copied_with_those_of_its_old_location(clouds: Clouds) -> None:
    world = silent_camera(location_uuid=ruuid("other"))
    world.locations.append(Location(ruuid("other"), "Other"))
    world.cameras.append(type(world.cameras[0])(ruuid("second"), "Second", SITE))
    world.alerts = [alert("a", 1000, location_uuid=SITE)]
    cloud = clouds(world)
    for place in ("Site", "Other"):
        cloud.copy(*ALERTS, "-at", int(NOW) - HOUR, "-loc", place)
    assert len(cloud.files("*.mp4")) == 1


def test_an_alert_waits_until_its_last_second_is_there(clouds: Clouds) -> None:
    clock, world = Clock(NOW + 1.5), silent_camera()
    world.alerts = [alert("a", 303)]  # its window ends 299 s ago
    cloud = clouds(world, clock=clock)
    world.alerts[0].timestamp_ms = int(NOW - 303) * 1000  # ends at NOW - 299, which is odd
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    clock.advance(10)
    cloud.copy(*ALERTS)
    assert sidecar(cloud.only())["requested"]["end_ms"] == int(NOW - 299) * 1000


def test_an_alert_without_footage_yet_is_said(clouds: Clouds) -> None:
    world = silent_camera()
    world.alerts = [alert("now", 1)]
    run = clouds(world).copy("--alerts", "-ab", 0, "--json")
    assert run.summary["alerts_not_yet"] == 1 and ruuid("now") in run.err


def test_a_long_outage_becomes_clips_of_a_day_at_most(clouds: Clouds) -> None:
    """One clip of three weeks would take gigabytes of memory in FFmpeg."""
    clock = Clock(NOW)
    cloud = clouds(silent_camera(), clock=clock)
    run = cloud.copy("--catch_up", "-s", int(NOW) - 21 * DAY, "--dry_run", "--json")
    assert len(run.lines) - 1 >= 21


# --- parts of several sources ---


def break_off(cloud: Cloud, lan: int, wan: int) -> None:
    """Both sources answer so many segments."""
    cloud.sim.faults.clear()
    cloud.sim.add_fault(Fault(r"^lan GET .*m4v", "reset", times=-1, after=lan))
    cloud.sim.add_fault(Fault(r"^wan GET .*m4v", "reset", times=-1, after=wan))


def free_box(init: bytes, text: bytes) -> bytes:
    """An init segment that means the same and is not the same."""
    return init + struct.pack(">I4s", 8 + len(text), b"free") + text


def test_a_third_init_segment_does_not_push_the_longest_part_out(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    break_off(cloud, 18, 3)
    cloud.clip(40, ok=1)
    break_off(cloud, 0, 2)
    cloud.sim.faults.insert(0, Fault(r"wan.*seg_init", "body", body=free_box(cloud.sim.media.video_init, b"two")))
    cloud.clip(40, "-w", ok=1)
    cloud.sim.faults.clear()
    cloud.sim.clear()
    cloud.clip(40)
    assert len(cloud.segments("m4v")) <= 4, "the first part was taken up"
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 40))


def test_what_was_held_of_another_source_is_not_called_unrecorded_and_removed(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    break_off(cloud, 15, 3)
    cloud.clip(40, "--segment_workers", 1, ok=1)
    cloud.sim.faults.clear()
    cloud.sim.world.cameras[0].local = cloud.sim.world.cameras[0].cloud = []  # expired meanwhile
    cloud.clip(40, "-w")
    side = sidecar(cloud.only("*_video_partial.mp4"))
    assert side["segments"]["received"] >= 12 and {gap["reason"] for gap in side["gaps"]} == {"expired"}


def test_the_sound_of_two_microphones_is_never_mixed(clouds: Clouds) -> None:
    world, other = one_camera(), ruuid("other gateway")
    cloud = clouds(world)
    cloud.sim.add_fault(Fault(r"wan.*seg_[3-9]\.webm|wan.*seg_10\.webm", "status", times=-1))
    cloud.clip(20, "-w", ok=1)
    cloud.sim.faults.clear()
    cloud.sim.clear()
    world.gateways[0].status = "RED"
    world.gateways.append(Gateway(other, "Second mic", SITE, cameras=[CAMERA]))
    cloud.clip(20, "-w")
    assert all(other in line for line in cloud.asked("webm")) and len(cloud.segments("webm")) == 10
    assert sidecar(cloud.only())["audio"]["gateway"] == other


def test_a_thread_that_nobody_waits_for_opens_no_part_and_keeps_none_locked(tmp_path: Path) -> None:
    """On a worker of a cluster, which goes on, sound of a stopped run was in progress elsewhere for the next one."""
    run: Any = SimpleNamespace(settings=None, part_path=lambda _clip, sound=False: tmp_path / f"{sound}.part")
    clip: Any = None
    job = copy_footage.Job(run, clip)
    held = job._open_sound_part()
    with pytest.raises(copy_footage.Busy):
        copy_footage.Part(held.path)
    job.close()
    with pytest.raises(copy_footage.Stopped):
        job._open_sound_part()
    late = copy_footage.Job(run, clip)
    late.close()
    with pytest.raises(copy_footage.Stopped):
        late._open_sound_part()
    copy_footage.Part(held.path).close()


def test_a_part_is_taken_up_also_when_the_microphone_came_or_went(clouds: Clouds) -> None:
    world = one_camera()
    cloud = clouds(world)
    cloud.sim.add_fault(Fault(r"seg_4\.m4v", "status", times=-1))
    cloud.clip(20, "-w", ok=1)
    cloud.sim.faults.clear()
    cloud.sim.clear()
    world.gateways.clear()
    cloud.clip(20, "-w")
    assert cloud.segments("m4v") == [4]
    assert [name for name in cloud.files("*part*") if "audio" not in name] == []


def test_a_part_is_taken_up_also_when_the_camera_was_renamed(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.sim.add_fault(Fault(r"seg_4\.m4v", "status", times=-1))
    cloud.clip(20, "-w", ok=1)
    for device in (*cloud.sim.world.cameras, *cloud.sim.world.gateways):
        device.name, device.local, device.cloud = "Renamed", [], []  # and nothing of it can be had any more
    cloud.clip(20, "-w")
    file = cloud.only()
    assert file.name == f"Renamed_{CAMERA}_{cloud.start}_videoWithAudio_partial.mp4"
    close_to(frames(file), cloud.pictures(cloud.start, cloud.start + 20, gaps=[(cloud.start + 6, cloud.start + 8)]))
    assert [one for _, one in packets(file)] == [one for _, one in cloud.sounds(cloud.start, cloud.start + 20)]
    assert cloud.files("*.part*") == []


def test_a_part_is_taken_up_also_when_the_alert_has_become_one_of_another_type(clouds: Clouds) -> None:
    world = silent_camera()
    world.alerts = [alert("a", 1000, finalized=False, duration_sec=20)]
    cloud = clouds(world)
    cloud.sim.add_fault(Fault(r"seg_4\.m4v", "status", times=-1))
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR, "-w", ok=1)
    world.alerts[0].triggers, world.alerts[0].finalized = ["MOTION_HUMAN", "FACE_ALERT"], True
    cloud.sim.clear()
    cloud.sim.faults.clear()
    cloud.copy(*ALERTS, "-w")
    assert "_alert_MOTION_HUMAN-FACE_ALERT_" in cloud.only().name and cloud.segments() == [4]
    assert cloud.files("*.part*") == []


def test_segments_of_another_length_are_not_put_among_those_of_two_seconds(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"seg_4\.m4v", "status", times=-1))
    cloud.clip(20, "-w", ok=1)
    cloud.sim.faults.clear()
    document = WAN_MPD.replace('duration="2000"', 'duration="4000"')
    cloud.sim.add_fault(Fault(r"file\.mpd", "body", body=document, times=-1))
    cloud.clip(20, "-w", ok=1)
    cloud.sim.faults.clear()
    cloud.clip(20, "-w")
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))


WAN_MPD = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>
<AdaptationSet contentType="video" mimeType="video/mp4"><SegmentTemplate timescale="1000" duration="2000"
startNumber="1" initialization="seg_init.mp4" media="seg_$Number$.m4v"/>
<Representation id="v0" codecs="avc1.640028" bandwidth="1400000"/></AdaptationSet></Period></MPD>"""


# --- replacing what is there ---


def test_a_partial_clip_is_not_replaced_by_a_longer_range_that_holds_less(clouds: Clouds) -> None:
    clock = Clock(NOW)
    cloud = clouds(silent_camera(), clock=clock)
    cloud.sim.add_fault(Fault(r"seg_4\.m4v", "status", times=-1))
    cloud.clip(20, "-w", ok=1)
    clock.advance(8 * DAY)
    cloud.clip(20, "-w")
    before = content(cloud)
    assert "_partial" in cloud.only().name
    cloud.sim.world.cameras[0].local = cloud.sim.world.cameras[0].cloud = [(cloud.start + 12, int(NOW))]
    cloud.clip(30, "-w", ok=1)
    assert content(cloud).items() >= before.items()


def test_a_clip_whose_sidecar_is_gone_is_not_replaced_by_less(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.clip(20, "-w")
    before = content(cloud)
    cloud.only("*.json").unlink()
    cloud.sim.world.cameras[0].local = cloud.sim.world.cameras[0].cloud = [(cloud.start + 12, int(NOW))]
    cloud.clip(30, "-w", ok=1)
    assert content(cloud) == before


def test_a_clip_that_gets_a_new_name_with_more_in_it_is_not_there_twice(clouds: Clouds) -> None:
    clock, world = Clock(NOW), silent_camera()
    world.alerts = [alert("a", 1000, finalized=False)]
    cloud = clouds(world, clock=clock)
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR)
    world.alerts[0].triggers, world.alerts[0].duration_sec = ["MOTION_HUMAN", "FACE_ALERT"], 10
    world.alerts[0].finalized = True
    clock.advance(HOUR)
    cloud.copy(*ALERTS)
    assert "FACE_ALERT" in cloud.only().name and cloud.files("*.json") == [cloud.only().with_suffix(".json").name]


def test_a_longer_range_whose_sound_fails_does_not_remove_the_sound_that_was_there(clouds: Clouds) -> None:
    cloud, calm = clouds(), clouds()
    calm.clip(30, "-w")
    cloud.clip(20, "-w")
    before = content(cloud)
    cloud.sim.add_fault(Fault(r"webm|hdr", "status", times=-1))
    cloud.clip(30, "-w", ok=1)
    assert content(cloud).items() >= before.items()
    cloud.sim.faults.clear()
    cloud.clip(30, "-w")
    made, wanted = cloud.only(), calm.only()  # FFmpeg writes a mean rate that may be one bit higher, so not the bytes
    assert made.name == wanted.name and frames(made) == frames(wanted) and packets(made) == packets(wanted)


# --- segments that are none ---


def spoil_moof(segment: bytes) -> bytes:
    """Whole boxes, and a track run that announces more samples than there are."""
    at = segment.index(b"trun") + 8
    return segment[:at] + struct.pack(">I", 0x00FFFFFF) + segment[at + 4 :]


@pytest.mark.parametrize("audio", [True, False])
def test_a_segment_that_is_spoilt_inside_is_fetched_again(clouds: Clouds, audio: bool) -> None:
    cloud = clouds(one_camera(audio=audio))
    spoilt = spoil_moof(body(cloud, 5, cloud.start + 8))
    cloud.sim.add_fault(Fault(r"wan.*seg_5\.m4v", "body", body=spoilt))
    cloud.clip(20, "-w")
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))


@pytest.mark.parametrize("audio", [True, False])
def test_a_segment_that_stays_spoilt_leaves_the_part_and_no_clip_that_is_called_whole(
    clouds: Clouds, audio: bool
) -> None:
    clock = Clock(NOW)
    cloud = clouds(one_camera(audio=audio), clock=clock)
    spoilt = spoil_moof(body(cloud, 5, cloud.start + 8))
    cloud.sim.add_fault(Fault(r"wan.*seg_5\.m4v", "body", body=spoilt, times=-1))
    cloud.clip(20, "-w", ok=1)
    assert cloud.files("*.mp4") == []
    clock.advance(8 * DAY)
    cloud.clip(20, "-w")
    side = sidecar(cloud.only("*_partial.mp4"))
    assert side["segments"]["missing"] == [4] and side["gaps"][0]["reason"] == "invalid"
    gap = (cloud.start + 8, cloud.start + 10)
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20, gaps=[gap]))


@pytest.mark.parametrize("number", [1, 5, 10])
@pytest.mark.parametrize("timestamps", ["zero", "absolute"])
def test_a_segment_that_is_another_one_is_not_taken_for_it(clouds: Clouds, number: int, timestamps: str) -> None:
    """A cache that mixes up its entries answers 200 with a whole segment of another time."""
    cloud, calm = clouds(silent_camera(), timestamps=timestamps), clouds(silent_camera(), timestamps=timestamps)
    calm.clip(20, "-w")
    other = 3
    at_sec = cloud.start + 2 * (other - 1)
    segment = cloud.sim.media.video[at_sec // 2 % MediaKit.bank]
    wrong = b"".join(map(bytes, segment.at(other, at_sec if timestamps == "absolute" else 2 * (other - 1))))
    cloud.sim.add_fault(Fault(rf"wan.*seg_{number}\.m4v", "body", body=wrong, times=1))
    cloud.clip(20, "-w", ok=1)
    assert cloud.files("*.mp4") == []
    cloud.clip(20, "-w")
    assert content(cloud) == content(calm) and cloud.files("*part*") == []


@pytest.mark.parametrize(
    ("starts", "wrong"),
    [
        ([0, 2, 4, 4, 8, 10], [3]),  # the one before it again
        ([0, 2, 4, 20, 8, 10], [3]),
        ([6, 2, 4, 6, 8, 10], [0]),
        ([0, 2, 4, 6, 8, 2], [5]),
        ([0, 2, 6, 4, 8, 10, 12, 14], [2, 3]),  # two for each other
        ([0, 2, 2, 4, 6, 8, 12, 14], [1, 2]),  # a row is late by one: its begin is fetched again, then the next
        ([0, 2, 4.9, 6.2, 7.3, 10, 12.4], []),  # a camera that cuts where it likes
        ([0, 2, 4, 9, 11, 13], []),  # its clock was set
        ([0, 0, 0, 0], []),  # no times at all
        ([0, 2.002, 4.004, 6.006, 8.008], []),
        ([7], []),
        ([], []),
    ],
)
def test_a_segment_is_misplaced_when_its_neighbours_say_so(starts: list[float], wrong: list[int]) -> None:
    import copy_footage

    ticks = {index: round(90_000 * start) for index, start in enumerate(starts)}
    assert copy_footage.misplaced(ticks) == wrong


def test_an_mpd_that_lists_less_than_was_asked_for_is_no_complete_clip(clouds: Clouds) -> None:
    timeline = '<SegmentTimeline><S t="0" d="2000" r="4"/></SegmentTimeline>'
    document = WAN_MPD.replace('duration="2000"', "").replace('.m4v"/>', f'.m4v">{timeline}</SegmentTemplate>')
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"file\.mpd", "body", body=document, times=-1))
    cloud.clip(20, "-w")
    side = sidecar(cloud.only())
    assert side["segments"]["expected"] == 10 and side["segments"]["missing"] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "entries", ['<S t="8000" d="2000" r="5"/>', '<S t="0" d="2000" r="2"/><S t="14000" d="2000" r="2"/>']
)
def test_an_mpd_that_leaves_out_segments_in_front_or_between_gives_no_clip_of_another_time(
    clouds: Clouds, entries: str
) -> None:
    timeline = f"<SegmentTimeline>{entries}</SegmentTimeline>"
    document = WAN_MPD.replace('duration="2000"', "").replace('.m4v"/>', f'.m4v">{timeline}</SegmentTemplate>')
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"file\.mpd", "body", body=document, times=-1))
    assert "the MPD leaves out segments before its last one" in cloud.clip(20, "-w", ok=1).err
    assert cloud.files("*.mp4") == []


def test_404_for_all_that_was_recorded_is_not_called_no_footage(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"m4v", "status", status=404, times=-1))
    run = cloud.clip(20, "-w", ok=1)
    assert "no footage recorded" not in run.err and "404" in run.err
    cloud.sim.faults.clear()
    cloud.clip(20, "-w")
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))


def test_sound_with_holes_says_so(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.sim.add_fault(Fault(r"seg_[3-7]\.webm", "status", status=404, times=-1))
    run = cloud.clip(20, "-w")
    assert "5 of 10 segments of the sound missing" in run.err
    assert len(packets(cloud.only("*videoWithAudio.mp4"))) == 500


# --- names ---


def test_the_longest_names_leave_room_for_what_is_written_beside_them(clouds: Clouds) -> None:
    world = one_camera(name="N" * 200, facets=["v0", "v1"])
    cloud = clouds(world)
    entry = {"type": "POLICY_ALERT_V2", "uuid": "a" * 400, "deviceUuid": CAMERA, "deviceType": "CAMERA",
             "timestampMs": int(NOW - HOUR) * 1000, "policyAlertTriggers": ["M" * 300], "durationSec": 4}  # fmt: skip
    for page in ([entry], []):
        cloud.sim.add_fault(Fault("getPolicyAlerts", "body", body=json.dumps({"policyAlerts": page})))
    cloud.copy("--alerts", "-ab", 0)
    assert len(cloud.files("*_combined.mp4")) == len(cloud.files("*_combined.json")) == 2


# --- times ---


@pytest.mark.parametrize(
    ("now", "words", "ago_sec"),
    [
        ("2026-10-25T02:30:00+00:00", "3 hours ago", 3 * HOUR),  # 03:30 after the clocks went back
        ("2026-10-25T01:30:00+00:00", "5 minutes ago", 300),  # the second 02:30
        ("2026-10-25T01:30:00+00:00", "1h30m ago", 5400),
        ("2026-03-29T01:30:00+00:00", "2 hours ago", 2 * HOUR),  # 03:30, an hour after 01:59
        ("2026-03-29T01:30:00+00:00", "an hour ago", HOUR),
        ("2026-10-25T01:30:00+00:00", "now", 0),
    ],
)
def test_words_that_count_hours_and_minutes_know_of_summer_time(now: str, words: str, ago_sec: int) -> None:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    import copy_footage

    at = datetime.fromisoformat(now).timestamp()
    assert copy_footage.parse_time(words, "-s", ZoneInfo("Europe/Berlin"), at) == at - ago_sec


@pytest.mark.parametrize(
    ("text", "said"), [("2025-10-26T02:30", True), ("2026-03-29T02:30", True), ("2026-03-29T03:30", False)]
)
def test_a_local_time_that_comes_twice_or_never_is_said(clouds: Clouds, text: str, said: bool) -> None:
    from datetime import datetime, timezone

    cloud = clouds(silent_camera(), clock=Clock(datetime(2026, 4, 1, tzinfo=timezone.utc).timestamp()))
    run = cloud.copy("-s", text, "-u", 4, "--timezone", "Europe/Berlin", "--dry_run")
    assert ("summer time" in run.err) is said


# --- what is told, and what is not ---


def test_a_message_of_the_api_that_repeats_the_key_reaches_no_state_file(clouds: Clouds) -> None:
    world = silent_camera()
    world.alerts = [alert("a", 1000)]
    cloud = clouds(world)
    said = json.dumps({"error": True, "errorMsg": f"key {cloud.sim.api_key} may not"})
    cloud.sim.add_fault(Fault("getMediaUris|BulkMedia", "body", body=said, times=-1))
    cloud.copy(*ALERTS, "-at", int(NOW) - HOUR, ok=1)
    assert "may not" in json.dumps(pending(cloud))


# --- LAN devices ---


def test_what_a_device_answers_with_404_after_a_restart_is_asked_for_again(clouds: Clouds) -> None:
    """Until the MPD is fetched anew, such a device does not know of the range."""
    cloud = clouds(silent_camera(cloud=[]))
    cloud.sim.add_fault(Fault(r"lan.*seg_[5-9]\.m4v", "status", status=404, times=15))
    cloud.clip(20)
    assert sidecar(cloud.only())["gaps"] == [] and cloud.asked("^wan ") == []
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))


def test_what_a_camera_answers_with_404_and_the_cloud_has_comes_over_wan(clouds: Clouds) -> None:
    cloud, calm = clouds(silent_camera()), clouds(silent_camera())
    calm.clip(20, "-w")
    cloud.sim.add_fault(Fault(r"lan.*seg_4\.m4v", "status", status=404, times=-1))
    cloud.clip(20)
    side = sidecar(cloud.only())
    assert side["source"] == "wan" and side["gaps"] == [] and cloud.files("*part*") == []
    assert content(cloud) == content(calm)


def test_a_404_stays_a_gap_when_the_cloud_has_it_no_more_than_the_camera(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"lan.*seg_4\.m4v|wan.*seg_5\.m4v", "status", status=404, times=-1))
    cloud.clip(20)
    side = sidecar(cloud.only())
    assert side["complete"] is True
    assert side["gaps"] == [
        {"start_ms": (cloud.start + 8) * 1000, "end_ms": (cloud.start + 10) * 1000, "reason": "not_found"}
    ]


@pytest.mark.parametrize(("words", "cloudy"), [((), False), (("--lan_only",), True)])
def test_a_404_of_a_camera_without_a_way_to_the_cloud(clouds: Clouds, words: tuple[str, ...], cloudy: bool) -> None:
    """Nothing in the cloud: a gap. Something there, and --lan_only: kept, and said."""
    cloud = clouds(silent_camera(cloud=None if cloudy else []))
    cloud.sim.add_fault(Fault(r"lan.*seg_4\.m4v", "status", status=404, times=-1))
    run = cloud.clip(20, *words, ok=1 if cloudy else 0)
    assert cloud.asked("^wan ") == []
    if cloudy:
        assert "404 where the cloud has footage" in run.err and len(cloud.files("*.part")) == 1
    else:
        assert sidecar(cloud.only())["gaps"][0]["reason"] == "not_found"


@pytest.mark.parametrize(("words", "most"), [((), 2), (("--segment_workers", 3), 3)])
def test_a_lan_device_gets_few_requests_at_once_however_many_clips(
    clouds: Clouds, words: tuple[object, ...], most: int
) -> None:
    cloud = clouds(silent_camera(), latency_sec=0.05)
    cloud.clip(40, "--clip_length", 10, *words)
    assert cloud.sim.max_parallel[f"lan {CAMERA}"] == most and len(cloud.files("*.mp4")) == 4


# --- told, although it ended otherwise ---


def test_a_state_that_cannot_be_written_is_told_by_mail_too(clouds: Clouds) -> None:
    """A run that ends with an exception has failed as well as one that counts a failed clip."""
    cloud = clouds(silent_camera())
    told: list[dict[str, Any]] = []
    with receiver(told) as url:
        cloud.configure(notify={"urls": [url.replace("http", "json")]})
        state = cloud.folder / ".copy_footage" / "catch_up"
        state.parent.mkdir(parents=True)
        state.write_text("a file where a folder has to be")
        with pytest.raises(OSError):
            cloud.copy(*ALERTS, ok=None)
    assert len(told) == 1 and "failed" in told[0]["title"]


@contextlib.contextmanager
def receiver(told: list[dict[str, Any]], status: int = 200) -> Iterator[str]:
    """A server on loopback that keeps the JSON posted to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            content = self.rfile.read(int(self.headers["Content-Length"]))
            told.append({**json.loads(content), "path": self.path})
            self.send_response(status)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_failure_and_its_end_are_told_at_notify_urls_and_no_token_reaches_the_log(clouds: Clouds) -> None:
    cloud, token = clouds(silent_camera()), "T0ken4-Hooks9Secret"
    told: list[dict[str, Any]] = []
    with receiver(told) as url:
        cloud.configure(notify={"urls": [f"{url.replace('http', 'json')}/services/{token}"]})
        cloud.sim.add_fault(Fault("m4v", "status", times=-1))
        run = cloud.clip(4, "--debug", "-w", ok=1)
        assert token not in run.err
        cloud.sim.faults.clear()
        run = cloud.clip(4, "--debug", "-w")
        assert token not in run.err
    assert [one["path"] for one in told] == [f"/services/{token}"] * 2
    assert "failed: 1 clip: 1 incomplete" in told[0]["title"] or "1 failed" in told[0]["title"]
    assert "recovered" in told[1]["title"] and "now well again" in told[1]["message"]


def test_a_url_that_does_not_take_the_message_is_a_warning_and_asked_again(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    told: list[dict[str, Any]] = []
    cloud.sim.add_fault(Fault("m4v", "status", times=-1))
    with receiver(told, 500) as url:
        cloud.configure(notify={"urls": [url.replace("http", "json")]})
        for count in (1, 2):
            run = cloud.clip(4, "-w", ok=1)
            assert "notification not sent" in run.err and len(told) == count


# --- a terminal ---


def on_a_terminal(cloud: Cloud, *words: Any, stdout_too: bool = False) -> tuple[int, str, str]:
    """(status, what a terminal of 100 columns got, stdout) of the program as a process."""
    command = [sys.executable, str(PROGRAM), *cloud.words(*words)]
    status, seen, out = seen_on_a_terminal(command, stdout_too=stdout_too, cwd=cloud.work, env=cloud.environment())
    check_no_secret({*cloud.sim.keys, *cloud.sim.tokens}, Run(status, out, seen), cloud.work)
    return status, seen, out


@pytest.mark.slow
def test_a_terminal_shows_a_bar_for_each_clip_and_the_log_above_it(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True, latency_sec=0.25)
    start = int(time.time()) // 2 * 2 - 7200
    status, seen, out = on_a_terminal(cloud, "-s", start, "-u", 20, "-w", "--segment_workers", 1)
    assert status == 0, seen
    shares = [float(size) for size in re.findall(r"([\d.]+)/[\d.]+ kB", seen)]
    assert "\x1b[" in seen and "Loading Dock / East" in seen and "━" in seen
    assert len(set(shares)) > 2 and shares == sorted(shares), "the bar moves, and only forwards"
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip("\r") for line in seen.split("\n")]
    assert any(line.endswith("1 clip: 1 done, " + line.rpartition(", ")[2]) for line in lines if "1 clip:" in line)
    assert "\x1b[?25h" in seen.rpartition("\x1b[?25l")[2], "the cursor is there again"
    assert out.strip() == str(cloud.only())


@pytest.mark.slow
def test_paths_on_the_same_terminal_stay_whole_lines(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True, latency_sec=0.25)
    start = int(time.time()) // 2 * 2 - 7200
    status, seen, _ = on_a_terminal(
        cloud, "-s", start, "-u", 20, "-w", "--segment_workers", 1, "--clip_length", 10, stdout_too=True
    )
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen).replace("\r", "\n").replace("\n", "")
    assert status == 0 and all(str(path) in plain for path in cloud.folder.glob("*.mp4"))
    assert len(cloud.files("*.mp4")) == 2


def test_quiet_and_a_pipe_show_no_bar(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True)
    start = int(time.time()) // 2 * 2 - 7200
    status, seen, _ = on_a_terminal(cloud, "-s", start, "-u", 4, "-w", "--quiet")
    assert (status, seen) == (0, "")


# --- kill -9 between any two changes of the disk ---

FIRST_KILL, KILL_STEP = 1, 5  # by hand also with a step of 1: about 55 changes of the disk, all four ways
KILLER = '''
import os, signal, sys
count, at, folder = 0, int(os.environ["KILL_AT"]), os.environ["KILL_IN"]
def hook(event, words):
    global count
    if event == "open" and (not isinstance(words[1], str) or not set("wa+x") & set(words[1])):
        return
    if event in ("open", "os.rename", "os.remove", "os.truncate") and folder in str(words[0]):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
'''


def killed_at(cloud: Cloud, number: int, *words: Any) -> bool:
    """Run the program and kill it just before so many changes of its folder; was there such a change?"""
    place = cloud.work / "killer"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(KILLER)
    process = cloud.spawn(*words, PYTHONPATH=str(place), KILL_AT=str(number), KILL_IN=str(cloud.folder))
    with running(process):
        process.communicate(timeout=60)
    return process.returncode == -9


def plain_clip(cloud: Cloud, start: int) -> list[Any]:
    return ["-s", start, "-u", 8, "-w"]


def longer_clip(cloud: Cloud, start: int) -> list[Any]:
    cloud.clip(4, "-w", start=start)
    return ["-s", start, "-u", 8, "-w"]


def added_sound(cloud: Cloud, start: int) -> list[Any]:
    cloud.sim.add_fault(Fault(r"webm|hdr", "status", times=-1))
    cloud.clip(8, "-w", start=start, ok=1)
    cloud.sim.faults.clear()
    return ["-s", start, "-u", 8, "-w"]


def other_source(cloud: Cloud, start: int) -> list[Any]:
    """Parts of both sources: what goes on exchanges them."""
    break_off(cloud, 3, 2)
    cloud.clip(8, "--segment_workers", 1, start=start, ok=1)
    cloud.sim.faults.clear()
    return ["-s", start, "-u", 8]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("prepare", [plain_clip, longer_clip, added_sound, other_source], ids=lambda one: one.__name__)
def test_killed_before_any_change_of_the_disk_a_rerun_ends_with_the_same_files(clouds: Clouds, prepare: Any) -> None:
    calm = clouds(real=True)
    start = int(time.time()) // 2 * 2 - 7200
    calm.copy("-s", start, "-u", 8, "-w")
    wanted, number = content(calm), FIRST_KILL
    while True:
        cloud = clouds(real=True)
        words = prepare(cloud, start)
        was_killed = killed_at(cloud, number, *words)
        assert set(cloud.files("*.mp4")) <= {*wanted, f"LoadingDockEast_{CAMERA}_{start}_video.mp4"}, number
        cloud.copy(*words)
        assert content(cloud) == wanted, f"killed before change {number}"
        assert sidecar(cloud.folder / next(iter(wanted)))["complete"] is True
        if not was_killed:
            break
        number += KILL_STEP
