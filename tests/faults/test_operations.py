"""What operators, applications and other sessions do: deploys, crashes at a chosen point, locks and snapshots held."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from tests.faults import tasks
from tests.faults.scene import Scene, slack
from tests.support import wait_until
from tests.worker.harness import REPOSITORY


@pytest.mark.sample
@pytest.mark.fault("a deploy under load: SIGTERM, and the next worker beside it")
def test_a_deploy_costs_no_attempt_and_repeats_nothing(scene: Scene) -> None:
    worker = scene.start()
    with scene.load(rate=10):
        for _ in range(3):
            scene.wait_for_busy(worker)
            following = scene.start()
            told_at = time.monotonic()
            worker.stop(signal.SIGTERM)
            assert worker.wait(30) == 0
            scene.workers.remove(worker)
            scene.tried(time.monotonic() - told_at, within=1)
            worker = following
    scene.check()


@pytest.mark.fault("a deploy whose jobs take longer than the drain limit")
def test_what_is_released_at_the_drain_limit_keeps_its_attempt(scene: Scene) -> None:
    worker = scene.start("-c", "20", drain_limit=0.5)
    with scene.load(rate=4):
        for number in range(3):
            held = [scene.enqueue(tasks.waits, gate=f"deploy {number}") for _ in range(3)]
            scene.history.wait_for("start", *held, count=3)
            worker.stop(signal.SIGTERM)
            told_at = time.monotonic()
            assert worker.wait(30) == 0
            scene.workers.remove(worker)
            ended_at = time.monotonic()
            assert ended_at - told_at < 0.5 + slack(), "the drain limit was not kept"
            worker = scene.start("-c", "20", drain_limit=0.5)
            started_at = time.monotonic()
            again = scene.again(held, ended_at)
            assert again is not None
            scene.tried(max(0.0, ended_at + again - started_at), within=1)
            scene.history.open(f"deploy {number}")
    scene.check("cancelled")


# Crash points ---------------------------------------------------------------------------------------------

PRODUCER = """
import json, os, signal, sys, psycopg
from tests.faults import tasks

dsn, path, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
record = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for n in range(first, first + 40):
    after = n % 2
    if os.fork() == 0:
        connection = psycopg.connect(dsn)
        connection.execute("insert into public.orders (n) values (%s)", [n])
        ids = [tasks.plain.enqueue(connection, n=n).id, tasks.pays.enqueue(connection, n=n).id]
        if not after:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(record, json.dumps([n, ids]).encode() + b"\\n")
        connection.commit()
        os.kill(os.getpid(), signal.SIGKILL)
    os.wait()
"""
"""Dies 40 times, in turn before a commit and after one. What it commits it has written down before, for nobody is there to do
it afterwards."""


@pytest.mark.sample
@pytest.mark.fault("an application is killed before and after the commit of its enqueue")
def test_a_job_exists_if_and_only_if_its_transaction_was_committed(scene: Scene, tmp_path: Path) -> None:
    scene.start()
    path = tmp_path / "committed"
    command = [sys.executable, "-W", "error", "-c", PRODUCER, scene.dsn, str(path), "0"]
    subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=True, timeout=60
    )
    for line in path.read_text().splitlines():
        n, ids = json.loads(line)
        scene.record.acknowledged[n] = tuple(ids)
        scene.tried(None)
    for n in range(0, 40, 2):
        scene.record.rolled_back.add(n)
        scene.tried(None)
    assert len(scene.record.acknowledged) == 20
    scene.check()


@pytest.mark.sample
@pytest.mark.fault("a transactional job's process is killed between its write and its commit, or before both")
def test_what_a_killed_transaction_wrote_is_written_once(scene: Scene) -> None:
    worker = scene.start(processes=2)
    with scene.load(rate=4):
        for number in range(6):
            point = ("before its commit", "before its write")[number % 2]
            job = scene.enqueue(tasks.pays, dies=point)
            first, again = scene.history.wait_for("start", job, count=2, timeout=30)[:2]
            scene.tried(again.at - first.at, within=2)
            wait_until(lambda: len(worker.children()) == 2, 30, "two children")
    scene.check("crashed")


@pytest.mark.fault("a worker is killed while its claims and endings are under way, wherever they are")
def test_a_worker_that_is_killed_at_random_points(scene: Scene) -> None:
    scene.start()
    with scene.load(rate=12, long=0.05):
        for number in range(5):
            victim = scene.start("-c", "4")
            (child,) = victim.children().values()
            pids = scene.family(child)
            scene.history.wait_for("end", count=len(scene.history.entries("end")) + 5 + number)
            killed_at = time.monotonic()
            scene.kill(victim)
            scene.tried(scene.again(scene.in_hand(*pids), killed_at), within=8 * 0.15)
    scene.check("crashed")


# Other sessions -------------------------------------------------------------------------------------------


@pytest.mark.fault("strangers hold a snapshot, a transaction id, and locks on the first jobs in line")
def test_strangers_that_hold_snapshots_and_locks(scene: Scene) -> None:
    with psycopg.connect(scene.dsn) as snapshot, psycopg.connect(scene.dsn) as writer, ExitStack() as stack:
        snapshot.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        snapshot.execute("select count(*) from pgqueue.ready_jobs")
        writer.execute("create table public.of_a_stranger ()")
        stack.enter_context(scene.load(rate=10))
        wait_until(lambda: len(scene.record.acknowledged) > 5, message="jobs in line")
        locker = stack.enter_context(psycopg.connect(scene.dsn))
        locked = [
            id
            for (id,) in locker.execute(
                "select id from pgqueue.ready_jobs order by position limit 20 for update"
            ).fetchall()
        ]
        scene.start()
        for _ in range(3):
            scene.tried(scene.probe(), within=1)
            scene.wait_for_ends(30)
        started = scene.history.starts_by_job()
        assert len(locked) == 20
        assert not any(id in started for id in locked), "they were not locked: this test shows too little"
        released_at = time.monotonic()
        locker.rollback()
        scene.tried(scene.again(locked, released_at), within=5)
    scene.check()


@pytest.mark.fault("the database's default isolation is repeatable read, then serializable, for all")
def test_isolation_levels(scene: Scene) -> None:
    name = psycopg.conninfo.conninfo_to_dict(scene.dsn)["dbname"]
    for level in ("repeatable read", "serializable"):
        scene.ask(f"alter database {name} set default_transaction_isolation = '{level}'")
        worker = scene.start(processes=2)
        with scene.load(rate=6):
            for _ in range(2):
                scene.wait_for_ends(20)
                scene.tried(scene.probe(), within=1)
        scene.settle()
        worker.stop()
        assert worker.wait(30) == 0
        scene.workers.remove(worker)
    scene.check("raised")
