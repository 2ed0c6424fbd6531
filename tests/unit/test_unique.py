"""`Unique`: what is refused, and which key a job gets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

import pgqueue
from pgqueue import App, Unique, calls
from pgqueue.batch import BatchJob
from pgqueue.errors import InvalidOption
from pgqueue.job import Job
from pgqueue.task import BoundTask, Task

DEBOUNCE: dict[str, Any] = {"on_conflict": "debounce", "delay": "5s", "max_delay": "1m"}


@dataclass
class Order:
    id: UUID
    lines: dict[str, float]


def values_of(call: calls.Call[Any]) -> dict[str, str | None]:
    """The values of a call by parameter."""
    return {name: value for (name, _), value in zip(call.verb.parameters, call.values, strict=True)}


def key_of(task: BoundTask[..., Any], *args: Any, **kwargs: Any) -> str | None:
    """The unique key that a job gets; the same for an item of a bulk."""
    key = values_of(task.call(*args, **kwargs))["unique_key"]
    assert json.loads(task.item(*args, **kwargs).json).get("unique_key") == key
    return key


def task(unique: Unique | None = None, **options: Any) -> Task[..., Any]:
    """A task of (user_id, reason=…, on=…)."""

    def refresh(user_id: int, reason: str = "none", on: dict[str, float] | None = None) -> None: ...

    return App().task(unique=unique, **options)(refresh)


# What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"args": "user_id"}, r"unique.args: expected a list of names such as \[\"user_id\"\], got 'user_id'"),
        ({"args": 7}, r"unique.args: expected a list of names such as \[\"user_id\"\], got 7"),
        ({"args": [1]}, r"unique.args: expected names, which are text, got \[1\]"),
        ({"args": []}, r'unique.args: expected at least one name; leave it out for all arguments, or say key="…"'),
        ({"args": ["a"], "key": "k"}, "unique.args, unique.key: only one of the two"),
        ({"key": ""}, "unique.key: expected text of 1 to 255 characters, got 0 characters"),
        ({"key": "x" * 256}, "unique.key: expected text of 1 to 255 characters, got 256 characters"),
        ({"key": "a\0b"}, "unique.key: NUL and lone surrogates cannot be stored"),
        ({"key": 7}, "unique.key: expected text of 1 to 255 characters, got 7"),
        ({"scope": "running"}, 'unique.scope: expected "unfinished" or "waiting", got \'running\''),
        ({"scope": "waiting", "period": 60}, "unique.scope, unique.period: only one of the two"),
        ({"period": 0}, "unique.period: expected at least 0.001 s, got 0"),
        ({"period": "soon"}, "unique.period: expected seconds, a timedelta or text"),
        ({"period": -1}, "unique.period: expected between 0 and 10 years"),
        ({"on_conflict": "raise"}, 'unique.on_conflict: expected "keep" or "replace" or .*, got \'raise\''),
        ({"on_conflict": None}, 'unique.on_conflict: expected "keep" or .*, got None'),
        ({"on_conflict": "debounce"}, 'unique.delay: on_conflict="debounce" needs it, got None'),
        ({"on_conflict": "debounce", "delay": 5}, 'unique.max_delay: on_conflict="debounce" needs it, got None'),
        ({"delay": 5}, 'unique.delay: it goes with on_conflict="debounce", got 5'),
        ({"max_delay": 5, "on_conflict": "replace"}, 'unique.max_delay: it goes with on_conflict="debounce", got 5'),
        ({"scope": "waiting", "on_conflict": "follow_up"}, 'unique.on_conflict: "follow_up" goes with scope="unfinished"'),
        ({"period": 60, "on_conflict": "follow_up"}, 'unique.on_conflict: "follow_up" goes with scope="unfinished"'),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_where_it_is_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        Unique(**given)


def test_a_name_that_the_task_has_not_is_refused_at_its_definition() -> None:
    with pytest.raises(InvalidOption, match="task refresh has no argument 'user', did you mean user_id"):
        task(Unique(args=["user"]))
    with pytest.raises(InvalidOption, match="task refresh has no argument 'id'"):
        task().using(unique=Unique(args=["id"]))


@pytest.mark.parametrize("wrong", [True, "user_id", {"args": ["user_id"]}, Unique])
def test_what_is_no_unique_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidOption, match=r"unique: expected a value such as Unique\(args=\[…\]\), got "):
        task(wrong)
    with pytest.raises(InvalidOption, match=r"unique: expected a value such as Unique\(args=\[…\]\), got "):
        task().using(unique=wrong)


def test_only_one_thing_says_what_the_key_is() -> None:
    one_of_two = "unique, unique_key: only one of the two can say what the key is"
    for unique in (Unique(args=["user_id"]), Unique(key="k"), Unique(key=lambda **_: "k"), False):
        with pytest.raises(InvalidOption, match=one_of_two):
            task().using(unique=unique, unique_key="k")
        with pytest.raises(InvalidOption, match=one_of_two):
            task().using(unique_key="k").using(unique=unique)


# Values -----------------------------------------------------------------------------------------------


def test_a_unique_is_a_value() -> None:
    assert Unique(args=["b", "a", "b"]) == Unique(args=("a", "b")) == Unique(args={"a", "b"})  # type: ignore[arg-type]
    assert hash(Unique(period="10m")) == hash(Unique(period=timedelta(minutes=10)))
    assert Unique().scope == "unfinished"
    assert Unique(period=1).scope is None
    with pytest.raises(AttributeError):
        Unique().scope = "waiting"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("unique", "stored"),
    [
        (Unique(), None),
        (Unique(scope="unfinished", on_conflict="keep"), None),
        (Unique(scope="waiting"), {"scope": "waiting"}),
        (Unique(period="10m"), {"period": 600.0}),
        (Unique(on_conflict="follow_up"), {"on_conflict": "follow_up"}),
        (Unique(**DEBOUNCE), {"on_conflict": "debounce", "max_delay": 60.0}),
    ],
)
def test_what_a_key_means_goes_with_the_options(unique: Unique, stored: dict[str, Any] | None) -> None:
    call = task(unique).using(tags=["a"]).call(user_id=7)
    expected = {"tags": ["a"]} | ({"unique": stored} if stored else {})
    assert json.loads(values_of(call)["options"] or "null") == expected
    plain = values_of(task(unique).call(user_id=7))["options"]
    assert (None if plain is None else json.loads(plain)) == ({"unique": stored} if stored else None)


def test_a_debounced_job_waits_for_the_delay_of_its_unique_unless_the_enqueue_says_when() -> None:
    debounced = task(Unique(**DEBOUNCE))
    assert values_of(debounced.call(user_id=7))["delay"] == "5.0"
    assert values_of(debounced.using(delay="9s").call(user_id=7))["delay"] == "9.0"
    due = datetime.fromisoformat("2027-01-01T00:00:00+00:00")
    at = values_of(debounced.using(run_at=due).call(user_id=7))
    assert (at["delay"], at["run_at"]) == (None, "2027-01-01T00:00:00+00:00")


# Keys -------------------------------------------------------------------------------------------------


def test_a_task_without_a_unique_has_no_key() -> None:
    assert key_of(task(), user_id=7) is None
    assert task().call(user_id=7).verb is calls.ENQUEUE


def test_by_default_all_arguments_make_the_key_with_the_defaults_of_those_left_out() -> None:
    unique = task(Unique())
    key = '{"on":null,"reason":"none","user_id":7}'
    assert key_of(unique, 7) == key_of(unique, user_id=7) == key_of(unique, 7, reason="none", on=None) == key
    assert key_of(unique, 8) != key != key_of(unique, 7, reason="x")


def test_some_arguments_make_the_key() -> None:
    unique = task(Unique(args=["user_id"]))
    assert key_of(unique, 7) == key_of(unique, user_id=7, reason="x", on={"a": 1}) == '{"user_id":7}'
    assert key_of(task(Unique(args=["user_id", "reason"])), 7) == '{"reason":"none","user_id":7}'


def test_equal_arguments_make_equal_keys_however_they_are_given() -> None:
    app = App()

    @app.task(unique=Unique())
    def place(order: Order, at: datetime) -> None: ...

    id = UUID(int=7)
    typed = key_of(place, Order(id, {"a": 1, "b": 2}), datetime.fromisoformat("2027-01-01T00:00:00+00:00"))
    plain = key_of(place, order={"lines": {"b": 2.0, "a": 1.0}, "id": str(id)}, at="2027-01-01T00:00:00Z")
    assert typed == plain
    assert typed == f'{{"at":"2027-01-01T00:00:00Z","order":{{"id":"{id}","lines":{{"a":1.0,"b":2.0}}}}}}'


def test_a_key_that_is_too_long_is_its_hash() -> None:
    unique = task(Unique(args=["reason"]))
    fits = "x" * (255 - len('{"reason":""}'))
    assert key_of(unique, 7, reason=fits) == f'{{"reason":"{fits}"}}'
    long = key_of(unique, 7, reason=fits + "x")
    assert long is not None
    assert long.startswith("sha256:")
    assert len(long) == 7 + 64
    assert long != key_of(unique, 7, reason=fits + "y")


def test_a_function_makes_the_key_of_the_arguments_as_the_handler_gets_them() -> None:
    seen: list[dict[str, Any]] = []

    def key(order: Order, **rest: Any) -> str:
        seen.append(rest)
        return f"order {order.id}"

    app = App()

    @app.task(unique=Unique(key=key))
    def place(order: Order, reason: str = "none") -> None: ...

    assert key_of(place, {"id": str(UUID(int=7)), "lines": {}}) == f"order {UUID(int=7)}"
    assert key_of(place, Order(UUID(int=8), {}), reason="x") == f"order {UUID(int=8)}"
    assert seen == [{"reason": "none"}] * 2 + [{"reason": "x"}] * 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda user_id: user_id, r"unique.key: the function of task refresh raised TypeError: .*unexpected keyword"),
        (lambda **_: dict[str, str]()["x"], "unique.key: the function of task refresh raised KeyError: 'x'"),
        (lambda user_id, **_: user_id, "unique.key: expected text of 1 to 255 characters, got 7"),
        (lambda **_: "", "unique.key: expected text of 1 to 255 characters, got 0 characters"),
        (lambda **_: "x" * 256, "unique.key: expected text of 1 to 255 characters, got 256 characters"),
        (lambda **_: "a\0", "unique.key: NUL and lone surrogates cannot be stored"),
    ],
)  # fmt: skip
def test_a_function_that_makes_no_key_is_named(function: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        task(Unique(key=function)).call(user_id=7)


def test_a_key_may_be_the_same_for_all_jobs_of_a_task() -> None:
    unique = task(Unique(key="nightly", scope="waiting"))
    assert key_of(unique, 7) == key_of(unique, 8) == "nightly"


def test_a_default_that_cannot_be_stored_is_no_part_of_the_key() -> None:
    app = App()
    nothing = object()

    @app.task(unique=Unique())
    def index(document: int, how: Any = nothing) -> None: ...

    assert key_of(index, 7) == '{"document":7}'
    assert key_of(index, 7, how="fast") == '{"document":7,"how":"fast"}'


def test_a_task_of_any_arguments_has_to_be_given_those_of_its_key() -> None:
    app = App()

    @app.task(unique=Unique(args=["user_id"]))
    def track(**event: Any) -> None: ...

    assert key_of(track, user_id=7, page="/") == '{"user_id":7}'
    with pytest.raises(InvalidOption, match=r"unique.args: the job has none of user_id"):
        track.call(page="/")


def test_what_a_worker_provides_is_no_part_of_the_key() -> None:
    app = App()

    @app.task(unique=Unique())
    def send(ctx: pgqueue.Context, user_id: int, mailer: int = pgqueue.PROVIDED) -> None: ...

    assert key_of(send, 7) == '{"user_id":7}'


def test_a_batch_task_makes_the_keys_of_its_items() -> None:
    app = App()

    @app.batch_task(size=10, wait="10ms", unique=Unique(key=lambda item: f"order {item.id}"))
    async def index(jobs: list[BatchJob[Order]]) -> None: ...

    assert key_of(index, Order(UUID(int=7), {})) == f"order {UUID(int=7)}"


def test_arguments_that_cannot_be_stored_are_refused_as_ever() -> None:
    with pytest.raises(pgqueue.errors.InvalidArgs, match=r"args.on.a: nan is not JSON"):
        task(Unique()).call(7, on={"a": float("nan")})


# Overriding -------------------------------------------------------------------------------------------


def test_using_goes_before_the_task() -> None:
    unique = task(Unique(args=["user_id"], scope="waiting"))
    assert key_of(unique.using(unique=Unique(args=["reason"])), 7) == '{"reason":"none"}'
    assert values_of(unique.using(unique=Unique()).call(7))["options"] is None
    assert key_of(unique.using(unique=None, queue="x"), 7) == '{"user_id":7}'


def test_false_turns_the_unique_of_the_task_off() -> None:
    free = task(Unique(scope="waiting", **DEBOUNCE)).using(unique=False)
    assert values_of(free.call(7)) | {"task": "", "args": ""} == dict.fromkeys(values_of(free.call(7))) | {
        "task": "",
        "args": "",
    }


def test_a_unique_key_is_the_short_way_and_keeps_what_the_task_says_of_it() -> None:
    call = task().using(unique_key="k").call(7)
    assert (values_of(call)["unique_key"], values_of(call)["options"]) == ("k", None)
    unique = task(Unique(args=["user_id"], scope="waiting"))
    call = unique.using(unique_key="k").call(7)
    assert values_of(call)["unique_key"] == "k"
    assert json.loads(values_of(call)["options"] or "") == {"unique": {"scope": "waiting"}}
    call = task().using(unique_key="k", unique=Unique(on_conflict="replace")).call(7)
    assert values_of(call)["unique_key"] == "k"
    assert json.loads(values_of(call)["options"] or "") == {"unique": {"on_conflict": "replace"}}


# The handle -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["created", "kept", "replaced", "postponed", "raised", "follow_up"])
def test_the_handle_says_what_happened(outcome: str) -> None:
    created = outcome in ("created", "follow_up")
    call = task().using(unique_key="k").call(7)
    job = call.decode([(11, created, outcome)])
    assert (job.id, job.created, job.outcome) == (11, created, outcome)
    assert calls.enqueue_many("[]").decode([([11], [created], [outcome])]) == [job]
    # what could be said before is said as before
    assert (job == Job(11, created)) is (outcome in ("created", "kept"))


def test_a_job_without_keys_asks_for_nothing_more_than_before() -> None:
    assert task().call(7).verb.columns == ("id", "created")
    assert calls.enqueue_many("[]").decode([([1, 2], [True, True], None)]) == [Job(1, True), Job(2, True)]
    assert repr(Job(1, True)) == "Job(id=1, created=True)"
    assert repr(Job(1, False, "raised")) == "Job(id=1, created=False, conflict='raised')"
