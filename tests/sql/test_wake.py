"""Wake-ups: who is notified, who is not, and the race with falling asleep.

That nothing was said is shown without waiting: notifications come in the order of the commits, so whoever
has heard the one that the test sends last has heard all that came before.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

from tests.sql.acting import (
    Connect,
    call,
    claim,
    claimed,
    count,
    enqueue,
    enqueue_many,
    pid,
    register,
    rows,
    sabotaged,
    scalar,
)
from tests.support import wait_for_lock_wait

COMMON = "pgqueue"


class Ear:
    """A session that listens on the common channel and on those of workers."""

    def __init__(self, connect: Connect, *workers: int):
        self._connection = connect()
        self._speaker = connect()
        for channel in (COMMON, "the_end", *(f"pgqueue_{worker}" for worker in workers)):
            self._connection.execute(f"listen {channel}")

    def heard(self) -> list[Any]:
        """What was said since the last time: the id of each worker notified, or the common channel."""
        self._speaker.execute("notify the_end")
        channels = []
        for notification in self._connection.notifies(timeout=10):
            if notification.channel == "the_end":
                break
            channels.append(notification.channel)
        else:
            raise AssertionError("the last notification did not come")
        return [channel if channel == COMMON else int(channel.split("_")[1]) for channel in channels]


def asleep(connection: psycopg.Connection, *queues: str) -> int:
    """A worker that has just fallen asleep."""
    worker = register(connection, *queues)
    call(connection, "fall_asleep", worker_id=worker, queues=list(queues) or ["default"])
    return worker


# Who is notified --------------------------------------------------------------------------------------


def test_nobody_is_notified_when_nobody_sleeps(connect: Connect, connection: psycopg.Connection) -> None:
    ear = Ear(connect, register(connection))
    enqueue(connection)
    enqueue_many(connection, [{"task": "t"}] * 3)
    assert ear.heard() == []


def test_an_enqueue_notifies_as_many_sleepers_as_it_brings_jobs_the_latest_first(
    connect: Connect, connection: psycopg.Connection
) -> None:
    workers = [asleep(connection) for _ in range(3)]
    ear = Ear(connect, *workers)
    enqueue(connection)
    assert ear.heard() == [workers[2]]
    enqueue_many(connection, [{"task": "t"}] * 2)
    assert sorted(ear.heard()) == workers[1:]
    enqueue_many(connection, [{"task": "t"}] * 9)
    assert sorted(ear.heard()) == workers


def test_only_sleepers_of_the_jobs_queue_are_notified(
    connect: Connect, connection: psycopg.Connection
) -> None:
    a, both, b = asleep(connection, "a"), asleep(connection, "a", "b"), asleep(connection, "b")
    ear = Ear(connect, a, both, b)
    enqueue_many(connection, [{"task": "t", "queue": "a"}] * 5)
    assert sorted(ear.heard()) == [a, both]
    enqueue_many(connection, [{"task": "t", "queue": "b"}, {"task": "t", "queue": "c"}])
    assert ear.heard() == [b]
    enqueue(connection, queue="c")
    assert ear.heard() == []


@pytest.mark.parametrize("options", [{"delay": 60}, {"unique_key": "held"}, {"idempotency_key": "held"}])
def test_an_enqueue_that_makes_nothing_ready_notifies_nobody(
    connect: Connect, connection: psycopg.Connection, options: dict[str, Any]
) -> None:
    enqueue(connection, unique_key="held")
    enqueue(connection, idempotency_key="held")
    ear = Ear(connect, asleep(connection))
    enqueue(connection, **options)
    enqueue_many(connection, [{"task": "t", **options}])
    assert ear.heard() == []


def test_a_stale_sleeper_is_not_notified_and_not_in_the_way(
    connect: Connect, connection: psycopg.Connection
) -> None:
    stale, alive = asleep(connection), asleep(connection)
    connection.execute(
        "update pgqueue.sleepers set slept_at = now() - interval '26 s' where worker_id = %s", [stale]
    )
    ear = Ear(connect, stale, alive)
    enqueue_many(connection, [{"task": "t"}] * 9)
    assert ear.heard() == [alive]


def test_a_beat_keeps_a_sleeper_fresh(connect: Connect, connection: psycopg.Connection) -> None:
    workers = [asleep(connection) for _ in range(2)]
    connection.execute(
        "update pgqueue.sleepers set slept_at = now() - interval '24 s', period = period - interval '20 s'"
    )
    call(connection, "heartbeat", worker_ids=[workers[0]])
    connection.execute("update pgqueue.sleepers set slept_at = slept_at - interval '2 s'")
    ear = Ear(connect, *workers)
    enqueue_many(connection, [{"task": "t"}] * 2)
    assert ear.heard() == [workers[0]]


def test_a_worker_that_sleeps_for_long_is_kept_fresh_by_every_tenth_second(
    connection: psycopg.Connection,
) -> None:
    worker = asleep(connection)
    for seconds in (0, 9, 2, 9, 2, 9, 2):
        connection.execute(
            f"update pgqueue.sleepers set slept_at = slept_at - interval '{seconds} s', period = period - interval '{seconds} s'"
        )
        before = count(connection, "sleepers")
        call(connection, "heartbeat", worker_ids=[worker])
        # once when the last one is older than ten seconds, and not again with each beat of the next ten
        assert count(connection, "sleepers") - before == (seconds == 2)
    call(connection, "wake_up", worker_id=worker)
    connection.execute("update pgqueue.sleepers set period = period - interval '11 s'")
    call(connection, "heartbeat", worker_ids=[worker])
    assert rows(connection, "sleepers", "slept_at > '-infinity'") == []


def test_a_worker_that_woke_up_or_ended_is_not_notified(
    connect: Connect, connection: psycopg.Connection
) -> None:
    woken, ended = asleep(connection, "default", "b"), asleep(connection)
    ear = Ear(connect, woken, ended)
    call(connection, "wake_up", worker_id=woken)
    call(connection, "rescue", worker_id=ended)
    enqueue(connection)
    assert ear.heard() == []
    # The rows of the one that woke up stay, awake (see wake_up); those of the one that ended are gone.
    assert count(connection, "sleepers") == 2


def test_an_enqueue_that_is_rolled_back_notifies_nobody(
    connect: Connect, connection: psycopg.Connection
) -> None:
    ear = Ear(connect, asleep(connection))
    with connection.transaction(force_rollback=True):
        enqueue(connection)
    assert ear.heard() == []


def _released(connection: psycopg.Connection, job: Any) -> None:
    call(connection, "release", ids=[job.id], leases=[job.lease])


def _rescued(connection: psycopg.Connection, job: Any) -> None:
    call(connection, "rescue", worker_id=rows(connection, "running_jobs")[0]["worker_id"], started=[job.id])


def _promoted(connection: psycopg.Connection, job: Any) -> None:
    call(connection, "snooze", ids=[job.id], leases=[job.lease], delays=[60])
    connection.execute("update pgqueue.scheduled_jobs set run_at = now()")
    assert call(connection, "promote", max_jobs=1) == 1


def _replayed(connection: psycopg.Connection, job: Any) -> None:
    failure = {"id": job.id, "lease": job.lease}
    call(connection, "fail", failures=psycopg.types.json.Jsonb([failure]))
    assert call(connection, "replay", ids=[job.id]) == [job.id]


@pytest.mark.parametrize("make_ready", [_released, _rescued, _promoted, _replayed])
def test_whatever_makes_a_job_ready_notifies(
    connect: Connect, connection: psycopg.Connection, make_ready: Callable[..., None]
) -> None:
    job = claimed(connection, register(connection))
    sleeper = asleep(connection)
    ear = Ear(connect, sleeper)
    make_ready(connection, job)
    assert set(ear.heard()) == {sleeper}


def test_a_queue_that_is_resumed_wakes_its_sleepers(connect: Connect, connection: psycopg.Connection) -> None:
    sleepers = [asleep(connection, "a"), asleep(connection, "a"), asleep(connection, "b")]
    call(connection, "pause", queue="a")
    ear = Ear(connect, *sleepers)
    call(connection, "resume", queue="a")
    assert sorted(ear.heard()) == sleepers[:2]


@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
def test_above_read_committed_the_common_channel_is_notified(
    connect: Connect, connection: psycopg.Connection, level: str
) -> None:
    """The old snapshot cannot see who fell asleep since, so everybody looks, also when nobody seems to sleep."""
    producer = connect(autocommit=False)
    producer.isolation_level = psycopg.IsolationLevel[level]
    producer.execute("select from pgqueue_bi.jobs")
    sleeper = asleep(connection)
    ear = Ear(connect, sleeper)
    enqueue(producer)
    producer.commit()
    assert ear.heard() == [COMMON]


@pytest.mark.parametrize("level", [None, psycopg.IsolationLevel.REPEATABLE_READ])
def test_notifying_can_be_switched_off(
    connect: Connect, connection: psycopg.Connection, level: psycopg.IsolationLevel | None
) -> None:
    ear = Ear(connect, asleep(connection))
    producer = connect(settings="-c pgqueue.notify=off", autocommit=False)
    producer.isolation_level = level
    enqueue(producer)
    enqueue_many(producer, [{"task": "t"}] * 2)
    producer.commit()
    assert ear.heard() == []


def test_a_transaction_can_be_prepared_with_notifying_switched_off_and_only_so(
    connect: Connect, connection: psycopg.Connection
) -> None:
    if scalar(connection, "show max_prepared_transactions") == "0":
        pytest.skip("the server has max_prepared_transactions = 0")
    asleep(connection)
    producer = connect(autocommit=False)
    enqueue(producer)
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        producer.execute("prepare transaction 'loud'")
    producer.rollback()
    producer.execute("set pgqueue.notify = off")
    id = enqueue(producer)
    producer.execute("prepare transaction 'silent'")
    producer.rollback()
    connection.execute("commit prepared 'silent'")
    assert rows(connection, "ready_jobs")[0]["id"] == id


# The chain --------------------------------------------------------------------------------------------


def test_a_full_claim_wakes_one_more_sleeper_and_a_short_one_none(
    connect: Connect, connection: psycopg.Connection
) -> None:
    claimer = register(connection)
    enqueue_many(connection, [{"task": "t"}] * 3)
    sleepers = [asleep(connection) for _ in range(3)]
    ear = Ear(connect, *sleepers)
    assert len(claim(connection, claimer, 2)) == 2
    heard = ear.heard()
    assert len(heard) == 1
    assert heard[0] in sleepers
    assert len(claim(connection, claimer, 2)) == 1
    assert claim(connection, claimer, 2) == []
    assert ear.heard() == []


def test_one_big_commit_wakes_a_whole_fleet(connect: Connect, connection: psycopg.Connection) -> None:
    """Jobs enqueued one by one notify one sleeper; each that wakes and claims its fill wakes another.

    Nobody is off the list of sleepers yet: a worker stays there until it has been busy for 200 ms.
    """
    workers = [asleep(connection) for _ in range(6)]
    ear = Ear(connect, *workers)
    with connection.transaction():
        for _ in range(100):
            enqueue(connection)
    awake: list[int] = []
    notified = ear.heard()
    while notified:
        awake += notified
        for worker in notified:
            assert len(claim(connection, worker, 3)) == 3
        notified = [worker for worker in ear.heard() if worker not in awake]
    assert sorted(awake) == workers


# Falling asleep ---------------------------------------------------------------------------------------


def test_an_enqueuer_that_overlooked_a_sleeper_is_among_the_writers_until_it_ends(
    connect: Connect, connection: psycopg.Connection
) -> None:
    """The race, arranged: it has read the sleepers before the registration, and commits after the last look."""
    producer = connect(autocommit=False)
    worker = register(connection)
    ear = Ear(connect, worker)
    id = enqueue(producer)  # nobody sleeps: no NOTIFY
    call(connection, "fall_asleep", worker_id=worker, queues=["default"])  # (1) and commits
    writers = call(connection, "writers", relation="ready_jobs")  # (2)
    assert claim(connection, worker) == []  # (3) a look; a careless worker would sleep now
    assert len(writers) == 1
    assert call(connection, "writers", relation="ready_jobs", among=writers) == writers
    producer.commit()
    assert ear.heard() == []  # … for ever: no hint has come
    assert call(connection, "writers", relation="ready_jobs", among=writers) == []
    assert [job.id for job in claim(connection, worker)] == [id]  # the look after the test finds it


def test_an_enqueue_after_the_registration_notifies_whatever_began_before(
    connect: Connect, connection: psycopg.Connection
) -> None:
    producer = connect(autocommit=False)
    producer.execute("select count(*) from pgqueue_bi.jobs")
    sleeper = asleep(connection)
    ear = Ear(connect, sleeper)
    enqueue(producer)
    producer.commit()
    assert ear.heard() == [sleeper]


_READ = "    perform pgqueue.notify_sleepers(line, 1);\n"
_BEGIN = "begin\n    if args is null"


@pytest.mark.parametrize(
    ("changes", "heard"),
    [([], True), ([(_READ, ""), (_BEGIN, _BEGIN.replace("\n", "\n" + _READ, 1))], False)],
    ids=["as it is", "careless"],
)
def test_an_enqueue_reads_the_sleepers_after_its_insert(
    connect: Connect,
    connection: psycopg.Connection,
    beside: Callable[..., Future[Any]],
    changes: list[tuple[str, str]],
    heard: bool,
) -> None:
    """Arranged: a worker falls asleep while the enqueue waits, before its insert, for another's key.

    It holds no lock on ready_jobs there, so the worker finds no writer to wait for.
    """
    holder, producer, observer = connect(autocommit=False), connect(), connect()
    worker = register(connection)
    ear = Ear(connect, worker)
    enqueue(holder, "other", unique_key="k")  # only the key: no row of it in ready_jobs matters here
    with sabotaged(connection, "enqueue", *changes):
        waiting = beside(enqueue, producer, "other", unique_key="k")
        wait_for_lock_wait(observer, pid(producer))
        call(connection, "fall_asleep", worker_id=worker, queues=["default"])
        among = call(connection, "writers", relation="ready_jobs")
        assert len(among) == 1  # the holder of the key, not the producer
        holder.rollback()
        waiting.result()
    assert ear.heard() == [worker] * heard


def test_falling_asleep_again_renews_the_registration(connection: psycopg.Connection) -> None:
    worker = asleep(connection, "a", "b")
    connection.execute("update pgqueue.sleepers set slept_at = now() - interval '1 min'")
    call(connection, "fall_asleep", worker_id=worker, queues=["a", "b"])
    found = rows(connection, "sleepers", "slept_at > now() - interval '10 s'")
    assert sorted(row["queue"] for row in found) == ["a", "b"]
    assert count(connection, "sleepers") == 2


# Writers ----------------------------------------------------------------------------------------------


def test_writers_are_those_who_may_still_bring_a_row(
    connect: Connect, connection: psycopg.Connection
) -> None:
    reader, claimer, scheduler = (connect(autocommit=False) for _ in range(3))
    reader.execute("select from pgqueue.ready_jobs")
    assert call(connection, "writers", relation="ready_jobs") == []
    claim(claimer, register(connection))
    enqueue(scheduler, delay=60)
    ready = call(connection, "writers", relation="ready_jobs")
    later = call(connection, "writers", relation="scheduled_jobs")
    assert (len(ready), len(later)) == (1, 1)
    assert set(ready).isdisjoint(later)
    assert call(connection, "writers", relation="ready_jobs", among=later) == []
    assert call(connection, "writers", relation="ready_jobs", among=[]) == []


def test_a_session_is_not_a_writer_to_itself(connection: psycopg.Connection) -> None:
    with connection.transaction():
        enqueue(connection)
        assert call(connection, "writers", relation="ready_jobs") == []


def test_writers_of_another_database_do_not_count(
    connect: Connect, connection: psycopg.Connection, fresh: str
) -> None:
    other = connect(fresh, autocommit=False)
    enqueue(other)
    assert call(connection, "writers", relation="ready_jobs") == []


def test_a_prepared_writer_keeps_its_name(connect: Connect, connection: psycopg.Connection) -> None:
    if scalar(connection, "show max_prepared_transactions") == "0":
        pytest.skip("the server has max_prepared_transactions = 0")
    producer = connect(autocommit=False)
    enqueue(producer)
    writers = call(connection, "writers", relation="ready_jobs")
    producer.execute("prepare transaction 'p'")
    producer.rollback()
    assert call(connection, "writers", relation="ready_jobs", among=writers) == writers
    connection.execute("rollback prepared 'p'")
    assert call(connection, "writers", relation="ready_jobs") == []
