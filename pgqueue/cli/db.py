"""`pgqueue db`: the schema."""

from __future__ import annotations

from typing import Any

import click

from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.output import json_option, note, print_json, print_values
from pgqueue.errors import SchemaError


@click.group()
def db() -> None:
    """Install and upgrade the schema."""


@db.command()
@dsn_option
@click.option(
    "--lock-timeout",
    type=click.FloatRange(0.001, 60),
    default=1.0,
    show_default=True,
    help="Seconds to wait for a lock on a table; whoever comes after waits as well.",
)
@click.option("--tries", type=click.IntRange(1, 1000), default=10, show_default=True, help="How often.")
def upgrade(lock_timeout: float, tries: int) -> None:
    """Bring the database to this release's schema.

    It may run any number of times, and in many places at once: one does the work, the others wait for it.
    A database that is newer than this release is left alone.
    """
    dsn = required_dsn(load_settings())
    from pgqueue import migrate

    applied = migrate.upgrade(dsn, lock_timeout=lock_timeout, tries=tries, tell=note)
    if not applied:
        note("nothing to do: the schema is up to date")


@db.command()
@dsn_option
@json_option
def status(as_json: bool) -> None:
    """Show the database's revision and what is pending."""
    dsn = required_dsn(load_settings())
    from pgqueue import migrate

    found = _values(migrate.status(dsn))
    if as_json:
        print_json(found)
    else:
        print_values({name: _words(value) for name, value in found.items()})


@db.command()
@dsn_option
@json_option
def check(as_json: bool) -> None:
    """Exit 0 if the schema fits this release, else 1.

    The reason goes to stderr, or into the JSON. For the start of a deployment: it changes nothing.
    """
    dsn = required_dsn(load_settings())
    from pgqueue import migrate

    try:
        found = migrate.check(dsn)
    except SchemaError as error:
        if not as_json:
            raise
        print_json({"ok": False, "problem": str(error)})
        raise click.exceptions.Exit(1) from error
    if as_json:
        print_json({"ok": True, "problem": None} | _values(found))
    else:
        note(f"ok: revision {_words(found.revisions)}")


@db.command()
def sql() -> None:
    """Print the SQL that installs the schema.

    For those who run it themselves, in one transaction: pgqueue db sql | psql -d mydatabase. Later upgrades
    may be run by the command.
    """
    from pgqueue import migrate

    click.echo(migrate.sql(), nl=False)


def _values(found: Any) -> dict[str, Any]:
    return {
        "state": found.state,
        "revisions": found.revisions,
        "newest": found.newest,
        "pending": found.pending,
        "protocol_newest": found.protocol and found.protocol.newest,
        "protocol_oldest": found.protocol and found.protocol.oldest,
    }


def _words(value: Any) -> Any:
    return ", ".join(value) or None if isinstance(value, tuple) else value
