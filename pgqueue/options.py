"""Options of a task and of its jobs: each is checked where it is given, with an error that names it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec

from pgqueue.encoding import encode_args
from pgqueue.error_text import did_you_mean, safe_repr
from pgqueue.errors import InvalidOption
from pgqueue.job import seconds
from pgqueue.retry import DEFAULT_ATTEMPTS, Duration, RetryPolicy, check_attempts

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5
MAX_TAGS = 20
MIN_TIMEOUT = 0.1
"""Seconds; the sweeper looks ten times a second."""
MAX_METADATA_BYTES = 4096
_FORBIDDEN = re.compile(r"""[\x00-\x1f\x7f-\x9f\ud800-\udfff*'"`\\]""")
_YEARS = range(1970, 2200)


class TaskOptions(TypedDict, total=False):
    """What `@app.task(…)` takes; `App.task` says what each means."""

    name: str | None
    queue: str
    priority: int
    retry: RetryPolicy
    permanent: Sequence[type[BaseException]] | type[BaseException]
    transactional: bool
    timeout: Duration | None


class JobOptions(TypedDict, total=False):
    """What `task.using(…)` takes; `BoundTask.using` says what each means. None is the same as not given."""

    queue: str | None
    priority: int | None
    delay: Duration | None
    run_at: datetime | None
    retry: RetryPolicy | None
    max_attempts: int | None
    timeout: Duration | None
    expires: Duration | datetime | None
    tags: Sequence[str] | None
    metadata: Mapping[str, Any] | None
    unique_key: str | None
    idempotency_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `using` sets for the jobs to come; None leaves it to the task. Checked and in the form stored."""

    queue: str | None = None
    priority: int | None = None
    delay: float | None = None
    run_at: str | None = None
    retry: RetryPolicy | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    expires: float | str | None = None
    tags: tuple[str, ...] | None = None
    metadata: str | None = None
    unique_key: str | None = None
    idempotency_key: str | None = None

    @classmethod
    def checked(cls, **given: Any) -> Options:
        """Options out of what a user gave; None is not given. Raises `InvalidOption`."""
        for name in given:
            if name not in _CHECKS:
                raise InvalidOption(f"{name}: there is no such option{did_you_mean(name, _CHECKS)}")
        return cls(**{name: _CHECKS[name](name, value) for name, value in given.items() if value is not None})

    def merged(self, later: Options) -> Options:
        """These options with what `later` sets. Raises `InvalidOption` where the two together make no sense."""
        values = {
            field.name: value
            if (value := getattr(later, field.name)) is not None
            else getattr(self, field.name)
            for field in fields(self)
        }
        merged = Options(**values)
        if merged.delay is not None and merged.run_at is not None:
            raise InvalidOption("delay, run_at: only one of the two can be given")
        return merged

    def row(self, task: str, *, queue: str, priority: int, max_attempts: int) -> dict[str, Any]:
        """The arguments of `calls.enqueue` but `args`; what equals the default of the SQL is left out.

        `queue`, `priority` and `max_attempts` are the task's own, for what is not set here.
        """
        retry = self.retry
        attempts = self.max_attempts or (max_attempts if retry is None else retry.attempts)
        queue = self.queue or queue
        priority = priority if self.priority is None else self.priority
        stored: dict[str, Any] = {}
        if self.tags:
            stored["tags"] = self.tags
        if self.metadata is not None:
            stored["metadata"] = msgspec.Raw(self.metadata.encode())
        if self.timeout is not None:
            stored["timeout"] = self.timeout
        if self.expires is not None:
            stored["expires_at" if isinstance(self.expires, str) else "expires_in"] = self.expires
        if retry is not None:
            stored["retry"] = retry.with_attempts(attempts).to_json()
        row = {
            "task": task,
            "queue": None if queue == DEFAULT_QUEUE else queue,
            "priority": None if priority == DEFAULT_PRIORITY else priority,
            "run_at": self.run_at,
            "delay": self.delay,
            "max_attempts": None if attempts == DEFAULT_ATTEMPTS else attempts,
            "unique_key": self.unique_key,
            "idempotency_key": self.idempotency_key,
            "options": msgspec.json.encode(stored).decode() if stored else None,
        }
        return {name: value for name, value in row.items() if value is not None}


def check_name(name: str, value: Any, limit: int = 100) -> str:
    """A queue's, tag's or task's name, if it is one."""
    if not isinstance(value, str) or not 1 <= len(value) <= limit:
        given = f"{len(value)} characters" if isinstance(value, str) else safe_repr(value)
        raise InvalidOption(f"{name}: expected text of 1 to {limit} characters, got {given}")
    if found := _FORBIDDEN.search(value):
        raise InvalidOption(
            f"{name}: {safe_repr(found[0])} cannot be part of it (control characters, quotes, backslash, *), "
            f"got {safe_repr(value)}"
        )
    return str.__str__(value)  # not str(value): an Enum of text may say something else there


def _check_key(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 255:
        given = f"{len(value)} characters" if isinstance(value, str) else safe_repr(value)
        raise InvalidOption(f"{name}: expected text of 1 to 255 characters, got {given}")
    if any(mark == "\0" or "\ud800" <= mark <= "\udfff" for mark in value):
        raise InvalidOption(f"{name}: NUL and lone surrogates cannot be stored, got {safe_repr(value)}")
    return str.__str__(value)  # not str(value): an Enum of text may say something else there


def check_timeout(name: str, value: Any) -> float:
    timeout = seconds(value, name=name)
    if timeout < MIN_TIMEOUT:
        raise InvalidOption(f"{name}: expected at least {MIN_TIMEOUT} s, got {safe_repr(value)}")
    return timeout


def _check_expires(name: str, value: Any) -> float | str:
    return _check_run_at(name, value) if isinstance(value, datetime) else seconds(value, name=name)


def check_priority(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
        raise InvalidOption(f"{name}: expected an integer from 0 (first) to 9, got {safe_repr(value)}")
    return int(value)


def _check_run_at(name: str, value: Any) -> str:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidOption(f"{name}: expected a datetime with a time zone, got {safe_repr(value)}")
    if value.year not in _YEARS:
        raise InvalidOption(
            f"{name}: expected a year from {_YEARS[0]} to {_YEARS[-1]}, got {value.isoformat()}"
        )
    return value.astimezone(UTC).isoformat()


def check_retry(name: str, value: Any) -> RetryPolicy:
    if not isinstance(value, RetryPolicy):
        raise InvalidOption(
            f"{name}: expected a policy such as Exponential(attempts=3), got {safe_repr(value)}"
        )
    return value


def _check_stored_retry(name: str, value: Any) -> RetryPolicy:
    policy = check_retry(name, value)
    policy.to_json()  # raises for one that is code
    return policy


def _check_tags(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise InvalidOption(f"{name}: expected a list of text, got {safe_repr(value)}")
    if len(value) > MAX_TAGS:
        raise InvalidOption(f"{name}: {len(value)} of them, the limit is {MAX_TAGS}")
    tags = tuple(check_name(f"{name}[{index}]", tag) for index, tag in enumerate(value))
    return tuple(sorted(tags)) if isinstance(value, set | frozenset) else tags


def _check_metadata(name: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        raise InvalidOption(f"{name}: expected a mapping, got {safe_repr(value)}")
    return encode_args(dict(value), limit=MAX_METADATA_BYTES, root=name, error=InvalidOption)


def check_permanent(given: Any) -> tuple[type[BaseException], ...]:
    kinds = (given,) if isinstance(given, type) else tuple(given)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise InvalidOption(f"permanent: expected exception types, got {safe_repr(kind)}")
    return kinds


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "queue": check_name,
    "priority": check_priority,
    "delay": lambda name, value: seconds(value, name=name),
    "run_at": _check_run_at,
    "retry": _check_stored_retry,
    "max_attempts": lambda name, value: check_attempts(value, name),
    "timeout": check_timeout,
    "expires": _check_expires,
    "tags": _check_tags,
    "metadata": _check_metadata,
    "unique_key": _check_key,
    "idempotency_key": _check_key,
}
