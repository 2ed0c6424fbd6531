"""The board: memory that a child shares with its supervisor, so that a death explains itself.

int64s: the number of jobs in hand, whether the child has left by itself, then the ids of the jobs that have started and are not settled, negative for
those that run apart, in a process of their own, then for each of those the moment (`time.monotonic_ns()`) at which its
time is over, 0: never. The supervisor reads the ids after the child is gone: what stands there had begun, the rest had
not; and the moments while it lives, for a handler that blocks the child's loop cannot be ended from inside.
"""

from __future__ import annotations

import mmap
import os
import tempfile

_HEADER = 2
_APART_NS = 6_000_000_000
"""A job that runs apart is ended by killing its process, which takes longer than cancelling a handler."""


class Board:
    """A board of `capacity` cells over an inherited file descriptor; -1: memory of this process alone.

    Writes are single aligned 8-byte stores, so a reader never sees half an id.
    """

    def __init__(self, fd: int, capacity: int):
        self.fd = fd
        self.capacity = capacity
        self._memory = mmap.mmap(fd, (_HEADER + 2 * capacity) * 8)
        self._numbers = memoryview(self._memory).cast("q")
        self.cells = self._numbers[_HEADER : _HEADER + capacity]
        """Ids of jobs that have started and are not settled, negative: apart; 0: free, or not started."""
        self.deadlines = self._numbers[_HEADER + capacity :]
        """When the time of the job in the same cell is over; 0: never."""

    @classmethod
    def create(cls, capacity: int) -> Board:
        """A new board on an unnamed file, empty."""
        fd, path = tempfile.mkstemp(prefix="pgqueue-board-")
        os.unlink(path)
        os.ftruncate(fd, (_HEADER + 2 * capacity) * 8)
        return cls(fd, capacity)

    @property
    def in_hand(self) -> int:
        """Jobs that the child has claimed and not settled."""
        return self._numbers[0]

    @in_hand.setter
    def in_hand(self, count: int) -> None:
        self._numbers[0] = count

    @property
    def has_left(self) -> bool:
        """Whether the child ended by itself, after it had settled what it could; an exit code may be a handler's."""
        return bool(self._numbers[1])

    def leave(self) -> None:
        """The child's last word."""
        self._numbers[1] = 1

    def started(self) -> list[int]:
        """The ids of the jobs that have started in the child itself and are not settled: it may have died of them."""
        return [job_id for job_id in self.cells if job_id > 0]

    def apart(self) -> list[int]:
        """The ids of the jobs that have started apart from the child, and are not settled."""
        return [-job_id for job_id in self.cells if job_id < 0]

    def overdue(self, now: int) -> list[int]:
        """The ids of the jobs whose time was over at `now`, of `time.monotonic_ns()`; negative: apart."""
        return [
            id
            for id, due in zip(self.cells, self.deadlines, strict=True)
            if 0 < due <= (now if id > 0 else now - _APART_NS) and id
        ]

    def close(self) -> None:
        """Lets the memory and the descriptor go."""
        self.cells.release()
        self.deadlines.release()
        self._numbers.release()
        self._memory.close()
        if self.fd >= 0:
            os.close(self.fd)
