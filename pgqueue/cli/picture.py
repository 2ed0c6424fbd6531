"""What `pgqueue top` shows: one look at the views, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from pgqueue import calls
from pgqueue.cli.output import plain
from pgqueue.cli.stats import brief
from pgqueue.drivers import run

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Look", "drawn", "look"]

QUEUES = """
select queue, is_paused, ready, running, scheduled, blocked, dead, oldest_ready_seconds, oldest_running_seconds,
       completed_per_minute, failed_per_minute, failure_ratio, workers, slots, counted_at, rolled_up_at
  from pgqueue_bi.queue_health order by ready desc, running desc, queue
"""
WORKERS = """
select id, host, pid, queues, concurrency, version, started_at, silent_seconds, unknown_tasks
  from pgqueue_bi.workers order by id
"""
FAILURES = """
select task, queue, error, failures, dead, last_seen_at, sample_message, sample_job_id
  from pgqueue_bi.failures where last_seen_at > now() - interval '1 hour' order by failures desc, last_seen_at desc limit 20
"""

Look = dict[str, Any]
Row = Mapping[str, Any]


def look(connection: psycopg.Connection[Any]) -> Look:
    """What there is to see now."""
    cursor = connection.cursor(row_factory=dict_row)
    clock = cursor.execute("select clock_timestamp() as at").fetchone()
    assert clock is not None
    return {
        **clock,
        "queues": cursor.execute(QUEUES).fetchall(),
        "workers": cursor.execute(WORKERS).fetchall(),
        "failures": cursor.execute(FAILURES).fetchall(),
        "unhealthy": [asdict(check) for check in run(connection, calls.health()) if not check.is_healthy],
    }


def drawn(seen: Look, *, limits: Mapping[str, int]) -> RenderableType:
    """A look for rich; at most `limits[part]` rows of a part."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(_headline(seen), style="bold")]
    for check in seen["unhealthy"]:
        of = f" of {check['queue']}" if check["queue"] else ""
        parts.append(
            Text(plain(f"not healthy: {check['check_name']}{of}: {check['detail']}"), style="bold red")
        )
    for name, columns in PARTS.items():
        parts += _part(name, columns, seen[name], seen["at"], limits.get(name))
    return Group(*parts)


def _headline(seen: Look) -> str:
    queues, workers = seen["queues"], seen["workers"]
    ready, running, dead = (sum(row[state] for row in queues) for state in ("ready", "running", "dead"))
    done, failed = (sum(row[f"{what}_per_minute"] for row in queues) for what in ("completed", "failed"))
    return (
        f"pgqueue  {seen['at'].astimezone():%H:%M:%S}  ready {ready:,}  running {running:,}  dead {dead:,}  "
        f"workers {len(workers)}, slots {sum(row['concurrency'] for row in workers):,}  "
        f"completed {done:,.0f}/min  failed {failed:,.0f}/min"
    )


# Tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column: its value of a row at a time. What does not fit is cut off, but for numbers."""

    name: str
    value: Callable[[Row, datetime], Any]
    is_number: bool = False


def _text(name: str, field: str) -> Column:
    return Column(name, lambda row, at: row[field])  # noqa: ARG005 - as for all columns


def _number(name: str, field: str, form: str = "") -> Column:
    def value(row: Row, at: datetime) -> Any:  # noqa: ARG001 - as for all columns
        return None if row[field] is None else format(row[field], form)

    return Column(name, value, is_number=True)


def _seconds(name: str, field: str) -> Column:
    return Column(name, lambda row, at: brief(row[field]), is_number=True)  # noqa: ARG005 - as for all columns


def _since(name: str, field: str) -> Column:
    def age(row: Row, at: datetime) -> str | None:
        return brief(max(0.0, (at - row[field]).total_seconds()))

    return Column(name, age, is_number=True)


def _state(row: Row, _at: datetime) -> str:
    return "paused" if row["is_paused"] else "runs" if row["workers"] else "unserved"


def _first_line(row: Row, _at: datetime) -> str:
    return next(iter(str(row["sample_message"]).splitlines()), "")


PARTS: dict[str, tuple[Column, ...]] = {
    "queues": (
        _text("queue", "queue"),
        Column("state", _state),
        _number("ready", "ready"),
        _seconds("oldest", "oldest_ready_seconds"),
        _number("runs", "running"),
        _seconds("oldest", "oldest_running_seconds"),
        Column("later", lambda row, at: row["scheduled"] + row["blocked"], is_number=True),  # noqa: ARG005
        _number("dead", "dead"),
        _number("done/m", "completed_per_minute", ".4g"),
        _number("failed", "failure_ratio", ".1%"),
        Column("workers", lambda row, at: f"{row['workers']}/{row['slots']}", is_number=True),  # noqa: ARG005
    ),
    "workers": (
        _number("worker", "id"),
        _text("host", "host"),
        _number("pid", "pid"),
        _text("queues", "queues"),
        _number("slots", "concurrency"),
        _text("version", "version"),
        _since("age", "started_at"),
        _seconds("silent", "silent_seconds"),
        _text("lacks", "unknown_tasks"),
    ),
    "failures": (
        _text("failing task", "task"),
        _text("queue", "queue"),
        _text("error", "error"),
        _number("failures", "failures"),
        _number("dead", "dead"),
        _since("last", "last_seen_at"),
        Column("message", _first_line),
    ),
}


def _part(
    name: str, columns: Sequence[Column], rows: Sequence[Row], at: datetime, limit: int | None
) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    yield Text("")
    if not rows:
        yield Text(f"no {name}")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold underline")
    for column in columns:
        if column.is_number:
            table.add_column(column.name, justify="right", no_wrap=True)
        else:
            table.add_column(column.name, min_width=8)  # or it vanishes in a narrow terminal
    for row in rows[:limit]:
        values = [column.value(row, at) for column in columns]
        # Text: a job's own brackets are no markup
        table.add_row(
            *(
                Text("-" if v in (None, "") else plain(str(v)), no_wrap=True, overflow="ellipsis")
                for v in values
            )
        )
    yield table
    if limit is not None and len(rows) > limit:
        yield Text(f"… and {len(rows) - limit} more {name}")
