"""What is enqueued: to look at it, and to assert it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack, overload

from pgqueue import calls
from pgqueue.drivers import AsyncTarget, SyncTarget, run
from pgqueue.job import WaitingJob
from pgqueue.task import Enqueueable
from pgqueue.testing.matching import Wanted, told

T = TypeVar("T")

Moment: TypeAlias = datetime | timedelta | float | str
"""A time with a time zone; or how long from now: seconds, a timedelta, text such as "3d"."""

AnyTask: TypeAlias = Enqueueable[Any] | str

MAX_JOBS = 10_000


class Criteria(TypedDict, total=False):
    """What `enqueued`, `assert_enqueued` and `refute_enqueued` look for. None is the same as not given.

    - `args`: what a job's args must hold. They may hold more, at any depth of objects; lists are compared as a
      whole. Values are compared in the form in which they are stored, so a UUID, a datetime or a dataclass may be
      given as to `enqueue`; what is no such value is compared by `==`: `mock.ANY`, `pytest.approx(…)`.
    - `queue`, `priority`, `unique_key`: exactly.
    - `tags`: the tags that it must have, among others.
    - `run_at`: when it is due, within `tolerance` (5 s by default, either way): a datetime, or how long from now
      ("3d"); or two of these, between which it is due. For a job that is ready this is the time at which it
      became so.
    """

    args: Mapping[str, Any] | None
    queue: str | None
    priority: int | None
    unique_key: str | None
    tags: Iterable[str] | None
    run_at: Moment | tuple[Moment, Moment] | None
    tolerance: float | str | timedelta


@overload
def enqueued(
    connection: SyncTarget, task: AnyTask | None = None, /, **criteria: Unpack[Criteria]
) -> list[WaitingJob]: ...
@overload
def enqueued(
    connection: AsyncTarget, task: AnyTask | None = None, /, **criteria: Unpack[Criteria]
) -> Awaitable[list[WaitingJob]]: ...
def enqueued(connection: Any, task: AnyTask | None = None, /, **criteria: Unpack[Criteria]) -> Any:
    """The jobs that wait, ready ones in the order in which they will run, then scheduled ones by their time.

        [job] = enqueued(connection, send_welcome)
        assert job.args == {"user_id": 7}

    Seen from `connection`, so with the jobs of its own open transaction; with an async one, await it.
    `task` is a task, its name, or not given: any. For `criteria` see `Criteria`.
    """
    wanted = Wanted(task, **criteria)
    return _look(connection, wanted, wanted.found_in)


@overload
def assert_enqueued(
    connection: SyncTarget,
    task: AnyTask | None = None,
    /,
    *,
    count: int | None = None,
    **criteria: Unpack[Criteria],
) -> list[WaitingJob]: ...
@overload
def assert_enqueued(
    connection: AsyncTarget,
    task: AnyTask | None = None,
    /,
    *,
    count: int | None = None,
    **criteria: Unpack[Criteria],
) -> Awaitable[list[WaitingJob]]: ...
def assert_enqueued(
    connection: Any,
    task: AnyTask | None = None,
    /,
    *,
    count: int | None = None,
    **criteria: Unpack[Criteria],
) -> Any:
    """Asserts that such a job waits, or `count` of them, and returns them.

        assert_enqueued(session, send_welcome, args={"user_id": 7}, queue="email", run_at="3d")

    What waits and the job that comes nearest are part of the failure. Like `enqueued` in all else.
    """
    __tracebackhide__ = True
    wanted = Wanted(task, **criteria)

    def check(jobs: Sequence[WaitingJob]) -> list[WaitingJob]:
        __tracebackhide__ = True
        found = wanted.found_in(jobs)
        if not found if count is None else len(found) != count:
            number = "no job" if not found else f"{len(found)} job{'s'[: len(found) - 1]}"
            rather = "" if count is None else f", not {count}"
            raise AssertionError(f"{number} of {wanted} enqueued{rather}\n\n{told(jobs, wanted)}")
        return found

    return _look(connection, wanted, check)


@overload
def refute_enqueued(
    connection: SyncTarget, task: AnyTask | None = None, /, **criteria: Unpack[Criteria]
) -> None: ...
@overload
def refute_enqueued(
    connection: AsyncTarget, task: AnyTask | None = None, /, **criteria: Unpack[Criteria]
) -> Awaitable[None]: ...
def refute_enqueued(connection: Any, task: AnyTask | None = None, /, **criteria: Unpack[Criteria]) -> Any:
    """Asserts that no such job waits. Like `assert_enqueued` in all else."""
    __tracebackhide__ = True
    wanted = Wanted(task, **criteria)

    def check(jobs: Sequence[WaitingJob]) -> None:
        __tracebackhide__ = True
        if found := wanted.found_in(jobs):
            verb = "is" if len(found) == 1 else "are"
            raise AssertionError(
                f"{len(found)} job{'s'[: len(found) - 1]} of {wanted} {verb} enqueued\n\n{told(found)}"
            )

    return _look(connection, wanted, check)


def _look(connection: Any, wanted: Wanted, then: Callable[[Sequence[WaitingJob]], T]) -> T | Awaitable[T]:
    __tracebackhide__ = True
    found = run(connection, calls.find_waiting(max_rows=MAX_JOBS))
    return _then(found, wanted, then) if inspect.isawaitable(found) else then(wanted.opened(found))


async def _then(
    found: Awaitable[Sequence[WaitingJob]], wanted: Wanted, then: Callable[[Sequence[WaitingJob]], T]
) -> T:
    __tracebackhide__ = True
    return then(wanted.opened(await found))
