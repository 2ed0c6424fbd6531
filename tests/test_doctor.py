"""`pgqueue doctor`: a healthy database has nothing to say; each thing that is wrong is found, with its remedy."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue import calls, migrate
from pgqueue.cli import main
from pgqueue.cli.checks import CHECKS, Patient, server, work
from pgqueue.drivers import run
from pgqueue.version import __version__
from tests.sql.acting import call, claimed, enqueue, register
from tests.support import Databases

Session = psycopg.Connection
Doctor = Callable[..., list[dict[str, Any]]]


def invoke(dsn: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--dsn", dsn, "doctor", *arguments])


@pytest.fixture
def doctor(database: str) -> Doctor:
    """The findings of one check; each has a remedy, and an error among them is the exit code."""

    def look(*checks: str, dsn: str = database) -> list[dict[str, Any]]:
        result = invoke(dsn, "--json", *(argument for name in checks for argument in ("--only", name)))
        told = json.loads(result.stdout)
        assert told["checks"] == list(checks or CHECKS)
        severities = [finding["severity"] for finding in told["findings"]]
        assert result.exit_code == int("error" in severities)
        assert told["ok"] == ("error" not in severities)
        assert all(finding["remedy"] for finding in told["findings"] if finding["severity"] != "info")
        return list(told["findings"])

    return look


def only(findings: list[dict[str, Any]], severity: str, *words: str) -> None:
    """There is one finding, of this severity, and it says so."""
    assert [finding["severity"] for finding in findings] == [severity], findings
    for word in words:
        assert word in findings[0]["what"] + findings[0]["remedy"], findings


@pytest.fixture
def migrated(databases: Databases) -> Iterator[str]:
    """The DSN of a database that was installed as users do."""
    dsn = databases.create_empty()
    migrate.upgrade(dsn)
    yield dsn
    databases.drop(dsn)


# All is well --------------------------------------------------------------------------------------------


def test_of_a_healthy_database_there_is_nothing_to_say(migrated: str, doctor: Doctor) -> None:
    with psycopg.connect(migrated, autocommit=True) as connection:
        connection.execute("update pgqueue.workers set version = version")
        run(
            connection,
            calls.register(
                supervisor_id=1, host="here", pid=1, version=__version__, queues=["default"], concurrency=1,
                lease=30, session_lock=False,
            ),
        )  # fmt: skip
        enqueue(connection)
        run(connection, calls.count_depths())
    assert doctor(dsn=migrated) == []
    told = invoke(migrated)
    assert (told.exit_code, told.stderr) == (0, "all is well\n")
    assert told.stdout == f"nothing to say of: {', '.join(CHECKS)}\n"


def test_without_a_schema_the_server_is_looked_at_all_the_same(databases: Databases, doctor: Doctor) -> None:
    dsn = databases.create_empty()
    findings = doctor(dsn=dsn)
    databases.drop(dsn)
    by_check = {finding["check"]: finding for finding in findings}
    assert "server" not in by_check
    assert by_check["migrations"]["severity"] == "error"
    assert "pgqueue db upgrade" in by_check["migrations"]["remedy"]
    assert {by_check[name]["severity"] for name in ("workers", "queues", "schedules", "upkeep")} == {"unseen"}


def test_what_was_found_is_told_with_its_remedy(connection: Session, database: str) -> None:
    enqueue(connection, queue="mail")
    run(connection, calls.count_depths())
    told = invoke(database, "--only", "queues", "--only", "clock")
    assert (told.exit_code, told.stderr) == (1, "1 error\n")
    assert told.stdout.splitlines() == [
        "error (queues): 1 jobs are ready in mail as last counted, and no worker serves it",
        "    Run one: pgqueue worker … -q mail",
        "nothing to say of: clock",
    ]


def test_a_database_that_is_away_is_an_error_and_no_finding() -> None:
    told = invoke("postgresql://nobody@127.0.0.1:1/none")
    assert told.exit_code == 1
    assert told.stderr.startswith("error: ")


# The server ---------------------------------------------------------------------------------------------


def test_listen_that_stays_silent_is_found(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(_dsn: str) -> bool:
        return False

    monkeypatch.setattr(server, "listen_works", silent)
    only(doctor("listening"), "warning", "transaction pooler", "wake = 'poll'")


@pytest.mark.parametrize(("off", "severity"), [(5, "info"), (-90, "warning")])
def test_clocks_that_differ_are_found(
    off: float, severity: str, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - off)
    only(doctor("clock"), severity, "ahead of" if off > 0 else "behind", "NTP")


@pytest.mark.parametrize(("held", "severity"), [((0.0, 60.0), "warning"), ((0.0, 0.0), "error")])
def test_who_holds_an_old_snapshot_is_named(
    held: tuple[float, float], severity: str, database: str, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HELD_SECONDS", held)
    with psycopg.connect(database, application_name="a report") as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select 1")
        found = [f for f in doctor("snapshots") if str(holder.info.backend_pid) in f["what"]]
        only(found, severity, "a report", f"pg_terminate_backend({holder.info.backend_pid})")


def test_a_prepared_transaction_is_found(
    connection: Session, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HELD_SECONDS", (0.0, 60.0))
    name = f"forgotten {os.getpid()}"
    connection.execute("begin; select pgqueue.enqueue('t'); prepare transaction '" + name + "'")
    try:
        found = [f for f in doctor("snapshots") if "prepared" in f["what"]]
        only([f for f in found if name in f["what"]], "warning", "rollback prepared")
    finally:
        connection.execute(f"rollback prepared '{name}'")


def test_a_queue_of_notifications_that_fills_is_found(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patient, "row", lambda *_: {"used": 0.2})
    only(doctor("notifications"), "warning", "20% full")
    monkeypatch.setattr(Patient, "row", lambda *_: {"used": 0.6})
    only(doctor("notifications"), "error", "60% full")


def test_a_hot_table_that_is_not_vacuumed_is_found(
    connection: Session, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute("alter table pgqueue.ready_jobs set (autovacuum_enabled = off)")
    only(doctor("vacuum"), "error", "pgqueue.ready_jobs", "reset (autovacuum_enabled)")
    connection.execute("alter table pgqueue.ready_jobs reset (autovacuum_enabled)")
    monkeypatch.setattr(server, "DEAD_ROWS", 3)
    worker = register(connection)
    for _ in range(10):
        claimed(connection, worker)
    connection.execute("select pg_stat_force_next_flush()")
    only(doctor("vacuum"), "warning", "pgqueue.ready_jobs has 10 dead rows, and has never been vacuumed")


def test_a_role_of_another_isolation_is_found(database: str, doctor: Doctor) -> None:
    dsn = make_conninfo(database, options="-c default_transaction_isolation=serializable")
    only(doctor("server", dsn=dsn), "warning", "serializable", "read committed")


# The schema ---------------------------------------------------------------------------------------------


def test_a_schema_that_is_no_release_is_found(doctor: Doctor) -> None:
    only(doctor("migrations"), "error")


def test_missing_partitions_and_rows_that_found_none_are_found(connection: Session, doctor: Doctor) -> None:
    only(doctor("partitions"), "error", "today", "finished_jobs, job_failures, job_reports")
    worker = register(connection)
    job = claimed(connection, worker)
    assert call(connection, "complete", ids=[job.id], leases=[job.lease]) == [job.id]
    connection.execute("select pg_stat_force_next_flush()")
    connection.execute("select pgqueue.retain()")
    only(doctor("partitions"), "warning", "pgqueue.finished_jobs_overflow has about 1 rows")
    connection.execute("delete from pgqueue.finished_jobs_overflow")
    connection.execute("select pg_stat_force_next_flush()")
    assert doctor("partitions") == []
    tomorrow = (
        "select format('pgqueue.job_failures_%s', to_char((now() at time zone 'UTC')::date + 1, 'YYYYMMDD'))"
    )
    (name,) = connection.execute(tomorrow).fetchone() or ("",)
    connection.execute(sql.SQL("drop table {}").format(sql.Identifier(*name.split("."))))
    only(doctor("partitions"), "warning", "tomorrow", "job_failures")


def test_grants_that_are_missing_are_found(connection: Session, doctor: Doctor) -> None:
    assert doctor("roles") == []
    connection.execute("revoke execute on all functions in schema pgqueue from pgqueue_producer")
    only(doctor("roles"), "error", "pgqueue_producer", "4_grants.sql")


@pytest.fixture
def as_role(connection: Session, migrated: str) -> Iterator[Callable[..., str]]:
    """The DSN of a login that has a role, and no other right."""
    login = f"pgqueue_test_doctor_{os.getpid()}"
    connection.execute(sql.SQL("create role {} login superuser").format(sql.Identifier(login)))

    def dsn(*roles: str) -> str:
        # A superuser that gives its rights up at once: no server of ours knows a password.
        for role in roles:
            connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(role), sql.Identifier(login)))
        connection.execute(sql.SQL("alter role {} nosuperuser").format(sql.Identifier(login)))
        return make_conninfo(migrated, user=login)

    yield dsn
    connection.execute(sql.SQL("drop role {}").format(sql.Identifier(login)))


@pytest.mark.parametrize(
    ("roles", "unseen"),
    [
        (["pgqueue_admin", "pg_monitor"], set()),
        (["pgqueue_admin"], {"snapshots"}),
        (["pgqueue_monitor"], {"migrations", "snapshots", "roles"}),
        (
            ["pgqueue_worker"],
            {"snapshots", "roles", "workers", "queues", "schedules", "starvation"},
        ),
        ([], {"migrations", "snapshots", "roles", "workers", "queues", "schedules", "upkeep"}),
    ],
)
def test_what_cannot_be_seen_for_want_of_a_right_is_said(
    roles: list[str], unseen: set[str], as_role: Callable[..., str], doctor: Doctor
) -> None:
    findings = doctor(dsn=as_role(*roles))
    assert {finding["check"] for finding in findings if finding["severity"] == "unseen"} == unseen
    assert {finding["severity"] for finding in findings} <= {"unseen"}


# The work -----------------------------------------------------------------------------------------------


def test_workers_that_are_silent_lack_tasks_or_are_of_another_release_are_found(
    connection: Session, doctor: Doctor
) -> None:
    worker = register(connection)  # of release 0
    only(doctor("workers"), "warning", f"workers have 0, this command is of {__version__}")
    connection.execute("update pgqueue.workers set version = %s", [__version__])
    assert doctor("workers") == []
    call(connection, "lack_task", worker_id=worker, task="charge")
    only(doctor("workers"), "error", f"worker {worker} on here lacks", "charge")
    connection.execute("update pgqueue.workers set unknown_tasks = '{}'")
    connection.execute("update pgqueue.heartbeats set beat_at = now() - interval '5 minutes'")
    only(doctor("workers"), "warning", "has been silent for 5 min")


def test_queues_that_nobody_serves_are_found(connection: Session, doctor: Doctor) -> None:
    enqueue(connection, queue="mail")
    enqueue(connection, queue="later", delay=60)
    run(connection, calls.count_depths())
    only(doctor("queues"), "error", "1 jobs are ready in mail", "-q mail")
    register(connection, "mail")
    assert doctor("queues") == []
    call(connection, "pause", queue="mail")
    only(doctor("queues"), "warning", "mail has been paused since", "queues resume mail")
    connection.execute("select pgqueue.pause('mail', now() + interval '1 hour')")
    assert doctor("queues") == []


def test_schedules_that_do_not_run_are_found(connection: Session, doctor: Doctor) -> None:
    call(connection, "schedule", name="nightly", task="t", every=60)
    assert doctor("schedules") == []
    connection.execute("update pgqueue.schedules set due_at = now() - interval '10 minutes'")
    only(doctor("schedules"), "error", "nightly has been due for 10 min")
    connection.execute("update pgqueue.schedules set problem = 'no such zone'")
    only(doctor("schedules"), "error", "nightly cannot run: no such zone")
    call(connection, "pause_schedule", name="nightly")
    assert doctor("schedules") == []


def test_upkeep_that_nobody_leads_and_figures_that_are_old_are_found(
    connection: Session, doctor: Doctor
) -> None:
    register(connection)
    connection.execute("update pgqueue.workers set started_at = now() - interval '1 hour'")
    connection.execute("update pgqueue.leadership set led_at = now() - interval '2 minutes'")
    only(doctor("upkeep"), "error", "nobody has led upkeep for 12", "upkeep.problem")
    connection.execute("update pgqueue.leadership set led_at = now()")
    connection.execute("update pgqueue.rollup_progress set rolled_up_to = now() - interval '6 minutes'")
    only(doctor("upkeep"), "error", "nothing has been rolled up for 36", "--only snapshots")
    connection.execute("update pgqueue.rollup_progress set rolled_up_to = now() - interval '2 minutes'")
    assert doctor("upkeep") == []


def test_low_priorities_that_others_keep_from_being_served_are_found(
    connection: Session, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(connection, "mail")
    low, high = enqueue(connection, queue="mail", priority=9), enqueue(connection, queue="mail", priority=1)
    for _ in range(2):
        call(connection, "prove_floors")
    connection.execute(
        "insert into pgqueue.lane_floors (queue, floors) values ('mail', array_fill(0::bigint, array[20]))"
        " on conflict do nothing"
    )
    move = "update pgqueue.ready_jobs set run_at = now() - make_interval(secs => %s) where id = %s"
    connection.execute(move, [700, low])
    only(doctor("starvation"), "warning", "priority 9 in mail", "12 min", "priority 1")
    connection.execute(move, [600, high])  # it waits as well: a backlog, and no starvation
    assert doctor("starvation") == []
    connection.execute(move, [1, high])
    monkeypatch.setattr(work, "STARVED_SECONDS", 1000)
    assert doctor("starvation") == []
