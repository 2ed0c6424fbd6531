"""Verbs for many jobs at once, which meet the same ones in opposite orders, do not deadlock: they lock in one order.

A stranger holds the job in the middle. Both verbs have to wait for it, each with what it has locked before; then it is
let go. If the one held what the other wanted next, one of them would end in a deadlock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql.acting import call, claim, empty, enqueue, open_session, pid, register
from tests.support import Databases, wait_for_lock_wait

Session = psycopg.Connection
LEASE = 4711
KEYS = ("c", "b", "a")

BY_IDS: dict[str, dict[str, Any]] = {"cancel": {"reason": "enough"}, "delete_jobs": {}, "discard": {}}
ENDINGS: dict[str, dict[str, Any]] = {
    "complete": {},
    "release": {},
    "snooze": {"delays": [0.0] * 3},
    "end_cancelled": {"reasons": [None] * 3},
}
TABLES = {
    "scheduled": ("scheduled_jobs", ("cancel", "delete_jobs", "replace")),
    "ready": ("ready_jobs", ("cancel", "delete_jobs", "replace")),
    "dead": ("dead_letters", ("cancel", "delete_jobs", "discard")),
    "running": (
        "running_jobs",
        (
            "complete",
            "complete_with_results",
            "fail",
            "release",
            "snooze",
            "end_cancelled",
            "rescue",
            "cancel",
        ),
    ),
}
"""By state, the table, and the verbs that wait for who holds a row of it."""


def act(session: Session, verb: str, worker: int, all_ids: list[int], order: Sequence[int]) -> None:
    """Calls a verb for the jobs in this order."""
    ids = [all_ids[n] for n in order]
    if verb in BY_IDS:
        call(session, verb, ids=ids, **BY_IDS[verb])
    elif verb in ENDINGS:
        call(session, verb, ids=ids, leases=[LEASE] * len(ids), **ENDINGS[verb])
    elif verb == "rescue":
        call(session, verb, worker_id=worker)
    elif verb == "replace":
        unique = {"unique": {"scope": "waiting", "on_conflict": "replace"}}
        jobs = [{"task": "t", "unique_key": KEYS[n], "args": {"new": 1}, "options": unique} for n in order]
        call(session, "enqueue_many", jobs=Jsonb(jobs))
    else:
        argument = {"fail": "failures", "complete_with_results": "completions"}[verb]
        call(session, verb, **{argument: Jsonb([{"id": id, "lease": LEASE, "delay": 0} for id in ids])})


def prepare(session: Session, state: str) -> tuple[int, list[int]]:
    """A worker, and three jobs in a state, of which the last lies first in the table, and has the first key."""
    empty(session)
    worker = register(session)
    delay = 60 if state == "scheduled" else None
    ids = [enqueue(session, delay=delay, unique_key=key) for key in KEYS]
    if state in ("running", "dead"):
        claim(session, worker, 3, fence=LEASE)
    if state == "dead":
        call(session, "fail", failures=Jsonb([{"id": id, "lease": LEASE} for id in ids]))
    for id in reversed(ids):
        session.execute(f"update pgqueue.{TABLES[state][0]} set args = args where id = {id}")
    session.execute(f"analyze pgqueue.{TABLES[state][0]}")
    return worker, ids


@pytest.fixture(scope="module")
def sessions(databases: Databases) -> Iterator[list[Session]]:
    """An observer's, a stranger's, and two that race."""
    dsn = databases.create()
    opened = [open_session(dsn, "-c deadlock_timeout=100ms") for _ in range(4)]
    yield opened
    for session in opened:
        session.close()
    databases.drop(dsn)


BY_KEY = "a bulk takes the holders of its keys by key, these take jobs by id"
"""One of two such transactions may have to be tried again (40P01, in Python `SerializationConflict`)."""
CASES = [
    pytest.param(state, *verbs, marks=pytest.mark.xfail(reason=BY_KEY) if is_by_key else ())
    for state, (_, waiting) in TABLES.items()
    for verbs in itertools.combinations_with_replacement(waiting, 2)
    for is_by_key in [verbs[0] != "replace" and verbs[1] == "replace"]
]


@pytest.mark.parametrize(("state", "first", "second"), CASES)
def test_batches_in_opposite_orders_do_not_deadlock(
    sessions: list[Session], state: str, first: str, second: str
) -> None:
    observer, stranger, *racers = sessions
    worker, ids = prepare(observer, state)
    with ThreadPoolExecutor(max_workers=2) as threads:
        with stranger.transaction():
            stranger.execute(f"select from pgqueue.{TABLES[state][0]} where id = {ids[1]} for update")
            running = []
            for racer, verb, order in zip(racers, (first, second), ((0, 1, 2), (2, 1, 0)), strict=True):
                running.append(threads.submit(act, racer, verb, worker, ids, order))
                wait_for_lock_wait(observer, pid(racer))
        for answer in running:
            answer.result(20)
