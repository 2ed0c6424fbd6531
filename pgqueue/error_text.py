"""Any text that comes out of a job, made safe to store.

What comes out is never refused: an exception, whatever it holds, must not stop its outcome from being
recorded.
"""

from __future__ import annotations

import difflib
import hashlib
import linecache
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType
from typing import Any

MAX_TEXT = 10_000
"""Characters that are kept of a message that a job brought up."""
MAX_TRACEBACK = 16_000
"""Characters that are kept of a traceback."""


def safe_text(value: object, limit: int = MAX_TEXT) -> str:
    """`str(value)` as text that PostgreSQL can store, at most about `limit` characters. Never raises.

    NUL and lone surrogates are written as escapes; what is too long loses its middle, and says so.

    >>> safe_text("a" + chr(0) + "b")
    'a\\\\x00b'
    >>> len(safe_text("x" * 1_000_000, limit=200)) < 260
    True
    """
    return _clean(_contained(str, value), limit)


def safe_repr(value: object, limit: int = 80) -> str:
    """`repr(value)` under the same rules, for messages that show what was given.

    It is bounded in time, too: of containers and of long text only the beginning is looked at.

    >>> safe_repr(10**400)
    'an integer of 1329 bits'
    """
    if type(value) is int and value.bit_length() > 256:
        return (
            f"an integer of {value.bit_length()} bits"  # Python writes no integer of more than 4,300 digits
        )
    if type(value) is str or type(value) is bytes:
        return _clean(repr(value[: limit + 1]), limit)
    return _clean(_contained(_beginning if isinstance(value, _CONTAINERS) else repr, value), limit)


_CONTAINERS = (list, tuple, dict, set, frozenset)


def _beginning(container: object) -> str:
    """Hazard: a list that holds another one twice, ninety levels deep, is small and its repr is endless."""
    short = reprlib.Repr()
    short.maxlevel = 4
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = 10
    short.maxstring = short.maxother = short.maxlong = 100
    return short.repr(container)


def one_line(value: object, limit: int = 300) -> str:
    """`safe_text` with its lines joined: an error's message inside another one."""
    return " ".join(safe_text(value, limit).split())


def plain(text: str) -> str:
    """Text for a terminal or a log that people read: nothing in it moves the cursor, or turns what follows round.

    Hazard: names, errors and log lines come from jobs, and may hold escape sequences and bidirectional controls.

    >>> plain("a" + chr(27) + "[2J") == "a\\ufffd[2J"
    True
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _contained(read: Any, value: object) -> str:
    try:
        text = read(value)
        # An instance of a subclass of str could override what is called on it from here on.
        return text if type(text) is str else str.__str__(text)
    except BaseException as failed:  # noqa: BLE001
        # Hazard: a __str__ that raises SystemExit, KeyboardInterrupt or CancelledError would end the worker
        # or its slot while it records an outcome. None of them can be meant for us: nothing is awaited
        # here, and the worker's own signal handlers raise nothing.
        return f"<{type_name(type(value))}, whose text raised {type_name(type(failed))}>"


def type_name(kind: type) -> str:
    """The qualified name of a type, without `builtins`."""
    try:
        module, name = type.__getattribute__(kind, "__module__"), type.__getattribute__(kind, "__qualname__")
        return _clean(f"{name}" if module == "builtins" else f"{module}.{name}", 200)
    except BaseException:  # noqa: BLE001 - a metaclass may answer anything; see _contained
        return "a type without a name"


CUT = "…"
"""Stands where something was left out."""


def _clean(text: str, limit: int) -> str:
    if len(text) > limit < 1_000:
        text = text[:limit] + CUT
    elif len(text) > limit:
        head, tail = limit * 2 // 3, limit - limit * 2 // 3
        text = f"{text[:head]} [{CUT} {len(text) - limit:,} characters left out …] {text[len(text) - tail :]}"
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class ErrorText:
    """An exception as text: its type's qualified name, its message, its traceback, and its fingerprint.

    The fingerprint is equal for errors of one type that came from the same functions, whatever the
    message and the line numbers: 16 hexadecimal digits to group failures by.
    """

    type: str
    message: str
    traceback: str
    fingerprint: str


def describe_error(error: BaseException) -> ErrorText:
    """What is stored of a failed attempt. Never raises, and is bounded in time and size.

    Tracebacks hold no local variables: these hold payloads and secrets.

    >>> describe_error(ValueError("no such card")).message
    'no such card'
    """
    told = _contained(
        str, error
    )  # once: of a KeyError it is the repr of its key, which may be hundreds of megabytes
    try:
        frames = list(_frames(error.__traceback__))
        text = "".join(_chain(error, told=told))
        places = [f"{frame.f_globals.get('__name__')}:{frame.f_code.co_qualname}" for frame, _ in frames[-5:]]
    except BaseException as failed:  # noqa: BLE001 - an exception class may override anything; see _contained
        text = f"the traceback could not be written: {type_name(type(failed))}\n"
        places = []
    name = type_name(type(error))
    digest = hashlib.sha256("\n".join([name, *places]).encode("utf-8", "backslashreplace"))
    return ErrorText(name, _clean(told, MAX_TEXT), _clean(text, MAX_TRACEBACK), digest.hexdigest()[:16])


_OURS = ("pgqueue.worker", "pgqueue.invocation", "pgqueue.otel", "pgqueue.resources")
_CHAIN, _GROUP, _HEAD, _TAIL = 8, 5, 5, 25


def _chain(
    error: BaseException, seen: set[int] | None = None, indent: str = "", told: str | None = None
) -> Iterator[str]:
    """The error, whose own text is `told`, after its causes, oldest first as Python prints them.

    Cycles and long chains are cut.
    """
    seen = set() if seen is None else seen
    links: list[tuple[BaseException, str]] = []
    current: BaseException | None = error
    reason = ""
    while current is not None and id(current) not in seen and len(links) < _CHAIN:
        seen.add(id(current))
        links.append((current, reason))
        if current.__cause__ is not None:
            current, reason = current.__cause__, "The above exception was the direct cause of the following:"
        elif not current.__suppress_context__:
            current, reason = current.__context__, "During the handling of the above exception came:"
        else:
            current = None
    if current is not None:
        yield f"{indent}… earlier causes left out …\n\n"
    for link, reason in reversed(links):
        yield from _one(link, seen, indent, told if link is error else None)
        if reason:
            yield f"\n{indent}{reason}\n\n"


def _one(error: BaseException, seen: set[int], indent: str, told: str | None = None) -> Iterator[str]:
    frames = list(_frames(error.__traceback__))
    if frames:
        yield f"{indent}Traceback (most recent call last):\n"
    yield from _places([(frame.f_code, line) for frame, line in frames], indent)
    message = _clean(_contained(str, error) if told is None else told, 2_000)
    yield f"{indent}{type_name(type(error))}{': ' if message else ''}{message}\n"
    notes = getattr(error, "__notes__", None)
    for note in notes[:_GROUP] if isinstance(notes, list) else ():
        yield f"{indent}{safe_text(note, 500)}\n"
    if isinstance(error, BaseExceptionGroup) and len(indent) < 8:
        for part in error.exceptions[:_GROUP]:
            yield from _chain(part, seen, indent + "  | ")
        if len(error.exceptions) > _GROUP:
            yield f"{indent}  | … {len(error.exceptions) - _GROUP:,} exceptions more …\n"


def _places(places: list[tuple[CodeType, int]], indent: str = "") -> Iterator[str]:
    for index, (code, line) in enumerate(places):
        if _HEAD <= index < len(places) - _TAIL:
            if index == _HEAD:
                yield f"{indent}  … {len(places) - _HEAD - _TAIL:,} frames left out …\n"
            continue
        yield f'{indent}  File "{code.co_filename}", line {line}, in {code.co_qualname}\n'
        if source := linecache.getline(code.co_filename, line).strip():
            yield f"{indent}    {source[:200]}\n"


Stack = list[tuple[CodeType, int, str]]
"""Where a thread stands: code, line and module of each call, outermost first."""


def read_stack(frame: FrameType) -> Stack:
    """Where a thread stands that may run on while this looks: what is read of its frames is read at once."""
    found: Stack = []
    current: FrameType | None = frame
    while current is not None:
        found.append((current.f_code, current.f_lineno, str(current.f_globals.get("__name__"))))
        current = current.f_back
    return found[::-1]


def describe_stack(stack: Stack) -> str:
    """A stack as text, without local variables, and without the worker's own calls around a handler."""
    own = [index for index, (*_, module) in enumerate(stack) if module.startswith("pgqueue.worker")]
    handler = stack[own[-1] + 1 :] if own else []
    return _clean("".join(_places([(code, line) for code, line, _ in handler or stack])), MAX_TRACEBACK)


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    """The frames from the outermost to where it was raised, without the worker's own at the outer end."""
    outer = True
    while traceback is not None:
        frame = traceback.tb_frame
        outer = outer and str(frame.f_globals.get("__name__")).startswith(_OURS)
        if not outer:
            yield frame, traceback.tb_lineno
        traceback = traceback.tb_next


def did_you_mean(given: str, known: Any) -> str:
    """`, did you mean …?` when something among `known` is close to `given`, else nothing."""
    close = difflib.get_close_matches(given[:200], list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""
