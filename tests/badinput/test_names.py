"""Names that look like something else name exactly themselves: nothing is injected through a queue, task, tag, key, channel, schedule
or filter, in Python, SQL and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from pgqueue.app import App
from pgqueue.cli import main
from pgqueue.settings import Settings
from tests.sql.acting import call, claim, enqueue_many, open_session, register, rows, scalar
from tests.support import Databases

# No quotes, asterisks or control characters: those a queue's and a schedule's name cannot have.
PLAIN = (
    "a", "A", "a%", "a_", "_", "%", "%%", "a\\", "\\", ";--", "a;--", "/x x/", "$$", "$1", "{0}", "%s",
    "%(x)s", "{}", "\u2019", "\u02bc", "\u201c", "\uff07", " a", "a ", " ", "a b", "[a]", "[red]a[/red]", "a|b", "a,b", "a:b", "null", "NULL", "default",
    "pg_temp", "-", "--", "--yes", "-n", "0", "true", "\u00e9", "e\u0301", "\U0001f4a9", "public.a", "pgqueue.ready_jobs", "a" * 99, "x" * 100, "\u6f22" * 100,
)  # fmt: skip
QUOTED = (
    "'",
    "''",
    "a'",
    "'; drop schema pgqueue cascade; --",
    '"',
    'a"b',
    "*",
    "a*",
    "x' or '1'='1",
    "\\'",
    "E'\\x41'",
    "*/ select 1 /*",
)
NAMES = PLAIN + QUOTED


@pytest.fixture(scope="module")
def database(databases: Databases) -> Iterator[str]:
    """The DSN of a database with a job a name: it is the job's task, tag, unique key and arg, and where it can be its queue."""
    dsn = databases.create()
    with open_session(dsn) as connection:
        jobs = [
            {
                "task": name, "args": {name: name}, "queue": name if name in PLAIN else "default", "unique_key": name,
                "idempotency_key": name, "options": {"tags": [name]}, "delay": 3600,
            }
            for name in NAMES
        ]  # fmt: skip
        _, created = enqueue_many(connection, jobs)
        assert all(created)
        for name in PLAIN:
            call(connection, "schedule", name=name, task="t", every=60.0)
    yield dsn
    databases.drop(dsn)


@pytest.fixture(scope="module")
def module_session(database: str) -> Iterator[psycopg.Connection]:
    with open_session(database) as connection:
        yield connection


@pytest.fixture
def connection(module_session: psycopg.Connection) -> Iterator[psycopg.Connection]:
    with module_session.transaction(force_rollback=True):
        yield module_session


def found(connection: psycopg.Connection, **filters: Any) -> list[str]:
    """The tasks of the jobs that a filter finds."""
    ids = [row["id"] for row in call(connection, "find_jobs", **filters)]
    return sorted(row["task"] for row in rows(connection, "scheduled_jobs", "id = any(%s)", ids))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_filter_in_sql_finds_exactly_its_name(name: str, connection: psycopg.Connection) -> None:
    assert found(connection, of_task=name) == [name]
    assert found(connection, of_tag=name) == [name]
    assert found(connection, of_args=json.dumps({name: name})) == [name]
    if name in PLAIN:
        assert set(found(connection, of_queue=name)) == {name} | (set(QUOTED) if name == "default" else set())
        call(connection, "pause", queue=name)
        assert [row["name"] for row in rows(connection, "queues")] == [name]
        assert call(connection, "pause_schedule", name=name)
        assert [row["name"] for row in rows(connection, "schedules", "paused_at is not null")] == [name]
    again = call(connection, "enqueue", task=name, unique_key=name, idempotency_key=name)[0]
    assert again["created"] is False
    cancelled = call(connection, "cancel_matching", of_task=name)
    assert [row["id"] for row in cancelled] == [again["id"]]


TYPED = (
    "a%",
    "_",
    "\\",
    ";--",
    "$$",
    "%s",
    "--yes",
    "-n",
    "[red]a[/red]",
    "e\u0301",
    "'; drop schema pgqueue cascade; --",
    "*",
)


@pytest.mark.parametrize("name", TYPED, ids=ascii)
def test_a_filter_on_the_command_line_finds_exactly_its_name(name: str, database: str) -> None:
    def listed(option: str, value: str) -> set[str]:
        result = CliRunner().invoke(
            main, ["--dsn", database, "jobs", "list", "--json", f"{option}={value}", "-n", "999"]
        )
        assert result.exit_code == 0, result.output
        return {job["task"] for job in json.loads(result.stdout)}

    assert listed("--task", name) == {name}
    assert listed("--tag", name) == {name}


@pytest.mark.parametrize("name", [name for name in PLAIN if "\\" not in name], ids=ascii)
def test_python_enqueues_under_exactly_the_name(
    name: str, database: str, connection: psycopg.Connection
) -> None:
    """Of what SQL takes, Python refuses quotes, asterisks and backslashes in the name of a task (tests/badinput/test_enqueue.py)."""
    app = App(dsn=database, settings=Settings(), name="names")
    task = app.task(name=name)(lambda: None)
    job = task.using(queue=name, tags=[name], unique_key=f"of python {name}").enqueue(connection)
    (row,) = rows(connection, "ready_jobs", "id = %s", job.id)
    assert (row["task"], row["queue"], row["options"]["tags"]) == (name, name, [name])


def test_part_of_an_error_is_no_pattern(connection: psycopg.Connection) -> None:
    """`of_error` is a part of the text: a percent sign, an underscore and a backslash are themselves."""
    worker = register(connection)
    for text in ("100% of it", "100 of it", "a_b", "axb", "back\\slash"):
        connection.execute("select pgqueue.enqueue('t')")
        (job,) = claim(connection, worker)
        call(
            connection,
            "fail",
            failures=json.dumps([{"id": job.id, "lease": job.lease, "error": "E", "message": text}]),
        )

    def letters(part: str) -> list[str]:
        return sorted(row["message"] for row in call(connection, "find_dead", of_error=part))

    assert letters("100%") == ["100% of it"]
    assert letters("a_b") == ["a_b"]
    assert letters("\\") == ["back\\slash"]
    assert letters("%") == ["100% of it"]


@pytest.mark.parametrize(
    "channel",
    [
        "pgqueue_wait_0123456789abcdef; drop",
        "PGQUEUE_WAIT_0123456789ABCDEF",
        '"x"',
        "pgqueue_upkeep",
        "pgqueue_wait_0123456789abcdef\n",
    ],
)
def test_a_waiter_names_no_channel_but_its_own(channel: str, connection: psycopg.Connection) -> None:
    with pytest.raises(psycopg.Error, match="is not a waiter's") as refused, connection.transaction():
        call(connection, "wait_for", ids=[1], channel=channel)
    assert refused.value.sqlstate == "PQ001"
    assert scalar(connection, "select count(*) from pgqueue.waiters") == 0
