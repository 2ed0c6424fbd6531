"""Options of a task and of its jobs: each is checked where it is given, with an error that names it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, TypedDict, cast, get_args

import msgspec

from pgqueue.encoding import encode_args
from pgqueue.error_text import did_you_mean, one_line, safe_repr, type_name
from pgqueue.errors import ConfigurationError, InvalidOption
from pgqueue.job import seconds
from pgqueue.middleware import Middleware
from pgqueue.retry import Duration, RetryPolicy, check_attempts
from pgqueue.unique import Unique, check_key

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5
MAX_TAGS = 20
MIN_TIMEOUT = 0.1
"""Seconds; the sweeper looks ten times a second."""
MAX_METADATA_BYTES = 4096
_FORBIDDEN = re.compile(r"""[\x00-\x1f\x7f-\x9f\ud800-\udfff*'"`\\]""")
_YEARS = range(1970, 2200)
_BYTES = {
    "": 1,
    "B": 1,
    "KB": 1 << 10,
    "KIB": 1 << 10,
    "MB": 1 << 20,
    "MIB": 1 << 20,
    "GB": 1 << 30,
    "GIB": 1 << 30,
}

Executor: TypeAlias = Literal["async", "thread", "process"]
"""Where a handler runs: in the worker's event loop, in a thread of it, or in a process of its own."""
OnCrash: TypeAlias = Literal["retry", "dead"]
"""What becomes of a job whose process died while it ran."""


class TaskOptions(TypedDict, total=False):
    """What `@app.task(…)` takes; `App.task` says what each means."""

    name: str | None
    queue: str
    priority: int
    retry: RetryPolicy
    permanent: Sequence[type[BaseException]] | type[BaseException]
    transactional: bool
    keep_result: bool
    timeout: Duration | None
    unique: Unique | None
    executor: Executor | None
    max_memory: int | str | None
    max_jobs_per_child: int | None
    on_crash: OnCrash
    middleware: Sequence[Middleware]
    encrypt: bool


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
    unique: Unique | Literal[False] | None
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
    unique: Unique | Literal[False] | None = None
    unique_key: str | None = None
    idempotency_key: str | None = None

    @classmethod
    def checked(cls, **given: Any) -> Options:
        """Options out of what a user gave; None is not given. Raises `InvalidOption`."""
        for name in given:
            if name not in _CHECKS:
                raise InvalidOption(
                    f"{one_line(name, 100)}: there is no such option{did_you_mean(name, _CHECKS)}"
                )
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
        key, unique = merged.unique_key, merged.unique
        if key is not None and unique is not None and (unique is False or unique.has_key):
            raise InvalidOption("unique, unique_key: only one of the two can say what the key is")
        return merged

    def unique_of(self, task: Unique | None) -> Unique | None:
        """What makes a job unique, `task` being what the task says; None: nothing beyond a plain `unique_key`."""
        return task if self.unique is None else self.unique or None

    def row(
        self,
        task: str,
        *,
        queue: str,
        priority: int,
        max_attempts: int | None,
        on_crash: OnCrash = "retry",
        unique: Unique | None = None,
    ) -> dict[str, Any]:
        """The arguments of `calls.enqueue` but `args`; what equals the default of the SQL is left out.

        `queue`, `priority` and `max_attempts` are the task's own, for what is not set here, None: the queue's; `on_crash` goes with
        the job, because the database decides when nobody is left who knows the task. `unique`: see `unique_of`;
        a key that it derives from the args is left to the caller.
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
            stored["retry"] = retry.with_attempts(attempts or retry.attempts).to_json()
        if on_crash == "dead":
            stored["on_crash"] = on_crash
        key, delay = self.unique_key, self.delay
        if unique is not None:
            if (meaning := unique.to_json()) is not None:
                stored["unique"] = meaning
            if key is None and isinstance(unique.key, str):
                key = unique.key
            if delay is None and self.run_at is None and isinstance(unique.delay, float):
                delay = unique.delay
        row = {
            "task": task,
            "queue": None if queue == DEFAULT_QUEUE else queue,
            "priority": None if priority == DEFAULT_PRIORITY else priority,
            "run_at": self.run_at,
            "delay": delay,
            "max_attempts": attempts,
            "unique_key": key,
            "idempotency_key": self.idempotency_key,
            "options": msgspec.json.encode(stored).decode() if stored else None,
        }
        return {name: value for name, value in row.items() if value is not None}


def check_task_options(given: Mapping[str, Any]) -> None:
    """Raises `InvalidOption` for what `@app.task(…)` does not take."""
    for name in given:
        if name in TaskOptions.__annotations__:
            continue
        if name == "max_attempts":
            raise InvalidOption("max_attempts: a task's retry policy says it: retry=Exponential(attempts=5)")
        if name in JobOptions.__annotations__:
            raise InvalidOption(f"{name}: this is an option of a job: task.using({name}=…)")
        known = did_you_mean(name, TaskOptions.__annotations__)
        raise InvalidOption(f"{one_line(name, 100)}: a task has no such option{known}")


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


def check_unique(name: str, value: Any) -> Unique:
    if not isinstance(value, Unique):
        raise InvalidOption(f"{name}: expected a value such as Unique(args=[…]), got {safe_repr(value)}")
    return value


def _check_unique_or_not(name: str, value: Any) -> Unique | Literal[False]:
    return False if value is False else check_unique(name, value)


def check_timeout(name: str, value: Any) -> float:
    timeout = seconds(value, name=name)
    if timeout < MIN_TIMEOUT:
        raise InvalidOption(f"{name}: expected at least {MIN_TIMEOUT} s, got {safe_repr(value)}")
    return timeout


def check_executor(task: str, given: Any, *, is_async: bool) -> Executor:
    """Where the handler of `task` runs; None: where its kind does by default. Raises `ConfigurationError`."""
    default: Executor = "async" if is_async else "thread"
    if given is None:
        return default
    if not isinstance(given, str) or given not in get_args(Executor):
        choices = " or ".join(map(repr, ("process", default)))
        raise ConfigurationError(f"task {task}: executor has to be {choices}, got {safe_repr(given)}")
    if given == default:
        return default
    if is_async:
        raise ConfigurationError(
            f"task {task}: an async function runs in the event loop, executor={given!r} is for a sync one. Make it "
            "`def`, or move what computes into a task of its own"
        )
    if given == "async":
        raise ConfigurationError(f"task {task}: executor='async' is for an async function, this one is sync")
    return cast(Executor, given)


def check_bytes(name: str, value: Any) -> int:
    """An amount of memory: bytes, or text such as "512MB" (1 MB is 1024 x 1024 bytes)."""
    found = (
        re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMG]?I?B?)\s*", value.upper())
        if isinstance(value, str)
        else None
    )
    if found and found[2] in _BYTES:
        value = round(float(found[1]) * _BYTES[found[2]])
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 50:
        raise InvalidOption(f"{name}: expected bytes or text such as '512MB', got {safe_repr(value)}")
    return int(value)


def check_count(name: str, value: Any) -> int:
    """How many of something, at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise InvalidOption(f"{name}: expected an integer of at least 1, got {safe_repr(value)}")
    return int(value)


def check_on_crash(name: str, value: Any) -> OnCrash:
    if not isinstance(value, str) or value not in get_args(OnCrash):
        raise InvalidOption(f"{name}: expected 'retry' or 'dead', got {safe_repr(value)}")
    return cast(OnCrash, value)


def _check_expires(name: str, value: Any) -> float | str:
    return _check_run_at(name, value) if isinstance(value, datetime) else seconds(value, name=name)


def check_priority(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
        raise InvalidOption(f"{name}: expected an integer from 0 (first) to 9, got {safe_repr(value)}")
    return int(value)


def _check_run_at(name: str, value: Any) -> str:
    if not isinstance(value, datetime) or not _has_offset(name, value):
        raise InvalidOption(f"{name}: expected a datetime with a time zone, got {safe_repr(value)}")
    if value.year not in _YEARS:
        raise InvalidOption(
            f"{name}: expected a year from {_YEARS[0]} to {_YEARS[-1]}, got {value.isoformat()}"
        )
    return value.astimezone(UTC).isoformat()


def _has_offset(name: str, value: datetime) -> bool:
    try:
        return value.utcoffset() is not None
    except Exception as error:
        told = f"{type_name(type(error))}: {one_line(error)}"
        raise InvalidOption(f"{name}: its time zone raised {told}") from error


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
    kinds = (given,) if isinstance(given, type) or not isinstance(given, Iterable) else tuple(given)
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
    "unique": _check_unique_or_not,
    "unique_key": check_key,
    "idempotency_key": check_key,
}
