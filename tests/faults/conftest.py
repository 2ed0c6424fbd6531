"""Which faults are tried, and what becomes of the reports.

scene        a database of the session's server with the tables of the load, for the fault that the test is marked with
own_server   a server that a test may stop
own_scene    a scene there
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgqueue.embedded import EmbeddedServer
from tests.faults import tasks
from tests.faults.report import PAGE, Report, fault_names, rewritten, table
from tests.faults.scene import Scene
from tests.support import Databases

CHOICE = os.environ.get("FAULTS", "sample")
FOLDER = Path(__file__).parent
_reports = pytest.StashKey[dict[str, Report]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_reports] = {}
    config.addinivalue_line("markers", "fault(name): a row of the table of faults")
    config.addinivalue_line("markers", "sample: a fault that `make test` tries")
    config.addinivalue_line("markers", "soak: faults at random for SOAK_SECONDS")
    if CHOICE not in ("sample", "all", "none"):
        raise pytest.UsageError(f"FAULTS={CHOICE}: expected sample, all or none")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if not _is_wanted(item)]
    if left_out:
        items[:] = [item for item in items if _is_wanted(item)]
        config.hook.pytest_deselected(items=left_out)


def _is_wanted(item: pytest.Item) -> bool:
    if item.get_closest_marker("soak") is not None:
        return "SOAK_SECONDS" in os.environ
    if item.get_closest_marker("fault") is None or CHOICE == "all":
        return True
    return CHOICE == "sample" and item.get_closest_marker("sample") is not None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = config.stash[_reports]
    if not reports:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(table([report.cells() for report in reports.values()]))
    if os.environ.get("PGQUEUE_REWRITE_GUARANTEES"):
        PAGE.write_text(rewritten(PAGE.read_text(), all_fault_names(), reports))
        terminalreporter.write_line(f"written to {PAGE.name}")


def all_fault_names() -> list[str]:
    """Every fault of the suite."""
    modules = [
        importlib.import_module(f"tests.faults.{path.stem}") for path in sorted(FOLDER.glob("test_*.py"))
    ]
    return fault_names(*modules)


@pytest.fixture
def scene(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A scene on the session's server, which no test may stop."""
    yield from _scene(database, tmp_path, request)


def _scene(dsn: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    marker = request.node.get_closest_marker("fault")
    assert marker is not None, f"{request.node.name} is not marked as a fault"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(tasks.TABLES)
    scene = Scene(dsn, folder, str(marker.args[0]))
    yield scene
    scene.close()
    if scene.report is not None:  # what was promised held
        request.config.stash[_reports][scene.fault] = scene.report


# A server of its own --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedServer]:
    """A server that these tests may stop. It is durable: what it confirmed, it keeps."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(
            prefix="pgqueue-tests-", dir=memory if os.access(memory, os.W_OK) else None
        ) as folder,
        EmbeddedServer(Path(folder), settings={"max_wal_size": "256MB"}) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def own_databases(own_server: EmbeddedServer) -> list[str]:
    """Databases there, one a test, made while the server is still whole; they go when it goes."""
    databases = Databases(own_server.dsn)
    made = [databases.create() for _ in range(8)]
    databases.close()
    return made


@pytest.fixture
def own_scene(
    own_server: EmbeddedServer, own_databases: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    """A scene on that server, which runs."""
    own_server.start()
    yield from _scene(own_databases.pop(), tmp_path, request)
