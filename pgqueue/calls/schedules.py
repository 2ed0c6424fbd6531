"""What operators call about schedules; what a worker calls about those of its app is in `worker`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgqueue.calls.call import Call, Verb, scalar, text_or_null

SCHEDULE = Verb(
    "schedule",
    (
        ("name", "text"),
        ("task", "text"),
        ("args", "jsonb"),
        ("cron", "text"),
        ("every", "double precision"),
        ("at", "timestamptz"),
        ("tz", "text"),
        ("seconds", "text"),
        ("starts_at", "timestamptz"),
        ("ends_at", "timestamptz"),
        ("jitter", "double precision"),
        ("grace", "double precision"),
        ("missed", "text"),
        ("missed_limit", "integer"),
        ("overlap", "text"),
        ("queue", "text"),
        ("priority", "integer"),
        ("max_attempts", "integer"),
        ("options", "jsonb"),
    ),
)
UNSCHEDULE = Verb("unschedule", (("name", "text"),))
PAUSE_SCHEDULE = Verb("pause_schedule", (("name", "text"),))
RESUME_SCHEDULE = Verb("resume_schedule", (("name", "text"),))
RUN_SCHEDULE = Verb("run_schedule", (("name", "text"),), ("job_id", "outcome"))
SCHEDULE_RECORD = Verb("schedule_record", (("name", "text"),), ("args::text", "options::text"))


def schedule(name: str, definition: Mapping[str, Any]) -> Call[str]:
    """Makes or changes a schedule by hand: created, changed or unchanged.

    `definition`: the other arguments of `pgqueue.schedule()` by name; JSON as text, times as ISO 8601 with an offset.
    """
    values = {"name": name, **definition}
    return Call(
        SCHEDULE, tuple(text_or_null(values.get(parameter)) for parameter, _ in SCHEDULE.parameters), scalar
    )


def unschedule(name: str) -> Call[bool]:
    """Deletes a schedule and its history; whether there was one."""
    return Call(UNSCHEDULE, (name,), scalar)


def pause_schedule(name: str) -> Call[bool]:
    """Lets its due times pass; whether there is such a schedule."""
    return Call(PAUSE_SCHEDULE, (name,), scalar)


def resume_schedule(name: str) -> Call[bool]:
    """Runs it again, from now on; whether there is such a schedule."""
    return Call(RESUME_SCHEDULE, (name,), scalar)


def run_schedule(name: str) -> Call[tuple[int, str] | None]:
    """Enqueues its job now: the job's id and the outcome; None: there is no such schedule."""
    return Call(RUN_SCHEDULE, (name,), lambda rows: None if rows[0][1] is None else (rows[0][0], rows[0][1]))


def schedule_record(name: str) -> Call[tuple[str, str | None] | None]:
    """The args and options of a schedule's jobs as JSON text; None: there is no such schedule."""
    return Call(SCHEDULE_RECORD, (name,), lambda rows: (rows[0][0], rows[0][1]) if rows else None)
