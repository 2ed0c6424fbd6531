"""One process that runs jobs apart, seen from the worker: its start, one job after the other, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import structlog

from pgqueue.error_text import safe_text
from pgqueue.errors import PgqueueError, ProcessDied
from pgqueue.job import ClaimedJob
from pgqueue.worker.dying import how_it_ended
from pgqueue.worker.frames import (
    HEADER,
    Ended,
    Filed,
    Leave,
    Order,
    Ready,
    Run,
    Said,
    Setup,
    Stop,
    frame,
    length,
    read_word,
)

log = structlog.get_logger("pgqueue.worker")

TERM_SECONDS = 3.0
"""What a handler that is told to end gets to do so, before its process is killed."""
LEAVE_SECONDS = 3.0
"""What one that takes no further job gets to close what it has open."""
PARTING_SECONDS = 0.5
"""How long a process that has hung up may take to end, and one that has ended to be read to its last word."""
TRACE_BYTES = 16_000
_OUR_FRAMES = (f'File "{Path(__file__).parents[1]}{os.sep}', 'File "<frozen runpy>"')


Hear: TypeAlias = Callable[[Said], Coroutine[Any, Any, None] | None]
"""Takes what a handler has said; what it returns is awaited before the process is answered."""


class NotReady(PgqueueError):
    """The process ended before it could take a job; the message says how."""


class Process:
    """A running process; `start` makes one.

    `is_spent`: it takes no further job, because it has ended, is about to, or was told to stop.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        trace_fd: int,
    ):
        self.pid = process.pid
        self.is_spent = False
        self._process = process
        self._reader = reader
        self._writer = writer
        self._trace_fd = trace_fd
        self._trace = ""
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[Ended] | None = None
        self._hear: Hear = lambda _: None
        self._filing: asyncio.Task[None] | None = None
        self._gone = asyncio.create_task(self._live(), name=f"pgqueue process {self.pid}")

    @classmethod
    async def start(cls, setup: Setup) -> Process:
        """A process that has loaded the app. Raises `NotReady`."""
        with contextlib.ExitStack() as undo:
            try:
                trace_fd, path = tempfile.mkstemp(prefix="pgqueue-trace-")
                undo.callback(os.close, trace_fd)
                os.unlink(path)
                ours, theirs = socket.socketpair()
                with theirs:
                    reader, writer = await asyncio.open_unix_connection(sock=ours)
                    undo.callback(writer.close)
                    process = await asyncio.create_subprocess_exec(
                        sys.executable,
                        "-m",
                        "pgqueue.worker.apart",
                        stdin=theirs.fileno(),
                        pass_fds=(trace_fd,),
                        start_new_session=True,  # a group of its own, to be killed with all that it has started
                    )
            except OSError as error:
                raise NotReady(f"could not be started: {error}") from error
            undo.pop_all()
        started = cls(process, reader, writer, trace_fd)
        try:
            started._say(msgspec.structs.replace(setup, trace_fd=trace_fd))
            await asyncio.wait((started._ready, started._gone), return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            started.kill()
            raise
        if not started._ready.done():
            raise NotReady(how_it_ended(started._gone.result()))
        return started

    async def run(self, job: ClaimedJob, hear: Hear = lambda _: None) -> Ended:
        """Runs an attempt; returns what the process says of its end, and lets `hear` know what its handler says before.

        Raises `ProcessDied` when the process ended before the job did. Cancelled, it tells the handler to end, and
        kills the process 3 s later, or when it is cancelled once more. The cancellation goes on when the process is
        gone, unless the job had come to its end before it was told.
        """
        ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._ended, self._hear = ended, hear
        self._say(Run(job))
        try:
            await asyncio.wait((ended, self._gone), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._stop(ended)
            if not ended.done() or (ended.result().was_stopped and ended.result().kind):
                raise
            _uncancel()
        if not ended.done():
            how = how_it_ended(self._gone.result())
            raise ProcessDied(f"the process that ran the job apart {how}", self._trace)
        word = ended.result()
        if word.leaves and not word.was_stopped:
            self.is_spent = True
            log.info("process.replaced", pid=self.pid, after=word.leaves)
        return word

    def dismiss(self) -> None:
        """Lets it close what it has open, and end; kills it when that takes too long."""
        self.is_spent = True
        if not self._gone.done():
            self._say(Leave())
            asyncio.get_running_loop().call_later(LEAVE_SECONDS, self.kill)

    async def wait(self) -> None:
        """Waits for its end."""
        await asyncio.wait((self._gone,))

    def kill(self) -> None:
        """SIGKILL for it and for all that its handlers have started."""
        self.is_spent = True
        if not self._gone.done():
            self._kill_group()

    async def _stop(self, ended: asyncio.Future[Ended]) -> None:
        """Tells the handler to end, waits for that, and kills; returns when the process is gone."""
        self.is_spent = True
        self._say(Stop())
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)  # not send_signal: see ChildProcess.send
        with contextlib.suppress(asyncio.CancelledError):  # it was told twice: at once, then
            await asyncio.wait((ended, self._gone), timeout=TERM_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        self.kill()
        await asyncio.wait((self._gone,))

    async def _live(self) -> int:
        """Hears what the process says until it has ended; returns how."""
        reading = asyncio.create_task(self._read())
        ending = asyncio.create_task(self._process.wait())
        await asyncio.wait((reading, ending), return_when=asyncio.FIRST_COMPLETED)
        # A handler may have closed the socket, or have left it to a process that it forked.
        await asyncio.wait((reading, ending), timeout=PARTING_SECONDS)
        self.is_spent = True
        self._kill_group()
        code = await ending
        reading.cancel()
        self._writer.close()
        self._trace = _read_trace(self._trace_fd)
        os.close(self._trace_fd)
        return code

    async def _read(self) -> None:
        try:
            while True:
                header = await self._reader.readexactly(HEADER)
                match read_word(await self._reader.readexactly(length(header))):
                    case Ready():
                        self._ready.set_result(None)
                    case Said() as said:
                        if (filing := self._hear(said)) is not None:
                            self._filing = asyncio.create_task(self._answer(filing))
                    case Ended() as word if self._ended is not None and not self._ended.done():
                        self._ended.set_result(word)
        except (asyncio.IncompleteReadError, OSError):
            return
        except msgspec.MsgspecError as error:
            # It runs another release, installed since the worker was started.
            log.error("process.not_understood", pid=self.pid, error=str(error), remedy="restart the worker")

    async def _answer(self, filing: Coroutine[Any, Any, None]) -> None:
        await filing
        self._say(Filed())

    def _say(self, order: Order) -> None:
        self._writer.write(frame(order))

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def _uncancel() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.uncancel()


def _read_trace(fd: int) -> str:
    """What `faulthandler` wrote when the process crashed: the Python stack, the innermost frame first."""
    told = os.pread(fd, TRACE_BYTES, 0).decode("utf-8", "backslashreplace")
    lines = told.partition("\nExtension modules:")[0].strip().splitlines()
    return safe_text("\n".join(line for line in lines if not any(ours in line for ours in _OUR_FRAMES)))
