"""Whatever is given as an argument: an error that names the place, or a handler gets what JSON says that it is."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.encoding import encode_args, encode_result
from pgqueue.errors import InvalidArgs
from tests.badinput.conftest import Shop
from tests.badinput.fuzzing import fuzzed, texts
from tests.badinput.hostile import Incomparable, Unprintable
from tests.badinput.table import is_tidy


class Colour(enum.Enum):
    RED = "red"
    NUMBER = 2**60 + 1


class Flag(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass
class Address:
    street: Any
    lines: Any = None


class Order(msgspec.Struct):
    id: Any
    note: Any | msgspec.UnsetType = msgspec.UNSET


class Words(str):
    __slots__ = ()


class Count(int):
    pass


BAD_TEXT = st.sampled_from(["\0", "a\0b", "\ud800", "x\udfff", "\ud83d"])
NAMES = st.sampled_from(["a", "b", "user_id", "items"])
ODD_NAMES = st.one_of(texts, st.sampled_from(["two words", "", "ü", "a.b", "[0]", "k" * 200]))

_good = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([2**53 + 1, 2**63 - 1, -(2**63), 0]),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    st.sampled_from([Colour.RED, Colour.NUMBER, Flag.A | Flag.B, Words("w"), Count(7)]),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.uuids(),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.dates(),
    st.times(),
    st.timedeltas(),
)
_bad = st.one_of(
    BAD_TEXT,
    st.sampled_from([float("nan"), float("inf"), -float("inf"), Decimal("NaN"), Decimal("-Infinity")]),
    st.sampled_from([2**63, -(2**63) - 1, 10**400]),
    st.binary(max_size=4),
    st.sampled_from([bytearray(b"x"), {1, 2}, frozenset(), 1j, object(), int, len, range(3)]),
    st.builds(Unprintable),
    st.builds(Incomparable),
    st.builds(lambda: (n for n in [1])),
    st.dictionaries(st.one_of(st.integers(), st.none(), st.booleans(), BAD_TEXT), st.just(1), min_size=1, max_size=2),
)  # fmt: skip


def _nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.one_of(NAMES, NAMES, ODD_NAMES), inner, max_size=4),
            st.builds(Address, inner, inner),
            st.builds(Order, inner, st.one_of(inner, st.just(msgspec.UNSET))),
        ),
        max_leaves=12,
    )


good_values = _nested(_good)
any_values = _nested(st.one_of(_good, _good, _good, _bad))


def flaws(value: Any, path: str) -> Iterator[str]:
    """The places in a value that JSON or PostgreSQL could not hold unchanged: what the encoder has to say, said again."""
    match value:
        case None | bool() | date() | timedelta() | UUID() if not isinstance(value, datetime):
            return
        case datetime() | time():
            offset = value.utcoffset()
            if value.tzinfo is not None and (offset is None or offset % timedelta(minutes=1)):
                yield path
        case enum.Enum():
            yield from flaws(value.value, path)
        case str():
            if re.search("[\0\ud800-\udfff]", value):
                yield path
        case int():
            if not -(2**63) <= value < 2**63:
                yield path
        case float():
            if not math.isfinite(value):
                yield path
        case Decimal():
            if not value.is_finite():
                yield path
        case list() | tuple():
            for index, item in enumerate(value):
                yield from flaws(item, f"{path}[{index}]")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or re.search("[\0\ud800-\udfff]", key):
                    yield path
                else:
                    yield from flaws(item, path + (f".{key}" if key.isidentifier() else f"[{key!r}]"))
        case Address():
            yield from flaws(value.street, f"{path}.street")
            yield from flaws(value.lines, f"{path}.lines")
        case Order():
            yield from flaws(value.id, f"{path}.id")
            if value.note is not msgspec.UNSET:
                yield from flaws(value.note, f"{path}.note")
        case _:
            yield path


def is_same(got: Any, given: Any) -> bool:
    """What a handler gets for a value, when its parameter is annotated with nothing."""
    match given:
        case None | bool():
            return got is given
        case enum.Enum():
            return is_same(got, given.value)
        case str():
            return type(got) is str and got == given
        case int():
            return type(got) is int and got == given
        case float():
            # PostgreSQL keeps numbers as numbers: 1e22 comes back as an integer, -0.0 as 0.0.
            return not isinstance(got, bool) and isinstance(got, int | float) and float(got) == given
        case Decimal():
            return isinstance(got, str) and Decimal(got) == given
        case UUID():
            return bool(got == str(given))
        case datetime() if given.tzinfo is not None:
            # as moments: to Python, two times of which one may be an hour in autumn are never equal
            return bool(datetime.fromisoformat(got).astimezone(UTC) == given.astimezone(UTC))
        case datetime() | date() | time() | timedelta():
            return bool(msgspec.convert(got, type(given)) == given)
        case list() | tuple():
            return type(got) is list and len(got) == len(given) and all(map(is_same, got, given))
        case dict():
            return (
                type(got) is dict
                and got.keys() == given.keys()
                and all(is_same(got[k], given[k]) for k in given)
            )
        case Address():
            return is_same(got, {"street": given.street, "lines": given.lines})
        case Order():
            return is_same(
                got, {"id": given.id} | ({} if given.note is msgspec.UNSET else {"note": given.note})
            )
    return False  # fmt: skip


@given(st.dictionaries(st.one_of(NAMES, ODD_NAMES), any_values, max_size=3))
@fuzzed(60)
def test_args_are_written_as_they_are_or_refused_with_the_path_of_a_flaw(args: dict[str, Any]) -> None:
    expected = list(flaws(args, "args"))
    try:
        text = encode_args(args)
    except InvalidArgs as refused:
        message = str(refused)
        assert expected, message
        assert any(message.startswith(f"{path}: ") for path in expected) or len(max(expected, key=len)) > 80
        assert is_tidy(message)
    else:
        assert not expected
        assert is_same(json.loads(text), args)


@given(any_values)
@fuzzed(30)
def test_a_result_is_written_as_it_is_or_refused(result: Any) -> None:
    expected = list(flaws(result, "result"))
    try:
        text = encode_result(result)
    except InvalidArgs as refused:
        message = str(refused)
        assert expected, message
    else:
        assert not expected
        assert is_same(json.loads(text), result)


def test_what_is_stored_is_what_a_handler_gets(shop: Shop) -> None:
    @given(st.dictionaries(st.one_of(NAMES, ODD_NAMES), good_values, max_size=3))
    @fuzzed(60)
    def stored(args: dict[str, Any]) -> None:
        if any(flaws(args, "args")):
            return  # an odd time zone
        job = shop.anything.enqueue(shop.connection, **args)
        row = shop.connection.execute(
            "select args::text from pgqueue.ready_jobs where id = %s", [job.id]
        ).fetchone()
        shop.connection.rollback()
        assert row
        assert is_same(shop.anything.decode(row[0]), args)

    stored()


def test_a_float_stays_one_where_the_parameter_says_so(shop: Shop) -> None:
    def handle(price: float, prices: list[float]) -> None: ...

    task = shop.app.task(name="priced")(handle)

    @given(
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    )
    @fuzzed(100)
    def stored(price: float, prices: list[float]) -> None:
        job = task.enqueue(shop.connection, price, prices)
        row = shop.connection.execute(
            "select args::text from pgqueue.ready_jobs where id = %s", [job.id]
        ).fetchone()
        shop.connection.rollback()
        assert row
        got = task.decode(row[0])
        assert type(got["price"]) is float
        assert got == {"price": price, "prices": prices}

    stored()
