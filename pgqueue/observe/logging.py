"""The log set-up of the `pgqueue` command. The library never calls it: an application's logging is its own."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


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
            exception_formatter=structlog.dev.RichTracebackFormatter(show_locals=False),
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *processors,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.dict_tracebacks] if as_json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
