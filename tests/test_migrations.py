"""The migrations: they build what `sql/` says, once, from any number of processes, or nothing at all."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue import calls, drivers, migrate
from pgqueue.embedded import find_binaries
from pgqueue.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    NotPermitted,
    SchemaError,
    SchemaMissing,
    SchemaOutdated,
    SchemaTooNew,
)
from pgqueue.migrate import revisions, upgrading
from tests.support import Databases, wait_until
from tests.upgrades.release import freeze

REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-W", "error", "-c", "from pgqueue.cli import main; main()"]
TURN = "select pg_advisory_lock(hashtextextended('pgqueue.upgrade', 0))"
WAITING = (
    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
)


@pytest.fixture
def empty(databases: Databases) -> Iterator[str]:
    """The DSN of a fresh database without the schema."""
    dsn = databases.create_empty()
    yield dsn
    databases.drop(dsn)


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A history with a second revision, of a release to come; returns its file of SQL.

    The second revision changes ready_jobs, as most of them will, and makes a function.
    """
    for folder in ("sql", "migrations"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert freeze(tmp_path) == 0
    assert freeze(tmp_path, "--release") == 0
    shutil.copytree(tmp_path / "migrations", tmp_path / "before")
    assert freeze(tmp_path, "--new", "later") == 0
    change = tmp_path / "migrations" / "versions" / "0002_later.sql"
    change.write_text(
        "alter table pgqueue.ready_jobs add column later integer;\n"
        "create function pgqueue.later() returns integer language sql return 2;\n"
    )
    monkeypatch.setattr(revisions, "root", lambda: tmp_path / "migrations")
    return change


@pytest.fixture
def outdated(later: Path, empty: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The DSN of a database at revision 0001, where 0002 is pending."""
    with monkeypatch.context() as earlier:
        earlier.setattr(revisions, "root", lambda: later.parents[2] / "before")
        migrate.upgrade(empty)
    return empty


def dump(dsn: str) -> str:
    """What pg_dump says of a database: schema, grants, rows; not the dated partitions and the history's table."""
    run = subprocess.run(
        [
            find_binaries() / "pg_dump",
            "--exclude-table=pgqueue.*_2???????",
            "--exclude-table=pgqueue.alembic_version",
            dsn,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    return "\n".join(
        line for line in lines if line and not line.startswith(("--", "\\restrict", "\\unrestrict"))
    )


def run_sql(dsn: str, text: str, *, code: int) -> str:
    """Has psql run a script, expects its exit code, and returns what it says on stderr."""
    psql = [find_binaries() / "psql", "--no-psqlrc", "--quiet", "--output=/dev/null", dsn]
    run = subprocess.run(psql, input=text, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stderr
    return run.stderr


def assert_same(one: str, other: str) -> None:
    difference = list(
        difflib.unified_diff(dump(one).splitlines(), dump(other).splitlines(), "sql/", "migrations")
    )
    assert not difference, "\n".join(difference) + "\n(has `make freeze` been run?)"


@contextlib.contextmanager
def ended_on_failure(processes: list[subprocess.Popen[str]]) -> Iterator[None]:
    """Kills the processes when the block fails, and says what they said."""
    try:
        yield
    except AssertionError as failure:
        for process in processes:
            process.kill()
            failure.add_note(str(process.communicate()))
        raise


def query(dsn: str, text: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(text.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def partitions(dsn: str) -> object:
    return query(
        dsn,
        "select count(*) from pg_class where relkind = 'r' and relname ~ '^(finished_jobs|job_failures)_2'",
    )


# Equality -------------------------------------------------------------------------------------------


def test_the_migrations_build_what_the_files_of_sql_build(database: str, empty: str) -> None:
    assert migrate.upgrade(empty) == ("0001",)
    found = dump(empty)
    assert "GRANT ALL ON FUNCTION pgqueue.enqueue(" in found, "the dump shows grants"
    assert "COPY pgqueue.leadership" in found, "the dump shows rows"
    assert_same(database, empty)


def test_the_printed_sql_builds_the_same_and_can_be_upgraded_later(database: str, empty: str) -> None:
    assert run_sql(empty, migrate.sql(), code=0) == ""
    assert_same(database, empty)
    assert migrate.check(empty).state == "current"
    assert migrate.upgrade(empty) == ()
    assert partitions(empty) == 16


def test_the_printed_sql_leaves_nothing_behind_when_it_fails(empty: str) -> None:
    query(empty, "create schema pgqueue_bi")
    assert "pgqueue_bi" in run_sql(empty, migrate.sql(), code=3)
    assert migrate.status(empty).state == "missing"


def test_the_first_revision_is_what_freeze_writes_until_it_is_released(tmp_path: Path) -> None:
    for folder in ("sql", "migrations"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    ours, written = (root / "migrations" / "versions" for root in (REPOSITORY, tmp_path))
    if "\n0001 " in (REPOSITORY / "migrations" / "released.txt").read_text():
        pytest.skip("0001 has been released; the checksums hold it")
    assert freeze(tmp_path) == 0
    for path in sorted(ours.glob("*.sql")):
        assert path.read_text() == (written / path.name).read_text(), f"{path.name}: run `make freeze`"


def test_released_revisions_never_change() -> None:
    versions = REPOSITORY / "migrations" / "versions"
    lines = (REPOSITORY / "migrations" / "released.txt").read_text().splitlines()
    for revision, total in (line.split() for line in lines if line and not line.startswith("#")):
        files = sorted(versions.glob(f"{revision}_*.*"))
        assert hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest() == total, revision


def test_freeze_refuses_what_has_been_released(later: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = later.parents[2]
    assert freeze(root, "--release") == 0
    before = later.read_text()
    assert freeze(root) == 1
    assert re.search(r"^error: revision 0002 has been released .* --new NAME", capsys.readouterr().err)
    assert later.read_text() == before


def test_freeze_writes_the_grants_of_a_later_revision_and_leaves_its_change(later: Path) -> None:
    root = later.parents[2]
    before = later.read_text()
    with (root / "sql" / "4_grants.sql").open("a") as grants:
        grants.write("-- more\n")
    assert freeze(root) == 0
    assert later.read_text() == before
    assert later.with_suffix(".grants.sql").read_text().endswith("-- more\n")


def test_freeze_begins_no_second_revision_beside_an_unreleased_one(
    later: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert freeze(later.parents[2], "--new", "third") == 1
    assert "revision 0002 has not been released" in capsys.readouterr().err


# Upgrading ------------------------------------------------------------------------------------------


def test_a_second_upgrade_changes_nothing(empty: str) -> None:
    migrate.upgrade(empty)
    before = dump(empty)
    told: list[str] = []
    assert migrate.upgrade(empty, tell=told.append) == ()
    assert told == []
    assert dump(empty) == before


def test_partitions_exist_from_the_first_moment(empty: str) -> None:
    migrate.upgrade(empty)
    assert partitions(empty) == 16
    assert query(empty, "select pgqueue.history_day('finished_jobs') = (now() at time zone 'UTC')::date")


def test_ten_processes_at_once_apply_it_once(empty: str) -> None:
    # above READ COMMITTED those that waited would not see that the work is done
    query(
        empty,
        f"alter database {conninfo_to_dict(empty)['dbname']} set default_transaction_isolation = serializable",
    )
    with psycopg.connect(empty, autocommit=True) as observer:
        with psycopg.connect(empty, autocommit=True) as holder:
            holder.execute(TURN)
            processes = [
                subprocess.Popen(
                    [*COMMAND, "db", "upgrade", "--dsn", empty],
                    cwd=REPOSITORY,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for _ in range(10)
            ]
            with ended_on_failure(processes):
                wait_until(lambda: observer.execute(WAITING).fetchone() == (10,), 60, "ten that wait")
        ends = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    assert [code for _, _, code in ends] == [0] * 10, ends
    said = sorted(stderr.splitlines()[-1].split(":")[0] for _, stderr, _ in ends)
    assert said == ["applied 0001"] + ["nothing to do"] * 9, ends
    assert migrate.check(empty).revisions == ("0001",)


def test_a_revision_is_applied_to_a_database_in_use(outdated: str) -> None:
    with psycopg.connect(outdated, autocommit=True) as producer:
        call = calls.enqueue(task="t")
        first = drivers.run(producer, call)
        assert migrate.upgrade(outdated) == ("0002",)
        second = drivers.run(producer, call)
    assert second.id > first.id
    assert migrate.check(outdated).state == "current"


def test_the_grants_are_applied_again_after_every_revision(outdated: str) -> None:
    migrate.upgrade(outdated)
    is_open = "select has_function_privilege('public', 'pgqueue.later()', 'execute')"
    assert query(outdated, is_open) is False, "a new function is nobody's until it is granted"


def test_the_printed_sql_has_all_revisions(outdated: str, databases: Databases) -> None:
    migrate.upgrade(outdated)
    printed = databases.create_empty()
    run_sql(printed, migrate.sql(), code=0)
    assert_same(outdated, printed)
    assert migrate.check(printed).revisions == ("0002",)
    databases.drop(printed)


def test_an_empty_database_takes_all_revisions_each_in_its_own_transaction(later: Path, empty: str) -> None:
    later.write_text("alter table pgqueue.ready_jobs add column later integer; select 1/0;")
    with pytest.raises(
        SchemaError, match="the upgrade revision 0002 failed, nothing was changed: division by zero"
    ):
        migrate.upgrade(empty)
    assert migrate.status(empty).revisions == ("0001",)
    assert query(empty, "select count(*) from pg_attribute where attname = 'later'") == 0


def test_an_upgrade_gives_up_on_a_table_that_is_held_and_says_who_holds_it(outdated: str) -> None:
    reader = make_conninfo(outdated, application_name="a report")
    told: list[str] = []
    with psycopg.connect(reader) as holder:
        holder.execute("select count(*) from pgqueue.ready_jobs")
        with pytest.raises(DatabaseUnavailable) as caught:
            migrate.upgrade(outdated, lock_timeout=0.05, tries=2, pause=0.001, tell=told.append)
        pid = holder.info.backend_pid
    assert told == ["a lock was not free within 0.05 s, trying again"]
    assert re.fullmatch(
        r"the upgrade gave up: a lock was not free within 0\.05 s, 2 times; nothing was changed, run it again\. "
        rf"Transactions on its tables: process {pid} \(a report, idle in transaction, \d+ s\)",
        str(caught.value),
    )
    assert migrate.status(outdated).revisions == ("0001",)
    assert migrate.upgrade(outdated) == ("0002",)


def test_an_upgrade_tries_again_and_gets_through_once_the_table_is_free(outdated: str) -> None:
    with psycopg.connect(outdated) as holder:
        holder.execute("select count(*) from pgqueue.ready_jobs")

        def let_go(line: str) -> None:
            if "trying again" in line:
                holder.rollback()

        applied = migrate.upgrade(outdated, lock_timeout=0.05, tries=3, pause=0.001, tell=let_go)
    assert applied == ("0002",)


def test_an_upgrade_waits_for_its_turn_no_longer_than_it_says(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrading, "TURN_SECONDS", 0.05)
    with psycopg.connect(empty, autocommit=True) as holder:
        holder.execute(TURN)
        with pytest.raises(
            DatabaseUnavailable, match=r"another upgrade of this database has not ended for 0\.05 s"
        ):
            migrate.upgrade(empty)
    assert migrate.upgrade(empty) == ("0001",)


def test_an_upgrade_whose_connection_is_terminated_leaves_nothing(empty: str) -> None:
    with (
        psycopg.connect(empty, autocommit=True) as observer,
        psycopg.connect(empty, autocommit=True) as holder,
        ThreadPoolExecutor() as threads,
    ):
        holder.execute(TURN)
        upgrade = threads.submit(migrate.upgrade, empty)
        wait_until(lambda: observer.execute(WAITING).fetchone() == (1,), message="the upgrade to wait")
        observer.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        )
        with pytest.raises(DatabaseUnavailable, match="terminating connection due to administrator command"):
            upgrade.result(timeout=20)
    assert migrate.status(empty).state == "missing"


def test_an_upgrade_minds_neither_a_hostile_search_path_nor_the_roles_time_outs(
    database: str, empty: str
) -> None:
    name = conninfo_to_dict(empty)["dbname"]
    with psycopg.connect(empty, autocommit=True) as admin:
        admin.execute(
            "create schema evil;"
            "create function evil.array_to_string(text[], text) returns text language sql return 'evil';"
        )
        admin.execute(f"alter database {name} set search_path = evil, pg_catalog".encode())
        admin.execute(f"alter database {name} set lock_timeout = '1ms'".encode())
    migrate.upgrade(empty)
    query(empty, f"alter database {name} reset all")
    query(empty, "drop schema evil cascade")
    assert_same(database, empty)


def test_a_downgrade_takes_all_of_it_away(empty: str) -> None:
    migrate.upgrade(empty)
    migrate.downgrade(empty)
    assert migrate.status(empty).state == "missing"
    assert query(empty, "select count(*) from pg_namespace where nspname ~ 'pgqueue'") == 0
    migrate.downgrade(empty)
    assert migrate.upgrade(empty) == ("0001",)


def test_a_downgrade_gives_up_on_a_table_that_is_held(empty: str) -> None:
    migrate.upgrade(empty)
    with psycopg.connect(empty) as holder:
        holder.execute("select count(*) from pgqueue.ready_jobs")
        with pytest.raises(DatabaseUnavailable, match="a lock was not free"):
            migrate.downgrade(empty, lock_timeout=0.05)
    assert migrate.check(empty).state == "current"


# Status and check -----------------------------------------------------------------------------------


def test_an_empty_database_is_missing_the_schema(empty: str) -> None:
    found = migrate.status(empty)
    assert found == migrate.SchemaStatus((), "0001", ("0001",), None, is_installed=False)
    assert found.state == "missing"
    with pytest.raises(SchemaMissing, match="has no schema pgqueue: run `pgqueue db upgrade`"):
        migrate.check(empty)
    with psycopg.connect(empty) as connection, pytest.raises(SchemaMissing, match="pgqueue db upgrade"):
        drivers.run(connection, calls.protocol())


def test_a_database_with_something_pending_is_outdated(outdated: str) -> None:
    found = migrate.status(outdated)
    assert (found.state, found.revisions, found.pending) == ("outdated", ("0001",), ("0002",))
    with pytest.raises(SchemaOutdated, match=r"is at revision 0001, .* needs 0002: run `pgqueue db upgrade`"):
        migrate.check(outdated)


def test_a_newer_database_that_still_serves_this_release_is_left_alone(empty: str) -> None:
    newer(empty, newest=5, oldest=1)
    assert migrate.check(empty).state == "newer"
    assert migrate.upgrade(empty) == ()
    assert migrate.status(empty) == migrate.SchemaStatus(
        ("9999",), "0001", (), calls.Served(newest=5, oldest=1), is_installed=True
    )


def test_a_newer_database_that_no_longer_serves_this_release_is_refused(empty: str) -> None:
    newer(empty, newest=5, oldest=4)
    for refuses in (migrate.check, migrate.upgrade):
        with pytest.raises(SchemaTooNew, match=r"serves protocols 4 to 5, .* speaks 1: upgrade pgqueue-jobs"):
            refuses(empty)
    assert migrate.status(empty).state == "newer"


def newer(dsn: str, *, newest: int, oldest: int) -> None:
    migrate.upgrade(dsn)
    query(dsn, "update pgqueue.alembic_version set version_num = '9999'")
    query(
        dsn,
        "create or replace function pgqueue.protocol(out newest integer, out oldest integer) "
        f"language sql immutable return ({newest}, {oldest})",
    )


def test_a_schema_that_the_migrations_did_not_make_is_not_touched(database: str) -> None:
    assert migrate.status(database).state == "unrecorded"
    before = dump(database)
    for refuses in (migrate.check, migrate.upgrade):
        with pytest.raises(SchemaError, match="a schema pgqueue that these migrations did not make"):
            refuses(database)
    assert dump(database) == before


@pytest.mark.parametrize(
    ("served", "spoken", "raises"),
    [
        (calls.Served(newest=1, oldest=1), 1, None),
        (calls.Served(newest=3, oldest=1), 2, None),
        (calls.Served(newest=1, oldest=1), 2, SchemaOutdated),
        (calls.Served(newest=3, oldest=2), 1, SchemaTooNew),
    ],
)
def test_a_protocol_is_served_within_its_range(
    served: calls.Served, spoken: int, raises: type[SchemaError] | None
) -> None:
    if raises is None:
        served.check(spoken)
        return
    with pytest.raises(raises):
        served.check(spoken)


# What goes wrong ------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    with pytest.raises(
        DatabaseUnavailable, match=r"cannot connect to postgresql://ann:\*\*\*@127\.0\.0\.1:1/shop: "
    ) as caught:
        migrate.status("postgresql://ann:s3cret@127.0.0.1:1/shop")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "dsn",
    ["ann:s3cret@host/shop", "postgresql://ann:s3cret@host/shop?what=1", "mysql://ann:s3cret@host/shop"],
)
def test_a_dsn_that_is_none_is_refused_without_repeating_it(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^the DSN .* is not usable: ") as caught:
        migrate.status(dsn)
    assert "s3cret" not in str(caught.value)


def test_a_role_without_the_right_to_create_schemas_is_told_what_it_takes(empty: str) -> None:
    role = f"{conninfo_to_dict(empty)['dbname']}_guest"
    query(empty, f"create role {role} login password 'guest'")
    try:
        with pytest.raises(
            NotPermitted, match=r"permission denied for database .*\(grant create on database"
        ):
            migrate.upgrade(make_conninfo(empty, user=role, password="guest"))
    finally:
        query(empty, f"drop role {role}")
    assert migrate.status(empty).state == "missing"


# The command ----------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[int, str, str]:
    run = subprocess.run(
        [*COMMAND, "db", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return run.returncode, run.stdout, run.stderr


def test_the_commands_say_where_a_database_stands(empty: str) -> None:
    code, out, err = command("check", "--dsn", empty)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.endswith("run `pgqueue db upgrade`\n")
    code, out, err = command("check", "--json", "--dsn", empty)
    assert (code, json.loads(out)["ok"], err) == (1, False, "")
    code, out, err = command("status", "--json", "--dsn", empty)
    assert (code, json.loads(out)["state"], json.loads(out)["pending"], err) == (0, "missing", ["0001"], "")
    assert command("upgrade", "--dsn", empty)[::2] == (0, command_says_applied())
    code, out, err = command("status", "--dsn", empty)
    assert code == 0
    assert re.search(r"^state +current$", out, re.MULTILINE)
    code, out, err = command("check", "--json", "--dsn", empty)
    assert (code, json.loads(out)["ok"], err) == (0, True, "")


def command_says_applied() -> str:
    return (
        "applied 0001: The engine: tables, functions, views and grants as they were at the first release.\n"
    )


def test_the_printed_sql_goes_to_stdout_alone() -> None:
    code, out, err = command("sql")
    assert (code, err) == (0, "")
    assert out == migrate.sql()
