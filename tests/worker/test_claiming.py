"""Which jobs a worker takes, in what order, and how many at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import Databases
from tests.worker import tasks
from tests.worker.conftest import Service, service


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker of 4 slots over queues with and without a limit of their own."""
    queues = ["-q", "email:2", "-q", "line:1", "-q", "default", "-q", "left", "-q", "right"]
    with service(databases, tmp_path_factory, *queues, "-c", "4") as running:
        yield running


def test_a_queues_limit_holds_and_leaves_the_other_slots_to_other_queues(running: Service) -> None:
    connection, history = running.rows.connection, running.history
    with connection.transaction():
        emails = [
            task.using(queue="email", priority=0).enqueue(connection, gate="limit").id
            for task in (tasks.hold, tasks.hold_sync) * 4
        ]
    history.wait_for("start", *emails, count=2)
    # two slots are free, six emails wait before them
    others = [tasks.hold.using(priority=9).enqueue(connection, gate="limit").id for _ in range(4)]
    history.wait_for("start", *others, count=2)
    assert len(history.entries("start", *emails)) == 2
    history.open("limit")

    running.rows.wait_for("completed", *emails, *others)
    assert history.most_at_once(emails) == 2
    assert history.most_at_once([*emails, *others]) == 4


def test_no_more_jobs_run_than_there_are_slots(running: Service) -> None:
    connection, history = running.rows.connection, running.history
    with connection.transaction():
        jobs = [
            task.enqueue(connection, seconds=0.002 * (number % 3)).id
            for number in range(60)
            for task in (tasks.quick, tasks.quick_sync)
        ]

    running.rows.wait_for("completed", *jobs)
    assert history.most_at_once(jobs) == 4
    starts = history.starts_by_job()
    assert all(starts[id] == 1 for id in jobs)


def test_a_queue_limited_to_one_serves_by_priority_then_by_age(running: Service) -> None:
    connection, history = running.rows.connection, running.history
    priorities = [5, 9, 0, 5, 3, 0, 9, 3]
    with connection.transaction():
        jobs = [
            tasks.quick.using(queue="line", priority=priority).enqueue(connection).id
            for priority in priorities
        ]

    running.rows.wait_for("completed", *jobs)
    expected = [id for _, id in sorted(zip(priorities, jobs, strict=True))]
    assert [entry.job for entry in history.entries("start", *jobs)] == expected
    assert history.most_at_once(jobs) == 1


def test_a_paused_queue_stands_still_and_its_resumption_is_noticed(running: Service) -> None:
    rows, history = running.rows, running.history
    rows.connection.execute("select pgqueue.pause('line')")
    paused = tasks.quick.using(queue="line", priority=0).enqueue(rows.connection).id
    # a job that comes later and of less priority has run: the worker has looked
    beside = tasks.quick.using(priority=9).enqueue(rows.connection).id
    rows.wait_for("completed", beside)
    assert rows.states(paused) == ["ready"]

    rows.connection.execute("select pgqueue.resume('line')")
    (start,) = history.wait_for("start", paused, timeout=2)
    assert start.at > history.entries("end", beside)[0].at


def test_two_queues_are_served_side_by_side(running: Service) -> None:
    connection, history = running.rows.connection, running.history
    with connection.transaction():
        left = [tasks.quick.using(queue="left").enqueue(connection, seconds=0.004).id for _ in range(150)]
        right = [tasks.quick.using(queue="right").enqueue(connection, seconds=0.004).id for _ in range(150)]

    running.rows.wait_for("completed", *left, *right)
    first_half = [entry.job for entry in history.entries("start", *left, *right)][:150]
    share = len({*first_half} & {*left}) / 150
    assert 0.3 <= share <= 0.7, f"{share:.0%} of the first half came from one of two equal queues"
