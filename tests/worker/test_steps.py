"""A step is taken once over all attempts of its job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pgqueue import calls
from pgqueue.drivers import run
from tests.support import Databases
from tests.worker import step_tasks
from tests.worker.conftest import Service, service
from tests.worker.harness import Rows

APP = "tests.worker.step_tasks:app"
CONNECTIONS = 2


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker for the whole file."""
    settings = {"app": APP, "transactional_connections": CONNECTIONS}
    with service(databases, tmp_path_factory, "-c", "6", **settings) as running:
        running.rows.connection.execute(step_tasks.EFFECTS)
        yield running


def effects(rows: Rows, job: int) -> list[str]:
    """The steps of a job that have written."""
    return [row["step"] for row in rows.all("select step from effects where job = %s", job)]


@pytest.mark.parametrize("task", [step_tasks.in_steps, step_tasks.in_steps_sync], ids=lambda task: task.name)
def test_a_later_attempt_gets_what_the_steps_of_an_earlier_one_returned(running: Service, task: Any) -> None:
    rows, history = running.rows, running.history
    job = task.enqueue(rows.connection).id
    (row,) = rows.wait_for("completed", job)
    assert row["attempt"] == 2
    assert len(history.entries("charged", job)) == 1
    assert effects(rows, job) == ["book"]
    first, second = (entry.said for entry in history.entries("steps", job))
    assert first == second == {"receipt": {"receipt": [job, None, "é"]}, "booked": 7}
    recorded = rows.all("select name, attempt from pgqueue.job_steps where job_id = %s order by name", job)
    assert recorded == [{"name": "book", "attempt": 1}, {"name": "charge", "attempt": 1}]


def test_a_step_that_raises_leaves_nothing_and_is_taken_again(running: Service) -> None:
    rows = running.rows
    job = step_tasks.fails_in_its_step.enqueue(rows.connection).id
    (row,) = rows.wait_for("completed", job)
    assert row["attempt"] == 2
    assert effects(rows, job) == ["book"]


def test_a_replayed_job_does_not_take_its_recorded_steps_again(running: Service) -> None:
    rows, history = running.rows, running.history
    job = step_tasks.dead_after_its_step.enqueue(rows.connection).id
    rows.letter(job)
    assert run(rows.connection, calls.replay([job])) == [job]
    rows.wait_for("completed", job)
    assert len(history.entries("charged", job)) == 1
    assert [entry.said for entry in history.entries("went on", job)] == [{"receipt": "receipt"}]


@pytest.mark.parametrize(
    "task", [step_tasks.side_by_side, step_tasks.side_by_side_sync], ids=lambda task: task.name
)
def test_no_more_steps_have_a_connection_at_once_than_the_setting_says(running: Service, task: Any) -> None:
    rows, history = running.rows, running.history
    jobs = [task.enqueue(rows.connection).id for _ in range(6)]
    rows.wait_for("completed", *jobs)
    assert history.most_at_once(jobs) == CONNECTIONS


@pytest.mark.parametrize("task", [step_tasks.nested, step_tasks.nested_sync], ids=lambda task: task.name)
def test_a_step_inside_of_one_that_has_a_connection_is_refused_and_does_not_wait_for_another(
    running: Service, task: Any
) -> None:
    rows = running.rows
    job = task.enqueue(rows.connection).id
    assert rows.letter(job)["message"] == (
        "step inner: it is taken inside of step book, which has a connection; take one after the other"
    )


def test_a_step_of_an_attempt_that_has_lost_its_lease_is_rolled_back(running: Service) -> None:
    rows, history = running.rows, running.history
    job = step_tasks.held_in_its_step.enqueue(rows.connection).id
    history.wait_for("written", job)
    (held,) = rows.all("select id, lease from pgqueue.running_jobs where id = %s", job)
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
    assert effects(rows, job) == []
    assert rows.value("select count(*) from pgqueue.job_steps where job_id = %s", job) == 0


def test_what_cannot_be_a_step_says_so(running: Service) -> None:
    rows = running.rows
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
