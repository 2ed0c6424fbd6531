"""A worker's own way to the server: large statements, lost sessions, other encodings."""

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest

from pgqueue import calls
from pgqueue.errors import DatabaseUnavailable
from pgqueue.worker.link import Link
from tests.support import Databases
from tests.support.databases import install


@pytest.mark.parametrize("pooled", [False, True])
def test_a_statement_larger_than_the_socket_takes_is_carried_out(database: str, pooled: bool) -> None:
    async def enqueue() -> int:
        link = Link(database, name="test", pooled=pooled)
        try:
            item = {"task": "t", "args": {"text": "x" * 900_000}}
            return len(await link.run(calls.enqueue_many(json.dumps([item] * 20))))
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
            found = [len(await link.run(calls.writers("ready_jobs")))]
            connection.execute("alter function pgqueue.writers(text, text[]) rename to writers_before")
            connection.execute(
                "create function pgqueue.writers(relation text, among text[]) returns integer[] return '{7,8}'::integer[]"
            )
            with pytest.raises(psycopg.Error):
                await link.run(calls.writers("ready_jobs"))
            found.append(len(await link.run(calls.writers("ready_jobs"))))
            return found
        finally:
            await link.close()

    assert asyncio.run(twice()) == [0, 2]


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
