"""psycopg 3: connections and cursors, sync and async.

The call runs on a cursor of its own, so that rows are tuples whatever row factory the user chose, and so
that results which the user has not fetched yet stay where they are. It is not the connection's
`cursor_factory`: a ClientCursor has no binary results, a RawCursor has other placeholders. Statements are
prepared by psycopg's own rule (`prepare_threshold` of the connection), and a pipeline is kept.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.pq import ConnStatus, Format, TransactionStatus
from psycopg.rows import tuple_row

from pgqueue.calls import Call
from pgqueue.drivers.sqlstate import ABORTED, translate
from pgqueue.drivers.targets import Runner, unusable
from pgqueue.drivers.values import check
from pgqueue.errors import DatabaseUnavailable, UnusableConnection

T = TypeVar("T")

_BINARY = Format.BINARY
_OK = ConnStatus.OK
_IN_ERROR = TransactionStatus.INERROR


def runner_for(target: Any) -> Runner | None:
    """The function that runs calls on the type of `target`, or None when psycopg does not know it."""
    if isinstance(target, psycopg.Connection):
        return run_connection
    if isinstance(target, psycopg.AsyncConnection):
        return run_async_connection
    if isinstance(target, psycopg.Cursor):
        return _run_cursor
    if isinstance(target, psycopg.AsyncCursor):
        return _run_async_cursor
    if isinstance(target, psycopg.Transaction | psycopg.AsyncTransaction):
        raise unusable(target, "pass the connection, its transaction is used")
    if type(target).__module__.startswith("psycopg_pool"):
        raise unusable(target, "take a connection with `with pool.connection() as connection:` and pass it")
    return None


def run_connection(connection: psycopg.Connection[Any], call: Call[T]) -> T:
    """Runs `call` in the connection's transaction, or on its own when the connection is in autocommit."""
    check(call)
    _ready(connection)
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    cursor.format = _BINARY
    try:
        return call.decode(cursor.execute(call.verb.sql("format"), call.values).fetchall())
    except (psycopg.Error, UnicodeEncodeError) as error:
        if mapped := translate(error):
            raise mapped from error
        raise


async def run_async_connection(connection: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
    """`run_connection`, awaited."""
    check(call)
    _ready(connection)
    cursor = psycopg.AsyncCursor(connection, row_factory=tuple_row)
    cursor.format = _BINARY
    try:
        await cursor.execute(call.verb.sql("format"), call.values)
        return call.decode(await cursor.fetchall())
    except (psycopg.Error, UnicodeEncodeError) as error:
        if mapped := translate(error):
            raise mapped from error
        raise


def _run_cursor(cursor: psycopg.Cursor[Any], call: Call[T]) -> T:
    if cursor.closed:
        raise UnusableConnection("the cursor is closed")
    return run_connection(cursor.connection, call)


async def _run_async_cursor(cursor: psycopg.AsyncCursor[Any], call: Call[T]) -> T:
    if cursor.closed:
        raise UnusableConnection("the cursor is closed")
    return await run_async_connection(cursor.connection, call)


def _ready(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Raises before anything is sent when the connection cannot carry a statement."""
    pgconn = connection.pgconn
    if pgconn.status != _OK:
        if connection.broken:
            raise DatabaseUnavailable("the connection to the server was lost: open a new one")
        raise UnusableConnection("the connection is closed")
    if pgconn.transaction_status == _IN_ERROR:
        raise UnusableConnection(ABORTED)
