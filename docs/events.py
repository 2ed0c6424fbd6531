"""Finds in the source what it logs: the name, the levels and the fields of each event. `docs.build` makes a page of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pgqueue"
LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")
_NEW = ("structlog.get_logger", "structlog.wrap_logger")
_NUMBERS = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}


@dataclass
class Found:
    """What the source says of one event."""

    levels: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """One place that logs: each name that it may log, with its level."""

    names: tuple[tuple[str, str], ...]
    fields: tuple[str, ...]
    place: str


@cache
def find_events() -> dict[str, Found]:
    """The events of the source by name."""
    found: dict[str, Found] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        if "bench" in path.relative_to(PACKAGE).parts or not any(new in source for new in _NEW):
            continue  # a benchmark logs nothing of a worker
        for line in lines_of(source, str(path.relative_to(PACKAGE.parent))):
            for name, level in line.names:
                event = found.setdefault(name, Found())
                _extend(event.levels, (level,))
                _extend(event.fields, line.fields)
                event.places.append(line.place)
    return found


def lines_of(source: str, place: str) -> Iterator[Line]:
    """The places of a module that log something of their own; a handler's `ctx.log` is the application's."""
    tree = ast.parse(source)
    loggers, bound = _loggers(tree)
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in _own_nodes(scope):
            match node:
                case ast.Call(func=ast.Attribute(value=receiver, attr=level)) if level in LEVELS and (
                    _is_new_logger(receiver) or (isinstance(receiver, ast.Name) and receiver.id in loggers)
                ):
                    name = receiver.id if isinstance(receiver, ast.Name) else ""
                    given = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
                    fields = ["exception" if name == "exc_info" else name for name in given]
                    fields += ["exception"] if level == "exception" else []
                    yield Line(
                        _names(level, node.args, scope),
                        (*bound.get(name, ()), *fields),
                        f"{place}:{node.lineno}",
                    )


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function, without those of the functions in it."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _own_nodes(node)


def _loggers(tree: ast.AST) -> tuple[set[str], dict[str, tuple[str, ...]]]:
    """The names of a module that are loggers, and the fields that some of them have been bound to."""
    loggers: set[str] = set()
    bound: dict[str, tuple[str, ...]] = {}
    for _ in range(2):  # the second time finds what was made of the first ones
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_new_logger(value) or (
                    isinstance(value, ast.Name) and value.id in loggers
                ):
                    loggers.add(name)
                case ast.Assign(
                    targets=[ast.Name(id=name)],
                    value=ast.Call(
                        func=ast.Attribute(value=ast.Name(id=logger), attr="bind"), keywords=given
                    ),
                ) if logger in loggers:
                    loggers.add(name)
                    names = (keyword.arg for keyword in given if keyword.arg is not None)
                    bound[name] = tuple(dict.fromkeys((*bound.get(name, ()), *names)))
    return loggers, bound


def _is_new_logger(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in _NEW


def _names(level: str, arguments: list[ast.expr], scope: ast.AST) -> tuple[tuple[str, str], ...]:
    """The names that a call may log, each with its level."""
    if level != "log":
        return tuple(
            (name, "error" if level == "exception" else level) for name in _texts(arguments[0], scope)
        )
    names = _texts(arguments[1], scope)
    numbers = (
        (arguments[0].body, arguments[0].orelse) if isinstance(arguments[0], ast.IfExp) else (arguments[0],)
    )
    levels = [_NUMBERS[ast.literal_eval(number)] for number in numbers]
    times = max(len(names), len(levels))
    return tuple(zip(names * (times // len(names)), levels * (times // len(levels)), strict=True))


def _texts(node: ast.expr, scope: ast.AST) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=body, orelse=orelse):
            return [*_texts(body, scope), *_texts(orelse, scope)]
        case ast.Name(id=name):
            for given in ast.walk(scope):
                match given:
                    case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                        return _texts(value, scope)
    raise ValueError(f"what is logged here has no name that can be read: {ast.unparse(node)}")


def _extend(known: list[str], more: tuple[str, ...]) -> None:
    known += [item for item in more if item not in known]
