"""A connection of the worker's own that comes back after every outage."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any, TypeVar

import psycopg
import structlog
from psycopg.conninfo import conninfo_to_dict

from pgqueue.calls import Call
from pgqueue.drivers import translate
from pgqueue.dsn import redact_dsn
from pgqueue.error_text import safe_text
from pgqueue.errors import ConfigurationError, DatabaseUnavailable, InvalidJob, PgqueueError
from pgqueue.worker.wire import Wire

T = TypeVar("T")

log = structlog.get_logger("pgqueue.worker")

# Half-open connections are noticed within 20 s: an idle one is given up after 9 s (the kernel asks from the 4th on, and
# holds to the user timeout), one with a call under way 8 s after that was sent, and that is before those 9 s are over.
# libpq ignores them on a unix socket.
_KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 4,
    "keepalives_interval": 1,
    "keepalives_count": 4,
    "tcp_user_timeout": 8_000,
    "connect_timeout": 10,
}

# And the same from the server's side, which would look after two hours: the transaction of a session that nobody can end
# holds the locks of the jobs that it was completing.
NOTICE_LOSS = """
    select set_config('tcp_keepalives_idle', '4', false), set_config('tcp_keepalives_interval', '1', false),
           set_config('tcp_keepalives_count', '4', false), set_config('tcp_user_timeout', '8000', false)"""

# What a role or a database may have set, and would break a worker: the isolation that the SQL relies on,
# and time-outs that end an idle connection or a round of upkeep.
_SESSION = """
    select set_config('default_transaction_isolation', 'read committed', false),
           set_config('default_transaction_read_only', 'off', false),
           set_config('statement_timeout', '60s', false), set_config('lock_timeout', '30s', false),
           set_config('idle_session_timeout', '0', false),
           set_config('idle_in_transaction_session_timeout', '0', false)"""


OUTAGES = (psycopg.Error, PgqueueError)
"""What a worker's call may end with and be tried again: the server away, a deadlock, a lock time-out, a full
disk, a right that was withdrawn. A worker never exits because of one."""


def keepalives(dsn: str) -> dict[str, Any]:
    """The connection parameters by which a loss is noticed, but for those that `dsn` gives itself.

    Where it names several hosts, what it takes to give up on one that is gone is its owner's to say.
    """
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # Hazard: the library's error quotes the text, and the password may be in it.
        raise ConfigurationError(f"dsn: {redact_dsn(dsn)} is no connection string") from None
    return {name: value for name, value in _KEEPALIVES.items() if name not in given}


class OutageLog:
    """What the log says of one link's outages: the first failure, and then one line in `every` seconds.

    Another refusal than the one before is said at once; one outage is as good as another.
    """

    def __init__(self, link: str, *, every: float = 10.0):
        self._link = link
        self._every = every
        self._said: dict[str, tuple[float, str]] = {}
        self._times: Counter[str] = Counter()

    def report(self, error: Exception) -> None:
        """Logs what kept a call from being carried out, one of `OUTAGES`, unless that was said just now."""
        is_away = isinstance(error, DatabaseUnavailable)
        event = "database.unavailable" if is_away else "database.refused"
        text, now = safe_text(error, 500), time.monotonic()
        self._times[event] += 1
        said_at, said = self._said.get(event, (-self._every, ""))
        if now - said_at < self._every and (is_away or text == said):
            return
        self._said[event] = (now, text)
        log.log(30 if is_away else 40, event, link=self._link, error=text, times=self._times.pop(event))


class Backoff:
    """Waits between two tries: 50 ms, doubling to `cap` seconds, each spread over half to all of it."""

    def __init__(self, cap: float = 1.0):
        self.cap = cap
        self._next = 0.05

    def wait(self) -> float:
        """The next wait, in seconds."""
        wait, self._next = self._next, min(self.cap, self._next * 2)
        return wait * random.uniform(0.5, 1)


async def connect(dsn: str, *, name: str, pooled: bool) -> psycopg.AsyncConnection[Any]:
    """A new autocommit connection; raises what `pgqueue.drivers.translate` makes of a refusal.

    `pooled` (behind a transaction pooler): no prepared statements and no session settings, for both would
    reach other clients.
    """
    try:
        connection = await psycopg.AsyncConnection.connect(
            dsn,
            autocommit=True,
            prepare_threshold=None if pooled else 1,
            application_name=name,
            client_encoding="utf8",
            **keepalives(dsn),
        )
    except psycopg.OperationalError as error:
        raise translate(error) or DatabaseUnavailable(str(error)) from error
    if not pooled:
        try:
            await connection.execute(_SESSION)
            await connection.execute(NOTICE_LOSS)
        except BaseException as error:  # a cancellation too: nobody else could close it
            await connection.close()
            if isinstance(error, psycopg.Error) and (mapped := translate(error)):
                raise mapped from error
            raise
    return connection


class Link:
    """One connection, opened when it is needed and opened again after it was lost.

    Calls of one link run one after the other.
    """

    def __init__(self, dsn: str, *, name: str, pooled: bool = False):
        self._dsn = dsn
        self._name = name
        self._pooled = pooled
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._wire: Wire | None = None
        self._lock = asyncio.Lock()
        self.outages = OutageLog(name.rpartition(" ")[2])
        """Named by the last word of the connection's name."""
        self.generation = 0
        """Counts connections: a change says that session state (LISTEN, locks) is gone."""

    async def run(self, call: Call[T]) -> T:
        """Runs `call` once. Raises `DatabaseUnavailable` when the server is away; the next run reconnects."""
        async with self._lock:
            connection, wire = self._connection, self._wire
            if connection is None or wire is None or connection.closed:
                self._connection = await connect(self._dsn, name=self._name, pooled=self._pooled)
                wire = self._wire = Wire(self._connection, prepares=not self._pooled)
                self.generation += 1
            try:
                return await wire.run(call)
            except (psycopg.Error, DatabaseUnavailable, asyncio.CancelledError):
                # Cancelled in the middle of a call, the connection may hold half an answer; and after an error
                # that nobody foresaw (a prepared statement that is gone, say) a new session is the remedy.
                await self._drop()
                raise

    async def persist(self, call: Call[T]) -> tuple[T, bool]:
        """Runs `call` until the database has carried it out, whatever stands in between.

        Returns the answer, and whether it took more tries: an earlier one may have been carried out without
        our hearing of it. Raises only what no other try can change: data that the server refuses.
        """
        backoff, retried = Backoff(), False
        while True:
            try:
                return await self.run(call), retried
            except (psycopg.DataError, InvalidJob):
                raise
            except OUTAGES as error:
                self.outages.report(error)
            retried = True
            await asyncio.sleep(backoff.wait())

    async def close(self) -> None:
        """Closes the connection; the link may be used again."""
        async with self._lock:
            await self._drop()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
