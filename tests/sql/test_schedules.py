"""Schedules: how they are made, changed and refused, what a worker's start does to them, and what a tick does.

Which due times there are is computed in Python (`tests/unit`); here they are given. Rows are moved instead of clocks.
Races are in `test_schedule_races.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.plan import DueSchedule, plan
from tests.sql.acting import (
    NEVER,
    Connect,
    Row,
    call,
    claim,
    count,
    enqueue,
    everything,
    register,
    row_of,
    rows,
    sabotaged,
    scalar,
)

OWNER = "shop"
TIMINGS: dict[str, dict[str, Any]] = {
    "cron": {"cron": "0 3 * * *"},
    "every": {"every": 30.0},
    "at": {"at": datetime(2100, 1, 1, tzinfo=UTC)},
}
TO_BE_PLANNED = None
"""What a due time of '-infinity' is read as."""

# Acting -----------------------------------------------------------------------------------------------


def schedule(session: psycopg.Connection, name: str = "s", task: str = "t", **given: Any) -> str:
    """Makes or changes a schedule by hand: every hour, unless another timing is given."""
    if not {"cron", "every", "at"} & given.keys():
        given["every"] = 3600.0
    outcome: str = call(session, "schedule", name=name, task=task, **given)
    return outcome


def definition(name: str = "s", **given: Any) -> Row:
    """A schedule as an app's code defines it."""
    timing: Row = {} if {"cron", "every", "at", "at_startup"} & given.keys() else {"every": 3600}
    return {"name": name, "task": "t", **timing, **given}


def sync(
    session: psycopg.Connection, *definitions: Row, owner: str | None = OWNER, starts: bool = True
) -> dict[str, str]:
    """What a worker does with the schedules of its app when it starts: what became of each."""
    synced = call(session, "sync_schedules", owner=owner, schedules=Jsonb(list(definitions)), starts=starts)
    return {row["name"]: row["outcome"] for row in synced}


def stored(session: psycopg.Connection, name: str = "s") -> Row:
    """A schedule's row."""
    (row,) = rows(session, "schedules", "name = %s", name)
    return row


def clock(session: psycopg.Connection, seconds: float = 0) -> datetime:
    """The database's clock, so many seconds from now."""
    moment: datetime = scalar(session, "select clock_timestamp() + make_interval(secs => %s)", seconds)
    return moment


def move(session: psycopg.Connection, name: str = "s", **columns: Any) -> Row:
    """Changes a schedule's row behind its back; the row."""
    for column, value in columns.items():
        session.execute(f"update pgqueue.schedules set {column} = %s where name = %s", [value, name])
    return stored(session, name)


def due(session: psycopg.Connection, name: str = "s", *, ago: float = 1, **given: Any) -> Row:
    """A new schedule that became due so many seconds ago, as the leader reads it."""
    assert schedule(session, name, **given) == "created"
    return move(session, name, due_at=clock(session, -ago))


def tick(
    session: psycopg.Connection,
    read: Row,
    *,
    dues: Sequence[datetime] | None = None,
    outcomes: Sequence[str] | None = None,
    missed: Sequence[int] | None = None,
    next_due_at: datetime | None = None,
    problem: str | None = None,
) -> int | None:
    """Ticks a schedule as read: on time at the due time that it has, unless others are given."""
    dues = [read["due_at"]] if dues is None else dues
    made: int | None = call(
        session,
        "tick",
        name=read["name"],
        changed_at=read["changed_at"],
        due_at=read["due_at"],
        dues=list(dues),
        outcomes=["enqueued"] * len(dues) if outcomes is None else list(outcomes),
        missed=[0] * len(dues) if missed is None else list(missed),
        next_due_at=next_due_at or clock(session, 3600),
        problem=problem,
    )
    return made


def lead(session: psycopg.Connection) -> int:
    """Ticks all that is due, as the leader does; how many jobs were made."""
    found = run(session, calls.due_schedules())
    return sum(run(session, calls.tick(schedule, plan(schedule))) or 0 for schedule in found)


def history(session: psycopg.Connection, name: str = "s") -> list[tuple[datetime, str, int, int | None]]:
    """The runs of a schedule, oldest first: due time, outcome, missed, job."""
    found = rows(session, "schedule_runs", "schedule = %s order by due_at", name)
    return [(row["due_at"], row["outcome"], row["missed"], row["job_id"]) for row in found]


def outcomes_of(session: psycopg.Connection, name: str = "s") -> list[str]:
    """The outcomes of a schedule's runs, oldest first."""
    return [outcome for _, outcome, _, _ in history(session, name)]


# Made by hand -----------------------------------------------------------------------------------------


def test_a_schedule_has_the_defaults_and_is_to_be_planned(connection: psycopg.Connection) -> None:
    assert schedule(connection, every=60.0) == "created"
    row = stored(connection)
    assert abs(row["created_at"] - clock(connection)) < timedelta(seconds=5)
    assert row.pop("created_at") == row.pop("changed_at")
    assert row == {
        "name": "s", "owner": None, "task": "t", "args": {}, "queue": "default", "priority": 5, "max_attempts": 5,
        "options": None, "cron": None, "seconds": None, "every": 60.0, "at": None, "at_startup": False, "tz": "UTC",
        "starts_at": None, "ends_at": None, "jitter": 0.0, "grace": 15.0, "missed": "once", "missed_limit": 100,
        "overlap": "allow", "paused_at": None, "due_at": TO_BE_PLANNED, "problem": None,
    }  # fmt: skip


def test_a_schedule_keeps_what_it_is_given(connection: psycopg.Connection) -> None:
    given: Row = {
        "args": {"n": 1, "none": None}, "cron": "0 0 3 * * *", "tz": "Europe/Paris", "seconds": "first",
        "starts_at": datetime(2100, 1, 1, tzinfo=UTC), "ends_at": datetime(2101, 1, 1, 1, 2, 3, 456789, tzinfo=UTC),
        "jitter": 2.5, "grace": 0.0, "missed": "all", "missed_limit": 7, "overlap": "queue", "queue": "q", "priority": 0,
        "max_attempts": 9, "options": {"tags": ["x"], "none": None},
    }  # fmt: skip
    assert schedule(connection, "a b", **given) == "created"
    row = stored(connection, "a b")
    assert {key: row[key] for key in given} == given


@pytest.mark.parametrize("timing", TIMINGS)
def test_an_unchanged_definition_changes_nothing(connection: psycopg.Connection, timing: str) -> None:
    schedule(connection, **TIMINGS[timing])
    before = move(connection, due_at=clock(connection, 60))
    defaults: Row = {
        "queue": "default",
        "priority": 5,
        "args": {},
        "tz": "UTC",
        "overlap": None,
        "options": None,
    }
    assert schedule(connection, **TIMINGS[timing], **defaults) == "unchanged"
    assert stored(connection) == before


@pytest.mark.parametrize(
    "changed",
    [{"args": {"n": 2}}, {"queue": "other"}, {"priority": 1}, {"max_attempts": 1}, {"options": {"tags": ["x"]}},
     {"jitter": 5.0}, {"grace": 60.0}, {"missed": "skip"}, {"missed_limit": 1}, {"overlap": "skip"}, {"task": "other"}],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_what_is_no_timing_changes_without_a_new_plan(connection: psycopg.Connection, changed: Row) -> None:
    schedule(connection)
    before = move(connection, due_at=clock(connection, 60))
    assert schedule(connection, **changed) == "changed"
    assert stored(connection) == before | changed
    assert schedule(connection) == "changed"  # what is left out is the default again
    assert stored(connection) == before


@pytest.mark.parametrize(
    "changed",
    [{"every": 60.0}, {"cron": "0 4 * * *"}, {"cron": "0 0 3 * * *", "seconds": "first"}, {"tz": "Europe/Paris"},
     {"cron": "0 3 * * *", "starts_at": datetime(2100, 1, 1, tzinfo=UTC)}, {"ends_at": datetime(2100, 1, 1, tzinfo=UTC)},
     {"at": datetime(2100, 1, 1, tzinfo=UTC)}],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_a_changed_timing_is_planned_anew_from_now(connection: psycopg.Connection, changed: Row) -> None:
    if not {"every", "at"} & changed.keys():
        changed = {"cron": "0 3 * * *"} | changed
    schedule(connection, cron="0 3 * * *")
    call(connection, "pause_schedule", name="s")
    before = move(connection, due_at=clock(connection, 60))
    assert schedule(connection, **changed) == "changed"
    after = stored(connection)
    assert after["changed_at"] > before["changed_at"]
    assert (
        after == before | {"cron": None, "due_at": TO_BE_PLANNED, "changed_at": after["changed_at"]} | changed
    )


def test_a_changed_seconds_field_is_another_timing(connection: psycopg.Connection) -> None:
    schedule(connection, cron="0 0 3 * * *", seconds="first")
    move(connection, due_at=clock(connection, 60))
    assert schedule(connection, cron="0 0 3 * * *", seconds="last") == "changed"
    assert stored(connection)["due_at"] is TO_BE_PLANNED


def test_a_schedule_with_a_problem_is_planned_again_when_it_is_put_again(
    connection: psycopg.Connection,
) -> None:
    assert tick(connection, due(connection), dues=[], problem="no such day") == 0
    broken = move(connection, due_at="infinity")
    assert schedule(connection) == "changed"
    after = stored(connection)
    assert (broken["problem"], after["problem"], after["due_at"]) == ("no such day", None, TO_BE_PLANNED)
    assert after["changed_at"] > broken["changed_at"]


def test_every_argument_may_be_null(connection: psycopg.Connection) -> None:
    names = [name for name, _ in calls.SCHEDULE.parameters if name not in ("name", "task", "every")]
    nulls: Row = dict.fromkeys(names)
    assert schedule(connection, every=60.0, **nulls) == "created"
    assert schedule(connection, every=60.0) == "unchanged"


# Refused ----------------------------------------------------------------------------------------------

OUT = "is out of range"
NEW_YEAR = datetime(2100, 1, 1, tzinfo=UTC)
NAME = "A schedule's name has 1 to 100 characters: no control characters, quotes or asterisks."
ONE_TIMING = "Give one of cron, every, at and at_startup."
FIELDS = "minute hour day month weekday; a sixth field, for seconds, needs seconds => 'first' or 'last'."
EVERY = "Seconds, from 1 to ten years."
SECONDS = "Seconds, from 0 to ten years."
YEARS = "From the year 1970 to 2199."
ZONE = "A name such as Europe/Paris."

REFUSED: list[tuple[Row, str, str]] = [
    ({"name": None}, "schedule null: name: NULL is not a name", NAME),
    ({"name": ""}, "schedule : name: '' is not a name", NAME),
    ({"name": "a\nb"}, "schedule a?b: name: 'a?b' is not a name", NAME),
    ({"name": "it's"}, "schedule it's: name: 'it''s' is not a name", NAME),
    ({"name": "x" * 101}, f"schedule {'x' * 100}: name: '{'x' * 40}' is not a name", NAME),
    ({"every": None}, "schedule s: no timing", ONE_TIMING),
    ({"cron": "0 3 * * *"}, "schedule s: cron, every: given together", ONE_TIMING),
    ({"at": NEW_YEAR}, "schedule s: every, at: given together", ONE_TIMING),
    ({"every": None, "cron": "* * *"}, "schedule s: cron: '* * *' has 3 fields", FIELDS),
    ({"every": None, "cron": ""}, "schedule s: cron: '' has 1 fields", FIELDS),
    ({"every": None, "cron": "0 0 3 * * *"}, "schedule s: cron: '0 0 3 * * *' has 6 fields", FIELDS),
    ({"every": None, "cron": "0 3 * * *", "seconds": "first"}, "schedule s: cron: '0 3 * * *' has 5 fields", FIELDS),
    ({"every": None, "cron": "@every 5m"}, "schedule s: cron: '@every 5m' has 2 fields", FIELDS),
    ({"every": None, "cron": "0" * 501}, "schedule s: cron: 501 characters", "At most 500 characters."),
    ({"every": None, "cron": "0 3 * * *", "seconds": "middle"}, "schedule s: seconds: 'middle' is none",
     "first or last: where the seconds of a cron expression of six fields are."),
    ({"seconds": "first"}, "schedule s: seconds: there is no cron",
     "It says where the seconds of a cron expression of six fields are: leave it out."),
    ({"every": 0.9}, f"schedule s: every: 0.9 {OUT}", EVERY),
    ({"every": -5.0}, f"schedule s: every: -5 {OUT}", EVERY),
    ({"every": 315360001.0}, f"schedule s: every: 315360001 {OUT}", EVERY),
    ({"every": float("nan")}, f"schedule s: every: NaN {OUT}", EVERY),
    ({"every": float("inf")}, f"schedule s: every: Infinity {OUT}", EVERY),
    ({"jitter": -1.0}, f"schedule s: jitter: -1 {OUT}", SECONDS),
    ({"jitter": float("nan")}, f"schedule s: jitter: NaN {OUT}", SECONDS),
    ({"grace": -0.1}, f"schedule s: grace: -0.1 {OUT}", SECONDS),
    ({"grace": 315360001.0}, f"schedule s: grace: 315360001 {OUT}", SECONDS),
    ({"missed": "never"}, "schedule s: missed: 'never' is none", "skip, once or all."),
    ({"missed_limit": 0}, f"schedule s: missed_limit: 0 {OUT}", "From 1 to 1000."),
    ({"missed_limit": 1001}, f"schedule s: missed_limit: 1001 {OUT}", "From 1 to 1000."),
    ({"overlap": "wait"}, "schedule s: overlap: 'wait' is none", "allow, skip or queue."),
    ({"starts_at": NEW_YEAR, "ends_at": NEW_YEAR - timedelta(seconds=1)}, "schedule s: ends_at: it lies before starts_at",
     "No due time would be left."),
    ({"starts_at": "-infinity"}, f"schedule s: starts_at: -infinity {OUT}", YEARS),
    ({"ends_at": "infinity"}, f"schedule s: ends_at: infinity {OUT}", YEARS),
    ({"starts_at": "1969-12-31 23:59:59 UTC"}, f"schedule s: starts_at: 1969-12-31T23:59:59+00:00 {OUT}", YEARS),
    ({"every": None, "at": "infinity"}, f"schedule s: at: infinity {OUT}", YEARS),
    ({"every": None, "at": "2200-01-01 UTC"}, f"schedule s: at: 2200-01-01T00:00:00+00:00 {OUT}", YEARS),
    ({"every": None, "at": "2001-02-03 04:05 UTC"}, "schedule s: at: 2001-02-03 04:05:00+00 has passed",
     "For a job now, call pgqueue.enqueue."),
    ({"options": {"unique": {"scope": "waiting"}}}, "schedule s: options.unique: a schedule has none",
     "overlap says what happens while its last job is unfinished."),
    *(({"tz": tz}, f"schedule s: tz: there is no time zone '{tz}'", ZONE)
      for tz in ("Mars/Olympus", "", "europe/paris", "UTC+3", "CEST", "Foo/Bar+3")),
    ({"task": None}, "schedule s: task: NULL is not a name", "A task's name has 1 to 200 characters, none of them a control character."),
    ({"task": "a\tb"}, "schedule s: task: 'a?b' is not a name", "A task's name has 1 to 200 characters, none of them a control character."),
    ({"args": Jsonb([1])}, "schedule s: args: expected a JSON object, got a JSON array", 'Name each argument: {"user_id": 7}.'),
    ({"queue": "*"}, "schedule s: queue: '*' is not a name", "A queue's name has 1 to 100 characters: no control characters, quotes or asterisks."),
    ({"priority": 10}, f"schedule s: priority: 10 {OUT}", "Priorities go from 0 (first) to 9."),
    ({"max_attempts": 0}, f"schedule s: max_attempts: 0 {OUT}", "From 1 to 32767."),
    ({"options": Jsonb([1])}, "schedule s: options: expected a JSON object, got a JSON array", "Keys: tags, metadata, retry, unique."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message", "hint"), REFUSED, ids=[message[:60] for _, message, _ in REFUSED]
)
def test_a_schedule_is_refused_with_what_is_wrong_and_what_to_do(
    connection: psycopg.Connection, given: Row, message: str, hint: str
) -> None:
    before = everything(connection)
    with pytest.raises(psycopg.Error) as refused:
        schedule(connection, **{"every": 60.0, **given})
    assert (refused.value.diag.message_primary, refused.value.diag.message_hint) == (message, hint)
    assert refused.value.sqlstate == ("PQ003" if "args" in given else "PQ001")
    assert everything(connection) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"colour": "red"}, "schedule s: there is no 'colour'"),
        ({"at_startup": True}, "schedule s: every, at_startup: given together"),
        ({"priority": 11}, f"schedule s: priority: 11 {OUT}"),
        ({"name": None}, "schedule null: name: NULL is not a name"),
    ],
)
def test_one_bad_definition_refuses_all_of_an_app(
    connection: psycopg.Connection, wrong: Row, message: str
) -> None:
    sync(connection, definition("kept"))
    before = everything(connection)
    with pytest.raises(psycopg.Error) as refused:
        sync(connection, definition("a"), definition(every=60) | wrong)
    assert (refused.value.diag.message_primary, refused.value.sqlstate) == (message, "PQ001")
    assert everything(connection) == before


@pytest.mark.parametrize("owner", [None, "", "x" * 201])
def test_an_owner_without_a_name_is_refused(connection: psycopg.Connection, owner: str | None) -> None:
    schedule(connection)  # by hand: its owner is null
    with pytest.raises(psycopg.Error, match="is not a name") as refused:
        sync(connection, owner=owner)
    assert refused.value.sqlstate == "PQ001"
    assert count(connection, "schedules") == 1


@pytest.mark.parametrize("schedules", [None, Jsonb(None), Jsonb({}), Jsonb(["s"]), Jsonb([[definition()]])])
def test_what_is_no_list_of_schedules_is_refused_and_removes_none(
    connection: psycopg.Connection, schedules: Jsonb | None
) -> None:
    sync(connection, definition())
    with pytest.raises(psycopg.Error, match="schedules: expected a JSON array of objects") as refused:
        call(connection, "sync_schedules", owner=OWNER, schedules=schedules, starts=True)
    assert refused.value.sqlstate == "PQ001"
    assert count(connection, "schedules") == 1


# Pause, resume, run now, delete -----------------------------------------------------------------------


def test_a_paused_schedule_is_never_due_and_knows_since_when(connection: psycopg.Connection) -> None:
    due(connection)
    assert call(connection, "pause_schedule", name="s") is True
    since = stored(connection)["paused_at"]
    assert call(connection, "pause_schedule", name="s") is True
    assert stored(connection)["paused_at"] == since
    assert run(connection, calls.due_schedules()) == []


def test_a_resumed_schedule_counts_from_now(connection: psycopg.Connection) -> None:
    due(connection, ago=7200)
    call(connection, "pause_schedule", name="s")
    before = stored(connection)
    assert call(connection, "resume_schedule", name="s") is True
    after = stored(connection)
    assert after["changed_at"] > before["paused_at"]
    assert after == before | {
        "paused_at": None,
        "due_at": TO_BE_PLANNED,
        "changed_at": after["changed_at"],
    }
    assert lead(connection) == 0  # what was due while it was paused was not missed
    assert stored(connection)["due_at"] > clock(connection)
    assert history(connection) == []


def test_resuming_what_runs_changes_nothing(connection: psycopg.Connection) -> None:
    before = due(connection)
    assert call(connection, "resume_schedule", name="s") is True
    assert stored(connection) == before


def test_a_problem_is_gone_when_the_schedule_is_resumed(connection: psycopg.Connection) -> None:
    tick(connection, due(connection), dues=[], problem="no such day")
    assert call(connection, "resume_schedule", name="s") is True
    after = stored(connection)
    assert (after["problem"], after["due_at"]) == (None, TO_BE_PLANNED)


def test_a_startup_schedule_that_is_resumed_waits_for_the_next_start(connection: psycopg.Connection) -> None:
    sync(connection, definition(at_startup=True), starts=False)
    call(connection, "pause_schedule", name="s")
    sync(connection, definition(at_startup=True))
    assert call(connection, "resume_schedule", name="s") is True
    assert stored(connection)["due_at"] == NEVER
    sync(connection, definition(at_startup=True))
    assert lead(connection) == 1


def test_run_now_makes_a_job_beside_the_due_times(connection: psycopg.Connection) -> None:
    schedule(connection, args={"n": 1}, queue="q", priority=2, jitter=3600.0)
    call(connection, "pause_schedule", name="s")  # also of a paused one
    before = move(connection, due_at=clock(connection, 60))
    made = [call(connection, "run_schedule", name="s")[0] for _ in range(2)]
    assert [row["outcome"] for row in made] == ["by_hand"] * 2
    job = row_of(connection, made[0]["job_id"])
    assert (job["table"], job["task"], job["args"], job["queue"], job["lane"]) == (
        "ready_jobs",
        "t",
        {"n": 1},
        "q",
        5,
    )
    assert [(outcome, job_id) for _, outcome, _, job_id in history(connection)] == [
        ("by_hand", row["job_id"]) for row in made
    ]
    assert stored(connection) == before


@pytest.mark.parametrize(("overlap", "outcome"), [("skip", "overlapped"), ("queue", "joined")])
def test_run_now_keeps_to_the_overlap_policy(
    connection: psycopg.Connection, overlap: str, outcome: str
) -> None:
    schedule(connection, overlap=overlap)
    (first,) = call(connection, "run_schedule", name="s")
    (second,) = call(connection, "run_schedule", name="s")
    assert second == {"job_id": first["job_id"], "outcome": outcome}
    assert outcomes_of(connection) == ["by_hand", outcome]


def test_a_deleted_schedule_leaves_its_jobs_and_no_history(connection: psycopg.Connection) -> None:
    for name in ("s", "other"):
        tick(connection, due(connection, name))
    assert call(connection, "unschedule", name="s") is True
    assert [row["name"] for row in rows(connection, "schedules")] == ["other"]
    assert [row["schedule"] for row in rows(connection, "schedule_runs")] == ["other"]
    assert count(connection, "ready_jobs") == 2


def test_of_a_schedule_that_is_not_there_everything_says_so(connection: psycopg.Connection) -> None:
    schedule(connection)
    for function in ("pause_schedule", "resume_schedule", "unschedule"):
        assert [call(connection, function, name=name) for name in ("none", None)] == [False, False]
    assert call(connection, "run_schedule", name="none") == [{"job_id": None, "outcome": None}]
    assert count(connection, "schedules") == 1
    assert count(connection, "schedule_runs", "ready_jobs") == 0


# A worker starts --------------------------------------------------------------------------------------


def test_a_start_adds_changes_and_removes_what_the_app_owns(connection: psycopg.Connection) -> None:
    assert sync(connection, definition("a"), definition("b"), definition("c")) == dict.fromkeys(
        "abc", "created"
    )
    assert {row["owner"] for row in rows(connection, "schedules")} == {OWNER}
    tick(connection, move(connection, "c", due_at=clock(connection)))
    before = stored(connection, "a")
    assert sync(connection, definition("d"), definition("b", every=60), definition("a")) == {
        "a": "unchanged", "b": "changed", "c": "removed", "d": "created",
    }  # fmt: skip
    assert stored(connection, "a") == before
    assert stored(connection, "b")["every"] == 60
    assert [row["name"] for row in rows(connection, "schedules", "true order by name")] == ["a", "b", "d"]
    assert history(connection, "c") == []
    assert sync(connection) == dict.fromkeys("abd", "removed")


def test_what_was_made_by_hand_or_by_another_app_is_left_alone_and_told(
    connection: psycopg.Connection,
) -> None:
    schedule(connection, "by hand")
    sync(connection, definition("theirs"), owner="another")
    before = everything(connection)
    names = ("by hand", "theirs")
    found = sync(connection, *(definition(name, every=5, at_startup=False) for name in names))
    assert found == dict.fromkeys(names, "foreign")
    assert sync(connection) == {}
    assert everything(connection) == before


def test_what_is_put_by_hand_belongs_to_nobodys_code_any_more(connection: psycopg.Connection) -> None:
    sync(connection, definition())
    before = move(connection, due_at=clock(connection, 60))
    assert schedule(connection) == "changed"
    assert stored(connection) == before | {"owner": None}
    assert sync(connection, definition(every=5)) == {"s": "foreign"}
    assert sync(connection) == {}


def test_a_null_in_a_definition_is_the_default(connection: psycopg.Connection) -> None:
    sync(connection, definition())
    left_out = (
        "cron",
        "seconds",
        "at",
        "at_startup",
        "tz",
        "starts_at",
        "jitter",
        "overlap",
        "args",
        "options",
        "queue",
    )
    assert sync(connection, definition() | dict.fromkeys(left_out)) == {"s": "unchanged"}


def test_schedules_of_code_keep_their_pause_and_their_due_time_over_a_start(
    connection: psycopg.Connection,
) -> None:
    sync(connection, definition())
    call(connection, "pause_schedule", name="s")
    before = move(connection, due_at=clock(connection, -60))
    assert sync(connection, definition()) == {"s": "unchanged"}
    assert stored(connection) == before


def test_a_one_shot_in_code_whose_time_has_passed_does_not_stop_a_start(
    connection: psycopg.Connection,
) -> None:
    past = definition(at="2001-01-01T00:00:00+00:00")
    assert sync(connection, past) == {"s": "created"}
    assert sync(connection, past) == {"s": "unchanged"}


def test_a_script_that_says_a_time_that_has_passed_since_may_be_run_again(
    connection: psycopg.Connection,
) -> None:
    soon = clock(connection, 3600)
    assert call(connection, "schedule", name="s", task="t", at=soon) == "created"
    connection.execute("update pgqueue.schedules set at = at - interval '2 hours', due_at = 'infinity'")
    past = soon - timedelta(hours=2)
    assert call(connection, "schedule", name="s", task="t", at=past) == "unchanged"


def test_a_startup_schedule_runs_once_for_starts_within_its_grace(connection: psycopg.Connection) -> None:
    at_startup = definition(at_startup=True, grace=10)

    def start(*, ago: float) -> int:
        """A worker starts, `ago` seconds after the run before."""
        connection.execute(
            "update pgqueue.schedule_runs set due_at = clock_timestamp() - make_interval(secs => %s)"
            " where due_at = (select max(due_at) from pgqueue.schedule_runs)",
            [ago],
        )
        sync(connection, at_startup)
        return lead(connection)

    sync(connection, at_startup)
    began = stored(connection)["due_at"]
    sync(connection, at_startup)  # before it was ticked
    assert stored(connection)["due_at"] == began
    assert lead(connection) == 1
    assert stored(connection)["due_at"] == NEVER
    assert [start(ago=5), start(ago=9), start(ago=11), start(ago=0.1)] == [0, 0, 1, 0]
    assert outcomes_of(connection) == ["enqueued"] * 2


def test_a_run_by_hand_does_not_count_as_a_start(connection: psycopg.Connection) -> None:
    sync(connection, definition(at_startup=True), starts=False)
    call(connection, "run_schedule", name="s")
    sync(connection, definition(at_startup=True))
    assert lead(connection) == 1
    assert outcomes_of(connection) == ["by_hand", "enqueued"]


def test_a_replaced_worker_starts_nothing(connection: psycopg.Connection) -> None:
    for _ in range(2):
        sync(connection, definition(at_startup=True), starts=False)
        assert stored(connection)["due_at"] == NEVER
    assert lead(connection) == 0


def test_a_paused_startup_schedule_and_one_with_a_problem_do_not_run(connection: psycopg.Connection) -> None:
    definitions = [definition("paused", at_startup=True), definition("broken", at_startup=True)]
    sync(connection, *definitions, starts=False)
    call(connection, "pause_schedule", name="paused")
    sync(connection, *definitions)
    assert [found.name for found in run(connection, calls.due_schedules())] == ["broken"]
    assert tick(connection, stored(connection, "broken"), dues=[], problem="refused", next_due_at=NEVER) == 0
    # a definition that is put again clears its problem; one whose problem came up after that waits
    connection.execute("update pgqueue.schedules set due_at = 'infinity'")
    with sabotaged(connection, "put_schedule", ("held.problem is null", "true"),
                   ("wanted.problem := null;", "wanted.problem := 'refused';")):  # fmt: skip
        sync(connection, *definitions)
    assert run(connection, calls.due_schedules()) == []


def test_a_schedule_that_becomes_one_at_startup_runs_at_that_start(connection: psycopg.Connection) -> None:
    sync(connection, definition())
    sync(connection, definition(at_startup=True))
    assert lead(connection) == 1


# What is due ------------------------------------------------------------------------------------------


def test_what_is_due_or_to_be_planned_is_read_first_due_first(connection: psycopg.Connection) -> None:
    for name, seconds in {"late": -20, "later": -10, "next": 60, "paused": -30}.items():
        schedule(connection, name)
        move(connection, name, due_at=clock(connection, seconds))
    for name in ("new", "never"):
        schedule(connection, name)
    move(connection, "never", due_at="infinity")
    call(connection, "pause_schedule", name="paused")
    found = run(connection, calls.due_schedules())
    assert [schedule.name for schedule in found] == ["new", "late", "later"]
    assert [schedule.due_at is None for schedule in found] == [True, False, False]
    row = stored(connection, "late")
    for field in DueSchedule._fields:
        if field != "now":
            assert getattr(found[1], field) == row[field]
    assert abs(found[0].now - clock(connection)) < timedelta(seconds=5)


def test_no_more_than_a_hundred_are_read_at_once(connection: psycopg.Connection) -> None:
    sync(connection, *(definition(f"s{n:03}") for n in range(130)))
    found = run(connection, calls.due_schedules())
    assert len({schedule.name for schedule in found}) == 100
    assert lead(connection) == 0  # they are planned …
    assert len(run(connection, calls.due_schedules())) == 30  # … and the others' turn has come


# A tick -----------------------------------------------------------------------------------------------


def test_a_tick_makes_the_job_the_run_and_the_next_due_time(connection: psycopg.Connection) -> None:
    given: Row = {
        "args": {"n": 1},
        "queue": "q",
        "priority": 7,
        "max_attempts": 2,
        "options": {"tags": ["nightly"]},
    }
    read = due(connection, **given)
    next_due_at = clock(connection, 60)
    assert tick(connection, read, next_due_at=next_due_at) == 1
    ((due_at, outcome, missed, id),) = history(connection)
    assert (due_at, outcome, missed) == (read["due_at"], "enqueued", 0)
    job = row_of(connection, id or 0)
    assert (job["table"], job["task"], job["args"], job["queue"]) == ("ready_jobs", "t", {"n": 1}, "q")
    assert (job["lane"], job["max_attempts"], job["unique_key"]) == (15, 2, None)
    assert datetime.fromisoformat(job["options"].pop("due_at")) == read["due_at"]
    assert job["options"] == {"tags": ["nightly"], "schedule": "s"}
    assert stored(connection) == read | {"due_at": next_due_at}
    (run,) = rows(connection, "schedule_runs")
    assert timedelta(0) <= run["ran_at"] - read["due_at"] < timedelta(seconds=5)


def test_due_times_that_were_missed_are_noted_and_only_some_of_them_run(
    connection: psycopg.Connection,
) -> None:
    read = due(connection, ago=300)
    dues = [read["due_at"] + timedelta(minutes=n) for n in range(4)]
    outcomes = ["missed", "caught_up", "caught_up", "enqueued"]
    # in whatever order they are given
    assert tick(connection, read, dues=dues[::-1], outcomes=outcomes[::-1], missed=[0, 0, 2, 7]) == 3
    assert [entry[:3] for entry in history(connection)] == [
        (dues[0], "missed", 7),
        (dues[1], "caught_up", 2),
        (dues[2], "caught_up", 0),
        (dues[3], "enqueued", 0),
    ]
    ids = [id for *_, id in history(connection)]
    assert ids[0] is None
    assert [job.id for job in claim(connection, register(connection), 9)] == ids[1:]


def test_a_first_plan_sets_the_due_time_and_runs_nothing(connection: psycopg.Connection) -> None:
    schedule(connection)
    next_due_at = clock(connection, 60)
    assert tick(connection, stored(connection), dues=[], next_due_at=next_due_at) == 0
    assert stored(connection)["due_at"] == next_due_at


def test_a_schedule_that_is_never_due_again_stays_and_rests(connection: psycopg.Connection) -> None:
    read = due(connection)
    call(
        connection, "tick", name="s", changed_at=read["changed_at"], due_at=read["due_at"], dues=[read["due_at"]],
        outcomes=["enqueued"], missed=[0], next_due_at=None,
    )  # fmt: skip
    assert stored(connection)["due_at"] == NEVER
    assert run(connection, calls.due_schedules()) == []


def test_a_tick_with_a_problem_says_so_and_a_good_one_clears_it(connection: psycopg.Connection) -> None:
    read = due(connection)
    assert tick(connection, read, dues=[], problem="no such day") == 0
    assert stored(connection)["problem"] == "no such day"
    assert tick(connection, stored(connection), dues=[]) == 0
    assert stored(connection)["problem"] is None


def _is_changed(session: psycopg.Connection) -> None:
    schedule(session, every=5.0)


def _is_resumed(session: psycopg.Connection) -> None:
    """To the same due time, by chance."""
    before = stored(session)["due_at"]
    call(session, "pause_schedule", name="s")
    call(session, "resume_schedule", name="s")
    move(session, due_at=before)


def _is_ticked(session: psycopg.Connection) -> None:
    tick(session, stored(session))


def _is_paused(session: psycopg.Connection) -> None:
    call(session, "pause_schedule", name="s")


def _is_deleted(session: psycopg.Connection) -> None:
    call(session, "unschedule", name="s")


def _is_made_anew(session: psycopg.Connection) -> None:
    before = stored(session)["due_at"]
    call(session, "unschedule", name="s")
    schedule(session)
    move(session, due_at=before)


MEANWHILE = [_is_changed, _is_resumed, _is_ticked, _is_paused, _is_deleted, _is_made_anew]


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_a_tick_of_what_was_changed_meanwhile_does_nothing(
    connection: psycopg.Connection, meanwhile: Callable[[psycopg.Connection], None]
) -> None:
    """A leader that was stopped for long, or lost its place, wakes up with a plan that is no longer one."""
    read = due(connection)
    meanwhile(connection)
    before = everything(connection)
    assert tick(connection, read) is None
    assert everything(connection) == before


@pytest.mark.parametrize(
    ("meanwhile", "guard"),
    [(_is_changed, "and s.due_at = coalesce(tick.due_at, '-infinity')"), (_is_ticked, "and s.due_at = coalesce(tick.due_at, '-infinity')"),
     (_is_resumed, "and s.changed_at = tick.changed_at"), (_is_paused, "and s.paused_at is null\n       for update")],
)  # fmt: skip
def test_without_its_guard_a_careless_tick_would_do_something(
    connection: psycopg.Connection, meanwhile: Callable[[psycopg.Connection], None], guard: str
) -> None:
    read = due(connection)
    meanwhile(connection)
    before = everything(connection)
    lock = "\n       for update" if "for update" in guard else ""
    changed_too = [("and s.changed_at = tick.changed_at", "")] if meanwhile is _is_changed else []
    with sabotaged(connection, "tick", (guard, lock), *changed_too):
        assert tick(connection, read) is not None
    assert everything(connection) != before


def test_a_schedule_that_another_session_holds_is_not_waited_for(
    connect: Connect, connection: psycopg.Connection
) -> None:
    holder, leader = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    read = due(connection)
    holder.execute("select from pgqueue.schedules for update")
    before = everything(connection)
    assert tick(leader, read) is None
    assert everything(connection) == before
    holder.rollback()
    assert tick(leader, read) == 1


def test_a_due_time_runs_once_however_often_it_is_given(connection: psycopg.Connection) -> None:
    read = due(connection)
    due_at = read["due_at"]
    assert tick(connection, read, dues=[due_at, due_at], next_due_at=due_at) == 1
    assert tick(connection, read) == 0  # the same due time again: moved back, or planned so after a change
    assert count(connection, "schedule_runs") == count(connection, "ready_jobs") == 1
    assert stored(connection)["due_at"] > due_at


def test_the_constraint_holds_where_the_look_was_too_early(connection: psycopg.Connection) -> None:
    read = due(connection)
    due_at = read["due_at"]
    with (
        sabotaged(connection, "run_due", ("if exists (select from", "if false and exists (select from")),
        pytest.raises(psycopg.errors.UniqueViolation, match="schedule_runs_one_a_due_time"),
    ):
        tick(connection, read, dues=[due_at, due_at])
    assert count(connection, "schedule_runs", "ready_jobs") == 0


def test_an_error_in_the_middle_of_a_tick_leaves_nothing(connection: psycopg.Connection) -> None:
    read = due(connection, ago=60)
    dues = [read["due_at"], read["due_at"] + timedelta(seconds=1)]
    before = everything(connection)
    with pytest.raises(
        psycopg.Error, match="schedule s: dues, outcomes, missed: not one of each for a due time"
    ):
        tick(connection, read, dues=dues, outcomes=["enqueued"])
    assert everything(connection) == before
    move(connection, task="")  # a row that no function would write
    before = everything(connection)
    with pytest.raises(psycopg.Error, match="task: '' is not a name"):
        tick(connection, read, dues=dues)
    assert everything(connection) == before


def test_jitter_puts_the_job_off_and_not_the_due_time(connection: psycopg.Connection) -> None:
    read = due(connection, ago=30, jitter=60.0)
    dues = [read["due_at"] + timedelta(seconds=n) for n in range(20)]
    assert tick(connection, read, dues=dues) == 20
    delays = [
        row["seconds"]
        for row in connection.cursor(row_factory=psycopg.rows.dict_row)
        .execute("select extract(epoch from run_at - created_at) as seconds from pgqueue.scheduled_jobs")
        .fetchall()
    ]
    assert len(delays) == 20
    assert 0 < min(delays) < 30 < max(delays) <= 61
    assert [entry[0] for entry in history(connection)] == dues


# Overlap ----------------------------------------------------------------------------------------------


def _ready(session: psycopg.Connection, id: int) -> None: ...


def _running(session: psycopg.Connection, id: int) -> None:
    (job,) = claim(session, register(session))
    assert job.id == id


def _backing_off(session: psycopg.Connection, id: int) -> None:
    (job,) = claim(session, register(session))
    call(session, "fail", failures=Jsonb([{"id": id, "lease": job.lease, "delay": 60}]))


def _blocked(session: psycopg.Connection, id: int) -> None:
    """Behind a job that runs, in which it would have to wait its turn."""
    _running(session, id)
    read = move(session, due_at=clock(session, -30), overlap="queue")
    assert tick(session, read, next_due_at=clock(session, -20)) == 1
    assert count(session, "blocked_jobs") == 1


def _completed(session: psycopg.Connection, id: int) -> None:
    (job,) = claim(session, register(session))
    assert call(session, "complete", ids=[id], leases=[job.lease]) == [id]


def _dead(session: psycopg.Connection, id: int) -> None:
    (job,) = claim(session, register(session))
    assert call(session, "fail", failures=Jsonb([{"id": id, "lease": job.lease}])) == [id]


def _cancelled(session: psycopg.Connection, id: int) -> None:
    call(session, "cancel", ids=[id])


UNFINISHED = {"ready": _ready, "scheduled": _backing_off, "running": _running, "blocked": _blocked}
FINISHED = {"completed": _completed, "dead": _dead, "cancelled": _cancelled}


@pytest.mark.parametrize("place", UNFINISHED)
@pytest.mark.parametrize("overlap", ["allow", "skip", "queue"])
def test_what_becomes_of_a_due_time_while_the_last_job_is_unfinished(
    connection: psycopg.Connection, overlap: str, place: str
) -> None:
    read = due(connection, ago=60, overlap="skip" if place == "blocked" else overlap)
    tick(connection, read, next_due_at=clock(connection, -40))
    id = history(connection)[0][3] or 0
    UNFINISHED[place](connection, id)
    waiting = rows(connection, "blocked_jobs")
    made = tick(connection, move(connection, overlap=overlap))
    _, outcome, _, job_id = history(connection)[-1]
    if overlap == "allow":
        assert (made, outcome) == (1, "enqueued")
        assert row_of(connection, job_id or 0)["table"] == "ready_jobs"
    elif overlap == "skip":
        assert (made, outcome, job_id) == (0, "overlapped", id)
    elif place == "running":  # one is queued behind it
        assert (made, outcome) == (1, "enqueued")
        assert row_of(connection, job_id or 0)["table"] == "blocked_jobs"
    else:  # the one that waits stands for this due time, too
        assert (made, outcome, job_id) == (0, "joined", waiting[0]["id"] if waiting else id)
    assert stored(connection)["due_at"] > clock(connection)


@pytest.mark.parametrize("place", FINISHED)
@pytest.mark.parametrize("overlap", ["allow", "skip", "queue"])
def test_a_job_that_has_ended_is_in_nobodys_way(
    connection: psycopg.Connection, overlap: str, place: str
) -> None:
    tick(connection, due(connection, ago=60, overlap=overlap), next_due_at=clock(connection, -1))
    FINISHED[place](connection, history(connection)[0][3] or 0)
    assert tick(connection, stored(connection)) == 1
    assert outcomes_of(connection) == ["enqueued", "enqueued"]
    assert row_of(connection, history(connection)[1][3] or 0)["table"] == "ready_jobs"


def test_a_job_that_is_queued_behind_another_runs_when_that_one_is_done(
    connection: psycopg.Connection,
) -> None:
    tick(connection, due(connection, ago=60, overlap="queue"), next_due_at=clock(connection, -40))
    (job,) = claim(connection, register(connection))
    tick(connection, stored(connection), next_due_at=clock(connection, -20))
    follower = history(connection)[1][3] or 0
    assert tick(connection, stored(connection)) == 0  # joins the one that is queued
    assert history(connection)[2][1:] == ("joined", 0, follower)
    states = [row["job_state"] for row in viewed(connection, "schedule_runs", "due_at")]
    assert states == ["running", "blocked", "blocked"]
    call(connection, "complete", ids=[job.id], leases=[job.lease])
    assert [job.id for job in claim(connection, register(connection))] == [follower]


def test_the_schedules_of_one_task_do_not_overlap_each_other(connection: psycopg.Connection) -> None:
    for name in ("a", "b"):
        assert tick(connection, due(connection, name, overlap="skip")) == 1


# History ----------------------------------------------------------------------------------------------


def fill_history(session: psycopg.Connection, runs: int, *, days: float) -> None:
    """A run an hour, the last one so many days ago."""
    session.execute(
        """insert into pgqueue.schedule_runs (schedule, due_at, ran_at, outcome)
           select 's', due_at, due_at, 'missed'
             from (select clock_timestamp() - make_interval(secs => 86400 * %s + 3600 * n) as due_at
                     from generate_series(0, %s) as n) as d""",
        [days, runs - 1],
    )


@pytest.mark.parametrize(
    ("runs", "days", "kept"),
    [
        (150, 0.1, 151),  # all of the last seven days
        (300, 2, 121),
        (99, 30, 100),  # the last hundred, however old
        (150, 30, 100),
    ],
)
def test_a_tick_forgets_what_is_neither_of_the_last_week_nor_of_the_last_hundred(
    connection: psycopg.Connection, runs: int, days: float, kept: int
) -> None:
    read = due(connection)
    fill_history(connection, runs, days=days)
    connection.execute(
        "insert into pgqueue.schedule_runs select 'other', due_at, ran_at, outcome from pgqueue.schedule_runs"
    )
    latest = [read["due_at"], *[due_at for due_at, *_ in history(connection)][::-1]]
    tick(connection, read)
    for _ in range(2):
        tick(connection, stored(connection), dues=[])
    assert [due_at for due_at, *_ in history(connection)][::-1] == latest[:kept]
    assert len(history(connection, "other")) == runs


def test_a_tick_forgets_at_most_a_hundred_at_once(connection: psycopg.Connection) -> None:
    read = due(connection)
    fill_history(connection, 500, days=30)
    left = []
    for _ in range(6):
        tick(connection, read, next_due_at=read["due_at"] + timedelta(microseconds=1))
        read = stored(connection)
        left.append(len(history(connection)))
    assert left == [401, 302, 203, 104, 100, 100]


def _final(session: psycopg.Connection) -> list[str | None]:
    return [row["state"] for row in rows(session, "schedule_runs", "true order by due_at")]


@pytest.mark.parametrize("state", FINISHED)
def test_a_later_tick_notes_how_the_job_ended(connection: psycopg.Connection, state: str) -> None:
    tick(connection, due(connection, ago=60), next_due_at=clock(connection, -40))
    FINISHED[state](connection, history(connection)[0][3] or 0)
    assert _final(connection) == [None]
    tick(connection, stored(connection))
    assert _final(connection) == [state, None]


@pytest.mark.parametrize("place", ["ready", "scheduled", "running"])
def test_what_is_unfinished_is_noted_when_it_has_ended(connection: psycopg.Connection, place: str) -> None:
    tick(connection, due(connection, ago=60), next_due_at=clock(connection, -40))
    id = history(connection)[0][3] or 0
    UNFINISHED[place](connection, id)
    tick(connection, stored(connection), dues=[])
    assert _final(connection) == [None]
    call(connection, "cancel", ids=[id])
    if place == "running":
        leases = [row["lease"] for row in rows(connection, "running_jobs")]
        call(connection, "end_cancelled", ids=[id], leases=leases, reasons=[None])
    tick(connection, stored(connection), dues=[])
    assert _final(connection) == ["cancelled"]


def test_jobs_that_are_forgotten_do_not_keep_others_from_being_noted(connection: psycopg.Connection) -> None:
    read = due(connection, ago=60)
    tick(connection, read, dues=[read["due_at"] + timedelta(seconds=n) for n in range(30)])
    jobs = claim(connection, register(connection), 30)
    call(connection, "complete", ids=[job.id for job in jobs], leases=[job.lease for job in jobs])
    connection.execute("delete from pgqueue.finished_jobs where id <= %s", [jobs[24].id])
    tick(connection, stored(connection), dues=[])
    assert _final(connection) == ["unknown"] * 20 + [None] * 10  # so many a tick
    tick(connection, stored(connection), dues=[])
    assert _final(connection) == ["unknown"] * 25 + ["completed"] * 5
    shown = connection.execute("select job_state from pgqueue_bi.schedule_runs order by due_at").fetchall()
    assert [state for (state,) in shown] == [None] * 25 + ["completed"] * 5


def test_retain_notes_it_for_schedules_that_do_not_tick_any_more(connect: Connect, fresh: str) -> None:
    connection = connect(fresh)
    for name in ("a", "b"):
        tick(connection, due(connection, name))
    enqueue(connection)
    jobs = claim(connection, register(connection), 9)
    call(connection, "complete", ids=[job.id for job in jobs], leases=[job.lease for job in jobs])
    call(connection, "retain")
    assert _final(connection) == ["completed"] * 2


# Views ------------------------------------------------------------------------------------------------


def viewed(session: psycopg.Connection, view: str, order: str) -> list[Row]:
    """The rows of a view."""
    cursor = session.cursor(row_factory=psycopg.rows.dict_row)
    return cursor.execute(f"select * from pgqueue_bi.{view} order by {order}").fetchall()


def test_the_view_of_schedules_shows_rule_next_and_last(connection: psycopg.Connection) -> None:
    read = due(
        connection,
        "a",
        every=None,
        cron="0 3 * * *",
        tz="Europe/Paris",
        overlap="skip",
        jitter=5.0,
        missed="all",
    )
    tick(connection, read, next_due_at=clock(connection, 60))
    sync(connection, definition("b", every=60), definition("c", at_startup=True), starts=False)
    (a, b, c) = viewed(connection, "schedules", "name")
    ((due_at, outcome, _, job_id),) = history(connection, "a")
    row = stored(connection, "a")
    assert a == {
        "name": "a", "owner": None, "task": "t", "queue": "default", "priority": 5, "max_attempts": 5,
        "cron": "0 3 * * *", "seconds": None, "every_seconds": None, "once_at": None, "at_startup": False,
        "tz": "Europe/Paris", "starts_at": None, "ends_at": None, "jitter_seconds": 5.0, "grace_seconds": 15.0,
        "missed": "all", "missed_limit": 100, "overlap": "skip", "created_at": row["created_at"], "paused_at": None,
        "next_due_at": row["due_at"], "last_due_at": due_at, "last_ran_at": rows(connection, "schedule_runs")[0]["ran_at"],
        "last_outcome": outcome, "last_job_id": job_id, "problem": None,
    }  # fmt: skip
    assert (b["owner"], b["every_seconds"], b["last_due_at"]) == (OWNER, 60.0, None)
    assert c["at_startup"]
    assert [b["next_due_at"], c["next_due_at"]] == [None, None]  # to be planned; when a worker starts
    call(connection, "pause_schedule", name="a")
    assert viewed(connection, "schedules", "name")[0]["next_due_at"] is None


def test_the_view_of_runs_shows_the_job_where_it_is_now(connection: psycopg.Connection) -> None:
    states = {}
    for n, (state, act) in enumerate({**FINISHED, **UNFINISHED}.items()):
        name, queue = f"{n} {state}", f"q{n}"
        if state == "blocked":
            continue
        tick(connection, due(connection, name, ago=30, queue="default"))
        act(connection, history(connection, name)[0][3] or 0)
        states[name] = state
        connection.execute("update pgqueue.ready_jobs set queue = %s", [queue])  # out of the next one's way
    tick(connection, due(connection, "missed"), outcomes=["missed"], missed=[3])
    shown = {row["schedule"]: row for row in viewed(connection, "schedule_runs", "schedule")}
    assert {name: row["job_state"] for name, row in shown.items()} == states | {"missed": None}
    assert (shown["missed"]["outcome"], shown["missed"]["missed"], shown["missed"]["job_id"]) == (
        "missed",
        3,
        None,
    )
    late = shown["0 completed"]
    assert 30 <= late["late_seconds"] == pytest.approx((late["ran_at"] - late["due_at"]).total_seconds())


# Who may do what --------------------------------------------------------------------------------------

BY_HAND = ("schedule", "unschedule", "pause_schedule", "resume_schedule", "run_schedule", "schedule_record")
BY_WORKERS = ("sync_schedules", "due_schedules", "tick", "keep_time", "resign")
PRIVATE = ("put_schedule", "reject_schedule", "run_due", "settle_runs", "publish_look", "wake_leader")


def test_admins_make_schedules_workers_run_them_and_producers_do_neither(
    connection: psycopg.Connection,
) -> None:
    may = "select bool_and(has_function_privilege(%s, p.oid, 'execute')), bool_or(has_function_privilege(%s, p.oid, 'execute')) from pg_proc as p where p.pronamespace = 'pgqueue'::regnamespace and p.proname = any(%s)"
    for functions, allowed in {
        BY_HAND: {"admin"},
        BY_WORKERS: {"admin", "worker"},
        PRIVATE: set(),
    }.items():
        for role in ("producer", "worker", "monitor", "admin"):
            name = f"pgqueue_{role}"
            held = connection.execute(may, [name, name, list(functions)]).fetchone()
            assert held == (role in allowed, role in allowed), (functions, role)


def test_each_role_does_its_part_with_its_own_rights(connect: Connect) -> None:
    admin, worker, monitor, producer = sessions = [connect() for _ in range(4)]
    for session, role in zip(sessions, ("admin", "worker", "monitor", "producer"), strict=True):
        session.execute(f"set role pgqueue_{role}")
    assert schedule(admin, "by hand", overlap="queue") == "created"
    assert sync(worker, definition("of code", at_startup=True)) == {"of code": "created"}
    assert lead(worker) == 1
    assert call(admin, "run_schedule", name="by hand")[0]["outcome"] == "by_hand"
    assert call(worker, "keep_time", pause_seconds=1, hears=True)[0]["promoted"] == 0
    assert call(worker, "resign", supervisor_id=5) is False
    assert [row["name"] for row in viewed(monitor, "schedules", "name")] == ["by hand", "of code"]
    assert len(viewed(monitor, "schedule_runs", "schedule")) == 2
    for session, act in [
        (producer, schedule),
        (worker, schedule),
        (monitor, schedule),
        (producer, sync),
        (monitor, sync),
    ]:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            act(session)  # type: ignore[operator]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        viewed(producer, "schedules", "name")
