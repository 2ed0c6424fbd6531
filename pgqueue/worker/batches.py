"""Gathers the jobs of a batch task, and runs its handler once for all of them.

Each job keeps its slot and ends by itself, so that leases, draining and cancelling are as for any other; a batch
is therefore never larger than the worker's concurrency.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from functools import partial
from typing import Any

from pgqueue.batch import BatchJob
from pgqueue.batch_task import BatchTask
from pgqueue.errors import TimedOut
from pgqueue.job import ClaimedJob
from pgqueue.worker.decide import COMPLETED, Ending, decide
from pgqueue.worker.executors.threads import Threads

_Entry = tuple[ClaimedJob, BatchJob[Any], "asyncio.Future[Ending]"]


class Collector:
    """The batches of one task, one after the other or side by side."""

    def __init__(self, task: BatchTask[Any, Any], threads: Threads, function: Callable[..., Any]):
        """`function` is called with the jobs of a batch, in a thread where the task is sync."""
        self._task = task
        self._function = function
        self._threads = threads
        self._gathered: list[_Entry] = []
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, job: ClaimedJob, item: Any) -> Ending:
        """The job's ending, once its batch has run. Cancelled, it leaves its batch, or what runs of it."""
        loop = asyncio.get_running_loop()
        entry: _Entry = (job, BatchJob(item, job), loop.create_future())
        self._gathered.append(entry)
        if len(self._gathered) >= self._task.size:
            self._start()
        elif self._timer is None:
            self._timer = loop.call_later(self._task.wait, self._start)
        try:
            return await entry[2]
        except asyncio.CancelledError:
            entry[1].is_cancelled = True
            if entry in self._gathered:
                self._gathered.remove(entry)
            raise

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._gathered = self._gathered, []
        if batch:
            running = asyncio.create_task(self._run(batch), name=f"pgqueue batch of {self._task.name}")
            self._running.add(running)
            running.add_done_callback(self._running.discard)
            for *_, future in batch:
                future.add_done_callback(partial(_abandon, running, batch))

    async def _run(self, batch: list[_Entry]) -> None:
        try:
            async with asyncio.timeout(self._task.timeout) as limit:
                await self._call([item for _, item, _ in batch])
        except BaseException as raised:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are the handler's too
            self._end(
                batch, TimedOut("the batch took longer than its timeout") if limit.expired() else raised
            )
        else:
            self._end(batch, None)

    def _end(self, batch: list[_Entry], error: BaseException | None) -> None:
        for job, item, future in batch:
            if not future.done():
                outcome = item.outcome or error
                future.set_result(COMPLETED if outcome is None else decide(job, self._task, outcome))

    async def _call(self, jobs: list[BatchJob[Any]]) -> None:
        if self._task.is_async:
            await self._function(jobs)
        else:
            await self._threads.run(contextvars.copy_context(), partial(self._function, jobs))


def _abandon(running: asyncio.Task[None], batch: list[_Entry], _done: asyncio.Future[Ending]) -> None:
    """Ends a handler that runs for nobody any more."""
    if not running.done() and all(future.cancelled() for *_, future in batch):
        running.cancel()
