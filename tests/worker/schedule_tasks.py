"""Two releases of an app that says in code what is due when."""

from __future__ import annotations

import pgqueue
from tests.worker.tasks import noted

OWNER = "tests.schedules"

first = pgqueue.App(name=OWNER)
second = pgqueue.App(name=OWNER)
"""The release after `first`."""
bare = pgqueue.App(name=OWNER)
"""A release without schedules."""


@first.schedule(name="leaves", every="1h")
@first.schedule(name="changes", cron="0 3 * * *")
@first.schedule(name="stays", cron="0 5 * * *", tz="Europe/Paris")
@first.schedule(name="taken", cron="0 6 * * *")
@first.schedule(name="starts", at_startup=True)
@first.task(name="note")
async def note_first(ctx: pgqueue.Context) -> None:
    with noted(ctx, schedule=ctx.schedule, due_at=str(ctx.due_at)):
        pass


@second.schedule(name="changes", cron="0 4 * * *")
@second.schedule(name="stays", cron="0 5 * * *", tz="Europe/Paris")
@second.schedule(name="comes", every="1m", args={"kind": "new"})
@second.task(name="note")
async def note_second(ctx: pgqueue.Context, kind: str = "") -> None:
    with noted(ctx, kind=kind):
        pass
