"""Runs a task's handler without a database."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

import msgspec

from pgqueue.app import App
from pgqueue.batch import BatchJob
from pgqueue.batch_task import BatchTask
from pgqueue.calls import Call
from pgqueue.context import Context, current_job
from pgqueue.errors import PgqueueError
from pgqueue.invocation import handler_of
from pgqueue.job import ClaimedJob, Job
from pgqueue.options import DEFAULT_PRIORITY, DEFAULT_QUEUE
from pgqueue.resources import Resources
from pgqueue.retry import DEFAULT_ATTEMPTS
from pgqueue.task import Enqueueable
from pgqueue.testing.loops import in_this_loop, in_this_thread
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.steps import encode, takes_connection

P = ParamSpec("P")
T = TypeVar("T")


class Performer:
    """The type of `perform`: called with a task and its arguments, it runs the task's handler.

    `using` sets what an attempt has beside its arguments.
    """

    def __init__(self, *, id: int = 1, attempt: int = 1, connection: Any = None):
        self._id = id
        self._attempt = attempt
        self._connection = connection

    def using(self, *, id: int = 1, attempt: int = 1, connection: Any = None) -> Performer:
        """A `perform` with another job id (`ctx.id`, `ctx.idempotency_key`), attempt, or `ctx.connection`.

        perform.using(attempt=3)(charge, order_id="A-1")
        perform.using(connection=session)(reserve, order_id="A-1")
        """
        return Performer(id=id, attempt=attempt, connection=connection)

    @overload
    def __call__(
        self,
        task: Enqueueable[Callable[Concatenate[Context[Any], P], Awaitable[T]]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...
    @overload
    def __call__(
        self, task: Enqueueable[Callable[P, Awaitable[T]]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    def __call__(
        self,
        task: Enqueueable[Callable[Concatenate[Context[Any], P], T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...
    @overload
    def __call__(self, task: Enqueueable[Callable[P, T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def __call__(self, task: Enqueueable[Any], /, *args: Any, **kwargs: Any) -> Any:
        """Runs a task's handler as a worker would, here and without a database; what it returns.

            assert perform(add, 1, 2) == 3
            with pytest.raises(pgqueue.Retry):
                perform(charge.using(tags=["vip"]), order_id="rate-limited")

        The arguments are checked, encoded and decoded as on their way through the queue, the handler gets its
        `Context`, what it is provided with (`app.override(…)` puts fakes in) and its middleware. What it raises is
        raised, outcomes such as `Retry` and `Snooze` too. A step is called and not recorded. An async handler runs in
        an event loop of its own; under one that is running use `perform_async`.

        A batch task takes the items of its batch, and the answer is the list of its `BatchJob`s.

        Raises `InvalidArgs`; `PgqueueError` for a transactional task without `using(connection=…)`.
        """
        return in_this_thread(lambda threads: self._run(task, args, kwargs, threads))

    async def _run(
        self, bound: Enqueueable[Any], args: tuple[Any, ...], kwargs: dict[str, Any], threads: Threads
    ) -> Any:
        task, app = bound.task, bound.task.app or App()
        resources = Resources(app.providers)
        handler = handler_of(app, task, resources)
        context = contextvars.copy_context()
        batch: list[BatchJob[Any]] = []
        if isinstance(task, BatchTask):
            claimed = [self._claimed(bound.call(item), number) for number, item in enumerate(args, self._id)]
            batch = [
                BatchJob(task.decode(task.unseal(job.args, "args", job.queue))["item"], job)
                for job in claimed
            ]
            call = partial(handler.function, batch)
        else:
            job = self._claimed(bound.call(*args, **kwargs), self._id)
            context.run(current_job.set, job)
            first = (self._context(bound, job),) if handler.takes_context else ()
            call = partial(handler.function, *first, **task.decode(task.unseal(job.args, "args", job.queue)))
        try:
            if task.is_async:
                result = await asyncio.create_task(call(), context=context)
            else:
                result = await threads.run(context, call)
        finally:
            await resources.close()
        return batch if isinstance(task, BatchTask) else result

    def _claimed(self, call: Call[Job], id: int) -> ClaimedJob:
        """The job as a worker would claim it, out of the call that would enqueue it."""
        given = dict(zip((name for name, _ in call.verb.parameters), call.values, strict=True))
        return ClaimedJob(
            id=id,
            lease=1,
            queue=given["queue"] or DEFAULT_QUEUE,
            lane=2 * int(given["priority"] or DEFAULT_PRIORITY) + 1,
            position=1,
            task=given["task"] or "",
            args=given["args"] or "{}",
            attempt=self._attempt,
            max_attempts=int(given["max_attempts"] or DEFAULT_ATTEMPTS),
            crashes=0,
            options=given["options"],
        )

    def _context(self, bound: Enqueueable[Any], job: ClaimedJob) -> Context[Any]:
        task = bound.task
        if task.transactional and self._connection is None:
            raise PgqueueError(
                f"task {task.name} is transactional, and there is no database here: "
                f"perform.using(connection=…)({task.name}, …), or enqueue it and drain(…)"
            )
        connection = self._connection if task.transactional else None
        return Context(job, connection, take_step=self._take_step_async if task.is_async else self._take_step)

    def _take_step(self, _job: ClaimedJob, name: str, function: Callable[..., Any]) -> Any:
        return msgspec.json.decode(encode(name, self._call_step(function)))

    async def _take_step_async(self, _job: ClaimedJob, name: str, function: Callable[..., Any]) -> Any:
        result = self._call_step(function)
        return msgspec.json.decode(encode(name, await result if inspect.isawaitable(result) else result))

    def _call_step(self, function: Callable[..., Any]) -> Any:
        if not takes_connection(function):
            return function()
        if self._connection is None:
            raise PgqueueError(
                "a step that takes a connection needs one: perform.using(connection=…)(…), or enqueue the job "
                "and drain(…)"
            )
        return function(self._connection)


class AsyncPerformer:
    """The type of `perform_async`."""

    def __init__(self, performer: Performer):
        self._performer = performer

    def using(self, *, id: int = 1, attempt: int = 1, connection: Any = None) -> AsyncPerformer:
        """As `perform.using`."""
        return AsyncPerformer(self._performer.using(id=id, attempt=attempt, connection=connection))

    @overload
    def __call__(
        self,
        task: Enqueueable[Callable[Concatenate[Context[Any], P], Awaitable[T]]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def __call__(
        self, task: Enqueueable[Callable[P, Awaitable[T]]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def __call__(
        self,
        task: Enqueueable[Callable[Concatenate[Context[Any], P], T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def __call__(
        self, task: Enqueueable[Callable[P, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]: ...
    def __call__(self, task: Enqueueable[Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """`perform` for code in an event loop, where an async handler runs; a sync one runs in a thread."""
        return in_this_loop(lambda threads: self._performer._run(task, args, kwargs, threads))


perform = Performer()
perform_async = AsyncPerformer(perform)
