"""Options, names, tasks, connections and bulks that cannot be enqueued with.

That each *kind* of connection refuses alike is in `tests/conformance/` (`test_unusable.py`, `test_sqlstate.py`,
`test_courtesy.py`); here are the whole texts, on psycopg's.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import pgqueue.bulk
from pgqueue import Custom, Fixed, Unique, errors
from pgqueue.app import App
from pgqueue.drivers import AutocommitWarning
from pgqueue.errors import InvalidOption
from pgqueue.settings import Settings
from pgqueue.task import Item
from tests.badinput.conftest import Shop
from tests.badinput.hostile import BrokenZone, Incomparable, Number, Text, Unprintable, bomb
from tests.badinput.table import Case, table
from tests.conformance.kinds import url_of
from tests.support import Databases

UNPRINTABLE = "<tests.badinput.hostile.Unprintable, whose text raised SystemExit>"


# Options of a job ---------------------------------------------------------------------------------------


def _option(given: str, option: str, value: Any, says: str) -> Case:
    return Case(f"using({option}=…)", given, "InvalidOption", f"{option}{says}", {option: value})


TASK_OPTIONS = table(
    "enqueue",
    Case("@app.task(retries=…)", "an option that there is not", "InvalidOption", "retries: a task has no such option, did you mean retry?", {"retries": 3}),
    Case("@app.task(max_attempts=…)", "what the policy says", "InvalidOption", "max_attempts: a task's retry policy says it: retry=Exponential(attempts=5)", {"max_attempts": 3}),
    Case("@app.task(delay=…)", "an option of a job", "InvalidOption", "delay: this is an option of a job: task.using(delay=…)", {"delay": 3}),
)  # fmt: skip


@pytest.mark.parametrize("case", TASK_OPTIONS, ids=Case.id)
def test_options_that_a_task_does_not_have_are_refused(case: Case) -> None:
    app = App(settings=Settings())
    for decorator in (app.task, partial(app.batch_task, size=7)):
        with pytest.raises(InvalidOption) as refused:
            decorator(**case.input)
        case.holds(refused.value)


NAME = ": expected text of 1 to 100 characters, got "
FORBIDDEN = " cannot be part of it (control characters, quotes, backslash, *), got "
PRIORITY = ": expected an integer from 0 (first) to 9, got "
DURATION = ": expected seconds, a timedelta or text such as '90s' or '5m', got "
RANGE = ": expected between 0 and 10 years, got "
ZONE = ": expected a datetime with a time zone, got "
YEAR = ": expected a year from 1970 to 2199, got "
ATTEMPTS = ": expected an integer from 1 to 32767, got "
KEY = ": expected text of 1 to 255 characters, got "
STORABLE = ": NUL and lone surrogates cannot be stored, got "

OPTIONS = table(
    "enqueue",
    _option("nothing", "queue", "", f"{NAME}0 characters"),
    _option("101 characters", "queue", "x" * 101, f"{NAME}101 characters"),
    _option("10 million characters", "queue", "x" * 10_000_000, f"{NAME}10000000 characters"),
    _option("a line break", "queue", "a\nb", rf": '\n'{FORBIDDEN}'a\nb'"),
    _option("NUL", "queue", "a\0b", rf": '\x00'{FORBIDDEN}'a\x00b'"),
    _option("an escape sequence", "queue", "\x9b31m", rf": '\x9b'{FORBIDDEN}'\x9b31m'"),
    _option("a double quote", "queue", 'a"b', f""": '"'{FORBIDDEN}'a"b'"""),
    _option("a quote", "queue", "a'b", f""": "'"{FORBIDDEN}"a'b\""""),
    _option("a backslash", "queue", "a\\b", rf": '\\'{FORBIDDEN}'a\\b'"),
    _option("a star", "queue", "*", f": '*'{FORBIDDEN}'*'"),
    _option("a lone surrogate", "queue", "\ud800", rf": '\ud800'{FORBIDDEN}'\ud800'"),
    _option("a number", "queue", 7, f"{NAME}7"),
    _option("bytes", "queue", b"mail", f"{NAME}b'mail'"),
    _option("an object whose repr raises", "queue", Unprintable(), f"{NAME}{UNPRINTABLE}"),
    _option("lists of lists, ninety levels", "queue", bomb(), f"{NAME}[[[[[...], [...]], [[...], [...]]], [[[...], [...]], [[...], [...]]]], [[[[...],…"),
    _option("-1", "priority", -1, f"{PRIORITY}-1"),
    _option("10", "priority", 10, f"{PRIORITY}10"),
    _option("True", "priority", True, f"{PRIORITY}True"),
    _option("text", "priority", "1", f"{PRIORITY}'1'"),
    _option("1.0", "priority", 1.0, f"{PRIORITY}1.0"),
    _option("10**5000", "priority", 10**5000, f"{PRIORITY}an integer of 16610 bits"),
    _option("an object whose repr raises", "priority", Unprintable(), f"{PRIORITY}{UNPRINTABLE}"),
    _option("-1", "delay", -1, f"{RANGE}-1"),
    _option("NaN", "delay", float("nan"), f"{RANGE}nan"),
    _option("infinity", "delay", float("inf"), f"{RANGE}inf"),
    _option("'nans'", "delay", "nans", f"{RANGE}'nans'"),
    _option("10**5000", "delay", 10**5000, f"{RANGE}an integer of 16610 bits"),
    _option("-(10**400)", "delay", -(10**400), f"{RANGE}an integer of 1329 bits"),
    _option("more than ten years", "delay", "99999d", f"{RANGE}'99999d'"),
    _option("the longest timedelta", "delay", timedelta.max, f"{RANGE}datetime.timedelta(days=999999999, seconds=86399, microseconds=999999)"),
    _option("words", "delay", "soon", f"{DURATION}'soon'"),
    _option("an ISO 8601 duration", "delay", "PT5M", f"{DURATION}'PT5M'"),
    _option("True", "delay", True, f"{DURATION}True"),
    _option("an object whose repr raises", "delay", Unprintable(), f"{DURATION}{UNPRINTABLE}"),
    _option("text", "run_at", "2026-01-01", f"{ZONE}'2026-01-01'"),
    _option("a Unix time", "run_at", 1_800_000_000, f"{ZONE}1800000000"),
    _option("a naive datetime", "run_at", datetime(2026, 1, 1), f"{ZONE}datetime.datetime(2026, 1, 1, 0, 0)"),  # noqa: DTZ001
    _option("the year 1", "run_at", datetime(1, 1, 1, tzinfo=UTC), f"{YEAR}0001-01-01T00:00:00+00:00"),
    _option("the year 9999", "run_at", datetime(9999, 12, 31, tzinfo=UTC), f"{YEAR}9999-12-31T00:00:00+00:00"),
    _option("a time zone that raises", "run_at", datetime(2026, 1, 1, tzinfo=BrokenZone()), ": its time zone raised LookupError: no such zone"),
    _option("0", "max_attempts", 0, f"{ATTEMPTS}0"),
    _option("32768", "max_attempts", 32_768, f"{ATTEMPTS}32768"),
    _option("True", "max_attempts", True, f"{ATTEMPTS}True"),
    _option("10**5000", "max_attempts", 10**5000, f"{ATTEMPTS}an integer of 16610 bits"),
    _option("text", "retry", "5m", ": expected a policy such as Exponential(attempts=3), got '5m'"),
    _option("a policy that is code", "retry", Custom(lambda *_: 1), ": Custom is code and cannot be stored with a job: declare it on the task, @app.task(retry=…), or use Fixed, Linear, Exponential or Fibonacci here"),
    _option("0", "timeout", 0, ": expected at least 0.1 s, got 0"),
    _option("-1", "timeout", -1, f"{RANGE}-1"),
    _option("11 years", "timeout", "4015d", f"{RANGE}'4015d'"),
    _option("a naive datetime", "expires", datetime(2026, 1, 1), f"{ZONE}datetime.datetime(2026, 1, 1, 0, 0)"),  # noqa: DTZ001
    _option("words", "expires", "tomorrow", f"{DURATION}'tomorrow'"),
    _option("-(10**400)", "expires", -(10**400), f"{RANGE}an integer of 1329 bits"),
    _option("text", "tags", "vip", ": expected a list of text, got 'vip'"),
    _option("21 of them", "tags", ["x"] * 21, ": 21 of them, the limit is 20"),
    _option("a number among them", "tags", ["vip", 7], f"[1]{NAME}7"),
    _option("an empty one", "tags", [""], f"[0]{NAME}0 characters"),
    _option("one with a star", "tags", ["*"], f"[0]: '*'{FORBIDDEN}'*'"),
    _option("bytes", "tags", b"ab", f"[0]{NAME}97"),
    _option("a list", "metadata", [1], ": expected a mapping, got [1]"),
    _option("5,000 characters", "metadata", {"a": "x" * 5_000}, ": 5,008 bytes of JSON, the limit is 4,096 bytes"),
    _option("NaN", "metadata", {"a": [float("nan")]}, ".a[0]: nan is not JSON, numbers have to be finite"),
    _option("a key that is a number", "metadata", {1: "a"}, ": the key 1 is of type int, keys have to be strings"),
    _option("True", "unique", True, ": expected a value such as Unique(args=[…]), got True"),
    _option("what cannot be compared", "unique", Incomparable(), ": expected a value such as Unique(args=[…]), got array([1, 2])"),
    _option("nothing", "unique_key", "", f"{KEY}0 characters"),
    _option("256 characters", "unique_key", "x" * 256, f"{KEY}256 characters"),
    _option("NUL", "unique_key", "a\0", rf"{STORABLE}'a\x00'"),
    _option("a number", "idempotency_key", 7, f"{KEY}7"),
    _option("a lone surrogate", "idempotency_key", "\udfff", rf"{STORABLE}'\udfff'"),
    Case("using(delai=…)", "an option that there is not", "InvalidOption", "delai: there is no such option, did you mean delay?", {"delai": 1}),
    Case("using(**options)", "an option of two lines", "InvalidOption", "no such: there is no such option", {"no\nsuch": 1}),
    Case("using(delay=…, run_at=…)", "both", "InvalidOption", "delay, run_at: only one of the two can be given", {"delay": 1, "run_at": datetime(2026, 1, 1, tzinfo=UTC)}),
    Case("using(unique=…, unique_key=…)", "both", "InvalidOption", "unique, unique_key: only one of the two can say what the key is", {"unique": Unique(key="a"), "unique_key": "b"}),
)  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS, ids=Case.id)
def test_an_option_out_of_range_is_refused_in_one_line_that_names_it(case: Case, shop: Shop) -> None:
    error = shop.refuses(case, lambda: shop.send.using(**case.input).enqueue(shop.connection, 7))
    assert len(str(error)) < 300


def test_what_looks_like_text_or_a_number_is_stored_as_its_value(shop: Shop) -> None:
    job = shop.send.using(queue=Text.QUEUE, priority=Number.THREE, max_attempts=Number.THREE).enqueue(
        shop.connection, 7
    )
    query = "select queue, priority, max_attempts from pgqueue_bi.jobs where id = %s"
    assert shop.connection.execute(query, [job.id]).fetchone() == ("email", 3, 3)
    shop.connection.rollback()


# Tasks --------------------------------------------------------------------------------------------------


def _task(given: str, options: dict[str, Any], message: str, error: str = "InvalidOption") -> Case:
    return Case(f"@app.task({next(iter(options))}=…)", given, error, message, options)


TASKS = table(
    "enqueue",
    _task("nothing", {"name": ""}, "name: expected text of 1 to 200 characters, got 0 characters"),
    _task("201 characters", {"name": "x" * 201}, "name: expected text of 1 to 200 characters, got 201 characters"),
    _task("a quote", {"name": "a'b"}, f"""name: "'"{FORBIDDEN}"a'b\""""),
    _task("a star", {"queue": "a*"}, f"queue: '*'{FORBIDDEN}'a*'"),
    _task("10", {"priority": 10}, f"priority{PRIORITY}10"),
    _task("a number", {"retry": 3}, "retry: expected a policy such as Exponential(attempts=3), got 3"),
    _task("0 s", {"timeout": 0}, "timeout: expected at least 0.1 s, got 0"),
    _task("a number", {"permanent": 7}, "permanent: expected exception types, got 7"),
    _task("an exception", {"permanent": [ValueError("x")]}, "permanent: expected exception types, got ValueError('x')"),
    _task("a class that is no exception", {"permanent": [int]}, "permanent: expected exception types, got <class 'int'>"),
    _task("'fibre'", {"executor": "fibre"}, "task handle: executor has to be 'process' or 'thread', got 'fibre'", "ConfigurationError"),
    _task("what cannot be compared", {"executor": Incomparable()}, "task handle: executor has to be 'process' or 'thread', got array([1, 2])", "ConfigurationError"),
    _task("'ignore'", {"on_crash": "ignore"}, "on_crash: expected 'retry' or 'dead', got 'ignore'"),
    _task("what cannot be compared", {"on_crash": Incomparable()}, "on_crash: expected 'retry' or 'dead', got array([1, 2])"),
    _task("0", {"max_jobs_per_child": 0, "executor": "process"}, "max_jobs_per_child: expected an integer of at least 1, got 0"),
    _task("'lots'", {"max_memory": "lots", "executor": "process"}, "max_memory: expected bytes or text such as '512MB', got 'lots'"),
)  # fmt: skip


@pytest.mark.parametrize("case", TASKS, ids=Case.id)
def test_an_option_of_a_task_is_checked_where_the_task_is_defined(case: Case) -> None:
    app = App(settings=Settings())

    def handle() -> None: ...

    with pytest.raises((InvalidOption, errors.ConfigurationError)) as refused:
        app.task(**case.input)(handle)
    case.holds(refused.value)
    assert not app.tasks


def _by_name(given: str, name: Any, message: str) -> Case:
    return Case("app.task_named", given, "UnknownTask", message, name)


NAMED = table(
    "enqueue",
    _by_name("a misspelt name", "sned", "the app has no task 'sned', did you mean send?; it has send, anything"),
    _by_name("a list", [], "the app has no task []; it has send, anything"),
    _by_name("an object whose repr raises", Unprintable(), f"the app has no task {UNPRINTABLE}; it has send, anything"),
)  # fmt: skip


@pytest.mark.parametrize("case", NAMED, ids=Case.id)
def test_a_name_that_no_task_has_is_refused(case: Case, shop: Shop) -> None:
    shop.refuses(case, lambda: shop.app.task_named(case.input))


(NO_TASK,) = table(
    "enqueue",
    Case(
        "app.enqueue, bulk.enqueue",
        "the name of a task",
        "InvalidOption",
        "task: expected a task, which @app.task makes, got 'send'; app.task_named(…) finds one by its name",
        "send",
    ),
)


def test_what_is_no_task_is_refused(shop: Shop) -> None:
    shop.refuses(NO_TASK, lambda: shop.app.enqueue(NO_TASK.input, 7))
    shop.refuses(NO_TASK, lambda: asyncio.run(shop.app.enqueue_async(NO_TASK.input, 7)))
    shop.refuses(NO_TASK, lambda: shop.app.bulk().enqueue(NO_TASK.input, 7))


# Connections --------------------------------------------------------------------------------------------


def _connection(given: str, message: str, error: str = "UnusableConnection") -> Case:
    return Case("task.enqueue", given, error, message)


ACCEPTED = (
    "accepted are: psycopg Connection, Cursor, AsyncConnection or AsyncCursor; SQLAlchemy Connection, Session, "
    "AsyncConnection or AsyncSession; an asyncpg connection; a Django connection"
)
NONE, URL, CLOSED, CURSOR, ABORTED, READ_ONLY, SQLITE, EMPTY, NOBODY, NOT_AWAITED, NO_DSN = table(
    "enqueue",
    _connection("None for a connection", f"cannot enqueue on NoneType; {ACCEPTED}"),
    _connection("a DSN for a connection", f"cannot enqueue on str; {ACCEPTED}"),
    _connection("a closed connection", "the connection is closed"),
    _connection("a closed cursor", "the cursor is closed"),
    _connection(
        "a transaction that an error has aborted",
        "the transaction was aborted by an earlier error: roll back first, nothing was enqueued",
    ),
    _connection(
        "a read-only transaction (25006, from the server)",
        "cannot execute nextval() in a read-only transaction: the transaction or the server is read-only",
    ),
    _connection(
        "a connection to SQLite",
        "cannot enqueue on a SQLAlchemy connection to sqlite: pgqueue lives in PostgreSQL",
    ),
    _connection(
        "a database without the schema (42883 or 3F000, from the server)",
        'schema "pgqueue" does not exist: the schema pgqueue is not in this database, or is older than this package; '
        "run `pgqueue db upgrade`",
        "SchemaMissing",
    ),
    _connection(
        "a role without rights (42501, from the server)",
        "permission denied for schema pgqueue: the database role needs one of pgqueue's roles (grant pgqueue_producer to "
        "enqueue, pgqueue_worker to run jobs, pgqueue_monitor to read, pgqueue_admin to operate)",
        "NotPermitted",
    ),
    Case(
        "with app.bulk(…)",
        "an async connection",
        "UnusableConnection",
        "this connection is async: use `async with app.bulk(connection)`",
    ),
    Case(
        "app.enqueue",
        "no database in the settings",
        "MissingDSN",
        "no database is configured: set PGQUEUE_DSN (or DATABASE_URL), put dsn into pgqueue.toml or [tool.pgqueue], or "
        "pass App(dsn=…); enqueueing on a connection of yours needs none",
    ),
)


@pytest.mark.parametrize(
    ("case", "target"), [(NONE, None), (URL, "postgresql://db/app")], ids=["None", "DSN"]
)
def test_what_is_no_connection_is_refused(case: Case, target: Any, shop: Shop) -> None:
    shop.refuses(case, lambda: shop.send.enqueue(target, 7))


def test_a_closed_connection_is_refused(shop: Shop) -> None:
    connection = psycopg.connect(shop.dsn)
    cursor = connection.cursor()
    cursor.close()
    shop.refuses(CURSOR, lambda: shop.send.enqueue(cursor, 7))
    connection.close()
    shop.refuses(CLOSED, lambda: shop.send.enqueue(connection, 7))


def test_an_aborted_transaction_is_refused_until_its_savepoint_is_rolled_back(shop: Shop) -> None:
    _, jobs = shop.count()
    connection = shop.connection
    connection.execute("savepoint before")
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("select 1/0")
    with pytest.raises(errors.UnusableConnection) as refused:
        shop.send.enqueue(connection, 7)
    ABORTED.holds(refused.value)
    connection.execute("rollback to before")
    shop.send.enqueue(connection, 7)
    connection.commit()
    assert shop.count()[1] == jobs + 1


def test_what_the_server_refuses_has_to_be_rolled_back(shop: Shop, databases: Databases) -> None:
    before = shop.count()
    shop.connection.rollback()
    shop.connection.execute("set transaction read only")
    with pytest.raises(errors.UnusableConnection) as read_only:
        shop.send.enqueue(shop.connection, 7)
    READ_ONLY.holds(read_only.value)
    shop.connection.rollback()

    shop.connection.execute("create role badinput_stranger")
    shop.connection.execute("set local role badinput_stranger")
    with pytest.raises(errors.NotPermitted) as denied:
        shop.send.enqueue(shop.connection, 7)
    NOBODY.holds(denied.value)
    shop.connection.rollback()
    shop.send.enqueue(shop.connection, 7)
    shop.connection.rollback()
    assert shop.count() == before

    empty = databases.create_empty()
    try:
        with psycopg.connect(empty) as connection:
            with pytest.raises(errors.SchemaMissing) as missing:
                shop.send.enqueue(connection, 7)
            EMPTY.holds(missing.value)
            connection.rollback()
    finally:
        databases.drop(empty)


def test_another_database_is_refused(shop: Shop) -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        shop.refuses(SQLITE, lambda: shop.send.enqueue(connection, 7))
    engine.dispose()


def test_no_database_is_no_connection(shop: Shop) -> None:
    shop.refuses(NO_DSN, lambda: App(settings=Settings()).enqueue(shop.send, 7))


(AWAITED,) = table(
    "enqueue",
    Case(
        "await task.enqueue(…)",
        "a sync connection",
        "TypeError",
        "object Job can't be used in 'await' expression",
    ),
)


def test_async_and_sync_are_not_mixed_without_a_word(shop: Shop) -> None:
    before = shop.count()

    async def both_ways() -> None:
        connection = await psycopg.AsyncConnection.connect(shop.dsn)
        async with connection:
            with pytest.raises(errors.UnusableConnection) as refused, shop.app.bulk(connection) as bulk:  # type: ignore[attr-defined]
                bulk.enqueue(shop.send, 7)
            NOT_AWAITED.holds(refused.value)
            call = shop.send.enqueue(connection, 7)
            with pytest.warns(RuntimeWarning, match="coroutine 'run_async_connection' was never awaited"):
                del call
            assert (await shop.send.enqueue(connection, 7)).created
            await connection.rollback()

        with pytest.raises(TypeError) as refused_by_python:
            await shop.send.enqueue(shop.connection, 7)  # type: ignore[misc]
        AWAITED.holds(refused_by_python.value)
        shop.connection.rollback()  # as the exception does in a `with` block: the job was in the transaction

    asyncio.run(both_ways())
    assert shop.count() == before


(AUTOCOMMIT,) = table(
    "enqueue",
    Case(
        "task.enqueue",
        "a session in AUTOCOMMIT: the job is enqueued",
        "AutocommitWarning, once an engine",
        "this SQLAlchemy engine is in AUTOCOMMIT: an enqueue is committed at once and a rollback does not undo it. Pass a "
        "connection or session of a transactional engine, for example of "
        "engine.execution_options(isolation_level='READ COMMITTED')",
    ),
)


def test_a_session_in_autocommit_is_warned_of(shop: Shop) -> None:
    _, jobs = shop.count()
    engine = sa.create_engine(url_of(shop.dsn, "psycopg"), isolation_level="AUTOCOMMIT")
    with Session(engine) as session:
        with pytest.warns(AutocommitWarning) as warned:
            shop.send.enqueue(session, 7)
        assert AUTOCOMMIT.says(str(warned[0].message))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shop.send.enqueue(session, 7)
        session.rollback()
    engine.dispose()
    assert shop.count()[1] == jobs + 2


# Many at once -------------------------------------------------------------------------------------------


def _bulk(given: str, input: Callable[[Shop], Any], message: str) -> Case:
    return Case("app.enqueue_many", given, "InvalidOption", message, input)


PARTS = "which is the limit of one call: enqueue them in parts, which may be in one transaction of yours"


def _endless(shop: Shop) -> Iterator[Item]:
    return itertools.repeat(shop.anything.item())


BULKS = table(
    "bulk",
    _bulk("text", lambda _: "abc", "items: expected items made by task.item(…), got 'abc'"),
    _bulk("a number", lambda _: 7, "items: expected items made by task.item(…), got 7"),
    _bulk("a number among the items", lambda shop: [shop.anything.item(), 7], "items[1]: expected task.item(…), got 7"),
    _bulk("what is no item, at the end", lambda shop: [*[shop.anything.item()] * 20_000, ("send", "{}")], "items[20000]: expected task.item(…), got ('send', '{}')"),
    _bulk("100,001 jobs", lambda shop: [shop.anything.item()] * 100_001, f"items: more than 100,000 jobs, {PARTS}"),
    _bulk("a generator that never ends", _endless, f"items: more than 100,000 jobs, {PARTS}"),
    _bulk("257 jobs of 1 MiB", lambda shop: [shop.anything.item(a="x" * 1_048_000)] * 257, f"items: more than 268,435,456 characters of JSON, {PARTS}"),
)  # fmt: skip


@pytest.mark.parametrize("case", BULKS, ids=Case.id)
def test_a_bulk_is_refused_before_any_of_it_is_sent(case: Case, shop: Shop) -> None:
    items = case.input(shop)
    shop.refuses(case, lambda: shop.app.enqueue_many(shop.connection, items))


@pytest.mark.parametrize(
    "case", [case for case in BULKS if "limit" in case.message and "ends" not in case.given], ids=Case.id
)
def test_a_bulk_block_is_refused_where_it_becomes_too_much(
    case: Case, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = iter(case.input(shop))
    monkeypatch.setattr(type(shop.anything), "item", lambda *_: next(items))

    def block() -> None:
        with shop.app.bulk(shop.connection) as bulk:
            while True:
                bulk.enqueue(shop.anything)

    shop.refuses(case, block)


def test_as_many_as_may_be_are_no_refusal() -> None:
    item = Item("t", "{}")
    assert len(pgqueue.bulk.check_items([item] * pgqueue.bulk.MAX_ITEMS)) == 100_000


def test_no_items_are_no_jobs(shop: Shop) -> None:
    before = shop.count()
    assert shop.app.enqueue_many(shop.connection, []) == []
    with shop.app.bulk(shop.connection) as bulk:
        pass
    assert bulk.jobs == []
    shop.connection.commit()
    assert shop.count() == before


# Forks --------------------------------------------------------------------------------------------------


def test_an_app_may_enqueue_in_a_child_that_was_forked_after_its_pool_was_opened(shop: Shop) -> None:
    """And the parent's connections outlive the child."""
    _, jobs = shop.count()
    shop.app.enqueue(shop.send, 1)
    child = os.fork()
    if child == 0:  # no exception may lead back into pytest
        code = 1
        signal.alarm(30)
        try:
            for _ in range(3):
                shop.app.enqueue(shop.send, 2)
            code = 0
        finally:
            os._exit(code)
    for _ in range(3):
        shop.app.enqueue(shop.send, 3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    shop.app.enqueue(shop.send, 4)
    assert shop.count()[1] == jobs + 8


def test_the_retry_policies_check_what_they_are_given() -> None:
    """They go into tasks and options; what a policy of the user's own answers is in `tests/worker/test_outcomes.py`."""
    for make, says in POLICIES:
        with pytest.raises(InvalidOption) as refused:
            make()
        assert str(refused.value) == says


POLICIES: list[tuple[Callable[[], object], str]] = [
    (lambda: Fixed(base=Unprintable()), f"base{DURATION}{UNPRINTABLE}"),  # type: ignore[arg-type]
    (lambda: Fixed(base=-(10**400)), f"base{RANGE}an integer of 1329 bits"),
    (lambda: Fixed(attempts=Unprintable()), f"attempts{ATTEMPTS}{UNPRINTABLE}"),  # type: ignore[arg-type]
    (lambda: Custom(Unprintable()), f"function: expected a function of (attempt, error), got {UNPRINTABLE}"),  # type: ignore[arg-type]
]
