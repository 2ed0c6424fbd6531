"""`App`: the registry of tasks, the settings, and connections of its own for those who bring none."""

from __future__ import annotations

import asyncio
import inspect
import os
import selectors
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, overload

from pgqueue import calls
from pgqueue.context import Context
from pgqueue.drivers import AsyncTarget, SyncTarget, run, translate
from pgqueue.encoding import one_line, safe_repr
from pgqueue.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    InvalidOption,
    MissingDSN,
    UnknownTask,
    UnusableConnection,
)
from pgqueue.job import Job
from pgqueue.retry import DEFAULT_RETRY, RetryPolicy
from pgqueue.settings import Settings, load_settings, redact_dsn
from pgqueue.task import (
    DEFAULT_PRIORITY,
    DEFAULT_QUEUE,
    Decorator,
    Enqueueable,
    Item,
    Task,
    did_you_mean,
)

if TYPE_CHECKING:
    import psycopg
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

P = ParamSpec("P")
R = TypeVar("R")

BATCH_ITEMS = 5_000
BATCH_CHARACTERS = 8 * 1024 * 1024
"""Bounds of one call of a bulk: what the server parses at once stays a few dozen megabytes."""
POOL_SIZE = 8
POOL_TIMEOUT = 10.0


class App:
    """An application's tasks, and the façade to enqueue them.

        app = pgqueue.App()

        @app.task(queue="email")
        async def send_welcome(user_id: int) -> None: ...

        send_welcome.enqueue(connection, user_id=7)   # in the connection's transaction
        app.enqueue(send_welcome, user_id=7)          # on a connection of the app's own

    Making one reads nothing and connects to nothing: settings are loaded and connections are opened when
    they are first needed. `dsn` overrides the one of the settings; `settings` replaces what
    `load_settings()` finds; `name` is for people who run several.
    """

    def __init__(self, *, dsn: str | None = None, settings: Settings | None = None, name: str | None = None):
        self.name = name
        self._dsn = dsn
        self._settings = settings
        self._loaded: Settings | None = None
        self._tasks: dict[str, Task[..., Any]] = {}
        self._own = _OwnConnections(self)

    @property
    def settings(self) -> Settings:
        """The settings, loaded at the first look. Raises `ConfigurationError` naming all that is wrong."""
        if self._loaded is None:
            if self._settings is None:
                self._loaded = load_settings(dsn=self._dsn)
            else:
                self._loaded = self._settings if self._dsn is None else replace(self._settings, dsn=self._dsn)
        return self._loaded

    # The registry

    @overload
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        retry: RetryPolicy = DEFAULT_RETRY,
        permanent: Sequence[type[BaseException]] | type[BaseException] = (),
        transactional: bool = False,
    ) -> Decorator: ...
    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Registers a function as a task, bare (`@app.task`) or with options (`@app.task(queue="email")`).

        - `name`: in the database and for `pgqueue.enqueue(…)` in SQL; by default the function's own.
        - `queue`, `priority` (0 first … 9): for all jobs of the task unless `using` says otherwise.
        - `retry`: the policy after a failed attempt; by default four more attempts after about 2, 10, 50
          and 250 seconds.
        - `permanent`: exceptions that make the job a dead letter at once.
        - `transactional`: the handler works on `ctx.connection`, and its writes commit together with the
          job's completion or not at all.

        Raises `ConfigurationError` for a function that cannot be a task or a name that is taken, and
        `InvalidOption`.
        """
        # Where the decorator stands, so that annotations may name types of the function around it.
        namespace = sys._getframe(1).f_locals

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            task: Task[..., Any] = Task(function, **options, limit=self._args_limit, namespace=namespace)
            if (other := self._tasks.get(task.name)) is not None:
                raise ConfigurationError(
                    f"task {task.name} is defined twice: in {other.__module__} and in {task.__module__}. "
                    "Give one of them another name, @app.task(name=…)"
                )
            self._tasks[task.name] = task
            return task

        return register if function is None else register(function)

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The registry: tasks by name, in the order of their definition."""
        return MappingProxyType(self._tasks)

    def task_named(self, name: str) -> Task[..., Any]:
        """The task of that name. Raises `UnknownTask`."""
        task = self._tasks.get(name)
        if task is None:
            known = f"; it has {', '.join(self._tasks)}" if 0 < len(self._tasks) <= 20 else ""
            raise UnknownTask(
                f"the app has no task {safe_repr(name)}{did_you_mean(str(name), self._tasks)}{known}"
            )
        return task

    def _args_limit(self) -> int:
        return self.settings.max_args_bytes

    # Enqueueing without a connection of the caller's

    @overload
    def enqueue(
        self,
        task: Enqueueable[Callable[Concatenate[Context[Any], P], Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Job: ...
    @overload
    def enqueue(self, task: Enqueueable[Callable[P, Any]], /, *args: P.args, **kwargs: P.kwargs) -> Job: ...
    def enqueue(self, task: Enqueueable[Any], /, *args: Any, **kwargs: Any) -> Job:
        """Enqueues one job on a connection of the app's own, committed when this returns.

        `task` is a task, or one with options: `app.enqueue(send_welcome.using(delay="3d"), user_id=7)`.
        Raises `MissingDSN`, `DatabaseUnavailable`, and what `Task.enqueue` raises.
        """
        call = task.call(*args, **kwargs)
        with self._own.connection() as connection:
            return run(connection, call)

    @overload
    async def enqueue_async(
        self,
        task: Enqueueable[Callable[Concatenate[Context[Any], P], Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Job: ...
    @overload
    async def enqueue_async(
        self, task: Enqueueable[Callable[P, Any]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job: ...
    async def enqueue_async(self, task: Enqueueable[Any], /, *args: Any, **kwargs: Any) -> Job:
        """`enqueue` for code in an event loop."""
        call = task.call(*args, **kwargs)
        async with self._own.async_connection() as connection:
            return await run(connection, call)

    # Many jobs at once

    @overload
    def enqueue_many(self, items: Iterable[Item], /) -> list[Job]: ...
    @overload
    def enqueue_many(self, target: SyncTarget, items: Iterable[Item], /) -> list[Job]: ...
    @overload
    def enqueue_many(self, target: AsyncTarget, items: Iterable[Item], /) -> Awaitable[list[Job]]: ...
    def enqueue_many(self, target: Any, items: Any = None, /) -> Any:
        """Enqueues many jobs in the transaction of `target`, or without one in a transaction of its own.

        Returns the jobs in the order of the items. Items are sent in calls of at most 5,000; all are checked
        before the first is sent. With an async `target`, await what it returns.

            app.enqueue_many(connection, [send_welcome.item(user_id=n) for n in range(100_000)])
        """
        if items is None:
            checked = _checked(target)
            with self._own.transaction() as connection:
                return _send(connection, checked)
        return _send(target, _checked(items))

    async def enqueue_many_async(self, items: Iterable[Item], /) -> list[Job]:
        """`enqueue_many` on a connection of the app's own, for code in an event loop."""
        checked = _checked(items)
        async with self._own.async_transaction() as connection:
            sent: list[Job] = await _send(connection, checked)
            return sent

    @overload
    def bulk(self, /) -> Bulk: ...
    @overload
    def bulk(self, target: SyncTarget, /) -> AbstractContextManager[Bulk]: ...
    @overload
    def bulk(self, target: AsyncTarget, /) -> AbstractAsyncContextManager[Bulk]: ...
    def bulk(self, target: Any = None, /) -> Any:
        """Collects jobs in a `with` block (`async with` for an async `target`) and enqueues them at its end.

            with app.bulk(connection) as bulk:
                for user in users:
                    bulk.enqueue(send_welcome, user_id=user.id)
            bulk.jobs[0].id

        An exception in the block leaves nothing enqueued. Without `target`: a transaction of its own.
        """
        return Bulk(self, target)

    # Connections of the app's own

    def close(self) -> None:
        """Closes the app's own connections. They are opened again when needed."""
        self._own.close()

    async def aclose(self) -> None:
        """Closes the app's own connections, those of the running event loop included."""
        await self._own.aclose()

    def __repr__(self) -> str:
        return f"<pgqueue.App{' ' + self.name if self.name else ''} of {len(self._tasks)} tasks>"


class Bulk:
    """Jobs that are enqueued together at the end of a block. Made by `app.bulk(…)`."""

    def __init__(self, app: App, target: Any):
        self._app = app
        self._target = target
        self._items: list[Item] = []
        self.jobs: list[Job] = []
        """After the block: the jobs, in the order of the calls of `enqueue`."""

    @overload
    def enqueue(
        self,
        task: Enqueueable[Callable[Concatenate[Context[Any], P], Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None: ...
    @overload
    def enqueue(self, task: Enqueueable[Callable[P, Any]], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def enqueue(self, task: Enqueueable[Any], /, *args: Any, **kwargs: Any) -> None:
        """Adds one job, checked now and enqueued at the end of the block. Raises `InvalidArgs`."""
        self._items.append(task.item(*args, **kwargs))

    def __len__(self) -> int:
        return len(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if self._target is None:
            self.jobs = self._app.enqueue_many(self._items)
            return
        self.jobs = _send(self._target, self._items, may_await=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if self._target is None:
            self.jobs = await self._app.enqueue_many_async(self._items)
            return
        sent = _send(self._target, self._items)
        self.jobs = await sent if inspect.isawaitable(sent) else sent


def _checked(items: Iterable[Item]) -> list[Item]:
    """All of the items, before any of them is sent."""
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidOption(f"items: expected items made by task.item(…), got {safe_repr(items)}")
    checked = list(items)
    for index, item in enumerate(checked):
        if type(item) is not Item:
            raise InvalidOption(f"items[{index}]: expected task.item(…), got {safe_repr(item)}")
    return checked


def _send(target: Any, items: Sequence[Item], *, may_await: bool = True) -> Any:
    """Runs the calls one after the other; a list, or an awaitable of it for an async target."""
    batches = _batches(items)
    # The kind of target shows in what the first call gives; an empty bulk makes one call as well.
    first: Any = run(target, calls.enqueue_many(next(batches)))
    if inspect.isawaitable(first):
        if not may_await:
            if inspect.iscoroutine(first):
                first.close()
            raise UnusableConnection("this connection is async: use `async with app.bulk(connection)`")
        return _send_async(target, first, batches)
    jobs: list[Job] = first
    for batch in batches:
        more: list[Job] = run(target, calls.enqueue_many(batch))
        jobs += more
    return jobs


async def _send_async(target: AsyncTarget, first: Awaitable[list[Job]], batches: Iterator[str]) -> list[Job]:
    jobs = await first
    for batch in batches:
        more: list[Job] = await run(target, calls.enqueue_many(batch))
        jobs += more
    return jobs


def _batches(items: Sequence[Item]) -> Iterator[str]:
    """JSON arrays of the items, each within the bounds of one call; at least one, if empty."""
    batch: list[str] = []
    size = 0
    for item in items:
        if batch and (len(batch) >= BATCH_ITEMS or size + len(item.json) > BATCH_CHARACTERS):
            yield f"[{','.join(batch)}]"
            batch, size = [], 0
        batch.append(item.json)
        size += len(item.json)
    yield f"[{','.join(batch)}]"


class _OwnConnections:
    """Pools that are opened when they are needed: one for threads, one for each event loop.

    Hazard: after a fork parent and child would talk over the same sockets. A child is known by its process
    id, and starts with no pools; the parent's are neither used nor closed there, for closing them would end
    the parent's sessions.
    """

    def __init__(self, app: App):
        self._app = app
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

    @asynccontextmanager
    async def async_connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """`connection`, of the running event loop."""
        from psycopg_pool import PoolTimeout

        pool = await self._opened_async()
        try:
            connection = await pool.getconn()
        except PoolTimeout as error:
            await asyncio.to_thread(self._probe)
            raise DatabaseUnavailable(
                f"the app's own {POOL_SIZE} connections were busy for {POOL_TIMEOUT:g} s"
            ) from error
        try:
            yield connection
        finally:
            await pool.putconn(connection)

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

        dsn = self._app.settings.dsn
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
        """Connects once. A pool retries in the background and only says that it waited; this says why."""
        import psycopg

        try:
            psycopg.connect(self._conninfo(), connect_timeout=int(POOL_TIMEOUT)).close()
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
