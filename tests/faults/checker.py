"""The promises, over what the producer was told, what handlers wrote and what the tables say. Pure.

    evidence ──► findings(evidence, explained_by) ──► Findings: lost, doubled, wrong; all empty when the promises held

A start beyond the first has to have a reason that is on record:

    raised       the attempt failed, and a retry is due to it
    crashed      its process died or lost its lease while it ran
    interrupted  its process was killed for another job's sake
    refused      its ending was refused, because the server had forgotten the claim in a crash of its own
    cancelled    a stop released it, the attempt given back
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from tests.faults.load import Record

PAYING = ("pays", "pays_threaded")
ALWAYS = {"stumbles": "raised"}
"""The task that raises on purpose, once a job."""


@dataclass(frozen=True)
class JobRow:
    """A row of one of the state tables."""

    id: int
    state: str
    task: str
    n: int
    attempt: int
    crashes: int


@dataclass
class Evidence:
    """All that is known after the last job has ended."""

    record: Record
    jobs: list[JobRow]
    orders: Collection[int]
    effects: Collection[tuple[int, int]]
    """Job and transaction, a row for each payment."""
    starts: dict[int, int]
    reasons: dict[int, Counter[str]] = field(default_factory=dict)
    """Of each job, how often there was each reason for another start."""
    bystanders: Collection[int] = ()
    """Jobs that are not the producer's, and end as their test wants it."""


@dataclass
class Findings:
    """What did not hold."""

    lost: list[int] = field(default_factory=list)
    """Acknowledged jobs that are nowhere."""
    doubled: list[int] = field(default_factory=list)
    """Jobs that started more often than there are reasons for."""
    wrong: list[str] = field(default_factory=list)
    """Everything else, a line each."""

    def lines(self) -> list[str]:
        """All of it, for people."""
        lost = [f"job {id} is lost" for id in self.lost]
        return [*lost, *(f"job {id} ran twice without a reason" for id in self.doubled), *self.wrong]


def runs_again(evidence: Evidence) -> int:
    """Starts beyond the first, but for the ones that a task asks for by raising on purpose."""
    tasks = {job.id: job.task for job in evidence.jobs}
    return sum(
        starts - 1 - min(1, evidence.reasons.get(id, Counter())[ALWAYS.get(tasks[id], "")])
        for id, starts in evidence.starts.items()
        if starts > 1 and id in tasks and id not in evidence.bystanders
    )


def findings(evidence: Evidence, explained_by: Iterable[str] = ()) -> Findings:
    """What did not hold, when nothing but `explained_by` may have made jobs start again."""
    found = Findings()
    _look_for_jobs(evidence, found)
    _look_at_transactions(evidence, found)
    _look_at_effects(evidence, found)
    _look_at_attempts(evidence, set(explained_by), found)
    return found


def _look_for_jobs(evidence: Evidence, found: Findings) -> None:
    """Each acknowledged job is there, once, and has completed."""
    rows = Counter(job.id for job in evidence.jobs)
    promised = [id for ids in evidence.record.acknowledged.values() for id in ids]
    found.lost += [id for id in promised if rows[id] == 0]
    found.wrong += [f"job {id} is in {count} states at once" for id, count in rows.items() if count > 1]
    found.wrong += [
        f"job {job.id} ({job.task}) has not completed, it is {job.state}"
        for job in evidence.jobs
        if job.state != "completed" and job.id not in evidence.bystanders
    ]
    found.wrong += [
        f"job {job.id} has completed without having run"
        for job in evidence.jobs
        if job.state == "completed" and not evidence.starts.get(job.id)
    ]


def _look_at_transactions(evidence: Evidence, found: Findings) -> None:
    """An order and its jobs exist together or not at all, and each job once however often its enqueue was repeated."""
    acknowledged, rolled_back = evidence.record.acknowledged, evidence.record.rolled_back
    ordered = {n for n in acknowledged if n >= 0}
    found.wrong += [f"order {n} is missing" for n in sorted(ordered - {*evidence.orders})]
    found.wrong += [
        f"order {n} was not acknowledged, and is there" for n in sorted({*evidence.orders} - ordered)
    ]
    for job in evidence.jobs:
        if job.n in rolled_back:
            found.wrong.append(f"job {job.id} is of a transaction that was rolled back, {job.n}")
        elif job.id not in (*acknowledged.get(job.n, ()), *evidence.bystanders) and job.task != "receipt":
            found.wrong.append(f"job {job.id} was enqueued a second time for transaction {job.n}")


def _look_at_effects(evidence: Evidence, found: Findings) -> None:
    """A transactional job's write and its child came with its completion, once."""
    effects = Counter(job for job, _ in evidence.effects)
    completed = {job.id for job in evidence.jobs if job.task in PAYING and job.state == "completed"}
    found.wrong += [f"job {id} has paid {effects[id]} times" for id in completed if effects[id] != 1]
    found.wrong += [f"job {id} has paid and has not completed" for id in effects.keys() - completed]
    paid = Counter(n for _, n in evidence.effects)
    receipts = Counter(job.n for job in evidence.jobs if job.task == "receipt")
    found.wrong += [
        f"transaction {n} has {receipts[n]} receipts for {paid[n]} payments"
        for n in paid.keys() | receipts.keys()
        if paid[n] != receipts[n]
    ]


def _look_at_attempts(evidence: Evidence, explained_by: set[str], found: Findings) -> None:
    """Each start has its reason, each reason is one that the fault gives, and attempts and crashes are counted so."""
    for job in evidence.jobs:
        reasons = evidence.reasons.get(job.id, Counter[str]())
        extra = evidence.starts.get(job.id, 0) - 1
        if extra > sum(reasons.values()):
            found.doubled.append(job.id)
        if job.id in evidence.bystanders:
            continue
        for reason, times in reasons.items():
            free = 1 if ALWAYS.get(job.task) == reason else 0
            if times > free and reason not in explained_by:
                found.wrong.append(
                    f"job {job.id} ({job.task}) was {reason} {times} times, which nothing here explains"
                )
        attempts = 1 + reasons["raised"] + reasons["crashed"]
        if job.attempt != attempts:
            found.wrong.append(
                f"job {job.id} counts {job.attempt} attempts where {attempts} are on record: {dict(reasons)}"
            )
        if job.crashes != reasons["crashed"]:
            found.wrong.append(
                f"job {job.id} counts {job.crashes} crashes where {reasons['crashed']} are on record"
            )
