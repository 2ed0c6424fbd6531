"""What the suite found: the rows of the table in docs/explanation/guarantees.md, and the writing of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import ModuleType

PAGE = Path(__file__).resolve().parents[2] / "docs/explanation/guarantees.md"
BEGIN, END = (f"<!-- faults: {place}, written by the suite -->" for place in ("begin", "end"))
HEAD = ("fault", "tried", "jobs", "lost", "run again", "doubled", "recovery p50", "max")


@dataclass
class Report:
    """A row: what one fault did to a load."""

    fault: str
    tried: int = 0
    jobs: int = 0
    lost: int = 0
    again: int = 0
    """Starts beyond the first, with a reason on record."""
    doubled: int = 0
    """Jobs that started again without one."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds."""

    def cells(self) -> tuple[str, ...]:
        """As text, in the order of `HEAD`."""
        counts = (self.tried, self.jobs, self.lost, self.again, self.doubled)
        times = (median(self.recoveries), max(self.recoveries)) if self.recoveries else ()
        shown = [f"{seconds:.2f} s" for seconds in times] or ["", ""]
        return (self.fault, *(f"{count:,}" for count in counts), *shown)


def fault_names(*modules: ModuleType) -> list[str]:
    """The faults that the tests of some modules are marked with, in their order."""
    names = []
    for module in modules:
        for test in vars(module).values():
            marks = getattr(test, "pytestmark", []) if callable(test) else []
            names += [str(mark.args[0]) for mark in marks if mark.name == "fault"]
    return names


def table(rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rows_of(page: str) -> dict[str, tuple[str, ...]]:
    """The rows of the page's table by fault; raises ValueError for a page without the two markers."""
    _, text, _ = _parts(page)
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text.strip().split("\n")]
    return {row[0]: row for row in rows[2:] if len(row) == len(HEAD)}


def rewritten(page: str, names: list[str], reports: dict[str, Report]) -> str:
    """The page with the rows of `reports` in it; the others stay, and those of no fault in `names` go."""
    before, _, after = _parts(page)
    rows = rows_of(page) | {name: report.cells() for name, report in reports.items()}
    kept = [rows[name] for name in names if name in rows]
    return f"{before}{BEGIN}\n{table(kept)}\n{END}{after}"


def _parts(page: str) -> tuple[str, str, str]:
    found = re.fullmatch(f"(.*){re.escape(BEGIN)}(.*){re.escape(END)}(.*)", page, re.S)
    if found is None:
        raise ValueError(f"{PAGE.name}: there have to be the lines {BEGIN} and {END}")
    return found[1], found[2], found[3]
