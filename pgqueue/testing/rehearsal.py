"""A worker on the caller's connection: it runs one attempt after the other, and records what became of it.

What an attempt is, what its end means and how that is recorded is the worker's own code (`Attempts`, `Settler`).
What differs is where it runs: here, now, and in the caller's transaction.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

from pgqueue import calls
from pgqueue.app import App
from pgqueue.batch_task import BatchTask
from pgqueue.calls import Call
from pgqueue.drivers import is_async, run
from pgqueue.errors import LeaseLost, PgqueueError, TimedOut, UnknownTask, UnusableConnection
from pgqueue.invocation import handler_of
from pgqueue.job import ClaimedJob, JobState
from pgqueue.resources import Resources, complete
from pgqueue.testing.crashes import Point, arranged
from pgqueue.testing.lent import LentTransactions, lend
from pgqueue.testing.loops import is_under_loop
from pgqueue.testing.orm import expire, flush
from pgqueue.testing.watch import Watch, at
from pgqueue.version import __version__
from pgqueue.worker.attempts import Attempts
from pgqueue.worker.decide import Cancelled, Completed, Ending, Failed, Released, Snoozed, timeout_of
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.hand import Hand
from pgqueue.worker.link import Link, OutageLog
from pgqueue.worker.reports import Reports
from pgqueue.worker.settler import NO_CELL, Settler
from pgqueue.worker.slot import Slot, Stop
from pgqueue.worker.telling import Telling

T = TypeVar("T")

End: TypeAlias = Literal["completed", "failed", "dead", "snoozed", "cancelled", "crashed"]

LEASE_SECONDS = 300.0
"""How long others that work on the database believe in this worker: nobody beats for it."""
PUT_OFF_SECONDS = 15.0
"""How long a job waits whose task the app does not have, as with a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One attempt that `drain` or `run_one` has run.

    - `ended`: "completed"; "failed", with another attempt to come; "dead"; "snoozed"; "cancelled"; or "crashed", by
      `crash_after`.
    - `result`: what the handler returned; `error`: what it raised, or why it was not called.
    - `delay`: how many seconds the job was put off for, when it failed or was snoozed.
    """

    id: int
    task: str
    attempt: int
    ended: End
    result: Any = None
    error: BaseException | None = None
    delay: float | None = None


class Rehearsal:
    """Runs attempts of an app's tasks on a connection. Opened by `async with`, which registers the worker.

    At the end nothing of the worker is left: jobs that it holds go back, and so does its row.
    """

    def __init__(self, app: App, target: Any, threads: Threads):
        self._app = app
        self._target = target
        self._is_async = is_async(target)
        self._threads = threads
        self._watch = Watch()
        self._crashes = arranged.get()
        self._resources = Resources(app.providers)
        self._transactions = LentTransactions(target, threads, failed=self._watch.failed)
        self._telling = Telling(app.tasks, app.hooks)
        link = _CallersLink(self.run)
        self._reports = Reports(link) if self._is_async else _ReportsOfCaller(link)
        self._settler = Settler(
            link=link, hand=_NoHand(), on_ended=self._telling.ended, reports=self._reports
        )
        self._attempts = Attempts(
            tasks={name: self._watch.task(task) for name, task in app.tasks.items()},
            threads=threads,
            transactions=self._transactions,
            expire=self._end_if_expired,
            on_unknown_task=self._put_back_unknown,
            handler_of=lambda task: self._watch.handler(task, handler_of(app, task, self._resources)),
            telling=self._telling,
            on_ended=self._telling.ended,
        )
        self._worker_id = 0
        self._claimed: deque[ClaimedJob] = deque()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Rehearsal:
        await flush(self._target)
        (await self.run(calls.protocol())).check()
        await self._register()
        self._stack.enter_context(lend(self._app, self._target))
        self._stack.push_async_callback(self._transactions.close)
        self._stack.push_async_callback(self._resources.close)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self._stack.aclose()
        try:
            await self._rescue([])
        except PgqueueError:
            if kind is None:
                raise  # else what is raised already has broken the transaction, which takes the worker with it
        expire(self._target)

    async def run(self, call: Call[T]) -> T:
        """The value of a call, run on the caller's connection."""
        if self._is_async:
            return await run(self._target, call)
        ask = partial(run, self._target, call)
        # Where no loop is running, for Django refuses to work under one.
        value: T = await self._threads.run(contextvars.copy_context(), ask) if is_under_loop() else ask()
        return value

    async def next_jobs(self, queues: Sequence[str]) -> list[ClaimedJob]:
        """Claims what runs next: one job, or a batch of one task; nothing when nothing is ready."""
        if not self._claimed and queues:
            self._claimed.extend(await self._claim(queues, 1))
        if not self._claimed:
            return []
        first = self._claimed.popleft()
        task = self._attempts.tasks.get(first.task)
        if not isinstance(task, BatchTask):
            return [first]
        if len(self._claimed) < task.size - 1:
            self._claimed.extend(await self._claim([first.queue], task.size - 1 - len(self._claimed)))
        batch = [first, *(job for job in self._claimed if job.task == first.task)][: task.size]
        self._claimed = deque(job for job in self._claimed if job not in batch)
        return batch

    async def attempt(self, jobs: Sequence[ClaimedJob]) -> list[Ran]:
        """Runs an attempt of one job, or those of a batch together, and records how they ended."""
        if self._dies("claim", jobs[0]):
            return await self._crash(jobs, started=False)
        self._watch.begin(lambda job: self._dies("effects", job))
        endings = await asyncio.gather(*map(self._start, jobs))
        if self._watch.is_crashed:
            return await self._crash(jobs, started=True)
        for job, ending in zip(jobs, endings, strict=True):
            if ending is not None:
                self._settler.settle(job, NO_CELL, ending)
        try:
            await self._settler.run_once()
        except UnusableConnection:
            for error in self._watch.errors.values():
                error.add_note(
                    "pgqueue: the handler has left the transaction of the test aborted, so its failure is not recorded: "
                    "let it work in a savepoint, or on a connection of its own"
                )
                raise error from None
            raise
        ran = [await self._told(job, ending) for job, ending in zip(jobs, endings, strict=True)]
        await self._tell_hooks()
        if self._dies("completion", jobs[0]):
            await self._crash(jobs, started=True)
        return ran

    async def _start(self, job: ClaimedJob) -> Ending | None:
        at.set(job)
        runner = asyncio.current_task()
        assert runner is not None
        slot = Slot(0, self._reports)
        slot.job, slot.runner = job, runner
        task = self._attempts.tasks.get(job.task)
        timeout = None if task is None else timeout_of(job, task.timeout)
        timer = None
        if timeout is not None and self._attempts.can_be_stopped(job) and not isinstance(task, BatchTask):
            timer = asyncio.get_running_loop().call_later(timeout, slot.interrupt, Stop.TIMEOUT)
        try:
            started = self._attempts.start(slot, job)
            ending = await started if inspect.isawaitable(started) else started
        finally:
            slot.job = None
            if timer is not None:
                timer.cancel()
        if slot.stop is Stop.TIMEOUT and isinstance(ending, Failed):
            self._watch.errors[job.id] = TimedOut(f"the attempt took longer than its timeout, {timeout:g} s")
        return ending

    async def _told(self, job: ClaimedJob, ending: Ending | None) -> Ran:
        error = self._watch.errors.get(job.id)
        tell = partial(Ran, id=job.id, task=job.task, attempt=job.attempt, error=error)
        match ending:
            case None:  # settled already: in the task's own transaction, or because it had expired
                info = await self.run(calls.look([job.id]))
                state = info[0].state if info else None
                if state is JobState.CANCELLED:
                    return tell(ended="cancelled")
                if state is not JobState.COMPLETED:
                    return tell(
                        ended="failed", error=LeaseLost(f"job {job.id}: the lease was lost while it ran")
                    )
                return tell(ended="completed", result=self._watch.results.get(job.id))
            case Completed():
                return tell(ended="completed", result=self._watch.results.get(job.id))
            case Failed(delay=delay, error=text):
                if error is None:
                    tell = partial(tell, error=PgqueueError(f"{text.type}: {text.message}"))
                return tell(ended="dead" if delay is None else "failed", delay=delay)
            case Snoozed(delay=delay):
                return tell(ended="snoozed", delay=delay)
            case Released():
                return tell(ended="snoozed", delay=0.0)
            case Cancelled():
                return tell(ended="cancelled")

    # Death, as `crash_after` has arranged it

    def _dies(self, point: Point, job: ClaimedJob) -> bool:
        return self._crashes is not None and self._crashes.comes(point, job.task)

    async def _crash(self, jobs: Sequence[ClaimedJob], *, started: bool) -> list[Ran]:
        """What a supervisor does when a worker has died: takes its jobs back, and starts another one."""
        self._claimed.clear()
        await self._rescue([job.id for job in jobs] if started else [])
        if self._telling.tells_of_crashes:
            crashed = await self.run(calls.crashed_jobs([self._worker_id]))
            self._telling.crashed(crashed)
        await self._register()
        await self._tell_hooks()
        return [Ran(id=job.id, task=job.task, attempt=job.attempt, ended="crashed") for job in jobs]

    async def _tell_hooks(self) -> None:
        """Tells hooks what has happened, and waits for them: beside a job they would talk on its connection."""
        self._telling.start()
        await self._telling.close()

    # What a worker asks of the database

    async def _register(self) -> None:
        self._worker_id = await self.run(
            calls.register(
                supervisor_id=0,
                host="pgqueue.testing",
                pid=os.getpid(),
                version=__version__,
                queues=[],
                concurrency=1,
                lease=LEASE_SECONDS,
                session_lock=False,
            )
        )

    async def _rescue(self, started: Sequence[int]) -> None:
        await self.run(calls.rescue(self._worker_id, started, cause="was killed by crash_after"))

    async def _claim(self, queues: Sequence[str], most: int) -> list[ClaimedJob]:
        claim = calls.claim(
            worker_id=self._worker_id,
            queues=queues,
            limits=[most] * len(queues),
            max_jobs=most,
            cursors=[0] * 20 * len(queues),
            fence=secrets.randbits(64) - 2**63,
        )
        return await self.run(claim)

    async def _end_if_expired(self, job: ClaimedJob) -> bool:
        ended = await self.run(calls.end_expired([job.id], [job.lease]))
        return bool(ended)

    def _put_back_unknown(self, job: ClaimedJob) -> float:
        try:
            self._app.task_named(job.task)
        except UnknownTask as error:
            self._watch.errors[job.id] = error
        return PUT_OFF_SECONDS


class _CallersLink(Link):
    """The caller's connection in the place of one of the worker's own: it is asked once, and never opened again."""

    def __init__(self, run: Callable[[Call[Any]], Coroutine[Any, Any, Any]]):
        self._run_call = run
        self.outages = OutageLog("caller")

    async def run(self, call: Call[T]) -> T:
        value: T = await self._run_call(call)
        return value

    async def persist(self, call: Call[T]) -> tuple[T, bool]:
        return await self.run(call), False


class _ReportsOfCaller(Reports):
    """For handlers in the caller's thread, where no loop is running while they do."""

    def file_from_thread(self, job: ClaimedJob) -> None:
        complete(self.file([job], patient=False))


class _NoHand(Hand):
    """What is held is the rehearsal's own business; the settler only says when it is done with a job."""

    def __init__(self) -> None: ...

    def settled(self, jobs: Sequence[ClaimedJob], cells: Sequence[int]) -> None: ...
