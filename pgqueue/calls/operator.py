"""What operators call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pgqueue.calls.call import Call, Rows, Verb, bigints, nothing, scalar, texts
from pgqueue.job import Cancellation, DeadLetter, WaitingJob

FIND_DEAD = Verb(
    "find_dead",
    (
        ("of_ids", "bigint[]"),
        ("of_queue", "text"),
        ("of_task", "text"),
        ("of_reason", "text"),
        ("of_error", "text"),
        ("died_after", "timestamptz"),
        ("died_before", "timestamptz"),
        ("max_rows", "integer"),
    ),
    (
        "id",
        "queue",
        "task",
        "priority",
        "reason",
        "error",
        "message",
        "attempt",
        "max_attempts",
        "crashes",
        "created_at",
        "died_at",
        "args::text",
        "unique_key",
        "options::text",
        "errors::text",
    ),
)
FIND_WAITING = Verb(
    "find_waiting",
    (("of_queue", "text"), ("of_task", "text"), ("max_rows", "integer")),
    # in the order of WaitingJob's fields
    (
        "id",
        "state",
        "queue",
        "task",
        "priority",
        "attempt",
        "max_attempts",
        "created_at",
        "run_at",
        "due_seconds",
        "args::text",
        "unique_key",
        "options::text",
    ),
)
FIND_JOBS = Verb(
    "find_jobs",
    (
        ("of_states", "text[]"),
        ("of_queue", "text"),
        ("of_task", "text"),
        ("of_tag", "text"),
        ("max_rows", "integer"),
    ),
    ("id",),
)
JOB_RECORD = Verb(
    "job_record",
    (("id", "bigint"),),
    ("args::text", "options::text", "unique_key", "failures::text", "reports::text"),
)
CANCEL = Verb("cancel", (("ids", "bigint[]"), ("reason", "text")), ("id", "outcome"))
CANCEL_MATCHING = Verb(
    "cancel_matching",
    (
        ("of_queue", "text"),
        ("of_task", "text"),
        ("of_tag", "text"),
        ("of_state", "text"),
        ("reason", "text"),
        ("max_jobs", "integer"),
    ),
    ("id", "outcome"),
)
REPLAY = Verb("replay", (("ids", "bigint[]"),))
DISCARD = Verb("discard", (("ids", "bigint[]"),))
PAUSE = Verb("pause", (("queue", "text"),))
RESUME = Verb("resume", (("queue", "text"),))


class JobRecord(NamedTuple):
    """What belongs to a job beside its `JobInfo`; the result columns of `pgqueue.job_record()`.

    All but `unique_key` are JSON text. `failures` lists every failed attempt, `reports` what each attempt left
    (attempt, worker_id, reported_at, progress, lines), oldest first.
    """

    args: str
    options: str | None
    unique_key: str | None
    failures: str
    reports: str


def find_dead(
    *,
    ids: Iterable[int] | None = None,
    queue: str | None = None,
    task: str | None = None,
    reason: str | None = None,
    error: str | None = None,
    died_after: str | None = None,
    died_before: str | None = None,
    max_rows: int = 100,
) -> Call[list[DeadLetter]]:
    """Dead letters that match every filter given, newest first. Times are ISO 8601 with an offset."""
    values = (
        None if ids is None else bigints(ids),
        queue,
        task,
        reason,
        error,
        died_after,
        died_before,
        str(max_rows),
    )
    return Call(FIND_DEAD, values, lambda rows: [DeadLetter(*row) for row in rows])


def find_waiting(
    *, queue: str | None = None, task: str | None = None, max_rows: int = 1000
) -> Call[list[WaitingJob]]:
    """Jobs that wait: ready ones in the order of claiming, scheduled ones by their time, then blocked ones."""
    return Call(FIND_WAITING, (queue, task, str(max_rows)), _waiting)


def find_jobs(
    *,
    states: Sequence[str] | None = None,
    queue: str | None = None,
    task: str | None = None,
    tag: str | None = None,
    max_rows: int = 100,
) -> Call[list[int]]:
    """The ids of jobs that match every filter given, newest first."""
    values = (None if states is None else texts(states), queue, task, tag, str(max_rows))
    return Call(FIND_JOBS, values, _ids)


def job_record(id: int) -> Call[JobRecord | None]:
    """What `look` leaves out of a job; None when it is not on record."""
    return Call(JOB_RECORD, (str(id),), lambda rows: JobRecord(*rows[0]) if rows else None)


def cancel(ids: Iterable[int], reason: str = "cancelled") -> Call[list[Cancellation]]:
    """Cancels jobs in any state; what became of each that exists."""
    return Call(CANCEL, (bigints(ids), reason), _cancellations)


def cancel_matching(
    *,
    queue: str | None = None,
    task: str | None = None,
    tag: str | None = None,
    state: str | None = None,
    reason: str = "cancelled",
    max_jobs: int = 1000,
) -> Call[list[Cancellation]]:
    """Cancels jobs that wait or run and match every filter given, at most `max_jobs` of them."""
    return Call(CANCEL_MATCHING, (queue, task, tag, state, reason, str(max_jobs)), _cancellations)


def replay(ids: Iterable[int]) -> Call[list[int]]:
    """Runs dead letters again, attempts from 0; returns the ids that were replayed."""
    return Call(REPLAY, (bigints(ids),), scalar)


def discard(ids: Iterable[int]) -> Call[list[int]]:
    """Moves dead letters to the history as cancelled; returns the ids that were."""
    return Call(DISCARD, (bigints(ids),), scalar)


def pause(queue: str) -> Call[None]:
    """Stops the claiming of a queue, on every worker."""
    return Call(PAUSE, (queue,), nothing)


def resume(queue: str) -> Call[None]:
    """Starts the claiming of a queue again."""
    return Call(RESUME, (queue,), nothing)


def _ids(rows: Rows) -> list[int]:
    return [row[0] for row in rows]


def _waiting(rows: Rows) -> list[WaitingJob]:
    return [
        WaitingJob(*(*row[:-3], json.loads(row[-3]), row[-2], json.loads(row[-1] or "{}"))) for row in rows
    ]


def _cancellations(rows: Rows) -> list[Cancellation]:
    return [Cancellation(*row) for row in rows]
