"""Writes the frozen SQL of the newest revision from the living `sql/`.

    python migrations/freeze.py             rewrites it (`make freeze`), unless it has been released
    python migrations/freeze.py --release   notes its checksums in released.txt: from now on it is history
    python migrations/freeze.py --new NAME  begins the next revision

A revision `NNNN_name` is three files of SQL beside its Python file:

    NNNN_name.sql         the change. Of the first revision, all of sql/ but the grants, in `ls` order, written
                          by this script. Of every later one a human writes it, and tests/test_migrations.py
                          demands that it leads to what sql/ says.
    NNNN_name.grants.sql  a copy of sql/4_grants.sql, applied after the change; written by this script.
    NNNN_name.down.sql    takes the change back; written by a human.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

HERE = Path(__file__).resolve().parent
SQL = HERE.parent / "sql"
GRANTS = SQL / "4_grants.sql"
RELEASED = HERE / "released.txt"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 when it refuses."""
    parser = argparse.ArgumentParser(description="Writes the frozen SQL of the newest revision from sql/.")
    parser.add_argument("--release", action="store_true", help="make the newest revision unchangeable")
    parser.add_argument("--new", metavar="NAME", help="begin the next revision")
    options = parser.parse_args(arguments)
    config = Config()
    config.set_main_option("script_location", str(HERE).replace("%", "%%"))
    newest = _newest(config)
    try:
        if options.new:
            print(_begin(config, newest, options.new))
        elif options.release:
            print(_release(newest))
        else:
            print(_freeze(newest))
    except _RefusedError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1
    return 0


class _RefusedError(Exception):
    """The message says why, and what to do instead."""


def _newest(config: Config) -> Script:
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_revision("head")
    assert newest is not None, "there are no revisions"
    return newest


def _freeze(newest: Script) -> str:
    if newest.revision in released():
        raise _RefusedError(
            f"revision {newest.revision} has been released and never changes: begin the next one with "
            "`python migrations/freeze.py --new NAME`"
        )
    written = [_write(newest, ".grants.sql", GRANTS.read_text())]
    if newest.down_revision is None:
        written.insert(0, _write(newest, ".sql", whole()))
    return f"revision {newest.revision}: wrote {' and '.join(written)}"


def whole() -> str:
    """The SQL of the first revision: the files of `sql/` in `ls` order, and the version table."""
    files = [path for path in sorted(SQL.rglob("*.sql")) if path != GRANTS]
    parts = [(path.relative_to(SQL.parent), path) for path in [*files, HERE / "version_table.sql"]]
    head = "-- Frozen: written by migrations/freeze.py from sql/ and never changed after its release.\n"
    return head + "".join(f"\n-- {name.as_posix()}\n{path.read_text()}" for name, path in parts)


def _write(revision: Script, suffix: str, text: str) -> str:
    path = Path(revision.path).with_suffix(suffix)
    path.write_text(text)
    return path.name


def _release(newest: Script) -> str:
    if newest.revision in released():
        raise _RefusedError(f"revision {newest.revision} has been released already")
    for name in _dropped(newest):
        raise _RefusedError(
            f"revision {newest.revision} drops pgqueue.{name}, and calls that are under way would fail: rename it to "
            f"{name}_until_{newest.revision}, and let the revision after this one drop it"
        )
    with RELEASED.open("a") as file:
        file.write(f"{newest.revision} {checksum(newest)}\n")
    return f"revision {newest.revision} is history now"


def _dropped(revision: Script) -> list[str]:
    """The functions that a revision drops without a revision's time in between."""
    change = Path(revision.path).with_suffix(".sql").read_text()
    names = re.findall(r"\bdrop\s+function\s+(?:if\s+exists\s+)?pgqueue\.(\w+)", change, re.IGNORECASE)
    return [name for name in names if not re.search(r"_until_\d{4}$", name)]


def released() -> dict[str, str]:
    """The checksum of each revision that has been released, by revision."""
    lines = RELEASED.read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return dict(rows)


def checksum(revision: Script) -> str:
    """SHA-256 of a revision's Python file and its SQL, in the order of their names."""
    path = Path(revision.path)
    total = hashlib.sha256()
    for file in sorted(path.parent.glob(f"{path.stem}.*")):
        total.update(file.read_bytes())
    return total.hexdigest()


def _begin(config: Config, newest: Script, name: str) -> str:
    if newest.revision not in released():
        raise _RefusedError(
            f"revision {newest.revision} has not been released: change it, with `make freeze`, instead"
        )
    made = command.revision(config, name, rev_id=f"{int(newest.revision) + 1:04}")
    assert isinstance(made, Script)
    for suffix in (".sql", ".down.sql"):
        _write(made, suffix, f"-- {name}\n")
    _write(made, ".grants.sql", GRANTS.read_text())
    return f"revision {made.revision}: write {made.path.removesuffix('.py')}.sql and .down.sql"


if __name__ == "__main__":
    sys.exit(main())
