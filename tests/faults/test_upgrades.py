"""The schema is upgraded under load: to 0002 of a release to come (`tests/upgrades/release.py`)."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import psycopg
import pytest

from pgqueue import migrate
from pgqueue.embedded import find_binaries
from tests.faults import tasks
from tests.faults.scene import Scene, slack
from tests.support import Databases, wait_until
from tests.upgrades.release import LaterRelease

BLOCKED = 1.6
"""Seconds that an enqueue or a claim may wait for an upgrade: a second for its first lock, 0.3 s for each of two more."""


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> LaterRelease:
    """The release to come."""
    return LaterRelease(tmp_path_factory.mktemp("later"))


@pytest.fixture
def database(databases: Databases, later: LaterRelease) -> Iterator[str]:
    """The DSN of a database at 0001, where 0002 is pending."""
    dsn = databases.create_empty()
    later.install_before(dsn)
    yield dsn
    databases.drop(dsn)


class Waits:
    """How long enqueues, and the claims of what they made, took while a block ran."""

    def __init__(self, scene: Scene):
        self._scene = scene
        self._made: list[tuple[int, float]] = []
        self.enqueues: list[float] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Enqueues thirty times a second beside the block."""
        stop = threading.Event()
        with ThreadPoolExecutor(max_workers=1) as threads:
            measuring = threads.submit(self._enqueue, stop)
            try:
                yield
            finally:
                stop.set()
            measuring.result(60)

    def _enqueue(self, stop: threading.Event) -> None:
        while not stop.wait(0.03):
            began = time.monotonic()
            id = self._scene.enqueue(tasks.plain)
            self._made.append((id, began))
            self.enqueues.append(time.monotonic() - began)

    def starts(self) -> list[float]:
        """From each enqueue to the start of its job."""
        self._scene.history.wait_for("end", *(id for id, _ in self._made), count=len(self._made), timeout=60)
        started = {entry.job: entry.at for entry in self._scene.history.entries("start")}
        return [started[id] - began for id, began in self._made]


def longest_pause(scene: Scene, since: float, until: float) -> float:
    """The longest time between `since` and `until` in which no job ended."""
    ends = [entry.at for entry in scene.history.entries("end") if since < entry.at < until]
    return max(later - earlier for earlier, later in pairwise([since, *ends, until]))


@pytest.mark.sample
@pytest.mark.fault("the schema is upgraded under load, by two at once; workers of both releases go on")
def test_an_upgrade_beside_workers_of_both_releases(scene: Scene, later: LaterRelease) -> None:
    older = scene.start(processes=2)
    with scene.load(rate=6):
        scene.wait_for_ends(20)
        began = time.monotonic()
        with ThreadPoolExecutor(max_workers=2) as threads, later.known():
            upgrades = [threads.submit(migrate.upgrade, scene.dsn) for _ in range(2)]
            assert sorted(upgrade.result(60) for upgrade in upgrades) == [(), ("0002",)]
        scene.wait_for_ends(20)
        scene.tried(longest_pause(scene, began, time.monotonic()), within=1)
        newer = scene.start(cwd=later.root)
        older_anew = scene.start()
        for worker in (older, newer, older_anew):
            wait_until(partial(has_started, scene, {*worker.children().values()}), 60, "a job of its own")
        scene.tried(scene.probe(), within=1)
    ((versions,),) = scene.ask("select array_agg(distinct version order by version) from pgqueue.workers")
    assert len(versions) == 2
    scene.check()
    assert scene.record.repeated == 0, "a producer was refused"
    for worker in (older, newer, older_anew):
        assert worker.events("database.refused") == []
        assert worker.events("worker.child_died") == []
    ((ended_by_new_body,),) = scene.ask("select last_value from pgqueue.later_calls")
    assert ended_by_new_body > 20


def has_started(scene: Scene, children: set[int]) -> bool:
    """Whether a job has started in one of these processes."""
    return any(entry.pid in children for entry in scene.history.entries("start"))


@pytest.mark.fault(
    "a pg_dump and a long reader hold their locks while the schema is to be upgraded under load"
)
def test_an_upgrade_waits_for_a_dump_without_holding_anybody_up(scene: Scene, later: LaterRelease) -> None:
    scene.ask("create table public.ballast as select repeat('x', 1000) as x from generate_series(1, 20000)")
    scene.start(processes=2)
    waits = Waits(scene)
    told: list[str] = []
    command = [str(find_binaries() / "pg_dump"), scene.dsn]
    with (
        scene.load(rate=10),
        psycopg.connect(scene.dsn) as reader,
        later.known(),
        subprocess.Popen(command, stdout=subprocess.PIPE) as dump,  # it stands still while nobody reads
    ):
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("select count(*) from pgqueue.running_jobs")
        holds = (
            "select count(*) from pg_locks where relation = 'pgqueue.ready_jobs'::regclass and pid in"
            " (select pid from pg_stat_activity where application_name = 'pg_dump')"
        )
        wait_until(lambda: scene.ask(holds) != [(0,)], 30, "pg_dump to hold the tables")
        with ThreadPoolExecutor(max_workers=1) as threads, waits.measured():
            began = time.monotonic()
            upgrade = threads.submit(migrate.upgrade, scene.dsn, tries=30, pause=0.3, tell=told.append)
            wait_until(lambda: len(told) >= 3, 60, "the upgrade to try again three times")
            assert told == ["a lock was not free within 1 s, trying again"] * 3
            dump.communicate()  # it gets to its end
            assert dump.returncode == 0
            reader.rollback()
            released = time.monotonic()
            assert upgrade.result(60) == ("0002",)
            applied = time.monotonic()
        scene.tried(applied - released, within=2)
        scene.tried(scene.probe(), within=1)
    pauses = longest_pause(scene, began, applied), max(waits.enqueues), max(waits.starts())
    print("longest: without an end {:.2f} s, an enqueue {:.2f} s, until a start {:.2f} s".format(*pauses))
    assert max(pauses[:2]) < BLOCKED + slack() / 3
    assert pauses[2] < 2 * BLOCKED + slack() / 3
    scene.check()
    assert scene.record.repeated == 0, "a producer was refused"
