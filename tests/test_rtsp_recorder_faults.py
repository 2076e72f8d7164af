"""Faults that rtsp_recorder.py has to survive beside those of a season: clocks, terminals, file systems, real servers.

Fake cameras and gst-rtsp-server on loopback, real FFmpeg, real files; losses are counted in frames.
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime, timezone
from zoneinfo import ZoneInfo

import pytest
from test_rtsp_recorder import Site, segment

import rtsp_recorder as recorder


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


# --- files without a journal ---


@pytest.mark.parametrize(
    "name, zone, when",
    [
        ("20260720_120000.mp4", "UTC", "2026-07-20T12:00:00+00:00"),
        ("20260720_120000_1.mp4", "Europe/Berlin", "2026-07-20T12:00:00+02:00"),
        ("ROST2_20260120T120000.mkv", "Europe/Berlin", "2026-01-20T12:00:00+01:00"),
        ("20260720T120000Z.mkv", "Europe/Berlin", "2026-07-20T12:00:00+00:00"),
        ("Cam12345678_2026-07-20_12-00-00.mkv", "UTC", "2026-07-20T12:00:00+00:00"),
        ("holiday.mp4", "UTC", None),
        ("99999999_999999.mp4", "UTC", None),
    ],
)
def test_the_name_of_a_file_tells_when_it_begins(name, zone, when):
    expected = None if when is None else datetime.fromisoformat(when).timestamp()
    assert recorder.named_sec(name, ZoneInfo(zone)) == expected


def clip(path, seconds, started=None, written=None):
    """A small MP4; its last write is at the end of its footage, unless told otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make = [recorder.find_ffmpeg("this test"), "-v", "error", "-f", "lavfi", "-i", "testsrc2=r=1:s=64x48", "-t",
            str(seconds), "-c:v", "mpeg4", str(path)]  # fmt: skip
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    end = written if started is None else started + seconds
    os.utime(path, (end, end))


def test_files_of_an_older_recorder_are_no_gap_and_are_shown_apart(site):
    noon = datetime(2026, 7, 20, 12, tzinfo=timezone.utc).timestamp()

    def name(start):
        return datetime.fromtimestamp(start, timezone.utc).strftime("%Y%m%d_%H%M%S.mp4")

    folder = site.footage / "Gate"
    site.entries.append({"name": "Gate", "rtsp_url": "rtsp://u:${NOT_SET}@192.0.2.7/1"})
    for start in (0, 60, 120):
        clip(folder / name(noon + start), 60, noon + start)
    clip(folder / name(noon + 180), 60, written=noon + 9000)  # copied later: its last write says nothing
    clip(folder / "holiday.mp4", 30, written=noon + 330)  # only its last write and its length tell when it was
    clip(folder / name(noon + 400), 20, noon + 400)  # ours has a line for it
    (folder / name(noon + 500)).write_bytes(b"cut short, never to be played")  # last write: now
    (folder / name(noon + 600)).touch()
    journal = site.footage / ".rtsp_recorder" / "journal" / "Gate" / "2026-07-20.jsonl"
    journal.parent.mkdir(parents=True)
    line = {**segment(noon + 400, noon + 420), "file": f"Gate/{name(noon + 400)}"}
    journal.write_text(json.dumps(line) + "\n")
    span = ("--since", str(noon), "--until", str(noon + 500), "--timezone", "UTC")
    done = site.gaps("--json", *span)
    assert done.returncode == 0, done.stderr
    *gaps, summary = map(json.loads, done.stdout.splitlines())
    summary = summary["summary"]["Gate"]
    assert [(gap["start"] - noon, gap["end"] - noon) for gap in gaps] == [(240, 300), (330, 400), (420, 500)]
    assert summary["intervals"] == [[noon + 400, noon + 420]]
    assert summary["unjournaled"] == [[noon, noon + 240], [noon + 300, noon + 330]]
    assert (summary["recorded_percent"], summary["unjournaled_percent"]) == (58, 54)
    assert done.stderr == "", "only files of that time are looked into"
    table = site.gaps(*span).stdout
    assert ", 54.000 % unjournaled, 3 gaps" in table
    assert "2026-07-20 12:05:00+00:00        30.0 s  is there, unjournaled" in table
    rows = site.gaps("--csv", *span).stdout.splitlines()
    assert rows[-1] == "Gate,2026-07-20 12:05:00+00:00,2026-07-20 12:05:30+00:00,30.0,unjournaled,file"
    whole = site.gaps("--until", str(noon + 700), "--timezone", "UTC")
    assert "to 2026-07-20 12:11:40+00:00" in whole.stdout and "counts as nothing" in whole.stderr
    assert whole.stdout.startswith("Gate: 41.429 % of 2026-07-20 12:00:00+00:00")
