"""An app that is traced as applications are: with the global provider, and an exporter that writes into a file.

What is exported is what the end of a process hands over: the exporter's own time comes after an hour.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import pgqueue
import pgqueue.otel
from tests.worker.tasks import FOLDER, note

app = pgqueue.App(name="traced")
pgqueue.otel.instrument(app)


class ToFile(SpanExporter):
    """A span a line."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with (FOLDER / "spans").open("a") as file:
            file.write("".join(span.to_json(indent=None) + "\n" for span in spans))
        return SpanExportResult.SUCCESS


if "TESTS_WORKER_FOLDER" in os.environ:  # not in the process of the tests, which has providers of its own
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(ToFile(), schedule_delay_millis=3_600_000))
    trace.set_tracer_provider(provider)


@app.task
async def outer(ctx: pgqueue.Context) -> None:
    """Enqueues another one: a trace goes on."""
    ctx.log.info("traced")
    await app.enqueue_async(inner)
    note(ctx, "end")


@app.task
def inner(ctx: pgqueue.Context) -> None:
    note(ctx, "end")


@app.task(executor="process", max_jobs_per_child=1)
def apart(ctx: pgqueue.Context) -> None:
    note(ctx, "end")


@app.task
async def late(ctx: pgqueue.Context) -> None:
    """Is given back when its worker stops."""
    note(ctx, "start")
    await asyncio.Event().wait()
