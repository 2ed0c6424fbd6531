"""When a failed attempt is tried again: pure delay policies.

A policy says how many attempts a job has in all, and how long to wait after the n-th of them failed. The
first attempt counts too: `attempts=5` is one run and up to four more. Every wait is between 0 and ten
years whatever the numbers are; attempt 10,000 is as safe to ask for as attempt 1.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, ClassVar, Self, TypeAlias

import structlog

from pgqueue.error_text import safe_repr
from pgqueue.errors import InvalidOption
from pgqueue.job import seconds

Duration: TypeAlias = float | str | timedelta
"""Seconds, a `timedelta`, or text of number and unit: "90s", "5m", "1h"."""

MAX_ATTEMPTS = 32_767
"""What the column holds."""
DEFAULT_ATTEMPTS = 5


def check_attempts(value: Any, name: str = "attempts") -> int:
    """`value` when it is a number of attempts that a job can have; raises `InvalidOption` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_ATTEMPTS:
        raise InvalidOption(f"{name}: expected an integer from 1 to {MAX_ATTEMPTS}, got {safe_repr(value)}")
    return int(value)


def _number(name: str, value: Any, low: float, high: float) -> float:
    # false for NaN too
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidOption(f"{name}: expected a number from {low} to {high}, got {safe_repr(value)}")
    return float(value)


class RetryPolicy(ABC):
    """How often a job is tried, and the backoff between two attempts. Subclass it for one of your own."""

    attempts: int
    """Attempts in all, the first one included: 1 to 32767."""

    @abstractmethod
    def delay(self, attempt: int, error: BaseException | None = None) -> float | None:
        """Seconds to wait after the `attempt`-th attempt, from 1, failed with `error`. None gives up."""

    def to_json(self) -> dict[str, Any]:
        """What is stored with a job that has a policy of its own; `from_json` reads it again.

        Raises `InvalidOption` for a policy that is code.
        """
        raise InvalidOption(
            f"retry: {type(self).__name__} is code and cannot be stored with a job: declare it on the task, "
            "@app.task(retry=…), or use Fixed, Linear, Exponential or Fibonacci here"
        )

    def with_attempts(self, attempts: int) -> RetryPolicy:
        """The same backoff with another number of attempts."""
        return _Recounted(self, check_attempts(attempts))


@dataclass(frozen=True)
class _Recounted(RetryPolicy):
    """A policy of the user's own class under another number of attempts."""

    policy: RetryPolicy
    attempts: int

    def delay(self, attempt: int, error: BaseException | None = None) -> float | None:
        return self.policy.delay(attempt, error)


@dataclass(frozen=True)
class _Declared(RetryPolicy):
    """The policies that are plain numbers, and so can be stored."""

    attempts: int
    kind: ClassVar[str]

    @abstractmethod
    def _wait(self, attempt: int, /) -> float: ...

    def delay(self, attempt: int, error: BaseException | None = None) -> float:
        """Seconds to wait after the `attempt`-th attempt, from 1, failed; the same for every error."""
        del error
        return self._wait(attempt)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **{field.name: getattr(self, field.name) for field in fields(self)}}

    def with_attempts(self, attempts: int) -> Self:
        return replace(self, attempts=attempts)

    def _keep(self, **values: float) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)  # frozen for all but the constructor


@dataclass(frozen=True, init=False)
class Fixed(_Declared):
    """The same wait after each attempt: `base` seconds.

    >>> Fixed("30s", attempts=3).delay(2)
    30.0
    """

    kind = "fixed"
    base: float

    def __init__(self, base: Duration = 10, attempts: int = DEFAULT_ATTEMPTS):
        self._keep(base=seconds(base, name="base"), attempts=check_attempts(attempts))

    def _wait(self, _attempt: int, /) -> float:
        return self.base


@dataclass(frozen=True, init=False)
class Linear(_Declared):
    """`base` after the first attempt and `step` more after each one that follows, never more than `cap`.

    `step` is `base` unless given.

    >>> [Linear(10, step="5s", cap=18).delay(n) for n in (1, 2, 3)]
    [10.0, 15.0, 18.0]
    """

    kind = "linear"
    base: float
    step: float
    cap: float

    def __init__(
        self,
        base: Duration = 10,
        step: Duration | None = None,
        cap: Duration = "1h",
        attempts: int = DEFAULT_ATTEMPTS,
    ):
        self._keep(
            base=seconds(base, name="base"),
            step=seconds(base if step is None else step, name="step"),
            cap=seconds(cap, name="cap"),
            attempts=check_attempts(attempts),
        )

    def _wait(self, attempt: int, /) -> float:
        return min(self.cap, self.base + self.step * max(0, attempt - 1))


@dataclass(frozen=True, init=False)
class Exponential(_Declared):
    """`base` after the first attempt, `factor` times as long after each one that follows, at most `cap`.

    Each wait is spread evenly over `jitter` to either side, so that jobs which failed together do not come
    back together: with `jitter=0.2` over 80% to 120%, cut at `cap`. (A wait at the cap is spread over 80% to
    100% of it.)

    >>> [Exponential(base=2, factor=3, cap="1m", jitter=0).delay(n) for n in (1, 2, 3, 4, 10_000)]
    [2.0, 6.0, 18.0, 54.0, 60.0]
    """

    kind = "exponential"
    base: float
    factor: float
    cap: float
    jitter: float

    def __init__(
        self,
        base: Duration = 2,
        factor: float = 2,
        cap: Duration = "10m",
        jitter: float = 0.2,
        attempts: int = DEFAULT_ATTEMPTS,
    ):
        self._keep(
            base=seconds(base, name="base"),
            factor=_number("factor", factor, 1, 1000),
            cap=seconds(cap, name="cap"),
            jitter=_number("jitter", jitter, 0, 1),
            attempts=check_attempts(attempts),
        )

    def _wait(self, attempt: int, /) -> float:
        try:
            wait = min(self.cap, self.base * self.factor ** max(0, attempt - 1))
        except OverflowError:
            wait = self.cap if self.base else 0.0
        if self.jitter:
            high = min(self.cap, wait * (1 + self.jitter))
            wait = random.uniform(min(high, wait * (1 - self.jitter)), high)
        return wait


@dataclass(frozen=True, init=False)
class Fibonacci(_Declared):
    """`base` times 1, 1, 2, 3, 5, 8 …, at most `cap`: slower to grow than `Exponential`.

    >>> [Fibonacci("10s", cap="45s").delay(n) for n in (1, 2, 3, 4, 5)]
    [10.0, 10.0, 20.0, 30.0, 45.0]
    """

    kind = "fibonacci"
    base: float
    cap: float

    def __init__(self, base: Duration = 5, cap: Duration = "1h", attempts: int = DEFAULT_ATTEMPTS):
        self._keep(
            base=seconds(base, name="base"), cap=seconds(cap, name="cap"), attempts=check_attempts(attempts)
        )

    def _wait(self, attempt: int, /) -> float:
        current, following = self.base, self.base
        for _ in range(attempt - 1):
            if current >= self.cap or not current:
                break
            current, following = following, current + following
        return min(self.cap, current)


@dataclass(frozen=True, init=False)
class Custom(RetryPolicy):
    """A function of the attempt and its error: returns seconds (or "5m", a timedelta), or None to give up.

    It belongs to the task (`@app.task(retry=Custom(…))`) and cannot be stored with a single job. When the
    function itself raises, or returns what is no duration, the default policy's wait is used and a warning
    is logged: a job's failure is always recorded.

    >>> policy = Custom(lambda attempt, error: None if isinstance(error, KeyError) else 60.0, attempts=3)
    >>> policy.delay(1, OSError()), policy.delay(1, KeyError())
    (60.0, None)
    """

    function: Callable[[int, BaseException | None], Duration | None]
    attempts: int

    def __init__(
        self,
        function: Callable[[int, BaseException | None], Duration | None],
        attempts: int = DEFAULT_ATTEMPTS,
    ):
        if not callable(function):
            raise InvalidOption(
                f"function: expected a function of (attempt, error), got {safe_repr(function)}"
            )
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "attempts", check_attempts(attempts))

    def delay(self, attempt: int, error: BaseException | None = None) -> float | None:
        try:
            wait = self.function(attempt, error)
            return None if wait is None else seconds(wait, name="retry")
        except BaseException as failed:  # noqa: BLE001
            # Hazard: whatever is raised here, SystemExit included, would stand between a failed attempt and
            # its record. It is called and not awaited, so a cancellation of the worker cannot be lost.
            structlog.get_logger("pgqueue.retry").warning(
                "retry.function_failed",
                attempt=attempt,
                error=type(failed).__name__,
            )
            return DEFAULT_RETRY.delay(attempt)

    def with_attempts(self, attempts: int) -> Custom:
        return Custom(self.function, attempts)


DEFAULT_RETRY = Exponential(base=2, factor=5, cap="1h", jitter=0.2, attempts=DEFAULT_ATTEMPTS)
"""What a task has that says nothing: waits of about 2 s, 10 s, 50 s and 250 s, each ±20%.

The first retry comes soon, because most failures are a blip; the four together outlast a dependency that
is down for five minutes; then a person should look (the job is a dead letter). Sidekiq and River go on
for days with 25 attempts: `Exponential(base=2, factor=2, cap="12h", attempts=25)` is close to them.
"""

_KINDS: dict[str, type[_Declared]] = {
    policy.kind: policy for policy in (Fixed, Linear, Exponential, Fibonacci)
}


def from_json(stored: Mapping[str, Any]) -> RetryPolicy:
    """The policy that `to_json` wrote. Raises `InvalidOption` for anything else.

    >>> from_json({"kind": "fixed", "base": "30s", "attempts": 3})
    Fixed(attempts=3, base=30.0)
    """
    if not isinstance(stored, Mapping):
        raise InvalidOption(f"retry: expected a JSON object, got {type(stored).__name__}")
    values = dict(stored)
    kind = values.pop("kind", None)
    policy = _KINDS.get(kind) if isinstance(kind, str) else None
    if policy is None:
        raise InvalidOption(f"retry: the kind has to be one of {', '.join(_KINDS)}, got {safe_repr(kind)}")
    try:
        return policy(**values)
    except TypeError as error:
        raise InvalidOption(
            f"retry: {kind} takes {', '.join(f.name for f in fields(policy))}; got {', '.join(map(str, values))}"
        ) from error
