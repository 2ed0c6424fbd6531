"""`pgqueue keys`: make encryption keys, see what they have sealed, and go over to a new one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from pgqueue import calls
from pgqueue.calls import Sealed
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import json_option, note, print_json, print_table
from pgqueue.drivers import run
from pgqueue.encryption import Keyring, Kind, generate_key
from pgqueue.errors import CannotDecrypt, ConfigurationError

if TYPE_CHECKING:
    import psycopg


@click.group()
def keys() -> None:
    """Make, list and rotate encryption keys."""


@keys.command()
@click.option("--id", "key_id", help="Its id, which can be read in the database; by default the date.")
def generate(key_id: str | None) -> None:
    """Print a new key, to be put first in PGQUEUE_ENCRYPTION_KEYS. It is stored nowhere."""
    click.echo(generate_key(key_id or datetime.now(UTC).date().isoformat()))


@keys.command("list")
@json_option
@dsn_option
def list_(as_json: bool) -> None:
    """List what is encrypted with which key: one that nothing needs may be thrown away. Reads every job."""
    settings = load_settings()
    keyring = settings.keyring()
    ids = () if keyring is None else keyring.ids
    with connected(required_dsn(settings)) as connection:
        counts = run(connection, calls.count_sealed())
    rows = [
        {"key": count.key_id, "at_hand": count.key_id in ids, "place": count.place, "sealed": count.sealed}
        for count in counts
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("key", "at hand", "place", "sealed"),
        [(row["key"], "yes" if row["at_hand"] else "no", row["place"], row["sealed"]) for row in rows],
        empty="nothing is encrypted",
    )


@keys.command()
@json_option
@dsn_option
def rotate(as_json: bool) -> int:
    """Seal with the first key what others have sealed: jobs that wait, dead letters, schedules, steps.

    Start it when every worker and producer has the new key. Jobs that run are left alone, and the history is: retention
    takes it. So keep the old key until `pgqueue keys list` does not name it any more. Exit code 1 when something
    was left: run it again.
    """
    settings = load_settings()
    keyring = settings.keyring()
    if keyring is None:
        raise ConfigurationError(
            "encryption_keys: no key is set here: PGQUEUE_ENCRYPTION_KEYS has to hold the old and the new"
        )
    newest = keyring.ids[0]
    done, unreadable = 0, 0
    with connected(required_dsn(settings)) as connection:
        for place in calls.PLACES:
            sealed, failed = _rotate(connection, keyring, place)
            done, unreadable = done + sealed, unreadable + failed
        counts = run(connection, calls.count_sealed())
    left = sum(
        count.sealed
        for count in counts
        if count.key_id != newest and count.place in (*calls.PLACES, "running")
    )
    history = sum(count.sealed for count in counts if count.key_id != newest) - left
    if as_json:
        print_json(
            {"key": newest, "sealed": done, "left": left, "unreadable": unreadable, "in_history": history}
        )
    else:
        note(
            f"{done:,} sealed with key {newest}, {left:,} left ({unreadable:,} cannot be opened), {history:,} in the history"
        )
    return 1 if left else 0


def _rotate(connection: psycopg.Connection[Any], keyring: Keyring, place: calls.Place) -> tuple[int, int]:
    """Goes through one place, in steps; returns how many were sealed, and how many could not be opened."""
    kind: Kind = "step" if place == "steps" else "args"
    done = unreadable = 0
    last: Sealed | None = None
    while found := run(connection, calls.find_sealed(place, keyring.ids[0], last)):
        items = []
        for one in found:
            try:
                text = keyring.open(one.value, kind, one.task, one.queue)
            except CannotDecrypt as error:
                unreadable += 1
                note(f"{place} {one.name or one.id}: {error}")
                continue
            # As a worker's start seals the args of a schedule: always the same.
            repeatable = place == "schedules"
            items.append((one, keyring.seal(text, kind, one.task, one.queue, repeatable=repeatable)))
        done += run(connection, calls.reseal(place, items)) if items else 0
        last = found[-1]
    return done, unreadable
