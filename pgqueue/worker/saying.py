"""What handlers say in a process apart (`ctx.progress`, `ctx.log`): passed on to the worker, which keeps it.

In place of the worker's `Reports`, with the same methods. A line goes at once, so that a handler's last words before
it dies are heard; a thread passes progress on, 4 times a second at the most; what is left goes before the word that the
attempt has ended.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from pgqueue.job import ClaimedJob
from pgqueue.observe.kept_lines import Line
from pgqueue.worker.frames import Said
from pgqueue.worker.reports import MAX_LINES, PROGRESS_SECONDS, Report, Told
from pgqueue.worker.slot import Slot

PATIENCE = 2.0
"""What a transaction waits for the worker to keep what its handler has said."""


class Saying:
    """The handlers' words of one process, in which one job runs at a time.

    `can_say`: whether saying something would not wait for the worker to listen.
    """

    def __init__(self, say: Callable[[Said], None], can_say: Callable[[], bool]):
        self._can_say = can_say
        self.open: dict[tuple[int, int], Report] = {}
        self._say = say
        self._lines: deque[Line] = deque(maxlen=MAX_LINES)
        self._wanted = threading.Event()
        self._filed = threading.Event()
        self._flushing = threading.RLock()  # what is flushed may be the user's own code, and log
        self._thread: threading.Thread | None = None

    def progress(self, slot: Slot, job: ClaimedJob, told: Told) -> None:
        """See `Reports.progress`."""
        if slot.job is job:
            report = self._report(slot, job)
            report.progress = told
            report.is_new = True
            self._wake()

    def line(self, slot: Slot, job: ClaimedJob, line: Line) -> None:
        """See `Reports.line`."""
        if slot.job is job:
            self._report(slot, job)
            self._lines.append(line)
            if self._can_say():
                self.flush(only_lines=True)
            else:
                self._wake()

    def flush(self, *, only_lines: bool = False, asks: bool = False) -> None:
        """Passes on what is new; `asks` the worker to keep all of it now."""
        with self._flushing:
            progress = None
            for report in list(self.open.values()):
                if report.is_new and not only_lines:
                    report.is_new = False
                    progress = report.progress_json()
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if progress is not None or lines or asks:
                self._say(Said(progress, lines, asks))

    def end(self) -> None:
        """Passes on what the attempt has left, and is ready for the next job."""
        if self.open:
            self.flush()
            self.open.clear()

    # Before a transaction commits, for then its job is no longer running

    async def file(self, jobs: Iterable[ClaimedJob], *, patient: bool = True) -> None:  # noqa: ARG002 - as in Reports
        """See `Reports.file`."""
        for job in jobs:
            await asyncio.to_thread(self.file_from_thread, job)

    def file_from_thread(self, job: ClaimedJob) -> None:
        """See `Reports.file_from_thread`."""
        if (job.id, job.lease) in self.open:
            self._filed.clear()
            self.flush(asks=True)
            self.open.clear()
            self._filed.wait(PATIENCE)

    def filed(self) -> None:
        """The worker has kept what it was asked to."""
        self._filed.set()

    def _report(self, slot: Slot, job: ClaimedJob) -> Report:
        key = job.id, job.lease
        return self.open.get(key) or self.open.setdefault(key, Report(slot, job))

    def _wake(self) -> None:
        self._wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="pgqueue-saying", daemon=True)
            self._thread.start()

    def _serve(self) -> None:
        while self._wanted.wait():
            self._wanted.clear()
            try:
                self.flush()
            except OSError:
                return  # the worker is gone, and this process goes with it
            time.sleep(PROGRESS_SECONDS)


def hear(slot: Slot, job: ClaimedJob, said: Said) -> Coroutine[Any, Any, None] | None:
    """In the worker: keeps what the handler of `job` has said apart; when it asks, what is to be awaited for it."""
    reports = slot.reports
    if reports is None:
        return None
    if said.progress is not None:
        reports.progress(slot, job, said.progress)
    for line in said.lines:
        reports.line(slot, job, line)
    filing: Coroutine[Any, Any, None] | None = reports.file([job], patient=False) if said.asks else None
    return filing
