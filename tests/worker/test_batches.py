"""A batch task's handler gets many jobs at once; each of them ends by itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import pgqueue
from pgqueue import BatchJob, calls
from pgqueue.drivers import run
from tests.support import Databases
from tests.worker import batch_tasks
from tests.worker.batch_tasks import Document
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import History, Rows

APP = "tests.worker.batch_tasks:app"


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker for all tests that do it no harm. Enqueue in one transaction what is to be one batch."""
    with service(databases, tmp_path_factory, "-c", "40", app=APP) as running:
        yield running


@pytest.mark.parametrize("task", [batch_tasks.index, batch_tasks.index_sync], ids=lambda task: task.name)
def test_a_full_batch_runs_at_once_and_the_rest_after_its_wait(running: Service, task: Any) -> None:
    rows = running.rows
    jobs = batch_tasks.app.enqueue_many(rows.connection, [task.item(Document(n)) for n in range(25)])
    rows.wait_for("completed", *(job.id for job in jobs))
    starts = running.history.entries("start", *(job.id for job in jobs))
    assert sorted(entry.said["number"] for entry in starts) == list(range(25))
    assert sorted(entry.said["batch"] for entry in starts) == [5] * 5 + [10] * 20


def test_a_batch_is_no_larger_than_the_worker_has_slots(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    items = [batch_tasks.index.item(Document(n)) for n in range(12)]
    jobs = batch_tasks.app.enqueue_many(rows.connection, items)
    start_worker("-c", "4", app=APP)
    rows.wait_for("completed", *(job.id for job in jobs))
    assert max(entry.said["batch"] for entry in history.entries("start")) <= 4


@pytest.mark.parametrize("task", [batch_tasks.index, batch_tasks.index_sync], ids=lambda task: task.name)
def test_each_job_of_a_batch_has_its_own_outcome(running: Service, task: Any) -> None:
    rows = running.rows
    outcomes = ["complete", "retry", "snooze", "fail", "cancel", "error"]
    with rows.connection.transaction():
        ids = {
            outcome: task.enqueue(rows.connection, Document(number, outcome)).id
            for number, outcome in enumerate(outcomes)
        }
    rows.wait_for("completed", ids["complete"])
    expected = {
        "complete": ("completed", 1), "retry": ("scheduled", 1), "snooze": ("scheduled", 0), "fail": ("dead", 1),
        "cancel": ("cancelled", 1), "error": ("scheduled", 1),
    }  # fmt: skip
    for outcome, id in ids.items():
        state, attempt = expected[outcome]
        (row,) = rows.wait_for(state, id)
        assert row["attempt"] == attempt, outcome
    assert {entry.said["batch"] for entry in running.history.entries("start", *ids.values())} == {6}
    query = "select message from pgqueue.job_failures where job_id = %s"
    assert rows.value(query, ids["error"]) == "of this one alone"


def test_an_error_of_the_handler_is_every_jobs_that_had_not_ended(running: Service) -> None:
    rows = running.rows
    with rows.connection.transaction():
        ended = batch_tasks.raises.enqueue(rows.connection, Document(1, "cancel")).id
        others = [batch_tasks.raises.enqueue(rows.connection, Document(n)).id for n in (2, 3)]
    rows.wait_for("cancelled", ended)
    rows.wait_for("scheduled", *others)
    query = "select job_id, message from pgqueue.job_failures where job_id = any(%s) order by job_id"
    messages = rows.all(query, [ended, *others])
    assert [(row["job_id"], row["message"]) for row in messages] == [
        (id, "the index is away") for id in others
    ]


def test_a_batch_that_takes_too_long_fails_as_a_whole(running: Service) -> None:
    rows = running.rows
    with rows.connection.transaction():
        ids = [batch_tasks.too_slow.enqueue(rows.connection, Document(n)).id for n in range(4)]
    for id in ids:
        assert rows.letter(id)["error"] == "pgqueue.errors.TimedOut"


def test_a_batch_that_runs_for_nobody_any_more_is_cancelled(running: Service) -> None:
    rows, history = running.rows, running.history
    with rows.connection.transaction():
        ids = [batch_tasks.held.enqueue(rows.connection, Document(n)).id for n in range(3)]
    history.wait_for("start", *ids, count=3)
    run(rows.connection, calls.cancel(ids))
    rows.wait_for("cancelled", *ids)
    history.wait_for("cancelled", *ids, count=3)


def test_a_job_that_is_cancelled_leaves_its_batch(running: Service) -> None:
    rows, history = running.rows, running.history
    gathering = batch_tasks.held.enqueue(rows.connection, Document(1)).id
    rows.wait_for("running", gathering)
    run(rows.connection, calls.cancel([gathering]))
    rows.wait_for("cancelled", gathering)
    ids = [batch_tasks.held.enqueue(rows.connection, Document(n)).id for n in (2, 3, 4)]
    history.wait_for("start", *ids, count=3)
    run(rows.connection, calls.cancel(ids[:1]))
    rows.wait_for("cancelled", ids[0])
    history.open("hold")  # for all tests after this one
    rows.wait_for("completed", *ids[1:])
    assert [entry.job for entry in history.entries("was cancelled", *ids)] == ids[:1]
    assert history.entries("start", gathering) == []


def test_a_worker_that_stops_gives_a_batch_back(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "10", app=APP, drain_limit=0.3)
    ids = [
        task.enqueue(rows.connection, Document(n)).id
        for task in (batch_tasks.held, batch_tasks.held_sync)
        for n in range(3)
    ]
    history.wait_for("start", *ids, count=6)
    worker.stop()
    assert worker.wait() == 0
    assert rows.states(*ids) == ["ready"] * 6
    assert rows.value("select max(attempt) from pgqueue.ready_jobs") == 0


def test_a_handler_of_the_wrong_shape_is_refused() -> None:
    app = pgqueue.App()

    async def takes_one(job: BatchJob[int]) -> None: ...
    async def takes_untyped(jobs: list[Any]) -> None: ...
    async def takes_two(jobs: list[BatchJob[int]], more: int) -> None: ...

    for function in (takes_one, takes_untyped, takes_two):
        with pytest.raises(pgqueue.errors.ConfigurationError, match=r"list\[pgqueue.BatchJob"):
            app.batch_task(size=2)(function)  # type: ignore[arg-type]
    with pytest.raises(
        pgqueue.errors.InvalidOption, match="size: expected an integer from 1 to 10,000, got 0"
    ):
        app.batch_task(size=0)(batch_tasks.index.function)
    with pytest.raises(pgqueue.errors.ConfigurationError, match="cannot be transactional"):
        app.batch_task(size=2, transactional=True)(batch_tasks.index.function)


def test_an_item_is_checked_at_the_enqueue(rows: Rows) -> None:
    with pytest.raises(pgqueue.errors.InvalidArgs, match="item"):
        batch_tasks.index.enqueue(rows.connection, {"number": "seven"})  # type: ignore[arg-type]
    assert rows.value("select count(*) from pgqueue.ready_jobs") == 0


def test_a_batch_task_is_called_as_the_function_that_it_is() -> None:
    job = calls.ClaimedJob(1, 1, "q", 11, 1, "index", "{}", 1, 2, 0, None)
    batched = BatchJob(Document(1, "cancel"), job)
    coroutine = batch_tasks.raises([batched])
    assert inspect.iscoroutine(coroutine)
    coroutine.close()
    with pytest.raises(
        TypeError, match=r"outcome: expected an exception such as pgqueue.Retry\(\), got 'no'"
    ):
        batched.end("no")  # type: ignore[arg-type]
