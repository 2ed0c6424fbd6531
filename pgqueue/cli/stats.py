"""`pgqueue stats`: what became of jobs lately, from what upkeep has rolled up."""

from __future__ import annotations

import click

from pgqueue import calls
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import json_option, note, print_json, print_table
from pgqueue.drivers import run
from pgqueue.job import seconds

__all__ = ["brief", "stats"]

MEASURES = ("p50", "p95", "p99")


@click.command()
@click.option(
    "--last", default="1h", show_default=True, metavar="DURATION", help="How far back: 15m, 1d, 12w."
)
@click.option(
    "--by", type=click.Choice(["queue", "task"]), default="queue", show_default=True, help="A row for each."
)
@json_option
@dsn_option
def stats(last: str, by: str, as_json: bool) -> None:
    """What became of jobs lately: how many ended and how, how long they had waited and run.

    It ends with the last minute that was rolled up, and begins with a whole minute (over 3 hours back with a whole hour,
    over 14 days with a UTC day). WAIT is from due to claimed, RUN from claimed to completed, of the last attempt of jobs
    that completed.
    """
    length = seconds(last, name="--last")
    if length < 60:
        raise click.BadParameter(f"{last!r}: figures are kept by the minute", param_hint="--last")
    with connected(required_dsn(load_settings())) as connection:
        rows = run(connection, calls.stats(length, by_task=by == "task"))
    if as_json:
        print_json([{**row._asdict(), **_rates(row)} for row in rows])
        return
    by_task = by == "task"
    print_table(
        (
            "queue",
            *(("task",) if by_task else ()),
            "completed",
            "/min",
            "failed",
            "dead",
            *(f"{what} {which}" for what in ("wait", "run") for which in MEASURES),
        ),
        [
            (
                row.queue,
                *((row.task,) if by_task else ()),
                row.completed,
                f"{_rates(row)['completed_per_minute']:.4g}",
                row.failed,
                row.dead,
                *(
                    brief(getattr(row, f"{what}_{which}_seconds"))
                    for what in ("wait", "run")
                    for which in MEASURES
                ),
            )
            for row in rows
        ],
        empty="nothing has been rolled up for that time: no job ended, or no worker has led upkeep",
    )
    if rows:
        note(
            f"from {rows[0].from_at.astimezone():%Y-%m-%d %H:%M} to {rows[0].until_at.astimezone():%Y-%m-%d %H:%M}"
        )


def brief(value: float | None) -> str | None:
    """Seconds, in as much room as a column has.

    >>> brief(0.0123), brief(3.21), brief(75), brief(7300), brief(200_000)
    ('12ms', '3.2s', '75s', '2.0h', '2.3d')
    """
    if value is None:
        return None
    if value < 1:
        return f"{value * 1000:.3g}ms" if value < 0.01 else f"{value * 1000:.0f}ms"
    if value < 10:
        return f"{value:.1f}s"
    if value < 120:
        return f"{value:.0f}s"
    if value < 7200:
        return f"{value / 60:.0f}m"
    return f"{value / 3600:.1f}h" if value < 172_800 else f"{value / 86400:.1f}d"


def _rates(row: calls.Stats) -> dict[str, float]:
    minutes = max(1.0, (row.until_at - row.from_at).total_seconds() / 60)
    return {"completed_per_minute": row.completed / minutes, "failed_per_minute": row.failed / minutes}
