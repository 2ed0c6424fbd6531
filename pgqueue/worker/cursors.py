"""Where the next claim starts in each lane, so that it does not walk over the dead entries of earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from operator import attrgetter

from pgqueue.job import ClaimedJob

LANES = 20
TRAIL_SECONDS = 0.2

_lane_of = attrgetter("queue", "lane")
_position_of = attrgetter("position")


class Start(Enum):
    """Where a claim starts in the lanes of one queue."""

    HEAD = "past all that this worker has claimed"
    TRAIL = "where the head was a moment ago"
    FLOOR = "at the lanes' proven floors"


class Cursors:
    """This worker's private hints; 0 stands for a lane's floor, which the database knows.

    A lower position may commit later than a higher one that was claimed, so starting at the *head* is right
    only while a backlog is being drained. A claim that came back short starts the next one at the *trail*:
    the head of 0.2 to 0.4 s ago, which most late committers are above. What is later still is found by a
    walk from the *floor*: every 0.5 s, or ten times what the last walk took, and before each sleep.
    """

    def __init__(self, queues: Sequence[str]):
        self._head = {queue: [0] * LANES for queue in queues}
        self._trail = self._copy()
        self._next_trail = self._copy()
        self._trail_at = 0.0
        self._walk_at = 0.0
        self._start = dict.fromkeys(queues, Start.FLOOR)

    def begin(self, now: float) -> None:
        """A claim is about to be made."""
        if now - self._trail_at >= TRAIL_SECONDS:
            self._trail, self._next_trail, self._trail_at = self._next_trail, self._copy(), now
        if now >= self._walk_at:
            self._start = dict.fromkeys(self._start, Start.FLOOR)

    def positions(self, queues: Sequence[str]) -> list[int]:
        """The cursors of `queues`, 20 a queue, in that order."""
        return [position for queue in queues for position in self._lanes(queue)]

    def walks(self, queues: Sequence[str]) -> bool:
        """Whether a claim of `queues` starts at the floor of every lane."""
        return all(self._start[queue] is Start.FLOOR for queue in queues)

    def walked(self, seconds: float, now: float) -> None:
        """A walk from the floors took `seconds`."""
        self._walk_at = now + max(0.5, 10 * seconds)

    def move(self, jobs: Sequence[ClaimedJob]) -> None:
        """Past the jobs of a claim, which has committed."""
        # They come in order within a lane: the last position of each wins.
        for (queue, lane), position in dict(
            zip(map(_lane_of, jobs), map(_position_of, jobs), strict=True)
        ).items():
            head = self._head[queue]
            head[lane] = max(head[lane], position + 1)

    def start_at(self, start: Start, queue: str) -> None:
        """Where the next claim of `queue` starts."""
        self._start[queue] = start

    def _lanes(self, queue: str) -> list[int]:
        match self._start[queue]:
            case Start.HEAD:
                return self._head[queue]
            case Start.TRAIL:
                return self._trail[queue]
            case Start.FLOOR:
                return [0] * LANES

    def _copy(self) -> dict[str, list[int]]:
        return {queue: list(lanes) for queue, lanes in self._head.items()}
