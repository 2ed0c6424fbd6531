"""Jobs that kill the process they run in: in the end they can only do it to themselves, and others come to no harm."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from pgqueue.task import BoundTask, Task
from tests.support import Databases
from tests.worker import process_tasks as tasks
from tests.worker import transactional_tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import PATIENCE, History, Rows, Worker
from tests.worker.tasks import hold_in_thread, quick, quick_sync

APP = "tests.worker.process_tasks:app"


def innocents(rows: Rows, count: int) -> list[int]:
    """Jobs that are under way whenever the worker's process dies; every other one is on its last attempt."""
    return [
        tasks.innocent.using(max_attempts=1 + number % 2).enqueue(rows.connection).id
        for number in range(count)
    ]


def assert_unharmed(rows: Rows, history: History, jobs: list[int], crashes: int) -> None:
    """All of them complete, and have started once for each death of their process, and once more."""
    rows.wait_for("completed", *jobs, timeout=3 * PATIENCE)
    counted = history.starts_by_job()
    assert {counted[id] for id in jobs} == {crashes + 1}


def kill_child(worker: Worker) -> None:
    """As somebody from outside would."""
    (pid,) = worker.children().values()
    os.kill(pid, signal.SIGKILL)


# In the worker's own process ------------------------------------------------------------------------------


def test_one_that_kills_its_process_a_second_later_harms_none_of_fifty_beside_it(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "60", app=APP, task_processes=2)
    beside = innocents(rows, 50)
    guilty = tasks.poison.enqueue(rows.connection, how="SIGKILL", after=1).id
    history.wait_for("start", guilty, *beside, count=51)

    letter = rows.letter(guilty)
    assert_unharmed(rows, history, beside, crashes=2)
    assert (letter["reason"], letter["error"]) == ("crashed", "pgqueue.ProcessDied")
    assert [error["message"] for error in letter["errors"]] == [
        "while it ran this job the worker process was killed by SIGKILL",
        "while it ran this job the worker process was killed by SIGKILL",
        "the process that ran the job apart was killed by SIGKILL",
    ]
    assert history.starts_by_job()[guilty] == 3 <= letter["max_attempts"] + 3
    assert len(worker.events("worker.child_died")) == 2, "apart it can kill itself alone"


def test_after_one_death_all_start_again_at_once(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    """It may have been an accident: nobody waits for one of the few places apart."""
    worker = start_worker("-c", "20", app=APP, task_processes=1)
    jobs = innocents(rows, 20)
    history.wait_for("start", *jobs, count=20)
    kill_child(worker)
    history.wait_for("start", *jobs, count=40)
    assert history.entries("end", *jobs) == []
    history.open("innocent")
    assert_unharmed(rows, history, jobs, crashes=1)


def test_what_had_not_started_or_ran_apart_goes_back_untouched(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "4", app=APP, task_processes=1)
    apart = tasks.hold_first_process.using(max_attempts=1).enqueue(rows.connection).id
    history.wait_for("start", apart)
    waiting = tasks.in_process.enqueue(rows.connection).id
    beside = [tasks.innocent.enqueue(rows.connection).id for _ in range(2)]
    history.wait_for("start", *beside, count=2)
    rows.wait_until(lambda: rows.states(waiting) == ["running"], message="all four in slots")
    in_buffer = [quick.enqueue(rows.connection).id for _ in range(5)]

    kill_child(worker)
    history.open("innocent")
    done = rows.wait_for("completed", apart, waiting, *beside, *in_buffer)
    found = {row["id"]: (row["attempt"], row["crashes"]) for row in done}
    assert found == dict.fromkeys([apart, waiting, *in_buffer], (1, 0)) | dict.fromkeys(beside, (2, 1))
    starts = history.starts_by_job()
    assert starts == dict.fromkeys([apart, *beside], 2) | dict.fromkeys([waiting, *in_buffer], 1)
    (failure,) = rows.all("select message from pgqueue.job_failures where job_id = %s", apart)
    assert failure["message"] == "the worker process was killed by SIGKILL; this job is not to blame"


def test_on_crash_dead_is_never_started_twice(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "4", app=APP, task_processes=1)
    apart = tasks.dies_once.enqueue(rows.connection, how="live", gate="never").id
    history.wait_for("start", apart)
    guilty = tasks.poison_once.enqueue(rows.connection, how="SIGSEGV").id

    letters = [rows.letter(id) for id in (guilty, apart)]
    assert [letter["reason"] for letter in letters] == ["crashed"] * 2
    assert [letter["message"] for letter in letters] == [
        "while it ran this job the worker process was killed by SIGSEGV",
        "the worker process was killed by SIGSEGV; this job is not to blame",
    ]

    # in SQL, without the option that Python puts in
    strange = rows.enqueue("poison_once", '{"how": "SIGKILL"}')
    assert rows.letter(strange)["reason"] == "crashed"
    assert history.starts_by_job() == {apart: 1, guilty: 1, strange: 1}
    worker.wait_for("worker.started", count=3)


@pytest.mark.parametrize("code", [0, 75])
def test_an_exit_code_of_a_handlers_own_is_no_goodbye_of_the_worker(
    code: int, start_worker: StartWorker, rows: Rows, history: History
) -> None:
    """0 is what a worker says that has drained, 75 one that is to be replaced: both give everything back."""
    worker = start_worker("-c", "4", app=APP)
    guilty = tasks.poison_once.enqueue(rows.connection, how=f"exit {code}").id
    letter = rows.letter(guilty)
    assert letter["message"] == f"while it ran this job the worker process ended with exit code {code}"
    assert history.starts_by_job() == {guilty: 1}
    worker.wait_for("worker.child_died", ended_by=f"exit code {code}")


def test_one_that_wants_more_memory_than_there_is_fails_by_itself(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "20", app=APP)
    beside = innocents(rows, 4)
    history.wait_for("start", *beside, count=4)
    guilty = tasks.needs_memory.using(max_attempts=2).enqueue(rows.connection).id
    letter = rows.letter(guilty)
    assert (letter["reason"], letter["error"]) == ("exhausted", "MemoryError")
    history.open("innocent")
    assert_unharmed(rows, history, beside, crashes=0)
    assert worker.events("worker.child_died") == []


# Apart ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A worker with six slots and processes for two suspects."""
    with service(databases, tmp_path_factory, "-c", "6", app=APP, task_processes=2) as running:
        yield running


@pytest.fixture
def shared(running: Service) -> Iterator[Service]:
    """That worker: its own process never dies."""
    before = running.worker.children()
    yield running
    assert running.worker.children() == before
    assert running.worker.events("worker.child_died") + running.worker.events("worker.hung") == []


def enqueue_suspects(rows: Rows, *jobs: tuple[BoundTask[..., Any], dict[str, Any]]) -> list[int]:
    """Enqueues jobs that two processes have died of already."""
    with rows.connection.transaction():
        ids = [task.enqueue(rows.connection, **args).id for task, args in jobs]
        rows.connection.execute("update pgqueue.ready_jobs set crashes = 2 where id = any(%s)", [ids])
    return ids


def test_whatever_way_a_suspect_dies_the_way_is_named(shared: Service) -> None:
    ways = {
        "SIGKILL": "was killed by SIGKILL",
        "SIGSEGV": "was killed by SIGSEGV",
        "exit 3": "ended with exit code 3",
        "abort without memory": "was killed by SIGABRT",
    }
    poisons: list[Task[..., Any]] = [tasks.poison, tasks.poison_in_thread] * 2
    guilty = [(task.using(max_attempts=1), {"how": how}) for how, task in zip(ways, poisons, strict=True)]
    ids = enqueue_suspects(shared.rows, *guilty)
    beside = tasks.innocent.enqueue(shared.rows.connection).id
    shared.history.wait_for("start", beside)
    for id, named in zip(ids, ways.values(), strict=True):
        letter = shared.rows.letter(id)
        assert letter["reason"] == "crashed"
        assert letter["message"] == f"the process that ran the job apart {named}"
        assert len(shared.history.entries("start", id)) == 1
    shared.history.open("innocent")
    shared.rows.wait_for("completed", beside)


def test_what_a_suspect_leaves_behind_in_its_process_harms_no_other(shared: Service) -> None:
    for task in (tasks.leaves_bomb, tasks.naps):
        (last,) = enqueue_suspects(shared.rows, (task.using(max_attempts=1), {}))
        shared.rows.wait_for("completed", last)
    shared.worker.wait_for("process.replaced", after="a suspect that left threads behind (1)")
    assert len(shared.history.entries("start", last)) == 1


def test_a_loop_that_a_suspect_blocks_is_its_own(shared: Service) -> None:
    rows = shared.rows
    (job,) = enqueue_suspects(rows, (tasks.blocks_its_loop.using(max_attempts=1), {}))
    shared.history.wait_for("start", job)
    rows.wait_for("completed", *(quick.enqueue(rows.connection).id for _ in range(10)))
    assert rows.letter(job)["error"] == "pgqueue.errors.TimedOut"


def test_suspects_leave_the_slots_to_other_jobs(shared: Service) -> None:
    rows, history = shared.rows, shared.history
    suspects = enqueue_suspects(rows, *[(tasks.hold_anywhere, {})] * 6)
    shared.worker.wait_for("job.put_off", count=2)
    rows.wait_for("completed", *(quick.enqueue(rows.connection).id for _ in range(10)))
    assert len(history.entries("start", *suspects)) == 2
    assert history.entries("end", *suspects) == []

    history.open("hold")
    rows.wait_until(lambda: rows.states(*suspects).count("completed") == 4, message="those in slots")
    for id in suspects:
        if rows.states(id) == ["scheduled"]:
            rows.bring_forward(id)
    done = rows.wait_for("completed", *suspects)
    assert [(row["attempt"], row["crashes"]) for row in done] == [(1, 2)] * 6


def test_a_task_of_any_kind_can_run_apart(start_worker: StartWorker, rows: Rows, history: History) -> None:
    rows.connection.execute(transactional_tasks.EFFECTS)
    start_worker("-c", "8", app="tests.worker.transactional_tasks:app", task_processes=1)
    kinds: list[Task[..., Any]] = [quick, quick_sync, hold_in_thread, *transactional_tasks.KINDS]
    history.open("hold")
    suspects = enqueue_suspects(rows, *((task, {}) for task in kinds))

    def have_completed() -> bool:
        states = rows.states(*suspects)
        for id, state in zip(suspects, states, strict=True):
            if (
                state == "scheduled"
            ):  # on a busy machine it has waited too long for the one process, and was put off
                rows.bring_forward(id)
        return set(states) == {"completed"}

    rows.wait_until(have_completed, 3 * PATIENCE, "all kinds to complete")
    done = rows.wait_for("completed", *suspects)
    assert {(row["attempt"], row["crashes"]) for row in done} == {(1, 2)}
    effects = rows.all("select job from public.effects order by job")
    assert effects == [{"job": id} for id in suspects[3:]]
    assert len({entry.pid for entry in history.entries("start")}) == 2, (
        "a thread of hold_in_thread is left behind"
    )
