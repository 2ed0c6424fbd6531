"""How a worker ends when it is told to: the first signal drains, the second gives back at once, the third kills."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import wait_until
from tests.worker import tasks, transactional_tasks
from tests.worker.conftest import StartWorker
from tests.worker.harness import History, Rows, Worker, frozen

AT_ONCE = 6.0
"""Seconds within which "at once" is believed on a machine that does other things as well; drains last for 60."""


def waiting_jobs(rows: Rows) -> list[dict[str, object]]:
    """What stands in the queue: id, attempts used, crashes, and whether a worker has had it and gave it back."""
    return rows.all(
        "select id, attempt, crashes, lane & 1 = 0 as came_back from pgqueue.ready_jobs order by id"
    )


def assert_nothing_is_left_of(worker: Worker, rows: Rows) -> None:
    """Neither a process nor a row says that this worker was there."""
    assert worker.children() == {}
    for table in ("running_jobs", "workers", "heartbeats", "sleepers"):
        assert rows.all(f"select * from pgqueue.{table}") == [], table
    assert rows.all("select * from pgqueue.job_failures") == []


def test_the_first_signal_lets_running_jobs_end_and_claims_nothing_more(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "2", drain_limit=60)
    with rows.connection.transaction():
        # fast jobs fill the worker's buffer, and slow ones are in it when the fast ones are done
        fast = [tasks.quick.enqueue(rows.connection).id for _ in range(600)]
        slow = [task.enqueue(rows.connection).id for _ in range(40) for task in (tasks.hold, tasks.hold_sync)]
    running = [entry.job for entry in history.wait_for("start", *slow, count=2)]

    worker.stop()
    # until what was not begun is back, the child may not have heard of its end
    held = "select count(*) from pgqueue.running_jobs"
    rows.wait_until(lambda: rows.value(held) == 2, message="the buffer to be given back")
    late = tasks.quick.using(priority=0).enqueue(rows.connection).id
    history.open("hold")
    assert worker.wait() == 0

    done = rows.wait_for("completed", *fast, *running)
    assert {(row["attempt"], row["crashes"]) for row in done} == {(1, 0)}
    assert history.starts_by_job() == dict.fromkeys([*fast, *running], 1)
    waiting = {row.pop("id"): row for row in waiting_jobs(rows)}
    assert waiting.keys() == {*slow, late} - {*running}
    assert waiting.pop(late) == {"attempt": 0, "crashes": 0, "came_back": False}
    assert {(row["attempt"], row["crashes"]) for row in waiting.values()} == {(0, 0)}
    assert any(row["came_back"] for row in waiting.values()), (
        "the buffer was empty: this test shows too little"
    )
    assert_nothing_is_left_of(worker, rows)


def test_a_signal_that_a_service_manager_sends_to_every_process_is_one_request(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker(drain_limit=60)
    job = tasks.hold.enqueue(rows.connection).id
    history.wait_for("start", job)
    (child,) = worker.children().values()
    os.kill(child, signal.SIGTERM)
    worker.stop()
    os.kill(child, signal.SIGTERM)
    history.open("hold")
    assert worker.wait() == 0
    rows.wait_for("completed", job)
    assert [entry.what for entry in history.entries()] == ["start", "end"]


def test_a_deploy_over_the_drain_limit_burns_no_attempt(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    rows.connection.execute(transactional_tasks.EFFECTS)
    app = "tests.worker.transactional_tasks:app"
    worker = start_worker("-c", "8", "--drain-limit", "0.5", app=app)
    plain = [
        task.using(max_attempts=1).enqueue(rows.connection).id
        for task in (tasks.hold, tasks.hold_sync, tasks.hold_in_thread)
    ]
    in_transactions = [
        task.using(max_attempts=1).enqueue(rows.connection, gate="hold").id
        for task in transactional_tasks.KINDS
    ]
    history.wait_for("start", *plain, count=3)
    history.wait_for("wrote", *in_transactions, count=4)

    worker.stop()
    stopping_at = time.monotonic()
    assert worker.wait() == 0
    assert 0.4 <= time.monotonic() - stopping_at < AT_ONCE
    assert [row["id"] for row in waiting_jobs(rows)] == sorted([*plain, *in_transactions])
    assert {(row["attempt"], row["crashes"]) for row in waiting_jobs(rows)} == {(0, 0)}
    assert len(history.entries("cleaned up", plain[0])) == 1
    assert_nothing_is_left_of(worker, rows)
    assert rows.value("select count(*) from public.effects") == 0

    history.open("hold")
    start_worker("-c", "8", app=app)
    done = rows.wait_for("completed", *plain, *in_transactions)
    assert {(row["attempt"], row["crashes"]) for row in done} == {(1, 0)}
    assert rows.value("select count(*) from public.effects") == 4


def test_the_second_signal_cancels_and_gives_back_at_once(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "8", drain_limit=60)
    kinds = [tasks.hold, tasks.hold_sync, tasks.hold_in_thread, tasks.stubborn]
    jobs = [task.enqueue(rows.connection).id for task in kinds]
    history.wait_for("start", *jobs, count=4)

    worker.stop(signal.SIGINT)
    assert history.entries("cleaned up") == []
    assert rows.states(*jobs) == ["running"] * 4
    second_at = time.monotonic()
    worker.stop(signal.SIGINT)
    assert worker.wait() == 0

    assert time.monotonic() - second_at < AT_ONCE
    assert [(row["id"], row["attempt"], row["crashes"]) for row in waiting_jobs(rows)] == [
        (id, 0, 0) for id in jobs
    ]
    assert [entry.job for entry in history.entries("cleaned up")] == [jobs[0]]
    assert history.entries("end") == []
    assert_nothing_is_left_of(worker, rows)


def test_two_signals_that_come_together_are_two(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "8", drain_limit=60)
    job = tasks.hold.enqueue(rows.connection).id
    history.wait_for("start", job)
    (child,) = worker.children().values()

    with frozen(child):  # so that it gets to neither before both are there
        worker.stop()
        worker.stop()

    assert worker.wait(AT_ONCE) == 0
    assert [(row["id"], row["attempt"], row["crashes"]) for row in waiting_jobs(rows)] == [(job, 0, 0)]


def test_the_third_signal_kills_a_process_that_cannot_hear(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "2", drain_limit=60)
    job = tasks.block_loop.enqueue(rows.connection, seconds=60).id
    history.wait_for("start", job)

    worker.stop()
    worker.stop()
    assert worker.children() != {}
    third_at = time.monotonic()
    worker.stop()
    assert worker.wait() == 0

    assert time.monotonic() - third_at < AT_ONCE
    assert [(row["id"], row["attempt"], row["crashes"]) for row in waiting_jobs(rows)] == [(job, 0, 0)]
    assert_nothing_is_left_of(worker, rows)


def test_a_signal_while_the_app_is_being_imported_ends_the_start(
    start_worker: StartWorker, rows: Rows, tmp_path: Path
) -> None:
    (tmp_path / "slow_app.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n"
    )
    job = rows.enqueue("quick")
    worker = start_worker(app="slow_app", cwd=tmp_path, wait=False)
    wait_until((tmp_path / "importing").exists, 15, "the import to begin")

    stopped_at = time.monotonic()
    worker.stop()
    assert worker.wait() == 0
    assert time.monotonic() - stopped_at < AT_ONCE
    assert rows.states(job) == ["ready"]
    assert_nothing_is_left_of(worker, rows)


@pytest.mark.parametrize("moment", ["the first claim", "the registration"])
def test_a_signal_at_any_moment_of_the_start_loses_nothing(
    moment: str, start_worker: StartWorker, rows: Rows, history: History
) -> None:
    jobs = [tasks.quick.enqueue(rows.connection).id for _ in range(300)]
    worker = start_worker("-c", "4", wait=False)
    if moment == "the first claim":
        worker.wait_until_started()
    else:
        rows.wait_until(lambda: rows.value("select count(*) from pgqueue.workers"), message="a worker's row")

    worker.stop()
    assert worker.wait() == 0

    waiting = {row["id"]: (row["attempt"], row["crashes"]) for row in waiting_jobs(rows)}
    assert set(waiting.values()) <= {(0, 0)}
    assert history.starts_by_job() == dict.fromkeys({*jobs} - waiting.keys(), 1)
    assert rows.states(*sorted({*jobs} - waiting.keys())) == ["completed"] * (len(jobs) - len(waiting))
    assert_nothing_is_left_of(worker, rows)
