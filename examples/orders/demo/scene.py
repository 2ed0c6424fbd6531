"""What happens in the show. Everything is real: the server, the processes, the signals, the mails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psycopg
from sqlalchemy import Engine
from sqlalchemy.orm import Session

import pgqueue
from orders.demo.audit import FLAKY, INSUFFICIENT, STOLEN, Claim, Journal, Killed, audit, look
from orders.demo.screen import Counts, Screen, print_claims
from orders.demo.sink import Sink
from orders.demo.workers import Event, Workers
from orders.intake import Line, Malformed, read_orders
from orders.service import OrderRequest, UnknownProduct, engine_for, place_order, set_up

ORDERS = Path(__file__).resolve().parents[1] / "orders.csv"
LINES_PER_SECOND = 45.0
ROLLED_BACK = 0.02
"""The share of orders whose customer walks away before the commit."""
KILL_AFTER = 0.4
"""The share of lines after which a worker process may be killed."""
BACKOFF = "1s"
"""In place of the 5 s before a payment's second attempt: nobody wants to watch that."""
PATIENCE_SECONDS = 60.0


class WalkedAway(Exception):
    """The customer is gone in the middle of the transaction: it is rolled back."""


class ShowStopped(pgqueue.errors.PgqueueError):
    """Something that the show needs is not there: the workers, mostly."""


def run(dsn: str, *, lines: int, seed: int) -> bool:
    """Plays the show on an empty database with pgqueue's schema; true when every claim holds.

    Raises `ShowStopped`, and KeyboardInterrupt after a Ctrl-C, with everything stopped that it had started.
    """
    with Screen() as screen:
        scene = Scene(dsn, lines=lines, seed=seed, screen=screen)
        claims = asyncio.run(scene.play())
    print_claims(claims)
    holds = not any(claim.wrong for claim in claims)
    verdict = (
        "nothing was lost, nothing was done twice"
        if holds
        else f"{sum(bool(claim.wrong) for claim in claims)} of {len(claims)} claims do not hold"
    )
    print(f"\n{verdict} ({screen.seconds:.1f} s, --seed {seed})")
    return holds


class Scene:
    """One performance."""

    def __init__(self, dsn: str, *, lines: int, seed: int, screen: Screen):
        self._dsn = dsn
        self._random = random.Random(seed)
        self._screen = screen
        self._lines = list(read_orders(ORDERS))[:lines]
        self._walks_away = self._choose_rollbacks()
        self._journal = Journal(lines=len(self._lines))
        self._counts = Counts(orders=len(self._lines))
        self._may_kill = asyncio.Event()
        self._reported: set[str] = set()
        self._engine: Engine
        self._observer: psycopg.AsyncConnection
        self._workers: Workers
        self._sink: Sink

    def _choose_rollbacks(self) -> frozenset[str]:
        """Orders that are sent once and paid without trouble: the others have a part to play."""
        requests = [line.content for line in self._lines if isinstance(line.content, OrderRequest)]
        times = Counter(request.reference for request in requests)
        candidates = [
            request.reference
            for request in requests
            if times[request.reference] == 1 and request.card not in (INSUFFICIENT, STOLEN, FLAKY)
        ]
        return frozenset(self._random.sample(candidates, 1 + int(ROLLED_BACK * len(candidates))))

    async def play(self) -> list[Claim]:
        """From the first order to the audit."""
        self._engine = engine_for(self._dsn)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._engine.dispose)
            set_up(self._engine)
            self._observer = await stack.enter_async_context(
                await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
            )
            self._sink = await stack.enter_async_context(Sink())
            environment = {
                "ORDERS_SMTP": f"127.0.0.1:{self._sink.port}",
                "ORDERS_PAYMENT_BACKOFF": BACKOFF,
                "PGQUEUE_TRANSACTIONAL_CONNECTIONS": "10",
            }
            self._workers = await stack.enter_async_context(Workers(self._dsn, environment, self._on_event))
            acts = [asyncio.create_task(act) for act in (self._act(), self._watch(), self._watch_workers())]
            try:
                # The watchers do not return: one that raises ends the show, else its last act does.
                done, _ = await asyncio.wait(acts, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in acts:
                    task.cancel()
                await asyncio.wait(acts)
            self._journal.worker_exit = await self._workers.stop()
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                return audit(self._journal, look(connection, self._sink.mails))

    async def _act(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._workers.all_at_work()
        except TimeoutError:
            raise ShowStopped(f"no worker process was ready within {PATIENCE_SECONDS:g} s") from None
        self._screen.say(f"here come {len(self._lines)} orders", "bold")
        await asyncio.gather(self._place_orders(), self._kill_a_worker())
        await self._until_settled()
        await self._replay()
        await self._pause_schedules()
        await self._until_settled()

    # Orders

    async def _place_orders(self) -> None:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        for count, line in enumerate(self._lines, start=1):
            await asyncio.to_thread(self._place, line)
            self._counts = replace(self._counts, placed=count)
            if count >= KILL_AFTER * len(self._lines):
                self._may_kill.set()
            await asyncio.sleep(started_at + count / LINES_PER_SECOND - loop.time())

    def _place(self, line: Line) -> None:
        """One line, in one transaction. What the journal says is what this code saw, not what it expects."""
        journal, request = self._journal, line.content
        if isinstance(request, Malformed):
            self._refuse(line.number, request)
            return
        job: pgqueue.Job | None = None
        try:
            with Session(self._engine) as session, session.begin():
                job = place_order(session, request)
                if request.reference in self._walks_away:
                    raise WalkedAway
        except WalkedAway:
            assert job is not None
            journal.rolled_back[request.reference] = job
        except UnknownProduct as reason:
            self._refuse(line.number, reason)
        else:
            if request.reference in journal.placed:
                journal.repeated[request.reference] = (journal.payments[request.reference], job)
            else:
                journal.placed[request.reference] = request
                journal.payments[request.reference] = job

    def _refuse(self, number: int, reason: Malformed | UnknownProduct) -> None:
        self._journal.refused[number] = reason
        self._screen.say(f"line {number} refused: {reason}", "dim")

    # Faults

    async def _kill_a_worker(self) -> None:
        """Kills a child with `kill -9` while it has jobs in its hands."""
        await self._may_kill.wait()
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up_at and not await self._is_settled():
            children = list(self._workers.children.items())
            self._random.shuffle(children)
            for worker, pid in children:
                if await self._kill_if_busy(worker, pid):
                    return
            await asyncio.sleep(0.02)

    async def _kill_if_busy(self, worker: int, pid: int) -> bool:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            # Stopped first: what it holds can then be looked at without it going on.
            os.kill(pid, signal.SIGSTOP)
            jobs = await self._held_by(worker)
            os.kill(pid, signal.SIGKILL if jobs else signal.SIGCONT)
            if jobs:
                self._journal.killed = Killed(pid, jobs)
                self._screen.say(f"kill -9 {pid}: a worker process with {len(jobs)} jobs in hand", "bold red")
                return True
        return False

    async def _held_by(self, worker: int) -> frozenset[int]:
        query = "select id from pgqueue_bi.jobs where state = 'running' and worker_id = %s"
        rows = await (await self._observer.execute(query, [worker])).fetchall()
        return frozenset(id for (id,) in rows)

    async def _replay(self) -> None:
        """The customer of a declined order gives another card; the operator replays the dead letter."""
        declined = [name for name, request in self._journal.placed.items() if request.card == INSUFFICIENT]
        if not declined:
            return
        order_id = self._random.choice(declined)
        async with await psycopg.AsyncConnection.connect(self._dsn) as operator:
            await operator.execute("update orders set card = 'tok_4242' where id = %s", [order_id])
            await operator.execute(
                "select pgqueue.replay(array_agg(id)) from pgqueue.find_dead(of_task => 'validate_payment')"
                " where args ->> 'order_id' = %s",
                [order_id],
            )
        self._journal.replayed = order_id
        self._screen.say(f"order {order_id} has another card now: its dead letter is replayed", "bold green")

    async def _pause_schedules(self) -> None:
        """The show is over, and no minute that begins now may leave a job behind."""
        await self._observer.execute("select pgqueue.pause_schedule(name) from pgqueue_bi.schedules")

    # Watching

    async def _watch(self) -> None:
        """Keeps the counts on the screen."""
        while True:
            await self._count()
            self._screen.show(self._counts)
            await asyncio.sleep(0.2)

    async def _count(self) -> None:
        query = "select state, count(*) from pgqueue_bi.jobs group by state"
        states: dict[str, int] = dict(await (await self._observer.execute(query)).fetchall())
        row = await (await self._observer.execute("select count(*) from confirmations")).fetchone()
        assert row is not None
        self._counts = replace(
            self._counts,
            confirmed=row[0],
            mails=len(self._sink.mails),
            **{
                state: states.get(state, 0)
                for state in ("scheduled", "ready", "running", "completed", "dead")
            },
        )

    async def _is_settled(self) -> bool:
        """Whether every order was placed and every job has ended; a snapshot knows, as jobs hand over in one."""
        placed_all = self._counts.placed == len(self._lines)
        await self._count()
        return placed_all and not self._counts.unfinished

    async def _until_settled(self) -> None:
        """Waits; what is not settled when the patience ends is found by the audit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    if await self._is_settled():
                        return
                    await asyncio.sleep(0.05)

    async def _watch_workers(self) -> None:
        code = await self._workers.ended()
        for line in self._workers.last_lines:
            self._screen.say(line, "red")
        raise ShowStopped(f"the workers ended with exit code {code}; their last lines are above")

    def _on_event(self, event: Event) -> None:
        """What the workers' log says, as far as it is news."""
        match event.get("event"):
            case "worker.started":
                self._screen.say(f"worker process {event['pid']} is at work")
            case "worker.child_died":
                self._screen.say(f"worker process {event['pid']} died: {event['ended_by']}", "red")
            case "jobs.rescued":
                self._screen.say(
                    f"{event['jobs']} jobs are rescued, for another process to run", "bold green"
                )
            case "job.dead":
                self._screen.say(
                    f"dead letter: job {event['job_id']}, {event['message']} ({event['reason']})", "dim"
                )
