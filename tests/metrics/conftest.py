"""One database with a fleet that was made by hand, and endpoints on it.

fleet      its DSN: queues, workers, schedules, figures, as `_make` has them; nobody changes it
endpoint   makes endpoints, and closes them after the test
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgqueue.metrics import Endpoint
from pgqueue.observe.tally import Tally
from tests.sql.acting import call, claimed, enqueue_many, open_session, register
from tests.support import Databases

MakeEndpoint = Callable[..., Endpoint]


@pytest.fixture(scope="package")
def fleet(databases: Databases) -> Iterator[str]:
    """The DSN of the folder's database."""
    dsn = databases.create()
    with open_session(dsn) as connection:
        _make(connection)
    yield dsn
    databases.drop(dsn)


def _make(connection: psycopg.Connection) -> None:
    worker = register(connection, "mail", "idle", lease=3600)  # alive for as long as the tests take
    claimed(connection, worker, queue="mail")
    enqueue_many(
        connection, [{"task": "t", "queue": "mail"}] * 3 + [{"task": "t", "queue": "mail", "delay": 600}] * 2
    )
    connection.execute("update pgqueue.ready_jobs set run_at = clock_timestamp() - interval '100 s'")
    dead = claimed(connection, register(connection, "bad", lease=3600), queue="bad", max_attempts=1)
    failure = {"id": dead.id, "lease": dead.lease, "error": "E", "message": "secret"}
    call(connection, "fail", failures=Jsonb([failure]))
    connection.execute("insert into pgqueue.queues (name, paused_at) values ('paused', now())")
    for name in ("late", "hourly"):
        call(connection, "schedule", name=name, task="t", every=3600.0)
    connection.execute(
        "update pgqueue.schedules set due_at = clock_timestamp() + case name when 'late' then interval '-200 s' else interval '1 h' end"
    )
    call(connection, "count_depths")
    connection.execute(
        "update pgqueue.rollup_progress set rolled_up_to = clock_timestamp() - interval '70 s'"
    )
    connection.execute("update pgqueue.leadership set led_at = clock_timestamp() - interval '5 s'")


@pytest.fixture
def endpoint() -> Iterator[MakeEndpoint]:
    """Makes endpoints: `endpoint(dsn, tally=…, is_live=…, is_ready=…)`."""
    made: list[Endpoint] = []

    def make(dsn: str, tally: Tally | None = None, **states: Any) -> Endpoint:
        made.append(Endpoint(dsn, tally or Tally(), **states))
        return made[-1]

    yield make
    for endpoint in made:
        endpoint.close()
