"""The connection that migrations run on, and what goes wrong on it in the words of pgqueue."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import psycopg
import sqlalchemy
from alembic.util import CommandError
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.pool import NullPool

from pgqueue import drivers
from pgqueue.dsn import normalize_dsn, redact_dsn
from pgqueue.errors import ConfigurationError, DatabaseUnavailable, NotPermitted, SchemaError

_OLDEST_SERVER = 150_000
_CONNECT_SECONDS = 10

Tell = Callable[[str], object]


class LockedError(DatabaseUnavailable):
    """A lock was not free in time, or a deadlock was broken at our cost: the same may work later."""


@contextlib.contextmanager
def connect(dsn: str, tell: Tell = lambda _: None) -> Iterator[sqlalchemy.Connection]:
    """A connection whose transactions are READ COMMITTED whatever the role's default.

    Above that level the snapshot is older than the wait for our turn, and shows what was pending then.
    """
    place = redact_dsn(dsn)
    try:
        options: dict[str, Any] = conninfo_to_dict(normalize_dsn(dsn))
    except (psycopg.Error, ValueError) as error:
        # libpq's message quotes the text, and the password may be in it
        reason = str(error) if isinstance(error, ValueError) else "libpq cannot read it"
        raise ConfigurationError(f"the DSN {place} is not usable: {reason}") from None
    if "PGCONNECT_TIMEOUT" not in os.environ:
        options.setdefault("connect_timeout", _CONNECT_SECONDS)
    options.setdefault("fallback_application_name", "pgqueue db")
    try:
        raw = psycopg.connect(**options, prepare_threshold=None)
    except psycopg.Error as error:
        reason = "; ".join(line.strip() for line in str(error).strip().splitlines())
        raise DatabaseUnavailable(f"cannot connect to {place}: {reason}") from error
    with contextlib.closing(raw):
        if raw.info.server_version < _OLDEST_SERVER:
            found = raw.info.server_version // 10_000
            raise ConfigurationError(f"{place} is PostgreSQL {found}: pgqueue needs 15 or newer")
        raw.isolation_level = psycopg.IsolationLevel.READ_COMMITTED

        def hear(notice: psycopg.errors.Diagnostic) -> None:
            tell(str(notice.message_primary))

        raw.add_notice_handler(hear)
        engine = sqlalchemy.create_engine("postgresql+psycopg://", poolclass=NullPool, creator=lambda: raw)
        with explained("the connection"), engine.connect() as connection:
            connection.rollback()
            yield connection


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Raises what the server and alembic say as errors of pgqueue."""
    try:
        yield
    except (psycopg.Error, sqlalchemy.exc.SQLAlchemyError, CommandError) as error:
        cause = cause_of(error)
        what = " ".join([what, *getattr(cause, "__notes__", [])])
        message = getattr(getattr(cause, "diag", None), "message_primary", None) or str(cause).strip()
        match getattr(cause, "sqlstate", None):
            case "55P03" | "40P01":
                raise LockedError("a lock was not free") from error
            case "42501":
                raise NotPermitted(
                    f"{what}: {message}; it takes a role that owns the schemas, or may create them "
                    "(grant create on database … to …)"
                ) from error
        if translated := drivers.translate(cause):
            raise translated from error
        raise SchemaError(f"{what} failed, nothing was changed: {message}") from error


def cause_of(error: BaseException) -> BaseException:
    """The error that came first: SQLAlchemy wraps it, and a rollback on a lost connection hides it."""
    inner = getattr(error, "orig", None) or error.__context__
    return cause_of(inner) if isinstance(inner, psycopg.Error | sqlalchemy.exc.SQLAlchemyError) else error


def raw_of(connection: sqlalchemy.Connection) -> psycopg.Connection[tuple[Any, ...]]:
    """The psycopg connection under it."""
    return cast("psycopg.Connection[tuple[Any, ...]]", connection.connection.driver_connection)
