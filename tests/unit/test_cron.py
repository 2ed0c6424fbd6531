"""When a schedule is due: by the book of cronsim, by the clock on the wall, and in the nights when clocks are changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice, takewhile
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pgqueue.cron import At, Cron, Every, Timing, check_every, check_moment
from pgqueue.errors import InvalidOption

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def due_after(timing: Timing, moment: datetime) -> Iterator[datetime]:
    due: datetime | None = moment
    while due is not None and (due := timing.after(due)) is not None:
        yield due


def due_within(timing: Timing, since: datetime, moment: datetime) -> list[datetime]:
    """The due times of a stretch of time, walked forwards; walking back has to find the same."""
    forwards = list(takewhile(lambda due: due <= moment, due_after(timing, since)))
    assert list(timing.upto(moment, since))[::-1] == forwards
    return forwards


# Zones whose clocks are changed by whole hours, and not at midnight: there cronsim is right.
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo", "Australia/Sydney", "Europe/Dublin"]
CHANGES = {
    "Europe/Berlin": [utc(2026, 3, 29, 1), utc(2026, 10, 25, 1)],
    "America/New_York": [utc(2026, 3, 8, 7), utc(2026, 11, 1, 6)],
    "Australia/Sydney": [utc(2026, 10, 3, 16), utc(2027, 4, 3, 16)],
    "Europe/Dublin": [utc(2026, 3, 29, 1), utc(2026, 10, 25, 1)],
}
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


@st.composite
def field(draw: st.DrawFn, low: int, high: int, names: list[str] | None = None) -> str:
    """A field of a cron expression: anything that both croniter and cronsim know."""
    numbers = st.integers(low, high)
    step = st.integers(1, high)

    def span(two: list[int]) -> str:
        return f"{min(two)}-{max(two)}"

    spans = st.lists(numbers, min_size=2, max_size=2, unique=True).map(span)
    values = [numbers.map(str), spans, st.tuples(spans, step).map(lambda two: f"{two[0]}/{two[1]}")]
    if names is not None:
        values.append(st.sampled_from(names))
    return draw(
        st.one_of(
            st.just("*"),
            step.map(lambda every: f"*/{every}"),
            st.lists(st.one_of(values), min_size=1, max_size=3).map(",".join),
        )
    )


minutes, hours = field(0, 59), st.one_of(field(0, 23), field(1, 3))
days = st.one_of(
    st.tuples(st.just("*"), st.just("*")),
    st.tuples(field(1, 31), field(0, 7, WEEKDAYS)),
    st.tuples(st.just("L"), st.just("*")),
    st.tuples(
        st.just("*"), st.tuples(st.integers(0, 6), st.integers(1, 5)).map(lambda two: "{}#{}".format(*two))
    ),
)
expressions = st.tuples(minutes, hours, days, field(1, 12, MONTHS)).map(
    lambda parts: f"{parts[0]} {parts[1]} {parts[2][0]} {parts[3]} {parts[2][1]}"
)


@st.composite
def zones_and_moments(draw: st.DrawFn) -> tuple[str, datetime]:
    """A zone and a moment, every other time within hours of a change of the zone's clocks."""
    zone = draw(st.sampled_from(ZONES))
    if zone in CHANGES and draw(st.booleans()):
        seconds = draw(st.integers(-4 * 3600, 4 * 3600))
        moment = draw(st.sampled_from(CHANGES[zone])) + timedelta(seconds=seconds)
    else:
        moment = utc(2025, 1, 1) + timedelta(seconds=draw(st.integers(0, 5 * 366 * 86_400)))
    return zone, moment + timedelta(microseconds=draw(st.sampled_from([0, 1, 999_999])))


def by_cronsim(expression: str, zone: str, moment: datetime, *, back: bool, count: int = 6) -> list[datetime]:
    # It starts three hours early: of fixed times it forgets in which of the two hours of an autumn night `moment` lies.
    early = moment + (3 if back else -3) * HOUR
    dues = (
        due.astimezone(UTC) for due in CronSim(expression, early.astimezone(ZoneInfo(zone)), reverse=back)
    )
    wanted = (due for due in dues if (due <= moment if back else due > moment))
    return list(islice(wanted, count))


@settings(deadline=None, max_examples=250)
@given(expressions, zones_and_moments())
def test_the_next_due_times_are_those_of_cronsim(expression: str, place: tuple[str, datetime]) -> None:
    zone, moment = place
    expected = by_cronsim(expression, zone, moment, back=False)
    assume(expected)
    assert list(islice(due_after(Cron(expression, zone), moment), 6)) == expected


@settings(deadline=None, max_examples=250)
@given(expressions, zones_and_moments())
def test_the_last_due_times_are_those_of_cronsim(expression: str, place: tuple[str, datetime]) -> None:
    zone, moment = place
    expected = by_cronsim(expression, zone, moment, back=True)
    assume(expected)
    assert list(Cron(expression, zone).upto(moment, expected[-1] - SECOND)) == expected


@settings(deadline=None, max_examples=100)
@given(field(0, 59), minutes, hours, st.sampled_from(["first", "last"]), zones_and_moments())
def test_seconds_stand_where_the_schedule_says(
    seconds: str, minute: str, hour: str, stand: Any, place: tuple[str, datetime]
) -> None:
    assume(
        minute.startswith("*") or hour.startswith("*")
    )  # cronsim takes six fields for wild ones in any case
    zone, moment = place
    expected = by_cronsim(f"{seconds} {minute} {hour} * * *", zone, moment, back=False)
    given = [minute, hour, "*", "*", "*"]
    given.insert(0 if stand == "first" else 5, seconds)
    assert list(islice(due_after(Cron(" ".join(given), zone, stand), moment), 6)) == expected


NIGHTS: list[tuple[str, datetime, str, list[str]]] = [
    # Berlin, 29 March 2026: at 01:00 UTC the clocks go from 02:00 to 03:00.
    *(
        ("Europe/Berlin", utc(2026, 3, 29), expression, dues)
        for expression, dues in [
            ("30 2 * * *", ["01:00"]),  # skipped: at the change
            ("0 2 * * *", ["01:00"]),
            ("15,45 2 * * *", ["01:00"]),  # one run for both
            ("0 3 * * *", ["01:00"]),
            ("0 2,3 * * *", ["01:00"]),  # one run for both
            ("30 1 * * *", ["00:30"]),
            ("30 1-4 * * *", ["00:30", "01:00", "01:30", "02:30"]),
            ("30 * * * *", ["00:30", "01:30", "02:30"]),  # wild: by the wall, which is every hour
            ("*/30 1-3 * * *", ["00:00", "00:30", "01:00", "01:30"]),
            ("0 */2 * * *", ["02:00"]),  # 02:00 does not come; this is 04:00
            ("*/20 2 * * *", []),
            ("0 2 29 3 *", ["01:00"]),
        ]
    ),
    # Berlin, 25 October 2026: at 01:00 UTC the clocks go from 03:00 back to 02:00.
    *(
        ("Europe/Berlin", utc(2026, 10, 25), expression, dues)
        for expression, dues in [
            ("30 2 * * *", ["00:30"]),  # the first time
            ("0 2 * * *", ["00:00"]),
            ("15,45 2 * * *", ["00:15", "00:45"]),
            ("0 3 * * *", ["02:00"]),
            ("30 1-3 * * *", ["00:30", "02:30"]),
            ("30 * * * *", ["00:30", "01:30", "02:30"]),
            ("*/30 2 * * *", ["00:00", "00:30", "01:00", "01:30"]),  # wild: both times
            ("0 */2 * * *", ["00:00", "01:00"]),
            ("0 0-23 * * *", ["00:00", "02:00"]),  # fixed, though it is each hour: the second 02:00 has been
        ]
    ),
    # New York, 8 March 2026: at 07:00 UTC the clocks go from 02:00 to 03:00.
    *(
        ("America/New_York", utc(2026, 3, 8, 6), expression, dues)
        for expression, dues in [
            ("30 2 * * *", ["07:00"]),
            ("30 1 * * *", ["06:30"]),
            ("0 3 * * *", ["07:00"]),
            ("30 * * * *", ["06:30", "07:30", "08:30"]),
            ("0 */2 * * *", ["08:00"]),
        ]
    ),
    # New York, 1 November 2026: at 06:00 UTC the clocks go from 02:00 back to 01:00.
    *(
        ("America/New_York", utc(2026, 11, 1, 5), expression, dues)
        for expression, dues in [
            ("30 1 * * *", ["05:30"]),
            ("0 2 * * *", ["07:00"]),
            ("0 1,2 * * *", ["05:00", "07:00"]),
            ("*/30 1 * * *", ["05:00", "05:30", "06:00", "06:30"]),
            ("30 * * * *", ["05:30", "06:30", "07:30"]),
        ]
    ),
]


@pytest.mark.parametrize(("zone", "start", "expression", "dues"), NIGHTS)
def test_the_nights_in_which_clocks_are_changed(
    zone: str, start: datetime, expression: str, dues: list[str]
) -> None:
    """Three hours of such a night, from `start` on; times are in UTC."""
    cron, before = Cron(expression, zone), start - SECOND
    assert [due.strftime("%H:%M") for due in due_within(cron, before, start + 3 * HOUR - SECOND)] == dues
    for minute in range(0, 180, 5):  # from wherever one looks, forwards and back
        moment = start + timedelta(minutes=minute, seconds=30)
        clock = moment.strftime("%H:%M")
        following = cron.after(moment)
        assert following is not None
        later = [due for due in dues if due > clock]
        assert (following.strftime("%H:%M") if following < start + 3 * HOUR else None) == next(
            iter(later), None
        )
        assert [due.strftime("%H:%M") for due in cron.upto(moment, before)][::-1] == [
            due for due in dues if due <= clock
        ]


def test_fixed_times_with_seconds_are_moved_and_run_once_like_those_without() -> None:
    spring, autumn = utc(2026, 3, 29), utc(2026, 10, 25)
    cron = Cron("*/20 30 2 * * *", "Europe/Berlin", "first")
    assert due_within(cron, spring, spring + 3 * HOUR) == [utc(2026, 3, 29, 1)]
    assert due_within(cron, autumn, autumn + 3 * HOUR) == [
        utc(2026, 10, 25, 0, 30, second) for second in (0, 20, 40)
    ]


# Clocks that are changed by half an hour, by two hours, at midnight, for a month, and by a whole day.
STRANGE = [
    ("Australia/Lord_Howe", utc(2026, 4, 4, 15)),
    ("Australia/Lord_Howe", utc(2026, 10, 3, 15, 30)),
    ("Antarctica/Troll", utc(2026, 3, 29, 1)),
    ("Antarctica/Troll", utc(2026, 10, 25, 1)),
    ("America/Santiago", utc(2026, 4, 5, 3)),
    ("America/Santiago", utc(2026, 9, 6, 4)),
    ("Africa/Casablanca", utc(2026, 2, 15, 2)),
    ("Africa/Casablanca", utc(2026, 3, 22, 2)),
    ("Pacific/Apia", utc(2011, 12, 30, 10)),
    ("Pacific/Kwajalein", utc(1993, 8, 21, 12)),
    ("Asia/Kathmandu", utc(2026, 7, 1)),
]
some_hours = st.sets(st.integers(0, 23), min_size=1, max_size=8)
some_quarters = st.sets(st.sampled_from([0, 15, 30, 45]), min_size=1)


def by_the_minute(
    zone: ZoneInfo, minutes: set[int], hours: set[int], since: datetime, moment: datetime, *, is_wild: bool
) -> list[datetime]:
    """What the docstring of `Cron` says, found by looking at the clock each minute."""

    def on_the_wall(now: datetime) -> datetime:
        return now.astimezone(zone).replace(tzinfo=None, fold=0)

    dues = []
    now = since - 2 * DAY
    shown = on_the_wall(now)  # the latest time that the clock has shown
    while now < moment:
        now += timedelta(minutes=1)
        wall = on_the_wall(now)
        # wild: what the clock shows now; fixed: all that it had not shown, and has passed
        times = [wall]
        if not is_wild:
            times = [
                shown + timedelta(minutes=step + 1) for step in range(int((wall - shown) / SECOND) // 60)
            ]
        if now > since and any(time.minute in minutes and time.hour in hours for time in times):
            dues.append(now)
        shown = max(shown, wall)
    return dues


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(STRANGE),
    some_quarters,
    st.one_of(some_hours, st.sampled_from([set(range(24)), {0, 1, 2, 3}])),
    st.booleans(),
    st.integers(-30, 30),
    st.integers(0, 30),
)
@example(("Australia/Lord_Howe", utc(2026, 10, 3, 15, 30)), {15}, {2}, False, -1, 3)
@example(("Antarctica/Troll", utc(2026, 10, 25, 1)), {0, 30}, {1, 2}, False, -3, 6)
def test_clocks_that_are_changed_in_other_ways(
    place: tuple[str, datetime], minutes: set[int], hours: set[int], is_wild: bool, start: int, length: int
) -> None:
    zone, change = place
    since = change + start * HOUR
    if is_wild:
        minutes, minute = {0, 15, 30, 45}, "*/15"
    else:
        minute = ",".join(map(str, sorted(minutes)))
    cron = Cron(f"{minute} {','.join(map(str, sorted(hours)))} * * *", zone)
    expected = by_the_minute(ZoneInfo(zone), minutes, hours, since, since + length * HOUR, is_wild=is_wild)
    assert due_within(cron, since, since + length * HOUR) == expected


@settings(deadline=None, max_examples=100)
@given(expressions, zones_and_moments(), st.floats(0, 40))
def test_walking_back_finds_what_walking_forwards_finds(
    expression: str, place: tuple[str, datetime], length: float
) -> None:
    zone, since = place
    try:
        cron = Cron(expression, zone)
    except InvalidOption:
        assume(False)
    assume(len(cron_dues := list(islice(cron.upto(since + length * DAY, since), 300))) < 300)
    assert cron_dues[::-1] == due_within(cron, since, since + length * DAY)


def test_a_stretch_without_time_has_no_due_times() -> None:
    change = utc(2026, 3, 29, 1)
    for expression in ("30 2 * * *", "* * * * *"):
        cron = Cron(expression, "Europe/Berlin")
        assert list(cron.upto(change - SECOND, change - SECOND)) == []
        assert list(cron.upto(change, change)) == []
        assert list(cron.upto(change, change + DAY)) == []
        assert list(cron.upto(change, change - SECOND)) == [change]


def test_both_bounds_are_exact_to_the_microsecond() -> None:
    noon, instant = utc(2026, 7, 1, 12), timedelta(microseconds=1)
    for timing in (Cron("0 12 * * *"), Every(86_400, noon - DAY), At(noon)):
        assert timing.after(noon - instant) == noon
        assert timing.after(noon) == (None if isinstance(timing, At) else noon + DAY)
        assert list(timing.upto(noon, noon - instant)) == [noon]
        assert list(timing.upto(noon - instant, noon - HOUR)) == []
        assert list(timing.upto(noon + HOUR, noon)) == []


def test_due_times_are_in_utc_whatever_zone_is_asked_in() -> None:
    asked = datetime(2026, 7, 1, 14, tzinfo=ZoneInfo("Europe/Berlin"))
    noon = utc(2026, 7, 1, 12)
    for timing in (Cron("0 13 * * *"), Every(3600, asked), At(asked + HOUR)):
        due = timing.after(asked)
        assert due == noon + HOUR
        assert due.tzinfo is UTC
        (last,) = timing.upto(asked + HOUR, asked)
        assert last.tzinfo is UTC


@pytest.mark.parametrize(
    ("alias", "meaning"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        (" @Daily ", "0 0 * * *"),
    ],
)
def test_aliases(alias: str, meaning: str) -> None:
    moment = utc(2026, 7, 1, 7, 30)
    expected = list(islice(due_after(Cron(meaning, "Asia/Tokyo"), moment), 3))
    assert list(islice(due_after(Cron(alias, "Asia/Tokyo"), moment), 3)) == expected


@pytest.mark.parametrize(
    ("expression", "dates"),
    [
        ("0 0 13 * fri", ["07-03", "07-10", "07-13", "07-17"]),  # one of the two is enough
        ("0 0 */2 * fri", ["07-03", "07-17", "07-31", "08-07"]),  # as in Debian's cron: a * makes it both
        ("0 0 * * fri#2", ["07-10", "08-14", "09-11", "10-09"]),
        ("0 0 * * L5", ["07-31", "08-28", "09-25", "10-30"]),
        ("0 0 L * *", ["07-31", "08-31", "09-30", "10-31"]),
        ("0 0 15W * *", ["07-15", "08-14", "09-15", "10-15"]),  # 15 August 2026 is a Saturday
        ("0 0 31 * *", ["07-31", "08-31", "10-31", "12-31"]),
        ("0 0 ? * 7", ["07-05", "07-12", "07-19", "07-26"]),
        ("0\t0  1 JAN,Oct *", ["10-01", "01-01", "10-01", "01-01"]),
    ],
)
def test_days(expression: str, dates: list[str]) -> None:
    dues = islice(due_after(Cron(expression), utc(2026, 7, 1, 12)), 4)
    assert [due.strftime("%m-%d") for due in dues] == dates


def test_a_day_that_comes_once_in_four_or_in_twenty_eight_years() -> None:
    assert Cron("0 0 29 2 *").after(utc(2026, 7, 1)) == utc(2028, 2, 29)
    assert Cron("0 0 * feb mon#5", "Europe/Berlin").after(utc(2026, 7, 1)) == utc(2044, 2, 28, 23)
    assert list(Cron("0 0 29 2 *").upto(utc(2026, 7, 1), utc(2018, 1, 1))) == [
        utc(2024, 2, 29),
        utc(2020, 2, 29),
    ]


REFUSED: list[tuple[Any, Any, str]] = [
    (
        "0 25 * * *",
        None,
        "cron: the hour field of '0 25 * * *' is '25', expected 0 to 23; or *, a list as 1,2",
    ),
    ("61 * * * *", None, "the minute field of '61 * * * *' is '61', expected 0 to 59"),
    ("0 0 0 * *", None, "the day field of '0 0 0 * *' is '0', expected 1 to 31, L (the last) or 15W"),
    ("0 0 * 13 *", None, "the month field of '0 0 * 13 *' is '13', expected 1 to 12 or jan to dec"),
    (
        "0 0 * * 8",
        None,
        "the weekday field of '0 0 * * 8' is '8', expected 0 (Sunday) to 7 or sun to sat, fri#2",
    ),
    ("0 0 * * 5#6", None, "the weekday field of '0 0 * * 5#6' is '5#6'"),
    ("0 0 * * 5L", None, "L5 (the last Friday)"),
    ("70 0 0 * * *", "first", "the second field of '70 0 0 * * *' is '70', expected 0 to 59"),
    ("*/0 * * * *", None, "the minute field of '*/0 * * * *' is '*/0'"),
    ("-1 * * * *", None, "the minute field"),
    ("1,,2 * * * *", None, "the minute field"),
    ("٣ * * * *", None, "the minute field"),
    ("0 \0 * * *", None, "the hour field"),
    ("0 0 30 2 *", None, "cron: '0 0 30 2 *' never comes: none of its months has such a day"),
    ("0 0 31 4,6 mon", None, "cron: '0 0 31 4,6 mon' never comes: none of its months has such a day"),
    ("0 0 13 * 5#1", None, "cron: '0 0 13 * 5#1' never comes: no year has such a day"),
    ("", None, "cron: expected five fields (minute hour day month weekday), got 0: ''"),
    ("* * * *", None, "cron: expected five fields (minute hour day month weekday), got 4: '* * * *'"),
    ("* * * * * * *", "last", "got 7: '* * * * * * *'"),
    ("* * * * * *", None, 'six fields: say where the seconds stand, seconds="first" or seconds="last"'),
    (
        "* * * * *",
        "last",
        "seconds: it says where the seconds of six fields stand, and '* * * * *' has five: leave it",
    ),
    ("@daily", "first", "'@daily' has five: leave it out"),
    ("* * * * *", "middle", 'seconds: expected "first" or "last", got \'middle\''),
    ("* * * * *", ["first"], "seconds: expected"),
    ("@dayly", None, "cron: there is no '@dayly', did you mean @daily?"),
    ("@reboot", None, "cron: '@reboot' is no time: say at_startup=True instead"),
    ("@every 5m", None, "cron: '@every 5m' is no time of a clock: say every=\"5m\" instead"),
    (
        "R * * * *",
        None,
        "cron: the minute field of 'R * * * *' is 'R', and no value is picked for you: choose one",
    ),
    (
        "0 h(1-3) * * *",
        None,
        "is 'h(1-3)', and no value is picked for you: choose one, or spread the jobs with jitter",
    ),
    ("r/5 * * * * *", "first", "the second field of 'r/5 * * * * *' is 'r/5', and no value"),
    ("* * * * * H", "last", "the second field of '* * * * * H' is 'H', and no value"),
    ("* " * 300, None, "cron: expected at most 500 characters, got 600"),
    (5, None, "cron: expected text, got 5"),
    (None, None, "cron: expected text, got None"),
]


@pytest.mark.parametrize(("expression", "seconds", "message"), REFUSED)
def test_what_is_no_cron_expression_is_refused_with_the_remedy(
    expression: Any, seconds: Any, message: str
) -> None:
    with pytest.raises(InvalidOption) as refusal:
        Cron(expression, seconds=seconds)
    assert message in str(refusal.value)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.text("*/-,#?LlWwRrHh0123456789()@ajnfebmosu²", min_size=1, max_size=4), max_size=7).map(
        " ".join
    )
)
def test_any_other_text_is_an_expression_or_refused_as_none(text: str) -> None:
    try:
        cron = Cron(text, "Europe/Berlin", "last" if len(text.split()) == 6 else None)
    except InvalidOption:
        return
    due = cron.after(utc(2026, 1, 1))
    assert due is not None
    assert next(cron.upto(due, utc(2026, 1, 1))) == due


@pytest.mark.parametrize(
    ("zone", "message"),
    [
        ("Europe/Berln", "tz: there is no zone 'Europe/Berln', did you mean Europe/Berlin?"),
        ("europe/paris", "tz: there is no zone 'europe/paris', did you mean Europe/Paris?"),
        ("Europe", "tz: there is no zone 'Europe'"),
        ("", "tz: there is no zone ''"),
        ("localtime", "tz: there is no zone 'localtime'"),  # another one on each machine
        ("../etc/passwd", "tz: there is no zone"),
        ("+02:00", "tz: there is no zone"),
        (None, "tz: expected text, got None"),
        (UTC, "tz: expected text"),
    ],
)
def test_an_unknown_zone_is_refused(zone: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(message)):
        Cron("0 3 * * *", zone)


@pytest.mark.parametrize("timing", [Cron("@daily"), Every(60, utc(2026, 1, 1)), At(utc(2026, 1, 1))])
def test_naive_datetimes_are_refused(timing: Timing) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001
    with pytest.raises(TypeError, match="naive"):
        timing.after(naive)
    with pytest.raises(TypeError, match="naive"):
        next(timing.upto(naive, naive))
    for value in (lambda: At(naive), lambda: Every(60, naive)):
        with pytest.raises(InvalidOption, match="expected a datetime with a time zone, such as"):
            value()


@pytest.mark.parametrize("moment", [utc(1969, 12, 31), utc(2200, 1, 1), datetime.max.replace(tzinfo=UTC)])
def test_absurd_datetimes_are_refused(moment: datetime) -> None:
    with pytest.raises(InvalidOption, match="at: expected a year from 1970 to 2199"):
        At(moment)


def test_checks_give_what_is_stored() -> None:
    assert check_every("every", "30s") == 30.0
    assert check_every("every", timedelta(hours=1)) == 3600.0
    berlin = timezone(2 * HOUR)
    assert check_moment("starts_at", datetime(2026, 7, 1, 2, tzinfo=berlin)) == utc(2026, 7, 1)
    assert check_moment("starts_at", datetime(2026, 7, 1, 2, tzinfo=berlin)).tzinfo is UTC


@pytest.mark.parametrize("every", [0, 0.999, "500ms", -1, "11y", float("nan"), 10**12, True, None, "soon"])
def test_an_interval_out_of_range_is_refused(every: Any) -> None:
    with pytest.raises(InvalidOption, match=r"^every: expected "):
        Every(every, utc(2026, 1, 1))


@settings(deadline=None)
@given(st.floats(1, 10 * 365 * 86_400.0), st.integers(-(10**15), 10**15))
def test_an_interval_counts_from_its_anchor(seconds: float, microseconds: int) -> None:
    anchor = utc(2026, 1, 1)
    every, step = Every(seconds, anchor), timedelta(seconds=seconds)
    moment = anchor + timedelta(microseconds=microseconds)
    due = every.after(moment)
    assert due > moment
    assert due >= anchor
    assert due - step <= moment or due == anchor
    assert (due - anchor) % step == timedelta()
    passed = list(islice(every.upto(moment, utc(1980, 1, 1)), 3))
    assert (
        passed == [due - step * count for count in (1, 2, 3) if due - step * count >= anchor][: len(passed)]
    )
    assert bool(passed) is (moment >= anchor)


def test_an_interval_knows_no_clocks_that_are_changed() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    every = Every(86_400, datetime(2026, 3, 28, 12, tzinfo=berlin))
    assert every.after(datetime(2026, 3, 28, 12, tzinfo=berlin)) == datetime(2026, 3, 29, 13, tzinfo=berlin)


def test_timings_are_values() -> None:
    for make in (
        lambda: Cron("0 3 * * *", "Europe/Berlin"),
        lambda: Every(3600, utc(2026, 1, 1)),
        lambda: At(utc(2026, 1, 1)),
    ):
        assert make() == make()
        assert hash(make()) == hash(make())
    with pytest.raises(AttributeError):
        Cron("@daily").tz = "Asia/Tokyo"  # type: ignore[misc]
