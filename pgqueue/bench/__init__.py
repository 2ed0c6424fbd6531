"""`pgqueue bench`: what this machine does, as ratios within one run.

A measurement is a function in a file of its own. It gets a `Bench` (a server, sizes, progress) and yields
`Result`s: our figure, the ceiling measured beside it in the same minute, their ratio and the bar. The two
sides alternate, and the best round of each counts, because noise only ever makes slower.

Workers are real ones, `pgqueue worker` in processes of their own with the default settings; `tasks.py` is
their app.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pgqueue.bench.bi import measure as bi
from pgqueue.bench.ceiling import measure as ceiling
from pgqueue.bench.drain import measure as drain
from pgqueue.bench.enqueue import measure as enqueue
from pgqueue.bench.execution import measure as execution
from pgqueue.bench.harness import Bench
from pgqueue.bench.held import measure as held
from pgqueue.bench.held_mix import measure as held_mix
from pgqueue.bench.idle import measure as idle
from pgqueue.bench.loop import measure as loop_delay
from pgqueue.bench.on_time import measure as on_time
from pgqueue.bench.results import Result
from pgqueue.bench.wake import measure as wake

__all__ = ["MEASUREMENTS", "Bench", "Result", "measure"]

MEASUREMENTS: Mapping[str, Callable[[Bench], Iterator[Result]]] = {
    "ceiling": ceiling,
    "drain": drain,
    "enqueue": enqueue,
    "execution": execution,
    "wake": wake,
    "on-time": on_time,
    "idle": idle,
    "held": held,
    "held-mix": held_mix,
    "bi": bi,
    "loop-delay": loop_delay,
}
"""Every measurement by name, in the order in which they run."""


def measure(bench: Bench, names: Sequence[str]) -> Iterator[Result]:
    """Runs the measurements of these names, or all of them, and yields each result as it comes."""
    for name in names or MEASUREMENTS:
        bench.begin(name)
        yield from MEASUREMENTS[name](bench)
