"""A last look at a call's values before they travel.

Hazard: libraries differ in what they do with text that PostgreSQL cannot store. psycopg refuses a NUL by
itself, asyncpg sends it, and the server's refusal aborts the user's transaction. So it is looked for
here, for all of them, at 0.5 us a call.
"""

from __future__ import annotations

from typing import Any

from pgqueue.calls import Call
from pgqueue.errors import InvalidArgs, InvalidOption


def check(call: Call[Any]) -> None:
    """Raises `InvalidArgs` or `InvalidOption`, naming the parameter, for text that no server can store."""
    for value in call.values:
        if value is not None and ("\0" in value or not (value.isascii() or _encodable(value))):
            raise _refusal(call)


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(call: Call[Any]) -> InvalidArgs | InvalidOption:
    for (name, kind), value in zip(call.verb.parameters, call.values, strict=True):
        if value is None:
            continue
        error = InvalidArgs if kind == "jsonb" else InvalidOption
        if "\0" in value:
            return error(
                f"{name}: the character NUL at position {value.index(chr(0))}, which PostgreSQL cannot store"
            )
        if not _encodable(value):
            return error(f"{name}: a lone surrogate, which is no Unicode text and cannot be sent")
    raise AssertionError("a refused call has a value to refuse")
