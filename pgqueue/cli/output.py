"""What commands print: data to stdout, all else to stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import click

from pgqueue.error_text import plain

__all__ = ["ID", "LIMIT", "json_option", "note", "plain", "print_json", "print_table", "print_values"]

ID = click.IntRange(1, 2**63 - 1)
"""An id on the command line: what a bigint holds."""

LIMIT = click.IntRange(1, 2**31 - 1)
"""A number of rows on the command line."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
"""Adds `--json` to a command, as the argument `as_json`."""


def note(message: str) -> None:
    """A line of progress or advice, to stderr."""
    click.echo(plain(message), err=True)


def print_json(value: Any) -> None:
    """One JSON document, to stdout. Times become ISO 8601, what is unknown its text; what a terminal would obey is escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=_told)
    click.echo(_UNUSUAL.sub(_escaped, text))


_UNUSUAL = re.compile(r"[^\x20-\x7e\n]")


def _escaped(found: re.Match[str]) -> str:
    """Such a character is part of a string, for JSON has none anywhere else."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "nothing", as_note: bool = False
) -> None:
    """A table, to stdout, or to stderr `as_note`; `empty` goes to stderr when there are no rows.

    On a terminal it fits its width; in a pipe no value is ever cut or wrapped.
    """
    rows = [[_cell(value) for value in row] for row in rows]
    if not rows:
        note(empty)
        return
    # Imported here: `pgqueue --help` and JSON do without.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    is_terminal = (sys.stderr if as_note else sys.stdout).isatty()
    console = Console(highlight=False, width=None if is_terminal else 100_000, stderr=as_note)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a job's own brackets are no markup
    console.print(table)


def print_values(values: Mapping[str, Any]) -> None:
    """Names and values, one a line, to stdout."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {_cell(value)}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().isoformat(sep=" ", timespec="seconds")
    return plain(str(value))


def _told(value: Any) -> str:
    return value.isoformat() if isinstance(value, date | datetime) else str(value)
