"""What goes around the enqueues and the handlers of an app, to trace them. `pgqueue.otel` makes one.

An app has none by default, and then nothing asks for it: what is traced is arranged once, when the app is instrumented
and when a worker makes the handlers of its tasks, and is not looked at with each job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from pgqueue.calls import Call
from pgqueue.context import Context


class Tracing(Protocol):
    """What `App.trace_with` takes."""

    def run_call(self, target: Any, call: Call[Any], /) -> Any:
        """Runs the call of an enqueue, of one job or of many, as `drivers.run` does."""

    def around(self, ctx: Context[Any], call_next: Callable[[], Any], /) -> Any:
        """The outermost middleware of sync handlers."""

    async def around_async(self, ctx: Context[Any], call_next: Callable[[], Awaitable[Any]], /) -> Any:
        """The outermost middleware of async handlers."""

    def around_batch(
        self, task: str, function: Callable[..., Any], /, *, is_async: bool
    ) -> Callable[..., Any]:
        """What is called instead of the function of a batch task: as it is, with a list of `BatchJob`s."""

    def flush(self) -> None:
        """Hands over what has been traced: the process is about to end. Returns within two seconds."""
