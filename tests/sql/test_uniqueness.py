"""Unique keys: what each scope and each policy does to a holder in each state, and who frees a key.

Races are in `test_uniqueness_races.py`, plain keys without options in `test_enqueue_sql.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgqueue.job import ClaimedJob
from tests.sql.acting import (
    Connect,
    Row,
    call,
    claim,
    count,
    enqueue,
    enqueue_many,
    everything,
    register,
    row_of,
    rows,
    scalar,
    where,
)
from tests.sql.test_wake import Ear, asleep

SCOPES: dict[str, dict[str, Any]] = {
    "unfinished": {},
    "waiting": {"scope": "waiting"},
    "period": {"period": 3600},
}
POLICIES = ("keep", "replace", "debounce", "raise_priority", "follow_up")
PLACES = ("ready", "scheduled", "retried", "running", "completed", "dead", "cancelled")

WAITING = {"keep": "kept", "replace": "replaced", "debounce": "postponed", "raise_priority": "raised",
           "follow_up": "kept"}  # fmt: skip
"""What a policy does to a holder that waits."""


def how(scope: str = "unfinished", policy: str = "keep", **more: Any) -> dict[str, Any]:
    """`options.unique` of a scope and a policy."""
    bound = {"max_delay": 600} if policy == "debounce" else {}
    return SCOPES[scope] | {"on_conflict": policy} | bound | more


def unique(
    session: psycopg.Connection,
    unique: dict[str, Any] | None = None,
    *,
    many: bool = False,
    n: int = 2,
    **given: Any,
) -> Row:
    """Enqueues a job of task t with the key k: its id, whether it was created, the outcome."""
    options = ({"unique": unique} if unique is not None else {}) | given.pop("options", {})
    job = {"task": "t", "args": {"n": n}, "unique_key": "k", "options": options or None} | given
    if not many:
        rows: list[Row] = call(session, "enqueue", **job)
        return rows[0]
    (row,) = call(session, "enqueue_many", jobs=Jsonb([job]))
    return {"id": row["ids"][0], "created": row["created"][0], "outcome": row["outcomes"][0]}


def held(session: psycopg.Connection, place: str, **given: Any) -> tuple[Row, ClaimedJob | None]:
    """A job that holds the key k, with args {"n": 1}, in a state; and its claim, when it runs."""
    first = unique(session, n=1, **given, delay=1800 if place == "scheduled" else 0)
    assert first["outcome"] == "created"
    if place in ("ready", "scheduled", "cancelled"):
        if place == "cancelled":
            call(session, "cancel", ids=[first["id"]])
        return first, None
    (job,) = claim(session, register(session))
    if place == "completed":
        call(session, "complete", ids=[job.id], leases=[job.lease])
    elif place in ("retried", "dead"):
        delay = 1 if place == "retried" else None
        call(session, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease, "delay": delay}]))
    return first, job if place == "running" else None


def outcome_of(scope: str, policy: str, place: str) -> str:
    """The table of the manual: what an enqueue does when it meets a holder."""
    if place in ("ready", "scheduled", "retried"):
        return WAITING[policy]
    if place == "running" and scope == "unfinished":
        return "follow_up" if policy == "follow_up" else "kept"
    return "kept" if scope == "period" and place != "cancelled" else "created"


# Every scope, every policy, every state ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "many"), [*((place, False) for place in PLACES), ("ready", True), ("running", True)]
)
@pytest.mark.parametrize(
    ("scope", "policy"),
    [(s, p) for s in SCOPES for p in POLICIES if p != "follow_up" or s == "unfinished"],
)
def test_an_enqueue_that_meets_a_holder_does_what_the_manual_says(
    connection: psycopg.Connection, scope: str, policy: str, place: str, many: bool
) -> None:
    first, _ = held(connection, place, unique=how(scope, policy))
    before = row_of(connection, first["id"])

    delay = {"delay": 3600} if policy == "debounce" else {}
    row = unique(
        connection,
        how(scope, policy, **({"max_delay": 7200} if delay else {})),
        many=many,
        priority=2,
        **delay,
    )

    expected = outcome_of(scope, policy, place)
    assert row["outcome"] == expected
    assert row["created"] is (expected in ("created", "follow_up"))
    assert (row["id"] == first["id"]) is not row["created"]
    after = row_of(connection, first["id"])
    changed = {name for name in before if name in after and before[name] != after[name]}
    assert (
        changed
        <= {
            "kept": set(),
            "created": set(),
            "follow_up": set(),
            "replaced": {"args"},
            "postponed": {"args", "run_at", "table"},
            "raised": {"lane", "position"},
        }[expected]
    )
    assert (after["args"] == {"n": 2}) is (expected in ("replaced", "postponed"))
    assert (after["lane"] == 5) is (expected == "raised")
    if expected == "postponed":
        due = scalar(connection, "select clock_timestamp() + interval '1 hour'")
        assert timedelta(0) <= due - after["run_at"] < timedelta(minutes=1)
        assert after["table"] == "scheduled_jobs"
    if row["created"]:
        made = row_of(connection, row["id"])
        assert (made["args"], made["lane"], made["unique_key"]) == ({"n": 2}, 5, "k")
        assert made["table"] == {"follow_up": "blocked_jobs"}.get(
            expected, "scheduled_jobs" if delay else "ready_jobs"
        )


def test_the_table_of_the_manual_is_the_one_that_is_tested() -> None:
    page = Path(__file__).parents[2] / "docs/howto/uniqueness.md"
    told = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in page.read_text().splitlines()
        if line.startswith(tuple(f"| {scope} |" for scope in SCOPES))
    ]
    assert told == [
        [scope, policy, *(outcome_of(scope, policy, place) for place in ("ready", "running", "completed"))]
        for scope in SCOPES
        for policy in POLICIES
        if policy != "follow_up" or scope == "unfinished"
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_key_that_nobody_holds_makes_a_job_whatever_the_policy(
    connection: psycopg.Connection, policy: str
) -> None:
    row = unique(connection, how("unfinished", policy), delay=0)
    assert (row["created"], row["outcome"]) == (True, "created")
    assert row_of(connection, row["id"])["table"] == "ready_jobs"


def test_keys_without_options_say_what_happened_too(connection: psycopg.Connection) -> None:
    assert call(connection, "enqueue", task="t")[0]["outcome"] == "created"
    assert call(connection, "enqueue", task="t", delay=5)[0]["outcome"] == "created"
    first = unique(connection, idempotency_key="i")
    assert first["outcome"] == "created"
    assert unique(connection) == {"id": first["id"], "created": False, "outcome": "kept"}
    assert unique(connection, unique_key=None, idempotency_key="i")["outcome"] == "kept"
    (plain,) = call(connection, "enqueue_many", jobs=Jsonb([{"task": "t"}, {"task": "t"}]))
    assert (plain["created"], plain["outcomes"]) == ([True, True], None)


def test_what_a_key_means_is_not_stored_but_for_its_period(connection: psycopg.Connection) -> None:
    tagged = {"tags": ["a"]}
    cases: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]] = [
        (how("waiting"), {}, None),
        (how("waiting", "replace"), tagged, tagged),
        (how("period"), {}, {"unique": {"period": 3600}}),
        (how("period"), tagged, tagged | {"unique": {"period": 3600}}),
    ]
    for number, (meaning, options, stored) in enumerate(cases):
        for many in (False, True):
            row = unique(connection, meaning, many=many, options=options, unique_key=f"{number} {many}")
            assert row_of(connection, row["id"])["options"] == stored


# Policies ---------------------------------------------------------------------------------------------


def test_a_replaced_job_keeps_everything_but_its_args(connection: psycopg.Connection) -> None:
    first, _ = held(connection, "retried", unique=how(), options={"tags": ["a"]}, max_attempts=9)
    before = row_of(connection, first["id"])
    row = unique(
        connection, how(policy="replace"), n=7, options={"tags": ["b"]}, max_attempts=2, queue="x", priority=0
    )
    assert row == {"id": first["id"], "created": False, "outcome": "replaced"}
    assert row_of(connection, first["id"]) == before | {"args": {"n": 7}}


def moved(session: psycopg.Connection, id: int, **seconds: float) -> None:
    """Moves times of a scheduled job; the clock stays."""
    for column, by in seconds.items():
        session.execute(
            f"update pgqueue.scheduled_jobs set {column} = clock_timestamp() + make_interval(secs => %s) where id = %s",
            [by, id],
        )


def due_in(session: psycopg.Connection, id: int) -> float:
    seconds: float = (
        row_of(session, id)["run_at"] - scalar(session, "select clock_timestamp()")
    ).total_seconds()
    return seconds


def test_a_debounce_never_puts_a_job_off_beyond_its_bound(connection: psycopg.Connection) -> None:
    bounce = how(policy="debounce", max_delay=60)
    first = unique(connection, bounce, delay=10)
    moved(connection, first["id"], created_at=-45)
    assert unique(connection, bounce, delay=10)["outcome"] == "postponed"
    assert 9 < due_in(connection, first["id"]) <= 10
    moved(connection, first["id"], created_at=-55)
    row = unique(connection, bounce, delay=10, n=7)
    assert row["outcome"] == "replaced"  # it has the new args; run_at, which is later already, stays
    assert 9 < due_in(connection, first["id"]) <= 10
    moved(connection, first["id"], run_at=2)
    assert unique(connection, bounce, delay=10)["outcome"] == "postponed"
    assert 4 < due_in(connection, first["id"]) <= 5


def test_a_debounce_never_pulls_a_job_forward(connection: psycopg.Connection) -> None:
    first = unique(connection, how(policy="debounce"), delay=300)
    assert unique(connection, how(policy="debounce"), delay=5, n=7)["outcome"] == "replaced"
    job = row_of(connection, first["id"])
    assert job["args"] == {"n": 7}
    assert 290 < due_in(connection, first["id"]) <= 300


def test_a_debounce_whose_bound_has_passed_leaves_a_ready_job_ready(connection: psycopg.Connection) -> None:
    first = unique(connection, how(policy="debounce"), delay=0)
    connection.execute("update pgqueue.ready_jobs set created_at = now() - interval '601 s'")
    assert unique(connection, how(policy="debounce"), delay=60, n=7)["outcome"] == "replaced"
    job = row_of(connection, first["id"])
    assert (job["table"], job["args"]) == ("ready_jobs", {"n": 7})


def test_a_debounce_takes_a_time_as_well_as_a_delay(connection: psycopg.Connection) -> None:
    first = unique(connection, how(policy="debounce"), delay=10)
    due = scalar(connection, "select now() + interval '100 s'")
    assert unique(connection, how(policy="debounce"), run_at=due)["outcome"] == "postponed"
    assert row_of(connection, first["id"])["run_at"] == due


@pytest.mark.parametrize("place", ["ready", "scheduled"])
def test_a_priority_is_only_ever_raised(connection: psycopg.Connection, place: str) -> None:
    first, _ = held(connection, place, unique=how(), priority=4)
    before = row_of(connection, first["id"])
    for priority in (4, 5, 9):
        assert unique(connection, how(policy="raise_priority"), priority=priority)["outcome"] == "kept"
    assert row_of(connection, first["id"]) == before
    assert unique(connection, how(policy="raise_priority"), priority=3)["outcome"] == "raised"
    assert row_of(connection, first["id"])["lane"] == 7


def test_a_job_that_was_raised_is_behind_those_that_had_its_new_priority_before(
    connection: psycopg.Connection,
) -> None:
    first = unique(connection, how())
    other = enqueue(connection, priority=2)
    unique(connection, how(policy="raise_priority"), priority=2)
    assert [job.id for job in claim(connection, register(connection), 5)] == [other, first["id"]]


def test_a_raised_job_that_was_given_back_stays_in_the_half_lane_of_those(
    connection: psycopg.Connection,
) -> None:
    _, job = held(connection, "running", unique=how())
    assert job is not None
    call(connection, "release", ids=[job.id], leases=[job.lease])
    unique(connection, how(policy="raise_priority"), priority=2)
    assert row_of(connection, job.id)["lane"] == 4


# Follow-ups -------------------------------------------------------------------------------------------


def follow_up(session: psycopg.Connection, **given: Any) -> tuple[ClaimedJob, int]:
    """A running job, and the id of the one that is to run after it."""
    _, job = held(session, "running", unique=how())
    assert job is not None
    row = unique(session, how(policy="follow_up"), **given)
    assert row["outcome"] == "follow_up"
    return job, row["id"]


def test_exactly_one_job_follows_a_running_one(connection: psycopg.Connection) -> None:
    job, follower = follow_up(connection)
    assert follower != job.id
    for _ in range(3):
        row = unique(connection, how(policy="follow_up"), n=9)
        assert row == {"id": follower, "created": False, "outcome": "kept"}
    assert row_of(connection, follower)["args"] == {"n": 2}
    assert count(connection, "blocked_jobs") == 1
    assert claim(connection, register(connection), 5) == []
    # who does not ask for one gets the holder, which runs
    assert unique(connection, how()) == {"id": job.id, "created": False, "outcome": "kept"}


def _fail(session: psycopg.Connection, job: ClaimedJob) -> None:
    call(session, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease, "delay": None}]))


def _crash(session: psycopg.Connection, job: ClaimedJob) -> None:
    session.execute("update pgqueue.running_jobs set crashes = 3, attempt = max_attempts")
    worker = scalar(session, "select worker_id from pgqueue.running_jobs")
    call(session, "rescue", worker_id=worker, started=[job.id])
    assert where(session, job.id) == ["dead_letters"]


def _retry_and_cancel(session: psycopg.Connection, job: ClaimedJob) -> None:
    call(session, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease, "delay": 60}]))
    call(session, "cancel", ids=[job.id])


def _cancel_and_fail(session: psycopg.Connection, job: ClaimedJob) -> None:
    call(session, "cancel", ids=[job.id])
    call(session, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease, "delay": 60}]))
    assert row_of(session, job.id)["state"] == "cancelled"


ENDINGS: dict[str, Callable[[psycopg.Connection, ClaimedJob], object]] = {
    "complete": lambda session, job: call(session, "complete", ids=[job.id], leases=[job.lease]),
    "complete with a result": lambda session, job: call(
        session, "complete_with_results", completions=Jsonb([{"id": job.id, "lease": job.lease, "result": 7}])
    ),
    "cancelled": lambda session, job: call(
        session, "end_cancelled", ids=[job.id], leases=[job.lease], reasons=[None]
    ),
    "expired": lambda session, job: (
        session.execute("""update pgqueue.running_jobs set options = '{"expires_at": "2000-01-01"}'"""),
        call(session, "end_expired", ids=[job.id], leases=[job.lease]),
    ),
    "dead": _fail,
    "crashed": _crash,
    "cancelled while it waits for its retry": _retry_and_cancel,
    "cancelled when it fails": _cancel_and_fail,
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_every_ending_gives_the_turn_to_the_follow_up(
    connection: psycopg.Connection, ending: Callable[[psycopg.Connection, ClaimedJob], object]
) -> None:
    job, follower = follow_up(connection, priority=1)
    ending(connection, job)
    assert row_of(connection, follower)["table"] == "ready_jobs"
    # it has the key now, as if it had been enqueued a moment ago
    assert unique(connection, how()) == {"id": follower, "created": False, "outcome": "kept"}
    (next_job,) = claim(connection, register(connection), 5)
    assert (next_job.id, next_job.attempt, next_job.priority) == (follower, 1, 1)
    call(connection, "complete", ids=[next_job.id], leases=[next_job.lease])
    assert count(connection, "unique_keys", "blocked_jobs") == 0


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
@pytest.mark.parametrize("scope", ["unfinished", "waiting"])
def test_every_ending_frees_the_key(
    connection: psycopg.Connection, scope: str, ending: Callable[[psycopg.Connection, ClaimedJob], object]
) -> None:
    _, job = held(connection, "running", unique=how(scope))
    assert job is not None
    ending(connection, job)
    assert count(connection, "unique_keys") == 0
    assert unique(connection, how(scope))["created"]


@pytest.mark.parametrize("back", ["retry", "snooze", "release", "rescue"])
def test_a_job_that_comes_back_keeps_its_key_and_its_follow_up(
    connection: psycopg.Connection, back: str
) -> None:
    job, follower = follow_up(connection)
    given = {"ids": [job.id], "leases": [job.lease]}
    if back == "retry":
        call(connection, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease, "delay": 0}]))
    elif back == "snooze":
        call(connection, "snooze", **given, delays=[0.0])
    elif back == "release":
        call(connection, "release", **given)
    else:
        call(connection, "rescue", worker_id=scalar(connection, "select worker_id from pgqueue.running_jobs"))
    assert unique(connection, how()) == {"id": job.id, "created": False, "outcome": "kept"}
    assert where(connection, follower) == ["blocked_jobs"]
    # of two that wait the one whose turn it is stands for both
    assert unique(connection, how(policy="follow_up"))["id"] == job.id


def test_a_follow_up_that_is_due_later_waits_on_as_scheduled(connection: psycopg.Connection) -> None:
    job, follower = follow_up(connection, delay=1800)
    call(connection, "complete", ids=[job.id], leases=[job.lease])
    assert row_of(connection, follower)["table"] == "scheduled_jobs"
    assert 1790 < due_in(connection, follower) <= 1800


def test_a_follow_up_wakes_a_worker(connect: Connect, connection: psycopg.Connection) -> None:
    job, _ = follow_up(connection)
    sleeper = asleep(connection)
    ear = Ear(connect, sleeper)
    call(connection, "complete", ids=[job.id], leases=[job.lease])
    assert ear.heard() == [sleeper]


def test_a_follow_up_can_be_cancelled_while_it_waits(connection: psycopg.Connection) -> None:
    job, follower = follow_up(connection)
    assert call(connection, "cancel_matching", of_state="blocked") == [
        {"id": follower, "outcome": "cancelled"}
    ]
    assert row_of(connection, follower)["state"] == "cancelled"
    assert unique(connection, how())["id"] == job.id  # the key is the running one's
    again = unique(connection, how(policy="follow_up"))
    assert again["outcome"] == "follow_up"
    call(connection, "complete", ids=[job.id], leases=[job.lease])
    assert where(connection, again["id"]) == ["ready_jobs"]


def test_a_job_may_ask_for_its_own_follow_up_in_the_transaction_that_completes_it(
    connection: psycopg.Connection,
) -> None:
    _, job = held(connection, "running", unique=how())
    assert job is not None
    with connection.transaction():
        row = unique(connection, how(policy="follow_up"))
        call(connection, "complete", ids=[job.id], leases=[job.lease])
    assert row["outcome"] == "follow_up"
    assert where(connection, row["id"]) == ["ready_jobs"]


# The scope waiting ------------------------------------------------------------------------------------


def test_in_the_scope_waiting_the_newest_has_the_key_and_a_retry_of_the_old_one_waits_beside_it(
    connection: psycopg.Connection,
) -> None:
    _, old = held(connection, "running", unique=how("waiting"))
    assert old is not None
    new = unique(connection, how("waiting"))
    call(connection, "fail", failures=Jsonb([{"id": old.id, "lease": old.lease, "delay": 60}]))
    assert where(connection, old.id) == ["scheduled_jobs"]
    assert unique(connection, how("waiting"))["id"] == new["id"]
    call(connection, "cancel", ids=[old.id])  # it does not free what it has not
    assert unique(connection, how("waiting"))["id"] == new["id"]
    call(connection, "cancel", ids=[new["id"]])
    assert count(connection, "unique_keys") == 0


def test_a_retry_that_nobody_overtook_holds_its_key(connection: psycopg.Connection) -> None:
    first, _ = held(connection, "retried", unique=how("waiting"))
    assert unique(connection, how("waiting")) == {"id": first["id"], "created": False, "outcome": "kept"}


def test_a_dead_letter_whose_key_another_job_took_stays_until_that_one_has_ended(
    connection: psycopg.Connection,
) -> None:
    _, job = held(connection, "running", unique=how("waiting"))
    assert job is not None
    new = unique(connection, how("waiting"))
    _fail(connection, job)
    assert call(connection, "replay", ids=[job.id]) == []
    call(connection, "cancel", ids=[new["id"]])
    assert call(connection, "replay", ids=[job.id]) == [job.id]
    assert unique(connection, how("waiting"))["id"] == job.id


# Periods ----------------------------------------------------------------------------------------------


def test_a_period_counts_from_the_enqueue_that_made_the_job(connection: psycopg.Connection) -> None:
    first = unique(connection, how("period"))
    left = "select expires_at - clock_timestamp() from pgqueue.unique_keys"
    assert timedelta(minutes=59) < scalar(connection, left) <= timedelta(hours=1)
    assert unique(connection, how("period", period=7200))["outcome"] == "kept"
    assert scalar(connection, left) <= timedelta(hours=1)
    connection.execute("update pgqueue.unique_keys set expires_at = clock_timestamp()")
    second = unique(connection, how("period", period=7200))
    assert second["created"]
    assert scalar(connection, left) > timedelta(minutes=119)
    assert unique(connection, how("period"))["id"] == second["id"] != first["id"]


def test_a_period_and_an_unfinished_job_of_one_key_do_not_meet(connection: psycopg.Connection) -> None:
    assert unique(connection, how("period"))["created"]
    assert unique(connection, how())["created"]
    jobs = [
        {"task": "t", "unique_key": "k2", "options": {"unique": how(scope)}}
        for scope in ("period", "waiting")
    ]
    (row,) = call(connection, "enqueue_many", jobs=Jsonb(jobs * 2))
    assert row["outcomes"] == ["created", "created", "kept", "kept"]


def test_a_period_outlives_the_replay_of_its_job_which_needs_no_key(connection: psycopg.Connection) -> None:
    first, _ = held(connection, "dead", unique=how("period"))
    other = unique(connection, how())
    assert call(connection, "replay", ids=[first["id"]]) == [first["id"]]
    assert (
        row_of(connection, other["id"])["unique_key"] == row_of(connection, first["id"])["unique_key"] == "k"
    )
    assert unique(connection, how("period"))["id"] == first["id"]
    assert unique(connection, how())["id"] == other["id"]


def test_a_period_that_is_over_is_forgotten_by_upkeep(connection: psycopg.Connection) -> None:
    unique(connection, how("period"))
    call(connection, "retain")
    assert count(connection, "unique_keys") == 1
    connection.execute("update pgqueue.unique_keys set expires_at = now() - interval '1 s'")
    call(connection, "retain")
    assert count(connection, "unique_keys") == 0


# Bulks ------------------------------------------------------------------------------------------------


def bulk(session: psycopg.Connection, *jobs: dict[str, Any]) -> tuple[list[int], list[str]]:
    """The ids, and the outcomes."""
    given = [{"task": "t", "args": {"n": n}, "unique_key": "k"} | job for n, job in enumerate(jobs)]
    (row,) = call(session, "enqueue_many", jobs=Jsonb(given))
    assert row["created"] == [outcome in ("created", "follow_up") for outcome in row["outcomes"]]
    return row["ids"], row["outcomes"]


def meaning(policy: str, scope: str = "unfinished", **more: Any) -> dict[str, Any]:
    return {"options": {"unique": how(scope, policy)}} | more


def test_in_a_bulk_a_later_item_meets_the_job_of_an_earlier_one(connection: psycopg.Connection) -> None:
    ids, outcomes = bulk(
        connection,
        meaning("replace"),
        {"unique_key": "other"},
        meaning("replace"),
        {},
        meaning("debounce", delay=300),
        meaning("raise_priority", priority=1),
        meaning("keep", "waiting"),
        meaning("follow_up"),
    )
    assert outcomes == ["created", "created", "replaced", "kept", "postponed", "raised", "kept", "kept"]
    assert ids == [ids[0], ids[1], *[ids[0]] * 6]
    job = row_of(connection, ids[0])
    assert (job["table"], job["args"], job["lane"]) == ("scheduled_jobs", {"n": 4}, 3)
    assert 290 < due_in(connection, ids[0]) <= 300
    assert count(connection, "ready_jobs", "scheduled_jobs") == 2


def test_in_a_bulk_follow_ups_of_one_key_are_one(connection: psycopg.Connection) -> None:
    held(connection, "running", unique=how())
    ids, outcomes = bulk(connection, *[meaning("follow_up")] * 3)
    assert outcomes == ["follow_up", "kept", "kept"]
    assert len(set(ids)) == 1
    assert row_of(connection, ids[0])["table"] == "blocked_jobs"


def test_a_bulk_of_unique_jobs_is_served_in_the_order_given(connection: psycopg.Connection) -> None:
    taken = unique(connection, how("waiting"), unique_key="5")
    ids, outcomes = bulk(
        connection, *[meaning("replace", "waiting", unique_key=str(9 - n % 9), priority=4) for n in range(18)]
    )
    assert outcomes == [*["created"] * 4, "replaced", *["created"] * 4, *["replaced"] * 9]
    assert ids[:9] == ids[9:]
    assert ids[4] == taken["id"]
    served = claim(connection, register(connection), 20)
    assert [job.id for job in sorted(served, key=lambda job: (job.lane, job.position))] == [
        id for id in ids[:9] if id != taken["id"]
    ] + [taken["id"]]
    assert {job.id: job.args for job in served} == {id: f'{{"n": {n + 9}}}' for n, id in enumerate(ids[:9])}


def test_in_a_bulk_an_idempotency_key_stands_for_the_job_that_its_unique_key_led_to(
    connection: psycopg.Connection,
) -> None:
    first, _ = held(connection, "ready", unique=how())
    ids, outcomes = bulk(
        connection,
        meaning("replace", idempotency_key="i"),
        meaning("replace", idempotency_key="j"),
        {"unique_key": None, "idempotency_key": "i"},
    )
    assert set(ids) == {first["id"]}
    assert outcomes == ["replaced", "replaced", "kept"]
    assert enqueue(connection, idempotency_key="j") == first["id"]


# What is refused --------------------------------------------------------------------------------------

_KEYS = "Keys: scope, period, on_conflict, max_delay."
_SECONDS = "Seconds, more than 0 and at most ten years."

REFUSED: list[tuple[Any, dict[str, Any], str, str]] = [
    ([], {}, "options.unique: expected a JSON object, got a JSON array", _KEYS),
    (None, {}, "options.unique: expected a JSON object, got a JSON null", _KEYS),
    ({"scop": "waiting"}, {}, "options.unique: there is no 'scop'", _KEYS),
    ({}, {"unique_key": None}, "options.unique: there is no unique_key", "It says what the unique_key is to mean: give both."),
    ({"scope": "running"}, {}, "options.unique.scope: 'running' is none", "unfinished or waiting."),
    ({"scope": 7}, {}, "options.unique.scope: '7' is none", "unfinished or waiting."),
    ({"on_conflict": "raise"}, {}, "options.unique.on_conflict: 'raise' is none",
     "keep, replace, debounce, raise_priority or follow_up."),
    ({"period": 0}, {}, "options.unique.period: 0 is out of range", _SECONDS),
    ({"period": 1e12}, {}, "options.unique.period: 1000000000000.0 is out of range", _SECONDS),
    ({"period": "1h"}, {}, "options.unique.period: 1h is out of range", _SECONDS),
    ({"period": None}, {}, "options.unique.period: null is out of range", _SECONDS),
    (how(policy="debounce") | {"max_delay": -1}, {"delay": 5}, "options.unique.max_delay: -1 is out of range", _SECONDS),
    ({"period": 60, "scope": "waiting"}, {}, "options.unique.scope and period: both given",
     "Give one of them: a period counts whatever state the job is in."),
    ({"on_conflict": "debounce"}, {"delay": 5}, "options.unique.on_conflict: debounce without a max_delay",
     "delay is what a job is put off by, max_delay how far in all, counted from its enqueue."),
    (how(policy="debounce"), {}, "options.unique.on_conflict: debounce without a delay",
     "delay is what a job is put off by, max_delay how far in all, counted from its enqueue."),
    ({"max_delay": 5}, {}, "options.unique.max_delay: it bounds a debounce, and this is keep",
     "Leave it out, or say on_conflict debounce."),
    ({"scope": "waiting", "on_conflict": "follow_up"}, {},
     "options.unique.on_conflict: follow_up goes with the scope unfinished alone",
     "In the scope waiting a running job does not count: a new one is made beside it."),
    ({"period": 60, "on_conflict": "follow_up"}, {},
     "options.unique.on_conflict: follow_up goes with the scope unfinished alone",
     "In the scope waiting a running job does not count: a new one is made beside it."),
]  # fmt: skip


@pytest.mark.parametrize(("meaning", "given", "message", "hint"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_makes_no_sense_is_refused_with_a_hint_and_nothing_is_written(
    connection: psycopg.Connection, meaning: Any, given: dict[str, Any], message: str, hint: str
) -> None:
    job = {"task": "t", "unique_key": "k", "options": {"unique": meaning}} | given
    before = everything(connection)
    with connection.transaction():
        with pytest.raises(psycopg.Error) as refusal, connection.transaction():
            call(connection, "enqueue", **job)
        assert (refusal.value.sqlstate, refusal.value.diag.message_hint) == ("PQ001", hint)
        assert refusal.value.diag.message_primary == message
        with pytest.raises(psycopg.Error) as refusal, connection.transaction():
            enqueue_many(connection, [{"task": "t", "unique_key": "a"}, job])
        assert refusal.value.diag.message_primary == f"item 1: {message}"
    assert everything(connection) == before


def test_no_variable_of_these_functions_hides_behind_a_column(connect: Connect, fresh: str) -> None:
    """As `test_surface` has it for the rest: what uses columns first is run once without that."""
    session = connect(fresh)
    lax = "select pg_get_functiondef(oid) from pg_proc where prosrc like '%use_column%' and proname like 'enqueue%'"
    for (definition,) in session.execute(lax).fetchall():
        session.execute(definition.replace("#variable_conflict use_column\n", ""))
    for many in (False, True):
        for policy in POLICIES:
            for n in range(2):
                unique(
                    session,
                    how(policy=policy),
                    many=many,
                    delay=n,
                    unique_key=f"{policy} {many}",
                    idempotency_key=f"{n} {many} {policy}",
                )
    assert bulk(session, *[meaning("replace")] * 2)[1] == ["created", "replaced"]
    assert {job["task"] for job in rows(session, "ready_jobs")} == {"t"}
