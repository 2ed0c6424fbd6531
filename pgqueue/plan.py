"""What a tick does with one schedule at one moment: which of its due times run, which were missed, and when it is due next.

Pure: `plan` decides, `pgqueue.tick()` does it, all or nothing. A due time that is ticked at most `grace` late is on time,
and runs. An older one was missed, and `missed` says what becomes of it:

- "skip": nothing. The latest missed one stands for all of them in the history.
- "once": the latest missed one runs, and stands for the others.
- "all": the latest `missed_limit` of them run. The latest one that is left out stands for all that are.

Bounds keep a tick short, whatever has happened: one tick runs at most `MAX_ON_TIME` due times as on time, older ones it
counts as missed; it sees the latest `MAX_DUES` due times of the last `MAX_AGE`, and the one that was stored, no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal, NamedTuple, TypeAlias

from pgqueue.cron import At, Cron, Every, SecondsField, Timing

MAX_ON_TIME = 1_000
MAX_DUES = 10_000
MAX_AGE = timedelta(days=180)
_RESOLUTION = timedelta(microseconds=1)
"""Of the database's timestamps."""

Missed: TypeAlias = Literal["skip", "once", "all"]
"""What becomes of due times that were missed."""
RunOutcome: TypeAlias = Literal["enqueued", "caught_up", "missed"]
"""What a tick does with a due time: runs it on time, runs it late, or notes that it was missed."""


class DueSchedule(NamedTuple):
    """A schedule that is due or to be planned: a row of `pgqueue.due_schedules()`, columns in that order.

    `due_at` None: its first due time is to be computed. `now`: the database's clock when the row was read. `every` and
    `grace` are in seconds. One with neither `cron`, `every` nor `at` is due when a worker starts.
    """

    name: str
    created_at: datetime
    changed_at: datetime
    due_at: datetime | None
    now: datetime
    cron: str | None
    seconds: SecondsField | None
    every: float | None
    at: datetime | None
    tz: str
    starts_at: datetime | None
    ends_at: datetime | None
    grace: float
    missed: Missed
    missed_limit: int


class Run(NamedTuple):
    """What becomes of one due time. `missed`: how many others it stands for, or itself and others when it was missed."""

    due_at: datetime
    outcome: RunOutcome
    missed: int = 0


class Plan(NamedTuple):
    """What a tick does: its runs, oldest first, and the next due time. None: never again."""

    runs: tuple[Run, ...]
    next_due_at: datetime | None


def plan(schedule: DueSchedule) -> Plan:
    """What is to be done with a schedule at `schedule.now`.

    Raises `InvalidOption` for a timing that is none, such as a cron expression stored by SQL that nobody could check.
    """
    due_at = schedule.due_at or _first(schedule)
    if due_at is None or due_at > schedule.now:
        return Plan((), due_at)
    return Plan(_runs(schedule, due_at), next(coming(schedule, schedule.now), None))


def coming(schedule: DueSchedule, moment: datetime) -> Iterator[datetime]:
    """The due times of a schedule after `moment`, in order, from starts_at to ends_at: computed as they are taken.

    Raises `InvalidOption` as `plan` does.
    """
    timing = _timing(schedule)
    if schedule.starts_at is not None:
        moment = max(moment, schedule.starts_at.astimezone(UTC) - _RESOLUTION)
    while timing is not None and (due := timing.after(moment)) is not None and _is_within(schedule, due):
        yield due
        moment = due


def _first(schedule: DueSchedule) -> datetime | None:
    # An `at` that had long passed when somebody said so never comes: a new database does not run what was due last year.
    grace = 0.0 if schedule.at is None else schedule.grace
    return next(coming(schedule, schedule.changed_at - timedelta(seconds=grace)), None)


def _timing(schedule: DueSchedule) -> Timing | None:
    if schedule.cron is not None:
        return Cron(schedule.cron, schedule.tz, schedule.seconds)
    if schedule.every is not None:
        return Every(schedule.every, schedule.starts_at or schedule.created_at)
    return None if schedule.at is None else At(schedule.at)


def _is_within(schedule: DueSchedule, due: datetime) -> bool:
    return (schedule.starts_at is None or schedule.starts_at <= due) and (
        schedule.ends_at is None or due <= schedule.ends_at
    )


def _dues(schedule: DueSchedule, due_at: datetime) -> Iterator[datetime]:
    """The due times up to now, latest first; `due_at`, the one that was stored, is one whatever the timing says today."""
    timing = _timing(schedule)
    if timing is not None:
        yield from timing.upto(schedule.now, since=max(due_at, schedule.now - MAX_AGE))
    yield due_at


def _runs(schedule: DueSchedule, due_at: datetime) -> tuple[Run, ...]:
    dues = [due for due in islice(_dues(schedule, due_at), MAX_DUES) if _is_within(schedule, due)]
    grace = timedelta(seconds=schedule.grace)
    is_start = _timing(schedule) is None  # nobody waits for a start: it is never late
    on_time = [due for due in dues[:MAX_ON_TIME] if is_start or schedule.now - due <= grace]
    late = dues[len(on_time) :]
    kept = {"skip": 0, "once": 1, "all": schedule.missed_limit}[schedule.missed]
    caught_up, left_out = late[:kept], late[kept:]
    runs = [Run(due, "enqueued") for due in on_time]
    if schedule.missed == "once":
        runs += [Run(due, "caught_up", missed=len(left_out)) for due in caught_up]
    else:
        runs += [Run(due, "caught_up") for due in caught_up]
        runs += [Run(due, "missed", missed=len(left_out)) for due in left_out[:1]]
    return tuple(reversed(runs))
