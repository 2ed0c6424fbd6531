"""Schedules under races, each arranged: somebody holds a row, or stops in the middle, when another one comes.

What holds in all of them: a due time makes one job, nobody waits for a leader that is stopped, and nothing is taken from
an app or a person whose schedule it is.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.plan import plan
from tests.sql.acting import (
    NEVER,
    STOP,
    Connect,
    Row,
    call,
    count,
    pid,
    rows,
    sabotaged,
    stopped,
)
from tests.sql.test_schedules import (
    clock,
    definition,
    due,
    history,
    lead,
    move,
    outcomes_of,
    schedule,
    stored,
    sync,
    tick,
)
from tests.support import release_when_waited_for, wait_for_lock_wait

Beside = Callable[..., Future[Any]]
IMPATIENT = "-c lock_timeout=1s"
"""Settings of a session that must not have to wait: if it has to, it fails."""
BEFORE_THE_JOB = ("    outcome := policy;\n", f"    outcome := policy;\n    perform {STOP};\n")
"""Stops a run before its job is made: the schedule's row is held."""

# Two leaders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_of_two_leaders_that_tick_the_same_due_time_one_does(
    connect: Connect, connection: psycopg.Connection, end: str
) -> None:
    one, two = connect(autocommit=False), connect(settings=IMPATIENT)
    read = due(connection)
    assert tick(one, read) == 1
    assert tick(two, read) is None  # at once, while the other one has not ended
    getattr(one, end)()
    assert tick(two, read) == (None if end == "commit" else 1)  # it was killed: nothing of it is left
    assert count(connection, "ready_jobs") == count(connection, "schedule_runs") == 1


def test_a_leader_that_was_stopped_in_the_middle_of_a_tick_is_in_nobodys_way(
    connect: Connect, connection: psycopg.Connection, beside: Beside
) -> None:
    """Another one ticks the others, and that one too when the first has died; if it wakes up instead, it has done it."""
    old, new, observer = connect(), connect(settings=IMPATIENT), connect()
    for name in ("a", "b"):
        due(connection, name)
    read = stored(connection, "a")
    with sabotaged(connection, "run_due", BEFORE_THE_JOB), stopped(connection):
        stopped_tick = beside(tick, old, read)
        wait_for_lock_wait(observer, pid(old))
        assert tick(new, read) is None
        assert tick(new, stored(connection, "b"), dues=[]) == 0
    assert stopped_tick.result() == 1
    assert tick(new, read) is None
    assert outcomes_of(connection, "a") == ["enqueued"]


def test_a_stale_plan_does_no_harm_after_another_leader_went_on(
    connect: Connect, connection: psycopg.Connection
) -> None:
    """Stopped between its look and its tick, with due times that have run since."""
    old, new = connect(), connect()
    due(connection, ago=5, every=2.0)
    (stale,) = run(old, calls.due_schedules())
    assert lead(new) >= 1
    ran = history(connection)
    assert run(old, calls.tick(stale, plan(stale))) is None
    assert history(connection) == ran


@pytest.mark.parametrize("careless", [False, True])
def test_many_leaders_at_once_run_each_due_time_once(
    connect: Connect, connection: psycopg.Connection, beside: Beside, careless: bool
) -> None:
    """Also without the compare-and-set: a run is looked up under the schedule's lock, and unique by its key."""
    begun = clock(connection, -60)
    sync(connection, *(definition(f"s{n}", every=1, missed="all") for n in range(10)))
    connection.execute(
        "update pgqueue.schedules set created_at = %s, due_at = %s", [begun, begun + timedelta(seconds=1)]
    )

    def tick_all(session: psycopg.Connection) -> int:
        return sum(lead(session) for _ in range(5))

    change = [
        (" and s.due_at = coalesce(tick.due_at, '-infinity')", ""),
        ("for update skip locked", "for update"),
    ]
    with sabotaged(connection, "tick", *change * careless):
        made = sum(end.result() for end in [beside(tick_all, connect()) for _ in range(4)])
    assert made == count(connection, "ready_jobs", "schedule_runs") / 2 >= 600
    for n in range(10):
        dues = [due_at for due_at, *_ in history(connection, f"s{n}")]
        assert dues == [begun + timedelta(seconds=k + 1) for k in range(len(dues))]


# A tick against a hand --------------------------------------------------------------------------------


def _pause(session: psycopg.Connection) -> Any:
    return call(session, "pause_schedule", name="s")


def _change(session: psycopg.Connection) -> Any:
    return schedule(session, every=5.0)


def _delete(session: psycopg.Connection) -> Any:
    return call(session, "unschedule", name="s")


def _resume(session: psycopg.Connection) -> Any:
    call(session, "pause_schedule", name="s")
    return call(session, "resume_schedule", name="s")


HANDS = {"pause": _pause, "change": _change, "delete": _delete, "resume": _resume}


@pytest.mark.parametrize("hand", HANDS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_tick_does_not_wait_for_a_hand_and_obeys_it(
    connect: Connect, connection: psycopg.Connection, hand: str, end: str
) -> None:
    person, leader = connect(autocommit=False), connect(settings=IMPATIENT)
    read = due(connection)
    HANDS[hand](person)
    assert tick(leader, read) is None  # not now, whatever comes of it
    getattr(person, end)()
    assert tick(leader, read) == (None if end == "commit" else 1)
    assert count(connection, "ready_jobs", "schedule_runs") == (0 if end == "commit" else 2)


@pytest.mark.parametrize("hand", HANDS)
def test_a_hand_waits_for_the_tick_that_is_under_way_and_acts_on_what_it_left(
    connect: Connect, connection: psycopg.Connection, hand: str
) -> None:
    leader, person = connect(autocommit=False), connect()
    read = due(connection)
    tick(leader, read)
    with release_when_waited_for(connect(), pid(person), leader.commit):
        assert HANDS[hand](person)
    assert count(connection, "ready_jobs") == 1
    if hand == "delete":
        assert count(connection, "schedules", "schedule_runs") == 0
        return
    row = stored(connection)
    assert outcomes_of(connection) == ["enqueued"]
    assert (row["paused_at"] is not None) is (hand == "pause")
    if hand == "pause":
        assert row["due_at"] > clock(connection)  # the tick's, not the older one
    else:
        assert row["due_at"] is None
        assert row["changed_at"] > read["changed_at"]
        # … and planned from then, so that the due time which has run does not come again
        assert lead(connection) == 0
        assert stored(connection)["due_at"] > row["changed_at"]


def test_a_run_by_hand_waits_for_the_tick_and_makes_a_job_of_its_own(
    connect: Connect, connection: psycopg.Connection
) -> None:
    leader, person = connect(autocommit=False), connect()
    tick(leader, due(connection))
    with release_when_waited_for(connect(), pid(person), leader.commit):
        (made,) = call(person, "run_schedule", name="s")
    assert made["outcome"] == "by_hand"
    assert outcomes_of(connection) == ["enqueued", "by_hand"]
    assert count(connection, "ready_jobs") == 2


@pytest.mark.parametrize(("overlap", "outcome"), [("skip", "overlapped"), ("queue", "joined")])
def test_a_tick_does_not_wait_for_a_run_by_hand_and_meets_its_job_then(
    connect: Connect, connection: psycopg.Connection, overlap: str, outcome: str
) -> None:
    person, leader = connect(autocommit=False), connect(settings=IMPATIENT)
    read = due(connection, overlap=overlap)
    (made,) = call(person, "run_schedule", name="s")
    assert tick(leader, read) is None
    person.commit()
    assert tick(leader, read) == 0
    assert {(what, job_id) for _, what, _, job_id in history(connection)} == {
        ("by_hand", made["job_id"]),
        (outcome, made["job_id"]),
    }
    assert count(connection, "ready_jobs") == 1


def test_two_runs_by_hand_at_once_are_two(connect: Connect, connection: psycopg.Connection) -> None:
    one, two = connect(autocommit=False), connect()
    schedule(connection)
    call(one, "run_schedule", name="s")
    with release_when_waited_for(connect(), pid(two), one.commit):
        call(two, "run_schedule", name="s")
    assert outcomes_of(connection) == ["by_hand"] * 2


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_run_by_hand_of_what_is_being_deleted_waits_for_that(
    connect: Connect, connection: psycopg.Connection, end: str
) -> None:
    one, two = connect(autocommit=False), connect()
    schedule(connection)
    call(one, "unschedule", name="s")
    with release_when_waited_for(connect(), pid(two), getattr(one, end)):
        (made,) = call(two, "run_schedule", name="s")
    assert made["outcome"] == (None if end == "commit" else "by_hand")
    assert count(connection, "ready_jobs", "schedule_runs") == (0 if end == "commit" else 2)


# Two that put -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_that_make_the_same_schedule_make_one(
    connect: Connect, connection: psycopg.Connection, end: str
) -> None:
    one, two = connect(autocommit=False), connect()
    schedule(one, every=5.0)
    with release_when_waited_for(connect(), pid(two), getattr(one, end)):
        outcome = schedule(two, every=6.0)
    assert outcome == ("changed" if end == "commit" else "created")
    assert stored(connection)["every"] == 6.0


def test_one_that_is_deleted_while_it_is_changed_is_made_again(
    connect: Connect, connection: psycopg.Connection, beside: Beside
) -> None:
    """Arranged: it was there when put_schedule tried to insert it, and is gone when it looks."""
    person, observer = connect(), connect()
    schedule(connection, every=5.0)
    place = (
        "    select * into held from pgqueue.schedules as s where s.name = put_schedule.name for update;\n"
    )
    with sabotaged(connection, "put_schedule", (place, f"    perform {STOP};\n{place}")):
        with stopped(connection):
            changed = beside(schedule, person, every=6.0)
            wait_for_lock_wait(observer, pid(person))
            call(connection, "unschedule", name="s")
        assert changed.result() == "created"
    assert stored(connection)["every"] == 6.0


def test_two_workers_that_start_at_once_bring_in_the_schedules_one_after_the_other(
    connect: Connect, connection: psycopg.Connection
) -> None:
    one, two = connect(autocommit=False), connect()
    definitions = [definition("a"), definition("b", at_startup=True)]
    assert sync(one, *definitions) == {"a": "created", "b": "created"}
    with release_when_waited_for(connect(), pid(two), one.commit):
        assert sync(two, *definitions) == {"a": "unchanged", "b": "unchanged"}
    assert lead(connection) == 1
    assert outcomes_of(connection, "b") == ["enqueued"]


def test_of_two_versions_of_an_apps_code_that_start_at_once_the_later_one_holds(
    connect: Connect, connection: psycopg.Connection
) -> None:
    """The later one waits, though they have no schedule in common, and so sees what it has to remove."""
    one, two = connect(autocommit=False), connect()
    sync(one, definition("a"))
    with release_when_waited_for(connect(), pid(two), one.commit):
        assert sync(two, definition("b")) == {"a": "removed", "b": "created"}
    assert [row["name"] for row in rows(connection, "schedules")] == ["b"]


def test_workers_of_two_apps_start_beside_each_other(connect: Connect) -> None:
    one, two = connect(autocommit=False), connect(settings=IMPATIENT)
    sync(one, definition("a"), owner="one")
    assert sync(two, definition("b"), owner="two") == {"b": "created"}


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("rival", ["app", "person"])
def test_who_comes_first_with_a_name_has_it(
    connect: Connect, connection: psycopg.Connection, rival: str, end: str
) -> None:
    """Arranged: the second one has looked, and found nobody, when the first one commits."""
    one, two = connect(autocommit=False), connect()
    sync(one, definition(), owner="another") if rival == "app" else schedule(one)
    with release_when_waited_for(connect(), pid(two), getattr(one, end)):
        found = sync(two, definition(every=5, at_startup=False))
    assert found == {"s": "foreign" if end == "commit" else "created"}
    owner = stored(connection)["owner"]
    assert owner == ("shop" if end == "rollback" else "another" if rival == "app" else None)


def test_without_the_second_look_an_app_would_take_what_is_anothers(
    connect: Connect, connection: psycopg.Connection
) -> None:
    one, two = connect(autocommit=False), connect()
    sync(one, definition(), owner="another")
    guard = "held.owner is distinct from put_schedule.owner and"
    with (
        sabotaged(connection, "put_schedule", (guard, "false and")),
        release_when_waited_for(connect(), pid(two), one.commit),
    ):
        sync(two, definition(every=5))
    assert stored(connection)["owner"] == "shop"


@pytest.mark.parametrize("whose", ["app", "person"])
def test_a_start_neither_waits_for_nor_locks_what_is_anothers(
    connect: Connect, connection: psycopg.Connection, whose: str
) -> None:
    """Else two apps that each have a name of the other's could wait for each other."""
    holder, worker = connect(autocommit=False), connect(settings=IMPATIENT, autocommit=False)
    sync(connection, definition(), owner="another") if whose == "app" else schedule(connection)
    holder.execute("select from pgqueue.schedules for update")
    assert sync(worker, definition()) == {"s": "foreign"}
    holder.rollback()
    holder.execute(
        "select from pgqueue.schedules for update nowait"
    )  # while the worker's transaction is open


def test_a_start_against_a_tick_keeps_what_the_tick_did(
    connect: Connect, connection: psycopg.Connection
) -> None:
    leader, worker = connect(autocommit=False), connect()
    sync(connection, definition(every=60))
    read = move(connection, due_at=clock(connection, -1))
    next_due_at = clock(connection, 59)
    tick(leader, read, next_due_at=next_due_at)
    with release_when_waited_for(connect(), pid(worker), leader.commit):
        assert sync(worker, definition(every=60, args={"n": 2})) == {"s": "changed"}
    row: Row = stored(connection)
    assert (row["due_at"], row["args"]) == (next_due_at, {"n": 2})


def test_a_startup_schedule_that_is_being_ticked_is_not_due_a_second_time(
    connect: Connect, connection: psycopg.Connection
) -> None:
    leader, worker = connect(autocommit=False), connect()
    sync(connection, definition(at_startup=True))
    assert lead(leader) == 1
    with release_when_waited_for(connect(), pid(worker), leader.commit):
        sync(worker, definition(at_startup=True))
    assert stored(connection)["due_at"] == NEVER
    assert len(rows(connection, "schedule_runs")) == 1


@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
def test_above_read_committed_a_hand_that_comes_late_is_told_to_try_again(
    connect: Connect, connection: psycopg.Connection, level: str
) -> None:
    person = connect(autocommit=False)
    person.isolation_level = psycopg.IsolationLevel[level]
    read = due(connection)
    assert len(rows(person, "schedules")) == 1
    tick(connection, read)
    for hand in HANDS.values():
        with pytest.raises(psycopg.errors.SerializationFailure), person.transaction():
            hand(person)
    assert outcomes_of(connection) == ["enqueued"]
