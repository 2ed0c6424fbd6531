"""What `App` offers to those who look at jobs from outside: what has become of one, its end, its result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.errors import JobCancelled, JobFailed, ResultNotKept, UnknownKey
from pgqueue.info import Event, JobInfo
from pgqueue.job import Job, JobState, seconds
from pgqueue.pools import OwnConnections
from pgqueue.retry import Duration

if TYPE_CHECKING:
    from pgqueue.encryption import Keyring
    from pgqueue.settings import Settings
    from pgqueue.waiting import Ears


class Looking:
    """The part of `App` that looks at jobs. Every method takes a `Job` or its id."""

    _own: OwnConnections
    _all_ears: dict[asyncio.AbstractEventLoop, Ears]

    if TYPE_CHECKING:  # a plain annotation would promise that it can be assigned to; the app has it

        @property
        def settings(self) -> Settings: ...

        @property
        def keyring(self) -> Keyring | None: ...

    def job(self, job: Job | int, /) -> JobInfo | None:
        """What has become of a job: its state, attempts, progress, result; None when it is not on record.

            info = app.job(4711)
            info.state, info.attempt, info.progress.fraction, info.result

        Its args are not told. Raises `MissingDSN`, `DatabaseUnavailable`, and `CannotDecrypt` for a result that is
        encrypted with a key that is not here.
        """
        with self._own.connection() as connection:
            infos = run(connection, calls.look([_id(job)]))
        return self._opened(infos[0]) if infos else None

    async def job_async(self, job: Job | int, /) -> JobInfo | None:
        """`job` for code in an event loop."""
        async with self._own.async_connection() as connection:
            infos = await run(connection, calls.look([_id(job)]))
        return self._opened(infos[0]) if infos else None

    def wait(self, job: Job | int, /, timeout: Duration | None = None) -> JobInfo:
        """Waits until a job has ended, whatever the end, and returns what has become of it.

        `timeout`: seconds, a timedelta or text such as "30s"; None waits for ever. It is told of the end by
        the database, and holds a connection while it waits; behind a transaction pooler, which passes nothing
        on, it looks twice a second. Enqueue and commit first: waiting inside the transaction that enqueued
        would wait for itself.

        Raises `pgqueue.errors.UnknownJob`, `NotFinished` (a TimeoutError), and `DatabaseUnavailable`.
        """
        from pgqueue import waiting

        id, deadline = _id(job), _deadline(timeout)
        with self._own.connection() as connection:
            info = waiting.found(id, run(connection, calls.look([id])))
        if info.has_ended:
            return self._opened(info)
        return self._opened(waiting.wait(self._own, id, deadline, listens=self.settings.wake != "poll"))

    async def wait_async(self, job: Job | int, /, timeout: Duration | None = None) -> JobInfo:
        """`wait` for code in an event loop. All who wait in one loop share a connection."""
        from pgqueue import waiting

        id, deadline = _id(job), _deadline(timeout)
        async with self._own.async_connection() as connection:
            info = waiting.found(id, await run(connection, calls.look([id])))
        if info.has_ended:
            return self._opened(info)
        return self._opened(
            await waiting.wait_async(
                self._own, self._ears(), id, deadline, listens=self.settings.wake != "poll"
            )
        )

    def result(self, job: Job | int, /, timeout: Duration | None = None) -> Any:
        """Waits for a job and returns what its handler returned; the task has to say `keep_result=True`.

            total = app.result(count.enqueue(connection, path="a.csv"), timeout="30s")

        Raises `pgqueue.errors.JobFailed` when it is dead, `JobCancelled`, `ResultNotKept`, and what `wait`
        raises. Each has the `JobInfo` as `job`.
        """
        return _result(self.wait(job, timeout))

    async def result_async(self, job: Job | int, /, timeout: Duration | None = None) -> Any:
        """`result` for code in an event loop."""
        return _result(await self.wait_async(job, timeout))

    def events(
        self, *, queue: str | None = None, task: str | None = None, after: str | None = None
    ) -> AsyncIterator[Event]:
        """Follows the ends of attempts, in their order, from now on or from behind the event `after` (its `id`).

            async for event in app.events(queue="email", after=last_seen):
                ...
                last_seen = event.id

        None is missed: what ended while nobody listened is read from the history, as far back as that is kept. It is
        told of new ones by the database, looks every 2 s besides, and does not end by itself. Events come in the order
        of their time, so an ending in a transaction that is still open holds back those after it. Nothing is written
        for it; each look reads the last minute or so of the history.

        Raises `InvalidOption` for an `after` that is no event's id, and `DatabaseUnavailable` when the server goes
        away: begin again behind the last event that you have dealt with.
        """
        from pgqueue import waiting

        place = None if after is None else waiting.place_of(after)
        return waiting.events(
            self._own,
            self._ears,
            queue=queue,
            task=task,
            place=place,
            listens=lambda: self.settings.wake != "poll",
        )

    def _opened(self, info: JobInfo) -> JobInfo:
        """With a result that can be read. Raises `CannotDecrypt`."""
        if not info.is_sealed:
            return info
        if self.keyring is None:
            raise UnknownKey(
                f"job {info.id}: the result of task {info.task} is encrypted, and there is no key here: set "
                "PGQUEUE_ENCRYPTION_KEYS, or give App(keyring=…)"
            )
        return info.opened(self.keyring)

    def _ears(self) -> Ears:
        from pgqueue.waiting import Ears

        loop = asyncio.get_running_loop()
        for ended in [other for other in self._all_ears if other.is_closed()]:
            del self._all_ears[ended]
        if loop not in self._all_ears:
            self._all_ears[loop] = Ears(self._own)
        return self._all_ears[loop]


def _id(job: Job | int) -> int:
    return job if isinstance(job, int) else job.id


def _deadline(timeout: Duration | None) -> float:
    return float("inf") if timeout is None else time.monotonic() + seconds(timeout, name="timeout")


def _result(info: JobInfo) -> Any:
    told = f"job {info.id} of task {info.task}"
    match info.state:
        case JobState.DEAD:
            error = f": {info.error}: {info.message}" if info.error else ""
            raise JobFailed(f"{told} is dead ({info.reason}){error}", info)
        case JobState.CANCELLED:
            raise JobCancelled(f"{told} was cancelled: {info.reason}", info)
    if not info.has_result:
        why = info.reason or "declare the task @app.task(keep_result=True)"
        raise ResultNotKept(f"{told} completed, its result was not kept: {why}", info)
    return info.result
