"""The server itself: restarted, killed, away, full, or not letting the workers in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue.embedded import EmbeddedServer
from tests.faults.scene import Scene
from tests.support import wait_until
from tests.support.proxy import CAN_FALL_SILENT, Proxy

LONG_HELD = """
    select id from pgqueue.running_jobs
     where task like 'pays%' and claimed_at < clock_timestamp() - interval '2 seconds'"""
BACK = 2.0
"""Seconds after which work goes on when the server is back: workers try again at least every second."""


def go_through(scene: Scene, times: int, fault: Callable[[], object]) -> None:
    """Injects a fault that is over when `fault` returns, again and again under load."""
    worker = scene.start(processes=2)
    with scene.load(rate=8):
        for _ in range(times):
            scene.wait_for_busy(count=1)
            fault()
            scene.tried(scene.probe(), within=BACK)
            scene.wait_for_ends(10)
    assert worker.events("worker.child_died") == []


@pytest.mark.fault("the server is restarted, fast")
def test_a_fast_restart(own_server: EmbeddedServer, own_scene: Scene) -> None:
    go_through(own_scene, 3, lambda: own_server.restart("fast"))
    own_scene.check("raised", "refused")


@pytest.mark.fault("the server is restarted, immediate: it recovers from its log")
def test_an_immediate_restart(own_server: EmbeddedServer, own_scene: Scene) -> None:
    go_through(own_scene, 3, lambda: own_server.restart("immediate"))
    own_scene.check("raised", "refused")


@pytest.mark.fault("the server is killed (SIGKILL), and started again")
def test_a_killed_server(own_server: EmbeddedServer, own_scene: Scene) -> None:
    def kill() -> None:
        own_server.kill()
        own_server.start()

    go_through(own_scene, 3, kill)
    own_scene.check("raised", "refused")


@pytest.mark.fault("the server is away for 6 s, two leases")
def test_a_server_that_is_away(own_server: EmbeddedServer, own_scene: Scene) -> None:
    def away() -> None:
        own_server.stop()
        time.sleep(6)  # the length of the fault
        own_server.start()

    go_through(own_scene, 2, away)
    own_scene.check("raised", "refused")


@pytest.mark.fault("the server turns read-only for 2 s: an error 25006 for whoever has not said otherwise")
def test_a_read_only_server(own_scene: Scene) -> None:
    scene = own_scene
    scene.start(wake="poll")  # as behind a pooler: what its sessions may do is the server's to say
    setting = "default_transaction_read_only"

    def turn(value: str) -> None:
        scene.ask(f"alter system set {setting} = {value}")
        scene.ask("select pg_reload_conf()")
        wait_until(lambda: scene.ask(f"show {setting}") == [(value,)], message="the setting to be in force")

    with scene.load(rate=8):
        for _ in range(3):
            scene.wait_for_ends(10)
            repeated = scene.record.repeated
            turn("on")
            time.sleep(2)  # the length of the fault
            turn("off")
            assert scene.record.repeated > repeated, "nobody was refused: this test shows too little"
            scene.tried(scene.probe(), within=BACK)
    scene.check("raised")


@pytest.mark.skipif(not CAN_FALL_SILENT, reason="needs Linux's socket filters")
@pytest.mark.fault(
    "a transaction's connection becomes half-open just before its commit: its locks are left behind"
)
def test_the_locks_of_a_transaction_that_is_cut_off(own_server: EmbeddedServer, own_scene: Scene) -> None:
    scene = own_scene
    name = str(conninfo_to_dict(scene.dsn)["dbname"])
    over_tcp = make_conninfo(own_server.tcp_url, dbname=name)
    with Proxy(over_tcp) as proxy:
        scene.start(dsn=proxy.dsn)
        with scene.load(rate=3):
            for _ in range(2):
                scene.wait_for_ends(5)
                proxy.swallow(b"COMMIT")
                assert proxy.swallowed.wait(30)
                since = time.monotonic()
                jobs = wait_until(lambda: scene.ask(LONG_HELD), message="the job of that transaction")
                scene.tried(scene.again([id for (id,) in jobs], since), within=20)
        scene.check("raised", "crashed", "interrupted")
        scene.close()


# That live on, and refuse ---------------------------------------------------------------------------------


@pytest.fixture
def role(scene: Scene) -> Iterator[str]:
    """The DSN of a role that workers alone use, and that its owner may treat badly."""
    name = f"faulty_{os.getpid()}"
    drop = f"drop owned by {name}; drop role {name}"
    scene.ask(f"create role {name} login password 'only here'")
    try:
        scene.ask(f"grant pgqueue_producer, pgqueue_worker to {name}")
        scene.ask(f"grant all on all tables in schema public to {name}")
        yield make_conninfo(scene.dsn, user=name, password="only here")
    finally:
        scene.close()
        scene.ask(drop)


def forbid(scene: Scene, role: str, seconds: float, take: str, give: str) -> None:
    """Takes something from a role, ends its sessions, and gives it back after a while; `{}` is the role."""
    name = conninfo_to_dict(role)["user"]
    scene.ask(take.format(name))
    scene.terminate()
    time.sleep(seconds)  # the length of the fault
    scene.ask(give.format(name))


@pytest.mark.fault("no connection slots are left for 1 s")
def test_no_connection_slots(scene: Scene, role: str) -> None:
    scene.start(dsn=role)
    with scene.load(rate=8):
        for _ in range(3):
            scene.wait_for_ends(10)
            take, give = (f"alter role {{}} connection limit {limit}" for limit in (0, -1))
            forbid(scene, role, 1.0, take, give)
            scene.tried(scene.probe(), within=BACK)
    scene.check("raised")


@pytest.mark.fault("the workers' role may not log in for 1 s")
def test_a_role_that_may_not_log_in(scene: Scene, role: str) -> None:
    scene.start(dsn=role)
    with scene.load(rate=8):
        for _ in range(3):
            scene.wait_for_ends(10)
            forbid(scene, role, 1.0, "alter role {} nologin", "alter role {} login")
            scene.tried(scene.probe(), within=BACK)
    scene.check("raised")


@pytest.mark.fault("the right to call the functions is withdrawn for 1 s")
def test_rights_that_are_withdrawn(scene: Scene, role: str) -> None:
    scene.start(dsn=role)
    with scene.load(rate=8):
        for _ in range(3):
            scene.wait_for_ends(10)
            forbid(scene, role, 1.0, "revoke pgqueue_worker from {}", "grant pgqueue_worker to {}")
            scene.tried(scene.probe(), within=BACK)
    scene.check("raised")


@pytest.mark.fault("the role's settings turn on it: isolation, and time-outs of 50 ms")
def test_settings_of_a_role(scene: Scene, role: str) -> None:
    hostile = {
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "on",
        "statement_timeout": "50ms",
        "lock_timeout": "50ms",
        "idle_session_timeout": "50ms",
    }
    name = conninfo_to_dict(role)["user"]
    scene.start(dsn=role)
    with scene.load(rate=6):
        for setting, value in hostile.items():
            if setting == "default_transaction_read_only":
                continue  # the application's own transactions are refused with it, as they should be
            scene.ask(f"alter role {name} set {setting} = '{value}'")
            scene.terminate()
            scene.tried(scene.probe(), within=BACK)
            scene.wait_for_ends(10)
    scene.check("raised")


@pytest.mark.fault("the disk is full for 1 s: an error 53100 where claims, endings or retries write")
def test_a_full_disk(scene: Scene) -> None:
    scene.start()
    with scene.load(rate=8):
        for table in ("running_jobs", "finished_jobs", "job_failures", "scheduled_jobs"):
            scene.wait_for_ends(10)
            with scene.full_disk(table):
                time.sleep(1)  # the length of the fault
            scene.tried(scene.probe(), within=BACK)
    scene.check("raised")
