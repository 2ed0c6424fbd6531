"""The log set-up of the `pgqueue` command. The library never calls it: an application's logging is its own."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any, TextIO

import structlog

from pgqueue.error_text import plain


def configure_logging(*, format: str = "auto", level: str = "info", processors: tuple[Any, ...] = ()) -> None:
    """Logs to stderr: JSON when it is no terminal, for people otherwise; `format` json or console decides.

    Tracebacks come without local variables, which hold args and secrets. `processors` run before the
    renderer.
    """
    as_json = format == "json" or (format == "auto" and not sys.stderr.isatty())
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=_traceback,
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *processors,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.dict_tracebacks] if as_json else [_harmless]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _harmless(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """For people: what jobs say moves no cursor. JSON escapes it anyway."""
    return {plain(name): plain(value) if isinstance(value, str) else value for name, value in event.items()}


def _traceback(into: TextIO, error: structlog.typing.ExcInfo) -> None:
    """A traceback for people, without colours: they are escape sequences as well as what an error's text may hold."""
    text = io.StringIO()
    structlog.dev.RichTracebackFormatter(show_locals=False, color_system=None)(text, error)
    into.write(plain(text.getvalue()))
