"""Delay policies: within their bounds for every attempt, and the same after a round through JSON."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pgqueue import Custom, Exponential, Fibonacci, Fixed, Linear
from pgqueue.errors import InvalidOption
from pgqueue.job import MAX_DELAY
from pgqueue.retry import DEFAULT_RETRY, RetryPolicy, from_json

durations = st.floats(0, MAX_DELAY)
attempts = st.integers(1, 32_767)
declared = st.one_of(
    st.builds(Fixed, durations, attempts),
    st.builds(Linear, durations, durations, durations, attempts),
    st.builds(Exponential, durations, st.floats(1, 1000), durations, st.floats(0, 1), attempts),
    st.builds(Fibonacci, durations, durations, attempts),
)


@settings(deadline=None)  # a loaded machine is no failure
@given(declared, st.integers(1, 100_000))
def test_a_delay_is_never_negative_endless_or_beyond_ten_years(policy: RetryPolicy, attempt: int) -> None:
    delay = policy.delay(attempt)
    assert delay is not None
    assert 0 <= delay <= getattr(policy, "cap", MAX_DELAY)


@settings(deadline=None)  # a loaded machine is no failure
@given(declared)
def test_a_declared_policy_comes_back_from_json(policy: RetryPolicy) -> None:
    assert from_json(json.loads(json.dumps(policy.to_json()))) == policy


@settings(deadline=None)  # a loaded machine is no failure
@given(st.floats(0.1, 100), st.floats(1, 10), st.floats(0, 1), st.integers(1, 20))
def test_jitter_spreads_to_both_sides_and_never_beyond_the_cap(
    base: float, factor: float, jitter: float, attempt: int
) -> None:
    cap = 600.0
    plain = Exponential(base, factor, cap, jitter=0).delay(attempt)
    delay = Exponential(base, factor, cap, jitter=jitter).delay(attempt)
    assert plain * (1 - jitter) - 1e-9 <= delay <= min(cap, plain * (1 + jitter)) + 1e-9


def test_jitter_is_random() -> None:
    policy = Exponential(base=10, jitter=0.2)
    assert len({policy.delay(1) for _ in range(50)}) > 40


def test_the_sequences() -> None:
    def first(policy: RetryPolicy, count: int = 6) -> list[float | None]:
        return [policy.delay(attempt) for attempt in range(1, count + 1)]

    assert first(Fixed(5)) == [5] * 6
    assert first(Linear(5, cap=22)) == [5, 10, 15, 20, 22, 22]
    assert first(Linear(5, step=1)) == [5, 6, 7, 8, 9, 10]
    assert first(Exponential(2, 2, cap=20, jitter=0)) == [2, 4, 8, 16, 20, 20]
    assert first(Fibonacci(1, cap=6)) == [1, 1, 2, 3, 5, 6]


def test_durations_are_read_like_everywhere_else() -> None:
    assert Fixed("1m") == Fixed(60) == Fixed(timedelta(minutes=1))
    assert Exponential(cap="1h").cap == 3600


def test_the_default_outlasts_a_dependency_that_is_down_for_five_minutes() -> None:
    policy = Exponential(DEFAULT_RETRY.base, DEFAULT_RETRY.factor, DEFAULT_RETRY.cap, jitter=0)
    assert [policy.delay(attempt) for attempt in range(1, DEFAULT_RETRY.attempts)] == [2, 10, 50, 250]
    assert sum([2, 10, 50, 250]) > 300


@pytest.mark.parametrize("attempts", [0, -1, 32_768, True, 2.0, "5", None, 10**30])
def test_attempts_out_of_range_are_refused(attempts: Any) -> None:
    for policy in (Fixed, Linear, Exponential, Fibonacci):
        with pytest.raises(InvalidOption, match="attempts: expected an integer from 1 to 32767"):
            policy(attempts=attempts)
    with pytest.raises(InvalidOption, match="attempts"):
        Custom(lambda _attempt, _error: 1, attempts=attempts)


@pytest.mark.parametrize(
    "given",
    [
        {"base": -1},
        {"base": float("nan")},
        {"base": "soon"},
        {"cap": "100000000d"},
        {"factor": 0.5},
        {"factor": float("inf")},
        {"factor": True},
        {"jitter": 1.5},
        {"jitter": "0.1"},
    ],
)
def test_numbers_out_of_range_are_refused_by_name(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(InvalidOption, match=f"^{name}: "):
        Exponential(**given)


@pytest.mark.parametrize(
    "stored",
    [
        [],
        None,
        {},
        {"kind": "exponentiel"},
        {"kind": []},
        {"kind": "fixed", "base": 1, "attempts": 0},
        {"kind": "fixed", "speed": 1},
        {"kind": "fixed", "base": {}},
    ],
)
def test_what_is_no_stored_policy_is_refused(stored: Any) -> None:
    with pytest.raises(InvalidOption):
        from_json(stored)


def test_the_number_of_attempts_can_be_another() -> None:
    assert Exponential(base=3).with_attempts(9) == Exponential(base=3, attempts=9)
    custom = Custom(lambda attempt, _error: attempt).with_attempts(9)
    assert (custom.attempts, custom.delay(4)) == (9, 4)
    with pytest.raises(InvalidOption):
        Fixed().with_attempts(0)


class Own(RetryPolicy):
    attempts = 4

    def delay(self, attempt: int, error: BaseException | None = None) -> float | None:
        return None if isinstance(error, KeyError) else float(attempt)


def test_a_class_of_the_user_is_a_policy() -> None:
    again = Own().with_attempts(7)
    assert (again.attempts, again.delay(2), again.delay(2, KeyError())) == (7, 2.0, None)
    with pytest.raises(InvalidOption, match="Own is code and cannot be stored"):
        Own().to_json()


def test_a_function_decides_by_attempt_and_error() -> None:
    policy = Custom(
        lambda attempt, error: None if isinstance(error, KeyError) else "1m" if attempt > 1 else 1
    )
    assert policy.delay(1, OSError()) == 1
    assert policy.delay(2, OSError()) == 60
    assert policy.delay(1, KeyError()) is None


@pytest.mark.parametrize(
    "answer", [SystemExit(1), ValueError("x"), KeyboardInterrupt(), float("nan"), -1, "soon", [], object()]
)
def test_a_function_that_fails_is_replaced_by_the_default_and_logged(answer: Any) -> None:
    def function(_attempt: int, _error: BaseException | None) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    with capture_logs() as lines:
        delay = Custom(function).delay(1)
    assert delay is not None
    assert 1.6 <= delay <= 2.4
    assert lines[0]["log_level"] == "warning"


def test_a_function_cannot_be_stored() -> None:
    with pytest.raises(InvalidOption, match="declare it on the task"):
        Custom(lambda _attempt, _error: 1).to_json()
    with pytest.raises(InvalidOption, match="expected a function"):
        Custom("5m")  # type: ignore[arg-type]


def test_policies_are_values() -> None:
    assert Fixed(5) == Fixed("5s")
    assert hash(Fixed(5)) == hash(Fixed("5s"))
    with pytest.raises(AttributeError):
        Fixed(5).base = 6  # type: ignore[misc]
