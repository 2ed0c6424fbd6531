"""Unique keys under races, each arranged: somebody holds what another one waits for, and lets go then.

What holds in all of them: one job a key, no ending waits for a producer, and no job is left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql.acting import (
    STOP,
    Connect,
    call,
    claim,
    count,
    enqueue,
    pid,
    register,
    row_of,
    rows,
    sabotaged,
    scalar,
    stopped,
    where,
)
from tests.sql.test_uniqueness import SCOPES, follow_up, held, how, unique
from tests.sql.test_wake import Ear, asleep
from tests.support import release_when_waited_for, wait_for_lock_wait, wait_until

Beside = Callable[..., Future[Any]]
LEVELS = ("repeatable\\ read", "serializable")
IMPATIENT = "-c lock_timeout=2s"
"""Settings of a session that must not have to wait: if it has to, it fails."""


def complete(session: psycopg.Connection, *jobs: Any) -> Any:
    return call(session, "complete", ids=[job.id for job in jobs], leases=[job.lease for job in jobs])


def upkeep(session: psycopg.Connection) -> None:
    """A round of upkeep that leads, and has no problems."""
    session.execute("update pgqueue.leadership set led_at = '-infinity'")
    rounds = {
        "worker_ids": [],
        "queues": ["default"],
        "round_seconds": 1,
        "overdue_seconds": 2,
        "hears": True,
    }
    (done,) = call(session, "upkeep", supervisor_id=1, **rounds)
    assert (done["led"], done["problems"]) == (True, [])


# A job that waits, kept by a transaction that is not over -----------------------------------------------


@pytest.mark.parametrize("policy", ["keep", "replace", "raise_priority"])
def test_a_job_that_was_kept_starts_only_after_the_transaction_that_kept_it(
    connect: Connect, connection: psycopg.Connection, policy: str
) -> None:
    """So it sees what that transaction has written; or it would be lost, for no second job is made."""
    first, _ = held(connection, "ready", unique=how("waiting"))
    worker = register(connection)
    producer = connect(autocommit=False)
    assert unique(producer, how("waiting", policy), priority=2)["id"] == first["id"]
    assert claim(connection, worker) == []
    producer.commit()
    assert [job.id for job in claim(connection, worker)] == [first["id"]]


def test_a_scheduled_job_that_was_kept_becomes_ready_only_after_that_transaction(
    connect: Connect, connection: psycopg.Connection
) -> None:
    first, _ = held(connection, "scheduled", unique=how("waiting"))
    connection.execute("update pgqueue.scheduled_jobs set run_at = clock_timestamp()")
    producer = connect(autocommit=False)
    assert unique(producer, how("waiting"))["id"] == first["id"]
    assert call(connection, "promote", max_jobs=5) == 0
    producer.rollback()
    assert call(connection, "promote", max_jobs=5) == 1


def test_any_number_of_transactions_may_keep_a_job_at_once(
    connect: Connect, connection: psycopg.Connection
) -> None:
    first, _ = held(connection, "ready", unique=how("waiting"))
    producers = [connect(settings=IMPATIENT, autocommit=False) for _ in range(5)]
    assert {unique(producer, how("waiting"))["id"] for producer in producers} == {first["id"]}


@pytest.mark.parametrize("place", ["ready", "running"])
@pytest.mark.parametrize("scope", ["unfinished", "period"])
def test_a_plain_keep_locks_nothing(
    connect: Connect, connection: psycopg.Connection, scope: str, place: str
) -> None:
    first, job = held(connection, place, unique=how(scope))
    producer = connect(autocommit=False)
    assert unique(producer, how(scope))["id"] == first["id"]
    hasty = connect(settings=IMPATIENT)
    (job,) = [job] if job is not None else claim(hasty, register(hasty))
    assert complete(hasty, job) == [first["id"]]
    assert unique(hasty, how(scope))["created"] is (scope == "unfinished")


def test_a_worker_that_falls_asleep_over_a_kept_job_is_woken_at_its_commit(
    connect: Connect, connection: psycopg.Connection
) -> None:
    held(connection, "ready", unique=how("waiting"))
    producer, sleeper = connect(autocommit=False), asleep(connection)
    ear = Ear(connect, sleeper)
    unique(producer, how("waiting"))
    assert claim(connection, sleeper) == []
    assert ear.heard() == []
    producer.commit()
    assert ear.heard() == [sleeper]


def test_a_worker_that_is_about_to_fall_asleep_sees_who_keeps_a_job(
    connect: Connect, connection: psycopg.Connection
) -> None:
    """It registers after the producer looked for sleepers, so nobody tells it: it waits for that one's end."""
    held(connection, "ready", unique=how("waiting"))
    producer = connect(autocommit=False)
    unique(producer, how("waiting"))
    asleep(connection)
    assert len(call(connection, "writers", relation="ready_jobs")) == 1
    producer.commit()
    assert call(connection, "writers", relation="ready_jobs") == []


# A holder that moves while it is looked at --------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_job_that_is_being_claimed_is_waited_for(
    connect: Connect, connection: psycopg.Connection, end: str
) -> None:
    first, _ = held(connection, "ready", unique=how("waiting"))
    worker = connect(autocommit=False)
    claim(worker, register(connection))
    producer = connect()
    with release_when_waited_for(connect(), pid(producer), getattr(worker, end)):
        row = unique(producer, how("waiting"))
    if end == "commit":
        assert row["outcome"] == "created"
        assert where(connection, row["id"]) == ["ready_jobs"]
    else:
        assert row == {"id": first["id"], "created": False, "outcome": "kept"}


def test_a_job_that_is_being_promoted_is_found_where_it_goes(
    connect: Connect, connection: psycopg.Connection
) -> None:
    first, _ = held(connection, "scheduled", unique=how())
    connection.execute("update pgqueue.scheduled_jobs set run_at = clock_timestamp()")
    promoter, producer = connect(autocommit=False), connect()
    assert call(promoter, "promote", max_jobs=1) == 1
    with release_when_waited_for(connect(), pid(producer), promoter.commit):
        row = unique(producer, how(policy="replace"), n=7)
    assert row == {"id": first["id"], "created": False, "outcome": "replaced"}
    job = row_of(connection, first["id"])
    assert (job["table"], job["args"]) == ("ready_jobs", {"n": 7})


def test_a_look_without_the_lock_keeps_a_job_that_runs_already(
    connect: Connect, connection: psycopg.Connection
) -> None:
    """The careless variant of the two tests above: it shows that they can fail."""
    held(connection, "ready", unique=how("waiting"))
    careless = (
        "from pgqueue.ready_jobs as r where r.id = holder for key share",
        "from pgqueue.ready_jobs as r where r.id = holder",
    )
    with sabotaged(connection, "meet_waiting", careless):
        worker, producer = connect(autocommit=False), connect(settings=IMPATIENT)
        (job,) = claim(worker, register(connection))
        assert unique(producer, how("waiting"))["id"] == job.id  # and its writes come too late for that job
        worker.commit()


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_whose_job_is_ending_is_free_when_that_is_committed(
    connect: Connect, connection: psycopg.Connection, scope: str
) -> None:
    _, job = held(connection, "running", unique=how(scope))
    worker, producer = connect(autocommit=False), connect()
    complete(worker, job)
    if scope == "unfinished":
        with release_when_waited_for(connect(), pid(producer), worker.commit):
            assert unique(producer, how(scope))["outcome"] == "created"
    else:
        # a period outlasts its job; and in the scope waiting one that runs does not count, nor one that ends
        if scope == "waiting":
            wait = release_when_waited_for(connect(), pid(producer), worker.commit)
            with wait:
                assert unique(producer, how(scope))["outcome"] == "created"
        else:
            assert unique(producer, how(scope))["outcome"] == "kept"


# Endings do not wait for producers -----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_ending_does_not_wait_for_a_producer_that_took_the_key_over(
    connect: Connect, connection: psycopg.Connection, end: str
) -> None:
    _, job = held(connection, "running", unique=how("waiting"))
    producer = connect(autocommit=False)
    new = unique(producer, how("waiting"))
    assert new["created"]
    assert complete(connect(settings=IMPATIENT), job) == [job.id]  # type: ignore[union-attr]
    getattr(producer, end)()
    # the key that the ending had to leave behind is nobody's
    row = unique(connection, how())
    assert row["created"] is (end == "rollback")
    assert (row["id"] == new["id"]) is (end == "commit")
    assert count(connection, "unique_keys") == 1
    assert count(connection, "ready_jobs") == 1


def test_an_ending_that_waits_for_the_keys_lock_would_wait_for_a_producer(
    connect: Connect, connection: psycopg.Connection
) -> None:
    """The careless variant of the test above."""
    _, job = held(connection, "running", unique=how("waiting"))
    producer = connect(autocommit=False)
    unique(producer, how("waiting"))
    hasty = connect(settings="-c lock_timeout=100ms")
    with (
        sabotaged(connection, "free_keys", (" for update skip locked", "")),
        pytest.raises(psycopg.errors.LockNotAvailable),
    ):
        complete(hasty, job)


@pytest.mark.parametrize("policy", ["keep", "replace", "follow_up"])
@pytest.mark.parametrize("verb", ["complete", "fail", "snooze", "release", "rescue"])
def test_nothing_that_a_worker_does_waits_for_a_producer(
    connect: Connect, connection: psycopg.Connection, verb: str, policy: str
) -> None:
    _, job = held(connection, "running", unique=how())
    assert job is not None
    producer = connect(autocommit=False)
    unique(producer, how(policy=policy))
    hasty = connect(settings=IMPATIENT)
    given = {"ids": [job.id], "leases": [job.lease]}
    match verb:
        case "fail":
            call(hasty, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease, "delay": None}]))
        case "snooze":
            call(hasty, "snooze", **given, delays=[5.0])
        case "rescue":
            call(hasty, "rescue", worker_id=scalar(connection, "select worker_id from pgqueue.running_jobs"))
        case _:
            call(hasty, verb, **given)
    assert count(connection, "running_jobs") == 0
    upkeep(hasty)


# Follow-ups that an ending could not see -----------------------------------------------------------------


def test_a_follow_up_that_is_committed_after_the_ending_gets_its_turn_in_the_next_round(
    connect: Connect, connection: psycopg.Connection
) -> None:
    _, job = held(connection, "running", unique=how())
    producer = connect(autocommit=False)
    follower = unique(producer, how(policy="follow_up"))
    assert follower["outcome"] == "follow_up"
    complete(connection, job)
    upkeep(connection)
    producer.commit()
    assert where(connection, follower["id"]) == ["blocked_jobs"]
    upkeep(connection)
    assert where(connection, follower["id"]) == ["ready_jobs"]
    assert unique(connection, how())["id"] == follower["id"]


def test_a_follow_up_that_is_locked_when_its_turn_comes_gets_it_in_a_later_round(
    connect: Connect, connection: psycopg.Connection
) -> None:
    job, follower = follow_up(connection)
    producer = connect(autocommit=False)
    assert unique(producer, how(policy="follow_up"))["id"] == follower
    complete(connect(settings=IMPATIENT), job)
    upkeep(connection)
    assert where(connection, follower) == ["blocked_jobs"]
    producer.commit()
    upkeep(connection)
    assert where(connection, follower) == ["ready_jobs"]


def test_who_took_the_key_in_between_goes_first_and_the_follow_up_after_that_one(
    connect: Connect, connection: psycopg.Connection
) -> None:
    _, job = held(connection, "running", unique=how())
    producer = connect(autocommit=False)
    follower = unique(producer, how(policy="follow_up"))["id"]
    complete(connection, job)
    between = unique(connection, how())
    assert between["created"]
    producer.commit()
    upkeep(connection)
    assert where(connection, follower) == ["blocked_jobs"]
    (running,) = claim(connection, register(connection), 5)
    assert running.id == between["id"]
    complete(connection, running)
    assert where(connection, follower) == ["ready_jobs"]


def test_upkeep_waits_for_nobody_who_is_taking_a_key(
    connect: Connect, connection: psycopg.Connection
) -> None:
    _, job = held(connection, "running", unique=how())
    producer, other = connect(autocommit=False), connect(autocommit=False)
    follower = unique(producer, how(policy="follow_up"))["id"]
    complete(connection, job)
    producer.commit()
    assert unique(other, how())["created"]  # and not committed
    upkeep(connect(settings="-c statement_timeout=5s"))
    assert where(connection, follower) == ["blocked_jobs"]
    other.rollback()
    upkeep(connection)
    assert where(connection, follower) == ["ready_jobs"]


def test_an_enqueue_that_finds_the_holder_gone_lets_its_follow_up_go_first(
    connect: Connect, connection: psycopg.Connection
) -> None:
    """The key was left behind, because a producer held it, and the follow-up, because another one did."""
    job, follower = follow_up(connection)
    taker, keeper = connect(autocommit=False), connect(autocommit=False)
    assert unique(keeper, how(policy="follow_up"))["id"] == follower
    assert unique(taker, how("waiting"))["created"]
    complete(connection, job)
    taker.rollback()
    keeper.rollback()
    assert unique(connection, how()) == {"id": follower, "created": False, "outcome": "kept"}
    assert where(connection, follower) == ["ready_jobs"]


# Replays -------------------------------------------------------------------------------------------------


def dead_with_its_key_left_behind(connect: Connect, connection: psycopg.Connection) -> int:
    """A dead letter whose key a producer had locked, and let go again."""
    _, job = held(connection, "running", unique=how("waiting"))
    assert job is not None
    producer = connect(autocommit=False)
    assert unique(producer, how("waiting"))["created"]
    call(connection, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease, "delay": None}]))
    producer.rollback()
    assert [row["job_id"] for row in rows(connection, "unique_keys")] == [job.id]
    return job.id


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_key_that_was_left_behind_goes_to_the_replay_or_to_the_producer_but_not_to_both(
    connect: Connect, connection: psycopg.Connection, end: str
) -> None:
    letter = dead_with_its_key_left_behind(connect, connection)
    operator, producer = connect(autocommit=False), connect()
    assert call(operator, "replay", ids=[letter]) == [letter]
    with release_when_waited_for(connect(), pid(producer), getattr(operator, end)):
        row = unique(producer, how())
    assert row["created"] is (end == "rollback")
    assert (row["id"] == letter) is (end == "commit")
    assert count(connection, "ready_jobs") == count(connection, "unique_keys") == 1


UNDER_THE_LOCK = "if found and pgqueue.unfinished_as(holder) is not distinct from place then", "if found then"


@pytest.mark.parametrize("careless", [False, True])
def test_a_holder_that_is_replayed_after_the_look_is_found_by_the_look_under_the_lock(
    connect: Connect, connection: psycopg.Connection, beside: Beside, careless: bool
) -> None:
    letter = dead_with_its_key_left_behind(connect, connection)
    producer = connect()
    before = "            perform from pgqueue.unique_keys"
    before_the_lock = before, f"            if own_id <> {letter} then perform {STOP}; end if;\n{before}"
    with sabotaged(connection, "take_unique_key", before_the_lock, *[UNDER_THE_LOCK] * careless):
        with stopped(connect()):
            answer = beside(unique, producer, how())
            wait_for_lock_wait(connection, pid(producer))
            assert call(connection, "replay", ids=[letter]) == [letter]
        row = answer.result()
    assert (row["id"] == letter) is not careless
    assert count(connection, "ready_jobs") == 1 + careless


def test_a_follow_up_waits_on_for_a_job_that_is_replayed(
    connect: Connect, connection: psycopg.Connection
) -> None:
    _, job = held(connection, "running", unique=how())
    assert job is not None
    producer, operator = connect(autocommit=False), connect(autocommit=False)
    follower = unique(producer, how(policy="follow_up"))["id"]
    call(connection, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease, "delay": None}]))
    producer.commit()
    assert call(operator, "replay", ids=[job.id]) == [job.id]
    upkeep(connection)  # waits for nobody
    operator.commit()
    upkeep(connection)
    assert where(connection, follower) == ["blocked_jobs"]
    (again,) = claim(connection, register(connection), 5)
    assert again.id == job.id
    complete(connection, again)
    assert where(connection, follower) == ["ready_jobs"]


# Many at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["rollback", "commit"])
@pytest.mark.parametrize(
    ("scope", "policy", "place", "outcome", "racers"),
    [
        ("unfinished", "keep", None, "created", 64),
        ("waiting", "keep", None, "created", 8),
        ("period", "keep", None, "created", 8),
        ("waiting", "keep", "running", "created", 64),
        ("waiting", "replace", "running", "created", 8),
        ("unfinished", "follow_up", "running", "follow_up", 64),
        ("period", "keep", "over", "created", 64),
    ],
)
def test_of_many_producers_racing_one_makes_the_job(
    connect: Connect,
    connection: psycopg.Connection,
    beside: Beside,
    scope: str,
    policy: str,
    place: str | None,
    outcome: str,
    racers: int,
    end: str,
) -> None:
    """Arranged: a winner has taken the key and is not done until all the others wait for it."""
    if place is not None:
        held(connection, "running", unique=how(scope))
    if place == "over":
        connection.execute("update pgqueue.unique_keys set expires_at = clock_timestamp()")
    before = count(connection, "ready_jobs", "blocked_jobs")
    winner = connect(autocommit=False)
    first = unique(winner, how(scope, policy))
    assert first["outcome"] == outcome
    producers = [connect() for _ in range(racers if end == "rollback" else 8)]
    answers = [beside(unique, producer, how(scope, policy)) for producer in producers]
    waiting = "select count(*) from pg_stat_activity where pid = any(%s) and wait_event_type = 'Lock'"
    pids = list(map(pid, producers))
    wait_until(lambda: scalar(connection, waiting, pids) == len(pids), message="the lock waits")
    getattr(winner, end)()
    found = [answer.result() for answer in answers]
    assert len({answer["id"] for answer in found}) == 1
    assert (found[0]["id"] == first["id"]) is (end == "commit")
    created = [answer["outcome"] for answer in found if answer["created"]]
    assert created == ([outcome] if end == "rollback" else [])
    assert count(connection, "ready_jobs", "blocked_jobs") == before + 1
    assert count(connection, "unique_keys") == 1
    assert row_of(connection, found[0]["id"])


def test_producers_workers_and_upkeep_together_make_one_waiting_job_a_key(
    connect: Connect, connection: psycopg.Connection, beside: Beside
) -> None:
    """Not arranged: whatever interleaving comes, of every scope and policy, with roll-backs and endings."""
    worker = register(connection)
    meanings = [
        how("waiting"),
        how("waiting", "replace"),
        how(),
        how(policy="follow_up"),
        how(policy="raise_priority"),
    ]

    def produce(session: psycopg.Connection, number: int) -> list[int]:
        made = []
        for turn in range(40):
            with session.transaction(force_rollback=(turn + number) % 5 == 0) as transaction:
                row = unique(
                    session,
                    meanings[(turn + number) % len(meanings)],
                    unique_key=str(turn % 4),
                    priority=number,
                )
            if row["created"] and not transaction.force_rollback:
                made.append(row["id"])
        return made

    def work(session: psycopg.Connection, number: int) -> list[int]:
        done: list[int] = []
        for turn in range(60):
            jobs = claim(session, worker, 3)
            if turn % 3:
                done += complete(session, *jobs)
            else:
                given = {"ids": [job.id for job in jobs], "leases": [job.lease for job in jobs]}
                call(session, "snooze", **given, delays=[0.0] * len(jobs))
                call(session, "promote", max_jobs=10)
            if number == 0 and turn % 5 == 0:
                call(session, "unblock_stranded")
        return done

    makers = [beside(produce, connect(), number) for number in range(6)]
    hands = [beside(work, connect(), number) for number in range(2)]
    made = [id for end in makers for id in end.result()]
    done = [id for end in hands for id in end.result()]
    assert len(made) == len(set(made))
    for _ in range(100):  # until nothing is left
        call(connection, "promote", max_jobs=100)
        call(connection, "unblock_stranded")
        jobs = claim(connection, worker, 100)
        done += complete(connection, *jobs)
        if not count(connection, "ready_jobs", "scheduled_jobs", "blocked_jobs"):
            break
    assert sorted(done) == sorted(made)
    assert len(rows(connection, "finished_jobs")) == len(made)
    # what an ending had to leave behind is taken by the next one
    for key in range(4):
        assert unique(connection, how(), unique_key=str(key))["created"]


# Bulks do not deadlock -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "policy", "place"),
    [
        ("unfinished", "replace", "ready"),
        ("unfinished", "raise_priority", "ready"),
        ("unfinished", "debounce", "scheduled"),
        ("unfinished", "follow_up", "running"),
        ("waiting", "keep", "ready"),
        ("waiting", "keep", "running"),
    ],
)
def test_bulks_that_meet_the_same_holders_in_different_orders_do_not_deadlock(
    connect: Connect, connection: psycopg.Connection, beside: Beside, scope: str, policy: str, place: str
) -> None:
    for key in "amz":
        held(connection, place, unique=how(scope), unique_key=key)

    def jobs(keys: str, priority: int) -> list[dict[str, Any]]:
        job = {
            "task": "t",
            "priority": priority,
            "options": {
                "unique": how(scope, policy, **({"max_delay": 9999} if policy == "debounce" else {}))
            },
        }
        return [
            job | {"unique_key": key} | ({"delay": 3000 + priority} if policy == "debounce" else {})
            for key in keys
        ]

    third, observer = connect(autocommit=False), connect()
    third.execute("select from pgqueue.unique_keys where key = 'm' for update")
    third.execute("select from pgqueue.ready_jobs where unique_key = 'm' for update")
    third.execute("select from pgqueue.scheduled_jobs where unique_key = 'm' for update")
    blocked = {"follow_up": "insert into pgqueue.blocked_jobs select -1, id, now(), now(), 1, 0, 1, 0, queue, task, args, unique_key"
               " from pgqueue.running_jobs where unique_key = 'm'"}.get(policy)  # fmt: skip
    if blocked:
        third.execute(blocked)
    sessions = [connect(settings="-c deadlock_timeout=20ms") for _ in range(2)]
    answers = []
    for session, given in zip(sessions, (jobs("amz", 3), jobs("zma", 2)), strict=True):
        answers.append(beside(call, session, "enqueue_many", jobs=Jsonb(given)))
        wait_for_lock_wait(observer, pid(session))
    third.rollback()
    outcomes = {outcome for answer in answers for outcome in answer.result()[0]["outcomes"]}
    assert outcomes <= {"replaced", "raised", "postponed", "follow_up", "kept", "created"}
    created = [c for answer in answers for c in answer.result()[0]["created"]]
    assert sum(created) == (3 if place == "running" else 0)


# Isolation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("scope", "policy", "meanwhile"),
    [
        ("waiting", "keep", "claimed"),
        ("unfinished", "replace", "claimed"),
        ("unfinished", "debounce", "claimed"),
        ("unfinished", "raise_priority", "claimed"),
        ("unfinished", "follow_up", "claimed"),
        ("waiting", "keep", "taken over"),
        ("unfinished", "follow_up", "followed"),
        ("period", "keep", "taken"),
        ("waiting", "keep", "taken"),
    ],
)
def test_above_read_committed_what_is_younger_than_the_snapshot_asks_for_a_retry(
    connect: Connect, connection: psycopg.Connection, level: str, scope: str, policy: str, meanwhile: str
) -> None:
    delay: dict[str, Any] = {"delay": 0} if policy == "debounce" else {}
    if meanwhile == "claimed":
        held(connection, "ready", unique=how(scope))
    elif meanwhile != "taken":
        held(connection, "running", unique=how(scope))
    old = connect(settings=f"-c default_transaction_isolation={level}")
    with old.transaction():
        old.execute("select from pgqueue_bi.jobs")  # takes the snapshot
        if meanwhile == "claimed":
            claim(connection, register(connection))
        else:
            assert unique(connection, how(scope, policy))["created"]
        before = count(connection, "ready_jobs", "blocked_jobs", "running_jobs")
        with pytest.raises(psycopg.errors.SerializationFailure), old.transaction():
            unique(old, how(scope, policy), **delay)
    assert count(connection, "ready_jobs", "blocked_jobs", "running_jobs") == before
    row = unique(old, how(scope, policy), **delay)  # the retry
    expected = {"follow_up": "follow_up"}.get(policy, "created" if scope == "waiting" else "kept")
    assert row["outcome"] == (expected if meanwhile == "claimed" else "kept")


@pytest.mark.parametrize("level", ["read\\ committed", *LEVELS])
@pytest.mark.parametrize("scope", SCOPES)
def test_at_every_level_two_that_race_make_one_job(
    connect: Connect, connection: psycopg.Connection, level: str, scope: str
) -> None:
    settings = f"-c default_transaction_isolation={level}"
    one, two = (connect(settings=settings, autocommit=False) for _ in range(2))
    for session in (one, two):
        session.execute("select from pgqueue_bi.jobs")  # both snapshots are taken before either enqueues
    first = unique(one, how(scope))
    try:
        with release_when_waited_for(connect(), pid(two), one.commit):
            row = unique(two, how(scope))
    except psycopg.errors.SerializationFailure:
        assert level in LEVELS
        two.rollback()
        row = unique(two, how(scope))
    two.commit()
    assert row == {"id": first["id"], "created": False, "outcome": "kept"}
    assert count(connection, "ready_jobs") == 1


def test_an_ending_at_repeatable_read_leaves_a_follow_up_that_it_cannot_see_to_upkeep(
    connect: Connect, connection: psycopg.Connection
) -> None:
    """As of a transactional task whose session is at that level."""
    _, job = held(connection, "running", unique=how())
    handler = connect(settings="-c default_transaction_isolation=repeatable\\ read", autocommit=False)
    handler.execute("select from pgqueue_bi.jobs")
    follower = unique(connection, how(policy="follow_up"))["id"]
    complete(handler, job)
    handler.commit()
    upkeep(connection)
    assert where(connection, follower) == ["ready_jobs"]
    assert enqueue(connection, unique_key="k") == follower
