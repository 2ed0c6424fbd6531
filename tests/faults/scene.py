"""A database with workers on it and a load: where a fault is injected, its end is measured, and the promises are checked."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from pgqueue.worker.decide import SUSPICIOUS
from tests.faults import tasks
from tests.faults.checker import Evidence, JobRow, findings, runs_again
from tests.faults.load import Load, Record
from tests.faults.report import Report
from tests.support import wait_until
from tests.worker.conftest import end
from tests.worker.harness import History, Worker, children_of


def slack() -> float:
    """Seconds that a machine which does other things as well may add to what is promised: the more it does, the more."""
    return 3.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_for_children(worker: Worker, count: int) -> None:
    """Waits until a worker has so many children at work."""
    wait_until(lambda: len(worker.children()) == count, 30, f"{count} children")


PROBES = -1_000_000
"""The probes count down from here."""

BEAT = -2_000_000
"""What the args of the jobs of a schedule say as `n`."""

_BEAT = (
    "select pgqueue.schedule('beat', 'plain', jsonb_build_object('n', %s), every => 1, overlap => 'allow')"
)
_STATES = ("ready", "scheduled", "blocked", "running")
_ALL_JOBS = " union all ".join(
    [
        *(
            f"select id, '{state}' as state, task, (args ->> 'n')::bigint as n, attempt, crashes from pgqueue.{state}_jobs"
            for state in _STATES
        ),
        "select id, state, task, (args ->> 'n')::bigint, attempt, crashes from pgqueue.finished_jobs",
        "select id, 'dead', task, (args ->> 'n')::bigint, attempt, crashes from pgqueue.dead_letters",
    ]
)
_SUSPECTS = f"select id from ({_ALL_JOBS}) as job where crashes >= {SUSPICIOUS} and id = any (%s)"
_UNFINISHED = "select " + " + ".join(f"(select count(*) from pgqueue.{state}_jobs)" for state in _STATES)
_LEFT = " union all ".join(
    f"(select id, '{state}', task, run_at - now(), attempt, crashes from pgqueue.{state}_jobs order by id limit 5)"
    for state in _STATES
)
_FAILURES = """
    select job_id, case when error <> 'pgqueue.Crashed' then 'raised'
                        when message like '%this job is not to blame' then 'interrupted' else 'crashed' end
      from pgqueue.job_failures"""
_TERMINATE = """
    select count(*) from (
        select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and starts_with(application_name, 'pgqueue ')
    ) as ended"""
_FULL = """
    create function public.full_disk() returns trigger language plpgsql as $$
    begin raise 'could not extend file: No space left on device' using errcode = 'disk_full'; end $$;
    create trigger full_disk before insert on pgqueue.{} for each statement execute function public.full_disk();"""
_LEFTOVERS = {
    "a worker that has ended is registered": "select id from pgqueue.workers",
    "a job that has ended holds a key": "select job_id from pgqueue.unique_keys where kind = 'unique'",
}


class Scene:
    """The workers, the load and the measuring of one fault."""

    def __init__(self, dsn: str, folder: Path, fault: str):
        self.dsn = dsn
        self.fault = fault
        self.history = History(folder)
        self.record = Record()
        self.workers: list[Worker] = []
        """Those that should be alive."""
        self.report: Report | None = None
        """Set once everything held."""
        self._report = Report(fault)
        self._folder = folder
        self._every_worker: list[Worker] = []
        self._bystanders: set[int] = set()
        self._probes = 0

    # What happens here

    def start(self, *arguments: str, processes: int = 1, wait: bool = True, **options: Any) -> Worker:
        """Starts a worker, with a lease of 3 s, a beat of 0.3 s and a round of upkeep every 0.6 s."""
        settings: dict[str, Any] = {"app": "tests.faults.tasks:app", "drain_limit": 20} | options
        given = ("--processes", str(processes), *(arguments or ("-c", "8")))
        worker = Worker(settings.pop("dsn", self.dsn), self._folder, *given, **settings)
        self.workers.append(worker)
        self._every_worker.append(worker)
        return worker.wait_until_started(processes) if wait else worker

    def load(self, dsn: str | None = None, **options: Any) -> Load:
        """A producer, for a with block. A second one goes on counting."""
        known = [n for n in (*self.record.acknowledged, *self.record.rolled_back) if n >= 0]
        return Load(dsn or self.dsn, self.record, first=max(known, default=-1) + 1, **options)

    def enqueue(self, task: Any, *, promised: bool = True, priority: int = 0, **args: Any) -> int:
        """A job beside the load. `promised`: it has to complete; else its test says what becomes of it."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            self._probes += 1
            n = PROBES - self._probes
            id = int(task.using(priority=priority).enqueue(connection, n=n, **args).id)
        if promised:
            self.record.acknowledged[n] = (id,)
        else:
            self._bystanders.add(id)
        return id

    def beat(self) -> None:
        """A schedule of every second, whose jobs say `BEAT`."""
        self.ask(_BEAT, BEAT)

    def end_of_beats(self) -> list[datetime]:
        """Ends that schedule, and makes the jobs of its due times those that there have to be, and no others; when these were."""
        self.ask("select pgqueue.pause_schedule('beat')")
        runs = self.ask("select due_at, job_id from pgqueue.schedule_runs order by due_at")
        self.record.acknowledged[BEAT] = tuple(job for _, job in runs)
        return [due for due, _ in runs]

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query, over a new connection."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query, values or None)
            return list(cursor.fetchall()) if cursor.description else []

    def kill(self, worker: Worker) -> None:
        """The whole worker, as when the machine is lost."""
        self.workers.remove(worker)
        worker.kill()

    def terminate(self) -> int:
        """Ends the sessions of all workers; returns how many."""
        ((ended,),) = self.ask(_TERMINATE)
        return int(ended)

    @contextmanager
    def full_disk(self, table: str) -> Iterator[None]:
        """Lets every insert into a table of pgqueue's fail as on a full disk, for the length of a block."""
        self.ask(_FULL.format(table))
        yield
        self.ask("drop function public.full_disk cascade")

    # What is measured

    def wait_for_ends(self, count: int) -> None:
        """Waits until handlers have ended `count` times more."""
        self.history.wait_for("end", count=len(self.history.entries("end")) + count, timeout=60)

    def in_hand(self, *pids: int) -> list[int]:
        """The jobs that started in these processes and have not come to an end there."""
        running: dict[int, int] = {}
        for entry in self.history.entries():
            if entry.what == "start":
                running[entry.job] = entry.pid
            elif entry.what in ("end", "cancelled") and running.get(entry.job) == entry.pid:
                del running[entry.job]
        return [job for job, pid in running.items() if pid in pids]

    def wait_for_busy(self, *workers: Worker, count: int = 2) -> tuple[Worker, int]:
        """Waits until a child of one of these workers (none given: of any) runs so many jobs; returns both.

        A worker that is awake may take all there is, so that it is chance which one is busy.
        """

        def busy() -> list[tuple[Worker, int]]:
            return [
                (worker, child)
                for worker in workers or self.workers
                for child in worker.children().values()
                if len(self.in_hand(child)) >= count
            ]

        return wait_until(busy, 60, f"{count} jobs in the hands of a process")[0]

    def family(self, *children: int) -> list[int]:
        """Children with the processes in which they run jobs apart."""
        return [pid for child in children for pid in (child, *children_of(child))]

    def again(self, jobs: Iterable[int], since: float, timeout: float = 60) -> float | None:
        """Waits until each of the jobs has started after `since`; how long after it the last of them did.

        Take the time before the harm that is done, or look for the jobs after it: on a busy machine they are quicker. Suspects
        are left out: they may wait for a place to run apart, for up to 15 s.
        """
        waiting = {*jobs}
        first: dict[int, float] = {}

        def restarted() -> bool:
            for entry in self.history.entries("start", *waiting):
                if entry.at > since:
                    first.setdefault(entry.job, entry.at)
            if first.keys() >= waiting:
                return True
            time.sleep(0.02)  # the pace of the looks: the server has better things to do
            return first.keys() >= waiting - self._suspects(waiting)

        wait_until(restarted, timeout, f"another start of {sorted(waiting)}")
        suspects = self._suspects(waiting) if waiting else set()
        return max((at - since for job, at in first.items() if job not in suspects), default=None)

    def _suspects(self, jobs: set[int]) -> set[int]:
        """Those that run apart, for processes have died in which they ran."""
        return {id for (id,) in self.ask(_SUSPECTS, [*jobs])}

    def probe(self, timeout: float = 60) -> float:
        """How long it takes until a job that is enqueued now starts."""
        since = time.monotonic()
        (start, *_) = self.history.wait_for("start", self.enqueue(tasks.plain), timeout=timeout)
        return start.at - since

    def tried(self, recovery: float | None, within: float | None = None) -> None:
        """The fault was injected once more; after `recovery` seconds all was well again (None: nothing was hit)."""
        self._report.tried += 1
        if recovery is not None:
            self.recovered(recovery, within)

    def recovered(self, recovery: float, within: float | None = None) -> None:
        """All was well again after so many seconds. Raises AssertionError when that is much more than `within`."""
        self._report.recoveries.append(recovery)
        if within is not None:
            assert recovery < within + slack(), (
                f"{self.fault}: recovered after {recovery:.2f} s instead of {within:g} s"
            )

    # What has to hold

    def check(self, *explained_by: str, timeout: float = 90) -> Report:
        """Waits for the end of every job, stops the workers, and raises AssertionError for what did not hold."""
        self.settle(timeout)
        for worker in self.workers:
            worker.wait_until_started().stop()  # one that has only just begun knows no signals yet
        for worker in self.workers:
            assert worker.wait(30) == 0, worker.told()
        evidence = self._evidence("refused" in explained_by)
        found = findings(evidence, explained_by)
        for what, query in _LEFTOVERS.items():
            found.wrong += [f"{what}: {row[0]}" for row in self.ask(query)]
        report = self._report
        report.jobs = len(evidence.jobs)
        report.lost, report.doubled = len(found.lost), len(found.doubled)
        report.again = runs_again(evidence)
        print(" | ".join(report.cells()), f"(repeated enqueues: {self.record.repeated})")
        assert not found.lines(), "\n".join([f"{self.fault}:", *found.lines()[:40]])
        self.report = report
        return report

    def settle(self, timeout: float = 90) -> None:
        """Waits until no job waits or runs."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:

            def unfinished() -> int:
                time.sleep(0.02)  # the pace of the looks: the server has better things to do
                return int(str(*connection.execute(_UNFINISHED).fetchone() or "?"))

            try:
                wait_until(lambda: unfinished() == 0, timeout, "the end of all jobs")
            except AssertionError as error:
                left = connection.execute(_LEFT).fetchall()
                raise AssertionError(f"{error}; of those that are left: {left}") from None

    def close(self) -> None:
        """Kills what is left, prints the logs and looks for noise."""
        end(*self._every_worker)

    def _evidence(self, counts_refusals: bool) -> Evidence:
        reasons: dict[int, Counter[str]] = defaultdict(Counter)
        for id, reason in self.ask(_FAILURES):
            reasons[id][reason] += 1
        for entry in self.history.entries("cancelled"):
            reasons[entry.job]["cancelled"] += 1
        if counts_refusals:
            for worker in self._every_worker:
                for event in ("lease.lost", "settle.unconfirmed"):
                    for line in worker.events(event):
                        reasons[line["job_id"]]["refused"] += 1
        return Evidence(
            record=self.record,
            jobs=[JobRow(*row) for row in self.ask(_ALL_JOBS)],
            orders={n for (n,) in self.ask("select n from public.orders")},
            effects=[(job, n) for job, n in self.ask("select job, n from public.effects")],
            starts=self.history.starts_by_job(),
            reasons=dict(reasons),
            bystanders=self._bystanders,
        )
