"""What handlers are provided with: which function makes a value of which type, for how long, out of what.

    @app.provide(scope="worker")
    async def http() -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient() as client:
            yield client

    @app.provide
    def mailer(http: httpx.AsyncClient) -> Mailer:
        return Mailer(http)

    @app.task
    async def send(user_id: int, mailer: Mailer = pgqueue.PROVIDED) -> None: ...

Providers are known by the type that they declare to return. This module knows them and checks them;
`resources` opens and closes what they make.
"""

from __future__ import annotations

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_origin

from pgqueue.error_text import did_you_mean, safe_repr
from pgqueue.errors import ConfigurationError
from pgqueue.parameters import PROVIDED, is_context, read_hints

Scope: TypeAlias = Literal["job", "worker"]
How: TypeAlias = Literal["made", "awaited", "opened", "opened async"]

_SYNC = (Iterator, Generator, Iterable, AbstractContextManager)
_ASYNC = (AsyncIterator, AsyncGenerator, AsyncIterable, AbstractAsyncContextManager)


class Provider:
    """A function that makes a value of one type.

    - `kind`: the type; `scope`: how long a value lives; `name`: what messages call it.
    - `call`: makes the value, or what is opened to give it, as `how` says.
    - `needs`: parameter by parameter, the types that it is provided with itself.
    - `takes_context`: whether its first parameter is the `Context` of the attempt.
    """

    def __init__(self, function: Callable[..., Any], scope: Scope, namespace: Mapping[str, Any] | None):
        if not callable(function):
            raise ConfigurationError(
                f"@app.provide goes on a function or a class, got {safe_repr(function)}; for a value that "
                "exists already, write a function that returns it"
            )
        if scope not in ("job", "worker"):
            raise ConfigurationError(f'scope: expected "job" or "worker", got {safe_repr(scope)}')
        self.name: str = getattr(function, "__qualname__", type(function).__name__).rpartition("<locals>.")[2]
        self.module: str = getattr(function, "__module__", "?")
        self.scope: Scope = scope
        told = f"provider {self.name}"
        makes = function.__init__ if inspect.isclass(function) else function
        hints = read_hints(told, makes, namespace)
        self.call, self.how, self.kind = _read(told, function, hints)
        try:
            declared = list(inspect.signature(function).parameters.values())
        except ValueError as error:  # a class written in C
            raise ConfigurationError(
                f"{told}: it has no signature to be read, write a function that makes one"
            ) from error
        self.takes_context = bool(declared) and is_context(hints.get(declared[0].name), declared[0])
        if self.takes_context:
            del declared[0]
            if scope == "worker":
                raise ConfigurationError(
                    f"{told}: it outlives the job that a Context is about, give it scope='job'"
                )
        self.needs: dict[str, Any] = {}
        for parameter in declared:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default not in (parameter.empty, PROVIDED):
                continue
            if parameter.kind is parameter.POSITIONAL_ONLY or parameter.name not in hints:
                raise ConfigurationError(
                    f"{told}: parameter {parameter.name} needs a type and a name to be provided by, or a default"
                )
            self.needs[parameter.name] = hints[parameter.name]

    @property
    def is_async(self) -> bool:
        """Whether making a value has to be awaited, what it needs aside."""
        return self.how in ("awaited", "opened async")


def _read(
    told: str, function: Callable[..., Any], hints: Mapping[str, Any]
) -> tuple[Callable[..., Any], How, Any]:
    """How a provider is called, and the type that it declares."""
    if inspect.isclass(function):
        if hasattr(function, "__aenter__"):
            return function, "opened async", function
        return function, "opened" if hasattr(function, "__enter__") else "made", function
    hint = hints.get("return")
    try:
        hash(hint)  # Annotated may hold what has none
    except TypeError:
        hint = None
    if hint is None or hint is NoneType:
        raise ConfigurationError(f"{told}: annotate what it returns, handlers ask for it by that type")
    origin = get_origin(hint)
    written = inspect.unwrap(function)  # of what @contextmanager made
    if inspect.isasyncgenfunction(written):
        opens = asynccontextmanager(function) if function is written else function
        return opens, "opened async", _yielded(told, hint, _ASYNC)
    if inspect.isgeneratorfunction(written):
        opens = contextmanager(function) if function is written else function
        return opens, "opened", _yielded(told, hint, _SYNC)
    if origin is AbstractAsyncContextManager:
        return function, "opened async", _yielded(told, hint, _ASYNC)
    if origin is AbstractContextManager:
        return function, "opened", _yielded(told, hint, _SYNC)
    return function, "awaited" if inspect.iscoroutinefunction(function) else "made", hint


def _yielded(told: str, hint: Any, origins: tuple[Any, ...]) -> Any:
    if get_origin(hint) not in origins:
        raise ConfigurationError(
            f"{told}: annotate what it yields, -> {origins[0].__name__}[…]; handlers ask for it by that type"
        )
    return get_args(hint)[0]


class _Asking(NamedTuple):
    """The task whose needs are checked."""

    task: str
    is_async: bool
    has_context: bool


class Providers:
    """The providers of an app, by type; and what stands in for them in tests."""

    def __init__(self) -> None:
        self._of: dict[Any, Provider] = {}
        self.overrides: dict[Any, Any] = {}
        """Values that are given instead of what a provider makes."""

    def add(
        self, function: Callable[..., Any], scope: Scope, namespace: Mapping[str, Any] | None = None
    ) -> None:
        """Adds a provider. Raises `ConfigurationError` for what cannot be one, and for a type that has one."""
        provider = Provider(function, scope, namespace)
        if (other := self._of.get(provider.kind)) is not None:
            raise ConfigurationError(
                f"{type_text(provider.kind)} is provided twice: by {other.name} in {other.module} and by "
                f"{provider.name} in {provider.module}. For two of a type use typing.NewType, or Annotated"
            )
        self._of[provider.kind] = provider

    def __getitem__(self, kind: Any) -> Provider:
        return self._of[kind]

    @contextmanager
    def override(self, kind: Any, value: Any) -> Iterator[None]:
        """Gives `value` instead of what a provider makes, within a `with` block."""
        before = self.overrides.get(kind, PROVIDED)
        self.overrides[kind] = value
        try:
            yield
        finally:
            if before is PROVIDED:
                del self.overrides[kind]
            else:
                self.overrides[kind] = before

    def check(self, task: str, needs: Mapping[str, Any], *, is_async: bool, has_context: bool = True) -> None:
        """Raises `ConfigurationError`, naming the task and the type, when a task's needs cannot be met."""
        self._check(_Asking(task, is_async, has_context), f"task {task}", needs, None, ())

    def _check(
        self,
        asking: _Asking,
        whose: str,
        needs: Mapping[str, Any],
        worker_scoped: str | None,
        path: tuple[Any, ...],
    ) -> None:
        for parameter, kind in needs.items():
            if kind in self.overrides:
                continue
            provider = self._of.get(kind)
            named = f"{whose}: parameter {parameter} needs {type_text(kind)}"
            if provider is None:
                known = {type_text(other): other for other in self._of}
                raise ConfigurationError(
                    f"{named}, which nothing provides{did_you_mean(type_text(kind), known)}: put @app.provide on a "
                    "function that returns it, in a module that the app imports"
                )
            if kind in path:
                circle = " needs ".join(type_text(each) for each in (*path[path.index(kind) :], kind))
                raise ConfigurationError(f"{named}, whose providers go in a circle: {circle}")
            if worker_scoped is not None and provider.scope == "job":
                raise ConfigurationError(
                    f"{named}, which lives as long as a job, and {worker_scoped} lives as long as the worker: "
                    f"give {worker_scoped} scope='job', or {provider.name} scope='worker'"
                )
            if provider.is_async and not asking.is_async:
                raise ConfigurationError(
                    f"{named}, whose provider {provider.name} is async, and task {asking.task} is sync: make the "
                    "task async, or write a sync provider"
                )
            if provider.takes_context and not asking.has_context:
                raise ConfigurationError(
                    f"{named}, whose provider {provider.name} takes a Context, and a batch has none"
                )
            inner = provider.name if provider.scope == "worker" else None
            told = f"{whose}, provider {provider.name}"
            self._check(asking, told, provider.needs, inner, (*path, kind))

    def waits(self, provider: Provider) -> bool:
        """Whether making a value, or something that it needs, has to be awaited."""
        return provider.is_async or any(
            kind not in self.overrides and self.waits(self._of[kind]) for kind in provider.needs.values()
        )


def type_text(kind: Any) -> str:
    """A type as messages name it."""
    if not isinstance(kind, type):
        return safe_repr(kind)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
