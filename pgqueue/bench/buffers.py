"""Buffers per call of pgqueue's functions: from pg_stat_statements, or else by calling each of them once.

pg_stat_statements tells what the real calls of workers and producers cost. It has to be preloaded, which the
bench's own server is. On another server each function is called under EXPLAIN (ANALYZE, BUFFERS) instead, on a
few jobs of their own, in a transaction that is rolled back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from pgqueue.bench.database import Connection, connect, payload, scalar
from pgqueue.bench.harness import Bench

WATCHED = (
    "claim",
    "complete",
    "fail",
    "enqueue",
    "upkeep",
    "prove_floors",
    "fall_asleep",
    "wake_up",
    "heartbeat",
    "snooze",
)
_FUNCTION = re.compile(rf"pgqueue\.({'|'.join(WATCHED)})\(")


@dataclass
class Calls:
    """Totals by function since some beginning."""

    buffers: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, calls: int, buffers: float) -> None:
        """Adds calls of a function."""
        self.calls[name] = self.calls.get(name, 0) + calls
        self.buffers[name] = self.buffers.get(name, 0) + buffers

    def per_call(self, name: str) -> float | None:
        """Buffers that a call touched, on average; None without a call."""
        return self.buffers[name] / self.calls[name] if self.calls.get(name) else None

    def __sub__(self, earlier: Calls) -> Calls:
        """What came after `earlier`."""
        since = Calls()
        for name, calls in self.calls.items():
            since.add(
                name, calls - earlier.calls.get(name, 0), self.buffers[name] - earlier.buffers.get(name, 0)
            )
        return since


@contextmanager
def counter(bench: Bench, dsn: str) -> Iterator[Callable[[], Calls]]:
    """A function that returns the totals so far; for sessions that begin inside the block."""
    with connect(dsn) as connection:
        if _counts(connection):
            yield lambda: _counted(connection)
        else:
            bench.tell("  pg_stat_statements is not preloaded: each function is called once at either end")
            yield Probe(connection).totals


def _counts(connection: Connection) -> bool:
    try:
        connection.execute("create extension if not exists pg_stat_statements")
        connection.execute("select count(*) from pg_stat_statements")
        database = scalar(connection, "select quote_ident(current_database())")
        connection.execute(f"alter database {database} set pg_stat_statements.track = 'top'")
    except psycopg.Error:
        return False
    return True


def _counted(connection: Connection) -> Calls:
    totals = Calls()
    rows = connection.execute(
        "select s.query, s.calls, s.shared_blks_hit + s.shared_blks_read from pg_stat_statements as s"
        " where s.dbid = (select d.oid from pg_database as d where d.datname = current_database())"
    )
    for query, calls, buffers in rows:
        if found := _FUNCTION.search(query):
            totals.add(found[1], calls, float(buffers))
    return totals


class Probe:
    """Calls each function on ten jobs of its own and rolls back. Every look counts as `WEIGHT` calls."""

    WEIGHT = 10

    def __init__(self, connection: Connection):
        self._connection = connection
        self._totals = Calls()

    def totals(self) -> Calls:
        """The totals after one more look."""
        with self._connection.transaction(force_rollback=True):
            self._look()
        totals = Calls()
        for name, calls in self._totals.calls.items():
            totals.add(name, calls, self._totals.buffers[name])
        return totals

    def _look(self) -> None:
        worker = scalar(
            self._connection,
            "select pgqueue.register(supervisor_id => 1, host => 'bench', pid => 0, version => '', queues => '{default}',"
            " concurrency => 1, lease => 3600, session_lock => false)",
        )
        for _ in range(10):
            job = f"task => 'noop', args => '{payload()}'"
            self._explain("enqueue", f"select * from pgqueue.enqueue({job})")
        claim = "worker_id => {w}, queues => '{{default}}', limits => '{{10}}', max_jobs => 10, cursors => {c}, fence => 1"
        cursors = "array_fill(0::bigint, array[20])"
        self._explain("claim", f"select * from pgqueue.claim({claim.format(w=worker, c=cursors)})")
        mine = self._connection.execute(
            "select r.id, r.lease from pgqueue.running_jobs as r where r.worker_id = %s", (worker,)
        ).fetchall()
        half = len(mine) // 2
        ids, leases = [row[0] for row in mine[:half]], [row[1] for row in mine[:half]]
        self._explain(
            "complete", f"select pgqueue.complete(ids => '{{{_list(ids)}}}', leases => '{{{_list(leases)}}}')"
        )
        failures = ",".join(
            f'{{"id": {id}, "lease": {lease}, "error": "E", "message": "m", "delay": 5}}'
            for id, lease in mine[half:]
        )
        self._explain("fail", f"select pgqueue.fail(failures => '[{failures}]')")
        self._explain("prove_floors", "select pgqueue.prove_floors()")
        self._explain(
            "upkeep",
            f"select * from pgqueue.upkeep(supervisor_id => 1, worker_ids => '{{{worker}}}', queues => '{{default}}',"
            " round_seconds => 2, overdue_seconds => 0, hears => true)",
        )

    def _explain(self, name: str, query: str) -> None:
        ((plan,),) = self._connection.execute(f"explain (analyze, buffers, format json) {query}").fetchall()
        node = plan[0]["Plan"]
        touched = node["Shared Hit Blocks"] + node["Shared Read Blocks"]
        self._totals.add(name, self.WEIGHT, touched * self.WEIGHT)


def _list(values: list[int]) -> str:
    return ",".join(map(str, values))
