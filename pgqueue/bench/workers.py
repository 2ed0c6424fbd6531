"""Real workers to measure, and the stamps by which their jobs tell when they started."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pgqueue.bench.database import PATIENCE, Connection, connect, scalar, wait_until
from pgqueue.bench.tasks import STAMP
from pgqueue.errors import PgqueueError

ASLEEP = "pgqueue.sleepers as s where s.slept_at > clock_timestamp() - interval '25 seconds'"
"""Who is asleep: a row may outlive its sleep."""


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
        settling: float,
    ):
        """`settling`: seconds after it has fallen asleep, for the looks that follow a registration."""
        self._dsn = dsn
        self._command = [sys.executable, "-c", "from pgqueue.cli import main; main()", "worker"]
        self._command += ["pgqueue.bench.tasks:app", "--processes", str(processes), *options]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_")}
        inherited.pop("DATABASE_URL", None)
        wanted = {f"PGQUEUE_{name.upper()}": value for name, value in settings.items()}
        self._environment = inherited | wanted | {"PGQUEUE_DSN": dsn}
        self._processes = processes
        self._settling = settling
        self._log = log
        self._folder = folder

    def __enter__(self) -> Self:
        with connect(self._dsn) as connection:
            self._known = scalar(connection, "select coalesce(max(w.id), 0) from pgqueue.workers as w")
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
        self._wait(connection, "select count(*) from pgqueue.workers where id > %s", "the worker's start")

    def wait_until_asleep(self, connection: Connection) -> None:
        """Until every process sleeps, ready to be notified."""
        query = f"select count(distinct worker_id) from {ASLEEP} and worker_id > %s"
        self._wait(connection, query, "the worker's sleep")
        time.sleep(self._settling)

    def _wait(self, connection: Connection, query: str, what: str) -> None:
        def reached() -> bool:
            if self._process.poll() is not None:
                tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
                raise PgqueueError(f"a worker ended with exit code {self._process.returncode}: {tail}")
            return bool(scalar(connection, query, self._known) == self._processes)

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
