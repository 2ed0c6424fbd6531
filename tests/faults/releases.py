"""Eight releases of an app, which differ in what their code says of one schedule: when its job is due, and with which args."""

from __future__ import annotations

import pgqueue
from tests.faults.scene import BEAT
from tests.worker.tasks import note

COUNT = 8


def release(number: int) -> pgqueue.App:
    """One release: every second or, the even ones, every other second."""
    app = pgqueue.App(name="several releases")

    @app.schedule(
        name="beat", every=1 + (number + 1) % 2, args={"n": BEAT, "said_by": number}, overlap="allow"
    )
    @app.task(name="beat", queue="beat")
    async def beat(ctx: pgqueue.Context, n: int, said_by: int) -> None:
        note(ctx, "start", n=n, said_by=said_by)
        note(ctx, "end")

    return app


releases = [release(number) for number in range(1, COUNT + 1)]
release_1, release_2, release_3, release_4, release_5, release_6, release_7, release_8 = releases
