"""`pgqueue dead`: look at dead letters, run them again, or let them go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import click

from pgqueue import calls
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.acting import act, act_options, agree, check_named, in_steps, note_ids, per_second
from pgqueue.cli.choosing import MOST, chosen, dead_filters, in_words, json_object
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import ID, LIMIT, json_option, note, plain, print_json, print_table, print_values
from pgqueue.cli.showing import reveal_option, shown
from pgqueue.drivers import run
from pgqueue.encoding import encode_args
from pgqueue.encryption import is_sealed
from pgqueue.errors import ConfigurationError
from pgqueue.job import DeadLetter
from pgqueue.settings import Settings


@click.group()
def dead() -> None:
    """List, show, replay and discard dead letters."""


@dead.command("list")
@dead_filters
@click.option("-n", "--limit", type=LIMIT, default=50, show_default=True, help="At most so many.")
@json_option
@dsn_option
def list_(limit: int, as_json: bool, **given: Any) -> None:
    """List dead letters, newest first."""
    with connected(required_dsn(load_settings())) as connection:
        letters = run(connection, calls.find_dead(max_rows=limit, **chosen(given, dead=True)))
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
@click.argument("id", type=ID)
@reveal_option
@json_option
@dsn_option
def show(id: int, reveal: bool, as_json: bool) -> None:
    """Show one dead letter: its args and every attempt's error."""
    settings = load_settings()
    with connected(required_dsn(settings)) as connection:
        letters = run(connection, calls.find_dead(ids=[id]))
    if not letters:
        raise click.ClickException(f"job {id} is no dead letter")
    (letter,) = letters
    document = _document(letter, whole=True)
    document["args"] = shown(settings, letter.args, "args", letter.task, letter.queue, reveal=reveal)
    if as_json:
        print_json(document)
        return
    errors = document.pop("errors")
    document["args"] = json.dumps(document["args"], ensure_ascii=False)
    document["options"] = document["options"] and json.dumps(document["options"], ensure_ascii=False)
    print_values(document)
    for error in errors:
        click.echo(
            plain(
                f"\nattempt {error['attempt']} at {error['failed_at']}: {error['error']}: {error['message']}"
            )
        )
        if error.get("traceback"):
            click.echo(plain(error["traceback"].rstrip()))


def _args_edited(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any]:
    """Reads key=value; a value that is no JSON is text."""
    changed: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r}: expected name=value")
        try:
            changed[key] = json.loads(value)
        except ValueError:
            changed[key] = value
    return changed


@dead.command()
@act_options
@dead_filters
@click.option("--rate", metavar="N/s", callback=per_second, help="At most so many: 10/s, 100/m, 5000/h.")
@click.option("--args", "new_args", metavar="JSON", help="Run it with these args instead; goes with one id.")
@click.option(
    "--set",
    "changed_args",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_args_edited,
    help="Run with this arg changed; the value is JSON, or text. Repeat it for more.",
)
@json_option
@dsn_option
def replay(
    ids: tuple[int, ...],
    all_matching: bool,
    yes: bool,
    rate: float | None,
    new_args: str | None,
    changed_args: dict[str, Any],
    as_json: bool,
    **given: Any,
) -> int:
    """Run dead letters again, with attempts from 0: by id, or all that match.

    One whose unique key another job holds stays where it is. With --rate it goes on until the last one is replayed; when
    it is stopped, those that it has not come to are dead letters still.
    """
    settings = load_settings()
    if new_args is not None:
        if len(ids) != 1 or changed_args:
            raise click.UsageError("--args goes with one id, and without --set; for many there is --set")
        json_object(new_args, "--args")
        new_args = encode_args(json.loads(new_args), limit=settings.max_args_bytes)
        new_args = _as_before(settings, ids[0], new_args)
    changes = encode_args(changed_args, limit=settings.max_args_bytes) if changed_args else None
    return _act(
        "replay",
        "replayed",
        lambda step: calls.replay(step, new_args=new_args, changed_args=changes),
        ids=ids,
        all_matching=all_matching,
        yes=yes,
        as_json=as_json,
        rate=rate,
        **given,
    )


def _as_before(settings: Settings, id: int, new_args: str) -> str:
    """Args for a dead letter: sealed, when those that it has are."""
    with connected(required_dsn(settings)) as connection:
        letters = run(connection, calls.find_dead(ids=[id]))
    if not letters or not is_sealed(letters[0].args):
        return new_args
    keyring = settings.keyring()
    if keyring is None:
        raise ConfigurationError(
            f"encryption_keys: the args of job {id} are encrypted, and no key is set here to encrypt others"
        )
    return keyring.seal(new_args, "args", letters[0].task, letters[0].queue)


@dead.command()
@act_options
@dead_filters
@json_option
@dsn_option
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
    rate: float | None = None,
    **given: Any,
) -> int:
    """Finds the letters, asks, acts in steps. Exit code 1 when one that was named could not be done."""
    filters = chosen(given, dead=True)
    check_named(ids, all_matching, filters, unfiltered=True)
    with connected(required_dsn(load_settings())) as connection:
        if ids:
            wanted = list(dict.fromkeys(ids))
        else:
            wanted = run(connection, calls.find_dead_ids(max_rows=MOST, **filters))
            agree(connection, verb, wanted, yes=yes, nouns="dead letters")
        changed: list[int] = []
        for step in in_steps(wanted, "done", rate=rate):
            accepted = act(connection, call(step), chosen_by=None if ids else in_words(given))
            changed += accepted
    left = sorted(set(wanted) - set(changed))
    if as_json:
        print_json({done: sorted(changed), "left": left})
    else:
        note(f"{len(changed)} {done}")
        why = " or have a unique key that another job holds" if verb == "replay" else ""
        note_ids(left, f"left as they are: they are no dead letters{why}")
    return 1 if left and ids else 0


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
