"""What becomes of an attempt inside of a worker, without one: the slots, and what the end of a handler means."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import pgqueue
from pgqueue.invocation import handler_of
from pgqueue.job import ClaimedJob
from pgqueue.resources import Resources
from pgqueue.worker import slots as slots_module
from pgqueue.worker.attempts import Attempts
from pgqueue.worker.board import Board
from pgqueue.worker.decide import Ending, Failed
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.executors.transactional import Transactions
from pgqueue.worker.hand import Hand, capacity
from pgqueue.worker.settler import Settler
from pgqueue.worker.slot import Slot
from pgqueue.worker.slots import Slots

NOBODY_LISTENS = "postgresql://127.0.0.1:1/nowhere?connect_timeout=2"


def claimed(task: str, id: int = 7) -> ClaimedJob:
    return ClaimedJob(id, -(2**63), "default", 11, 1, task, "{}", 1, 5, 0, None)


def attempts_of(app: pgqueue.App) -> Attempts:
    async def never(_job: ClaimedJob) -> bool:
        return False

    threads = Threads(2)
    return Attempts(
        tasks=app.tasks,
        threads=threads,
        transactions=Transactions(dsn=NOBODY_LISTENS, size=1, threads=threads, pooled=False),
        expire=never,
        on_unknown_task=lambda _: 1.0,
        handler_of=partial(handler_of, app, resources=Resources(app.providers)),
    )


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_handler_whose_step_found_no_database_has_started_and_its_attempt_has_failed(kind: str) -> None:
    """It is no transactional task that was never called: what it did before the step is done."""
    app = pgqueue.App(dsn=NOBODY_LISTENS)
    done: list[str] = []

    @app.task(name="async")
    async def in_steps(ctx: pgqueue.Context) -> None:
        done.append("before the step")
        await ctx.step("charge", lambda: None)

    @app.task(name="sync")
    def in_steps_sync(ctx: pgqueue.Context) -> None:
        done.append("before the step")
        ctx.step("charge", lambda: None)

    async def attempt() -> Ending | None:
        slot = Slot(0)
        current = asyncio.current_task()
        assert current is not None
        slot.runner, slot.job = current, claimed(kind)
        started = attempts_of(app).start(slot, slot.job)
        return await started if inspect.isawaitable(started) else started

    ending = asyncio.run(attempt())
    assert done == ["before the step"]
    assert isinstance(ending, Failed)
    assert ending.delay is not None


class Recorder(Settler):
    """Takes endings as if the database had them at once."""

    def __init__(self, hand: Hand):
        self._hand = hand
        self.endings: list[tuple[int, Ending]] = []

    def settle(self, job: ClaimedJob, cell: int, ending: Ending) -> None:
        self.endings.append((job.id, ending))
        self._hand.settled([job], [cell])


async def until(predicate: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not predicate():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.001)


def test_a_handler_that_returns_long_after_its_end_leaves_the_next_job_of_its_cell_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The supervisor reads deadlines by cell, and the cell is free as soon as the database knows the end."""
    monkeypatch.setattr(slots_module, "GRACE_SECONDS", 0.01)
    monkeypatch.setattr(slots_module, "SWEEP_SECONDS", 0.01)
    app = pgqueue.App(dsn=NOBODY_LISTENS)
    returns, ends = asyncio.Event(), asyncio.Event()

    @app.task(timeout=0.1)
    async def stubborn() -> None:
        while not returns.is_set():
            try:
                await returns.wait()
            except asyncio.CancelledError:
                continue

    @app.task(timeout=3600)
    async def patient() -> None:
        await ends.wait()

    async def scenario() -> None:
        board = Board.create(capacity(2))
        hand = Hand(2, board)
        recorder = Recorder(hand)
        slots = Slots(attempts=attempts_of(app), hand=hand, settler=recorder, board=board)
        slots.start()
        sweeper = asyncio.create_task(slots.sweep())
        hand.put([claimed("stubborn", 1)])
        await until(lambda: recorder.endings)
        assert [id for id, _ in recorder.endings] == [1]
        hand.put([claimed("patient", 2)])
        await until(lambda: board.started() == [2])
        (cell,) = (number for number, id in enumerate(board.cells) if id)
        due = board.deadlines[cell]
        assert due > 0
        assert hand.running == 2
        returns.set()
        await until(lambda: hand.running == 1)
        assert board.deadlines[cell] == due
        ends.set()
        hand.close()
        sweeper.cancel()
        for slot in slots._slots:
            slot.runner.cancel()
        await asyncio.gather(*(slot.runner for slot in slots._slots), sweeper, return_exceptions=True)

    asyncio.run(scenario())
