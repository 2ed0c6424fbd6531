"""The public surface, frozen: functions, views, grants, as `surface.txt` has them.

A change that is meant is written down with

    PGQUEUE_REWRITE_SURFACE=1 python -m pytest tests/sql/test_surface.py -k frozen

and read in the diff: arguments and columns are only ever appended.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from pgqueue import calls
from tests.badinput.test_sql import GOOD
from tests.sql.acting import (
    Connect,
    call,
    claim,
    count,
    enqueue,
    enqueue_many,
    open_session,
    register,
    rows,
    scalar,
)
from tests.support import Databases
from tests.support.databases import install

SURFACE = Path(__file__).with_name("surface.txt")
ROLES = ("pgqueue_producer", "pgqueue_worker", "pgqueue_monitor", "pgqueue_admin")

# What is there ----------------------------------------------------------------------------------------

FUNCTIONS = """
select p.proname::text, p.oid::regprocedure::text, p.prosecdef as definer, p.provolatile,
       coalesce((select s.value from unnest(p.proconfig) as c (setting)
                  cross join lateral (select split_part(c.setting, '=', 2)) as s (value)
                  where c.setting like 'search\\_path=%%'), '') as search_path,
       p.prosqlbody is not null as is_bound,
       array(select a.grantee::regrole::text from aclexplode(p.proacl) as a
              where a.privilege_type = 'EXECUTE' and a.grantee not in (0, p.proowner) order by 1) as callers,
       p.proacl is null or exists (select from aclexplode(p.proacl) as a where a.grantee = 0) as is_everybodys,
       obj_description(p.oid, 'pg_proc') as comment,
       pg_get_function_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result
  from pg_proc as p
 where p.pronamespace = 'pgqueue'::regnamespace
 order by p.proname
"""
RELATIONS = """
select n.nspname::text as schema, c.relname::text, c.relkind::text, obj_description(c.oid, 'pg_class') as comment,
       array(select a.grantee::regrole::text || ' ' || lower(a.privilege_type) from aclexplode(c.relacl) as a
              where a.grantee <> c.relowner order by 1) as grants
  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
 where n.nspname in ('pgqueue', 'pgqueue_bi') and c.relkind in ('r', 'p', 'v', 'S')
 order by 1, 2
"""
COLUMNS = """
select c.relnamespace::regnamespace::text as schema, c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod) as type,
       col_description(c.oid, a.attnum) as comment
  from pg_attribute as a join pg_class as c on c.oid = a.attrelid
 where c.relnamespace in ('pgqueue'::regnamespace, 'pgqueue_bi'::regnamespace) and c.relkind in ('r', 'p', 'v')
   and a.attnum > 0 and not a.attisdropped
 order by c.relname, a.attnum
"""


def looked_up(connection: psycopg.Connection, query: str) -> list[dict[str, Any]]:
    """The rows of a query on the catalog."""
    cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
    return cursor.execute(query).fetchall()


def surface(connection: psycopg.Connection) -> str:
    """What others may rely on, as text: one line a function, a view, a column with its comment."""
    lines = ["# Functions: who may call them, arguments, result.", ""]
    for function in looked_up(connection, FUNCTIONS):
        if function["callers"]:
            callers = " ".join(str(role).removeprefix("pgqueue_") for role in function["callers"])
            arguments = str(function["arguments"]).replace(", ", ",\n    ")
            lines += [f"{function['proname']}  [{callers}]"]
            lines += [f"    {arguments}"] * bool(arguments)
            lines += [f"    -> {function['result']}", ""]
    lines += ["# Views: their columns, and what these mean.", ""]
    columns = looked_up(connection, COLUMNS)
    for relation in looked_up(connection, RELATIONS):
        if relation["relkind"] == "v":
            grants = " ".join(str(grant).removeprefix("pgqueue_") for grant in relation["grants"])
            lines += [f"{relation['schema']}.{relation['relname']}  [{grants}]"]
            lines += [f"    -- {relation['comment']}"]
            lines += [
                f"    {c['attname']} {c['type']}  -- {c['comment']}"
                for c in columns
                if (c["schema"], c["relname"]) == (relation["schema"], relation["relname"])
            ]
            lines += [""]
    return "\n".join(lines)


def test_the_surface_is_frozen(connection: psycopg.Connection) -> None:
    now = surface(connection)
    if os.environ.get("PGQUEUE_REWRITE_SURFACE"):
        SURFACE.write_text(now)
    assert now == SURFACE.read_text()


def test_python_calls_each_function_by_the_names_and_types_that_it_has(
    connection: psycopg.Connection,
) -> None:
    functions = {function["proname"]: function for function in looked_up(connection, FUNCTIONS)}
    verbs = [verb for verb in vars(calls).values() if type(verb) is calls.Verb]
    assert len(verbs) > 15
    for verb in verbs:
        described = str(functions[verb.function]["arguments"])
        parameters = [part for part in described.split(", ") if part and not part.startswith("OUT ")]
        given = [part.split(" DEFAULT ")[0] for part in parameters]
        assert [f"{name} {kind}" for name, kind in verb.parameters] == [
            part.replace("timestamp with time zone", "timestamptz") for part in given
        ][: len(verb.parameters)], verb.function
        assert all(" DEFAULT " in part for part in parameters[len(verb.parameters) :]), verb.function


def test_every_function_is_one_of_its_name(connection: psycopg.Connection) -> None:
    names = [function["proname"] for function in looked_up(connection, FUNCTIONS)]
    assert len(names) == len(set(names))


def test_every_function_is_private_or_runs_as_its_owner_with_a_pinned_search_path(
    connection: psycopg.Connection,
) -> None:
    for function in looked_up(connection, FUNCTIONS):
        name = function["oid"] if "oid" in function else function["proname"]
        assert not function["is_everybodys"], f"{name} may be called by everybody"
        if function["callers"]:
            # a body that was bound when it was made looks nothing up
            assert function["definer"] or function["is_bound"], f"{name} needs its caller's rights"
        if not function["is_bound"]:
            assert function["search_path"] == "pg_catalog, pg_temp", f"{name} has no pinned search_path"


def test_every_function_relation_and_column_is_described(connection: psycopg.Connection) -> None:
    """A column that a table has in common with another may be described there: its comment says so."""
    functions, relations = looked_up(connection, FUNCTIONS), looked_up(connection, RELATIONS)
    columns = looked_up(connection, COLUMNS)
    described = {
        (relation["schema"], relation["relname"]): str(relation["comment"] or "") for relation in relations
    }
    own = {
        (column["schema"], column["relname"], column["attname"]) for column in columns if column["comment"]
    }
    partitions = {
        name for (name,) in connection.execute("select relname from pg_class where relispartition").fetchall()
    }
    missing = [str(function["proname"]) for function in functions if not function["comment"]]
    # the partitions of a day are made by retain, here perhaps by the test before this one
    missing += [name for (_, name), comment in described.items() if not comment and name not in partitions]
    for column in columns:
        schema, table = str(column["schema"]), str(column["relname"])
        if table in partitions:
            continue
        places = [table]
        while "Columns as in " in described.get((schema, places[-1]), ""):
            like = described[schema, places[-1]].split("Columns as in ")[1]
            places.append(like.split(".")[0].split(",")[0])
        if not any((schema, place, column["attname"]) in own for place in places):
            missing.append(f"{schema}.{table}.{column['attname']}")
    assert missing == []


def test_positions_are_never_cached_nor_cycled(connection: psycopg.Connection) -> None:
    query = "select seqcache, seqincrement, seqcycle, seqtypid::regtype::text from pg_sequence where seqrelid = %s::regclass"
    assert connection.execute(query, ["pgqueue.positions"]).fetchone() == (1, 1, False, "bigint")


def test_no_table_has_a_trigger_a_rule_or_a_policy(connection: psycopg.Connection) -> None:
    found = """
        select t.tgname::text from pg_trigger as t join pg_class as c on c.oid = t.tgrelid
         where c.relnamespace = 'pgqueue'::regnamespace and not t.tgisinternal
         union all
        select r.rulename::text from pg_rewrite as r join pg_class as c on c.oid = r.ev_class
         where c.relnamespace = 'pgqueue'::regnamespace
         union all
        select p.polname::text from pg_policy as p join pg_class as c on c.oid = p.polrelid
         where c.relnamespace = 'pgqueue'::regnamespace"""
    assert connection.execute(found).fetchall() == []


NEED_COLUMNS = ("fall_asleep",)
"""Whose parameters are called like columns of an `on conflict (…)`, which cannot be qualified."""


def test_no_variable_hides_behind_a_column(connect: Connect, fresh: str) -> None:
    """Hazard: under `#variable_conflict use_column` a variable that is called like a column is never read.

    So each function runs once without: PostgreSQL then refuses a name that could mean either.
    """
    connection = connect(fresh)
    lax = "select oid::regprocedure::text, pg_get_functiondef(oid) from pg_proc where prosrc like %s and proname <> all(%s)"
    for _, definition in connection.execute(lax, ["%use_column%", list(NEED_COLUMNS)]).fetchall():
        connection.execute(definition.replace("#variable_conflict use_column\n", ""))
    assert connection.execute(lax, ["%use_column%", list(NEED_COLUMNS)]).fetchall() == []
    whole_life(connection)
    keys = {"task": "t", "unique_key": "0", "idempotency_key": "i"}
    enqueue(connection, delay=5, **keys)
    enqueue_many(connection, [keys, keys | {"idempotency_key": "j"}])
    worker = register(connection, lease=0)
    for crashes in (0, 3):
        connection.execute(
            "update pgqueue.ready_jobs set crashes = %s, attempt = max_attempts - 1", [crashes]
        )
        assert claim(connection, worker, 1)
    call(connection, "fall_asleep", worker_id=worker, queues=["default"])
    connection.execute("update pgqueue.leadership set led_at = clock_timestamp(), supervisor_id = 5")
    rounds = {
        "worker_ids": [],
        "queues": ["default"],
        "round_seconds": 1,
        "overdue_seconds": 2,
        "hears": True,
    }
    assert call(connection, "upkeep", supervisor_id=5, **rounds)[0]["problems"] == []
    call(connection, "rescue", worker_id=worker)
    assert call(connection, "crashed_jobs", worker_ids=[worker])
    dead = [letter["id"] for letter in call(connection, "find_dead", of_queue="default", max_rows=9)]
    assert (
        len(call(connection, "replay", ids=dead[:1])) == len(call(connection, "discard", ids=dead[1:])) == 1
    )
    call(connection, "pause", queue="default")
    call(connection, "resume", queue="default")
    call(connection, "set_queue", queue="default", settings=Jsonb({"worker_limit": 5, "max_attempts": 2}))
    assert call(connection, "count_queue", queue="default")[0]["ready"] >= 0
    call(connection, "lane_heads")
    assert call(connection, "stop_workers", ids=[register(connection)])
    later, filtered = (
        enqueue(connection, delay=60),
        {"of_fingerprint": "f", "of_args": Jsonb({}), "created_after": "2020-01-01"},
    )
    assert call(connection, "retry", ids=[later]) == [later]
    assert [row["outcome"] for row in call(connection, "delete_jobs", ids=[later])] == ["deleted"]
    assert (
        call(connection, "cancel_matching", **filtered)
        == call(connection, "find_dead", of_fingerprint="f")
        == []
    )
    connection.execute("select pgqueue.pause('mail', now() + interval '20 ms'), pg_sleep(0.03)")
    call(connection, "resume_due")
    rule = {"task": "t", "cron": "0 3 * * *", "tz": "Europe/Paris"}
    assert call(connection, "schedule", name="by hand", **rule) == "created"
    assert call(connection, "pause_schedule", name="by hand")
    assert call(connection, "resume_schedule", name="by hand")
    assert [run["outcome"] for run in call(connection, "run_schedule", name="s")] == ["joined"]
    assert len(call(connection, "schedule_record", name="by hand")) == 1
    assert call(connection, "unschedule", name="by hand")
    assert call(connection, "travel", seconds=3600) >= 0
    call(connection, "find_waiting", of_queue="default")
    found = [row["id"] for row in call(connection, "find_jobs", of_queue="default")]
    assert len(call(connection, "look", ids=found)) == len(found) > 1
    assert len(call(connection, "job_record", id=found[0])) == 1


# Who may do what --------------------------------------------------------------------------------------


@pytest.fixture
def as_role(connect: Connect) -> dict[str, psycopg.Connection]:
    """A session a role, each with that role's rights and no others."""
    sessions = {role: connect() for role in ROLES}
    for role, session in sessions.items():
        session.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
    return sessions


def test_no_role_has_a_right_on_a_table_or_a_sequence(connection: psycopg.Connection) -> None:
    for relation in looked_up(connection, RELATIONS):
        if relation["relkind"] == "v":
            # the leader tells an app's hooks of alerts
            leaders = ["pgqueue_worker select"] if relation["relname"] == "health" else []
            assert relation["grants"] == ["pgqueue_admin select", "pgqueue_monitor select", *leaders]
        else:
            assert relation["grants"] == [], relation["relname"]


PRODUCERS = (
    "enqueue",
    "enqueue_many",
    "look",
    "wait_for",
    "endings_under_way",
    "events_horizon",
    "read_events",
    "protocol",
)


def test_a_producer_can_enqueue_and_look_and_nothing_else(
    as_role: dict[str, psycopg.Connection], connection: psycopg.Connection
) -> None:
    producer = as_role["pgqueue_producer"]
    enqueue(producer, unique_key="k", idempotency_key="k", delay=60)
    enqueue(producer, options={"tags": ["x"]})
    enqueue_many(producer, [{"task": "t", "unique_key": "k2"}])
    assert call(producer, "protocol")
    assert count(connection, "ready_jobs", "scheduled_jobs") == 3
    worker = register(connection)
    asleep = {"worker_id": worker, "queues": ["default"]}
    call(connection, "fall_asleep", **asleep)
    enqueue(producer)  # notifies
    assert [row["state"] for row in call(producer, "look", ids=[enqueue(producer)])] == ["ready"]
    call(producer, "wait_for", ids=[1], channel="pgqueue_wait_0123456789abcdef")
    assert call(producer, "endings_under_way") == []
    for verb in vars(calls).values():
        if isinstance(verb, calls.Verb) and verb.function not in PRODUCERS:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                producer.execute(verb.sql("format"), [None] * len(verb.parameters))
    _sees_no_table(producer, connection, views=False)


def test_a_monitor_reads_the_views_and_nothing_else(
    as_role: dict[str, psycopg.Connection], connection: psycopg.Connection
) -> None:
    monitor = as_role["pgqueue_monitor"]
    enqueue(connection)
    assert scalar(monitor, "select count(*) from pgqueue_bi.jobs") == 1
    for function in looked_up(connection, FUNCTIONS):
        assert "pgqueue_monitor" not in function["callers"]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        enqueue(monitor)
    _sees_no_table(monitor, connection, views=True)


def test_a_worker_role_runs_a_jobs_whole_life(as_role: dict[str, psycopg.Connection]) -> None:
    session = as_role["pgqueue_worker"]
    with session.transaction(force_rollback=True):
        whole_life(session)
    for verb in ("pause", "resume"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            call(session, verb, queue="default")


def test_an_admin_may_call_everything_that_is_public(
    as_role: dict[str, psycopg.Connection], connection: psycopg.Connection
) -> None:
    for function in looked_up(connection, FUNCTIONS):
        assert not function["callers"] or "pgqueue_admin" in function["callers"]
    assert call(as_role["pgqueue_admin"], "find_dead") == []
    assert scalar(as_role["pgqueue_admin"], "select count(*) from pgqueue_bi.workers") == 0


def test_a_role_without_any_grant_can_do_nothing(connect: Connect, connection: psycopg.Connection) -> None:
    stranger = connect()
    stranger.execute("set role pg_monitor")
    for query in ("select pgqueue.enqueue('t')", "select from pgqueue_bi.jobs", "select pgqueue.protocol()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            stranger.execute(query)
    _sees_no_table(stranger, connection, views=False)


def _sees_no_table(session: psycopg.Connection, catalog: psycopg.Connection, *, views: bool) -> None:
    """Neither reads nor writes any relation, but the views where `views` is true."""
    for relation in looked_up(catalog, RELATIONS):
        name = sql.Identifier(str(relation["schema"]), str(relation["relname"]))
        statements = ["select from {}", "delete from {}", "truncate {}", "insert into {} default values"]
        if relation["relkind"] == "S":
            statements = ["select last_value from {}", "select nextval('{}')"]
        elif relation["relkind"] == "v":
            statements = [] if views else ["select from {}"]
        for statement in statements:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(sql.SQL(statement).format(name))


def whole_life(connection: psycopg.Connection) -> None:
    """Every verb of producers and workers, once; leaves rows behind."""
    assert call(connection, "protocol")
    worker = register(connection, supervisor_id=5)
    assert call(connection, "hold_session", supervisor_id=5) is True
    assert call(connection, "heartbeat", worker_ids=[worker]) == []
    call(connection, "fall_asleep", worker_id=worker, queues=["default"])
    assert call(connection, "writers", relation="ready_jobs") == []
    call(connection, "wake_up", worker_id=worker)
    call(connection, "lack_task", worker_id=worker, task="x")
    enqueue_many(connection, [{"task": "t", "unique_key": str(n)} for n in range(5)])
    jobs = claim(connection, worker, 5)
    ids, leases = [job.id for job in jobs], [job.lease for job in jobs]
    told = [{"id": ids[0], "lease": leases[0], "progress": {"done": 1}, "lines": []}]
    call(connection, "note_progress", notes=Jsonb(told))
    call(connection, "note_reports", reports=Jsonb(told))
    call(connection, "wait_for", ids=ids, channel="pgqueue_wait_0123456789abcdef")
    assert call(connection, "endings_under_way") == []
    assert call(connection, "complete", ids=ids[:1], leases=leases[:1]) == ids[:1]
    assert len(call(connection, "look", ids=ids)) == len(ids)
    (horizon,) = call(connection, "events_horizon")
    place = {"after_at": "2020-01-01", "after_id": 0, "after_attempt": 0}
    assert call(connection, "read_events", **place, until=horizon["until"])
    assert call(connection, "snooze", ids=ids[1:2], leases=leases[1:2], delays=[5.0]) == ids[1:2]
    assert call(connection, "release", ids=ids[2:3], leases=leases[2:3]) == ids[2:3]
    failure = {"id": ids[3], "lease": leases[3]}
    assert call(connection, "fail", failures=Jsonb([failure])) == ids[3:4]
    assert call(connection, "forget_claim", worker_id=worker, fence=leases[4]) == ids[4:]
    assert call(connection, "forget_unheld", worker_id=worker, ids=[], leases=[]) == []
    arguments = {
        "worker_ids": [worker],
        "queues": ["default"],
        "round_seconds": 1,
        "overdue_seconds": 2,
        "hears": True,
    }
    assert call(connection, "upkeep", supervisor_id=5, **arguments)[0]["problems"] == []
    call(connection, "promote", max_jobs=5)
    rules = [{"name": "s", "task": "t", "at_startup": True, "overlap": "queue", "tz": "Europe/Paris"}]
    rules += [{"name": "u", "task": "t", "every": 5}]
    assert len(call(connection, "sync_schedules", owner="o", schedules=Jsonb(rules), starts=True)) == 2
    assert call(connection, "keep_time", pause_seconds=1, hears=True)[0]["schedules_due"]
    (_, due) = call(connection, "due_schedules")
    read = {name: due[name] for name in ("name", "changed_at", "due_at")}
    once = {"dues": [due["due_at"]], "outcomes": ["enqueued"], "missed": [0], "next_due_at": None}
    assert call(connection, "tick", **read, **once) == 1
    assert call(connection, "resign", supervisor_id=5)
    call(connection, "prove_floors")
    call(connection, "prove_floors")
    call(connection, "retain")
    assert call(connection, "count_depths") >= 0
    assert call(connection, "roll_up") >= 0
    assert call(connection, "rescue", worker_id=worker) == 0


# Whose database it is ---------------------------------------------------------------------------------


CALLED_INSIDE = """
with called as materialized (
    select distinct lower(found[1]) as name
      from pg_proc as p cross join regexp_matches(p.prosrc, '([a-z_0-9]+)\\s*\\(', 'gi') as found
     where p.pronamespace = 'pgqueue'::regnamespace
)
select f.proname::text as name, f.proretset as is_set,
       array(select format('%I.%I', n.nspname, y.typname) from unnest(f.proargtypes::oid[]) with ordinality as a (type, place)
               join pg_type as y on y.oid = a.type join pg_namespace as n on n.oid = y.typnamespace order by a.place) as arguments,
       (select format('%I.%I', n.nspname, y.typname) from pg_type as y join pg_namespace as n on n.oid = y.typnamespace
         where y.oid = f.prorettype) as result
  from pg_proc as f
 where f.pronamespace = 'pg_catalog'::regnamespace and f.proname in (select c.name from called as c) and f.prokind = 'f'
   and f.provariadic = 0 and f.prorettype <> 'internal'::regtype and not 'internal'::regtype = any (f.proargtypes)
"""
"""The functions of pg_catalog that bodies of pgqueue seem to call, with every signature that they have."""
OPERATORS = """
select o.oprname::text as name, l.typname::text as left_type, r.typname::text as right_type
  from pg_operator as o join pg_type as l on l.oid = o.oprleft join pg_type as r on r.oid = o.oprright
 where o.oprnamespace = 'pg_catalog'::regnamespace
   and array[l.typname, r.typname] <@ '{text,int4,int8,int2,float8,bool,jsonb,timestamptz,interval,_text,_int8,date,oid,name,regclass}'::name[]
"""
TYPES = (
    "text",
    "jsonb",
    "int4",
    "int8",
    "int2",
    "timestamptz",
    "float8",
    "bool",
    "regclass",
    "interval",
    "date",
    "name",
    "_text",
    "_int8",
)


def hostile_objects(connection: psycopg.Connection, *, types: bool = True) -> int:
    """Plants traps in schema hostile and among the temporary objects; returns how many functions and operators."""
    connection.execute("""
        create schema hostile;
        grant usage on schema hostile to public;
        create function hostile.trap() returns void language plpgsql as $$ begin raise exception 'trapped'; end $$""")
    planted = 0
    for function in looked_up(connection, CALLED_INSIDE):
        arguments, result = ", ".join(function["arguments"]), str(function["result"])
        returns = f"setof {result}" if function["is_set"] else result
        try:
            with connection.transaction():
                connection.execute(
                    sql.SQL(
                        "create function hostile.{}({}) returns {} language plpgsql as $$ begin perform hostile.trap(); end $$"
                    ).format(sql.Identifier(function["name"]), sql.SQL(arguments), sql.SQL(returns))
                )
        except (psycopg.errors.InvalidFunctionDefinition, psycopg.errors.FeatureNotSupported):
            continue  # of a kind that only the server itself can make
        planted += 1
    for operator in looked_up(connection, OPERATORS):
        left, right = f"pg_catalog.{operator['left_type']}", f"pg_catalog.{operator['right_type']}"
        connection.execute(f"""
            create or replace function hostile.trapped({left}, {right}) returns pg_catalog.bool language plpgsql
                as $$ begin perform hostile.trap(); end $$;
            create operator hostile.{operator["name"]} (function = hostile.trapped, leftarg = {left}, rightarg = {right})""")  # type: ignore[call-overload]
        planted += 1
    for name in TYPES if types else ():
        connection.execute(f"create type hostile.\"{name}\" as enum ('trapped')")  # type: ignore[call-overload]
    tables = {str(r["relname"]) for r in looked_up(connection, RELATIONS)}
    for table in (
        *tables,
        "pg_class",
        "pg_locks",
        "pg_inherits",
        "pg_roles",
        "pg_timezone_names",
        "pg_database",
    ):
        connection.execute(f"create table hostile.{table} (trap int)")  # type: ignore[call-overload]
        connection.execute(f"grant all on hostile.{table} to public")  # type: ignore[call-overload]
    return planted


def hostile_tables(session: psycopg.Connection) -> None:
    """Temporary tables that are called like pgqueue's and like those of the catalog."""
    names = session.execute(
        "select relname from pg_class where relnamespace = 'hostile'::regnamespace and relkind = 'r'"
    ).fetchall()
    for (name,) in names:
        session.execute(f"create temp table {name} (trap int)")  # type: ignore[call-overload]


def test_hostile_objects_in_the_callers_path_do_not_matter(connect: Connect, fresh: str) -> None:
    connection = connect(fresh)
    # the statements of the client name types, and mean those of the caller's path: as every statement of the caller does
    assert hostile_objects(connection, types=False) > 300
    hostile_tables(connection)
    connection.execute("set search_path = pg_temp, hostile, pg_catalog")
    for trapped in ("select now()", "select 'a'::text = 'b'::text"):
        with pytest.raises(psycopg.errors.RaiseException):
            connection.execute(trapped)  # the traps work
    whole_life(connection)
    dead = [row["id"] for row in call(connection, "find_dead")]
    assert call(connection, "replay", ids=dead) == dead
    with pytest.raises(psycopg.Error, match="priority: 11 is out of range"):
        enqueue(connection, priority=11)


def test_no_function_or_view_meets_a_hostile_object_whoever_calls(connect: Connect, fresh: str) -> None:
    """Every function that a role may call, as it should be called; every view that it may read."""
    admin = connect(fresh)
    assert register(admin) == 1
    enqueue_many(admin, [{"task": "t"}, {"task": "t", "delay": 60, "unique_key": "k"}])
    claim(admin, 1, 1, fence=7)
    # rows for every function to look at: what is never reached is never trapped
    call(admin, "set_queue", queue="default", settings=Jsonb({"worker_limit": 5}))
    whole_life(admin)
    call(admin, "schedule", name="s", task="t", cron="0 3 * * *")
    types = {str(name): qualified for name, qualified in admin.execute(ARGUMENTS).fetchall()}
    hostile_objects(admin)
    functions, relations = looked_up(admin, FUNCTIONS), looked_up(admin, RELATIONS)
    for role in ROLES:
        session = connect(fresh)
        hostile_tables(session)
        session.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        session.execute("set search_path = pg_temp, hostile, pg_catalog")
        called = 0
        for function in functions:
            name = str(function["proname"])
            if role not in function["callers"] or name in (
                "reseal",
                "tick",
            ):  # which need more than constants
                continue
            given = ", ".join(
                f"{argument} => {value}::{types[name][argument]}" for argument, value in GOOD[name].items()
            )
            given = given.replace("array_fill(0::bigint, array[20])", "null").replace(
                "now()", "pg_catalog.now()"
            )
            with session.transaction(force_rollback=True):
                session.execute(f"select * from pgqueue.{name}({given})").fetchall()  # type: ignore[call-overload]
            called += 1
        assert called > 5 or role == "pgqueue_monitor"
        for relation in relations:
            if relation["relkind"] == "v" and f"{role} select" in relation["grants"]:
                session.execute(f"select * from pgqueue_bi.{relation['relname']}").fetchall()  # type: ignore[call-overload]


ARGUMENTS = """
select p.proname::text,
       (select jsonb_object_agg(p.proargnames[a.place], format('%I.%I', n.nspname, y.typname))
          from unnest(p.proargtypes::oid[]) with ordinality as a (type, place)
          join pg_type as y on y.oid = a.type join pg_namespace as n on n.oid = y.typnamespace)
  from pg_proc as p where p.pronamespace = 'pgqueue'::regnamespace
"""
"""The types of a function's arguments, by name, with their schema."""


def test_everybody_has_no_right_on_anything(connection: psycopg.Connection) -> None:
    """Also on what was made after the grants were given: the partitions of days."""
    call(connection, "retain")
    rights = """
        select n.nspname::text, a.privilege_type from pg_namespace as n cross join aclexplode(n.nspacl) as a
         where n.nspname in ('pgqueue', 'pgqueue_bi') and a.grantee = 0
         union all
        select c.relname::text, a.privilege_type from pg_class as c cross join aclexplode(c.relacl) as a
         where c.relnamespace in ('pgqueue'::regnamespace, 'pgqueue_bi'::regnamespace) and a.grantee = 0
         union all
        select p.proname::text, a.privilege_type
          from pg_proc as p cross join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
         where p.pronamespace in ('pgqueue'::regnamespace, 'pgqueue_bi'::regnamespace) and a.grantee = 0"""
    assert connection.execute(rights).fetchall() == []
    for role in ROLES:
        for schema in ("pgqueue", "pgqueue_bi"):
            assert not scalar(connection, "select has_schema_privilege(%s, %s, 'create')", role, schema)


def test_a_producer_that_writes_tables_itself_is_refused(
    as_role: dict[str, psycopg.Connection], connection: psycopg.Connection
) -> None:
    """42501, whatever the statement: `_sees_no_table` tries each relation, this says what one gets."""
    enqueue(connection)
    for statement in (
        "insert into pgqueue.ready_jobs (id, task) values (1, 't')",
        "update pgqueue.ready_jobs set task = 'other'",
        "delete from pgqueue.ready_jobs",
        "truncate pgqueue.ready_jobs",
        "copy pgqueue.ready_jobs to stdout",
        "drop table pgqueue.ready_jobs",
        "alter table pgqueue.ready_jobs disable trigger all",
        "create trigger mine after insert on pgqueue.ready_jobs execute function pg_catalog.suppress_redundant_updates_trigger()",
        "create table pgqueue.mine ()",
        "create or replace function pgqueue.protocol(out newest integer, out oldest integer) language sql return (9, 9)",
        "select setval('pgqueue.positions', 1)",
        "comment on table pgqueue.ready_jobs is 'mine'",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
            as_role["pgqueue_producer"].execute(statement)
        assert refused.value.sqlstate == "42501", statement
    assert count(connection, "ready_jobs") == 1


def test_everything_works_for_an_owner_without_special_rights(databases: Databases) -> None:
    """The roles are the server's: made when that is permitted, and nothing needs them."""
    dsn = databases.create_empty()
    owner = f"pgqueue_test_owner_{os.getpid()}"
    connection = open_session(dsn)
    try:
        database = scalar(connection, "select current_database()")
        connection.execute(sql.SQL("create role {} nologin").format(sql.Identifier(owner)))
        connection.execute(
            sql.SQL("grant create on database {} to {}").format(
                sql.Identifier(database), sql.Identifier(owner)
            )
        )
        connection.execute(sql.SQL("set session authorization {}").format(sql.Identifier(owner)))
        install(connection)
        whole_life(connection)
        assert {row["state"] for row in _states(connection)} >= {"ready", "scheduled", "completed", "dead"}
        assert rows(connection, "lane_floors")
    finally:
        connection.close()
        databases.drop(dsn)
        with open_session(databases.dsn_for("postgres")) as admin:
            admin.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(owner)))


def _states(connection: psycopg.Connection) -> list[dict[str, Any]]:
    return looked_up(connection, "select distinct state from pgqueue_bi.jobs")
