"""Load on the database: snapshots and locks that are held, statistics that lie, planners that were told off, floods."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

import pgqueue
from pgqueue import calls
from pgqueue.cli.jobs import jobs
from pgqueue.embedded import EmbeddedServer
from pgqueue.worker.link import OUTAGES, Backoff, Link
from tests.faults import load_tasks, tasks
from tests.faults.scene import Scene, slack
from tests.support import wait_until

_numbers = itertools.count(-2_000_000, -1)
"""The `n` of each flood; the load counts from 0, and the probes from -1,000,000 down."""
_FLOOD = """
    select e.ids from pgqueue.enqueue_many((
        select jsonb_agg(jsonb_build_object('task', 'plain', 'priority', %(priority)s::int, 'run_at', %(run_at)s::timestamptz,
                                            'args', jsonb_build_object('n', %(n)s::bigint)))
          from generate_series(1, %(jobs)s))) as e"""
_BACKLOG = """
    insert into pgqueue.ready_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args)
    select nextval('pgqueue.job_ids'), now(), now(), {lane}, 0, 5, 0, 'default', 'plain',
           jsonb_build_object('n', {n}, 'seconds', 0.05)
      from generate_series(1, {jobs})"""
_OF = """
    select id from pgqueue.running_jobs where args -> 'n' = '{n}'
    union all select id from pgqueue.finished_jobs where args -> 'n' = '{n}'"""


def flood(scene: Scene, jobs: int, *, priority: int = 5, run_at: str | None = None) -> list[int]:
    """Enqueues many jobs that do nothing, 1,000 a statement; they have to complete."""
    made: list[int] = []
    with psycopg.connect(scene.dsn, autocommit=True) as connection:
        for _ in range(0, jobs, 1000):
            n = next(_numbers)
            values = {"n": n, "jobs": min(jobs, 1000), "priority": priority, "run_at": run_at}
            row = connection.execute(_FLOOD, values).fetchone()
            assert row is not None
            scene.record.acknowledged[n] = tuple(row[0])
            made += row[0]
    return made


@contextmanager
def backlog(scene: Scene, jobs: int, *, priority: int = 9) -> Iterator[int]:
    """That many jobs in line, for the length of a block; what has not started then is taken away. Gives their `n`."""
    n = next(_numbers)
    scene.ask(_BACKLOG.format(lane=2 * priority + 1, n=n, jobs=jobs))
    yield n
    scene.ask(f"delete from pgqueue.ready_jobs where args -> 'n' = '{n}'")
    scene.record.acknowledged[n] = tuple(id for (id,) in scene.ask(_OF.format(n=n)))


def seconds_for(scene: Scene, ids: list[int]) -> float:
    """How long it takes from now until all of these have started."""
    since = time.monotonic()
    waiting = {*ids}

    def started() -> bool:
        return waiting <= {entry.job for entry in scene.history.entries("start")}

    wait_until(started, 90, f"{len(ids)} jobs to start")
    return time.monotonic() - since


# Snapshots, locks -----------------------------------------------------------------------------------------


@pytest.mark.fault(
    "autovacuum is off, and strangers hold snapshots, with a transaction id and without, while jobs flow"
)
def test_jobs_flow_as_fast_over_the_dead_rows_of_those_before(scene: Scene) -> None:
    for (table,) in scene.ask(
        "select oid::regclass::text from pg_class where relnamespace = 'pgqueue'::regnamespace and relkind = 'r'"
    ):
        scene.ask(f"alter table {table} set (autovacuum_enabled = off)")
    with psycopg.connect(scene.dsn) as reader, psycopg.connect(scene.dsn) as writer:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        (seen,) = reader.execute("select count(*) from pgqueue_bi.jobs").fetchone() or (None,)
        writer.execute("create table public.of_a_stranger ()")
        scene.start("-c", "50")
        took = []
        for _ in range(3):
            took.append(seconds_for(scene, flood(scene, 2000)))
            scene.tried(scene.probe(), within=1)
        assert reader.execute("select count(*) from pgqueue_bi.jobs").fetchone() == (seen,)
    ((dead,),) = scene.ask(
        "select sum(n_dead_tup) from pg_stat_user_tables where relname in ('ready_jobs', 'running_jobs')"
    )
    print("2,000 jobs took", [f"{seconds:.2f} s" for seconds in took], "over", dead, "dead rows")
    assert took[-1] < 2.5 * took[0] + slack() / 3
    scene.check()


@pytest.mark.fault("a stranger holds locks on the first 20,000 jobs in line")
def test_a_line_whose_first_jobs_are_locked(scene: Scene) -> None:
    with ExitStack() as stack:
        n = stack.enter_context(backlog(scene, 20_000, priority=0))
        locker = stack.enter_context(psycopg.connect(scene.dsn))
        locker.execute(
            f"select from pgqueue.ready_jobs where args -> 'n' = '{n}' order by position for update"
        )
        worker = scene.start("-c", "20")
        with scene.load(rate=5):
            for _ in range(3):
                since = time.monotonic()
                (id, *_) = flood(scene, 1)
                (start, *_) = scene.history.wait_for("start", id)
                scene.tried(start.at - since, within=2)
            scene.wait_for_ends(20)
            assert worker.events("database.refused") == []
            locker.execute(f"delete from pgqueue.ready_jobs where args -> 'n' = '{n}' and id % 100 > 0")
            left = [
                id for (id,) in locker.execute(f"select id from pgqueue.ready_jobs where args -> 'n' = '{n}'")
            ]
            locker.commit()
            scene.tried(seconds_for(scene, left), within=5)
    assert len(left) == 200
    scene.check()


# Plans ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("the statistics say that the tables are empty, and 200,000 jobs are in line; then ANALYZE")
def test_statistics_that_lie(scene: Scene) -> None:
    scene.ask("analyze")
    scene.start("-c", "8")
    with scene.load(rate=3), backlog(scene, 200_000):
        for _ in range(3):
            scene.tried(scene.probe(), within=1)
        scene.ask("analyze")
        for _ in range(3):
            scene.tried(scene.probe(), within=1)
        scene.ask("update pg_catalog.pg_class set reltuples = 0, relpages = 0 where relname = 'ready_jobs'")
        scene.terminate()
        scene.tried(scene.probe(), within=2)
    scene.check("raised")


NODES = (
    "indexscan",
    "indexonlyscan",
    "bitmapscan",
    "tidscan",
    "seqscan",
    "nestloop",
    "hashjoin",
    "mergejoin",
    "sort",
    "material",
)


@pytest.mark.fault(
    "each kind of plan is forbidden to the workers' role, one after the other, with 20,000 jobs in line"
)
def test_plans_that_a_role_forbids(scene: Scene) -> None:
    name = f"planner_{os.getpid()}"
    scene.ask(f"create role {name} login password 'only here'")
    try:
        scene.ask(f"grant pgqueue_producer, pgqueue_worker to {name}")
        scene.ask(f"grant all on all tables in schema public to {name}")
        scene.start("-c", "8", dsn=make_conninfo(scene.dsn, user=name, password="only here"))
        with backlog(scene, 20_000):
            for node in NODES:
                scene.ask(f"alter role {name} set enable_{node} = off")
                scene.terminate()
                scene.probe()  # the sessions are new
                scene.tried(scene.probe(), within=1)
                scene.ask(f"alter role {name} reset all")
        scene.check("raised")
    finally:
        scene.close()
        scene.ask(f"drop owned by {name}; drop role {name}")


# Numbers --------------------------------------------------------------------------------------------------


@pytest.mark.fault("ids, positions and worker ids pass 2^31, and 2^53")
def test_numbers_that_others_cannot_count_to(scene: Scene) -> None:
    for limit in (2**31, 2**53):
        for sequence in ("job_ids", "positions", "worker_ids"):
            scene.ask(f"select setval('pgqueue.{sequence}', {limit - 20})")
        worker = scene.start()
        ids = flood(scene, 60)
        assert ids[0] < limit < ids[-1]
        scene.tried(seconds_for(scene, ids), within=2)
        with scene.load(rate=10):
            scene.wait_for_ends(20)
        scene.settle()
        worker.stop()
        assert worker.wait(30) == 0
        scene.workers.remove(worker)
    odd = ids[-1] - 1 + ids[-1] % 2
    assert int(float(odd)) != odd, "a float has it"
    assert scene.ask("select id from pgqueue_bi.jobs where id = %s", odd) == [(odd,)]
    found = CliRunner().invoke(jobs, ["show", str(odd), "--json", "--dsn", scene.dsn])
    assert (json.loads(found.stdout)["id"], json.loads(found.stdout)["state"]) == (odd, "completed")
    app = pgqueue.App(dsn=scene.dsn)
    info = app.job(odd)
    app.close()
    assert info is not None
    assert (info.id, info.state) == (odd, "completed")
    scene.check()


# Floods ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("60 connections of workers are cut at once by a restart, and come back")
def test_connections_come_back_one_by_one(own_server: EmbeddedServer, own_scene: Scene) -> None:
    scene = own_scene
    scene.start(processes=2)
    restarted = threading.Event()
    back: list[float] = []

    async def hold(number: int) -> None:
        """As a worker's claims do: asks again and again, and after an error waits before it connects anew."""
        link, backoff = Link(scene.dsn, name=f"pgqueue worker {number} claims"), Backoff()
        is_back = False
        while not is_back:
            try:
                is_back = restarted.is_set()
                await link.run(calls.protocol())
                backoff = Backoff()
                await asyncio.sleep(0.02)
            except OUTAGES:
                is_back = False
                await asyncio.sleep(backoff.wait())
        back.append(time.monotonic())
        await link.close()

    async def hold_all() -> None:
        await asyncio.gather(*(hold(number) for number in range(60)))

    with scene.load(rate=5), ThreadPoolExecutor(max_workers=1) as threads:
        holding = threads.submit(asyncio.run, hold_all())
        connected = (
            "select count(*) from pg_stat_activity where application_name like 'pgqueue worker % claims'"
        )
        wait_until(lambda: scene.ask(connected) >= [(60,)], 30, "all connections")
        scene.wait_for_ends(10)
        own_server.stop()
        time.sleep(1.5)  # the length of the fault
        restarted.set()
        own_server.start()
        up_at = time.monotonic()
        holding.result(60)
        scene.tried(max(back) - up_at, within=2)
        scene.tried(scene.probe(), within=2)
    first = min(back)
    most = Counter(int((at - first) / 0.1) for at in back).most_common(1)[0][1]
    print(f"60 came back over {max(back) - first:.2f} s, at most {most} within 0.1 s")
    assert max(back) - first > 0.25
    assert most < 40
    scene.check("raised", "refused")


@pytest.mark.fault("20,000 jobs fall due in the same second, while others flow")
def test_many_jobs_that_fall_due_together(scene: Scene) -> None:
    scene.start("-c", "50", processes=2)
    ((due,),) = scene.ask("select (now() + interval '6 seconds')::text")
    ids = flood(scene, 20_000, priority=7, run_at=due)
    with scene.load(rate=5):
        wait_until(lambda: scene.ask(f"select now() > '{due}'") == [(True,)], 30, "their time")
        for _ in range(3):
            scene.tried(scene.probe(), within=1)
        promoted = (
            "select not exists (select from pgqueue.scheduled_jobs where task = 'plain' and attempt = 0)"
        )
        wait_until(lambda: scene.ask(promoted) == [(True,)], 60, "all of them to be ready")
        ((took,),) = scene.ask(f"select extract(epoch from now() - '{due}')::float")
        print(f"20,000 jobs were ready {took:.2f} s after their time")
        scene.tried(scene.probe(), within=1)
        seconds_for(scene, ids)
    scene.check()


@pytest.mark.fault("a dependency is down: 2,000 jobs fail in the same moment, and are tried again")
def test_retries_come_back_spread(scene: Scene) -> None:
    with psycopg.connect(scene.dsn, autocommit=True) as connection:
        numbers = [next(_numbers) for _ in range(2000)]
        items = [load_tasks.depends.item(n=n, gate="up") for n in numbers]
        made = load_tasks.app.enqueue_many(connection, items)
    scene.record.acknowledged |= {n: (job.id,) for n, job in zip(numbers, made, strict=True)}
    scene.start("-c", "100", app="tests.faults.load_tasks:app")
    scene.history.wait_for("end", count=2000, timeout=60)
    wait_until(
        lambda: scene.ask("select count(*) from pgqueue.job_failures") >= [(2000,)], 60, "the failures"
    )
    scene.history.open("up")
    failed = dict(
        scene.ask(
            "select job_id, extract(epoch from failed_at)::float from pgqueue.job_failures where attempt = 1"
        )
    )
    due = dict(
        scene.ask(
            "select id, extract(epoch from run_at)::float from pgqueue.scheduled_jobs where attempt = 1"
        )
    )
    waits = [due[id] - failed[id] for id in due]
    low, high = load_tasks.WAIT * (1 - load_tasks.JITTER), load_tasks.WAIT * (1 + load_tasks.JITTER)
    assert len(waits) > 1000, "they were too slow to be seen together"
    assert low - 0.1 < min(waits) < max(waits) < high + 0.1
    tenths = Counter(int((wait - low) / (high - low) * 10) for wait in waits)
    print("retries by tenth of the window:", [tenths[tenth] for tenth in range(10)])
    assert max(tenths.values()) < 1.5 * len(waits) / 10
    scene.tried(None)
    scene.check("raised")


# Transactions ---------------------------------------------------------------------------------------------


@pytest.mark.fault(
    "an application's transactions are prepared, aborted, long, and have hundreds of savepoints"
)
def test_transactions_of_every_kind(scene: Scene) -> None:
    scene.start()
    with scene.load(rate=5), psycopg.connect(scene.dsn) as long, psycopg.connect(scene.dsn) as connection:
        kept = {"long": next(_numbers)}
        scene.record.acknowledged[kept["long"]] = (tasks.plain.enqueue(long, n=kept["long"]).id,)
        for _ in range(3):
            prepared, aborted, rolled_back = (next(_numbers) for _ in range(3))
            connection.execute("set local pgqueue.notify = off")
            id = tasks.plain.enqueue(connection, n=prepared).id
            connection.execute("prepare transaction 'of an order'")
            connection.rollback()
            scene.wait_for_ends(5)
            assert not scene.history.entries("start", id), "it started before its transaction was committed"
            scene.ask("commit prepared 'of an order'")
            since = time.monotonic()
            scene.record.acknowledged[prepared] = (id,)
            (start, *_) = scene.history.wait_for("start", id)
            scene.tried(start.at - since, within=2)
            tasks.plain.enqueue(connection, n=aborted)
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.execute("select 1/0")
            connection.rollback()
            connection.execute("set local pgqueue.notify = off")
            tasks.plain.enqueue(connection, n=rolled_back)
            connection.execute("prepare transaction 'of nothing'")
            connection.rollback()
            scene.ask("rollback prepared 'of nothing'")
            scene.record.rolled_back |= {aborted, rolled_back}
        ids: dict[int, int] = {}
        for place in range(400):
            n = next(_numbers)
            with connection.transaction(force_rollback=place % 2 == 1):
                ids[n] = tasks.plain.enqueue(connection, n=n).id
            if place % 2:
                scene.record.rolled_back.add(n)
            else:
                scene.record.acknowledged[n] = (ids[n],)
        connection.commit()
        scene.tried(
            seconds_for(scene, [id for n, id in ids.items() if n in scene.record.acknowledged]), within=2
        )
        assert not scene.history.entries("start", *scene.record.acknowledged[kept["long"]])
        long.commit()
        since = time.monotonic()
        (start, *_) = scene.history.wait_for("start", *scene.record.acknowledged[kept["long"]])
        scene.tried(start.at - since, within=1)
    scene.check()
