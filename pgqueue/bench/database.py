"""What every measurement does with a database: look, wait, and feed jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import tuple_row

from pgqueue.errors import PgqueueError

TEXT = "x" * 100
"""What a no-op job carries beside a number: 130 bytes of jsonb together."""
PATIENCE = 120.0
"""Seconds that a measurement waits for its next event before it gives up."""

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


def connect(dsn: str) -> Connection:
    """A connection in autocommit."""
    return psycopg.connect(dsn, autocommit=True, row_factory=tuple_row)


def scalar(connection: Connection, query: str, *values: Any) -> Any:
    """The first value of the first row, or None."""
    row = connection.execute(query, values).fetchone()
    return row[0] if row else None


def wait_until(predicate: Callable[[], object], what: str, *, pause: float = 0.02) -> None:
    """Looks again and again. Raises `PgqueueError` when it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        if time.monotonic() > deadline:
            raise PgqueueError(f"the bench waited {PATIENCE:g} s for {what}")
        time.sleep(pause)


def feed(
    connection: Connection, task: str, jobs: int, args: str | None = None, run_at: str | None = None
) -> None:
    """Enqueues no-op jobs, made and inserted on the server; for `run_at`, or ready."""
    while jobs > 0:
        batch = min(jobs, 5000)
        connection.execute(
            "select pgqueue.enqueue_many((select jsonb_agg(jsonb_strip_nulls(jsonb_build_object("
            "'task', %s::text, 'args', %s::jsonb, 'run_at', %s::text))) from generate_series(1, %s)))",
            (task, args or payload(), run_at, batch),
        )
        jobs -= batch


def payload() -> str:
    """The args of a no-op job as JSON."""
    return f'{{"n": 1, "s": "{TEXT}"}}'
