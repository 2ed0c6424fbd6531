"""What producers call, and those who look at jobs from outside."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pgqueue.calls.call import Call, Rows, Verb, bigints, nothing, scalar, text_or_null, texts
from pgqueue.info import Event, JobInfo, read_info
from pgqueue.job import Job

ENQUEUE = Verb(
    "enqueue",
    (
        ("task", "text"),
        ("args", "jsonb"),
        ("queue", "text"),
        ("priority", "integer"),
        ("run_at", "timestamptz"),
        ("delay", "double precision"),
        ("max_attempts", "integer"),
        ("unique_key", "text"),
        ("idempotency_key", "text"),
        ("options", "jsonb"),
    ),
    ("id", "created"),
)
ENQUEUE_KEYED = Verb(ENQUEUE.function, ENQUEUE.parameters, ("id", "created", "outcome"))
"""The same for a job with a key, which may meet another one."""
ENQUEUE_MANY = Verb("enqueue_many", (("jobs", "jsonb"),), ("ids", "created", "outcomes"))

LOOK = Verb(
    "look",
    (("ids", "bigint[]"),),
    # in the order of JobInfo's fields, up to `message`
    (
        "id",
        "state",
        "queue",
        "task",
        "priority",
        "attempt",
        "max_attempts",
        "crashes",
        "created_at",
        "run_at",
        "claimed_at",
        "finished_at",
        "worker_id",
        "reason",
        "error",
        "message",
        "tags",
        "result::text",
        "progress::text",
        "progress_at",
    ),
)
WAIT_FOR = Verb("wait_for", (("ids", "bigint[]"), ("channel", "text")))
ENDINGS_UNDER_WAY = Verb("endings_under_way", (("among", "text[]"),))
EVENTS_HORIZON = Verb("events_horizon", (), ("until", "under_way"))
READ_EVENTS = Verb(
    "read_events",
    (
        ("after_at", "timestamptz"),
        ("after_id", "bigint"),
        ("after_attempt", "integer"),
        ("until", "timestamptz"),
        ("of_queue", "text"),
        ("of_task", "text"),
        ("max_rows", "integer"),
    ),
    # in the order of Event's fields
    (
        "at",
        "job_id",
        "attempt",
        "kind",
        "queue",
        "task",
        "worker_id",
        "reason",
        "error",
        "message",
    ),
)


def enqueue(
    *,
    task: str,
    args: str = "{}",
    queue: str | None = None,
    priority: int | None = None,
    run_at: str | None = None,
    delay: float | None = None,
    max_attempts: int | None = None,
    unique_key: str | None = None,
    idempotency_key: str | None = None,
    options: str | None = None,
) -> Call[Job]:
    """One job. `args` and `options` are JSON text, `run_at` ISO 8601 with an offset, `delay` seconds."""
    values = (
        task,
        args,
        queue,
        text_or_null(priority),
        run_at,
        text_or_null(delay),
        text_or_null(max_attempts),
        unique_key,
        idempotency_key,
        options,
    )
    if unique_key is None and idempotency_key is None:
        return Call(ENQUEUE, values, _job)
    return Call(ENQUEUE_KEYED, values, _keyed_job)


def enqueue_many(jobs: str) -> Call[list[Job]]:
    """Many jobs in one statement. `jobs` is a JSON array of objects keyed like the arguments of `enqueue`."""
    return Call(ENQUEUE_MANY, (jobs,), _jobs)


def look(ids: Iterable[int]) -> Call[list[JobInfo]]:
    """What has become of jobs; those that are on record, by id."""
    return Call(LOOK, (bigints(ids),), _infos)


def wait_for(ids: Iterable[int], channel: str) -> Call[None]:
    """Registers a waiter for 35 s: the end of a job notifies `channel` (see `sql/…/wait_for.sql`)."""
    return Call(WAIT_FOR, (bigints(ids), channel), nothing)


def endings_under_way(among: Iterable[str] | None = None) -> Call[list[str]]:
    """The transactions that are about to end jobs, of all or `among` some."""
    return Call(ENDINGS_UNDER_WAY, (None if among is None else texts(among),), scalar)


def events_horizon() -> Call[tuple[datetime, list[str]]]:
    """A time up to which no event is missed once the transactions that come with it have ended."""
    return Call(EVENTS_HORIZON, (), lambda rows: (rows[0][0], rows[0][1]))


def read_events(
    after: tuple[datetime, int, int],
    until: datetime,
    *,
    queue: str | None = None,
    task: str | None = None,
    max_rows: int = 1000,
) -> Call[list[Event]]:
    """The events after a place (time, job id, attempt) and up to a horizon, the earliest first."""
    at, id, attempt = after
    values = (at.isoformat(), str(id), str(attempt), until.isoformat(), queue, task, str(max_rows))
    return Call(READ_EVENTS, values, lambda rows: [Event(*row) for row in rows])


def _job(rows: Rows) -> Job:
    id, created = rows[0]
    return Job(id, created)


def _jobs(rows: Rows) -> list[Job]:
    ids, created, outcomes = rows[0]
    if outcomes is None:  # none has a key
        return list(map(Job, ids, created))
    return list(map(_met, ids, created, outcomes))


def _keyed_job(rows: Rows) -> Job:
    return _met(*rows[0])


def _met(id: int, created: bool, outcome: Any = None) -> Job:
    return Job(id, created) if outcome in (None, "created", "kept") else Job(id, created, outcome)


def _infos(rows: Rows) -> list[JobInfo]:
    return list(map(read_info, rows))
