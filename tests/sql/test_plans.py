"""Every hot statement is held to its index: planned while the tables were empty, never analyzed, analyzed.

auto_explain tells the plan of each statement inside the functions, as it was executed. What is looked at:

- tables of jobs are read by index or by row address, with a condition, and no more rows than asked for;
- nothing sorts or hashes what comes from them;
- no JIT, which costs more than the statement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql.acting import call, claim, count, enqueue, enqueue_many, open_session, register, scalar
from tests.support import Databases

JOBS = 100_000
ASKED = 100
HOT = ("ready_jobs", "scheduled_jobs", "running_jobs", "unique_keys", "schedules", "schedule_runs")
_EXPLAIN = """
load 'auto_explain';
set auto_explain.log_min_duration = 0;
set auto_explain.log_nested_statements = on;
set auto_explain.log_analyze = on;
set auto_explain.log_buffers = on;
set auto_explain.log_timing = off;
set auto_explain.log_format = json;
set client_min_messages = log;
"""

# Reading plans ----------------------------------------------------------------------------------------

Node = dict[str, Any]


class Statement(NamedTuple):
    """One statement as it was executed."""

    text: str
    plan: Node
    jit: bool

    @property
    def buffers(self) -> int:
        """Pages that it looked at, its triggers' not among them."""
        blocks: int = self.plan["Shared Hit Blocks"] + self.plan["Shared Read Blocks"]
        return blocks


def explaining(dsn: str, settings: str = "") -> psycopg.Connection:
    """A session that tells the plan of whatever it executes. Skips where the server cannot."""
    return explain(open_session(dsn, settings))


def explain(session: psycopg.Connection) -> psycopg.Connection:
    """Makes a session tell its plans, or skips."""
    try:
        session.execute(_EXPLAIN)
    except psycopg.Error as error:
        session.close()
        pytest.skip(f"the server has no auto_explain, or this role may not load it: {error}")
    return session


@contextmanager
def told(session: psycopg.Connection) -> Iterator[list[Statement]]:
    """The statements that the session executes in the block."""
    statements: list[Statement] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        text = notice.message_primary or ""
        if "plan:\n" in text:
            told = json.loads(text.split("plan:\n", 1)[1])
            statements.append(Statement(told["Query Text"], told["Plan"], "JIT" in told))

    session.add_notice_handler(hear)
    try:
        yield statements
    finally:
        session.remove_notice_handler(hear)


def nodes(plan: Node) -> Iterator[Node]:
    """Every node of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def inputs(node: Node) -> Iterator[Node]:
    """The nodes whose rows pass through a node: CTEs and sub-selects are plans of their own."""
    for child in node.get("Plans", ()):
        if child.get("Parent Relationship") not in ("InitPlan", "SubPlan"):
            yield child
            yield from inputs(child)


def reads_jobs(node: Node) -> bool:
    """Whether a node reads one of the hot tables."""
    return node.get("Relation Name") in HOT and node["Node Type"] != "ModifyTable"


def rows_read(node: Node) -> float:
    """How many rows a scan has looked at, over all its loops."""
    a_loop = node["Actual Rows"] + sum(
        node.get(f"Rows Removed by {by}", 0) for by in ("Filter", "Index Recheck")
    )
    return float(a_loop * node["Actual Loops"])


def faults(statement: Statement, most: int) -> list[str]:
    """What is wrong with a plan that may look at `most` rows of a table."""
    is_ours = any(map(reads_jobs, nodes(statement.plan)))  # and not the call itself
    found = ["is compiled"] if statement.jit and is_ours else []
    for node in nodes(statement.plan):
        kind = node["Node Type"]
        if reads_jobs(node):
            place = f"{kind} on {node['Relation Name']}"
            if kind not in ("Index Scan", "Index Only Scan", "Tid Scan"):
                found.append(place)
            elif not node.get("Index Cond") and not node.get("TID Cond"):
                found.append(f"{place} without a condition")
            if rows_read(node) > most:
                found.append(f"{place} looks at {rows_read(node):.0f} rows")
        elif kind in ("Sort", "Incremental Sort", "Hash", "HashAggregate", "Merge Join"):
            found += [f"{kind} over {inner['Relation Name']}" for inner in inputs(node) if reads_jobs(inner)]
    return found


def assert_held(statements: list[Statement], most: int = 2 * ASKED) -> None:
    """Fails with the statements whose plans are bad."""
    bad = {statement.text[:200]: wrong for statement in statements if (wrong := faults(statement, most))}
    assert bad == {}
    assert any(reads_jobs(node) for statement in statements for node in nodes(statement.plan))


# Full tables ------------------------------------------------------------------------------------------


def fill(connection: psycopg.Connection, jobs: int = JOBS) -> None:
    """Ready, scheduled and running jobs, and a unique key for each running one; a running job's lease is its id."""
    worker = register(connection)
    kept = "attempt, max_attempts, crashes, queue, task, args, unique_key"
    job = "nextval('pgqueue.job_ids'), now(), now(), 2 * (n % 10) + 1"
    rest = "0, 5, 0, case when n % 3 = 0 then 'other' else 'default' end, 't', '{}'"
    connection.execute(f"""
        insert into pgqueue.ready_jobs (id, run_at, created_at, lane, {kept})
        select {job}, {rest}, null from generate_series(1, {jobs}) as n""")
    connection.execute(f"""
        insert into pgqueue.scheduled_jobs (run_at, id, created_at, lane, {kept})
        select now() + make_interval(secs => n - {jobs / 2}), nextval('pgqueue.job_ids'), now(), 11, {rest}, null
          from generate_series(1, {jobs}) as n""")
    connection.execute(f"""
        with job as (select nextval('pgqueue.job_ids') as id, n from generate_series(1, {jobs}) as n),
             keys as (insert into pgqueue.unique_keys (kind, task, key, job_id)
                      select 'unique', 't', job.id::text, job.id from job)
        insert into pgqueue.running_jobs (id, worker_id, lease, run_at, created_at, claimed_at, lane, {kept})
        select job.id, {worker}, job.id, now(), now(), now(), 11, {rest}, job.id::text from job""")
    fill_schedules(connection, jobs // 10)


def fill_schedules(connection: psycopg.Connection, schedules: int) -> None:
    """300 of them were due in the last five minutes, the others are later, paused or done; the first have a history."""
    connection.execute(f"""
        insert into pgqueue.schedules (name, task, args, queue, priority, max_attempts, every, at_startup, tz, jitter, grace,
                                       missed, missed_limit, overlap, created_at, changed_at, paused_at, due_at)
        select 's' || n, 't', '{{}}', 'default', 5, 5, 3600, false, 'UTC', 0, 15, 'once', 100, 'skip', now(), now(),
               case when n % 3 = 0 then now() end,
               case when n % 5 = 0 then 'infinity' else now() + make_interval(secs => n - 300) end
          from generate_series(1, {schedules}) as n""")
    connection.execute(f"""
        insert into pgqueue.schedule_runs (schedule, due_at, ran_at, outcome, job_id, state)
        select 's' || n % 500, now() - make_interval(mins => n), now(), 'enqueued', n, case when n > 5000 then 'completed' end
          from generate_series(1, {schedules * 5}) as n""")


def hot_statements(session: psycopg.Connection) -> dict[str, Callable[[], Any]]:
    """Each hot statement, for `ASKED` jobs or as many as there are."""
    worker = scalar(session, "select coalesce(max(id), 0) from pgqueue.workers")
    ids = [
        id
        for (id,) in session.execute(
            "select id from pgqueue.running_jobs where id %% 97 = 0 limit %s", [ASKED]
        ).fetchall()
    ]
    failures = Jsonb([{"id": id, "lease": id, "delay": [5, None][n % 2]} for n, id in enumerate(ids)])
    last = scalar(session, "select coalesce(max(position), 0) from pgqueue.ready_jobs")
    first = "select name, changed_at, due_at from pgqueue.schedules where paused_at is null order by due_at limit 1"
    due = dict(zip(("name", "changed_at", "due_at"), session.execute(first).fetchall()[0], strict=True))
    outcomes = {"outcomes": ["enqueued"], "missed": [0], "next_due_at": "infinity"}
    rounds = {
        "worker_ids": [worker],
        "queues": ["default"],
        "round_seconds": 1,
        "overdue_seconds": 2,
        "hears": True,
    }
    return {
        "claim": lambda: claim(session, worker, ASKED),
        "claim at the cursors": lambda: claim(session, worker, ASKED, cursors=[last - 500] * 20),
        "claim of two queues": lambda: claim(session, worker, ASKED, queues=["other", "default"]),
        "claim of nothing": lambda: claim(session, worker, ASKED, queues=["none"]),
        "complete": lambda: call(session, "complete", ids=ids, leases=ids),
        "complete one": lambda: call(session, "complete", ids=ids[:1], leases=ids[:1]),
        "complete late": lambda: call(session, "complete", ids=ids, leases=[-1] * len(ids)),
        "complete with results": lambda: call(
            session, "complete_with_results", completions=Jsonb([{"id": id, "lease": id} for id in ids])
        ),
        "note progress": lambda: call(
            session, "note_progress", notes=Jsonb([{"id": id, "lease": id, "progress": {}} for id in ids])
        ),
        "note reports": lambda: call(
            session, "note_reports", reports=Jsonb([{"id": id, "lease": id, "lines": []} for id in ids])
        ),
        "fail": lambda: call(session, "fail", failures=failures),
        "snooze": lambda: call(session, "snooze", ids=ids, leases=ids, delays=[5.0] * len(ids)),
        "release": lambda: call(session, "release", ids=ids, leases=ids),
        "promote": lambda: call(session, "promote", max_jobs=ASKED),
        "prove_floors": lambda: [call(session, "prove_floors") for _ in range(3)],
        "enqueue": lambda: enqueue(session, unique_key="new", idempotency_key="new"),
        "enqueue held": lambda: enqueue(session, unique_key=str(ids[0]) if ids else "new"),
        "enqueue_many": lambda: enqueue_many(
            session, [{"task": "t", "unique_key": f"new {n}"} for n in range(ASKED)]
        ),
        "upkeep": lambda: call(session, "upkeep", supervisor_id=1, **rounds),
        "keep_time": lambda: call(session, "keep_time", pause_seconds=1, hears=True),
        "due_schedules": lambda: call(session, "due_schedules"),
        "tick": lambda: call(session, "tick", **due, dues=[due["due_at"]], **outcomes),
    }


NAMES = [
    "claim",
    "claim at the cursors",
    "claim of two queues",
    "claim of nothing",
    "complete",
    "complete one",
    "complete late",
    "complete with results",
    "note progress",
    "note reports",
    "fail",
    "snooze",
    "release",
    "promote",
    "prove_floors",
    "enqueue",
    "enqueue held",
    "enqueue_many",
    "due_schedules",
    "tick",
]
QUIET = ("enqueue", "enqueue held", "enqueue_many")
"""Statements that read a hot table only through `on conflict`, or not at all."""


@contextmanager
def filled(databases: Databases, *, analyze: bool) -> Iterator[psycopg.Connection]:
    """A session on a full database that tells its plans; it has planned everything while that was empty."""
    dsn = databases.create()
    with open_session(dsn) as filler, open_session(dsn) as session:
        for table in HOT:
            filler.execute(f"alter table pgqueue.{table} set (autovacuum_enabled = off)")
        register(filler)
        call(filler, "schedule", name="first", task="t", every=60.0)
        filler.execute("update pgqueue.schedules set due_at = now()")
        if analyze:
            filler.execute("vacuum analyze")
        for _ in range(6):
            for statement in hot_statements(session).values():
                with session.transaction(force_rollback=True):
                    statement()
        fill(filler)
        yield explain(session)
    databases.drop(dsn)


@pytest.fixture(scope="module")
def planned_while_empty(databases: Databases) -> Iterator[psycopg.Connection]:
    """Full, and never analyzed."""
    with filled(databases, analyze=False) as session:
        yield session


@pytest.fixture(scope="module")
def analyzed_while_empty(databases: Databases) -> Iterator[psycopg.Connection]:
    """Full, and the statistics say that it is empty."""
    with filled(databases, analyze=True) as session:
        yield session


@pytest.fixture(scope="module")
def analyzed(planned_while_empty: psycopg.Connection) -> psycopg.Connection:
    """Full, with true statistics. The last of the three, for it is the first one's database."""
    planned_while_empty.execute("analyze")
    return planned_while_empty


@pytest.fixture(scope="module", params=["planned_while_empty", "analyzed_while_empty", "analyzed"])
def full(request: pytest.FixtureRequest) -> psycopg.Connection:
    """A session on a full database that tells its plans."""
    session: psycopg.Connection = request.getfixturevalue(request.param)
    return session


@pytest.mark.parametrize("name", NAMES)
def test_a_hot_statement_keeps_to_its_index(full: psycopg.Connection, name: str) -> None:
    statement = hot_statements(full)[name]
    with told(full) as statements, full.transaction(force_rollback=True):
        done = statement()
    if name in (
        "claim",
        "complete",
        "complete with results",
        "fail",
        "snooze",
        "release",
        "claim at the cursors",
    ):
        assert len(done) == ASKED
    if name == "promote":
        assert done == ASKED
    if name == "due_schedules":
        assert len(done) == 100
    if name == "tick":
        assert done == 1
    if name in QUIET:
        assert [wrong for statement in statements for wrong in faults(statement, 2 * ASKED)] == []
    else:
        assert_held(statements)


def test_a_round_of_upkeep_keeps_to_its_indexes(full: psycopg.Connection) -> None:
    statement = hot_statements(full)["upkeep"]
    with told(full) as statements, full.transaction(force_rollback=True):
        full.execute("update pgqueue.leadership set led_at = '-infinity'")
        (done,) = statement()
    assert (done["led"], done["promoted"], done["look"]) == (True, 1000, True)
    assert_held(statements, most=2000)


def test_a_look_at_what_is_due_keeps_to_its_indexes(full: psycopg.Connection) -> None:
    """Apart from what it promotes, it reads the first of each."""
    statement = hot_statements(full)["keep_time"]
    with told(full) as statements, full.transaction(force_rollback=True):
        (done,) = statement()
    assert (done["promoted"], done["schedules_due"], done["next_seconds"]) == (1000, True, 0)
    assert_held(
        [told for told in statements if PICKED not in told.text and "promote" not in told.text], most=1
    )


TRAPS = {
    "custom plans": "-c plan_cache_mode=force_custom_plan",
    "compiled": "-c jit=on -c jit_above_cost=0",
    "index is dear": "-c random_page_cost=1000 -c seq_page_cost=0.001",
    "no scan by index": "-c enable_indexscan=off -c enable_indexonlyscan=off",
    "no scan by tid": "-c enable_tidscan=off",
    "no nested loop": "-c enable_nestloop=off",
    "no sort": "-c enable_sort=off",
    "no memory": "-c work_mem=64kB",
    "parallel": "-c max_parallel_workers_per_gather=4 -c parallel_setup_cost=0 -c min_parallel_table_scan_size=0",
}


@pytest.mark.parametrize("settings", TRAPS.values(), ids=TRAPS.keys())
def test_no_setting_of_a_role_takes_a_hot_statement_off_its_index(
    full: psycopg.Connection, settings: str
) -> None:
    dsn = f"{full.info.dsn} password={full.info.password}" if full.info.password else full.info.dsn
    with explaining(dsn, settings) as session:
        for name, statement in hot_statements(session).items():
            if name in NAMES and name not in QUIET:
                with told(session) as statements, session.transaction(force_rollback=True):
                    statement()
                assert_held(statements)


# The cost does not grow -------------------------------------------------------------------------------


def buffers(session: psycopg.Connection, statement: Callable[[], Any], marker: str) -> int:
    """Pages that the statement with `marker` in its text looks at; rolled back."""
    with told(session) as statements, session.transaction(force_rollback=True):
        statement()
    (found,) = [told for told in statements if marker in told.text and "pgqueue." in told.text and told.plan]
    return found.buffers


PICKED = "with picked as"


def test_a_claim_costs_the_same_at_a_thousand_jobs_and_at_a_hundred_thousand(
    fresh: str, full: psycopg.Connection
) -> None:
    with open_session(fresh) as connection, explaining(fresh) as session:
        fill(connection, 1000)
        few = buffers(session, hot_statements(session)["claim"], PICKED)
    many = buffers(full, hot_statements(full)["claim"], PICKED)
    assert few / 2 < many < few * 2


def test_under_a_held_snapshot_a_claim_and_a_promotion_pay_for_dead_rows_only_until_the_floor_is_proven(
    fresh: str,
) -> None:
    with open_session(fresh) as connection, open_session(fresh, autocommit=False) as reader:
        connection.execute("alter table pgqueue.ready_jobs set (autovacuum_enabled = off)")
        connection.execute("alter table pgqueue.scheduled_jobs set (autovacuum_enabled = off)")
        session = explaining(fresh)
        fill(connection, 50_000)
        connection.execute("update pgqueue.scheduled_jobs set run_at = now() - interval '1 min'")
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert count(reader, "ready_jobs") == 50_000
        connection.execute("delete from pgqueue.ready_jobs")
        connection.execute("delete from pgqueue.scheduled_jobs")
        enqueue_many(connection, [{"task": "t"}] * ASKED)
        enqueue_many(connection, [{"task": "t", "delay": 60}] * ASKED)
        connection.execute("update pgqueue.scheduled_jobs set run_at = clock_timestamp()")
        worker = register(connection)
        last = scalar(connection, "select max(position) from pgqueue.ready_jobs")

        def claim_all() -> Any:
            return claim(session, worker, ASKED)

        def claim_at_cursors() -> Any:
            return claim(session, worker, ASKED, cursors=[last - ASKED + 1] * 20)

        def promote() -> Any:
            return call(session, "promote", max_jobs=ASKED)

        walked, promoted = buffers(session, claim_all, PICKED), buffers(session, promote, PICKED)
        # the worker's own hint spares it the walk
        assert walked > 3 * buffers(session, claim_at_cursors, PICKED)
        for prover in (connection, session):  # the second one plans it, too, which looks at pages
            call(prover, "prove_floors")
        # … and the next proof begins where the last one ended
        proof = buffers(session, lambda: call(session, "prove_floors"), 'pgqueue."prove_floors"')
        assert min(walked, promoted) > 3 * proof
        assert walked > 3 * buffers(session, claim_all, PICKED)
        assert promoted > 2 * buffers(session, promote, PICKED)
        assert (len(claim_all()), promote()) == (ASKED, ASKED)
        assert count(reader, "ready_jobs") == 50_000  # the snapshot was held all the while
        reader.rollback()
        session.close()


def test_under_a_held_snapshot_an_enqueue_does_not_pay_for_the_naps_of_long_ago(fresh: str) -> None:
    with open_session(fresh) as connection, open_session(fresh, autocommit=False) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert count(reader, "sleepers") == 0
        session, worker = explaining(fresh), register(connection)
        marker = 'pgqueue."enqueue"'

        def enqueue() -> Any:
            return call(session, "enqueue", task="t")

        buffers(session, enqueue, marker)  # the first call reads the catalogs as well
        before = buffers(session, enqueue, marker)
        # what six minutes of naps leave behind: two versions each, in the ten seconds in which it was
        began = scalar(connection, "select now()")  # not anew for each: ten seconds may be over meanwhile
        for ago in range(6, 42):
            moment = f"timestamptz '{began}' - interval '{ago * 10} s'"
            connection.execute(
                f"""insert into pgqueue.sleepers (queue, period, worker_id, slept_at)
                    values ('default', date_bin('10 s', {moment}, '2000-01-01'), {worker}, '-infinity')"""
            )
            for _ in range(
                30
            ):  # each in a transaction of its own: one that replaces its own rows leaves nothing
                connection.execute(
                    f"""update pgqueue.sleepers set slept_at = '-infinity'
                         where queue = 'default' and period = date_bin('10 s', {moment}, '2000-01-01')"""
                )
        assert buffers(session, enqueue, marker) <= before + 3
        session.close()


def test_jobs_that_are_not_due_cost_a_promotion_nothing(connection: psycopg.Connection) -> None:
    connection.execute(
        "select pgqueue.enqueue_many((select jsonb_agg(jsonb_build_object('task', 'later', 'delay', 3600 + n))"
        " from generate_series(1, 20000) as n))"
    )
    explain = "explain (analyze, buffers, format json) select pgqueue.promote(1000)"
    connection.execute(explain)  # the first call of a session reads the catalogs

    ((plan,),) = connection.execute(explain).fetchall()

    assert plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"] < 50
