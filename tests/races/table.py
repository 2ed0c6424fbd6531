"""The outcome of every race, as it should be. `test_races.py` runs them, and docs/explanation/races.md is made from it.

A row: who goes first; who comes while the transaction of the first is open; whether that one waits for its end or
returns at once; what it answers and where the job is then, if the first commits, and if it rolls back. `ready/1`: the
job is ready, with one attempt counted. In brackets: where the job was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Race(NamedTuple):
    """A row."""

    state: str
    first: str
    second: str
    waits: bool
    if_committed: str
    if_rolled_back: str


_TABLE = """
[scheduled]
promote            | promote            | returns | nothing: ready/0          | nothing: scheduled/0
promote            | retry              | returns | nothing: ready/0          | nothing: scheduled/0
promote            | cancel             | waits   | cancelled: cancelled/0    | cancelled: cancelled/0
promote            | delete             | waits   | deleted: gone             | deleted: gone
promote            | claim              | returns | nothing: ready/0          | nothing: scheduled/0
retry              | promote            | returns | nothing: ready/0          | nothing: scheduled/0
retry              | retry              | returns | nothing: ready/0          | nothing: scheduled/0
retry              | cancel             | waits   | cancelled: cancelled/0    | cancelled: cancelled/0
retry              | delete             | waits   | deleted: gone             | deleted: gone
retry              | claim              | returns | nothing: ready/0          | nothing: scheduled/0
cancel             | promote            | returns | nothing: cancelled/0      | nothing: scheduled/0
cancel             | retry              | returns | nothing: cancelled/0      | nothing: scheduled/0
cancel             | cancel             | waits   | finished: cancelled/0     | cancelled: cancelled/0
cancel             | delete             | waits   | deleted: gone             | deleted: gone
delete             | promote            | returns | nothing: gone             | nothing: scheduled/0
delete             | retry              | returns | nothing: gone             | nothing: scheduled/0
delete             | cancel             | waits   | nothing: gone             | cancelled: cancelled/0
delete             | delete             | waits   | nothing: gone             | deleted: gone

[ready]
claim              | claim              | returns | nothing: running/1        | nothing: ready/0
claim              | cancel             | waits   | asked: asked/1            | cancelled: cancelled/0
claim              | delete             | waits   | running: running/1        | deleted: gone
claim              | complete           | returns | refused: running/1        | refused: ready/0
claim              | fail               | returns | refused: running/1        | refused: ready/0
claim              | fail for good      | returns | refused: running/1        | refused: ready/0
claim              | snooze             | returns | refused: running/1        | refused: ready/0
claim              | release            | returns | refused: running/1        | refused: ready/0
claim              | rescue             | waits   | taken back: ready/1       | nothing: ready/0
cancel             | claim              | returns | nothing: cancelled/0      | nothing: ready/0
cancel             | cancel             | waits   | finished: cancelled/0     | cancelled: cancelled/0
cancel             | delete             | waits   | deleted: gone             | deleted: gone
delete             | claim              | returns | nothing: gone             | nothing: ready/0
delete             | cancel             | waits   | nothing: gone             | cancelled: cancelled/0
delete             | delete             | waits   | nothing: gone             | deleted: gone
claim              | forget the claim   | waits   | given back: ready/0       | nothing: ready/0

[blocked]
complete the other | complete the other | waits   | refused: ready/0          | accepted: ready/0
complete the other | cancel             | waits   | cancelled: cancelled/0    | cancelled: cancelled/0
complete the other | delete             | waits   | deleted: gone             | deleted: gone
complete the other | claim              | returns | nothing: ready/0          | nothing: blocked/0
cancel             | complete the other | returns | accepted: cancelled/0     | accepted: blocked/0
cancel             | cancel             | waits   | finished: cancelled/0     | cancelled: cancelled/0
cancel             | delete             | waits   | deleted: gone             | deleted: gone
delete             | complete the other | returns | accepted: gone            | accepted: blocked/0
delete             | cancel             | waits   | nothing: gone             | cancelled: cancelled/0
delete             | delete             | waits   | nothing: gone             | deleted: gone

[running]
complete           | complete           | waits   | refused: completed/1      | accepted: completed/1
complete           | fail               | waits   | refused: completed/1      | accepted: scheduled/1
complete           | fail for good      | waits   | refused: completed/1      | accepted: dead/1
complete           | snooze             | waits   | refused: completed/1      | accepted: scheduled/0
complete           | release            | waits   | refused: completed/1      | accepted: ready/0
complete           | rescue             | waits   | nothing: completed/1      | taken back: ready/1
complete           | cancel             | waits   | finished: completed/1     | asked: asked/1
complete           | delete             | returns | running: completed/1      | running: running/1
fail               | complete           | waits   | refused: scheduled/1      | accepted: completed/1
fail               | fail               | waits   | refused: scheduled/1      | accepted: scheduled/1
fail               | fail for good      | waits   | refused: scheduled/1      | accepted: dead/1
fail               | snooze             | waits   | refused: scheduled/1      | accepted: scheduled/0
fail               | release            | waits   | refused: scheduled/1      | accepted: ready/0
fail               | rescue             | waits   | nothing: scheduled/1      | taken back: ready/1
fail               | cancel             | waits   | cancelled: cancelled/1    | asked: asked/1
fail               | delete             | returns | running: scheduled/1      | running: running/1
fail               | promote            | returns | nothing: scheduled/1      | nothing: running/1
fail               | retry              | returns | nothing: scheduled/1      | nothing: running/1
fail for good      | complete           | waits   | refused: dead/1           | accepted: completed/1
fail for good      | fail               | waits   | refused: dead/1           | accepted: scheduled/1
fail for good      | fail for good      | waits   | refused: dead/1           | accepted: dead/1
fail for good      | snooze             | waits   | refused: dead/1           | accepted: scheduled/0
fail for good      | release            | waits   | refused: dead/1           | accepted: ready/0
fail for good      | rescue             | waits   | nothing: dead/1           | taken back: ready/1
fail for good      | cancel             | waits   | cancelled: cancelled/1    | asked: asked/1
fail for good      | delete             | returns | running: dead/1           | running: running/1
fail for good      | replay             | returns | nothing: dead/1           | nothing: running/1
fail for good      | discard            | returns | nothing: dead/1           | nothing: running/1
snooze             | complete           | waits   | refused: scheduled/0      | accepted: completed/1
snooze             | fail               | waits   | refused: scheduled/0      | accepted: scheduled/1
snooze             | fail for good      | waits   | refused: scheduled/0      | accepted: dead/1
snooze             | snooze             | waits   | refused: scheduled/0      | accepted: scheduled/0
snooze             | release            | waits   | refused: scheduled/0      | accepted: ready/0
snooze             | rescue             | waits   | nothing: scheduled/0      | taken back: ready/1
snooze             | cancel             | waits   | cancelled: cancelled/0    | asked: asked/1
snooze             | delete             | returns | running: scheduled/0      | running: running/1
snooze             | promote            | returns | nothing: scheduled/0      | nothing: running/1
snooze             | retry              | returns | nothing: scheduled/0      | nothing: running/1
release            | complete           | waits   | refused: ready/0          | accepted: completed/1
release            | fail               | waits   | refused: ready/0          | accepted: scheduled/1
release            | fail for good      | waits   | refused: ready/0          | accepted: dead/1
release            | snooze             | waits   | refused: ready/0          | accepted: scheduled/0
release            | release            | waits   | refused: ready/0          | accepted: ready/0
release            | rescue             | waits   | nothing: ready/0          | taken back: ready/1
release            | cancel             | waits   | cancelled: cancelled/0    | asked: asked/1
release            | delete             | returns | running: ready/0          | running: running/1
release            | claim              | returns | nothing: ready/0          | nothing: running/1
rescue             | complete           | waits   | refused: ready/1          | accepted: completed/1
rescue             | fail               | waits   | refused: ready/1          | accepted: scheduled/1
rescue             | fail for good      | waits   | refused: ready/1          | accepted: dead/1
rescue             | snooze             | waits   | refused: ready/1          | accepted: scheduled/0
rescue             | release            | waits   | refused: ready/1          | accepted: ready/0
rescue             | rescue             | waits   | nothing: ready/1          | taken back: ready/1
rescue             | cancel             | waits   | cancelled: cancelled/1    | asked: asked/1
rescue             | delete             | returns | running: ready/1          | running: running/1
rescue             | claim              | returns | nothing: ready/1          | nothing: running/1
cancel             | complete           | waits   | accepted: completed/1     | accepted: completed/1
cancel             | fail               | waits   | accepted: cancelled/1     | accepted: scheduled/1
cancel             | fail for good      | waits   | accepted: cancelled/1     | accepted: dead/1
cancel             | snooze             | waits   | accepted: cancelled/0     | accepted: scheduled/0
cancel             | release            | waits   | accepted: cancelled/0     | accepted: ready/0
cancel             | rescue             | waits   | taken back: cancelled/1   | taken back: ready/1
cancel             | cancel             | waits   | asked: asked/1            | asked: asked/1
cancel             | delete             | returns | running: asked/1          | running: running/1
delete             | complete           | returns | accepted: completed/1     | accepted: completed/1
delete             | fail               | returns | accepted: scheduled/1     | accepted: scheduled/1
delete             | fail for good      | returns | accepted: dead/1          | accepted: dead/1
delete             | snooze             | returns | accepted: scheduled/0     | accepted: scheduled/0
delete             | release            | returns | accepted: ready/0         | accepted: ready/0
delete             | rescue             | returns | taken back: ready/1       | taken back: ready/1
delete             | cancel             | returns | asked: asked/1            | asked: asked/1
delete             | delete             | returns | running: running/1        | running: running/1
rescue             | heartbeat          | waits   | not registered: ready/1   | registered: running/1
heartbeat          | rescue             | waits   | taken back: ready/1       | taken back: ready/1
forget the claim   | complete           | waits   | refused: ready/0          | accepted: completed/1
complete           | forget the claim   | waits   | nothing: completed/1      | given back: ready/0

[asked]
complete           | complete           | waits   | refused: completed/1      | accepted: completed/1
complete           | fail               | waits   | refused: completed/1      | accepted: cancelled/1
complete           | snooze             | waits   | refused: completed/1      | accepted: cancelled/0
complete           | release            | waits   | refused: completed/1      | accepted: cancelled/0
complete           | end as cancelled   | waits   | refused: completed/1      | accepted: cancelled/1
complete           | rescue             | waits   | nothing: completed/1      | taken back: cancelled/1
complete           | cancel             | waits   | finished: completed/1     | asked: asked/1
complete           | delete             | returns | running: completed/1      | running: asked/1
fail               | complete           | waits   | refused: cancelled/1      | accepted: completed/1
fail               | fail               | waits   | refused: cancelled/1      | accepted: cancelled/1
fail               | snooze             | waits   | refused: cancelled/1      | accepted: cancelled/0
fail               | release            | waits   | refused: cancelled/1      | accepted: cancelled/0
fail               | end as cancelled   | waits   | refused: cancelled/1      | accepted: cancelled/1
fail               | rescue             | waits   | nothing: cancelled/1      | taken back: cancelled/1
fail               | cancel             | waits   | finished: cancelled/1     | asked: asked/1
fail               | delete             | returns | running: cancelled/1      | running: asked/1
snooze             | complete           | waits   | refused: cancelled/0      | accepted: completed/1
snooze             | fail               | waits   | refused: cancelled/0      | accepted: cancelled/1
snooze             | snooze             | waits   | refused: cancelled/0      | accepted: cancelled/0
snooze             | release            | waits   | refused: cancelled/0      | accepted: cancelled/0
snooze             | end as cancelled   | waits   | refused: cancelled/0      | accepted: cancelled/1
snooze             | rescue             | waits   | nothing: cancelled/0      | taken back: cancelled/1
snooze             | cancel             | waits   | finished: cancelled/0     | asked: asked/1
snooze             | delete             | returns | running: cancelled/0      | running: asked/1
release            | complete           | waits   | refused: cancelled/0      | accepted: completed/1
release            | fail               | waits   | refused: cancelled/0      | accepted: cancelled/1
release            | snooze             | waits   | refused: cancelled/0      | accepted: cancelled/0
release            | release            | waits   | refused: cancelled/0      | accepted: cancelled/0
release            | end as cancelled   | waits   | refused: cancelled/0      | accepted: cancelled/1
release            | rescue             | waits   | nothing: cancelled/0      | taken back: cancelled/1
release            | cancel             | waits   | finished: cancelled/0     | asked: asked/1
release            | delete             | returns | running: cancelled/0      | running: asked/1
end as cancelled   | complete           | waits   | refused: cancelled/1      | accepted: completed/1
end as cancelled   | fail               | waits   | refused: cancelled/1      | accepted: cancelled/1
end as cancelled   | snooze             | waits   | refused: cancelled/1      | accepted: cancelled/0
end as cancelled   | release            | waits   | refused: cancelled/1      | accepted: cancelled/0
end as cancelled   | end as cancelled   | waits   | refused: cancelled/1      | accepted: cancelled/1
end as cancelled   | rescue             | waits   | nothing: cancelled/1      | taken back: cancelled/1
end as cancelled   | cancel             | waits   | finished: cancelled/1     | asked: asked/1
end as cancelled   | delete             | returns | running: cancelled/1      | running: asked/1
rescue             | complete           | waits   | refused: cancelled/1      | accepted: completed/1
rescue             | fail               | waits   | refused: cancelled/1      | accepted: cancelled/1
rescue             | snooze             | waits   | refused: cancelled/1      | accepted: cancelled/0
rescue             | release            | waits   | refused: cancelled/1      | accepted: cancelled/0
rescue             | end as cancelled   | waits   | refused: cancelled/1      | accepted: cancelled/1
rescue             | rescue             | waits   | nothing: cancelled/1      | taken back: cancelled/1
rescue             | cancel             | waits   | finished: cancelled/1     | asked: asked/1
rescue             | delete             | returns | running: cancelled/1      | running: asked/1
cancel             | complete           | waits   | accepted: completed/1     | accepted: completed/1
cancel             | fail               | waits   | accepted: cancelled/1     | accepted: cancelled/1
cancel             | snooze             | waits   | accepted: cancelled/0     | accepted: cancelled/0
cancel             | release            | waits   | accepted: cancelled/0     | accepted: cancelled/0
cancel             | end as cancelled   | waits   | accepted: cancelled/1     | accepted: cancelled/1
cancel             | rescue             | waits   | taken back: cancelled/1   | taken back: cancelled/1
cancel             | cancel             | waits   | asked: asked/1            | asked: asked/1
cancel             | delete             | returns | running: asked/1          | running: asked/1
delete             | complete           | returns | accepted: completed/1     | accepted: completed/1
delete             | fail               | returns | accepted: cancelled/1     | accepted: cancelled/1
delete             | snooze             | returns | accepted: cancelled/0     | accepted: cancelled/0
delete             | release            | returns | accepted: cancelled/0     | accepted: cancelled/0
delete             | end as cancelled   | returns | accepted: cancelled/1     | accepted: cancelled/1
delete             | rescue             | returns | taken back: cancelled/1   | taken back: cancelled/1
delete             | cancel             | returns | asked: asked/1            | asked: asked/1
delete             | delete             | returns | running: asked/1          | running: asked/1

[dead]
replay             | replay             | returns | nothing: ready/0          | nothing: dead/1
replay             | discard            | waits   | nothing: ready/0          | discarded: cancelled/1
replay             | cancel             | waits   | cancelled: cancelled/0    | cancelled: cancelled/1
replay             | delete             | waits   | deleted: gone             | deleted: gone
replay             | claim              | returns | nothing: ready/0          | nothing: dead/1
discard            | replay             | returns | nothing: cancelled/1      | nothing: dead/1
discard            | discard            | waits   | nothing: cancelled/1      | discarded: cancelled/1
discard            | cancel             | waits   | finished: cancelled/1     | cancelled: cancelled/1
discard            | delete             | waits   | deleted: gone             | deleted: gone
cancel             | replay             | returns | nothing: cancelled/1      | nothing: dead/1
cancel             | discard            | waits   | nothing: cancelled/1      | discarded: cancelled/1
cancel             | cancel             | waits   | finished: cancelled/1     | cancelled: cancelled/1
cancel             | delete             | waits   | deleted: gone             | deleted: gone
delete             | replay             | returns | nothing: gone             | nothing: dead/1
delete             | discard            | waits   | nothing: gone             | discarded: cancelled/1
delete             | cancel             | waits   | nothing: gone             | cancelled: cancelled/1
delete             | delete             | waits   | nothing: gone             | deleted: gone

[finished]
cancel             | cancel             | returns | finished: completed/1     | finished: completed/1
cancel             | delete             | returns | deleted: gone             | deleted: gone
delete             | cancel             | returns | finished: gone            | finished: completed/1
delete             | delete             | waits   | nothing: gone             | deleted: gone
"""


def _races() -> Iterator[Race]:
    state = ""
    for line in filter(None, _TABLE.splitlines()):
        if line.startswith("["):
            state = line.strip("[]")
            continue
        first, second, wait, if_committed, if_rolled_back = (cell.strip() for cell in line.split("|"))
        assert wait in ("waits", "returns")
        yield Race(state, first, second, wait == "waits", if_committed, if_rolled_back)


RACES = list(_races())
