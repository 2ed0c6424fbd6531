"""What is not shown of args, and of errors that quote them."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.error_text import ErrorText, describe_error
from pgqueue.redaction import MIN_LENGTH, Redaction
from pgqueue.settings import load_settings


def told(message: str) -> ErrorText:
    return ErrorText("ValueError", message, f"Traceback:\n{message}\n", "f")


def test_names_are_patterns_in_any_case_at_any_depth() -> None:
    redaction = Redaction(["*password*", "card"])
    args = {"user": {"newPassword": ["x"], "name": "ada"}, "CARD": 7, "cards": [{"card": "y", "n": 1}]}
    assert redaction.args(args) == {
        "user": {"newPassword": "***", "name": "ada"}, "CARD": "***", "cards": [{"card": "***", "n": 1}],
    }  # fmt: skip
    assert args["CARD"] == 7, "what is shown is a copy"


@given(st.text(st.characters(codec="utf-8"), min_size=MIN_LENGTH), st.text(), st.text())
def test_no_error_keeps_a_hidden_value_however_it_quotes_it(secret: str, before: str, after: str) -> None:
    for quoted in (secret, repr(secret), json.dumps(secret)):
        hidden = Redaction(["secret"]).error(
            told(before + quoted + after), json.dumps({"in": [{"secret": secret}]})
        )
        for text in (hidden.message, hidden.traceback):
            assert quoted.strip("'\"") not in text.replace("***", "") or quoted.strip("'\"") in before + after


@pytest.mark.parametrize("length", [100, 900, 3_000, 15_000, 100_000])
def test_a_value_that_is_cut_does_not_leave_a_part_of_itself_behind(length: int) -> None:
    secret = "".join(f"<{n}>" for n in range(length))[:length]
    error = ValueError(f"cannot read {secret} at all")
    error.add_note(f"it was {secret}")
    hidden = Redaction(["secret"]).error(describe_error(error), json.dumps({"secret": secret}))
    for text in (hidden.message, hidden.traceback):
        assert not any(secret[place : place + 12] in text for place in range(length - 12))
    assert hidden.message.endswith("*** at all") or hidden.message.startswith("left out:")


def test_much_that_is_hidden_does_not_keep_the_event_loop_waiting() -> None:
    args = json.dumps({f"name {n}": f"{n} " * 300 for n in range(990)})
    error = told("went wrong " * 2_000)
    started = time.process_time()
    assert Redaction([]).error(error, args, every=True) == error
    assert time.process_time() - started < 0.5, (
        "it compared each value with the text, and made no pattern of them"
    )


def test_short_values_and_other_names_stay() -> None:
    error = told("no user 7 of ada with 1234567")
    assert Redaction(["pin"]).error(error, '{"pin": 7, "name": "ada"}') == error
    assert Redaction(["pin"]).error(error, '{"pin": 1234567}').message == "no user 7 of ada with ***"
    assert Redaction([]).error(error, '{"pin": 1234567}') == error


def test_of_sealed_args_every_value_is_hidden() -> None:
    assert (
        Redaction([])
        .error(told("ada has 1234567"), '{"a": "ada lovelace", "b": 1234567}', every=True)
        .message
        == "ada has ***"
    )


def test_too_many_values_hide_the_whole_text() -> None:
    args = json.dumps({"secret": [f"value {n}" for n in range(1_001)]})
    hidden = Redaction(["secret"]).error(told("value 7"), args)
    assert hidden.message == "left out: the args have 1,001 values to redact"
    assert (hidden.type, hidden.fingerprint) == ("ValueError", "f")


@pytest.mark.parametrize(("given_names", "expected"), [("card,*pin*", ("card", "*pin*")), ("none", ())])
def test_names_are_a_setting(
    given_names: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUE_REDACT", given_names)
    assert load_settings().redact == expected
