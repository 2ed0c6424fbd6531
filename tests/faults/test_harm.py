"""Handlers that harm the process they run in: that end it, exhaust it, block it, or fork it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults import tasks
from tests.faults.scene import Scene, slack, wait_for_children
from tests.support import wait_until
from tests.worker.harness import REPOSITORY, is_alive

INNOCENTS = 50
DEAD = "select reason, error, attempt from pgqueue.dead_letters where id = %s"


def poison_beside_innocents(scene: Scene, task: Any, ends: dict[str, tuple[str, str]]) -> None:
    """Runs a job that harms in each of some ways, while others are under way in its process; `ends`: reason and error with
    which it is dead in the end."""
    worker = scene.start("-c", str(INNOCENTS + 10), processes=2)
    with scene.load(rate=5):
        for how, (reason, error) in ends.items():
            beside = [scene.enqueue(tasks.innocent) for _ in range(INNOCENTS)]
            scene.history.wait_for("start", *beside, count=INNOCENTS, timeout=30)
            job = scene.enqueue(task, promised=False, how=how)
            begun_at = time.monotonic()
            letter = wait_until(lambda: scene.ask(DEAD, job), 30, f"the end of {how}")  # noqa: B023
            scene.tried(time.monotonic() - begun_at)
            assert letter == [(reason, error, letter[0][2])], how
            assert 2 <= scene.history.starts_by_job()[job] <= 2 + 3
            scene.wait_for_ends(5)
    wait_for_children(worker, 2)
    scene.check("crashed", "interrupted", "raised" if task is tasks.greedy else "crashed")


@pytest.mark.fault(
    "a job ends its own process: SIGKILL, a segmentation fault, os._exit, with 50 innocents beside it"
)
def test_poison_dies_alone(scene: Scene) -> None:
    died = ("crashed", "pgqueue.ProcessDied")
    poison_beside_innocents(scene, tasks.poison, {"SIGKILL": died, "segfault": died, "_exit": died})


@pytest.mark.fault(
    "a job takes too much: sys.exit, all memory under a cap, a recursion without end, with 50 innocents beside it"
)
def test_greed_harms_nobody_else(scene: Scene) -> None:
    poison_beside_innocents(
        scene,
        tasks.greedy,
        {
            "sys.exit": ("exhausted", "SystemExit"),
            "memory": ("exhausted", "MemoryError"),
            "recursion": ("exhausted", "RecursionError"),
            "recursion in C": ("crashed", "pgqueue.ProcessDied"),
        },
    )


@pytest.mark.fault("a handler blocks its event loop beyond its timeout")
def test_a_blocked_loop_is_ended_and_its_neighbours_run_again(scene: Scene) -> None:
    worker = scene.start()
    with scene.load(rate=5):
        for _ in range(2):
            scene.wait_for_ends(5)
            job = scene.enqueue(tasks.blocks, promised=False)
            (start,) = scene.history.wait_for("start", job)
            wait_until(lambda: worker.events("worker.hung", job_ids=[job]), 30, "a word about it")  # noqa: B023
            wait_until(lambda: not is_alive(start.pid), message="its end")  # noqa: B023
            neighbours = {*scene.in_hand(start.pid)} - {job}
            scene.tried(scene.again(neighbours, start.at), within=0.5 + 5)
            wait_for_children(worker, 1)
    scene.check("crashed", "interrupted")


@pytest.mark.fault(
    "a handler holds the interpreter's lock (GIL): longer than its lease, then beyond its timeout"
)
def test_who_holds_the_gil_keeps_its_lease_until_its_timeout(scene: Scene) -> None:
    worker = scene.start()
    with scene.load(rate=4):
        longer = scene.enqueue(tasks.holds_gil, seconds=4)  # it is the first attempt that completes
        (start,) = scene.history.wait_for("start", longer)
        (end,) = scene.history.wait_for("end", longer, timeout=30)
        scene.tried(end.at - start.at - 4 + scene.probe(), within=1)
        assert worker.events("worker.hung") == []
        for _ in range(2):
            scene.wait_for_ends(5)
            job = scene.enqueue(tasks.holds_gil.using(timeout=0.5), promised=False, seconds=600)
            (start,) = scene.history.wait_for("start", job)
            wait_until(lambda: not is_alive(start.pid), 30, "its end")  # noqa: B023
            neighbours = {*scene.in_hand(start.pid)} - {job}
            scene.tried(scene.again(neighbours, start.at), within=0.5 + 5)
            assert wait_until(lambda: scene.ask(DEAD, job), 30, "the end of the job")[0][0] == "crashed"  # noqa: B023
            wait_for_children(worker, 1)
    scene.check("crashed", "interrupted")


@pytest.mark.fault("a handler hangs for ever: deaf to its cancellation, or in a thread")
def test_what_hangs_loses_its_attempt_at_its_timeout(scene: Scene) -> None:
    worker = scene.start("-c", "8", drain_limit=2)
    with scene.load(rate=4):
        for task in (tasks.deaf, tasks.hangs_in_thread) * 2:
            job = scene.enqueue(task, promised=False)
            (start,) = scene.history.wait_for("start", job)
            letter = wait_until(lambda: scene.ask(DEAD, job), 30, "the end of its attempt")  # noqa: B023
            assert letter == [("exhausted", "pgqueue.errors.TimedOut", 1)]
            scene.tried(time.monotonic() - start.at, within=0.5 + 5)
            scene.wait_for_ends(5)
            assert scene.probe() < 1 + slack()
    assert worker.events("worker.child_died") == []
    scene.check("cancelled")


# Forks ------------------------------------------------------------------------------------------------------

FORKS = -3_000_000
"""The first of the numbers that jobs around a fork have."""
FORKER = """
import asyncio, itertools, json, os, sys, threading
from tests.faults import tasks

app, path, first, times = tasks.app, sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
record = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
numbers = itertools.count()

def order(offset=0):
    n = first - next(numbers) - offset
    os.write(record, json.dumps([n, [app.enqueue(tasks.plain, n=n).id]]).encode() + b"\\n")

async def order_async(offset):
    n = first - next(numbers) - offset
    job = await app.enqueue_async(tasks.plain, n=n)
    os.write(record, json.dumps([n, [job.id]]).encode() + b"\\n")
    await app.aclose()

over = threading.Event()
def beside():
    while not over.wait(0.001):
        order()

order()
thread = threading.Thread(target=beside)
thread.start()
for number in range(times):
    asyncio.run(order_async(0))
    child = os.fork()
    if child == 0:
        order(10_000 * (number + 1))
        asyncio.run(order_async(10_000 * (number + 1)))
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        os._exit(1)
    order()
over.set()
thread.join()
app.close()
"""
"""Enqueues over the app's own connections, forks, and goes on; so does its child, which ends as programs do. A thread enqueues
all the while."""


@pytest.mark.fault(
    "an application, and a handler, forks after it has opened connections: parent and child enqueue on"
)
def test_a_fork_shares_no_connection(scene: Scene, tmp_path: Path) -> None:
    worker = scene.start()
    path = tmp_path / "enqueued"
    # Python 3.12 warns of a fork beside threads, which is what is tried here
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    command = [sys.executable, *warnings, "-c", FORKER, str(path), str(FORKS), "10"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PGQUEUE_DSN": scene.dsn}
    with scene.load(rate=4):
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=120)
        for _ in range(10):
            scene.enqueue(tasks.forks)
            scene.tried(None)
            scene.tried(None)
        scene.settle()
    for line in path.read_text().splitlines():
        n, ids = json.loads(line)
        scene.record.acknowledged[n] = tuple(ids)
    for entry in scene.history.entries("enqueued"):
        scene.record.acknowledged[entry.said["n"]] = (entry.said["id"],)
    assert len(scene.history.entries("enqueued")) == 30
    assert worker.events("worker.child_died") == []
    scene.check()
