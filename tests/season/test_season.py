"""A short season in each direction of the clocks; season.py lives through longer ones by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import season
from conftest import need


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1])
def test_after_a_season_the_books_balance_to_the_second(seed: int) -> None:
    need("rsync")
    lived = season.play(seed, days=2)
    assert not lived.problems, season.report(lived)
    assert lived.runs["nas_sync run: 0"], "the archive ran"


def test_a_seed_repeats_its_season() -> None:
    assert season.make_plan(5, 14, True) == season.make_plan(5, 14, True)
    assert season.make_plan(5, 14, True) != season.make_plan(6, 14, True)


def test_what_a_camera_sends_and_its_deaths_fill_the_season_without_overlap() -> None:
    plan = season.make_plan(3, 21, True)
    for camera in season.CAMERAS:
        deaths = [(one.start, min(one.end, plan.end)) for one in plan.events
                  if one.what == "dead" and one.who == camera]  # fmt: skip
        pieces = season.pieces_of(plan, camera)
        assert season.join([*pieces, *deaths]) == [(plan.start, plan.end)]
        assert sum(stop - start for start, stop in season.join(pieces) + season.join(deaths)) == plan.end - plan.start
