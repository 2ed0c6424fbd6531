"""The release to come, and databases of this one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import Databases
from tests.upgrades.release import LaterRelease
from tests.worker.conftest import history, start_worker  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def later(tmp_path_factory: pytest.TempPathFactory) -> LaterRelease:
    """The release to come."""
    return LaterRelease(tmp_path_factory.mktemp("later"))


@pytest.fixture
def database(databases: Databases, later: LaterRelease) -> Iterator[str]:
    """The DSN of a database at revision 0001, where 0002 of the release to come is pending."""
    dsn = databases.create_empty()
    later.install_before(dsn)
    yield dsn
    databases.drop(dsn)
