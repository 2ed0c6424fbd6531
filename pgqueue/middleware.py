"""Middleware: functions around a handler, which see its `Context`, and what it returns or raises.

    @app.middleware
    async def timed(ctx: pgqueue.Context, call_next: pgqueue.middleware.CallNext) -> Any:
        started = time.monotonic()
        try:
            return await call_next()
        finally:
            durations.labels(ctx.task).observe(time.monotonic() - started)

Async middleware goes around async handlers, sync middleware around sync ones: a handler is called where it
runs, in the loop or in its thread, and so is what goes around it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from pgqueue.context import Context
from pgqueue.error_text import safe_repr
from pgqueue.errors import ConfigurationError
from pgqueue.hooks import hook_name, is_async

CallNext: TypeAlias = Callable[[], Awaitable[Any]]
"""Calls what is inside, the next middleware or the handler itself; awaited, it gives what that returns."""

Middleware: TypeAlias = Callable[[Context[Any], Callable[[], Any]], Any]
"""A sync middleware, or an async one, whose `call_next` is a `CallNext`."""


class Pair(NamedTuple):
    """One middleware of an app, in the forms that it has."""

    for_async: Middleware | None
    for_sync: Middleware | None

    @classmethod
    def of(cls, given: Sequence[Any]) -> Pair:
        """The pair of one or two functions. Raises `ConfigurationError` for two of a kind, and for no function."""
        forms: dict[bool, Middleware] = {}
        for middleware in given:
            if not callable(middleware):
                raise ConfigurationError(
                    f"middleware is a function of a Context and of call_next, got {safe_repr(middleware)}"
                )
            if forms.setdefault(is_async(middleware), middleware) is not middleware:
                raise ConfigurationError(
                    f"middleware {hook_name(forms[is_async(middleware)])} and {hook_name(middleware)} are both "
                    f"{_kind(is_async(middleware))}: a pair is one async and one sync function"
                )
        return cls(forms.get(True), forms.get(False))

    def form_for(self, task: str, *, is_async: bool) -> Middleware:
        """The form for a task's handler. Raises `ConfigurationError` when there is none of its kind."""
        form = self.for_async if is_async else self.for_sync
        if form is None:
            other = self.for_sync if is_async else self.for_async
            name = hook_name(other) if other is not None else "?"
            raise ConfigurationError(
                f"task {task} is {_kind(is_async)} and middleware {name} is {_kind(not is_async)}, so it cannot go "
                f"around it: give the app both forms of it, app.middleware({_short(name)}, {_short(name)}_"
                f"{_kind(is_async)}), or put it on the tasks it is for, @app.task(middleware=[…])"
            )
        return form


def check_middleware(task: str, given: Any, *, is_async: bool) -> tuple[Middleware, ...]:
    """A task's own middleware, each of its handler's kind. Raises `ConfigurationError`."""
    if callable(given) or not isinstance(given, Sequence):
        raise ConfigurationError(f"task {task}: middleware has to be a list, got {safe_repr(given)}")
    pairs = [Pair.of([middleware]) for middleware in given]
    return tuple(pair.form_for(task, is_async=is_async) for pair in pairs)


def _kind(is_async: bool) -> str:
    return "async" if is_async else "sync"


def _short(name: str) -> str:
    return name.rpartition(".")[2]
