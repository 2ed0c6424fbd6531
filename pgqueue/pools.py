"""Connections of the app's own, for those who bring none."""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from pgqueue import calls
from pgqueue.drivers import run, translate
from pgqueue.dsn import redact_dsn
from pgqueue.error_text import one_line
from pgqueue.errors import ConfigurationError, DatabaseUnavailable, MissingDSN

if TYPE_CHECKING:
    import psycopg
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

POOL_SIZE = 8
POOL_TIMEOUT = 10.0


class OwnConnections:
    """Pools that are opened when they are needed: one for threads, one for each event loop.

    Hazard: after a fork parent and child would talk over the same sockets. A child is known by its process
    id, and starts with no pools; the parent's are neither used nor closed there, for closing them would end
    the parent's sessions.
    """

    def __init__(self, dsn: Callable[[], str | None]):
        """`dsn` is asked for when a pool is opened."""
        self._dsn = dsn
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._pool: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._async_pools: dict[
            asyncio.AbstractEventLoop, AsyncConnectionPool[psycopg.AsyncConnection[Any]]
        ] = {}

    def _after_fork(self) -> None:
        if os.getpid() != self._process:
            _parents.append((self._pool, self._async_pools))
            self._start()

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection in autocommit. Raises `DatabaseUnavailable` when there is none within 10 s."""
        from psycopg_pool import PoolTimeout

        pool = self._opened()
        try:
            connection = pool.getconn()
        except PoolTimeout as error:
            self._probe()  # raises the reason, if the server can tell it
            raise DatabaseUnavailable(
                f"the app's own {POOL_SIZE} connections were busy for {POOL_TIMEOUT:g} s"
            ) from error
        try:
            yield connection
        finally:
            pool.putconn(connection)

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection in a transaction that is committed at the end of the block."""
        with self.connection() as connection, connection.transaction():
            yield connection

    @contextmanager
    def apart(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection in autocommit that is not of the pool and ends with the block: to listen on."""
        import psycopg

        with _told(), psycopg.connect(self._conninfo(), **_APART) as connection:
            yield connection

    @asynccontextmanager
    async def async_connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """`connection`, of the running event loop."""
        from psycopg_pool import PoolTimeout

        pool = await self._opened_async()
        cancellations = _cancellations()
        try:
            connection = await pool.getconn()
        except PoolTimeout as error:
            await asyncio.to_thread(self._probe)
            raise DatabaseUnavailable(
                f"the app's own {POOL_SIZE} connections were busy for {POOL_TIMEOUT:g} s"
            ) from error
        try:
            if _cancellations() > cancellations:
                # The pool waits with asyncio.wait_for, which in Python 3.11 loses a cancellation that comes together
                # with what it waits for.
                raise asyncio.CancelledError
            yield connection
        finally:
            await pool.putconn(connection)

    @asynccontextmanager
    async def async_apart(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """`apart`, of the running event loop."""
        import psycopg

        with _told():
            async with await psycopg.AsyncConnection.connect(self._conninfo(), **_APART) as connection:
                yield connection

    @asynccontextmanager
    async def async_transaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """`transaction`, of the running event loop."""
        async with self.async_connection() as connection, connection.transaction():
            yield connection

    def _opened(self) -> ConnectionPool[psycopg.Connection[Any]]:
        self._after_fork()
        with self._lock:
            if self._pool is None:
                from psycopg_pool import ConnectionPool

                self._probe()
                self._pool = ConnectionPool(
                    self._conninfo(), **_POOL, check=_check, name="pgqueue", open=False
                )
                self._pool.open()
            return self._pool

    async def _opened_async(self) -> AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
        self._after_fork()
        loop = asyncio.get_running_loop()
        pool = self._async_pools.get(loop)
        if pool is None:
            from psycopg_pool import AsyncConnectionPool

            for ended in [other for other in self._async_pools if other.is_closed()]:
                del self._async_pools[ended]
            await asyncio.to_thread(self._probe)
            # Another task of this loop may have opened it meanwhile; nothing is awaited from here to the store.
            pool = self._async_pools.get(loop)
            if pool is None:
                pool = AsyncConnectionPool(
                    self._conninfo(), **_POOL, check=_check_async, name="pgqueue", open=False
                )
                self._async_pools[loop] = pool
                await pool.open()
        return pool

    def _conninfo(self) -> str:
        from psycopg import ProgrammingError
        from psycopg.conninfo import make_conninfo

        dsn = self._dsn()
        if dsn is None:
            raise MissingDSN(
                "no database is configured: set PGQUEUE_DSN (or DATABASE_URL), put dsn into pgqueue.toml or "
                "[tool.pgqueue], or pass App(dsn=…); enqueueing on a connection of yours needs none"
            )
        try:
            return make_conninfo(dsn, fallback_application_name="pgqueue producer")
        except ProgrammingError as error:
            # Hazard: libpq quotes what it stumbled over, which may be a piece of the password.
            told = f": {one_line(error)}" if str(error).startswith("invalid connection option") else ""
            raise ConfigurationError(f"dsn: {redact_dsn(dsn)} cannot be read by libpq{told}") from None

    def _probe(self) -> None:
        """Connects once. A pool retries in the background and only says that it waited; this says why.

        A schema that does not serve this release is refused here, before data is touched.
        """
        import psycopg

        try:
            with psycopg.connect(
                self._conninfo(), autocommit=True, connect_timeout=int(POOL_TIMEOUT)
            ) as connection:
                run(connection, calls.protocol()).check()
        except psycopg.Error as error:
            if mapped := translate(error):
                raise mapped from error
            raise

    def close(self) -> None:
        self._after_fork()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    async def aclose(self) -> None:
        self._after_fork()
        pool = self._async_pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()
        await asyncio.to_thread(self.close)


_parents: list[Any] = []
"""Pools of the process that this one was forked from: kept, so that nothing closes them here."""

_POOL: dict[str, Any] = {
    "min_size": 0,
    "max_size": POOL_SIZE,
    "timeout": POOL_TIMEOUT,
    "max_idle": 60.0,
    # Prepared statements break behind a transaction pooler, and nothing here knows whether there is one.
    "kwargs": {"autocommit": True, "prepare_threshold": None},
}


def _cancellations() -> int:
    """How often the running task was told to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


_APART: dict[str, Any] = {
    "autocommit": True,
    "prepare_threshold": None,
    "connect_timeout": int(POOL_TIMEOUT),
    "tcp_user_timeout": 15_000,  # a server that is gone without a word is noticed at the next look
}


@contextmanager
def _told() -> Iterator[None]:
    """What the library raises in the block becomes an error of pgqueue."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        if mapped := translate(error):
            raise mapped from error
        raise


def _said_something(descriptor: int) -> bool:
    """Whether an idle connection has something to read: mostly the end of it, after a restart of the server."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(0))


def _check(connection: psycopg.Connection[Any]) -> None:
    # A round trip for each enqueue would halve its speed; looking at the socket costs microseconds.
    if _said_something(connection.fileno()):
        connection.execute("")


async def _check_async(connection: psycopg.AsyncConnection[Any]) -> None:
    if _said_something(connection.fileno()):
        await connection.execute("")
