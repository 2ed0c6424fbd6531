"""Runs a `Call` on the connection that the user gave. The only room that touches other people's connections.

    job = run(connection, calls.enqueue(task="send", args='{"id": 7}'))
    job = await run(async_connection, calls.enqueue(task="send"))

What holds for every kind of connection:

- the call is one statement inside the transaction that is open, or that the library opens by itself;
- nothing is committed, begun or connected here, and no savepoint is made;
- rows are read as tuples whatever the user's row factory is;
- what the library or the server refuses becomes an error of `pgqueue.errors` with the original as its
  `__cause__` (`sqlstate.translate`); errors that say nothing about pgqueue pass through unchanged.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable
from importlib import import_module
from typing import Any, TypeVar, overload

from pgqueue.calls import Call
from pgqueue.drivers.sqlstate import is_unavailable, translate
from pgqueue.drivers.targets import (
    AsyncpgConnection,
    AsyncTarget,
    AutocommitWarning,
    DjangoConnection,
    Runner,
    SyncTarget,
    unusable,
)

__all__ = [
    "AsyncTarget",
    "AsyncpgConnection",
    "AutocommitWarning",
    "DjangoConnection",
    "SyncTarget",
    "is_async",
    "is_unavailable",
    "run",
    "translate",
]

T = TypeVar("T")

_LIBRARIES = {"psycopg": "psycopg", "sqlalchemy": "sqlalchemy", "asyncpg": "asyncpg", "django.db": "django"}
"""The module that a target's library has loaded, and our file that knows it."""

_runners: dict[type, Runner] = {}


@overload
def run(target: SyncTarget, call: Call[T]) -> T: ...
@overload
def run(target: AsyncTarget, call: Call[T]) -> Awaitable[T]: ...
def run(target: Any, call: Call[Any]) -> Any:
    """Runs `call` on `target` and returns its value, or an awaitable of it when `target` is async.

    Raises `UnusableConnection` before anything is sent when `target` is closed, aborted or no connection
    at all; `InvalidArgs` or `InvalidOption` for text that no server can store; and what the server
    refuses as `pgqueue.drivers.sqlstate` maps it.
    """
    runner = _runners.get(type(target))
    if runner is None:
        runner = _runners[type(target)] = _find(target)
    return runner(target, call)


def is_async(target: SyncTarget | AsyncTarget) -> bool:
    """Whether what `run` returns for `target` has to be awaited. Raises `UnusableConnection`."""
    return inspect.iscoroutinefunction(_runners.get(type(target)) or _find(target))


def _find(target: Any) -> Runner:
    """Asks each library that is loaded; one that is not cannot have made `target`."""
    for loaded, ours in _LIBRARIES.items():
        if loaded in sys.modules:
            runner: Runner | None = import_module(f"pgqueue.drivers.{ours}").runner_for(target)
            if runner is not None:
                return runner
    raise unusable(target)
