"""Tasks that say how far they have come, and log through their context."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import psycopg

import pgqueue
from pgqueue.retry import Fixed
from tests.worker.tasks import at_gate, at_gate_sync, is_open, note

app = pgqueue.App(name="progress")


def tell(ctx: pgqueue.Context[Any], done: float) -> None:
    ctx.progress(done, 10, f"row {done} of 10", file="a.csv", at={"line": done})
    ctx.log.info("came along", done=done)


@app.task
async def moves(ctx: pgqueue.Context, gate: str) -> None:
    tell(ctx, 3)
    note(ctx, "told")
    await at_gate(gate)
    tell(ctx, 7)
    tell(ctx, 8)


@app.task
def moves_in_thread(ctx: pgqueue.Context, gate: str) -> None:
    tell(ctx, 3)
    note(ctx, "told")
    at_gate_sync(gate)
    tell(ctx, 7)
    tell(ctx, 8)


@app.task(executor="process")
def moves_apart(ctx: pgqueue.Context, gate: str) -> None:
    tell(ctx, 3)
    note(ctx, "told")
    at_gate_sync(gate)
    tell(ctx, 7)
    tell(ctx, 8)


@app.task(transactional=True)
async def moves_in_async_transaction(ctx: pgqueue.Context[psycopg.AsyncConnection], gate: str) -> None:
    tell(ctx, 3)
    note(ctx, "told")
    await at_gate(gate)
    tell(ctx, 7)
    tell(ctx, 8)


@app.task(transactional=True)
def moves_in_transaction(ctx: pgqueue.Context[psycopg.Connection], gate: str) -> None:
    tell(ctx, 3)
    note(ctx, "told")
    at_gate_sync(gate)
    tell(ctx, 7)
    tell(ctx, 8)


@app.task(transactional=True, executor="process")
def moves_in_transaction_apart(ctx: pgqueue.Context[psycopg.Connection], gate: str) -> None:
    tell(ctx, 3)
    note(ctx, "told")
    at_gate_sync(gate)
    tell(ctx, 7)
    tell(ctx, 8)


WAYS = [
    moves,
    moves_in_thread,
    moves_apart,
    moves_in_async_transaction,
    moves_in_transaction,
    moves_in_transaction_apart,
]


@app.task
async def hurries(ctx: pgqueue.Context) -> None:
    """Says it 20,000 times within a second or so."""
    started = time.monotonic()
    for number in range(20_000):
        ctx.progress(number, 20_000)
        if number % 200 == 0:
            await asyncio.sleep(0.005)
    note(ctx, "said", seconds=time.monotonic() - started)


def _changing() -> dict[str, Any]:
    class Changing(dict[str, Any]):
        def __iter__(self) -> Any:
            raise RuntimeError("dictionary changed size during iteration")

        items = values = keys = __iter__

    return Changing(a=1)


NO_PROGRESS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "text": (("half",), {}),
    "NaN": ((float("nan"),), {}),
    "no total": ((1, "many"), {}),
    "bytes": ((1,), {"blob": b""}),
    "large": ((1,), {"rows": ["x" * 1000] * 5}),
    "changing": ((1,), {"seen": _changing()}),
}


@app.task
def says_nonsense(ctx: pgqueue.Context, kind: str) -> None:
    args, metadata = NO_PROGRESS[kind]
    ctx.progress(*args, **metadata)
    ctx.progress(*args, **metadata)


@app.task
def says_much(ctx: pgqueue.Context) -> None:
    ctx.progress(1, 2, "x" * 10_000 + "\0")


@app.task(retry=Fixed(0.02, attempts=2))
async def logs(ctx: pgqueue.Context) -> None:
    ctx.log.info("began", rows=3, path="a\0b")
    ctx.log.debug("not at this level")
    ctx.log.bind(user_id=7).warning("bound")
    ctx.log.info("%s of %s", 1, 2)
    if ctx.attempt == 1:
        try:
            raise KeyError("card")
        except KeyError:
            ctx.log.exception("charge failed")
        raise ValueError("the first time")


@app.task
def logs_much(ctx: pgqueue.Context, lines: int, size: int) -> None:
    for number in range(lines):
        ctx.log.info(f"line {number}", text="x" * size)


@app.task(executor="process", retry=Fixed(3600, attempts=3))
def dies_apart(ctx: pgqueue.Context, gate: str) -> None:
    tell(ctx, 4)
    ctx.log.warning("about to die")
    at_gate_sync(gate)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(timeout=0.2, retry=Fixed(3600, attempts=3))
def speaks_too_late(ctx: pgqueue.Context, gate: str) -> None:
    tell(ctx, 1)
    while not is_open(gate):
        time.sleep(0.005)
    tell(ctx, 2)
    note(ctx, "said too late")


@app.task
async def dies_on(ctx: pgqueue.Context, gate: str) -> None:
    tell(ctx, 5)
    await at_gate(gate)
