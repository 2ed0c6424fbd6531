"""Hears wake-ups: LISTEN on a connection of its own, and the test of whether LISTEN works at all."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import sql

from pgqueue.drivers import translate
from pgqueue.errors import DatabaseUnavailable
from pgqueue.worker.link import Backoff, OutageLog, connect

COMMON_CHANNEL = "pgqueue"
"""Of all workers; each has one of its own beside it, `pgqueue_<worker_id>`."""
UPKEEP_CHANNEL = "pgqueue_upkeep"
"""Of all supervisors: the leader has resigned. Each has one of its own beside it, `pgqueue_upkeep_<supervisor_id>`."""


class Listener:
    """One service: `heard` is called with the payload of each notification, `begun` after each reconnection.

    A notification is a hint, and what was said before a reconnection was said to nobody.
    """

    def __init__(
        self,
        dsn: str,
        channels: Sequence[str],
        *,
        heard: Callable[[bytes], None],
        begun: Callable[[], None],
        name: str = "pgqueue listener",
    ):
        self._dsn = dsn
        self._channels = channels
        self._heard = heard
        self._begun = begun
        self._name = name

    async def run(self) -> None:
        """Listens until cancelled."""
        backoff, outages = Backoff(), OutageLog("listener")
        while True:
            try:
                await self._listen()
            except (psycopg.Error, DatabaseUnavailable) as error:
                outage = translate(error) if isinstance(error, psycopg.Error) else error
                if outage is None:
                    raise
                outages.report(outage)
            else:
                backoff = Backoff()
            await asyncio.sleep(backoff.wait())

    async def _listen(self) -> None:
        connection = await connect(self._dsn, name=self._name, pooled=False)
        try:
            for channel in self._channels:
                await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            self._begun()
            await self._hear(connection)
        finally:
            await connection.close()

    async def _hear(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Passes each notification on until the connection is lost.

        Straight from the loop's reader: `connection.notifies()` costs a sixth of a wake-up, and looks at its
        connection ten times a second.
        """
        loop, pgconn = asyncio.get_running_loop(), connection.pgconn
        socket = pgconn.socket
        lost: asyncio.Future[None] = loop.create_future()

        def heard() -> None:
            # First, as in `wire`: libpq closes a lost connection's socket, uvloop forgets the reader after an error.
            loop.remove_reader(socket)
            try:
                pgconn.consume_input()
            except psycopg.Error as error:
                lost.set_exception(error)
                return
            while (notification := pgconn.notifies()) is not None:
                self._heard(notification.extra)
            loop.add_reader(socket, heard)

        heard()  # what came along with the answers to LISTEN
        try:
            await lost
        except asyncio.CancelledError:
            loop.remove_reader(socket)
            raise


async def listen_works(dsn: str, *, patience: float = 1.0) -> bool:
    """Whether a LISTEN on this DSN hears a NOTIFY of another session.

    Behind a transaction pooler LISTEN is accepted and stays silent; so are session locks shared there.
    Raises `DatabaseUnavailable` when the server is away.
    """
    channel = sql.Identifier(f"pgqueue_probe_{secrets.token_hex(8)}")
    listening = await connect(dsn, name="pgqueue probe", pooled=True)
    speaking = await connect(dsn, name="pgqueue probe", pooled=True)
    try:
        await listening.execute(sql.SQL("listen {}").format(channel))
        await speaking.execute(sql.SQL("notify {}").format(channel))
        async for _ in listening.notifies(timeout=patience, stop_after=1):
            return True
        return False
    except psycopg.Error as error:
        if mapped := translate(error):
            raise mapped from error
        raise
    finally:
        await listening.close()
        await speaking.close()
