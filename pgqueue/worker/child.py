"""A worker process: one event loop with the services of a worker, its signals, and the way it ends.

Run by the supervisor as `python -m pgqueue.worker.child`; its orders come as one JSON line on stdin, and after them one
byte for each poke, the id of each worker whose jobs were rescued on a line, what operators have set for queues as one of
JSON, alerts as one with an array, and `REWOUND` as one when the database may have forgotten something. When stdin ends
the supervisor is gone, and the child goes with it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from functools import partial

import msgspec
import structlog

from pgqueue.app import App
from pgqueue.errors import ConfigurationError, UnknownWorker
from pgqueue.hooks import Alert
from pgqueue.invocation import check
from pgqueue.observe.logging import configure_logging
from pgqueue.worker.board import Board
from pgqueue.worker.dying import die_with_parent
from pgqueue.worker.frames import Setup
from pgqueue.worker.hand import capacity
from pgqueue.worker.loading import load_app
from pgqueue.worker.measuring import FiguresPipe
from pgqueue.worker.orders import (
    EXIT_CONFIGURATION,
    EXIT_REPLACE,
    POKE,
    READY,
    READY_FOR_ALERTS,
    REWOUND,
    Orders,
    QueueTerms,
)
from pgqueue.worker.schedules import check_name
from pgqueue.worker.services import Services, loop_factory

log = structlog.get_logger("pgqueue.worker")


class Child:
    """The services of one worker in a process of their own: signals, the supervisor's pokes, its end."""

    def __init__(self, orders: Orders, app: App, board: Board):
        self._figures = None if orders.figures_fd < 0 else FiguresPipe(orders.figures_fd)
        self.services = Services(
            orders,
            app,
            board,
            apart=_setup(orders),
            task_processes=orders.task_processes,
            report=None if self._figures is None else self._figures.write,
        )
        self._ready_fd = orders.ready_fd
        self.is_replaced = False
        """Whether this process ends by itself, for another one to take its place."""

    async def run(self) -> None:
        """Works until it is told to stop, then drains.

        Raises `UnknownWorker` when this worker was declared dead: what it holds belongs to others.
        """
        # Two signals for two wishes: a service manager may send SIGTERM to every process, and the supervisor passes
        # its own on; that is one request, not two.
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.services.drain)
        loop.add_signal_handler(signal.SIGINT, self.services.hurry)
        self._watch_supervisor()
        leaving = asyncio.create_task(self._leave_when_stuck())
        try:
            await self.services.run(on_ready=self._say_ready)
        finally:
            leaving.cancel()
            if self._figures is not None:
                self._figures.close()

    def _say_ready(self) -> None:
        os.write(self._ready_fd, READY_FOR_ALERTS if self.services.telling.hears_alerts else READY)

    async def _leave_when_stuck(self) -> None:
        await self.services.slots.stuck.wait()
        if not self.services.is_draining:
            self.is_replaced = True
            log.error(
                "worker.stuck",
                remedy="half of its slots are held by handlers that do not end; it is replaced",
            )
            self.services.drain()

    def _watch_supervisor(self) -> None:
        loop = asyncio.get_running_loop()

        def watch() -> None:
            unread = b""
            while told := os.read(0, 4096):
                if POKE in told:
                    loop.call_soon_threadsafe(partial(self.services.claimer.poke, forget_sleep=True))
                *lines, unread = (unread + told.replace(POKE, b"")).split(b"\n")
                if REWOUND in lines:
                    loop.call_soon_threadsafe(self.services.claimer.doubt)
                rescued = [int(line) for line in lines if line.isdigit()]
                if rescued:
                    loop.call_soon_threadsafe(self.services.hear_of_rescue, rescued)
                for line in lines:
                    if line.startswith(b"{"):
                        terms = msgspec.json.decode(line, type=dict[str, QueueTerms])
                        loop.call_soon_threadsafe(self.services.apply, terms)
                    elif line.startswith(b"["):
                        alerts = msgspec.json.decode(line, type=list[Alert])
                        loop.call_soon_threadsafe(self.services.telling.alert, alerts)
            # No supervisor, no heartbeat: the jobs in hand would be run by others beside us.
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=watch, name="pgqueue-supervisor-watch", daemon=True).start()


def main() -> None:
    """The process: reads its orders, loads the app, works, and ends with an exit code that says why."""
    die_with_parent()
    orders = msgspec.json.decode(_read_line(), type=Orders)
    configure_logging(format=orders.log_format, level=orders.log_level)
    structlog.contextvars.bind_contextvars(worker=orders.worker_id)
    board = Board(orders.board_fd, capacity(orders.concurrency))
    # For the app's own connections (`app.enqueue` in a handler), where the worker was given its DSN by flag.
    os.environ["PGQUEUE_DSN"] = orders.dsn
    try:
        app = load_app(orders.app)
        check(app)
        check_name(app)
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_CONFIGURATION)
    # What is loaded now stays: the collector need not look at it again, nor come after every 700 objects (11%
    # of the client's time for short jobs).
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
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
    board.leave()
    if app.tracing is not None:
        app.tracing.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once, from inside the loop: a thread that is stuck in a handler, or a coroutine that refuses its
    # cancellation, would keep the process, and its job is given back already.
    os._exit(code)


def _setup(orders: Orders) -> Setup:
    """What a process that runs jobs apart needs to know."""
    return Setup(
        app=orders.app,
        dsn=orders.dsn,
        pooled=not orders.listens,
        worker_id=orders.worker_id,
        log_format=orders.log_format,
        log_level=orders.log_level,
    )


def _read_line() -> bytes:
    """One line of stdin, byte by byte: what follows it is for the watcher."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"\n", b""):
        line += byte
    return bytes(line)


if __name__ == "__main__":
    main()
