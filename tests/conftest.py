"""The fixtures that every test may use.

    server       DSN of the session's PostgreSQL: an embedded one of its own, made for this run and not
                 durable; or PGQUEUE_TEST_DATABASE_URL, whose role must be allowed to create databases
    databases    makes databases with pgqueue's schema from a template (`tests/support/databases.py`)
    database     DSN of a fresh database for this test, removed afterwards with whoever is connected
    connection   a psycopg connection to it, in autocommit

Crash tests that stop or kill the server start one of their own (`pgqueue.embedded.EmbeddedServer`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support import Databases

_SETTINGS = {"max_prepared_transactions": "10", "max_connections": "200", "max_wal_size": "256MB"}
_MEMORY = Path("/dev/shm")


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
    made = Databases(server)
    yield made
    made.close()


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
