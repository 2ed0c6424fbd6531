"""One statement at a time on an open connection, straight over libpq.

A worker's calls are all alike: a prepared statement, parameters that are text or null, binary rows. A cursor
does much more for each of them, and on a worker that was just woken up, with every cache cold, that is 0.2 ms
of the 1 ms from commit to handler. What is used here is `psycopg.pq`, psycopg's wrapper of libpq.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result

from pgqueue.calls import Call, Verb
from pgqueue.drivers import translate
from pgqueue.drivers.values import check

T = TypeVar("T")

_GOOD = frozenset({pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK})


class Wire:
    """Runs calls on `connection`, which is in autocommit and speaks UTF-8. Not for two calls at once.

    `prepares`: whether the session is its own, so that a statement which it has prepared stays.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any], *, prepares: bool):
        self._pgconn = connection.pgconn
        self._rows = Transformer(connection)
        self._prepares = prepares
        self._prepared: dict[Verb, bytes] = {}

    async def run(self, call: Call[T]) -> T:
        """The value of `call`. Raises what `pgqueue.drivers.run` raises."""
        check(call)
        values = [None if value is None else value.encode() for value in call.values]
        try:
            if self._prepares:
                name = self._prepared.get(call.verb) or await self._prepare(call.verb)
                self._pgconn.send_query_prepared(name, values, result_format=pq.Format.BINARY)
            else:
                sql = call.verb.sql("numeric").encode()
                self._pgconn.send_query_params(sql, values, result_format=pq.Format.BINARY)
            result = await self._answer()
        except psycopg.Error as error:
            if mapped := translate(error):
                raise mapped from error
            raise
        self._rows.set_pgresult(result)
        return call.decode(self._rows.load_rows(0, result.ntuples, tuple))

    async def _prepare(self, verb: Verb) -> bytes:
        name = f"pgqueue_{verb.function}".encode()
        self._pgconn.send_prepare(name, verb.sql("numeric").encode())
        await self._answer()
        self._prepared[verb] = name
        return name

    async def _answer(self) -> pq.abc.PGresult:
        """What the server says to the one statement that was sent."""
        loop, pgconn = asyncio.get_running_loop(), self._pgconn
        socket = pgconn.socket
        results: list[pq.abc.PGresult] = []
        answered: asyncio.Future[None] = loop.create_future()

        def watch() -> None:
            is_sent = pgconn.flush() == 0  # else it was more than the socket takes at once
            loop.add_reader(socket, step)
            if not is_sent:
                loop.add_writer(socket, step)

        def unwatch() -> None:
            loop.remove_reader(socket)
            loop.remove_writer(socket)

        def step() -> None:
            # First, for two reasons: libpq closes the socket of a connection that it finds lost, and its number may be
            # another's before the waiter wakes up; and after an error on the socket uvloop forgets its reader.
            unwatch()
            if answered.done():  # whoever waited was cancelled a moment ago, and has not run since
                return
            try:
                pgconn.consume_input()
                while not pgconn.is_busy():
                    if (result := pgconn.get_result()) is None:
                        answered.set_result(None)
                        return
                    results.append(result)
                watch()
            except psycopg.Error as error:
                answered.set_exception(error)

        watch()
        try:
            await answered
        except asyncio.CancelledError:
            unwatch()
            raise
        for result in results:
            if result.status not in _GOOD:
                raise error_from_result(result, encoding="utf-8")
        return results[-1]
