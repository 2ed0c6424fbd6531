"""How idle workers hear of work: by a NOTIFY within milliseconds, and by looking where no NOTIFY comes."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.job import ClaimedJob
from pgqueue.worker.board import Board
from pgqueue.worker.claimer import Claimer
from pgqueue.worker.hand import Hand, capacity
from pgqueue.worker.link import Link
from tests.support import Databases
from tests.worker import tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import History, Rows, frozen, until

pytestmark = pytest.mark.needs_session("it is about LISTEN")

HARDLY_EVER = {"lease": 60, "beat": 10, "upkeep_interval": 20}
"""So rarely that upkeep's safety look explains nothing that happens within seconds."""


def wait_for_sleep(rows: Rows, workers: int = 1) -> None:
    """Waits until so many workers rely on a NOTIFY: they are registered, and have looked after that."""
    rows.wait_until(
        lambda: rows.value("select count(distinct worker_id) from pgqueue.sleepers") == workers,
        message=f"{workers} sleepers",
    )
    # the last look is a claim that began after the registration, on a connection that has been idle since
    looked = """
        select count(*) from pg_stat_activity as a
         where datname = current_database() and application_name like 'pgqueue worker %% claims'
           and state = 'idle' and clock_timestamp() - state_change > interval '300 ms'"""
    rows.wait_until(lambda: rows.value(looked) >= workers, message="workers that look no more")


@pytest.fixture(scope="module")
def listening(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A worker that relies on notifications."""
    with service(databases, tmp_path_factory, "-c", "10", **HARDLY_EVER) as listening:
        wait_for_sleep(listening.rows)
        yield listening


def test_an_idle_worker_starts_a_job_at_once_because_it_is_told(listening: Service) -> None:
    delays = []
    for _ in range(20):
        enqueued_at = time.monotonic()
        job = tasks.quick.enqueue(listening.rows.connection)
        (start,) = listening.history.wait_for("start", job.id, timeout=5)
        delays.append(start.at - enqueued_at)
    print(f"wake-up: p50 {statistics.median(delays) * 1000:.1f} ms, max {max(delays) * 1000:.1f} ms of 20")
    assert max(delays) < 1


def test_a_job_of_any_isolation_wakes_a_worker(listening: Service) -> None:
    dsn = listening.rows.dsn
    for level in (psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE):
        wait_for_sleep(listening.rows)
        with psycopg.connect(dsn) as connection:
            connection.isolation_level = level
            job = tasks.quick.enqueue(connection)
            committing_at = time.monotonic()
        (start,) = listening.history.wait_for("start", job.id, timeout=5)
        assert start.at - committing_at < 1


def test_poll_mode_works_without_any_listen(start_worker: StartWorker, rows: Rows, history: History) -> None:
    worker = start_worker("-c", "2", wake="poll", poll_interval=0.2, **HARDLY_EVER)
    worker.wait_for("worker.started")

    for _ in range(3):
        enqueued_at = time.monotonic()
        job = tasks.quick.enqueue(rows.connection)
        (start,) = history.wait_for("start", job.id, timeout=5)
        assert start.at - enqueued_at < 1.2
        rows.wait_for("completed", job.id)
    assert rows.all("select * from pgqueue.sleepers") == []
    activity = rows.all(
        "select query, application_name from pg_stat_activity where datname = current_database()"
    )
    ours = [row for row in activity if row["application_name"].startswith("pgqueue ")]
    assert ours
    assert not any(row["application_name"] == "pgqueue listener" for row in ours)
    assert not any(row["query"].lower().startswith("listen") for row in ours)


def test_a_lost_notification_is_healed_by_the_safety_look(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    start_worker("-c", "2")
    wait_for_sleep(rows)

    rows.connection.execute("set pgqueue.notify = off")
    enqueued_at = time.monotonic()
    job = tasks.quick.enqueue(rows.connection)
    (start,) = history.wait_for("start", job.id, timeout=10)
    took = start.at - enqueued_at
    print(f"wake-up: notification lost, started after {took:.2f} s")
    assert 0.9 < took < 1 + 0.6 + 2, "nobody told it: it looks when a job is a second old"


def test_when_one_of_two_sleepers_is_killed_the_other_gets_the_work(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    workers = [start_worker("-c", "2", wait=False, lease=60) for _ in range(2)]
    children = {id: worker for worker in workers for id in worker.wait_until_started().children()}
    wait_for_sleep(rows, 2)
    latest = rows.value("select worker_id from pgqueue.sleepers order by slept_at desc")
    # the one that would be told: dead with its supervisor, its row still says that it sleeps
    children.pop(latest).kill()
    assert rows.value("select count(*) from pgqueue.sleepers where worker_id = %s", latest) == 1

    enqueued_at = time.monotonic()
    job = tasks.quick.enqueue(rows.connection)
    (start,) = history.wait_for("start", job.id, timeout=10)
    took = start.at - enqueued_at
    print(f"wake-up: told a dead worker, started by the other after {took:.2f} s")
    assert start.pid in next(iter(children.values())).children().values()
    assert took < 1 + 0.6 + 2


def test_a_frozen_sleepers_work_goes_to_its_sibling(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "2", processes=2, lease=60)
    wait_for_sleep(rows, 2)
    latest = rows.value("select worker_id from pgqueue.sleepers order by slept_at desc")
    victim = worker.children()[latest]

    with frozen(victim):
        jobs = [tasks.quick.enqueue(rows.connection).id for _ in range(3)]
        starts = history.wait_for("start", *jobs, count=3, timeout=10)
        assert {entry.pid for entry in starts} == {*worker.children().values()} - {victim}


# The claimer by itself: a service over a real connection ------------------------------------------------


class Bench:
    """A claimer with its hand, registered as a worker, without listener, slots or supervisor."""

    def __init__(self, claimer: Claimer, hand: Hand, link: Link, worker_id: int):
        self.claimer = claimer
        self.hand = hand
        self.link = link
        self.worker_id = worker_id

    async def arrived(self, timeout: float) -> list[ClaimedJob]:
        """The jobs that have come into the hand, as soon as there is one."""
        await until(lambda: self.hand.waiting, timeout)
        return list(self.hand.waiting)

    async def asleep(self, rows: Rows) -> None:
        """Waits until the claimer is registered as a sleeper."""
        await until(lambda: rows.value("select count(*) from pgqueue.sleepers"))


@asynccontextmanager
async def claimer_on(
    dsn: str, *, limits: dict[str, int | None] | None = None, **options: Any
) -> AsyncIterator[Bench]:
    board = Board.create(capacity(4))
    hand = Hand(4, board)
    link = Link(dsn, name="pgqueue claimer under test")
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
    given: dict[str, Any] = {"listens": True, "poll_interval": 60.0, "give_back": hand.take_out}
    given |= {"held": lambda: ()} | options
    claimer = Claimer(
        link=link,
        hand=hand,
        worker_id=worker_id,
        limits=limits or {"default": None},
        **given,
    )
    try:
        yield Bench(claimer, hand, link, worker_id)
    finally:
        claimer.stop()
        await link.close()
        board.close()


def test_a_producer_that_overlooked_the_sleeper_and_commits_later_is_found_without_a_notification(
    database: str, rows: Rows
) -> None:
    async def scenario() -> float:
        async with claimer_on(database) as bench:
            with psycopg.connect(database) as producer:
                # reads `sleepers` while there is none, so that no NOTIFY will ever be sent for this job
                job = run(producer, calls.enqueue(task="quick"))
                claiming = asyncio.create_task(bench.claimer.run())
                await bench.asleep(rows)
                # So long that a claimer which trusts its registration has stopped looking. (One that does
                # not stop passes whatever the time is: this wait can hide a mistake, but cannot invent one.)
                await asyncio.sleep(0.5)
                assert not bench.hand.waiting
                producer.commit()
                committed_at = time.monotonic()
            (claimed,) = await bench.arrived(5)
            assert claimed.id == job.id
            took = time.monotonic() - committed_at
            claiming.cancel()
            await asyncio.wait([claiming])
            return took

    took = asyncio.run(scenario())
    print(f"wake-up: the race, found {took * 1000:.0f} ms after the commit")
    assert took < 1


def test_a_sleeping_claimer_leaves_the_database_alone_until_it_is_poked(database: str, rows: Rows) -> None:
    async def scenario() -> None:
        async with claimer_on(database) as bench:
            claiming = asyncio.create_task(bench.claimer.run())
            await bench.asleep(rows)
            rows.connection.execute("set pgqueue.notify = off")
            asleep = """
                select clock_timestamp() - state_change > interval '400 ms' from pg_stat_activity
                 where application_name = 'pgqueue claimer under test' and datname = current_database()"""
            await until(lambda: rows.value(asleep))
            job = rows.enqueue("quick")
            with contextlib.suppress(TimeoutError):
                await bench.arrived(0.4)
                raise AssertionError("it looked although nobody told it")
            bench.claimer.poke()
            (claimed,) = await bench.arrived(5)
            assert claimed.id == job
            claiming.cancel()
            await asyncio.wait([claiming])

    asyncio.run(scenario())


def test_a_claim_takes_no_more_than_there_is_room_for(database: str, rows: Rows) -> None:
    async def scenario() -> list[int]:
        async with claimer_on(database, limits={"default": None, "email": 2}) as bench:
            came = []
            while count := await bench.claimer.run_once():
                came.append(count)
                if len(bench.hand.waiting) >= 4:
                    break
            assert len([job for job in bench.hand.waiting if job.queue == "email"]) <= 2
            return came

    for _ in range(10):
        rows.enqueue("quick", queue="email")
        rows.enqueue("quick")
    assert sum(asyncio.run(scenario())) == 4
    assert rows.value("select count(*) from pgqueue.running_jobs") == 4


def test_a_limit_that_is_set_while_a_claim_is_under_way_holds_for_what_it_brings(
    database: str, rows: Rows
) -> None:
    """The link is slow on purpose: the claim has been sent with other limits."""

    async def scenario() -> tuple[list[int], list[int]]:
        given_back: list[int] = []
        async with claimer_on(
            database, give_back=lambda leases: given_back.extend(sorted(id for id, _ in leases))
        ) as bench:
            run_call = bench.link.run

            async def slowly(call: Any) -> Any:
                answer = await run_call(call)
                assert bench.claimer.limit({"default": 1})
                return answer

            bench.link.run = slowly  # type: ignore[method-assign]
            assert await bench.claimer.run_once() == 3
            return [job.id for job in bench.hand.waiting], given_back

    ids = [rows.enqueue("quick") for _ in range(3)]
    assert asyncio.run(scenario()) == (ids, ids[1:])


def test_a_job_that_commits_late_below_the_cursor_is_claimed(database: str, rows: Rows) -> None:
    async def scenario() -> None:
        async with claimer_on(database) as bench:
            with psycopg.connect(database) as late:
                low = run(late, calls.enqueue(task="quick")).id
                high = [rows.enqueue("quick") for _ in range(2)]
                assert await bench.claimer.run_once() == 2
                assert [job.id for job in bench.hand.waiting] == high
            # its position is below those that were claimed
            assert await bench.claimer.run_once() == 1
            assert bench.hand.waiting[-1].id == low

    asyncio.run(scenario())
