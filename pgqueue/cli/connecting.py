"""One connection for one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgqueue import calls
from pgqueue.drivers import run, translate
from pgqueue.dsn import redact_dsn
from pgqueue.errors import ConfigurationError, DatabaseUnavailable


def parts_of(dsn: str) -> dict[str, Any]:
    """The connection parameters of a DSN. Raises `ConfigurationError` for what libpq cannot read.

    Hazard: the library's error quotes the text, and the password may be in it. So it is not shown, nor kept as the cause.
    """
    try:
        return conninfo_to_dict(dsn)
    except psycopg.Error:
        raise ConfigurationError(f"dsn: {redact_dsn(dsn)} is no connection string") from None


def opened(dsn: str, name: str) -> psycopg.Connection[Any]:
    """An autocommit connection. Raises `DatabaseUnavailable` without the password in it, and `ConfigurationError`."""
    parts_of(dsn)
    try:
        return psycopg.connect(dsn, autocommit=True, connect_timeout=10, application_name=name)
    except psycopg.Error as error:
        raise translate(error) or DatabaseUnavailable(str(error)) from error


@contextmanager
def connected(dsn: str, *, only_reads: bool = False) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to a database whose schema serves this package.

    One that `only_reads` views needs no right on a function, not even on that which says what the schema serves: views
    are a contract of their own. Raises `DatabaseUnavailable` without the password in it, `SchemaError`, and what the
    statements raise.
    """
    with opened(dsn, "pgqueue cli") as connection:
        if not only_reads:
            run(connection, calls.protocol()).check()
        yield connection
