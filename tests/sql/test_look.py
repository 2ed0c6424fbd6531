"""What is seen of jobs from outside: results, progress, reports, and who is told of an end."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.job import ClaimedJob
from tests.sql.acting import (
    STOP,
    Connect,
    call,
    claim,
    claimed,
    count,
    enqueue,
    everything,
    register,
    row_of,
    rows,
    sabotaged,
    scalar,
    stopped,
)
from tests.support import wait_until

Session = psycopg.Connection
CHANNEL = "pgqueue_wait_0123456789abcdef"
OTHER = "pgqueue_wait_fedcba9876543210"


def look(connection: Session, *ids: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = call(connection, "look", ids=list(ids))
    return found


def completion(job: ClaimedJob, **kept: Any) -> dict[str, Any]:
    return {"id": job.id, "lease": job.lease, **kept}


def complete_with_results(connection: Session, *completions: dict[str, Any]) -> list[int]:
    accepted: list[int] = call(connection, "complete_with_results", completions=Jsonb(list(completions)))
    return accepted


# Results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [{"a": [1, None]}, [], "text", 7, False, None, 2**63 - 1, "☃"])
def test_a_result_is_kept_as_it_is(result: Any, connection: Session) -> None:
    job = claimed(connection, register(connection))
    assert complete_with_results(connection, completion(job, result=result)) == [job.id]
    row = row_of(connection, job.id)
    assert (row["table"], row["state"], row["result"], row["reason"]) == (
        "finished_jobs", "completed", result, None,
    )  # fmt: skip
    is_null = scalar(connection, "select result is null from pgqueue.finished_jobs where id = %s", job.id)
    assert not is_null, "JSON null is a result too"


def test_a_completion_without_a_result_tells_why(connection: Session) -> None:
    job = claimed(connection, register(connection))
    assert complete_with_results(connection, completion(job, reason="too large")) == [job.id]
    row = row_of(connection, job.id)
    assert (row["state"], row["result"], row["reason"]) == ("completed", None, "too large")


def test_results_stay_with_their_jobs_and_lost_leases_keep_nothing(connection: Session) -> None:
    worker = register(connection)
    for n in range(5):
        enqueue(connection, unique_key=str(n))
    jobs = claim(connection, worker, 5)
    lost = jobs[2]._replace(lease=jobs[2].lease + 1)
    given = [completion(job, result={"n": n}) for n, job in enumerate([*jobs[:2], lost, *jobs[3:]])]
    # a job twice, as after a reply that was lost
    accepted = complete_with_results(connection, *reversed(given), given[0])
    assert sorted(accepted) == [job.id for n, job in enumerate(jobs) if n != 2]
    for n, job in enumerate(jobs):
        row = row_of(connection, job.id)
        if n == 2:
            assert row["table"] == "running_jobs"
        else:
            assert (row["result"], row["attempt"]) == ({"n": n}, 1)
    assert count(connection, "unique_keys") == 1, "the keys of jobs that have ended are free"


@pytest.mark.parametrize("completions", ["[]", "[{}]", '[{"id": 1}]'])
def test_strange_completions_change_nothing(completions: str, connection: Session) -> None:
    claimed(connection, register(connection))
    before = everything(connection)
    assert run(connection, calls.complete_with_results(completions)) == []
    assert everything(connection) == before


# Looking ------------------------------------------------------------------------------------------------


def test_a_look_finds_what_is_on_record_in_order(connection: Session) -> None:
    worker = register(connection)
    running = claimed(connection, worker)
    done = claimed(connection, worker)
    complete_with_results(connection, completion(done, result=7))
    ready, scheduled = enqueue(connection), enqueue(connection, delay=60)
    ids = [scheduled, 2**60, ready, done.id, running.id, done.id]
    assert [(row["id"], row["state"], row["result"]) for row in look(connection, *ids)] == [
        (running.id, "running", None),
        (done.id, "completed", 7),
        (ready, "ready", None),
        (scheduled, "scheduled", None),
    ]
    assert look(connection) == []
    assert call(connection, "look", ids=None) == []


@pytest.mark.parametrize("options", [{"tags": "eu"}, {"tags": {"a": 1}}, {"tags": None}, {}])
def test_options_of_another_language_cannot_break_a_look(options: Any, connection: Session) -> None:
    id = enqueue(connection, options=options)
    (row,) = look(connection, id)
    assert row["tags"] == []


def test_a_job_that_moves_meanwhile_is_found_exactly_once(
    connection: Session, connect: Connect, beside: Callable[..., Future[Any]]
) -> None:
    worker = register(connection)
    jobs = [claimed(connection, worker) for _ in range(20)]
    ids = [job.id for job in jobs]
    mover = connect()

    def move() -> None:
        for job in jobs:
            call(mover, "release", ids=[job.id], leases=[job.lease])
            (again,) = claim(mover, worker)
            call(mover, "complete", ids=[again.id], leases=[again.lease])

    moving = beside(move)
    looks = 0
    while not moving.done() or looks == 0:
        assert [row["id"] for row in look(connection, *ids)] == ids
        looks += 1
    moving.result()
    assert {row["state"] for row in look(connection, *ids)} == {"completed"}


def test_a_finished_job_is_found_by_the_small_index_and_others_without_the_history(
    connect: Connect, fresh: str
) -> None:
    connection = connect(fresh)
    worker = register(connection)
    connection.execute(
        """insert into pgqueue.finished_jobs (id, run_at, created_at, finished_at, day, lane, attempt, max_attempts,
                                              crashes, queue, task, state, args)
           select nextval('pgqueue.job_ids'), now(), now(), now(), '-infinity', 11, 1, 5, 0, 'default', 't', 'completed', '{}'
             from generate_series(1, 50000)"""
    )
    last = scalar(connection, "select max(id) from pgqueue.finished_jobs")
    connection.execute(
        "select brin_summarize_new_values(indexrelid) from pg_index where indrelid = 'pgqueue.finished_jobs_overflow'::regclass"
    )
    running = claimed(connection, worker)

    def read(*ids: int) -> int:
        """Pages of the history that a look touches."""
        stats = "select heap_blks_read + heap_blks_hit from pg_statio_user_tables where relname = 'finished_jobs_overflow'"
        connection.execute("select pg_stat_force_next_flush()")
        before = scalar(connection, stats)
        look(connection, *ids)
        connection.execute("select pg_stat_force_next_flush()")
        return int(scalar(connection, stats)) - int(before)

    pages = scalar(connection, "select pg_relation_size('pgqueue.finished_jobs_overflow') / 8192")
    assert pages > 500
    assert read(running.id) == 0
    assert read(last - 1000) <= 64, f"of {pages} pages"
    assert read(*[last - n * 1000 for n in range(3)]) <= 4 * 64


# Progress and reports -----------------------------------------------------------------------------------


def note(connection: Session, job: ClaimedJob, **progress: Any) -> None:
    call(connection, "note_progress", notes=Jsonb([completion(job, progress=progress)]))


def test_progress_counts_while_its_claim_lasts(connection: Session) -> None:
    worker = register(connection)
    job = claimed(connection, worker)
    note(connection, job._replace(lease=job.lease + 1), done=9)
    assert look(connection, job.id)[0]["progress"] is None
    note(connection, job, done=1, total=4)
    note(connection, job, done=2, total=4, message="half")
    (row,) = look(connection, job.id)
    assert row["progress"] == {"done": 2, "total": 4, "message": "half"}
    assert row["progress_at"] is not None
    assert count(connection, "job_progress") == 1

    call(connection, "release", ids=[job.id], leases=[job.lease])
    assert look(connection, job.id)[0]["progress"] is None
    (again,) = claim(connection, worker)
    assert look(connection, job.id)[0]["progress"] is None
    note(connection, job, done=3)
    assert look(connection, job.id)[0]["progress"] is None
    note(connection, again, done=1)
    assert look(connection, job.id)[0]["progress"] == {"done": 1}
    assert count(connection, "job_progress") == 1


def test_an_attempts_report_stays_and_its_progress_with_it(connection: Session) -> None:
    worker = register(connection)
    job = claimed(connection, worker)
    note(connection, job, done=1)
    lines = [{"at": "2027-01-01T00:00:00+00:00", "level": "info", "text": "began"}]
    report = completion(job, progress={"done": 2}, lines=lines)
    call(connection, "note_reports", reports=Jsonb([completion(job._replace(lease=1), lines=lines), report]))
    assert count(connection, "job_progress") == 0
    failure = completion(job, error="E", message="m", delay=0)
    call(connection, "fail", failures=Jsonb([failure]))
    (row,) = look(connection, job.id)
    assert (row["state"], row["progress"], row["error"], row["message"]) == (
        "scheduled",
        {"done": 2},
        "E",
        "m",
    )
    call(connection, "promote", max_jobs=5)
    (again,) = claim(connection, worker)
    assert look(connection, job.id)[0]["progress"] is None, "this attempt has said nothing yet"
    complete_with_results(connection, completion(again, result=1))
    (row,) = look(connection, job.id)
    assert (row["progress"], row["error"]) == (None, "E")

    (record,) = call(connection, "job_record", id=job.id)
    assert [(r["attempt"], r["progress"], r["lines"]) for r in record["reports"]] == [(1, {"done": 2}, lines)]
    assert [f["attempt"] for f in record["failures"]] == [1]


def test_reports_land_in_the_day_or_in_the_overflow(connection: Session) -> None:
    worker = register(connection)
    for _ in range(2):
        job = claimed(connection, worker)
        call(connection, "note_reports", reports=Jsonb([completion(job, lines=[])]))
        call(connection, "retain")
    where = "select tableoid::regclass::text from pgqueue.job_reports order by reported_at"
    tables = [name for (name,) in connection.execute(where).fetchall()]
    assert tables[-1].startswith("pgqueue.job_reports_20")


# Waiters ------------------------------------------------------------------------------------------------


def heard(connection: Session, *, within: float = 0.05) -> list[tuple[str, str]]:
    """What a session that listens was told."""
    return [(note.channel, note.payload) for note in connection.notifies(timeout=within)]


@pytest.fixture
def ears(connect: Connect) -> Session:
    """A session that listens on both channels."""
    session = connect()
    session.execute(f"listen {CHANNEL}; listen {OTHER}")
    return session


def test_a_waiter_hears_that_it_is_heard(connection: Session, ears: Session) -> None:
    call(connection, "wait_for", ids=[1, 2], channel=CHANNEL)
    assert heard(ears) == [(CHANNEL, "")]
    assert count(connection, "waiters") == 2


def every_ending(connection: Session, worker: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """A job for each way to end, and what ends it."""
    jobs = {name: claimed(connection, worker) for name in ("plain", "result", "dead", "retried", "cancelled")}

    def fail(name: str, delay: float | None) -> object:
        failure = completion(jobs[name], error="E", message="m", delay=delay)
        return call(connection, "fail", failures=Jsonb([failure]))

    ended: dict[str, tuple[int, Callable[[], object]]] = {
        "plain": (
            jobs["plain"].id,
            lambda: call(connection, "complete", ids=[jobs["plain"].id], leases=[jobs["plain"].lease]),
        ),
        "result": (jobs["result"].id, lambda: complete_with_results(connection, completion(jobs["result"]))),
        "dead": (jobs["dead"].id, lambda: fail("dead", None)),
        "cancelled": (
            jobs["cancelled"].id,
            lambda: run(
                connection, calls.end_cancelled([jobs["cancelled"].id], [jobs["cancelled"].lease], ["r"])
            ),
        ),
    }
    waits = enqueue(connection, delay=60)
    ended["cancelled while it waits"] = (waits, lambda: run(connection, calls.cancel([waits])))
    return ended


def test_every_ending_tells_those_who_wait_for_it_and_nobody_else(connection: Session, ears: Session) -> None:
    worker = register(connection)
    for name, (id, end) in every_ending(connection, worker).items():
        call(connection, "wait_for", ids=[id], channel=CHANNEL)
        call(connection, "wait_for", ids=[id + 1_000_000], channel=OTHER)
        heard(ears)
        end()
        assert heard(ears) == [(CHANNEL, str(id))], name


def test_a_rescue_that_makes_a_dead_letter_tells(connection: Session, ears: Session) -> None:
    worker = register(connection)
    job = claimed(connection, worker)
    call(connection, "wait_for", ids=[job.id], channel=CHANNEL)
    heard(ears)
    connection.execute(
        "update pgqueue.running_jobs set crashes = 32000, attempt = max_attempts where id = %s", [job.id]
    )
    call(connection, "rescue", worker_id=worker, started=[job.id])
    assert look(connection, job.id)[0]["state"] == "dead"
    assert heard(ears) == [(CHANNEL, str(job.id))]


@pytest.mark.parametrize("jobs", [100, 101, 1000])
def test_a_waiter_is_found_among_many_endings(jobs: int, connection: Session, ears: Session) -> None:
    worker = register(connection)
    run(connection, calls.enqueue_many(json.dumps([{"task": "t"}] * jobs)))
    batch = claim(connection, worker, jobs)
    call(connection, "wait_for", ids=[batch[jobs // 2].id, batch[0].id], channel=CHANNEL)
    heard(ears)
    call(connection, "complete", ids=[job.id for job in batch], leases=[job.lease for job in batch])
    assert sorted(heard(ears)) == sorted((CHANNEL, str(batch[n].id)) for n in (0, jobs // 2))


def test_who_waits_in_two_periods_is_told_once(connection: Session, ears: Session) -> None:
    job = claimed(connection, register(connection))
    call(connection, "wait_for", ids=[job.id], channel=CHANNEL)
    connection.execute(
        "insert into pgqueue.waiters select period - interval '10 seconds', job_id, channel from pgqueue.waiters"
    )
    heard(ears)
    call(connection, "complete", ids=[job.id], leases=[job.lease])
    assert heard(ears) == [(CHANNEL, str(job.id))]


def test_a_waiter_that_was_not_heard_of_for_long_is_not_told_and_goes(
    connection: Session, ears: Session
) -> None:
    job = claimed(connection, register(connection))
    call(connection, "wait_for", ids=[job.id, job.id + 1], channel=CHANNEL)
    heard(ears)
    connection.execute("update pgqueue.waiters set period = period - interval '70 seconds'")
    call(connection, "complete", ids=[job.id], leases=[job.lease])
    assert heard(ears) == []
    rounds = {
        "worker_ids": [],
        "queues": ["default"],
        "round_seconds": 1,
        "overdue_seconds": 2,
        "hears": True,
    }
    assert call(connection, "upkeep", supervisor_id=5, **rounds)[0]["problems"] == []
    assert count(connection, "waiters") == 0


def test_notifications_can_be_silenced(connection: Session, connect: Connect, ears: Session) -> None:
    silent = connect()
    silent.execute("set pgqueue.notify = off")
    job = claimed(connection, register(connection))
    call(silent, "wait_for", ids=[job.id], channel=CHANNEL)
    call(silent, "complete", ids=[job.id], leases=[job.lease])
    assert heard(ears) == []


@pytest.mark.parametrize(
    "channel", [None, "", "pgqueue", "pgqueue_1", CHANNEL + "0", CHANNEL.upper(), "x" * 100, CHANNEL + "\n"]
)
def test_no_channel_can_stop_an_ending(channel: str | None, connection: Session) -> None:
    with pytest.raises(psycopg.Error, match="is not a waiter's") as refused:
        call(connection, "wait_for", ids=[1], channel=channel)
    assert refused.value.sqlstate == "PQ001"
    assert count(connection, "waiters") == 0


def test_a_waiter_waits_for_a_thousand_jobs_at_most(connection: Session) -> None:
    call(connection, "wait_for", ids=list(range(1000)), channel=CHANNEL)
    with pytest.raises(psycopg.Error, match="ids: 1001 of them"):
        call(connection, "wait_for", ids=list(range(1001)), channel=CHANNEL)
    call(connection, "wait_for", ids=[None, 7, 7], channel=OTHER)
    assert len(rows(connection, "waiters", "channel = %s", OTHER)) == 1


def test_an_ending_that_has_looked_for_waiters_is_seen_to_be_under_way(
    connection: Session, connect: Connect, beside: Callable[..., Future[Any]], ears: Session
) -> None:
    """The race that registering first, then reading who is under way, then looking, is there for."""
    worker = register(connection)
    waits = enqueue(connection, delay=60)
    jobs = [claimed(connection, worker) for _ in range(2)]
    ender, cancels = connect(), connect(autocommit=False)
    with sabotaged(
        connection, "complete", ("    return accepted;\n", f"    perform {STOP};\n    return accepted;\n")
    ):
        with stopped(connection):
            completing = beside(
                call, ender, "complete", ids=[job.id for job in jobs], leases=[job.lease for job in jobs]
            )
            asks = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
            wait_until(lambda: scalar(connection, asks))
            run(cancels, calls.cancel([waits]))
            call(connection, "wait_for", ids=[jobs[0].id, waits], channel=CHANNEL)
            under_way = call(connection, "endings_under_way")
            assert {row["state"] for row in look(connection, jobs[0].id, waits)} == {"running", "scheduled"}
        completing.result()
        left = call(connection, "endings_under_way", among=under_way)
        assert set(left) < set(under_way)
        assert left, "the cancellation is still to commit"
        cancels.commit()
        assert call(connection, "endings_under_way", among=under_way) == []
    assert {row["state"] for row in look(connection, jobs[0].id, waits)} == {"completed", "cancelled"}
    assert heard(ears) == [(CHANNEL, "")], "nobody was told: both had looked before"


def test_a_transaction_that_only_enqueues_ends_nothing(connection: Session, connect: Connect) -> None:
    producer = connect(autocommit=False)
    enqueue(producer)
    enqueue(producer, delay=60, unique_key="k")
    assert call(connection, "endings_under_way") == []


def test_waiting_changes_and_deletes_no_row_that_endings_look_at(connection: Session) -> None:
    """Else, under a held snapshot, they would walk over one dead version after the other."""
    changed = "select n_tup_upd + n_tup_del from pg_stat_xact_user_tables where relname = 'waiters'"
    with connection.transaction():
        before = scalar(connection, changed)
        for n in range(200):
            call(connection, "wait_for", ids=[n % 50], channel=CHANNEL)
        assert count(connection, "waiters") >= 50
        assert scalar(connection, changed) == before
