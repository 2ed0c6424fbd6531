"""`pgqueue schedules`: what is due and when, what became of it; make, pause, run and delete schedules."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, get_args

import click

from pgqueue import calls
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import LIMIT, json_option, note, print_json, print_table, print_values
from pgqueue.cli.schedule_rows import (
    Row,
    clock,
    dues_after,
    find,
    in_zone,
    named,
    next_dues,
    rule_of,
    select,
    state,
    told,
    unknown,
    zone_of,
)
from pgqueue.cli.showing import reveal_option, shown
from pgqueue.cron import SecondsField
from pgqueue.drivers import run
from pgqueue.encoding import encode_args
from pgqueue.errors import InvalidArgs
from pgqueue.plan import Missed
from pgqueue.schedule import MAX_MISSED, Overlap, Rule, duration

NEXT = 5

count_option = click.option(
    "-n", "--count", type=click.IntRange(1, 1000), default=NEXT, show_default=True, help="How many."
)
cron_option = click.option("--cron", metavar="EXPRESSION", help='When: "0 3 * * *", "@daily".')
seconds_option = click.option(
    "--seconds",
    type=click.Choice(get_args(SecondsField)),
    help="Where the seconds stand in a cron expression of six fields.",
)


@click.group()
def schedules() -> None:
    """List, show, preview, make, pause, run and delete schedules.

    Times are told in the zone of the schedule.
    """


@schedules.command("list")
@json_option
@dsn_option
def list_(as_json: bool) -> None:
    """List schedules: when each is due next, and what became of its last due time."""
    with connected(required_dsn(load_settings())) as connection:
        rows = select(connection, "select * from pgqueue_bi.schedules order by name")
    if as_json:
        print_json(rows)
        return
    print_table(
        ("name", "task", "when", "next due", "last due", "outcome", "state"),
        [
            (
                row["name"],
                row["task"],
                rule_of(row),
                told(row, "next_due_at"),
                told(row, "last_due_at"),
                row["last_outcome"],
                state(row),
            )
            for row in rows
        ],
        empty="there are no schedules",
    )


@schedules.command()
@click.argument("name")
@reveal_option
@json_option
@dsn_option
def show(name: str, reveal: bool, as_json: bool) -> None:
    """Show one schedule: its jobs, when it is due, what it does with missed due times and overlaps."""
    settings = load_settings()
    with connected(required_dsn(settings)) as connection:
        row = find(connection, name)
        args, options = run(connection, calls.schedule_record(name)) or ("null", None)
        now = clock(connection)
    row["args"] = shown(settings, args, "args", row["task"], row["queue"], reveal=reveal)
    row["options"] = json.loads(options or "null")
    if as_json:
        print_json(row)
        return
    rule = rule_of(row)
    print_values(
        {
            "name": row["name"],
            "defined by": f"the code of app {row['owner']}" if row["owner"] else "hand",
            "task": row["task"],
            "args": json.dumps(row["args"], ensure_ascii=False),
            "queue": row["queue"],
            "priority": row["priority"],
            "max attempts": row["max_attempts"],
            "options": row["options"] and json.dumps(row["options"], ensure_ascii=False),
            "when": rule,
            "from": told(row, "starts_at"),
            "until": told(row, "ends_at"),
            "jitter": duration(rule.jitter),
            "grace": duration(rule.grace),
            "missed": f"all, at most {rule.missed_limit}" if rule.missed == "all" else rule.missed,
            "overlap": rule.overlap,
            "made": told(row, "created_at"),
            "paused": told(row, "paused_at"),
            "problem": row["problem"],
            "last due": told(row, "last_due_at"),
            "last run": told(row, "last_ran_at"),
            "outcome": row["last_outcome"],
            "job": row["last_job_id"],
        }
    )
    if row["problem"] is None:
        for number, due in enumerate(next_dues(row, now, NEXT)):
            click.echo(f"{'next due' if number == 0 else '':<12}  {in_zone(due, row['tz'])}")


@schedules.command("next")
@click.argument("name", required=False)
@cron_option
@seconds_option
@click.option("--tz", metavar="ZONE", help="The zone of --cron. Default: UTC.")
@click.option("--after", metavar="TIME", help="Count from this time (ISO 8601) instead of now.")
@count_option
@json_option
@dsn_option
def next_(
    name: str | None,
    cron: str | None,
    seconds: str | None,
    tz: str | None,
    after: str | None,
    count: int,
    as_json: bool,
) -> None:
    """Print the next due times of the schedule NAME, or preview those of --cron without a database.

    Look at the nights in which clocks are changed: --cron "30 2 * * *" --tz Europe/Paris --after 2026-03-27.
    """
    if (name is None) == (cron is None):
        raise click.UsageError("give the name of a schedule, or --cron")
    if name is not None and (seconds or tz):
        raise click.UsageError("--seconds and --tz go with --cron: a schedule has its own")
    zone = tz or "UTC"
    if name is None:
        row: Row = {}
        rule = Rule.checked(cron=cron, seconds=seconds, tz=zone)
        dues = rule.due_after(_moment(after, "--after", zone) or datetime.now(UTC), count)
    else:
        with connected(required_dsn(load_settings())) as connection:
            row = find(connection, name)
            now = clock(connection)
        zone = row["tz"]
        begin = _moment(after, "--after", zone)
        dues = next_dues(row, now, count) if begin is None else dues_after(row, begin, count)
    if as_json:
        print_json([{"due_at": due.astimezone(zone_of(zone))} for due in dues])
        return
    if row.get("paused_at") is not None:
        note(f"{name} is paused: it runs at none of these before it is resumed")
    empty = "it is due when a worker of its app starts" if row.get("at_startup") else "it is not due any more"
    print_table(
        ("due", "UTC"),
        [
            (in_zone(due, zone), due.astimezone(UTC).isoformat(sep=" ", timespec="seconds")[:19])
            for due in dues
        ],
        empty=empty,
    )


@schedules.command()
@click.argument("name")
@click.option("-n", "--limit", type=LIMIT, default=20, show_default=True, help="At most so many.")
@json_option
@dsn_option
def history(name: str, limit: int, as_json: bool) -> None:
    """List what became of due times, the latest first."""
    query = "select * from pgqueue_bi.schedule_runs where schedule = %s order by due_at desc limit %s"
    with connected(required_dsn(load_settings())) as connection:
        tz = find(connection, name)["tz"]
        rows = select(connection, query, name, limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("due", "ran", "late", "outcome", "missed", "job", "state"),
        [
            (
                in_zone(row["due_at"], tz),
                in_zone(row["ran_at"], tz),
                f"{row['late_seconds']:.1f} s",
                row["outcome"],
                row["missed"] or None,
                row["job_id"],
                row["job_state"],
            )
            for row in rows
        ],
        empty=f"{name} has not been due yet",
    )


@schedules.command("run")
@click.argument("name")
@json_option
@dsn_option
def run_(name: str, as_json: bool) -> int:
    """Enqueue the job of a schedule now, beside its due times, also while it is paused.

    Exit code 1 when its last job is unfinished and its overlap policy skips another one.
    """
    with connected(required_dsn(load_settings())) as connection:
        ran = run(connection, calls.run_schedule(name))
        if ran is None:
            raise unknown(connection, name)
    job_id, outcome = ran
    if as_json:
        print_json({"schedule": name, "job_id": job_id, "outcome": outcome})
    elif outcome == "overlapped":
        note(f"nothing was enqueued: its job {job_id} is unfinished, and its overlap policy is skip")
    else:
        click.echo(
            f"job {job_id}" + (" (waits already, behind the one that runs)" if outcome == "joined" else "")
        )
    return 1 if outcome == "overlapped" else 0


@schedules.command()
@click.argument("name")
@dsn_option
def pause(name: str) -> None:
    """Let the due times of a schedule pass. They do not count as missed, and no deploy resumes it."""
    _act(name, calls.pause_schedule, "paused")


@schedules.command()
@click.argument("name")
@dsn_option
def resume(name: str) -> None:
    """Let a schedule run again that was paused, or that a problem has stopped, from now on."""
    _act(name, calls.resume_schedule, "resumed")


@schedules.command()
@click.argument("name")
@dsn_option
def delete(name: str) -> None:
    """Delete a schedule and its history. Its jobs stay."""
    with connected(required_dsn(load_settings())) as connection:
        owner = find(connection, name)["owner"]
        run(connection, calls.unschedule(name))
    note(f"{name} deleted")
    if owner is not None:
        note(f"the code of app {owner} defines it: the next start of a worker makes it again; pausing lasts")


@schedules.command()
@click.argument("name")
@click.argument("task")
@click.argument("args", default="{}", metavar="[ARGS]")
@cron_option
@seconds_option
@click.option("--every", metavar="DURATION", help="When: an interval such as 30s, 5m, 1d.")
@click.option("--at", metavar="TIME", help="When: once, ISO 8601.")
@click.option(
    "--tz", metavar="ZONE", help="The zone of --cron, and of times without an offset. Default: UTC."
)
@click.option("--starts-at", metavar="TIME", help="Not before.")
@click.option("--ends-at", metavar="TIME", help="Not after.")
@click.option("--jitter", metavar="DURATION", help="Start each job later by a random part of this.")
@click.option("--grace", metavar="DURATION", help="Later than this is missed. Default: 15s.")
@click.option(
    "--missed",
    type=click.Choice(get_args(Missed)),
    help="Which of the missed due times run. Default: once, the latest.",
)
@click.option("--missed-limit", type=click.IntRange(1, MAX_MISSED), help="The most of them. Default: 100.")
@click.option(
    "--overlap",
    type=click.Choice(get_args(Overlap)),
    help="While its last job is unfinished. Default: allow.",
)
@click.option("-q", "--queue", help="Of its jobs. Default: default.")
@click.option("-p", "--priority", type=click.IntRange(0, 9), help="Of its jobs: 0 (first) to 9. Default: 5.")
@click.option("--max-attempts", type=click.IntRange(1, 32767), help="Of its jobs. Default: 5.")
@json_option
@dsn_option
def add(
    name: str,
    task: str,
    args: str,
    queue: str | None,
    priority: int | None,
    max_attempts: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Make a schedule NAME for jobs of TASK with ARGS, a JSON object, or change the one of that name.

    pgqueue schedules add nightly clean_up '{"days": 90}' --cron "0 3 * * *" --tz Europe/Paris
    """
    for option in ("at", "starts_at", "ends_at"):
        given[option] = _moment(given[option], f"--{option.replace('_', '-')}", given["tz"] or "UTC")
    if given["every"] is not None and given["every"].isdigit():
        given["every"] += "s"
    rule = Rule.checked(**given)
    settings = load_settings()
    definition = {
        "task": task,
        "args": encode_args(_object(args), limit=settings.max_args_bytes),
        "queue": queue,
        "priority": priority,
        "max_attempts": max_attempts,
        **rule.stored(),
    }
    with connected(required_dsn(settings)) as connection:
        before = named(connection, name)
        outcome = run(connection, calls.schedule(name, definition))
    if as_json:
        print_json({"name": name, "outcome": outcome})
    else:
        note(f"{name} {outcome}")
    if before is not None and before["owner"] is not None:
        note(
            f"it was defined by the code of app {before['owner']}, and is yours now: no start of a worker changes or "
            "removes it. Delete it, and the next start makes the one of the code again"
        )


def _act(name: str, call: Callable[[str], calls.Call[bool]], done: str) -> None:
    with connected(required_dsn(load_settings())) as connection:
        if not run(connection, call(name)):
            raise unknown(connection, name)
    note(f"{name} {done}")


def _object(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise InvalidArgs(f"args: not JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidArgs("args: expected a JSON object, such as '{\"days\": 90}'")
    return given


def _moment(value: str | None, option: str, tz: str) -> datetime | None:
    """A time of the command line; one without an offset is of the zone."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: expected a time such as 2026-11-23T09:00", param_hint=option
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone_of(tz))
