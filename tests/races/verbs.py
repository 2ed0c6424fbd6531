"""What is raced: the states that a job may be in, and the verbs, each with the answer that it gives in a word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from tests.sql.acting import STATES, call, claim, enqueue, register, scalar, where

LEASE = 4711
"""The lease of the claim that the races are about."""


@dataclass(frozen=True)
class Job:
    """The job of a race, and who has to do with it."""

    id: int
    queue: str
    worker: int
    """The worker that claims it or has claimed it, with LEASE; rescue is its rescue."""
    other: int
    """The worker that claims beside it."""
    predecessor: int | None = None
    """The running job, with LEASE, that a blocked one waits for."""


Act = Callable[[psycopg.Connection, Job], str]


def _claim(session: psycopg.Connection, job: Job, *, by: int) -> str:
    jobs = claim(session, by, queues=[job.queue], fence=LEASE if by == job.worker else -LEASE)
    return "claimed" if jobs else "nothing"


def _ending(verb: str, **arguments: Any) -> Act:
    def act(session: psycopg.Connection, job: Job) -> str:
        ended = call(session, verb, ids=[job.id], leases=[LEASE], **arguments)
        return "accepted" if ended == [job.id] else "refused"

    return act


def _fail(delay: float | None) -> Act:
    def act(session: psycopg.Connection, job: Job) -> str:
        failure = {"id": job.id, "lease": LEASE, "delay": delay}
        return "accepted" if call(session, "fail", failures=Jsonb([failure])) == [job.id] else "refused"

    return act


def _rescue(session: psycopg.Connection, job: Job) -> str:
    return "taken back" if call(session, "rescue", worker_id=job.worker) else "nothing"


def _heartbeat(session: psycopg.Connection, job: Job) -> str:
    return "not registered" if call(session, "heartbeat", worker_ids=[job.worker]) else "registered"


def _forget(session: psycopg.Connection, job: Job) -> str:
    forgotten = call(session, "forget_claim", worker_id=job.worker, fence=LEASE)
    return "given back" if forgotten == [job.id] else "nothing"


def _outcome(verb: str, **arguments: Any) -> Act:
    def act(session: psycopg.Connection, job: Job) -> str:
        rows = call(session, verb, ids=[job.id], **arguments)
        return str(rows[0]["outcome"]) if rows else "nothing"

    return act


def _listed(verb: str, done: str) -> Act:
    return lambda session, job: done if call(session, verb, ids=[job.id]) == [job.id] else "nothing"


def _promote(session: psycopg.Connection, job: Job) -> str:  # noqa: ARG001 - it takes what is due
    return "promoted" if call(session, "promote", max_jobs=10) else "nothing"


def _end_predecessor(session: psycopg.Connection, job: Job) -> str:
    ended = call(session, "complete", ids=[job.predecessor], leases=[LEASE])
    return "accepted" if ended == [job.predecessor] else "refused"


VERBS: dict[str, Act] = {
    "claim": lambda session, job: _claim(session, job, by=job.worker),
    "complete": _ending("complete"),
    "fail": _fail(0),
    "fail for good": _fail(None),
    "snooze": _ending("snooze", delays=[0.0]),
    "release": _ending("release"),
    "end as cancelled": _ending("end_cancelled", reasons=[None]),
    "rescue": _rescue,
    "heartbeat": _heartbeat,
    "forget the claim": _forget,
    "cancel": _outcome("cancel", reason="enough"),
    "delete": _outcome("delete_jobs"),
    "promote": _promote,
    "retry": _listed("retry", "retried"),
    "replay": _listed("replay", "replayed"),
    "discard": _listed("discard", "discarded"),
    "complete the other": _end_predecessor,
}
SECOND: dict[str, Act] = VERBS | {"claim": lambda session, job: _claim(session, job, by=job.other)}
"""The same, but that another worker claims."""

ACTS: dict[str, tuple[str, ...]] = {
    "scheduled": ("promote", "retry", "cancel", "delete"),
    "ready": ("claim", "cancel", "delete"),
    "blocked": ("complete the other", "cancel", "delete"),
    "running": ("complete", "fail", "fail for good", "snooze", "release", "rescue", "cancel", "delete"),
    "asked": ("complete", "fail", "snooze", "release", "end as cancelled", "rescue", "cancel", "delete"),
    "dead": ("replay", "discard", "cancel", "delete"),
    "finished": ("cancel", "delete"),
}
"""By state, the verbs that have to do with a job in it. asked: it runs, and somebody has asked to cancel it."""

LEADS_TO = {
    "promote": "ready",
    "retry": "ready",
    "claim": "running",
    "complete the other": "ready",
    "fail": "scheduled",
    "snooze": "scheduled",
    "fail for good": "dead",
    "release": "ready",
    "rescue": "ready",
    "replay": "ready",
}
"""Where a verb takes the job, if others have to do with it there. (What was asked to be cancelled is at its end.)"""


SINGLE = [
    ("ready", "claim", "forget the claim"),
    ("running", "rescue", "heartbeat"),
    ("running", "heartbeat", "rescue"),
    ("running", "forget the claim", "complete"),
    ("running", "complete", "forget the claim"),
]
"""Races of verbs that have to do with nothing else."""


def pairs() -> list[tuple[str, str, str]]:
    """Every race: the state, who goes first, who comes while the first's transaction is open.

    The second is each verb for the job as it was, and each for the job as the first will have left it.
    """
    found = []
    for state, verbs in ACTS.items():
        for first in verbs:
            later = ACTS[LEADS_TO[first]] if first in LEADS_TO and state != "asked" else ()
            found += [(state, first, second) for second in dict.fromkeys(verbs + later)]
    return found + SINGLE


def prepare(session: psycopg.Connection, state: str) -> Job:
    """A job in a state, in a database without others."""
    session.execute(_EMPTY)
    worker, other = register(session), register(session)
    session.execute("update pgqueue.heartbeats set beat_at = beat_at - interval '20 s'")
    predecessor = None
    options: dict[str, Any] = {"unique_key": "k", "max_attempts": 3}
    if state == "blocked":
        predecessor = enqueue(session, **options)
        claim(session, worker, fence=LEASE)
        options["options"] = {"unique": {"on_conflict": "follow_up"}}
    if state == "scheduled":
        options["delay"] = 60
    id = enqueue(session, **options)
    job = Job(id, "default", worker, other, predecessor)
    if state == "scheduled":
        session.execute("update pgqueue.scheduled_jobs set run_at = now() - interval '1 s'")
    if state in ("running", "asked", "dead", "finished"):
        VERBS["claim"](session, job)
    if state == "asked":
        VERBS["cancel"](session, job)
    if state == "dead":
        VERBS["fail for good"](session, job)
    if state == "finished":
        VERBS["complete"](session, job)
    return job


_EMPTY = "; ".join(
    f"delete from pgqueue.{table}"
    for table in (*STATES, "job_failures", "unique_keys", "cancel_requests", "workers", "heartbeats")
)


def place(session: psycopg.Connection, job: Job) -> str:
    """Where the job is, and how many of its attempts are counted: `ready/0`."""
    tables = where(session, job.id)
    assert len(tables) <= 1, f"the job is in {tables}"
    holds_key = scalar(
        session,
        "select exists (select from pgqueue.unique_keys where job_id = %s and kind = 'unique')",
        job.id,
    )
    if not tables:
        assert not holds_key
        return "gone"
    columns = "state" if tables[0] == "finished_jobs" else "null"
    row = session.execute(
        f"select {columns}, attempt from pgqueue.{tables[0]} where id = %s",
        [job.id],
    ).fetchone()
    assert row is not None
    state = row[0] or tables[0].removesuffix("_jobs").removesuffix("_letters")
    assert holds_key == (state in ("scheduled", "ready", "running")), "its unique key"
    if state == "running" and scalar(session, "select count(*) from pgqueue.cancel_requests"):
        state = "asked"
    return f"{state}/{row[1]}"
