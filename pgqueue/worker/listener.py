"""Hears wake-ups: LISTEN on a connection of its own, and the test of whether LISTEN works at all."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import psycopg
import structlog
from psycopg import sql

from pgqueue.drivers import translate
from pgqueue.errors import DatabaseUnavailable
from pgqueue.worker.link import Backoff, connect

log = structlog.get_logger("pgqueue.worker")

COMMON_CHANNEL = "pgqueue"


class Listener:
    """One service: pokes the claimer for each notification, and after each reconnection.

    A notification is a hint: there may be jobs, or with the payload `cancel`, there may be some to cancel.
    """

    def __init__(
        self, *, dsn: str, worker_id: int, poke: Callable[..., None], look_for_cancels: Callable[[], None]
    ):
        self._dsn = dsn
        self._channels = (COMMON_CHANNEL, f"pgqueue_{worker_id}")
        self._poke = poke
        self._look_for_cancels = look_for_cancels

    async def run(self) -> None:
        """Listens until cancelled."""
        backoff = Backoff()
        while True:
            try:
                await self._listen()
            except (psycopg.Error, DatabaseUnavailable) as error:
                if isinstance(error, psycopg.Error) and translate(error) is None:
                    raise
                log.warning("database.unavailable", link="listener", error=str(error))
            else:
                backoff = Backoff()
            await asyncio.sleep(backoff.wait())

    async def _listen(self) -> None:
        connection = await connect(self._dsn, name="pgqueue listener", pooled=False)
        try:
            for channel in self._channels:
                await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            # What was said before this moment was said to nobody: register anew, and look.
            self._poke(forget_sleep=True)
            self._look_for_cancels()
            await self._hear(connection)
        finally:
            await connection.close()

    async def _hear(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Pokes for each notification until the connection is lost.

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
                if notification.extra == b"cancel":
                    self._look_for_cancels()
                else:
                    self._poke()
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
