"""Which jobs count as the same, and what an enqueue does when one of them is there already.

`Unique` is a value that says it; `DerivedKey` makes a job's key out of its args. What the database does with the
key stands in `sql/2_functions/shared/take_keys.sql`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from pgqueue.encoding import encode_args
from pgqueue.error_text import did_you_mean, one_line, safe_repr, type_name
from pgqueue.errors import InvalidJob, InvalidOption
from pgqueue.job import seconds
from pgqueue.retry import Duration

Scope: TypeAlias = Literal["unfinished", "waiting"]
"""Which jobs count: those that wait or run, or those that wait alone."""
OnConflict: TypeAlias = Literal["keep", "replace", "debounce", "raise_priority", "follow_up"]
"""What becomes of the job that holds the key when another one wants it."""

MAX_KEY = 255
"""Characters of a key."""
MIN_PERIOD = 0.001
"""Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unique:
    """At most one job *of a task* for a key: what the key is, which jobs count, and what a second enqueue does.

        @app.task(unique=pgqueue.Unique(args=["user_id"]))
        async def refresh(user_id: int, reason: str = "") -> None: ...

        @app.task(unique=pgqueue.Unique(key=lambda order, **_: f"order {order.id}", scope="waiting"))
        async def index_order(order: Order) -> None: ...

    The key:

    - `args`: the names of the arguments that make the key; by default all of them are. An argument that is left
      out counts with the handler's default.
    - `key`: the key itself, or a function of the arguments, as the handler will get them, that returns it: 1 to
      255 characters. Instead of `args`.

    Which jobs count, one of:

    - `scope="unfinished"`, the default: those that wait or run.
    - `scope="waiting"`: those that wait. One that runs may have read already what has changed since, so another
      one is made.
    - `period="10m"`: the one that was made last, for that long, whatever has become of it but cancelled.

    What becomes of the job that is there, when it waits (`on_conflict`). One that runs or has ended stays as it is:

    - `"keep"`, the default: nothing.
    - `"replace"`: it gets the new args.
    - `"debounce"`: it gets the new args and is put off by `delay` from now, but in all no further than
      `max_delay` from its own enqueue. Both have to be given; `using(delay=…)` goes before `delay`.
    - `"raise_priority"`: it gets the priority of the new one, when that is more urgent.
    - `"follow_up"`: nothing; but when it runs, one more job is made, which starts after it has ended.

    What happened is the `outcome` of the `Job` that the enqueue returns. Raises `InvalidOption`.

    >>> Unique(args=["user_id"], period="10m").period
    600.0
    """

    args: Sequence[str] | None = None
    key: str | Callable[..., str] | None = None
    scope: Scope | None = None
    period: Duration | None = None
    on_conflict: OnConflict = "keep"
    delay: Duration | None = None
    max_delay: Duration | None = None

    def __post_init__(self) -> None:
        self._keep(args=_names(self.args))
        if self.args is not None and self.key is not None:
            raise InvalidOption("unique.args, unique.key: only one of the two can be given")
        if self.key is not None and not callable(self.key):
            self._keep(key=check_key("unique.key", self.key))
        if self.scope is not None and not _is_one_of(self.scope, Scope):
            raise InvalidOption(f"unique.scope: expected {_either(Scope)}, got {safe_repr(self.scope)}")
        if not _is_one_of(self.on_conflict, OnConflict):
            raise InvalidOption(
                f"unique.on_conflict: expected {_either(OnConflict)}, got {safe_repr(self.on_conflict)}"
            )
        if self.period is None:
            self._keep(scope=self.scope or "unfinished")
        elif self.scope is not None:
            raise InvalidOption(
                "unique.scope, unique.period: only one of the two can be given: a period counts whatever state the job is in"
            )
        else:
            self._keep(period=_span("unique.period", self.period))
        is_debounce = self.on_conflict == "debounce"
        for name in ("delay", "max_delay"):
            given: Duration | None = getattr(self, name)
            if (given is not None) is not is_debounce:
                wrong = (
                    'on_conflict="debounce" needs it'
                    if is_debounce
                    else 'it goes with on_conflict="debounce"'
                )
                raise InvalidOption(f"unique.{name}: {wrong}, got {safe_repr(given)}")
            if given is not None:
                self._keep(**{name: _span(f"unique.{name}", given)})
        if self.on_conflict == "follow_up" and self.scope != "unfinished":
            raise InvalidOption(
                'unique.on_conflict: "follow_up" goes with scope="unfinished" alone: for no other scope a job that '
                "runs is in the way"
            )

    def _keep(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)  # frozen for all but the constructor

    @property
    def has_key(self) -> bool:
        """Whether it says what the key is: `args` or `key` is given."""
        return self.args is not None or self.key is not None

    def to_json(self) -> dict[str, Any] | None:
        """`options.unique` of `pgqueue.enqueue()`; None for what a `unique_key` means without it."""
        told = {
            "scope": None if self.scope == "unfinished" else self.scope,
            "period": self.period,
            "on_conflict": None if self.on_conflict == "keep" else self.on_conflict,
            "max_delay": self.max_delay,
        }
        return {name: value for name, value in told.items() if value is not None} or None


class DerivedKey:
    """Makes the unique key of each job of a task out of its args."""

    __slots__ = ("_decode", "_defaults", "_function", "_names", "_task")

    def __init__(
        self,
        unique: Unique,
        task: str,
        *,
        names: frozenset[str] | None,
        defaults: Mapping[str, Any],
        decode: Callable[[str], dict[str, Any]],
    ):
        """`names` are those of the task's arguments, None: any; `decode` reads args as the handler gets them."""
        self._task = task
        self._names = unique.args
        self._function = unique.key if callable(unique.key) else None
        self._decode = decode
        self._defaults = (
            dict(defaults) if self._function else {n: v for n, v in defaults.items() if _is_json(v)}
        )
        for name in self._names or ():
            if names is not None and name not in names:
                raise InvalidOption(
                    f"unique.args: task {task} has no argument {safe_repr(name)}{did_you_mean(name, names)}"
                )

    def of(self, args: str) -> str:
        """The key of a job with these args (JSON text). Raises `InvalidOption`."""
        values = {**self._defaults, **self._decode(args)}
        if self._function is None:
            return self._from_args(values)
        try:
            key = self._function(**values)
        except Exception as error:
            raise InvalidOption(
                f"unique.key: the function of task {self._task} raised {type_name(type(error))}: {one_line(error)}"
            ) from error
        return check_key("unique.key", key)

    def _from_args(self, values: dict[str, Any]) -> str:
        if self._names is not None:
            values = {name: values[name] for name in self._names if name in values}
            if not values:
                raise InvalidOption(f"unique.args: the job has none of {', '.join(self._names)}")
        text = encode_args(values, root="unique.args", error=InvalidOption)
        # Read and written once more, in the order of the names on every level: one text for equal args.
        key = msgspec.json.encode(msgspec.json.decode(text), order="deterministic").decode()
        return key if len(key) <= MAX_KEY else f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def check_key(name: str, value: Any) -> str:
    """A unique or an idempotency key, if it is one."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_KEY:
        given = f"{len(value)} characters" if isinstance(value, str) else safe_repr(value)
        raise InvalidOption(f"{name}: expected text of 1 to {MAX_KEY} characters, got {given}")
    if any(mark == "\0" or "\ud800" <= mark <= "\udfff" for mark in value):
        raise InvalidOption(f"{name}: NUL and lone surrogates cannot be stored, got {safe_repr(value)}")
    return str.__str__(value)  # not str(value): an Enum of text may say something else there


def _names(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Sequence | set | frozenset):
        raise InvalidOption(
            f'unique.args: expected a list of names such as ["user_id"], got {safe_repr(given)}'
        )
    if not all(isinstance(name, str) for name in given):
        raise InvalidOption(f"unique.args: expected names, which are text, got {safe_repr(given)}")
    if not given:
        raise InvalidOption(
            'unique.args: expected at least one name; leave it out for all arguments, or say key="…" for one job of the task'
        )
    return tuple(sorted(set(given)))


def _span(name: str, given: Any) -> float:
    span = seconds(given, name=name)
    if span < MIN_PERIOD:
        raise InvalidOption(f"{name}: expected at least {MIN_PERIOD} s, got {safe_repr(given)}")
    return span


def _is_one_of(given: Any, choices: Any) -> bool:
    return isinstance(given, str) and given in get_args(choices)  # what is no text may not even be compared


def _either(choices: Any) -> str:
    return " or ".join(f'"{choice}"' for choice in get_args(choices))


def _is_json(value: Any) -> bool:
    try:
        encode_args({"default": value})
    except InvalidJob:
        return False
    return True
