"""`pgqueue audit`: what operators did."""

from __future__ import annotations

import json
from typing import Any

import click
from psycopg.rows import dict_row

from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.choosing import moment
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import LIMIT, json_option, print_json, print_table

QUERY = """
select id, acted_at, role, actor, verb, target, jobs, job_ids, filter, details from pgqueue_bi.audit
 where (%(verb)s::text is null or verb = %(verb)s)
   and (%(target)s::text is null or target = %(target)s)
   and (%(who)s::text is null or strpos(concat_ws(' ', role, actor), %(who)s) > 0)
   and (%(since)s::timestamptz is null or acted_at >= %(since)s)
   and (%(until)s::timestamptz is null or acted_at < %(until)s)
 order by id desc limit %(limit)s
"""


@click.group()
def audit() -> None:
    """List what operators did: who changed what, and when."""


@audit.command("list")
@click.option("--verb", help="Only this: cancel, retry, replay, pause, ...")
@click.option("--target", help="Only about this queue, schedule or worker.")
@click.option("--who", help="Only by those whose role or label has this in it.")
@click.option("--since", metavar="TIME", help="Only since: ISO 8601, or an age such as 2h.")
@click.option("--until", metavar="TIME", help="Only before: ISO 8601, or an age such as 2h.")
@click.option("-n", "--limit", type=LIMIT, default=50, show_default=True, help="At most so many.")
@json_option
@dsn_option
def list_(as_json: bool, since: str | None, until: str | None, **given: Any) -> None:
    """List what operators did, the latest first."""
    values = {**given, "since": moment(since, "--since"), "until": moment(until, "--until")}
    with connected(required_dsn(load_settings())) as connection:
        rows = connection.cursor(row_factory=dict_row).execute(QUERY, values).fetchall()
    if as_json:
        print_json(rows)
        return
    print_table(
        ("at", "role", "who", "did", "to", "jobs", "chosen by", "details"),
        [
            (
                row["acted_at"],
                row["role"],
                row["actor"],
                row["verb"],
                row["target"],
                row["jobs"],
                row["filter"] or row["job_ids"],
                row["details"] and json.dumps(row["details"], ensure_ascii=False),
            )
            for row in rows
        ],
        empty="nothing was done that matches",
    )
