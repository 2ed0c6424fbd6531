"""What is called for a task: its function, with what it is provided with, and its middleware around that.

    tracing ─► middleware of the app ─► middleware of the task ─► providers opened ─► the function ─► providers closed

Made once for each task of a worker. A task that uses nothing of it is called as it is written.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

from pgqueue.app import App
from pgqueue.batch_task import BatchTask
from pgqueue.context import Context
from pgqueue.middleware import Middleware
from pgqueue.resources import JobScope, Resources, complete
from pgqueue.task import Task


class Handler(NamedTuple):
    """`function` takes the task's args by name, after a `Context` where `takes_context`; async as the task is."""

    function: Callable[..., Any]
    takes_context: bool


def check(app: App) -> None:
    """Raises `ConfigurationError` for the first task that could not be called: no provider, no middleware of its kind, no key."""
    resources = Resources(app.providers)
    for task in app.tasks.values():
        handler_of(app, task, resources)
        if task.encrypt:
            task.keyring()


def handler_of(app: App, task: Task[..., Any], resources: Resources) -> Handler:
    """What a worker calls for a task of `app`: for a batch task with the list of its jobs alone.

    Raises `ConfigurationError`, as `check` does.
    """
    handler = Handler(task.function, task.takes_context)
    is_batch = isinstance(task, BatchTask)
    if needs := task.parameters.provided:
        app.providers.check(task.name, needs, is_async=task.is_async, has_context=not is_batch)
        provide = partial(_provided_async if task.is_async else _provided, handler, needs, resources)
        if is_batch:
            handler = Handler(partial(_of_batch, provide, _parameter_of_batch(task)), False)
        else:
            handler = Handler(provide, True)
    if is_batch and app.tracing is not None:
        traced = app.tracing.around_batch(task.name, handler.function, is_async=task.is_async)
        return Handler(traced, False)
    if middleware := _middleware_of(app, task):
        handler = Handler(partial(_around, handler, middleware), True)
    return handler


def _of_batch(provide: Callable[..., Any], parameter: str, jobs: list[Any], /) -> Any:
    return provide(None, **{parameter: jobs})


def _parameter_of_batch(task: Task[..., Any]) -> str:
    """What a batch task calls its jobs: its only parameter that is not provided."""
    (name,) = inspect.signature(task.function).parameters.keys() - task.parameters.provided.keys()
    return name


def _middleware_of(app: App, task: Task[..., Any]) -> tuple[Middleware, ...]:
    if isinstance(task, BatchTask):
        return ()  # a batch has no Context
    traced: tuple[Middleware, ...] = ()
    if app.tracing is not None:
        traced = (app.tracing.around_async if task.is_async else app.tracing.around,)
    shared = (pair.form_for(task.name, is_async=task.is_async) for pair in app.middlewares)
    return (*traced, *shared, *task.middleware)


def _around(handler: Handler, middleware: Sequence[Middleware], ctx: Context[Any], /, **args: Any) -> Any:
    """Calls the first middleware, which calls the next one. A coroutine when they are async."""
    call_next = _bound(handler, ctx, args)
    for layer in reversed(middleware):
        call_next = partial(layer, ctx, call_next)
    return call_next()


async def _provided_async(
    handler: Handler, needs: Mapping[str, Any], resources: Resources, ctx: Context[Any] | None, /, **args: Any
) -> Any:
    async def call(values: dict[str, Any]) -> Any:
        return await _bound(handler, ctx, args | values)()

    return await _within_scope(call, needs, resources, ctx, in_thread=False)


def _provided(
    handler: Handler, needs: Mapping[str, Any], resources: Resources, ctx: Context[Any] | None, /, **args: Any
) -> Any:
    async def call(values: dict[str, Any]) -> Any:
        return _bound(handler, ctx, args | values)()

    return complete(_within_scope(call, needs, resources, ctx, in_thread=True))


async def _within_scope(
    call: Callable[[dict[str, Any]], Awaitable[Any]],
    needs: Mapping[str, Any],
    resources: Resources,
    ctx: Context[Any] | None,
    *,
    in_thread: bool,
) -> Any:
    result: Any = None
    raised: BaseException | None = None
    trace: TracebackType | None = None
    try:
        async with AsyncExitStack() as stack:
            scope = JobScope(resources, ctx, stack, in_thread)
            values = {name: await scope.value(kind) for name, kind in needs.items()}
            try:
                result = await call(values)
            except BaseException as error:
                raised, trace = error, error.__traceback__  # which a provider that catches it changes
                raise
        if raised is not None:
            # A generator that caught it to clean up and forgot to raise: it does not decide that the job succeeded.
            raise raised.with_traceback(trace)
        return result
    finally:
        raised = trace = None  # an exception and a frame that hold each other wait for the garbage collector


def _bound(handler: Handler, ctx: Context[Any] | None, args: dict[str, Any]) -> Callable[[], Any]:
    if handler.takes_context:
        return partial(handler.function, ctx, **args)
    return partial(handler.function, **args)
