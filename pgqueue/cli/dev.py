"""`pgqueue dev`: a local PostgreSQL and a worker, for development."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgqueue.cli import load_settings
from pgqueue.cli.output import note
from pgqueue.cli.worker import parse_queues
from pgqueue.errors import ConfigurationError

if TYPE_CHECKING:
    from pgqueue.embedded import EmbeddedServer
    from pgqueue.settings import Settings

_LOCAL = {"", "localhost", "127.0.0.1", "::1"}


@click.command()
@click.argument("app", metavar="[MODULE:APP]", required=False)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the server's data is. Default: PGQUEUE_EMBEDDED_DIR, or pgqueue/embedded in your data folder.",
)
@click.option(
    "-q",
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME[:LIMIT]",
    help="A queue for the worker to serve. Repeat it. Default: default.",
)
@click.option("-c", "--concurrency", type=click.IntRange(1, 10_000), help="Slots of each worker process.")
@click.option("--processes", type=click.IntRange(1, 256), help="How many worker processes. Default: 1.")
def dev(app: str | None, data_dir: Path | None, **options: Any) -> int:
    """Run a local PostgreSQL with the schema in it, and a worker for MODULE:APP if that is given.

    The server's data stays from one run to the next. A second `pgqueue dev` on the same data joins the
    server that is running. Ctrl-C stops the worker (its jobs may end first), then the server.

    Where a database is configured that is on this machine, that one is brought up to date and used, and no
    server is started. One on another machine is refused: `pgqueue db upgrade` and `pgqueue worker` are for it.
    """
    settings = load_settings(queues=options.pop("queues") or None, **options)
    parse_queues(settings.queues)
    stop_on_signals()  # the worker has handlers of its own while it runs
    with ExitStack() as stack:
        server, dsn = _database(stack, settings, data_dir)
        from pgqueue import migrate

        migrate.upgrade(dsn, tell=note)
        if server is not None:
            _tell_how_to_connect(server, dsn)
        if app is not None:
            return _work(app, load_settings(dsn=dsn, queues=settings.queues, **options))
        if server is not None and server.is_owner:
            _serve(server)
        return 0


def stop_on_signals() -> None:
    """SIGINT and SIGTERM both raise KeyboardInterrupt, so that everything that was started is stopped in order.

    SIGINT is named too: a process that a script starts in the background inherits it as ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def _serve(server: EmbeddedServer) -> None:
    """Keeps the server running until Ctrl-C."""
    note("Ctrl-C stops it")
    try:
        while True:
            time.sleep(1.0)
            server.start()  # nothing, unless it died
    except KeyboardInterrupt:
        note("stopping")


def _database(
    stack: ExitStack, settings: Settings, data_dir: Path | None
) -> tuple[EmbeddedServer | None, str]:
    """The server that was started or joined (None: the configured one), and the DSN to use."""
    from pgqueue.cli.connecting import parts_of
    from pgqueue.embedded import EmbeddedServer, default_data_dir

    folder = data_dir or default_data_dir()
    name = "postgres"
    if settings.dsn is not None:
        given = {key: str(value) for key, value in parts_of(settings.dsn).items()}
        if not _is_of(folder, given):
            _refuse_elsewhere(given, settings)
            note(f"using the configured database ({settings.sources['dsn']}), no server is started")
            return None, settings.dsn
        name = given.get("dbname", name)
    server = stack.enter_context(EmbeddedServer(folder, progress=note))
    return server, server.dsn_for(name)


def _is_of(folder: Path, given: dict[str, str]) -> bool:
    """Whether a DSN is one that this command printed for `folder`: to export it is what it is printed for."""
    try:
        known = json.loads((folder / "server.json").read_text())
        hosts, port = {known["sockets"], "127.0.0.1", "localhost"}, str(known["port"])
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return given.get("host") in hosts and given.get("port") == port


def _refuse_elsewhere(given: dict[str, str], settings: Settings) -> None:
    """Raises `ConfigurationError` for a database that is not on this machine.

    The schema of somebody's production is not upgraded, and its jobs are not run, by a command for development.
    """
    hosts = (given.get("hostaddr") or given.get("host") or "").split(",")
    if away := [host for host in hosts if host not in _LOCAL and not host.startswith(("/", "@"))]:
        raise ConfigurationError(
            f"`pgqueue dev` is for databases on this machine, and the configured one "
            f"({settings.sources['dsn']}) is on {away[0]}: unset it, and a local server is started; "
            "or use `pgqueue db upgrade` and `pgqueue worker`"
        )


def _tell_how_to_connect(server: EmbeddedServer, dsn: str) -> None:
    from urllib.parse import urlsplit

    port = urlsplit(server.tcp_url).port
    click.echo(f"PostgreSQL is running, its data is in {server.data_dir}")
    click.echo(f"  your application:  export PGQUEUE_DSN='{dsn}'")
    click.echo(f"  psql:              psql '{dsn}'")
    click.echo(
        f"  other tools:       host 127.0.0.1, port {port}, user postgres, database postgres, the password in "
        f"{server.data_dir / 'server.json'}"
    )


def _work(app: str, settings: Settings) -> int:
    from pgqueue.observe.logging import configure_logging
    from pgqueue.worker.supervisor import Supervisor

    configure_logging(format=settings.log_format, level=settings.log_level)
    # In this process and not in one of its own: whatever ends this one ends the worker as well.
    supervisor = Supervisor(app=app, settings=settings, limits=parse_queues(settings.queues))
    return asyncio.run(supervisor.run())
