"""The schema's migrations: alembic, run from the installed package or from the repository.

    applied = upgrade(dsn)          # to the newest revision; several processes may do it at once
    status(dsn).pending             # what is still to be applied
    check(dsn)                      # raises SchemaMissing, SchemaOutdated, SchemaTooNew …
    print(sql())                    # for those who run it themselves

One revision is one transaction. It holds an advisory lock (of the transaction, so that it works behind a
transaction pooler), waits at most a second for any lock on a table, and makes the day partitions before it
commits: a reader never finds a schema that cannot take jobs.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command

from pgqueue.dsn import redact_dsn
from pgqueue.errors import SchemaMissing, SchemaOutdated
from pgqueue.migrate import revisions
from pgqueue.migrate.connecting import Tell, connect, explained
from pgqueue.migrate.schema import SchemaStatus, read, unrecorded
from pgqueue.migrate.upgrading import TURN, apply_next_patiently, take_turn
from pgqueue.version import __version__

__all__ = ["SchemaStatus", "check", "downgrade", "sql", "status", "upgrade"]


def upgrade(
    dsn: str, *, lock_timeout: float = 1.0, tries: int = 10, pause: float = 1.0, tell: Tell = lambda _: None
) -> tuple[str, ...]:
    """Brings the database to the newest revision; returns the revisions that were applied, oldest first.

    Each revision commits by itself, or leaves nothing. It waits for a lock at most `lock_timeout` seconds,
    because whoever comes after it waits as well, then lets the traffic pass for about `pause` seconds and
    tries again, `tries` times in all. `tell` gets lines of progress and the server's notices.

    A database that is newer than the package is left alone, as long as it still serves this package.
    Raises `DatabaseUnavailable` (no server; a lock that was not to be had, naming who holds it),
    `NotPermitted`, `SchemaTooNew`, and `SchemaError` when a revision fails or the schema is a stranger's.
    """
    history = revisions.history()
    applied: list[str] = []
    with connect(dsn, tell) as connection:
        while (
            revision := apply_next_patiently(connection, history, lock_timeout, tries, pause, tell)
        ) is not None:
            applied.append(revision)
            tell(f"applied {revision}: {revisions.script_of(history, revision).doc}")
    return tuple(applied)


def downgrade(dsn: str, *, lock_timeout: float = 1.0) -> None:
    """Takes the whole schema away, *with every job in it*. For development; there is no command for it.

    Raises as `upgrade` does, but tries only once.
    """
    history = revisions.history()
    with connect(dsn) as connection, explained("the downgrade"), connection.begin():
        take_turn(connection, lock_timeout)
        if read(connection, history).revisions:
            revisions.run(connection, command.downgrade, "base")


def status(dsn: str) -> SchemaStatus:
    """Where the database stands. Reads only; raises `DatabaseUnavailable` and `NotPermitted`."""
    with connect(dsn) as connection, explained("the check"):
        return read(connection, revisions.history())


def check(dsn: str) -> SchemaStatus:
    """Raises unless the schema fits this package; returns its status.

    Raises `SchemaMissing`, `SchemaOutdated` (something is pending, or the protocol is too old),
    `SchemaTooNew`, `SchemaError` for a schema without history, and as `status` does. A schema that is newer
    and still serves this package is fine.
    """
    found = status(dsn)
    place = redact_dsn(dsn)
    match found.state:
        case "missing":
            raise SchemaMissing(f"{place} has no schema pgqueue: run `pgqueue db upgrade`")
        case "unrecorded":
            raise unrecorded()
        case "outdated":
            raise SchemaOutdated(
                f"{place} is at revision {', '.join(found.revisions)}, pgqueue-jobs {__version__} "
                f"needs {found.newest}: run `pgqueue db upgrade`"
            )
    if found.protocol is not None:
        found.protocol.check()
    return found


def sql() -> str:
    """The whole upgrade of an empty database as one script for psql, in one transaction.

    It keeps the version table as `upgrade` does, so that later upgrades may be run by either.
    """
    history = revisions.history()
    parts = [
        f"-- pgqueue-jobs {__version__}: the schemas pgqueue and pgqueue_bi at revision "
        f"{history.get_current_head()}, for a database that has neither.",
        "\\set ON_ERROR_STOP on",
        "begin;",
        "set local lock_timeout = '1s';",
        "set local search_path = pg_catalog, pg_temp;",
        f"select pg_advisory_xact_lock({TURN});",
    ]
    for script in revisions.oldest_first(history):
        parts += [f"-- Revision {script.revision}: {script.doc}"]
        parts += [Path(script.path).with_suffix(suffix).read_text() for suffix in (".sql", ".grants.sql")]
        parts.append(
            f"update pgqueue.alembic_version set version_num = '{script.revision}';"
            if script.down_revision
            else f"insert into pgqueue.alembic_version (version_num) values ('{script.revision}');"
        )
    return "\n\n".join([*parts, "select pgqueue.retain();", "commit;"]) + "\n"
