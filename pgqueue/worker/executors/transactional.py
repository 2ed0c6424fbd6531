"""Runs transactional tasks: the handler's writes and the job's completion commit together, or not at all."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import structlog
from psycopg.pq import TransactionStatus

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.errors import DatabaseUnavailable, LeaseLost, PgqueueError
from pgqueue.job import ClaimedJob
from pgqueue.task import Task
from pgqueue.worker.decide import completions_json, keep
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.link import NOTICE_LOSS, keepalives

if TYPE_CHECKING:
    from pgqueue.worker.executors.sessions import Sessions

log = structlog.get_logger("pgqueue.worker")

LONG_SECONDS = 60.0
"""A transaction older than this holds the horizon of the whole database, and is logged."""


class NotAccepted(LeaseLost):
    """The completion at the end of the transaction. Not what a handler raises, which is a failure like any other."""


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
        self._sync_slots = threading.BoundedSemaphore(size)
        self._threads = threads
        self._pooled = pooled
        self._idle: list[psycopg.AsyncConnection[Any]] = []
        self._idle_sync: list[psycopg.Connection[Any]] = []
        self._size = size
        self._sessions: Sessions | None = None

    async def run(self, task: Task[..., Any], job: ClaimedJob, handler: Handler, context: Any) -> None:
        """Runs `handler` in a transaction of the kind that `task` asks for, and completes `job` in it."""
        async with self._slots:
            started = time.monotonic()
            try:
                match task.is_async, task.connection_type:
                    case True, psycopg.AsyncConnection:
                        await self._in_connection(task, job, handler)
                    case True, _:
                        await self._sqlalchemy().in_async_session(task, job, handler)
                    case _, psycopg.Connection:
                        await self._threads.run(
                            context, partial(self._in_sync_connection, task, job, handler)
                        )
                    case _:
                        within = self._sqlalchemy().in_session
                        await self._threads.run(context, partial(within, task, job, handler))
            finally:
                took = time.monotonic() - started
                if took > LONG_SECONDS:
                    log.warning("transaction.long", job_id=job.id, task=job.task, seconds=round(took, 1))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection in a transaction of its own, for a step of a handler."""
        async with self._slots, AsyncExitStack() as stack:
            yield await self._begin(stack)

    @contextmanager
    def sync_transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """The same in a thread. At most `size` at once, beside those above, which only the loop may wait for."""
        with self._sync_slots, ExitStack() as stack:
            yield self._begin_sync(stack)

    async def close(self) -> None:
        """Closes the idle connections."""
        for connection in self._idle:
            await connection.close()
        for sync_connection in self._idle_sync:
            sync_connection.close()
        self._idle.clear()
        self._idle_sync.clear()
        if self._sessions is not None:
            await self._sessions.close()

    # psycopg: `transaction()` makes a commit of the handler's own an error

    async def _in_connection(
        self, task: Task[..., Any], job: ClaimedJob, handler: Callable[[Any], Awaitable[Any]]
    ) -> None:
        async with AsyncExitStack() as stack:
            connection = await self._begin(stack)
            completing = completion(job, task, await handler(connection))
            _still_in_transaction(job, connection)
            fence(job, await run(connection, completing))

    async def _begin(self, stack: AsyncExitStack) -> psycopg.AsyncConnection[Any]:
        """A connection in a transaction; one that went stale while it was idle is replaced."""
        while True:
            connection, fresh = (self._idle.pop(), False) if self._idle else (await self._connect(), True)
            try:
                async with AsyncExitStack() as attempt:
                    attempt.push_async_callback(self._put_back, connection)
                    await attempt.enter_async_context(_transaction(connection))
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

    def _in_sync_connection(self, task: Task[..., Any], job: ClaimedJob, handler: Handler) -> None:
        with ExitStack() as stack:
            connection = self._begin_sync(stack)
            completing = completion(job, task, handler(connection))
            _still_in_transaction(job, connection)
            fence(job, run(connection, completing))

    def _begin_sync(self, stack: ExitStack) -> psycopg.Connection[Any]:
        while True:
            try:
                connection, fresh = self._idle_sync.pop(), False
            except IndexError:  # asked and popped in one step: this runs in many threads
                connection, fresh = self._connect_sync(), True
            try:
                with ExitStack() as attempt:
                    attempt.callback(self._put_back_sync, connection)
                    attempt.enter_context(_sync_transaction(connection))
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

    # SQLAlchemy

    def _sqlalchemy(self) -> Sessions:
        """Imported with the first task that asks for a session: it is a quarter of a worker's start."""
        if self._sessions is None:
            from pgqueue.worker.executors.sessions import Sessions

            self._sessions = Sessions(
                connect=partial(self._connect, autocommit=False),
                connect_sync=partial(self._connect_sync, autocommit=False),
                size=self._size,
            )
        return self._sessions

    async def _connect(self, autocommit: bool = True) -> psycopg.AsyncConnection[Any]:
        try:
            async with AsyncExitStack() as stack:
                connection = await psycopg.AsyncConnection.connect(self._dsn, **self._parameters())
                stack.push_async_callback(connection.close)
                if not self._pooled:
                    await connection.execute(NOTICE_LOSS)
                await connection.set_autocommit(autocommit)
                stack.pop_all()
                return connection
        except psycopg.OperationalError as error:
            raise NotStarted(str(error)) from error

    def _connect_sync(self, autocommit: bool = True) -> psycopg.Connection[Any]:
        try:
            with ExitStack() as stack:
                connection = psycopg.connect(self._dsn, **self._parameters())
                stack.callback(connection.close)
                if not self._pooled:
                    connection.execute(NOTICE_LOSS)
                connection.autocommit = autocommit
                stack.pop_all()
                return connection
        except psycopg.OperationalError as error:
            raise NotStarted(str(error)) from error

    def _parameters(self) -> dict[str, Any]:
        return {
            **keepalives(self._dsn),
            "autocommit": True,
            "prepare_threshold": None if self._pooled else 5,
            "application_name": "pgqueue transactional",
        }


@asynccontextmanager
async def _transaction(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """`connection.transaction()`, which swallows a `psycopg.Rollback`: the handler's is an error like any other."""
    rollback: psycopg.Rollback | None = None
    async with connection.transaction():
        try:
            yield
        except psycopg.Rollback as raised:
            rollback = raised
            raise
    if rollback is not None:
        try:
            raise rollback
        finally:
            del rollback  # as in `Threads.run`


@contextmanager
def _sync_transaction(connection: psycopg.Connection[Any]) -> Iterator[None]:
    rollback: psycopg.Rollback | None = None
    with connection.transaction():
        try:
            yield
        except psycopg.Rollback as raised:
            rollback = raised
            raise
    if rollback is not None:
        try:
            raise rollback
        finally:
            del rollback  # as in `Threads.run`


def completion(job: ClaimedJob, task: Task[..., Any], result: Any) -> calls.Call[list[int]]:
    """The last statement of an attempt's transaction, for a handler that returned `result`."""
    if task.keep_result:
        return calls.complete_with_results(completions_json([(job, keep(job, task, result))]))
    return calls.complete([job.id], [job.lease])


def _still_in_transaction(job: ClaimedJob, connection: Any) -> None:
    """Raises when the handler ended the transaction in SQL, behind psycopg's back."""
    if connection.info.transaction_status == TransactionStatus.IDLE:
        raise PgqueueError(
            f"job {job.id}: the handler of {job.task} ended its transaction; what it wrote is no longer one "
            "with the job's completion. Take the commit or rollback out of the handler"
        )


def fence(job: ClaimedJob, accepted: list[int]) -> None:
    """Raises `NotAccepted`, and so rolls the transaction back, when the completion was not accepted."""
    if not accepted:
        raise NotAccepted(f"job {job.id}: the lease was lost while it ran; its transaction is rolled back")
