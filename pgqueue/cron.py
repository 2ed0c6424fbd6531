"""The timings of schedules: when each is due.

Three values, each with `after(moment)`, the first due time after a moment, and `upto(moment, since)`, those of a stretch
of time, latest first: `Cron`, `Every`, `At`. They are pure: they know no clock and no database. All that goes in is
aware, all that comes out is in UTC, and all that is wrong raises `InvalidOption` when the value is made.

A cron expression is read as Debian's cron reads it. croniter knows the calendar: which fields are valid, and on which days
an expression is due. The clock is here: the times of such a day, and what a zone makes of them in the two nights of the
year in which its clocks are changed (`Cron` says what). So walking through a day of seconds costs croniter one step.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, TypeAlias, get_args
from zoneinfo import ZoneInfo

from croniter import CroniterError, croniter

from pgqueue.error_text import did_you_mean, safe_repr
from pgqueue.errors import InvalidOption
from pgqueue.job import seconds

SecondsField: TypeAlias = Literal["first", "last"]
"""Where the seconds of a cron expression of six fields stand."""

MIN_EVERY = 1.0
"""Seconds."""
MAX_EXPRESSION = 500
"""Characters."""
_YEARS = range(1970, 2200)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 86_400
_WEEK = 7 * _DAY
_ANY_DAY = 20_000 * _DAY
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day": "1 to 31, L (the last) or 15W (the weekday nearest to the 15th)",
    "month": "1 to 12 or jan to dec",
    "weekday": "0 (Sunday) to 7 or sun to sat, fri#2 (the second Friday) or L5 (the last Friday)",
    "second": "0 to 59",
}


@dataclass(frozen=True, slots=True)
class Cron:
    """Due whenever the clock of `tz` shows what a cron expression says.

    `expression` has five fields (minute, hour, day, month, weekday), or is `@hourly`, `@daily`, `@midnight`, `@weekly`,
    `@monthly`, `@yearly` or `@annually`; or it has six, and `seconds` says whether those stand "first" or "last". When both
    the day and the weekday are given and neither begins with `*`, one of the two is enough, as in any cron; beside `15W`,
    `fri#2` or `L5` both have to hold.

    In the two nights of the year in which the clocks of `tz` are changed:

    - **Fixed times** run once. One that is skipped in spring runs at the moment of the change: where 02:00 becomes
      03:00, `30 2 * * *` runs at 03:00. However many times of a schedule are skipped, and if it is due at 03:00 anyway,
      that is one run. One that comes twice in autumn runs the first time.
    - **Wild ones**, whose minute or hour begins with `*`, follow the clock on the wall: `*/15 * * * *` runs every 15
      minutes the whole night through, with no run for an hour that is skipped and four more in the one that comes twice.
      `0 */2 * * *` is due at 02:00, so in such a night not at all in spring, and twice in autumn.

    Raises `InvalidOption` for an expression that is none or never comes, and for an unknown zone.

    >>> Cron("30 2 * * *", tz="Europe/Berlin").after(datetime(2026, 7, 1, tzinfo=UTC)).isoformat()
    '2026-07-01T00:30:00+00:00'
    """

    expression: str
    tz: str = "UTC"
    seconds: SecondsField | None = None

    def __post_init__(self) -> None:
        for name, value in (("cron", self.expression), ("tz", self.tz)):
            if not isinstance(value, str):
                raise InvalidOption(f"{name}: expected text, got {safe_repr(value)}")
        if self.seconds is not None and self.seconds not in get_args(SecondsField):
            raise InvalidOption(f'seconds: expected "first" or "last", got {safe_repr(self.seconds)}')
        _read(self.expression, self.seconds)
        _zone(self.tz)

    def after(self, moment: datetime) -> datetime | None:
        """The first due time after `moment`; None when there is none within 50 years."""
        expression, zone = _read(self.expression, self.seconds), _zone(self.tz)
        start = _second(moment) + 1
        low = _low(expression, zone, start)
        wall = next(expression.upwards(low), None)
        while wall is not None:
            due = max(start, wall - _offset(zone, start))
            change = next(_changes(zone, start, due), None)
            if change is None:
                return datetime.fromtimestamp(due, UTC)
            start, searched, low = change, low, _low(expression, zone, change)
            if not searched <= low <= wall:  # else it is the first from there on, too
                wall = next(expression.upwards(low), None)
        return None

    def upto(self, moment: datetime, since: datetime) -> Iterator[datetime]:
        """The due times after `since`, `moment` the last of them if it is one: latest first, computed as they are taken."""
        expression, zone = _read(self.expression, self.seconds), _zone(self.tz)
        first, last = _second(since) + 1, _second(moment)
        if first > last:
            return
        for start in reversed([first, *_changes(zone, first, last)]):
            offset, low = _offset(zone, start), _low(expression, zone, start)
            for wall in expression.downwards(last + offset):
                if wall < low:
                    break
                due = max(start, wall - offset)
                yield datetime.fromtimestamp(due, UTC)
                if due == start:  # all that is left has been skipped, and this run stands for it
                    break
            last = start - 1


@dataclass(frozen=True, slots=True)
class Every:
    """Due at `anchor`, and every `seconds` after it, whatever clocks show.

    Raises `InvalidOption` for less than a second, more than ten years, or a naive datetime.

    >>> Every(3600, datetime(2026, 7, 1, tzinfo=UTC)).after(datetime(2026, 7, 1, 8, 30, tzinfo=UTC)).isoformat()
    '2026-07-01T09:00:00+00:00'
    """

    seconds: float
    anchor: datetime

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "seconds", check_every("every", self.seconds)
        )  # frozen for all but the constructor
        object.__setattr__(self, "anchor", check_moment("anchor", self.anchor))

    def after(self, moment: datetime) -> datetime:
        """The first due time after `moment`."""
        step = timedelta(seconds=self.seconds)
        return self.anchor + max(0, (moment - self.anchor) // step + 1) * step

    def upto(self, moment: datetime, since: datetime) -> Iterator[datetime]:
        """The due times after `since`, `moment` the last of them if it is one: latest first, computed as they are taken."""
        step = timedelta(seconds=self.seconds)
        due = self.anchor + (moment - self.anchor) // step * step
        while due > since and due >= self.anchor:
            yield due
            due -= step


@dataclass(frozen=True, slots=True)
class At:
    """Due once, at `moment`. Raises `InvalidOption` for a naive datetime."""

    moment: datetime

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "moment", check_moment("at", self.moment)
        )  # frozen for all but the constructor

    def after(self, moment: datetime) -> datetime | None:
        """The due time if it lies after `moment`."""
        return self.moment if self.moment > moment else None

    def upto(self, moment: datetime, since: datetime) -> Iterator[datetime]:
        """The due time if it lies after `since` and not after `moment`."""
        if since < self.moment <= moment:
            yield self.moment


Timing: TypeAlias = Cron | Every | At


def check_every(name: str, value: Any) -> float:
    """The seconds between two due times, out of a duration."""
    every = seconds(value, name=name)
    if every < MIN_EVERY:
        raise InvalidOption(f"{name}: expected at least {MIN_EVERY:g} s, got {safe_repr(value)}")
    return every


def check_moment(name: str, value: Any) -> datetime:
    """A datetime that says its zone, in UTC."""
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidOption(
            f"{name}: expected a datetime with a time zone, such as datetime(2026, 7, 1, tzinfo=UTC), got {safe_repr(value)}"
        )
    if value.year not in _YEARS:
        raise InvalidOption(
            f"{name}: expected a year from {_YEARS[0]} to {_YEARS[-1]}, got {value.isoformat()}"
        )
    return value.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class _Expression:
    """A cron expression as the times that it names on a wall clock.

    A time on the wall is counted in seconds from 1970 on, as if that clock were one of UTC.
    """

    days: str
    """The days on which it is due, as an expression that is due at their midnight."""
    times: array[int]
    """Its times of such a day, in seconds from midnight."""
    is_wild: bool

    def upwards(self, low: int) -> Iterator[int]:
        """Its times from `low` on."""
        for midnight in map(int, self._midnights(low - low % _DAY - 1).all_next()):
            for index in range(bisect_left(self.times, low - midnight), len(self.times)):
                yield midnight + self.times[index]

    def downwards(self, high: int) -> Iterator[int]:
        """Its times from `high` on, going back."""
        for midnight in map(int, self._midnights(high - high % _DAY + 1).all_prev()):
            for index in reversed(range(bisect_right(self.times, high - midnight))):
                yield midnight + self.times[index]

    def _midnights(self, wall: int) -> croniter:
        # implement_cron_bug: `0 0 */2 * mon` is every other day if that is a Monday, as in Debian's cron
        return croniter(self.days, wall, max_years_between_matches=50, implement_cron_bug=True)


@lru_cache(maxsize=256)
def _read(expression: str, seconds: SecondsField | None) -> _Expression:
    fields = _fields(expression, seconds)
    try:
        values, _ = croniter.expand(" ".join(fields), strict=True)
    except CroniterError as error:
        raise InvalidOption(_refusal(expression, fields)) from error
    hours, minutes, secs = (
        range(span) if "*" in values[index] else values[index] for index, span in ((1, 24), (0, 60), (5, 60))
    )
    read = _Expression(
        days=" ".join(("0 0", *fields[2:5])),
        times=array(
            "I", (3600 * hour + 60 * minute + sec for hour in hours for minute in minutes for sec in secs)
        ),
        is_wild=fields[0].startswith("*") or fields[1].startswith("*"),
    )
    if next(read.upwards(_ANY_DAY), None) is None:
        raise InvalidOption(f"cron: {safe_repr(expression)} never comes: no year has such a day")
    return read


def _fields(expression: str, seconds: SecondsField | None) -> list[str]:
    """The six fields of an expression, in the order of `_FIELDS`."""
    given, alias = safe_repr(expression), expression.strip().lower()
    problem = None
    fields = _ALIASES.get(alias, expression).split()
    if len(expression) > MAX_EXPRESSION:
        problem = f"cron: expected at most {MAX_EXPRESSION} characters, got {len(expression)}"
    elif alias.startswith("@reboot"):
        problem = f"cron: {given} is no time: say at_startup=True instead"
    elif alias.startswith("@every"):
        problem = f'cron: {given} is no time of a clock: say every="5m" instead'
    elif alias.startswith("@") and alias not in _ALIASES:
        problem = f"cron: there is no {given}{did_you_mean(alias, _ALIASES)}"
    elif len(fields) == 5 and seconds is not None:
        problem = (
            f"seconds: it says where the seconds of six fields stand, and {given} has five: leave it out"
        )
    elif len(fields) == 6 and seconds is None:
        problem = (
            f'cron: {given} has six fields: say where the seconds stand, seconds="first" or seconds="last"'
        )
    elif len(fields) not in (5, 6):
        problem = f"cron: expected five fields (minute hour day month weekday), got {len(fields)}: {given}"
    if problem is not None:
        raise InvalidOption(problem)
    fields = [*fields[1:], fields[0]] if seconds == "first" else [*fields, "0"][:6]
    for name, field in zip(_FIELDS, fields, strict=True):
        if field[0] in "HhRr":  # no month and no day begins so
            raise InvalidOption(
                f"cron: the {name} field of {given} is {safe_repr(field)}, and no value is picked for you: choose one, "
                'or spread the jobs with jitter="5m"'
            )
    return fields


def _refusal(expression: str, fields: list[str]) -> str:
    """What is wrong with the fields of an expression, of which croniter refuses one at least."""
    for index, (name, allowed) in enumerate(_FIELDS.items()):
        alone = ["*"] * len(_FIELDS)
        alone[index] = fields[index]
        if not croniter.is_valid(" ".join(alone)):
            return (
                f"cron: the {name} field of {safe_repr(expression)} is {safe_repr(fields[index])}, expected {allowed}; "
                "or *, a list as 1,2, a range as 1-5, a step as */5"
            )
    return f"cron: {safe_repr(expression)} never comes: none of its months has such a day"


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    # The list and not what the system has: there "localtime" is a zone, another one on each machine.
    if name not in _zones():
        raise InvalidOption(f"tz: there is no zone {safe_repr(name)}{did_you_mean(name, _zones())}")
    return ZoneInfo(name)


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset((resources.files("tzdata") / "zones").read_text("ascii").split())


def _second(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(seconds=1)


def _offset(zone: ZoneInfo, moment: int) -> int:
    """The seconds by which the clocks of a zone are ahead of UTC."""
    return int(datetime.fromtimestamp(moment, zone).replace(tzinfo=UTC).timestamp()) - moment


def _changes(zone: ZoneInfo, low: int, high: int) -> Iterator[int]:
    """The moments after `low`, `high` the last, at which the offset of a zone becomes another one."""
    while low < high:
        end = min(low + _WEEK, high)  # no zone changes it twice in a week
        offset = _offset(zone, end)
        if offset != _offset(zone, low):
            yield low + bisect_left(range(low, end), True, key=lambda moment: _offset(zone, moment) == offset)
        low = end


def _low(expression: _Expression, zone: ZoneInfo, start: int) -> int:
    """The first time on the wall that an expression can be due at, from the moment `start` on."""
    if expression.is_wild:
        return start + _offset(zone, start)
    # Fixed times go by a clock that is never set back but waits: the first time that it had not shown before `start`.
    changes = (start, *_changes(zone, start - _DAY, start - 1))
    return max(change + _offset(zone, change - 1) for change in changes)
