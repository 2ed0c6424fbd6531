"""`pgqueue demo` as a real process, and its audit, which has to find what is wrong when something is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from orders.demo.audit import Facts, JobRow, Journal, Killed, LetterRow, OrderRow, audit
from orders.demo.screen import print_claims
from orders.demo.sink import Mail
from orders.intake import Malformed
from orders.service import ARTICLES, OrderRequest

import pgqueue
from pgqueue import Job
from pgqueue.cli import demo as demo_command
from pgqueue.errors import ConfigurationError
from tests.support import wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
RUN = [sys.executable, "-W", "error", "-c", "from pgqueue.cli import main; main()"]
NOT_CONFIGURED = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PGQUEUE_", "PG", "ORDERS_")) and name != "DATABASE_URL"
} | {"PYTHONPATH": str(REPOSITORY)}
DEADLINE = 120.0
LINES = ("--orders", "30")
VARYING = ("goods off the shelf", "mails in the mailbox", "due times of schedules", "jobs of orders")
"""The claims whose number is another one in each run."""


class Demo:
    """A running `pgqueue demo`."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*RUN, "demo", *options],
            cwd=folder,
            env=NOT_CONFIGURED | {"TMPDIR": str(folder)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._watchdog = threading.Timer(DEADLINE, self.process.kill)
        self._watchdog.start()

    def until(self, text: str) -> None:
        """Reads stderr on to the line that contains `text`."""
        assert self.process.stderr is not None
        seen = []
        for line in self.process.stderr:
            if text in line:
                return
            seen.append(line)
        raise AssertionError(f"ended without {text!r}:\n{''.join(seen)}")

    def finish(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate()
        return self.process.returncode, out, err

    def close(self) -> None:
        self._watchdog.cancel()
        with self.process:
            self.process.terminate()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's user can reach, unlike pytest's own when we are root; in memory if possible."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
    with tempfile.TemporaryDirectory(prefix="pgqueue-test-", dir=memory) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Demo]]:
    """Starts `pgqueue demo`; ends what is still running after the test."""
    started: list[Demo] = []

    def one(*options: str, **environment: str) -> Demo:
        started.append(Demo(folder, *options, **environment))
        return started[-1]

    yield one
    for demo in started:
        demo.close()


def processes_in(folder: Path) -> list[str]:
    """Command lines of processes that were started for the demo, the server's and the workers'."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if f"TMPDIR={folder}".encode() in environment and command:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


# The show ---------------------------------------------------------------------------------------------


@on_linux
def test_the_demo_starts_what_it_needs_keeps_what_it_claims_and_leaves_nothing_behind(
    folder: Path, start: Callable[..., Demo]
) -> None:
    code, table, progress = start(*LINES, "--seed", "7").finish()
    assert code == 0, table + progress
    rows = re.findall(r"^(ok|no)  +(\S.*?\S)   +(\S.*?\S?)   +(\S.*?)\s*$", table, re.MULTILINE)
    found = {what: number for _, what, number, _ in rows}
    assert {mark for mark, *_ in rows} == {"ok"}
    assert found | dict.fromkeys(VARYING, "") == {
        "lines of orders.csv": "30",
        "orders placed": "24",
        "transactions rolled back": "1",
        "orders sent twice": "1",
        "payments declined": "1",
        "orders confirmed": "23",
        "goods off the shelf": "",
        "mails in the mailbox": "",
        "worker processes killed": "1 (kill -9)",
        "dead letters replayed": "1",
        "due times of schedules": "",
        "jobs of orders": "",
    }
    assert "nothing was lost, nothing was done twice" in table
    assert "--seed 7" in table
    for line in (14, 18, 22, 26):
        assert f"line {line} refused: " in progress
    assert "kill -9" in progress
    assert "died: signal SIGKILL" in progress
    assert list(folder.iterdir()) == []
    assert processes_in(folder) == []


def test_a_lost_row_and_a_lost_job_are_found_and_other_databases_are_left_alone(
    server: str, start: Callable[..., Demo]
) -> None:
    names = "select datname from pg_database order by 1"
    with psycopg.connect(server, autocommit=True) as connection:
        before = connection.execute(names).fetchall()
        demo = start(*LINES, PGQUEUE_DSN=server)
        demo.until("created database")
        demo.until("here come")
        ((name,),) = set(connection.execute(names).fetchall()) - set(before)
        with psycopg.connect(make_conninfo(server, dbname=name), autocommit=True) as saboteur:

            def take(statement: str) -> Any:
                return wait_until(
                    lambda: saboteur.execute(statement.encode()).fetchone(), DEADLINE, statement
                )

            (order,) = take(
                "delete from confirmations where order_id = (select min(order_id) from confirmations)"
                " returning order_id"
            )
            # A declined payment that waits for its next attempt.
            (declined,) = take("delete from pgqueue.scheduled_jobs returning args ->> 'order_id'")
        code, table, progress = demo.finish()
        assert code == 1, table + progress
        assert f"orders confirmed: confirmation lost: {order}" in table
        assert declined in table
        assert re.search(r"\d of 12 claims do not hold", table)
        assert connection.execute(names).fetchall() == before


@on_linux
def test_ctrl_c_stops_the_workers_and_drops_the_database(
    folder: Path, server: str, start: Callable[..., Demo]
) -> None:
    demo = start(PGQUEUE_DSN=server)
    demo.until("here come 500 orders")
    demo.process.send_signal(signal.SIGINT)
    code, table, progress = demo.finish()
    assert (code, table) == (130, "")
    assert progress.rstrip().endswith("error: interrupted")
    assert "Traceback" not in progress
    assert processes_in(folder) == []
    with psycopg.connect(server) as connection:
        left = connection.execute("select from pg_database where datname like 'pgqueue_demo_%'").fetchall()
    assert left == []


def test_a_role_that_may_not_create_a_database_is_told_so(server: str, start: Callable[..., Demo]) -> None:
    role = f"pgqueue_test_{os.getpid()}_poor"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"create role {role} login password 'poor'".encode())
        try:
            dsn = make_conninfo(server, user=role, password="poor")
            code, table, progress = start(PGQUEUE_DSN=dsn).finish()
        finally:
            connection.execute(f"drop role {role}".encode())
    assert (code, table) == (1, "")
    assert "grant it CREATEDB" in progress


def test_the_example_is_looked_for_in_the_package_then_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "pgqueue"
    monkeypatch.setattr(pgqueue, "__file__", str(package / "__init__.py"))
    with pytest.raises(ConfigurationError, match="not installed completely"):
        demo_command.find_examples()
    for folder in (tmp_path / "examples", package / "_data" / "examples"):
        (folder / "orders").mkdir(parents=True)
        (folder / "orders" / "orders.csv").touch()
        assert demo_command.find_examples() == folder


# The audit --------------------------------------------------------------------------------------------


def order(reference: str, *, card: str = "tok_4242", quantity: int = 2) -> OrderRequest:
    return OrderRequest(reference, "Ada", f"{reference}@shop.example", "HONEY", quantity, card)


def journal() -> Journal:
    """Four orders: one that is paid, one that fails first, two that are declined, of which one is replayed."""
    placed = [
        order("A-1"),
        order("A-2", card="tok_0119"),
        order("A-3", card="tok_9995"),
        order("A-4", card="tok_9995"),
    ]
    return Journal(
        lines=7,
        placed={request.reference: request for request in placed},
        rolled_back={"A-5": Job(50, created=True)},
        repeated={"A-1": (Job(1, created=True), Job(1, created=False))},
        refused={8: Malformed("an empty line")},
        payments={request.reference: Job(n, created=True) for n, request in enumerate(placed, start=1)},
        killed=Killed(4711, frozenset({1, 21})),
        replayed="A-4",
        worker_exit=0,
    )


def mail(job: int, reference: str) -> Mail:
    message = EmailMessage()
    message["Message-ID"] = f"<pgqueue.{job}@orders.example>"
    message["Subject"] = f"Your order {reference}"
    return Mail("orders@orders.example", (f"{reference}@shop.example",), message)


def facts() -> Facts:
    """What is there when all went well; the mail of job 21 was sent by a process that was killed, too."""
    paid = ("A-1", "A-2", "A-4")
    jobs = [JobRow(n, "validate_payment", "completed", 1, 0) for n in (1, 2, 4)]
    jobs[1] = replace_row(jobs[1], attempt=2)
    jobs.append(JobRow(3, "validate_payment", "dead", 3, 0))
    jobs += [JobRow(10 + n, "reserve_inventory", "completed", 1, 0) for n in range(1, 4)]
    jobs += [JobRow(20 + n, "send_confirmation", "completed", 1, 0) for n in range(1, 4)]
    jobs[7] = replace_row(jobs[7], attempt=2, crashes=1)
    jobs.append(JobRow(40, "alert_stuck_orders", "completed", 1, 0))
    return Facts(
        orders=[OrderRow(name, "confirmed", "HONEY", 2, 1120) for name in paid]
        + [OrderRow("A-3", "pending", "HONEY", 2, 1120)],
        payments=dict.fromkeys(paid, 1120),
        confirmations=[(name, f"<pgqueue.{20 + n}@orders.example>") for n, name in enumerate(paid, start=1)],
        stock={article.sku: article.stock - 6 * (article.sku == "HONEY") for article in ARTICLES},
        runs=[40],
        jobs=jobs,
        letters=[LetterRow(3, "validate_payment", "exhausted", 3, "A-3")],
        mails=[mail(20 + n, name) for n, name in enumerate(paid, start=1)] + [mail(21, "A-1")],
    )


def replace_row(row: Any, **changes: Any) -> Any:
    return row._replace(**changes)


def problems(journal: Journal, facts: Facts) -> list[str]:
    return [f"{claim.what}: {problem}" for claim in audit(journal, facts) for problem in claim.wrong]


def test_the_audit_finds_nothing_when_nothing_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(journal(), facts()) == []
    print_claims(audit(journal(), facts()))
    printed = capsys.readouterr().out
    assert "4 (1 sent again)" in printed
    assert max(map(len, printed.splitlines())) <= 120


def edit(**changes: Callable[[Any], Any]) -> Callable[[Facts], Facts]:
    return lambda facts: replace(
        facts, **{name: change(getattr(facts, name)) for name, change in changes.items()}
    )


@pytest.mark.parametrize(
    ("sabotage", "found"),
    [
        (edit(orders=lambda rows: rows[1:]), "orders placed: order lost: A-1"),
        (edit(orders=lambda rows: [*rows, rows[0]._replace(id="A-9")]), "orders placed: order too many: A-9"),
        (edit(orders=lambda rows: [*rows, rows[0]._replace(id="A-5")]), "rolled back, but there: A-5"),
        (
            edit(jobs=lambda rows: [*rows, JobRow(50, "validate_payment", "ready", 0, 0)]),
            "rolled back, but there: A-5, job 50",
        ),
        (
            edit(orders=lambda rows: [rows[0]._replace(status="paid"), *rows[1:]]),
            "status of A-1: paid, expected confirmed",
        ),
        (edit(payments=lambda paid: {**paid, "A-1": 1}), "amount of A-1: 1, expected 1120"),
        (edit(payments=lambda _: {"A-1": 1120, "A-2": 1120}), "payment lost: A-4"),
        (edit(payments=lambda paid: {**paid, "A-3": 1120}), "declined, yet pending: A-3"),
        (edit(confirmations=lambda rows: rows[:-1]), "orders confirmed: confirmation lost: A-4"),
        (edit(confirmations=lambda rows: [*rows, rows[0]]), "orders confirmed: confirmation too many: A-1"),
        (edit(stock=lambda stock: {**stock, "HONEY": 992}), "stock of HONEY: 992, expected 994"),
        (edit(stock=lambda stock: {**stock, "HONEY": 996}), "stock of HONEY: 996, expected 994"),
        (edit(letters=lambda _: []), "dead letter of order lost: A-3"),
        (
            edit(letters=lambda rows: [rows[0]._replace(reason="crashed", attempt=2)]),
            "validate_payment of A-3 is dead after 2 attempts: crashed",
        ),
        (edit(mails=lambda mails: mails[1:3]), "mail lost: <pgqueue.21@orders.example>"),
        (edit(mails=lambda mails: [*mails, mail(99, "A-1")]), "mail too many: <pgqueue.99@orders.example>"),
        (edit(mails=lambda mails: [*mails, mails[0]]), "<pgqueue.21@orders.example> was sent 3 times"),
        (edit(mails=lambda mails: [*mails, mails[1]]), "<pgqueue.22@orders.example> was sent 2 times"),
        (
            edit(mails=lambda mails: [replace(mails[0], recipients=("x@y.example",)), *mails[1:]]),
            "the mail for A-1 went to",
        ),
        (edit(jobs=lambda rows: rows[1:]), "job 1 of the killed process is gone"),
        (
            edit(jobs=lambda rows: [rows[0]._replace(state="running"), *rows[1:]]),
            "jobs of orders: validate_payment running: 1, expected 0",
        ),
        (
            edit(jobs=lambda rows: [*rows, JobRow(31, "reserve_inventory", "completed", 1, 0)]),
            "jobs of orders: reserve_inventory completed: 4, expected 3",
        ),
        (
            edit(jobs=lambda rows: [rows[0]._replace(attempt=2), *rows[1:]]),
            "job 1, validate_payment: 2 attempts, 1 are explained",
        ),
        (
            edit(jobs=lambda rows: [rows[0], rows[1]._replace(attempt=1), *rows[2:]]),
            "job 2, validate_payment: 1 attempts, 2 are explained",
        ),
        (edit(runs=lambda _: []), "job of a due time lost: 40"),
        (edit(runs=lambda jobs: [*jobs, *jobs]), "job of a due time too many: 40"),
        (edit(runs=lambda jobs: [*jobs, None]), "job of a due time too many: None"),
        (
            edit(jobs=lambda rows: [*rows[:-1], rows[-1]._replace(state="ready")]),
            "job 40, alert_stuck_orders, is ready",
        ),
    ],
)
def test_the_audit_finds(sabotage: Callable[[Facts], Facts], found: str) -> None:
    reported = problems(journal(), sabotage(facts()))
    assert any(found in problem for problem in reported), reported


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"lines": 8}, "lines accounted for: 7, expected 8"),
        (
            {"repeated": {"A-1": (Job(1, created=True), Job(9, created=True))}},
            "A-1 made a second job, 9",
        ),
        ({"killed": None}, "no worker process was killed"),
        ({"replayed": None}, "no dead letter was replayed"),
        ({"worker_exit": 1}, "exit code of the workers: 1, expected 0"),
    ],
)
def test_the_audit_holds_the_scene_to_its_journal(changes: dict[str, Any], found: str) -> None:
    reported = problems(replace(journal(), **changes), facts())
    assert any(found in problem for problem in reported), reported
