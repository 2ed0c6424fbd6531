"""What runs while a dependency is down."""

from __future__ import annotations

import pgqueue
from pgqueue.retry import Exponential
from tests.faults.tasks import noted
from tests.worker.tasks import is_open

app = pgqueue.App(name="faults of a dependency")

WAIT = 4.0
"""Seconds until the second attempt, by and large."""
JITTER = 0.25


@app.task(retry=Exponential(base=WAIT, jitter=JITTER, attempts=10))
async def depends(ctx: pgqueue.Context, n: int, gate: str) -> None:
    """Asks a dependency that is down until the gate is open."""
    with noted(ctx, n):
        pass
    if not is_open(gate):
        raise ConnectionError("the dependency is down")
