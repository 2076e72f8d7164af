"""nas_sync.py: situations in which footage could be lost, or be believed to be where it is not."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from archive_servers import FaultProxy, RcloneS3, wait_until
from conftest import NOT_TESTED, need
from nas_sync_helpers import HOUR_SEC, START_SEC, UUID, Site, contents
from test_nas_sync import small_disk

import nas_sync

__all__ = ["small_disk"]  # a fixture

DAY = "2026-11-19"
UNPRIVILEGED = ["--bounding-set=-dac_override,-dac_read_search"]


def unprivileged() -> list[str]:
    """Root may read everything; as what stands in front of a command this takes that away."""
    return [need("setpriv"), *UNPRIVILEGED] if os.geteuid() == 0 else ["env"]


# --- the archive is not where it seems to be ---


@pytest.mark.parametrize("kind", ["same path", "link", "mount"])
def test_a_target_that_is_the_footage_folder_itself_is_no_archive(kind, tmp_path):
    """What is compared there is each file with itself."""
    need("rsync")
    site = Site(tmp_path, organize=False)
    target = site.rec
    if kind != "same path":
        target = tmp_path / "other"
        target.symlink_to(site.rec) if kind == "link" else target.mkdir()
    if kind == "mount":
        done = subprocess.run([need("mount"), "--bind", str(site.rec), str(target)], capture_output=True)
        if done.returncode:
            pytest.skip(NOT_TESTED + "mount (as root)")
    try:
        site.set(nas={"nas_target_dir": str(target)})
        file = site.record("Gate", 1)
        site.call("target", "init")
        done = site.run("run")
        assert file.exists()
        assert done.status == 3
        assert "is the footage itself" in done.err
    finally:
        if kind == "mount":
            subprocess.run(["umount", "-l", str(target)], check=True)


def test_a_link_on_the_nas_to_the_local_file_is_no_copy(site):
    file = site.record("Gate", 1)
    assert site.run("organize").status == 0
    [ready] = site.ready.glob("Gate/*/*.mp4")
    copy = site.nas / "Gate" / DAY / file.name
    copy.parent.mkdir(parents=True)
    copy.hardlink_to(ready)
    done = site.run("run")
    assert (done.status, ready.exists()) == (3, True)
    assert "one and the same file" in done.err


def test_a_ready_folder_whose_disk_is_not_mounted_gets_no_footage(site):
    site.record("Gate", 1)
    assert site.run("run").status == 0
    site.ready.rename(site.folder / "unmounted")
    site.ready.mkdir()
    file = site.record("Gate", 2)
    done = site.run("run")
    assert (done.status, file.exists()) == (3, True), done.err
    assert "is its disk mounted?" in done.err
    assert list(site.ready.iterdir()) == []


def test_a_first_run_with_the_logs_of_older_scripts_is_not_taken_for_an_unmounted_disk(tmp_path):
    need("rsync")
    site = Site(tmp_path)
    site.write(site.synced / "2026-11-18.synced", b"/data/ready/Gate/2026-11-18/a.mkv\n", START_SEC)
    site.record("Gate", 1)
    site.init()
    assert site.run("run").status == 0
    assert len(site.archived()) == 1


def test_a_file_of_the_same_size_that_was_put_in_place_of_a_proven_one_is_noticed_before_deleting(site):
    file = site.record("Gate", 1)
    assert site.run("organize").status == site.run("backup").status == 0
    copy = site.nas / "Gate" / DAY / file.name
    copy.write_bytes(os.urandom(copy.stat().st_size))
    done = site.run("cleanup")
    assert (done.status, len(site.local())) == (1, 1), done.err
    assert site.run("run").status == 0
    assert site.local() == {}


# --- holds ---


def test_a_hold_counts_by_the_time_in_the_sidecar_and_not_by_a_local_time_in_the_name(site):
    """An alert at 05:00 UTC has the local time of its location in its name."""
    content = b"an alert" * 1000
    name = f"Door_{UUID}_20261119_140000_alert_MOTION_x1_video.mp4"
    site.write(site.clips / name, content, START_SEC + 90_000)
    start_ms = (START_SEC + 5 * HOUR_SEC) * 1000
    about = {"schema": 1, "requested": {"start_ms": start_ms, "end_ms": start_ms + 60_000}}
    site.write((site.clips / name).with_suffix(".json"), json.dumps(about).encode(), START_SEC + 90_000)
    assert site.call("hold", "add", "Door", f"{DAY}T05:00Z", f"{DAY}T05:10Z").status == 0
    assert site.run("run").status == 0
    assert content in site.local().values()


def test_a_file_that_is_older_by_its_time_than_by_its_name_is_held_in_doubt(site):
    """As after a restore without times, or with a camera's clock that was wrong."""
    file = site.record("Gate", 9)
    os.utime(file, (START_SEC - 1000, START_SEC - 1000))
    assert site.call("hold", "add", "Gate", f"{DAY}T09:30Z", f"{DAY}T09:40Z").status == 0
    assert site.run("run").status == 0
    assert len(site.local()) == 1


def test_a_file_without_a_time_in_its_name_is_held_in_doubt(site):
    """It was written until 00:10, so it is in the folder of that day; it began the day before."""
    site.config["cameras"] = [{"name": "Gate", "rtsp_url": "rtsp://127.0.0.1/x"}]
    site.set()
    site.write(site.rec / "Gate" / "first.mp4", b"first" * 100, START_SEC + 600)
    assert site.call("hold", "add", "Gate", "2026-11-18T23:30Z", "2026-11-18T23:40Z").status == 0
    assert site.run("run").status == 0
    assert len(site.local()) == 1


@pytest.mark.parametrize(("name", "start_sec"), [("20261120_000000.mp4", -0.4), ("2026-11-19_23-30-00.mp4", -1800)])
def test_a_file_that_crosses_utc_midnight_is_held_until_its_end(site, name, start_sec):
    """The first begins within a second of midnight: its folder is of one day by the journal, its name of the next."""
    midnight = START_SEC + 24 * HOUR_SEC
    file = site.write(site.rec / "Gate" / name, b"a night" * 100, midnight + HOUR_SEC)
    line = {"kind": "segment", "file": f"Gate/{name}", "start": midnight + start_sec, "end": midnight + HOUR_SEC}
    site.write(site.rec / ".rtsp_recorder" / "journal" / "Gate" / f"{DAY}.jsonl", json.dumps(line).encode(), START_SEC)
    assert site.call("hold", "add", "Gate", "2026-11-20T00:30Z", "2026-11-20T00:40Z").status == 0
    assert site.run("run").status == 0
    assert site.local().keys() == {f"Gate/{DAY}/{file.name}"}


@pytest.mark.parametrize("name", ["Gate", UUID, "Door", f"door_{UUID}"])
def test_a_hold_covers_the_recordings_and_the_clips_of_one_device_by_whichever_name(site, name):
    """cameras[].rhombus_uuid says that both are the same."""
    site.config["cameras"] = [{"name": "Gate", "rtsp_url": "rtsp://127.0.0.1/1", "rhombus_uuid": UUID}]
    site.set()
    file, (clip, sidecar) = site.record("Gate", 9), site.clip(START_SEC + 9 * HOUR_SEC)
    hold = (name, f"{DAY}T09:00Z", f"{DAY}T09:01Z")
    done = site.call("hold", "add", *hold)
    assert (done.status, "(the same device)" in done.err) == (0, True)
    assert site.run("run").status == 0
    names = {Path(path).name for path in site.local()}
    assert names == {file.name, clip.name, sidecar.name}
    assert site.call("hold", "remove", *hold).status == 0
    assert site.call("hold", "list").out == ""
    assert site.run("run").status == 0
    assert {Path(path).name for path in site.local()} == {sidecar.name}


def test_holds_are_still_known_when_a_ready_folder_comes_into_use(in_place):
    file = in_place.record("Gate", 9)
    assert in_place.call("hold", "add", "Gate", f"{DAY}T09:30Z", f"{DAY}T09:40Z").status == 0
    in_place.set(nas={"ready_for_backup_dir": str(in_place.ready)})
    assert in_place.call("target", "init").status == 0
    assert in_place.run("run").status == 0
    assert [Path(name).name for name in in_place.local()] == [file.name]
    assert "Gate" in in_place.call("hold", "list").out
    assert in_place.call("hold", "remove", "Gate", f"{DAY}T09:30Z", f"{DAY}T09:40Z").status == 0
    assert in_place.run("run").status == 0
    assert in_place.local() == {}


# --- one odd thing does not stop the rest ---


@pytest.mark.parametrize("place", ["ready/lost+found", "rec/Locked", "evidence/private"])
def test_a_folder_that_we_may_not_read_is_named_and_does_not_stop_the_others(place, site):
    site.set(analysis={"evidence_dir": str(site.folder / "evidence")})
    locked = site.folder / place
    locked.mkdir(parents=True)
    locked.chmod(0)
    site.record("Gate", 1)
    done = site.run("run", prefix=unprivileged())
    assert "bug" not in done.err
    assert len(site.archived()) == 1
    expected = (0, 0) if "lost" in place else (1, 1)  # every new filesystem has one, and it is root's
    assert (done.status, done.err.count(f"{locked}: this folder cannot be read: Permission denied")) == expected


@pytest.mark.parametrize("value", ["1e30", "NaN", '"x"'])
def test_a_sidecar_or_a_journal_with_an_impossible_time_costs_nothing_but_itself(value, site):
    clip, sidecar = site.clip()
    old_sec = sidecar.stat().st_mtime
    site.write(sidecar, b'{"requested": {"start_ms": %s}}' % value.encode(), old_sec)
    file = site.record("Gate", 1)
    line = f'{{"kind": "segment", "file": "{file.name}", "start": {value}}}\n'
    site.write(site.rec / nas_sync.RECORDER_JOURNAL / "Gate" / f"{DAY}.jsonl", line.encode(), START_SEC)
    done = site.run("run")
    assert done.status == 0, done.err
    assert {clip.name, file.name} <= {Path(name).name for name in site.archived()}


# --- names and records ---


def test_a_name_that_is_recorded_again_and_again_is_archived_every_time(site):
    """A host without a clock of its own starts with the same time after every power cut."""
    for number in range(4):
        file = site.record("Gate", 1, os.urandom(1000 + number))
        site.run("run")
        assert site.local() == {}
    assert len(site.archived()) == 4
    assert file.name in {Path(name).name for name in site.archived()}


def test_the_last_record_counts_also_when_the_clock_stood_wrong(tmp_path):
    """Records of the year 2037 must not outlive those of today, nor today's those of a host that woke up in 1970."""
    made = nas_sync.Record("Gate/a.mp4", 5, 1, "0" * 64, "nas1", "checksum", START_SEC)
    for at_sec, proof in ((START_SEC, "checksum"), (START_SEC * 1.2, "checksum"), (1000, nas_sync.LOST),
                          (START_SEC + 1, "checksum"), (START_SEC + 2, nas_sync.LOST)):  # fmt: skip
        nas_sync.SyncLog(tmp_path).append([nas_sync.replace(made, at_sec=at_sec, proof=proof)])
        last = nas_sync.SyncLog(tmp_path).get("Gate/a.mp4", "nas1")
        assert (last.at_sec, last.proof) == (at_sec, proof)


def test_a_proof_that_is_far_in_the_future_is_made_anew_and_then_counts(site):
    site.set(retention={"grace_sec": 0})
    site.record("Gate", 1)
    assert site.run("organize").status == site.run("backup").status == 0
    [log] = site.synced.glob("*.synced")
    record = nas_sync.read_record(log.read_bytes().rstrip(b"\n"))
    log.unlink()
    nas_sync.SyncLog(site.synced).append([nas_sync.replace(record, at_sec=time.time() + 10 * 365 * 86400)])
    assert site.run("run").status == 0
    assert site.local() == {}


def test_cleanup_that_takes_too_long_says_what_waits_and_ends_with_status_1(site):
    for hour in range(3):
        site.record("Gate", hour)
    assert site.run("organize").status == site.run("backup").status == 0
    done = site.run("cleanup", "--max_duration", "0.0001")
    assert (done.status, len(site.local())) == (1, 3), done.err
    assert "--max_duration is over" in done.err


def test_hold_with_dry_run_changes_nothing(site):
    done = site.call("hold", "add", "Gate", f"{DAY}T09:30Z", f"{DAY}T09:40Z", "--dry_run")
    assert (done.status, "would be spared by cleanup" in done.err) == (0, True)
    listed = site.call("hold", "list")
    assert (listed.out, "nothing is held" in listed.err) == ("", True)


def test_state_that_was_damaged_is_no_bug(site):
    """Valid JSON of another shape."""
    site.record("Gate", 1)
    assert site.run("organize").status == 0
    [file] = site.ready.glob("Gate/*/*.mp4")
    (site.ready / ".nas_sync" / "hashes.json").write_text(json.dumps({str(file): 5, "other": {}}))
    done = site.run("backup")
    assert done.status == 0, done.err
    assert contents(site.nas)


def test_a_clip_and_its_sidecar_get_the_same_date_also_when_a_run_ends_between_them(site):
    """A date in the local time of its location, which is another day than in UTC."""
    content = b"an alert" * 1000
    name = f"Door_{UUID}_20261120_080000_alert_MOTION_x1_video.mp4"
    start_ms = (START_SEC + 23 * HOUR_SEC) * 1000
    site.write(site.clips / name, content, START_SEC + 90_000)
    about = {"schema": 1, "requested": {"start_ms": start_ms, "end_ms": start_ms + 60_000}}
    site.write((site.clips / name).with_suffix(".json"), json.dumps(about).encode(), START_SEC + 90_000)
    for _ in range(2):
        assert site.run("organize", "--limit", "1").status == 0
    assert {file.parent.name for file in site.ready.glob("*/*/*")} == {DAY}
    assert len(site.local()) == 2


JOURNAL = b'{"kind":"down","start":1}\n{"kind":"segm'


@pytest.mark.slow
def test_a_server_that_lost_its_metadata_still_gets_journals_that_changed_and_loses_none_of_others(tmp_path):
    """rclone keeps metadata in memory, so a restart of it is enough."""
    need("rclone")
    cases = {  # camera -> its journal now, what the bucket holds, what becomes of it
        "Grown": (JOURNAL + b'ent","start":3}\n', JOURNAL, "proven"),
        "Torn": (JOURNAL[:26] + b'{"kind":"down","start":4}\n', JOURNAL, "proven"),  # its last line was replaced
        "Other": (JOURNAL + b"\n", b"what somebody else has put there", "conflict"),
        "Like": (JOURNAL + b"\n", JOURNAL[::-1], "conflict"),  # other of that size
    }
    with RcloneS3(tmp_path) as server:
        bucket = server.new_bucket()
        site = Site(tmp_path / "site", nas={"nas_target_dir": None}, s3=server.config(bucket))
        site.init()
        keys, journals = ({camera: root / camera / f"{DAY}.jsonl" for camera in cases}
                          for root in (server.root / bucket / "journal", site.rec / nas_sync.RECORDER_JOURNAL))
        for journal in journals.values():
            site.write(journal, JOURNAL, START_SEC)
        assert site.run("run").status == 0
        server.stop()
        server.start()
        assert {key.read_bytes() for key in keys.values()} == {JOURNAL}
        for camera, (now, there, _) in cases.items():
            keys[camera].write_bytes(there)
            site.write(journals[camera], now, START_SEC + HOUR_SEC)
        for wanted in (("proven", "conflict"), ("conflict",)):
            done = site.run("run")
            states = {row["camera"]: row["state"] for row in done.rows if row.get("step") == "upload"}
            assert (done.status, states) == (1, {camera: state for camera, (_, _, state) in cases.items()
                                                 if state in wanted}), done.err  # fmt: skip
            for camera, (now, there, state) in cases.items():
                assert keys[camera].read_bytes() == (now if state == "proven" else there), camera


@pytest.mark.slow
def test_a_full_disk_while_a_large_file_is_on_its_way_to_s3_costs_one_sentence_and_leaves_no_parts(
    small_disk, tmp_path
):
    need("rclone")
    with RcloneS3(tmp_path) as server, FaultProxy(server.address) as proxy:
        site = Site(tmp_path / "site", s3=server.config(server.new_bucket(), proxy.url),
                    nas={"nas_target_dir": None, "success_log_dir": str(small_disk / "synced")})  # fmt: skip
        (site.folder / "config.yaml").chmod(0o600)
        site.init()
        site.record("Gate", 1)
        site.record("Gate", 2, os.urandom(17 << 20))
        (small_disk / "synced").mkdir(exist_ok=True)
        with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        part = proxy.add("delay", method="PUT", target="partNumber=2", seconds=2)
        proxy.add("delay", method="PUT", target="_010000", then=lambda: wait_until(lambda: part.happened, "a part"))
        done = site.run("run", prefix=["env"])
        assert (done.status, part.happened) == (3, 1), done.err
        problems = [line for line in done.err.splitlines() if " INFO " not in line]
        assert len(problems) == 1, done.err
        assert "the sync log cannot be written: No space left on device" in problems[0]
        assert json.loads((site.ready / ".nas_sync" / "s3_uploads.json").read_text()) == {}
        assert len(site.local()) == 2
        (small_disk / "filler").unlink()
        done = site.run("run")
        assert (done.status, site.local()) == (0, {}), done.err


def test_a_login_in_the_endpoint_is_refused_and_not_shown(site):
    site.set(s3={"bucket": "b", "endpoint": "https://key:a-secret@example.com"}, nas={"nas_target_dir": None})
    done = site.call("target", "check", "--debug")
    assert done.status == 2
    assert "a-secret" not in done.err


# --- power cuts of the NAS ---


@pytest.fixture
def disk_image(tmp_path):
    """An ext4 in a file, mounted; of what is not synced, the file knows nothing. Only root may do that."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as handle:
        handle.truncate(64 << 20)
    subprocess.run([need("mkfs.ext4"), "-q", "-F", str(image)], check=True, stdin=subprocess.DEVNULL)
    with mounted(image, folder):
        yield image, folder


@contextlib.contextmanager
def mounted(image, folder):
    folder.mkdir(exist_ok=True)
    command = [need("mount"), "-o", "loop,commit=300", str(image), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(NOT_TESTED + f"mount (it is there, but does not work here: {done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("syncs", [True, False])
def test_a_power_cut_of_the_nas_after_the_proof_costs_nothing(syncs, site, disk_image, tmp_path):
    """The image is copied while everything stands still. Without --fsync all is gone, and still here."""
    image, disk = disk_image
    site.set(nas={"nas_target_dir": str(disk)})
    site.init()
    os.sync()
    state = site.ready / ".nas_sync" / "targets.json"
    known = json.loads(state.read_text())
    known["nas"]["fsync"] = syncs
    state.write_text(json.dumps(known))
    files = {site.record("Gate", hour, os.urandom(200_000)).name: hour for hour in range(8)}
    assert site.run("organize").status == 0
    here = {Path(name).name: content for name, content in site.local().items()}
    done = site.run("backup")
    assert set(done.states("backup").values()) == {"proven"}, done.err
    after = shutil.copyfile(image, tmp_path / "after")
    with mounted(after, tmp_path / "again") as again:
        there = {Path(name).name: content for name, content in site.archived(again).items()}
        intact = [name for name in files if there.get(name) == here[name]]
        assert len(intact) >= len(files) - 1 if syncs else intact == []
        site.set(nas={"nas_target_dir": str(again)})
        done = site.run("cleanup")
        left = {Path(name).name for name in site.local()}
        assert left == (set(files) - set(intact) if syncs else set(files))
        if not syncs:  # within the hour that such files stay; it passes
            assert done.states("cleanup") == {}
            records = list(nas_sync.SyncLog(site.synced))
            aged = [nas_sync.replace(one, at_sec=one.at_sec - 2 * HOUR_SEC) for one in records]
            nas_sync.SyncLog(site.synced).append(aged)
            done = site.run("cleanup")
            assert set(done.states("cleanup").values()) == {"lost"}
            assert {Path(name).name for name in site.local()} == set(files)
        site.run("backup")
        assert {Path(name).name: content for name, content in site.archived(again).items()}.items() >= here.items()


def test_a_clip_that_is_not_what_its_sidecar_says_stays_here(site):
    """It was damaged between the download and the archive, so what is archived is not what was recorded."""
    clip, _ = site.clip()
    site.write(clip, b"b clip" * 1000, START_SEC + 90_000)
    done = site.run("run")
    assert b"b clip" * 1000 in site.local().values()
    assert "its sidecar tells another SHA-256" in done.err
