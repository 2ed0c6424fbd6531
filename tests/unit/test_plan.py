"""What a tick does with a schedule: on time, missed, and what is next; and that no due time is ever made twice."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue.errors import InvalidOption
from pgqueue.plan import MAX_AGE, MAX_DUES, MAX_ON_TIME, DueSchedule, Missed, Plan, Run, coming, plan

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=length) for length in (1, 60, 3600, 86_400))


def at(clock: str) -> datetime:
    """That time of the first of July, in UTC."""
    return datetime.fromisoformat(f"2026-07-01T{clock}+00:00")


def schedule(**given: Any) -> DueSchedule:
    """A schedule that is due at noon, and looked at then; made an hour before."""
    row: dict[str, Any] = {
        "name": "nightly",
        "created_at": NOON - HOUR,
        "changed_at": NOON - HOUR,
        "due_at": NOON,
        "now": NOON,
        "cron": None,
        "seconds": None,
        "every": None,
        "at": None,
        "tz": "UTC",
        "starts_at": None,
        "ends_at": None,
        "grace": 15.0,
        "missed": "once",
        "missed_limit": 100,
    }
    return DueSchedule(**row | given)


def minutely(**given: Any) -> DueSchedule:
    return schedule(cron="* * * * *", **given)


def test_what_is_due_runs_and_the_next_due_time_lies_after_now() -> None:
    now = NOON + timedelta(milliseconds=20)
    assert plan(minutely(now=now)) == Plan((Run(NOON, "enqueued"),), at("12:01:00"))


def test_what_is_late_within_the_grace_runs_all_of_it_oldest_first() -> None:
    every_second = schedule(cron="* * * * * *", seconds="last", now=at("12:00:03"), grace=3)
    assert plan(every_second) == Plan(
        tuple(Run(NOON + late * SECOND, "enqueued") for late in range(4)), at("12:00:04")
    )


def test_lateness_of_exactly_the_grace_is_on_time() -> None:
    assert plan(minutely(now=NOON + 15 * SECOND)).runs == (Run(NOON, "enqueued"),)
    late = NOON + 15 * SECOND + timedelta(microseconds=1)
    assert plan(minutely(now=late)).runs == (Run(NOON, "caught_up"),)


def test_skip_notes_the_latest_that_was_missed_with_their_number() -> None:
    assert plan(minutely(missed="skip", now=at("12:10:05"))).runs == (
        Run(at("12:09:00"), "missed", missed=10),
        Run(at("12:10:00"), "enqueued"),
    )


def test_once_runs_the_latest_that_was_missed_in_place_of_the_others() -> None:
    assert plan(minutely(missed="once", now=at("12:10:05"))).runs == (
        Run(at("12:09:00"), "caught_up", missed=9),
        Run(at("12:10:00"), "enqueued"),
    )


def test_all_runs_what_was_missed_up_to_its_limit() -> None:
    assert plan(minutely(missed="all", now=at("12:03:05"))).runs == (
        *(Run(NOON + late * MINUTE, "caught_up") for late in range(3)),
        Run(at("12:03:00"), "enqueued"),
    )
    assert plan(minutely(missed="all", missed_limit=2, now=at("12:10:05"))).runs == (
        Run(at("12:07:00"), "missed", missed=8),
        Run(at("12:08:00"), "caught_up"),
        Run(at("12:09:00"), "caught_up"),
        Run(at("12:10:00"), "enqueued"),
    )


@pytest.mark.parametrize("missed", get_args(Missed))
def test_nothing_is_missed_where_nothing_is_late(missed: Missed) -> None:
    assert plan(minutely(missed=missed)) == Plan((Run(NOON, "enqueued"),), at("12:01:00"))


def test_the_stored_due_time_counts_whatever_the_timing_says_today() -> None:
    moved = at("11:59:30")
    assert plan(minutely(due_at=moved, now=at("12:00:01"), grace=60)).runs == (
        Run(moved, "enqueued"),
        Run(NOON, "enqueued"),
    )


def test_a_schedule_that_is_to_be_planned_is_due_first_after_its_change() -> None:
    made = NOON - 10 * SECOND
    assert plan(minutely(due_at=None, changed_at=made, now=made)) == Plan((), NOON)
    assert plan(minutely(due_at=None, changed_at=NOON, now=NOON)) == Plan((), at("12:01:00"))
    # and when that is past already, it is a due time like any other
    assert plan(minutely(due_at=None, changed_at=made, now=at("12:00:05"))) == Plan(
        (Run(NOON, "enqueued"),), at("12:01:00")
    )
    assert plan(minutely(due_at=None, changed_at=made, now=at("12:02:30"))).runs == (
        Run(at("12:02:00"), "caught_up", missed=2),
    )


def test_an_interval_counts_from_when_it_was_made() -> None:
    half_hourly = schedule(every=1800.0, due_at=None, created_at=at("10:10:07"), changed_at=at("11:50:00"))
    assert plan(half_hourly._replace(now=at("11:50:00"))) == Plan((), at("12:10:07"))
    first = half_hourly._replace(changed_at=at("10:10:07"), now=at("10:10:07"))
    assert plan(first) == Plan((), at("10:40:07"))


def test_an_interval_with_a_start_counts_from_that_and_is_due_then() -> None:
    hourly = schedule(every=3600.0, due_at=None, starts_at=at("12:30:00"))
    assert plan(hourly) == Plan((), at("12:30:00"))
    assert plan(hourly._replace(starts_at=at("08:15:00"))).next_due_at == at("12:15:00")


@pytest.mark.parametrize(
    ("starts", "ends", "now", "expected"),
    [
        ("12:05:00", None, "12:00:00", ([], "12:05:00")),
        ("12:04:30", None, "12:00:00", ([], "12:05:00")),
        (None, "12:01:00", "12:00:00", (["12:00:00"], "12:01:00")),
        (None, "12:00:59", "12:00:00", (["12:00:00"], None)),
        (None, "12:02:00", "12:05:00", (["12:00:00", "12:01:00", "12:02:00"], None)),
        ("12:03:00", None, "12:04:00", (["12:03:00", "12:04:00"], "12:05:00")),
        (None, "11:00:00", "12:00:00", ([], None)),
    ],
)
def test_start_and_end_bound_the_due_times_and_belong_to_them(
    starts: str | None, ends: str | None, now: str, expected: tuple[list[str], str | None]
) -> None:
    bounds: dict[str, Any] = {"starts_at": starts and at(starts), "ends_at": ends and at(ends)}
    dues, following = expected
    planned = plan(minutely(now=at(now), grace=3600, **bounds))
    assert [run.due_at for run in planned.runs] == [at(due) for due in dues]
    assert planned.next_due_at == (following and at(following))


def test_bounds_may_be_given_in_any_zone() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2026, 10, 25, 2, 0, fold=1, tzinfo=berlin)  # 01:00 UTC, the moment of the change
    midnight = datetime(2026, 10, 25, tzinfo=UTC)
    hourly = schedule(cron="@hourly", starts_at=start, due_at=None, changed_at=midnight, now=midnight)
    assert plan(hourly) == Plan((), start.astimezone(UTC))


def test_a_schedule_for_one_time_runs_once_and_never_again() -> None:
    once = schedule(at=NOON, due_at=None, changed_at=NOON - HOUR, now=NOON - MINUTE)
    assert plan(once) == Plan((), NOON)
    assert plan(once._replace(due_at=NOON, now=NOON + SECOND)) == Plan((Run(NOON, "enqueued"),), None)


@pytest.mark.parametrize("missed", ["once", "all", "skip"])
def test_one_time_that_had_passed_when_it_was_said_never_comes(missed: Missed) -> None:
    late = schedule(at=NOON - DAY, due_at=None, changed_at=NOON - HOUR, missed=missed)
    assert plan(late) == Plan((), None)
    just_now = schedule(at=NOON - SECOND, due_at=None, changed_at=NOON, missed=missed)  # at => now()
    assert plan(just_now) == Plan((Run(NOON - SECOND, "enqueued"),), None)


def test_a_start_is_due_when_it_was_and_never_late() -> None:
    assert plan(schedule(due_at=None)) == Plan((), None)
    assert plan(schedule(grace=0.0, missed="skip", now=NOON + MINUTE)) == Plan((Run(NOON, "enqueued"),), None)


def test_what_is_stored_unchecked_is_refused() -> None:
    rows: list[tuple[dict[str, Any], str]] = [
        ({"cron": "0 0 30 2 *"}, "never comes"),
        ({"cron": "R * * * *"}, "no value is picked"),
        ({"cron": "0 3 * * *", "tz": "Mars/Phobos"}, "there is no zone"),
        ({"every": 0.1}, "every: expected at least 1 s"),
    ]
    for row, message in rows:
        for due_at in (None, NOON):
            with pytest.raises(InvalidOption, match=message):
                plan(schedule(**row, due_at=due_at))


def test_coming_due_times_go_on_to_the_end() -> None:
    assert list(islice(coming(minutely(), NOON), 2)) == [at("12:01:00"), at("12:02:00")]
    assert list(coming(minutely(ends_at=at("12:02:30")), NOON)) == [at("12:01:00"), at("12:02:00")]
    assert list(coming(schedule(), NOON)) == []


@pytest.mark.parametrize("missed", get_args(Missed))
def test_three_days_of_seconds_that_were_missed_are_planned_within_bounds_and_at_once(missed: Missed) -> None:
    down = schedule(
        cron="* * * * * *", seconds="last", missed=missed, missed_limit=1000, due_at=NOON - 3 * DAY
    )
    plan(down)  # the expression is read once
    began = time.thread_time()
    planned = plan(down)
    assert time.thread_time() - began < 0.25  # 0.01 s; the supervisor's loop waits for it
    outcomes = Counter(run.outcome for run in planned.runs)
    assert outcomes["enqueued"] == 16
    assert outcomes["caught_up"] == {"skip": 0, "once": 1, "all": 1000}[missed]
    assert sum(run.missed + (run.outcome != "missed") for run in planned.runs) == MAX_DUES
    assert planned.next_due_at == NOON + SECOND


def test_a_grace_of_days_runs_no_more_than_a_tick_can_bear() -> None:
    planned = plan(schedule(cron="* * * * * *", seconds="last", grace=1e6, due_at=NOON - DAY))
    assert Counter(run.outcome for run in planned.runs) == {"enqueued": MAX_ON_TIME, "caught_up": 1}


def test_what_was_due_long_ago_is_not_looked_for_but_the_stored_due_time_is() -> None:
    daily = schedule(cron="0 12 * * *", due_at=NOON - 1000 * DAY, missed="all", missed_limit=1000)
    planned = plan(daily)
    assert [run.due_at for run in planned.runs] == [
        NOON - 1000 * DAY,
        *(NOON - days * DAY for days in reversed(range(MAX_AGE.days))),
    ]


TIMINGS: list[tuple[dict[str, Any], float]] = [
    ({"cron": "* * * * * *", "seconds": "first"}, 1),
    ({"cron": "*/7 * * * * *", "seconds": "first"}, 7),
    ({"every": 5.5}, 5.5),
    ({"cron": "* * * * *"}, 60),
    ({"cron": "*/15 1-3 * * *", "tz": "Europe/Berlin"}, 900),
    ({"cron": "30 * * * *", "tz": "America/New_York"}, 3600),
    ({"cron": "0 2 * * *", "tz": "Europe/Berlin"}, 86_400),
]


MADE = datetime(2026, 10, 24, 23, 59, 58, 300_000, tzinfo=UTC)
"""An hour before the clocks of Berlin are changed, and a week before those of New York are."""


def live(
    timing: dict[str, Any], policy: dict[str, Any], waits: list[float]
) -> tuple[list[Run], list[datetime]]:
    """What ticks make of a schedule, one after each of the waits; and what was due in all that time."""
    held = schedule(**timing, **policy, created_at=MADE, changed_at=MADE, due_at=None, now=MADE)
    runs: list[Run] = []
    for wait in waits:
        held = held._replace(now=held.now + timedelta(seconds=wait))
        if held.due_at is None or held.due_at <= held.now:
            planned = plan(held)
            runs += planned.runs
            assert planned.next_due_at is not None
            assert planned.next_due_at > held.now
            held = held._replace(due_at=planned.next_due_at)
    return runs, list(takewhile(lambda due: due <= held.now, coming(held, MADE)))


timings = st.sampled_from(TIMINGS)
graces = st.floats(0, 120)
waits = st.lists(st.one_of(st.floats(0.001, 3), st.floats(0.001, 60)), min_size=1, max_size=8)
"""In due times, about."""


@settings(deadline=None, max_examples=150)
@given(timings, graces, waits)
def test_all_makes_each_due_time_exactly_once(
    timing: tuple[dict[str, Any], float], grace: float, waits: list[float]
) -> None:
    policy = {"missed": "all", "missed_limit": 1000, "grace": grace}
    runs, due = live(timing[0], policy, [wait * timing[1] for wait in waits])
    assert [run.due_at for run in runs] == due
    assert {run.outcome for run in runs} <= {"enqueued", "caught_up"}
    assert not any(run.missed for run in runs)


@settings(deadline=None, max_examples=150)
@given(timings, graces, st.sampled_from(get_args(Missed)), st.integers(1, 20), waits)
def test_no_due_time_is_made_twice_and_every_one_is_counted(
    timing: tuple[dict[str, Any], float], grace: float, missed: Missed, limit: int, waits: list[float]
) -> None:
    policy = {"missed": missed, "missed_limit": limit, "grace": grace}
    runs, due = live(timing[0], policy, [wait * timing[1] for wait in waits])
    assert all(earlier.due_at < later.due_at for earlier, later in pairwise(runs))
    assert {run.due_at for run in runs} <= set(due)
    assert sum(run.missed + (run.outcome != "missed") for run in runs) == len(due)
