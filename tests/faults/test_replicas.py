"""Replicas: a standby that is promoted under load, with and without lost commits."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.forgotten import forget, probe
from tests.faults.scene import Scene
from tests.support.standby import MISSING, Standby

needs_standby = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture
def pair() -> Iterator[Standby]:
    """A primary and its streaming standby, for one failover."""
    with Standby(durable=True) as pair:
        yield pair


@pytest.fixture
def database(pair: Standby) -> str:
    """Where a scene plays: on whichever of the two can be written to."""
    return pair.dsn


def fail_over(scene: Scene, pair: Standby, pause: float = 0) -> float:
    """Kills the primary and promotes the standby; returns when it was killed, and notes how long after the promotion work went on."""
    killed_at = time.monotonic()
    pair.fail_over(pause)
    probe(scene)
    return killed_at


@needs_standby
@pytest.mark.sample
@pytest.mark.fault(
    "a standby is promoted, after 1.1 s, with synchronous replication; the first primary comes back as its standby"
)
def test_with_synchronous_replication_a_failover_loses_nothing(scene: Scene, pair: Standby) -> None:
    pair.wait_for_the_standby("on")
    workers = [scene.start(processes=2), scene.start()]
    with scene.load(rate=8):
        scene.wait_for_ends(40)
        # For so long nobody can beat; whoever is back first finds that of the others neither a beat nor a lock is there.
        fail_over(scene, pair, pause=1.1)
        scene.wait_for_ends(40)
        # The first host of the DSN is back, and is no primary any more.
        pair.bring_the_first_back()
        assert scene.terminate() > 0
        probe(scene)
        scene.wait_for_ends(20)
    assert [worker.events("worker.child_died") for worker in workers] == [[], []]
    assert [worker.events("endings.forgotten") for worker in workers] == [[], []]
    scene.check("raised", "refused")


@needs_standby
@pytest.mark.fault(
    "a standby is promoted, with synchronous replication that waits until it has applied (remote_apply)"
)
def test_with_remote_apply_a_failover_loses_nothing(scene: Scene, pair: Standby) -> None:
    pair.wait_for_the_standby("remote_apply")
    worker = scene.start(processes=2)
    with scene.load(rate=8):
        scene.wait_for_ends(40)
        fail_over(scene, pair)
        scene.wait_for_ends(40)
    assert worker.events("worker.child_died") == []
    scene.check("raised", "refused")


@needs_standby
@pytest.mark.fault(
    "a standby is promoted that was 1 s behind (asynchronous): what it had not heard of is forgotten, and nothing else"
)
def test_what_asynchronous_replication_loses_is_forgotten_whole(scene: Scene, pair: Standby) -> None:
    workers = [scene.start(processes=2), scene.start()]
    with scene.load(rate=8):
        scene.wait_for_ends(60)
        pair.cut()
        time.sleep(1)  # the length of the fault: what is acknowledged now is lost
        killed_at = fail_over(scene, pair)
        scene.wait_for_ends(60)
    scene.settle()
    lost, again = forget(scene, killed_at)
    assert lost, "nothing was lost: this test shows nothing"
    assert again, "no ending was forgotten: this test shows too little"
    assert any(worker.events("endings.forgotten") for worker in workers), (
        "nor one of a job in a worker's hands"
    )
    assert [worker.events("worker.child_died") for worker in workers] == [[], []]
    report = scene.check("raised", "refused")
    report.again = again
    print(f"{lost} jobs were forgotten")
