"""A structlog logger whose lines are also given to somebody else, whatever the application has configured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from pgqueue.error_text import describe_error, safe_repr, safe_text

MAX_LINE = 8_000
"""Characters that are kept of a line."""

Line = dict[str, str]
"""`at` (ISO 8601, of this machine's clock), `level`, `text`."""

_LEVELS = {"exception": "error", "warn": "warning", "fatal": "critical", "msg": "info", "err": "error"}


def keeping(logger: Any, keep: Callable[[Line], None], *, but: tuple[str, ...] = ()) -> Any:
    """`logger`, bound to its values, with each of its lines given to `keep` before it is logged.

    A line that the logger's own level leaves out is not kept; `but` names bound values that are not part of a line.
    A logger of a kind that is none of structlog's is returned as it is.
    """
    if not isinstance(logger, structlog.BoundLoggerBase):
        return logger
    tapped = _Tapped(logger._logger, keep, frozenset(but))
    return _keeping_kind(type(logger))(tapped, logger._processors, logger._context)


class _Tapped:
    """The logger below structlog's, with who is told; structlog passes it on when values are bound."""

    def __init__(self, logger: Any, keep: Callable[[Line], None], but: frozenset[str]):
        self._logger = logger
        self._keep = keep
        self._but = but

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


_kinds: dict[type[Any], type[Any]] = {}


def _keeping_kind(kind: type[Any]) -> type[Any]:
    """A logger of that kind which tells. All of structlog's kinds send each line through `_proxy_to_logger`."""

    if kind in _kinds:
        return _kinds[kind]

    class Keeping(kind):  # type: ignore[misc]
        def _proxy_to_logger(self, method_name: str, event: Any = None, *args: Any, **values: Any) -> Any:
            tapped = self._logger
            if isinstance(tapped, _Tapped):
                told = {
                    name: value
                    for name, value in {**self._context, **values}.items()
                    if name not in tapped._but
                }
                tapped._keep(_line(method_name, event, args, told))
            return super()._proxy_to_logger(method_name, event, *args, **values)

    return _kinds.setdefault(kind, Keeping)


def _line(method: str, event: Any, args: tuple[Any, ...], values: dict[str, Any]) -> Line:
    """Never raises: what is logged may be anything."""
    text = safe_text(event, MAX_LINE) if event is not None else ""
    if args:
        text += f" {safe_repr(args, 500)}"
    error = values.pop("exc_info", None)
    for name, value in values.items():
        shown = safe_text(value, 500) if isinstance(value, str) else safe_repr(value, 500)
        text += f" {safe_text(name, 100)}={shown}"
    if error:
        raised = error if isinstance(error, BaseException) else sys.exc_info()[1]
        if raised is not None:
            text += f"\n{describe_error(raised).traceback.rstrip()}"
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"at": at, "level": _LEVELS.get(method, method), "text": safe_text(text, MAX_LINE)}
