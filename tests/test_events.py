"""`app.events()`: every end of an attempt, in order, once, from wherever the reader has been."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import datetime
from typing import Any

import psycopg
import pytest

import pgqueue
from pgqueue import calls, waiting
from pgqueue.drivers import run
from pgqueue.errors import InvalidOption
from pgqueue.settings import Settings
from tests.sql.acting import call, claim, claimed, enqueue, register, scalar
from tests.worker.harness import until

Session = psycopg.Connection


@pytest.fixture
def app(database: str) -> Iterator[pgqueue.App]:
    app = pgqueue.App(settings=Settings(dsn=database))
    yield app
    app.close()


def complete(connection: Session, job: Any) -> None:
    assert call(connection, "complete", ids=[job.id], leases=[job.lease]) == [job.id]


def fail(connection: Session, job: Any, delay: float | None, reason: str = "permanent") -> None:
    failure = {
        "id": job.id, "lease": job.lease, "error": "ValueError", "message": "went wrong", "delay": delay,
        "reason": reason,
    }  # fmt: skip
    assert run(connection, calls.fail(json.dumps([failure]))) == [job.id]


def clock(connection: Session) -> str:
    """The id of an event that would end now."""
    now: datetime = scalar(connection, "select clock_timestamp()")
    return f"{now.isoformat()}/0/0"


def following(app: pgqueue.App, act: Callable[[AsyncIterator[pgqueue.Event]], Any], **options: Any) -> Any:
    """Runs `act` on the events in a loop of its own."""

    async def follow() -> Any:
        async with aclosing(app.events(**options)) as events:  # type: ignore[type-var]
            try:
                async with asyncio.timeout(15):
                    return await act(events)
            finally:
                await app._own.aclose()

    return asyncio.run(follow())


def read(app: pgqueue.App, count: int, **options: Any) -> list[pgqueue.Event]:
    """The next events, so many."""

    async def take(events: AsyncIterator[pgqueue.Event]) -> list[pgqueue.Event]:
        return [await anext(events) for _ in range(count)]

    taken: list[pgqueue.Event] = following(app, take, **options)
    return taken


def ends(connection: Session, jobs: int, **options: Any) -> list[int]:
    """Completes so many jobs, one after the other."""
    worker = register(connection, options.get("queue", "default"))
    ids = []
    for _ in range(jobs):
        job = claimed(connection, worker, **options)
        complete(connection, job)
        ids.append(job.id)
    return ids


def test_every_kind_of_ending_is_an_event_in_its_order(app: pgqueue.App, connection: Session) -> None:
    before = clock(connection)
    worker = register(connection)
    done = claimed(connection, worker, task="count", queue="default")
    complete(connection, done)
    fails = claimed(connection, worker, task="charge")
    fail(connection, fails, 0)
    call(connection, "promote", max_jobs=5)
    (fails,) = claim(connection, worker)
    fail(connection, fails, None)
    cancels = claimed(connection, worker)
    run(connection, calls.end_cancelled([cancels.id], [cancels.lease], ["withdrawn"]))
    waits = enqueue(connection, delay=60)
    run(connection, calls.cancel([waits], "not needed"))
    kept = claimed(connection, worker)
    run(
        connection,
        calls.complete_with_results(json.dumps([{"id": kept.id, "lease": kept.lease, "result": 1}])),
    )
    dies = claimed(connection, worker)
    call(connection, "rescue", worker_id=worker, started=[dies.id])

    events = read(app, 7, after=before)
    assert [(event.kind, event.job_id, event.attempt, event.reason, event.error) for event in events] == [
        ("completed", done.id, 1, None, None),
        ("failed", fails.id, 1, None, "ValueError"),
        ("dead", fails.id, 2, "permanent", "ValueError"),
        ("cancelled", cancels.id, 1, "withdrawn", None),
        ("cancelled", waits, 0, "not needed", None),
        ("completed", kept.id, 1, None, None),
        ("rescued", dies.id, 1, None, "pgqueue.Crashed"),
    ]
    assert (events[0].task, events[0].queue, events[0].worker_id) == ("count", "default", worker)
    assert events[1].message == "went wrong"
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_a_dead_letter_that_was_replayed_meanwhile_has_still_died(
    app: pgqueue.App, connection: Session
) -> None:
    before = clock(connection)
    job = claimed(connection, register(connection))
    fail(connection, job, None)
    call(connection, "replay", ids=[job.id])
    (event,) = read(app, 1, after=before)
    assert (event.kind, event.job_id, event.reason) == ("dead", job.id, "permanent")


def test_a_reader_goes_on_where_it_was(app: pgqueue.App, connection: Session) -> None:
    before = clock(connection)
    first = ends(connection, 5)
    seen = read(app, 3, after=before)
    assert [event.job_id for event in seen] == first[:3]
    rest = read(app, 2, after=seen[-1].id)
    second = ends(connection, 4)  # nobody listens
    rest += read(app, 4, after=rest[-1].id)
    assert [event.job_id for event in rest] == first[3:] + second


def test_many_events_come_page_by_page(
    app: pgqueue.App, connection: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PAGE", 7)
    before = clock(connection)
    worker = register(connection)
    run(connection, calls.enqueue_many(json.dumps([{"task": "t"}] * 30)))
    jobs = claim(connection, worker, 30)
    call(connection, "complete", ids=[job.id for job in jobs], leases=[job.lease for job in jobs])
    events = read(app, 30, after=before)
    assert sorted(event.job_id for event in events) == [job.id for job in jobs]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What readers have asked so far: `read_events` for what has come, `endings_under_way` before that."""
    asked: list[str] = []

    def watch(name: str) -> None:
        call = getattr(calls, name)

        def noted(*arguments: Any, **options: Any) -> calls.Call[Any]:
            asked.append(name)
            found: calls.Call[Any] = call(*arguments, **options)
            return found

        monkeypatch.setattr(calls, name, noted)

    watch("read_events")
    watch("endings_under_way")
    return asked


def test_events_are_those_from_now_on_unless_it_is_said(
    app: pgqueue.App, connection: Session, looks: list[str]
) -> None:
    ends(connection, 3)

    async def act(events: AsyncIterator[pgqueue.Event]) -> None:
        first = asyncio.ensure_future(anext(events))
        await until(lambda: "read_events" in looks)  # it has drawn its line
        (id,) = await asyncio.to_thread(ends, connection, 1)
        assert (await first).job_id == id

    following(app, act)


def test_a_reader_is_told_of_an_event_at_once(
    app: pgqueue.App, connection: Session, looks: list[str]
) -> None:
    delays = []

    async def act(events: AsyncIterator[pgqueue.Event]) -> None:
        coming = asyncio.ensure_future(anext(events))
        await until(lambda: "read_events" in looks)
        for _ in range(4):
            # It gathers for a while after each look; only then does it sleep, and nothing but the telling wakes it.
            await asyncio.sleep(2 * waiting.GATHER_SECONDS)
            await asyncio.to_thread(ends, connection, 1)
            ended_at = time.monotonic()
            await coming
            delays.append(time.monotonic() - ended_at)
            coming = asyncio.ensure_future(anext(events))
        coming.cancel()

    following(app, act)
    print(f"told of an event: max {max(delays) * 1000:.0f} ms of {len(delays)}")
    assert max(delays) < 0.8, "looking alone would have taken up to 2 s"


def test_events_are_chosen_by_queue_and_task(app: pgqueue.App, connection: Session) -> None:
    before = clock(connection)
    mail = ends(connection, 2, queue="mail", task="send")
    ends(connection, 1, queue="mail", task="receive")
    other = ends(connection, 1, task="send")
    mail += ends(connection, 1, queue="mail", task="send")
    assert [event.job_id for event in read(app, 3, after=before, queue="mail", task="send")] == mail
    assert read(app, 3, after=before, task="send")[-1].job_id == other[0]


@pytest.mark.parametrize("after", ["", "7", "2027-01-01", "2027-01-01T00:00:00/7/1", "x/7/1", 7])
def test_what_is_no_events_id_is_refused_at_once(after: Any, app: pgqueue.App) -> None:
    with pytest.raises(InvalidOption, match="after: expected the id of an event"):
        app.events(after=after)


def test_a_reader_that_may_not_listen_looks(database: str, connection: Session) -> None:
    polling = pgqueue.App(settings=Settings(dsn=database, wake="poll"))
    before = clock(connection)
    ids = ends(connection, 2)
    assert [event.job_id for event in read(polling, 2, after=before)] == ids
    polling.close()


# None is missed -----------------------------------------------------------------------------------------


def overtaken(
    app: pgqueue.App, connection: Session, database: str, looks: list[str]
) -> tuple[list[int], int, int]:
    """What a reader sees while an ending that drew its time first commits last: ids, first, second."""
    worker = register(connection)
    slow, quick = claimed(connection, worker), claimed(connection, worker)
    before = clock(connection)

    async def act(events: AsyncIterator[pgqueue.Event]) -> list[int]:
        with psycopg.connect(database) as other:
            call(other, "complete", ids=[slow.id], leases=[slow.lease])
            complete(connection, quick)
            first = asyncio.ensure_future(anext(events))
            # It has read past the one that is late, or waits for it and has been told "not yet".
            await until(lambda: first.done() or looks.count("endings_under_way") > 1)
            other.commit()
            seen = [(await first).job_id]
            try:
                async with asyncio.timeout(waiting.LOOK_SECONDS + 0.5):  # nothing later would bring it
                    seen.append((await anext(events)).job_id)
            except TimeoutError:
                pass
            return seen

    seen: list[int] = following(app, act, after=before)
    return seen, slow.id, quick.id


def test_an_ending_that_commits_late_is_not_overtaken(
    app: pgqueue.App, connection: Session, database: str, looks: list[str]
) -> None:
    seen, slow, quick = overtaken(app, connection, database, looks)
    assert seen == [slow, quick]


def test_a_careless_reader_would_miss_it(
    app: pgqueue.App,
    connection: Session,
    database: str,
    looks: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same, without waiting for what is under way."""
    horizon: calls.Call[Any] = calls.Call(calls.EVENTS_HORIZON, (), lambda rows: (rows[0][0], []))
    monkeypatch.setattr(calls, "events_horizon", lambda: horizon)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.2)
    seen, _, quick = overtaken(app, connection, database, looks)
    assert seen == [quick]


def test_none_is_missed_and_none_comes_twice_whoever_ends_what_beside(
    app: pgqueue.App, connection: Session, database: str
) -> None:
    """Six enders at once, some of whom take their time to commit or roll back, and a reader that leaves and comes back."""
    before = clock(connection)
    worker = register(connection)
    chance = random.Random(7)
    plans = [[(chance.random(), chance.random() * 0.01) for _ in range(40)] for _ in range(6)]
    expected: list[tuple[int, int]] = []

    def end(plan: list[tuple[float, float]]) -> None:
        with psycopg.connect(database) as session:
            for luck, pause in plan:
                job = claimed_any(session, worker)
                session.commit()
                if luck < 0.6:
                    complete(session, job)
                else:
                    fail(session, job, None)
                time.sleep(pause)
                if luck < 0.1 or luck > 0.95:
                    session.rollback()
                else:
                    session.commit()
                    expected.append((job.id, job.attempt))

    def claimed_any(session: Session, worker: int) -> Any:
        enqueue(session)
        session.commit()
        jobs: list[Any] = []
        while not jobs:
            jobs = claim(session, worker)
        return jobs[0]

    with ThreadPoolExecutor(6) as threads:
        ending = [threads.submit(end, plan) for plan in plans]
        seen: list[pgqueue.Event] = []
        while not all(one.done() for one in ending):
            seen += read(app, 1, after=seen[-1].id if seen else before)
        for one in ending:
            one.result()
    if left := len(expected) - len(seen):
        seen += read(app, left, after=seen[-1].id)
    assert sorted((event.job_id, event.attempt) for event in seen) == sorted(expected)
    assert [event.at for event in seen] == sorted(event.at for event in seen)
