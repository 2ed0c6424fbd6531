"""An operation is a value: the only file that knows the names of SQL.

A `Verb` is one SQL function: its parameters with their types, its result columns. A `Call` is a verb
with values, built purely here and run at the edge by `pgqueue.drivers`. Every value travels as text or
null and is cast by the server, so that each driver needs three lines and no type adapters.

>>> call = enqueue(task="send", args='{"id": 7}')
>>> call.verb.function
'enqueue'
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from pgqueue import version
from pgqueue.errors import SchemaOutdated, SchemaTooNew
from pgqueue.info import Event, JobInfo, read_info
from pgqueue.job import Cancellation, ClaimedJob, DeadLetter, Job, WaitingJob

T = TypeVar("T")
Row = tuple[Any, ...]
Rows = Sequence[Row]


@dataclass(frozen=True, slots=True)
class Verb:
    """One SQL function of schema `pgqueue`.

    `parameters` maps each name to its SQL type; `columns` are the result columns asked for, by name
    (an empty tuple: the function returns one unnamed scalar).
    """

    function: str
    parameters: tuple[tuple[str, str], ...]
    columns: tuple[str, ...] = ()
    _rendered: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def sql(self, style: str) -> str:
        """The statement with placeholders of `style`: "format" (%s), "numeric" ($1) or "named" (:p0)."""
        text = self._rendered.get(style)
        if text is None:
            text = self._rendered[style] = self._render(style)
        return text

    def _render(self, style: str) -> str:
        place = {"format": "%s", "numeric": "${n}", "named": ":p{i}"}[style]
        arguments = ", ".join(
            # through text, so that a driver that asks the server for types sends text as well
            f"{name} => cast(cast({place.format(n=i + 1, i=i)} as text) as {kind})"
            for i, (name, kind) in enumerate(self.parameters)
        )
        if self.columns:
            return f"select {', '.join(self.columns)} from pgqueue.{self.function}({arguments})"
        return f"select pgqueue.{self.function}({arguments})"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A verb with its values, in the order of the verb's parameters, and how to read the rows."""

    verb: Verb
    values: tuple[str | None, ...]
    decode: Callable[[Rows], T]


def bigints(values: Iterable[int]) -> str:
    """An array of integers as PostgreSQL writes it."""
    return "{" + ",".join(map(str, values)) + "}"


def texts(values: Iterable[str | None]) -> str:
    """An array of texts as PostgreSQL writes it, each element quoted, None as NULL."""
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: str | None) -> str:
    if value is None:
        return "NULL"
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


# Producers ------------------------------------------------------------------------------------------

ENQUEUE = Verb(
    "enqueue",
    (
        ("task", "text"),
        ("args", "jsonb"),
        ("queue", "text"),
        ("priority", "integer"),
        ("run_at", "timestamptz"),
        ("delay", "double precision"),
        ("max_attempts", "integer"),
        ("unique_key", "text"),
        ("idempotency_key", "text"),
        ("options", "jsonb"),
    ),
    ("id", "created"),
)
ENQUEUE_KEYED = Verb(ENQUEUE.function, ENQUEUE.parameters, ("id", "created", "outcome"))
"""The same for a job with a key, which may meet another one."""
ENQUEUE_MANY = Verb("enqueue_many", (("jobs", "jsonb"),), ("ids", "created", "outcomes"))

LOOK = Verb(
    "look",
    (("ids", "bigint[]"),),
    # in the order of JobInfo's fields, up to `message`
    (
        "id",
        "state",
        "queue",
        "task",
        "priority",
        "attempt",
        "max_attempts",
        "crashes",
        "created_at",
        "run_at",
        "claimed_at",
        "finished_at",
        "worker_id",
        "reason",
        "error",
        "message",
        "tags",
        "result::text",
        "progress::text",
        "progress_at",
    ),
)
WAIT_FOR = Verb("wait_for", (("ids", "bigint[]"), ("channel", "text")))
ENDINGS_UNDER_WAY = Verb("endings_under_way", (("among", "text[]"),))
EVENTS_HORIZON = Verb("events_horizon", (), ("until", "under_way"))
READ_EVENTS = Verb(
    "read_events",
    (
        ("after_at", "timestamptz"),
        ("after_id", "bigint"),
        ("after_attempt", "integer"),
        ("until", "timestamptz"),
        ("of_queue", "text"),
        ("of_task", "text"),
        ("max_rows", "integer"),
    ),
    # in the order of Event's fields
    (
        "at",
        "job_id",
        "attempt",
        "kind",
        "queue",
        "task",
        "worker_id",
        "reason",
        "error",
        "message",
    ),
)


def enqueue(
    *,
    task: str,
    args: str = "{}",
    queue: str | None = None,
    priority: int | None = None,
    run_at: str | None = None,
    delay: float | None = None,
    max_attempts: int | None = None,
    unique_key: str | None = None,
    idempotency_key: str | None = None,
    options: str | None = None,
) -> Call[Job]:
    """One job. `args` and `options` are JSON text, `run_at` ISO 8601 with an offset, `delay` seconds."""
    values = (
        task,
        args,
        queue,
        _text(priority),
        run_at,
        _text(delay),
        _text(max_attempts),
        unique_key,
        idempotency_key,
        options,
    )
    if unique_key is None and idempotency_key is None:
        return Call(ENQUEUE, values, _job)
    return Call(ENQUEUE_KEYED, values, _keyed_job)


def enqueue_many(jobs: str) -> Call[list[Job]]:
    """Many jobs in one statement. `jobs` is a JSON array of objects keyed like the arguments of `enqueue`."""
    return Call(ENQUEUE_MANY, (jobs,), _jobs)


def look(ids: Iterable[int]) -> Call[list[JobInfo]]:
    """What has become of jobs; those that are on record, by id."""
    return Call(LOOK, (bigints(ids),), _infos)


def wait_for(ids: Iterable[int], channel: str) -> Call[None]:
    """Registers a waiter for 35 s: the end of a job notifies `channel` (see `sql/…/wait_for.sql`)."""
    return Call(WAIT_FOR, (bigints(ids), channel), _nothing)


def endings_under_way(among: Iterable[str] | None = None) -> Call[list[str]]:
    """The transactions that are about to end jobs, of all or `among` some."""
    return Call(ENDINGS_UNDER_WAY, (None if among is None else texts(among),), _scalar)


def events_horizon() -> Call[tuple[datetime, list[str]]]:
    """A time up to which no event is missed once the transactions that come with it have ended."""
    return Call(EVENTS_HORIZON, (), lambda rows: (rows[0][0], rows[0][1]))


def read_events(
    after: tuple[datetime, int, int],
    until: datetime,
    *,
    queue: str | None = None,
    task: str | None = None,
    max_rows: int = 1000,
) -> Call[list[Event]]:
    """The events after a place (time, job id, attempt) and up to a horizon, the earliest first."""
    at, id, attempt = after
    values = (at.isoformat(), str(id), str(attempt), until.isoformat(), queue, task, str(max_rows))
    return Call(READ_EVENTS, values, lambda rows: [Event(*row) for row in rows])


def _job(rows: Rows) -> Job:
    id, created = rows[0]
    return Job(id, created)


def _jobs(rows: Rows) -> list[Job]:
    ids, created, outcomes = rows[0]
    if outcomes is None:  # none has a key
        return list(map(Job, ids, created))
    return list(map(_met, ids, created, outcomes))


def _keyed_job(rows: Rows) -> Job:
    return _met(*rows[0])


def _met(id: int, created: bool, outcome: Any = None) -> Job:
    return Job(id, created) if outcome in (None, "created", "kept") else Job(id, created, outcome)


# Everybody ------------------------------------------------------------------------------------------

PROTOCOL = Verb("protocol", (), ("newest", "oldest"))


class Served(NamedTuple):
    """The range of protocols that a schema serves; the result columns of `pgqueue.protocol()`."""

    newest: int
    oldest: int

    def check(self, spoken: int = version.PROTOCOL) -> None:
        """Raises `SchemaOutdated` or `SchemaTooNew` when `spoken` is outside of the range.

        >>> Served(newest=3, oldest=2).check(spoken=3)
        """
        serves = f"the schema pgqueue serves protocols {self.oldest} to {self.newest}, this pgqueue-jobs "
        serves += f"{version.__version__} speaks {spoken}"
        if spoken > self.newest:
            raise SchemaOutdated(f"{serves}: run `pgqueue db upgrade`")
        if spoken < self.oldest:
            raise SchemaTooNew(
                f"{serves}: upgrade pgqueue-jobs (`pgqueue db upgrade` does not help, the database is ahead)"
            )


def protocol() -> Call[Served]:
    """The range of protocols that the schema serves; `Served.check` decides. Asked before data is touched."""
    return Call(PROTOCOL, (), _served)


# Workers --------------------------------------------------------------------------------------------

REGISTER = Verb(
    "register",
    (
        ("supervisor_id", "bigint"),
        ("host", "text"),
        ("pid", "integer"),
        ("version", "text"),
        ("queues", "text[]"),
        ("concurrency", "integer"),
        ("lease", "double precision"),
        ("session_lock", "boolean"),
    ),
)
HOLD_SESSION = Verb("hold_session", (("supervisor_id", "bigint"),))
HEARTBEAT = Verb("heartbeat", (("worker_ids", "bigint[]"),))
CLAIM = Verb(
    "claim",
    (
        ("worker_id", "bigint"),
        ("queues", "text[]"),
        ("limits", "integer[]"),
        ("max_jobs", "integer"),
        ("cursors", "bigint[]"),
        ("fence", "bigint"),
    ),
    # in the order of ClaimedJob's fields
    (
        "id",
        "lease",
        "queue",
        "lane",
        "position",
        "task",
        "args",
        "attempt",
        "max_attempts",
        "crashes",
        "options",
    ),
)
FORGET_CLAIM = Verb("forget_claim", (("worker_id", "bigint"), ("fence", "bigint")))
COMPLETE = Verb("complete", (("ids", "bigint[]"), ("leases", "bigint[]")))
COMPLETE_WITH_RESULTS = Verb("complete_with_results", (("completions", "jsonb"),))
NOTE = Verb(
    "note",
    (
        ("job_id", "bigint"),
        ("worker_id", "bigint"),
        ("attempt", "integer"),
        ("level", "text"),
        ("line", "text"),
    ),
)
NOTE_PROGRESS = Verb("note_progress", (("notes", "jsonb"),))
NOTE_REPORTS = Verb("note_reports", (("reports", "jsonb"),))
FAIL = Verb("fail", (("failures", "jsonb"),))
SNOOZE = Verb("snooze", (("ids", "bigint[]"), ("leases", "bigint[]"), ("delays", "double precision[]")))
RELEASE = Verb("release", (("ids", "bigint[]"), ("leases", "bigint[]")))
END_CANCELLED = Verb("end_cancelled", (("ids", "bigint[]"), ("leases", "bigint[]"), ("reasons", "text[]")))
END_EXPIRED = Verb("end_expired", (("ids", "bigint[]"), ("leases", "bigint[]")))
CANCEL_REQUESTS = Verb("cancel_requests", (("worker_ids", "bigint[]"),), ("job_id", "lease"))
STEP_RESULT = Verb("step_result", (("job_id", "bigint"), ("name", "text")), ("step_result::text",))
RECORD_STEP = Verb(
    "record_step", (("job_id", "bigint"), ("lease", "bigint"), ("name", "text"), ("result", "jsonb"))
)
LACK_TASK = Verb("lack_task", (("worker_id", "bigint"), ("task", "text")))
FALL_ASLEEP = Verb("fall_asleep", (("worker_id", "bigint"), ("queues", "text[]")))
WRITERS = Verb("writers", (("relation", "text"), ("among", "text[]")))
WAKE_UP = Verb("wake_up", (("worker_id", "bigint"),))


def register(
    *,
    supervisor_id: int,
    host: str,
    pid: int,
    version: str,
    queues: Sequence[str],
    concurrency: int,
    lease: float,
    session_lock: bool,
) -> Call[int]:
    """The id of a new worker. `lease` is in seconds."""
    values = (
        str(supervisor_id),
        host,
        str(pid),
        version,
        texts(queues),
        str(concurrency),
        str(lease),
        str(session_lock),
    )
    return Call(REGISTER, values, _scalar)


def hold_session(supervisor_id: int) -> Call[bool]:
    """Takes the supervisor's session advisory lock; false: another session still holds it."""
    return Call(HOLD_SESSION, (str(supervisor_id),), _scalar)


def heartbeat(worker_ids: Iterable[int]) -> Call[list[int]]:
    """Beats for workers; returns those that are registered no more."""
    return Call(HEARTBEAT, (bigints(worker_ids),), _scalar)


def claim(
    *,
    worker_id: int,
    queues: Sequence[str],
    limits: Iterable[int],
    max_jobs: int,
    cursors: Iterable[int],
    fence: int,
) -> Call[list[ClaimedJob]]:
    """Up to `max_jobs` jobs, at most `limits[i]` of `queues[i]`; 20 `cursors` a queue, 0: the lane's floor.

    `fence` is drawn at random for this claim alone, and becomes the lease of its jobs.
    """
    values = (str(worker_id), texts(queues), bigints(limits), str(max_jobs), bigints(cursors), str(fence))
    return Call(CLAIM, values, _claimed)


def forget_claim(worker_id: int, fence: int) -> Call[list[int]]:
    """Gives back the jobs of a claim whose answer was lost; returns their ids."""
    return Call(FORGET_CLAIM, (str(worker_id), str(fence)), _scalar)


def complete(ids: Iterable[int], leases: Iterable[int]) -> Call[list[int]]:
    """Ends attempts as completed; returns the ids that were accepted."""
    return Call(COMPLETE, (bigints(ids), bigints(leases)), _scalar)


def complete_with_results(completions: str) -> Call[list[int]]:
    """Ends attempts as completed. `completions`: see `pgqueue.complete_with_results`. Returns the ids accepted."""
    return Call(COMPLETE_WITH_RESULTS, (completions,), _scalar)


def note_progress(notes: str) -> Call[None]:
    """Says how far running jobs have come. `notes`: see `pgqueue.note_progress`."""
    return Call(NOTE_PROGRESS, (notes,), _nothing)


def note(*, job_id: int, worker_id: int, attempt: int, level: str, line: str) -> Call[None]:
    """Adds a line to what an attempt leaves to be looked at, from outside of its handler."""
    return Call(NOTE, (str(job_id), str(worker_id), str(attempt), level, line), _nothing)


def note_reports(reports: str) -> Call[None]:
    """Keeps what attempts that are about to end have left. `reports`: see `pgqueue.note_reports`."""
    return Call(NOTE_REPORTS, (reports,), _nothing)


def fail(failures: str) -> Call[list[int]]:
    """Ends attempts as failed. `failures`: see `pgqueue.fail`. Returns the ids that were accepted."""
    return Call(FAIL, (failures,), _scalar)


def snooze(ids: Iterable[int], leases: Iterable[int], delays: Iterable[float]) -> Call[list[int]]:
    """Puts running jobs off by seconds, the attempt given back; returns the ids that were accepted."""
    delay = "{" + ",".join(map(repr, delays)) + "}"
    return Call(SNOOZE, (bigints(ids), bigints(leases), delay), _scalar)


def release(ids: Iterable[int], leases: Iterable[int]) -> Call[list[int]]:
    """Gives running jobs back, the attempt too; returns the ids that were accepted."""
    return Call(RELEASE, (bigints(ids), bigints(leases)), _scalar)


def end_cancelled(
    ids: Iterable[int], leases: Iterable[int], reasons: Iterable[str | None]
) -> Call[list[int]]:
    """Ends attempts as cancelled, each for its reason or the one of the request; returns the ids accepted."""
    return Call(END_CANCELLED, (bigints(ids), bigints(leases), texts(reasons)), _scalar)


def end_expired(ids: Iterable[int], leases: Iterable[int]) -> Call[list[int]]:
    """Ends those attempts as cancelled whose job may not start any more; returns their ids."""
    return Call(END_EXPIRED, (bigints(ids), bigints(leases)), _scalar)


def cancel_requests(worker_id: int) -> Call[list[tuple[int, int]]]:
    """The running jobs (id, lease) of a worker that somebody has asked to cancel."""
    return Call(CANCEL_REQUESTS, (bigints([worker_id]),), _pairs)


def step_result(job_id: int, name: str) -> Call[str | None]:
    """What a step of a job returned, as JSON; None: it has not been taken."""
    return Call(STEP_RESULT, (str(job_id), name), _scalar)


def record_step(job_id: int, lease: int, name: str, result: str) -> Call[None]:
    """Records a step of a running job. Raises `LeaseLost`."""
    return Call(RECORD_STEP, (str(job_id), str(lease), name, result), _nothing)


def lack_task(worker_id: int, task: str) -> Call[None]:
    """Notes on the worker's row that its app does not have `task`."""
    return Call(LACK_TASK, (str(worker_id), task), _nothing)


def fall_asleep(worker_id: int, queues: Sequence[str]) -> Call[None]:
    """Registers the worker as asleep: the first step of falling asleep (see `sql/…/sleep.sql`)."""
    return Call(FALL_ASLEEP, (str(worker_id), texts(queues)), _nothing)


def writers(relation: str, among: Iterable[str] | None = None) -> Call[list[str]]:
    """The transactions that hold a lock for writing on a table of pgqueue, of all or `among` some."""
    return Call(WRITERS, (relation, None if among is None else texts(among)), _scalar)


def wake_up(worker_id: int) -> Call[None]:
    """Takes the worker off the sleepers."""
    return Call(WAKE_UP, (str(worker_id),), _nothing)


# Upkeep ---------------------------------------------------------------------------------------------

UPKEEP = Verb(
    "upkeep",
    (
        ("supervisor_id", "bigint"),
        ("worker_ids", "bigint[]"),
        ("queues", "text[]"),
        ("round_seconds", "double precision"),
        ("overdue_seconds", "double precision"),
    ),
    (
        "missing",
        "look",
        "led",
        "rescued",
        "promoted",
        "floors_due",
        "retain_due",
        "next_seconds",
        "problems",
        "rescued_workers",
    ),
)
CRASHED_JOBS = Verb(
    "crashed_jobs",
    (("worker_ids", "bigint[]"),),
    (
        "id",
        "task",
        "queue",
        "args",
        "attempt",
        "max_attempts",
        "crashes",
        "error",
        "message",
        "dead_reason",
    ),
)
RESCUE = Verb(
    "rescue",
    (("worker_id", "bigint"), ("started", "bigint[]"), ("interrupted", "bigint[]"), ("cause", "text")),
)
PROMOTE = Verb("promote", (("max_jobs", "integer"),))
PROVE_FLOORS = Verb("prove_floors", ())
RETAIN = Verb("retain", ())


class UpkeepRound(NamedTuple):
    """What a round of upkeep found and did; the result columns of `pgqueue.upkeep()`."""

    missing: list[int]
    look: bool
    led: bool
    rescued: int
    promoted: int
    floors_due: bool
    retain_due: bool
    next_seconds: float
    problems: list[str]
    rescued_workers: list[int]


class CrashedJob(NamedTuple):
    """A job that was running when its worker died; the result columns of `pgqueue.crashed_jobs()`.

    `args` is JSON text; `dead_reason` is None unless the crash has made it a dead letter.
    """

    id: int
    task: str
    queue: str
    args: str
    attempt: int
    max_attempts: int
    crashes: int
    error: str
    message: str
    dead_reason: str | None


def upkeep(
    *,
    supervisor_id: int,
    worker_ids: Iterable[int],
    queues: Sequence[str],
    round_seconds: float,
    overdue_seconds: float,
) -> Call[UpkeepRound]:
    """A round of upkeep: beats, looks, and leads when it is this supervisor's turn."""
    values = (
        str(supervisor_id),
        bigints(worker_ids),
        texts(queues),
        str(round_seconds),
        str(overdue_seconds),
    )
    return Call(UPKEEP, values, _upkeep_round)


def rescue(
    worker_id: int,
    started: Iterable[int] | None,
    *,
    interrupted: Iterable[int] = (),
    cause: str | None = None,
) -> Call[int]:
    """Takes an ended worker's jobs back; returns how many.

    `started`: ids of those that it had begun and may have died of, None: not known; `interrupted`: of those that it had
    begun and has not died of; `cause`: how it died, such as "was killed by SIGSEGV".
    """
    begun = None if started is None else bigints(started)
    return Call(RESCUE, (str(worker_id), begun, bigints(interrupted), cause), _scalar)


def promote(max_jobs: int) -> Call[int]:
    """Makes due jobs ready; returns how many."""
    return Call(PROMOTE, (str(max_jobs),), _scalar)


def crashed_jobs(worker_ids: Iterable[int]) -> Call[list[CrashedJob]]:
    """The jobs that were running when these workers died, for hooks."""
    return Call(CRASHED_JOBS, (bigints(worker_ids),), lambda rows: [CrashedJob(*row) for row in rows])


def prove_floors() -> Call[None]:
    """Moves the lane floors up to what is proven."""
    return Call(PROVE_FLOORS, (), _nothing)


def retain() -> Call[int]:
    """Makes the partitions ahead; returns how many."""
    return Call(RETAIN, (), _scalar)


# Operators ------------------------------------------------------------------------------------------

FIND_DEAD = Verb(
    "find_dead",
    (
        ("of_ids", "bigint[]"),
        ("of_queue", "text"),
        ("of_task", "text"),
        ("of_reason", "text"),
        ("of_error", "text"),
        ("died_after", "timestamptz"),
        ("died_before", "timestamptz"),
        ("max_rows", "integer"),
    ),
    (
        "id",
        "queue",
        "task",
        "priority",
        "reason",
        "error",
        "message",
        "attempt",
        "max_attempts",
        "crashes",
        "created_at",
        "died_at",
        "args::text",
        "unique_key",
        "options::text",
        "errors::text",
    ),
)
FIND_WAITING = Verb(
    "find_waiting",
    (("of_queue", "text"), ("of_task", "text"), ("max_rows", "integer")),
    # in the order of WaitingJob's fields
    (
        "id",
        "state",
        "queue",
        "task",
        "priority",
        "attempt",
        "max_attempts",
        "created_at",
        "run_at",
        "due_seconds",
        "args::text",
        "unique_key",
        "options::text",
    ),
)
FIND_JOBS = Verb(
    "find_jobs",
    (
        ("of_states", "text[]"),
        ("of_queue", "text"),
        ("of_task", "text"),
        ("of_tag", "text"),
        ("max_rows", "integer"),
    ),
    ("id",),
)
JOB_RECORD = Verb(
    "job_record",
    (("id", "bigint"),),
    ("args::text", "options::text", "unique_key", "failures::text", "reports::text"),
)
CANCEL = Verb("cancel", (("ids", "bigint[]"), ("reason", "text")), ("id", "outcome"))
CANCEL_MATCHING = Verb(
    "cancel_matching",
    (
        ("of_queue", "text"),
        ("of_task", "text"),
        ("of_tag", "text"),
        ("of_state", "text"),
        ("reason", "text"),
        ("max_jobs", "integer"),
    ),
    ("id", "outcome"),
)
REPLAY = Verb("replay", (("ids", "bigint[]"),))
DISCARD = Verb("discard", (("ids", "bigint[]"),))
PAUSE = Verb("pause", (("queue", "text"),))
RESUME = Verb("resume", (("queue", "text"),))


class JobRecord(NamedTuple):
    """What belongs to a job beside its `JobInfo`; the result columns of `pgqueue.job_record()`.

    All but `unique_key` are JSON text. `failures` lists every failed attempt, `reports` what each attempt left
    (attempt, worker_id, reported_at, progress, lines), oldest first.
    """

    args: str
    options: str | None
    unique_key: str | None
    failures: str
    reports: str


def find_dead(
    *,
    ids: Iterable[int] | None = None,
    queue: str | None = None,
    task: str | None = None,
    reason: str | None = None,
    error: str | None = None,
    died_after: str | None = None,
    died_before: str | None = None,
    max_rows: int = 100,
) -> Call[list[DeadLetter]]:
    """Dead letters that match every filter given, newest first. Times are ISO 8601 with an offset."""
    values = (
        None if ids is None else bigints(ids),
        queue,
        task,
        reason,
        error,
        died_after,
        died_before,
        str(max_rows),
    )
    return Call(FIND_DEAD, values, lambda rows: [DeadLetter(*row) for row in rows])


def find_waiting(
    *, queue: str | None = None, task: str | None = None, max_rows: int = 1000
) -> Call[list[WaitingJob]]:
    """Jobs that wait: ready ones in the order of claiming, scheduled ones by their time, then blocked ones."""
    return Call(FIND_WAITING, (queue, task, str(max_rows)), _waiting)


def find_jobs(
    *,
    states: Sequence[str] | None = None,
    queue: str | None = None,
    task: str | None = None,
    tag: str | None = None,
    max_rows: int = 100,
) -> Call[list[int]]:
    """The ids of jobs that match every filter given, newest first."""
    values = (None if states is None else texts(states), queue, task, tag, str(max_rows))
    return Call(FIND_JOBS, values, _ids)


def job_record(id: int) -> Call[JobRecord | None]:
    """What `look` leaves out of a job; None when it is not on record."""
    return Call(JOB_RECORD, (str(id),), lambda rows: JobRecord(*rows[0]) if rows else None)


def cancel(ids: Iterable[int], reason: str = "cancelled") -> Call[list[Cancellation]]:
    """Cancels jobs in any state; what became of each that exists."""
    return Call(CANCEL, (bigints(ids), reason), _cancellations)


def cancel_matching(
    *,
    queue: str | None = None,
    task: str | None = None,
    tag: str | None = None,
    state: str | None = None,
    reason: str = "cancelled",
    max_jobs: int = 1000,
) -> Call[list[Cancellation]]:
    """Cancels jobs that wait or run and match every filter given, at most `max_jobs` of them."""
    return Call(CANCEL_MATCHING, (queue, task, tag, state, reason, str(max_jobs)), _cancellations)


def replay(ids: Iterable[int]) -> Call[list[int]]:
    """Runs dead letters again, attempts from 0; returns the ids that were replayed."""
    return Call(REPLAY, (bigints(ids),), _scalar)


def discard(ids: Iterable[int]) -> Call[list[int]]:
    """Moves dead letters to the history as cancelled; returns the ids that were."""
    return Call(DISCARD, (bigints(ids),), _scalar)


def pause(queue: str) -> Call[None]:
    """Stops the claiming of a queue, on every worker."""
    return Call(PAUSE, (queue,), _nothing)


def resume(queue: str) -> Call[None]:
    """Starts the claiming of a queue again."""
    return Call(RESUME, (queue,), _nothing)


# Tests ----------------------------------------------------------------------------------------------

TRAVEL = Verb("travel", (("seconds", "double precision"),))


def travel(seconds: float) -> Call[int]:
    """Moves the times of all that waits back by `seconds`; returns how many scheduled jobs are due."""
    return Call(TRAVEL, (repr(seconds),), _scalar)


# Reading rows ---------------------------------------------------------------------------------------


def _scalar(rows: Rows) -> Any:
    return rows[0][0]


def _nothing(_rows: Rows) -> None:
    return None


def _served(rows: Rows) -> Served:
    return Served(*rows[0])


# A thousand rows at a time: without a Python frame per row.
_claimed_job = partial(tuple.__new__, ClaimedJob)


def _ids(rows: Rows) -> list[int]:
    return [row[0] for row in rows]


def _infos(rows: Rows) -> list[JobInfo]:
    return list(map(read_info, rows))


def _pairs(rows: Rows) -> list[tuple[int, int]]:
    return [(row[0], row[1]) for row in rows]


def _waiting(rows: Rows) -> list[WaitingJob]:
    return [
        WaitingJob(*(*row[:-3], json.loads(row[-3]), row[-2], json.loads(row[-1] or "{}"))) for row in rows
    ]


def _cancellations(rows: Rows) -> list[Cancellation]:
    return [Cancellation(*row) for row in rows]


def _claimed(rows: Rows) -> list[ClaimedJob]:
    return list(map(_claimed_job, rows))


def _upkeep_round(rows: Rows) -> UpkeepRound:
    return UpkeepRound(*rows[0])
