"""One database a file, one connection of each kind a test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from pgqueue.app import App
from pgqueue.settings import Settings
from pgqueue.task import Task
from tests.conformance.kinds import KINDS, Kind, url_of
from tests.support import Databases

_names = itertools.count(1)


@pytest.fixture(scope="module")
def database(databases: Databases) -> Iterator[str]:
    """Shared by the tests of a file, which is quicker than one each; `task` keeps them apart."""
    dsn = databases.create()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table orders (task text)")
    yield dsn
    databases.drop(dsn)


@pytest.fixture(scope="module")
def observer(database: str) -> Iterator[psycopg.Connection]:
    """Another session, in autocommit: it sees what is committed."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def other(database: str) -> Iterator[psycopg.Connection]:
    """Another producer, with transactions of its own."""
    with psycopg.connect(database) as connection:
        yield connection


@pytest.fixture(scope="session")
def app() -> App:
    """The application, with the settings that hold without any configuration."""
    return App(settings=Settings())


@pytest.fixture
def task(app: App) -> Task[..., None]:
    """A task that no other test uses. It takes any arguments."""

    def handler(**_: Any) -> None: ...

    return app.task(name=f"task_{next(_names)}")(handler)


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request: pytest.FixtureRequest, database: str) -> Iterator[Kind]:
    """An application's connection, of each kind in turn."""
    with request.param(database) as kind:
        yield kind


@pytest.fixture
def engine(database: str) -> Iterator[sa.Engine]:
    """A SQLAlchemy engine over psycopg."""
    engine = sa.create_engine(url_of(database, "psycopg"))
    yield engine
    engine.dispose()
