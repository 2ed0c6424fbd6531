"""What operators set for queues, and ask of workers, holds on workers that run: told, or with the next round of upkeep."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

import pgqueue
from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.settings import Settings
from tests.support import Databases, wait_until
from tests.worker import process_tasks, tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import History, Rows, Worker, until

pytestmark = pytest.mark.needs_session(
    "workers hear of a setting at once; behind a pooler with the next round of upkeep"
)

SLOW_ROUNDS = "6"
"""Seconds of an upkeep_interval: within two seconds nothing but a notification can have told a worker."""


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker of 4 slots that is told of settings, for its rounds come seldom."""
    queues = ["-q", "mail", "-q", "line:1", "-q", "slow", "-q", "own", "-q", "odd!name"]
    with service(
        databases, tmp_path_factory, *queues, "-c", "4", upkeep_interval=SLOW_ROUNDS, lease="30", beat="3"
    ) as running:
        yield running


def put(rows: Rows, queue: str, **settings: Any) -> None:
    run(rows.connection, calls.set_queue(queue, json.dumps(settings)))


def is_told_of(worker: Worker, queue: str) -> bool:
    """Whether the worker goes by what is set for a queue; the word of an earlier setting may come late."""
    return any(queue in event["queues"] for event in worker.events("queues.set"))


def hold(rows: Rows, queue: str, gate: str, count: int) -> list[int]:
    """Enqueues jobs that wait at a gate."""
    with rows.connection.transaction():
        return [tasks.hold.using(queue=queue).enqueue(rows.connection, gate=gate).id for _ in range(count)]


# Limits -------------------------------------------------------------------------------------------------


def test_a_limit_holds_at_once_and_a_higher_one_lets_more_start(running: Service) -> None:
    rows, history = running.rows, running.history
    put(rows, "mail", worker_limit=1)
    running.worker.wait_for("queues.set", queues={"mail": {"limit": 1}}, timeout=2)
    jobs = hold(rows, "mail", "more", 5)
    history.wait_for("start", *jobs, count=1)
    beside = hold(rows, "slow", "more", 2)
    history.wait_for("start", *beside, count=2)
    assert len(history.entries("start", *jobs)) == 1
    put(rows, "mail", worker_limit=2)
    history.wait_for("start", *jobs, count=2, timeout=2)
    put(rows, "mail", worker_limit=None)
    history.open("more")
    rows.wait_for("completed", *jobs, *beside)
    assert history.most_at_once(jobs) >= 2


def test_a_lower_limit_gives_back_what_has_not_begun_and_stops_nothing(running: Service) -> None:
    rows, history = running.rows, running.history
    jobs = hold(rows, "mail", "fewer", 4)
    history.wait_for("start", *jobs, count=4)
    put(rows, "mail", worker_limit=1)
    running.worker.wait_for("queues.set", queues={"mail": {"limit": 1}}, count=2, timeout=2)
    later = hold(rows, "mail", "later", 3)
    history.open("fewer")
    rows.wait_for("completed", *jobs)
    history.wait_for("start", *later, count=1)
    history.open("later")
    rows.wait_for("completed", *later)
    assert history.most_at_once(later) == 1
    put(rows, "mail", worker_limit=None)


def test_of_the_commands_limit_and_the_operators_the_smaller_one_holds(running: Service) -> None:
    rows, history = running.rows, running.history
    put(rows, "line", worker_limit=3)
    wait_until(lambda: is_told_of(running.worker, "line"), 2, "the limit of line")
    jobs = hold(rows, "line", "line", 3)
    history.wait_for("start", *jobs, count=1)
    history.open("line")
    rows.wait_for("completed", *jobs)
    assert history.most_at_once(jobs) == 1


def test_a_queues_name_that_looks_like_a_poke_is_told_of_too(running: Service) -> None:
    rows, history = running.rows, running.history
    put(rows, "odd!name", worker_limit=1)
    wait_until(lambda: is_told_of(running.worker, "odd!name"), 2, "the limit of odd!name")
    jobs = hold(rows, "odd!name", "odd", 3)
    history.wait_for("start", *jobs, count=1)
    history.open("odd")
    rows.wait_for("completed", *jobs)
    assert history.most_at_once(jobs) == 1


@pytest.mark.parametrize("wake", ["listen", "poll"])
def test_a_limit_holds_from_the_start_and_without_notifications(
    wake: str, rows: Rows, history: History, start_worker: StartWorker
) -> None:
    put(rows, "mail", worker_limit=1)
    jobs = hold(rows, "mail", "first", 3)
    worker = start_worker("-q", "mail", wake=wake, poll_interval="0.05")
    history.wait_for("start", *jobs, count=1)
    told = len(worker.events("queues.set"))
    rows.connection.execute("set pgqueue.notify = off")
    put(rows, "mail", worker_limit=2)
    worker.wait_for("queues.set", count=told + 1)
    history.wait_for("start", *jobs, count=2)
    history.open("first")
    rows.wait_for("completed", *jobs)
    assert history.most_at_once(jobs) == 2


# Timeouts -----------------------------------------------------------------------------------------------


def test_a_queues_timeout_is_for_jobs_of_which_nobody_else_says(running: Service) -> None:
    rows, history = running.rows, running.history
    told = len(running.worker.events("queues.set"))
    put(rows, "slow", timeout=0.2)
    running.worker.wait_for("queues.set", count=told + 1, timeout=2)
    with rows.connection.transaction():
        says_nothing = tasks.hold.using(queue="slow", max_attempts=1).enqueue(rows.connection, gate="time").id
        says = tasks.hold.using(queue="slow", timeout="20s").enqueue(rows.connection, gate="time").id
        elsewhere = tasks.hold.using(queue="own").enqueue(rows.connection, gate="time").id
    assert rows.letter(says_nothing)["error"] == "pgqueue.errors.TimedOut"
    assert rows.states(says, elsewhere) == ["running", "running"]
    history.open("time")
    rows.wait_for("completed", says, elsewhere)
    put(rows, "slow", timeout=None)


def test_a_queues_timeout_holds_for_processes(rows: Rows, start_worker: StartWorker) -> None:
    put(rows, "default", timeout=0.3)
    start_worker(app="tests.worker.process_tasks:app")
    id = process_tasks.hold_process.using(max_attempts=1).enqueue(rows.connection).id
    assert rows.letter(id)["error"] == "pgqueue.errors.TimedOut"


# Pauses -------------------------------------------------------------------------------------------------


def test_a_pause_with_an_end_ends_by_itself(rows: Rows, history: History, start_worker: StartWorker) -> None:
    start_worker("-q", "mail", "-q", "default")
    rows.connection.execute("select pgqueue.pause('mail', clock_timestamp() + interval '0.7 seconds')")
    paused = tasks.quick.using(queue="mail").enqueue(rows.connection).id
    beside = tasks.quick.enqueue(rows.connection).id
    rows.wait_for("completed", beside)
    assert rows.states(paused) == ["ready"]
    (ends,) = rows.all("select resumes_at as at from pgqueue.queues where name = 'mail'")
    history.wait_for("start", paused, timeout=5)
    (claimed,) = rows.all("select claimed_at as at from pgqueue_bi.jobs where id = %s", paused)
    assert claimed["at"] >= ends["at"]
    assert rows.all("select paused_at, resumes_at from pgqueue.queues") == [
        {"paused_at": None, "resumes_at": None}
    ]


# Stopping -----------------------------------------------------------------------------------------------


def test_a_worker_that_is_asked_to_stop_finishes_its_job_and_is_not_replaced(
    rows: Rows, history: History, start_worker: StartWorker
) -> None:
    worker = start_worker("-c", "1", processes=2, upkeep_interval=SLOW_ROUNDS, lease="30", beat="3")
    jobs = hold(rows, "default", "stop", 2)
    history.wait_for("start", *jobs, count=2)
    first, second = sorted(worker.children())
    assert run(rows.connection, calls.stop_workers([first, 4711])) == [first]
    worker.wait_for("worker.stopping", worker=first, timeout=2)
    history.open("stop")
    rows.wait_for("completed", *jobs)
    wait_until(lambda: set(worker.children()) == {second}, 10, "the first worker to end")
    later = tasks.quick.enqueue(rows.connection).id
    rows.wait_for("completed", later)
    assert set(worker.children()) == {second}
    run(rows.connection, calls.stop_workers([second]))
    assert worker.wait() == 0
    assert worker.events("worker.child_died") == []
    assert rows.all("select id from pgqueue.workers") == []


def test_a_worker_is_stopped_without_notifications_too(rows: Rows, start_worker: StartWorker) -> None:
    worker = start_worker(wake="poll", poll_interval="0.05")
    run(rows.connection, calls.stop_workers(list(worker.children())))
    assert worker.wait() == 0
    # The request goes with the next round that anybody leads.
    other = start_worker()
    wait_until(lambda: not rows.all("select from pgqueue.stop_requests"), 10, "the request to be forgotten")
    assert other.children()


def test_a_worker_inside_an_application_holds_to_all_of_it(rows: Rows, database: str) -> None:
    asyncio.run(_inside(rows, database))


async def _inside(rows: Rows, database: str) -> None:
    settings = Settings(dsn=database, lease=3.0, beat=0.3, upkeep_interval=0.6, concurrency=4)
    app, gate, begun = pgqueue.App(settings=settings, name="inside"), asyncio.Event(), []

    @app.task
    async def wait(ctx: pgqueue.Context) -> None:
        begun.append(ctx.id)
        await gate.wait()

    async with pgqueue.Worker(app) as worker:
        (id,) = [row["id"] for row in rows.all("select id from pgqueue.workers")]
        with capture_logs() as logged:
            put(rows, "default", worker_limit=1)
            await until(lambda: "queues.set" in [line["event"] for line in logged])
        for _ in range(3):
            wait.enqueue(rows.connection)
        await until(lambda: len(begun) == 1)
        put(rows, "default", worker_limit=2)
        await until(lambda: len(begun) == 2)
        run(rows.connection, calls.stop_workers([id]))
        await until(lambda: worker._stopping.is_set())
        gate.set()
        await worker.wait()
        assert len(begun) == 2
        assert rows.all("select state from pgqueue_bi.jobs order by id") == [
            {"state": "completed"},
            {"state": "completed"},
            {"state": "ready"},
        ]
