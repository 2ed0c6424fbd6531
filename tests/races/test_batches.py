"""Verbs for many jobs at once, which meet the same ones in opposite orders, do not deadlock: they lock in one order.

The order stands in sql/README.md. A stranger holds the job in the middle. Both verbs have to wait for it, each with what it has locked before; then it is
let go. If the one held what the other wanted next, one of them would end in a deadlock.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.errors import SerializationConflict
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
POLICIES = {
    "replace": "waiting",
    "debounce": "waiting",
    "raise_priority": "waiting",
    "keep": "waiting",
    "follow_up": "unfinished",
}
"""Bulks that lock the holders of their keys, by what they do to those, with their scope."""
TABLES = {
    "scheduled": ("scheduled_jobs", ("cancel", "delete_jobs", "replace", "debounce", "keep")),
    "ready": ("ready_jobs", ("cancel", "delete_jobs", "replace", "raise_priority", "keep")),
    "blocked": ("blocked_jobs", ("cancel", "delete_jobs", "follow_up")),
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
    elif verb in POLICIES:
        unique: dict[str, Any] = {"scope": POLICIES[verb], "on_conflict": verb}
        job: dict[str, Any] = {"task": "t", "args": {"new": 1}, "priority": 0, "options": {"unique": unique}}
        if verb == "debounce":
            job["delay"] = unique["max_delay"] = 90
        jobs = [job | {"unique_key": KEYS[n]} for n in order]
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
    if state == "blocked":
        claim(session, worker, 3)
        follow_up = {"unique": {"on_conflict": "follow_up"}}
        ids = [enqueue(session, unique_key=key, options=follow_up) for key in KEYS]
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


CASES = [
    (state, *verbs)
    for state, (_, waiting) in TABLES.items()
    for verbs in itertools.combinations_with_replacement(waiting, 2)
    if verbs != ("keep", "keep") and verbs != ("follow_up", "follow_up")  # these wait for nobody
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


def test_a_transaction_that_takes_keys_one_by_one_may_have_to_be_run_again(sessions: list[Session]) -> None:
    """What is left, and documented: the order of its calls is the application's. One of the two gets its way."""
    observer, _, *racers = sessions
    prepare(observer, "ready")
    replace = json.dumps({"unique": {"scope": "waiting", "on_conflict": "replace"}})

    def enqueue_in_turn(racer: Session, keys: Sequence[str], args: str) -> bool:
        try:
            with racer.transaction():
                run(racer, calls.enqueue(task="t", args=args, unique_key=keys[0], options=replace))
                both_have_one.wait(20)
                run(racer, calls.enqueue(task="t", args=args, unique_key=keys[1], options=replace))
        except SerializationConflict:
            return False
        return True

    both_have_one = threading.Barrier(2)
    with ThreadPoolExecutor(max_workers=2) as threads:
        running = [
            threads.submit(enqueue_in_turn, racer, keys, args)
            for racer, keys, args in zip(
                racers, (("a", "b"), ("b", "a")), ('{"by": 1}', '{"by": 2}'), strict=True
            )
        ]
        ended = [answer.result(30) for answer in running]
    assert sorted(ended) == [False, True]
    winner = {"by": 1 + ended.index(True)}
    changed = observer.execute(
        "select args from pgqueue.ready_jobs where unique_key in ('a', 'b')"
    ).fetchall()
    assert changed == [(winner,), (winner,)]
