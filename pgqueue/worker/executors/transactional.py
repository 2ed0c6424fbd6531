"""Runs transactional tasks: the handler's writes and the job's completion commit together, or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import Any

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.errors import DatabaseUnavailable, LeaseLost, PgqueueError
from pgqueue.job import ClaimedJob
from pgqueue.task import Task
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.link import KEEPALIVES

log = structlog.get_logger("pgqueue.worker")

LONG_SECONDS = 60.0
"""A transaction older than this holds the horizon of the whole database, and is logged."""

Handler = Callable[[Any], Any]
"""The handler with its args bound; takes the connection."""


class NotStarted(DatabaseUnavailable):
    """There was no connection for the transaction: the handler has not been called."""


class Transactions:
    """Opens a transaction for an attempt, at most `size` at once.

    The completion is the last statement of that transaction, fenced by the lease: when the lease was lost,
    `LeaseLost` is raised and everything is rolled back, children enqueued on the connection included.
    """

    def __init__(self, *, dsn: str, size: int, threads: Threads, pooled: bool):
        self._dsn = dsn
        self._slots = asyncio.Semaphore(size)
        self._threads = threads
        self._prepare = None if pooled else 5
        self._idle: list[psycopg.AsyncConnection[Any]] = []
        self._idle_sync: list[psycopg.Connection[Any]] = []
        # Not in autocommit: SQLAlchemy relies on psycopg to begin. Pre-ping: a connection that went stale while it was idle costs no attempt
        pool: dict[str, Any] = {"pool_size": size, "max_overflow": 0, "pool_pre_ping": True}
        self._engine = create_engine(
            "postgresql+psycopg://", creator=partial(self._connect_sync, autocommit=False), **pool
        )
        self._async_engine = create_async_engine(
            "postgresql+psycopg://", async_creator=partial(self._connect, autocommit=False), **pool
        )

    async def run(self, task: Task[..., Any], job: ClaimedJob, handler: Handler, context: Any) -> None:
        """Runs `handler` in a transaction of the kind that `task` asks for, and completes `job` in it."""
        async with self._slots:
            started = time.monotonic()
            try:
                if task.connection_type is psycopg.AsyncConnection:
                    await self._in_connection(job, handler)
                elif task.connection_type is AsyncSession:
                    await self._in_async_session(job, handler)
                else:
                    within = self._in_session if task.connection_type is Session else self._in_sync_connection
                    await self._threads.run(context, partial(within, job, handler))
            finally:
                took = time.monotonic() - started
                if took > LONG_SECONDS:
                    log.warning("transaction.long", job_id=job.id, task=job.task, seconds=round(took, 1))

    async def close(self) -> None:
        """Closes the idle connections."""
        for connection in self._idle:
            await connection.close()
        for sync_connection in self._idle_sync:
            sync_connection.close()
        self._idle.clear()
        self._idle_sync.clear()
        self._engine.dispose()
        await self._async_engine.dispose()

    # psycopg: `transaction()` makes a commit of the handler's own an error

    async def _in_connection(self, job: ClaimedJob, handler: Callable[[Any], Awaitable[Any]]) -> None:
        async with AsyncExitStack() as stack:
            connection = await self._begin(stack)
            await handler(connection)
            _still_in_transaction(job, connection)
            _fence(job, await run(connection, _completion(job)))

    async def _begin(self, stack: AsyncExitStack) -> psycopg.AsyncConnection[Any]:
        """A connection in a transaction; one that went stale while it was idle is replaced."""
        while True:
            connection, fresh = (self._idle.pop(), False) if self._idle else (await self._connect(), True)
            try:
                async with AsyncExitStack() as attempt:
                    attempt.push_async_callback(self._put_back, connection)
                    await attempt.enter_async_context(connection.transaction())
                    await stack.enter_async_context(attempt.pop_all())
                    return connection
            except psycopg.OperationalError as error:
                if fresh:
                    raise NotStarted(str(error)) from error

    async def _put_back(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if connection.closed or connection.info.transaction_status != TransactionStatus.IDLE:
            await connection.close()
        else:
            self._idle.append(connection)

    def _in_sync_connection(self, job: ClaimedJob, handler: Handler) -> None:
        with ExitStack() as stack:
            connection = self._begin_sync(stack)
            handler(connection)
            _still_in_transaction(job, connection)
            _fence(job, run(connection, _completion(job)))

    def _begin_sync(self, stack: ExitStack) -> psycopg.Connection[Any]:
        while True:
            try:
                connection, fresh = self._idle_sync.pop(), False
            except IndexError:  # asked and popped in one step: this runs in many threads
                connection, fresh = self._connect_sync(), True
            try:
                with ExitStack() as attempt:
                    attempt.callback(self._put_back_sync, connection)
                    attempt.enter_context(connection.transaction())
                    stack.enter_context(attempt.pop_all())
                    return connection
            except psycopg.OperationalError as error:
                if fresh:
                    raise NotStarted(str(error)) from error

    def _put_back_sync(self, connection: psycopg.Connection[Any]) -> None:
        if connection.closed or connection.info.transaction_status != TransactionStatus.IDLE:
            connection.close()
        else:
            self._idle_sync.append(connection)

    # SQLAlchemy: the session joins a transaction that it cannot commit

    async def _in_async_session(self, job: ClaimedJob, handler: Callable[[Any], Awaitable[Any]]) -> None:
        async with (
            self._async_engine.connect() as connection,
            connection.begin(),
            AsyncSession(bind=connection, join_transaction_mode="rollback_only") as session,
        ):
            await handler(session)
            await session.flush()
            _fence(job, await run(connection, _completion(job)))

    def _in_session(self, job: ClaimedJob, handler: Handler) -> None:
        with (
            self._engine.connect() as connection,
            connection.begin(),
            Session(bind=connection, join_transaction_mode="rollback_only") as session,
        ):
            handler(session)
            session.flush()
            _fence(job, run(connection, _completion(job)))

    async def _connect(self, autocommit: bool = True) -> psycopg.AsyncConnection[Any]:
        try:
            return await psycopg.AsyncConnection.connect(self._dsn, **self._parameters(autocommit))
        except psycopg.OperationalError as error:
            raise NotStarted(str(error)) from error

    def _connect_sync(self, autocommit: bool = True) -> psycopg.Connection[Any]:
        try:
            return psycopg.connect(self._dsn, **self._parameters(autocommit))
        except psycopg.OperationalError as error:
            raise NotStarted(str(error)) from error

    def _parameters(self, autocommit: bool) -> dict[str, Any]:
        return {
            **KEEPALIVES,
            "autocommit": autocommit,
            "prepare_threshold": self._prepare,
            "application_name": "pgqueue transactional",
        }


def _completion(job: ClaimedJob) -> calls.Call[list[int]]:
    return calls.complete([job.id], [job.lease])


def _still_in_transaction(job: ClaimedJob, connection: Any) -> None:
    """Raises when the handler ended the transaction in SQL, behind psycopg's back."""
    if connection.info.transaction_status == TransactionStatus.IDLE:
        raise PgqueueError(
            f"job {job.id}: the handler of {job.task} ended its transaction; what it wrote is no longer one "
            "with the job's completion. Take the commit or rollback out of the handler"
        )


def _fence(job: ClaimedJob, accepted: list[int]) -> None:
    if not accepted:
        raise LeaseLost(f"job {job.id}: the lease was lost while it ran; its transaction is rolled back")
