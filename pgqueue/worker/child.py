"""A worker process: one event loop, its services, and the way it ends.

Run by the supervisor as `python -m pgqueue.worker.child`; its orders come as one JSON line on stdin, and
after them one byte for each poke. When stdin ends the supervisor is gone, and the child goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Coroutine
from typing import Any

import msgspec
import structlog

from pgqueue import calls
from pgqueue.app import App
from pgqueue.errors import ConfigurationError, DatabaseUnavailable, UnknownWorker
from pgqueue.job import ClaimedJob
from pgqueue.observe.logging import configure_logging
from pgqueue.worker.attempts import Attempts
from pgqueue.worker.board import Board
from pgqueue.worker.claimer import Claimer
from pgqueue.worker.decide import RELEASED
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.executors.transactional import Transactions
from pgqueue.worker.hand import Hand, capacity
from pgqueue.worker.link import OUTAGES, Link, report_outage
from pgqueue.worker.listener import Listener
from pgqueue.worker.loading import load_app
from pgqueue.worker.orders import EXIT_CONFIGURATION, EXIT_REPLACE, Orders
from pgqueue.worker.settler import NO_CELL, Settler
from pgqueue.worker.slots import Slots

log = structlog.get_logger("pgqueue.worker")

UNKNOWN_TASK_SECONDS = 15.0
CANCELS_SECONDS = 5.0
"""While jobs run, requests to cancel are looked for so often, should a notification be lost."""
HOARD_SECONDS = 1.0
"""When no slot has taken a job for this long, what waits in the buffer goes back to the others."""


class Child:
    """The services of one worker, wired together."""

    def __init__(self, orders: Orders, app: App, board: Board):
        self.orders = orders
        pooled = not orders.listens
        self.hand = Hand(orders.concurrency, board)
        self._claims = Link(orders.dsn, name=f"pgqueue worker {orders.worker_id} claims", pooled=pooled)
        self._endings = Link(orders.dsn, name=f"pgqueue worker {orders.worker_id} endings", pooled=pooled)
        self.settler = Settler(link=self._endings, hand=self.hand)
        self.threads = Threads(orders.concurrency)
        self.transactions = Transactions(
            dsn=orders.dsn, size=orders.transactional_connections, threads=self.threads, pooled=pooled
        )
        attempts = Attempts(
            tasks=app.tasks,
            threads=self.threads,
            transactions=self.transactions,
            expire=self._end_if_expired,
            on_unknown_task=self._put_back_unknown,
        )
        self.slots = Slots(attempts=attempts, hand=self.hand, settler=self.settler, board=board)
        self.claimer = Claimer(
            link=self._claims,
            hand=self.hand,
            worker_id=orders.worker_id,
            limits=orders.limits,
            listens=orders.listens,
            poll_interval=orders.poll_interval,
        )
        self.is_replaced = False
        """Whether this process ends by itself, for another one to take its place."""
        self._cancels = asyncio.Event()
        self._lacking: set[str] = set()
        self._notes: set[asyncio.Task[None]] = set()
        self._stop_requests = 0
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Works until it is told to stop, then drains.

        Raises `UnknownWorker` when this worker was declared dead: what it holds belongs to others.
        """
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, self.stop)
        self._watch_supervisor()
        self.slots.start()
        services: list[Coroutine[Any, Any, None]] = [
            self.settler.run(),
            self.slots.sweep(),
            self._release_hoard(),
            self._follow_cancels(),
        ]
        if self.orders.listens:
            listener = Listener(
                dsn=self.orders.dsn,
                worker_id=self.orders.worker_id,
                poke=self.claimer.poke,
                look_for_cancels=self._cancels.set,
            )
            services.append(listener.run())
        running = [asyncio.create_task(run) for run in services]
        claiming = asyncio.create_task(self.claimer.run())
        stopping = asyncio.create_task(self._stopping.wait())
        stuck = asyncio.create_task(self.slots.stuck.wait())
        os.write(self.orders.ready_fd, b"1")
        # Of these only `stopping` and `stuck` end by themselves; the others raise when this worker cannot go on.
        serving = asyncio.create_task(self.slots.wait())
        running.append(serving)
        waited_for: list[asyncio.Future[Any]] = [claiming, stopping, stuck, *running]
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            for service in running:
                if service.done():
                    service.result()
            if stuck.done() and not stopping.done():
                self.is_replaced = True
                log.error(
                    "worker.stuck",
                    remedy="half of its slots are held by handlers that do not end; it is replaced",
                )
            self.claimer.stop()
            await asyncio.wait([claiming], timeout=5)
            if claiming.done():
                claiming.result()
            await self._drain(serving)
        finally:
            for task in waited_for:
                task.cancel()

    def stop(self) -> None:
        """The first time: drain. The second time: release and cancel what runs."""
        self._stop_requests += 1
        self._stopping.set()
        if self._stop_requests > 1:
            self._hurry.set()

    async def _drain(self, slots: asyncio.Task[None]) -> None:
        """Gives back what has not started, waits for what runs up to the limit, then cancels and releases it."""
        self._give_back_buffer()
        self.hand.close()
        self.slots.let_go()
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait(
            [slots, hurry], timeout=self.orders.drain_limit, return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
        if not slots.done():
            log.info("worker.releases", jobs=self.hand.running)
            self.slots.release()
            # A handler may take a moment to clean up; one that refuses to end ends with the process.
            await asyncio.wait([slots], timeout=2)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.orders.drain_limit):
                while self.hand.held > self.hand.running:
                    await self.settler.run_once()
                    await asyncio.sleep(0.01)
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

    async def _follow_cancels(self) -> None:
        """Cancels what somebody has asked for: when told, and while jobs run, now and then in case it was not."""
        pause = CANCELS_SECONDS if self.orders.listens else self.orders.poll_interval
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._cancels.wait()
            self._cancels.clear()
            if not self.hand.held:
                continue
            try:
                requests = await self._endings.run(calls.cancel_requests(self.orders.worker_id))
            except OUTAGES as error:
                report_outage("endings", error)
                continue
            if requests:
                self.slots.cancel(set(requests))

    async def _end_if_expired(self, job: ClaimedJob) -> bool:
        """Ends a job that may not start any more; whether it did."""
        try:
            ended = await self._endings.run(calls.end_expired([job.id], [job.lease]))
        except OUTAGES as error:
            report_outage("endings", error)  # a text that is no time, or no database: the job starts
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
                app=self.orders.app,
                remedy="deploy a worker whose app has this task, or register it; the job was put back",
            )
            note = asyncio.create_task(self._note_lack(job.task))
            self._notes.add(note)
            note.add_done_callback(self._notes.discard)
        return UNKNOWN_TASK_SECONDS * random.uniform(0.7, 1.3)

    async def _note_lack(self, task: str) -> None:
        try:
            await self._endings.run(calls.lack_task(self.orders.worker_id, task))
        except DatabaseUnavailable:
            self._lacking.discard(task)  # the next job of it tries again

    def _watch_supervisor(self) -> None:
        loop = asyncio.get_running_loop()

        def watch() -> None:
            while os.read(0, 4096):
                loop.call_soon_threadsafe(lambda: self.claimer.poke(forget_sleep=True))
            # No supervisor, no heartbeat: the jobs in hand would be run by others beside us.
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=watch, name="pgqueue-supervisor-watch", daemon=True).start()


def main() -> None:
    """The process: reads its orders, loads the app, works, and ends with an exit code that says why."""
    _die_with_parent()
    orders = msgspec.json.decode(_read_line(), type=Orders)
    configure_logging(format=orders.log_format, level=orders.log_level)
    structlog.contextvars.bind_contextvars(worker=orders.worker_id)
    board = Board(orders.board_fd, capacity(orders.concurrency))
    # For the app's own connections (`app.enqueue` in a handler), where the worker was given its DSN by flag.
    os.environ["PGQUEUE_DSN"] = orders.dsn
    try:
        app = load_app(orders.app)
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_CONFIGURATION)
    # What is loaded now stays: the collector need not look at it again, nor come after every 700 objects (11%
    # of the client's time for short jobs).
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_work(orders, app, board))


async def _work(orders: Orders, app: App, board: Board) -> None:
    code = 0
    try:
        child = Child(orders, app, board)
        await child.run()
        code = EXIT_REPLACE if child.is_replaced else 0
    except UnknownWorker as error:
        log.error("worker.declared_dead", error=str(error))
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # At once, from inside the loop: a thread that is stuck in a handler, or a coroutine that refuses its
    # cancellation, would keep the process, and its job is given back already.
    os._exit(code)


def _loop_factory() -> Any:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _read_line() -> bytes:
    """One line of stdin, byte by byte: what follows it is for the watcher."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"\n", b""):
        line += byte
    return bytes(line)


def _die_with_parent() -> None:
    """On Linux the kernel kills this process when its supervisor dies; elsewhere the end of stdin does."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main()
