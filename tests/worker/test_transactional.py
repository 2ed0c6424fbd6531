"""Transactional tasks: what the handler writes, its children and the completion commit together or not at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from pgqueue.task import Task
from tests.support import Databases
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import History, Rows
from tests.worker.transactional_tasks import EFFECTS, KINDS

APP = "tests.worker.transactional_tasks:app"
every_kind = pytest.mark.parametrize("task", KINDS, ids=lambda task: task.name)
AnyTask = Task[..., object]


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker, with more slots than connections for transactional jobs."""
    settings = {"app": APP, "transactional_connections": 3}
    with service(databases, tmp_path_factory, "-c", "6", **settings) as running:
        running.rows.connection.execute(EFFECTS)
        yield running


def effects(rows: Rows, id: int) -> int:
    """How many rows a job's handler has committed."""
    count: int = rows.value("select count(*) from public.effects where job = %s", id)
    return count


def children(rows: Rows) -> int:
    """How many follow-ups have been committed, of all jobs."""
    count: int = rows.value("select count(*) from pgqueue.scheduled_jobs where task = 'quick'")
    return count


@every_kind
def test_writes_children_and_completion_are_one_transaction(task: AnyTask, running: Service) -> None:
    rows, history = running.rows, running.history
    before = children(rows)
    job = task.enqueue(rows.connection, gate=task.name)

    history.wait_for("wrote", job.id)
    assert (effects(rows, job.id), children(rows), rows.states(job.id)) == (0, before, ["running"])
    history.open(task.name)

    rows.wait_for("completed", job.id)
    assert (effects(rows, job.id), children(rows)) == (1, before + 1)
    # the same transaction, not three that came soon after each other
    writers = rows.all(
        """select xmin::text from public.effects where job = %s
            union select xmin::text from pgqueue.finished_jobs where id = %s
            union select xmin::text from pgqueue.scheduled_jobs
                   where id = (select max(id) from pgqueue.scheduled_jobs where task = 'quick')""",
        job.id,
        job.id,
    )
    assert len(writers) == 1


@every_kind
def test_an_exception_rolls_all_back_and_is_recorded(task: AnyTask, running: Service) -> None:
    rows = running.rows
    before = children(rows)
    job = task.enqueue(rows.connection, then="raise")

    (row,) = rows.wait_for("scheduled", job.id)
    assert row["attempt"] == 1
    assert (effects(rows, job.id), children(rows)) == (0, before)
    (failure,) = rows.all("select * from pgqueue.job_failures where job_id = %s", job.id)
    assert (failure["error"], failure["message"]) == ("ValueError", "on second thoughts")


@pytest.mark.parametrize("task", KINDS[:2], ids=lambda task: task.name)
@pytest.mark.parametrize("then", ["commit", "rollback"])
def test_a_connection_refuses_to_commit_or_roll_back_inside(
    task: AnyTask, then: str, running: Service
) -> None:
    rows = running.rows
    before = children(rows)
    job = task.enqueue(rows.connection, then=then)

    (row,) = rows.wait_for("scheduled", job.id)
    assert row["attempt"] == 1
    assert (effects(rows, job.id), children(rows)) == (0, before)
    assert running.history.entries("wrote", job.id) == []


@pytest.mark.parametrize("task", KINDS[2:], ids=lambda task: task.name)
def test_a_sessions_commit_does_not_commit_before_the_completion(task: AnyTask, running: Service) -> None:
    rows, history = running.rows, running.history
    before = children(rows)
    job = task.enqueue(rows.connection, then="commit", gate=f"commit {task.name}")

    history.wait_for("wrote", job.id)
    assert (effects(rows, job.id), children(rows), rows.states(job.id)) == (0, before, ["running"])
    history.open(f"commit {task.name}")
    rows.wait_for("completed", job.id)
    assert (effects(rows, job.id), children(rows)) == (1, before + 1)


@pytest.mark.parametrize(
    ("task", "then"),
    [
        *[(task, "swallow an error") for task in KINDS],
        *[(task, "rollback") for task in KINDS[2:]],
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_transaction_that_cannot_commit_completes_nothing(
    task: AnyTask, then: str, running: Service
) -> None:
    # the handler returns as if all were well, but what it wrote is gone
    rows = running.rows
    before = children(rows)
    job = task.enqueue(rows.connection, then=then)

    (row,) = rows.wait_for("scheduled", job.id)
    assert row["attempt"] == 1
    assert len(running.history.entries("end", job.id)) == 1
    assert (effects(rows, job.id), children(rows)) == (0, before)


@pytest.mark.parametrize("task", KINDS[:2], ids=lambda task: task.name)
def test_a_commit_in_sql_is_an_error_that_says_what_to_do(task: AnyTask, running: Service) -> None:
    rows = running.rows
    job = task.enqueue(rows.connection, then="commit in SQL")

    rows.wait_for("scheduled", job.id)
    (failure,) = rows.all("select * from pgqueue.job_failures where job_id = %s", job.id)
    assert "ended its transaction" in failure["message"]


def test_no_more_transactions_are_open_than_the_setting_says(running: Service) -> None:
    rows, history = running.rows, running.history
    jobs = [task.enqueue(rows.connection, gate="limit").id for task in (*KINDS, *KINDS)]

    history.wait_for("wrote", *jobs, count=3)
    open_now = rows.value(
        "select count(*) from pg_stat_activity where application_name = 'pgqueue transactional' "
        "and datname = current_database() and state = 'idle in transaction'"
    )
    history.open("limit")
    rows.wait_for("completed", *jobs)
    assert open_now == 3
    assert history.most_at_once(jobs) == 3


@every_kind
def test_a_transaction_whose_lease_was_lost_commits_nothing(task: AnyTask, running: Service) -> None:
    rows, history = running.rows, running.history
    before = children(rows)
    job = task.enqueue(rows.connection, gate=f"lost {task.name}")
    history.wait_for("wrote", job.id)

    # somebody gives the job back while it runs; it is claimed again, and its second run goes through
    release = "select pgqueue.release(array[id], array[lease]) from pgqueue.running_jobs where id = %s"
    assert rows.value(release, job.id) == [job.id]
    rows.wait_for("completed", job.id)
    finished = rows.job(job.id)
    history.open(f"lost {task.name}")
    running.worker.wait_for("lease.lost", job_id=job.id, dropped="transaction")

    assert len(history.entries("end", job.id)) == 2
    assert (effects(rows, job.id), children(rows)) == (1, before + 1)
    assert rows.job(job.id) == finished
    assert rows.all("select * from pgqueue.job_failures where job_id = %s", job.id) == []


def test_a_worker_that_was_declared_dead_commits_nothing_any_more(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    rows.connection.execute(EFFECTS)
    # slow beats: the transactions end before the supervisor hears of the loss
    worker = start_worker("-c", "4", app=APP, lease=60, beat=15, upkeep_interval=15)
    jobs = [task.enqueue(rows.connection, gate="lost").id for task in KINDS]
    history.wait_for("wrote", *jobs, count=4)

    (id,) = worker.children()
    assert rows.value("select pgqueue.rescue(%s)", id) == 4
    history.open("lost")

    # its process ends, the next one runs the jobs again, and only that one's writes are there
    worker.wait_for("worker.declared_dead", worker=id)
    done = rows.wait_for("completed", *jobs)
    assert [(row["attempt"], row["crashes"]) for row in done] == [(2, 1)] * 4
    assert [effects(rows, id) for id in jobs] == [1, 1, 1, 1]
    assert children(rows) == 4
    assert history.starts_by_job() == dict.fromkeys(jobs, 2)


def test_a_worker_killed_inside_its_transactions_has_each_effect_once(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    rows.connection.execute(EFFECTS)
    worker = start_worker("-c", "4", app=APP)
    jobs = [task.enqueue(rows.connection, gate="never opened").id for task in KINDS]
    history.wait_for("wrote", *jobs, count=4)

    (pid,) = worker.children().values()
    os.kill(pid, signal.SIGKILL)

    done = rows.wait_for("completed", *jobs)
    assert [(row["attempt"], row["crashes"]) for row in done] == [(2, 1)] * 4
    assert [effects(rows, id) for id in jobs] == [1, 1, 1, 1]
    assert children(rows) == 4
    assert history.starts_by_job() == dict.fromkeys(jobs, 2)


def test_a_rollback_on_a_lost_session_is_a_line_of_the_log_like_any_other(running: Service) -> None:
    """psycopg says so through Python's `logging`: among lines of JSON there are no others."""
    rows, history, worker = running.rows, running.history, running.worker
    job = KINDS[0].enqueue(rows.connection, then="raise", gate="lost")
    history.wait_for("wrote", job.id)
    ended = rows.value(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database()"
        " and application_name = 'pgqueue transactional' and state = 'idle in transaction'"
    )
    assert ended
    history.open("lost")

    (line,) = worker.wait_for("stdlib.logged", logger="psycopg.transaction")
    assert (line["level"], line["message"].startswith("error ignored in rollback")) == ("warning", True)
    rows.wait_for("scheduled", job.id)
    assert worker.noise == []
