"""What a worker holds: the jobs that it has claimed and not settled, from claim to settlement."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Collection, Sequence
from operator import attrgetter

from pgqueue.job import ClaimedJob
from pgqueue.worker.board import Board

MAX_AHEAD = 2000
"""Jobs that may wait in the buffer, at the most."""
AHEAD_SECONDS = 0.05
"""The buffer holds what the slots will use in this time, so that long jobs are never hoarded."""
MAX_CLAIM = 1000
"""Jobs of one claim, at the most."""

_queue_of = attrgetter("queue")


def capacity(concurrency: int) -> int:
    """How many jobs a worker may hold: running, waiting, and ended but not yet settled."""
    return concurrency + 4 * MAX_AHEAD


class Hand:
    """The buffer between claimer and slots, and the counts that bound it.

    `held` counts what is claimed and not settled, `held_of` the same by queue, `running` what is in a slot,
    `begun` all that was ever started.
    """

    def __init__(self, concurrency: int, board: Board):
        self.concurrency = concurrency
        self.waiting: deque[ClaimedJob] = deque()
        self.held = 0
        self.held_of: Counter[str] = Counter()
        self.running = 0
        self.begun = 0
        self.has_room = asyncio.Event()
        self.closed = False
        self._board = board
        self._cells = list(range(board.capacity - 1, -1, -1))
        self._idle: deque[asyncio.Future[None]] = deque()
        self._low_water = 0
        self._sampled_ended = 0
        self._sampled_at = time.monotonic()
        self._rate = 0.0

    # What the claimer asks

    def room(self) -> int:
        """How many jobs the claimer should fetch now; 0: it should wait for `has_room`.

        A fetch waits until it is worth a round trip (half the buffer, or half of the largest claim), unless a
        slot stands idle.
        """
        waiting, free, ahead = len(self.waiting), self.concurrency - self.running, self._ahead()
        want = min(free + ahead - waiting, capacity(self.concurrency) - self.held, MAX_CLAIM)
        self._low_water = max((free + ahead) // 2, free + ahead - MAX_CLAIM // 2)
        if want > 0 and (waiting <= self._low_water or waiting < free):
            return want
        self.has_room.clear()
        return 0

    def put(self, jobs: Sequence[ClaimedJob]) -> None:
        """Takes a claim's jobs in and wakes a slot."""
        self.waiting.extend(jobs)
        self.held += len(jobs)
        self._board.in_hand = self.held
        self.held_of.update(map(_queue_of, jobs))
        self.wake_next()

    def give_up(self) -> list[ClaimedJob]:
        """Takes every job that no slot has begun out of the buffer, to be released."""
        jobs = list(self.waiting)
        self.waiting.clear()
        return jobs

    def take_out(self, leases: Collection[tuple[int, int]]) -> list[ClaimedJob]:
        """Takes those jobs, given as (id, lease), out of the buffer that no slot has begun."""
        out = [job for job in self.waiting if (job.id, job.lease) in leases]
        if out:
            self.waiting = deque(job for job in self.waiting if (job.id, job.lease) not in leases)
        return out

    # What a slot asks

    async def wait_for_job(self) -> bool:
        """Waits until the buffer may have a job; False when the worker stops and there will be none."""
        while not self.waiting:
            if self.closed:
                return False
            arrival = asyncio.get_running_loop().create_future()
            self._idle.append(arrival)
            try:
                await arrival
            except asyncio.CancelledError:
                if arrival.done() and not arrival.cancelled():
                    self.wake_next()  # the wake-up was ours; somebody else has to take the job
                raise
        return True

    def wake_next(self) -> None:
        """Wakes one idle slot if a job waits. A slot calls it before it waits for its own job.

        So the slots wake one after the other, and no more of them than have something to do: handlers that
        never suspend are all run by one slot.
        """
        if not self.waiting:
            return
        while self._idle:
            arrival = self._idle.popleft()
            if not arrival.done():
                arrival.set_result(None)
                return

    def take(self) -> tuple[ClaimedJob, int]:
        """The next job, and the cell of the board that says it has started."""
        waiting = self.waiting
        job = waiting.popleft()
        self.running += 1
        self.begun += 1
        cell = self._cells.pop()
        self._board.cells[cell] = job.id
        if len(waiting) <= self._low_water:
            self.has_room.set()
        return job, cell

    # What the settler says

    def settled(self, jobs: Sequence[ClaimedJob], cells: Sequence[int]) -> None:
        """The database knows the endings of these jobs; `cells` are those of the ones that had started."""
        board = self._board.cells
        for cell in cells:
            board[cell] = 0
        self._cells.extend(cells)
        self.held -= len(jobs)
        self._board.in_hand = self.held
        self.held_of.subtract(map(_queue_of, jobs))
        self.has_room.set()

    def close(self) -> None:
        """No more jobs: idle slots end."""
        self.closed = True
        for arrival in self._idle:
            if not arrival.done():
                arrival.set_result(None)

    def _ahead(self) -> int:
        now = time.monotonic()
        passed = now - self._sampled_at
        if passed >= 0.02:
            # Of endings, not of starts: fifty long jobs that start together say nothing of the next fifty.
            ended = self.begun - self.running
            rate = (ended - self._sampled_ended) / passed
            self._rate = rate if passed > 0.2 else (self._rate + rate) / 2
            self._sampled_ended, self._sampled_at = ended, now
        return min(MAX_AHEAD, int(self._rate * AHEAD_SECONDS))
