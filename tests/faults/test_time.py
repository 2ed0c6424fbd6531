"""Clocks that are wrong, and schedules of which several releases of the code say several things."""

from __future__ import annotations

import itertools
import time
from datetime import datetime, timedelta

import pytest

from tests.faults import tasks
from tests.faults.releases import COUNT
from tests.faults.scene import Scene
from tests.support.faketime import LIBRARY, MISSING, clock_off_by
from tests.worker.harness import Worker

LEADER = 5 * 0.15


@pytest.mark.skipif(LIBRARY is None, reason=MISSING)
@pytest.mark.fault("the clocks of two workers are an hour behind, and ten minutes ahead")
def test_the_databases_clock_alone_decides(scene: Scene) -> None:
    offsets = (-3600, 600)
    workers = [scene.start("-c", "4", wait=False, environment=clock_off_by(offset)) for offset in offsets]
    started = [worker.wait_until_started().events("worker.started")[0]["timestamp"] for worker in workers]
    behind, ahead = (datetime.fromisoformat(timestamp) for timestamp in started)
    assert abs((ahead - behind).total_seconds() - 4200) < 60, "the clocks are right: this test shows nothing"
    scene.beat()
    with scene.load(rate=8):
        for _ in range(4):
            scene.wait_for_ends(10)
            delayed = scene.enqueue(tasks.plain.using(delay="1s", expires="1m"))
            enqueued_at = time.monotonic()
            later = scene.enqueue(tasks.enqueues_later)  # by the clock of whoever runs it
            (told,) = scene.history.wait_for("enqueued", later)
            scene.record.acknowledged[told.said["n"]] = (told.said["id"],)
            for job, since in ((delayed, enqueued_at), (told.said["id"], told.at)):
                (start,) = scene.history.wait_for("start", job)
                assert start.at - since > 0.9, "it did not wait"
                scene.tried(max(0.0, start.at - since - 1), within=LEADER)
    dues = scene.end_of_beats()
    assert {later - sooner for sooner, later in itertools.pairwise(dues)} == {timedelta(seconds=1)}
    for worker in workers:
        assert worker.events("jobs.rescued") + worker.events("worker.declared_dead") == []
    scene.check()


@pytest.mark.fault(
    "eight workers with eight versions of a schedule start at once, and three of them again and again"
)
def test_each_due_time_makes_one_job_whichever_release_said_it(scene: Scene) -> None:
    apps = [f"tests.faults.releases:release_{number}" for number in range(1, COUNT + 1)]
    workers = [start_release(scene, app) for app in apps]
    for worker in workers:
        worker.wait_for("schedules.brought", timeout=60)
        scene.tried(None)
    for app, worker in zip(apps[:3], workers[:3], strict=True):
        worker.stop()
        assert worker.wait(30) == 0
        scene.workers.remove(worker)
        workers.append(start_release(scene, app))
        workers[-1].wait_for("schedules.brought", timeout=60)
        scene.tried(None)
    assert sum(len(worker.events("schedule.changed")) for worker in workers) >= 3, "they all said the same"
    scene.wait_for_ends(3)
    dues = scene.end_of_beats()
    gaps = {(later - sooner).total_seconds() for sooner, later in itertools.pairwise(dues)}
    assert gaps <= {1.0, 2.0, 3.0}, "a due time is missing, or there is one that no release has said"
    scene.check()


def start_release(scene: Scene, app: str) -> Worker:
    """Starts a worker of a release, which brings its version of the schedule."""
    return scene.start("-c", "4", "-q", "beat", wait=False, app=app, log_level="debug")
