"""A real worker's upkeep drops and trims what is kept no longer, beside its jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.worker.conftest import StartWorker
from tests.worker.harness import Rows


def test_a_worker_drops_old_days_and_trims_what_its_queue_keeps_no_longer(
    start_worker: StartWorker, rows: Rows
) -> None:
    day = datetime.now(UTC).date() - timedelta(days=9)
    old = f"finished_jobs_{day:%Y%m%d}"
    rows.connection.execute(
        f"create table pgqueue.{old} (like pgqueue.finished_jobs including defaults including indexes);"
        f"alter table pgqueue.finished_jobs attach partition pgqueue.{old} for values from ('{day}') to ('{day + timedelta(days=1)}');"
        "insert into pgqueue.queues (name, keep_completed) values ('default', '1 hour');"
        "insert into pgqueue.finished_jobs (id, run_at, created_at, finished_at, day, lane, attempt, max_attempts, crashes,"
        " queue, task, state, args)"
        " select i, t.at, t.at, t.at, '-infinity', 11, 1, 5, 0, 'default', 't', 'completed', '{}'"
        " from generate_series(1, 2500) as i, (select now() - interval '2 hours' as at) as t;"
        "update pgqueue.rollup_progress set rolled_up_to = date_trunc('minute', now())"
    )
    start_worker()
    id = rows.enqueue("quick")
    rows.wait_for("completed", id)
    rows.wait_until(
        lambda: rows.value("select count(*) from pgqueue.finished_jobs") == 1, message="the jobs to go"
    )
    rows.wait_until(
        lambda: rows.value(f"select to_regclass('pgqueue.{old}') is null"), message="the day to go"
    )
