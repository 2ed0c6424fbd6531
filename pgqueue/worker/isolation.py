"""What runs apart from a worker's other jobs, in a process of its own, and what becomes of it when that dies.

Two kinds do: jobs of tasks with `executor="process"`, and suspects: jobs in which, or beside which, worker processes
have died more than once. A suspect may be the one that kills; apart, it can only kill itself. Each kind has processes
of its own, so that neither waits for the other, nor dies of what the other left behind in a process.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import structlog

from pgqueue.errors import ProcessDied
from pgqueue.job import ClaimedJob
from pgqueue.task import Task
from pgqueue.worker.board import Board
from pgqueue.worker.decide import Ending, Snoozed, died, expires, timeout_of
from pgqueue.worker.executors.process import NotReady
from pgqueue.worker.executors.processes import Processes
from pgqueue.worker.frames import Setup, ending_of
from pgqueue.worker.saying import hear
from pgqueue.worker.settler import NO_CELL, OnEnded
from pgqueue.worker.slot import NEVER, Slot
from pgqueue.worker.telling import Telling

log = structlog.get_logger("pgqueue.worker")

SUSPECT_PATIENCE = 5.0
"""While as many suspects wait as there are processes for them, another one waits so long and is put off then, so that
suspects do not keep every slot from other jobs."""
PUT_OFF_SECONDS = 10.0
IDLE_SECONDS = 30.0
"""Suspects are rare: their processes end when there are no more."""
UNREADY_SECONDS = 10.0
"""When no process can be started, the job is put off for so long."""


def cpus() -> int:
    """The processors that this process may use: how many processes run jobs apart unless a setting says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Isolation:
    """Runs jobs apart, each kind in at most `size` processes at once.

    `expire` ends a job that may not start any more, and says whether it did; `telling` tells hooks of the start;
    `on_ended` is told of endings that are not the settler's to record.
    """

    def __init__(
        self,
        setup: Setup,
        size: int,
        *,
        board: Board,
        expire: Callable[[ClaimedJob], Awaitable[bool]],
        telling: Telling,
        on_ended: OnEnded,
        queue_timeouts: Mapping[str, float] = MappingProxyType({}),
    ):
        self._size = size
        self._processes = Processes(setup, size)
        self._suspects = Processes(setup, size, idle_seconds=IDLE_SECONDS)
        self._board = board
        self._expire = expire
        self._telling = telling
        self._on_ended = on_ended
        self._queue_timeouts = queue_timeouts

    async def run(self, task: Task[..., Any], slot: Slot, job: ClaimedJob) -> Ending | None:
        """The ending of an attempt; None when it is settled already, or no longer ours.

        Until there is a process for it the job has not started: its timeout does not count, and should the worker
        die it goes back untouched.
        """
        board, cell = self._board, slot.cell
        board.cells[cell] = 0
        timeout = timeout_of(job, task.timeout or self._queue_timeouts.get(job.queue))
        if timeout is not None:
            slot.deadline, board.deadlines[cell] = NEVER, 0
        asked = time.monotonic()
        pool = self._processes
        try:
            if task.executor == "process":
                process = await pool.take()
            else:
                pool = self._suspects
                process = await pool.take(None if pool.waiting < self._size else SUSPECT_PATIENCE)
        except NotReady as error:
            remedy = "see the log lines before this one: the app is loaded anew for each process"
            log.error("process.not_ready", job_id=job.id, task=job.task, error=str(error), remedy=remedy)
            return Snoozed(UNREADY_SECONDS * random.uniform(0.7, 1.3))
        if process is None:
            log.info(
                "job.put_off", job_id=job.id, task=job.task, reason="every process for suspects is taken"
            )
            return Snoozed(PUT_OFF_SECONDS * random.uniform(0.5, 1.5))
        try:
            if time.monotonic() - asked > 0.1 and expires(job) and await self._expire(job):
                log.info("job.expired", job_id=job.id, task=job.task, queue=job.queue)
                self._on_ended("cancel", ((job, NO_CELL, "expired"),), (job.id,))
                return None
            if job.task in self._telling.watched("started"):
                self._telling.started(job)
            board.cells[cell] = -job.id
            if timeout is not None and slot.stop is None:
                slot.deadline = board.deadlines[cell] = time.monotonic_ns() + int(timeout * 1e9)
            ended = await process.run(job, partial(hear, slot, job))
            if ended.has_completed:
                self._on_ended("complete", ((job, cell),), (job.id,))
            return ending_of(ended)
        except ProcessDied as error:
            return died(job, task, error)
        finally:
            pool.put_back(process)

    async def close(self) -> None:
        """Ends the processes: the idle ones close what they have open, those that run a job are killed."""
        await asyncio.gather(self._processes.close(), self._suspects.close())
