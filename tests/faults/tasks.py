"""What the workers under faults run. `n` is the producer's transaction that a job came from.

Each handler notes its start and its end in the side log; what raises on purpose has come to its end as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import warnings
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


def _spend(seconds: float) -> None:
    """The job's own length, in a thread. Not by `time.sleep`, which is an error under libfaketime."""
    threading.Event().wait(seconds)


@app.task(retry=AGAIN)
async def plain(ctx: pgqueue.Context, n: int, seconds: float = 0) -> None:
    with noted(ctx, n):
        await asyncio.sleep(seconds)  # the job's own length


@app.task(retry=AGAIN)
def threaded(ctx: pgqueue.Context, n: int, seconds: float = 0) -> None:
    note(ctx, "start", n=n)
    _spend(seconds)
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
    await asyncio.sleep(seconds)  # the job's own length, in its transaction
    note(ctx, "end")


@app.task(transactional=True, retry=AGAIN)
def pays_threaded(ctx: pgqueue.Context[psycopg.Connection[Any]], n: int, seconds: float = 0) -> None:
    note(ctx, "start", n=n)
    ctx.connection.execute(PAY, [ctx.id, n])
    receipt.enqueue(ctx.connection, n=n)
    note(ctx, "wrote")
    _spend(seconds)
    note(ctx, "end")


@app.task(retry=AGAIN)
async def enqueues_later(ctx: pgqueue.Context, n: int) -> None:
    """Enqueues a job for a second later."""
    note(ctx, "start", n=n)
    job = await app.enqueue_async(plain.using(delay="1s"), n=n * 10)
    note(ctx, "enqueued", n=n * 10, id=job.id)
    note(ctx, "end")


@app.task(retry=AGAIN)
async def innocent(ctx: pgqueue.Context, n: int) -> None:
    """Is under way for a while when it starts for the first time."""
    with noted(ctx, n):
        await asyncio.sleep(2 if is_first(ctx) else 0)  # the job's own length


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


@app.task(retry=Fixed(0.3, attempts=2))
async def greedy(ctx: pgqueue.Context, n: int, how: str) -> None:
    """Takes more than there is."""
    note(ctx, "start", n=n)
    match how:
        case "sys.exit":
            sys.exit(3)
        case "memory":
            _take_all_memory()
        case "recursion in C":
            nested: tuple[Any, ...] = ()
            for _ in range(1_000_000):
                nested = (nested,)
            hash(nested)  # each level takes some of the stack, and nothing counts them
        case _:
            _descend()


def _descend() -> None:
    _descend()


def _take_all_memory() -> None:
    """Raises MemoryError at a cap of a little more than this process has; the cap goes with it."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), most))
    taken = []
    try:
        while True:
            taken.append(bytearray(8 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


@app.task(timeout=0.5, on_crash="dead")
async def blocks(ctx: pgqueue.Context, n: int) -> None:
    """Keeps its event loop from running, for ever. Once is enough: it does not start again."""
    note(ctx, "start", n=n)
    while True:
        time.sleep(60)  # noqa: ASYNC251 - that is the harm


@app.task(timeout=60, on_crash="dead")
async def holds_gil(ctx: pgqueue.Context, n: int, seconds: int) -> None:
    """Holds the interpreter's lock, as a long computation in C does."""
    note(ctx, "start", n=n)
    ctypes.PyDLL(None).sleep(seconds)
    note(ctx, "end")


@app.task(timeout=0.5, retry=Fixed(0.3, attempts=1))
async def deaf(ctx: pgqueue.Context, n: int) -> None:
    """Never ends, and will not be cancelled."""
    note(ctx, "start", n=n)
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)  # that is the harm


@app.task(timeout=0.5, retry=Fixed(0.3, attempts=1))
def hangs_in_thread(ctx: pgqueue.Context, n: int) -> None:
    """Never ends."""
    note(ctx, "start", n=n)
    while True:
        time.sleep(60)  # that is the harm


@app.task(retry=AGAIN)
def forks(ctx: pgqueue.Context, n: int) -> None:
    """Enqueues over the app's own connections, before a fork, in the process that it makes, and after it."""
    note(ctx, "start", n=n)
    _enqueue_here(ctx, n * 10)
    fork = multiprocessing.get_context("fork").Process(target=_enqueue_here, args=[ctx, n * 10 - 1])
    with warnings.catch_warnings():  # Python 3.12 warns of a fork beside threads
        warnings.simplefilter("ignore", DeprecationWarning)
        fork.start()
    fork.join()
    assert fork.exitcode == 0, fork.exitcode
    _enqueue_here(ctx, n * 10 - 2)
    note(ctx, "end")


def _enqueue_here(ctx: pgqueue.Context, n: int) -> None:
    note(ctx, "enqueued", n=n, id=app.enqueue(plain, n=n).id)


@app.task(retry=AGAIN)
async def waits(ctx: pgqueue.Context, n: int, gate: str) -> None:
    """Takes as long as the test wants."""
    with noted(ctx, n):
        await at_gate(gate)
