"""The board: memory that a child shares with its supervisor, so that a death explains itself.

One int64 per cell: the number of jobs in hand, then the ids of the jobs that have started and are not
settled. The supervisor reads it after the child is gone: what stands there had begun, the rest had not.
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
        self._memory = mmap.mmap(fd, (_HEADER + capacity) * 8)
        self._numbers = memoryview(self._memory).cast("q")
        self.cells = self._numbers[_HEADER:]
        """Ids of jobs that have started and are not settled; 0: free."""

    @classmethod
    def create(cls, capacity: int) -> Board:
        """A new board on an unnamed file, empty."""
        fd, path = tempfile.mkstemp(prefix="pgqueue-board-")
        os.unlink(path)
        os.ftruncate(fd, (_HEADER + capacity) * 8)
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

    def close(self) -> None:
        """Lets the memory and the descriptor go."""
        self.cells.release()
        self._numbers.release()
        self._memory.close()
        os.close(self.fd)
