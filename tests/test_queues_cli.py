"""`pgqueue queues` and `pgqueue workers`: what they list, and what they change."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgqueue import calls
from pgqueue.cli import main, queues
from pgqueue.drivers import run
from tests.sql.acting import call, claimed, enqueue, register, rows, scalar, where

Session = psycopg.Connection
Invoke = Callable[..., Result]


@pytest.fixture
def pgqueue(database: str) -> Invoke:
    """Runs `pgqueue …` on the test's database, as a program would: nobody can be asked."""

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--dsn", database, *arguments])

    return invoke


def told(result: Result, code: int = 0) -> Any:
    """The JSON document of a command that ended so."""
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


# List ---------------------------------------------------------------------------------------------------


def test_the_list_has_jobs_workers_and_settings(connection: Session, pgqueue: Invoke) -> None:
    assert pgqueue("queues", "list").stderr.startswith("no queue is known")
    register(connection, "mail", "line")
    enqueue(connection, queue="mail")
    enqueue(connection, queue="mail", delay=60)
    run(connection, calls.count_depths())
    assert pgqueue("queues", "set", "mail", "timeout=1m", "worker_limit=3", "keep_dead=none").exit_code == 0
    pgqueue("queues", "pause", "old")
    listed = {row["queue"]: row for row in told(pgqueue("queues", "list", "--json"))}
    assert list(listed) == ["line", "mail", "old"]
    mail = listed["mail"]
    assert (mail["ready"], mail["scheduled"], mail["workers"]) == (1, 1, 1)
    assert (mail["timeout_seconds"], mail["worker_limit"], mail["keep_dead_seconds"]) == (60, 3, 0)
    assert [row["is_paused"] for row in listed.values()] == [False, False, True]
    table = pgqueue("queues", "list")
    lines = {line.split()[0]: line for line in table.stdout.splitlines() if line.split()}
    assert "worker_limit=3, timeout=60 s, keep_dead=0 s" in lines["mail"]
    assert "paused" in lines["old"]
    assert table.stderr.startswith("counted at ")


# Pause and settings -------------------------------------------------------------------------------------


def test_a_queue_is_paused_and_resumed(connection: Session, pgqueue: Invoke) -> None:
    assert pgqueue("queues", "pause", "mail").stderr == (
        "until now no queue 'mail' is known: it has neither jobs, nor workers, nor settings\n"
        "mail is paused: pgqueue queues resume starts it again\n"
    )
    (row,) = rows(connection, "queues")
    assert (row["paused_at"] is not None, row["resumes_at"]) == (True, None)
    assert pgqueue("queues", "pause", "mail", "--until", "2h").exit_code == 0
    ahead = "select extract(epoch from resumes_at - now())::float8 from pgqueue.queues"
    assert 7100 < scalar(connection, ahead) <= 7200
    assert pgqueue("queues", "pause", "mail", "--until", "2100-01-01T09:00+00:00").exit_code == 0
    (row,) = rows(connection, "queues")
    assert row["resumes_at"] == datetime.fromisoformat("2100-01-01T09:00+00:00")
    assert pgqueue("queues", "resume", "mail").stderr == "mail is not paused\n"
    (row,) = rows(connection, "queues")
    assert (row["paused_at"], row["resumes_at"]) == (None, None)
    assert [row["verb"] for row in rows(connection, "audit")] == ["pause"] * 3 + ["resume"]


def test_settings_are_given_as_people_say_them(pgqueue: Invoke) -> None:
    result = pgqueue(
        "queues", "set", "mail", "keep_completed=1d", "keep_cancelled=90", "max_depth=10", "--json"
    )
    assert told(result)["settings"] == {
        "keep_completed": "24:00:00",
        "keep_cancelled": "00:01:30",
        "max_depth": 10,
    }
    assert told(pgqueue("queues", "limit", "mail", "4", "--json"))["settings"]["worker_limit"] == 4
    assert "worker_limit" not in told(pgqueue("queues", "limit", "mail", "none", "--json"))["settings"]
    result = pgqueue(
        "queues", "set", "mail", "keep_completed=default", "keep_cancelled=default", "max_depth=default"
    )
    assert (result.exit_code, result.stderr) == (0, "mail: the defaults\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["set", "mail", "timeout"], "Invalid value for NAME=VALUE: 'timeout': expected one of"),
        (["set", "mail", "paused=1"], "Invalid value for NAME=VALUE: 'paused=1': expected one of"),
        (["set", "mail", "max_depth=many"], "Invalid value for NAME=VALUE: 'max_depth=many': expected a"),
        (["set", "mail", "timeout=soon"], "timeout: expected seconds"),
        (["set", "mail", "timeout=0"], "settings of mail: queues times are positive and finite"),
        (["set", "mail"], "Missing argument 'NAME=VALUE...'"),
        (["limit", "mail", "0"], "Invalid value for N: '0': expected 1 or more, or none"),
        (["limit", "mail", "-1"], "No such option"),
        (["pause", "mail", "--until", "later"], "Invalid value for --until: 'later': expected a time"),
        (["pause", "mail", "--until", "2020-01-01"], "until: 2020-01-01"),
        (["pause", "a'b"], "queue: 'a''b' is not a name"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    arguments: list[str], says: str, pgqueue: Invoke, connection: Session
) -> None:
    result = pgqueue("queues", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {says}")
    assert rows(connection, "queues") == []


# Drain and purge ----------------------------------------------------------------------------------------


def test_a_drain_waits_until_nothing_is_ready_or_runs(
    connection: Session, pgqueue: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = register(connection)
    job = claimed(connection, worker)
    enqueue(connection, delay=60)
    enqueue(connection, queue="another")
    looks = 0

    def complete(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            assert call(connection, "complete", ids=[job.id], leases=[job.lease]) == [job.id]

    monkeypatch.setattr(time, "sleep", complete)
    result = pgqueue("queues", "drain", "default")
    assert (result.exit_code, looks) == (0, 2)
    assert result.stderr.splitlines() == [
        "0 ready, 1 running, 1 scheduled",
        "0 ready, 0 running, 1 scheduled",
        "default is empty",
    ]


def test_a_drain_gives_up_after_its_time(
    connection: Session, pgqueue: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "LOOK_SECONDS", 0.01)
    enqueue(connection, delay=60)
    assert told(pgqueue("queues", "drain", "default", "--json"))["empty"]
    began = time.monotonic()
    result = pgqueue("queues", "drain", "default", "--scheduled", "--timeout", "100ms", "--json")
    assert told(result, 1) == {
        "queue": "default", "empty": False, "ready": 0, "scheduled": 1, "blocked": 0, "running": 0
    }  # fmt: skip
    assert time.monotonic() - began < 5


def test_a_drain_of_a_paused_queue_would_never_end(connection: Session, pgqueue: Invoke) -> None:
    enqueue(connection)
    call(connection, "pause", queue="default")
    result = pgqueue("queues", "drain", "default")
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "error: default is paused, so nothing of it is claimed: resume or purge it\n"
    )


def test_a_purge_deletes_what_waits(connection: Session, pgqueue: Invoke) -> None:
    worker = register(connection)
    running = claimed(connection, worker).id
    other = enqueue(connection, queue="other")
    waiting = [enqueue(connection), enqueue(connection, delay=60)]
    refused = pgqueue("queues", "purge", "default")
    assert refused.exit_code == 2
    assert "to delete 2 jobs takes consent" in refused.stderr
    assert told(pgqueue("queues", "purge", "default", "--yes", "--json")) == {
        "queue": "default",
        "deleted": 2,
    }
    assert [where(connection, id) for id in waiting] == [[], []]
    assert [where(connection, id) for id in (running, other)] == [["running_jobs"], ["ready_jobs"]]
    (row,) = rows(connection, "audit")
    assert (row["verb"], row["jobs"], row["filter"]) == ("delete_jobs", 2, "purge of queue default")


# Workers ------------------------------------------------------------------------------------------------


def test_workers_are_listed_and_asked_to_stop(connection: Session, pgqueue: Invoke) -> None:
    assert pgqueue("workers", "list").stderr == "no workers are registered\n"
    ids = [register(connection, "mail"), register(connection)]
    listed = told(pgqueue("workers", "list", "--json"))
    assert [(row["id"], row["queues"]) for row in listed] == [(ids[0], "mail"), (ids[1], "default")]
    assert "mail" in pgqueue("workers", "list").stdout
    assert told(pgqueue("workers", "stop", str(ids[0]), "4711", "--json"), 1) == {
        "asked": ids[:1],
        "missing": [4711],
    }
    assert pgqueue("workers", "stop", "--all").stderr == "2 asked to stop\n"
    assert [row["worker_id"] for row in rows(connection, "stop_requests")] == ids
    assert [row["target"] for row in rows(connection, "audit")] == [str(ids[0]), *map(str, ids)]
    for arguments in ([], ["1", "--all"]):
        assert pgqueue("workers", "stop", *arguments).stderr.startswith("error: name the ids of workers, or")
