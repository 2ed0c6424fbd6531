"""Idle: what a fleet with nothing to do asks of the database, in transactions a minute, heartbeats included."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from pgqueue.bench.database import Connection, connect, scalar
from pgqueue.bench.harness import Bench
from pgqueue.bench.results import Result, below

LEADER, FOLLOWER = 35.0, 16.0
FOLLOWERS = 3
SETTLE_SECONDS = 15.0
"""After the start of a worker, and before a count: floors are proven, LISTEN is tried, statistics are sent."""


def measure(bench: Bench) -> Iterator[Result]:
    seconds = max(min(5.0, bench.span(20.0)), (30.0 if bench.quick else 120.0) * bench.scale)
    with ExitStack() as stack:
        dsn = stack.enter_context(bench.database())
        connection = stack.enter_context(connect(dsn))
        stack.enter_context(bench.worker(dsn))
        leader = _a_minute(bench, connection, seconds)
        for _ in range(FOLLOWERS):
            stack.enter_context(bench.worker(dsn))
        follower = (_a_minute(bench, connection, seconds) - leader) / FOLLOWERS
    note = f"transactions a minute of {{}} with nothing due, over {seconds:.0f} s"
    yield below("idle-leader", leader, LEADER, unit="tx", note=note.format("the leader"))
    yield below("idle-follower", follower, FOLLOWER, unit="tx", note=note.format("every other worker"))


def _a_minute(bench: Bench, connection: Connection, seconds: float) -> float:
    count = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    time.sleep(SETTLE_SECONDS * min(1.0, bench.scale))
    before, began = scalar(connection, count), time.monotonic()
    time.sleep(seconds)
    # one of them is ours
    return float(scalar(connection, count) - before - 1) * 60 / (time.monotonic() - began)
