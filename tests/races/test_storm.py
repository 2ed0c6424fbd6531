"""Producers, workers, upkeep and operators at the same few jobs, without any order: what pairs do not show.

Nothing waits for anybody on purpose here, so a run that passes proves little, and one that fails is a bug. Each session
draws its acts from a seed of its own; what they meet is up to the scheduler. `PGQUEUE_STORM_ACTS=20000` for a long one.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgqueue.errors import UnknownWorker
from tests.model.world import World, check
from tests.sql.acting import call, claim, open_session, register
from tests.support import Databases

ACTS = int(os.environ.get("PGQUEUE_STORM_ACTS", "300"))
"""How many each session does."""
QUEUES = ("a", "b")
KEYS = ("k", "l", None, None)


class Storm:
    """What the sessions share: which jobs and workers there have been, and what was accepted."""

    def __init__(self, dsn: str):
        self.dsn = dsn
        self.jobs: list[int] = []
        self.workers: list[int] = []
        self.fences = itertools.count(1)
        self.claimed: list[tuple[int, int]] = []
        self.ended: list[tuple[int, int]] = []
        self.deleted: list[int] = []
        self.begin = threading.Barrier(6)

    def session(self, act: Callable[[psycopg.Connection, random.Random], None], seed: int) -> None:
        chance = random.Random(seed)
        with open_session(self.dsn, "-c deadlock_timeout=200ms") as session:
            self.begin.wait(20)
            for _ in range(ACTS):
                act(session, chance)

    def some(self, chance: random.Random) -> list[int]:
        """Jobs of late, in any order."""
        recent = self.jobs[-12:]
        return chance.sample(recent, min(len(recent), chance.randint(1, 5)))

    def produce(self, session: psycopg.Connection, chance: random.Random) -> None:
        options = {"queue": chance.choice(QUEUES), "unique_key": chance.choice(KEYS), "max_attempts": 2}
        (row,) = call(session, "enqueue", task="t", delay=chance.choice((None, 0.0, 0.01)), **options)
        if row["created"]:
            self.jobs.append(row["id"])

    def work(self, session: psycopg.Connection, chance: random.Random) -> None:
        worker = chance.choice(self.workers[-3:])
        queues = chance.sample(QUEUES, 2)
        try:
            taken = claim(session, worker, chance.randint(1, 4), queues=queues, fence=next(self.fences))
        except UnknownWorker:  # it was rescued
            self.workers.append(register(session, *QUEUES))
            return
        jobs = [(job.id, job.lease) for job in taken]
        self.claimed += jobs
        chance.shuffle(jobs)
        held = {"ids": [id for id, _ in jobs], "leases": [lease for _, lease in jobs]}
        match chance.randrange(6):
            case 0 | 1:
                ended = call(session, "complete", **held)
            case 2:
                ended = call(session, "release", **held)
            case 3:
                ended = call(session, "snooze", **held, delays=[0.005] * len(jobs))
            case 4:
                failures = [
                    {"id": id, "lease": lease, "delay": chance.choice((None, 0))} for id, lease in jobs
                ]
                ended = call(session, "fail", failures=Jsonb(failures))
            case _:
                return  # it dies with them
        self.ended += [pair for pair in jobs if pair[0] in ended]

    def keep(self, session: psycopg.Connection, chance: random.Random) -> None:
        match chance.randrange(4):
            case 0 | 1:
                call(session, "promote", max_jobs=chance.choice((1, 100)))
            case 2:
                call(session, "prove_floors")
            case _:
                call(session, "rescue", worker_id=chance.choice(self.workers))

    def operate(self, session: psycopg.Connection, chance: random.Random) -> None:
        ids = self.some(chance)
        verb = chance.choice(("cancel", "cancel", "delete_jobs", "retry", "replay", "replay", "discard"))
        if verb in ("cancel", "delete_jobs"):
            # Of several jobs that move meanwhile each holds what it has found so far: two such calls may deadlock.
            ids = ids[:1]
        outcomes = call(session, verb, ids=ids)
        if verb == "delete_jobs":
            self.deleted += [row["id"] for row in outcomes if row["outcome"] == "deleted"]


@pytest.fixture
def storm(databases: Databases) -> Iterator[Storm]:
    """A storm before its beginning, with a worker."""
    dsn = databases.create()
    storm = Storm(dsn)
    with open_session(dsn) as session:
        storm.workers.append(register(session, *QUEUES))
    yield storm
    databases.drop(dsn)


def test_whatever_meets_a_job_has_one_place_and_an_attempt_one_ending(storm: Storm) -> None:
    acts = (storm.produce, storm.work, storm.work, storm.keep, storm.operate, storm.operate)
    with ThreadPoolExecutor(max_workers=len(acts)) as threads:
        for session in [threads.submit(storm.session, act, seed) for seed, act in enumerate(acts)]:
            session.result(120 + ACTS)
    assert not [pair for pair, times in Counter(storm.claimed).items() if times > 1]
    assert not [pair for pair, times in Counter(storm.ended).items() if times > 1]
    world = World(storm.dsn)
    tables = world.tables()
    world.close()
    check(tables)
    assert {row.id for row in tables.jobs} == set(storm.jobs) - set(storm.deleted)
    assert len(storm.ended) > ACTS / 10
