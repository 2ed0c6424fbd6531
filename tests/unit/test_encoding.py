"""Args go in unchanged or not at all; text that comes out of a job can always be stored. More: `tests/badinput/`."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NoReturn

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue.encoding import encode_args
from pgqueue.error_text import (
    MAX_TEXT,
    MAX_TRACEBACK,
    describe_error,
    one_line,
    safe_repr,
    safe_text,
)
from pgqueue.errors import InvalidArgs, InvalidOption


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Address:
    street: str
    lines: list[float] = dataclasses.field(default_factory=list)


class Order(msgspec.Struct):
    id: int
    price: float = 0.0
    note: str | msgspec.UnsetType = msgspec.UNSET


class Card(pydantic.BaseModel):
    number: str
    limit: float = 1.0


class Numeric(float):
    """As numpy.float64: a float to all who ask."""


class Unprintable:
    def __repr__(self) -> NoReturn:
        raise RuntimeError("no text for you")


keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
plain_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


def test_a_job_without_args_is_an_empty_object() -> None:
    assert encode_args({}) == "{}"


@settings(deadline=None)  # a loaded machine is no failure
@given(st.dictionaries(keys, plain_json, max_size=5))
def test_plain_values_come_back_equal(args: dict[str, Any]) -> None:
    assert json.loads(encode_args(args)) == args


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ((1, 2), [1, 2]),
        (2**63 - 1, 2**63 - 1),
        (2**53 + 1, 2**53 + 1),
        ("backslash \\u0000 in words", "backslash \\u0000 in words"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05Z"),
        (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(days=1), "P1D"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        (Numeric(1.5), 1.5),
        (Address("a", [1.5]), {"street": "a", "lines": [1.5]}),
        (Order(id=7), {"id": 7, "price": 0.0}),
        (Card(number="4"), {"number": "4", "limit": 1.0}),
        ([Card(number="4")], [{"number": "4", "limit": 1.0}]),
    ],
)
def test_what_msgspec_and_pydantic_can_read_again_is_written(value: Any, written: Any) -> None:
    assert json.loads(encode_args({"value": value})) == {"value": written}


@pytest.mark.parametrize(
    ("args", "path", "reason"),
    [
        ({"a": Address("x", [float("nan")])}, "args.a.lines[0]", "nan"),
        ({"a": Order(id=1, price=float("inf"))}, "args.a.price", "inf"),
        ({"a": Card(number="1", limit=float("nan"))}, "args.a.limit", "nan"),
        ({"a": [Card(number="\0")]}, "args.a[0].number", "NUL"),
    ],
)
def test_what_would_change_in_silence_is_refused_with_its_path(
    args: dict[str, Any], path: str, reason: str
) -> None:
    with pytest.raises(InvalidArgs) as refused:
        encode_args(args)
    message = str(refused.value)
    assert message.startswith(path)
    assert reason in message
    assert "\n" not in message
    assert message.isprintable()


def test_a_hundred_levels_are_accepted() -> None:
    value: Any = 1
    for _ in range(99):
        value = [value]
    assert encode_args({"a": value}).count("[") == 99
    with pytest.raises(InvalidArgs, match="levels"):
        encode_args({"a": [value]})


def test_the_root_and_the_error_can_be_others() -> None:
    with pytest.raises(InvalidOption, match=r"^metadata\.a: nan"):
        encode_args({"a": float("nan")}, root="metadata", error=InvalidOption)


def test_a_dump_that_raises_is_an_error_of_ours() -> None:
    class Broken(pydantic.BaseModel):
        @pydantic.model_serializer
        def dump(self) -> dict[str, Any]:
            raise LookupError("no way")

    with pytest.raises(InvalidArgs, match=r"args\.a: .*no way"):
        encode_args({"a": Broken()})


# Text out of a job


class Hostile(Exception):
    def __init__(self, raised: BaseException):
        self.raised = raised

    def __str__(self) -> str:
        raise self.raised


class Liar(str):
    """Text whose methods are not to be trusted."""

    __slots__ = ()

    def __len__(self) -> NoReturn:
        raise SystemExit(1)

    def replace(self, *_: Any) -> NoReturn:
        raise SystemExit(1)


class Says:
    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.mark.parametrize(
    "raised",
    [
        ValueError(),
        SystemExit(1),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        MemoryError(),
    ],
)
def test_a_text_that_raises_is_told_and_contained(raised: BaseException) -> None:
    assert type(raised).__name__ in safe_text(Hostile(raised))


def test_text_is_made_storable() -> None:
    assert safe_text("a\0b\ud800c ü 🙂") == "a\\x00b\\ud800c ü 🙂"
    assert safe_text(Says(Liar("fine"))) == "fine"
    assert safe_text(Liar("fine")) == "fine"
    assert safe_text(b"x") == "b'x'"
    assert safe_text(None) == "None"


def test_long_text_loses_its_middle_and_says_so() -> None:
    text = safe_text("a" * 500_000 + "z" * 500_000)
    assert text.startswith("aaa")
    assert text.endswith("zzz")
    assert "990,000 characters left out" in text
    assert len(text) < MAX_TEXT + 100


@settings(deadline=None)  # a loaded machine is no failure
@given(st.text(st.characters(categories=["Cs", "Cc", "L", "S"])))
def test_any_text_can_be_stored_afterwards(text: str) -> None:
    assert b"\0" not in safe_text(text).encode()
    assert "\n" not in one_line(text)


def test_a_repr_that_raises_is_contained() -> None:
    assert "RuntimeError" in safe_repr(Unprintable())
    assert len(safe_repr("x" * 1000)) < 150


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:  # noqa: BLE001
        return raised


def test_an_error_is_described_without_its_local_variables() -> None:
    password = "hunter2-" + str(1)  # noqa: F841
    described = describe_error(_raised(ValueError("no such card")))
    assert described.type == "ValueError"
    assert described.message == "no such card"
    assert "in _raised" in described.traceback
    assert described.traceback.endswith("ValueError: no such card\n")
    assert "hunter2-1" not in described.traceback


def test_the_type_is_named_with_its_module() -> None:
    assert describe_error(Hostile(ValueError())).type == f"{__name__}.Hostile"


def test_causes_are_told_oldest_first() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error
    except ValueError as error:
        text = describe_error(error).traceback
    assert text.index("KeyError: 'first'") < text.index("direct cause") < text.index("ValueError: second")


def test_cyclic_causes_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    text = describe_error(_raised(first)).traceback
    assert text.count("ValueError: second") == 1


def test_a_long_chain_of_causes_is_cut() -> None:
    error = ValueError("0")
    for number in range(1, 1_000):
        error = _caused(ValueError(str(number)), error)
    text = describe_error(error).traceback
    assert "earlier causes left out" in text
    assert len(text) < MAX_TRACEBACK + 100


def _caused(error: ValueError, cause: ValueError) -> ValueError:
    error.__cause__ = cause
    return error


def test_a_group_of_ten_thousand_is_cut() -> None:
    group = ExceptionGroup("many", [ValueError(str(number)) for number in range(10_000)])
    text = describe_error(_raised(group)).traceback
    assert "ValueError: 0" in text
    assert "9,995 exceptions more" in text


def test_a_deep_recursion_is_cut() -> None:
    def deeper(level: int) -> int:
        return deeper(level + 1) + 1

    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(20_000)
        with pytest.raises(RecursionError) as raised:
            deeper(0)
        described = describe_error(raised.value)
    finally:
        sys.setrecursionlimit(limit)
    assert "frames left out" in described.traceback
    assert len(described.traceback) < MAX_TRACEBACK + 100


def test_a_hostile_error_is_described_all_the_same() -> None:
    class Hidden(Exception):
        @property
        def __traceback__(self) -> NoReturn:  # type: ignore[override]
            raise SystemExit(1)

        def __str__(self) -> NoReturn:
            raise KeyboardInterrupt

    described = describe_error(Hidden())
    assert "Hidden" in described.type
    assert "KeyboardInterrupt" in described.message
    assert described.traceback


def test_notes_are_kept_and_hostile_ones_do_not_matter() -> None:
    error = ValueError("x")
    error.add_note("seen on the second page")
    assert "seen on the second page" in describe_error(error).traceback
    error.__notes__ = 7  # type: ignore[assignment]
    assert describe_error(error).traceback


def _fail_here(number: int) -> NoReturn:
    raise ValueError(f"number {number}")


def _fail_there(number: int) -> NoReturn:
    if number:
        raise ValueError(f"number {number}")
    raise ValueError("none")


def _fingerprints(function: Any, *args: Any) -> Iterator[str]:
    for arg in args:
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            function(arg)
        yield describe_error(raised.value).fingerprint


def test_the_fingerprint_is_of_the_place_and_not_of_message_or_line() -> None:
    (one, other) = _fingerprints(_fail_there, 0, 1)
    (elsewhere,) = _fingerprints(_fail_here, 1)
    assert one == other
    assert one != elsewhere
    assert len(one) == 16
    assert describe_error(ValueError()).fingerprint != describe_error(TypeError()).fingerprint
