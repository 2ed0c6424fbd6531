"""Rows of `pgqueue_bi.schedules` for `pgqueue schedules`: found by name, computed on, told in the zone of the schedule."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psycopg
from psycopg.rows import dict_row

from pgqueue.error_text import did_you_mean
from pgqueue.errors import UnknownSchedule
from pgqueue.schedule import Rule

Row = dict[str, Any]


def select(connection: psycopg.Connection[Any], query: str, *values: Any) -> list[Row]:
    """The rows of a query, by column name."""
    return connection.cursor(row_factory=dict_row).execute(query, values).fetchall()


def named(connection: psycopg.Connection[Any], name: str) -> Row | None:
    """The schedule of that name, as `pgqueue_bi.schedules` has it."""
    rows = select(connection, "select * from pgqueue_bi.schedules where name = %s", name)
    return rows[0] if rows else None


def find(connection: psycopg.Connection[Any], name: str) -> Row:
    """The schedule of that name. Raises `UnknownSchedule`."""
    row = named(connection, name)
    if row is None:
        raise unknown(connection, name)
    return row


def unknown(connection: psycopg.Connection[Any], name: str) -> UnknownSchedule:
    """The error for a name that no schedule has, with the nearest one."""
    names = [row["name"] for row in select(connection, "select name from pgqueue_bi.schedules order by name")]
    known = did_you_mean(name, names) or ("" if names else ", nor any other")
    return UnknownSchedule(f"there is no schedule {name!r}{known}")


def clock(connection: psycopg.Connection[Any]) -> datetime:
    """What the database's clock shows."""
    now: datetime = select(connection, "select clock_timestamp() as now")[0]["now"]
    return now


def rule_of(row: Row) -> Rule:
    """The rule in a row of `pgqueue_bi.schedules`. Unchecked: SQL may have stored what cannot be computed."""
    return Rule(
        cron=row["cron"],
        seconds=row["seconds"],
        every=row["every_seconds"],
        at=row["once_at"],
        at_startup=row["at_startup"],
        tz=row["tz"],
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        jitter=row["jitter_seconds"],
        grace=row["grace_seconds"],
        missed=row["missed"],
        missed_limit=row["missed_limit"],
        overlap=row["overlap"],
    )


def next_dues(row: Row, now: datetime, count: int) -> list[datetime]:
    """The next due times: the one that is stored, which may be late, and those after it."""
    stored: list[datetime] = [] if row["next_due_at"] is None else [row["next_due_at"]]
    return [*stored, *dues_after(row, max([now, *stored]), count)][:count]


def dues_after(row: Row, after: datetime, count: int) -> list[datetime]:
    """The due times that its rule gives, whatever is stored. Raises `InvalidOption` for one that cannot be computed."""
    return rule_of(row).due_after(after, count, created_at=row["created_at"])


def zone_of(tz: str) -> tzinfo:
    """The zone to tell times in; UTC where this machine does not know the one of the schedule."""
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def in_zone(moment: datetime, tz: str) -> str:
    """A time by the clock of a zone, with its offset."""
    return moment.astimezone(zone_of(tz)).isoformat(sep=" ", timespec="seconds")


def told(row: Row, column: str) -> str | None:
    """A time of a row, by the clock of its schedule."""
    return None if row[column] is None else in_zone(row[column], row["tz"])


def state(row: Row) -> str | None:
    """What keeps a schedule from running, in a few words."""
    if row["problem"] is not None:
        problem = " ".join(row["problem"].split())
        return f"problem: {problem if len(problem) <= 80 else problem[:79] + '…'}"
    return None if row["paused_at"] is None else "paused"
