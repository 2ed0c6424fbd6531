"""What a measurement yields: our figure beside its ceiling."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from operator import truediv
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line: our figure beside its ceiling, both of the same run.

    `ratio` is better when it is larger, whatever the unit. Without a `bar` the line is for information.
    """

    name: str
    ours: float
    ceiling: float | None
    unit: str
    ratio: float | None
    bar: float | None = None
    note: str = ""
    rounds: Mapping[str, list[float]] = field(default_factory=dict)
    """Every round of each side, in the order of measurement."""

    @property
    def verdict(self) -> str:
        """ok, MISSED, or nothing for a line without a bar."""
        if self.bar is None or self.ratio is None:
            return ""
        return "ok" if self.ratio >= self.bar else "MISSED"

    def as_json(self) -> dict[str, Any]:
        """The line for programs."""
        return asdict(self) | {"verdict": self.verdict or None}


def compared(
    name: str,
    ours: list[float],
    ceiling: list[float],
    *,
    bar: float | None = None,
    note: str = "",
    unit: str = "/s",
    by_neighbours: bool = False,
) -> Result:
    """A rate beside its ceiling, each the best of its rounds.

    `by_neighbours`: the median of the ratios of rounds that were measured one after the other, and the medians of the rates. For
    two sides that differ by less than the machine does from one minute to the next.
    """
    of = statistics.median if by_neighbours else max
    best, limit = of(ours), of(ceiling)
    return Result(
        name=name,
        ours=best,
        ceiling=limit,
        unit=unit,
        ratio=statistics.median(map(truediv, ours, ceiling)) if by_neighbours else best / limit,
        bar=bar,
        note=note,
        rounds={"ours": ours, "ceiling": ceiling},
    )


def below(
    name: str, value: float, limit: float, *, unit: str, bar: float | None = 1.0, note: str = ""
) -> Result:
    """A figure that must not be larger than its limit; the ratio is limit to figure."""
    ratio = limit / value if value > 0 else 1.0
    return Result(name=name, ours=value, ceiling=limit, unit=unit, ratio=ratio, bar=bar, note=note)
