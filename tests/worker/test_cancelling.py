"""A job is cancelled wherever it is; one that runs is told, and ends as cancelled or as completed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import psycopg
import pytest

import pgqueue
from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.settings import Settings
from pgqueue.worker import services
from tests.support import Databases, wait_for_lock_wait
from tests.worker import tasks, transactional_tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import History, Rows, frozen, until

TRANSACTIONAL = "tests.worker.transactional_tasks:app"


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker for all tests that do it no harm."""
    with service(databases, tmp_path_factory, "-c", "4", app=TRANSACTIONAL) as running:
        running.rows.connection.execute(transactional_tasks.EFFECTS)
        yield running


def cancel(rows: Rows, *ids: int, reason: str = "withdrawn") -> list[str]:
    """What became of each."""
    found = dict(run(rows.connection, calls.cancel(ids, reason)))
    return [found[id] for id in ids]


def reason_of(rows: Rows, id: int) -> str:
    """Why a job was cancelled."""
    return str(rows.value("select reason from pgqueue.finished_jobs where id = %s", id))


def test_a_running_async_handler_is_cancelled_at_once_and_cleans_up(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    start_worker("-c", "1")
    job = tasks.hold.enqueue(rows.connection).id
    history.wait_for("start", job)
    assert cancel(rows, job) == ["asked"]
    (row,) = rows.wait_for("cancelled", job, timeout=2)
    assert (row["attempt"], reason_of(rows, job)) == (1, "withdrawn")
    assert [entry.what for entry in history.entries(None, job)] == ["start", "cleaned up"]
    after = tasks.quick.enqueue(rows.connection, seconds=0.1).id
    rows.wait_for("completed", after)
    assert rows.all("select * from pgqueue.cancel_requests") == []
    assert rows.all("select * from pgqueue.job_failures") == []


def test_a_thread_is_told_and_ends_as_cancelled_when_it_raises(running: Service) -> None:
    rows, history = running.rows, running.history
    job = tasks.watches_sync.enqueue(rows.connection, then="raise").id
    history.wait_for("start", job)
    assert cancel(rows, job) == ["asked"]
    rows.wait_for("cancelled", job)
    assert reason_of(rows, job) == "withdrawn"


def test_a_handler_that_finishes_all_the_same_has_completed(running: Service) -> None:
    rows, history = running.rows, running.history
    job = tasks.watches_sync.enqueue(rows.connection, then="return").id
    history.wait_for("start", job)
    assert cancel(rows, job) == ["asked"]
    rows.wait_for("completed", job)


def test_a_handler_that_will_not_be_cancelled_is_left_behind(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "3")
    job = tasks.stubborn.enqueue(rows.connection).id
    history.wait_for("start", job)
    cancel(rows, job)
    rows.wait_for("cancelled", job)
    worker.wait_for("slot.stuck", job_id=job)
    history.open("hold")
    history.wait_for("end", job)
    rows.wait_for("completed", tasks.quick.enqueue(rows.connection).id)


@pytest.mark.parametrize("kind", [task.name for task in transactional_tasks.KINDS])
def test_a_cancelled_transaction_leaves_nothing_or_has_completed(running: Service, kind: str) -> None:
    rows, history = running.rows, running.history
    effects = "select count(*) from effects where job = %s"
    (task,) = [task for task in transactional_tasks.KINDS if task.name == kind]
    job = task.enqueue(rows.connection, gate=kind).id
    history.wait_for("start", job)
    cancel(rows, job)
    if not task.is_async:
        history.open(kind)  # a thread cannot be stopped: it finishes first
        rows.wait_for("completed", job)
        assert rows.value(effects, job) == 1
        return
    rows.wait_for("cancelled", job)
    assert rows.value(effects, job) == 0


def test_a_job_that_waits_in_a_workers_hand_never_starts(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    """It ends as its worker's attempt: one that was given back first would have none, and no worker."""
    worker = start_worker("-c", "1")
    with rows.connection.transaction():
        for _ in range(600):
            tasks.quick.enqueue(
                rows.connection
            )  # a worker takes so many at once ahead of itself only after quick ones
        slow = [tasks.quick.enqueue(rows.connection, seconds=0.1).id for _ in range(40)]

    def held() -> list[int]:
        query = "select id from pgqueue.running_jobs where id = any(%s) order by id"
        ids = [row["id"] for row in rows.all(query, slow)]
        return ids[-3:] if len(ids) >= 8 else []

    waiting = rows.wait_until(held, message="a hand full of slow jobs")
    (child,) = worker.children().values()
    with frozen(child):  # so that none of them starts meanwhile
        outcomes = cancel(rows, *waiting)
    ended = rows.wait_for("cancelled", *waiting, timeout=5)
    assert outcomes == ["asked"] * 3
    assert history.entries("start", *waiting) == []
    query = "select attempt, worker_id, reason from pgqueue.finished_jobs where id = any(%s)"
    expected = {"attempt": 1, "worker_id": next(iter(worker.children())), "reason": "withdrawn"}
    assert rows.all(query, waiting) == [expected] * len(ended)


def test_a_request_that_was_never_heard_is_found(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    start_worker(wake="poll", poll_interval=0.2)
    job = tasks.hold.enqueue(rows.connection).id
    history.wait_for("start", job)
    cancel(rows, job)
    rows.wait_for("cancelled", job)


def test_a_worker_that_listens_looks_for_requests_that_it_was_not_told_of(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "CANCELS_SECONDS", 0.05)
    rows.connection.execute("set pgqueue.notify = off")
    app = pgqueue.App(settings=Settings(dsn=rows.dsn, wake="listen"))

    @app.task
    async def hold() -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with pgqueue.Worker(app), asyncio.timeout(10):
            job = rows.enqueue("hold")
            await until(lambda: rows.states(job) == ["running"])
            assert cancel(rows, job) == ["asked"]
            await until(lambda: rows.states(job) == ["cancelled"])

    asyncio.run(scenario())


def test_a_request_outlives_the_worker_that_was_asked(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker()
    job = tasks.hold.enqueue(rows.connection).id
    history.wait_for("start", job)
    (child,) = worker.children().values()
    with frozen(child):
        cancel(rows, job)
        worker.kill()
    start_worker()
    rows.wait_for("cancelled", job)
    assert len(history.entries("start", job)) == 1


@pytest.mark.needs_session("it waits for a session by the process id that its client was told")
def test_a_failure_that_comes_after_the_request_is_not_tried_again(rows: Rows) -> None:
    """The request is committed while the ending waits for the job's row."""
    job, worker_id = _claimed(rows)
    failing = psycopg.connect(rows.dsn, autocommit=True)
    failure = f'[{{"id": {job}, "lease": 7, "error": "E", "message": "", "delay": 60}}]'
    with psycopg.connect(rows.dsn) as canceller:
        assert run(canceller, calls.cancel([job], "withdrawn")) == [(job, "asked")]
        thread = threading.Thread(target=lambda: run(failing, calls.fail(failure)))
        thread.start()
        wait_for_lock_wait(rows.connection, failing.info.backend_pid)
        canceller.commit()
    thread.join()
    assert rows.states(job) == ["cancelled"]
    assert worker_id
    failing.close()


@pytest.mark.needs_session("it waits for a session by the process id that its client was told")
def test_a_completion_that_comes_first_makes_the_request_say_so(rows: Rows) -> None:
    """The request waits for the row that the completion has taken away."""
    job, _ = _claimed(rows)
    cancelling = psycopg.connect(rows.dsn, autocommit=True)
    outcomes: list[pgqueue.job.Cancellation] = []
    with psycopg.connect(rows.dsn) as completing:
        assert run(completing, calls.complete([job], [7])) == [job]
        thread = threading.Thread(target=lambda: outcomes.extend(run(cancelling, calls.cancel([job]))))
        thread.start()
        wait_for_lock_wait(rows.connection, cancelling.info.backend_pid)
        completing.commit()
    thread.join()
    assert outcomes == [(job, "finished")]
    assert rows.states(job) == ["completed"]
    cancelling.close()


@pytest.mark.parametrize("ending", ["fail", "snooze", "release"])
@pytest.mark.needs_session("it waits for a session by the process id that its client was told")
def test_a_job_that_moved_back_while_it_was_looked_for_is_found(rows: Rows, ending: str) -> None:
    job, _ = _claimed(rows)
    back = {
        "fail": calls.fail(f'[{{"id": {job}, "lease": 7, "error": "E", "message": "", "delay": 60}}]'),
        "snooze": calls.snooze([job], [7], [60]),
        "release": calls.release([job], [7]),
    }[ending]
    cancelling = psycopg.connect(rows.dsn, autocommit=True)
    with psycopg.connect(rows.dsn) as moving:
        assert run(moving, back) == [job]
        thread = threading.Thread(target=lambda: run(cancelling, calls.cancel([job])))
        thread.start()
        wait_for_lock_wait(rows.connection, cancelling.info.backend_pid)
        moving.commit()
    thread.join()
    assert rows.states(job) == ["cancelled"]
    cancelling.close()


def test_the_app_cancels_in_python(rows: Rows) -> None:
    app = pgqueue.App(dsn=rows.dsn)
    waiting = rows.enqueue("quick", delay=60, unique_key="k")
    gone = 10**12
    assert app.cancel(waiting, gone) == [(waiting, "cancelled")]
    assert asyncio.run(_cancel_async(app, waiting)) == [(waiting, "finished")]
    assert rows.states(waiting) == ["cancelled"]
    assert rows.enqueue("quick", unique_key="k") != waiting, "its key was not freed"
    app.close()


async def _cancel_async(app: pgqueue.App, id: int) -> list[pgqueue.job.Cancellation]:
    outcomes = await app.cancel_async(id)
    await app.aclose()
    return outcomes


def test_jobs_are_cancelled_by_filter_some_at_a_time(rows: Rows) -> None:
    tagged = [rows.enqueue("quick", options='{"tags": ["import", "old"]}') for _ in range(3)]
    later = rows.enqueue("quick", delay=60, options='{"tags": ["import"]}')
    other = rows.enqueue("other")
    first = run(rows.connection, calls.cancel_matching(tag="import", max_jobs=2))
    assert [id for id, _ in first] == tagged[:2]
    assert run(rows.connection, calls.cancel_matching(tag="import", state="scheduled")) == [
        (later, "cancelled")
    ]
    rest = run(rows.connection, calls.cancel_matching(tag="import"))
    assert [id for id, _ in rest] == tagged[2:]
    assert rows.states(other) == ["ready"]
    assert run(rows.connection, calls.cancel_matching(task="other", queue="default")) == [
        (other, "cancelled")
    ]
    with pytest.raises(pgqueue.errors.InvalidOption, match="no filter"):
        run(rows.connection, calls.cancel_matching())
    with pytest.raises(pgqueue.errors.InvalidOption, match="of_state"):
        run(rows.connection, calls.cancel_matching(state="dead"))


def test_a_handler_cancels_its_own_job(running: Service) -> None:
    rows = running.rows
    job = tasks.withdraws.enqueue(rows.connection).id
    rows.wait_for("cancelled", job)
    assert reason_of(rows, job) == "nothing to do"


def _claimed(rows: Rows) -> tuple[int, int]:
    """A job in the hands of a worker that is only a row, under lease 7."""
    worker_id = run(
        rows.connection,
        calls.register(
            supervisor_id=1, host="h", pid=1, version="v", queues=["default"], concurrency=1, lease=3600,
            session_lock=False,
        ),
    )  # fmt: skip
    job = rows.enqueue("quick")
    claim = calls.claim(
        worker_id=worker_id, queues=["default"], limits=[1], max_jobs=1, cursors=[0] * 20, fence=7
    )
    assert [claimed.id for claimed in run(rows.connection, claim)] == [job]
    return job, worker_id
