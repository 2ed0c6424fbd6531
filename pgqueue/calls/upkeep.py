"""What upkeep calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pgqueue.calls.call import Call, Rows, Verb, bigints, nothing, scalar, texts

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
    return Call(RESCUE, (str(worker_id), begun, bigints(interrupted), cause), scalar)


def promote(max_jobs: int) -> Call[int]:
    """Makes due jobs ready; returns how many."""
    return Call(PROMOTE, (str(max_jobs),), scalar)


def crashed_jobs(worker_ids: Iterable[int]) -> Call[list[CrashedJob]]:
    """The jobs that were running when these workers died, for hooks."""
    return Call(CRASHED_JOBS, (bigints(worker_ids),), lambda rows: [CrashedJob(*row) for row in rows])


def prove_floors() -> Call[None]:
    """Moves the lane floors up to what is proven."""
    return Call(PROVE_FLOORS, (), nothing)


def retain() -> Call[int]:
    """Makes the partitions ahead; returns how many."""
    return Call(RETAIN, (), scalar)


def _upkeep_round(rows: Rows) -> UpkeepRound:
    return UpkeepRound(*rows[0])
