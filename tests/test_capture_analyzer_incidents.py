"""The incident machine: samples with times go in, events come out. No clock, no file, no database."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import capture_analyzer as ca
from capture_analyzer import Event, IncidentMachine, Patience, Sample

PATIENCE = Patience(
    alarm_sec={"blackscreen": 5, "freeze": 10, "audio_loss": 10, "covered": 10, "no_signal": 10},
    bad_share=0.8,
    clear_sec=5,
    reopen_sec=60,
    no_data_sec=30,
)
VERDICTS = {"B": True, ".": False, "?": None}


def machine(state=None, patience=PATIENCE):
    return IncidentMachine("host", "cam", patience, state)


def play(one: IncidentMachine, verdicts: str, start: float = 0, step: float = 1, name="blackscreen") -> list[Event]:
    """One sample per character, `step` seconds apart: B bad, . good, ? unknown, - no still at all."""
    events: list[Event] = []
    for place, letter in enumerate(verdicts):
        at = start + place * step
        if letter != "-":
            events += one.arrived(at, f"s{at:g}@1")
            events += one.observe(name, Sample(at, VERDICTS[letter], f"s{at:g}@1"))
    return events


def told(events):
    return [(event.kind, event.incident.incident_type, event.incident.start_sec, event.incident.end_sec)
            for event in events]  # fmt: skip


def opened(at):
    return ("opened", "blackscreen", at, None)


# --- rules ---


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (".....BBBBBB", [opened(5)]),
        (".....BBBBB......", []),
        (".B" * 50, []),
        ("B..........", []),
        ("..BB" * 20, []),
        (".BBBB.BBBB", [opened(1)]),
        ("BBBBBB......", [opened(0), ("resolved", "blackscreen", 0, 6)]),
        ("BBBBBB....B....B....BB.....", [opened(0)]),
        ("BBBBBB....B......", [opened(0), ("resolved", "blackscreen", 0, 11)]),
        ("????????????????", []),
        ("BB" + "?" * 30 + "BB", []),
        ("BBB" + "?" * 20 + "BBBBB", [opened(0)]),
        ("BBBBBB" + "?" * 100, [opened(0)]),
        ("BBBBBB..???????...???...", [opened(0), ("resolved", "blackscreen", 0, 6)]),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_an_incident_opens_after_the_alarm_minimum_and_ends_after_the_clear_time(verdicts, expected):
    assert told(play(machine(), verdicts)) == expected


def test_ten_alternating_samples_open_nothing_and_end_nothing_that_is_open():
    one = machine()
    assert play(one, "B.B.B.B.B.") == []
    assert len(play(one, "BBBBBB", 20)) == 1
    assert play(one, "B.B.B.B.B.B.B.B.", 26) == []
    assert one.active()[0].start_sec == 20


def test_start_is_the_first_bad_sample_and_end_the_first_good_one_not_the_time_of_detection():
    events = play(machine(), "...BBBBBBBB........")
    assert told(events) == [opened(3), ("resolved", "blackscreen", 3, 11)]
    assert (events[0].last_good, events[0].first_bad, events[1].first_good) == ("s2@1", "s3@1", "s11@1")
    assert events[1].incident.consecutive_count == 8


def test_the_same_type_within_60_seconds_reopens_the_same_incident():
    events = play(machine(), "BBBBBB" + "." * 60 + "BBBBBB......")
    assert [event.kind for event in events] == ["opened", "resolved", "reopened", "resolved"]
    assert len({event.incident.alert_id for event in events}) == 1
    assert (events[-1].incident.start_sec, events[-1].incident.end_sec) == (0, 72)
    assert events[-1].incident.consecutive_count == 12


def test_the_same_type_later_is_another_incident():
    events = play(machine(), "BBBBBB" + "." * 61 + "BBBBBB")
    assert [event.kind for event in events] == ["opened", "resolved", "opened"]
    assert events[0].incident.alert_id != events[2].incident.alert_id


def test_a_freeze_that_is_known_only_after_seconds_starts_where_the_picture_stopped():
    one, events = machine(), []
    for at in range(30):
        frozen = at >= 14  # the picture stands still since 10
        events += one.observe("freeze", Sample(at, frozen, f"s{at}@1", since_sec=10 if frozen else None))
    assert told(events) == [("opened", "freeze", 10, None)]
    assert (events[0].last_good, events[0].first_bad) == ("s9@1", "s10@1")


def test_stills_further_apart_than_the_alarm_minimum_need_two_bad_ones():
    assert told(play(machine(), "...BB", step=20)) == [opened(60)]
    assert play(machine(), "...B..", step=20) == []


# --- no data ---


def test_no_still_for_30_seconds_is_no_data_and_the_next_one_ends_it():
    one = machine()
    play(one, "....")
    assert one.silence(32.9) == []
    assert told(one.silence(33)) == [("opened", "no_data", 3, None)]
    assert one.silence(50) == []
    assert told(one.arrived(60)) == [("resolved", "no_data", 3, 60)]


def test_an_outage_that_is_over_already_is_found_from_the_times_of_the_stills():
    assert told(play(machine(), "..." + "-" * 40 + "...")) == [("opened", "no_data", 2, None),
                                                               ("resolved", "no_data", 2, 43)]  # fmt: skip


def test_a_capture_with_a_still_every_minute_is_silent_only_after_three_minutes():
    one = machine()
    play(one, "......", step=60, start=60)  # the first distances are learnt
    one = machine(one.state() | {"watches": {}})
    assert one.silence(360 + 179) == []
    assert told(one.silence(360 + 180)) == [("opened", "no_data", 360, None)]


def test_a_broken_still_is_data_although_nothing_is_known_from_it():
    one = machine()
    assert play(one, "?" * 100) == []
    assert one.silence(100) == []


def test_a_gap_counts_for_no_timer():
    assert [event.incident.incident_type for event in play(machine(), "BB" + "-" * 60 + "BB")] == ["no_data", "no_data"]


# --- clocks and restarts ---


def test_a_clock_that_jumps_ahead_or_back_opens_nothing_by_itself():
    one = machine()
    play(one, "..B")
    one.pause()
    assert play(one, "B..", 3600) == []
    assert play(one, "..B..", 100) == []
    assert one.active() == []


def test_an_incident_never_ends_before_it_began_even_when_the_clock_is_set_back():
    one = machine()
    play(one, "BBBBBB", 1000)
    events = play(one, "........", 10)
    assert [(event.kind, event.incident.start_sec, event.incident.end_sec) for event in events] == [
        ("resolved", 1000, 1000)]  # fmt: skip


def test_a_state_of_another_version_is_forgotten_instead_of_failing():
    one = machine({"watches": {"blackscreen": {"colour": "blue"}}, "last_sec": 3})
    assert one.watches["blackscreen"] == ca.Watch()


@given(st.text("B.?-", max_size=120), st.integers(0, 119))
def test_a_restart_at_any_time_changes_nothing(verdicts, cut):
    whole = machine()
    expected = play(whole, verdicts)
    first = machine()
    events = play(first, verdicts[:cut])
    second = machine(json.loads(json.dumps(first.state())))
    events += play(second, verdicts[cut:], cut)
    assert events == expected
    assert second.state() == whole.state()


# --- what holds for every sequence ---

SEQUENCES = st.lists(
    st.tuples(st.sampled_from("BBB..?"), st.floats(-30, 90, allow_nan=False).map(lambda step: round(step, 1))),
    max_size=150,
)


def run_through(sequence, patience=PATIENCE):
    one, at, events = machine(patience=patience), 1000.0, []
    for letter, step in sequence:
        at += step
        events += one.arrived(at, f"s{at}@1")
        events += one.observe("blackscreen", Sample(at, VERDICTS[letter], f"s{at}@1"))
    return one, events


@given(SEQUENCES)
def test_every_incident_opens_once_before_it_ends_once_and_lasts_no_negative_time(sequence):
    one, events = run_through(sequence)
    for name in ("blackscreen", "no_data"):
        is_open = False
        for event in events:
            if event.incident.incident_type != name:
                continue
            assert (event.kind == "resolved") is is_open
            is_open = event.kind != "resolved"
            if not is_open:
                assert event.incident.end_sec >= event.incident.start_sec
                assert event.incident.status == "resolved"
        assert is_open is (name in [incident.incident_type for incident in one.active()])
    assert len({incident.incident_type for incident in one.active()}) == len(one.active())


@given(SEQUENCES)
def test_what_has_to_be_remembered_stays_small_however_long_it_goes_on(sequence):
    one, _events = run_through(sequence)
    assert len(json.dumps(one.state())) < 20_000
    assert len(one.refs()) <= ca.RECENT_KEPT + 5


@given(st.lists(st.sampled_from([False, None]), max_size=200))
def test_without_a_bad_sample_there_is_no_incident(verdicts):
    one = machine()
    for at, bad in enumerate(verdicts):
        assert one.observe("freeze", Sample(at, bad)) == []


@given(st.text("BBBB.", max_size=100), st.sampled_from([0.5, 1, 2, 7]))
def test_whatever_opens_was_bad_in_four_fifths_of_the_samples_for_the_alarm_minimum(verdicts, step):
    one = machine()
    for place, letter in enumerate(verdicts):
        for event in play(one, letter, place * step):
            if event.kind == "opened":
                first = round(event.incident.start_sec / step)
                window = verdicts[first : place + 1]
                assert window.count("B") / len(window) >= 0.8
                assert window[0] == window[-1] == "B"
                assert (place - first) * step >= 5


@given(st.text("B.", min_size=1, max_size=60))
def test_an_unknown_sample_between_all_others_only_delays(verdicts):
    """With every second sample unknown no known time passes at all."""
    mixed = "?".join(verdicts)
    assert play(machine(), mixed) == []


def test_an_alert_has_the_same_id_when_it_is_found_again():
    one, other = machine(), machine()
    assert play(one, "BBBBBB")[0].incident.alert_id == play(other, "BBBBBB")[0].incident.alert_id
    elsewhere = IncidentMachine("host", "other", PATIENCE)
    assert play(elsewhere, "BBBBBB")[0].incident.alert_id != play(machine(), "BBBBBB")[0].incident.alert_id


# --- settings ---


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [("clear_sec", -1, "analysis.clear_sec: -1 is less than 0"), ("alarm_percent", 50, "is not from 51 to 100"),
     ("no_data_alarm_sec", 0, "must be at least 1")],
)  # fmt: skip
def test_times_that_cannot_be_meant_are_refused_by_name(key, value, sentence):
    settings = {name: one.default for name, one in ca_keys().items()}
    assert ca.patience_of(settings).alarm_sec == PATIENCE.alarm_sec
    assert replace(ca.patience_of(settings), alarm_sec=PATIENCE.alarm_sec) == PATIENCE
    with pytest.raises(ca.UsageError, match=sentence):
        ca.patience_of({**settings, key: value})


def ca_keys():
    from rhombus_logging import CONFIG_KEYS

    return CONFIG_KEYS["analysis"]
