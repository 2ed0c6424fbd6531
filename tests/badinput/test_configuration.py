"""Settings that cannot work, wherever they come from: all that is wrong is said at once, and no secret with it.

Which source wins, and what is right, is in `tests/unit/test_settings.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgqueue.app import App
from pgqueue.errors import ConfigurationError
from pgqueue.settings import Settings, load_settings
from tests.badinput.hostile import Incomparable, Unprintable
from tests.badinput.table import Case, table


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, entered, and an environment without settings."""
    for name in list(os.environ):
        if name.startswith("PGQUEUE_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# One value ----------------------------------------------------------------------------------------------


def _value(name: str, given: str, value: Any, says: str) -> Case:
    return Case(name, given, "ConfigurationError", f"{name}: {says}", value)


SLOTS = "expected an integer from 1 to 10,000, got "
DURATION = "expected a duration such as 25 or '25s', got "
NO_QUEUE = "is no queue: 1 to 100 characters without quotes, * and controls"
DSN = "expected postgresql://user@host/name or key=value pairs"

VALUES = table(
    "configuration",
    _value("concurrency", "0", 0, f"{SLOTS}0"),
    _value("concurrency", "10,001", 10_001, f"{SLOTS}10001"),
    _value("concurrency", "words", "many", f"{SLOTS}'many'"),
    _value("concurrency", "1.5", 1.5, f"{SLOTS}1.5"),
    _value("concurrency", "True", True, f"{SLOTS}True"),
    _value("concurrency", "underlines alone", "___", f"{SLOTS}'___'"),
    _value("concurrency", "10**5000", 10**5000, f"{SLOTS}an integer of 16610 bits"),
    _value("concurrency", "a DSN", "postgresql://app:hunter2@db", f"{SLOTS}postgresql://app:***@db"),
    _value("concurrency", "a DSN of pairs", "host=db password=hunter2", f"{SLOTS}host=db password=***"),
    _value("concurrency", "an object whose repr raises", Unprintable(), f"{SLOTS}a value of type tests.badinput.hostile.Unprintable"),
    _value("processes", "257", 257, "expected an integer from 1 to 256, got 257"),
    _value("drain_limit", "words", "soon", f"{DURATION}'soon'"),
    _value("drain_limit", "two points", "1.2.3", f"{DURATION}'1.2.3'"),
    _value("drain_limit", "-1", -1, f"{DURATION}-1"),
    _value("drain_limit", "True", True, f"{DURATION}True"),
    _value("drain_limit", "two days", "2d", "expected from 0 to 86400 seconds, got '2d'"),
    _value("lease", "NaN", float("nan"), f"{DURATION}nan"),
    _value("lease", "10**400", 10**400, f"{DURATION}an integer of 1329 bits"),
    _value("lease", "-(10**400)", -(10**400), f"{DURATION}an integer of 1329 bits"),
    _value("lease", "0.5 s", 0.5, "expected from 1 to 3600 seconds, got 0.5"),
    _value("wake", "'sometimes'", "sometimes", "expected one of auto, listen, poll, got 'sometimes'"),
    _value("wake", "a list", ["postgresql://app:hunter2@db"], "expected one of auto, listen, poll, got a value of type list"),
    _value("queues", "none", [], "expected a list of queues such as email:20,default, got a value of type list"),
    _value("queues", "a number", 7, "expected a list of queues such as email:20,default, got 7"),
    _value("queues", "a number among them", [7], f"7 {NO_QUEUE}"),
    _value("queues", "an empty name", "", f"'' {NO_QUEUE}"),
    _value("queues", "a star", ["a*"], f"'a*' {NO_QUEUE}"),
    _value("queues", "a lone surrogate", ["a\udcff"], rf"'a\udcff' {NO_QUEUE}"),
    _value("queues", "a limit of 0", ["a:0"], "'a:0': expected a limit of at least 1 after the colon, such as email:20"),
    _value("queues", "the same one twice", ["a", "a:3"], "'a' is listed twice"),
    _value("queues", "a DSN, twice", ["password=hunter2"] * 2, "password=*** is listed twice"),
    _value("queues", "what cannot be compared", Incomparable(), "expected a list of queues such as email:20,default, got a value of type tests.badinput.hostile.Incomparable"),
    _value("max_args_bytes", "10", 10, "expected an integer from 1,024 to 67,108,864, got 10"),
    _value("max_result_bytes", "1 GB", 10**9, "expected an integer from 1,024 to 16,777,216, got 1000000000"),
    _value("transactional_connections", "0", 0, "expected an integer from 1 to 100, got 0"),
    _value("metrics_port", "65,536", 65_536, "expected an integer from 0 to 65,535, got 65536"),
    _value("metrics_host", "a URL", "http://0.0.0.0", "expected an address or a name such as 127.0.0.1, got http://0.0.0.0"),
    _value("metrics_host", "nothing", "", "expected an address or a name such as 127.0.0.1, got ''"),
    _value("log_format", "3", 3, "expected one of auto, json, console, got 3"),
    _value("dsn", "nothing", "", f"{DSN}, got str"),
    _value("dsn", "a number", 5, f"{DSN}, got int"),
    _value("dsn", "a word, perhaps a password", "hunter2", f"{DSN} such as host=db dbname=app"),
    _value("dsn", "another database's", "mysql://app:hunter2@db", "mysql:// is no PostgreSQL, expected postgresql://user@host/name"),
    _value("dsn", "NUL", "host=a\0b", "a DSN cannot hold the character NUL"),
    _value("dsn", "no UTF-8", "host=a\udcff", "a DSN cannot hold a lone surrogate: what was given is no UTF-8"),
)  # fmt: skip

CODE: dict[str, Callable[..., object]] = {
    "load_settings": load_settings,
    "Settings": Settings,
    "App": lambda **given: App(settings=Settings(**given)),
}


@pytest.mark.parametrize("make", CODE.values(), ids=CODE)
@pytest.mark.parametrize("case", VALUES, ids=Case.id)
def test_a_value_out_of_range_is_refused_by_name(case: Case, make: Callable[..., object]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        make(**{case.where: case.input})
    case.holds(refused.value)


@pytest.mark.parametrize("case", [case for case in VALUES if isinstance(case.input, str)], ids=Case.id)
def test_the_environment_is_held_to_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if "\0" in case.input or not case.input:
        return  # no environment can hold the one, and the other is the same as nothing there
    variable = f"PGQUEUE_{case.where.upper()}"
    monkeypatch.setenv(variable, case.input)
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    assert case.says(str(refused.value).removesuffix(f" ({variable})"))


# A file -------------------------------------------------------------------------------------------------


def _file(given: str, text: str | bytes, message: str, name: str = "pgqueue.toml") -> Case:
    return Case(name, given, "ConfigurationError", message, text)


FILES = table(
    "configuration",
    _file("no TOML", "lease = \n", "…/pgqueue.toml: not valid TOML: Invalid value (at line 1, column 9)"),
    _file("no UTF-8", b"lease = '\xff'", "…/pgqueue.toml: not valid TOML: 'utf-8' codec can't decode byte 0xff in position 9: invalid start byte"),
    _file("10,000 lists in each other", "lease = " + "[" * 10_000, "…/pgqueue.toml: not valid TOML: …"),
    _file("an unknown key", "concurency = 5", "concurency: no such setting, did you mean concurrency? (…/pgqueue.toml)"),
    _file("an unknown key of two lines", '"a\\nb" = 5', "a b: no such setting (…/pgqueue.toml)"),
    _file("a table for a value", "[lease]\nseconds = 3", f"lease: {DURATION}a value of type dict (…/pgqueue.toml)"),
    _file("a date for a duration", "lease = 2026-01-01", f"lease: {DURATION}a value of type datetime.date (…/pgqueue.toml)"),
    _file("an unknown key", "[tool.pgqueue]\nleese = 5", "leese: no such setting, did you mean lease? (…/pyproject.toml)", "pyproject.toml"),
)  # fmt: skip


@pytest.mark.parametrize("case", FILES, ids=Case.id)
def test_a_file_that_cannot_work_is_named(case: Case, project: Path) -> None:
    text = case.input if isinstance(case.input, bytes) else case.input.encode()
    (project / case.where).write_bytes(text)
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    case.holds(refused.value)


@pytest.mark.parametrize(
    "text", ["tool = 'pgqueue'", "tool = ['pgqueue']", "[tool]\npgqueue = 5", "[[tool.pgqueue]]"]
)
def test_a_pyproject_of_another_make_is_passed_over(text: str, project: Path) -> None:
    (project / "pyproject.toml").write_text(text)
    assert load_settings() == Settings()


# Several at once ----------------------------------------------------------------------------------------

MISSPELT, BEAT, UPKEEP, UNKNOWN = table(
    "configuration",
    Case(
        "PGQUEUE_DRAIN_LIMT",
        "a variable close to one of ours",
        "ConfigurationError",
        "PGQUEUE_DRAIN_LIMT: no such setting, did you mean PGQUEUE_DRAIN_LIMIT?",
    ),
    Case(
        "beat, lease",
        "2 s and 3 s",
        "ConfigurationError",
        "beat: 2 s is not less than a third of lease, 3 s: two lost beats would cost a living worker its jobs",
    ),
    Case(
        "upkeep_interval, lease",
        "4 s and 3 s",
        "ConfigurationError",
        "upkeep_interval: 4 s is more than lease, 3 s: a dead worker's jobs would wait for it",
    ),
    Case(
        "load_settings(drain=…)",
        "a name that is none",
        "ConfigurationError",
        "drain: no such setting, did you mean drain_limit?",
    ),
)


def test_all_that_is_wrong_is_said_at_once_a_line_each(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "pgqueue.toml").write_text('concurency = 5\nlease = 3\nbeat = "2s"\nprocesses = true\n')
    monkeypatch.setenv("PGQUEUE_WAKE", "sometimes")
    monkeypatch.setenv("PGQUEUE_DRAIN_LIMT", "5")
    with pytest.raises(ConfigurationError) as refused:
        load_settings(dsn="mysql://app:hunter2@db", drain=3)
    file = project / "pgqueue.toml"
    assert str(refused.value).split("\n") == [
        f"concurency: no such setting, did you mean concurrency? ({file})",
        MISSPELT.message,
        UNKNOWN.message,
        f"processes: expected an integer from 1 to 256, got True ({file})",
        "wake: expected one of auto, listen, poll, got 'sometimes' (PGQUEUE_WAKE)",
        "dsn: mysql:// is no PostgreSQL, expected postgresql://user@host/name",
        BEAT.message,
        UPKEEP.message,
    ]


def test_contradictions_are_found_without_loading_too() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings(lease=3)
    assert str(refused.value).split("\n") == [BEAT.message, UPKEEP.message]


def test_what_is_written_as_text_is_read_wherever_settings_are_made() -> None:
    settings = Settings(lease="1m", concurrency="20", queues="email:20,default")  # type: ignore[arg-type]
    assert (settings.lease, settings.concurrency, settings.queues) == (60.0, 20, ("email:20", "default"))
