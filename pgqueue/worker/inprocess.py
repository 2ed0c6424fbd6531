"""A worker inside of an application's own process and event loop: `async with pgqueue.Worker(app): …`.

The services are those of a worker process (`services`). What the supervisor does for children, a thread does here
(`keeper`), with a loop and connections of its own: a handler that blocks the application's loop costs no lease.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from asyncio import CancelledError
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import structlog

from pgqueue.app import App
from pgqueue.errors import MissingDSN, SchemaError, UnknownWorker
from pgqueue.hooks import Alert
from pgqueue.invocation import check
from pgqueue.observe.logging import configure_logging
from pgqueue.observe.tally import process_tally
from pgqueue.settings import Settings, override
from pgqueue.worker.board import Board
from pgqueue.worker.frames import Setup
from pgqueue.worker.hand import capacity
from pgqueue.worker.keeper import Keeper
from pgqueue.worker.link import Backoff
from pgqueue.worker.loading import path_of
from pgqueue.worker.orders import QueueTerms, Terms
from pgqueue.worker.schedules import check_name
from pgqueue.worker.services import Services, loop_factory

T = TypeVar("T")

log = structlog.get_logger("pgqueue.worker")

STEADY_SECONDS = 30.0
"""Services that have worked for so long are started anew at once when they fail, not after a growing wait."""


class Worker:
    """Runs the jobs of `app` inside of this process: in a web application, a script, a test.

        async def lifespan(application):
            async with pgqueue.Worker(app, queues={"email": 20, "default": None}, concurrency=10):
                yield

        pgqueue.Worker(app).run()                     # a script that is nothing but a worker

    - `queues`: what to serve: names, or a mapping of each to the most jobs of it that run at once (None: no own
      limit); by default the setting `queues`.
    - `concurrency`: slots, 1 to 10,000; by default the setting.
    - `drain_limit`: how long the end of the block waits for jobs that run (seconds, a timedelta or text such as
      "10s"); by default the setting, 25 s.

    At the end of the block no job is claimed any more, and those that run may end; what is left at the drain limit
    is cancelled and given back, its attempt too. That holds when the block raises or is cancelled; cancelled once
    more, it waits no longer. The database may go away and come back meanwhile. A worker that cannot go on says so
    in the log, and is started anew.

    Several may run in one process. Each has a thread that beats for it, and takes five connections (four where
    LISTEN does not work), and one more for each transactional job at a time.

    What a process of its own (`pgqueue worker`) does and this cannot: end a handler that blocks the loop, or a
    thread; replace a process whose slots are stuck; survive a job that ends the process; keep the lease of a job
    that holds the interpreter's lock for longer than that.

    Raises `ConfigurationError` for arguments that cannot work. The beginning of the block raises `MissingDSN`,
    `DatabaseUnavailable`, and `SchemaError` when the schema does not fit this package.
    """

    def __init__(
        self,
        app: App,
        *,
        queues: Mapping[str, int | None] | Iterable[str] | None = None,
        concurrency: int | None = None,
        drain_limit: float | str | timedelta | None = None,
    ):
        self._app = app
        self._given = {
            "queues": None if queues is None else _as_setting(queues),
            "concurrency": concurrency,
            "drain_limit": drain_limit,
        }
        override(Settings(), **self._given)  # what is wrong is said here, where it stands
        self._settings: Settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: Keeper
        self._serving: asyncio.Task[None]
        self._ready: asyncio.Event
        self._stopping: asyncio.Event
        self._stops = 0
        self._services: Services | None = None
        self._running: asyncio.Task[None] | None = None
        self._lost = 0
        self._refused: SchemaError | None = None
        self._untold: list[int] = []

    async def __aenter__(self) -> Worker:
        """Registers the worker and starts it."""
        if self._loop is not None:
            raise RuntimeError("this pgqueue.Worker is running already: make another one")
        check(self._app)
        check_name(self._app)
        settings = self._settings = override(self._app.settings, **self._given)
        if settings.dsn is None:
            raise MissingDSN(
                "no database is configured: set PGQUEUE_DSN (or DATABASE_URL), put dsn into pgqueue.toml or "
                "[tool.pgqueue], or pass App(dsn=…)"
            )
        loop = self._loop = asyncio.get_running_loop()
        self._ready, self._stopping, self._stops = asyncio.Event(), asyncio.Event(), 0
        self._keeper = Keeper(
            settings.dsn,
            settings,
            is_needed=lambda: not loop.is_closed(),
            lost=lambda worker_id: _tell(loop, self._lose, worker_id),
            look=lambda: _tell(loop, self._look),
            rewound=lambda: _tell(loop, self._rewound),
            rescued=lambda worker_ids: _tell(loop, self._hear_of_rescue, worker_ids),
            apply=lambda queue_terms: _tell(loop, self._apply, queue_terms),
            stop_asked=lambda worker_id: _tell(loop, self._stop_asked, worker_id),
            refused=lambda error: _tell(loop, self._refuse, error),
            hears_alerts=lambda: self._services is not None and self._services.telling.hears_alerts,
            alerted=self._alerted,
        )
        try:
            await self._keeper.begin()
            self._serving = asyncio.create_task(self._serve(), name="pgqueue worker")
            await _first(self._serving, self._ready.wait())
            if self._serving.done() and not self._stopping.is_set():
                self._serving.result()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Drains; what has not ended at the drain limit is given back."""
        self._stopping.set()
        if self._services is not None:
            self._services.drain()
        try:
            await self._drained()
        except CancelledError:
            if self._services is not None:
                self._services.hurry()
            await asyncio.wait([self._serving])
            if _is_cancelled():
                raise
        finally:
            await self._leave()

    async def wait(self) -> None:
        """Waits until the worker has drained, after `stop`.

        It stops by itself, and this raises `SchemaError`, when the schema was replaced by one that does not serve this
        release any more.
        """
        await self._drained()
        if self._refused is not None:
            raise self._refused

    async def _drained(self) -> None:
        await asyncio.shield(self._serving)

    def stop(self) -> None:
        """Begins to drain, from any thread; called once more, cancels what runs and gives its jobs back."""
        if self._loop is not None:
            _tell(self._loop, self._stop)

    def run(self) -> None:
        """Works until SIGTERM or Ctrl-C, in an event loop of its own: for a script that does nothing else.

        The first signal drains, the second cancels what runs and gives its jobs back, the third kills. Log lines
        look like those of `pgqueue worker`, unless structlog is configured already. Outside of the main thread
        signals cannot be heard: call `stop`.
        """
        if not structlog.is_configured():
            settings = self._app.settings
            configure_logging(format=settings.log_format, level=settings.log_level)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        heard: list[signal.Signals] = []

        def signalled() -> None:
            self._stop()
            log.info("worker.stopping", how="drain" if self._stops == 1 else "cancel and release")
            if self._stops > 1:
                let_go()  # the next one kills

        def let_go() -> None:
            while heard:
                loop.remove_signal_handler(heard.pop())

        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(signum, signalled)
                heard.append(signum)
        try:
            async with self:
                await self.wait()
        finally:
            let_go()

    # Life

    async def _serve(self) -> None:
        """Runs services until they have drained; after those that failed new ones, under a new registration."""
        backoff = Backoff(cap=30.0)
        while (worker_id := await self._unless_stopped(self._keeper.register())) is not None:
            started_at = time.monotonic()
            with structlog.contextvars.bound_contextvars(worker=worker_id):
                started = await self._work(worker_id)
            if self._stopping.is_set():
                return
            if time.monotonic() - started_at > STEADY_SECONDS:
                backoff = Backoff(cap=30.0)
            await self._unless_stopped(self._keeper.retire(started))
            await self._unless_stopped(asyncio.sleep(backoff.wait()))

    async def _work(self, worker_id: int) -> list[int]:
        """Runs services to their end; the ids of the jobs that had started when they failed."""
        settings, board = self._settings, Board(-1, capacity(self._settings.concurrency))
        assert settings.dsn is not None
        terms = Terms(
            worker_id=worker_id,
            dsn=settings.dsn,
            app=repr(self._app),
            limits=settings.limits,
            concurrency=settings.concurrency,
            drain_limit=settings.drain_limit,
            listens=self._keeper.listens,
            poll_interval=settings.poll_interval,
            transactional_connections=settings.transactional_connections,
            block_threshold=settings.block_threshold,
            queue_terms=self._keeper.queue_terms,
            starts=not self._ready.is_set(),
        )
        services: Services | None = None
        watching: asyncio.Task[None] | None = None
        try:
            services = self._services = Services(
                terms,
                self._app,
                board,
                apart=self._apart(worker_id),
                task_processes=settings.task_processes,
                report=process_tally.add if process_tally.is_wanted else None,
            )
            self._keeper.look_after(board)
            if self._stops > 1:
                services.hurry()
            elif self._stopping.is_set():
                services.drain()
            watching = asyncio.create_task(_tell_when_stuck(services))
            self._running = asyncio.create_task(services.run(self._note_ready), name="pgqueue services")
            await self._running
            return []
        except BaseException as error:
            started = board.started()
            if services is not None:
                await services.abandon()
            if (
                not self._ready.is_set()
                or _is_cancelled()
                or not isinstance(error, Exception | CancelledError)
            ):
                raise
            if isinstance(error, UnknownWorker) or self._lost == worker_id:
                log.error("worker.declared_dead", remedy="its jobs belong to others; it registers anew")
            else:
                log.error("worker.failed", exc_info=error, remedy="please report it; it starts anew")
            return started
        finally:
            self._services = None
            if watching is not None:
                watching.cancel()

    def _apart(self, worker_id: int) -> Setup | None:
        """What a process that runs jobs apart needs to know; None: no task asks for one."""
        settings = self._settings
        assert settings.dsn is not None
        if all(task.executor != "process" for task in self._app.tasks.values()):
            return None
        path, modules = path_of(self._app)
        return Setup(
            app=path,
            modules=modules,
            sys_path=tuple(sys.path),
            dsn=settings.dsn,
            pooled=not self._keeper.listens,
            worker_id=worker_id,
            log_format=settings.log_format,
            log_level=settings.log_level,
        )

    def _note_ready(self) -> None:
        log.info("worker.started", pid=os.getpid(), queues=list(self._settings.limits), app=repr(self._app))
        self._ready.set()
        self._hear_of_rescue(())

    def _stop(self) -> None:
        self._stops += 1
        self._stopping.set()
        if self._services is not None:
            self._services.drain()
            if self._stops > 1:
                self._services.hurry()

    def _lose(self, worker_id: int) -> None:
        """The database knows this worker no more."""
        self._lost = worker_id
        if self._services is not None and self._services.terms.worker_id == worker_id and self._running:
            self._running.cancel()

    def _hear_of_rescue(self, worker_ids: Sequence[int]) -> None:
        """Hooks are told by the services; while these are started anew, it has to wait."""
        self._untold = [*self._untold, *worker_ids][-1000:]
        if self._services is not None and self._untold:
            self._services.hear_of_rescue(self._untold)
            self._untold = []

    def _alerted(self, alerts: Sequence[Alert]) -> bool:
        """Called by the keeper's thread: hooks are told by the services, in the loop."""
        services, loop = self._services, self._loop
        if services is None or loop is None:
            return False
        _tell(loop, services.telling.alert, alerts)
        return True

    def _look(self) -> None:
        if self._services is not None:
            self._services.claimer.poke(forget_sleep=True)

    def _rewound(self) -> None:
        if self._services is not None:
            self._services.claimer.doubt()

    def _apply(self, queue_terms: Mapping[str, QueueTerms]) -> None:
        """New services read what is set at their start."""
        if self._services is not None:
            self._services.apply(queue_terms)

    def _stop_asked(self, worker_id: int) -> None:
        log.info("worker.stopping", worker=worker_id, how="drain", asked_by="an operator")
        if self._stops == 0:
            self._stop()

    def _refuse(self, error: SchemaError) -> None:
        """The schema does not serve this release any more: what is claimed from now on would be claimed wrongly."""
        log.error("schema.refused", error=str(error))
        self._refused = error
        if self._stops == 0:
            self._stop()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` gives; None when the worker is stopped before that."""
        task = asyncio.ensure_future(work)
        try:
            await _first(task, self._stopping.wait())
            return task.result() if task.done() else None
        finally:
            task.cancel()

    async def _leave(self) -> None:
        try:
            await self._keeper.close()
        finally:
            self._loop = None
            log.info("worker.stopped")


def _as_setting(queues: Mapping[str, int | None] | Iterable[str]) -> tuple[str, ...]:
    """Queues as the settings write them."""
    if isinstance(queues, Mapping):
        return tuple(name if limit is None else f"{name}:{limit}" for name, limit in queues.items())
    return (queues,) if isinstance(queues, str) else tuple(queues)


async def _first(task: asyncio.Future[Any], *others: Coroutine[Any, Any, Any]) -> None:
    """Waits until `task` or one of the others is done, and ends the others."""
    beside = [asyncio.ensure_future(other) for other in others]
    try:
        await asyncio.wait([task, *beside], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for other in beside:
            other.cancel()


def _tell(loop: asyncio.AbstractEventLoop, callback: Any, *args: Any) -> None:
    """Calls back in a loop that may be another thread's; a loop that is closed has nobody to be told."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _is_cancelled() -> bool:
    """Whether somebody wants the running task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _tell_when_stuck(services: Services) -> None:
    await services.slots.stuck.wait()
    log.error(
        "worker.stuck",
        remedy="half of its slots are held by handlers that do not end, and nobody can replace an in-process "
        "worker: restart the application, or run such jobs with `pgqueue worker`",
    )
