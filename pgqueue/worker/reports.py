"""What handlers say while they run: how far they have come (`ctx.progress`), and their last lines of `ctx.log`.

A handler never waits for it, and nothing that it says can fail it. Progress is written 4 times a second and job at the
most, in batches; what an attempt leaves is written before it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any, TypeAlias

import msgspec
import structlog

from pgqueue import calls
from pgqueue.encoding import encode_args
from pgqueue.error_text import one_line, safe_repr, safe_text
from pgqueue.errors import DatabaseUnavailable, InvalidOption
from pgqueue.job import ClaimedJob
from pgqueue.observe.kept_lines import Line
from pgqueue.worker.link import OUTAGES, Backoff, Link
from pgqueue.worker.slot import Slot

log = structlog.get_logger("pgqueue.worker")

PROGRESS_SECONDS = 0.25
"""Between two notes of a job's progress, at least."""
MAX_LINES = 100
MAX_LINES_BYTES = 65_536
"""What is kept of an attempt's log lines: the last ones."""
MAX_MESSAGE = 500
MAX_METADATA_BYTES = 4096
BATCH_BYTES = 1_000_000
FORGET_SECONDS = 600.0
"""After so long an attempt that has ended and was not filed is forgotten: its lease was lost."""


Told: TypeAlias = tuple[Any, Any, Any, Mapping[str, Any]]
"""What a handler gave to `ctx.progress`, as it was given: done, total, message, metadata."""


def encode_progress(done: Any, total: Any, message: Any, metadata: Mapping[str, Any]) -> str:
    """JSON for the database. Raises `InvalidOption` for what is no progress."""
    progress: dict[str, Any] = {"done": _number("done", done)}
    if total is not None:
        progress["total"] = _number("total", total)
    if message is not None:
        progress["message"] = safe_text(message, MAX_MESSAGE)
    if metadata:
        encoded = encode_args(metadata, limit=MAX_METADATA_BYTES, root="metadata", error=InvalidOption)
        progress["metadata"] = msgspec.Raw(encoded.encode())
    return msgspec.json.encode(progress).decode()


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise InvalidOption(f"{name}: expected a finite number, got {safe_repr(value)}")
    return value


class Report:
    """What one attempt has said so far. `is_new`: its progress is not written yet."""

    __slots__ = ("complained", "ended_at", "is_new", "job", "lines", "progress", "size", "slot")

    def __init__(self, slot: Slot, job: ClaimedJob):
        self.slot = slot
        self.job = job
        self.progress: Told | str | None = None
        self.is_new = False
        self.lines: deque[Line] = deque(maxlen=MAX_LINES)
        self.size = 0
        self.complained = False
        self.ended_at = 0.0

    def add(self, line: Line) -> None:
        """One more line; the first ones go when there are too many."""
        if len(self.lines) == MAX_LINES:
            self.size -= len(self.lines[0]["text"])
        self.lines.append(line)
        self.size += len(line["text"])
        while self.size > MAX_LINES_BYTES:
            self.size -= len(self.lines.popleft()["text"])

    def progress_json(self) -> str | None:
        """How far the attempt has come, as JSON; None when it has not said, or what it said cannot be written."""
        if isinstance(self.progress, tuple):
            try:
                self.progress = encode_progress(*self.progress)
            except Exception as error:  # noqa: BLE001 - what was given may be anything, and change while it is read
                if not self.complained:
                    self.complained = True
                    job, reason = self.job, one_line(error)
                    log.warning(
                        "progress.dropped", job_id=job.id, task=job.task, queue=job.queue, reason=reason
                    )
                self.progress = None
        return self.progress


class Reports:
    """The reports of a worker's attempts, from their first word until they are filed. `run` writes progress."""

    def __init__(self, link: Link):
        self.open: dict[tuple[int, int], Report] = {}
        """By (id, lease) of the job; empty while no handler says anything."""
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._wanted = asyncio.Event()
        self._is_woken = False

    # Said by handlers, in whatever thread

    def progress(self, slot: Slot, job: ClaimedJob, told: Told | str) -> None:
        """How far the attempt has come, in place of what was said before; JSON if it is text."""
        if (report := self._report(slot, job)) is not None:
            report.progress = told
            report.is_new = True
            if not self._is_woken:
                self._is_woken = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: the worker has ended without us
                    self._loop.call_soon_threadsafe(self._wanted.set)

    def line(self, slot: Slot, job: ClaimedJob, line: Line) -> None:
        """One line of the attempt's log."""
        if (report := self._report(slot, job)) is not None:
            report.add(line)

    def _report(self, slot: Slot, job: ClaimedJob) -> Report | None:
        """None when the attempt has ended: its handler still runs, and is not listened to any more."""
        if slot.job is not job or slot.is_settled:
            return None
        key = job.id, job.lease
        return self.open.get(key) or self.open.setdefault(key, Report(slot, job))

    # Written by the worker

    async def run(self) -> None:
        """Writes progress until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FORGET_SECONDS):
                    await self._wanted.wait()
            self._wanted.clear()
            self._is_woken = False  # before the look: what is said from now on asks for another one
            await self.run_once()
            await asyncio.sleep(PROGRESS_SECONDS)

    async def run_once(self) -> None:
        """Writes the progress that is new, and forgets attempts that nobody files."""
        now = time.monotonic()
        fresh: list[Report] = []
        for key, report in list(self.open.items()):
            if report.slot.job is not report.job:
                report.ended_at = report.ended_at or now
                if now - report.ended_at > FORGET_SECONDS:
                    self.open.pop(key, None)
            elif report.is_new:
                report.is_new = False
                fresh.append(report)
        rows = [_row(report, progress=text) for report in fresh if (text := report.progress_json())]
        for batch in _batches(rows):
            try:
                await self._link.run(calls.note_progress(batch))
            except OUTAGES as error:
                self._link.outages.report(error)
                for report in fresh:
                    report.is_new = True  # written with the next word of it, or with its end

    async def file(self, jobs: Iterable[ClaimedJob], *, patient: bool = True) -> None:
        """Writes what these attempts leave, before they end. `patient`: over an outage as well.

        What the database refuses is dropped and logged: it must not keep the attempts from ending.
        """
        rows = []
        for job in jobs:
            if (report := self.open.pop((job.id, job.lease), None)) is not None:
                rows.append(_row(report, progress=report.progress_json(), lines=list(report.lines)))
        for batch in _batches(rows):
            backoff = Backoff()
            while True:
                try:
                    await self._link.run(calls.note_reports(batch))
                    break
                except OUTAGES as error:
                    if patient and isinstance(error, DatabaseUnavailable):
                        self._link.outages.report(error)
                        await asyncio.sleep(backoff.wait())
                        continue
                    log.error("reports.dropped", jobs=batch.count('"lease":'), error=safe_text(error, 500))
                    break

    def file_from_thread(self, job: ClaimedJob) -> None:
        """`file`, for one job, in a handler's thread: waits for it."""
        if (job.id, job.lease) in self.open:
            asyncio.run_coroutine_threadsafe(self.file([job], patient=False), self._loop).result()


def _row(report: Report, *, progress: str | None, lines: list[Line] | None = None) -> bytes:
    row: dict[str, Any] = {"id": report.job.id, "lease": report.job.lease}
    if progress is not None:
        row["progress"] = msgspec.Raw(progress.encode())
    if lines:
        row["lines"] = lines
    return msgspec.json.encode(row)


def _batches(rows: list[bytes]) -> Iterator[str]:
    """JSON arrays of rows, none much larger than what one call should carry."""
    batch: list[bytes] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row)
        if size > BATCH_BYTES:
            yield f"[{b','.join(batch).decode()}]"
            batch, size = [], 0
    if batch:
        yield f"[{b','.join(batch).decode()}]"
