"""OpenTelemetry: a span for each enqueue, one for each attempt, and a link from the attempt to the enqueue.

    import pgqueue.otel

    app = pgqueue.App()
    pgqueue.otel.instrument(app)

It needs OpenTelemetry's API alone (`pip install 'pgqueue-jobs[otel]'`). Which SDK collects the spans and where they go
is set up by the application, in each process that enqueues and in the worker's, before or after this.

The context of the enqueue travels with the job: in `headers` of its options, where `args` do not show it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import msgspec
import structlog

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate, trace
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "pgqueue.otel needs OpenTelemetry's API: pip install 'pgqueue-jobs[otel]'", name=missing.name
    ) from missing

from pgqueue.app import App
from pgqueue.batch import BatchJob
from pgqueue.calls import ENQUEUE, ENQUEUE_MANY, Call
from pgqueue.context import Context
from pgqueue.drivers import is_async, run
from pgqueue.error_text import ErrorText, describe_error, one_line
from pgqueue.errors import TimedOut
from pgqueue.job import Cancel, Job, Retry, Snooze
from pgqueue.options import DEFAULT_QUEUE
from pgqueue.version import __version__

__all__ = ["instrument"]

Attributes: TypeAlias = dict[str, str | int]

FLUSH_SECONDS = 2.0
"""What a process that is about to end gives to the exporter."""

_AT = {name: place for place, (name, _) in enumerate(ENQUEUE.parameters)}
_NO_ERRORS = {Retry: "retried", Snooze: "snoozed", Cancel: "cancelled"}
_STOPPED = {"DRAIN": "released", "CANCEL": "cancelled"}


def instrument(app: App, *, tracer_provider: TracerProvider | None = None) -> None:
    """Has every enqueue and every attempt of an app traced, those of tasks that it already has and of later ones.

    - Around an enqueue: `send <queue>`, of kind PRODUCER; one for each call of a bulk, which has up to 5,000 jobs.
    - Around a handler: `process <task>`, of kind CONSUMER, a trace of its own with a link to the enqueue. It is
      outside of all middleware, and the one of a batch has links to all of its jobs. An error that the handler
      raises is recorded, and makes the span one of an error; `Retry`, `Snooze` and `Cancel` do not.

    `tracer_provider` is where the spans go; by default the global one, also when it is set up later. In a process that
    takes part in no trace nothing is stored with a job. Instrumented again, an app goes by the latest provider.
    """
    app.trace_with(_Tracing(app, tracer_provider))


class _Tracing:
    """A `pgqueue.tracing.Tracing`."""

    def __init__(self, app: App, provider: TracerProvider | None):
        self._app = app
        self._provider = provider
        self._tracer = trace.get_tracer("pgqueue", __version__, tracer_provider=provider)

    # Enqueueing

    def run_call(self, target: Any, call: Call[Any], /) -> Any:
        if is_async(target):
            return self._run_async(target, call)
        with self._sending(call) as (span, traced):
            made = run(target, traced)
            _note_made(span, made)
        return made

    async def _run_async(self, target: Any, call: Call[Any]) -> Any:
        with self._sending(call) as (span, traced):
            made = await run(target, traced)
            _note_made(span, made)
        return made

    @contextmanager
    def _sending(self, call: Call[Any]) -> Iterator[tuple[Span, Call[Any]]]:
        """The span of an enqueue, which is the current one, and the call with its context in the jobs' headers."""
        bulk = _Bulk(call) if call.verb.function == ENQUEUE_MANY.function else None
        told = _told_of(call) if bulk is None else bulk.told()
        name = f"send {told.get('messaging.destination.name', '')}".rstrip()
        span = self._tracer.start_span(name, kind=SpanKind.PRODUCER, attributes=told)
        with _as_current(span, trace.set_span_in_context(span)):
            headers: dict[str, str] = {}
            propagate.inject(headers)
            try:
                if not headers:
                    yield span, call
                else:
                    yield span, _with_headers(call, headers) if bulk is None else bulk.with_headers(headers)
            except BaseException as error:
                _record(span, error)
                raise

    # Running

    def around(self, ctx: Context[Any], call_next: Callable[[], Any], /) -> Any:
        with self._processing(ctx):
            return call_next()

    async def around_async(self, ctx: Context[Any], call_next: Callable[[], Awaitable[Any]], /) -> Any:
        with self._processing(ctx):
            return await call_next()

    @contextmanager
    def _processing(self, ctx: Context[Any]) -> Iterator[None]:
        """The span of an attempt, which is the current one."""
        told = _process(ctx.task, ctx.queue)
        told |= {"messaging.message.id": str(ctx.id), "pgqueue.attempt": ctx.attempt}
        sent = _context_of(ctx.headers)
        hide = partial(self._hidden, ctx.task, [ctx])
        span = self._start(ctx.task, sent, _links([(ctx.id, sent)]), told)
        with _as_current(span, trace.set_span_in_context(span, sent)):
            try:
                yield
            except asyncio.CancelledError as error:
                # The worker's own stops come as this one; a timeout among them is a failure.
                stop = getattr(getattr(ctx._slot, "stop", None), "name", None)
                if stop in _STOPPED:
                    span.set_attribute("pgqueue.outcome", _STOPPED[stop])
                elif stop is None:
                    _record(span, error, hide)  # the handler's own
                else:
                    late = TimedOut("the attempt took longer than its timeout")
                    _record(span, late.with_traceback(error.__traceback__))
                raise
            except BaseException as error:
                _end(span, error, hide)
                raise

    def _hidden(self, task: str, jobs: Iterable[Any], told: ErrorText) -> ErrorText:
        """An error without what is not to be shown of the args of these jobs (a `Context`, or those of a batch)."""
        for job in jobs:
            told = self._app.task_named(task).redact(told, job._job.args)
        return told

    def around_batch(
        self, task: str, function: Callable[..., Any], /, *, is_async: bool
    ) -> Callable[..., Any]:
        return partial(self._batch_async if is_async else self._batch, task, function)

    def _batch(self, task: str, function: Callable[..., Any], jobs: list[BatchJob[Any]], /) -> Any:
        with self._processing_batch(task, jobs):
            return function(jobs)

    async def _batch_async(
        self, task: str, function: Callable[..., Any], jobs: list[BatchJob[Any]], /
    ) -> Any:
        with self._processing_batch(task, jobs):
            return await function(jobs)

    @contextmanager
    def _processing_batch(self, task: str, jobs: Sequence[BatchJob[Any]]) -> Iterator[None]:
        told = _process(task, _common(job.queue for job in jobs))
        told["messaging.batch.message_count"] = len(jobs)
        root = contexts.Context()
        links = _links((job.id, _context_of(job.headers)) for job in jobs)
        span = self._start(task, root, links, told)
        with _as_current(span, trace.set_span_in_context(span, root)):
            try:
                yield
            except asyncio.CancelledError as error:
                if all(job.is_cancelled for job in jobs):
                    span.set_attribute("pgqueue.outcome", "cancelled")
                else:  # its time is over
                    _record(span, error)
                raise
            except BaseException as error:
                _end(span, error, partial(self._hidden, task, jobs))
                raise

    def _start(self, task: str, sent: contexts.Context, links: Sequence[Link], told: Attributes) -> Span:
        # Of the sender's context all but its span: baggage travels on, and the trace is a new one.
        root = trace.set_span_in_context(trace.INVALID_SPAN, sent)
        return self._tracer.start_span(
            f"process {task}", context=root, kind=SpanKind.CONSUMER, links=links, attributes=told
        )

    def flush(self) -> None:
        provider = trace.get_tracer_provider() if self._provider is None else self._provider
        flush = getattr(provider, "force_flush", None)  # the SDK's; the API knows none
        if flush is not None:
            # Beside: an exporter that hangs must not keep the process from ending.
            flushing = threading.Thread(target=flush, name="pgqueue-otel-flush", daemon=True)
            flushing.start()
            flushing.join(FLUSH_SECONDS)


@contextmanager
def _as_current(span: Span, context: contexts.Context) -> Iterator[None]:
    """Makes a span the current one, for log lines too, and ends it."""
    known = span.get_span_context()
    told = {"trace_id": trace.format_trace_id(known.trace_id), "span_id": trace.format_span_id(known.span_id)}
    token = contexts.attach(context)
    try:
        with structlog.contextvars.bound_contextvars(**(told if known.is_valid else {})):
            yield
    finally:
        contexts.detach(token)
        span.end()


# What is told of an enqueue -------------------------------------------------------------------------


def _told_of(call: Call[Any]) -> Attributes:
    values = call.values
    return _send(values[_AT["task"]], values[_AT["queue"]] or DEFAULT_QUEUE)


def _send(task: str | None, queue: str | None) -> Attributes:
    return _named(task, queue) | {"messaging.operation.name": "send", "messaging.operation.type": "send"}


def _process(task: str | None, queue: str | None) -> Attributes:
    return _named(task, queue) | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
    }


def _named(task: str | None, queue: str | None) -> Attributes:
    told: Attributes = {"messaging.system": "pgqueue"}
    if queue is not None:
        told["messaging.destination.name"] = queue
    if task is not None:
        told["pgqueue.task"] = task
    return told


def _common(values: Iterable[str]) -> str | None:
    """What all values are; None when they differ, or there are none."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _note_made(span: Span, made: Any) -> None:
    if isinstance(made, Job):
        span.set_attribute("messaging.message.id", str(made.id))
        if made.outcome != "created":
            span.set_attribute("pgqueue.outcome", made.outcome)


# Headers --------------------------------------------------------------------------------------------


class _Bulk:
    """The jobs of a call of `enqueue_many`, of which only what is needed is decoded."""

    def __init__(self, call: Call[Any]):
        self._call = call
        (jobs,) = call.values
        self._jobs = msgspec.json.decode(jobs or "[]", type=list[dict[str, msgspec.Raw]])

    def told(self) -> Attributes:
        """What the jobs have in common, and how many they are."""
        tasks, queues = self._distinct("task"), self._distinct("queue")
        told = _send(_common(tasks), _common(queues))
        told["messaging.batch.message_count"] = len(self._jobs)
        return told

    def _distinct(self, name: str) -> Iterable[str]:
        found = {bytes(job.get(name, b"null")) for job in self._jobs}
        return (msgspec.json.decode(value, type=str | None) or DEFAULT_QUEUE for value in found)

    def with_headers(self, headers: Mapping[str, str]) -> Call[Any]:
        """The call with headers in the options of each job."""
        encoded = msgspec.Raw(msgspec.json.encode(headers))
        for job in self._jobs:
            job["options"] = msgspec.Raw(_added(job.get("options"), encoded))
        return replace(self._call, values=(msgspec.json.encode(self._jobs).decode(),))


def _with_headers(call: Call[Any], headers: Mapping[str, str]) -> Call[Any]:
    """The call of an enqueue with headers in the options of its job."""
    values = list(call.values)
    stored = values[_AT["options"]]
    values[_AT["options"]] = _added(stored, msgspec.Raw(msgspec.json.encode(headers))).decode()
    return replace(call, values=tuple(values))


def _added(options: msgspec.Raw | str | None, headers: msgspec.Raw) -> bytes:
    stored = None if options is None else msgspec.json.decode(options, type=dict[str, msgspec.Raw] | None)
    return msgspec.json.encode({**(stored or {}), "headers": headers})


def _context_of(headers: Mapping[str, str]) -> contexts.Context:
    """The context that a job was enqueued in, as far as its headers tell."""
    return propagate.extract(headers, context=contexts.Context())


def _links(sent: Iterable[tuple[int, contexts.Context]]) -> list[Link]:
    """Links to the spans that jobs were enqueued in, those that are known, each with its job's id."""
    found = ((id, trace.get_current_span(context).get_span_context()) for id, context in sent)
    return [Link(span, {"messaging.message.id": str(id)}) for id, span in found if span.is_valid]


# Endings --------------------------------------------------------------------------------------------


def _end(span: Span, error: BaseException, hide: Callable[[ErrorText], ErrorText]) -> None:
    """Notes what a handler raised."""
    for kind, outcome in _NO_ERRORS.items():
        if isinstance(error, kind):
            span.set_attribute("pgqueue.outcome", outcome)
            return
    _record(span, error, hide)


def _record(
    span: Span, error: BaseException, hide: Callable[[ErrorText], ErrorText] = lambda told: told
) -> None:
    """Notes an error, as text that can be stored: an exception's own `str` may raise, and the SDK would call it."""
    if not span.is_recording():
        return
    told = hide(describe_error(error))
    span.add_event(
        "exception",
        {
            "exception.type": told.type,
            "exception.message": told.message,
            "exception.stacktrace": told.traceback,
        },
    )
    span.set_attribute("error.type", told.type)
    span.set_status(Status(StatusCode.ERROR, one_line(told.message)))
