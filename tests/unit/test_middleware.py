"""Middleware around handlers: without a worker and without a database."""
# ruff: noqa: ARG001, ARG002 - a middleware need not look at the context

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import pgqueue
from pgqueue import App, Context
from pgqueue.errors import ConfigurationError
from pgqueue.invocation import check, handler_of
from pgqueue.middleware import CallNext
from pgqueue.resources import Resources
from pgqueue.settings import Settings
from tests.unit.test_dependencies import Pool, run


@pytest.fixture
def app() -> App:
    return App(settings=Settings())


def test_middleware_goes_around_the_handler_the_apps_first_then_the_tasks(app: App) -> None:
    told: list[str] = []

    def named(name: str) -> Callable[[Context[Any], CallNext], Awaitable[Any]]:
        async def middleware(ctx: Context[Any], call_next: CallNext) -> Any:
            told.append(f"{name} before {ctx.task}")
            try:
                return await call_next() + name
            finally:
                told.append(f"{name} after")

        return middleware

    app.middleware(named("a"))
    app.middleware(named("b"))

    @app.provide
    def pool() -> Iterator[Pool]:
        told.append("opened")
        yield Pool()
        told.append("closed")

    @app.task(middleware=[named("c"), named("d")])
    async def work(text: str, pool: Pool = pgqueue.PROVIDED) -> str:
        await asyncio.sleep(0)
        told.append("handler")
        return text

    assert run(app, work, text="x") == "xdcba"
    assert told == [
        *("a before work", "b before work", "c before work", "d before work"),
        *("opened", "handler", "closed"),
        *("d after", "c after", "b after", "a after"),
    ]


def test_middleware_of_a_sync_task_runs_in_its_thread(app: App) -> None:
    @app.middleware
    def tells(ctx: Context, call_next: Callable[[], Any]) -> Any:
        return [threading.get_ident(), *call_next()]

    @app.task
    def work(ctx: Context, n: int) -> list[int]:
        return [threading.get_ident(), n, ctx.id]

    outer, inner, n, id = run(app, work, n=3)
    assert outer == inner != threading.get_ident()
    assert (n, id) == (3, 7)


def test_middleware_may_end_the_attempt_retry_the_call_and_answer_for_the_handler(app: App) -> None:
    calls: list[int] = []

    async def once_more(ctx: Context[Any], call_next: CallNext) -> Any:
        with contextlib.suppress(ConnectionError):
            return await call_next()
        return await call_next()

    async def patient(ctx: Context[Any], call_next: CallNext) -> Any:
        try:
            return await call_next()
        except TimeoutError as error:
            raise pgqueue.Retry(after="5m") from error

    async def answers(ctx: Context[Any], call_next: CallNext) -> Any:
        return "answered"

    @app.task(middleware=[once_more])
    async def flaky() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError
        return len(calls)

    @app.task(middleware=[patient])
    async def slow() -> None:
        raise TimeoutError

    @app.task(middleware=[answers])
    async def never() -> None:
        raise AssertionError

    assert run(app, flaky) == 2
    with pytest.raises(pgqueue.Retry):
        run(app, slow)
    assert run(app, never) == "answered"


def test_an_object_can_be_middleware(app: App) -> None:
    class Counts:
        seen = 0

        async def __call__(self, ctx: Context[Any], call_next: CallNext) -> Any:
            self.seen += 1
            return await call_next()

    counts = Counts()
    app.middleware(counts)

    @app.task
    async def work() -> None: ...

    run(app, work)
    assert counts.seen == 1


async def timed(ctx: Context[Any], call_next: CallNext) -> Any:
    return await call_next()


def timed_sync(ctx: Context[Any], call_next: Callable[[], Any]) -> Any:
    return call_next()


def test_a_task_without_a_middleware_of_its_kind_is_named(app: App) -> None:
    app.middleware(timed)

    @app.task
    async def work() -> None: ...

    check(app)

    @app.task
    def resize() -> None: ...

    with pytest.raises(
        ConfigurationError,
        match=r"task resize is sync and middleware .*\.timed is async.*app\.middleware\(timed, timed_sync\)",
    ):
        check(app)


@pytest.mark.parametrize("forms", [(timed, timed_sync), (timed_sync, timed)])
def test_a_middleware_of_both_forms_is_for_all_tasks(app: App, forms: Any) -> None:
    app.middleware(*forms)

    @app.task
    async def work() -> int:
        return 1

    @app.task
    def resize() -> int:
        return 2

    check(app)
    assert (run(app, work), run(app, resize)) == (1, 2)


def test_what_cannot_be_middleware_is_refused_where_it_stands(app: App) -> None:
    with pytest.raises(ConfigurationError, match=r"timed and .*timed are both async|are both async"):
        app.middleware(timed, _other)
    with pytest.raises(
        ConfigurationError, match="middleware is a function of a Context and of call_next, got 7"
    ):
        app.middleware(7)  # type: ignore[type-var]
    with pytest.raises(
        ConfigurationError, match=r"task work: middleware has to be a list, got <function timed"
    ):

        @app.task(middleware=timed)  # type: ignore[call-overload, untyped-decorator]
        async def work() -> None: ...

    with pytest.raises(ConfigurationError, match=r"task work is async and middleware .*timed_sync is sync"):

        @app.task(name="work", middleware=[timed_sync])
        async def other() -> None: ...


def test_a_batch_has_no_middleware(app: App) -> None:
    with pytest.raises(ConfigurationError, match="a batch task has no middleware"):

        @app.batch_task(size=5, middleware=[timed])
        async def refused(jobs: list[pgqueue.BatchJob[int]]) -> None: ...

    app.middleware(timed_sync)

    @app.batch_task(size=5)
    async def batch(jobs: list[pgqueue.BatchJob[int]]) -> None: ...

    assert handler_of(app, batch, Resources(app.providers)) == (batch.function, False)


async def _other(ctx: Context[Any], call_next: CallNext) -> Any:
    return await call_next()
