"""Schedules as code defines them: each a name, a task with its args and options, and the rule by which it is due.

All is checked where it is defined. What is defined here comes to the database when a worker starts (`App.schedule`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from itertools import islice
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, get_args

from pgqueue.cron import Cron, SecondsField, check_every, check_moment
from pgqueue.error_text import did_you_mean, safe_repr
from pgqueue.errors import ConfigurationError, InvalidArgs, InvalidJob, InvalidOption
from pgqueue.job import seconds
from pgqueue.options import JobOptions, TaskOptions, check_name
from pgqueue.plan import DueSchedule, Missed, coming
from pgqueue.retry import Duration
from pgqueue.task import Enqueueable

T = TypeVar("T", bound=Enqueueable[Any])

Overlap: TypeAlias = Literal["allow", "skip", "queue"]
"""What becomes of a due time while the schedule's last job is unfinished."""

MAX_MISSED = 1000
TIMINGS = ("cron", "every", "at", "at_startup")


class ScheduleOptions(TypedDict, total=False):
    """When a schedule is due; `App.schedule` says what each means. None is the same as not given."""

    cron: str | None
    seconds: SecondsField | None
    every: Duration | None
    at: datetime | None
    at_startup: bool | None
    tz: str | None
    starts_at: datetime | None
    ends_at: datetime | None
    jitter: Duration | None
    grace: Duration | None
    missed: Missed | None
    missed_limit: int | None
    overlap: Overlap | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When a schedule is due, and what becomes of due times that are missed, or come while its last job is unfinished.

    Durations are seconds, times are in UTC. Exactly one of `cron`, `every`, `at` and `at_startup` is set.
    """

    cron: str | None = None
    seconds: SecondsField | None = None
    every: float | None = None
    at: datetime | None = None
    at_startup: bool = False
    tz: str = "UTC"
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    jitter: float = 0.0
    grace: float = 15.0
    missed: Missed = "once"
    missed_limit: int = 100
    overlap: Overlap = "allow"

    @classmethod
    def checked(cls, **given: Any) -> Rule:
        """A rule out of what a user gave; None is not given. Raises `InvalidOption`."""
        for name in given:
            if name not in _CHECKS:
                raise InvalidOption(_unknown(name))
        rule = cls(**{name: _CHECKS[name](name, value) for name, value in given.items() if value is not None})
        timings = [name for name in TIMINGS if getattr(rule, name)]
        if len(timings) != 1:
            problem = f"{', '.join(timings)}: given together" if timings else "no timing"
            raise InvalidOption(f"{problem}: give one of {', '.join(TIMINGS)}")
        if rule.seconds is not None and rule.cron is None:
            raise InvalidOption("seconds: it says where the seconds of a cron expression stand: leave it out")
        if rule.cron is not None:
            Cron(rule.cron, rule.tz, rule.seconds)  # raises for what is wrong with it
        rule._check_span()
        return rule

    def _check_span(self) -> None:
        if self.starts_at is None or self.ends_at is None:
            return
        if self.starts_at > self.ends_at:
            raise InvalidOption(
                f"ends_at: {self.ends_at.isoformat()} lies before starts_at, {self.starts_at.isoformat()}"
            )
        if not self.at_startup and not self.due_after(self.starts_at - _RESOLUTION):
            raise InvalidOption("starts_at, ends_at: no due time lies between them")

    def due_after(
        self, moment: datetime, count: int = 1, *, created_at: datetime | None = None
    ) -> list[datetime]:
        """The next due times after `moment`, at most `count`, in UTC.

        `created_at` is what an interval without `starts_at` counts from, by default `moment`. Raises `InvalidOption` for
        a rule that was stored unchecked.
        """
        read = DueSchedule(
            name="",
            created_at=created_at or moment,
            changed_at=moment,
            due_at=None,
            now=moment,
            cron=self.cron,
            seconds=self.seconds,
            every=self.every,
            at=self.at,
            tz=self.tz,
            starts_at=self.starts_at,
            ends_at=self.ends_at,
            grace=self.grace,
            missed=self.missed,
            missed_limit=self.missed_limit,
        )
        return list(islice(coming(read, moment), count))

    def stored(self) -> dict[str, Any]:
        """What differs from the defaults, as arguments of `pgqueue.schedule()`; times are ISO 8601."""
        given = {
            part.name: value for part in fields(self) if (value := getattr(self, part.name)) != part.default
        }
        return {
            name: value.isoformat() if isinstance(value, datetime) else value for name, value in given.items()
        }

    def __str__(self) -> str:
        """When it is due, in a few words: `0 3 * * * Europe/Paris`, `every 30s`, `at startup`."""
        if self.cron is not None:
            stands = "" if self.seconds is None else f" (seconds {self.seconds})"
            return f"{self.cron}{stands} {self.tz}"
        if self.every is not None:
            return f"every {duration(self.every)}"
        return "at startup" if self.at is None else f"at {self.at.isoformat(sep=' ')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule that the app's code defines: an element of `app.schedules`.

    `task` is the task, with the options of `using(…)` if there are some; `args` are the args of its jobs.
    """

    name: str
    task: Enqueueable[Any]
    args: Mapping[str, Any]
    rule: Rule
    row: Mapping[str, Any] = field(repr=False)
    """What an enqueue of its jobs hands to `calls.enqueue`."""

    def due_after(self, moment: datetime, count: int = 1) -> list[datetime]:
        """The next due times after a datetime with a time zone, at most `count`, in UTC.

            app.schedules["clean_up"].due_after(datetime(2026, 10, 24, tzinfo=UTC), count=5)

        An interval without `starts_at` counts from the moment at which the schedule was made in the database; here from
        `moment`. Raises `InvalidOption` for a naive datetime.
        """
        return self.rule.due_after(check_moment("moment", moment), count)

    def stored(self) -> dict[str, Any]:
        """The arguments of `pgqueue.schedule()` but the name; `args` and `options` are JSON text."""
        return {**self.task.sealed_row(self.row), **self.rule.stored()}

    def __str__(self) -> str:
        return f"schedule {self.name} of task {self.task.task.name}, {self.rule}"


def make_schedule(
    name: str | None, task: Any, args: Mapping[str, Any] | None, given: Mapping[str, Any]
) -> Schedule:
    """A schedule out of what a user gave. Raises `ConfigurationError`, `InvalidOption`, `InvalidArgs`."""
    if not isinstance(task, Enqueueable):
        raise ConfigurationError(
            f"a schedule is for a task, got {safe_repr(task)}: @app.schedule(…) goes above @app.task"
        )
    try:
        name = check_name("name", task.task.name if name is None else name)
    except InvalidOption as error:
        raise InvalidOption(f"schedule of task {task.task.name}: {error}") from error
    try:
        rule = Rule.checked(**given)
        _check_job_options(task)
        if not isinstance(args, Mapping | None):
            raise InvalidArgs(f"args: expected a mapping such as {{'user_id': 7}}, got {safe_repr(args)}")
        kept = dict(args or {})
        return Schedule(name=name, task=task, args=MappingProxyType(kept), rule=rule, row=task.row(kept))
    except InvalidJob as error:
        raise type(error)(f"schedule {name}: {error}") from error


def _check_job_options(task: Enqueueable[Any]) -> None:
    """Raises `InvalidOption` for options that say when one job runs, or beside which others."""
    options = task.options
    for option, remedy in _UNFIT.items():
        if getattr(options, option) is not None:
            raise InvalidOption(f"{option}: the jobs of a schedule have none. {remedy}")
    if options.unique_of(task.task.unique) is not None or options.unique_key is not None:
        own = (
            ""
            if task.task.unique is None or options.unique
            else " Its task says unique: task.using(unique=False)."
        )
        raise InvalidOption(
            "unique: the jobs of a schedule have no key of their own. overlap='skip' or overlap='queue' keeps a "
            f"second one from running beside the first.{own}"
        )


_UNFIT = {
    "delay": "It runs when it is due; jitter='5m' spreads the starts.",
    "run_at": "It runs when it is due: at=… for once, starts_at=… for a first time.",
    "idempotency_key": "A due time has one job in any case.",
}
_RESOLUTION = timedelta(microseconds=1)
_SPANS = {"d": 86_400, "h": 3600, "m": 60}


def duration(value: float) -> str:
    """Seconds as a duration is written.

    >>> duration(5400), duration(86400), duration(0.5)
    ('90m', '1d', '0.5s')
    """
    for unit, length in _SPANS.items():
        if value and value % length == 0:
            return f"{value / length:g}{unit}"
    return f"{value:g}s"


def _unknown(name: str) -> str:
    """Why there is no such option of a schedule."""
    known = did_you_mean(name, _CHECKS)
    if not known and (name in JobOptions.__annotations__ or name in TaskOptions.__annotations__):
        return f"{name}: this is an option of its jobs: schedule task.using({name}=…)"
    return f"{name}: there is no such option{known}"


def _check_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidOption(f"{name}: expected text, got {safe_repr(value)}")
    return value.strip()


def _check_zone(name: str, value: Any) -> str:
    zone = _check_text(name, value)
    Cron("@daily", zone)  # raises for one that there is not
    return zone


def _check_startup(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidOption(f"{name}: expected True or False, got {safe_repr(value)}")
    return value


def _check_limit(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_MISSED:
        raise InvalidOption(f"{name}: expected an integer from 1 to {MAX_MISSED}, got {safe_repr(value)}")
    return int(value)


def _one_of(choices: Any) -> Callable[[str, Any], Any]:
    known = get_args(choices)

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise InvalidOption(f"{name}: expected {', '.join(map(repr, known))}, got {safe_repr(value)}")
        return value

    return check


def _check_duration(name: str, value: Any) -> float:
    return seconds(value, name=name)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "cron": _check_text,
    "seconds": _one_of(SecondsField),
    "every": check_every,
    "at": check_moment,
    "at_startup": _check_startup,
    "tz": _check_zone,
    "starts_at": check_moment,
    "ends_at": check_moment,
    "jitter": _check_duration,
    "grace": _check_duration,
    "missed": _one_of(Missed),
    "missed_limit": _check_limit,
    "overlap": _one_of(Overlap),
}
