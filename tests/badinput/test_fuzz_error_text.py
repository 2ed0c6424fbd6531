"""Whatever a handler raises: texts that PostgreSQL stores, within their limits, and soon."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.error_text import MAX_TEXT, MAX_TRACEBACK, describe_error, one_line, safe_repr, safe_text
from tests.badinput.fuzzing import fuzzed
from tests.badinput.hostile import bomb
from tests.badinput.test_fuzz_options import finite_things

_texts = st.text(st.characters(), max_size=30)  # surrogates and NUL among them
_kinds = st.sampled_from(
    [ValueError, KeyError, OSError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, StopIteration, UnicodeDecodeError, MemoryError]
)  # fmt: skip
_odd_names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=300
)


@st.composite
def _classes(draw: st.DrawFn) -> type[BaseException]:
    """Subclasses that override what is asked of them, with what raises or answers nonsense."""
    answer: Any = draw(st.one_of(_texts, finite_things, st.sampled_from(["x" * 200_000, None])))
    raised = draw(
        st.one_of(
            st.none(),
            st.sampled_from([SystemExit(1), KeyboardInterrupt(), RuntimeError("no"), RecursionError()]),
        )
    )

    def answers(*_: Any) -> Any:
        if raised is not None:
            raise raised
        return answer

    overridden = draw(
        st.sets(st.sampled_from(["__str__", "__repr__", "__eq__", "__bool__", "__hash__", "__len__", "__notes__", "__cause__", "__traceback__", "__module__"]))
    )  # fmt: skip
    special = {"__notes__", "__cause__", "__traceback__", "__module__"}
    body = {name: property(answers) if name in special else answers for name in overridden}
    return type(draw(_odd_names), (draw(st.sampled_from([Exception, BaseException])),), body)


def _made(kind: type[BaseException], args: list[Any]) -> BaseException:
    try:
        return kind(*args)
    except Exception:  # noqa: BLE001 - UnicodeDecodeError wants five arguments
        return ValueError(*args)


Make = Callable[[], BaseException]
"""Hazard: hypothesis and pytest look at what a test is given, and the errors made here end whoever does."""

_single: st.SearchStrategy[Make] = st.one_of(
    st.builds(
        lambda kind, args: lambda: _made(kind, args),
        _kinds,
        st.lists(st.one_of(_texts, finite_things), max_size=3),
    ),
    st.builds(lambda kind, args: lambda: kind(*args), _classes(), st.lists(_texts, max_size=2)),
)
_index = st.integers(0, 5)


@st.composite
def errors(draw: st.DrawFn) -> Make:
    """Errors with causes, contexts, groups and notes, in circles too."""
    makes = draw(st.lists(_single, min_size=1, max_size=5))
    grouped, group = draw(st.lists(_index, max_size=4)), draw(_texts)
    links = draw(
        st.lists(st.tuples(_index, st.sampled_from(["__cause__", "__context__"]), _index), max_size=8)
    )
    notes = draw(
        st.lists(st.tuples(_index, st.one_of(st.lists(_texts, max_size=8), finite_things)), max_size=3)
    )
    chosen, depth = draw(_index), draw(st.integers(0, 60))

    def make() -> BaseException:
        singles = [made() for made in makes]
        if grouped:
            singles.append(BaseExceptionGroup(group, [singles[index % len(singles)] for index in grouped]))
        for one, link, other in links:
            _set(singles[one % len(singles)], link, singles[other % len(singles)])
        for one, note in notes:
            _set(singles[one % len(singles)], "__notes__", note)
        return _raised(singles[chosen % len(singles)], depth)

    return make


def _set(error: BaseException, name: str, value: Any) -> None:
    with contextlib.suppress(AttributeError, TypeError):  # of those that override it
        setattr(error, name, value)


def _raised(error: BaseException, depth: int) -> BaseException:
    def deeper(left: int) -> None:
        if left:
            deeper(left - 1)
        raise error

    try:
        deeper(depth)
    except BaseException as raised:  # noqa: BLE001
        return raised
    raise AssertionError


def is_storable(text: str, limit: int) -> bool:
    """PostgreSQL takes it, and it is no longer than it should be: what was cut says so, what is escaped is longer."""
    return type(text) is str and "\0" not in text and text.encode() != b"\0" and len(text) <= 10 * limit + 200


@given(errors())
@fuzzed(30)
def test_any_exception_is_described_in_texts_that_can_be_stored(make: Make) -> None:
    told = contained(describe_error, make())
    assert is_storable(told.type, 500)
    assert is_storable(told.message, MAX_TEXT)
    assert is_storable(told.traceback, MAX_TRACEBACK)
    assert len(told.fingerprint) == 16
    assert told.type


def contained(read: Any, value: object) -> Any:
    """What is read of a value; what that raises must not reach pytest."""
    failed = ""
    try:
        return read(value)
    except BaseException as raised:  # noqa: BLE001
        trace: Any = raised.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        failed = f"{type(raised).__name__} at {trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}"
    raise AssertionError(failed)


READ: dict[str, Callable[[object], str]] = {
    "safe_text": lambda value: safe_text(value, 300),
    "safe_repr": lambda value: safe_repr(value, 80),
    "one_line": lambda value: one_line(value, 300),
}


@pytest.mark.parametrize("name", READ)
def test_any_value_has_a_text_that_can_be_stored(name: str) -> None:
    read = READ[name]

    @given(
        st.one_of(
            finite_things.map(lambda value: lambda: value), _texts.map(lambda text: lambda: text), _single
        )
    )
    @fuzzed(25)
    def told(make: Callable[[], object]) -> None:
        text = contained(read, make())
        assert is_storable(text, 300)
        assert name != "one_line" or "\n" not in text

    told()


def test_the_beginning_of_what_has_no_end_is_told_at_once() -> None:
    assert safe_repr(bomb()).startswith("[[[[")
    assert safe_repr({"a": bomb()}).startswith("{'a': [[[")
    assert len(safe_repr(list(range(10**6)))) < 100
    assert len(safe_repr("x" * 10**8)) < 100
    assert safe_repr(-(10**5000)) == "an integer of 16610 bits"
