"""What a worker provides its handlers with, and the middleware around them: real workers, real processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqueue.invocation import check
from tests.support import Databases
from tests.worker import dependency_tasks as tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import REPOSITORY, History, Rows

APP = "tests.worker.dependency_tasks:app"
LAYERED = "tests.worker.dependency_tasks:layered"


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker for the tests that harm none."""
    with service(databases, tmp_path_factory, "-c", "4", app=APP) as running:
        running.rows.connection.execute("create table effects (text text)")
        yield running


def whats(history: History, id: int) -> list[str]:
    """What happened around a job, in order."""
    return [entry.what for entry in history.entries(None, id)]


# Lives ----------------------------------------------------------------------------------------------------


def test_what_belongs_to_the_worker_is_opened_once_in_each_process_and_closed_at_its_end(
    start_worker: StartWorker, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    worker = start_worker("-c", "2", processes=2, app=APP)
    pids = set(worker.children().values())
    ids: list[int] = []
    while {entry.pid for entry in history.entries("start")} != pids:
        ids += [tasks.work.enqueue(connection).id for _ in range(20)]
        ids.append(tasks.work_sync.enqueue(connection).id)
        rows.wait_for("completed", *ids)
    assert all(entry.said["pool"] == entry.pid for entry in history.entries("start"))
    assert {entry.said["client"] for entry in history.entries("start") if "client" in entry.said} <= pids
    worker.stop()

    assert worker.wait() == 0
    for what in ("pool opened", "pool closed", "client opened", "client closed"):
        assert sorted(entry.pid for entry in history.entries(what)) == sorted(pids), what


def test_a_process_that_waits_for_its_next_job_closes_what_it_has_open_when_the_worker_ends(
    start_worker: StartWorker, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    worker = start_worker(app=APP)
    ids = [tasks.work_aside.enqueue(connection).id for _ in range(3)]
    rows.wait_for("completed", *ids)
    worker.stop()

    assert worker.wait() == 0
    opened = sorted(entry.pid for entry in history.entries("pool opened"))
    assert sorted(entry.pid for entry in history.entries("pool closed")) == opened
    assert not set(opened) & set(worker.children().values())


def test_what_belongs_to_a_job_is_opened_and_closed_around_each_attempt(running: Service) -> None:
    id = tasks.work.enqueue(running.rows.connection, fail=True).id
    running.rows.wait_for("dead", id)

    attempt = ["session opened", "start", "session saw", "session closed"]
    assert whats(running.history, id) == attempt * 2
    assert {entry.said["job"] for entry in running.history.entries("start", id)} == {id}


def test_a_provider_that_swallows_the_error_does_not_make_a_success_of_it(running: Service) -> None:
    id = tasks.work.enqueue(running.rows.connection, fail=True).id

    letter = running.rows.letter(id)
    assert (letter["reason"], letter["error"]) == ("exhausted", "ValueError")
    assert "in work\n" in letter["errors"][-1]["traceback"]
    assert "pgqueue/" not in letter["errors"][-1]["traceback"]
    assert [entry.said["error"] for entry in running.history.entries("session saw", id)] == [
        "the handler's"
    ] * 2


def test_a_job_in_a_process_of_its_own_is_provided_for_in_there(running: Service) -> None:
    id = tasks.work_apart.enqueue(running.rows.connection).id
    running.rows.wait_for("completed", id)

    (start,) = running.history.entries("start", id)
    assert start.said["pool"] == start.pid
    assert start.pid not in running.worker.children().values()
    running.history.wait_for("pool closed")  # that process runs one job
    assert [entry.pid for entry in running.history.entries("pool closed")] == [start.pid]


def test_a_transactional_handler_works_on_what_was_made_of_its_connection(running: Service) -> None:
    id = tasks.write.enqueue(running.rows.connection, text="written").id
    running.rows.wait_for("completed", id)
    assert running.rows.value("select count(*) from effects where text = 'written'") == 1

    (running.history.folder / "closing-fails").touch()
    failed = tasks.write.enqueue(running.rows.connection, text="not written").id
    letter = running.rows.letter(failed)
    (running.history.folder / "closing-fails").unlink()
    assert (letter["error"], letter["message"]) == ("OSError", "could not be closed")
    assert running.rows.value("select count(*) from effects where text = 'not written'") == 0


def test_a_batch_is_provided_for_once(running: Service) -> None:
    ids = [tasks.batch.enqueue(running.rows.connection, n).id for n in range(3)]
    running.rows.wait_for("completed", *ids)

    starts = running.history.entries("start", *ids)
    assert [entry.said["size"] for entry in starts] == [3, 3, 3]
    assert {entry.said["client"] for entry in starts} == set(running.worker.children().values())


def test_a_handler_that_takes_too_long_has_its_session_closed(running: Service) -> None:
    id = tasks.too_long.enqueue(running.rows.connection).id

    assert running.rows.letter(id)["error"] == "pgqueue.errors.TimedOut"
    assert whats(running.history, id) == ["session opened", "start", "session closed"]


def test_what_could_not_be_opened_fails_the_attempt_and_is_tried_again(running: Service) -> None:
    id = tasks.patient.enqueue(running.rows.connection).id

    (row,) = running.rows.wait_for("completed", id)
    assert row["attempt"] == 2
    failure = "select error, message from pgqueue.job_failures where job_id = %s"
    assert running.rows.all(failure, id) == [{"error": "ConnectionRefusedError", "message": "not yet"}]
    assert [entry.attempt for entry in running.history.entries("start", id)] == [2]


def test_args_cannot_stand_in_for_what_is_provided(running: Service) -> None:
    id = running.rows.enqueue("work", '{"client": {"pid": 7}}')

    letter = running.rows.letter(id)
    assert letter["reason"] == "invalid_args"
    assert "client is provided by the worker" in letter["message"]


def test_what_the_howto_page_shows_is_true(connection: psycopg.Connection) -> None:
    page = (REPOSITORY / "docs/howto/dependencies.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)

    class Gateway:
        async def __aenter__(self) -> Gateway:
            return self

        async def __aexit__(self, *_: object) -> None: ...

    class Payments:
        def __init__(self, gateway: Gateway, key: str): ...

    names: dict[str, Any] = {"connection": connection, "User": object, "FakeGateway": Gateway}
    names |= {"Gateway": Gateway, "Payments": Payments}
    exec("\n".join(blocks), names)

    check(names["app"])
    assert names["app"].providers[Payments].needs == {"gateway": Gateway}
    rows = connection.execute("select task, args from pgqueue.ready_jobs where task = 'close_account'")
    assert rows.fetchall() == [("close_account", {"user_id": 7})]
    names["test_with_a_fake"]()


# Middleware -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layered(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(databases, tmp_path_factory, "-c", "4", app=LAYERED) as running:
        yield running


@pytest.mark.parametrize(
    ("task", "args", "around"),
    [
        (tasks.answer, {"n": 21}, ["before", "inside", "after"]),
        (tasks.answer_sync, {"n": 1}, ["before", "start", "after"]),
        (tasks.guarded, {}, ["before", "start", "after"]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_middleware_goes_around_every_kind_of_handler(
    task: Any, args: dict[str, Any], around: list[str], layered: Service
) -> None:
    id = task.enqueue(layered.rows.connection, **args).id

    layered.rows.wait_for("completed", id)
    assert whats(layered.history, id) == around


def test_what_middleware_returns_is_the_jobs_result(layered: Service) -> None:
    id = tasks.answer.enqueue(layered.rows.connection, n=21).id

    layered.rows.wait_for("completed", id)
    assert layered.rows.value("select result from pgqueue.finished_jobs where id = %s", id) == 42


def test_what_middleware_raises_ends_the_attempt(layered: Service) -> None:
    id = tasks.gives_up.enqueue(layered.rows.connection).id

    (row,) = layered.rows.wait_for("scheduled", id)
    assert row["attempt"] == 0  # snoozed: the attempt is given back
    assert whats(layered.history, id) == ["before", "start", "after"]


# What cannot work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "told"),
    [
        (
            "lacking",
            "error: task send: parameter pool needs tests.worker.dependency_tasks.Pool, which nothing provides",
        ),
        ("halved", "error: task resize is sync and middleware tests.worker.dependency_tasks.outer is async"),
    ],
)
def test_a_worker_does_not_start_with_a_task_that_could_not_be_called(
    app: str, told: str, start_worker: StartWorker
) -> None:
    worker = start_worker(app=f"tests.worker.dependency_tasks:{app}", wait=False)

    assert worker.wait() == 2
    assert [line for line in worker.noise if line.startswith(told)], worker.noise
    worker.noise.clear()
