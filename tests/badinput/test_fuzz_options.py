"""Whatever is given for an option of an enqueue: our own error, before anything is sent, or a job whose row says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pgqueue import Cancel, Fail, Fixed, Linear, Retry, Snooze, Unique
from pgqueue.app import App
from pgqueue.errors import ConfigurationError, InvalidJob, InvalidOption
from pgqueue.job import MAX_DELAY, seconds
from pgqueue.retry import Exponential, Fibonacci
from pgqueue.settings import Settings
from tests.badinput.conftest import Shop
from tests.badinput.fuzzing import fuzzed, texts
from tests.badinput.hostile import BrokenZone, Incomparable, Number, Text, Unprintable, bomb, cycle
from tests.badinput.table import is_tidy
from tests.badinput.test_fuzz_args import BAD_TEXT, any_values, is_same

durations = st.one_of(
    st.floats(), st.integers(), st.timedeltas(), st.integers(-5, 10**9),
    st.builds("{}{}".format, st.one_of(st.integers(-5, 10**6), st.floats(), texts), st.sampled_from(["ms", "s", " m", "h ", "d", "w", "y", ""])),
)  # fmt: skip
moments = st.one_of(
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.builds(lambda: datetime(2026, 1, 1, tzinfo=BrokenZone())),
)
finite_things = st.one_of(
    any_values, BAD_TEXT, durations, moments, texts,
    st.integers(-2, 12), st.integers(-2, 40_000),
    st.lists(st.one_of(texts, any_values), max_size=25), st.sets(texts, max_size=3),
    st.sampled_from([  Text.QUEUE, Number.THREE, 10**5000, -(10**400), int, ValueError, [KeyError]]),
    st.builds(cycle),
    st.builds(Unprintable), st.builds(Incomparable), st.builds(Fixed, st.integers(0, 1000), st.integers(1, 20)), st.builds(Unique),
)  # fmt: skip
things = st.one_of(finite_things, finite_things, st.builds(bomb))

NAMES = [
    "queue",
    "priority",
    "delay",
    "run_at",
    "retry",
    "max_attempts",
    "timeout",
    "expires",
    "tags",
    "metadata",
    "unique",
    "unique_key",
    "idempotency_key",
]
LIKELY: Mapping[str, st.SearchStrategy[Any]] = {
    "queue": texts, "priority": st.integers(0, 9), "delay": durations, "run_at": moments, "max_attempts": st.integers(1, 32_767),
    "timeout": durations, "expires": st.one_of(durations, moments), "tags": st.lists(texts, max_size=4),
    "metadata": st.dictionaries(texts, any_values, max_size=3), "unique_key": texts, "idempotency_key": texts,
}  # fmt: skip
QUERY = """
    select queue, lane / 2 as priority, max_attempts, unique_key, run_at, options,
           extract(epoch from run_at - created_at)::float8 as delay
    from (select id, queue, lane, max_attempts, unique_key, run_at, created_at, options from pgqueue.ready_jobs union all
          select id, queue, lane, max_attempts, unique_key, run_at, created_at, options from pgqueue.scheduled_jobs) jobs
"""


def says(row: Mapping[str, Any], name: str, value: Any) -> bool:
    """A row says what was given for an option."""
    options = row["options"] or {}
    match name:
        case "queue" | "unique_key":
            return bool(row[name] == str.__str__(value))
        case "idempotency_key":
            return True  # it is kept apart from the job
        case "priority" | "max_attempts":
            return bool(row[name] == int(value))
        case "delay":
            return math.isclose(
                row["delay"], seconds(value, name=name), abs_tol=1
            )  # created_at is of the statement, run_at of the transaction
        case "run_at":
            return bool(row["run_at"].astimezone(UTC) == value.astimezone(UTC))
        case "timeout":
            return bool(options["timeout"] == seconds(value, name=name))
        case "expires":
            return (
                "expires_at" in options
                if isinstance(value, datetime)
                else bool(options["expires_in"] == seconds(value, name=name))
            )
        case "tags":
            return bool(
                options.get("tags", [])
                == (sorted(value) if isinstance(value, set | frozenset) else list(value))
            )
        case "metadata":
            return is_same(options["metadata"], dict(value))
        case "retry":
            return bool(options["retry"]["attempts"] == value.attempts == row["max_attempts"])
        case "unique":
            return True  # `tests/unit/test_unique.py`
    return False  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_option_is_in_the_row_or_refused_before_anything_is_sent(name: str, shop: Shop) -> None:
    @given(st.one_of(LIKELY.get(name, things), things))
    @fuzzed(20)
    def enqueue(value: Any) -> None:
        connection = shop.connection
        connection.execute("select 1")
        try:
            job = shop.anything.using(**{name: value}).enqueue(connection)
        except InvalidOption as refused:
            message = str(refused)
            assert message.startswith(name)
            assert is_tidy(message)
            assert connection.info.transaction_status is TransactionStatus.INTRANS
        else:
            if value is not None:
                row = (
                    connection.cursor(row_factory=dict_row)
                    .execute(f"{QUERY} where id = %s", [job.id])
                    .fetchone()
                )
                assert row
                assert says(row, name, value), row
        finally:
            connection.rollback()

    enqueue()


@pytest.mark.parametrize(
    "last",
    [
        datetime(2127, 1, 1, tzinfo=UTC),
        datetime(2199, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-23, minutes=-59))),
    ],
)
def test_what_passes_here_passes_the_server(last: datetime, shop: Shop) -> None:
    """Else it would be refused too late: in a transaction that is lost by it."""
    connection = shop.connection
    job = shop.anything.using(run_at=last).enqueue(connection)
    row = connection.execute("select run_at from pgqueue.scheduled_jobs where id = %s", [job.id]).fetchone()
    assert row == (last,)
    connection.rollback()


TASK_OPTIONS = [
    "name",
    "queue",
    "priority",
    "retry",
    "permanent",
    "timeout",
    "unique",
    "executor",
    "max_memory",
    "max_jobs_per_child",
    "on_crash",
    "middleware",
]


@pytest.mark.parametrize("name", TASK_OPTIONS)
def test_an_option_of_a_task_is_taken_or_refused(name: str) -> None:
    @given(things)
    @example("process")
    @example("512MB")
    @example("dead")
    @fuzzed(12)
    def define(value: Any) -> None:
        app = App(settings=Settings())
        try:
            app.task(**{name: value})(lambda: None)
        except (InvalidOption, ConfigurationError) as refused:
            message = str(refused)
            assert not app.tasks
            assert is_tidy(message)

    define()


@given(things, things)
@fuzzed(40)
def test_policies_and_outcomes_take_what_they_are_given_or_refuse_it(one: Any, other: Any) -> None:
    for make in (
        lambda: Fixed(one, other),
        lambda: Linear(one, other, attempts=3),
        lambda: Exponential(one, other),
        lambda: Exponential(cap=one, jitter=other),
        lambda: Fibonacci(one, attempts=other),
        lambda: Retry(after=one),
        lambda: Snooze(one),
        lambda: Unique(args=one, key=other),
        lambda: Unique(scope=one, period=other),
        lambda: Unique(on_conflict="debounce", delay=one, max_delay=other),
    ):
        try:
            made = make()
        except InvalidJob as refused:
            message = str(refused)
            assert is_tidy(message)
        else:
            for name in ("base", "step", "cap", "after", "delay", "max_delay", "period"):
                wait = vars(made).get(name) if hasattr(made, "__dict__") else getattr(made, name, None)
                assert wait is None or (type(wait) is float and 0 <= wait <= MAX_DELAY)
    assert isinstance(Fail(one), Exception)
    assert isinstance(Cancel(one), Exception)


@given(st.one_of(durations, things))
@fuzzed(80)
def test_a_duration_is_between_nothing_and_ten_years(value: Any) -> None:
    try:
        read = seconds(value, name="delay")
    except InvalidOption as refused:
        message = str(refused)
        assert message.startswith("delay: expected ")
        assert is_tidy(message, 300)
    else:
        assert type(read) is float
        assert 0 <= read <= MAX_DELAY
        if isinstance(value, timedelta):
            assert read == value.total_seconds()
