"""Runs sync handlers in the main thread of a process that has nothing else to do meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

from pgqueue.worker.executors.threads import Threads

_Call = tuple["asyncio.Future[Any]", Context, Callable[[], Any]]


class MainThread(Threads):
    """Stands in for `Threads`: a handler runs where `drive` was called, while the event loop stands still.

    So it may do what only the main thread may (signal handlers, `asyncio.run`, libraries that insist on it), and
    costs no switch between threads.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._call: _Call | None = None

    async def run(self, context: Context, function: Callable[[], Any]) -> Any:
        """What `function` returns or raises, run in `context`."""
        future: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()
        self._call = (future, context, function)
        self._loop.stop()
        value, error = await future
        if error is not None:
            try:
                raise error
            finally:
                del future, error  # as in `Threads.run`
        return value

    def drive(self, until: asyncio.Task[None]) -> None:
        """Runs the loop, and in between the handlers, until a task has ended; raises what it raised."""
        until.add_done_callback(lambda _: self._loop.stop())
        while not until.done():
            self._loop.run_forever()
            if self._call is not None:
                (future, context, function), self._call = self._call, None
                try:
                    answer: tuple[Any, BaseException | None] = context.run(function), None
                except BaseException as error:  # noqa: BLE001 - SystemExit too: it is the job's, not the process's
                    answer = None, error
                future.set_result(answer)
                del future, context, function, answer  # nothing of the job stays alive in here
        until.result()
