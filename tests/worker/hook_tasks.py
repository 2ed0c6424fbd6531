"""The tasks whose hooks are tested: each event that a hook is told becomes a line of the history."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from typing import Any, cast

import psycopg

import pgqueue
from pgqueue import hooks
from pgqueue.retry import Fixed
from tests.worker.tasks import at_gate, at_gate_sync, is_first, note

app = pgqueue.App(name="hooked")
AT_ONCE = Fixed(0.01, attempts=3)


def told(event: hooks.JobEvent, **said: Any) -> None:
    """Writes down that a hook was told."""
    attempt = getattr(event, "attempt", 0)
    seen = cast(Any, type("Seen", (), {"id": event.id, "attempt": attempt}))
    note(seen, "told", event=type(event).__name__.lower(), task=event.task, args=event.args, **said)


@app.on("started")
async def on_started(event: hooks.Started) -> None:
    told(event)


@app.on("succeeded")
def on_succeeded(event: hooks.Succeeded) -> None:
    told(event)


@app.on("failed")
async def on_failed(event: hooks.Failed) -> None:
    told(event, error=event.error.type, message=event.error.message, retry_in=event.retry_in)


@app.on("retried")
def on_retried(event: hooks.Retried) -> None:
    told(event, delay=event.delay)


@app.on("dead")
async def on_dead(event: hooks.Dead) -> None:
    told(event, reason=event.reason, error=event.error.type)


@app.on("cancelled")
def on_cancelled(event: hooks.Cancelled) -> None:
    told(event, reason=event.reason)


@app.on("rescued")
async def on_rescued(event: hooks.Rescued) -> None:
    told(event, crashes=event.crashes, error=event.error.type)


@app.task(retry=AT_ONCE)
async def work(ctx: pgqueue.Context, fail: int = 0, gate: str = "") -> None:
    """Fails in its first `fail` attempts, after its gate was opened."""
    note(ctx, "start")
    if gate:
        await at_gate(gate)
    if ctx.attempt <= fail:
        raise ValueError("not yet")
    note(ctx, "end")


@app.task
async def work_twice(ctx: pgqueue.Context) -> None:
    """Waits at the gate `first` when it starts for the first time, at `second` after that."""
    first = is_first(ctx)
    note(ctx, "start")
    await at_gate("first" if first else "second")


@app.task
def work_sync(ctx: pgqueue.Context, gate: str = "") -> None:
    note(ctx, "start")
    if gate:
        at_gate_sync(gate)


@app.task
async def withdraw(ctx: pgqueue.Context) -> None:
    note(ctx, "start")
    raise pgqueue.Cancel("the order was withdrawn")


@app.task(executor="process")
def apart(ctx: pgqueue.Context) -> None:
    note(ctx, "start")


@app.task(transactional=True)
async def transfer(ctx: pgqueue.Context[psycopg.AsyncConnection[Any]], deferred: bool = False) -> None:
    """Fails at its commit when `deferred`: a constraint is looked at only then."""
    note(ctx, "start")
    connection = ctx.connection
    await connection.execute(
        "create temp table if not exists once (id bigint constraint once_each unique deferrable initially deferred)"
    )
    for _ in range(2 if deferred else 1):
        await connection.execute("insert into once values (1)")
    await connection.execute("select from once")
    if not deferred:
        await connection.execute("delete from once")


@transfer.on("succeeded")
async def on_transfer(event: hooks.Succeeded) -> None:
    """What the worker has committed can be seen by others."""
    async with await psycopg.AsyncConnection.connect(os.environ["PGQUEUE_DSN"]) as connection:
        found = await connection.execute("select state from pgqueue_bi.jobs where id = %s", [event.id])
        told(event, state=(await found.fetchone() or [None])[0])


@app.task
async def kill_once(ctx: pgqueue.Context) -> None:
    """Kills its process when it starts for the first time."""
    note(ctx, "start")
    if is_first(ctx):
        os.kill(os.getpid(), signal.SIGKILL)


@app.task(on_crash="dead")
async def kill_for_good(ctx: pgqueue.Context) -> None:
    note(ctx, "start")
    os.kill(os.getpid(), signal.SIGKILL)


# An app of its own: hooks that misbehave, and a task without any -----------------------------------------

bad = pgqueue.App(name="with bad hooks")


@bad.task
async def hooked(ctx: pgqueue.Context) -> None:
    note(ctx, "start")


@bad.task
async def plain(ctx: pgqueue.Context) -> None:
    note(ctx, "start")


@hooked.on("succeeded")
def raises(event: hooks.Succeeded) -> None:
    told(event)
    raise RuntimeError("the hook is broken")


@hooked.on("succeeded")
async def hangs(_event: hooks.Succeeded) -> None:
    await asyncio.Event().wait()


@hooked.on("started")
def exits(_event: hooks.Started) -> None:
    raise SystemExit(3)


# An app whose hooks are slow ----------------------------------------------------------------------------

slow = pgqueue.App(name="with slow hooks")


@slow.task
async def brief(ctx: pgqueue.Context) -> None:
    note(ctx, "start")


@brief.on("succeeded")
def takes_a_while(event: hooks.Succeeded) -> None:
    time.sleep(0.5)
    told(event)


# An app that hears alerts, and misbehaves once -----------------------------------------------------------

alarmed = pgqueue.App(name="with alerts")


@alarmed.task
async def quiet(ctx: pgqueue.Context) -> None:
    note(ctx, "start")


@alarmed.on_alert
async def on_alert(alert: hooks.Alert) -> None:
    note(cast(Any, type("Seen", (), {"id": 0, "attempt": 0})), "alert", **dataclasses.asdict(alert))


@alarmed.on_alert
def on_alert_raises(_alert: hooks.Alert) -> None:
    raise RuntimeError("the hook is broken")
