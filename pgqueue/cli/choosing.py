"""The options by which commands choose jobs, alike in all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import psycopg

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.error_text import did_you_mean
from pgqueue.job import seconds

__all__ = [
    "MOST",
    "chosen",
    "dead_filters",
    "in_words",
    "job_filters",
    "json_object",
    "moment",
    "parse",
    "unknown_queue",
]

MOST = 1_000_000
"""Jobs that one command acts on at the most."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def parse(value: str, option: str) -> Any:
    """JSON of the command line."""
    try:
        return json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint=option) from error


def json_object(value: str | None, option: str) -> str | None:
    """JSON text that is an object, or nothing."""
    if value is not None and not isinstance(parse(value, option), dict):
        raise click.BadParameter("expected a JSON object, such as '{\"user_id\": 7}'", param_hint=option)
    return value


def moment(value: str | None, option: str) -> str | None:
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


def _common(fingerprint: str, begun: str) -> tuple[Decorator, ...]:
    """Options of both kinds of filter; `begun` says which time the two of time are about."""
    return (
        click.option("-q", "--queue", help="Only of this queue."),
        click.option("-t", "--task", help="Only of this task."),
        click.option("--tag", help="Only with this tag."),
        click.option("--since", metavar="TIME", help=f"Only {begun} since: ISO 8601, or an age such as 2h."),
        click.option(
            "--until",
            "--older-than",
            "until",
            metavar="TIME",
            help=f"Only {begun} before: ISO 8601, or an age such as 2h.",
        ),
        click.option("--fingerprint", help=fingerprint),
        click.option(
            "--args-contain",
            "args_contain",
            metavar="JSON",
            callback=lambda _context, _parameter, value: json_object(value, "--args-contain"),
            help="Only where this is part of the args: '{\"user_id\": 7}'.",
        ),
    )


def job_filters(states: Sequence[str] | None) -> Decorator:
    """Adds the options that choose jobs, in these states or (None) without that option; `chosen` reads them."""
    options = _common("Only those of which an attempt failed with an error of this fingerprint.", "enqueued")
    if states is not None:
        kind = click.Choice(states)
        state = click.option(
            "-s",
            "--state",
            "states",
            type=kind,
            multiple=True,
            help="Only in this state; repeat it for more.",
        )
        options = (state, *options)
    return _adding(options)


def dead_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that choose dead letters."""
    reasons = "Only with this reason: exhausted, permanent, failed, invalid_args, crashed."
    options = (
        *_common("Only with this fingerprint of the last error.", "died"),
        click.option("--reason", help=reasons),
        click.option("--error", help="Only where this text is part of the last error's class or message."),
    )
    return _adding(options)(command)


def _adding(options: Sequence[Decorator]) -> Decorator:
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def chosen(given: Mapping[str, Any], *, dead: bool = False) -> dict[str, Any]:
    """The filters that were given, as arguments of `calls.find_jobs`, or of `calls.find_dead`."""
    since, until = ("died_after", "died_before") if dead else ("created_after", "created_before")
    names = {"args_contain": "args", "since": since, "until": until}
    filters: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or value == ():
            continue
        filters[names.get(name, name)] = moment(value, f"--{name}") if name in ("since", "until") else value
    return filters


def in_words(given: Mapping[str, Any]) -> str:
    """The filters as they were given, for the audit; of args only their names.

    >>> in_words({"queue": "mail", "states": ("ready",), "tag": None, "args_contain": '{"user_id": 7}'})
    '--queue mail --state ready --args-contain user_id'
    """
    return " ".join(_words(given)) or "all"


def _words(given: Mapping[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        match name, value:
            case _, None | ():
                continue
            case "states", _:
                yield from (f"--state {state}" for state in value)
            case "args_contain", _:
                yield f"--args-contain {','.join(json.loads(value))}"
            case _:
                yield f"--{name.replace('_', '-')} {value}"


def unknown_queue(connection: psycopg.Connection[Any], queue: str) -> str | None:
    """What to say of a queue that has neither jobs nor workers nor settings, for it may be misspelt; None: it has."""
    names = [name for (name,) in connection.execute("select queue from pgqueue_bi.queue_health").fetchall()]
    if queue in names:
        return None
    count = run(connection, calls.count_queue(queue))  # the view has what was counted a moment ago
    if any(count):
        return None
    return f"no queue {queue!r} is known: it has neither jobs, nor workers, nor settings{did_you_mean(queue, names)}"
