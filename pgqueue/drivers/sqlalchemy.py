"""SQLAlchemy: Connection, Session, their scoped and async forms, over psycopg, asyncpg or psycopg2.

The call is a `text()` statement given to the Session's or Connection's own `execute`, so that events,
`get_bind` routing, echo and instrumentation see it. Hazards:

- A Session flushes before the enqueue what is pending, by its own `autoflush`; nothing is flushed here. With
  autoflush off the objects are written after the job, in the same transaction: both become visible
  together, so a worker cannot tell. Arguments are read before either: who needs a generated `order.id`
  calls `session.flush()` first. What such a flush raises is the application's own error and stays as it is.
- Async forms run the sync code inside `run_sync`, the greenlet in which their own `execute` runs too.
  The raw DBAPI connection is never used: there its methods return coroutines.
- In AUTOCOMMIT the enqueue is committed at once while the application believes in its transaction. Nothing
  fails, so it is said once an engine (`AutocommitWarning`).
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, Engine, TextClause, text
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import SQLAlchemyError, StatementError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pgqueue.calls import Call, Verb
from pgqueue.drivers.sqlstate import ABORTED, translate
from pgqueue.drivers.targets import AutocommitWarning, Runner, unusable
from pgqueue.drivers.values import check
from pgqueue.errors import DatabaseUnavailable, PgqueueError, UnusableConnection

T = TypeVar("T")

_warned: WeakSet[Dialect] = WeakSet()
_statements: dict[str, tuple[TextClause, tuple[str, ...]]] = {}


def runner_for(target: Any) -> Runner | None:
    """The function that runs calls on the type of `target`, or None when it is not SQLAlchemy's."""
    if isinstance(target, Connection):
        return _run_connection
    if isinstance(target, Session):
        return _run_session
    if isinstance(target, scoped_session):
        return _run_scoped_session
    if isinstance(target, Engine):
        raise unusable(target, "use `with engine.begin() as connection:` and pass the connection")
    if isinstance(target, sessionmaker):
        raise unusable(target, "call it: `with sessions.begin() as session:` and pass the session")
    return _async_runner_for(target)


def _async_runner_for(target: Any) -> Runner | None:
    if "sqlalchemy.ext.asyncio" not in sys.modules:  # then no target is one of these
        return None
    from sqlalchemy.ext import asyncio

    if isinstance(target, asyncio.AsyncConnection):
        return _run_async_connection
    if isinstance(target, asyncio.AsyncSession):
        return _run_async_session
    if isinstance(target, asyncio.async_scoped_session):
        return _run_async_scoped_session
    if isinstance(target, asyncio.AsyncEngine):
        raise unusable(target, "use `async with engine.begin() as connection:` and pass the connection")
    if isinstance(target, asyncio.async_sessionmaker):
        raise unusable(target, "call it: `async with sessions.begin() as session:` and pass the session")
    return None


def _run_connection(connection: Connection, call: Call[T]) -> T:
    check(call)
    if connection.closed:
        raise UnusableConnection("the connection is closed")
    statement, names = _statement(call.verb)
    try:
        _look(connection)
        rows = connection.execute(statement, dict(zip(names, call.values, strict=True))).all()
    except (SQLAlchemyError, OSError, UnicodeEncodeError) as error:
        if mapped := _translate(error):
            raise mapped from error
        raise
    return call.decode(rows)


def _run_session(session: Session, call: Call[T]) -> T:
    check(call)
    if not session.is_active:
        raise UnusableConnection(ABORTED)
    statement, names = _statement(call.verb)
    try:
        # the connection that execute() will use, by the same get_bind()
        _look(session.connection(bind_arguments={"clause": statement}))
        rows = session.execute(statement, dict(zip(names, call.values, strict=True))).all()
    except (SQLAlchemyError, OSError, UnicodeEncodeError) as error:
        if mapped := _translate(error):
            raise mapped from error
        raise
    return call.decode(rows)


def _run_scoped_session(session: scoped_session[Any], call: Call[T]) -> T:
    return _run_session(session.registry(), call)


async def _run_async_connection(connection: Any, call: Call[Any]) -> Any:
    check(call)
    try:
        if connection.closed:  # said here: run_sync would only say that it "is not started"
            raise UnusableConnection("the connection is closed")
    except SQLAlchemyError as error:
        if mapped := translate(error):
            raise mapped from error
        raise
    return await connection.run_sync(_run_connection, call)


async def _run_async_session(session: Any, call: Call[Any]) -> Any:
    return await session.run_sync(_run_session, call)


async def _run_async_scoped_session(session: Any, call: Call[Any]) -> Any:
    return await session.registry().run_sync(_run_session, call)


def _statement(verb: Verb) -> tuple[TextClause, tuple[str, ...]]:
    """The verb's `text()` and the names of its placeholders; made once, so that SQLAlchemy's cache hits."""
    sql = verb.sql("named")
    made = _statements.get(sql)
    if made is None:
        made = _statements[sql] = text(sql), tuple(f"p{i}" for i in range(len(verb.parameters)))
    return made


def _look(connection: Connection) -> None:
    """Refuses another database's connection and warns of AUTOCOMMIT; nothing is sent for either."""
    dialect = connection.dialect
    if dialect.name != "postgresql":
        raise UnusableConnection(
            f"cannot enqueue on a SQLAlchemy connection to {dialect.name}: pgqueue lives in PostgreSQL"
        )
    driver = connection.connection.dbapi_connection
    if driver is not None and dialect.detect_autocommit_setting(driver) and dialect not in _warned:
        warnings.warn(
            "this SQLAlchemy engine is in AUTOCOMMIT: an enqueue is committed at once and a rollback does "
            "not undo it. Pass a connection or session of a transactional engine, for example of "
            "engine.execution_options(isolation_level='READ COMMITTED')",
            AutocommitWarning,
            stacklevel=_depth(),
        )
        _warned.add(dialect)  # the dialect is what an engine and its execution_options() copies share


def _depth() -> int:
    """The `stacklevel` of the application's line that called, as seen from the caller of this."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("pgqueue."):
        frame, depth = frame.f_back, depth + 1
    return depth


def _translate(error: Exception) -> PgqueueError | None:
    if isinstance(error, OSError):  # asyncpg below SQLAlchemy, when a lazy connect finds no server
        return DatabaseUnavailable(f"cannot connect: {error}")
    if isinstance(error, StatementError) and error.statement and "pgqueue." not in error.statement:
        return None  # of an autoflush
    return translate(error)
