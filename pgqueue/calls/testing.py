"""What tests call; granted to nobody."""

from __future__ import annotations

from pgqueue.calls.call import Call, Verb, scalar

TRAVEL = Verb("travel", (("seconds", "double precision"),))


def travel(seconds: float) -> Call[int]:
    """Moves the times of all that waits back by `seconds`; returns how many scheduled jobs are due."""
    return Call(TRAVEL, (repr(seconds),), scalar)
