"""Connections that cannot carry an enqueue: a clear error that names the remedy, before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import psycopg2
import psycopg_pool
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from pgqueue import calls, errors
from pgqueue.drivers import is_unavailable, run, translate
from tests.conformance.kinds import DjangoConnection, url_of
from tests.conformance.models import Broken, Order
from tests.conformance.test_enqueue import AnyTask
from tests.support import Databases, wait_until

CALL = calls.enqueue(task="refused")


def refusal(target: Any) -> str:
    """What an enqueue on `target` is refused with; its error is an `UnusableConnection`."""
    with pytest.raises(errors.UnusableConnection) as caught:
        run(target, CALL)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def refusal_of(target: Any) -> str:
    with pytest.raises(errors.UnusableConnection) as caught:
        await run(target, CALL)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Things that are no connection --------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, "postgresql://host/database", object(), 7])
def test_what_is_no_connection_is_told_what_is(target: Any) -> None:
    told = refusal(target)
    assert type(target).__name__ in told
    for accepted in ("psycopg Connection", "SQLAlchemy Connection, Session", "asyncpg", "Django"):
        assert accepted in told


def test_an_engine_is_told_to_begin(engine: sa.Engine) -> None:
    assert "with engine.begin()" in refusal(engine)
    assert "sessions.begin()" in refusal(sessionmaker(engine))
    asynchronous = create_async_engine("postgresql+psycopg://nowhere")
    assert "async with engine.begin()" in refusal(asynchronous)
    assert "async with sessions.begin()" in refusal(async_sessionmaker(asynchronous))


def test_a_context_manager_that_was_not_entered_is_told_so(engine: sa.Engine) -> None:
    assert "enter it" in refusal(engine.begin())
    with psycopg_pool.ConnectionPool("", open=False, min_size=1) as pool:
        assert "enter it" in refusal(pool.connection())


def test_a_coroutine_that_was_not_awaited_is_told_so() -> None:
    async def connect() -> None: ...

    coroutine = connect()
    assert "await it" in refusal(coroutine)
    coroutine.close()


def test_a_pool_is_told_to_lend_a_connection(database: str) -> None:
    assert "with pool.connection()" in refusal(psycopg_pool.ConnectionPool("", open=False, min_size=1))

    async def pools() -> None:
        assert "with pool.connection()" in refusal(
            psycopg_pool.AsyncConnectionPool("", open=False, min_size=1)
        )
        async with asyncpg.create_pool(database, min_size=0) as pool:
            assert "async with pool.acquire()" in refusal(pool)
            assert "async with pool.acquire()" in refusal(pool.acquire())

    asyncio.run(pools())


def test_a_transaction_object_is_told_to_pass_its_connection(database: str) -> None:
    with psycopg.connect(database) as connection, connection.transaction() as transaction:
        assert "pass the connection" in refusal(transaction)


def test_a_psycopg2_connection_is_told_the_ways_around(database: str) -> None:
    connection = psycopg2.connect(database)
    assert "SQLAlchemy" in refusal(connection)
    connection.close()


def test_another_database_is_refused() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        assert "sqlite" in refusal(connection)
    engine.dispose()


# Connections in a bad state -----------------------------------------------------------------------------


def test_a_closed_psycopg_connection(database: str) -> None:
    connection = psycopg.connect(database)
    cursor = connection.cursor()
    connection.close()
    assert refusal(connection) == "the connection is closed"
    assert refusal(cursor) == "the connection is closed"


def test_a_closed_psycopg_cursor(database: str) -> None:
    with psycopg.connect(database) as connection:
        with connection.cursor() as cursor:
            pass
        assert refusal(cursor) == "the cursor is closed"


def test_closed_async_psycopg_connections(database: str) -> None:
    async def closed() -> None:
        connection = await psycopg.AsyncConnection.connect(database)
        async with connection.cursor() as cursor:
            pass
        assert await refusal_of(cursor) == "the cursor is closed"
        await connection.close()
        assert await refusal_of(connection) == "the connection is closed"

    asyncio.run(closed())


@pytest.mark.needs_session("it ends its own session by the process id that it was told")
def test_a_lost_psycopg_connection_is_the_servers_doing(database: str, observer: psycopg.Connection) -> None:
    connection = psycopg.connect(database, autocommit=True)
    observer.execute("select pg_terminate_backend(%s)", [connection.info.backend_pid])

    def lost() -> bool:
        with pytest.raises(errors.DatabaseUnavailable):
            run(connection, CALL)
        return connection.broken

    wait_until(lost, message="the connection to be broken")
    with pytest.raises(errors.DatabaseUnavailable, match="open a new one") as caught:
        run(connection, CALL)
    assert is_unavailable(caught.value)


def test_an_aborted_transaction_sends_nothing(database: str) -> None:
    with psycopg.connect(database) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("select 1/0")
        with pytest.raises(errors.UnusableConnection, match="roll back first") as caught:
            run(connection, CALL)
        assert caught.value.__cause__ is None  # no server was asked
        connection.rollback()


def test_a_client_encoding_that_cannot_carry_the_job(database: str) -> None:
    with psycopg.connect(database, client_encoding="latin1") as connection:
        with pytest.raises(errors.UnusableConnection, match="client_encoding"):
            run(connection, calls.enqueue(task="kosten_€"))
        assert run(connection, calls.enqueue(task="größe")).created
        connection.rollback()


def test_closed_sqlalchemy_connections(engine: sa.Engine, database: str) -> None:
    with engine.connect() as connection:
        pass
    assert refusal(connection) == "the connection is closed"
    session = Session(engine, close_resets_only=False)
    session.close()
    assert "permanently closed" in refusal(session)

    async def closed() -> None:
        asynchronous = create_async_engine(url_of(database, "psycopg"))
        assert "never opened" in await refusal_of(asynchronous.connect())
        async with asynchronous.connect() as connection:
            pass
        assert await refusal_of(connection) == "the connection is closed"
        await asynchronous.dispose()

    asyncio.run(closed())


def test_a_session_after_a_failed_flush_has_to_roll_back(engine: sa.Engine, task: AnyTask) -> None:
    with Session(engine) as session:
        session.add(Broken(id=1))
        with pytest.raises(sa.exc.ProgrammingError):
            session.flush()
        assert "roll back first" in refusal(session)
        session.rollback()
        run(session, calls.enqueue(task=task.name))
        session.rollback()


def test_a_session_without_an_engine(engine: sa.Engine, task: AnyTask) -> None:
    assert "bind_arguments" in refusal(Session())
    with Session(binds={Order: engine}) as session:
        assert "bind_arguments" in refusal(session)
        assert run(
            session.connection(bind_arguments={"mapper": Order}), calls.enqueue(task=task.name)
        ).created


@pytest.mark.filterwarnings("ignore:coroutine 'AsyncConnection.connect' was never awaited")
def test_the_sync_session_of_an_async_engine_is_told_to_await(database: str) -> None:
    async def run_it() -> None:
        asynchronous = create_async_engine(url_of(database, "psycopg"))
        async with AsyncSession(asynchronous) as session:
            assert "pass the AsyncSession" in refusal(session.sync_session)
        await asynchronous.dispose()

    asyncio.run(run_it())


def test_no_server_behind_an_engine_means_unavailable() -> None:
    async def nobody_home(driver: str) -> None:
        engine = create_async_engine(f"postgresql+{driver}://127.0.0.1:1/none")
        async with AsyncSession(engine) as session:
            with pytest.raises(errors.DatabaseUnavailable):
                await run(session, CALL)
        await engine.dispose()

    asyncio.run(nobody_home("psycopg"))
    asyncio.run(nobody_home("asyncpg"))


def test_asyncpg_connections_closed_released_and_busy(database: str) -> None:
    async def states() -> None:
        connection = await asyncpg.connect(database)
        statements = [asyncio.ensure_future(run(connection, CALL)) for _ in range(2)]
        first, second = await asyncio.gather(*statements, return_exceptions=True)
        assert isinstance(second, errors.UnusableConnection)
        assert "busy" in str(second)
        assert not isinstance(first, BaseException)
        await connection.close()
        assert await refusal_of(connection) == "the connection is closed"
        async with asyncpg.create_pool(database, min_size=1, max_size=1) as pool:
            async with pool.acquire() as lent:
                pass
            assert "released" in await refusal_of(lent)

    asyncio.run(states())


def test_a_django_block_that_has_to_roll_back(database: str) -> None:
    with DjangoConnection(database) as kind:
        kind.begin()
        kind.target.set_rollback(True)
        assert "roll back first" in refusal(kind.target)
        kind.rollback()
        from django.db import connections

        assert "connections['default']" in refusal(connections)
        kind.begin()
        kind.target.close()
        assert "closed inside its atomic block" in refusal(kind.target)
        kind.rollback()
        kind.target.settings_dict["ENGINE"] = "django.db.backends.postgresql"


def test_a_django_connection_to_another_database(tmp_path: Any) -> None:
    from django.db.backends.sqlite3.base import DatabaseWrapper

    assert "sqlite" in refusal(DatabaseWrapper({"NAME": str(tmp_path / "db"), "OPTIONS": {}}))


# The schema ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_schema(databases: Databases) -> Iterator[str]:
    dsn = databases.create_empty()
    yield dsn
    databases.drop(dsn)


def test_a_database_without_the_schema_names_the_command(without_schema: str) -> None:
    with psycopg.connect(without_schema) as connection:
        with pytest.raises(errors.SchemaMissing, match="pgqueue db upgrade"):
            run(connection, CALL)
        connection.rollback()
        connection.execute("create schema pgqueue")
        with pytest.raises(errors.SchemaMissing, match="older than this package") as caught:
            run(connection, CALL)
        assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedFunction)


def test_a_missing_table_of_the_applications_own_is_not_ours(database: str) -> None:
    with psycopg.connect(database) as connection, pytest.raises(psycopg.errors.UndefinedTable) as caught:
        connection.execute("select * from customers")
    assert translate(caught.value) is None
