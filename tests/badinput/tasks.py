"""Handlers that raise and return what hurts, in every place in which a handler can run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import psycopg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import pgqueue
from pgqueue import BatchJob
from pgqueue.retry import Fixed, RetryPolicy
from tests.badinput.hostile import cycle
from tests.worker import tasks as others
from tests.worker.tasks import at_gate

app = pgqueue.App(name="badinput")

HUGE = 300_000_000


class Exits(RetryPolicy):
    """A policy of the user's own that ends the process when it is asked."""

    attempts = 5

    def delay(self, attempt: int, error: BaseException | None = None) -> NoReturn:  # noqa: ARG002
        raise SystemExit(3)


class Secretive(Exception):
    """Cannot even be asked for what it was raised from."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__cause__", "__context__", "__notes__", "args"):
            raise KeyboardInterrupt(name)
        return super().__getattribute__(name)


RAISED: dict[str, Callable[[], BaseException]] = {
    **{kind: make for kind, make in others.HOSTILE.items() if kind != "surrogate in its class name"},
    "300 MB of text": lambda: ValueError("x" * HUGE),
    "30 MB of a key": lambda: KeyError("x" * 30_000_000),
    "an error that cannot be asked": Secretive,
    "psycopg.Rollback": psycopg.Rollback,
}


async def _coroutine() -> None: ...


def _coroutine_unawaited() -> Any:
    coroutine = _coroutine()
    coroutine.close()  # Python complains of one that nobody awaits, whoever made it
    return coroutine


RETURNED: dict[str, Callable[[], Any]] = {
    "bytes": lambda: {"blob": b"\xff"},
    "a set": lambda: {1},
    "NUL": lambda: ["a\0b"],
    "a lone surrogate": lambda: "x\ud800",
    "NaN": lambda: {"mean": float("nan")},
    "2**63": lambda: 2**63,
    "an object": object,
    "a generator": lambda: (n for n in range(3)),
    "a coroutine": _coroutine_unawaited,
    "a key that is a number": lambda: {1: 2},
    "itself": cycle,
    "70,000 characters": lambda: "x" * 70_000,
    "300 MB of text": lambda: "x" * HUGE,
    "300 MB in a dict": lambda: {"text": "x" * HUGE},
    "1 MB, 10,000 times": lambda: ["x" * 1_000_000] * 10_000,
}

once: Any = {"retry": Fixed(0, attempts=1)}


def _raise(kind: str) -> NoReturn:
    raise RAISED[kind]()


@app.task(**once)
async def in_loop(kind: str) -> None:
    _raise(kind)


@app.task(**once)
async def in_loop_later(kind: str) -> None:
    await asyncio.sleep(0)
    _raise(kind)


@app.task(**once)
def in_thread(kind: str) -> None:
    _raise(kind)


@app.task(executor="process", **once)
def in_process(kind: str) -> None:
    _raise(kind)


INSERT = "insert into effects select 1"


@app.task(transactional=True, **once)
async def in_async_transaction(ctx: pgqueue.Context[psycopg.AsyncConnection], kind: str) -> None:
    await ctx.connection.execute(INSERT)
    _raise(kind)


@app.task(transactional=True, **once)
def in_transaction(ctx: pgqueue.Context[psycopg.Connection], kind: str) -> None:
    ctx.connection.execute(INSERT)
    _raise(kind)


@app.task(transactional=True, **once)
async def in_async_session(ctx: pgqueue.Context[AsyncSession], kind: str) -> None:
    await ctx.connection.execute(text(INSERT))
    _raise(kind)


@app.task(transactional=True, **once)
def in_session(ctx: pgqueue.Context[Session], kind: str) -> None:
    ctx.connection.execute(text(INSERT))
    _raise(kind)


@app.batch_task(size=1, **once)
async def in_batch(jobs: list[BatchJob[str]]) -> None:
    _raise(jobs[0].item)


@app.batch_task(size=1, **once)
def in_batch_sync(jobs: list[BatchJob[str]]) -> None:
    _raise(jobs[0].item)


@app.task(**once)
async def in_step(ctx: pgqueue.Context, kind: str) -> None:
    async def step(connection: psycopg.AsyncConnection) -> None:
        await connection.execute(INSERT)
        _raise(kind)

    await ctx.step("s", step)


@app.task(**once)
def in_sync_step(ctx: pgqueue.Context, kind: str) -> None:
    def step(connection: psycopg.Connection) -> None:
        connection.execute(INSERT)
        _raise(kind)

    ctx.step("s", step)


STEPS = [in_step, in_sync_step]
WAYS = [in_loop, in_loop_later, in_thread, in_process]
TRANSACTIONS = [in_async_transaction, in_transaction, in_async_session, in_session]
BATCHES = [in_batch, in_batch_sync]


@app.task(retry=Exits())
async def policy_exits() -> None:
    raise ValueError("went wrong")


@app.task(keep_result=True)
async def returns(kind: str) -> Any:
    return RETURNED[kind]()


@app.task(keep_result=True)
def returns_in_thread(kind: str) -> Any:
    return RETURNED[kind]()


@app.task(keep_result=True, executor="process")
def returns_in_process(kind: str) -> Any:
    return RETURNED[kind]()


@app.task(keep_result=True, transactional=True)
async def returns_in_transaction(ctx: pgqueue.Context[psycopg.AsyncConnection], kind: str) -> Any:
    await ctx.connection.execute("select 1")
    return RETURNED[kind]()


RETURNS: list[Any] = [returns, returns_in_thread, returns_in_process, returns_in_transaction]


@app.task(keep_result=True)
async def echo(value: Any) -> Any:
    return value


@app.task(keep_result=True)
async def echo_typed(number: int, list: list[int], of: dict[str, int]) -> dict[str, Any]:
    return {"number": number, "list": list, "of": of}


@app.task
async def hold(gate: str) -> None:
    await at_gate(gate)
