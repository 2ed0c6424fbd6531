"""What holds on every kind of connection."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pgqueue import calls, errors
from pgqueue.app import App
from pgqueue.job import Job
from pgqueue.retry import Fixed
from pgqueue.task import Task
from pgqueue.unique import Unique
from tests.conformance.kinds import Kind
from tests.support import release_when_waited_for, wait_until

AnyTask = Task[..., None]
Session = psycopg.Connection


def seen(observer: Session, task: AnyTask) -> list[int]:
    """The ids of the jobs of `task` that another session sees."""
    rows = observer.execute("select id from pgqueue_bi.jobs where task = %s order by id", [task.name])
    return [id for (id,) in rows]


def orders(observer: Session, task: AnyTask) -> int:
    """How many business rows of this test another session sees."""
    row = observer.execute("select count(*) from orders where task = %s", [task.name]).fetchone()
    assert row
    return int(row[0])


def place_order(kind: Kind, task: AnyTask) -> None:
    """The application's own statement."""
    assert kind.scalar(f"insert into orders values ('{task.name}') returning 1") == 1


# The transaction is the caller's ------------------------------------------------------------------------


def test_a_commit_makes_the_job_exist_and_nothing_before_it_does(
    kind: Kind, task: AnyTask, observer: Session
) -> None:
    kind.begin()
    place_order(kind, task)
    job = kind.enqueue(task, user_id=7)
    assert seen(observer, task) == []
    assert orders(observer, task) == 0
    kind.commit()
    assert seen(observer, task) == [job.id]
    assert orders(observer, task) == 1


def test_a_rollback_leaves_neither_the_job_nor_the_order(
    kind: Kind, task: AnyTask, observer: Session
) -> None:
    kind.begin()
    place_order(kind, task)
    kind.enqueue(task)
    kind.rollback()
    assert seen(observer, task) == []
    assert orders(observer, task) == 0


def test_the_rollback_of_a_savepoint_removes_only_its_own_jobs(
    kind: Kind, task: AnyTask, app: App, observer: Session
) -> None:
    kind.begin()
    before = kind.enqueue(task)
    kind.savepoint()
    kind.enqueue(task)
    kind.enqueue_many(app, [task.item(n=n) for n in range(3)])
    kind.rollback_savepoint()
    after = kind.enqueue(task)
    kind.commit()
    assert seen(observer, task) == [before.id, after.id]


def test_all_enqueues_of_a_transaction_end_with_it(kind: Kind, task: AnyTask, observer: Session) -> None:
    kind.begin()
    for n in range(12):  # beyond the number of uses after which psycopg prepares a statement
        kind.enqueue(task, n=n)
    kind.rollback()
    assert seen(observer, task) == []


# What comes back ----------------------------------------------------------------------------------------


def test_each_enqueue_returns_its_job(kind: Kind, task: AnyTask, observer: Session) -> None:
    kind.begin()
    jobs = [kind.enqueue(task) for _ in range(3)]
    kind.commit()
    assert all(type(job) is Job and type(job.id) is int and job.created is True for job in jobs)
    assert seen(observer, task) == [job.id for job in jobs]


def test_every_option_arrives_in_the_row(kind: Kind, task: AnyTask, observer: Session) -> None:
    args = {"user": 2**53 + 1, "name": "Zoë 🐘 'quoted' \"and\" %s %(p0)s :p0 $1 \\", "nothing": None}
    configured = task.using(
        queue="email",
        priority=2,
        delay="1h",
        retry=Fixed("5s"),
        max_attempts=7,
        unique_key="u:Zoë",
        idempotency_key="i",
        tags=["a", "b"],
        metadata={"k": "v"},
    )
    kind.begin()
    job = kind.enqueue(configured, **args)
    kind.commit()
    row = observer.execute(
        """select args, queue, lane, run_at - now() between interval '59 min' and interval '1 h', max_attempts,
                  unique_key, options->'tags', options->'metadata', options->'retry' is not null
             from pgqueue.scheduled_jobs where id = %s""",
        [job.id],
    ).fetchone()
    assert row == (args, "email", 5, True, 7, "u:Zoë", ["a", "b"], {"k": "v"}, True)


def test_without_options_the_defaults_hold(kind: Kind, task: AnyTask, observer: Session) -> None:
    kind.begin()
    job = kind.enqueue(task)
    kind.commit()
    row = observer.execute(
        "select args, queue, lane, max_attempts, unique_key, options from pgqueue.ready_jobs where id = %s",
        [job.id],
    ).fetchone()
    assert row == ({}, "default", 11, 5, None, None)


# Keys ---------------------------------------------------------------------------------------------------


def test_a_unique_key_that_is_held_returns_the_holder(kind: Kind, task: AnyTask, observer: Session) -> None:
    unique = task.using(unique_key="k")
    kind.begin()
    first = kind.enqueue(unique)
    again = kind.enqueue(unique)
    kind.commit()
    kind.begin()
    later = kind.enqueue(unique)
    other = kind.enqueue(task.using(unique_key="another"))
    kind.commit()
    assert first.created
    assert again == later == Job(first.id, created=False)
    assert other.created
    assert seen(observer, task) == [first.id, other.id]


def test_a_unique_key_is_free_again_after_a_rollback(kind: Kind, task: AnyTask, observer: Session) -> None:
    unique = task.using(unique_key="k")
    kind.begin()
    kind.enqueue(unique)
    kind.rollback()
    kind.begin()
    job = kind.enqueue(unique)
    kind.commit()
    assert job.created
    assert seen(observer, task) == [job.id]


def test_an_idempotency_key_makes_one_job_of_a_repeated_enqueue(
    kind: Kind, task: AnyTask, observer: Session
) -> None:
    idempotent = task.using(idempotency_key="request-1")
    kind.begin()
    first = kind.enqueue(idempotent)
    kind.commit()
    kind.begin()
    again = kind.enqueue(idempotent)
    kind.commit()
    assert again == Job(first.id, created=False)
    assert seen(observer, task) == [first.id]


def test_a_race_for_a_key_is_a_return_value_and_leaves_the_transaction_usable(
    kind: Kind, task: AnyTask, observer: Session, other: Session
) -> None:
    unique = task.using(unique_key="k")
    winner = unique.enqueue(other)
    kind.begin()
    place_order(kind, task)
    with release_when_waited_for(observer, kind.pid(), other.commit):
        job = kind.enqueue(unique)
    assert job == Job(winner.id, created=False)
    place_order(kind, task)
    kind.commit()
    assert seen(observer, task) == [winner.id]
    assert orders(observer, task) == 2


def test_the_key_of_a_holder_that_rolls_back_goes_to_the_one_who_waited(
    kind: Kind, task: AnyTask, observer: Session, other: Session
) -> None:
    idempotent = task.using(idempotency_key="k")
    idempotent.enqueue(other)
    kind.begin()
    with release_when_waited_for(observer, kind.pid(), other.rollback):
        job = kind.enqueue(idempotent)
    kind.commit()
    assert job.created
    assert seen(observer, task) == [job.id]


def test_the_handle_says_what_became_of_the_holder_of_a_key(kind: Kind, task: AnyTask, app: App) -> None:
    kept, replaced, raised = (
        task.using(unique=Unique(key="k", on_conflict=policy), priority=2)
        for policy in ("keep", "replace", "raise_priority")
    )
    kind.begin()
    first = kind.enqueue(task.using(unique_key="k"))
    jobs = [kind.enqueue(bound) for bound in (kept, replaced, raised, kept)]
    many = kind.enqueue_many(app, [task.item(), kept.item(n=1), replaced.item(n=2)])
    kind.commit()
    assert (first.created, first.outcome) == (True, "created")
    assert {job.id for job in (*jobs, *many[1:])} == {first.id}
    assert [job.outcome for job in jobs] == ["kept", "replaced", "raised", "kept"]
    assert [job.outcome for job in many] == ["created", "kept", "replaced"]
    assert [job.created for job in many] == [True, False, False]


@pytest.mark.parametrize(
    ("level", "key"), [("repeatable read", "unique_key"), ("serializable", "idempotency_key")]
)
def test_above_read_committed_a_younger_holder_asks_for_a_retry(
    kind: Kind, task: AnyTask, observer: Session, level: str, key: str
) -> None:
    keyed = task.using(**{key: "k"})  # type: ignore[arg-type]
    kind.begin()
    kind.execute(f"set transaction isolation level {level}")
    kind.scalar("select count(*) from orders")  # takes the snapshot
    winner = keyed.enqueue(observer)
    with pytest.raises(errors.SerializationConflict, match="run the whole transaction again") as caught:
        kind.enqueue(keyed)
    assert caught.value.__cause__ is not None
    kind.rollback()
    kind.begin()
    assert kind.enqueue(keyed) == Job(winner.id, created=False)
    kind.commit()


# Bulk ---------------------------------------------------------------------------------------------------


def test_a_bulk_returns_its_jobs_in_the_order_given(
    kind: Kind, task: AnyTask, app: App, observer: Session
) -> None:
    kind.begin()
    held = kind.enqueue(task.using(unique_key="held"), n="held")
    bound = [task.using(priority=n % 10) for n in range(20)]
    bound[3] = task.using(unique_key="z")
    bound[7] = task.using(unique_key="held")
    bound[11] = task.using(unique_key="z")
    bound[13] = task.using(unique_key="a")
    bound[17] = task.using(delay=60)
    jobs = kind.enqueue_many(app, [one.item(n=n) for n, one in enumerate(bound)])
    kind.commit()
    assert jobs[7] == Job(held.id, created=False)
    assert jobs[11] == Job(jobs[3].id, created=False)
    new = {job.id: n for n, job in enumerate(jobs) if job.created}
    assert len(new) == 18
    stored = observer.execute(
        """select id, args->'n' from pgqueue.ready_jobs where task = %(task)s
           union all select id, args->'n' from pgqueue.scheduled_jobs where task = %(task)s""",
        {"task": task.name},
    ).fetchall()
    assert dict(stored) == new | {held.id: "held"}


@pytest.mark.needs_session("it looks for its own session by the process id that it was told")
def test_two_bulks_with_the_same_keys_in_other_orders_do_not_deadlock(
    task: AnyTask, app: App, observer: Session, other: Session, database: str
) -> None:
    """Keys are taken in sorted order, so the bulk below holds neither while it waits for the first."""
    first, second = task.using(unique_key="a"), task.using(unique_key="b")
    winners = [first.enqueue(other)]

    def release() -> None:
        winners.append(second.enqueue(other))
        other.commit()

    with psycopg.connect(database) as connection:
        with release_when_waited_for(observer, connection.info.backend_pid, release):
            jobs = app.enqueue_many(connection, [second.item(), first.item()])
        connection.rollback()
    assert jobs == [Job(winners[1].id, created=False), Job(winners[0].id, created=False)]


def test_a_bulk_block_enqueues_at_its_end_in_the_callers_transaction(
    kind: Kind, task: AnyTask, app: App, observer: Session
) -> None:
    kind.begin()
    bulk = kind.bulk(app, [task, task.using(unique_key="k"), task.using(unique_key="k")])
    assert seen(observer, task) == []
    kind.commit()
    assert [job.created for job in bulk.jobs] == [True, True, False]
    assert seen(observer, task) == [bulk.jobs[0].id, bulk.jobs[1].id]


def test_an_empty_bulk_is_an_empty_list(kind: Kind, app: App) -> None:
    kind.begin()
    assert kind.enqueue_many(app, []) == []
    kind.rollback()


def test_a_bulk_of_several_statements_is_one_transaction(
    kind: Kind, task: AnyTask, app: App, observer: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue.bulk.BATCH_ITEMS", 40)
    kind.begin()
    jobs = kind.enqueue_many(app, [task.item(n=n, text="ä" * 1_000) for n in range(100)])
    assert seen(observer, task) == []
    kind.commit()
    assert seen(observer, task) == sorted(job.id for job in jobs)
    assert len(jobs) == 100


# Refusals -----------------------------------------------------------------------------------------------


def test_bad_arguments_are_refused_and_the_transaction_stays_usable(
    kind: Kind, task: AnyTask, observer: Session
) -> None:
    kind.begin()
    place_order(kind, task)
    for bad, says in [
        ({"a": "\0"}, "args.a: .*NUL"),
        ({"a": {"b": ["\ud800"]}}, r"args.a.b\[0\]: a lone surrogate"),
        ({"a": float("nan")}, "args.a: nan"),
        ({"a": "x" * 1_100_000}, "limit"),
        ({"a": object()}, "args.a: .*object"),
    ]:
        with pytest.raises(errors.InvalidArgs, match=says):
            kind.enqueue(task, **bad)
    job = kind.enqueue(task)
    kind.commit()
    assert seen(observer, task) == [job.id]
    assert orders(observer, task) == 1


def test_text_that_cannot_be_stored_is_refused_below_the_facade_too(
    kind: Kind, task: AnyTask, observer: Session
) -> None:
    """Commands and schedules make calls of their own; asyncpg would send a NUL, and abort the transaction."""
    kind.begin()
    for bad, error, says in [
        ({"args": '{"a": "\0"}'}, errors.InvalidArgs, "args: .*NUL"),
        ({"args": '{"a": "\ud800"}'}, errors.InvalidArgs, "args: .*surrogate"),
        ({"queue": "a\0b"}, errors.InvalidOption, "queue: .*NUL at position 1"),
        ({"unique_key": "\udfff"}, errors.InvalidOption, "unique_key: .*surrogate"),
    ]:
        with pytest.raises(error, match=says):
            kind.run(calls.enqueue(task=task.name, **bad))
    job = kind.enqueue(task)
    kind.commit()
    assert seen(observer, task) == [job.id]


def test_what_the_functions_refuse_is_an_error_of_ours(kind: Kind) -> None:
    for call, error, says in [
        (calls.enqueue(task="t", priority=99), errors.InvalidOption, "priority: 99"),
        (calls.enqueue(task="t", args="[]"), errors.InvalidArgs, "args: expected a JSON object"),
        (
            calls.enqueue_many('[{"task": "t"}, {"task": "t", "delay": -1}]'),
            errors.InvalidOption,
            "item 1: delay",
        ),
    ]:
        kind.begin()
        with pytest.raises(error, match=says) as caught:
            kind.run(call)
        assert caught.value.__cause__ is not None
        assert "\n" not in str(caught.value)
        kind.rollback()


def test_an_aborted_transaction_is_said_to_be_aborted(kind: Kind, task: AnyTask, observer: Session) -> None:
    kind.begin()
    kind.savepoint()
    with pytest.raises(Exception, match="division by zero"):
        kind.scalar("select 1/0")
    with pytest.raises(errors.UnusableConnection, match="aborted by an earlier error"):
        kind.enqueue(task)
    kind.rollback_savepoint()
    job = kind.enqueue(task)
    kind.commit()
    assert seen(observer, task) == [job.id]


def test_a_read_only_transaction_is_said_to_be_read_only(kind: Kind, task: AnyTask) -> None:
    kind.begin()
    kind.execute("set transaction read only")
    with pytest.raises(errors.UnusableConnection, match="read-only"):
        kind.enqueue(task)
    kind.rollback()


def test_a_role_without_rights_is_told_which_role_to_ask_for(
    kind: Kind, task: AnyTask, stranger: str
) -> None:
    kind.begin()
    kind.execute(f"set local role {stranger}")
    with pytest.raises(errors.NotPermitted, match="grant pgqueue_producer"):
        kind.enqueue(task)
    kind.rollback()


def test_errors_that_say_nothing_about_pgqueue_pass_through(
    kind: Kind, task: AnyTask, other: Session
) -> None:
    """A statement timeout while waiting for a key is the application's own setting at work."""
    unique = task.using(unique_key="k")
    unique.enqueue(other)
    kind.begin()
    kind.execute("set local statement_timeout = '5ms'")
    with pytest.raises(Exception, match="statement timeout") as caught:
        kind.enqueue(unique)
    assert not isinstance(caught.value, errors.PgqueueError)
    kind.rollback()


def test_a_connection_that_the_server_ended_means_unavailable(
    kind: Kind, task: AnyTask, observer: Session
) -> None:
    kind.begin()
    pid = kind.pid()
    observer.execute("select pg_terminate_backend(%s)", [pid])
    ended = "select not exists (select from pg_stat_activity where pid = %s)"
    wait_until(lambda: observer.execute(ended, [pid]).fetchone() == (True,), message="the session's end")
    with pytest.raises(errors.DatabaseUnavailable) as caught:
        kind.enqueue(task)
    assert caught.value.__cause__ is not None


@pytest.fixture(scope="module")
def stranger(observer: Session) -> Iterator[str]:
    """A role without any right; roles belong to the server, so it is removed."""
    name = f"pgqueue_stranger_{abs(observer.info.backend_pid)}"
    observer.execute(f"create role {name}")  # type: ignore[call-overload]
    yield name
    observer.execute(f"drop role {name}")  # type: ignore[call-overload]
