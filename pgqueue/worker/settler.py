"""Records endings, in batches: what gathers while one batch is under way is the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import msgspec
import psycopg
import structlog

from pgqueue import calls
from pgqueue.calls import Call
from pgqueue.error_text import ErrorText, safe_text
from pgqueue.errors import InvalidJob
from pgqueue.job import ClaimedJob
from pgqueue.worker.decide import (
    Cancelled,
    Completed,
    Ending,
    Failed,
    Released,
    Snoozed,
    completions_json,
)
from pgqueue.worker.hand import Hand
from pgqueue.worker.link import Link
from pgqueue.worker.reports import Reports

log = structlog.get_logger("pgqueue.worker")

BATCH = 1000
RESULT_BYTES = 1_000_000
"""Characters of results after which a batch is full."""
NO_CELL = -1
"""The cell of a job that had not started."""

OnEnded = Callable[[str, Sequence[tuple[Any, ...]], Collection[int]], None]
_Item = tuple[ClaimedJob, int]
_Completion = tuple[ClaimedJob, int, Completed]
_Failure = tuple[ClaimedJob, int, Failed]
_Snooze = tuple[ClaimedJob, int, float]
_Cancellation = tuple[ClaimedJob, int, str | None]
_id_of, _lease_of = attrgetter("id"), attrgetter("lease")


class Settler:
    """One service: `run_once` records what has gathered; `run` repeats it whenever there is something."""

    def __init__(
        self,
        *,
        link: Link,
        hand: Hand,
        on_ended: OnEnded | None = None,
        reports: Reports | None = None,
    ):
        """`on_ended` is told of every batch that was recorded: verb, items, the ids that were accepted.

        `reports`: what attempts have said, written before they end.
        """
        self._link = link
        self._hand = hand
        self._on_ended = on_ended
        self._reports = reports
        self._completed: list[_Item] = []
        self._with_results: list[_Completion] = []
        self._failed: list[_Failure] = []
        self._snoozed: list[_Snooze] = []
        self._released: list[_Item] = []
        self._cancelled: list[_Cancellation] = []
        self._under_way: Sequence[tuple[Any, ...]] = ()
        self._wanted = asyncio.Event()

    def completed(self, job: ClaimedJob, cell: int) -> None:
        """The fast lane of `settle`: the handler returned."""
        self._completed.append((job, cell))
        self._wanted.set()

    def settle(self, job: ClaimedJob, cell: int, ending: Ending) -> None:
        """Takes an ending; it is recorded with the next batch."""
        match ending:
            case Completed(result=None, reason=None):
                self._completed.append((job, cell))
            case Completed():
                self._with_results.append((job, cell, ending))
            case Failed():
                self._failed.append((job, cell, ending))
            case Snoozed():
                self._snoozed.append((job, cell, ending.delay))
            case Released():
                self._released.append((job, cell))
            case Cancelled():
                self._cancelled.append((job, cell, ending.reason))
        self._wanted.set()

    def jobs(self) -> list[ClaimedJob]:
        """The jobs whose endings the database may not know yet."""
        gathered = (
            self._completed,
            self._with_results,
            self._failed,
            self._snoozed,
            self._released,
            self._cancelled,
        )
        return [item[0] for batch in (self._under_way, *gathered) for item in batch]

    async def run(self) -> None:
        """Settles until cancelled."""
        while True:
            await self._wanted.wait()
            await self.run_once()

    async def run_once(self) -> None:
        """Records all that has gathered, whatever outage comes between."""
        self._wanted.clear()
        while self._completed:
            batch, self._completed = self._completed[:BATCH], self._completed[BATCH:]
            self._under_way = batch
            await self._end("complete", batch, calls.complete(*_columns(batch)))
        while self._with_results:
            end = _end_of_batch(self._with_results)
            completions, self._with_results = self._with_results[:end], self._with_results[end:]
            self._under_way = completions
            await self._complete(completions)
        while self._failed:
            failures, self._failed = self._failed[:BATCH], self._failed[BATCH:]
            self._under_way = failures
            await self._fail(failures)
        while self._snoozed:
            snoozed, self._snoozed = self._snoozed[:BATCH], self._snoozed[BATCH:]
            self._under_way = snoozed
            delays = [delay for *_, delay in snoozed]
            await self._end("snooze", snoozed, calls.snooze(*_columns(snoozed), delays))
        while self._released:
            released, self._released = self._released[:BATCH], self._released[BATCH:]
            self._under_way = released
            await self._end("release", released, calls.release(*_columns(released)))
        while self._cancelled:
            cancelled, self._cancelled = self._cancelled[:BATCH], self._cancelled[BATCH:]
            self._under_way = cancelled
            reasons = [reason for *_, reason in cancelled]
            await self._end("cancel", cancelled, calls.end_cancelled(*_columns(cancelled), reasons))
        self._under_way = ()

    async def _complete(self, completions: list[_Completion]) -> None:
        """Completes jobs with their results. What the server refuses of these stops no completion."""
        plain = [(job, ending) for job, _, ending in completions]
        try:
            call = calls.complete_with_results(completions_json(plain))
            await self._end("complete", completions, call)
        except (psycopg.DataError, InvalidJob) as error:
            if len(completions) > 1:
                for completion in completions:
                    await self._complete([completion])
                return
            log.error("settle.refused", ending="complete", jobs=1, error=safe_text(error, 500))
            job, cell, _ = completions[0]
            bare = Completed(reason="the result was refused by the server")
            call = calls.complete_with_results(completions_json([(job, bare)]))
            await self._end("complete", [(job, cell, bare)], call)

    async def _fail(self, failures: list[_Failure]) -> None:
        try:
            await self._end("fail", failures, calls.fail(_failures_json(failures)))
        except (psycopg.DataError, InvalidJob) as error:
            # Hazard: nothing in an error's text may stop the failure from being recorded. The texts are
            # safe already (error_text.describe_error); whatever the server still refuses goes without them.
            log.error("settle.refused", ending="fail", jobs=len(failures), error=safe_text(error, 500))
            bare = ErrorText("pgqueue.Unrecordable", "the error's text was refused by the server", "", "")
            failures = [(job, cell, replace(ending, error=bare)) for job, cell, ending in failures]
            await self._end("fail", failures, calls.fail(_failures_json(failures)))

    async def _end(self, verb: str, batch: Sequence[tuple[Any, ...]], call: Call[list[int]]) -> None:
        """Runs `call` until it is carried out, reports what it did not accept, lets the jobs go."""
        if self._reports is not None and self._reports.open:
            await self._reports.file(item[0] for item in batch)
        accepted, unsure = await self._link.persist(call)
        jobs = [item[0] for item in batch]
        if len(accepted) < len(batch):
            kept = set(accepted)
            for job in reversed(jobs):
                # Hazard: a job may be here twice, claimed again after the server forgot the first claim in a crash of
                # its own. The later claim is the one that counts.
                if job.id in kept:
                    kept.remove(job.id)
                else:
                    # After an unsure try the first one may have been recorded without our hearing of it.
                    event = "settle.unconfirmed" if unsure else "lease.lost"
                    log.warning(event, job_id=job.id, task=job.task, queue=job.queue, dropped=verb)
        self._hand.settled(jobs, [item[1] for item in batch if item[1] != NO_CELL])
        if self._on_ended is not None:
            self._on_ended(verb, batch, accepted)


def _end_of_batch(completions: Sequence[_Completion]) -> int:
    """How many completions make a batch: no more than its results may take."""
    size = 0
    for place, (_, _, ending) in enumerate(completions[:BATCH]):
        size += len(ending.result or "")
        if size > RESULT_BYTES and place:
            return place
    return BATCH


def _columns(batch: Sequence[tuple[Any, ...]]) -> tuple[Iterable[int], Iterable[int]]:
    jobs = [item[0] for item in batch]
    return map(_id_of, jobs), map(_lease_of, jobs)


def _failures_json(failures: Sequence[_Failure]) -> str:
    return msgspec.json.encode(
        [
            {
                "id": job.id,
                "lease": job.lease,
                "error": ending.error.type,
                "message": ending.error.message,
                "traceback": ending.error.traceback,
                "fingerprint": ending.error.fingerprint,
                "delay": ending.delay,
                "reason": ending.reason,
            }
            for job, _, ending in failures
        ]
    ).decode()
