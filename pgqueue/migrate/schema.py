"""What a database says of its schema, beside what this package has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sqlalchemy
from alembic.script import ScriptDirectory

from pgqueue import drivers
from pgqueue.calls import Served, protocol
from pgqueue.errors import SchemaError
from pgqueue.migrate.connecting import raw_of
from pgqueue.migrate.revisions import oldest_first

State = Literal["missing", "unrecorded", "outdated", "current", "newer"]


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """Where a database stands, seen from this package.

    `revisions` are those that the database records (none: not installed, or installed by hand), `newest` is
    the package's, `pending` what an upgrade would apply, oldest first. `protocol` is the range that the
    schema serves, None where there is no schema.
    """

    revisions: tuple[str, ...]
    newest: str
    pending: tuple[str, ...]
    protocol: Served | None
    is_installed: bool

    @property
    def state(self) -> State:
        """One word.

        missing: no schema `pgqueue`; unrecorded: one that was not made by these migrations; outdated: an
        upgrade has something to apply; current; newer: made by a later release of pgqueue.
        """
        if not self.is_installed:
            return "missing"
        if not self.revisions:
            return "unrecorded"
        if self.pending:
            return "outdated"
        return "current" if self.revisions == (self.newest,) else "newer"


def read(connection: sqlalchemy.Connection, history: ScriptDirectory) -> SchemaStatus:
    """Where the database stands, in the transaction of `connection`."""
    raw = raw_of(connection)
    row = raw.execute(
        "select exists (select from pg_catalog.pg_namespace as n where n.nspname = 'pgqueue'),"
        " exists (select from pg_catalog.pg_class as c where c.relnamespace = n.oid"
        "          and c.relname = 'alembic_version'),"
        " exists (select from pg_catalog.pg_proc as p where p.pronamespace = n.oid"
        "          and p.proname = 'protocol' and p.pronargs = 0)"
        " from (select (select n.oid from pg_catalog.pg_namespace as n where n.nspname = 'pgqueue') as oid) as n"
    ).fetchone()
    assert row is not None
    is_installed, has_versions, has_protocol = row
    revisions: tuple[str, ...] = ()
    if has_versions:
        rows = raw.execute("select v.version_num from pgqueue.alembic_version as v order by 1").fetchall()
        revisions = tuple(revision for (revision,) in rows)
    known = [script.revision for script in oldest_first(history)]
    at = max((known.index(revision) for revision in revisions if revision in known), default=None)
    is_ahead = bool(revisions) and at is None
    return SchemaStatus(
        revisions=revisions,
        newest=known[-1],
        pending=() if is_ahead else tuple(known[0 if at is None else at + 1 :]),
        protocol=drivers.run(raw, protocol()) if has_protocol else None,
        is_installed=is_installed,
    )


def unrecorded() -> SchemaError:
    """What is raised for a schema without a history."""
    return SchemaError(
        "this database has a schema pgqueue that these migrations did not make (it has no table "
        "pgqueue.alembic_version): use another database, or drop that schema if nobody needs it"
    )
