"""nas_sync.py: what reaches the NAS, what counts as proven, and that nothing else is ever deleted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from archive_servers import RsyncDaemon, SshServer, TcpProxy
from conftest import NOT_TESTED, need
from nas_sync_helpers import HOUR_SEC, START_SEC, UUID, Site, contents, wait_for

import nas_sync
from nas_sync import Footage, Record, SyncLog
from rhombus_logging import UsageError

DAY = "2026-11-19"


@pytest.fixture
def site(tmp_path):
    need("rsync")
    made = Site(tmp_path)
    made.init()
    return made


@pytest.fixture
def in_place(tmp_path):
    """An installation without a ready folder: files are archived where they are."""
    need("rsync")
    made = Site(tmp_path, organize=False)
    made.init()
    return made


def heals(site: Site, archive: Path | None = None) -> None:
    """The next run brings everything to the archive and then, and only then, deletes it here."""
    waiting = {Path(name).name: content for name, content in site.local().items() if name.endswith(".mp4")}
    done = site.run("run")
    assert done.status == 0, done.err
    archived = {Path(name).name: content for name, content in site.archived(archive).items()}
    assert waiting.items() <= archived.items()
    assert [name for name in site.local() if name.endswith(".mp4")] == []


# --- a day in the life ---


@pytest.mark.parametrize("kind", ["path", "ssh", "daemon"])
def test_footage_goes_to_the_nas_by_camera_and_date_is_proven_and_then_deleted_here(kind, tmp_path):
    need("rsync")
    site = Site(tmp_path)
    server = None
    if kind == "ssh":
        need("sshd")
        server = SshServer(tmp_path / "server")
        (tmp_path / "server").mkdir()
        site.set(nas={"nas_target_dir": "set below", "rsync_options": ["-e", server.ssh_command]})
    elif kind == "daemon":
        server = RsyncDaemon(tmp_path / "server")
        (tmp_path / "server").mkdir()
    if server:
        server.start()
        site.set(nas={"nas_target_dir": server.target})
    archive = server.root if server else site.nas
    try:
        site.init()
        first, second = site.record("Gate", 1), site.record("Yard", 2)
        clip, sidecar = site.clip()
        expected = {
            f"Gate/{DAY}/{first.name}": first.read_bytes(),
            f"Yard/{DAY}/{second.name}": second.read_bytes(),
            f"Door_{UUID}/{DAY}/{clip.name}": clip.read_bytes(),
            f"Door_{UUID}/{DAY}/{sidecar.name}": sidecar.read_bytes(),
        }
        done = site.run("run")
        assert (done.status, done.err.count("ERROR")) == (0, 0), done.err
        assert site.archived(archive) == expected
        assert list(site.local()) == [f"Door_{UUID}/{DAY}/{sidecar.name}"]  # sidecars stay
        assert done.rows[-1]["summary"]["steps"]["cleanup"] == {"deleted": 3}
        again = site.run("run")
        assert (again.status, again.rows[-1]["summary"]["steps"]) == (0, {"organize": {}, "backup": {}, "cleanup": {}})
    finally:
        if server:
            server.stop()


def test_without_a_ready_folder_files_are_archived_where_they_are(in_place):
    file, (clip, sidecar) = in_place.record("Gate", 1), in_place.clip()
    expected = {
        f"Gate/{file.name}": file.read_bytes(),
        f"Door_{UUID}/{clip.name}": clip.read_bytes(),
        f"Door_{UUID}/{sidecar.name}": sidecar.read_bytes(),
    }
    assert in_place.run("run").status == 0
    assert in_place.archived() == expected
    assert not file.exists()
    assert not clip.exists()
    assert sidecar.exists()
    assert file.parent.is_dir()


def test_evidence_and_finished_journals_are_archived_and_never_removed(in_place):
    evidence = in_place.folder / "evidence"
    in_place.set(analysis={"evidence_dir": str(evidence)})
    in_place.write(evidence / "Gate" / "a.jpg", b"a picture", START_SEC)
    journal = in_place.rec / ".rtsp_recorder" / "journal" / "Gate"
    old = in_place.write(journal / "2020-01-01.jsonl", b'{"kind": "down"}\n', START_SEC)
    today = in_place.write(journal / time.strftime("%Y-%m-%d.jsonl", time.gmtime()), b"{}\n", START_SEC)
    assert in_place.run("run").status == 0
    assert in_place.archived() == {"alerts/Gate/a.jpg": b"a picture", "journal/Gate/2020-01-01.jsonl": b'{"kind": "down"}\n'}
    assert old.exists()
    assert today.exists()
    in_place.write(old, b'{"kind": "down"}\n{"kind": "segment"}\n', START_SEC + 5)
    assert in_place.run("run").status == 0  # a line that came late: the longer journal takes its place
    assert in_place.archived()["journal/Gate/2020-01-01.jsonl"].endswith(b'{"kind": "segment"}\n')


def test_dry_run_shows_files_and_bytes_and_changes_nothing(site):
    file = site.record("Gate", 1)
    before = sorted(site.folder.rglob("*"))
    done = site.call("run", "--dry_run")
    assert (done.status, done.out.splitlines()[0]) == (0, f"organize\t{file.stat().st_size}\tGate/{file.name}")
    assert [path for path in sorted(site.folder.rglob("*")) if path not in before and path.name != "nas_sync.lock"] == []
    assert site.archived() == {}


def test_a_camera_and_a_number_of_files_can_be_chosen(site):
    site.record("Gate", 1), site.record("Gate", 2), site.record("Yard", 1)
    assert site.run("run", "--camera", "Gate", "--max_files", 1).status == 0
    assert list(site.archived()) == [f"Gate/{DAY}/20261119_010000.mp4"]
    assert sorted(site.local()) == ["Gate/20261119_020000.mp4", "Yard/20261119_010000.mp4"]


def test_cron_gets_no_line_from_a_quiet_run_that_went_well(site):
    site.record("Gate", 1)
    done = site.call("run", "--quiet")
    assert (done.status, done.out, done.err) == (0, "", "")


def test_an_older_backup_json_and_rsync_options_in_one_string_work_as_they_stand(tmp_path):
    need("rsync")
    site = Site(tmp_path)
    old = {name: site.config["nas"].pop(name) for name in ("nas_target_dir", "ready_for_backup_dir", "success_log_dir")}
    site.set()
    overlay = tmp_path / "backup.json"
    overlay.write_text(__import__("json").dumps({**old, "lock_dir": str(tmp_path / "lock"), "rsync_options": ["-av --progress"]}))
    site.record("Gate", 1)
    assert site.call("target", "init", "--backup_config", overlay).status == 0
    done = site.run("run", "--backup_config", overlay)
    assert (done.status, list(site.archived())) == (0, [f"Gate/{DAY}/20261119_010000.mp4"]), done.err


# --- the losses of older programs ---


def test_a_nas_that_is_not_mounted_gets_nothing_and_nothing_is_deleted(site):
    file = site.record("Gate", 1)
    site.nas.rename(site.folder / "elsewhere")
    site.nas.mkdir()  # the bare mount point
    done = site.run("run")
    assert done.status == 3
    assert "holds no .nas_sync_target: not mounted, mistyped, or not prepared yet" in done.err
    assert site.archived() == {}
    assert list(site.local()) == [f"Gate/{DAY}/{file.name}"]
    site.nas.rmdir()
    assert site.run("run").status == 3  # nor is the folder made
    assert not site.nas.exists()
    (site.folder / "elsewhere").rename(site.nas)
    heals(site)


def test_another_share_in_place_of_the_nas_is_refused(site, tmp_path):
    file = site.record("Gate", 1)
    site.nas.rename(tmp_path / "first")
    other = Site(tmp_path / "other")
    other.init()
    other.nas.rename(site.nas)
    done = site.run("run")
    assert (done.status, site.archived()) == (3, {})
    assert "another share?" in done.err
    assert list(site.local()) == [f"Gate/{DAY}/{file.name}"]
    shutil.rmtree(site.nas)
    (tmp_path / "first").rename(site.nas)
    heals(site)


def test_a_name_recorded_again_after_its_archiving_is_new_footage(site):
    site.record("Gate", 1, b"first" * 1000)
    heals(site)
    site.record("Gate", 1, b"other" * 1000)  # the hour that comes twice, at the same size and time
    done = site.run("run")
    assert (done.status, done.states("organize")) == (1, {"20261119_010000.mp4": "conflict"})
    assert site.archived() == {
        f"Gate/{DAY}/20261119_010000.mp4": b"first" * 1000,
        f"Gate/{DAY}/20261119_010000_1.mp4": b"other" * 1000,
    }
    assert site.local() == {}


def test_in_place_a_name_recorded_again_is_a_conflict_and_stays_on_both_sides(in_place):
    in_place.record("Gate", 1, b"first" * 1000)
    heals(in_place)
    again = in_place.record("Gate", 1, b"other" * 1001)
    done = in_place.run("run")
    assert (done.status, done.states("backup")) == (1, {again.name: "conflict"})
    assert again.read_bytes() == b"other" * 1001
    assert in_place.archived() == {f"Gate/{again.name}": b"first" * 1000}


def test_a_namesake_that_still_waits_is_kept_beside_the_new_one(site):
    site.record("Gate", 1, b"waits" * 1000)
    assert site.run("organize").status == 0
    site.record("Gate", 1, b"other" * 1000)
    assert site.run("organize").status == 1
    assert site.local() == {
        f"Gate/{DAY}/20261119_010000.mp4": b"waits" * 1000,
        f"Gate/{DAY}/20261119_010000_1.mp4": b"other" * 1000,
    }
    heals(site)


@pytest.mark.parametrize("place", ["rec", "ready"])
def test_a_file_that_somebody_has_open_for_writing_stays_however_old_it_looks(site, place):
    folder = site.ready / "Gate" / DAY if place == "ready" else None
    file = site.record("Gate", 1, folder=folder)
    size = file.stat().st_size
    with file.open("ab") as writer:
        done = site.run("run")
        assert (done.status, site.archived()) == (0, {})
        writer.write(b"the rest")
    os.utime(file, (START_SEC, START_SEC))
    heals(site)
    assert [len(content) for content in site.archived().values()] == [size + 8]


def test_a_writer_that_holds_a_proven_file_open_keeps_it_here(in_place):
    file = in_place.record("Gate", 1)
    assert in_place.run("backup").status == 0
    with file.open("r+b"):
        done = in_place.run("cleanup")
        assert (done.status, done.states("cleanup")) == (0, {file.name: "kept"})
        assert file.exists()
    heals(in_place)


def test_the_same_size_and_time_with_other_bytes_on_the_nas_is_not_proven(site):
    file = site.record("Gate", 1, b"good" * 1000)
    site.write(site.nas / "Gate" / DAY / file.name, b"zero" * 1000, file.stat().st_mtime)
    done = site.run("run")
    assert (done.status, done.states("backup")) == (1, {file.name: "conflict"})
    assert site.local() == {f"Gate/{DAY}/{file.name}": b"good" * 1000}
    assert site.archived() == {f"Gate/{DAY}/{file.name}": b"zero" * 1000}
    (site.nas / "Gate" / DAY / file.name).unlink()
    heals(site)


def test_a_file_that_the_nas_lost_after_its_proof_is_kept_and_sent_again(site):
    file = site.record("Gate", 1)
    assert site.run("organize").status == site.run("backup").status == 0
    (site.nas / "Gate" / DAY / file.name).unlink()
    done = site.run("cleanup")
    assert (done.status, done.states("cleanup")) == (1, {file.name: "lost"})
    assert list(site.local()) == [f"Gate/{DAY}/{file.name}"]
    heals(site)


def test_a_file_that_was_truncated_on_the_nas_after_its_proof_is_sent_again_and_the_rest_is_kept(site):
    file = site.record("Gate", 1, b"whole" * 1000)
    assert site.run("organize").status == site.run("backup").status == 0
    damaged = site.nas / "Gate" / DAY / file.name
    damaged.write_bytes(b"whole")
    assert site.run("cleanup").states("cleanup") == {file.name: "lost"}
    done = site.run("run")
    assert done.status == 0, done.err
    assert damaged.read_bytes() == b"whole" * 1000
    assert [kept.read_bytes() for kept in damaged.parent.glob("*.damaged-*")] == [b"whole"]
    assert site.local() == {}


def test_one_vanished_file_does_not_hold_up_the_others(site, monkeypatch):
    files = [site.record("Gate", hour) for hour in range(3)]
    target, hashes, found = opened(site)
    found[1].path.unlink()
    outcomes = target.send(found, hashes, nas_sync.Progress(shown=False))
    assert {one.footage.path.name: one.state for one in outcomes} == {
        files[0].name: "proven", files[1].name: "vanished", files[2].name: "proven"}  # fmt: skip
    heals(site)


def opened(site):
    """The NAS target in this process, and what waits."""
    arguments = nas_sync.build_parser().parse_args(["backup", "--config", str(site.folder / "config.yaml")])
    config = nas_sync.load_config(arguments.config, nas_sync.SECTIONS, site.folder)
    settings = nas_sync.settle(arguments, config, arguments.config)
    assert site.run("organize").status == 0
    work = nas_sync.Work(settings, HOUR_SEC, None)
    return work.target("nas"), work.hashes, work.look()


def test_names_with_odd_characters_are_archived_like_any_other(in_place):
    names = [
        "20261119_010000\nx.mp4", "20261119_010000\tx.mp4", "20261119_010000\udcff.mp4", " 20261119_010000 .mp4",
        "_20261119_010000 %41.mp4", r"20261119_010000\#012.mp4", "20261119_010000_\u00e9\u2028.mp4",
        "--delete_20261119_010000.mp4", "-n20261119_010000.mp4",
    ]  # fmt: skip
    for name in names:
        in_place.record("Gate", 1, name=name)
    done = in_place.run("run")
    assert done.status == 0, done.err
    assert sorted(in_place.archived()) == sorted(f"Gate/{name}" for name in names)
    assert in_place.local() == {}
    lines = b"".join(file.read_bytes() for file in in_place.synced.glob("*.synced")).splitlines()
    assert len(lines) == len(names)


# --- faults of the NAS ---


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 8 MB; only root may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(NOT_TESTED + "mount (as root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_nas_that_fills_up_keeps_what_arrived_and_the_rest_stays_here(site, small_disk):
    site.set(nas={"nas_target_dir": str(small_disk)})
    site.init()
    files = [site.record("Gate", hour, os.urandom(1 << 20)) for hour in range(10)]
    done = site.run("run")
    states = done.states("backup")
    assert done.status == 1
    assert set(states.values()) == {"proven", "failed"}
    proven = [name for name, state in states.items() if state == "proven"]
    assert 4 <= len(proven) < len(files)
    assert sorted(Path(name).name for name in site.local()) == sorted(name for name in states if name not in proven)
    assert "disk full or not writable on the target" in done.err
    for name in list(site.archived(small_disk))[:4]:
        (small_disk / name).unlink()
    heals_all(site, small_disk)


def heals_all(site: Site, archive: Path) -> None:
    """As `heals`, when the archive is too small for all at once."""
    for _ in range(4):
        waiting = site.local()
        if not waiting:
            return
        site.run("run")
        for name in site.archived(archive):
            if name not in site.local():
                (archive / name).unlink()
    raise AssertionError(f"still here: {sorted(site.local())}")


def test_a_read_only_nas_is_said_and_nothing_is_deleted(site, small_disk):
    site.set(nas={"nas_target_dir": str(small_disk)})
    site.init()
    site.record("Gate", 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = site.run("run")
    assert (done.status, set(done.states("backup").values())) == (1, {"failed"})
    assert len(site.local()) == 1
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    heals(site, small_disk)


def test_an_unmount_in_the_middle_of_a_run_makes_nothing_count_as_archived(site, small_disk):
    site.set(nas={"nas_target_dir": str(small_disk)})
    site.init()
    target, hashes, found = opened_after(site, lambda: site.record("Gate", 1))
    subprocess.run(["umount", str(small_disk)], check=True)
    with pytest.raises(nas_sync.CannotStart, match="was unmounted or replaced"):
        target.send(found, hashes, nas_sync.Progress(shown=False))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small_disk)], check=True)
    assert site.run("run").status == 3  # an empty disk is not the one that we know
    assert len(site.local()) == 1


def opened_after(site, prepare):
    prepare()
    return opened(site)


def test_a_reading_target_that_is_frozen_ends_the_run_in_time_and_frees_the_lock(tmp_path):
    need("rsync")
    with RsyncDaemon(tmp_path / "server") as server, TcpProxy(server.address) as proxy:
        site = Site(tmp_path, nas={"nas_target_dir": server.target_at(proxy.address[1]), "timeout": 2})
        site.init()
        site.record("Gate", 1, os.urandom(3_000_000))
        proxy.stall_after(1_000_000)
        began = time.monotonic()
        done = site.run("run")
        assert (done.status, time.monotonic() - began < 30) == (3, True), done.err
        assert len(site.local()) == 1
        proxy.resume()
        site.set(nas={"timeout": 20})
        heals(site, server.root)


def test_a_connection_that_is_cut_is_said_and_the_next_run_heals(tmp_path):
    need("rsync")
    with RsyncDaemon(tmp_path / "server") as server, TcpProxy(server.address) as proxy:
        site = Site(tmp_path, nas={"nas_target_dir": server.target_at(proxy.address[1]), "timeout": 4})
        site.init()
        for hour in range(3):
            site.record("Gate", hour, os.urandom(1_000_000))
        proxy.cut_after(1_500_000)
        done = site.run("run")
        assert done.status in (1, 3), done.err
        assert len(site.local()) >= 1
        heals(site, server.root)


def test_a_bit_that_flips_on_the_way_is_never_proven(tmp_path):
    need("rsync")
    with RsyncDaemon(tmp_path / "server") as server, TcpProxy(server.address) as proxy:
        site = Site(tmp_path, nas={"nas_target_dir": server.target_at(proxy.address[1]), "timeout": 4})
        site.init()
        content = os.urandom(1_000_000)
        site.record("Gate", 1, content)
        proxy.flip_after(500_000)
        done = site.run("run")
        archived = list(server.root.rglob("*.mp4"))
        if done.status:
            assert [*site.local().values()] == [content]
        else:  # rsync saw it by its own checksum and sent the file once more
            assert [file.read_bytes() for file in archived] == [content]
        heals(site, server.root)


def test_an_unknown_module_is_named_and_nothing_is_deleted(tmp_path):
    need("rsync")
    with RsyncDaemon(tmp_path / "server") as server:
        site = Site(tmp_path, nas={"nas_target_dir": server.target})
        site.init()
        site.record("Gate", 1)
        site.set(nas={"nas_target_dir": server.target_at(server.port, "typo")})
        done = site.run("run")
        assert (done.status, len(site.local())) == (3, 1)
        assert "unknown module" in done.err
        site.set(nas={"nas_target_dir": server.target})
        heals(site, server.root)


def test_ssh_that_refuses_or_meets_another_host_key_stops_the_run_and_nothing_is_deleted(tmp_path):
    need("rsync")
    need("sshd")
    (tmp_path / "server").mkdir()
    with SshServer(tmp_path / "server") as server:
        site = Site(tmp_path, nas={"nas_target_dir": server.target, "rsync_options": ["-e", server.ssh_command]})
        site.init()
        site.record("Gate", 1)
        server.reject()
        done = site.run("run")
        assert (done.status, len(site.local())) == (3, 1)
        assert "Permission denied" in done.err
        server.accept()
        server.change_host_key()
        done = site.run("run")
        assert (done.status, len(site.local())) == (3, 1)
        assert "cannot be reached" in done.err
        server._trust_host_key()
        heals(site, server.root)


def test_a_killed_sshd_leaves_nothing_unproven_and_the_next_run_heals(tmp_path):
    need("rsync")
    need("sshd")
    (tmp_path / "server").mkdir()
    with SshServer(tmp_path / "server") as server:
        site = Site(tmp_path, nas={"nas_target_dir": server.target, "rsync_options": ["-e", server.ssh_command]})
        site.init()
        for hour in range(4):
            site.record("Gate", hour, os.urandom(2_000_000))
        with site.start("run", "--bwlimit", "2M") as process:
            wait_for(lambda: list(server.root.rglob(".2026*.mp4.*")), "a file is on its way")
            server.kill_sessions()
            _, err = process.communicate(timeout=60)
        assert process.returncode in (1, 3), err
        assert len(site.local()) >= 1
        heals(site, server.root)


def test_a_nas_whose_rsync_knows_no_fsync_is_used_without_and_deletion_waits_longer(site, tmp_path):
    old = tmp_path / "old_rsync"
    old.write_text('#!/bin/sh\ncase "$*" in *--fsync*) echo "rsync: --fsync: unknown option" >&2; exit 1;; esac\nexec rsync "$@"\n')
    old.chmod(0o755)
    (tmp_path / "ssh").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    site.set(nas={"nas_target_dir": f"nas:{site.nas}", "rsync_options": ["-e", str(tmp_path / "ssh"), f"--rsync-path={old}"]})
    file = site.record("Gate", 1)
    done = site.run("run")
    assert (done.status, done.states("backup")) == (0, {file.name: "proven"}), done.err
    assert "knows no --fsync" in done.err
    assert "checksum-unsynced" in "".join(one.read_text() for one in site.synced.glob("*"))
    assert len(site.local()) == 1
    assert site.run("target", "check").status == 0
    need("faketime")
    done = site.run("run", prefix=["faketime", "-f", "+4000s"])
    assert (done.status, site.local()) == (0, {}), done.err
