"""Schedules that cannot be: in code, from the command line, in SQL; each with the exact error.

The ranges of every argument are tried out in tests/unit/test_schedule.py, tests/unit/test_cron.py and tests/sql/test_schedules.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

import pgqueue
from pgqueue.cli import main
from pgqueue.errors import PgqueueError
from pgqueue.settings import Settings
from tests.badinput.table import Case, table
from tests.badinput.test_sql import refused
from tests.sql.acting import call, everything, open_session, scalar
from tests.support import Databases

NEW_YEAR = datetime(2100, 1, 1, tzinfo=UTC)
CODE = "app.schedule"

DEFINED = table(
    "schedules",
    Case(CODE, "no timing", "InvalidOption", "schedule nightly: no timing: give one of cron, every, at, at_startup", {}),
    Case(CODE, "two timings", "InvalidOption", "schedule nightly: cron, every: given together: give one of cron, every, at, at_startup", {"cron": "@daily", "every": "1h"}),
    Case(CODE, "a cron expression that never comes", "InvalidOption", "schedule nightly: cron: '0 0 30 2 *' never comes: none of its months has such a day", {"cron": "0 0 30 2 *"}),
    Case(CODE, "a 31st of short months", "InvalidOption", "schedule nightly: cron: '0 0 31 4,6,9,11 *' never comes: none of its months has such a day", {"cron": "0 0 31 4,6,9,11 *"}),
    Case(CODE, "an hour that no day has", "InvalidOption", "schedule nightly: cron: the hour field of '0 25 * * *' is '25', expected 0 to 23; or *, a list as 1,2, a range as 1-5, a step as */5", {"cron": "0 25 * * *"}),
    Case(CODE, "three fields", "InvalidOption", "schedule nightly: cron: expected five fields (minute hour day month weekday), got 3: '* * *'", {"cron": "* * *"}),
    Case(CODE, "six fields", "InvalidOption", "schedule nightly: cron: '0 0 3 * * *' has six fields: say where the seconds stand, seconds=\"first\" or seconds=\"last\"", {"cron": "0 0 3 * * *"}),
    Case(CODE, "an alias that is misspelt", "InvalidOption", "schedule nightly: cron: there is no '@dayly', did you mean @daily?", {"cron": "@dayly"}),
    Case(CODE, "an escape sequence", "InvalidOption", r"schedule nightly: cron: the minute field of '\x1b[2J * * * *' is '\x1b[2J', expected 0 to 59; or *, a list as 1,2, a range as 1-5, a step as */5", {"cron": "\x1b[2J * * * *"}),
    Case(CODE, "a zone that is misspelt", "InvalidOption", "schedule nightly: tz: there is no zone 'Europe/Pari', did you mean Europe/Paris?", {"cron": "@daily", "tz": "Europe/Pari"}),
    Case(CODE, "a zone that is a file", "InvalidOption", "schedule nightly: tz: there is no zone '../../etc/passwd'", {"cron": "@daily", "tz": "../../etc/passwd"}),
    Case(CODE, "an interval below a second", "InvalidOption", "schedule nightly: every: expected at least 1 s, got 0.5", {"every": 0.5}),
    Case(CODE, "an interval that is NaN", "InvalidOption", "schedule nightly: every: expected between 0 and 10 years, got nan", {"every": float("nan")}),
    Case(CODE, "a naive datetime", "InvalidOption", "schedule nightly: at: expected a datetime with a time zone, such as datetime(2026, 7, 1, tzinfo=UTC), got …", {"at": datetime(2027, 1, 1)}),  # noqa: DTZ001
    Case(CODE, "an end before the beginning", "InvalidOption", "schedule nightly: ends_at: 2099-12-31T00:00:00+00:00 lies before starts_at, 2100-01-01T00:00:00+00:00", {"every": 60, "starts_at": NEW_YEAR, "ends_at": NEW_YEAR - timedelta(days=1)}),
    Case(CODE, "an option that is misspelt", "InvalidOption", "schedule nightly: overlapp: there is no such option, did you mean overlap?", {"every": 60, "overlapp": "skip"}),
    Case(CODE, "args that the task does not take", "InvalidArgs", "schedule nightly: task report: args.user_id: expected `int`, got `str`", {"every": 60, "args": {"user_id": "7"}}),
    Case(CODE, "an arg that is missing", "InvalidArgs", "schedule nightly: task report: argument user_id is missing (it takes user_id)", {"every": 60, "args": {}}),
)  # fmt: skip


@pytest.fixture
def app() -> pgqueue.App:
    return pgqueue.App(settings=Settings(), name="shop")


@pytest.fixture
def report(app: pgqueue.App) -> Any:
    @app.task(name="report")
    def report(user_id: int) -> None: ...

    return report


@pytest.mark.parametrize("case", DEFINED, ids=Case.id)
def test_a_schedule_that_cannot_be_is_not_defined(case: Case, app: pgqueue.App, report: Any) -> None:
    with pytest.raises(PgqueueError) as caught:
        app.schedule("nightly", report, **{"args": {"user_id": 7}, **case.input})
    case.holds(caught.value)
    assert not app.schedules


TWICE = table(
    "schedules",
    Case(CODE, "two definitions of one name", "ConfigurationError", "two schedules are called nightly: the one of task report, every 1m, and the one of task report, @daily UTC. Give one of them another name=…"),
)  # fmt: skip


def test_a_name_is_defined_once(app: pgqueue.App, report: Any) -> None:
    app.schedule("nightly", report, args={"user_id": 7}, every=60)
    with pytest.raises(PgqueueError) as caught:
        app.schedule("nightly", report, args={"user_id": 8}, cron="@daily")
    TWICE[0].holds(caught.value)
    assert len(app.schedules) == 1


# In the database ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def database(databases: Databases) -> Iterator[str]:
    dsn = databases.create()
    yield dsn
    databases.drop(dsn)


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with open_session(database) as connection, connection.transaction(force_rollback=True):
        yield connection


SQL = "pgqueue.schedule"
CALLED = table(
    "schedules",
    Case(SQL, "no timing", "PQ001", "schedule nightly: no timing", "'nightly', 't'"),
    Case(SQL, "two timings", "PQ001", "schedule nightly: cron, every: given together", "'nightly', 't', cron => '@daily', every => 60"),
    Case(SQL, "three fields", "PQ001", "schedule nightly: cron: '* * *' has 3 fields", "'nightly', 't', cron => '* * *'"),
    Case(SQL, "a zone that there is not", "PQ001", "schedule nightly: tz: there is no time zone 'Mars/Olympus'", "'nightly', 't', cron => '@daily', tz => 'Mars/Olympus'"),
    Case(SQL, "a name with a quote", "PQ001", "schedule it's: name: 'it''s' is not a name", "'it''s', 't', every => 60"),
    Case(SQL, "an interval that is NaN", "PQ001", "schedule nightly: every: NaN is out of range", "'nightly', 't', every => 'NaN'"),
    Case(SQL, "args that are a list", "PQ003", "schedule nightly: args: expected a JSON object, got a JSON array", "'nightly', 't', '[]', every => 60"),
    Case(SQL, "a time that has passed", "PQ001", "schedule nightly: at: 2001-02-03 04:05:00+00 has passed", "'nightly', 't', at => '2001-02-03 04:05 UTC'"),
)  # fmt: skip


@pytest.mark.parametrize("case", CALLED, ids=Case.id)
def test_a_schedule_that_cannot_be_is_not_stored(case: Case, connection: psycopg.Connection) -> None:
    before = everything(connection)
    with pytest.raises(psycopg.Error) as caught, connection.transaction():
        connection.execute(f"select {case.where}({case.input})")  # type: ignore[call-overload]
    refused(case, caught.value)
    assert everything(connection) == before


def test_a_task_that_nobody_has_may_be_scheduled(connection: psycopg.Connection) -> None:
    """The database knows no tasks: its jobs wait for a worker that has it, and the workers that lack it are named in the views."""
    assert call(connection, "schedule", name="s", task="nobody.has_this", every=60.0) == "created"
    (ran,) = call(connection, "run_schedule", name="s")
    assert ran["outcome"] == "by_hand"
    assert (
        scalar(connection, "select task from pgqueue.ready_jobs where id = %s", ran["job_id"])
        == "nobody.has_this"
    )


ADD = "pgqueue schedules add"
TYPED = table(
    "schedules",
    Case(ADD, "a cron expression that never comes", "exit code 2", "cron: '0 0 30 2 *' never comes: none of its months has such a day", ["--cron", "0 0 30 2 *"]),
    Case(ADD, "a zone that is misspelt", "exit code 2", "tz: there is no zone 'Europe/Pariss', did you mean Europe/Paris?", ["--cron", "@daily", "--tz", "Europe/Pariss"]),
    Case(ADD, "no timing", "exit code 2", "no timing: give one of cron, every, at, at_startup", []),
    Case(ADD, "args that are no JSON", "exit code 2", "args: not JSON: …", ["{", "--every", "5s"]),
    Case(ADD, "an interval below a second", "exit code 2", "every: expected at least 1 s, got '0.5s'", ["--every", "0.5s"]),
)  # fmt: skip


@pytest.mark.parametrize("case", TYPED, ids=Case.id)
def test_a_schedule_that_cannot_be_is_not_added(case: Case, database: str) -> None:
    result = CliRunner().invoke(main, ["--dsn", database, "schedules", "add", "nightly", "t", *case.input])
    assert f"exit code {result.exit_code}" == case.error
    assert case.says(result.stderr.removeprefix("error: ").removesuffix("\n")), result.stderr
    with open_session(database) as connection:
        assert scalar(connection, "select count(*) from pgqueue.schedules") == 0
