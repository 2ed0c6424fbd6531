"""What every measurement uses: databases, workers, alternating rounds, and results."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import tuple_row

from pgqueue.bench.tasks import STAMP
from pgqueue.errors import PgqueueError

TEXT = "x" * 100
"""What a no-op job carries beside a number: 130 bytes of jsonb together."""
CALM = 0.1
"""The share of all processors that may be in use when a clock starts."""
PATIENCE = 120.0
"""Seconds that a measurement waits for its next event before it gives up."""


ASLEEP = "pgqueue.sleepers as s where s.slept_at > clock_timestamp() - interval '25 seconds'"
"""Who is asleep: a row may outlive its sleep."""

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


# Results ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line: our figure beside its ceiling, both of the same run.

    `ratio` is better when it is larger, whatever the unit. Without a `bar` the line is for information.
    """

    name: str
    ours: float
    ceiling: float | None
    unit: str
    ratio: float | None
    bar: float | None = None
    note: str = ""
    rounds: Mapping[str, list[float]] = field(default_factory=dict)
    """Every round of each side, in the order of measurement."""

    @property
    def verdict(self) -> str:
        """ok, MISSED, or nothing for a line without a bar."""
        if self.bar is None or self.ratio is None:
            return ""
        return "ok" if self.ratio >= self.bar else "MISSED"

    def as_json(self) -> dict[str, Any]:
        """The line for programs."""
        return asdict(self) | {"verdict": self.verdict or None}


def compared(
    name: str,
    ours: list[float],
    ceiling: list[float],
    *,
    bar: float | None = None,
    note: str = "",
    unit: str = "/s",
    of: Callable[[list[float]], float] = max,
) -> Result:
    """A rate beside its ceiling, each the best of its rounds, or what `of` says of them."""
    best, limit = of(ours), of(ceiling)
    return Result(
        name=name,
        ours=best,
        ceiling=limit,
        unit=unit,
        ratio=best / limit,
        bar=bar,
        note=note,
        rounds={"ours": ours, "ceiling": ceiling},
    )


def below(
    name: str, value: float, limit: float, *, unit: str, bar: float | None = 1.0, note: str = ""
) -> Result:
    """A figure that must not be larger than its limit; the ratio is limit to figure."""
    ratio = limit / value if value > 0 else 1.0
    return Result(name=name, ours=value, ceiling=limit, unit=unit, ratio=ratio, bar=bar, note=note)


# The bench --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Bench:
    """A server to measure on, and how large the measurements are.

    `dsn` is a database from which others are made and dropped, `install` brings a new one to the newest
    schema. `pgbench` is PostgreSQL's own load generator, where there is one. Before each clock starts, the bench waits
    up to `calm` seconds for everybody else to leave the processor.
    """

    dsn: str
    install: Callable[[str], object]
    tell: Callable[[str], None]
    quick: bool = False
    scale: float = 1.0
    calm: float = 0.0
    pgbench: Path | None = None
    loads: dict[str, float] = field(default_factory=dict)
    """The load average of the machine when each measurement began."""

    def __post_init__(self) -> None:
        self._prefix = f"pgqueue_bench_{os.getpid()}"
        self._numbers = itertools.count(1)
        self._has_template = False
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._admin = self._cleanup.enter_context(psycopg.connect(self.dsn, autocommit=True))
        folder = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="pgqueue-bench-"))
        self.folder = Path(folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._cleanup:
            if self._has_template:
                self._command("drop database if exists {} with (force)", self._prefix)

    # Sizes

    def size(self, full: int, quick: int | None = None) -> int:
        """How many of something: `full`, or `quick` of a quick run, times the scale."""
        chosen = quick if self.quick and quick is not None else full
        return max(1, round(chosen * self.scale))

    @property
    def rounds(self) -> int:
        """How often each side is measured."""
        return 3 if self.scale >= 0.1 else 1

    # The machine

    def begin(self, name: str) -> None:
        """Notes the load of the machine, which is others' work, and warns when it is high."""
        self.wait_for_calm()
        load, cores, busy = os.getloadavg()[0], os.cpu_count() or 1, busy_share(0.5)
        if load > 0.5 * cores and not self.loads:
            self.tell(
                "warning: this machine has other work to do; ratios suffer where a worker needs its cores"
            )
        self.loads[name] = load
        self.tell(f"{name}: load average {load:.2f}, {busy:.0%} of {cores} cores in use by others")

    def machine(self) -> dict[str, str]:
        """What was measured on, without a date or a name."""
        wanted = ("fsync", "synchronous_commit", "shared_buffers", "max_wal_size", "wal_level")
        shown = ", ".join(f"current_setting('{name}')" for name in ("server_version", *wanted))
        row = self._admin.execute(sql.SQL("select ") + sql.SQL(shown)).fetchone()
        assert row is not None
        implementation = psycopg.pq.__impl__
        return {
            "cores": str(os.cpu_count()),
            "PostgreSQL": str(row[0]).split()[0],
            **{name: str(value) for name, value in zip(wanted, row[1:], strict=True)},
            "Python": ".".join(map(str, sys.version_info[:3])),
            "psycopg": f"{psycopg.__version__} ({implementation})",
        }

    # Databases

    @contextlib.contextmanager
    def database(self, **settings: str) -> Iterator[str]:
        """The DSN of a fresh database with the schema, gone at the end. `settings` hold for its sessions."""
        if not self._has_template:
            self._has_template = True
            self._command("create database {}", self._prefix)
            self.install(self._dsn_for(self._prefix))
        name = f"{self._prefix}_{next(self._numbers)}"
        self._command("create database {} template {}", name, self._prefix)
        try:
            for setting, value in settings.items():
                text = sql.SQL("alter database {} set {} = {}")
                self._admin.execute(text.format(sql.Identifier(name), sql.SQL(setting), sql.Literal(value)))
            yield self._dsn_for(name)
        finally:
            self._command("drop database if exists {} with (force)", name)

    def settle(self) -> None:
        """Writes out what earlier work left behind, so that no side pays for another's, and waits for calm."""
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            self._admin.execute("checkpoint")
        self.wait_for_calm()

    def wait_for_calm(self) -> None:
        """Until the processors were nearly idle for a second, at most `calm` seconds."""
        deadline = time.monotonic() + self.calm
        while time.monotonic() < deadline and busy_share(1.0) > CALM:
            pass

    def _dsn_for(self, database: str) -> str:
        return make_conninfo(self.dsn, dbname=database)

    def _command(self, text: str, *names: str) -> None:
        self._admin.execute(sql.SQL(text).format(*map(sql.Identifier, names)))

    # Sides that alternate

    def alternate(
        self, sides: Mapping[str, Callable[[], float]], rounds: int | None = None
    ) -> dict[str, list[float]]:
        """Measures each side in turn, A B then B A; returns the figures of each."""
        figures: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds or self.rounds):
            order = list(sides) if number % 2 == 0 else list(sides)[::-1]
            for name in order:
                figures[name].append(sides[name]())
                self.tell(f"  {name}: {figures[name][-1]:,.0f}/s")
        return figures

    # Workers and their stamps

    def worker(
        self, dsn: str, *options: str, processes: int = 1, settings: Mapping[str, str] | None = None
    ) -> Worker:
        """A worker process with the default settings but for `options` of its command and `settings`."""
        log = self.folder / f"worker-{next(self._numbers)}.log"
        return Worker(dsn, options, settings or {}, log=log, folder=self.folder, processes=processes)

    def stamps(self) -> Stamps:
        """A named pipe that jobs tell when they started."""
        return Stamps(self.folder / f"stamps-{next(self._numbers)}")


def busy_share(seconds: float) -> float:
    """How much of all processors was in use over some seconds, 0 to 1; 0 where the system does not tell."""
    looks = []
    for pause in (seconds, 0.0):
        try:
            values = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return 0.0
        looks.append((sum(values) - values[3] - values[4], sum(values)))
        time.sleep(pause)
    (busy, total), (busy_then, total_then) = looks
    return (busy_then - busy) / max(1, total_then - total)


def connect(dsn: str) -> Connection:
    """A connection in autocommit."""
    return psycopg.connect(dsn, autocommit=True, row_factory=tuple_row)


def scalar(connection: Connection, query: str, *values: Any) -> Any:
    """The first value of the first row, or None."""
    row = connection.execute(query, values).fetchone()
    return row[0] if row else None


def wait_until(predicate: Callable[[], object], what: str, *, pause: float = 0.02) -> None:
    """Looks again and again. Raises `PgqueueError` when it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not predicate():
        if time.monotonic() > deadline:
            raise PgqueueError(f"the bench waited {PATIENCE:g} s for {what}")
        time.sleep(pause)


def feed(connection: Connection, task: str, jobs: int, args: str | None = None) -> None:
    """Enqueues no-op jobs, made and inserted on the server."""
    while jobs > 0:
        batch = min(jobs, 5000)
        connection.execute(
            "select pgqueue.enqueue_many((select jsonb_agg(jsonb_build_object('task', %s::text, 'args', %s::jsonb))"
            " from generate_series(1, %s)))",
            (task, args or payload(), batch),
        )
        jobs -= batch


def payload() -> str:
    """The args of a no-op job as JSON."""
    return f'{{"n": 1, "s": "{TEXT}"}}'


class Worker:
    """`pgqueue worker` in a process of its own; a `with` block starts it, waits until it sleeps, and stops it."""

    def __init__(
        self,
        dsn: str,
        options: tuple[str, ...],
        settings: Mapping[str, str],
        *,
        log: Path,
        folder: Path,
        processes: int,
    ):
        self._dsn = dsn
        self._command = [sys.executable, "-c", "from pgqueue.cli import main; main()", "worker"]
        self._command += ["pgqueue.bench.tasks:app", "--processes", str(processes), *options]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")}
        inherited.pop("DATABASE_URL", None)
        wanted = {f"PGQUEUE_{name.upper()}": value for name, value in settings.items()}
        self._environment = inherited | wanted | {"PGQUEUE_DSN": dsn}
        self._processes = processes
        self._log = log
        self._folder = folder

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, stderr=log
            )
        try:
            self._wait_until_idle()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            self._process.send_signal(signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
                return

    def hurry(self) -> None:
        """Ends it without waiting for its jobs: two signals, so that it cancels and releases them."""
        self._process.send_signal(signal.SIGTERM)
        time.sleep(0.2)

    def _wait_until_idle(self) -> None:
        with connect(self._dsn) as connection:
            self.wait_until_registered(connection)
            if self._environment.get("PGQUEUE_WAKE") != "poll":
                self.wait_until_asleep(connection)

    def wait_until_registered(self, connection: Connection) -> None:
        """Until every process has a row."""
        self._wait(connection, "select count(*) from pgqueue.workers", "the worker's start")

    def wait_until_asleep(self, connection: Connection) -> None:
        """Until every process sleeps, ready to be notified."""
        query = f"select count(distinct worker_id) from {ASLEEP}"
        self._wait(connection, query, "the worker's sleep")
        time.sleep(0.3)  # the looks that follow the registration

    def _wait(self, connection: Connection, query: str, what: str) -> None:
        def reached() -> bool:
            if self._process.poll() is not None:
                tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
                raise PgqueueError(f"a worker ended with exit code {self._process.returncode}: {tail}")
            return bool(scalar(connection, query) == self._processes)

        wait_until(reached, what)

    def cpu_seconds(self) -> float:
        """What its child processes have used of the processor; 0 where the system does not tell."""
        ticks = 0
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                values = entry.read_bytes().rpartition(b")")[2].split()
                if int(values[1]) == self._process.pid:
                    ticks += int(values[11]) + int(values[12])
        return ticks / os.sysconf("SC_CLK_TCK")


class Stamps:
    """The reading end of a named pipe. `at` maps each stamp's number to its clock, in seconds."""

    def __init__(self, path: Path):
        self.path = str(path)
        self.at: dict[int, float] = {}
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        # A writer of our own: without one, a pipe whose last writer has gone always has its end to read.
        self._keeper = os.open(path, os.O_WRONLY)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        os.close(self._keeper)

    def read(self, timeout: float = 0.0) -> None:
        """Takes what has come, waiting up to `timeout` seconds for the first of it."""
        if not select.select([self._fd], [], [], timeout)[0]:
            return
        data = self._rest + os.read(self._fd, 1 << 16)
        whole = len(data) - len(data) % STAMP.size
        for number, clock in STAMP.iter_unpack(data[:whole]):
            self.at.setdefault(number, clock / 1e9)
        self._rest = data[whole:]

    def wait(self, number: int) -> float:
        """The clock of a stamp, once it is there. Raises `PgqueueError` when it takes too long."""
        deadline = time.monotonic() + PATIENCE
        while number not in self.at:
            if time.monotonic() > deadline:
                raise PgqueueError(f"the bench waited {PATIENCE:g} s for job {number} to start")
            self.read(1.0)
        return self.at[number]
