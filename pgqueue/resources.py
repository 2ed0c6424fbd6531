"""What providers have made: opened when it is first needed, closed at the end of the worker or of the attempt."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any, TypeVar

import structlog

from pgqueue.context import Context
from pgqueue.dependencies import Provider, Providers, type_text
from pgqueue.error_text import describe_error

T = TypeVar("T")

log = structlog.get_logger("pgqueue.worker")


class Resources:
    """The values of scope "worker": one set for each worker process, and one for each test that needs some.

    Each is opened by the first attempt that needs it; while that fails, the attempts fail, and the next one
    tries again. Async ones are opened and closed by an asyncio task of their own, because some (a task
    group, say) may not be left in another task than they were entered in.
    """

    def __init__(self, providers: Providers):
        self.providers = providers
        self._values: dict[Any, Any] = {}
        self._locks: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()
        self._entered: list[tuple[Provider, AbstractContextManager[Any]]] = []
        self._keepers: dict[Any, _Keeper] = {}
        self._open: list[_Keeper] = []
        # What is opened for all jobs must not live in the context variables of the one that came first.
        self._context = contextvars.copy_context()

    def value(self, provider: Provider) -> Any:
        """The value of a provider that need not be awaited. Called by any thread; the first one opens it."""
        kind = provider.kind
        if kind in self._values:
            return self._values[kind]
        with self._lock:
            lock = self._locks.setdefault(kind, threading.Lock())
        with lock:
            if kind not in self._values:
                self._values[kind] = self._context.copy().run(self._make, provider)
        return self._values[kind]

    def _make(self, provider: Provider) -> Any:
        overrides = self.providers.overrides
        needs = {
            name: overrides[kind] if kind in overrides else self.value(self.providers[kind])
            for name, kind in provider.needs.items()
        }
        made = provider.call(**needs)
        if provider.how != "opened":
            return made
        value = made.__enter__()
        self._entered.append((provider, made))
        return value

    async def wait_for(self, provider: Provider) -> Any:
        """The value of a provider, for code in an event loop, which a slow one does not block."""
        if provider.kind in self._values:
            return self._values[provider.kind]
        if not self.providers.waits(provider):
            loop = asyncio.get_running_loop()
            value, error = await loop.run_in_executor(None, _outcome, self.value, provider)
            if error is not None:
                raise error
            return value
        keeper = self._keepers.get(provider.kind)
        if keeper is None:
            keeper = self._keepers[provider.kind] = _Keeper(self, provider, self._context.copy())
        # An attempt that is cancelled while it waits takes nothing from the others.
        return await asyncio.shield(keeper.value)

    def opened(self, keeper: _Keeper, error: BaseException | None) -> None:
        """Said by a keeper. What could not be opened is tried again by the next attempt."""
        if error is None:
            self._open.append(keeper)
        else:
            del self._keepers[keeper.provider.kind]

    async def close(self) -> None:
        """Closes all that is open, the latest first. What goes wrong is logged."""
        for keeper in [keeper for keeper in self._keepers.values() if keeper not in self._open]:
            await keeper.close()
        while self._open:  # what was open later may need what was open before
            keeper = self._open.pop()
            await keeper.close()
            del self._keepers[keeper.provider.kind]
        if self._entered:
            await asyncio.get_running_loop().run_in_executor(None, self._leave)
        self._values.clear()

    def _leave(self) -> None:
        while self._entered:
            provider, entered = self._entered.pop()
            try:
                # Not by an ExitStack: one that fails to close is no error of those that were open before it.
                entered.__exit__(None, None, None)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the others are to be closed
                _report(provider, error)


class _Keeper:
    """Holds one async value open, in a task of its own."""

    def __init__(self, resources: Resources, provider: Provider, context: contextvars.Context):
        self.provider = provider
        self.value: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # It may go unheard: whoever asked for it was cancelled.
        self.value.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._resources = resources
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._keep(), name=f"pgqueue {provider.name}", context=context)

    async def _keep(self) -> None:
        try:
            async with AsyncExitStack() as stack:
                scope = JobScope(self._resources, None, stack)
                self.value.set_result(await scope.make(self.provider))
                self._resources.opened(self, None)
                await self._closing.wait()
        except BaseException as error:
            if self.value.done():
                if isinstance(error, asyncio.CancelledError):
                    raise  # the loop ends, and nobody has closed us
                _report(self.provider, error)
                return
            self._resources.opened(self, error)
            if isinstance(error, asyncio.CancelledError):
                self.value.cancel()
            else:
                self.value.set_exception(error)

    async def close(self) -> None:
        self._closing.set()
        if not self.value.done():
            self._task.cancel()
        await asyncio.wait([self._task])


class JobScope:
    """The values of one attempt, closed with `stack`. Values of scope "worker" come from `resources`.

    In a thread its coroutines are run by `complete`: there nothing that is provided has to be awaited.
    """

    def __init__(
        self, resources: Resources, ctx: Context[Any] | None, stack: AsyncExitStack, in_thread: bool = False
    ):
        self._resources = resources
        self._ctx = ctx
        self._stack = stack
        self._in_thread = in_thread
        self._values: dict[Any, Any] = {}

    async def value(self, kind: Any) -> Any:
        """The value of a type: the same within an attempt, however often it is asked for."""
        providers = self._resources.providers
        if kind in providers.overrides:
            return providers.overrides[kind]
        if kind in self._values:
            return self._values[kind]
        provider = providers[kind]
        if provider.scope == "job":
            value = await self.make(provider)
        elif self._in_thread:
            value = self._resources.value(provider)
        else:
            value = await self._resources.wait_for(provider)
        self._values[kind] = value
        return value

    async def make(self, provider: Provider) -> Any:
        """A new value, after what it needs; what was opened is closed with the stack."""
        needs = {name: await self.value(kind) for name, kind in provider.needs.items()}
        made = provider.call(self._ctx, **needs) if provider.takes_context else provider.call(**needs)
        match provider.how:
            case "made":
                return made
            case "awaited":
                return await made
            case "opened":
                return self._stack.enter_context(made)
            case "opened async":
                return await self._stack.enter_async_context(made)


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in which nothing has to be waited for, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        value: T = finished.value
        return value
    coroutine.close()
    raise RuntimeError("something async was provided to a sync handler")


def _outcome(function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
    try:
        return function(*args), None
    except BaseException as error:  # noqa: BLE001 - a future cannot carry every exception (StopIteration)
        return None, error


def _report(provider: Provider, error: BaseException) -> None:
    told = describe_error(error)
    log.error(
        "provider.close_failed",
        provider=provider.name,
        provides=type_text(provider.kind),
        error=told.type,
        message=told.message[:500],
        traceback=told.traceback,
    )
