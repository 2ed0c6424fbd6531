"""Results for people: a line each on the terminal, a page of Markdown for the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pgqueue.bench.results import Result

HEADINGS = ("measurement", "ours", "ceiling", "ratio", "bar", "", "note")
_WIDTHS = (24, 14, 14, 6, 5, 6)


def cells(result: Result) -> tuple[str, ...]:
    """A result as text, in the order of `HEADINGS`."""
    return (
        result.name,
        _figure(result.ours, result.unit),
        _figure(result.ceiling, result.unit),
        "" if result.ratio is None else f"{result.ratio:.2f}",
        "" if result.bar is None else f"{result.bar:.2f}",
        result.verdict,
        result.note,
    )


def line(texts: Sequence[str]) -> str:
    """Cells in columns: the name to the left, figures to the right.

    >>> line(("drain", "90,000 /s", "60,000 /s", "1.50", "1.00", "ok", ""))
    'drain                          90,000 /s       60,000 /s    1.50   1.00  ok'
    """
    name, *figures, verdict, note = texts
    columns = [f"{figure:>{width}}" for figure, width in zip(figures, _WIDTHS[1:5], strict=True)]
    return "  ".join([f"{name:<{_WIDTHS[0]}}", *columns, f"{verdict:<{_WIDTHS[5]}}", note]).rstrip()


def markdown(
    results: Sequence[Result], machine: Mapping[str, str], loads: Mapping[str, float], *, quick: bool
) -> str:
    """The page: what was measured on, then the table."""
    load = f"{min(loads.values()):.1f} to {max(loads.values()):.1f}" if loads else "not known"
    told = [f"{name} {value}" for name, value in machine.items()]
    lines = [
        "# What `pgqueue bench` measured",
        "",
        "Written by `pgqueue bench --report`; do not edit. Ratios are within one run: the two sides alternate, and",
        "the best round of each counts. A ratio is better when it is larger; `ours` is better when it is larger for",
        "`/s`, and when it is smaller for `ms` and `buf`.",
        "",
        f"- {', '.join(told)}",
        f"- {'quick sizes' if quick else 'full sizes'}; load average when a measurement began: {load}",
        "",
        _row((*HEADINGS[:5], "verdict", "note")),
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
        *(_row(cells(result)) for result in results),
    ]
    return "\n".join(lines) + "\n"


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()
