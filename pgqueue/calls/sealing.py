"""What operators call about what is encrypted: how much with which key, and to seal it anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias, get_args

import msgspec

from pgqueue.calls.call import Call, Verb, scalar

Place: TypeAlias = Literal["ready", "scheduled", "blocked", "dead", "schedules", "steps"]
"""Where something lies that a new key can seal; the history is left to its retention."""
PLACES: tuple[Place, ...] = get_args(Place)

COUNT_SEALED = Verb("count_sealed", (), ("place", "key_id", "sealed"))
FIND_SEALED = Verb(
    "find_sealed",
    (("place", "text"), ("newest", "text"), ("after_id", "bigint"), ("after_name", "text")),
    ("id", "name", "task", "queue", "value::text"),
)
RESEAL = Verb("reseal", (("place", "text"), ("items", "jsonb")))


class SealedCount(NamedTuple):
    """How much is encrypted with a key; the result columns of `pgqueue.count_sealed()`."""

    place: str
    key_id: str
    sealed: int


class Sealed(NamedTuple):
    """Something that is encrypted; the result columns of `pgqueue.find_sealed()`. `value` is JSON text."""

    id: int
    name: str
    task: str
    queue: str
    value: str


def count_sealed() -> Call[list[SealedCount]]:
    """How much is encrypted with which key. Reads every job."""
    return Call(COUNT_SEALED, (), lambda rows: [SealedCount(*row) for row in rows])


def find_sealed(place: Place, newest: str, after: Sealed | None = None) -> Call[list[Sealed]]:
    """The next ones that are encrypted with another key than `newest`, at most 500, behind `after`."""
    last = ("0", "") if after is None else (str(after.id), after.name)
    return Call(FIND_SEALED, (place, newest, *last), lambda rows: [Sealed(*row) for row in rows])


def reseal(place: Place, items: Iterable[tuple[Sealed, str]]) -> Call[int]:
    """Puts each new value (JSON text) in the place of what was found, where it is still there; returns how many."""
    rows = [
        {
            "id": found.id,
            "name": found.name,
            "old": msgspec.Raw(found.value.encode()),
            "new": msgspec.Raw(new.encode()),
        }
        for found, new in items
    ]
    return Call(RESEAL, (place, msgspec.json.encode(rows).decode()), scalar)
