"""The server and the way to it: what it can do, its clock, what holds it up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from pgqueue.cli.checks.finding import Check, Finding, Patient, Severity, duration
from pgqueue.worker.listener import listen_works

OLDEST = 15
"""The oldest PostgreSQL that is tested."""
CLOCK_SECONDS = (1.0, 30.0)
HELD_SECONDS = (600.0, 3600.0)
"""A snapshot that is held for this long is a warning, for that long an error."""
SLOT_AGE = 1_000_000
"""Transactions by which a replication slot may be behind. A slot does not say for how long."""
DEAD_ROWS = 100_000

HOT = ("ready_jobs", "scheduled_jobs", "running_jobs", "unique_keys", "heartbeats", "sleepers")


def server(patient: Patient) -> Iterator[Finding]:
    """Its version, whether it can be written to, and what it must be able to do."""
    row = patient.row(
        "select current_setting('server_version_num')::int / 10000 as version, pg_is_in_recovery() as standby,"
        " current_setting('track_counts')::boolean as counts, current_setting('autovacuum')::boolean as autovacuum,"
        " current_setting('default_transaction_isolation') as isolation"
    )
    if row["version"] < OLDEST:
        yield Finding(
            "error",
            f"PostgreSQL {row['version']} is older than {OLDEST}",
            "Upgrade the server: nothing older is tested.",
        )
    if row["standby"]:
        yield Finding(
            "info", "this is a standby: views can be read, jobs can be neither enqueued nor run", None
        )
    if row["isolation"] != "read committed":
        yield Finding(
            "warning",
            f"transactions of this role begin as {row['isolation']}: enqueuing in them wakes every worker, and expected races "
            "end in serialization failures",
            "alter role … set default_transaction_isolation = 'read committed', or set it where it is needed only.",
        )
    if not row["autovacuum"] or not row["counts"]:
        yield Finding(
            "error",
            "autovacuum is off: rows that jobs leave behind are never cleared away, and every table grows without end",
            "Set autovacuum = on and track_counts = on.",
        )


def listening(patient: Patient) -> Iterator[Finding]:
    """Whether a notification arrives: behind a transaction pooler LISTEN stays silent. A standby knows none."""
    if patient.row("select pg_is_in_recovery() as standby")["standby"]:
        return
    if not asyncio.run(listen_works(patient.dsn)):
        yield Finding(
            "warning",
            "LISTEN is silent on this DSN, as behind a transaction pooler: workers that use it look once a second instead of "
            "being woken",
            "Give workers a DSN that leads to the server itself, or set wake = 'poll' to say that this is wanted.",
        )


def clock(patient: Patient) -> Iterator[Finding]:
    """The server's clock against this machine's."""
    before = time.time()
    row = patient.row("select extract(epoch from clock_timestamp())::float8 as now")
    after = time.time()
    off = row["now"] - (before + after) / 2
    doubt = (after - before) / 2
    if abs(off) - doubt > CLOCK_SECONDS[0]:
        yield Finding(
            "warning" if abs(off) > CLOCK_SECONDS[1] else "info",
            f"the server's clock is {duration(abs(off))} {'ahead of' if off > 0 else 'behind'} this machine's: jobs keep to the "
            "server's, and times in logs do not match it",
            "Run NTP on both.",
        )


def notifications(patient: Patient) -> Iterator[Finding]:
    """How full the queue of notifications is: when it is full, no transaction that notifies can commit."""
    used = float(patient.row("select pg_notification_queue_usage() as used")["used"])
    if used > 0.05:
        yield Finding(
            "error" if used > 0.5 else "warning",
            f"the server's queue of notifications is {used:.0%} full: a session listens and does not read, because its "
            "transaction stays open; when it is full, enqueuing fails",
            "Find the oldest open transaction (see snapshots), and end it.",
        )


def snapshots(patient: Patient) -> Iterator[Finding]:
    """Who keeps old rows alive: the longer, the more dead rows pile up behind the floors of the lanes."""
    rights = patient.row(
        "select pg_has_role(current_user, 'pg_read_all_stats', 'member')"
        " or (select rolsuper from pg_roles where rolname = current_user) as all_seen"
    )
    if not rights["all_seen"]:
        yield Finding(
            "unseen",
            "other roles' open transactions: this role has no right to see them",
            "grant pg_monitor to this role, or run the doctor as another.",
        )
    for row in patient.rows(
        "select pid, usename, coalesce(application_name, '') as name, state,"
        " extract(epoch from clock_timestamp() - xact_start)::float8 as open_seconds from pg_stat_activity"
        " where backend_xmin is not null and xact_start < clock_timestamp() - make_interval(secs => %s)"
        " and pid <> pg_backend_pid() order by xact_start limit 5",
        HELD_SECONDS[0],
    ):
        yield Finding(
            _held(row["open_seconds"]),
            f"session {row['pid']} ({row['usename']}, {row['name'] or 'unnamed'}, {row['state']}) has held a snapshot for "
            f"{duration(row['open_seconds'])}: no row that died since can be cleared away",
            f"End it: select pg_terminate_backend({row['pid']}); set idle_in_transaction_session_timeout for its role.",
        )
    for row in patient.rows(
        "select gid, owner, extract(epoch from clock_timestamp() - prepared)::float8 as open_seconds from pg_prepared_xacts"
        " where prepared < clock_timestamp() - make_interval(secs => %s) order by prepared limit 5",
        HELD_SECONDS[0],
    ):
        yield Finding(
            _held(row["open_seconds"]),
            f"the prepared transaction {row['gid']!r} of {row['owner']} has stood open for {duration(row['open_seconds'])}: it "
            "holds its locks and every row that died since",
            "Its transaction manager should end it: commit prepared or rollback prepared.",
        )
    for row in patient.rows(
        "select slot_name, active, greatest(age(xmin), age(catalog_xmin)) as age from pg_replication_slots"
        " where greatest(age(xmin), age(catalog_xmin)) > %s order by 3 desc limit 5",
        SLOT_AGE,
    ):
        yield Finding(
            "warning",
            f"the replication slot {row['slot_name']} is {row['age']:,} transactions behind"
            f"{'' if row['active'] else ', and nobody reads it'}: no row that died since can be cleared away",
            "Let its reader catch up, or drop it: select pg_drop_replication_slot(…).",
        )
    for row in patient.rows(
        "select application_name as name, age(backend_xmin) as age from pg_stat_replication where age(backend_xmin) > %s",
        SLOT_AGE,
    ):
        yield Finding(
            "warning",
            f"the standby {row['name']} holds a snapshot that is {row['age']:,} transactions old (hot_standby_feedback)",
            "End the long query there, or turn hot_standby_feedback off.",
        )


def vacuum(patient: Patient) -> Iterator[Finding]:
    """Whether the tables that change all the time are cleared away."""
    tables = patient.rows(
        "select c.relname, s.n_live_tup as live, s.n_dead_tup as dead,"
        " extract(epoch from clock_timestamp() - greatest(s.last_autovacuum, s.last_vacuum))::float8 as vacuumed,"
        " exists (select from unnest(c.reloptions) as o (option) where o.option ~ '^autovacuum_enabled=(off|false|no|0)') as is_off"
        " from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
        " join pg_stat_all_tables as s on s.relid = c.oid"
        " where n.nspname = 'pgqueue' and c.relname = any(%s) order by 1",
        list(HOT),
    )
    for row in tables:
        if row["is_off"]:
            yield Finding(
                "error",
                f"autovacuum is off for pgqueue.{row['relname']}, which changes with every job",
                f"alter table pgqueue.{row['relname']} reset (autovacuum_enabled);",
            )
        if row["dead"] > max(DEAD_ROWS, 5 * row["live"]) and (
            row["vacuumed"] is None or row["vacuumed"] > 600
        ):
            when = (
                "has never been vacuumed"
                if row["vacuumed"] is None
                else f"was vacuumed {duration(row['vacuumed'])} ago"
            )
            yield Finding(
                "warning",
                f"pgqueue.{row['relname']} has {row['dead']:,} dead rows, and {when}",
                "Look for who holds a snapshot; else give autovacuum more workers, or a higher cost limit.",
            )


def _held(seconds: float) -> Severity:
    return "error" if seconds > HELD_SECONDS[1] else "warning"


SERVER: dict[str, Check] = {
    "server": server,
    "listening": listening,
    "clock": clock,
    "notifications": notifications,
    "snapshots": snapshots,
    "vacuum": vacuum,
}
