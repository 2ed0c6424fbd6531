"""The caller's database session, lent to whoever needs it as a connection of another kind.

A test has one connection, in whose transaction everything is to happen; the tasks that it drains ask for an
`AsyncSession`, a sync psycopg connection, the app's own connection. psycopg's connections are wrappers of a libpq
session, so another wrapper of the same session is a connection of the other kind in the same transaction.

Hazard: two wrappers must not talk at once. The kit runs one thing at a time.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from pgqueue.app import App
from pgqueue.drivers import AsyncTarget, SyncTarget, is_async
from pgqueue.errors import UnusableConnection
from pgqueue.job import ClaimedJob
from pgqueue.pools import OwnConnections
from pgqueue.task import Task
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.executors.transactional import Handler, Transactions

if TYPE_CHECKING:
    from pgqueue.worker.executors.sessions import Sessions

_C = TypeVar("_C", bound="psycopg.Connection[Any] | psycopg.AsyncConnection[Any]")


# Wrappers of a session ------------------------------------------------------------------------------


class Lent(psycopg.Connection[Any]):
    """A sync connection on a session that is not its own to close."""

    def __del__(self, _warn: Any = None) -> None:
        """Nothing: psycopg would complain that nobody has closed it."""

    def close(self) -> None:
        """Nothing: the session is the caller's."""


class AsyncLent(psycopg.AsyncConnection[Any]):
    """An async connection on a session that is not its own to close."""

    def __del__(self, _warn: Any = None) -> None:
        """Nothing: psycopg would complain that nobody has closed it."""

    async def close(self) -> None:
        """Nothing: the session is the caller's."""


class Pooled(Lent):
    """For an engine of SQLAlchemy's, in a transaction that is not its own to end.

    An engine begins with a rollback and ends with one, and pings in autocommit: none of it is meant for the caller's
    transaction.
    """

    def set_autocommit(self, value: bool) -> None:
        """Nothing: the transaction goes on."""

    def commit(self) -> None:
        """Nothing: whoever has begun commits."""

    def rollback(self) -> None:
        """Nothing: whoever has begun rolls back."""


class AsyncPooled(AsyncLent):
    """`Pooled`, async."""

    async def set_autocommit(self, value: bool) -> None:
        """Nothing: the transaction goes on."""

    async def commit(self) -> None:
        """Nothing: whoever has begun commits."""

    async def rollback(self) -> None:
        """Nothing: whoever has begun rolls back."""


def wrapped(kind: Callable[[Any], _C], driver: Any, *, autocommit: bool) -> _C:
    """Another connection on the session of a connection of psycopg's."""
    session = driver.pgconn
    handlers = session.notice_handler, session.notify_handler
    connection = kind(session)
    session.notice_handler, session.notify_handler = handlers  # those of the caller's connection stay
    connection._autocommit = autocommit  # not by the property, which refuses inside of a transaction
    connection.prepare_threshold = None  # names of statements would meet those of the caller's connection
    return connection


def at_hand(target: Any) -> Any:
    """What `django.db.connection` stands for in this thread: under an event loop it would be another connection."""
    if "django.db" in sys.modules:
        from django.db import connections
        from django.utils.connection import ConnectionProxy

        if isinstance(target, ConnectionProxy):
            return connections[target.alias]
    return target


def driver_below(target: Any) -> Any:
    """The connection of psycopg's below a connection, cursor or session of any library.

    One of SQLAlchemy's async kinds must have run a statement already. Raises `UnusableConnection` when the driver is
    not psycopg.
    """
    connection = _below_sqlalchemy(target) if "sqlalchemy" in sys.modules else target
    for _ in range(2):
        if isinstance(connection, psycopg.Connection | psycopg.AsyncConnection):
            return connection
        connection = getattr(connection, "connection", None)  # a cursor's, or django.db.connection's
    kind = type(target)
    raise UnusableConnection(
        f"the {kind.__module__}.{kind.__qualname__} of this test cannot be lent to a task, a step or an app that "
        "asks for another kind: that takes one of psycopg, or of SQLAlchemy or Django over psycopg "
        "(postgresql+psycopg://…)"
    )


def _below_sqlalchemy(target: Any) -> Any:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(target, scoped_session | async_scoped_session):
        target = target.registry()
    if isinstance(target, AsyncSession):
        target = target.sync_session
    if isinstance(target, Session):
        target = target.connection()
    if isinstance(target, AsyncConnection):
        target = target.sync_connection
    return target.connection.driver_connection if isinstance(target, Connection) else target


# To transactional tasks -----------------------------------------------------------------------------


class LentTransactions(Transactions):
    """The worker's transactions as savepoints of the caller's transaction; as transactions where it has none.

    `failed` is told what one has failed with: the handler's own error, or that of a flush or a constraint after it.
    """

    def __init__(self, target: Any, threads: Threads, *, failed: Callable[[ClaimedJob, BaseException], None]):
        super().__init__(dsn="", size=1, threads=threads, pooled=True)
        self._target = target
        self._failed = failed

    async def run(self, task: Task[..., Any], job: ClaimedJob, handler: Handler, context: Any) -> None:
        """Runs `handler` in a savepoint of the kind that `task` asks for, and completes `job` in it."""
        try:
            await super().run(task, job, handler, context)
        except BaseException as error:
            self._failed(job, error)
            raise

    async def _connect(self, autocommit: bool = True) -> psycopg.AsyncConnection[Any]:
        return wrapped(AsyncLent, driver_below(self._target), autocommit=autocommit)

    def _connect_sync(self, autocommit: bool = True) -> psycopg.Connection[Any]:
        return wrapped(Lent, driver_below(self._target), autocommit=autocommit)

    def _sqlalchemy(self) -> Sessions:
        if self._sessions is None:
            from pgqueue.testing.lent_sessions import LentSessions

            self._sessions = LentSessions(self._target)
        return self._sessions


# To the app -----------------------------------------------------------------------------------------


class LentConnections(OwnConnections):
    """The caller's connection in the place of the app's own ones."""

    def __init__(self, target: Any, dsn: Callable[[], str | None]):
        super().__init__(dsn)
        self._target = target
        self._is_async = is_async(target)
        self._other: Any = None

    def _lent(self, *, to_async: bool) -> Any:
        if to_async is self._is_async:
            return self._target
        if self._other is None:
            driver = driver_below(self._target)
            self._other = wrapped(AsyncLent if to_async else Lent, driver, autocommit=driver.autocommit)
        return self._other

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """The caller's connection."""
        yield self._lent(to_async=False)

    @asynccontextmanager
    async def async_connection(self) -> AsyncIterator[Any]:
        """The caller's connection, for code in an event loop."""
        yield self._lent(to_async=True)

    transaction = connection
    async_transaction = async_connection


@contextmanager
def lend(app: App, connection: SyncTarget | AsyncTarget, /) -> Iterator[None]:
    """Lends the app a connection: `app.enqueue(…)` and all else that it does on connections of its own happens there.

        with lend(app, session):
            response = client.post("/orders", …)        # its view calls app.enqueue(…)
        assert_enqueued(session, validate_payment)
        session.rollback()                              # and nothing is left

    Inside of `drain` and `run_one` that is so by itself. Not for code that runs beside the test in other threads.
    Raises `UnusableConnection` for what is no connection.
    """
    own = app._own
    app._own = LentConnections(at_hand(connection), lambda: app.settings.dsn)
    try:
        yield
    finally:
        app._own = own
