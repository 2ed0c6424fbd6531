"""What a worker works by, and what a supervisor and its child say to each other."""

from __future__ import annotations

from typing import Any

import msgspec

EXIT_CONFIGURATION = 78
"""A child's exit code when starting it again cannot help; EX_CONFIG of sysexits.h."""

EXIT_REPLACE = 75
"""A child's exit code when it has ended by itself, to be replaced: its threads are stuck. EX_TEMPFAIL."""


READY, READY_FOR_ALERTS = b"1", b"2"
"""What a child says when it has come to work; the second: its app has hooks for alerts."""


POKE = b"!"
"""Tells a child to look for jobs; it may come between any two bytes of what else it is told."""

REWOUND = b"rewound"
"""Tells a child, on a line, that the database may have come back in an earlier state."""


class QueueTerms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What operators have set for a queue that concerns its workers."""

    limit: int | None = None
    """Slots of each worker at the most."""
    timeout: float | None = None
    """Seconds, for jobs of which neither the task nor the enqueue says."""


class Terms(msgspec.Struct, frozen=True):
    """What the services of one worker work by. `app` is what log lines call the app."""

    worker_id: int
    dsn: str
    app: str
    limits: dict[str, int | None]
    concurrency: int
    drain_limit: float
    listens: bool
    poll_interval: float
    transactional_connections: int
    block_threshold: float
    queue_terms: dict[str, QueueTerms]
    """By queue, what it is at the start; what changes later is told."""
    starts: bool
    """Whether this is the start of a worker, and not of one more process, or of one in the place of another."""


class Orders(Terms, frozen=True):
    """What the supervisor tells a child. Never in the command line: it holds the DSN."""

    task_processes: int | None
    board_fd: int
    figures_fd: int
    """Where to report what jobs came to; -1: nobody wants to know."""
    ready_fd: int
    log_format: str
    log_level: str


def line(said: Any) -> bytes:
    """A line of JSON for a child, in which nothing looks like a poke."""
    return msgspec.json.encode(said).replace(POKE, b"\\u0021") + b"\n"
