"""What operators do to jobs in SQL: retry, delete_jobs, replay with other args; and that the audit has all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgqueue import calls
from pgqueue.drivers import run
from tests.sql.acting import (
    Connect,
    call,
    claim,
    claimed,
    count,
    enqueue,
    pid,
    register,
    row_of,
    rows,
    scalar,
    where,
)
from tests.support import wait_until

Session = psycopg.Connection
Beside = Callable[..., Future[Any]]


@pytest.fixture
def worker(connection: Session) -> int:
    return register(connection)


def fail(connection: Session, worker: int, delay: float | None = None, **options: Any) -> int:
    """A job whose attempt failed: dead, or with a delay scheduled."""
    job = claimed(connection, worker, **options)
    failure = {"id": job.id, "lease": job.lease, "error": "E", "fingerprint": "f", "delay": delay}
    assert call(connection, "fail", failures=Jsonb([failure])) == [job.id]
    return job.id


def audit(connection: Session) -> list[tuple[Any, ...]]:
    return [(row["verb"], row["target"], row["jobs"]) for row in rows(connection, "audit")]


# Retry --------------------------------------------------------------------------------------------------


def test_a_retry_makes_scheduled_jobs_ready_and_leaves_all_others(connection: Session, worker: int) -> None:
    later, failed = enqueue(connection, delay=60, priority=2), fail(connection, worker, 60)
    others = [fail(connection, worker), claimed(connection, worker).id, enqueue(connection)]
    before = [row_of(connection, id) for id in others]
    assert call(connection, "retry", ids=[failed, later, *others, 4711]) == [later, failed]
    assert [row_of(connection, id) for id in others] == before
    for id, lane, attempt in ((later, 5, 0), (failed, 11, 1)):
        job = row_of(connection, id)
        assert (job["table"], job["lane"], job["attempt"]) == ("ready_jobs", lane, attempt)
        assert scalar(connection, "select run_at <= now() from pgqueue.ready_jobs where id = %s", id)
    assert call(connection, "retry", ids=[later]) == []
    assert call(connection, "retry", ids=[]) == []


def test_a_retry_wakes_who_sleeps(connection: Session, worker: int, connect: Connect) -> None:
    listener = connect()
    listener.execute(f"listen pgqueue_{worker}")
    id = enqueue(connection, delay=60)
    call(connection, "fall_asleep", worker_id=worker, queues=["default"])
    call(connection, "retry", ids=[id])
    assert [n.channel for n in listener.notifies(timeout=5, stop_after=1)] == [f"pgqueue_{worker}"]


def test_a_retry_waits_for_nobody_who_holds_the_job(connection: Session, connect: Connect) -> None:
    held, free = enqueue(connection, delay=60), enqueue(connection, delay=60)
    holder = connect(autocommit=False)
    holder.execute("select from pgqueue.scheduled_jobs where id = %s for update", [held])
    assert call(connect(settings="-c lock_timeout=1s"), "retry", ids=[held, free]) == [free]


# Delete -------------------------------------------------------------------------------------------------


def test_jobs_in_every_state_but_running_are_deleted_with_all_that_is_on_record(
    connection: Session, worker: int
) -> None:
    running = claimed(connection, worker, unique_key="k")
    how = {"unique": {"on_conflict": "follow_up"}}
    blocked = enqueue(connection, unique_key="k", options=how)
    assert where(connection, blocked) == ["blocked_jobs"]
    done = claimed(connection, worker)
    call(connection, "record_step", job_id=done.id, lease=done.lease, name="s", result=Jsonb(1))
    told = [{"id": done.id, "lease": done.lease, "lines": [{"level": "info", "text": "x"}]}]
    call(connection, "note_reports", reports=Jsonb(told))
    assert call(connection, "complete", ids=[done.id], leases=[done.lease]) == [done.id]
    ids = [
        blocked,
        done.id,
        fail(connection, worker),
        fail(connection, worker, 60),
        enqueue(connection, delay=60),
        enqueue(connection),
    ]
    assert count(connection, "job_failures", "job_reports", "job_steps") == 4
    gone = call(connection, "delete_jobs", ids=[*ids, running.id, 4711, None])
    assert {row["id"]: row["outcome"] for row in gone} == {
        **dict.fromkeys(ids, "deleted"),
        running.id: "running",
    }
    assert scalar(connection, "select array_agg(id) from pgqueue_bi.jobs") == [running.id]
    assert count(connection, "job_failures", "job_reports", "job_steps") == 0
    assert call(connection, "complete", ids=[running.id], leases=[running.lease]) == [running.id]
    assert call(connection, "delete_jobs", ids=[running.id]) == [{"id": running.id, "outcome": "deleted"}]


@pytest.mark.parametrize("delay", [0, 60])
def test_a_deleted_jobs_unique_key_is_free(delay: float, connection: Session) -> None:
    id = enqueue(connection, unique_key="k", delay=delay)
    other = enqueue(connection, unique_key="other")
    call(connection, "delete_jobs", ids=[id])
    again = call(connection, "enqueue", task="t", unique_key="k")[0]
    assert (again["created"], again["id"] != id) == (True, True)
    assert call(connection, "enqueue", task="t", unique_key="other")[0]["id"] == other


def test_who_waits_for_a_deleted_job_is_told(connection: Session, connect: Connect) -> None:
    listener, id = connect(), enqueue(connection)
    channel = "pgqueue_wait_0123456789abcdef"
    listener.execute(f"listen {channel}")
    call(connection, "wait_for", ids=[id], channel=channel)
    call(connection, "delete_jobs", ids=[id])
    assert str(id) in (told.payload for told in listener.notifies(timeout=5))


def test_a_job_that_is_claimed_while_it_is_deleted_runs_and_is_left_alone(
    connection: Session, connect: Connect, beside: Beside, worker: int
) -> None:
    id, claiming, deleting = enqueue(connection), connect(autocommit=False), connect()
    (job,) = claim(claiming, worker)
    told = beside(call, deleting, "delete_jobs", ids=[id])
    waits = "select wait_event_type from pg_stat_activity where pid = %s"
    wait_until(
        lambda: scalar(connection, waits, pid(deleting)) == "Lock", 10, "the delete waits for the claim"
    )
    claiming.commit()
    assert told.result(10) == [{"id": id, "outcome": "running"}]
    assert call(connection, "complete", ids=[id], leases=[job.lease]) == [id]


def test_a_job_that_is_promoted_while_it_is_deleted_is_deleted(
    connection: Session, connect: Connect, beside: Beside
) -> None:
    id, promoting, deleting = enqueue(connection, delay=60), connect(autocommit=False), connect()
    call(promoting, "retry", ids=[id])
    told = beside(call, deleting, "delete_jobs", ids=[id])
    waits = "select wait_event_type from pg_stat_activity where pid = %s"
    wait_until(
        lambda: scalar(connection, waits, pid(deleting)) == "Lock", 10, "the delete waits for the move"
    )
    promoting.commit()
    assert told.result(10) == [{"id": id, "outcome": "deleted"}]
    assert where(connection, id) == []


# Replay with other args ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({}, {"a": 1, "b": {"c": 2}}),
        ({"new_args": {"d": 3}}, {"d": 3}),
        ({"changed_args": {"b": 3}}, {"a": 1, "b": 3}),
        ({"new_args": {"d": 3}, "changed_args": {"e": 4}}, {"d": 3, "e": 4}),
    ],
)
def test_letters_are_replayed_with_the_args_that_are_given(
    edits: dict[str, Any], expected: dict[str, Any], connection: Session, worker: int
) -> None:
    id = fail(connection, worker, args='{"a": 1, "b": {"c": 2}}')
    assert call(connection, "replay", ids=[id], **edits) == [id]
    assert row_of(connection, id)["args"] == expected


@pytest.mark.parametrize("edit", ["new_args", "changed_args"])
def test_args_that_are_no_object_are_refused(edit: str, connection: Session, worker: int) -> None:
    id = fail(connection, worker)
    with pytest.raises(psycopg.Error, match="expected a JSON object of args, got a JSON array") as error:
        call(connection, "replay", ids=[id], **{edit: Jsonb([1])})
    assert error.value.sqlstate == "PQ003"
    assert where(connection, id) == ["dead_letters"]


# The audit ----------------------------------------------------------------------------------------------


def test_every_operators_function_that_changes_something_is_in_the_audit(
    connection: Session, worker: int
) -> None:
    """All that only operators may call, but those that only read."""
    dead = [fail(connection, worker) for _ in range(2)]
    ready = [enqueue(connection) for _ in range(3)]
    old, new = {"pgqueue.encrypted": "1.old.AAAA"}, {"pgqueue.encrypted": "1.new.AAAA"}
    sealed = enqueue(connection, args=Jsonb(old), delay=60)
    acts: dict[str, dict[str, Any]] = {
        "cancel": {"ids": ready[:1]},
        "cancel_matching": {"of_queue": "default", "max_jobs": 1},
        "delete_jobs": {"ids": ready[2:]},
        "retry": {"ids": [enqueue(connection, delay=60)]},
        "replay": {"ids": dead[:1]},
        "discard": {"ids": dead[1:]},
        "pause": {"queue": "mail"},
        "resume": {"queue": "mail"},
        "set_queue": {"queue": "mail", "settings": Jsonb({"timeout": 7})},
        "stop_workers": {"ids": [worker]},
        "schedule": {"name": "s", "task": "t", "every": 60},
        "pause_schedule": {"name": "s"},
        "resume_schedule": {"name": "s"},
        "run_schedule": {"name": "s"},
        "unschedule": {"name": "s"},
        "reseal": {"place": "scheduled", "items": Jsonb([{"id": sealed, "old": old, "new": new}])},
    }
    granted = """
        select p.proname::text from pg_proc as p
         where p.pronamespace = 'pgqueue'::regnamespace and p.provolatile = 'v'
           and has_function_privilege('pgqueue_admin', p.oid, 'execute')
           and not has_function_privilege('pgqueue_worker', p.oid, 'execute')"""
    assert {name for (name,) in connection.execute(granted).fetchall()} == set(acts)
    for function, arguments in acts.items():
        connection.execute("delete from pgqueue.audit")
        call(connection, function, **arguments)
        (row,) = rows(connection, "audit")
        verb = "cancel" if function == "cancel_matching" else function
        assert (row["verb"], row["role"]) == (verb, scalar(connection, "select session_user::text"))
        target = (
            str(worker)
            if function == "stop_workers"
            else arguments.get("name") or arguments.get("queue") or arguments.get("place")
        )
        assert row["target"] == target
        assert row["jobs"] == (1 if row["target"] is None else None)


def test_what_changes_nothing_is_not_in_the_audit(connection: Session) -> None:
    id = enqueue(connection)
    for verb in ("retry", "replay", "discard", "delete_jobs", "cancel"):
        call(connection, verb, ids=[4711])
    call(connection, "retry", ids=[id])
    for verb in ("unschedule", "pause_schedule", "resume_schedule", "run_schedule"):
        call(connection, verb, name="none")
    call(connection, "schedule", name="s", task="t", every=60)
    connection.execute("delete from pgqueue.audit")
    call(connection, "schedule", name="s", task="t", every=60)
    call(connection, "reseal", place="ready", items=Jsonb([{"id": id, "old": {"a": 1}, "new": {"a": 1}}]))
    assert audit(connection) == []


def test_an_audit_says_who_acted_and_how_jobs_were_chosen(connection: Session, connect: Connect) -> None:
    ids = [
        enqueue(connection, options={"tags": ["eu"]}, args='{"card": "secret-of-theirs"}') for _ in range(30)
    ]
    session = connect()
    session.execute("set role pgqueue_admin; set pgqueue.actor = 'anna'; set pgqueue.filter = 'all of them'")
    call(
        session,
        "cancel_matching",
        of_tag="eu",
        of_args={"card": "secret-of-theirs"},
        max_jobs=25,
        reason="enough",
    )
    call(session, "cancel", ids=ids[25:])
    call(session, "pause", queue="mail")
    by_filter, by_id, pause = rows(connection, "audit")
    assert by_filter["role"] == scalar(session, "select session_user::text")
    assert (by_filter["actor"], by_filter["jobs"], by_filter["job_ids"]) == ("anna", 25, ids[:20])
    assert json.loads(by_filter["filter"]) == {"of_tag": "eu", "of_args": ["card"]}
    assert by_filter["details"] == {"reason": "enough"}
    assert "secret-of-theirs" not in str(rows(connection, "audit"))
    assert (by_id["jobs"], by_id["filter"]) == (5, "all of them")
    assert (pause["filter"], pause["target"]) == (None, "mail")


def test_what_is_rolled_back_is_not_in_the_audit(connection: Session, connect: Connect) -> None:
    id, session = enqueue(connection), connect(autocommit=False)
    call(session, "cancel", ids=[id])
    assert len(audit(session)) == 1
    session.rollback()
    assert audit(connection) == []


def test_a_change_by_an_operator_makes_the_next_count_due(connection: Session, worker: int) -> None:
    """A discard moves no job into a lane: without it being said, the depth would stay as it was."""
    id = fail(connection, worker)
    run(connection, calls.count_depths())
    connection.execute("update pgqueue.depth_count set counted_at = now() - interval '1 minute', seconds = 0")
    assert not scalar(connection, "select pgqueue.depths_due()")
    call(connection, "discard", ids=[id])
    assert scalar(connection, "select pgqueue.depths_due()")
