"""What pgqueue answers to bad input, as tables. Tests run the rows; docs/reference/bad-input.md is made from them.

A module `test_….py` of this package makes its tables at import, and runs each row:

    CASES = table("args", Case("task.enqueue", "a NUL in text", "InvalidArgs", "args.x: the character NUL at …", "a\\0b"))

    @pytest.mark.parametrize("case", CASES, ids=Case.id)
    def test_args_that_json_cannot_hold_are_refused(case: Case) -> None:
        with pytest.raises(InvalidArgs) as caught:
            task.item(x=case.input)
        case.holds(caught.value)

A section may be made of several tables, in one module or more; the page has them in the order of the modules' names.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "bad-input.md"

SECTIONS = {
    "args": "Arguments of a job",
    "enqueue": "Enqueue: names, options, connections",
    "bulk": "Many jobs at once",
    "outcomes": "Results and exceptions of a handler",
    "schedules": "Schedules",
    "configuration": "Settings",
    "cli": "The command line",
    "sql": "The SQL functions",
}
"""The page's sections, in its order."""

_INTROS = {
    "args": "Integers of 64 bits are exact everywhere: stored, in the handler, in results, on the command line. PostgreSQL keeps "
    "numbers as numbers: a float such as 1e22 comes back as an integer where the parameter's annotation is not `float`, "
    "-0.0 as 0.0.",
    "outcomes": "Nothing that a handler raises or returns stops its outcome from being recorded, wherever it runs: in the event "
    "loop, a thread, a process, a transaction, a batch, a step. For what is raised, *error* and *message* are what is stored.",
    "configuration": "All that is wrong is said at once, a line each. What comes from the environment or a file ends with the "
    "name of the variable or the file, in brackets.",
}

_HEAD = """\
<!-- Written by the tests from the tables in tests/badinput/: PGQUEUE_REWRITE_BAD_INPUT=1 python -m pytest tests/badinput -k page -->
# Bad input: what you get when …

Every row of this page is a test. An error is one line that names the field, what was given, and the limit or the remedy.
Nothing has been written then, and your transaction goes on as if the call had not been made. What the *server* refuses
(its rows say so: a class of `psycopg.errors` or an SQLSTATE) has aborted the transaction: roll it back, or the savepoint.

`…` stands for what differs from call to call.
"""


@dataclass(frozen=True)
class Case:
    """A row."""

    where: str
    """The call, option, setting or command, as a user writes it."""
    given: str
    """What was given, in a few words."""
    error: str
    """The name of the error's class; an SQLSTATE; the exit code of a command; or what happens instead of an error."""
    message: str
    """The whole text; `…` stands for what varies."""
    input: Any = field(default=None, repr=False)
    """What the test needs to do it. Not on the page."""

    def id(self) -> str:
        """For pytest: where and what."""
        return re.sub(r"[^A-Za-z0-9_.*-]+", "-", f"{self.where}: {self.given}").strip("-")

    def says(self, text: str) -> bool:
        """`text` is the row's message."""
        pattern = ".+?".join(map(re.escape, self.message.split("…")))
        return re.fullmatch(pattern, text, re.DOTALL) is not None

    def holds(self, raised: BaseException) -> None:
        """`raised` is of the row's class, says its message, and says it in one line."""
        assert type(raised).__name__ == self.error, f"{type(raised).__name__}: {raised}"
        text = str(raised)
        assert self.says(text), f"\n{text}\nand not\n{self.message}"
        assert "\n" not in text


def is_tidy(text: str, limit: int = 700) -> bool:
    """A message is one line of a bearable length, and can be printed."""
    return "\n" not in text and len(text) < limit and text.encode() != b""


_OURS = re.compile(r"tests\.(?:badinput|worker)\.(?:hostile|tasks)")
_TABLES: dict[str, list[Case]] = {section: [] for section in SECTIONS}


def table(section: str, *cases: Case) -> tuple[Case, ...]:
    """Puts the rows into a section of the page, and gives them to the module that runs them."""
    known = {case.id() for case in _TABLES[section]}
    for case in cases:
        assert case.id() not in known, f"two rows of {section}: {case.where}: {case.given}"
        known.add(case.id())
    _TABLES[section] += cases
    return cases


def page() -> str:
    """The page's text, with the tables of all modules of this package."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"tests.badinput.{file.stem}")
    parts = [_HEAD]
    for section, title in SECTIONS.items():
        if _TABLES[section]:
            intro = [f"{_INTROS[section]}\n"] if section in _INTROS else []
            parts += [f"## {title}\n", *intro, *_rows(_TABLES[section]), ""]
    return "\n".join(parts)


def _rows(cases: list[Case]) -> Iterator[str]:
    yield "| where | given | error | message |"
    yield "| --- | --- | --- | --- |"
    for case in cases:
        yield f"| {_cell(case.where)} | {_cell(case.given)} | {_cell(case.error)} | {_code(case.message)} |"


def _cell(text: str) -> str:
    return re.sub(r"[|*<]", r"\\\g<0>", _OURS.sub("myapp", text))


def _code(text: str) -> str:
    """As code; a bar would end the cell even there, and a backtick the code."""
    text = _OURS.sub("myapp", text)
    fence = "``" if "`" in text else "`"
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|") if text else ""
