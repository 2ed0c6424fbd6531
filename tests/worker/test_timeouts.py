"""An attempt that takes too long ends without its handler, whatever that does; and a job that has expired never starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgqueue.worker.slots import GRACE_SECONDS
from tests.support import Databases
from tests.worker import tasks, transactional_tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import History, Rows

TRANSACTIONAL = "tests.worker.transactional_tasks:app"
LAST = {"timeout": 0.3, "max_attempts": 1}


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker for all tests that leave no slot of it taken."""
    with service(databases, tmp_path_factory, "-c", "4", app=TRANSACTIONAL) as running:
        running.rows.connection.execute(transactional_tasks.EFFECTS)
        yield running


def test_an_async_handler_is_cancelled_cleans_up_and_its_attempt_counts_as_failed(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "1")
    job = tasks.hold.using(**LAST).enqueue(rows.connection).id
    letter = rows.letter(job)
    assert (letter["reason"], letter["attempt"]) == ("exhausted", 1)
    assert letter["error"] == "pgqueue.errors.TimedOut"
    assert [entry.what for entry in history.entries(None, job)] == ["start", "cleaned up"]
    # the slot is free again, and the next job in it is not cancelled for the last one's sake
    after = tasks.quick.enqueue(rows.connection, seconds=0.2).id
    rows.wait_for("completed", after)
    assert worker.events("slot.stuck") == []


def test_after_a_timeout_the_retry_policy_decides(running: Service) -> None:
    rows, history = running.rows, running.history
    job = tasks.hold_first.using(timeout=0.3).enqueue(rows.connection).id
    history.wait_for("start", job)
    rows.wait_until(lambda: rows.states(job) == ["scheduled"], message="the retry to be scheduled")
    rows.bring_forward(job)
    (row,) = rows.wait_for("completed", job)
    assert row["attempt"] == 2


def test_a_handler_that_will_not_be_cancelled_loses_its_attempt_and_keeps_its_slot(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "3")
    job = tasks.stubborn.using(**LAST).enqueue(rows.connection).id
    (start,) = history.wait_for("start", job)
    assert rows.letter(job)["error"] == "pgqueue.errors.TimedOut"
    assert time.monotonic() - start.at >= 0.3 + GRACE_SECONDS - 0.1
    worker.wait_for("slot.stuck", job_id=job, stuck=1, slots=3)
    # what it still does is nothing to us: its late return is dropped in silence, and the slot serves again
    history.open("hold")
    history.wait_for("end", job)
    others = [tasks.quick.enqueue(rows.connection, seconds=0.1).id for _ in range(9)]
    rows.wait_for("completed", *others)
    assert rows.states(job) == ["dead"]
    assert worker.events("lease.lost") == []


def test_a_thread_is_left_to_itself_and_its_slot_stays_taken(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "3")
    jobs = [tasks.hold_sync.using(**LAST).enqueue(rows.connection).id]
    (start,) = history.wait_for("start", jobs[0])
    assert rows.letter(jobs[0])["error"] == "pgqueue.errors.TimedOut"
    assert history.entries("end") == []
    held = [tasks.hold.enqueue(rows.connection, gate="later").id for _ in range(3)]
    history.wait_for("start", *held, count=2)
    assert rows.states(*held).count("running") == 2, "the slot of the thread was given to another job"
    history.open("hold")
    history.wait_for("start", *held, count=3)
    assert rows.states(jobs[0]) == ["dead"]
    assert worker.events("lease.lost") == []
    assert start.attempt == 1


def test_a_worker_whose_threads_are_stuck_is_replaced(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "4", drain_limit=20)
    (first,) = worker.children()
    stuck = [tasks.hold_sync.using(**LAST).enqueue(rows.connection).id for _ in range(2)]
    bystander = tasks.hold.enqueue(rows.connection, gate="bystander").id
    for job in stuck:
        assert rows.letter(job)["error"] == "pgqueue.errors.TimedOut"
    worker.wait_for("worker.stuck")
    after = tasks.quick.enqueue(rows.connection).id
    history.open("bystander")  # it drains: what can end does, and does not start again
    rows.wait_for("completed", bystander, after)
    worker.wait_for("worker.started", count=2)
    assert first not in worker.children()
    assert history.starts_by_job() == dict.fromkeys([*stuck, bystander, after], 1)
    assert rows.value("select count(*) from pgqueue.job_failures where error = 'pgqueue.Crashed'") == 0


@pytest.mark.parametrize("kind", [task.name for task in transactional_tasks.KINDS])
def test_a_transaction_that_takes_too_long_leaves_nothing(running: Service, kind: str) -> None:
    rows = running.rows
    (task,) = [task for task in transactional_tasks.KINDS if task.name == kind]
    job = task.using(**LAST).enqueue(rows.connection, gate=kind).id
    assert rows.letter(job)["error"] == "pgqueue.errors.TimedOut"
    running.history.open(kind)  # a thread goes on, and finds that its lease is lost
    rows.wait_until(
        lambda: (
            not rows.value(
                "select count(*) from pg_stat_activity where application_name = 'pgqueue transactional' and xact_start < now()"
            )
        ),
        message="the transaction to end",
    )
    assert rows.value("select count(*) from effects where job = %s", job) == 0
    assert rows.states(job) == ["dead"]


def test_a_handler_that_blocks_the_loop_is_ended_by_the_supervisor(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "4", lease=30)
    innocent = tasks.hold.using(max_attempts=1).enqueue(rows.connection).id
    history.wait_for("start", innocent)
    guilty = tasks.block_loop.using(timeout=0.3).enqueue(rows.connection, seconds=3600).id
    (start,) = history.wait_for("start", guilty)
    (line,) = worker.wait_for("worker.hung")
    assert line["job_ids"] == [guilty]
    # guarantee 9: its timeout + 5 s
    rows.wait_until(lambda: rows.states(guilty) != ["running"], message="the hung job to be taken back")
    assert time.monotonic() - start.at < 0.3 + 5 + 1
    history.wait_for("start", innocent, count=2)
    (row,) = rows.all("select attempt, crashes from pgqueue.running_jobs where id = %s", innocent)
    assert row == {"attempt": 1, "crashes": 0}, "the one beside it was blamed"


@pytest.mark.parametrize("moment", ["expired", "in time"])
@pytest.mark.parametrize("kind", ["duration", "datetime"])
def test_a_job_that_has_expired_never_starts(running: Service, kind: str, moment: str) -> None:
    rows, history = running.rows, running.history
    seconds = 0.05 if moment == "expired" else 3600
    expires: Any = seconds if kind == "duration" else datetime.now(UTC) + timedelta(seconds=seconds)
    job = tasks.quick.using(expires=expires, delay=0.1).enqueue(rows.connection).id
    if moment == "in time":
        rows.wait_for("completed", job)
        return
    (row,) = rows.wait_for("cancelled", job)
    assert rows.value("select reason from pgqueue.finished_jobs where id = %s", job) == "expired"
    assert row["attempt"] == 1
    assert history.entries(None, job) == []


def test_a_time_that_is_none_does_not_keep_a_job_from_starting(running: Service) -> None:
    """It was written before such a thing was refused."""
    rows = running.rows
    with rows.connection.transaction():  # before anybody can claim it
        job = rows.enqueue("quick")
        stored = "update pgqueue.ready_jobs set options = %s where id = %s"
        rows.connection.execute(stored, ['{"expires_at": "noon-ish", "timeout": "soon"}', job])
    rows.wait_for("completed", job)
    running.worker.wait_for("database.refused")
