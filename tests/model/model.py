"""What pgqueue should do, in plain Python: jobs in a dict, and transactions that lay changes over it.

The pictures and rules that this follows are in `sql/README.md`. Three things make it simple:

- A job is a frozen value; a verb replaces it. `place` is drawn anew with each move, so it says who came first.
- Time is counted in hours and passes by `travel` alone.
- A transaction's changes are seen by itself until it commits. What it has changed it holds: claim, promote, retry and
  replay skip that, and everything else would wait. The model never waits, so `must_wait` says what may not be called now.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

State = Literal["scheduled", "ready", "running", "completed", "cancelled", "dead"]
UNFINISHED = ("scheduled", "ready", "running")
IDEMPOTENT_HOURS = 24
CRASHES_FORGIVEN = 3

Use = Literal["claimed for", "locked", "rescued"]
"""What a transaction has done with a worker: many may claim for it at once; who does more is alone."""
Key = tuple[Literal["unique", "idempotency"], str, str]
"""What kind of key, of which task, and the key."""


@dataclass(frozen=True)
class Job:
    """A job as it stands."""

    id: int
    state: State
    queue: str
    task: str
    priority: int
    max_attempts: int
    place: int
    due: int = 0
    attempt: int = 0
    crashes: int = 0
    starts: int = 0
    """Attempts that were not given back, since the last replay."""
    returned: bool = False
    """Whether it goes before the others of its priority."""
    version: int = 0
    """Stands for its args."""
    unique_key: str | None = None
    dies_with_its_worker: bool = False
    worker: int | None = None
    lease: int | None = None
    asked: str | None = None
    """Why somebody wants to cancel it; it runs."""
    reason: str | None = None

    @property
    def lane(self) -> int:
        return 2 * self.priority + (not self.returned)

    @property
    def key(self) -> Key | None:
        """The key that it holds for as long as it is unfinished."""
        return (
            ("unique", self.task, self.unique_key) if self.unique_key and self.state in UNFINISHED else None
        )


@dataclass
class Changes:
    """What a transaction has written, which is also what it holds locked."""

    jobs: dict[int, Job | None] = field(default_factory=dict)
    """None: deleted."""
    idempotent: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """The job, and the hour in which the key expires."""
    keys: set[Key] = field(default_factory=set)
    paused: dict[str, bool] = field(default_factory=dict)
    workers: dict[int, Use] = field(default_factory=dict)


class Model:
    """All that is committed."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.idempotent: dict[Key, tuple[int, int]] = {}
        self.paused: dict[str, bool] = {}
        self.workers: set[int] = set()
        self.hour = 0
        self.transactions: list[Transaction] = []
        self.places = itertools.count(1)

    def travel(self, hours: int) -> int:
        """Lets time pass; how many scheduled jobs are due now."""
        self.hour += hours
        return sum(job.state == "scheduled" and job.due <= self.hour for job in self.jobs.values())


class Transaction:
    """A session's transaction, over and over: `commit` and `rollback` begin the next one."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.changes = Changes()
        self.saved: Changes | None = None
        model.transactions.append(self)

    # The transaction ---------------------------------------------------------------------------------

    def commit(self) -> None:
        for id, job in self.changes.jobs.items():
            if job is None:
                self.model.jobs.pop(id, None)
            else:
                self.model.jobs[id] = job
        self.model.idempotent |= self.changes.idempotent
        self.model.paused |= self.changes.paused
        self.model.workers -= {worker for worker, use in self.changes.workers.items() if use == "rescued"}
        self.rollback()

    def rollback(self) -> None:
        self.changes, self.saved = Changes(), None

    def save(self) -> None:
        self.saved = copy.deepcopy(self.changes)

    def rollback_to_saved(self) -> None:
        assert self.saved is not None
        self.changes = copy.deepcopy(self.saved)

    # What it sees ------------------------------------------------------------------------------------

    def jobs(self, *states: State) -> list[Job]:
        seen = self.model.jobs | self.changes.jobs
        return [job for job in seen.values() if job is not None and (not states or job.state in states)]

    def job(self, id: int) -> Job | None:
        return self.changes.jobs[id] if id in self.changes.jobs else self.model.jobs.get(id)

    def holder(self, key: Key) -> Job | None:
        """The unfinished job that has a unique key."""
        return next((job for job in self.jobs() if job.key == key), None)

    def is_paused(self, queue: str) -> bool:
        return (self.model.paused | self.changes.paused).get(queue, False)

    def is_registered(self, worker: int) -> bool:
        return worker in self.model.workers and self.changes.workers.get(worker) != "rescued"

    # What others hold --------------------------------------------------------------------------------

    def others(self) -> Iterable[Changes]:
        return (other.changes for other in self.model.transactions if other is not self)

    def is_held(self, id: int) -> bool:
        """Whether somebody else's transaction has moved the job. One that it has made is not there at all."""
        return id in self.model.jobs and any(id in other.jobs for other in self.others())

    def must_wait_for_jobs(self, ids: Iterable[int]) -> bool:
        return any(self.is_held(id) for id in ids)

    def must_wait_for_keys(self, keys: Iterable[Key | None]) -> bool:
        wanted = set(keys)
        return any(wanted & (other.keys | other.idempotent.keys()) for other in self.others())

    def must_wait_to_claim(self, worker: int) -> bool:
        return any(other.workers.get(worker, "claimed for") != "claimed for" for other in self.others())

    def must_wait_to_rescue(self, worker: int) -> bool:
        holds_its_jobs = any(
            job.worker == worker and job.state == "running" and self.is_held(job.id)
            for job in self.model.jobs.values()
        )
        return holds_its_jobs or any(worker in other.workers for other in self.others())

    # What it writes ----------------------------------------------------------------------------------

    def _put(self, job: Job, state: State | None = None, **changes: object) -> Job:
        """Moves a job. A running one is in a worker's hands, every other one is not."""
        if state is not None:
            changes |= {"state": state, "place": next(self.model.places)}
            if state != "running":
                changes |= {"lease": None, "asked": None}
            if state in ("scheduled", "ready"):
                changes |= {"worker": None}
        moved = dataclasses.replace(job, **changes)  # type: ignore[arg-type]
        if job.key != moved.key:
            self.changes.keys |= {key for key in (job.key, moved.key) if key is not None}
        self.changes.jobs[job.id] = moved
        return moved

    def _leased(self, id: int, lease: int) -> Job | None:
        """The fence: the job, if it runs under this lease."""
        job = self.job(id)
        return job if job is not None and job.state == "running" and job.lease == lease else None

    def _cancel_as_asked(self, job: Job, reason: str | None) -> None:
        """Whatever ends an attempt but its completion carries out the request to cancel."""
        if reason is not None:
            self._put(job, "cancelled", reason=reason)

    # Producers ---------------------------------------------------------------------------------------

    def enqueue(
        self,
        id: int,
        queue: str,
        task: str,
        priority: int,
        max_attempts: int,
        delay: int | None,
        version: int,
        unique_key: str | None,
        on_conflict: str | None,
        idempotency_key: str | None,
        dies_with_its_worker: bool,
    ) -> tuple[int, str]:
        """The id of the job that exists now, `id` or that of the one that had a key, and what was done to it."""
        idempotent: Key | None = ("idempotency", task, idempotency_key) if idempotency_key else None
        if idempotent is not None:
            known = (self.model.idempotent | self.changes.idempotent).get(idempotent)
            if known is not None and known[1] > self.model.hour:
                self.changes.keys.add(idempotent)
                return known[0], "kept"
        holder = self.holder(("unique", task, unique_key)) if unique_key else None
        result = holder.id if holder is not None else id
        if idempotent is not None:
            self.changes.idempotent[idempotent] = (result, self.model.hour + IDEMPOTENT_HOURS)
        if holder is None:
            job = Job(id, "ready", queue, task, priority, max_attempts, next(self.model.places))
            job = replace(
                job, version=version, unique_key=unique_key, dies_with_its_worker=dies_with_its_worker
            )
            if delay:
                job = replace(job, state="scheduled", due=self.model.hour + delay)
            self.changes.jobs[id] = job
            if job.key is not None:
                self.changes.keys.add(job.key)
            return id, "created"
        if on_conflict is None or holder.state == "running":
            return holder.id, "kept"
        return holder.id, self._meet(holder, on_conflict, version, priority)

    def _meet(self, holder: Job, on_conflict: str, version: int, priority: int) -> str:
        """Does to a waiting job what a new one of its key asks for; what it does not change it holds all the same."""
        self.changes.jobs[holder.id] = holder
        if on_conflict == "replace":
            self._put(holder, version=version)
            return "replaced"
        if priority >= holder.priority:
            return "kept"
        place = next(self.model.places) if holder.state == "ready" else holder.place
        self._put(holder, priority=priority, place=place)
        return "raised"

    # Workers -----------------------------------------------------------------------------------------

    def claim(self, worker: int, queues: Sequence[str], most: int, lease: int) -> list[int] | None:
        """The ids in the order of their start; None: the worker is not registered."""
        if not self.is_registered(worker):
            return None
        claimed: list[int] = []
        for queue in queues:
            line = [job for job in self.jobs("ready") if job.queue == queue and not self.is_held(job.id)]
            if self.is_paused(queue):
                line = []
            for job in sorted(line, key=lambda job: (job.lane, job.place))[: most - len(claimed)]:
                self._put(job, "running", worker=worker, lease=lease, attempt=job.attempt + 1)
                claimed.append(job.id)
        self.changes.workers.setdefault(worker, "claimed for")
        return claimed

    def complete(self, ended: Sequence[tuple[int, int]]) -> list[int]:
        accepted = [job for pair in ended if (job := self._leased(*pair))]
        for job in accepted:
            self._put(job, "completed", starts=job.starts + 1)
        return sorted(job.id for job in accepted)

    def fail(self, id: int, lease: int, delay: int | None) -> list[int]:
        if (job := self._leased(id, lease)) is None:
            return []
        failed = replace(job, starts=job.starts + 1)
        if delay is None or job.attempt >= job.max_attempts:
            now = self._put(failed, "dead", reason="exhausted", returned=False)
        else:
            now = self._put(failed, "scheduled", due=self.model.hour + delay, returned=False)
        self._cancel_as_asked(now, job.asked)
        return [id]

    def snooze(self, id: int, lease: int, delay: int) -> list[int]:
        if (job := self._leased(id, lease)) is None:
            return []
        given_back = replace(job, attempt=job.attempt - 1, returned=False)
        now = self._put(given_back, "scheduled", due=self.model.hour + delay)
        self._cancel_as_asked(now, job.asked)
        return [id]

    def release(self, ended: Sequence[tuple[int, int]]) -> list[int]:
        accepted = [job for pair in sorted(ended) if (job := self._leased(*pair))]
        for job in accepted:
            now = self._put(replace(job, attempt=job.attempt - 1, returned=True), "ready")
            self._cancel_as_asked(now, job.asked)
        return [job.id for job in accepted]

    def forget_claim(self, worker: int, lease: int) -> list[int]:
        claimed = [job for job in self.jobs("running") if (job.worker, job.lease) == (worker, lease)]
        if self.is_registered(worker):
            self.changes.workers[worker] = "locked"
        return self.release([(job.id, lease) for job in claimed])

    def end_cancelled(self, id: int, lease: int, reason: str | None) -> list[int]:
        if (job := self._leased(id, lease)) is None:
            return []
        self._put(job, "cancelled", starts=job.starts + 1, reason=reason or job.asked or "cancelled")
        return [id]

    def rescue(self, worker: int, started: Sequence[int] | None) -> int:
        """A worker died. `started`: the jobs that it was running; None: nobody knows, so all of them."""
        if not self.is_registered(worker):
            return 0
        taken = sorted((job for job in self.jobs("running") if job.worker == worker), key=lambda job: job.id)
        for job in taken:
            self._take_back(job, crashed=started is None or job.id in started)
        self.changes.workers[worker] = "rescued"
        return len(taken)

    def _take_back(self, job: Job, *, crashed: bool) -> None:
        back = replace(job, attempt=job.attempt - 1, returned=True)
        if crashed:
            attempt = job.attempt
            if job.crashes < CRASHES_FORGIVEN:  # then it has another attempt, whatever its limit says
                attempt = min(attempt, job.max_attempts - 1)
            back = replace(back, attempt=attempt, crashes=job.crashes + 1, starts=job.starts + 1)
        has_no_attempt = job.crashes >= CRASHES_FORGIVEN and job.attempt >= job.max_attempts
        if crashed and (has_no_attempt or job.dies_with_its_worker):
            now = self._put(replace(back, attempt=job.attempt, returned=False), "dead", reason="crashed")
        else:
            now = self._put(back, "ready")
        self._cancel_as_asked(now, job.asked)

    # Upkeep ------------------------------------------------------------------------------------------

    def promote(self, most: int) -> int:
        due = [
            job for job in self.jobs("scheduled") if job.due <= self.model.hour and not self.is_held(job.id)
        ]
        for job in _by_time(due)[:most]:
            self._put(job, "ready")
        return min(len(due), most)

    # Operators ---------------------------------------------------------------------------------------

    def cancel(self, ids: Iterable[int], reason: str) -> dict[int, str]:
        """What became of each: cancelled, asked (it runs) or finished (it had ended)."""
        outcomes = {}
        for job in (job for id in ids if (job := self.job(id))):
            if job.state == "running":
                self._put(job, asked=reason)
            elif job.state in ("scheduled", "ready", "dead"):
                self._put(job, "cancelled", reason=reason)
            ended = {"completed": "finished", "cancelled": "finished", "running": "asked"}
            outcomes[job.id] = ended.get(job.state, "cancelled")
        return outcomes

    def delete(self, ids: Iterable[int]) -> dict[int, str]:
        """deleted, or running: left alone."""
        outcomes = {}
        for job in (job for id in ids if (job := self.job(id))):
            outcomes[job.id] = "running" if job.state == "running" else "deleted"
            if job.state != "running":
                if job.key is not None:
                    self.changes.keys.add(job.key)
                self.changes.jobs[job.id] = None
        return outcomes

    def retry(self, ids: Iterable[int]) -> list[int]:
        found = [job for job in self.jobs("scheduled") if job.id in set(ids) and not self.is_held(job.id)]
        for job in _by_time(found):
            self._put(job, "ready")
        return sorted(job.id for job in found)

    def replay(self, ids: Iterable[int]) -> list[int]:
        replayed = []
        found = [job for job in self.jobs("dead") if job.id in set(ids) and not self.is_held(job.id)]
        for job in sorted(found, key=lambda job: (job.task, job.unique_key is None, job.unique_key, job.id)):
            key: Key | None = ("unique", job.task, job.unique_key) if job.unique_key else None
            if key is not None and self.holder(key) is not None:
                self.changes.jobs[job.id] = job  # as it was, but locked
                continue
            self._put(job, "ready", attempt=0, crashes=0, starts=0, reason=None)
            replayed.append(job.id)
        return replayed

    def discard(self, ids: Iterable[int]) -> list[int]:
        found = [job for job in self.jobs("dead") if job.id in set(ids)]
        for job in found:
            self._put(job, "cancelled", reason="discarded")
        return sorted(job.id for job in found)

    def pause(self, queue: str, *, paused: bool) -> None:
        self.changes.paused[queue] = paused


def _by_time(jobs: Iterable[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.due, job.place))
