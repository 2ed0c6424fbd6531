"""Runs sync handlers in threads of their own; their answers reach the loop in batches."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context
from queue import SimpleQueue
from types import FrameType
from typing import Any

_Work = tuple["asyncio.Future[tuple[Any, BaseException | None]]", Context, Callable[[], Any]]


class Threads:
    """Up to `size` daemon threads, started when they are needed.

    Not `loop.run_in_executor`: that wakes the loop once a job, and a no-op job costs less than a wake-up.
    Here the answers gather while a wake-up is on its way.
    """

    def __init__(self, size: int):
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._answers: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._waking = False
        self._threads: list[threading.Thread] = []
        self._unanswered = 0

    async def run(self, context: Context, function: Callable[[], Any]) -> Any:
        """What `function` returns or raises, run in `context`.

        When the caller is cancelled the thread goes on, for it cannot be stopped; its answer is dropped.
        """
        future: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()
        self._unanswered += 1
        self._work.put((future, context, function))
        if self._unanswered > len(self._threads) and len(self._threads) < self._size:
            thread = threading.Thread(target=self._serve, name=f"pgqueue-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        value, error = await future
        if error is not None:
            # Hazard: a frame that an exception has come through and that holds it is freed by the garbage collector alone.
            try:
                raise error
            finally:
                del future, error
        return value

    def stop(self) -> None:
        """Ends the threads that are idle; a busy one ends with its job."""
        for _ in self._threads:
            self._work.put(None)

    @property
    def unanswered(self) -> int:
        """Jobs that are in a thread or on their way to or from one."""
        return self._unanswered

    def busy(self, frames: Mapping[int, FrameType]) -> list[int]:
        """The idents of those threads that run a function, by what `sys._current_frames()` gave."""
        idle = Threads._serve.__code__  # that of `SimpleQueue.get` has no frame
        idents = [thread.ident for thread in self._threads if thread.ident is not None]
        return [id for id in idents if id in frames and frames[id].f_code is not idle]

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            future, context, function = work
            value, error = None, None
            try:
                value = context.run(function)
            except BaseException as raised:  # noqa: BLE001 - SystemExit too: it is the job's, not the thread's
                error = raised
            self._answers.append((future, value, error))
            del work, future, context, function, value, error  # nothing of the job stays alive in here
            if not self._waking:
                self._waking = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    return  # the loop is closed: the worker has ended without us

    def _deliver(self) -> None:
        self._waking = False  # before the look: an answer that comes now asks for another wake-up
        while self._answers:
            future, value, error = self._answers.popleft()
            self._unanswered -= 1
            if not future.done():
                future.set_result((value, error))
