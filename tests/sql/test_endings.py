"""Endings: complete, fail, snooze, release; rescue; and what an operator does with dead letters.

Every ending proves its right by (id, lease). What holds for all four is tested for all four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
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
    claimed,
    count,
    enqueue,
    everything,
    pid,
    register,
    row_of,
    rows,
    scalar,
)
from tests.support import release_when_waited_for, wait_for_lock_wait

ENDINGS = {
    "complete": "finished_jobs",
    "fail": "scheduled_jobs",
    "snooze": "scheduled_jobs",
    "release": "ready_jobs",
}
"""Each ending, and the table that it takes a job to (a failure with attempts left)."""


def end(
    connection: psycopg.Connection,
    ending: str,
    jobs: Sequence[ClaimedJob],
    leases: Sequence[int] | None = None,
    delay: float | None = 60,
    **failure: Any,
) -> list[int]:
    """Ends jobs under their own leases or others; the ids accepted, in order."""
    ids = [job.id for job in jobs]
    leases = leases if leases is not None else [job.lease for job in jobs]
    if ending == "fail":
        given = {"error": "E", "message": "m", "delay": delay} | failure
        failures = [{"id": id, "lease": lease} | given for id, lease in zip(ids, leases, strict=True)]
        return sorted(call(connection, "fail", failures=Jsonb(failures)))
    delays = {"delays": [delay] * len(ids)} if ending == "snooze" else {}
    return sorted(call(connection, ending, ids=ids, leases=leases, **delays))


@pytest.fixture
def worker(connection: psycopg.Connection) -> int:
    """A worker of queue default."""
    return register(connection)


# What holds for every ending --------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_right_lease_ends_the_attempt(connection: psycopg.Connection, worker: int, ending: str) -> None:
    job = claimed(connection, worker)
    assert end(connection, ending, [job]) == [job.id]
    assert row_of(connection, job.id)["table"] == ENDINGS[ending]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_wrong_lease_changes_nothing(connection: psycopg.Connection, worker: int, ending: str) -> None:
    job, other = claimed(connection, worker), claimed(connection, worker)
    before = everything(connection)
    for lease in (other.lease, job.lease + 1, -job.lease, 0):
        assert end(connection, ending, [job], [lease]) == []
    assert everything(connection) == before


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("first", ENDINGS)
def test_an_attempt_ends_once(connection: psycopg.Connection, worker: int, first: str, ending: str) -> None:
    job = claimed(connection, worker, unique_key="k")
    assert end(connection, first, [job]) == [job.id]
    before = everything(connection)
    assert end(connection, ending, [job]) == []
    assert everything(connection) == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_batch_is_accepted_job_by_job(connection: psycopg.Connection, worker: int, ending: str) -> None:
    jobs = [claimed(connection, worker) for _ in range(4)]
    end(connection, "complete", [jobs[0]])
    leases = [job.lease for job in jobs]
    leases[2] += 1
    assert end(connection, ending, jobs, leases) == [jobs[1].id, jobs[3].id]
    tables = [row_of(connection, job.id)["table"] for job in jobs]
    assert tables == ["finished_jobs", ENDINGS[ending], "running_jobs", ENDINGS[ending]]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_job_named_twice_in_a_batch_ends_once(
    connection: psycopg.Connection, worker: int, ending: str
) -> None:
    job = claimed(connection, worker)
    assert end(connection, ending, [job, job]) == [job.id]
    assert row_of(connection, job.id)["table"] == ENDINGS[ending]
    assert count(connection, "job_failures") == (ending == "fail")


@pytest.mark.parametrize("late_first", [True, False])
def test_a_late_ending_beside_the_right_one_of_the_same_job_has_no_say(
    connection: psycopg.Connection, worker: int, late_first: bool
) -> None:
    jobs = [claimed(connection, worker), claimed(connection, worker)]
    wrong = [{"id": job.id, "lease": job.lease + 1, "delay": None, "error": "late"} for job in jobs]
    right = [{"id": job.id, "lease": job.lease, "delay": 60, "error": "right"} for job in jobs]
    failures = [*wrong, *right] if late_first else [*right, *wrong]
    assert len(call(connection, "fail", failures=Jsonb(failures))) == 2
    assert {row["error"] for row in rows(connection, "job_failures")} == {"right"}
    assert count(connection, "scheduled_jobs") == 2

    job = claimed(connection, worker)
    leases, delays = [job.lease + 1, job.lease], [7200.0, 60.0]
    order = slice(None) if late_first else slice(None, None, -1)
    before = scalar(connection, "select clock_timestamp()")
    arguments = {"ids": [job.id] * 2, "leases": leases[order], "delays": delays[order]}
    assert call(connection, "snooze", **arguments) == [job.id]
    assert row_of(connection, job.id)["run_at"] < before + timedelta(hours=1)


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_to_end_is_no_error(connection: psycopg.Connection, worker: int, ending: str) -> None:
    job = claimed(connection, worker)
    assert end(connection, ending, []) == []
    end(connection, "complete", [job])
    assert end(connection, ending, [job]) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_late_ending_of_an_earlier_claim_is_refused_though_the_attempt_has_the_same_number(
    connection: psycopg.Connection, worker: int, ending: str
) -> None:
    late = claimed(connection, worker)
    end(connection, "release", [late])
    (now,) = claim(connection, worker)
    assert (now.id, now.attempt) == (late.id, late.attempt)
    assert end(connection, ending, [late]) == []
    assert end(connection, ending, [now]) == [now.id]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ending_after_the_rescue_is_refused(
    connection: psycopg.Connection, worker: int, ending: str
) -> None:
    job = claimed(connection, worker)
    assert call(connection, "rescue", worker_id=worker) == 1
    assert end(connection, ending, [job]) == []
    (again,) = claim(connection, register(connection))
    assert end(connection, ending, [job]) == []
    assert row_of(connection, job.id)["lease"] == again.lease


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ending_keeps_what_the_job_is(connection: psycopg.Connection, worker: int, ending: str) -> None:
    given = {"args": {"a": [1, None]}, "priority": 3, "options": {"tags": ["x"]}, "max_attempts": 7}
    job = claimed(connection, worker, task="kept", unique_key="k", **given)
    before = row_of(connection, job.id)
    end(connection, ending, [job])
    after = row_of(connection, job.id)
    for column in ("created_at", "queue", "task", "args", "max_attempts", "crashes", "unique_key", "options"):
        assert after[column] == before[column]
    assert after["lane"] // 2 == 3


@pytest.mark.parametrize("ending", ["complete", "fail"])
def test_an_ending_is_as_durable_as_the_session_asks(connect: Connect, ending: str) -> None:
    connection = connect(settings="-c synchronous_commit=on")
    job = claimed(connection, register(connection))
    with connection.transaction():
        end(connection, ending, [job])
        assert scalar(connection, "show synchronous_commit") == "on"


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ending_that_is_rolled_back_did_not_happen(
    connection: psycopg.Connection, worker: int, ending: str
) -> None:
    job = claimed(connection, worker, unique_key="k")
    before = everything(connection)
    with connection.transaction(force_rollback=True):
        end(connection, ending, [job])
    assert everything(connection) == before
    assert end(connection, ending, [job]) == [job.id]


# Attempts ---------------------------------------------------------------------------------------------


def test_attempts_are_counted_by_claims_and_given_back_by_release_and_snooze(
    connection: psycopg.Connection, worker: int
) -> None:
    id = enqueue(connection, max_attempts=2)
    seen = []
    for ending in ("release", "snooze", "release", "fail", "snooze", "release"):
        connection.execute("update pgqueue.scheduled_jobs set run_at = now() - interval '1 s'")
        call(connection, "promote", max_jobs=9)
        (job,) = claim(connection, worker)
        seen.append(
            (job.attempt, ending, end(connection, ending, [job]) and row_of(connection, id)["attempt"])
        )
    assert seen == [
        (1, "release", 0),
        (1, "snooze", 0),
        (1, "release", 0),
        (1, "fail", 1),
        (2, "snooze", 1),
        (2, "release", 1),
    ]


@pytest.mark.parametrize(("ending", "lane"), [("release", 6), ("snooze", 7), ("fail", 7)])
def test_only_a_release_goes_to_the_returned_lane(
    connection: psycopg.Connection, worker: int, ending: str, lane: int
) -> None:
    job = claimed(connection, worker, priority=3)
    end(connection, "release", [job])
    (job,) = claim(connection, worker)
    assert job.lane == 6
    end(connection, ending, [job])
    assert row_of(connection, job.id)["lane"] == lane


def test_released_jobs_are_served_in_the_order_of_their_ids(
    connection: psycopg.Connection, worker: int
) -> None:
    ids = [enqueue(connection) for _ in range(5)]
    jobs = claim(connection, worker, 5)
    end(connection, "release", jobs[::-1])
    assert [job.id for job in claim(connection, worker, 5)] == ids


@pytest.mark.parametrize("ending", ["fail", "snooze"])
@pytest.mark.parametrize("delay", [0, 0.5, 3600])
def test_a_delay_counts_from_the_ending(
    connection: psycopg.Connection, worker: int, ending: str, delay: float
) -> None:
    job = claimed(connection, worker)
    with connection.transaction():
        before = scalar(connection, "select clock_timestamp()")
        end(connection, ending, [job], delay=delay)
        after = scalar(connection, "select clock_timestamp()")
    assert before <= row_of(connection, job.id)["run_at"] - timedelta(seconds=delay) <= after


@pytest.mark.parametrize("ending", ["fail", "snooze"])
@pytest.mark.parametrize("delay", [-5, -1e300, 1e300])
def test_no_delay_stops_an_ending_nor_schedules_it_for_the_past(
    connection: psycopg.Connection, worker: int, ending: str, delay: float
) -> None:
    """Hazard: promotion starts at a mark that is proven by "nothing is ever scheduled for the past"."""
    job = claimed(connection, worker)
    before = scalar(connection, "select clock_timestamp()")
    assert end(connection, ending, [job], delay=delay) == [job.id]
    assert before <= row_of(connection, job.id)["run_at"] <= before + timedelta(days=3651)


# Failing ----------------------------------------------------------------------------------------------


def test_a_failure_with_attempts_left_is_scheduled_again(connection: psycopg.Connection, worker: int) -> None:
    job = claimed(connection, worker, max_attempts=2, unique_key="k")
    end(connection, "fail", [job], error="ValueError", message="no", traceback="at line 1", fingerprint="f")
    retry = row_of(connection, job.id)
    assert (retry["table"], retry["attempt"], retry["unique_key"]) == ("scheduled_jobs", 1, "k")
    (failure,) = rows(connection, "job_failures")
    assert timedelta() <= datetime.now(UTC) - failure.pop("failed_at") < timedelta(minutes=1)
    del failure["day"]
    assert failure == {
        "job_id": job.id,
        "worker_id": worker,
        "attempt": 1,
        "queue": "default",
        "task": "t",
        "error": "ValueError",
        "message": "no",
        "traceback": "at line 1",
        "fingerprint": "f",
        "dead_reason": None,
    }


def test_a_failure_of_the_last_attempt_is_a_dead_letter_whatever_the_delay(
    connection: psycopg.Connection, worker: int
) -> None:
    job = claimed(connection, worker, max_attempts=1)
    end(connection, "fail", [job], delay=5, reason=None, error="E", message="m")
    letter = row_of(connection, job.id)
    assert letter["table"] == "dead_letters"
    assert (letter["reason"], letter["error"], letter["message"]) == ("exhausted", "E", "m")
    assert (letter["attempt"], letter["worker_id"]) == (1, worker)


@pytest.mark.parametrize("reason", ["permanent", "failed", "invalid_args"])
def test_a_failure_without_a_delay_is_a_dead_letter_with_its_reason(
    connection: psycopg.Connection, worker: int, reason: str
) -> None:
    job = claimed(connection, worker, max_attempts=9)
    end(connection, "fail", [job], delay=None, reason=reason)
    letter = row_of(connection, job.id)
    assert (letter["table"], letter["reason"], letter["attempt"]) == ("dead_letters", reason, 1)


def test_a_failure_that_says_nothing_is_recorded_too(connection: psycopg.Connection, worker: int) -> None:
    job = claimed(connection, worker)
    assert call(connection, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease}])) == [job.id]
    letter = row_of(connection, job.id)
    assert (letter["reason"], letter["error"], letter["message"]) == ("exhausted", "unknown", "")


def test_a_dead_letter_holds_every_attempts_error_oldest_first(
    connection: psycopg.Connection, worker: int
) -> None:
    id = enqueue(connection, max_attempts=3)
    for n in (1, 2):
        (job,) = claim(connection, worker)
        end(connection, "fail", [job], error=f"E{n}", message=f"m{n}", traceback=f"t{n}")
        connection.execute("update pgqueue.scheduled_jobs set run_at = now() - interval '1 s'")
        call(connection, "promote", max_jobs=9)
    claim(connection, worker)
    call(connection, "rescue", worker_id=worker)  # a crash counts among them
    (job,) = claim(connection, register(connection))
    end(connection, "fail", [job], error="E4", message="m4", traceback=None)
    letter = row_of(connection, id)
    errors = letter["errors"]
    assert [error.pop("error") for error in errors] == ["E1", "E2", "pgqueue.Crashed", "E4"]
    assert [error.pop("attempt") for error in errors] == [1, 2, 3, 3]
    assert [error.pop("traceback") for error in errors] == ["t1", "t2", None, None]
    assert [error.pop("message") for error in errors if "m" in error["message"][:1]] == ["m1", "m2", "m4"]
    times = [datetime.fromisoformat(error.pop("failed_at")) for error in errors]
    assert times == sorted(times)
    assert times[-1] == letter["died_at"]


def test_a_dead_letter_holds_no_other_jobs_errors(connection: psycopg.Connection, worker: int) -> None:
    other, job = claimed(connection, worker), claimed(connection, worker)
    end(connection, "fail", [other], error="other")
    end(connection, "fail", [job], delay=None, error="own")
    assert [error["error"] for error in row_of(connection, job.id)["errors"]] == ["own"]


# Keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "delay", "is_free"),
    [
        ("complete", 0, True),
        ("fail", None, True),
        ("fail", 5, False),
        ("snooze", 5, False),
        ("release", 0, False),
    ],
)
def test_a_unique_key_is_freed_when_the_job_has_ended_and_not_before(
    connection: psycopg.Connection, worker: int, ending: str, delay: float | None, is_free: bool
) -> None:
    enqueue(connection, "other task", unique_key="k", queue="elsewhere")
    job = claimed(connection, worker, unique_key="k", idempotency_key="i")
    end(connection, ending, [job], delay=delay)
    (again,) = call(connection, "enqueue", task="t", unique_key="k")
    assert again["created"] is is_free
    assert call(connection, "enqueue", task="t", idempotency_key="i")[0]["id"] == job.id
    assert not call(connection, "enqueue", task="other task", unique_key="k")[0]["created"]


@pytest.mark.parametrize("started", [None, []])
def test_a_rescue_keeps_the_unique_key(
    connection: psycopg.Connection, worker: int, started: list[int] | None
) -> None:
    job = claimed(connection, worker, unique_key="k")
    call(connection, "rescue", worker_id=worker, started=started)
    assert call(connection, "enqueue", task="t", unique_key="k") == [
        {"id": job.id, "created": False, "outcome": "kept"}
    ]


def test_an_ending_frees_no_key_that_another_job_holds_by_now(
    connection: psycopg.Connection, worker: int
) -> None:
    job = claimed(connection, worker, unique_key="k")
    connection.execute("update pgqueue.unique_keys set job_id = 7")
    end(connection, "complete", [job])
    assert [row["job_id"] for row in rows(connection, "unique_keys")] == [7]


# The history ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["complete", "fail", "rescue", "discard"])
def test_an_ending_finds_its_day_or_the_overflow(connect: Connect, fresh: str, verb: str) -> None:
    """In one session, so that what it has prepared and planned meets each change of the partitions."""
    connection = connect(fresh)
    today = scalar(connection, "select to_char(now() at time zone 'UTC', '_YYYYMMDD')")
    parent = "finished_jobs" if verb in ("complete", "discard") else "job_failures"

    def ended_in() -> str:
        worker = register(connection)
        job = claimed(connection, worker)
        if verb == "rescue":
            call(connection, "rescue", worker_id=worker)
        elif verb == "discard":
            end(connection, "fail", [job], delay=None)
            call(connection, "discard", ids=[job.id])
        else:
            end(connection, verb, [job])
        column = "id" if parent == "finished_jobs" else "job_id"
        row_of(connection, job.id)  # the view shows it wherever it lies
        where = f"select tableoid::regclass::text from pgqueue.{parent} where {column} = %s"
        table: str = scalar(connection, where, job.id)
        connection.execute("delete from pgqueue.ready_jobs")
        return table.removeprefix("pgqueue.")

    for _ in range(6):
        assert ended_in() == f"{parent}_overflow"
    assert call(connection, "retain") == 24
    for _ in range(6):
        assert ended_in() == parent + today
    connection.execute(f"drop table pgqueue.{parent}{today}")
    for _ in range(2):
        assert ended_in() == f"{parent}_overflow"
    assert call(connection, "retain") == 1
    assert ended_in() == parent + today


def test_the_history_tells_when_and_by_whom(connection: psycopg.Connection, worker: int) -> None:
    job = claimed(connection, worker)
    before = row_of(connection, job.id)
    end(connection, "complete", [job])
    after = row_of(connection, job.id)
    assert (after["state"], after["worker_id"], after["attempt"]) == ("completed", worker, 1)
    assert after["run_at"] == before["run_at"]
    assert before["claimed_at"] == after["claimed_at"] <= after["finished_at"]


# Rescue -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("started", "crashed"), [(None, [0, 1, 2]), ([], []), ([0, 2], [0, 2])], ids=["unknown", "none", "some"]
)
def test_a_rescue_gives_back_the_attempt_of_what_had_not_started(
    connection: psycopg.Connection, worker: int, started: list[int] | None, crashed: list[int]
) -> None:
    jobs = [claimed(connection, worker, priority=n) for n in range(3)]
    ids = None if started is None else [jobs[n].id for n in started]
    assert call(connection, "rescue", worker_id=worker, started=ids) == 3
    for n, job in enumerate(jobs):
        back = row_of(connection, job.id)
        assert (back["table"], back["lane"]) == ("ready_jobs", 2 * n)  # the returned lane
        assert (back["attempt"], back["crashes"]) == ((1, 1) if n in crashed else (0, 0))
    failures = rows(connection, "job_failures")
    assert sorted(failure["job_id"] for failure in failures) == [jobs[n].id for n in crashed]
    assert {failure["error"] for failure in failures} <= {"pgqueue.Crashed"}


def test_a_rescue_takes_the_worker_away_and_nobody_elses_jobs(
    connection: psycopg.Connection, worker: int
) -> None:
    other = register(connection)
    mine, others = claimed(connection, worker), claimed(connection, other)
    call(connection, "fall_asleep", worker_id=worker, queues=["default"])
    call(connection, "fall_asleep", worker_id=other, queues=["default"])
    assert call(connection, "rescue", worker_id=worker) == 1
    assert row_of(connection, mine.id)["table"] == "ready_jobs"
    assert row_of(connection, others.id)["table"] == "running_jobs"
    for table, column in (("workers", "id"), ("heartbeats", "worker_id"), ("sleepers", "worker_id")):
        assert [row[column] for row in rows(connection, table)] == [other]
    assert call(connection, "rescue", worker_id=worker) == 0
    assert call(connection, "rescue", worker_id=-1) == 0


@pytest.mark.parametrize(("max_attempts", "starts"), [(1, 4), (2, 4), (4, 4), (9, 9)])
@pytest.mark.parametrize("is_known", [True, False], ids=["it had started", "not known"])
def test_a_job_that_always_crashes_starts_at_most_three_times_more_than_it_has_attempts(
    connection: psycopg.Connection, max_attempts: int, starts: int, is_known: bool
) -> None:
    id = enqueue(connection, max_attempts=max_attempts, unique_key="k")
    for start in range(1, starts + 1):
        assert row_of(connection, id)["table"] == "ready_jobs"
        worker = register(connection)
        (job,) = claim(connection, worker)
        # the first three never use up the last attempt, for they may be another job's fault
        assert job.attempt <= max_attempts
        assert job.crashes == start - 1
        call(connection, "rescue", worker_id=worker, started=[id] if is_known else None)
    letter = row_of(connection, id)
    assert (letter["table"], letter["reason"], letter["crashes"]) == ("dead_letters", "crashed", starts)
    assert (letter["error"], letter["attempt"]) == ("pgqueue.Crashed", max_attempts)
    assert [error["error"] for error in letter["errors"]] == ["pgqueue.Crashed"] * starts
    assert count(connection, "unique_keys") == 0


def test_what_was_interrupted_goes_back_untouched_and_the_reason_is_kept(
    connection: psycopg.Connection, worker: int
) -> None:
    jobs = [claimed(connection, worker, max_attempts=1) for _ in range(3)]
    guilty, beside, waiting = (job.id for job in jobs)
    done = call(
        connection,
        "rescue",
        worker_id=worker,
        started=[guilty],
        interrupted=[beside],
        cause="was killed by SIGSEGV",
    )
    assert done == 3
    found = {id: row_of(connection, id) for id in (guilty, beside, waiting)}
    assert {row["table"] for row in found.values()} == {"ready_jobs"}
    assert {id: (row["attempt"], row["crashes"]) for id, row in found.items()} == {
        guilty: (0, 1),  # given back, for it was the last
        beside: (0, 0),
        waiting: (0, 0),
    }
    failures = {row["job_id"]: row["message"] for row in rows(connection, "job_failures")}
    assert failures == {
        guilty: "while it ran this job the worker process was killed by SIGSEGV",
        beside: "the worker process was killed by SIGSEGV; this job is not to blame",
    }


@pytest.mark.parametrize(
    ("started", "interrupted", "state"),
    [
        (None, [], "dead_letters"),
        ([0], [], "dead_letters"),
        ([], [0], "dead_letters"),
        ([], [], "ready_jobs"),
    ],
    ids=["not known", "it had started", "interrupted", "not started"],
)
def test_on_crash_dead_is_dead_when_it_may_have_started(
    connection: psycopg.Connection,
    worker: int,
    started: list[int] | None,
    interrupted: list[int],
    state: str,
) -> None:
    job = claimed(connection, worker, max_attempts=9, options='{"on_crash": "dead"}', unique_key="k")
    ids = [job.id]
    call(
        connection,
        "rescue",
        worker_id=worker,
        started=None if started is None else [ids[n] for n in started],
        interrupted=[ids[n] for n in interrupted],
    )
    row = row_of(connection, job.id)
    assert row["table"] == state
    if state == "dead_letters":
        assert (row["reason"], row["attempt"], len(row["errors"])) == ("crashed", 1, 1)
        assert count(connection, "unique_keys") == 0
    else:
        assert (row["attempt"], row["crashes"]) == (0, 0)


def test_a_job_whose_last_attempt_crashed_has_one_more(connection: psycopg.Connection) -> None:
    id = enqueue(connection, max_attempts=2)
    connection.execute("update pgqueue.ready_jobs set attempt = 1")
    worker = register(connection)
    claim(connection, worker)
    call(connection, "rescue", worker_id=worker)
    (job,) = claim(connection, register(connection))
    assert (job.id, job.attempt, job.crashes) == (id, 2, 1)
    end(connection, "fail", [job], delay=5)
    assert row_of(connection, id)["reason"] == "exhausted"


def test_jobs_that_had_not_started_never_die_of_their_workers_crashes(connection: psycopg.Connection) -> None:
    id = enqueue(connection, max_attempts=1)
    for _ in range(5):
        worker = register(connection)
        claim(connection, worker)
        call(connection, "rescue", worker_id=worker, started=[])
    job = row_of(connection, id)
    assert (job["table"], job["attempt"], job["crashes"]) == ("ready_jobs", 0, 0)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ending_that_is_under_way_wins_against_the_rescue(connect: Connect, ending: str) -> None:
    ender, rescuer, observer = connect(autocommit=False), connect(), connect()
    worker = register(observer)
    job = claimed(observer, worker)
    assert end(ender, ending, [job]) == [job.id]
    with release_when_waited_for(observer, pid(rescuer), ender.commit):
        assert call(rescuer, "rescue", worker_id=worker) == 0
    assert row_of(observer, job.id)["table"] == ENDINGS[ending]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_rescue_that_is_under_way_wins_against_an_ending(connect: Connect, ending: str) -> None:
    ender, rescuer, observer = connect(), connect(autocommit=False), connect()
    worker = register(observer)
    job = claimed(observer, worker)
    call(rescuer, "rescue", worker_id=worker)
    with release_when_waited_for(observer, pid(ender), rescuer.commit):
        assert end(ender, ending, [job]) == []
    assert row_of(observer, job.id)["table"] == "ready_jobs"


def test_endings_and_a_rescue_of_the_same_jobs_do_not_deadlock(
    connect: Connect, connection: psycopg.Connection, beside: Callable[..., Future[Any]]
) -> None:
    """Arranged: somebody holds the middle one of three rows; a rescue and then an ending run into it."""
    settings = "-c deadlock_timeout=20ms"
    holder, rescuer, ender = connect(autocommit=False), connect(settings=settings), connect(settings=settings)
    worker = register(connection)
    jobs = [claimed(connection, worker) for _ in range(3)]
    holder.execute("select from pgqueue.running_jobs where id = %s for update", [jobs[1].id])
    rescue = beside(call, rescuer, "rescue", worker_id=worker)
    wait_for_lock_wait(connection, pid(rescuer))
    ending = beside(end, ender, "complete", jobs[::-1])
    wait_for_lock_wait(connection, pid(ender))
    holder.rollback()
    assert rescue.result() + len(ending.result()) == 3
    assert count(connection, "ready_jobs", "finished_jobs") == 3


# Dead letters -----------------------------------------------------------------------------------------


def dead(connection: psycopg.Connection, worker: int, **options: Any) -> int:
    """A dead letter that has failed once and crashed once."""
    job = claimed(connection, worker, **options)
    connection.execute("update pgqueue.running_jobs set crashes = 1 where id = %s", [job.id])
    end(connection, "fail", [job], delay=None, reason="permanent", error="E", message="no")
    return job.id


def test_a_replay_starts_from_nothing(connection: psycopg.Connection, worker: int) -> None:
    id = dead(connection, worker, args={"n": 1}, priority=2, max_attempts=3, options={"tags": ["x"]})
    before = row_of(connection, id)
    assert call(connection, "replay", ids=[id]) == [id]
    job = row_of(connection, id)
    assert (job["table"], job["attempt"], job["crashes"], job["lane"]) == ("ready_jobs", 0, 0, 5)
    assert job["run_at"] > before["died_at"]
    for column in ("created_at", "args", "max_attempts", "queue", "task", "options"):
        assert job[column] == before[column]
    assert call(connection, "replay", ids=[id]) == []
    assert [job.id for job in claim(connection, worker, 9)] == [id]


def test_a_replay_of_what_is_not_dead_does_nothing(connection: psycopg.Connection, worker: int) -> None:
    running = claimed(connection, worker)
    finished = claimed(connection, worker)
    end(connection, "complete", [finished])
    ready = enqueue(connection)
    before = everything(connection)
    assert call(connection, "replay", ids=[ready, running.id, finished.id, -1]) == []
    assert everything(connection) == before


def test_a_replay_takes_the_unique_key_again(connection: psycopg.Connection, worker: int) -> None:
    id = dead(connection, worker, unique_key="k")
    assert call(connection, "replay", ids=[id]) == [id]
    assert call(connection, "enqueue", task="t", unique_key="k") == [
        {"id": id, "created": False, "outcome": "kept"}
    ]


def test_a_letter_whose_unique_key_is_held_stays(connection: psycopg.Connection, worker: int) -> None:
    held, free = dead(connection, worker, unique_key="k"), dead(connection, worker)
    holder = enqueue(connection, unique_key="k")
    before = row_of(connection, held)
    assert call(connection, "replay", ids=[held, free]) == [free]
    assert row_of(connection, held) == before
    assert call(connection, "enqueue", task="t", unique_key="k")[0]["id"] == holder


def test_of_two_letters_with_one_key_one_is_replayed(connection: psycopg.Connection, worker: int) -> None:
    ids = [dead(connection, worker, unique_key="k") for _ in range(2)]
    assert len(call(connection, "replay", ids=ids)) == 1
    assert (count(connection, "ready_jobs"), count(connection, "dead_letters")) == (1, 1)


def test_two_replays_at_once_make_a_job_ready_once(connect: Connect, connection: psycopg.Connection) -> None:
    id = dead(connection, register(connection))
    one, two = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    assert call(one, "replay", ids=[id]) == [id]
    assert call(two, "replay", ids=[id]) == []
    one.commit()
    assert count(connection, "ready_jobs") == 1


def test_a_discard_moves_letters_to_the_history(connection: psycopg.Connection, worker: int) -> None:
    id, kept = dead(connection, worker, unique_key="k"), dead(connection, worker)
    assert call(connection, "discard", ids=[id, -1]) == [id]
    job = row_of(connection, id)
    assert (job["table"], job["state"], job["reason"]) == ("finished_jobs", "cancelled", "discarded")
    assert (job["attempt"], job["crashes"]) == (1, 1)
    assert row_of(connection, kept)["table"] == "dead_letters"
    assert call(connection, "discard", ids=[id]) == []
    assert call(connection, "replay", ids=[id]) == []


def test_dead_letters_are_found_by_every_filter_newest_first(
    connection: psycopg.Connection, worker: int
) -> None:
    register(connection, "q")
    given = [("a", "default"), ("b", "q"), ("a", "q")]
    ids = [dead(connection, worker, task=task, queue=queue) for task, queue in given]
    connection.execute(
        "update pgqueue.dead_letters set reason = 'crashed', message = 'Out of Memory' where id = %s",
        [ids[0]],
    )
    times = [row_of(connection, id)["died_at"] for id in ids]

    def found(**filters: Any) -> list[int]:
        return [row["id"] for row in call(connection, "find_dead", **filters)]

    assert found() == ids[::-1]
    assert found(max_rows=2) == ids[:0:-1]
    assert found(of_ids=[ids[1], -1]) == [ids[1]]
    assert found(of_queue="q") == [ids[2], ids[1]]
    assert found(of_task="a") == [ids[2], ids[0]]
    assert found(of_reason="crashed") == [ids[0]]
    assert found(of_error="e: out of") == [ids[0]]
    assert found(of_error="%") == []
    assert found(died_after=times[1]) == [ids[2], ids[1]]
    assert found(died_before=times[1]) == [ids[0]]
    assert found(of_queue="q", of_task="a") == [ids[2]]
    row = call(connection, "find_dead", of_ids=[ids[0]])[0]
    letter = row_of(connection, ids[0])
    shown: Row = {name: value for name, value in letter.items() if name in row}
    assert row == shown | {"priority": 5}
