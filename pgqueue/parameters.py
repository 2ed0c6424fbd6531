"""The signature of a handler: what a job's args must look like, how they are read, and its `Context`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import asdict

from pgqueue.context import Context
from pgqueue.encoding import read_hook
from pgqueue.error_text import did_you_mean, one_line, safe_repr
from pgqueue.errors import ConfigurationError, InvalidArgs

_UNTYPED = inspect.Parameter.empty


class _Provided:
    """The type of `PROVIDED`."""

    def __repr__(self) -> str:
        return "pgqueue.PROVIDED"


PROVIDED: Any = _Provided()
"""The default of a handler's parameter that is no part of the job's args: the worker provides it.

    @app.task
    async def send(user_id: int, mailer: Mailer = pgqueue.PROVIDED) -> None: ...

What it is given is found by the parameter's type, see `App.provide`.
"""

_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What reading args may raise; a ValidationError is a DecodeError."""


class Parameters:
    """The parameters of a handler as one msgspec Struct: what args must look like, and how to read them."""

    __slots__ = ("_extra", "_first", "_known", "_optional", "_read", "_task", "context", "only", "provided")

    def __init__(self, task: str, function: Callable[..., Any], namespace: Mapping[str, Any] | None = None):
        self._task = task
        declared = list(inspect.signature(function).parameters.values())
        hints = read_hints(f"task {task}", function, namespace)
        self.context: Any = None
        """The annotation of the first parameter when that is a `Context`, else None."""
        if declared and is_context(hint := hints.get(declared[0].name), declared[0]):
            self.context = Context if hint is None else hint
            del declared[0]
        self.provided: dict[str, Any] = {}
        """The parameters that the worker provides, with their types: no part of the args."""
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
            if is_context(hint, None):
                raise ConfigurationError(
                    f"task {task}: the Context has to be the first parameter, not {name}"
                )
            if parameter.default is PROVIDED:
                self.provided[name] = _provided_type(task, name, hints)
            elif parameter.default is not _UNTYPED:
                # The function's own default is used when the job runs; the marker only shows its absence.
                optional.append(name)
                struct.append((name, hint, msgspec.UNSET))
            else:
                struct.append((name, hint))
        self._first, self._optional = tuple(positional), tuple(optional)
        self._extra = extra and GenericAlias(dict, (str, extra))
        self._known = frozenset(field[0] for field in struct)
        self._read = self._reader(struct)
        self.only: Any = struct[0][1] if len(struct) == 1 else None
        """The type of the one parameter, when there is just one."""

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

    @property
    def names(self) -> frozenset[str] | None:
        """The names of the arguments; None: any, for it takes `**kwargs`."""
        return self._known if self._extra is None else None

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
        for name in self.provided:
            if name in bound:
                raise InvalidArgs(self._not_an_argument(name))
        return bound

    def check(self, args: str) -> None:
        """Raises `InvalidArgs` when `args` do not fit the function."""
        try:
            self._read(args)
            if self._extra is not None:
                self._add_extra(args, {})
        except _UNREADABLE as error:
            raise self._refusal(error) from error

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
        except _UNREADABLE as error:
            raise self._refusal(error) from error

    def _add_extra(self, args: str, values: dict[str, Any]) -> None:
        unread = {name: value for name, value in msgspec.json.decode(args).items() if name not in self._known}
        for name in self.provided:
            if name in unread:
                raise InvalidArgs(self._not_an_argument(name))
        values.update(msgspec.convert(unread, self._extra, dec_hook=read_hook))

    def _refusal(self, error: Exception) -> InvalidArgs:
        if isinstance(error, msgspec.ValidationError):
            return InvalidArgs(self._misfit(error))
        if isinstance(error, RecursionError):
            return InvalidArgs(f"task {self._task}: the args are nested too deep")
        return InvalidArgs(f"task {self._task}: the args are not JSON: {one_line(error)}")

    def _misfit(self, error: msgspec.ValidationError) -> str:
        """msgspec's message, `Expected `int`, got `str` - at `$.user_id``, in the words of the caller."""
        text, _, path = one_line(error, 600).partition(" - at `$")
        if not path and (missing := re.match(r"Object missing required field `(.+)`", text)):
            return f"task {self._task}: argument {missing[1]} is missing ({self._told()})"
        if not path and (unknown := re.match(r"Object contains unknown field `(.+)`", text)):
            if unknown[1] in self.provided:
                return self._not_an_argument(unknown[1])
            return f"task {self._task}: unknown argument {unknown[1]}{did_you_mean(unknown[1], self._known)} ({self._told()})"
        return f"task {self._task}: args{path.rstrip('`')}: {text[:1].lower()}{text[1:]}"

    def _not_an_argument(self, name: str) -> str:
        return f"task {self._task}: {name} is provided by the worker and cannot be given ({self._told()})"

    def _told(self) -> str:
        return f"it takes {', '.join(sorted(self._known)) or 'no arguments'}"


def read_hints(
    told: str, function: Callable[..., Any], namespace: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The annotations of a task's or a provider's function. Raises `ConfigurationError`; `told` is its name."""
    try:
        return get_type_hints(inspect.unwrap(function), localns=dict(namespace or {}), include_extras=True)
    except Exception as error:  # a NameError mostly, but an annotation is code
        raise ConfigurationError(
            f"{told}: its annotations cannot be read: {one_line(error)}. Types of parameters have to be "
            f"defined above the {told.partition(' ')[0]} and imported at run time, not under TYPE_CHECKING"
        ) from error


def _provided_type(task: str, name: str, hints: Mapping[str, Any]) -> Any:
    kind = hints.get(name)
    try:
        hash(kind)  # providers are found by it; Annotated may hold what has none
    except TypeError:
        kind = None
    if kind is None:
        raise ConfigurationError(
            f"task {task}: annotate parameter {name}, what is provided is found by its type: "
            f"{name}: SomeType = pgqueue.PROVIDED"
        )
    return kind


def is_context(hint: Any, parameter: inspect.Parameter | None) -> bool:
    """Whether a parameter is the attempt's `Context`: by its annotation, or the first one by its name."""
    if hint is None:  # not annotated: by its name
        return parameter is not None and parameter.annotation is _UNTYPED and parameter.name == "ctx"
    return hint is Context or get_origin(hint) is Context


def connection_type(task: str, context: Any, is_async: bool) -> type:
    """The kind of connection that a transactional handler asks for in `Context[…]`."""
    import psycopg

    if context is None:
        raise ConfigurationError(
            f"task {task} is transactional and takes no context: give it a first parameter ctx: Context[…], "
            "its ctx.connection is in the transaction that the completion commits with"
        )
    asked = get_args(context)[0] if get_args(context) else Any
    asked = get_origin(asked) or asked
    connection: type = psycopg.AsyncConnection if is_async else psycopg.Connection
    if asked in (Any, connection):
        return connection
    # Imported here: whoever asks for no session need not pay for it, which is a third of a worker's start.
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    kinds = (connection, AsyncSession if is_async else Session)
    if asked not in kinds:
        raise ConfigurationError(
            f"task {task}: Context[{getattr(asked, '__name__', safe_repr(asked))}] is not offered to "
            f"{'an async' if is_async else 'a sync'} transactional task, use Context[{kinds[0].__name__}] "
            f"or Context[{kinds[1].__name__}]"
        )
    return asked
