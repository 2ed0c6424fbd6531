"""What the jobs of this process and its children have come to since it started: counts and histograms, for metrics."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

BOUNDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    900.0,
    3600.0,
)
"""Upper bounds of the histograms' buckets, in seconds; the last bucket has none."""

Outcome: TypeAlias = Literal["completed", "failed", "dead", "cancelled", "snoozed", "released"]
"""What an attempt came to. A dead letter is counted as dead, and not as failed."""


class Histogram(msgspec.Struct, array_like=True):
    """How often a time fell between two bounds, and the sum of all; `counts` has one more entry than `bounds`."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: float = 0.0

    @property
    def bounds(self) -> tuple[float, ...]:
        """Upper bounds in seconds."""
        return BOUNDS

    def observe(self, seconds: float) -> None:
        """Counts one time; one that a clock says was less than nothing took no time."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += max(0.0, seconds)

    def add(self, other: Histogram) -> None:
        """Adds what another has counted."""
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


class TaskFigures(msgspec.Struct, array_like=True):
    """What the jobs of one task in one queue came to, over some time."""

    queue: str
    task: str
    outcomes: dict[str, int] = msgspec.field(default_factory=dict)
    durations: Histogram = msgspec.field(default_factory=Histogram)
    """From the start of a handler until its ending was recorded."""
    waits: Histogram = msgspec.field(default_factory=Histogram)
    """From the time at which a job was due until it was claimed, for jobs that have started."""


@dataclass
class Snapshot:
    """The figures at one moment; the keys are (queue, task, outcome) and (queue, task)."""

    jobs: dict[tuple[str, str, str], int] = field(default_factory=dict)
    durations: dict[tuple[str, str], Histogram] = field(default_factory=dict)
    waits: dict[tuple[str, str], Histogram] = field(default_factory=dict)


class Tally:
    """Adds up what workers report. From any thread."""

    def __init__(self) -> None:
        self.is_wanted = False
        """Whether somebody will look: workers that are started in this process after that report to it."""
        self._lock = threading.Lock()
        self._jobs: Counter[tuple[str, str, str]] = Counter()
        self._durations: dict[tuple[str, str], Histogram] = {}
        self._waits: dict[tuple[str, str], Histogram] = {}

    def add(self, figures: Iterable[TaskFigures]) -> None:
        """Adds what has happened since the last report of the same worker."""
        with self._lock:
            for task in figures:
                key = (task.queue, task.task)
                for outcome, count in task.outcomes.items():
                    self._jobs[(*key, outcome)] += count
                self._durations.setdefault(key, Histogram()).add(task.durations)
                self._waits.setdefault(key, Histogram()).add(task.waits)

    def snapshot(self) -> Snapshot:
        """A copy."""
        with self._lock:
            return Snapshot(dict(self._jobs), _copies(self._durations), _copies(self._waits))


def _copies(histograms: dict[tuple[str, str], Histogram]) -> dict[tuple[str, str], Histogram]:
    return {key: Histogram(list(value.counts), value.sum) for key, value in histograms.items()}


process_tally = Tally()
"""That of this process: a supervisor's, or of the in-process workers of an application."""
