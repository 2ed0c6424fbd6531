"""The view `health`: each check fails when it should and not before, for who may read it."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.info import HealthCheck
from tests.sql.acting import Connect, call, claimed, enqueue, register
from tests.sql.history import at, ended, failed, rolled_up
from tests.sql.test_plans import nodes, rows_read
from tests.sql.test_queues import put

Session = psycopg.Connection


def checks(connection: Session) -> dict[tuple[str, str | None], HealthCheck]:
    """All of them, by name and queue."""
    found = run(connection, calls.health())
    keyed = {(check.check_name, check.queue): check for check in found}
    assert len(keyed) == len(found)
    return keyed


def one(connection: Session, name: str, queue: str | None = None) -> HealthCheck:
    return checks(connection)[name, queue]


def move(connection: Session, seconds: float) -> None:
    """All that is ready has waited for so long, and was counted."""
    connection.execute(
        "update pgqueue.ready_jobs set run_at = clock_timestamp() - make_interval(secs => %s)", [seconds]
    )
    call(connection, "count_depths")


# Of the whole -------------------------------------------------------------------------------------------


def test_a_database_that_nobody_uses_is_healthy(connection: Session) -> None:
    found = checks(connection)
    assert set(found) == {("leader", None), ("figures", None), ("schedules", None)}
    assert all(check.is_healthy for check in found.values())
    assert found["leader", None].detail == "no worker is registered"


def test_somebody_has_to_lead_while_workers_are_registered(connection: Session) -> None:
    register(connection)
    assert one(connection, "leader").is_healthy  # it has just come
    connection.execute("update pgqueue.workers set started_at = started_at - interval '1 hour'")
    never = one(connection, "leader")
    assert (never.is_healthy, never.threshold) == (False, 30)
    assert never.value == pytest.approx(3600, abs=30)
    assert never.detail.startswith("nobody has led upkeep for 36")
    connection.execute("update pgqueue.leadership set led_at = clock_timestamp() - interval '10 s'")
    assert one(connection, "leader").is_healthy
    connection.execute("update pgqueue.leadership set led_at = clock_timestamp() - interval '40 s'")
    assert not one(connection, "leader").is_healthy
    connection.execute("update pgqueue.workers set lease = '1 minute'")  # who look after them may take longer
    assert one(connection, "leader").is_healthy


def test_figures_have_to_be_fresh_while_somebody_leads(connection: Session) -> None:
    register(connection)
    connection.execute("update pgqueue.workers set started_at = started_at - interval '1 hour'")
    connection.execute("update pgqueue.rollup_progress set rolled_up_to = now() - interval '10 minutes'")
    assert one(connection, "figures").is_healthy
    assert one(connection, "figures").value is None
    connection.execute("update pgqueue.leadership set led_at = clock_timestamp()")
    assert not one(connection, "figures").is_healthy
    assert one(connection, "figures").detail.startswith("nothing has been rolled up for 60")
    connection.execute("update pgqueue.rollup_progress set rolled_up_to = now() - interval '2 minutes'")
    assert one(connection, "figures").is_healthy


def test_schedules_have_to_be_ticked(connection: Session) -> None:
    for name in ("nightly", "hourly"):
        call(connection, "schedule", name=name, task="t", every=60)
    assert one(connection, "schedules").is_healthy
    connection.execute(
        "update pgqueue.schedules set changed_at = now() - interval '2 minutes' where name = 'nightly'"
    )
    assert one(connection, "schedules").detail.startswith(
        "the schedule nightly has been due for 12"
    )  # never planned
    connection.execute(
        "update pgqueue.schedules set due_at = now() - interval '3 minutes' where name = 'hourly'"
    )
    late = one(connection, "schedules")
    assert (late.is_healthy, late.threshold) == (False, 60)
    assert late.detail.startswith("the schedule hourly has been due for 18")
    connection.execute("update pgqueue.schedules set due_at = now() - interval '30 s'")
    assert one(connection, "schedules").is_healthy
    connection.execute(
        "update pgqueue.schedules set due_at = 'infinity', problem = 'no such zone' where name = 'hourly'"
    )
    assert one(connection, "schedules").detail == "the schedule hourly cannot run: no such zone"
    assert not one(connection, "schedules").is_healthy
    for name in ("nightly", "hourly"):
        call(connection, "pause_schedule", name=name)
    assert one(connection, "schedules").is_healthy


# Jobs that nobody serves ----------------------------------------------------------------------------------


def test_jobs_wait_for_a_minute_where_no_worker_serves_their_queue(connection: Session) -> None:
    register(connection, "other")
    enqueue(connection, queue="mail")
    move(connection, 50)
    assert one(connection, "workers", "mail").is_healthy
    move(connection, 75)
    alone = one(connection, "workers", "mail")
    assert (alone.is_healthy, alone.threshold) == (False, 60)
    assert alone.value == pytest.approx(75, abs=10)
    assert alone.detail.startswith("jobs have waited for 7")
    call(connection, "pause", queue="mail")
    assert one(connection, "workers", "mail").detail == "the queue is paused"
    call(connection, "resume", queue="mail")
    assert not one(connection, "workers", "mail").is_healthy
    register(connection, "mail")
    assert one(connection, "workers", "mail") == HealthCheck(
        "mail", "workers", 0, 60, True, "workers that serve the queue: 1"
    )
    connection.execute("update pgqueue.heartbeats set beat_at = beat_at - interval '1 hour'")
    assert not one(connection, "workers", "mail").is_healthy


def test_when_no_worker_is_alive_the_lines_themselves_are_looked_at(connection: Session) -> None:
    """Nobody counts then: neither queue nor job is known from a count."""
    enqueue(connection, queue="mail", priority=9)
    enqueue(connection, queue="mail", priority=1)
    enqueue(connection, queue="line")
    enqueue(connection, queue="later", delay=60)
    connection.execute(
        "update pgqueue.ready_jobs set run_at = run_at - interval '90 s' where queue = 'mail' and lane > 9"
    )
    found = checks(connection)
    assert {queue for name, queue in found if name == "workers"} == {"mail", "line"}
    assert not found["workers", "mail"].is_healthy
    assert found["workers", "line"].is_healthy
    connection.execute("update pgqueue.scheduled_jobs set run_at = now() - interval '2 minutes'")
    assert not one(connection, "workers", "later").is_healthy  # nobody promotes it
    register(connection, "other")  # which counts, from now on
    assert all(check.is_healthy for check in checks(connection).values())


@pytest.mark.parametrize("alive", [False, True])
def test_the_lines_are_looked_at_by_index_and_only_when_no_worker_is_alive(
    alive: bool, connection: Session
) -> None:
    connection.execute(
        "insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args)"
        " select n, now(), now(), 11, 0, 5, 0, concat('queue ', n % 3), 't', '{}' from generate_series(1, 30000) as n"
    )
    connection.execute("vacuum analyze pgqueue.ready_jobs")
    if alive:
        register(connection)
    explained = connection.execute(
        "explain (analyze, format json) select * from pgqueue_bi.health"
    ).fetchone()
    assert explained is not None
    reads = [node for node in nodes(explained[0][0]["Plan"]) if node.get("Relation Name") == "ready_jobs"]
    assert reads
    assert {node["Node Type"] for node in reads if node["Actual Loops"]} <= {"Index Scan", "Index Only Scan"}
    # averages over loops, told with two decimals
    assert sum(rows_read(node) for node in reads) == pytest.approx(0 if alive else 3, abs=0.1)


# Thresholds -----------------------------------------------------------------------------------------------


def test_depth_age_and_dead_letters_have_their_thresholds(connection: Session) -> None:
    worker = register(connection, "mail")
    for _ in range(2):
        enqueue(connection, queue="mail")
    move(connection, 30)
    assert {name for name, queue in checks(connection) if queue == "mail"} == {"workers"}
    put(connection, max_depth=2, max_oldest=60, tolerated_dead=0, max_failure_ratio=0.2)
    found = {name: check for (name, queue), check in checks(connection).items() if queue == "mail"}
    assert set(found) == {"workers", "depth", "oldest_age", "dead", "failure_ratio"}
    assert all(check.is_healthy for check in found.values())
    assert (found["depth"].value, found["depth"].threshold) == (2, 2)
    assert found["depth"].detail == "ready jobs: 2, allowed: 2"
    enqueue(connection, queue="mail")
    move(connection, 90)
    job = claimed(connection, worker, queue="mail", priority=0)
    call(connection, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease}]))
    call(connection, "count_depths")
    found = {name: check for (name, queue), check in checks(connection).items() if queue == "mail"}
    assert {name for name, check in found.items() if not check.is_healthy} == {"depth", "oldest_age", "dead"}
    assert found["dead"].detail == "dead letters: 1, allowed: 0"
    assert found["oldest_age"].detail.startswith("the oldest ready job has waited for 9")
    assert found["oldest_age"].detail.endswith("s, allowed: 60 s")
    assert found["oldest_age"].value == pytest.approx(90, abs=10)
    connection.execute("delete from pgqueue.ready_jobs")
    call(connection, "count_depths")
    assert one(connection, "oldest_age", "mail").detail == "no job is ready"
    assert one(connection, "oldest_age", "mail").value == 0


@pytest.mark.parametrize(
    ("done", "lost", "is_healthy", "detail"),
    [
        (1, 1, True, "attempts within five minutes: 2, too few to judge by"),
        (0, 9, True, "attempts within five minutes: 9, too few to judge by"),
        (8, 2, True, "of 10 attempts within five minutes 20.0% have failed, allowed: 20.0%"),
        (7, 3, False, "of 10 attempts within five minutes 30.0% have failed, allowed: 20.0%"),
    ],
)
def test_a_failure_ratio_counts_from_ten_attempts_on(
    done: int, lost: int, is_healthy: bool, detail: str, connection: Session
) -> None:
    put(connection, max_failure_ratio=0.2)
    ended(connection, 30, queue="mail", jobs=done)
    failed(connection, 30, queue="mail", jobs=lost)
    rolled_up(connection)
    check = one(connection, "failure_ratio", "mail")
    assert (check.is_healthy, check.detail) == (is_healthy, detail)


# Who may read it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["pgqueue_worker", "pgqueue_monitor", "pgqueue_admin"])
def test_workers_monitors_and_admins_read_it(role: str, connect: Connect) -> None:
    session = connect()
    session.execute(f"set role {role}")
    assert len(run(session, calls.health())) == 3


def test_those_of_the_whole_come_first_then_queue_by_queue(connection: Session) -> None:
    for queue in ("b", "a"):
        put(connection, queue, max_depth=1, tolerated_dead=1)
    found = [(check.queue, check.check_name) for check in run(connection, calls.health())]
    assert found == [
        *((None, name) for name in ("figures", "leader", "schedules")),
        *((queue, name) for queue in "ab" for name in ("dead", "depth", "workers")),
    ]


def test_a_worker_without_a_heartbeat_is_not_said_to_have_just_beaten(connection: Session) -> None:
    register(connection)
    connection.execute("delete from pgqueue.heartbeats")
    found = connection.execute("select beat_at, silent_seconds from pgqueue_bi.workers").fetchall()
    assert found == [(None, None)]


# Stats ----------------------------------------------------------------------------------------------------


def test_stats_merge_the_minutes_of_a_span_exactly(connection: Session) -> None:
    """Percentiles of all jobs, and not an average of percentiles."""
    for minute in range(10):
        ended(connection, 60 * minute + 5, queue="mail", wait=0.1 if minute < 8 else 100, run=1, jobs=10)
    failed(connection, 30, queue="mail", task="u", jobs=3)
    failed(connection, 590, queue="mail", task="u", dead_reason="permanent")
    rolled_up(connection, 0, 600)
    (row,) = run(connection, calls.stats())
    assert (row.queue, row.task, row.until_at, row.from_at) == ("mail", None, at(600), at(-3000))
    assert (row.completed, row.failed, row.dead) == (100, 4, 1)
    assert row.wait_avg_seconds == pytest.approx(20.08)
    assert (row.wait_p50_seconds, row.wait_p95_seconds) == (
        pytest.approx(0.1, rel=0.0955),
        pytest.approx(100, rel=0.0955),
    )
    assert row.run_p99_seconds == pytest.approx(1, rel=0.0955)
    by_task = run(connection, calls.stats(by_task=True))
    assert [(row.task, row.completed, row.failed, row.wait_p50_seconds) for row in by_task] == [
        ("t", 100, 0, row.wait_p50_seconds),
        ("u", 0, 4, None),
    ]
    (row,) = run(connection, calls.stats(120))
    assert (row.from_at, row.completed, row.failed) == (at(480), 20, 1)
    assert row.wait_p50_seconds == pytest.approx(100, rel=0.0955)


@pytest.mark.parametrize(
    ("hours", "begins", "completed"),
    [(3, 21, 5), (4, 20, 5), (14 * 24, -312, 12), (15 * 24, -348, 12)],
)
def test_longer_spans_begin_with_a_whole_hour_or_day(
    hours: int, begins: int, completed: int, connection: Session
) -> None:
    ended(connection, 30, jobs=7)  # at noon
    ended(connection, 3600 * 23.5, jobs=5)  # before noon of the next day
    rolled_up(connection, 0, 3600 * 24.0)
    (row,) = run(connection, calls.stats(hours * 3600))
    assert row.completed == completed
    assert (row.from_at - at(0)).total_seconds() / 3600 == begins


def test_where_nothing_happened_there_are_no_stats(connection: Session) -> None:
    enqueue(connection)
    assert run(connection, calls.stats()) == []
    connection.execute("update pgqueue.rollup_progress set rolled_up_to = '-infinity'")
    assert run(connection, calls.stats(86400, by_task=True)) == []
