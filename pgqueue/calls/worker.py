"""What workers call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from pgqueue.calls.call import Call, Rows, Verb, bigints, nothing, scalar, texts
from pgqueue.job import ClaimedJob

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
QUEUE_SETTINGS = Verb("queue_settings", (("queues", "text[]"),))
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
        "waited",
    ),
)
FORGET_CLAIM = Verb("forget_claim", (("worker_id", "bigint"), ("fence", "bigint")))
FORGET_UNHELD = Verb("forget_unheld", (("worker_id", "bigint"), ("ids", "bigint[]"), ("leases", "bigint[]")))
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
SYNC_SCHEDULES = Verb(
    "sync_schedules", (("owner", "text"), ("schedules", "jsonb"), ("starts", "boolean")), ("name", "outcome")
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
    return Call(REGISTER, values, scalar)


def queue_settings(queues: Sequence[str]) -> Call[str]:
    """What operators have set for queues that concerns their workers, as JSON text: {queue: {limit, timeout}}."""
    return Call(QUEUE_SETTINGS, (texts(queues),), _json_text)


def hold_session(supervisor_id: int) -> Call[bool]:
    """Takes the supervisor's session advisory lock; false: another session still holds it."""
    return Call(HOLD_SESSION, (str(supervisor_id),), scalar)


def heartbeat(worker_ids: Iterable[int]) -> Call[list[int]]:
    """Beats for workers; returns those that are registered no more."""
    return Call(HEARTBEAT, (bigints(worker_ids),), scalar)


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
    return Call(FORGET_CLAIM, (str(worker_id), str(fence)), scalar)


def forget_unheld(worker_id: int, ids: Iterable[int], leases: Iterable[int]) -> Call[list[int]]:
    """Gives back what a worker is said to hold, but for these; returns the ids of what it did."""
    return Call(FORGET_UNHELD, (str(worker_id), bigints(ids), bigints(leases)), scalar)


def complete(ids: Iterable[int], leases: Iterable[int]) -> Call[list[int]]:
    """Ends attempts as completed; returns the ids that were accepted."""
    return Call(COMPLETE, (bigints(ids), bigints(leases)), scalar)


def complete_with_results(completions: str) -> Call[list[int]]:
    """Ends attempts as completed. `completions`: see `pgqueue.complete_with_results`. Returns the ids accepted."""
    return Call(COMPLETE_WITH_RESULTS, (completions,), scalar)


def note_progress(notes: str) -> Call[None]:
    """Says how far running jobs have come. `notes`: see `pgqueue.note_progress`."""
    return Call(NOTE_PROGRESS, (notes,), nothing)


def note(*, job_id: int, worker_id: int, attempt: int, level: str, line: str) -> Call[None]:
    """Adds a line to what an attempt leaves to be looked at, from outside of its handler."""
    return Call(NOTE, (str(job_id), str(worker_id), str(attempt), level, line), nothing)


def note_reports(reports: str) -> Call[None]:
    """Keeps what attempts that are about to end have left. `reports`: see `pgqueue.note_reports`."""
    return Call(NOTE_REPORTS, (reports,), nothing)


def fail(failures: str) -> Call[list[int]]:
    """Ends attempts as failed. `failures`: see `pgqueue.fail`. Returns the ids that were accepted."""
    return Call(FAIL, (failures,), scalar)


def snooze(ids: Iterable[int], leases: Iterable[int], delays: Iterable[float]) -> Call[list[int]]:
    """Puts running jobs off by seconds, the attempt given back; returns the ids that were accepted."""
    delay = "{" + ",".join(map(repr, delays)) + "}"
    return Call(SNOOZE, (bigints(ids), bigints(leases), delay), scalar)


def release(ids: Iterable[int], leases: Iterable[int]) -> Call[list[int]]:
    """Gives running jobs back, the attempt too; returns the ids that were accepted."""
    return Call(RELEASE, (bigints(ids), bigints(leases)), scalar)


def end_cancelled(
    ids: Iterable[int], leases: Iterable[int], reasons: Iterable[str | None]
) -> Call[list[int]]:
    """Ends attempts as cancelled, each for its reason or the one of the request; returns the ids accepted."""
    return Call(END_CANCELLED, (bigints(ids), bigints(leases), texts(reasons)), scalar)


def end_expired(ids: Iterable[int], leases: Iterable[int]) -> Call[list[int]]:
    """Ends those attempts as cancelled whose job may not start any more; returns their ids."""
    return Call(END_EXPIRED, (bigints(ids), bigints(leases)), scalar)


def cancel_requests(worker_id: int) -> Call[list[tuple[int, int]]]:
    """The running jobs (id, lease) of a worker that somebody has asked to cancel."""
    return Call(CANCEL_REQUESTS, (bigints([worker_id]),), _pairs)


def step_result(job_id: int, name: str) -> Call[str | None]:
    """What a step of a job returned, as JSON; None: it has not been taken."""
    return Call(STEP_RESULT, (str(job_id), name), scalar)


def record_step(job_id: int, lease: int, name: str, result: str) -> Call[None]:
    """Records a step of a running job. Raises `LeaseLost`."""
    return Call(RECORD_STEP, (str(job_id), str(lease), name, result), nothing)


def sync_schedules(owner: str, schedules: str, *, starts: bool) -> Call[list[tuple[str, str]]]:
    """Makes the schedules of an app what its code says; each with what became of it.

    `schedules` is a JSON array of objects keyed like the arguments of `pgqueue.schedule()`; `starts`: the worker was
    started, and not replaced.
    """
    return Call(SYNC_SCHEDULES, (owner, schedules, str(starts)), _pairs)


def lack_task(worker_id: int, task: str) -> Call[None]:
    """Notes on the worker's row that its app does not have `task`."""
    return Call(LACK_TASK, (str(worker_id), task), nothing)


def fall_asleep(worker_id: int, queues: Sequence[str]) -> Call[None]:
    """Registers the worker as asleep: the first step of falling asleep (see `sql/…/sleep.sql`)."""
    return Call(FALL_ASLEEP, (str(worker_id), texts(queues)), nothing)


def writers(relation: str, among: Iterable[str] | None = None) -> Call[list[str]]:
    """The transactions that hold a lock for writing on a table of pgqueue, of all or `among` some."""
    return Call(WRITERS, (relation, None if among is None else texts(among)), scalar)


def wake_up(worker_id: int) -> Call[None]:
    """Takes the worker off the sleepers."""
    return Call(WAKE_UP, (str(worker_id),), nothing)


# A thousand rows at a time: without a Python frame per row.
_claimed_job = partial(tuple.__new__, ClaimedJob)


def _pairs(rows: Rows) -> list[tuple[Any, Any]]:
    return [(row[0], row[1]) for row in rows]


def _claimed(rows: Rows) -> list[ClaimedJob]:
    return list(map(_claimed_job, rows))


def _json_text(rows: Rows) -> str:
    found = rows[0][0]
    return found if isinstance(found, str) else json.dumps(found)  # some drivers read JSON
