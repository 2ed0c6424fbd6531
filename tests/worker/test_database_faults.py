"""The database cuts connections, restarts, is away, or its answers are lost: no job is lost, none runs twice."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgqueue.embedded import EmbeddedServer
from pgqueue.retry import Fixed
from tests.support.own_server import databases_of, own_server_in_memory
from tests.support.proxy import Proxy
from tests.worker import tasks, transactional_tasks
from tests.worker.conftest import StartWorker, end
from tests.worker.harness import History, Rows, Worker

pytestmark = pytest.mark.needs_session(
    "it ends sessions, and loses answers on the way to the server; behind a pooler: tests/faults/test_poolers.py"
)

TERMINATE = """
    select count(*) from (
        select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and starts_with(application_name, 'pgqueue ')) as ended"""


def explained(worker: Worker, rows: Rows) -> dict[int, int]:
    """How many more starts than one each job may have had: an attempt on record, or an ending that was refused."""
    reasons: dict[int, int] = {}
    for row in rows.all("select job_id from pgqueue.job_failures"):
        reasons[row["job_id"]] = reasons.get(row["job_id"], 0) + 1
    for event in ("lease.lost", "settle.unconfirmed"):
        for line in worker.events(event):
            reasons[line["job_id"]] = reasons.get(line["job_id"], 0) + 1
    return reasons


def test_no_job_is_lost_or_doubled_while_all_connections_are_terminated_again_and_again(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    rows.connection.execute(transactional_tasks.EFFECTS)
    app = "tests.worker.transactional_tasks:app"
    worker = start_worker("-c", "8", app=app, processes=2, lease=20, beat=0.5, upkeep_interval=1)
    with rows.connection.transaction():
        plain = [
            task.enqueue(rows.connection, seconds=0.01).id
            for _ in range(250)
            for task in (tasks.quick, tasks.quick_sync)
        ]
        again = Fixed(0.05, attempts=50)
        transactional = [
            task.using(retry=again).enqueue(rows.connection).id
            for _ in range(25)
            for task in transactional_tasks.KINDS
        ]

    cut = 0
    for part in range(1, 11):
        history.wait_for("end", count=part * 40)
        cut += rows.value(TERMINATE)
    assert cut >= 10, "there was nothing left to cut"

    rows.wait_for("completed", *plain, *transactional, timeout=40)
    starts = history.starts_by_job()
    failures = {
        row["job_id"]: row["count"]
        for row in rows.all("select job_id, count(*) from pgqueue.job_failures group by job_id")
    }
    # an attempt of a transactional job fails with its connection, unless the cut came after its commit
    assert {id: starts[id] for id in plain} == dict.fromkeys(plain, 1)
    assert {id: starts[id] for id in transactional} == {id: 1 + failures.get(id, 0) for id in transactional}
    effects = rows.all("select job, count(*) from public.effects group by job having count(*) <> 1")
    assert effects == []
    assert rows.value("select count(*) from public.effects") == len(transactional)
    assert worker.events("worker.child_died") == []


# Answers that are lost ------------------------------------------------------------------------------------


def test_a_claim_whose_answer_is_lost_strands_no_job(
    database: str, start_worker: StartWorker, rows: Rows, history: History
) -> None:
    with Proxy(database) as proxy:
        worker = start_worker("-c", "2", dsn=proxy.dsn)
        proxy.lose(b"lost on the way")
        job = tasks.hold.enqueue(rows.connection, gate="lost on the way").id
        assert proxy.lost.wait(10)
        assert rows.states(job) == ["running"], "the claim was carried out"

        history.open("lost on the way")
        (row,) = rows.wait_for("completed", job)
    assert (row["attempt"], row["crashes"]) == (1, 0)
    assert history.starts_by_job() == {job: 1}
    assert worker.events("worker.child_died") == []


def test_a_completion_whose_answer_is_lost_is_not_made_twice(
    database: str, start_worker: StartWorker, rows: Rows, history: History
) -> None:
    with Proxy(database) as proxy:
        worker = start_worker("-c", "2", dsn=proxy.dsn)
        rows.connection.execute("select setval('pgqueue.job_ids', 81_985_529_216_486_895)")
        job = tasks.hold.enqueue(rows.connection).id
        history.wait_for("start", job)
        proxy.lose(job.to_bytes(8))  # the ids come as binary numbers, and no other answer has this one
        history.open("hold")
        assert proxy.lost.wait(10)

        worker.wait_for("settle.unconfirmed", job_id=job, dropped="complete")
        (row,) = rows.wait_for("completed", job)
        assert (row["attempt"], row["crashes"]) == (1, 0)
        after = tasks.quick.enqueue(rows.connection).id
        rows.wait_for("completed", after)
    assert history.starts_by_job() == {job: 1, after: 1}


def test_after_an_outage_a_worker_that_is_back_first_leaves_the_others_their_jobs(
    database: str, start_worker: StartWorker, rows: Rows, history: History
) -> None:
    lease = 2.5
    with Proxy(database) as one, Proxy(database) as other:
        workers = [
            start_worker("-c", "1", dsn=proxy.dsn, wait=False, lease=lease, upkeep_interval=0.5)
            for proxy in (one, other)
        ]
        for worker in workers:
            worker.wait_until_started()
        jobs = [tasks.hold.enqueue(rows.connection).id for _ in range(2)]
        history.wait_for("start", *jobs, count=2)

        one.shut()
        other.shut()
        away_at = time.monotonic()
        # longer than the lease: nobody could beat, so nobody is late
        time.sleep(max(0, away_at + lease + 0.2 - time.monotonic()))
        back_at = rows.value("select clock_timestamp()")
        one.open()
        rows.wait_until(
            lambda: rows.value("select led_at > %s from pgqueue.leadership", back_at),
            message="a round of upkeep",
        )
        other.open()
        history.open("hold")
        done = rows.wait_for("completed", *jobs)

    assert {(row["attempt"], row["crashes"]) for row in done} == {(1, 0)}
    assert history.starts_by_job() == dict.fromkeys(jobs, 1)


# A server of its own --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedServer]:
    """A server that these tests may stop."""
    with own_server_in_memory() as server:
        yield server


@pytest.fixture(scope="module")
def own_databases(own_server: EmbeddedServer) -> list[str]:
    """Databases there, one a test."""
    return databases_of(own_server, 3)


@pytest.fixture
def own_database(own_server: EmbeddedServer, own_databases: list[str]) -> str:
    """A fresh database on a running server."""
    own_server.start()
    return own_databases.pop()


@pytest.fixture
def started(own_database: str, tmp_path: Path) -> Iterator[Worker]:
    """A worker on the database of its own server, whose lease is shorter than the outages to come."""
    worker = Worker(
        own_database, tmp_path, "-c", "8", lease=1.5, beat=0.3, upkeep_interval=0.5, drain_limit=1
    )
    try:
        yield worker.wait_until_started()
    finally:
        end(worker)


def test_jobs_flow_on_after_a_fast_and_an_immediate_restart(
    own_server: EmbeddedServer, own_database: str, started: Worker, history: History
) -> None:
    rows = Rows(own_database)
    with rows.connection.transaction():
        jobs = [
            task.enqueue(rows.connection, seconds=0.02).id
            for _ in range(300)
            for task in (tasks.quick, tasks.quick_sync)
        ]
    rows.close()

    history.wait_for("end", count=50)
    own_server.restart("fast")
    history.wait_for("end", count=len(history.entries("end")) + 100)
    own_server.restart("immediate")

    rows = Rows(own_database)
    rows.wait_for("completed", *jobs, timeout=30)
    reasons = explained(started, rows)
    unexplained = {
        id: starts for id, starts in history.starts_by_job().items() if starts - 1 > reasons.get(id, 0)
    }
    assert unexplained == {}
    # a fast restart forgets nothing, an immediate one at most the claims of the last moment
    assert sum(starts > 1 for starts in history.starts_by_job().values()) <= 40
    assert started.events("worker.child_died") == []
    # and it is asleep again, with ears: the next job is heard of
    rows.wait_until(lambda: rows.value("select count(*) from pgqueue.sleepers"), message="the worker's sleep")
    rows.wait_for("completed", tasks.quick.enqueue(rows.connection).id)
    rows.close()


def test_jobs_in_hand_end_while_the_database_is_away_and_are_settled_when_it_is_back(
    own_server: EmbeddedServer, own_database: str, started: Worker, history: History
) -> None:
    rows = Rows(own_database)
    jobs = [task.enqueue(rows.connection).id for task in (tasks.hold, tasks.hold_sync)]
    history.wait_for("start", *jobs, count=2)
    rows.close()

    own_server.stop()
    away_at = time.monotonic()
    history.open("hold")
    history.wait_for("end", *jobs, count=2)
    started.wait_for("database.unavailable")
    # longer than the lease: nobody could beat, so nobody is late
    time.sleep(max(0, away_at + 2 - time.monotonic()))
    own_server.start()

    rows = Rows(own_database)
    done = rows.wait_for("completed", *jobs)
    assert {(row["attempt"], row["crashes"]) for row in done} == {(1, 0)}
    assert history.starts_by_job() == dict.fromkeys(jobs, 1)
    assert started.events("lease.lost") == []
    said = Counter((line["link"], line.get("worker")) for line in started.events("database.unavailable"))
    assert set(said.values()) == {1}, "an outage is said once a link, and not at each try"
    rows.close()


def test_a_worker_can_be_stopped_while_the_database_is_away(
    own_server: EmbeddedServer, own_database: str, started: Worker, history: History
) -> None:
    rows = Rows(own_database)
    rows.wait_until(lambda: rows.value("select count(*) from pgqueue.sleepers"), message="the worker's sleep")
    job = tasks.hold.enqueue(rows.connection).id
    history.wait_for("start", job)
    rows.close()

    own_server.stop()
    started.wait_for("database.unavailable")
    started.stop(signal.SIGTERM)
    history.open("hold")
    assert started.wait(12) == 0
    assert len(history.entries("end", job)) == 1, "a drain lets a running job end"
    assert started.children() == {}
