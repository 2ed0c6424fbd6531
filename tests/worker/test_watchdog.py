"""A handler that keeps the loop from running: it is named, its job keeps its lease, and only its timeout ends it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pgqueue.error_text import describe_stack, read_stack
from pgqueue.task import Task
from tests.support import Databases, wait_until
from tests.worker import tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import History, Row, Rows, Worker, frozen

SHORT: dict[str, Any] = {"lease": 1, "beat": 0.2, "upkeep_interval": 0.4, "block_threshold": 0.3}


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker process of 4 slots, whose loop is watched closely."""
    with service(databases, tmp_path_factory, "-c", "4", block_threshold=0.4, lease=30) as running:
        yield running


def said_of(rows: Rows, job: int) -> list[Row]:
    """The lines of a job's record, oldest first."""
    found = rows.all("select reports from pgqueue.job_record(%s)", job)
    return [line for row in found for report in row["reports"] for line in report["lines"]]


def wait_until_said(rows: Rows, job: int) -> Row:
    """Waits for a line in a job's record, the only one."""
    rows.wait_until(lambda: said_of(rows, job), message=f"a word in the record of job {job}")
    (line,) = said_of(rows, job)
    return line


def assert_is_named(worker: Worker, job: int, task: str) -> Row:
    """One line says that the loop is blocked and by whom, one that it is not any more; returns the first."""
    (over,) = worker.wait_for("loop.unblocked", job_id=job)
    (blocked,) = worker.events("loop.blocked", job_id=job)
    assert (blocked["task"], blocked["queue"], over["task"]) == (task, "default", task)
    assert 0.3 <= blocked["seconds"] <= over["seconds"]
    assert blocked["worker"] == over["worker"]
    return blocked


def test_a_handler_that_blocks_the_loop_is_named_with_its_stack_in_the_log_and_in_its_record(
    running: Service,
) -> None:
    worker, rows, history = running.worker, running.rows, running.history
    # they take longer than the threshold too, but let the loop run
    beside = [task.enqueue(rows.connection).id for task in (tasks.hold, tasks.hold_sync, tasks.hold_sync)]
    history.wait_for("start", *beside, count=3)
    job = tasks.block_loop.enqueue(rows.connection, seconds=1.5).id

    blocked = assert_is_named(worker, job, "block_loop")
    # the handler's own frames and none of the worker's, as text without locals
    assert re.search(
        r'tests/worker/tasks\.py", line \d+, in block_loop\n\s+time\.sleep\(seconds\)', blocked["stack"]
    )
    assert "pgqueue/worker" not in blocked["stack"]
    assert blocked["cpu_seconds"] < 0.5
    (over,) = worker.events("loop.unblocked", job_id=job)
    assert 1 < over["seconds"] < 5

    line = wait_until_said(rows, job)
    assert line["level"] == "warning"
    said = re.match(r"kept the event loop from running: (\d\.\d) s in all \(CPU \d\.\d s\)\n", line["text"])
    assert said is not None
    assert float(said[1]) == pytest.approx(over["seconds"], abs=0.1)
    assert line["text"].endswith(blocked["stack"])
    history.open("hold")
    rows.wait_for("completed", job, *beside)
    assert [said_of(rows, id) for id in beside] == [[], [], []]
    assert {line.get("job_id") for line in worker.events("loop.blocked")}.isdisjoint(beside)


def backtracking_for(seconds: float) -> int:
    """The length at which `tasks.backtrack` computes for so long here, or up to twice as long."""
    length, taken = 18, []
    for _ in range(3):
        since = time.process_time()
        re.match(r"(a+)+$", "a" * length + "b")
        taken.append(time.process_time() - since)
    least = min(taken)
    while least < seconds:
        length, least = length + 1, least * 2
    return length


def test_where_it_cannot_be_told_whose_fault_it_was_nobody_is_blamed(running: Service) -> None:
    worker, rows, history = running.worker, running.rows, running.history
    innocent = tasks.hold_sync.enqueue(rows.connection, gate="blame").id
    history.wait_for("start", innocent)
    told = len(worker.events("loop.unblocked"))
    guilty = tasks.backtrack_sync.enqueue(rows.connection, length=backtracking_for(0.9)).id
    rows.wait_for("completed", guilty)
    line = worker.wait_for("loop.unblocked", count=told + 1)[-1]
    assert sorted(line["suspects"]) == [f"backtrack_sync {guilty}", f"hold_sync {innocent}"]
    assert "job_id" not in line

    # a process that stood still: nothing was computed meanwhile
    told = len(worker.events("loop.blocked"))
    (pid,) = worker.children().values()
    with frozen(pid) as since:
        wait_until(lambda: time.monotonic() - since > 1.2, message="more than the threshold to pass")
    line = worker.wait_for("loop.blocked", count=told + 1)[-1]
    assert {"job_id", "suspects"}.isdisjoint(line)
    assert line["seconds"] > 0.5
    history.open("blame")
    rows.wait_for("completed", innocent)
    assert said_of(rows, innocent) + said_of(rows, guilty) == []


def test_a_regular_expression_that_holds_the_gil_for_longer_than_the_lease_starts_its_job_once(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    length = backtracking_for(1.3)
    worker = start_worker("-c", "1", processes=2, **SHORT)
    kinds: tuple[Task[..., Any], ...] = (tasks.backtrack, tasks.backtrack_sync)  # in the loop, in a thread
    jobs = [task.using(timeout=60).enqueue(rows.connection, length=length).id for task in kinds]

    done = rows.wait_for("completed", *jobs, timeout=40)
    assert [(row["attempt"], row["crashes"]) for row in done] == [(1, 0)] * 2
    assert worker.events("lease.lost") + worker.events("worker.declared_dead") == []
    for job, task in zip(jobs, kinds, strict=True):
        (start,), (end,) = history.entries("start", job), history.entries("end", job)
        assert end.at - start.at > 1, "it held the lock for less than the lease: this shows nothing"
        blocked = assert_is_named(worker, job, task.name)
        assert f"in {task.name}\n" in blocked["stack"]
        assert "pgqueue/worker" not in blocked["stack"]
        assert blocked["cpu_seconds"] > 0.5
        assert wait_until_said(rows, job)["text"].endswith(blocked["stack"])


def test_a_job_that_is_over_its_timeout_and_blocks_the_loop_is_killed_retried_and_explained(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "4", **SHORT)
    (first,) = worker.children()
    innocents = [
        task.using(max_attempts=1).enqueue(rows.connection).id
        for task in (tasks.hold_first, tasks.hold_first_sync)
    ]
    history.wait_for("start", *innocents, count=2)
    guilty = tasks.block_loop_first.using(timeout=0.5).enqueue(rows.connection, seconds=3600).id
    history.wait_for("start", guilty)

    # it is named while it goes on, for nothing will be said after it
    worker.wait_for("loop.blocked", job_id=guilty)
    line = wait_until_said(rows, guilty)
    assert re.match(r"keeps the event loop from running: \d\.\d s so far \(CPU 0\.\d s\)\n", line["text"])
    assert "in block_loop_first\n" in line["text"]
    assert rows.states(guilty) == ["running"]

    worker.wait_for("worker.hung", job_ids=[guilty])
    history.wait_for("start", *innocents, count=4)
    if rows.states(guilty) == ["scheduled"]:
        rows.bring_forward(guilty)
    (row,) = rows.wait_for("completed", guilty)
    assert row["attempt"] == 2
    done = rows.wait_for("completed", *innocents)
    assert {(row["attempt"], row["crashes"]) for row in done} == {(1, 0)}, "those beside it were blamed"
    worker.wait_for("worker.started", count=2)
    assert first not in worker.children()
    assert len(worker.children()) == 1
    assert worker.events("loop.unblocked") == []


def test_a_stack_is_told_without_locals_and_never_at_endless_length() -> None:
    secret = "hunter2"

    def deep(levels: int) -> str:
        return deep(levels - 1) if levels else describe_stack(read_stack(sys._getframe()))

    told = deep(200)
    assert secret not in told
    assert "frames left out" in told
    assert told.endswith("else describe_stack(read_stack(sys._getframe()))\n")
    assert len(told) < 17_000
