"""nas_sync.py and S3: uploads with proof, and everything that can go wrong with them.

Each fault ends the same way: nothing unproven was deleted, the status was right, and the next run heals.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import botocore.auth
import botocore.crt.auth
import botocore.endpoint
import botocore.loaders
import pytest
import yaml
from archive_servers import FaultProxy, LyingS3, RcloneS3, wait_until

import nas_sync
from rhombus_logging import ProgramError

pytestmark = pytest.mark.slow  # whole servers are started

ROOT = Path(__file__).resolve().parent.parent
MB = 1 << 20
START = "20261101_120000"
KEY = f"Gate/2026/11/01/{START}.mp4"
LONG_AGO_SEC = 1_793_000_000
PATIENCE_SEC = 60
LARGE_BYTES = 17 * MB  # two parts


@dataclass
class Result:
    status: int
    out: str
    log: str


@dataclass
class House:
    """A folder with footage and a config file, and the program as a user runs it."""

    folder: Path
    s3: dict[str, Any]
    proxy: Any = None

    def __post_init__(self) -> None:
        self.footage.mkdir(parents=True, exist_ok=True)
        self.configure()

    @property
    def footage(self) -> Path:
        return self.folder / "recordings"

    @property
    def state(self) -> Path:
        return self.footage / ".nas_sync"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def configure(self, **s3: Any) -> None:
        self.s3 = {**self.s3, **s3}
        config = {"storage": {"local_path": str(self.footage)}, "s3": self.s3}
        config["retention"] = {"grace_sec": 0}
        self.config.write_text(yaml.safe_dump(config))
        self.config.chmod(0o600)

    def record(self, size: int = 300_000, name: str = f"{START}.mp4", camera: str = "Gate") -> Path:
        """A finished recording of random bytes."""
        file = self.footage / camera / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(os.urandom(size))
        os.utime(file, (LONG_AGO_SEC, LONG_AGO_SEC))
        return file

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """As a process of its own, for tests that end it."""
        command = [sys.executable, str(ROOT / "nas_sync.py"), *arguments, "--config", str(self.config)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> Result:
        out, log = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(log):
            try:
                status = nas_sync.main([*arguments, "--config", str(self.config)])
            except ProgramError as problem:
                nas_sync.log.error("%s", problem)
                status = problem.status
        return Result(int(status), out.getvalue(), log.getvalue())

    def init(self) -> House:
        done = self.run("target", "init")
        assert done.status == 0, done.log
        return self

    def records(self) -> list[nas_sync.Record]:
        """The last word about each file."""
        found = [one for file in sorted(self.state.glob("synced/*.synced")) for one in file.read_bytes().splitlines()]
        return list({one.path: one for one in map(nas_sync.read_record, found) if one}.values())

    def proofs(self) -> list[str]:
        return sorted(one.how for one in self.records())

    def open_uploads(self) -> dict[str, Any]:
        file = self.state / "s3_uploads.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def refuses_to_delete(self) -> None:
        """Cleanup keeps every file that is here."""
        before = sorted(self.footage.glob("*/*.mp4"))
        assert before
        self.run("cleanup")
        assert sorted(self.footage.glob("*/*.mp4")) == before

    def heals(self, *proofs: str) -> None:
        """The next run proves everything, and the one after it deletes it here."""
        done = self.run("upload")
        assert done.status == 0, done.log
        if proofs:
            assert self.proofs() == sorted(proofs)
        done = self.run("cleanup")
        assert done.status == 0, done.log
        assert not list(self.footage.glob("*/*.mp4"))


@pytest.fixture(scope="module", autouse=True)
def models_read_once():
    """botocore reads its models anew for each session, for 70 ms; a run has one session, these tests hundreds."""
    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(botocore.loaders.JSONFileLoader().load_file)
        patch.setattr(botocore.loaders.JSONFileLoader, "load_file", lambda _self, path: read(path))
        yield


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch, tmp_path, tls):
    """Nobody's profile, no metadata service, the tests' authority, and no sleep between tries."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.ca_file))
    monkeypatch.setattr(botocore.endpoint.time, "sleep", lambda _sec: REAL_SLEEP(0.01))


REAL_SLEEP = time.sleep


@pytest.fixture(scope="module")
def shared_proxy(swift, tls):
    with FaultProxy(swift.address, tls=tls) as proxy:
        yield proxy


def as_new(house: House, server: Any) -> House:
    """A house that was made once, with its bucket and its state as they were after `target init`."""
    client, bucket = server.client(), house.s3["bucket"]
    for key in keys(server, house):
        client.delete_object(Bucket=bucket, Key=key)
    for one in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
        client.abort_multipart_upload(Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"])
    for file in [*house.footage.glob("*/*.mp4"), *house.state.rglob("*.*")]:
        if file.name != "targets.json":
            file.unlink()
    house.configure()
    return house


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory, swift):
    return House(tmp_path_factory.mktemp("house"), swift.config(swift.new_bucket())).init()


@pytest.fixture(scope="module")
def shared_proxied(tmp_path_factory, swift, shared_proxy):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CA_BUNDLE", str(shared_proxy.tls.ca_file))
        return House(tmp_path_factory.mktemp("house"), swift.config(swift.new_bucket(), shared_proxy.url)).init()


@pytest.fixture
def house(shared_house, swift):
    made = replace(shared_house)
    yield made
    as_new(shared_house, swift)


@pytest.fixture
def proxied(shared_proxied, shared_proxy, swift):
    """The strict server over TLS, with a proxy in front that makes the faults."""
    made = replace(shared_proxied, proxy=shared_proxy)
    shared_proxy.seen.clear()  # of what made the house
    yield made
    shared_proxy.clear()
    shared_proxy.seen.clear()
    as_new(shared_proxied, swift)


def content(server: Any, house: House, key: str = KEY) -> bytes:
    return bytes(server.client().get_object(Bucket=house.s3["bucket"], Key=key)["Body"].read())


def keys(server: Any, house: House) -> list[str]:
    found = server.client().list_objects_v2(Bucket=house.s3["bucket"]).get("Contents", [])
    return sorted(one["Key"] for one in found if one["Key"] != nas_sync.TARGET_FILE)


def uploads(server: Any, house: House) -> list[str]:
    found = server.client().list_multipart_uploads(Bucket=house.s3["bucket"]).get("Uploads", [])
    return sorted(one["UploadId"] for one in found)


# --- the way it should be ---


def test_footage_is_uploaded_proven_and_only_then_deleted(house, swift):
    house.record()
    expected = house.record(LARGE_BYTES, "20261101_130000.mp4").read_bytes()
    house.refuses_to_delete()
    done = house.run("upload")
    assert done.status == 0, done.log
    assert keys(swift, house) == [KEY, "Gate/2026/11/01/20261101_130000.mp4"]
    assert content(swift, house, "Gate/2026/11/01/20261101_130000.mp4") == expected
    head = swift.client().head_object(Bucket=house.s3["bucket"], Key=KEY)
    assert head["ContentType"] == "video/mp4"
    assert head["Metadata"]["sha256"] in [one.sha256 for one in house.records()]
    assert (house.proofs(), house.open_uploads(), uploads(swift, house)) == (["crc64nvme"] * 2, {}, [])
    assert "nothing to do" in house.run("upload").log
    house.heals()


def test_what_is_in_the_bucket_already_is_compared_and_not_sent_again(house, swift):
    """Footage of the older uploader, or of a run that was killed before it could take a note."""
    small, large = house.record(), house.record(LARGE_BYTES, "20261101_130000.mp4")
    swift.client().put_object(Bucket=house.s3["bucket"], Key=KEY, Body=small.read_bytes())
    other_cut = {"Bucket": house.s3["bucket"], "Key": "Gate/2026/11/01/20261101_130000.mp4"}
    swift.client().upload_file(str(large), *other_cut.values())  # in parts of 8 MB: no ETag that we could compute
    house.heals("etag", "readback")


def test_the_plan_of_a_dry_run_writes_nothing(house, swift):
    house.record()
    done = house.run("upload", "--dry_run")
    assert (done.status, done.out) == (0, f"upload\t300000\tGate/{START}.mp4\n")
    assert (keys(swift, house), house.records()) == ([], [])


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({}, KEY),
        ({"start_sec": 1793577599.0}, f"Gate/2026/11/01/{START}.mp4"),
        ({"relative": "Gate/2026-11-01/x.mkv"}, "Gate/2026/11/01/x.mkv"),
        ({"kind": "clip", "camera": "Door_RUUID", "relative": "a.mp4", "prefix": "Door_RUUID/"},
         "Door_RUUID/2026/11/01/a.mp4"),
        ({"kind": "evidence", "relative": "Gate/a/b.jpg", "prefix": "alerts/"}, "alerts/Gate/a/b.jpg"),
        ({"kind": "journal", "relative": "Gate/2026-11-01.jsonl", "prefix": "journal/"},
         "journal/Gate/2026-11-01.jsonl"),
        ({"relative": "Gate/a\nb\udcff.mp4"}, "Gate/2026/11/01/a%0Ab%FF.mp4"),
    ],
)  # fmt: skip
def test_a_key_is_camera_date_and_name(more, key):
    values = {"root": Path("/x"), "relative": f"Gate/{START}.mp4", "camera": "Gate", "kind": "recording",
              "start_sec": 1793534400.0, "start_basis": "name", "size": 1, "mtime_ns": 1, **more}  # fmt: skip
    assert nas_sync.key_of(nas_sync.Footage(**values)) == key


@pytest.mark.parametrize(
    ("s3", "region"),
    [
        ({"endpoint": "https://0123.r2.cloudflarestorage.com"}, "auto"),
        ({"endpoint": "https://s3.example.com"}, "us-east-1"),
        ({"endpoint": "https://s3.example.com", "region": "eu-central-003"}, "eu-central-003"),
        ({"endpoint": None}, "us-east-1"),
    ],
)
def test_the_region_is_auto_at_r2_and_us_east_1_elsewhere(s3, region):
    known = {"access_key_id": "a", "secret_access_key": "b", "bucket": "c", "region": None, "addressing": "path"}
    target = nas_sync.S3Target.__new__(nas_sync.S3Target)
    target.settings = type("Settings", (), {"s3": {**known, **s3}})()
    target.endpoint, target.address, target.session = s3["endpoint"] or "", "", None
    assert target._connect(signs=True).meta.region_name == region


def test_a_key_from_the_environment_is_used(house, swift, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", house.s3.pop("access_key_id"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", house.s3.pop("secret_access_key"))
    house.configure()
    house.record()
    house.heals()


def test_no_secret_reaches_a_log_not_even_with_debug(proxied, swift):
    proxied.record(LARGE_BYTES)
    done = proxied.run("upload", "--debug")
    assert done.status == 0
    proxied.configure(secret_access_key="another-secret-entirely")
    failed = proxied.run("upload", "--debug")
    assert failed.status == 3
    for word in (swift.secret_key, swift.access_key, "another-secret-entirely", "AWS4-HMAC"):
        assert word not in done.log + failed.log


def test_what_an_endpoint_does_is_tried_once_and_remembered(proxied):
    proxied.record()
    assert proxied.run("upload").status == 0
    assert not proxied.proxy.count("PUT", nas_sync.S3_PROBE_KEY)
    done = proxied.run("target", "check")
    assert "a wrong CRC64NVME is refused" in done.log
    assert proxied.proxy.count("PUT", nas_sync.S3_PROBE_KEY)


def test_another_endpoint_of_the_same_bucket_is_tried_anew_before_it_is_believed(proxied, swift):
    proxied.configure(endpoint=swift.url)
    proxied.record()
    assert proxied.run("upload").status == 0
    proxied.proxy.seen.clear()
    proxied.configure(endpoint=proxied.proxy.url)
    proxied.record(name="20261101_130000.mp4")
    assert proxied.run("upload").status == 0
    assert proxied.proxy.count("PUT", nas_sync.S3_PROBE_KEY)


def test_without_awscrt_the_checksum_is_crc32(house, monkeypatch):
    monkeypatch.setitem(sys.modules, "awscrt.checksums", None)
    house.record()
    house.record(LARGE_BYTES, "20261101_130000.mp4")
    assert "a wrong CRC32 is refused" in house.run("target", "check").log
    house.heals("crc32", "crc32")


def test_a_journal_that_has_grown_replaces_its_earlier_form(house, swift):
    """Footage never does."""
    folder = house.footage / nas_sync.RECORDER_JOURNAL / "Gate"
    folder.mkdir(parents=True)
    journal = folder / "2026-11-01.jsonl"
    for text in ("one\n", "one\ntwo\n"):
        journal.write_text(text)
        os.utime(journal, (LONG_AGO_SEC + len(text), LONG_AGO_SEC + len(text)))
        assert house.run("upload").status == 0
        assert content(swift, house, "journal/Gate/2026-11-01.jsonl") == text.encode()
    journal.unlink()


def test_a_sidecar_is_in_the_bucket_before_its_clip(proxied, tmp_path):
    name = "Gate_0123456789012345678901_1793534400_video"
    (tmp_path / f"{name}.mp4").write_bytes(os.urandom(100_000))
    (tmp_path / f"{name}.json").write_text('{"requested": {"start_ms": 1793534400000}}')
    for file in tmp_path.glob("Gate*"):
        os.utime(file, (LONG_AGO_SEC, LONG_AGO_SEC))
    settings = yaml.safe_load(proxied.config.read_text())
    proxied.config.write_text(yaml.safe_dump({**settings, "rhombus": {"output_dir": str(tmp_path)}}))
    assert proxied.run("upload").status == 0
    key = f"/Gate_0123456789012345678901/2026/11/01/{name}"
    sent = [one.target.partition("?")[0] for one in proxied.proxy.seen if one.method == "PUT"]
    assert [one.partition("/Gate")[2] for one in sent] == [f"{key}.json"[5:], f"{key}.mp4"[5:]]


# --- the wrong target ---


def test_a_bucket_without_our_id_is_refused_with_nothing_written(house, swift):
    house.record()
    swift.client().delete_object(Bucket=house.s3["bucket"], Key=nas_sync.TARGET_FILE)
    done = house.run("upload")
    assert (done.status, keys(swift, house)) == (3, [])
    assert "run once: nas_sync.py target init" in done.log
    house.refuses_to_delete()
    house.init().heals()


def test_another_bucket_is_refused_with_nothing_written(house, swift, tmp_path):
    house.record()
    assert house.run("upload").status == 0
    ours = house.s3["bucket"]
    other = House(tmp_path / "other", swift.config(swift.new_bucket())).init()
    house.configure(bucket=other.s3["bucket"])
    done = house.run("upload")
    assert (done.status, keys(swift, house)) == (3, [])
    assert "another bucket?" in done.log
    house.refuses_to_delete()
    house.configure(bucket=ours)
    house.heals()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"secret_access_key": "wrong"}, "look at s3.access_key_id and s3.secret_access_key"),
        ({"bucket": "there-is-no-such-bucket"}, "there is no such bucket; look at s3.bucket"),
        ({"endpoint": "http://127.0.0.1:9"}, "Could not connect to the endpoint"),
    ],
)
def test_a_wrong_secret_bucket_or_address_is_said_and_ends_with_status_3(house, change, words):
    house.record()
    right = house.s3
    house.configure(**change)
    done = house.run("upload")
    assert done.status == 3
    assert words in done.log
    house.refuses_to_delete()
    house.s3 = right
    house.configure()
    house.heals()


def test_a_wrong_clock_is_said_and_ends_with_status_3(house, monkeypatch):
    house.record()
    real = botocore.auth.get_current_datetime
    with monkeypatch.context() as patch:
        for signer in (botocore.auth, botocore.crt.auth):
            patch.setattr(signer, "get_current_datetime", lambda **more: real(**more) + timedelta(hours=2))
        done = house.run("upload")
        assert (done.status, "the clock of this host is wrong" in done.log) == (3, True), done.log
        house.refuses_to_delete()
    house.heals()


@pytest.mark.parametrize("change", [{"endpoint": "s3.example.com"}, {"secret_access_key": None}])
def test_a_config_that_cannot_be_meant_ends_with_status_2(house, change):
    house.configure(**change)
    assert house.run("upload").status == 2


def test_other_footage_under_a_key_is_kept_and_ours_too(house, swift):
    file = house.record()
    swift.client().put_object(Bucket=house.s3["bucket"], Key=KEY, Body=b"other footage", Metadata={"sha256": "0" * 64})
    done = house.run("upload")
    assert (done.status, content(swift, house), house.records()) == (1, b"other footage", [])
    assert f"{KEY} is other footage, which is kept" in done.log
    house.refuses_to_delete()
    swift.client().delete_object(Bucket=house.s3["bucket"], Key=KEY)
    expected = file.read_bytes()
    house.heals()
    assert content(swift, house) == expected


def test_what_the_bucket_lost_after_its_proof_is_kept_here_and_sent_again(house, swift):
    house.record()
    assert house.run("upload").status == 0
    swift.client().delete_object(Bucket=house.s3["bucket"], Key=KEY)
    house.refuses_to_delete()
    house.heals()


def test_what_the_bucket_holds_damaged_is_kept_aside_and_sent_again(house, swift):
    expected = house.record().read_bytes()
    assert house.run("upload").status == 0
    head = swift.client().head_object(Bucket=house.s3["bucket"], Key=KEY)
    swift.client().put_object(Bucket=house.s3["bucket"], Key=KEY, Body=b"damaged", Metadata=head["Metadata"])
    house.refuses_to_delete()
    house.heals()
    assert content(swift, house) == expected
    _, aside = keys(swift, house)
    assert (aside.startswith(f"{KEY}.damaged-"), content(swift, house, aside)) == (True, b"damaged")


def test_an_object_of_the_same_size_that_was_put_in_place_of_a_proven_one_is_noticed_before_deleting(house, swift):
    file = house.record()
    assert house.run("upload").status == 0
    head = swift.client().head_object(Bucket=house.s3["bucket"], Key=KEY)
    where = {"Bucket": house.s3["bucket"], "Key": KEY, "Metadata": head["Metadata"]}
    swift.client().put_object(Body=os.urandom(file.stat().st_size), **where)
    done = house.run("cleanup")
    assert (done.status, file.exists()) == (1, True)
    assert "no longer has it as it was proven" in done.log
    house.heals()


@pytest.mark.parametrize("etag", ["", "of-a-copy"])
def test_an_object_whose_etag_is_not_that_of_its_proof_is_compared_before_deleting(house, swift, etag):
    """A copy within S3 has another ETag than the parts that were sent; old records may have none."""
    file = house.record(LARGE_BYTES)
    assert house.run("upload").status == 0
    [log] = house.state.glob("synced/*.synced")
    [one] = house.records()
    changed = replace(one, proof=f"{one.how};etag={etag}" if etag else one.how)
    log.write_text(nas_sync.record_line(changed) + "\n")
    done = house.run("cleanup")
    assert (done.status, file.exists()) == (0, False), done.log


def test_small_files_cost_one_request_each_and_a_listing_of_their_folder(proxied):
    count = 12
    for number in range(count):
        proxied.record(10_000, f"20261101_12{number:02}00.mp4")
    assert proxied.run("upload").status == 0
    assert proxied.proofs() == ["crc64nvme"] * count
    seen = [(one.method, "list-type" in one.target) for one in proxied.proxy.seen if nas_sync.TARGET_FILE not in
            one.target]  # fmt: skip
    assert sorted(seen) == [("GET", True)] + [("PUT", False)] * count


def test_what_came_under_a_key_since_the_folder_was_listed_is_not_overwritten(proxied, swift):
    file = proxied.record()
    bucket, other = proxied.s3["bucket"], b"of another host"
    proxied.proxy.add("delay", method="PUT", target=START, then=lambda: swift.client().put_object(
        Bucket=bucket, Key=KEY, Body=other))  # fmt: skip
    done = proxied.run("upload")
    assert (done.status, content(swift, proxied), proxied.records()) == (1, other, [])
    assert "which is kept" in done.log
    proxied.refuses_to_delete()
    swift.client().delete_object(Bucket=bucket, Key=KEY)
    assert file.exists()
    proxied.heals()


@pytest.mark.parametrize("headers", [{}, {"ETag": '"0"', "x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}])
def test_a_success_that_the_server_never_said_is_no_proof(proxied, swift, headers):
    """As a proxy or a captive portal on the way says it: without an ETag, or about other content."""
    proxied.record()
    proxied.proxy.add("answer", method="PUT", target=START, status=200, body=b"<Done/>", headers=headers)
    done = proxied.run("upload")
    assert (done.status, proxied.records(), keys(swift, proxied)) == (1, [], [])
    proxied.refuses_to_delete()
    proxied.heals("crc64nvme")


# --- weak servers ---


def test_a_server_that_knows_no_trailers_gets_intact_footage_over_tls(tmp_path, tls):
    """Plain boto3 stores a corrupt object here, and calls it a success."""
    with LyingS3(tls=tls, keep_framing=True, overwrites=False) as server:
        house = House(tmp_path, server.config(server.new_bucket())).init()
        files = [house.record(), house.record(LARGE_BYTES, "20261101_130000.mp4")]
        expected = [file.read_bytes() for file in files]
        server.client().put_object(Bucket=house.s3["bucket"], Key="default", Body=expected[0])
        house.heals("etag", "etag")
        stored = server.buckets[house.s3["bucket"]]
        assert stored["default"].body != expected[0]
        assert [stored[KEY].body, stored["Gate/2026/11/01/20261101_130000.mp4"].body] == expected


def test_a_server_that_answers_411_to_trailers_is_proven_by_etag(tmp_path, tls):
    with RcloneS3(tmp_path, tls=tls) as server:
        house = House(tmp_path, server.config(server.new_bucket())).init()
        house.record()
        expected = house.record(LARGE_BYTES, "20261101_130000.mp4").read_bytes()
        house.heals("etag", "etag")
        assert (server.root / house.s3["bucket"] / "Gate/2026/11/01/20261101_130000.mp4").read_bytes() == expected


@pytest.mark.parametrize("size", [300_000, pytest.param(LARGE_BYTES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("manners", [{}, {"random_etag": True}])
def test_a_short_body_that_a_server_accepts_is_no_proof(tmp_path, size, manners):
    with LyingS3(damage=lambda body: body[:-1] if len(body) > 100_000 else body, **manners) as server:
        house = House(tmp_path, server.config(server.new_bucket())).init()
        expected = house.record(size).read_bytes()
        done = house.run("upload")
        assert (done.status, house.records()) == (1, [])
        house.refuses_to_delete()
        server.damage = None
        house.heals("readback" if manners else "etag")
        assert server.buckets[house.s3["bucket"]][KEY].body == expected


@pytest.mark.parametrize("manners", [{"echo": True}, pytest.param({"random_etag": True}, marks=pytest.mark.slow)])
def test_a_bit_flip_on_the_way_to_a_weak_server_is_no_proof_although_it_echoes_our_checksum(tmp_path, manners):
    with LyingS3(**manners) as server, FaultProxy(server.address) as proxy:
        house = House(tmp_path, server.config(server.new_bucket(), proxy.url)).init()
        expected = house.record().read_bytes()
        proxy.add("flip", method="PUT", target=START, after_bytes=1000)
        done = house.run("upload")
        assert (done.status, house.records()) == (1, [])
        house.refuses_to_delete()
        house.heals()
        assert server.buckets[house.s3["bucket"]][KEY].body == expected


def test_the_md5_of_the_whole_as_etag_of_a_multipart_upload_is_understood(tmp_path):
    with LyingS3(plain_etag=True) as server:
        house = House(tmp_path, server.config(server.new_bucket())).init()
        house.record(LARGE_BYTES)
        house.heals("etag")


# --- faults on the way to a strict server ---


@pytest.mark.parametrize("size", [300_000, pytest.param(LARGE_BYTES, marks=pytest.mark.slow)])
def test_a_bit_flip_on_the_way_to_a_strict_server_is_refused_and_sent_again_next_time(proxied, swift, size):
    expected = proxied.record(size).read_bytes()
    proxied.proxy.add("flip", method="PUT", target=START, after_bytes=100_000)
    done = proxied.run("upload")
    assert (done.status, keys(swift, proxied), uploads(swift, proxied)) == (1, [], [])
    assert "BadDigest" in done.log
    proxied.refuses_to_delete()
    proxied.heals("crc64nvme")
    assert content(swift, proxied) == expected


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "cut", "after_bytes": 100_000},
        {"kind": "lose_response"},
        {"kind": "answer", "status": 503, "times": 2},
        pytest.param({"kind": "answer", "status": 500, "times": 2}, marks=pytest.mark.slow),
        pytest.param({"kind": "answer_after", "status": 500}, marks=pytest.mark.slow),
        pytest.param({"kind": "slow", "bytes_per_sec": 300_000}, marks=pytest.mark.slow),
        {"kind": "stall", "seconds": 1.5, "after_bytes": 100_000},
    ],
    ids=lambda fault: "_".join(map(str, fault.values())),
)
def test_a_fault_that_passes_costs_a_second_try_and_no_more(proxied, swift, monkeypatch, fault):
    monkeypatch.setattr(nas_sync, "S3_READ_SEC", 1)
    expected = proxied.record().read_bytes()
    made = proxied.proxy.add(**{"method": "PUT", "target": START, **fault})
    proxied.heals()
    assert made.happened
    assert content(swift, proxied) == expected


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "cut", "after_bytes": 100_000}, marks=pytest.mark.slow),
        {"kind": "answer", "status": 503},
        pytest.param({"kind": "stall", "seconds": 2, "after_bytes": 100_000}, marks=pytest.mark.slow),
    ],
    ids=lambda fault: str(fault["kind"]),
)
def test_a_fault_that_lasts_fails_the_file_and_not_the_others(proxied, monkeypatch, fault):
    monkeypatch.setattr(nas_sync, "S3_READ_SEC", 0.5)
    monkeypatch.setattr(nas_sync, "S3_TRIES", 2)
    proxied.record()
    proxied.record(name="20261101_130000.mp4")
    proxied.proxy.add(**{"method": "PUT", "target": START, "times": -1, **fault})
    done = proxied.run("upload")
    assert done.status == 1
    assert [one.path for one in proxied.records()] == ["Gate/20261101_130000.mp4"]
    proxied.proxy.clear()
    assert proxied.run("cleanup").status == 0
    assert [file.name for file in proxied.footage.glob("*/*.mp4")] == [f"{START}.mp4"]
    proxied.heals()


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "answer_after", "status": 500},
        pytest.param({"kind": "lose_response"}, marks=pytest.mark.slow),
        pytest.param({"kind": "answer_after", "status": 500, "times": -1}, marks=pytest.mark.slow),
        {"kind": "answer_after", "status": 200, "body": b"<Error><Code>InternalError</Code></Error>", "times": -1},
    ],
    ids=lambda fault: "_".join(str(value) for name, value in fault.items() if name != "body"),
)
def test_a_multipart_upload_whose_end_is_unclear_is_compared(proxied, swift, fault):
    expected = proxied.record(LARGE_BYTES).read_bytes()
    made = proxied.proxy.add(**{"method": "POST", "target": "uploadId=", **fault})
    done = proxied.run("upload")
    assert (done.status, made.happened > 0) == (0, True), done.log
    proxied.proxy.clear()
    assert content(swift, proxied) == expected
    assert (uploads(swift, proxied), proxied.open_uploads()) == ([], {})
    proxied.heals()


@pytest.mark.slow
def test_a_multipart_upload_that_cannot_be_completed_leaves_no_parts_behind(proxied, swift):
    proxied.record(LARGE_BYTES)
    proxied.proxy.add("answer", method="POST", target="uploadId=", status=500, times=-1)
    done = proxied.run("upload")
    assert (done.status, keys(swift, proxied), uploads(swift, proxied)) == (1, [], [])
    proxied.refuses_to_delete()
    proxied.proxy.clear()
    proxied.heals("crc64nvme")


@pytest.mark.slow
def test_a_full_server_ends_the_run_with_status_3_and_what_is_proven_stays_proven(proxied):
    for number in range(30):
        proxied.record(1000, f"20261101_12{number:02}00.mp4")
    proxied.proxy.add("answer", method="PUT", target="12[12]", status=507, times=-1)
    done = proxied.run("upload")
    assert done.status == 3
    assert 0 < len(proxied.records()) < 30
    proxied.proxy.clear()
    proxied.heals()


# --- killed ---


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_upload_leaves_parts_that_the_next_run_removes_and_no_others(proxied, swift, signal_number):
    foreign = swift.client().create_multipart_upload(Bucket=proxied.s3["bucket"], Key=KEY)["UploadId"]
    expected = proxied.record(LARGE_BYTES).read_bytes()
    proxied.proxy.add("stall", method="PUT", target="partNumber=2", seconds=60, times=-1, after_bytes=1000)
    process = proxied.start("upload")
    wait_until(lambda: proxied.proxy.count("PUT", "partNumber=1") and uploads(swift, proxied) != [foreign], "a part")
    began = time.monotonic()
    process.send_signal(signal_number)
    process.communicate(timeout=PATIENCE_SEC)
    assert time.monotonic() - began < 10
    assert process.returncode == (143 if signal_number == signal.SIGTERM else -signal.SIGKILL)
    assert (keys(swift, proxied), proxied.records()) == ([], [])
    if signal_number == signal.SIGKILL:
        assert len(uploads(swift, proxied)) == 2
        assert set(proxied.open_uploads()) == set(uploads(swift, proxied)) - {foreign}
    proxied.proxy.clear()
    proxied.refuses_to_delete()
    proxied.heals("crc64nvme")
    assert (uploads(swift, proxied), proxied.open_uploads()) == ([foreign], {})
    assert content(swift, proxied) == expected


def test_a_file_that_changes_while_it_is_sent_is_not_recorded(proxied):
    file = proxied.record()
    proxied.proxy.add("delay", method="PUT", target=START, then=lambda: file.write_bytes(os.urandom(300_000)))
    done = proxied.run("upload")
    assert (done.status, proxied.records()) == (1, [])
    proxied.refuses_to_delete()


@pytest.mark.slow
def test_a_bandwidth_limit_is_kept(house):
    house.record(3 * MB)
    began = time.monotonic()
    process = house.start("upload", "--bwlimit", "500K")
    process.communicate(timeout=PATIENCE_SEC)
    assert process.returncode == 0
    assert time.monotonic() - began > 4
