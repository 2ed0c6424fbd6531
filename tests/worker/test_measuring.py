"""What a worker's metrics say of its jobs: every ending once, whichever process it was in, and none of it lost with one."""

from __future__ import annotations

import os
import signal
import urllib.request
from collections.abc import Callable

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

import pgqueue
from pgqueue.observe.tally import BOUNDS, Histogram, Tally, TaskFigures, process_tally
from tests.worker import tasks
from tests.worker.conftest import StartWorker
from tests.worker.harness import Rows, Worker
from tests.worker.test_inprocess import Bench, bench, in_state, play
from tests.worker.transactional_tasks import EFFECTS, write

__all__ = ["bench"]

Figures = dict[tuple[str, ...], float]


def page(worker: Worker) -> Callable[[str, str], Figures]:
    """Reads the worker's page: by a sample's name and the task, its values by what other labels they have.

    Counts of 0 are left out.
    """
    port = worker.wait_for("metrics.listening")[0]["port"]

    def read(name: str, task: str) -> Figures:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            families = [*text_string_to_metric_families(answer.read().decode())]
        found = {}
        for sample in (sample for family in families for sample in family.samples if sample.name == name):
            if sample.labels.get("task") == task and (sample.value or "jobs" not in name):
                others = {key: value for key, value in sample.labels.items() if key not in ("queue", "task")}
                found[tuple(others.values())] = sample.value
        return found

    return read


def test_every_ending_is_counted_once(start_worker: StartWorker, rows: Rows) -> None:
    rows.connection.execute(EFFECTS)
    worker = start_worker("--metrics-port", "0", app="tests.worker.transactional_tasks:app")
    read = page(worker)
    completed = [
        *(tasks.quick.enqueue(rows.connection).id for _ in range(5)),
        tasks.quick_sync.enqueue(rows.connection, seconds=0.3).id,
        write.enqueue(rows.connection).id,
    ]
    dead = [tasks.gives_up.enqueue(rows.connection).id, tasks.fails.enqueue(rows.connection).id]
    withdrawn = tasks.withdraws.enqueue(rows.connection).id
    snoozed = tasks.naps.enqueue(rows.connection).id
    rows.wait_for("completed", snoozed)
    rows.wait_for("completed", *completed)
    rows.wait_for("dead", *dead)
    rows.wait_for("cancelled", withdrawn)
    expected: dict[str, Figures] = {
        "quick": {("completed",): 5},
        "quick_sync": {("completed",): 1},
        "write": {("completed",): 1},
        "gives_up": {("dead",): 1},
        "fails": {("failed",): 2, ("dead",): 1},
        "withdraws": {("cancelled",): 1},
        "naps": {("snoozed",): 1, ("completed",): 1},
    }
    rows.wait_until(
        lambda: {task: read("pgqueue_jobs_total", task) for task in expected} == expected,
        message="the counts",
    )
    # 0.3 s: not within 0.25 s, and the sum says it
    assert read("pgqueue_job_duration_seconds_bucket", "quick_sync")["0.25",] == 0
    assert read("pgqueue_job_duration_seconds_bucket", "quick_sync")["+Inf",] == 1
    assert read("pgqueue_job_duration_seconds_sum", "quick_sync")[()] >= 0.3
    assert read("pgqueue_job_wait_seconds_count", "quick")[()] == 5


def test_a_job_that_was_late_has_waited(start_worker: StartWorker, rows: Rows) -> None:
    with psycopg.connect(rows.dsn, autocommit=True) as connection:
        late = tasks.quick.enqueue(connection).id
        connection.execute("update pgqueue.ready_jobs set run_at = run_at - interval '20 s'")
    worker = start_worker("--metrics-port", "0")
    rows.wait_for("completed", late)
    read = page(worker)
    rows.wait_until(lambda: read("pgqueue_job_wait_seconds_count", "quick") == {(): 1}, message="the count")
    assert 20 <= read("pgqueue_job_wait_seconds_sum", "quick")[()] < 80
    assert read("pgqueue_job_wait_seconds_bucket", "quick")["10.0",] == 0


def test_the_counts_are_of_all_processes_and_outlive_each(start_worker: StartWorker, rows: Rows) -> None:
    worker = start_worker("--metrics-port", "0", "-c", "1", processes=2)
    read = page(worker)
    first = [tasks.quick.enqueue(rows.connection, seconds=0.05).id for _ in range(20)]
    rows.wait_for("completed", *first)
    assert len({rows.job(id)["worker_id"] for id in first}) == 2
    rows.wait_until(lambda: read("pgqueue_jobs_total", "quick") == {("completed",): 20}, message="the count")
    for pid in worker.children().values():
        os.kill(pid, signal.SIGKILL)
    worker.wait_until_started(4)
    more = tasks.quick.enqueue(rows.connection).id
    rows.wait_for("completed", more)
    rows.wait_until(lambda: read("pgqueue_jobs_total", "quick") == {("completed",): 21}, message="the count")


def test_an_in_process_worker_counts_when_it_is_looked_at(
    rows: Rows, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = Tally()
    monkeypatch.setattr("pgqueue.worker.inprocess.process_tally", tally)

    async def run_one() -> None:
        async with pgqueue.Worker(bench.app, concurrency=2):
            await in_state(rows, "completed", bench.quick.enqueue(rows.connection).id)

    play(run_one)
    assert tally.snapshot().jobs == {}
    tally.is_wanted = True
    play(run_one)
    assert tally.snapshot().jobs == {("default", "quick", "completed"): 1}
    assert not process_tally.is_wanted


def test_a_tally_adds_up_and_gives_copies() -> None:
    tally = Tally()
    figures = TaskFigures("email", "send", {"completed": 2})
    for seconds in (-1.0, 0.001, 0.0011, 1e9):
        figures.durations.observe(seconds)
    tally.add([figures])
    tally.add([figures])
    snapshot = tally.snapshot()
    assert snapshot.jobs == {("email", "send", "completed"): 4}
    durations = snapshot.durations["email", "send"]
    assert durations.counts == [4, 2, *[0] * (len(BOUNDS) - 2), 2]
    assert durations.sum == pytest.approx(2 * (0.0021 + 1e9))
    durations.add(Histogram([1] * (len(BOUNDS) + 1), 1.0))
    assert tally.snapshot().durations["email", "send"].counts[0] == 4
