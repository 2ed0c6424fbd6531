"""asyncpg: a connection, or what a pool's `acquire()` gives.

asyncpg prepares every statement by itself and asks the server for the types of its parameters; the verbs
cast each from text, so it takes the same strings as the other libraries.
"""

from __future__ import annotations

from typing import Any

import asyncpg
from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy

from pgqueue.calls import Call
from pgqueue.drivers.sqlstate import translate
from pgqueue.drivers.targets import Runner, unusable
from pgqueue.drivers.values import check
from pgqueue.errors import DatabaseUnavailable, UnusableConnection


def runner_for(target: Any) -> Runner | None:
    """The function that runs calls on the type of `target`, or None when it is not asyncpg's."""
    if isinstance(target, asyncpg.Connection | PoolConnectionProxy):
        return _run_connection
    if isinstance(target, asyncpg.Pool | PoolAcquireContext):
        raise unusable(target, "use `async with pool.acquire() as connection:` and pass the connection")
    return None


async def _run_connection(connection: Any, call: Call[Any]) -> Any:
    check(call)
    try:
        if connection.is_closed():
            raise UnusableConnection("the connection is closed")
        rows = await connection.fetch(call.verb.sql("numeric"), *call.values)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if mapped := translate(error):
            raise mapped from error
        raise
    except OSError as error:
        raise DatabaseUnavailable(f"the connection to the server was lost: {error}") from error
    return call.decode(rows)
