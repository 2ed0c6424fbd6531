"""A task: a registered function, its options, and the enqueueing of its jobs.

`Task` is made by `@app.task`. `Task.using(…)` gives a `BoundTask`: the same task with other options for the
jobs to come. Both enqueue with the same verbs. All of it is pure but `enqueue`, which hands a `Call` to
`pgqueue.drivers`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, Unpack, overload

import msgspec

from pgqueue import calls
from pgqueue.calls import Call
from pgqueue.context import Context
from pgqueue.drivers import AsyncTarget, SyncTarget, run
from pgqueue.encoding import MAX_ARGS_BYTES, encode_args
from pgqueue.error_text import safe_repr
from pgqueue.errors import ConfigurationError
from pgqueue.job import Job
from pgqueue.options import (
    DEFAULT_PRIORITY,
    DEFAULT_QUEUE,
    JobOptions,
    Options,
    check_name,
    check_permanent,
    check_priority,
    check_retry,
    check_timeout,
)
from pgqueue.parameters import Parameters, connection_type
from pgqueue.retry import DEFAULT_RETRY, Duration, RetryPolicy, check_attempts

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any], covariant=True)


class Item(msgspec.Struct, frozen=True, gc=False):
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
        self._row = options.row(
            task.name, queue=task.queue, priority=task.priority, max_attempts=task.max_attempts
        )
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
        task.parameters.check(encoded)
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

    def using(self, **options: Unpack[JobOptions]) -> BoundTask[P, R]:
        """The same task with options for the jobs that are enqueued through what it returns.

        - `queue`: 1 to 100 characters; `priority`: 0 (first) to 9.
        - `delay`: seconds, a timedelta or text such as "3d", at most 10 years, by the database's clock; or
          `run_at`: a datetime with a time zone. Only one of the two.
        - `retry`: Fixed, Linear, Exponential or Fibonacci. `max_attempts`, 1 to 32767, overrides its
          `attempts`, or alone those of the task.
        - `timeout`: how long an attempt of this job may take, instead of the task's.
        - `expires`: a duration from the enqueue, or a datetime with a time zone. After that no attempt starts:
          the job ends as cancelled, reason `expired`.
        - `tags`: up to 20; `metadata`: a JSON object of at most 4 KiB. Both for people, pgqueue reads neither.
        - `unique_key`: at most one unfinished job *of this task* has it. Enqueueing another one returns the
          one that exists, with `created=False`.
        - `idempotency_key`: the same enqueue *of this task* repeated within 24 h makes one job, also when
          that one has ended.

        Raises `InvalidOption`, which names the option, what was given, and the limit.
        """
        return BoundTask(self.task, self.options.merged(Options.checked(**options)))


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
        timeout: Duration | None = None,
        limit: Callable[[], int] | None = None,
        namespace: Mapping[str, Any] | None = None,
    ):
        """`limit` gives the most bytes that args may take, by default 1 MiB; `namespace` holds names that annotations may use."""
        if inspect.isclass(function) or not callable(function) or not hasattr(function, "__name__"):
            raise ConfigurationError(f"@app.task goes on a function, got {safe_repr(function)}")
        self.name: str = check_name("name", function.__name__ if name is None else name, 200)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"task {self.name}: a generator function does not run when it is called")
        self.function: Callable[..., Any] = function
        self.is_async: bool = inspect.iscoroutinefunction(function)
        self.executor: Literal["async", "thread"] = "async" if self.is_async else "thread"
        self.queue: str = check_name("queue", queue)
        self.priority: int = check_priority("priority", priority)
        self.retry: RetryPolicy = check_retry("retry", retry)
        self.max_attempts: int = check_attempts(retry.attempts)
        self.permanent: tuple[type[BaseException], ...] = check_permanent(permanent)
        self.timeout: float | None = None if timeout is None else check_timeout("timeout", timeout)
        """Seconds that an attempt may take; None: no limit."""
        self.parameters = Parameters(self.name, function, namespace)
        self.takes_context: bool = self.parameters.context is not None
        self.transactional: bool = bool(transactional)
        self.connection_type: type | None = (
            connection_type(self.name, self.parameters.context, self.is_async) if transactional else None
        )
        self.decode: Callable[[str], dict[str, Any]] = self.parameters.decode
        """The keyword arguments for `function` out of a job's args; raises `InvalidArgs` when they do not fit."""
        self.limit: Callable[[], int] = limit or (lambda: MAX_ARGS_BYTES)
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
