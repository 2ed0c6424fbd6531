"""Workers and producers behind PgBouncer in transaction mode, which nobody told them of: it, or what is on either side of it, fails."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from pgqueue.embedded import EmbeddedServer
from tests.faults.scene import Scene
from tests.support import wait_until
from tests.support.pgbouncer import BINARY, MISSING, PgBouncer

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)

BACK = 3.0
"""Seconds after which work goes on: workers try again at least every second, and behind a pooler they look once a second."""
LEASE = 3.0
LOOK = 0.6
"""Of these workers: a round of upkeep."""


@pytest.fixture
def pooler(scene: Scene) -> Iterator[PgBouncer]:
    """The only way of the workers to the database."""
    with PgBouncer(scene.dsn) as pooler:
        yield pooler
        scene.close()  # while there is a way still


def go_through(scene: Scene, pooler: PgBouncer, times: int, fault: Callable[[], object]) -> None:
    """Injects a fault that is over when `fault` returns, again and again under load."""
    worker = scene.start(dsn=pooler.dsn, processes=2)
    assert worker.events("wake.poll"), "it found no pooler"
    with scene.load(pooler.dsn, rate=8):
        for _ in range(times):
            scene.wait_for_busy(count=1)
            fault()
            scene.tried(scene.probe(), within=BACK)
            scene.wait_for_ends(10)
    assert worker.events("worker.child_died") == []


@pytest.mark.fault("PgBouncer is killed (SIGKILL), and started again after 1 s")
def test_a_pooler_that_is_killed(scene: Scene, pooler: PgBouncer) -> None:
    def kill() -> None:
        pooler.stop()
        time.sleep(1)  # the length of the fault
        pooler.start()

    go_through(scene, pooler, 3, kill)
    scene.check("raised")


@pytest.mark.fault("PgBouncer is restarted while jobs run, after their transactions (SIGINT)")
def test_a_pooler_that_is_restarted(scene: Scene, pooler: PgBouncer) -> None:
    def restart() -> None:
        pooler.stop(signal.SIGINT)
        pooler.start()

    go_through(scene, pooler, 3, restart)
    scene.check("raised")


@pytest.mark.fault("PgBouncer is paused for 1 s (PAUSE, RESUME)")
def test_a_pooler_that_is_paused(scene: Scene, pooler: PgBouncer) -> None:
    def pause() -> None:
        pooler.order("PAUSE")
        time.sleep(1)  # the length of the fault
        pooler.order("RESUME")

    go_through(scene, pooler, 3, pause)
    scene.check()


@pytest.mark.fault("the sessions behind PgBouncer are terminated (pg_terminate_backend)")
def test_sessions_that_end_behind_a_pooler(scene: Scene, pooler: PgBouncer) -> None:
    go_through(scene, pooler, 5, scene.terminate)
    scene.check("raised")


@pytest.mark.fault("PgBouncer has 3 sessions for 2 workers with 2 processes each")
def test_a_pool_that_is_smaller_than_what_workers_want(scene: Scene) -> None:
    with PgBouncer(scene.dsn, pool_size=3) as pooler:
        for _ in range(2):
            scene.start(dsn=pooler.dsn, processes=2)
        with scene.load(rate=8):
            for _ in range(3):
                scene.wait_for_ends(20)
                scene.tried(scene.probe(), within=BACK)
        scene.check()
        scene.close()


@pytest.mark.fault("behind PgBouncer, a whole worker is killed (SIGKILL for each of its processes)")
def test_a_worker_that_is_killed_behind_a_pooler(scene: Scene, pooler: PgBouncer) -> None:
    with scene.load(pooler.dsn, rate=4, long=1.0):
        for worker in [scene.start(dsn=pooler.dsn) for _ in range(3)][:2]:
            wait_until(lambda: scene.in_hand(*worker.children().values()), 30, "work for it")  # noqa: B023
            children = [*worker.children().values()]
            killed_at = time.monotonic()
            scene.kill(worker)
            held = scene.in_hand(*children)
            # no session of its own tells of its end: the lease does, and then a round of upkeep
            scene.tried(scene.again(held, killed_at), within=LEASE + 2 * LOOK)
    scene.check("raised", "crashed", "interrupted")


@pytest.mark.fault("the server is killed and started again behind PgBouncer")
def test_a_server_that_is_killed_behind_a_pooler(own_server: EmbeddedServer, own_scene: Scene) -> None:
    with PgBouncer(own_scene.dsn) as pooler:

        def kill() -> None:
            own_server.kill()
            own_server.start()

        go_through(own_scene, pooler, 3, kill)
        own_scene.check("raised", "refused")
        own_scene.close()
