"""Runs the jobs that wait, in the caller's transaction."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from pgqueue import calls
from pgqueue.app import App
from pgqueue.drivers import AsyncTarget, SyncTarget, is_async
from pgqueue.error_text import safe_repr
from pgqueue.errors import ConfigurationError, PgqueueError
from pgqueue.job import Outcome, WaitingJob
from pgqueue.testing.lent import at_hand
from pgqueue.testing.loops import in_this_loop, in_this_thread
from pgqueue.testing.rehearsal import Ran, Rehearsal
from pgqueue.testing.travel import Span, span
from pgqueue.worker.executors.threads import Threads

MAX_JOBS = 10_000


class EndlessDrain(PgqueueError):
    """A `drain` came to its limit and there were jobs left: jobs that enqueue each other, or a snooze for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What `drain` has done: attempts by how they ended, and each of them in the order in which they ran.

    `failed` ones have another attempt to come, `dead` ones have not; `crashed` ones were killed by `crash_after`.
    """

    completed: int = 0
    failed: int = 0
    dead: int = 0
    snoozed: int = 0
    cancelled: int = 0
    crashed: int = 0
    attempts: tuple[Ran, ...] = ()

    @classmethod
    def of(cls, attempts: Sequence[Ran]) -> Drained:
        """The counts of some attempts."""
        counts: dict[str, int] = {}
        for ran in attempts:
            counts[ran.ended] = counts.get(ran.ended, 0) + 1
        return cls(attempts=tuple(attempts), **counts)


@overload
def drain(
    app: App,
    connection: SyncTarget,
    /,
    *,
    queue: str | Sequence[str] | None = None,
    scheduled: bool | Span = False,
    raise_errors: bool = True,
    limit: int = 1000,
) -> Drained: ...
@overload
def drain(
    app: App,
    connection: AsyncTarget,
    /,
    *,
    queue: str | Sequence[str] | None = None,
    scheduled: bool | Span = False,
    raise_errors: bool = True,
    limit: int = 1000,
) -> Awaitable[Drained]: ...
def drain(
    app: App,
    connection: Any,
    /,
    *,
    queue: str | Sequence[str] | None = None,
    scheduled: bool | Span = False,
    raise_errors: bool = True,
    limit: int = 1000,
) -> Any:
    """Runs all that is ready, and what these jobs enqueue, as a worker would; says how it went.

        place_order(session, …)
        assert drain(app, session).completed == 3

    Everything happens on `connection`: claims, endings, and the transactional handlers, each in a savepoint. Nothing
    is committed that the caller does not commit, so a test that rolls back leaves nothing; what other handlers do on
    connections of their own is theirs. The app's own connection is this one meanwhile (see `lend`). A connection in
    autocommit commits each step, as a worker does. With an async connection, await it.

    - `queue`: one, or several; by default whatever has jobs.
    - `scheduled`: also what is due later, in the order of its time, retries among it: time passes (see `travel`) until
      nothing is left, or for as long as given ("1h").
    - `raise_errors`: raises what a handler raises, once that is recorded, and leaves the rest for the next `drain`.
      With False the errors are in `attempts`. `Retry`, `Snooze`, `Cancel` and `Fail` are outcomes and never raised.
    - `limit`: more attempts than that raise `EndlessDrain`.

    Async handlers run in the caller's event loop, or in one of their own under a sync connection; sync ones in the
    caller's thread, or beside an async caller's loop. Time-outs hold for async handlers. Tasks for processes run here
    too. Raises `UnknownTask` for a job whose task the app does not have.
    """
    queues = (queue,) if isinstance(queue, str) else None if queue is None else tuple(queue)
    if scheduled is True:
        span_left = math.inf
    else:
        span_left = span(scheduled, name="scheduled") if scheduled is not False else -1.0

    connection = _checked(app, connection)

    async def work(threads: Threads) -> Drained:
        async with Rehearsal(app, connection, threads) as rehearsal:
            return await _drain(rehearsal, queues, span_left, raise_errors, limit)

    return in_this_loop(work) if is_async(connection) else in_this_thread(work)


@overload
def run_one(
    app: App,
    connection: SyncTarget,
    /,
    *,
    queue: str | Sequence[str] | None = None,
    raise_errors: bool = True,
) -> Ran | None: ...
@overload
def run_one(
    app: App,
    connection: AsyncTarget,
    /,
    *,
    queue: str | Sequence[str] | None = None,
    raise_errors: bool = True,
) -> Awaitable[Ran | None]: ...
def run_one(
    app: App, connection: Any, /, *, queue: str | Sequence[str] | None = None, raise_errors: bool = True
) -> Any:
    """Runs the next job that is ready, as `drain` would, and says how its attempt ended; None when none is ready."""
    queues = (queue,) if isinstance(queue, str) else None if queue is None else tuple(queue)

    connection = _checked(app, connection)

    async def work(threads: Threads) -> Ran | None:
        async with Rehearsal(app, connection, threads) as rehearsal:
            await rehearsal.run(calls.promote(MAX_JOBS))
            jobs = await rehearsal.next_jobs(queues or await _queues(rehearsal))
            if not jobs:
                return None
            ran = (await rehearsal.attempt(jobs[:1]))[0]
            if raise_errors:
                _raise_error_of([ran])
            return ran

    return in_this_loop(work) if is_async(connection) else in_this_thread(work)


def _checked(app: Any, connection: Any) -> Any:
    """The connection, if the first argument is the app: of these functions two take it, and the others do not."""
    if not isinstance(app, App):
        raise ConfigurationError(
            f"expected the pgqueue.App first and the connection second, got {safe_repr(app)}"
        )
    return at_hand(connection)


async def _drain(
    rehearsal: Rehearsal, queues: Sequence[str] | None, span_left: float, raise_errors: bool, limit: int
) -> Drained:
    attempts: list[Ran] = []
    serving = queues or ()
    while True:
        await rehearsal.run(calls.promote(MAX_JOBS))
        jobs = await rehearsal.next_jobs(serving)
        if not jobs and queues is None:
            serving = await _queues(rehearsal)
            jobs = await rehearsal.next_jobs(serving)
        if jobs:
            if len(attempts) + len(jobs) > limit:
                raise EndlessDrain(
                    f"{limit:,} attempts, and there are jobs left, of {jobs[0].task} for one: they enqueue each other "
                    "or are put off for ever; if they are just many, drain(…, limit=…)"
                )
            ran = await rehearsal.attempt(jobs)
            attempts += ran
            if raise_errors:
                _raise_error_of(ran)
            continue
        later = await _next_scheduled(rehearsal, queues)
        if later is None or later.due_in > span_left:
            return Drained.of(attempts)
        passes = max(0.0, later.due_in)
        span_left -= passes
        await rehearsal.run(calls.travel(passes))


async def _queues(rehearsal: Rehearsal) -> Sequence[str]:
    """The queues that have jobs which are ready."""
    waiting = await rehearsal.run(calls.find_waiting(max_rows=MAX_JOBS))
    return list(dict.fromkeys(job.queue for job in waiting if job.state == "ready"))


async def _next_scheduled(rehearsal: Rehearsal, queues: Sequence[str] | None) -> WaitingJob | None:
    waiting = await rehearsal.run(calls.find_waiting(max_rows=MAX_JOBS))
    later = [job for job in waiting if job.state == "scheduled" and (queues is None or job.queue in queues)]
    return min(later, key=lambda job: job.run_at, default=None)


def _raise_error_of(attempts: Sequence[Ran]) -> None:
    for ran in attempts:
        if ran.error is not None and not isinstance(ran.error, Outcome):
            ran.error.add_note(
                f"pgqueue: job {ran.id} of task {ran.task}, attempt {ran.attempt}: {ran.ended}"
            )
            raise ran.error
