"""The slots: long-lived asyncio tasks that take job after job from the hand and run it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any

import structlog

from pgqueue.context import Context, current_job
from pgqueue.errors import LeaseLost
from pgqueue.job import ClaimedJob
from pgqueue.task import Task
from pgqueue.worker.decide import (
    COMPLETED,
    RELEASED,
    Completed,
    Ending,
    Failed,
    Released,
    Snoozed,
    decide,
    misfit,
)
from pgqueue.worker.executors.coroutines import run_in
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.executors.transactional import NotStarted, Transactions
from pgqueue.worker.hand import Hand
from pgqueue.worker.link import report_outage
from pgqueue.worker.settler import Settler

log = structlog.get_logger("pgqueue.worker")

ENDINGS = (Completed, Failed, Snoozed, Released)
BREATH = 64
"""After so many jobs in a row that never suspended, a slot lets the loop breathe."""


class Slots:
    """`hand.concurrency` slots over one registry of tasks."""

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task[..., Any]],
        hand: Hand,
        settler: Settler,
        threads: Threads,
        transactions: Transactions,
        on_unknown_task: Any,
    ):
        self._tasks = tasks
        self._hand = hand
        self._settler = settler
        self._threads = threads
        self._transactions = transactions
        self._on_unknown_task = on_unknown_task
        self._cancelling = False
        self._slots: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the slots; each ends when the hand is closed and empty."""
        self._slots = [
            asyncio.create_task(self._serve(), name=f"pgqueue slot {number}")
            for number in range(self._hand.concurrency)
        ]

    async def wait(self) -> None:
        """Waits until every slot has ended."""
        await asyncio.gather(*self._slots)

    def cancel(self) -> None:
        """Cancels what runs: each handler's cleanup runs, its job is released with the attempt given back."""
        self._cancelling = True
        for slot in self._slots:
            slot.cancel()

    async def _serve(self) -> None:
        hand, settler = self._hand, self._settler
        in_a_row = 0
        while True:
            if not hand.waiting:
                in_a_row = 0
                if not await hand.wait_for_job():
                    return
            elif in_a_row > BREATH:
                in_a_row = 0
                await asyncio.sleep(0)
                continue
            in_a_row += 1
            job, cell = hand.take()
            started = self._start(job)
            ending: Ending | None
            if isinstance(started, ENDINGS):
                ending = started
            else:
                hand.wake_next()
                ending = await started
            hand.running -= 1
            if ending is COMPLETED:
                settler.completed(job, cell)
            elif ending is None:
                hand.settled((job,), (cell,))
            else:
                settler.settle(job, cell, ending)

    def _start(self, job: ClaimedJob) -> Ending | Awaitable[Ending | None]:
        """Begins an attempt; its ending, or an awaitable of that when the attempt has to be waited for."""
        task = self._tasks.get(job.task)
        if task is None:
            return Snoozed(self._on_unknown_task(job))
        try:
            args = task.decode(job.args)
        except Exception as error:  # noqa: BLE001 - InvalidArgs, or what a model's own validation raises
            return self._note(job, misfit(error))
        context = contextvars.copy_context()
        context.run(current_job.set, job)
        if task.transactional:
            handler = self._handler(task, job, args, context)
            return self._wait(job, task, self._transactions.run(task, job, handler, context), ends=None)
        if not task.is_async:
            call = (
                partial(task.function, Context(job), **args)
                if task.takes_context
                else partial(task.function, **args)
            )
            return self._wait(job, task, self._threads.run(context, call))
        try:
            coroutine = task.function(Context(job), **args) if task.takes_context else task.function(**args)
            rest = run_in(coroutine, context)
        except BaseException as error:  # noqa: BLE001 - as in _wait
            return self._note(job, decide(job, task, error))
        return COMPLETED if rest is None else self._wait(job, task, rest)

    async def _wait(
        self, job: ClaimedJob, task: Task[..., Any], rest: Awaitable[Any], ends: Ending | None = COMPLETED
    ) -> Ending | None:
        """Waits for the rest of an attempt. None: it is settled already, or no longer ours."""
        try:
            await rest
            return ends
        except NotStarted as error:
            report_outage("transactional", error)
            return Snoozed(1.0)
        except LeaseLost as error:
            if not task.transactional:
                return self._note(job, decide(job, task, error))
            log.warning("lease.lost", job_id=job.id, task=job.task, queue=job.queue, dropped="transaction")
            return None
        except asyncio.CancelledError as error:
            if self._cancelling:
                return RELEASED
            # Nobody cancelled this slot: the handler raised it (a cancelled task of its own, say).
            return self._note(job, decide(job, task, error))
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are the handler's as well
            return self._note(job, decide(job, task, error))

    def _handler(
        self, task: Task[..., Any], job: ClaimedJob, args: dict[str, Any], context: contextvars.Context
    ) -> Any:
        """The handler of a transactional task, waiting for its connection."""

        def call(connection: Any) -> Any:
            if task.takes_context:
                return task.function(Context(job, connection), **args)
            return task.function(**args)

        async def call_async(connection: Any) -> None:
            if (rest := run_in(call(connection), context)) is not None:
                await rest

        return call_async if task.is_async else call

    def _note(self, job: ClaimedJob, ending: Ending) -> Ending:
        if isinstance(ending, Failed):
            dead = ending.delay is None
            log.log(
                40 if dead else 30,
                "job.dead" if dead else "job.failed",
                job_id=job.id,
                task=job.task,
                queue=job.queue,
                attempt=job.attempt,
                max_attempts=job.max_attempts,
                error=ending.error.type,
                message=ending.error.message[:500],
                reason=ending.reason if dead else None,
                retry_in=None if ending.delay is None else round(ending.delay, 3),
            )
        return ending
