"""Many jobs at once: checked before any is sent, and sent in calls of a bounded size."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeAlias, overload

from pgqueue import calls
from pgqueue.calls import Call
from pgqueue.context import Context
from pgqueue.drivers import AsyncTarget
from pgqueue.error_text import safe_repr
from pgqueue.errors import InvalidOption, UnusableConnection
from pgqueue.job import Job
from pgqueue.pools import OwnConnections
from pgqueue.task import Enqueueable, Item, check_task

P = ParamSpec("P")
RunCall: TypeAlias = Callable[[Any, Call[Any]], Any]
"""`drivers.run`, or what traces it."""

MAX_ITEMS = 100_000
MAX_CHARACTERS = 256 * 1024 * 1024
"""Bounds of one bulk: it is held in memory here, and is one transaction there."""
BATCH_ITEMS = 5_000
BATCH_CHARACTERS = 8 * 1024 * 1024
"""Bounds of one call of a bulk: what the server parses at once stays a few dozen megabytes."""


class Bulk:
    """Jobs that are enqueued together at the end of a block. Made by `app.bulk(…)`."""

    def __init__(self, own: OwnConnections, target: Any, run_call: RunCall):
        self._own = own
        self._target = target
        self._run_call = run_call
        self._items: list[Item] = []
        self._size = 0
        self.jobs: list[Job] = []
        """After the block: the jobs, in the order of the calls of `enqueue`."""

    @overload
    def enqueue(
        self,
        task: Enqueueable[Callable[Concatenate[Context[Any], P], Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None: ...
    @overload
    def enqueue(self, task: Enqueueable[Callable[P, Any]], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def enqueue(self, task: Enqueueable[Any], /, *args: Any, **kwargs: Any) -> None:
        """Adds one job, checked now and enqueued at the end of the block.

        Raises `InvalidArgs`, and `InvalidOption` when it would be more than 100,000, or 256 MiB of JSON.
        """
        item = check_task(task).item(*args, **kwargs)
        size = self._size + len(item.json)
        if len(self._items) >= MAX_ITEMS or size > MAX_CHARACTERS:
            raise _too_much(size)
        self._size = size
        self._items.append(item)

    def __len__(self) -> int:
        return len(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if self._target is None:
            with self._own.transaction() as connection:
                jobs: list[Job] = send_items(connection, self._items, self._run_call, tells=False)
            self.jobs = jobs  # only now are they committed
            tell(self._items, jobs)
            return
        self.jobs = send_items(self._target, self._items, self._run_call, may_await=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if self._target is None:
            async with self._own.async_transaction() as connection:
                jobs: list[Job] = await send_items(connection, self._items, self._run_call, tells=False)
            self.jobs = jobs  # only now are they committed
            tell(self._items, jobs)
            return
        sent = send_items(self._target, self._items, self._run_call)
        self.jobs = await sent if inspect.isawaitable(sent) else sent


def check_items(items: Iterable[Item]) -> list[Item]:
    """All of the items, before any of them is sent. Raises `InvalidOption`."""
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidOption(f"items: expected items made by task.item(…), got {safe_repr(items)}")
    checked: list[Item] = []
    size = 0
    for index, item in enumerate(items):
        if type(item) is not Item:
            raise InvalidOption(f"items[{index}]: expected task.item(…), got {safe_repr(item)}")
        size += len(item.json)
        if index >= MAX_ITEMS or size > MAX_CHARACTERS:
            raise _too_much(size)
        checked.append(item)
    return checked


def _too_much(size: int) -> InvalidOption:
    told = f"{MAX_CHARACTERS:,} characters of JSON" if size > MAX_CHARACTERS else f"{MAX_ITEMS:,} jobs"
    return InvalidOption(
        f"items: more than {told}, which is the limit of one call: enqueue them in parts, which may be in one "
        "transaction of yours"
    )


def send_items(
    target: Any, items: Sequence[Item], run_call: RunCall, *, may_await: bool = True, tells: bool = True
) -> Any:
    """Runs the calls one after the other with `run_call`; a list, or an awaitable of it for an async target.

    Then it tells the hooks of `enqueued`; without `tells` that is left to the caller, who commits first.
    """
    batches = _batches(items)
    # The kind of target shows in what the first call gives; an empty bulk makes one call as well.
    first: Any = run_call(target, calls.enqueue_many(next(batches)))
    if inspect.isawaitable(first):
        if not may_await:
            if inspect.iscoroutine(first):
                first.close()
            raise UnusableConnection("this connection is async: use `async with app.bulk(connection)`")
        return _send_async(target, first, batches, run_call, items if tells else ())
    jobs: list[Job] = first
    for batch in batches:
        more: list[Job] = run_call(target, calls.enqueue_many(batch))
        jobs += more
    if tells:
        tell(items, jobs)
    return jobs


def tell(items: Iterable[Item], jobs: Iterable[Job]) -> None:
    """Tells the hooks of `enqueued` of the jobs that items have become."""
    for item, job in zip(items, jobs, strict=False):
        if item.tell is not None:
            item.tell(job)


async def _send_async(
    target: AsyncTarget,
    first: Awaitable[list[Job]],
    batches: Iterator[str],
    run_call: RunCall,
    items: Sequence[Item],
) -> list[Job]:
    jobs = await first
    for batch in batches:
        more: list[Job] = await run_call(target, calls.enqueue_many(batch))
        jobs += more
    tell(items, jobs)
    return jobs


def _batches(items: Sequence[Item]) -> Iterator[str]:
    """JSON arrays of the items, each within the bounds of one call; at least one, if empty."""
    batch: list[str] = []
    size = 0
    for item in items:
        if batch and (len(batch) >= BATCH_ITEMS or size + len(item.json) > BATCH_CHARACTERS):
            yield f"[{','.join(batch)}]"
            batch, size = [], 0
        batch.append(item.json)
        size += len(item.json)
    yield f"[{','.join(batch)}]"
