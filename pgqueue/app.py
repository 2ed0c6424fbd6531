"""`App`: the registry of tasks, the settings, and connections of its own for those who bring none."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from pgqueue import calls
from pgqueue.bulk import Bulk, check_items, send_items
from pgqueue.context import Context
from pgqueue.drivers import AsyncTarget, SyncTarget, run
from pgqueue.error_text import did_you_mean, safe_repr
from pgqueue.errors import ConfigurationError, UnknownTask
from pgqueue.job import Cancellation, Job
from pgqueue.options import TaskOptions
from pgqueue.pools import OwnConnections
from pgqueue.settings import Settings, load_settings
from pgqueue.task import Decorator, Enqueueable, Item, Task

P = ParamSpec("P")
R = TypeVar("R")


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
        self._own = OwnConnections(lambda: self.settings.dsn)

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
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(self, /, **options: Unpack[TaskOptions]) -> Decorator: ...
    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Registers a function as a task, bare (`@app.task`) or with options (`@app.task(queue="email")`).

        - `name`: in the database and for `pgqueue.enqueue(…)` in SQL; by default the function's own.
        - `queue`, `priority` (0 first … 9): for all jobs of the task unless `using` says otherwise.
        - `retry`: the policy after a failed attempt; by default four more attempts after about 2, 10, 50
          and 250 seconds.
        - `permanent`: exceptions that make the job a dead letter at once.
        - `timeout`: how long an attempt may take (seconds, a timedelta or text such as "30s"); no limit by
          default. An async handler is cancelled and gets 3 s to clean up, a thread is left to itself
          (`ctx.cancelled` tells it); the attempt counts as failed, with `pgqueue.errors.TimedOut`.
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
            checked = check_items(target)
            with self._own.transaction() as connection:
                return send_items(connection, checked)
        return send_items(target, check_items(items))

    async def enqueue_many_async(self, items: Iterable[Item], /) -> list[Job]:
        """`enqueue_many` on a connection of the app's own, for code in an event loop."""
        checked = check_items(items)
        async with self._own.async_transaction() as connection:
            sent: list[Job] = await send_items(connection, checked)
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
        return Bulk(self._own, target)

    # Operating

    def cancel(self, *ids: int, reason: str = "cancelled") -> list[Cancellation]:
        """Cancels jobs in any state, committed when this returns; what became of each that exists.

        One that waits, or is dead, is cancelled at once. One that runs is asked for: its worker is told, an
        async handler is cancelled, a thread sees `ctx.cancelled`; the job ends as cancelled, or as completed
        when it finishes first.

        For a transaction of your own: `run(connection, calls.cancel([id]))`, or `pgqueue.cancel()` in SQL.
        """
        with self._own.connection() as connection:
            return run(connection, calls.cancel(ids, reason))

    async def cancel_async(self, *ids: int, reason: str = "cancelled") -> list[Cancellation]:
        """`cancel` for code in an event loop."""
        async with self._own.async_connection() as connection:
            return await run(connection, calls.cancel(ids, reason))

    # Connections of the app's own

    def close(self) -> None:
        """Closes the app's own connections. They are opened again when needed."""
        self._own.close()

    async def aclose(self) -> None:
        """Closes the app's own connections, those of the running event loop included."""
        await self._own.aclose()

    def __repr__(self) -> str:
        return f"<pgqueue.App{' ' + self.name if self.name else ''} of {len(self._tasks)} tasks>"
