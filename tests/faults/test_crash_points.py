"""Processes that are killed at a chosen point: what they asked for is carried out and not committed, or committed and not answered.

A proxy sees the talk with the server and lets it stand still there (`Proxy.stop_at`); nothing in the product knows of it.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Literal

import psycopg
import pytest
from psycopg import sql

from tests.faults.scene import Scene
from tests.support import wait_until
from tests.support.proxy import Point, Proxy
from tests.worker.harness import Worker, is_alive

Place = Literal["before", "after"]
PLACES: list[Place] = ["before", "after"] * 10
"""Where a process is killed, one after the other."""
CHILD, WORKER, LEADER = 2.0, 8 * 0.15, 5 * 0.15
OF_CLAIMS = b'{"n": '
"""In the args of each job that a claim returns."""

_BACKEND = "select application_name, state, wait_event, backend_xid from pg_stat_activity where pid = %s"
_HELD = "select id from pgqueue.running_jobs where worker_id = %s"


def reach(
    scene: Scene,
    ways: Mapping[Worker, Proxy],
    verb: str,
    place: Place,
    says: bytes = b"",
    timeout: float = 30,
    cause: Callable[[], object] | None = None,
) -> tuple[Worker, Point, str] | None:
    """Waits until one of the workers stands at a point, and gives that one, the point and the connection's name.

    Before a commit there has to be something to commit: a claim that found no job is let go. None: nobody came in time.
    `cause`: done once nobody can pass the point any more.
    """
    until = time.monotonic() + timeout
    while True:
        points = {worker: proxy.stop_at(verb, place, says=says) for worker, proxy in ways.items()}
        if cause is not None:
            cause()
            cause = None
        while not (reached := [worker for worker in points if points[worker].reached.is_set()]):
            if time.monotonic() > until:
                for point in points.values():
                    point.go_on()
                return None
            points[next(iter(points))].reached.wait(0.005)
        worker, *_ = reached
        point = points.pop(worker)
        for other in points.values():
            other.go_on()
        name, has_written = _executed(scene, point)
        if place == "after" or has_written:
            return worker, point, name
        point.go_on()


def _executed(scene: Scene, point: Point) -> tuple[str, bool]:
    """The name of a connection that stands still, and whether its statement, which has been carried out, wrote anything.

    The server waits for the word to commit, or has committed and waits for the next statement.
    """
    state = "active" if point.place == "before" else "idle"

    def look() -> tuple[str, object] | None:
        ((name, is_in, waits_for, xid),) = scene.ask(_BACKEND, point.backend)
        return (name, xid) if (is_in, waits_for) == (state, "ClientRead") else None

    found = wait_until(look, 30, f"a statement to be carried out, and its session to be {state}")
    assert found is not None
    name, xid = found
    return name, xid is not None


# Children: claims and completions ---------------------------------------------------------------------------


def kill_children(scene: Scene, verb: str, says: bytes = b"") -> None:
    """Kills the child that stands at a call, before its commit and after it in turn."""
    with Proxy(scene.dsn) as proxy:
        # this one works on while the places of the other one wait before they start a child again
        scene.start("-c", "4")
        worker = scene.start("-c", "3", processes=4, dsn=proxy.dsn)
        with scene.load(rate=7, long=0.1):
            for place in PLACES:
                found = reach(scene, {worker: proxy}, verb, place, says)
                assert found is not None, f"nobody came to {verb}"
                _, point, name = found
                id = int(name.split()[2])  # pgqueue worker 7 claims
                victim = worker.children()[id]
                held = [job for (job,) in scene.ask(_HELD, id)]
                family = scene.family(victim)
                killed_at = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                point.cut()
                wait_until(lambda: not any(map(is_alive, family)), message=f"the end of {family}")  # noqa: B023
                scene.tried(scene.again(left_behind(scene, id, held), killed_at), within=CHILD)
        scene.check("crashed", "interrupted")
        scene.close()


def left_behind(scene: Scene, worker_id: int, held: list[int]) -> list[int]:
    """Of the jobs that a worker held, those that it had not ended when it was declared dead."""
    gone = "select from pgqueue.workers where id = %s"
    wait_until(lambda: not scene.ask(gone, worker_id), 30, f"worker {worker_id} to be declared dead")
    ended = scene.ask("select id from pgqueue.finished_jobs where worker_id = %s", worker_id)
    return [job for job in held if (job,) not in ended]


@pytest.mark.fault("a child is killed before and after the commit of its claim")
def test_what_a_claim_took_that_nobody_began_is_begun_elsewhere(scene: Scene) -> None:
    kill_children(scene, "claim", OF_CLAIMS)


@pytest.mark.fault("a child is killed before and after the commit of a completion")
def test_what_was_completed_stays_so_and_the_rest_runs_again(scene: Scene) -> None:
    kill_children(scene, "complete")


# Supervisors: rescue, tick, retention -----------------------------------------------------------------------


class Fleet:
    """Some workers, each with a way to the server of its own, and a new one for each that is killed."""

    def __init__(self, scene: Scene, stack: ExitStack, count: int = 3):
        self.scene = scene
        self.ways: dict[Worker, Proxy] = {}
        self._stack = stack
        for _ in range(count):
            self.add()
        for worker in self.ways:
            worker.wait_until_started()

    def add(self) -> None:
        """One more, which is at work some time later."""
        proxy = self._stack.enter_context(Proxy(self.scene.dsn))
        self.ways[self.scene.start("-c", "4", wait=False, dsn=proxy.dsn)] = proxy

    def kill(self, worker: Worker, point: Point | None = None) -> float:
        """All of a worker, as when the machine is lost; gives the moment, and starts another one."""
        self.scene.kill(worker)
        killed_at = time.monotonic()
        if point is not None:
            point.cut()
        del self.ways[worker]
        self.add()
        return killed_at


@pytest.fixture
def fleet(scene: Scene) -> Iterator[Fleet]:
    """A fleet in front of the test's database."""
    with ExitStack() as stack:
        yield Fleet(scene, stack)
        scene.close()  # while there are ways still


@pytest.mark.fault("a worker is killed before and after the commit of its rescue of a dead child's jobs")
def test_jobs_are_taken_back_once_whoever_dies_meanwhile(scene: Scene, fleet: Fleet) -> None:
    with scene.load(rate=4):
        for place in PLACES:
            wait_until(lambda: sum(bool(worker.children()) for worker in fleet.ways) > 1, 30, "two workers")
            worker, child = scene.wait_for_busy(count=1)
            family = scene.family(child)
            kill = functools.partial(os.kill, child, signal.SIGKILL)
            found = reach(scene, {worker: fleet.ways[worker]}, "rescue", place, cause=kill)
            assert found is not None, "nobody came to the rescue"
            wait_until(lambda: not any(map(is_alive, family)), message=f"the end of {family}")  # noqa: B023
            since = time.monotonic()
            left = scene.in_hand(*family)  # after the commit others may have begun
            fleet.kill(worker, found[1])
            scene.tried(scene.again(left, since), within=WORKER)
    scene.check("crashed", "interrupted")


@pytest.mark.fault("the leader is killed before and after the commit of a schedule's tick")
def test_each_due_time_makes_one_job_whoever_dies_meanwhile(scene: Scene, fleet: Fleet) -> None:
    scene.beat()
    with scene.load(rate=5):
        killed_at = None
        for place in PLACES:
            found = reach(scene, fleet.ways, "tick", place)
            assert found is not None, "nobody ticked"
            scene.tried(killed_at and time.monotonic() - killed_at, within=LEADER + 1)
            killed_at = fleet.kill(found[0], found[1])
    dues = scene.end_of_beats()
    assert {later - sooner for sooner, later in itertools.pairwise(dues)} == {timedelta(seconds=1)}
    scene.check("crashed", "interrupted")


OLD = datetime.now(UTC).date() - timedelta(days=9)
PARTITION = sql.SQL(
    "create table if not exists pgqueue.{0} (like pgqueue.{1} including defaults including indexes);"
    "alter table pgqueue.{1} attach partition pgqueue.{0} for values from ({2}) to ({3})"
)
_DAYS = "select relation from pgqueue.history_partitions() order by relation"
_EXPIRED = "select job_id from pgqueue.unique_keys where expires_at < now()"


def make_retention_due(scene: Scene, number: int) -> None:
    """There is a day that nobody keeps, a key that has expired, and none of the days ahead."""
    with psycopg.connect(scene.dsn) as connection:
        connection.execute("set local lock_timeout = '20s'")
        if not connection.execute(
            "select to_regclass(%s)", [f"pgqueue.finished_jobs{OLD:_%Y%m%d}"]
        ).fetchone()[0]:  # type: ignore[index]
            names = ("finished_jobs", f"finished_jobs{OLD:_%Y%m%d}")
            parent, name = map(sql.Identifier, names)
            connection.execute(PARTITION.format(name, parent, str(OLD), str(OLD + timedelta(days=1))))
        ahead = datetime.now(UTC).date() + timedelta(days=7)
        connection.execute(
            sql.SQL("drop table if exists {}").format(
                sql.Identifier("pgqueue", f"finished_jobs{ahead:_%Y%m%d}")
            )
        )
        connection.execute(
            "insert into pgqueue.unique_keys values ('idempotency', 'plain', %s, 1, now() - interval '1 s') on conflict do nothing",
            [f"expired {number}"],
        )
        connection.execute("update pgqueue.rollup_progress set rolled_up_to = clock_timestamp()")
        connection.execute("update pgqueue.retention set due_at = '-infinity'")


@pytest.mark.fault("the leader is killed before and after the commit of each step of retention")
def test_a_step_of_retention_is_made_whole_or_not_at_all(scene: Scene, fleet: Fleet) -> None:
    verbs = itertools.cycle(("retain", "drop_day", "trim_history"))
    with scene.load(rate=5):
        killed_at = None
        for number, (place, verb) in enumerate(zip(PLACES, verbs, strict=False)):
            make_retention_due(scene, number)
            while (found := reach(scene, fleet.ways, verb, place, timeout=2)) is None:
                # who leads has done it within this minute: the next one shall, who has not
                fleet.kill(leader(scene, fleet))
                make_retention_due(scene, number)
                killed_at = None
            scene.tried(killed_at and time.monotonic() - killed_at, within=LEADER)
            killed_at = fleet.kill(found[0], found[1])
    wait_until(lambda: retained(scene), 70, "all of it to be done in the end")
    scene.check("crashed", "interrupted")


_LEADER = "select w.pid from pgqueue.workers as w join pgqueue.leadership as l using (supervisor_id)"


def leader(scene: Scene, fleet: Fleet) -> Worker:
    """Waits for one of the workers that live to lead, and gives it."""

    def look() -> Worker | None:
        leading = {pid for (pid,) in scene.ask(_LEADER)}
        return next((worker for worker in fleet.ways if leading & {*worker.children().values()}), None)

    found = wait_until(look, 30, "a leader")
    assert found is not None
    return found


def retained(scene: Scene) -> bool:
    """Whether the old day is gone whole, every day ahead is there, and what has expired is forgotten."""
    relations = [relation for (relation,) in scene.ask(_DAYS)]
    today = datetime.now(UTC).date()
    ahead = [f"finished_jobs{today + timedelta(days=days):_%Y%m%d}" for days in range(8)]
    return (
        [relation for relation in relations if relation.startswith("finished_jobs")] == ahead
        and scene.ask(_EXPIRED) == []
        and scene.ask("select to_regclass(%s)", f"pgqueue.finished_jobs{OLD:_%Y%m%d}") == [(None,)]
    )
