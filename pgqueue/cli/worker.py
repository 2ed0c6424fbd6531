"""`pgqueue worker`: run jobs."""

from __future__ import annotations

import asyncio

import click

from pgqueue.cli import dsn_option, load_settings, required_dsn


def parse_queues(values: tuple[str, ...]) -> dict[str, int | None]:
    """Reads `-q email:20 -q default`: each queue with the most jobs of it that one process runs at once.

    >>> parse_queues(("email:20", "default"))
    {'email': 20, 'default': None}
    """
    limits: dict[str, int | None] = {}
    for value in values:
        name, colon, limit = value.partition(":")
        if not name or (colon and not (limit.isdigit() and int(limit) > 0)):
            raise click.BadParameter(
                f"{value!r}: expected QUEUE or QUEUE:LIMIT with a limit of at least 1, such as email:20"
            )
        if name in limits:
            raise click.BadParameter(f"queue {name!r} is given twice")
        limits[name] = int(limit) if colon else None
    return limits


@click.command()
@click.argument("app", metavar="MODULE:APP")
@click.option(
    "-q",
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME[:LIMIT]",
    help="A queue to serve; with a limit, at most that many of a process's slots. Repeat it. Default: default.",
)
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, 10_000), help="Slots of each process. Default: 50."
)
@click.option("--processes", type=click.IntRange(1, 256), help="How many processes. Default: 1.")
@click.option(
    "--drain-limit", type=click.FloatRange(0), help="Seconds that a stop waits for jobs. Default: 25."
)
@click.option(
    "--wake",
    type=click.Choice(["auto", "listen", "poll"]),
    help="How idle workers are woken. Default: auto, a probe at the start decides.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    help="Answer /metrics, /livez, /readyz and /health on this port; 0: one that is free, see the log.",
)
@click.option("--metrics-host", metavar="ADDRESS", help="The address for these. Default: 0.0.0.0.")
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]), help="Default: auto.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Default: info.")
@dsn_option
def worker(app: str, queues: tuple[str, ...], **options: object) -> int:
    """Run the jobs of an app's tasks, until SIGTERM or Ctrl-C.

    The first signal drains (no more claims, running jobs end), the second cancels what runs and gives its
    jobs back, the third kills.
    """
    settings = load_settings(queues=queues or None, **options)
    required_dsn(settings)
    limits = parse_queues(settings.queues)

    from pgqueue.observe.logging import configure_logging
    from pgqueue.worker.supervisor import Supervisor

    configure_logging(format=settings.log_format, level=settings.log_level)
    supervisor = Supervisor(app=app, settings=settings, limits=limits or dict.fromkeys(settings.queues, None))
    return asyncio.run(supervisor.run())
