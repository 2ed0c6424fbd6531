"""Starts real workers, and reads what they log and what their handlers did.

    Worker    a `pgqueue worker` process with its children: signals, its JSON log, its end
    History   what handlers wrote, a line each, into a file outside of the database
    Rows      what the database says of jobs and workers

Nothing here sleeps for a time in the hope that it is long enough: everything waits for a line or a row.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row, scalar_row

from pgqueue import calls
from pgqueue.drivers import run
from tests.support import wait_until

T = TypeVar("T")
Row = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 15.0
"""Seconds that an event may take before a test gives up: bounds that are promised are asserted on their own."""

_RUN = "from pgqueue.cli import main; main()"
_ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PGQUEUE_", "PG")) and name != "DATABASE_URL"
}
QUICK = {
    "PGQUEUE_LEASE": "3",
    "PGQUEUE_BEAT": "0.3",
    "PGQUEUE_UPKEEP_INTERVAL": "0.6",
    "PGQUEUE_LOG_FORMAT": "json",
}
"""Times at about a seventh of the defaults, so that a recovery is waited for in a second or three."""
BEHIND_A_POOLER = "PGQUEUE_TEST_POOLER" in os.environ
"""Whether the databases of tests are: then a session of the server is nobody's own."""
if BEHIND_A_POOLER:
    QUICK["PGQUEUE_POLL_INTERVAL"] = (
        "0.1"  # the default once a second would be most of the time that tests take
    )


# What handlers did ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A line of the history. `at` is on the clock of `time.monotonic()`, which all processes share."""

    at: float
    pid: int
    what: str
    job: int
    attempt: int
    said: dict[str, Any]


class History:
    """What handlers wrote into the file of a folder, in the order of writing."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._path = folder / "history"
        self._read = 0
        self._entries: list[Entry] = []
        folder.mkdir(parents=True, exist_ok=True)

    def entries(self, what: str | None = None, *jobs: int) -> list[Entry]:
        """The entries so far, of one kind and of some jobs if these are given."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    self._entries.append(Entry(**json.loads(line)))
        return [
            entry
            for entry in self._entries
            if (what is None or entry.what == what) and (not jobs or entry.job in jobs)
        ]

    def wait_for(self, what: str, *jobs: int, count: int = 1, timeout: float = PATIENCE) -> list[Entry]:
        """Waits until there are `count` entries of a kind (with `jobs`: of these), and returns them."""
        wait_until(
            lambda: len(self.entries(what, *jobs)) >= count,
            timeout,
            f"{what!r} {count} times in the history of {jobs or 'all jobs'}",
        )
        return self.entries(what, *jobs)

    def starts_by_job(self) -> dict[int, int]:
        """How often each job has started."""
        starts: dict[int, int] = {}
        for entry in self.entries("start"):
            starts[entry.job] = starts.get(entry.job, 0) + 1
        return starts

    def most_at_once(self, jobs: Iterable[int] | None = None) -> int:
        """How many jobs (of `jobs`) ran at the same time at the most, by their starts and ends."""
        chosen = None if jobs is None else set(jobs)
        now = most = 0
        for entry in self.entries():
            if chosen is not None and entry.job not in chosen:
                continue
            now += {"start": 1, "end": -1}.get(entry.what, 0)
            most = max(most, now)
        return most

    def open(self, *gates: str) -> None:
        """Lets the handlers go that wait at these gates (see `tests/worker/tasks.py`)."""
        for gate in gates:
            (self.folder / f"gate-{gate}").touch()


# What the database says -------------------------------------------------------------------------------


class Rows:
    """What the database says, over a connection of its own in autocommit."""

    def __init__(self, dsn: str):
        self.dsn = dsn
        self.connection = psycopg.connect(dsn, autocommit=True)

    def close(self) -> None:
        """Closes the connection."""
        self.connection.close()

    def all(self, query: str, *values: Any) -> list[Row]:
        """The rows of a query."""
        return self.connection.cursor(row_factory=dict_row).execute(query, values).fetchall()  # type: ignore[call-overload]

    def value(self, query: str, *values: Any) -> Any:
        """The first column of the first row; None when there is none."""
        return self.connection.cursor(row_factory=scalar_row).execute(query, values).fetchone()  # type: ignore[call-overload]

    def wait_until(self, predicate: Callable[[], T], timeout: float = PATIENCE, message: str = "rows") -> T:
        """`tests.support.wait_until` at a hundred looks a second: the server has better things to do."""

        def look() -> T:
            time.sleep(0.01)
            return predicate()

        return predicate() or wait_until(look, timeout, message)

    def enqueue(self, task: str, args: str = "{}", **options: Any) -> int:
        """Enqueues by name, as another language would: nothing is checked by Python."""
        return run(self.connection, calls.enqueue(task=task, args=args, **options)).id

    def job(self, id: int) -> Row:
        """A job in whatever state."""
        (row,) = self.all("select * from pgqueue_bi.jobs where id = %s", id)
        return row

    def states(self, *ids: int) -> list[str]:
        """The states of jobs, in the order of `ids`."""
        found = {row["id"]: row["state"] for row in self.all("select id, state from pgqueue_bi.jobs")}
        return [found[id] for id in ids]

    def wait_for(self, state: str, *ids: int, timeout: float = PATIENCE) -> list[Row]:
        """Waits until all of the jobs are in a state; returns them in the order of `ids`."""
        query = "select id from pgqueue_bi.jobs where state = %s and id = any(%s)"
        self.wait_until(
            lambda: len(self.all(query, state, list(ids))) == len(ids),
            timeout,
            f"{state}: {len(ids)} jobs, {ids[:5]} …",
        )
        return [self.job(id) for id in ids]

    def letter(self, id: int) -> Row:
        """Waits for a dead letter, and returns it."""
        self.wait_for("dead", id)
        columns = "reason, error, message, errors, attempt, max_attempts, crashes"
        (row,) = self.all(f"select {columns} from pgqueue.dead_letters where id = %s", id)
        return row

    def bring_forward(self, id: int) -> None:
        """Makes a scheduled job due: the row is moved, not the clock."""
        moved = self.connection.execute(
            "update pgqueue.scheduled_jobs set run_at = clock_timestamp() + interval '20 ms' where id = %s",
            [id],
        )
        assert moved.rowcount == 1, f"job {id} is not scheduled"


# A worker ---------------------------------------------------------------------------------------------


_HARMLESS = ("error ignored in rollback", "query cancellation interrupted (CancelledError)")
"""What psycopg says of a connection that was lost, or that it closes because its call was cancelled, twice, by a stop."""


def is_noise(line: Row) -> bool:
    """Whether it is what a library says and nobody expects."""
    return line.get("event") == "stdlib.logged" and not line["message"].startswith(_HARMLESS)


class Worker:
    """A `pgqueue worker` process and its children.

    Its log is read as it comes. Lines that are no JSON (an interpreter's complaint), and what a library says that
    nobody asked (asyncio of a task whose error nobody saw), are kept in `noise`, and fail the test at its end unless
    the test takes them out.
    """

    def __init__(
        self,
        dsn: str | None,
        folder: Path,
        *arguments: str,
        app: str = "tests.worker.tasks:app",
        cwd: Path = REPOSITORY,
        code: str = _RUN,
        environment: Mapping[str, str] = MappingProxyType({}),
        **settings: Any,
    ):
        """`settings` become PGQUEUE_* variables, over `QUICK`; `code` is run instead of the command; `environment` is
        added to that of its processes."""
        given = {f"PGQUEUE_{name.upper()}": str(value) for name, value in settings.items()}
        environment = _ENVIRONMENT | QUICK | given | {**environment}
        environment |= {"TESTS_WORKER_FOLDER": str(folder), "PYTHONPATH": str(REPOSITORY)}
        environment["PYTHONUNBUFFERED"] = "1"  # as in most containers: a line of several writes is torn there
        if dsn is not None:
            environment["PGQUEUE_DSN"] = dsn
        self._heard = threading.Condition()
        self.log: list[Row] = []
        self.noise: list[str] = []
        self.started_at = time.monotonic()
        self.ended_at: float | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, "worker", app, *arguments],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The supervisor."""
        return self.process.pid

    def events(self, event: str, **fields: Any) -> list[Row]:
        """The log lines of an event so far, those with these fields."""
        with self._heard:
            return [
                line
                for line in self.log
                if line.get("event") == event
                and all(line.get(name) == value for name, value in fields.items())
            ]

    def wait_for(self, event: str, *, count: int = 1, timeout: float = PATIENCE, **fields: Any) -> list[Row]:
        """Waits until an event was logged `count` times, and returns those lines."""
        deadline = time.monotonic() + timeout
        with self._heard:
            while len(found := self.events(event, **fields)) < count:
                left = deadline - time.monotonic()
                if left <= 0 or self.ended_at is not None:
                    why = "the worker has ended" if self.ended_at is not None else f"waited {timeout:g} s"
                    raise AssertionError(
                        f"{why}: {event} {fields} {len(found)} times of {count}\n{self.told()}"
                    )
                self._heard.wait(left)
        return found

    def wait_until_started(self, processes: int = 1) -> Worker:
        """Waits until so many children have started, which takes longest of all on a busy machine."""
        self.wait_for("worker.started", count=processes, timeout=4 * PATIENCE)
        return self

    def children(self) -> dict[int, int]:
        """Worker id: process id, of the children that have started and are alive."""
        return {
            line["worker"]: line["pid"] for line in self.events("worker.started") if is_alive(line["pid"])
        }

    def send(self, signum: int) -> None:
        """Sends a signal to the supervisor."""
        self.process.send_signal(signum)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Sends one more signal that stops, once the one before it has been heard."""
        heard = len(self.events("worker.stopping"))
        self.send(signum)
        self.wait_for("worker.stopping", count=heard + 1)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Waits for the end of the supervisor and of its log; returns the exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s\n{self.told()}") from None
        self._reader.join(5)
        return code

    def kill(self) -> None:
        """SIGKILL for the supervisor and every child, as when the machine is lost."""
        children = [line["pid"] for line in self.events("worker.started")]
        children += children_of(self.pid)
        if self.process.poll() is None:
            self.process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(5)
        if self.process.stderr is not None and not self._reader.is_alive():
            self.process.stderr.close()

    def told(self) -> str:
        """The log, for people."""
        with self._heard:
            lines = [
                " ".join(f"{name}={value}" for name, value in line.items() if name != "level")
                for line in self.log
            ]
            return "\n".join([f"--- worker {self.pid}", *lines[-200:], *self.noise[-100:]])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                try:
                    parsed = json.loads(line)
                except ValueError:
                    self.noise.append(line.rstrip())
                else:
                    self.log.append(parsed if isinstance(parsed, dict) else {"event": line})
                    if is_noise(self.log[-1]):
                        self.noise.append(line.rstrip())
                self._heard.notify_all()
        with self._heard:
            self.ended_at = time.monotonic()
            self._heard.notify_all()


async def until(predicate: Callable[[], Any], timeout: float = PATIENCE) -> None:
    """Waits inside an event loop until `predicate` is true; raises TimeoutError."""
    async with asyncio.timeout(timeout):
        while not predicate():  # noqa: ASYNC110 - what it looks at is not of this loop
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[float]:
    """Stops a process for the length of a block; gives the moment from which it does nothing any more."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: _state_of(pid) in (b"T", None), PATIENCE, f"process {pid} to stand still")
        yield time.monotonic()
    finally:
        os.kill(pid, signal.SIGCONT)


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return _state_of(pid) not in (b"Z", b"X")


def _state_of(pid: int) -> bytes | None:
    """The letter of `/proc/<pid>/stat`; None where that cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return None


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_bytes().rpartition(b")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found
