"""What is said through Python's `logging` where the `pgqueue` command has set the log up, each time in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SETUP = """
import logging, structlog
from pgqueue.observe.logging import configure_logging
configure_logging(format="json", level="info")
structlog.contextvars.bind_contextvars(worker=7)
library = logging.getLogger("a.library")
"""


def said(code: str) -> list[str]:
    """The lines on stderr of a process that sets its log up as the command does, and then runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", SETUP + code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def line(code: str) -> dict[str, Any]:
    """The one line, which is JSON."""
    (only,) = said(code)
    parsed: dict[str, Any] = json.loads(only)
    parsed.pop("timestamp")
    return parsed


def test_a_warning_of_a_library_becomes_a_line_with_the_context_of_the_process() -> None:
    assert line("library.warning('lost %s', 'something')") == {
        "event": "stdlib.logged",
        "level": "warning",
        "logger": "a.library",
        "message": "lost something",
        "worker": 7,
    }


def test_levels_of_their_own_are_rounded_down_and_less_than_a_warning_is_not_said() -> None:
    told = said("for level in (10, 20, 29, 30, 39, 40, 50, 77): library.log(level, str(level))")
    assert [(json.loads(each)["message"], json.loads(each)["level"]) for each in told] == [
        ("30", "warning"),
        ("39", "warning"),
        ("40", "error"),
        ("50", "error"),
        ("77", "error"),
    ]


def test_an_error_comes_with_its_traceback_and_without_local_variables() -> None:
    (only,) = said("""
def fails():
    secret = "s3cr" + "et"
    try:
        return secret + 1
    except TypeError:
        library.exception("it failed")
fails()
""")
    (error,) = json.loads(only)["exception"]
    assert (error["exc_type"], error["frames"][0]["name"]) == ("TypeError", "fails")
    assert "s3cret" not in only


def test_who_logs_what_cannot_be_formatted_is_not_harmed() -> None:
    *_, last = said("library.warning('%d', 'no number')\nlibrary.warning('and on')")
    assert json.loads(last)["message"] == "and on"


def test_an_application_that_configures_its_logging_has_it() -> None:
    assert said("logging.basicConfig(format='mine: %(message)s')\nlibrary.warning('lost')") == ["mine: lost"]


def test_an_application_whose_structlog_writes_to_logging_goes_round_in_no_circle() -> None:
    code = """
structlog.configure(logger_factory=structlog.stdlib.LoggerFactory(), processors=[structlog.stdlib.render_to_log_kwargs])
structlog.get_logger("of.its.own").warning("hello")
"""
    assert line(code) == {
        "event": "stdlib.logged",
        "level": "warning",
        "logger": "of.its.own",
        "message": "hello",
        "worker": 7,
    }
