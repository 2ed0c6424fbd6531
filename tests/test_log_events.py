"""Every event that the package logs is in the table of the documentation, and nothing else is."""

from __future__ import annotations

import re

import pytest

from docs.events import Line, find_events, lines_of
from pgqueue.observe.events import LOG_EVENTS


def test_the_table_has_what_the_source_logs_and_nothing_else() -> None:
    found = find_events()
    missing = {name: event.places for name, event in found.items() if name not in LOG_EVENTS}
    assert not missing, "describe them in pgqueue/observe/events.py"
    gone = [name for name in LOG_EVENTS if name not in found]
    assert not gone, "the source does not log them any more"


def test_names_are_of_one_shape_and_what_has_gone_wrong_says_what_to_do() -> None:
    assert all(re.fullmatch(r"[a-z_]+\.[a-z_]+", name) for name in LOG_EVENTS)
    helpless = [
        name
        for name, found in find_events().items()
        if {"error", "critical"} & set(found.levels) and not LOG_EVENTS[name].todo
    ]
    assert not helpless, "an operator wants to know what to do about an error"


SOURCE = """
log = structlog.get_logger("pgqueue.x")
other = logging.getLogger()

def one(self, dead, **more):
    log.info("a.plain", id=1, **more)
    log.log(40 if dead else 30, "a.dead" if dead else "a.failed", reason="x")
    log.log(40 if dead else 30, "a.both")
    log.exception("a.raised", hint="y")
    event = "a.late" if dead else "a.lost"
    log.warning(event)
    who = log
    who = log.bind(job=1)
    def inner():
        who.error("a.bound", exc_info=error)
    structlog.get_logger("z").debug("a.direct")
    ctx.log.info("the handler's own"), other.info("not ours"), self.info("not either")
"""


def test_the_source_is_read_as_it_is_written() -> None:
    assert sorted(lines_of(SOURCE, "x.py"), key=lambda line: int(line.place[5:])) == [
        Line((("a.plain", "info"),), ("id",), "x.py:6"),
        Line((("a.dead", "error"), ("a.failed", "warning")), ("reason",), "x.py:7"),
        Line((("a.both", "error"), ("a.both", "warning")), (), "x.py:8"),
        Line((("a.raised", "error"),), ("hint", "exception"), "x.py:9"),
        Line((("a.late", "warning"), ("a.lost", "warning")), (), "x.py:11"),
        Line((("a.bound", "error"),), ("job", "exception"), "x.py:15"),
        Line((("a.direct", "debug"),), (), "x.py:16"),
    ]


def test_a_name_that_nobody_can_look_up_is_refused() -> None:
    with pytest.raises(ValueError, match="no name that can be read"):
        list(lines_of("log = structlog.get_logger()\ndef f(x): log.info(f'a.{x}')", "x.py"))
