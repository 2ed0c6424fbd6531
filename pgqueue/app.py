"""`App`: the registry of tasks, the settings, and connections of its own for those who bring none."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from pgqueue import calls
from pgqueue.batch_task import BatchDecorator, BatchTask
from pgqueue.bulk import Bulk, check_items, send_items, tell
from pgqueue.calls import Call
from pgqueue.context import Context
from pgqueue.dependencies import Providers, Scope
from pgqueue.drivers import AsyncTarget, SyncTarget, run
from pgqueue.encryption import Keyring
from pgqueue.error_text import did_you_mean, safe_repr, safe_text
from pgqueue.errors import ConfigurationError, UnknownTask
from pgqueue.hooks import Alert, Hookable, Hooks
from pgqueue.job import Cancellation, Job
from pgqueue.look import Looking
from pgqueue.middleware import Middleware, Pair
from pgqueue.options import TaskOptions, check_name, check_task_options
from pgqueue.pools import OwnConnections
from pgqueue.redaction import Redaction
from pgqueue.retry import Duration
from pgqueue.schedule import Schedule
from pgqueue.scheduling import Scheduling, module_name
from pgqueue.settings import Settings, load_settings
from pgqueue.task import Decorator, Enqueueable, Item, Task, check_task
from pgqueue.tracing import Tracing

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=Middleware)
F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A", bound=Callable[[Alert], Any])


class App(Hookable, Looking, Scheduling):
    """An application's tasks, and the façade to enqueue them.

        app = pgqueue.App()

        @app.task(queue="email")
        async def send_welcome(user_id: int) -> None: ...

        send_welcome.enqueue(connection, user_id=7)   # in the connection's transaction
        app.enqueue(send_welcome, user_id=7)          # on a connection of the app's own

    Making one reads nothing and connects to nothing: settings are loaded and connections are opened when
    they are first needed. `dsn` overrides the one of the settings; `settings` replaces what
    `load_settings()` finds.

    `name` says whose the schedules are that the app's code defines: a worker's start brings those of its app's name to
    what the code says. By default it is the name of the module that the app is made in. Two apps that work on one
    database need two names: with one name, each would remove the schedules of the other.

    `keyring` has the keys for tasks that say `encrypt=True`, instead of those of the settings.
    """

    def __init__(
        self,
        *,
        dsn: str | None = None,
        settings: Settings | None = None,
        name: str | None = None,
        keyring: Keyring | None = None,
    ):
        self.name: str = module_name(self, sys._getframe(1)) if name is None else check_name("name", name)
        self._dsn = dsn
        self._settings = settings
        self._loaded: Settings | None = None
        self._keyring = keyring
        self._redaction: Redaction | None = None
        self._tasks: dict[str, Task[..., Any]] = {}
        self._schedules: dict[str, Schedule] = {}
        self._own = OwnConnections(lambda: self.settings.dsn)
        self._all_ears = {}
        self.hooks = Hooks(of_app=True)
        self.providers = Providers()
        self._middlewares: list[Pair] = []
        self.tracing: Tracing | None = None
        self._run_call: Callable[[Any, Call[Any]], Any] = run

    @property
    def settings(self) -> Settings:
        """The settings, loaded at the first look. Raises `ConfigurationError` naming all that is wrong."""
        if self._loaded is None:
            if self._settings is None:
                self._loaded = load_settings(dsn=self._dsn)
            else:
                self._loaded = self._settings if self._dsn is None else replace(self._settings, dsn=self._dsn)
        return self._loaded

    @property
    def keyring(self) -> Keyring | None:
        """The keys for what is encrypted, its own or those of the settings; None: there are none."""
        if self._keyring is None:
            self._keyring = self.settings.keyring()
        return self._keyring

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
          (`ctx.cancelled` tells it), a process is told and killed 3 s later; the attempt counts as failed, with
          `pgqueue.errors.TimedOut`.
        - `unique`: a `Unique`, for at most one job with the same arguments, some of them, or another key.
        - `executor`: where a sync function runs: "thread" (the default) or "process", in a process of the
          worker's that runs one job at a time: for what computes, leaks or crashes. `max_memory` (bytes or text
          such as "512MB") and `max_jobs_per_child`: what such a process may have taken or done after a job, before
          it is replaced.
        - `on_crash`: "dead" makes a dead letter of a job whose process died while it ran, which is not started
          again; "retry" (the default) tries again.
        - `middleware`: functions around the handler, inside of the app's own; see `App.middleware`.
        - `transactional`: the handler works on `ctx.connection`, and its writes commit together with the
          job's completion or not at all.
        - `keep_result`: what the function returns is stored as JSON with its job, at most 64 KiB
          (`max_result_bytes`), for `app.result(job)`. What cannot be stored is left out and warned of; the
          job completes all the same.
        - `encrypt`: args, a kept result and the results of steps are stored encrypted, with the app's keys. Its names,
          tags, metadata, keys and progress are not.

        Raises `ConfigurationError` for a function that cannot be a task or a name that is taken, and
        `InvalidOption`.
        """
        check_task_options(options)
        # Where the decorator stands, so that annotations may name types of the function around it.
        namespace = sys._getframe(1).f_locals

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            task: Task[..., Any] = Task(
                function,
                **options,
                limit=self._args_limit,
                result_limit=self._result_limit,
                keyring=lambda: self.keyring,
                redaction=self._redacting,
                namespace=namespace,
                app_hooks=self.hooks,
                overrides=self.providers.overrides,
            )
            self._register(task)
            return task

        return register if function is None else register(function)

    def batch_task(
        self, /, *, size: int, wait: Duration = 0.05, **options: Unpack[TaskOptions]
    ) -> BatchDecorator:
        """Registers a function that gets up to `size` jobs at once, or what arrived within `wait` of the first.

        The function takes one list of `BatchJob`s; each carries the `item` that its job was enqueued with,
        and may be ended by itself with `job.end(…)`. Enqueue items one by one or in bulk, as with any task:

            @app.batch_task(size=100, wait="50ms")
            async def index(jobs: list[pgqueue.BatchJob[int]]) -> None: ...

            index.enqueue(connection, 7)

        `size` is 1 to 10,000, and no batch is larger than the worker's concurrency. The other options are
        those of `task`; `timeout` is for a whole batch.
        """
        check_task_options(options)
        namespace = sys._getframe(1).f_locals

        def register(function: Callable[..., Any]) -> Any:
            task: BatchTask[Any, Any] = BatchTask(
                function,
                size=size,
                wait=wait,
                limit=self._args_limit,
                keyring=lambda: self.keyring,
                redaction=self._redacting,
                namespace=namespace,
                app_hooks=self.hooks,
                overrides=self.providers.overrides,
                **options,
            )
            self._register(task)
            return task

        return register

    def _register(self, task: Task[..., Any]) -> None:
        if (other := self._tasks.get(task.name)) is not None:
            raise ConfigurationError(
                f"task {task.name} is defined twice: in {other.__module__} and in {task.__module__}. "
                "Give one of them another name, @app.task(name=…)"
            )
        self._tasks[task.name] = task
        task.app, task.run_call = self, self._run_call

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The registry: tasks by name, in the order of their definition."""
        return MappingProxyType(self._tasks)

    def task_named(self, name: str) -> Task[..., Any]:
        """The task of that name. Raises `UnknownTask`."""
        task = self._tasks.get(name) if isinstance(name, str) else None
        if task is None:
            known = f"; it has {', '.join(self._tasks)}" if 0 < len(self._tasks) <= 20 else ""
            raise UnknownTask(
                f"the app has no task {safe_repr(name)}{did_you_mean(safe_text(name, 200), self._tasks)}{known}"
            )
        return task

    # Alerts

    def on_alert(self, hook: A, /) -> A:
        """Registers a function, sync or async, that is told when a check of the view `pgqueue_bi.health` fails, and again
        when it no longer does: `on("alert")` by another name.

            @app.on_alert
            async def page(alert: pgqueue.hooks.Alert) -> None:
                await chat.post(("over: " if alert.is_resolved else "") + f"{alert.check_name} {alert.queue}: {alert.detail}")

        Thresholds are set for each queue: `pgqueue queues set mail max_depth=10000`. Checks are looked at after figures
        were kept: while jobs come and go every 10 s, else once a minute. One worker process of the fleet tells: one of
        those whose supervisor leads upkeep. Where workers run several apps, only the leader's app is told, so give the
        hook to each. Each change is told once; when another supervisor comes to lead, what still fails is told again, and
        what ended in between is not told as resolved. When no worker runs nobody is told: watch that from outside, with
        `pgqueue health`.
        """
        self.hooks.add("alert", hook)
        return hook

    # Around handlers

    def middleware(self, middleware: M, twin: Middleware | None = None, /) -> M:
        """Puts a function around the handler of every task: it sees the `Context`, and what the handler ends with.

            @app.middleware
            async def timed(ctx: pgqueue.Context, call_next: pgqueue.middleware.CallNext) -> Any:
                started = time.monotonic()
                try:
                    return await call_next()
                finally:
                    durations.observe(time.monotonic() - started, task=ctx.task)

        What it returns is the handler's result, what it raises is the attempt's end (`raise pgqueue.Retry(…)`).
        The first one is the outermost; those of a task, `@app.task(middleware=[…])`, are inside of the app's.
        In a transactional task they run inside the transaction. Batch tasks have none: a batch is no one job.

        Async middleware is for async tasks, sync middleware for sync ones. An app with both kinds of tasks
        gives both forms, in any order: `app.middleware(timed, timed_sync)`. A worker does not start with a
        task that a middleware has no form for: `ConfigurationError`.
        """
        self._middlewares.append(Pair.of([middleware] if twin is None else [middleware, twin]))
        return middleware

    @property
    def middlewares(self) -> Sequence[Pair]:
        """The app's middleware, the outermost first."""
        return tuple(self._middlewares)

    @overload
    def provide(self, provider: F, /, *, scope: Scope = "job") -> F: ...
    @overload
    def provide(self, /, *, scope: Scope = "job") -> Callable[[F], F]: ...
    def provide(self, provider: Any = None, /, *, scope: Scope = "job") -> Any:
        """Registers what makes values of a type, for handlers that ask for one with `pgqueue.PROVIDED`.

            @app.provide(scope="worker")
            async def http() -> AsyncIterator[httpx.AsyncClient]:
                async with httpx.AsyncClient() as client:
                    yield client

            @app.provide
            def mailer(http: httpx.AsyncClient) -> Mailer:
                return Mailer(http)

            @app.task
            async def send(user_id: int, mailer: Mailer = pgqueue.PROVIDED) -> None: ...

        The type is what the function says that it returns; a class provides itself. A generator, a function
        that returns an `AbstractContextManager[…]`, and a class that is a context manager are opened and
        closed; they may be async, for async tasks. The parameters of a provider are provided too, but for
        those with a default; the first one may be the `Context`.

        - scope `job`: made for each attempt that asks for it, where the handler runs, and closed when that has
          ended: closing sees what the handler raised, and what it raises itself fails the attempt.
        - scope `worker`: opened once in each process of a worker, by the first attempt that asks for it, shared
          by all, closed when the worker ends.

        Providers and tasks may be defined in any order. A worker does not start with a task that lacks a
        provider: `ConfigurationError`, which is raised here for a type that has one already.
        """
        namespace = sys._getframe(1).f_locals

        def register(provider: F) -> F:
            self.providers.add(provider, scope, namespace)
            return provider

        return register if provider is None else register(provider)

    def override(self, kind: Any, value: Any) -> AbstractContextManager[None]:
        """Gives `value` to whoever asks for the type `kind`, within a `with` block; for tests.

            with app.override(Mailer, FakeMailer()):
                send(user_id=7)

        It holds for tasks that are called directly, for workers of this process, and for what providers need.
        """
        return self.providers.override(kind, value)

    def trace_with(self, tracing: Tracing) -> None:
        """Puts `tracing` around every enqueue and every handler: for `pgqueue.otel.instrument(app)`."""
        self.tracing, self._run_call = tracing, tracing.run_call
        for task in self._tasks.values():
            task.run_call = tracing.run_call

    def _args_limit(self) -> int:
        return self.settings.max_args_bytes

    def _result_limit(self) -> int:
        return self.settings.max_result_bytes

    def _redacting(self) -> Redaction:
        if self._redaction is None:
            self._redaction = Redaction(self.settings.redact)
        return self._redaction

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
        call = check_task(task).call(*args, **kwargs)
        with self._own.connection() as connection:
            job: Job = task.task.run_call(connection, call)
        return job

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
        call = check_task(task).call(*args, **kwargs)
        async with self._own.async_connection() as connection:
            job: Job = await task.task.run_call(connection, call)
        return job

    # Many jobs at once

    @overload
    def enqueue_many(self, items: Iterable[Item], /) -> list[Job]: ...
    @overload
    def enqueue_many(self, target: SyncTarget, items: Iterable[Item], /) -> list[Job]: ...
    @overload
    def enqueue_many(self, target: AsyncTarget, items: Iterable[Item], /) -> Awaitable[list[Job]]: ...
    def enqueue_many(self, target: Any, items: Any = None, /) -> Any:
        """Enqueues many jobs in the transaction of `target`, or without one in a transaction of its own.

        Returns the jobs in the order of the items: at most 100,000, and 256 MiB of JSON. They are sent in calls of at
        most 5,000; all are checked before the first is sent. With an async `target`, await what it returns. Raises
        `InvalidOption`.

            app.enqueue_many(connection, [send_welcome.item(user_id=n) for n in range(100_000)])
        """
        if items is None:
            checked = check_items(target)
            with self._own.transaction() as connection:
                jobs = send_items(connection, checked, self._run_call, tells=False)
            tell(checked, jobs)
            return jobs
        return send_items(target, check_items(items), self._run_call)

    async def enqueue_many_async(self, items: Iterable[Item], /) -> list[Job]:
        """`enqueue_many` on a connection of the app's own, for code in an event loop."""
        checked = check_items(items)
        async with self._own.async_transaction() as connection:
            sent: list[Job] = await send_items(connection, checked, self._run_call, tells=False)
        tell(checked, sent)
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
        return Bulk(self._own, target, self._run_call)

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
        return f"<pgqueue.App {self.name} of {len(self._tasks)} tasks>"
