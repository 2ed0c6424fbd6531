"""Enqueues, right and wrong, for `tests/unit/test_typing.py`. Type checkers read this file; nothing runs it.

A line ends with the errors that it has to give: `# E: codes of mypy / rules of pyright`. A line without such
a comment has to give none.
"""

# fmt: off
# mypy: disable-error-code="type-arg"

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, assert_type

import asyncpg
import django.db
import psycopg
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

import pgqueue
from pgqueue import App, Context, Exponential, Job
from pgqueue.schedule import Schedule

app = App()


@app.task
def charge(order_id: int, currency: str = "EUR") -> float:
    return 1.0


@app.task(queue="email", retry=Exponential(attempts=3))
async def send_welcome(user_id: int) -> None: ...


@app.task
async def with_context(ctx: Context, user_id: int) -> None:
    assert_type(ctx.id, int)


@app.task(transactional=True)
async def transactional(ctx: Context[psycopg.AsyncConnection[Any]], *, order_id: int) -> None:
    assert_type(ctx.connection, psycopg.AsyncConnection[Any])


@app.task(transactional=True)
def in_session(ctx: Context[Session], order_id: int) -> None:
    assert_type(ctx.connection, Session)
    ctx.connection.no_such_thing()  # E: attr-defined / reportAttributeAccessIssue


@app.task
def nothing() -> None: ...


@app.task
def open_ended(user_id: int, **rest: str) -> None: ...


@app.task
def anything(data: Any, times: int = 1) -> None: ...


@app.task(queue="email")
def any_object(data: object) -> None: ...


@app.batch_task(size=10, wait="50ms", queue="index", timeout="30s")
async def index(jobs: list[pgqueue.BatchJob[int]]) -> None:
    assert_type(jobs[0].item, int)


def items_of_a_batch_task(connection: psycopg.Connection) -> None:
    assert_type(index.enqueue(connection, 7), Job)
    index.using(priority=0).enqueue(connection, 7)
    index.enqueue(connection, "7")  # E: call-overload / reportCallIssue, reportArgumentType
    index.enqueue(connection)  # E: call-overload / reportCallIssue
    app.enqueue_many(connection, [index.item(7)])


@app.batch_task(size=10)  # E: arg-type / reportArgumentType
async def takes_one(job: pgqueue.BatchJob[int]) -> None: ...


def targets_sync(
    connection: psycopg.Connection,
    cursor: psycopg.Cursor,
    engine_connection: Connection,
    session: Session,
) -> None:
    assert_type(charge.enqueue(connection, 7), Job)
    assert_type(charge.enqueue(cursor, order_id=7, currency="USD"), Job)
    assert_type(charge.enqueue(engine_connection, 7, "USD"), Job)
    assert_type(send_welcome.enqueue(session, user_id=7), Job)
    assert_type(send_welcome.enqueue(django.db.connection, user_id=7), Job)


async def targets_async(
    connection: psycopg.AsyncConnection,
    cursor: psycopg.AsyncCursor,
    engine_connection: AsyncConnection,
    session: AsyncSession,
    asyncpg_connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    assert_type(charge.enqueue(connection, 7), Awaitable[Job])
    assert_type(await charge.enqueue(connection, 7), Job)
    assert_type(await charge.enqueue(cursor, 7), Job)
    assert_type(await send_welcome.enqueue(engine_connection, user_id=7), Job)
    assert_type(await send_welcome.enqueue(session, user_id=7), Job)
    assert_type(await send_welcome.enqueue(asyncpg_connection, user_id=7), Job)
    print(send_welcome.enqueue(connection, user_id=7).id)  # E: attr-defined / reportAttributeAccessIssue
    await send_welcome.enqueue(session, user_id="7")  # E: call-overload / reportCallIssue, reportArgumentType
    await app.enqueue_async(send_welcome, 7, 8)  # E: call-overload / reportCallIssue
    async with app.bulk(connection) as bulk:
        bulk.enqueue(send_welcome, 7)
    with app.bulk(connection) as bulk:  # E: attr-defined / reportGeneralTypeIssues
        pass
    assert_type(await app.enqueue_many(connection, [charge.item(1)]), list[Job])


def wrong_arguments(connection: psycopg.Connection) -> None:
    charge.enqueue(connection, "7")  # E: call-overload / reportCallIssue, reportArgumentType
    charge.enqueue(connection, order_id=None)  # E: call-overload / reportCallIssue, reportArgumentType
    charge.enqueue(connection)  # E: call-overload / reportCallIssue
    charge.enqueue(connection, 7, order="x")  # E: call-overload / reportCallIssue
    charge.enqueue(connection, 7, "EUR", 1)  # E: call-overload / reportCallIssue
    charge.enqueue(connection, 7, order_id=7)  # E: call-overload / reportCallIssue
    charge.enqueue(7, 7)  # E: call-overload / reportCallIssue, reportArgumentType
    charge.enqueue(order_id=7)  # E: call-overload / reportCallIssue
    nothing.enqueue(connection)
    nothing.enqueue(connection, 1)  # E: call-overload / reportCallIssue
    open_ended.enqueue(connection, 1, more="x")
    open_ended.enqueue(connection, 1, more=1)  # E: call-overload / reportCallIssue, reportArgumentType


def the_context_is_no_argument(connection: psycopg.Connection, ctx: Context) -> None:
    with_context.enqueue(connection, user_id=7)
    with_context.enqueue(connection, 7)
    with_context.enqueue(connection, user_id="7")  # E: call-overload / reportCallIssue, reportArgumentType
    with_context.enqueue(connection, ctx, 7)  # neither checker sees this one; it is refused at the call
    with_context.enqueue(connection)  # E: call-overload / reportCallIssue
    transactional.enqueue(connection, order_id=7)
    transactional.enqueue(connection, 7)  # E: call-overload / reportCallIssue
    in_session.enqueue(connection, order_id=7)
    in_session.enqueue(connection, orderid=7)  # E: call-overload / reportCallIssue


def a_first_parameter_of_any_type_is_no_context(connection: psycopg.Connection) -> None:
    anything.enqueue(connection, data={"a": 1}, times=2)
    anything.enqueue(connection, [1], 2)
    any_object.enqueue(connection, data=1)


def with_options(connection: psycopg.Connection) -> None:
    later = send_welcome.using(delay="3d", priority=2, tags=["vip"])
    assert_type(later.enqueue(connection, user_id=7), Job)
    later.enqueue(connection, user_id="7")  # E: call-overload / reportCallIssue, reportArgumentType
    later.enqueue(connection)  # E: call-overload / reportCallIssue
    with_context.using(priority=2).enqueue(connection, 7)
    with_context.using(priority=2).enqueue(connection, "7")  # E: call-overload / reportCallIssue, reportArgumentType
    send_welcome.using(priorty=2)  # E: call-arg / reportCallIssue
    send_welcome.using(priority="high")  # E: arg-type / reportArgumentType
    send_welcome.using(run_at="tomorrow")  # E: arg-type / reportArgumentType
    send_welcome.using(retry=3)  # E: arg-type / reportArgumentType


def without_a_connection() -> None:
    assert_type(app.enqueue(charge, 7), Job)
    app.enqueue(charge, "7")  # E: call-overload / reportCallIssue, reportArgumentType
    app.enqueue(charge)  # E: call-overload / reportCallIssue
    app.enqueue(charge, 7, curency="x")  # E: arg-type / reportCallIssue
    app.enqueue(with_context.using(delay=5), user_id=7)
    app.enqueue(with_context.using(delay=5), user_id="7")  # E: call-overload / reportCallIssue
    app.enqueue("charge", 7)  # E: call-overload / reportCallIssue, reportArgumentType


def many(connection: psycopg.Connection) -> None:
    items = [charge.item(7), send_welcome.using(priority=1).item(user_id=8)]
    assert_type(app.enqueue_many(connection, items), list[Job])
    assert_type(app.enqueue_many(items), list[Job])
    charge.item("7")  # E: arg-type / reportArgumentType
    with_context.item()  # E: call-overload / reportCallIssue
    with app.bulk(connection) as bulk:
        bulk.enqueue(charge, 7)
        bulk.enqueue(charge, "7")  # E: call-overload / reportCallIssue, reportArgumentType
        bulk.enqueue(send_welcome.using(delay=1), user=7)  # E: call-overload / reportCallIssue


async def the_function_itself(ctx: Context) -> None:
    assert_type(charge(7), float)
    assert_type(await send_welcome(7), None)
    await with_context(ctx, 7)
    charge("7")  # E: arg-type / reportArgumentType
    await with_context(7)  # E: call-arg, arg-type / reportCallIssue


def definitions() -> None:
    app.task(queu="email")  # E: call-overload / reportCallIssue
    app.task(retry=3)  # E: call-overload / reportArgumentType
    pgqueue.Retry(after="5m")
    pgqueue.Snooze()  # E: call-arg / reportCallIssue


class Mailer: ...


@app.task
async def mail(user_id: int, mailer: Mailer = pgqueue.PROVIDED) -> None:
    assert_type(mailer, Mailer)


@app.task
def mail_with_context(ctx: Context, user_id: int, *, mailer: Mailer = pgqueue.PROVIDED) -> None: ...


@app.provide
def make_mailer() -> Mailer:
    return Mailer()


@app.provide(scope="worker")
async def open_session(mailer: Mailer) -> Session:
    return Session()


def what_is_provided_is_not_asked_for(connection: psycopg.Connection) -> None:
    assert_type(mail.enqueue(connection, user_id=7), Job)
    mail.enqueue(connection, 7)
    mail.enqueue(connection)  # E: call-overload / reportCallIssue
    mail.enqueue(connection, user_id=7, mailer=7)  # E: call-overload / reportCallIssue, reportArgumentType
    mail.enqueue(connection, user_id=7, mailer=Mailer())  # neither checker sees this one; it is refused at the call
    mail_with_context.enqueue(connection, user_id=7)
    mail_with_context.enqueue(connection)  # E: call-overload / reportCallIssue
    app.enqueue(mail.using(delay=5), user_id=7)
    assert_type(make_mailer(), Mailer)
    app.provide(make_mailer, scope="request")  # E: call-overload / reportArgumentType
    with app.override(Mailer, Mailer()):
        pass


@app.on("failed")
def count(event: pgqueue.hooks.Failed) -> None:
    assert_type(event.error.message, str)
    assert_type(event.retry_in, float | None)
    print(event.no_such_thing)  # E: attr-defined / reportAttributeAccessIssue


@mail.on("dead")
async def alert(event: pgqueue.hooks.Dead) -> None:
    assert_type(event.reason, str)


@app.on("succeeded")
@app.on("rescued")
@mail.on("cancelled")
def any_attempt(event: pgqueue.hooks.AttemptEvent) -> None:
    assert_type(event.attempt, int)


def hooks() -> None:
    count(alert)  # E: arg-type / reportArgumentType
    app.on("dead")(count)  # E: type-var / reportArgumentType
    app.on("enqueued")(alert)  # E: type-var / reportArgumentType
    app.on("enqueue")  # E: call-overload / reportCallIssue, reportArgumentType
    with_context.on("started")(any_attempt)


@app.middleware
async def timed(ctx: Context, call_next: pgqueue.middleware.CallNext) -> Any:
    return await call_next()


def timed_sync(ctx: Context, call_next: Callable[[], Any]) -> Any:
    return call_next()


def not_middleware(ctx: Context) -> None: ...


def middleware() -> None:
    app.middleware(timed, timed_sync)
    app.middleware(not_middleware)  # E: type-var / reportArgumentType
    app.task(middleware=[timed, timed_sync])
    app.task(middleware=[not_middleware])  # E: list-item / reportArgumentType


@app.schedule(cron="0 3 * * *", tz="Europe/Paris", missed="all")
@app.schedule(name="often", every="30s", args={"days": 1})
@app.task
async def clean_up(days: int = 90) -> None: ...


def schedules(connection: psycopg.Connection) -> None:
    assert_type(clean_up.enqueue(connection, days=7), Job)
    clean_up.enqueue(connection, days="7")  # E: call-overload / reportCallIssue, reportArgumentType
    assert_type(app.schedule("weekly", clean_up.using(queue="slow"), every="7d"), Schedule)
    app.schedule("weekly", clean_up, evry="7d")  # E: call-overload / reportCallIssue
    app.schedule("weekly", clean_up, cron=7)  # E: call-overload / reportArgumentType
    app.schedule("weekly", clean_up, cron="@daily", missed="never")  # E: call-overload / reportArgumentType
    app.add_schedule("weekly", clean_up, cron="@daily", overlap="wait")  # E: arg-type / reportArgumentType
    app.schedule("weekly", print, every=60)  # E: call-overload / reportArgumentType
    assert_type(app.schedules["weekly"], Schedule)
    assert_type(app.run_schedule("weekly"), Job)
