"""The machine: SQL functions, driven from several sessions at once, do what the model does (`model.py`), step for step.

In each step a session calls a function, in a transaction that it keeps open or at once, and what comes back is compared
with what the model says. After it the tables are compared with the model's jobs, and with what always holds. A call that
would have to wait for another session is left out: those are arranged in `tests/races/`.

A run that fails is shortened, which takes up to five minutes, and printed with a blob: `@reproduce_failure(…)` with it, put on `Machine`, repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from psycopg.types.json import Jsonb

from tests.model.model import Key, Model, Transaction
from tests.model.world import SESSIONS, World, check, compare, expected_look, looked_at
from tests.sql.acting import call, claim, empty, register

Draw = Callable[[st.SearchStrategy[Any]], Any]
EXAMPLES = int(os.environ.get("PGQUEUE_MODEL_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 30,
    stateful_step_count=80,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,  # a loaded machine is no failure
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)

QUEUES = ("a", "b")
WORKERS = 2
VERBS = {"end_attempts": 7, "claim": 4, "enqueue": 3, "transaction": 4, "bring_back": 3, "promote": 3}
VERBS |= {"enqueue_many": 1, "lose_a_worker": 4, "end_jobs": 2, "pause": 1}
"""The steps, and how often each is taken."""


class NewJob(NamedTuple):
    """The arguments of an enqueue; `delay` in hours."""

    queue: str
    task: str
    priority: int
    max_attempts: int
    delay: int | None = None
    version: int = 0
    unique_key: str | None = None
    on_conflict: str | None = None
    idempotency_key: str | None = None
    dies_with_its_worker: bool = False


new_jobs = st.builds(
    NewJob,
    queue=st.sampled_from(QUEUES),
    task=st.sampled_from(("t", "t", "u")),
    priority=st.sampled_from((5, 0, 9)),
    max_attempts=st.integers(1, 3),
    delay=st.sampled_from((None, None, None, 0, 1, 2)),
    version=st.integers(0, 3),
    unique_key=st.sampled_from((None, "k", "k")),
    on_conflict=st.sampled_from((None, None, "replace", "raise_priority")),
    idempotency_key=st.sampled_from((None, None, None, "i")),
    dies_with_its_worker=st.sampled_from((False, False, False, True)),
)


OPENING = [NewJob("a", "t", 5, n % 3 + 1, unique_key="k" if n == 0 else None) for n in range(5)]
"""What is there when a run begins."""


def subsets(ids: list[Any], most: int = 3) -> st.SearchStrategy[list[Any]]:
    """Some of them, at least one if there is one."""
    return st.lists(st.sampled_from(ids), unique=True, min_size=1, max_size=most) if ids else st.just([])


class Machine(RuleBasedStateMachine):
    """The steps. `world` is set by the test: database and sessions outlive the examples."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.rollback()
        empty(self.world.observer)
        self.model = Model()
        self.transactions = [Transaction(self.model) for _ in range(SESSIONS)]
        self.is_open = [False] * SESSIONS
        self.leases: list[tuple[int, int]] = []
        """Every id and lease that a claim has returned: late results come with old ones."""
        self.fences: list[tuple[int, int]] = []
        """The worker and lease of every claim."""
        self.keep_workers()
        for job in OPENING:
            self.enqueue_one(0, job)

    def teardown(self) -> None:
        self.world.rollback()

    @rule(
        session=st.integers(0, SESSIONS - 1),
        verb=st.sampled_from([verb for verb, times in VERBS.items() for _ in range(times)]),
        data=st.data(),
    )
    def step(self, session: int, verb: str, data: st.DataObject) -> None:
        """One rule for all: hypothesis leaves some rules out of each run, and such runs come to little here."""
        getattr(self, verb)(session, data.draw)
        self.keep_workers()

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        tables = self.world.tables()
        check(tables)
        compare(tables, self.model)

    # Acting ------------------------------------------------------------------------------------------

    def act(self, session: int, function: str, wanted: Any, **arguments: Any) -> None:
        """Calls a function of which the model has said what it returns."""
        note(f"  {session}: {function}({arguments}) should return {wanted}")
        found = call(self.world.sessions[session], function, **arguments)
        assert (sorted(found) if isinstance(found, list) else found) == wanted, function
        self.done(session)

    def done(self, session: int) -> None:
        """A statement outside of a transaction is one; in it, the session sees what it has done."""
        transaction = self.transactions[session]
        if self.is_open[session]:
            seen = transaction.jobs()
            assert looked_at(self.world.sessions[session], sorted(job.id for job in seen)) == expected_look(
                seen
            )
        else:
            transaction.commit()

    # Transactions ------------------------------------------------------------------------------------

    def transaction(self, session: int, draw: Draw) -> None:
        """Begins one, or does something with the one that is open."""
        transaction, connection = self.transactions[session], self.world.sessions[session]
        if not self.is_open[session]:
            connection.execute("begin")
            self.is_open[session] = True
            return
        verb = draw(st.sampled_from((*["commit"] * 5, "rollback", "rollback", "save", "rollback to", "lose")))
        match verb:
            case "save":
                connection.execute("savepoint saved")
                transaction.save()
            case "rollback to" if transaction.saved is not None:
                connection.execute("rollback to saved")
                transaction.rollback_to_saved()
            case _:
                self.end(session, verb)

    def end(self, session: int, verb: str) -> None:
        """Commits a transaction, rolls it back, or loses its connection; without one, nothing happens."""
        if not self.is_open[session]:
            return
        note(f"  {session}: {verb}")
        self.is_open[session] = False
        if verb == "lose":
            self.world.lose(session)
        else:
            self.world.sessions[session].execute("commit" if verb == "commit" else "rollback")
        self.transactions[session].commit() if verb == "commit" else self.transactions[session].rollback()

    # Producers ---------------------------------------------------------------------------------------

    def enqueue(self, session: int, draw: Draw) -> None:
        for job in draw(st.lists(new_jobs, min_size=1, max_size=3)):
            self.enqueue_one(session, job)

    def enqueue_one(self, session: int, job: NewJob) -> None:
        transaction = self.transactions[session]
        keys: list[Key | None] = [("unique", job.task, job.unique_key)] if job.unique_key else []
        keys += [("idempotency", job.task, job.idempotency_key)] if job.idempotency_key else []
        holder = transaction.holder(("unique", job.task, job.unique_key)) if job.unique_key else None
        is_held = holder is not None and job.on_conflict is not None and transaction.is_held(holder.id)
        if is_held or transaction.must_wait_for_keys(keys):
            return
        given = job._asdict() | {"delay": None if job.delay is None else 3600.0 * job.delay}
        given["args"] = {"version": given.pop("version")}
        given["options"] = {"on_crash": "dead"} if given.pop("dies_with_its_worker") else {}
        if (on_conflict := given.pop("on_conflict")) and job.unique_key:
            given["options"]["unique"] = {"on_conflict": on_conflict}
        note(f"  {session}: enqueue({given})")
        (row,) = call(self.world.sessions[session], "enqueue", **given)
        id, outcome = transaction.enqueue(row["id"] if row["created"] else 0, **job._asdict())
        assert row == {"id": id, "created": outcome == "created", "outcome": outcome}
        self.done(session)

    def enqueue_many(self, session: int, draw: Draw) -> None:
        common = {
            "queue": draw(st.sampled_from(QUEUES)),
            "task": "t",
            "max_attempts": draw(st.integers(1, 3)),
        }
        jobs = draw(st.lists(st.sampled_from((5, 5, 0, 9)), min_size=2, max_size=4))
        given = [common | {"priority": priority} for priority in jobs]
        note(f"  {session}: enqueue_many({given})")
        (row,) = call(self.world.sessions[session], "enqueue_many", jobs=Jsonb(given))
        for id, job in zip(row["ids"], given, strict=True):
            assert self.transactions[session].enqueue(id, **NewJob(**job)._asdict()) == (id, "created")
        self.done(session)

    # Workers -----------------------------------------------------------------------------------------

    def keep_workers(self) -> None:
        """There are always some, one of them perhaps about to be rescued by a transaction that is open."""
        while len(self.model.workers) < WORKERS:
            self.model.workers.add(register(self.world.observer, *QUEUES))

    def claim(self, session: int, draw: Draw) -> None:
        worker, lease = draw(st.sampled_from(sorted(self.model.workers))), len(self.fences) + 1
        queues, most = draw(st.permutations(QUEUES)), draw(st.integers(1, 4))
        transaction = self.transactions[session]
        if transaction.must_wait_to_claim(worker) or not transaction.is_registered(worker):
            return
        self.prove_floors()
        wanted = transaction.claim(worker, queues, most, lease)
        note(f"  {session}: claim({worker}, {queues}, {most}), lease {lease}, should return {wanted}")
        jobs = claim(self.world.sessions[session], worker, most, queues=queues, fence=lease)
        assert [job.id for job in jobs] == wanted, "claim"
        for job in jobs:
            seen = transaction.job(job.id)
            assert seen is not None
            told = (job.lease, job.attempt, job.max_attempts, job.crashes, job.lane, job.queue, job.task)
            assert told == (
                *(lease, seen.attempt, seen.max_attempts, seen.crashes, seen.lane, seen.queue, seen.task),
            )
        self.leases += [(job.id, lease) for job in jobs]
        self.fences.append((worker, lease))
        self.done(session)

    def end_attempts(self, session: int, draw: Draw) -> None:
        """With the leases of now, or old ones: a late result. It would wait for who has moved the job."""
        transaction = self.transactions[session]
        running = {(job.id, job.lease) for job in transaction.jobs("running")}
        free = [pair for pair in self.leases if not (pair in running and transaction.is_held(pair[0]))]
        lasting = [pair for pair in free if pair in running]
        ids = {id for id, _ in running}
        late = [pair for pair in free if pair[0] in ids and pair not in running] or free
        is_late = draw(st.sampled_from((False, False, False, True))) or not lasting
        verb = draw(
            st.sampled_from(("complete", "fail", "fail", "fail", "snooze", "release", "end_cancelled"))
        )
        delay = draw(st.sampled_from((0, 0, 0, 1, None)))
        pairs = draw(subsets(late if is_late else lasting, 3 if verb in ("complete", "release") else 1))
        if not pairs:
            return
        held: dict[str, Any] = {"ids": [id for id, _ in pairs], "leases": [lease for _, lease in pairs]}
        id, lease = pairs[0]
        match verb:
            case "complete":
                self.act(session, verb, transaction.complete(pairs), **held)
            case "release":
                self.act(session, verb, transaction.release(pairs), **held)
            case "fail":
                failure = {"id": id, "lease": lease, "delay": delay and 3600 * delay}
                self.act(session, verb, transaction.fail(id, lease, delay), failures=Jsonb([failure]))
            case "snooze":
                wanted = transaction.snooze(id, lease, delay or 0)
                self.act(session, verb, wanted, **held, delays=[3600.0 * (delay or 0)])
            case "end_cancelled":
                reason = "enough" if delay else None
                wanted = transaction.end_cancelled(id, lease, reason)
                self.act(session, verb, wanted, **held, reasons=[reason])

    def lose_a_worker(self, session: int, draw: Draw) -> None:
        """It crashes, and somebody else notices, or its supervisor knows what it ran; or a claim's answer is lost."""
        what_is_known = draw(st.sampled_from(("nothing", "nothing", "nothing", "what ran", "the fence")))
        transaction = self.transactions[session]
        if what_is_known == "nothing":  # and all of them crash
            for worker in sorted(self.model.workers):
                if not transaction.must_wait_to_rescue(worker):
                    wanted = transaction.rescue(worker, None)
                    self.act(session, "rescue", wanted, worker_id=worker, started=None)
            return
        worker = draw(st.sampled_from(sorted(self.model.workers)))
        if transaction.must_wait_to_rescue(worker):
            return
        if what_is_known == "the fence":
            for lease in [lease for owner, lease in self.fences if owner == worker][-1:]:
                given_back = transaction.forget_claim(worker, lease)
                self.act(session, "forget_claim", given_back, worker_id=worker, fence=lease)
            return
        ran = sorted(job.id for job in transaction.jobs("running") if job.worker == worker)
        started = draw(subsets(ran))
        self.act(session, "rescue", transaction.rescue(worker, started), worker_id=worker, started=started)

    # Upkeep ------------------------------------------------------------------------------------------

    def promote(self, session: int, draw: Draw) -> None:
        """Time passes, and what is due becomes ready. Floors are proven, which no claim and no promotion may notice."""
        passed = draw(st.sampled_from((0, 0, 0, 1, 24)))
        most = draw(st.sampled_from((100, 100, 1, 2)))
        self.prove_floors()
        if passed:  # it moves all jobs that wait, so it would wait for who holds one
            for other in range(SESSIONS):
                self.end(other, "commit")
            call(self.world.observer, "retain")
            note(f"  travel({passed} h)")
            call(self.world.observer, "travel", seconds=3600.0 * passed)
            # what has fallen due is due within microseconds, one job after the other
            self.world.observer.execute("select pg_sleep(0.001)")
            self.model.hour += passed
        self.act(session, "promote", self.transactions[session].promote(most), max_jobs=most)

    def prove_floors(self) -> None:
        """Begins a proof, and ends it if that can be done now."""
        call(self.world.observer, "prove_floors")
        call(self.world.observer, "prove_floors")

    # Operators ---------------------------------------------------------------------------------------

    def end_jobs(self, session: int, draw: Draw) -> None:
        """Jobs in any state, but what others hold."""
        verb = draw(st.sampled_from(("cancel", "cancel", "cancel", "delete_jobs")))
        transaction = self.transactions[session]
        ids = draw(subsets(sorted(job.id for job in transaction.jobs() if not transaction.is_held(job.id))))
        wanted = transaction.cancel(ids, "enough") if verb == "cancel" else transaction.delete(ids)
        note(f"  {session}: {verb}({ids}) should return {wanted}")
        reason = {"reason": "enough"} if verb == "cancel" else {}
        rows = call(self.world.sessions[session], verb, ids=ids, **reason)
        assert {row["id"]: row["outcome"] for row in rows} == wanted
        assert len(rows) == len(wanted)
        self.done(session)

    def bring_back(self, session: int, draw: Draw) -> None:
        """Retry and replay skip what others hold, discard waits for it; a replay waits for a key as well."""
        verb = draw(st.sampled_from(("retry", "replay", "replay", "discard")))
        transaction = self.transactions[session]
        found = transaction.jobs("scheduled" if verb == "retry" else "dead")
        if verb == "discard":
            found = [job for job in found if not transaction.is_held(job.id)]
        ids = draw(subsets(sorted(job.id for job in found)))
        letters = [job for job in found if job.id in ids and not transaction.is_held(job.id)]
        keys: list[Key | None] = [("unique", job.task, job.unique_key) for job in letters if job.unique_key]
        if not ids or (verb == "replay" and transaction.must_wait_for_keys(keys)):
            return
        doing = {"retry": transaction.retry, "replay": transaction.replay, "discard": transaction.discard}
        self.act(session, verb, sorted(doing[verb](ids)), ids=ids)

    def pause(self, session: int, draw: Draw) -> None:
        queue, verb = draw(st.sampled_from(QUEUES)), draw(st.sampled_from(("resume", "resume", "pause")))
        transaction = self.transactions[session]
        if not any(queue in other.paused for other in transaction.others()):
            note(f"  {session}: {verb}({queue})")
            call(self.world.sessions[session], verb, queue=queue)
            transaction.pause(queue, paused=verb == "pause")
            self.done(session)
