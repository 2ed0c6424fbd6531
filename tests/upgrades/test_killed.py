"""An upgrade that ends in the middle, wherever that is, has done nothing; the next one does all of it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pgqueue import migrate
from pgqueue.errors import DatabaseUnavailable
from tests.support import Databases, wait_until
from tests.upgrades.release import LaterRelease

GATE = 4711
TERMINATE = "select pg_terminate_backend(pg_backend_pid());"
EVERYTHING = """
    select md5(string_agg(t.line, E'\\n' order by t.line)) from (
        select format('%s.%s %s', a.attrelid::regclass, a.attname, a.atttypid) from pg_attribute as a
          join pg_class as c on c.oid = a.attrelid where c.relnamespace = 'pgqueue'::regnamespace and a.attnum > 0
        union all
        select format('%s %s %s', p.oid::regprocedure, p.prosrc, p.proacl) from pg_proc as p
         where p.pronamespace = 'pgqueue'::regnamespace
        union all
        select version_num from pgqueue.alembic_version) as t (line)"""
"""A digest of what 0002 changes: columns, functions with their bodies and rights, the revision."""


@pytest.fixture(scope="module")
def waiting_room(databases: Databases, later: LaterRelease) -> Iterator[str]:
    """A database at 0001 that all of these share: an upgrade that failed has to leave it as it was."""
    dsn = databases.create_empty()
    later.install_before(dsn)
    yield dsn
    databases.drop(dsn)


@pytest.fixture
def changed(later: LaterRelease) -> Iterator[LaterRelease]:
    """The release to come, whose 0002 a test may change."""
    yield later
    later.write(later.statements)


def digest(dsn: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(EVERYTHING.encode()).fetchone()
        assert row is not None
        return row[0]


def test_an_upgrade_whose_session_is_terminated_in_any_statement_has_done_nothing(
    changed: LaterRelease, waiting_room: str
) -> None:
    before = digest(waiting_room)
    count = len(changed.statements)
    for place in range(count + 1):
        changed.write([*changed.statements[:place], TERMINATE, *changed.statements[place:]])
        with changed.known(), pytest.raises(DatabaseUnavailable, match="terminating connection"):
            migrate.upgrade(waiting_room)
        assert digest(waiting_room) == before, f"after {place} of {count} statements"


@pytest.mark.parametrize("place", [5, -1])
def test_an_upgrade_whose_process_is_killed_has_done_nothing(
    changed: LaterRelease, waiting_room: str, place: int
) -> None:
    before = digest(waiting_room)
    gate = f"select pg_advisory_xact_lock({GATE});"
    place = place % (len(changed.statements) + 1)
    changed.write([*changed.statements[:place], gate, *changed.statements[place:]])
    with (
        psycopg.connect(waiting_room, autocommit=True) as observer,
        psycopg.connect(waiting_room, autocommit=True) as holder,
    ):
        holder.execute("select pg_advisory_lock(%s)", [GATE])
        process = changed.command("db", "upgrade", "--dsn", waiting_room)
        try:
            found = wait_until(lambda: at_the_gate(observer), 30, "the upgrade to come to the gate")
            process.kill()
            process.communicate()
        finally:
            process.kill()
        holder.execute("select pg_advisory_unlock(%s)", [GATE])
        gone = "select not exists (select from pg_stat_activity where pid = %s)"
        wait_until(lambda: observer.execute(gone, found).fetchone() == (True,), 30, "its session to end")
    assert digest(waiting_room) == before


def at_the_gate(observer: psycopg.Connection) -> tuple[int] | None:
    query = "select pid from pg_locks where locktype = 'advisory' and objid = %s and not granted"
    return observer.execute(query, [GATE]).fetchone()


def test_the_next_upgrade_does_all_of_it(later: LaterRelease, waiting_room: str) -> None:
    with later.known():
        assert migrate.upgrade(waiting_room) == ("0002",)
        assert migrate.check(waiting_room).state == "current"
