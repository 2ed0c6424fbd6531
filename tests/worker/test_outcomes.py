"""What becomes of a job: each kind of ending, by one real worker that outlives them all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from itertools import pairwise

import psycopg
import pytest

from pgqueue.task import Task
from tests.support import Databases
from tests.worker import tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import History, Rows


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker of 8 slots for the whole file."""
    with service(databases, tmp_path_factory, "-q", "default", "-q", "mail", "-c", "8") as running:
        yield running


@pytest.fixture
def rows(running: Service) -> Rows:
    return running.rows


@pytest.fixture
def history(running: Service) -> History:
    return running.history


@pytest.fixture
def connection(running: Service) -> psycopg.Connection:
    return running.rows.connection


_gates = itertools.count()


@pytest.fixture(autouse=True)
def _worker_goes_on(running: Service) -> Iterator[None]:
    """After every test the same process must still work, with all of its slots."""
    before = running.worker.children()
    yield
    gate = f"last-{next(_gates)}"  # of each test's own: one that is open stays open
    last = [tasks.hold.enqueue(running.rows.connection, gate=gate).id for _ in range(8)]
    running.history.wait_for("start", *last, count=8)
    running.history.open(gate)
    running.rows.wait_for("completed", *last)
    assert running.worker.children() == before


# Running ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [tasks.describe, tasks.describe_sync], ids=lambda task: task.name)
def test_a_handler_is_told_all_about_its_job(
    task: Task[..., object], connection: psycopg.Connection, history: History
) -> None:
    chosen = task.using(
        queue="mail",
        priority=3,
        max_attempts=7,
        tags=["eu", "vip"],
        metadata={"trace": "abc", "deep": {"n": 1}},
    )
    job = chosen.enqueue(connection, user_id=2**60 + 1)

    (start,) = history.wait_for("start", job.id)
    assert start.said.pop("connection").startswith("refused: ")
    assert start.said == {
        "id": job.id,
        "attempt": 1,
        "max_attempts": 7,
        "queue": "mail",
        "task": task.name,
        "priority": 3,
        "tags": ["eu", "vip"],
        "metadata": {"trace": "abc", "deep": {"n": 1}},
        "idempotency_key": f"pgqueue:{job.id}",
        "user_id": 2**60 + 1,
    }


@pytest.mark.parametrize("task", [tasks.quick, tasks.quick_sync], ids=lambda task: task.name)
def test_a_job_runs_once_and_is_completed_in_the_history(
    task: Task[..., object], connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = task.enqueue(connection)

    (row,) = rows.wait_for("completed", job.id)
    assert (row["attempt"], row["crashes"], row["reason"]) == (1, 0, None)
    assert row["created_at"] <= row["claimed_at"] <= row["finished_at"]
    assert [entry.what for entry in history.entries(None, job.id)] == ["start", "end"]
    assert rows.all("select * from pgqueue.job_failures where job_id = %s", job.id) == []


@pytest.mark.parametrize("task", [tasks.visit, tasks.visit_sync], ids=lambda task: task.name)
def test_context_variables_of_one_job_do_not_leak_into_the_next(
    task: Task[..., object], connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    # more jobs than slots and threads: some follow another one in the same place, some run beside it
    jobs = [task.enqueue(connection).id for _ in range(40)]

    rows.wait_for("completed", *jobs)
    starts, later = history.entries("start", *jobs), history.entries("later", *jobs)
    assert {(entry.said["found"], entry.said["bound"]) for entry in starts} == {("nobody", "nobody")}
    assert [entry.said["found"] for entry in later] == [f"tenant {entry.job}" for entry in later]


@pytest.mark.parametrize("kind", ["generator", "bytes", "awaitable", "text"])
def test_what_a_handler_returns_cannot_harm(kind: str, connection: psycopg.Connection, rows: Rows) -> None:
    job = tasks.returns_strangely.enqueue(connection, kind=kind)
    rows.wait_for("completed", job.id)


# Trying again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "waits"),
    [(tasks.fails, [0.05, 0.05]), (tasks.fails_sync, [0.2, 0.6])],
    ids=["fixed", "linear"],
)
def test_a_failing_job_is_tried_again_after_its_backoff_and_dies_with_every_error(
    task: Task[..., object], waits: list[float], connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = task.enqueue(connection)

    letter = rows.letter(job.id)
    starts = history.entries("start", job.id)
    assert [entry.attempt for entry in starts] == [1, 2, 3]
    gaps = [later.at - earlier.at for earlier, later in pairwise(starts)]
    assert all(wait <= gap for wait, gap in zip(waits, gaps, strict=True)), gaps
    assert (letter["reason"], letter["error"], letter["attempt"]) == ("exhausted", "ValueError", 3)
    assert [error["attempt"] for error in letter["errors"]] == [1, 2, 3]
    assert [error["message"] for error in letter["errors"]] == [f"attempt {n} went wrong" for n in (1, 2, 3)]
    for error in letter["errors"]:
        assert "tasks.py" in error["traceback"]
        assert "slots.py" not in error["traceback"], "the worker's own frames are of no use to anybody"


def test_retry_after_decides_the_wait_against_the_policy(
    connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = tasks.asks_again.enqueue(connection, times=1)  # its policy waits for an hour

    (row,) = rows.wait_for("completed", job.id)
    first, second = history.entries("start", job.id)
    assert second.at - first.at >= 0.3
    assert (row["attempt"], first.attempt, second.attempt) == (2, 1, 2)
    (failure,) = rows.all("select * from pgqueue.job_failures where job_id = %s", job.id)
    assert (failure["error"], failure["message"]) == ("pgqueue.job.Retry", "rate limited")


def test_retry_without_an_attempt_left_makes_a_dead_letter(
    connection: psycopg.Connection, rows: Rows
) -> None:
    job = tasks.asks_again.using(max_attempts=2).enqueue(connection, times=9)

    letter = rows.letter(job.id)
    assert (letter["reason"], letter["attempt"]) == ("exhausted", 2)


def test_a_job_may_bring_a_policy_of_its_own(
    connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = tasks.fails.using(retry=tasks.Fixed(3600, attempts=2)).enqueue(connection)

    rows.wait_for("scheduled", job.id)
    assert rows.value(
        "select extract(epoch from run_at - now()) > 3000 from pgqueue.scheduled_jobs where id = %s", job.id
    )
    rows.bring_forward(job.id)
    assert rows.letter(job.id)["attempt"] == 2
    assert len(history.entries("start", job.id)) == 2


def test_snooze_gives_the_attempt_back(connection: psycopg.Connection, history: History, rows: Rows) -> None:
    job = tasks.naps.enqueue(connection)  # its only attempt

    (row,) = rows.wait_for("completed", job.id)
    first, second = history.entries("start", job.id)
    assert (first.attempt, second.attempt, row["attempt"]) == (1, 1, 1)
    assert second.at - first.at >= 0.2
    assert rows.all("select * from pgqueue.job_failures where job_id = %s", job.id) == []


def test_fail_makes_a_dead_letter_at_once(
    connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = tasks.gives_up.enqueue(connection)

    letter = rows.letter(job.id)
    assert (letter["reason"], letter["message"]) == ("failed", "the account was closed")
    assert len(history.entries("start", job.id)) == 1


def test_a_permanent_error_is_known_by_its_base_class(
    connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = tasks.looks_up.enqueue(connection)  # permanent=LookupError, raises KeyError

    letter = rows.letter(job.id)
    assert (letter["reason"], letter["error"], letter["attempt"]) == ("permanent", "KeyError", 1)
    assert len(history.entries("start", job.id)) == 1


def test_a_policy_that_answers_none_gives_up(
    connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = tasks.chooses.enqueue(connection)  # OSError is tried again, then KeyError is not

    letter = rows.letter(job.id)
    assert [error["error"] for error in letter["errors"]] == ["OSError", "KeyError"]
    assert letter["attempt"] == 2 < letter["max_attempts"]
    assert len(history.entries("start", job.id)) == 2


@pytest.mark.parametrize("task", [tasks.hopeless, tasks.endless], ids=lambda task: task.name)
def test_a_policy_that_breaks_cannot_stop_the_failure_from_being_recorded(
    task: Task[..., object], connection: psycopg.Connection, rows: Rows
) -> None:
    job = task.enqueue(connection)

    (row,) = rows.wait_for("scheduled", job.id)
    assert row["attempt"] == 1
    (failure,) = rows.all("select * from pgqueue.job_failures where job_id = %s", job.id)
    assert failure["message"] == "went wrong"


# What cannot be run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ("{}", "number"),
        ('{"number": "seven"}', "number"),
        ('{"number": 7, "colour": "red"}', "colour"),
        ('{"number": ' + "[" * 3000 + "]" * 3000 + "}", "number"),
    ],
    ids=["missing", "wrong type", "unknown", "too deep"],
)
def test_args_that_do_not_fit_make_a_dead_letter_that_names_the_argument(
    args: str, named: str, history: History, rows: Rows
) -> None:
    id = rows.enqueue("takes_number", args)

    letter = rows.letter(id)
    assert (letter["reason"], letter["error"], letter["attempt"]) == (
        "invalid_args",
        "pgqueue.errors.InvalidArgs",
        1,
    )
    assert named in letter["message"] or "too deep" in letter["message"]
    assert history.entries("start", id) == []


def test_a_type_whose_making_raises_makes_a_dead_letter_too(history: History, rows: Rows) -> None:
    id = rows.enqueue("takes_order", '{"order": {"id": 7}}')

    letter = rows.letter(id)
    assert letter["reason"] == "invalid_args"
    assert "order 7 is not in the catalogue" in letter["message"]
    assert history.entries("start", id) == []


def test_a_job_of_an_unknown_task_waits_for_a_worker_that_knows_it(
    database: str, start_worker: StartWorker
) -> None:
    with contextlib.closing(Rows(database)) as rows:
        older = start_worker("-c", "2")
        id = rows.enqueue("not_yet_known")

        older.wait_for("task.unknown", job_id=id)
        (row,) = rows.wait_for("scheduled", id)
        assert (row["attempt"], row["crashes"], row["reason"]) == (0, 0, None)
        rows.wait_until(
            lambda: rows.value("select unknown_tasks from pgqueue_bi.workers") == "not_yet_known",
            message="the worker's row to say what it lacks",
        )
        older.stop()
        assert older.wait() == 0

        start_worker(app="tests.worker.tasks:newer")
        rows.bring_forward(id)
        (row,) = rows.wait_for("completed", id)
        assert row["attempt"] == 1


# Hostile endings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*tasks.HOSTILE, "endless recursion"])
def test_no_exception_can_stop_its_own_record(
    kind: str, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    ways = [tasks.hostile, tasks.hostile_sync, tasks.hostile_later]
    jobs = [task.enqueue(connection, kind=kind).id for task in ways]

    for id in jobs:
        letter = rows.letter(id)
        assert letter["attempt"] == 1
        assert len(letter["errors"]) == 1
        assert letter["error"]
        assert len(str(letter["errors"])) < 100_000
        assert len(history.entries("start", id)) == 1


def test_the_names_of_what_a_handler_raises_are_kept(connection: psycopg.Connection, rows: Rows) -> None:
    kinds = ["SystemExit", "KeyboardInterrupt", "CancelledError", "group of 10,000", "NUL"]
    letters = [rows.letter(tasks.hostile_later.enqueue(connection, kind=kind).id) for kind in kinds]

    assert [letter["error"].rpartition(".")[2] for letter in letters] == [
        "SystemExit",
        "KeyboardInterrupt",
        asyncio.CancelledError.__name__,
        "ExceptionGroup",
        "ValueError",
    ]
    assert letters[4]["message"] == "a\\x00b"
