"""Args and results to JSON text.

What goes in is refused loudly: an encoder that writes NaN as null or bytes as base64 changes data in
silence, so everything is looked at first and an error names the path.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any
from uuid import UUID

import msgspec

from pgqueue.error_text import one_line, safe_repr, safe_text, type_name
from pgqueue.errors import InvalidArgs, InvalidJob

MAX_ARGS_BYTES = 1_048_576
"""Bytes of UTF-8 that a job's args may take unless `max_args_bytes` says otherwise: 1 MiB."""
MAX_RESULT_BYTES = 65_536
"""Bytes of UTF-8 that a kept result may take unless `max_result_bytes` says otherwise: 64 KiB."""
MAX_DEPTH = 100
"""Levels of nesting that args may have."""

_MIN_INT, _MAX_INT = -(2**63), 2**63 - 1
_MINUTE = timedelta(minutes=1)
_SCALARS = frozenset({bool, type(None), datetime, date, time, timedelta, UUID})


def encode_args(
    args: Mapping[str, Any],
    *,
    limit: int = MAX_ARGS_BYTES,
    root: str = "args",
    error: type[InvalidJob] = InvalidArgs,
) -> str:
    """The JSON text of `args`, at most `limit` bytes of UTF-8.

    Dataclasses, msgspec Structs, pydantic models, datetimes, UUIDs, Decimals and Enums are written the way
    they are read again by a task whose parameter is annotated with them; tuples become lists.

    Raises `error`, which names the path from `root`, for what JSON or PostgreSQL cannot hold unchanged: NaN
    and infinity, NUL, lone surrogates, integers beyond signed 64 bit, bytes, sets, keys that are no
    strings, cycles, more than 100 levels, offsets from UTC of no whole minutes, and any other type.

    >>> encode_args({"user_id": 7, "tags": ("a", "b")})
    '{"user_id":7,"tags":["a","b"]}'
    >>> encode_args({"items": [{"price": float("nan")}]})
    Traceback (most recent call last):
    ...
    pgqueue.errors.InvalidArgs: args.items[0].price: nan is not JSON, numbers have to be finite
    """
    return _written(args, 0, limit, root, error)


def encode_result(result: Any, *, limit: int = MAX_RESULT_BYTES) -> str:
    """The JSON text of what a handler returned, by the rules of `encode_args`; any JSON value may be one.

    Raises `InvalidArgs`, which names the path from `result`.

    >>> encode_result(("a", None))
    '["a",null]'
    >>> encode_result({"blob": b""})
    Traceback (most recent call last):
    ...
    pgqueue.errors.InvalidArgs: result.blob: bytes are not JSON: decode them to text, or to base64 of your own
    """
    if isinstance(result, str) and len(result) > limit:  # it is not looked into at all
        raise InvalidArgs(f"result: more than {limit:,} bytes of JSON, which is the limit")
    return _written(result, 1, limit, "result", InvalidArgs)


def _written(value: Any, depth: int, limit: int, root: str, error: type[InvalidJob]) -> str:
    """`depth` 0: a mapping or what is taken for one; 1: any value."""
    try:
        plain = _plain(value, depth, limit) >= 0
        if not plain:
            _Look(limit).at(value, depth)
        data = _encode(value)
        text = data.decode()
        # A NUL shows as \u0000 in the text; looking for it there costs less than looking into each string.
        if plain and "\\u0000" in text:
            _Look(limit).at(value, depth)
    except _TooLarge:
        raise error(f"{root}: more than {limit:,} bytes of JSON, which is the limit") from None
    except _Refused as refused:
        raise error(f"{root}{refused.path()}: {refused.reason}") from refused.cause
    except UnicodeEncodeError:
        raise error(_surrogate(value, depth, limit, root)) from None
    except Exception as unexpected:
        raise error(f"{root}: cannot be written as JSON: {one_line(unexpected)}") from unexpected
    if len(data) > limit:
        raise error(f"{root}: {len(data):,} bytes of JSON, the limit is {limit:,} bytes")
    return text


def _plain(value: Any, depth: int, left: int) -> int:
    """The fast look: how many of the `left` bytes remain at most when all of `value` is plain JSON, else -1.

    -1 means nothing but: look again, with `_Look`. Text is not looked into, and counts by half: what is a little too large
    is written, to tell its size. Raises `_TooLarge` when the values are more than there are bytes left, which also stops
    a value that refers to one part of itself 2**90 times, and a list of one large text, a million times.
    """
    kind = type(value)
    if depth >= MAX_DEPTH or (kind is not dict and kind is not list and kind is not tuple):
        return -1
    left -= len(value)
    if left < 0:
        raise _TooLarge
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return -1
        if depth:  # the outermost is there once
            left -= sum(map(len, value)) >> 1
        value = value.values()
    for item in value:
        kind = type(item)
        if kind is str:
            left -= len(item) >> 1
        elif kind is int:
            if not _MIN_INT <= item <= _MAX_INT:
                return -1
        elif kind is float:
            if item - item != 0:  # true for NaN and both infinities
                return -1
        elif kind is datetime or kind is time:
            if item.tzinfo is not None and item.tzinfo is not UTC:
                return -1
        elif kind not in _SCALARS:
            left = _plain(item, depth + 1, left)
            if left < 0:
                return -1
    if left < 0:
        raise _TooLarge
    return left


class _Refused(Exception):
    """Why a value cannot be written; the path to it is collected on the way up."""

    def __init__(self, reason: str, cause: BaseException | None = None):
        super().__init__(reason)
        self.reason = reason
        self.cause = cause
        self.steps: list[str] = []

    def path(self) -> str:
        if len(self.steps) > 12:
            self.steps[6:-6] = [" … "]
        return "".join(reversed(self.steps))


class _TooLarge(Exception):
    """The values are more than the bytes that they may take."""


class _Look:
    """Walks over one value before it is written. `budget` bounds the walk by the bytes it must come to."""

    __slots__ = ("budget",)

    def __init__(self, limit: int):
        self.budget = limit

    def at(self, value: Any, depth: int) -> None:
        """Raises `_Refused` for the first thing in `value` that JSON or PostgreSQL cannot hold unchanged."""
        kind = type(value)
        self.budget -= 1
        if self.budget < 0:
            raise _TooLarge
        if kind in _SCALARS:
            if kind is datetime or kind is time:
                self.zone(value)
            return
        if kind is str or (isinstance(value, str) and not isinstance(value, Enum)):
            self.text(value)
        elif isinstance(value, Enum):
            self.at(value.value, depth)
        elif isinstance(value, int):
            if not _MIN_INT <= value <= _MAX_INT:
                raise _Refused(f"an integer of {value.bit_length()} bits, the limit is signed 64 bit")
        elif isinstance(value, float):
            if not isfinite(value):
                raise _Refused(f"{float(value)} is not JSON, numbers have to be finite")
        elif isinstance(value, Decimal):
            if not value.is_finite():
                raise _Refused(f"Decimal {safe_text(value, 40)} is not JSON, numbers have to be finite")
        elif isinstance(value, bytes | bytearray | memoryview):
            raise _Refused(f"{kind.__name__} are not JSON: decode them to text, or to base64 of your own")
        elif isinstance(value, set | frozenset):
            raise _Refused(f"a {kind.__name__} is not JSON: pass a sorted list")
        elif depth >= MAX_DEPTH:
            raise _Refused(f"nested more than {MAX_DEPTH} levels deep, or contains itself")
        elif isinstance(value, dict) or depth == 0:
            for key, item in value.items():
                self.key(key)
                self.inside(item, depth, _step(key))
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                self.inside(item, depth, f"[{index}]")
        else:
            self.structured(value, kind, depth)

    def inside(self, item: Any, depth: int, step: str) -> None:
        try:
            self.at(item, depth + 1)
        except _Refused as refused:
            refused.steps.append(step)
            raise

    def structured(self, value: Any, kind: type, depth: int) -> None:
        for name in _field_names(kind):
            if (item := getattr(value, name, None)) is not msgspec.UNSET:  # left out by the encoder too
                self.inside(item, depth, f".{name}")
        if (model := _pydantic()) is not None and isinstance(value, model):
            try:
                dumped = _dump(value)
            except Exception as failed:
                raise _Refused(f"{type_name(kind)} cannot be dumped: {one_line(failed)}", failed) from failed
            self.at(dumped, depth)
        elif not _is_structured(kind) and not isinstance(value, UUID):
            raise _Refused(f"a value of type {type_name(kind)} cannot be stored as JSON")

    def zone(self, value: datetime | time) -> None:
        """JSON has offsets of whole minutes: the encoder leaves out seconds, which would move the time."""
        if value.tzinfo is None:
            return
        offset = value.utcoffset()
        if offset is None:
            raise _Refused(f"{safe_repr(value)} has a time zone without an offset, which would be left out")
        if offset % _MINUTE:
            raise _Refused(
                f"{safe_repr(value)} is {offset} off UTC, and JSON has whole minutes: convert it to UTC"
            )

    def text(self, value: str) -> None:
        self.budget -= len(value)
        if "\0" in value:
            raise _Refused(f"the character NUL at position {value.index(chr(0))}, PostgreSQL cannot store it")
        try:
            value.encode()
        except UnicodeEncodeError as failed:
            raise _Refused(f"a lone surrogate at position {failed.start}, which is no Unicode text") from None

    def key(self, key: Any) -> None:
        if not isinstance(key, str):
            raise _Refused(
                f"the key {safe_repr(key)} is of type {type_name(type(key))}, keys have to be strings"
            )
        try:
            self.text(key)
        except _Refused as refused:
            refused.reason = f"the key {safe_repr(key)} holds {refused.reason}"
            raise


def _surrogate(value: Any, depth: int, limit: int, root: str) -> str:
    """Finds the lone surrogate that the encoder stumbled over."""
    try:
        _Look(limit).at(value, depth)
    except _Refused as refused:
        return f"{root}{refused.path()}: {refused.reason}"
    return f"{root}: a lone surrogate, which is no Unicode text"


def _step(key: str) -> str:
    """A key as a step of a path."""
    return f".{key}" if len(key) <= 80 and str.isidentifier(key) else f"[{safe_repr(key)}]"


def _is_structured(kind: type) -> bool:
    return (
        hasattr(kind, "__struct_fields__")
        or hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "__attrs_attrs__")
    )


def _field_names(kind: Any) -> Iterator[str]:
    if hasattr(kind, "__struct_fields__"):
        yield from kind.__struct_fields__
    elif hasattr(kind, "__dataclass_fields__"):
        yield from (field.name for field in dataclasses.fields(kind))
    elif hasattr(kind, "__attrs_attrs__"):
        yield from (attribute.name for attribute in kind.__attrs_attrs__)


def _pydantic() -> Any:
    """`pydantic.BaseModel` where the application has loaded pydantic; nothing is imported for it."""
    module = sys.modules.get("pydantic")
    return None if module is None else getattr(module, "BaseModel", None)


def _dump(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, round_trip=True)


def _hook(value: Any) -> Any:
    """What msgspec cannot write by itself: pydantic models, and subclasses of the plain types."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, UUID):
        return UUID(int=value.int)
    if isinstance(value, Mapping):
        return dict(value)
    return _dump(value)


_encode = msgspec.json.Encoder(enc_hook=_hook).encode


def read_hook(kind: Any, value: Any) -> Any:
    """What msgspec cannot read by itself, for its `dec_hook`: pydantic models."""
    if kind is object:
        return value
    if (model := _pydantic()) is None or not isinstance(kind, type) or not issubclass(kind, model):
        raise ValueError(f"a {type_name(kind)} cannot be read from JSON")
    try:
        # from JSON and not from values: a strict model takes a datetime or bytes from JSON text alone
        return kind.model_validate_json(msgspec.json.encode(value))  # type: ignore[attr-defined]
    except ValueError as error:
        raise ValueError(_pydantic_told(error)) from error


def _pydantic_told(error: Any) -> str:
    """A pydantic ValidationError in one line, without the values and the addresses that its text holds."""
    try:
        parts = error.errors(include_url=False, include_input=False, include_context=False)
        told = [f"{'.'.join(map(str, part['loc'])) or 'value'}: {part['msg']}" for part in parts[:3]]
        return "; ".join(told) + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")
    except (AttributeError, KeyError, TypeError):
        return one_line(error)
