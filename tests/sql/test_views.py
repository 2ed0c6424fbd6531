"""What analysts read: every view against rows made by hand, its contract, and who may read it where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.sql.acting import Connect, Row, call, claimed, enqueue, enqueue_many, register, scalar
from tests.sql.history import NOON, at, ended, failed, over, rolled_up
from tests.sql.test_surface import COLUMNS, RELATIONS, looked_up
from tests.support.standby import MISSING, Standby
from tests.support.waiting import wait_until

PROMISED = {
    "dead_letters",
    "failures",
    "job_throughput_daily",
    "job_throughput_hourly",
    "job_throughput_minutely",
    "jobs",
    "queue_health",
    "schedule_runs",
    "schedules",
    "slo",
    "task_latency",
    "workers",
}
"""The views that analysts were promised; there are more, for which the same rules hold."""


def views(connection: psycopg.Connection) -> list[str]:
    """Every view of the public schema."""
    query = "select viewname::text from pg_views where schemaname = 'pgqueue_bi' order by 1"
    found = [str(name) for (name,) in connection.execute(query).fetchall()]
    assert set(found) >= PROMISED
    return found


def read(connection: psycopg.Connection, view: str, condition: str = "true", *values: Any) -> list[Row]:
    """The rows of a view."""
    query = sql.SQL("select * from pgqueue_bi.{} where {}").format(sql.Identifier(view), sql.SQL(condition))
    return connection.cursor(row_factory=dict_row).execute(query, values).fetchall()


def read_one(connection: psycopg.Connection, view: str, condition: str = "true", *values: Any) -> Row:
    """The one row of a view that matches."""
    (row,) = read(connection, view, condition, *values)
    return row


# The contract -----------------------------------------------------------------------------------------


def columns(connection: psycopg.Connection) -> list[Row]:
    """Every column of every view."""
    found = [row for row in looked_up(connection, COLUMNS) if row["schema"] == "pgqueue_bi"]
    assert {row["relname"] for row in found} == set(views(connection))
    return found


def test_times_durations_and_ids_are_called_and_typed_alike(connection: psycopg.Connection) -> None:
    for column in columns(connection):
        name, kind = str(column["attname"]), str(column["type"])
        where = f"{column['relname']}.{name}"
        assert name.endswith("_at") == (kind == "timestamp with time zone"), where
        if name.endswith("_seconds"):
            assert kind == "double precision", where
        if name == "id" or name.endswith("_id"):
            assert kind == "bigint", where
        if name in ("state", "job_state", "outcome", "reason"):
            assert kind == "text", where


def test_no_view_has_a_payload_or_a_type_that_a_bi_tool_stumbles_over(connection: psycopg.Connection) -> None:
    plain = {"bigint", "integer", "double precision", "text", "boolean", "timestamp with time zone"}
    for column in columns(connection):
        where = f"{column['relname']}.{column['attname']}"
        assert column["type"] in plain or where == "audit.details", where
        assert column["attname"] not in ("args", "options", "result", "traceback", "errors")


def test_every_duration_has_its_unit_in_its_comment_and_every_ratio_its_range(
    connection: psycopg.Connection,
) -> None:
    for column in columns(connection):
        comment = str(column["comment"] or "")
        assert comment.endswith("."), f"{column['relname']}.{column['attname']}"
        if str(column["attname"]).endswith("_seconds"):
            assert re.search(r"\bseconds\b", comment, re.I), f"{column['relname']}.{column['attname']}"
        if str(column["attname"]).endswith("_ratio"):
            assert "0 to 1" in comment


def test_no_view_reads_an_unlogged_table_or_calls_a_function_of_pgqueue(
    connection: psycopg.Connection,
) -> None:
    """A standby has no unlogged tables, and a monitor no right on a function."""
    found = connection.execute("""
        select v.relname::text, coalesce(r.relname, p.proname)::text as used, r.relpersistence::text
          from pg_class as v join pg_rewrite as w on w.ev_class = v.oid
          join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid and d.objid <> d.refobjid
          left join pg_class as r on d.refclassid = 'pg_class'::regclass and r.oid = d.refobjid and r.oid <> v.oid
          left join pg_proc as p on d.refclassid = 'pg_proc'::regclass and p.oid = d.refobjid
               and p.pronamespace = 'pgqueue'::regnamespace
         where v.relnamespace = 'pgqueue_bi'::regnamespace and coalesce(r.oid, p.oid) is not null""").fetchall()
    assert {view for view, _, _ in found} == set(views(connection))
    assert [row for row in found if row[2] != "p"] == []


def test_every_view_works_for_a_role_that_has_nothing_but_the_monitors_rights(connect: Connect) -> None:
    monitor = connect()
    monitor.execute("set role pgqueue_monitor")
    for view in views(monitor):
        read(monitor, view)
    for relation in looked_up(monitor, RELATIONS):
        if relation["schema"] == "pgqueue" and relation["relkind"] in "rp":
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                monitor.execute(f"select from pgqueue.{relation['relname']}")


# Figures ----------------------------------------------------------------------------------------------

TIMES = [f"{what}_{which}_seconds" for what in ("wait", "run") for which in ("avg", "p50", "p95", "p99")]


def near(*values: float) -> list[Any]:
    """An average, exactly, and percentiles within the width of a bucket."""
    return [pytest.approx(values[0]), *(pytest.approx(value, rel=0.0955) for value in values[1:])]


def test_throughput_by_minute_hour_and_day(connection: psycopg.Connection) -> None:
    for n in range(1, 101):
        ended(connection, 30, wait=n, run=n / 10)
    ended(connection, 70, queue="else", task="u", state="cancelled")
    failed(connection, 70, jobs=3)
    failed(connection, 71, dead_reason="permanent")
    rolled_up(connection, 0, 120)
    minute = read_one(connection, "job_throughput_minutely", "bucket_at = %s", NOON)
    assert (minute["queue"], minute["task"]) == ("default", "t")
    assert [minute[n] for n in ("enqueued", "completed", "cancelled", "failed", "dead", "depth")] == [
        100,
        100,
        0,
        0,
        0,
        0,
    ]
    assert [minute[name] for name in TIMES] == near(50.5, 50, 95, 99) + near(5.05, 5, 9.5, 9.9)
    later = read_one(connection, "job_throughput_minutely", "bucket_at = %s and queue = 'else'", at(60))
    assert [later[name] for name in TIMES] == [None] * 8
    assert (later["task"], later["cancelled"], later["completed"]) == ("u", 1, 0)
    for view, begin in (("job_throughput_hourly", NOON), ("job_throughput_daily", at(-43200))):
        row = read_one(connection, view, "task = 't'")
        assert row["bucket_at"] == begin
        assert [row[n] for n in ("completed", "failed", "dead")] == [100, 4, 1]
        assert [row[name] for name in TIMES] == near(50.5, 50, 95, 99) + near(5.05, 5, 9.5, 9.9)
        assert read_one(connection, view, "task = 'u'")["cancelled"] == 1


def test_the_depth_at_the_end_of_a_minute(connection: psycopg.Connection) -> None:
    enqueue_many(connection, [{"task": "t"}] * 3 + [{"task": "t", "delay": 60}] * 2)
    call(connection, "count_depths")
    rolled_up(connection, 0, 180)
    found = read(connection, "job_throughput_minutely")
    assert [(row["enqueued"], row["depth"]) for row in found] == [(5, 5), (0, 5), (0, 5)]
    assert read_one(connection, "job_throughput_daily")["depth"] == 5


def test_latency_of_the_last_hour(connection: psycopg.Connection) -> None:
    ended(connection, 10, wait=500)  # too long ago
    for n in range(1, 21):
        ended(connection, 60 * n, wait=n, run=2)
    failed(connection, 70, jobs=5)
    failed(connection, 70, task="u")
    rolled_up(connection, 0, 3660)
    row = read_one(connection, "task_latency", "task = 't'")
    assert (row["from_at"], row["until_at"]) == (at(60), at(3660))
    assert (row["completed"], row["failed"], row["failure_ratio"]) == (20, 5, 0.2)
    assert [row[name] for name in TIMES] == near(10.5, 10, 19, 20) + near(2, 2, 2, 2)
    row = read_one(connection, "task_latency", "task = 'u'")
    assert (row["completed"], row["failure_ratio"], row["wait_p50_seconds"]) == (0, 1.0, None)


def test_the_health_of_a_queue(connection: psycopg.Connection) -> None:
    """Depth by state, oldest ages, throughput, failure ratio, workers, paused: each from its own place."""
    worker = register(connection, "busy", "other")
    register(connection, "busy", lease=0)  # dead
    running = claimed(connection, worker, queue="busy")
    lost = claimed(connection, worker, queue="busy", task="u")
    call(connection, "fail", failures=Jsonb([{"id": lost.id, "lease": lost.lease}]))
    enqueue_many(
        connection, [{"task": "t", "queue": "busy"}] * 4 + [{"task": "u", "queue": "busy", "delay": 60}]
    )
    connection.execute("update pgqueue.ready_jobs set run_at = now() - interval '90 s'")
    connection.execute("update pgqueue.running_jobs set claimed_at = now() - interval '30 s'")
    call(connection, "count_depths")
    ended(connection, 50, queue="busy", jobs=7)  # over five minutes before the end of the roll-up
    ended(connection, 70, queue="busy", jobs=20)
    failed(connection, 350, queue="busy", jobs=5)
    rolled_up(connection, 0, 360)
    connection.execute(
        "insert into pgqueue.queues (name, worker_limit, max_depth, max_oldest) values ('busy', 4, 100, 60.5)"
    )
    row = read_one(connection, "queue_health", "queue = 'busy'")
    assert [row[state] for state in ("ready", "scheduled", "blocked", "running", "dead")] == [4, 1, 0, 1, 1]
    assert row["oldest_ready_seconds"] == pytest.approx(90, abs=5)
    assert row["oldest_running_seconds"] == pytest.approx(30, abs=5)
    assert (row["completed_per_minute"], row["failed_per_minute"], row["failure_ratio"]) == (4.0, 1.0, 0.2)
    assert (row["workers"], row["slots"]) == (1, 4)
    assert (row["is_paused"], row["paused_at"]) == (False, None)
    assert (row["max_depth"], row["max_oldest_seconds"]) == (100, 60.5)
    assert row["counted_at"] == scalar(connection, "select counted_at from pgqueue.depth_count")
    assert row["rolled_up_at"] == at(360)
    assert running.id != lost.id

    row = read_one(connection, "queue_health", "queue = 'other'")  # known from its worker alone
    assert (row["ready"], row["workers"], row["slots"], row["failure_ratio"]) == (0, 1, 10, None)
    assert (row["oldest_ready_at"], row["oldest_ready_seconds"]) == (None, None)


def test_a_queue_is_paused_until_it_resumes(connection: psycopg.Connection) -> None:
    connection.execute("""
        insert into pgqueue.queues (name, paused_at, resumes_at)
        values ('a', now(), null), ('b', now(), now() + interval '1 hour'), ('c', now(), now() - interval '1 s'),
               ('d', null, null)""")
    paused = {row["queue"]: row["is_paused"] for row in read(connection, "queue_health")}
    assert paused == {"a": True, "b": True, "c": False, "d": False}
    assert {row["counted_at"] for row in read(connection, "queue_health")} == {None}


def test_targets_against_what_happened(connection: psycopg.Connection) -> None:
    connection.execute("insert into pgqueue.queues (name, target_wait) values ('fast', 5), ('idle', 60)")
    connection.execute("insert into pgqueue.queues (name) values ('without')")
    for wait in (1, 2, 3, 9):
        ended(connection, 60, queue="fast", wait=wait)
    ended(connection, 60, queue="without")
    enqueue(connection, queue="fast")
    connection.execute("update pgqueue.ready_jobs set run_at = now() - interval '8 s'")
    call(connection, "count_depths")
    rolled_up(connection, 0, 120)
    fast, idle = sorted(read(connection, "slo"), key=lambda row: str(row["queue"]))
    assert (fast["target_wait_seconds"], fast["completed"], fast["in_target"], fast["in_target_ratio"]) == (
        5,
        4,
        3,
        0.75,
    )
    assert (fast["from_at"], fast["until_at"]) == (at(-3480), at(120))
    assert fast["wait_p50_seconds"] == pytest.approx(2, rel=0.0955)
    assert fast["wait_p99_seconds"] == pytest.approx(9, rel=0.0955)
    assert fast["oldest_ready_seconds"] == pytest.approx(8, abs=2)
    assert fast["is_late"] is True
    assert (idle["queue"], idle["completed"], idle["in_target_ratio"]) == ("idle", 0, None)
    assert (idle["is_late"], idle["until_at"], idle["oldest_ready_seconds"]) == (False, at(120), None)


def test_failures_by_what_caused_them(connection: psycopg.Connection) -> None:
    failed(connection, 5, message="first")
    last = failed(connection, 15, message="last", dead_reason="exhausted")
    rolled_up(connection)
    assert read_one(connection, "failures") == {
        "fingerprint": "f",
        "queue": "default",
        "task": "t",
        "error": "ValueError",
        "failures": 2,
        "dead": 1,
        "first_seen_at": at(5),
        "last_seen_at": at(15),
        "sample_message": "last",
        "sample_job_id": last,
    }


def test_dead_letters_are_there_at_once(connection: psycopg.Connection) -> None:
    job = claimed(connection, register(connection), max_attempts=1, priority=3)
    failure = {"id": job.id, "lease": job.lease, "error": "E", "message": "m", "fingerprint": "p", "delay": 9}
    call(connection, "fail", failures=Jsonb([failure]))
    connection.execute("update pgqueue.dead_letters set created_at = died_at - interval '90 s'")
    connection.execute("update pgqueue.dead_letters set claimed_at = died_at - interval '2 s'")
    row = read_one(connection, "dead_letters")
    assert (row["id"], row["reason"], row["error"], row["message"], row["fingerprint"]) == (
        job.id,
        "exhausted",
        "E",
        "m",
        "p",
    )
    assert (row["priority"], row["attempt"], row["max_attempts"], row["crashes"]) == (3, 1, 1, 0)
    assert (row["life_seconds"], row["run_seconds"]) == (90, 2)


def test_a_worker_is_seen_by_its_heartbeat(connection: psycopg.Connection) -> None:
    worker = register(connection, "a", "b", supervisor_id=7)
    connection.execute("update pgqueue.heartbeats set beat_at = now() - interval '12 s'")
    row = read_one(connection, "workers")
    assert (row["id"], row["supervisor_id"], row["queues"], row["concurrency"]) == (worker, 7, "a, b", 10)
    assert row["silent_seconds"] == pytest.approx(12, abs=2)


def test_the_fleet_is_one_row_of_who_lives_and_how_long_ago_it_was_led(
    connection: psycopg.Connection,
) -> None:
    connection.execute("update pgqueue.rollup_progress set rolled_up_to = '-infinity'")
    row = read_one(connection, "fleet")
    assert (row["led_at"], row["leader_seconds"], row["rolled_up_at"], row["figures_seconds"]) == (None,) * 4
    assert (row["counted_at"], row["workers"], row["slots"]) == (None, 0, 0)
    register(connection, "a", "b")
    register(connection, lease=0)  # dead
    connection.execute("update pgqueue.leadership set led_at = clock_timestamp() - interval '12 s'")
    connection.execute(
        "update pgqueue.rollup_progress set rolled_up_to = clock_timestamp() - interval '90 s'"
    )
    call(connection, "count_depths")
    row = read_one(connection, "fleet")
    assert row["leader_seconds"] == pytest.approx(12, abs=5)
    assert row["figures_seconds"] == pytest.approx(90, abs=5)
    assert row["counted_at"] == scalar(connection, "select counted_at from pgqueue.depth_count")
    assert (row["workers"], row["slots"]) == (1, 10)


def test_jobs_in_every_state_are_in_one_view(connection: psycopg.Connection) -> None:
    worker = register(connection)
    running = claimed(connection, worker)
    ended(connection, 30)
    ended(connection, 30, state="cancelled")
    enqueue(connection)
    enqueue(connection, delay=60)
    lost = claimed(connection, worker, priority=0)
    call(connection, "fail", failures=Jsonb([{"id": lost.id, "lease": lost.lease}]))
    states = sorted(row["state"] for row in read(connection, "jobs"))
    assert states == ["cancelled", "completed", "dead", "ready", "running", "scheduled"]
    assert read_one(connection, "jobs", "id = %s", running.id)["worker_id"] == worker


# By whom and where ------------------------------------------------------------------------------------


@pytest.fixture
def standby() -> Iterator[Standby]:
    """A primary and its streaming standby, both of this test; skips where there are no programs for it."""
    if MISSING:
        pytest.skip(MISSING)
    with Standby() as pair:
        yield pair


def test_every_view_works_on_a_hot_standby(standby: Standby) -> None:
    """It streams from a primary that has rows for each of them; what is read there is read here."""
    with standby.primary() as primary:
        worker = register(primary)
        claimed(primary, worker)
        enqueue_many(primary, [{"task": "t"}] * 3)
        job = claimed(primary, worker, priority=0)
        call(primary, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease}]))
        ended(primary, 30)
        failed(primary, 30)
        primary.execute("insert into pgqueue.queues (name, target_wait) values ('default', 1)")
        call(primary, "schedule", name="s", task="t", every=3600.0)
        call(primary, "run_schedule", name="s")
        call(primary, "count_depths")
        rolled_up(primary)
        over(primary, 60, 60)
        there = {view: len(read(primary, view)) for view in views(primary)}
        assert all(there[view] for view in PROMISED), there
        # A switch writes out all that there is; what was pruned by reading would lie in memory until somebody commits.
        written = scalar(primary, "select pg_switch_wal()::text")
    with standby.replica() as replica:
        assert scalar(replica, "select pg_is_in_recovery()")
        replayed = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
        wait_until(lambda: scalar(replica, replayed, written), message="the standby to catch up")
        replica.execute("set role pgqueue_monitor")
        assert {view: len(read(replica, view)) for view in there} == there
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            replica.execute("reset role; select pgqueue.count_depths()")
