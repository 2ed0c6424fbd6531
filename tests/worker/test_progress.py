"""What handlers say while they run: how far they have come, and their last log lines, seen from outside."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import pgqueue
from pgqueue.settings import Settings
from pgqueue.task import Task
from tests.support import Databases
from tests.worker import progress_tasks as tasks
from tests.worker.conftest import Service, StartWorker, service
from tests.worker.harness import History, Rows

APP = "tests.worker.progress_tasks:app"
AnyTask = Task[..., object]


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker of 8 slots for the whole file."""
    with service(databases, tmp_path_factory, "-c", "8", app=APP) as running:
        yield running


@pytest.fixture
def rows(running: Service) -> Rows:
    return running.rows


@pytest.fixture
def history(running: Service) -> History:
    return running.history


@pytest.fixture
def connection(running: Service) -> psycopg.Connection:
    return running.rows.connection


@pytest.fixture(scope="module")
def app(running: Service) -> Iterator[pgqueue.App]:
    """An application that looks from outside."""
    app = pgqueue.App(settings=Settings(dsn=running.rows.dsn))
    yield app
    app.close()


def progress_of(app: pgqueue.App, job: pgqueue.Job) -> pgqueue.Progress | None:
    info = app.job(job)
    assert info is not None
    return info.progress


def lines_of(rows: Rows, job: pgqueue.Job) -> list[list[dict[str, str]]]:
    """The lines that each attempt left, the first attempt first."""
    reports = rows.value("select reports from pgqueue.job_record(%s)", job.id)
    return [report["lines"] or [] for report in reports]


def texts_of(rows: Rows, job: pgqueue.Job) -> list[str]:
    return [line["text"] for attempt in lines_of(rows, job) for line in attempt]


# Progress -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", tasks.WAYS, ids=lambda task: task.name)
def test_progress_is_seen_while_the_handler_runs_and_the_last_of_it_afterwards(
    task: AnyTask, app: pgqueue.App, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = task.enqueue(connection, gate=task.name)
    history.wait_for("told", job.id)

    progress = rows.wait_until(lambda: progress_of(app, job), message="the first progress")
    assert progress is not None
    assert (progress.done, progress.total, progress.message) == (3, 10, "row 3 of 10")
    assert progress.metadata == {"file": "a.csv", "at": {"line": 3}}
    assert progress.fraction == 0.3
    history.open(task.name)

    info = app.wait(job, timeout=15)
    assert info.state == "completed"
    assert info.progress is not None
    assert (info.progress.done, info.progress.message) == (8, "row 8 of 10")
    assert rows.all("select * from pgqueue.job_progress where job_id = %s", job.id) == []
    assert texts_of(rows, job) == [f"came along done={done}" for done in (3, 7, 8)]


def test_progress_is_written_four_times_a_second_at_most(
    app: pgqueue.App, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = tasks.hurries.enqueue(connection)
    seen = "select noted_at from pgqueue.job_progress where job_id = %s"
    moments = set()
    while not history.entries("said", job.id):
        moments.add(rows.value(seen, job.id))
    moments.discard(None)

    (said,) = history.entries("said", job.id)
    assert 1 <= len(moments) <= said.said["seconds"] * 4 + 2
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(sorted(moments))]
    assert all(gap > 0.2 for gap in gaps), gaps
    info = app.wait(job, timeout=15)
    assert info.progress is not None
    assert info.progress.done == 19_999


@pytest.mark.parametrize("kind", tasks.NO_PROGRESS)
def test_what_is_no_progress_is_dropped_and_its_handler_goes_on(
    kind: str, app: pgqueue.App, connection: psycopg.Connection, running: Service
) -> None:
    job = tasks.says_nonsense.enqueue(connection, kind=kind)

    info = app.wait(job, timeout=15)
    assert (info.state, info.progress) == ("completed", None)
    (line,) = running.worker.wait_for("progress.dropped", job_id=job.id)
    assert line["reason"]


def test_a_message_is_cut_and_made_safe(app: pgqueue.App, connection: psycopg.Connection) -> None:
    info = app.wait(tasks.says_much.enqueue(connection), timeout=15)
    assert info.progress is not None
    assert info.progress.message is not None
    assert 400 < len(info.progress.message) < 600


def test_a_lost_lease_notes_nothing(
    app: pgqueue.App, connection: psycopg.Connection, history: History, rows: Rows, running: Service
) -> None:
    job = tasks.moves.enqueue(connection, gate="lease lost")
    history.wait_for("told", job.id)
    rows.wait_until(lambda: progress_of(app, job), message="the first progress")
    # as after a rescue and another claim of the same attempt
    connection.execute("update pgqueue.running_jobs set lease = lease + 1 where id = %s", [job.id])
    assert progress_of(app, job) is None, "it is that of the claim before"
    history.open("lease lost")

    running.worker.wait_for("lease.lost", job_id=job.id)
    assert texts_of(rows, job) == []
    connection.execute("delete from pgqueue.running_jobs where id = %s", [job.id])


def test_a_thread_that_speaks_after_its_timeout_is_not_listened_to(
    app: pgqueue.App, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = tasks.speaks_too_late.enqueue(connection, gate="too late")
    rows.wait_for("scheduled", job.id)
    progress = progress_of(app, job)
    assert progress is not None
    assert progress.done == 1
    history.open("too late")
    history.wait_for("said too late", job.id)

    later = tasks.says_much.enqueue(connection)
    app.wait(later, timeout=15)
    assert texts_of(rows, job) == ["came along done=1"]
    assert rows.all("select * from pgqueue.job_progress where job_id = %s", job.id) == []


# Log lines ----------------------------------------------------------------------------------------------


def test_the_lines_of_each_attempt_are_kept(
    app: pgqueue.App, connection: psycopg.Connection, rows: Rows, running: Service
) -> None:
    job = tasks.logs.enqueue(connection)
    assert app.wait(job, timeout=15).state == "completed"

    first, second = lines_of(rows, job)
    assert [line["level"] for line in first] == ["info", "warning", "info", "error"]
    assert [line["text"] for line in first][:3] == [
        "began rows=3 path=a\\x00b",
        "bound user_id=7",
        "1 of 2",
    ]
    assert first[3]["text"].startswith("charge failed\nTraceback (most recent call last):\n")
    assert first[3]["text"].endswith("KeyError: 'card'")
    assert [line["text"] for line in second] == [line["text"] for line in first[:3]]
    assert all(line["at"].endswith("+00:00") for line in first)
    # beside the ordinary log, which has them too
    (line, _) = running.worker.wait_for("began", count=2, job_id=job.id)
    assert (line["rows"], line["task"], line["attempt"], line["level"]) == (3, "logs", 1, "info")


@pytest.mark.parametrize(
    ("lines", "size", "kept"), [(250, 10, 100), (100, 2000, 100), (30, 7000, 30), (3, 30_000, 3)]
)
def test_the_last_lines_are_kept_up_to_a_number_and_a_size(
    lines: int, size: int, kept: int, app: pgqueue.App, connection: psycopg.Connection, rows: Rows
) -> None:
    job = tasks.logs_much.enqueue(connection, lines=lines, size=size)
    app.wait(job, timeout=15)

    texts = texts_of(rows, job)
    assert len(texts) == kept
    assert sum(map(len, texts)) <= 65_536
    assert [text.split()[1] for text in texts] == [str(n) for n in range(lines - kept, lines)]


def test_what_a_process_said_before_it_died_is_kept(
    app: pgqueue.App, connection: psycopg.Connection, history: History, rows: Rows
) -> None:
    job = tasks.dies_apart.enqueue(connection, gate="die")
    rows.wait_until(lambda: progress_of(app, job), message="the first progress")
    history.open("die")
    rows.wait_for("scheduled", job.id)

    assert texts_of(rows, job) == ["came along done=4", "about to die"]
    info = app.job(job)
    assert info is not None
    assert info.progress is not None
    assert info.progress.done == 4
    assert info.message is not None
    assert "SIGKILL" in info.message


def test_a_job_that_says_nothing_leaves_nothing(
    connection: psycopg.Connection, app: pgqueue.App, rows: Rows
) -> None:
    before = rows.value("select count(*) from pgqueue.job_reports")
    app.wait(tasks.logs_much.enqueue(connection, lines=0, size=0), timeout=15)
    assert rows.value("select count(*) from pgqueue.job_reports") == before


def test_the_progress_of_a_worker_that_died_does_not_outlive_its_claim(
    start_worker: StartWorker, database: str, tmp_path: Any
) -> None:
    # a worker and a database of its own
    own_rows, own_history = Rows(database), History(tmp_path)
    app = pgqueue.App(settings=Settings(dsn=database))
    worker = start_worker("-c", "2", app=APP)
    job = tasks.dies_on.enqueue(own_rows.connection, gate="after the death")
    own_rows.wait_until(lambda: progress_of(app, job), message="the first progress")
    worker.kill()
    assert own_rows.value("select count(*) from pgqueue.job_progress") == 1
    own_rows.connection.execute("select pgqueue.rescue(id) from pgqueue.workers")
    assert progress_of(app, job) is None
    own_rows.connection.execute("update pgqueue.job_progress set noted_at = noted_at - interval '2 days'")
    own_rows.connection.execute("select pgqueue.retain()")
    assert own_rows.value("select count(*) from pgqueue.job_progress") == 0
    own_history.open("after the death")
    own_rows.close()
    app.close()
