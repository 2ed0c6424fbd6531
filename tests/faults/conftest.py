"""Which faults are tried, and what becomes of the reports.

scene        a database of the session's server with the tables of the load, for the fault that the test is marked with
own_server   a server that a test may stop
own_scene    a scene there

Tests of a `scene` may run in any process of pytest-xdist; those of a module that has something of its own go to one.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psycopg
import pytest

from pgqueue.embedded import EmbeddedServer
from tests.faults import tasks
from tests.faults.report import PAGE, Report, fault_names, rewritten, table
from tests.faults.scene import Scene
from tests.support.own_server import databases_of, own_server_in_memory

CHOICE = os.environ.get("FAULTS", "sample")
FOLDER = Path(__file__).parent
_PROPERTY = "fault"


class Collected:
    """The reports of all tests, from whichever process: each comes with that of its test."""

    def __init__(self) -> None:
        self.reports: dict[str, Report] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            for name, fields in report.user_properties:
                if name == _PROPERTY and isinstance(fields, dict):
                    found = Report(**fields)
                    self.reports[found.fault] = found

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        names = all_fault_names()
        if not self.reports:
            return
        found = sorted(self.reports.values(), key=lambda report: names.index(report.fault))
        terminalreporter.section("faults")
        terminalreporter.write_line(table([report.cells() for report in found]))
        if os.environ.get("PGQUEUE_REWRITE_GUARANTEES"):
            PAGE.write_text(rewritten(PAGE.read_text(), names, self.reports))
            terminalreporter.write_line(f"written to {PAGE.name}")


def told_as(report: Report) -> tuple[str, object]:
    """What goes along with the report of a test, between processes too."""
    return _PROPERTY, asdict(report)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Collected())
    config.addinivalue_line("markers", "fault(name): a row of the table of faults")
    config.addinivalue_line("markers", "sample: a fault that `make test` tries")
    config.addinivalue_line("markers", "soak: faults at random for SOAK_SECONDS")
    if CHOICE not in ("sample", "all", "none"):
        raise pytest.UsageError(f"FAULTS={CHOICE}: expected sample, all or none")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if not _is_wanted(item)]
    if left_out:
        items[:] = [item for item in items if _is_wanted(item)]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        if item.path.parent == FOLDER and "scene" not in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def _is_wanted(item: pytest.Item) -> bool:
    if item.get_closest_marker("soak") is not None:
        return "SOAK_SECONDS" in os.environ
    if item.get_closest_marker("fault") is None or CHOICE == "all":
        return True
    return CHOICE == "sample" and item.get_closest_marker("sample") is not None


def all_fault_names() -> list[str]:
    """Every fault of the suite."""
    modules = [
        importlib.import_module(f"tests.faults.{path.stem}") for path in sorted(FOLDER.glob("test_*.py"))
    ]
    return fault_names(*modules)


@pytest.fixture
def scene(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A scene on the session's server, which no test may stop."""
    yield from scene_on(database, tmp_path, request)


def scene_on(dsn: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A scene on any database, for a fixture."""
    marker = request.node.get_closest_marker("fault")
    assert marker is not None, f"{request.node.name} is not marked as a fault"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(tasks.TABLES)
    scene = Scene(dsn, folder, str(marker.args[0]))
    yield scene
    scene.close()
    if scene.report is not None:  # what was promised held
        request.node.user_properties.append(told_as(scene.report))


# A server of its own --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedServer]:
    """A server that these tests may stop. It is durable: what it confirmed, it keeps."""
    with own_server_in_memory() as server:
        yield server


@pytest.fixture(scope="module")
def own_databases(own_server: EmbeddedServer) -> list[str]:
    """Databases there, one a test, made while the server is still whole; they go when it goes."""
    return databases_of(own_server, 10)


@pytest.fixture
def own_scene(
    own_server: EmbeddedServer, own_databases: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    """A scene on that server, which runs."""
    own_server.start()
    yield from scene_on(own_databases.pop(), tmp_path, request)
