"""The processes of a worker that run jobs apart: at most so many at once, kept for the next job."""

from __future__ import annotations

import asyncio
from functools import partial

from pgqueue.worker.executors.process import Process
from pgqueue.worker.frames import Setup


class Processes:
    """Up to `size` processes, started when they are needed.

    One that has been idle for `idle_seconds` is ended; None: it is kept.
    """

    def __init__(self, setup: Setup, size: int, *, idle_seconds: float | None = None):
        self._setup = setup
        self._places = asyncio.Semaphore(size)
        self._idle: list[tuple[Process, asyncio.TimerHandle | None]] = []
        self._taken: set[Process] = set()
        self._idle_seconds = idle_seconds
        self.waiting = 0
        """Who is waiting for a process."""

    async def take(self, patience: float | None = None) -> Process | None:
        """A process for one job, to be put back; waits for one at most `patience` seconds, then gives None.

        Raises `NotReady` when none could be started.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(patience):
                await self._places.acquire()
        except TimeoutError:
            return None
        finally:
            self.waiting -= 1
        try:
            process = self._idle_one() or await Process.start(self._setup)
        except BaseException:
            self._places.release()
            raise
        self._taken.add(process)
        return process

    def put_back(self, process: Process) -> None:
        """A process that was taken, whatever became of it."""
        self._places.release()
        self._taken.discard(process)
        if process.is_spent:
            process.dismiss()
            return
        timer = None
        if self._idle_seconds is not None:
            timer = asyncio.get_running_loop().call_later(self._idle_seconds, partial(self._retire, process))
        self._idle.append((process, timer))

    async def close(self) -> None:
        """Ends the idle ones, and waits until they have closed what they had open. Kills those that run a job."""
        for process in self._taken:
            process.kill()
        idle, self._idle = self._idle, []
        for process, timer in idle:
            if timer is not None:
                timer.cancel()
            process.dismiss()
        for process, _ in idle:
            await process.wait()

    def _idle_one(self) -> Process | None:
        while self._idle:
            process, timer = self._idle.pop()
            if timer is not None:
                timer.cancel()
            if not process.is_spent:
                return process
        return None

    def _retire(self, process: Process) -> None:
        self._idle = [(other, timer) for other, timer in self._idle if other is not process]
        process.dismiss()
