"""nas_sync.py: what reaches the NAS, what counts as proven, and that nothing else is ever deleted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from archive_servers import RsyncDaemon, SshServer, TcpProxy
from conftest import NOT_TESTED, need
from nas_sync_helpers import HOUR_SEC, START_SEC, UUID, Site, contents, wait_for
from test_rhombus_logging import mails

import nas_sync
from nas_sync import Record, SyncLog

DAY = "2026-11-19"
__all__ = ["mails"]  # a fixture


def heals(site: Site, archive: Path | None = None) -> None:
    """The next run brings everything to the archive and then, and only then, deletes it here."""
    waiting = {Path(name).name: content for name, content in site.local().items() if name.endswith(".mp4")}
    done = site.run("run")
    assert done.status == 0, done.err
    archived = {Path(name).name: content for name, content in site.archived(archive).items()}
    assert waiting.items() <= archived.items()
    assert [name for name in site.local() if name.endswith(".mp4")] == []


# --- a day in the life ---


@pytest.mark.slow
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
        nothing = {"organize": {}, "backup": {}, "verify": {}, "cleanup": {}}
        assert (again.status, again.rows[-1]["summary"]["steps"]) == (0, nothing)
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
    line = b'{"kind": "down"}\n'
    assert in_place.archived() == {"alerts/Gate/a.jpg": b"a picture", "journal/Gate/2020-01-01.jsonl": line}
    assert old.exists()
    assert today.exists()
    in_place.write(old, b'{"kind": "down"}\n{"kind": "segment"}\n', START_SEC + 5)
    assert in_place.run("run").status == 0  # a line that came late: the longer journal takes its place
    assert in_place.archived()["journal/Gate/2020-01-01.jsonl"].endswith(b'{"kind": "segment"}\n')


def test_dry_run_shows_files_and_bytes_and_changes_nothing(site):
    file = site.record("Gate", 1)
    before = {*site.folder.rglob("*"), site.ready / ".nas_sync" / "nas_sync.lock"}
    done = site.call("run", "--dry_run")
    assert (done.status, done.out.splitlines()[0]) == (0, f"organize\t{file.stat().st_size}\tGate/{file.name}")
    assert set(site.folder.rglob("*")) <= before
    assert site.archived() == {}


def test_a_camera_and_a_number_of_files_can_be_chosen(site):
    site.record("Gate", 1), site.record("Gate", 2), site.record("Yard", 1)
    assert site.run("run", "--camera", "Gate", "--limit", 1).status == 0
    assert list(site.archived()) == [f"Gate/{DAY}/20261119_010000.mp4"]
    assert sorted(site.local()) == ["Gate/20261119_020000.mp4", "Yard/20261119_010000.mp4"]


def test_conflicts_that_last_do_not_use_up_the_limit_of_every_run(in_place):
    files = [in_place.record("Gate", hour) for hour in range(4)]
    for one in files[:2]:
        in_place.write(in_place.nas / "Gate" / one.name, b"other", START_SEC)
    first = in_place.run("backup", "--limit", 2)
    assert set(first.states("backup").values()) == {"conflict"}
    done = in_place.run("backup", "--limit", 2)
    assert (done.status, done.states("backup")) == (0, {one.name: "proven" for one in files[2:]})
    assert set(in_place.run("backup", "--limit", 2).states("backup").values()) == {"conflict"}


@pytest.mark.parametrize(
    ("command", "flag"),
    [(["find", "Gate", "--at", "2026-11-19"], "--limit"), (["status"], "--dry_run"), (["hold", "list"], "--every"),
     (["target", "check"], "--camera"), (["backup"], "--delete_many"), (["cleanup"], "--deep"),
     (["export", "Gate", "2026-11-19", "2026-11-20", "/tmp"], "--at"), (["run"], "--bogus")],
)  # fmt: skip
def test_a_flag_that_means_nothing_to_a_command_is_refused_in_one_sentence(site, command, flag, capsys):
    done = site.call(*command, f"{flag}=1")
    assert (done.status, f"{command[0]}: {flag} means nothing here" in done.err) == (2, True), done.err
    assert len(done.err.splitlines()) == 1
    with pytest.raises(SystemExit):
        nas_sync.main([command[0], "--help"])
    assert not re.search(rf"{flag}\b", capsys.readouterr().out)


def test_words_may_stand_on_both_sides_of_a_flag(site, tmp_path):
    file = site.record("Gate", 1)
    back, case = tmp_path / "back", tmp_path / "case"
    for words in (("fetch", "Gate", "--at", f"{DAY}T01:30Z", back),
                  ("export", "Gate", "--bwlimit", "10M", f"{DAY}T01:00Z", f"{DAY}T02:00Z", case)):  # fmt: skip
        done = site.call(*words)
        assert done.status == 0, done.err
    assert (back / file.name).read_bytes() == (case / file.name).read_bytes() == file.read_bytes()
    assert site.call("fetch", "Gate", "--sideways", back).status == 2
    assert "status: Gate means nothing here" in site.call("status", "Gate").err


def test_every_line_on_stdout_is_json_when_that_is_asked_for_and_the_last_is_the_summary(site):
    for words in (("target", "init"), ("target", "check")):
        *rows, last = site.run(*words).rows
        assert [(row["target"], row["state"], row["address"]) for row in rows] == [("nas", "ready", str(site.nas))]
        assert last["summary"]["status"] == 0
    stretch = ("Gate", f"{DAY}T09:00Z", f"{DAY}T10:00Z")
    held = {"camera": "Gate", "start": START_SEC + 9 * HOUR_SEC, "end": START_SEC + 10 * HOUR_SEC}
    for words, expected in ((("list",), []), (("add", *stretch, "--dry_run"), []), (("add", *stretch), [held]),
                            (("list",), [held]), (("remove", *stretch), [])):  # fmt: skip
        *rows, last = site.run("hold", *words).rows
        assert (rows, last) == (expected, {"summary": {"status": 0, "holds": len(expected)}}), words
    (site.nas / ".nas_sync_target").unlink()
    done = site.run("target", "check")
    assert (done.status, done.rows[0]["state"]) == (3, "failed")
    assert "holds no .nas_sync_target" in done.rows[0]["why"]


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
    overlay.write_text(json.dumps({**old, "lock_dir": str(tmp_path / "lock"), "rsync_options": ["-av --progress"]}))
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
    (outcomes,) = target.send(found, hashes, nas_sync.Progress(shown=False))
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    refusal = 'case "$*" in *--fsync*) echo "rsync: --fsync: unknown option" >&2; exit 1;; esac'
    old.write_text(f'#!/bin/sh\n{refusal}\nexec rsync "$@"\n')
    old.chmod(0o755)
    (tmp_path / "ssh").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (tmp_path / "ssh").chmod(0o755)
    options = ["-e", str(tmp_path / "ssh"), f"--rsync-path={old}"]
    site.set(nas={"nas_target_dir": f"nas:{site.nas}", "rsync_options": options})
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


# --- runs that are interrupted, and runs side by side ---


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_the_lock_with_its_rsync_and_the_next_run_goes_on(site):
    for hour in range(3):
        site.record("Gate", hour, os.urandom(1_000_000))
    with site.start("run", "--bwlimit", "1M") as process:
        wait_for(lambda: list(site.nas.rglob(".2026*.mp4.*")), "a file is on its way")
        process.kill()
        process.communicate(timeout=10)
    done = site.run("run")
    assert (done.status, len(site.local())) == (4, 3), done.err  # rsync still runs
    assert "another run holds" in done.err
    done = site.run("run", "--lock_wait", "30")
    assert (done.status, site.local()) == (0, {}), done.err


def test_sigterm_ends_a_run_within_seconds_with_its_children_and_leaves_it_resumable(site):
    for hour in range(3):
        site.record("Gate", hour, os.urandom(1_000_000))
    with site.start("run", "--bwlimit", "500K") as process:
        wait_for(lambda: list(site.nas.rglob(".2026*.mp4.*")), "a file is on its way")
        began = time.monotonic()
        process.terminate()
        process.communicate(timeout=10)
    assert (process.returncode, time.monotonic() - began < 5) == (143, True)
    assert len(site.local()) == 3
    heals(site)  # at once: nothing holds the lock


def test_a_killed_rsync_is_said_and_what_arrived_is_proven(site):
    for hour in range(3):
        site.record("Gate", hour, os.urandom(1_000_000))
    with site.start("run", "--bwlimit", "1M", "--json") as process:
        wait_for(lambda: list(site.nas.rglob("*01*.mp4*")), "the second file is on its way")
        for pid in rsyncs_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    assert '"state": "proven"' in out
    assert 1 <= len(site.local()) <= 2
    heals(site)


@pytest.mark.parametrize("given", ["", "soon"])
def test_a_limit_of_time_that_is_none_is_refused(given, site):
    """As of a variable of the shell that is not set: without a limit it might run for days."""
    done = site.call("run", "--max_duration", given)
    assert done.status == 2 and "--max_duration" in done.err and "is not a duration" in done.err


def rsyncs_of(pid: int) -> list[int]:
    """The children of a process and theirs."""
    found = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [other for one in found for other in rsyncs_of(one)]


@pytest.mark.slow
def test_a_run_that_takes_too_long_stops_and_says_what_waits(site):
    for hour in range(3):
        site.record("Gate", hour, os.urandom(1_000_000))
    done = site.run("backup", "--max_duration", "0.5")
    assert done.status == 0  # nothing organized yet
    assert site.run("organize").status == 0
    done = site.run("backup", "--max_duration", "1", "--bwlimit", "500K")
    assert done.status in (1, 3), done.err
    assert len(site.local()) == 3
    heals(site)


def test_a_service_goes_round_until_sigterm_and_then_ends_with_status_0(site):
    site.record("Gate", 1)
    with site.start("run", "--every", "1") as process:
        wait_for(lambda: site.local() == {} and site.archived(), "the first round")
        site.record("Gate", 2)
        wait_for(lambda: len(site.archived()) == 2, "the second round")
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 0


def test_a_move_across_filesystems_that_was_interrupted_is_repeated(tmp_path):
    need("rsync")
    site = Site(tmp_path)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        site.set(nas={"ready_for_backup_dir": other})
        site.init()
        file = site.record("Gate", 1)
        content, mtime_ns = file.read_bytes(), file.stat().st_mtime_ns
        site.write(Path(other) / "Gate" / DAY / f"{file.name}.nas_sync.part", content[:500], time.time())
        done = site.run("organize")
        assert done.status == 0, done.err
        assert contents(Path(other)) == {f"Gate/{DAY}/{file.name}": content}
        assert (Path(other) / "Gate" / DAY / file.name).stat().st_mtime_ns == mtime_ns
        assert not file.exists()
        site.write(file, content, START_SEC)  # killed after the copy, before the old name went
        assert site.run("organize").status == 0
        assert contents(Path(other)) == {f"Gate/{DAY}/{file.name}": content}
        assert not file.exists()


def test_a_name_that_was_reserved_by_a_run_that_was_killed_is_given_to_its_file(site):
    """Where links do not exist, an empty file reserves the name until the file is renamed to it."""
    file, content = site.record("Gate", 1), b"footage" * 1000
    site.write(file, content, START_SEC)
    reserved = site.write(site.ready / "Gate" / DAY / file.name, b"", time.time())
    site.write(reserved.with_name(f"{file.name}.nas_sync.part"), content, time.time())
    done = site.run("run")
    assert done.status == 0, done.err
    assert site.archived() == {f"Gate/{DAY}/{file.name}": content}
    fetched = site.write(site.folder / "fetched" / file.name, b"", time.time())
    assert site.run("fetch", "Gate", fetched.parent, "--at", START_SEC + HOUR_SEC).status == 0
    assert fetched.read_bytes() == content


# --- organize ---


def test_the_date_is_the_utc_date_of_the_footages_start_by_sidecar_journal_or_name(site):
    site.set(recording={"timezone": "Europe/Berlin"})
    site.record("Gate", 1, name="20261120_003000.mp4")  # 23:30 UTC of the day before
    site.record("Gate", 1, name="Gate_20261119T233000Z.mkv")
    site.record("Yard", 1, name="20300101_000000.mp4")  # a clock that was wrong: the journal knows
    line = b'{"kind": "segment", "file": "20300101_000000.mp4", "start": 1794960000.0, "end": 1794960009.0}'
    site.write(site.rec / ".rtsp_recorder" / "journal" / "Yard" / "2026-11-18.jsonl", line + b"\ntorn", 0)
    site.clip(START_SEC - 1)
    assert site.run("organize").status == 0
    assert sorted(site.local()) == [
        f"Door_{UUID}/2026-11-18/Door_{UUID}_{START_SEC - 1}_video.json",
        f"Door_{UUID}/2026-11-18/Door_{UUID}_{START_SEC - 1}_video.mp4",
        "Gate/2026-11-19/20261120_003000.mp4", "Gate/2026-11-19/Gate_20261119T233000Z.mkv",
        "Yard/2026-11-18/20300101_000000.mp4"]  # fmt: skip


def test_what_is_not_footage_of_ours_is_reported_and_left_alone(site):
    gate = site.rec / "Gate"
    site.record("Gate", 1, name="empty_20261119_010000.mp4").write_bytes(b"")
    site.record("Gate", 1, name="notes.txt"), site.record("Gate", 1, name="holiday.mp4")
    site.record("Gate", 1, name="20261119_010000.mp4.part"), site.record("bad name", 1)
    (gate / "link.mp4").symlink_to("/etc/passwd"), os.mkfifo(gate / "20261119_030000.mp4")
    (gate / "folder.mp4").mkdir()
    site.write(site.clips / "holiday.mp4", b"not a clip", START_SEC)
    good = site.record("Gate", 2)
    before = sorted(site.rec.rglob("*"))
    done = site.run("run")
    assert (done.status, list(site.archived())) == (0, [f"Gate/{DAY}/{good.name}"]), done.err
    assert sorted(site.rec.rglob("*")) == [path for path in before if path != good]
    for reason in ("empty", "foreign", "of unknown time", "a stale .part", "no camera's folder", "no regular file"):
        assert f"left alone, {reason}: " in done.err
    assert f"{gate}/folder.mp4" in done.err  # nobody looks into it


def test_a_clip_waits_for_its_sidecar_which_travels_first(site):
    clip, sidecar = site.clip()
    sidecar.rename(site.folder / "later")
    os.utime(clip)
    time.sleep(nas_sync.STILL_SEC)
    assert site.run("run").status == 0
    assert clip.exists()
    (site.folder / "later").rename(sidecar)
    done = site.run("run")
    assert [row["file"].rpartition(".")[2] for row in done.rows if row.get("step") == "backup"] == ["json", "mp4"]


@pytest.mark.slow
def test_a_time_in_the_future_does_not_hold_footage_back_nor_delete_it_early(site):
    file = site.record("Gate", 1)
    os.utime(file, (time.time() + 86400, time.time() + 86400))
    assert site.run("run").status == 0
    assert list(site.archived()) == [f"Gate/{DAY}/{file.name}"]
    assert site.local() == {}


# --- what may be deleted ---


def test_footage_is_deleted_only_when_every_required_target_has_it(site):
    file = site.record("Gate", 1)
    site.set(retention={"required": ["nas", "s3"]})
    done = site.run("run")
    assert (done.status, "retention.required: s3: this target is not configured" in done.err) == (2, True)
    assert file.exists()


def test_the_grace_time_must_have_passed_and_a_proof_from_the_future_does_not_count(site):
    site.set(retention={"grace_sec": 3600})
    site.record("Gate", 1)
    assert site.run("run").status == 0
    assert len(site.local()) == 1
    need("faketime")
    assert site.run("run", prefix=["faketime", "-f", "-86400s"]).status == 0  # the clock jumped back
    assert len(site.local()) == 1
    assert site.run("run", prefix=["faketime", "-f", "+3700s"]).status == 0
    assert site.local() == {}


def test_footage_that_changed_after_its_proof_is_new_footage(in_place):
    file = in_place.record("Gate", 1, b"first" * 1000)
    assert in_place.run("backup").status == 0
    mtime_ns = file.stat().st_mtime_ns
    file.write_bytes(b"other" * 1000)
    os.utime(file, ns=(mtime_ns, mtime_ns))  # the same name, size and time
    done = in_place.run("cleanup")
    assert (done.status, done.states("cleanup")) == (1, {file.name: "changed"})
    done = in_place.run("run")
    assert (done.status, done.states("backup")) == (1, {file.name: "conflict"})
    assert file.read_bytes() == b"other" * 1000
    assert in_place.archived() == {f"Gate/{file.name}": b"first" * 1000}


def test_held_footage_is_spared_until_the_hold_is_removed(site):
    site.record("Gate", 1), site.record("Gate", 5), site.record("Yard", 1)
    hold = ("Gate", "2026-11-19T01:30Z", "2026-11-19T01:40Z")
    assert site.call("hold", "add", *hold).status == 0
    assert site.run("run").status == 0
    assert list(site.local()) == [f"Gate/{DAY}/20261119_010000.mp4"]
    assert site.call("hold", "list").out == "Gate\t2026-11-19T01:30:00Z\t2026-11-19T01:40:00Z\n"
    assert site.call("hold", "remove", "Gate", "2026-11-19T01:30Z", "2026-11-19T01:41Z").status == 2
    assert site.call("hold", "remove", *hold).status == 0
    assert site.run("run").status == 0
    assert site.local() == {}


def test_a_list_of_holds_that_cannot_be_read_stops_every_deletion(site):
    site.record("Gate", 1)
    assert site.call("hold", "add", "Gate", "2020-01-01", "2020-01-02").status == 0
    holds = site.ready / ".nas_sync" / "holds.json"
    holds.write_text('{"holds": [')
    assert site.run("run").status == 3
    assert len(site.local()) == 1
    holds.unlink()
    heals(site)


def test_keep_days_keeps_younger_footage_and_max_bytes_deletes_the_oldest_first(site):
    site.set(retention={"keep_days": 36500})
    for hour in range(4):
        site.record("Gate", hour, bytes(1000))
    assert site.run("run").status == 0
    assert len(site.local()) == 4
    site.set(retention={"max_bytes": 2000})
    assert site.run("run").status == 0
    assert sorted(site.local()) == [f"Gate/{DAY}/20261119_0{hour}0000.mp4" for hour in (2, 3)]


def test_keep_days_counts_from_the_end_of_the_day_where_a_name_tells_no_time(site):
    """A file of 23 hours ago is in the folder of a day that began up to 47 hours ago."""
    site.config["cameras"] = [{"name": "Gate", "rtsp_url": "rtsp://127.0.0.1/x"}]
    site.set(retention={"keep_days": 1})
    file = site.write(site.rec / "Gate" / "23 hours ago.mp4", b"footage" * 100, time.time() - 23 * HOUR_SEC)
    assert site.run("run").status == 0
    assert [Path(name).name for name in site.local()] == [file.name]


def test_when_space_is_short_and_nothing_is_proven_it_alarms_and_deletes_nothing(site):
    site.set(retention={"min_free_bytes": 1 << 60})
    site.nas.joinpath(".nas_sync_target").rename(site.folder / "away")
    site.record("Gate", 1)
    assert site.run("run").status == 3
    (site.folder / "away").rename(site.nas / ".nas_sync_target")
    assert site.run("organize").status == 0
    done = site.run("cleanup")
    assert (done.status, len(site.local())) == (1, 1)
    assert "more should go, but nothing else may be deleted" in done.err


def test_a_ring_buffer_without_any_target_deletes_the_oldest_and_is_refused_with_one(tmp_path):
    site = Site(tmp_path, organize=False, retention={"without_archive": True, "max_bytes": 2000})
    for hour in range(4):
        site.record("Gate", hour, bytes(1000))
    done = site.run("run")
    assert done.status == 2
    assert "footage would be deleted before it is archived" in done.err
    assert len(site.local()) == 4
    del site.config["nas"]["nas_target_dir"]
    site.set()
    with (site.rec / "Gate" / "20261119_000000.mp4").open("ab"):
        assert site.run("run").status == 0
    assert sorted(site.local()) == ["Gate/20261119_000000.mp4", "Gate/20261119_030000.mp4"]  # one is being written


def test_a_run_that_would_delete_unusually_much_stops_and_asks_for_a_flag(site):
    site.set(retention={"unusual_files": 3})
    for hour in range(4):
        site.record("Gate", hour)
    done = site.run("run")
    assert (done.status, len(site.local())) == (1, 4)
    assert "unusually much" in done.err
    assert site.run("run", "--delete_many").status == 0
    assert site.local() == {}


def test_delete_after_upload_false_keeps_everything(site):
    site.set(upload={"delete_after_upload": False})
    site.record("Gate", 1)
    assert site.run("run").status == 0
    again = site.run("run")
    assert (again.status, again.rows[-1]["summary"]["steps"]["backup"]) == (0, {})  # nor is it sent again
    assert len(site.local()) == 1


# --- sync log ---


def some_record(number: int = 0, **changes) -> Record:
    made = Record(f"Gate/{DAY}/{number:06}.mp4", 1000 + number, 1795046400123456789, "ab" * 32, "0123456789abcdef",
                  "checksum", 1795046400.0 + number)  # fmt: skip
    return replace(made, **changes)


@pytest.mark.parametrize(
    "path", ["Gate/a.mp4", "Gate/9%\n\t\x7f.mp4", "Gate/\udcff\udc80.mp4", "Gate/\u00e9\u2028 .mp4"]
)
def test_a_record_is_one_line_and_reads_back_whatever_the_name(path):
    record = some_record(path=path)
    line = nas_sync.record_line(record).encode()
    assert b"\n" not in line
    assert nas_sync.read_record(line) == record


def test_lines_that_are_torn_nul_filled_bare_or_altered_are_never_believed(tmp_path):
    line = nas_sync.record_line(some_record()).encode()
    bare = some_record().path.encode()
    for bad in (*(line[:length] for length in range(len(line))), b"\0" * 100, bare, line.replace(b"1000", b"1001"),
                line[:-8] + b"00000000", b"\t" * 7):  # fmt: skip
        assert nas_sync.read_record(bad) is None, bad
    log = tmp_path / "2026-11-19.synced"
    log.write_bytes(bare + b"\n" + b"\0" * 50 + b"\n" + line + b"\r\n" + line + b"\n" + line[:40])
    synced = SyncLog(tmp_path)
    assert list(synced) == [some_record()]
    synced.append([some_record(1)])
    assert list(SyncLog(tmp_path)) == [some_record(), some_record(1)]  # the torn line was closed


def test_old_logs_with_bare_paths_are_checked_before_anything_is_deleted_on_their_word(site):
    file, missing = site.record("Gate", 1), site.record("Gate", 2)
    assert site.run("organize").status == 0
    site.synced.mkdir(exist_ok=True)
    (site.synced / "2026-11-19.synced").write_text(f"Gate/{DAY}/{file.name}\nGate/{DAY}/{missing.name}\n")
    assert site.run("cleanup").status == 0
    assert len(site.local()) == 2
    heals(site)


def test_a_sync_log_that_cannot_be_written_stops_the_run_and_nothing_is_deleted(site):
    site.record("Gate", 1)
    site.set(nas={"success_log_dir": "/proc/nowhere"})
    done = site.run("run")
    assert done.status == 3
    assert "the sync log cannot be written" in done.err
    assert len(site.local()) == 1
    site.set(nas={"success_log_dir": str(site.synced)})
    heals(site)


def test_a_sync_log_on_a_full_disk_is_never_half_believed(site, small_disk):
    site.set(nas={"success_log_dir": str(small_disk)})
    for hour in range(3):
        site.record("Gate", hour)
    ballast = os.open(small_disk / "ballast", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space"):
        while True:
            os.write(ballast, bytes(4096))
    os.close(ballast)
    done = site.run("run")
    assert (done.status, len(site.local())) == (3, 3), done.err
    (small_disk / "ballast").unlink()
    heals(site)


def test_losing_the_sync_log_and_the_hashes_only_repeats_work(in_place):
    in_place.record("Gate", 1)
    assert in_place.run("backup").status == 0
    shutil.rmtree(in_place.synced)
    (in_place.rec / ".nas_sync" / "hashes.json").unlink()
    heals(in_place)


# --- options of rsync ---


@pytest.mark.parametrize(
    "options",
    [["--delete"], ["--del"], ["--delete-after"], ["--remove-source-files"], ["--inplace"], ["--append"], ["-avn"],
     ["--dry-run"], ["-a", "--link-dest=/x"], ["--files-from=x"], ["host:/elsewhere"], ["--existing"]],
)  # fmt: skip
def test_options_that_could_lose_footage_or_blind_the_proof_are_refused(options, tmp_path):
    site = Site(tmp_path, nas={"rsync_options": options})
    file = site.record("Gate", 1)
    done = site.run("backup")
    assert (done.status, file.exists(), site.archived()) == (2, True, {})
    assert "nas.rsync_options: " in done.err


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["-avz", "--progress", "-e", "ssh -p 2222"], ["-e", "ssh -p 2222"]),
        (["-ave", "ssh -p 22", "--exclude", "*.tmp"], ["-e", "ssh -p 22"]),
        (["-essh", "--port=873", "-4"], ["-e", "ssh", "--port=873", "-4"]),
        (["--rsh=ssh", "--password-file", "/x", "--chmod=F644"], ["--rsh=ssh", "--password-file", "/x"]),
        (["--exclude", "-n"], []),
    ],
)
def test_the_proof_reaches_the_nas_as_the_users_options_say(options, kept):
    nas_sync.check_options(options)
    assert nas_sync.connection_options(options) == kept


def test_a_line_of_the_checksum_pass_proves_only_identical_content():
    lines = b".f          a\n.f..t...... b\n<fc........ c\n>f+++++++++ d\n<fcs....... e\ncd+++++++++ f/\nsending list\n"
    items = nas_sync.read_items(lines)
    verdicts = {name: nas_sync.judge(items.get(name)) for name in "abcdefg"}
    assert verdicts == {"a": "proven", "b": "proven", "c": "conflict", "d": "missing", "e": "conflict", "f": "missing",
                        "g": "missing"}  # fmt: skip


@pytest.mark.slow
def test_a_file_that_we_may_not_read_is_named_and_does_not_hold_up_the_others(in_place):
    file, other = in_place.record("Gate", 1), in_place.record("Gate", 2)
    file.chmod(0)
    unprivileged = [need("setpriv"), "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else ["env"]
    done = in_place.run("run", prefix=unprivileged)
    assert done.status == 1, done.err
    assert done.states("backup") == {file.name: "failed", other.name: "proven"}
    assert (file.exists(), other.exists()) == (True, False)
    file.chmod(0o600)
    heals(in_place)


def test_a_failing_run_is_told_to_notify_and_a_source_that_is_not_mounted_is_said(site):
    site.record("Gate", 1)
    (site.nas / ".nas_sync_target").unlink()
    assert site.run("run").status == 3
    told = json.loads((site.ready / ".nas_sync" / "notify.json").read_text())
    assert told["nas_sync run"]["status"] == 3
    assert "backup: not done; verify: nothing to do; cleanup: not done" in site.call("run").err
    site.rec.rename(site.folder / "unplugged")
    done = site.run("run")
    assert (done.status, "is its disk mounted?" in done.err, site.rec.exists()) == (3, True, False)


def test_disks_that_are_away_are_told_once_as_their_return_and_nothing_is_made_below_their_mounts(site, mails):
    site.set(notify={"smtp_host": "127.0.0.1", "smtp_port": mails.port, "alert_to": ["ops@example.org"]})
    site.record("Gate", 1)
    assert site.run("run").status == 0
    away = [one.rename(one.with_name(f"unplugged {one.name}")) for one in (site.ready, site.rec)]
    assert [site.run("run").status for _ in range(2)] == [3, 3]
    assert (site.ready.exists(), site.rec.exists()) == (False, False)
    for one in away:
        one.rename(one.with_name(one.name.removeprefix("unplugged ")))
    assert site.run("run").status == 0
    told = [subject for subject, _ in mails.got]
    assert [one.partition(":")[0] for one in told] == ["[nas_sync run] failed", "[nas_sync run] recovered"], told


def test_a_camera_that_nobody_knows_is_said_because_its_hold_would_protect_nothing(site):
    site.record("Gate", 1)
    site.clip()
    assert f"cameras that are known here: Door_{UUID}, Gate" in site.call("find", "Gatte", "--at", DAY).err
    for name, known in (("gate", True), ("Door", True), (UUID, True), (f"Door_{UUID}", True), ("Gatte", False)):
        done = site.call("hold", "add", name, "2026-11-19", "2026-11-20")
        assert (done.status, "is it spelled right?" in done.err) == (0, not known), name
    done = site.call("run", "--camera", "Gatte", "--quiet")
    assert (done.status, "--camera Gatte: no footage" in done.err) == (1, True), "cron would archive nothing"


def test_what_a_killed_run_left_in_the_temporary_folder_is_gone_after_the_next_one(site, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    site.record("Gate", 1)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with site.start("run", "--bwlimit", "1K") as run:
        wait_for(lambda: list(tmp_path.glob("nas_sync-*")), "a list of names")
        run.kill()
    wait_for(lambda: site.run("run").status == 0, "a run, which the rsync of the killed one may still hold up")
    assert list(tmp_path.glob("nas_sync-*")) == []


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"nas": {"timeout": 0}}, "nas.timeout: expected 1 second or more"),
        ({"retention": {"keep_days": -1}}, "retention.keep_days: must not be negative"),
        ({"nas": {"ready_for_backup_dir": "/srv"}, "storage": {"local_path": "/srv/rec"}}, "give each a folder"),
        ({"recording": {"timezone": "Mars/Olympus"}}, "timezone: there is no time zone 'Mars/Olympus'"),
        ({"nas": {"nas_target": "/x"}}, "did you mean nas_target_dir?"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named_and_nothing_is_touched(sections, words, tmp_path):
    site = Site(tmp_path, **sections)
    done = site.call("run")
    assert (done.status, words in done.err) == (2, True), done.err
    assert not site.ready.exists()


def test_records_around_midnight_go_to_the_log_of_their_own_day_and_are_all_read(tmp_path):
    records = [some_record(0, at_sec=START_SEC + 86399.0), some_record(1, at_sec=START_SEC + 86400.0)]
    SyncLog(tmp_path / "synced").append(records)
    assert sorted(file.name for file in (tmp_path / "synced").iterdir()) == ["2026-11-19.synced", "2026-11-20.synced"]
    assert list(SyncLog(tmp_path / "synced")) == records
    assert list(SyncLog(tmp_path / "synced", [records[1].path])) == records[1:]


def test_planning_takes_as_proven_only_what_the_sync_log_proves_of_the_file_as_it_is(tmp_path):
    site = Site(tmp_path, organize=False)
    site.init()
    names = ["proven", "crlf", "9%\n", "\udcff", "lost", "future", "longer", "touched"]
    files = {name: site.record("Gate", hour, name=f"20261119_{hour:02}0000_{name}.mp4")
             for hour, name in enumerate(names)}  # fmt: skip
    assert set(site.run("backup").states("backup").values()) == {"proven"}
    (log,) = site.synced.glob("*.synced")
    records = {one.path.rpartition("_")[2].removesuffix(".mp4"): one for one in SyncLog(site.synced)}
    line = nas_sync.record_line(records["crlf"])
    log.write_text(log.read_text().replace(line, line + "\r"), newline="")
    SyncLog(site.synced).append([
        replace(records["lost"], proof=nas_sync.LOST), replace(records["future"], at_sec=time.time() + 100 * 86400)])
    times = {name: file.stat().st_mtime_ns for name, file in files.items()}
    files["longer"].write_bytes(files["longer"].read_bytes() + b"!")
    os.utime(files["longer"], ns=(times["longer"],) * 2)
    os.utime(files["touched"], ns=(times["touched"] + 1,) * 2)
    planned = [row["file"] for row in site.run("backup", "--dry_run").rows if "file" in row]
    assert [one.rpartition("_")[2] for one in planned] == ["lost.mp4", "future.mp4", "longer.mp4", "touched.mp4"]
