"""One revision: it waits for its turn and for locks, and is applied in a transaction of its own."""

from __future__ import annotations

import contextlib
import random
import time

import psycopg
import sqlalchemy
from alembic import command
from alembic.script import ScriptDirectory

from pgqueue.errors import DatabaseUnavailable
from pgqueue.migrate import revisions
from pgqueue.migrate.connecting import LockedError, Tell, cause_of, explained, raw_of
from pgqueue.migrate.schema import read, unrecorded

TURN_SECONDS = 60.0
"""How long an upgrade waits for another one: ten processes in a row, each with a revision to apply."""

TURN = "hashtextextended('pgqueue.upgrade', 0)"
"""The key of the advisory lock that an upgrade holds."""


def apply_next_patiently(
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
            with explained("the upgrade"):
                return _apply_next(connection, history, lock_timeout)
        except LockedError as locked:
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
        take_turn(connection, lock_timeout)
        found = read(connection, history)  # only now: whoever had the lock may have done it all
        if found.state == "unrecorded":
            raise unrecorded()
        if found.state == "newer" and found.protocol is not None:
            found.protocol.check()
        if not found.pending:
            return None
        revision = found.pending[0]
        try:
            revisions.run(connection, command.upgrade, revision)
            raw_of(connection).execute("select pgqueue.retain()")
        except (psycopg.Error, sqlalchemy.exc.DBAPIError) as error:
            cause_of(error).add_note(f"revision {revision}")
            raise
        return revision


def take_turn(connection: sqlalchemy.Connection, lock_timeout: float) -> None:
    """Waits for other upgrades to end; from then on no lock is waited for longer than `lock_timeout`."""
    raw = raw_of(connection)
    # A role's own time-outs are meant for its queries, and its search_path may hold look-alikes.
    raw.execute(
        "select set_config('statement_timeout', '0', true),"
        " set_config('search_path', 'pg_catalog, pg_temp', true),"
        " set_config('lock_timeout', %s, true)",
        [f"{round(TURN_SECONDS * 1000)}ms"],
    )
    try:
        raw.execute(f"select pg_advisory_xact_lock({TURN})".encode())
    except psycopg.errors.LockNotAvailable as error:
        raise DatabaseUnavailable(
            f"another upgrade of this database has not ended for {TURN_SECONDS:g} s"
        ) from error
    raw.execute("select set_config('lock_timeout', %s, true)", [f"{round(lock_timeout * 1000)}ms"])


def _holders(connection: sqlalchemy.Connection) -> str:
    """Who has locks on pgqueue's tables, the oldest transaction first; empty when nobody has any more."""
    raw = raw_of(connection)
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
