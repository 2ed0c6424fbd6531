"""Traces, with the real SDK: a span for each enqueue, one for each attempt, and what links them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import structlog
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import pgqueue
import pgqueue.otel
from pgqueue.errors import UnusableConnection
from pgqueue.retry import Fixed
from pgqueue.settings import Settings
from pgqueue.testing import drain, perform
from tests.worker.harness import until

Session = psycopg.Connection[Any]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Traced:
    """An app that is traced, with tasks of each kind; what they saw is in `seen`."""

    def __init__(self, dsn: str):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.app = app = pgqueue.App(dsn=dsn, settings=Settings(), name="traced")
        self.seen: list[Any] = []
        once = Fixed(0.01, attempts=1)

        @app.task(queue="mail")
        async def greet(name: str = "Ada") -> None:
            self._look(name)

        pgqueue.otel.instrument(app, tracer_provider=self.provider)  # with tasks before and after it

        @app.task(queue="mail")
        def greet_sync(name: str = "Ada") -> None:
            self._look(name)

        @app.task(queue="mail", transactional=True)
        async def write(ctx: pgqueue.Context[psycopg.AsyncConnection[Any]]) -> None:
            await ctx.connection.execute("select 1")
            self._look(ctx.attempt)

        @app.task(queue="mail", transactional=True)
        def write_sync(ctx: pgqueue.Context[psycopg.Connection[Any]]) -> None:
            ctx.connection.execute("select 1")
            self._look(ctx.attempt)

        @app.task(retry=once)
        async def end(how: str) -> None:
            secret = "the handler's own"  # noqa: F841 - which no span may show
            raise {
                "retry": pgqueue.Retry(),
                "snooze": pgqueue.Snooze("1h"),
                "cancel": pgqueue.Cancel("withdrawn"),
                "fail": pgqueue.Fail("closed"),
                "error": ValueError("no such card"),
                "stop": asyncio.CancelledError(),
                "mean": Mean(),
            }[how]

        @app.task(retry=once, timeout=0.1)
        async def wait() -> None:
            await asyncio.Event().wait()

        @app.batch_task(size=10, wait=0.01, queue="mail")
        async def index(jobs: list[pgqueue.BatchJob[int]]) -> None:
            self._look([job.item for job in jobs])

        @app.batch_task(size=10, wait=0.01, retry=once)
        def index_sync(jobs: list[pgqueue.BatchJob[int]]) -> None:
            self._look([job.item for job in jobs])
            raise ValueError("the index is away")

        self.greet, self.greet_sync, self.write, self.write_sync = greet, greet_sync, write, write_sync
        self.end, self.wait, self.index, self.index_sync = end, wait, index, index_sync

    def _look(self, said: object) -> None:
        told = structlog.contextvars.get_contextvars()
        self.seen.append((said, trace.get_current_span().get_span_context(), told, dict(baggage.get_all())))

    def spans(self, name: str) -> list[ReadableSpan]:
        """The spans of a name that have ended, in the order in which they began."""
        found = [span for span in self.exporter.get_finished_spans() if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def span(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found


class Mean(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.fixture
def traced(database: str) -> Iterator[Traced]:
    traced = Traced(database)
    yield traced
    traced.app.close()
    traced.provider.shutdown()


def options(connection: Session, id: int) -> Any:
    found = connection.execute("select options from pgqueue.ready_jobs where id = %s", [id]).fetchone()
    return found and found[0]


def known(span: ReadableSpan) -> trace.SpanContext:
    found = span.get_span_context()
    assert found is not None
    return found


def linked(span: ReadableSpan) -> list[int]:
    """The spans that it has links to."""
    return [link.context.span_id for link in span.links]


# Enqueueing ---------------------------------------------------------------------------------------------


def test_an_enqueue_is_a_span_whose_context_travels_with_the_job(traced: Traced, connection: Session) -> None:
    with traced.tracer.start_as_current_span("request") as request:
        job = traced.greet.using(tags=["vip"]).enqueue(connection, name="Ada")

    span = traced.span("send mail")
    assert span.kind is SpanKind.PRODUCER
    assert span.parent == request.get_span_context()
    assert dict(span.attributes or {}) == {
        "messaging.system": "pgqueue",
        "messaging.destination.name": "mail",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.message.id": str(job.id),
        "pgqueue.task": "greet",
    }
    its = known(span)
    traceparent = f"00-{its.trace_id:032x}-{its.span_id:016x}-{int(its.trace_flags):02x}"
    assert options(connection, job.id) == {"tags": ["vip"], "headers": {"traceparent": traceparent}}
    args = "select args from pgqueue.ready_jobs where id = %s"
    assert connection.execute(args, [job.id]).fetchone() == ({"name": "Ada"},)


def test_every_way_to_enqueue_is_traced(traced: Traced, database: str) -> None:
    async def enqueue() -> None:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await traced.greet.enqueue(connection)
            await traced.app.enqueue_many(connection, [traced.greet.item(), traced.greet_sync.item()])
            async with traced.app.bulk(connection) as bulk:
                bulk.enqueue(traced.greet)
        await traced.app.enqueue_async(traced.greet)
        await traced.app.enqueue_many_async([traced.greet.item()])
        await traced.app.aclose()

    traced.app.enqueue(traced.greet.using(delay="1h"))
    traced.app.enqueue_many([traced.greet.item()] * 3)
    with traced.app.bulk() as bulk:
        bulk.enqueue(traced.greet)
    asyncio.run(enqueue())

    spans = traced.spans("send mail")
    counts = [(span.attributes or {}).get("messaging.batch.message_count") for span in spans]
    assert counts == [None, 3, 1, None, 2, 1, None, 1]
    tasks = [(span.attributes or {}).get("pgqueue.task") for span in spans]
    assert tasks == ["greet"] * 4 + [None] + ["greet"] * 3  # two tasks in one call: none of them is named
    with psycopg.connect(database) as connection:
        headers = "select options -> 'headers' ->> 'traceparent' from pgqueue.{} order by id"
        stored = [
            *connection.execute(headers.format("scheduled_jobs")),
            *connection.execute(headers.format("ready_jobs")),
        ]
    in_headers = [int(traceparent.split("-")[2], 16) for (traceparent,) in stored]
    assert in_headers == [
        known(span).span_id
        for span, count in zip(spans, [1, 3, 1, 1, 2, 1, 1, 1], strict=True)
        for _ in range(count)
    ]


def test_a_bulk_keeps_what_its_jobs_have_and_names_no_queue_when_there_are_two(
    traced: Traced, connection: Session
) -> None:
    items = [
        traced.greet.using(tags=["a"], queue="other").item(name='{"headers": 1}'),
        traced.greet.using(unique_key="k").item(),
        traced.greet.using(unique_key="k").item(),
    ]
    first, second, third = traced.app.enqueue_many(connection, items)

    assert (third.id, third.created) == (second.id, False)
    span = traced.span("send")
    assert "messaging.destination.name" not in (span.attributes or {})
    traceparent = options(connection, second.id)["headers"]["traceparent"]
    assert options(connection, first.id) == {"tags": ["a"], "headers": {"traceparent": traceparent}}


def test_an_enqueue_that_meets_a_job_says_so_and_leaves_that_one_as_it_is(
    traced: Traced, connection: Session
) -> None:
    once = traced.greet.using(unique_key="k")
    job = once.enqueue(connection)
    stored = options(connection, job.id)
    assert once.enqueue(connection).id == job.id

    first, second = traced.spans("send mail")
    assert "pgqueue.outcome" not in (first.attributes or {})
    assert (second.attributes or {})["pgqueue.outcome"] == "kept"
    assert options(connection, job.id) == stored


def test_an_enqueue_that_fails_is_a_span_with_an_error(traced: Traced, connection: Session) -> None:
    connection.execute("begin")
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("select 1 / 0")
    with pytest.raises(UnusableConnection):
        traced.greet.enqueue(connection)
    span = traced.span("send mail")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "pgqueue.errors.UnusableConnection"


def test_an_async_connection_in_a_sync_block_is_refused_without_a_span(traced: Traced, database: str) -> None:
    async def enqueue() -> None:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            with pytest.raises(UnusableConnection, match="async with"):  # noqa: SIM117
                with traced.app.bulk(connection) as bulk:  # type: ignore[attr-defined]
                    bulk.enqueue(traced.greet)

    asyncio.run(enqueue())
    assert not traced.exporter.get_finished_spans()


# Running ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["greet", "greet_sync", "write", "write_sync"])
def test_an_attempt_is_a_trace_of_its_own_with_a_link_to_the_enqueue(
    kind: str, traced: Traced, connection: Session
) -> None:
    job = getattr(traced, kind).enqueue(connection)
    with traced.tracer.start_as_current_span("somebody else's"):
        assert drain(traced.app, connection).completed == 1

    sent, span = traced.span("send mail"), traced.span(f"process {kind}")
    its = known(span)
    assert span.kind is SpanKind.CONSUMER
    assert span.parent is None
    assert its.trace_id != known(sent).trace_id
    assert linked(span) == [known(sent).span_id]
    assert dict(span.attributes or {}) == {
        "messaging.system": "pgqueue",
        "messaging.destination.name": "mail",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": str(job.id),
        "pgqueue.task": kind,
        "pgqueue.attempt": 1,
    }
    assert span.status.status_code is StatusCode.UNSET
    ((_, current, told, _),) = traced.seen
    assert current == its  # what the handler traces belongs to it
    ids = {"trace_id": f"{its.trace_id:032x}", "span_id": f"{its.span_id:016x}"}
    assert ids.items() <= told.items()  # and what it logs says so


def test_baggage_comes_to_the_handler(traced: Traced, connection: Session) -> None:
    token = context.attach(baggage.set_baggage("tenant", "eu"))
    try:
        traced.greet.enqueue(connection)
    finally:
        context.detach(token)
    drain(traced.app, connection)
    assert [seen[3] for seen in traced.seen] == [{"tenant": "eu"}]


@pytest.mark.parametrize(
    ("how", "outcome"), [("retry", "retried"), ("snooze", "snoozed"), ("cancel", "cancelled")]
)
def test_an_outcome_is_no_error(how: str, outcome: str, traced: Traced, connection: Session) -> None:
    traced.end.enqueue(connection, how=how)
    drain(traced.app, connection)
    span = traced.span("process end")
    assert span.status.status_code is StatusCode.UNSET
    assert (span.attributes or {})["pgqueue.outcome"] == outcome
    assert not span.events


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("error", "ValueError", "no such card"),
        ("fail", "pgqueue.job.Fail", "closed"),
        ("stop", "asyncio.exceptions.CancelledError", ""),
        ("mean", "tests.test_otel.Mean", "whose text raised SystemExit"),
    ],
)
def test_what_a_handler_raises_is_recorded(
    how: str, kind: str, message: str, traced: Traced, connection: Session
) -> None:
    traced.end.enqueue(connection, how=how)
    assert drain(traced.app, connection, raise_errors=False).dead == 1
    span = traced.span("process end")
    assert span.status.status_code is StatusCode.ERROR
    assert message in (span.status.description or "")
    assert (span.attributes or {})["error.type"] == kind
    (event,) = span.events
    told = dict(event.attributes or {})
    assert event.name == "exception"
    assert told["exception.type"] == kind
    assert message in str(told["exception.message"])
    assert "in Traced.__init__.<locals>.end" in str(told["exception.stacktrace"])
    assert "the handler's" not in str(told["exception.stacktrace"])


def test_an_attempt_that_takes_too_long_is_an_error(traced: Traced, connection: Session) -> None:
    traced.wait.enqueue(connection)
    assert drain(traced.app, connection, raise_errors=False).dead == 1
    span = traced.span("process wait")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "pgqueue.errors.TimedOut"


def test_each_attempt_has_a_span_with_the_same_link(traced: Traced, connection: Session) -> None:
    attempts: list[int] = []

    @traced.app.task(retry=Fixed(0.01, attempts=2))
    async def flaky(ctx: pgqueue.Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError("not yet")

    flaky.enqueue(connection)
    assert drain(traced.app, connection, scheduled=True, raise_errors=False).completed == 1
    spans = traced.spans("process flaky")
    assert [(span.attributes or {})["pgqueue.attempt"] for span in spans] == [1, 2]
    sent = known(traced.span("send default")).span_id
    assert [linked(span) for span in spans] == [[sent], [sent]]


def test_a_batch_is_one_span_with_links_to_all_of_its_jobs(traced: Traced, connection: Session) -> None:
    one = traced.index.enqueue(connection, 1)
    two, three = traced.app.enqueue_many(connection, [traced.index.item(2), traced.index.item(3)])
    assert drain(traced.app, connection).completed == 3

    single, bulk = traced.spans("send mail")
    span = traced.span("process index")
    assert linked(span) == [known(single).span_id, known(bulk).span_id, known(bulk).span_id]
    ids = [(link.attributes or {})["messaging.message.id"] for link in span.links]
    assert ids == [str(one.id), str(two.id), str(three.id)]
    assert (span.attributes or {})["messaging.batch.message_count"] == 3
    assert (span.attributes or {})["messaging.destination.name"] == "mail"
    assert [(said, current) for said, current, *_ in traced.seen] == [([1, 2, 3], known(span))]


def test_a_batch_that_fails_is_an_error(traced: Traced, connection: Session) -> None:
    traced.index_sync.enqueue(connection, 1)
    assert drain(traced.app, connection, raise_errors=False).dead == 1
    span = traced.span("process index_sync")
    assert (span.attributes or {})["error.type"] == "ValueError"


def test_tracing_is_outside_of_the_apps_middleware(traced: Traced, connection: Session) -> None:
    inside: list[Any] = []

    async def around(_ctx: pgqueue.Context, call_next: Any) -> Any:
        inside.append(trace.get_current_span().get_span_context())
        return await call_next()

    def around_sync(_ctx: pgqueue.Context, call_next: Any) -> Any:
        return call_next()

    traced.app.middleware(around, around_sync)
    traced.greet.enqueue(connection)
    drain(traced.app, connection)
    assert inside == [known(traced.span("process greet"))]


def test_perform_traces_too(traced: Traced) -> None:
    perform(traced.greet, name="Ada")
    assert linked(traced.span("process greet")) == []


def test_tracing_does_not_change_what_failures_are_grouped_by(
    traced: Traced, connection: Session, database: str
) -> None:
    async def fail(app: pgqueue.App) -> None:
        async def broken() -> None:
            raise ValueError("no such card")

        task = app.task(retry=Fixed(1, attempts=1))(broken)
        async with pgqueue.Worker(app, concurrency=1):
            id = task.enqueue(connection).id
            await until(lambda: connection.execute(dead, [id]).fetchone())

    dead = "select 1 from pgqueue.dead_letters where id = %s"
    for app in (traced.app, pgqueue.App(dsn=database, settings=Settings(), name="plain")):
        asyncio.run(fail(app))
    found = connection.execute("select distinct fingerprint from pgqueue.job_failures").fetchall()
    assert len(found) == 1
    assert traced.span("process broken").status.status_code is StatusCode.ERROR


# What there may be none of ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stored",
    [
        None,
        '{"headers": "traceparent"}',
        '{"headers": {"traceparent": 7}}',
        '{"headers": {"traceparent": "00-nonsense"}}',
        '{"headers": null}',
    ],
    ids=["none", "text", "a number", "nonsense", "null"],
)
def test_a_job_without_a_context_has_no_link(stored: str | None, traced: Traced, connection: Session) -> None:
    connection.execute("select pgqueue.enqueue('greet', queue => 'mail', options => %s)", [stored])
    assert drain(traced.app, connection).completed == 1
    assert linked(traced.span("process greet")) == []


def test_one_that_another_language_has_enqueued_is_linked_when_it_says_from_where(
    traced: Traced, connection: Session
) -> None:
    headers = {"traceparent": TRACEPARENT}
    connection.execute(
        "select pgqueue.enqueue('greet', queue => 'mail', options => %s)", [json.dumps({"headers": headers})]
    )
    drain(traced.app, connection)
    assert linked(traced.span("process greet")) == [0xB7AD6B7169203331]


def test_without_an_sdk_nothing_is_stored_with_a_job(database: str, connection: Session) -> None:
    app = pgqueue.App(dsn=database, settings=Settings())
    pgqueue.otel.instrument(app)

    @app.task
    async def quiet() -> None: ...

    job = quiet.enqueue(connection)
    (bulk,) = app.enqueue_many(connection, [quiet.item()])
    assert (options(connection, job.id), options(connection, bulk.id)) == (None, None)
    assert drain(app, connection).completed == 2


def test_an_app_that_is_instrumented_twice_goes_by_the_latest_provider(
    traced: Traced, connection: Session
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    pgqueue.otel.instrument(traced.app, tracer_provider=provider)
    traced.greet.enqueue(connection)
    drain(traced.app, connection)
    assert [span.name for span in exporter.get_finished_spans()] == ["send mail", "process greet"]
    assert not traced.exporter.get_finished_spans()
    provider.shutdown()


def test_opentelemetry_is_loaded_by_nobody_but_pgqueue_otel() -> None:
    code = """
import sys
import pgqueue, pgqueue.app, pgqueue.worker.child, pgqueue.worker.apart, pgqueue.worker.inprocess, pgqueue.testing
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
sys.modules["opentelemetry"] = None
try:
    import pgqueue.otel
except ModuleNotFoundError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout == "pgqueue.otel needs OpenTelemetry's API: pip install 'pgqueue-jobs[otel]'\n"
