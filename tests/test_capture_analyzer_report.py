"""report of capture_analyzer.py: what it finds in folders, and what a real browser makes of the page."""

from __future__ import annotations

import html.parser
import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from conftest import ROOT, need
from hypothesis import given
from hypothesis import strategies as st

import capture_analyzer
from capture_analyzer import Footage, Mark, Reported, find_gaps
from rhombus_logging import find_ffmpeg

pytestmark = pytest.mark.slow  # pages of whole archives

PROGRAM = [sys.executable, str(ROOT / "capture_analyzer.py")]
NOON = datetime(2026, 3, 28, 12, tzinfo=timezone.utc).timestamp()  # the day before Berlin's clocks go forward
HOUR, DAY = 3600, 86400
HOSTILE = "</script><script>document.title='hacked'</script><b>"


def make_clip(path: Path, seconds: float = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["-f", "lavfi", "-i", "testsrc2=size=320x180:rate=5", "-f", "lavfi", "-i", "sine", "-t", str(seconds)]
    subprocess.run([find_ffmpeg("tests"), "-loglevel", "error", *command, str(path)], check=True)
    return path


def journal(root: Path, camera: str, *lines: dict[str, Any]) -> None:
    folder = root / ".rtsp_recorder/journal" / camera
    folder.mkdir(parents=True, exist_ok=True)
    for line in lines:
        day = datetime.fromtimestamp(line["start"], timezone.utc).strftime("%Y-%m-%d")
        with (folder / f"{day}.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def segment(camera: str, start: float, end: float) -> dict[str, Any]:
    name = datetime.fromtimestamp(start, timezone.utc).strftime("%Y%m%d_%H%M%S.mp4")
    return {"kind": "segment", "file": f"{camera}/{name}", "start": start, "end": end, "whole": True}


def down(start: float, end: float, cause: str) -> dict[str, Any]:
    return {"kind": "down", "start": start, "end": end, "cause": cause}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorder's folder, clips of copy_footage, a capture folder with a monitor's database."""
    root = tmp_path_factory.mktemp("site") / "foot age%20#1"
    clip = make_clip(root / "Gate" / "20260328_120000.mp4")
    journal(
        root,
        "Gate",
        segment("Gate", NOON, NOON + HOUR),
        down(NOON + HOUR, NOON + HOUR + 90, "stall"),
        segment("Gate", NOON + HOUR + 90, NOON + 2 * HOUR),
        down(NOON + 2 * HOUR, NOON + 5 * HOUR, "disk"),
        segment("Gate", NOON + 5 * HOUR, NOON + 6 * HOUR),
    )
    with (root / ".rtsp_recorder/journal/Gate/2026-03-28.jsonl").open("a") as stream:
        stream.write('{"kind": "segment", "file": "Ga')  # torn by a crash
    os.link(clip, root / "Gate" / "20260328_170000.mp4")  # the one in between has left
    uuid = "AbCdEfGhIjKlMnOpQrStUv"
    start_ms = round(NOON * 1000)
    name = f"Yard_{uuid}_20260328_130000_alert_MOTION_x1_video.mp4"
    (root / "clips").mkdir()
    os.link(clip, root / "clips" / name)
    sidecar = {
        "schema": 1, "camera": {"uuid": uuid, "facet": "v0", "name": HOSTILE, "location": "x"}, "kind": "alert",
        "requested": {"start_ms": start_ms, "end_ms": start_ms + 60000},
        "obtained": {"start_ms": start_ms, "end_ms": start_ms + 60000},
        "gaps": [{"start_ms": start_ms + 20000, "end_ms": start_ms + 26000, "reason": "not_recorded"}],
        "alert": {"id": "x1", "kind": HOSTILE, "start_ms": start_ms + 30000, "end_ms": start_ms + 40000},
    }  # fmt: skip
    (root / "clips" / name).with_suffix(".json").write_text(json.dumps(sidecar))
    captures = root / "stream/capture1/captures"
    captures.mkdir(parents=True)
    for second in range(5):
        still = f"{next(capture_analyzer.still_names(NOON + second))}.jpg"
        command = ["-f", "lavfi", "-i", "testsrc2=size=320x180", "-frames:v", "1", str(captures / still)]
        subprocess.run([find_ffmpeg("tests"), "-loglevel", "error", *command], check=True)
    return root


def page_data(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def report(page: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "report", *map(str, words), "--output", str(page), "--config", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def made(site: Path) -> tuple[Path, dict[str, Any], dict[str, dict[str, Any]]]:
    """The page about the site, with incidents and metrics that `video` has written; its data; its cameras by name."""
    place = site.parent
    clip = site / "Gate" / "20260328_120000.mp4"
    found = [{"type": "freeze", "start_sec": 600.0, "end_sec": 700.0, "start": "", "end": "", "severity": "warning",
              "freeze_kind": "picture"}]  # fmt: skip
    lines = [{"file": str(clip), "camera": "Gate", "incidents": found, "reason": ""},
             {"file": "/gone/20260328_123000.mp4", "camera": "Gate", "incidents": [], "reason": "it is damaged",
              "start": "2026-03-28T12:30:00.000Z", "time_basis": "name", "length_sec": 60.0},
             {"summary": {}}]  # fmt: skip
    (place / "found.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [f"{clip},picture,{at},{at / 20},5,30,{at % 7},1,0," for at in range(0, 3600, 60)]
    rows += [f"{clip},sound,{at},,,,,,,{-40 - at % 11}" for at in range(0, 3600, 60)] + ["/else.mp4,sound,0,,,,,,,-30"]
    heads = ",".join(capture_analyzer.Metrics.COLUMNS)
    (place / "metrics.csv").write_text("\n".join([heads, *rows]) + "\n")
    page = place / "report.html"
    words = ("--incidents", place / "found.jsonl", "--metrics", place / "metrics.csv", "--timezone", "Europe/Berlin")
    done = report(page, site, *words)
    assert (done.returncode, done.stdout) == (0, f"{page}\n"), done.stderr
    assert "--metrics" in done.stderr
    assert "1 files are not in the folders of the report" in done.stderr
    data = page_data(page)
    return page, data, {camera["name"]: camera for camera in data["cameras"]}


def test_gaps_have_the_causes_that_the_recorder_wrote_down(made):
    _, data, cameras = made
    gate = cameras["Gate"]
    assert data["start"] == NOON
    assert gate["gaps"] == [[3600, 3690, "stall", "camera"], [7200, 18000, "disk", "host"]]
    assert gate["missing"] == 90 + 3 * HOUR
    assert gate["percent"] == pytest.approx(100 * (6 * HOUR - 90 - 3 * HOUR) / (6 * HOUR), abs=0.001)


def test_what_the_journal_knows_and_is_not_there_any_more_is_told_apart(made):
    gate = made[2]["Gate"]
    assert gate["here"] == [0, HOUR, 5 * HOUR, 6 * HOUR]
    assert gate["gone"] == [HOUR + 90, 2 * HOUR]


def test_clips_show_their_alerts_and_what_their_sidecars_miss(made):
    clips = made[2][HOSTILE]
    assert clips["gaps"] == [[20, 26, "not_recorded", "off"]]
    assert clips["marks"] == [[30, 40, "alert", HOSTILE, ""]]
    assert clips["percent"] is None, "clips were asked for: the time between them is no gap"


def test_stills_of_a_capture_folder_are_footage_too(made):
    captures = made[2]["capture1"]
    assert captures["here"] == [0, 5]
    assert (captures["gaps"], captures["percent"]) == ([], None), "older ones were cleaned away: that is no gap"
    assert captures["pictures"]


def test_incidents_of_video_and_its_metrics_are_at_their_time(made):
    gate = made[2]["Gate"]
    assert gate["marks"] == [
        [600, 700, "freeze", "warning, something small goes on, such as a clock", ""],
        [1800, 1860, "quality unknown", "it is damaged", ""],
    ]
    brightness = gate["curves"]["brightness"]
    known = {place * brightness["step"]: value for place, value in enumerate(brightness["values"]) if value is not None}
    assert len(known) > 20
    assert all(abs(value - at / 20) < brightness["step"] / 20 + 3 for at, value in known.items())
    assert sorted(gate["curves"]) == ["brightness", "motion", "sound"]


def test_links_are_relative_and_lead_to_the_files(made):
    page, _, cameras = made
    links = [f"{one['folders'][file[2]]}/{file[3]}" for one in cameras.values() for file in one["files"]]
    assert len(links) == 4, "two recordings, a clip, a folder of stills"
    links += [link for one in cameras.values() for _, link, _ in one["pictures"]]  # as many as time allowed
    for link in links:
        assert not re.match(r"[a-z]+:|/", link), link
        assert (page.parent / unquote(link)).exists(), link


def test_the_zone_is_said_and_the_change_of_its_clocks_is_known(site, tmp_path):
    page = tmp_path / "report.html"
    done = report(page, site, "--timezone", "Europe/Berlin", "--since", str(NOON), "--until", str(NOON + DAY))
    assert done.returncode == 0, done.stderr
    data = page_data(page)
    assert data["zone"] == "Europe/Berlin"
    assert data["offsets"] == [[0, 3600], [13 * HOUR, 7200]]
    assert [later - earlier for earlier, later in zip(data["days"], data["days"][1:], strict=False)] == [DAY, 23 * HOUR]
    assert "CET" not in page.read_text()


class Addresses(html.parser.HTMLParser):
    """Everything in a page that a browser would fetch or follow, and its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [str(value) for name, value in attributes if name in ("src", "href", "action", "srcset")]


def test_the_page_is_one_file_that_asks_the_network_for_nothing(made):
    text = made[0].read_text()
    page = Addresses(text)
    assert page.found == []
    assert re.search(r"https?://|@import|url\(", text) is None
    assert "default-src 'none'" in text


def test_hostile_names_stay_text(made):
    page = Addresses(made[0].read_text())
    assert page.tags.count("script") == 2
    assert "b" not in page.tags


# --- what a browser makes of it ---


def browse(page: Path, tmp_path: Path, *flags: str, size: str = "1280,1400") -> tuple[str, list[str], Path]:
    """(the document after its script ran, console lines, a screenshot) of headless Chromium, twice started."""
    chromium = need("chromium")
    common = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
              "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
              "--enable-logging=stderr", "--virtual-time-budget=3000", f"--window-size={size}",
              f"--user-data-dir={tmp_path}/profile", *flags]  # fmt: skip
    shot = tmp_path / "shot.png"
    address = page.resolve().as_uri()
    drawn, document = (
        subprocess.run([*common, action, address], capture_output=True, text=True, timeout=90, check=False)
        for action in (f"--screenshot={shot}", "--dump-dom")
    )
    console = [line for line in (drawn.stderr + document.stderr).splitlines() if "CONSOLE" in line]
    return document.stdout, console, shot


def colours(shot: Path) -> dict[str, int]:
    """How many pixels have each colour, as #rrggbb."""
    import cv2
    import numpy as np

    picture = cv2.imread(str(shot))
    values, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return {"#" + bytes(int(part) for part in value[::-1]).hex(): int(count)
            for value, count in zip(values, counts, strict=True)}  # fmt: skip


def style_colour(name: str, *, dark: bool = False) -> str:
    """What the page's style says for a colour."""
    light, _, rest = capture_analyzer.PAGE_STYLE.partition("@media (prefers-color-scheme: dark)")
    found = re.search(rf"--{name}: (#\w+)", rest if dark else light)
    assert found
    return found[1] if len(found[1]) == 7 else "#" + "".join(2 * letter for letter in found[1][1:])


@pytest.mark.slow
def test_a_browser_draws_the_page_and_has_nothing_to_complain(made, tmp_path):
    document, console, shot = browse(made[0], tmp_path)
    assert console == []
    assert 'data-ready="yes"' in document
    assert "<title>Footage report</title>" in document
    for text in ("<b>3</b>cameras", "Times are those of Europe/Berlin (UTC+01:00).", "Gate", "incident: freeze",
                 "gap: this host", "incident: quality unknown", "quality unknown: it is damaged",
                 "freeze: warning, something small goes on"):  # fmt: skip
        assert text in document
    for row in (("2026-03-28 15:00:00", "18:00:00", "3 h 0 min", "disk (this host)"),
                ("2026-03-28 13:10:00", "13:11:40", "1 min 40 s", "freeze: warning")):  # fmt: skip
        assert "</td><td>".join(row) in document
    assert HOSTILE not in document
    assert "&lt;/script&gt;&lt;script&gt;" in document
    found = colours(shot)
    for name in ("paper", "here", "gone", "camera", "host", "freeze", "alert"):
        assert found.get(style_colour(name), 0) >= 4, f"nothing is drawn in the colour of {name}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "size", "dark"),
    [(("--blink-settings=preferredColorScheme=0",), "1280,1800", True), ((), "390,2600", False)],
    ids=["dark", "phone"],
)
def test_a_browser_draws_it_dark_and_on_a_phone(flags, size, dark, made, tmp_path):
    _, console, shot = browse(made[0], tmp_path, *flags, size=size)
    assert console == []
    found = colours(shot)
    assert max(found, key=lambda colour: found[colour]) == style_colour("paper", dark=dark)
    assert found.get(style_colour("here", dark=dark), 0) > 1000


@pytest.mark.slow
def test_a_click_on_a_timeline_leads_to_the_footage_at_that_second(made, tmp_path):
    """A copy of the page clicks itself: at 12:15 on the line of Gate, and in its gap."""
    click = """<script>for (const [share, id] of [[.0417, "first"], [.5, "second"]]) {
      const canvas = document.querySelectorAll("summary canvas")[2], box = canvas.getBoundingClientRect();
      canvas.dispatchEvent(new MouseEvent("click", {clientX: box.left + share * box.width, clientY: box.top + 3}));
      const copy = document.getElementById("tip").cloneNode(true);
      copy.id = id; document.body.append(copy); }</script>"""
    page = tmp_path / "copy.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made[0].read_text())
    page.write_text(text.replace("</body>", f"{click}</body>"))
    document, console, _ = browse(page, tmp_path)
    assert console == []
    first, second = (re.search(rf'<div id="{name}">(.*?)</div>', document) for name in ("first", "second"))
    assert first
    assert second
    link = re.search(r'href="([^"#]*)#t=(\d+)"', first[1])
    assert link, first[1]
    assert (made[0].parent / unquote(link[1])).is_file()
    assert 880 <= int(link[2]) <= 920
    assert re.search("Gate  2026-03-28 13:1[45]:", first[1])
    assert "no footage: disk (this host), 2026-03-28 15:00:00 for 3 h 0 min" in second[1]
    assert "href" not in second[1]


# --- one camera for a year, a hundred for a day ---


@pytest.mark.slow
@pytest.mark.parametrize(("cameras", "days"), [(1, 365), (100, 1)], ids=["a_year_of_one", "a_day_of_100"])
def test_a_page_is_made_in_seconds_and_stays_small(cameras, days, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4")
    root = tmp_path / "footage"
    for number in range(cameras):
        camera = f"Camera{number:02d}"
        (root / camera).mkdir(parents=True)
        lines = []
        for step in range(days * 144):
            start = NOON + step * 600
            if step % 97 == 96:
                lines.append(down(start, start + 600, "stall"))
                continue
            lines.append(segment(camera, start, start + 600))
            copy = tmp_path / f"{step // 20000}.mp4"
            if not copy.exists():
                copy.write_bytes(clip.read_bytes())
            os.link(copy, root / lines[-1]["file"])
        folder = root / ".rtsp_recorder/journal" / camera
        folder.mkdir(parents=True)
        for day in range(days + 1):
            first = NOON - NOON % DAY + day * DAY
            texts = [json.dumps(line) + "\n" for line in lines if first <= line["start"] < first + DAY]
            name = datetime.fromtimestamp(first, timezone.utc).strftime("%Y-%m-%d.jsonl")
            (folder / name).write_text("".join(texts))
    page = tmp_path / "report.html"
    before = os.times()
    done = report(page, root)
    used_sec = sum(os.times()[2:4]) - sum(before[2:4])
    assert done.returncode == 0, done.stderr
    assert page.stat().st_size < 5e6
    assert used_sec < 10, "of the processor; what else runs here must not decide"
    data = page_data(page)
    assert sum(len(camera["files"]) for camera in data["cameras"]) == cameras * (days * 144 - days * 144 // 97)
    assert sum(len(camera["gaps"]) for camera in data["cameras"]) == cameras * (days * 144 // 97)


# --- rules ---


def test_a_camera_that_fell_silent_before_the_others_has_a_gap_at_the_end_but_none_before_its_first_day():
    camera = Reported("Gate", footage=[Footage(100, 200, Path("a"))], is_continuous=True)
    assert find_gaps(camera, (0, 300), None) == [Mark(200, 300, "unknown")]
    assert find_gaps(camera, (0, 300), 0) == [Mark(0, 100, "unknown"), Mark(200, 300, "unknown")]
    camera.causes.append(Mark(50, 100, "refused"))
    assert find_gaps(camera, (0, 300), None)[0] == Mark(50, 100, "refused")
    camera.causes.append(Mark(200, float("inf"), "stopped"))
    assert find_gaps(camera, (0, 300), None)[-1] == Mark(200, 300, "stopped")


@pytest.mark.parametrize("is_continuous", [True, False])
def test_gaps_of_sidecars_count_only_as_far_as_they_lie_in_the_time_of_the_report(is_continuous):
    camera = Reported("Gate", footage=[Footage(0, 100, None)], is_continuous=is_continuous)
    camera.gaps = [Mark(start, start + 10, "not_recorded") for start in (0, 15, 50, 75, 90)]
    assert [(gap.start_sec, gap.end_sec) for gap in find_gaps(camera, (20, 80), 20)] == [(20, 25), (50, 60), (75, 80)]


def test_a_gap_of_one_clip_that_another_clip_fills_is_none_and_one_that_both_have_counts_once(tmp_path):
    def clip(start: int, length: int, *gaps: tuple[int, int]) -> None:
        file = tmp_path / f"Gate_{'A' * 22}_{round(NOON) + start}_video.json"
        rows = [{"start_ms": (NOON + start + first) * 1000, "end_ms": (NOON + start + last) * 1000,
                 "reason": "not_found"} for first, last in gaps]  # fmt: skip
        obtained = {"start_ms": (NOON + start) * 1000, "end_ms": (NOON + start + length) * 1000}
        file.write_text(json.dumps({"camera": {"uuid": "A" * 22, "name": "Gate"}, "obtained": obtained, "gaps": rows}))

    clip(0, 600, (60, 360), (400, 500))
    clip(100, 700, (280, 420), (650, 700))
    page = tmp_path / "report.html"
    assert report(page, tmp_path).returncode == 0
    (camera,) = page_data(page)["cameras"]
    assert [gap[:2] for gap in camera["gaps"]] == [[60, 100], [400, 500], [750, 800]]
    assert camera["missing"] == 190


def test_a_camera_that_records_has_no_gap_because_another_was_looked_at_a_moment_later():
    camera = Reported("Gate", footage=[Footage(100, 200, None)], is_continuous=True, is_live=True)
    assert find_gaps(camera, (0, 203), None) == []
    assert find_gaps(camera, (0, 210), None) == [Mark(200, 210, "unknown")]


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 50)), max_size=30))
def test_gaps_and_footage_fill_the_time_and_never_overlap(pieces):
    camera = Reported("x", [Footage(start, start + length, None) for start, length in pieces], is_continuous=True)
    gaps = find_gaps(camera, (0.0, 1100.0), 0.0)
    covered = {second for start, length in pieces for second in range(start, start + length)}
    missing = [second for gap in gaps for second in range(round(gap.start_sec), round(gap.end_sec))]
    assert sorted(missing) == sorted(set(range(1100)) - covered)


def test_recordings_without_a_journal_go_by_their_names_and_last_as_long_as_they_were_written(tmp_path):
    for name, length in (("20260328_120000.mp4", 600), ("20260328_121000.mp4", 600), ("20260328_124000.mp4", 60)):
        path = make_clip(tmp_path / "Gate" / "2026-03-28" / name, 0.4)
        start = datetime.strptime(name[:15], "%Y%m%d_%H%M%S").replace(tzinfo=timezone.utc).timestamp()
        os.utime(path, (start + length, start + length))
    assert report(tmp_path / "report.html", tmp_path).returncode == 0
    data = page_data(tmp_path / "report.html")
    assert [(camera["name"], camera["here"]) for camera in data["cameras"]] == [("Gate", [0, 1200, 2400, 2460])]
    assert data["cameras"][0]["gaps"] == [[1200, 2400, "unknown", "unknown"]]


def test_clips_that_have_lost_their_sidecars_leave_no_gaps_between_them(tmp_path):
    uuid = "AbCdEfGhIjKlMnOpQrStUv"
    for name in (f"Yard_{uuid}_{NOON:.0f}_video", f"Yard_{uuid}.v1_20260328_150000_alert_MOTION_x1_combined_partial"):
        path = make_clip(tmp_path / f"Yard_{uuid}" / f"{name}.mp4", 0.4)
        os.utime(path, (0, 0))
    assert report(tmp_path / "report.html", tmp_path).returncode == 0
    (camera,) = page_data(tmp_path / "report.html")["cameras"]
    assert (camera["gaps"], camera["percent"], len(camera["files"])) == ([], None, 2)


def test_incidents_of_the_monitor_come_from_the_database_beside_the_captures(site, tmp_path):
    captures = site / "stream/capture1/captures"
    database = capture_analyzer.Database(str(captures / ".capture_analyzer" / capture_analyzer.DATABASE_NAME))
    row = ("id1", "host", "capture1", "blackscreen", "resolved", 5, NOON + 2, NOON + 4)
    evidence = site / "evidence" / "first.jpg"
    evidence.parent.mkdir(exist_ok=True)
    evidence.write_bytes(next(captures.glob("*.jpg")).read_bytes())
    told = {"evidence": {"first_bad": "alerts/first.jpg"}, "evidence_dir": str(evidence.parent)}
    database.store(capture_analyzer.Incident(*row, told))
    try:
        assert report(tmp_path / "report.html", site / "stream").returncode == 0
        (camera,) = page_data(tmp_path / "report.html")["cameras"]
        ((start, end, kind, text, link),) = camera["marks"]
        assert (start, end, kind, text) == (2, 4, "blackscreen", "")
        assert (tmp_path / unquote(link)).samefile(evidence)
    finally:
        for left in (captures / ".capture_analyzer").iterdir():
            left.unlink()


def test_what_both_the_database_and_the_output_of_video_tell_is_on_the_page_once(tmp_path):
    clip = tmp_path / "Gate" / "20260328_120000.mp4"
    make_clip(clip, 0.4)
    os.utime(clip, (NOON + 600, NOON + 600))
    found = [{"type": kind, "start_sec": start, "end_sec": start + 9, "start": "", "end": ""}
             for kind, start in (("freeze", 60.25), ("freeze", 120.0), ("blackscreen", 60.25))]  # fmt: skip
    line = {"file": str(clip), "camera": "Gate", "incidents": found, "reason": "moov atom not found", "length_sec": 0.0,
            "time_basis": "name", "start": "2026-03-28T12:00:00.000Z"}  # fmt: skip
    (tmp_path / "found.jsonl").write_text(json.dumps(line) + "\n")
    row = ("id1", "host", "Gate", "freeze", "resolved", 1, NOON + 60.2501, NOON + 69.25, {"severity": "alarm"})
    capture_analyzer.Database(str(tmp_path / "all.sqlite3")).store(capture_analyzer.Incident(*row))
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"analysis": {"database": str(tmp_path / "all.sqlite3")}}))
    page = tmp_path / "report.html"
    words = ["report", str(tmp_path), "--incidents", str(tmp_path / "found.jsonl"), "--output", str(page)]
    assert capture_analyzer.main([*words, "--config", str(config)]) == 0
    (camera,) = page_data(page)["cameras"]
    assert sorted(mark[:3] for mark in camera["marks"]) == [
        [0, 600, "quality unknown"], [60, 69, "blackscreen"], [60, 69, "freeze"], [120, 129, "freeze"]
    ]  # fmt: skip


@pytest.mark.parametrize("is_here", [True, False], ids=["here", "archived"])
def test_what_video_has_stored_of_a_clip_is_on_the_page_with_its_camera(site, tmp_path, is_here):
    (sidecar,) = (site / "clips").glob("*.json")
    clips = tmp_path / "clips"
    clips.mkdir()
    for file in (sidecar, *([sidecar.with_suffix(".mp4")] if is_here else [])):
        os.link(file, clips / file.name)
    clip, start_sec = clips / f"{sidecar.stem}.mp4", json.loads(sidecar.read_text())["obtained"]["start_ms"] / 1000
    found, camera_name = (("freeze", (7.0, 19.0)),), capture_analyzer.camera_of(clip)
    scan = capture_analyzer.Scan(clip, camera_name, "precise", "ok", "", 60, found)
    for incident in capture_analyzer.video_incidents(scan, "0" * 64, start_sec):
        capture_analyzer.Database(str(tmp_path / "all.sqlite3")).store(incident)
    config, page = tmp_path / "config.yaml", tmp_path / "report.html"
    config.write_text(json.dumps({"analysis": {"database": str(tmp_path / "all.sqlite3")}}))
    assert capture_analyzer.main(["report", str(clips), "--output", str(page), "--config", str(config)]) == 0
    (camera,) = page_data(page)["cameras"]
    assert [7, 19, "freeze"] in [mark[:3] for mark in camera["marks"]]


def test_an_archive_as_nas_sync_leaves_it_is_read_with_its_journals(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", 0.4)
    lines = [segment("Gate", NOON, NOON + 600), down(NOON + 600, NOON + 900, "refused")]
    lines.append(segment("Gate", NOON + 900, NOON + 1200))
    target = tmp_path / "nas"
    (target / "journal/Gate").mkdir(parents=True)
    (target / "journal/Gate/2026-03-28.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (target / "Gate/2026/03/28").mkdir(parents=True)
    for line in (lines[0], lines[2]):
        os.link(clip, target / "Gate/2026/03/28" / Path(line["file"]).name)
    evidence = target / "alerts/freeze/Gate/20260328T120000Z_0123abcd_clip_segment_7.ts"
    evidence.parent.mkdir(parents=True)
    evidence.touch()
    assert report(tmp_path / "report.html", target).returncode == 0
    (camera,) = page_data(tmp_path / "report.html")["cameras"]
    assert (camera["name"], camera["here"], camera["gone"]) == ("Gate", [0, 600, 900, 1200], [])
    assert camera["gaps"] == [[600, 900, "refused", "camera"]]


def test_a_clip_that_was_archived_and_removed_here_stays_on_the_page_by_its_sidecar_and_is_told_once(site, tmp_path):
    both = tmp_path / "both"
    (both / "clips").mkdir(parents=True)
    (sidecar,) = (site / "clips").glob("*.json")
    (both / "clips" / sidecar.name).write_bytes(sidecar.read_bytes())
    assert report(tmp_path / "report.html", both).returncode == 0
    (camera,) = page_data(tmp_path / "report.html")["cameras"]
    assert (camera["here"], camera["gone"], camera["files"]) == ([], [0, 60], [])
    assert [mark[2] for mark in camera["marks"]] == ["alert"]
    archive = tmp_path / "nas"
    archive.mkdir()
    for file in (sidecar, sidecar.with_suffix(".mp4")):
        os.link(file, archive / file.name)
    assert report(tmp_path / "report.html", both, archive).returncode == 0
    (camera,) = page_data(tmp_path / "report.html")["cameras"]
    assert (camera["here"], camera["gone"]) == ([0, 60], [])
    assert [mark[2] for mark in camera["marks"]] == ["alert"]


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["missing"], 2, "missing: there is no such folder"),
        (["empty"], 3, "nothing to report: no footage was found"),
        (["Gate", "--timezone", "Mars/Olympus"], 2, "timezone: there is no time zone 'Mars/Olympus'"),
        (["Gate", "--incidents", "metrics.csv"], 2, "is no output of `video --json`"),
        (["Gate", "--metrics", "found.jsonl"], 2, "is no output of `video --metrics`"),
        (["Gate", "--metrics", "none.csv"], 2, "--metrics none.csv: No such file or directory"),
        (["Gate", "--since", "2030-01-01", "--until", "2029-01-01"], 2, "--since is not before --until"),
        (["Gate", "--output", "missing/report.html"], 2, "cannot be written"),
    ],
)
def test_a_report_that_cannot_be_made_is_one_sentence_and_no_page(words, status, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("Gate").mkdir()
    Path("Gate/20260328_120000.mp4").write_bytes(b"x")
    Path("found.jsonl").write_text('{"summary": {}}\n')
    Path("metrics.csv").write_text("file,kind\nx,y\n")
    command = [*PROGRAM, "report", *words, "--config", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not Path("report.html").exists()


def test_a_file_without_content_is_no_footage_whatever_its_name_or_record_says(tmp_path):
    gate = tmp_path / "Gate"
    make_clip(gate / "20260328_120000.mp4", 0.4)
    os.utime(gate / "20260328_120000.mp4", (NOON + 600, NOON + 600))
    for start, name in ((NOON + 600, "20260328_121000.mp4"), (NOON + 1200, "20260328_122000.mp4")):
        (gate / name).touch()
        os.utime(gate / name, (start + 600, start + 600))
    journal(tmp_path, "Gate", segment("Gate", NOON + 600, NOON + 1200), segment("Gate", NOON + 1800, NOON + 2400))
    done = report(tmp_path / "report.html", tmp_path)
    assert [f"{name}.mp4: left out: the file is empty" in done.stderr for name in (gate / "20260328_121000",
            gate / "20260328_122000")] == [True, True]  # fmt: skip
    (camera,) = page_data(tmp_path / "report.html")["cameras"]
    assert (camera["here"], camera["gone"]) == ([0, 600], [600, 1200, 1800, 2400])
    assert [gap[:2] for gap in camera["gaps"]] == [[1200, 1800]]


def test_odd_files_do_not_stop_a_report(tmp_path):
    gate = tmp_path / "Gate"
    gate.mkdir()
    name = os.fsencode(gate) + b"/20260328_120000_\xff\xfe.mp4"
    Path(os.fsdecode(name)).write_bytes(b"x")
    for odd in ("20361332_996099.mp4", "20260328_130000.mp4.part", "notes.mp4", "20260328_140000.mp4"):
        (gate / odd).write_bytes(b"x")
    (gate / "20260328_140000.json").write_text('{"camera": [], "obtained": 5}')
    (gate / "20260328_150000.mkv").symlink_to(gate / "nowhere")
    os.utime(gate / "20260328_140000.mp4", (0, 0))
    started = time.time()
    done = report(tmp_path / "report.html", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(page_data(tmp_path / "report.html")["cameras"]) == 1
    assert time.time() - started < 60


def test_video_draws_the_page_of_report_about_what_it_has_scanned(tmp_path):
    clip = make_clip(tmp_path / "Gate" / "20260328_120000.mp4", 2)
    journal(
        tmp_path,
        "Gate",
        segment("Gate", NOON - DAY, NOON - DAY + HOUR),
        segment("Gate", NOON, NOON + 2),
    )
    nameless = make_clip(tmp_path / "other" / "clip.mp4")
    os.utime(nameless, (NOON + 60, NOON + 60))
    frozen = ["-f", "lavfi", "-i", "color=black:size=320x180:rate=5", "-t", "8", "-g", "5"]
    black = tmp_path / "Yard" / "20260328_120030.mp4"
    black.parent.mkdir()
    subprocess.run([find_ffmpeg("tests"), "-loglevel", "error", *frozen, str(black)], check=True)
    page, metrics = tmp_path / "page.html", tmp_path / "metrics.csv"
    words = [str(tmp_path), "--output", str(page), "--metrics", str(metrics), "--json", "--config", os.devnull]
    done = subprocess.run([*PROGRAM, "video", *words], capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, "TZ": "UTC"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "summary" in json.loads(done.stdout.splitlines()[-1])
    data = page_data(page)
    cameras = {camera["name"]: camera for camera in data["cameras"]}
    assert list(cameras) == ["Gate", "other", "Yard"]
    assert data["start"] == NOON, "what the journal knows of the day before was not scanned"
    assert [cameras[name]["files"][0][3] for name in cameras] == [clip.name, nameless.name, black.name]
    assert [mark[:3] for mark in cameras["Yard"]["marks"]] == [[30, 38, "blackscreen"]]
    assert "brightness" in cameras["Yard"]["curves"]


def test_video_refuses_a_page_that_cannot_be_written_before_it_looks_at_anything(tmp_path):
    words = ["video", str(tmp_path), "--output", str(tmp_path / "no" / "page.html"), "--config", os.devnull]
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be written; name a file in a folder that is there" in done.stderr
