"""Tasks whose results are kept, and one whose result is not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import pgqueue
from pgqueue.retry import Fixed
from tests.worker.tasks import at_gate, at_gate_sync, note

app = pgqueue.App(name="results")


@dataclass
class Receipt:
    id: int
    at: datetime
    lines: tuple[str, ...]


@dataclass
class Trap:
    """Raises what is no Exception when it is read."""

    value: int = 7

    def __getattribute__(self, name: str) -> Any:
        if name == "value":
            raise SystemExit("trapped")
        return object.__getattribute__(self, name)


RESULTS: dict[str, Any] = {
    "dict": {"total": 2**53 + 1, "of": ["a", None, 1.5]},
    "list": [1, 2],
    "text": "schön",
    "number": 7,
    "false": False,
    "nothing": None,
    "dataclass": Receipt(7, datetime(2027, 1, 1, tzinfo=UTC), ("a", "b")),
}
KEPT: dict[str, Any] = {
    **RESULTS,
    "dataclass": {"id": 7, "at": "2027-01-01T00:00:00Z", "lines": ["a", "b"]},
}
NOT_KEPT: dict[str, tuple[Any, str]] = {
    "bytes": ({"blob": b"\xff\0"}, "result.blob: bytes are not JSON"),
    "generator": ((number for number in range(3)), "result: a value of type generator"),
    "NUL": (["a\0b"], "result[0]: the character NUL"),
    "surrogate": ("\ud800", "result: a lone surrogate"),
    "NaN": ({"mean": float("nan")}, "result.mean: nan is not JSON"),
    "large text": ("x" * 65_535, "result: 65,537 bytes of JSON, the limit is 65,536"),
    "huge text": ("x" * 30_000_000, "result: more than 65,536 bytes"),
    "huge list": (list(range(100_000)), "result: more than 65,536 bytes"),
    "trap": (Trap(), "trapped"),
}


def returned(kind: str) -> Any:
    return RESULTS[kind] if kind in RESULTS else NOT_KEPT[kind][0]


@app.task(keep_result=True)
async def at_once(kind: str) -> Any:
    return returned(kind)


@app.task(keep_result=True)
async def later(kind: str) -> Any:
    await asyncio.sleep(0.001)
    return returned(kind)


@app.task(keep_result=True)
def in_thread(kind: str) -> Any:
    return returned(kind)


@app.task(keep_result=True, transactional=True)
async def in_async_transaction(ctx: pgqueue.Context[psycopg.AsyncConnection], kind: str) -> Any:
    await ctx.connection.execute("select 1")
    return returned(kind)


@app.task(keep_result=True, transactional=True)
def in_transaction(ctx: pgqueue.Context[psycopg.Connection], kind: str) -> Any:
    ctx.connection.execute("select 1")
    return returned(kind)


@app.task(keep_result=True, transactional=True)
async def in_async_session(ctx: pgqueue.Context[AsyncSession], kind: str) -> Any:
    await ctx.connection.connection()
    return returned(kind)


@app.task(keep_result=True, transactional=True)
def in_session(ctx: pgqueue.Context[Session], kind: str) -> Any:
    ctx.connection.connection()
    return returned(kind)


@app.task(keep_result=True, executor="process")
def apart(kind: str) -> Any:
    return returned(kind)


WAYS = [apart, at_once, later, in_thread, in_async_transaction, in_transaction, in_async_session, in_session]


@app.task
async def forgets() -> int:
    return 7


@app.task(keep_result=True)
async def at_the_gate(ctx: pgqueue.Context, gate: str) -> str:
    note(ctx, "start")
    await at_gate(gate)
    return f"through {gate}"


@app.task(keep_result=True, retry=Fixed(0.02, attempts=2))
async def fails(ctx: pgqueue.Context) -> None:
    raise ValueError(f"attempt {ctx.attempt} went wrong")


@app.task(keep_result=True, retry=Fixed(0.02, attempts=2))
def fails_first(ctx: pgqueue.Context) -> int:
    if ctx.attempt == 1:
        raise ValueError("the first time")
    return ctx.attempt


@app.task
async def gives_up() -> None:
    raise pgqueue.Cancel("the order was withdrawn")


@app.task
def silent_at_the_gate(ctx: pgqueue.Context, gate: str) -> None:
    note(ctx, "start")
    at_gate_sync(gate)
