"""What one sees of the show: progress on stderr, the audit's table on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orders.demo.audit import Claim

PLAIN_SECONDS = 2.0
"""Where stderr is no terminal, the counts are a line as often as this."""
MOST_PROBLEMS = 10


@dataclass(frozen=True, slots=True)
class Counts:
    """Where things stand."""

    orders: int = 0
    placed: int = 0
    confirmed: int = 0
    mails: int = 0
    scheduled: int = 0
    ready: int = 0
    running: int = 0
    completed: int = 0
    dead: int = 0

    @property
    def unfinished(self) -> int:
        """Jobs that have not ended."""
        return self.scheduled + self.ready + self.running


class Screen:
    """Events as lines; the counts below them, in place on a terminal and now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._started_at = time.monotonic()
        self._counted_at = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(Text(), console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started_at

    def say(self, event: str, style: str = "") -> None:
        """A line that stays. `event` is text and no markup: it may quote what came from outside."""
        self._console.print(Text(f"{self.seconds:5.1f} s  "), Text(event, style), sep="", soft_wrap=True)

    def show(self, counts: Counts) -> None:
        """The counts of this moment."""
        if self._live is not None:
            self._live.update(_picture(counts))
        elif self.seconds - self._counted_at >= PLAIN_SECONDS:
            self._counted_at = self.seconds
            self.say(
                f"{counts.placed} of {counts.orders} orders placed, {counts.confirmed} confirmed; jobs: "
                f"{counts.unfinished} unfinished, {counts.completed} completed, {counts.dead} dead"
            )


def _picture(counts: Counts) -> Group:
    bars = Table.grid(padding=(0, 2))
    bars.add_column(width=9)
    bars.add_column(width=50)
    for name, value in (("placed", counts.placed), ("confirmed", counts.confirmed)):
        bars.add_row(name, ProgressBar(max(counts.orders, 1), value, width=50), f"{value}")
    jobs = Text.assemble(
        "jobs       ",
        (f"{counts.ready} ready  ", "cyan"),
        (f"{counts.scheduled} scheduled  ", "blue"),
        (f"{counts.running} running  ", "yellow"),
        (f"{counts.completed} completed  ", "green"),
        (f"{counts.dead} dead", "red"),
        f"     {counts.mails} mails",
    )
    return Group(Text(), bars, jobs)


def print_claims(claims: Sequence[Claim]) -> None:
    """The table, and below it what is wrong, to stdout. In a pipe no line is cut or wrapped."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("what happened")
    table.add_column("", justify="right")
    table.add_column("checked against the tables and the mailbox")
    for claim in claims:
        mark = Text("no", "bold red") if claim.wrong else Text("ok", "green")
        table.add_row(mark, Text(claim.what), Text(claim.found), Text(claim.checked))
    console.print(table)
    for claim in claims:
        for problem in claim.wrong[:MOST_PROBLEMS]:
            console.print(Text(f"{claim.what}: {problem}", "red"), soft_wrap=True)
        if len(claim.wrong) > MOST_PROBLEMS:
            console.print(f"{claim.what}: and {len(claim.wrong) - MOST_PROBLEMS} more", soft_wrap=True)
