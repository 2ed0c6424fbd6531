"""Fetches jobs into the hand, and falls asleep without losing a wake-up."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from typing import NamedTuple

import structlog

from pgqueue import calls
from pgqueue.calls import Call
from pgqueue.encryption import Keyring, is_sealed
from pgqueue.errors import CannotDecrypt, DatabaseUnavailable, UnknownWorker
from pgqueue.job import ClaimedJob
from pgqueue.worker.cursors import Cursors, Start
from pgqueue.worker.hand import Hand
from pgqueue.worker.link import OUTAGES, Backoff, Link

log = structlog.get_logger("pgqueue.worker")

_queue_of = attrgetter("queue")
BUSY_SECONDS = 0.2
"""A worker that has found jobs without a pause for this long is taken off the sleepers."""
FREQUENT = 20
"""After so many finds within 200 ms a worker looks by itself, until there are half as many: a NOTIFY for each job
would make the commits of the enqueuers wait for each other."""
LOOK_SECONDS = (0.005, 0.02)
"""The pause between such looks: halved by a find, doubled by an empty look."""
UNHEARD_SECONDS = 90.0
"""After this long a claim whose answer was lost is under way no more: the statement time-out is 60 s."""
FRUITLESS_LOOKS = 5
FLOOD_SECONDS = 0.05
"""After so many wake-ups in a row that led to nothing, a look costs this pause: hints are not trusted."""


class _Claim(NamedTuple):
    room: tuple[int, ...]
    call: Call[list[ClaimedJob]]
    fence: int
    walks: bool


class Claimer:
    """One service: `run_once` makes one claim; `run` repeats it, and sleeps in between when there is nothing.

    `limits` maps each queue to the most jobs of it that this worker runs at once, None: no own limit. `give_back` takes the
    leases of jobs in the hand that no slot has begun, and releases them. `held` says what this worker has claimed and not
    settled, as (id, lease). `keyring` opens args that are sealed; those that it cannot open stay so.
    """

    def __init__(
        self,
        *,
        link: Link,
        hand: Hand,
        worker_id: int,
        limits: Mapping[str, int | None],
        give_back: Callable[[Collection[tuple[int, int]]], None],
        held: Callable[[], Collection[tuple[int, int]]],
        listens: bool,
        poll_interval: float,
        keyring: Keyring | None = None,
    ):
        self._link = link
        self._hand = hand
        self._worker_id = worker_id
        self._give_back = give_back
        self._held = held
        self._in_doubt = False  # whether the database may think that we hold more than we do
        self._own_limits = dict(limits)
        self._limits = dict(limits)
        self._queues = list(limits)
        self._cursors = Cursors(self._queues)
        self._listens = listens
        self._poll_interval = poll_interval
        self._keyring = keyring
        self._poked = asyncio.Event()
        self._walked = False  # whether the last claim started at the floors
        self._open: list[str] = []  # the queues that had room at the last look
        self._asleep_for: set[str] = set()  # the queues that we are registered for as a sleeper
        self._asleep_at = 0.0
        self._writers: list[str] | None = None  # the lockers to wait for; None: not read yet
        self._busy_since: float | None = None
        self._finds: deque[float] = deque(maxlen=FREQUENT)
        self._look = LOOK_SECONDS[0]
        self._fruitless = 0
        self._loaded: _Claim | None = None
        self._stopping = False
        self._unheard: list[tuple[float, int]] = []  # claims whose answer was lost: when, and their fence
        self._asked_back: set[tuple[float, int]] = set()

    def poke(self, *, forget_sleep: bool = False) -> None:
        """There may be something: look. `forget_sleep`: the hints were lost, register again before sleeping."""
        if forget_sleep:
            self._asleep_for, self._writers = set(), None
        self._poked.set()

    def doubt(self) -> None:
        """The database may have come back in an earlier state: what we do not hold is given back before the next claim."""
        self._in_doubt = True
        self.poke(forget_sleep=True)
        self._hand.has_room.set()

    def limit(self, set_limits: Mapping[str, int | None]) -> bool:
        """Holds to what operators have set for queues as well, whichever is less; whether a queue has less than before."""
        before = self._limits
        self._limits = {
            queue: min((limit for limit in (own, set_limits.get(queue)) if limit is not None), default=None)
            for queue, own in self._own_limits.items()
        }
        if self._limits == before:
            return False
        self._loaded = None  # a claim made for other limits
        self._hand.has_room.set()
        self.poke()
        return any(
            limit is not None and ((was := before[queue]) is None or limit < was)
            for queue, limit in self._limits.items()
        )

    def stop(self) -> None:
        """No claim after this; `run` returns."""
        self._stopping = True
        self._poked.set()
        self._hand.has_room.set()

    async def run(self) -> None:
        """Claims until `stop`. Raises `UnknownWorker` when this worker was declared dead."""
        backoff = Backoff()
        while not self._stopping:
            try:
                if self._unheard:
                    await self._forget_unheard()
                if self._in_doubt:
                    await self._forget_unheld()
                room = self._room()
                if not any(room):
                    await self._wait_for_room()
                elif await self.run_once(room):
                    await self._note_busy()
                else:
                    await self._nap(room)
                backoff = Backoff()
            except UnknownWorker:
                raise
            except OUTAGES as error:
                self._link.outages.report(error)
                self._asleep_for, self._writers = set(), None
                await asyncio.sleep(backoff.wait())
        if self._asleep_for:
            with contextlib.suppress(*OUTAGES):  # a row that stays is stale in 25 s
                await self._link.run(calls.wake_up(self._worker_id))

    async def _forget_unheard(self) -> None:
        """Gives back what claims took whose answers were lost; once more when none of them can be under way."""
        for entry in list(self._unheard):
            since, fence = entry
            late = time.monotonic() - since > UNHEARD_SECONDS
            if late or entry not in self._asked_back:
                ids = await self._link.run(calls.forget_claim(self._worker_id, fence))
                self._asked_back.add(entry)
                if ids:
                    log.warning("claim.unheard", jobs=len(ids))
            if late:
                self._unheard.remove(entry)
                self._asked_back.discard(entry)

    async def _forget_unheld(self) -> None:
        """Gives back what has ended here, and is in our hands again for a database that has forgotten it.

        No claim is under way: what one would bring is held by nobody yet.
        """
        self._in_doubt = False
        held = [*self._held()]
        call = calls.forget_unheld(self._worker_id, [id for id, _ in held], [lease for _, lease in held])
        try:
            ids = await self._link.run(call)
        except BaseException:
            self._in_doubt = True
            raise
        if ids:
            log.warning("endings.forgotten", jobs=len(ids), job_ids=ids[:100])

    async def run_once(self, room: tuple[int, ...] | None = None) -> int:
        """One claim of what fits into the hand; returns how many jobs came."""
        room = room or self._room()
        next_claim, self._loaded = self._loaded, None
        if next_claim is None or next_claim.room != room:
            next_claim = self._load(room)
        self._poked.clear()
        started = time.monotonic()
        self._walked = next_claim.walks
        max_jobs = room[-1]
        limits = self._limits
        try:
            jobs = await self._link.run(next_claim.call)
        except DatabaseUnavailable:
            # It may have been carried out: jobs that nobody knows of, held by a worker that is alive.
            self._unheard.append((time.monotonic(), next_claim.fence))
            raise
        if jobs:
            self._hand.put(jobs if self._keyring is None else [_opened(self._keyring, job) for job in jobs])
            if self._limits is not limits:
                self._give_back_what_is_over()
            if len(jobs) < max_jobs:
                await asyncio.sleep(0)  # the slots begin before the next claim is built and sent
            self._cursors.move(jobs)
        queues = self._queues
        now = time.monotonic()
        if self._walked:
            self._cursors.walked(now - started, now)
        came = Counter(map(_queue_of, jobs))
        short = Start.TRAIL if self._found(FREQUENT // 2) else Start.FLOOR
        for queue, limit in zip(queues, room, strict=False):
            is_full = len(jobs) == max_jobs or came[queue] >= limit > 0
            self._cursors.start_at(Start.HEAD if is_full else short, queue)
        # Who was served goes to the end, so that none starves. (Turning the list by one instead would give a
        # queue that follows empty ones their turns as well.)
        for queue in came:
            queues.remove(queue)
            queues.append(queue)
        return len(jobs)

    def _give_back_what_is_over(self) -> None:
        """While the claim was under way an operator has set other limits; no slot has begun any of its jobs yet."""
        over = []
        held_of = Counter(self._hand.held_of)
        for job in reversed(self._hand.waiting):
            limit = self._limits[job.queue]
            if limit is not None and held_of[job.queue] > limit:
                held_of[job.queue] -= 1
                over.append((job.id, job.lease))
        self._give_back(over)

    def _load(self, room: tuple[int, ...]) -> _Claim:
        """The next claim, ready to be sent."""
        self._cursors.begin(time.monotonic())
        fence = secrets.randbits(64) - 2**63
        call = calls.claim(
            worker_id=self._worker_id,
            queues=self._queues,
            limits=room[:-1],
            max_jobs=room[-1],
            cursors=self._cursors.positions(self._queues),
            fence=fence,
        )
        return _Claim(room, call, fence, self._cursors.walks(self._open))

    def _room(self) -> tuple[int, ...]:
        """How many jobs may be claimed of each queue, in the order of the queues, and in all; all 0: none."""
        room = self._hand.room()
        held_of = self._hand.held_of
        limits = [
            room if (limit := self._limits[queue]) is None else max(0, min(room, limit - held_of[queue]))
            for queue in self._queues
        ]
        self._open = [queue for queue, limit in zip(self._queues, limits, strict=True) if limit]
        if len(self._open) < len(limits):
            self._hand.has_room.clear()  # the next settled job may open a queue that is at its limit
        return (*limits, room) if self._open else (0,)

    async def _wait_for_room(self) -> None:
        if self._asleep_for and not await _within(self._hand.has_room, 0.05):
            # All slots are taken for a while: hints are for somebody who has room.
            await self._wake_up()
        await self._hand.has_room.wait()

    async def _note_busy(self) -> None:
        now = time.monotonic()
        self._fruitless = 0
        self._finds.append(now)
        self._look = max(LOOK_SECONDS[0], self._look / 2)
        if self._busy_since is None:
            self._busy_since = now
        if self._asleep_for and (now - self._busy_since > BUSY_SECONDS or self._found(FREQUENT)):
            await self._wake_up()

    def _found(self, finds: int) -> bool:
        """Whether there were so many finds within the last 200 ms."""
        return len(self._finds) >= finds and time.monotonic() - self._finds[-finds] < BUSY_SECONDS

    async def _wake_up(self) -> None:
        self._asleep_for, self._writers = set(), None
        await self._link.run(calls.wake_up(self._worker_id))

    async def _nap(self, room: tuple[int, ...]) -> None:
        """A claim found nothing: one step towards sleep, or sleep itself (see `sql/…/sleep.sql`)."""
        self._busy_since = None
        if not self._listens:
            await self._hint(self._poll_interval * random.uniform(0.8, 1.2))
        elif not self._asleep_for and self._found(FREQUENT // 2):
            await self._hint(self._look)
            self._look = min(LOOK_SECONDS[1], self._look * 2)
        elif not self._walked:
            for queue in self._queues:  # the look before sleep starts at the floors
                self._cursors.start_at(Start.FLOOR, queue)
        elif self._asleep_for != set(self._open):
            # Registered for the queues that have room alone: a hint for another one is somebody else's.
            pause = self._asleep_at + BUSY_SECONDS - time.monotonic()
            if pause > 0:  # at most 5 registrations a second
                await self._hint(pause)
            self._asleep_at = time.monotonic()
            queues = set(self._open)
            await self._link.run(calls.fall_asleep(self._worker_id, sorted(queues)))
            self._asleep_for = queues
            self._writers = await self._link.run(calls.writers("ready_jobs"))
            # and look again: `run` does
        elif self._writers:
            # An enqueuer that may have overlooked us has not committed yet.
            slept = time.monotonic() - self._asleep_at
            await self._hint(min(0.25, max(0.002, slept / 4)))
            self._writers = await self._link.run(calls.writers("ready_jobs", self._writers))
            # and look again: the last look comes after the test that found them gone
        else:
            self._fruitless += 1
            if self._fruitless > FRUITLESS_LOOKS:
                await asyncio.sleep(FLOOD_SECONDS)
            self._loaded = self._load(room)  # what can be done before the hint need not be done after it
            await self._hint(None)

    async def _hint(self, timeout: float | None) -> None:
        """Waits until there may be something to claim, at most `timeout` seconds.

        That is a poke, or, while a queue is at its limit, a job that was settled.
        """
        if len(self._open) == len(self._queues):
            await _within(self._poked, timeout)
            return
        waits = [asyncio.ensure_future(event.wait()) for event in (self._poked, self._hand.has_room)]
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


async def _within(event: asyncio.Event, seconds: float | None) -> bool:
    """Waits for an event, at most `seconds`; whether it came."""
    if seconds is None:
        return await event.wait()
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _opened(keyring: Keyring, job: ClaimedJob) -> ClaimedJob:
    if not is_sealed(job.args):
        return job
    with contextlib.suppress(CannotDecrypt):  # the attempt says what is wrong with them (decide.unopened)
        return job._replace(args=keyring.open(job.args, "args", job.task, job.queue))
    return job
