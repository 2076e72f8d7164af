"""What a camera looks at: covered, out of focus, moved, a card; and what must not be taken for one of these.

Recordings and stills are made from scenes of analyzer_cases.py; the whole collection runs in the slow test at the end,
and, with its figures, in benchmarks/bench_analyzer.py.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from analyzer_cases import make, view_cases
from conftest import need

import capture_analyzer as ca
from rhombus_logging import Status, UsageError, load_config

DEFAULTS = load_config(None, ("analysis",), Path("/nonexistent"))["analysis"]
ALL = {**DEFAULTS, "views": list(ca.VIEW_TYPES)}
RULES = ca.rules_of(ALL)
MASK = ca.mask_of(DEFAULTS, "")
CASES = {case.name: case for case in view_cases()}
NOTHING_WRONG = dict.fromkeys(ca.VIEW_TYPES, False)


@pytest.fixture(scope="session")
def recording(tmp_path_factory):
    need("ffmpeg")
    folder = tmp_path_factory.mktemp("views")
    return lambda name: make(CASES[name], folder)


def scan(path: Path, settings=ALL, *, precise: bool = False) -> ca.Scan:
    return ca.Scanner("ffmpeg", ca.rules_of(settings), settings, precise, threads=1).scan(path)


def of_views(found: ca.Scan) -> list[tuple[str, float, float]]:
    return [(kind, round(start, 1), round(end, 1)) for kind, (start, end) in found.incidents if kind in ca.VIEW_TYPES]


# --- recordings ---


@pytest.mark.parametrize(
    ("name", "kind", "start_sec", "end_sec"),
    [("covered by hand grey 2", "covered", 40, 60), ("no signal, bars 0", "no_signal", 40, 60),
     ("defocus 6 0", "defocus", 40, 60), ("turned elsewhere 0", "moved", 44, 80)],
)  # fmt: skip
def test_what_happens_to_the_view_is_found_by_key_pictures_alone(recording, name, kind, start_sec, end_sec):
    found = scan(recording(name))
    assert (found.pictures, found.views) in (("keyframes", "ok"), ("precise", "ok"))
    ((what, start, end),) = of_views(found)
    assert what == kind
    assert abs(start - start_sec) <= 2 and abs(end - end_sec) <= 2, "a key picture every 2 s"
    assert found.about(what, (start, end)) == {"severity": "warning"}


@pytest.mark.parametrize("name", ["dense fog within 35 s 0", "infrared switch 0", "lamps on 3", "truck for 8 s 2"])
def test_fog_infrared_light_and_a_lorry_are_nothing_of_the_kind(recording, name):
    found = scan(recording(name), precise=True)
    assert (found.views, of_views(found)) == ("ok", [])


def test_a_camera_that_looks_here_and_there_is_unknown_and_no_incident(recording):
    found = scan(recording("tour of presets 1"))
    assert (found.views, of_views(found)) == ("unknown", [])


def test_defocus_and_moved_are_looked_for_only_where_they_are_switched_on(recording):
    assert of_views(scan(recording("turned elsewhere 0"), DEFAULTS)) == []
    assert scan(recording("turned elsewhere 0"), {**DEFAULTS, "views": []}).views == "off"


def test_video_tells_views_and_metrics_keep_what_the_verdict_came_from(recording, tmp_path, capsys):
    path, metrics = recording("covered by hand grey 2"), tmp_path / "metrics.csv"
    assert ca.main(["video", str(path), "--json", "--metrics", str(metrics)]) == Status.DONE
    told, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert told["views"] == "ok"
    assert [(one["type"], one["severity"]) for one in told["incidents"] if one["type"] in ca.VIEW_TYPES] == [
        ("covered", "warning")]  # fmt: skip
    assert summary["summary"]["incidents"]["covered"] == 1
    with metrics.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["kind"] == "view"]
    assert len(rows) >= 39
    alike = {float(row["time_sec"]): float(row["likeness"]) for row in rows}
    assert all((value < ca.VIEW_SAME) == (40 <= at_sec < 60) for at_sec, value in alike.items())
    assert all(float(row[name]) >= 0 for row in rows for name in ("energy", "fine", "flat", "grain"))


def test_a_name_that_is_no_view_is_refused():
    with pytest.raises(UsageError, match="analysis.views: 'blurred' is none of covered, defocus, moved, no_signal"):
        ca.rules_of({**DEFAULTS, "views": ["blurred"]})
