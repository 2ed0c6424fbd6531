"""What a database has forgotten that came back in an earlier state: commits that were acknowledged, and are not there."""

from __future__ import annotations

import time

from tests.faults import tasks
from tests.faults.scene import Scene
from tests.worker.harness import Entry, History

BACK = 5.0
"""Seconds until work goes on: what is tried again every second, and the look of whoever leads."""


def probe(scene: Scene) -> None:
    """Notes how long it takes until a job that is enqueued now starts: its id may be one of which there is a start already."""
    since = time.monotonic()
    scene.tried(scene.again([scene.enqueue(tasks.plain)], since), within=BACK)


class Remembered(History):
    """The history as the database remembers it.

    What a forgotten transaction enqueued was never there. And where a job has started since the commits were lost, its starts
    from before are forgotten: once each it may start anew.
    """

    def __init__(self, history: History, forgotten: set[int], lost_at: float):
        super().__init__(history.folder)
        self._forgotten = forgotten
        self._lost_at = lost_at

    def entries(self, what: str | None = None, *jobs: int) -> list[Entry]:
        found = [entry for entry in super().entries() if entry.said.get("n") not in self._forgotten]
        anew = {entry.job for entry in found if entry.what == "start" and entry.at > self._lost_at}
        return [
            entry
            for entry in found
            if (entry.at > self._lost_at or entry.job not in anew)
            and (what is None or entry.what == what)
            and (not jobs or entry.job in jobs)
        ]

    def again(self) -> int:
        """How many of the jobs that are remembered ran to their end before, and started again after."""
        ended = {entry.job for entry in super().entries("end") if entry.at < self._lost_at}
        found = [entry for entry in super().entries("start") if entry.said.get("n") not in self._forgotten]
        return len({entry.job for entry in found if entry.at > self._lost_at and entry.job in ended})


def forget(scene: Scene, lost_at: float) -> tuple[int, int]:
    """Takes what the database has forgotten out of what is promised; how many jobs, and how many ran again.

    A transaction is forgotten whole, or not at all.
    """
    orders = {n for (n,) in scene.ask("select n from public.orders")}
    jobs = {n for (n,) in scene.ask("select (args ->> 'n')::bigint from pgqueue.finished_jobs")}
    acknowledged = scene.record.acknowledged
    forgotten = {n for n in acknowledged if n not in (orders if n >= 0 else jobs)}
    count = sum(len(acknowledged.pop(n)) for n in forgotten)
    assert not forgotten & jobs, "jobs of a transaction that is forgotten"
    history = Remembered(scene.history, forgotten, lost_at)
    again = history.again()
    scene.history = history
    return count, again
