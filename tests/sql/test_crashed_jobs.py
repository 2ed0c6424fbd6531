"""What is told of the jobs of workers that have died: `pgqueue.crashed_jobs`."""

from __future__ import annotations

import json

import psycopg
import pytest

from pgqueue import calls
from pgqueue.drivers import run
from tests.sql.acting import call, claim, claimed, enqueue_many, register
from tests.sql.test_plans import explaining, nodes, told


def crashed(connection: psycopg.Connection, *worker_ids: int) -> list[calls.CrashedJob]:
    return run(connection, calls.crashed_jobs(worker_ids))


def test_the_jobs_that_had_started_are_told_and_no_others(connection: psycopg.Connection) -> None:
    dead, other = register(connection), register(connection)
    started = claimed(connection, dead, task="send", args={"user_id": 7}, max_attempts=4)
    claimed(connection, dead)  # in its hand, not begun
    claimed(connection, other)
    call(connection, "rescue", worker_id=dead, started=[started.id])

    (job,) = crashed(connection, dead)
    assert job == calls.CrashedJob(
        id=started.id,
        task="send",
        queue="default",
        args='{"user_id": 7}',
        attempt=1,
        max_attempts=4,
        crashes=1,
        error="pgqueue.Crashed",
        message=job.message,
        dead_reason=None,
    )
    assert crashed(connection, other) == crashed(connection) == []


@pytest.mark.parametrize("then", ["stays", "is claimed", "is completed", "fails", "is put off"])
def test_a_job_is_told_of_wherever_it_is_by_now(connection: psycopg.Connection, then: str) -> None:
    worker, other = register(connection), register(connection)
    started = claimed(connection, worker, args={"n": 1})
    call(connection, "rescue", worker_id=worker, started=[started.id])
    if then != "stays":
        (job,) = claim(connection, other)
        failure = {"id": job.id, "lease": job.lease, "error": "E", "message": "", "delay": None}
        match then:
            case "is completed":
                run(connection, calls.complete([job.id], [job.lease]))
            case "fails":
                run(connection, calls.fail(json.dumps([failure])))
            case "is put off":
                run(connection, calls.snooze([job.id], [job.lease], [60.0]))

    (told_of,) = crashed(connection, worker)
    assert (told_of.id, told_of.args, told_of.attempt) == (started.id, '{"n": 1}', 1)
    assert told_of.dead_reason is None  # also when it is dead by now: that came later


def test_a_dead_letter_that_the_crash_has_made_says_so(connection: psycopg.Connection) -> None:
    worker = register(connection)
    job = claimed(connection, worker, options={"on_crash": "dead"})
    call(connection, "rescue", worker_id=worker, started=[job.id])

    (told_of,) = crashed(connection, worker)
    assert (told_of.id, told_of.dead_reason) == (job.id, "crashed")


def test_it_looks_by_index_among_many_failures(connection: psycopg.Connection, database: str) -> None:
    worker = register(connection)
    connection.execute(
        """insert into pgqueue.job_failures (job_id, worker_id, failed_at, day, attempt, queue, task, error, message,
                                             fingerprint)
           select n, %s, now(), pgqueue.history_day('job_failures'), 1, 'q', 't', 'E', '', 'other'
             from generate_series(1, 50000) as n""",
        [worker],
    )
    enqueue_many(connection, [{"task": "t"}] * 1000)
    jobs = claim(connection, worker, 3)
    call(connection, "rescue", worker_id=worker, started=[job.id for job in jobs])

    with explaining(database) as session, told(session) as statements:
        assert len(crashed(session, worker)) == 3
    looked = [
        node
        for statement in statements
        for node in nodes(statement.plan)
        if str(node.get("Relation Name", "")).startswith(("job_failures", "ready_jobs"))
    ]
    assert looked
    assert {node["Node Type"] for node in looked} <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in looked) < 50
