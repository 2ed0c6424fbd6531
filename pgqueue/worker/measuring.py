"""What a worker's jobs come to, counted beside them when somebody wants metrics, and reported once a second.

A worker that nobody measures has none of this: not a branch of its slots asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import msgspec

from pgqueue.job import ClaimedJob
from pgqueue.observe.tally import TaskFigures
from pgqueue.worker.attempts import Start
from pgqueue.worker.decide import Ending
from pgqueue.worker.settler import NO_CELL, OnEnded
from pgqueue.worker.slot import Slot

REPORT_SECONDS = 1.0

Report = Callable[[list[TaskFigures]], object]

_OUTCOMES = {"complete": "completed", "cancel": "cancelled", "snooze": "snoozed", "release": "released"}


class Measuring:
    """Times the attempts of one worker and counts their endings; gives `report` what has gathered."""

    def __init__(self, report: Report, cells: int):
        self._report = report
        self._began = [0] * cells
        self._figures: dict[tuple[str, str], TaskFigures] = {}

    def timed(self, start: Start) -> Start:
        """`start`, with the time of it noted."""
        began, clock = self._began, time.monotonic_ns

        def timed_start(slot: Slot, job: ClaimedJob) -> Ending | Awaitable[Ending | None]:
            began[slot.cell] = clock()
            return start(slot, job)

        return timed_start

    def counted(self, on_ended: OnEnded) -> OnEnded:
        """`on_ended`, with every ending that was accepted counted."""

        def counted_end(verb: str, batch: Sequence[tuple[Any, ...]], accepted: Collection[int]) -> None:
            self._count(verb, batch, accepted)
            on_ended(verb, batch, accepted)

        return counted_end

    async def run(self) -> None:
        """Reports now and then, until cancelled."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self.report()

    def report(self) -> None:
        """Reports what has gathered."""
        if self._figures:
            figures, self._figures = self._figures, {}
            self._report(list(figures.values()))

    def _count(self, verb: str, batch: Sequence[tuple[Any, ...]], accepted: Collection[int]) -> None:
        now = time.monotonic_ns()
        kept = set(accepted)
        for job, cell, *how in batch:
            if job.id not in kept:
                continue
            kept.discard(job.id)  # the claim before this one may be in the same batch, its lease lost
            key = (job.queue, job.task)
            figures = self._figures.get(key)
            if figures is None:
                figures = self._figures[key] = TaskFigures(job.queue, job.task)
            outcome = _OUTCOMES.get(verb) or ("dead" if how[0].delay is None else "failed")
            figures.outcomes[outcome] = figures.outcomes.get(outcome, 0) + 1
            if cell != NO_CELL:
                figures.durations.observe((now - self._began[cell]) / 1e9)
                figures.waits.observe(job.waited)


class FiguresPipe:
    """The writing end of a child's reports: a JSON line each. What does not fit into the pipe now follows later."""

    def __init__(self, fd: int):
        self._fd = fd
        self._unsent = b""
        os.set_blocking(fd, False)

    def write(self, figures: list[TaskFigures]) -> None:
        """Sends a report. A supervisor that reads no more has gone, and so will this process."""
        self._unsent += msgspec.json.encode(figures) + b"\n"
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                self._unsent = self._unsent[os.write(self._fd, self._unsent) :]

    def close(self) -> None:
        """Sends the rest, however long that takes."""
        os.set_blocking(self._fd, True)
        with contextlib.suppress(BrokenPipeError):
            while self._unsent:
                self._unsent = self._unsent[os.write(self._fd, self._unsent) :]


_decoder = msgspec.json.Decoder(list[TaskFigures])


class FiguresReader:
    """The reading end: gives `add` each report that has come whole. A child that is killed takes its last second along."""

    def __init__(self, fd: int, add: Report):
        self._fd = fd
        self._add = add
        self._unread = b""
        os.set_blocking(fd, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def _read(self) -> None:
        told = os.read(self._fd, 1 << 16)
        if not told:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            return
        *lines, self._unread = (self._unread + told).split(b"\n")
        for line in lines:
            self._add(_decoder.decode(line))
