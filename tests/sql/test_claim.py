"""Claim: which jobs, in what order, how many, and never one that another has."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

from pgqueue.errors import UnknownWorker
from tests.sql.acting import (
    STOP,
    Connect,
    call,
    claim,
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
from tests.support import release_when_waited_for, wait_for_lock_wait

# Which, and in what order -----------------------------------------------------------------------------


def test_jobs_come_by_priority_then_position(connection: psycopg.Connection) -> None:
    worker = register(connection)
    given = [(enqueue(connection, priority=priority), priority) for priority in (5, 9, 0, 5, 0, 1, 9)]
    served = [claim(connection, worker)[0] for _ in given]
    assert [(job.id, job.priority) for job in served] == sorted(given, key=lambda job: (job[1], job[0]))
    assert claim(connection, worker) == []


def test_one_claim_returns_its_jobs_in_that_order_too(connection: psycopg.Connection) -> None:
    worker = register(connection)
    priorities = [9, 5, 0, 5, 9, 0]
    ids, _ = enqueue_many(connection, [{"task": "t", "priority": priority} for priority in priorities])
    # a table's order is no order: these rows lie before the others
    expected = [id for _, id in sorted(zip(priorities, ids, strict=True))]
    assert [job.id for job in claim(connection, worker, 6)] == expected


def test_a_returned_job_comes_first_in_its_priority_and_after_every_better_one(
    connection: psycopg.Connection,
) -> None:
    worker = register(connection)
    returned = enqueue(connection, priority=5)
    (job,) = claim(connection, worker)
    waiting = enqueue(connection, priority=5)
    call(connection, "release", ids=[job.id], leases=[job.lease])
    better = enqueue(connection, priority=4)
    worse = enqueue(connection, priority=6)
    assert [job.id for job in claim(connection, worker, 9)] == [better, returned, waiting, worse]


def test_queues_are_served_in_the_order_given(connection: psycopg.Connection) -> None:
    worker = register(connection, "a", "b")
    b = [enqueue(connection, queue="b", priority=0) for _ in range(2)]
    a = [enqueue(connection, queue="a", priority=9) for _ in range(2)]
    jobs = claim(connection, worker, 3, queues=["a", "b"])
    assert [job.id for job in jobs] == [*a, b[0]]
    assert [job.queue for job in jobs] == ["a", "a", "b"]


def test_a_queue_that_was_not_asked_for_is_left_alone(connection: psycopg.Connection) -> None:
    worker = register(connection)
    enqueue(connection, queue="other")
    assert claim(connection, worker, 9) == []
    assert claim(connection, worker, 9, queues=[]) == []


def test_scheduled_jobs_are_not_claimed_even_when_due(connection: psycopg.Connection) -> None:
    enqueue(connection, delay=60)
    connection.execute("update pgqueue.scheduled_jobs set run_at = now()")
    assert claim(connection, register(connection)) == []


def test_a_cursor_hides_what_lies_before_it_in_its_lane_only(connection: psycopg.Connection) -> None:
    worker = register(connection)
    ids = [enqueue(connection, priority=priority) for priority in (5, 5, 5, 2)]
    cursors = [0] * 20
    cursors[11] = row_of(connection, ids[1])["position"]
    with connection.transaction(force_rollback=True):
        jobs = claim(connection, worker, 9, cursors=cursors)
        assert [job.id for job in jobs] == [ids[3], ids[1], ids[2]]
    assert len(claim(connection, worker, 9)) == 4  # a cursor of 0: from the floor


def test_a_floor_hides_what_lies_before_it_whatever_the_cursor(connection: psycopg.Connection) -> None:
    worker = register(connection)
    ids = [enqueue(connection) for _ in range(3)]
    position = row_of(connection, ids[2])["position"]
    connection.execute(
        "insert into pgqueue.lane_floors (queue, floors) values ('default', array_fill(%s::bigint, array[20]))",
        [position],
    )
    assert [job.id for job in claim(connection, worker, 9)] == [ids[2]]


# How many ---------------------------------------------------------------------------------------------

NODES = (
    "bitmapscan",
    "gathermerge",
    "hashagg",
    "hashjoin",
    "incremental_sort",
    "indexonlyscan",
    "indexscan",
    "material",
    "memoize",
    "mergejoin",
    "nestloop",
    "seqscan",
    "sort",
    "tidscan",
)
PLANS = {
    "defaults": "",
    **{f"no {node}": f"-c enable_{node}=off" for node in NODES},
    "no nodes at all": " ".join(f"-c enable_{node}=off" for node in NODES),
    "no scan by index or tid": "-c enable_indexscan=off -c enable_indexonlyscan=off -c enable_tidscan=off",
    "nested loops only": "-c enable_hashjoin=off -c enable_mergejoin=off -c enable_material=off",
    "custom plans": "-c plan_cache_mode=force_custom_plan",
    "parallel": "-c debug_parallel_query=on -c parallel_setup_cost=0",
}


@pytest.mark.parametrize("settings", PLANS.values(), ids=PLANS.keys())
def test_never_more_than_asked_under_any_plan(connect: Connect, settings: str) -> None:
    if "debug_parallel_query" in settings and connect().info.server_version < 160000:
        settings = settings.replace("debug_parallel_query", "force_parallel_mode")
    connection = connect(settings=settings)
    worker = register(connection, "a", "b")
    jobs = [{"task": "t", "queue": queue, "priority": p} for queue in "ab" for p in range(10)] * 3
    enqueue_many(connection, jobs)
    for asked in (0, 1, 4, 7):
        assert len(claim(connection, worker, asked, queues=["a", "b"])) == asked
    assert len(claim(connection, worker, 9, queues=["a", "b"], limits=[2, 3])) == 5
    assert count(connection, "running_jobs") == 17
    assert len(claim(connection, worker, 100, queues=["a", "b"])) == 43  # and never fewer
    assert count(connection, "ready_jobs") == 0


def test_never_more_than_asked_on_an_analyzed_table(connect: Connect, connection: psycopg.Connection) -> None:
    enqueue_many(connection, [{"task": "t", "priority": n % 10} for n in range(3000)])
    connection.execute("analyze pgqueue.ready_jobs")
    worker = register(connection)
    for settings in ("", "-c enable_indexscan=off", "-c plan_cache_mode=force_custom_plan"):
        session = connect(settings=settings)
        assert [len(claim(session, worker, asked)) for asked in (1, 500, 7)] == [1, 500, 7]


def test_never_more_than_asked_when_rows_are_locked(connect: Connect) -> None:
    stranger, connection = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    worker = register(connection)
    ids = [enqueue(connection, priority=n % 3) for n in range(60)]
    stranger.execute("select from pgqueue.ready_jobs where mod(id, 2) = 0 for update")
    jobs = claim(connection, worker, 7) + claim(connection, worker, 20)
    assert len(jobs) == 27
    assert {job.id % 2 for job in jobs} == {1}
    assert [job.id for job in claim(connection, worker, 100)] == [  # the rest that is free, in order
        id
        for id in sorted(ids, key=lambda id: (ids.index(id) % 3, id))
        if id % 2 and id not in {j.id for j in jobs}
    ]


@pytest.mark.parametrize(
    ("limits", "max_jobs", "came"),
    [
        ([2, 3, 9], 99, [2, 3, 5]),
        ([2, 3, 9], 4, [2, 2, 0]),
        ([0, 1, 0], 9, [0, 1, 0]),
        ([-1, 9, 1], 3, [0, 3, 0]),
        ([9, 9, 9], 0, [0, 0, 0]),
        ([None, 1, None], 7, [5, 1, 1]),
    ],
)
def test_a_queue_gives_no_more_than_its_limit_and_all_together_no_more_than_asked(
    connection: psycopg.Connection, limits: list[int], max_jobs: int, came: list[int]
) -> None:
    queues = ["a", "b", "c"]
    worker = register(connection, *queues)
    enqueue_many(connection, [{"task": "t", "queue": queue} for queue in queues for _ in range(5)])
    arguments = {"queues": queues, "limits": limits, "max_jobs": max_jobs, "cursors": [0] * 60, "fence": 7}
    jobs = call(connection, "claim", worker_id=worker, **arguments)
    assert [sum(job["queue"] == queue for job in jobs) for queue in queues] == came


# What a claim writes ----------------------------------------------------------------------------------


def test_a_claim_counts_the_attempt_and_takes_down_who_and_when(connection: psycopg.Connection) -> None:
    worker = register(connection)
    id = enqueue(connection, args={"n": 1}, options={"tags": ["x"]}, unique_key="k", max_attempts=3)
    before = row_of(connection, id)
    (job,) = claim(connection, worker)
    running = row_of(connection, id)
    assert (job.id, job.lane, job.position) == (id, before["lane"], before["position"])
    assert (job.task, job.args, job.options) == ("t", '{"n": 1}', '{"tags": ["x"]}')
    assert (job.attempt, job.max_attempts, job.crashes) == (1, 3, 0)
    assert running.pop("worker_id") == worker
    assert running.pop("lease") == job.lease
    assert running.pop("claimed_at") >= before["run_at"]
    del before["position"]
    assert running == before | {"attempt": 1, "table": "running_jobs"}


def test_the_fence_of_a_claim_is_the_lease_of_all_its_jobs(connection: psycopg.Connection) -> None:
    worker = register(connection, "a", "b")
    enqueue_many(connection, [{"task": "t", "queue": queue} for queue in "aab"])
    for fence in (2**63 - 1, -(2**63)):
        with connection.transaction(force_rollback=True):
            jobs = claim(connection, worker, 3, queues=["a", "b"], fence=fence)
            assert [job.lease for job in jobs] == [fence] * 3
            assert {job["lease"] for job in rows(connection, "running_jobs")} == {fence}


def test_a_claim_whose_answer_was_lost_is_given_back_by_its_fence(connection: psycopg.Connection) -> None:
    worker, other = register(connection), register(connection)
    ids = [enqueue(connection, priority=n) for n in range(5)]
    claim(connection, worker, 2, fence=1)
    (kept,) = claim(connection, worker, 1, fence=2)
    (others,) = claim(connection, other, 1, fence=1)
    assert sorted(call(connection, "forget_claim", worker_id=worker, fence=1)) == ids[:2]
    back = [row_of(connection, id) for id in ids[:2]]
    assert [(job["table"], job["lane"], job["attempt"]) for job in back] == [
        ("ready_jobs", 0, 0),
        ("ready_jobs", 2, 0),
    ]
    assert [row_of(connection, job.id)["table"] for job in (kept, others)] == ["running_jobs"] * 2
    assert call(connection, "forget_claim", worker_id=worker, fence=1) == []
    assert call(connection, "forget_claim", worker_id=-1, fence=1) == []


def test_what_a_worker_does_not_hold_goes_back_untouched(connection: psycopg.Connection) -> None:
    worker, other = register(connection), register(connection)
    ids = [enqueue(connection) for _ in range(5)]
    held, ended, again = claim(connection, worker, 3)
    (others,) = claim(connection, other)
    # under another lease it holds a job of an earlier claim, of which the database knows nothing
    holds = {"ids": [held.id, again.id], "leases": [held.lease, again.lease + 1]}
    assert sorted(call(connection, "forget_unheld", worker_id=worker, **holds)) == [ended.id, again.id]
    assert [row_of(connection, id)["table"] for id in (held.id, others.id)] == ["running_jobs"] * 2
    assert [(job["id"], job["attempt"]) for job in rows(connection, "ready_jobs")] == [
        (ids[4], 0),
        (ended.id, 0),
        (again.id, 0),
    ]
    assert call(connection, "forget_unheld", worker_id=worker, **holds) == []
    assert call(connection, "forget_unheld", worker_id=worker, ids=[], leases=[]) == [held.id]
    with pytest.raises(psycopg.Error, match="ids, leases"):
        call(connection, "forget_unheld", worker_id=worker, ids=[1], leases=[])


def test_what_a_worker_does_not_hold_waits_for_a_claim_of_which_it_never_heard(connect: Connect) -> None:
    claimer, forgetter, observer = connect(autocommit=False), connect(), connect()
    worker = register(observer)
    id = enqueue(observer)
    claim(claimer, worker, fence=7)
    with release_when_waited_for(observer, pid(forgetter), claimer.commit):
        assert call(forgetter, "forget_unheld", worker_id=worker, ids=[], leases=[]) == [id]
    assert row_of(observer, id)["table"] == "ready_jobs"


def test_to_give_back_a_claim_waits_for_that_claim(connect: Connect) -> None:
    claimer, forgetter, observer = connect(autocommit=False), connect(), connect()
    worker = register(observer)
    id = enqueue(observer)
    claim(claimer, worker, fence=7)
    with release_when_waited_for(observer, pid(forgetter), claimer.commit):
        assert call(forgetter, "forget_claim", worker_id=worker, fence=7) == [id]
    assert row_of(observer, id)["table"] == "ready_jobs"


def test_a_claim_that_is_rolled_back_leaves_the_jobs_as_they_were(connection: psycopg.Connection) -> None:
    worker = register(connection)
    before = row_of(connection, enqueue(connection))
    with connection.transaction(force_rollback=True):
        assert claim(connection, worker)
    assert row_of(connection, before["id"]) == before


def test_a_claim_commits_asynchronously(connect: Connect) -> None:
    connection = connect(settings="-c synchronous_commit=on")
    worker = register(connection)
    with connection.transaction():
        claim(connection, worker)
        assert scalar(connection, "show synchronous_commit") == "off"
    assert scalar(connection, "show synchronous_commit") == "on"


def test_the_largest_attempt_can_be_counted(connection: psycopg.Connection) -> None:
    worker = register(connection)
    enqueue(connection, max_attempts=32_767)
    connection.execute("update pgqueue.ready_jobs set attempt = 32766")
    assert claim(connection, worker)[0].attempt == 32_767


def test_positions_beyond_2_to_the_53_are_exact(connection: psycopg.Connection, fresh: str) -> None:
    with psycopg.connect(fresh, autocommit=True) as connection:
        connection.execute("select setval('pgqueue.positions', %s)", [2**53 + 1])
        connection.execute("select setval('pgqueue.job_ids', %s)", [2**62])
        worker = register(connection)
        (job, _) = [enqueue(connection), enqueue(connection)]
        (first,) = claim(connection, worker)
        assert (first.id, first.position) == (job, 2**53 + 2)
        cursors = [first.position + 1] * 20
        assert [job.position for job in claim(connection, worker, 9, cursors=cursors)] == [2**53 + 3]
        assert call(connection, "complete", ids=[first.id], leases=[first.lease]) == [first.id]


# Who may claim ----------------------------------------------------------------------------------------


def test_a_paused_queue_gives_nothing_and_the_others_go_on(connection: psycopg.Connection) -> None:
    worker = register(connection, "a", "b")
    held, free = enqueue(connection, queue="a"), enqueue(connection, queue="b")
    call(connection, "pause", queue="a")
    assert [job.id for job in claim(connection, worker, 9, queues=["a", "b"])] == [free]
    call(connection, "resume", queue="a")
    assert [job.id for job in claim(connection, worker, 9, queues=["a", "b"])] == [held]


def test_a_pause_leaves_running_jobs_alone_and_keeps_its_first_date(connection: psycopg.Connection) -> None:
    enqueue(connection)
    (job,) = claim(connection, register(connection))
    call(connection, "pause", queue="default")
    since = rows(connection, "queues")
    call(connection, "pause", queue="default")
    assert rows(connection, "queues") == since
    assert call(connection, "complete", ids=[job.id], leases=[job.lease]) == [job.id]


def test_a_worker_that_is_not_registered_gets_an_error_and_nothing_else(
    connection: psycopg.Connection,
) -> None:
    job = row_of(connection, enqueue(connection))
    with pytest.raises(UnknownWorker) as refused:
        claim(connection, -7)
    refusal = refused.value.__cause__
    assert isinstance(refusal, psycopg.Error)
    assert refusal.sqlstate == "PQ002"
    assert refusal.diag.message_primary == "worker -7 is not registered"
    assert "Register again." in str(refusal.diag.message_hint)
    assert row_of(connection, job["id"]) == job


# At the same time -------------------------------------------------------------------------------------


def test_a_claim_skips_what_another_claim_holds_and_does_not_wait(connect: Connect) -> None:
    one, two = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    worker = register(two)
    ids = [enqueue(two) for _ in range(4)]
    assert [job.id for job in claim(one, worker, 2)] == ids[:2]
    assert [job.id for job in claim(two, worker, 9)] == ids[2:]
    one.rollback()
    assert [job.id for job in claim(two, worker, 9)] == ids[:2]


def test_a_claim_that_commits_while_another_looks_takes_nothing_from_its_count(
    connect: Connect, connection: psycopg.Connection, beside: Callable[..., Future[Any]]
) -> None:
    """Arranged: the second claim's query has its snapshot, in which the first one's jobs are still ready."""
    one, two, observer = connect(autocommit=False), connect(), connect()
    worker = register(connection)
    ids = [enqueue(connection) for _ in range(4)]
    assert [job.id for job in claim(one, worker, 2)] == ids[:2]
    floors = "coalesce(floors, array_fill(0, array[20]))"
    in_the_query = (floors, f"case when {STOP}::text = '' then {floors} end")
    with sabotaged(connection, "claim", in_the_query):
        with stopped(connection):
            second = beside(claim, two, worker, 2)
            wait_for_lock_wait(observer, pid(two))
            one.commit()
        assert [job.id for job in second.result()] == ids[2:]


def test_claimers_that_race_get_every_job_once(
    connect: Connect, connection: psycopg.Connection, beside: Callable[..., Future[Any]]
) -> None:
    enqueue_many(connection, [{"task": "t", "priority": n % 3} for n in range(1500)])
    worker = register(connection)

    def drain(session: psycopg.Connection, batch: int) -> list[int]:
        return [job.id for jobs in iter(lambda: claim(session, worker, batch), []) for job in jobs]

    got = [beside(drain, connect(), batch) for batch in (1, 3, 7, 50)]
    ids = list(itertools.chain.from_iterable(end.result() for end in got))
    assert len(ids) == len(set(ids)) == count(connection, "running_jobs") == 1500


def test_a_rescue_waits_for_a_claim_of_the_same_worker_and_takes_its_jobs_back(connect: Connect) -> None:
    claimer, rescuer, observer = connect(autocommit=False), connect(), connect()
    worker = register(observer)
    id = enqueue(observer)
    claim(claimer, worker)
    with release_when_waited_for(observer, pid(rescuer), claimer.commit):
        assert call(rescuer, "rescue", worker_id=worker) == 1
    assert row_of(observer, id)["table"] == "ready_jobs"


def test_a_claim_waits_for_a_rescue_of_the_same_worker_and_is_refused(connect: Connect) -> None:
    claimer, rescuer, observer = connect(), connect(autocommit=False), connect()
    worker = register(observer)
    id = enqueue(observer)
    call(rescuer, "rescue", worker_id=worker)
    with (
        pytest.raises(UnknownWorker),
        release_when_waited_for(observer, pid(claimer), rescuer.commit),
    ):
        claim(claimer, worker)
    assert row_of(observer, id)["table"] == "ready_jobs"


def test_a_careless_claim_that_does_not_lock_its_worker_leaves_orphans(
    connect: Connect, connection: psycopg.Connection
) -> None:
    claimer, rescuer = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    worker = register(connection)
    id = enqueue(connection)
    with sabotaged(connection, "claim", (" for key share", "")):
        claim(claimer, worker)
        assert call(rescuer, "rescue", worker_id=worker) == 0
        claimer.commit()
    assert row_of(connection, id)["worker_id"] == worker  # running, and nobody will ever rescue it
    assert count(connection, "workers") == 0


def test_claims_of_one_worker_run_beside_each_other_and_beside_its_heartbeat(connect: Connect) -> None:
    one, two = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    worker = register(two)
    enqueue(two)
    enqueue(two)
    assert claim(one, worker)
    assert claim(two, worker)
    assert call(two, "heartbeat", worker_ids=[worker]) == []
    call(two, "lack_task", worker_id=worker, task="x")
    one.rollback()
