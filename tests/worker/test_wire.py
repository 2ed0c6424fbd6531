"""A worker's own way to the server: large statements, lost sessions, other encodings."""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgqueue import calls
from pgqueue.errors import DatabaseUnavailable
from pgqueue.worker import link as worker_link
from pgqueue.worker.link import OUTAGES, Link, connect
from pgqueue.worker.listener import Listener
from pgqueue.worker.wire import Wire
from tests.support import Databases
from tests.support.databases import install
from tests.worker.harness import until


@pytest.mark.parametrize("pooled", [False, True])
def test_a_statement_larger_than_the_socket_takes_is_carried_out(database: str, pooled: bool) -> None:
    async def enqueue() -> int:
        link = Link(database, name="test", pooled=pooled)
        try:
            item = {"task": "t", "args": {"text": "x" * 900_000}}
            jobs = await link.run(calls.enqueue_many(json.dumps([item] * 20)))
            return len(jobs)
        finally:
            await link.close()

    assert asyncio.run(enqueue()) == 20
    with psycopg.connect(database) as connection:
        assert connection.execute(
            "select count(*), min(length(args->>'text')) from pgqueue.ready_jobs"
        ).fetchone() == (20, 900_000)


def test_a_session_that_has_lost_its_prepared_statements_is_replaced(
    database: str, connection: psycopg.Connection
) -> None:
    # A changed result type is what a migration under a running worker may bring: the plan cannot be used again.
    async def twice() -> list[int]:
        link = Link(database, name="test")
        try:
            before = await link.run(calls.writers("ready_jobs"))
            connection.execute("alter function pgqueue.writers(text, text[]) rename to writers_before")
            connection.execute(
                "create function pgqueue.writers(relation text, among text[]) returns integer[] return '{7,8}'::integer[]"
            )
            with pytest.raises(psycopg.Error):
                await link.run(calls.writers("ready_jobs"))
            after = await link.run(calls.writers("ready_jobs"))
            return [len(before), len(after)]
        finally:
            await link.close()

    assert asyncio.run(twice()) == [0, 2]


def test_whoever_is_cancelled_in_the_moment_of_the_answer_leaves_no_complaint_behind(database: str) -> None:
    async def complaints() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: found.append(context))
        link = Link(database, name="test")
        try:
            await link.run(calls.writers("ready_jobs"))
            waiting = asyncio.create_task(link.run(calls.writers("ready_jobs")))
            await asyncio.sleep(0)  # the statement is sent, and its answer is watched for
            assert link._wire is not None
            select.select(
                [link._wire._pgconn.socket], [], [], 10
            )  # the answer is there; the loop has not seen it
            loop.call_soon(waiting.cancel)  # which runs in the same round as the reader, and before it
            with pytest.raises(asyncio.CancelledError):
                await waiting
        finally:
            await link.close()
        return found

    assert asyncio.run(complaints()) == []


def test_a_terminated_session_is_an_outage_and_the_next_call_has_a_new_one(
    database: str, connection: psycopg.Connection
) -> None:
    async def generations() -> list[int]:
        link = Link(database, name="to be terminated")
        try:
            await link.run(calls.writers("ready_jobs"))
            connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'to be terminated'"
            )
            with pytest.raises(DatabaseUnavailable, match="terminat"):
                await link.run(calls.writers("ready_jobs"))
            await link.run(calls.writers("ready_jobs"))
            return [link.generation]
        finally:
            await link.close()

    assert asyncio.run(generations()) == [2]


class Lost:
    """A libpq connection that says when it is lost: its socket is closed then, and the number free for others."""

    def __init__(self, pgconn: Any, on_loss: Callable[[int], object]):
        self._pgconn = pgconn
        self._on_loss = on_loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pgconn, name)

    def consume_input(self) -> None:
        number = self._pgconn.socket
        try:
            self._pgconn.consume_input()
        except psycopg.Error:
            self._on_loss(number)
            raise


@pytest.mark.parametrize("reader", ["wire", "listener"])
def test_a_lost_connection_leaves_alone_whoever_gets_its_sockets_number(
    database: str, connection: psycopg.Connection, reader: str
) -> None:
    async def lose() -> None:
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        ours, theirs = socket.socketpair()

        def take(number: int) -> None:
            os.dup2(ours.fileno(), number)
            loop.add_reader(number, heard.set)

        dying = await connect(database, name="to be lost", pooled=False)
        # before whoever waits for the answer is woken up
        lost: Any = Lost(dying.pgconn, lambda number: loop.call_soon(take, number))
        terminate = (
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'to be lost'"
        )
        with connection.transaction():
            connection.execute("lock table pgqueue.ready_jobs")
            if reader == "wire":
                wire = Wire(dying, prepares=True)
                wire._pgconn = lost
                waiting: asyncio.Task[Any] = asyncio.create_task(wire.run(calls.enqueue(task="t")))
            else:
                listener = Listener(database, ("pgqueue",), heard=noop, begun=noop)
                holder: Any = SimpleNamespace(pgconn=lost)
                waiting = asyncio.create_task(listener._hear(holder))
            await asyncio.sleep(0)
            connection.execute(terminate)
            with pytest.raises((psycopg.Error, DatabaseUnavailable)):
                await waiting
        theirs.send(b"x")
        async with asyncio.timeout(5):
            await heard.wait()
        loop.remove_reader(ours)
        ours.close()
        theirs.close()

    asyncio.run(lose())


def test_under_a_storm_of_lost_connections_every_call_comes_to_an_end(database: str) -> None:
    """On the loop that workers run on, which forgets a reader after an error on its socket."""
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not for this platform")

    async def run(number: int, losses: list[int]) -> None:
        link = Link(database, name=f"storm {number}")
        while len(losses) < 300:
            try:
                async with asyncio.timeout(10):
                    await link.run(calls.writers("ready_jobs"))
            except OUTAGES:
                losses.append(number)
                await asyncio.sleep(random.uniform(0, 0.02))
            if random.random() < 0.3:
                await asyncio.sleep(random.uniform(0, 0.02))
        await link.close()

    async def storm() -> None:
        losses: list[int] = []
        async with asyncio.TaskGroup() as links:
            for number in range(6):
                links.create_task(run(number, losses))
            async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
                while len(losses) < 300:
                    await connection.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'storm %'"
                    )
                    await asyncio.sleep(random.uniform(0.005, 0.08))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(storm())


def noop(**_: Any) -> None:
    """Hears nothing."""


def test_text_arrives_unchanged_from_a_database_of_another_encoding(databases: Databases) -> None:
    dsn = databases.create_empty(encoding="LATIN1")
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            install(connection)

        async def claim() -> str:
            link = Link(dsn, name="test")
            try:
                registration = calls.register(
                    supervisor_id=1,
                    host="h",
                    pid=1,
                    version="v",
                    queues=["default"],
                    concurrency=1,
                    lease=30,
                    session_lock=False,
                )
                worker_id = await link.run(registration)
                await link.run(calls.enqueue(task="crème", args='{"text": "brûlée"}'))
                jobs = await link.run(
                    calls.claim(
                        worker_id=worker_id,
                        queues=["default"],
                        limits=[1],
                        max_jobs=1,
                        cursors=[0] * 20,
                        fence=1,
                    )
                )
                return f"{jobs[0].task} {json.loads(jobs[0].args)['text']}"
            finally:
                await link.close()

        assert asyncio.run(claim()) == "crème brûlée"
    finally:
        databases.drop(dsn)


def test_whoever_is_cancelled_while_he_connects_leaves_no_session_behind(
    database: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_link, "_SESSION", "select pg_sleep(60)")
    sessions = "select count(*) from pg_stat_activity where application_name = 'cancelled' and query like %s"

    async def connecting() -> None:
        task = asyncio.create_task(connect(database, name="cancelled", pooled=False))
        await until(lambda: connection.execute(sessions, ["%pg_sleep%"]).fetchone() == (1,))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: connection.execute(sessions, ["%"]).fetchone() == (0,))

    asyncio.run(connecting())
