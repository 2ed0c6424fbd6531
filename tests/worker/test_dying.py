"""Processes that are killed, frozen or blocked with jobs in hand: what happens to the jobs, and how soon."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.support import wait_until
from tests.worker import tasks
from tests.worker.conftest import StartWorker
from tests.worker.harness import History, Rows, frozen, is_alive


def seconds_until_gone(*pids: int) -> float:
    """How long it takes until none of the processes is left."""
    since = time.monotonic()
    wait_until(lambda: not any(map(is_alive, pids)), message=f"the end of {pids}")
    return time.monotonic() - since


def wait_for_second_starts(history: History, *jobs: int) -> float:
    """Waits until each of the jobs has started twice; returns when the last of them did."""
    wait_until(
        lambda: all(history.starts_by_job().get(id, 0) == 2 for id in jobs), 20, f"a second start of {jobs}"
    )
    return max(entry.at for entry in history.entries("start", *jobs))


# A child --------------------------------------------------------------------------------------------------


def test_the_jobs_of_a_killed_child_run_again_within_two_seconds(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "8", processes=2, lease=60)
    jobs = [
        task.enqueue(rows.connection).id
        for _ in range(3)
        for task in (tasks.hold_first, tasks.hold_first_sync)
    ]
    starts = history.wait_for("start", *jobs, count=6)
    victim = starts[0].pid
    lost = [entry.job for entry in starts if entry.pid == victim]
    kept = [id for id in jobs if id not in lost]

    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    again = wait_for_second_starts(history, *lost) - killed_at
    print(f"recovery: child killed, {again:.2f} s")
    assert again < 2
    history.open("hold")

    assert {(row["attempt"], row["crashes"]) for row in rows.wait_for("completed", *lost)} == {(2, 1)}
    assert {(row["attempt"], row["crashes"]) for row in rows.wait_for("completed", *kept)} <= {(1, 0)}
    failures = rows.all("select job_id, error from pgqueue.job_failures order by job_id")
    assert failures == [{"job_id": id, "error": "pgqueue.Crashed"} for id in sorted(lost)]
    (died,) = worker.wait_for("worker.child_died")
    assert (died["pid"], died["ended_by"]) == (victim, "signal SIGKILL")
    worker.wait_for("worker.started", count=3)
    assert len(worker.children()) == 2


def test_what_a_killed_child_had_not_started_goes_back_untouched(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "2")
    with rows.connection.transaction():
        # fast jobs fill the worker's buffer, and slow ones are in it when the fast ones are done
        fast = [tasks.quick.enqueue(rows.connection).id for _ in range(600)]
        slow = [tasks.hold_first.enqueue(rows.connection).id for _ in range(60)]
    begun = {entry.job for entry in history.wait_for("start", *slow, count=2)}
    (pid,) = worker.children().values()

    os.kill(pid, signal.SIGKILL)
    (rescued,) = worker.wait_for("jobs.rescued")
    history.open("hold")

    done = {row["id"]: (row["attempt"], row["crashes"]) for row in rows.wait_for("completed", *fast, *slow)}
    starts = history.starts_by_job()
    crashed = {id for id in done if starts[id] == 2}
    # a fast one may have ended and not been settled: it had started, and that is what counts
    assert begun <= crashed <= {*fast} | begun
    assert {id: ending for id, ending in done.items() if ending != (1, 0)} == dict.fromkeys(crashed, (2, 1))
    assert rescued["jobs"] > len(crashed), "the buffer was empty: this test shows too little"


def test_a_frozen_childs_job_runs_elsewhere_and_its_own_outcome_comes_too_late(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "1", processes=2, lease=1.5, upkeep_interval=0.5)
    job = tasks.hold_twice.enqueue(rows.connection).id
    (first,) = history.wait_for("start", job)
    (victim,) = [id for id, pid in worker.children().items() if pid == first.pid]

    with frozen(first.pid) as frozen_at:
        again = wait_for_second_starts(history, job) - frozen_at
        print(f"recovery: child frozen, {again:.2f} s with a lease of 1.5 s")
        assert 1 < again < 1.5 + 4
        (running,) = rows.all("select * from pgqueue.running_jobs where id = %s", job)
        history.open("first")

    # what the first run says is refused while the second one is under way, and its process has to go
    seconds_until_gone(first.pid)
    assert len(history.entries("end", job)) <= 1
    wait_until(
        lambda: (
            worker.events("lease.lost", job_id=job) + worker.events("worker.declared_dead", worker=victim)
        ),
        message="a word about the late outcome",
    )
    assert rows.all("select * from pgqueue.running_jobs where id = %s", job) == [running]

    history.open("second")
    (row,) = rows.wait_for("completed", job)
    assert (row["attempt"], row["crashes"]) == (2, 1)
    assert history.starts_by_job() == {job: 2}
    worker.wait_for("worker.started", count=3)
    assert len(worker.children()) == 2


def test_a_handler_that_blocks_the_loop_or_holds_the_gil_keeps_its_lease(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "1", processes=2, lease=1, beat=0.2, upkeep_interval=0.4)
    jobs = [
        tasks.block_loop.enqueue(rows.connection, seconds=2).id,
        tasks.hold_gil.enqueue(rows.connection, seconds=2).id,
    ]

    done = rows.wait_for("completed", *jobs)
    assert len({entry.pid for entry in history.entries("start", *jobs)}) == 2, "each in a process of its own"
    assert [(row["attempt"], row["crashes"]) for row in done] == [(1, 0)] * 2
    assert history.starts_by_job() == dict.fromkeys(jobs, 1)
    assert worker.events("lease.lost") + worker.events("worker.declared_dead") == []


def test_a_job_that_kills_its_process_twice_does_it_to_itself_alone_from_then_on(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "2")
    poison = tasks.kills_its_process.using(max_attempts=3).enqueue(rows.connection).id
    innocents = [tasks.quick.enqueue(rows.connection).id for _ in range(50)]

    letter = rows.letter(poison)
    assert (letter["reason"], letter["crashes"], len(letter["errors"])) == ("crashed", 2, 3)
    assert letter["message"].endswith("was killed by SIGSEGV")
    assert history.starts_by_job()[poison] == 3
    rows.wait_for("completed", *innocents)
    ends = [line["ended_by"] for line in worker.wait_for("worker.child_died", count=2)]
    assert ends == ["exit code 78", "signal SIGKILL"]
    worker.wait_for("worker.started", count=3)


# A supervisor ---------------------------------------------------------------------------------------------


@pytest.mark.needs_session("no session tells of a worker's end, its lease does")
def test_a_killed_supervisor_takes_its_children_along_and_others_take_its_jobs(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    # a lease of a minute: only the session lock can tell so soon
    worker = start_worker("-c", "4", processes=2, lease=60)
    jobs = [tasks.hold_first.enqueue(rows.connection).id, tasks.hold_first_sync.enqueue(rows.connection).id]
    history.wait_for("start", *jobs, count=2)
    other = start_worker("-c", "4", lease=60)
    children = worker.children().values()

    killed_at = time.monotonic()
    worker.send(signal.SIGKILL)
    assert seconds_until_gone(*children) < 2
    again = wait_for_second_starts(history, *jobs) - killed_at
    print(f"recovery: whole worker killed, {again:.2f} s at 0.15 of the default times, by its session lock")
    assert again < 8 * 0.6 / 4 + 2

    assert {(row["attempt"], row["crashes"]) for row in rows.wait_for("completed", *jobs)} == {(2, 1)}
    other.wait_for("jobs.rescued")
    left = "select array_agg(id) from pgqueue.workers"  # the one that held nothing beat later, and goes a round later
    rows.wait_until(
        lambda: rows.value(left) == [*other.children()], message="the end of the killed ones' rows"
    )


def test_where_no_session_lock_tells_the_lease_does(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    options = {"lease": 2, "wake": "poll", "poll_interval": 0.1}
    worker = start_worker("-c", "2", **options)
    job = tasks.hold_first.enqueue(rows.connection).id
    history.wait_for("start", job)
    start_worker("-c", "2", **options)

    killed_at = time.monotonic()
    worker.kill()
    again = wait_for_second_starts(history, job) - killed_at
    print(f"recovery: whole worker killed, {again:.2f} s with a lease of 2 s, no session lock")
    assert 2 - 0.6 < again < 2 + 3
    (row,) = rows.wait_for("completed", job)
    assert (row["attempt"], row["crashes"]) == (2, 1)


def test_promotion_and_rescue_go_on_while_the_leader_is_frozen(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    workers = [start_worker("-c", "2", wait=False, lease=2) for _ in range(2)]
    by_id = {id: worker for worker in workers for id in worker.wait_until_started().children()}
    jobs = [tasks.hold_first.enqueue(rows.connection, gate="own").id for _ in range(4)]
    starts = history.wait_for("start", *jobs, count=4)
    leading = "select w.id from pgqueue.workers w join pgqueue.leadership using (supervisor_id)"
    leader = by_id.pop(rows.wait_until(lambda: rows.value(leading), message="a leader"))
    (other,) = by_id.values()
    (pid,), (free,) = leader.children().values(), other.children().values()
    lost = [entry.job for entry in starts if entry.pid == pid]
    assert len(lost) == 2
    history.open(str(free))

    with frozen(leader.pid) as frozen_at:
        due = rows.enqueue("quick", delay=0.1)
        (start,) = history.wait_for("start", due)
        print(
            f"recovery: leader frozen, promotion after {start.at - frozen_at:.2f} s at 0.15 of the default times"
        )
        assert start.at - frozen_at < 5 * 0.6 / 4 + 2
        again = wait_for_second_starts(history, *lost) - frozen_at
        print(f"recovery: leader frozen, its jobs again after {again:.2f} s with a lease of 2 s")
        assert 1 < again < 2 + 4
        done = rows.wait_for("completed", *lost)
        assert {(row["attempt"], row["crashes"]) for row in done} == {(2, 1)}
        assert rows.value(leading) in other.children()
        # its child is alive, and what that says now comes too late
        history.open(str(pid))
        history.wait_for("end", *lost, count=4)

    leader.wait_for("worker.started", count=2)
    assert [rows.job(id) for id in lost] == done
    wait_until(
        lambda: leader.events("lease.lost") + leader.events("worker.declared_dead"),
        message="a word about the late outcomes",
    )
