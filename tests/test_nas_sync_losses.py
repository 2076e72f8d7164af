"""nas_sync.py: situations in which footage could be lost, or be believed to be where it is not."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import need
from nas_sync_helpers import HOUR_SEC, START_SEC, UUID, Site, contents

import nas_sync

DAY = "2026-11-19"
UNPRIVILEGED = ["--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture
def site(tmp_path):
    need("rsync")
    made = Site(tmp_path)
    made.init()
    return made


@pytest.fixture
def in_place(tmp_path):
    need("rsync")
    made = Site(tmp_path, organize=False)
    made.init()
    return made


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
            pytest.skip("not permitted: mount --bind")
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
    site.set(cameras=[{"name": "Gate", "rtsp_url": "rtsp://127.0.0.1/x"}])
    site.write(site.rec / "Gate" / "first.mp4", b"first" * 100, START_SEC + 600)
    assert site.call("hold", "add", "Gate", "2026-11-18T23:30Z", "2026-11-18T23:40Z").status == 0
    assert site.run("run").status == 0
    assert len(site.local()) == 1


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


# --- names and records ---


def test_hold_with_dry_run_changes_nothing(site):
    assert site.call("hold", "add", "Gate", f"{DAY}T09:30Z", f"{DAY}T09:40Z", "--dry_run").status == 0
    assert site.call("hold", "list").out == ""
