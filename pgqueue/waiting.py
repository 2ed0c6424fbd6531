"""Waiting for the end of a job: what is asked, when, and when to listen; and who does that, in a thread or in a loop.

How no notification is lost: `sql/2_functions/producer/wait_for.sql`; no event: `events.sql` beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Generator
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from pgqueue import calls
from pgqueue.calls import Call
from pgqueue.drivers import run
from pgqueue.error_text import safe_repr
from pgqueue.errors import InvalidOption, NotFinished, UnknownJob
from pgqueue.info import Event, JobInfo, read_place
from pgqueue.pools import OwnConnections

RENEW_SECONDS = 10.0
"""A waiter is registered for 35 s, and registers again so often."""
LOOK_SECONDS = 2.0
"""Who listens looks so often all the same: an ending may not have seen it."""
POLL_SECONDS = 0.5
"""Who hears nothing, behind a transaction pooler, looks so often."""


class Listen(NamedTuple):
    """Listen for the end of the job, for so long at most; and no longer than POLL_SECONDS before anything was heard."""

    seconds: float


def new_channel() -> str:
    """A channel that nobody else listens on."""
    return f"pgqueue_wait_{secrets.token_hex(8)}"


def steps(id: int, channel: str, deadline: float) -> Generator[Call[Any] | Listen, Any, JobInfo]:
    """The steps of waiting for a job: calls, whose values are sent back, and `Listen`.

    Listen on `channel` before the first one. `deadline` is of `time.monotonic()`. Returns what has become of
    the job; raises `UnknownJob` and `NotFinished`.
    """
    yield calls.wait_for([id], channel)
    renew_at = time.monotonic() + RENEW_SECONDS
    # These may have looked for waiters before we were one: the last look comes after their end.
    under_way = yield calls.endings_under_way()
    pause = 0.01
    while not (info := found(id, (yield calls.look([id])))).has_ended:
        now = time.monotonic()
        if now >= deadline:
            raise NotFinished(f"job {id} of task {info.task} has not ended in time: it is {info.state}", info)
        yield Listen(min(deadline - now, pause if under_way else LOOK_SECONDS))
        if under_way:
            under_way = yield calls.endings_under_way(under_way)
            pause = min(0.25, 2 * pause)
        if now >= renew_at:
            yield calls.wait_for([id], channel)
            renew_at = now + RENEW_SECONDS
    return info


def found(id: int, infos: list[JobInfo]) -> JobInfo:
    """The one of a look. Raises `UnknownJob`."""
    if not infos:
        raise UnknownJob(f"there is no job {id}: it was not committed, or its history is kept no longer")
    return infos[0]


# In a thread ------------------------------------------------------------------------------------------


def wait(own: OwnConnections, id: int, deadline: float, *, listens: bool) -> JobInfo:
    """Waits in this thread, on a connection of its own."""
    channel, heard = new_channel(), False
    waiting = steps(id, channel, deadline)
    with own.apart() as connection:
        if listens:
            connection.execute(_listen(channel))
        answer: Any = None
        while True:
            try:
                step = waiting.send(answer)
            except StopIteration as ended:
                info: JobInfo = ended.value
                return info
            if isinstance(step, Call):
                answer = run(connection, step)
            elif listens:
                heard = _hear(connection, str(id), step.seconds, heard)
            else:
                time.sleep(min(step.seconds, POLL_SECONDS))


def _hear(connection: psycopg.Connection[Any], payload: str, seconds: float, heard: bool) -> bool:
    """Listens until `payload` comes; returns whether anything was ever heard on this connection."""
    started = time.monotonic()
    while (left := started + (seconds if heard else min(seconds, POLL_SECONDS)) - time.monotonic()) > 0:
        for notification in connection.notifies(timeout=left, stop_after=1):
            heard = True
            if notification.payload == payload:
                return True
    return heard


def _listen(channel: str) -> sql.Composed:
    return sql.SQL("listen {}").format(sql.Identifier(channel))


# In a loop --------------------------------------------------------------------------------------------


async def wait_async(own: OwnConnections, ears: Ears, id: int, deadline: float, *, listens: bool) -> JobInfo:
    """Waits in this event loop; all who wait in it listen on one connection."""
    waiting = steps(id, ears.channel, deadline)
    ended = asyncio.Event()
    async with ears.open_for(id, ended) if listens else contextlib.nullcontext():
        answer: Any = None
        while True:
            try:
                step = waiting.send(answer)
            except StopIteration as last:
                info: JobInfo = last.value
                return info
            if isinstance(step, Call):
                async with own.async_connection() as connection:
                    answer = await run(connection, step)
                continue
            if listens:
                await ears.listen()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step.seconds if ears.heard else min(step.seconds, POLL_SECONDS)):
                    await ended.wait()
            ended.clear()


class Ears:
    """Listens for those who wait in one event loop, on one connection, while there is anybody."""

    def __init__(self, own: OwnConnections):
        self.channel = new_channel()
        self.heard = False
        """Whether anything was ever heard on this connection."""
        self._own = own
        self._waiting: defaultdict[str, list[asyncio.Event]] = defaultdict(list)
        self._ready: asyncio.Future[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def open_for(self, id: int, ended: asyncio.Event) -> AsyncIterator[None]:
        """Sets `ended` in the block whenever the job may have ended. Raises `DatabaseUnavailable`."""
        self._waiting[str(id)].append(ended)
        try:
            await self.listen()
            yield
        finally:
            self._waiting[str(id)].remove(ended)
            if not self._waiting[str(id)]:
                del self._waiting[str(id)]
            if not self._waiting and self._listening is not None:
                listening, self._listening = self._listening, None
                listening.cancel()
                await asyncio.wait([listening])

    async def listen(self) -> None:
        """Listens, if it does not already; also after the connection was lost. Raises `DatabaseUnavailable`."""
        if self._listening is None or self._listening.done():
            self.heard = False
            self._ready = asyncio.get_running_loop().create_future()
            self._listening = asyncio.create_task(self._hear(self._ready), name="pgqueue ears")
        assert self._ready is not None
        await asyncio.shield(self._ready)

    async def _hear(self, ready: asyncio.Future[None]) -> None:
        try:
            async with self._own.async_apart() as connection:
                await connection.execute(_listen(self.channel))
                ready.set_result(None)
                async for notification in connection.notifies():
                    self.heard = True
                    for ended in self._waiting.get(notification.payload, ()):
                        ended.set()
        except Exception as error:  # noqa: BLE001 - it is for those who wait; what lost the connection they find themselves
            if not ready.done():
                ready.set_exception(error)
                ready.exception()  # if all have gone meanwhile, nobody else asks for it
            for all_of_one in self._waiting.values():
                for ended in all_of_one:
                    ended.set()


# Events -----------------------------------------------------------------------------------------------

ANY_JOB = 0
"""The id by which a waiter asks to be told of whatever ends."""
GATHER_SECONDS = 0.1
"""Between two looks at least: what ends in between is read together."""
PAGE = 500


async def events(
    own: OwnConnections,
    ears_of_loop: Callable[[], Ears],
    *,
    queue: str | None,
    task: str | None,
    place: tuple[datetime, int, int] | None,
    listens: Callable[[], bool],
) -> AsyncIterator[Event]:
    """Every event behind `place`, or from now on, in order; endless."""
    ears, listening, told = ears_of_loop(), listens(), asyncio.Event()
    renew_at = 0.0
    async with ears.open_for(ANY_JOB, told) if listening else contextlib.nullcontext():
        while True:
            if listening and time.monotonic() >= renew_at:
                await ears.listen()
                async with own.async_connection() as connection:
                    await run(connection, calls.wait_for([ANY_JOB], ears.channel))
                renew_at = time.monotonic() + RENEW_SECONDS
            told.clear()
            horizon = await _horizon(own)
            if place is None:
                place = horizon, 2**62, 0
            while True:
                async with own.async_connection() as connection:
                    read = calls.read_events(place, horizon, queue=queue, task=task, max_rows=PAGE)
                    page = await run(connection, read)
                for event in page:
                    yield event
                if len(page) < PAGE:
                    break
                place = page[-1].at, page[-1].job_id, page[-1].attempt
            place = horizon, 2**62, 0  # all up to there was read, whoever was asked for
            await asyncio.sleep(GATHER_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS if listening and ears.heard else POLL_SECONDS):
                    await told.wait()


async def _horizon(own: OwnConnections) -> datetime:
    """A time up to which every event can be read."""
    async with own.async_connection() as connection:
        horizon, under_way = await run(connection, calls.events_horizon())
    pause = 0.005
    while under_way:
        await asyncio.sleep(pause)
        pause = min(0.25, 2 * pause)
        async with own.async_connection() as connection:
            under_way = await run(connection, calls.endings_under_way(under_way))
    return horizon


def place_of(after: str) -> tuple[datetime, int, int]:
    """The place of the event with that id. Raises `InvalidOption`."""
    try:
        return read_place(after)
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidOption(f"after: expected the id of an event, got {safe_repr(after)}") from error
