"""Bad calls of the SQL functions: refused with an SQLSTATE of pgqueue's own and a hint, or documented to do nothing.

Every function that some role may call is taken from the catalog and called with nulls and with values that make no sense, one
argument at a time: a function that is new fails here until `GOOD` says how it is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from tests.badinput.table import Case, table
from tests.sql.acting import everything, open_session
from tests.support import Databases

FUNCTIONS = """
select p.proname::text,
       array(select p.proargnames[a.n] || ' ' || format_type(a.type, null)
               from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality as a (type, n)
              where coalesce(p.proargmodes[a.n], 'i') in ('i', 'b') order by a.n) as arguments
  from pg_proc as p
 where p.pronamespace = 'pgqueue'::regnamespace
   and exists (select from aclexplode(p.proacl) as a where a.grantee not in (0, p.proowner))
 order by 1
"""
OURS = re.compile("PQ00[1-9]")

# How each function is called as it should be; a job with id 1 runs under lease 7, held by worker 1.
JOB = {"ids": "'{1}'", "leases": "'{7}'"}
SCHEDULE = {"name": "'s'", "task": "'t'", "cron": "'0 3 * * *'"}
CLAIM = {
    "worker_id": "1", "queues": "'{default}'", "limits": "'{1}'", "max_jobs": "1",
    "cursors": "array_fill(0::bigint, array[20])", "fence": "9",
}  # fmt: skip
PLACE = {"after_at": "now()", "after_id": "0", "after_attempt": "0", "until": "now()"}
REGISTER = {
    "supervisor_id": "1", "host": "'h'", "pid": "1", "version": "'0'", "queues": "'{default}'", "concurrency": "1",
    "lease": "30", "session_lock": "false",
}  # fmt: skip
UPKEEP = {
    "supervisor_id": "1", "worker_ids": "'{1}'", "queues": "'{default}'", "round_seconds": "5", "overdue_seconds": "5",
    "hears": "true",
}  # fmt: skip
TICK = {
    "name": "'s'", "changed_at": "(select changed_at from pgqueue.schedules where name = 's')", "due_at": "null",
    "dues": "'{2026-01-01}'", "outcomes": "'{enqueued}'", "missed": "'{0}'", "next_due_at": "null",
}  # fmt: skip
CHANNEL = "'pgqueue_wait_0123456789abcdef'"
SEALED = '\'[{"id": 1, "name": "n", "old": {}, "new": {}}]\''

GOOD: dict[str, dict[str, str]] = {
    "cancel": {"ids": "'{1}'"},
    "cancel_matching": {"of_queue": "'default'"},
    "cancel_requests": {"worker_ids": "'{1}'"},
    "claim": CLAIM,
    "complete": JOB,
    "complete_with_results": {"completions": "'[{\"id\": 1, \"lease\": 7, \"result\": 1}]'"},
    "count_depths": {},
    "count_queue": {"queue": "'default'"},
    "count_sealed": {},
    "crashed_jobs": {"worker_ids": "'{1}'"},
    "delete_jobs": {"ids": "'{1}'"},
    "discard": {"ids": "'{1}'"},
    "drop_day": {},
    "due_schedules": {},
    "end_cancelled": {**JOB, "reasons": "'{why}'"},
    "end_expired": JOB,
    "endings_under_way": {},
    "enqueue": {"task": "'t'"},
    "enqueue_many": {"jobs": "'[{\"task\": \"t\"}]'"},
    "events_horizon": {},
    "fail": {"failures": "'[{\"id\": 1, \"lease\": 7}]'"},
    "fall_asleep": {"worker_id": "1", "queues": "'{default}'"},
    "find_dead": {},
    "find_jobs": {},
    "find_sealed": {"place": "'ready'", "newest": "'k'"},
    "find_waiting": {},
    "forget_claim": {"worker_id": "1", "fence": "7"},
    "forget_unheld": {"worker_id": "1", **JOB},
    "heartbeat": {"worker_ids": "'{1}'"},
    "hold_session": {"supervisor_id": "1"},
    "job_record": {"id": "1"},
    "keep_time": {"pause_seconds": "1", "hears": "true"},
    "lack_task": {"worker_id": "1", "task": "'t'"},
    "lane_heads": {},
    "look": {"ids": "'{1}'"},
    "note": {"job_id": "1", "worker_id": "1", "attempt": "1", "level": "'info'", "line": "'x'"},
    "note_progress": {"notes": "'[{\"id\": 1, \"lease\": 7, \"progress\": {\"done\": 1}}]'"},
    "note_reports": {"reports": "'[{\"id\": 1, \"lease\": 7, \"lines\": []}]'"},
    "pause": {"queue": "'default'"},
    "pause_schedule": {"name": "'s'"},
    "promote": {"max_jobs": "1"},
    "protocol": {},
    "prove_floors": {},
    "queue_settings": {"queues": "'{default}'"},
    "read_events": PLACE,
    "record_step": {"job_id": "1", "lease": "7", "name": "'n'", "result": "'1'"},
    "register": REGISTER,
    "release": JOB,
    "replay": {"ids": "'{1}'"},
    "rescue": {"worker_id": "1"},
    "reseal": {"place": "'ready'", "items": SEALED},
    "resign": {"supervisor_id": "1"},
    "resume": {"queue": "'default'"},
    "resume_schedule": {"name": "'s'"},
    "retain": {},
    "retry": {"ids": "'{1}'"},
    "roll_up": {},
    "run_schedule": {"name": "'s'"},
    "schedule": SCHEDULE,
    "schedule_record": {"name": "'s'"},
    "set_queue": {"queue": "'default'", "settings": "'{\"worker_limit\": 5}'"},
    "snooze": {**JOB, "delays": "'{1}'"},
    "stats": {},
    "step_result": {"job_id": "1", "name": "'n'"},
    "stop_workers": {"ids": "'{1}'"},
    "summarize_history": {},
    "sync_schedules": {"owner": "'o'", "schedules": "'[{\"name\": \"u\", \"task\": \"t\", \"every\": 5}]'", "starts": "true"},
    "tick": TICK,
    "trim_history": {},
    "unschedule": {"name": "'s'"},
    "upkeep": UPKEEP,
    "wait_for": {"ids": "'{1}'", "channel": CHANNEL},
    "wake_up": {"worker_id": "1"},
    "writers": {"relation": "'ready_jobs'"},
}  # fmt: skip
"""One call a function that works, as SQL; arguments that are left out have their defaults."""

_ITEMS = [
    "null", "7", "[null]", "[7]", '["x"]', "[[]]", "[[{}]]", "[{}]",
    '[{"id": "x", "lease": "y"}]', '[{"id": 1.5, "lease": 7}]', '[{"id": 1e30, "lease": 7}]', '[{"id": null, "lease": null}]',
    '[{"id": true, "lease": []}]', '[{"id": 1, "lease": 7, "delay": "soon"}]', '[{"id": 1, "lease": 7, "delay": 1e400}]',
    '[{"id": 1, "lease": 7, "error": 5, "message": {}, "reason": [], "progress": 7, "lines": 7, "result": null}]',
    '[{"id": 1, "lease": 7, "progress": {}}, {"id": 1, "lease": 7, "progress": {}}]', '[{"id": 1.0, "lease": 7.0}]',
    '[{"task": 5}]', '[{"task": {}}]', '[{"task": "t", "priority": "high"}]', '[{"task": "t", "priority": 3.7}]',
    '[{"task": "t", "run_at": "yesterday-ish"}]', '[{"task": "t", "run_at": 5}]', '[{"task": "t", "delay": {}}]',
    '[{"task": "t", "max_attempts": 1099511627776}]', '[{"task": "t", "options": {"expires_at": "soon"}}]',
    '[{"task": "t", "options": {"expires_in": "5 min"}}]', '[{"task": "t", "args": []}]', '[{"task": "t", "unique_key": {}}]',
    '[{"name": 5, "task": "t", "every": 5}]', '[{"name": "n", "task": "t", "every": "x"}]', '[{"name": "n", "task": [], "every": 5}]',
    '[{"name": "n", "task": "t", "at": "soon"}]', '[{"name": "n", "task": "t", "every": 5, "priority": 1.5}]',
    '[{"name": "n", "task": "t", "every": 5, "at_startup": "x"}]', '[{"name": "n", "task": "t", "every": 5, "args": 7}]',
    '[{"name": "n", "task": "t", "cron": {}}]', '[{"name": "n", "task": "t", "every": 5, "ends_at": 7}]',
    '{"worker_limit": "x"}', '{"worker_limit": {}}', '{"keep_dead": []}', '{"nope": 1}', '{"expires_at": []}',
    '{"expires_in": 1e300}', '{"unique": 7}', '{"unique": {"scope": 7}}', '{"unique": {"period": 1e400}}', '{"tags": 5}',
]  # fmt: skip
_NUMBERS = ["null", "-1", "0"]
BAD = {
    "bigint": [*_NUMBERS, "9223372036854775807", "-9223372036854775808"],
    "integer": [*_NUMBERS, "2147483647", "-2147483648"],
    "double precision": [*_NUMBERS, "NaN", "Infinity", "-Infinity", "1e300", "-1e300"],
    "text": [
        "null",
        "",
        "nope",
        "x" * 5000,
        "a\nb",
        "\x1b[31m",
        "a'\"*%_\\;--$$",
        "pgqueue.x; drop",
        "\u202ea",
    ],
    "text[]": ["null", "{}", "{NULL}", "{a,b,c}", "{{a,b},{c,d}}", '{""}', "{default,NULL}"],
    "bigint[]": ["null", "{}", "{NULL}", "{-1,0,1,2,3}", "{{1,2},{3,4}}", "{1,1}"],
    "integer[]": ["null", "{}", "{NULL}", "{-1,5,7}", "{{1,2},{3,4}}"],
    "double precision[]": ["null", "{}", "{NULL}", "{NaN}", "{1,2}", "{{1}}", "{-1e300}"],
    "boolean": ["null"],
    "timestamp with time zone": ["null", "infinity", "-infinity", "294000-01-01", "4000-01-01 BC"],
    "timestamp with time zone[]": ["null", "{}", "{NULL}", "{infinity}", "{2026-01-01,2026-01-02}"],
    "jsonb": ["null", *_ITEMS],
    "date": ["null", "infinity"],
}
"""Values that make no sense, or little, of each type that an argument has."""


@pytest.fixture(scope="module")
def database(databases: Databases) -> Iterator[str]:
    """The DSN of the module's database: one running job, one that waits, one dead, a schedule."""
    dsn = databases.create()
    with open_session(dsn) as connection:
        connection.execute("select pgqueue.register(1, 'h', 1, '0', '{default}', 1, 30, false)")
        connection.execute(
            'select pgqueue.enqueue_many(\'[{"task": "t"}, {"task": "t"}, {"task": "t", "delay": 60}]\')'
        )
        connection.execute("select pgqueue.schedule('s', 't', cron => '0 3 * * *')")
        two = "array_fill(0::bigint, array[20])"
        connection.execute(f"select pgqueue.claim(1, '{{default}}', '{{1}}', 1, {two}, 7)")
        connection.execute(f"select pgqueue.claim(1, '{{default}}', '{{1}}', 1, {two}, 8)")
        connection.execute('select pgqueue.fail(\'[{"id": 2, "lease": 8}]\')')
    yield dsn
    databases.drop(dsn)


@pytest.fixture(scope="module")
def module_session(database: str) -> Iterator[psycopg.Connection]:
    with open_session(database) as connection:
        yield connection


@pytest.fixture
def connection(module_session: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A session in a transaction that is rolled back after the test."""
    with module_session.transaction(force_rollback=True):
        module_session.execute("set local statement_timeout = '5s'; set local pgqueue.notify = off")
        yield module_session


@pytest.fixture(scope="module")
def functions(module_session: psycopg.Connection) -> dict[str, dict[str, str]]:
    """The functions that some role may call: the types of their arguments by name."""
    return {
        str(name): dict(argument.split(" ", 1) for argument in arguments)
        for name, arguments in module_session.execute(FUNCTIONS).fetchall()
    }


def run(
    connection: psycopg.Connection, function: str, arguments: dict[str, str], types: dict[str, str]
) -> None:
    """Calls a function with arguments that are SQL, in a savepoint that is rolled back."""
    given = ", ".join(f"{name} => ({value})::{types[name]}" for name, value in arguments.items())
    with connection.transaction(force_rollback=True):
        connection.execute(f"select * from pgqueue.{function}({given})").fetchall()  # type: ignore[call-overload]


def literal(value: str) -> str:
    return "null" if value == "null" else sql.Literal(value).as_string(None)


def is_ours(error: psycopg.Error) -> bool:
    """With an SQLSTATE of pgqueue's, a hint, and a message that is one printable line."""
    said = error.diag
    message = said.message_primary or ""
    return (
        OURS.fullmatch(said.sqlstate or "") is not None
        and bool(said.message_hint)
        and "\n" not in message
        and "\x1b" not in message
        and len(message) < 400
    )


def test_every_function_that_may_be_called_is_called_here(functions: dict[str, dict[str, str]]) -> None:
    assert set(GOOD) == set(functions), "say in GOOD how a function is called as it should be"


@pytest.mark.parametrize("function", GOOD)
def test_a_call_works_or_is_refused_by_an_error_of_ours(
    function: str, connection: psycopg.Connection, functions: dict[str, dict[str, str]]
) -> None:
    """Never by what a cast, a constraint or the planner says about the inside."""
    types, good = functions[function], GOOD[function]
    if function != "reseal":  # of which a call that works needs a job that is sealed
        run(connection, function, good, types)
    problems = []
    for argument, kind in types.items():
        for value in BAD[kind]:
            bad = literal(value)
            try:
                run(connection, function, {**good, argument: bad}, types)
            except psycopg.Error as error:
                if not is_ours(error):
                    problems.append(
                        f"{argument} => {bad[:60]}: {error.sqlstate} {error.diag.message_primary}"
                    )
    assert problems == []


# Nulls for all ------------------------------------------------------------------------------------------

_NAME = "1 to 100 characters: no control characters, quotes or asterisks."
REFUSES_NULLS = {
    "cancel_matching": "cancel_matching: no filter given",
    "claim": "claim: max_jobs null, fence null, queues and limits of lengths null and null",
    "enqueue": "task: NULL is not a name",
    "enqueue_many": "jobs: expected a JSON array",
    "find_sealed": "place: there is nothing to seal anew in NULL",
    "keep_time": "pause_seconds: null is out of range",
    "note": "note: job_id null, worker_id null, attempt null",
    "pause": "queue: '' is not a name",
    "register": "register: supervisor_id null, host NULL, pid null, version NULL, queues NULL, session_lock null",
    "reseal": "items: expected a JSON array",
    "schedule": "schedule null: name: NULL is not a name",
    "set_queue": "queue: '' is not a name",
    "stats": "last_seconds: null is out of range",
    "sync_schedules": "owner: NULL is not a name",
    "upkeep": "supervisor_id: null is out of range",
    "wait_for": "channel: NULL is not a waiter's",
    "writers": "relation: NULL is no table of pgqueue",
}
NULLS = table(
    "sql",
    *(
        Case(
            f"pgqueue.{name}",
            "null for every argument",
            "PQ004" if name == "record_step" else "PQ001" if name in REFUSES_NULLS else "nothing happens",
            "job null: the lease was lost" if name == "record_step" else REFUSES_NULLS.get(name, ""),
            name,
        )
        for name, arguments in GOOD.items()
        if arguments
        or name in ("cancel_matching", "endings_under_way", "find_dead", "find_jobs", "find_waiting", "stats")
    ),
)


@pytest.mark.parametrize("case", NULLS, ids=Case.id)
def test_nulls_for_all_are_refused_or_change_nothing(
    case: Case, connection: psycopg.Connection, functions: dict[str, dict[str, str]]
) -> None:
    types = functions[case.input]
    nulls = ", ".join(f"{name} => null::{kind}" for name, kind in types.items())
    call = f"select * from pgqueue.{case.input}({nulls})"
    before = everything(connection)
    try:
        with connection.transaction():
            connection.execute(call)  # type: ignore[call-overload]
    except psycopg.Error as error:
        refused(case, error)
    else:
        assert case.error == "nothing happens"
    assert everything(connection) == before


def refused(case: Case, error: psycopg.Error) -> None:
    """The error is what the row says."""
    assert is_ours(error), f"{error.sqlstate} {error.diag.message_primary} | {error.diag.message_hint}"
    assert (error.sqlstate, case.says(error.diag.message_primary or "")) == (case.error, True), (
        f"{error.sqlstate} {error.diag.message_primary}"
    )


# Said by name ---------------------------------------------------------------------------------------------

MANY = "pgqueue.enqueue_many"
CALLS = table(
    "sql",
    Case(MANY, "an item that is no object", "PQ001", "item 1: expected a JSON object, got a JSON number", """'[{"task": "t"}, 7]'"""),
    Case(MANY, "an array in the array", "PQ001", "item 0: expected a JSON object, got a JSON array", """'[[{"task": "t"}]]'"""),
    Case(MANY, "a null in the array", "PQ001", "item 0: expected a JSON object, got a JSON null", "'[null]'"),
    Case(MANY, "a task that is a number", "PQ001", "item 0: task: expected text, got a JSON number", """'[{"task": 5}]'"""),
    Case(MANY, "a task that is true", "PQ001", "item 0: task: expected text, got a JSON boolean", """'[{"task": true}]'"""),
    Case(MANY, "a queue that is an object", "PQ001", "item 0: queue: expected text, got a JSON object", """'[{"task": "t", "queue": {}}]'"""),
    Case(MANY, "a priority that is a word", "PQ001", "item 1: priority: 'high' is no whole number", """'[{"task": "a"}, {"task": "a", "priority": "high"}]'"""),
    Case(MANY, "a priority with a fraction", "PQ001", "item 0: priority: '3.7' is no whole number", """'[{"task": "a", "priority": 3.7}]'"""),
    Case(MANY, "a priority that is true", "PQ001", "item 0: priority: 'true' is no whole number", """'[{"task": "a", "priority": true}]'"""),
    Case(MANY, "a priority in an odd spelling", "PQ001", "item 0: priority: ' 3' is no whole number", """'[{"task": "a", "priority": " 3"}]'"""),
    Case(MANY, "a priority out of range", "PQ001", "item 0: priority: 10 is out of range", """'[{"task": "a", "priority": 10}]'"""),
    Case(MANY, "attempts beyond all integers", "PQ001", "item 0: max_attempts: '1099511627776' is no whole number", """'[{"task": "a", "max_attempts": 1099511627776}]'"""),
    Case(MANY, "attempts with leading zeros", "PQ001", "item 0: max_attempts: '007' is no whole number", """'[{"task": "a", "max_attempts": "007"}]'"""),
    Case(MANY, "attempts out of range", "PQ001", "item 0: max_attempts: 32768 is out of range", """'[{"task": "a", "max_attempts": 32768}]'"""),
    Case(MANY, "a run_at that is no time", "PQ001", "item 0: run_at: 'yesterday-ish' is no time", """'[{"task": "a", "run_at": "yesterday-ish"}]'"""),
    Case(MANY, "a run_at that is a number", "PQ001", "item 0: run_at: '1735689600' is no time", """'[{"task": "a", "run_at": 1735689600}]'"""),
    Case(MANY, "a delay that is no number", "PQ001", "item 2: delay: '5 min' is no number", """'[{"task": "a"}, {"task": "a", "delay": 5}, {"task": "a", "delay": "5 min"}]'"""),
    Case(MANY, "args that are a list", "PQ003", "item 0: args: expected a JSON object, got a JSON array", """'[{"task": "a", "args": []}]'"""),
    Case("pgqueue.enqueue", "options.expires_at that is no time", "PQ001", "options.expires_at: 'soon' is no time", """'t', options => '{"expires_at": "soon"}'"""),
    Case("pgqueue.enqueue", "options.expires_in beyond all intervals", "PQ001", "options.expires_in: 1…0 is out of range", """'t', options => '{"expires_in": 1e300}'"""),
    Case("pgqueue.enqueue", "a name with an escape sequence", "PQ001", "task: '?[31mred' is not a name", r"E'\x1b[31mred'"),
    Case("pgqueue.complete", "arrays of different lengths", "PQ001", "ids, leases: arrays of different lengths: 2, 1", "'{1,2}', '{7}'"),
    Case("pgqueue.release", "arrays of different lengths", "PQ001", "ids, leases: arrays of different lengths: 1, 2", "'{1}', '{7,8}'"),
    Case("pgqueue.snooze", "arrays of different lengths", "PQ001", "ids, leases, delays: arrays of different lengths: 1, 1, 2", "'{1}', '{7}', '{1,2}'"),
    Case("pgqueue.end_cancelled", "arrays of different lengths", "PQ001", "ids, leases, reasons: arrays of different lengths: 1, 1, 0", "'{1}', '{7}', '{}'"),
    Case("pgqueue.end_expired", "arrays of different lengths", "PQ001", "ids, leases: arrays of different lengths: 0, 1", "'{}', '{7}'"),
    Case("pgqueue.fail", "no array", "PQ001", "failures: expected a JSON array, got a JSON object", "'{}'"),
    Case("pgqueue.fail", "an id that is text", "PQ001", "failures: item 1: id 'x', lease '7', delay NULL: expected whole numbers, and seconds", """'[{"id": 9, "lease": 9}, {"id": "x", "lease": 7}]'"""),
    Case("pgqueue.fail", "a delay that is text", "PQ001", "failures: item 0: id '1', lease '7', delay 'soon': expected whole numbers, and seconds", """'[{"id": 1, "lease": 7, "delay": "soon"}]'"""),
    Case("pgqueue.complete_with_results", "an item that is no object", "PQ001", "completions: item 0: expected a JSON object, got a JSON number", "'[7]'"),
    Case("pgqueue.note_progress", "a lease with a fraction", "PQ001", "notes: item 0: id '1', lease '7.5', delay NULL: expected whole numbers, and seconds", """'[{"id": 1, "lease": 7.5, "progress": {}}]'"""),
    Case("pgqueue.claim", "a worker that is not registered", "PQ002", "worker 99 is not registered", "99, '{default}', '{1}', 1, null, 9"),
    Case("pgqueue.claim", "fewer limits than queues", "PQ001", "claim: max_jobs 1, fence given, queues and limits of lengths 2 and 1", "1, '{a,b}', '{1}', 1, null, 9"),
    Case("pgqueue.record_step", "a wrong lease", "PQ004", "job 1: the lease was lost", "1, 8, 'n', '1'"),
    Case("pgqueue.record_step", "no name", "PQ001", "job 1: a step without a name", "1, 7, null, '1'"),
    Case("pgqueue.writers", "a table that is not there", "PQ001", "relation: 'x; drop table y' is no table of pgqueue", "'x; drop table y'"),
    Case("pgqueue.register", "a null among the queues",
        "PQ001", "register: supervisor_id 1, host 'h', pid 1, version '0', queues '{NULL}', session_lock false", "1, 'h', 1, '0', '{null}', 1, 30, false"),
    Case("pgqueue.register", "a lease that is no number", "PQ001", "lease: NaN is out of range", "1, 'h', 1, '0', '{a}', 1, 'NaN', false"),
    Case("pgqueue.find_jobs", "a number less than 0", "PQ001", "max_rows: -1 is out of range", "max_rows => -1"),
    Case("pgqueue.find_jobs", "args that are a list", "PQ001", "of_args: expected a JSON object, got a JSON array", "of_args => '[]'"),
    Case("pgqueue.find_jobs", "a state that is none", "PQ001", "of_states: '{ready,lost}': not all of them are states", "'{ready,lost}'"),
    Case("pgqueue.cancel_matching", "a state that cannot be cancelled", "PQ001", "of_state: 'dead' is not one that can be cancelled", "of_state => 'dead'"),
    Case("pgqueue.stats", "a span beyond all intervals", "PQ001", "last_seconds: 1e+300 is out of range", "1e300"),
    Case("pgqueue.set_queue", "a setting that is none", "PQ001", "settings: limit is none", """'mail', '{"limit": 5}'"""),
    Case("pgqueue.set_queue", "a setting of the wrong type", "PQ001", "worker_limit: invalid input syntax …", """'mail', '{"worker_limit": "many"}'"""),
    Case("pgqueue.pause", "a time that has passed", "PQ001", "until: … is not ahead", "'mail', '2020-01-01'"),
    Case("pgqueue.replay", "args that are a list", "PQ003", "replay: expected a JSON object of args, got a JSON array", "'{1}', '[]'"),
    Case("pgqueue.sync_schedules", "an interval that is text", "PQ001", "schedule n: every: x is out of range", """'o', '[{"name": "n", "task": "t", "every": "x"}]', true"""),
    Case("pgqueue.sync_schedules", "a time that is none", "PQ001", "schedule n: at: 'soon' is none", """'o', '[{"name": "n", "task": "t", "at": "soon"}]', true"""),
    Case("pgqueue.tick", "outcomes that are none", "PQ001", "schedule s: dues, outcomes, missed: not one of each for a due time", "'s', (select changed_at from pgqueue.schedules), null, '{2026-01-01}', '{lost}', '{0}', null"),
)  # fmt: skip


@pytest.mark.parametrize("case", CALLS, ids=Case.id)
def test_a_bad_call_is_refused_by_name_and_writes_nothing(case: Case, connection: psycopg.Connection) -> None:
    before = everything(connection)
    with pytest.raises(psycopg.Error) as caught, connection.transaction():
        connection.execute(f"select * from {case.where}({case.input})")  # type: ignore[call-overload]
    refused(case, caught.value)
    assert everything(connection) == before
    assert connection.execute("select (pgqueue.enqueue('t')).created").fetchone() == (True,)  # and it goes on


def test_spellings_that_the_server_reads_are_taken(connection: psycopg.Connection) -> None:
    """What is refused above is what nobody can read; text that is a plain number is one."""
    jobs = """[{"task": "t", "priority": "3", "max_attempts": "32767"}, {"task": "5", "priority": 0, "max_attempts": 1},
               {"task": "true"}, {"task": "[x]", "delay": "5", "run_at": null}, {"task": "t", "run_at": "2020-01-01"}]"""
    row = connection.execute("select ids, created from pgqueue.enqueue_many(%s)", [jobs]).fetchone()
    assert row is not None
    assert row[1] == [True] * 5
    found = connection.execute(
        "select task, lane / 2, max_attempts from pgqueue.ready_jobs where id = any(%s) order by id", [row[0]]
    ).fetchall()
    assert found == [("t", 3, 32767), ("5", 0, 1), ("true", 5, 5), ("t", 5, 5)]


@pytest.mark.parametrize("priority", range(10))
def test_a_bulk_reads_every_priority(priority: int, connection: psycopg.Connection) -> None:
    connection.execute("select pgqueue.enqueue_many(%s)", [f'[{{"task": "p", "priority": {priority}}}]'])
    assert connection.execute("select lane from pgqueue.ready_jobs where task = 'p'").fetchall() == [
        (2 * priority + 1,)
    ]


def test_a_wrong_lease_changes_nothing_and_is_told(connection: psycopg.Connection) -> None:
    before = everything(connection)
    wrong = '[{"id": 1, "lease": 8, "progress": {}, "lines": []}]'
    for call in (
        "complete('{1}', '{8}')", "release('{1}', '{8}')", "snooze('{1}', '{8}', '{1}')", "end_cancelled('{1}', '{8}', '{x}')",
        "end_expired('{1}', '{8}')", f"fail('{wrong}')", f"complete_with_results('{wrong}')", "forget_claim(1, 8)",
    ):  # fmt: skip
        assert connection.execute(f"select pgqueue.{call}").fetchone() == ([],), call  # type: ignore[call-overload]
    for call in (f"note_progress('{wrong}')", f"note_reports('{wrong}')"):
        connection.execute(f"select pgqueue.{call}")  # type: ignore[call-overload]
    assert everything(connection) == before
