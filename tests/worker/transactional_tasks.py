"""Transactional tasks of every kind of connection: each writes a row and enqueues a child, then does `then`.

A module of its own, so that the other workers under test do not pay for SQLAlchemy's import.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import pgqueue
from pgqueue.retry import Fixed
from tests.worker.tasks import app, at_gate, at_gate_sync, is_first, note, quick

EFFECTS = "create table public.effects (job bigint not null)"
INSERT = "insert into public.effects (job) values (%s)"
INSERT_NAMED = text("insert into public.effects (job) values (:job)")


@contextmanager
def divided_by_zero() -> Iterator[None]:
    """Swallows that error, without pytest: a worker that had to import it would start later."""
    try:
        yield
    except (psycopg.errors.DivisionByZero, DataError):
        return
    raise AssertionError("there was no error to swallow")


transactional = app.task(transactional=True, retry=Fixed(3600, attempts=2))
follow_up = quick.using(delay="1h")
"""The child: it stays where it is, to be looked at."""


@transactional
async def write(
    ctx: pgqueue.Context[psycopg.AsyncConnection[Any]], then: str = "return", gate: str | None = None
) -> None:
    note(ctx, "start")
    await ctx.connection.execute(INSERT, [ctx.id])
    await follow_up.enqueue(ctx.connection)
    match then:
        case "commit":
            await ctx.connection.commit()
        case "commit in SQL":
            await ctx.connection.execute("commit")
        case "rollback":
            await ctx.connection.rollback()
        case "swallow an error":
            with divided_by_zero():
                await ctx.connection.execute("select 1 / 0")
    note(ctx, "wrote")
    if gate is not None and is_first(ctx):
        await at_gate(gate)
    if then == "raise":
        raise ValueError("on second thoughts")
    note(ctx, "end")


@transactional
def write_sync(
    ctx: pgqueue.Context[psycopg.Connection[Any]], then: str = "return", gate: str | None = None
) -> None:
    note(ctx, "start")
    ctx.connection.execute(INSERT, [ctx.id])
    follow_up.enqueue(ctx.connection)
    match then:
        case "commit":
            ctx.connection.commit()
        case "commit in SQL":
            ctx.connection.execute("commit")
        case "rollback":
            ctx.connection.rollback()
        case "swallow an error":
            with divided_by_zero():
                ctx.connection.execute("select 1 / 0")
    note(ctx, "wrote")
    if gate is not None and is_first(ctx):
        at_gate_sync(gate)
    if then == "raise":
        raise ValueError("on second thoughts")
    note(ctx, "end")


@transactional
async def write_session(
    ctx: pgqueue.Context[AsyncSession], then: str = "return", gate: str | None = None
) -> None:
    note(ctx, "start")
    await ctx.connection.execute(INSERT_NAMED, {"job": ctx.id})
    await follow_up.enqueue(ctx.connection)
    match then:
        case "commit":
            await ctx.connection.commit()
        case "rollback":
            await ctx.connection.rollback()
        case "swallow an error":
            with divided_by_zero():
                await ctx.connection.execute(text("select 1 / 0"))
    note(ctx, "wrote")
    if gate is not None and is_first(ctx):
        await at_gate(gate)
    if then == "raise":
        raise ValueError("on second thoughts")
    note(ctx, "end")


@transactional
def write_session_sync(ctx: pgqueue.Context[Session], then: str = "return", gate: str | None = None) -> None:
    note(ctx, "start")
    ctx.connection.execute(INSERT_NAMED, {"job": ctx.id})
    follow_up.enqueue(ctx.connection)
    match then:
        case "commit":
            ctx.connection.commit()
        case "rollback":
            ctx.connection.rollback()
        case "swallow an error":
            with divided_by_zero():
                ctx.connection.execute(text("select 1 / 0"))
    note(ctx, "wrote")
    if gate is not None and is_first(ctx):
        at_gate_sync(gate)
    if then == "raise":
        raise ValueError("on second thoughts")
    note(ctx, "end")


KINDS = (write, write_sync, write_session, write_session_sync)

__all__ = ["EFFECTS", "KINDS", "app"]
