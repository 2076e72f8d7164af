"""The simulated cloud is itself strict, honest and playable: everything else is tested against it."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

sys.path.insert(0, str(Path(__file__).parent))
import rhombus_simulator as rs
from rhombus_simulator import DELETE, Alert, Camera, Fault, Gateway, Location, MediaKit, Simulator, World, ruuid

pytestmark = pytest.mark.slow  # the cloud of the tests
NOW = 1_754_400_000.0  # an even second
START = int(NOW) - 7200
CAMERA, DOORBELL, GATEWAY, SITE, SUB = (ruuid(n) for n in ("cam", "bell", "mic", "site", "sub"))
PLAIN = urllib3.PoolManager(retries=False, timeout=5)
LIST = "camera/getMinimalCameraStateList"


def small_world() -> World:
    return World(
        cameras=[Camera(CAMERA, "Door", SITE, facets=["v0", "v1"]), Camera(DOORBELL, "Bell", SUB, own_audio=True)],
        gateways=[Gateway(GATEWAY, "Mic", SITE, cameras=[CAMERA + ".v0"])],
        locations=[Location(SITE, "Site", sub_locations=[Location(SUB, "Sub")])],
        alerts=[Alert(ruuid(f"alert {n}"), (START + n // 2) * 1000, device_uuid=CAMERA, location_uuid=SITE)
                for n in range(10)])


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with Simulator(small_world(), clock=lambda: NOW) as simulator:
        yield simulator


def key_headers(sim: Simulator, key: str = "", scheme: str = "api-token", **more: str) -> dict[str, str]:
    return {"x-auth-scheme": scheme, "x-auth-apikey": key or sim.api_key, **more}


def post(sim: Simulator, operation: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    answer = PLAIN.request("POST", f"{sim.api_url}/api/{operation}", body=content,
                           headers=key_headers(sim) if headers is None else headers)
    return answer.status, json.loads(answer.data) if answer.data[:1] == b"{" else answer.data


def token(sim: Simulator, **body: Any) -> str:
    return str(post(sim, "org/generateFederatedSessionToken", body)[1]["federatedSessionToken"])


def uris(sim: Simulator, device: str = CAMERA) -> dict[str, Any]:
    kind, name = ("audiogateway", "gatewayUuid") if plain_is_gateway(sim, device) else ("camera", "cameraUuid")
    status, answer = post(sim, f"{kind}/getMediaUris", {name: device})
    assert status == 200
    return dict(answer)


def plain_is_gateway(sim: Simulator, device: str) -> bool:
    return isinstance(sim.world.device(device), Gateway)


def base(template: str, start: int = START, duration: int = 20) -> str:
    """The address of the folder that holds the MPD and its segments."""
    return template.replace("{START_TIME}", str(start)).replace("{DURATION}", str(duration)).rpartition("/")[0] + "/"


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    answer = PLAIN.request("GET", url, headers=headers or {})
    return answer.status, answer.data


def wan_segment(sim: Simulator, number: int = 1) -> tuple[int, bytes]:
    return get(f"{sim.wan_url}/dash/api/{CAMERA}.v0/{START}/20/vod/seg_{number}.m4v", key_headers(sim))


def decode(data: bytes, path: Path) -> list[str]:
    """The lines of FFmpeg's frame list (stream, dts, pts, duration, size, md5); any complaint is a failure."""
    path.write_bytes(data)
    command = [rs.find_ffmpeg(), "-v", "error", "-xerror", "-copyts", "-i", str(path), "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [line for line in done.stdout.splitlines() if line and line[0] != "#"]


# --- the API refuses what the real one refuses ---


@pytest.mark.parametrize(("operation", "body"), [
    (LIST, b"not json"), (LIST, []), (LIST, {"includeMummified": "yes"}), (LIST, {"unheardOf": 1}),
    ("event/getPolicyAlerts", {"deviceFilter": CAMERA}), ("event/getPolicyAlerts", {"locationFilter": SITE}),
    ("event/getPolicyAlerts", {"deviceFilter": [CAMERA + ".v0"]}), ("event/getPolicyAlerts", {"maxResults": "100"}),
    ("event/getPolicyAlerts", {"afterTimestampMs": 1.5}), ("event/getPolicyAlerts", {"maxResults": True}),
    ("event/getPolicyAlerts", {"lastUuid": CAMERA}), ("event/getPolicyAlerts", {"lastTimestampMs": 1}),
    ("event/getPolicyAlertsV2", {"accessControlledDoorFilter": []}),
    ("mediadevice/getBulkMediaDeviceDetails", {"devices": CAMERA}), ("mediadevice/getBulkMediaDeviceDetails", {}),
    ("camera/getMediaUris", {}), ("camera/getMediaUris", {"cameraUuid": "short"}),
    ("camera/getPresenceWindows", {"cameraUuid": CAMERA + ".v0", "startTimeSec": 1, "durationSec": 1}),
    ("camera/getPresenceWindows", {"cameraUuid": CAMERA, "startTimeSec": "1", "durationSec": 1}),
    ("org/generateFederatedSessionToken", {"deviceUuid": CAMERA}),
    ("org/generateFederatedSessionToken", {"durationSec": -1}),
])
def test_a_malformed_request_is_refused_with_400(sim: Simulator, operation: str, body: Any) -> None:
    assert post(sim, operation, body)[0] == 400


def test_null_stands_for_a_filter_that_is_left_out(sim: Simulator) -> None:
    assert len(post(sim, "event/getPolicyAlerts", {"deviceFilter": None, "maxResults": None})[1]["policyAlerts"]) == 10


def test_every_operation_is_post_and_unknown_paths_are_404(sim: Simulator) -> None:
    assert get(f"{sim.api_url}/api/{LIST}", key_headers(sim))[0] == 405
    assert post(sim, "camera/getEverything")[0] == 404


@pytest.mark.parametrize(("key", "scheme", "operation", "status"), [
    ("", "", LIST, 401), ("", "api-token", LIST, 401), ("api_key", "", LIST, 401), ("api_key", "bearer", LIST, 401),
    ("api_key", "api-token", LIST, 200), ("bad", "api-token", LIST, 403), ("other_region_key", "api-token", LIST, 403),
    ("api_key", "api", LIST, 401), ("cert_key", "api-token", LIST, 401), ("cert_key", "api", LIST, 401),
    ("no_alerts_key", "api-token", "event/getPolicyAlerts", 403), ("no_alerts_key", "api-token", LIST, 200),
    ("no_bulk_key", "api-token", "mediadevice/getBulkMediaDeviceDetails", 403),
    ("partner_key", "partner-api-token", LIST, 403), ("partner_key", "partner-api-token", "partner/getClientsV2", 200),
    ("api_key", "api-token", "partner/getClientsV2", 403),
])
def test_each_credential_opens_what_it_should(
        sim: Simulator, key: str, scheme: str, operation: str, status: int) -> None:
    headers = {"x-auth-scheme": scheme, "x-auth-apikey": getattr(sim, key, key)}
    body = {"devices": []} if "Bulk" in operation else {}
    assert post(sim, operation, body, {k: v for k, v in headers.items() if v})[0] == status


def test_a_partner_key_acts_on_the_client_that_it_names(sim: Simulator) -> None:
    headers = key_headers(sim, sim.partner_key, "partner-api-token")
    org = post(sim, "partner/getClientsV2", {}, headers)[1]["clients"][0]["clientOrgUuid"]
    assert post(sim, LIST, {}, {**headers, "x-auth-org": org})[0] == 200
    assert post(sim, LIST, {}, {**headers, "x-auth-org": ruuid("another")})[0] == 403


def test_refusals_are_worded_as_documented(sim: Simulator) -> None:
    assert post(sim, LIST, {}, {})[1] == {"authenticationFailed": True}
    assert post(sim, LIST, {}, key_headers(sim, "bad"))[1]["msg"] == "Access Denied"


def test_a_token_calls_the_api_unless_it_is_for_one_device(sim: Simulator) -> None:
    for body, status in (({}, 200), ({"deviceUUid": CAMERA + ".v0"}, 403)):
        headers = {"x-auth-scheme": "federated-token", "x-auth-ft": token(sim, **body)}
        assert post(sim, LIST, {}, headers)[0] == status
    assert sim.tokens_minted == 2


# --- lists, alerts, presence, addresses ---


def test_null_fields_and_retired_cameras_come_as_the_schema_allows(sim: Simulator) -> None:
    sim.world.cameras += [Camera(ruuid("null"), None, None, null_fields=True), Camera(ruuid("old"), mummified=True)]
    shown = post(sim, LIST)[1]["cameraStates"]
    assert len(shown) == 3 and shown[2]["supportedFacets"] is None and shown[2]["name"] is None
    assert len(post(sim, LIST, {"includeMummified": True})[1]["cameraStates"]) == 4
    assert post(sim, "audiogateway/getMinimalAudioGatewayStateList")[1]["audioGatewayStates"][0]["associatedCameras"]


def test_sub_locations_are_nested_and_only_on_request(sim: Simulator) -> None:
    assert post(sim, "location/getLocations")[1]["locations"][0]["subLocations"] is None
    nested = post(sim, "location/getLocations", {"subLocationsIncluded": True})[1]["locations"][0]["subLocations"]
    assert nested[0]["uuid"] == SUB


def test_alerts_come_newest_first_in_capped_pages_and_the_cursor_misses_none(sim: Simulator) -> None:
    sim.switches.page_cap = 3
    seen: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    while page := post(sim, "event/getPolicyAlerts", {"maxResults": 1000, **cursor})[1]["policyAlerts"]:
        assert len(page) <= 3
        seen += page
        cursor = {"lastTimestampMs": page[-1]["timestampMs"], "lastUuid": page[-1]["uuid"]}
    assert len({a["uuid"] for a in seen}) == len(seen) == 10  # although each two have the same time
    assert [a["timestampMs"] for a in seen] == sorted((a["timestampMs"] for a in seen), reverse=True)


@pytest.mark.parametrize(("filters", "count"), [
    ({"deviceFilter": [CAMERA]}, 10), ({"deviceFilter": [DOORBELL]}, 0), ({"deviceFilter": []}, 0),
    ({"locationFilter": [SITE]}, 10), ({"locationFilter": [SUB]}, 0),
    ({"afterTimestampMs": (START + 1) * 1000, "beforeTimestampMs": (START + 2) * 1000}, 4),
    ({"accessControlledDoorFilter": [ruuid("door")]}, 0),
])
def test_alert_filters_are_honoured(sim: Simulator, filters: dict[str, Any], count: int) -> None:
    assert len(post(sim, "event/getPolicyAlerts", filters)[1]["policyAlerts"]) == count


def test_a_location_filter_does_not_reach_into_sub_locations(sim: Simulator) -> None:
    sim.world.alerts = [Alert(ruuid("sub alert"), 1000, device_uuid=DOORBELL, location_uuid=SUB)]
    assert post(sim, "event/getPolicyAlerts", {"locationFilter": [SITE]})[1]["policyAlerts"] == []


def test_a_door_alert_has_no_device_and_extra_fields_can_change_or_remove_keys(sim: Simulator) -> None:
    extra = {"durationSec": DELETE, "new": 1}
    sim.world.alerts = [Alert(ruuid("d"), 1000, door=True, clip_devices=[CAMERA], extra=extra)]
    (entry,) = post(sim, "event/getPolicyAlertsV2")[1]["policyAlerts"]
    assert entry["type"] == "ACCESS_CONTROLLED_DOOR_POLICY_ALERT" and list(entry["clipLocationMap"]) == [CAMERA]
    assert "deviceUuid" not in entry and "durationSec" not in entry and entry["new"] == 1


def test_the_older_form_of_alerts_can_be_served(sim: Simulator) -> None:
    sim.switches.alert_form = "old"
    entry = post(sim, "event/getPolicyAlerts", {"maxResults": 1})[1]["alerts"][0]
    assert entry["deviceName"] == "Door" and entry["eventEndMs"] - entry["timestampMs"] == 30_000


def test_presence_windows_are_trimmed_and_can_fail_or_be_null(sim: Simulator) -> None:
    camera = sim.world.cameras[0]
    camera.local, camera.cloud = [(START - 100, START + 4), (START + 10, START + 500)], []
    query = {"cameraUuid": CAMERA, "startTimeSec": START, "durationSec": 20}
    windows = post(sim, "camera/getPresenceWindows", query)[1]["presenceWindows"]
    assert windows == {"VideoCloud": [], "VideoLocal": [{"startSeconds": START, "durationSeconds": 4},
                                                        {"startSeconds": START + 10, "durationSeconds": 10}]}
    camera.status, sim.switches.presence_hides_offline = "RED", True
    assert "VideoLocal" not in post(sim, "camera/getPresenceWindows", query)[1]["presenceWindows"]
    sim.switches.presence = "null"
    assert post(sim, "camera/getPresenceWindows", query)[1]["presenceWindows"] is None
    sim.switches.presence = False
    assert post(sim, "camera/getPresenceWindows", query)[0] == 500
    sim.switches.presence = True
    audio = {"deviceUuid": GATEWAY, "startTimeSec": START, "durationSec": 20}
    windows = post(sim, "audiogateway/getPresenceWindows", audio)[1]["presenceWindows"]
    assert set(windows) == {"AudioCloud", "AudioLocal"}


def test_unknown_devices_have_no_addresses_and_that_is_no_failure(sim: Simulator) -> None:
    fields = {"camera": "cameraUuid", "audiogateway": "gatewayUuid", "doorbellcamera": "deviceUuid"}
    for operation, field in fields.items():
        for unknown in (ruuid("unknown"), GATEWAY if operation != "audiogateway" else CAMERA):
            status, answer = post(sim, f"{operation}/getMediaUris", {field: unknown})
            assert status == 200 and not answer["error"]
            assert answer["lanVodMpdUrisTemplates"] == [] and "wanVodMpdUriTemplate" not in answer


def test_bulk_details_name_addresses_and_gateways_or_are_refused(sim: Simulator) -> None:
    body = {"devices": [CAMERA + ".v0", GATEWAY, ruuid("unknown")]}
    details = post(sim, "mediadevice/getBulkMediaDeviceDetails", body)[1]["mediaDeviceDetails"]
    assert set(details) == {CAMERA + ".v0", GATEWAY + ".a0"}
    assert details[CAMERA + ".v0"]["audioGateways"] == [GATEWAY + ".a0"]
    assert details[CAMERA + ".v0"]["wanVodMpdUriTemplate"] == uris(sim)["wanVodMpdUriTemplate"]
    sim.switches.bulk = False
    assert post(sim, "mediadevice/getBulkMediaDeviceDetails", body)[0] == 403


def test_dead_lan_addresses_come_first_and_do_not_answer(sim: Simulator) -> None:
    camera = sim.world.cameras[0]
    camera.lan_addresses, camera.lan_dead_addresses = 3, 2
    for mode, failure in (("refused", ConnectionRefusedError), ("silent", TimeoutError)):
        sim.switches.dead_lan = mode
        addresses = uris(sim)["lanCheckUrls"]
        assert len(set(addresses)) == 3 and get(addresses[2])[0] == 200
        for address in addresses[:2]:
            with pytest.raises(failure):
                socket.create_connection(("127.0.0.1", urllib3.util.parse_url(address).port), timeout=0.3).close()


def test_the_lan_of_a_camera_that_turns_red_is_gone_at_once(sim: Simulator) -> None:
    check = uris(sim)["lanCheckUrls"][0]
    assert get(check)[0] == 200
    sim.world.cameras[0].status = "RED"
    for _ in range(2):  # the kept connection, and a new one
        with pytest.raises(urllib3.exceptions.HTTPError):
            get(check)


# --- the media hosts and their credentials ---


@pytest.mark.parametrize(("headers", "query", "status"), [
    ({}, "", 403), ({"x-auth-scheme": "api-token", "x-auth-apikey": "KEY"}, "", 200),
    ({"x-auth-scheme": "api-token", "x-auth-apikey": "bad"}, "", 403),
    ({"x-auth-scheme": "api-token", "x-auth-apikey": "KEY", "cookie": "RSESSIONID=RFT:TOKEN"}, "", 403),
    ({"x-auth-scheme": "api-token", "x-auth-apikey": "KEY"}, "?x-auth-scheme=federated-token&x-auth-ft=TOKEN", 403),
    ({"x-auth-apikey": "KEY"}, "?x-auth-scheme=federated-token&x-auth-ft=TOKEN", 403),
    ({"cookie": "RSESSIONID=RFT:TOKEN"}, "", 403), ({}, "?x-auth-scheme=federated-token&x-auth-ft=TOKEN", 200),
    ({"x-auth-scheme": "federated-token", "x-auth-ft": "TOKEN"}, "", 200),
    ({"x-auth-scheme": "federated-token", "x-auth-ft": "bad"}, "", 403),
    ({"x-auth-scheme": "federated-token", "x-auth-ft": "OTHER"}, "", 403),
    ({"x-auth-scheme": "partner-api-token", "x-auth-apikey": "PARTNER", "x-auth-org": "ORG"}, "", 200),
    ({"x-auth-scheme": "partner-api-token", "x-auth-apikey": "PARTNER"}, "", 403),
])
def test_the_wan_takes_exactly_one_valid_credential(
        sim: Simulator, headers: dict[str, str], query: str, status: int) -> None:
    real = {"KEY": sim.api_key, "TOKEN": token(sim), "OTHER": token(sim, deviceUUid=DOORBELL),
            "PARTNER": sim.partner_key, "ORG": sim.world.org_uuid}

    def filled(text: str) -> str:
        return re.sub("[A-Z]{3,}$", lambda found: real.get(found[0], found[0]), text)

    url = base(uris(sim)["wanVodMpdUriTemplate"]) + "file.mpd" + filled(query)
    assert get(url, {name: filled(value) for name, value in headers.items()})[0] == status
    assert sim.requests[-1].api_key == ("x-auth-apikey" in headers) and sim.requests[-1].device == CAMERA


@pytest.mark.parametrize(("mode", "credential", "status"), [
    ("federated", "", 401), ("federated", "cookie", 200), ("federated", "both cookies", 200),
    ("federated", "headers", 200), ("federated", "query", 200), ("federated", "cookie+headers", 403),
    ("federated", "key", 403), ("federated", "cookie+key", 200), ("cookie", "cookie", 200), ("cookie", "headers", 403),
    ("cookie", "cookie+key", 403), ("federated-only", "cookie", 403), ("federated-only", "headers", 200),
])
def test_lan_devices_take_the_token_as_their_firmware_knows_it(
        sim: Simulator, mode: str, credential: str, status: int) -> None:
    sim.switches.lan_auth = mode
    value, headers, query = token(sim), {}, ""
    if "cookie" in credential:
        headers["cookie"] = f"RSESSIONID=RFT:{value}" + (f"; RHOMBUS_SESSIONID=RFT:{value}" * ("both" in credential))
    if "headers" in credential:
        headers |= {"x-auth-scheme": "federated-token", "x-auth-ft": value}
    if "key" in credential:
        headers |= key_headers(sim)
    if credential == "query":
        query = f"?x-auth-scheme=federated-token&x-auth-ft={value}"
    assert get(base(uris(sim)["lanVodMpdUrisTemplates"][0]) + "clip.mpd" + query, headers)[0] == status
    assert len(sim.leaks) == ("key" in credential)


def test_tokens_end_with_their_life(sim: Simulator) -> None:
    now = [NOW]
    sim.clock = lambda: now[0]
    headers = {"cookie": f"RSESSIONID=RFT:{token(sim, durationSec=60)}"}
    url = base(uris(sim)["lanVodMpdUrisTemplates"][0]) + "clip.mpd"
    assert get(url, headers)[0] == 200
    now[0] += 61
    assert get(url, headers)[0] == 401
    sim.switches.expired_status = 403
    assert get(url, headers)[0] == 403


def test_a_device_serves_its_own_footage_only_and_nothing_beyond_the_range(sim: Simulator) -> None:
    headers = {"cookie": f"RHOMBUS_SESSIONID=RFT:{token(sim)}"}
    lan = base(uris(sim)["lanVodMpdUrisTemplates"][0], duration=9)
    assert [get(lan + f"seg_{n}.m4v", headers)[0] for n in (0, 4, 5)] == [200, 200, 404]
    assert get(lan.replace(CAMERA, DOORBELL) + "seg_0.m4v", headers)[0] == 404
    assert get(lan + "seg_0.webm", headers)[0] == get(lan + "other.txt", headers)[0] == 404
    sim.switches.lan_start_number = 100
    assert b'startNumber="100"' in get(lan + "clip.mpd", headers)[1] and get(lan + "seg_104.m4v", headers)[0] == 200


def test_templates_sit_where_cameras_and_gateways_put_them(sim: Simulator) -> None:
    def mpd(device: str) -> str:
        return get(base(uris(sim, device)["wanVodMpdUriTemplate"]) + "file.mpd", key_headers(sim))[1].decode()

    assert re.search(r"<AdaptationSet[^>]*>\s*<SegmentTemplate", mpd(CAMERA)) and 'startNumber="1"' in mpd(CAMERA)
    assert re.search(r"<Representation[^>]*[^/]>\s*<SegmentTemplate", mpd(GATEWAY))
    assert mpd(DOORBELL).count("<AdaptationSet") == 2


# --- the media itself ---


def whole(sim: Simulator, device: str, lan: bool, start: int, duration: int) -> bytes:
    """Init and all segments of a range, as a downloader would put them together."""
    addresses = uris(sim, device)
    folder = base(addresses["lanVodMpdUrisTemplates"][0] if lan else addresses["wanVodMpdUriTemplate"], start, duration)
    headers = {"cookie": f"RSESSIONID=RFT:{token(sim)}"} if lan else key_headers(sim)
    mpd = get(folder + ("clip.mpd" if lan else "file.mpd"), headers)[1].decode()
    init, media, first = (re.search(f'{name}="([^"]*)"', mpd)[1] for name in ("initialization", "media", "startNumber"))  # type: ignore[index]
    names = [init, *(media.replace("$Number$", str(int(first) + n)) for n in range(-(-duration // 2)))]
    answers = [get(folder + name, headers) for name in names]
    assert {status for status, _ in answers} == {200}
    return b"".join(data for _, data in answers)


@pytest.mark.parametrize("lan", [True, False], ids=["lan", "wan"])
@pytest.mark.parametrize("timestamps", ["zero", "absolute"])
def test_video_plays_without_a_complaint_and_lasts_exactly(
        sim: Simulator, tmp_path: Path, timestamps: str, lan: bool) -> None:
    sim.switches.timestamps = timestamps
    frames = decode(whole(sim, CAMERA, lan, START, 120 + 10), tmp_path / "x.mp4")  # past the end of the bank
    times = [int(line.split(",")[2]) for line in frames]
    assert len(frames) == 130 * 10 and [t - times[0] for t in times] == list(range(1300))
    assert times[0] == (START * 10 if timestamps == "absolute" else 0)
    assert len({line.split(",")[5] for line in frames[:600]}) == 600  # each picture of the bank is another


@pytest.mark.parametrize("timestamps", ["zero", "absolute"])
def test_sound_plays_without_a_complaint_and_lasts_exactly(sim: Simulator, tmp_path: Path, timestamps: str) -> None:
    sim.switches.timestamps = timestamps
    blocks = decode(whole(sim, GATEWAY, False, START, 20), tmp_path / "x.webm")
    samples = [int(line.split(",")[3]) for line in blocks]
    assert sum(samples) == 20 * 48_000 - 312  # the codec's start-up samples are cut
    first = int(blocks[0].split(",")[2]) / 48_000
    assert abs(first - (START if timestamps == "absolute" else 0)) < 0.01


def test_the_same_time_shows_the_same_picture_in_every_request_and_facets_differ(
        sim: Simulator, tmp_path: Path) -> None:
    def pictures(device: str, start: int) -> list[str]:
        return [line.split(",")[5] for line in decode(whole(sim, device, False, start, 8), tmp_path / "x.mp4")]

    early, late, odd, other = (pictures(CAMERA + facet, START + offset)
                               for facet, offset in (("", 0), ("", 4), ("", 5), (".v1", 0)))
    assert early[40:] == late[:40] and odd == late and not set(early) & set(other)
    sim.switches.timestamps = "absolute"
    first = decode(whole(sim, CAMERA, False, START + 5, 2), tmp_path / "x.mp4")[0]
    assert int(first.split(",")[2]) == (START + 4) * 10  # an odd start is rounded down


@pytest.mark.parametrize("device", [CAMERA, GATEWAY])
def test_placeholders_stand_where_nothing_was_recorded_and_join_without_a_complaint(
        sim: Simulator, tmp_path: Path, device: str) -> None:
    owner = sim.world.device(device)
    assert owner
    owner.local, owner.cloud = [(START, START + 4), (START + 10, START + 500)], []
    frames = decode(whole(sim, device, True, START, 16), tmp_path / "x.bin")
    if device == CAMERA:
        kinds = [line.split(",")[5] for line in frames]
        assert len(kinds) == 160 and len(set(kinds[40:100])) < 20 and len(set(kinds[:40] + kinds[100:])) == 100
    sim.switches.lan_missing = "404"
    folder = base(uris(sim, device)["lanVodMpdUrisTemplates"][0], START, 16)
    name = "seg_{}.webm" if device == GATEWAY else "seg_{}.m4v"
    headers = {"cookie": f"RSESSIONID=RFT:{token(sim)}"}
    first = 1 if device == GATEWAY else 0
    statuses = [get(folder + name.format(first + n), headers)[0] for n in range(8)]
    assert statuses == [200, 200, 404, 404, 404, 200, 200, 200]


def test_the_wan_serves_local_and_cloud_footage_of_online_cameras_and_cloud_of_the_others(sim: Simulator) -> None:
    camera = sim.world.cameras[0]
    camera.local, camera.cloud, sim.switches.missing = [(START, START + 4)], [(START + 4, START + 6)], "404"
    assert [wan_segment(sim, n)[0] for n in (1, 2, 3, 4)] == [200, 200, 200, 404]
    camera.status = "RED"
    assert [wan_segment(sim, n)[0] for n in (1, 2, 3, 4)] == [404, 404, 200, 404]


def test_the_future_was_not_recorded(sim: Simulator) -> None:
    sim.switches.lan_missing = "404"
    folder = base(uris(sim)["lanVodMpdUrisTemplates"][0], int(NOW) - 4, 10)
    headers = {"cookie": f"RSESSIONID=RFT:{token(sim)}"}
    assert [get(folder + f"seg_{n}.m4v", headers)[0] for n in range(4)] == [200, 200, 404, 404]


def test_a_doorbell_carries_its_own_sound(sim: Simulator, tmp_path: Path) -> None:
    folder = base(uris(sim, DOORBELL)["wanVodMpdUriTemplate"])
    names = ["seg_init_audio.hdr", *(f"seg_{n}.webm" for n in range(1, 11))]
    decode(b"".join(get(folder + name, key_headers(sim))[1] for name in names), tmp_path / "x.webm")
    assert post(sim, "doorbellcamera/getMediaUris", {"deviceUuid": DOORBELL})[1]["wanVodMpdUriTemplate"]


@pytest.mark.parametrize("kit", [MediaKit(64, 48, 1, 8000, bank=4), MediaKit(bank=5, b_frames=2)], ids=["tiny", "b"])
def test_other_media_can_be_made_once_and_plays(tmp_path: Path, kit: MediaKit) -> None:
    kit = MediaKit(**{**kit.__dict__, "folder": tmp_path / "media"})
    with Simulator(small_world(), media=kit, clock=lambda: NOW) as sim:
        assert len(decode(whole(sim, CAMERA, False, START, 16), tmp_path / "x.mp4")) == 16 * kit.fps
    (made,) = (tmp_path / "media").iterdir()
    before = made.stat().st_mtime_ns
    kit.load()
    assert made.stat().st_mtime_ns == before and list((tmp_path / "media").iterdir()) == [made]


# --- faults and switches ---


def test_a_rate_limit_punishes_requests_that_do_not_wait(sim: Simulator) -> None:
    sim.switches.rate_limit_per_sec, sim.switches.burst, sim.switches.retry_after_sec = 50, 2, 0.6
    statuses = [post(sim, LIST)[0] for _ in range(4)]
    assert statuses[0] == 200 and statuses[-1] == 429
    answer = PLAIN.request("POST", f"{sim.api_url}/api/{LIST}", body=b"{}", headers=key_headers(sim))
    assert answer.headers["Retry-After"] == "1" and b"Enhance your calm" in answer.data
    assert not any(r.early for r in sim.requests)  # these could have been on their way already
    time.sleep(0.4)
    assert post(sim, LIST)[0] == 429 and sim.requests[-1].early
    time.sleep(0.4)  # the first wait is over, the prolonged one is not
    assert post(sim, LIST)[0] == 429
    time.sleep(0.7)
    assert post(sim, LIST)[0] == 200


def test_a_429_from_a_media_host_is_a_wait_too(sim: Simulator) -> None:
    sim.add_fault(Fault("^wan ", "status", status=429, headers={"Retry-After": "1"}))
    assert wan_segment(sim)[0] == 429 and wan_segment(sim)[0] == 200  # the second may have been on its way
    time.sleep(0.3)
    assert wan_segment(sim)[0] == 429 and sim.requests[-1].early
    assert post(sim, LIST)[0] == 200  # the API is another host
    sim.clear()
    assert wan_segment(sim)[0] == 200


@pytest.mark.parametrize(("kind", "raised"), [
    ("reset", urllib3.exceptions.ProtocolError), ("reset_midway", urllib3.exceptions.ProtocolError),
    ("truncate", urllib3.exceptions.ProtocolError), ("stall", urllib3.exceptions.ReadTimeoutError),
    ("stall_headers", urllib3.exceptions.ReadTimeoutError)])
@pytest.mark.parametrize("announced", [True, False], ids=["length", "chunked"])
def test_faults_that_break_the_connection(sim: Simulator, kind: str, raised: type[Exception], announced: bool) -> None:
    sim.switches.content_length = announced
    sim.add_fault(Fault("m4v$", kind))
    pool = urllib3.PoolManager(retries=False, timeout=0.3)
    url = base(uris(sim)["wanVodMpdUriTemplate"]) + "seg_1.m4v"
    with pytest.raises(raised):
        pool.request("GET", url, headers=key_headers(sim))
    assert wan_segment(sim)[0] == 200  # once only


@pytest.mark.parametrize(("fault", "status", "body"), [
    (Fault("m4v$", "status"), 503, b"^$"), (Fault("m4v$", "status", status=418, body="tea"), 418, b"^tea$"),
    (Fault("m4v$", "html"), 200, b"^<!DOCTYPE html>"), (Fault("m4v$", "empty"), 200, b"^$"),
    (Fault("m4v$", "body", body=b"given"), 200, b"^given$"), (Fault("m4v$", "in_band"), 200, b'"error": true')])
def test_faults_that_answer_something_else(sim: Simulator, fault: Fault, status: int, body: bytes) -> None:
    sim.add_fault(fault)
    found = wan_segment(sim)
    assert found[0] == status and re.search(body, found[1])
    assert wan_segment(sim)[1][4:8] == b"moof" and sim.requests[-2].fault == fault.kind


def test_short_and_garbage_bodies_are_whole_http_answers(sim: Simulator) -> None:
    right = wan_segment(sim)[1]
    sim.faults += [Fault("m4v$", "short"), Fault("m4v$", "garbage")]
    assert wan_segment(sim)[1] == right[: len(right) // 2]
    garbage = wan_segment(sim)[1]
    assert len(garbage) == len(right) and garbage != right


def test_a_refused_token_stays_dead_and_a_new_one_works(sim: Simulator) -> None:
    url = base(uris(sim)["lanVodMpdUrisTemplates"][0]) + "seg_0.m4v"
    old, new = ({"cookie": f"RSESSIONID=RFT:{token(sim)}"} for _ in range(2))
    sim.add_fault(Fault("^lan .*m4v", "refuse_token"))
    assert [get(url, headers)[0] for headers in (old, old, new)] == [401, 401, 200]


def test_the_first_fault_that_matches_and_has_times_left_applies(sim: Simulator) -> None:
    sim.faults += [Fault("m4v$", "status", times=2, after=1), Fault("seg_2", "status", times=-1, status=500)]
    assert [wan_segment(sim, n)[0] for n in (1, 1, 2, 1, 2, 2)] == [200, 503, 503, 200, 500, 500]
    for wrong in (("x", "explode"), ("(", "status")):
        with pytest.raises(ValueError, match="^fault "):
            Fault(*wrong)


def test_slow_answers_and_limited_links_take_their_time(sim: Simulator) -> None:
    size = len(wan_segment(sim)[1])

    def seconds(count: int = 1) -> float:
        begin = time.monotonic()
        threads = [threading.Thread(target=wan_segment, args=(sim,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - begin

    sim.add_fault(Fault("m4v$", "slow", bytes_per_sec=size / 0.3))
    assert seconds() > 0.2
    sim.switches.connection_bytes_per_sec = size / 0.2
    alone, together = seconds(), seconds(3)
    assert alone > 0.15 and together < 3 * alone  # each connection has its own limit
    sim.switches.connection_bytes_per_sec, sim.switches.link_bytes_per_sec = 0, size / 0.1
    assert seconds(4) > 0.35  # all share one link
    sim.switches.link_bytes_per_sec, sim.switches.latency_sec = 0, 0.15
    assert seconds() > 0.15


def test_requests_are_counted_in_parallel_and_remembered(sim: Simulator) -> None:
    sim.switches.latency_sec = 0.2
    threads = [threading.Thread(target=wan_segment, args=(sim, n)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sim.max_parallel["wan"] == sim.max_parallel[f"wan {CAMERA}"] == 3
    assert sim.count("^wan GET .*m4v 200") == 3 and sim.count("^api") == 0
    record = sim.requests[0]
    deadline = time.monotonic() + 5  # counted after the last byte, which the client may already have
    while not record.sent_bytes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert record.credentials == ("api-token",) and record.sent_bytes > 10_000 and abs(record.at - time.time()) < 10
    sim.clear()
    assert not sim.requests and not sim.max_parallel


def test_media_can_come_chunked(sim: Simulator) -> None:
    right = wan_segment(sim)[1]
    sim.switches.content_length = False
    answer = PLAIN.request("GET", base(uris(sim)["wanVodMpdUriTemplate"]) + "seg_1.m4v", headers=key_headers(sim))
    assert answer.data == right and answer.headers["Transfer-Encoding"] == "chunked"


def test_connections_are_kept_and_closed_on_request(sim: Simulator) -> None:
    address = ("127.0.0.1", urllib3.util.parse_url(sim.api_url).port)
    request = f"GET /api/{LIST} HTTP/1.1\r\nHost: x\r\n"
    with socket.create_connection(address, timeout=5) as sock:
        for ending in ("\r\n", "\r\n", "Connection: close\r\n\r\n"):
            sock.sendall((request + ending).encode())
            assert b" 405 " in sock.recv(65536)
        assert sock.recv(1) == b""


# --- TLS, client certificates, the real names ---


@pytest.fixture(scope="module")
def tls_sim() -> Iterator[Simulator]:
    with Simulator(small_world(), tls=True, clock=lambda: NOW) as simulator:
        yield simulator


def secure_pool(sim: Simulator, certified: bool = False, proxied: bool = False) -> urllib3.PoolManager:
    context = ssl.create_default_context(cafile=sim.ca_file)
    if certified:
        context.load_cert_chain(sim.client_cert, sim.client_key)
    if proxied:
        return urllib3.ProxyManager(sim.proxy_url, retries=False, timeout=5, ssl_context=context)
    return urllib3.PoolManager(retries=False, timeout=5, ssl_context=context)


def tls_uris(sim: Simulator) -> dict[str, Any]:
    answer = secure_pool(sim).request("POST", f"{sim.api_url}/api/camera/getMediaUris", headers=key_headers(sim),
                                      body=json.dumps({"cameraUuid": CAMERA}).encode())
    return dict(json.loads(answer.data))


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_the_api_and_the_wan_are_certified_and_a_device_signs_for_itself(tls_sim: Simulator) -> None:
    addresses = tls_uris(tls_sim)
    wan, lan = base(addresses["wanVodMpdUriTemplate"]), addresses["lanCheckUrls"][0]
    pool = secure_pool(tls_sim)
    assert pool.request("GET", wan + "seg_1.m4v", headers=key_headers(tls_sim)).status == 200
    with pytest.raises(urllib3.exceptions.SSLError):
        pool.request("GET", lan)
    assert urllib3.PoolManager(cert_reqs="CERT_NONE").request("GET", lan).status == 200
    tls_sim.switches.lan_tls = "valid"
    assert secure_pool(tls_sim).request("GET", lan).status == 200
    tls_sim.switches.lan_tls = "self-signed"


def test_the_real_names_are_reached_through_the_proxy_and_lan_names_are_not(tls_sim: Simulator) -> None:
    tls_sim.switches.real_names = True
    wan = base(tls_uris(tls_sim)["wanVodMpdUriTemplate"])
    tls_sim.switches.real_names = False
    assert wan.startswith("https://media.us-west-2.dash.rhombussystems.com/")
    pool = secure_pool(tls_sim, proxied=True)
    assert pool.request("GET", wan + "seg_1.m4v", headers=key_headers(tls_sim)).status == 200
    assert tls_sim.requests[-1].host == "media.us-west-2.dash.rhombussystems.com"
    for host, key, status in (
            ("api2", "api_key", 200), ("api2.eu", "api_key", 403), ("api2.eu", "other_region_key", 200)):
        answer = pool.request("POST", f"https://{host}.rhombussystems.com/api/{LIST}", body=b"{}",
                              headers=key_headers(tls_sim, getattr(tls_sim, key)))
        assert answer.status == status
    with pytest.raises(urllib3.exceptions.ProxyError):
        pool.request("GET", "https://10-0-0-1.lan.rhombussystems.com:8000/")
    assert tls_sim.connects[0] == ("media.us-west-2.dash.rhombussystems.com:443", 200)
    assert tls_sim.connects[-1] == ("10-0-0-1.lan.rhombussystems.com:8000", 502)


def test_a_certificate_key_works_with_its_certificate_and_on_the_twin_host_only(tls_sim: Simulator) -> None:
    headers = key_headers(tls_sim, tls_sim.cert_key, "api")
    for certified, status in ((True, 200), (False, 401)):
        pool = secure_pool(tls_sim, certified)
        assert pool.request("POST", f"{tls_sim.api_url}/api/{LIST}", body=b"{}", headers=headers).status == status
    template = f"https://media.us-west-2.{{}}.rhombussystems.com/dash/api/{CAMERA}.v0/{START}/20/vod/seg_1.m4v"
    twin, public = template.format("dash-internal"), template.format("dash")
    pool = secure_pool(tls_sim, certified=True, proxied=True)
    assert pool.request("GET", twin, headers=headers).status == 200
    assert tls_sim.requests[-1].client_certificate
    assert pool.request("GET", public, headers=headers).status == 403
    assert pool.request("GET", twin, headers=key_headers(tls_sim)).status == 403
    with pytest.raises((urllib3.exceptions.SSLError, urllib3.exceptions.ProtocolError)):
        secure_pool(tls_sim, proxied=True).request("GET", twin, headers=headers)


# --- by hand ---

SCRIPT = str(Path(__file__).with_name("rhombus_simulator.py"))


def start_by_hand(*flags: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [sys.executable, SCRIPT, *flags]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, json.loads(process.stdout.readline())


def test_by_hand_it_says_where_it_is_and_is_steered_through_the_api_port() -> None:
    fault = '{"match": "getLocations", "kind": "status", "status": 500}'
    process, facts = start_by_hand("--cameras", "3", "--alerts", "4", "--fault", fault, "--switch", "page_cap=2")
    headers = {"x-auth-scheme": "api-token", "x-auth-apikey": facts["api_key"]}

    def call(method: str, path: str, body: Any = None) -> Any:
        answer = PLAIN.request(method, facts["api_url"] + path, headers=headers, body=json.dumps(body or {}).encode())
        return answer.status, json.loads(answer.data or b"null")

    try:
        assert len(facts["cameras"]) == 3 and facts["pid"] == process.pid
        assert call("POST", "/api/location/getLocations")[0] == 500
        assert len(call("POST", "/api/event/getPolicyAlerts")[1]["policyAlerts"]) == 2
        assert call("POST", "/_sim/switches", {"page_cap": 3})[1]["page_cap"] == 3
        assert call("POST", "/_sim/switches", {"nonsense": 3})[0] == 400
        assert len(call("POST", "/api/event/getPolicyAlerts")[1]["policyAlerts"]) == 3
        assert call("POST", "/_sim/faults", [{"match": LIST, "kind": "in_band"}])[1] == {"faults": 1}
        assert call("POST", "/api/" + LIST)[1]["error"] is True
        assert [r["status"] for r in call("GET", "/_sim/requests")[1]] == [500, 200, 200, 200]
        assert call("GET", "/_sim/counts")[1]["requests"] == {"api 200": 3, "api 500": 1}
        assert call("POST", "/_sim/clear")[0] == 200 and call("GET", "/_sim/requests")[1] == []
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_by_hand_it_ends_with_its_parent_when_told_so() -> None:
    process, facts = start_by_hand("--exit_with_stdin", "--tls")
    assert Path(facts["ca_file"]).exists() and facts["proxy_url"] and facts["api_url"].startswith("https:")
    process.communicate(timeout=10)
    assert process.returncode == 0 and not Path(facts["ca_file"]).exists()


def test_the_help_begins_with_examples_and_wrong_flags_end_with_2() -> None:
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "python tests/rhombus_simulator.py --tls" in shown.stdout
    for wrong in (["--fault", "{}"], ["--switch", "nonsense=1"], ["--switch", "bulk=maybe"]):
        assert subprocess.run([sys.executable, SCRIPT, *wrong], capture_output=True).returncode == 2


def test_the_demo_world_is_small_and_nice() -> None:
    world = rs.default_world(NOW)
    everything = [*world.cameras, *world.gateways, *world.alerts]
    assert all(rs.RUUID.fullmatch(item.uuid) for item in everything)
    assert len({item.uuid for item in everything}) == len(everything)
    assert {c.status for c in world.cameras} == {"GREEN", "RED"} and any(len(c.facets) == 2 for c in world.cameras)
    assert any(a.door for a in world.alerts) and any(a.device_type == "AUDIO_GATEWAY" for a in world.alerts)
    assert world.path_to(world.cameras[-1].location_uuid) == [world.locations[0].uuid, world.cameras[-1].location_uuid]
