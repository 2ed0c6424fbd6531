"""Keeping time: what falls due is ready on time, the leader is woken for what comes sooner, and another takes over.

That nothing was said is shown without waiting, as in `test_wake.py`: notifications come in the order of the commits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgqueue import calls
from pgqueue.drivers import run
from tests.sql.acting import (
    STOP,
    Connect,
    call,
    claim,
    claimed,
    count,
    empty,
    enqueue,
    enqueue_many,
    open_session,
    pid,
    register,
    row_of,
    rows,
    sabotaged,
    scalar,
    stopped,
)
from tests.sql.test_plans import buffers, explaining, told
from tests.sql.test_schedules import clock, definition, due, move, schedule, stored, sync, tick
from tests.sql.test_uniqueness import how, unique
from tests.support import wait_for_lock_wait

LEADER = 7
OTHER = 8
ROUND, OVERDUE = 2.0, 4.0
"""Seconds, as by default."""
LATEST = 1.17 * OVERDUE + 0.001
"""Seconds after the last round in which the next one is led, whoever leads it."""


def upkeep(session: psycopg.Connection, supervisor_id: int = LEADER, *, hears: bool = True) -> Any:
    """A round of upkeep that has no problems: `UpkeepRound`."""
    done = run(
        session,
        calls.upkeep(
            supervisor_id=supervisor_id,
            worker_ids=(),
            queues=("default",),
            round_seconds=ROUND,
            overdue_seconds=OVERDUE,
            hears=hears,
        ),
    )
    assert done.problems == []
    return done


def keep_time(session: psycopg.Connection, pause: float = 60, *, hears: bool = True) -> Any:
    """What the leader does between two rounds, to come back in `pause` seconds at the latest: `TimeKept`."""
    return run(session, calls.keep_time(pause, hears=hears))


def led(session: psycopg.Connection, *, ago: float = 0, by: int = LEADER) -> None:
    """Moves the last round to `ago` seconds ago."""
    session.execute(
        "update pgqueue.leadership set supervisor_id = %s, led_at = clock_timestamp() - make_interval(secs => %s)",
        [by, ago],
    )


def next_look(session: psycopg.Connection) -> float:
    """In how many seconds the leader looks again, as it has said."""
    seconds: float = scalar(
        session,
        "select (last_value / 1000.0 - extract(epoch from clock_timestamp()))::float8 from pgqueue.next_look",
    )
    return seconds


class Ear:
    """A session that listens on the channels of upkeep."""

    def __init__(self, connect: Connect):
        self._connection, self._speaker = connect(), connect()
        for channel in ("the_end", "pgqueue_upkeep", *(f"pgqueue_upkeep_{id}" for id in (0, LEADER, OTHER))):
            self._connection.execute(f"listen {channel}")

    def heard(self) -> list[int | str]:
        """Who was notified since the last time: supervisors by id, or "all"."""
        self._speaker.execute("notify the_end")
        channels: list[str] = []
        for notification in self._connection.notifies(timeout=10):
            if notification.channel == "the_end":
                break
            channels.append(notification.channel)
        else:
            raise AssertionError("the last notification did not come")
        return ["all" if name == "pgqueue_upkeep" else int(name.rsplit("_", 1)[1]) for name in channels]


@pytest.fixture
def ear(connect: Connect, connection: psycopg.Connection) -> Ear:
    """Listens; LEADER leads."""
    led(connection)
    return Ear(connect)


# What comes sooner than the next look -----------------------------------------------------------------

Act = Callable[[psycopg.Connection], object]
Way = Callable[[psycopg.Connection, float], Act]
"""Arranges that one call schedules a job for so many seconds from now; returns that call."""


def _enqueue(_session: psycopg.Connection, seconds: float) -> Act:
    return lambda session: enqueue(session, delay=seconds)


def _enqueue_at(_session: psycopg.Connection, seconds: float) -> Act:
    return lambda session: enqueue(session, run_at=clock(session, seconds))


def _enqueue_unique(_session: psycopg.Connection, seconds: float) -> Act:
    return lambda session: enqueue(session, delay=seconds, unique_key="k", idempotency_key="k")


def _enqueue_many(_session: psycopg.Connection, seconds: float) -> Act:
    delays = (500, None, seconds, 400)
    return lambda session: enqueue_many(session, [{"task": "t", "delay": delay} for delay in delays])


def _fail(session: psycopg.Connection, seconds: float) -> Act:
    worker = register(session)
    jobs = [claimed(session, worker) for _ in range(3)]
    failures = [
        {"id": job.id, "lease": job.lease, "delay": delay}
        for job, delay in zip(jobs, (500, seconds, None), strict=True)
    ]
    return lambda session: call(session, "fail", failures=Jsonb(failures))


def _snooze(session: psycopg.Connection, seconds: float) -> Act:
    worker = register(session)
    jobs = [claimed(session, worker) for _ in range(2)]
    ids, leases = [job.id for job in jobs], [job.lease for job in jobs]
    return lambda session: call(session, "snooze", ids=ids, leases=leases, delays=[500.0, float(seconds)])


def _unblock(session: psycopg.Connection, seconds: float) -> Act:
    job = claimed(session, register(session), unique_key="k")
    behind = unique(session, how("unfinished", "follow_up"), delay=seconds)
    assert behind["outcome"] == "follow_up"
    return lambda session: call(session, "complete", ids=[job.id], leases=[job.lease])


def _debounce(session: psycopg.Connection, seconds: float) -> Act:
    """A job that is ready already is put off."""
    first = unique(session, how("unfinished", "debounce"), delay=600)
    session.execute("update pgqueue.scheduled_jobs set run_at = clock_timestamp()")
    assert call(session, "promote", max_jobs=1) == 1
    postponed = {"id": first["id"], "created": False, "outcome": "postponed"}

    def act(session: psycopg.Connection) -> None:
        assert unique(session, how("unfinished", "debounce"), delay=seconds) == postponed

    return act


WAYS = [_enqueue, _enqueue_at, _enqueue_unique, _enqueue_many, _fail, _snooze, _unblock, _debounce]


@pytest.mark.parametrize("way", WAYS)
def test_whatever_schedules_a_job_before_the_next_look_notifies_the_leader_and_nothing_else_does(
    connection: psycopg.Connection, ear: Ear, way: Way
) -> None:
    for seconds, heard in ((30, [LEADER]), (90, [])):
        act = way(connection, seconds)
        connection.execute(
            "select setval('pgqueue.next_look', (extract(epoch from now()) * 1000 + 60000)::bigint)"
        )
        ear.heard()
        act(connection)
        assert ear.heard() == heard, seconds
        assert rows(connection, "scheduled_jobs", "run_at between now() + %s * interval '1 s' and now() + %s * interval '1 s'",
                    seconds - 5, seconds)  # fmt: skip
        empty(connection)
        led(connection)


@pytest.mark.parametrize("way", WAYS)
def test_with_notifying_switched_off_nobody_is_notified(
    connect: Connect, connection: psycopg.Connection, ear: Ear, way: Way
) -> None:
    silent = connect(settings="-c pgqueue.notify=off")
    act = way(silent, 30)
    keep_time(connection)
    ear.heard()
    act(silent)
    assert ear.heard() == []


def test_a_job_that_is_ready_at_once_and_one_that_is_rolled_back_notify_no_leader(
    connection: psycopg.Connection, ear: Ear
) -> None:
    keep_time(connection)
    enqueue(connection)
    enqueue(connection, delay=0)
    with connection.transaction(force_rollback=True):
        enqueue(connection, delay=5)
    assert ear.heard() == []


def test_a_leader_that_cannot_be_notified_is_not(connection: psycopg.Connection, ear: Ear) -> None:
    assert keep_time(connection, hears=False).next_seconds == pytest.approx(60, abs=1)
    enqueue(connection, delay=5)
    assert ear.heard() == []
    assert keep_time(connection, hears=False).next_seconds == pytest.approx(
        5, abs=1
    )  # it comes back by itself


def test_while_nobody_has_ever_led_nobody_is_notified(
    connect: Connect, connection: psycopg.Connection
) -> None:
    ear = Ear(connect)
    enqueue(connection, delay=5)
    assert ear.heard() == []


def test_once_the_leader_looks_for_a_job_those_behind_it_notify_nobody(
    connection: psycopg.Connection, ear: Ear
) -> None:
    """So a steady stream of delayed jobs costs no NOTIFY each."""
    enqueue(connection, delay=5)
    assert keep_time(connection).next_seconds == pytest.approx(5, abs=1)
    assert next_look(connection) == pytest.approx(5, abs=1)
    for delay in (6, 30, 5.5):
        enqueue(connection, delay=delay)
    assert ear.heard() == []
    enqueue(connection, delay=4)
    assert ear.heard() == [LEADER]


def test_whoever_leads_now_is_notified(connection: psycopg.Connection, ear: Ear) -> None:
    upkeep(connection)
    led(connection, ago=OVERDUE + 0.1)
    assert upkeep(connection, OTHER).led
    enqueue(connection, delay=1)
    assert ear.heard() == [OTHER]


def _put(session: psycopg.Connection) -> None:
    schedule(session)


def _retime(session: psycopg.Connection) -> None:
    schedule(session, "old", every=5.0)


def _resume(session: psycopg.Connection) -> None:
    call(session, "resume_schedule", name="paused")


def _start(session: psycopg.Connection) -> None:
    sync(session, definition("at start", at_startup=True))


def _put_again(session: psycopg.Connection) -> None:
    schedule(session, "old")


def _start_late(session: psycopg.Connection) -> None:
    sync(session, definition("at start", at_startup=True), starts=False)


def _pause(session: psycopg.Connection) -> None:
    call(session, "pause_schedule", name="old")


def _delete(session: psycopg.Connection) -> None:
    call(session, "unschedule", name="old")


@pytest.mark.parametrize(
    ("act", "heard"),
    [(_put, [LEADER]), (_retime, [LEADER]), (_resume, [LEADER]), (_start, [LEADER]),
     (_put_again, []), (_start_late, []), (_pause, []), (_delete, [])],
)  # fmt: skip
def test_a_schedule_that_is_to_be_planned_notifies_the_leader(
    connection: psycopg.Connection, ear: Ear, act: Callable[[psycopg.Connection], None], heard: list[int]
) -> None:
    for name in ("old", "paused"):
        schedule(connection, name)
        move(connection, name, due_at=clock(connection, 3600))
    call(connection, "pause_schedule", name="paused")
    sync(connection, definition("at start", at_startup=True), starts=False)
    keep_time(connection)
    ear.heard()
    act(connection)
    assert ear.heard() == heard


def test_a_travel_through_time_notifies_the_leader(connection: psycopg.Connection, ear: Ear) -> None:
    enqueue(connection, delay=3600)
    keep_time(connection)
    assert call(connection, "travel", seconds=3600) == 1
    assert ear.heard() == [LEADER]
    assert keep_time(connection).promoted == 1


def test_a_travel_takes_every_job_along_by_as_much(connection: psycopg.Connection) -> None:
    enqueue(connection, delay=7200)
    claimed(connection, register(connection), unique_key="k")
    unique(connection, how("unfinished", "follow_up"), delay=7200)
    enqueue(connection)
    tables = ("scheduled_jobs", "blocked_jobs", "ready_jobs")
    for table in tables:
        connection.execute(
            f"update pgqueue.{table} set options = jsonb_build_object('expires_at', run_at + interval '1 h')"
        )
    before = [rows(connection, table)[0] for table in tables]
    call(connection, "travel", seconds=3600)
    for table, old in zip(tables, before, strict=True):
        (new,) = rows(connection, table)
        for moved in ("run_at", "created_at"):
            assert (old[moved] - new[moved]).total_seconds() == 3600, (table, moved)
        expires = "select extract(epoch from (%s::jsonb ->> 'expires_at')::timestamptz - (%s::jsonb ->> 'expires_at')::timestamptz)"
        assert scalar(connection, expires, Jsonb(old["options"]), Jsonb(new["options"])) == 3600, table


# The leader's look ------------------------------------------------------------------------------------


def test_the_leader_looks_again_when_the_next_job_or_schedule_is_due(connection: psycopg.Connection) -> None:
    assert keep_time(connection, 60) == (0, False, pytest.approx(60, abs=1))
    enqueue(connection, delay=30)
    assert keep_time(connection).next_seconds == pytest.approx(30, abs=1)
    schedule(connection)
    move(connection, due_at=clock(connection, 20))
    assert keep_time(connection) == (0, False, pytest.approx(20, abs=1))
    assert keep_time(connection, 10).next_seconds == pytest.approx(10, abs=1)
    assert next_look(connection) == pytest.approx(10, abs=1)
    call(connection, "pause_schedule", name="s")
    assert keep_time(connection).next_seconds == pytest.approx(30, abs=1)


def test_a_round_of_upkeep_keeps_time_as_well(connection: psycopg.Connection) -> None:
    due(connection)
    enqueue(connection, delay=3600)
    call(connection, "travel", seconds=3600)
    done = upkeep(connection)
    assert (done.led, done.promoted, done.schedules_due, done.next_seconds) == (True, 1, True, 0)
    tick(connection, stored(connection))
    done = upkeep(connection)
    assert (done.promoted, done.schedules_due, done.next_seconds) == (0, False, pytest.approx(ROUND, abs=0.2))
    assert next_look(connection) == pytest.approx(ROUND, abs=0.2)


@pytest.mark.parametrize("is_planned", [True, False])
def test_a_schedule_that_is_due_or_to_be_planned_is_told_at_once(
    connection: psycopg.Connection, is_planned: bool
) -> None:
    if is_planned:
        due(connection)
    else:
        schedule(connection)
    assert keep_time(connection) == (0, True, 0)
    tick(connection, stored(connection), dues=[])
    assert keep_time(connection) == (0, False, pytest.approx(60, abs=1))


def test_a_round_that_takes_its_time_after_the_look_comes_back_the_sooner(
    connection: psycopg.Connection,
) -> None:
    enqueue(connection, delay=1)
    slow = (
        "delete from pgqueue.sleepers as s",
        "perform pg_sleep(0.2);\n        delete from pgqueue.sleepers as s",
    )
    with sabotaged(connection, "upkeep", slow):
        done = upkeep(connection)
    assert done.next_seconds == pytest.approx(next_look(connection), abs=0.05)


# The race: who looks first ------------------------------------------------------------------------------


def test_who_has_read_the_old_next_look_is_seen_when_it_commits(
    connect: Connect, connection: psycopg.Connection, ear: Ear
) -> None:
    """The race, arranged: it has inserted, and found no reason to notify, before the look, and commits after it."""
    producer = connect(autocommit=False)
    keep_time(connection, 0.01)
    id = enqueue(producer, delay=1)  # the leader looks before that anyway: no NOTIFY
    assert keep_time(connection, 60).next_seconds <= 0.25  # it cannot see the job, but that somebody writes
    producer.commit()
    assert ear.heard() == []  # … and nobody tells it
    assert 0.25 < keep_time(connection, 60).next_seconds <= 1
    connection.execute("update pgqueue.scheduled_jobs set run_at = clock_timestamp()")
    assert keep_time(connection, 60) == (1, False, pytest.approx(60, abs=1))
    assert row_of(connection, id)["table"] == "ready_jobs"


def test_a_careless_look_without_the_writers_oversleeps_it(
    connect: Connect, connection: psycopg.Connection, ear: Ear
) -> None:
    producer = connect(autocommit=False)
    keep_time(connection, 0.01)
    enqueue(producer, delay=1)
    with sabotaged(connection, "keep_time", ("cardinality(pgqueue.writers('scheduled_jobs')) > 0", "false")):
        assert keep_time(connection, 60).next_seconds > 59
    producer.commit()
    assert ear.heard() == []


AFTER_THE_READ = "    if next_due < next_look then\n"
PUBLISH = "    perform pgqueue.publish_look(case when hears then next_look end);\n    is_written"


def test_who_schedules_after_the_look_finds_it_published(
    connect: Connect, connection: psycopg.Connection, ear: Ear, beside: Callable[..., Future[Any]]
) -> None:
    """Arranged: the leader has looked at what is due, and not said anything more, when a job comes and goes by."""
    leader, observer = connect(), connect()
    keep_time(connection, 0.01)
    with sabotaged(connection, "keep_time", (AFTER_THE_READ, f"    perform {STOP};\n{AFTER_THE_READ}")):
        with stopped(connection):
            look = beside(keep_time, leader)
            wait_for_lock_wait(observer, pid(leader))
            enqueue(connection, delay=1)
        assert look.result().next_seconds > 59
    assert ear.heard() == [LEADER]


def test_a_careless_look_that_is_published_afterwards_oversleeps_it(
    connect: Connect, connection: psycopg.Connection, ear: Ear, beside: Callable[..., Future[Any]]
) -> None:
    leader, observer = connect(), connect()
    keep_time(connection, 0.01)
    careless = (PUBLISH, "    is_written"), (AFTER_THE_READ, f"    perform {STOP};\n    if true then\n")
    with sabotaged(
        connection,
        "keep_time",
        *careless,
        ("        next_look := next_due;", "        next_look := least(next_look, next_due);"),
    ):
        with stopped(connection):
            look = beside(keep_time, leader)
            wait_for_lock_wait(observer, pid(leader))
            enqueue(connection, delay=1)
        assert look.result().next_seconds > 59
    assert ear.heard() == []


def test_a_transaction_that_only_reads_or_writes_elsewhere_does_not_keep_the_leader_awake(
    connect: Connect, connection: psycopg.Connection
) -> None:
    reader, writer, producer = (connect(autocommit=False) for _ in range(3))
    count(reader, "scheduled_jobs")
    enqueue(writer)
    assert keep_time(connection).next_seconds > 59
    enqueue(producer, delay=5)
    assert keep_time(connection).next_seconds == pytest.approx(0.25, abs=0.01)


def test_a_due_job_that_somebody_holds_is_tried_again_and_hurries_nobody(
    connect: Connect, connection: psycopg.Connection
) -> None:
    """It does not make the leader spin, nor be late for the next one."""
    holder = connect(autocommit=False)
    held = enqueue(connection, delay=3600)
    call(connection, "travel", seconds=3600)
    holder.execute("select from pgqueue.scheduled_jobs for update")
    assert keep_time(connection) == (0, False, pytest.approx(0.25, abs=0.01))
    enqueue(connection, delay=0.15)
    assert 0 < keep_time(connection).next_seconds <= 0.15
    holder.rollback()
    assert keep_time(connection).promoted == 1
    assert row_of(connection, held)["table"] == "ready_jobs"


# Leadership -------------------------------------------------------------------------------------------


def test_a_leader_that_resigns_is_followed_at_once(connection: psycopg.Connection, ear: Ear) -> None:
    assert upkeep(connection).led
    assert not upkeep(connection, OTHER).led
    ear.heard()
    assert call(connection, "resign", supervisor_id=LEADER) is True
    assert ear.heard() == ["all"]
    enqueue(connection, delay=0.5)
    assert ear.heard() == []  # there is nobody to be told
    done = upkeep(connection, OTHER)
    assert (done.led, upkeep(connection).led) == (True, False)
    assert 0 < done.next_seconds <= 0.5
    assert [row["supervisor_id"] for row in rows(connection, "leadership")] == [OTHER]


@pytest.mark.parametrize("by", [OTHER, 0])
def test_who_does_not_lead_cannot_resign(connection: psycopg.Connection, ear: Ear, by: int) -> None:
    led(connection, by=by)
    keep_time(connection)
    assert call(connection, "resign", supervisor_id=LEADER) is False
    assert ear.heard() == []
    assert next_look(connection) > 59


def test_a_follower_promotes_nothing_and_leaves_the_leaders_next_look_alone(
    connection: psycopg.Connection,
) -> None:
    upkeep(connection)
    due(connection)
    enqueue(connection, delay=3600)
    call(connection, "travel", seconds=3600)
    said = scalar(connection, "select last_value from pgqueue.next_look")
    done = upkeep(connection, OTHER)
    assert (done.led, done.promoted, done.schedules_due) == (False, 0, False)
    assert scalar(connection, "select last_value from pgqueue.next_look") == said
    assert count(connection, "ready_jobs") == 0


@pytest.mark.parametrize("ago", [0, 0.5, 1, 2, 3.9])
def test_a_follower_comes_when_the_next_round_is_overdue_and_leads_then(
    connection: psycopg.Connection, ago: float
) -> None:
    """So however the leader goes, the next round is led within 5 s of its last one; and an idle follower is seldom here."""
    for _ in range(20):
        led(connection, ago=ago)
        done = upkeep(connection, OTHER)
        assert (done.led, OVERDUE < ago + done.next_seconds <= LATEST) == (False, True)
    led(connection, ago=ago + done.next_seconds)
    assert upkeep(connection, OTHER).led


def test_a_follower_that_meets_a_round_under_way_looks_again_soon(
    connect: Connect, connection: psycopg.Connection
) -> None:
    one, two = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    led(connection, ago=OVERDUE + 0.1)
    assert upkeep(one).led
    done = upkeep(two, OTHER)
    assert (done.led, done.next_seconds) == (False, pytest.approx(0.1 * OVERDUE))
    one.rollback()  # the leader died in the middle of its round
    assert upkeep(two, OTHER).led


def test_of_many_that_are_asked_to_take_over_one_leads(
    connect: Connect, connection: psycopg.Connection, beside: Callable[..., Future[Any]]
) -> None:
    """Arranged: another one has led between the look at the row and the lock."""
    one, two, observer = connect(autocommit=False), connect(), connect()
    led(connection, by=0)
    assert upkeep(one).led
    place = "        led := pg_try_advisory_xact_lock("
    with sabotaged(connection, "upkeep", (place, f"        perform {STOP};\n{place}")):
        with stopped(connection):
            late = beside(upkeep, two, OTHER)
            wait_for_lock_wait(observer, pid(two))
            one.commit()
        done = late.result()
    assert (done.led, OVERDUE < done.next_seconds <= LATEST) == (False, True)
    assert [row["supervisor_id"] for row in rows(connection, "leadership")] == [LEADER]


@pytest.mark.parametrize("by", [LEADER, OTHER])
def test_a_round_from_before_the_clock_was_set_back_is_overdue(
    connection: psycopg.Connection, by: int
) -> None:
    led(connection, ago=-3600, by=by)
    assert upkeep(connection).led
    assert rows(connection, "leadership")[0]["led_at"] <= clock(connection)
    assert not upkeep(connection, OTHER).led


def test_a_clock_that_was_set_back_by_a_moment_keeps_no_follower_away(connection: psycopg.Connection) -> None:
    led(connection, ago=-2)
    done = upkeep(connection, OTHER)
    assert (done.led, done.next_seconds <= LATEST) == (False, True)


# Many -------------------------------------------------------------------------------------------------


def schedule_jobs(session: psycopg.Connection, jobs: int, run_at: str) -> None:
    """Scheduled jobs, quickly; `run_at` is SQL over n, 1 to `jobs`."""
    session.execute(f"""
        insert into pgqueue.scheduled_jobs (id, run_at, created_at, lane, attempt, max_attempts, crashes, queue, task, args)
        select nextval('pgqueue.job_ids'), {run_at}, now(), 11, 0, 5, 0, 'default', 't', '{{}}'
          from generate_series(1, {jobs}) as n""")


def test_a_hundred_thousand_jobs_due_at_once_are_promoted_in_batches_that_hold_up_no_claim(
    connect: Connect, fresh: str
) -> None:
    leader, hasty = connect(fresh, autocommit=False), connect(fresh, settings="-c lock_timeout=500ms")
    connection = connect(fresh)
    schedule_jobs(connection, 100_000, "clock_timestamp() - n * interval '10 us'")
    worker = register(connection)
    batches: list[int] = []
    slowest = 0.0
    claimed_jobs = 0
    while not batches or batches[-1]:
        began = time.perf_counter()
        kept = keep_time(leader)
        batches.append(kept.promoted)
        if len(batches) % 10 == 5:  # in the middle of a batch that is not committed
            claimed_jobs += len(claim(hasty, worker, 100))
        leader.commit()
        slowest = max(slowest, time.perf_counter() - began)
        assert (kept.next_seconds == 0) is (sum(batches) < 100_000), (
            "it looks again at once while more are due"
        )
    assert batches == [1000] * 100 + [0]
    assert (claimed_jobs, count(connection, "ready_jobs")) == (1000, 99_000)
    assert slowest < 1


JOBS = 200_000


def test_jobs_of_the_future_cost_a_look_and_a_claim_nothing(fresh: str) -> None:
    """Of the look that every pass makes at them, and of the calls as a whole, the first one's reading of catalogs apart."""
    with open_session(fresh) as connection:
        schedule_jobs(connection, JOBS, "clock_timestamp() + n * interval '1 s' + interval '1 min'")
        worker, session = register(connection), explaining(fresh)
        acts: dict[str, Callable[[], Any]] = {
            'pgqueue."keep_time"': lambda: call(session, "keep_time", pause_seconds=600, hears=True),
            "from pgqueue.claim": lambda: claim(session, worker, 10),
            'pgqueue."enqueue"': lambda: call(session, "enqueue", task="t", delay=30),
        }
        for marker, act in acts.items():
            enqueue(connection)
            with session.transaction(force_rollback=True):
                act()
            assert buffers(session, act, marker) < 100
        with told(session) as statements, session.transaction(force_rollback=True):
            (kept,) = call(session, "keep_time", pause_seconds=600, hears=True)
        assert (kept["promoted"], kept["next_seconds"]) == (0, pytest.approx(60, abs=5))
        looks = [told for told in statements if "order by s.run_at limit 1" in " ".join(told.text.split())]
        assert [look.buffers < 10 for look in looks] == [True]
        session.close()


@contextmanager
def ticking(dsn: str) -> Iterator[tuple[psycopg.Connection, psycopg.Connection]]:
    """A session, and one that says what it looks at; autovacuum leaves the schedules alone, and somebody has an old snapshot."""
    with open_session(dsn) as connection, open_session(dsn, autocommit=False) as reader:
        for table in ("schedules", "schedule_runs"):
            connection.execute(f"alter table pgqueue.{table} set (autovacuum_enabled = off)")
        session = explaining(dsn)
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        count(reader, "schedules")
        yield connection, session
        session.close()


def test_under_a_held_snapshot_a_look_hardly_pays_for_the_ticks_of_long_ago(fresh: str) -> None:
    """Ten minutes of a schedule that is due every second leave 600 versions of its row behind."""
    with ticking(fresh) as (connection, session):
        due(connection, ago=600)
        move(connection, due_at=clock(connection, -600))

        def look() -> Any:
            return call(session, "keep_time", pause_seconds=5, hears=True)

        look()
        before = buffers(session, look, 'pgqueue."keep_time"')
        for n in range(600):
            read = stored(connection)
            next_due_at = clock(connection, n - 599)
            assert tick(connection, read, outcomes=["missed"], next_due_at=next_due_at) == 0
        assert buffers(session, look, 'pgqueue."keep_time"') <= before + 60
        assert len(call(connection, "due_schedules")) == 1
