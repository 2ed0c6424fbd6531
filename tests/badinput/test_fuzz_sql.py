"""Whatever JSON the SQL functions are given: they do what it says, or refuse it with an SQLSTATE of ours; no job is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.badinput.fuzzing import fuzzed, json_values, texts
from tests.badinput.test_sql import is_ours
from tests.sql.acting import open_session
from tests.support import Databases

# A value of the kind that is wanted, more often than not: else every call is refused for its first key.
_numbers = st.one_of(
    st.integers(-2, 12), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts, json_values
)
_names = st.one_of(st.sampled_from(["t", "mail", "a.b"]), texts, json_values)
_objects = st.one_of(st.just({}), st.dictionaries(texts, json_values, max_size=3), json_values)
_moments = st.one_of(st.sampled_from(["2020-01-01", "2030-01-01T00:00:00Z", "tomorrow"]), texts, json_values)
_unique = st.fixed_dictionaries(
    {},
    optional={
        "scope": st.one_of(st.sampled_from(["unfinished", "waiting"]), json_values),
        "period": _numbers,
        "on_conflict": st.one_of(
            st.sampled_from(["keep", "replace", "debounce", "raise_priority", "follow_up"]), json_values
        ),
        "max_delay": _numbers,
    },
)
_options = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "tags": json_values, "metadata": json_values, "retry": json_values, "timeout": json_values, "on_crash": json_values,
            "expires_at": _moments, "expires_in": _numbers, "unique": st.one_of(_unique, json_values),
        },
    ),
    json_values,
)  # fmt: skip
_job = st.fixed_dictionaries(
    {"task": _names},
    optional={
        "args": _objects, "queue": _names, "priority": _numbers, "run_at": _moments, "delay": _numbers, "max_attempts": _numbers,
        "unique_key": _names, "idempotency_key": _names, "options": _options, "nobody": json_values,
    },
)  # fmt: skip
_plain = st.fixed_dictionaries(
    {"task": st.just("t")}, optional={"priority": _numbers, "max_attempts": _numbers, "queue": _names}
)
_bulks = st.one_of(
    st.lists(st.one_of(_plain, _job), max_size=4),
    st.lists(st.one_of(_job, json_values), max_size=3),
    json_values,
)
_claims = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"id": st.one_of(st.just(1), _numbers), "lease": st.one_of(st.just(7), _numbers)},
            optional={
                "delay": _numbers, "error": json_values, "message": json_values, "traceback": json_values, "reason": json_values,
                "fingerprint": json_values, "result": json_values, "progress": json_values, "lines": json_values,
            },
        ),
        json_values,
    ),
    max_size=3,
)  # fmt: skip
_schedules = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"name": _names, "task": _names},
            optional={
                "cron": st.one_of(st.just("0 3 * * *"), json_values), "every": _numbers, "at": _moments, "at_startup": json_values,
                "tz": st.one_of(st.just("Europe/Paris"), json_values), "args": _objects, "priority": _numbers, "options": _options,
                "starts_at": _moments, "ends_at": _moments, "jitter": _numbers, "grace": _numbers, "missed": json_values,
                "missed_limit": _numbers, "overlap": json_values, "seconds": json_values, "max_attempts": _numbers, "queue": _names,
            },
        ),
        json_values,
    ),
    max_size=2,
)  # fmt: skip
_settings = st.one_of(
    st.dictionaries(
        st.sampled_from(
            [
                "worker_limit",
                "max_attempts",
                "timeout",
                "keep_completed",
                "keep_dead",
                "max_failure_ratio",
                "name",
            ]
        ),
        st.one_of(_numbers, st.sampled_from(["7 days", "none"])),
        max_size=3,
    ),
    json_values,
)


@pytest.fixture(scope="module")
def session(databases: Databases) -> Iterator[psycopg.Connection]:
    """A session of a database in which job 1 runs under lease 7."""
    dsn = databases.create()
    with open_session(dsn) as connection:
        connection.execute(
            "select pgqueue.register(1, 'h', 1, '0', '{default}', 1, 30, false), pgqueue.enqueue('t')"
        )
        connection.execute("select pgqueue.claim(1, '{default}', '{1}', 1, null, 7)")
        yield connection
    databases.drop(dsn)


def call(session: psycopg.Connection, query: str, *values: Any) -> Any:
    """The first row, in a transaction that is rolled back; None when the call is refused as it should be."""
    refusal: psycopg.Error | None = None
    row = None
    with session.transaction(force_rollback=True):
        try:
            with session.transaction():
                row = session.execute(query, values).fetchone()  # type: ignore[call-overload]
                _nothing_is_lost(session, query, values, row)
        except psycopg.Error as error:
            refusal = error
    assert refusal is None or is_ours(refusal), f"{refusal.sqlstate} {refusal.diag.message_primary}"
    return row


def _nothing_is_lost(session: psycopg.Connection, query: str, values: tuple[Any, ...], row: Any) -> None:
    if "enqueue_many" in query:
        found = session.execute(
            "select count(distinct j.id) from pgqueue_bi.jobs as j where j.id = any(%s)", [row[0]]
        ).fetchone()
        assert found == (len(set(row[0])),)
        assert len(row[0]) == len(values[0].obj)


@fuzzed(120)
@given(_bulks)
def test_a_bulk_of_anything(session: psycopg.Connection, jobs: Any) -> None:
    call(session, "select ids from pgqueue.enqueue_many(%s)", Jsonb(jobs))


@fuzzed(60)
@given(st.one_of(st.none(), texts), json_values, st.one_of(st.none(), texts), _options, st.booleans())
def test_an_enqueue_of_anything(
    session: psycopg.Connection, task: str | None, args: Any, key: str | None, options: Any, keyed: bool
) -> None:
    keys = {"unique_key": key if keyed else None, "idempotency_key": None if keyed else key}
    call(
        session,
        "select id from pgqueue.enqueue(%s, %s, %s, unique_key => %s, idempotency_key => %s, options => %s)",
        task, Jsonb(args), key, *keys.values(), Jsonb(options),
    )  # fmt: skip


@fuzzed(80)
@given(
    st.sampled_from(["fail", "complete_with_results", "note_progress", "note_reports"]),
    st.one_of(_claims, json_values),
)
def test_endings_and_notes_of_anything(session: psycopg.Connection, function: str, claims: Any) -> None:
    call(session, f"select pgqueue.{function}(%s)", Jsonb(claims))


@fuzzed(60)
@given(st.one_of(_schedules, json_values))
def test_schedules_of_anything(session: psycopg.Connection, schedules: Any) -> None:
    call(session, "select * from pgqueue.sync_schedules('app', %s, true)", Jsonb(schedules))


@fuzzed(40)
@given(st.one_of(st.none(), texts), _settings)
def test_settings_of_anything(session: psycopg.Connection, queue: str | None, settings: Any) -> None:
    call(session, "select pgqueue.set_queue(%s, %s)", queue, Jsonb(settings))


@fuzzed(60)
@given(
    st.sampled_from(["find_jobs", "find_dead", "cancel_matching"]),
    st.dictionaries(st.sampled_from(["of_queue", "of_task", "of_tag", "of_fingerprint"]), texts),
    json_values,
)
def test_filters_of_anything(
    session: psycopg.Connection, function: str, filters: dict[str, str], args: Any
) -> None:
    """Text is compared as it stands: what no job has finds none."""
    given_ = {**filters, "of_args": Jsonb(args)}
    named = ", ".join(f"{name} => %s" for name in given_)
    call(session, f"select * from pgqueue.{function}({named})", *given_.values())
