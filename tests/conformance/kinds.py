"""The kinds of connection, behind one small interface.

A `Kind` is one connection of an application. `target` is what the application hands to `enqueue`. Async
kinds run each step to its end on an event loop of their own, so that one test serves both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar

import asyncpg
import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pgqueue.app import App
from pgqueue.bulk import Bulk
from pgqueue.calls import Call
from pgqueue.drivers import run
from pgqueue.job import Job
from pgqueue.task import BoundTask, Item

T = TypeVar("T")


class Kind:
    """One connection. `with Kind(dsn) as kind:` opens it and closes all that was opened."""

    is_async = False
    target: Any

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.stack = ExitStack()

    def __enter__(self) -> Any:
        with ExitStack() as stack:
            self.stack = stack
            self.open()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.__exit__(None, None, None)

    def wait(self, step: Any) -> Any:
        """What a step of the application comes to: itself, or what it is awaited to."""
        return step

    def open(self) -> None:
        """Opens the connection and sets `target`."""
        raise NotImplementedError

    def begin(self) -> None:
        """Begins a transaction, where the library does not do so by itself."""

    def commit(self) -> None:
        raise NotImplementedError

    def rollback(self) -> None:
        raise NotImplementedError

    def savepoint(self) -> None:
        raise NotImplementedError

    def rollback_savepoint(self) -> None:
        """Rolls back to the savepoint made last; the transaction goes on."""
        raise NotImplementedError

    def execute(self, sql: str) -> None:
        """The application's own statement in its transaction, without a result."""
        raise NotImplementedError

    def scalar(self, sql: str) -> Any:
        """The application's own query in its transaction: the first column of its only row."""
        raise NotImplementedError

    def enqueue(self, task: BoundTask[..., Any], **args: Any) -> Job:
        """`task.enqueue(connection, …)`, as an application writes it."""
        return self.wait(task.enqueue(self.target, **args))

    def enqueue_many(self, app: App, items: Iterable[Item]) -> list[Job]:
        """`app.enqueue_many(connection, […])`."""
        return self.wait(app.enqueue_many(self.target, items))

    def bulk(self, app: App, tasks: Iterable[BoundTask[..., Any]]) -> Bulk:
        """`with app.bulk(connection) as bulk:`, one job of each task in it."""
        with app.bulk(self.target) as bulk:
            for task in tasks:
                bulk.enqueue(task)
        return bulk

    def run(self, call: Call[T]) -> T:
        """A call below that façade, to send what it would refuse."""
        return self.wait(run(self.target, call))

    def pid(self) -> int:
        """The server process behind this connection."""
        return int(self.scalar("select pg_backend_pid()"))


class AsyncKind(Kind):
    is_async = True

    def __enter__(self) -> Any:
        self.runner = asyncio.Runner()
        self.async_stack = AsyncExitStack()
        try:
            return super().__enter__()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        with self.runner:
            self.runner.run(self.async_stack.aclose())
            super().__exit__(*error)

    def wait(self, step: Any) -> Any:
        async def awaited() -> Any:
            return await step

        return self.runner.run(step if isinstance(step, Coroutine) else awaited())

    def bulk(self, app: App, tasks: Iterable[BoundTask[..., Any]]) -> Bulk:
        async def block() -> Bulk:
            async with app.bulk(self.target) as bulk:
                for task in tasks:
                    bulk.enqueue(task)
            return bulk

        return self.wait(block())

    def open(self) -> None:
        self.wait(self.open_async())

    async def open_async(self) -> None:
        raise NotImplementedError


# psycopg -----------------------------------------------------------------------------------------------


class PsycopgConnection(Kind):
    """With a row factory of the application's own, that an enqueue must not fall over."""

    def open(self) -> None:
        self.connection = psycopg.connect(self.dsn, row_factory=dict_row)
        self.stack.callback(self.connection.close)
        self.target: Any = self.connection

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    def savepoint(self) -> None:
        self.block = self.connection.transaction()
        self.block.__enter__()

    def rollback_savepoint(self) -> None:
        self.block.__exit__(psycopg.Rollback, psycopg.Rollback(self.block), None)

    def execute(self, sql: str) -> None:
        self.connection.execute(sql)

    def scalar(self, sql: str) -> Any:
        row = self.connection.execute(sql).fetchone()
        return next(iter(row.values()))


class PsycopgCursor(PsycopgConnection):
    """A cursor whose own results the enqueue leaves alone."""

    def open(self) -> None:
        super().open()
        self.cursor = self.stack.enter_context(self.connection.cursor())
        self.cursor.execute("select 'mine' as value")
        self.connection.commit()
        self.target = self.cursor


class PsycopgClientCursor(PsycopgCursor):
    """`ClientCursor` puts values into the text of the statement."""

    def open(self) -> None:
        super().open()
        self.connection.cursor_factory = psycopg.ClientCursor
        self.target = self.stack.enter_context(self.connection.cursor())


class PsycopgPipeline(PsycopgConnection):
    def open(self) -> None:
        super().open()
        self.stack.enter_context(
            contextlib.suppress(psycopg.OperationalError)
        )  # leaving it when the server went
        self.stack.enter_context(self.connection.pipeline())


class PsycopgBlock(PsycopgConnection):
    """A connection in autocommit, with `with connection.transaction():` around the work."""

    def open(self) -> None:
        super().open()
        self.connection.autocommit = True

    def begin(self) -> None:
        self.outer = self.connection.transaction()
        self.outer.__enter__()

    def commit(self) -> None:
        self.outer.__exit__(None, None, None)

    def rollback(self) -> None:
        self.outer.__exit__(psycopg.Rollback, psycopg.Rollback(self.outer), None)


class PsycopgAsyncConnection(AsyncKind):
    async def open_async(self) -> None:
        self.connection = await psycopg.AsyncConnection.connect(self.dsn, row_factory=dict_row)
        self.async_stack.push_async_callback(self.connection.close)
        self.target: Any = self.connection

    def commit(self) -> None:
        self.wait(self.connection.commit())

    def rollback(self) -> None:
        self.wait(self.connection.rollback())

    def savepoint(self) -> None:
        self.block = self.connection.transaction()
        self.wait(self.block.__aenter__())

    def rollback_savepoint(self) -> None:
        self.wait(self.block.__aexit__(psycopg.Rollback, psycopg.Rollback(self.block), None))

    def execute(self, sql: str) -> None:
        self.wait(self.connection.execute(sql))

    def scalar(self, sql: str) -> Any:
        async def fetch() -> Any:
            return await (await self.connection.execute(sql)).fetchone()

        return next(iter(self.wait(fetch()).values()))


class PsycopgAsyncCursor(PsycopgAsyncConnection):
    async def open_async(self) -> None:
        await super().open_async()
        self.target = await self.async_stack.enter_async_context(self.connection.cursor())


class PsycopgAsyncPipeline(PsycopgAsyncConnection):
    async def open_async(self) -> None:
        await super().open_async()
        self.async_stack.enter_context(contextlib.suppress(psycopg.OperationalError))
        await self.async_stack.enter_async_context(self.connection.pipeline())


# SQLAlchemy --------------------------------------------------------------------------------------------


def url_of(dsn: str, driver: str) -> sa.URL:
    """SQLAlchemy's URL of a DSN, for "psycopg", "psycopg2" or "asyncpg"."""
    parts: dict[str, Any] = conninfo_to_dict(dsn)
    query = {name: str(parts[name]) for name in ("host", "port") if name in parts}
    return sa.URL.create(
        f"postgresql+{driver}",
        parts.get("user"),
        parts.get("password"),
        database=parts["dbname"],
        query=query,
    )


class _SQLAlchemy(Kind):
    driver = "psycopg"

    def engine(self) -> sa.Engine:
        engine = sa.create_engine(url_of(self.dsn, self.driver))
        self.stack.callback(engine.dispose)
        return engine

    def commit(self) -> None:
        self.target.commit()

    def rollback(self) -> None:
        self.target.rollback()

    def savepoint(self) -> None:
        self.nested = self.target.begin_nested()

    def rollback_savepoint(self) -> None:
        self.nested.rollback()

    def execute(self, sql: str) -> None:
        self.target.execute(sa.text(sql))

    def scalar(self, sql: str) -> Any:
        return self.target.execute(sa.text(sql)).scalar_one()


class SQLAlchemyConnection(_SQLAlchemy):
    def open(self) -> None:
        self.target: sa.Connection = self.stack.enter_context(self.engine().connect())


class SQLAlchemyPsycopg2(SQLAlchemyConnection):
    driver = "psycopg2"


class SQLAlchemySession(_SQLAlchemy):
    def open(self) -> None:
        self.target: Session = self.stack.enter_context(Session(self.engine()))


class SQLAlchemyScopedSession(_SQLAlchemy):
    def open(self) -> None:
        self.target: Any = scoped_session(sessionmaker(self.engine()))
        self.stack.callback(self.target.remove)


class _SQLAlchemyAsync(AsyncKind):
    driver = "psycopg"

    def engine(self) -> AsyncEngine:
        engine = create_async_engine(url_of(self.dsn, self.driver))
        self.async_stack.push_async_callback(engine.dispose)
        return engine

    def commit(self) -> None:
        self.wait(self.target.commit())

    def rollback(self) -> None:
        self.wait(self.target.rollback())

    def savepoint(self) -> None:
        self.nested = self.wait(self.target.begin_nested())

    def rollback_savepoint(self) -> None:
        self.wait(self.nested.rollback())

    def execute(self, sql: str) -> None:
        self.wait(self.target.execute(sa.text(sql)))

    def scalar(self, sql: str) -> Any:
        return self.wait(self.target.execute(sa.text(sql))).scalar_one()


class SQLAlchemyAsyncConnection(_SQLAlchemyAsync):
    async def open_async(self) -> None:
        self.target: AsyncConnection = await self.async_stack.enter_async_context(self.engine().connect())


class SQLAlchemyAsyncSession(_SQLAlchemyAsync):
    async def open_async(self) -> None:
        self.target: AsyncSession = await self.async_stack.enter_async_context(AsyncSession(self.engine()))


class SQLAlchemyAsyncpg(SQLAlchemyAsyncSession):
    driver = "asyncpg"


# asyncpg -----------------------------------------------------------------------------------------------


class AsyncpgConnection(AsyncKind):
    async def open_async(self) -> None:
        self.target: Any = await asyncpg.connect(self.dsn)
        self.async_stack.push_async_callback(self.target.close)

    def begin(self) -> None:
        self.outer = self.target.transaction()
        self.wait(self.outer.start())

    def commit(self) -> None:
        self.wait(self.outer.commit())

    def rollback(self) -> None:
        self.wait(self.outer.rollback())

    def savepoint(self) -> None:
        self.nested = self.target.transaction()
        self.wait(self.nested.start())

    def rollback_savepoint(self) -> None:
        self.wait(self.nested.rollback())

    def execute(self, sql: str) -> None:
        self.wait(self.target.execute(sql))

    def scalar(self, sql: str) -> Any:
        return self.wait(self.target.fetchval(sql))


class AsyncpgPooled(AsyncpgConnection):
    async def open_async(self) -> None:
        pool = await self.async_stack.enter_async_context(
            asyncpg.create_pool(self.dsn, min_size=1, max_size=1)
        )
        self.target = await self.async_stack.enter_async_context(pool.acquire())


# Django ------------------------------------------------------------------------------------------------


class DjangoConnection(Kind):
    """`django.db.connection`, with `transaction.atomic()` around the work."""

    def open(self) -> None:
        import django
        from django.conf import settings

        if not settings.configured:
            settings.configure(
                DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}}, USE_TZ=True
            )
            django.setup()
        from django.db import connection, transaction

        parts: dict[str, Any] = conninfo_to_dict(self.dsn)
        connection.settings_dict.update(
            NAME=parts["dbname"],
            USER=parts.get("user", ""),
            PASSWORD=parts.get("password", ""),
            HOST=parts.get("host", ""),
            PORT=parts.get("port", ""),
        )
        self.stack.callback(self.close)
        self.target: Any = connection
        self.atomic = transaction.atomic
        self.blocks: list[Any] = []

    def close(self) -> None:
        while self.blocks:  # Django keeps the state of a block that a failed test has left open
            self.rollback()
        self.target.close()

    def begin(self) -> None:
        self.blocks.append(self.atomic())
        self.blocks[-1].__enter__()

    def commit(self) -> None:
        self.blocks.pop().__exit__(None, None, None)

    def rollback(self) -> None:
        self.blocks.pop().__exit__(ValueError, ValueError(), None)

    savepoint = begin
    rollback_savepoint = rollback

    def execute(self, sql: str) -> None:
        with self.target.cursor() as cursor:
            cursor.execute(sql)

    def scalar(self, sql: str) -> Any:
        with self.target.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0]


KINDS: dict[str, type[Kind]] = {
    "psycopg Connection": PsycopgConnection,
    "psycopg Cursor": PsycopgCursor,
    "psycopg ClientCursor": PsycopgClientCursor,
    "psycopg pipeline": PsycopgPipeline,
    "psycopg transaction block": PsycopgBlock,
    "psycopg AsyncConnection": PsycopgAsyncConnection,
    "psycopg AsyncCursor": PsycopgAsyncCursor,
    "psycopg async pipeline": PsycopgAsyncPipeline,
    "sqlalchemy Connection": SQLAlchemyConnection,
    "sqlalchemy Session": SQLAlchemySession,
    "sqlalchemy scoped_session": SQLAlchemyScopedSession,
    "sqlalchemy AsyncConnection": SQLAlchemyAsyncConnection,
    "sqlalchemy AsyncSession": SQLAlchemyAsyncSession,
    "sqlalchemy over asyncpg": SQLAlchemyAsyncpg,
    "sqlalchemy over psycopg2": SQLAlchemyPsycopg2,
    "asyncpg Connection": AsyncpgConnection,
    "asyncpg pool": AsyncpgPooled,
    "django": DjangoConnection,
}
"""Every kind of connection that an enqueue accepts, by the name in the test's id."""
