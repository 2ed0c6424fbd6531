"""A task: a registered function, its options, and the enqueueing of its jobs.

`Task` is made by `@app.task`. `Task.using(…)` gives a `BoundTask`: the same task with other options for the
jobs to come. Both enqueue with the same verbs. All of it is pure but `enqueue`, which hands a `Call` to
`pgqueue.drivers`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import (
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    overload,
)

import msgspec

from pgqueue import calls
from pgqueue.calls import Call
from pgqueue.context import Context
from pgqueue.drivers import AsyncTarget, SyncTarget, run
from pgqueue.encoding import MAX_ARGS_BYTES, MAX_RESULT_BYTES, encode_args
from pgqueue.encryption import Keyring, Kind, is_sealed
from pgqueue.error_text import ErrorText, safe_repr
from pgqueue.errors import ConfigurationError, InvalidOption
from pgqueue.hooks import Enqueued, Hookable, Hooks, args_of, tell_enqueued
from pgqueue.job import Job
from pgqueue.middleware import Middleware, check_middleware
from pgqueue.options import (
    DEFAULT_PRIORITY,
    DEFAULT_QUEUE,
    Executor,
    JobOptions,
    OnCrash,
    Options,
    check_bytes,
    check_count,
    check_executor,
    check_name,
    check_on_crash,
    check_permanent,
    check_priority,
    check_retry,
    check_timeout,
    check_unique,
)
from pgqueue.parameters import PROVIDED, Parameters, connection_type
from pgqueue.redaction import Redaction
from pgqueue.retry import DEFAULT_RETRY, Duration, RetryPolicy, check_attempts
from pgqueue.unique import DerivedKey, Unique

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
    tell: Callable[[Job], None] | None = None
    """Tells the hooks of `enqueued` of the job that it became; None: there are none."""


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
            task.name,
            queue=task.queue,
            priority=task.priority,
            max_attempts=None if task.retry is DEFAULT_RETRY else task.max_attempts,
            on_crash=task.on_crash,
            unique=(unique := options.unique_of(task.unique)),
        )
        self._key: DerivedKey | None = None
        """Makes the unique key of a job out of its args; None: there is none, or the same for all."""
        if unique is not None and "unique_key" not in self._row:
            parameters = task.parameters
            if task.encrypt and not callable(unique.key):
                raise InvalidOption(
                    f"unique: task {task.name} encrypts its args, and a key that is made of them could be read: "
                    "give one that may be, Unique(key=…), or using(unique_key=…)"
                )
            self._key = DerivedKey(
                unique, task.name, names=parameters.names, defaults=task.defaults, decode=parameters.decode
            )
        # An item is this text, the args, and a closing brace: nothing is encoded twice.
        told = {
            **self._row,
            **({"options": msgspec.Raw(self._row["options"].encode())} if "options" in self._row else {}),
        }
        self._prefix = msgspec.json.encode(told).decode()[:-1] + ',"args":'

    def _stored(self, encoded: str, *, repeatable: bool = False) -> str:
        """Args as they are stored: sealed, when the task says so."""
        task = self.task
        if not task.encrypt:
            return encoded
        return task.seal(encoded, "args", self._row.get("queue", DEFAULT_QUEUE), repeatable=repeatable)

    def _encoded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        task, parameters = self.task, self.task.parameters
        given = parameters.bind(args, kwargs) if args or parameters.provided else kwargs
        encoded = encode_args(given, limit=task.limit())
        # What a worker could not read again is not enqueued in the first place.
        parameters.check(encoded)
        return encoded

    @overload
    def call(
        self: Enqueueable[Callable[Concatenate[Context[Any], Q], Any]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Call[Job]: ...
    @overload
    def call(self: Enqueueable[Callable[Q, Any]], /, *args: Q.args, **kwargs: Q.kwargs) -> Call[Job]: ...
    def call(self, /, *args: Any, **kwargs: Any) -> Call[Job]:
        """The enqueue as a value, to be run with `pgqueue.drivers.run`. Raises `InvalidArgs`."""
        encoded = self._encoded(args, kwargs)
        row = self._row if self._key is None else {**self._row, "unique_key": self._key.of(encoded)}
        call = calls.enqueue(args=self._stored(encoded), **row)
        if (tell := self._teller(encoded)) is None:
            return call

        def decode(rows: calls.Rows) -> Job:
            job = call.decode(rows)
            tell(job)
            return job

        return replace(call, decode=decode)

    def row(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """What an enqueue with these args hands to `calls.enqueue`, without a key that is made of them.

        For those who enqueue later: `sealed_row` makes of it what is stored. No settings are read: the args may take
        what they may by default. Raises `InvalidArgs`.
        """
        encoded = encode_args(args, limit=MAX_ARGS_BYTES)
        self.task.parameters.check(encoded)
        return {**self._row, "args": encoded}

    def sealed_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row as it is stored, the same each time. Raises `ConfigurationError` where a key is needed and there is none."""
        return {**row, "args": self._stored(row["args"], repeatable=True)}

    def _teller(self, encoded: str) -> Callable[[Job], None] | None:
        """What tells the hooks of `enqueued` of a job with these args; None when there are none."""
        task = self.task
        of_app, of_task = task.app_hooks.enqueued, task.hooks.enqueued
        if not of_app and not of_task:
            return None
        hooks = [*of_app, *of_task]
        queue = self._row.get("queue", DEFAULT_QUEUE)

        def tell(job: Job) -> None:
            if job.created:
                tell_enqueued(hooks, Enqueued(id=job.id, task=task.name, queue=queue, args=args_of(encoded)))

        return tell

    @overload
    def item(
        self: Enqueueable[Callable[Concatenate[Context[Any], Q], Any]], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Item: ...
    @overload
    def item(self: Enqueueable[Callable[Q, Any]], /, *args: Q.args, **kwargs: Q.kwargs) -> Item: ...
    def item(self, /, *args: Any, **kwargs: Any) -> Item:
        """One job for `app.enqueue_many`. Raises `InvalidArgs`."""
        encoded = self._encoded(args, kwargs)
        stored = self._stored(encoded)
        if self._key is not None:
            key = msgspec.json.encode(self._key.of(encoded)).decode()
            return Item(self.task.name, f'{self._prefix}{stored},"unique_key":{key}}}', self._teller(encoded))
        return Item(self.task.name, f"{self._prefix}{stored}}}", self._teller(encoded))

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
        return self.task.run_call(target, self.call(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task.name}>"


def check_task(given: Enqueueable[Any]) -> Enqueueable[Any]:
    """A task, with options or without, if it is one. Raises `InvalidOption`."""
    if not isinstance(given, Enqueueable):
        raise InvalidOption(
            f"task: expected a task, which @app.task makes, got {safe_repr(given)}; app.task_named(…) finds one by its name"
        )
    return given


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
        - `unique`: a `Unique`, instead of the task's: the key, which jobs count, what a second enqueue does.
          False: the task's does not hold.
        - `unique_key`: the key itself, the short way. At most one unfinished job *of this task* has it, unless
          `unique` says something else; enqueueing another one returns the one that exists, with `created=False`.
        - `idempotency_key`: the same enqueue *of this task* repeated within 24 h makes one job, also when
          that one has ended.

        Raises `InvalidOption`, which names the option, what was given, and the limit.
        """
        return BoundTask(self.task, self.options.merged(Options.checked(**options)))


class Task(BoundTask[P, R], Hookable):
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
        keep_result: bool = False,
        timeout: Duration | None = None,
        unique: Unique | None = None,
        executor: Executor | None = None,
        max_memory: int | str | None = None,
        max_jobs_per_child: int | None = None,
        on_crash: OnCrash = "retry",
        middleware: Sequence[Middleware] = (),
        encrypt: bool = False,
        app_hooks: Hooks | None = None,
        overrides: Mapping[Any, Any] | None = None,
        limit: Callable[[], int] | None = None,
        result_limit: Callable[[], int] | None = None,
        keyring: Callable[[], Keyring | None] | None = None,
        redaction: Callable[[], Redaction] = Redaction,
        namespace: Mapping[str, Any] | None = None,
    ):
        """For `@app.task`, which says what the options mean.

        `limit` gives the most bytes that args may take, by default 1 MiB, `result_limit` those of a kept result, by default
        64 KiB; `keyring` the keys for what it encrypts; `redaction` what is not shown of its args. `namespace` holds names
        that annotations may use; `app_hooks` are told beside the task's own; `overrides` is what is provided when the task
        is called in a test.
        """
        if inspect.isclass(function) or not callable(function) or not hasattr(function, "__name__"):
            raise ConfigurationError(f"@app.task goes on a function, got {safe_repr(function)}")
        self.name: str = check_name("name", function.__name__ if name is None else name, 200)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"task {self.name}: a generator function does not run when it is called")
        self.function: Callable[..., Any] = function
        self.is_async: bool = inspect.iscoroutinefunction(function)
        self.executor: Executor = check_executor(self.name, executor, is_async=self.is_async)
        """Where the function runs: in the event loop, in a thread, or in a process of its own."""
        if self.executor != "process" and (max_memory is not None or max_jobs_per_child is not None):
            raise ConfigurationError(
                f"task {self.name}: max_memory and max_jobs_per_child are for executor='process': no other has a "
                "process that could be replaced"
            )
        self.max_memory: int | None = None if max_memory is None else check_bytes("max_memory", max_memory)
        """Bytes of resident memory above which the process is replaced after a job; None: no limit."""
        self.max_jobs_per_child: int | None = (
            None if max_jobs_per_child is None else check_count("max_jobs_per_child", max_jobs_per_child)
        )
        """Jobs after which the process is replaced; None: no limit."""
        self.on_crash: OnCrash = check_on_crash("on_crash", on_crash)
        """What becomes of a job whose process died while it ran."""
        self.queue: str = check_name("queue", queue)
        self.priority: int = check_priority("priority", priority)
        self.retry: RetryPolicy = check_retry("retry", retry)
        self.max_attempts: int = check_attempts(retry.attempts)
        self.permanent: tuple[type[BaseException], ...] = check_permanent(permanent)
        self.timeout: float | None = None if timeout is None else check_timeout("timeout", timeout)
        """Seconds that an attempt may take; None: no limit."""
        self.unique: Unique | None = None if unique is None else check_unique("unique", unique)
        """What makes its jobs unique, unless `using` says something else."""
        self.middleware: tuple[Middleware, ...] = check_middleware(
            self.name, middleware, is_async=self.is_async
        )
        self.hooks = Hooks()
        self.app_hooks: Hooks = app_hooks or Hooks()
        self.parameters = self._parameters(function, namespace)
        self.defaults: dict[str, Any] = {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not inspect.Parameter.empty and parameter.default is not PROVIDED
        }
        """What the function takes for the arguments that a job does not have."""
        self._overrides: Mapping[Any, Any] = {} if overrides is None else overrides
        self.takes_context: bool = self.parameters.context is not None
        self.transactional: bool = bool(transactional)
        self.connection_type: type | None = (
            connection_type(self.name, self.parameters.context, self.is_async) if transactional else None
        )
        self.decode: Callable[[str], dict[str, Any]] = self.parameters.decode
        """The keyword arguments for `function` out of a job's args; raises `InvalidArgs` when they do not fit."""
        self.limit: Callable[[], int] = limit or (lambda: MAX_ARGS_BYTES)
        self.encrypt: bool = bool(encrypt)
        """Whether its args, results and steps are stored encrypted."""
        self._keyring = keyring or (lambda: None)
        self._redaction = redaction
        self.keep_result: bool = bool(keep_result)
        """Whether what the function returns is stored with its job."""
        self.result_limit: Callable[[], int] = result_limit or (lambda: MAX_RESULT_BYTES)
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        self.__wrapped__ = function
        self.app: Any = None
        """The `App` that it is registered with; None for a task that was made without one."""
        self.run_call: Callable[[Any, Call[Any]], Any] = run
        """Runs the call of an enqueue: `drivers.run`, or what traces it."""
        self._bind(self, Options())

    def _parameters(self, function: Callable[..., Any], namespace: Mapping[str, Any] | None) -> Parameters:
        return Parameters(self.name, function, namespace)

    @property
    def may_be_sealed(self) -> bool:
        """Whether what a worker claims for it may be sealed, or look like an argument that it takes."""
        return self.encrypt or self.parameters.names is None or self._keyring() is not None

    def keyring(self) -> Keyring:
        """The keys for what it encrypts. Raises `ConfigurationError` when there are none."""
        keyring = self._keyring()
        if keyring is None:
            raise ConfigurationError(
                f"task {self.name} encrypts its args, and there is no key: set PGQUEUE_ENCRYPTION_KEYS to what "
                "`pgqueue keys generate` prints, or give App(keyring=…)"
            )
        return keyring

    def seal(self, text: str, kind: Kind, queue: str, *, repeatable: bool = False) -> str:
        """JSON text of a job of this task as it is stored: sealed when the task encrypts, else as it is."""
        if not self.encrypt:
            return text
        return self.keyring().seal(text, kind, self.name, queue, repeatable=repeatable)

    def unseal(self, text: str, kind: Kind, queue: str) -> str:
        """Stored JSON text of a job of this task, readable. Raises `CannotDecrypt`."""
        if not is_sealed(text):
            return text
        return self.keyring().open(text, kind, self.name, queue)

    def redact(self, told: ErrorText, args: str) -> ErrorText:
        """An error of a job with these args (JSON text) without the values that are not to be shown."""
        return self._redaction().error(told, args, every=self.encrypt)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function itself; nothing is enqueued, and no middleware is called.

        What a worker would provide is given by the caller, or by `App.override`.
        """
        if self.parameters.provided:
            return self.function(*args, **kwargs, **self._provided(args, kwargs))  # type: ignore[no-any-return]
        return self.function(*args, **kwargs)  # type: ignore[no-any-return]

    def _provided(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = inspect.signature(self.function).bind_partial(*args, **kwargs).arguments
        missing = {name: kind for name, kind in self.parameters.provided.items() if name not in given}
        for name, kind in missing.items():
            if kind not in self._overrides:
                raise ConfigurationError(
                    f"task {self.name}: {name} is provided by a worker; called directly, it has to be given, or "
                    "stood in for with app.override(…)"
                )
        return {name: self._overrides[kind] for name, kind in missing.items()}


class Decorator(Protocol):
    """What `@app.task(…)` is: makes a `Task` of a function."""

    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...
