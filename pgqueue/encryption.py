"""Args, results and steps that the database cannot read: sealed by whoever enqueues, opened by whoever runs them.

AES-256-GCM (NIST SP 800-38D) with a nonce of 96 random bits. What is sealed is bound to what it is, its task and its
queue (the associated data), so that nobody can move it to another job of another kind unnoticed. Stored as JSON:

    {"pgqueue.encrypted": "1.<id of the key>.<base64url of nonce, ciphertext and tag>"}
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from pgqueue.error_text import safe_repr
from pgqueue.errors import CannotDecrypt, ConfigurationError, UnknownKey

FIELD = "pgqueue.encrypted"
"""The only name of the object that stands for what is sealed."""
KEY_BYTES = 32
MAX_KEY_ID = 40
Kind: TypeAlias = Literal["args", "result", "step"]
"""What is sealed."""

_BEGIN = re.compile(r'\s*\{\s*"pgqueue\.encrypted"\s*:')
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")
_NONCE = 12


def is_sealed(text: str) -> bool:
    """Whether JSON text is what `Keyring.seal` has made.

    >>> is_sealed('{"pgqueue.encrypted": "1.a.b"}'), is_sealed('{"user_id": 7}')
    (True, False)
    """
    return _BEGIN.match(text) is not None


def key_id_of(text: str) -> str | None:
    """The id of the key that sealed JSON text needs; None when that cannot be read."""
    try:
        return _parts(text)[0]
    except CannotDecrypt:
        return None


class Keyring:
    """The keys of an application by their ids: the first one seals, every one opens.

        app = pgqueue.App(keyring=pgqueue.Keyring({"2026-11": new, "2025-11": old}))

    For keys that come from a vault in code; else the setting `encryption_keys` holds them. Each key is 32 bytes, as
    bytes or as base64 (`pgqueue keys generate` makes one); an id is 1 to 40 letters, digits, `-` or `_`, and is
    readable in the database. One key may seal 2**32 times: rotate before.

    Raises `ConfigurationError`, which repeats no key; also when the package `cryptography` is missing.
    """

    def __init__(self, keys: Mapping[str, bytes | str]):
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ConfigurationError(
                "encryption needs the package cryptography: pip install 'pgqueue-jobs[encryption]'"
            ) from error
        if not keys:
            raise ConfigurationError(
                "encryption_keys: a keyring needs at least one key: `pgqueue keys generate`"
            )
        self._secrets = {check_key_id(id): _key(id, key) for id, key in keys.items()}
        self._refused = InvalidTag
        self._ciphers = {id: AESGCM(key) for id, key in self._secrets.items()}
        self.ids: tuple[str, ...] = tuple(self._secrets)
        """The ids of its keys; the first one seals."""

    def seal(self, text: str, kind: Kind, task: str, queue: str, *, repeatable: bool = False) -> str:
        """JSON text that stands for `text`, which may be any JSON.

        `repeatable`: the same text gives the same again, as a schedule needs that is compared with what is stored. Its
        nonce is an HMAC of the text then, which tells whoever sees two of them that they are equal, and no more.
        """
        id = self.ids[0]
        bound, plain = _bound(kind, task, queue), text.encode()
        nonce = (
            hmac.digest(self._secrets[id], b"pgqueue nonce" + bound + plain, hashlib.sha256)[:_NONCE]
            if repeatable
            else os.urandom(_NONCE)
        )
        data = nonce + self._ciphers[id].encrypt(nonce, plain, bound)
        return f'{{"{FIELD}": "1.{id}.{base64.urlsafe_b64encode(data).decode()}"}}'

    def open(self, text: str, kind: Kind, task: str, queue: str) -> str:
        """What was sealed; JSON text that is not sealed is returned as it is.

        Raises `UnknownKey` when its key is not here, and `CannotDecrypt` for what was changed, or sealed for another
        task or queue.
        """
        if not is_sealed(text):
            return text
        id, data = _parts(text)
        cipher = self._ciphers.get(id)
        if cipher is None:
            raise UnknownKey(
                f"the {kind} of task {task} need the encryption key {id}, here are {', '.join(self.ids)}: "
                "add it behind the others in encryption_keys"
            )
        try:
            return cipher.decrypt(data[:_NONCE], data[_NONCE:], _bound(kind, task, queue)).decode()
        except (self._refused, ValueError) as error:
            raise CannotDecrypt(
                f"the {kind} of task {task} in queue {queue} cannot be decrypted with key {id}: they were changed, or "
                "sealed with another key of that id, or for another task or queue"
            ) from error

    def __repr__(self) -> str:
        return f"<pgqueue.Keyring {', '.join(self.ids)}>"


def read_keys(lines: Sequence[str]) -> dict[str, bytes]:
    """Keys out of the setting `encryption_keys`: `id:base64` each. Raises `ConfigurationError` without repeating a key."""
    keys: dict[str, bytes] = {}
    for place, line in enumerate(lines):
        id, colon, key = line.strip().partition(":")
        if not colon:
            raise ConfigurationError(
                f"encryption_keys[{place}]: expected id:key, as `pgqueue keys generate` prints it"
            )
        if check_key_id(id) in keys:
            raise ConfigurationError(f"encryption_keys[{place}]: the id {id} is there twice")
        keys[id] = _key(id, key)
    return keys


def generate_key(id: str) -> str:
    """A new key as `encryption_keys` takes it."""
    return f"{check_key_id(id)}:{base64.urlsafe_b64encode(os.urandom(KEY_BYTES)).decode()}"


def check_key_id(id: Any) -> str:
    """The id of a key, if it is one. Raises `ConfigurationError`."""
    if not isinstance(id, str) or not _KEY_ID.fullmatch(id):
        # Hazard: whoever forgets the id has given the key.
        given = f"{len(id)} characters" if isinstance(id, str) else safe_repr(id)
        raise ConfigurationError(
            f"encryption_keys: expected an id of 1 to {MAX_KEY_ID} letters, digits, - or _ before the colon, got {given}"
        )
    return id


def _key(id: str, key: bytes | str) -> bytes:
    if isinstance(key, str):
        try:
            key = base64.b64decode(key.strip().replace("-", "+").replace("_", "/"), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigurationError(f"encryption_keys: key {id} is not base64") from None
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        given = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise ConfigurationError(f"encryption_keys: key {id}: expected {KEY_BYTES} bytes, got {given}")
    return key


@lru_cache(1_000)
def _bound(kind: Kind, task: str, queue: str) -> bytes:
    """The associated data: JSON, so that no two triples give the same bytes."""
    return json.dumps(["pgqueue", 1, kind, task, queue]).encode()


def _parts(text: str) -> tuple[str, bytes]:
    """Key id and bytes of JSON text that is sealed."""
    try:
        sealed = json.loads(text)
        version, id, data = sealed[FIELD].split(".")
        if len(sealed) != 1 or version != "1":
            raise ValueError(version)
        return id, base64.b64decode(data, altchars=b"-_", validate=True)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CannotDecrypt(
            f"what is stored under {FIELD} is not what this release of pgqueue has sealed"
        ) from error
