"""What a check is given, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg.rows import dict_row

__all__ = ["Check", "Finding", "Patient", "Row", "Severity", "duration"]

Severity = Literal["error", "warning", "unseen", "info"]
"""error: jobs are not run, or soon will not be; warning: it may come to that; unseen: for want of a right; info: good to
know."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found: what it means, and what to do about it."""

    severity: Severity
    what: str
    remedy: str | None = None


@dataclass(frozen=True)
class Patient:
    """A database that is looked at."""

    dsn: str
    connection: psycopg.Connection[Any]

    def rows(self, query: str, *values: Any) -> list[Row]:
        """The rows of a query."""
        cursor = self.connection.cursor(row_factory=dict_row)
        return cursor.execute(query, values or None).fetchall()

    def row(self, query: str, *values: Any) -> Row:
        """The one row of a query."""
        (row,) = self.rows(query, *values)
        return row


Check = Callable[[Patient], Iterator[Finding]]


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(7), duration(300), duration(8000)
    ('7 s', '5 min', '2.2 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
