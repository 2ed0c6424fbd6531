"""Tasks whose args nobody reads in the database, in every way in which a handler runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import psycopg

import pgqueue
from pgqueue.hooks import Dead, Started
from pgqueue.retry import Fixed
from tests.worker.tasks import FOLDER, note

OLD = "2025:" + "b2xk" * 10 + "b2w="
NEW = "2026:" + "bmV3" * 10 + "bmU="
SECRET = "4111 1111 1111 1111"

app = pgqueue.App(name="encryption")


def _ended(ctx: pgqueue.Context[Any], card: str) -> str:
    assert card == SECRET
    note(ctx, "end")
    return f"charged {card}"


@app.task(encrypt=True, keep_result=True)
async def charge(ctx: pgqueue.Context, card: str) -> str:
    return _ended(ctx, card)


@app.task(encrypt=True, keep_result=True)
def charge_threaded(ctx: pgqueue.Context, card: str) -> str:
    return _ended(ctx, card)


@app.task(encrypt=True, keep_result=True, executor="process")
def charge_apart(ctx: pgqueue.Context, card: str) -> str:
    return _ended(ctx, card)


@app.task(encrypt=True, keep_result=True, transactional=True)
async def charge_in_transaction(ctx: pgqueue.Context[psycopg.AsyncConnection[Any]], card: str) -> str:
    return _ended(ctx, card)


@app.task(encrypt=True)
async def charge_in_steps(ctx: pgqueue.Context, card: str) -> None:
    receipt = await ctx.step("charge", lambda: {"card": card})
    if ctx.attempt == 1:
        raise pgqueue.Retry(after=0)
    assert receipt == {"card": card}
    _ended(ctx, card)


@app.batch_task(size=10, encrypt=True)
def charge_many(jobs: list[pgqueue.BatchJob[str]]) -> None:
    with open(FOLDER / "batch", "a") as told:
        told.writelines(f"{job.item}\n" for job in jobs)


@app.task(encrypt=True, retry=Fixed(0, attempts=1))
async def leak(ctx: pgqueue.Context, card: str) -> None:
    note(ctx, "start")
    raise ValueError(f"cannot charge {card!r}")


@app.task(retry=Fixed(0, attempts=1))
async def log_in(ctx: pgqueue.Context, user: str, password: str) -> None:
    note(ctx, "start")
    raise ValueError(f"{user} cannot log in with {password}")


@app.task(encrypt=True, on_crash="dead")
async def crash(card: str) -> None:
    os._exit(len(card))


@app.task
async def anything(ctx: pgqueue.Context, **args: str) -> None:
    """Takes whatever name there is, that of what is sealed as well."""
    note(ctx, "end", **args)


@app.on("started")
def hear_start(event: Started) -> None:
    _tell(event.args)


@app.on("dead")
def hear_death(event: Dead) -> None:
    _tell(event.args)


def _tell(args: Mapping[str, Any]) -> None:
    with open(FOLDER / "heard", "a") as told:
        told.write(json.dumps(dict(args)) + "\n")


app.schedule("monthly", charge, cron="0 0 1 1 *", args={"card": SECRET})
WAYS = (charge, charge_threaded, charge_apart, charge_in_transaction)
