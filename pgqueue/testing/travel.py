"""Lets time pass for the jobs that wait: their rows move, no clock does."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, TypeAlias, overload

from pgqueue import calls
from pgqueue.drivers import AsyncTarget, SyncTarget, run
from pgqueue.job import seconds

Span: TypeAlias = float | str | timedelta
"""A length of time: seconds, a timedelta, or text such as "1h" or "+1h"."""


def span(value: Span, *, name: str) -> float:
    """Its seconds. Raises `InvalidOption`."""
    return seconds(value.strip().removeprefix("+") if isinstance(value, str) else value, name=name)


@overload
def travel(connection: SyncTarget, by: Span, /) -> int: ...
@overload
def travel(connection: AsyncTarget, by: Span, /) -> Awaitable[int]: ...
def travel(connection: Any, by: Any, /) -> Any:
    """Lets time pass for the jobs that wait, and returns how many scheduled jobs are due now.

        send_reminder.using(delay="1h").enqueue(session, user_id=7)
        travel(session, "+1h")
        assert drain(app, session).completed == 1

    Their times (due, enqueued, expiry) and those of idempotency keys move back by `by`, in the transaction of
    `connection`; neither Python's clock nor the server's moves. What becomes due becomes ready with the next
    `drain`, or the next look of a real worker. Time goes forward only.

    Raises `InvalidOption`. Needs the rights of the schema's owner.
    """
    return run(connection, calls.travel(span(by, name="by")))
