"""The slots: long-lived asyncio tasks that take job after job from the hand and run it.

One sweeper looks after all their deadlines: no job has a task or a timer of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import structlog

from pgqueue.batch_task import BatchTask
from pgqueue.job import ClaimedJob
from pgqueue.worker.attempts import Attempts, Start
from pgqueue.worker.board import Board
from pgqueue.worker.decide import (
    CANCELLED,
    COMPLETED,
    Cancelled,
    Completed,
    Ending,
    Failed,
    Released,
    Snoozed,
    timeout_of,
)
from pgqueue.worker.hand import Hand
from pgqueue.worker.reports import Reports
from pgqueue.worker.settler import NO_CELL, Settler
from pgqueue.worker.slot import Slot, Stop

log = structlog.get_logger("pgqueue.worker")

ENDINGS = (Completed, Failed, Snoozed, Released, Cancelled)
BREATH = 64
"""After so many jobs in a row that never suspended, a slot lets the loop breathe."""
SWEEP_SECONDS = 0.1
"""While a running attempt has a deadline, the sweeper looks this often."""
GRACE_SECONDS = 3.0
"""What a handler that was cancelled gets to clean up, before its attempt is ended without it."""


class Slots:
    """`hand.concurrency` slots over one registry of tasks."""

    def __init__(
        self,
        *,
        attempts: Attempts,
        hand: Hand,
        settler: Settler,
        board: Board,
        reports: Reports | None = None,
        queue_timeouts: Mapping[str, float] = MappingProxyType({}),
        start: Start | None = None,
    ):
        """`start`: what begins an attempt, by default `attempts.start`."""
        self._attempts = attempts
        self._start = start or attempts.start
        self._hand = hand
        self._settler = settler
        self._board = board
        self._slots = [Slot(number, reports) for number in range(hand.concurrency)]
        self._timeouts = {
            name: int(task.timeout * 1e9)
            for name, task in attempts.tasks.items()
            if task.timeout is not None and not isinstance(task, BatchTask)  # a batch has one for all
        }
        self._batch_tasks = {name for name, task in attempts.tasks.items() if isinstance(task, BatchTask)}
        self._queue_timeouts = queue_timeouts
        self._armed = asyncio.Event()
        self.stuck = asyncio.Event()
        """Set when half of the slots are occupied by threads that nobody waits for: this process should go."""

    def start(self) -> None:
        """Starts the slots; each ends when the hand is closed and empty."""
        for slot in self._slots:
            slot.runner = asyncio.create_task(self._serve(slot), name=f"pgqueue slot {slot.number}")

    async def wait(self) -> None:
        """Waits until every slot has ended."""
        await asyncio.gather(*(slot.runner for slot in self._slots))

    def release(self) -> None:
        """Cancels what runs: each handler's cleanup runs, its job is released with the attempt given back."""
        for slot in self._slots:
            if slot.job is not None and slot.stop is None:
                slot.stop = Stop.DRAIN
            slot.runner.cancel()

    def let_go(self) -> None:
        """Waits no longer for handlers whose attempts have been ended without them."""
        for slot in self._slots:
            if slot.is_settled:
                slot.runner.cancel()

    def cancel(self, leases: Collection[tuple[int, int]]) -> None:
        """Cancels jobs, given as (id, lease): those that run are told, those that wait in the hand are ended."""
        for waiting in self._hand.take_out(leases):
            self._settler.settle(waiting, NO_CELL, CANCELLED)
        for slot in self._slots:
            job = slot.job
            if job is None or slot.stop is not None or (job.id, job.lease) not in leases:
                continue
            log.info("job.cancelling", job_id=job.id, task=job.task, queue=job.queue)
            if self._attempts.can_be_stopped(job):
                slot.interrupt(Stop.CANCEL)
                self._arm(slot, time.monotonic_ns() + self._grace(job))
            else:
                slot.stop = Stop.CANCEL  # it reads ctx.cancelled, or finishes

    def job_of(self, runner: asyncio.Task[Any]) -> ClaimedJob | None:
        """The job that a slot's own asyncio task runs; None: it is no slot's, or the slot is idle."""
        return next((slot.job for slot in self._slots if slot.runner is runner), None)

    def jobs(self) -> list[ClaimedJob]:
        """The jobs that are in slots."""
        return [slot.job for slot in self._slots if slot.job is not None]

    def in_threads(self) -> list[ClaimedJob]:
        """The jobs whose handlers run in threads."""
        return [job for job in self.jobs() if not self._attempts.can_be_stopped(job)]

    async def sweep(self) -> None:
        """Ends attempts whose time is over. Runs until cancelled, and sleeps while no attempt has a deadline."""
        while True:
            await self._armed.wait()
            now = time.monotonic_ns()
            armed = [slot for slot in self._slots if slot.deadline is not None]
            if not armed:
                self._armed.clear()
                continue
            for slot in armed:
                if slot.deadline is not None and slot.deadline <= now:
                    self._time_out(slot)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _serve(self, slot: Slot) -> None:
        hand, settler, start = self._hand, self._settler, self._start
        timeouts, deadlines, clock = self._timeouts, self._board.deadlines, time.monotonic_ns
        queue_timeouts = self._queue_timeouts
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
            slot.job, slot.cell = job, cell
            timeout = timeouts.get(job.task)
            if queue_timeouts and timeout is None:
                timeout = self._timeout_of_queue(job)
            if job.options is not None and (own := timeout_of(job, None)) is not None:
                timeout = int(own * 1e9)
            if timeout is not None:
                # The supervisor reads it: it is the one that can end a handler which blocks this process's loop.
                deadlines[cell] = due = clock() + timeout
            started = start(slot, job)
            ending: Ending | None
            if isinstance(started, ENDINGS):
                ending = started
            else:
                if timeout is not None and slot.deadline is None:
                    self._arm(slot, due)
                hand.wake_next()
                ending = await started
            hand.running -= 1
            slot.job = None
            slot.deadline = None
            if slot.stop is not None:
                slot.stop = None
                while slot.runner.cancelling():  # a handler may have swallowed its cancellation
                    slot.runner.uncancel()
                if slot.is_settled:
                    slot.is_settled = False
                    hand.has_room.set()
                    continue  # it was ended without the handler, which now comes too late; its cell is another's
            if timeout is not None:
                deadlines[cell] = 0
            if ending is COMPLETED:
                settler.completed(job, cell)
            elif ending is None:
                hand.settled((job,), (cell,))
            else:
                _log_failure(job, ending)
                settler.settle(job, cell, ending)

    def _timeout_of_queue(self, job: ClaimedJob) -> int | None:
        """Nanoseconds that the queue gives a job of which its task does not say."""
        timeout = self._queue_timeouts.get(job.queue)
        return None if timeout is None or job.task in self._batch_tasks else int(timeout * 1e9)

    def _grace(self, job: ClaimedJob) -> int:
        """Nanoseconds. Apart, the handler has its grace before its process is killed: the slot waits for that."""
        return int((2 if self._attempts.runs_apart(job) else 1) * GRACE_SECONDS * 1e9)

    def _arm(self, slot: Slot, due: int) -> None:
        slot.deadline = due
        if not self._armed.is_set():
            self._armed.set()

    def _time_out(self, slot: Slot) -> None:
        """The first time the handler is cancelled; the second time, or when it is a thread, left to itself."""
        job = slot.job
        assert job is not None
        if slot.stop is None and self._attempts.can_be_stopped(job):
            slot.interrupt(Stop.TIMEOUT)
            self._arm(slot, time.monotonic_ns() + self._grace(job))
            return
        ending = CANCELLED if slot.stop is Stop.CANCEL else self._attempts.timed_out(job)
        slot.stop = slot.stop or Stop.TIMEOUT
        slot.deadline, slot.is_settled = None, True
        self._board.deadlines[slot.cell] = 0
        _log_failure(job, ending)
        self._settler.settle(job, slot.cell, ending)
        left = [slot.job.task for slot in self._slots if slot.is_settled and slot.job is not None]
        log.error(
            "slot.stuck",
            job_id=job.id,
            task=job.task,
            stuck=len(left),
            slots=len(self._slots),
            remedy="the handler neither ended nor can be stopped: let it look at ctx.cancelled, give its own calls "
            "time-outs, or declare it executor='process'",
        )
        if 2 * len(left) >= len(self._slots):
            self.stuck.set()


def _log_failure(job: ClaimedJob, ending: Ending) -> None:
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
