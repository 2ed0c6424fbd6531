"""Enqueue in plain SQL: what a job becomes, what is refused, and whom a key leads to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql.acting import (
    Connect,
    call,
    claim,
    count,
    enqueue,
    enqueue_many,
    everything,
    pid,
    register,
    row_of,
    rows,
    sabotaged,
    scalar,
)
from tests.support import release_when_waited_for, wait_for_lock_wait, wait_until

KEYS = ("unique_key", "idempotency_key")
OPTIONAL = ("args", "queue", "priority", "run_at", "delay", "max_attempts", *KEYS, "options")

# What a job becomes -----------------------------------------------------------------------------------


def test_a_bare_task_gets_every_default(connection: psycopg.Connection) -> None:
    with connection.transaction():
        row = call(connection, "enqueue", task="send")[0]
        now = scalar(connection, "select now()")
    job = row_of(connection, row["id"])
    assert row["created"] is True
    assert job.pop("position") > 0
    assert job == {
        "id": row["id"],
        "table": "ready_jobs",
        "run_at": now,
        "created_at": now,
        "lane": 11,
        "attempt": 0,
        "max_attempts": 5,
        "crashes": 0,
        "queue": "default",
        "task": "send",
        "args": {},
        "unique_key": None,
        "options": None,
    }


def test_null_means_the_default_for_every_argument_but_task(connection: psycopg.Connection) -> None:
    bare = row_of(connection, enqueue(connection))
    (null,) = call(connection, "enqueue", task="t", **dict.fromkeys(OPTIONAL))
    nulls = row_of(connection, null["id"])
    for column in ("id", "position", "run_at", "created_at"):
        del bare[column], nulls[column]
    assert nulls == bare


def test_a_json_null_in_a_bulk_means_the_default(connection: psycopg.Connection) -> None:
    bare = row_of(connection, enqueue(connection))
    ids, created = enqueue_many(connection, [{"task": "t"}, {"task": "t"} | dict.fromkeys(OPTIONAL)])
    assert created == [True, True]
    for id in ids:
        job = row_of(connection, id)
        assert {n: v for n, v in job.items() if n not in ("id", "position", "run_at", "created_at")} == {
            n: v for n, v in bare.items() if n not in ("id", "position", "run_at", "created_at")
        }


def test_every_option_is_kept(connection: psycopg.Connection) -> None:
    options = {"tags": ["a"], "metadata": {"n": 9007199254740993}}
    given = {
        "args": {"user": "ü", "n": 9007199254740993},
        "queue": "e-mail / größe",
        "priority": 2,
        "max_attempts": 32767,
        "unique_key": "u",
        "idempotency_key": "i",
        "options": options,
    }
    single = row_of(connection, enqueue(connection, "one", **given))
    ids, _ = enqueue_many(connection, [{"task": "two", **given}])
    for job in (single, row_of(connection, ids[0])):
        assert job["lane"] == 5
        assert {name: job[name] for name in ("args", "queue", "max_attempts", "unique_key", "options")} == {
            name: given[name] for name in ("args", "queue", "max_attempts", "unique_key", "options")
        }


@pytest.mark.parametrize("priority", range(10))
def test_a_priority_is_an_odd_lane(connection: psycopg.Connection, priority: int) -> None:
    assert row_of(connection, enqueue(connection, priority=priority))["lane"] == 2 * priority + 1
    ids, _ = enqueue_many(connection, [{"task": "t", "priority": priority}])
    assert row_of(connection, ids[0])["lane"] == 2 * priority + 1


def test_a_delay_counts_from_the_call_not_from_the_start_of_the_transaction(
    connection: psycopg.Connection,
) -> None:
    with connection.transaction():
        before = scalar(connection, "select clock_timestamp()")
        single = enqueue(connection, delay=60)
        (bulk,), _ = enqueue_many(connection, [{"task": "t", "delay": 60}])
        after = scalar(connection, "select clock_timestamp()")
    for id in (single, bulk):
        job = row_of(connection, id)
        assert job["table"] == "scheduled_jobs"
        assert before <= job["run_at"] - timedelta(seconds=60) <= after
        assert job["created_at"] < before


def test_a_run_at_ahead_is_scheduled_for_exactly_then(connection: psycopg.Connection) -> None:
    due = datetime.now(UTC) + timedelta(days=99 * 365)
    ids, _ = enqueue_many(connection, [{"task": "t", "run_at": due.isoformat()}])
    for id in (enqueue(connection, run_at=due), *ids):
        job = row_of(connection, id)
        assert (job["table"], job["run_at"]) == ("scheduled_jobs", due)


@pytest.mark.parametrize("due", ["0001-01-01T00:00:00+00:00", "2020-02-29T12:00:00+00:00"])
def test_a_run_at_in_the_past_is_ready_at_once(connection: psycopg.Connection, due: str) -> None:
    ids, _ = enqueue_many(connection, [{"task": "t", "run_at": due}])
    for id in (enqueue(connection, run_at=due), *ids):
        job = row_of(connection, id)
        assert (job["table"], job["run_at"]) == ("ready_jobs", datetime.fromisoformat(due))


def test_a_delay_of_nothing_is_ready_at_once(connection: psycopg.Connection) -> None:
    ids, _ = enqueue_many(connection, [{"task": "t", "delay": 0}])
    for id in (enqueue(connection, delay=0), *ids):
        assert row_of(connection, id)["table"] == "ready_jobs"


def test_an_enqueue_leaves_the_callers_settings_alone(connection: psycopg.Connection) -> None:
    with connection.transaction():
        settings = "select array_agg((name, setting)::text order by name) from pg_settings"
        enqueue(connection)  # loads plpgsql, and its settings
        before = scalar(connection, settings)
        enqueue(connection, delay=5, unique_key="k")
        enqueue_many(connection, [{"task": "t"}])
        assert scalar(connection, settings) == before


# In the caller's transaction --------------------------------------------------------------------------


def test_a_job_exists_if_and_only_if_its_transaction_commits(connect: Connect) -> None:
    producer, observer = connect(autocommit=False), connect()
    ready, later = enqueue(producer), enqueue(producer, delay=60)
    assert count(observer, "ready_jobs", "scheduled_jobs") == 0
    producer.rollback()
    assert count(observer, "ready_jobs", "scheduled_jobs") == 0
    ready, later = enqueue(producer), enqueue(producer, delay=60)
    producer.commit()
    assert row_of(observer, ready)["table"] == "ready_jobs"
    assert row_of(observer, later)["table"] == "scheduled_jobs"


def test_a_savepoints_rollback_removes_its_own_jobs_and_frees_their_keys(
    connection: psycopg.Connection,
) -> None:
    with connection.transaction():
        kept = enqueue(connection, unique_key="kept")
        with connection.transaction(force_rollback=True):
            enqueue(connection, unique_key="a", idempotency_key="b")
            enqueue_many(connection, [{"task": "t"}, {"task": "t", "delay": 9}])
        again = call(connection, "enqueue", task="t", unique_key="a", idempotency_key="b")[0]
        assert again["created"] is True
    assert {job["id"] for job in rows(connection, "ready_jobs")} == {kept, again["id"]}
    assert count(connection, "scheduled_jobs") == 0


# What is refused --------------------------------------------------------------------------------------

_NAME = "PQ001", "A task's name has 1 to 200 characters, none of them a control character."
_QUEUE = "PQ001", "A queue's name has 1 to 100 characters: no control characters, quotes or asterisks."
_PRIORITY = "PQ001", "Priorities go from 0 (first) to 9."
_ATTEMPTS = "PQ001", "From 1 to 32767."
_DELAY = "PQ001", "Seconds, from 0 to ten years."
_RUN_AT = "PQ001", "Up to the year 2199."
_KEY = "PQ001", "From 1 to 255 characters."
_ARGS = "PQ003", 'Name each argument: {"user_id": 7}.'
_OPTIONS = "PQ001", "Keys: tags, metadata, retry, unique."

REFUSED: list[tuple[dict[str, Any], str, tuple[str, str]]] = [
    ({"task": None}, "task: NULL is not a name", _NAME),
    ({"task": ""}, "task: '' is not a name", _NAME),
    ({"task": "x" * 201}, f"task: '{'x' * 40}' is not a name", _NAME),
    ({"task": "a\nb"}, "task: 'a?b' is not a name", _NAME),
    ({"task": "a\x7fb"}, "task: 'a?b' is not a name", _NAME),
    ({"queue": ""}, "queue: '' is not a name", _QUEUE),
    ({"queue": "x" * 101}, f"queue: '{'x' * 40}' is not a name", _QUEUE),
    ({"queue": "email*"}, "queue: 'email*' is not a name", _QUEUE),
    ({"queue": 'a"b'}, "queue: 'a\"b' is not a name", _QUEUE),
    ({"queue": "a'b"}, "queue: 'a''b' is not a name", _QUEUE),
    ({"queue": "a\tb"}, "queue: 'a?b' is not a name", _QUEUE),
    ({"priority": -1}, "priority: -1 is out of range", _PRIORITY),
    ({"priority": 10}, "priority: 10 is out of range", _PRIORITY),
    ({"priority": 40_000}, "priority: 40000 is out of range", _PRIORITY),
    ({"priority": 2**31 - 1}, "priority: 2147483647 is out of range", _PRIORITY),
    ({"priority": -(2**31)}, "priority: -2147483648 is out of range", _PRIORITY),
    ({"max_attempts": 0}, "max_attempts: 0 is out of range", _ATTEMPTS),
    ({"max_attempts": -1}, "max_attempts: -1 is out of range", _ATTEMPTS),
    ({"max_attempts": 32_768}, "max_attempts: 32768 is out of range", _ATTEMPTS),
    ({"max_attempts": 2**31 - 1}, "max_attempts: 2147483647 is out of range", _ATTEMPTS),
    ({"delay": -0.5}, "delay: -0.5 is out of range", _DELAY),
    ({"delay": "NaN"}, "delay: NaN is out of range", _DELAY),
    ({"delay": "Infinity"}, "delay: Infinity is out of range", _DELAY),
    ({"delay": "-Infinity"}, "delay: -Infinity is out of range", _DELAY),
    ({"delay": 1e300}, "delay: 1e+300 is out of range", _DELAY),
    ({"delay": 315_360_001}, "delay: 315360001 is out of range", _DELAY),
    ({"run_at": "infinity"}, "run_at: infinity is out of range", _RUN_AT),
    ({"run_at": "-infinity"}, "run_at: -infinity is out of range", _RUN_AT),
    ({"run_at": "2200-01-02 00:00:00+00"}, "run_at: 2200-01-02 00:00:00+00 is out of range", _RUN_AT),
    ({"run_at": "9999-12-31 00:00:00+00"}, "run_at: 9999-12-31 00:00:00+00 is out of range", _RUN_AT),
    ({"run_at": "2020-01-01", "delay": 5}, "run_at and delay: both given", ("PQ001", "Give one of them.")),
    ({"unique_key": ""}, "unique_key: 0 characters", _KEY),
    ({"unique_key": "x" * 256}, "unique_key: 256 characters", _KEY),
    ({"idempotency_key": ""}, "idempotency_key: 0 characters", _KEY),
    ({"idempotency_key": "x" * 256}, "idempotency_key: 256 characters", _KEY),
    ({"args": Jsonb([1])}, "args: expected a JSON object, got a JSON array", _ARGS),
    ({"args": Jsonb("text")}, "args: expected a JSON object, got a JSON string", _ARGS),
    ({"args": Jsonb(7)}, "args: expected a JSON object, got a JSON number", _ARGS),
    ({"args": Jsonb(True)}, "args: expected a JSON object, got a JSON boolean", _ARGS),
    ({"args": Jsonb(None)}, "args: expected a JSON object, got a JSON null", _ARGS),
    ({"options": Jsonb([])}, "options: expected a JSON object, got a JSON array", _OPTIONS),
    ({"options": Jsonb("x")}, "options: expected a JSON object, got a JSON string", _OPTIONS),
]


def _id(value: Any) -> str | None:
    if isinstance(value, dict):
        return " ".join(
            f"{n}={getattr(v, 'obj', v)!s:.12}".encode("unicode_escape").decode() for n, v in value.items()
        )
    return ""


@pytest.mark.parametrize(("options", "message", "code_and_hint"), REFUSED, ids=_id)
def test_bad_input_is_refused_with_a_hint_and_the_transaction_goes_on(
    connection: psycopg.Connection, options: dict[str, Any], message: str, code_and_hint: tuple[str, str]
) -> None:
    before = everything(connection)
    with connection.transaction():
        with pytest.raises(psycopg.Error) as refusal, connection.transaction():
            call(connection, "enqueue", **{"task": "t"} | options)
        assert everything(connection) == before
        good = enqueue(connection)
    diagnosis = refusal.value.diag
    assert diagnosis.message_primary == message
    assert (diagnosis.sqlstate, diagnosis.message_hint) == code_and_hint
    assert [job["id"] for job in rows(connection, "ready_jobs")] == [good]


@pytest.mark.parametrize(
    ("options", "message", "code_and_hint"),
    # null args are the default in a bulk, and a bulk has no NULL but JSON's
    [case for case in REFUSED if "args" not in case[0] or case[0]["args"].obj is not None],
    ids=_id,
)
def test_a_bad_item_of_a_bulk_is_named_by_its_place_and_nothing_is_written(
    connection: psycopg.Connection, options: dict[str, Any], message: str, code_and_hint: tuple[str, str]
) -> None:
    before = everything(connection)
    bad = {"task": "t"} | {name: getattr(value, "obj", value) for name, value in options.items()}
    good = [{"task": "t", "unique_key": "k"}, {"task": "t", "delay": 5}]
    with connection.transaction():
        with pytest.raises(psycopg.Error) as refusal, connection.transaction():
            enqueue_many(connection, [*good, bad, {"task": ""}])
        assert everything(connection) == before
        ids, created = enqueue_many(connection, good)
    diagnosis = refusal.value.diag
    assert diagnosis.message_primary == f"item 2: {message}"
    assert (diagnosis.sqlstate, diagnosis.message_hint) == code_and_hint
    assert created == [True, True]
    assert count(connection, "ready_jobs", "scheduled_jobs") == len(ids)


@pytest.mark.parametrize("jobs", [None, Jsonb({}), Jsonb("x"), Jsonb(None), Jsonb(1)])
def test_a_bulk_that_is_no_array_is_refused(connection: psycopg.Connection, jobs: Any) -> None:
    with pytest.raises(psycopg.Error) as refusal:
        call(connection, "enqueue_many", jobs=jobs)
    assert refusal.value.diag.message_primary == "jobs: expected a JSON array"
    assert refusal.value.sqlstate == "PQ001"
    assert (
        refusal.value.diag.message_hint == "An array of objects keyed like the arguments of pgqueue.enqueue."
    )


@pytest.mark.parametrize(
    "item",
    [7, "text", None, ["t"], {"task": "t", "priority": "high"}, {"task": "t", "priority": True},
     {"task": "t", "priority": 1.5}, {"task": "t", "run_at": "soon"}, {"task": "t", "delay": {}},
     {"task": "t", "max_attempts": 2**40}],
    ids=str,
)  # fmt: skip
def test_a_bulk_with_an_item_of_the_wrong_type_writes_nothing(
    connection: psycopg.Connection, item: Any
) -> None:
    before = everything(connection)
    with connection.transaction():
        with pytest.raises(psycopg.Error), connection.transaction():
            enqueue_many(connection, [{"task": "t", "idempotency_key": "k"}, item])
        assert everything(connection) == before
        enqueue(connection)


# Many -------------------------------------------------------------------------------------------------


def test_a_bulk_is_served_in_the_order_given(connection: psycopg.Connection) -> None:
    jobs = [{"task": "t", "args": {"n": n}, "unique_key": f"{n % 7}-{n}"} for n in range(40)]
    ids, created = enqueue_many(connection, jobs)
    assert all(created)
    served = claim(connection, register(connection), 40)
    assert [job.id for job in sorted(served, key=lambda job: job.position)] == ids
    assert [row_of(connection, id)["args"]["n"] for id in ids] == list(range(40))


def test_a_bulk_sorts_its_jobs_into_ready_and_scheduled(connection: psycopg.Connection) -> None:
    jobs = [{"task": "t"}, {"task": "t", "delay": 60}, {"task": "t", "run_at": "2020-01-01"}]
    ids, created = enqueue_many(connection, jobs)
    assert created == [True, True, True]
    tables = [row_of(connection, id)["table"] for id in ids]
    assert tables == ["ready_jobs", "scheduled_jobs", "ready_jobs"]


@pytest.mark.parametrize("keyed", [False, True])
def test_a_bulk_of_all_kinds_keeps_each_jobs_place_and_its_order_among_those_without_a_time(
    connection: psycopg.Connection, keyed: bool
) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"options": {"tags": ["a"]}},
        {"delay": 60},
        {"run_at": "2020-01-01"},
        {"queue": "other", "priority": 3, "max_attempts": 7},
        {"delay": 0},
    ]
    jobs = [{"task": "t", "args": {"n": n}, **kinds[n % len(kinds)]} for n in range(60)]
    if keyed:
        jobs = [{**job, "unique_key": f"{n}"} for n, job in enumerate(jobs)]
    ids, created = enqueue_many(connection, jobs)
    assert all(created)
    stored = [row_of(connection, id) for id in ids]
    assert [row["args"]["n"] for row in stored] == list(range(60))
    assert [row["table"] == "scheduled_jobs" for row in stored] == [job.get("delay") == 60 for job in jobs]
    assert [row["queue"] for row in stored] == [job.get("queue", "default") for job in jobs]
    assert [row["options"] for row in stored] == [job.get("options") for job in jobs]
    timeless = [
        row["position"] for row, job in zip(stored, jobs, strict=True) if not {"delay", "run_at"} & {*job}
    ]
    assert timeless == sorted(timeless)


def test_an_empty_bulk_is_empty(connection: psycopg.Connection) -> None:
    assert enqueue_many(connection, []) == ([], [])


def test_a_bulk_says_for_each_job_whether_it_was_created(connection: psycopg.Connection) -> None:
    held = enqueue(connection, unique_key="held")
    jobs = [
        {"task": "t", "unique_key": "b"},
        {"task": "t", "unique_key": "held"},
        {"task": "t"},
        {"task": "t", "unique_key": "b"},
        {"task": "t", "unique_key": "a", "delay": 5},
        {"task": "t", "idempotency_key": "b"},
    ]
    ids, created = enqueue_many(connection, jobs)
    assert created == [True, False, True, False, True, True]
    assert ids[1] == held
    assert ids[3] == ids[0]
    assert len(set(ids)) == 5
    assert count(connection, "ready_jobs", "scheduled_jobs") == 5


# Keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("delay", [None, 60])
def test_a_held_key_leads_to_its_job(connection: psycopg.Connection, key: str, delay: int | None) -> None:
    first = call(connection, "enqueue", task="t", delay=delay, **{key: "k"})
    again = call(connection, "enqueue", task="t", args={"other": 1}, **{key: "k"})
    assert again == [{"id": first[0]["id"], "created": False, "outcome": "kept"}]
    assert count(connection, "ready_jobs", "scheduled_jobs") == 1


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_scoped_to_its_task(connection: psycopg.Connection, key: str) -> None:
    ids = {enqueue(connection, task, **{key: text}) for task in ("a", "b") for text in ("k", "K", "k ")}
    assert len(ids) == 6


def test_the_two_kinds_of_key_do_not_meet(connection: psycopg.Connection) -> None:
    assert enqueue(connection, unique_key="k") != enqueue(connection, idempotency_key="k")


def test_a_unique_key_is_held_until_its_job_has_ended(connection: psycopg.Connection) -> None:
    worker = register(connection)
    first = enqueue(connection, unique_key="k")
    (job,) = claim(connection, worker)
    assert enqueue(connection, unique_key="k") == first
    assert call(connection, "complete", ids=[job.id], leases=[job.lease]) == [first]
    assert enqueue(connection, unique_key="k") != first


def test_an_idempotency_key_is_held_after_its_job_has_ended(connection: psycopg.Connection) -> None:
    worker = register(connection)
    first = enqueue(connection, idempotency_key="k")
    (job,) = claim(connection, worker)
    call(connection, "complete", ids=[job.id], leases=[job.lease])
    assert call(connection, "enqueue", task="t", idempotency_key="k") == [
        {"id": first, "created": False, "outcome": "kept"}
    ]


def test_an_idempotency_key_is_held_for_24_hours(connection: psycopg.Connection) -> None:
    with connection.transaction():
        first = enqueue(connection, idempotency_key="k")
        held = scalar(connection, "select expires_at - now() from pgqueue.unique_keys")
    assert timedelta(hours=24) <= held < timedelta(hours=24, minutes=1)
    connection.execute("update pgqueue.unique_keys set expires_at = clock_timestamp() + interval '1 s'")
    assert enqueue(connection, idempotency_key="k") == first
    connection.execute("update pgqueue.unique_keys set expires_at = clock_timestamp()")
    second = enqueue(connection, idempotency_key="k")
    assert second != first
    assert enqueue(connection, idempotency_key="k") == second  # held anew, by the second
    assert scalar(connection, "select expires_at > now() + interval '23 h' from pgqueue.unique_keys")


def test_with_both_keys_the_idempotency_key_is_asked_first(connection: psycopg.Connection) -> None:
    first = enqueue(connection, idempotency_key="i")
    both = {"unique_key": "u", "idempotency_key": "i"}
    assert call(connection, "enqueue", task="t", **both) == [
        {"id": first, "created": False, "outcome": "kept"}
    ]
    assert enqueue(connection, unique_key="u") != first  # "u" was not taken on the way


@pytest.mark.parametrize("many", [False, True])
def test_with_both_keys_an_unfinished_holder_is_remembered_as_the_answer(
    connection: psycopg.Connection, many: bool
) -> None:
    def again() -> list[dict[str, Any]]:
        if many:
            ids, created = enqueue_many(connection, [{"task": "t", **both}])
            return [{"id": ids[0], "created": created[0], "outcome": "kept"}]
        answer: list[dict[str, Any]] = call(connection, "enqueue", task="t", **both)
        return answer

    holder = enqueue(connection, unique_key="u")
    both = {"unique_key": "u", "idempotency_key": "i"}
    assert again() == [{"id": holder, "created": False, "outcome": "kept"}]
    (job,) = claim(connection, register(connection))
    call(connection, "complete", ids=[job.id], leases=[job.lease])
    # the same enqueue, repeated, means the same job, though "u" is free by now
    assert again() == [{"id": holder, "created": False, "outcome": "kept"}]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_in_a_bulk_an_idempotency_key_given_twice_has_one_answer_that_is_a_job(
    connection: psycopg.Connection, place: int
) -> None:
    """Also when the job that it would have made is turned away by a unique key, for whose holder it stands then."""
    holder = enqueue(connection, unique_key="u")
    jobs = [{"task": "t", "idempotency_key": "i"} for _ in range(3)]
    jobs[place]["unique_key"] = "u"
    ids, created = enqueue_many(connection, jobs)
    assert len(set(ids)) == 1
    assert (ids[0] == holder) == (place == 0)
    assert created == [place != 0, False, False]
    assert row_of(connection, ids[0])
    assert enqueue(connection, idempotency_key="i") == ids[0]


@pytest.mark.parametrize("key", KEYS)
def test_an_enqueue_waits_for_an_uncommitted_holder_and_follows_its_end(
    connect: Connect, connection: psycopg.Connection, key: str
) -> None:
    other, observer = connect(), connect(autocommit=False)
    observer.autocommit = True
    for end in ("rollback", "commit"):
        holder = connect(autocommit=False)
        held = enqueue(holder, **{key: "k"})
        with release_when_waited_for(observer, pid(other), getattr(holder, end)):
            (answer,) = call(other, "enqueue", task="t", **{key: "k"})
        if end == "rollback":
            assert answer["created"] is True
            assert answer["id"] != held
            connection.execute("delete from pgqueue.unique_keys")
        else:
            assert answer == {"id": held, "created": False, "outcome": "kept"}


@pytest.mark.parametrize(
    ("key", "end", "racers"),
    [(KEYS[0], "rollback", 64), (KEYS[0], "commit", 8), (KEYS[1], "rollback", 8), (KEYS[1], "commit", 8)],
)
def test_of_many_producers_racing_for_a_key_one_makes_the_job(
    connect: Connect,
    connection: psycopg.Connection,
    beside: Callable[..., Future[Any]],
    key: str,
    end: str,
    racers: int,
) -> None:
    """Arranged: a first producer holds the key until all the others wait for it, then ends."""
    winner = connect(autocommit=False)
    held = enqueue(winner, **{key: "k"})
    producers = [connect() for _ in range(racers)]
    answers = [beside(call, producer, "enqueue", task="t", **{key: "k"}) for producer in producers]
    waiting = "select count(*) from pg_stat_activity where pid = any(%s) and wait_event_type = 'Lock'"
    pids = list(map(pid, producers))
    wait_until(lambda: scalar(connection, waiting, pids) == racers, message="the lock waits")
    getattr(winner, end)()
    found = [answer.result()[0] for answer in answers]
    assert len({answer["id"] for answer in found}) == 1
    assert count(connection, "ready_jobs") == count(connection, "unique_keys") == 1
    assert sum(answer["created"] for answer in found) == (end == "rollback")
    assert (found[0]["id"] == held) == (end == "commit")
    assert row_of(connection, found[0]["id"])


@pytest.mark.parametrize("level", ["repeatable\\ read", "serializable"])
@pytest.mark.parametrize("key", KEYS)
def test_above_read_committed_a_key_taken_after_the_snapshot_asks_for_a_retry(
    connect: Connect, connection: psycopg.Connection, level: str, key: str
) -> None:
    old = connect(settings=f"-c default_transaction_isolation={level}")
    with old.transaction():
        old.execute("select from pgqueue_bi.jobs")  # takes the snapshot
        held = enqueue(connection, **{key: "k"})
        with pytest.raises(psycopg.errors.SerializationFailure), old.transaction():
            enqueue(old, **{key: "k"})
    assert count(connection, "ready_jobs") == 1
    # the retry sees the holder, whose row is older than its snapshot
    assert call(old, "enqueue", task="t", **{key: "k"}) == [{"id": held, "created": False, "outcome": "kept"}]


@pytest.mark.parametrize("key", KEYS)
def test_bulks_that_share_keys_in_different_orders_do_not_deadlock(
    connect: Connect, beside: Callable[..., Future[Any]], key: str
) -> None:
    created = _two_bulks(connect, beside, keyed(key, "a", "m", "z"), keyed(key, "z", "m", "a"), {key: "m"})
    assert created == [[True, True, True], [False, False, False]]


@pytest.mark.parametrize("key", KEYS)
def test_a_careless_bulk_that_takes_keys_in_the_order_given_deadlocks(
    connect: Connect, connection: psycopg.Connection, beside: Callable[..., Future[Any]], key: str
) -> None:
    careless = (f'order by j.task collate "C", j.{key} collate "C", ', "order by ")
    with sabotaged(connection, "enqueue_many", careless), pytest.raises(psycopg.errors.DeadlockDetected):
        _two_bulks(connect, beside, keyed(key, "a", "m", "z"), keyed(key, "z", "m", "a"), {key: "m"})


def test_bulks_that_share_unique_keys_under_different_idempotency_keys_do_not_deadlock(
    connect: Connect, beside: Callable[..., Future[Any]]
) -> None:
    def bulk(*keys: str) -> list[dict[str, Any]]:
        return [
            {"task": "t", "idempotency_key": f"{keys}-{n}", "unique_key": key} for n, key in enumerate(keys)
        ]

    created = _two_bulks(connect, beside, bulk("a", "m", "z"), bulk("z", "m", "a"), {"unique_key": "m"})
    assert created == [[True, True, True], [False, False, False]]


def keyed(key: str, *values: str) -> list[dict[str, Any]]:
    """Jobs with these keys."""
    return [{"task": "t", key: value} for value in values]


def _two_bulks(
    connect: Connect,
    beside: Callable[..., Future[Any]],
    one: list[dict[str, Any]],
    two: list[dict[str, Any]],
    held: dict[str, str],
) -> list[list[bool]]:
    """What two bulks created that meet: one waits for a third session's key, which that one gives up then."""
    third = connect(autocommit=False)
    enqueue(third, **held)
    observer = connect()
    sessions = [connect(settings="-c deadlock_timeout=20ms") for _ in range(2)]
    ends = []
    for session, jobs in zip(sessions, (one, two), strict=True):
        ends.append(beside(enqueue_many, session, jobs))
        wait_for_lock_wait(observer, pid(session))
    third.rollback()
    return sorted((end.result()[1] for end in ends), reverse=True)


def test_producers_of_different_keys_never_wait_for_each_other(connect: Connect) -> None:
    one, two = connect(autocommit=False), connect(settings="-c lock_timeout=1s")
    enqueue(one, unique_key="a", idempotency_key="a")
    assert enqueue(two, unique_key="b", idempotency_key="b")
    one.rollback()


def test_producers_start_together_on_one_key_and_make_one_job(
    connect: Connect, connection: psycopg.Connection, beside: Callable[..., Future[Any]]
) -> None:
    """Not arranged: whatever interleaving comes, over 20 keys, with roll-backs and endings in between."""
    worker = register(connection)
    start = threading.Barrier(8)

    def produce(session: psycopg.Connection, number: int) -> list[int]:
        made = []
        for key in range(20):
            start.wait(10)
            with session.transaction(force_rollback=(key + number) % 3 == 0) as transaction:
                (answer,) = call(session, "enqueue", task="t", unique_key=str(key))
            if answer["created"] and not transaction.force_rollback:
                made.append(answer["id"])
            if number == 0:
                jobs = claim(session, worker, 5)
                call(session, "complete", ids=[j.id for j in jobs], leases=[j.lease for j in jobs])
        return made

    made = [id for end in [beside(produce, connect(), n) for n in range(8)] for id in end.result()]
    assert len(made) == len(set(made))
    ready = [job["id"] for job in rows(connection, "ready_jobs")]
    finished = [job["id"] for job in rows(connection, "finished_jobs")]
    assert sorted(ready + finished) == sorted(made)
    held = {(row["key"], row["job_id"]) for row in rows(connection, "unique_keys")}
    assert held == {(job["unique_key"], job["id"]) for job in rows(connection, "ready_jobs")}
