"""The supervisor: signals, heartbeats, upkeep, and the children's lives. It runs no user code.

Because it does not, a handler that blocks its loop or holds the GIL costs no lease: the beat goes on here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from pgqueue.errors import SchemaError
from pgqueue.hooks import Alert
from pgqueue.observe.tally import process_tally
from pgqueue.settings import Settings
from pgqueue.worker.board import Board
from pgqueue.worker.child_process import ChildProcess, ended_by, when_readable
from pgqueue.worker.hand import capacity
from pgqueue.worker.link import Backoff
from pgqueue.worker.measuring import FiguresReader
from pgqueue.worker.orders import EXIT_CONFIGURATION, EXIT_REPLACE, POKE, REWOUND, Orders, QueueTerms, line
from pgqueue.worker.upkeep import Upkeep, check_database

if TYPE_CHECKING:
    from pgqueue.metrics import Server

log = structlog.get_logger("pgqueue.worker")

HUNG_SECONDS = 3.5
"""Beyond the timeout of a job: a child that has not ended the attempt by then cannot, its loop is blocked."""
EXIT_REFUSED = 1
"""As at a start that the schema refuses."""
LIVE_SECONDS = 15.0
"""When its loop has not turned for so long, this process says that it should be replaced."""
KILL_GRACE = 10.0
"""Beyond the drain limit, a child gets this long to release what it holds before it is killed."""


class Supervisor:
    """Starts `settings.processes` children for an app and keeps them, until it is told to stop.

    `limits` maps each queue to the most jobs of it that one child runs at once, None: no own limit.
    """

    def __init__(self, *, app: str, settings: Settings, limits: Mapping[str, int | None]):
        if settings.dsn is None:
            raise ValueError("a supervisor needs a DSN")
        self._app = app
        self._settings = settings
        self._dsn = settings.dsn
        self._limits = dict(limits)
        self._queues = list(limits)
        self._children: dict[int, ChildProcess] = {}
        self._listens = True
        self._stops = 0
        self._stopping = asyncio.Event()
        self._exit_code = 0
        self._first_ready = asyncio.Event()
        self._untold: list[int] = []
        self._turned_at = time.monotonic()
        self._upkeep: Upkeep

    async def run(self) -> int:
        """Works until stopped; returns the exit code. Raises the errors of a start that cannot succeed."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.stop)
        self._listens = await check_database(self._dsn, self._settings)
        self._upkeep = Upkeep(
            dsn=self._dsn, settings=self._settings, queues=self._queues, listens=self._listens, wards=self
        )
        metrics = self._serve_metrics()
        services = [asyncio.create_task(service()) for service in (*self._upkeep.services(), self._watch)]
        keepers = [asyncio.create_task(self._keep(number)) for number in range(self._settings.processes)]
        keeping: asyncio.Future[Any] = asyncio.gather(*keepers)
        waited_for: list[asyncio.Future[Any]] = [*services, keeping]
        try:
            done, _ = await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a service never returns: it raised, and this supervisor cannot go on
        finally:
            for child in self._children.values():
                child.send(signal.SIGKILL)  # only after an error: a keeper ends with its child
            for task in (*services, *keepers):
                task.cancel()
            if metrics is not None:
                metrics.close()
            await self._upkeep.close()
        log.info("worker.stopped", exit_code=self._exit_code)
        return self._exit_code

    def stop(self) -> None:
        """The first time: children drain. The second: they cancel and release. The third: they are killed."""
        self._stops += 1
        self._stopping.set()
        log.info("worker.stopping", how=("drain", "cancel and release", "kill")[min(self._stops, 3) - 1])
        # Three different ones: two signals of one kind that come close together arrive as one.
        signum = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[min(self._stops, 3) - 1]
        for child in self._children.values():
            if signum == signal.SIGKILL:
                child.kill()
            else:
                child.send(signum)

    def _serve_metrics(self) -> Server | None:
        """Answers Prometheus and probes, in a thread: whoever asks keeps nobody here."""
        settings = self._settings
        if settings.metrics_port is None:
            return None
        from pgqueue.metrics import Endpoint, serve  # needs prometheus_client

        endpoint = Endpoint(self._dsn, process_tally, is_live=self._is_live, is_ready=self._is_ready)
        return serve(endpoint, settings.metrics_port, settings.metrics_host)

    def _is_live(self) -> bool:
        """Whether the loop turns; a database that is away is nothing that a new process would mend."""
        return time.monotonic() - self._turned_at < LIVE_SECONDS

    def _is_ready(self) -> bool:
        """Whether a child takes jobs."""
        return not self._stopping.is_set() and any(child.was_ready for child in [*self._children.values()])

    # Children

    async def _keep(self, number: int) -> None:
        """Runs one child after the other in this place."""
        backoff = Backoff(cap=30.0)
        if number:  # one at first: an app that cannot be loaded says so once
            await _either(self._stopping.wait(), self._first_ready.wait())
        while not self._stopping.is_set():
            starting = asyncio.create_task(self._start(number))
            await _either(starting, self._stopping.wait())
            await _either(starting, 3)
            if not starting.done():  # the database is away: there is nothing to drain
                starting.cancel()
                return
            child = starting.result()
            code = await self._outlive(child)
            if code == EXIT_CONFIGURATION and not child.was_ready and not self._stopping.is_set():
                self._exit_code = 2
                if self._stops == 0:
                    self.stop()
                return
            if self._stopping.is_set() or child.stopping.is_set():
                return
            if code == EXIT_REPLACE and child.has_left:
                continue
            log.error(
                "worker.child_died", worker=child.worker_id, pid=child.process.pid, ended_by=ended_by(code)
            )
            if time.monotonic() - child.started_at > 30:
                backoff = Backoff(cap=30.0)
            await _either(self._stopping.wait(), backoff.wait())

    async def _start(self, number: int) -> ChildProcess:
        settings = self._settings
        board = Board.create(capacity(settings.concurrency))
        ready_in, ready_out = os.pipe()
        figures_in, figures_out = os.pipe() if process_tally.is_wanted else (-1, -1)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pgqueue.worker.child",
            stdin=asyncio.subprocess.PIPE,
            pass_fds=(board.fd, ready_out) if figures_out < 0 else (board.fd, ready_out, figures_out),
            start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor, which tells the children
        )
        try:
            worker_id = await self._upkeep.register(process.pid)
        except BaseException:
            process.kill()  # it has no orders yet
            raise
        orders = Orders(
            worker_id=worker_id,
            dsn=self._dsn,
            app=self._app,
            limits=self._limits,
            concurrency=settings.concurrency,
            drain_limit=settings.drain_limit,
            listens=self._listens,
            poll_interval=settings.poll_interval,
            transactional_connections=settings.transactional_connections,
            block_threshold=settings.block_threshold,
            queue_terms=self._upkeep.queue_terms,
            starts=not self._first_ready.is_set(),
            task_processes=settings.task_processes,
            board_fd=board.fd,
            figures_fd=figures_out,
            ready_fd=ready_out,
            log_format=settings.log_format,
            log_level=settings.log_level,
        )
        os.close(ready_out)
        if figures_out >= 0:
            os.close(figures_out)
            FiguresReader(figures_in, process_tally.add)
        child = ChildProcess(number, worker_id, process, board, when_readable(ready_in))
        self._children[worker_id] = child
        child.tell(msgspec.json.encode(orders) + b"\n")
        if self._stops:
            child.send(signal.SIGTERM)
        child.ready.add_done_callback(lambda ready: self._note_ready(child, ready))
        return child

    def _note_ready(self, child: ChildProcess, ready: asyncio.Future[bytes]) -> None:
        if not ready.cancelled():
            self._first_ready.set()
            log.info(
                "worker.started",
                worker=child.worker_id,
                pid=child.process.pid,
                queues=self._queues,
                app=self._app,
            )
            if self._untold:
                self.rescued(())

    async def _outlive(self, child: ChildProcess) -> int:
        """Waits for a child's end and takes back what it held; returns its exit code."""
        ended = asyncio.create_task(child.process.wait())
        try:
            await _either(ended, self._stopping.wait(), child.stopping.wait())
            if not ended.done():
                patience = self._settings.drain_limit + KILL_GRACE
                await _either(ended, asyncio.sleep(patience))
                if not ended.done():
                    log.error("worker.child_killed", worker=child.worker_id, pid=child.process.pid)
                    child.kill()
            code = await ended
        finally:
            self._children.pop(child.worker_id, None)
        if not child.ready.done():
            child.ready.cancel()
        blamed, interrupted, cause = child.inquest(code)
        rescue = asyncio.create_task(
            self._upkeep.rescue(child.worker_id, blamed, interrupted=interrupted, cause=cause)
        )
        if self._stops:
            # On the way out: do not wait for a database that is away, the lease sees to the rest.
            await _either(rescue, 5)
            rescue.cancel()
        else:
            if rescued := await rescue:
                log.warning("jobs.rescued", worker=child.worker_id, jobs=rescued, started=len(blamed))
        child.board.close()
        return code

    # What upkeep asks of it

    def alive(self) -> list[int]:
        """The workers whose processes are not stopped."""
        return [child.worker_id for child in self._children.values() if not child.is_stopped]

    def holding(self) -> list[int]:
        """Those of them that hold jobs."""
        return [
            child.worker_id
            for child in self._children.values()
            if child.board.in_hand and not child.is_stopped
        ]

    def lost(self, worker_id: int) -> None:
        """A child that the database knows no more: its jobs belong to others, so it goes at once."""
        child = self._children.get(worker_id)
        if child is not None:
            log.error("worker.declared_dead", worker=worker_id, pid=child.process.pid)
            child.send(signal.SIGKILL)

    def look(self) -> None:
        """Pokes the children."""
        self._tell(POKE)

    def rewound(self) -> None:
        """Tells the children, in a line."""
        self._tell(REWOUND + b"\n")

    def apply(self, queue_terms: Mapping[str, QueueTerms]) -> None:
        """Tells the children, in a line."""
        self._tell(line(queue_terms))

    def _tell(self, words: bytes) -> None:
        for child in self._children.values():
            child.tell(words)

    def stop_asked(self, worker_id: int) -> None:
        """Drains a child for good; when all of them have ended so, this process ends too."""
        child = self._children.get(worker_id)
        if child is not None:
            log.info("worker.stopping", worker=worker_id, how="drain", asked_by="an operator")
            child.stopping.set()
            child.send(signal.SIGTERM)

    def refused(self, error: SchemaError) -> None:
        """Drains, and ends with an exit code that says that a new start would not help."""
        log.error("schema.refused", error=str(error))
        self._exit_code = EXIT_REFUSED
        if self._stops == 0:
            self.stop()

    def rescued(self, worker_ids: Sequence[int]) -> None:
        """Tells one child, or the next one that comes to work: hooks are user code."""
        self._untold = [*self._untold, *worker_ids][-1000:]
        for child in self._children.values():
            if child.listens:
                child.tell(b"".join(b"%d\n" % worker_id for worker_id in self._untold))
                self._untold.clear()
                return

    def hears_alerts(self) -> bool:
        """Whether a child that works has hooks for alerts."""
        return any(child.hears_alerts for child in self._children.values())

    def alerted(self, alerts: Sequence[Alert]) -> bool:
        """Tells one child, in a line."""
        for child in self._children.values():
            if child.hears_alerts:
                child.tell(line(alerts))
                return True
        return False

    async def _watch(self) -> None:
        """Kills a child that cannot end an attempt whose time is over: the handler blocks its loop."""
        while True:
            await asyncio.sleep(1.0)
            self._turned_at = time.monotonic()
            now = time.monotonic_ns() - int(HUNG_SECONDS * 1e9)
            for child in self._children.values():
                if not child.hung and (overdue := child.board.overdue(now)):
                    child.hung = overdue
                    log.error("worker.hung", worker=child.worker_id, pid=child.process.pid, job_ids=overdue)
                    child.send(signal.SIGKILL)


async def _either(*waited_for: Any) -> None:
    """Waits for the first of several awaitables or numbers of seconds; cancels the others but given tasks."""
    tasks, ours = [], []
    for awaitable in waited_for:
        if isinstance(awaitable, int | float):
            awaitable = asyncio.sleep(awaitable)
        if isinstance(awaitable, asyncio.Task):
            tasks.append(awaitable)
        else:
            ours.append(asyncio.ensure_future(awaitable))
    try:
        await asyncio.wait([*tasks, *ours], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in ours:
            task.cancel()
