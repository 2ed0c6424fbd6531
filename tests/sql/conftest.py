"""One database for the whole folder, emptied before each test, which is quicker than one a test.

database     overrides the fixture of the same name: the shared database
connection   a session of it, in autocommit
connect      opens more sessions of it
beside       runs a function in another thread
fresh        the DSN of a database of the test's own, for tests that change the schema for good
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.sql.acting import Connect, empty, forget_prepared, open_session
from tests.support import Databases


@pytest.fixture(scope="package")
def shared(databases: Databases) -> Iterator[str]:
    """The DSN of the folder's database."""
    dsn = databases.create()
    yield dsn
    databases.drop(dsn)


@pytest.fixture(scope="package")
def janitor(shared: str) -> Iterator[psycopg.Connection]:
    """A session of the folder's database that empties it."""
    with open_session(shared) as connection:
        yield connection
        forget_prepared(connection)


@pytest.fixture
def database(shared: str, janitor: psycopg.Connection) -> str:
    """The DSN of the folder's database, without rows."""
    empty(janitor)
    return shared


@pytest.fixture
def fresh(databases: Databases) -> Iterator[str]:
    """The DSN of a database that is this test's alone."""
    dsn = databases.create()
    yield dsn
    with open_session(dsn) as connection:
        forget_prepared(connection)
    databases.drop(dsn)


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Opens sessions, in autocommit; they are closed, and what is open rolled back, after the test."""
    opened: list[psycopg.Connection] = []

    def connect(dsn: str = database, settings: str = "", autocommit: bool = True) -> psycopg.Connection:
        connection = open_session(dsn, settings, autocommit)
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        with contextlib.suppress(psycopg.Error):
            connection.close()


@pytest.fixture(scope="package")
def warm(shared: str) -> Iterator[psycopg.Connection]:
    """A session that many tests use in turn: to plan every function anew costs more than most tests."""
    with open_session(shared) as connection:
        yield connection


@pytest.fixture
def connection(database: str, warm: psycopg.Connection) -> Iterator[psycopg.Connection]:  # noqa: ARG001 - emptied
    """A session of the test's database, in autocommit, as if it were new."""
    yield warm
    warm.rollback()
    warm.execute("select pg_advisory_unlock_all(); reset all; unlisten *")


@pytest.fixture
def beside(connect: Connect) -> Iterator[Callable[..., Future[Any]]]:  # noqa: ARG001 - ends before the sessions do
    """Runs a function in another thread: `beside(function, *arguments)` returns its future."""
    with ThreadPoolExecutor(max_workers=80) as threads:
        yield threads.submit
