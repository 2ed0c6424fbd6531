"""Loop delay: how late an async job is woken while four CPU-bound jobs run beside it, in processes or in threads.

The async job naps for 10 ms again and again, and tells a pipe how late each nap ended. On a machine with fewer
processors than jobs a process competes for them as well; a thread competes for the interpreter's lock on top of that.
"""

from __future__ import annotations

from collections.abc import Iterator

from pgqueue.bench.database import connect
from pgqueue.bench.harness import Bench
from pgqueue.bench.results import Result
from pgqueue.bench.tasks import END, Burner, burn_alone, burn_beside, tick

BURNERS = 4
MARGIN = 5.0
"""Seconds that the CPU-bound jobs go on for beside the naps, which start when all of them have."""


def measure(bench: Bench) -> Iterator[Result]:
    seconds = bench.size(500, 200) / 100
    idle = late(bench, None, seconds)
    processes = late(bench, burn_alone, seconds)
    threads = late(bench, burn_beside, seconds)
    for name, share in (("loop-delay-p50", 0.5), ("loop-delay-p99", 0.99)):
        ours, limit = at(processes, share), at(threads, share)
        yield Result(
            name=name,
            ours=ours,
            ceiling=limit,
            unit="ms",
            ratio=limit / ours,
            bar=1.0,
            note=f"{BURNERS} CPU-bound jobs in processes, beside the same in threads; without any: {at(idle, share):.2f} ms",
        )


def late(bench: Bench, burner: Burner | None, seconds: float) -> list[float]:
    """How many milliseconds late each nap ended, in order of size."""
    settings = {"task_processes": str(BURNERS)}
    with (
        bench.database() as dsn,
        connect(dsn) as connection,
        bench.stamps() as started,
        bench.stamps() as woken,
        bench.worker(dsn, "-c", "10", settings=settings) as worker,
    ):
        bench.settle()
        if burner is not None:
            for number in range(BURNERS):
                burner.enqueue(connection, started.path, number, seconds + bench.span(MARGIN))
            for number in range(BURNERS):
                started.wait(number)
        tick.enqueue(connection, path=woken.path, seconds=seconds)
        woken.wait(END)
        worker.hurry()
    delays = sorted(delay * 1e3 for number, delay in woken.at.items() if number != END)
    bench.tell(f"  {burner.name if burner else 'nothing beside it'}: at most {delays[-1]:.1f} ms late")
    return delays


def at(delays: list[float], share: float) -> float:
    """The delay below which that share of them lies; never quite 0."""
    return max(0.001, delays[int(len(delays) * share)])
