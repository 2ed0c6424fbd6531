"""The log set-up of the `pgqueue` command. The library never calls it: an application's logging is its own."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any, TextIO

import structlog

from pgqueue.error_text import plain

_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure_logging(*, format: str = "auto", level: str = "info", processors: tuple[Any, ...] = ()) -> None:
    """Logs to stderr: JSON when it is no terminal, for people otherwise; `format` json or console decides.

    Tracebacks come without local variables, which hold args and secrets. `processors` run before the
    renderer. What is said through Python's `logging` where nobody has configured that becomes such lines too, from
    warnings on; an application that configures it has its own.
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
    chain: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        *processors,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _TRACEBACKS if as_json else _harmless,
        renderer,
    ]
    kind = structlog.make_filtering_bound_logger(logging.getLevelName(level.upper()))
    structlog.configure(
        processors=chain,
        wrapper_class=kind,
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.lastResort = _Unconfigured(chain, kind)


class _Unconfigured(logging.Handler):
    """Makes a line of what is said through Python's `logging` where no handler is.

    It has a logger of its own: an application may have set structlog up to write to `logging`, and each would call the
    other for ever.
    """

    def __init__(self, processors: list[structlog.typing.Processor], kind: type[Any]):
        super().__init__(logging.WARNING)
        self._processors = processors
        self._kind = kind

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging` asks for it."""
        log = structlog.wrap_logger(
            structlog.WriteLogger(sys.stderr), self._processors, wrapper_class=self._kind
        )
        try:
            log.log(
                40 if record.levelno >= logging.ERROR else 30,
                "stdlib.logged",
                logger=record.name,
                message=record.getMessage(),
                exc_info=record.exc_info,
            )
        except Exception:  # noqa: BLE001 - as in every handler of `logging`: who logs is not harmed
            self.handleError(record)


def _harmless(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """For people: what jobs say moves no cursor. JSON escapes it anyway."""
    return {plain(name): plain(value) if isinstance(value, str) else value for name, value in event.items()}


def _traceback(into: TextIO, error: structlog.typing.ExcInfo) -> None:
    """A traceback for people, without colours: they are escape sequences as well as what an error's text may hold."""
    text = io.StringIO()
    structlog.dev.RichTracebackFormatter(show_locals=False, color_system=None)(text, error)
    into.write(plain(text.getvalue()))
