"""`pgqueue workers`: who is registered, and who lacks which task; ask workers to stop."""

from __future__ import annotations

import click
from psycopg.rows import dict_row

from pgqueue import calls
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.acting import act, note_ids
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import ID, json_option, note, print_json, print_table

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


@click.group()
def workers() -> None:
    """List workers, and ask them to stop."""


@workers.command("list")
@json_option
@dsn_option
def list_(as_json: bool) -> None:
    """List the workers that are registered, and the tasks that their apps lack."""
    with connected(required_dsn(load_settings())) as connection:
        cursor = connection.cursor(row_factory=dict_row)
        rows = cursor.execute("select * from pgqueue_bi.workers order by id").fetchall()
    if as_json:
        print_json(rows)
        return
    for row in rows:
        row["silent_seconds"] = None if row["silent_seconds"] is None else round(row["silent_seconds"], 1)
    print_table(
        COLUMNS, [[row[column] for column in COLUMNS] for row in rows], empty="no workers are registered"
    )


@workers.command()
@click.argument("ids", type=ID, nargs=-1, metavar="[ID]...")
@click.option("--all", "every", is_flag=True, help="All that are registered, instead of ids.")
@json_option
@dsn_option
def stop(ids: tuple[int, ...], every: bool, as_json: bool) -> int:
    """Ask workers to stop: each claims nothing more, finishes what it runs within its drain limit, and ends for good.

    A worker is one process of `pgqueue worker`; when all of its processes have ended so has the command, with exit code 0,
    and whatever keeps it may start it again. Exit code 1 when one that was named is not registered.
    """
    if bool(ids) == every:
        raise click.UsageError("name the ids of workers, or say --all")
    with connected(required_dsn(load_settings())) as connection:
        if every:
            found = connection.execute("select id from pgqueue_bi.workers order by id").fetchall()
            ids = tuple(id for (id,) in found)
        asked = act(connection, calls.stop_workers(ids))
    missing = sorted(set(ids) - set(asked))
    if as_json:
        print_json({"asked": asked, "missing": missing})
    else:
        note(f"{len(asked)} asked to stop")
        note_ids(missing, "not registered")
    return 1 if missing else 0
