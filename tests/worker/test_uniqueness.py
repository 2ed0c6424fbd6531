"""Unique jobs with real workers: one after the other, and never before the commit that asked for them."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pgqueue import Unique
from tests.support import Databases
from tests.worker import tasks
from tests.worker.conftest import Service, service


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker with slots to spare."""
    with service(databases, tmp_path_factory, "-q", "default", "-c", "4") as running:
        yield running


def test_a_job_that_runs_is_followed_by_one_more_and_never_overlapped(running: Service) -> None:
    connection, history = running.rows.connection, running.history
    again = tasks.hold.using(unique=Unique(key="a", on_conflict="follow_up"))
    first = again.enqueue(connection, gate="follow")
    history.wait_for("start", first.id)
    jobs = [again.enqueue(connection, gate="follow") for _ in range(3)]
    assert [job.outcome for job in jobs] == ["follow_up", "kept", "kept"]
    (follower,) = {job.id for job in jobs}
    others = [tasks.quick.enqueue(connection).id for _ in range(4)]
    running.rows.wait_for("completed", *others)  # there was room for it
    assert history.entries("start", follower) == []
    assert running.rows.states(follower) == ["blocked"]
    history.open("follow")

    running.rows.wait_for("completed", first.id, follower)
    assert history.most_at_once([first.id, follower]) == 1
    (end,), (start,) = history.entries("end", first.id), history.entries("start", follower)
    assert 0 < start.at - end.at < 1.0  # at once, and not when somebody looks the next time


def test_a_job_that_was_kept_sees_what_the_transaction_that_kept_it_has_written(running: Service) -> None:
    connection, history = running.rows.connection, running.history
    waiting = tasks.quick.using(unique=Unique(key="b", scope="waiting"))
    connection.execute("select pgqueue.pause('default')")
    first = waiting.enqueue(connection)
    with psycopg.connect(connection.info.dsn) as producer:
        assert waiting.enqueue(producer).id == first.id
        connection.execute("select pgqueue.resume('default')")
        others = [tasks.quick.enqueue(connection).id for _ in range(4)]
        running.rows.wait_for("completed", *others)  # later ones, so it was passed by
        assert history.entries("start", first.id) == []
        producer.commit()

    running.rows.wait_for("completed", first.id)
    assert waiting.enqueue(connection).id != first.id
