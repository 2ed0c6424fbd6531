"""What the workers under faults run. `n` is the producer's transaction that a job came from.

Each handler notes its start and its end in the side log; what raises on purpose has come to its end as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psycopg

import pgqueue
from pgqueue.retry import Fixed
from tests.worker.tasks import at_gate, is_first, note

app = pgqueue.App(name="faults")

TABLES = """
    create table public.orders (n bigint primary key);
    create table public.effects (job bigint not null, n bigint not null);"""
PAY = "insert into public.effects (job, n) values (%s, %s)"
ATTEMPTS = 60
AGAIN = Fixed(0.3, attempts=ATTEMPTS)


@contextlib.contextmanager
def noted(ctx: pgqueue.Context, n: int) -> Iterator[None]:
    """Notes the start, and the end or that it was cancelled."""
    note(ctx, "start", n=n)
    try:
        yield
    except asyncio.CancelledError:
        note(ctx, "cancelled")
        raise
    note(ctx, "end")


@app.task(retry=AGAIN)
async def plain(ctx: pgqueue.Context, n: int, seconds: float = 0) -> None:
    with noted(ctx, n):
        await asyncio.sleep(seconds)


@app.task(retry=AGAIN)
def threaded(ctx: pgqueue.Context, n: int, seconds: float = 0) -> None:
    note(ctx, "start", n=n)
    time.sleep(seconds)
    note(ctx, "end")


@app.task(retry=AGAIN)
async def stumbles(ctx: pgqueue.Context, n: int) -> None:
    """Raises when it starts for the first time: a backoff and a promotion are part of the load."""
    note(ctx, "start", n=n)
    if is_first(ctx):
        note(ctx, "end")
        raise ValueError("the first time never works")
    note(ctx, "end")


@app.task(retry=AGAIN)
async def receipt(ctx: pgqueue.Context, n: int) -> None:
    """The child of a payment."""
    note(ctx, "start", n=n)
    note(ctx, "end")


@app.task(transactional=True, retry=AGAIN)
async def pays(
    ctx: pgqueue.Context[psycopg.AsyncConnection[Any]], n: int, seconds: float = 0, dies: str = ""
) -> None:
    """Writes and enqueues a child in the transaction in which it completes. `dies`: at its first start, there."""
    note(ctx, "start", n=n)
    if dies == "before its write" and is_first(ctx):
        os.kill(os.getpid(), signal.SIGKILL)
    await ctx.connection.execute(PAY, [ctx.id, n])
    await receipt.enqueue(ctx.connection, n=n)
    note(ctx, "wrote")
    if dies == "before its commit" and is_first(ctx):
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(seconds)
    note(ctx, "end")


@app.task(transactional=True, retry=AGAIN)
def pays_threaded(ctx: pgqueue.Context[psycopg.Connection[Any]], n: int, seconds: float = 0) -> None:
    note(ctx, "start", n=n)
    ctx.connection.execute(PAY, [ctx.id, n])
    receipt.enqueue(ctx.connection, n=n)
    note(ctx, "wrote")
    time.sleep(seconds)
    note(ctx, "end")


# That do harm


@app.task(retry=Fixed(0.3, attempts=2))
async def poison(ctx: pgqueue.Context, n: int, how: str) -> None:
    """Ends its own process."""
    note(ctx, "start", n=n)
    match how:
        case "_exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case _:
            os.kill(os.getpid(), signal.SIGKILL)


@app.task(timeout=0.5, on_crash="dead")
async def blocks(ctx: pgqueue.Context, n: int) -> None:
    """Keeps its event loop from running, for ever. Once is enough: it does not start again."""
    note(ctx, "start", n=n)
    while True:
        time.sleep(60)  # noqa: ASYNC251 - that is the harm


@app.task(retry=AGAIN)
async def waits(ctx: pgqueue.Context, n: int, gate: str) -> None:
    """Takes as long as the test wants."""
    with noted(ctx, n):
        await at_gate(gate)
