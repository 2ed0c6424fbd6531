"""What a call is: a SQL function with values, how it is written as a statement, how its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Row = tuple[Any, ...]
Rows = Sequence[Row]


@dataclass(frozen=True, slots=True)
class Verb:
    """One SQL function of schema `pgqueue`.

    `parameters` maps each name to its SQL type; `columns` are the result columns asked for, by name
    (an empty tuple: the function returns one unnamed scalar).
    """

    function: str
    parameters: tuple[tuple[str, str], ...]
    columns: tuple[str, ...] = ()
    _rendered: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def sql(self, style: str) -> str:
        """The statement with placeholders of `style`: "format" (%s), "numeric" ($1) or "named" (:p0)."""
        text = self._rendered.get(style)
        if text is None:
            text = self._rendered[style] = self._render(style)
        return text

    def _render(self, style: str) -> str:
        place = {"format": "%s", "numeric": "${n}", "named": ":p{i}"}[style]
        arguments = ", ".join(
            # through text, so that a driver that asks the server for types sends text as well
            f"{name} => cast(cast({place.format(n=i + 1, i=i)} as text) as {kind})"
            for i, (name, kind) in enumerate(self.parameters)
        )
        if self.columns:
            return f"select {', '.join(self.columns)} from pgqueue.{self.function}({arguments})"
        return f"select pgqueue.{self.function}({arguments})"


@dataclass(frozen=True, slots=True)
class View(Verb):
    """A view of schema `pgqueue_bi` that the program reads as well: `function` is its name, `columns` are those asked for."""

    def _render(self, _style: str) -> str:
        return f"select {', '.join(self.columns)} from pgqueue_bi.{self.function}"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A verb with its values, in the order of the verb's parameters, and how to read the rows."""

    verb: Verb
    values: tuple[str | None, ...]
    decode: Callable[[Rows], T]


def bigints(values: Iterable[int]) -> str:
    """An array of integers as PostgreSQL writes it."""
    return "{" + ",".join(map(str, values)) + "}"


def texts(values: Iterable[str | None]) -> str:
    """An array of texts as PostgreSQL writes it, each element quoted, None as NULL."""
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: str | None) -> str:
    if value is None:
        return "NULL"
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def text_or_null(value: Any) -> str | None:
    return None if value is None else str(value)


def scalar(rows: Rows) -> Any:
    return rows[0][0]


def nothing(_rows: Rows) -> None:
    return None
