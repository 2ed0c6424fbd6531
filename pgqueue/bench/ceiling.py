"""The SQL ceiling: claim and complete on the real tables, straight from psycopg, beside the prototype's loop.

One connection, batches of 1,000, nothing run in between. What a worker can reach on one connection is this;
it may come out above it, for it overlaps claims and endings on two. Arrays travel as text: psycopg takes longer
to write an array of integers than the server to complete the jobs.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from importlib.resources import files

from psycopg.types.json import set_json_loads

from pgqueue import calls
from pgqueue.bench.database import Connection, connect, feed, payload
from pgqueue.bench.harness import Bench
from pgqueue.bench.results import Result, compared
from pgqueue.calls import bigints
from pgqueue.drivers import run
from pgqueue.errors import PgqueueError

BATCH = 1000
LANE = 11  # priority 5, not returned


def measure(bench: Bench) -> Iterator[Result]:
    jobs = bench.size(200_000, 100_000)
    figures = bench.alternate(
        {"real": lambda: real(bench, jobs), "prototype": lambda: prototype(bench, jobs)}
    )
    yield compared(
        "ceiling",
        figures["real"],
        figures["prototype"],
        bar=0.8,
        note="one connection, batches of 1000; ceiling: the design's prototype",
    )


def real(bench: Bench, jobs: int) -> float:
    """Jobs claimed and completed a second by the functions of the schema."""
    with bench.database() as dsn, connect(dsn) as connection:
        feed(connection, "noop", jobs)
        connection.execute("analyze pgqueue.ready_jobs")
        bench.settle()
        return drive(connection, jobs)


def drive(connection: Connection, jobs: int) -> float:
    """Claims and completes all that is ready; returns jobs a second."""
    worker = run(
        connection,
        calls.register(
            supervisor_id=1, host="bench", pid=os.getpid(), version="bench", queues=["default"], concurrency=1,
            lease=3600, session_lock=False,
        ),
    )  # fmt: skip
    claim = (
        "select id, lease, queue, lane, position, task, args, attempt, max_attempts, crashes, options"
        " from pgqueue.claim(worker_id => %s::bigint, queues => array['default'], limits => array[1000], max_jobs => 1000,"
        " cursors => %s::bigint[], fence => %s::bigint)"
    )
    complete = "select cardinality(pgqueue.complete(%s::text::bigint[], %s::text::bigint[]))"
    cursor = connection.cursor(binary=True)
    cursors, left, started = [0] * 20, jobs, time.perf_counter()
    while left:
        rows = cursor.execute(claim, (worker, cursors, random.getrandbits(63)), prepare=True).fetchall()
        cursors[LANE] = max((row[4] for row in rows), default=0) + 1
        ended = bigints(row[0] for row in rows), bigints(row[1] for row in rows)
        accepted = cursor.execute(complete, ended, prepare=True).fetchone()
        if not rows or accepted != (len(rows),):
            raise PgqueueError(f"{left} jobs are left and cannot be claimed and completed")
        left -= len(rows)
    return jobs / (time.perf_counter() - started)


def prototype(bench: Bench, jobs: int) -> float:
    """Jobs claimed and finished a second by the prototype that came with the design."""
    with bench.database() as dsn, connect(dsn) as connection:
        connection.execute(files("pgqueue.bench").joinpath("prototype.sql").read_bytes())
        connection.execute(
            "insert into q.jobs (task, args) select 'noop', %s::jsonb from generate_series(1, %s)",
            (payload(), jobs),
        )
        connection.execute("analyze q.jobs")
        bench.settle()
        set_json_loads(lambda text: text, connection)  # neither side decodes the args
        cursor = connection.cursor(binary=True)
        claim = "select * from q.claim('default', 7, %s, %s::bigint[])"
        finish = "select q.finish(7, %s::text::bigint[])"
        cursors, done, started = [0] * 10, 0, time.perf_counter()
        while rows := cursor.execute(claim, (BATCH, cursors), prepare=True).fetchall():
            cursors[0] = max(row[6] for row in rows) + 1
            cursor.execute(finish, (bigints(row[0] for row in rows),), prepare=True)
            done += len(rows)
        if done != jobs:
            raise PgqueueError(f"the prototype finished {done} of {jobs} jobs")
        return jobs / (time.perf_counter() - started)
