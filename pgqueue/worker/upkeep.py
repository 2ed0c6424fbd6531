"""What somebody outside of the jobs' loop does for workers: registration, heartbeats, rounds of upkeep, rescue.

The supervisor does it for its children, and the thread of an in-process worker for that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import psycopg
import structlog

from pgqueue import calls
from pgqueue.drivers import run, translate
from pgqueue.error_text import safe_text
from pgqueue.errors import ConfigurationError, DatabaseUnavailable, SchemaError
from pgqueue.hooks import Alert
from pgqueue.settings import Settings
from pgqueue.version import __version__
from pgqueue.worker.alerting import Alerting
from pgqueue.worker.link import OUTAGES, Backoff, Link, connect
from pgqueue.worker.listener import UPKEEP_CHANNEL, Listener, listen_works
from pgqueue.worker.orders import QueueTerms
from pgqueue.worker.retention import Retention
from pgqueue.worker.ticker import Ticker

T = TypeVar("T")

log = structlog.get_logger("pgqueue.worker")

ROUND_SHARE = 0.55
"""Of `upkeep_interval`: from one of the leader's rounds to the next. The others look when two have been left out."""
PAUSE_SECONDS = 0.02
"""From one look to the next at least, however many jobs fall due: they are promoted together."""
STUCK_SECONDS = 1.0
"""Until the next look, when the schedules that are due could not be ticked."""
RESIGN_SECONDS = 2.0
"""On the way out, a database that is away is waited for so long; the others notice by themselves."""
FLOORS_SECONDS = 2.0
RETAIN_SECONDS = 60.0
PROTOCOL_ROUNDS = 15
"""The schema is asked each `upkeep_interval` times this whether it still serves this release: a minute by default, because an idle
worker shall be silent."""
SUMMARIZE_PAGES = 1_000
"""When so many blocks have been added to the history, its index is to cover them: what it does not is read whole."""


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

    def rewound(self) -> None:
        """The database may have come back in an earlier state: all of them should give back what it wrongly thinks they hold."""
        ...

    def apply(self, queue_terms: Mapping[str, QueueTerms]) -> None:
        """An operator has changed what concerns the workers of these queues; this is all that is set."""
        ...

    def stop_asked(self, worker_id: int) -> None:
        """An operator wants this worker to stop."""
        ...

    def refused(self, error: SchemaError) -> None:
        """The schema was replaced by one that does not serve this release: all of them have to stop, for good."""
        ...

    def rescued(self, worker_ids: Sequence[int]) -> None:
        """Jobs of these workers, which are dead, were taken back: one of ours should tell the app's hooks."""
        ...

    def hears_alerts(self) -> bool:
        """Whether one of them can tell hooks of alerts now."""
        ...

    def alerted(self, alerts: Sequence[Alert]) -> bool:
        """Checks of health have changed: one of ours should tell the app's hooks. Whether one was told to."""
        ...


class Upkeep:
    """Looks after `wards`, which serve `queues`, under one supervisor id."""

    def __init__(self, *, dsn: str, settings: Settings, queues: Sequence[str], listens: bool, wards: Wards):
        self._dsn = dsn
        self._settings = settings
        self._queues = list(queues)
        self._listens = listens
        self._wards = wards
        self._id = secrets.randbits(62) + 1
        self._beats = Link(dsn, name="pgqueue supervisor beats", pooled=not listens)
        self._rounds = Link(dsn, name="pgqueue supervisor upkeep", pooled=not listens)
        self._figures = Link(dsn, name="pgqueue supervisor figures", pooled=not listens)
        self._figures_due = asyncio.Event()
        self._due_figures: dict[str, calls.Call[Any]] = {}
        self._session: int | None = None
        self._called = asyncio.Event()
        self._round_asked = False
        self._stop_asked: set[int] = set()
        self._resumed_at: str | None = None
        self._queue_settings = "{}"
        self.queue_terms: dict[str, QueueTerms] = {}
        """What operators have set for the queues, as it was last read."""
        self._leads = False
        self._history_pages = self._summarized = 0
        """Of today's history, at the last round; and how many of them its index covers."""
        self._floors_at = self._retain_at = 0.0
        self._protocol_at = time.monotonic() + PROTOCOL_ROUNDS * settings.upkeep_interval
        self.ticker = Ticker(self._rounds)
        self._retention = Retention(self._figures)
        self._alerting = Alerting()

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
        settings, _ = await self._beats.persist(calls.queue_settings(self._queues))
        self._note_settings(settings)
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
                self._beats.outages.report(error)

    async def keep_up(self) -> None:
        """Rounds of upkeep, until cancelled; whoever leads also keeps time, proves floors and keeps the partitions.

        Between two rounds the leader does what falls due, when it falls due, or when it is told of something sooner.
        """
        backoff = Backoff()
        round_at = 0.0
        while True:
            began = time.monotonic()
            self._called.clear()
            try:
                if began >= self._protocol_at and not await self._is_served():
                    await asyncio.Event().wait()  # what a round would touch is not ours to touch any more
                await self._hold_session()
                if self._leads and began < round_at and not self._round_asked:
                    kept = await self._rounds.run(calls.keep_time(round_at - began, hears=self._listens))
                else:
                    self._round_asked = False
                    kept, round_at = await self._lead_or_follow(began)
                pause = kept.next_seconds
                if kept.schedules_due and not await self.ticker.run_once():
                    pause = max(pause, STUCK_SECONDS)
                if kept.promoted:
                    log.debug("jobs.promoted", jobs=kept.promoted)
                backoff = Backoff()
            except OUTAGES as error:
                self._rounds.outages.report(error)
                self._leads = False
                pause = backoff.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._called.wait()
            await asyncio.sleep(began + PAUSE_SECONDS - time.monotonic())

    async def keep_figures(self) -> None:
        """Counts depths and rolls up when a round has found it due, and tells of health after that, until cancelled.

        On a connection of its own, for it may take seconds, and what falls due meanwhile must not wait.
        """
        while True:
            await self._figures_due.wait()
            due, pages = self._due_figures, self._history_pages
            for name, call in due.items():
                try:
                    await self._duty(name, call, self._figures)
                except DatabaseUnavailable as error:
                    self._figures.outages.report(error)
            if "summarize_history" in due:  # not before: rounds that come meanwhile are forgotten below
                self._summarized = pages
                log.debug("history.summarized", pages=pages)
            await self._tell_of_health()
            self._figures_due.clear()  # after the work: rounds meanwhile have found due what was under way

    async def _tell_of_health(self) -> None:
        """Where hooks want to hear of it; so an idle fleet without them asks the database nothing more."""
        if not (self._leads and self._wards.hears_alerts()):
            return
        try:
            checks = await self._duty("health", calls.health(), self._figures)
        except DatabaseUnavailable as error:
            self._figures.outages.report(error)
            return
        if checks is None or not self._leads:
            return
        alerts = self._alerting.changes(checks)
        if alerts and self._wards.alerted(alerts):
            self._alerting.told(checks)

    async def listen(self) -> None:
        """Hears when something falls due before the leader's next look, the leader resigns, or an operator has changed
        something that a round reads. Until cancelled."""
        channels = (UPKEEP_CHANNEL, f"{UPKEEP_CHANNEL}_{self._id}")
        name = "pgqueue supervisor listener"
        await Listener(self._dsn, channels, heard=self._heard, begun=self._called.set, name=name).run()

    def _heard(self, payload: bytes) -> None:
        if payload:  # `queues`, `workers`: what keep_time does not read
            self._round_asked = True
        self._called.set()

    def services(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What runs until cancelled."""
        always = [self.beat, self.keep_up, self.keep_figures, self._retention.run]
        return [*always, *([self.listen] if self._listens else [])]

    async def close(self) -> None:
        """Gives leadership up and closes the connections."""
        if self._leads:
            with contextlib.suppress(*OUTAGES, TimeoutError):
                async with asyncio.timeout(RESIGN_SECONDS):
                    await self._rounds.run(calls.resign(self._id))
        await self._beats.close()
        await self._rounds.close()
        await self._figures.close()

    async def _hold_session(self) -> None:
        """Takes the session lock again after each reconnection, before a beat says that we are here."""
        if self._listens and self._session != self._beats.generation:
            held = await self._beats.run(calls.hold_session(self._id))
            self._session = self._beats.generation if held else None

    async def _is_served(self) -> bool:
        """Asks the schema for its protocols, and tells the wards when ours is none of them any more."""
        served = await self._rounds.run(calls.protocol())
        self._protocol_at = time.monotonic() + PROTOCOL_ROUNDS * self._settings.upkeep_interval
        try:
            served.check()
        except SchemaError as error:
            self._leads = False
            self._wards.refused(error)
            return False
        return True

    async def _lead_or_follow(self, began: float) -> tuple[calls.TimeKept, float]:
        """A round of upkeep, and when the next one is due."""
        done = await self._round()
        self._leads = done.led
        if not done.led:
            self._alerting.forget()
        if done.floors_due and began >= self._floors_at:
            self._floors_at = began + FLOORS_SECONDS * 0.95
            await self._duty("prove_floors", calls.prove_floors(), self._rounds)
        if done.retain_due and began >= self._retain_at:
            self._retain_at = began + RETAIN_SECONDS
            await self._duty("retain", calls.retain(), self._rounds)
            self._retention.due()
        due: dict[str, calls.Call[Any]] = {}
        if done.led:
            self._history_pages = done.history_pages
        if done.led and not 0 <= self._history_pages - self._summarized < SUMMARIZE_PAGES:
            due["summarize_history"] = calls.summarize_history()
        if done.depths_due:  # before a minute is rolled up, with what is counted after its end
            due["count_depths"] = calls.count_depths()
        if done.rollup_due:
            due["roll_up"] = calls.roll_up()
        self._due_figures = due
        if due:
            self._figures_due.set()
        kept = calls.TimeKept(done.promoted, done.schedules_due, done.next_seconds)
        return kept, began + ROUND_SHARE * self._settings.upkeep_interval

    async def _round(self) -> calls.UpkeepRound:
        settings = self._settings
        done = await self._rounds.run(
            calls.upkeep(
                supervisor_id=self._id,
                worker_ids=self._wards.alive(),
                queues=self._queues,
                round_seconds=ROUND_SHARE * settings.upkeep_interval,
                overdue_seconds=settings.upkeep_interval,
                hears=self._listens,
            )
        )
        for worker_id in done.missing:
            self._wards.lost(worker_id)
        self._note_settings(done.queue_settings)
        for worker_id in set(done.stopping) - self._stop_asked:
            self._wards.stop_asked(worker_id)
        self._stop_asked = set(done.stopping)
        if self._resumed_at not in (None, done.resumed_at):
            log.warning("database.recovered")
            self._wards.rewound()
        self._resumed_at = done.resumed_at
        if done.look:
            self._wards.look()
        if done.rescued:
            log.warning("jobs.rescued", jobs=done.rescued)
            self._wards.rescued(done.rescued_workers)
        for problem in done.problems:
            log.error("upkeep.problem", problem=problem)
        return done

    def _note_settings(self, settings: str) -> None:
        if settings != self._queue_settings:
            self._queue_settings = settings
            self.queue_terms = msgspec.json.decode(settings, type=dict[str, QueueTerms])
            self._wards.apply(self.queue_terms)

    async def _duty(self, name: str, call: calls.Call[T], link: Link) -> T | None:
        """One of the leader's calls, and its answer; None when it failed, which stops no other."""
        try:
            return await link.run(call)
        except DatabaseUnavailable:
            raise
        except OUTAGES as error:
            log.error("upkeep.problem", problem=f"{name}: {safe_text(error, 500)}")
            return None


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
