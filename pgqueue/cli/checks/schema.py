"""The schema: is it the one that this package needs, who may do what in it, are there partitions."""

from __future__ import annotations

from collections.abc import Iterator

from pgqueue import calls
from pgqueue.cli.checks.finding import Check, Finding, Patient
from pgqueue.drivers import run
from pgqueue.errors import NotPermitted, PgqueueError

ROLES = {
    "pgqueue_producer": "pgqueue.enqueue(text,jsonb,text,integer,timestamptz,double precision,integer,text,text,jsonb)",
    "pgqueue_worker": "pgqueue.complete(bigint[],bigint[])",
    "pgqueue_monitor": None,
    "pgqueue_admin": "pgqueue.replay(bigint[],jsonb,jsonb)",
}
"""Each role, and a function that it has to be able to call; the monitor reads views."""
PARTITIONED = ("finished_jobs", "job_failures", "job_reports")


def migrations(patient: Patient) -> Iterator[Finding]:
    """Whether the schema fits this package."""
    from pgqueue import migrate

    try:
        found = migrate.check(patient.dsn)
    except NotPermitted:
        yield Finding(
            "unseen",
            "the schema's revision: this role may not read it",
            "Run the doctor as the schema's owner, or ask it for `pgqueue db status`.",
        )
        try:
            run(patient.connection, calls.protocol()).check()
        except NotPermitted:
            pass  # a role without any grant
        except PgqueueError as error:
            yield Finding("error", str(error), "Run `pgqueue db upgrade`, or the release that fits.")
        return
    except PgqueueError as error:
        yield Finding("error", str(error), "Run `pgqueue db upgrade`, or the release that fits.")
        return
    if found.state == "newer":
        yield Finding(
            "info",
            f"the schema is newer than this package (revision {', '.join(found.revisions)}), and still serves it",
            None,
        )


def roles(patient: Patient) -> Iterator[Finding]:
    """Whether pgqueue's roles are there, with their grants, and what this role is."""
    for role, function in ROLES.items():
        there = patient.row("select exists (select from pg_roles where rolname = %s) as it_is", role)
        if not there["it_is"]:
            yield Finding(
                "warning",
                f"the role {role} is missing: whoever installed the schema could not make it",
                f"create role {role} nologin, then apply the grants: `pgqueue db upgrade`, or 4_grants.sql.",
            )
            continue
        if not _sees(patient, "pgqueue" if function else "pgqueue_bi"):
            continue  # no name in it can be looked up
        query = (
            "select coalesce(has_function_privilege(%s, to_regprocedure(%s), 'execute'), false) as granted"
            if function is not None
            else "select coalesce(has_table_privilege(%s, to_regclass(%s), 'select'), false) as granted"
        )
        if not patient.row(query, role, function or "pgqueue_bi.jobs")["granted"]:
            yield Finding(
                "error",
                f"the role {role} lacks its grants",
                "Apply them: `pgqueue db upgrade`, or 4_grants.sql by the schema's owner.",
            )
    if not _is(patient, "pgqueue_admin"):
        yield Finding(
            "unseen",
            "which jobs others keep from being served: this role is not pgqueue_admin",
            "grant pgqueue_admin to this role.",
        )


def partitions(patient: Patient) -> Iterator[Finding]:
    """Whether the days ahead have their partitions, and whether an ending has found none."""
    query = """
        select p.parent, d.days,
               exists (select from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
                        where n.nspname = 'pgqueue'
                          and c.relname = p.parent || to_char((now() at time zone 'UTC')::date + d.days, '_YYYYMMDD')) as there
          from unnest(%s::text[]) as p (parent) cross join generate_series(0, 2) as d (days)"""
    missing = [row for row in patient.rows(query, list(PARTITIONED)) if not row["there"]]
    if missing:
        first = min(row["days"] for row in missing)
        when = ("today", "tomorrow", "the day after tomorrow")[first]
        tables = ", ".join(sorted({row["parent"] for row in missing}))
        yield Finding(
            "error" if first == 0 else "warning",
            f"there are no partitions for {when} ({tables}): jobs still end, in the overflow partitions, where retention does "
            "not drop them",
            "Workers make them, a week ahead: run one, or select pgqueue.retain().",
        )
    for row in patient.rows(
        "select c.relname, s.n_live_tup as live from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
        " join pg_stat_all_tables as s on s.relid = c.oid where n.nspname = 'pgqueue'"
        " and c.relname = any(%s) and s.n_live_tup > 0 order by 1",
        [f"{parent}_overflow" for parent in PARTITIONED],
    ):
        yield Finding(
            "warning",
            f"pgqueue.{row['relname']} has about {row['live']:,} rows: on some day there was no partition",
            "See that a worker always runs. The rows are part of the history, and stay until somebody deletes them.",
        )


def _is(patient: Patient, role: str) -> bool:
    return bool(
        patient.row(
            "select exists (select from pg_roles where rolname = %s and pg_has_role(current_user, oid, 'usage')) as it_is",
            role,
        )["it_is"]
    )


def _sees(patient: Patient, schema: str) -> bool:
    """Whether names in a schema can be looked up at all: else to_regprocedure knows none of them."""
    return bool(
        patient.row(
            "select coalesce(has_schema_privilege(current_user, to_regnamespace(%s), 'usage'), false) as it_does",
            schema,
        )["it_does"]
    )


SCHEMA: dict[str, Check] = {"migrations": migrations, "roles": roles, "partitions": partitions}
