"""Wake: from the commit of an enqueue to the start of the handler, on an idle worker with ten slots.

The enqueue runs in autocommit, so the commit is over when it returns; the handler tells a pipe the clock of
the same machine. Pauses of 5 to 50 ms lie in between, at random. In turn with the enqueues, a bare NOTIFY goes
to a process that does nothing but listen: what the machine itself takes for a wake-up.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from pgqueue.bench.database import Connection, connect, scalar, wait_until
from pgqueue.bench.harness import Bench
from pgqueue.bench.results import Result, below
from pgqueue.bench.tasks import STAMP, stamp
from pgqueue.bench.workers import Stamps

CHANNEL = "pgqueue_bench"
_LISTEN = "import sys; from pgqueue.bench.wake import listen; listen(*sys.argv[1:])"


def measure(bench: Bench) -> Iterator[Result]:
    samples, warm_up = bench.size(1000, 500), bench.size(20)
    with (
        bench.database() as dsn,
        connect(dsn) as connection,
        bench.stamps() as started,
        bench.stamps() as heard,
        listener(dsn, connection, heard),
        bench.worker(dsn, "-c", "10"),
    ):

        def enqueue(number: int) -> None:
            stamp.enqueue(connection, path=started.path, number=number)

        def notify(number: int) -> None:
            connection.execute("select pg_notify(%s, %s)", (CHANNEL, str(number)))

        # The first ones open connections and prepare statements.
        woken, calls = waits(range(-warm_up, samples), {"job": (enqueue, started), "notify": (notify, heard)})
    jobs, bare = sorted(woken["job"][warm_up:]), sorted(woken["notify"][warm_up:])
    taken = statistics.median(calls[warm_up:])
    for name, share, limit in (("wake-p50", 0.5, 1.0), ("wake-p99", 0.99, 4.0)):
        note = f"{samples} enqueues, each {taken:.2f} ms by itself; a bare NOTIFY: {_at(bare, share):.2f} ms"
        yield below(name, _at(jobs, share), limit, unit="ms", note=note)


def waits(
    numbers: range, sides: dict[str, tuple[Callable[[int], None], Stamps]]
) -> tuple[dict[str, list[float]], list[float]]:
    """Milliseconds from the end of each call to its stamp, by side; and what the first side's calls took."""
    ended: dict[str, list[float]] = {name: [] for name in sides}
    taken = []
    for number in numbers:
        for name, (call, _) in sides.items():
            began = time.monotonic()
            call(number)
            ended[name].append(time.monotonic())
            if name == next(iter(sides)):
                taken.append((ended[name][-1] - began) * 1e3)
            time.sleep(random.uniform(0.005, 0.05))
            for _, stamps in sides.values():
                stamps.read()
    woken = {
        # On a busy machine a handler may start before the enqueuer has read that its commit is over.
        name: [
            max(0.001, (stamps.wait(number) - end) * 1e3)
            for number, end in zip(numbers, ended[name], strict=True)
        ]
        for name, (_, stamps) in sides.items()
    }
    return woken, taken


@contextlib.contextmanager
def listener(dsn: str, connection: Connection, stamps: Stamps) -> Iterator[None]:
    """A process that listens and stamps, until the end of the block."""
    process = subprocess.Popen([sys.executable, "-c", _LISTEN, dsn, stamps.path])
    try:
        query = "select count(*) from pg_stat_activity where application_name = %s"
        wait_until(lambda: scalar(connection, query, CHANNEL), "the listening process")
        time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def listen(dsn: str, path: str) -> None:
    """What that process does."""
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"listen {CHANNEL}")
        connection.execute(f"set application_name = '{CHANNEL}'")
        pipe = os.open(path, os.O_WRONLY)
        for notification in connection.notifies():
            os.write(pipe, STAMP.pack(int(notification.payload), time.monotonic_ns()))


def _at(values: list[float], share: float) -> float:
    return values[int(len(values) * share)]
