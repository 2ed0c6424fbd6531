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

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.pool import NullPool

from pgqueue import drivers
from pgqueue.calls import Served, protocol
from pgqueue.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    NotPermitted,
    SchemaError,
    SchemaMissing,
    SchemaOutdated,
)
from pgqueue.settings import normalize_dsn, redact_dsn
from pgqueue.version import __version__

__all__ = ["SchemaStatus", "check", "downgrade", "sql", "status", "upgrade"]

_OLDEST_SERVER = 150_000
_CONNECT_SECONDS = 10
_TURN_SECONDS = 60.0
"""How long an upgrade waits for another one: ten processes in a row, each with a revision to apply."""

_HISTORY = "hashtextextended('pgqueue.upgrade', 0)"
"""The key of the advisory lock that an upgrade holds."""

State = Literal["missing", "unrecorded", "outdated", "current", "newer"]
Tell = Callable[[str], object]

_one_at_a_time = threading.Lock()  # alembic keeps the migration that runs in module globals


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
    history = _history()
    applied: list[str] = []
    with _connect(dsn, tell) as connection:
        while (revision := _patiently(connection, history, lock_timeout, tries, pause, tell)) is not None:
            applied.append(revision)
            tell(f"applied {revision}: {_script(history, revision).doc}")
    return tuple(applied)


def downgrade(dsn: str, *, lock_timeout: float = 1.0) -> None:
    """Takes the whole schema away, *with every job in it*. For development; there is no command for it.

    Raises as `upgrade` does, but tries only once.
    """
    history = _history()
    with _connect(dsn) as connection, _explained("the downgrade"), connection.begin():
        _take_turn(connection, lock_timeout)
        if _read(connection, history).revisions:
            _alembic(connection, command.downgrade, "base")


def status(dsn: str) -> SchemaStatus:
    """Where the database stands. Reads only; raises `DatabaseUnavailable` and `NotPermitted`."""
    with _connect(dsn) as connection, _explained("the check"):
        return _read(connection, _history())


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
            raise _unrecorded()
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
    history = _history()
    parts = [
        f"-- pgqueue-jobs {__version__}: the schemas pgqueue and pgqueue_bi at revision "
        f"{history.get_current_head()}, for a database that has neither.",
        "\\set ON_ERROR_STOP on",
        "begin;",
        "set local lock_timeout = '1s';",
        "set local search_path = pg_catalog, pg_temp;",
        f"select pg_advisory_xact_lock({_HISTORY});",
    ]
    for script in _oldest_first(history):
        parts += [f"-- Revision {script.revision}: {script.doc}"]
        parts += [Path(script.path).with_suffix(suffix).read_text() for suffix in (".sql", ".grants.sql")]
        parts.append(
            f"update pgqueue.alembic_version set version_num = '{script.revision}';"
            if script.down_revision
            else f"insert into pgqueue.alembic_version (version_num) values ('{script.revision}');"
        )
    return "\n\n".join([*parts, "select pgqueue.retain();", "commit;"]) + "\n"


# One revision ---------------------------------------------------------------------------------------


def _patiently(
    connection: sqlalchemy.Connection,
    history: ScriptDirectory,
    lock_timeout: float,
    tries: int,
    pause: float,
    tell: Tell,
) -> str | None:
    """Applies the next revision, None when there is none left. A lock that is not free is tried again."""
    for left in reversed(range(tries)):
        try:
            with _explained("the upgrade"):
                return _apply_next(connection, history, lock_timeout)
        except _LockedError as locked:
            if not left:
                raise DatabaseUnavailable(
                    f"the upgrade gave up: {locked} within {lock_timeout:g} s, {tries} times; nothing was "
                    f"changed, run it again{_holders(connection)}"
                ) from locked
            tell(f"{locked} within {lock_timeout:g} s, trying again")
            time.sleep(pause * random.uniform(0.75, 1.25))
    raise ValueError("tries: at least 1")


def _apply_next(
    connection: sqlalchemy.Connection, history: ScriptDirectory, lock_timeout: float
) -> str | None:
    """Applies the oldest pending revision in a transaction of its own, None when there is none."""
    with connection.begin():
        _take_turn(connection, lock_timeout)
        found = _read(connection, history)  # only now: whoever had the lock may have done it all
        if found.state == "unrecorded":
            raise _unrecorded()
        if found.state == "newer" and found.protocol is not None:
            found.protocol.check()
        if not found.pending:
            return None
        revision = found.pending[0]
        try:
            _alembic(connection, command.upgrade, revision)
            _raw(connection).execute("select pgqueue.retain()")
        except (psycopg.Error, sqlalchemy.exc.DBAPIError) as error:
            _cause(error).add_note(f"revision {revision}")
            raise
        return revision


def _take_turn(connection: sqlalchemy.Connection, lock_timeout: float) -> None:
    """Waits for other upgrades to end; from then on no lock is waited for longer than `lock_timeout`."""
    raw = _raw(connection)
    # A role's own time-outs are meant for its queries, and its search_path may hold look-alikes.
    raw.execute(
        "select set_config('statement_timeout', '0', true),"
        " set_config('search_path', 'pg_catalog, pg_temp', true),"
        " set_config('lock_timeout', %s, true)",
        [f"{round(_TURN_SECONDS * 1000)}ms"],
    )
    try:
        raw.execute(f"select pg_advisory_xact_lock({_HISTORY})".encode())
    except psycopg.errors.LockNotAvailable as error:
        raise DatabaseUnavailable(
            f"another upgrade of this database has not ended for {_TURN_SECONDS:g} s"
        ) from error
    raw.execute("select set_config('lock_timeout', %s, true)", [f"{round(lock_timeout * 1000)}ms"])


def _read(connection: sqlalchemy.Connection, history: ScriptDirectory) -> SchemaStatus:
    raw = _raw(connection)
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
    known = [script.revision for script in _oldest_first(history)]
    at = max((known.index(revision) for revision in revisions if revision in known), default=None)
    is_ahead = bool(revisions) and at is None
    return SchemaStatus(
        revisions=revisions,
        newest=known[-1],
        pending=() if is_ahead else tuple(known[0 if at is None else at + 1 :]),
        protocol=drivers.run(raw, protocol()) if has_protocol else None,
        is_installed=is_installed,
    )


def _unrecorded() -> SchemaError:
    return SchemaError(
        "this database has a schema pgqueue that these migrations did not make (it has no table "
        "pgqueue.alembic_version): use another database, or drop that schema if nobody needs it"
    )


def _holders(connection: sqlalchemy.Connection) -> str:
    """Who has locks on pgqueue's tables, the oldest transaction first; empty when nobody has any more."""
    raw = _raw(connection)
    try:
        rows = raw.execute(
            "select distinct a.pid, a.application_name, a.state, extract(epoch from now() - a.xact_start)::int"
            " from pg_catalog.pg_locks as l"
            " join pg_catalog.pg_class as c on c.oid = l.relation"
            " join pg_catalog.pg_namespace as n on n.oid = c.relnamespace and n.nspname = 'pgqueue'"
            " join pg_catalog.pg_stat_activity as a on a.pid = l.pid"
            " where l.granted and l.pid <> pg_backend_pid()"
            "   and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())"
            " order by 4 desc nulls last limit 3"
        ).fetchall()
    except psycopg.Error:
        return ""  # it only explains; the error that it belongs to is the one to report
    finally:
        with contextlib.suppress(psycopg.Error):
            raw.rollback()
    found = [f"process {pid} ({name or 'unnamed'}, {state}, {age or 0} s)" for pid, name, state, age in rows]
    return f". Transactions on its tables: {', '.join(found)}" if found else ""


# Connecting, and what goes wrong --------------------------------------------------------------------


class _LockedError(DatabaseUnavailable):
    """A lock was not free in time, or a deadlock was broken at our cost: the same may work later."""


@contextlib.contextmanager
def _connect(dsn: str, tell: Tell = lambda _: None) -> Iterator[sqlalchemy.Connection]:
    """A connection whose transactions are READ COMMITTED whatever the role's default.

    Above that level the snapshot is older than the wait for our turn, and shows what was pending then.
    """
    place = redact_dsn(dsn)
    try:
        options: dict[str, Any] = conninfo_to_dict(normalize_dsn(dsn))
    except (psycopg.Error, ValueError) as error:
        # libpq's message quotes the text, and the password may be in it
        reason = str(error) if isinstance(error, ValueError) else "libpq cannot read it"
        raise ConfigurationError(f"the DSN {place} is not usable: {reason}") from None
    if "PGCONNECT_TIMEOUT" not in os.environ:
        options.setdefault("connect_timeout", _CONNECT_SECONDS)
    options.setdefault("fallback_application_name", "pgqueue db")
    try:
        raw = psycopg.connect(**options, prepare_threshold=None)
    except psycopg.Error as error:
        reason = "; ".join(line.strip() for line in str(error).strip().splitlines())
        raise DatabaseUnavailable(f"cannot connect to {place}: {reason}") from error
    with contextlib.closing(raw):
        if raw.info.server_version < _OLDEST_SERVER:
            found = raw.info.server_version // 10_000
            raise ConfigurationError(f"{place} is PostgreSQL {found}: pgqueue needs 15 or newer")
        raw.isolation_level = psycopg.IsolationLevel.READ_COMMITTED

        def hear(notice: psycopg.errors.Diagnostic) -> None:
            tell(str(notice.message_primary))

        raw.add_notice_handler(hear)
        engine = sqlalchemy.create_engine("postgresql+psycopg://", poolclass=NullPool, creator=lambda: raw)
        with _explained("the connection"), engine.connect() as connection:
            connection.rollback()
            yield connection


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raises what the server and alembic say as errors of pgqueue."""
    try:
        yield
    except (psycopg.Error, sqlalchemy.exc.SQLAlchemyError, CommandError) as error:
        cause = _cause(error)
        what = " ".join([what, *getattr(cause, "__notes__", [])])
        message = getattr(getattr(cause, "diag", None), "message_primary", None) or str(cause).strip()
        match getattr(cause, "sqlstate", None):
            case "55P03" | "40P01":
                raise _LockedError("a lock was not free") from error
            case "42501":
                raise NotPermitted(
                    f"{what}: {message}; it takes a role that owns the schemas, or may create them "
                    "(grant create on database … to …)"
                ) from error
        if translated := drivers.translate(cause):
            raise translated from error
        raise SchemaError(f"{what} failed, nothing was changed: {message}") from error


def _cause(error: BaseException) -> BaseException:
    """The error that came first: SQLAlchemy wraps it, and a rollback on a lost connection hides it."""
    inner = getattr(error, "orig", None) or error.__context__
    return _cause(inner) if isinstance(inner, psycopg.Error | sqlalchemy.exc.SQLAlchemyError) else error


def _raw(connection: sqlalchemy.Connection) -> psycopg.Connection[tuple[Any, ...]]:
    return cast("psycopg.Connection[tuple[Any, ...]]", connection.connection.driver_connection)


# Alembic --------------------------------------------------------------------------------------------


def _root() -> Path:
    """The folder `migrations`: in the installed package, else in the repository (an editable install)."""
    package = Path(__file__).resolve().parent
    for root in (package / "_data" / "migrations", package.parent / "migrations"):
        if (root / "versions" / "0001_engine.sql").is_file():
            return root
    raise ConfigurationError(
        f"pgqueue-jobs is not installed completely: there are no migrations in {package}"
    )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_root()).replace("%", "%%"))
    return config


def _history() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _oldest_first(history: ScriptDirectory) -> list[Script]:
    return list(history.walk_revisions())[::-1]


def _script(history: ScriptDirectory, revision: str) -> Script:
    script = history.get_revision(revision)
    assert script is not None
    return script


def _alembic(connection: sqlalchemy.Connection, run: Callable[[Config, str], object], revision: str) -> None:
    """Runs a command of alembic in the transaction of `connection`."""
    config = _config()
    config.attributes["connection"] = connection
    with _one_at_a_time:
        run(config, revision)
