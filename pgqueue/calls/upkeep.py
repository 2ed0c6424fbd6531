"""What upkeep calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from pgqueue.calls.call import Call, Rows, Verb, bigints, nothing, scalar, texts
from pgqueue.plan import DueSchedule, Plan

UPKEEP = Verb(
    "upkeep",
    (
        ("supervisor_id", "bigint"),
        ("worker_ids", "bigint[]"),
        ("queues", "text[]"),
        ("round_seconds", "double precision"),
        ("overdue_seconds", "double precision"),
        ("hears", "boolean"),
    ),
    (
        "missing",
        "look",
        "led",
        "rescued",
        "promoted",
        "schedules_due",
        "floors_due",
        "retain_due",
        "next_seconds",
        "problems",
        "rescued_workers",
        "depths_due",
        "rollup_due",
        "queue_settings::text",
        "stopping",
        "history_pages",
        "resumed_at::text",
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
KEEP_TIME = Verb(
    "keep_time",
    (("pause_seconds", "double precision"), ("hears", "boolean")),
    ("promoted", "schedules_due", "next_seconds"),
)
RESIGN = Verb("resign", (("supervisor_id", "bigint"),))
DUE_SCHEDULES = Verb("due_schedules", (), DueSchedule._fields)
TICK = Verb(
    "tick",
    (
        ("name", "text"),
        ("changed_at", "timestamptz"),
        ("due_at", "timestamptz"),
        ("dues", "timestamptz[]"),
        ("outcomes", "text[]"),
        ("missed", "integer[]"),
        ("next_due_at", "timestamptz"),
        ("problem", "text"),
    ),
)
PROVE_FLOORS = Verb("prove_floors", ())
RETAIN = Verb("retain", ())
DROP_DAY = Verb("drop_day", (), ("dropped", "blocked_by"))
TRIM_HISTORY = Verb("trim_history", (), ("jobs", "more"))
COUNT_DEPTHS = Verb("count_depths", ())
ROLL_UP = Verb("roll_up", ())
SUMMARIZE_HISTORY = Verb("summarize_history", ())


class UpkeepRound(NamedTuple):
    """What a round of upkeep found and did; the result columns of `pgqueue.upkeep()`."""

    missing: list[int]
    look: bool
    led: bool
    rescued: int
    promoted: int
    schedules_due: bool
    floors_due: bool
    retain_due: bool
    next_seconds: float
    problems: list[str]
    rescued_workers: list[int]
    depths_due: bool
    rollup_due: bool
    queue_settings: str
    """JSON text, as of `queue_settings`."""
    stopping: list[int]
    history_pages: int
    resumed_at: str
    """Since when rounds are led without a gap, and without a recovery of the server; only compared."""


class DayDropped(NamedTuple):
    """The result columns of `pgqueue.drop_day()`."""

    dropped: str | None
    """The partition; None: none is past its time, or it is in use."""
    blocked_by: list[int]
    """The processes of the server that use it."""


class Trimmed(NamedTuple):
    """The result columns of `pgqueue.trim_history()`."""

    jobs: int
    more: bool


class TimeKept(NamedTuple):
    """What has become due; the result columns of `pgqueue.keep_time()`."""

    promoted: int
    schedules_due: bool
    next_seconds: float


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
    hears: bool,
) -> Call[UpkeepRound]:
    """A round of upkeep: beats, looks, and leads when it is this supervisor's turn; `hears`: it can be notified."""
    values = (
        str(supervisor_id),
        bigints(worker_ids),
        texts(queues),
        str(round_seconds),
        str(overdue_seconds),
        str(hears),
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
    return Call(RESCUE, (str(worker_id), begun, bigints(interrupted), cause), scalar)


def promote(max_jobs: int) -> Call[int]:
    """Makes due jobs ready; returns how many."""
    return Call(PROMOTE, (str(max_jobs),), scalar)


def keep_time(pause_seconds: float, *, hears: bool) -> Call[TimeKept]:
    """Makes due jobs ready, and says what is due next, `pause_seconds` from now at the latest."""
    return Call(KEEP_TIME, (str(pause_seconds), str(hears)), lambda rows: TimeKept(*rows[0]))


def resign(supervisor_id: int) -> Call[bool]:
    """Gives leadership up, for others to take over at once; whether it had it."""
    return Call(RESIGN, (str(supervisor_id),), scalar)


def due_schedules() -> Call[list[DueSchedule]]:
    """The schedules that are due or to be planned, with the clock by which they are."""
    return Call(DUE_SCHEDULES, (), lambda rows: [DueSchedule(*row) for row in rows])


def tick(schedule: DueSchedule, plan: Plan, problem: str | None = None) -> Call[int | None]:
    """Carries a plan out; how many jobs it made, None: the schedule was not as read, and nothing was done.

    With a `problem` the schedule does not run any more until somebody has changed or resumed it.
    """
    values = (
        schedule.name,
        schedule.changed_at.isoformat(),
        _moment(schedule.due_at),
        texts(run.due_at.isoformat() for run in plan.runs),
        texts(run.outcome for run in plan.runs),
        bigints(run.missed for run in plan.runs),
        _moment(plan.next_due_at),
        problem,
    )
    return Call(TICK, values, scalar)


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def crashed_jobs(worker_ids: Iterable[int]) -> Call[list[CrashedJob]]:
    """The jobs that were running when these workers died, for hooks."""
    return Call(CRASHED_JOBS, (bigints(worker_ids),), lambda rows: [CrashedJob(*row) for row in rows])


def prove_floors() -> Call[None]:
    """Moves the lane floors up to what is proven."""
    return Call(PROVE_FLOORS, (), nothing)


def retain() -> Call[int]:
    """Makes the partitions ahead; returns how many."""
    return Call(RETAIN, (), scalar)


def drop_day() -> Call[DayDropped]:
    """Drops one partition that is past the longest retention."""
    return Call(DROP_DAY, (), lambda rows: DayDropped(*rows[0]))


def trim_history() -> Call[Trimmed]:
    """Deletes up to 1,000 jobs that are kept no longer."""
    return Call(TRIM_HISTORY, (), lambda rows: Trimmed(*rows[0]))


def count_depths() -> Call[float | None]:
    """Counts the jobs of each state; how many seconds it took, None: somebody else is at it."""
    return Call(COUNT_DEPTHS, (), scalar)


def roll_up() -> Call[int]:
    """Rolls up the minutes that are over and whose endings are all there; how many they were."""
    return Call(ROLL_UP, (), scalar)


def summarize_history() -> Call[None]:
    """Lets the latest of the history be found without reading all of it."""
    return Call(SUMMARIZE_HISTORY, (), nothing)


def _upkeep_round(rows: Rows) -> UpkeepRound:
    return UpkeepRound(*rows[0])
