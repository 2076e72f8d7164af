"""copy_footage.py --fill_gaps: what a recorder of ours missed, fetched from Rhombus cameras that show the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from copy_footage_helpers import CAMERA, PROGRAM, RHOMBUS, Cloud, Clouds, close_to, frames, one_camera, silent_camera

import copy_footage
from rhombus_logging import UsageError

RECORDER = PROGRAM.with_name("rtsp_recorder.py")


@pytest.fixture
def clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Clouds]:
    with Clouds(tmp_path, monkeypatch, capsys) as found:
        yield found


def pair(cloud: Cloud, **cameras: str) -> None:
    """Say in the config which RTSP camera shows what which Rhombus camera shows; passwords are not set here."""
    entries = [{"name": name, "rtsp_url": "rtsp://u:${UNSET_PASSWORD}@192.0.2.1/", "rhombus_uuid": uuid}
               for name, uuid in cameras.items()]  # fmt: skip
    entries.append({"name": "Alone", "rtsp_url": "rtsp://192.0.2.2/"})
    cloud.config.write_text(json.dumps({"rhombus": RHOMBUS, "cameras": entries, "storage": {
        "local_path": str(cloud.work / "recordings")}}))  # fmt: skip


def gap_lines(cloud: Cloud, *gaps: tuple[Any, ...]) -> Path:
    path = cloud.work / "gaps.jsonl"
    names = ("camera", "start", "end", "cause", "basis")
    lines = [json.dumps(dict(zip(names, (*gap, "stall", "journal"), strict=True))) for gap in gaps]
    path.write_text("\n".join([*lines, json.dumps({"summary": {}})]) + "\n")
    return path


def test_just_the_stretches_that_are_missing_are_fetched(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    pair(cloud, Gate=CAMERA)
    start = cloud.start
    gaps = gap_lines(cloud, ("gate", start + 0.4, start + 3.2), ("Gate", start + 60.1, start + 61),
                     ("Alone", start, start + 9))  # fmt: skip
    run = cloud.copy("--fill_gaps", gaps, "--json")
    assert sorted((line["start"], line["end"]) for line in run.lines[:-1]) == [
        (cloud.start, cloud.start + 4), (cloud.start + 60, cloud.start + 61)]  # fmt: skip
    assert "Alone: 1 gaps left out, the config names no rhombus_uuid" in run.err
    file = cloud.folder / f"LoadingDockEast_{CAMERA}_{cloud.start}_video.mp4"
    close_to(frames(file), cloud.pictures(cloud.start, cloud.start + 4))
    assert cloud.copy("--fill_gaps", gaps, "--json").summary["already"] == 2


def test_gaps_that_touch_become_one_clip_and_long_ones_are_cut_like_a_range(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    pair(cloud, Gate=CAMERA)
    gaps = gap_lines(cloud, ("Gate", cloud.start, cloud.start + 10), ("Gate", cloud.start + 11, cloud.start + 30))
    run = cloud.copy("--fill_gaps", gaps, "--clip_length", 20, "--dry_run", "--json")
    assert [line["end"] - line["start"] for line in run.lines[:-1]] == [20, 10]


def test_a_gap_that_has_not_ended_is_filled_as_far_as_there_is_footage(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    pair(cloud, Gate=CAMERA)
    now = int(cloud.clock())
    run = cloud.copy("--fill_gaps", gap_lines(cloud, ("Gate", now - 60, now + 0.0)), "--json")
    assert run.lines[0]["end"] == now - 10
    future = cloud.copy("--fill_gaps", gap_lines(cloud, ("Gate", now - 3, now)), "--json")
    assert future.summary["clips"] == 0


@pytest.mark.parametrize("line", ["{", "[]", "{}", '"x"', '{"camera":"Gate","start":5,"end":4}',
                                  '{"camera":"Gate","start":"a","end":4}',
                                  '{"camera":"Gate","start":1754392800,"end":1e400}'])  # fmt: skip
def test_a_line_that_is_no_gap_is_refused_before_anything_is_fetched(clouds: Clouds, line: str) -> None:
    cloud = clouds(silent_camera())
    pair(cloud, Gate=CAMERA)
    path = cloud.work / "gaps.jsonl"
    path.write_text(f"\n{line}\n")
    assert "line 2 is no gap" in cloud.copy("--fill_gaps", path, ok=2).sentence()
    assert cloud.asked(".") == []


@pytest.mark.parametrize("words", [("-s", "yesterday"), ("-u", 5), ("--alerts",), ("--catch_up",)])
def test_flags_that_say_what_to_copy_exclude_each_other(clouds: Clouds, words: tuple[object, ...]) -> None:
    cloud = clouds(silent_camera())
    pair(cloud, Gate=CAMERA)
    assert "leave out" in cloud.copy("--fill_gaps", gap_lines(cloud), *words, ok=2).sentence()


def test_a_file_that_is_not_there_and_an_identifier_that_is_none_are_named(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    pair(cloud, Gate=CAMERA)
    assert "missing.jsonl: cannot be read" in cloud.copy("--fill_gaps", "missing.jsonl", ok=2).sentence()
    with pytest.raises(UsageError, match="is no UUID"):
        copy_footage.read_gaps([], [{"name": "Gate", "rhombus_uuid": "../x"}])


def test_a_camera_that_rhombus_does_not_know_stops_no_other(clouds: Clouds) -> None:
    cloud = clouds(silent_camera())
    pair(cloud, Gate=CAMERA, Yard="A" * 22)
    gaps = gap_lines(cloud, ("Yard", cloud.start, cloud.start + 4), ("Gate", cloud.start, cloud.start + 4))
    run = cloud.copy("--fill_gaps", gaps, "--json")
    assert run.summary["done"] == 1
    assert "there is no such camera" in run.err


def test_a_gap_of_a_camera_that_was_retired_since_is_filled_from_the_cloud(clouds: Clouds) -> None:
    cloud = clouds(silent_camera(status="RED", mummified=True))
    pair(cloud, Gate=CAMERA)
    run = cloud.copy("--fill_gaps", gap_lines(cloud, ("Gate", cloud.start, cloud.start + 4)), "--json")
    assert run.summary["done"] == 1


def test_the_recorder_and_this_program_work_through_a_pipe(clouds: Clouds) -> None:
    """`rtsp_recorder.py gaps --json | copy_footage.py --fill_gaps -`, as the README has it."""
    cloud = clouds(one_camera(), real=True)
    pair(cloud, Gate=CAMERA)
    folder = cloud.work / "recordings" / ".rtsp_recorder" / "journal" / "Gate"
    folder.mkdir(parents=True)
    start = cloud.start
    segment = {"kind": "segment", "frames": 1, "bytes": 1, "whole": True}
    rows = [{**segment, "file": "a.mkv", "start": start, "end": start + 100},
            {"kind": "down", "start": start + 100, "end": start + 104, "cause": "stall"},
            {**segment, "file": "b.mkv", "start": start + 104, "end": start + 200}]  # fmt: skip
    day = time.strftime("%Y-%m-%d", time.gmtime(start))
    (folder / f"{day}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [sys.executable, RECORDER, "gaps", "--json", "--until", str(start + 200), "--config", cloud.config]
    gaps = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert gaps.returncode == 0, gaps.stderr
    done = subprocess.run([sys.executable, str(PROGRAM), *cloud.words("--fill_gaps", "-", "--json")], input=gaps.stdout,
                          env=cloud.environment(), capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout.splitlines()[0])
    assert (first["start"], first["end"], first["state"]) == (start + 100, start + 104, "done")
