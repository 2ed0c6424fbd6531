"""Ticks a schedule without waiting for its due time."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any, overload

from pgqueue import calls
from pgqueue.app import App
from pgqueue.cron import check_moment
from pgqueue.drivers import AsyncTarget, SyncTarget, run
from pgqueue.error_text import did_you_mean, safe_repr
from pgqueue.errors import UnknownSchedule
from pgqueue.job import Job


@overload
def tick(app: App, connection: SyncTarget, name: str, /, *, due_at: datetime | None = None) -> Job: ...
@overload
def tick(
    app: App, connection: AsyncTarget, name: str, /, *, due_at: datetime | None = None
) -> Awaitable[Job]: ...
def tick(app: App, connection: Any, name: str, /, *, due_at: datetime | None = None) -> Any:
    """Enqueues the job of a schedule that the app's code defines, as a worker does at its due time.

        tick(app, session, "clean_up")
        assert drain(app, session).completed == 1

    In the transaction of `connection`; with an async one, await it. The job has the args and options of the schedule,
    and its overlap policy holds (`created` is False when that allows no second one); there is no jitter. `due_at`, a
    datetime with a time zone, is what the handler finds as `ctx.due_at`, by default now. When the schedule is due says
    `app.schedules[name].due_after(…)`. Raises `UnknownSchedule`.
    """
    schedule = app.schedules.get(name)
    if schedule is None:
        raise UnknownSchedule(
            f"the app has no schedule {safe_repr(name)}{did_you_mean(str(name), app.schedules)}"
        )
    due = datetime.now(UTC) if due_at is None else check_moment("due_at", due_at)
    options: dict[str, Any] = json.loads(schedule.row.get("options") or "{}")
    options |= {"schedule": name, "due_at": due.isoformat()}
    overlap = schedule.rule.overlap
    if overlap == "queue":
        options["unique"] = {"on_conflict": "follow_up"}
    key = None if overlap == "allow" else f"schedule:{name}"
    call = calls.enqueue(**{**schedule.row, "options": json.dumps(options), "unique_key": key})
    return run(connection, call)
