"""Who may call what: every function of the schema is called by every role, and by one that has none."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from tests.sql.acting import Connect

PRODUCER = {
    "protocol", "enqueue", "enqueue_many", "look", "wait_for", "endings_under_way", "events_horizon", "read_events",
}  # fmt: skip
WORKER = PRODUCER | {
    "register", "queue_settings", "hold_session", "heartbeat", "claim", "forget_claim", "forget_unheld", "complete", "complete_with_results",
    "fail", "snooze", "release", "lack_task", "step_result", "record_step", "note", "note_progress", "note_reports",
    "end_cancelled", "end_expired", "cancel_requests", "fall_asleep", "writers", "wake_up", "upkeep", "rescue",
    "crashed_jobs", "promote", "prove_floors", "retain", "keep_time", "resign", "due_schedules", "tick", "sync_schedules",
    "count_depths", "roll_up", "summarize_history", "drop_day", "trim_history",
}  # fmt: skip
ADMIN = WORKER | {
    "cancel", "cancel_matching", "retry", "delete_jobs", "replay", "discard", "find_dead", "find_jobs", "job_record",
    "find_waiting", "pause", "resume", "set_queue", "count_queue", "stats", "lane_heads", "stop_workers", "schedule", "unschedule",
    "pause_schedule", "resume_schedule", "run_schedule", "schedule_record", "count_sealed", "find_sealed", "reseal",
}  # fmt: skip
MAY_CALL = {
    "pgqueue_producer": PRODUCER,
    "pgqueue_worker": WORKER,
    "pgqueue_monitor": set[str](),
    "pgqueue_admin": ADMIN,
    "pg_read_all_stats": set[str](),  # a role that has nothing to do with us
}
FUNCTIONS = """
select p.proname::text, array(select format_type(a.type, null)
                                from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality as a (type, n)
                               where coalesce(p.proargmodes[a.n], 'i') in ('i', 'b') order by a.n) as types
  from pg_proc as p where p.pronamespace = 'pgqueue'::regnamespace order by 1
"""


@pytest.fixture
def session(connect: Connect) -> Iterator[psycopg.Connection]:
    """A session in a transaction that is rolled back: a call that is allowed may do something."""
    connection = connect(autocommit=False)
    connection.execute("set local lock_timeout = '5s'; set local pgqueue.notify = off")
    yield connection
    connection.rollback()


@pytest.mark.parametrize("role", MAY_CALL)
def test_a_role_may_call_its_functions_and_no_other(role: str, session: psycopg.Connection) -> None:
    """With nulls for all arguments: whatever that leads to, a function that may not be called says so first."""
    functions = session.execute(FUNCTIONS).fetchall()
    assert {name for name, _ in functions} >= ADMIN
    session.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
    called: set[str] = set()
    for name, types in functions:
        arguments = sql.SQL(", ".join(f"null::{kind}" for kind in types))
        session.execute("savepoint before")
        try:
            session.execute(
                sql.SQL("select pgqueue.{}({})").format(sql.Identifier(str(name)), arguments)
            ).fetchall()
        except psycopg.errors.InsufficientPrivilege:
            pass
        except psycopg.Error:
            called.add(str(name))
        else:
            called.add(str(name))
        session.execute("rollback to savepoint before")
    assert called == MAY_CALL[role]
