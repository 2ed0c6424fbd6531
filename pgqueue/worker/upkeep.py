"""What somebody outside of the jobs' loop does for workers: registration, heartbeats, rounds of upkeep, rescue.

The supervisor does it for its children, and the thread of an in-process worker for that one.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import psycopg
import structlog

from pgqueue import calls
from pgqueue.drivers import run, translate
from pgqueue.error_text import safe_text
from pgqueue.errors import ConfigurationError, DatabaseUnavailable
from pgqueue.settings import Settings
from pgqueue.version import __version__
from pgqueue.worker.link import OUTAGES, Backoff, Link, connect, report_outage
from pgqueue.worker.listener import listen_works

log = structlog.get_logger("pgqueue.worker")

ROUND_SECONDS = 0.05
"""Between two rounds at least, however many jobs fall due: they are promoted together."""
FLOORS_SECONDS = 2.0
RETAIN_SECONDS = 60.0


class Wards(Protocol):
    """The workers that are looked after."""

    def alive(self) -> list[int]:
        """The ids of those that can work: not stopped, not ended."""
        ...

    def holding(self) -> list[int]:
        """The ids of those among them that hold jobs."""
        ...

    def lost(self, worker_id: int) -> None:
        """The database knows this worker no more: its jobs belong to others, so it has to go at once."""
        ...

    def look(self) -> None:
        """A hint may have been lost: all of them should look for jobs."""
        ...

    def rescued(self, worker_ids: Sequence[int]) -> None:
        """Jobs of these workers, which are dead, were taken back: one of ours should tell the app's hooks."""
        ...


class Upkeep:
    """Looks after `wards`, which serve `queues`, under one supervisor id."""

    def __init__(self, *, dsn: str, settings: Settings, queues: Sequence[str], listens: bool, wards: Wards):
        self._settings = settings
        self._queues = list(queues)
        self._listens = listens
        self._wards = wards
        self._id = secrets.randbits(62) + 1
        self._beats = Link(dsn, name="pgqueue supervisor beats", pooled=not listens)
        self._rounds = Link(dsn, name="pgqueue supervisor upkeep", pooled=not listens)
        self._session: int | None = None

    async def register(self, pid: int) -> int:
        """The id of a new worker, which runs in process `pid`. Waits for a database that is away."""
        register = calls.register(
            supervisor_id=self._id,
            host=socket.gethostname(),
            pid=pid,
            version=__version__,
            queues=self._queues,
            concurrency=self._settings.concurrency,
            lease=self._settings.lease,
            session_lock=self._listens,
        )
        worker_id, _ = await self._beats.persist(register)
        return worker_id

    async def rescue(
        self,
        worker_id: int,
        started: Iterable[int],
        *,
        interrupted: Iterable[int] = (),
        cause: str | None = None,
    ) -> int:
        """Takes back what an ended worker held, and returns how many jobs.

        `started`: what it had begun and may have died of; `interrupted`: what it had begun and has not died of;
        `cause`: how it died, such as "was killed by SIGSEGV".
        """
        call = calls.rescue(worker_id, started, interrupted=interrupted, cause=cause)
        rescued, _ = await self._rounds.persist(call)
        if rescued:
            self._wards.rescued([worker_id])
        return rescued

    async def beat(self) -> None:
        """Beats for the workers that hold jobs, until cancelled; the others get their beat from the rounds."""
        while True:
            await asyncio.sleep(self._settings.beat * random.uniform(0.9, 1.0))
            try:
                if holding := self._wards.holding():
                    await self._hold_session()
                    for worker_id in await self._beats.run(calls.heartbeat(holding)):
                        self._wards.lost(worker_id)
            except OUTAGES as error:
                report_outage("beats", error)

    async def keep_up(self) -> None:
        """Rounds of upkeep, until cancelled; whoever leads also proves floors and keeps the partitions."""
        backoff = Backoff()
        floors_at = retain_at = 0.0
        while True:
            try:
                await self._hold_session()
                done = await self._round()
                now = time.monotonic()
                if done.floors_due and now >= floors_at:
                    floors_at = now + FLOORS_SECONDS * 0.95
                    await self._duty("prove_floors", calls.prove_floors())
                if done.retain_due and now >= retain_at:
                    retain_at = now + RETAIN_SECONDS
                    await self._duty("retain", calls.retain())
                backoff = Backoff()
                pause = done.next_seconds * (1.0 if done.led else random.uniform(0.95, 1.05))
            except OUTAGES as error:
                report_outage("upkeep", error)
                pause = backoff.wait()
            await asyncio.sleep(max(ROUND_SECONDS, pause))

    async def close(self) -> None:
        """Closes the connections."""
        await self._beats.close()
        await self._rounds.close()

    async def _hold_session(self) -> None:
        """Takes the session lock again after each reconnection, before a beat says that we are here."""
        if self._listens and self._session != self._beats.generation:
            held = await self._beats.run(calls.hold_session(self._id))
            self._session = self._beats.generation if held else None

    async def _round(self) -> calls.UpkeepRound:
        settings = self._settings
        done = await self._rounds.run(
            calls.upkeep(
                supervisor_id=self._id,
                worker_ids=self._wards.alive(),
                queues=self._queues,
                round_seconds=settings.upkeep_interval / 2,
                overdue_seconds=settings.upkeep_interval,
            )
        )
        for worker_id in done.missing:
            self._wards.lost(worker_id)
        if done.look:
            self._wards.look()
        if done.rescued:
            log.warning("jobs.rescued", jobs=done.rescued)
            self._wards.rescued(done.rescued_workers)
        for problem in done.problems:
            log.error("upkeep.problem", problem=problem)
        return done

    async def _duty(self, name: str, call: calls.Call[Any]) -> None:
        """One of the leader's calls; its failure stops no other."""
        try:
            await self._rounds.run(call)
        except DatabaseUnavailable:
            raise
        except OUTAGES as error:
            log.error("upkeep.problem", problem=f"{name}: {safe_text(error, 500)}")


async def check_database(dsn: str, settings: Settings) -> bool:
    """Refuses an unknown schema before data is touched; whether LISTEN works, or is told to."""
    connection = await connect(dsn, name="pgqueue supervisor", pooled=True)
    try:
        (await run(connection, calls.protocol())).check()
        row = await (await connection.execute("show transaction_isolation")).fetchone()
    except psycopg.Error as error:
        if mapped := translate(error):
            raise mapped from error
        raise
    finally:
        await connection.close()
    if settings.wake == "auto":
        listens = await listen_works(dsn)
        if not listens:
            log.warning(
                "wake.poll",
                reason="LISTEN is silent on this DSN (a transaction pooler?)",
                remedy="give workers a direct DSN, or set wake = 'poll' to say that this is wanted",
                poll_interval=settings.poll_interval,
            )
    else:
        listens = settings.wake == "listen"
    if not listens and row and row[0] != "read committed":
        raise ConfigurationError(
            f"the default isolation of this role is {row[0]}, and a pooled connection cannot change it: "
            "alter role … set default_transaction_isolation = 'read committed'"
        )
    return listens
