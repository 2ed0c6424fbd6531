"""Anybody who may connect may NOTIFY on any channel: whatever strangers say, it harms no worker and stops no job."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.support import Databases
from tests.worker import tasks
from tests.worker.conftest import Service, service
from tests.worker.harness import is_alive

pytestmark = pytest.mark.needs_session("it is about LISTEN")

JUNK = (
    "", " ", "cancel", "cancel ", "CANCEL", "cancel 1", "cancelled", "workers", "queues", "stop", "0", "-1", "1", "9" * 400, "1e400",
    "NaN", "null", "true", "{}", "[]", '{"id": 1, "cancel": true}', "[" * 3000, "x" * 7999, "\x01\x02\x7f", "\x1b[2J", "\u202e\U0001f4a9",
    "'; drop schema pgqueue cascade; --", "$$", "%s %d {0}", "\\", "\n\n", "select pgqueue.cancel('{1}')",
)  # fmt: skip


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A worker of two processes."""
    with service(databases, tmp_path_factory, processes=2) as running:
        yield running


def test_what_strangers_notify_harms_no_worker(running: Service) -> None:
    """A role without any right says everything on every channel that somebody listens on, again and again."""
    worker, rows = running.worker, running.rows
    held = tasks.hold.enqueue(rows.connection, gate="strangers")
    running.history.wait_for("start", held.id)
    children = worker.children()
    supervisor = rows.value("select supervisor_id from pgqueue.workers limit 1")
    channels = [f"pgqueue_{id}" for id in children]
    channels += ["pgqueue_upkeep", f"pgqueue_upkeep_{supervisor}", "pgqueue_wait_0123456789abcdef"]
    with psycopg.connect(rows.dsn, autocommit=True) as stranger:
        stranger.execute("set role pg_monitor")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            stranger.execute("select pgqueue.cancel(array[%s::bigint])", [held.id])
        for _ in range(3):
            for channel in channels:
                for payload in JUNK:
                    stranger.execute("select pg_notify(%s, %s)", [channel, payload])
        quick = [tasks.quick.enqueue(rows.connection).id for _ in range(20)]
        rows.wait_for("completed", *quick)
    assert worker.children() == children  # nobody has ended, or was started again
    assert all(is_alive(pid) for pid in children.values())
    assert rows.states(held.id) == ["running"]
    running.history.open("strangers")
    rows.wait_for("completed", held.id)
    assert running.history.starts_by_job()[held.id] == 1
    told = [line for line in worker.log if line["level"] not in ("info", "debug")]
    assert told == []
    assert worker.noise == []
