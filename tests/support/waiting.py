"""Waiting for an event. No test sleeps for a time in the hope that it is long enough."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import psycopg
import pytest

T = TypeVar("T")

_PAUSE = 0.002


def wait_until(predicate: Callable[[], T], timeout: float = 10.0, message: str = "the condition") -> T:
    """Calls `predicate` until what it returns is true, and returns that.

    Raises AssertionError after `timeout` seconds, with `message` and the last thing that came back.

    >>> wait_until(lambda: 7, message="seven")
    7
    """
    deadline = time.monotonic() + timeout
    while not (state := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s for {message}; the last state was {state!r}")
        time.sleep(_PAUSE)
    return state


def wait_for_lock_wait(connection: psycopg.Connection, pid: int, timeout: float = 10.0) -> None:
    """Returns once the server process `pid` waits for a lock, as `connection` (in autocommit) sees it."""
    if os.environ.get("PGQUEUE_TEST_POOLER"):
        pytest.skip(
            "behind a transaction pooler: a session cannot be found by the process id that its client was told"
        )
    seen = "select wait_event_type, wait_event, state, query from pg_stat_activity where pid = %s"

    def waiting() -> bool:
        nonlocal state
        state = connection.execute(seen, [pid]).fetchone()
        return state is not None and state[0] == "Lock"

    state: object = None
    try:
        wait_until(waiting, timeout)
    except AssertionError:
        raise AssertionError(f"process {pid} did not come to wait for a lock: {state!r}") from None


@contextlib.contextmanager
def release_when_waited_for(
    observer: psycopg.Connection, pid: int, release: Callable[[], object]
) -> Iterator[None]:
    """Arranges a race: while the block runs into a lock as process `pid`, `release` is called beside it.

    `observer` (in autocommit) is used by the thread that watches, so it must not be the connection of
    either side. What the watching thread raises is raised at the end of the block.
    """
    failures: list[BaseException] = []

    def watch() -> None:
        try:
            wait_for_lock_wait(observer, pid)
        except BaseException as error:  # noqa: BLE001 - carried over to the test's thread
            failures.append(error)
        finally:
            release()  # in any case, or the block would wait for ever

    thread = threading.Thread(target=watch, name="release-when-waited-for")
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]
