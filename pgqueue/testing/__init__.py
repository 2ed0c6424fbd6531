"""What tests of an application use: look at what was enqueued, run it here and now, let time pass, let workers die.

    from pgqueue.testing import assert_enqueued, drain, perform, travel

    assert_enqueued(session, send_welcome, args={"user_id": 7})      # with the session's own transaction
    assert drain(app, session).completed == 1                        # runs it, in that transaction
    assert perform(add, 1, 2) == 3                                   # runs a handler, without a database

All that takes a connection takes each kind that `task.enqueue` takes; with an async one, await it. Nothing is ever
committed here. `pgqueue.pytest_plugin` has fixtures.
"""

from __future__ import annotations

from pgqueue.job import WaitingJob
from pgqueue.testing.assertions import Criteria, assert_enqueued, enqueued, refute_enqueued
from pgqueue.testing.crashes import Crashes, crash_after
from pgqueue.testing.drain import Drained, EndlessDrain, drain, run_one
from pgqueue.testing.lent import lend
from pgqueue.testing.perform import perform, perform_async
from pgqueue.testing.rehearsal import Ran
from pgqueue.testing.schedules import tick
from pgqueue.testing.travel import travel

__all__ = [
    "Crashes",
    "Criteria",
    "Drained",
    "EndlessDrain",
    "Ran",
    "WaitingJob",
    "assert_enqueued",
    "crash_after",
    "drain",
    "enqueued",
    "lend",
    "perform",
    "perform_async",
    "refute_enqueued",
    "run_one",
    "tick",
    "travel",
]
