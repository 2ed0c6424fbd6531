"""Processes that are killed or frozen while they work."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack

import pytest

from tests.faults import tasks
from tests.faults.scene import Scene, slack, wait_for_children
from tests.support import wait_until
from tests.worker.harness import frozen, is_alive

# At 0.15 of the default times: a child that died is noticed at once, a whole worker by its session lock in the next round,
# what is frozen when its lease has run out.
CHILD, WORKER, LEASE = 2.0, 8 * 0.15, 35 * 0.15


@pytest.mark.sample
@pytest.mark.fault("a child of a worker is killed (SIGKILL)")
def test_a_childs_jobs_run_again_elsewhere(scene: Scene) -> None:
    worker = scene.start(processes=2)
    with scene.load(rate=10):
        for _ in range(4):
            wait_for_children(worker, 2)
            _, victim = scene.wait_for_busy()
            pids = scene.family(victim)
            killed_at = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: not any(map(is_alive, pids)), message=f"the end of {pids}")  # noqa: B023
            scene.tried(scene.again(scene.in_hand(*pids), killed_at), within=CHILD)
    scene.check("crashed")


@pytest.mark.fault("a supervisor is killed (SIGKILL)")
def test_the_children_of_a_killed_supervisor_go_with_it(scene: Scene) -> None:
    scene.start(processes=2)
    with scene.load(rate=8):
        for _ in range(3):
            scene.start(processes=2)
            victim, _ = scene.wait_for_busy()
            pids = scene.family(*victim.children().values())
            killed_at = time.monotonic()
            victim.send(signal.SIGKILL)
            wait_until(lambda: not any(map(is_alive, pids)), message=f"the end of {pids}")  # noqa: B023
            assert time.monotonic() - killed_at < 2 + slack() / 3
            scene.kill(victim)
            scene.tried(scene.again(scene.in_hand(*pids), killed_at), within=WORKER)
    scene.check("crashed")


@pytest.mark.fault("a whole worker is killed (SIGKILL for each of its processes)")
def test_the_jobs_of_a_killed_worker_run_again_elsewhere(scene: Scene) -> None:
    scene.start()
    with scene.load(rate=8):
        for _ in range(3):
            scene.start()
            victim, child = scene.wait_for_busy()
            pids = scene.family(child)
            killed_at = time.monotonic()
            scene.kill(victim)
            scene.tried(scene.again(scene.in_hand(*pids), killed_at), within=WORKER)
    scene.check("crashed")


@pytest.mark.fault("the only worker is killed, and another one started")
def test_the_jobs_of_the_only_worker_wait_for_another(scene: Scene) -> None:
    scene.start()
    with scene.load(rate=8):
        for _ in range(2):
            victim, child = scene.wait_for_busy()
            pids = scene.family(child)
            scene.kill(victim)
            killed_at = time.monotonic()
            lost = scene.in_hand(*pids)
            scene.start()
            started_at = time.monotonic()
            again = scene.again(lost, killed_at)
            scene.tried(again and max(0.0, killed_at + again - started_at), within=WORKER)
    scene.check("crashed")


@pytest.mark.fault("a child is stopped (SIGSTOP) beyond its lease, and goes on")
def test_a_frozen_childs_jobs_run_elsewhere_and_what_it_says_later_changes_nothing(scene: Scene) -> None:
    worker = scene.start(processes=2)
    with scene.load(rate=8):
        for _ in range(3):
            wait_for_children(worker, 2)
            _, victim = scene.wait_for_busy()
            with frozen(victim) as frozen_at:
                scene.tried(scene.again(scene.in_hand(victim), frozen_at), within=LEASE)
            wait_until(lambda: not is_alive(victim), 30, "the end of what was declared dead")  # noqa: B023
    scene.check("crashed")


@pytest.mark.fault("the worker that leads is stopped (SIGSTOP), whole, beyond its lease, and goes on")
def test_others_rescue_and_promote_while_the_leader_is_frozen(scene: Scene) -> None:
    leader_of = "select w.pid from pgqueue.workers w join pgqueue.leadership using (supervisor_id)"
    workers = [scene.start("-c", "3", wait=False) for _ in range(2)]  # so few slots that both are busy
    for worker in workers:
        worker.wait_until_started()
    with scene.load(rate=8):
        for _ in range(2):
            for worker in workers:
                wait_for_children(worker, 1)
            ((pid,), *_) = wait_until(lambda: scene.ask(leader_of), 30, "a leader")
            (leader,) = [worker for worker in workers if pid in worker.children().values()]
            scene.wait_for_busy(leader)
            with ExitStack() as stack:
                stack.enter_context(frozen(leader.pid))
                frozen_at = stack.enter_context(frozen(pid))
                due = scene.enqueue(tasks.plain.using(delay="0.1s"))
                (start,) = scene.history.wait_for("start", due)
                assert start.at - frozen_at < 5 * 0.15 + 0.1 + slack(), (
                    "promotion waits for the frozen leader"
                )
                scene.tried(scene.again(scene.in_hand(pid), frozen_at), within=LEASE)
            wait_until(lambda: not is_alive(pid), 30, "the end of what was declared dead")  # noqa: B023
    scene.check("crashed")
