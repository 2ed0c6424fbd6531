"""Neighbouring releases share a schema; one that does not serve a release is refused by it before data is touched."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import psycopg
import pytest

import pgqueue
from pgqueue import calls, drivers, migrate
from pgqueue.errors import SchemaMissing, SchemaOutdated, SchemaTooNew
from pgqueue.worker.upkeep import PROTOCOL_ROUNDS
from tests.support import wait_until
from tests.upgrades.release import REPOSITORY, LaterRelease
from tests.worker.conftest import StartWorker
from tests.worker.harness import PATIENCE, QUICK, History
from tests.worker.tasks import hold, quick

INTERVAL = 0.2
"""Seconds; a worker asks again which protocols are served every PROTOCOL_ROUNDS of them."""
PRODUCER = """
import sys, psycopg, pgqueue
from pgqueue.errors import PgqueueError
from tests.worker.tasks import quick

assert pgqueue.__version__ == "0.2.0"
how, dsn = sys.argv[1:]
try:
    if how == "own":
        app = pgqueue.App(dsn=dsn)
        app.enqueue(app.task(name="quick")(lambda: None))
    else:
        with psycopg.connect(dsn) as connection:
            quick.enqueue(connection)
except PgqueueError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
"""Enqueues a job with the package of the release to come, over a connection of the app's own or of the application."""


def ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def serve(dsn: str, newest: int, oldest: int) -> None:
    """The schema serves these protocols from now on, as after an upgrade."""
    ask(
        dsn,
        "create or replace function pgqueue.protocol(out newest integer, out oldest integer)"
        f" language sql immutable parallel safe return ({newest}, {oldest})",
    )


def produce(later: LaterRelease, dsn: str, how: str) -> str:
    """A producer of the release to come; what it says when it fails."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRODUCER, how, dsn],
        cwd=later.root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode == 0) == (run.stderr == ""), run.stderr
    return run.stderr.strip()


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


# A newer release on an older schema -----------------------------------------------------------------------


def test_a_worker_of_a_later_release_does_not_start_on_an_older_schema(
    later: LaterRelease, database: str, start_worker: StartWorker, connection: psycopg.Connection
) -> None:
    job = quick.enqueue(connection)
    worker = start_worker(cwd=later.root, wait=False)
    assert worker.wait() == 1
    (told,) = worker.noise
    worker.noise.clear()
    assert told == (
        "error: the schema pgqueue serves protocols 1 to 1, this pgqueue-jobs 0.2.0 speaks 2: run `pgqueue db upgrade`"
    )
    assert ask(database, "select count(*) from pgqueue.workers") == 0
    assert ask(database, f"select attempt from pgqueue.ready_jobs where id = {job.id}") == 0


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (
            "own",
            "SchemaOutdated: .* serves protocols 1 to 1, this .* 0.2.0 speaks 2: run `pgqueue db upgrade`",
        ),
        (
            "the application's",
            "SchemaMissing: function pgqueue.enqueue(.*) does not exist: .* run `pgqueue db upgrade`",
        ),
    ],
)
def test_a_producer_of_a_later_release_writes_nothing_into_an_older_schema(
    later: LaterRelease, database: str, how: str, says: str
) -> None:
    said = produce(later, database, how)
    assert re.fullmatch(says, said), said
    assert ask(database, "select count(*) from pgqueue.ready_jobs") == 0


# Neighbours on the newer schema ---------------------------------------------------------------------------


def test_both_releases_work_on_the_later_schema(
    later: LaterRelease,
    database: str,
    start_worker: StartWorker,
    history: History,
    connection: psycopg.Connection,
) -> None:
    with later.known():
        assert migrate.upgrade(database) == ("0002",)
    assert migrate.check(database).state == "newer"
    worker = start_worker()
    assert produce(later, database, "the application's") == ""
    mine = quick.enqueue(connection)
    wait_until(lambda: len(history.entries("end")) == 2, PATIENCE, "the jobs of both releases to end")
    worker.stop()
    assert worker.wait() == 0
    start_worker(cwd=later.root)
    theirs = quick.enqueue(connection)
    history.wait_for("end", theirs.id)
    assert theirs.id > mine.id
    names = ask(database, "select array_agg(distinct version order by version) from pgqueue.workers")
    assert names == ["0.2.0"]


# A schema that serves a release no more -------------------------------------------------------------------


def test_a_running_worker_that_is_served_no_more_claims_nothing_lets_its_jobs_end_and_ends(
    database: str, start_worker: StartWorker, history: History, connection: psycopg.Connection
) -> None:
    worker = start_worker("-c", "1", upkeep_interval=INTERVAL)
    held = hold.enqueue(connection, gate="held")
    history.wait_for("start", held.id)
    left = quick.enqueue(connection)
    serve(database, 3, 2)
    replaced_at = time.monotonic()
    (line,) = worker.wait_for("schema.refused")
    assert time.monotonic() - replaced_at < PROTOCOL_ROUNDS * INTERVAL + 3
    assert line["error"].startswith("the schema pgqueue serves protocols 2 to 3, this pgqueue-jobs ")
    assert "upgrade pgqueue-jobs" in line["error"]
    worker.wait_for("worker.stopping", how="drain")
    history.open("held")
    assert worker.wait() == 1
    assert ask(database, f"select state from pgqueue.finished_jobs where id = {held.id}") == "completed"
    assert ask(database, f"select attempt from pgqueue.ready_jobs where id = {left.id}") == 0
    assert ask(database, "select count(*) from pgqueue.workers") == 0
    again = start_worker(wait=False)
    assert again.wait() == 1
    assert "serves protocols 2 to 3" in again.noise.pop()


def test_a_worker_in_an_application_that_is_served_no_more_says_so_and_stops(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (QUICK | {"PGQUEUE_UPKEEP_INTERVAL": str(INTERVAL)}).items():
        monkeypatch.setenv(name, value)
    app = pgqueue.App(dsn=database)

    async def work() -> None:
        async with pgqueue.Worker(app) as worker:
            serve(database, 0, 0)  # as after the restore of an older dump
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(
                    SchemaOutdated, match=r"serves protocols 0 to 0, .* run `pgqueue db upgrade`"
                ):
                    await worker.wait()

    asyncio.run(work())
    assert ask(database, "select count(*) from pgqueue.workers") == 0


def test_an_app_that_is_served_no_more_enqueues_nothing_over_connections_of_its_own(database: str) -> None:
    app = pgqueue.App(dsn=database)
    task = app.task(name="any")(lambda: None)
    serve(database, 3, 2)
    with pytest.raises(SchemaTooNew, match="upgrade pgqueue-jobs"):
        app.enqueue(task)
    assert ask(database, "select count(*) from pgqueue.ready_jobs") == 0


def test_a_call_that_the_schema_does_not_know_says_which_and_leaves_nothing(database: str) -> None:
    ask(database, "alter function pgqueue.enqueue rename to enqueue_as_it_was")
    with psycopg.connect(database) as connection:
        with pytest.raises(SchemaMissing, match=r"pgqueue\.enqueue\(.* does not exist"):
            drivers.run(connection, calls.enqueue(task="t"))
        connection.rollback()
    assert ask(database, "select count(*) from pgqueue.ready_jobs") == 0
