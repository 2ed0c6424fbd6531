"""What handlers return: kept where the task says so, looked at, waited for from outside."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pgqueue
from pgqueue import calls, errors
from pgqueue import waiting as ours
from pgqueue.job import JobState
from pgqueue.settings import Settings
from pgqueue.task import Task
from tests.support import Databases
from tests.worker import result_tasks as tasks
from tests.worker.conftest import Service, service
from tests.worker.harness import History, Rows, until

APP = "tests.worker.result_tasks:app"
AnyTask = Task[..., object]
every_way = pytest.mark.parametrize("task", tasks.WAYS, ids=lambda task: task.name)


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker of 8 slots for the whole file."""
    with service(databases, tmp_path_factory, "-c", "8", app=APP) as running:
        yield running


@pytest.fixture
def rows(running: Service) -> Rows:
    return running.rows


@pytest.fixture
def history(running: Service) -> History:
    return running.history


@pytest.fixture
def connection(running: Service) -> psycopg.Connection:
    return running.rows.connection


@pytest.fixture(scope="module")
def app(running: Service) -> Iterator[pgqueue.App]:
    """An application that looks from outside: it knows the database and no task."""
    app = pgqueue.App(settings=Settings(dsn=running.rows.dsn))
    yield app
    app.close()


# Kept ---------------------------------------------------------------------------------------------------


@every_way
def test_what_a_handler_returns_is_kept(
    task: AnyTask, app: pgqueue.App, connection: psycopg.Connection
) -> None:
    jobs = {kind: task.enqueue(connection, kind=kind) for kind in tasks.RESULTS}

    assert {kind: app.result(job, timeout=15) for kind, job in jobs.items()} == tasks.KEPT
    for job in jobs.values():
        info = app.job(job)
        assert info is not None
        assert (info.state, info.has_result, info.reason) == (JobState.COMPLETED, True, None)


@every_way
def test_a_result_that_cannot_be_kept_is_left_out_and_its_job_completes(
    task: AnyTask, app: pgqueue.App, connection: psycopg.Connection, running: Service
) -> None:
    jobs = {kind: task.enqueue(connection, kind=kind) for kind in tasks.NOT_KEPT}

    for kind, job in jobs.items():
        info = app.wait(job, timeout=15)
        assert (info.state, info.attempt, info.has_result) == (JobState.COMPLETED, 1, False)
        assert info.reason is not None
        assert info.reason.startswith(tasks.NOT_KEPT[kind][1]), kind
        running.worker.wait_for("result.not_kept", job_id=job.id, reason=info.reason)
        with pytest.raises(errors.ResultNotKept, match=r"its result was not kept: \w"):
            app.result(job)


def test_a_task_that_does_not_say_so_keeps_nothing(
    app: pgqueue.App, connection: psycopg.Connection, rows: Rows
) -> None:
    job = tasks.forgets.enqueue(connection)

    info = app.wait(job, timeout=15)
    assert (info.state, info.result, info.has_result, info.reason) == ("completed", None, False, None)
    with pytest.raises(errors.ResultNotKept, match=r"declare the task @app.task\(keep_result=True\)"):
        app.result(job)
    assert rows.value("select result is null from pgqueue.finished_jobs where id = %s", job.id)


def test_a_batch_task_cannot_keep_results() -> None:
    app = pgqueue.App()
    with pytest.raises(errors.ConfigurationError, match="a batch task keeps no results"):

        @app.batch_task(size=2, keep_result=True)
        async def index(jobs: list[pgqueue.BatchJob[int]]) -> None: ...


def test_a_lost_lease_keeps_no_result(
    app: pgqueue.App, connection: psycopg.Connection, history: History, running: Service
) -> None:
    job = tasks.at_the_gate.enqueue(connection, gate="lost lease")
    history.wait_for("start", job.id)
    connection.execute("update pgqueue.running_jobs set lease = lease + 1 where id = %s", [job.id])
    history.open("lost lease")

    running.worker.wait_for("lease.lost", job_id=job.id)
    info = app.job(job)
    assert info is not None
    assert (info.state, info.has_result) == ("running", False)
    connection.execute("delete from pgqueue.running_jobs where id = %s", [job.id])


# Looked at ----------------------------------------------------------------------------------------------


def test_a_job_can_be_looked_at_in_every_state(
    app: pgqueue.App, connection: psycopg.Connection, history: History
) -> None:
    waits = tasks.fails.using(queue="nobody", tags=["eu", "vip"], priority=2).enqueue(connection)
    info = app.job(waits.id)
    assert info is not None
    assert (info.id, info.state, info.queue, info.task, info.priority) == (
        waits.id, "ready", "nobody", "fails", 2,
    )  # fmt: skip
    assert (info.attempt, info.max_attempts, info.crashes, info.tags) == (0, 2, 0, ("eu", "vip"))
    assert (info.claimed_at, info.finished_at, info.error, info.progress) == (None, None, None, None)
    assert not info.has_ended

    due = tasks.fails.using(delay="1h").enqueue(connection)
    info = app.job(due)
    assert info is not None
    assert info.state is JobState.SCHEDULED
    assert 3500 < (info.run_at - info.created_at).total_seconds() < 3700

    runs = tasks.at_the_gate.enqueue(connection, gate="look")
    history.wait_for("start", runs.id)
    info = app.job(runs)
    assert info is not None
    assert (info.state, info.attempt, info.finished_at) == ("running", 1, None)
    assert info.claimed_at is not None
    assert info.worker_id is not None
    history.open("look")

    for job in (waits, due):
        app.cancel(job.id, reason="not needed")
        info = app.job(job)
        assert info is not None
        assert (info.state, info.reason, info.has_ended) == ("cancelled", "not needed", True)

    dead = app.wait(tasks.fails.enqueue(connection), timeout=15)
    assert (dead.state, dead.reason, dead.attempt) == ("dead", "exhausted", 2)
    assert (dead.error, dead.message) == ("ValueError", "attempt 2 went wrong")
    assert app.job(2**62) is None


def test_the_last_error_is_told_of_a_job_that_completed_after_it(
    app: pgqueue.App, connection: psycopg.Connection
) -> None:
    info = app.wait(tasks.fails_first.enqueue(connection), timeout=15)
    assert (info.state, info.attempt, info.result) == ("completed", 2, 2)
    assert (info.error, info.message) == ("ValueError", "the first time")


def test_looking_works_in_an_event_loop(app: pgqueue.App, connection: psycopg.Connection) -> None:
    job = tasks.at_once.enqueue(connection, kind="dict")

    async def look() -> None:
        assert await app.result_async(job, timeout=15) == tasks.RESULTS["dict"]
        info = await app.job_async(job.id)
        assert info is not None
        assert info.result == tasks.RESULTS["dict"]
        assert await app.job_async(2**62) is None
        await app.aclose()

    asyncio.run(look())


# Waited for ---------------------------------------------------------------------------------------------

Wait = Callable[..., pgqueue.JobInfo]


def wait_in_loop(app: pgqueue.App, *arguments: Any, **options: Any) -> pgqueue.JobInfo:
    async def wait() -> pgqueue.JobInfo:
        try:
            return await app.wait_async(*arguments, **options)
        finally:
            await app._own.aclose()

    return asyncio.run(wait())


in_both = pytest.mark.parametrize("wait", [pgqueue.App.wait, wait_in_loop], ids=["thread", "loop"])


def wait_for_waiter(rows: Rows, id: int, waiters: int = 1) -> None:
    """Waits until somebody is registered for a job."""
    query = "select count(distinct channel) from pgqueue.waiters where job_id = %s"
    rows.wait_until(lambda: rows.value(query, id) == waiters, message=f"{waiters} waiters for job {id}")


@pytest.fixture
def listens(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long the waiters have begun to listen: each has looked at its job before, which had not ended."""
    begun: list[float] = []

    def listen(seconds: float) -> ours.Listen:
        begun.append(seconds)
        return listening(seconds)

    listening = ours.Listen
    monkeypatch.setattr(ours, "Listen", listen)
    return begun


def wait_until_it_relies_on_being_told(rows: Rows, listens: list[float]) -> None:
    """The looks of a waiter's beginning are behind it; the next one comes by itself in 2 s, or in half a second."""
    rows.wait_until(lambda: listens and listens[-1] > 1, message="a waiter that listens")


@contextlib.contextmanager
def waiting(wait: Wait, app: pgqueue.App, id: int, **options: Any) -> Iterator[Callable[[], Any]]:
    """Waits beside the block, which gets a function for what came of it and the moment when it came."""
    with ThreadPoolExecutor(1) as threads:

        def run() -> tuple[pgqueue.JobInfo, float]:
            return wait(app, id, **options), time.monotonic()

        yield threads.submit(run).result


@in_both
@pytest.mark.needs_session("a waiter listens there")
def test_a_waiter_is_told_of_the_end_at_once(
    wait: Wait,
    app: pgqueue.App,
    connection: psycopg.Connection,
    history: History,
    rows: Rows,
    listens: list[float],
) -> None:
    gate = f"told {wait.__name__}"
    delays = []
    for number in range(3):
        listens.clear()
        job = tasks.at_the_gate.enqueue(connection, gate=f"{gate} {number}")
        history.wait_for("start", job.id)
        with waiting(wait, app, job.id, timeout="15s") as outcome:
            wait_until_it_relies_on_being_told(rows, listens)
            history.open(f"{gate} {number}")
            rows.wait_for("completed", job.id)
            ended_at = time.monotonic()
            info, told_at = outcome()
        assert (info.state, info.result) == ("completed", f"through {gate} {number}")
        delays.append(told_at - ended_at)
    print(f"told of the end: max {max(delays) * 1000:.0f} ms of {len(delays)}")
    assert max(delays) < 0.4, "looking alone would have taken up to 2 s"


@in_both
@pytest.mark.needs_session("a waiter listens there")
def test_every_ending_is_told(
    wait: Wait, app: pgqueue.App, connection: psycopg.Connection, rows: Rows
) -> None:
    def end_told(job: pgqueue.Job, begin: Callable[[], object]) -> pgqueue.JobInfo:
        with waiting(wait, app, job.id, timeout="15s") as outcome:
            wait_for_waiter(rows, job.id)
            started = time.monotonic()
            begin()
            info, told_at = outcome()
        assert told_at - started < 1.2, f"{info.state} was not told"
        found: pgqueue.JobInfo = info
        return found

    def release(job: pgqueue.Job) -> Callable[[], object]:
        return lambda: connection.execute(
            "update pgqueue.scheduled_jobs set run_at = clock_timestamp() where id = %s", [job.id]
        )

    dead = tasks.fails.using(delay=3600, max_attempts=1).enqueue(connection)
    assert end_told(dead, release(dead)).state == "dead"
    cancelled = tasks.gives_up.using(delay=3600).enqueue(connection)
    info = end_told(cancelled, release(cancelled))
    assert (info.state, info.reason) == ("cancelled", "the order was withdrawn")
    waits = tasks.fails.using(delay=3600).enqueue(connection)
    assert end_told(waits, lambda: app.cancel(waits.id)).state == "cancelled"
    plain = tasks.forgets.using(delay=3600).enqueue(connection)
    assert end_told(plain, release(plain)).state == "completed"


@in_both
def test_an_ending_that_commits_after_the_waiter_came_is_told(
    wait: Wait, app: pgqueue.App, connection: psycopg.Connection, rows: Rows, listens: list[float]
) -> None:
    """The race: it looked for waiters before there was one, and commits after the waiter has looked at the job."""
    job = tasks.forgets.using(queue="nobody").enqueue(connection)
    with psycopg.connect(rows.dsn) as other:
        other.execute("select pgqueue.cancel(array[%s::bigint])", [job.id])
        with waiting(wait, app, job.id, timeout="15s") as outcome:
            rows.wait_until(lambda: len(listens) > 3, message="a waiter that looks again and again")
            other.commit()
            committed_at = time.monotonic()
            info, told_at = outcome()
    assert info.state == "cancelled"
    assert told_at - committed_at < 0.6, "it looks every 250 ms until those have ended that were under way"


def test_without_looking_at_what_is_under_way_the_ending_would_be_missed(
    app: pgqueue.App,
    connection: psycopg.Connection,
    rows: Rows,
    listens: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same race with a careless waiter, to see that the arrangement is one."""
    monkeypatch.setattr(calls, "endings_under_way", lambda *_: calls.find_jobs(states=["blocked"]))
    job = tasks.forgets.using(queue="nobody").enqueue(connection)
    with psycopg.connect(rows.dsn) as other:
        other.execute("select pgqueue.cancel(array[%s::bigint])", [job.id])
        with waiting(pgqueue.App.wait, app, job.id, timeout="15s") as outcome:
            wait_until_it_relies_on_being_told(rows, listens)
            other.commit()
            committed_at = time.monotonic()
            _, told_at = outcome()
    assert told_at - committed_at > 0.8, "it was found by the look that comes every 2 s"


@in_both
def test_a_job_that_has_ended_is_not_waited_for(
    wait: Wait, app: pgqueue.App, connection: psycopg.Connection, rows: Rows
) -> None:
    job = tasks.forgets.enqueue(connection)
    rows.wait_for("completed", job.id)
    assert wait(app, job.id, timeout=0).state == "completed"
    assert rows.value("select count(*) from pgqueue.waiters where job_id = %s", job.id) == 0


@in_both
def test_a_wait_ends_with_its_time(wait: Wait, app: pgqueue.App, connection: psycopg.Connection) -> None:
    job = tasks.forgets.using(delay="1h").enqueue(connection)
    started = time.monotonic()
    with pytest.raises(errors.NotFinished, match=f"job {job.id} of task forgets has not ended") as raised:
        wait(app, job, timeout=0.7)
    assert 0.7 <= time.monotonic() - started < 1.5
    assert isinstance(raised.value, TimeoutError)
    assert raised.value.job.state is JobState.SCHEDULED


@in_both
def test_a_job_that_is_not_there_is_not_waited_for(wait: Wait, app: pgqueue.App) -> None:
    with pytest.raises(errors.UnknownJob, match="there is no job 4611686018427387904: it was not committed"):
        wait(app, 2**62)


def test_a_result_raises_what_became_of_the_job_instead(
    app: pgqueue.App, connection: psycopg.Connection
) -> None:
    dead = tasks.fails.enqueue(connection)
    with pytest.raises(
        errors.JobFailed, match=r"is dead \(exhausted\): ValueError: attempt 2 went"
    ) as failed:
        app.result(dead, timeout=15)
    assert failed.value.job.attempt == 2
    with pytest.raises(errors.JobCancelled, match="was cancelled: the order was withdrawn"):
        app.result(tasks.gives_up.enqueue(connection), timeout=15)


@pytest.mark.needs_session("a waiter listens there")
def test_all_who_wait_in_a_loop_share_a_connection_that_goes_with_them(
    app: pgqueue.App, connection: psycopg.Connection, rows: Rows
) -> None:
    listening = "select count(*) from pg_stat_activity where datname = current_database() and query like 'listen%%pgqueue\\_wait%%'"
    jobs = [tasks.forgets.using(delay=3600).enqueue(connection) for _ in range(20)]

    async def wait() -> None:
        waits = [asyncio.create_task(app.wait_async(job, timeout="15s")) for job in jobs]
        waits += [asyncio.create_task(app.wait_async(jobs[0], timeout="15s"))]
        query = "select count(distinct job_id) from pgqueue.waiters where job_id = any(%s)"
        await until(lambda: rows.value(query, [job.id for job in jobs]) == 20)
        assert rows.value(listening) == 1
        waits[1].cancel()
        connection.execute(
            "update pgqueue.scheduled_jobs set run_at = clock_timestamp() where id = any(%s)",
            [[job.id for job in jobs]],
        )
        ended = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(info).__name__ for info in ended].count("JobInfo") == 20
        await app.aclose()

    asyncio.run(wait())
    rows.wait_until(lambda: rows.value(listening) == 0, message="nobody to listen")


@in_both
def test_where_nothing_is_heard_a_waiter_looks(
    wait: Wait, running: Service, connection: psycopg.Connection, rows: Rows
) -> None:
    polling = pgqueue.App(settings=Settings(dsn=running.rows.dsn, wake="poll"))
    job = tasks.forgets.using(delay=3600).enqueue(connection)
    with waiting(wait, polling, job.id, timeout="15s") as outcome:
        wait_for_waiter(rows, job.id)
        polling.cancel(job.id)
        info, _ = outcome()
    assert info.state == "cancelled"
    polling.close()


@in_both
def test_a_waiter_whose_listen_is_silent_notices_and_looks(
    wait: Wait,
    app: pgqueue.App,
    connection: psycopg.Connection,
    rows: Rows,
    listens: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As behind a transaction pooler: LISTEN is accepted, and nothing is ever heard."""
    monkeypatch.setattr(ours, "_listen", lambda _channel: sql.SQL("listen elsewhere"))
    job = tasks.forgets.using(queue="nobody").enqueue(connection)
    with waiting(wait, app, job.id, timeout="15s") as outcome:
        wait_until_it_relies_on_being_told(rows, listens)
        app.cancel(job.id)
        cancelled_at = time.monotonic()
        info, told_at = outcome()
    assert info.state == "cancelled"
    assert told_at - cancelled_at < 1.2, "it looks twice a second, and not every 2 s as one that hears"


def test_a_notification_that_is_lost_costs_two_seconds(
    app: pgqueue.App, connection: psycopg.Connection, rows: Rows
) -> None:
    job = tasks.forgets.using(queue="nobody").enqueue(connection)
    with waiting(pgqueue.App.wait, app, job.id, timeout="15s") as outcome:
        wait_for_waiter(rows, job.id)
        with psycopg.connect(rows.dsn, autocommit=True) as silent:
            silent.execute("set pgqueue.notify = off")
            silent.execute("select pgqueue.cancel(array[%s::bigint])", [job.id])
        cancelled_at = time.monotonic()
        info, told_at = outcome()
    assert info.state == "cancelled"
    assert told_at - cancelled_at < 3


@pytest.mark.needs_session("a waiter listens there")
def test_a_waiter_finds_the_end_after_its_connection_was_lost(
    app: pgqueue.App, connection: psycopg.Connection, rows: Rows
) -> None:
    job = tasks.forgets.using(queue="nobody").enqueue(connection)

    async def wait() -> pgqueue.JobInfo:
        waiting = asyncio.create_task(app.wait_async(job, timeout="15s"))
        seen = "select count(*) from pgqueue.waiters where job_id = %s"
        await until(lambda: rows.value(seen, job.id))
        ended = rows.value(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity "
            "where datname = current_database() and query like 'listen%%pgqueue\\_wait%%'"
        )
        assert ended == 1
        threading.Timer(0.3, lambda: app.cancel(job.id)).start()
        info = await waiting
        await app.aclose()
        return info

    assert asyncio.run(wait()).state == "cancelled"
