"""Brings the schedules that an app's code defines to the database, once, when a worker starts."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import msgspec
import psycopg
import structlog

from pgqueue import calls
from pgqueue.app import App
from pgqueue.error_text import safe_text
from pgqueue.errors import ConfigurationError, InvalidJob
from pgqueue.schedule import Schedule
from pgqueue.worker.link import Link

log = structlog.get_logger("pgqueue.worker")

_REMEDIES = {
    "foreign": "it was made by hand or belongs to an app of another name, and is left as it is: `pgqueue schedules delete` "
    "it, and the next start makes the one of the code; or give one of the two schedules another name",
    "refused": "none of the app's schedules was brought to what its code says: mend it, and start the worker anew",
}


class Schedules:
    """The schedules of `app`, to be brought to the database over a connection of their own."""

    def __init__(self, app: App, *, dsn: str, worker_id: int, pooled: bool):
        self._app = app
        # Of its own: this may wait for a row that somebody else holds, and neither claims nor endings shall.
        self._link = Link(dsn, name=f"pgqueue worker {worker_id} schedules", pooled=pooled)

    async def run_once(self) -> None:
        """Adds, changes and removes schedules until the database has done it, and logs what became of each."""
        app = self._app
        try:
            sync = calls.sync_schedules(app.name, definitions(app.schedules.values()), starts=True)
            outcomes, _ = await self._link.persist(sync)
        except (psycopg.DataError, InvalidJob) as error:
            log.error(
                "schedules.refused", owner=app.name, error=safe_text(error, 500), remedy=_REMEDIES["refused"]
            )
            return
        finally:
            await self._link.close()
        for name, outcome in outcomes:
            if outcome == "foreign":
                log.warning("schedule.foreign", schedule=name, owner=app.name, remedy=_REMEDIES["foreign"])
            elif outcome != "unchanged":
                event = (
                    "schedule.created"
                    if outcome == "created"
                    else "schedule.changed"
                    if outcome == "changed"
                    else "schedule.removed"
                )
                log.info(event, schedule=name, owner=app.name)
        log.debug("schedules.brought", owner=app.name, schedules=len(app.schedules))


def definitions(schedules: Iterable[Schedule]) -> str:
    """Schedules as the JSON that `pgqueue.sync_schedules()` takes."""
    return msgspec.json.encode([_definition(schedule) for schedule in schedules]).decode()


def _definition(schedule: Schedule) -> dict[str, Any]:
    stored = {"name": schedule.name, **schedule.stored()}
    return stored | {
        name: msgspec.Raw(stored[name].encode()) for name in ("args", "options") if name in stored
    }


def check_name(app: App) -> None:
    """Raises `ConfigurationError` when another app of the app's module has its name.

    Each would remove the schedules of the other.
    """
    beside = getattr(sys.modules.get(app.name), "__dict__", {})
    for variable, other in list(beside.items()):
        is_twin = isinstance(other, App) and other is not app and other.name == app.name
        if is_twin and (app.schedules or other.schedules):
            raise ConfigurationError(
                f"module {app.name} has another app, {variable}, and schedules belong to an app by its name: say "
                "App(name=…) for one of the two"
            )
