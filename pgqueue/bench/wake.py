"""Wake: from the commit of an enqueue to the start of the handler, on an idle worker with ten slots.

The enqueue runs in autocommit, so the commit is over when it returns; the handler tells a pipe the clock of
the same machine. Pauses of 5 to 50 ms lie in between, at random.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator

from pgqueue.bench.harness import Bench, Result, below, connect
from pgqueue.bench.tasks import stamp


def measure(bench: Bench) -> Iterator[Result]:
    samples = bench.size(1000, 500)
    with (
        bench.database() as dsn,
        connect(dsn) as connection,
        bench.stamps() as stamps,
        bench.worker(dsn, "-c", "10"),
    ):
        sent, committed = {}, {}
        for number in range(-20, samples):  # the first ones open connections and prepare statements
            sent[number] = time.monotonic()
            stamp.enqueue(connection, path=stamps.path, number=number)
            committed[number] = time.monotonic()
            time.sleep(random.uniform(0.005, 0.05))
            stamps.read()
        waits = sorted((stamps.wait(number) - committed[number]) * 1e3 for number in range(samples))
        calls = statistics.median((committed[number] - sent[number]) * 1e3 for number in range(samples))
    note = f"{samples} enqueues, each {calls:.2f} ms by itself (p50)"
    yield below("wake-p50", waits[len(waits) // 2], 1.0, unit="ms", note=note)
    yield below("wake-p99", waits[int(len(waits) * 0.99)], 4.0, unit="ms", note=f"worst {waits[-1]:.2f} ms")
