"""`pgqueue demo`: the order service at work, with faults. The show itself is `examples/orders/demo/`."""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click

import pgqueue
from pgqueue.cli import dsn_option, load_settings
from pgqueue.cli.dev import stop_on_signals
from pgqueue.cli.output import note
from pgqueue.errors import ConfigurationError, NotPermitted

KEPT = Path(".demo")


@click.command()
@click.option(
    "--orders",
    type=click.IntRange(30, 500),
    default=500,
    show_default=True,
    help="How many lines of orders.csv. Each kind of trouble is among the first 30.",
)
@click.option("--seed", type=click.IntRange(0), help="Repeats the choices of a run; each run prints its own.")
@click.option("--keep", is_flag=True, help="Keep the database, to look at it afterwards.")
@dsn_option
def demo(orders: int, seed: int | None, keep: bool) -> int:
    """Watch an order service at work, with faults, for about 20 seconds.

    Orders are placed in transactions, paid, and confirmed by mail. Some transactions are rolled back, some
    cards are declined, one worker process is killed with kill -9, a dead letter is replayed. At the end a
    table says what happened, each line checked against the tables of the service and its mailbox; the exit
    code is 1 when something was lost or done twice.

    A PostgreSQL is started for it and removed afterwards (with --keep it stays in .demo/). Where a database
    is configured, the demo makes one of its own on that server, and touches no other.
    """
    stop_on_signals()
    sys.path.insert(0, str(find_examples()))
    scene = import_module("orders.demo.scene")
    with database(load_settings().dsn, keep=keep) as dsn:
        from pgqueue import migrate

        migrate.upgrade(dsn, tell=note)
        chosen = random.randrange(10_000) if seed is None else seed
        return 0 if scene.run(dsn, lines=orders, seed=chosen) else 1


def find_examples() -> Path:
    """The folder that holds `orders`: in the installed package, else in the repository."""
    package = Path(pgqueue.__file__).resolve().parent
    for folder in (package / "_data" / "examples", package.parent / "examples"):
        if (folder / "orders" / "orders.csv").is_file():
            return folder
    raise ConfigurationError(
        f"pgqueue-jobs is not installed completely: there is no examples/orders in {package}"
    )


@contextlib.contextmanager
def database(configured: str | None, *, keep: bool) -> Iterator[str]:
    """The DSN of a new database, on the configured server or on one that is started here."""
    from psycopg.conninfo import make_conninfo

    with contextlib.ExitStack() as stack:
        server = configured or _start_server(stack, keep=keep)
        name = _create(server)
        dsn = make_conninfo(server, dbname=name)
        if keep:
            stack.callback(note, f"kept the database {name}" if configured else _how_to_look(dsn))
        elif configured:  # one that was started here goes as a whole
            stack.callback(_drop, server, name)
        yield dsn


def _start_server(stack: contextlib.ExitStack, *, keep: bool) -> str:
    from pgqueue.embedded import EmbeddedServer

    folder = (
        KEPT.absolute()
        if keep
        else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgqueue-demo-")))
    )
    return stack.enter_context(EmbeddedServer(folder, progress=note)).dsn


def _create(server: str) -> str:
    """Creates a database with a name that no other has. Raises `NotPermitted` where the role may not."""
    import psycopg
    from psycopg import sql

    name = f"pgqueue_demo_{random.randrange(16**8):08x}"
    with psycopg.connect(server, autocommit=True, connect_timeout=10) as connection:
        try:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        except psycopg.errors.InsufficientPrivilege as error:
            raise NotPermitted(
                "the demo makes a database of its own, and the configured role may not: grant it CREATEDB, or "
                "unset PGQUEUE_DSN and DATABASE_URL, and the demo starts a server of its own"
            ) from error
    note(f"created database {name}")
    return name


def _drop(server: str, name: str) -> None:
    import psycopg
    from psycopg import sql

    with psycopg.connect(server, autocommit=True, connect_timeout=10) as connection:
        # with (force): a worker that had to be killed may have left a session
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _how_to_look(dsn: str) -> str:
    return f"kept the database: pgqueue dev --data-dir {KEPT}, then psql '{dsn}'"
