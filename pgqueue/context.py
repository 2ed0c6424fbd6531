"""What a running handler knows about its job: the `Context` it is given, and the current job of log lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, cast

import structlog

from pgqueue.errors import PgqueueError
from pgqueue.job import ClaimedJob
from pgqueue.observe.kept_lines import keeping

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    C = TypeVar("C", default=Any)
else:
    from typing import TypeVar

    C = TypeVar("C")

current_job: ContextVar[ClaimedJob | None] = ContextVar("pgqueue_current_job", default=None)
"""The job that the running code belongs to, None outside of one. The worker sets it."""


class Context(Generic[C]):
    """The first argument of a handler that asks for it; the worker makes it, one per attempt.

        @app.task(transactional=True)
        async def charge(ctx: pgqueue.Context[psycopg.AsyncConnection], order_id: int) -> None:
            await ctx.connection.execute("update orders set …")
            ctx.log.info("charged", order_id=order_id)

    The type argument names the connection that a transactional task works on; a plain `Context` is enough
    for all else.
    """

    __slots__ = ("_connection", "_job", "_log", "_options", "_slot", "_take_step")

    def __init__(
        self, job: ClaimedJob, connection: C | None = None, slot: Any = None, take_step: Any = None
    ) -> None:
        # Made for every attempt: nothing is computed before it is asked for.
        self._job = job
        self._connection = connection
        self._log: Any = None
        self._options: dict[str, Any] | None = None
        self._slot = slot
        self._take_step = take_step

    @property
    def id(self) -> int:
        """The job's id, the same for its whole life."""
        return self._job.id

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self._job.attempt

    @property
    def max_attempts(self) -> int:
        """Attempts in all; when this one is the last and fails, the job becomes a dead letter."""
        return self._job.max_attempts

    @property
    def queue(self) -> str:
        """The queue that the job was claimed from."""
        return self._job.queue

    @property
    def task(self) -> str:
        """The task's name."""
        return self._job.task

    @property
    def priority(self) -> int:
        """0 (first) to 9."""
        return self._job.priority

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags given at enqueue."""
        return tuple(self._stored().get("tags") or ())

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata given at enqueue, an empty mapping by default."""
        return cast(Mapping[str, Any], self._stored().get("metadata") or {})

    @property
    def headers(self) -> Mapping[str, str]:
        """What went along with the enqueue for those who trace, such as `traceparent`; see `pgqueue.otel`."""
        return self._job.headers

    @property
    def schedule(self) -> str | None:
        """The name of the schedule that enqueued the job; None: no schedule did."""
        name = self._stored().get("schedule")
        return name if isinstance(name, str) else None

    @property
    def due_at(self) -> datetime | None:
        """The due time of the schedule that the job stands for, in UTC; None for a job of no schedule.

        The same however late the job starts, and over all attempts: what a report of "the day before" counts from.
        """
        text = self._stored().get("due_at")
        try:
            return datetime.fromisoformat(text).astimezone(UTC) if isinstance(text, str) else None
        except (ValueError, OverflowError):  # written by somebody else
            return None

    @property
    def idempotency_key(self) -> str:
        """A key for services that know such a thing: the same over all attempts of the job, unlike any other's.

        It names the job, and is not the `idempotency_key` of an enqueue.
        """
        return f"pgqueue:{self._job.id}"

    def step(self, name: str, function: Callable[..., Any]) -> Any:
        """Takes a step once over all attempts of the job; what it returned, now or in an earlier attempt.

            receipt = await ctx.step("charge", lambda: gateway.charge(order_id))     # recorded after it returned
            await ctx.step("book", book)                                             # async def book(connection): …

        A function that takes a connection is called with one (psycopg's, async for an async handler) in a
        transaction, and what it writes there commits together with the record: exactly once. One that takes
        nothing is recorded when it has returned; a death in between takes it again. Inside of one that has a connection
        there can be no other step.

        Await it in an async handler; in a thread it returns the result. The result has to be JSON, at most
        64 KiB. It stays with the job, over a replay too. Raises `LeaseLost` when the attempt is no longer this
        worker's, `InvalidOption`.
        """
        if self._connection is not None:
            raise PgqueueError(
                f"task {self._job.task} is transactional: all of it is one step, which commits with its completion"
            )
        if self._take_step is None:
            raise PgqueueError(f"job {self._job.id} runs outside of a worker: there are no steps")
        return self._take_step(self._job, name, function)

    def progress(
        self, done: float, total: float | None = None, message: str | None = None, **metadata: Any
    ) -> None:
        """Says how far the handler has come, for those who look from outside: `app.job(id).progress`.

            for number, row in enumerate(rows, start=1):
                ctx.progress(number, len(rows), "importing", file=path)

        Call it as often as you like, from async, thread and process handlers: it never waits and never raises.
        It is written at most 4 times a second, the last one always; a message is cut at 500 characters,
        `metadata` is at most 4 KiB of JSON. What cannot be written is dropped, with a warning in the log.
        """
        slot = self._slot
        if slot is not None and slot.reports is not None:
            slot.reports.progress(slot, self._job, (done, total, message, metadata))

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this attempt any more: the job was cancelled, or its time is over.

        An async handler is told by a CancelledError; one in a thread has to look here now and then.
        """
        slot = self._slot
        return slot is not None and (slot.job is not self._job or slot.stop is not None)

    @property
    def log(self) -> Any:
        """A structlog logger that carries `job_id`, `task`, `queue` and `attempt`.

        The last lines of an attempt that go through it, 100 and 64 KiB at most, are kept with the job as well, for
        `pgqueue jobs show --logs`.
        """
        if self._log is None:
            job, slot = self._job, self._slot
            told = {"job_id": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt}
            self._log = structlog.get_logger("pgqueue.task").bind(**told)
            if slot is not None and slot.reports is not None:
                self._log = keeping(self._log, partial(slot.reports.line, slot, job), but=tuple(told))
        return self._log

    @property
    def connection(self) -> C:
        """The connection, in the attempt's transaction; what it writes commits with the job's completion.

        Raises `PgqueueError` when the task is not transactional.
        """
        if self._connection is None:
            raise PgqueueError(
                f"task {self._job.task} has no connection: declare it @app.task(transactional=True), and its "
                "writes commit together with its completion; or open a connection of your own"
            )
        return self._connection

    def _stored(self) -> dict[str, Any]:
        if self._options is None:
            # Hazard: another language may have written it; what is no object counts as empty.
            found = json.loads(self._job.options) if self._job.options else {}
            self._options = found if isinstance(found, dict) else {}
        return self._options

    def __repr__(self) -> str:
        job = self._job
        return f"<Context of job {job.id}, task {job.task}, attempt {job.attempt} of {job.max_attempts}>"


def add_job(_logger: Any, _name: str, event: dict[str, Any]) -> dict[str, Any]:
    """A structlog processor: adds `job_id`, `task` and `queue` of the current job to a log line.

    Put it before the renderer in the `processors` of `structlog.configure`. What the line says itself wins.
    """
    job = current_job.get()
    if job is not None:
        event.setdefault("job_id", job.id)
        event.setdefault("task", job.task)
        event.setdefault("queue", job.queue)
    return event
