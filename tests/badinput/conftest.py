"""A database for each file, and a shop: an application that goes on with its transaction after a refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgqueue.app import App
from pgqueue.errors import PgqueueError
from pgqueue.settings import Settings
from pgqueue.task import Task
from tests.badinput.table import Case
from tests.support import Databases


class Shop:
    """An application with a task, and with a connection whose transaction it has begun."""

    def __init__(self, dsn: str):
        self.dsn = dsn
        self.app = App(dsn=dsn, settings=Settings(), name="shop")
        self.send: Task[..., Any] = self.app.task(name="send")(_send)
        self.anything: Task[..., Any] = self.app.task(name="anything")(_anything)
        self.connection = psycopg.connect(dsn)
        self.observer = psycopg.connect(dsn, autocommit=True)

    def close(self) -> None:
        self.connection.close()
        self.observer.close()
        self.app.close()

    def count(self) -> tuple[int, int]:
        """The orders and the jobs that others see."""
        row = self.observer.execute(
            "select (select count(*) from orders), (select count(*) from pgqueue_bi.jobs)"
        ).fetchone()
        assert row
        return row[0], row[1]

    def refuses(self, case: Case, act: Callable[[], object]) -> BaseException:
        """`act` raises what the row says, writes nothing, and leaves the transaction usable."""
        self.connection.rollback()  # what a test before this one has left
        orders, jobs = self.count()
        self.connection.execute("insert into orders values (1)")
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the row says which
            act()
        case.holds(caught.value)
        assert isinstance(caught.value, PgqueueError)
        assert self.connection.info.transaction_status is TransactionStatus.INTRANS
        self.anything.enqueue(self.connection)
        self.connection.commit()
        assert self.count() == (orders + 1, jobs + 1)
        return caught.value


def _send(user_id: int, name: str = "x", *, price: float = 0.0) -> None: ...
def _anything(**_: Any) -> None: ...


@pytest.fixture(scope="module")
def dsn(databases: Databases) -> Iterator[str]:
    """A database for the file."""
    dsn = databases.create()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table orders (id integer)")
    yield dsn
    databases.drop(dsn)


@pytest.fixture(scope="module")
def shop(dsn: str) -> Iterator[Shop]:
    shop = Shop(dsn)
    yield shop
    shop.close()
