"""The page that Prometheus scrapes, in its text format or OpenMetrics. Needs prometheus_client."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from pgqueue.metrics.fleet import FleetFigures, Reading
from pgqueue.observe.tally import Histogram, Outcome, Snapshot
from pgqueue.version import __version__


def page(snapshot: Snapshot, reading: Reading, accept: str = "") -> tuple[str, bytes]:
    """The content type and the page, in the format that a scrape's Accept header asks for."""
    encode, content_type = choose_encoder(accept)
    families: Any = _Families(snapshot, reading)  # all that an encoder asks of a registry is to collect
    return content_type, encode(families)


@dataclass(frozen=True, slots=True)
class _Families:
    snapshot: Snapshot
    reading: Reading

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "pgqueue_build", "The release of pgqueue that runs.", value={"version": __version__}
        )
        yield from _process(self.snapshot)
        yield GaugeMetricFamily(
            "pgqueue_database_up", "Whether the database answers: 1 or 0.", value=float(self.reading.answers)
        )
        if self.reading.figures is not None:
            yield from _fleet(self.reading.figures)


def _process(snapshot: Snapshot) -> Iterator[Metric]:
    """What this process and its children have done since they started."""
    jobs = CounterMetricFamily(
        "pgqueue_jobs", "Attempts that have ended here, by outcome.", labels=["queue", "task", "outcome"]
    )
    # From the first attempt of a task on every outcome is there, 0 at first: Prometheus sees no increase in a
    # counter that comes into being as 1.
    tasks = sorted({(queue, task) for queue, task, _ in snapshot.jobs})
    outcomes = sorted({*get_args(Outcome), *(outcome for _, _, outcome in snapshot.jobs)})
    for (queue, task), outcome in itertools.product(tasks, outcomes):
        jobs.add_metric([queue, task, outcome], snapshot.jobs.get((queue, task, outcome), 0))
    yield jobs
    yield _histogram(
        "pgqueue_job_duration_seconds",
        "How long attempts took here, from the start of the handler.",
        snapshot.durations,
    )
    yield _histogram(
        "pgqueue_job_wait_seconds", "How long jobs had been due when they were claimed here.", snapshot.waits
    )


def _fleet(figures: FleetFigures) -> Iterator[Metric]:
    """What the database says: the same on every worker."""
    depth = GaugeMetricFamily(
        "pgqueue_queue_depth", "Unfinished jobs, by state, as last counted.", labels=["queue", "state"]
    )
    for queue in figures.queues:
        for state in ("ready", "scheduled", "blocked", "running"):
            depth.add_metric([queue.queue, state], getattr(queue, state))
    yield depth
    yield _gauge(
        "pgqueue_oldest_ready_age_seconds",
        "How long the ready job that waits longest has been due; 0: none is ready.",
        "queue",
        ((queue.queue, queue.oldest_ready_seconds or 0.0) for queue in figures.queues),
    )
    yield _gauge(
        "pgqueue_workers",
        "Living workers that serve the queue.",
        "queue",
        ((queue.queue, queue.workers) for queue in figures.queues),
    )
    yield _gauge(
        "pgqueue_queue_paused",
        "Whether the queue is paused: 1 or 0.",
        "queue",
        ((queue.queue, queue.is_paused) for queue in figures.queues),
    )
    yield _gauge(
        "pgqueue_dead_letters",
        "Dead letters, as last counted.",
        "queue",
        ((queue.queue, queue.dead) for queue in figures.queues),
    )
    yield _gauge(
        "pgqueue_schedule_overdue_seconds",
        "How long the schedule's due time has passed without a run; 0: it has not.",
        "schedule",
        figures.schedules.items(),
    )
    healthy = GaugeMetricFamily(
        "pgqueue_healthy",
        "Whether a check of pgqueue_bi.health is healthy: 1 or 0; no queue: it is about the whole.",
        labels=["queue", "check"],
    )
    for check in figures.checks:
        healthy.add_metric([check.queue or "", check.check_name], float(check.is_healthy))
    yield healthy
    yield GaugeMetricFamily(
        "pgqueue_leader_age_seconds",
        "Since somebody led a round of upkeep; +Inf: nobody ever has.",
        value=_or_endless(figures.leader_seconds),
    )
    yield GaugeMetricFamily(
        "pgqueue_figures_age_seconds",
        "Since the end of the last minute that was rolled up; +Inf: none was.",
        value=_or_endless(figures.figures_seconds),
    )


def _gauge(name: str, help: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=[label])
    for labelled, value in values:
        family.add_metric([labelled], float(value))
    return family


def _histogram(name: str, help: str, histograms: dict[tuple[str, str], Histogram]) -> Metric:
    family = HistogramMetricFamily(name, help, labels=["queue", "task"])
    for key, histogram in sorted(histograms.items()):
        bounds = (*map(floatToGoString, histogram.bounds), "+Inf")
        counts = itertools.accumulate(histogram.counts)
        family.add_metric(list(key), list(zip(bounds, counts, strict=True)), histogram.sum)
    return family


def _or_endless(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds
