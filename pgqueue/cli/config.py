"""`pgqueue config`: what is configured, and where."""

from __future__ import annotations

import click

from pgqueue.cli import dsn_option, load_settings
from pgqueue.cli.output import json_option, print_json, print_table


@click.group()
def config() -> None:
    """Show the settings and where each comes from."""


@config.command()
@dsn_option
@json_option
def show(as_json: bool) -> None:
    """Show every setting, its value and its source; never a password or a key."""
    settings = load_settings()
    values = settings.shown
    if as_json:
        print_json(
            {name: {"value": value, "source": settings.sources[name]} for name, value in values.items()}
        )
        return
    rows = [
        (name, ", ".join(value) if isinstance(value, tuple) else value, settings.sources[name])
        for name, value in values.items()
    ]
    print_table(("setting", "value", "source"), rows)
