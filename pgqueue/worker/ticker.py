"""The leader's part in schedules: their due times are computed here, and written by compare-and-set."""

from __future__ import annotations

import time

import structlog

from pgqueue import calls
from pgqueue.error_text import safe_text
from pgqueue.errors import DatabaseUnavailable, InvalidJob
from pgqueue.plan import DueSchedule, Plan, plan
from pgqueue.worker.link import OUTAGES, Link

log = structlog.get_logger("pgqueue.worker")

REST_SECONDS = 5.0
"""A schedule that could not be ticked is left alone for so long: it shall stop no other."""


class Ticker:
    """Ticks what is due, over `link`. Safe to be run by several at once, and by one that leads no more."""

    def __init__(self, link: Link):
        self._link = link
        self._resting: dict[str, float] = {}
        """Until when (`time.monotonic()`) schedules that could not be ticked are left alone."""

    async def run_once(self) -> bool:
        """Ticks each schedule that is due, by itself; whether any has moved on."""
        has_moved = False
        for schedule in await self._link.run(calls.due_schedules()):
            if time.monotonic() < self._resting.get(schedule.name, 0.0):
                continue
            self._resting.pop(schedule.name, None)
            try:
                made = await self._tick(schedule)
            except DatabaseUnavailable:
                raise
            except OUTAGES as error:
                self._resting[schedule.name] = time.monotonic() + REST_SECONDS
                log.error("schedule.refused", schedule=schedule.name, error=safe_text(error, 500))
            else:
                # None: somebody else's open transaction may hold it, and it is due until that ends
                has_moved = has_moved or made is not None
                if made:
                    log.info("schedule.ticked", schedule=schedule.name, jobs=made)
        return has_moved

    async def _tick(self, schedule: DueSchedule) -> int | None:
        try:
            return await self._link.run(calls.tick(schedule, plan(schedule)))
        except InvalidJob as error:  # an expression that SQL has stored unread, or a job that is refused
            problem = safe_text(error, 500)
            log.error(
                "schedule.broken",
                schedule=schedule.name,
                problem=problem,
                remedy="change it, or resume it when the reason is gone: it does not run until then",
            )
            return await self._link.run(calls.tick(schedule, Plan((), None), problem))
