"""An app whose handlers take steps, for tests/worker/test_steps.py."""

from __future__ import annotations

from typing import Any

import psycopg

import pgqueue
from pgqueue.retry import Fixed
from tests.worker.tasks import at_gate, is_first, note, noted

app = pgqueue.App()
EFFECTS = "create table effects (job bigint not null, step text not null)"


class Interrupted(Exception):
    """What the first attempt ends with, after its steps."""


@app.task(retry=Fixed(0, attempts=5))
async def in_steps(ctx: pgqueue.Context) -> None:
    def charge() -> dict[str, Any]:
        note(ctx, "charged")
        return {"receipt": [ctx.id, None, "é"]}

    async def book(connection: psycopg.AsyncConnection[Any]) -> int:
        await connection.execute("insert into effects values (%s, 'book')", [ctx.id])
        return 7

    receipt = await ctx.step("charge", charge)
    booked = await ctx.step("book", book)
    note(ctx, "steps", receipt=receipt, booked=booked)
    if is_first(ctx):
        raise Interrupted


@app.task(retry=Fixed(0, attempts=5))
def in_steps_sync(ctx: pgqueue.Context) -> None:
    def charge() -> dict[str, Any]:
        note(ctx, "charged")
        return {"receipt": [ctx.id, None, "é"]}

    def book(connection: psycopg.Connection[Any]) -> int:
        connection.execute("insert into effects values (%s, 'book')", [ctx.id])
        return 7

    receipt = ctx.step("charge", charge)
    booked = ctx.step("book", book)
    note(ctx, "steps", receipt=receipt, booked=booked)
    if is_first(ctx):
        raise Interrupted


@app.task(retry=Fixed(0, attempts=5))
async def fails_in_its_step(ctx: pgqueue.Context) -> None:
    async def book(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("insert into effects values (%s, 'book')", [ctx.id])
        if is_first(ctx):
            raise Interrupted

    await ctx.step("book", book)


@app.task(retry=Fixed(0, attempts=5))
async def held_in_its_step(ctx: pgqueue.Context) -> None:
    async def book(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("insert into effects values (%s, 'book')", [ctx.id])
        note(ctx, "written")
        await at_gate("hold")

    await ctx.step("book", book)


@app.task(retry=Fixed(0, attempts=1))
async def returns_what_is_no_json(ctx: pgqueue.Context) -> None:
    await ctx.step("a", lambda: {1, 2})


@app.task(transactional=True, retry=Fixed(0, attempts=1))
async def in_a_transaction(ctx: pgqueue.Context[psycopg.AsyncConnection[Any]]) -> None:
    await ctx.step("a", lambda: None)


@app.task
async def dead_after_its_step(ctx: pgqueue.Context) -> None:
    def charge() -> str:
        note(ctx, "charged")
        return "receipt"

    receipt = await ctx.step("charge", charge)
    if is_first(ctx):
        raise pgqueue.Fail("after the step")
    note(ctx, "went on", receipt=receipt)


@app.task
async def side_by_side(ctx: pgqueue.Context) -> None:
    async def book(connection: psycopg.AsyncConnection[Any]) -> None:
        with noted(ctx):
            await connection.execute("select pg_sleep(0.1)")

    await ctx.step("book", book)


@app.task
def side_by_side_sync(ctx: pgqueue.Context) -> None:
    def book(connection: psycopg.Connection[Any]) -> None:
        with noted(ctx):
            connection.execute("select pg_sleep(0.1)")

    ctx.step("book", book)


@app.task(retry=Fixed(0, attempts=1))
async def nested(ctx: pgqueue.Context) -> None:
    async def book(_connection: psycopg.AsyncConnection[Any]) -> None:
        await ctx.step("inner", lambda: None)

    assert await ctx.step("before", lambda: 7) == 7
    await ctx.step("book", book)


@app.task(retry=Fixed(0, attempts=1))
def nested_sync(ctx: pgqueue.Context) -> None:
    def book(_connection: psycopg.Connection[Any]) -> None:
        ctx.step("inner", lambda: None)

    assert ctx.step("before", lambda: 7) == 7
    ctx.step("book", book)
