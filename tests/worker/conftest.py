"""Workers for tests: started on the test's database, killed and looked at when it ends.

folder          where handlers write their history and look for gates
history         what they wrote
rows            what the database says
start_worker    starts a `pgqueue worker` on the test's database; all of it is killed at the end

`service` runs one worker for a whole module: for tests of what becomes of a job, which harm no worker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support import Databases
from tests.worker.harness import History, Rows, Worker


class StartWorker(Protocol):
    """The fixture `start_worker`."""

    def __call__(self, *arguments: str, processes: int = 1, wait: bool = True, **options: Any) -> Worker: ...


@pytest.fixture
def history(tmp_path: Path) -> History:
    """What the handlers of this test wrote."""
    return History(tmp_path)


@pytest.fixture
def rows(database: str) -> Iterator[Rows]:
    """What the test's database says."""
    rows = Rows(database)
    yield rows
    rows.close()


@pytest.fixture
def start_worker(database: str, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers on the test's database, by default with one process that has started on return."""
    workers: list[Worker] = []

    def start(*arguments: str, processes: int = 1, wait: bool = True, **options: Any) -> Worker:
        options = {"dsn": database, "folder": tmp_path} | options
        worker = Worker(
            options.pop("dsn"), options.pop("folder"), "--processes", str(processes), *arguments, **options
        )
        workers.append(worker)
        return worker.wait_until_started(processes) if wait else worker

    yield start
    end(*workers)


def end(*workers: Worker) -> None:
    """Kills workers, prints their logs (pytest shows them when the test failed), and looks for noise."""
    for worker in workers:
        worker.kill()
        print(worker.told())
    for worker in workers:
        assert not worker.noise, "a worker wrote what is no log line:\n" + "\n".join(worker.noise)


@dataclass
class Service:
    """A worker that the tests of a module share, with its history and its rows."""

    worker: Worker
    history: History
    rows: Rows


@contextlib.contextmanager
def service(
    databases: Databases, folders: pytest.TempPathFactory, *arguments: str, processes: int = 1, **options: Any
) -> Iterator[Service]:
    """Runs a worker on a database of its own, all of whose children have started, for the fixture of a module."""
    folder = folders.mktemp("service")
    dsn = databases.create()
    history, rows = History(folder), Rows(dsn)
    worker = Worker(dsn, folder, "--processes", str(processes), *arguments, **options)
    try:
        worker.wait_until_started(processes)
        yield Service(worker, history, rows)
    finally:
        rows.close()
        try:
            end(worker)
        finally:
            databases.drop(dsn)
