"""How an attempt begins and what its end means: for each task one function, made once, that starts its handler.

What it returns is the attempt's ending, when the handler has run to its end already, or an awaitable of it. A
plain task pays for nothing that it does not use.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import structlog

from pgqueue.context import Context, current_job
from pgqueue.errors import LeaseLost, TimedOut
from pgqueue.job import ClaimedJob
from pgqueue.task import Task
from pgqueue.worker.decide import CANCELLED, COMPLETED, RELEASED, Ending, Snoozed, decide, expires, misfit
from pgqueue.worker.executors.coroutines import run_in
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.executors.transactional import NotStarted, Transactions
from pgqueue.worker.link import report_outage
from pgqueue.worker.slot import Slot, Stop

log = structlog.get_logger("pgqueue.worker")

Start: TypeAlias = Callable[[Slot, ClaimedJob], "Ending | Awaitable[Ending | None]"]


class Attempts:
    """Starts attempts of the tasks of one registry.

    `expire` ends a job that may not start any more, by the database's clock, and says whether it did;
    `on_unknown_task` is told of a job whose task is not among them, and says for how long to put it off.
    """

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task[..., Any]],
        threads: Threads,
        transactions: Transactions,
        expire: Callable[[ClaimedJob], Awaitable[bool]],
        on_unknown_task: Callable[[ClaimedJob], float],
    ):
        self.tasks = tasks
        self._threads = threads
        self._transactions = transactions
        self._expire = expire
        self._on_unknown_task = on_unknown_task
        self._starts = {name: self._start_of(task) for name, task in tasks.items()}

    def start(self, slot: Slot, job: ClaimedJob) -> Ending | Awaitable[Ending | None]:
        """Begins an attempt; its ending, or an awaitable of that when it has to be waited for.

        The awaitable gives None when the attempt is settled already, or no longer ours.
        """
        start = self._starts.get(job.task)
        if start is None:
            return Snoozed(self._on_unknown_task(job))
        if job.options is not None and expires(job):
            return self._start_unless_expired(start, slot, job)
        return start(slot, job)

    def can_be_stopped(self, job: ClaimedJob) -> bool:
        """Whether cancelling the slot's runner reaches the handler. It does not reach a thread."""
        task = self.tasks.get(job.task)
        return task is None or task.executor != "thread"

    def timed_out(self, job: ClaimedJob) -> Ending:
        """The ending of an attempt that took too long."""
        return decide(job, self.tasks[job.task], TimedOut("the attempt took longer than its timeout"))

    async def _start_unless_expired(self, start: Start, slot: Slot, job: ClaimedJob) -> Ending | None:
        if await self._expire(job):
            log.info("job.expired", job_id=job.id, task=job.task, queue=job.queue)
            return None
        started = start(slot, job)
        return await started if inspect.isawaitable(started) else started

    def _start_of(self, task: Task[..., Any]) -> Start:
        if task.transactional:
            return partial(self._start_transactional, task)
        if task.is_async:
            return self._coroutine_start(task)
        return partial(self._start_thread, task)

    def _coroutine_start(self, task: Task[..., Any]) -> Start:
        function, decode, takes_context = task.function, task.decode, task.takes_context

        def start(slot: Slot, job: ClaimedJob) -> Ending | Awaitable[Ending | None]:
            try:
                args = decode(job.args)
            except Exception as error:  # noqa: BLE001 - InvalidArgs, or what a model's own validation raises
                return misfit(error)
            context = contextvars.copy_context()
            context.run(current_job.set, job)
            try:
                handler = function(Context(job, slot=slot), **args) if takes_context else function(**args)
                rest = run_in(handler, context)
            except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are the handler's too
                return decide(job, task, error)
            return COMPLETED if rest is None else self._wait(slot, job, task, rest)

        return start

    def _start_thread(
        self, task: Task[..., Any], slot: Slot, job: ClaimedJob
    ) -> Ending | Awaitable[Ending | None]:
        try:
            args = task.decode(job.args)
        except Exception as error:  # noqa: BLE001 - as above
            return misfit(error)
        context = contextvars.copy_context()
        context.run(current_job.set, job)
        if task.takes_context:
            handler = partial(task.function, Context(job, slot=slot), **args)
        else:
            handler = partial(task.function, **args)
        return self._wait(slot, job, task, self._threads.run(context, handler))

    def _start_transactional(
        self, task: Task[..., Any], slot: Slot, job: ClaimedJob
    ) -> Ending | Awaitable[Ending | None]:
        try:
            args = task.decode(job.args)
        except Exception as error:  # noqa: BLE001 - as above
            return misfit(error)
        context = contextvars.copy_context()
        context.run(current_job.set, job)

        def call(connection: Any) -> Any:
            return task.function(Context(job, connection, slot=slot), **args)

        async def call_async(connection: Any) -> None:
            if (rest := run_in(call(connection), context)) is not None:
                await rest

        handler = call_async if task.is_async else call
        run = self._transactions.run(task, job, handler, context)
        return self._wait(slot, job, task, run, is_settled=True)

    async def _wait(
        self,
        slot: Slot,
        job: ClaimedJob,
        task: Task[..., Any],
        rest: Awaitable[Any],
        *,
        is_settled: bool = False,
    ) -> Ending | None:
        """Waits for the rest of an attempt. `is_settled`: its return means that its completion is recorded."""
        try:
            await rest
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are the handler's too
            return self._judge(slot, job, task, error)
        return None if is_settled else COMPLETED

    def _judge(
        self, slot: Slot, job: ClaimedJob, task: Task[..., Any], error: BaseException
    ) -> Ending | None:
        """What it means that the handler raised."""
        if slot.stop is not None:
            if isinstance(error, asyncio.CancelledError):
                slot.runner.uncancel()  # the slot goes on with other jobs
                match slot.stop:
                    case Stop.DRAIN:
                        return RELEASED
                    case Stop.TIMEOUT:
                        return self.timed_out(job)
            if slot.stop is Stop.CANCEL:
                return CANCELLED
        if isinstance(error, NotStarted):
            report_outage("transactional", error)
            return Snoozed(1.0)
        if isinstance(error, LeaseLost) and task.transactional:
            log.warning("lease.lost", job_id=job.id, task=job.task, queue=job.queue, dropped="transaction")
            return None
        return decide(job, task, error)
