"""Transactional tasks that work on a SQLAlchemy session: it joins a transaction that it cannot commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgqueue.drivers import run
from pgqueue.job import ClaimedJob
from pgqueue.task import Task
from pgqueue.worker.executors.transactional import completion, fence


class Sessions:
    """Two engines, sync and async, of at most `size` connections each.

    The connections that are made must not be in autocommit: SQLAlchemy relies on psycopg to begin.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        connect_sync: Callable[[], psycopg.Connection[Any]],
        size: int,
    ):
        # pre-ping: a connection that went stale while it was idle costs no attempt
        pool: dict[str, Any] = {"pool_size": size, "max_overflow": 0, "pool_pre_ping": True}
        self._engine = create_engine("postgresql+psycopg://", creator=connect_sync, **pool)
        self._async_engine = create_async_engine("postgresql+psycopg://", async_creator=connect, **pool)

    async def in_async_session(
        self, task: Task[..., Any], job: ClaimedJob, handler: Callable[[Any], Awaitable[Any]]
    ) -> None:
        """Runs `handler` with an `AsyncSession`, and completes `job` in its transaction."""
        async with self._async_engine.connect() as connection, connection.begin():
            await work_async(connection, task, job, handler)

    def in_session(self, task: Task[..., Any], job: ClaimedJob, handler: Callable[[Any], Any]) -> None:
        """Runs `handler` with a `Session`, and completes `job` in its transaction."""
        with self._engine.connect() as connection, connection.begin():
            work(connection, task, job, handler)

    async def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()
        await self._async_engine.dispose()


async def work_async(
    connection: AsyncConnection,
    task: Task[..., Any],
    job: ClaimedJob,
    handler: Callable[[Any], Awaitable[Any]],
) -> None:
    """Runs `handler` with an `AsyncSession` in the transaction of `connection`, and completes `job` in it."""
    async with AsyncSession(bind=connection, join_transaction_mode="rollback_only") as session:
        completing = completion(job, task, await handler(session))
        await session.flush()
        fence(job, await run(connection, completing))


def work(
    connection: Connection, task: Task[..., Any], job: ClaimedJob, handler: Callable[[Any], Any]
) -> None:
    """Runs `handler` with a `Session` in the transaction of `connection`, and completes `job` in it."""
    with Session(bind=connection, join_transaction_mode="rollback_only") as session:
        completing = completion(job, task, handler(session))
        session.flush()
        fence(job, run(connection, completing))
