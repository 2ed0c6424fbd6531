"""Enqueue: one at a time, many at once, and by 32 clients beside workers that sleep or are busy.

Each side is beside the plainest thing that could take its place: an INSERT of the same row, COPY into the
same table, the same enqueue without any NOTIFY.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec

from pgqueue.bench.database import TEXT, Connection, connect, payload, scalar, wait_until
from pgqueue.bench.harness import Bench
from pgqueue.bench.results import Result, compared
from pgqueue.bench.tasks import app, nap, noop
from pgqueue.bench.workers import ASLEEP, Worker
from pgqueue.errors import PgqueueError

CLIENTS = 32
COLUMNS = "id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args"


def measure(bench: Bench) -> Iterator[Result]:
    yield from single(bench)
    yield from bulk(bench)
    yield from many_clients(bench)


# One at a time ----------------------------------------------------------------------------------------


def single(bench: Bench) -> Iterator[Result]:
    """`task.enqueue` and a plain INSERT, each in a transaction of its own."""
    count = bench.size(500, 300)
    insert = (
        f"insert into pgqueue.ready_jobs ({COLUMNS})"
        " values (nextval('pgqueue.job_ids'), now(), now(), 11, 0, 5, 0, 'default', 'noop', %s)"
    )
    args = payload()

    def rate(once: Callable[[], object]) -> float:
        started = time.perf_counter()
        for _ in range(count):
            once()
        return count / (time.perf_counter() - started)

    with bench.database() as dsn, connect(dsn) as connection:
        sides: dict[str, Callable[[], float]] = {
            "enqueue": lambda: rate(lambda: noop.enqueue(connection, n=1, s=TEXT)),
            "INSERT": lambda: rate(lambda: connection.execute(insert, (args,))),
        }
        for side in sides.values():
            side()  # statements are prepared and the client is warm
        figures = bench.alternate(sides, rounds=4 * bench.rounds)
        yield compared(
            "enqueue-single",
            figures["enqueue"],
            figures["INSERT"],
            bar=0.7,
            note="a transaction each; ceiling: INSERT of the same row",
        )
        connection.execute("set synchronous_commit = off")
        figures = bench.alternate(sides, rounds=4 * bench.rounds)
        yield compared(
            "enqueue-single-async",
            figures["enqueue"],
            figures["INSERT"],
            note="the same with synchronous_commit off",
        )


# Many at once -----------------------------------------------------------------------------------------


def bulk(bench: Bench) -> Iterator[Result]:
    """`app.enqueue_many`, ids returned, and COPY; both from Python values to the commit."""
    count = bench.size(50_000, 20_000)

    def enqueue(connection: Connection) -> int:
        with connection.transaction():
            return len(app.enqueue_many(connection, [noop.item(n=number, s=TEXT) for number in range(count)]))

    def copy(connection: Connection) -> int:
        first, now, encode = 10**15, datetime.now(UTC), msgspec.json.encode
        with (
            connection.transaction(),
            connection.cursor() as cursor,
            cursor.copy(f"copy pgqueue.ready_jobs ({COLUMNS}) from stdin") as copying,
        ):
            for number in range(count):
                args = encode({"n": number, "s": TEXT})
                copying.write_row((first + number, now, now, 11, 0, 5, 0, "default", "noop", args.decode()))
        return count

    def rate(side: Callable[[Connection], int]) -> float:
        with bench.database() as dsn, connect(dsn) as connection:
            bench.settle()
            started = time.perf_counter()
            if side(connection) != count:
                raise PgqueueError("a bulk did not return every job")
            return count / (time.perf_counter() - started)

    figures = bench.alternate({"enqueue_many": lambda: rate(enqueue), "COPY": lambda: rate(copy)})
    yield compared(
        "enqueue-bulk", figures["enqueue_many"], figures["COPY"], bar=0.5,
        note=f"{count:,} jobs, ids returned; ceiling: COPY into the same table",
    )  # fmt: skip


# Many clients -----------------------------------------------------------------------------------------


def many_clients(bench: Bench) -> Iterator[Result]:
    """32 clients of pgbench, each job in a transaction of its own, with and without NOTIFY."""
    if bench.pgbench is None:
        bench.tell("  no pgbench on this machine: enqueue-32-* are left out")
        return
    script = bench.folder / "enqueue.sql"
    script.write_text(f"select id from pgqueue.enqueue('noop', '{payload()}');\n")
    yield from _asleep(bench, bench.pgbench, str(script))
    yield from _busy(bench, bench.pgbench, str(script))


def _asleep(bench: Bench, pgbench: Path, script: str) -> Iterator[Result]:
    """The worker sleeps at the start and serves the queue; without NOTIFY it does so by looking every 10 ms."""
    with ExitStack() as stack:
        sides = {}
        polling = {"wake": "poll", "poll_interval": "0.01"}
        for side, notify, settings in (("notified", "on", {}), ("silent", "off", polling)):
            dsn = stack.enter_context(bench.database())
            connection = stack.enter_context(connect(dsn))
            worker = stack.enter_context(bench.worker(dsn, settings=settings))

            def rate(dsn: str, connection: Connection, worker: Worker, notify: str) -> float:
                found = run_pgbench(bench, pgbench, script, dsn, notify)
                wait_until(
                    lambda: not scalar(connection, "select count(*) from pgqueue.ready_jobs"),
                    "the jobs' end",
                    pause=0.2,
                )
                if notify == "on":
                    worker.wait_until_asleep(connection)
                return found

            sides[side] = partial(rate, dsn, connection, worker, notify)
        figures = bench.alternate(sides)
    yield compared(
        f"enqueue-{CLIENTS}-asleep", figures["notified"], figures["silent"], bar=0.8,
        note="clients that enqueue singly, a worker that slept; ceiling: no NOTIFY",
    )  # fmt: skip


def _busy(bench: Bench, pgbench: Path, script: str) -> Iterator[Result]:
    """Every slot of the worker is taken by a long job."""
    with bench.database() as dsn, connect(dsn) as connection, bench.worker(dsn) as worker:
        app.enqueue_many(connection, [nap.item(seconds=3600.0)] * 50)
        wait_until(
            lambda: not scalar(connection, f"select count(*) from {ASLEEP}"),
            "the worker's slots to fill",
        )
        figures = bench.alternate(
            {
                "notified": lambda: run_pgbench(bench, pgbench, script, dsn, "on"),
                "silent": lambda: run_pgbench(bench, pgbench, script, dsn, "off"),
            }
        )
        worker.hurry()
    yield compared(
        f"enqueue-{CLIENTS}-busy", figures["notified"], figures["silent"], bar=0.8,
        note="the same, every slot of the worker taken",
    )  # fmt: skip


def run_pgbench(bench: Bench, pgbench: Path, script: str, dsn: str, notify: str) -> float:
    """Enqueues a second. `notify` is the setting `pgqueue.notify` of the clients' sessions."""
    transactions = bench.size(1000, 300)
    bench.settle()
    done = subprocess.run(
        [
            pgbench,
            "-n",
            "-M",
            "prepared",
            "-c",
            str(CLIENTS),
            "-j",
            "2",
            "-t",
            str(transactions),
            "-f",
            script,
            dsn,
        ],
        env={**os.environ, "PGOPTIONS": f"-c pgqueue.notify={notify}"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    if done.returncode != 0 or found is None:
        raise PgqueueError(f"pgbench failed: {done.stderr.strip()}")
    return float(found[1])
