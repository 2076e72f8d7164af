"""nas_sync.py: is the archive still what was archived, how does it stand, and how footage comes back from it."""

from __future__ import annotations

import hashlib
import html.parser
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from archive_servers import RsyncDaemon, SshServer
from conftest import need
from nas_sync_helpers import HOUR_SEC, START_SEC, UUID, Site, contents, wait_for

import nas_sync
from nas_sync import Record, SyncLog

DAY = "2026-11-19"
ODD_NAMES = [
    "20261119_010000\nx.mp4", "20261119_020000\tx.mp4", "20261119_030000\udcff.mp4", " 20261119_040000 .mp4",
    "-n20261119_050000.mp4", "--delete_20261119_060000.mp4", "20261119_070000 $(id) 'x' \"y\" `z`.mp4",
    r"20261119_080000\x.mp4", "20261119_090000 <b>&amp;.mp4",
]  # fmt: skip


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    need("rsync")
    need("sshd")
    with SshServer(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    need("rsync")
    with RsyncDaemon(tmp_path_factory.mktemp("daemon")) as server:
        yield server


@pytest.fixture
def site(in_place):
    """Without a ready folder, so that paths are short."""
    return in_place


@pytest.fixture
def bucket(tmp_path, swift):
    """The same with a bucket instead of the NAS."""
    made = Site(tmp_path, organize=False, s3=swift.config(swift.new_bucket()))
    made.set(nas={"nas_target_dir": ""})
    made.init()
    return made


def on(kind: str, site: Site, request: pytest.FixtureRequest) -> Path:
    """Move the installation to a NAS of that kind; its folder as the NAS sees it."""
    if kind == "path":
        return site.nas
    server = request.getfixturevalue("sshd" if kind == "ssh" else "daemon")
    root = server.root / site.folder.name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    options = ["-e", server.ssh_command] if kind == "ssh" else []
    site.set(nas={"nas_target_dir": f"{server.target}/{root.name}", "rsync_options": options})
    site.init()
    return root


def damage(file: Path) -> None:
    """Other bytes at the same size and time, as a disk does it that is not well."""
    status = file.stat()
    file.write_bytes(b"\0" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def found(done) -> dict[str, tuple[str, str]]:
    return {row["file"].rpartition("/")[2]: (row["state"], row["level"]) for row in done.rows if "level" in row}


def records(site: Site) -> dict[str, Record]:
    folder = site.synced if site.synced.exists() else site.rec / ".nas_sync" / "synced"
    return {one.path.rpartition("/")[2]: one for one in SyncLog(folder)}


# --- verify ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "flags", "level"),
    [
        ("path", [], "content"),
        ("ssh", [], "content"),
        ("daemon", [], "size"),
        ("daemon", ["--deep"], "content"),
    ],
)
def test_verify_names_what_the_nas_lost_or_changed_after_cleanup_whatever_its_name(kind, flags, level, site, request):
    root = on(kind, site, request)
    for hour, name in enumerate(ODD_NAMES, 1):
        site.record("Gate", hour, name=name)
    assert site.run("run").status == 0
    assert site.local() == {}
    done = site.run("verify", *flags)
    assert done.status == 0, done.err
    assert found(done) == {nas_sync.printable(name): ("verified", level) for name in ODD_NAMES}
    assert done.rows[-1]["summary"]["steps"] == {"verify": {f"verified by {level}": len(ODD_NAMES)}}
    damage(root / "Gate" / ODD_NAMES[0])
    (root / "Gate" / ODD_NAMES[4]).unlink()
    done = site.run("verify", *flags)
    wrong = {name: about for name, about in found(done).items() if about[0] != "verified"}
    expected = {ODD_NAMES[4]: ("missing", "presence")}
    if level == "content":
        expected["20261119_010000%0Ax.mp4"] = ("different", "content")
    assert (done.status, wrong) == (1, expected)
    assert "there is no other copy that we know of" in done.err
    lost = {name for name, one in records(site).items() if not one.proves}
    assert lost == {ODD_NAMES[4], *([ODD_NAMES[0]] if level == "content" else [])}
    if kind == "ssh":
        return  # each call of ssh costs
    again = site.run("verify", *flags)
    assert (again.status, len(found(again))) == (0, len(ODD_NAMES) - len(lost))  # told once, recorded as lost


@pytest.mark.slow
def test_a_nas_that_runs_no_commands_for_us_is_judged_by_size_and_read_back_with_deep(site, sshd, request, tmp_path):
    """As an account that may do nothing but rsync."""
    on("ssh", site, request)
    shell = tmp_path / "only_rsync"
    shell.write_text(f'#!/bin/sh\ncase "$*" in *"rsync --server"*) exec {sshd.ssh_command} "$@";; esac\nexit 1\n')
    shell.chmod(0o755)
    site.set(nas={"rsync_options": ["-e", str(shell)]})
    site.record("Gate", 1)
    assert site.run("run").status == 0
    assert list(found(site.run("verify")).values()) == [("verified", "size")]
    assert list(found(site.run("verify", "--deep")).values()) == [("verified", "content")]


def test_what_is_still_here_is_verified_by_checksum_and_what_differs_is_sent_again(site):
    file, other = site.record("Gate", 1), site.record("Gate", 2)
    assert site.run("backup").status == 0
    assert set(found(site.run("verify")).values()) == {("verified", "checksum")}
    damage(site.nas / "Gate" / file.name)
    (site.nas / "Gate" / other.name).unlink()
    done = site.run("verify")
    assert (done.status, found(done)) == (
        1, {file.name: ("different", "checksum"), other.name: ("missing", "presence")})  # fmt: skip
    assert done.err.count("it is still here") == 2
    site.run("cleanup")
    assert file.exists()
    assert other.exists()
    expected = file.read_bytes()
    assert site.run("run").status == 0
    assert site.archived()[f"Gate/{file.name}"] == expected
    assert site.local() == {}


def test_a_local_file_that_rots_is_told_and_the_good_copy_on_the_nas_is_left_alone(site):
    file = site.record("Gate", 1)
    good = file.read_bytes()
    assert site.run("backup").status == 0
    damage(file)
    done = site.run("verify")
    assert (done.status, found(done)) == (1, {file.name: ("different", "checksum")})
    assert "the file here is no longer what was archived" in done.err
    assert records(site)[file.name].proves
    assert site.run("cleanup").states("cleanup") == {file.name: "changed"}
    assert site.archived() == {f"Gate/{file.name}": good}


def test_the_chain_from_the_download_to_the_archive_is_followed_through_the_sidecar(site):
    clip, sidecar = site.clip()
    assert site.run("run").status == 0
    assert not clip.exists()
    assert found(site.run("verify"))[clip.name] == ("verified", "content")
    about = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**about, "sha256": "0" * 64}))
    done = site.run("verify")
    assert (done.status, found(done)[clip.name]) == (1, ("different", "content"))
    assert "not the clip that was downloaded" in done.err
    assert records(site)[clip.name].proves


@pytest.mark.slow
@pytest.mark.parametrize("organize", [True, False])
@pytest.mark.parametrize("camera", ["journal", "alerts"])
def test_a_camera_that_is_called_as_a_folder_of_the_archive_is_found_there(camera, organize, tmp_path, swift):
    site = Site(tmp_path, organize=organize, s3=swift.config(swift.new_bucket()))
    site.record(camera, 1)
    site.init()
    assert site.run("run").status == 0
    assert site.local() == {}
    shutil.rmtree(site.nas / camera)
    assert site.run("verify").rows[-1]["summary"]["steps"]["verify"] == {"missing": 1, "verified by etag": 1}
    assert {row["camera"] for row in site.run("status").rows if "camera" in row} == {camera}
    done = site.call("fetch", camera, tmp_path / "fetched", "--at", START_SEC + HOUR_SEC + 60)
    assert done.status == 0, done.err


def test_verify_believes_no_target_with_another_id(site):
    site.record("Gate", 1)
    assert site.run("run").status == 0
    before = [file.read_bytes() for file in site.synced.glob("*")]
    shutil.rmtree(site.nas)
    site.nas.mkdir()
    done = site.run("verify")
    assert (done.status, found(done)) == (3, {})
    (site.nas / nas_sync.TARGET_FILE).write_text("0123456789abcdef\n")
    done = site.run("verify")
    assert (done.status, found(done)) == (3, {})
    assert "another share?" in done.err
    assert [file.read_bytes() for file in site.synced.glob("*")] == before


def test_the_longest_unverified_come_first_and_the_rest_waits_for_the_next_run(site):
    names = [site.record("Gate", hour).name for hour in (3, 1, 2)]
    for name in names:
        assert site.run("backup", "--limit", 1).status == 0, name
        log_file = next(site.synced.glob("*"))
        text = log_file.read_bytes()
        old = [nas_sync.read_record(line) for line in text.splitlines()]
        log_file.write_text("".join(
            nas_sync.record_line(nas_sync.replace(one, at_sec=START_SEC + place)) + "\n"
            for place, one in enumerate(old) if one))  # fmt: skip
    order = [one.path for one in sorted(SyncLog(site.synced), key=lambda one: one.at_sec)]
    first = site.run("verify", "--limit", 2)
    assert [row["file"] for row in first.rows[:-1]] == order[:2]
    second = site.run("verify", "--limit", 2)
    assert [row["file"] for row in second.rows[:-1]][0] == order[2]


def test_a_verify_whose_time_is_over_says_how_many_files_wait_and_fails(site):
    for hour in (1, 2, 3):
        site.record("Gate", hour)
    assert site.run("run").status == 0
    arguments = nas_sync.build_parser().parse_args(["verify", "--config", str(site.folder / "config.yaml")])
    config = nas_sync.load_config(arguments.config, nas_sync.SECTIONS, site.folder)
    work = nas_sync.Work(nas_sync.settle(arguments, config, arguments.config), HOUR_SEC, None)
    work.target("nas")
    work.settings = nas_sync.replace(work.settings, deadline=time.monotonic())
    nas_sync.verify(work)
    assert (work.status, work.counts) == (1, {"verify": {"late": 3}})


@pytest.mark.slow
def test_run_verifies_again_what_stays_here_and_a_fresh_proof_does_not_restart_the_grace_time(site):
    site.set(retention={"keep_days": 100_000, "verify_days": 0.00001})
    file = site.record("Gate", 1)
    assert site.run("run").status == 0
    first = records(site)[file.name]
    time.sleep(1.1)
    done = site.run("run")
    assert (done.status, found(done)) == (0, {file.name: ("verified", "checksum")})
    again = records(site)[file.name]
    assert again.at_sec > first.at_sec
    assert again.since_sec == first.since_sec, "the proof of the backup, a second before or not"
    assert nas_sync.is_due([again], 100, first.since_sec + 100)
    assert not nas_sync.is_due([again], 100, first.since_sec + 99)
    damage(site.nas / "Gate" / file.name)
    time.sleep(1.1)
    assert site.run("run").status == 1
    assert file.exists()


@pytest.mark.slow
def test_verify_of_a_bucket_compares_size_and_etag_and_reads_back_with_deep(bucket, swift):
    files = [site_file.name for site_file in (bucket.record("Gate", 1), bucket.record("Gate", 2))]
    assert bucket.run("upload").status == 0
    assert {level for _, level in found(bucket.run("verify")).values()} <= {"checksum", "etag"}
    assert bucket.run("run").status == 0
    assert bucket.local() == {}
    assert found(bucket.run("verify")) == dict.fromkeys(files, ("verified", "etag"))
    assert found(bucket.run("verify", "--deep")) == dict.fromkeys(files, ("verified", "content"))
    client, name = swift.client(), bucket.config["s3"]["bucket"]
    key = f"Gate/2026/11/19/{files[0]}"
    size = client.head_object(Bucket=name, Key=key)["ContentLength"]
    client.put_object(Bucket=name, Key=key, Body=b"\0" * size)
    client.delete_object(Bucket=name, Key=f"Gate/2026/11/19/{files[1]}")
    done = bucket.run("verify")
    assert (done.status, found(done)) == (
        1, {files[0]: ("different", "content"), files[1]: ("missing", "presence")})  # fmt: skip


# --- status ---


def test_status_tells_what_waits_how_old_it_is_and_how_long_the_disk_lasts_without_asking_the_target(site):
    site.record("Gate", 1)
    assert site.run("run").status == 0
    waiting = [site.record("Gate", hour) for hour in (2, 3)]
    site.write(site.rec / "Yard" / time.strftime("%Y%m%d_%H%M%SZ.mp4", time.gmtime()), b"now" * 1000, time.time())
    site.write(site.rec / "Gate" / "notes.txt", b"whose?", START_SEC)
    site.nas.rename(site.folder / "unplugged")
    done = site.run("status")
    assert done.status == 0, done.err
    gate, yard = (row for row in done.rows if "camera" in row)
    assert (gate["camera"], gate["target"], gate["waiting_files"]) == ("Gate", "nas", 2)
    assert gate["waiting_bytes"] == sum(file.stat().st_size for file in waiting)
    assert abs(gate["oldest_sec"] - (time.time() - START_SEC - 2 * HOUR_SEC)) < 60
    assert abs(gate["last_success"] - time.time()) < 60
    assert gate["archived_files"] == 1
    assert gate["bytes_per_sec"] > 0
    assert gate["drain_sec"] > 0
    assert (yard["waiting_files"], yard["last_success"]) == (1, None)
    summary = done.rows[-1]["summary"]
    assert summary["orphans"] == {"foreign": 1}
    assert summary["disks"][0]["incoming_bytes_per_day"] == 3000
    assert summary["disks"][0]["hours_left"] > 0
    assert "nothing is ever deleted on nas" in summary["notes"][0]
    (site.folder / "unplugged").rename(site.nas)
    assert site.run("verify").status == 0
    assert site.run("status").rows[0]["bytes_per_sec"] == gate["bytes_per_sec"]  # a look brings nothing there
    people = site.call("status")
    lines = people.out.splitlines()
    assert lines[0].split()[:3] == ["camera", "target", "waiting"]
    assert [line.split()[:3] for line in lines[1:3]] == [["Gate", "nas", "2"], ["Yard", "nas", "1"]]
    assert people.err == ""


def test_status_ends_with_1_beyond_the_configured_limits(site):
    site.record("Gate", 1)
    assert site.call("status").status == 0
    site.set(status={"max_age_sec": 60})
    done = site.call("status")
    assert done.status == 1
    assert "Gate on nas: the oldest waiting file is" in done.err
    site.set(status={"max_age_sec": 0, "max_waiting_bytes": 10})
    assert site.call("status").status == 1
    site.write(site.rec / "Yard" / time.strftime("%Y%m%d_%H%M%SZ.mp4", time.gmtime()), b"now" * 1000, time.time())
    site.set(status={"max_waiting_bytes": 0, "min_hours_left": 1e15})
    assert "hours at the present rate" in site.call("status").err


def test_status_counts_conflicts_lost_files_and_names_of_older_logs_as_unproven(site):
    file, taken = site.record("Gate", 1), site.record("Gate", 2)
    site.synced.mkdir()
    (site.synced / "2020-01-01.synced").write_text(f"Gate/{file.name}\r\n")
    row = site.run("status").rows[0]
    assert (row["unproven_files"], row["waiting_files"], row["conflicts"]) == (1, 2, 0)
    site.write(site.nas / "Gate" / taken.name, b"something else", START_SEC)
    assert site.run("run").status == 1
    row = site.run("status").rows[0]
    assert (row["unproven_files"], row["waiting_files"], row["conflicts"]) == (0, 1, 1)
    site.set(status={"max_conflicts": 0})
    assert "1 conflicts" in site.call("status").err
    (site.nas / "Gate" / file.name).unlink()
    assert site.run("verify").status == 1
    assert site.run("status").rows[0]["lost_files"] == 1


def test_status_counts_what_waits_for_organize_too(tmp_path):
    site = Site(tmp_path)
    site.record("Gate", 1)
    site.clip()
    rows = {row["camera"]: row["waiting_files"] for row in site.run("status").rows[:-1]}
    assert rows == {"Gate": 1, f"Door_{UUID}": 2}


@pytest.mark.slow
def test_status_over_a_million_recorded_files_takes_less_than_ten_seconds(site):
    site.synced.mkdir()
    target = nas_sync.Memory(site.rec / ".nas_sync" / "targets.json").of("nas")["id"]
    for day in range(100):
        start_sec = START_SEC - (day + 1) * 86400
        lines = [nas_sync.record_line(Record(
            f"Cam{number % 10}/{day:03}_{number:05}.mp4", 5_000_000, start_sec * 10**9 + number, f"{number:064x}",
            target, "checksum", start_sec + number * 8)) for number in range(10_000)]  # fmt: skip
        (site.synced / f"{nas_sync.utc_day(start_sec)}.synced").write_text("\n".join(lines) + "\n")
    began = time.process_time()
    done = site.run("status")
    assert sum(row["archived_files"] for row in done.rows[:-1]) == 1_000_000
    assert time.process_time() - began < 10


# --- find and fetch ---


def test_find_names_every_place_that_has_the_footage_of_a_moment(site, swift):
    archived, fresh = site.record("Gate", 1), site.record("Gate", 4)
    fresh.rename(site.folder / "later.mp4")
    site.set(s3=swift.config(swift.new_bucket()))
    site.init()
    assert site.run("run").status == 0
    shutil.move(site.folder / "later.mp4", fresh)
    site.nas.rename(site.folder / "unplugged")  # nobody asks it
    done = site.call("find", "gate", "--at", "2026-11-19T01:30:00Z")
    assert done.status == 0, done.err
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [(row[0], row[3]) for row in rows] == [
        ("nas", f"{site.nas}/Gate/{archived.name}"),
        ("s3", f"s3://{site.config['s3']['bucket']}/Gate/2026/11/19/{archived.name}"),
    ]
    assert rows[0][1:3] == ["2026-11-19T01:00:00Z", "2026-11-19T01:59:59Z"]
    (row,) = site.run("find", "Gate", "--at", START_SEC + 4 * HOUR_SEC).rows[:-1]
    assert (row["place"], row["address"]) == ("local", str(fresh))
    none = site.call("find", "Gate", "--at", "2026-11-19T03:00:00Z")
    assert (none.status, none.out) == (1, "")
    assert "the one before ends at 2026-11-19T01:59:59Z, the next begins at 2026-11-19T04:00:00Z" in none.err
    assert site.call("find", "Gate").status == 2


def test_find_tells_what_logs_of_older_scripts_name_and_that_nothing_proves_it(site):
    names = ["Gate/2026-11-18/Gate_20261118T090000.mkv", "Gate/2026-11-18/Gate_20261118T100000.mkv",
             "Yard/2026-11-18/Yard_20261118T090000.mkv"]  # fmt: skip
    site.write(site.synced / "2026-11-18.synced", "\r\n".join([*names, "Gate", ""]).encode(), START_SEC)
    done = site.call("find", "Gate", "--at", "2026-11-18T09:30Z")
    assert (done.status, done.out) == (1, "")
    assert [name in done.err for name in names] == [True, False, False], done.err
    assert "without proof" in done.err
    assert "older scripts" not in site.call("find", "Gate", "--at", "2026-11-18T11:30Z").err


def test_a_file_that_nothing_tells_the_end_of_is_as_long_as_the_older_segment_time_says(site):
    file = site.record("Gate", 1)
    os.utime(file, (START_SEC, START_SEC))  # before it begins
    site.set(recording={"defaults": {"segment_time": 300}})
    (row,) = site.run("find", "Gate", "--at", START_SEC + HOUR_SEC).rows[:-1]
    assert row["end"] - row["start"] == 300


def test_the_journal_of_the_recorder_and_sidecars_say_when_footage_was(site):
    file = site.record("Gate", 1, name="20261119_233000Z.mp4")
    journal = site.rec / ".rtsp_recorder" / "journal" / "Gate"
    line = {"kind": "segment", "file": f"Gate/{file.name}", "start": START_SEC + 100, "end": START_SEC + 200.5}
    site.write(journal / "2026-11-19.jsonl", json.dumps(line).encode() + b"\ntorn", START_SEC)
    clip, _ = site.clip(START_SEC + 1000)
    assert site.run("run").status == 0
    assert site.local().keys() == {clip.with_suffix(".json").name}
    assert site.call("find", "Gate", "--at", START_SEC + 150).status == 0
    assert site.call("find", "Gate", "--at", START_SEC + 201).status == 1
    assert site.call("find", "Door", "--at", START_SEC + 1059).status == 0
    assert site.call("find", "Door", "--at", START_SEC + 1060).status == 1


@pytest.mark.slow
def test_a_name_without_a_date_is_found_on_each_day_that_it_was_given(site):
    site.set(nas={"ready_for_backup_dir": str(site.ready)})
    assert site.call("target", "init").status == 0
    days = ("2026-11-19", "2026-11-23")
    starts = [START_SEC + HOUR_SEC, START_SEC + 4 * 24 * HOUR_SEC + HOUR_SEC]
    for day, start in zip(days, starts, strict=True):
        site.write(site.rec / "Gate" / "010000.mp4", day.encode() * 1000, start + HOUR_SEC)
        line = {"kind": "segment", "file": "Gate/010000.mp4", "start": start, "end": start + HOUR_SEC}
        site.write(site.rec / ".rtsp_recorder/journal/Gate" / f"{day}.jsonl", json.dumps(line).encode(), START_SEC)
        assert site.run("run").status == 0
    for day, start in zip(days, starts, strict=True):
        (row,) = site.run("find", "Gate", "--at", start + 60).rows[:-1]
        assert (row["start"], row["address"]) == (start, str(site.nas / "Gate" / day / "010000.mp4"))


@pytest.mark.parametrize("kind", ["path", pytest.param("ssh", marks=pytest.mark.slow), "daemon"])
def test_fetch_brings_footage_back_from_the_nas_and_never_overwrites(kind, site, request, tmp_path):
    on(kind, site, request)
    expected = {}
    for hour, name in enumerate(ODD_NAMES, 1):
        expected[name] = site.record("Gate", hour, name=name).read_bytes()
    assert site.run("run").status == 0
    folder = tmp_path / "back"
    done = site.run("fetch", "Gate", "2026-11-19T00:00Z", "2026-11-20T00:00Z", folder)
    assert done.status == 0, done.err
    assert sorted(contents(folder).items()) == sorted({**expected}.items())
    assert list(folder.glob(".*")) == []
    (folder / ODD_NAMES[0]).write_bytes(b"mine")
    (folder / ODD_NAMES[1]).unlink()
    again = site.run("fetch", "Gate", "2026-11-19T00:00Z", "2026-11-20T00:00Z", folder)
    assert again.status == 1
    paths = [row["path"] for row in again.rows if row.get("state") in ("there", "fetched")]
    assert sorted(paths) == sorted(nas_sync.printable(folder / name) for name in ODD_NAMES[1:])
    counts = again.rows[-1]["summary"]["steps"]["fetch"]
    assert counts == {"conflict": 1, "there": len(ODD_NAMES) - 2, "fetched": 1}
    assert contents(folder) == {**expected, ODD_NAMES[0]: b"mine"}


@pytest.mark.slow
def test_fetch_takes_nothing_that_differs_from_what_was_archived_and_goes_on_to_the_next_place(site, swift, tmp_path):
    site.set(s3=swift.config(swift.new_bucket()))
    site.init()
    file = site.record("Gate", 1)
    good = file.read_bytes()
    assert site.run("run").status == 0
    damage(site.nas / "Gate" / file.name)
    done = site.call("fetch", "Gate", tmp_path / "one", "--at", START_SEC + HOUR_SEC)
    assert (done.status, contents(tmp_path / "one")) == (0, {file.name: good})
    assert done.out == f"{tmp_path}/one/{file.name}\n"
    assert "what came is not what was archived" in done.err
    assert "ERROR" not in done.err
    shutil.rmtree(site.nas)
    assert site.call("fetch", "Gate", tmp_path / "two", "--at", START_SEC + HOUR_SEC).status == 0
    assert contents(tmp_path / "two") == {file.name: good}
    swift.client().delete_object(Bucket=site.config["s3"]["bucket"], Key=f"Gate/2026/11/19/{file.name}")
    done = site.call("fetch", "Gate", tmp_path / "three", "--at", START_SEC + HOUR_SEC)
    assert (done.status, contents(tmp_path / "three")) == (1, {})
    none = site.call("fetch", "Gate", "2026-12-01", "2026-12-02", tmp_path / "four")
    assert none.status == 3
    assert not (tmp_path / "four").exists()


def test_a_fetch_needs_no_lock_and_removes_what_a_killed_one_has_left(site, tmp_path):
    file = site.record("Gate", 1)
    left = tmp_path / "back" / f"{nas_sync.FETCH_FOLDER}999999999"
    left.mkdir(parents=True)
    (left / "half.mp4").write_bytes(b"half")
    lock = site.rec / ".nas_sync" / "nas_sync.lock"
    with nas_sync.run_lock(lock, "a backup that takes hours"):
        assert site.call("backup").status == 4
        assert site.call("fetch", "Gate", tmp_path / "back", "--at", START_SEC + HOUR_SEC).status == 0
        assert site.call("find", "Gate", "--at", START_SEC + HOUR_SEC).status == 0
        assert site.call("status").status == 0
    assert {one.name for one in (tmp_path / "back").iterdir()} == {file.name}
    assert file.exists()


def test_a_fetch_that_is_ended_leaves_nothing_half_and_can_be_repeated(site, tmp_path):
    file = site.record("Gate", 1, os.urandom(20_000_000))
    good = file.read_bytes()
    assert site.run("run").status == 0
    folder = tmp_path / "back"
    words = ("fetch", "Gate", folder, "--at", START_SEC + HOUR_SEC)
    with site.start(*words, "--bwlimit", "500K") as process:
        wait_for(lambda: list(folder.glob(f"{nas_sync.FETCH_FOLDER}*/Gate/.*")), "rsync at work")
        process.terminate()
        assert process.wait(10) == 143
    assert list(folder.iterdir()) == []
    assert site.call(*words).status == 0
    assert contents(folder) == {file.name: good}


# --- export ---


class Page(html.parser.HTMLParser):
    """Tags and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]


def test_export_makes_a_folder_that_sha256sum_accepts_and_a_page_that_lists_it(site, tmp_path):
    for hour, name in enumerate(ODD_NAMES, 1):
        site.record("Gate", hour, name=name)
    assert site.run("run").status == 0
    folder = tmp_path / "case"
    words = ("export", "Gate", "2026-11-19T00:00Z", "2026-11-20T00:00Z", folder)
    done = site.run(*words)
    assert done.status == 0, done.err
    assert set(contents(folder)) == {*ODD_NAMES, "SHA256SUMS", "index.html"}
    checked = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, b"")
    assert checked.stdout.count(b": OK") == len(ODD_NAMES)
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    assert {"script", "link", "img", "iframe", "b"} & set(page.tags) == set()
    assert len(page.links) == len(ODD_NAMES)
    assert all(link.startswith("./") for link in page.links)
    assert "&lt;b&gt;" in (folder / "index.html").read_text(encoding="utf-8")
    assert site.run(*words).status == 0  # again, without harm
    (folder / "mine.txt").write_text("mine")
    refused = site.call(*words)
    assert refused.status == 2
    assert "holds other files" in refused.err


def test_export_takes_clips_with_their_sidecars_and_recordings_and_names_the_gaps(tmp_path):
    need("rsync")
    site = Site(tmp_path, retention={"grace_sec": 0})
    site.init()
    clip, sidecar = site.clip(START_SEC)
    told = json.loads(sidecar.read_text())
    gap = {"start_ms": START_SEC * 1000, "end_ms": START_SEC * 1000 + 2000, "reason": "<not_recorded>"}
    site.write(sidecar, json.dumps({**told, "complete": False, "gaps": [gap]}).encode(), START_SEC + 90_000)
    site.clip(START_SEC + 90_000)
    content = clip.read_bytes()
    assert site.run("run").status == 0
    folder = tmp_path / "case"
    done = site.run("export", f"Door_{UUID}", START_SEC, START_SEC + 120, folder)
    assert done.status == 0, done.err
    assert set(contents(folder)) == {clip.name, sidecar.name, "SHA256SUMS", "index.html"}
    assert (folder / clip.name).read_bytes() == content
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    assert f"{hashlib.sha256(content).hexdigest()}  {clip.name}" in sums
    page = (folder / "index.html").read_text()
    assert "gap 2026-11-19T00:00:00Z to 2026-11-19T00:00:02Z: &lt;not_recorded&gt;" in page
    assert "<li>2026-11-19T00:01:00Z to 2026-11-19T00:02:00Z</li>" in page


def test_an_export_that_lacks_a_file_says_so_and_lists_only_what_is_there(site, tmp_path):
    names = [site.record("Gate", hour).name for hour in (1, 2)]
    assert site.run("run").status == 0
    damage(site.nas / "Gate" / names[0])
    done = site.run("export", "Gate", START_SEC, START_SEC + 86400, tmp_path / "case")
    assert done.status == 1
    assert set(contents(tmp_path / "case")) == {names[1], "SHA256SUMS", "index.html"}
    assert "not exported" in (tmp_path / "case" / "index.html").read_text()
    assert len((tmp_path / "case" / "SHA256SUMS").read_text().splitlines()) == 1
