"""`pgqueue health`, `stats` and `top`: what they say, their exit codes, and a terminal that is watched."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue import calls
from pgqueue.cli import main
from pgqueue.drivers import run
from tests.sql.acting import enqueue, register
from tests.sql.history import ended, failed, rolled_up
from tests.test_cli import NOT_CONFIGURED, REPOSITORY, RUN

Session = psycopg.Connection
Invoke = Callable[..., Result]


@pytest.fixture
def pgqueue(database: str) -> Invoke:
    """Runs `pgqueue …` on the test's database."""

    def invoke(*arguments: str, dsn: str = database) -> Result:
        return CliRunner().invoke(main, ["--dsn", dsn, *arguments])

    return invoke


@pytest.fixture
def monitor(connection: Session, database: str) -> Iterator[str]:
    """The DSN of a login that has the role pgqueue_monitor, and no other right."""
    login = f"pgqueue_test_monitor_{os.getpid()}"
    name = sql.Identifier(login)
    connection.execute(sql.SQL("create role {} login superuser in role pgqueue_monitor").format(name))
    connection.execute(sql.SQL("alter role {} nosuperuser").format(name))
    yield make_conninfo(database, user=login)
    connection.execute(sql.SQL("drop role {}").format(name))


def lines(result: Result) -> dict[str, str]:
    """The lines of a table by their first word."""
    return {line.split()[0]: line for line in result.stdout.splitlines() if line.split()}


# Health -------------------------------------------------------------------------------------------------


def test_health_is_told_by_the_exit_code(connection: Session, pgqueue: Invoke) -> None:
    result = pgqueue("health")
    assert (result.exit_code, result.stderr) == (0, "all is well\n")
    assert "no worker is registered" in result.stdout
    enqueue(connection, queue="mail")
    register(connection, "mail")
    assert (
        pgqueue("queues", "set", "mail", "max_depth=0", "tolerated_dead=0", "max_failure_ratio=5%").exit_code
        == 0
    )
    run(connection, calls.count_depths())
    result = pgqueue("health")
    assert (result.exit_code, result.stderr) == (1, "not healthy: 1 of 7 checks\n")
    rows = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    assert rows[2] == ["NOT OK", "depth", "mail", "ready jobs: 1, allowed: 0"]
    assert pgqueue("health", "-q", "other").exit_code == 0
    told = json.loads(pgqueue("health", "-q", "mail", "--json").stdout)
    assert told["healthy"] is False
    assert {check["check_name"]: check["is_healthy"] for check in told["checks"]} == {
        "depth": False,
        "dead": True,
        "failure_ratio": True,
        "workers": True,
    }
    assert told["checks"][1] == {
        "queue": "mail",
        "check_name": "depth",
        "value": 1.0,
        "threshold": 0.0,
        "is_healthy": False,
        "detail": "ready jobs: 1, allowed: 0",
    }


@pytest.mark.parametrize("dsn", ["postgresql://nobody@127.0.0.1:1/none", "no dsn"])
def test_a_database_that_cannot_be_asked_is_neither_healthy_nor_not(dsn: str, pgqueue: Invoke) -> None:
    result = pgqueue("health", dsn=dsn)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")


def test_a_database_without_the_schema_cannot_be_asked(connection: Session, pgqueue: Invoke) -> None:
    connection.execute("drop schema pgqueue_bi cascade")
    result = pgqueue("health")
    assert result.exit_code == 2
    assert "pgqueue db upgrade" in result.stderr


def test_thresholds_are_set_and_taken_back(pgqueue: Invoke) -> None:
    result = pgqueue("queues", "set", "mail", "max_failure_ratio=2.5%", "tolerated_dead=3", "--json")
    assert json.loads(result.stdout)["settings"] == {"max_failure_ratio": 0.025, "tolerated_dead": 3}
    table = lines(pgqueue("queues", "list"))
    assert "tolerated_dead=3, max_failure_ratio=0.025" in table["mail"]
    (row,) = json.loads(pgqueue("queues", "list", "--json").stdout)
    assert (row["max_failure_ratio"], row["tolerated_dead"]) == (0.025, 3)
    result = pgqueue("queues", "set", "mail", "max_failure_ratio=default", "tolerated_dead=default")
    assert result.stderr == "mail: the defaults\n"
    for value in ("150%", "-1%", "nan", "few", "1.5"):
        result = pgqueue("queues", "set", "mail", f"max_failure_ratio={value}")
        assert result.exit_code == 2
        assert "expected a share such as 5% or 0.05" in result.stderr


def test_a_monitor_may_ask_for_health_and_watch(monitor: str, pgqueue: Invoke) -> None:
    assert pgqueue("health", dsn=monitor).exit_code == 0
    assert pgqueue("top", "--once", dsn=monitor).exit_code == 0


# Stats --------------------------------------------------------------------------------------------------


def test_stats_count_and_measure_by_queue_or_task(connection: Session, pgqueue: Invoke) -> None:
    assert pgqueue("stats").stderr.startswith("nothing has been rolled up for that time")
    ended(connection, 30, queue="mail", wait=0.05, run=3, jobs=60)
    failed(connection, 30, queue="mail", task="u", jobs=2, dead_reason="exhausted")
    rolled_up(connection)
    result = pgqueue("stats")
    assert lines(result)["queue"].split() == [
        *("queue", "completed", "/min", "failed", "dead"),
        *(word for what in ("wait", "run") for which in ("p50", "p95", "p99") for word in (what, which)),
    ]
    mail = lines(result)["mail"].split()
    assert mail[:5] == ["mail", "60", "1", "2", "2"]
    assert all(re.fullmatch(r"(4[5-9]|5[0-5])ms", value) for value in mail[5:8])
    assert all(re.fullmatch(r"(2\.[7-9]|3\.[0-3])s", value) for value in mail[8:])
    assert result.stderr.startswith("from 2026-03-01 ")
    told = json.loads(pgqueue("stats", "--by", "task", "--last", "2h", "--json").stdout)
    assert [(row["queue"], row["task"], row["completed"], row["dead"]) for row in told] == [
        ("mail", "t", 60, 0),
        ("mail", "u", 0, 2),
    ]
    assert (told[0]["completed_per_minute"], told[0]["from_at"][:16]) == (0.5, "2026-03-01T10:01")
    table = lines(pgqueue("stats", "--by", "task"))
    assert table["queue"].split()[1] == "task"


def test_a_span_is_a_minute_at_least(pgqueue: Invoke) -> None:
    for span, says in (("10s", "figures are kept by the minute"), ("soon", "--last: expected seconds")):
        result = pgqueue("stats", "--last", span)
        assert result.exit_code == 2
        assert says in result.stderr


# Top ----------------------------------------------------------------------------------------------------


def filled(connection: Session) -> None:
    """A database with something in each part of the picture."""
    register(connection, "mail")
    enqueue(connection, queue="mail")
    enqueue(connection, queue="idle")
    failed(connection, 30, queue="mail", task="charge", message="no\x1b[2J card\nsecond line", jobs=3)
    rolled_up(connection)
    connection.execute("update pgqueue.failure_groups set last_seen_at = now()")
    connection.execute("update pgqueue.ready_jobs set run_at = now() - interval '2 minutes'")
    run(connection, calls.count_depths())


def test_one_look_is_printed_where_nobody_watches(connection: Session, pgqueue: Invoke) -> None:
    filled(connection)
    result = pgqueue("top")  # no terminal
    assert (result.exit_code, result.stderr) == (0, "")
    first = result.stdout.splitlines()[0]
    assert re.match(
        r"pgqueue  \d\d:\d\d:\d\d  ready 2  running 0  dead 0  workers 1, slots 10  completed 0/min",
        first,
    )
    assert "not healthy: workers of idle: jobs have waited for 12" in result.stdout
    mail = next(line for line in result.stdout.splitlines() if line.startswith("mail"))
    assert mail.split()[:4] == ["mail", "runs", "1", "2m"]
    assert lines(result)["idle"].split()[1] == "unserved"
    assert lines(result)["charge"].split()[:5] == ["charge", "mail", "ValueError", "3", "0"]
    assert "no\N{REPLACEMENT CHARACTER}[2J card" in result.stdout
    assert "second line" not in result.stdout
    told = json.loads(pgqueue("top", "--json").stdout)
    assert set(told) == {"at", "queues", "workers", "failures", "unhealthy"}
    assert [row["queue"] for row in told["queues"]] == ["idle", "mail"]
    assert [check["check_name"] for check in told["unhealthy"]] == ["workers"]


def test_an_empty_database_has_a_look_too(pgqueue: Invoke) -> None:
    result = pgqueue("top", "--once")
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if line.startswith("no ")] == [
        "no queues",
        "no workers",
        "no failures",
    ]


class Terminal:
    """`pgqueue top` on a pseudo-terminal."""

    def __init__(self, dsn: str):
        self._fd, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RUN, "top", "--interval", "0.1"],
            cwd=REPOSITORY,
            env={
                **NOT_CONFIGURED,
                "PYTHONPATH": str(REPOSITORY),
                "PGQUEUE_DSN": dsn,
                "TERM": "xterm",
                "COLUMNS": "200",
                "LINES": "60",
            },
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)
        self.shown = ""

    def wait_for(self, text: str, timeout: float = 30.0) -> None:
        """Reads until a text has been shown."""
        deadline = time.monotonic() + timeout
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} was not shown:\n{self.shown[-3000:]}"
            try:
                self.shown += os.read(self._fd, 65536).decode(errors="replace")
            except OSError:  # it has ended
                raise AssertionError(f"{text!r} was not shown, it has ended:\n{self.shown[-3000:]}") from None

    def press(self, keys: bytes) -> None:
        """Presses keys."""
        os.write(self._fd, keys)

    def end(self) -> int:
        """Reads to the end, for who writes to a terminal waits for its reader; the exit code."""
        with contextlib.suppress(OSError):
            while more := os.read(self._fd, 65536):
                self.shown += more.decode(errors="replace")
        return self.process.wait(30)

    def close(self) -> None:
        """Ends it in any case."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(database: str) -> Iterator[Terminal]:
    """A terminal in which queues are watched."""
    watching = Terminal(database)
    yield watching
    watching.close()


def how_it_ends(terminal: Terminal, how: str) -> None:
    """By a key, or by a signal."""
    match how:
        case "q":
            terminal.press(b"xq")
        case "ctrl-c":
            terminal.process.send_signal(signal.SIGINT)
        case "sigterm":
            terminal.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("how", ["q", "ctrl-c", "sigterm"])
def test_a_terminal_shows_what_changes_until_somebody_ends_it(
    how: str, terminal: Terminal, connection: Session
) -> None:
    terminal.wait_for("no queues")
    assert "\x1b[?1049h" in terminal.shown  # a screen of its own
    enqueue(connection, queue="fresh")
    run(connection, calls.count_depths())
    terminal.wait_for("fresh")
    how_it_ends(terminal, how)
    assert terminal.end() == 0
    assert "\x1b[?1049l" in terminal.shown  # what was there before is back
    assert "Traceback" not in terminal.shown


def test_a_terminal_survives_a_connection_that_is_lost(terminal: Terminal, connection: Session) -> None:
    terminal.wait_for("no queues")
    ended = connection.execute(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        " where datname = current_database() and application_name = 'pgqueue cli'"
    ).fetchone()
    assert ended == (1,)
    terminal.wait_for("the database cannot be asked, what follows is old")
    enqueue(connection, queue="fresh")
    run(connection, calls.count_depths())
    terminal.wait_for("fresh")
    terminal.press(b"q")
    assert terminal.end() == 0
