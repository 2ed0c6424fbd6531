"""Hooks of real jobs: what they are told, where, and that nothing they do harms a job."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import pgqueue
from pgqueue import App
from pgqueue.hooks import Enqueued
from pgqueue.settings import Settings
from tests.support import Databases, wait_until
from tests.worker import hook_tasks as tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import History, Rows

APP = "tests.worker.hook_tasks:app"


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker for the tests that harm none."""
    with service(databases, tmp_path_factory, "-c", "4", app=APP) as running:
        yield running


def events(history: History, id: int) -> list[str]:
    """What hooks were told of a job, in order."""
    return [entry.said["event"] for entry in history.entries("told", id)]


def said(history: History, id: int, event: str) -> dict[str, Any]:
    """What the hook was told at one event."""
    (found,) = [entry.said for entry in history.entries("told", id) if entry.said["event"] == event]
    return found


def wait_for(history: History, id: int, last: str, count: int) -> list[str]:
    """Waits until `count` events were told, the last of which is `last`."""
    history.wait_for("told", id, count=count)
    told = events(history, id)
    assert told[-1] == last, told
    return told


def wait_until_told(history: History, id: int, *wanted: str) -> None:
    """Waits until hooks were told of these events of a job, and maybe of others."""
    wait_until(lambda: set(wanted) <= set(events(history, id)), message=f"{wanted} of job {id} to be told")


# What a worker tells --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [tasks.work, tasks.work_sync, tasks.apart], ids=lambda task: task.name)
def test_a_job_that_succeeds_has_started_and_succeeded(task: Any, running: Service) -> None:
    id = task.enqueue(running.rows.connection).id

    told = wait_for(running.history, id, "succeeded", 2)
    assert told == ["started", "succeeded"]
    assert running.rows.states(id) == ["completed"]  # already when the hook was told
    (entry, _) = running.history.entries("told", id)
    assert (entry.attempt, entry.said["task"], entry.said["args"]) == (1, task.name, {})
    assert entry.pid in running.worker.children().values()  # not the process of the task


def test_a_job_that_fails_is_told_of_with_what_comes_next(running: Service) -> None:
    id = tasks.work.enqueue(running.rows.connection, fail=1).id

    assert wait_for(running.history, id, "succeeded", 5) == [
        *("started", "failed", "retried"),
        *("started", "succeeded"),
    ]
    failed = said(running.history, id, "failed")
    assert (failed["error"], failed["message"], failed["retry_in"]) == ("ValueError", "not yet", 0.01)
    assert failed["args"] == {"fail": 1}
    assert said(running.history, id, "retried")["delay"] == 0.01
    assert [entry.attempt for entry in running.history.entries("told", id)] == [1, 1, 1, 2, 2]


def test_the_last_failure_makes_a_dead_letter(running: Service) -> None:
    id = tasks.work.enqueue(running.rows.connection, fail=3).id

    told = wait_for(running.history, id, "dead", 9)
    assert told == ["started", "failed", "retried"] * 2 + ["started", "failed", "dead"]
    dead = said(running.history, id, "dead")
    assert (dead["reason"], dead["error"]) == ("exhausted", "ValueError")
    assert running.rows.states(id) == ["dead"]


def test_args_that_do_not_fit_make_a_dead_letter_too(running: Service) -> None:
    id = running.rows.enqueue("work", '{"fail": "often"}')

    assert wait_for(running.history, id, "dead", 3) == ["started", "failed", "dead"]
    dead = said(running.history, id, "dead")
    assert (dead["reason"], dead["args"]) == ("invalid_args", {"fail": "often"})


def test_a_cancelled_job_is_told_of_with_the_handlers_reason(running: Service) -> None:
    id = tasks.withdraw.enqueue(running.rows.connection).id

    assert wait_for(running.history, id, "cancelled", 2) == ["started", "cancelled"]
    assert said(running.history, id, "cancelled")["reason"] == "the order was withdrawn"


def test_a_job_that_is_cancelled_from_outside_while_it_runs_is_told_of(running: Service) -> None:
    id = tasks.work.enqueue(running.rows.connection, gate="never").id
    running.history.wait_for("start", id)
    App(dsn=running.rows.dsn, settings=Settings()).cancel(id)

    assert wait_for(running.history, id, "cancelled", 2) == ["started", "cancelled"]
    assert said(running.history, id, "cancelled")["reason"] is None


def test_a_job_that_has_expired_is_cancelled_and_has_not_started(running: Service) -> None:
    id = tasks.work.using(expires=0.0).enqueue(running.rows.connection).id

    assert wait_for(running.history, id, "cancelled", 1) == ["cancelled"]
    assert said(running.history, id, "cancelled")["reason"] == "expired"


def test_a_transactional_job_has_succeeded_when_its_transaction_is_committed(running: Service) -> None:
    id = tasks.transfer.enqueue(running.rows.connection).id

    told = wait_for(running.history, id, "succeeded", 3)
    assert told == ["started", "succeeded", "succeeded"]  # the app's hook, and the task's own
    assert running.history.entries("told", id)[-1].said["state"] == "completed"


def test_a_transactional_job_whose_commit_fails_has_not_succeeded(running: Service) -> None:
    id = tasks.transfer.using(max_attempts=1).enqueue(running.rows.connection, deferred=True).id

    assert wait_for(running.history, id, "dead", 3) == ["started", "failed", "dead"]
    assert "UniqueViolation" in said(running.history, id, "failed")["error"]


def test_an_ending_that_is_not_accepted_is_not_told(running: Service) -> None:
    id = tasks.work_twice.enqueue(running.rows.connection).id
    running.history.wait_for("start", id)
    take_back = "select pgqueue.release(array[id], array[lease]) from pgqueue.running_jobs where id = %s"
    assert running.rows.value(take_back, id) == [id]
    running.history.wait_for("start", id, count=2)
    running.history.open("second")
    assert wait_for(running.history, id, "succeeded", 3) == ["started", "started", "succeeded"]
    running.history.open("first")

    running.worker.wait_for("lease.lost", job_id=id)
    last = tasks.work.enqueue(running.rows.connection).id
    wait_for(running.history, last, "succeeded", 2)
    assert len(events(running.history, id)) == 3


# Crashes --------------------------------------------------------------------------------------------------


def test_a_job_that_killed_its_process_is_rescued_and_then_succeeds(
    start_worker: StartWorker, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    start_worker(app=APP)
    id = tasks.kill_once.enqueue(connection).id

    rows.wait_for("completed", id)
    wait_until_told(history, id, "rescued", "succeeded")
    rescued = said(history, id, "rescued")
    assert (rescued["crashes"], rescued["error"], rescued["args"]) == (1, "pgqueue.Crashed", {})
    assert "failed" not in events(history, id)


def test_a_dead_letter_that_a_crash_has_made_is_told_of(
    start_worker: StartWorker, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    start_worker(app=APP)
    id = tasks.kill_for_good.enqueue(connection).id

    rows.wait_for("dead", id)
    wait_until_told(history, id, "dead")
    assert said(history, id, "dead")["reason"] == rows.letter(id)["reason"]
    assert "rescued" not in events(history, id)


def test_the_jobs_of_a_worker_that_is_gone_are_told_of_by_the_one_that_rescues_them(
    start_worker: StartWorker, connection: psycopg.Connection, history: History
) -> None:
    gone = start_worker(app=APP)
    ids = [tasks.work.enqueue(connection, gate="held").id for _ in range(3)]
    history.wait_for("start", *ids, count=3)
    gone.kill()
    rescuer = start_worker(app=APP)
    rescuer.wait_for("jobs.rescued")

    history.open("held")
    for id in ids:
        wait_until_told(history, id, "rescued")
        (entry,) = [entry for entry in history.entries("told", id) if entry.said["event"] == "rescued"]
        assert entry.pid in rescuer.children().values()
        wait_until_told(history, id, "succeeded")


# Hooks that misbehave -------------------------------------------------------------------------------------


def test_hooks_that_raise_hang_and_exit_harm_no_job(
    start_worker: StartWorker, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    worker = start_worker("-c", "4", app="tests.worker.hook_tasks:bad")
    before = worker.children()
    ids = [tasks.hooked.enqueue(connection).id for _ in range(40)]
    others = [tasks.plain.enqueue(connection).id for _ in range(40)]

    rows.wait_for("completed", *ids, *others)
    assert worker.children() == before
    worker.wait_for("hook.failed", hook="tests.worker.hook_tasks.raises", error="RuntimeError")
    worker.wait_for("hook.failed", hook="tests.worker.hook_tasks.exits", error="SystemExit")
    assert not history.entries("told", *others)
    worker.stop(signal.SIGINT)
    assert worker.wait() == 0
    assert worker.events("hooks.dropped")  # of those that waited behind the ones that hang


def test_a_worker_that_stops_tells_its_hooks_before_it_goes(
    start_worker: StartWorker, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    worker = start_worker(app="tests.worker.hook_tasks:slow")
    id = tasks.brief.enqueue(connection).id
    rows.wait_for("completed", id)
    worker.stop()

    assert worker.wait() == 0
    assert events(history, id) == ["succeeded"]


# Enqueued -------------------------------------------------------------------------------------------------


@pytest.fixture
def producer(database: str) -> Iterator[App]:
    app = App(dsn=database, settings=Settings())
    yield app
    app.close()


def test_hooks_of_enqueued_are_told_in_the_callers_transaction(
    producer: App, database: str, connection: psycopg.Connection
) -> None:
    told: list[tuple[int, int]] = []

    @producer.task
    async def send(user_id: int) -> None: ...

    @producer.on("enqueued")
    def count(event: Enqueued) -> None:
        rows = connection.execute("select count(*) from pgqueue_bi.jobs where id = %s", [event.id]).fetchone()
        told.append((event.args["user_id"], rows[0] if rows else -1))

    with psycopg.connect(database) as own:
        send.enqueue(own, user_id=1)
        assert told == [(1, 0)]  # not committed, and not seen by another connection
        own.rollback()
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database))
    with Session(engine) as session, session.begin():
        send.enqueue(session, user_id=2)
    engine.dispose()
    producer.enqueue(send, user_id=3)
    assert told == [(1, 0), (2, 0), (3, 1)]


def test_hooks_of_enqueued_are_told_of_every_job_of_a_bulk(producer: App, database: str) -> None:
    told: list[tuple[int, str, int]] = []

    @producer.task(queue="mail")
    async def send(user_id: int) -> None: ...

    @producer.task
    async def other() -> None: ...

    @send.on("enqueued")
    def count(event: Enqueued) -> None:
        told.append((event.id, event.queue, event.args["user_id"]))

    jobs = producer.enqueue_many([send.item(user_id=1), other.item(), send.using(queue="q").item(user_id=2)])
    assert told == [(jobs[0].id, "mail", 1), (jobs[2].id, "q", 2)]

    told.clear()
    with psycopg.connect(database) as connection:
        with producer.bulk(connection) as bulk:
            bulk.enqueue(send, user_id=3)
        assert [user for *_, user in told] == [3]
        assert [job.id for job in producer.enqueue_many(connection, [send.item(4)])] == [told[-1][0]]
    with producer.bulk() as bulk:
        bulk.enqueue(send, user_id=5)
    assert [user for *_, user in told] == [3, 4, 5]


def test_hooks_of_enqueued_are_told_by_async_code_too(producer: App, database: str) -> None:
    told: list[int] = []

    @producer.task
    async def send(user_id: int) -> None: ...

    @producer.on("enqueued")
    def count(event: Enqueued) -> None:
        told.append(event.args["user_id"])

    async def enqueue() -> None:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            job = send.enqueue(connection, user_id=1)
            assert told == []
            await job
            await producer.enqueue_many(connection, [send.item(2)])
            async with producer.bulk(connection) as bulk:
                bulk.enqueue(send, 3)
        await producer.enqueue_async(send, user_id=4)
        await producer.enqueue_many_async([send.item(5), send.item(6)])
        async with producer.bulk() as own:
            own.enqueue(send, 7)
        await producer.aclose()

    asyncio.run(enqueue())
    assert told == [1, 2, 3, 4, 5, 6, 7]


def test_an_in_process_worker_tells_hooks_as_well(database: str, rows: Rows) -> None:
    told: list[str] = []
    app = App(dsn=database, settings=Settings())

    @app.task
    async def send() -> None: ...

    @send.on("succeeded")
    async def count(event: pgqueue.hooks.Succeeded) -> None:
        told.append(event.task)

    async def work() -> None:
        async with pgqueue.Worker(app):
            await app.enqueue_async(send)
            async with asyncio.timeout(10):
                while not told:  # noqa: ASYNC110 - the hook is told by another task
                    await asyncio.sleep(0.01)
        await app.aclose()

    asyncio.run(work())
    assert told == ["send"]
    assert rows.value("select count(*) from pgqueue_bi.jobs where state = 'completed'") == 1
