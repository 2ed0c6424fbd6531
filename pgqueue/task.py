"""A task: a registered function, its options, and the enqueueing of its jobs.

`Task` is made by `@app.task`. `Task.using(…)` gives a `BoundTask`: the same task with other options for the
jobs to come. Both enqueue with the same verbs. All of it is pure but `enqueue`, which hands a `Call` to
`pgqueue.drivers`.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from types import GenericAlias
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import msgspec
from msgspec.structs import asdict

from pgqueue import calls
from pgqueue.calls import Call
from pgqueue.context import Context
from pgqueue.drivers import AsyncTarget, SyncTarget, run
from pgqueue.encoding import MAX_ARGS_BYTES, encode_args, one_line, read_hook, safe_repr
from pgqueue.errors import ConfigurationError, InvalidArgs, InvalidOption
from pgqueue.job import Job, seconds
from pgqueue.retry import DEFAULT_ATTEMPTS, DEFAULT_RETRY, Duration, RetryPolicy, check_attempts

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any], covariant=True)

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5
MAX_TAGS = 20
MAX_METADATA_BYTES = 4096
_FORBIDDEN = re.compile(r"""[\x00-\x1f\x7f-\x9f\ud800-\udfff*'"`\\]""")
_YEARS = range(1970, 2200)
_UNTYPED = inspect.Parameter.empty


# Options ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `using` sets for the jobs to come; None leaves it to the task. Checked and in the form stored."""

    queue: str | None = None
    priority: int | None = None
    delay: float | None = None
    run_at: str | None = None
    retry: RetryPolicy | None = None
    max_attempts: int | None = None
    tags: tuple[str, ...] | None = None
    metadata: str | None = None
    unique_key: str | None = None
    idempotency_key: str | None = None

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

    def row(self, task: Task[..., Any]) -> dict[str, Any]:
        """The arguments of `calls.enqueue` but `args`; what equals the default of the SQL is left out."""
        retry = self.retry
        attempts = self.max_attempts or (task.max_attempts if retry is None else retry.attempts)
        queue = self.queue or task.queue
        priority = task.priority if self.priority is None else self.priority
        stored: dict[str, Any] = {}
        if self.tags:
            stored["tags"] = self.tags
        if self.metadata is not None:
            stored["metadata"] = msgspec.Raw(self.metadata.encode())
        if retry is not None:
            stored["retry"] = retry.with_attempts(attempts).to_json()
        row = {
            "task": task.name,
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


def _option_name(name: str, value: Any, limit: int = 100) -> str:
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


def _option_key(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 255:
        given = f"{len(value)} characters" if isinstance(value, str) else safe_repr(value)
        raise InvalidOption(f"{name}: expected text of 1 to 255 characters, got {given}")
    if any(mark == "\0" or "\ud800" <= mark <= "\udfff" for mark in value):
        raise InvalidOption(f"{name}: NUL and lone surrogates cannot be stored, got {safe_repr(value)}")
    return str.__str__(value)  # not str(value): an Enum of text may say something else there


def _option_priority(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
        raise InvalidOption(f"{name}: expected an integer from 0 (first) to 9, got {safe_repr(value)}")
    return int(value)


def _option_run_at(name: str, value: Any) -> str:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidOption(f"{name}: expected a datetime with a time zone, got {safe_repr(value)}")
    if value.year not in _YEARS:
        raise InvalidOption(
            f"{name}: expected a year from {_YEARS[0]} to {_YEARS[-1]}, got {value.isoformat()}"
        )
    return value.astimezone(UTC).isoformat()


def _option_retry(name: str, value: Any) -> RetryPolicy:
    if not isinstance(value, RetryPolicy):
        raise InvalidOption(
            f"{name}: expected a policy such as Exponential(attempts=3), got {safe_repr(value)}"
        )
    return value


def _option_stored_retry(name: str, value: Any) -> RetryPolicy:
    policy = _option_retry(name, value)
    policy.to_json()  # raises for one that is code
    return policy


def _option_tags(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise InvalidOption(f"{name}: expected a list of text, got {safe_repr(value)}")
    if len(value) > MAX_TAGS:
        raise InvalidOption(f"{name}: {len(value)} of them, the limit is {MAX_TAGS}")
    tags = tuple(_option_name(f"{name}[{index}]", tag) for index, tag in enumerate(value))
    return tuple(sorted(tags)) if isinstance(value, set | frozenset) else tags


def _option_metadata(name: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        raise InvalidOption(f"{name}: expected a mapping, got {safe_repr(value)}")
    return encode_args(dict(value), limit=MAX_METADATA_BYTES, root=name, error=InvalidOption)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "queue": _option_name,
    "priority": _option_priority,
    "delay": lambda name, value: seconds(value, name=name),
    "run_at": _option_run_at,
    "retry": _option_stored_retry,
    "max_attempts": lambda name, value: check_attempts(value, name),
    "tags": _option_tags,
    "metadata": _option_metadata,
    "unique_key": _option_key,
    "idempotency_key": _option_key,
}


# Parameters -------------------------------------------------------------------------------------------


class Parameters:
    """The parameters of a handler as one msgspec Struct: what args must look like, and how to read them."""

    __slots__ = ("_extra", "_first", "_known", "_optional", "_read", "_task", "context")

    def __init__(self, task: str, function: Callable[..., Any], namespace: Mapping[str, Any] | None = None):
        self._task = task
        declared = list(inspect.signature(function).parameters.values())
        hints = _hints(task, function, namespace)
        self.context: Any = None
        """The annotation of the first parameter when that is a `Context`, else None."""
        if declared and _is_context(hint := hints.get(declared[0].name), declared[0]):
            self.context = Context if hint is None else hint
            del declared[0]
        positional: list[str] = []
        optional: list[str] = []
        struct: list[Any] = []
        extra: Any = None
        for parameter in declared:
            name, hint = parameter.name, hints.get(parameter.name, Any)
            match parameter.kind:
                case parameter.POSITIONAL_ONLY | parameter.VAR_POSITIONAL:
                    stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
                    raise ConfigurationError(
                        f"task {task}: parameter {stars}{name} has no name in the args, which are a JSON object: "
                        "make it one that can be given by name"
                    )
                case parameter.VAR_KEYWORD:
                    extra = Any if hint is object else hint
                    continue
                case parameter.POSITIONAL_OR_KEYWORD:
                    positional.append(name)
            if _is_context(hint, None):
                raise ConfigurationError(
                    f"task {task}: the Context has to be the first parameter, not {name}"
                )
            if parameter.default is not _UNTYPED:
                # The function's own default is used when the job runs; the marker only shows its absence.
                optional.append(name)
                struct.append((name, hint, msgspec.UNSET))
            else:
                struct.append((name, hint))
        self._first, self._optional = tuple(positional), tuple(optional)
        self._extra = extra and GenericAlias(dict, (str, extra))
        self._known = frozenset(field[0] for field in struct)
        self._read = self._reader(struct)

    def _reader(self, struct: list[Any]) -> Callable[[str], Any]:
        try:
            model = msgspec.defstruct("Args", struct, forbid_unknown_fields=self._extra is None, kw_only=True)
            return msgspec.json.Decoder(model, dec_hook=read_hook).decode
        except (TypeError, ValueError) as error:
            for name, hint, *_ in struct:
                try:
                    msgspec.json.Decoder(hint, dec_hook=read_hook)
                except (TypeError, ValueError) as culprit:
                    raise ConfigurationError(
                        f"task {self._task}: the type of parameter {name} cannot be read from JSON: {one_line(culprit)}"
                    ) from culprit
            raise ConfigurationError(f"task {self._task}: {one_line(error)}") from error

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Positional arguments get their names. What is missing or unknown is found by `decode`."""
        if len(args) > len(self._first):
            raise InvalidArgs(
                f"task {self._task}: {len(args)} positional arguments, it takes {len(self._first)} ({self._told()})"
            )
        bound = dict(zip(self._first, args, strict=False))
        for name in bound:
            if name in kwargs:
                raise InvalidArgs(
                    f"task {self._task}: argument {name} is given twice, by position and by name"
                )
        bound.update(kwargs)
        return bound

    def decode(self, args: str) -> dict[str, Any]:
        """The keyword arguments for the function. Raises `InvalidArgs` when `args` do not fit it."""
        try:
            values = asdict(self._read(args))
            if self._optional:
                for name in self._optional:
                    if values[name] is msgspec.UNSET:
                        del values[name]
            if self._extra is not None:
                self._add_extra(args, values)
            return values
        except msgspec.ValidationError as error:
            raise InvalidArgs(self._misfit(error)) from error
        except (msgspec.DecodeError, UnicodeError) as error:
            raise InvalidArgs(f"task {self._task}: the args are not JSON: {one_line(error)}") from error
        except RecursionError as error:
            raise InvalidArgs(f"task {self._task}: the args are nested too deep") from error

    def _add_extra(self, args: str, values: dict[str, Any]) -> None:
        unread = {name: value for name, value in msgspec.json.decode(args).items() if name not in self._known}
        values.update(msgspec.convert(unread, self._extra, dec_hook=read_hook))

    def _misfit(self, error: msgspec.ValidationError) -> str:
        """msgspec's message, `Expected `int`, got `str` - at `$.user_id``, in the words of the caller."""
        text, _, path = one_line(error, 600).partition(" - at `$")
        if not path and (missing := re.match(r"Object missing required field `(.+)`", text)):
            return f"task {self._task}: argument {missing[1]} is missing ({self._told()})"
        if not path and (unknown := re.match(r"Object contains unknown field `(.+)`", text)):
            return f"task {self._task}: unknown argument {unknown[1]}{did_you_mean(unknown[1], self._known)} ({self._told()})"
        return f"task {self._task}: args{path.rstrip('`')}: {text[:1].lower()}{text[1:]}"

    def _told(self) -> str:
        return f"it takes {', '.join(sorted(self._known)) or 'no arguments'}"


def did_you_mean(given: str, known: Any) -> str:
    """`, did you mean …?` when something among `known` is close to `given`, else nothing."""
    close = difflib.get_close_matches(given[:200], list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def _hints(task: str, function: Callable[..., Any], namespace: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return get_type_hints(inspect.unwrap(function), localns=dict(namespace or {}), include_extras=True)
    except Exception as error:  # a NameError mostly, but an annotation is code
        raise ConfigurationError(
            f"task {task}: its annotations cannot be read: {one_line(error)}. Types of parameters have to be "
            "defined above the task and imported at run time, not under TYPE_CHECKING"
        ) from error


def _is_context(hint: Any, parameter: inspect.Parameter | None) -> bool:
    if hint is None:  # not annotated: by its name
        return parameter is not None and parameter.annotation is _UNTYPED and parameter.name == "ctx"
    return hint is Context or get_origin(hint) is Context


def _connection_type(task: str, context: Any, is_async: bool) -> type:
    """The kind of connection that a transactional handler asks for in `Context[…]`."""
    # Imported here: an application without such tasks need not pay for SQLAlchemy's import.
    import psycopg
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    if context is None:
        raise ConfigurationError(
            f"task {task} is transactional and takes no context: give it a first parameter ctx: Context[…], "
            "its ctx.connection is in the transaction that the completion commits with"
        )
    asked = get_args(context)[0] if get_args(context) else Any
    kinds: tuple[type, ...] = (
        (psycopg.AsyncConnection, AsyncSession) if is_async else (psycopg.Connection, Session)
    )
    if asked is Any:
        return kinds[0]
    asked = get_origin(asked) or asked
    if asked not in kinds:
        raise ConfigurationError(
            f"task {task}: Context[{getattr(asked, '__name__', safe_repr(asked))}] is not offered to "
            f"{'an async' if is_async else 'a sync'} transactional task, use Context[{kinds[0].__name__}] "
            f"or Context[{kinds[1].__name__}]"
        )
    return asked


# Tasks ------------------------------------------------------------------------------------------------


class Item(msgspec.Struct, frozen=True):
    """One job to be, checked and encoded, for `app.enqueue_many`. Made by `Task.item(…)`."""

    task: str
    """The task's name."""
    json: str
    """The job as an element of the JSON array that `pgqueue.enqueue_many()` takes."""


class Enqueueable(Generic[F]):
    """The verbs that a task and a task with options have in common, typed by the function's signature.

    Each verb has its overloads twice, because a handler's `Context` is not an argument of an enqueue. They
    hang on the type of the function: mypy cannot tell two self types apart by a ParamSpec, and with
    overloads of the decorator instead it gives up on every handler whose signature has an Any in it.
    """

    def _bind(self, task: Task[..., Any], options: Options) -> None:
        self.task = task
        self.options = options
        self._row = options.row(task)
        # An item is this text, the args, and a closing brace: nothing is encoded twice.
        told = {
            **self._row,
            **({"options": msgspec.Raw(self._row["options"].encode())} if "options" in self._row else {}),
        }
        self._prefix = msgspec.json.encode(told).decode()[:-1] + ',"args":'

    def _encoded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        task = self.task
        encoded = encode_args(task.parameters.bind(args, kwargs) if args else kwargs, limit=task.limit())
        # What a worker could not read again is not enqueued in the first place.
        task.decode(encoded)
        return encoded

    @overload
    def call(
        self: Enqueueable[Callable[Concatenate[Context[Any], Q], Any]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[Job]: ...
    @overload
    def call(self: Enqueueable[Callable[Q, Any]], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[Job]: ...
    def call(self, /, *args: Any, **kwargs: Any) -> Call[Job]:
        """The enqueue as a value, to be run with `pgqueue.drivers.run`. Raises `InvalidArgs`."""
        return calls.enqueue(args=self._encoded(args, kwargs), **self._row)

    @overload
    def item(
        self: Enqueueable[Callable[Concatenate[Context[Any], Q], Any]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Item: ...
    @overload
    def item(self: Enqueueable[Callable[Q, Any]], /, *args: Q.args, **kwargs: Q.kwargs) -> Item: ...
    def item(self, /, *args: Any, **kwargs: Any) -> Item:
        """One job for `app.enqueue_many`. Raises `InvalidArgs`."""
        return Item(self.task.name, f"{self._prefix}{self._encoded(args, kwargs)}}}")

    @overload
    def enqueue(
        self: Enqueueable[Callable[Concatenate[Context[Any], Q], Any]],
        target: SyncTarget,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Job: ...
    @overload
    def enqueue(
        self: Enqueueable[Callable[Concatenate[Context[Any], Q], Any]],
        target: AsyncTarget,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Awaitable[Job]: ...
    @overload
    def enqueue(
        self: Enqueueable[Callable[Q, Any]], target: SyncTarget, /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Job: ...
    @overload
    def enqueue(
        self: Enqueueable[Callable[Q, Any]], target: AsyncTarget, /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Awaitable[Job]: ...
    def enqueue(self, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Enqueues one job in the transaction of `target`; with an async `target`, await what it returns.

        `target` is a connection, cursor or session of psycopg, SQLAlchemy, asyncpg or Django. Nothing is
        committed here: the job exists if and only if the caller's transaction commits.

        Raises `InvalidArgs` before anything is sent, `UnusableConnection`, and what the server refuses.
        """
        return run(target, calls.enqueue(args=self._encoded(args, kwargs), **self._row))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task.name}>"


class BoundTask(Enqueueable[Callable[P, R]], Generic[P, R]):
    """A task with options for the jobs to come: what `task.using(…)` gives."""

    def __init__(self, task: Task[..., Any], options: Options):
        self._bind(task, options)

    def using(
        self,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        retry: RetryPolicy | None = None,
        max_attempts: int | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        unique_key: str | None = None,
        idempotency_key: str | None = None,
    ) -> BoundTask[P, R]:
        """The same task with options for the jobs that are enqueued through what it returns.

        - `queue`: 1 to 100 characters; `priority`: 0 (first) to 9.
        - `delay`: seconds, a timedelta or text such as "3d", at most 10 years, by the database's clock; or
          `run_at`: a datetime with a time zone. Only one of the two.
        - `retry`: Fixed, Linear, Exponential or Fibonacci. `max_attempts`, 1 to 32767, overrides its
          `attempts`, or alone those of the task.
        - `tags`: up to 20; `metadata`: a JSON object of at most 4 KiB. Both for people, pgqueue reads neither.
        - `unique_key`: at most one unfinished job *of this task* has it. Enqueueing another one returns the
          one that exists, with `created=False`.
        - `idempotency_key`: the same enqueue *of this task* repeated within 24 h makes one job, also when
          that one has ended.

        Raises `InvalidOption`, which names the option, what was given, and the limit.
        """
        given = {
            "queue": queue,
            "priority": priority,
            "delay": delay,
            "run_at": run_at,
            "retry": retry,
            "max_attempts": max_attempts,
            "tags": tags,
            "metadata": metadata,
            "unique_key": unique_key,
            "idempotency_key": idempotency_key,
        }
        checked = {name: _CHECKS[name](name, value) for name, value in given.items() if value is not None}
        return BoundTask(self.task, self.options.merged(Options(**checked)))


class Task(BoundTask[P, R]):
    """A registered function. Calling it runs the function here and now; `enqueue` makes a job of it."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        retry: RetryPolicy = DEFAULT_RETRY,
        permanent: Sequence[type[BaseException]] | type[BaseException] = (),
        transactional: bool = False,
        limit: Callable[[], int] = lambda: MAX_ARGS_BYTES,
        namespace: Mapping[str, Any] | None = None,
    ):
        """`limit` gives the most bytes that args may take; `namespace` holds names that annotations may use."""
        if inspect.isclass(function) or not callable(function) or not hasattr(function, "__name__"):
            raise ConfigurationError(f"@app.task goes on a function, got {safe_repr(function)}")
        self.name: str = _option_name("name", function.__name__ if name is None else name, 200)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"task {self.name}: a generator function does not run when it is called")
        self.function: Callable[..., Any] = function
        self.is_async: bool = inspect.iscoroutinefunction(function)
        self.executor: Literal["async", "thread"] = "async" if self.is_async else "thread"
        self.queue: str = _option_name("queue", queue)
        self.priority: int = _option_priority("priority", priority)
        self.retry: RetryPolicy = _option_retry("retry", retry)
        self.max_attempts: int = check_attempts(retry.attempts)
        self.permanent: tuple[type[BaseException], ...] = _exception_types(permanent)
        self.parameters = Parameters(self.name, function, namespace)
        self.takes_context: bool = self.parameters.context is not None
        self.transactional: bool = bool(transactional)
        self.connection_type: type | None = (
            _connection_type(self.name, self.parameters.context, self.is_async) if transactional else None
        )
        self.decode: Callable[[str], dict[str, Any]] = self.parameters.decode
        """The keyword arguments for `function` out of a job's args; raises `InvalidArgs` when they do not fit."""
        self.limit = limit
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function
        self._bind(self, Options())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function itself; nothing is enqueued."""
        return self.function(*args, **kwargs)  # type: ignore[no-any-return]


class Decorator(Protocol):
    """What `@app.task(…)` is: makes a `Task` of a function."""

    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


def _exception_types(given: Any) -> tuple[type[BaseException], ...]:
    kinds = (given,) if isinstance(given, type) else tuple(given)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise InvalidOption(f"permanent: expected exception types, got {safe_repr(kind)}")
    return kinds
