"""A worker's start brings the schedules of the code to the database, and touches no others."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

import pgqueue
from pgqueue.settings import Settings
from tests.worker import schedule_tasks
from tests.worker.conftest import StartWorker
from tests.worker.harness import BEHIND_A_POOLER, History, Rows, Worker, until

APP = "tests.worker.schedule_tasks"
FIRST = ["changes", "leaves", "starts", "stays", "taken"]


def start(start_worker: StartWorker, release: str, **options: Any) -> Worker:
    """Starts a worker of a release that has brought its schedules on return."""
    worker = start_worker(app=f"{APP}:{release}", log_level="debug", **options)
    worker.wait_for("schedules.brought")
    return worker


def stored(rows: Rows, owner: str | None = schedule_tasks.OWNER) -> dict[str, dict[str, Any]]:
    """The schedules of an owner, by name."""
    query = "select * from pgqueue_bi.schedules where owner is not distinct from %s order by name"
    return {row["name"]: row for row in rows.all(query, owner)}


def said(worker: Worker, event: str) -> list[str]:
    return [line["schedule"] for line in worker.events(f"schedule.{event}")]


def runs(rows: Rows, schedule: str) -> list[dict[str, Any]]:
    return rows.all("select * from pgqueue_bi.schedule_runs where schedule = %s order by due_at", schedule)


def age_runs(rows: Rows, schedule: str) -> None:
    """Lets an hour pass for what has run."""
    rows.connection.execute(
        "update pgqueue.schedule_runs set due_at = due_at - interval '1 hour' where schedule = %s", [schedule]
    )


def test_the_next_release_adds_changes_and_removes_its_own_schedules_alone(
    start_worker: StartWorker, rows: Rows
) -> None:
    rows.connection.execute("select pgqueue.schedule('by hand', 'note', every => 3600)")
    rows.connection.execute("select pgqueue.sync_schedules('another app', %s, false)", [
        '[{"name": "theirs", "task": "note", "every": 3600}]'
    ])  # fmt: skip
    worker = start(start_worker, "first")
    assert said(worker, "created") == list(stored(rows)) == FIRST
    rows.wait_until(lambda: stored(rows)["stays"]["next_due_at"] is not None)
    rows.connection.execute("select pgqueue.pause_schedule('stays')")
    before = stored(rows)
    worker.stop()
    worker.wait()

    worker = start(start_worker, "second")
    assert said(worker, "created") == ["comes"]
    assert said(worker, "changed") == ["changes"]
    assert said(worker, "removed") == ["leaves", "starts", "taken"]
    after = stored(rows)
    assert list(after) == ["changes", "comes", "stays"]
    assert after["stays"] == before["stays"], "a deploy resumed it, or planned it anew"
    assert after["stays"]["paused_at"] is not None
    assert (after["changes"]["cron"], after["changes"]["created_at"]) == (
        "0 4 * * *",
        before["changes"]["created_at"],
    )
    assert list(stored(rows, None)) == ["by hand"]
    assert list(stored(rows, "another app")) == ["theirs"]
    worker.stop()
    worker.wait()

    worker = start(start_worker, "second")
    assert [said(worker, event) for event in ("created", "changed", "removed", "foreign")] == [[]] * 4
    worker.stop()
    worker.wait()
    assert said(start(start_worker, "bare"), "removed") == ["changes", "comes", "stays"]


def test_one_that_was_made_by_hand_is_left_alone_and_told_with_a_remedy(
    start_worker: StartWorker, rows: Rows
) -> None:
    rows.connection.execute("select pgqueue.schedule('taken', 'other', every => 3600)")
    worker = start(start_worker, "first")
    (line,) = worker.wait_for("schedule.foreign")
    assert (line["level"], line["schedule"], line["owner"]) == ("warning", "taken", schedule_tasks.OWNER)
    assert "pgqueue schedules delete" in line["remedy"]
    assert stored(rows, None)["taken"]["task"] == "other"
    assert list(stored(rows)) == [name for name in FIRST if name != "taken"]


def test_two_workers_that_start_together_make_one_start_and_a_child_that_died_makes_none(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    workers = [
        start_worker(app=f"{APP}:first", log_level="debug", wait=False, processes=processes)
        for processes in (1, 2)
    ]
    for worker in workers:
        worker.wait_for("schedules.brought")
    (entry,) = history.wait_for("end")
    (run,) = runs(rows, "starts")
    (begun,) = history.entries("start")
    assert (run["outcome"], run["job_id"]) == ("enqueued", entry.job)
    assert begun.said == {"schedule": "starts", "due_at": str(run["due_at"])}

    age_runs(rows, "starts")  # so that it is not grace that keeps it from running again
    workers[1].wait_until_started(2)
    for worker in workers:
        started = len(worker.events("worker.started"))
        for pid in worker.children().values():
            os.kill(pid, signal.SIGKILL)
        worker.wait_for("worker.started", count=2 * started)
    rows.wait_for("completed", rows.enqueue("note"), rows.enqueue("note"))
    assert [len(worker.events("schedules.brought")) for worker in workers] == [1, 1]
    assert len(runs(rows, "starts")) == 1
    assert rows.value("select due_at = 'infinity' from pgqueue.schedules where name = 'starts'")

    start(start_worker, "first")
    rows.wait_until(lambda: len(runs(rows, "starts")) == 2, message="the next start")


def test_a_start_while_it_is_paused_is_no_start(start_worker: StartWorker, rows: Rows) -> None:
    start(start_worker, "first")
    rows.wait_until(lambda: len(runs(rows, "starts")) == 1)
    age_runs(rows, "starts")
    rows.connection.execute("select pgqueue.pause_schedule('starts')")
    start(start_worker, "first")
    rows.connection.execute("select pgqueue.resume_schedule('starts')")
    assert rows.value("select due_at = 'infinity' from pgqueue.schedules where name = 'starts'")
    assert len(runs(rows, "starts")) == 1


def in_process_app(rows: Rows) -> pgqueue.App:
    settings = Settings(dsn=rows.dsn, lease=3.0, beat=0.3, upkeep_interval=0.6)
    app = pgqueue.App(settings=settings)

    @app.schedule(at_startup=True)
    @app.schedule(name="nightly", cron="0 3 * * *")
    @app.task
    async def start() -> None: ...

    return app


def test_an_in_process_worker_brings_them_too(rows: Rows) -> None:
    app = in_process_app(rows)

    async def work() -> None:
        async with pgqueue.Worker(app):
            await until(lambda: runs(rows, "start"))

    asyncio.run(work())
    assert list(stored(rows, __name__)) == ["nightly", "start"]


def test_a_refusal_is_an_error_in_the_log_and_the_worker_works_on(rows: Rows) -> None:
    """A zone that this machine knows and the server does not, for one."""
    app = in_process_app(rows)
    nightly = app.schedules["nightly"]
    app._schedules["nightly"] = replace(nightly, rule=replace(nightly.rule, tz="Europe/Atlantis"))

    async def work() -> None:
        async with pgqueue.Worker(app):
            await until(lambda: [line for line in logs if line["event"] == "schedules.refused"])
            job = rows.enqueue("start")
            await until(lambda: rows.states(job) == ["completed"])

    with capture_logs() as logs:
        asyncio.run(work())
    (line,) = [line for line in logs if line["event"] == "schedules.refused"]
    assert line["log_level"] == "error"
    assert "schedule nightly: tz: there is no time zone" in line["error"]
    assert stored(rows, __name__) == {}


@pytest.mark.parametrize("ends", ["while it waits", "after it came"])
def test_nothing_waits_for_the_schedules_to_be_brought(rows: Rows, ends: str) -> None:
    """Another worker's start has the lock that it needs, and its transaction hangs."""
    app = in_process_app(rows)
    hangs = "select pg_advisory_xact_lock(hashtextextended('pgqueue.sync_schedules ' || %s, 0))"

    async def work() -> None:
        with psycopg.connect(rows.dsn) as other:
            other.execute(hangs, [app.name])
            async with pgqueue.Worker(app):
                job = rows.enqueue("start")
                await until(lambda: rows.states(job) == ["completed"])
                assert stored(rows, __name__) == {}
                if ends == "after it came":
                    other.rollback()
                    await until(lambda: stored(rows, __name__))

    asyncio.run(work())
    assert bool(stored(rows, __name__)) == (ends == "after it came")
    if BEHIND_A_POOLER:  # which keeps its sessions
        return
    query = "select count(*) from pg_stat_activity where application_name like %s and datname = current_database()"
    rows.wait_until(
        lambda: rows.value(query, "pgqueue worker % schedules") == 0, message="its connection to end"
    )
