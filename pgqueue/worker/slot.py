"""One slot: the job that is in it, and what has been asked of its attempt from outside."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any

from pgqueue.job import ClaimedJob

NEVER = 2**63 - 1
"""A deadline that does not come."""


class Stop(Enum):
    """Why an attempt is to end before its handler does."""

    DRAIN = "the worker stops"
    CANCEL = "the job was cancelled"
    TIMEOUT = "the attempt took too long"


class Slot:
    """What the slot's own runner, the sweeper and a request to cancel know of each other.

    - `job`, `cell`: what is in the slot now, and its cell on the board; `job` is None while the slot is idle.
    - `deadline`: when (`time.monotonic_ns()`) something is due for this attempt; None: nothing.
    - `stop`: why the attempt is to end early; None: it is not.
    - `is_settled`: the attempt was ended without its handler, which still occupies the slot.
    - `reports`: who takes what handlers say while they run; None: nobody.
    """

    __slots__ = ("cell", "deadline", "is_settled", "job", "number", "reports", "runner", "stop")

    def __init__(self, number: int, reports: Any = None):
        self.number = number
        self.reports = reports
        self.runner: asyncio.Task[Any]
        self.job: ClaimedJob | None = None
        self.cell = 0
        self.deadline: int | None = None
        self.stop: Stop | None = None
        self.is_settled = False

    def interrupt(self, stop: Stop) -> None:
        """Cancels the handler, which gets its chance to clean up."""
        self.stop = stop
        self.runner.cancel()
