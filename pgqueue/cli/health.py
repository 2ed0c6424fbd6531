"""`pgqueue health`: whether all is well, by its exit code."""

from __future__ import annotations

from dataclasses import asdict

import click
import psycopg

from pgqueue import calls
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import json_option, note, print_json, print_table
from pgqueue.drivers import run, translate
from pgqueue.errors import ConfigurationError, PgqueueError
from pgqueue.info import HealthCheck


class Unanswered(click.ClickException):
    """The database cannot be asked: neither healthy nor not."""

    exit_code = 2


@click.command()
@click.option("-q", "--queue", "queues", multiple=True, help="Only of this queue; repeat it for more.")
@json_option
@dsn_option
def health(queues: tuple[str, ...], as_json: bool) -> int:
    """Say whether all is well with the whole fleet: for cron, CI and monitors.

    \b
    exit code 0   every check is healthy
    exit code 1   one is not
    exit code 2   the database cannot be asked

    Always looked at: whether somebody leads upkeep, keeps figures and ticks schedules, and whether jobs wait in a queue
    that no worker serves. Of each queue with thresholds (pgqueue queues set) also: depth, oldest_age, failure_ratio, dead.
    It reads views alone: the role pgqueue_monitor is enough.
    """
    checks = _asked(required_dsn(load_settings()))
    if queues:
        checks = [check for check in checks if check.queue in queues]
    is_healthy = all(check.is_healthy for check in checks)
    if as_json:
        print_json({"healthy": is_healthy, "checks": [asdict(check) for check in checks]})
        return int(not is_healthy)
    rows = [
        ("ok" if check.is_healthy else "NOT OK", check.check_name, check.queue, check.detail)
        for check in sorted(checks, key=lambda check: check.is_healthy)
    ]
    print_table(
        ("", "check", "queue", "what"), rows, empty="nothing is known of that queue, so nothing is wrong"
    )
    failing = sum(not check.is_healthy for check in checks)
    note("all is well" if is_healthy else f"not healthy: {failing} of {len(checks)} checks")
    return int(not is_healthy)


def _asked(dsn: str) -> list[HealthCheck]:
    try:
        with connected(dsn, only_reads=True) as connection:
            return run(connection, calls.health())
    except ConfigurationError:
        raise
    except PgqueueError as error:
        raise Unanswered(str(error)) from error
    except psycopg.Error as error:
        raise Unanswered(str(translate(error) or error)) from error
