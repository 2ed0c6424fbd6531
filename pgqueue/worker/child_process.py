"""A child as its supervisor sees it: its process, its row, its board, what it can be told, and what it died of."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, field

from pgqueue.worker.board import Board
from pgqueue.worker.dying import how_it_ended, signal_name
from pgqueue.worker.orders import READY_FOR_ALERTS


@dataclass(slots=True)
class ChildProcess:
    """One child: its process, its row, its board."""

    number: int
    worker_id: int
    process: asyncio.subprocess.Process
    board: Board
    ready: asyncio.Future[bytes]
    """What it says when it has come to work."""
    started_at: float = field(default_factory=time.monotonic)
    hung: list[int] = field(default_factory=list)
    """The jobs that it was killed for, because they were over their timeout; negative: apart."""
    was_killed: bool = False
    """Whether we killed it because it would not stop."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an operator has asked for it to stop, for good."""
    has_left: bool = False
    """Whether it ended by itself, having settled what it could."""

    @property
    def was_ready(self) -> bool:
        """Whether it ever came to work: its app was loaded."""
        return self.ready.done() and not self.ready.cancelled()

    @property
    def listens(self) -> bool:
        """Whether it works, and can be told something."""
        return self.was_ready and self.process.stdin is not None and not self.process.stdin.is_closing()

    @property
    def hears_alerts(self) -> bool:
        """Whether it listens, and has hooks for alerts."""
        return self.listens and self.ready.result() == READY_FOR_ALERTS

    @property
    def is_stopped(self) -> bool:
        """Whether the kernel reports it stopped (SIGSTOP, a debugger): then nobody beats for it."""
        try:
            with open(f"/proc/{self.process.pid}/stat", "rb") as stat:
                return stat.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
        except OSError:
            return False

    def tell(self, words: bytes) -> None:
        """Says something to it, which it hears when it has come to work; one that is on its way out does not."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(words)

    def send(self, signum: int) -> None:
        """Sends it a signal, if it has not ended.

        Not by `process.send_signal`, which looks whether it has ended and so takes its exit code from the one who waits for
        it: that would be 255 then, whatever it died of.
        """
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signum)

    def kill(self) -> None:
        """Ends it, because it would not stop."""
        self.was_killed = True
        self.send(signal.SIGKILL)

    def inquest(self, code: int) -> tuple[list[int], list[int], str | None]:
        """Which jobs it may have died of, which it had begun otherwise, and how it died; it has ended with `code`."""
        self.has_left = self.board.has_left
        if self.has_left or self.was_killed:
            return [], [], None  # it did not die of a job: all goes back untouched
        started, apart = self.board.started(), self.board.apart()
        # One that was killed for jobs over their timeout did not die of those beside them.
        blamed = [id for id in self.hung if id > 0] or started
        interrupted = [id for id in (*started, *apart) if id not in set(blamed)]
        if self.hung:
            cause = "was killed because its event loop was blocked beyond a job's timeout"
            return blamed, interrupted, cause
        return blamed, interrupted, how_it_ended(code)


def ended_by(code: int) -> str:
    """What log lines call an exit code."""
    return f"signal {signal_name(-code)}" if code < 0 else f"exit code {code}"


def when_readable(fd: int) -> asyncio.Future[bytes]:
    """What a child has written to its ready pipe, when it has."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def readable() -> None:
        loop.remove_reader(fd)
        told = os.read(fd, 1)
        os.close(fd)
        if told and not future.done():
            future.set_result(told)

    loop.add_reader(fd, readable)
    return future
