"""`pgqueue dev` as a real process: it serves, runs jobs, stops, survives kill -9, and keeps its hands off."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from pgqueue.embedded.processes import cluster_name_of, postgres_named
from tests.support import Databases, wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
RUN = [sys.executable, "-W", "error", "-c", "from pgqueue.cli import main; main()"]
NOT_CONFIGURED = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PGQUEUE_", "PG")) and name != "DATABASE_URL"
} | {"PYTHONPATH": str(REPOSITORY)}
DEADLINE = 30.0

APP = """
import psycopg
import pgqueue

app = pgqueue.App()

@app.task(transactional=True)
def note(ctx: pgqueue.Context[psycopg.Connection], text: str) -> None:
    ctx.connection.execute("insert into notes values (%s)", [text])
"""


class Dev:
    """A running `pgqueue dev`, its output read line by line."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*RUN, "dev", "--data-dir", str(folder / "pg"), *arguments],
            cwd=folder,
            env=NOT_CONFIGURED | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []
        self._watchdog = threading.Timer(DEADLINE, self.process.kill)
        self._watchdog.start()

    def until(self, pattern: str) -> re.Match[str]:
        """Reads on to the line that matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"ended without {pattern!r}:\n{''.join(self.said)}")

    def dsn(self) -> str:
        """The line for the shell of an application."""
        return self.until(r"export PGQUEUE_DSN='(.*)'")[1]

    def end(self, signum: signal.Signals) -> int:
        """Sends a signal and reads the rest; returns the exit code."""
        self.process.send_signal(signum)
        rest, _ = self.process.communicate(timeout=DEADLINE)
        self.said.append(rest)
        return self.process.returncode

    def close(self) -> None:
        self._watchdog.cancel()
        with self.process:
            self.process.kill()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's user can reach, unlike pytest's own when we are root; in memory if possible."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
    with tempfile.TemporaryDirectory(prefix="pgqueue-test-", dir=memory) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Dev]]:
    """Starts `pgqueue dev`; ends what is still running after the test."""
    with contextlib.ExitStack() as stack:

        def started(*arguments: str, **environment: str) -> Dev:
            dev = Dev(folder, *arguments, **environment)
            stack.callback(dev.close)
            return dev

        yield started
    if (folder / "pg").exists():  # the server of one that was killed is on its way out
        wait_until(lambda: not servers(folder), DEADLINE, "the end of the server")


def servers(folder: Path) -> list[int]:
    return postgres_named(cluster_name_of(folder / "pg"))


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments],
        cwd=cwd,
        env=NOT_CONFIGURED | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )


def test_it_serves_a_migrated_database_survives_kill_9_and_stops_clean(
    folder: Path, start: Callable[..., Dev]
) -> None:
    first = start()
    dsn = first.dsn()
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute("select newest from pgqueue.protocol()").fetchone() == (1,)
        connection.execute("create table notes as select 'kept' as text")

    # Beside it, without a DSN: a production command does not fall back to anything.
    refused = command("db", "status", cwd=folder)
    assert refused.returncode == 2
    for remedy in ("--dsn", "PGQUEUE_DSN", "DATABASE_URL", "pgqueue.toml", "pgqueue dev"):
        assert remedy in refused.stderr
    # With the line that it printed: that very database.
    assert command("db", "check", cwd=folder, PGQUEUE_DSN=dsn).returncode == 0

    # A second one joins, and has nothing to do.
    second = start(PGQUEUE_DSN=dsn)
    assert second.dsn() == dsn
    assert second.process.wait(DEADLINE) == 0
    assert servers(folder)

    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    again = start(PGQUEUE_DSN=dsn)  # the shell still has the line: it is no reason to start nothing
    with psycopg.connect(again.dsn()) as connection:
        assert connection.execute("select text from notes").fetchall() == [("kept",)]
    again.until("Ctrl-C stops it")
    assert again.end(signal.SIGTERM) == 0
    assert servers(folder) == []
    assert "Traceback" not in "".join(first.said + second.said + again.said)


def test_it_runs_the_jobs_of_an_app_and_ctrl_c_stops_worker_and_server(
    folder: Path, start: Callable[..., Dev]
) -> None:
    (folder / "noting.py").write_text(APP)
    dev = start("noting:app", "-q", "notes:3", "--processes", "2")
    dsn = dev.dsn()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table notes (text text)")
        connection.execute("""select pgqueue.enqueue('note', '{"text": "done"}', queue => 'notes')""")
        wait_until(lambda: connection.execute("select text from notes").fetchall() == [("done",)], DEADLINE)
        workers = "select queues from pgqueue_bi.workers"
        wait_until(lambda: connection.execute(workers).fetchall() == [("notes",), ("notes",)], DEADLINE)
    assert dev.end(signal.SIGINT) == 0
    assert servers(folder) == []
    assert "Traceback" not in "".join(dev.said)


def test_a_configured_database_on_this_machine_is_used_and_no_server_started(
    folder: Path, databases: Databases
) -> None:
    dsn = databases.create_empty()
    done = command("dev", "--data-dir", str(folder / "pg"), cwd=folder, DATABASE_URL=dsn)
    assert done.returncode == 0, done.stderr
    assert "using the configured database (DATABASE_URL)" in done.stderr
    assert not (folder / "pg").exists()
    assert command("db", "check", cwd=folder, DATABASE_URL=dsn).returncode == 0
    wrong = command("dev", "nowhere:app", cwd=folder, DATABASE_URL=dsn)
    assert wrong.returncode == 2
    assert "there is no module 'nowhere'" in wrong.stderr
    databases.drop(dsn)


def test_a_configured_database_on_another_machine_is_refused(folder: Path) -> None:
    dsn = "postgresql://app:secret@db.example/app"
    done = command("dev", "--data-dir", str(folder / "pg"), cwd=folder, PGQUEUE_DSN=dsn)
    assert done.returncode == 2
    assert "(PGQUEUE_DSN) is on db.example" in done.stderr
    assert "pgqueue worker" in done.stderr
    assert "secret" not in done.stderr
    assert not (folder / "pg").exists()


def test_a_queue_that_is_none_is_refused_before_anything_starts(folder: Path) -> None:
    done = command("dev", "--data-dir", str(folder / "pg"), "-q", "notes:0", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "notes:0" in done.stderr
    with contextlib.suppress(FileNotFoundError):
        assert os.listdir(folder / "pg") == []
