"""The test kit: what it asserts, what it runs and where, and that a test which rolls back leaves nothing."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import psycopg
import pytest
from sqlalchemy import ForeignKey, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import pgqueue
from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.errors import (
    ConfigurationError,
    InvalidArgs,
    InvalidOption,
    PgqueueError,
    TimedOut,
    UnknownTask,
    UnusableConnection,
)
from pgqueue.settings import Settings
from pgqueue.testing import (
    EndlessDrain,
    assert_enqueued,
    crash_after,
    drain,
    enqueued,
    lend,
    perform,
    perform_async,
    refute_enqueued,
    run_one,
    travel,
)
from tests.conformance.kinds import KINDS, Kind
from tests.support import Databases

app = pgqueue.App()
seen: list[Any] = []
"""What handlers have said, in the order in which they ran."""

TABLES = (
    *(f"pgqueue.{state}_jobs" for state in ("ready", "scheduled", "blocked", "running", "finished")),
    *("pgqueue.dead_letters", "pgqueue.job_failures", "pgqueue.job_reports", "pgqueue.job_steps"),
    *("pgqueue.unique_keys", "pgqueue.workers", "pgqueue.heartbeats", "effects", "parents"),
)


@pytest.fixture(scope="module")
def dsn(databases: Databases) -> Iterator[str]:
    """One database for all tests: each rolls back."""
    dsn = databases.create()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table effects (task text)")
        connection.execute("create table parents (id integer primary key)")
        connection.execute("create table children (id integer references parents primary key)")
    yield dsn
    databases.drop(dsn)


@pytest.fixture(scope="module")
def observer(dsn: str) -> Iterator[psycopg.Connection]:
    """Another session: it sees what is committed."""
    with psycopg.connect(dsn, autocommit=True) as observer:
        yield observer


@pytest.fixture(autouse=True)
def nothing_is_left(observer: psycopg.Connection) -> Iterator[None]:
    """Whatever a test does on a connection that it does not commit, nobody else ever sees it."""
    seen.clear()
    yield
    assert not [table for table in TABLES if rows(observer, table)]


@pytest.fixture(scope="module")
def warm(dsn: str) -> Iterator[psycopg.Connection]:
    """A session that many tests use in turn: to plan every function anew costs more than most tests."""
    with psycopg.connect(dsn) as connection:
        yield connection


@pytest.fixture
def connection(warm: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """The test's connection, rolled back after it."""
    yield warm
    warm.rollback()


def rows(connection: psycopg.Connection, table: str) -> int:
    (count,) = connection.execute(f"select count(*) from {table}").fetchone() or (0,)
    return int(count)


def states(connection: psycopg.Connection) -> list[str]:
    found = connection.execute("select state from pgqueue_bi.jobs order by id").fetchall()
    return [state for (state,) in found]


@dataclass
class Card:
    number: str
    holder: uuid.UUID


# Tasks


@app.task(queue="email")
async def greet(name: str, times: int = 1) -> str:
    await asyncio.sleep(0)
    seen.append(name)
    return f"hello {name}" * times


@app.task
def count(number: int) -> int:
    seen.append((number, threading.current_thread() is threading.main_thread()))
    asyncio.run(asyncio.sleep(0))  # no loop is running where a sync handler runs
    return number + 1


@app.task
def charge(card: Card, at: datetime | None = None, lines: list[dict[str, int]] | None = None) -> None: ...


@app.task(retry=pgqueue.Fixed("10s", attempts=3))
async def fragile(until: int = 99) -> None:
    current = calls_of["fragile"] = calls_of.get("fragile", 0) + 1
    seen.append(current)
    if current < until:
        raise ConnectionError(f"try {current}")


calls_of: dict[str, int] = {}


@app.task
def end_as(how: str) -> None:
    match how:
        case "retry":
            raise pgqueue.Retry(after=30)
        case "snooze":
            raise pgqueue.Snooze("5m")
        case "fail":
            raise pgqueue.Fail("no use")
        case "cancel":
            raise pgqueue.Cancel("not needed")


INSERT = "insert into effects values ('{}')"


@app.task(transactional=True)
async def write_async(ctx: pgqueue.Context[psycopg.AsyncConnection], fail: bool = False) -> None:
    await ctx.connection.execute(INSERT.format("write_async"))
    await greet.enqueue(ctx.connection, name="write_async")
    if fail:
        raise ValueError("no")


@app.task(transactional=True)
def write_sync(ctx: pgqueue.Context[psycopg.Connection], fail: bool = False) -> None:
    ctx.connection.execute(INSERT.format("write_sync"))
    greet.enqueue(ctx.connection, name="write_sync")
    if fail:
        raise ValueError("no")


@app.task(transactional=True)
async def write_session_async(ctx: pgqueue.Context[AsyncSession], fail: bool = False) -> None:
    await ctx.connection.execute(text(INSERT.format("write_session_async")))
    await greet.enqueue(ctx.connection, name="write_session_async")
    if fail:
        raise ValueError("no")


@app.task(transactional=True)
def write_session_sync(ctx: pgqueue.Context[Session], fail: bool = False) -> None:
    ctx.connection.execute(text(INSERT.format("write_session_sync")))
    greet.enqueue(ctx.connection, name="write_session_sync")
    if fail:
        raise ValueError("no")


WRITERS = (write_async, write_sync, write_session_async, write_session_sync)


# Asserting --------------------------------------------------------------------------------------------


def test_an_enqueued_job_is_found_by_its_task_and_returned(connection: psycopg.Connection) -> None:
    made = greet.using(tags=["vip", "de"], priority=2, unique_key="k").enqueue(
        connection, name="Ada", times=2
    )
    [job] = assert_enqueued(connection, greet)
    assert (job.id, job.task, job.queue, job.state, job.priority, job.unique_key) == (
        made.id,
        "greet",
        "email",
        "ready",
        2,
        "k",
    )
    assert (job.args, job.options["tags"]) == ({"name": "Ada", "times": 2}, ["vip", "de"])
    for criteria in (
        {"args": {"name": "Ada"}},
        {"args": {"name": mock.ANY, "times": 2}},
        {"queue": "email", "priority": 2, "unique_key": "k", "tags": ["vip"]},
        {"run_at": 0},
        {"run_at": datetime.now(UTC)},
        {"count": 1},
    ):
        assert assert_enqueued(connection, greet, **criteria) == enqueued(connection)
    assert (
        assert_enqueued(connection, "greet")
        == assert_enqueued(connection)
        == assert_enqueued(connection, greet.using(delay=3))
    )


@pytest.mark.parametrize(
    ("criteria", "nearest"),
    [
        ({"args": {"name": "Bob"}}, "args.name is 'Ada', not 'Bob'"),
        ({"args": {"times": 1}}, "args.times is 2, not 1"),
        ({"args": {"times": True}}, "args.times is 2, not True"),
        ({"queue": "default"}, "queue is 'email', not 'default'"),
        ({"priority": 5}, "priority is 2, not 5"),
        ({"tags": ["vip", "fr"]}, "it has no tag fr"),
        ({"unique_key": "x"}, "unique_key is None, not 'x'"),
        ({"run_at": "1h"}, "it is due in "),
        ({"run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "not 2030-01-01 00:00:00+00:00 (± 5s)"),
        ({"run_at": ("1h", "2h")}, "not between in 1h and in 2h"),
    ],
)
def test_a_failure_shows_what_is_enqueued_and_how_the_nearest_differs(
    connection: psycopg.Connection, criteria: dict[str, Any], nearest: str
) -> None:
    count.enqueue(connection, 1)
    greet.using(tags=["vip"], priority=2).enqueue(connection, name="Ada", times=2)
    refute_enqueued(connection, greet, **criteria)
    with pytest.raises(AssertionError) as failure:
        assert_enqueued(connection, greet, **criteria)
    told = str(failure.value)
    assert "no job of greet" in told
    assert "2 wait:" in told
    assert 'count {"number": 1}' in told
    assert 'greet {"name": "Ada", "times": 2}' in told
    assert f"nearest, but {nearest}" in told or nearest in told


def test_a_wrong_count_says_both_numbers(connection: psycopg.Connection) -> None:
    with pytest.raises(AssertionError, match="no job of greet enqueued\n\nnothing is enqueued"):
        assert_enqueued(connection, greet)
    for name in ("Ada", "Bob"):
        greet.enqueue(connection, name=name)
    assert len(assert_enqueued(connection, greet, count=2)) == 2
    with pytest.raises(AssertionError, match="2 jobs of greet enqueued, not 1"):
        assert_enqueued(connection, greet, count=1)
    assert assert_enqueued(connection, count, count=0) == []


def test_a_refutation_that_fails_shows_the_job(connection: psycopg.Connection) -> None:
    refute_enqueued(connection)
    greet.enqueue(connection, name="Ada")
    refute_enqueued(connection, greet, args={"name": "Bob"})
    refute_enqueued(connection, count)
    with pytest.raises(
        AssertionError, match=r'1 job of greet is enqueued\n\nfound:\n  #\d+ greet \{"name": "Ada"\}'
    ):
        refute_enqueued(connection, greet)


def test_args_are_compared_in_the_form_in_which_they_are_stored(connection: psycopg.Connection) -> None:
    card = Card("4242", uuid.uuid4())
    at = datetime(2026, 1, 1, tzinfo=UTC)
    charge.enqueue(connection, card, at=at, lines=[{"a": 1}, {"b": 2}])
    assert_enqueued(connection, charge, args={"card": card})
    assert_enqueued(connection, charge, args={"card": {"holder": card.holder}, "at": at})
    assert_enqueued(connection, charge, args={"lines": [{"a": 1}, {"b": 2}]})
    refute_enqueued(connection, charge, args={"lines": [{"a": 1}]})
    refute_enqueued(connection, charge, args={"card": {"cvc": mock.ANY}})
    refute_enqueued(connection, charge, args={"card": Card("4242", uuid.uuid4())})


def test_an_argument_that_the_task_does_not_take_is_refused(connection: psycopg.Connection) -> None:
    with pytest.raises(InvalidArgs, match=r"task greet takes no argument nam, did you mean name\?"):
        refute_enqueued(connection, greet, args={"nam": "Ada"})
    with pytest.raises(InvalidOption, match="run_at: expected a datetime with a time zone"):
        assert_enqueued(connection, run_at=datetime(2026, 1, 1))  # noqa: DTZ001 - on purpose
    with pytest.raises(InvalidOption, match="task: expected a task or its name"):
        assert_enqueued(connection, 7)  # type: ignore[call-overload]


def test_a_scheduled_job_is_found_by_its_time(connection: psycopg.Connection) -> None:
    at = datetime.now(UTC) + timedelta(days=3)
    greet.using(run_at=at).enqueue(connection, name="Ada")
    for run_at in (at, "3d", timedelta(days=3), 3 * 86400, ("2d", "4d"), (at - timedelta(1), "4d")):
        [job] = assert_enqueued(connection, greet, run_at=run_at)
        assert job.state == "scheduled"
    refute_enqueued(connection, greet, run_at=timedelta(days=3, minutes=1))
    assert_enqueued(connection, greet, run_at=timedelta(days=3, minutes=1), tolerance="2m")
    refute_enqueued(connection, greet, run_at=("4d", "5d"))


# Draining ---------------------------------------------------------------------------------------------


def test_a_drain_runs_what_is_ready_and_what_that_enqueues(connection: psycopg.Connection) -> None:
    write_async.enqueue(connection)
    count.enqueue(connection, 1)
    greet.using(delay="1h").enqueue(connection, name="later")
    drained = drain(app, connection)
    assert (drained.completed, drained.failed, drained.dead, drained.snoozed, drained.cancelled) == (
        3,
        0,
        0,
        0,
        0,
    )
    assert sorted((ran.task, ran.ended, ran.attempt) for ran in drained.attempts) == [
        ("count", "completed", 1),
        ("greet", "completed", 1),
        ("write_async", "completed", 1),
    ]
    assert [ran.result for ran in drained.attempts if ran.task == "count"] == [2]
    assert seen == [(1, True), "write_async"] or seen == ["write_async", (1, True)]
    assert_enqueued(connection, count=1, run_at="1h")
    assert drain(app, connection).attempts == ()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_connection_drains_and_a_rollback_leaves_nothing(kind: type[Kind], dsn: str) -> None:
    with kind(dsn) as opened:
        opened.begin()
        opened.enqueue(greet, name="Ada")
        opened.enqueue(count, number=1)
        opened.enqueue(fragile.using(max_attempts=1), until=99)
        assert [job.task for job in opened.wait(enqueued(opened.target, queue="default"))] == [
            "count",
            "fragile",
        ]
        opened.wait(assert_enqueued(opened.target, greet, args={"name": "Ada"}))
        drained = opened.wait(drain(app, opened.target, raise_errors=False))
        assert (drained.completed, drained.dead) == (2, 1)
        opened.wait(refute_enqueued(opened.target))
        opened.enqueue(greet.using(delay="1h"), name="Bob")
        assert opened.wait(run_one(app, opened.target)) is None
        assert opened.wait(travel(opened.target, "+1h")) == 1
        ran = opened.wait(run_one(app, opened.target))
        assert (ran.task, ran.result) == ("greet", "hello Bob")
        opened.rollback()


OVER_PSYCOPG = [
    "psycopg Connection",
    "psycopg AsyncConnection",
    "sqlalchemy Connection",
    "sqlalchemy scoped_session",
    "sqlalchemy AsyncConnection",
    "sqlalchemy AsyncSession",
    "django",
]


@pytest.mark.parametrize("kind", OVER_PSYCOPG)
def test_transactional_tasks_of_every_kind_run_in_the_callers_transaction(kind: str, dsn: str) -> None:
    with KINDS[kind](dsn) as opened:
        opened.begin()
        for task in WRITERS:
            opened.enqueue(task)
            opened.enqueue(task.using(max_attempts=1), fail=True)
        drained = opened.wait(drain(app, opened.target, raise_errors=False))
        assert (drained.completed, drained.dead) == (8, 4), drained
        assert {str(ran.error) for ran in drained.attempts if ran.ended == "dead"} == {"no"}
        assert opened.scalar("select count(*) from effects") == 4
        assert sorted(seen) == sorted(task.name for task in WRITERS)
        opened.rollback()


@pytest.mark.parametrize(
    ("kind", "same", "other"),
    [
        ("sqlalchemy over asyncpg", write_session_async, write_async),
        ("sqlalchemy over psycopg2", write_session_sync, write_session_async),
    ],
)
def test_over_another_driver_transactional_tasks_of_the_same_kind_run(
    kind: str, same: Any, other: Any, dsn: str
) -> None:
    with KINDS[kind](dsn) as opened:
        opened.begin()
        opened.enqueue(same)
        assert opened.wait(drain(app, opened.target)).completed == 2
        opened.enqueue(other)
        with pytest.raises(UnusableConnection, match=r"cannot be lent .*postgresql\+psycopg"):
            opened.wait(drain(app, opened.target))
        opened.rollback()


def test_a_connection_in_autocommit_commits_each_step(databases: Databases) -> None:
    dsn = databases.create()
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        psycopg.connect(dsn, autocommit=True) as observer,
    ):
        connection.execute("create table effects (task text)")
        for task in WRITERS:
            task.enqueue(connection)
            task.using(max_attempts=1).enqueue(connection, fail=True)
        assert drain(app, connection, raise_errors=False).completed == 8
        assert rows(observer, "effects") == 4
        assert sorted(states(observer)) == ["completed"] * 8 + ["dead"] * 4
        assert rows(observer, "pgqueue.workers") == 0
    databases.drop(dsn)


def test_what_a_handler_raises_is_raised_after_it_was_recorded(connection: psycopg.Connection) -> None:
    calls_of.clear()
    fragile.enqueue(connection)
    count.enqueue(connection, 1)
    with pytest.raises(ConnectionError, match="try 1") as raised:
        drain(app, connection)
    assert "pgqueue: job" in raised.value.__notes__[0]
    assert "of task fragile, attempt 1: failed" in raised.value.__notes__[0]
    [job] = assert_enqueued(connection, fragile, run_at="10s")
    assert (job.attempt, job.max_attempts) == (1, 3)
    assert_enqueued(connection, count, run_at=0)  # the rest waits
    assert drain(app, connection).completed == 1
    assert rows(connection, "pgqueue.workers") == 0


def test_errors_are_collected_when_asked_and_retries_come_in_their_time(
    connection: psycopg.Connection,
) -> None:
    calls_of.clear()
    fragile.enqueue(connection)
    drained = drain(app, connection, scheduled=True, raise_errors=False)
    assert (drained.failed, drained.dead) == (2, 1)
    assert [(ran.attempt, ran.delay, str(ran.error)) for ran in drained.attempts] == [
        (1, 10.0, "try 1"),
        (2, 10.0, "try 2"),
        (3, None, "try 3"),
    ]
    [letter] = run(connection, calls.find_dead(task="fragile"))
    assert (letter.reason, letter.attempt, letter.message) == ("exhausted", 3, "try 3")


@pytest.mark.parametrize(
    ("how", "ended", "delay", "state"),
    [
        ("retry", "failed", 30.0, "scheduled"),
        ("snooze", "snoozed", 300.0, "scheduled"),
        ("fail", "dead", None, "dead"),
        ("cancel", "cancelled", None, "cancelled"),
        ("return", "completed", None, "completed"),
    ],
)
def test_outcomes_are_counted_and_not_raised(
    connection: psycopg.Connection, how: str, ended: str, delay: float | None, state: str
) -> None:
    end_as.enqueue(connection, how)
    drained = drain(app, connection)
    assert getattr(drained, ended) == 1
    [ran] = drained.attempts
    assert (ran.ended, ran.delay) == (ended, delay)
    assert states(connection) == [state]


def test_what_is_due_later_runs_in_the_order_of_its_time(connection: psycopg.Connection) -> None:
    for name, delay in (("third", "3h"), ("first", "1h"), ("second", "2h"), ("fourth", "30d")):
        greet.using(delay=delay).enqueue(connection, name=name)
    assert drain(app, connection, scheduled="2h").completed == 2
    assert seen == ["first", "second"]
    [third, _] = enqueued(connection)
    assert third.due_in == pytest.approx(3600, abs=5)
    assert drain(app, connection, scheduled=True).completed == 2
    assert seen == ["first", "second", "third", "fourth"]


def test_a_queue_may_be_drained_alone(connection: psycopg.Connection) -> None:
    greet.enqueue(connection, name="Ada")
    count.enqueue(connection, 1)
    count.using(queue="other").enqueue(connection, 2)
    assert drain(app, connection, queue="email").completed == 1
    assert drain(app, connection, queue=["default", "email"]).completed == 1
    assert_enqueued(connection, count, args={"number": 2}, count=1)


def test_a_paused_queue_stays_as_it_is(connection: psycopg.Connection) -> None:
    count.enqueue(connection, 1)
    run(connection, calls.pause("default"))
    assert drain(app, connection, scheduled=True).attempts == ()
    run(connection, calls.resume("default"))
    assert drain(app, connection).completed == 1


def test_a_job_that_enqueues_itself_for_ever_is_noticed(connection: psycopg.Connection) -> None:
    endless = pgqueue.App()

    @endless.task(transactional=True)
    def again(ctx: pgqueue.Context[psycopg.Connection]) -> None:
        again.enqueue(ctx.connection)

    again.enqueue(connection)
    with pytest.raises(EndlessDrain, match="20 attempts, and there are jobs left, of again for one"):
        drain(endless, connection, limit=20)
    assert_enqueued(connection, again, count=1)


def test_a_task_that_the_app_does_not_have_is_an_error(connection: psycopg.Connection) -> None:
    greet.enqueue(connection, name="Ada")
    other = pgqueue.App()
    with pytest.raises(UnknownTask, match="the app has no task 'greet'"):
        drain(other, connection)
    [ran] = drain(other, connection, scheduled="20s", raise_errors=False, limit=1).attempts
    assert ran.ended == "snoozed"


def test_args_that_do_not_fit_are_raised(connection: psycopg.Connection) -> None:
    run(connection, calls.enqueue(task="count", args='{"number": "x"}'))
    with pytest.raises(InvalidArgs, match=r"args\.number"):
        drain(app, connection)
    assert states(connection) == ["dead"]


def test_run_one_runs_the_next_job_alone(connection: psycopg.Connection) -> None:
    assert run_one(app, connection) is None
    for number in (1, 2):
        count.enqueue(connection, number)
    ran = run_one(app, connection, queue="default")
    assert ran is not None
    assert (ran.task, ran.ended, ran.result) == ("count", "completed", 2)
    assert states(connection) == ["completed", "ready"]


def test_an_async_handler_is_timed_out(connection: psycopg.Connection) -> None:
    slow = pgqueue.App()

    @slow.task(timeout="100ms", retry=pgqueue.Fixed(1, attempts=1))
    async def hang() -> None:
        await asyncio.sleep(30)

    hang.enqueue(connection)
    started = time.monotonic()
    with pytest.raises(TimedOut, match=r"longer than its timeout, 0\.1 s"):
        drain(slow, connection)
    assert time.monotonic() - started < 5
    assert states(connection) == ["dead"]


def test_a_job_that_has_expired_does_not_run(connection: psycopg.Connection) -> None:
    greet.using(expires="1h").enqueue(connection, name="Ada")
    greet.using(expires=datetime.now(UTC) + timedelta(hours=3), delay="2h").enqueue(connection, name="Bob")
    travel(connection, "90m")
    assert drain(app, connection).cancelled == 1
    travel(connection, "90m")
    assert drain(app, connection).cancelled == 1
    assert seen == []
    assert states(connection) == ["cancelled", "cancelled"]


def test_a_flush_that_fails_after_the_handler_returned_is_raised(dsn: str) -> None:
    class Base(DeclarativeBase): ...

    class Parent(Base):
        __tablename__ = "parents"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Child(Base):
        __tablename__ = "children"
        id: Mapped[int] = mapped_column(ForeignKey("parents.id"), primary_key=True)

    family = pgqueue.App()

    @family.task(transactional=True)
    def adopt(ctx: pgqueue.Context[Session], id: int) -> None:
        ctx.connection.add(Child(id=id))

    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with Session(engine) as session:
        session.add(
            Parent(id=7)
        )  # pending: a drain writes it first, as the commit would for which a worker waits
        for id in (7, 8):
            adopt.enqueue(session, id=id)
        with pytest.raises(Exception, match="children_id_fkey"):
            drain(family, session)
        assert [child.id for child in session.query(Child)] == [7]
        session.rollback()
    engine.dispose()


def test_a_session_reads_anew_what_handlers_have_written(dsn: str) -> None:
    class Base(DeclarativeBase): ...

    class Parent(Base):
        __tablename__ = "parents"
        id: Mapped[int] = mapped_column(primary_key=True)

    family = pgqueue.App()

    @family.task(transactional=True)
    def renumber(ctx: pgqueue.Context[psycopg.Connection]) -> None:
        ctx.connection.execute("delete from parents")

    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with Session(engine) as session:
        parent = Parent(id=7)
        session.add(parent)
        renumber.enqueue(session)
        drain(family, session)
        assert session.get(Parent, 7, populate_existing=True) is None
        session.rollback()
    engine.dispose()


def test_a_drain_inside_of_a_running_loop_asks_for_an_async_connection(
    connection: psycopg.Connection,
) -> None:
    greet.enqueue(connection, name="Ada")

    async def test() -> None:
        with pytest.raises(PgqueueError, match="an event loop is running in this thread"):
            drain(app, connection)
        assert (await asyncio.to_thread(drain, app, connection)).completed == 1

    asyncio.run(test())


def test_an_interrupt_ends_a_drain(connection: psycopg.Connection, caplog: pytest.LogCaptureFixture) -> None:
    interrupted = pgqueue.App()

    @interrupted.task
    def stop() -> None:
        raise KeyboardInterrupt

    stop.enqueue(connection)
    with pytest.raises(KeyboardInterrupt):
        drain(interrupted, connection)
    gc.collect()
    assert caplog.messages == [], "asyncio complains of a task that nobody has asked"


def test_ctrl_c_ends_a_drain_and_the_transaction_goes_on(
    connection: psycopg.Connection, request: pytest.FixtureRequest
) -> None:
    # The tests may run in the background of a shell, where it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    hanging = pgqueue.App()

    @hanging.task
    async def hang() -> None:
        asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
        await asyncio.sleep(30)

    hang.enqueue(connection)
    with pytest.raises(KeyboardInterrupt):
        drain(hanging, connection, raise_errors=False)
    assert (states(connection), rows(connection, "pgqueue.workers")) == (["ready"], 0)


def test_a_handler_that_breaks_the_callers_transaction_is_named(connection: psycopg.Connection) -> None:
    breaking = pgqueue.App()

    @breaking.task
    def divide() -> None:
        connection.execute("select 1 / 0")

    divide.enqueue(connection)
    with pytest.raises(psycopg.errors.DivisionByZero) as raised:
        drain(breaking, connection, raise_errors=False)
    assert "has left the transaction of the test aborted" in raised.value.__notes__[0]


def test_the_app_comes_first(connection: psycopg.Connection) -> None:
    with pytest.raises(
        ConfigurationError, match=r"expected the pgqueue\.App first and the connection second, got <psyc"
    ):
        drain(connection, app)  # type: ignore[call-overload]


# What workers do beside running handlers


def test_middleware_providers_hooks_steps_progress_and_results_are_as_in_a_worker(
    connection: psycopg.Connection,
) -> None:
    shop = pgqueue.App()

    class Mailer:
        def __init__(self) -> None:
            self.sent: list[int] = []

    @shop.provide
    def mailer() -> Mailer:
        raise AssertionError("overridden")

    @shop.middleware
    async def around(ctx: pgqueue.Context, call_next: Any) -> Any:
        seen.append(f"before {ctx.task}")
        return await call_next()

    @shop.on("succeeded")
    def succeeded(event: Any) -> None:
        seen.append(f"succeeded {event.id}")

    @shop.on("failed")
    async def failed(event: Any) -> None:
        seen.append(f"failed {event.error.type}")

    def draw() -> int:
        seen.append("step")
        return 42

    @shop.task(keep_result=True, retry=pgqueue.Fixed("1m", attempts=2))
    async def send(ctx: pgqueue.Context, user_id: int, mailer: Mailer = pgqueue.PROVIDED) -> int:
        ctx.progress(1, 2, "half")
        ctx.log.info("sending")
        number: int = await ctx.step("number", draw)
        mailer.sent.append(user_id)
        if ctx.attempt == 1:
            raise ConnectionError("mail server away")
        return number

    job = send.enqueue(connection, user_id=7)
    with shop.override(Mailer, fake := Mailer()):
        drained = drain(shop, connection, scheduled=True, raise_errors=False)
    assert [ran.ended for ran in drained.attempts] == ["failed", "completed"]
    assert fake.sent == [7, 7]
    assert seen == [
        "before send",
        "step",
        "failed ConnectionError",
        "before send",
        f"succeeded {job.id}",
    ]
    [info] = run(connection, calls.look([job.id]))
    assert (info.state, info.result) == ("completed", 42)
    assert rows(connection, "pgqueue.job_reports") == 2


def test_a_sync_transactional_task_may_log_and_show_progress(connection: psycopg.Connection) -> None:
    shop = pgqueue.App()

    @shop.task(transactional=True)
    def work(ctx: pgqueue.Context[psycopg.Connection]) -> None:
        ctx.progress(1, 1)
        ctx.log.info("done")

    work.enqueue(connection)
    assert drain(shop, connection).completed == 1
    assert rows(connection, "pgqueue.job_reports") == 1


def test_what_middleware_raises_is_raised(connection: psycopg.Connection) -> None:
    shop = pgqueue.App()

    @shop.middleware
    def forbid(_ctx: pgqueue.Context, _call_next: Any) -> Any:
        raise PermissionError("not today")

    @shop.task
    def work() -> None: ...

    work.enqueue(connection)
    with pytest.raises(PermissionError, match="not today"):
        drain(shop, connection)


def test_a_batch_task_gets_its_jobs_together(connection: psycopg.Connection) -> None:
    shop = pgqueue.App()

    @shop.batch_task(size=3, wait="5s", retry=pgqueue.Fixed("1m", attempts=2))
    async def index(jobs: list[pgqueue.BatchJob[int]]) -> None:
        seen.append([job.item for job in jobs])
        for job in jobs:
            if job.item == 2:
                job.end(pgqueue.Fail("refused"))
            if job.item == 5:
                raise ValueError("all of this batch")

    shop.enqueue_many(connection, [index.item(number) for number in range(1, 6)])
    started = time.monotonic()
    drained = drain(shop, connection, raise_errors=False)
    assert time.monotonic() - started < 3
    assert seen == [[1, 2, 3], [4, 5]]
    assert [ran.ended for ran in drained.attempts] == ["completed", "dead", "completed", "failed", "failed"]
    assert isinstance(drained.attempts[3].error, ValueError)


def test_a_task_for_a_process_runs_here(connection: psycopg.Connection) -> None:
    shop = pgqueue.App()

    @shop.task(executor="process")
    def compute() -> int:
        seen.append("here")
        return 1

    compute.enqueue(connection)
    assert drain(shop, connection).completed == 1
    assert seen == ["here"]


# The app's own connection -----------------------------------------------------------------------------


def test_what_handlers_enqueue_on_the_apps_own_connection_is_in_the_callers_transaction(
    connection: psycopg.Connection,
) -> None:
    shop = pgqueue.App()

    @shop.task
    def child(number: int) -> None:
        seen.append(number)

    @shop.task
    async def parent_async() -> None:
        await shop.enqueue_async(child, 1)
        await shop.enqueue_many_async([child.item(2)])

    @shop.task
    def parent() -> None:
        shop.enqueue(child, 3)
        with shop.bulk() as bulk:
            bulk.enqueue(child, 4)

    parent.enqueue(connection)
    parent_async.enqueue(connection)
    assert drain(shop, connection).completed == 6
    assert sorted(seen) == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", OVER_PSYCOPG)
def test_a_connection_is_lent_to_the_app(kind: str, dsn: str) -> None:
    with KINDS[kind](dsn) as opened:
        opened.begin()
        own = app._own
        with lend(app, opened.target):
            if opened.is_async:
                opened.wait(app.enqueue_async(greet, name="Ada"))
            else:
                app.enqueue(greet, name="Ada")
        assert app._own is own
        opened.wait(assert_enqueued(opened.target, greet, args={"name": "Ada"}, count=1))
        opened.rollback()


def test_what_async_code_enqueues_under_a_lent_sync_connection_waits_for_its_commit(
    connection: psycopg.Connection,
) -> None:
    with lend(app, connection):
        asyncio.run(app.enqueue_async(greet, name="Ada"))
    assert_enqueued(connection, greet, count=1)
    with pytest.raises(UnusableConnection), lend(app, "no connection"):  # type: ignore[arg-type]
        pass


# Travelling -------------------------------------------------------------------------------------------


def test_time_passes_for_the_jobs_that_wait(connection: psycopg.Connection) -> None:
    for name, delay in (("second", "50m"), ("first", "10m"), ("later", "2h")):
        greet.using(delay=delay).enqueue(connection, name=name)
    assert travel(connection, 0) == 0
    assert travel(connection, timedelta(minutes=5)) == 0
    assert_enqueued(connection, greet, args={"name": "first"}, run_at="5m")
    assert travel(connection, "+1h") == 2
    assert drain(app, connection).completed == 2
    assert seen == ["first", "second"]
    assert_enqueued(connection, greet, args={"name": "later"}, run_at="55m")


def test_no_job_is_ever_scheduled_for_the_past(connection: psycopg.Connection) -> None:
    """Promotion starts at a proven mark: a row behind it would never be seen."""
    for number in range(1, 51):
        count.using(delay=number).enqueue(connection, number)
    (before,) = connection.execute("select clock_timestamp()").fetchone() or (None,)
    assert travel(connection, "1d") == 50
    due = connection.execute(
        "select run_at from pgqueue.scheduled_jobs order by (args ->> 'number')::int"
    ).fetchall()
    times = [at for (at,) in due]
    assert times == sorted(times)
    assert len(set(times)) == 50
    assert before < times[0]


def test_what_was_moved_is_promoted_under_a_mark_that_was_proven_before(databases: Databases) -> None:
    dsn = databases.create()
    with psycopg.connect(dsn, autocommit=True) as connection:
        count.using(delay="1h").enqueue(connection, 1)
        for _ in range(3):
            run(connection, calls.prove_floors())
        (mark,) = connection.execute(
            "select proven_run_at from pgqueue.floor_proofs where subject = 'scheduled_jobs'"
        ).fetchone() or (None,)
        (enqueued_at,) = connection.execute("select created_at from pgqueue.scheduled_jobs").fetchone() or (
            None,
        )
        assert mark > enqueued_at
        travel(connection, "1h")
        assert run(connection, calls.promote(10)) == 1
    databases.drop(dsn)


def test_idempotency_keys_grow_older(connection: psycopg.Connection) -> None:
    task = count.using(idempotency_key="order-7")
    first = task.enqueue(connection, 1)
    travel(connection, "23h")
    again = task.enqueue(connection, 1)
    assert (again.id, again.created) == (first.id, False)
    travel(connection, "2h")
    assert task.enqueue(connection, 1).created


def test_time_goes_forward_only(connection: psycopg.Connection) -> None:
    for wrong in ("-1h", -1, "soon"):
        with pytest.raises(InvalidOption, match="by: expected"):
            travel(connection, wrong)


MOVED = {
    ("scheduled_jobs", "run_at"),
    ("scheduled_jobs", "created_at"),
    ("ready_jobs", "run_at"),
    ("ready_jobs", "created_at"),
    ("blocked_jobs", "run_at"),
    ("blocked_jobs", "created_at"),
    ("unique_keys", "expires_at"),
}
NOT_MOVED = {
    # what is over
    "finished_jobs",
    "job_failures",
    "dead_letters",
    "job_reports",
    "job_steps",
    # what runs, and who runs it: a real worker's leases are not the test's business
    "running_jobs",
    "job_progress",
    "cancel_requests",
    "workers",
    "heartbeats",
    "sleepers",
    "waiters",
    "floor_proofs",
    "leadership",
    "recovery_seen",
    "queues",
    # schedules have a kit of their own: tick(…)
    "schedules",
    "schedule_runs",
    # figures, and what people did
    "depth_count",
    "depths",
    "rollups",
    "rollup_progress",
    "failure_groups",
    "audit",
    "retention",
    "trims",
    "stop_requests",
}


def test_every_time_in_the_schema_is_moved_or_known_not_to_be(connection: psycopg.Connection) -> None:
    """A new column that says when something happens has to be thought about."""
    found = connection.execute(
        """select c.relname::text, a.attname::text from pg_attribute as a join pg_class as c on c.oid = a.attrelid
            where c.relnamespace = 'pgqueue'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
              and a.atttypid = 'timestamptz'::regtype"""
    ).fetchall()
    assert {(table, column) for table, column in found if table not in NOT_MOVED} == MOVED


# Dying ------------------------------------------------------------------------------------------------


def test_effects_that_were_not_completed_happen_again(connection: psycopg.Connection) -> None:
    count.enqueue(connection, 1)
    greet.enqueue(connection, name="Ada")
    with crash_after("effects") as crashes:
        drained = drain(app, connection)
    assert (drained.crashed, drained.completed, crashes.count) == (1, 2, 1)
    assert len(seen) == 3
    assert [ran.attempt for ran in drained.attempts if ran.ended == "completed"] == [1, 2] or [
        ran.attempt for ran in drained.attempts if ran.ended == "completed"
    ] == [2, 1]


@pytest.mark.parametrize("task", WRITERS, ids=lambda task: task.name)
def test_effects_of_a_transactional_task_happen_once(connection: psycopg.Connection, task: Any) -> None:
    task.enqueue(connection)
    with crash_after("effects", task=task):
        drained = drain(app, connection)
    assert (drained.crashed, drained.completed) == (1, 2)
    assert rows(connection, "effects") == 1
    assert seen == [task.name]


def test_hooks_are_told_of_a_crash(connection: psycopg.Connection) -> None:
    shop = pgqueue.App()

    @shop.task
    def work() -> None: ...

    @work.on("rescued")
    async def rescued(event: Any) -> None:
        seen.append((event.id, event.crashes, event.error.message))

    job = work.enqueue(connection)
    with crash_after("effects"):
        drain(shop, connection)
    assert seen == [(job.id, 1, "while it ran this job the worker process was killed by crash_after")]


def test_a_crash_before_the_handler_gives_the_attempt_back(connection: psycopg.Connection) -> None:
    count.enqueue(connection, 1)
    with crash_after("claim"):
        drained = drain(app, connection)
    assert [(ran.ended, ran.attempt) for ran in drained.attempts] == [("crashed", 1), ("completed", 1)]
    assert len(seen) == 1


def test_a_crash_after_the_completion_changes_nothing(connection: psycopg.Connection) -> None:
    count.enqueue(connection, 1)
    with crash_after("completion"):
        drained = drain(app, connection)
    assert (drained.completed, drained.crashed, len(seen)) == (1, 0, 1)
    assert states(connection) == ["completed"]


def test_a_job_that_always_crashes_becomes_a_dead_letter(connection: psycopg.Connection) -> None:
    count.using(max_attempts=1).enqueue(connection, 1)
    with crash_after("effects", times=9):
        drained = drain(app, connection, scheduled=True)
    assert (drained.crashed, drained.completed, len(seen)) == (4, 0, 4)
    [letter] = run(connection, calls.find_dead(task="count"))
    assert (letter.reason, letter.crashes) == ("crashed", 4)


def test_a_crash_that_never_came_fails_the_test(connection: psycopg.Connection) -> None:
    greet.enqueue(connection, name="Ada")
    with (
        pytest.raises(AssertionError, match="no attempt of count came to the point 'effects'"),
        crash_after("effects", task=count),
    ):
        drain(app, connection)
    with (
        pytest.raises(
            InvalidOption,
            match="point: expected one of claim, effects, completion, got 'efects', did you mean",
        ),
        crash_after("efects"),  # type: ignore[arg-type]
    ):
        pass
    with pytest.raises(ValueError, match="of the block"), crash_after("claim"):
        raise ValueError("of the block")


# Without a database -----------------------------------------------------------------------------------


def test_a_handler_runs_without_a_database() -> None:
    assert perform(count, 1) == 2
    assert perform(greet, name="Ada", times=2) == "hello Adahello Ada"
    assert seen == [(1, True), "Ada"]


def test_arguments_go_through_the_queues_encoding() -> None:
    holder = uuid.uuid4()
    kept: list[Any] = []
    shop = pgqueue.App()

    @shop.task
    def keep(card: Card, tags: tuple[str, ...]) -> None:
        kept.append((card, tags))

    perform(keep, Card("4242", holder), ("a", "b"))
    assert kept == [(Card("4242", holder), ("a", "b"))]
    assert kept[0][0].holder == holder
    with pytest.raises(InvalidArgs, match="argument tags is missing"):
        perform(keep, Card("4242", holder))  # type: ignore[call-overload]
    with pytest.raises(InvalidArgs, match=r"args\.tags.*bytes"):
        perform(keep, Card("4242", holder), (b"a",))  # type: ignore[call-overload]


def test_a_performed_handler_has_its_context() -> None:
    shop = pgqueue.App()

    @shop.task(queue="email", priority=3, retry=pgqueue.Fixed(1, attempts=4))
    async def look(ctx: pgqueue.Context) -> list[Any]:
        ctx.progress(1, 2)
        ctx.log.info("looking")
        return [
            ctx.id,
            ctx.attempt,
            ctx.max_attempts,
            ctx.queue,
            ctx.priority,
            ctx.tags,
            ctx.metadata,
            ctx.idempotency_key,
            ctx.cancelled,
        ]

    assert perform(look) == [1, 1, 4, "email", 3, (), {}, "pgqueue:1", False]
    bound = look.using(tags=["vip"], metadata={"a": 1}, priority=0, queue="slow", max_attempts=2)
    assert perform.using(id=7, attempt=2)(bound) == [
        7,
        2,
        2,
        "slow",
        0,
        ("vip",),
        {"a": 1},
        "pgqueue:7",
        False,
    ]


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ("retry", pgqueue.Retry),
        ("snooze", pgqueue.Snooze),
        ("fail", pgqueue.Fail),
        ("cancel", pgqueue.Cancel),
    ],
)
def test_outcomes_come_as_the_exceptions_that_they_are(how: str, outcome: type[Exception]) -> None:
    with pytest.raises(outcome):
        perform(end_as, how)


def test_a_transactional_handler_is_given_a_connection(connection: psycopg.Connection) -> None:
    with pytest.raises(
        PgqueueError, match=r"task write_sync is transactional.*perform\.using\(connection=…\)"
    ):
        perform(write_sync)
    perform.using(connection=connection)(write_sync)
    assert rows(connection, "effects") == 1
    assert_enqueued(connection, greet, count=1)


def test_steps_are_called_and_not_recorded() -> None:
    shop = pgqueue.App()

    @shop.task
    async def work(ctx: pgqueue.Context) -> Any:
        async def charge() -> tuple[int, int]:
            return 1, 2

        return await ctx.step("charge", charge)

    @shop.task
    def book(ctx: pgqueue.Context) -> Any:
        return ctx.step("book", lambda connection: connection)

    assert perform(work) == [1, 2]
    assert perform.using(connection=7)(book) == 7
    with pytest.raises(PgqueueError, match="a step that takes a connection needs one"):
        perform(book)


def test_a_performed_handler_is_provided_with_fakes_and_wrapped_in_middleware() -> None:
    shop = pgqueue.App()
    closed: list[str] = []

    class Mailer:
        name = "real"

    @shop.provide(scope="worker")
    def mailer() -> Iterator[Mailer]:
        yield Mailer()
        closed.append("mailer")

    def shout(_ctx: pgqueue.Context, call_next: Any) -> Any:
        return str(call_next()).upper()

    @shop.task(middleware=[shout])
    def send(mailer: Mailer = pgqueue.PROVIDED) -> str:
        return mailer.name

    assert perform(send) == "REAL"
    assert closed == ["mailer"]
    fake = Mailer()
    fake.name = "fake"
    with shop.override(Mailer, fake):
        assert perform(send) == "FAKE"


def test_a_batch_is_performed_with_its_items() -> None:
    shop = pgqueue.App()

    @shop.batch_task(size=10)
    async def index(jobs: list[pgqueue.BatchJob[int]]) -> None:
        for job in jobs:
            if job.item < 0:
                job.end(pgqueue.Fail("negative"))

    good, bad = perform(index, 1, -1)  # type: ignore[call-overload]
    assert (good.item, good.outcome, good.id) == (1, None, 1)
    assert (bad.item, str(bad.outcome), bad.id) == (-1, "negative", 2)


def test_in_a_running_loop_handlers_are_performed_async() -> None:
    async def test() -> None:
        assert await perform_async(greet, name="Ada") == "hello Ada"
        assert await perform_async.using(attempt=2)(count, 1) == 2
        with pytest.raises(PgqueueError, match=r"perform_async\(…\) instead of perform\(…\)"):
            perform(greet, name="Ada")

    asyncio.run(test())
    assert seen == ["Ada", (1, False)]


def test_args_that_are_stored_encrypted_are_compared_as_they_were_given(
    connection: psycopg.Connection,
) -> None:
    app = pgqueue.App(settings=Settings(), keyring=pgqueue.Keyring({"test": b"k" * 32}))

    @app.task(encrypt=True)
    def pay(card: str) -> str:
        return card

    pay.enqueue(connection, card="4111")
    (job,) = assert_enqueued(connection, pay, args={"card": "4111"})
    assert job.args == {"card": "4111"}
    refute_enqueued(connection, pay, args={"card": "5500"})
    assert enqueued(connection, "pay")[0].args.keys() == {"pgqueue.encrypted"}
    assert perform(pay, card="4111") == "4111"
