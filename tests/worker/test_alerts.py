"""Alerts of real workers: one process of the leader's tells each change once, and who has no hook asks nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pgqueue
from pgqueue import App, calls
from pgqueue.drivers import run
from pgqueue.hooks import Alert
from pgqueue.settings import Settings
from tests.sql.acting import call
from tests.worker.conftest import StartWorker
from tests.worker.harness import PATIENCE, Entry, History, Rows

T = TypeVar("T")

ALARMED = "tests.worker.hook_tasks:alarmed"
COUNT_NOW = """
update pgqueue.depth_count set counted_at = counted_at - interval '5 minutes', is_moving = true
 where counted_at > now() - interval '4 minutes' returning true
"""


def wait_for_alerts(rows: Rows, history: History, name: str, count: int) -> list[Entry]:
    """Waits until `count` alerts of a check were told; jobs are counted again and again meanwhile."""
    return wait_counting(rows, lambda: alerts(history, name) if len(alerts(history, name)) >= count else [])


def wait_counting(rows: Rows, done: Callable[[], T]) -> T:
    """Waits for what a count leads to; a count that was under way does not put the next one off."""

    def look() -> T:
        if not (found := done()):
            rows.connection.execute(COUNT_NOW)
            time.sleep(0.05)  # let the leader have the row
        return found

    return rows.wait_until(look, 2 * PATIENCE, "alerts")


def alerts(history: History, name: str) -> list[Entry]:
    """Those of a check that were told so far."""
    return [entry for entry in history.entries("alert") if entry.said["check_name"] == name]


def limit(rows: Rows, **thresholds: Any) -> None:
    """Sets thresholds for a queue that nobody serves."""
    run(rows.connection, calls.set_queue("elsewhere", json.dumps(thresholds)))


def test_a_change_is_told_once_by_one_process_and_so_is_its_end(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    limit(rows, max_depth=0)
    worker = start_worker(app=ALARMED, processes=2)
    id = rows.enqueue("quiet", queue="elsewhere")
    (entry,) = wait_for_alerts(rows, history, "depth", 1)
    assert entry.said == {
        "check_name": "depth",
        "queue": "elsewhere",
        "value": 1.0,
        "threshold": 0.0,
        "detail": "ready jobs: 1, allowed: 0",
        "is_resolved": False,
    }
    assert entry.pid in worker.children().values()
    call(rows.connection, "schedule", name="nightly", task="quiet", every=60)
    # the line to the child must hold no poke
    rows.connection.execute("update pgqueue.schedules set due_at = 'infinity', problem = 'no such zone!'")
    (entry,) = wait_for_alerts(rows, history, "schedules", 1)
    assert (entry.said["detail"], entry.said["queue"]) == (
        "the schedule nightly cannot run: no such zone!",
        None,
    )
    run(rows.connection, calls.cancel([id]))
    first, second = wait_for_alerts(rows, history, "depth", 2)
    assert (second.said["is_resolved"], second.said["value"]) == (True, 0.0)
    assert second.pid == first.pid
    assert len(alerts(history, "schedules")) == 1
    assert worker.wait_for("hook.failed", check="depth", count=2)
    rows.wait_for("completed", rows.enqueue("quiet"))


def test_what_stands_is_told_again_by_the_next_leader(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    limit(rows, max_depth=0)
    rows.enqueue("quiet", queue="elsewhere")
    leader = start_worker(app=ALARMED)
    told, *_ = wait_for_alerts(rows, history, "depth", 1)
    follower = start_worker(app=ALARMED)
    rows.wait_until(
        lambda: rows.value("select count(*) from pgqueue_bi.workers") == 2, message="the second worker"
    )
    leader.stop()
    leader.wait()
    pids = follower.children().values()
    again, *_ = wait_counting(
        rows, lambda: [entry for entry in alerts(history, "depth") if entry.pid in pids]
    )
    assert again.said == told.said


def test_an_app_without_such_hooks_asks_nothing_and_one_that_may_not_ask_harms_nobody(
    start_worker: StartWorker, rows: Rows
) -> None:
    rows.connection.execute("drop view pgqueue_bi.health")
    fresh = "select counted_at from pgqueue.depth_count where counted_at > now() - interval '4 minutes'"
    counts: set[Any] = set()

    def has_counted_twice() -> bool:  # so what follows the first count has been done
        counts.update([rows.value(fresh)])
        return len(counts - {None}) == 2

    rows.enqueue("quiet", queue="elsewhere")
    worker = start_worker()
    wait_counting(rows, has_counted_twice)
    assert worker.events("upkeep.problem") == []
    worker.stop()
    worker.wait()
    worker = start_worker(app=ALARMED)
    wait_counting(rows, lambda: worker.events("upkeep.problem"))
    assert "health: " in worker.events("upkeep.problem")[0]["problem"]
    rows.wait_for("completed", rows.enqueue("quiet"))


def test_an_in_process_worker_tells_too(database: str, rows: Rows) -> None:
    told: list[Alert] = []
    app = App(dsn=database, settings=Settings(upkeep_interval=0.6), name="inside")
    app.on_alert(told.append)
    limit(rows, tolerated_dead=0)
    rows.connection.execute(
        "insert into pgqueue.dead_letters (id, worker_id, run_at, created_at, claimed_at, died_at, lane, attempt, max_attempts,"
        " crashes, queue, task, args, reason, error, message, errors) values (1, 1, now(), now(), now(), now(), 11, 5, 5, 0,"
        " 'elsewhere', 't', '{}', 'exhausted', 'E', 'no', '[]')"
    )

    async def work() -> None:
        async with pgqueue.Worker(app):
            await asyncio.to_thread(wait_counting, rows, lambda: len(told) == 1)
            run(rows.connection, calls.discard([1]))
            await asyncio.to_thread(wait_counting, rows, lambda: len(told) == 2)

    asyncio.run(work())
    assert [(alert.check_name, alert.queue, alert.is_resolved) for alert in told] == [
        ("dead", "elsewhere", False),
        ("dead", "elsewhere", True),
    ]
