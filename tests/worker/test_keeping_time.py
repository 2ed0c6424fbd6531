"""What falls due while real workers come and go: schedules, delayed jobs, retries; and what an idle fleet costs."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.retry import Fixed
from tests.support.pgbouncer import BINARY, MISSING, PgBouncer
from tests.worker import tasks
from tests.worker.conftest import StartWorker
from tests.worker.harness import History, Row, Rows, Worker, frozen

DEFAULTS = {"lease": 30, "beat": 2, "upkeep_interval": 4}
"""The times that a fleet has when nobody says otherwise."""


def schedule(rows: Rows, **timing: Any) -> None:
    """A schedule that runs `quick`."""
    run(rows.connection, calls.schedule("beat", {"task": "quick", **timing}))


def runs(rows: Rows) -> list[Row]:
    """What became of the due times so far, in their order."""
    return rows.all("select * from pgqueue_bi.schedule_runs order by due_at")


def leader(rows: Rows, workers: list[Worker]) -> Worker:
    """The worker whose supervisor led the last round."""

    def look() -> Worker | None:
        led = rows.all(
            "select w.id from pgqueue.workers as w join pgqueue.leadership as l on l.supervisor_id = w.supervisor_id"
        )
        return next((w for w in workers if w.children().keys() & {row["id"] for row in led}), None)

    found = rows.wait_until(look, message="a leader")
    assert found is not None
    return found


def assert_each_once(found: list[Row], seconds: float = 1.0) -> None:
    """No due time is missing, none is there twice, and each was on time."""
    dues = [row["due_at"] for row in found]
    gaps = [(later - sooner).total_seconds() for sooner, later in itertools.pairwise(dues)]
    assert gaps == [seconds] * (len(dues) - 1)
    assert {row["outcome"] for row in found} == {"enqueued"}


def assert_each_started_once(rows: Rows, history: History, found: list[Row]) -> None:
    """A job for each run, and a start for each job."""
    jobs = [row["job_id"] for row in found]
    rows.wait_for("completed", *jobs)
    assert history.starts_by_job() == dict.fromkeys(jobs, 1)


def wait_for_runs(rows: Rows, count: int, timeout: float = 15) -> list[Row]:
    rows.wait_until(lambda: len(runs(rows)) >= count, timeout, f"{count} runs")
    return runs(rows)


def test_a_schedule_of_every_second_runs_each_second_once_while_two_leaders_are_killed(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    workers = [start_worker(**DEFAULTS) for _ in range(3)]
    schedule(rows, every=1)
    for killed in (1, 2):
        so_far = len(wait_for_runs(rows, 5 * killed))
        first = leader(rows, workers)
        first.kill()
        killed_at = time.monotonic()
        workers.remove(first)
        wait_for_runs(rows, so_far + 1)
        takeover = time.monotonic() - killed_at
        print(f"takeover after kill -9: {takeover:.2f} s")
        assert takeover < 6  # 5 s, and up to one until something is due
        assert leader(rows, workers) is not first
    found = wait_for_runs(rows, 20, timeout=20)
    run(rows.connection, calls.pause_schedule("beat"))
    found = runs(rows)
    assert_each_once(found)
    assert_each_started_once(rows, history, found)


def test_a_leader_that_stands_still_is_followed_and_does_no_harm_when_it_wakes_up(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    workers = [start_worker(**DEFAULTS) for _ in range(2)]
    schedule(rows, every=1)
    wait_for_runs(rows, 2)
    first = leader(rows, workers)
    with frozen(first.pid) as since:
        so_far = len(runs(rows))
        wait_for_runs(rows, so_far + 1)
        takeover = time.monotonic() - since
        print(f"takeover after SIGSTOP: {takeover:.2f} s")
        assert takeover < 6  # as above
        assert leader(rows, workers) is not first
    wait_for_runs(rows, len(runs(rows)) + 3)
    run(rows.connection, calls.pause_schedule("beat"))
    found = runs(rows)
    assert_each_once(found)
    assert_each_started_once(rows, history, found)


@pytest.mark.needs_session("the others listen for a leader that resigns")
def test_a_leader_that_is_stopped_hands_over_at_once(start_worker: StartWorker, rows: Rows) -> None:
    workers = [start_worker(**DEFAULTS) for _ in range(2)]
    schedule(rows, every=1)
    wait_for_runs(rows, 2)
    first = leader(rows, workers)
    first.stop()
    assert first.wait() == 0
    found = wait_for_runs(rows, len(runs(rows)) + 3)
    assert_each_once(found)
    assert max(row["late_seconds"] for row in found) < 0.9


@pytest.mark.parametrize(
    ("missed", "outcomes"),
    [
        ("skip", [("missed", 10)]),
        ("once", [("caught_up", 9)]),
        ("all", [("missed", 5)] + [("caught_up", 0)] * 5),
    ],
)
def test_after_ten_minutes_of_downtime_the_missed_runs_are_what_the_policy_says(
    start_worker: StartWorker, rows: Rows, missed: str, outcomes: list[tuple[str, int]]
) -> None:
    """The row is moved, not the clock: ten due times of every minute, the last of them an hour ago."""
    start = datetime.now(UTC) - timedelta(hours=1, minutes=9)
    schedule(
        rows, every=60, starts_at=start.isoformat(), ends_at=(start + timedelta(minutes=9)).isoformat(),
        missed=missed, missed_limit=5,
    )  # fmt: skip
    rows.connection.execute("update pgqueue.schedules set due_at = starts_at, changed_at = starts_at")
    start_worker()
    found = wait_for_runs(rows, len(outcomes))
    assert [(row["outcome"], row["missed"]) for row in found] == outcomes
    jobs = [row["job_id"] for row in found if row["job_id"]]
    if jobs:
        rows.wait_for("completed", *jobs)
    (after,) = rows.all("select next_due_at, problem from pgqueue_bi.schedules")
    assert after == {"next_due_at": None, "problem": None}


def test_an_expression_that_sql_has_stored_unread_stops_its_own_schedule_alone(
    start_worker: StartWorker, rows: Rows
) -> None:
    run(rows.connection, calls.schedule("broken", {"task": "quick", "cron": "61 * * * *"}))
    worker = start_worker()
    schedule(rows, every=1)
    wait_for_runs(rows, 2)
    (broken,) = rows.all("select problem, next_due_at from pgqueue_bi.schedules where name = 'broken'")
    assert "61 * * * *" in broken["problem"]
    assert broken["next_due_at"] is None
    assert len(worker.events("schedule.broken", schedule="broken")) == 1


@pytest.mark.skipif(BINARY is None, reason=MISSING)
def test_behind_a_transaction_pooler_each_due_time_runs_once(
    start_worker: StartWorker, rows: Rows, history: History, database: str
) -> None:
    with PgBouncer(database) as pooler:
        workers = [start_worker(dsn=pooler.dsn) for _ in range(2)]
        for worker in workers:
            worker.wait_for("wake.poll")
        schedule(rows, every=1)
        wait_for_runs(rows, 3)
        first = leader(rows, workers)
        first.kill()
        wait_for_runs(rows, len(runs(rows)) + 2)
        run(rows.connection, calls.pause_schedule("beat"))
        found = runs(rows)
        assert_each_once(found)
        assert_each_started_once(rows, history, found)
        for worker in workers:
            worker.kill()


# Delayed jobs and retries


@contextlib.contextmanager
def on_time(rows: Rows, limit: float = 0.5) -> Iterator[list[int]]:
    """The jobs that the block puts into the list start within `limit` seconds of what the database calls their due
    time; the leader's rounds are two seconds apart."""
    jobs: list[int] = []
    yield jobs
    done = rows.wait_for("completed", *jobs)
    late = [(row["claimed_at"] - row["run_at"]).total_seconds() for row in done]
    assert max(late) < limit, late


@pytest.mark.needs_session("the leader listens for what falls due sooner")
def test_a_delayed_job_starts_when_it_is_due(start_worker: StartWorker, rows: Rows) -> None:
    start_worker(**DEFAULTS)
    for delay in (0.3, 0.7, 0.4):
        with on_time(rows) as jobs:
            jobs.append(tasks.quick.using(delay=delay).enqueue(rows.connection).id)


@pytest.mark.needs_session("the leader listens for what falls due sooner")
def test_a_job_that_is_committed_after_the_leader_has_looked_starts_when_it_is_due(
    start_worker: StartWorker, rows: Rows, database: str
) -> None:
    start_worker(**DEFAULTS)
    with psycopg.connect(database) as producer, on_time(rows) as jobs:
        jobs.append(tasks.quick.using(delay=0.6).enqueue(producer).id)
        # The leader is woken by another job meanwhile, and looks beyond the one that it cannot see yet.
        jobs.append(tasks.quick.using(delay=0.2).enqueue(rows.connection).id)
        rows.wait_for("completed", jobs[1])
        producer.commit()


@pytest.mark.needs_session("the leader listens for what falls due sooner")
def test_retries_start_when_they_are_due(start_worker: StartWorker, rows: Rows, history: History) -> None:
    start_worker(**DEFAULTS)
    failing = tasks.fails.using(retry=Fixed(0.4, attempts=3)).enqueue(rows.connection).id
    rows.wait_for("dead", failing)
    starts = [entry.at for entry in history.entries("start", failing)]
    assert [b - a for a, b in itertools.pairwise(starts)] == pytest.approx([0.5, 0.5], abs=0.3)


# What an idle fleet costs


@pytest.mark.needs_session("an idle worker looks there")
def test_an_idle_fleet_is_quiet(start_worker: StartWorker, rows: Rows) -> None:
    """A leader at most 35 transactions a minute and every other worker 16, here over a quarter of one.

    What autovacuum does in this database counts as well, some dozen at a time, so another quarter may be tried.
    """
    start_worker(**DEFAULTS)
    start_worker(**DEFAULTS)
    schedule(rows, cron="0 0 1 1 *")
    settled = "select count(*) from pgqueue.lane_floors"
    rows.wait_until(lambda: rows.value(settled) > 0, message="the floors' proof")
    time.sleep(11)  # a session that has nothing more to do tells its statistics after 10 s
    count = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    quarters: list[float] = []
    while not quarters or (
        quarters[-1] > 35 + 16 + 4 and len(quarters) < 3
    ):  # one more or less at either end
        before, began = rows.value(count), time.monotonic()
        time.sleep(15)  # what is counted is what happens in this time
        done = rows.value(count) - before - 1
        quarters.append(done * 60 / (time.monotonic() - began))
    print(
        "idle:",
        *(f"{a_minute:.0f}" for a_minute in quarters),
        "transactions a minute of a leader and a follower",
    )
    assert quarters[-1] <= 35 + 16 + 4
