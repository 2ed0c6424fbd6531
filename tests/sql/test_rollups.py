"""What is kept for views: depths are counted exactly and seldom, every ending is rolled up exactly once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgqueue import calls
from pgqueue.calls import UpkeepRound
from pgqueue.drivers import run
from tests.sql.acting import (
    STOP,
    Connect,
    Row,
    call,
    claim,
    claimed,
    enqueue,
    enqueue_many,
    pid,
    register,
    rows,
    sabotaged,
    scalar,
    stopped,
)
from tests.sql.history import (
    NOON,
    at,
    counts,
    ended,
    failed,
    minute_of_now,
    over,
    progress,
    rolled_up,
    rollups,
)
from tests.support import wait_for_lock_wait, wait_until

# Counting ---------------------------------------------------------------------------------------------


def depths(connection: psycopg.Connection) -> dict[tuple[str, str], tuple[int, ...]]:
    """ready, scheduled, blocked, running, dead by queue and task."""
    return {
        (row["queue"], row["task"]): tuple(
            row[state] for state in ("ready", "scheduled", "blocked", "running", "dead")
        )
        for row in rows(connection, "depths")
    }


def test_depths_are_exact_on_a_quiet_database(connection: psycopg.Connection) -> None:
    worker = register(connection, "a", "b")
    held = claimed(connection, worker, task="y", queue="b", unique_key="k")
    first = claimed(connection, worker, task="y", queue="b")
    follow_up = {"unique": {"scope": "unfinished", "on_conflict": "follow_up"}}
    enqueue(connection, "y", queue="b", unique_key="k", options=follow_up)
    lost = claimed(connection, worker, task="x", queue="a")
    failure = {"id": lost.id, "lease": lost.lease, "error": "E", "message": "m"}
    assert call(connection, "fail", failures=Jsonb([failure])) == [lost.id]
    oldest = enqueue(connection, "x", queue="a")
    enqueue_many(connection, [{"task": "x", "queue": "a"}] * 4)
    enqueue_many(connection, [{"task": "x", "queue": "a", "delay": 60}] * 3)
    assert call(connection, "count_depths") >= 0
    assert depths(connection) == {("a", "x"): (5, 3, 0, 0, 1), ("b", "y"): (0, 0, 1, 2, 0)}

    (a, b) = sorted(rows(connection, "depths"), key=lambda row: str(row["queue"]))
    (ready,) = rows(connection, "ready_jobs", "id = %s", oldest)
    assert (a["oldest_ready_at"], a["oldest_claimed_at"]) == (ready["run_at"], None)
    (running,) = rows(connection, "running_jobs", "id = %s", held.id)
    assert (b["oldest_ready_at"], b["oldest_claimed_at"]) == (None, running["claimed_at"])
    assert first.id != held.id


def test_what_is_gone_is_counted_as_none_and_forgotten(connection: psycopg.Connection) -> None:
    id = enqueue(connection)
    call(connection, "count_depths")
    rolled_up(connection)
    call(connection, "cancel", ids=[id])
    call(connection, "count_depths")
    assert depths(connection) == {("default", "t"): (0, 0, 0, 0, 0)}  # the roll-up has yet to see it
    rolled_up(connection, 60, 180)
    call(connection, "count_depths")
    assert depths(connection) == {}


def test_a_count_waits_for_nobody_and_two_are_one(connect: Connect) -> None:
    """An enqueuer under way, a claim under way, and another count that takes its time."""
    counting, other, busy = connect(settings="-c lock_timeout=50ms"), connect(), connect()
    enqueue(other)
    busy.autocommit = False
    enqueue(busy)
    claim(busy, register(other))
    assert call(counting, "count_depths") is not None
    assert depths(counting) == {("default", "t"): (1, 0, 0, 0, 0)}
    other.execute("begin; select pg_advisory_xact_lock(hashtextextended('pgqueue.figures', 0))")
    assert call(counting, "count_depths") is None
    other.execute("rollback")


NEW_RANGES = "select brin_summarize_new_values('pgqueue.finished_jobs_overflow_id_finished_at_idx')"


def test_a_summary_lets_the_latest_of_the_history_be_found_and_waits_for_nobody(connect: Connect) -> None:
    connection, other = connect(), connect()
    connection.execute("truncate pgqueue.finished_jobs_overflow")
    ended(connection, 30, jobs=3000)
    other.execute("begin; lock table pgqueue.finished_jobs_overflow in share update exclusive mode")
    call(connection, "summarize_history")
    other.execute("rollback")
    assert scalar(connection, NEW_RANGES) > 0
    ended(connection, 30, jobs=3000)
    call(connection, "summarize_history")
    assert scalar(connection, NEW_RANGES) == 0


def due(connection: psycopg.Connection) -> bool:
    """Whether a count is due."""
    answer: bool = scalar(connection, "select pgqueue.depths_due()")
    return answer


def counted(connection: psycopg.Connection, ago: float, took: float = 0.001) -> None:
    """The last count was so many seconds ago, and took so long; no minute has ended since."""
    connection.execute(
        "update pgqueue.depth_count set counted_at = clock_timestamp() - make_interval(secs => %s), seconds = %s",
        [ago, took],
    )


def test_a_count_is_due_ten_seconds_after_the_last_one_if_something_has_changed(
    connection: psycopg.Connection,
) -> None:
    assert due(connection)
    call(connection, "count_depths")
    for change in (lambda: None, lambda: enqueue(connection, delay=60), lambda: None):
        change()
        is_changed = connection.execute("select last_value from pgqueue.job_ids").fetchone() != (
            rows(connection, "depth_count")[0]["next_id"] - 1,
        )
        counted(connection, 10.1)
        assert due(connection) == is_changed
        counted(connection, 601)
        assert due(connection)  # whatever it was
        call(connection, "count_depths")
        assert not due(connection)
    id = enqueue(connection)  # ready: it may be claimed, and nothing would tell
    call(connection, "count_depths")
    counted(connection, 10.1)
    assert due(connection)
    call(connection, "cancel", ids=[id])
    call(connection, "count_depths")
    counted(connection, 10.1)
    assert not due(connection)


def test_a_count_is_due_when_a_minute_has_ended_so_that_it_is_rolled_up_with_its_depth(
    connection: psycopg.Connection,
) -> None:
    enqueue(connection)
    call(connection, "count_depths")
    connection.execute(
        "update pgqueue.depth_count set counted_at = date_trunc('minute', clock_timestamp()) - interval '1 ms', seconds = 0"
    )
    assert due(connection)


@pytest.mark.parametrize("took", [0.6, 3.0, 30.0])
def test_counting_takes_a_twentieth_of_the_time_at_the_most(
    connection: psycopg.Connection, took: float
) -> None:
    enqueue(connection)
    call(connection, "count_depths")
    counted(connection, took * 20.9, took)
    assert not due(connection)
    counted(connection, took * 21.1, took)
    assert due(connection)


def test_a_count_says_how_long_it_took(connection: psycopg.Connection) -> None:
    enqueue_many(connection, [{"task": "t"}] * 2000)
    took = call(connection, "count_depths")
    (row,) = rows(connection, "depth_count")
    assert row["seconds"] == took > 0
    assert scalar(connection, "select clock_timestamp()") - row["counted_at"] >= timedelta(seconds=took)


def test_a_cancelled_job_makes_a_count_due_even_after_one_that_came_too_early(
    connection: psycopg.Connection,
) -> None:
    """The operator's transaction draws a number, and commits after the count that this has led to; the roll-up tells."""
    enqueue(connection, delay=60)
    call(connection, "count_depths")
    counted(connection, 10.1)
    assert not due(connection)
    ended(connection, 30, state="cancelled")
    rolled_up(connection)
    assert due(connection)


# Histograms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_right_within_a_tenth(connection: psycopg.Connection, seed: int) -> None:
    chosen = random.Random(seed)
    times = sorted(10 ** chosen.uniform(-3.5, 6) for _ in range(chosen.randint(1, 400)))
    query = """
        select pgqueue.percentile(array_agg(h.bucket order by h.bucket), array_agg(h.jobs order by h.bucket), %s)
          from (select pgqueue.bucket(t) as bucket, count(*) as jobs from unnest(%s::float8[]) as t group by 1) as h"""
    for share in (0.5, 0.95, 0.99, 1.0):
        exact = times[math.ceil(share * len(times)) - 1]
        assert scalar(connection, query, share, times) == pytest.approx(exact, rel=0.0955)


def test_buckets_have_their_bounds(connection: psycopg.Connection) -> None:
    def bucket(seconds: float) -> int:
        number: int = scalar(connection, "select pgqueue.bucket(%s)", seconds)
        return number

    assert [bucket(seconds) for seconds in (-5, 0, 0.00009, 0.0001)] == [0, 0, 0, 0]
    assert [bucket(0.0001 * 1.2 ** (n - 0.5)) for n in range(1, 171)] == list(range(1, 171))
    assert bucket(1e300) == 170
    assert scalar(connection, "select pgqueue.percentile('{}', '{}', 0.5)") is None


# Rolling up -------------------------------------------------------------------------------------------


def test_a_minute_is_rolled_up_to_exact_numbers(connection: psycopg.Connection) -> None:
    for n in range(1, 101):
        ended(connection, n / 2, wait=n, run=n / 1000)
    ended(connection, 59.999, task="other", wait=3, run=5)
    ended(connection, 10, state="cancelled", jobs=3)
    failed(connection, 20, jobs=4)
    failed(connection, 21, dead_reason="exhausted", jobs=2)
    ended(connection, -0.001)  # the minute before
    ended(connection, 60)  # and after
    failed(connection, 60)
    assert rolled_up(connection) == 1
    other, row = rollups(connection, "minute", bucket_at=NOON)
    assert counts(row) == {"enqueued": 105, "completed": 100, "cancelled": 3, "failed": 6, "dead": 2}
    assert row["wait_seconds"] == pytest.approx(5050)
    assert row["run_seconds"] == pytest.approx(5.05)
    for name, exact in (("wait_p50", 50), ("wait_p95", 95), ("wait_p99", 99)):
        assert row[name] == pytest.approx(exact, rel=0.0955)
        assert row[name.replace("wait", "run")] == pytest.approx(exact / 1000, rel=0.0955)
    assert sum(row["wait_counts"]) == sum(row["run_counts"]) == 100
    assert counts(other) == {"enqueued": 1, "completed": 1}
    assert (other["wait_seconds"], other["run_seconds"]) == pytest.approx((3, 5))
    assert len(rollups(connection, "minute")) == 2
    assert progress(connection)["rolled_up_to"] == at(60)


def test_of_many_jobs_a_sample_is_enough_for_percentiles_and_rare_tasks_keep_all_of_theirs(
    connection: psycopg.Connection,
) -> None:
    many = """
        insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                           max_attempts, crashes, queue, task, state, args)
        select n, 1, t.at - n * interval '1 ms', t.at, t.at, t.at + interval '1 s', '-infinity', 11, 1, 5, 0, 'default', 'many',
               'completed', '{}' from generate_series(1, 50000) as n cross join (select %s::timestamptz) as t (at)"""
    connection.execute(many, [at(10)])
    for wait in (1, 2, 3):
        ended(connection, 30, task="rare", wait=wait)
    rolled_up(connection)
    row, rare = rollups(connection, "minute")
    assert row["completed"] == 50_000
    assert row["wait_seconds"] == pytest.approx(sum(range(1, 50_001)) / 1000)
    assert sum(row["wait_counts"]) != 50_000  # a sample
    assert sum(row["wait_counts"]) == pytest.approx(50_000, rel=0.05)
    for name, exact in (("wait_p50", 25), ("wait_p95", 47.5), ("wait_p99", 49.5)):
        assert row[name] == pytest.approx(exact, rel=0.2)  # or it is the next bucket
    assert rare["wait_counts"] == [1, 1, 1]


def test_minutes_are_merged_to_hours_and_hours_to_days(connection: psycopg.Connection) -> None:
    """As if they had been rolled up from the jobs themselves."""
    chosen = random.Random(7)
    waits: dict[str, list[float]] = {"a": [], "b": []}
    moments = sorted(chosen.uniform(0, 3 * 3600) for _ in range(120))
    for moment in moments:
        task = chosen.choice("ab")
        waits[task].append(10 ** chosen.uniform(-2, 3))
        ended(connection, moment, task=task, wait=waits[task][-1], run=0.5)
        failed(connection, moment, task=task)
    assert rolled_up(connection, 0, 3 * 3600) == 180
    for period, length in (("hour", 3600), ("day", 86400)):
        found = rollups(connection, period)
        assert sum(row["completed"] for row in found) == sum(row["failed"] for row in found) == len(moments)
        for row in found:
            begin = (row["bucket_at"] - NOON).total_seconds()
            assert begin == (-43200 if period == "day" else begin // 3600 * 3600)
            parts = [
                part
                for part in rollups(connection, "minute", task=row["task"])
                if begin <= (part["bucket_at"] - NOON).total_seconds() < begin + length
            ]
            for name in ("completed", "failed", "enqueued"):
                assert row[name] == sum(part[name] for part in parts)
            assert row["wait_seconds"] == pytest.approx(sum(part["wait_seconds"] for part in parts))
    for row in rollups(connection, "day"):
        exact = sorted(waits[row["task"]])
        for name, share in (("wait_p50", 0.5), ("wait_p95", 0.95), ("wait_p99", 0.99)):
            assert row[name] == pytest.approx(exact[math.ceil(share * len(exact)) - 1], rel=0.0955)


def test_the_last_hour_is_kept_by_task_and_by_queue(connection: psycopg.Connection) -> None:
    ended(connection, 30, task="a", wait=1)  # leaves the hour
    ended(connection, 90, task="a", wait=10, jobs=3)
    ended(connection, 3600, task="b", wait=100)
    ended(connection, 3600, task="b", queue="else", wait=5)
    rolled_up(connection, 0, 3660)
    found = {(row["queue"], row["task"]): row for row in rollups(connection, "last_hour")}
    assert {key: row["completed"] for key, row in found.items()} == {
        ("default", "a"): 3,
        ("default", "b"): 1,
        ("default", ""): 4,
        ("else", "b"): 1,
        ("else", ""): 1,
    }
    assert {row["bucket_at"] for row in found.values()} == {at(60)}
    assert found["default", ""]["wait_p50"] == pytest.approx(10, rel=0.0955)
    assert found["default", ""]["wait_p99"] == pytest.approx(100, rel=0.0955)
    rolled_up(connection, 3660, 3720)
    assert {row["task"] for row in rollups(connection, "last_hour")} == {"b", ""}


def test_a_target_is_compared_with_the_exact_waits(connection: psycopg.Connection) -> None:
    connection.execute("insert into pgqueue.queues (name, target_wait) values ('default', 5)")
    for wait in (4.9, 5.0, 5.1):
        ended(connection, 30, wait=wait)
    ended(connection, 30, state="cancelled")
    ended(connection, 30, queue="without")
    rolled_up(connection)
    found = {row["queue"]: (row["targeted"], row["in_target"]) for row in rollups(connection, "minute")}
    assert found == {"default": (3, 2), "without": (0, 0)}


def test_after_a_while_without_a_leader_it_catches_up_in_small_steps(connection: psycopg.Connection) -> None:
    days = 3
    moments = [60 * 7, 60 * 8 + 1, 3600 * 5, 86400 * days - 1]
    for moment in moments:
        ended(connection, moment)
    over(connection, 0, 86400 * days)
    with sabotaged(connection, "roll_up", ("interval '200 milliseconds'", "interval '5 milliseconds'")):
        steps = []
        while progress(connection)["rolled_up_to"] < at(86400 * days):
            steps.append(call(connection, "roll_up"))
    assert sum(steps) == days * 1440
    assert len(steps) > 3
    assert [row["bucket_at"] for row in rollups(connection, "minute")] == [
        at(moment // 60 * 60) for moment in moments if moment >= 86400 * (days - 2)
    ]  # the others are over two days old by now
    assert sum(row["completed"] for row in rollups(connection, "hour")) == len(moments)
    assert sum(row["completed"] for row in rollups(connection, "day")) == len(moments)


def test_what_is_old_is_forgotten_minutes_first(connection: psycopg.Connection) -> None:
    ended(connection, 30)
    failed(connection, 30)
    rolled_up(connection)
    for days, left in (
        (1.9, ["day", "hour", "minute"]),
        (2.1, ["day", "hour"]),
        (99, ["day", "hour"]),
        (101, ["day"]),
    ):
        rolled_up(connection, 86400 * days, 86400 * days + 60)
        assert sorted({row["period"] for row in rows(connection, "rollups")}) == left
        rolled_up(connection, math.ceil(24 * days) * 3600 - 60, math.ceil(24 * days) * 3600)
        assert len(rows(connection, "failure_groups")) == (days < 100)


def test_a_minute_has_a_row_while_something_happens_or_jobs_wait(connection: psycopg.Connection) -> None:
    """So the depths of a minute add up to all that waits."""
    id = enqueue(connection)
    call(connection, "count_depths")
    rolled_up(connection, 0, 180)
    found = rollups(connection, "minute")
    assert [(row["enqueued"], row["depth"]) for row in found] == [(1, 1), (0, 1), (0, 1)]
    call(connection, "cancel", ids=[id])
    call(connection, "count_depths")
    rolled_up(connection, 180, 600)
    assert [row["depth"] for row in rollups(connection, "minute")] == [1, 1, 1, 0]


# Once -------------------------------------------------------------------------------------------------


def an_hour_ago(connection: psycopg.Connection) -> None:
    """The roll-up has come up to an hour ago, and nothing is proven."""
    connection.execute(
        "update pgqueue.rollup_progress set rolled_up_to = date_trunc('minute', now()) - interval '1 hour',"
        " proven_to = '-infinity', next_to = null"
    )


def end_late(connect: Connect) -> tuple[psycopg.Connection, int]:
    """A transaction that has ended a job half an hour ago, and is still open."""
    late = connect()
    worker = register(late)
    job = claimed(late, worker)
    late.autocommit = False
    assert call(late, "complete", ids=[job.id], leases=[job.lease]) == [job.id]
    late.execute(
        "update pgqueue.finished_jobs set finished_at = finished_at - interval '30 minutes' where id = %s",
        [job.id],
    )
    return late, job.id


def caught_up(connection: psycopg.Connection) -> int:
    """Rolls up whatever may be; how many minutes, within however many calls."""
    return sum(iter(lambda: call(connection, "roll_up"), 0))


def completed(connection: psycopg.Connection) -> int:
    """How many completed jobs have been rolled up."""
    return sum(row["completed"] for row in rollups(connection, "minute"))


def test_an_ending_that_commits_late_is_counted_once(connect: Connect) -> None:
    connection = connect()
    an_hour_ago(connection)
    late, _ = end_late(connect)
    for _ in range(3):
        assert call(connection, "roll_up") == 0
    assert progress(connection)["writers"] != []
    late.commit()
    assert caught_up(connection) >= 59
    assert completed(connection) == 1
    assert sum(row["completed"] for row in rollups(connection, "day")) == 1


def test_an_ending_that_commits_late_is_lost_when_nobody_waits_for_it(connect: Connect) -> None:
    """So the test above can fail."""
    connection = connect()
    an_hour_ago(connection)
    late, _ = end_late(connect)
    with sabotaged(
        connection,
        "roll_up",
        ("progress.writers := pgqueue.endings_under_way();", "progress.writers := '{}';"),
    ):
        assert caught_up(connection) >= 59
        late.commit()
        call(connection, "roll_up")
    assert completed(connection) == 0


def test_endings_that_begin_after_the_proof_do_not_hold_it_back(connect: Connect) -> None:
    connection = connect()
    an_hour_ago(connection)
    first, _ = end_late(connect)
    assert call(connection, "roll_up") == 0
    second, _ = end_late(connect)
    first.commit()
    assert caught_up(connection) >= 59
    second.rollback()


def test_another_start_of_the_server_voids_a_proof(connect: Connect) -> None:
    connection = connect()
    an_hour_ago(connection)
    late, _ = end_late(connect)
    connection.execute(
        "update pgqueue.rollup_progress set next_to = clock_timestamp(), writers = '{9/9}', server_started_at = '2020-01-01'"
    )
    assert call(connection, "roll_up") == 0
    late.commit()
    assert caught_up(connection) >= 59
    assert completed(connection) == 1


def test_two_leaders_that_roll_up_at_once_count_once(
    connect: Connect, beside: Callable[..., Future[Any]]
) -> None:
    holder, one, other = connect(), connect(), connect()
    ended(holder, 30, jobs=5)
    over(holder, 0, 60)
    halt = ("closed_at := date_trunc", f"perform {STOP}; closed_at := date_trunc")
    with sabotaged(holder, "roll_up", halt):
        with stopped(holder):
            first = beside(call, one, "roll_up")
            wait_for_lock_wait(holder, pid(one))
            assert call(other, "roll_up") == 0
        assert first.result() == 1
    assert progress(other)["rolled_up_to"] == at(60)
    assert completed(holder) == 5


def test_a_roll_up_that_is_rolled_back_is_made_again(connect: Connect) -> None:
    connection, lost = connect(), connect()
    ended(connection, 30, jobs=5)
    over(connection, 0, 60)
    lost.autocommit = False
    assert call(lost, "roll_up") == 1
    lost.rollback()
    assert call(connection, "roll_up") == 1
    assert completed(connection) == 5


def test_a_roll_up_refuses_a_snapshot_that_outlives_its_statements(connect: Connect) -> None:
    strict = connect(settings="-c default_transaction_isolation=repeatable\\ read")
    with pytest.raises(psycopg.Error, match="READ COMMITTED"):
        call(strict, "roll_up")


# Enqueued ---------------------------------------------------------------------------------------------


def test_enqueued_is_what_must_have_come(connection: psycopg.Connection) -> None:
    """The change of depth, and what has ended; a retry, a snooze, a claim bring nothing."""
    worker = register(connection)
    enqueue_many(connection, [{"task": "t"}] * 10 + [{"task": "t", "delay": 60}] * 2)
    assert counts(minute_of_now(connection, 0)) == {"enqueued": 12}
    assert counts(minute_of_now(connection, 1)) == {}

    jobs = claim(connection, worker, 5)
    call(connection, "complete", ids=[j.id for j in jobs[:2]], leases=[j.lease for j in jobs[:2]])
    failures = [
        {"id": j.id, "lease": j.lease, "delay": d} for j, d in zip(jobs[2:4], (60, None), strict=True)
    ]
    call(connection, "fail", failures=Jsonb(failures))
    call(connection, "cancel", ids=[enqueue(connection)])
    enqueue(connection)
    assert counts(minute_of_now(connection, 2)) == {
        "enqueued": 2,
        "completed": 2,
        "cancelled": 1,
        "failed": 2,
        "dead": 1,
    }
    dead = jobs[3].id
    assert call(connection, "replay", ids=[dead]) == [dead]
    assert counts(minute_of_now(connection, 3)) == {"enqueued": 1}


@pytest.mark.parametrize("how", ["discard", "cancel"])
def test_a_dead_letter_that_is_given_up_was_not_enqueued_again(
    connection: psycopg.Connection, how: str
) -> None:
    job = claimed(connection, register(connection), max_attempts=1)
    call(connection, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease, "delay": 1}]))
    assert counts(minute_of_now(connection, 0)) == {"enqueued": 1, "failed": 1, "dead": 1}
    # where the failure was moved to, its claim was before it
    connection.execute("update pgqueue.dead_letters set claimed_at = %s", [at(1)])
    call(connection, how, ids=[job.id])
    assert counts(minute_of_now(connection, 1)) == {"cancelled": 1}


def test_a_minute_that_seems_to_have_lost_jobs_gives_them_to_the_next(connection: psycopg.Connection) -> None:
    """Three of ten jobs end after the minute and before the count."""
    worker = register(connection)
    enqueue_many(connection, [{"task": "t"}] * 10)
    minute_of_now(connection, 0)
    jobs = claim(connection, worker, 3)
    call(connection, "complete", ids=[j.id for j in jobs], leases=[j.lease for j in jobs])
    call(connection, "count_depths")
    rolled_up(connection, 60, 120)
    (row,) = rollups(connection, "minute", bucket_at=at(60))
    assert (counts(row), row["depth"]) == ({}, 7)
    enqueue(connection)
    assert counts(minute_of_now(connection, 2)) == {"enqueued": 1, "completed": 3}


def test_jobs_that_somebody_has_deleted_are_not_owed_for_ever(connection: psycopg.Connection) -> None:
    enqueue_many(connection, [{"task": "t"}] * 10)
    minute_of_now(connection, 0)
    connection.execute("delete from pgqueue.ready_jobs")
    for minute, enqueued in ((1, 0), (2, 0), (3, 5)):
        enqueue_many(connection, [{"task": "t"}] * (5 if minute > 1 else 0))
        row = minute_of_now(connection, minute)
        assert row is not None
        assert row["enqueued"] == enqueued


# Failures ---------------------------------------------------------------------------------------------


def group(connection: psycopg.Connection, **columns: Any) -> Row:
    """The one group that has these values."""
    (found,) = rows(
        connection, "failure_groups", " and ".join(f"{name} = %s" for name in columns), *columns.values()
    )
    return found


def test_failures_are_grouped_by_fingerprint_queue_and_task(connection: psycopg.Connection) -> None:
    failed(connection, 10, message="first", jobs=2)
    last = failed(connection, 50, message="last", dead_reason="exhausted")
    failed(connection, 20, fingerprint="g")
    failed(connection, 20, task="other")
    failed(connection, 20, fingerprint=None, error="KeyError", message="x" * 2000)
    rolled_up(connection)
    found = group(connection, fingerprint="f", task="t")
    assert (found["failures"], found["dead"], found["message"], found["job_id"]) == (3, 1, "last", last)
    assert (found["first_seen_at"], found["last_seen_at"]) == (at(10), at(50))
    assert group(connection, fingerprint="g")["failures"] == 1
    assert group(connection, fingerprint="f", task="other")["failures"] == 1
    assert group(connection, fingerprint="KeyError")["message"] == "x" * 1000

    newer = failed(connection, 100, message="newer", error="TypeError")
    rolled_up(connection, 60, 120)
    found = group(connection, fingerprint="f", task="t")
    assert (found["failures"], found["dead"]) == (4, 1)
    assert (found["error"], found["message"], found["job_id"]) == ("TypeError", "newer", newer)
    assert (found["first_seen_at"], found["last_seen_at"]) == (at(10), at(100))


# What upkeep says -------------------------------------------------------------------------------------


def keep_up(connection: psycopg.Connection, supervisor_id: int = 1) -> UpkeepRound:
    """One round of upkeep."""
    done = run(
        connection,
        calls.upkeep(
            supervisor_id=supervisor_id,
            worker_ids=(),
            queues=("default",),
            round_seconds=2,
            overdue_seconds=4,
            hears=True,
        ),
    )
    assert done.problems == []
    return done


def test_upkeep_tells_the_leader_alone_what_is_due(connection: psycopg.Connection) -> None:
    connection.execute("update pgqueue.rollup_progress set rolled_up_to = rolled_up_to - interval '1 hour'")
    leader, follower = keep_up(connection, 1), keep_up(connection, 2)
    assert (leader.led, leader.depths_due, leader.rollup_due) == (True, True, True)
    assert (follower.led, follower.depths_due, follower.rollup_due) == (False, False, False)

    def caught_up() -> bool:  # a minute may end meanwhile
        call(connection, "count_depths")
        call(connection, "roll_up")
        done = keep_up(connection, 1)
        return (done.depths_due, done.rollup_due) == (False, False)

    wait_until(caught_up, message="nothing to be due")


def test_nobody_reads_what_is_kept_for_views_but_views_and_upkeep(connection: psycopg.Connection) -> None:
    """What enqueues, claims and ends jobs pays nothing for it."""
    readers = scalar(
        connection,
        "select array_agg(p.proname::text order by 1) from pg_proc as p where p.pronamespace = 'pgqueue'::regnamespace"
        r" and p.prosrc ~ 'pgqueue\.(depths|depth_count|rollups|rollup_progress|failure_groups)\M'",
    )
    assert set(readers) >= {"count_depths", "roll_up"}
    hot = {
        "enqueue",
        "enqueue_many",
        "claim",
        "complete",
        "complete_with_results",
        "fail",
        "snooze",
        "release",
    }
    assert not hot & set(readers)


def test_a_queue_takes_settings_that_mean_something_and_no_others(connection: psycopg.Connection) -> None:
    good: dict[str, list[Any]] = {
        "worker_limit": [1, None],
        "max_attempts": [1, 32767],
        "timeout": [0.5],
        "target_wait": [5],
        "max_oldest": [60],
        "keep_completed": [timedelta(0), timedelta(days=7)],
        "keep_cancelled": [timedelta(0)],
        "keep_dead": [timedelta(days=365), None],
        "max_completed": [0, 10**12],
        "max_cancelled": [0],
        "max_dead": [10],
        "max_depth": [0],
    }
    bad: dict[str, list[Any]] = {
        "worker_limit": [0, -1],
        "max_attempts": [0, 32768],
        "timeout": [0, -1, math.inf, math.nan],
        "target_wait": [0, math.nan],
        "max_oldest": [0, math.inf],
        "keep_completed": [timedelta(seconds=-1)],
        "keep_cancelled": [timedelta(seconds=-1)],
        "keep_dead": [timedelta(seconds=-1)],
        "max_completed": [-1],
        "max_cancelled": [-1],
        "max_dead": [-1],
        "max_depth": [-1],
    }
    connection.execute("insert into pgqueue.queues (name) values ('q')")
    for column, values in good.items():
        for value in values:
            connection.execute(f"update pgqueue.queues set {column} = %s", [value])
    for column, values in bad.items():
        for value in values:
            with pytest.raises(psycopg.errors.CheckViolation):
                connection.execute(f"update pgqueue.queues set {column} = %s", [value])
    assert bad.keys() == good.keys()
