"""One connection for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pgqueue import calls
from pgqueue.drivers import run, translate
from pgqueue.errors import ConfigurationError, DatabaseUnavailable
from pgqueue.settings import redact_dsn


@contextmanager
def connected(dsn: str, *, only_reads: bool = False) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to a database whose schema serves this package.

    One that `only_reads` views needs no right on a function, not even on that which says what the schema serves: views
    are a contract of their own. Raises `DatabaseUnavailable` without the password in it, `SchemaError`, and what the
    statements raise.
    """
    try:
        connection = psycopg.connect(dsn, autocommit=True, connect_timeout=10, application_name="pgqueue cli")
    except psycopg.OperationalError as error:
        raise translate(error) or DatabaseUnavailable(str(error)) from error
    except psycopg.Error as error:
        # Not the library's text, which may quote the password.
        raise ConfigurationError(f"dsn: {redact_dsn(dsn)} is no connection string") from error
    with connection:
        if not only_reads:
            run(connection, calls.protocol()).check()
        yield connection
