"""Deaths of a worker, arranged: `crash_after`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, get_args

from pgqueue.error_text import did_you_mean, safe_repr
from pgqueue.errors import InvalidOption
from pgqueue.task import Enqueueable

Point: TypeAlias = Literal["claim", "effects", "completion"]


class Crash(BaseException):
    """Stands for the end of the worker's process. Nothing that a handler catches on purpose."""


class Crashes:
    """What `crash_after` gives: `count` says how many attempts have died so far."""

    def __init__(self, point: Point, *, times: int, task: str | None):
        self.point = point
        self.count = 0
        self._times = times
        self._task = task

    def comes(self, point: Point, task: str) -> bool:
        """Whether the worker dies here and now; counts it."""
        if point != self.point or self._task not in (None, task) or self.count >= self._times:
            return False
        self.count += 1
        return True


arranged: ContextVar[Crashes | None] = ContextVar("pgqueue_crashes", default=None)
"""What the `with crash_after(…)` around the running code has arranged."""


@contextmanager
def crash_after(
    point: Point, /, *, times: int = 1, task: Enqueueable[Any] | str | None = None
) -> Iterator[Crashes]:
    """Lets the worker die in the middle of an attempt, as if it was killed, while `drain` or `run_one` is under way.

        with crash_after("effects"):
            drained = drain(app, connection)
        assert (drained.crashed, drained.completed) == (1, 1)
        assert gateway.charges == 1

    The job is rescued as from a dead worker and run again, so that a `drain` shows whether its handler may run
    twice. `point` says where it dies:

    - "claim": before the handler. The attempt is given back.
    - "effects": the handler has returned, its completion is not recorded. What a transactional task has written
      is rolled back; other effects stay, and happen again.
    - "completion": the completion is recorded. The job does not run again.

    The first `times` attempts that come to the point die, those of `task` if it is given; a job starts at most
    `max_attempts` + 3 times, then it is a dead letter. Raises `AssertionError` at the end of the block when there was none: then the test has
    shown nothing. Raises `InvalidOption` for a point that does not exist.
    """
    if point not in get_args(Point):
        raise InvalidOption(
            f"point: expected one of {', '.join(get_args(Point))}, got {safe_repr(point)}"
            f"{did_you_mean(str(point), get_args(Point))}"
        )
    name = task.task.name if isinstance(task, Enqueueable) else task
    crashes = Crashes(point, times=times, task=name)
    token = arranged.set(crashes)
    try:
        yield crashes
    finally:
        arranged.reset(token)
    if not crashes.count:
        whose = f"attempt of {name}" if name else "attempt"
        raise AssertionError(f"no {whose} came to the point {point!r}: nothing was crashed")
