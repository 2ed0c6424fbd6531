"""Queues as rows: what operators can set, what is refused, pauses with an end, attempts by default."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql.acting import (
    Connect,
    call,
    claim,
    enqueue,
    enqueue_many,
    everything,
    register,
    row_of,
    rows,
    scalar,
)

Session = psycopg.Connection


def put(connection: Session, queue: str = "mail", **settings: Any) -> Any:
    return call(connection, "set_queue", queue=queue, settings=Jsonb(settings))


ALL: dict[str, Any] = {
    "worker_limit": 5, "max_attempts": 3, "timeout": 30.5, "target_wait": 60, "keep_completed": 86400, "keep_cancelled": "2 days",
    "keep_dead": "none", "max_completed": 10, "max_cancelled": 0, "max_dead": 7, "max_depth": 1000, "max_oldest": 300,
    "max_failure_ratio": 0.05, "tolerated_dead": 0,
}  # fmt: skip


def test_settings_are_set_changed_and_taken_back_one_by_one(connection: Session) -> None:
    told = put(connection, **ALL)
    stored = {"keep_completed": "24:00:00", "keep_cancelled": "2 days", "keep_dead": "00:00:00"}
    assert told == ALL | stored
    (row,) = rows(connection, "queues")
    assert (row["name"], row["worker_limit"], row["timeout"]) == ("mail", 5, 30.5)
    assert (row["keep_completed"], row["keep_dead"]) == (timedelta(days=1), timedelta(0))
    assert put(connection, worker_limit=None, timeout=1) == {
        name: value for name, value in (told | {"timeout": 1}).items() if name != "worker_limit"
    }
    assert call(connection, "set_queue", queue="mail", settings=Jsonb(dict.fromkeys(ALL))) == {}
    (row,) = rows(connection, "queues")
    assert [value for name, value in row.items() if name != "name" and value is not None] == []


def test_settings_and_pauses_leave_each_other_alone(connection: Session) -> None:
    put(connection, timeout=1)
    call(connection, "pause", queue="mail")
    put(connection, timeout=2)
    (row,) = rows(connection, "queues")
    assert row["paused_at"] is not None
    call(connection, "resume", queue="mail")
    (row,) = rows(connection, "queues")
    assert (row["paused_at"], row["timeout"]) == (None, 2)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"limit": 5}, "settings: limit is none"),
        ({"name": "x"}, "settings: name is none"),
        ({"paused_at": "now"}, "settings: paused_at is none"),
        ({"worker_limit": 0}, "settings of mail: queues limit leaves a slot"),
        ({"worker_limit": "many"}, "worker_limit: invalid input syntax"),
        ({"worker_limit": 2.5}, "worker_limit: invalid input syntax"),
        ({"worker_limit": 10**12}, "worker_limit: value .* out of range"),
        ({"worker_limit": {}}, "worker_limit: "),
        ({"worker_limit": [1]}, "worker_limit: "),
        ({"max_attempts": 32768}, "settings of mail: queues attempts that a job can have"),
        ({"timeout": 0}, "settings of mail: queues times are positive and finite"),
        ({"timeout": "Infinity"}, "settings of mail: queues times are positive and finite"),
        ({"timeout": "soon"}, "timeout: invalid input syntax"),
        ({"keep_dead": "-1 day"}, "settings of mail: queues keep for no negative time"),
        ({"keep_dead": -1}, "settings of mail: queues keep for no negative time"),
        ({"keep_dead": "for ever"}, "keep_dead: invalid input syntax"),
        ({"keep_dead": 1e300}, "keep_dead: interval out of range"),
        ({"max_dead": -1}, "settings of mail: queues keep no negative number"),
        ({"max_depth": -1}, "settings of mail: queues depth is no negative number"),
        ({"max_failure_ratio": 1.5}, "settings of mail: queues failure ratio is between 0 and 1"),
        ({"max_failure_ratio": "NaN"}, "settings of mail: queues failure ratio is between 0 and 1"),
        ({"max_failure_ratio": "5%"}, "max_failure_ratio: invalid input syntax"),
        ({"tolerated_dead": -1}, "settings of mail: queues tolerate no negative number"),
        ([], "settings: expected a JSON object"),
        (None, "settings: expected a JSON object"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    settings: Any, says: str, connection: Session
) -> None:
    put(connection, timeout=1)
    before = everything(connection)
    with pytest.raises(psycopg.Error, match=says) as error:
        call(connection, "set_queue", queue="mail", settings=Jsonb(settings))
    assert error.value.sqlstate == "PQ001"
    assert error.value.diag.message_hint
    assert everything(connection) == before


@pytest.mark.parametrize("queue", ["", "a'b", "x" * 101, "a*", "a\nb"])
@pytest.mark.parametrize("verb", ["set_queue", "pause"])
def test_a_queue_that_has_no_name_has_no_settings(verb: str, queue: str, connection: Session) -> None:
    given: dict[str, Any] = {"settings": Jsonb({})} if verb == "set_queue" else {}
    with pytest.raises(psycopg.Error, match="is not a name") as error:
        call(connection, verb, queue=queue, **given)
    assert error.value.sqlstate == "PQ001"


def test_supervisors_are_told_of_what_concerns_them(connection: Session, connect: Connect) -> None:
    listener = connect()
    listener.execute("listen pgqueue_upkeep")
    put(connection, keep_dead="1 day")
    put(connection, worker_limit=3)
    put(connection, timeout=None)
    heard = [told.payload for told in listener.notifies(timeout=5, stop_after=2)]
    assert heard == ["queues", "queues"]
    connection.execute("set pgqueue.notify = off")
    put(connection, worker_limit=4)
    connection.execute("reset pgqueue.notify")
    assert list(listener.notifies(timeout=0.1)) == []


def test_what_concerns_workers_is_read_for_the_queues_asked_for(connection: Session) -> None:
    put(connection, worker_limit=3, keep_dead=1)
    put(connection, "other", timeout=1)
    put(connection, "third", keep_dead=1)
    assert call(connection, "queue_settings", queues=["mail", "third", "none"]) == {"mail": {"limit": 3}}
    rounds = {"worker_ids": [], "round_seconds": 1, "overdue_seconds": 2, "hears": True}
    (done,) = call(connection, "upkeep", supervisor_id=1, queues=["mail", "other"], **rounds)
    assert done["queue_settings"] == {"mail": {"limit": 3}, "other": {"timeout": 1}}


# Pauses -------------------------------------------------------------------------------------------------


def upkeep(connection: Session) -> None:
    rounds = {"worker_ids": [], "queues": ["mail"], "round_seconds": 1, "overdue_seconds": 2, "hears": True}
    (done,) = call(connection, "upkeep", supervisor_id=1, **rounds)
    assert (done["led"], done["problems"]) == (True, [])


def test_a_pause_ends_when_its_time_has_come(connection: Session, connect: Connect) -> None:
    worker = register(connection, "mail")
    call(connection, "fall_asleep", worker_id=worker, queues=["mail"])
    listener = connect()
    listener.execute(f"listen pgqueue_{worker}")
    connection.execute("select pgqueue.pause('mail', now() + interval '1 hour')")
    call(connection, "pause", queue="for ever")
    id = enqueue(connection, queue="mail")
    list(listener.notifies(timeout=1, stop_after=1))  # of the enqueue
    upkeep(connection)
    assert claim(connection, worker, queues=["mail"]) == []
    connection.execute(
        "update pgqueue.queues set resumes_at = now() - interval '1 ms' where name = 'mail'"
    )  # the row is moved
    upkeep(connection)
    assert [told.channel for told in listener.notifies(timeout=5, stop_after=1)] == [f"pgqueue_{worker}"]
    assert [job.id for job in claim(connection, worker, queues=["mail"])] == [id]
    paused = "select array_agg(name) from pgqueue.queues where paused_at is not null"
    assert scalar(connection, paused) == ["for ever"]


def test_the_last_word_on_a_pause_counts(connection: Session) -> None:
    connection.execute("select pgqueue.pause('mail', now() + interval '1 hour')")
    since = rows(connection, "queues")[0]["paused_at"]
    call(connection, "pause", queue="mail")
    (row,) = rows(connection, "queues")
    assert (row["paused_at"], row["resumes_at"]) == (since, None)
    connection.execute("select pgqueue.pause('mail', now() + interval '1 hour')")
    call(connection, "resume", queue="mail")
    (row,) = rows(connection, "queues")
    assert (row["paused_at"], row["resumes_at"]) == (None, None)


@pytest.mark.parametrize("until", ["2020-01-01", "infinity"])
def test_a_pause_ends_in_the_future(until: str, connection: Session) -> None:
    with pytest.raises(psycopg.Error, match="is not ahead") as error:
        call(connection, "pause", queue="mail", until=until)
    assert error.value.sqlstate == "PQ001"
    assert rows(connection, "queues") == []


# Attempts -----------------------------------------------------------------------------------------------


def test_a_queues_attempts_are_for_jobs_of_which_nobody_says(connection: Session) -> None:
    put(connection, max_attempts=2)
    put(connection, "other", timeout=2)
    keyed: dict[str, Any] = {"unique_key": "k", "options": {"unique": {"scope": "waiting"}}}
    ids = {
        enqueue(connection, queue="mail"): 2,
        enqueue(connection, queue="mail", delay=60): 2,
        enqueue(connection, queue="mail", **keyed): 2,
        enqueue(connection, queue="mail", max_attempts=5): 5,
        enqueue(connection, queue="other"): 5,
        enqueue(connection): 5,
    }
    jobs: list[dict[str, Any]] = [
        {"task": "t", "queue": "mail"},
        {"task": "t", "queue": "mail", "delay": 60},
        {"task": "t", "queue": "mail", "max_attempts": None, "unique_key": "x"},
        {"task": "t", "queue": "mail", "max_attempts": 5},
        {"task": "t", "queue": "other"},
        {"task": "t"},
    ]
    many, _ = enqueue_many(connection, jobs)
    ids |= dict(zip(many, [2, 2, 2, 5, 5, 5], strict=True))
    assert {id: row_of(connection, id)["max_attempts"] for id in ids} == ids
    put(connection, max_attempts=None)
    assert row_of(connection, enqueue(connection, queue="mail"))["max_attempts"] == 5


@pytest.mark.parametrize("jobs", [[1], ["x"], [{"task": "t", "queue": "mail"}, None]])
def test_a_bad_bulk_is_refused_as_ever_when_a_queue_has_attempts_of_its_own(
    jobs: Any, connection: Session
) -> None:
    def refusal() -> tuple[Any, Any]:
        with pytest.raises(psycopg.Error) as error:
            enqueue_many(connection, jobs)
        return error.value.sqlstate, error.value.diag.message_primary

    put(connection, max_attempts=2)
    with_one = refusal()
    connection.execute("select setval('pgqueue.attempts_set', 1, false)")
    assert with_one == refusal()
