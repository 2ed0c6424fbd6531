"""pytest's plugin: fixtures for tests that need a database with pgqueue's schema. Found by pytest by itself.

    pgqueue_dsn          DSN of a database with the schema, the same for the whole run: the one in
                         PGQUEUE_TEST_DATABASE_URL, brought up to date; else a PostgreSQL of the run's own
    pgqueue_connection   a psycopg connection to it, rolled back after the test

Override `pgqueue_dsn` in a conftest.py to bring a database of your own. What to do with a connection is in
`pgqueue.testing`. Nothing is imported before a fixture is used.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import psycopg


@pytest.fixture(scope="session")
def pgqueue_dsn() -> Iterator[str]:
    """DSN of a database with pgqueue's schema: PGQUEUE_TEST_DATABASE_URL, else a PostgreSQL of this run's own."""
    from pgqueue import migrate
    from pgqueue.dsn import normalize_dsn
    from pgqueue.errors import NoServer

    if configured := os.environ.get("PGQUEUE_TEST_DATABASE_URL"):
        dsn = normalize_dsn(configured)
        migrate.upgrade(dsn)
        yield dsn
        return
    from pgqueue.embedded import EmbeddedServer

    # not tmp_path: as root that is a private folder, which the server's user may not enter
    with tempfile.TemporaryDirectory(prefix="pgqueue-pytest-") as folder:
        server = EmbeddedServer(Path(folder), durable=False)
        try:
            server.start()
        except NoServer as error:
            error.add_note("or set PGQUEUE_TEST_DATABASE_URL to a database for tests")
            raise
        try:
            migrate.upgrade(server.dsn)
            yield server.dsn
        finally:
            server.stop()


@pytest.fixture
def pgqueue_connection(pgqueue_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A psycopg connection to `pgqueue_dsn`, in a transaction that is rolled back after the test."""
    import psycopg

    with psycopg.connect(pgqueue_dsn) as connection:
        try:
            yield connection
        finally:
            connection.rollback()
