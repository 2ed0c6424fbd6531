"""On time: how late a delayed job starts on an idle worker, how late a schedule ticks, and what happens when 100,000
jobs are due in one moment.

Due times are given by the clock of this machine, which is the database's too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from pgqueue import calls
from pgqueue.bench.database import Connection, connect, feed, scalar, wait_until
from pgqueue.bench.drain import drain
from pgqueue.bench.harness import Bench
from pgqueue.bench.results import Result, below
from pgqueue.bench.tasks import noop, stamp
from pgqueue.bench.workers import Stamps
from pgqueue.drivers import run

LATE_MS = 50.0


def measure(bench: Bench) -> Iterator[Result]:
    yield from _delayed(bench)
    yield from _ticked(bench)
    yield from _all_at_once(bench)


def _delayed(bench: Bench) -> Iterator[Result]:
    samples = bench.size(500, 200)
    with (
        bench.database() as dsn,
        connect(dsn) as connection,
        bench.stamps() as started,
        bench.worker(dsn, "-c", "10"),
    ):
        due: dict[int, float] = {}
        for number in range(-20, samples):
            due[number] = _enqueue_for_later(connection, started, number, random.uniform(0.05, 2.0))
            time.sleep(random.uniform(0.005, 0.05))
            started.read()
        late = sorted(max(0.001, (started.wait(number) - due[number]) * 1e3) for number in range(samples))
    for name, share in (("late-p50", 0.5), ("late-p99", 0.99)):
        note = f"{samples} jobs with delays of 50 ms to 2 s, from their due time to the handler"
        yield below(
            name, late[int(samples * share)], LATE_MS, unit="ms", bar=None if share == 0.5 else 1.0, note=note
        )


def _enqueue_for_later(connection: Connection, started: Stamps, number: int, delay: float) -> float:
    """Enqueues a stamp; returns when it is due, by `time.monotonic()`."""
    now, monotonic = datetime.now(UTC), time.monotonic()
    later = stamp.using(run_at=now + timedelta(seconds=delay))
    later.enqueue(connection, path=started.path, number=number)
    return monotonic + delay


def _ticked(bench: Bench) -> Iterator[Result]:
    seconds = bench.size(20, 10)
    with bench.database() as dsn, connect(dsn) as connection, bench.worker(dsn):
        run(connection, calls.schedule("second", {"task": "nap", "args": '{"seconds": 0}', "every": 1}))
        runs = "select count(*) from pgqueue_bi.schedule_runs"
        wait_until(lambda: scalar(connection, runs) > seconds, "the schedule's runs", pause=0.5)
        late = (
            "select percentile_disc(0.99) within group (order by late_seconds) from pgqueue_bi.schedule_runs"
        )
        note = f"a schedule of every second, {seconds} runs: from the due time to the tick"
        yield below("tick-p99", scalar(connection, late) * 1e3, LATE_MS, unit="ms", note=note)


def _all_at_once(bench: Bench) -> Iterator[Result]:
    jobs = bench.size(100_000, 50_000)
    ready, _ = drain(bench, "noop", jobs)
    with bench.database() as dsn, connect(dsn) as connection, bench.stamps() as started:
        lead = max(3.0, bench.span(15))
        due = time.monotonic() + lead
        at = (datetime.now(UTC) + timedelta(seconds=lead)).isoformat()
        feed(connection, noop.name, jobs, run_at=at)
        connection.execute("analyze pgqueue.scheduled_jobs")
        if time.monotonic() > due - bench.span(3):
            bench.tell("  the jobs were due before the worker had started")
        with bench.worker(dsn):
            time.sleep(max(0.0, due - time.monotonic()))
            ended: list[float] = []
            done = "select not exists (select from pgqueue.scheduled_jobs) and not exists (select from pgqueue.ready_jobs) and not exists (select from pgqueue.running_jobs)"
            while not scalar(connection, done):
                stamp.using(priority=0).enqueue(connection, path=started.path, number=len(ended))
                ended.append(time.monotonic())
                time.sleep(0.02)
                started.read()
            rate = jobs / (time.monotonic() - due)
            # On a busy machine a handler may start before the enqueuer has read that its commit is over.
            waits = sorted(max(0.001, (started.wait(number) - end) * 1e3) for number, end in enumerate(ended))
    note = f"{jobs:,} jobs due in one moment, until they are completed; ceiling: the same jobs, ready"
    yield Result(
        name="due-at-once", ours=rate, ceiling=ready, unit="/s", ratio=rate / ready, bar=None, note=note
    )
    note = f"{len(waits)} jobs of the first priority, enqueued meanwhile: from the commit to the handler"
    yield below("due-at-once-wait", waits[int(len(waits) * 0.99)], 250.0, unit="ms", bar=None, note=note)
