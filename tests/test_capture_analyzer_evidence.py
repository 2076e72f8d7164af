"""Evidence of recordings, kept by `video --store`: real FFmpeg in and out, looked at pixel by pixel."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import NOT_TESTED, ROOT

import capture_analyzer as ca
from rhombus_logging import find_ffmpeg

ROLES = {"last_good", "first_bad", "first_good", "clip"}
LIVE = "testsrc2=s=320x180:r=25"
BLACK = "color=black:s=320x180:r=25"
BLACK_LEVEL, LIVE_LEVEL = 20, 60  # mean brightness
CODERS = {
    "a.mp4": ["-c:v", "libx264", "-g", "50", "-c:a", "aac"],
    "b.mkv": ["-c:v", "libx264", "-g", "75", "-c:a", "pcm_alaw"],  # a sound that mp4 does not hold
    "c.ts": ["-c:v", "libx264", "-g", "100", "-c:a", "aac"],  # no index: FFmpeg misses the place that it looks for
    "d.avi": ["-c:v", "mpeg4", "-g", "25", "-c:a", "mp3"],
    "e.mkv": ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "16", "-g", "50", "-c:a", "libvorbis"],
    "f.h264": ["-c:v", "libx264", "-g", "50", "-an"],  # no times: nothing can be looked for
}


def ffmpeg(*arguments: str) -> None:
    subprocess.run([find_ffmpeg("tests"), "-v", "fatal", "-nostdin", "-y", *arguments], check=True, timeout=60,
                   stdin=subprocess.DEVNULL)  # fmt: skip


def record(path: Path, *parts: tuple[str, float], coder: str = "a.mp4") -> Path:
    """A recording of one source after the other, each for its seconds, with a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = [word for source, seconds in parts for word in ("-f", "lavfi", "-t", str(seconds), "-i", source)]
    tone = ["-f", "lavfi", "-t", str(sum(seconds for _, seconds in parts)), "-i", "sine=f=440"]
    joined = "".join(f"[{place}:v]" for place in range(len(parts)))
    preset = ["-preset", "ultrafast"] if "libx264" in CODERS[coder] else []
    ffmpeg(*inputs, *tone, "-filter_complex", f"{joined}concat=n={len(parts)}[v]", "-map", "[v]", "-map",
           f"{len(parts)}:a", *CODERS[coder], *preset, "-pix_fmt", "yuv420p", str(path))  # fmt: skip
    return path


@pytest.fixture(scope="module")
def black_once(tmp_path_factory) -> Path:
    """9 s live, 4 s black, 3 s live."""
    return record(tmp_path_factory.mktemp("made") / "20260131_120000Z.mp4", (LIVE, 9), (BLACK, 4), (LIVE, 3))


class Place:
    """A folder with a camera's recordings, a database and a folder for evidence."""

    def __init__(self, root: Path) -> None:
        self.root, self.camera = root, root / "footage" / "Gate"
        self.database, self.evidence = root / "all.sqlite3", root / "evidence"
        self.config = root / "config.yaml"
        self.camera.mkdir(parents=True)
        self.configure(self.evidence)

    def configure(self, evidence: Path) -> None:
        settings = {"database": str(self.database), "evidence_dir": str(evidence)}
        self.config.write_text(json.dumps({"analysis": settings}))

    def words(self, *more: str) -> list[str]:
        return ["video", str(self.camera.parent), "--store", "--config", str(self.config), *more]

    def video(self, *more: str) -> int:
        return ca.main(self.words(*more))

    def rows(self) -> list[ca.Incident]:
        return ca.read_incidents(str(self.database))

    def files(self) -> dict[str, int]:
        return {str(file.relative_to(self.evidence)): file.stat().st_mtime_ns
                for file in sorted(self.evidence.rglob("*")) if file.is_file()}  # fmt: skip

    def of(self, row: ca.Incident) -> dict[str, Path]:
        """The evidence that an incident names, by role."""
        assert row.metadata["evidence_dir"] == str(self.evidence)
        keys = row.metadata["evidence"]
        assert all(key.startswith(f"alerts/{row.incident_type}/Gate/") for key in keys.values())
        return {role: self.evidence / key.partition("/")[2] for role, key in keys.items()}


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def gray(still: Path) -> np.ndarray:
    picture = cv2.imread(str(still), cv2.IMREAD_GRAYSCALE)
    assert picture is not None, f"{still}: does not decode"
    return picture.astype(np.int16)


def levels(clip: Path) -> list[tuple[float, float]]:
    """(second, mean brightness) of the pictures of a clip."""
    return [(at_sec, float(picture.mean())) for picture, at_sec, _ in ca.read_pictures(find_ffmpeg("tests"), clip)]


# --- what is kept ---


@pytest.mark.parametrize("coder", [pytest.param(one, marks=[pytest.mark.slow] * (one[0] in "bdef")) for one in CODERS])
def test_a_black_stretch_leaves_the_pictures_around_it_and_a_clip_whatever_the_container(place, coder):
    name = f"20260131_120000Z{Path(coder).suffix}"
    record(place.camera / name, (LIVE, 9), (BLACK, 4), (LIVE, 3), coder=coder)
    assert place.video("--precise") == 0
    (row,) = place.rows()
    found = place.of(row)
    assert set(found) == ROLES
    stem = f"20260131T1200{int(row.start_sec) % 60:02d}Z_{row.alert_id[:8]}"
    assert {file.name for file in found.values()} == {
        f"{stem}_{role}_20260131_120000Z.{'mp4' if role == 'clip' else 'jpg'}" for role in ROLES}  # fmt: skip
    stills = {role: gray(found[role]) for role in ROLES - {"clip"}}
    assert stills["first_bad"].mean() < BLACK_LEVEL
    assert min(stills["last_good"].mean(), stills["first_good"].mean()) > LIVE_LEVEL
    assert stills["first_bad"].shape == (180, 320), "as large as the recording"
    seen = levels(found["clip"])
    begun = next(at_sec for at_sec, level in seen if level < BLACK_LEVEL)
    assert begun - seen[0][0] >= 2, "from before the start"
    assert seen[-1][0] - begun >= 3, "and on from there"
    assert seen[-1][0] - seen[0][0] <= ca.CLIP_SEC + 12
    assert sorted(place.files()) == sorted(str(file.relative_to(place.evidence)) for file in found.values())


@pytest.mark.slow
def test_the_last_good_picture_of_a_freeze_moves_and_the_first_bad_one_is_the_frozen_one(place):
    record(place.root / "live.mp4", (f"{LIVE},noise=alls=12:allf=t", 6))
    ffmpeg("-i", str(place.root / "live.mp4"), "-vf", "tpad=stop_mode=clone:stop_duration=8", "-c:v", "libx264", "-g",
           "50", "-crf", "18", "-an", str(place.camera / "20260131_120000Z.mp4"))  # fmt: skip
    assert place.video("--precise") == 0
    (row,) = [row for row in place.rows() if row.incident_type == "freeze"]
    found = place.of(row)
    assert set(found) == {"last_good", "first_bad", "clip"}, "nothing good came after it"
    frozen = place.root / "frozen.jpg"
    ffmpeg("-ss", "10", "-i", str(place.camera / "20260131_120000Z.mp4"), "-frames:v", "1", "-q:v", "2", str(frozen))
    apart = {role: np.abs(gray(found[role]) - gray(frozen)).mean() for role in ("last_good", "first_bad")}
    assert apart["first_bad"] < 2 < 3 < apart["last_good"]


@pytest.mark.slow
def test_lost_sound_leaves_the_picture_of_that_moment_and_a_clip_with_the_sound_before_and_after(place):
    sound = "sine=f=440,volume='if(between(t,6,12),0,1)':eval=frame"
    ffmpeg("-f", "lavfi", "-t", "15", "-i", LIVE, "-f", "lavfi", "-t", "15", "-i", sound, "-c:v", "libx264", "-preset",
           "ultrafast", "-g", "50", "-c:a", "aac", str(place.camera / "20260131_120000Z.mp4"))  # fmt: skip
    ffmpeg("-f", "lavfi", "-t", "15", "-i", sound, str(place.camera / "20260131_130000Z.mkv"))
    assert place.video() == 0
    with_pictures, bare = (place.of(row) for row in place.rows())
    assert (set(with_pictures), set(bare)) == (ROLES, {"clip"})
    for clip in (with_pictures["clip"], bare["clip"]):
        heard = ca.measure_sound(find_ffmpeg("tests"), clip)
        assert max(heard[:8]) > -40 and min(heard) < -85 and max(heard[-4:]) > -40


def test_what_is_bad_from_the_first_picture_to_the_last_has_no_good_ones(place):
    record(place.camera / "20260131_120000Z.mp4", (BLACK, 4))
    assert place.video() == 0
    assert set(place.of(place.rows()[0])) == {"first_bad", "clip"}


# --- once, and whole ---


@pytest.mark.slow
def test_a_further_scan_even_of_the_moved_file_makes_neither_incidents_nor_evidence_anew(place, black_once):
    shutil.copy(black_once, place.camera)
    assert place.video() == 0
    before, row = place.files(), place.rows()[0]
    assert place.video() == 0
    (place.camera.parent / "Yard").mkdir()
    (place.camera / black_once.name).rename(place.camera.parent / "Yard" / black_once.name)
    assert place.video() == 0
    assert place.files() == before
    assert [one.metadata["evidence"] for one in place.rows()] == [row.metadata["evidence"]]


@pytest.mark.slow
def test_evidence_is_no_recording_even_where_it_lies_among_them(place, black_once, capsys):
    shutil.copy(black_once, place.camera)
    place.configure(place.camera.parent / "evidence")
    assert place.video() == place.video() == 0
    assert len(place.rows()) == 1
    assert '"files": 1' in (place.video("--json"), capsys.readouterr().out)[1]


@pytest.mark.slow
def test_a_folder_that_takes_nothing_costs_no_incident_and_is_told_once_and_tried_again(place, black_once, caplog):
    for name in (black_once.name, "20260131_130000Z.mp4"):
        shutil.copy(black_once, place.camera / name)
    with (place.camera / "20260131_130000Z.mp4").open("ab") as handle:
        handle.write(b"\0" * 9)  # another file, with incidents of its own
    place.evidence.write_text("a file, where a folder should be")
    assert place.video() == 1
    assert caplog.text.count("takes no evidence") == 1
    assert "the incidents are stored, another run tries it again" in caplog.text
    assert [set(row.metadata) & {"evidence", "evidence_dir"} for row in place.rows()] == [set(), set()]
    place.evidence.unlink()
    assert place.video() == 0
    assert [set(place.of(row)) for row in place.rows()] == [ROLES, ROLES]


def test_a_full_disk_leaves_nothing_half_written_and_room_brings_it_all(place, black_once, caplog):
    place.evidence.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place.evidence)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip(f"{NOT_TESTED}root, who may mount a small disk")
    try:
        shutil.copy(black_once, place.camera)
        assert place.video() == 1
        assert "takes no evidence: No space left on device" in caplog.text
        assert len(place.rows()) == 1
        kept = list(place.evidence.rglob("*_*"))
        assert not [file for file in kept if file.suffix in (".part", ".mp4")]
        assert all(gray(file).size for file in kept if file.is_file())
        subprocess.run(["mount", "-o", "remount,size=50m", str(place.evidence)], check=True)
        assert place.video() == 0
        assert set(place.of(place.rows()[0])) == ROLES
    finally:
        subprocess.run(["umount", str(place.evidence)], check=True)


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing_that_counts_and_the_next_run_ends_the_work(place, black_once):
    shutil.copy(black_once, place.camera)
    command = [sys.executable, str(ROOT / "capture_analyzer.py"), *place.words("--quiet")]
    for wanted in ("first_bad", "first_good", "clip"):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
            until = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < until and not any(
                wanted in file.name for file in place.evidence.rglob("*.part")
            ):
                time.sleep(0.001)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for file in place.evidence.rglob("*.jpg"):
            assert gray(file).shape == (180, 320)
        for file in place.evidence.rglob("*.mp4"):
            assert levels(file)
    assert place.video() == 0
    assert set(place.of(place.rows()[0])) == ROLES
    assert len([name for name in place.files() if not name.endswith(".part")]) == len(ROLES)


def test_without_a_folder_for_evidence_it_lies_beside_the_recording_where_no_scan_looks(place, black_once):
    shutil.copy(black_once, place.camera)
    place.config.write_text(json.dumps({"analysis": {"database": str(place.database)}}))
    assert place.video() == place.video() == 0
    (row,) = place.rows()
    assert row.metadata["evidence_dir"] == str(place.camera / ".capture_analyzer" / "evidence")
    assert len(list((place.camera / ".capture_analyzer" / "evidence").rglob("*.*"))) == len(ROLES)


def test_names_that_no_key_should_have_become_plain_ones(place, black_once):
    folder = place.camera.parent / "..back door <b>"
    folder.mkdir()
    file = Path(shutil.copy(black_once, folder / "ünï %d 'x' 20260131_120000Z.mp4"))
    assert ca.main(["video", str(file), "--store", "--config", str(place.config)]) == 0
    (row,) = place.rows()
    for key in row.metadata["evidence"].values():
        assert key.startswith("alerts/blackscreen/back_door__b_/2026")
        assert (place.evidence / key.partition("/")[2]).is_file()
        assert key.isascii() and "%" not in key


def test_a_recording_known_by_its_last_write_alone_has_its_incidents_where_the_table_shows_them(place, black_once):
    shutil.copy(black_once, place.camera / "plain.mp4")
    os.utime(place.camera / "plain.mp4", (1_770_000_016, 1_770_000_016))
    assert place.video() == 0
    assert place.rows()[0].start_sec == pytest.approx(1_770_000_009, abs=0.5)
