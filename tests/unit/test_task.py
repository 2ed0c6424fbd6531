"""Tasks, their options and args, and what the app makes of them; the connection is a stand-in here. What is refused: `tests/badinput/`."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, Literal, TypedDict

import msgspec
import psycopg
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import pgqueue
import pgqueue.pools
from pgqueue import App, BatchJob, Context, Custom, Exponential, Fixed
from pgqueue.calls import Call
from pgqueue.context import add_job, current_job
from pgqueue.errors import (
    ConfigurationError,
    InvalidArgs,
    InvalidOption,
    MissingDSN,
    PgqueueError,
    UnknownTask,
    UnusableConnection,
)
from pgqueue.job import ClaimedJob, Job
from pgqueue.retry import DEFAULT_RETRY
from pgqueue.settings import Settings
from pgqueue.task import BoundTask, Task


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def made(function: Any, **options: Any) -> Task[..., Any]:
    """A task without an app."""
    return Task(function, **options)


@pytest.fixture
def app() -> App:
    return App(settings=Settings())


def row(call: Call[Job]) -> dict[str, str]:
    """The values of an enqueue by name, those that are left to the server not among them."""
    names = [name for name, _ in call.verb.parameters]
    return {name: value for name, value in zip(names, call.values, strict=True) if value is not None}


# Definition


def test_a_bare_task_has_the_defaults(app: App) -> None:
    @app.task
    def send(user_id: int) -> str:
        """Sends."""
        return f"sent to {user_id}"

    assert (send.name, send.queue, send.priority, send.max_attempts) == ("send", "default", 5, 5)
    assert (send.retry, send.permanent, send.transactional) == (DEFAULT_RETRY, (), False)
    assert (send.is_async, send.executor, send.takes_context, send.connection_type) == (
        False,
        "thread",
        False,
        None,
    )
    assert (send.__name__, send.__doc__) == ("send", "Sends.")
    assert send(7) == "sent to 7"
    assert dict(app.tasks) == {"send": send}


async def _async_handler(user_id: int) -> int:
    return user_id + 1


@in_a_loop
async def test_calling_an_async_task_gives_its_coroutine(app: App) -> None:
    task = app.task(queue="email", priority=0, retry=Fixed(1, attempts=2))(_async_handler)
    assert (task.is_async, task.executor, task.max_attempts) == (True, "async", 2)
    assert await task(7) == 8


def test_a_task_has_options(app: App) -> None:
    @app.task(name="mail.send", queue="email", priority=1, permanent=[KeyError, ValueError])
    def send() -> None: ...

    @app.task(permanent=KeyError)
    def other() -> None: ...

    assert (send.name, send.queue, send.priority, send.permanent) == (
        "mail.send",
        "email",
        1,
        (KeyError, ValueError),
    )
    assert other.permanent == (KeyError,)


def test_a_name_is_taken_once(app: App) -> None:
    app.task(name="send")(lambda: None)
    with pytest.raises(ConfigurationError, match="task send is defined twice"):
        app.task(name="send")(lambda: None)


def _positional_only(a: int, /) -> None: ...
def _starred(*numbers: int) -> None: ...
def _late_context(a: int, ctx: Context) -> None: ...
def _generator() -> Any:
    yield 1


async def _async_generator() -> Any:
    yield 1


def _bad_type(a: dict[bytes, int] | set[Any] | list[int]) -> None: ...
def _unknown_type(a: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (_positional_only, "parameter a has no name in the args"),
        (_starred, r"parameter \*numbers has no name"),
        (_late_context, "the Context has to be the first parameter, not ctx"),
        (_generator, "a generator function does not run"),
        (_async_generator, "a generator function does not run"),
        (_bad_type, "the type of parameter a cannot be read from JSON"),
        (_unknown_type, "annotations cannot be read.*NotThere"),
        (App, "goes on a function"),
        (7, "goes on a function"),
    ],
)
def test_a_function_that_cannot_be_a_task_is_refused_at_definition(
    app: App, function: Any, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        app.task(function)
    assert not app.tasks


def test_types_of_the_function_around_a_task_can_be_named(app: App) -> None:
    class Local(msgspec.Struct):
        a: int

    @app.task
    def handle(value: Local) -> None: ...

    @app.task(queue="x")
    def handle_again(value: Local) -> None: ...

    assert handle.decode('{"value": {"a": 1}}') == {"value": Local(1)}
    assert handle_again.decode('{"value": {"a": 1}}') == {"value": Local(1)}


# Context


def test_a_context_is_known_by_its_annotation_or_its_name() -> None:
    def annotated(context: Context, a: int) -> None: ...
    def subscripted(c: Context[Any], a: int) -> None: ...
    def named(ctx, a: int) -> None: ...  # type: ignore[no-untyped-def]
    def other(ctx: int, a: int) -> None: ...

    for function in (annotated, subscripted, named):
        task = made(function)
        assert task.takes_context
        assert task.decode('{"a": 1}') == {"a": 1}
    assert not made(other).takes_context


def test_a_context_is_no_argument_of_an_enqueue() -> None:
    def named(ctx: Context, a: int) -> None: ...

    with pytest.raises(InvalidArgs, match="2 positional arguments, it takes 1"):
        made(named).call(Context(claimed()), 1)
    with pytest.raises(InvalidArgs, match=r"args\.ctx"):
        made(named).call(ctx=Context(claimed()), a=1)


def test_a_transactional_task_says_which_connection_it_wants() -> None:
    async def plain(ctx: Context) -> None: ...
    def plain_sync(ctx: Context) -> None: ...
    async def row_typed(ctx: Context[psycopg.AsyncConnection[dict[str, Any]]]) -> None: ...
    async def session(ctx: Context[AsyncSession]) -> None: ...
    def session_sync(ctx: Context[Session]) -> None: ...

    kinds = [
        made(function, transactional=True).connection_type
        for function in (plain, plain_sync, row_typed, session, session_sync)
    ]
    assert kinds == [
        psycopg.AsyncConnection,
        psycopg.Connection,
        psycopg.AsyncConnection,
        AsyncSession,
        Session,
    ]


def test_a_connection_that_cannot_be_had_is_refused_at_definition() -> None:
    async def sync_kind(ctx: Context[psycopg.Connection[Any]]) -> None: ...
    def async_kind(ctx: Context[AsyncSession]) -> None: ...
    def no_kind(ctx: Context[int]) -> None: ...
    def no_context() -> None: ...

    for function, told in [
        (sync_kind, r"Context\[Connection\] is not offered to an async.*Context\[AsyncConnection\]"),
        (async_kind, r"Context\[AsyncSession\] is not offered to a sync.*Context\[Session\]"),
        (no_kind, r"Context\[int\]"),
        (no_context, "takes no context"),
    ]:
        with pytest.raises(ConfigurationError, match=told):
            made(function, transactional=True)


def claimed(options: str | None = None) -> ClaimedJob:
    return ClaimedJob(7, 99, "email", 5, 1, "send", "{}", 2, 5, 0, options)


def test_a_context_tells_about_the_job() -> None:
    ctx: Context = Context(claimed('{"tags": ["a"], "metadata": {"k": 1}}'))
    assert (ctx.id, ctx.attempt, ctx.max_attempts, ctx.queue, ctx.task, ctx.priority) == (
        7,
        2,
        5,
        "email",
        "send",
        2,
    )
    assert (ctx.tags, ctx.metadata, ctx.idempotency_key) == (("a",), {"k": 1}, "pgqueue:7")
    assert ctx.log is ctx.log
    assert "job 7" in repr(ctx)


@pytest.mark.parametrize("options", [None, "null", "[]", "{}", '{"tags": null}'])
def test_a_context_without_options_has_no_tags(options: str | None) -> None:
    ctx: Context = Context(claimed(options))
    assert (ctx.tags, ctx.metadata) == ((), {})


@pytest.mark.parametrize(
    "options",
    [
        None,
        "null",
        '"headers"',
        '{"headers": null}',
        '{"headers": ["traceparent"]}',
        '{"headers": {"traceparent": 7}}',
        f'{{"headers": {{"traceparent": "x"}}, "n": {"1" * 5_000}}}',  # jsonb has it, Python does not read it
        f'{{"headers": {{"traceparent": "x"}}, "n": {"[" * 100_000}{"]" * 100_000}}}',
    ],
    ids=range(8),
)
def test_headers_that_are_none_are_empty(options: str | None) -> None:
    assert claimed(options).headers == {}


def test_headers_are_those_that_are_text() -> None:
    stored = '{"headers": {"traceparent": "x", "weight": 7}}'
    assert Context(claimed(stored)).headers == BatchJob(1, claimed(stored)).headers == {"traceparent": "x"}


def test_a_context_has_a_connection_in_a_transactional_task_only() -> None:
    connection = object()
    assert Context(claimed(), connection).connection is connection
    with pytest.raises(PgqueueError, match="transactional=True"):
        _ = Context(claimed()).connection


def test_log_lines_name_the_current_job() -> None:
    assert add_job(None, "info", {"event": "x"}) == {"event": "x"}
    token = current_job.set(claimed())
    try:
        assert add_job(None, "info", {"event": "x", "queue": "mine"}) == {
            "event": "x",
            "job_id": 7,
            "task": "send",
            "queue": "mine",
        }
    finally:
        current_job.reset(token)


# Args


class Colour(StrEnum):
    RED = "red"


class Point(TypedDict):
    x: int


class Order(msgspec.Struct):
    id: int


@dataclasses.dataclass
class Address:
    street: str


class Card(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    number: str
    until: datetime | None = None


def _rich(
    order: Order,
    address: Address,
    card: Card,
    cards: list[Card],
    maybe: Card | None,
    colour: Colour,
    point: Point,
    when: datetime,
    key: uuid.UUID,
    amount: Decimal,
    pair: tuple[int, str],
    anything: object,
    kind: Literal["a", "b"],
    by_name: Mapping[str, Sequence[int]],
    wait: timedelta,
) -> None: ...


def test_args_come_back_as_the_types_that_the_parameters_name() -> None:
    until = datetime(2026, 1, 1, tzinfo=UTC)
    args: dict[str, Any] = {
        "order": Order(7),
        "address": Address("x"),
        "card": Card(number="4", until=until),
        "cards": [Card(number="5")],
        "maybe": None,
        "colour": Colour.RED,
        "point": {"x": 1},
        "when": until,
        "key": uuid.UUID(int=5),
        "amount": Decimal("1.10"),
        "pair": (1, "a"),
        "anything": [1],
        "kind": "b",
        "by_name": {"k": [1]},
        "wait": timedelta(hours=1),
    }
    task = made(_rich)
    assert task.decode(row(task.call(**args))["args"]) == args


def send(user_id: int, name: str = "x", *, price: float = 0.0) -> None: ...


def test_arguments_are_bound_as_in_a_call_and_defaults_stay_with_the_function() -> None:
    task = made(send)
    assert row(task.call(7))["args"] == '{"user_id":7}'
    assert row(task.call(7, "y", price=1))["args"] == '{"user_id":7,"name":"y","price":1}'
    assert task.decode('{"user_id":7}') == {"user_id": 7}
    assert task.decode('{"price":1,"user_id":7,"name":"y"}') == {"user_id": 7, "name": "y", "price": 1.0}


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '{"user_id": "7"}',
        "{}",
        '{"user_id": 7, "x": 1}',
        '{"user_id":' + "[" * 100_000,
        "\ud800",
    ],
)
def test_stored_args_that_no_longer_fit_are_invalid(stored: str) -> None:
    with pytest.raises(InvalidArgs, match="task send"):
        made(send).decode(stored)


def test_a_model_that_refuses_is_told_in_one_line_without_the_value() -> None:
    def pay(card: Card) -> None: ...

    with pytest.raises(InvalidArgs) as refused:
        made(pay).decode('{"card": {"number": 41111111}}')
    assert str(refused.value) == "task pay: args.card: number: Input should be a valid string"


def test_a_parameter_without_an_annotation_takes_anything() -> None:
    task = made(lambda a, b=1: None)  # noqa: ARG005
    assert task.decode('{"a": {"x": [1, null]}}') == {"a": {"x": [1, None]}}


def test_keyword_arguments_are_open_when_the_function_says_so() -> None:
    def handle(a: int, **rest: int) -> None: ...

    task = made(handle)
    assert task.decode(row(task.call(1, b=2))["args"]) == {"a": 1, "b": 2}
    with pytest.raises(InvalidArgs, match="expected `int`"):
        task.call(1, b="x")


# Options


def test_only_what_differs_from_the_servers_defaults_is_sent() -> None:
    assert row(made(send).call(7)) == {"task": "send", "args": '{"user_id":7}'}
    task = made(send, queue="email", priority=0, retry=Fixed(attempts=3))
    assert row(task.call(7)) == {
        "task": "send",
        "args": '{"user_id":7}',
        "queue": "email",
        "priority": "0",
        "max_attempts": "3",
    }
    assert row(task.using(queue="default", priority=5).call(7))["max_attempts"] == "3"
    assert "queue" not in row(task.using(queue="default").call(7))


def test_options_of_an_enqueue() -> None:
    bound = made(send).using(
        queue="email",
        priority=9,
        delay="3d",
        max_attempts=7,
        tags=["vip", "eu"],
        metadata={"source": "api", "ids": (1, 2)},
        unique_key="user 7",
        idempotency_key="request 8",
    )
    assert isinstance(bound, BoundTask)
    values = row(bound.call(7))
    assert json.loads(values.pop("options")) == {
        "tags": ["vip", "eu"],
        "metadata": {"source": "api", "ids": [1, 2]},
    }
    assert values == {
        "task": "send",
        "args": '{"user_id":7}',
        "queue": "email",
        "priority": "9",
        "delay": "259200.0",
        "max_attempts": "7",
        "unique_key": "user 7",
        "idempotency_key": "request 8",
    }


def test_a_time_is_sent_with_its_offset() -> None:
    when = datetime(2026, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert row(made(send).using(run_at=when).call(7))["run_at"] == "2026-05-01T10:00:00+00:00"


def test_a_policy_is_stored_with_the_job() -> None:
    task = made(send)
    stored = json.loads(row(task.using(retry=Fixed(5, attempts=9)).call(7))["options"])["retry"]
    assert pgqueue.retry.from_json(stored) == Fixed(5, attempts=9)
    values = row(task.using(retry=Exponential(attempts=9), max_attempts=2).call(7))
    assert values["max_attempts"] == "2"
    assert json.loads(values["options"])["retry"]["attempts"] == 2
    with pytest.raises(InvalidOption, match="Custom is code"):
        task.using(retry=Custom(lambda _attempt, _error: 1))


def test_using_again_keeps_what_is_not_given() -> None:
    bound = made(send).using(queue="email", delay=5).using(priority=1)
    assert row(bound.call(7)).items() >= {"queue": "email", "delay": "5.0", "priority": "1"}.items()
    with pytest.raises(InvalidOption, match="only one of the two"):
        bound.using(run_at=datetime.now(UTC))


class Text(str, Enum):  # noqa: UP042 - such ones exist, and str() of one is not its text
    QUEUE = "email"


def test_an_enum_of_text_is_its_text() -> None:
    assert row(made(send).using(queue=Text.QUEUE).call(7))["queue"] == "email"


# Many at once

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(deadline=None)  # a loaded machine is no failure
@given(
    names,
    st.none() | st.integers(0, 9),
    st.none() | names.filter(bool),
    st.none() | st.dictionaries(names, names),
)
def test_an_item_says_the_same_as_a_call(
    name: str, priority: int | None, key: str | None, metadata: dict[str, str] | None
) -> None:
    bound = made(send).using(priority=priority, unique_key=key, metadata=metadata)
    told = json.loads(bound.item(7, name).json)
    called = row(bound.call(7, name))
    assert told.pop("args") == json.loads(called.pop("args"))
    assert told.pop("options", None) == json.loads(called.pop("options", "null"))
    assert {key: str(value) for key, value in told.items()} == called


class Server:
    """Stands in for `pgqueue.drivers.run`: counts the jobs of a bulk."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.tasks: list[str] = []

    def run(self, target: Any, call: Call[Any]) -> Any:
        items = json.loads(call.values[0] or "")
        jobs = [Job(len(self.tasks) + number, True) for number in range(len(items))]
        self.sizes.append(len(items))
        self.tasks += [item["task"] for item in items]
        if target != "async":
            return jobs

        async def answer() -> list[Job]:
            return jobs

        return answer()


@pytest.fixture
def server(app: App) -> Server:
    server = Server()
    app._run_call = server.run
    return server


SYNC: Any = "sync"
ASYNC: Any = "async"


def test_many_are_sent_in_bounded_batches_and_come_back_in_order(app: App, server: Server) -> None:
    task = app.task(send)
    jobs = app.enqueue_many(SYNC, (task.item(number) for number in range(12_000)))
    assert [job.id for job in jobs] == list(range(12_000))
    assert server.sizes == [5_000, 5_000, 2_000]


def test_batches_are_bounded_in_size_too(app: App, server: Server) -> None:
    task = app.task(send)
    app.enqueue_many(SYNC, [task.item(1, "x" * 1_000_000)] * 20)
    assert server.sizes == [8, 8, 4]


@pytest.mark.usefixtures("server")
def test_none_at_all_is_fine(app: App) -> None:
    assert app.enqueue_many(SYNC, []) == []


@pytest.mark.usefixtures("server")
@in_a_loop
async def test_many_on_an_async_connection_are_awaited(app: App) -> None:
    task = app.task(send)
    jobs: list[Job] = await app.enqueue_many(ASYNC, [task.item(number) for number in range(6_000)])
    assert len(jobs) == 6_000
    assert await app.enqueue_many(ASYNC, []) == []


def test_a_bulk_is_sent_at_the_end_of_its_block(app: App, server: Server) -> None:
    task = app.task(send)
    with app.bulk(SYNC) as bulk:
        bulk.enqueue(task, 7)
        bulk.enqueue(task.using(priority=1), user_id=8)
        assert len(bulk) == 2
        assert server.sizes == []
    assert [job.id for job in bulk.jobs] == [0, 1]


def test_a_bulk_is_dropped_when_its_block_raises(app: App, server: Server) -> None:
    task = app.task(send)
    collected = app.bulk()
    with pytest.raises(RuntimeError), collected as bulk:  # noqa: PT012
        bulk.enqueue(task, 7)
        raise RuntimeError
    assert server.sizes == []
    assert collected.jobs == []


@in_a_loop
async def test_a_bulk_on_an_async_connection(app: App, server: Server) -> None:
    task = app.task(send)
    async with app.bulk(ASYNC) as bulk:
        bulk.enqueue(task, 7)
    assert len(bulk.jobs) == 1
    with pytest.raises(RuntimeError):  # noqa: PT012
        async with app.bulk(ASYNC) as bulk:
            bulk.enqueue(task, 7)
            raise RuntimeError
    assert server.sizes == [1]


@pytest.mark.usefixtures("server")
@in_a_loop
async def test_an_async_connection_in_a_plain_with_is_refused(app: App) -> None:
    bulk: Any = app.bulk(ASYNC)
    with pytest.raises(UnusableConnection, match="async with"), bulk:
        pass


# The app


def test_a_task_is_found_by_name(app: App) -> None:
    task = app.task(send)
    assert app.task_named("send") is task
    with pytest.raises(UnknownTask, match="no task 'sned', did you mean send"):
        app.task_named("sned")


def test_without_a_dsn_the_error_names_the_remedies(app: App) -> None:
    task = app.task(send)
    with pytest.raises(MissingDSN, match="PGQUEUE_DSN"):
        app.enqueue(task, 7)
    with pytest.raises(MissingDSN):
        app.enqueue_many([task.item(7)])


@in_a_loop
async def test_without_a_dsn_it_is_the_same_in_an_event_loop(app: App) -> None:
    task = app.task(send)
    with pytest.raises(MissingDSN, match="PGQUEUE_DSN"):
        await app.enqueue_async(task, 7)


def test_a_dsn_of_the_app_wins_over_its_settings() -> None:
    app = App(dsn="postgresql://a/b", settings=Settings(dsn="postgresql://c/d"))
    assert app.settings.dsn == "postgresql://a/b"


@pytest.mark.parametrize("dsn", ["postgresql://app:sec%zzret@db/app", "host=db hosst=1 password=sec%zzret"])
def test_a_dsn_that_libpq_cannot_read_is_told_without_its_password(dsn: str) -> None:
    app = App(dsn=dsn, settings=Settings())
    task = app.task(send)
    with pytest.raises(ConfigurationError, match=r"dsn: .*cannot be read by libpq") as refused:
        app.enqueue(task, 7)
    assert "zzret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_bad_args_are_found_before_a_connection_is_looked_for(app: App) -> None:
    task = app.task(send)
    with pytest.raises(InvalidArgs):
        app.enqueue(task, "x")  # type: ignore[call-overload]


def test_settings_are_loaded_when_they_are_first_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_LEASE", "soon")
    app = App()
    task = app.task(send)
    with pytest.raises(ConfigurationError, match="lease"):
        task.call(7)


def test_pools_are_not_carried_over_a_fork(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    own = app._own
    own._pool = pool = object()  # type: ignore[assignment]
    own._after_fork()
    assert own._pool is pool
    monkeypatch.setattr(os, "getpid", lambda: -1)
    own._after_fork()
    assert own._pool is None
    assert any(pool is kept for kept, _ in pgqueue.pools._parents)


def test_texts_for_people(app: App) -> None:
    task = app.task(send)
    assert repr(task) == "<Task send>"
    assert repr(task.using(priority=1)) == "<BoundTask send>"
    assert repr(app) == "<pgqueue.App tests.unit.test_task of 1 tasks>"


def test_an_enqueue_runs_the_call_on_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Any, Call[Any]]] = []

    def run(target: Any, call: Call[Any]) -> Job | Awaitable[Job]:
        ran.append((target, call))
        return Job(1, True)

    monkeypatch.setattr("pgqueue.task.run", run)
    assert made(send).using(priority=1).enqueue(SYNC, 7) == Job(1, True)
    assert ran[0][0] == "sync"
    assert row(ran[0][1])["priority"] == "1"
