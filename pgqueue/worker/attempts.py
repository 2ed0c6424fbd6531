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

from pgqueue.batch_task import BatchTask
from pgqueue.context import Context, current_job
from pgqueue.encryption import is_sealed
from pgqueue.errors import ProcessDied, TimedOut
from pgqueue.invocation import Handler
from pgqueue.job import ClaimedJob
from pgqueue.task import Task
from pgqueue.worker.batches import Collector
from pgqueue.worker.decide import (
    CANCELLED,
    COMPLETED,
    RELEASED,
    Ending,
    Snoozed,
    decide,
    died,
    expires,
    is_suspect,
    keep,
    misfit,
    unopened,
)
from pgqueue.worker.executors.coroutines import InContext, run_in
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.executors.transactional import NotAccepted, NotStarted, Transactions
from pgqueue.worker.isolation import Isolation
from pgqueue.worker.link import OutageLog
from pgqueue.worker.settler import NO_CELL, OnEnded
from pgqueue.worker.slot import Slot, Stop
from pgqueue.worker.steps import Steps
from pgqueue.worker.telling import Telling

log = structlog.get_logger("pgqueue.worker")

Start: TypeAlias = Callable[[Slot, ClaimedJob], "Ending | Awaitable[Ending | None]"]


class Attempts:
    """Starts attempts of the tasks of one registry.

    `expire` ends a job that may not start any more, by the database's clock, and says whether it did;
    `on_unknown_task` is told of a job whose task is not among them, and says for how long to put it off;
    `handler_of` gives what is called for a task; `telling` tells hooks that an attempt begins; `on_ended` is told of
    endings that are not the settler's to record: completions in a job's own transaction, and jobs that had expired;
    `isolation` runs what is to run apart; without it everything runs in here.
    """

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task[..., Any]],
        threads: Threads,
        transactions: Transactions,
        expire: Callable[[ClaimedJob], Awaitable[bool]],
        on_unknown_task: Callable[[ClaimedJob], float],
        handler_of: Callable[[Task[..., Any]], Handler],
        telling: Telling | None = None,
        on_ended: OnEnded = lambda *_: None,
        isolation: Isolation | None = None,
    ):
        self.tasks = tasks
        self._isolation = isolation
        self._threads = threads
        self._transactions = transactions
        self._steps = Steps(transactions, tasks)
        self._expire = expire
        self._on_unknown_task = on_unknown_task
        self._handler_of = handler_of
        self._on_ended = on_ended
        self._outages = OutageLog("transactional")
        self._starts = {name: self._start_of(task) for name, task in tasks.items()}
        for name, task in tasks.items():
            if task.may_be_sealed:
                self._starts[name] = _unsealed(task, self._starts[name])
        if telling is not None:
            for name in telling.watched("started"):
                if isolation is None or tasks[name].executor != "process":  # which begins later
                    self._starts[name] = _told(self._starts[name], telling.started)

    def start(self, slot: Slot, job: ClaimedJob) -> Ending | Awaitable[Ending | None]:
        """Begins an attempt; its ending, or an awaitable of that when it has to be waited for.

        The awaitable gives None when the attempt is settled already, or no longer ours.
        """
        start = self._starts.get(job.task)
        if start is None:
            return Snoozed(self._on_unknown_task(job))
        if job.crashes:
            start = self._start_of_suspect(job, start)
        if job.options is not None and expires(job):
            return self._start_unless_expired(start, slot, job)
        return start(slot, job)

    def can_be_stopped(self, job: ClaimedJob) -> bool:
        """Whether cancelling the slot's runner reaches the handler. It does not reach a thread."""
        task = self.tasks.get(job.task)
        return task is None or task.executor == "async" or isinstance(task, BatchTask) or self.runs_apart(job)

    def runs_apart(self, job: ClaimedJob) -> bool:
        """Whether the job runs in a process of its own."""
        task = self.tasks.get(job.task)
        if self._isolation is None or task is None:
            return False
        return task.executor == "process" or is_suspect(job, task)

    def timed_out(self, job: ClaimedJob) -> Ending:
        """The ending of an attempt that took too long."""
        return decide(job, self.tasks[job.task], TimedOut("the attempt took longer than its timeout"))

    async def _start_unless_expired(self, start: Start, slot: Slot, job: ClaimedJob) -> Ending | None:
        if await self._expire(job):
            log.info("job.expired", job_id=job.id, task=job.task, queue=job.queue)
            self._on_ended("cancel", ((job, NO_CELL, "expired"),), (job.id,))
            return None
        started = start(slot, job)
        return await started if inspect.isawaitable(started) else started

    def _start_of(self, task: Task[..., Any]) -> Start:
        if task.executor == "process" and self._isolation is not None:
            return partial(self._start_apart, task, self._isolation)
        if isinstance(task, BatchTask):
            collector = Collector(task, self._threads, self._handler_of(task).function)
            return _decoded(task, partial(self._start_in_batch, task, collector))
        if task.transactional:
            return _decoded(task, partial(self._start_transactional, task, self._handler_of(task)))
        if task.is_async:
            return self._coroutine_start(task)
        return _decoded(task, partial(self._start_thread, task, self._handler_of(task)))

    def _start_of_suspect(self, job: ClaimedJob, start: Start) -> Start:
        """How a job starts in which, or beside which, a worker process has died."""
        task = self.tasks[job.task]
        if task.on_crash == "dead":
            return self._start_never_again
        if self._isolation is None or not is_suspect(job, task):
            return start
        return partial(self._start_apart, task, self._isolation)

    def _start_never_again(self, _slot: Slot, job: ClaimedJob) -> Ending:
        """The database makes a dead letter of such a job, unless it was enqueued by somebody who did not say so."""
        return died(
            job, self.tasks[job.task], ProcessDied("the worker process died while it ran this job before")
        )

    def _start_apart(
        self, task: Task[..., Any], isolation: Isolation, slot: Slot, job: ClaimedJob
    ) -> Awaitable[Ending | None]:
        return self._wait_for_ending(task, slot, job, isolation.run(task, slot, job))

    def _coroutine_start(self, task: Task[..., Any]) -> Start:
        take_step = self._steps.take
        (function, takes_context), decode, keeps = self._handler_of(task), task.decode, task.keep_result

        # `_decoded` and `_context_of` written out: a call is 2 % of what the start of a no-op job costs.
        def start(slot: Slot, job: ClaimedJob) -> Ending | Awaitable[Ending | None]:
            try:
                args = decode(job.args)
            except Exception as error:  # noqa: BLE001 - InvalidArgs, or what a model's own validation raises
                return misfit(job, task, error)
            context = contextvars.copy_context()
            context.run(current_job.set, job)
            try:
                handler = (
                    function(Context(job, None, slot, take_step), **args)
                    if takes_context
                    else function(**args)
                )
                rest = run_in(handler, context)
            except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are the handler's too
                return decide(job, task, error)
            if type(rest) is InContext:
                return self._wait(slot, job, task, rest)
            return keep(job, task, rest) if keeps else COMPLETED

        return start

    def _start_thread(
        self, task: Task[..., Any], called: Handler, slot: Slot, job: ClaimedJob, args: dict[str, Any]
    ) -> Awaitable[Ending | None]:
        if called.takes_context:
            handler = partial(called.function, Context(job, None, slot, self._steps.take_sync), **args)
        else:
            handler = partial(called.function, **args)
        return self._wait(slot, job, task, self._threads.run(_context_of(job), handler))

    def _start_transactional(
        self, task: Task[..., Any], called: Handler, slot: Slot, job: ClaimedJob, args: dict[str, Any]
    ) -> Awaitable[Ending | None]:
        context = _context_of(job)

        def start(connection: Any) -> Any:
            return called.function(Context(job, connection, slot=slot), **args)

        # What the handler has said is written before its job completes, for then it is no longer running.
        def call(connection: Any) -> Any:
            result = start(connection)
            if slot.reports is not None:
                slot.reports.file_from_thread(job)
            return result

        async def call_async(connection: Any) -> Any:
            rest = run_in(start(connection), context)
            result = await rest if type(rest) is InContext else rest
            if slot.reports is not None and slot.reports.open:
                await slot.reports.file([job], patient=False)
            return result

        handler = call_async if task.is_async else call
        run = self._transactions.run(task, job, handler, context)
        return self._wait(slot, job, task, run, is_settled=True)

    def _start_in_batch(
        self,
        task: BatchTask[Any, Any],
        collector: Collector,
        slot: Slot,
        job: ClaimedJob,
        args: dict[str, Any],
    ) -> Awaitable[Ending | None]:
        return self._wait_for_ending(task, slot, job, collector.run(job, args["item"]))

    async def _wait_for_ending(
        self, task: Task[..., Any], slot: Slot, job: ClaimedJob, ending: Awaitable[Ending | None]
    ) -> Ending | None:
        try:
            return await ending
        except asyncio.CancelledError as error:
            return self._judge(slot, job, task, error)

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
            result = await rest
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are the handler's too
            return self._judge(slot, job, task, error)
        if is_settled:
            self._on_ended("complete", ((job, slot.cell),), (job.id,))
            return None
        return keep(job, task, result) if task.keep_result else COMPLETED

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
        if isinstance(error, NotStarted) and task.transactional:  # else it is a step that found no database
            self._outages.report(error)
            return Snoozed(1.0)
        if isinstance(error, NotAccepted):
            log.warning("lease.lost", job_id=job.id, task=job.task, queue=job.queue, dropped="transaction")
            return None
        return decide(job, task, error)


def _decoded(
    task: Task[..., Any], begin: Callable[[Slot, ClaimedJob, dict[str, Any]], Awaitable[Ending | None]]
) -> Start:
    """A start function out of one that takes the job's args; a job whose args do not fit does not begin."""
    decode = task.decode

    def decoded_start(slot: Slot, job: ClaimedJob) -> Ending | Awaitable[Ending | None]:
        try:
            args = decode(job.args)
        except Exception as error:  # noqa: BLE001 - InvalidArgs, or what a model's own validation raises
            return misfit(job, task, error)
        return begin(slot, job, args)

    return decoded_start


def _unsealed(task: Task[..., Any], start: Start) -> Start:
    """A start function for jobs that the claimer could open; the others do not begin."""

    def unsealed_start(slot: Slot, job: ClaimedJob) -> Ending | Awaitable[Ending | None]:
        return unopened(job, task) if is_sealed(job.args) else start(slot, job)

    return unsealed_start


def _context_of(job: ClaimedJob) -> contextvars.Context:
    """What a handler runs in: there, the job is the current one."""
    context = contextvars.copy_context()
    context.run(current_job.set, job)
    return context


def _told(start: Start, tell: Callable[[ClaimedJob], None]) -> Start:
    """A start function of a task whose hooks are told of each start."""

    def told_start(slot: Slot, job: ClaimedJob) -> Ending | Awaitable[Ending | None]:
        tell(job)
        return start(slot, job)

    return told_start
