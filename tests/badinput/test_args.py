"""Arguments that cannot become a job's: what JSON, PostgreSQL or the task's signature cannot hold unchanged.

What *is* accepted, and comes back as it was, is in `tests/unit/test_encoding.py` and `test_fuzz_args.py`.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from datetime import time as clock
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pgqueue.app import App
from pgqueue.encoding import encode_result
from pgqueue.errors import InvalidArgs
from pgqueue.settings import Settings
from tests.badinput.conftest import Shop
from tests.badinput.hostile import Broken, Incomparable, Unprintable, bomb, cycle, deep
from tests.badinput.table import Case, table

PARIS = ZoneInfo("Europe/Paris")
OFFSET = timezone(timedelta(seconds=30))
WHERE = "task.enqueue, .item"


def _args(given: str, input: Any, message: str) -> Case:
    return Case(WHERE, given, "InvalidArgs", message, input)


VALUES = table(
    "args",
    _args("NUL in text", {"a": "x\0y"}, "args.a: the character NUL at position 1, PostgreSQL cannot store it"),
    _args(
        "NUL in a key",
        {"a": {"k\0": 1}},
        r"args.a: the key 'k\x00' holds the character NUL at position 1, PostgreSQL cannot store it",
    ),
    _args(
        "NUL in an argument's name",
        {"k\0": 1},
        r"args: the key 'k\x00' holds the character NUL at position 1, PostgreSQL cannot store it",
    ),
    _args(
        "a lone surrogate",
        {"a": ["ok", "x\ud800"]},
        "args.a[1]: a lone surrogate at position 1, which is no Unicode text",
    ),
    _args(
        "a lone surrogate in a key",
        {"a": {"\udfff": 1}},
        r"args.a: the key '\udfff' holds a lone surrogate at position 0, which is no Unicode text",
    ),
    _args("NaN", {"items": [{"price": float("nan")}]}, "args.items[0].price: nan is not JSON, numbers have to be finite"),
    _args("infinity", {"a": float("-inf")}, "args.a: -inf is not JSON, numbers have to be finite"),
    _args("a Decimal that is no number", {"a": Decimal("NaN")}, "args.a: Decimal NaN is not JSON, numbers have to be finite"),
    _args("2**63", {"a": 2**63}, "args.a: an integer of 64 bits, the limit is signed 64 bit"),
    _args("-(2**63) - 1", {"a": [-(2**63) - 1]}, "args.a[0]: an integer of 64 bits, the limit is signed 64 bit"),
    _args("10**5000", {"a": 10**5000}, "args.a: an integer of 16610 bits, the limit is signed 64 bit"),
    _args("bytes", {"a": {"b c": b"x"}}, "args.a['b c']: bytes are not JSON: decode them to text, or to base64 of your own"),
    _args("a bytearray", {"a": bytearray()}, "args.a: bytearray are not JSON: decode them to text, or to base64 of your own"),
    _args("a set", {"a": {1, 2}}, "args.a: a set is not JSON: pass a sorted list"),
    _args("a key that is a number", {"a": {1: 2}}, "args.a: the key 1 is of type int, keys have to be strings"),
    _args("a key that is None", {"a": [{None: 2}]}, "args.a[0]: the key None is of type NoneType, keys have to be strings"),
    _args(
        "a key whose repr raises",
        {"a": {Unprintable(): 2}},
        "args.a: the key <tests.badinput.hostile.Unprintable, whose text raised SystemExit> is of type "
        "tests.badinput.hostile.Unprintable, keys have to be strings",
    ),
    _args(
        "an object",
        {"a": object()},
        "args.a: a value of type object cannot be stored as JSON",
    ),
    _args(
        "an object whose repr raises",
        {"a": Unprintable()},
        "args.a: a value of type tests.badinput.hostile.Unprintable cannot be stored as JSON",
    ),
    _args(
        "an object that cannot be compared",
        {"a": Incomparable()},
        "args.a: a value of type tests.badinput.hostile.Incomparable cannot be stored as JSON",
    ),
    _args("a generator", {"a": (n for n in [1])}, "args.a: a value of type generator cannot be stored as JSON"),
    _args("a class", {"a": int}, "args.a: a value of type type cannot be stored as JSON"),
    _args("a complex number", {"a": 1j}, "args.a: a value of type complex cannot be stored as JSON"),
    _args(
        "a pydantic model whose serializer raises",
        {"a": Broken()},
        "args.a: tests.badinput.hostile.Broken cannot be dumped: …no way",
    ),
    _args(
        "a datetime 30 s off UTC",
        {"a": datetime(2026, 1, 1, tzinfo=OFFSET)},
        "args.a: datetime.datetime(2026, 1, 1, 0, 0, tzinfo=datetime.timezone(datetime.timedelta(… is 0:00:30 off "
        "UTC, and JSON has whole minutes: convert it to UTC",
    ),
    _args(
        "a time of a zone with summer time",
        {"a": clock(12, tzinfo=PARIS)},
        "args.a: datetime.time(12, 0, tzinfo=zoneinfo.ZoneInfo(key='Europe/Paris')) has a time zone without an "
        "offset, which would be left out",
    ),
    _args("a value that contains itself", {"a": cycle()}, "args.a.me.me.me.me.me … .me.me.me.me.me.me: nested more than 100 levels deep, or contains itself"),
    _args("5,000 levels", {"a": deep()}, "args.a[0][0][0][0][0] … [0][0][0][0][0][0]: nested more than 100 levels deep, or contains itself"),
    _args("101 levels", {"a": deep(100)}, "args.a[0][0][0][0][0] … [0][0][0][0][0][0]: nested more than 100 levels deep, or contains itself"),
    _args("a little more than the limit", {"a": "x" * 1_048_576}, "args: 1,048,584 bytes of JSON, the limit is 1,048,576 bytes"),
    _args("300 MB of text", {"a": "x" * 300_000_000}, "args: more than 1,048,576 bytes of JSON, which is the limit"),
    _args("one text of 1 MB, 10,000 times", {"a": ["x" * 1_000_000] * 10_000}, "args: more than 1,048,576 bytes of JSON, which is the limit"),
    _args("one dict with a key of 1 MB, 10,000 times", {"a": [{"k" * 1_000_000: 1}] * 10_000}, "args: more than 1,048,576 bytes of JSON, which is the limit"),
    _args("NaN under a key of a million characters", {"k" * 1_000_000: float("nan")}, "args['kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk…]: nan is not JSON, numbers have to be finite"),
)  # fmt: skip


@pytest.mark.parametrize("case", VALUES, ids=Case.id)
def test_what_would_change_in_silence_is_refused_with_its_path(case: Case, shop: Shop) -> None:
    shop.refuses(case, lambda: shop.anything.enqueue(shop.connection, **case.input))
    with pytest.raises(InvalidArgs) as refused:
        shop.anything.item(**case.input)
    case.holds(refused.value)
    assert len(str(refused.value)) < 400


def _call(given: str, input: tuple[tuple[Any, ...], dict[str, Any]], message: str) -> Case:
    return Case(
        "send(user_id: int, name: str = …, *, price: float = …)", given, "InvalidArgs", message, input
    )


SIGNATURE = table(
    "args",
    _call("no arguments", ((), {}), "task send: argument user_id is missing (it takes name, price, user_id)"),
    _call("too many", ((1, "a", 2.0), {}), "task send: 3 positional arguments, it takes 2 (it takes name, price, user_id)"),
    _call("the same one twice", ((1,), {"user_id": 2}), "task send: argument user_id is given twice, by position and by name"),
    _call("text for a number", (("7",), {}), "task send: args.user_id: expected `int`, got `str`"),
    _call("True for a number", ((True,), {}), "task send: args.user_id: expected `int`, got `bool`"),
    _call("None for text", ((1,), {"name": None}), "task send: args.name: expected `str`, got `null`"),
    _call("a name that it does not take", ((1,), {"nme": "x"}), "task send: unknown argument nme, did you mean name? (it takes name, price, user_id)"),
    _call("a name of two lines", ((1,), {"a\nb": "x"}), "task send: unknown argument a b (it takes name, price, user_id)"),
)  # fmt: skip


@pytest.mark.parametrize("case", SIGNATURE, ids=Case.id)
def test_arguments_that_do_not_fit_the_task_are_refused(case: Case, shop: Shop) -> None:
    args, kwargs = case.input
    shop.refuses(case, lambda: shop.send.using(priority=1).enqueue(shop.connection, *args, **kwargs))
    with pytest.raises(InvalidArgs) as refused:
        shop.send.item(*args, **kwargs)
    case.holds(refused.value)


def _limited(given: str, input: Any, message: str) -> Case:
    return Case("max_args_bytes = 2000", given, "InvalidArgs", message, input)


SMALL = table(
    "args",
    _limited("2,000 characters", "x" * 2_000, "args: 2,008 bytes of JSON, the limit is 2,000 bytes"),
    _limited("1,200 characters of two bytes", "ü" * 1_200, "args: 2,408 bytes of JSON, the limit is 2,000 bytes"),
    _limited("a list of two lists of two lists …, ninety levels", bomb(), "args: more than 2,000 bytes of JSON, which is the limit"),
)  # fmt: skip


@pytest.mark.parametrize("case", SMALL, ids=Case.id)
def test_the_limit_is_that_of_the_settings(case: Case) -> None:
    app = App(settings=Settings(max_args_bytes=2_000))

    @app.task
    def handle(a: Any) -> None: ...

    with pytest.raises(InvalidArgs) as refused:
        handle.call(case.input)
    case.holds(refused.value)


# Large values cost what the limit says, and not what they are ------------------------------------------------


HUGE: dict[str, Callable[[], Any]] = {
    "text in a list": lambda: ["x" * 100_000_000],
    "text many times": lambda: ["x" * 1_000_000] * 100,
    "a long key many times": lambda: [{"k" * 1_000_000: 1}] * 100,
}


@pytest.mark.parametrize(
    "encode", [lambda a, huge: a.item(a=huge), lambda _, huge: encode_result(huge)], ids=["args", "result"]
)
@pytest.mark.parametrize("kind", HUGE)
def test_what_is_far_too_large_is_not_written_to_find_that_out(kind: str, encode: Any, shop: Shop) -> None:
    huge = HUGE[kind]()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgs, match="which is the limit"):
            encode(shop.anything, huge)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10_000_000


def test_a_datetime_with_an_offset_of_whole_minutes_is_the_same_moment_afterwards(shop: Shop) -> None:
    for moment in (
        datetime(2026, 7, 1, 12, tzinfo=PARIS),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(minutes=-150))),
        datetime(2026, 1, 1, tzinfo=UTC),
    ):
        job = shop.anything.enqueue(shop.connection, at=moment)
        row = shop.connection.execute("select args->>'at' from pgqueue.ready_jobs where id = %s", [job.id])
        (stored,) = row.fetchone() or ("",)
        assert datetime.fromisoformat(stored) == moment
    shop.connection.rollback()
