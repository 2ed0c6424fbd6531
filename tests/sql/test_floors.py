"""The proof of the lane floors and of the low-water mark: nothing that commits late is ever walked past.

Each hazard that `prove_floors` names has a test that arranges its interleaving twice: the function as it is
loses nothing; the careless variant loses the job, which shows that the test would see it.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgqueue.embedded import EmbeddedServer
from pgqueue.errors import NoServer
from tests.sql.acting import (
    STOP,
    Connect,
    call,
    claim,
    count,
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
from tests.support import wait_for_lock_wait, wait_until
from tests.support.databases import install

LANE = 11
"""Priority 5, not returned."""


def floor(connection: psycopg.Connection, lane: int = LANE, queue: str = "default") -> int:
    """A lane's proven floor; 0: none yet."""
    found = rows(connection, "lane_floors", "queue = %s", queue)
    return found[0]["floors"][lane] if found else 0


def prove(connection: psycopg.Connection, times: int = 1) -> None:
    """A proof takes two rounds: one that sets the bound, and one that finds its lockers gone."""
    for _ in range(times):
        call(connection, "prove_floors")


def position(connection: psycopg.Connection, id: int) -> int:
    """The position of a ready job."""
    found: int = row_of(connection, id)["position"]
    return found


def last_position(connection: psycopg.Connection) -> int:
    """The last position that was drawn."""
    drawn: int = scalar(connection, "select last_value from pgqueue.positions")
    return drawn


def mark(connection: psycopg.Connection) -> Any:
    """The proven low-water mark of run_at; None: none yet."""
    return scalar(
        connection, "select proven_run_at from pgqueue.floor_proofs where subject = 'scheduled_jobs'"
    )


@pytest.fixture
def worker(connection: psycopg.Connection) -> int:
    """A worker of queue default."""
    return register(connection)


def ids_of(jobs: list[Any]) -> list[int]:
    """The ids of claimed jobs."""
    return [job.id for job in jobs]


# What holds a floor back ------------------------------------------------------------------------------


@contextmanager
def uncommitted(connect: Connect, how: str) -> Iterator[tuple[int, Callable[[str], object]]]:
    """An enqueue that has not committed: its id, and a function that ends it (commit or rollback)."""
    producer = connect(autocommit=False)
    if how == "savepoint":
        producer.execute("savepoint one")
    id = enqueue(producer)
    if how == "released savepoint":
        producer.execute("savepoint two; release savepoint two")
    if how == "prepared":
        producer.execute("prepare transaction 'late'")
        producer.rollback()
        producer.autocommit = True
    end = {"prepared": "{} prepared 'late'"}.get(how, "{}")
    yield id, lambda verb: producer.execute(end.format(verb))


HOW = ["plain", "savepoint", "released savepoint", "prepared"]


@pytest.fixture
def prepares(connection: psycopg.Connection) -> None:
    """Skips where the server has no room for prepared transactions."""
    if scalar(connection, "show max_prepared_transactions") == "0":
        pytest.skip("the server has max_prepared_transactions = 0")


@pytest.mark.usefixtures("prepares")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_enqueue_holds_the_floor_until_it_ends(
    connect: Connect, connection: psycopg.Connection, worker: int, how: str, end: str
) -> None:
    prove(connection, 2)
    with uncommitted(connect, how) as (late, finish):
        early = [enqueue(connection) for _ in range(3)]
        assert ids_of(claim(connection, worker, 9)) == early  # later positions, claimed before
        prove(connection, 5)
        held = floor(connection)
        finish(end)
    assert held <= last_position(connection) - 3
    if end == "commit":
        assert position(connection, late) >= held
    prove(connection, 3)
    if end == "commit":
        assert floor(connection) == position(connection, late)
        assert ids_of(claim(connection, worker, 9)) == [late]
        prove(connection, 2)
    assert floor(connection) == last_position(connection) + 1


def test_a_rolled_back_savepoint_holds_nothing(
    connect: Connect, connection: psycopg.Connection, worker: int
) -> None:
    producer = connect(autocommit=False)
    producer.execute("savepoint one")
    enqueue(producer)
    producer.execute("rollback to savepoint one")
    enqueue(connection)
    claim(connection, worker)
    prove(connection, 2)
    assert floor(connection) == last_position(connection) + 1
    producer.rollback()


def test_a_reader_and_a_writer_elsewhere_hold_nothing(
    connect: Connect, connection: psycopg.Connection, worker: int
) -> None:
    reader, writer = connect(autocommit=False), connect(autocommit=False)
    reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    reader.execute("select from pgqueue_bi.jobs")
    writer.execute("create temp table mine (n int); insert into mine values (1)")
    call(writer, "pause", queue="elsewhere")
    enqueue(connection)
    claim(connection, worker)
    prove(connection, 2)
    assert floor(connection) == last_position(connection) + 1


def test_the_floor_is_the_first_job_that_waits(connection: psycopg.Connection, worker: int) -> None:
    ids = [enqueue(connection) for _ in range(5)]
    claim(connection, worker, 2)
    prove(connection, 2)
    assert floor(connection) == position(connection, ids[2])
    # every other lane has nothing below the next position
    (row,) = rows(connection, "lane_floors")
    assert [f for lane, f in enumerate(row["floors"]) if lane != LANE] == [last_position(connection) + 1] * 19


def test_each_lane_of_each_queue_has_its_floor(connection: psycopg.Connection) -> None:
    register(connection, "a", "b")
    ids = {
        (queue, priority): enqueue(connection, queue=queue, priority=priority)
        for queue in "ab"
        for priority in (0, 5, 9)
    }
    prove(connection, 2)
    for (queue, priority), id in ids.items():
        assert floor(connection, 2 * priority + 1, queue) == position(connection, id)


def test_a_queue_that_a_worker_begins_to_serve_gets_a_floor_that_hides_nothing(
    connection: psycopg.Connection,
) -> None:
    register(connection)
    old = enqueue(connection, queue="new")
    prove(connection, 3)
    assert rows(connection, "lane_floors", "queue = 'new'") == []
    later = register(connection, "new")
    enqueue(connection, queue="new")
    prove(connection, 2)
    assert floor(connection, queue="new") == position(connection, old)
    assert len(claim(connection, later, 9, queues=["new"])) == 2


def test_a_floor_never_moves_back(connection: psycopg.Connection, worker: int) -> None:
    seen = []
    for n in range(30):
        for _ in range(n % 3):
            enqueue(connection)
        jobs = claim(connection, worker, n % 4)
        if n % 5 == 0:
            call(connection, "release", ids=ids_of(jobs), leases=[job.lease for job in jobs])
        prove(connection)
        seen.append([floor(connection, lane) for lane in range(20)])
    for before, after in itertools.pairwise(seen):
        assert all(b <= a for b, a in zip(before, after, strict=True))
    high = last_position(connection) + 1000
    connection.execute("update pgqueue.lane_floors set floors = array_fill(%s::bigint, array[20])", [high])
    enqueue(connection)
    prove(connection, 2)
    assert floor(connection) == high


def test_a_release_and_a_promotion_draw_positions_above_the_floor(
    connection: psycopg.Connection, worker: int
) -> None:
    enqueue(connection)
    enqueue(connection, delay=60)
    (job,) = claim(connection, worker)
    prove(connection, 3)
    call(connection, "release", ids=[job.id], leases=[job.lease])
    connection.execute("update pgqueue.scheduled_jobs set run_at = clock_timestamp()")
    connection.execute("delete from pgqueue.floor_proofs where subject = 'scheduled_jobs'")
    call(connection, "promote", max_jobs=9)
    assert len(claim(connection, worker, 9)) == 2


@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
def test_a_proof_refuses_a_snapshot_that_outlives_a_statement(connect: Connect, level: str) -> None:
    connection = connect(autocommit=False)
    connection.isolation_level = psycopg.IsolationLevel[level]
    with pytest.raises(psycopg.Error) as refusal:
        prove(connection)
    assert refusal.value.sqlstate == "PQ001"
    assert refusal.value.diag.message_primary == "prove_floors needs READ COMMITTED"


def test_a_second_proof_at_the_same_time_does_nothing_and_does_not_wait(connect: Connect) -> None:
    one, two = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    prove(one)
    prove(two)
    assert count(two, "floor_proofs") == 0
    one.commit()
    assert count(two, "floor_proofs") == 2


def test_proofs_stand_still_while_no_position_is_drawn(connection: psycopg.Connection, worker: int) -> None:
    enqueue(connection)
    claim(connection, worker)
    prove(connection, 2)
    proof = "select xmin::text from pgqueue.{} where {}"
    queries = [proof.format("lane_floors", "true"), proof.format("floor_proofs", "subject = 'ready_jobs'")]
    before = [connection.execute(query).fetchall() for query in queries]
    prove(connection, 3)
    assert [connection.execute(query).fetchall() for query in queries] == before


# The first position, a restart ------------------------------------------------------------------------


def test_the_very_first_position_is_not_proven_before_it_is_drawn(connect: Connect, fresh: str) -> None:
    """Hazard: a sequence that was never used says last_value 1, and draws 1 next."""
    connection, producer = connect(fresh), connect(fresh, autocommit=False)
    worker = register(connection)
    prove(connection)
    first = enqueue(producer)
    prove(connection, 3)
    producer.commit()
    assert ids_of(claim(connection, worker)) == [first]


def test_floors_are_due_before_the_first_position_only_until_they_are_proven(
    connect: Connect, fresh: str
) -> None:
    connection = connect(fresh)
    register(connection)
    prove(connection, 2)
    arguments = {
        "worker_ids": [],
        "queues": ["default"],
        "round_seconds": 1,
        "overdue_seconds": 2,
        "hears": True,
    }
    (done,) = call(connection, "upkeep", supervisor_id=1, **arguments)
    assert done["floors_due"] is False
    enqueue(connection)
    (done,) = call(connection, "upkeep", supervisor_id=1, **arguments)
    assert done["floors_due"] is True


def test_a_record_of_another_server_start_is_void(
    connect: Connect, connection: psycopg.Connection, worker: int
) -> None:
    """Its lockers' names mean nothing now: a prepared transaction goes by another one after a restart."""
    with uncommitted(connect, "plain") as (late, finish):
        enqueue(connection)
        claim(connection, worker)
        prove(connection)
        connection.execute(
            "update pgqueue.floor_proofs set server_started_at = server_started_at - interval '1 s', lockers = '{}'"
        )
        prove(connection, 4)
        assert floor(connection) <= last_position(connection) - 1
        finish("commit")
    assert ids_of(claim(connection, worker)) == [late]


def test_a_careless_proof_that_trusts_a_record_of_another_start_loses_the_job(
    connect: Connect, connection: psycopg.Connection, worker: int
) -> None:
    careless = ("where f.subject = 'ready_jobs' and f.server_started_at = pg_postmaster_start_time();",
                "where f.subject = 'ready_jobs';")  # fmt: skip
    with sabotaged(connection, "prove_floors", careless), uncommitted(connect, "plain") as (late, finish):
        enqueue(connection)
        claim(connection, worker)
        prove(connection)
        connection.execute("update pgqueue.floor_proofs set lockers = '{}'")
        prove(connection, 2)
        finish("commit")
    assert row_of(connection, late)["table"] == "ready_jobs"
    assert claim(connection, worker) == []


def test_a_prepared_transaction_holds_the_floor_over_a_crash_of_the_server() -> None:
    """The server's start time stays the same then, and the prepared transaction gets another name."""
    with tempfile.TemporaryDirectory(prefix="pgqueue-tests-", dir=_memory()) as folder:
        try:
            server = EmbeddedServer(Path(folder), durable=False, settings={"max_prepared_transactions": "2"})
        except NoServer as error:
            pytest.skip(str(error))
        with server:
            with open_session(server.dsn) as connection:
                install(connection)
                worker = register(connection)
                prove(connection, 2)
                producer = open_session(server.dsn, autocommit=False)
                late = enqueue(producer)
                producer.execute("prepare transaction 'late'")
                producer.close()
                enqueue(connection)
                claim(connection, worker)
                prove(connection)
                started = scalar(connection, "select pg_postmaster_start_time()")
                # written out, as the recovery must find it
                connection.execute("checkpoint")
                victim = open_session(server.dsn)
                os.kill(pid(victim), signal.SIGKILL)
                wait_until(lambda: _is_broken(connection), message="the server to end its sessions")
                victim.close()
            again = wait_until(lambda: _open(server.dsn), message="the server to recover")
            assert again is not None
            with again as connection:
                assert scalar(connection, "select pg_postmaster_start_time()") == started
                prove(connection, 3)
                connection.execute("commit prepared 'late'")
                assert late in ids_of(claim(connection, worker, 9))


def _memory() -> Path | None:
    return Path("/dev/shm") if Path("/dev/shm").is_dir() else None


def _is_broken(connection: psycopg.Connection) -> bool:
    try:
        connection.execute("select 1")
    except psycopg.OperationalError:
        return True
    return False


def _open(dsn: str) -> psycopg.Connection | None:
    try:
        return open_session(dsn)
    except psycopg.OperationalError:
        return None


# The hazards, each arranged ---------------------------------------------------------------------------


def lost(connection: psycopg.Connection, worker: int) -> list[int]:
    """The ready jobs that a claim from the floors does not find."""
    with connection.transaction(force_rollback=True):
        found = ids_of(claim(connection, worker, 1000))
    return [job["id"] for job in rows(connection, "ready_jobs") if job["id"] not in found]


AS_IT_IS = pytest.param(None, False, id="as it is")


def careless(*changes: tuple[str, str]) -> Any:
    """A variant of a function that loses jobs."""
    return pytest.param(changes, True, id="careless")


def variant(connection: psycopg.Connection, function: str, changes: Any) -> Any:
    """The function with these changes, for the time of the block; None: as it is."""
    return nullcontext() if not changes else sabotaged(connection, function, *changes)


@pytest.mark.parametrize(
    ("changes", "loses"),
    [AS_IT_IS, careless(("order by r.position limit 1), record.next_position),\n                               record.next_position))",
                         "order by r.position limit 1), record.next_position)))"))],
)  # fmt: skip
def test_the_lowest_visible_row_alone_is_no_floor(
    connect: Connect, connection: psycopg.Connection, worker: int, changes: Any, loses: bool
) -> None:
    """A later position has committed before an earlier one that began after the bound was read."""
    with variant(connection, "prove_floors", changes):
        prove(connection, 2)
        producer = connect(autocommit=False)
        late = enqueue(producer)
        enqueue(connection)
        prove(connection, 2)
        producer.commit()
        assert lost(connection, worker) == [late] * loses


_BOUND = (
    "        select s.last_value + s.is_called::integer into bound_position from pgqueue.positions as s;\n"
)
_LOCKERS = "            lockers := pgqueue.writers('ready_jobs');\n"
_STOP = f"perform {STOP};\n"


@pytest.mark.parametrize(
    ("changes", "loses"),
    [
        pytest.param(((_LOCKERS, _STOP + _LOCKERS),), False, id="as it is"),
        careless((_BOUND, f"lockers := pgqueue.writers('ready_jobs');\n{_STOP}{_BOUND}"), (_LOCKERS, "")),
    ],
)
def test_the_lockers_are_read_after_the_bound(
    connect: Connect,
    connection: psycopg.Connection,
    worker: int,
    beside: Callable[..., Future[Any]],
    changes: Any,
    loses: bool,
) -> None:
    """An enqueue draws its position between the two, and commits late."""
    prover, producer, observer = connect(), connect(autocommit=False), connect()
    prove(connection, 2)
    enqueue(connection)
    claim(connection, worker)
    with sabotaged(connection, "prove_floors", *changes):
        with stopped(connection):
            proof = beside(prove, prover)
            wait_for_lock_wait(observer, pid(prover))
            late = enqueue(producer)
        proof.result()
        prove(connection, 3)
    producer.commit()
    assert lost(connection, worker) == [late] * loses


_IF_GONE = "    if not found or cardinality(pgqueue.writers('ready_jobs', record.lockers)) = 0 then\n"
_LOWEST = "coalesce((select r.position from pgqueue.ready_jobs as r"


@pytest.mark.parametrize(
    ("changes", "loses"),
    [
        pytest.param(((_IF_GONE, _STOP + "    perform;" + _IF_GONE.replace("not found", "record.subject is null")),),
                     False, id="as it is"),
        careless(
            # the lowest row of the one lane that the test uses, read before the lockers are looked at
            (_IF_GONE, "    select min(r.position) into bound_position from pgqueue.ready_jobs as r;\n"
                       + _STOP + "    perform;" + _IF_GONE.replace("not found", "record.subject is null")),
            (_LOWEST, "coalesce(bound_position, (select r.position from pgqueue.ready_jobs as r"),
        ),
    ],
)  # fmt: skip
def test_the_lowest_row_is_read_after_the_lockers_have_gone(
    connect: Connect,
    connection: psycopg.Connection,
    worker: int,
    beside: Callable[..., Future[Any]],
    changes: Any,
    loses: bool,
) -> None:
    """The late enqueue commits between the two: its lock is gone, and its row was not seen."""
    prover, producer, observer = connect(), connect(autocommit=False), connect()
    prove(connection, 2)
    late = enqueue(producer)
    enqueue(connection)
    prove(connection)  # the bound is above both
    with sabotaged(connection, "prove_floors", *changes):
        with stopped(connection):
            proof = beside(prove, prover)
            wait_for_lock_wait(observer, pid(prover))
            producer.commit()
        proof.result()
    assert lost(connection, worker) == [late] * loses


@pytest.mark.parametrize(("cache", "loses"), [(1, False), (32, True)])
def test_a_sequence_that_caches_positions_loses_jobs(
    connect: Connect, connection: psycopg.Connection, worker: int, cache: int, loses: bool
) -> None:
    assert (
        scalar(connection, "select seqcache from pg_sequence where seqrelid = 'pgqueue.positions'::regclass")
        == 1
    )
    connection.execute(f"alter sequence pgqueue.positions cache {cache}")
    try:
        hoarder, other = connect(), connect()
        enqueue(hoarder)
        enqueue(other)
        claim(connection, worker, 2)
        prove(connection, 3)
        late = enqueue(hoarder)
        assert lost(connection, worker) == [late] * loses
    finally:
        connection.execute("alter sequence pgqueue.positions cache 1")


_INSERT = "    insert into pgqueue.ready_jobs (id, run_at,"


@pytest.mark.parametrize(
    ("changes", "loses"),
    [
        pytest.param(((_INSERT, f"    perform {STOP};\n{_INSERT}"),), False, id="as it is"),
        careless(
            (_INSERT, f"    perform set_config('pgqueue.drawn', nextval('pgqueue.positions')::text, true), {STOP};\n"
                      "    insert into pgqueue.ready_jobs (position, id, run_at,"),
            ("    values (own_id, coalesce(due, now())",
             "    values (current_setting('pgqueue.drawn')::bigint, own_id, coalesce(due, now())"),
        ),
    ],
)  # fmt: skip
def test_a_position_is_drawn_by_the_insert_itself(
    connect: Connect,
    connection: psycopg.Connection,
    worker: int,
    beside: Callable[..., Future[Any]],
    changes: Any,
    loses: bool,
) -> None:
    """Drawn into a variable before, it is below the bound of a proof that sees no lock of its transaction."""
    producer, observer = connect(), connect()
    prove(connection, 2)
    with sabotaged(connection, "enqueue", *changes):
        with stopped(connection):
            late = beside(enqueue, producer)
            wait_for_lock_wait(observer, pid(producer))
            prove(observer, 3)
        id = late.result()
        assert lost(connection, worker) == [id] * loses


# The low-water mark -----------------------------------------------------------------------------------


def schedule_now(connection: psycopg.Connection) -> int:
    """A scheduled job that is due at once. A short delay may be over before the insert, on a busy machine."""
    id = enqueue(connection, delay=60)
    connection.execute("update pgqueue.scheduled_jobs set run_at = clock_timestamp() where id = %s", [id])
    return id


def past(connection: psycopg.Connection, moment: Any) -> None:
    """Waits until the database's clock has passed a moment."""
    wait_until(lambda: scalar(connection, "select clock_timestamp() > %s", moment))


@pytest.mark.usefixtures("prepares")
@pytest.mark.parametrize("how", ["plain", "prepared"])
def test_an_enqueue_for_later_holds_the_mark_until_it_ends(
    connect: Connect, connection: psycopg.Connection, how: str
) -> None:
    producer = connect(autocommit=False)
    late = schedule_now(producer)
    if how == "prepared":
        producer.execute("prepare transaction 'late'")
        producer.rollback()
        producer.autocommit = True
    due = scalar(connection, "select clock_timestamp()")
    prove(connection, 4)
    held = mark(connection)
    assert held is None or held < due
    producer.execute("commit prepared 'late'" if how == "prepared" else "commit")
    assert row_of(connection, late)["run_at"] < due
    prove(connection, 3)
    assert mark(connection) == row_of(connection, late)["run_at"]
    assert call(connection, "promote", max_jobs=9) == 1
    prove(connection, 3)
    assert mark(connection) > due


def test_the_mark_is_the_first_job_that_is_due_or_will_be(connection: psycopg.Connection) -> None:
    ids = [enqueue(connection, delay=delay) for delay in (30, 20, 40)]
    prove(connection, 2)
    # not beyond the clock of the proof: a shorter delay may come any time
    before = mark(connection)
    assert before <= scalar(connection, "select clock_timestamp()")
    sooner = schedule_now(connection)
    prove(connection, 3)
    assert before < mark(connection) == row_of(connection, sooner)["run_at"]
    assert call(connection, "promote", max_jobs=9) == 1
    assert len(ids) == count(connection, "scheduled_jobs")


def test_the_mark_never_moves_back_and_hides_nothing_on_the_way(connection: psycopg.Connection) -> None:
    worker, seen, ids = register(connection), [], set()
    for n in range(40):
        ids.add(enqueue(connection, delay=0.001 * (n % 4)))
        if jobs := claim(connection, worker, 2):
            call(
                connection,
                "snooze",
                ids=ids_of(jobs),
                leases=[job.lease for job in jobs],
                delays=[0.0005 * (n % 3)] * len(jobs),
            )
        prove(connection)
        seen.append(mark(connection))
        call(connection, "promote", max_jobs=9)
    moments = [moment for moment in seen if moment is not None]
    assert moments == sorted(moments)
    assert len(set(moments)) > 10
    wait_until(lambda: call(connection, "promote", max_jobs=99) or not count(connection, "scheduled_jobs"))
    wait_until(lambda: not count(connection, "scheduled_jobs") or call(connection, "promote", max_jobs=99))
    assert {job["id"] for job in rows(connection, "ready_jobs")} == ids


_MARK_GONE = "       or cardinality(pgqueue.writers('scheduled_jobs', record.lockers)) = 0\n"


@pytest.mark.parametrize("changes", [None, ((_MARK_GONE, "       or true\n"),)], ids=["as it is", "careless"])
def test_a_mark_that_waits_for_no_lockers_loses_jobs(
    connect: Connect, connection: psycopg.Connection, changes: Any
) -> None:
    producer = connect(autocommit=False)
    with variant(connection, "prove_floors", changes):
        schedule_now(producer)
        prove(connection, 3)
        producer.commit()
        assert call(connection, "promote", max_jobs=9) == (0 if changes else 1)


def test_an_enqueue_that_is_overtaken_by_its_own_due_time_is_ready_not_scheduled(
    connect: Connect, connection: psycopg.Connection, beside: Callable[..., Future[Any]]
) -> None:
    """Arranged: the delay passes between the first look at the clock and the insert; the mark moves past it."""
    producer, observer = connect(), connect()
    stop = (
        "        if due is not null then\n",
        f"        perform {STOP};\n        if due is not null then\n",
    )
    with sabotaged(connection, "enqueue", stop):
        with stopped(connection):
            late = beside(enqueue, producer, delay=0.005)
            wait_for_lock_wait(observer, pid(producer))
            past(observer, scalar(observer, "select clock_timestamp() + interval '6 ms'"))
            prove(observer, 3)
        assert row_of(connection, late.result())["table"] == "ready_jobs"


def test_after_the_clock_was_set_back_jobs_below_the_mark_are_promoted(
    connection: psycopg.Connection,
) -> None:
    prove(connection, 2)
    # what the clock said before it was set back
    connection.execute(
        "update pgqueue.floor_proofs set proven_run_at = now() + interval '1 h', next_run_at = now() + interval '1 h' "
        "where subject = 'scheduled_jobs'"
    )
    job = enqueue(connection, delay=60)
    connection.execute("update pgqueue.scheduled_jobs set run_at = clock_timestamp()")
    assert call(connection, "promote", max_jobs=10) == 1
    assert row_of(connection, job)["table"] == "ready_jobs"
    prove(connection, 2)
    assert scalar(
        connection,
        "select proven_run_at <= clock_timestamp() from pgqueue.floor_proofs where subject = 'scheduled_jobs'",
    )


def test_after_another_server_start_the_mark_begins_anew(connection: psycopg.Connection) -> None:
    """The clock of a standby that was promoted may be behind the one that proved the mark."""
    prove(connection, 2)
    connection.execute(
        "update pgqueue.floor_proofs set proven_run_at = clock_timestamp() + interval '1 min',"
        " server_started_at = server_started_at - interval '1 s'"
    )
    schedule_now(connection)
    prove(connection)
    assert call(connection, "promote", max_jobs=9) == 1


# Everything at once -----------------------------------------------------------------------------------

SECONDS = 3.5


@pytest.mark.usefixtures("prepares")
def test_under_stress_every_committed_job_is_claimed_exactly_once(database: str) -> None:
    """6 producers, 3 claimers with private cursors, 1 that proves and promotes, whatever interleaving comes."""
    seed = random.randrange(2**32)
    committed, claimed = stress(database, seed, SECONDS)
    assert len(claimed) == len(set(claimed)), f"seed {seed}: claimed twice"
    assert set(claimed) == committed, f"seed {seed}: lost {len(committed - set(claimed))}"
    assert len(committed) > 300


@pytest.mark.usefixtures("prepares")
def test_the_stress_sees_a_careless_proof(database: str, connection: psycopg.Connection) -> None:
    """One that waits for nobody: it loses about a fifth."""
    with sabotaged(connection, "prove_floors", (_IF_GONE, "    if true then\n")):
        committed, claimed = stress(database, 1, 1.0)
    assert committed - set(claimed)


def stress(dsn: str, seed: int, seconds: float) -> tuple[set[int], list[int]]:
    """The ids that were committed, and those that were claimed."""
    committed: set[int] = set()
    claimed: list[int] = []
    failures: list[BaseException] = []
    stop_producing, stop_claiming = threading.Event(), threading.Event()

    def watched(work: Callable[..., None], *arguments: Any) -> Callable[[], None]:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised again by the test's thread
                failures.append(error)
                stop_producing.set()
                stop_claiming.set()

        return run

    def produce(number: int) -> None:
        dice = random.Random(seed * 10 + number)
        turn = 0
        with open_session(dsn, autocommit=False) as connection:
            while not stop_producing.is_set():
                turn += 1
                kept = _produce_some(connection, dice)
                # Transactions that stay open for a while, some longer than others, are what is tested.
                pause = dice.choice([0, 0, 0.001, 0.01])
                if dice.random() < 0.05:
                    name = f"stress-{number}-{turn}"
                    connection.execute(sql.SQL("prepare transaction {}").format(sql.Literal(name)))
                    connection.rollback()
                    connection.autocommit = True
                    time.sleep(pause)
                    end = dice.choice(["commit", "rollback"])
                    connection.execute(sql.SQL(end + " prepared {}").format(sql.Literal(name)))
                    connection.autocommit = False
                    kept = kept if end == "commit" else []
                elif dice.random() < 0.2:
                    time.sleep(pause)
                    connection.rollback()
                    kept = []
                else:
                    time.sleep(pause)
                    connection.commit()
                committed.update(kept)

    def take(number: int) -> None:
        dice = random.Random(seed * 10 + number)
        cursors = [0] * 20
        with open_session(dsn) as connection:
            worker = register(connection)
            while True:
                last = stop_claiming.is_set()
                asked = dice.choice([1, 3, 10])
                jobs = claim(connection, worker, asked, cursors=cursors)
                from_floors = not any(cursors)
                # the list is the claim's commit: autocommit
                claimed.extend(job.id for job in jobs)
                for job in jobs:
                    cursors[job.lane] = max(cursors[job.lane], job.position + 1)
                if len(jobs) < asked:
                    cursors = [0] * 20
                    if last and from_floors:
                        return

    def keep_up() -> None:
        with open_session(dsn) as connection:
            while not stop_claiming.is_set():
                prove(connection)
                call(connection, "promote", max_jobs=50)

    producers = [threading.Thread(target=watched(produce, n)) for n in range(6)]
    others = [threading.Thread(target=watched(take, n)) for n in range(6, 9)]
    others.append(threading.Thread(target=watched(keep_up)))
    for thread in (*producers, *others):
        thread.start()
    stop_producing.wait(seconds)
    stop_producing.set()
    for thread in producers:
        thread.join()
    with open_session(dsn) as connection:
        past(connection, scalar(connection, "select clock_timestamp() + interval '20 ms'"))
        while call(connection, "promote", max_jobs=1000):
            pass
    stop_claiming.set()
    for thread in others:
        thread.join()
    if failures:
        raise failures[0]
    return committed, claimed


def _produce_some(connection: psycopg.Connection, dice: random.Random) -> list[int]:
    """Enqueues in the open transaction; the ids that exist if it commits."""
    kept = []
    connection.execute("select")  # begins the transaction, so that those below are savepoints
    for _ in range(dice.choice([1, 1, 2, 4])):
        priority = dice.choice([0, 5, 5, 9])
        if dice.random() < 0.2:
            with connection.transaction(force_rollback=dice.random() < 0.5) as savepoint:
                id = enqueue(connection, priority=priority)
            if not savepoint.force_rollback:
                kept.append(id)
        elif dice.random() < 0.2:
            kept.append(enqueue(connection, delay=dice.choice([0, 0.001, 0.015])))
        elif dice.random() < 0.2:
            kept += enqueue_many(connection, [{"task": "t", "priority": priority}] * 3)[0]
        else:
            kept.append(enqueue(connection, priority=priority))
    return kept
