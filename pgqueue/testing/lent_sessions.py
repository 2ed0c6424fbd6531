"""SQLAlchemy sessions for transactional tasks, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from pgqueue.job import ClaimedJob
from pgqueue.task import Task
from pgqueue.testing.lent import AsyncLent, AsyncPooled, Lent, Pooled, driver_below, wrapped
from pgqueue.testing.orm import session_of
from pgqueue.worker.executors.sessions import Sessions, work, work_async


class LentSessions(Sessions):
    """The worker's sessions, each in a savepoint: of the caller's own connection where that is of the same kind.

    Where it is not, of an engine over the caller's session with the database.
    """

    def __init__(self, target: Any):
        self._target = target
        self._engines: Sessions | None = None

    async def in_async_session(
        self, task: Task[..., Any], job: ClaimedJob, handler: Callable[[Any], Awaitable[Any]]
    ) -> None:
        """Runs `handler` with an `AsyncSession`, and completes `job` in its savepoint."""
        session = session_of(self._target)
        connection = await session.connection() if isinstance(session, AsyncSession) else self._target
        if isinstance(connection, AsyncConnection):
            async with connection.begin_nested():
                await work_async(connection, task, job, handler)
        else:
            async with wrapped(AsyncLent, driver_below(self._target), autocommit=True).transaction():
                await self._over_driver().in_async_session(task, job, handler)

    def in_session(self, task: Task[..., Any], job: ClaimedJob, handler: Callable[[Any], Any]) -> None:
        """Runs `handler` with a `Session`, and completes `job` in its savepoint."""
        session = session_of(self._target)
        connection = session.connection() if isinstance(session, Session) else self._target
        if isinstance(connection, Connection):
            with connection.begin_nested():
                work(connection, task, job, handler)
        else:
            with wrapped(Lent, driver_below(self._target), autocommit=True).transaction():
                self._over_driver().in_session(task, job, handler)

    async def close(self) -> None:
        """Closes what was opened, and nothing of the caller's."""
        if self._engines is not None:
            await self._engines.close()

    def _over_driver(self) -> Sessions:
        if self._engines is None:
            driver = driver_below(self._target)

            async def connect() -> psycopg.AsyncConnection[Any]:
                return wrapped(AsyncPooled, driver, autocommit=False)

            def connect_sync() -> psycopg.Connection[Any]:
                return wrapped(Pooled, driver, autocommit=False)

            self._engines = Sessions(connect=connect, connect_sync=connect_sync, size=1)
        return self._engines
