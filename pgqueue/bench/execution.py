"""Execution: what a timeout, a transaction and a batch cost, each as a drain beside the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pgqueue.bench.database import payload
from pgqueue.bench.drain import drain
from pgqueue.bench.harness import Bench
from pgqueue.bench.results import Result, compared


def measure(bench: Bench) -> Iterator[Result]:
    jobs, transactions = bench.size(100_000, 50_000), bench.size(10_000, 5_000)
    cpu: dict[str, list[float]] = {}

    def side(task: str, count: int, args: str | None = None) -> float:
        rate, microseconds = drain(bench, task, count, args)
        cpu.setdefault(task, []).append(microseconds)
        return rate

    # The first two differ by less than two rounds of one do: more rounds, each beside its neighbour.
    figures = bench.alternate(
        {"plain": partial(side, "noop", jobs), "timed": partial(side, "noop_timed", jobs)},
        rounds=bench.rounds**2,
    ) | bench.alternate(
        {
            "batch": partial(side, "noop_batch", jobs, f'{{"item": {payload()}}}'),
            "transactional": partial(side, "noop_transactional", transactions),
        }
    )
    plain = figures["plain"]
    for name, side_name, task, bar, what in (
        ("timeout", "timed", "noop_timed", 0.97, f"{jobs:,} async no-op jobs with a timeout"),
        ("batch", "batch", "noop_batch", None, f"{jobs:,} jobs in batches of up to 50"),
        (
            "transactional",
            "transactional",
            "noop_transactional",
            None,
            f"{transactions:,} jobs, each in a transaction with its completion, 5 connections",
        ),
    ):
        note = f"{what}, {min(cpu[task]):.1f} us of the worker's CPU a job ({min(cpu['noop']):.1f} for a plain one)"
        # of the others there are fewer rounds, and no bar
        yield compared(name, figures[side_name], plain, bar=bar, note=note, by_neighbours=bar is not None)
