"""The settler by itself: how endings are recorded when some of them, or the connection, are no good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog.testing

from pgqueue import calls
from pgqueue.error_text import ErrorText
from pgqueue.job import ClaimedJob
from pgqueue.worker.board import Board
from pgqueue.worker.decide import COMPLETED, RELEASED, Failed, Snoozed
from pgqueue.worker.hand import Hand, capacity
from pgqueue.worker.link import Link
from pgqueue.worker.settler import Settler
from tests.worker.harness import BEHIND_A_POOLER, Row, Rows, until

WENT_WRONG = ErrorText("ValueError", "went wrong", "", "0")


class Bench:
    """A settler with jobs in its hand that a registered worker has claimed and begun."""

    def __init__(self, settler: Settler, hand: Hand, link: Link, board: Board):
        self.settler = settler
        self.hand = hand
        self.link = link
        self.board = board
        self.jobs: list[tuple[ClaimedJob, int]] = []


@asynccontextmanager
async def settler_with(dsn: str, rows: Rows, jobs: int) -> AsyncIterator[Bench]:
    board = Board.create(capacity(4))
    hand = Hand(4, board)
    link = Link(dsn, name="pgqueue settler under test", pooled=BEHIND_A_POOLER)
    bench = Bench(Settler(link=link, hand=hand), hand, link, board)
    for _ in range(jobs):
        rows.enqueue("quick")
    worker_id, _ = await link.persist(
        calls.register(
            supervisor_id=1,
            host="here",
            pid=1,
            version="0",
            queues=["default"],
            concurrency=4,
            lease=60.0,
            session_lock=False,
        )
    )
    claimed = await link.run(
        calls.claim(
            worker_id=worker_id,
            queues=["default"],
            limits=[jobs],
            max_jobs=jobs,
            cursors=[0] * 20,
            fence=77,
        )
    )
    hand.put(claimed)
    bench.jobs = [hand.take() for _ in range(jobs)]
    try:
        yield bench
    finally:
        await link.close()
        board.close()


def settled(database: str, rows: Rows, jobs: int, act: Callable[[Bench], Awaitable[None]]) -> list[Row]:
    """Runs `act` on a settler with so many jobs; returns what was logged. The hand must be empty after it."""

    async def scenario() -> list[Any]:
        async with settler_with(database, rows, jobs) as bench:
            with structlog.testing.capture_logs() as logged:
                await act(bench)
            assert bench.hand.held == 0
            assert bench.board.in_hand == 0
            assert bench.board.started() == []
            return logged

    return asyncio.run(scenario())


def test_a_lost_lease_is_reported_and_its_neighbours_are_settled(database: str, rows: Rows) -> None:
    async def act(bench: Bench) -> None:
        lost = bench.jobs[1][0].id
        rows.connection.execute("update pgqueue.running_jobs set lease = lease + 1 where id = %s", [lost])
        for job, cell in bench.jobs:
            bench.settler.settle(job, cell, COMPLETED)
        await bench.settler.run_once()

    (line,) = settled(database, rows, 3, act)
    assert (line["event"], line["dropped"], line["task"]) == ("lease.lost", "complete", "quick")
    states = [row["state"] for row in rows.all("select state from pgqueue_bi.jobs order by id")]
    assert states == ["completed", "running", "completed"]


def test_of_two_claims_of_one_job_in_a_batch_the_forgotten_one_is_reported(database: str, rows: Rows) -> None:
    async def act(bench: Bench) -> None:
        (job, cell), (again, other_cell) = bench.jobs
        # the server has forgotten the first claim in a crash, and the job was claimed by the same worker once more
        rows.connection.execute("update pgqueue.running_jobs set lease = 78 where id = %s", [job.id])
        bench.settler.settle(job, cell, COMPLETED)
        bench.settler.settle(again._replace(id=job.id, lease=78), other_cell, COMPLETED)
        await bench.settler.run_once()

    (line,) = settled(database, rows, 2, act)
    assert (line["event"], line["dropped"]) == ("lease.lost", "complete")
    states = [row["state"] for row in rows.all("select state from pgqueue_bi.jobs order by id")]
    assert states == ["completed", "running"]


@pytest.mark.needs_session("it looks for a session of the worker's")
def test_endings_of_all_kinds_are_recorded_over_a_connection_that_was_terminated(
    database: str, rows: Rows
) -> None:
    async def act(bench: Bench) -> None:
        rows.connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s",
            ["pgqueue settler under test"],
        )
        endings = [COMPLETED, Failed(WENT_WRONG, 60.0), Failed(WENT_WRONG, None), Snoozed(60.0), RELEASED]
        for (job, cell), ending in zip(bench.jobs, endings, strict=True):
            bench.settler.settle(job, cell, ending)
        await bench.settler.run_once()

    logged = settled(database, rows, 5, act)
    assert [line["event"] for line in logged] == ["database.unavailable"]
    found = rows.all("select state, attempt, reason from pgqueue_bi.jobs order by id")
    assert [(row["state"], row["attempt"], row["reason"]) for row in found] == [
        ("completed", 1, None),
        ("scheduled", 1, None),
        ("dead", 1, "exhausted"),
        ("scheduled", 0, None),
        ("ready", 0, None),
    ]


def test_a_failure_whose_text_the_server_refuses_is_recorded_without_it(database: str, rows: Rows) -> None:
    async def act(bench: Bench) -> None:
        # describe_error lets no such text through; this is the net below it
        for (job, cell), text in zip(bench.jobs, ["fine", "a\0b"], strict=True):
            bench.settler.settle(job, cell, Failed(ErrorText("ValueError", text, "", "0"), None))
        await bench.settler.run_once()

    (line,) = settled(database, rows, 2, act)
    assert line["event"] == "settle.refused"
    letters = rows.all("select reason, error from pgqueue.dead_letters")
    assert letters == [{"reason": "exhausted", "error": "pgqueue.Unrecordable"}] * 2


@pytest.mark.needs_session("it looks for a session of the worker's")
def test_an_ending_waits_for_a_row_that_somebody_has_locked(database: str, rows: Rows) -> None:
    async def act(bench: Bench) -> None:
        (job, cell) = bench.jobs[0]
        with rows.connection.transaction():
            rows.connection.execute("select from pgqueue.running_jobs where id = %s for update", [job.id])
            bench.settler.settle(job, cell, COMPLETED)
            settling = asyncio.create_task(bench.settler.run_once())
            waits = "select count(*) from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'"
            await until(lambda: rows.value(waits, "pgqueue settler under test"))
            assert bench.hand.held == 1
        await settling

    assert settled(database, rows, 1, act) == []
    assert rows.value("select state from pgqueue_bi.jobs") == "completed"


def test_what_gathers_while_a_batch_is_under_way_is_the_next_batch(database: str, rows: Rows) -> None:
    async def act(bench: Bench) -> None:
        settling = asyncio.create_task(bench.settler.run())
        for job, cell in bench.jobs:
            bench.settler.completed(job, cell)
            await asyncio.sleep(0)
        await until(lambda: not bench.hand.held)
        settling.cancel()
        await asyncio.wait([settling])

    assert settled(database, rows, 50, act) == []
    batches = rows.value("select count(distinct xmin::text) from pgqueue.finished_jobs")
    assert rows.value("select count(*) from pgqueue.finished_jobs") == 50
    assert batches <= 3, f"50 endings that came at once were settled in {batches} transactions"
