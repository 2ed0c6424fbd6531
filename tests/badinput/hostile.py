"""Values that are made to hurt."""

from __future__ import annotations

import enum
from datetime import datetime, timedelta, tzinfo
from typing import Any, NoReturn

import pydantic


class Unprintable:
    """Its text raises, and what it raises would end the process."""

    def __repr__(self) -> NoReturn:
        raise SystemExit("no text for you")


class Incomparable:
    """As an array of numpy: it cannot be asked whether it equals something."""

    def __eq__(self, _other: object) -> NoReturn:
        raise ValueError("the truth value is ambiguous")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "array([1, 2])"


class BrokenZone(tzinfo):
    def utcoffset(self, _when: datetime | None) -> timedelta:
        raise LookupError("no such\nzone")

    dst = tzname = utcoffset  # type: ignore[assignment]


class Broken(pydantic.BaseModel):
    @pydantic.model_serializer
    def dump(self) -> dict[str, Any]:
        raise LookupError("no\nway")


class Text(str, enum.Enum):  # noqa: UP042 - such ones exist, and str() of one is not its text
    QUEUE = "email"


class Number(int, enum.Enum):
    THREE = 3


def cycle() -> dict[str, Any]:
    """Contains itself."""
    value: dict[str, Any] = {}
    value["me"] = value
    return value


def deep(levels: int = 5_000) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def bomb() -> Any:
    """Ninety lists, and 2**90 of them to whoever walks through."""
    value: Any = []
    for _ in range(90):
        value = [value, value]
    return value
