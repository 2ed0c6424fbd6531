"""`pgqueue queues`: look at queues, pause and limit them, change their settings, wait until they are empty, empty them."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import psycopg
from psycopg.rows import dict_row

from pgqueue import calls
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.acting import act, agree, in_steps
from pgqueue.cli.choosing import MOST, unknown_queue
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import json_option, note, print_json, print_table
from pgqueue.drivers import run
from pgqueue.job import seconds

WAITING = ["scheduled", "ready", "blocked"]
COUNTS = (
    "worker_limit", "max_attempts", "max_completed", "max_cancelled", "max_dead", "max_depth", "tolerated_dead"
)  # fmt: skip
RATIOS = ("max_failure_ratio",)
DURATIONS = ("timeout", "target_wait", "keep_completed", "keep_cancelled", "keep_dead", "max_oldest")
LOOK_SECONDS = 1.0
"""From one look at a queue that drains to the next, at the least; looking takes a twentieth of the time at the most."""
LIST = """
select h.queue, h.is_paused, h.paused_at, h.resumes_at, h.ready, h.scheduled, h.blocked, h.running, h.dead,
       h.oldest_ready_seconds, h.workers, h.slots, h.counted_at, q.worker_limit, q.max_attempts, q.timeout_seconds,
       q.target_wait_seconds, q.keep_completed_seconds, q.keep_cancelled_seconds, q.keep_dead_seconds, q.max_completed,
       q.max_cancelled, q.max_dead, q.max_depth, q.max_oldest_seconds, q.max_failure_ratio, q.tolerated_dead
  from pgqueue_bi.queue_health as h left join pgqueue_bi.queues as q using (queue)
 order by h.queue
"""


@click.group()
def queues() -> None:
    """List, pause, resume, limit, set, drain and purge queues."""


@queues.command("list")
@json_option
@dsn_option
def list_(as_json: bool) -> None:
    """List queues: what waits and runs as last counted, their workers, and what was set."""
    with connected(required_dsn(load_settings())) as connection:
        rows = connection.cursor(row_factory=dict_row).execute(LIST).fetchall()
    if as_json:
        print_json(rows)
        return
    print_table(
        (
            "queue",
            "state",
            "ready",
            "scheduled",
            "blocked",
            "running",
            "dead",
            "oldest",
            "workers",
            "settings",
        ),
        [
            (
                row["queue"],
                _state(row),
                row["ready"],
                row["scheduled"],
                row["blocked"],
                row["running"],
                row["dead"],
                None if row["oldest_ready_seconds"] is None else f"{row['oldest_ready_seconds']:.0f} s",
                row["workers"],
                ", ".join(_settings(row)) or None,
            )
            for row in rows
        ],
        empty="no queue is known: it has neither jobs, nor workers, nor settings",
    )
    if rows:
        counted = rows[0]["counted_at"]
        note(f"counted at {counted.astimezone():%H:%M:%S}" if counted else "not counted yet: a worker does")


@queues.command()
@click.argument("queue")
@click.option(
    "--until", metavar="TIME", help="Until then it is paused: ISO 8601, or 2h for two hours from now."
)
@dsn_option
def pause(queue: str, until: str | None) -> None:
    """Let no job of QUEUE be claimed, on any worker. Those that run go on; more can be enqueued."""
    with connected(required_dsn(load_settings())) as connection:
        unknown = unknown_queue(connection, queue)
        act(connection, calls.pause(queue, _ahead(until)))
    _warn(unknown)
    note(f"{queue} is paused" + (f" until {until}" if until else ": pgqueue queues resume starts it again"))


@queues.command()
@click.argument("queue")
@dsn_option
def resume(queue: str) -> None:
    """Let jobs of QUEUE be claimed again."""
    with connected(required_dsn(load_settings())) as connection:
        _demand(connection, queue)
        act(connection, calls.resume(queue))
    note(f"{queue} is not paused")


@queues.command()
@click.argument("queue")
@click.argument("limit", metavar="N|none")
@json_option
@dsn_option
def limit(queue: str, limit: str, as_json: bool) -> None:
    """Let jobs of QUEUE take at most N slots of each worker; none: as many as it has.

    Workers that run hold to it at once. A worker's own limit (-q mail:20) holds as well: the smaller one counts.
    """
    if limit != "none" and not (limit.isdecimal() and int(limit)):
        raise click.BadParameter(f"{limit!r}: expected 1 or more, or none", param_hint="N")
    _set(queue, {"worker_limit": None if limit == "none" else int(limit)}, as_json)


@queues.command("set")
@click.argument("queue")
@click.argument("settings", nargs=-1, required=True, metavar="NAME=VALUE...")
@json_option
@dsn_option
def set_(queue: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Change settings of QUEUE; the value `default` takes one back.

    \b
    worker_limit                  slots of each worker that it may take
    max_attempts, timeout         of jobs of which neither the task nor the enqueue says
    target_wait                   how long a job should wait at the most, for the view slo
    keep_completed, keep_cancelled, keep_dead   how long ended jobs are kept: 7d, or none
    max_completed, max_cancelled, max_dead      how many of them are kept at the most
    max_depth, max_oldest         above that many ready jobs, or that wait of the oldest, it is unhealthy
    max_failure_ratio             above that share of failed attempts (5%, or 0.05), over five minutes
    tolerated_dead                above that many dead letters

    pgqueue queues set mail timeout=30s keep_completed=1d max_depth=10000
    """
    _set(queue, dict(_setting(text) for text in settings), as_json)


@queues.command()
@click.argument("queue")
@click.option("--scheduled", is_flag=True, help="Until those are done too that wait for their time.")
@click.option("--timeout", metavar="DURATION", help="Give up after so long, with exit code 1.")
@json_option
@dsn_option
def drain(queue: str, scheduled: bool, timeout: str | None, as_json: bool) -> int:
    """Wait until nothing of QUEUE is ready or runs, as before a deploy or a migration. It changes nothing.

    Stop what enqueues first: what comes meanwhile is waited for too.
    """
    deadline = None if timeout is None else time.monotonic() + seconds(timeout, name="--timeout")
    said: calls.QueueCount | None = None
    with connected(required_dsn(load_settings())) as connection:
        _demand(connection, queue)
        while True:
            began = time.monotonic()
            count = run(connection, calls.count_queue(queue))
            left = count.ready + count.blocked + count.running + (count.scheduled if scheduled else 0)
            if count != said:
                said = count
                note(f"{count.ready} ready, {count.running} running, {count.scheduled} scheduled")
            if left == 0 or (deadline is not None and began >= deadline):
                break
            if count.running == 0 and _is_paused(connection, queue):
                raise click.ClickException(
                    f"{queue} is paused, so nothing of it is claimed: resume or purge it"
                )
            time.sleep(max(LOOK_SECONDS, 20 * (time.monotonic() - began)))
    if as_json:
        print_json({"queue": queue, "empty": left == 0, **count._asdict()})
    else:
        note(f"{queue} is empty" if left == 0 else f"{queue} is not empty: gave up after {timeout}")
    return 0 if left == 0 else 1


@queues.command()
@click.argument("queue")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@dsn_option
def purge(queue: str, yes: bool, as_json: bool) -> None:
    """Delete the jobs of QUEUE that wait: ready, scheduled, blocked. What runs goes on.

    Nothing of them is left. To keep a record, cancel them: pgqueue jobs cancel --all-matching --queue QUEUE.
    """
    with connected(required_dsn(load_settings())) as connection:
        _demand(connection, queue)
        jobs = run(connection, calls.find_jobs(states=WAITING, queue=queue, max_rows=MOST))
        agree(connection, "delete", jobs, yes=yes)
        deleted = 0
        for step in in_steps(jobs, "done"):
            outcomes = act(connection, calls.delete_jobs(step), chosen_by=f"purge of queue {queue}")
            deleted += sum(outcome == "deleted" for outcome in outcomes.values())
    if as_json:
        print_json({"queue": queue, "deleted": deleted})
    else:
        note(f"{deleted} deleted")


def _set(queue: str, settings: dict[str, Any], as_json: bool) -> None:
    with connected(required_dsn(load_settings())) as connection:
        unknown = unknown_queue(connection, queue)
        every = act(connection, calls.set_queue(queue, json.dumps(settings)))
    _warn(unknown)
    if as_json:
        print_json({"queue": queue, "settings": every})
    else:
        note(f"{queue}: " + (", ".join(f"{name}={value}" for name, value in every.items()) or "the defaults"))


def _demand(connection: psycopg.Connection[Any], queue: str) -> None:
    """Refuses a queue that is not known: to wait for it or to empty it would always succeed."""
    if (unknown := unknown_queue(connection, queue)) is not None:
        raise click.ClickException(unknown)


def _warn(unknown: str | None) -> None:
    """What a queue is to be may be said before its first job comes; but it may be misspelt."""
    if unknown is not None:
        note(f"until now {unknown}")


def _setting(text: str) -> tuple[str, Any]:
    """Reads name=value: a number, a duration, a share, or `default`."""
    name, equals, value = text.partition("=")
    if not equals or name not in (*COUNTS, *RATIOS, *DURATIONS):
        raise click.BadParameter(
            f"{text!r}: expected one of {', '.join((*COUNTS, *RATIOS, *DURATIONS))}, = and a value",
            param_hint="NAME=VALUE",
        )
    if value == "default":
        return name, None
    if name in COUNTS:
        if not value.isdecimal():
            raise click.BadParameter(f"{text!r}: expected a number, or default", param_hint="NAME=VALUE")
        return name, int(value)
    if name in RATIOS:
        share = _share(value)
        if share is None:
            raise click.BadParameter(
                f"{text!r}: expected a share such as 5% or 0.05, or default", param_hint="NAME=VALUE"
            )
        return name, share
    if name.startswith("keep_") and value == "none":
        return name, 0
    return name, seconds(float(value) if value.isdecimal() else value, name=name)


def _share(value: str) -> float | None:
    """Reads 5% or 0.05; None: it is no share."""
    try:
        share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError:
        return None
    return share if 0 <= share <= 1 else None


def _ahead(value: str | None) -> str | None:
    """A time of the command line that lies ahead: ISO 8601 (local when it has no offset), or a duration."""
    if value is None:
        return None
    if value[:1].isdigit() and value[-1:] in "smhdw":
        return (datetime.now(UTC) + timedelta(seconds=seconds(value, name="--until"))).isoformat()
    try:
        return datetime.fromisoformat(value).astimezone().isoformat()
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: expected a time such as 2026-11-23T09:00, or a duration such as 2h",
            param_hint="--until",
        ) from None


def _is_paused(connection: psycopg.Connection[Any], queue: str) -> bool:
    found = connection.execute("select paused_at from pgqueue_bi.queues where queue = %s", [queue]).fetchone()
    return found is not None and found[0] is not None


def _state(row: dict[str, Any]) -> str:
    if not row["is_paused"]:
        return "runs" if row["workers"] else "no workers"
    until = row["resumes_at"]
    return f"paused until {until.astimezone():%Y-%m-%d %H:%M:%S}" if until else "paused"


def _settings(row: dict[str, Any]) -> list[str]:
    return [
        f"{name}={row[column]:g}" + (" s" if name in DURATIONS else "")
        for name in (*COUNTS, *RATIOS, *DURATIONS)
        if row[column := f"{name}_seconds" if name in DURATIONS else name] is not None
    ]
