"""Where the kit's own code runs, which is async as the worker's is: for a sync caller, and for an async one."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from pgqueue.errors import PgqueueError
from pgqueue.worker.executors.main_thread import MainThread
from pgqueue.worker.executors.threads import Threads

T = TypeVar("T")


class OneAtATime(MainThread):
    """The caller's thread, for handlers and for statements: one of them at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        super().__init__(loop)
        self._turn = asyncio.Lock()
        self.is_over = False
        """Whether nobody drives the loop any more: it only cleans up after an interrupt."""

    async def run(self, context: contextvars.Context, function: Callable[[], Any]) -> Any:
        async with self._turn:
            return context.run(function) if self.is_over else await super().run(context, function)


def in_this_thread(work: Callable[[Threads], Coroutine[Any, Any, T]]) -> T:
    """Runs async code of the kit for a sync caller, in a loop of its own that stands still while sync code runs.

    So a sync handler finds the test's own thread (`django.db.connection`, a debugger) and no loop that is running, as
    in a worker. Raises `PgqueueError` under a loop that is running already.
    """
    if is_under_loop():
        raise PgqueueError(
            "an event loop is running in this thread: give an async connection and await the answer "
            "(perform_async(…) instead of perform(…)), or call it from a thread, with asyncio.to_thread(…)"
        )
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        loop = runner.get_loop()
        threads = OneAtATime(loop)
        working = loop.create_task(work(threads))
        try:
            threads.drive(cast(Any, working))
        finally:
            threads.is_over = True
            if working.done() and not working.cancelled():
                working.exception()  # an interrupt leaves the loop before anybody asks, of which asyncio would complain
        return working.result()


def is_under_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def in_this_loop(work: Callable[[Threads], Coroutine[Any, Any, T]]) -> T:
    """Runs async code of the kit for an async caller; sync handlers run in a thread beside, as in a worker."""
    threads = Threads(1)
    try:
        return await work(threads)
    finally:
        threads.stop()
