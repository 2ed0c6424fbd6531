"""The tasks that the workers under test run. Each writes into the history when it starts and when it ends.

`hold` and its kind wait at a gate until the test opens it (`History.open`): a test decides how long a job
takes, and never guesses.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

import pgqueue
from pgqueue.retry import Custom, Fixed, Linear, RetryPolicy

app = pgqueue.App(name="tests")
newer = pgqueue.App(name="the next release")
"""An app with a task that `app` lacks."""

FOLDER = Path(os.environ.get("TESTS_WORKER_FOLDER", "."))
_history: int | None = None


def note(ctx: pgqueue.Context[Any], what: str, **said: Any) -> None:
    """One line of the history, written at once."""
    global _history
    if _history is None:
        _history = os.open(FOLDER / "history", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    line = {"at": time.monotonic(), "pid": os.getpid(), "what": what, "job": ctx.id, "attempt": ctx.attempt}
    os.write(_history, json.dumps({**line, "said": said}).encode() + b"\n")


@contextlib.contextmanager
def noted(ctx: pgqueue.Context[Any], **said: Any) -> Iterator[None]:
    """Notes the start, and the end when the handler comes to it."""
    note(ctx, "start", **said)
    yield
    note(ctx, "end")


def is_first(ctx: pgqueue.Context[Any]) -> bool:
    """Whether this is the job's first start, whatever its attempt says."""
    try:
        os.close(os.open(FOLDER / f"first-{ctx.id}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def is_open(gate: str) -> bool:
    """Whether the test has opened a gate. Each process has one of its own, the gate `own`."""
    if gate == "own":
        gate = str(os.getpid())
    return (FOLDER / f"gate-{gate}").exists()


async def at_gate(gate: str) -> None:
    while not is_open(gate):  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.005)


def at_gate_sync(gate: str) -> None:
    while not is_open(gate):
        time.sleep(0.005)


# That take as long as the test wants


@app.task
async def quick(ctx: pgqueue.Context, seconds: float = 0) -> None:
    with noted(ctx):
        if seconds:
            await asyncio.sleep(seconds)


@app.task
def quick_sync(ctx: pgqueue.Context, seconds: float = 0) -> None:
    with noted(ctx):
        time.sleep(seconds)


@app.task
async def hold(ctx: pgqueue.Context, gate: str = "hold") -> None:
    """Cleans up when it is cancelled, and takes a moment for it."""
    with noted(ctx):
        try:
            await at_gate(gate)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            note(ctx, "cleaned up")
            raise


@app.task
def hold_sync(ctx: pgqueue.Context, gate: str = "hold") -> None:
    with noted(ctx):
        at_gate_sync(gate)


@app.task
async def hold_in_thread(ctx: pgqueue.Context, gate: str = "hold") -> None:
    """An async handler that leaves the work to a thread of asyncio's."""
    with noted(ctx):
        await asyncio.to_thread(at_gate_sync, gate)


@app.task
async def stubborn(ctx: pgqueue.Context, gate: str = "hold") -> None:
    """Will not be cancelled."""
    with noted(ctx):
        while not is_open(gate):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.005)


@app.task
async def hold_first(ctx: pgqueue.Context, gate: str = "hold") -> None:
    """Waits when it starts for the first time; runs through after that."""
    with noted(ctx):
        if is_first(ctx):
            await at_gate(gate)


@app.task
def hold_first_sync(ctx: pgqueue.Context, gate: str = "hold") -> None:
    with noted(ctx):
        if is_first(ctx):
            at_gate_sync(gate)


@app.task
async def hold_twice(ctx: pgqueue.Context) -> None:
    """Waits at the gate `first` when it starts for the first time, at `second` after that."""
    with noted(ctx):
        await at_gate("first" if is_first(ctx) else "second")


@app.task
async def block_loop(ctx: pgqueue.Context, seconds: float) -> None:
    """Does what no async handler should: nothing else of this process's loop runs meanwhile."""
    with noted(ctx):
        time.sleep(seconds)  # noqa: ASYNC251


@app.task
def hold_gil(ctx: pgqueue.Context, seconds: int) -> None:
    """Keeps the interpreter's lock as one long regex match does, but for a known time: PyDLL does not let go."""
    with noted(ctx):
        ctypes.PyDLL(None).sleep(seconds)


@app.task
async def block_loop_first(ctx: pgqueue.Context, seconds: float) -> None:
    """Blocks when it starts for the first time; runs through after that."""
    with noted(ctx):
        if is_first(ctx):
            time.sleep(seconds)  # noqa: ASYNC251


@app.task
async def backtrack(ctx: pgqueue.Context, length: int) -> None:
    """A regular expression that takes twice as long with each letter more, and holds the interpreter's lock."""
    with noted(ctx):
        re.match(r"(a+)+$", "a" * length + "b")


@app.task
def backtrack_sync(ctx: pgqueue.Context, length: int) -> None:
    """Goes on for a moment after it: whoever looks needs the lock too, and may come late."""
    with noted(ctx):
        re.match(r"(a+)+$", "a" * length + "b")
        time.sleep(0.5)


# What they see


@app.task
async def describe(ctx: pgqueue.Context, user_id: int) -> None:
    with noted(ctx, **_described(ctx), user_id=user_id):
        pass


@app.task
def describe_sync(ctx: pgqueue.Context, user_id: int) -> None:
    with noted(ctx, **_described(ctx), user_id=user_id):
        pass


def _described(ctx: pgqueue.Context[Any]) -> dict[str, Any]:
    try:
        connection = repr(ctx.connection)
    except pgqueue.errors.PgqueueError as error:
        connection = f"refused: {error}"
    return {
        "id": ctx.id,
        "attempt": ctx.attempt,
        "max_attempts": ctx.max_attempts,
        "queue": ctx.queue,
        "task": ctx.task,
        "priority": ctx.priority,
        "tags": ctx.tags,
        "metadata": ctx.metadata,
        "idempotency_key": ctx.idempotency_key,
        "connection": connection,
    }


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@app.task
async def visit(ctx: pgqueue.Context) -> None:
    with noted(
        ctx, found=tenant.get(), bound=structlog.contextvars.get_contextvars().get("tenant", "nobody")
    ):
        tenant.set(f"tenant {ctx.id}")
        structlog.contextvars.bind_contextvars(tenant=ctx.id)
        await asyncio.sleep(0.005)
        note(ctx, "later", found=tenant.get())


@app.task
def visit_sync(ctx: pgqueue.Context) -> None:
    with noted(
        ctx, found=tenant.get(), bound=structlog.contextvars.get_contextvars().get("tenant", "nobody")
    ):
        tenant.set(f"tenant {ctx.id}")
        structlog.contextvars.bind_contextvars(tenant=ctx.id)
        time.sleep(0.005)
        note(ctx, "later", found=tenant.get())


# How they end


@app.task(retry=Fixed(0.05, attempts=3))
async def fails(ctx: pgqueue.Context) -> None:
    note(ctx, "start")
    raise ValueError(f"attempt {ctx.attempt} went wrong")


@app.task(retry=Linear(base=0.2, step=0.4, attempts=3))
def fails_sync(ctx: pgqueue.Context) -> None:
    note(ctx, "start")
    raise ValueError(f"attempt {ctx.attempt} went wrong")


@app.task(retry=Fixed(3600, attempts=3))
async def asks_again(ctx: pgqueue.Context, times: int) -> None:
    note(ctx, "start")
    if ctx.attempt <= times:
        raise pgqueue.Retry(after=0.3, reason="rate limited")


@app.task(retry=Fixed(3600, attempts=1))
async def naps(ctx: pgqueue.Context) -> None:
    with noted(ctx):
        if is_first(ctx):
            raise pgqueue.Snooze(0.2)


@app.task(retry=Fixed(3600, attempts=5))
async def gives_up(ctx: pgqueue.Context) -> None:
    note(ctx, "start")
    raise pgqueue.Fail("the account was closed")


@app.task(retry=Fixed(3600, attempts=5), permanent=LookupError)
async def looks_up(ctx: pgqueue.Context) -> None:
    note(ctx, "start")
    raise KeyError("no such user")


@app.task(retry=Custom(lambda _, error: None if isinstance(error, KeyError) else 0.05, attempts=5))
async def chooses(ctx: pgqueue.Context) -> None:
    note(ctx, "start")
    raise KeyError("no use") if ctx.attempt == 2 else OSError("try again")


class Hopeless(RetryPolicy):
    """A policy of the user's own that breaks when it is asked."""

    attempts = 5

    def delay(self, attempt: int, error: BaseException | None = None) -> float | None:
        raise RuntimeError(f"no idea after attempt {attempt}") from error


class Endless(RetryPolicy):
    """A policy of the user's own that answers nonsense."""

    attempts = 5

    def delay(self, attempt: int, error: BaseException | None = None) -> float | None:
        return float("nan") if error is not None else attempt


@app.task(retry=Hopeless())
async def hopeless(ctx: pgqueue.Context) -> None:
    note(ctx, "start")
    raise ValueError("went wrong")


@app.task(retry=Endless())
async def endless(ctx: pgqueue.Context) -> None:
    note(ctx, "start")
    raise ValueError("went wrong")


@app.task
async def takes_number(ctx: pgqueue.Context, number: int) -> None:
    note(ctx, "start", number=number)


@dataclass
class Order:
    id: int

    def __post_init__(self) -> None:
        raise KeyError(f"order {self.id} is not in the catalogue")


@app.task
async def takes_order(ctx: pgqueue.Context, order: Order) -> None:
    note(ctx, "start", order=order.id)


@newer.task
async def not_yet_known(ctx: pgqueue.Context) -> None:
    with noted(ctx):
        pass


# Hostile endings


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class _Liar(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise ZeroDivisionError(name)
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=_Liar):
    pass


def _cyclic() -> Exception:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def _deep() -> Exception:
    error: Exception = ValueError("the first")
    for number in range(5_000):
        follower = ValueError(f"cause {number}")
        follower.__cause__ = error
        error = follower
    return error


def _endless_recursion() -> None:
    _endless_recursion()


HOSTILE: dict[str, Any] = {
    "NUL": lambda: ValueError("a\0b"),
    "lone surrogate": lambda: ValueError("a\ud800b"),
    "surrogate in its class name": lambda: type("Bad\udfffName", (Exception,), {})("x"),
    "text that raises": NoText,
    "text that exits": Exits,
    "class without a name": Nameless,
    "30 MB of text": lambda: ValueError("x" * 30_000_000),
    "JSON that is none": lambda: ValueError('{"id": 1e400, "x": "\\ud800"}]'),
    "SystemExit": lambda: SystemExit(7),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": lambda: asyncio.CancelledError("by the handler"),
    "GeneratorExit": GeneratorExit,
    "BaseException": lambda: BaseException("bare"),
    "TimeoutError": TimeoutError,
    "group of 10,000": lambda: ExceptionGroup("many", [ValueError(str(n)) for n in range(10_000)]),
    "causes in a circle": _cyclic,
    "5,000 causes": _deep,
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": StopAsyncIteration,
    "a Snooze for ever": lambda: _patched(pgqueue.Snooze(1), delay=float("inf")),
    "a Snooze without a delay": lambda: HalfMade(),
    "a Retry after nonsense": lambda: _patched(pgqueue.Retry(after=1), after=float("nan")),
    "LeaseLost": lambda: pgqueue.errors.LeaseLost("says the handler"),
    "UnknownWorker": lambda: pgqueue.errors.UnknownWorker("says the handler"),
    "DatabaseUnavailable": lambda: pgqueue.errors.DatabaseUnavailable("says the handler"),
}


class HalfMade(pgqueue.Snooze):
    def __init__(self) -> None:
        Exception.__init__(self, "who needs super().__init__?")


def _patched(error: Exception, **attributes: Any) -> Exception:
    vars(error).update(attributes)
    return error


@app.task(retry=Fixed(0, attempts=1))
async def hostile(ctx: pgqueue.Context, kind: str) -> None:
    note(ctx, "start", kind=kind)
    if kind == "endless recursion":
        _endless_recursion()
    raise HOSTILE[kind]()


@app.task(retry=Fixed(0, attempts=1))
def hostile_sync(ctx: pgqueue.Context, kind: str) -> None:
    note(ctx, "start", kind=kind)
    if kind == "endless recursion":
        _endless_recursion()
    raise HOSTILE[kind]()


@app.task(retry=Fixed(0, attempts=1))
async def hostile_later(ctx: pgqueue.Context, kind: str) -> None:
    """After it has suspended, so that it does not end in its first step."""
    note(ctx, "start", kind=kind)
    await asyncio.sleep(0.001)
    if kind == "endless recursion":
        _endless_recursion()
    raise HOSTILE[kind]()


@app.task
async def returns_strangely(ctx: pgqueue.Context, kind: str) -> Any:
    note(ctx, "start", kind=kind)
    return {
        "generator": (number for number in range(3)),
        "bytes": b"\xff\0",
        "awaitable": _Never(),
        "text": "\ud800",
    }[kind]


class _Never:
    def __await__(self) -> Any:
        raise AssertionError("nobody should await a handler's result")


# Poison


@app.task
async def kills_its_process(ctx: pgqueue.Context) -> None:
    """In another way at each attempt. 78 is what a child says that was misconfigured: no handler may say it."""
    note(ctx, "start")
    match ctx.attempt:
        case 1:
            os._exit(78)
        case 2:
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            ctypes.string_at(0)


# That are cancelled


@app.task(retry=Fixed(0, attempts=5))
def watches_sync(ctx: pgqueue.Context, then: str) -> None:
    """Looks whether it was cancelled, and raises or returns when it was."""
    with noted(ctx):
        while not ctx.cancelled:
            time.sleep(0.005)
        if then == "raise":
            raise RuntimeError("cancelled in the middle")


@app.task
async def withdraws() -> None:
    raise pgqueue.Cancel("nothing to do")
