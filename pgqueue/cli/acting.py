"""How commands change something: they show what it is about, ask, act in steps, and say who acts."""

from __future__ import annotations

import getpass
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import click
import psycopg

from pgqueue import calls
from pgqueue.cli.choosing import MOST
from pgqueue.cli.output import ID, note, print_table
from pgqueue.drivers import run

__all__ = ["act", "act_options", "agree", "check_named", "in_steps", "note_ids", "per_second"]

STEP = 1000
"""Jobs that are changed in one transaction."""
PREVIEW = 5
TICK = 0.1
"""Seconds between two steps of a throttled command, at the least."""

T = TypeVar("T")


def act(connection: psycopg.Connection[Any], call: calls.Call[T], *, chosen_by: str | None = None) -> T:
    """Runs a call that changes something, in a transaction that says who acts: the audit has both.

    Hazard: both are set for the transaction alone, for behind a pooler others have this session after us.
    """
    try:
        actor = f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a user without a name, as in many containers
        actor = f"?@{socket.gethostname()}"
    with connection.transaction():
        connection.execute(
            "select set_config('pgqueue.actor', %s, true), set_config('pgqueue.filter', %s, true)",
            [actor, chosen_by or ""],
        )
        return run(connection, call)


def act_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ids, `--all-matching` and `--yes` to a command."""
    for option in reversed(
        (
            click.argument("ids", type=ID, nargs=-1, metavar="[ID]..."),
            click.option("--all-matching", is_flag=True, help="All that match the filters, instead of ids."),
            click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        )
    ):
        command = option(command)
    return command


def check_named(ids: Sequence[int], all_matching: bool, filters: dict[str, Any], *, unfiltered: bool) -> None:
    """Refuses what is neither ids nor a filter, or both. `unfiltered`: whether --all-matching goes without one."""
    if bool(ids) == all_matching:
        raise click.UsageError("name the ids of jobs, or say --all-matching with a filter")
    if ids and filters:
        raise click.UsageError("filters go with --all-matching, not with ids")
    if all_matching and not filters and not unfiltered:
        raise click.UsageError("--all-matching goes with a filter: --queue, --task, --state, --older-than, …")


def agree(
    connection: psycopg.Connection[Any], verb: str, ids: Sequence[int], *, yes: bool, nouns: str = "jobs"
) -> None:
    """Shows how many jobs are meant and the first of them, and asks. Raises when nobody agrees, or can be asked."""
    if not ids:
        return
    infos = run(connection, calls.look(ids[:PREVIEW]))
    first = sorted(infos, key=lambda info: -info.id)
    rows = [
        (
            job.id,
            job.state,
            job.task,
            job.queue,
            f"{job.attempt}/{job.max_attempts}",
            job.created_at,
            job.error,
        )
        for job in first
    ]
    print_table(("id", "state", "task", "queue", "attempts", "created", "error"), rows, as_note=True)
    if len(ids) > len(rows):
        note(f"… and {len(ids) - len(rows)} more")
    if len(ids) == MOST:
        note(f"these are the newest {MOST:,}, as many as one command takes: run it again for the rest")
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"to {verb} {len(ids)} {nouns} takes consent: nobody can be asked here, so say --yes"
        )
    click.confirm(f"{verb} {len(ids)} {nouns}?", abort=True, err=True)


def in_steps(ids: Sequence[int], done: str, *, rate: float | None = None) -> Iterator[Sequence[int]]:
    """Yields ids, `STEP` of them at a time, and notes how far it has come.

    `rate`: jobs a second at the most, in steps as small as that makes them.
    """
    size = STEP if rate is None else min(STEP, max(1, int(rate * TICK)))
    begun = said = time.monotonic()
    for start in range(0, len(ids), size):
        if rate is not None and start > 0:
            time.sleep(max(0, begun + start / rate - time.monotonic()))
        yield ids[start : start + size]
        reached = min(start + size, len(ids))
        if len(ids) > size and (size == STEP or reached == len(ids) or time.monotonic() > said + 1):
            said = time.monotonic()
            note(f"{reached} of {len(ids)} {done}")


def per_second(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Reads a rate such as 10/s, 100/m, 5000/h, as jobs a second."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)/(s|m|h)", value)
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"{value!r}: expected a rate such as 10/s, 100/m or 5000/h")
    return float(match[1]) / {"s": 1, "m": 60, "h": 3600}[match[2]]


def note_ids(ids: Iterable[int], what: str) -> None:
    """Says of how many jobs something is true, and of which."""
    every = list(ids)
    if every:
        shown = ", ".join(map(str, every[:20])) + (" …" if len(every) > 20 else "")
        note(f"{len(every)} {what} ({shown})")
