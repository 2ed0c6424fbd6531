"""The keeper of an in-process worker: a thread that registers it, beats for it, and does rounds of upkeep."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from pgqueue.errors import SchemaError
from pgqueue.hooks import Alert
from pgqueue.settings import Settings
from pgqueue.worker.board import Board
from pgqueue.worker.link import Backoff
from pgqueue.worker.orders import QueueTerms
from pgqueue.worker.upkeep import Upkeep, check_database

T = TypeVar("T")

log = structlog.get_logger("pgqueue.worker")

RETIRE_SECONDS = 5.0
"""On the way out, a database that is away is waited for so long; after that the lease sees to the rest."""
CAUSE = "could not go on"
"""Of the failed attempts of jobs that ran when an in-process worker failed: "the worker process …"."""


class Keeper:
    """One thread with a loop and connections of its own; its methods are called from the application's loop.

    The beat goes on while the application's loop is blocked, as long as `is_needed()`. `lost` and `look` are called
    in the thread: see `Wards`.
    """

    def __init__(
        self,
        dsn: str,
        settings: Settings,
        *,
        is_needed: Callable[[], bool],
        lost: Callable[[int], None],
        look: Callable[[], None],
        rewound: Callable[[], None],
        rescued: Callable[[Sequence[int]], None],
        apply: Callable[[Mapping[str, QueueTerms]], None],
        stop_asked: Callable[[int], None],
        refused: Callable[[SchemaError], None],
        hears_alerts: Callable[[], bool],
        alerted: Callable[[Sequence[Alert]], bool],
    ):
        self._dsn = dsn
        self._settings = settings
        self._is_needed = is_needed
        self._tell_lost = lost
        self.look = look
        self.rewound = rewound
        self.rescued = rescued
        self.apply = apply
        self.stop_asked = stop_asked
        self.refused = refused
        self.hears_alerts = hears_alerts
        self.alerted = alerted
        self.listens = False
        self._upkeep: Upkeep | None = None
        self._worker_id: int | None = None
        self._board: Board | None = None
        self._services: list[asyncio.Task[None]] = []
        self._loop = asyncio.SelectorEventLoop()  # what psycopg needs on Windows too
        self._thread = threading.Thread(target=self._run, name="pgqueue-keeper", daemon=True)
        self._thread.start()

    # From the application's loop

    async def begin(self) -> None:
        """Begins with upkeep. Raises what `check_database` raises."""
        await self._do(self._begin())

    async def register(self) -> int:
        """The id of the worker, from now on the one that is looked after. Waits for a database that is away."""
        return await self._do(self._register())

    def look_after(self, board: Board) -> None:
        """The worker has begun; its jobs stand on `board`."""
        self._board = board

    @property
    def queue_terms(self) -> dict[str, QueueTerms]:
        """What operators have set for the queues, as it was last read."""
        assert self._upkeep is not None
        return self._upkeep.queue_terms

    async def retire(self, started: Sequence[int] = ()) -> None:
        """Takes the worker's row away and what it held back; `started`: the jobs that crashed with it."""
        await self._do(self._retire(started))

    async def close(self) -> None:
        """Retires the worker, if it is registered still, and ends the thread."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETIRE_SECONDS):
                    await self.retire()
        finally:
            ending = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
            ending.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
            self._thread.join(RETIRE_SECONDS)

    # What upkeep asks, in the thread

    def alive(self) -> list[int]:
        """The worker, unless the application's loop is gone."""
        return [] if self._worker_id is None or not self._is_needed() else [self._worker_id]

    def holding(self) -> list[int]:
        """The worker, when it holds jobs."""
        return self.alive() if self._board is not None and self._board.in_hand else []

    def lost(self, worker_id: int) -> None:
        """The database knows the worker no more."""
        if worker_id == self._worker_id:
            self._worker_id = None
            self._tell_lost(worker_id)

    # In the thread

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _begin(self) -> None:
        settings = self._settings
        self.listens = await check_database(self._dsn, settings)
        upkeep = self._upkeep = Upkeep(
            dsn=self._dsn, settings=settings, queues=[*settings.limits], listens=self.listens, wards=self
        )
        self._services = [asyncio.create_task(_go_on(service)) for service in upkeep.services()]

    async def _register(self) -> int:
        assert self._upkeep is not None
        self._board = None
        worker_id = self._worker_id = await self._upkeep.register(os.getpid())
        return worker_id

    async def _retire(self, started: Sequence[int]) -> None:
        worker_id, self._worker_id = self._worker_id, None
        if worker_id is not None and self._upkeep is not None:
            rescued = await self._upkeep.rescue(worker_id, started, cause=CAUSE)
            if rescued:
                log.warning("jobs.rescued", worker=worker_id, jobs=rescued, started=len(started))

    async def _end(self) -> None:
        for service in self._services:
            service.cancel()
        await asyncio.gather(*self._services, return_exceptions=True)
        self._services.clear()  # a cancelled task keeps its frames, and with them a connection that was being opened
        if self._upkeep is not None:
            await self._upkeep.close()


async def _go_on(service: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a service that should never end, and runs it again when it did: nobody else would beat."""
    backoff = Backoff(cap=5.0)
    while True:
        try:
            await service()  # it handles outages itself: what it raises is an error of ours
        except Exception as error:
            log.error("worker.upkeep_failed", exc_info=error, remedy="please report it; it starts anew")
        await asyncio.sleep(backoff.wait())
