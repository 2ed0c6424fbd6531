"""What a queue keeps no longer goes: old days whole, the rest in steps with a pause after each."""

from __future__ import annotations

import asyncio
import time

import structlog

from pgqueue import calls
from pgqueue.worker.link import OUTAGES, Link, OutageLog

log = structlog.get_logger("pgqueue.worker")

PAUSE_SECONDS = 0.02
"""After each step at least; else as long as the step took, so that half of a connection's time is the most it takes."""


class Retention:
    """Drops and trims over `link`, which others use between the steps."""

    def __init__(self, link: Link):
        self._link = link
        self._outages = OutageLog("retention")
        self._due = asyncio.Event()

    def due(self) -> None:
        """A round has found that something may have to go."""
        self._due.set()

    async def run(self) -> None:
        """Does what is due, until cancelled. What fails is tried again when a round finds it due."""
        while True:
            await self._due.wait()
            try:
                await self._drop_days()
                await self._trim()
            except OUTAGES as error:
                self._outages.report(error)
            self._due.clear()  # after the work: rounds meanwhile have found due what was under way

    async def _drop_days(self) -> None:
        while True:
            began = time.monotonic()
            day = await self._link.run(calls.drop_day())
            if day.blocked_by:
                log.info("retention.blocked", blocked_by=day.blocked_by)
            if day.dropped is None:
                return
            log.info("retention.dropped", partition=day.dropped)
            await _pause(began)

    async def _trim(self) -> None:
        jobs = 0
        more = True
        while more:
            began = time.monotonic()
            step = await self._link.run(calls.trim_history())
            jobs, more = jobs + step.jobs, step.more
            await _pause(began)
        if jobs:
            log.info("retention.trimmed", jobs=jobs)


async def _pause(began: float) -> None:
    await asyncio.sleep(max(PAUSE_SECONDS, time.monotonic() - began))
