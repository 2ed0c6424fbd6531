"""Upkeep: promotion, leadership, rescue of silent workers, the safety look, partitions.

Rows are moved instead of clocks. Nothing here waits for time to pass, but for a server that is too young
to have missed a heartbeat: leases count from its start.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

from pgqueue import calls
from pgqueue.calls import UpkeepRound
from pgqueue.drivers import run
from tests.sql.acting import (
    STOP,
    Connect,
    call,
    claim,
    claimed,
    count,
    enqueue,
    enqueue_many,
    pid,
    register,
    row_of,
    rows,
    sabotaged,
    scalar,
    stopped,
)
from tests.support import release_when_waited_for, wait_for_lock_wait, wait_until

OVERDUE = 0.8
"""Seconds. A worker without its session lock is dead 1.25 times that after its last beat: 1 s."""


def keep_up(
    connection: psycopg.Connection,
    supervisor_id: int = 1,
    *,
    worker_ids: tuple[int, ...] = (),
    queues: tuple[str, ...] = ("default",),
) -> UpkeepRound:
    """One round of upkeep."""
    return run(
        connection,
        calls.upkeep(
            supervisor_id=supervisor_id,
            worker_ids=worker_ids,
            queues=queues,
            round_seconds=0.5,
            overdue_seconds=OVERDUE,
            hears=True,
        ),
    )


def led(connection: psycopg.Connection, *, ago: float = 0, by: int = 1) -> None:
    """Moves the last round to `ago` seconds ago; rounds have gone on since for ever before it."""
    connection.execute(
        "update pgqueue.leadership set supervisor_id = %s, led_at = clock_timestamp() - make_interval(secs => %s),"
        " resumed_at = '-infinity'",
        [by, ago],
    )


def beaten(connection: psycopg.Connection, worker_id: int, *, ago: float) -> None:
    """Moves a worker's last beat to `ago` seconds ago, and its registration to the day before."""
    connection.execute(
        "update pgqueue.heartbeats set beat_at = clock_timestamp() - make_interval(secs => %s)"
        " where worker_id = %s",
        [ago, worker_id],
    )
    connection.execute(
        "update pgqueue.workers set started_at = clock_timestamp() - interval '1 day' where id = %s",
        [worker_id],
    )


@pytest.fixture(scope="module", autouse=True)
def _old_server(janitor: psycopg.Connection) -> None:
    """Leases count from the server's start: it must be older than the silences of these tests."""
    old = "select clock_timestamp() - pg_postmaster_start_time() > interval '1.5 s'"
    wait_until(lambda: scalar(janitor, old), message="the server to be 1.5 s old")


def schedule(connection: psycopg.Connection, *dues: float, **options: Any) -> list[int]:
    """Scheduled jobs that became due so many seconds ago."""
    ids = [enqueue(connection, delay=3600, **options) for _ in dues]
    for id, due in zip(ids, dues, strict=True):
        connection.execute(
            "update pgqueue.scheduled_jobs set run_at = clock_timestamp() - make_interval(secs => %s) where id = %s",
            [due, id],
        )
    return ids


# Promotion --------------------------------------------------------------------------------------------


def test_due_jobs_are_promoted_in_the_order_in_which_they_fell_due(connection: psycopg.Connection) -> None:
    late, latest, early = schedule(connection, 20, 10, 30)
    assert call(connection, "promote", max_jobs=2) == 2
    assert [row_of(connection, id)["table"] for id in (early, late, latest)] == [
        "ready_jobs",
        "ready_jobs",
        "scheduled_jobs",
    ]
    assert call(connection, "promote", max_jobs=2) == 1
    jobs = claim(connection, register(connection), 9)
    assert [job.id for job in jobs] == [early, late, latest]


def test_a_job_that_is_not_due_is_not_promoted(connection: psycopg.Connection) -> None:
    schedule(connection, -1)
    assert call(connection, "promote", max_jobs=9) == 0


def test_a_promotion_keeps_what_the_job_is(connection: psycopg.Connection) -> None:
    given = {"args": {"n": 1}, "priority": 2, "unique_key": "k", "options": {"tags": []}, "max_attempts": 9}
    (id,) = schedule(connection, 5, **given)
    connection.execute("update pgqueue.scheduled_jobs set attempt = 4, crashes = 1")
    before = row_of(connection, id)
    call(connection, "promote", max_jobs=9)
    after = row_of(connection, id)
    assert after.pop("position") > 0
    assert after == before | {"table": "ready_jobs"}


def test_a_promotion_skips_what_another_holds_and_does_not_wait(connect: Connect) -> None:
    one, two = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    first, second, third = schedule(two, 30, 20, 10)
    assert call(one, "promote", max_jobs=1) == 1
    assert call(two, "promote", max_jobs=1) == 1
    one.rollback()
    assert row_of(two, first)["table"] == "scheduled_jobs"
    assert row_of(two, second)["table"] == "ready_jobs"
    assert call(two, "promote", max_jobs=9) == 2
    assert row_of(two, third)["table"] == "ready_jobs"


def test_promotions_that_race_promote_every_job_once(
    connect: Connect, connection: psycopg.Connection, beside: Callable[..., Future[Any]]
) -> None:
    enqueue_many(connection, [{"task": "t", "delay": 60} for _ in range(600)])
    connection.execute("update pgqueue.scheduled_jobs set run_at = now() - interval '1 s'")

    def promote_all(session: psycopg.Connection) -> int:
        return sum(iter(lambda: call(session, "promote", max_jobs=17), 0))

    assert sum(end.result() for end in [beside(promote_all, connect()) for _ in range(4)]) == 600
    assert count(connection, "ready_jobs") == 600


# Leadership -------------------------------------------------------------------------------------------


def test_one_supervisor_leads_and_the_other_follows(connection: psycopg.Connection) -> None:
    first, other = keep_up(connection, 1), keep_up(connection, 2)
    assert (first.led, other.led) == (True, False)
    assert 0.4 < first.next_seconds <= 0.5
    assert OVERDUE < other.next_seconds <= 1.17 * OVERDUE  # when the first one's round is overdue
    assert keep_up(connection, 1).led
    assert [row["supervisor_id"] for row in rows(connection, "leadership")] == [1]


def test_a_round_that_is_overdue_is_led_by_whoever_finds_it(connection: psycopg.Connection) -> None:
    led(connection, by=1, ago=OVERDUE + 0.1)
    assert keep_up(connection, 2).led
    assert not keep_up(connection, 1).led


def test_two_rounds_are_never_led_at_once_and_nobody_waits(connect: Connect) -> None:
    one, two = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    led(two, by=1, ago=OVERDUE + 0.1)
    assert keep_up(one, 1).led
    assert not keep_up(two, 2).led  # overdue, as far as it can see
    one.rollback()  # the leader died in the middle of its round
    assert keep_up(two, 2).led


def test_the_leader_comes_back_when_the_next_job_falls_due(connection: psycopg.Connection) -> None:
    schedule(connection, -0.2)
    assert 0 < keep_up(connection).next_seconds <= 0.2
    schedule(connection, 5)
    connection.execute("update pgqueue.scheduled_jobs set run_at = now() - interval '1 min'")
    with sabotaged(connection, "keep_time", ("most constant integer := 1000", "most constant integer := 1")):
        done = keep_up(connection)
    assert (done.promoted, done.next_seconds) == (1, 0)  # more are due: at once


def test_a_follower_promotes_and_rescues_nothing(connection: psycopg.Connection) -> None:
    worker = register(connection, lease=0.5)
    claimed(connection, worker)
    schedule(connection, 5)
    led(connection, by=1)
    beaten(connection, worker, ago=60)
    done = keep_up(connection, 2)
    assert (done.led, done.rescued, done.promoted) == (False, 0, 0)
    led(connection, by=1)
    done = keep_up(connection, 1)
    assert (done.led, done.rescued, done.promoted) == (True, 1, 1)


# Beats ------------------------------------------------------------------------------------------------


def test_a_round_beats_for_the_workers_and_names_those_that_are_gone(connection: psycopg.Connection) -> None:
    workers = [register(connection) for _ in range(3)]
    connection.execute("update pgqueue.heartbeats set beat_at = now() - interval '1 min'")
    call(connection, "rescue", worker_id=workers[1])
    done = keep_up(connection, worker_ids=(workers[0], workers[1], -5))
    assert sorted(done.missing) == [-5, workers[1]]
    silent = {row["id"] for row in _workers(connection) if row["silent_seconds"] > 30}
    assert silent == {workers[2]}
    assert call(connection, "heartbeat", worker_ids=[workers[2], -5]) == [-5]
    assert not [row for row in _workers(connection) if row["silent_seconds"] > 30]


def _workers(connection: psycopg.Connection) -> list[dict[str, Any]]:
    names = ("id", "silent_seconds")
    found = connection.execute("select id, silent_seconds from pgqueue_bi.workers").fetchall()
    return [dict(zip(names, row, strict=True)) for row in found]


# Rescue -----------------------------------------------------------------------------------------------


def test_a_silent_worker_is_rescued_after_its_lease_and_not_before(connection: psycopg.Connection) -> None:
    alive, silent = register(connection, lease=60), register(connection, lease=1)
    kept, lost = claimed(connection, alive), claimed(connection, silent)
    led(connection)
    beaten(connection, alive, ago=50)
    beaten(connection, silent, ago=0.7)
    assert keep_up(connection).rescued == 0
    led(connection)
    beaten(connection, silent, ago=1.2)
    done = keep_up(connection)
    assert (done.rescued, done.rescued_workers) == (1, [silent])
    assert row_of(connection, lost.id)["table"] == "ready_jobs"
    assert row_of(connection, kept.id)["table"] == "running_jobs"
    assert [row["id"] for row in rows(connection, "workers")] == [alive]


def test_a_beat_keeps_a_worker_alive_whatever_the_age_of_its_jobs(connection: psycopg.Connection) -> None:
    worker = register(connection, lease=1)
    job = claimed(connection, worker)
    connection.execute("update pgqueue.running_jobs set claimed_at = now() - interval '9 days'")
    led(connection)
    beaten(connection, worker, ago=9)
    assert keep_up(connection, worker_ids=(worker,)).rescued == 0
    assert row_of(connection, job.id)["table"] == "running_jobs"


@pytest.mark.parametrize(
    ("holds_lock", "is_held", "ago", "lease", "rescued"),
    [
        (True, False, 1.2, 3600, 1),  # the session is gone, and the beat is old: dead at once
        (True, False, 0.7, 3600, 0),  # the beat is not old: reconnecting, maybe
        (True, True, 1.2, 3600, 0),  # the session is there
        (True, True, 1.2, 1.1, 1),  # … but frozen: the lock only ever shortens the wait
        (False, False, 1.2, 3600, 0),  # behind a transaction pooler there is no session
    ],
)
def test_a_session_that_is_gone_brings_the_rescue_forward(
    connect: Connect,
    connection: psycopg.Connection,
    holds_lock: bool,
    is_held: bool,
    ago: float,
    lease: float,
    rescued: int,
) -> None:
    session = connect()
    if is_held:
        assert call(session, "hold_session", supervisor_id=77)
        assert not call(connection, "hold_session", supervisor_id=77)
    worker = register(connection, lease=lease, supervisor_id=77, session_lock=holds_lock)
    claimed(connection, worker)
    led(connection)
    beaten(connection, worker, ago=ago)
    assert keep_up(connection).rescued == rescued


def test_a_supervisor_that_leads_does_not_take_its_own_session_lock_for_a_free_one(
    connection: psycopg.Connection,
) -> None:
    """Hazard: an advisory lock that the same session holds can be taken again."""
    assert call(connection, "hold_session", supervisor_id=77)
    stopped_child = register(connection, lease=3600, supervisor_id=77, session_lock=True)
    claimed(connection, stopped_child)
    led(connection, by=77)
    beaten(connection, stopped_child, ago=5)
    done = keep_up(connection, 77)
    assert (done.led, done.rescued) == (True, 0)


@pytest.mark.parametrize("beats", [True, False])
def test_a_worker_that_beats_while_the_round_is_under_way_is_not_rescued(
    connect: Connect, connection: psycopg.Connection, beside: Callable[..., Future[Any]], beats: bool
) -> None:
    """Arranged: the round has seen two silent workers, and waits for the first one's row, when the other beats."""
    stranger, supervisor, observer = connect(autocommit=False), connect(), connect()
    workers = [register(connection, lease=1) for _ in range(2)]
    for worker in workers:
        claimed(connection, worker)
        beaten(connection, worker, ago=60)
    led(connection)
    stranger.execute("select from pgqueue.running_jobs for update")  # whichever comes first waits here
    done = beside(keep_up, supervisor)
    wait_for_lock_wait(observer, pid(supervisor))
    taken = "select worker_id from pgqueue.heartbeats for update skip locked"
    free = [id for (id,) in observer.execute(taken).fetchall()]  # the other one
    if beats:
        assert call(connection, "heartbeat", worker_ids=free) == []
    stranger.rollback()
    assert done.result().rescued == (1 if beats else 2)
    assert [row["id"] for row in rows(connection, "workers")] == free * beats


def test_after_a_gap_in_which_nobody_could_beat_leases_count_from_its_end(
    connection: psycopg.Connection,
) -> None:
    worker = register(connection, lease=1)
    claimed(connection, worker)
    led(connection, ago=60)
    beaten(connection, worker, ago=60)
    assert keep_up(connection).rescued == 0
    assert keep_up(connection).rescued == 0  # nor in the rounds that follow at once
    connection.execute("update pgqueue.leadership set resumed_at = resumed_at - interval '1.2 s'")
    assert keep_up(connection).rescued == 1


def test_after_a_recovery_of_the_server_leases_count_from_it_and_workers_hear_of_it(
    connection: psycopg.Connection,
) -> None:
    """A standby that was promoted may run for months, and nobody holds a lock there. What recovers empties unlogged tables."""
    since = keep_up(connection).resumed_at
    assert keep_up(connection).resumed_at == since
    silent = register(connection, lease=3600, supervisor_id=77, session_lock=True)
    claimed(connection, silent)
    led(connection, ago=1)
    beaten(connection, silent, ago=1.5)
    with connection.transaction(force_rollback=True):
        assert keep_up(connection).rescued == 1, (
            "without a recovery its lock, which is free, tells of its end"
        )
    connection.execute("truncate pgqueue.recovery_seen")
    first = keep_up(connection)
    assert first.rescued == 0
    assert first.resumed_at > since
    assert [keep_up(connection, supervisor).resumed_at for supervisor in (1, 2)] == [first.resumed_at] * 2


def test_a_worker_id_that_another_supervisor_has_registered_is_missing(
    connection: psycopg.Connection,
) -> None:
    worker = register(connection, supervisor_id=2)
    assert keep_up(connection, 2, worker_ids=(worker,)).missing == []
    assert keep_up(connection, 1, worker_ids=(worker,)).missing == [worker]


def test_the_first_round_ever_rescues_nobody(connection: psycopg.Connection) -> None:
    worker = register(connection, lease=1)
    claimed(connection, worker)
    beaten(connection, worker, ago=60)
    assert keep_up(connection).rescued == 0


# The safety look --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "queue", "look"), [(1.2, "default", True), (0.2, "default", False), (60, "other", False)]
)
def test_a_ready_job_that_has_waited_for_over_a_second_asks_for_a_look(
    connection: psycopg.Connection, age: float, queue: str, look: bool
) -> None:
    assert keep_up(connection).look is False
    enqueue(connection, queue=queue, priority=9)
    connection.execute("update pgqueue.ready_jobs set run_at = now() - make_interval(secs => %s)", [age])
    assert keep_up(connection, 1).look is look
    assert keep_up(connection, 2).look is look  # for a follower too


def test_a_paused_queue_asks_for_no_look(connection: psycopg.Connection) -> None:
    enqueue(connection)
    connection.execute("update pgqueue.ready_jobs set run_at = now() - interval '1 min'")
    call(connection, "pause", queue="default")
    assert keep_up(connection).look is False
    call(connection, "resume", queue="default")
    assert keep_up(connection).look is True


def test_a_look_is_asked_for_after_the_floors_have_moved(connection: psycopg.Connection) -> None:
    worker = register(connection)
    for _ in range(3):
        claimed(connection, worker)
    enqueue(connection)
    for _ in range(3):
        call(connection, "prove_floors")
    connection.execute("update pgqueue.ready_jobs set run_at = now() - interval '1 min'")
    assert keep_up(connection).look is True


# What else is due -------------------------------------------------------------------------------------


def test_floors_are_due_until_every_lane_is_proven_up_to_the_last_position(
    connection: psycopg.Connection,
) -> None:
    worker = register(connection)
    claimed(connection, worker)
    for _ in range(2):
        assert keep_up(connection).floors_due
        call(connection, "prove_floors")
    assert not keep_up(connection).floors_due
    enqueue(connection)
    assert keep_up(connection).floors_due


def test_floors_are_never_due_for_a_follower(connection: psycopg.Connection) -> None:
    led(connection, by=1)
    done = keep_up(connection, 2)
    assert (done.floors_due, done.retain_due) == (False, False)


def test_partitions_are_due_when_one_ahead_is_missing(connect: Connect, fresh: str) -> None:
    connection = connect(fresh)
    assert keep_up(connection).retain_due
    call(connection, "retain")
    while call(connection, "trim_history")[0]["more"]:
        pass
    assert not keep_up(connection).retain_due
    enqueue(connection, idempotency_key="k")
    assert not keep_up(connection).retain_due
    connection.execute("update pgqueue.unique_keys set expires_at = now() - interval '1 s'")
    assert keep_up(connection).retain_due


# Problems ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["share", "access exclusive"])
def test_a_promotion_that_cannot_run_is_a_problem_and_stops_nothing_else(
    connect: Connect, connection: psycopg.Connection, mode: str
) -> None:
    stranger, supervisor = connect(autocommit=False), connect(settings="-c lock_timeout=50ms")
    worker = register(connection, lease=1)
    lost = claimed(connection, worker)
    led(connection)
    beaten(connection, worker, ago=60)
    stranger.execute(f"lock table pgqueue.scheduled_jobs in {mode} mode")
    done = keep_up(supervisor)
    assert (done.led, done.rescued, done.promoted) == (True, 1, 0)
    assert [problem.split(":")[0] for problem in done.problems] == ["promote"]
    assert row_of_ready(connection, lost.id)
    stranger.rollback()
    assert keep_up(supervisor).problems == []


def test_a_look_that_cannot_be_made_is_a_problem_and_the_beat_stands(
    connect: Connect, connection: psycopg.Connection
) -> None:
    stranger, supervisor = connect(autocommit=False), connect(settings="-c lock_timeout=50ms")
    worker = register(connection)
    connection.execute("update pgqueue.heartbeats set beat_at = now() - interval '1 min'")
    stranger.execute("lock table pgqueue.ready_jobs in access exclusive mode")
    done = keep_up(supervisor, worker_ids=(worker,))
    assert (done.led, done.look) == (True, True)  # who cannot see, looks
    assert "look" in [problem.split(":")[0] for problem in done.problems]
    assert not [row for row in _workers(connection) if row["silent_seconds"] > 30]


def row_of_ready(connection: psycopg.Connection, id: int) -> bool:
    """Whether a job is ready, asked of no other table."""
    return bool(rows(connection, "ready_jobs", "id = %s", id))


def test_a_worker_that_cannot_be_rescued_is_a_problem_and_stops_nothing_else(
    connect: Connect, connection: psycopg.Connection
) -> None:
    stranger, supervisor = connect(autocommit=False), connect(settings="-c lock_timeout=50ms")
    workers = [register(connection, lease=1) for _ in range(3)]
    lost = [claimed(connection, worker) for worker in workers]
    (due,) = schedule(connection, 5)
    led(connection)
    for worker in workers:
        beaten(connection, worker, ago=60)
    stranger.execute("select from pgqueue.workers where id = %s for update", [workers[1]])
    done = keep_up(supervisor)
    assert (done.rescued, done.promoted) == (2, 1)
    assert [problem.split(":")[0] for problem in done.problems] == [f"rescue of worker {workers[1]}"]
    tables = [row_of(connection, id)["table"] for id in (*(job.id for job in lost), due)]
    assert tables == ["ready_jobs", "running_jobs", "ready_jobs", "ready_jobs"]
    stranger.rollback()
    led(connection)
    assert keep_up(supervisor).rescued == 1


# Retain -----------------------------------------------------------------------------------------------

PARTITIONS = "select count(*) from pg_inherits where inhparent = any('{pgqueue.finished_jobs,pgqueue.job_failures,pgqueue.job_reports}'::regclass[])"


def test_retain_makes_today_and_a_week_ahead_once(connect: Connect, fresh: str) -> None:
    connection = connect(fresh)
    before = scalar(connection, PARTITIONS)
    assert [call(connection, "retain") for _ in range(2)] == [24, 0]
    assert scalar(connection, PARTITIONS) == before + 24
    connection.execute(
        "drop table pgqueue.job_failures"
        + scalar(connection, "select to_char(now() at time zone 'UTC' + interval '3 d', '_YYYYMMDD')")
    )
    assert call(connection, "retain") == 1


def test_partitions_have_the_indexes_and_columns_of_their_parent(connect: Connect, fresh: str) -> None:
    connection = connect(fresh)
    call(connection, "retain")
    unlike = """
        select child.oid::regclass
          from pg_inherits as i
          join pg_class as child on child.oid = i.inhrelid
          join pg_class as parent on parent.oid = i.inhparent
         where parent.relkind = 'p' and (
               (select count(*) from pg_index as x where x.indrelid = child.oid)
               <> (select count(*) from pg_index as x where x.indrelid = parent.oid)
            or (select array_agg((a.attname, a.atttypid, a.attnotnull)::text order by a.attnum) from pg_attribute as a
                 where a.attrelid = child.oid and a.attnum > 0)
               <> (select array_agg((a.attname, a.atttypid, a.attnotnull)::text order by a.attnum) from pg_attribute as a
                    where a.attrelid = parent.oid and a.attnum > 0)
            or exists (select from pg_constraint as c where c.conrelid = child.oid and c.contype = 'c'))"""
    assert connection.execute(unlike).fetchall() == []


def test_two_retains_at_once_make_each_partition_once(connect: Connect, fresh: str) -> None:
    one, two, observer = connect(fresh, autocommit=False), connect(fresh), connect(fresh)
    assert call(one, "retain") == 24
    with release_when_waited_for(observer, pid(two), one.commit):
        assert call(two, "retain") == 0


def test_retain_does_not_wait_for_a_reader_nor_the_reader_for_it(connect: Connect, fresh: str) -> None:
    reader, keeper = connect(fresh, autocommit=False), connect(fresh, settings="-c lock_timeout=1s")
    reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    jobs = "select count(*) from pgqueue_bi.jobs"
    assert scalar(reader, jobs) == 0
    assert call(keeper, "retain") == 24
    assert scalar(reader, jobs) == 0
    finished = claimed(keeper, register(keeper))
    assert call(keeper, "complete", ids=[finished.id], leases=[finished.lease])
    assert scalar(reader, jobs) == 0
    reader.rollback()
    assert scalar(reader, jobs) == 1


def test_a_careless_retain_with_create_partition_of_waits_for_the_reader(
    connect: Connect, fresh: str
) -> None:
    reader, keeper = connect(fresh, autocommit=False), connect(fresh, settings="-c lock_timeout=50ms")
    scalar(reader, "select count(*) from pgqueue_bi.jobs")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        keeper.execute(
            "create table pgqueue.x partition of pgqueue.finished_jobs for values from ('2999-01-01') to ('2999-01-02')"
        )


def test_endings_go_on_beside_a_retain_that_takes_its_time(connect: Connect, fresh: str) -> None:
    keeper, worker = connect(fresh, autocommit=False), connect(fresh, settings="-c lock_timeout=1s")
    job, other = [claimed(worker, register(worker)) for _ in range(2)]
    assert call(keeper, "retain") == 24
    assert call(worker, "complete", ids=[job.id], leases=[job.lease]) == [job.id]
    assert call(worker, "fail", failures=psycopg.types.json.Jsonb([{"id": other.id, "lease": other.lease}]))
    keeper.commit()
    assert row_of(worker, job.id)["table"] == "finished_jobs"


def test_an_ending_that_found_no_partition_lands_though_one_is_made_meanwhile(
    connect: Connect, fresh: str, beside: Callable[..., Future[Any]]
) -> None:
    """Arranged: complete has looked for today's partition, and found none, when retain makes it."""
    keeper, worker, observer = connect(fresh), connect(fresh), connect(fresh)
    job = claimed(keeper, register(keeper))
    stop = (" accepted bigint[];\nbegin\n", f" accepted bigint[];\nbegin\n    perform {STOP};\n")
    with sabotaged(keeper, "complete", stop):
        with stopped(keeper):
            ending = beside(call, worker, "complete", ids=[job.id], leases=[job.lease])
            wait_for_lock_wait(observer, pid(worker))
            assert call(keeper, "retain") == 24
        assert ending.result() == [job.id]
    assert row_of(keeper, job.id)["day"] is None  # -infinity: the overflow


def test_expired_idempotency_keys_are_forgotten_in_small_steps(connect: Connect, fresh: str) -> None:
    connection, stranger = connect(fresh, settings="-c lock_timeout=1s"), connect(fresh, autocommit=False)
    call(connection, "retain")
    kept = [enqueue(connection, idempotency_key="fresh"), enqueue(connection, unique_key="unique")]
    keys = [{"task": "t", "idempotency_key": str(n)} for n in range(1005)]
    ids, _ = enqueue_many(connection, keys)
    connection.execute(
        "update pgqueue.unique_keys set expires_at = now() - interval '1 min' where job_id = any(%s)", [ids]
    )
    stranger.execute("select from pgqueue.unique_keys where key = '7' for update")
    call(connection, "retain")
    assert count(connection, "unique_keys") == 7
    call(connection, "retain")
    assert {row["job_id"] for row in rows(connection, "unique_keys")} == {*kept, ids[7]}
    stranger.rollback()
    call(connection, "retain")
    assert {row["job_id"] for row in rows(connection, "unique_keys")} == set(kept)
