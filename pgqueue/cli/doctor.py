"""`pgqueue doctor`: what is wrong with the server, the schema and the work, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import psycopg

from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.checks import CHECKS, Finding, Patient
from pgqueue.cli.connecting import opened
from pgqueue.cli.output import json_option, note, plain, print_json
from pgqueue.errors import NotPermitted

SEVERITIES = ("error", "warning", "unseen", "info")
MISSING = ("3F000", "42P01", "42883", "42703")
"""No such schema, relation, function or column: what `migrations` says."""


@click.command()
@click.option(
    "--only", type=click.Choice(list(CHECKS)), multiple=True, help="Only this check; repeat it for more."
)
@json_option
@dsn_option
def doctor(only: tuple[str, ...], as_json: bool) -> int:
    """Look for what keeps jobs from being run, or soon will: the server, the schema, the workers, the schedules.

    Each finding says what it means and what to do. It says too what it cannot see for want of a right.
    It changes nothing. Exit code 1 when there is an error among the findings.
    """
    dsn = required_dsn(load_settings())
    findings: dict[str, list[Finding]] = {}
    with opened(dsn, "pgqueue doctor") as connection:
        patient = Patient(dsn, connection)
        for name in only or CHECKS:
            findings[name] = list(_checked(name, patient))
    every = [(name, finding) for name, found in findings.items() for finding in found]
    has_error = any(finding.severity == "error" for _, finding in every)
    if as_json:
        print_json(
            {
                "ok": not has_error,
                "checks": list(findings),
                "findings": [
                    {"check": name, "severity": found.severity, "what": found.what, "remedy": found.remedy}
                    for name, found in every
                ],
            }
        )
        return int(has_error)
    for name, found in sorted(every, key=lambda pair: SEVERITIES.index(pair[1].severity)):
        click.echo(f"{click.style(found.severity, bold=True)} ({name}): {plain(found.what)}")
        if found.remedy:
            click.echo(f"    {plain(found.remedy)}")
    fine = [name for name, found in findings.items() if not found]
    if fine:
        click.echo(f"nothing to say of: {', '.join(fine)}")
    counts = [f"{number} {severity}" for severity in SEVERITIES if (number := _count(every, severity))]
    note(", ".join(counts) or "all is well")
    return int(has_error)


def _checked(name: str, patient: Patient) -> Iterator[Finding]:
    """The findings of a check; one that may not look says so, and keeps no other from looking."""
    try:
        yield from CHECKS[name](patient)
    except (psycopg.errors.InsufficientPrivilege, NotPermitted) as error:
        yield Finding(
            "unseen",
            f"{name}: {str(error).splitlines()[0]}",
            "grant pgqueue_admin (or pgqueue_monitor for the views) to this role.",
        )
    except psycopg.Error as error:
        if error.sqlstate not in MISSING:
            raise
        yield Finding(
            "unseen", f"{name}: {str(error).splitlines()[0]}", "Upgrade the schema: pgqueue db upgrade."
        )


def _count(every: list[tuple[str, Any]], severity: str) -> int:
    return sum(found.severity == severity for _, found in every)
