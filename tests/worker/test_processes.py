"""executor="process": a job in a process of its own, how it ends, and what becomes of the process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgqueue
from pgqueue.errors import ConfigurationError
from pgqueue.worker.frames import Setup, frame
from tests.support import Databases, wait_until
from tests.worker import process_tasks as tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import REPOSITORY, History, Rows, is_alive
from tests.worker.tasks import hold, quick, quick_sync
from tests.worker.transactional_tasks import EFFECTS

APP = "tests.worker.process_tasks:app"


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A worker with four slots and processes for two jobs, for all tests that do it no harm."""
    with service(databases, tmp_path_factory, "-c", "4", app=APP, task_processes=2) as running:
        yield running


@pytest.fixture
def shared(running: Service) -> Iterator[Service]:
    """That worker: whatever its processes suffer, it goes on."""
    before = running.worker.children()
    yield running
    assert running.worker.children() == before
    for trouble in ("slot.stuck", "worker.hung", "worker.child_died", "lease.lost", "result.not_kept"):
        assert running.worker.events(trouble) == []


def wait_until_gone(*pids: int) -> None:
    """Waits until none of the processes is left."""
    wait_until(lambda: not any(map(is_alive, pids)), 10, f"the end of {pids}")


# Where it runs --------------------------------------------------------------------------------------------


def test_what_computes_in_a_process_leaves_the_loop_alone(shared: Service) -> None:
    rows, history = shared.rows, shared.history
    busy = [tasks.hold_gil_process.enqueue(rows.connection, seconds=2).id for _ in range(2)]
    history.wait_for("start", *busy, count=2)

    light = [task.enqueue(rows.connection).id for task in (quick, quick_sync) for _ in range(20)]
    rows.wait_for("completed", *light)
    assert history.entries("end", *busy) == [], "nothing else could run beside them"

    done = rows.wait_for("completed", *busy)
    assert [(row["attempt"], row["crashes"]) for row in done] == [(1, 0)] * 2
    places = {entry.pid for entry in history.entries("start", *busy)}
    assert len(places) == 2
    assert places.isdisjoint(shared.worker.children().values())


def test_a_handler_has_the_main_thread_of_its_process_and_a_stdin_of_its_own(shared: Service) -> None:
    rows, history = shared.rows, shared.history
    jobs = [tasks.looks_around.enqueue(rows.connection).id for _ in range(6)]
    rows.wait_for("completed", *jobs)
    starts = history.entries("start", *jobs)
    assert [entry.said for entry in starts] == [
        {
            "main_thread": True,
            "heard": [signal.SIGUSR1],
            "loop": "ran",
            "program_read": False,
            "task": "looks_around",
            "attempt": 1,
            "cancelled": False,
        }
    ] * 6
    assert len({entry.pid for entry in starts}) <= 2, "a process serves job after job"


def test_what_a_process_returns_is_kept(shared: Service) -> None:
    job = tasks.adds.enqueue(shared.rows.connection, a=2, b=3).id
    shared.rows.wait_for("completed", job)
    kept = shared.rows.value("select result from pgqueue.finished_jobs where id = %s", job)
    assert kept == {"sum": 5}


def test_a_transaction_in_a_process_commits_with_its_job_or_not_at_all(shared: Service) -> None:
    rows = shared.rows
    rows.connection.execute(EFFECTS)
    returns = tasks.writes_in_process.enqueue(rows.connection, how="live").id
    crashes = tasks.writes_in_process.enqueue(rows.connection, how="SIGKILL").id
    done = rows.wait_for("completed", returns, crashes)
    assert [row["attempt"] for row in done] == [1, 2]
    assert rows.all("select job from public.effects order by job") == [{"job": returns}, {"job": crashes}]
    assert len(shared.history.entries("start", returns, crashes)) == 3


# When it ends ---------------------------------------------------------------------------------------------


def test_a_process_that_dies_fails_only_the_job_it_held(shared: Service) -> None:
    rows, history = shared.rows, shared.history
    beside = [task.enqueue(rows.connection, gate="dies").id for task in (hold, tasks.hold_process)]
    victim = tasks.hold_first_process.enqueue(rows.connection, gate="never").id
    history.wait_for("start", *beside, count=2)
    (start,) = history.wait_for("start", victim)

    os.kill(start.pid, signal.SIGKILL)
    history.wait_for("end", victim)
    history.open("dies")

    done = rows.wait_for("completed", *beside, victim)
    assert [(row["attempt"], row["crashes"]) for row in done] == [(1, 0), (1, 0), (2, 0)]
    ids = [*beside, victim]
    failures = rows.all("select job_id, error, message from pgqueue.job_failures where job_id = any(%s)", ids)
    assert failures == [
        {
            "job_id": victim,
            "error": "pgqueue.ProcessDied",
            "message": "the process that ran the job apart was killed by SIGKILL",
        }
    ]


@pytest.mark.parametrize(
    ("how", "message"),
    [("SIGSEGV", "was killed by SIGSEGV"), ("exit 0", "ended with exit code 0")],
)
def test_a_job_that_kills_its_process_is_dead_when_its_attempts_are_used_up(
    how: str, message: str, shared: Service
) -> None:
    job = tasks.dies.enqueue(shared.rows.connection, how=how).id
    letter = shared.rows.letter(job)
    assert (letter["reason"], letter["error"]) == ("crashed", "pgqueue.ProcessDied")
    assert letter["message"].endswith(message)
    assert (letter["attempt"], letter["crashes"], len(letter["errors"])) == (2, 0, 2)
    assert len(shared.history.entries("start", job)) == 2
    if how == "SIGSEGV":
        lines = letter["errors"][-1]["traceback"].splitlines()
        assert lines[0] == "Fatal Python error: Segmentation fault"
        assert any("process_tasks.py" in line and line.endswith("in die") for line in lines)
        assert not any("/pgqueue/worker/" in line for line in lines)


def test_sys_exit_is_an_ordinary_failure_and_its_process_goes_on(shared: Service) -> None:
    rows, history = shared.rows, shared.history
    job = tasks.dies.using(max_attempts=1).enqueue(rows.connection, how="sys.exit").id
    letter = rows.letter(job)
    assert (letter["reason"], letter["error"], letter["message"]) == ("exhausted", "SystemExit", "3")
    after = tasks.in_process.enqueue(rows.connection).id
    rows.wait_for("completed", after)
    assert len({entry.pid for entry in history.entries("start", job, after)}) == 1


def test_on_crash_dead_is_not_started_a_second_time(shared: Service) -> None:
    job = tasks.dies_once.enqueue(shared.rows.connection, how="SIGKILL").id
    letter = shared.rows.letter(job)
    assert (letter["reason"], letter["attempt"], letter["max_attempts"]) == ("crashed", 1, 3)
    assert letter["message"].endswith("was killed by SIGKILL")
    assert len(shared.history.entries("start", job)) == 1
    shared.worker.wait_for("job.dead", job_id=job, reason="crashed")


def test_the_processes_end_with_the_worker_however_that_ends(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "4", app=APP, task_processes=2)
    job = tasks.hold_first_process.enqueue(rows.connection).id
    (start,) = history.wait_for("start", job)
    (child,) = worker.children().values()
    os.kill(child, signal.SIGKILL)
    wait_until_gone(start.pid)

    history.wait_for("end", job)
    (again,) = (entry for entry in history.entries("start", job) if entry.pid != start.pid)
    assert is_alive(again.pid), "it waits for the next job"
    worker.send(signal.SIGKILL)
    wait_until_gone(again.pid)


# When it is told to end -----------------------------------------------------------------------------------


def test_at_its_timeout_a_process_is_told_and_then_killed_with_what_it_has_started(shared: Service) -> None:
    rows, history = shared.rows, shared.history
    polite, stubborn = (
        task.using(timeout=0.3, max_attempts=1).enqueue(rows.connection).id
        for task in (tasks.watches_for_the_end, tasks.with_program)
    )
    starts = {entry.job: entry for entry in history.wait_for("start", polite, stubborn, count=2)}

    letters = [rows.letter(id) for id in (polite, stubborn)]
    endings = {(letter["reason"], letter["error"]) for letter in letters}
    assert endings == {("exhausted", "pgqueue.errors.TimedOut")}
    assert history.entries("saw the end", polite)
    wait_until_gone(starts[polite].pid, starts[stubborn].pid, starts[stubborn].said["program"])
    query = "select extract(epoch from failed_at) from pgqueue.job_failures where job_id = %s"
    assert rows.value(query, stubborn) - rows.value(query, polite) > 2, "it was not given its grace"


def test_a_job_is_not_timed_out_while_it_waits_for_a_process(shared: Service) -> None:
    rows, history = shared.rows, shared.history
    first = [tasks.hold_process.enqueue(rows.connection, gate="places").id for _ in range(2)]
    history.wait_for("start", *first, count=2)
    second = tasks.in_process.using(timeout=0.1).enqueue(rows.connection).id
    rows.wait_until(lambda: rows.states(second) == ["running"], message="the second one in a slot")
    later = quick.using(delay=0.5).enqueue(rows.connection).id
    rows.wait_for("completed", later)
    assert history.entries("start", second) == []

    history.open("places")
    done = rows.wait_for("completed", *first, second)
    assert [row["attempt"] for row in done] == [1, 1, 1]
    assert rows.all("select * from pgqueue.job_failures where job_id = %s", second) == []


def test_a_cancelled_jobs_process_is_told_and_then_killed(shared: Service) -> None:
    rows, history = shared.rows, shared.history
    told = tasks.watches_for_the_end.enqueue(rows.connection).id
    killed = tasks.hold_process.enqueue(rows.connection, gate="never").id
    starts = history.wait_for("start", told, killed, count=2)
    waiting = tasks.in_process.enqueue(rows.connection).id
    rows.wait_until(lambda: rows.states(waiting) == ["running"], message="a third one in a slot")

    outcomes = rows.all("select outcome from pgqueue.cancel(%s, 'enough')", [told, killed, waiting])
    assert outcomes == [{"outcome": "asked"}] * 3
    done = rows.wait_for("cancelled", told, killed, waiting)
    assert {row["reason"] for row in done} == {"enough"}
    wait_until_gone(*(entry.pid for entry in starts))
    assert history.entries("saw the end", told)
    assert history.entries("start", waiting) == []
    assert (
        rows.all("select * from pgqueue.job_failures where job_id = any(%s)", [told, killed, waiting]) == []
    )


def test_a_sigterm_from_elsewhere_disturbs_no_job(shared: Service) -> None:
    """A service manager may send it to every process of the service, when the worker is to drain."""
    rows, history = shared.rows, shared.history
    job = tasks.hold_process.enqueue(rows.connection, gate="sigterm").id
    (start,) = history.wait_for("start", job)
    os.kill(start.pid, signal.SIGTERM)
    history.open("sigterm")
    (row,) = rows.wait_for("completed", job)
    assert row["attempt"] == 1
    assert len(history.entries("start", job)) == 1


def test_at_the_drain_limit_the_job_is_released(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "4", app=APP, task_processes=2, drain_limit=0.3)
    jobs = [
        tasks.hold_process.enqueue(rows.connection).id,
        tasks.watches_for_the_end.enqueue(rows.connection).id,
    ]
    starts = history.wait_for("start", *jobs, count=2)
    waiting = tasks.in_process.enqueue(rows.connection).id
    rows.wait_until(lambda: rows.states(waiting) == ["running"], message="a third one in a slot")

    worker.stop()
    assert worker.wait() == 0
    back = rows.all("select id, attempt, crashes from pgqueue.ready_jobs order by id")
    assert back == [{"id": id, "attempt": 0, "crashes": 0} for id in sorted([*jobs, waiting])]
    wait_until_gone(*(entry.pid for entry in starts))
    assert history.entries("saw the end", jobs[1])
    assert rows.all("select * from pgqueue.job_failures") == []


# How long it serves ---------------------------------------------------------------------------------------


def test_a_process_is_replaced_after_so_many_jobs_or_so_much_memory(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker("-c", "4", app=APP, task_processes=1)
    jobs = [tasks.twice_a_process.enqueue(rows.connection).id for _ in range(4)]
    rows.wait_for("completed", *jobs)
    for megabytes in (1, 300, 1):  # of 250 that it may have; some of it may have been paged out
        jobs.append(tasks.leaks.enqueue(rows.connection, megabytes=megabytes).id)
        rows.wait_for("completed", jobs[-1])

    first, same, second, same_too, third, same_as_well, fourth = (
        entry.pid for entry in history.entries("start")
    )
    assert (first, second, third) == (same, same_too, same_as_well)
    assert len({first, second, third, fourth}) == 4
    replaced = worker.wait_for("process.replaced", count=3)
    assert [line["pid"] for line in replaced] == [first, second, third]
    assert [line["after"] for line in replaced[:2]] == ["2 jobs"] * 2
    assert replaced[2]["after"].endswith(" MB of memory")
    wait_until_gone(first, second, third)


def test_a_job_whose_process_cannot_start_is_put_off_with_its_attempt(
    start_worker: StartWorker, rows: Rows, history: History, tmp_path: Path
) -> None:
    module = tmp_path / "deployed.py"
    module.write_text("from tests.worker.process_tasks import app\n")
    worker = start_worker("-c", "4", app="deployed:app", cwd=tmp_path)
    module.write_text("raise ValueError('half a deployment')\n")
    job = tasks.in_process.enqueue(rows.connection).id
    worker.wait_for("process.not_ready", job_id=job, error="ended with exit code 78")
    (told,) = worker.wait_for("app.not_loaded")
    assert "half a deployment" in told["error"]
    (row,) = rows.wait_for("scheduled", job)
    assert (row["attempt"], row["crashes"]) == (0, 0)
    assert history.entries() == []

    module.write_text("from tests.worker.process_tasks import app\n")
    rows.bring_forward(job)
    (row,) = rows.wait_for("completed", job)
    assert row["attempt"] == 1


# Without a worker process of its own ----------------------------------------------------------------------

SHOP = """
import os, pgqueue
app = pgqueue.App()

@app.task(executor="process", keep_result=True)
def total(numbers: list[int]) -> list[int]:
    return [sum(numbers), os.getpid()]
"""
SCRIPT = """
import pgqueue, shop
pgqueue.Worker(shop.app, concurrency=2).run()
"""


def test_a_worker_inside_of_a_script_has_processes_too(database: str, rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "script.py").write_text(SCRIPT)
    job = rows.enqueue("total", '{"numbers": [1, 2, 3]}')
    environment = {**os.environ, "PGQUEUE_DSN": database, "PYTHONPATH": str(REPOSITORY)}
    script = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], cwd="/", env=environment)
    try:
        rows.wait_for("completed", job)
        result, pid = rows.value("select result from pgqueue.finished_jobs where id = %s", job)
        assert result == 6
        assert pid != script.pid
        script.terminate()
        assert script.wait(15) == 0
        wait_until_gone(pid)
    finally:
        script.kill()
        script.wait()


def test_a_process_whose_worker_is_gone_when_it_is_ready_ends_without_a_word() -> None:
    setup = Setup(
        app=APP, dsn="dbname=unused", pooled=False, worker_id=1, log_format="json", log_level="info"
    )
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "pgqueue.worker.apart"],
                stdin=theirs.fileno(),
                stderr=subprocess.PIPE,
                cwd=REPOSITORY,
            )
        ours.shutdown(socket.SHUT_RD)  # it can hear still, and can say nothing
        ours.sendall(frame(setup))
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.decode()) == (-signal.SIGKILL, "")


def test_an_app_that_no_process_could_import_is_refused(database: str) -> None:
    app = pgqueue.App(dsn=database)

    @app.task(executor="process")
    def local() -> None: ...

    async def work() -> None:
        async with pgqueue.Worker(app):
            pass

    with pytest.raises(ConfigurationError, match="at the top of a module"):
        asyncio.run(work())
