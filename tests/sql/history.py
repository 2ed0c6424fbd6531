"""A history made by hand, for the tests of what is read: endings at any time, and minutes that are over when a test says so."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from tests.sql.acting import Row, call, rows

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
"""When the minutes of the tests begin: all of it is relative to how far the roll-up has come."""
_IDS = itertools.count(10_000_000)


def at(seconds: float) -> datetime:
    """So long after noon."""
    return NOON + timedelta(seconds=seconds)


def ended(
    connection: psycopg.Connection,
    seconds: float,
    *,
    wait: float = 1.0,
    run: float = 1.0,
    queue: str = "default",
    task: str = "t",
    state: str = "completed",
    jobs: int = 1,
) -> None:
    """Jobs that ended so long after noon, each having waited and run for so many seconds."""
    finished = at(seconds)
    claimed = finished - timedelta(seconds=run)
    due = claimed - timedelta(seconds=wait)
    connection.cursor().executemany(
        "insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,"
        " max_attempts, crashes, queue, task, state, args)"
        " values (%s, 1, %s, %s, %s, %s, '-infinity', 11, 1, 5, 0, %s, %s, %s, '{}')",
        [(next(_IDS), due, due, claimed, finished, queue, task, state) for _ in range(jobs)],
    )


def failed(
    connection: psycopg.Connection,
    seconds: float,
    *,
    queue: str = "default",
    task: str = "t",
    error: str = "ValueError",
    message: str = "no",
    fingerprint: str | None = "f",
    dead_reason: str | None = None,
    jobs: int = 1,
) -> int:
    """Attempts that failed so long after noon; the id of the last one's job."""
    ids = [next(_IDS) for _ in range(jobs)]
    connection.cursor().executemany(
        "insert into pgqueue.job_failures (job_id, worker_id, failed_at, day, attempt, queue, task, error, message, traceback,"
        " fingerprint, dead_reason) values (%s, 1, %s, '-infinity', 1, %s, %s, %s, %s, '', %s, %s)",
        [(id, at(seconds), queue, task, error, message, fingerprint, dead_reason) for id in ids],
    )
    return ids[-1]


def over(connection: psycopg.Connection, from_seconds: float, to_seconds: float) -> None:
    """From now on the roll-up has come up to the one time, and what is before the other is proven to be there."""
    connection.execute(
        "update pgqueue.rollup_progress set rolled_up_to = %s, proven_to = %s, next_to = null",
        [at(from_seconds), at(to_seconds)],
    )


def rolled_up(connection: psycopg.Connection, from_seconds: float = 0, to_seconds: float = 60) -> int:
    """Rolls up minutes after noon, whatever they hold; how many they were."""
    over(connection, from_seconds, to_seconds)
    minutes = 0
    while rolled := call(connection, "roll_up"):
        minutes += rolled
        if progress(connection)["rolled_up_to"] >= at(to_seconds):
            break
    return minutes


def minute_of_now(connection: psycopg.Connection, number: int) -> Row | None:
    """All that has ended since the last call did so in the minute `number` after noon: counted, rolled up; its row.

    Rows are moved and not the clock.
    """
    moved = [at(60 * number + 30), at(86400)]
    connection.execute(
        "update pgqueue.finished_jobs set finished_at = %s, day = '-infinity' where finished_at > %s", moved
    )
    connection.execute(
        "update pgqueue.job_failures set failed_at = %s, day = '-infinity' where failed_at > %s", moved
    )
    call(connection, "count_depths")
    assert rolled_up(connection, 60 * number, 60 * number + 60) == 1
    found = rollups(connection, "minute", bucket_at=at(60 * number))
    assert len(found) <= 1
    return found[0] if found else None


def rollups(connection: psycopg.Connection, period: str, **columns: Any) -> list[Row]:
    """The rollups of a period that have these values, by time, queue and task."""
    wanted = {"period": period, **columns}
    found = rows(connection, "rollups", " and ".join(f"{name} = %s" for name in wanted), *wanted.values())
    return sorted(found, key=lambda row: (row["bucket_at"], row["queue"], row["task"]))


def progress(connection: psycopg.Connection) -> Row:
    """How far the roll-up has come."""
    (row,) = rows(connection, "rollup_progress")
    return row


def counts(row: Row | None) -> dict[str, int]:
    """What has happened, where anything has."""
    assert row is not None
    names = ("enqueued", "completed", "cancelled", "failed", "dead")
    return {name: row[name] for name in names if row[name]}
