"""What commands show of args and results: sealed and redacted, unless they are asked to reveal it."""

from __future__ import annotations

import json
from typing import Any

import click

from pgqueue.encryption import Kind, is_sealed, key_id_of
from pgqueue.errors import ConfigurationError
from pgqueue.redaction import Redaction
from pgqueue.settings import Settings

reveal_option = click.option(
    "--reveal",
    is_flag=True,
    help="Show what is redacted or encrypted as well; the keys have to be in the settings.",
)
"""Adds `--reveal` to a command."""


def shown(settings: Settings, text: str, kind: Kind, task: str, queue: str, *, reveal: bool) -> Any:
    """Stored JSON text as a value to show. Raises `ConfigurationError` and `CannotDecrypt` for what cannot be revealed."""
    if not is_sealed(text):
        value = json.loads(text)
        return value if reveal else Redaction(settings.redact).args(value)
    if not reveal:
        return f"encrypted with key {key_id_of(text)}; --reveal shows it"
    keyring = settings.keyring()
    if keyring is None:
        raise ConfigurationError("encryption_keys: no key is set here, so nothing encrypted can be revealed")
    return json.loads(keyring.open(text, kind, task, queue))
