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
        self._cells = memoryview(self._memory).cast("q")

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
        return self._cells[0]

    @in_hand.setter
    def in_hand(self, count: int) -> None:
        self._cells[0] = count

    def write(self, cell: int, job_id: int) -> None:
        """Says that a job has started, or with 0 that the one in this cell is settled."""
        self._cells[_HEADER + cell] = job_id

    def started(self) -> list[int]:
        """The ids of the jobs that have started and are not settled."""
        return [job_id for job_id in self._cells[_HEADER:] if job_id]

    def close(self) -> None:
        """Lets the memory and the descriptor go."""
        self._cells.release()
        self._memory.close()
        os.close(self.fd)
