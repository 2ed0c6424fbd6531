"""The fixtures that every test may use.

    server       DSN of the session's PostgreSQL: an embedded one of its own, made for this run and not
                 durable; or PGQUEUE_TEST_DATABASE_URL, whose role must be allowed to create databases
    databases    makes databases with pgqueue's schema from a template (`tests/support/databases.py`)
    database     DSN of a fresh database for this test, removed afterwards with whoever is connected
    connection   a psycopg connection to it, in autocommit

With PGQUEUE_TEST_POOLER=pgbouncer every database is reached through a PgBouncer in transaction mode, by tests and workers
alike, which are not told of it (`make pooled`); a test marked `needs_session` says why it cannot run there.

Crash tests that stop or kill the server start one of their own (`pgqueue.embedded.EmbeddedServer`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from tests.support import Databases
from tests.support.pgbouncer import PgBouncer

_SETTINGS = {"max_prepared_transactions": "10", "max_connections": "200", "max_wal_size": "256MB"}
_MEMORY = Path("/dev/shm")
POOLED = os.environ.get("PGQUEUE_TEST_POOLER") == "pgbouncer"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_session(why): cannot run behind a transaction pooler")
    if POOLED:
        # What an application behind a transaction pooler has to do too: a statement that was prepared in one
        # session is unknown to the next.
        for kind in (psycopg.Connection, psycopg.AsyncConnection):
            _defaults(kind.connect)["prepare_threshold"] = None
        _defaults(asyncpg.connect)["statement_cache_size"] = 0


def _defaults(function: Any) -> dict[str, Any]:
    """What the keyword arguments of a function are when they are not given."""
    found: dict[str, Any] = getattr(function, "__func__", function).__kwdefaults__
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if POOLED:
        for item in items:
            if (marker := item.get_closest_marker("needs_session")) is not None:
                item.add_marker(pytest.mark.skip(reason=f"behind a transaction pooler: {marker.args[0]}"))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The DSN of a database of the session's server."""
    if configured := os.environ.get("PGQUEUE_TEST_DATABASE_URL"):
        yield configured
        return
    from pgqueue.embedded import EmbeddedServer

    # not pytest's tmp_path: as root that is a private folder, which the server's user may not enter
    with (
        tempfile.TemporaryDirectory(prefix="pgqueue-tests-", dir=_fast_folder()) as folder,
        EmbeddedServer(Path(folder), durable=False, settings=_SETTINGS) as embedded,
    ):
        yield embedded.dsn


def _fast_folder() -> Path | None:
    """Memory where there is enough of it: a database there takes 15 ms, on a disk up to 300."""
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 * 2**30:
        return _MEMORY
    return None


@pytest.fixture(scope="session")
def databases(server: str) -> Iterator[Databases]:
    """Makes databases with pgqueue's schema."""
    with pooler(server) as way:
        made = Databases(server, way)
        yield made
        made.close()


@contextlib.contextmanager
def pooler(server: str) -> Iterator[Callable[[str], str] | None]:
    """The way to a database by its name, where there is a pooler before the server."""
    if not POOLED:
        yield None
        return
    with PgBouncer(server) as bouncer:
        yield bouncer.dsn_for


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """The DSN of a fresh database with pgqueue's schema."""
    dsn = databases.create()
    yield dsn
    databases.drop(dsn)


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    """A psycopg connection to the test's database, in autocommit."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection
