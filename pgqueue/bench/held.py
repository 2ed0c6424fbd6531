"""Held: jobs fed and drained while somebody keeps a snapshot open, so that no dead row can be removed.

A worker drains what one connection feeds, in lockstep. The last tenth has to be as fast as the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import psycopg

from pgqueue import calls
from pgqueue.bench.database import TEXT, Connection, connect, scalar, wait_until
from pgqueue.bench.harness import Bench
from pgqueue.bench.results import Result
from pgqueue.bench.tasks import noop, stamp
from pgqueue.bench.workers import Stamps
from pgqueue.drivers import run
from pgqueue.errors import PgqueueError

AHEAD = 4
"""Blocks that the feeder may be ahead of the worker."""


def measure(bench: Bench) -> Iterator[Result]:
    block = bench.size(10_000, 2_000)
    with bench.database() as dsn, connect(dsn) as connection, bench.stamps() as stamps:
        with held_snapshot(dsn), bench.worker(dsn):
            tenths = feed_and_drain(bench, connection, stamps, block=block, blocks=100)
            wait_until(
                lambda: not scalar(connection, "select count(*) from pgqueue.running_jobs"),
                "the end",
                pause=0.1,
            )
        done = scalar(connection, "select count(*) from pgqueue.finished_jobs")
    if done != 100 * block:
        raise PgqueueError(f"{done} jobs were completed, not {100 * block}")
    yield Result(
        name="held",
        ours=tenths[-1],
        ceiling=tenths[0],
        unit="/s",
        ratio=tenths[-1] / tenths[0],
        bar=0.8,
        note=f"{100 * block:,} jobs fed and drained, last tenth; ceiling: first tenth",
        rounds={"tenths": tenths},
    )


def feed_and_drain(
    bench: Bench,
    connection: Connection,
    stamps: Stamps,
    *,
    block: int,
    blocks: int,
) -> list[float]:
    """Jobs a second of each tenth. Each block ends with a marker, and jobs are served in their order."""
    plain = noop.item(n=1, s=TEXT).json
    begun = None
    for number in range(blocks):
        for start in range(0, block, 5000):
            items = [plain] * min(5000, block - start)
            if start + 5000 >= block:
                items[-1] = stamp.item(path=stamps.path, number=number).json
            run(connection, calls.enqueue_many(f"[{','.join(items)}]"))
        stamps.read()
        if number >= AHEAD:
            stamps.wait(number - AHEAD)
        if begun is None:
            begun = stamps.wait(0)
    stamps.wait(blocks - 1)
    tenth = blocks // 10
    marks = [begun or 0.0, *(stamps.at[number] for number in range(tenth - 1, blocks, tenth))]
    # The first tenth lacks the block that started the clock.
    sizes = [(tenth - 1) * block, *[tenth * block] * 9]
    rates = [size / (end - start) for size, (start, end) in zip(sizes, pairwise(marks), strict=True)]
    for number, rate in enumerate(rates, 1):
        bench.tell(f"  tenth {number}: {rate:,.0f}/s")
    return rates


@contextmanager
def held_snapshot(dsn: str) -> Iterator[None]:
    """Somebody else's REPEATABLE READ transaction, open until the end of the block."""
    with psycopg.connect(dsn) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("select count(*) from pgqueue.ready_jobs")
        yield
        holder.rollback()
