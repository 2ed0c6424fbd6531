"""Faults at random, one after the other and sometimes at once, for SOAK_SECONDS, at the default times.

Three workers under load: two straight on the database, one through a proxy. The order of faults is that of SOAK_SEED, which is
printed; at the end nothing may be lost, nothing may have run again without a reason, and nothing may be written twice.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pgqueue.embedded import EmbeddedServer
from tests.faults import tasks
from tests.faults.scene import Scene
from tests.support import wait_until
from tests.support.proxy import CAN_FALL_SILENT, Proxy
from tests.worker.harness import Worker, is_alive

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
SEED = os.environ.get("SOAK_SEED") or str(random.randrange(10**6))
STATED: dict[str, Any] = {"lease": 30, "beat": 2, "upkeep_interval": 4, "drain_limit": 25}
"""The default times."""
REGISTERED = "select count(*) from pgqueue.workers"


class Soak:
    """The faults, each a method, and what they are done to."""

    def __init__(self, scene: Scene, server: EmbeddedServer, proxy: Proxy, chance: random.Random):
        self.scene, self.server, self.proxy, self.chance = scene, server, proxy, chance
        self.done: Counter[str] = Counter()
        self._frozen: list[tuple[float, list[int]]] = []
        for dsn in (scene.dsn, scene.dsn, proxy.dsn):
            scene.start("-c", "8", processes=2, dsn=dsn, **STATED)

    def faults(self) -> list[Callable[[], None]]:
        """All of them, the harmless ones more often."""
        often = [self.kill_child, self.terminate, self.lose_answer, self.deploy, self.lose_answer]
        seldom = [self.kill_worker, self.kill_supervisor, self.freeze_child, self.freeze_worker, self.cut]
        seldom += [self.restart_fast, self.restart_immediate, self.kill_server, self.fill_disk, self.slow]
        return often * 2 + seldom + ([self.fall_silent] if CAN_FALL_SILENT else [])

    def one(self) -> None:
        """One fault, and a pause after which all may be well again, or not."""
        fault = self.chance.choice(self.faults())
        self.done[fault.__name__] += 1
        fault()
        self.scene.tried(None)
        pause_until = time.monotonic() + self.chance.uniform(0, 4)
        self.look_after_workers(lambda: time.monotonic() > pause_until, 10)

    def probe(self) -> float:
        """How long it takes until a job that is enqueued now starts."""
        since = time.monotonic()
        job = self.scene.enqueue(tasks.plain)
        self.look_after_workers(lambda: self.scene.history.entries("start", job), 180)
        return self.scene.history.entries("start", job)[0].at - since

    def look_after_workers(self, is_over: Callable[[], object], patience: float) -> None:
        """What a service manager does, and time, until `is_over`."""

        def look() -> object:
            time.sleep(0.05)  # the pace of the looks
            self.thaw(time.monotonic())
            for worker in [*self.scene.workers]:
                if worker.process.poll() is not None:  # the database could not be reached when it was started
                    worker.wait()
                    assert worker.events("worker.started") == [], worker.told()
                    assert all(line.startswith("error: conn") for line in worker.noise), worker.noise
                    worker.noise.clear()
                    self.scene.workers.remove(worker)
                    self.start()
            return is_over()

        wait_until(look, patience, "the end of a pause, or a job")

    def start(self) -> None:
        """One more worker."""
        place = self.chance.choice([self.scene.dsn, self.scene.dsn, self.proxy.dsn])
        self.scene.start("-c", "8", processes=2, wait=False, dsn=place, **STATED)

    def thaw(self, now: float) -> None:
        """Lets those go on whose time is over."""
        for due, pids in [*self._frozen]:
            if due <= now:
                self._frozen.remove((due, pids))
                for pid in pids:
                    if is_alive(pid):
                        os.kill(pid, signal.SIGCONT)

    # Processes

    def kill_child(self) -> None:
        if children := self.children():
            os.kill(self.chance.choice(children), signal.SIGKILL)

    def kill_worker(self) -> None:
        self.replace(self.scene.kill)

    def kill_supervisor(self) -> None:
        def kill(worker: Worker) -> None:
            worker.send(signal.SIGKILL)
            self.scene.kill(worker)

        self.replace(kill)

    def deploy(self) -> None:
        def stop(worker: Worker) -> None:
            worker.send(signal.SIGCONT)
            worker.send(signal.SIGTERM)
            worker.wait(60)
            self.scene.workers.remove(worker)

        if not self._frozen:  # one that stands still does not drain
            self.replace(stop)

    def freeze_child(self) -> None:
        if (children := self.children()) and not self._frozen:
            self.freeze([self.chance.choice(children)])

    def freeze_worker(self) -> None:
        if not self._frozen:
            worker = self.chance.choice(self.scene.workers)
            self.freeze([worker.pid, *worker.children().values()])

    # The way to the database

    def terminate(self) -> None:
        self.scene.terminate()

    def lose_answer(self) -> None:
        self.proxy.lose(b"")

    def cut(self) -> None:
        self.proxy.shut()
        time.sleep(self.chance.uniform(0.1, 10))  # the length of the fault, here and below
        self.proxy.open()

    def fall_silent(self) -> None:
        self.proxy.fall_silent()

    def slow(self) -> None:
        self.proxy.delay = 0.1
        time.sleep(self.chance.uniform(0.5, 3))
        self.proxy.delay = 0

    # The server

    def restart_fast(self) -> None:
        self.server.restart("fast")

    def restart_immediate(self) -> None:
        self.server.restart("immediate")

    def kill_server(self) -> None:
        self.server.kill()
        time.sleep(self.chance.uniform(0, 6))
        self.server.start()

    def fill_disk(self) -> None:
        if self._frozen:  # who may hold a lock that this thread would wait for, which is to let it go on
            return
        table = self.chance.choice(["running_jobs", "finished_jobs", "scheduled_jobs", "ready_jobs"])
        with self.scene.full_disk(table):
            time.sleep(self.chance.uniform(0.1, 3))

    # How

    def children(self) -> list[int]:
        """Every child of every worker."""
        return [pid for worker in self.scene.workers for pid in worker.children().values()]

    def freeze(self, pids: list[int]) -> None:
        """Stops processes for a time that may be longer than the lease."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        self._frozen.append((time.monotonic() + self.chance.uniform(1, 45), pids))

    def replace(self, end: Callable[[Worker], None]) -> None:
        """Ends a worker and starts another one in its place."""
        end(self.chance.choice(self.scene.workers))
        self.start()


@pytest.fixture
def proxy(own_scene: Scene) -> Iterator[Proxy]:
    """The way of some of the workers."""
    with Proxy(own_scene.dsn) as proxy:
        yield proxy
        own_scene.close()


@pytest.mark.soak
@pytest.mark.fault("faults at random (`make soak`)")
def test_nothing_is_lost_whatever_happens(own_scene: Scene, own_server: EmbeddedServer, proxy: Proxy) -> None:
    scene = own_scene
    print(f"SOAK_SEED={SEED} SOAK_SECONDS={SECONDS:g}")
    soak = Soak(scene, own_server, proxy, random.Random(SEED))
    until = time.monotonic() + SECONDS
    with scene.load(rate=3):
        while time.monotonic() < until:
            soak.one()
            if soak.chance.random() < 0.3:
                scene.recovered(soak.probe(), within=35 + 20)
    print(f"faults: {dict(sorted(soak.done.items()))}")
    soak.thaw(until + 1000)
    soak.look_after_workers(lambda: all(worker.children() for worker in scene.workers), 60)
    scene.recovered(soak.probe(), within=35 + 20)
    # Those that were killed last are known to be dead before the last one stops that could say so.
    soak.look_after_workers(lambda: scene.ask(REGISTERED) == [(len(soak.children()),)], 60)
    scene.check("raised", "crashed", "interrupted", "refused", timeout=300)


@pytest.mark.soak
@pytest.mark.fault("the server is away for 60 s, two leases of the default times (`make soak`)")
def test_a_server_that_is_away_for_a_minute(own_scene: Scene, own_server: EmbeddedServer) -> None:
    scene = own_scene
    worker = scene.start("-c", "8", processes=2, **STATED)
    with scene.load(rate=4, patience=100):
        scene.wait_for_busy()
        own_server.stop()
        time.sleep(60)  # the length of the fault
        own_server.start()
        scene.tried(scene.probe(), within=2)
        scene.wait_for_ends(20)
    assert worker.events("worker.child_died") == []
    scene.check("raised", "refused")


@pytest.mark.soak
@pytest.mark.fault("a worker is cut off for 90 s, three leases of the default times (`make soak`)")
def test_a_worker_that_is_cut_off_for_longer_than_its_lease(own_scene: Scene, proxy: Proxy) -> None:
    scene = own_scene
    scene.start("-c", "8", processes=2, **STATED)
    cut_off = scene.start("-c", "8", processes=2, dsn=proxy.dsn, **STATED)
    with scene.load(rate=4):
        scene.wait_for_busy(cut_off)
        proxy.shut()
        since = time.monotonic()
        held = scene.in_hand(*cut_off.children().values())
        # it lives, but its sessions have ended, and with them the lock that says so: nobody waits for its lease
        scene.tried(scene.again(held, since), within=2 * STATED["upkeep_interval"])
        time.sleep(max(0.0, since + 90 - time.monotonic()))  # the length of the fault
        proxy.open()
        since = time.monotonic()
        wait_until(lambda: scene.in_hand(*cut_off.children().values()), 30, "work for it")
        scene.recovered(time.monotonic() - since, within=5)
    assert len(cut_off.events("worker.declared_dead")) == 2  # its children start anew
    scene.check("raised", "crashed", "interrupted", "refused")
