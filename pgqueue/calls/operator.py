"""What operators call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pgqueue.calls.call import Call, Rows, Verb, View, bigints, nothing, scalar, texts
from pgqueue.info import HealthCheck
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
        ("of_tag", "text"),
        ("of_fingerprint", "text"),
        ("of_args", "jsonb"),
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
        "fingerprint",
    ),
)
FIND_DEAD_IDS = Verb("find_dead", FIND_DEAD.parameters, ("id",))
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
        ("created_after", "timestamptz"),
        ("created_before", "timestamptz"),
        ("of_fingerprint", "text"),
        ("of_args", "jsonb"),
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
        ("created_after", "timestamptz"),
        ("created_before", "timestamptz"),
        ("of_fingerprint", "text"),
        ("of_args", "jsonb"),
    ),
    ("id", "outcome"),
)
RETRY = Verb("retry", (("ids", "bigint[]"),))
DELETE_JOBS = Verb("delete_jobs", (("ids", "bigint[]"),), ("id", "outcome"))
REPLAY = Verb("replay", (("ids", "bigint[]"), ("new_args", "jsonb"), ("changed_args", "jsonb")))
DISCARD = Verb("discard", (("ids", "bigint[]"),))
PAUSE = Verb("pause", (("queue", "text"), ("until", "timestamptz")))
RESUME = Verb("resume", (("queue", "text"),))
SET_QUEUE = Verb("set_queue", (("queue", "text"), ("settings", "jsonb")), ())
COUNT_QUEUE = Verb("count_queue", (("queue", "text"),), ("ready", "scheduled", "blocked", "running"))
STOP_WORKERS = Verb("stop_workers", (("ids", "bigint[]"),))
HEALTH = View("health", (), ("queue", "check_name", "value", "threshold", "is_healthy", "detail"))

STATS = Verb(
    "stats",
    (("last_seconds", "double precision"), ("by_task", "boolean")),
    # in the order of Stats' fields
    (
        "queue",
        "task",
        "from_at",
        "until_at",
        "enqueued",
        "completed",
        "cancelled",
        "failed",
        "dead",
        "wait_avg_seconds",
        "wait_p50_seconds",
        "wait_p95_seconds",
        "wait_p99_seconds",
        "run_avg_seconds",
        "run_p50_seconds",
        "run_p95_seconds",
        "run_p99_seconds",
    ),
)


class QueueCount(NamedTuple):
    """The unfinished jobs of a queue; the result columns of `pgqueue.count_queue()`."""

    ready: int
    scheduled: int
    blocked: int
    running: int


class Stats(NamedTuple):
    """What became of the jobs of a queue, or of one task in it; the result columns of `pgqueue.stats()`."""

    queue: str
    task: str | None
    from_at: datetime
    until_at: datetime
    enqueued: int
    completed: int
    cancelled: int
    failed: int
    dead: int
    wait_avg_seconds: float | None
    wait_p50_seconds: float | None
    wait_p95_seconds: float | None
    wait_p99_seconds: float | None
    run_avg_seconds: float | None
    run_p50_seconds: float | None
    run_p95_seconds: float | None
    run_p99_seconds: float | None


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
    tag: str | None = None,
    fingerprint: str | None = None,
    args: str | None = None,
) -> Call[list[DeadLetter]]:
    """Dead letters that match every filter given, newest first. Times are ISO 8601 with an offset; `args` is JSON text."""
    values = (
        None if ids is None else bigints(ids),
        queue,
        task,
        reason,
        error,
        died_after,
        died_before,
        str(max_rows),
        tag,
        fingerprint,
        args,
    )
    return Call(FIND_DEAD, values, lambda rows: [DeadLetter(*row) for row in rows])


def find_dead_ids(**given: Any) -> Call[list[int]]:
    """The ids of the dead letters that `find_dead` would return."""
    return Call(FIND_DEAD_IDS, find_dead(**given).values, _ids)


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
    created_after: str | None = None,
    created_before: str | None = None,
    fingerprint: str | None = None,
    args: str | None = None,
) -> Call[list[int]]:
    """The ids of jobs that match every filter given, newest first. Times are ISO 8601 with an offset; `args` is JSON text."""
    values = (
        None if states is None else texts(states),
        queue,
        task,
        tag,
        str(max_rows),
        created_after,
        created_before,
        fingerprint,
        args,
    )
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
    created_after: str | None = None,
    created_before: str | None = None,
    fingerprint: str | None = None,
    args: str | None = None,
) -> Call[list[Cancellation]]:
    """Cancels jobs that wait or run and match every filter given, at most `max_jobs` of them."""
    values = (
        queue,
        task,
        tag,
        state,
        reason,
        str(max_jobs),
        created_after,
        created_before,
        fingerprint,
        args,
    )
    return Call(CANCEL_MATCHING, values, _cancellations)


def retry(ids: Iterable[int]) -> Call[list[int]]:
    """Makes scheduled jobs ready now; returns the ids that were."""
    return Call(RETRY, (bigints(ids),), scalar)


def delete_jobs(ids: Iterable[int]) -> Call[dict[int, str]]:
    """Deletes jobs in any state but running; of each that exists whether it is "deleted" or "running"."""
    return Call(DELETE_JOBS, (bigints(ids),), lambda rows: {row[0]: row[1] for row in rows})


def replay(
    ids: Iterable[int], *, new_args: str | None = None, changed_args: str | None = None
) -> Call[list[int]]:
    """Runs dead letters again, attempts from 0; returns the ids that were replayed.

    `new_args` and `changed_args` are JSON text: instead of their args, or over them.
    """
    return Call(REPLAY, (bigints(ids), new_args, changed_args), scalar)


def discard(ids: Iterable[int]) -> Call[list[int]]:
    """Moves dead letters to the history as cancelled; returns the ids that were."""
    return Call(DISCARD, (bigints(ids),), scalar)


def pause(queue: str, until: str | None = None) -> Call[None]:
    """Stops the claiming of a queue, on every worker, until it is resumed or (ISO 8601 with an offset) that time."""
    return Call(PAUSE, (queue, until), nothing)


def resume(queue: str) -> Call[None]:
    """Starts the claiming of a queue again."""
    return Call(RESUME, (queue,), nothing)


def set_queue(queue: str, settings: str) -> Call[dict[str, Any]]:
    """Changes the settings of a queue that are given, a JSON object as text; returns all that are set."""
    return Call(SET_QUEUE, (queue, settings), _settings)


def count_queue(queue: str) -> Call[QueueCount]:
    """How many unfinished jobs a queue has now."""
    return Call(COUNT_QUEUE, (queue,), lambda rows: QueueCount(*rows[0]))


def stop_workers(ids: Iterable[int]) -> Call[list[int]]:
    """Asks workers to finish what they run and to stop; returns the ids that are registered."""
    return Call(STOP_WORKERS, (bigints(ids),), scalar)


def stats(last_seconds: float = 3600, *, by_task: bool = False) -> Call[list[Stats]]:
    """What became of jobs lately, by queue, or by queue and task."""
    return Call(STATS, (str(last_seconds), str(by_task)), lambda rows: [Stats(*row) for row in rows])


def health() -> Call[list[HealthCheck]]:
    """Every check of health, those of the whole first, then queue by queue. For who may read the view `health`."""
    return Call(HEALTH, (), _checks)


def _ids(rows: Rows) -> list[int]:
    return [row[0] for row in rows]


def _checks(rows: Rows) -> list[HealthCheck]:
    checks = [HealthCheck(*row) for row in rows]
    return sorted(checks, key=lambda check: (check.queue is not None, check.queue or "", check.check_name))


def _settings(rows: Rows) -> dict[str, Any]:
    found = rows[0][0]
    return found if isinstance(found, dict) else dict(json.loads(found))  # as text from some drivers


def _waiting(rows: Rows) -> list[WaitingJob]:
    return [
        WaitingJob(*(*row[:-3], json.loads(row[-3]), row[-2], json.loads(row[-1] or "{}"))) for row in rows
    ]


def _cancellations(rows: Rows) -> list[Cancellation]:
    return [Cancellation(*row) for row in rows]
