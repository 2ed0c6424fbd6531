"""Steps of a handler that are taken once over all attempts of a job."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import msgspec

from pgqueue import calls
from pgqueue.drivers import run
from pgqueue.encoding import encode_args
from pgqueue.errors import InvalidOption
from pgqueue.job import ClaimedJob
from pgqueue.options import check_name
from pgqueue.worker.executors.transactional import Transactions

MAX_RESULT_BYTES = 65_536


class Steps:
    """What stands behind `ctx.step`, over the worker's transactions."""

    def __init__(self, transactions: Transactions):
        self._transactions = transactions

    async def take(self, job: ClaimedJob, name: str, function: Callable[..., Any]) -> Any:
        """The result of a step: of an earlier attempt, or of `function`, called now and recorded."""
        check_name("step", name, 200)
        if takes_connection(function):
            async with self._transactions.transaction() as connection:
                taken = await run(connection, calls.step_result(job.id, name))
                if taken is None:
                    taken = encode(name, await _awaited(function(connection)))
                    await run(connection, calls.record_step(job.id, job.lease, name, taken))
        else:
            async with self._transactions.transaction() as connection:
                taken = await run(connection, calls.step_result(job.id, name))
            if taken is None:
                taken = encode(name, await _awaited(function()))
                async with self._transactions.transaction() as connection:
                    await run(connection, calls.record_step(job.id, job.lease, name, taken))
        return msgspec.json.decode(taken)

    def take_sync(self, job: ClaimedJob, name: str, function: Callable[..., Any]) -> Any:
        """`take` for a handler in a thread."""
        check_name("step", name, 200)
        if takes_connection(function):
            with self._transactions.sync_transaction() as connection:
                taken = run(connection, calls.step_result(job.id, name))
                if taken is None:
                    taken = encode(name, function(connection))
                    run(connection, calls.record_step(job.id, job.lease, name, taken))
        else:
            with self._transactions.sync_transaction() as connection:
                taken = run(connection, calls.step_result(job.id, name))
            if taken is None:
                taken = encode(name, function())
                with self._transactions.sync_transaction() as connection:
                    run(connection, calls.record_step(job.id, job.lease, name, taken))
        return msgspec.json.decode(taken)


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
