"""`pgqueue dead`: look at dead letters, run them again, or let them go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import psycopg

from pgqueue import calls
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import json_option, note, print_json, print_table, print_values
from pgqueue.drivers import run
from pgqueue.job import DeadLetter, seconds

STEP = 500
"""Dead letters that are replayed or discarded in one transaction."""
ALL = 2_000_000_000


@click.group()
def dead() -> None:
    """List, show, replay and discard dead letters."""


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that choose dead letters; they come as the arguments of `calls.find_dead`."""
    for option in reversed(
        (
            click.option("-q", "--queue", help="Only of this queue."),
            click.option("-t", "--task", help="Only of this task."),
            click.option(
                "--reason", help="Only with this reason: exhausted, permanent, failed, invalid_args, crashed."
            ),
            click.option(
                "--error", help="Only where this text is part of the last error's class or message."
            ),
            click.option("--since", metavar="TIME", help="Only died since: ISO 8601, or an age such as 2h."),
            click.option("--until", metavar="TIME", help="Only died before: ISO 8601, or an age such as 2h."),
        )
    ):
        command = option(command)
    return command


def chosen(given: dict[str, Any]) -> dict[str, Any]:
    """The filters that were given, as arguments of `calls.find_dead`."""
    return {
        "queue": given["queue"],
        "task": given["task"],
        "reason": given["reason"],
        "error": given["error"],
        "died_after": _moment(given["since"], "--since"),
        "died_before": _moment(given["until"], "--until"),
    }


@dead.command("list")
@filters
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@json_option
@dsn_option
def list_(limit: int, as_json: bool, **given: Any) -> None:
    """List dead letters, newest first."""
    with connected(required_dsn(load_settings())) as connection:
        letters = run(connection, calls.find_dead(max_rows=limit, **chosen(given)))
    if as_json:
        print_json([_document(letter, whole=False) for letter in letters])
        return
    print_table(
        ("id", "task", "queue", "reason", "attempts", "died", "error"),
        [
            (
                letter.id,
                letter.task,
                letter.queue,
                letter.reason,
                f"{letter.attempt}/{letter.max_attempts}",
                letter.died_at,
                _cut(f"{letter.error}: {letter.message}" if letter.message else letter.error or ""),
            )
            for letter in letters
        ],
        empty="no dead letters match",
    )


@dead.command()
@click.argument("id", type=click.IntRange(1))
@json_option
@dsn_option
def show(id: int, as_json: bool) -> None:
    """Show one dead letter: its args and every attempt's error."""
    with connected(required_dsn(load_settings())) as connection:
        letters = run(connection, calls.find_dead(ids=[id]))
    if not letters:
        raise click.ClickException(f"job {id} is no dead letter")
    document = _document(letters[0], whole=True)
    if as_json:
        print_json(document)
        return
    errors = document.pop("errors")
    document["args"] = json.dumps(document["args"], ensure_ascii=False)
    document["options"] = document["options"] and json.dumps(document["options"], ensure_ascii=False)
    print_values(document)
    for error in errors:
        click.echo(
            f"\nattempt {error['attempt']} at {error['failed_at']}: {error['error']}: {error['message']}"
        )
        if error.get("traceback"):
            click.echo(error["traceback"].rstrip())


def actions(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what replay and discard share: ids, filters, consent."""
    for option in reversed(
        (
            click.argument("ids", type=click.IntRange(1), nargs=-1, metavar="[ID]..."),
            click.option("--all-matching", is_flag=True, help="Every dead letter that matches the filters."),
            click.option("-y", "--yes", is_flag=True, help="Do not ask."),
            json_option,
            dsn_option,
        )
    ):
        command = option(command)
    return filters(command)


@dead.command()
@actions
def replay(**given: Any) -> int:
    """Run dead letters again, with attempts from 0: by id, or all that match.

    One whose unique key another job holds stays where it is.
    """
    return _act("replay", "replayed", calls.replay, **given)


@dead.command()
@actions
def discard(**given: Any) -> int:
    """Let dead letters go: they move to the history as cancelled, by id or all that match."""
    return _act("discard", "discarded", calls.discard, **given)


def _act(
    verb: str,
    done: str,
    call: Callable[[Iterable[int]], calls.Call[list[int]]],
    *,
    ids: tuple[int, ...],
    all_matching: bool,
    yes: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Finds the letters, asks, acts in steps. Exit code 1 when one that was named could not be done."""
    if bool(ids) == all_matching:
        raise click.UsageError("name the ids of dead letters, or say --all-matching with or without filters")
    if ids and any(value is not None for value in given.values()):
        raise click.UsageError("filters go with --all-matching, not with ids")
    with connected(required_dsn(load_settings())) as connection:
        wanted = list(ids) if ids else _matching(connection, given)
        if all_matching and wanted and not yes:
            click.confirm(f"{verb} {len(wanted)} dead letters?", abort=True, err=True)
        changed: list[int] = []
        for step in _steps(wanted):
            accepted: list[int] = run(connection, call(step))
            changed += accepted
            if len(wanted) > STEP:
                note(f"{len(changed)} of {len(wanted)} {done}")
    left = sorted(set(wanted) - set(changed))
    if as_json:
        print_json({done: sorted(changed), "left": left})
    else:
        note(f"{len(changed)} {done}")
        if left:
            shown = ", ".join(map(str, left[:20])) + (" …" if len(left) > 20 else "")
            why = " or have a unique key that another job holds" if verb == "replay" else ""
            note(f"left as they are: {shown} (these are no dead letters{why})")
    return 1 if left and ids else 0


def _matching(connection: psycopg.Connection[Any], given: dict[str, Any]) -> list[int]:
    return [letter.id for letter in run(connection, calls.find_dead(max_rows=ALL, **chosen(given)))]


def _steps(ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), STEP):
        yield ids[start : start + STEP]


def _moment(value: str | None, option: str) -> str | None:
    """A time of the command line: ISO 8601 (local when it has no offset), or an age such as 2h."""
    if value is None:
        return None
    if value[:1].isdigit() and value[-1:] in "smhdw":
        return (datetime.now(UTC) - timedelta(seconds=seconds(value, name=option))).isoformat()
    try:
        return datetime.fromisoformat(value).astimezone().isoformat()
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: expected a time such as 2026-11-23T09:00, or an age such as 2h", param_hint=option
        ) from None


def _document(letter: DeadLetter, *, whole: bool) -> dict[str, Any]:
    document = asdict(letter)
    for name in ("args", "options", "errors"):
        text = document.pop(name)
        if whole:
            document[name] = None if text is None else json.loads(text)
    return document


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:99] + "…"
