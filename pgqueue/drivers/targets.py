"""What a user may hand to an enqueue: the types, and the error for everything else.

The libraries are imported by type checkers alone; at run time nothing is loaded that the user has not
loaded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pgqueue.calls import Call
from pgqueue.errors import UnusableConnection

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy
    import sqlalchemy.ext.asyncio as sqlalchemy_asyncio
    import sqlalchemy.orm as sqlalchemy_orm


class AutocommitWarning(UserWarning):
    """An enqueue on a SQLAlchemy engine in AUTOCOMMIT: it is committed at once, a rollback keeps the job."""


class DjangoConnection(Protocol):
    """`django.db.connection` or one of `django.db.connections`."""

    vendor: Any
    in_atomic_block: Any
    needs_rollback: Any

    def cursor(self) -> Any: ...


class AsyncpgConnection(Protocol):
    """An `asyncpg.Connection`, or what `pool.acquire()` gives."""

    def fetch(self, query: str, *args: Any) -> Awaitable[Sequence[Any]]: ...

    def is_closed(self) -> bool: ...

    def is_in_transaction(self) -> bool: ...


# One string each: pyright takes no concatenation for an alias, and would call every target sync.
SyncTarget: TypeAlias = """
    psycopg.Connection[Any] | psycopg.Cursor[Any] | sqlalchemy.Connection | sqlalchemy_orm.Session
    | sqlalchemy_orm.scoped_session[Any] | DjangoConnection
"""
"""A connection that is used without `await`."""

AsyncTarget: TypeAlias = """
    psycopg.AsyncConnection[Any] | psycopg.AsyncCursor[Any] | sqlalchemy_asyncio.AsyncConnection
    | sqlalchemy_asyncio.AsyncSession | sqlalchemy_asyncio.async_scoped_session[Any] | AsyncpgConnection
"""
"""A connection whose calls are awaited."""

Runner: TypeAlias = Callable[[Any, Call[Any]], Any]
"""Runs a call on one kind of target: returns its value, or an awaitable of it."""

ACCEPTED = (
    "psycopg Connection, Cursor, AsyncConnection or AsyncCursor; SQLAlchemy Connection, Session, "
    "AsyncConnection or AsyncSession; an asyncpg connection; a Django connection"
)


def unusable(target: Any, remedy: str = "") -> UnusableConnection:
    """The error for a target that is no connection: what was given, what to do, what is accepted."""
    kind = type(target)
    given = f"cannot enqueue on {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
    if not remedy and kind.__module__.startswith("psycopg2"):
        remedy = "psycopg2 is served through SQLAlchemy, Django, or SQL (select * from pgqueue.enqueue(…))"
    if not remedy and kind.__name__ == "coroutine":
        remedy = "await it first"
    if not remedy and kind.__name__ in {"_GeneratorContextManager", "_AsyncGeneratorContextManager"}:
        remedy = "enter it with `with … as connection:` first"
    if remedy:
        return UnusableConnection(f"{given}: {remedy}")
    return UnusableConnection(f"{given}; accepted are: {ACCEPTED}")
