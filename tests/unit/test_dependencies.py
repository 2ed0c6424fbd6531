"""What handlers are provided with: without a worker and without a database."""
# ruff: noqa: ARG001 - what is provided need not be used

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from typing import Annotated, Any, NewType

import pytest

import pgqueue
from pgqueue import App, BatchJob, Context
from pgqueue.errors import ConfigurationError, InvalidArgs
from pgqueue.invocation import check, handler_of
from pgqueue.job import ClaimedJob
from pgqueue.resources import Resources
from pgqueue.settings import Settings
from pgqueue.task import Task


class Mailer:
    """What handlers ask for."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def send(self, user_id: int) -> None:
        self.sent.append(user_id)


@dataclass
class Pool:
    """A resource that tells whether it is open."""

    is_open: bool = True
    log: list[str] = field(default_factory=list)


@dataclass
class Repository:
    """Something that is built out of a resource."""

    pool: Pool


Primary = NewType("Primary", Pool)
Replica = NewType("Replica", Pool)


@pytest.fixture
def app() -> App:
    return App(settings=Settings())


def claimed(task: str = "send") -> ClaimedJob:
    return ClaimedJob(7, 1, "default", 11, 1, task, "{}", 1, 5, 0, None)


async def attempt(app: App, task: Task[..., Any], resources: Resources | None = None, **args: Any) -> Any:
    """Calls a task as a worker does, sync ones in a thread."""
    own = Resources(app.providers) if resources is None else resources
    handler = handler_of(app, task, own)
    first = [Context[Any](claimed(task.name))] if handler.takes_context else []
    try:
        if task.is_async:
            return await handler.function(*first, **args)
        return await asyncio.to_thread(handler.function, *first, **args)
    finally:
        if resources is None:
            await own.close()


def run(app: App, task: Task[..., Any], **args: Any) -> Any:
    return asyncio.run(attempt(app, task, **args))


# Args -------------------------------------------------------------------------------------------------


def test_what_is_provided_is_no_part_of_the_args(app: App) -> None:
    @app.task
    async def send(user_id: int, mailer: Mailer = pgqueue.PROVIDED, *, subject: str = "hello") -> None: ...

    assert send.call(user_id=7).values[1] == '{"user_id":7}'
    assert send.call(7, subject="x").values[1] == '{"user_id":7,"subject":"x"}'
    assert send.decode('{"user_id": 7}') == {"user_id": 7}
    assert send.parameters.provided == {"mailer": Mailer}
    refused = "mailer is provided by the worker and cannot be given"
    with pytest.raises(InvalidArgs, match=refused):
        send.call(user_id=7, mailer=Mailer())
    with pytest.raises(InvalidArgs, match=refused):
        send.call(7, Mailer())
    with pytest.raises(InvalidArgs, match=refused):
        send.decode('{"user_id": 7, "mailer": {}}')


def test_a_task_that_takes_anything_cannot_be_given_what_is_provided(app: App) -> None:
    @app.task
    async def send(mailer: Mailer = pgqueue.PROVIDED, **rest: Any) -> None: ...

    assert send.decode('{"a": 1}') == {"a": 1}
    with pytest.raises(InvalidArgs, match="mailer is provided by the worker"):
        send.call(a=1, mailer=Mailer())
    with pytest.raises(InvalidArgs, match="mailer is provided by the worker"):
        send.decode('{"mailer": {}}')


def test_what_is_provided_needs_a_type(app: App) -> None:
    with pytest.raises(ConfigurationError, match="task send: annotate parameter mailer"):

        @app.task
        async def send(mailer=pgqueue.PROVIDED) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(ConfigurationError, match="task send: annotate parameter mailer"):

        @app.task(name="send")
        async def of_no_hash(mailer: Annotated[Mailer, []] = pgqueue.PROVIDED) -> None: ...


# Kinds of providers -----------------------------------------------------------------------------------


def plain() -> Pool:
    return Pool(log=["made"])


def generator() -> Iterator[Pool]:
    pool = Pool(log=["opened"])
    try:
        yield pool
    finally:
        pool.is_open = False
        pool.log.append("closed")


@contextmanager
def manager() -> Iterator[Pool]:
    yield from generator()


def returns_manager() -> AbstractContextManager[Pool]:
    return manager()


async def coroutine() -> Pool:
    await asyncio.sleep(0)
    return Pool(log=["made"])


async def async_generator() -> AsyncIterator[Pool]:
    await asyncio.sleep(0)
    for pool in generator():
        yield pool
        await asyncio.sleep(0)


@asynccontextmanager
async def async_manager() -> AsyncIterator[Pool]:
    async for pool in async_generator():
        yield pool


def returns_async_manager() -> AbstractAsyncContextManager[Pool]:
    return async_manager()


SYNC = [plain, generator, manager, returns_manager]
ASYNC = [coroutine, async_generator, async_manager, returns_async_manager]


@pytest.mark.parametrize("scope", ["job", "worker"])
@pytest.mark.parametrize("provider", [*SYNC, *ASYNC], ids=lambda provider: provider.__name__)
def test_an_async_handler_gets_what_any_provider_makes(
    app: App, provider: Callable[..., Any], scope: Any
) -> None:
    app.provide(provider, scope=scope)
    seen: list[Pool] = []

    @app.task
    async def work(n: int, pool: Pool = pgqueue.PROVIDED) -> int:
        assert pool.is_open
        seen.append(pool)
        return n

    assert run(app, work, n=3) == 3
    assert seen[0].log in (["made"], ["opened", "closed"])
    assert seen[0].is_open == (seen[0].log == ["made"])


@pytest.mark.parametrize("scope", ["job", "worker"])
@pytest.mark.parametrize("provider", SYNC, ids=lambda provider: provider.__name__)
def test_a_sync_handler_gets_what_a_sync_provider_makes(
    app: App, provider: Callable[..., Any], scope: Any
) -> None:
    app.provide(provider, scope=scope)
    seen: list[Pool] = []

    @app.task
    def work(n: int, pool: Pool = pgqueue.PROVIDED) -> int:
        assert pool.is_open
        seen.append(pool)
        return n

    assert run(app, work, n=3) == 3
    assert seen[0].log in (["made"], ["opened", "closed"])


def test_a_class_provides_itself_and_is_opened_when_it_is_a_context_manager(app: App) -> None:
    told: list[str] = []

    class Client:
        def __init__(self, mailer: Mailer, retries: int = 3):
            told.append(f"made with {type(mailer).__name__}, {retries}")

        async def __aenter__(self) -> Client:
            told.append("opened")
            return self

        async def __aexit__(self, *_: object) -> None:
            told.append("closed")

    app.provide(Client)
    app.provide(Mailer)

    @app.task
    async def work(client: Client = pgqueue.PROVIDED) -> None:
        assert isinstance(client, Client)
        told.append("used")

    run(app, work)
    assert told == ["made with Mailer, 3", "opened", "used", "closed"]


def test_two_of_a_type_are_told_apart_by_new_types_and_annotations(app: App) -> None:
    @app.provide
    def primary() -> Primary:
        return Primary(Pool(log=["primary"]))

    @app.provide
    def replica() -> Replica:
        return Replica(Pool(log=["replica"]))

    @app.provide
    def annotated() -> Annotated[Pool, "reports"]:
        return Pool(log=["reports"])

    @app.task
    async def work(
        one: Primary = pgqueue.PROVIDED,
        other: Replica = pgqueue.PROVIDED,
        third: Annotated[Pool, "reports"] = pgqueue.PROVIDED,
    ) -> list[str]:
        return [*one.log, *other.log, *third.log]

    assert run(app, work) == ["primary", "replica", "reports"]


def test_a_provider_of_a_job_may_take_its_context(app: App) -> None:
    @app.provide
    def pool(ctx: Context, mailer: Mailer) -> Pool:
        return Pool(log=[ctx.task, type(mailer).__name__])

    app.provide(Mailer)

    @app.task
    def work(ctx: Context, pool: Pool = pgqueue.PROVIDED) -> list[str]:
        return [str(ctx.id), *pool.log]

    assert run(app, work) == ["7", "work", "Mailer"]


# Lives ------------------------------------------------------------------------------------------------


def test_a_value_is_made_once_an_attempt_and_closed_in_reverse_order(app: App) -> None:
    told: list[str] = []

    @app.provide
    def pool() -> Iterator[Pool]:
        told.append("pool opened")
        yield Pool()
        told.append("pool closed")

    @app.provide
    def repository(pool: Pool) -> Iterator[Repository]:
        told.append("repository opened")
        yield Repository(pool)
        told.append("repository closed")

    @app.task
    def work(one: Repository = pgqueue.PROVIDED, pool: Pool = pgqueue.PROVIDED) -> bool:
        told.append("used")
        return one.pool is pool

    assert run(app, work) is True
    assert told == ["pool opened", "repository opened", "used", "repository closed", "pool closed"]
    run(app, work)
    assert told.count("pool opened") == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_what_belongs_to_the_worker_is_opened_once_and_closed_after_what_needs_it(
    app: App, is_async: bool
) -> None:
    told: list[str] = []

    async def pool() -> AsyncIterator[Pool]:
        told.append("pool opened")
        await asyncio.sleep(0.01)
        yield Pool()
        told.append("pool closed")

    def sync_pool() -> Iterator[Pool]:
        told.append("pool opened")
        yield Pool()
        told.append("pool closed")

    def repository(pool: Pool) -> Iterator[Repository]:
        told.append("repository opened")
        yield Repository(pool)
        told.append("repository closed")

    app.provide(pool if is_async else sync_pool, scope="worker")
    app.provide(repository, scope="worker")

    @app.task
    async def work(one: Repository = pgqueue.PROVIDED, pool: Pool = pgqueue.PROVIDED) -> None:
        assert one.pool is pool

    async def twenty_at_once() -> None:
        resources = Resources(app.providers)
        await asyncio.gather(*(attempt(app, work, resources) for _ in range(20)))
        assert told == ["pool opened", "repository opened"]
        await resources.close()

    asyncio.run(twenty_at_once())
    assert told == ["pool opened", "repository opened", "repository closed", "pool closed"]


def test_threads_that_come_together_open_once(app: App) -> None:
    entered, release, opened = threading.Event(), threading.Event(), []

    @app.provide(scope="worker")
    def pool() -> Pool:
        opened.append(threading.get_ident())
        entered.set()
        assert release.wait(10)
        return Pool()

    @app.task
    def work(pool: Pool = pgqueue.PROVIDED) -> int:
        return id(pool)

    async def together() -> None:
        resources = Resources(app.providers)
        first = asyncio.create_task(attempt(app, work, resources))
        assert await asyncio.to_thread(entered.wait, 10)
        others = [asyncio.create_task(attempt(app, work, resources)) for _ in range(3)]
        await asyncio.sleep(0)
        release.set()
        assert len(set(await asyncio.gather(first, *others))) == 1

    asyncio.run(together())
    assert len(opened) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_what_could_not_be_opened_is_tried_again_by_the_next_attempt(app: App, is_async: bool) -> None:
    tries: list[int] = []

    def open_it() -> Pool:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionRefusedError("not yet")
        return Pool()

    def sync_pool() -> Pool:
        return open_it()

    async def pool() -> Pool:
        return open_it()

    app.provide(pool if is_async else sync_pool, scope="worker")

    @app.task
    async def work(pool: Pool = pgqueue.PROVIDED) -> Pool:
        return pool

    async def twice() -> None:
        resources = Resources(app.providers)
        with pytest.raises(ConnectionRefusedError, match="not yet"):
            await attempt(app, work, resources)
        assert await attempt(app, work, resources) is await attempt(app, work, resources)
        await resources.close()

    asyncio.run(twice())
    assert len(tries) == 2


def test_an_attempt_that_is_cancelled_while_it_waits_takes_nothing_from_the_others(app: App) -> None:
    begun, opening, opened = asyncio.Event(), asyncio.Event(), []

    @app.provide(scope="worker")
    async def pool() -> AsyncIterator[Pool]:
        begun.set()
        await opening.wait()
        opened.append(1)
        yield Pool()

    @app.task
    async def work(pool: Pool = pgqueue.PROVIDED) -> Pool:
        return pool

    async def cancel_the_first() -> None:
        resources = Resources(app.providers)
        first, second = (asyncio.create_task(attempt(app, work, resources)) for _ in range(2))
        await begun.wait()  # both have been started by then, and wait for the same
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        opening.set()
        assert (await second).is_open
        await resources.close()

    asyncio.run(cancel_the_first())
    assert opened == [1]


def test_what_is_opened_for_all_does_not_live_in_the_context_of_the_first_job(app: App) -> None:
    tenant = contextvars.ContextVar("tenant", default="nobody")
    found: list[str] = []

    @app.provide(scope="worker")
    def pool() -> Pool:
        found.append(tenant.get())
        return Pool()

    @app.provide(scope="worker")
    async def mailer() -> Mailer:
        found.append(tenant.get())
        return Mailer()

    @app.task
    async def work(pool: Pool = pgqueue.PROVIDED, mailer: Mailer = pgqueue.PROVIDED) -> None: ...

    @app.task
    def work_sync(pool: Pool = pgqueue.PROVIDED) -> None: ...

    async def as_a_tenant() -> None:
        for task in (work, work_sync):
            resources = Resources(app.providers)
            tenant.set("one")
            await attempt(app, task, resources)
            tenant.set("nobody")

    asyncio.run(as_a_tenant())
    assert found == ["nobody"] * 3


async def _append(done: list[int], n: int) -> None:
    await asyncio.sleep(0)
    done.append(n)


def test_a_task_group_can_be_provided_to_all(app: App) -> None:
    """It may only be left in the asyncio task that has entered it."""

    @app.provide(scope="worker")
    async def group() -> AsyncIterator[asyncio.TaskGroup]:
        async with asyncio.TaskGroup() as group:
            yield group

    done: list[int] = []

    @app.task
    async def work(n: int, group: asyncio.TaskGroup = pgqueue.PROVIDED) -> None:
        group.create_task(_append(done, n))

    async def use() -> None:
        resources = Resources(app.providers)
        await asyncio.gather(*(attempt(app, work, resources, n=n) for n in range(3)))
        await asyncio.create_task(resources.close())

    asyncio.run(use())
    assert sorted(done) == [0, 1, 2]


# Endings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_closing_sees_what_the_handler_raised_and_cannot_swallow_it(app: App, is_async: bool) -> None:
    seen: list[BaseException] = []

    @app.provide
    def pool() -> Iterator[Pool]:
        try:
            yield Pool()
        except ValueError as error:
            seen.append(error)  # and forgets to raise

    async def work(pool: Pool = pgqueue.PROVIDED) -> None:
        raise ValueError("the handler's")

    def work_sync(pool: Pool = pgqueue.PROVIDED) -> None:
        raise ValueError("the handler's")

    task = app.task(work if is_async else work_sync)
    with pytest.raises(ValueError, match="the handler's"):
        run(app, task)
    assert [str(error) for error in seen] == ["the handler's"]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_in_closing_fails_the_attempt(app: App, is_async: bool) -> None:
    @app.provide
    def pool() -> Iterator[Pool]:
        yield Pool()
        raise OSError("could not be flushed")

    async def work(pool: Pool = pgqueue.PROVIDED) -> None: ...

    def work_sync(pool: Pool = pgqueue.PROVIDED) -> None: ...

    with pytest.raises(OSError, match="could not be flushed"):
        run(app, app.task(work if is_async else work_sync))


def test_an_error_in_closing_at_the_workers_end_is_logged_and_stops_no_other(
    app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    closed: list[str] = []

    @app.provide(scope="worker")
    async def mailer() -> AsyncIterator[Mailer]:
        yield Mailer()
        raise OSError("the mailer's")

    @app.provide(scope="worker")
    async def primary() -> AsyncIterator[Primary]:
        yield Primary(Pool())
        closed.append("primary")

    @app.provide(scope="worker")
    def pool() -> Iterator[Pool]:
        yield Pool()
        raise OSError("the pool's")

    @app.provide(scope="worker")
    def replica() -> Iterator[Replica]:
        yield Replica(Pool())
        closed.append("replica")

    @app.task
    async def work(
        replica: Replica = pgqueue.PROVIDED,
        pool: Pool = pgqueue.PROVIDED,
        primary: Primary = pgqueue.PROVIDED,
        mailer: Mailer = pgqueue.PROVIDED,
    ) -> None: ...

    run(app, work)
    assert closed == ["primary", "replica"]
    told = capsys.readouterr().out
    assert told.count("provider.close_failed") == 2
    assert "the mailer's" in told
    assert "the pool's" in told


def test_a_stop_iteration_of_a_provider_is_an_error_as_any_other(app: App) -> None:
    @app.provide(scope="worker")
    def pool() -> Pool:
        raise StopIteration("no pool is left")

    @app.task
    async def work(pool: Pool = pgqueue.PROVIDED) -> None: ...

    with pytest.raises(RuntimeError, match="StopIteration"):
        run(app, work)


# What cannot work -------------------------------------------------------------------------------------


def test_a_type_that_nothing_provides_is_named_with_its_task(app: App) -> None:
    app.provide(Mailer)

    @app.task
    async def work(pool: Pool = pgqueue.PROVIDED) -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"task work: parameter pool needs .*\.Pool, which nothing provides"
    ):
        check(app)
    app.provide(plain)  # later than the task
    check(app)


def test_what_a_provider_lacks_is_named_with_the_task_that_needs_it(app: App) -> None:
    app.provide(Repository)

    @app.task
    async def work(one: Repository = pgqueue.PROVIDED) -> None: ...

    with pytest.raises(
        ConfigurationError,
        match=r"task work, provider Repository: parameter pool needs .*\.Pool, which nothing",
    ):
        check(app)


def test_a_sync_task_cannot_have_what_has_to_be_awaited(app: App) -> None:
    app.provide(coroutine)
    app.provide(Repository)

    @app.task
    def work(one: Repository = pgqueue.PROVIDED) -> None: ...

    with pytest.raises(
        ConfigurationError,
        match="whose provider coroutine is async, and task work is sync: make the task async",
    ):
        check(app)


def test_what_belongs_to_the_worker_cannot_need_what_belongs_to_a_job(app: App) -> None:
    app.provide(plain)
    app.provide(Repository, scope="worker")

    @app.task
    def work(one: Repository = pgqueue.PROVIDED) -> None: ...

    with pytest.raises(ConfigurationError, match=r"lives as long as a job.*or plain scope='worker'"):
        check(app)
    with pytest.raises(ConfigurationError, match="provider mailer: it outlives the job"):

        @app.provide(scope="worker")
        def mailer(ctx: Context) -> Mailer:
            return Mailer()


def test_providers_that_go_in_a_circle_are_named(app: App) -> None:
    @app.provide
    def pool(one: Repository) -> Pool:
        return one.pool

    app.provide(Repository)

    @app.task
    def work(one: Repository = pgqueue.PROVIDED) -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"in a circle: .*Repository needs .*Pool needs .*Repository$"
    ):
        check(app)


def test_a_type_has_one_provider(app: App) -> None:
    app.provide(plain)
    with pytest.raises(
        ConfigurationError, match=r"Pool is provided twice: by plain in .* and by generator in"
    ):
        app.provide(generator)


def _refused_providers() -> list[tuple[Any, str]]:
    def says_nothing():  # type: ignore[no-untyped-def]
        return 1

    def says_none() -> None: ...

    def yields_unsaid() -> Pool:  # type: ignore[misc]
        yield Pool()

    def has_an_untyped_parameter(mailer) -> Pool:  # type: ignore[no-untyped-def]
        return Pool()

    def by_position(mailer: Mailer, /) -> Pool:
        return Pool()

    def of_an_unknown_type() -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
        ...

    return [
        (says_nothing, "provider says_nothing: annotate what it returns"),
        (says_none, "provider says_none: annotate what it returns"),
        (yields_unsaid, r"provider yields_unsaid: annotate what it yields, -> Iterator"),
        (has_an_untyped_parameter, "parameter mailer needs a type and a name"),
        (by_position, "parameter mailer needs a type and a name"),
        (of_an_unknown_type, "provider of_an_unknown_type: its annotations cannot be read"),
        (Mailer(), r"goes on a function or a class, got <"),
        (lambda: Mailer(), r"annotate what it returns"),
    ]


@pytest.mark.parametrize(("provider", "reason"), _refused_providers())
def test_what_cannot_be_a_provider_is_refused_where_it_stands(app: App, provider: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        app.provide(provider)


def test_a_scope_is_one_of_two(app: App) -> None:
    with pytest.raises(ConfigurationError, match='scope: expected "job" or "worker", got \'request\''):
        app.provide(plain, scope="request")  # type: ignore[call-overload]


def test_an_in_process_worker_does_not_start_either(app: App) -> None:
    @app.task
    async def work(pool: Pool = pgqueue.PROVIDED) -> None: ...

    async def start() -> None:
        async with pgqueue.Worker(app):
            raise AssertionError

    with pytest.raises(ConfigurationError, match="task work: parameter pool needs"):
        asyncio.run(start())


# Batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_the_handler_of_a_batch_is_provided_for_beside_its_jobs(app: App, is_async: bool) -> None:
    app.provide(generator)
    seen: list[tuple[list[int], bool]] = []

    async def batch(pool: Pool = pgqueue.PROVIDED, *, jobs: list[BatchJob[int]]) -> None:
        seen.append(([job.item for job in jobs], pool.is_open))

    def batch_sync(jobs: list[BatchJob[int]], pool: Pool = pgqueue.PROVIDED) -> None:
        seen.append(([job.item for job in jobs], pool.is_open))

    task: Any = app.batch_task(size=5)(batch if is_async else batch_sync)  # type: ignore[arg-type]
    handler = handler_of(app, task, Resources(app.providers))
    assert not handler.takes_context
    called = handler.function([BatchJob(n, claimed()) for n in (1, 2)])
    if is_async:
        asyncio.run(called)
    assert seen == [([1, 2], True)]


def test_a_provider_that_takes_a_context_is_not_for_batches(app: App) -> None:
    @app.provide
    def pool(ctx: Context) -> Pool:
        return Pool()

    app.provide(Repository)

    @app.batch_task(size=5)
    async def batch(jobs: list[BatchJob[int]], one: Repository = pgqueue.PROVIDED) -> None: ...

    with pytest.raises(
        ConfigurationError, match=r"whose provider .*pool takes a Context, and a batch has none"
    ):
        check(app)


def test_a_batch_task_that_is_called_takes_what_stands_in(app: App) -> None:
    @app.batch_task(size=5)
    async def batch(jobs: list[BatchJob[int]], mailer: Mailer = pgqueue.PROVIDED) -> None:
        for job in jobs:
            mailer.send(job.item)

    fake = Mailer()
    with app.override(Mailer, fake):
        asyncio.run(batch([BatchJob(7, claimed())]))
    assert fake.sent == [7]


# Tests ------------------------------------------------------------------------------------------------


def test_a_task_that_is_called_takes_what_it_is_given_or_what_stands_in(app: App) -> None:
    @app.task
    def send(user_id: int, mailer: Mailer = pgqueue.PROVIDED) -> None:
        mailer.send(user_id)

    given, other = Mailer(), Mailer()
    send(7, mailer=given)
    send(8, given)
    with app.override(Mailer, other):
        send(9)
        send(10, mailer=given)
        with app.override(Mailer, given):
            send(11)
        send(12)
    assert (given.sent, other.sent) == ([7, 8, 10, 11], [9, 12])
    with pytest.raises(
        ConfigurationError, match="task send: mailer is provided by a worker; called directly"
    ):
        send(13)


def test_what_stands_in_replaces_the_provider_and_what_that_needs(app: App) -> None:
    @app.provide
    def pool() -> Pool:
        raise AssertionError("not called")

    app.provide(Repository)

    @app.task
    def work(one: Repository = pgqueue.PROVIDED, mailer: Mailer = pgqueue.PROVIDED) -> Pool:
        return one.pool

    fake = Pool()
    with app.override(Pool, fake), app.override(Mailer, None):
        check(app)
        assert run(app, work) is fake
    with pytest.raises(ConfigurationError, match="Mailer, which nothing provides"):
        check(app)


def test_a_task_without_any_of_it_is_called_as_it_is_written(app: App) -> None:
    @app.task
    async def plain_task(n: int) -> None: ...

    @app.task
    def with_context(ctx: Context, n: int) -> None: ...

    resources = Resources(app.providers)
    assert handler_of(app, plain_task, resources) == (plain_task.function, False)
    assert handler_of(app, with_context, resources) == (with_context.function, True)


def test_the_args_of_an_item_are_as_those_of_a_call(app: App) -> None:
    @app.task
    async def send(user_id: int, mailer: Mailer = pgqueue.PROVIDED) -> None: ...

    assert json.loads(send.item(7).json)["args"] == {"user_id": 7}
