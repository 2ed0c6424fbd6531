"""How the tests of the SQL act: calls by name, what a job looks like now, and functions changed on purpose."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.datetime import DateLoader, TimestamptzLoader
from psycopg.types.json import Jsonb

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.job import ClaimedJob

STATES = ("ready_jobs", "scheduled_jobs", "blocked_jobs", "running_jobs", "finished_jobs", "dead_letters")
_ROWS: tuple[str, ...] = (
    *STATES,
    "job_failures",
    "unique_keys",
    "queues",
    "workers",
    "heartbeats",
    "sleepers",
)
_ROWS += (
    "cancel_requests",
    "job_progress",
    "job_reports",
    "waiters",
    "schedules",
    "schedule_runs",
    "audit",
    "stop_requests",
)
_ROWS += ("depths", "rollups", "failure_groups", "trims")
_FLOORS = ("lane_floors", "floor_proofs")

NEVER = datetime.max.replace(tzinfo=UTC)
"""What 'infinity' is read as."""

Row = dict[str, Any]


class Connect(Protocol):
    """The fixture `connect`."""

    def __call__(self, dsn: str = ..., settings: str = ..., autocommit: bool = ...) -> psycopg.Connection: ...


class _Date(DateLoader):
    """Reads '-infinity', which Python has no date for, as None."""

    def load(self, data: Any) -> Any:
        return None if bytes(data) == b"-infinity" else super().load(data)


class _Timestamptz(TimestamptzLoader):
    """The same, and 'infinity' as `NEVER`."""

    def load(self, data: Any) -> Any:
        if bytes(data) == b"infinity":
            return NEVER
        return None if bytes(data) == b"-infinity" else super().load(data)


def open_session(dsn: str, settings: str = "", autocommit: bool = True) -> psycopg.Connection:
    """A session that gives up a statement after 20 s: a race that goes wrong fails instead of hanging.

    `settings` are options as for psql: `-c name=value`.
    """
    connection = psycopg.connect(
        dsn, autocommit=autocommit, options=f"-c statement_timeout=20s -c timezone=UTC {settings}"
    )
    connection.adapters.register_loader("date", _Date)
    connection.adapters.register_loader("timestamptz", _Timestamptz)
    return connection


# Calling ----------------------------------------------------------------------------------------------


def call(connection: psycopg.Connection, function: str, /, **arguments: Any) -> Any:
    """Runs a function of schema pgqueue with named arguments, in plain SQL.

    Returns the value of a function that has one, else the rows as dicts. Dicts travel as jsonb.
    """
    query = sql.SQL("select * from pgqueue.{}({})").format(
        sql.Identifier(function),
        sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(n), sql.Placeholder(n)) for n in arguments
        ),
    )
    values = {n: Jsonb(v) if isinstance(v, dict) else v for n, v in arguments.items()}
    rows = connection.cursor(row_factory=dict_row).execute(query, values).fetchall()
    return rows[0][function] if rows and list(rows[0]) == [function] else rows


def enqueue(connection: psycopg.Connection, task: str = "t", **options: Any) -> int:
    """The id of a new job."""
    id: int = call(connection, "enqueue", task=task, **options)[0]["id"]
    return id


def enqueue_many(connection: psycopg.Connection, jobs: Sequence[Any]) -> tuple[list[int], list[bool]]:
    """The ids, and whether each was created."""
    row = call(connection, "enqueue_many", jobs=Jsonb(list(jobs)))[0]
    return row["ids"], row["created"]


def register(
    connection: psycopg.Connection,
    *queues: str,
    lease: float = 30,
    supervisor_id: int = 1,
    session_lock: bool = False,
) -> int:
    """The id of a new worker of `queues` (default: default)."""
    return run(
        connection,
        calls.register(
            supervisor_id=supervisor_id,
            host="here",
            pid=1,
            version="0",
            queues=queues or ("default",),
            concurrency=10,
            lease=lease,
            session_lock=session_lock,
        ),
    )


def claim(
    connection: psycopg.Connection,
    worker_id: int,
    max_jobs: int = 1,
    *,
    queues: Sequence[str] = ("default",),
    limits: Sequence[int] | None = None,
    cursors: Sequence[int] | None = None,
    fence: int | None = None,
) -> list[ClaimedJob]:
    """One claim, from the floors unless `cursors` are given, under a new lease unless `fence` is."""
    return run(
        connection,
        calls.claim(
            worker_id=worker_id,
            queues=queues,
            limits=limits if limits is not None else [max_jobs] * len(queues),
            max_jobs=max_jobs,
            cursors=cursors if cursors is not None else [0] * (20 * len(queues)),
            fence=fence if fence is not None else random.getrandbits(64) - 2**63,
        ),
    )


def claimed(connection: psycopg.Connection, worker_id: int, **options: Any) -> ClaimedJob:
    """A new job in the hands of a worker; `options` are those of enqueue."""
    id = enqueue(connection, **options)
    jobs = claim(connection, worker_id, queues=(options.get("queue", "default"),))
    assert [job.id for job in jobs] == [id]
    return jobs[0]


# Looking ----------------------------------------------------------------------------------------------


def where(connection: psycopg.Connection, id: int) -> list[str]:
    """The state tables that hold a job: one, or something is wrong."""
    return [
        table
        for table in STATES
        if connection.execute(
            sql.SQL("select from pgqueue.{} where id = %s").format(sql.Identifier(table)), [id]
        ).fetchone()
        is not None
    ]


def row_of(connection: psycopg.Connection, id: int) -> Row:
    """A job's row, with the name of its table as `table`. It is in exactly one, and the view agrees."""
    (table,) = where(connection, id)
    found = rows(connection, table, "id = %s", id)
    states = connection.execute("select state from pgqueue_bi.jobs where id = %s", [id]).fetchall()
    assert len(found) == len(states) == 1
    state = {"finished_jobs": found[0].get("state"), "dead_letters": "dead"}.get(
        table, table.removesuffix("_jobs")
    )
    assert states == [(state,)]
    return found[0] | {"table": table}


def rows(connection: psycopg.Connection, table: str, condition: str = "true", *values: Any) -> list[Row]:
    """The rows of one of pgqueue's tables."""
    query = sql.SQL("select * from pgqueue.{} where {}").format(sql.Identifier(table), sql.SQL(condition))
    return connection.cursor(row_factory=dict_row).execute(query, values).fetchall()


def count(connection: psycopg.Connection, *tables: str) -> int:
    """How many rows the tables have together."""
    return sum(scalar(connection, f"select count(*) from pgqueue.{table}") for table in tables)


def scalar(connection: psycopg.Connection, query: str, *values: Any) -> Any:
    """The one value of a query."""
    row = connection.execute(query, values or None).fetchone()
    assert row is not None
    return row[0]


def pid(connection: psycopg.Connection) -> int:
    """The server process of a session."""
    return connection.info.backend_pid


def everything(connection: psycopg.Connection) -> Row:
    """Every row of every table, to see that a call changed nothing."""
    found: Row = scalar(connection, _EVERYTHING)
    return found


_EVERYTHING = "select jsonb_build_object({})".format(
    ", ".join(
        f"'{table}', (select jsonb_agg(t order by t::text) from pgqueue.{table} as t)"
        for table in (*_ROWS, *_FLOORS, "leadership")
    )
)


# Changing ---------------------------------------------------------------------------------------------


def empty(connection: psycopg.Connection) -> None:
    """Deletes every row. The sequences go on: they are never set back."""
    forget_prepared(connection)
    connection.execute(_EMPTY)


_EMPTY = "; ".join(
    [
        *(f"delete from pgqueue.{table}" for table in (*_ROWS, *_FLOORS)),
        "update pgqueue.leadership set supervisor_id = 0, led_at = '-infinity', resumed_at = '-infinity'",
        "select setval('pgqueue.next_look', 1)",
        "select setval('pgqueue.attempts_set', 1, false)",
        "update pgqueue.depth_count set counted_at = '-infinity', seconds = 0, is_moving = true",
        "update pgqueue.retention set settings = '', due_at = now() + interval '1 day'",
        "update pgqueue.rollup_progress set rolled_up_to = date_trunc('minute', now()), proven_to = '-infinity', next_to = null",
    ]
)


def forget_prepared(connection: psycopg.Connection) -> None:
    """Rolls back prepared transactions: a database that has one cannot be dropped."""
    for (name,) in connection.execute(
        "select gid from pg_prepared_xacts where database = current_database()"
    ).fetchall():
        connection.execute(sql.SQL("rollback prepared {}").format(sql.Literal(name)))


@contextlib.contextmanager
def sabotaged(connection: psycopg.Connection, function: str, *changes: tuple[str, str]) -> Iterator[None]:
    """Replaces text in a function's definition for the time of the block: a careless variant, or a stop.

    Each text has to occur exactly once, so that a test never passes because its sabotage fits no more.
    """
    original = scalar(connection, "select pg_get_functiondef(%s::regproc)", f"pgqueue.{function}")
    changed = original
    for old, new in changes:
        assert changed.count(old) == 1, f"{function} has {changed.count(old)} times: {old}"
        changed = changed.replace(old, new)
    connection.execute(changed)
    try:
        yield
    finally:
        connection.execute(original)


STOP = "pg_advisory_xact_lock_shared(4711)"
"""Put into a function, it stops there while another session is in `stopped`."""


@contextlib.contextmanager
def stopped(connection: psycopg.Connection) -> Iterator[None]:
    """Holds the lock that STOP waits for until the end of the block; `connection` is in autocommit."""
    connection.execute("select pg_advisory_lock(4711)")
    try:
        yield
    finally:
        connection.execute("select pg_advisory_unlock(4711)")
