"""Frozen values: a job's handle, its states, a claimed job, and the outcomes of an attempt."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from pgqueue.error_text import safe_repr


class JobState(StrEnum):
    """The seven states. A job is in exactly one; completed and cancelled share the history."""

    SCHEDULED = "scheduled"
    READY = "ready"
    BLOCKED = "blocked"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DEAD = "dead"


EnqueueOutcome: TypeAlias = Literal["created", "kept", "replaced", "postponed", "raised", "follow_up"]
"""What an enqueue did, see `Job.outcome`."""


class Job(msgspec.Struct, frozen=True, gc=False, repr_omit_defaults=True):
    """What an enqueue returns.

    `created` is false when a `unique_key` or an `idempotency_key` led to a job that exists already;
    `id` is then that job's. `outcome` says what was done to it.

    >>> Job(id=7, created=True)
    Job(id=7, created=True)
    >>> Job(id=7, created=False).outcome
    'kept'
    """

    id: int
    created: bool
    conflict: Literal["replaced", "postponed", "raised", "follow_up"] | None = None
    """What the policy of a `Unique` did when its key was held, beyond keeping the job that held it."""

    @property
    def outcome(self) -> EnqueueOutcome:
        """What the enqueue did:

        - "created": it made the job.
        - "follow_up": it made the job, which starts after the one that runs has ended.
        - "kept": the job was there already, and is as it was.
        - "replaced": it was there already, and has the new args.
        - "postponed": it was there already, has the new args, and starts later.
        - "raised": it was there already, and has the more urgent priority.
        """
        return self.conflict or ("created" if self.created else "kept")


class Cancellation(NamedTuple):
    """What became of a job that was to be cancelled.

    `outcome` is "cancelled" (it waited, or was dead), "asked" (it runs: its worker is told, and it ends as
    cancelled, or as completed when it finishes first) or "finished" (it had ended before).
    """

    id: int
    outcome: Literal["cancelled", "asked", "finished"]


class ClaimedJob(NamedTuple):
    """One job in a worker's hands: a row of `pgqueue.claim()`, columns in that order."""

    id: int
    lease: int
    queue: str
    lane: int
    position: int
    task: str
    args: str
    attempt: int
    max_attempts: int
    crashes: int
    options: str | None
    waited: float = 0.0
    """Seconds from the time at which it was due until it was claimed, by the database's clock."""

    @property
    def priority(self) -> int:
        """0 (first) to 9."""
        return self.lane // 2

    @property
    def headers(self) -> Mapping[str, str]:
        """What went along with the enqueue for those who trace, such as `traceparent`."""
        if self.options is None or '"headers"' not in self.options:
            return {}
        try:
            stored = json.loads(self.options)
        except (ValueError, RecursionError):  # written by another language: a number of 5,000 digits, say
            return {}
        found = stored.get("headers") if isinstance(stored, dict) else None
        if not isinstance(found, dict):
            return {}
        return {name: value for name, value in found.items() if isinstance(value, str)}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that will not be tried again by itself: a row of `pgqueue.find_dead()`.

    `args`, `options` and `errors` are JSON text; `errors` lists every failed attempt, oldest first. `fingerprint` is that of
    the last one.
    """

    id: int
    queue: str
    task: str
    priority: int
    reason: str
    error: str | None
    message: str | None
    attempt: int
    max_attempts: int
    crashes: int
    created_at: datetime
    died_at: datetime
    args: str
    unique_key: str | None
    options: str | None
    errors: str
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that waits to be run: a row of `pgqueue.find_waiting()`.

    `state` is "ready", "scheduled" or "blocked"; `due_in` is in seconds by the database's clock, less than 0 when its time
    has come; `options` are the rarer ones as they are stored, tags and metadata among them.
    """

    id: int
    state: str
    queue: str
    task: str
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime
    run_at: datetime
    due_in: float = field(compare=False)
    args: dict[str, Any]
    unique_key: str | None
    options: dict[str, Any]


class Outcome(Exception):
    """An ending that a handler raises on purpose. Not an error; not part of the error tree."""


class Retry(Outcome):
    """Ends the attempt as failed and asks for another one, after `after` if that is given.

    `after` is seconds, a `timedelta`, or text such as `"90s"`, `"5m"`, `"1h"`; without it the
    task's retry policy decides. When no attempt is left the job becomes a dead letter.

    >>> raise Retry(after="30s", reason="rate limited")
    Traceback (most recent call last):
    ...
    pgqueue.job.Retry: rate limited
    """

    def __init__(self, *, after: float | str | timedelta | None = None, reason: str = "retry requested"):
        super().__init__(reason)
        self.after = None if after is None else seconds(after, name="after")


class Snooze(Outcome):
    """Puts the job off for `delay` without using up the attempt.

    >>> Snooze("10m").delay
    600.0
    """

    def __init__(self, delay: float | str | timedelta):
        super().__init__("snoozed")
        self.delay = seconds(delay, name="delay")


class Fail(Outcome):
    """Makes the job a dead letter now, whatever attempts are left.

    >>> raise Fail("the account was closed")
    Traceback (most recent call last):
    ...
    pgqueue.job.Fail: the account was closed
    """

    def __init__(self, reason: str = "failed for good"):
        super().__init__(reason)


class Cancel(Outcome):
    """Ends the job for good, as cancelled and without an error: there is nothing to do any more.

    >>> raise Cancel("the order was withdrawn")
    Traceback (most recent call last):
    ...
    pgqueue.job.Cancel: the order was withdrawn
    """

    def __init__(self, reason: str = "cancelled"):
        super().__init__(reason)


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
MAX_DELAY = 10 * 365 * 86400.0
"""Ten years, in seconds: no delay is longer."""


def seconds(value: Any, *, name: str) -> float:
    """Reads a duration: seconds, a `timedelta`, or text of number and unit (ms, s, m, h, d, w).

    Raises `pgqueue.errors.InvalidOption` that names the option and what was given.

    >>> seconds("1.5h", name="delay")
    5400.0
    """
    from pgqueue.errors import InvalidOption

    number: float | None = None
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, bool):
        number = None
    elif isinstance(value, int | float):
        # an integer may be too large for a float
        number = float(value) if -MAX_DELAY <= value <= MAX_DELAY else math.inf
    elif isinstance(value, str) and len(value) <= 100:
        text = str.strip(value)
        for unit in ("ms", "s", "m", "h", "d", "w"):
            if text.endswith(unit):
                try:
                    number = float(text[: -len(unit)]) * _UNITS[unit]
                    break
                except ValueError:
                    continue
    if number is None:
        raise InvalidOption(
            f"{name}: expected seconds, a timedelta or text such as '90s' or '5m', got {safe_repr(value)}"
        )
    if not 0 <= number <= MAX_DELAY:  # false for NaN too
        raise InvalidOption(f"{name}: expected between 0 and 10 years, got {safe_repr(value)}")
    return number
