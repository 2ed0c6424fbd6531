"""Steps of a handler that are taken once over all attempts of a job."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec

from pgqueue import calls
from pgqueue.calls import Call
from pgqueue.drivers import run
from pgqueue.encoding import encode_args
from pgqueue.errors import InvalidOption, PgqueueError
from pgqueue.job import ClaimedJob
from pgqueue.options import check_name
from pgqueue.task import Task
from pgqueue.worker.executors.transactional import Transactions

MAX_RESULT_BYTES = 65_536


_within: ContextVar[str | None] = ContextVar("pgqueue_step", default=None)
"""The step in whose transaction the code runs."""


class Steps:
    """What stands behind `ctx.step`, over the worker's transactions."""

    def __init__(self, transactions: Transactions, tasks: Mapping[str, Task[..., Any]]):
        self._transactions = transactions
        self._tasks = tasks

    async def take(self, job: ClaimedJob, name: str, function: Callable[..., Any]) -> Any:
        """The result of a step: of an earlier attempt, or of `function`, called now and recorded."""
        step = Step(self._tasks[job.task], job, name, function)
        async with self._transactions.transaction() as connection:
            result = await run(connection, step.look)
            if result is None and step.takes_connection:
                with step.inside():
                    result = encode(name, await _awaited(function(connection)))
                await run(connection, step.record(result))
        if result is None:
            result = encode(name, await _awaited(function()))
            async with self._transactions.transaction() as connection:
                await run(connection, step.record(result))
        return msgspec.json.decode(step.read(result))

    def take_sync(self, job: ClaimedJob, name: str, function: Callable[..., Any]) -> Any:
        """`take` for a handler in a thread."""
        step = Step(self._tasks[job.task], job, name, function)
        with self._transactions.sync_transaction() as connection:
            result = run(connection, step.look)
            if result is None and step.takes_connection:
                with step.inside():
                    result = encode(name, function(connection))
                run(connection, step.record(result))
        if result is None:
            result = encode(name, function())
            with self._transactions.sync_transaction() as connection:
                run(connection, step.record(result))
        return msgspec.json.decode(step.read(result))


class Step:
    """One step of an attempt, as the calls that look for it and record it. Raises `InvalidOption`, `PgqueueError`."""

    def __init__(self, task: Task[..., Any], job: ClaimedJob, name: str, function: Callable[..., Any]):
        check_name("step", name, 200)
        if (outer := _within.get()) is not None:
            # It would wait for a second connection while it holds one, as may all the others.
            raise PgqueueError(
                f"step {name}: it is taken inside of step {outer}, which has a connection; take one after the other"
            )
        self.takes_connection = takes_connection(function)
        self.look: Call[str | None] = calls.step_result(job.id, name)
        self._task = task
        self._job = job
        self._name = name

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Where its function runs in its transaction, and no other step can be taken."""
        token = _within.set(self._name)
        try:
            yield
        finally:
            _within.reset(token)

    def record(self, result: str) -> Call[None]:
        """Writes down what it returned, in the transaction in which it was taken or after it."""
        sealed = self._task.seal(result, "step", self._job.queue)
        return calls.record_step(self._job.id, self._job.lease, self._name, sealed)

    def read(self, result: str) -> str:
        """What it returned, out of what was recorded or is about to be. Raises `CannotDecrypt`."""
        return self._task.unseal(result, "step", self._job.queue)


def takes_connection(function: Callable[..., Any]) -> bool:
    """Whether a step is to be called with a connection, in whose transaction it is recorded."""
    required = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return bool(required)


def encode(name: str, result: Any) -> str:
    """A step's result as it is stored. Raises `InvalidOption` naming the step."""
    text = encode_args({"result": result}, limit=MAX_RESULT_BYTES, root=f"step {name}", error=InvalidOption)
    return text[len('{"result":') : -1]


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
