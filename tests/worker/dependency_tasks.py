"""Tasks that are provided with something, and have middleware around them; what is opened and closed is noted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import psycopg

import pgqueue
from pgqueue.middleware import CallNext
from pgqueue.retry import Fixed
from tests.worker.tasks import FOLDER, note

app = pgqueue.App(name="provided")
nobody: Any = SimpleNamespace(id=0, attempt=0)


@dataclass
class Client:
    """Belongs to a worker; async."""

    pid: int


@dataclass
class Pool:
    """Belongs to a worker; sync."""

    pid: int


@dataclass
class Session:
    """Belongs to a job."""

    pool: Pool
    job: int


@dataclass
class Orders:
    """Works on the connection of a transactional job."""

    connection: psycopg.AsyncConnection[Any]

    async def write(self, text: str) -> None:
        await self.connection.execute("insert into effects values (%s)", [text])


@dataclass
class Flaky:
    """Cannot be opened the first time."""


@app.provide(scope="worker")
async def client() -> AsyncIterator[Client]:
    note(nobody, "client opened")
    await asyncio.sleep(0.01)
    yield Client(os.getpid())
    await asyncio.sleep(0.01)
    note(nobody, "client closed")


@app.provide(scope="worker")
def pool() -> Iterator[Pool]:
    note(nobody, "pool opened")
    yield Pool(os.getpid())
    note(nobody, "pool closed")


@app.provide
def session(ctx: pgqueue.Context, pool: Pool) -> Iterator[Session]:
    note(ctx, "session opened")
    try:
        yield Session(pool, ctx.id)
    except ValueError as error:
        note(ctx, "session saw", error=str(error))  # and swallows it
    finally:
        note(ctx, "session closed")


@app.provide
def orders(ctx: pgqueue.Context[psycopg.AsyncConnection[Any]]) -> Iterator[Orders]:
    yield Orders(ctx.connection)
    if (FOLDER / "closing-fails").exists():
        raise OSError("could not be closed")


@app.provide(scope="worker")
async def flaky() -> Flaky:
    if not (FOLDER / "flaky").exists():
        (FOLDER / "flaky").touch()
        raise ConnectionRefusedError("not yet")
    return Flaky()


@app.task(retry=Fixed(0.01, attempts=2))
async def work(
    ctx: pgqueue.Context,
    fail: bool = False,
    client: Client = pgqueue.PROVIDED,
    session: Session = pgqueue.PROVIDED,
) -> None:
    note(ctx, "start", client=client.pid, pool=session.pool.pid, job=session.job)
    await asyncio.sleep(0)
    if fail:
        raise ValueError("the handler's")
    note(ctx, "end")


@app.task
def work_sync(ctx: pgqueue.Context, session: Session = pgqueue.PROVIDED) -> None:
    note(ctx, "start", pool=session.pool.pid, job=session.job)


@app.task(executor="process", max_jobs_per_child=1)
def work_apart(ctx: pgqueue.Context, session: Session = pgqueue.PROVIDED) -> None:
    note(ctx, "start", pool=session.pool.pid, job=session.job)


@app.task(executor="process")
def work_aside(ctx: pgqueue.Context, session: Session = pgqueue.PROVIDED) -> None:
    """As `work_apart`, in a process that stays."""
    note(ctx, "start", pool=session.pool.pid, job=session.job)


@app.task(transactional=True, retry=Fixed(0.01, attempts=1))
async def write(
    ctx: pgqueue.Context[psycopg.AsyncConnection[Any]], text: str, orders: Orders = pgqueue.PROVIDED
) -> None:
    note(ctx, "start")
    await orders.write(text)


@app.batch_task(size=3, wait="5s")
async def batch(jobs: list[pgqueue.BatchJob[int]], client: Client = pgqueue.PROVIDED) -> None:
    for job in jobs:
        note(SimpleNamespace(id=job.id, attempt=1), "start", client=client.pid, size=len(jobs))  # type: ignore[arg-type]


@app.task(timeout=0.2, retry=Fixed(0.01, attempts=1))
async def too_long(ctx: pgqueue.Context, session: Session = pgqueue.PROVIDED) -> None:
    note(ctx, "start", job=session.job)
    await asyncio.Event().wait()


@app.task(retry=Fixed(0.01, attempts=2))
async def patient(ctx: pgqueue.Context, flaky: Flaky = pgqueue.PROVIDED) -> None:
    note(ctx, "start", flaky=repr(flaky))


# Middleware ---------------------------------------------------------------------------------------------

layered = pgqueue.App(name="with middleware")


async def outer(ctx: pgqueue.Context[Any], call_next: CallNext) -> Any:
    note(ctx, "before")
    try:
        return await call_next()
    except TimeoutError as error:
        raise pgqueue.Snooze("10m") from error
    finally:
        note(ctx, "after")


def outer_sync(ctx: pgqueue.Context[Any], call_next: Callable[[], Any]) -> Any:
    note(ctx, "before")
    try:
        return call_next()
    finally:
        note(ctx, "after")


layered.middleware(outer, outer_sync)


async def doubles(ctx: pgqueue.Context[Any], call_next: CallNext) -> Any:
    note(ctx, "inside")
    return await call_next() * 2


@layered.task(keep_result=True, middleware=[doubles])
async def answer(n: int) -> int:
    await asyncio.sleep(0)
    return n


@layered.task
def answer_sync(ctx: pgqueue.Context, n: int) -> int:
    note(ctx, "start")
    return n


@layered.task
async def gives_up(ctx: pgqueue.Context) -> None:
    note(ctx, "start")
    raise TimeoutError


@layered.task(transactional=True)
async def guarded(ctx: pgqueue.Context[psycopg.AsyncConnection[Any]]) -> None:
    note(ctx, "start")


# Apps that cannot work ----------------------------------------------------------------------------------

lacking = pgqueue.App(name="without a provider")


@lacking.task
async def send(pool: Pool = pgqueue.PROVIDED) -> None: ...


halved = pgqueue.App(name="with half a middleware")
halved.middleware(outer)


@halved.task
def resize() -> None: ...
