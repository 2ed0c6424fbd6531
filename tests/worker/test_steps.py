"""A step is taken once over all attempts of its job."""

from __future__ import annotations

from typing import Any

import pytest

from pgqueue import calls
from pgqueue.drivers import run
from tests.worker import step_tasks
from tests.worker.conftest import StartWorker
from tests.worker.harness import History, Rows

APP = "tests.worker.step_tasks:app"


@pytest.mark.parametrize("task", [step_tasks.in_steps, step_tasks.in_steps_sync], ids=lambda task: task.name)
def test_a_later_attempt_gets_what_the_steps_of_an_earlier_one_returned(
    start_worker: StartWorker, rows: Rows, history: History, task: Any
) -> None:
    rows.connection.execute(step_tasks.EFFECTS)
    start_worker(app=APP)
    job = task.enqueue(rows.connection).id
    (row,) = rows.wait_for("completed", job)
    assert row["attempt"] == 2
    assert len(history.entries("charged", job)) == 1
    assert rows.all("select * from effects") == [{"job": job, "step": "book"}]
    first, second = (entry.said for entry in history.entries("steps", job))
    assert first == second == {"receipt": {"receipt": [job, None, "é"]}, "booked": 7}
    recorded = rows.all("select name, attempt from pgqueue.job_steps where job_id = %s order by name", job)
    assert recorded == [{"name": "book", "attempt": 1}, {"name": "charge", "attempt": 1}]


def test_a_step_that_raises_leaves_nothing_and_is_taken_again(start_worker: StartWorker, rows: Rows) -> None:
    rows.connection.execute(step_tasks.EFFECTS)
    start_worker(app=APP)
    job = step_tasks.fails_in_its_step.enqueue(rows.connection).id
    (row,) = rows.wait_for("completed", job)
    assert row["attempt"] == 2
    assert rows.value("select count(*) from effects") == 1


def test_a_step_of_an_attempt_that_has_lost_its_lease_is_rolled_back(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    rows.connection.execute(step_tasks.EFFECTS)
    start_worker(app=APP)
    job = step_tasks.held_in_its_step.enqueue(rows.connection).id
    history.wait_for("written", job)
    (held,) = rows.all("select id, lease from pgqueue.running_jobs")
    run(
        rows.connection,
        calls.fail(f'[{{"id": {job}, "lease": {held["lease"]}, "delay": null, "reason": "failed"}}]'),
    )
    history.open("hold")
    rows.wait_until(
        lambda: (
            not rows.value(
                "select count(*) from pg_stat_activity where application_name = 'pgqueue transactional' and xact_start < now()"
            )
        ),
        message="the step to end",
    )
    assert rows.value("select count(*) from effects") == 0
    assert rows.value("select count(*) from pgqueue.job_steps") == 0


def test_what_cannot_be_a_step_says_so(start_worker: StartWorker, rows: Rows) -> None:
    start_worker(app=APP)
    job = step_tasks.returns_what_is_no_json.enqueue(rows.connection).id
    assert rows.letter(job)["message"] == "step a.result: a set is not JSON: pass a sorted list"
    job = step_tasks.in_a_transaction.enqueue(rows.connection).id
    assert "is transactional: all of it is one step" in rows.letter(job)["message"]


def test_steps_of_a_job_that_has_ended_are_forgotten_after_a_day(rows: Rows) -> None:
    waiting, letter, gone = rows.enqueue("quick"), rows.enqueue("quick"), 10**12
    rows.connection.execute(
        "insert into pgqueue.job_steps (job_id, name, attempt, recorded_at, result) "
        "select id, 'a', 1, now() - age * interval '1 h', 'null' from unnest(%s::bigint[]) as id, unnest('{1,25}'::int[]) as age "
        "on conflict do nothing",
        [[waiting, letter, gone, gone + 1]],
    )
    rows.connection.execute(
        "update pgqueue.job_steps set recorded_at = now() - interval '25 h' where job_id <> %s", [gone + 1]
    )
    run(rows.connection, calls.retain())
    left = rows.all("select distinct job_id from pgqueue.job_steps order by 1")
    assert [row["job_id"] for row in left] == [waiting, letter, gone + 1]
