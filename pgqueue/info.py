"""What has become of a job, as a frozen value: its state, its result, how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from pgqueue.encryption import Keyring, is_sealed
from pgqueue.job import JobState

ENDED = frozenset({JobState.COMPLETED, JobState.CANCELLED, JobState.DEAD})
"""The states in which nothing more happens to a job by itself."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a handler says that it has come: what it gave to `ctx.progress(…)` last.

    `noted_at` is when its worker wrote that down.
    """

    done: float
    total: float | None
    message: str | None
    metadata: Mapping[str, Any]
    noted_at: datetime

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None when the handler gave no total.

        >>> Progress(3, 4, None, {}, datetime.now()).fraction
        0.75
        """
        return None if not self.total else max(0.0, min(1.0, self.done / self.total))


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What has become of a job, at the moment of the look: what `app.job(id)` and `app.wait(job)` return.

    - `attempt`: attempts made, or the number of the one that runs; `crashes`: how often a worker process died
      with the job in its hands.
    - `run_at`: when it is or became due; `claimed_at`: when its last attempt was claimed; `finished_at`: when
      it completed, was cancelled or died.
    - `reason`: why it was cancelled or died, or why a completed one's result was not kept.
    - `error`, `message`: class and text of the last attempt's error that failed; a job that was tried again
      and completed still has them.
    - `progress`: of the attempt that runs, or of the last one; None when its handler said nothing of it.
    """

    id: int
    state: JobState
    queue: str
    task: str
    priority: int
    attempt: int
    max_attempts: int
    crashes: int
    created_at: datetime
    run_at: datetime
    claimed_at: datetime | None
    finished_at: datetime | None
    worker_id: int | None
    reason: str | None
    error: str | None
    message: str | None
    tags: tuple[str, ...]
    progress: Progress | None
    _result: str | None = field(repr=False)

    @property
    def has_ended(self) -> bool:
        """Whether it completed, was cancelled or died."""
        return self.state in ENDED

    @property
    def has_result(self) -> bool:
        """Whether a result is stored. Then `result` may still be None, for a handler that returned None."""
        return self._result is not None

    @property
    def is_sealed(self) -> bool:
        """Whether its result is stored encrypted, and has not been opened."""
        return self._result is not None and is_sealed(self._result)

    def opened(self, keyring: Keyring) -> JobInfo:
        """The same with a result that can be read. Raises `CannotDecrypt`."""
        assert self._result is not None
        return replace(self, _result=keyring.open(self._result, "result", self.task, self.queue))

    @property
    def result(self) -> Any:
        """What the handler returned, read from JSON; None when no result is stored."""
        return None if self._result is None else msgspec.json.decode(self._result)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One check of health: a row of the view `pgqueue_bi.health`.

    - `queue`: the queue that it is about; None: the whole.
    - `check_name`: depth, oldest_age, failure_ratio, dead, workers (of a queue); leader, figures, schedules (of the
      whole).
    - `value`, `threshold`: what was found, and what it must not exceed. None: there is nothing to compare.
    - `detail`: a sentence for a person.
    """

    queue: str | None
    check_name: str
    value: float | None
    threshold: float | None
    is_healthy: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Event:
    """The end of an attempt, or of a job that waited: what `app.events()` gives.

    - `kind`: "completed"; "cancelled"; "failed", and tried again; "rescued": its worker died, and it is tried again; or
      "dead": it failed or its worker died, and it is not tried again.
    - `at`: when, by the database's clock.
    - `reason`: why it was cancelled or died, or why a completed one's result was not kept; `error`, `message`: those of the
      attempt that failed.
    """

    at: datetime
    job_id: int
    attempt: int
    kind: str
    queue: str
    task: str
    worker_id: int | None
    reason: str | None
    error: str | None
    message: str | None

    @property
    def id(self) -> str:
        """Its place among all events: `app.events(after=event.id)` goes on behind it."""
        return f"{self.at.astimezone(UTC).isoformat()}/{self.job_id}/{self.attempt}"


def read_place(id: str) -> tuple[datetime, int, int]:
    """The place of an event: its time, job and attempt. Raises ValueError.

    >>> read_place("2027-01-01T00:00:00+00:00/7/1")
    (datetime.datetime(2027, 1, 1, 0, 0, tzinfo=datetime.timezone.utc), 7, 1)
    """
    at, job_id, attempt = id.split("/")
    place = datetime.fromisoformat(at), int(job_id), int(attempt)
    if place[0].utcoffset() is None:
        raise ValueError(f"{at} has no time zone")
    return place


def read_info(row: tuple[Any, ...]) -> JobInfo:
    """A row of `pgqueue.look()`."""
    id, state, *plain, tags, result, progress, progress_at = row
    return JobInfo(*[id, JobState(state), *plain, tuple(tags), _progress(progress, progress_at), result])


def _progress(text: str | None, noted_at: datetime | None) -> Progress | None:
    if text is None or noted_at is None:
        return None
    told = msgspec.json.decode(text)
    return Progress(
        told.get("done", 0), told.get("total"), told.get("message"), told.get("metadata") or {}, noted_at
    )
