"""Which args are not shown: by their names, wherever pgqueue itself writes what they hold.

The setting `redact` lists the names. The commands print `***` for such args, and what an attempt failed with is stored
and logged without their values. What the application does with them, its own log lines too, is its own.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pgqueue.error_text import CUT, ErrorText

HIDDEN = "***"
DEFAULT_NAMES = ("*password*", "*secret*", "*token*", "*api_key*", "authorization")
"""What `redact` holds unless it is set."""
MIN_LENGTH = 4
"""Shorter values are not looked for in texts: they would be found in the middle of words."""
MAX_VALUES = 1_000
"""Of a job whose args hold more than these, no text is shown."""


class Redaction:
    """Hides args of some names: patterns in which `*` stands for anything, in any case, at any depth.

    >>> Redaction(["*password*"]).args({"user": {"Password": "x", "name": "ada"}})
    {'user': {'Password': '***', 'name': 'ada'}}
    """

    def __init__(self, names: Sequence[str] = DEFAULT_NAMES):
        self._matches = re.compile(
            "|".join(fnmatch.translate(name.lower()) for name in names) or "(?!)", re.DOTALL
        ).match

    def args(self, value: Any) -> Any:
        """A copy of a JSON value that can be shown."""
        if isinstance(value, dict):
            return {
                name: HIDDEN if self._matches(name.lower()) else self.args(inner)
                for name, inner in value.items()
            }
        return [self.args(inner) for inner in value] if isinstance(value, list) else value

    def error(self, told: ErrorText, args: str, *, every: bool = False) -> ErrorText:
        """`told` without the values that args (JSON text) of these names hold; `every`: of all names."""
        try:
            values = {*self._values(json.loads(args), is_hidden=every)}
        except (ValueError, RecursionError):
            return told  # the args of nobody: the attempt never had them
        if not values:
            return told
        if len(values) > MAX_VALUES:
            note = f"left out: the args have {len(values):,} values to redact"
            return replace(told, message=note, traceback=note)
        # The longest first: one may be part of another.
        ordered = sorted(values, key=len, reverse=True)
        return replace(
            told, message=_without(ordered, told.message), traceback=_without(ordered, told.traceback)
        )

    def _values(self, value: Any, *, is_hidden: bool) -> Iterator[str]:
        """The texts of what is hidden, each as it is and as Python and JSON write it."""
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from self._values(inner, is_hidden=is_hidden or bool(self._matches(name.lower())))
        elif isinstance(value, list):
            for inner in value:
                yield from self._values(inner, is_hidden=is_hidden)
        elif is_hidden and isinstance(value, str | int | float) and not isinstance(value, bool):
            for text in (str(value), repr(value)[1:-1], json.dumps(value)[1:-1]):
                if len(text) >= MIN_LENGTH and (isinstance(value, str) or text == str(value)):
                    yield text


def _without(values: Sequence[str], text: str) -> str:
    """A text without any of the values, the longest first."""
    for value in values:
        text = text.replace(value, HIDDEN)
    # Hazard: what was too long has been cut already (error_text), and a value with it: no part of one is to stay behind.
    if CUT in text and any(value[:MIN_LENGTH] in text or value[-MIN_LENGTH:] in text for value in values):
        return "left out: it was too long to be shown whole, and may hold a part of what is redacted"
    return text
