"""`pgqueue workers`: who is registered, and who lacks which task."""

from __future__ import annotations

import click
from psycopg.rows import dict_row

from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import json_option, print_json, print_table

COLUMNS = (
    "id",
    "host",
    "pid",
    "queues",
    "concurrency",
    "version",
    "started_at",
    "silent_seconds",
    "unknown_tasks",
)


@click.command()
@json_option
@dsn_option
def workers(as_json: bool) -> None:
    """List the workers that are registered, and the tasks that their apps lack."""
    with connected(required_dsn(load_settings())) as connection:
        cursor = connection.cursor(row_factory=dict_row)
        rows = cursor.execute("select * from pgqueue_bi.workers order by id").fetchall()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["silent_seconds"] = round(row["silent_seconds"] or 0, 1)
    print_table(
        COLUMNS, [[row[column] for column in COLUMNS] for row in rows], empty="no workers are registered"
    )
