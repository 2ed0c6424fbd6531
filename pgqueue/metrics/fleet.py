"""What the database says of the fleet, read at most once in five seconds however many ask.

Hazard: a scrape must not hang where the database does, so each reading has a thread of its own that the scrapes wait for,
and do not wait for long. There is one reading at a time: where one hangs, no others pile up behind it.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog
from psycopg.rows import tuple_row

from pgqueue import calls
from pgqueue.drivers import run, translate
from pgqueue.error_text import one_line
from pgqueue.errors import NotPermitted, PgqueueError, SchemaError
from pgqueue.info import HealthCheck

log = structlog.get_logger("pgqueue.metrics")

FRESH_SECONDS = 5.0
"""A reading answers for so long."""
FAILED_SECONDS = 1.0
"""And one that has failed for so long, so that a database that is back is soon seen."""
PATIENCE_SECONDS = 5.0
"""A reading that takes longer has failed, as far as those who wait for it are concerned."""
STATEMENT_SECONDS = 4

_OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "prepare_threshold": None,  # a transaction pooler may stand before the server
    "application_name": "pgqueue metrics",
    "client_encoding": "utf8",
    "connect_timeout": 4,
    "keepalives": 1,
    "keepalives_idle": 8,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 5_000,
}

_BEGIN = "select set_config('statement_timeout', %s, true), set_config('jit', 'off', true)"
_QUEUES = """
    select queue, is_paused, ready, scheduled, blocked, running, dead, oldest_ready_seconds, workers
      from pgqueue_bi.queue_health"""
_SCHEDULES = """
    select name, coalesce(greatest(0, date_part('epoch', clock_timestamp() - next_due_at)), 0)
      from pgqueue_bi.schedules"""
_FLEET = "select leader_seconds, figures_seconds from pgqueue_bi.fleet"


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """A row of `pgqueue_bi.queue_health`."""

    queue: str
    is_paused: bool
    ready: int
    scheduled: int
    blocked: int
    running: int
    dead: int
    oldest_ready_seconds: float | None
    workers: int


@dataclass(frozen=True, slots=True)
class FleetFigures:
    """What the database says; `schedules` has the seconds that each is overdue, 0 when it is not.

    `leader_seconds` and `figures_seconds` are None where nobody has led yet, and nothing was rolled up.
    """

    queues: tuple[QueueFigures, ...]
    schedules: dict[str, float]
    leader_seconds: float | None
    figures_seconds: float | None
    checks: tuple[HealthCheck, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the database."""

    answers: bool
    """Whether it answers at all."""
    figures: FleetFigures | None = None
    problem: str | None = None
    """Why there are no figures, for anybody who can reach the port: no address, no role, no text of the server's."""


HUNG = Reading(False, problem=f"the database has not answered within {PATIENCE_SECONDS:g} s")


class Fleet:
    """Reads the views of `pgqueue_bi` over one connection. From any thread."""

    def __init__(self, dsn: str):
        self._dsn = dsn
        self._lock = threading.Lock()
        self._reading: Future[Reading] | None = None
        self._began_at = 0.0
        self._is_closed = False
        self._connection: psycopg.Connection[Any] | None = None
        """The thread's that reads."""
        self._problem: str | None = None
        """What was logged last."""

    def read(self) -> Reading:
        """The last reading, or a new one when that has aged; it takes `PATIENCE_SECONDS` at the most. Never raises."""
        with self._lock:
            reading = self._reading
            if reading is None or self._has_aged(reading):
                reading = self._reading = Future()
                self._began_at = time.monotonic()
                threading.Thread(
                    target=self._read_into, args=(reading,), name="pgqueue metrics", daemon=True
                ).start()
            left = self._began_at + PATIENCE_SECONDS - time.monotonic()
        try:
            found = reading.result(max(0.0, left))
        except TimeoutError:
            found = HUNG
            self._say(found.problem, found.problem)
        return found

    def close(self) -> None:
        """Closes the connection, now or when the reading that is under way ends."""
        with self._lock:
            self._is_closed = True
            if self._reading is None or self._reading.done():
                self._drop()

    def _has_aged(self, reading: Future[Reading]) -> bool:
        if not reading.done():
            return False
        fresh = FRESH_SECONDS if reading.result().figures is not None else FAILED_SECONDS
        return time.monotonic() - self._began_at >= fresh

    # In the thread that reads

    def _read_into(self, reading: Future[Reading]) -> None:
        try:
            found = self._look()
        except BaseException as error:  # whatever it is, those who wait are to hear of it
            log.exception("metrics.failed", error=one_line(error))
            found = Reading(False, problem="the database cannot be asked; the log says why")
        with self._lock:
            if self._is_closed:
                self._drop()
            reading.set_result(found)

    def _look(self) -> Reading:
        answers = False
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self._dsn, row_factory=tuple_row, **_OPTIONS)
            with self._connection.transaction():
                self._connection.execute(_BEGIN, [f"{STATEMENT_SECONDS}s"])
                answers = True
                figures = _figures(self._connection)
        except (psycopg.Error, PgqueueError) as error:
            return self._failed(error, answers)
        self._say(None)
        return Reading(True, figures)

    def _failed(self, error: Exception, answers: bool) -> Reading:
        mapped = error if isinstance(error, PgqueueError) else translate(error) or error
        if self._connection is None or self._connection.closed:
            answers = False
        if not answers:
            self._drop()
            problem = "the database does not answer"
        elif isinstance(mapped, NotPermitted):
            problem = "the worker's database role may not read pgqueue_bi: grant pgqueue_monitor to it"
        elif isinstance(mapped, SchemaError):
            problem = "the schema in the database is not that of this release: pgqueue db upgrade"
        elif isinstance(error, psycopg.errors.QueryCanceled):
            problem = f"the views did not answer within {STATEMENT_SECONDS} s"
        else:
            problem = "the views cannot be read; the log says why"
        self._say(problem, one_line(mapped, 500))
        return Reading(answers, problem=problem)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _say(self, problem: str | None, error: str | None = None) -> None:
        """Logs each change once: scrapes go on for ever."""
        if problem != self._problem:
            self._problem = problem
            if problem is None:
                log.info("metrics.readable")
            else:
                log.warning("metrics.unreadable", problem=problem, error=error)


def _figures(connection: psycopg.Connection[Any]) -> FleetFigures:
    queues = tuple(QueueFigures(*row) for row in connection.execute(_QUEUES).fetchall())
    schedules = dict(connection.execute(_SCHEDULES).fetchall())
    leader_seconds, figures_seconds = connection.execute(_FLEET).fetchall()[0]
    checks = run(connection, calls.health())
    return FleetFigures(queues, schedules, leader_seconds, figures_seconds, tuple(checks))
