"""Held-mix: 500 jobs a second of every kind under a held snapshot. No call's buffers may grow.

Half of the jobs are plain; the others fail the first time, come with a delay, or hold a unique key (each key
is enqueued twice). Two worker processes nap whenever they catch up, so that `sleepers` changes all the time.
Buffers per call are compared between a window near the start and one at the end; near the start, because every call
that looks for sleepers reads the versions of the last 35 s, and before that there are fewer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

from pgqueue.bench.buffers import Calls, counter
from pgqueue.bench.database import TEXT, Connection, connect, scalar, wait_until
from pgqueue.bench.harness import Bench
from pgqueue.bench.held import held_snapshot
from pgqueue.bench.results import Result
from pgqueue.bench.tasks import flaky, noop
from pgqueue.errors import PgqueueError

RATE = 500
FEEDERS = 4
GROWTH = 1.5
SLACK = 5.0
"""What a call may read more without counting as grown: an index that gained a level, a table's new page."""
FEW = 3
"""A call that was made less often in a window says nothing."""


def measure(bench: Bench) -> Iterator[Result]:
    seconds = max(1.0, (30.0 if bench.quick else 120.0) * bench.scale)
    with ExitStack() as stack:
        dsn = stack.enter_context(bench.database())
        connection = stack.enter_context(connect(dsn))
        count = stack.enter_context(counter(bench, dsn))
        stack.enter_context(bench.worker(dsn, processes=2))
        stack.enter_context(held_snapshot(dsn))
        feeder = stack.enter_context(Feeder(dsn))
        marks: list[Calls] = []
        for share in (0.35, 0.55, 0.8, 1.0):
            feeder.wait(share * seconds)
            marks.append(count())
            bench.tell(f"  {share * seconds:.0f} s: {feeder.sent:,} enqueued")
        feeder.stop()
        wait_until(lambda: _unfinished(connection) == 0, "the jobs' end", pause=0.2)
        done = scalar(connection, "select count(*) from pgqueue.finished_jobs")
        if done != feeder.created:
            raise PgqueueError(f"{done} jobs were completed, not {feeder.created}")
    start, end = marks[1] - marks[0], marks[3] - marks[2]
    rate = feeder.sent / feeder.seconds
    yield Result(
        name="held-mix-rate", ours=rate, ceiling=RATE, unit="/s", ratio=rate / RATE, bar=None,
        note=f"enqueued for {feeder.seconds:.0f} s under a held snapshot, all completed",
    )  # fmt: skip
    for name in sorted(start.buffers):
        before, after = start.per_call(name), end.per_call(name)
        if before is None or after is None or min(start.calls[name], end.calls.get(name, 0)) < FEW:
            continue
        yield Result(
            name=f"held-mix-{name}", ours=after, ceiling=before, unit="buf", ratio=(before + SLACK) / (after + SLACK),
            bar=1 / GROWTH, note=f"buffers a call at the end ({end.calls[name]:,} calls); ceiling: at the start",
        )  # fmt: skip


def _unfinished(connection: Connection) -> int:
    query = (
        "select (select count(*) from pgqueue.ready_jobs) + (select count(*) from pgqueue.running_jobs)"
        " + (select count(*) from pgqueue.scheduled_jobs)"
    )
    return int(scalar(connection, query))


class Feeder:
    """Threads that enqueue at the rate, together; `created` leaves out the enqueues that found their key taken."""

    def __init__(self, dsn: str):
        self._dsn = dsn
        self._stopping = threading.Event()
        self._sent = [0] * FEEDERS
        self._created = [0] * FEEDERS
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(FEEDERS)]

    def __enter__(self) -> Feeder:
        self._started = time.monotonic()
        self.seconds = 0.0
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def sent(self) -> int:
        """Enqueues so far."""
        return sum(self._sent)

    @property
    def created(self) -> int:
        """Jobs that they made."""
        return sum(self._created)

    def wait(self, seconds: float) -> None:
        """Until so many seconds after the start. Raises what a thread raised."""
        self._stopping.wait(max(0.0, self._started + seconds - time.monotonic()))
        if self._errors:
            raise self._errors[0]

    def stop(self) -> None:
        """Ends the enqueueing."""
        self.seconds = time.monotonic() - self._started
        self.__exit__()
        if self._errors:
            raise self._errors[0]

    def _run(self, number: int) -> None:
        try:
            with connect(self._dsn) as connection:
                count = 0
                while not self._stopping.is_set():
                    count += 1
                    n = count * FEEDERS + number
                    match count % 10:
                        case 1 | 2:
                            job = flaky.enqueue(connection, n=n)
                        case 3 | 4:
                            job = noop.using(delay=0.5 + n % 3 / 2).enqueue(connection, n=1, s=TEXT)
                        case 5:
                            job = noop.using(unique_key=f"order {n}").enqueue(connection, n=1, s=TEXT)
                        case 6:  # the same key once more, its job finished or not
                            job = noop.using(unique_key=f"order {n - FEEDERS}").enqueue(
                                connection, n=1, s=TEXT
                            )
                        case _:
                            job = noop.enqueue(connection, n=1, s=TEXT)
                    self._sent[number] = count
                    self._created[number] += job.created
                    due = self._started + count * FEEDERS / RATE
                    self._stopping.wait(max(0.0, due - time.monotonic()))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._errors.append(error)
            self._stopping.set()
