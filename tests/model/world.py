"""The database beside the model: its sessions, and what its tables hold in the model's words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import psycopg

from tests.model.model import CRASHES_FORGIVEN, Job, Model
from tests.sql.acting import open_session, scalar
from tests.support import wait_until

SESSIONS = 3


class Row(NamedTuple):
    """A job as its table has it; `place` orders the rows of a lane, or those that wait for their time."""

    id: int
    state: str
    queue: str
    task: str
    lane: int
    attempt: int
    max_attempts: int
    crashes: int
    version: int
    unique_key: str | None
    worker: int | None
    lease: int | None
    asked: str | None
    reason: str | None
    place: float


class Tables(NamedTuple):
    """What is committed."""

    jobs: list[Row]
    keys: set[tuple[str, str, str, int]]
    """kind, task, key, job; without idempotency keys that have expired."""
    workers: set[int]


_COMMON = "j.id, {state}, j.queue, j.task, j.lane::int, j.attempt::int, j.max_attempts::int, j.crashes::int, coalesce((j.args ->> 'version')::int, 0), j.unique_key"
_NOBODY = "null::bigint, null::bigint, null::text"
_TABLES = f"""
select {_COMMON.format(state="'scheduled'")}, {_NOBODY}, null::text, extract(epoch from j.run_at)::float8
  from pgqueue.scheduled_jobs as j
union all
select {_COMMON.format(state="'ready'")}, {_NOBODY}, null, j.position from pgqueue.ready_jobs as j
union all
select {_COMMON.format(state="'blocked'")}, {_NOBODY}, null, 0 from pgqueue.blocked_jobs as j
union all
select {_COMMON.format(state="'running'")}, j.worker_id, j.lease, c.reason, null, 0
  from pgqueue.running_jobs as j left join pgqueue.cancel_requests as c on c.job_id = j.id and c.lease = j.lease
union all
select {_COMMON.format(state="j.state")}, j.worker_id, null, null, j.reason, 0 from pgqueue.finished_jobs as j
union all
select {_COMMON.format(state="'dead'")}, j.worker_id, null, null, j.reason, 0 from pgqueue.dead_letters as j
"""
_KEYS = "select kind, task, key, job_id from pgqueue.unique_keys where (expires_at > clock_timestamp()) is not false"


class World:
    """A database, an observer's session, and the sessions that act; they outlive the examples, for their plans' sake."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.observer = open_session(dsn)
        self.sessions = [self._open() for _ in range(SESSIONS)]

    def _open(self) -> psycopg.Connection:
        # Nothing may wait: what would is left out by the model.
        return open_session(self.dsn, "-c lock_timeout=2s -c synchronous_commit=off")

    def lose(self, number: int) -> None:
        """A session's connection breaks; its transaction has ended when this returns."""
        pid = self.sessions[number].info.backend_pid
        assert scalar(self.observer, "select pg_terminate_backend(%s)", pid)
        gone = "select not exists (select from pg_stat_activity where pid = %s)"
        wait_until(lambda: scalar(self.observer, gone, pid), message=f"the end of session {number}")
        self.sessions[number].close()
        self.sessions[number] = self._open()

    def close(self) -> None:
        for session in (self.observer, *self.sessions):
            session.close()

    def rollback(self) -> None:
        for session in self.sessions:
            session.execute("rollback")

    def tables(self) -> Tables:
        """One statement for the jobs, so a job that moves meanwhile would still be there once."""
        with self.observer.pipeline():
            jobs = self.observer.execute(_TABLES)
            keys = self.observer.execute(_KEYS)
            workers = self.observer.execute("select id from pgqueue.workers")
        return Tables(
            [Row(*row) for row in jobs.fetchall()],
            {(kind, task, key, job) for kind, task, key, job in keys.fetchall()},
            {worker for (worker,) in workers.fetchall()},
        )


def looked_at(session: psycopg.Connection, ids: list[int]) -> dict[int, tuple[Any, ...]]:
    """What the session sees of the jobs, by the public function."""
    rows = session.execute(
        "select l.id, l.state, l.attempt, l.crashes, l.priority, l.worker_id from pgqueue.look(%s) as l",
        [ids],
    ).fetchall()
    assert len(rows) == len({row[0] for row in rows})
    return {row[0]: row[1:] for row in rows}


def expected_look(jobs: Iterable[Job]) -> dict[int, tuple[Any, ...]]:
    """What `looked_at` should say."""
    return {job.id: (job.state, job.attempt, job.crashes, job.priority, job.worker) for job in jobs}


def compare(tables: Tables, model: Model) -> None:
    """The tables are what the model says, in the order that it says."""
    found = {row.id: row for row in tables.jobs}
    for id in found.keys() | model.jobs.keys():
        assert id in found, f"job {id} has vanished; it was {model.jobs[id]}"
        assert id in model.jobs, f"there is a job that nobody made: {found[id]}"
        row, job = found[id], model.jobs[id]
        assert job.starts <= job.max_attempts + CRASHES_FORGIVEN, job
        expected = Row(
            id=job.id,
            state=job.state,
            queue=job.queue,
            task=job.task,
            lane=job.lane,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            crashes=job.crashes,
            version=job.version,
            unique_key=job.unique_key,
            worker=job.worker,
            lease=job.lease,
            asked=job.asked,
            reason=job.reason,
            place=row.place,
        )
        assert row == expected
    ready = sorted((r for r in tables.jobs if r.state == "ready"), key=lambda r: (r.queue, r.lane, r.place))
    lines = sorted(
        (job for job in model.jobs.values() if job.state == "ready"),
        key=lambda job: (job.queue, job.lane, job.place),
    )
    assert [row.id for row in ready] == [job.id for job in lines], "the order of the lanes"
    waiting = sorted((r for r in tables.jobs if r.state == "scheduled"), key=lambda r: (r.place, r.id))
    times = sorted(
        (job for job in model.jobs.values() if job.state == "scheduled"), key=lambda job: (job.due, job.place)
    )
    assert [row.id for row in waiting] == [job.id for job in times], "the order of what waits for its time"
    assert tables.workers == model.workers
    keys = {(*job.key, job.id) for job in model.jobs.values() if job.key is not None}
    keys |= {(*key, id) for key, (id, until) in model.idempotent.items() if until > model.hour}
    assert tables.keys == keys


def check(tables: Tables) -> None:
    """What always holds, whatever the model says."""
    ids = [row.id for row in tables.jobs]
    assert len(ids) == len(set(ids)), "a job is in two tables"
    unfinished = [
        (row.task, row.unique_key)
        for row in tables.jobs
        if row.unique_key is not None and row.state in ("scheduled", "ready", "running")
    ]
    assert len(unfinished) == len(set(unfinished)), "two unfinished jobs have one key"
    for row in tables.jobs:
        assert 0 <= row.attempt <= row.max_attempts, row
        assert (row.state == "running") == (row.lease is not None), row
        assert row.state != "running" or (row.attempt >= 1 and row.worker in tables.workers), row
