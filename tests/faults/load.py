"""A producer beside the test: a transaction after the other, and its own record of what the database promised it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import psycopg

from pgqueue.errors import PgqueueError
from tests.faults import tasks


@dataclass
class Record:
    """What a producer knows. `n` counts transactions; each has a row in `orders`, and the jobs of the order."""

    acknowledged: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """The ids of the jobs of each transaction whose commit was answered, or that was repeated until it was."""
    rolled_back: set[int] = field(default_factory=set)
    """The transactions that were rolled back on purpose, and those whose savepoint was."""
    repeated: int = 0
    """Tries that ended without an answer."""


class Load:
    """Enqueues in a thread while the block runs, about `rate` transactions of seven jobs a second.

    A transaction whose commit was not answered is repeated with the idempotency keys that it had. Of five, one is rolled back
    on purpose; of seven, one rolls back a savepoint with a job in it.
    """

    def __init__(
        self,
        dsn: str,
        record: Record,
        *,
        rate: float = 6.0,
        first: int = 0,
        long: float = 0.3,
        patience: float = 50.0,
    ):
        """`first`: the number of the first transaction; `long`: seconds that the longest jobs take; `patience`: seconds for
        which a transaction is tried again."""
        self._dsn = dsn
        self._record = record
        self._pause = 1 / rate
        self._next = first
        self._long = long
        self._patience = patience
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(self._patience + 10)
        if error is None:
            assert not self._thread.is_alive(), "the producer never had its last answer"
            if self._failure is not None:
                raise self._failure

    def _run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        try:
            while not self._stop.is_set():
                due = time.monotonic() + self._pause
                connection = self._enqueue_until_answered(connection, self._next)
                self._next += 1
                self._stop.wait(due - time.monotonic())
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread at the end
            self._failure = error
        finally:
            if connection is not None:
                connection.close()

    def _enqueue_until_answered(
        self, connection: psycopg.Connection[Any] | None, n: int
    ) -> psycopg.Connection[Any]:
        tries_until = time.monotonic() + self._patience
        while True:
            try:
                if connection is None or connection.closed:
                    connection = psycopg.connect(self._dsn, connect_timeout=5)
                if n % 5 == 4:
                    self._record.rolled_back.add(n)
                    self._order(connection, n)
                    connection.rollback()
                else:
                    ids = self._order(connection, n)
                    connection.commit()
                    self._record.acknowledged[n] = ids
                return connection
            except (psycopg.Error, PgqueueError):
                if time.monotonic() > tries_until:
                    raise
                self._record.repeated += 1
                if connection is not None:
                    connection.close()
                time.sleep(0.05)  # the pause from one try to the next, as an application's own

    def _order(self, connection: psycopg.Connection[Any], n: int) -> tuple[int, ...]:
        """The row of an order and its jobs, in the open transaction."""
        connection.execute("insert into public.orders (n) values (%s) on conflict do nothing", [n])
        if n % 7 == 3:
            self._record.rolled_back.add(-1 - n)
            with connection.transaction(force_rollback=True):
                tasks.plain.enqueue(connection, n=-1 - n)
        jobs: tuple[tuple[Any, dict[str, float]], ...] = (
            (tasks.plain, {}),
            (tasks.plain, {"seconds": 0.02}),
            (tasks.plain, {"seconds": self._long}),
            (tasks.threaded, {"seconds": self._long / 2}),
            (tasks.pays, {"seconds": 0.05}),
            (tasks.pays_threaded, {"seconds": 0.02}),
            (tasks.stumbles, {}),
        )
        return tuple(
            task.using(idempotency_key=f"{n}/{place}").enqueue(connection, n=n, **args).id
            for place, (task, args) in enumerate(jobs)
        )
