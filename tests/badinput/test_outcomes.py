"""What handlers raise and return cannot stop their outcome from being recorded, wherever they run.

More of it: `tests/worker/test_outcomes.py` (policies that break, args that no longer fit), `test_results.py` (what is kept).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from pgqueue.app import App
from pgqueue.cli import main
from pgqueue.settings import Settings
from tests.badinput import tasks
from tests.badinput.table import Case, table
from tests.support import Databases
from tests.worker.conftest import Service, service
from tests.worker.harness import Rows

APP = "tests.badinput.tasks:app"
SLOTS = 6


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker for the whole file, which it has to outlive."""
    with service(databases, tmp_path_factory, "-c", str(SLOTS), app=APP, task_processes=2) as running:
        running.rows.connection.execute("create table effects (number integer)")
        yield running


@pytest.fixture
def rows(running: Service) -> Rows:
    return running.rows


@pytest.fixture
def connection(running: Service) -> psycopg.Connection:
    return running.rows.connection


_gates = itertools.count()


@pytest.fixture(autouse=True)
def _worker_goes_on(running: Service) -> Iterator[None]:
    """After every test the same process must still work, with all of its slots."""
    before = running.worker.children()
    yield
    gate = f"last-{next(_gates)}"  # a gate of each test's own: one that is open stays open
    last = [tasks.hold.enqueue(running.rows.connection, gate=gate).id for _ in range(SLOTS)]
    running.rows.wait_for("running", *last)
    running.history.open(gate)
    running.rows.wait_for("completed", *last)
    assert running.worker.children() == before
    for trouble in ("slot.stuck", "worker.hung", "worker.child_died", "lease.lost"):
        assert running.worker.events(trouble) == []


# Raised -------------------------------------------------------------------------------------------------


def _raised(given: str, error: str, message: str) -> Case:
    return Case("a handler raises", given, error, message)


CUT = "xxx… [… … characters left out …] …xxx"

RAISED = table(
    "outcomes",
    _raised("NUL", "ValueError", r"a\x00b"),
    _raised("lone surrogate", "ValueError", r"a\ud800b"),
    _raised("text that raises", "tests.worker.tasks.NoText", "<tests.worker.tasks.NoText, whose text raised RuntimeError>"),
    _raised("text that exits", "tests.worker.tasks.Exits", "<tests.worker.tasks.Exits, whose text raised SystemExit>"),
    _raised("class without a name", "tests.worker.tasks.Nameless", ""),
    _raised("an error that cannot be asked", "tests.badinput.tasks.Secretive", ""),
    _raised("30 MB of text", "ValueError", CUT),
    _raised("30 MB of a key", "KeyError", f"'{CUT}'"),
    _raised("JSON that is none", "ValueError", r'{"id": 1e400, "x": "\ud800"}]'),
    _raised("SystemExit", "SystemExit", "7"),
    _raised("KeyboardInterrupt", "KeyboardInterrupt", ""),
    _raised("CancelledError", "asyncio.exceptions.CancelledError", "by the handler"),
    _raised("GeneratorExit", "GeneratorExit", ""),
    _raised("BaseException", "BaseException", "bare"),
    _raised("TimeoutError", "TimeoutError", ""),
    _raised("group of 10,000", "ExceptionGroup", "many (10000 sub-exceptions)"),
    _raised("causes in a circle", "ValueError", "one"),
    _raised("5,000 causes", "ValueError", "cause 4999"),
    _raised("StopIteration", "RuntimeError", "coroutine raised StopIteration"),
    _raised("StopAsyncIteration", "StopAsyncIteration", ""),
    _raised("a Snooze for ever", "pgqueue.job.Snooze", "snoozed"),
    _raised("a Snooze without a delay", "tests.worker.tasks.HalfMade", "who needs super().__init__?"),
    _raised("a Retry after nonsense", "pgqueue.job.Retry", "retry requested"),
    _raised("LeaseLost", "pgqueue.errors.LeaseLost", "says the handler"),
    _raised("UnknownWorker", "pgqueue.errors.UnknownWorker", "says the handler"),
    _raised("DatabaseUnavailable", "pgqueue.errors.DatabaseUnavailable", "says the handler"),
    _raised("psycopg.Rollback", "psycopg.Rollback", ""),
)  # fmt: skip
HUGE = table(
    "outcomes",
    _raised("300 MB of text", "ValueError", CUT),
)


def test_every_kind_has_its_row() -> None:
    assert {case.given for case in (*RAISED, *HUGE)} == set(tasks.RAISED)


def _is_recorded(case: Case, id: int, rows: Rows) -> None:
    letter = rows.letter(id)
    assert (letter["attempt"], letter["error"], letter["reason"]) == (1, case.error, "exhausted")
    assert case.says(letter["message"]) or (case.message == letter["message"] == "")
    assert len(letter["errors"]) == 1
    assert len(str(letter["errors"])) < 100_000


EVERYWHERE = [*tasks.WAYS, *tasks.TRANSACTIONS, *tasks.BATCHES, *tasks.STEPS]


@pytest.mark.parametrize("task", EVERYWHERE, ids=lambda task: task.name)
def test_what_a_handler_raises_is_recorded(task: Any, connection: psycopg.Connection, rows: Rows) -> None:
    jobs = [(case, task.enqueue(connection, case.given).id) for case in RAISED]

    for case, id in jobs:
        _is_recorded(case, id, rows)
    assert rows.value("select count(*) from effects") == 0, "a transaction whose handler raised has committed"


@pytest.mark.parametrize("case", HUGE, ids=Case.id)
def test_an_exception_of_300_mb_is_recorded_as_any_other(
    case: Case, running: Service, connection: psycopg.Connection
) -> None:
    for task in (tasks.in_loop, tasks.in_thread, tasks.in_process, tasks.in_transaction, tasks.in_batch):
        _is_recorded(case, task.enqueue(connection, case.given).id, running.rows)
    (child,) = running.worker.children().values()
    # Nothing of a job that has ended stays alive: the next one may be there before it has gone, and no third.
    assert peak_mb(child) < 900


def peak_mb(pid: int) -> int:
    """The most memory that a process has ever occupied."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found
    return int(found[1]) // 1024


def test_a_policy_that_exits_cannot_stop_the_failure_from_being_recorded(
    running: Service, connection: psycopg.Connection, rows: Rows
) -> None:
    job = tasks.policy_exits.enqueue(connection)

    (row,) = rows.wait_for("scheduled", job.id)
    assert row["attempt"] == 1
    running.worker.wait_for("retry.policy_failed", policy="Exits")


# Returned -----------------------------------------------------------------------------------------------


def _kept(given: str, message: str) -> Case:
    return Case("a handler with keep_result returns", given, "completed, no result; reason:", message)


LIMIT = "result: more than 65,536 bytes of JSON, which is the limit"
RETURNED = table(
    "outcomes",
    _kept("bytes", "result.blob: bytes are not JSON: decode them to text, or to base64 of your own"),
    _kept("a set", "result: a set is not JSON: pass a sorted list"),
    _kept("NUL", "result[0]: the character NUL at position 1, PostgreSQL cannot store it"),
    _kept("a lone surrogate", "result: a lone surrogate at position 1, which is no Unicode text"),
    _kept("NaN", "result.mean: nan is not JSON, numbers have to be finite"),
    _kept("2**63", "result: an integer of 64 bits, the limit is signed 64 bit"),
    _kept("an object", "result: a value of type object cannot be stored as JSON"),
    _kept("a generator", "result: a value of type generator cannot be stored as JSON"),
    _kept("a coroutine", "result: a value of type coroutine cannot be stored as JSON"),
    _kept("a key that is a number", "result: the key 1 is of type int, keys have to be strings"),
    _kept("itself", "result.me.me.me.me.me.me … .me.me.me.me.me.me: nested more than 100 levels deep, or contains itself"),
    _kept("70,000 characters", LIMIT),
    _kept("300 MB of text", LIMIT),
    _kept("300 MB in a dict", LIMIT),
    _kept("1 MB, 10,000 times", LIMIT),
)  # fmt: skip


def test_a_result_that_cannot_be_kept_is_left_out_and_its_job_completes(
    running: Service, connection: psycopg.Connection, rows: Rows
) -> None:
    assert {case.given for case in RETURNED} == set(tasks.RETURNED)
    for task in tasks.RETURNS:
        for case in RETURNED:
            if "300" in case.given and task is not tasks.returns:
                continue
            (row,) = rows.wait_for("completed", task.enqueue(connection, case.given).id)
            assert case.says(row["reason"]), (task.name, row["reason"])
            assert row["attempt"] == 1
    (child,) = running.worker.children().values()
    assert peak_mb(child) < 900


# Numbers ------------------------------------------------------------------------------------------------

INTEGERS = [2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 10**18 + 1, 2**63 - 1, -(2**63)]


def test_integers_beyond_2_to_the_53_are_exact_from_the_enqueue_to_the_command_line(
    connection: psycopg.Connection, rows: Rows
) -> None:
    nested = {"numbers": INTEGERS, "by name": {str(number): number for number in INTEGERS}}
    untyped = tasks.echo.enqueue(connection, value=nested).id
    typed_args = {"number": INTEGERS[-1], "list": INTEGERS, "of": nested["by name"]}
    typed = tasks.echo_typed.enqueue(connection, **typed_args).id  # type: ignore[call-overload]
    rows.wait_for("completed", untyped, typed)
    app = App(settings=Settings(dsn=rows.dsn))
    for id, args, result in ((untyped, {"value": nested}, nested), (typed, typed_args, typed_args)):
        assert (
            json.loads(rows.value("select args::text from pgqueue.finished_jobs where id = %s", id)) == args
        )
        shown = CliRunner().invoke(main, ["--dsn", rows.dsn, "jobs", "show", str(id), "--json"])
        assert shown.exit_code == 0, shown.output
        document = json.loads(shown.stdout)
        assert (document["args"], document["result"]) == (args, result)
        plain = CliRunner().invoke(main, ["--dsn", rows.dsn, "jobs", "show", str(id)])
        assert all(str(number) in plain.stdout for number in INTEGERS)
        assert app.result(id) == result
    app.close()
