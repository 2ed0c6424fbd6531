"""`ctx.log` keeps its lines whatever the application has made of structlog, and whatever is logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from pgqueue.observe.kept_lines import MAX_LINE, Line, keeping


class Unreadable:
    def __repr__(self) -> str:
        raise SystemExit("not to be read")


class Devnull:
    """A logger below structlog's that does nothing, with an attribute that processors may ask for."""

    name = "devnull"

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_values: None


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def kept_by(wrapper: type[Any], **configuration: Any) -> tuple[Any, list[Line]]:
    """A logger of a kind, and the list that its lines come into."""
    structlog.configure(
        wrapper_class=wrapper,
        logger_factory=lambda *_: Devnull(),
        cache_logger_on_first_use=False,
        **{"processors": [lambda _logger, _name, event: event], **configuration},
    )
    lines: list[Line] = []
    return keeping(structlog.get_logger().bind(job_id=7, tenant="eu"), lines.append, but=("job_id",)), lines


KINDS = {
    "filtering": structlog.make_filtering_bound_logger(logging.INFO),
    "generic": structlog.BoundLogger,
    "stdlib": structlog.stdlib.BoundLogger,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_line_is_kept_with_its_values_and_those_that_are_bound(kind: str) -> None:
    logger, lines = kept_by(KINDS[kind])
    logger.info("began", rows=3)
    logger.bind(user_id=7).unbind("tenant").error("bound later")
    logger.new(fresh=True).warning("anew")
    assert [(line["level"], line["text"]) for line in lines] == [
        ("info", "began tenant=eu rows=3"),
        ("error", "bound later user_id=7"),
        ("warning", "anew fresh=True"),
    ]


def test_what_the_level_leaves_out_is_not_kept() -> None:
    logger, lines = kept_by(structlog.make_filtering_bound_logger(logging.WARNING))
    logger.info("quiet")
    logger.warning("loud")
    assert [line["text"] for line in lines] == ["loud tenant=eu"]


def test_the_ordinary_log_gets_the_same_line_and_its_own_logger() -> None:
    seen: list[Any] = []

    def see(logger: Any, name: str, event: Any) -> Any:
        seen.append((logger.name, name, dict(event)))
        return event

    logger, _ = kept_by(KINDS["filtering"], processors=[see])
    logger.info("began", rows=3)
    assert seen == [("devnull", "info", {"job_id": 7, "tenant": "eu", "rows": 3, "event": "began"})]


def test_an_error_is_kept_with_its_traceback() -> None:
    logger, lines = kept_by(KINDS["filtering"])
    try:
        raise KeyError("card")
    except KeyError as error:
        logger.exception("failed")
        logger.warning("failed again", exc_info=error)
    for line in lines:
        assert line["text"].startswith("failed")
        assert line["text"].endswith("KeyError: 'card'")
        assert "test_kept_lines.py" in line["text"]
    assert [line["level"] for line in lines] == ["error", "warning"]


@pytest.mark.parametrize("value", [Unreadable(), "a\0b\ud800", "x" * 1_000_000, b"\xff", [[]] * 10_000])
def test_whatever_is_logged_can_be_kept(value: Any) -> None:
    logger, lines = kept_by(KINDS["filtering"])
    logger.info("odd", value=value)
    logger.info(value)
    assert len(lines) == 2
    for line in lines:
        assert len(line["text"]) < MAX_LINE + 100
        assert "\0" not in line["text"]
        line["text"].encode()


def test_a_logger_that_is_none_of_structlogs_is_left_alone() -> None:
    logger = logging.getLogger("plain")
    assert keeping(logger, lambda _line: None) is logger
