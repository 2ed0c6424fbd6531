"""The board: memory that a child shares with its supervisor, so that a death explains itself.

int64s: the number of jobs in hand, then the ids of the jobs that have started and are not settled, then for
each of those the moment (`time.monotonic_ns()`) at which its time is over, 0: never. The supervisor reads the ids
after the child is gone: what stands there had begun, the rest had not; and the moments while it lives, for a handler
that blocks the child's loop cannot be ended from inside.
"""

from __future__ import annotations

import mmap
import os
import tempfile

_HEADER = 1


class Board:
    """A board of `capacity` cells over an inherited file descriptor.

    Writes are single aligned 8-byte stores, so a reader never sees half an id.
    """

    def __init__(self, fd: int, capacity: int):
        self.fd = fd
        self.capacity = capacity
        self._memory = mmap.mmap(fd, (_HEADER + 2 * capacity) * 8)
        self._numbers = memoryview(self._memory).cast("q")
        self.cells = self._numbers[_HEADER : _HEADER + capacity]
        """Ids of jobs that have started and are not settled; 0: free."""
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

    def started(self) -> list[int]:
        """The ids of the jobs that have started and are not settled."""
        return [job_id for job_id in self.cells if job_id]

    def overdue(self, now: int) -> list[int]:
        """The ids of the jobs whose time was over at `now`, of `time.monotonic_ns()`."""
        return [id for id, due in zip(self.cells, self.deadlines, strict=True) if 0 < due <= now and id]

    def close(self) -> None:
        """Lets the memory and the descriptor go."""
        self.cells.release()
        self.deadlines.release()
        self._numbers.release()
        self._memory.close()
        os.close(self.fd)
