"""What an enqueue leaves alone, and what it warns of."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from pgqueue import calls
from pgqueue.drivers import AutocommitWarning, run
from tests.conformance.kinds import url_of
from tests.conformance.models import Broken, Order
from tests.conformance.test_enqueue import AnyTask, seen

CALL = calls.enqueue(task="any")


# AUTOCOMMIT ---------------------------------------------------------------------------------------------


def warned(enqueue: Callable[[], Any], asynchronous: bool = False) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        enqueue()
    assert all(issubclass(one.category, AutocommitWarning) for one in caught)
    if not asynchronous:  # there the application's line is outside of SQLAlchemy's greenlet
        assert all(one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught]


def test_an_engine_in_autocommit_warns_once_and_names_the_remedy(
    database: str, task: AnyTask, observer: psycopg.Connection
) -> None:
    engine = sa.create_engine(url_of(database, "psycopg"), isolation_level="AUTOCOMMIT")
    call = calls.enqueue(task=task.name)
    with engine.connect() as connection:
        (message,) = warned(lambda: run(connection, call))
        assert "isolation_level='READ COMMITTED'" in message
        assert warned(lambda: run(connection, call)) == []
        connection.rollback()
    with Session(engine) as session:
        assert warned(lambda: run(session, call)) == []
    assert len(seen(observer, task)) == 3  # what the warning is about
    engine.dispose()


def test_a_connection_set_to_autocommit_warns_too(engine: sa.Engine) -> None:
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        assert len(warned(lambda: run(session, CALL))) == 1
    with engine.connect() as connection:
        assert warned(lambda: run(connection, CALL)) == []
        connection.rollback()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_engine_in_autocommit_warns(database: str, driver: str) -> None:
    async def enqueue() -> None:
        engine = create_async_engine(url_of(database, driver), isolation_level="AUTOCOMMIT")
        async with AsyncSession(engine) as session:
            await run(session, CALL)
        await engine.dispose()

    assert len(warned(lambda: asyncio.run(enqueue()), asynchronous=True)) == 1


def test_where_warnings_are_errors_nothing_is_enqueued(
    database: str, task: AnyTask, observer: psycopg.Connection
) -> None:
    engine = sa.create_engine(url_of(database, "psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for _ in range(2):
            with pytest.raises(AutocommitWarning):
                run(connection, calls.enqueue(task=task.name))
    assert seen(observer, task) == []
    engine.dispose()


def test_a_psycopg_connection_in_autocommit_is_normal(
    database: str, task: AnyTask, observer: psycopg.Connection
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        job = run(connection, calls.enqueue(task=task.name))
        assert seen(observer, task) == [job.id]


# What an enqueue leaves alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("autoflush", [True, False])
def test_pending_objects_are_flushed_as_the_session_says_and_commit_together(
    engine: sa.Engine, task: AnyTask, observer: psycopg.Connection, autoflush: bool
) -> None:
    with Session(engine, autoflush=autoflush) as session, session.begin():
        order = Order(task=task.name)
        session.add(order)
        job = run(session, calls.enqueue(task=task.name))
        assert (order in session.new) is not autoflush
    assert seen(observer, task) == [job.id]
    assert observer.execute("select count(*) from orders where task = %s", [task.name]).fetchone() == (1,)


def test_an_error_of_that_flush_is_the_applications_own(engine: sa.Engine, task: AnyTask) -> None:
    with Session(engine) as session:
        session.add(Broken(id=1))
        with pytest.raises(sa.exc.ProgrammingError, match="no_such_table"):
            run(session, calls.enqueue(task=task.name))


def test_an_enqueue_in_an_event_of_a_flush_is_part_of_it(
    engine: sa.Engine, task: AnyTask, observer: psycopg.Connection
) -> None:
    with Session(engine) as session, session.begin():
        sa.event.listen(session, "after_flush", lambda *_: run(session, calls.enqueue(task=task.name)))
        session.add(Order(task=task.name))
    assert len(seen(observer, task)) == 1


def test_results_that_a_cursor_has_not_fetched_stay_where_they_are(database: str, task: AnyTask) -> None:
    with psycopg.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("select generate_series(1, 3)")
        run(cursor, calls.enqueue(task=task.name))
        assert cursor.fetchall() == [(1,), (2,), (3,)]
        connection.rollback()


def test_an_enqueue_in_run_sync_goes_through_the_session(database: str, task: AnyTask) -> None:
    async def enqueue() -> None:
        engine = create_async_engine(url_of(database, "psycopg"))
        async with AsyncSession(engine) as session:
            assert (await session.run_sync(run, calls.enqueue(task=task.name))).created
        await engine.dispose()

    asyncio.run(enqueue())


def test_an_async_target_gives_an_awaitable(database: str) -> None:
    async def enqueue() -> None:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            waiting = run(connection, CALL)
            assert isinstance(waiting, Awaitable)
            assert (await waiting).created
            await connection.rollback()

    asyncio.run(enqueue())


def test_no_library_is_loaded_that_the_application_has_not_loaded() -> None:
    program = """
import sys
from pgqueue.drivers import run
from pgqueue.errors import UnusableConnection
try:
    run(object(), None)
except UnusableConnection:
    pass
print(sorted({"psycopg", "sqlalchemy", "asyncpg", "django"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
