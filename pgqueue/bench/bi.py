"""BI: what views cost those who read them, and what their readers cost the workers.

As many jobs in the history as are waiting, and a worker that drains them at full speed. On one side every view is read
once a second, without a condition, and upkeep counts and rolls up; on the other nobody reads, and nothing is counted.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from psycopg import sql

from pgqueue import calls
from pgqueue.bench.database import Connection, connect, feed, payload, scalar, wait_until
from pgqueue.bench.harness import Bench
from pgqueue.bench.results import Result, below, compared
from pgqueue.bench.tasks import noop, stamp
from pgqueue.drivers import run
from pgqueue.errors import PgqueueError

ANSWER_MS = 200.0
QUEUES, TASKS = 5, 4
"""Of the history: as many queues, with as many tasks each."""

_HISTORY = """
insert into pgqueue.finished_jobs (id, worker_id, run_at, created_at, claimed_at, finished_at, day, lane, attempt,
                                   max_attempts, crashes, queue, task, state, args)
select nextval('pgqueue.job_ids'), 1, f.finished_at - j.waited - j.ran, f.finished_at - j.waited - j.ran, f.finished_at - j.ran,
       f.finished_at, case when f.finished_at >= date_trunc('day', now(), 'UTC') then (now() at time zone 'UTC')::date
                           else '-infinity' end,
       11, 1, 5, 0, concat('queue ', n %% %(queues)s), concat('task ', n / %(queues)s %% %(tasks)s),
       case when n %% 50 = 0 then 'cancelled' else 'completed' end, %(args)s::jsonb
  from generate_series(1, %(jobs)s) as n
 cross join lateral (select now() - make_interval(secs => %(seconds)s * (1 - n::double precision / %(jobs)s))) as f (finished_at)
 cross join lateral (select make_interval(secs => exp(n %% 97 / 10.0) / 100), make_interval(secs => exp(n %% 89 / 10.0) / 1000))
       as j (waited, ran)
"""
_FAILURES = """
insert into pgqueue.job_failures (job_id, worker_id, failed_at, day, attempt, queue, task, error, message, fingerprint)
select f.id, 1, f.finished_at, f.day, 1, f.queue, f.task, 'ValueError', 'no', concat('print ', f.id % 50)
  from pgqueue.finished_jobs as f where f.id % 100 = 0
"""
_DEAD = """
insert into pgqueue.dead_letters (id, worker_id, run_at, created_at, claimed_at, died_at, lane, attempt, max_attempts, crashes,
                                  queue, task, args, reason, error, message, errors)
select nextval('pgqueue.job_ids'), 1, now(), now(), now(), now(), 11, 5, 5, 0, concat('queue ', n %% %(queues)s), 'task 0', '{}',
       'exhausted', 'ValueError', 'no', '[]'
  from generate_series(1, 1000) as n
"""
_SCHEDULES = """
select pgqueue.schedule(concat('schedule ', n), 'noop', every => 86400.0) from generate_series(1, 50) as n;
insert into pgqueue.schedule_runs (schedule, due_at, ran_at, outcome, job_id, state)
select concat('schedule ', n), now() - make_interval(hours => h), now() - make_interval(hours => h), 'enqueued', 1, 'completed'
  from generate_series(1, 50) as n cross join generate_series(1, 100) as h;
"""


def measure(bench: Bench) -> Iterator[Result]:
    jobs = bench.size(1_000_000, 200_000)
    answers: dict[str, list[float]] = defaultdict(list)
    with bench.database() as dsn, connect(dsn) as connection:
        bench.tell(f"  {jobs:,} finished jobs are made and rolled up")
        _prepare(connection, jobs, bench.size(24))
        figures = bench.alternate(
            {
                "alone": lambda: _drain(bench, dsn, connection, jobs, _uncounted(dsn)),
                "read": lambda: _drain(bench, dsn, connection, jobs, _read(dsn, answers)),
            },
            rounds=min(2, bench.rounds),
        )
        count = scalar(connection, "select seconds from pgqueue.depth_count")
        bench.tell(f"  the last count of depths took {count:.3f} s")
    for name, times in sorted(answers.items()):
        times.sort()
        note = f"p95 of {len(times)} answers; {jobs:,} finished jobs, as many waiting, and a worker at full speed"
        yield below(f"bi-{name}", times[int(0.95 * (len(times) - 1))], ANSWER_MS, unit="ms", note=note)
    note = f"{jobs:,} jobs drained while every view is read once a second; ceiling: nobody reads, nothing is counted"
    yield compared("bi-drain", figures["read"], figures["alone"], bar=0.9, note=note)


def _drain(
    bench: Bench, dsn: str, connection: Connection, jobs: int, meanwhile: AbstractContextManager[None]
) -> float:
    """Jobs a second, in a database that keeps what was drained before."""
    running = "select exists (select from pgqueue.running_jobs as r where r.id = %s)"
    run(connection, calls.pause("default"))
    feed(connection, noop.name, jobs)
    with bench.stamps() as stamps:
        last = stamp.using(priority=9).enqueue(connection, path=stamps.path, number=0).id
        connection.execute("vacuum analyze pgqueue.ready_jobs")
        run(connection, calls.count_depths())
        with bench.worker(dsn):
            bench.settle()
            with meanwhile:
                started = time.perf_counter()
                run(connection, calls.resume("default"))
                stamps.wait(0)
                wait_until(
                    lambda: not scalar(connection, running, last), "the last job's ending", pause=0.001
                )
                seconds = time.perf_counter() - started
    return jobs / seconds


def _prepare(connection: Connection, jobs: int, hours: int) -> None:
    """A history of as many jobs over so many hours, rolled up; failures, dead letters, schedules."""
    values = {"queues": QUEUES, "tasks": TASKS, "jobs": jobs, "seconds": hours * 3600, "args": payload()}
    run(connection, calls.retain())
    connection.execute(_HISTORY, values)
    connection.execute(_FAILURES)
    connection.execute(_DEAD, values)
    connection.execute(_SCHEDULES)
    for table in ("finished_jobs", "job_failures", "dead_letters", "schedules", "schedule_runs"):
        connection.execute(sql.SQL("vacuum analyze pgqueue.{}").format(sql.Identifier(table)))
    connection.execute(
        "update pgqueue.rollup_progress set rolled_up_to = date_trunc('minute', now()) - make_interval(hours => %s)",
        [hours],
    )
    while run(connection, calls.roll_up()):
        pass


@contextmanager
def _uncounted(dsn: str) -> Iterator[None]:
    """Nobody counts or rolls up: its lock is held."""
    with connect(dsn) as connection:
        connection.execute("select pg_advisory_lock(hashtextextended('pgqueue.figures', 0))")
        yield


@contextmanager
def _read(dsn: str, answers: dict[str, list[float]]) -> Iterator[None]:
    """Somebody reads every view once a second."""
    stop = threading.Event()
    problems: list[BaseException] = []

    def poll() -> None:
        try:
            with connect(dsn) as connection:
                queries = _queries(connection)
                while not stop.is_set():
                    began = time.perf_counter()
                    for name, query in queries.items():
                        answers[name].append(_answer(connection, query))
                    stop.wait(max(0.0, 1 - (time.perf_counter() - began)))
        except Exception as error:  # noqa: BLE001 - carried over to the thread that measures
            problems.append(error)

    reader = threading.Thread(target=poll, name="bi-reader")
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()
    if problems:
        raise PgqueueError(f"a view could not be read: {problems[0]}") from problems[0]


def _queries(connection: Connection) -> dict[str, sql.Composable]:
    """What is asked: all of each view; of `jobs` one, and the latest of a queue in a span of time."""
    views = "select viewname from pg_views where schemaname = 'pgqueue_bi' and viewname <> 'jobs' order by 1"
    queries: dict[str, sql.Composable] = {
        name.replace("_", "-"): sql.SQL("select * from pgqueue_bi.{}").format(sql.Identifier(name))
        for (name,) in connection.execute(views).fetchall()
    }
    id = scalar(
        connection, "select id from pgqueue.finished_jobs order by finished_at desc offset 5000 limit 1"
    )
    queries["jobs-by-id"] = sql.SQL("select * from pgqueue_bi.jobs where id = {}").format(sql.Literal(id))
    for name, queue, column in (
        ("jobs-finished", "queue 1", "finished_at"),
        ("jobs-created", "default", "created_at"),
    ):
        queries[name] = sql.SQL(
            "select * from pgqueue_bi.jobs where queue = {} and {column} >= now() - interval '1 hour' and {column} < now() limit 100"
        ).format(sql.Literal(queue), column=sql.Identifier(column))
    return queries


def _answer(connection: Connection, query: sql.Composable) -> float:
    """Milliseconds until the whole answer is here."""
    began = time.perf_counter()
    with connection.cursor().copy(sql.SQL("copy ({}) to stdout").format(query)) as rows:
        for _ in rows:
            pass
    return (time.perf_counter() - began) * 1e3
