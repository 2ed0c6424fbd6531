"""Drain: a backlog of no-op jobs through one worker process with the default settings, history kept.

The worker starts beside a paused queue; resuming it starts the clock. The last job is a marker in the lowest
lane, and the clock stops when its ending is recorded: nothing is asked of the database until it has begun.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from pgqueue import calls
from pgqueue.bench.ceiling import real
from pgqueue.bench.database import connect, feed, scalar, wait_until
from pgqueue.bench.harness import Bench
from pgqueue.bench.results import Result, compared
from pgqueue.bench.tasks import stamp
from pgqueue.drivers import run
from pgqueue.errors import PgqueueError


def measure(bench: Bench) -> Iterator[Result]:
    jobs = bench.size(200_000, 100_000)
    cpu: dict[str, list[float]] = {"noop": [], "noop_sync": []}

    def side(task: str) -> float:
        rate, microseconds = drain(bench, task, jobs)
        cpu[task].append(microseconds)
        return rate

    figures = bench.alternate(
        {
            "ceiling": lambda: real(bench, jobs),
            "async": lambda: side("noop"),
            "sync": lambda: side("noop_sync"),
        },
        rounds=2 * bench.rounds - 1,
    )
    for name, task, bar, kind in (
        ("drain", "noop", 1.0, "async no-op jobs"),
        ("drain-sync", "noop_sync", 0.25, "sync no-op jobs in threads"),
    ):
        note = f"{jobs:,} {kind}, {min(cpu[task]):.1f} us of the worker's CPU a job"
        yield compared(
            name,
            figures[name.replace("drain-", "").replace("drain", "async")],
            figures["ceiling"],
            bar=bar,
            note=note,
        )


def drain(bench: Bench, task: str, jobs: int, args: str | None = None) -> tuple[float, float]:
    """Jobs a second, and microseconds of the worker's CPU a job. `args` are JSON, by default a no-op job's."""
    running = "select exists (select from pgqueue.running_jobs as r where r.id = %s)"
    left = "select count(*) from pgqueue.running_jobs"
    with bench.database() as dsn, connect(dsn) as connection, bench.stamps() as stamps:
        run(connection, calls.pause("default"))
        feed(connection, task, jobs, args)
        last = stamp.using(priority=9).enqueue(connection, path=stamps.path, number=0).id
        connection.execute("analyze pgqueue.ready_jobs")
        with bench.worker(dsn) as worker:
            bench.settle()
            cpu, started = worker.cpu_seconds(), time.perf_counter()
            run(connection, calls.resume("default"))
            stamps.wait(0)
            wait_until(lambda: not scalar(connection, running, last), "the last job's ending", pause=0.001)
            # In threads, jobs that began before the marker may end after it.
            wait_until(lambda: not scalar(connection, left), "the end", pause=0.001)
            seconds = time.perf_counter() - started
            cpu = worker.cpu_seconds() - cpu
        if (done := scalar(connection, "select count(*) from pgqueue.finished_jobs")) != jobs + 1:
            raise PgqueueError(f"{done} jobs were completed, not {jobs + 1}")
        return jobs / seconds, cpu / jobs * 1e6
