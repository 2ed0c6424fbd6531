"""A worker inside of an application's own loop: its life is that of a block, and what goes wrong in it is made good."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

import pgqueue
from pgqueue.errors import ConfigurationError, DatabaseUnavailable, MissingDSN, SchemaError
from pgqueue.settings import Settings
from pgqueue.worker.claimer import Claimer
from tests.support import Databases, wait_until
from tests.worker import tasks
from tests.worker.conftest import StartWorker
from tests.worker.harness import BEHIND_A_POOLER, REPOSITORY, History, Rows, until

SCRIPT = "import pgqueue; from tests.worker.tasks import app; pgqueue.Worker(app, concurrency=4).run()"


class Bench:
    """An app whose handlers write down what they did, with gates that a test opens; all in this process."""

    def __init__(self, dsn: str, **settings: Any):
        times = {"lease": 3.0, "beat": 0.3, "upkeep_interval": 0.6, "drain_limit": 20.0}
        self.app = pgqueue.App(settings=Settings(dsn=dsn, **{**times, **settings}), name="bench")
        self.did: list[tuple[str, int]] = []
        self.gate = threading.Event()
        self.threads: set[int] = set()
        app, did = self.app, self.did

        @app.task
        async def quick(ctx: pgqueue.Context) -> None:
            did.append(("start", ctx.id))
            self.threads.add(threading.get_ident())

        @app.task
        def quick_sync(ctx: pgqueue.Context) -> None:
            did.append(("start", ctx.id))

        @app.task(transactional=True)
        async def write(ctx: pgqueue.Context[psycopg.AsyncConnection[Any]]) -> None:
            did.append(("start", ctx.id))
            await ctx.connection.execute("insert into public.effects (job) values (%s)", [ctx.id])

        @app.task
        async def hold(ctx: pgqueue.Context) -> None:
            did.append(("start", ctx.id))
            try:
                await until(self.gate.is_set)
            except asyncio.CancelledError:
                did.append(("cancelled", ctx.id))
                raise
            did.append(("end", ctx.id))

        @app.task
        def hold_sync(ctx: pgqueue.Context) -> None:
            did.append(("start", ctx.id))
            self.gate.wait(20)
            did.append(("end", ctx.id))

        @app.task
        async def block(ctx: pgqueue.Context, seconds: float) -> None:
            did.append(("start", ctx.id))
            time.sleep(seconds)  # noqa: ASYNC251
            did.append(("end", ctx.id))

        self.quick, self.quick_sync, self.write = quick, quick_sync, write
        self.hold, self.hold_sync, self.block = hold, hold_sync, block

    async def until_did(self, what: str, *jobs: int) -> None:
        await until(lambda: all((what, id) in self.did for id in jobs))

    def starts(self) -> dict[int, int]:
        return {id: self.did.count(("start", id)) for what, id in self.did if what == "start"}


@pytest.fixture
def bench(database: str) -> Iterator[Bench]:
    bench = Bench(database)
    yield bench
    bench.gate.set()


def play(scenario: Callable[[], Awaitable[Any]]) -> Any:
    """Runs a scenario in a loop of its own, and sees that nothing of a worker is left after it."""

    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await scenario()

    result = asyncio.run(bounded())
    assert not [thread.name for thread in threading.enumerate() if thread.name == "pgqueue-keeper"]
    return result


async def in_state(rows: Rows, state: str, *ids: int) -> None:
    """Waits, without standing in the loop's way, until all of the jobs are in a state."""
    await until(lambda: set(rows.states(*ids)) == {state})


async def until_drains(worker: pgqueue.Worker) -> None:
    """Waits until a worker claims no more."""
    await until(lambda: worker._services is not None and worker._services.hand.closed)


def attempts(rows: Rows, *ids: int) -> list[tuple[int, int]]:
    return [(row["attempt"], row["crashes"]) for row in (rows.job(id) for id in ids)]


def assert_nothing_is_left(rows: Rows) -> None:
    for table in ("running_jobs", "workers", "heartbeats", "sleepers"):
        assert rows.all(f"select * from pgqueue.{table}") == [], table
    sessions = "select application_name, query, state from pg_stat_activity where starts_with(application_name, 'pgqueue')"
    if not BEHIND_A_POOLER:  # which keeps its own
        rows.wait_until(lambda: not rows.all(sessions), message="the worker's connections to be closed")


# Working


@pytest.mark.needs_session("it waits until the worker listens")
def test_jobs_of_every_kind_run_in_the_applications_own_loop(rows: Rows, bench: Bench) -> None:
    rows.connection.execute("create table public.effects (job bigint not null)")
    kinds = (bench.quick, bench.quick_sync, bench.write)
    waiting = [task.enqueue(rows.connection).id for task in kinds]

    async def scenario() -> list[int]:
        async with pgqueue.Worker(bench.app, concurrency=4):
            await in_state(rows, "completed", *waiting)
            # one that comes while it sleeps
            sleepers = "select count(*) from pgqueue.sleepers"
            await until(lambda: rows.value(sleepers))
            late = [task.enqueue(rows.connection).id for task in kinds]
            await in_state(rows, "completed", *late)
            return late

    late = play(scenario)
    assert bench.starts() == dict.fromkeys([*waiting, *late], 1)
    assert bench.threads == {threading.get_ident()}
    assert rows.value("select count(*) from public.effects") == 2
    assert_nothing_is_left(rows)


def test_queues_and_limits_are_those_that_were_asked_for(rows: Rows, bench: Bench) -> None:
    emails = [bench.hold.using(queue="email").enqueue(rows.connection).id for _ in range(4)]
    others = [bench.hold.enqueue(rows.connection).id for _ in range(2)]
    beside = bench.quick.using(queue="beside", priority=0).enqueue(rows.connection).id

    async def scenario() -> None:
        async with pgqueue.Worker(bench.app, queues={"email": 2, "default": None}, concurrency=8):
            await bench.until_did("start", *others)
            await until(lambda: len(bench.starts()) == 4)
            (row,) = rows.all("select queues, concurrency, pid from pgqueue_bi.workers")
            assert row == {"queues": "email, default", "concurrency": 8, "pid": os.getpid()}
            bench.gate.set()
            await in_state(rows, "completed", *emails, *others)

    play(scenario)
    assert rows.states(beside) == ["ready"]


def test_without_listen_it_looks(rows: Rows, database: str) -> None:
    bench = Bench(database, wake="poll", poll_interval=0.05)

    async def scenario() -> None:
        async with pgqueue.Worker(bench.app, concurrency=2):
            first = bench.quick.enqueue(rows.connection).id
            await in_state(rows, "completed", first)
            assert rows.all("select * from pgqueue.sleepers") == []
            second = bench.quick_sync.enqueue(rows.connection).id
            await in_state(rows, "completed", second)

    play(scenario)
    assert_nothing_is_left(rows)


def test_two_workers_of_one_process_do_not_get_into_each_others_way(rows: Rows, bench: Bench) -> None:
    async def scenario() -> None:
        async with (
            pgqueue.Worker(bench.app, queues=["one"], concurrency=2),
            pgqueue.Worker(bench.app, queues=["two"], concurrency=2),
        ):
            jobs = [
                bench.quick.using(queue=queue).enqueue(rows.connection).id for queue in ("one", "two") * 20
            ]
            await in_state(rows, "completed", *jobs)
            by_worker = rows.all(
                "select worker_id, array_agg(distinct queue) as queues from pgqueue_bi.jobs group by worker_id"
            )
            assert sorted(row["queues"] for row in by_worker) == [["one"], ["two"]]
            assert bench.starts() == dict.fromkeys(jobs, 1)

    play(scenario)
    assert_nothing_is_left(rows)


def test_the_loop_is_watched_unless_the_threshold_is_0(rows: Rows, database: str) -> None:
    def watchdogs() -> int:
        return [thread.name for thread in threading.enumerate()].count("pgqueue-watchdog")

    async def blocked(bench: Bench) -> int:
        job = bench.block.enqueue(rows.connection, seconds=0.6).id
        async with pgqueue.Worker(bench.app, concurrency=2):
            watching = watchdogs()
            await in_state(rows, "completed", job)
            waits = bench.hold.enqueue(rows.connection).id
            await bench.until_did("start", waits)
            time.sleep(0.6)  # noqa: ASYNC251 - what the application itself does is nobody's job
            bench.gate.set()
        await until(lambda: watchdogs() == 0)
        return watching

    with capture_logs() as logged:
        assert play(lambda: blocked(Bench(database, block_threshold=0))) == 0
        assert [line for line in logged if line["event"] == "loop.blocked"] == []
        assert play(lambda: blocked(Bench(database, block_threshold=0.2))) == 1
    lines = [line for line in logged if line["event"] in ("loop.blocked", "loop.unblocked")]
    *lines, own, _ = lines
    assert "job_id" not in own
    assert "in test_the_loop_is_watched_unless_the_threshold_is_0.<locals>.blocked\n" in own["stack"]
    assert [(line["event"], line["task"]) for line in lines] == [
        ("loop.blocked", "block"),
        ("loop.unblocked", "block"),
    ]


# Its end


def test_the_end_of_the_block_lets_running_jobs_end_and_claims_nothing_more(rows: Rows, bench: Bench) -> None:
    jobs = [task.enqueue(rows.connection).id for task in (bench.hold, bench.hold_sync)]

    async def scenario() -> int:
        async with pgqueue.Worker(bench.app, concurrency=2) as worker:
            await bench.until_did("start", *jobs)
            worker.stop()
            await until_drains(worker)
            late = bench.quick.enqueue(rows.connection).id
            asyncio.get_running_loop().call_later(0.1, bench.gate.set)
        return late

    late = play(scenario)
    assert rows.states(*jobs, late) == ["completed", "completed", "ready"]
    assert attempts(rows, *jobs) == [(1, 0)] * 2
    assert_nothing_is_left(rows)


def test_what_has_not_ended_at_the_drain_limit_is_given_back_with_its_attempt(
    rows: Rows, bench: Bench
) -> None:
    jobs = [task.using(max_attempts=1).enqueue(rows.connection).id for task in (bench.hold, bench.hold_sync)]

    async def scenario() -> float:
        async with pgqueue.Worker(bench.app, concurrency=2, drain_limit="0.2s"):
            await bench.until_did("start", *jobs)
            leaving_at = time.monotonic()
        return time.monotonic() - leaving_at

    assert 0.2 <= play(scenario) < 6
    assert rows.states(*jobs) == ["ready", "ready"]
    assert attempts(rows, *jobs) == [(0, 0)] * 2
    assert ("cancelled", jobs[0]) in bench.did
    assert rows.all("select * from pgqueue.job_failures") == []
    assert_nothing_is_left(rows)


def test_a_block_that_raises_drains_as_well(rows: Rows, bench: Bench) -> None:
    job = bench.hold.enqueue(rows.connection).id

    async def scenario() -> None:
        async with pgqueue.Worker(bench.app, concurrency=2):
            await bench.until_did("start", job)
            asyncio.get_running_loop().call_later(0.1, bench.gate.set)
            raise LookupError("from the block")

    with pytest.raises(LookupError, match="from the block"):
        play(scenario)
    assert rows.states(job) == ["completed"]
    assert_nothing_is_left(rows)


def test_a_block_that_is_cancelled_drains_and_cancelled_again_it_gives_back_at_once(
    rows: Rows, bench: Bench
) -> None:
    job = bench.hold.enqueue(rows.connection).id

    async def scenario() -> float:
        worker = pgqueue.Worker(bench.app, concurrency=2)

        async def application() -> None:
            async with worker:
                await asyncio.sleep(3600)

        running = asyncio.create_task(application())
        await bench.until_did("start", job)
        running.cancel()
        await until_drains(worker)
        assert not running.done(), "it did not wait for the job"
        again_at = time.monotonic()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return time.monotonic() - again_at

    assert play(scenario) < 6
    assert rows.states(job) == ["ready"]
    assert attempts(rows, job) == [(0, 0)]
    assert_nothing_is_left(rows)


# What goes wrong


@contextmanager
def beside(dsn: str) -> Iterator[None]:
    """Another worker in this process, in a thread: it serves another queue, and rescues what is due."""
    app = Bench(dsn).app
    worker = pgqueue.Worker(app, queues=["beside"], concurrency=1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    with psycopg.connect(dsn, autocommit=True) as connection:
        registered = "select count(*) from pgqueue.workers"
        wait_until(lambda: connection.execute(registered).fetchone() == (1,), message="the other worker")
    try:
        yield
    finally:
        worker.stop()
        thread.join(15)
        assert not thread.is_alive()


def test_a_loop_that_is_blocked_for_longer_than_the_lease_starts_the_job_once(
    rows: Rows, database: str
) -> None:
    bench = Bench(database, lease=1.0, beat=0.2, upkeep_interval=0.4)
    job = bench.block.enqueue(rows.connection, seconds=2.5).id
    waits = bench.hold.enqueue(rows.connection).id

    async def scenario() -> None:
        async with pgqueue.Worker(bench.app, concurrency=2):
            await bench.until_did("end", job)
            bench.gate.set()
            await in_state(rows, "completed", job, waits)

    with capture_logs() as logged, beside(database):
        play_beside(scenario)
    assert bench.starts() == {job: 1, waits: 1}
    assert attempts(rows, job, waits) == [(1, 0)] * 2
    events = {line["event"] for line in logged}
    assert not events & {"worker.declared_dead", "jobs.rescued", "lease.lost"}


def play_beside(scenario: Callable[[], Awaitable[Any]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(bounded())


def test_an_application_that_cancels_every_task_of_its_loop_loses_no_job(rows: Rows, bench: Bench) -> None:
    jobs = [task.using(max_attempts=1).enqueue(rows.connection).id for task in (bench.hold, bench.hold_sync)]

    async def scenario() -> None:
        ours = asyncio.current_task()
        outer = asyncio.all_tasks()  # the one that bounds this scenario
        async with pgqueue.Worker(bench.app, concurrency=2):
            await bench.until_did("start", *jobs)
            for task in asyncio.all_tasks() - outer - {ours}:
                task.cancel()

    play(scenario)
    assert rows.states(*jobs) == ["ready", "ready"]
    assert attempts(rows, *jobs) == [(0, 0)] * 2
    assert rows.all("select * from pgqueue.workers") + rows.all("select * from pgqueue.job_failures") == []


def test_a_worker_that_was_declared_dead_lets_its_jobs_go_and_registers_anew(
    rows: Rows, bench: Bench
) -> None:
    async def scenario() -> None:
        async with pgqueue.Worker(bench.app, concurrency=2):
            job = bench.hold.enqueue(rows.connection).id
            await bench.until_did("start", job)
            (first,) = rows.all("select id from pgqueue.workers")
            rows.connection.execute("select pgqueue.rescue(%s)", [first["id"]])
            # the handler is told at once, and the job is run again under the new registration
            await until(lambda: bench.did[1:3] == [("cancelled", job), ("start", job)])
            (second,) = rows.all("select id from pgqueue.workers")
            assert second != first
            bench.gate.set()
            await in_state(rows, "completed", job)
            assert attempts(rows, job) == [(2, 1)]

    with capture_logs() as logged:
        play(scenario)
    assert [line["event"] for line in logged].count("worker.declared_dead") == 1
    assert rows.all("select * from pgqueue.workers") + rows.all("select * from pgqueue.running_jobs") == []


def test_services_that_fail_are_reported_and_started_anew(
    rows: Rows, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, failures = Claimer.run_once, iter([RuntimeError("a bug of ours"), RuntimeError("once more")])

    async def fails_twice(claimer: Claimer, room: tuple[int, ...] | None = None) -> int:
        if error := next(failures, None):
            raise error
        return await claim(claimer, room)

    monkeypatch.setattr(Claimer, "run_once", fails_twice)
    job = bench.quick.enqueue(rows.connection).id

    async def scenario() -> None:
        async with pgqueue.Worker(bench.app, concurrency=2):
            await in_state(rows, "completed", job)

    with capture_logs() as logged:
        play(scenario)
    failed = [line for line in logged if line["event"] == "worker.failed"]
    assert [str(line["exc_info"]) for line in failed] == ["a bug of ours", "once more"]
    # the tracebacks hold a connection that was being made: a log that is written lets it go
    logged.clear()
    failed.clear()
    gc.collect()
    assert_nothing_is_left(rows)


def test_a_worker_that_cannot_start_says_why(databases: Databases, database: str, tmp_path: Any) -> None:
    async def enter(app: pgqueue.App) -> None:
        async with pgqueue.Worker(app):
            raise AssertionError("it started")

    empty = databases.create_empty()
    for dsn, expected in (
        (None, MissingDSN),
        (f"postgresql:///nowhere?host={tmp_path}", DatabaseUnavailable),
        (empty, SchemaError),
    ):
        with pytest.raises(expected):
            play(lambda dsn=dsn: enter(pgqueue.App(settings=Settings(dsn=dsn))))  # type: ignore[misc]
    databases.drop(empty)
    app = pgqueue.App(settings=Settings(dsn=database))
    with pytest.raises(ConfigurationError, match="concurrency"):
        pgqueue.Worker(app, concurrency=0)
    with pytest.raises(ConfigurationError, match=r"queues: .*limit of at least 1"):
        pgqueue.Worker(app, queues={"email": 0})
    with pytest.raises(ConfigurationError, match="drain_limit"):
        pgqueue.Worker(app, drain_limit="soon")


# What the documentation says


class FakeFastAPI:
    """What the page needs of it: the lifespan is entered and left by the server."""

    def __init__(self, *, lifespan: Any):
        self.lifespan = lifespan


def test_the_web_application_of_the_documentation_runs_its_jobs(
    rows: Rows,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (REPOSITORY / "docs/howto/in-process-worker.md").read_text()
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.S):
        (tmp_path / name).write_text(code)
    fastapi = types.ModuleType("fastapi")
    fastapi.FastAPI = FakeFastAPI  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastapi", fastapi)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PGQUEUE_DSN", database)
    api = importlib.import_module("web").api
    job = rows.enqueue("send_welcome", '{"user_id": 7}', queue="email")

    async def served() -> None:
        async with api.lifespan(api):
            await in_state(rows, "completed", job)

    play(served)
    assert "welcome, user 7\n" in capsys.readouterr().out
    for name in ("web", "shop"):
        monkeypatch.delitem(sys.modules, name)


# A script


def test_a_script_drains_at_the_first_signal_and_gives_back_at_the_second(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    for signals in (1, 2):
        worker = start_worker(code=SCRIPT, drain_limit=60)
        job = tasks.hold.enqueue(rows.connection, gate=f"gate {signals}").id
        history.wait_for("start", job)
        worker.stop(signal.SIGTERM)
        if signals == 1:
            history.open("gate 1")
        else:
            worker.stop(signal.SIGINT)
        assert worker.wait(10) == 0
        (row,) = rows.all("select state, attempt from pgqueue_bi.jobs where id = %s", job)
        assert row == (
            {"state": "completed", "attempt": 1} if signals == 1 else {"state": "ready", "attempt": 0}
        )
        assert_nothing_is_left(rows)


def test_the_third_signal_kills_a_script_whose_handler_will_not_end(
    start_worker: StartWorker, rows: Rows, history: History
) -> None:
    worker = start_worker(code=SCRIPT, drain_limit=60)
    job = tasks.stubborn.enqueue(rows.connection).id
    history.wait_for("start", job)
    worker.stop(signal.SIGTERM)
    worker.stop(signal.SIGTERM)
    rows.wait_for("ready", job)
    rows.wait_until(lambda: not rows.all("select * from pgqueue.workers"), message="the worker's row to go")
    worker.send(signal.SIGTERM)
    assert worker.wait(10) == -signal.SIGTERM
