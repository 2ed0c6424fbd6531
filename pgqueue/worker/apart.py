"""A process that runs jobs apart from all others, one at a time: nothing that a job does to it harms another.

Started by a worker as `python -m pgqueue.worker.apart` (`executors/process.py`). Its stdin is a socket, over which both
talk (`frames`); when that ends the worker is gone, and this process goes with it. It runs jobs with the same `Attempts`
as the worker, and decides on their endings: it has the exception and the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import importlib
import inspect
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import structlog

from pgqueue.app import App
from pgqueue.errors import ConfigurationError
from pgqueue.invocation import handler_of
from pgqueue.job import ClaimedJob
from pgqueue.observe.logging import configure_logging
from pgqueue.resources import Resources
from pgqueue.worker.attempts import Attempts
from pgqueue.worker.decide import is_suspect
from pgqueue.worker.dying import die_with_parent, go_first
from pgqueue.worker.executors.main_thread import MainThread
from pgqueue.worker.executors.transactional import Transactions
from pgqueue.worker.frames import (
    HEADER,
    Filed,
    Leave,
    Order,
    Ready,
    Run,
    Setup,
    Stop,
    Word,
    ended,
    frame,
    length,
    read_order,
)
from pgqueue.worker.loading import load_app
from pgqueue.worker.orders import EXIT_CONFIGURATION
from pgqueue.worker.saying import Saying
from pgqueue.worker.services import CLOSE_SECONDS, UNKNOWN_TASK_SECONDS, loop_factory
from pgqueue.worker.slot import Slot
from pgqueue.worker.slot import Stop as Why

log = structlog.get_logger("pgqueue.worker")


class Apart:
    """The one slot of this process."""

    def __init__(self, setup: Setup, app: App, link: socket.socket, main_thread: MainThread):
        self._link = link
        self._talking = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._jobs: asyncio.Queue[ClaimedJob | None] = asyncio.Queue()
        self._saying = Saying(self._say, lambda: bool(select.select((), (link,), (), 0)[1]))
        self._slot = Slot(0, self._saying)
        self._served = 0
        self._threads = 0
        self._tasks = app.tasks
        self._tracing = app.tracing
        self._resources = Resources(app.providers)
        self._completed: ClaimedJob | None = None
        """The latest job whose completion was recorded in its own transaction."""
        self._attempts = Attempts(
            tasks=app.tasks,
            threads=main_thread,
            transactions=Transactions(dsn=setup.dsn, size=1, threads=main_thread, pooled=setup.pooled),
            expire=_never,  # the worker has asked
            on_unknown_task=_put_off,
            handler_of=partial(handler_of, app, resources=self._resources),
            on_ended=self._note_completion,
        )

    async def serve(self) -> NoReturn:
        """Takes job after job, until one makes this process leave."""
        current = asyncio.current_task()
        assert current is not None
        slot, slot.runner = self._slot, current
        threading.Thread(target=self._listen, name="pgqueue-apart", daemon=True).start()
        self._threads = thread_count()
        self._say(Ready())
        while True:
            job = slot.job = await self._jobs.get()
            if job is None:
                await self._leave()
            started = self._attempts.start(slot, job)
            ending = await started if inspect.isawaitable(started) else started
            slot.job = None
            self._served += 1
            was_stopped = slot.stop is not None
            leaves = "stopped" if was_stopped else self._wear(job)
            with contextlib.suppress(OSError, ValueError):  # a handler may have closed them
                sys.stdout.flush()
                sys.stderr.flush()
            self._saying.end()
            self._say(
                ended(ending, has_completed=self._completed is job, was_stopped=was_stopped, leaves=leaves)
            )
            if leaves:
                await self._leave()

    async def _leave(self) -> NoReturn:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._resources.close()
        if self._tracing is not None:
            self._tracing.flush()
        os._exit(0)

    def _wear(self, job: ClaimedJob) -> str:
        """Why this process is to be replaced after a job; "": it is not."""
        task = self._tasks.get(job.task)
        if task is None:
            return ""
        if is_suspect(job, task) and (left := thread_count() - self._threads) > 0:
            return f"a suspect that left threads behind ({left})"  # which may kill the next one
        if task.max_jobs_per_child is not None and self._served >= task.max_jobs_per_child:
            return f"{self._served} jobs"
        if task.max_memory is not None and (resident := resident_bytes()) > task.max_memory:
            return f"{resident >> 20} MB of memory"
        return ""

    def _say(self, word: Word) -> None:
        try:
            with self._talking:
                self._link.sendall(frame(word))
        except OSError:
            _go_with_the_worker()

    def _listen(self) -> None:
        """In a thread of its own: hears the worker while a handler keeps the main thread."""
        while (order := receive(self._link)) is not None:
            match order:
                case Run(job=job):
                    self._loop.call_soon_threadsafe(self._jobs.put_nowait, job)
                case Leave():
                    self._loop.call_soon_threadsafe(self._jobs.put_nowait, None)
                case Filed():
                    self._saying.filed()
                case Stop():
                    # For `ctx.cancelled`, at once: the loop stands still while a sync handler runs.
                    self._slot.stop = Why.DRAIN
                    self._loop.call_soon_threadsafe(self._interrupt)
        _go_with_the_worker()

    def _note_completion(self, _verb: str, batch: Sequence[tuple[Any, ...]], _accepted: object) -> None:
        self._completed = batch[0][0]

    def _interrupt(self) -> None:
        job = self._slot.job
        if job is not None and (task := self._tasks.get(job.task)) is not None and task.is_async:
            self._slot.interrupt(Why.DRAIN)


def _go_with_the_worker() -> None:
    """No worker, no heartbeat: the job would be run by others beside us."""
    os.kill(os.getpid(), signal.SIGKILL)


def receive(link: socket.socket) -> Order | None:
    """The next order; None when the worker is gone."""
    encoded = _exactly(link, length(_exactly(link, HEADER)))
    return read_order(encoded) if encoded else None


def _exactly(link: socket.socket, size: int) -> bytes:
    """So many bytes; none when the worker is gone."""
    read = bytearray()
    while len(read) < size:
        try:
            part = link.recv(size - len(read))
        except OSError:
            return b""
        if not part:
            return b""
        read += part
    return bytes(read)


def resident_bytes() -> int:
    """The memory that this process occupies; where the system does not tell, the most that it ever did."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def thread_count() -> int:
    """The threads of this process, where the system tells those of libraries too."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


async def _never(_job: ClaimedJob) -> bool:
    return False


def _put_off(job: ClaimedJob) -> float:
    log.error(
        "task.unknown",
        job_id=job.id,
        task=job.task,
        queue=job.queue,
        remedy="restart the worker: its code has changed",
    )
    return UNKNOWN_TASK_SECONDS


def _take_stdin() -> socket.socket:
    """The socket to the worker, out of the reach of handlers and of the programs that they start."""
    link = socket.socket(fileno=os.dup(0))  # not inheritable
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return link


def main() -> None:
    """The process: hears what it is to serve, loads the app, and runs jobs until it is told to leave."""
    die_with_parent()
    go_first()
    link = _take_stdin()
    setup = receive(link)
    if not isinstance(setup, Setup):
        return  # the worker is gone already
    configure_logging(format=setup.log_format, level=setup.log_level)
    structlog.contextvars.bind_contextvars(worker=setup.worker_id)
    if setup.trace_fd >= 0:
        os.set_inheritable(setup.trace_fd, False)
        faulthandler.enable(setup.trace_fd, all_threads=False)
    # For the app's own connections (`app.enqueue` in a handler), where the worker was given its DSN by flag.
    os.environ["PGQUEUE_DSN"] = setup.dsn
    if setup.sys_path:
        sys.path[:] = setup.sys_path
    try:
        app = load_app(setup.app)
        for module in setup.modules:
            importlib.import_module(module)
    except ConfigurationError as error:
        log.error("app.not_loaded", app=setup.app, error=str(error))
        sys.exit(EXIT_CONFIGURATION)
    # Only the worker stops a job, over the socket. A SIGTERM may come from a service manager that sends it to every
    # process of the service, while the worker has yet to let its jobs end.
    signal.signal(signal.SIGTERM, lambda *_: None)
    gc.collect()
    gc.freeze()  # what is loaded now stays: the collector need not look at it again
    loop = (loop_factory() or asyncio.new_event_loop)()
    main_thread = MainThread(loop)

    async def serve() -> None:
        await Apart(setup, app, link, main_thread).serve()

    main_thread.drive(loop.create_task(serve()))


if __name__ == "__main__":
    main()
