"""Retention: days that are dropped whole, jobs trimmed by age and by count, and what a reader beside it costs.

Rows are made by hand on days of the past; the clock is left alone, and the roll-up has come up to now.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.sql.acting import (
    Connect,
    call,
    claim,
    claimed,
    count,
    enqueue_many,
    pid,
    register,
    row_of,
    rows,
    sabotaged,
    scalar,
    where,
)

_IDS = itertools.count(20_000_000)
WEEK = 7 * 86400.0
HOUR = 3600.0


@pytest.fixture
def history(connect: Connect, fresh: str) -> psycopg.Connection:
    """A database of the test's own, rolled up to now."""
    connection = connect(fresh)
    call(connection, "retain")
    rolled_up_to_now(connection)
    return connection


def rolled_up_to_now(connection: psycopg.Connection) -> None:
    connection.execute("update pgqueue.rollup_progress set rolled_up_to = clock_timestamp()")


def day_ago(days: int) -> str:
    """The suffix of a partition of so many days ago."""
    return (datetime.now(UTC).date() - timedelta(days=days)).strftime("_%Y%m%d")


def add_day(connection: psycopg.Connection, days: int) -> None:
    """The partitions of so many days ago, as retain made them then."""
    day = datetime.now(UTC).date() - timedelta(days=days)
    for parent in ("finished_jobs", "job_failures", "job_reports"):
        connection.execute(
            sql.SQL(
                "create table pgqueue.{0} (like pgqueue.{1} including defaults including indexes);"
                "alter table pgqueue.{1} attach partition pgqueue.{0} for values from ({2}) to ({3})"
            ).format(
                sql.Identifier(parent + day_ago(days)),
                sql.Identifier(parent),
                sql.Literal(str(day)),
                sql.Literal(str(day + timedelta(days=1))),
            )
        )


def finished(
    connection: psycopg.Connection,
    ago: float,
    *,
    jobs: int = 1,
    queue: str = "default",
    state: str = "completed",
    in_overflow: bool = False,
) -> list[int]:
    """Jobs that ended so many seconds ago, on that day if it has a partition; their ids."""
    ids = [next(_IDS) for _ in range(jobs)]
    connection.execute(
        "insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,"
        " max_attempts, crashes, queue, task, state, args)"
        " select i, 1, t.at, t.at, t.at, t.at, case when %s then '-infinity' else (t.at at time zone 'UTC')::date end, 11, 1, 5, 0,"
        " %s, 't', %s, '{}'"
        " from unnest(%s::bigint[]) as i, (select clock_timestamp() - make_interval(secs => %s) as at) as t",
        [in_overflow, queue, state, ids, ago],
    )
    return ids


def dead(connection: psycopg.Connection, ago: float, *, jobs: int = 1, queue: str = "default") -> list[int]:
    """Dead letters that died so many seconds ago; their ids."""
    ids = [next(_IDS) for _ in range(jobs)]
    connection.execute(
        "insert into pgqueue.dead_letters (id, run_at, created_at, died_at, lane, attempt, max_attempts, crashes, queue, task,"
        " args, reason, errors)"
        " select i, t.at, t.at, t.at, 11, 5, 5, 0, %s, 't', '{}', 'exhausted', '[]'"
        " from unnest(%s::bigint[]) as i, (select clock_timestamp() - make_interval(secs => %s) as at) as t",
        [queue, ids, ago],
    )
    return ids


def keep(connection: psycopg.Connection, queue: str = "default", **settings: Any) -> None:
    """Sets what a queue keeps."""
    names = sql.SQL(", ").join(map(sql.Identifier, settings))
    values = sql.SQL(", ").join(map(sql.Literal, settings.values()))
    connection.execute(
        sql.SQL(
            "insert into pgqueue.queues (name, {0}) values ({1}, {2})"
            " on conflict (name) do update set ({0}) = row ({2})"
        ).format(names, sql.Literal(queue), values)
    )


def trimmed(connection: psycopg.Connection) -> int:
    """Trims until there is no more to do, in steps of at most 1,000; how many jobs went."""
    total = 0
    for _ in range(1000):
        (step,) = call(connection, "trim_history")
        assert step["jobs"] <= 1000
        total += int(step["jobs"])
        if not step["more"]:
            return total
    raise AssertionError("there is no end to it")


def dropped(connection: psycopg.Connection) -> list[str]:
    """Drops until there is none to drop; the partitions, in their order."""
    found = []
    while (name := call(connection, "drop_day")[0]["dropped"]) is not None:
        found.append(name)
    return found


def due(connection: psycopg.Connection) -> bool:
    return bool(scalar(connection, "select pgqueue.retention_due()"))


def due_now(connection: psycopg.Connection) -> None:
    """All that is to come later is due now."""
    connection.execute("update pgqueue.trims set due_at = '-infinity' where due_at < 'infinity'")


def there(connection: psycopg.Connection, ids: list[int]) -> int:
    """How many of these jobs are still on record as finished or dead."""
    return sum(bool(where(connection, id)) for id in ids)


# Days, whole -------------------------------------------------------------------------------------------


def test_days_past_a_week_are_dropped_whole_one_partition_a_call(history: psycopg.Connection) -> None:
    for days in (9, 8, 7):
        add_day(history, days)
    gone = finished(history, 9 * 86400, jobs=3)
    kept = finished(history, 7 * 86400, jobs=3)
    assert dropped(history) == [
        parent + day_ago(days)
        for days in (9, 8)
        for parent in ("finished_jobs", "job_failures", "job_reports")
    ]
    assert (there(history, gone), there(history, kept)) == (0, 3)
    assert call(history, "drop_day") == [{"dropped": None, "blocked_by": []}]


def test_a_day_stays_as_long_as_one_queue_keeps_it(history: psycopg.Connection) -> None:
    add_day(history, 9)
    keep(history, "ledger", keep_cancelled="30 days")
    assert dropped(history) == []
    keep(history, "ledger", keep_cancelled="8 hours", keep_completed="1000000 years")
    assert dropped(history) == []
    keep(history, "ledger", keep_completed=None)
    assert len(dropped(history)) == 3


def test_a_day_that_is_not_rolled_up_stays(history: psycopg.Connection) -> None:
    add_day(history, 9)
    history.execute("update pgqueue.rollup_progress set rolled_up_to = now() - interval '9 days'")
    assert dropped(history) == []


def test_how_the_jobs_of_schedules_ended_is_noted_before_their_day_goes(history: psycopg.Connection) -> None:
    add_day(history, 9)
    call(history, "schedule", name="s", task="t", every=3600.0)
    (id,) = finished(history, 9 * 86400)
    history.execute(
        "insert into pgqueue.schedule_runs (schedule, due_at, ran_at, outcome, job_id)"
        " values ('s', now(), now(), 'enqueued', %s)",
        [id],
    )
    assert len(dropped(history)) == 3
    assert scalar(history, "select state from pgqueue.schedule_runs where job_id = %s", id) == "completed"


def complete(connection: psycopg.Connection, worker: int, number: int) -> list[float]:
    """Completes jobs, one at a time; how long each took, in seconds, in ascending order."""
    enqueue_many(connection, [{"task": "t"}] * number)
    took = []
    for job in claim(connection, worker, number):
        began = time.perf_counter()
        assert call(connection, "complete", ids=[job.id], leases=[job.lease]) == [job.id]
        took.append(time.perf_counter() - began)
    assert len(took) == number
    return sorted(took)


@pytest.fixture
def read(connect: Connect, fresh: str, history: psycopg.Connection) -> psycopg.Connection:
    """A session that has a report under way, which reads a day that is past its time."""
    add_day(history, 9)
    finished(history, 9 * 86400)
    reader = connect(fresh, autocommit=False)
    reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    assert scalar(reader, "select count(*) from pgqueue_bi.jobs") == 1
    return reader


def test_a_report_of_hours_delays_no_completion_is_not_waited_for_and_the_drop_comes_after_it(
    connect: Connect, fresh: str, read: psycopg.Connection, beside: Callable[..., Future[Any]]
) -> None:
    """The worker gives a lock 10 ms: a completion that had to wait for longer would fail."""
    worker, keeper = connect(fresh, settings="-c lock_timeout=10ms"), connect(fresh)
    own = register(worker)
    alone = complete(worker, own, 300)
    completing = beside(complete, worker, own, 900)
    calls = 0
    while not completing.done() or not calls:
        began = time.perf_counter()
        assert call(keeper, "drop_day") == [{"dropped": None, "blocked_by": [pid(read)]}]
        assert time.perf_counter() - began < 0.5
        calls += 1
    took = completing.result()
    print(
        f"p99 of a completion: {alone[297] * 1e3:.1f} ms alone, {took[891] * 1e3:.1f} ms beside {calls} calls"
    )
    assert (
        scalar(read, "select count(*) from pgqueue_bi.jobs where finished_at < now() - interval '8 days'")
        == 1
    )
    read.commit()
    assert len(dropped(keeper)) == 3


@pytest.mark.usefixtures("read")
def test_a_careless_drop_that_asks_for_the_lock_at_once_delays_completions(
    connect: Connect, fresh: str, beside: Callable[..., Future[Any]]
) -> None:
    worker, keeper = connect(fresh, settings="-c lock_timeout=10ms"), connect(fresh)
    with sabotaged(keeper, "drop_day", ("if cardinality(holders) > 0 then", "if false then")):
        completing = beside(complete, worker, register(worker), 900)
        while not completing.done():
            assert call(keeper, "drop_day")[0]["dropped"] is None  # after 50 ms
        with pytest.raises(psycopg.errors.LockNotAvailable):
            completing.result()


def test_days_are_dropped_beside_completions_that_never_stop(
    connect: Connect, fresh: str, history: psycopg.Connection, beside: Callable[..., Future[Any]]
) -> None:
    for days in range(8, 18):
        add_day(history, days)
    worker = connect(fresh)
    completing = beside(complete, worker, register(worker), 900)
    found: list[str] = []
    while len(found) < 30:
        found += dropped(history)
    took = completing.result()
    print(
        f"p99 of a completion: {took[891] * 1e3:.1f} ms, the longest {took[-1] * 1e3:.1f} ms, beside 30 drops"
    )


def test_a_prepared_transaction_that_ends_jobs_is_not_waited_for(
    connect: Connect, fresh: str, history: psycopg.Connection
) -> None:
    add_day(history, 9)
    other = connect(fresh, settings="-c pgqueue.notify=off", autocommit=False)
    job = claimed(history, register(history))
    call(other, "complete", ids=[job.id], leases=[job.lease])
    other.execute("prepare transaction 'held'")
    began = time.perf_counter()
    assert call(history, "drop_day")[0]["dropped"] is None
    assert time.perf_counter() - began < 0.5
    history.execute("commit prepared 'held'")
    assert len(dropped(history)) == 3


def test_an_ending_finds_a_place_when_the_partition_of_its_day_is_gone(history: psycopg.Connection) -> None:
    history.execute(f"drop table pgqueue.finished_jobs{day_ago(0)}")
    job = claimed(history, register(history))
    assert call(history, "complete", ids=[job.id], leases=[job.lease]) == [job.id]
    assert row_of(history, job.id)["day"] is None  # -infinity: the overflow
    keep(history, keep_completed="0")
    history.execute("update pgqueue.finished_jobs set finished_at = finished_at - interval '61 s'")
    assert trimmed(history) == 1


# By age ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_overflow", [False, True], ids=["in its day", "in the overflow"])
@pytest.mark.parametrize("state", ["completed", "cancelled"])
def test_a_queue_that_keeps_an_hour_loses_what_is_older_and_nothing_else(
    history: psycopg.Connection, state: str, in_overflow: bool
) -> None:
    add_day(history, 1)
    keep(history, "short", **{f"keep_{state}": "1 hour"})
    other = "cancelled" if state == "completed" else "completed"
    kept = finished(history, 2 * HOUR, jobs=3, in_overflow=in_overflow)
    kept += finished(history, 2 * HOUR, jobs=3, queue="short", state=other, in_overflow=in_overflow)
    kept += finished(history, HOUR - 60, jobs=3, queue="short", state=state, in_overflow=in_overflow)
    gone = finished(history, HOUR + 60, jobs=5, queue="short", state=state, in_overflow=in_overflow)
    assert trimmed(history) == 5
    assert (there(history, gone), there(history, kept)) == (0, 9)


def test_the_default_is_a_week_in_the_overflow_and_in_days_that_others_keep_longer(
    history: psycopg.Connection,
) -> None:
    add_day(history, 9)
    gone = finished(history, 8 * 86400, in_overflow=True)
    assert trimmed(history) == 1
    gone += finished(history, 9 * 86400, jobs=2)
    keep(history, "ledger", keep_completed="30 days")
    kept = finished(history, 9 * 86400, queue="ledger") + finished(history, 86400, in_overflow=True)
    due_now(history)
    assert trimmed(history) == 2
    assert (there(history, gone), there(history, kept)) == (0, 2)


def test_without_settings_no_day_is_gone_through(history: psycopg.Connection) -> None:
    add_day(history, 3)
    finished(history, 3 * 86400, jobs=2)
    assert trimmed(history) == 0
    found = rows(history, "trims", "day is not null and due_at < 'infinity'")
    assert found == []


def test_none_are_kept_after_a_minute_when_they_have_been_rolled_up(history: psycopg.Connection) -> None:
    keep(history, keep_completed="0", keep_cancelled="0")
    fresh, old = finished(history, 30), finished(history, 90, state="cancelled")
    history.execute("update pgqueue.rollup_progress set rolled_up_to = now() - interval '2 minutes'")
    assert trimmed(history) == 0  # it has not been counted
    rolled_up_to_now(history)
    due_now(history)
    assert trimmed(history) == 1
    assert (there(history, fresh), there(history, old)) == (1, 0)  # somebody may wait for it
    history.execute("update pgqueue.finished_jobs set finished_at = finished_at - interval '40 s'")
    due_now(history)
    assert trimmed(history) == 1


# By count ----------------------------------------------------------------------------------------------


def rolled(connection: psycopg.Connection, ago: float, completed: int, *, period: str = "minute") -> None:
    """A rollup: so many jobs of the queue `short` completed in the period so long ago."""
    connection.execute(
        "insert into pgqueue.rollups (period, bucket_at, queue, task, enqueued, completed, cancelled, failed, dead, depth,"
        " targeted, in_target, wait_seconds, run_seconds, wait_buckets, wait_counts, run_buckets, run_counts)"
        " values (%s, date_trunc(%s, now() - make_interval(secs => %s)), 'short', 't', 0, %s, 0, 0, 0, 0, 0, 0, 0, 0,"
        " '{}', '{}', '{}', '{}')",
        [period, period, ago, completed],
    )


def test_the_latest_are_kept_to_the_minute(history: psycopg.Connection) -> None:
    keep(history, "short", max_completed=10)
    for minutes in (30, 20, 10):
        rolled(history, minutes * 60, 6)
    old = finished(history, 31 * 60, jobs=6, queue="short")
    history.execute(
        "update pgqueue.finished_jobs set finished_at = date_trunc('minute', finished_at) where id = any(%s)",
        [old],
    )
    kept = finished(history, 20 * 60, jobs=6, queue="short")
    kept += finished(history, 10 * 60, jobs=6, queue="short") + finished(history, 5 * HOUR)
    kept += finished(history, 5 * HOUR, queue="short", state="cancelled")
    assert trimmed(history) == 6  # 12 of them are left: two minutes, whole
    assert (there(history, old), there(history, kept)) == (0, 14)


def test_those_of_days_ago_are_kept_to_the_hour(history: psycopg.Connection) -> None:
    for days in (3, 5):
        add_day(history, days)
        rolled(history, days * 86400, 6, period="hour")
    keep(history, "short", max_completed=6)
    old = finished(history, 5 * 86400, jobs=6, queue="short")
    kept = finished(history, 3 * 86400, jobs=6, queue="short")
    assert trimmed(history) == 6
    assert (there(history, old), there(history, kept)) == (0, 6)


def test_a_number_of_none_keeps_none(history: psycopg.Connection) -> None:
    keep(history, "short", max_completed=0, max_dead=0)
    finished(history, 61, jobs=2, queue="short")
    dead(history, 61, jobs=2, queue="short")
    assert trimmed(history) == 4


# Dead letters ------------------------------------------------------------------------------------------


def test_dead_letters_are_kept_for_ever(history: psycopg.Connection) -> None:
    ids = dead(history, 10 * 365 * 86400)
    keep(history, "other", keep_dead="1 day")
    assert trimmed(history) == 0
    assert there(history, ids) == 1


def test_dead_letters_go_by_age(history: psycopg.Connection) -> None:
    keep(history, keep_dead="1 day")
    gone, kept = dead(history, 25 * HOUR, jobs=1005), dead(history, 23 * HOUR, jobs=2)
    kept += dead(history, 25 * HOUR, queue="other")
    assert trimmed(history) == 1005
    assert (there(history, gone[:20]), there(history, kept)) == (0, 3)
    assert count(history, "dead_letters") == 3


def test_the_latest_dead_letters_are_kept_exactly(history: psycopg.Connection) -> None:
    keep(history, max_dead=2)
    gone, kept = dead(history, 300) + dead(history, 299), dead(history, 298) + dead(history, 297)
    kept += dead(history, 999, jobs=5, queue="other")
    assert trimmed(history) == 2
    assert (there(history, gone), there(history, kept)) == (0, 7)
    assert trimmed(history) == 0


# What goes with a job -----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["completed", "dead"])
def test_what_is_on_record_of_a_job_goes_with_it_and_its_schedule_knows_how_it_ended(
    history: psycopg.Connection, state: str
) -> None:
    keep(history, keep_completed="1 hour", keep_dead="1 hour")
    (id,) = finished(history, 2 * HOUR) if state == "completed" else dead(history, 2 * HOUR)
    for job in (id, 1):
        for day in ("-infinity", str(datetime.now(UTC).date())):
            history.execute(
                "insert into pgqueue.job_failures (job_id, worker_id, failed_at, day, attempt, queue, task, error, message)"
                " values (%s, 1, now(), %s, 1, 'default', 't', 'E', '')",
                [job, day],
            )
            history.execute(
                "insert into pgqueue.job_reports (job_id, worker_id, reported_at, day, attempt) values (%s, 1, now(), %s, 1)",
                [job, day],
            )
        history.execute(
            "insert into pgqueue.job_steps (job_id, name, attempt, recorded_at, result) values (%s, 's', 1, now(), '1')",
            [job],
        )
        history.execute(
            "insert into pgqueue.schedule_runs (schedule, due_at, ran_at, outcome, job_id)"
            " values ('s', now() - make_interval(secs => %s), now(), 'enqueued', %s)",
            [job, job],
        )
    assert trimmed(history) == 1
    left = {
        t: [row["job_id"] for row in rows(history, t)] for t in ("job_failures", "job_reports", "job_steps")
    }
    assert left == {"job_failures": [1, 1], "job_reports": [1, 1], "job_steps": [1]}
    states = {row["job_id"]: row["state"] for row in rows(history, "schedule_runs")}
    assert states == {id: state, 1: None}


def test_failures_and_reports_in_the_overflow_go_after_the_longest_time(history: psycopg.Connection) -> None:
    for days in (6, 8):
        history.execute(
            "insert into pgqueue.job_failures (job_id, worker_id, failed_at, day, attempt, queue, task, error, message)"
            " values (%s, 1, now() - make_interval(days => %s), '-infinity', 1, 'default', 't', 'E', '')",
            [days, days],
        )
        history.execute(
            "insert into pgqueue.job_reports (job_id, worker_id, reported_at, day, attempt)"
            " values (%s, 1, now() - make_interval(days => %s), '-infinity', 1)",
            [days, days],
        )
    trimmed(history)
    assert [row["job_id"] for row in rows(history, "job_failures")] == [6]
    assert [row["job_id"] for row in rows(history, "job_reports")] == [6]


def test_the_audit_is_kept_for_400_days(history: psycopg.Connection) -> None:
    for days in (401, 399):
        history.execute(
            "insert into pgqueue.audit (acted_at, role, verb) values (now() - make_interval(days => %s), 'r', 'pause')",
            [days],
        )
    assert trimmed(history) == 1
    assert count(history, "audit") == 1


# Steps, and when they are due ---------------------------------------------------------------------------


@pytest.fixture
def full(history: psycopg.Connection) -> psycopg.Connection:
    """Yesterday with 60,000 jobs, every second of which may go."""
    add_day(history, 1)
    keep(history, "short", keep_completed="1 hour")
    for _ in range(6):
        history.execute(
            "insert into pgqueue.finished_jobs (id, run_at, created_at, finished_at, day, lane, attempt, max_attempts, crashes,"
            " queue, task, state, args)"
            " select i, t.at, t.at, t.at, (now() at time zone 'UTC')::date - 1, 11, 1, 5, 0,"
            "        case when i % 2 = 0 then 'short' else 'default' end, 't', 'completed', '{}'"
            "   from generate_series(1, 10000) as i, (select now() - interval '25 hours' as at) as t"
        )
    history.execute("analyze pgqueue.finished_jobs")
    return history


def test_a_full_day_is_trimmed_in_steps_of_1000_that_go_on_where_the_last_one_ended(
    full: psycopg.Connection,
) -> None:
    steps = []
    while True:
        (step,) = call(full, "trim_history")
        if not step["more"]:
            break
        steps.append(step["jobs"])
    assert max(steps) == 1000
    assert sum(steps) == 30_000
    assert len(steps) < 40  # one a thousand, and one for each table
    assert count(full, "finished_jobs") == 30_000
    assert trimmed(full) == 0


def test_a_step_reads_no_more_than_its_share_of_a_full_day(full: psycopg.Connection) -> None:
    blocks = scalar(full, f"select pg_relation_size('pgqueue.finished_jobs{day_ago(1)}') / 8192")
    while not scalar(full, "select coalesce(max(next_block), 0) from pgqueue.trims"):
        call(full, "trim_history")
    plan = full.execute(
        "explain (analyze, buffers, format json) select * from pgqueue.trim_history()"
    ).fetchone()
    assert plan is not None
    top = plan[0][0]["Plan"]
    # 1,000 deletes, and 1,000 look-ups of what goes with them, are most of it
    assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 30 * 1000, blocks


def test_a_pass_is_due_when_the_first_row_goes_a_twentieth_of_its_time_late(
    history: psycopg.Connection,
) -> None:
    add_day(history, 1)
    keep(history, keep_completed="2 days")
    ended_at = datetime.now(UTC) - timedelta(hours=24)
    finished(history, 24 * HOUR)
    trimmed(history)
    (row,) = rows(history, "trims", "relation = %s", "finished_jobs" + ended_at.strftime("_%Y%m%d"))
    assert abs(row["due_at"] - ended_at - 1.05 * timedelta(days=2)) < timedelta(seconds=5)
    assert not due(history)


def test_retention_is_due_when_a_queue_keeps_something_else_and_not_again(
    history: psycopg.Connection,
) -> None:
    trimmed(history)
    assert not due(history)
    keep(history, "short", worker_limit=3)
    assert not due(history)
    for setting in ("keep_completed", "keep_cancelled", "keep_dead"):
        keep(history, "short", **{setting: "1 hour"})
        assert due(history)
        trimmed(history)
        assert not due(history)
    for setting in ("max_completed", "max_cancelled", "max_dead"):
        keep(history, "short", **{setting: 5})
        assert due(history)
        trimmed(history)
        assert not due(history)


def test_a_day_that_could_not_be_dropped_is_due_again_in_a_minute(history: psycopg.Connection) -> None:
    add_day(history, 9)
    trimmed(history)
    assert not due(history)
    left = scalar(history, "select extract(epoch from due_at - clock_timestamp()) from pgqueue.retention")
    assert 50 < left <= 60
    dropped(history)
    history.execute("update pgqueue.retention set due_at = now()")
    assert due(history)
    trimmed(history)
    left = scalar(history, "select extract(epoch from due_at - clock_timestamp()) from pgqueue.retention")
    assert left > 60


def test_what_there_is_nothing_to_do_for_is_one_call(history: psycopg.Connection) -> None:
    """Else an idle leader would make a transaction for each table, every minute."""
    keep(history, keep_completed="0", max_dead=5)
    trimmed(history)
    due_now(history)
    assert call(history, "trim_history") == [{"jobs": 0, "more": False}]


def test_two_that_trim_at_once_do_not_wait_for_each_other(
    connect: Connect, fresh: str, history: psycopg.Connection
) -> None:
    keep(history, keep_completed="1 hour")
    finished(history, 2 * HOUR)
    other = connect(fresh, autocommit=False)
    call(other, "trim_history")
    assert call(history, "trim_history") == [{"jobs": 0, "more": False}]
    other.rollback()
    assert trimmed(history) == 1


def test_rows_that_an_operator_holds_are_left_for_later(
    connect: Connect, fresh: str, history: psycopg.Connection
) -> None:
    keep(history, keep_completed="1 hour")
    held, free = finished(history, 7300), finished(history, 7200)
    other = connect(fresh, autocommit=False)
    other.execute("select from pgqueue.finished_jobs where id = %s for update", held)
    history.execute("set lock_timeout = '1s'")
    assert trimmed(history) == 1
    assert (there(history, held), there(history, free)) == (1, 0)
    other.rollback()
    due_now(history)
    assert trimmed(history) == 1
