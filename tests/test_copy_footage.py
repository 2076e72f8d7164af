"""copy_footage.py, manual and alert mode: what it asks for, what it leaves behind, and what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from copy_footage_helpers import (
    CAMERA,
    GATEWAY,
    NOW,
    PROGRAM,
    SITE,
    SUB,
    Cloud,
    Clouds,
    close_to,
    content,
    duration_sec,
    frames,
    media_info,
    one_camera,
    packets,
    sidecar,
    silent_camera,
    top_boxes,
)
from rhombus_simulator import DELETE, Alert, Camera, Fault, Gateway, Location, World, ruuid

import copy_footage


@pytest.fixture
def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Clouds]:
    with Clouds(tmp_path, monkeypatch, capsys) as found:
        yield found


def nobody(cloud: Cloud) -> str:
    """An address at which nobody listens."""
    return cloud.sim.lan_urls(Camera(lan=False))[0]


# --- manual mode: sources ---


def test_a_range_comes_over_lan_with_its_sound(clouds: Clouds) -> None:
    cloud = clouds()
    run = cloud.clip(20)
    file = cloud.only()
    assert file.name == f"LoadingDockEast_{CAMERA}_{cloud.start}_videoWithAudio.mp4"
    assert run.out == f"{file}\n"
    assert cloud.asked("^wan") == []
    close_to(frames(file), cloud.pictures(cloud.start, cloud.start + 20))
    close_to(packets(file), cloud.sounds(cloud.start, cloud.start + 20), slack_sec=0.021)
    side = sidecar(file)
    assert side["source"] == "lan" and side["complete"] is True and side["gaps"] == []
    assert side["audio"] == {"status": "ok", "gateway": GATEWAY, "offset_ms": 0, "missing": []}
    assert side["camera"] == {"uuid": CAMERA, "facet": "v0", "name": "Loading Dock / East", "location": "Site"}
    assert (
        side["requested"] == side["obtained"] == {"start_ms": cloud.start * 1000, "end_ms": (cloud.start + 20) * 1000}
    )
    assert side["segments"] == {"length_ms": 2000, "expected": 10, "received": 10, "missing": []}
    assert cloud.files() == [file.with_suffix(".json").name, file.name]


def test_a_finished_file_is_plain_and_seekable_and_knows_when_it_began(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.clip(20)
    file = cloud.only()
    boxes = top_boxes(file)
    assert boxes.index("moov") < boxes.index("mdat") and "moof" not in boxes
    said = media_info(file)
    assert "creation_time   : 2025-08-05T11:20:00.000000Z" in said
    assert "Lavf" not in said, "the name and version of a program would make the bytes vary"
    assert abs(duration_sec(file) - 20) < 0.05


def test_usewan_asks_no_lan_device(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.clip(20, "-w")
    assert cloud.asked("^lan") == []
    assert sidecar(cloud.only())["source"] == "wan"
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))


def test_lan_and_wan_give_the_same_bytes(clouds: Clouds) -> None:
    lan, wan = clouds(), clouds()
    lan.clip(20)
    wan.clip(20, "--usewan")
    assert content(lan) == content(wan)


def test_an_offline_camera_is_copied_from_the_cloud_and_one_line_says_so(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(status="RED"))
    run = cloud.clip(20)
    assert cloud.asked("^lan") == []
    assert len([line for line in run.err.splitlines() if "offline" in line and "WAN" in line]) == 1
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))


def test_where_no_lan_address_answers_the_wan_is_used_and_one_line_says_so(clouds: Clouds) -> None:
    cloud = clouds(one_camera(lan=False))
    run = cloud.clip(20)
    assert len([line for line in run.err.splitlines() if "WAN" in line]) == 1
    assert sidecar(cloud.only())["source"] == "wan"


@pytest.mark.parametrize("dead", ["refused", "silent"])
def test_lan_only_without_an_answer_says_connection_timeout_and_names_usewan(clouds: Clouds, dead: str) -> None:
    cloud = clouds(silent_camera(lan=False), dead_lan=dead)
    run = cloud.clip(20, "--lan_only", ok=1)
    assert "Connection timeout" in run.err and "--usewan" in run.err
    assert cloud.asked("^wan") == [] and cloud.files("*.mp4") == []


def test_when_nothing_answers_the_run_says_connection_timeout(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(lan=False))
    cloud.sim.wan_url = nobody(cloud)
    run = cloud.clip(20, ok=1)
    assert "Connection timeout" in run.err and "--usewan" in run.err


@pytest.mark.parametrize("dead", ["refused", "silent"])
def test_every_lan_address_is_tried(clouds: Clouds, dead: str) -> None:
    cloud = clouds(one_camera(lan_addresses=3, lan_dead_addresses=2), dead_lan=dead)
    cloud.clip(20)
    assert cloud.asked("^wan") == []
    assert sidecar(cloud.only())["source"] == "lan"


def test_lan_only_fetches_nothing_over_wan_not_even_the_sound(clouds: Clouds) -> None:
    world = one_camera()
    world.gateways[0].lan = False
    cloud = clouds(world)
    cloud.clip(20, "--lan_only", ok=1)
    assert cloud.asked("^wan") == []
    assert cloud.files("*.mp4") == [f"LoadingDockEast_{CAMERA}_{cloud.start}_video.mp4"]


def test_old_firmware_takes_the_cookie_and_new_firmware_the_token(clouds: Clouds) -> None:
    for mode in ("cookie", "federated-only", "federated"):
        cloud = clouds(lan_auth=mode)
        cloud.clip(6)
        assert sidecar(cloud.only())["source"] == "lan", mode
        assert cloud.sim.leaks == []


@pytest.mark.parametrize("timestamps", ["zero", "absolute"])
@pytest.mark.parametrize("first", [0, 1, 100])
def test_numbering_and_timestamps_of_the_device_do_not_matter(clouds: Clouds, timestamps: str, first: int) -> None:
    cloud = clouds(timestamps=timestamps, lan_start_number=first)
    cloud.clip(12)
    assert cloud.segments("m4v", "lan") == list(range(first, first + 6))
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 12))
    close_to(packets(cloud.only()), cloud.sounds(cloud.start, cloud.start + 12), slack_sec=0.021)


# --- manual mode: cameras and names ---


def test_a_multi_sensor_camera_gives_a_clip_per_facet(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(name="Lobby", facets=["v0", "v1", "v2"]))
    cloud.clip(10)
    assert len(cloud.files("*.mp4")) == 3
    for facet, address in enumerate([CAMERA, f"{CAMERA}.v1", f"{CAMERA}.v2"]):
        (file,) = cloud.folder.glob(f"*_{address}_{cloud.start}_video.mp4")
        close_to(frames(file), cloud.pictures(cloud.start, cloud.start + 10, facet))
        assert sidecar(file)["camera"]["facet"] == f"v{facet}"


def test_the_name_of_a_device_means_all_its_channels_and_that_of_a_channel_only_this_one(clouds: Clouds) -> None:
    world = silent_camera(name="Lobby", facets=["v0", "v1"])
    world.alerts = [Alert(ruuid("a"), int(NOW - 4000) * 1000, device_uuid=CAMERA)]
    cloud = clouds(world)
    cloud.clip(4, "-cam", "Lobby v1")
    assert [one["facet"] for one in cloud.ledger()] == ["v1"]
    cloud.clip(4, "-cam", "Lobby")
    assert [one["facet"] for one in cloud.ledger()] == ["v1", ""]
    (row,) = cloud.copy("--list", "alerts", "--json").lines[:-1]
    assert (row["camera"], row["devices"]) == ("Lobby", [CAMERA])


def test_one_facet_can_be_asked_for(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(facets=["v0", "v1"]))
    cloud.clip(10, "-cam", f"{CAMERA}.v1")
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 10, 1))


def test_a_doorbell_brings_its_own_sound(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(own_audio=True, hw_variation="DOORBELL_CAMERA_DR40"))
    cloud.clip(10)
    file = cloud.only("*_videoWithAudio.mp4")
    close_to(frames(file), cloud.pictures(cloud.start, cloud.start + 10))
    close_to(packets(file), cloud.sounds(cloud.start, cloud.start + 10), slack_sec=0.021)


@pytest.mark.parametrize(("name", "shown"), [
    ("", "camera"), (None, "camera"), ("../../x", "x"), ("/etc/passwd", "etcpasswd"), ("Käse 入口 №7", "Kse7"),
    ("入口", "camera"), ("a\0b\nc\td", "abcd"), ("x" * 300, "x" * 60), ("-rf *", "rf"), ("$(reboot)", "reboot"),
    ("CON", "CON")])  # fmt: skip
def test_a_hostile_camera_name_stays_a_harmless_file_name(clouds: Clouds, name: str | None, shown: str) -> None:
    cloud = clouds(silent_camera(name=name))
    before = sorted(path for path in cloud.work.parent.rglob("*") if cloud.folder not in path.parents)
    cloud.clip(4)
    assert cloud.files("*.mp4") == [f"{shown}_{CAMERA}_{cloud.start}_video.mp4"]
    after = sorted(path for path in cloud.work.parent.rglob("*") if cloud.folder not in path.parents)
    assert [path for path in after if path not in before] == [cloud.folder], "nothing is written elsewhere"


def test_two_cameras_of_one_name_stay_two(clouds: Clouds) -> None:
    other = ruuid("other")
    cloud = clouds(World([Camera(CAMERA, "Door"), Camera(other, "Door")]))
    cloud.clip(4)
    assert cloud.files("*.mp4") == sorted(f"Door_{uuid}_{cloud.start}_video.mp4" for uuid in (CAMERA, other))


@pytest.mark.parametrize("uuid", ["-GwAbCdEfGhIjKlMnOpQrQ", "_GwAbCdEfGhIjKlMnOpQrQ", "--wAbCdEfGhIjKlMnOpQrQ"])
def test_an_identifier_may_begin_with_a_dash(clouds: Clouds, uuid: str) -> None:
    cloud = clouds(World([Camera(uuid, "Door"), Camera(ruuid("other"), "Gate")]))
    cloud.clip(4, "-cam", uuid)
    cloud.clip(4, "--camera_uuid", uuid, "-w")
    cloud.clip(4, "-cam", f"{uuid}.v0")
    assert cloud.files("*.mp4") == [f"Door_{uuid}_{cloud.start}_video.mp4"]


def test_a_location_whose_identifier_begins_with_a_dash_can_be_asked_for(clouds: Clouds) -> None:
    place = "-LocbCdEfGhIjKlMnOpQrQ"
    cloud = clouds(
        World(
            [Camera(CAMERA, "Door", place), Camera(ruuid("other"), "Gate", SITE)],
            locations=[Location(place, "Here"), Location(SITE, "There")],
        )
    )
    cloud.clip(4, "-loc", place)
    assert cloud.files("*.mp4") == [f"Door_{CAMERA}_{cloud.start}_video.mp4"]


def test_a_camera_is_found_by_its_exact_name(clouds: Clouds) -> None:
    cloud = clouds(World([Camera(CAMERA, "Door 1"), Camera(ruuid("other"), "Door 2")]))
    cloud.clip(4, "-cam", "Door 1")
    assert cloud.files("*.mp4") == [f"Door1_{CAMERA}_{cloud.start}_video.mp4"]


def test_a_location_includes_what_is_below_it(clouds: Clouds) -> None:
    below, beside = ruuid("below"), ruuid("beside")
    world = one_camera(audio=False)
    world.cameras += [Camera(below, "Freezer", SUB), Camera(beside, "Elsewhere", ruuid("another site"))]
    for wanted in (SITE, "Site"):
        cloud = clouds(world)
        cloud.clip(4, "-loc", wanted)
        assert {one["camera"] for one in cloud.ledger()} == {CAMERA, below}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["-cam", "Dor 1"], 2, ["'Dor 1'", "Door 1"]),
        (["-cam", "Twin"], 2, ["'Twin'", ruuid("t1"), ruuid("t2")]),
        (["-cam", "A" * 22], 2, ["not known"]),
        (["-loc", "Sitte"], 2, ["'Sitte'", "Site"]),
        (["-cam", ""], 2, ["'' is not known"]),
        (["-loc", ""], 2, ["'' is not known"]),
    ],
)
def test_an_unknown_or_ambiguous_name_is_refused_with_what_is_near(
    clouds: Clouds, words: list[str], status: int, said: list[str]
) -> None:
    cloud = clouds(
        World(
            [Camera(CAMERA, "Door 1", SITE), Camera(ruuid("t1"), "Twin"), Camera(ruuid("t2"), "Twin"),
             Camera(ruuid("nameless"), "", SITE)],  # fmt: skip
            locations=[Location(SITE, "Site")],
        )
    )
    run = cloud.clip(4, *words, ok=status)
    sentence = run.sentence()
    assert all(one in sentence for one in said), sentence
    assert cloud.media() == [] and cloud.files() == []


def test_a_retired_camera_and_null_fields_are_no_obstacle(clouds: Clouds) -> None:
    world = silent_camera(null_fields=True)
    world.gateways = [Gateway(GATEWAY, None, cameras=[CAMERA], null_fields=True)]
    cloud = clouds(world)
    cloud.clip(4)
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 4))


# --- manual mode: range ---


def test_an_odd_start_keeps_its_name_and_loses_no_frame(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    start = cloud.start + 1
    cloud.clip(10, start=start)
    file = cloud.only()
    assert f"_{start}_" in file.name
    side = sidecar(file)
    assert side["requested"] == {"start_ms": start * 1000, "end_ms": (start + 10) * 1000}
    assert side["obtained"] == {"start_ms": (start - 1) * 1000, "end_ms": (start + 11) * 1000}
    close_to(frames(file), cloud.pictures(start - 1, start + 11))
    assert "creation_time   : 2025-08-05T11:20:00.000000Z" in media_info(file)


def test_a_long_range_becomes_clips_of_the_length_asked_for(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.clip(25, "--clip_length", "10")
    starts = [cloud.start, cloud.start + 10, cloud.start + 20]
    assert cloud.files("*.mp4") == [f"LoadingDockEast_{CAMERA}_{start}_video.mp4" for start in starts]
    for start, end in zip(starts, [*starts[1:], cloud.start + 26], strict=True):
        close_to(frames(cloud.folder / f"LoadingDockEast_{CAMERA}_{start}_video.mp4"), cloud.pictures(start, end))


def test_one_presence_query_covers_all_clips_of_a_camera(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.clip(60, "--clip_length", "20")
    (video,) = [record for record in cloud.sim.requests if record.path == "/api/camera/getPresenceWindows"]
    assert json.loads(video.body) == {"cameraUuid": CAMERA, "startTimeSec": cloud.start, "durationSec": 60}
    assert len(cloud.asked("audiogateway/getPresenceWindows")) == 1


def test_a_range_that_reaches_into_the_future_ends_where_footage_ends(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    run = cloud.clip(3600, start=int(NOW) - 30)
    end_ms = sidecar(cloud.only())["requested"]["end_ms"]
    assert int(NOW) - 40 <= end_ms / 1000 <= int(NOW)
    assert "not there yet" in run.err


@pytest.mark.parametrize(
    ("start", "length", "first", "count"),
    [
        ("2025-08-05T11:20:00Z", "20", 0, 10),
        ("2025-08-05T11:20", "20s", 0, 10),
        ("2025-08-05T13:20:00+02:00", "20", 0, 10),
        ("2025-08-05 11:20:10", "1m", 10, 30),
        ("2 hours ago", "20", 0, 10),
        ("1754392800", "20", 0, 10),
        ("today 11:20", "10", 0, 5),
        ("20250805T112000Z", "4", 0, 2),
    ],
)
def test_times_are_epoch_seconds_iso_or_words(clouds: Clouds, start: str, length: str, first: int, count: int) -> None:
    cloud = clouds(silent_camera())
    run = cloud.copy("-s", start, "-u", length, "--dry_run", "--json")
    (plan,) = run.lines[:-1]
    assert plan["file"].endswith(f"_{cloud.start + first}_video.mp4") and plan["start"] == cloud.start + first
    cloud.copy("-s", start, "-u", length)
    assert sidecar(cloud.only())["segments"]["received"] == count


def test_naive_times_are_in_the_time_zone_asked_for(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.copy("-s", "2025-08-05T07:20", "-u", "4", "--timezone", "America/New_York")
    assert cloud.only().name.split("_")[-2] == str(cloud.start)


def test_without_a_range_the_last_hour_is_copied(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    run = cloud.copy("--dry_run", "--json", "--lag", "0")
    (plan,) = run.lines[:-1]
    assert (plan["start"], plan["end"]) == (int(NOW) - 3600, int(NOW))


# --- manual mode: what was recorded ---


def test_where_nothing_was_recorded_there_is_no_file_and_no_failure(clouds: Clouds) -> None:
    cloud = clouds(one_camera(local=[], cloud=[]))
    run = cloud.clip(20)
    assert "no footage recorded" in run.err
    assert cloud.files() == [] and cloud.media() == []


def gap_world(cloud_start: int, audio: bool = False) -> World:
    """Recorded but for the seconds 10 to 20."""
    windows = [(cloud_start - 600, cloud_start + 10), (cloud_start + 20, cloud_start + 600)]
    return one_camera(audio=audio, local=windows, cloud=windows)


def test_what_was_never_recorded_is_a_gap_and_placeholders_are_not_footage(clouds: Clouds) -> None:
    start = int(NOW) - 7200
    cloud = clouds(gap_world(start, audio=True))
    cloud.clip(30)
    file = cloud.only()
    side = sidecar(file)
    gap = {"start_ms": (start + 10) * 1000, "end_ms": (start + 20) * 1000, "reason": "not_recorded"}
    assert side["gaps"] == [gap] and side["complete"] is True
    assert side["segments"]["missing"] == [5, 6, 7, 8, 9]
    assert cloud.segments("m4v") == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14], "no placeholder is asked for"
    close_to(frames(file), cloud.pictures(start, start + 30, gaps=[(start + 10, start + 20)]))
    close_to(packets(file), cloud.sounds(start, start + 30), slack_sec=0.021)
    assert abs(duration_sec(file) - 30) < 0.1


def test_footage_that_begins_late_says_so_and_starts_at_its_first_frame(clouds: Clouds) -> None:
    start = int(NOW) - 7200
    cloud = clouds(one_camera(local=[(start + 8, start + 600)], cloud=[(start + 8, start + 600)]))
    cloud.clip(20)
    side = sidecar(cloud.only())
    assert side["obtained"] == {"start_ms": (start + 8) * 1000, "end_ms": (start + 20) * 1000}
    assert side["gaps"] == [{"start_ms": start * 1000, "end_ms": (start + 8) * 1000, "reason": "not_recorded"}]
    close_to(frames(cloud.only()), cloud.pictures(start + 8, start + 20))
    close_to(packets(cloud.only()), cloud.sounds(start + 8, start + 20), slack_sec=0.021)
    assert "creation_time   : 2025-08-05T11:20:08.000000Z" in media_info(cloud.only())


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9))), st.integers(0, 60), st.integers(1, 5))
def test_a_time_is_covered_exactly_where_one_of_the_windows_reaches_into_it(
    spans: list[tuple[int, int]], start: int, length: int
) -> None:
    windows = copy_footage.join_windows((low, low + size) for low, size in spans)
    reached = any(low < start + length and start < high for low, high in windows)
    assert copy_footage.covered(windows, start, start + length) == reached


@pytest.mark.parametrize("presence", [False, "null"])
def test_when_presence_is_unknown_the_download_goes_on(clouds: Clouds, presence: bool | str) -> None:
    cloud = clouds(presence=presence)
    run = cloud.clip(10)
    assert "WARNING" in run.err and "going on" in run.err
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 10))


def test_a_confirmed_404_is_a_gap_in_a_complete_clip(clouds: Clouds) -> None:
    start = int(NOW) - 7200
    cloud = clouds(gap_world(start), presence=False, lan_missing="404")
    cloud.clip(30)
    side = sidecar(cloud.only())
    assert side["gaps"] == [{"start_ms": (start + 10) * 1000, "end_ms": (start + 20) * 1000, "reason": "not_found"}]
    assert side["complete"] is True
    assert cloud.segments().count(7) == 3, "a 404 is believed after two more tries"
    close_to(frames(cloud.only()), cloud.pictures(start, start + 30, gaps=[(start + 10, start + 20)]))


def test_what_only_the_cloud_still_has_comes_over_wan(clouds: Clouds) -> None:
    start = int(NOW) - 7200
    cloud = clouds(silent_camera(local=[(start + 10, int(NOW))]))
    cloud.clip(20)
    side = sidecar(cloud.only())
    assert side["source"] == "wan" and side["gaps"] == []
    close_to(frames(cloud.only()), cloud.pictures(start, start + 20))


def test_what_only_an_offline_camera_has_is_not_called_unrecorded(clouds: Clouds) -> None:
    start = int(NOW) - 7200
    cloud = clouds(silent_camera(status="RED", cloud=[(start - 60, start + 10)]))
    run = cloud.clip(20, ok=1)
    assert "no footage recorded" not in run.err
    assert cloud.files("*.mp4") == [] and len(cloud.files("*.mp4.part")) == 1
    cloud.sim.world.cameras[0].cloud = None
    cloud.sim.clear()
    cloud.clip(20)
    close_to(frames(cloud.only()), cloud.pictures(start, start + 20))
    assert cloud.segments() == [6, 7, 8, 9, 10], "what was there is not fetched again"


# --- sound ---


def test_no_audio_asks_no_gateway(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.clip(10, "--no_audio")
    assert cloud.only().name.endswith("_video.mp4")
    assert "Audio:" not in media_info(cloud.only()) and cloud.segments("webm") == []


def test_when_the_sound_fails_the_picture_is_kept_and_the_next_run_adds_the_sound(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.sim.add_fault(Fault(r"seg_7\.webm", "status", times=-1))
    run = cloud.clip(20, ok=1)
    stem = f"LoadingDockEast_{CAMERA}_{cloud.start}"
    assert cloud.files("*.mp4") == [f"{stem}_video.mp4"]
    assert "audio" in run.err and " ERROR " in run.err
    assert sidecar(cloud.folder / f"{stem}_video.mp4")["audio"]["status"] == "failed"
    close_to(frames(cloud.folder / f"{stem}_video.mp4"), cloud.pictures(cloud.start, cloud.start + 20))
    cloud.sim.faults.clear()
    cloud.sim.clear()
    cloud.clip(20)
    assert cloud.segments("m4v") == [], "the picture is not fetched again"
    assert cloud.segments("webm") == [7], "nor the sound that is there"
    assert cloud.files() == [f"{stem}_videoWithAudio.json", f"{stem}_videoWithAudio.mp4"]
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))
    close_to(packets(cloud.only()), cloud.sounds(cloud.start, cloud.start + 20), slack_sec=0.021)
    side = sidecar(cloud.only())
    assert side["audio"]["status"] == "ok" and side["source"] == "lan"
    assert side["obtained"] == {"start_ms": cloud.start * 1000, "end_ms": (cloud.start + 20) * 1000}


def test_a_shorter_range_adds_the_sound_to_the_whole_clip(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.sim.add_fault(Fault("webm|hdr", "status", times=-1))
    cloud.clip(20, ok=1)
    cloud.sim.faults.clear()
    cloud.clip(8)
    close_to(packets(cloud.only()), cloud.sounds(cloud.start, cloud.start + 20), 0.02)
    assert sidecar(cloud.only())["requested"]["end_ms"] == (cloud.start + 20) * 1000


@pytest.mark.slow
def test_sound_whose_beginning_is_missing_stays_in_time(clouds: Clouds) -> None:
    start = int(NOW) - 7200
    for presence in (True, False):
        world = one_camera()
        world.gateways[0].local = world.gateways[0].cloud = [(start + 8, int(NOW))]
        cloud = clouds(world, presence=presence, lan_missing="404", missing="404")
        cloud.clip(20)
        found = packets(cloud.only("*_videoWithAudio.mp4"))
        close_to(found, [(at + 8, one) for at, one in cloud.sounds(start + 8, start + 20)], slack_sec=0.021)
        close_to(frames(cloud.only()), cloud.pictures(start, start + 20))


def test_where_the_gateway_recorded_nothing_there_is_a_picture_and_no_failure(clouds: Clouds) -> None:
    world = one_camera()
    world.gateways[0].local = world.gateways[0].cloud = []
    cloud = clouds(world)
    cloud.clip(10)
    side = sidecar(cloud.only("*_video.mp4"))
    assert side["audio"]["status"] == "not_recorded" and side["complete"] is True
    cloud.sim.clear()
    cloud.clip(10)
    assert cloud.media() == []


@pytest.mark.slow
@pytest.mark.parametrize("offset", [1.5, -0.5])
def test_audio_offset_moves_the_sound_against_the_picture(clouds: Clouds, offset: float) -> None:
    cloud, plain = clouds(), clouds()
    cloud.clip(20, "--audio_offset", offset)
    plain.clip(20)
    moved, still = packets(cloud.only()), packets(plain.only())
    common = [(at, was) for at, one in moved for was, other in still if one == other]
    assert common and all(abs(at - was - offset) < 0.03 for at, was in common)
    assert sidecar(cloud.only())["audio"]["offset_ms"] == offset * 1000
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))


def test_audio_codec_aac_suits_older_players(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.clip(20, "--audio_codec", "aac")
    said = media_info(cloud.only("*_videoWithAudio.mp4"))
    assert "Audio: aac" in said and "Video: h264" in said
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))
    times = [at for at, _ in packets(cloud.only())]
    assert times[-1] - times[0] > 19.8


# --- what is there already ---


def test_a_finished_clip_is_skipped_without_a_media_request(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.clip(10)
    before = content(cloud)
    cloud.sim.clear()
    run = cloud.clip(10, "--json")
    assert cloud.media() == [] and cloud.asked("Presence|MediaUris|Federated") == []
    assert run.summary["already"] == 1 and content(cloud) == before


def test_a_clip_that_has_moved_to_the_archive_is_not_fetched_again(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.clip(10)
    cloud.only().unlink()
    cloud.sim.clear()
    cloud.clip(10)
    assert cloud.media() == [] and cloud.files("*.mp4") == []


def test_a_renamed_camera_does_not_make_its_clips_new(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.clip(10)
    cloud.sim.world.cameras[0].name = "New name"
    cloud.sim.clear()
    cloud.clip(10)
    assert cloud.media() == [] and len(cloud.files("*.mp4")) == 1


def test_overwrite_fetches_again_and_replaces(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.clip(10)
    file = cloud.only()
    before = content(cloud)
    file.write_bytes(b"spoilt")
    cloud.sim.clear()
    cloud.clip(10, "--overwrite")
    assert cloud.segments() == [0, 1, 2, 3, 4]
    assert content(cloud) == before


def test_a_longer_range_with_the_same_start_replaces_the_shorter_one(clouds: Clouds) -> None:
    cloud, whole = clouds(), clouds()
    whole.clip(30)
    cloud.clip(10)
    cloud.clip(30)
    assert content(cloud) == content(whole)
    assert sidecar(cloud.only())["requested"]["end_ms"] == (cloud.start + 30) * 1000
    cloud.sim.clear()
    cloud.clip(30)
    cloud.clip(10)
    cloud.clip(20)
    assert cloud.media() == [] and content(cloud) == content(whole), "a shorter range lies within it"


def test_a_longer_range_that_holds_less_does_not_replace(clouds: Clouds) -> None:
    """Never less than before: footage that has expired meanwhile is only in the file that is here."""
    start = int(NOW) - 7200
    cloud = clouds(silent_camera())
    cloud.clip(10)
    before = content(cloud)
    cloud.sim.world.cameras[0].local = cloud.sim.world.cameras[0].cloud = [(start + 6, int(NOW))]
    run = cloud.clip(20, ok=1)
    assert content(cloud) == before, "the only copy of the first six seconds is kept"
    assert cloud.only().name in run.err


@pytest.mark.parametrize("why", ["shorter", "expired"])
def test_overwrite_never_replaces_a_clip_by_one_that_holds_less(clouds: Clouds, why: str) -> None:
    start = int(NOW) - 7200
    cloud = clouds(silent_camera())
    cloud.clip(20)
    before, size_bytes = content(cloud), cloud.only().stat().st_size
    if why == "expired":
        cloud.sim.world.cameras[0].local = cloud.sim.world.cameras[0].cloud = [(start + 6, int(NOW))]
    seconds = 20 if why == "expired" else 10
    run = cloud.clip(seconds, "--overwrite", ok=1)
    assert content(cloud) == before and cloud.only().name in run.err and "holds footage that this one lacks" in run.err
    cloud.only().unlink()
    cloud.clip(seconds, "--overwrite")
    assert 0 < cloud.only().stat().st_size < size_bytes, "moved away, it is in nobody's way"


@pytest.mark.parametrize("words", [(20, "--overwrite"), (24,)], ids=["overwrite", "longer"])
def test_a_clip_is_not_replaced_by_one_with_less_of_its_sound(clouds: Clouds, words: tuple[object, ...]) -> None:
    cloud = clouds()
    cloud.clip(20)
    before, microphone = content(cloud), cloud.sim.world.gateways[0]
    microphone.local = microphone.cloud = [(cloud.start + 14, int(NOW))]
    assert "1 conflict" in cloud.clip(*words, ok=1).err
    assert content(cloud) == before
    microphone.local = microphone.cloud = None
    cloud.clip(*words)
    assert len(packets(cloud.only())) == len(cloud.sounds(cloud.start, cloud.start + int(str(words[0]))))


def test_a_foreign_file_of_that_name_is_a_conflict_and_stays_untouched(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.folder.mkdir()
    file = cloud.folder / f"LoadingDockEast_{CAMERA}_{cloud.start}_video.mp4"
    file.write_bytes(b"not ours")
    run = cloud.clip(10, ok=1)
    assert file.read_bytes() == b"not ours" and file.name in run.err
    assert cloud.media() == []
    assert cloud.files() == [file.name]


def test_a_finished_clip_that_was_changed_is_a_conflict(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.clip(10)
    with cloud.only().open("ab") as handle:
        handle.write(b"more")
    before = content(cloud)
    run = cloud.clip(10, ok=1)
    assert content(cloud) == before and "--overwrite" in run.err


def test_a_conflict_does_not_stop_the_other_clips(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.folder.mkdir()
    (cloud.folder / f"LoadingDockEast_{CAMERA}_{cloud.start}_video.mp4").write_bytes(b"not ours")
    run = cloud.clip(20, "--clip_length", 10, "--json", ok=1)
    assert run.summary["conflict"] == 1 and run.summary["done"] == 1


# --- looking ---


def test_a_dry_run_names_the_clips_and_changes_nothing(clouds: Clouds) -> None:
    cloud = clouds()
    run = cloud.clip(60, "--dry_run", "--clip_length", 30)
    stem = f"LoadingDockEast_{CAMERA}"
    assert (
        f"{stem}_{cloud.start}_videoWithAudio.mp4" in run.out
        and f"{stem}_{cloud.start + 30}_videoWithAudio.mp4" in run.out
    )
    assert cloud.files() == [] and cloud.media() == []
    assert cloud.asked("Presence|Federated") == []
    assert re.search(r"30s +25\.5 MB", run.out) and "dry run: 2 clips, about 51.0 MB" in run.err


def test_lines_of_json_look_the_same_before_and_after(clouds: Clouds) -> None:
    cloud = clouds()
    (planned,) = cloud.clip(10, "--dry_run", "--json").lines[:-1]
    (done,) = cloud.clip(10, "--json").lines[:-1]
    assert planned.pop("estimate_bytes") > 0
    assert planned == {**done, "state": "planned", "bytes": 0, "audio": ""}


def test_a_dry_run_plans_what_the_run_then_does(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.clip(10)
    for words, seconds, states in (([], 10, []), (["--overwrite"], 10, ["planned"]), ([], 20, ["planned"])):
        plan = cloud.clip(seconds, *words, "--dry_run", "--json").lines[:-1]
        assert [line["state"] for line in plan if line["state"] != "already"] == states, (words, seconds)
    (cloud.folder / ".copy_footage" / "clips.jsonl").unlink()
    for lost in ("the record", "the sidecar too"):
        before = cloud.files()
        assert cloud.clip(10, "--dry_run", "--json").lines[0]["state"] == "already", lost
        assert cloud.files() == before and cloud.ledger() == [], "a dry run records nothing"
        cloud.only().with_suffix(".json").unlink(missing_ok=True)
    cloud.only().write_bytes(b"foreign")
    assert "is not this clip" in cloud.clip(10, "--dry_run", ok=1).err


def test_list_shows_cameras_locations_and_alerts(clouds: Clouds) -> None:
    world = one_camera()
    world.alerts = [Alert(ruuid("a"), int(NOW - 4000) * 1000, device_uuid=CAMERA)]
    cloud = clouds(world)
    cameras = cloud.copy("--list", "cameras")
    assert CAMERA in cameras.out and "Loading Dock / East" in cameras.out and "Dock mic" in cameras.out
    (place, below) = cloud.copy("--list", "locations", "--json").lines[:-1]
    assert place["uuid"] == SITE and place["cameras"] == 1 and below["uuid"] == SUB and "Cold store" in below["name"]
    (alert,) = cloud.copy("--list", "alerts", "--json").lines[:-1]
    assert alert["id"] == ruuid("a") and alert["camera"] == "Loading Dock / East"
    assert alert["time"] == "2025-08-05T12:13:20Z" and alert["type"] == "MOTION_HUMAN"
    assert cloud.media() == []


def test_check_looks_at_everything_a_run_needs(clouds: Clouds) -> None:
    world = one_camera()
    world.cameras += [Camera(ruuid("far"), "Far", lan=False), Camera(ruuid("off"), "Off", status="RED")]
    cloud = clouds(world)
    rows = {row["check"]: row for row in cloud.copy("--check", "--json").lines[:-1]}
    assert rows["API key and region"]["result"] == "ok" and rows["FFmpeg"]["result"] == "ok"
    reach = {
        name.split(":")[1].split("(")[0].strip(): row["result"] for name, row in rows.items() if name.startswith("LAN")
    }
    assert reach == {"Loading Dock / East": "ok", "Far": "WAN only", "Off": "WAN only"}
    assert cloud.files() == []


def test_check_names_the_rights_that_a_key_lacks(clouds: Clouds) -> None:
    cloud = clouds()
    run = cloud.copy("--check", key=cloud.sim.no_alerts_key, ok=1)
    assert re.search(r"alerts\s+FAILED", run.out) and "alerts" in run.sentence()
    run = cloud.copy("--check", key=cloud.sim.no_bulk_key)
    assert re.search(r"bulk\s+slower", run.out)


def test_every_line_of_json_is_json_and_the_last_is_the_summary(clouds: Clouds) -> None:
    cloud = clouds()
    for words in (
        ["-s", cloud.start, "-u", 10],
        ["-s", cloud.start, "-u", 10],
        ["--list", "cameras"],
        ["--check"],
        ["-s", cloud.start, "-u", 20, "--dry_run"],
        ["--alerts"],
        ["--status"],
    ):
        assert cloud.copy(*words, "--json").summary is not None, words
    (line,) = cloud.clip(10, "--json", start=cloud.start + 100).lines[:-1]
    assert line["state"] == "done" and line["audio"] == "ok" and line["camera"] == CAMERA
    assert Path(line["file"]).stat().st_size == line["bytes"]


def test_a_key_without_the_right_to_bulk_asks_for_each_device(clouds: Clouds) -> None:
    cloud = clouds(bulk=False)
    cloud.clip(10)
    close_to(frames(cloud.only("*_videoWithAudio.mp4")), cloud.pictures(cloud.start, cloud.start + 10))
    assert len(cloud.asked("api/camera/getMediaUris")) == 1 and len(cloud.asked("audiogateway/getMediaUris")) == 1


def test_a_camera_without_addresses_in_bulk_is_asked_for_by_itself(clouds: Clouds) -> None:
    """Those of a doorbell, or of footage that lies on another device, come by other ways."""
    world = silent_camera()
    world.cameras.append(Camera(ruuid("second"), "Second"))
    cloud = clouds(world)
    answer = json.dumps({"mediaDeviceDetails": {f"{CAMERA}.v0": {"name": "Door", "lanVodMpdUrisTemplates": []}}})
    cloud.sim.add_fault(Fault("getBulk", "body", body=answer))
    cloud.clip(8)
    assert len(cloud.files("*.mp4")) == 2


def test_many_devices_are_asked_for_in_one_call(clouds: Clouds) -> None:
    cloud = clouds(World([Camera(ruuid(str(n)), f"Camera {n}") for n in range(5)]))
    cloud.clip(4)
    assert len(cloud.files("*.mp4")) == 5
    assert len(cloud.asked("getBulkMediaDeviceDetails")) == 1 and cloud.asked("getMediaUris") == []


# --- alert mode ---


def alert(name: str, ago_sec: float = 3600, device: str | None = CAMERA, **more: object) -> Alert:
    return Alert(ruuid(name), int((NOW - ago_sec) * 1000), device_uuid=device, **more)


def with_alerts(*alerts: Alert, audio: bool = False, **camera: object) -> World:
    world = one_camera(audio=audio, **camera)
    world.alerts = list(alerts)
    return world


def test_an_alert_becomes_a_clip_with_a_buffer_on_both_sides(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("person", duration_sec=10), audio=True))
    cloud.copy("--alerts", "--alert_buffer", 6)
    begin = int(NOW) - 3600
    file = cloud.only()
    assert file.name == f"LoadingDockEast_{CAMERA}_20250805_121954_alert_MOTION_HUMAN_{ruuid('person')}_combined.mp4"
    close_to(frames(file), cloud.pictures(begin - 6, begin + 16))
    close_to(packets(file), cloud.sounds(begin - 6, begin + 16), slack_sec=0.021)
    side = sidecar(file)
    assert side["kind"] == "alert" and side["alert"]["id"] == ruuid("person")
    assert side["requested"] == {"start_ms": (begin - 6) * 1000, "end_ms": (begin + 16) * 1000}


def test_without_sound_an_alert_clip_is_called_video(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("person")))
    cloud.copy("--alerts", "-ab", 0)
    assert cloud.only().name.endswith(f"_alert_MOTION_HUMAN_{ruuid('person')}_video.mp4")
    assert sidecar(cloud.only())["segments"]["received"] == 15


def test_the_default_buffer_is_thirty_seconds(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("person")))
    cloud.copy("--alerts")
    begin = int(NOW) - 3600
    assert sidecar(cloud.only())["requested"] == {"start_ms": (begin - 30) * 1000, "end_ms": (begin + 60) * 1000}


def test_the_older_form_of_alerts_is_understood(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("person", duration_sec=8)), alert_form="old")
    cloud.copy("--alerts", "-ab", 2)
    file = cloud.only()
    assert f"_alert_motion_human_{ruuid('person')}_video.mp4" in file.name
    close_to(frames(file), cloud.pictures(int(NOW) - 3602, int(NOW) - 3590))


def test_the_name_of_the_camera_comes_from_the_camera_list(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("person", extra={"deviceName": "Lies", "cameraName": "More lies"})))
    cloud.copy("--alerts", "-ab", 0)
    assert cloud.only().name.startswith("LoadingDockEast_")


@pytest.mark.parametrize(
    ("zone", "stamp"),
    [
        ("Europe/Berlin", "20250805_141930"),
        ("America/New_York", "20250805_081930"),
        ("UTC", "20250805_121930"),
        ("Asia/Kolkata", "20250805_174930"),
    ],
)
def test_alert_names_carry_the_local_time_of_the_clips_start(clouds: Clouds, zone: str, stamp: str) -> None:
    cloud = clouds(with_alerts(alert("person")))
    cloud.copy("--alerts", "--timezone", zone)
    assert f"_{stamp}_alert_" in cloud.only().name
    local = datetime.strptime(stamp, "%Y%m%d_%H%M%S").replace(tzinfo=ZoneInfo(zone))
    assert local.timestamp() == NOW - 3630


def test_the_newest_alerts_are_taken_however_many_pages_that_takes(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(*(alert(f"a{n}", 3600 + 120 * n, duration_sec=2) for n in range(9))), page_cap=2)
    run = cloud.copy("--alerts", "--max_alerts", 5, "-ab", 0, "--json")
    assert {line["alert"] for line in run.lines[:-1]} == {ruuid(f"a{n}") for n in range(5)}
    assert "4 more not taken" in run.err and "WARNING" in run.err
    assert run.summary["alerts_not_taken"] == 4
    assert len(cloud.asked("getPolicyAlerts")) >= 5
    assert len(cloud.files("*.mp4")) == 5


def test_every_page_is_asked_for_until_the_bounds(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(*(alert(f"a{n}", 3600 + 60 * n) for n in range(7))), page_cap=3)
    run = cloud.copy("--alerts", "--after_time", int(NOW) - 3600 - 240, "--dry_run", "--json")
    assert len(run.lines) - 1 == 5
    assert not re.search("more not taken", run.err)


@pytest.mark.parametrize("edges", ["inclusive", "exclusive"])
def test_bounds_are_inclusive_whatever_the_api_thinks(clouds: Clouds, edges: str) -> None:
    cloud = clouds(with_alerts(*(alert(f"a{n}", 3600 + 100 * n) for n in range(5))), alert_bounds=edges)
    run = cloud.copy("--alerts", "-at", int(NOW) - 3900, "-bt", int(NOW) - 3700, "--dry_run", "--json")
    found = {name for name in range(5) for line in run.lines[:-1] if ruuid(f"a{name}") in line["clip"]}
    assert found == {1, 2, 3}


def test_a_door_alert_gives_a_clip_of_every_camera_in_its_map(clouds: Clouds) -> None:
    second = ruuid("second")
    world = with_alerts(
        alert(
            "door",
            device=None,
            door=True,
            triggers=["AC_DPI_DOOR_FORCED_OPEN"],
            clip_devices=[CAMERA, f"{second}.v0"],
            duration_sec=4,
        )
    )
    world.cameras.append(Camera(second, "Gate"))
    cloud = clouds(world)
    cloud.copy("--alerts", "-ab", 0)
    assert len(cloud.files("*.mp4")) == 2
    for name, uuid in (("LoadingDockEast", CAMERA), ("Gate", second)):
        (file,) = cloud.folder.glob(f"{name}_{uuid}_*_alert_AC_DPI_DOOR_FORCED_OPEN_{ruuid('door')}_video.mp4")
        close_to(frames(file), cloud.pictures(int(NOW) - 3600, int(NOW) - 3596))


def test_an_alert_of_something_that_is_no_camera_is_skipped_by_name_and_reason(clouds: Clouds) -> None:
    world = with_alerts(
        alert("noise", device=GATEWAY, device_type="AUDIO_GATEWAY", triggers=["SOUND_LOUD"]),
        alert("person", 3000),
        audio=True,
    )
    cloud = clouds(world)
    run = cloud.copy("--alerts", "-ab", 0, "--json")
    (line,) = [line for line in run.err.splitlines() if ruuid("noise") in line]
    assert "SOUND_LOUD" in line and "AUDIO_GATEWAY" in line and "skipped" in line
    assert run.summary["alerts_of_no_camera"] == 1
    assert len(cloud.files("*.mp4")) == 1


def test_an_alert_without_a_time_is_skipped_and_counted(clouds: Clouds) -> None:
    cloud = clouds(
        with_alerts(
            alert("person"),
            alert("nowhen", 3500, extra={"timestampMs": DELETE}),
            alert("never", 3400, extra={"timestampMs": None}),
            alert("words", 3300, extra={"timestampMs": "yesterday"}),
        )
    )
    run = cloud.copy("--alerts", "-ab", 0, "--json")
    assert run.err.count("Alert missing timestamp") == 3
    assert run.summary["alerts_without_time"] == 3 and run.summary["done"] == 1


def test_an_alert_without_a_time_at_the_end_of_a_page_hides_none_behind_it(clouds: Clouds) -> None:
    world = with_alerts(*(alert(f"a{n}", 2000 + 60 * n) for n in range(6)))
    world.alerts[1].extra = {"timestampMs": None}
    cloud = clouds(world, page_cap=2)
    cloud.copy("--alerts", "-ab", 0, "-at", int(NOW) - 3600)
    assert len(cloud.files("*.mp4")) == 5


def test_no_alerts_are_no_failure(clouds: Clouds) -> None:
    run = clouds(silent_camera()).copy("--alerts")
    assert "No policy alerts found" in run.err and run.out == ""


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        (Fault("getPolicyAlerts", "status", status=500, times=-1), ""),
        (Fault("getPolicyAlerts", "html", times=-1), ""),
        (Fault("getPolicyAlerts", "in_band", times=-1), ""),
        (Fault("getPolicyAlerts", "reset", times=-1), ""),
        (Fault("getPolicyAlerts", "body", times=-1, body='{"policyAlerts": null}'), ""),
        (Fault("getPolicyAlerts", "body", times=-1, body="[]"), ""),
        (Fault("getPolicyAlerts", "empty", times=-1), ""),
        (None, "no_alerts_key"),
    ],
)
def test_a_failure_of_the_api_is_never_no_alerts(clouds: Clouds, fault: Fault | None, key: str) -> None:
    cloud = clouds(with_alerts(alert("person")))
    if fault:
        fault.times = -1
        cloud.sim.add_fault(fault)
    run = cloud.copy("--alerts", ok=3, key=getattr(cloud.sim, key) if key else None)
    assert run.sentence().startswith("Failed to retrieve policy alerts")
    assert "No policy alerts found" not in run.err


def test_filters_go_out_as_arrays_and_sub_locations_are_among_them(clouds: Clouds) -> None:
    below = ruuid("below")
    world = with_alerts(
        alert("here", location_uuid=SITE),
        alert("below", 3500, below, location_uuid=SUB),
        alert("elsewhere", 3400, ruuid("far"), location_uuid=ruuid("far away")),
    )
    world.cameras += [Camera(below, "Freezer", SUB), Camera(ruuid("far"), "Far", ruuid("far away"))]
    cloud = clouds(world)
    run = cloud.copy("--alerts", "-loc", "Site", "-ab", 0, "--json")
    assert {line["alert"] for line in run.lines[:-1]} == {ruuid("here"), ruuid("below")}
    body = json.loads(next(record.body for record in cloud.sim.requests if record.path.endswith("getPolicyAlerts")))
    assert sorted(body["locationFilter"]) == sorted([SITE, SUB])


def test_an_alert_camera_is_chosen_by_its_unique_name(clouds: Clouds) -> None:
    second = ruuid("second")
    world = with_alerts(alert("here"), alert("there", 3500, second))
    world.cameras.append(Camera(second, "Gate"))
    cloud = clouds(world)
    cloud.copy("--alerts", "-cam", "Gate", "-ab", 0)
    assert cloud.only().name.startswith(f"Gate_{second}_")
    body = json.loads(next(record.body for record in cloud.sim.requests if record.path.endswith("getPolicyAlerts")))
    assert body["deviceFilter"] == [second]


def test_a_door_alert_gives_only_the_cameras_that_were_asked_for(clouds: Clouds) -> None:
    second = ruuid("second")
    world = with_alerts(alert("door", device=None, door=True, clip_devices=[CAMERA, second]))
    world.cameras.append(Camera(second, "Gate"))
    cloud = clouds(world)
    cloud.copy("--alerts", "-cam", "Gate", "-ab", 0)
    assert cloud.only().name.startswith(f"Gate_{second}_")


def test_a_camera_filter_with_the_name_of_none_is_refused_with_the_nearest(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("person")))
    assert "Loading Dock / East" in cloud.copy("--alerts", "-cam", "Loading Dock", ok=2).sentence()
    assert cloud.asked("getPolicyAlerts") == []


def entry(identity: str, **more: object) -> dict[str, object]:
    """An alert of four seconds as the API words it, with an identifier that the simulator would not give."""
    return {
        "type": "POLICY_ALERT_V2",
        "uuid": identity,
        "deviceUuid": CAMERA,
        "deviceType": "CAMERA",
        "durationSec": 4,
        "timestampMs": int(NOW - 3600) * 1000,
        "policyAlertTriggers": ["MOTION_HUMAN"],
        "finalized": True,
        **more,
    }


def serve_alerts(cloud: Cloud, *entries: dict[str, object]) -> None:
    """Let the API answer with these alerts, and then with an empty page."""
    for page in (list(entries), []):
        cloud.sim.add_fault(Fault("getPolicyAlerts", "body", body=json.dumps({"policyAlerts": page, "error": False})))


NAME = re.compile(r"[A-Za-z0-9]+_[\w-]{22}(\.v[1-9])?_\d{8}_\d{6}_alert_[\w-]+_(video|combined)\.mp4", re.ASCII)


@pytest.mark.parametrize(
    ("identity", "triggers"),
    [
        ("../../etc/passwd", ["MOTION_HUMAN"]),
        ("a" * 400, ["M" * 300]),
        ("ä/ö\0\n", ["MOTION HUMAN", "../.."]),
        ("x", ["A"] * 60),
        ("x", []),
        ("%2e%2e%2f", ["*?<>|:"]),
        (".", ["入口"]),
    ],
)
def test_hostile_and_long_alert_names_stay_valid_file_names(clouds: Clouds, identity: str, triggers: list[str]) -> None:
    cloud = clouds(silent_camera(name="N" * 200))
    serve_alerts(cloud, entry(identity, policyAlertTriggers=triggers))
    cloud.copy("--alerts", "-ab", 0)
    name = cloud.only().name
    assert NAME.fullmatch(name) and len(f"{name}.part.json") <= 255
    assert sidecar(cloud.only())["alert"]["id"] == identity
    cloud.sim.clear()
    serve_alerts(cloud, entry(identity, policyAlertTriggers=triggers))
    cloud.copy("--alerts", "-ab", 0)
    assert cloud.media() == []


def test_two_long_alert_identifiers_stay_two_files(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    serve_alerts(cloud, entry("x" * 300 + "1"), entry("x" * 300 + "2"))
    cloud.copy("--alerts", "-ab", 0)
    assert len(cloud.files("*.mp4")) == 2


def test_overlapping_windows_each_give_their_own_whole_clip(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("a", 3600, duration_sec=10), alert("b", 3594, duration_sec=10)))
    cloud.copy("--alerts", "-ab", 10)
    for name, ago in (("a", 3600), ("b", 3594)):
        (file,) = cloud.folder.glob(f"*_{ruuid(name)}_video.mp4")
        close_to(frames(file), cloud.pictures(int(NOW) - ago - 10, int(NOW) - ago + 20))


def test_a_window_is_clamped_to_what_can_exist(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("now", 40, duration_sec=600)))
    cloud.copy("--alerts", "-ab", 10)
    requested = sidecar(cloud.only())["requested"]
    assert requested["start_ms"] == int(NOW - 50) * 1000
    assert int(NOW) - 15 <= requested["end_ms"] / 1000 <= NOW


def test_lag_holds_an_alert_back_from_the_end_of_what_is_there(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("now", 400, duration_sec=380)))
    cloud.copy("--alerts", "-ab", 0, "--lag", "5m", "-w")
    assert sidecar(cloud.only())["requested"]["end_ms"] == int(NOW - 300) * 1000


def test_an_alert_of_a_multi_sensor_camera_shows_every_facet(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("a", device=f"{CAMERA}.v1", duration_sec=4), facets=["v0", "v1"]))
    cloud.copy("--alerts", "-ab", 0)
    assert 1 <= len(cloud.files("*.mp4")) <= 2
    (file,) = cloud.folder.glob(f"*_{CAMERA}.v1_*.mp4")
    close_to(frames(file), cloud.pictures(int(NOW) - 3600, int(NOW) - 3596, 1))


def test_a_rerun_over_the_same_alerts_asks_no_media_host(clouds: Clouds) -> None:
    cloud = clouds(with_alerts(alert("a"), alert("b", 3000), audio=True))
    cloud.copy("--alerts", "-ab", 0)
    cloud.only(f"*{ruuid('a')}*.mp4").unlink()
    cloud.sim.clear()
    run = cloud.copy("--alerts", "-ab", 0, "--json")
    assert cloud.media() == [] and run.summary["already"] == 2


@pytest.mark.parametrize(
    "entry",
    [
        {"durationSec": -5},
        {"durationSec": "long"},
        {"durationSec": None},
        {"durationSec": 1e300},
        {"clipLocationMap": None},
        {"policyAlertTriggers": None},
        {"policyAlertTriggers": "MOTION"},
        {"deviceType": 7},
        {"uuid": None},
        {"finalized": "maybe"},
        {"clipLocationMap": []},
        {"policyAlertTriggers": [None, 3]},
    ],
)
def test_odd_fields_of_an_alert_do_not_stop_it(clouds: Clouds, entry: dict[str, object]) -> None:
    cloud = clouds(with_alerts(alert("odd", extra=entry, duration_sec=4), alert("good", 3000, duration_sec=4)))
    run = cloud.copy("--alerts", "-ab", 0, "--json")
    assert run.summary["done"] == 2


@pytest.mark.parametrize("stamp", [0, -1, 10**18, 1e400, float("nan"), True, [], "x", 1_754_396_400])
def test_an_absurd_time_of_an_alert_does_not_stop_the_others(clouds: Clouds, stamp: object) -> None:
    cloud = clouds(
        with_alerts(alert("odd", extra={"timestampMs": stamp}, duration_sec=4), alert("good", 3000, duration_sec=4))
    )
    run = cloud.copy("--alerts", "-ab", 0, "--json")
    assert run.summary["done"] == 1


# --- bad input ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-u", "0"], "--duration"),
        (["-u", "-5"], "--duration"),
        (["-u", "500d"], "--duration"),
        (["-u", "ten"], "--duration"),
        (["-u", ""], "--duration"),
        (["-u", "nan"], "--duration"),
        (["-u", "1e3"], "--duration"),
        (["-s", "in 2 hours"], "--start_time"),
        (["-s", "2099-01-01"], "--start_time"),
        (["-s", "12"], "--start_time"),
        (["-s", "1754392800000"], "milliseconds"),
        (["-s", "gibberish"], "--start_time"),
        (["-s", "-3600"], "--start_time"),
        (["-s", ""], "--start_time"),
        (["-s", "1" * 400], "--start_time"),
        (["--alerts", "-at", "now", "-bt", "1 hour ago"], "--after_time"),
        (["--alerts", "-ab", "2d"], "--alert_buffer"),
        (["--alerts", "-ma", "0"], "--max_alerts"),
        (["--workers", "0"], "--workers"),
        (["--workers", "-1"], "--workers"),
        (["--segment_workers", "-1"], "--segment_workers"),
        (["--workers", "100000", "--segment_workers", "100000"], "--workers: 100000 is not between 1 and 1000"),
        (["--audio_offset", "nan"], "--audio_offset: nan"),
        (["--audio_offset", "1e9"], "--audio_offset"),
        (["--bwlimit", "10"], "--bwlimit"),
        (["--bwlimit", "fast"], "--bwlimit"),
        (["--timezone", "Mars/Olympus"], "--timezone"),
        (["--timezone", "../../etc/passwd"], "--timezone"),
        (["--usewan", "--lan_only"], "--lan_only"),
        (["--api_url", "ftp://x"], "--api_url"),
        (["--api_url", "http://example.org"], "https"),
        (["--api_url", "mars"], "--api_url"),
        (["--cert", "nowhere.pem"], "--private_key"),
        (["--private_key", "nowhere.pem"], "--cert"),
        (["--cert", "nowhere.pem", "--private_key", "nowhere.key"], "nowhere.pem"),
        (["--clip_length", "x"], "--clip_length"),
        (["--max_duration", "x"], "--max_duration"),
        (["--lag", "x"], "--lag"),
        (["--lookback", "x"], "--lookback"),
        (["--give_up_after", "x"], "--give_up_after"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_name_of_the_flag(clouds: Clouds, words: list[str], said: str) -> None:
    cloud = clouds()
    assert said in cloud.copy(*words, ok=2).sentence()
    assert cloud.sim.requests == [] and not cloud.folder.exists()


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_bundle_of_authorities_that_is_not_there_is_named(clouds: Clouds, name: str) -> None:
    cloud = clouds()
    cloud.monkeypatch.setenv(name, "/nowhere/ca.pem")
    assert cloud.copy(ok=2).sentence() == f"{name} in the environment: /nowhere/ca.pem cannot be read"


@pytest.mark.parametrize(
    "words",
    [
        ["--nonsense"],
        ["--dura", "5"],
        ["-u"],
        ["--max_alerts", "many"],
        ["--audio_codec", "mp3"],
        ["--list", "dogs"],
        ["--audio_offset", "late"],
        ["stray"],
    ],
)
def test_a_flag_that_does_not_exist_or_fit_ends_with_2(clouds: Clouds, words: list[str]) -> None:
    cloud = clouds()
    run = cloud.copy(*words, ok=2)
    assert "usage:" in run.err and cloud.sim.requests == []


def test_without_a_key_the_sentence_names_the_three_ways_and_the_demo(clouds: Clouds) -> None:
    cloud = clouds()
    sentence = cloud.copy(key="", ok=2).sentence()
    assert all(way in sentence for way in ("--api_key", "RHOMBUS_API_KEY", "rhombus.api_key", "--demo"))
    assert cloud.sim.requests == []


def test_a_key_on_the_command_line_works_and_is_warned_about(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    run = cloud.clip(4, "-a", cloud.sim.api_key)
    assert len([line for line in run.err.splitlines() if "WARNING" in line and "RHOMBUS_API_KEY" in line]) == 1


def test_a_key_in_the_config_file_works(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    words = ["-s", cloud.start, "-u", 4]
    config = cloud.work.parent / "with_key.yaml"
    config.write_text(json.dumps({"rhombus": {"api_key": cloud.sim.api_key}}))
    config.chmod(0o600)
    cloud.config = config
    run = cloud.copy(*words, key="")
    assert "WARNING" not in run.err and len(cloud.files("*.mp4")) == 1
    config.chmod(0o644)
    run = cloud.copy(*words, key="")
    assert "others can read rhombus.api_key" in run.err and f"chmod o-r {config}" in run.err
    cloud.monkeypatch.setenv("INVOCATION_ID", "systemd sets this")
    assert "others can read" in cloud.copy(*words, key="", ok=2).sentence()


@pytest.mark.parametrize(("key", "said"), [("other_region_key", "region"), ("nonsense", "refuses the key")])
def test_a_refused_key_ends_the_run_with_3_and_says_what_it_may_be(clouds: Clouds, key: str, said: str) -> None:
    cloud = clouds()
    sentence = cloud.clip(10, ok=None) and cloud.copy(key=getattr(cloud.sim, key, "A" * 22), ok=3).sentence()
    assert said in sentence and "permission" in sentence


def test_an_api_that_is_down_ends_the_run_with_3(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.sim.api_url = nobody(cloud)
    run = cloud.copy(ok=3)
    assert "does not answer" in run.sentence() and "trying again" in run.err, "it says why it takes long"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("api", "html"), "text/html"),
        (Fault("api", "in_band"), "simulated failure"),
        (Fault("api", "empty"), "JSON"),
        (Fault("api", "status", status=500), "500"),
        (Fault("api", "status", status=404), "404"),
        (Fault("api", "status", status=302, headers={"Location": "https://example.org/"}), "302"),
        (Fault("api", "reset"), "does not answer"),
        (Fault("api", "body", body="[1, 2]"), "JSON"),
        (Fault("api", "body", body="null"), "JSON"),
        (Fault("api", "garbage"), "JSON"),
        (Fault("api", "status", status=401, body='{"authenticationFailed": true}'), "401"),
    ],
)
def test_an_api_that_talks_nonsense_ends_the_run_with_3(clouds: Clouds, fault: Fault, said: str) -> None:
    cloud = clouds()
    fault.times = -1
    cloud.sim.faults[:] = [fault]
    run = cloud.copy(ok=3)
    assert said in run.sentence() or said == "JSON"
    assert cloud.media() == [] and cloud.files() == []


@pytest.mark.parametrize(
    "body", ['{"cameraStates": null}', '{"cameraStates": []}', "{}", '{"cameraStates": [null, 3, {}, {"uuid": null}]}']
)
def test_an_account_without_cameras_has_nothing_to_do(clouds: Clouds, body: str) -> None:
    cloud = clouds()
    cloud.sim.add_fault(Fault("getMinimalCameraStateList", "body", body=body))
    cloud.copy(ok=0)
    assert cloud.media() == [] and cloud.files() == []


@pytest.mark.parametrize(
    "body",
    [
        '{"cameraStates": {"a": 1}}',
        '{"cameraStates": "x"}',
        '{"cameraStates": 5}',
        '{"cameraStates": [{"uuid": "x", "facetNameMap": [], "supportedFacets": "v0"}]}',
    ],
)
def test_a_camera_list_of_another_shape_ends_with_a_sentence(clouds: Clouds, body: str) -> None:
    cloud = clouds()
    cloud.sim.add_fault(Fault("getMinimalCameraStateList", "body", body=body, times=-1))
    run = cloud.copy("--list", "cameras", ok=None)
    assert run.status in (0, 3) and "Traceback" not in run.err


WAN_PATH = "{START_TIME}/{DURATION}/vod/file.mpd"


@pytest.mark.parametrize("uuid", ["../../../../tmp/evil", "a/b", "x" * 300, "\0", "..", "ü"])
def test_a_hostile_identifier_of_a_camera_reaches_no_path(clouds: Clouds, uuid: str) -> None:
    cloud = clouds()
    body = json.dumps({"cameraStates": [{"uuid": uuid, "name": "Evil", "connectionStatus": "GREEN"}]})
    cloud.sim.add_fault(Fault("getMinimalCameraStateList", "body", body=body))
    for operation in ("getMediaUris", "Bulk"):
        cloud.sim.add_fault(
            Fault(
                operation,
                "body",
                times=-1,
                body=json.dumps({"wanVodMpdUriTemplate": f"{cloud.sim.wan_url}/dash/api/{CAMERA}.v0/" + WAN_PATH}),
            )
        )
    before = sorted(path for path in cloud.work.parent.rglob("*") if cloud.folder not in path.parents)
    run = cloud.clip(4, ok=None)
    after = sorted(path for path in cloud.work.parent.rglob("*") if cloud.folder not in path.parents)
    assert [path for path in after if path not in before] in ([], [cloud.folder])
    assert "Traceback" not in run.err and not Path("/tmp/evil").exists()
    assert all(re.fullmatch(r"Evil_[\w.-]+", name, re.ASCII) for name in cloud.files("*.mp4"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rhombus: [", ["valid YAML", "line"]),
        ("just words", ["rhombus:"]),
        ("- a\n- b", ["rhombus:"]),
        ("rhombus: 3", ["rhombus"]),
        ("rhombos:\n  api_key: x", ["rhombos", "did you mean rhombus"]),
        ("rhombus:\n  workes: 3", ["rhombus.workes", "did you mean workers"]),
        ("rhombus:\n  workers: many", ["rhombus.workers", "whole number"]),
        ("rhombus:\n  usewan: 'yes please'", ["rhombus.usewan"]),
        ("rhombus:\n  output_dir: [a]", ["rhombus.output_dir"]),
        ("rhombus:\n  api_key: YOUR_API_KEY", ["rhombus.api_key", "YOUR_API_KEY"]),
        ("rhombus:\n  api_key: ${NO_SUCH_NAME}", ["NO_SUCH_NAME"]),
        ("rhombus:\n  retry_wait: soon", ["retry_wait"]),
        ("rhombus:\n  clip_length: -1", ["clip_length"]),
        ("rhombus: {workers: true}", ["rhombus.workers"]),
        ("a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\n", ["a:"]),
        ("\xff\xfe", ["valid YAML"]),
        ("!!python/object/apply:os.system ['true']", ["valid YAML"]),
        ("rhombus: {tries: 0}", ["tries"]),
        ("notify: {on: sometimes}", ["notify.on"]),
        ("notify: {smtp_port: high}", ["notify.smtp_port"]),
    ],
)
def test_a_config_that_is_wrong_is_refused_with_file_section_and_key(
    clouds: Clouds, text: str, said: list[str]
) -> None:
    cloud = clouds()
    cloud.config.write_bytes(text.encode("latin-1"))
    sentence = cloud.clip(4, ok=2).sentence()
    assert all(one in sentence for one in said), sentence
    assert cloud.sim.requests == []


def test_all_mistakes_of_a_config_are_named_at_once(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.config.write_text(
        "rhombus: {workers: x, usewan: 5, api_kee: 1}\nnotify: {smtp_prt: 1}\nnas_target: {}\n"
        "cameras: [{name: a, rstp_url: b}]\n"
    )
    sentence = cloud.clip(4, ok=2).sentence()
    for name in (
        str(cloud.config),
        "rhombus.workers",
        "rhombus.usewan",
        "rhombus.api_kee",
        "notify.smtp_prt",
        "nas_target",
        "rstp_url",
    ):
        assert name in sentence, name


def test_a_config_that_cannot_be_read_is_named(clouds: Clouds) -> None:
    cloud = clouds()
    for path in (cloud.work / "nowhere.yaml", cloud.work):
        cloud.config = path
        assert str(path) in cloud.clip(4, ok=2).sentence()


def test_flags_stand_above_the_config_and_the_config_above_defaults(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    cloud.configure(usewan=True, clip_length=10)
    cloud.clip(20)
    assert cloud.asked("^lan") == [] and len(cloud.files("*.mp4")) == 2
    cloud.clip(20, "--clip_length", 0, start=cloud.start + 100)
    assert len(cloud.files("*.mp4")) == 3


def test_footage_beyond_retention_is_no_footage(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    assert "no footage recorded" in cloud.clip(20, start=int(NOW) - 90 * 86400).err
    assert cloud.files() == [] and cloud.media() == []


HEAD = '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet mimeType="video/mp4">'
TAIL = '<Representation id="v0"/></AdaptationSet></Period></MPD>'


def mpd(initialization: str = "seg_init.mp4", media: str = "seg_$Number$.m4v", more: str = "", before: str = "") -> str:
    return (
        f'{before}{HEAD}{more}<SegmentTemplate timescale="1000" duration="2000" startNumber="1" '
        f'initialization="{initialization}" media="{media}"/>{TAIL}'
    )


@pytest.mark.parametrize(
    "document",
    [
        "",
        " ",
        "<MPD",
        "not xml",
        "<html><body>Please sign in</body></html>",
        "<feed/>",
        "<MPD/>",
        HEAD + TAIL,
        mpd(before='<!DOCTYPE MPD [<!ENTITY a "b">]>'),
        mpd(before='<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>', more="&f;"),
        mpd(more="<BaseURL>file:///etc/</BaseURL>"),
        mpd(more="<BaseURL>http://127.0.0.1:9/</BaseURL>"),
        mpd(more="<BaseURL>//evil.example/</BaseURL>"),
        mpd("https://evil.example/init.mp4"),
        mpd(media="https://evil.example/$Number$"),
        mpd(media="file:///etc/passwd?$Number$"),
        mpd(media="seg.m4v"),
        mpd(media="seg_$Number%09999999d$.m4v"),
        mpd().replace('duration="2000"', 'duration="0"'),
        mpd().replace('timescale="1000"', 'timescale="-1"'),
        mpd().replace('duration="2000"', 'duration="1"').replace('timescale="1000"', 'timescale="90000000"'),
        mpd().replace('startNumber="1"', 'startNumber="x"'),
        mpd().replace('"static"', '"dynamic"'),
        mpd().replace("video/mp4", "audio/mp4"),
        mpd(more="<x/>" * 120_000),
        "<" * 9_000_000,
        mpd().replace("initialization", "initialisation"),
    ],
    ids=lambda text: text[:40] + text[-60:][:20] if len(text) < 9000 else f"huge{len(text)}",
)
def test_a_hostile_mpd_is_refused_with_a_sentence_and_leads_nowhere(clouds: Clouds, document: str) -> None:
    cloud = clouds(silent_camera())
    cloud.sim.add_fault(Fault(r"^wan GET .*\.mpd", "body", body=document, times=-1))
    run = cloud.clip(20, "-w", ok=1)
    assert "Traceback" not in run.err and "bug in the program" not in run.err
    assert "MPD" in run.err or "a body larger" in run.err or "init segment" in run.err
    assert cloud.segments() == [] and cloud.files("*.mp4") == []
    cloud.sim.faults.clear()
    cloud.clip(20, "-w")
    close_to(frames(cloud.only()), cloud.pictures(cloud.start, cloud.start + 20))


@pytest.mark.parametrize(
    "address",
    [
        "http://192.0.2.1/{START_TIME}/{DURATION}/file.mpd",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x.mpd",
        "gopher://x",
        "//x",
        "",
        7,
        ["x"],
        "https://",
        "https://[::1",
        "https://user:pw@127.0.0.1:1/{START_TIME}/f.mpd",
        "https://127.0.0.1:99999/x",
    ],
)
def test_a_hostile_media_address_is_not_followed(clouds: Clouds, address: object) -> None:
    cloud = clouds(silent_camera(lan=False))
    for operation in ("getMediaUris", "Bulk"):
        cloud.sim.add_fault(
            Fault(
                operation,
                "body",
                times=-1,
                body=json.dumps({"wanVodMpdUriTemplate": address, "lanVodMpdUrisTemplates": [address]}),
            )
        )
    run = cloud.clip(4, ok=1)
    assert "Traceback" not in run.err and "bug in the program" not in run.err and "pw@" not in run.err
    assert cloud.files("*.mp4") == []


# --- TLS, certificates, proxies ---


@pytest.fixture
def tls(clouds: Clouds) -> Cloud:
    """A cloud under its real names, reached through a proxy, with a CA of its own."""
    cloud = clouds(real=True, tls=True, real_names=True)
    cloud.monkeypatch.setenv("REQUESTS_CA_BUNDLE", cloud.sim.ca_file)
    cloud.monkeypatch.setenv("HTTPS_PROXY", cloud.sim.proxy_url)
    cloud.sim.api_url = "us"
    return cloud


def test_over_tls_a_lan_device_needs_no_valid_certificate_and_never_sees_the_key(tls: Cloud) -> None:
    tls.clip(10)
    assert sidecar(tls.only())["source"] == "lan"
    assert tls.sim.leaks == [] and not any(record.api_key for record in tls.sim.requests if record.kind == "lan")
    assert ("api2.rhombussystems.com:443", 200) in tls.sim.connects
    assert not any("127.0.0.1" in target for target, _ in tls.sim.connects), (
        "LAN devices are not reached through a proxy"
    )
    close_to(frames(tls.only()), tls.pictures(tls.start, tls.start + 10))


def test_with_verify_lan_a_self_signed_device_is_refused_and_the_wan_used(tls: Cloud) -> None:
    tls.clip(10, "--verify_lan")
    assert sidecar(tls.only())["source"] == "wan"
    assert tls.asked("^lan") == []
    hosts = {record.host for record in tls.sim.requests if record.kind == "wan"}
    assert hosts == {"media.us-west-2.dash.rhombussystems.com"}


def test_with_verify_lan_a_valid_device_is_used(tls: Cloud) -> None:
    tls.sim.switches.lan_tls = "valid"
    tls.clip(10, "--verify_lan", "--lan_only")
    assert sidecar(tls.only())["source"] == "lan"


def test_lan_only_and_verify_lan_with_a_self_signed_device_fails_with_a_word_about_tls(tls: Cloud) -> None:
    run = tls.clip(10, "--verify_lan", "--lan_only", ok=1)
    assert tls.asked("^lan|^wan") == [] and tls.files("*.mp4") == []
    assert "certificate" in run.err.lower() or "TLS" in run.err


def test_the_certificates_of_api_and_wan_are_always_verified(tls: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert "its certificate is not trusted" in tls.clip(10, ok=3).sentence()
    assert tls.sim.requests == []


def test_a_certificate_key_uses_the_internal_host_with_its_certificate(tls: Cloud) -> None:
    pair = ["--cert", tls.sim.client_cert, "--private_key", tls.sim.client_key]
    tls.monkeypatch.setattr(tls.sim, "api_key", tls.sim.cert_key)
    tls.clip(10, "-w", *pair)
    wan = [record for record in tls.sim.requests if record.kind == "wan"]
    assert {record.host for record in wan} == {"media.us-west-2.dash-internal.rhombussystems.com"}
    assert all(record.client_certificate and record.credentials == ("api",) for record in wan)
    assert all(record.client_certificate for record in tls.sim.requests if record.kind == "api")
    close_to(frames(tls.only()), tls.pictures(tls.start, tls.start + 10))
    tls.clip(10, *pair, start=tls.start + 60)
    assert tls.sim.leaks == []
    assert not any(record.client_certificate for record in tls.sim.requests if record.kind == "lan")


def test_a_certificate_that_tls_cannot_use_is_named_before_anything_is_asked(tls: Cloud) -> None:
    from cryptography.hazmat.primitives import serialization

    text, locked = tls.work / "text.pem", tls.work / "locked.key"
    text.write_text("no certificate")
    key = serialization.load_pem_private_key(Path(tls.sim.client_key).read_bytes(), None)
    passphrase = serialization.BestAvailableEncryption(b"secret word")
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked.write_bytes(key.private_bytes(encoding, form, passphrase))
    for pair in ((text, text), (tls.sim.client_cert, tls.sim.client_cert), (tls.sim.client_cert, locked)):
        said = tls.copy("--cert", pair[0], "--private_key", pair[1], ok=2).sentence()
        assert f"--cert {pair[0]} and --private_key {pair[1]}" in said
    assert tls.sim.requests == []


def test_a_partner_key_acts_for_a_client_organisation(clouds: Clouds) -> None:
    cloud = clouds()
    cloud.sim.api_key = cloud.sim.partner_key
    cloud.clip(10, "--org_uuid", cloud.sim.world.org_uuid)
    cloud.clip(10, "--org_uuid", cloud.sim.world.org_uuid, "-w", start=cloud.start + 60)
    assert len(cloud.files("*_videoWithAudio.mp4")) == 2 and cloud.sim.leaks == []
    cloud.clip(10, "--org_uuid", ruuid("another"), ok=3)


def test_an_organisation_that_begins_with_a_dash_can_be_named(clouds: Clouds) -> None:
    world = one_camera()
    world.org_uuid = "-OrgAbCdEfGhIjKlMnOpQQ"
    cloud = clouds(world)
    cloud.sim.api_key = cloud.sim.partner_key
    cloud.clip(4, "--org_uuid", world.org_uuid)
    assert len(cloud.files("*.mp4")) == 1


def test_the_eu_is_another_region(tls: Cloud) -> None:
    tls.sim.api_url = "eu"
    assert "region" in tls.copy(ok=3).sentence()
    assert ("api2.eu.rhombussystems.com:443", 200) in tls.sim.connects


# --- whole processes ---


def test_help_begins_with_examples_and_is_instant() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(PROGRAM), "--help"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stderr == ""
    assert time.monotonic() - began < 1.5
    assert "copy_footage.py --demo" in "".join(done.stdout.splitlines(keepends=True)[:12]), "examples come first"
    for flag in ("-a", "-c", "-p", "-s", "-u", "-al", "-ma", "-bt", "-at", "-ab", "-loc", "-cam", "-w", "-g"):
        assert re.search(rf"(?m)^  {flag}[ ,]", done.stdout), flag


def test_a_whole_process_ends_with_the_status_and_one_line_on_stdout_per_clip(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(), real=True)
    run = cloud.finish(cloud.spawn("-s", cloud.start, "-u", 10))
    assert run.out == f"{cloud.only()}\n"
    assert "Traceback" not in run.err
    assert cloud.finish(cloud.spawn("-s", "gibberish"), ok=2).sentence()
    run = cloud.finish(cloud.spawn("--list", "cameras", RHOMBUS_API_KEY="A" * 22), ok=3)
    assert "refuses the key" in run.sentence()


def test_quiet_says_nothing_unless_something_failed(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    assert cloud.clip(10, "--quiet").err == ""
    cloud.sim.add_fault(Fault("m4v", "status", times=-1))
    run = cloud.clip(10, "--quiet", start=cloud.start + 60, ok=1)
    assert run.err and all(" ERROR " in line for line in run.err.splitlines())


def test_debug_tells_of_requests_and_decisions_but_no_secret(clouds: Clouds) -> None:
    cloud = clouds(lan_auth="federated-only")
    run = cloud.clip(10, "--debug")  # every run is searched for keys and tokens
    assert "getPresenceWindows" in run.err and "DEBUG" in run.err and cloud.sim.api_key not in run.err


def test_a_reader_of_stdout_that_leaves_is_no_crash(clouds: Clouds) -> None:
    cloud = clouds(World([Camera(ruuid(str(n)), f"Camera {n}") for n in range(3)]), real=True)
    process = cloud.spawn("-s", cloud.start, "-u", 4)
    process.stdout.close()  # type: ignore[union-attr]
    process.stdout = None
    run = cloud.finish(process, ok=None)
    assert "Traceback" not in run.err and "BrokenPipe" not in run.err


def test_the_demo_needs_nothing_and_says_what_to_open(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--demo"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "demo_footage").glob("*.mp4"))
    assert any("_videoWithAudio.mp4" in name for name in names) and any("_alert_" in name for name in names)
    assert "demo_footage" in done.stderr.splitlines()[-1]
    for path in (tmp_path / "demo_footage").glob("*.mp4"):
        assert len(frames(path)) > 100
        sidecar(path)
