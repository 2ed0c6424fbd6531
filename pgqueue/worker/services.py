"""The services of one worker, wired together: what claims, runs and settles jobs, and the way it drains.

Nothing here is of a process: no signals, no exit, no supervisor. `child` runs them in a process of their own,
`inprocess` in an application's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, cast

import msgspec
import psycopg
import structlog

from pgqueue import calls
from pgqueue.app import App
from pgqueue.calls import Call
from pgqueue.drivers import run
from pgqueue.errors import DatabaseUnavailable
from pgqueue.invocation import handler_of
from pgqueue.job import ClaimedJob
from pgqueue.resources import Resources
from pgqueue.worker.attempts import Attempts
from pgqueue.worker.board import Board
from pgqueue.worker.claimer import Claimer
from pgqueue.worker.decide import RELEASED
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.executors.transactional import Transactions
from pgqueue.worker.frames import Setup
from pgqueue.worker.hand import Hand
from pgqueue.worker.isolation import Isolation, cpus
from pgqueue.worker.link import OUTAGES, Link, OutageLog, keepalives
from pgqueue.worker.listener import COMMON_CHANNEL, Listener
from pgqueue.worker.measuring import Measuring, Report
from pgqueue.worker.orders import QueueTerms, Terms
from pgqueue.worker.reports import Reports
from pgqueue.worker.schedules import Schedules
from pgqueue.worker.settler import NO_CELL, OnEnded, Settler
from pgqueue.worker.slots import Slots
from pgqueue.worker.telling import Telling
from pgqueue.worker.watchdog import Watchdog

log = structlog.get_logger("pgqueue.worker")

UNKNOWN_TASK_SECONDS = 15.0
CANCELS_SECONDS = 5.0
"""While jobs run, requests to cancel are looked for so often, should a notification be lost."""
HOARD_SECONDS = 1.0
"""When no slot has taken a job for this long, what waits in the buffer goes back to the others."""
CLOSE_SECONDS = 3.0
"""What providers get to close what they have opened for the whole worker, and a last note to be written."""
CLEANUP_SECONDS = 2.0
"""What handlers that are cancelled at a worker's end get to clean up."""


class Services:
    """The services of the registered worker `terms.worker_id`, for the tasks of `app`.

    `run` works until `drain` is called; `hurry` cuts the draining short. `apart` is what the processes need to know
    that run jobs apart, at most `task_processes` for each kind (`isolation`), by default one for each processor;
    without it all jobs run in here. `report` is given what the jobs came to, once a second and at the end; without it
    nothing is measured.
    """

    def __init__(
        self,
        terms: Terms,
        app: App,
        board: Board,
        *,
        apart: Setup | None = None,
        task_processes: int | None = None,
        report: Report | None = None,
    ):
        self.terms = terms
        pooled = not terms.listens
        self.hand = Hand(terms.concurrency, board)
        self._queue_timeouts: dict[str, float] = {}
        self._claims = Link(terms.dsn, name=f"pgqueue worker {terms.worker_id} claims", pooled=pooled)
        self._endings = Link(terms.dsn, name=f"pgqueue worker {terms.worker_id} endings", pooled=pooled)
        self.telling = Telling(app.tasks, app.hooks)
        self._measuring = None if report is None else Measuring(report, board.capacity)
        on_ended: OnEnded = self.telling.ended
        if self._measuring is not None:
            on_ended = self._measuring.counted(on_ended)
        self.resources = Resources(app.providers)
        self.reports = Reports(self._endings)
        self.settler = Settler(link=self._endings, hand=self.hand, on_ended=on_ended, reports=self.reports)
        self.threads = Threads(terms.concurrency)
        self.transactions = Transactions(
            dsn=terms.dsn, size=terms.transactional_connections, threads=self.threads, pooled=pooled
        )
        self._isolation = (
            None
            if apart is None
            else Isolation(
                apart,
                task_processes or cpus(),
                board=board,
                expire=self._end_if_expired,
                telling=self.telling,
                on_ended=on_ended,
                queue_timeouts=self._queue_timeouts,
            )
        )
        attempts = Attempts(
            tasks=app.tasks,
            isolation=self._isolation,
            threads=self.threads,
            transactions=self.transactions,
            expire=self._end_if_expired,
            on_unknown_task=self._put_back_unknown,
            handler_of=partial(handler_of, app, resources=self.resources),
            telling=self.telling,
            on_ended=on_ended,
        )
        self.slots = Slots(
            attempts=attempts,
            hand=self.hand,
            settler=self.settler,
            board=board,
            reports=self.reports,
            queue_timeouts=self._queue_timeouts,
            start=None if self._measuring is None else self._measuring.timed(attempts.start),
        )
        self.watchdog = Watchdog(
            threshold=terms.block_threshold,
            hand=self.hand,
            slots=self.slots,
            threads=self.threads,
            note=self._note,
            note_now=self._note_now,
        )
        self.claimer = Claimer(
            link=self._claims,
            hand=self.hand,
            worker_id=terms.worker_id,
            limits=terms.limits,
            give_back=self._give_back,
            held=self._held,
            listens=terms.listens,
            poll_interval=terms.poll_interval,
            keyring=app.keyring,
        )
        self._schedules = Schedules(app, dsn=terms.dsn, worker_id=terms.worker_id, pooled=pooled)
        if terms.queue_terms:
            self.apply(terms.queue_terms)
        self._cancels = asyncio.Event()
        self._lacking: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, on_ready: Callable[[], object] = lambda: None) -> None:
        """Works until it is told to drain, then drains. `on_ready` is called when it has begun.

        Raises `UnknownWorker` when this worker was declared dead: what it holds belongs to others. That, or
        whatever else a service raised, leaves jobs and connections behind, which `abandon` lets go of.
        """
        self.telling.start()
        self.slots.start()
        self.watchdog.start()
        services: list[Coroutine[Any, Any, None]] = [
            self.settler.run(),
            self.reports.run(),
            self.slots.sweep(),
            self._release_hoard(),
            self._follow_cancels(),
        ]
        if self._measuring is not None:
            services.append(self._measuring.run())
        if self.terms.listens:
            channels = (COMMON_CHANNEL, f"pgqueue_{self.terms.worker_id}")
            listener = Listener(self.terms.dsn, channels, heard=self._heard, begun=self._listens_anew)
            services.append(listener.run())
        running = [asyncio.create_task(run) for run in services]
        claiming = asyncio.create_task(self.claimer.run())
        draining = asyncio.create_task(self._draining.wait())
        bringing = asyncio.create_task(self._schedules.run_once()) if self.terms.starts else None
        on_ready()
        # Of these only `draining` ends by itself; the others raise when this worker cannot go on.
        serving = asyncio.create_task(self.slots.wait())
        running.append(serving)
        waited_for: list[asyncio.Future[Any]] = [claiming, draining, *running]
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            for service in running:
                if service.done():
                    service.result()
            self.claimer.stop()
            await asyncio.wait([claiming], timeout=5)
            if claiming.done():
                claiming.result()
            await self._drain(serving)
        except BaseException:
            self.slots.release()  # handlers that are cancelled now have not failed
            raise
        finally:
            for task in waited_for:
                task.cancel()
            if bringing is not None:
                bringing.cancel()

    def _heard(self, payload: bytes) -> None:
        """There may be jobs, or some to cancel."""
        if payload == b"cancel":
            self._cancels.set()
        else:
            self.claimer.poke()

    def apply(self, queue_terms: Mapping[str, QueueTerms]) -> None:
        """Works by what operators have set for the queues, from the next claim and the next start on."""
        self._queue_timeouts.clear()
        self._queue_timeouts.update(
            (queue, terms.timeout) for queue, terms in queue_terms.items() if terms.timeout is not None
        )
        if self.claimer.limit({queue: terms.limit for queue, terms in queue_terms.items()}):
            self._give_back_buffer()  # what was claimed under a higher limit and has not begun
        log.info("queues.set", queues=msgspec.to_builtins(queue_terms))

    def _listens_anew(self) -> None:
        """Nobody has heard what was said meanwhile: register as asleep anew, and look."""
        self.claimer.poke(forget_sleep=True)
        self._cancels.set()

    @property
    def is_draining(self) -> bool:
        """Whether it was told to drain."""
        return self._draining.is_set()

    def drain(self) -> None:
        """Claims nothing more; jobs that run may end within the drain limit. `run` returns after that."""
        self._draining.set()

    def hurry(self) -> None:
        """Waits no longer for jobs that run: they are cancelled, and given back."""
        self._draining.set()
        self._hurry.set()

    async def abandon(self) -> None:
        """After `run` has raised: cancels what runs, records nothing of it, and closes the connections."""
        self.hand.close()
        self.hand.give_up()
        ending = asyncio.create_task(self.slots.wait())
        await asyncio.wait([ending], timeout=CLEANUP_SECONDS)
        if not ending.cancel() and not ending.cancelled():
            ending.exception()  # that of a slot was raised by `run` already
        await self._close()

    async def _drain(self, slots: asyncio.Task[None]) -> None:
        """Gives back what has not started, waits for what runs up to the limit, then cancels and releases it."""
        self._give_back_buffer()
        self.hand.close()
        self.slots.let_go()
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait(
            [slots, hurry], timeout=self.terms.drain_limit, return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
        if not slots.done():
            log.info("worker.releases", jobs=self.hand.running)
            self.slots.release()
            # A handler may take a moment to clean up; one that refuses to end ends with the process.
            await asyncio.wait([slots], timeout=CLEANUP_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.terms.drain_limit):
                while self.hand.held > self.hand.running:
                    await self.settler.run_once()
                    await asyncio.sleep(0.01)
        await self._close()

    def hear_of_rescue(self, worker_ids: Sequence[int]) -> None:
        """Jobs of these workers, which are dead, were taken back: hooks are told what has become of them."""
        if self.telling.tells_of_crashes:
            self._beside(self._tell_of_crashes(worker_ids))

    async def _tell_of_crashes(self, worker_ids: Sequence[int]) -> None:
        crashed, _ = await self._endings.persist(calls.crashed_jobs(worker_ids))
        self.telling.crashed(crashed)

    async def _close(self) -> None:
        self.watchdog.stop()
        if self._measuring is not None:
            self._measuring.report()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        await self.telling.close()
        closing = [self.resources.close()]
        if self._isolation is not None:
            closing.append(self._isolation.close())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*closing)
        self.threads.stop()
        await self.transactions.close()
        await self._claims.close()
        await self._endings.close()

    async def _release_hoard(self) -> None:
        while True:
            taken = self.hand.begun
            await asyncio.sleep(HOARD_SECONDS)
            if self.hand.waiting and self.hand.begun == taken:
                self._give_back_buffer()

    def _give_back_buffer(self) -> None:
        for job in self.hand.give_up():
            self.settler.settle(job, NO_CELL, RELEASED)

    def _give_back(self, leases: Collection[tuple[int, int]]) -> None:
        for job in self.hand.take_out(leases):
            self.settler.settle(job, NO_CELL, RELEASED)

    def _held(self) -> list[tuple[int, int]]:
        """What was claimed and not settled, as (id, lease)."""
        jobs = (*self.hand.waiting, *self.slots.jobs(), *self.settler.jobs())
        return [(job.id, job.lease) for job in jobs]

    async def _follow_cancels(self) -> None:
        """Cancels what somebody has asked for: when told, and while jobs run, now and then in case it was not."""
        pause = CANCELS_SECONDS if self.terms.listens else self.terms.poll_interval
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._cancels.wait()
            self._cancels.clear()
            if not self.hand.held:
                continue
            try:
                requests = await self._endings.run(calls.cancel_requests(self.terms.worker_id))
            except OUTAGES as error:
                self._endings.outages.report(error)
                continue
            if requests:
                self.slots.cancel(set(requests))

    async def _end_if_expired(self, job: ClaimedJob) -> bool:
        """Ends a job that may not start any more; whether it did."""
        try:
            ended = await self._endings.run(calls.end_expired([job.id], [job.lease]))
        except OUTAGES as error:
            self._endings.outages.report(error)  # a text that is no time, or no database: the job starts
            return False
        return bool(ended)

    def _put_back_unknown(self, job: ClaimedJob) -> float:
        """Notes that this app lacks the job's task; returns for how long to put the job off."""
        if job.task not in self._lacking:
            self._lacking.add(job.task)
            log.error(
                "task.unknown",
                job_id=job.id,
                task=job.task,
                queue=job.queue,
                app=self.terms.app,
                remedy="deploy a worker whose app has this task, or register it; the job was put back",
            )
            self._beside(self._note_lack(job.task))
        return UNKNOWN_TASK_SECONDS * random.uniform(0.7, 1.3)

    def _note(self, job: ClaimedJob, line: str) -> None:
        """Adds a line to the job's record."""
        self._beside(self._run_note(self._line(job, line)))

    async def _run_note(self, note: Call[None]) -> None:
        try:
            await self._endings.run(note)
        except OUTAGES as error:
            self._endings.outages.report(error)  # the log has the line

    def _note_now(self, job: ClaimedJob, line: str) -> None:
        """`_note` for another thread, while the loop does not run: on a connection of its own."""
        try:
            with psycopg.connect(self.terms.dsn, autocommit=True, **keepalives(self.terms.dsn)) as connection:
                run(connection, self._line(job, line))
        except OUTAGES as error:
            OutageLog("watchdog").report(error)

    def _line(self, job: ClaimedJob, line: str) -> Call[None]:
        worker_id = self.terms.worker_id
        return calls.note(job_id=job.id, worker_id=worker_id, attempt=job.attempt, level="warning", line=line)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _note_lack(self, task: str) -> None:
        try:
            await self._endings.run(calls.lack_task(self.terms.worker_id, task))
        except DatabaseUnavailable:
            self._lacking.discard(task)  # the next job of it tries again


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Makes the event loop of a process that is a worker's own."""
    if sys.platform == "win32":
        return None
    import uvloop

    return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)
