"""The history of revisions, and alembic, which runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import sqlalchemy
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

from pgqueue.errors import ConfigurationError

_one_at_a_time = threading.Lock()  # alembic keeps the migration that runs in module globals


def root() -> Path:
    """The folder `migrations`: in the installed package, else in the repository (an editable install)."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_data" / "migrations", package.parent / "migrations"):
        if (folder / "versions" / "0001_engine.sql").is_file():
            return folder
    raise ConfigurationError(
        f"pgqueue-jobs is not installed completely: there are no migrations in {package}"
    )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(root()).replace("%", "%%"))
    return config


def history() -> ScriptDirectory:
    """The revisions that this package has."""
    return ScriptDirectory.from_config(_config())


def oldest_first(history: ScriptDirectory) -> list[Script]:
    """All of them, in the order in which they are applied."""
    return list(history.walk_revisions())[::-1]


def script_of(history: ScriptDirectory, revision: str) -> Script:
    """One that is known to be there."""
    script = history.get_revision(revision)
    assert script is not None
    return script


def run(connection: sqlalchemy.Connection, command: Callable[[Config, str], object], revision: str) -> None:
    """Runs a command of alembic in the transaction of `connection`."""
    config = _config()
    config.attributes["connection"] = connection
    with _one_at_a_time:
        command(config, revision)
