"""Runs an async handler inside the slot's own asyncio task, in a context of its own."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any


class InContext:
    """Awaits a coroutine with every step of it run in `context`.

    A slot serves job after job in one asyncio task, because a task per job costs more than the job. What a
    handler sets in its context variables must not reach the next job, so each gets a copy; that costs a
    tenth of a microsecond.

    `first` is what the coroutine's first step waits for. `asyncio.current_task()`, `asyncio.timeout()` and cancellation work as in any coroutine.
    """

    __slots__ = ("_context", "_coroutine", "_first")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], context: Context, first: Any):
        self._coroutine = coroutine
        self._context = context
        self._first = first

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine = self._context.run, self._coroutine
        waited_for = self._first
        while True:
            try:
                value = yield waited_for
                step = coroutine.send
            except GeneratorExit:
                run(coroutine.close)
                raise
            except BaseException as error:  # noqa: BLE001 - a cancellation goes to the handler, which decides
                step, value = coroutine.throw, error
            try:
                waited_for = run(step, value)
            except StopIteration as finished:
                return finished.value
            finally:
                value = None  # as in `Threads.run`: an exception that comes through here is not held here


def run_in(coroutine: Coroutine[Any, Any, Any], context: Context) -> Any:
    """Runs the first step of a coroutine in `context`; what it returned, or an `InContext` that has to be awaited.

    Most handlers that a queue is measured by never suspend, and many real ones seldom do.
    """
    try:
        first = context.run(coroutine.send, None)
    except StopIteration as finished:
        return finished.value
    return InContext(coroutine, context, first)
