"""The keyring: what it seals it opens, and nothing else; what is wrong with a key is said without repeating it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgqueue
from pgqueue import errors
from pgqueue.encryption import Keyring, generate_key, is_sealed, read_keys
from pgqueue.settings import Settings, load_settings
from pgqueue.task import Task

KEY = b"k" * 32
ONE = "a:" + "a" * 43 + "="
RING = Keyring({"new": KEY, "old": b"o" * 32})


@given(
    st.text(st.characters(codec="utf-8")),
    st.text(st.characters(codec="utf-8")),
    st.text(st.characters(codec="utf-8")),
)
def test_what_is_sealed_is_opened_for_the_same_kind_task_and_queue_alone(
    text: str, task: str, queue: str
) -> None:
    sealed = RING.seal(text, "args", task, queue)
    assert is_sealed(sealed)
    assert json.loads(sealed).keys() == {"pgqueue.encrypted"}
    assert RING.open(sealed, "args", task, queue) == text
    for other in (("result", task, queue), ("args", task + "x", queue), ("args", task, queue + "x")):
        with pytest.raises(errors.CannotDecrypt):
            RING.open(sealed, *other)


def test_no_two_seals_are_alike_unless_they_have_to_be() -> None:
    assert len({RING.seal("{}", "args", "t", "q") for _ in range(100)}) == 100
    repeated = {RING.seal("{}", "args", "t", "q", repeatable=True) for _ in range(100)}
    assert len(repeated) == 1
    assert RING.seal("[]", "args", "t", "q", repeatable=True) not in repeated
    assert RING.open(repeated.pop(), "args", "t", "q") == "{}"


def test_every_character_that_is_changed_is_noticed() -> None:
    sealed = RING.seal('{"a":12}', "args", "t", "q")  # 36 bytes in all: no bit of the base64 is unused
    begin = sealed.index("new.") + 4
    for place in range(begin, len(sealed) - 2):
        other = "A" if sealed[place] != "A" else "B"
        changed = sealed[:place] + other + sealed[place + 1 :]
        with pytest.raises(errors.CannotDecrypt):
            RING.open(changed, "args", "t", "q")


@pytest.mark.parametrize(
    "text",
    ['{"pgqueue.encrypted": 7}', '{"pgqueue.encrypted": "2.new.AAAA"}', '{"pgqueue.encrypted": "1.new.AAAA", "more": 1}',
     '{"pgqueue.encrypted": "1.new.no base64"}', '{"pgqueue.encrypted": "1.new"}', '{"pgqueue.encrypted": "1.new."}'],
)  # fmt: skip
def test_what_nobody_has_sealed_is_refused(text: str) -> None:
    with pytest.raises(errors.CannotDecrypt):
        RING.open(text, "args", "t", "q")


def test_what_is_plain_stays_as_it_is() -> None:
    assert RING.open('{"user_id": 7}', "args", "t", "q") == '{"user_id": 7}'


def test_the_first_key_seals_and_every_one_opens() -> None:
    before = Keyring({"old": b"o" * 32}).seal("{}", "args", "t", "q")
    assert RING.open(before, "args", "t", "q") == "{}"
    assert '"1.new.' in RING.seal("{}", "args", "t", "q")
    with pytest.raises(errors.UnknownKey, match="need the encryption key old, here are new"):
        Keyring({"new": KEY}).open(before, "args", "t", "q")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("c2VjcmV0", "encryption_keys[0]: expected id:key, as `pgqueue keys generate` prints it"),
        ("a:c2VjcmV0", "encryption_keys: key a: expected 32 bytes, got 6 bytes"),
        ("a:se=cret", "encryption_keys: key a is not base64"),
        ("c2VjcmV0LCBi=:c2VjcmV0", "encryption_keys: expected an id of 1 to 40 letters, digits, - or _ before the colon, got 13 characters"),
        (f"{ONE},{ONE}", "encryption_keys[1]: the id a is there twice"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_and_never_repeated(
    keys: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.ConfigurationError) as raised:
        read_keys(keys.split(","))
    assert str(raised.value) == message
    monkeypatch.setenv("PGQUEUE_ENCRYPTION_KEYS", keys)
    with pytest.raises(errors.ConfigurationError) as raised:
        load_settings()
    assert "encryption_keys" in str(raised.value)
    assert "c2VjcmV0" not in str(raised.value)
    assert "se=cret" not in str(raised.value)


def test_a_task_without_a_key_cannot_be_enqueued() -> None:
    app = pgqueue.App(settings=Settings())

    @app.task(encrypt=True)
    def pay(card: str) -> None: ...

    with pytest.raises(errors.ConfigurationError, match="task pay encrypts its args, and there is no key"):
        pay.call(card="4111")
    app._keyring = RING
    sealed = pay.call(card="4111").values[1]
    assert sealed is not None
    assert pay.unseal(sealed, "args", "default") == '{"card":"4111"}'
    assert "4111" not in pay.item(card="4111").json


def test_a_key_made_of_encrypted_args_is_refused() -> None:
    def pay(card: str) -> None: ...

    with pytest.raises(
        errors.InvalidOption, match="task pay encrypts its args, and a key that is made of them"
    ):
        Task(pay, encrypt=True, unique=pgqueue.Unique(args=["card"]))
    Task(pay, encrypt=True, unique=pgqueue.Unique(key=lambda card: card[-4:]))


def test_a_generated_key_is_a_new_one_that_can_be_used() -> None:
    one, other = generate_key("2026-11"), generate_key("2026-11")
    assert one != other
    ring = Keyring(read_keys([one]))
    assert ring.open(ring.seal("7", "result", "t", "q"), "result", "t", "q") == "7"
