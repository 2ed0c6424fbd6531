"""`pgqueue top`: queues, workers and failures, live. It reads views alone."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import psycopg

from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.connecting import connected
from pgqueue.cli.dev import stop_on_signals
from pgqueue.cli.output import json_option, plain, print_json
from pgqueue.cli.picture import drawn, look
from pgqueue.drivers import translate
from pgqueue.errors import PgqueueError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SHOWN = {"queues": 20, "workers": 12, "failures": 5}
"""Rows on a terminal; all of them elsewhere."""


@click.command()
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="Seconds from look to look.",
)
@click.option(
    "--once", is_flag=True, help="Print one look and end; what happens anyway where stdout is no terminal."
)
@json_option
@dsn_option
def top(interval: float, once: bool, as_json: bool) -> None:
    """Watch queues, workers, and what fails most. q or Ctrl-C ends it.

    Depths are as upkeep has counted them, about 10 seconds ago at the most; `later` are jobs that are scheduled or blocked;
    done/m and failed are of the last five minutes that were rolled up; workers are followed by their slots. Failures are
    those groups of which one failed within the last hour, with their counts of all time.
    """
    from rich.console import Console

    dsn = required_dsn(load_settings())
    if once or as_json or not sys.stdout.isatty():
        with connected(dsn, only_reads=True) as connection:
            seen = look(connection)
        if as_json:
            print_json(seen)
        else:
            console = Console(highlight=False, width=None if sys.stdout.isatty() else 100_000)
            console.print(drawn(seen, limits={}))
        return
    stop_on_signals()
    with contextlib.suppress(KeyboardInterrupt):
        _watch(dsn, interval, Console(highlight=False))


# Live -----------------------------------------------------------------------------------------------------


class Viewer:
    """Looks again and again; while the database is away it shows the last look, and says so."""

    def __init__(self, dsn: str):
        self._dsn = dsn
        self._stack = contextlib.ExitStack()
        self._connection: psycopg.Connection[Any] | None = None
        self._last: RenderableType | None = None

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def picture(self) -> RenderableType:
        """The next one. Raises what the first look raises."""
        from rich.console import Group
        from rich.text import Text

        try:
            if self._connection is None:
                self._connection = self._stack.enter_context(connected(self._dsn, only_reads=True))
            self._last = drawn(look(self._connection), limits=SHOWN)
        except (psycopg.Error, PgqueueError) as error:
            if self._last is None:
                raise
            self._connection = None
            self._stack.close()
            why = plain(str(translate(error) or error).splitlines()[0])
            return Group(
                Text(f"the database cannot be asked, what follows is old: {why}", style="bold red"),
                self._last,
            )
        return self._last


def _watch(dsn: str, interval: float, console: Console) -> None:
    """Shows look after look until q is pressed."""
    from rich.live import Live

    with Viewer(dsn) as viewer:
        picture = (
            viewer.picture()
        )  # before the screen is taken: what is wrong at once is said as by any command
        with (
            _keyboard() as pressed_q,
            Live(picture, console=console, screen=True, auto_refresh=False) as live,
        ):
            live.refresh()
            while not pressed_q(interval):
                live.update(viewer.picture(), refresh=True)


@contextlib.contextmanager
def _keyboard() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds for a q, and says whether one was pressed."""
    try:
        import termios
        import tty
    except ImportError:  # Windows: Ctrl-C ends it
        yield _pause
        return
    if not sys.stdin.isatty():
        yield _pause
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)  # keys come at once and are not echoed; Ctrl-C is still a signal
    try:
        yield partial(_pressed_q, fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _pressed_q(fd: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            keys = os.read(fd, 64)
            if not keys or b"q" in keys.lower():  # no keys: the terminal is gone
                return True
    return False


def _pause(seconds: float) -> bool:
    time.sleep(seconds)
    return False
