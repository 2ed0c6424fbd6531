"""What every measurement is given: fresh databases, workers, and rounds that alternate on a calm machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue.bench.workers import Stamps, Worker

CALM = 0.1
"""The share of all processors that may be in use when a clock starts."""


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

    def span(self, seconds: float) -> float:
        """A pause or a lead of so many seconds; a tenth of it where sizes are too small for figures to mean anything."""
        return seconds if self.scale >= 0.1 else 0.1 * seconds

    # The machine

    def begin(self, name: str) -> None:
        """Notes the load of the machine, which is others' work, and warns when it is high."""
        self.wait_for_calm()
        load, cores, busy = os.getloadavg()[0], os.cpu_count() or 1, busy_share(self.span(0.5))
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
        return Worker(
            dsn,
            options,
            settings or {},
            log=log,
            folder=self.folder,
            processes=processes,
            settling=self.span(0.3),
        )

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
