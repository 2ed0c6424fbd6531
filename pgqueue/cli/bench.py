"""`pgqueue bench`: measure this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from pgqueue.cli import dsn_option, load_settings
from pgqueue.cli.output import json_option, note, print_json

NAMES = (
    "ceiling",
    "drain",
    "enqueue",
    "execution",
    "wake",
    "on-time",
    "idle",
    "held",
    "held-mix",
    "bi",
    "loop-delay",
)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[NAMES]...")
@click.option("--quick", is_flag=True, help="Smaller sizes: a few minutes instead of a quarter of an hour.")
@click.option("--strict", is_flag=True, help="Exit 1 when a bar is missed.")
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="FILE", help="Write a Markdown page as well."
)
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Sizes times this.")
@click.option(
    "--calm",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Wait up to so long before each clock starts, until nothing else uses the processor.",
)
@json_option
@dsn_option
def bench(
    names: tuple[str, ...],
    quick: bool,
    strict: bool,
    report: Path | None,
    scale: float,
    calm: float,
    as_json: bool,
) -> int:
    """Measure pgqueue here: ceiling, drain, enqueue, execution, wake, on-time, idle, held, held-mix, bi,
    loop-delay, or those of NAMES.

    Each figure comes with its ceiling, measured in turn with it, and the ratio of the two. Databases of its own
    are made on the configured server and dropped; without one, a PostgreSQL is started for it, fsync on.
    """
    from pgqueue import migrate
    from pgqueue.bench import Bench, measure
    from pgqueue.bench.report import HEADINGS, cells, line, markdown

    settings = load_settings()
    with (
        _server(settings.dsn) as (dsn, pgbench),
        Bench(
            dsn=dsn,
            install=migrate.upgrade,
            tell=note,
            quick=quick,
            scale=scale,
            calm=calm,
            pgbench=pgbench,
        ) as running,
    ):
        results = []
        if not as_json:
            click.echo(line(HEADINGS))
        for result in measure(running, names):
            results.append(result)
            if not as_json:
                click.echo(line(cells(result)))
        machine = running.machine()
    if as_json:
        print_json(
            {"machine": machine, "load": running.loads, "results": [result.as_json() for result in results]}
        )
    if report:
        report.write_text(markdown(results, machine, running.loads, quick=quick))
        note(f"written to {report}")
    missed = [result.name for result in results if result.verdict == "MISSED"]
    if missed:
        note(f"missed: {', '.join(missed)}")
    return 1 if missed and strict else 0


@contextmanager
def _server(dsn: str | None) -> Iterator[tuple[str, Path | None]]:
    """The configured server, else one of the bench's own, gone at the end; and pgbench, if there is one."""
    from pgqueue import embedded
    from pgqueue.errors import NoServer

    try:
        binaries = embedded.find_binaries()
    except NoServer:
        if dsn is None:
            raise
        found = None
    else:
        found = binaries / "pgbench"
    pgbench = found if found is not None and found.is_file() else None
    if dsn is not None:
        yield dsn, pgbench
        return
    settings = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
    if any((binaries.parent / "lib").glob("pg_stat_statements.*")):
        # Off until held-mix asks for it.
        settings |= {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "none"}
    folder = embedded.default_data_dir().with_name(f"bench-{os.getpid()}")
    try:
        with embedded.EmbeddedServer(folder, settings=settings, progress=note) as server:
            yield server.dsn, pgbench
    finally:
        shutil.rmtree(folder, ignore_errors=True)
