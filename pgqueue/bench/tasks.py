"""The app that the measured workers run: `pgqueue worker pgqueue.bench.tasks:app`."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from functools import cache
from typing import Any, TypeAlias

import psycopg

from pgqueue.app import App
from pgqueue.batch import BatchJob
from pgqueue.context import Context
from pgqueue.retry import Fixed
from pgqueue.settings import Settings
from pgqueue.task import Task

STAMP = struct.Struct("=qq")
"""A stamp: its number, and the clock of `time.monotonic_ns`, which all processes of a machine share."""

app = App(name="bench", settings=Settings())


@app.task
async def noop(n: int, s: str) -> None:
    """Does nothing, in the loop."""


@app.task
def noop_sync(n: int, s: str) -> None:
    """Does nothing, in a thread."""


@app.task(timeout=30)
async def noop_timed(n: int, s: str) -> None:
    """Does nothing, in time."""


@app.task(transactional=True)
async def noop_transactional(ctx: Context[psycopg.AsyncConnection[Any]], n: int, s: str) -> None:
    """Does nothing, in a transaction."""


@app.batch_task(size=50, wait=0.01)
async def noop_batch(jobs: list[BatchJob[dict[str, Any]]]) -> None:
    """Does nothing, for many."""


@app.task
async def stamp(path: str, number: int) -> None:
    """Tells the named pipe at `path` when it was started."""
    os.write(_pipe(path), STAMP.pack(number, time.monotonic_ns()))


@app.task
async def nap(seconds: float) -> None:
    """Takes a slot for a while."""
    await asyncio.sleep(seconds)


@app.task(retry=Fixed(1.0, attempts=3))
async def flaky(ctx: Context[Any], n: int) -> None:
    """Fails the first time."""
    if ctx.attempt == 1:
        raise RuntimeError(f"job {n} fails the first time")


END = -1
"""The number of the stamp that says: there will be no more."""


@app.task
async def tick(path: str, seconds: float) -> None:
    """Naps for 10 ms again and again, and tells the named pipe by how much each nap was too long."""
    number, end = 0, time.monotonic() + seconds
    while number == 0 or time.monotonic() < end:
        due = time.monotonic_ns() + 10_000_000
        await asyncio.sleep(0.01)
        os.write(_pipe(path), STAMP.pack(number, max(0, time.monotonic_ns() - due)))
        number += 1
    os.write(_pipe(path), STAMP.pack(END, 0))


def _burn(path: str, number: int, seconds: float) -> None:
    os.write(_pipe(path), STAMP.pack(number, time.monotonic_ns()))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


@app.task(executor="process")
def burn_alone(path: str, number: int, seconds: float) -> None:
    """Computes, in a process of its own."""
    _burn(path, number, seconds)


@app.task
def burn_beside(path: str, number: int, seconds: float) -> None:
    """Computes, in a thread beside the loop."""
    _burn(path, number, seconds)


Burner: TypeAlias = Task[[str, int, float], None]


@cache
def _pipe(path: str) -> int:
    return os.open(path, os.O_WRONLY)
