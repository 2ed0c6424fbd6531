"""An app of batch tasks for tests/worker/test_batches.py. Imports tests.worker.tasks for its history and gates."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pgqueue
from pgqueue import BatchJob
from pgqueue.retry import Fixed
from tests.worker.tasks import at_gate, at_gate_sync, note

app = pgqueue.App()


@dataclass
class Document:
    """What is indexed."""

    number: int
    outcome: str = "complete"


def _note(jobs: list[BatchJob[Document]], what: str) -> None:
    for job in jobs:
        note(job, what, number=job.item.number, batch=len(jobs))  # type: ignore[arg-type]


def _end(jobs: list[BatchJob[Document]]) -> None:
    endings = {
        "retry": pgqueue.Retry(after=3600),
        "snooze": pgqueue.Snooze(3600),
        "fail": pgqueue.Fail("not this one"),
        "cancel": pgqueue.Cancel("not needed"),
        "error": ValueError("of this one alone"),
    }
    for job in jobs:
        if ending := endings.get(job.item.outcome):
            job.end(ending)


@app.batch_task(size=10, wait="200ms", retry=Fixed(3600, attempts=2))
async def index(jobs: list[BatchJob[Document]]) -> None:
    _note(jobs, "start")
    _end(jobs)
    _note(jobs, "end")


@app.batch_task(size=10, wait="200ms", retry=Fixed(3600, attempts=2))
def index_sync(jobs: list[BatchJob[Document]]) -> None:
    _note(jobs, "start")
    _end(jobs)
    _note(jobs, "end")


@app.batch_task(size=10, wait="100ms", retry=Fixed(3600, attempts=2))
async def raises(jobs: list[BatchJob[Document]]) -> None:
    _note(jobs, "start")
    _end(jobs)
    raise RuntimeError("the index is away")


@app.batch_task(size=4, wait="100ms", timeout="300ms", retry=Fixed(3600, attempts=1))
async def too_slow(jobs: list[BatchJob[Document]]) -> None:
    _note(jobs, "start")
    await asyncio.sleep(3600)


@app.batch_task(size=3, wait="5s")
async def held(jobs: list[BatchJob[Document]]) -> None:
    _note(jobs, "start")
    try:
        await at_gate("hold")
    except asyncio.CancelledError:
        _note(jobs, "cancelled")
        raise
    _note([job for job in jobs if job.is_cancelled], "was cancelled")
    _note(jobs, "end")


@app.batch_task(size=3, wait="5s")
def held_sync(jobs: list[BatchJob[Document]]) -> None:
    _note(jobs, "start")
    at_gate_sync("hold")
    time.sleep(0.01)
    _note(jobs, "end")
