"""docs/reference/bad-input.md is what the tables say.

    PGQUEUE_REWRITE_BAD_INPUT=1 python -m pytest tests/badinput -k page

writes it.
"""

from __future__ import annotations

import os

from tests.badinput.table import PAGE, Case, page


def test_the_page_is_what_the_tables_say() -> None:
    now = page()
    if os.environ.get("PGQUEUE_REWRITE_BAD_INPUT"):
        PAGE.write_text(now, encoding="utf-8")
    assert now == PAGE.read_text(encoding="utf-8"), (
        "PGQUEUE_REWRITE_BAD_INPUT=1 python -m pytest tests/badinput -k page"
    )


def test_a_row_is_held_to_its_whole_message() -> None:
    case = Case("call", "thing", "ValueError", "thing: 1 of …, got (x)")
    case.holds(ValueError("thing: 1 of 7, got (x)"))
    assert not case.says("thing: 1 of , got (x)")
    assert not case.says("thing: 1 of 7, got (x) and more")
    assert not case.says("a thing: 1 of 7, got (x)")
