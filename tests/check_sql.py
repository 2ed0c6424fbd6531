"""Parses every file of SQL with PostgreSQL's own parser, and the body of every plpgsql function.

    python -m tests.check_sql

A part of `make check`: it says file and line without a server. Exits 1 when anything does not parse.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pglast
from pglast import ast
from pglast.parser import ParseError, parse_plpgsql_json

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Returns the exit code."""
    files = [path for folder in ("sql", "migrations") for path in sorted((ROOT / folder).rglob("*.sql"))]
    bodies = 0
    problems: list[str] = []
    for path in files:
        found, errors = check(path.read_text())
        bodies += found
        problems += [f"{path.relative_to(ROOT)}:{error}" for error in errors]
    print("\n".join(problems) or f"{len(files)} files and {bodies} plpgsql bodies parse")
    return 1 if problems else 0


def check(text: str) -> tuple[int, list[str]]:
    """How many plpgsql bodies `text` has, and what does not parse: `line: message`.

    Text that is not ASCII counts as well: a database in LATIN1 cannot store it, and bodies and comments are stored.
    """
    foreign = [number for number, line in enumerate(text.splitlines(), start=1) if not line.isascii()]
    if foreign:
        return 0, [f"{number}: a character that is not ASCII" for number in foreign]
    try:
        statements = pglast.parse_sql(text)
    except ParseError as error:
        return 0, [_problem(text, error.args[1], error)]
    bodies = 0
    errors: list[str] = []
    for start, code in _plpgsql(text, statements):
        bodies += 1
        try:
            parse_plpgsql_json(_plain(code))
        except ParseError as error:
            errors.append(_problem(text, start, error))
    return bodies, errors


def _plpgsql(text: str, statements: tuple[ast.RawStmt, ...]) -> Iterator[tuple[int, str]]:
    """Where each statement with a plpgsql body starts, and its text."""
    for raw in statements:
        match raw.stmt:
            case ast.CreateFunctionStmt(options=options) | ast.DoStmt(args=options):
                languages = [option.arg.sval for option in options or () if option.defname == "language"]
                if languages in (["plpgsql"], []):
                    start = raw.stmt_location or 0
                    yield start, text[start : start + raw.stmt_len if raw.stmt_len else None]


def _plain(code: str) -> str:
    """`code` without what the parser does not know because it has no catalog."""
    name = re.search(r"create function pgqueue\.(\w+)", code)
    if name:  # an argument that is assigned to by its qualified name
        code = re.sub(rf"^(\s*){name[1]}\.(\w+) :=", r"\1\2 :=", code, flags=re.MULTILINE)
    # an argument, and a variable, of a table's row type
    code = re.sub(r"^(\s*\w+) pgqueue\.\w+,", r"\1 text,", code, flags=re.MULTILINE)
    return re.sub(r"^(\s*\w+) pgqueue\.\w+;$", r"\1 record;", code, flags=re.MULTILINE)


def _problem(text: str, offset: int | None, error: ParseError) -> str:
    return f"{text.count(chr(10), 0, offset or 0) + 1}: {error.args[0].splitlines()[0]}"


if __name__ == "__main__":
    sys.exit(main())
