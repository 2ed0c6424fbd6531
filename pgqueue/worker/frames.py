"""What a worker and a process that runs jobs apart say to each other: msgpack, each word after its length.

The worker says `Setup`, and then, for one job after the other, `Run`, and `Stop` when the attempt is to end early,
and `Leave` when that was all. The process says `Ready` when it has loaded the app, and `Ended` for each job.
"""

from __future__ import annotations

from typing import TypeAlias, get_args

import msgspec

from pgqueue.job import ClaimedJob
from pgqueue.worker.decide import COMPLETED, Ending

HEADER = 4
"""Bytes that say how long the word is that follows."""


class Setup(msgspec.Struct, frozen=True, tag=True):
    """What a process needs to know before its first job. Never in the command line: it holds the DSN.

    `app` is a path, `module:attribute`; `modules` are imported as well, for their tasks; `sys_path` says where to find
    them, if not where any program of the current folder does; `trace_fd` is an inherited file for the stack of a process
    that crashes.
    """

    app: str
    dsn: str
    pooled: bool
    worker_id: int
    log_format: str
    log_level: str
    modules: tuple[str, ...] = ()
    sys_path: tuple[str, ...] = ()
    trace_fd: int = -1


class Run(msgspec.Struct, frozen=True, tag=True):
    """The next job."""

    job: ClaimedJob


class Stop(msgspec.Struct, frozen=True, tag=True):
    """The attempt is to end now."""


class Leave(msgspec.Struct, frozen=True, tag=True):
    """There is no further job: close what is open, and end."""


class Filed(msgspec.Struct, frozen=True, tag=True):
    """What the handler has said is kept; the answer to a `Said` that asks for it."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The app is loaded."""


class Said(msgspec.Struct, frozen=True, tag=True):
    """What the handler has said since it was last passed on (`saying`).

    - `progress`: how far it has come, as JSON; None: no further.
    - `lines`: of its log.
    - `asks`: the worker is to keep all of it now, and to answer `Filed`.
    """

    progress: str | None
    lines: list[dict[str, str]]
    asks: bool


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The attempt has ended.

    - `kind`, `ending`: the class of the ending and the ending itself; "": there is none for the worker to record.
    - `has_completed`: it completed the job in its own transaction.
    - `was_stopped`: it was told to end, so that nobody knows whether it came to its end.
    - `leaves`: why the process ends after this; "": it takes the next job.
    """

    kind: str
    ending: msgspec.Raw
    has_completed: bool
    was_stopped: bool
    leaves: str


Order: TypeAlias = Setup | Run | Stop | Leave | Filed
Word: TypeAlias = Ready | Said | Ended

_encoder = msgspec.msgpack.Encoder()
_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_words: msgspec.msgpack.Decoder[Word] = msgspec.msgpack.Decoder(Word)
_endings = {kind.__name__: msgspec.msgpack.Decoder(kind) for kind in get_args(Ending)}


def frame(word: Order | Word) -> bytes:
    """A word as it is sent."""
    encoded = _encoder.encode(word)
    return len(encoded).to_bytes(HEADER, "big") + encoded


def length(header: bytes) -> int:
    """How long the word is that follows a header."""
    return int.from_bytes(header, "big")


def read_order(encoded: bytes) -> Order:
    """What the worker said."""
    return _orders.decode(encoded)


def read_word(encoded: bytes) -> Word:
    """What the process said."""
    return _words.decode(encoded)


def ended(ending: Ending | None, *, has_completed: bool, was_stopped: bool, leaves: str) -> Ended:
    """The word for an ending; None: settled already, or not ours any more."""
    kind = "" if ending is None else type(ending).__name__
    return Ended(kind, msgspec.Raw(_encoder.encode(ending)), has_completed, was_stopped, leaves)


def ending_of(word: Ended) -> Ending | None:
    """The ending in a word."""
    if not word.kind:
        return None
    ending: Ending = _endings[word.kind].decode(word.ending)
    return COMPLETED if ending == COMPLETED else ending  # the one that slots know by its identity
