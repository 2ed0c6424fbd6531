"""The way to the database: connections that are terminated, cut, half-open or slow, and answers that are lost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.faults import tasks
from tests.faults.scene import Scene
from tests.support import wait_until
from tests.support.proxy import CAN_FALL_SILENT, Proxy
from tests.worker.harness import frozen

HALF_OPEN = 20.0
"""Seconds within which a half-open connection is noticed."""
IDS_FROM = 0x0123456789AB0000
IDS_BEGIN = IDS_FROM.to_bytes(8)[:6]
"""How every id of a job begins, and nothing else that the server says."""
OF_CLAIMS = b'{"n": '
"""In the args of each job that a claim returns, and in no other answer."""


@pytest.fixture
def proxy(scene: Scene) -> Iterator[Proxy]:
    """The way of the workers under test, which they have for themselves."""
    scene.ask("select setval('pgqueue.job_ids', %s)", IDS_FROM)
    with Proxy(scene.dsn) as proxy:
        yield proxy
        scene.close()  # while there is a way still


@pytest.mark.sample
@pytest.mark.fault("every connection of the workers is terminated (pg_terminate_backend)")
def test_terminated_connections_cost_no_attempt_but_a_transactions_own(scene: Scene) -> None:
    scene.start(processes=2)
    with scene.load(rate=10):
        for _ in range(8):
            scene.wait_for_ends(8)
            assert scene.terminate() > 0, "there was nothing to cut"
            scene.tried(scene.probe(), within=2)
    scene.check("raised")


@pytest.mark.sample
@pytest.mark.fault("the network is cut for a second: connections break, and none can be made")
def test_work_goes_on_when_the_network_is_back(scene: Scene, proxy: Proxy) -> None:
    scene.start(dsn=proxy.dsn)
    with scene.load(rate=8):
        for _ in range(3):
            scene.wait_for_busy()
            proxy.shut()
            time.sleep(1)  # the length of the fault
            proxy.open()
            scene.tried(scene.probe(), within=2)
    scene.check("raised")


@pytest.mark.fault("the network is cut for 6 s, two leases, for all workers")
def test_leases_count_from_the_end_of_an_outage(scene: Scene, proxy: Proxy) -> None:
    workers = [scene.start(dsn=proxy.dsn, wait=False) for _ in range(2)]
    for worker in workers:
        worker.wait_until_started()
    with scene.load(rate=5):
        for _ in range(2):
            scene.wait_for_busy()
            proxy.shut()
            time.sleep(6)  # the length of the fault
            proxy.open()
            scene.tried(scene.probe(), within=2)
    assert [worker.events("worker.declared_dead") for worker in workers] == [[], []]
    scene.check("raised")


@pytest.mark.fault("one of two workers is cut off for 6 s, two leases")
def test_the_jobs_of_a_worker_that_is_cut_off_run_elsewhere(scene: Scene, proxy: Proxy) -> None:
    scene.start()
    apart = scene.start(dsn=proxy.dsn)
    with scene.load(rate=8, long=1.0):
        for _ in range(2):
            wait_until(lambda: len(apart.children()) == 1, 30, "a child")
            _, child = scene.wait_for_busy(apart)
            proxy.shut()
            cut_at = time.monotonic()
            # its handlers go on; what they have to say comes too late
            held = scene.in_hand(child)
            scene.tried(scene.again(held, cut_at), within=35 * 0.15)
            time.sleep(max(0, cut_at + 6 - time.monotonic()))  # the length of the fault
            proxy.open()
            wait_until(
                lambda: scene.in_hand(*apart.children().values()),
                30,
                "work for the worker that was cut off",
            )
    scene.check("raised", "crashed", "interrupted")


@pytest.mark.skipif(not CAN_FALL_SILENT, reason="needs Linux's socket filters")
@pytest.mark.fault("every connection becomes half-open: packets vanish, new connections work")
def test_half_open_connections_are_noticed(scene: Scene, proxy: Proxy) -> None:
    scene.start(dsn=proxy.dsn)
    with scene.load(rate=3):
        scene.wait_for_busy()
        proxy.fall_silent()
        scene.tried(scene.probe(), within=HALF_OPEN)
    scene.check("raised")


@pytest.mark.fault("a child is stopped (SIGSTOP) between a transaction's last statement and its commit")
def test_a_lock_that_a_frozen_process_holds_stops_nobody_else(scene: Scene, proxy: Proxy) -> None:
    worker = scene.start(dsn=proxy.dsn)
    (child,) = worker.children().values()
    with scene.load(rate=4):
        proxy.swallow(b"COMMIT")
        assert proxy.swallowed.wait(30)
        with frozen(child):
            held = scene.in_hand(child)
            scene.start()
            # whoever leads comes to rescue, and cannot
            wait_until(
                lambda: any(one.events("upkeep.problem") for one in scene.workers), 20, "a vain rescue"
            )
            for _ in range(5):
                due = scene.enqueue(tasks.plain.using(delay="0.3s"))
                enqueued_at = time.monotonic()
                (start,) = scene.history.wait_for("start", due, timeout=60)
                scene.tried(max(0, start.at - enqueued_at - 0.3), within=5 * 0.15)
            over_at = time.monotonic()
            proxy.shut()  # the server hears of the end of that transaction
            proxy.open()
            scene.tried(scene.again(held, over_at), within=8 * 0.15)
    scene.check("raised", "crashed", "interrupted")


@pytest.mark.fault("every answer takes 200 ms, and now and then a second")
def test_a_slow_network_costs_nothing_but_time(scene: Scene, proxy: Proxy) -> None:
    scene.start(dsn=proxy.dsn)
    with scene.load(rate=5):
        for _ in range(2):
            proxy.delay = 0.1
            scene.wait_for_ends(20)
            proxy.delay = 0.5
            scene.wait_for_ends(5)
            proxy.delay = 0
            scene.tried(scene.probe(), within=2)
    scene.check()


# Answers that are lost: what was asked for was carried out, and nobody hears of it ---------------------


def lose_again_and_again(
    proxy: Proxy, times: int, marker: bytes, unless: bytes | None = None
) -> Iterator[None]:
    """Loses so many answers, one after the other."""
    for _ in range(times):
        proxy.lose(marker, unless=unless)
        assert proxy.lost.wait(30), f"there was no answer to lose with {marker!r}"
        yield


@pytest.mark.sample
@pytest.mark.fault("the answer to a claim is lost")
def test_a_claim_that_nobody_heard_of_strands_no_job(scene: Scene, proxy: Proxy) -> None:
    scene.start(dsn=proxy.dsn)
    with scene.load(rate=8):
        for _ in lose_again_and_again(proxy, 10, OF_CLAIMS):
            scene.tried(scene.probe(), within=2)
            scene.wait_for_ends(5)
    scene.check()


@pytest.mark.sample
@pytest.mark.fault("the answer to an ending is lost: completions and failures")
def test_an_ending_that_nobody_heard_of_is_not_made_twice(scene: Scene, proxy: Proxy) -> None:
    worker = scene.start(dsn=proxy.dsn)
    with scene.load(rate=8):
        for _ in lose_again_and_again(proxy, 10, IDS_BEGIN, unless=OF_CLAIMS):
            scene.tried(scene.probe(), within=2)
            scene.wait_for_ends(5)
    scene.check("raised")
    assert worker.events("settle.unconfirmed"), "no ending was in doubt: this test shows too little"


@pytest.mark.sample
@pytest.mark.fault("the answer to the commit of an enqueue is lost")
def test_an_enqueue_that_is_repeated_makes_one_job(scene: Scene) -> None:
    scene.start()
    with Proxy(scene.dsn) as way, scene.load(way.dsn, rate=10):
        for _ in lose_again_and_again(way, 10, b"COMMIT\0"):
            scene.tried(None)
            scene.wait_for_ends(10)
    assert scene.record.repeated >= 10
    scene.check()


@pytest.mark.fault("the answer to the commit of a transactional job is lost")
def test_a_transaction_that_nobody_heard_of_is_not_repeated(scene: Scene, proxy: Proxy) -> None:
    scene.start(dsn=proxy.dsn)
    with scene.load(rate=8):
        for _ in lose_again_and_again(proxy, 10, b"COMMIT\0"):
            scene.tried(scene.probe(), within=2)
            scene.wait_for_ends(5)
    scene.check()


@pytest.mark.fault("the answer to a schedule's tick is lost")
def test_a_due_time_that_nobody_heard_of_makes_no_second_job(scene: Scene, proxy: Proxy) -> None:
    scene.start(dsn=proxy.dsn)
    scene.beat()
    with scene.load(rate=6):
        for _ in range(10):
            point = proxy.stop_at("tick", "after")
            assert point.reached.wait(30), "there was no tick"
            point.cut()
            scene.tried(scene.probe(), within=2)
    dues = scene.end_of_beats()
    assert {later - sooner for sooner, later in itertools.pairwise(dues)} == {timedelta(seconds=1)}
    scene.check()


@pytest.mark.fault("any answer at all is lost, of either side")
def test_whatever_answer_is_lost_the_promises_hold(scene: Scene, proxy: Proxy) -> None:
    scene.start(dsn=proxy.dsn)
    with Proxy(scene.dsn) as way, scene.load(way.dsn, rate=8):
        for _ in range(10):
            for lossy in (proxy, way):
                for _ in lose_again_and_again(lossy, 1, b""):
                    scene.tried(None)
            scene.wait_for_ends(5)
    scene.check("raised")
