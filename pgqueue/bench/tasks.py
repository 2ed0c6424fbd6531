"""The app that the measured workers run: `pgqueue worker pgqueue.bench.tasks:app`."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from functools import cache
from typing import Any

from pgqueue.app import App
from pgqueue.context import Context
from pgqueue.retry import Fixed
from pgqueue.settings import Settings

STAMP = struct.Struct("=qq")
"""A stamp: its number, and the clock of `time.monotonic_ns`, which all processes of a machine share."""

app = App(name="bench", settings=Settings())


@app.task
async def noop(n: int, s: str) -> None:
    """Does nothing, in the loop."""


@app.task
def noop_sync(n: int, s: str) -> None:
    """Does nothing, in a thread."""


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


@cache
def _pipe(path: str) -> int:
    return os.open(path, os.O_WRONLY)
