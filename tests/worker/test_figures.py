"""A real worker's upkeep keeps what views read: it counts, it rolls up, and neither keeps anybody waiting."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.sql.acting import STOP, sabotaged, stopped
from tests.worker.conftest import StartWorker
from tests.worker.harness import History, Rows


def test_a_worker_counts_and_rolls_up(start_worker: StartWorker, rows: Rows) -> None:
    """A queue that it does not even serve is counted; a job that it has completed is in the minute's rollup."""
    rows.enqueue("quick", queue="elsewhere")
    id = rows.enqueue("quick")
    start_worker()
    rows.wait_for("completed", id)
    rows.wait_until(
        lambda: rows.value("select ready from pgqueue_bi.queue_health where queue = 'elsewhere'") == 1,
        message="the count",
    )
    # an hour ago: the row is moved and not the clock
    rows.connection.execute(
        "update pgqueue.finished_jobs set finished_at = date_trunc('minute', finished_at) - interval '50 minutes'"
    )
    rows.connection.execute(
        "update pgqueue.rollup_progress set rolled_up_to = rolled_up_to - interval '1 hour'"
    )
    rows.wait_until(
        lambda: rows.all("select from pgqueue_bi.task_latency where completed = 1"),
        message="the last hour's rollup",
    )
    (minute,) = rows.all("select * from pgqueue_bi.job_throughput_minutely where completed > 0")
    (job,) = rows.all("select * from pgqueue_bi.jobs where id = %s", id)
    assert (minute["task"], minute["completed"]) == ("quick", 1)
    assert minute["bucket_at"] == job["finished_at"]
    assert abs(minute["wait_avg_seconds"] - (job["claimed_at"] - job["run_at"]).total_seconds()) < 0.001


@pytest.mark.needs_session("it looks for a session of the worker's")
def test_what_falls_due_does_not_wait_for_a_count_that_takes_its_time(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    waiting = "select count(*) from pg_stat_activity where wait_event = 'advisory' and query like '%%count_depths%%'"
    halt = (
        "perform set_config('synchronous_commit'",
        f"perform {STOP}; perform set_config('synchronous_commit'",
    )
    with sabotaged(rows.connection, "count_depths", halt), stopped(rows.connection):
        start_worker()
        rows.wait_until(lambda: rows.value(waiting) == 1, message="a count under way")
        rows.wait_for("completed", rows.enqueue("quick", delay=0.3))
        job = rows.all("select * from pgqueue_bi.jobs where state = 'completed'")[0]
        assert job["claimed_at"] - job["run_at"] < timedelta(seconds=1)
        assert rows.value(waiting) == 1  # one at a time, however often a round finds it due
    assert history.entries("start")


def test_the_index_of_the_history_follows_its_growth(start_worker: StartWorker, rows: Rows) -> None:
    """Nobody counts here: nothing has changed but the history."""
    worker = start_worker(log_level="debug")
    rows.connection.execute(
        """
        insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                           max_attempts, crashes, queue, task, state, args)
        select n, 1, now(), now(), now(), now(), (now() at time zone 'UTC')::date, 11, 1, 5, 0, 'default', 'quick', 'completed',
               jsonb_build_object('text', repeat('x', 900))
          from generate_series(1, 10000) as n
        """
    )
    worker.wait_for("history.summarized")
    index = "select indexrelid from pg_index join pg_class as c on c.oid = indexrelid join pg_am as a on a.oid = c.relam"
    unsummarized = f"""
        select coalesce(sum(brin_summarize_new_values(indexrelid)), 0) from ({index}
         where indrelid = to_regclass('pgqueue.finished_jobs' || to_char(now() at time zone 'UTC', '_YYYYMMDD'))
           and amname = 'brin') as i"""
    assert rows.value(unsummarized) == 0
