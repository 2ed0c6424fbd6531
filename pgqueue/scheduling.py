"""What `App` offers for schedules: to define them in code, and to make, pause, run and delete them while all runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Unpack, overload

from pgqueue import calls
from pgqueue.calls import Call
from pgqueue.drivers import run
from pgqueue.error_text import did_you_mean, safe_repr
from pgqueue.errors import ConfigurationError, UnknownSchedule
from pgqueue.job import Job
from pgqueue.pools import OwnConnections
from pgqueue.schedule import Schedule, ScheduleOptions, T, make_schedule
from pgqueue.task import Enqueueable


class Scheduling:
    """The part of `App` that is about schedules."""

    _own: OwnConnections
    _schedules: dict[str, Schedule]

    @overload
    def schedule(
        self,
        name: str,
        task: Enqueueable[Any],
        /,
        *,
        args: Mapping[str, Any] | None = None,
        **rule: Unpack[ScheduleOptions],
    ) -> Schedule: ...
    @overload
    def schedule(
        self,
        /,
        *,
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        **rule: Unpack[ScheduleOptions],
    ) -> Callable[[T], T]: ...
    def schedule(
        self, /, *named: Any, name: str | None = None, args: Mapping[str, Any] | None = None, **rule: Any
    ) -> Any:
        """Defines a schedule: jobs of a task that are enqueued at due times, once each, however many workers there are.

            @app.schedule(cron="0 3 * * *", tz="Europe/Paris")
            @app.task
            async def clean_up() -> None: ...

            app.schedule("refresh rates", refresh.using(queue="slow"), every="30s", args={"base": "EUR"})

        The decorator goes above `@app.task`, any number of times, and returns the task; the schedule is named after the
        task unless `name` says otherwise. Called with a name and a task, with its options if there are some, it returns
        the `Schedule`. What the code defines comes to the database when a worker of the app starts; there it can be
        paused, and is removed when the code does not define it any more. `App(name=…)` says whose it is.

        When it is due, one of:

        - `cron`: five fields (minute, hour, day, month, weekday) or `@daily` and its kin, by the clock of the zone `tz`
          ("UTC" by default). Six fields, when `seconds` says where the seconds stand: "first" or "last".
        - `every`: a duration of at least a second, counted from `starts_at` or from the moment at which the schedule was
          made.
        - `at`: once, at a datetime with a time zone.
        - `at_startup=True`: when a worker of the app starts; starts within `grace` of each other count as one.

        And:

        - `args`: the arguments of its jobs, checked as an enqueue checks them.
        - `starts_at`, `ends_at`: datetimes with a time zone. No due time lies before the one, or after the other.
        - `jitter`: each job starts later by a random part of this duration.
        - `grace`: a due time that is late by no more than this, 15 s by default, counts as on time.
        - `missed`: what becomes of due times that were missed, because no worker ran: "once", the default (the latest
          one runs), "skip" (none), "all" (the latest `missed_limit` of them, 100 by default, at most 1000).
        - `overlap`: while the last job of the schedule is unfinished: "allow" another one, the default, "skip" the due
          time, or "queue" one job behind it.

        A handler finds `ctx.schedule` and `ctx.due_at`. The hooks of `enqueued` are not told: the database enqueues.

        Raises `InvalidOption` for what cannot be, `InvalidArgs`, and `ConfigurationError` for a name that is taken.
        """
        if not named:

            def register(task: T) -> T:
                self._add(make_schedule(name, task, args, rule))
                return task

            return register
        if len(named) != 2 or not isinstance(named[0], str) or name is not None:
            raise ConfigurationError(
                f"app.schedule: expected a name and a task, or none of them as a decorator with parentheses, got "
                f"{', '.join(map(safe_repr, named))}: app.schedule('nightly', task, cron='0 3 * * *'), or "
                "@app.schedule(cron='0 3 * * *') above @app.task"
            )
        return self._add(make_schedule(named[0], named[1], args, rule))

    def _add(self, schedule: Schedule) -> Schedule:
        self._check_own(schedule)
        if (other := self._schedules.get(schedule.name)) is not None:
            raise ConfigurationError(
                f"two schedules are called {schedule.name}: the one of task {other.task.task.name}, {other.rule}, and "
                f"the one of task {schedule.task.task.name}, {schedule.rule}. Give one of them another name=…"
            )
        self._schedules[schedule.name] = schedule
        return schedule

    def _check_own(self, schedule: Schedule) -> None:
        if schedule.task.task.app is not self:
            raise ConfigurationError(
                f"{schedule}: the task is not one of this app, whose workers do not have it: schedule it with its own"
            )

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """The schedules that the code defines, by name. The database may have others, and may have paused some."""
        return MappingProxyType(self._schedules)

    # While all runs

    def add_schedule(
        self,
        name: str,
        task: Enqueueable[Any],
        /,
        *,
        args: Mapping[str, Any] | None = None,
        **rule: Unpack[ScheduleOptions],
    ) -> str:
        """Makes or changes a schedule in the database, at once: "created", "changed" or "unchanged".

            app.add_schedule(f"report {user.id}", report, cron="0 8 * * mon", args={"user_id": user.id})

        For those that come and go with the data. It takes what `schedule` takes, but for `at_startup`. No worker's start
        removes it: `unschedule` does. A schedule of that name that code defines is changed, and not brought back
        to what the code says.

        In a transaction of your own: `pgqueue.schedule()` in SQL. Raises what `schedule` raises, and `InvalidOption`
        for an `at` that has passed.
        """
        call = self._put(name, task, args, rule)
        with self._own.connection() as connection:
            return run(connection, call)

    async def add_schedule_async(
        self,
        name: str,
        task: Enqueueable[Any],
        /,
        *,
        args: Mapping[str, Any] | None = None,
        **rule: Unpack[ScheduleOptions],
    ) -> str:
        """`add_schedule` for code in an event loop."""
        call = self._put(name, task, args, rule)
        async with self._own.async_connection() as connection:
            return await run(connection, call)

    def _put(
        self, name: str, task: Any, args: Mapping[str, Any] | None, rule: Mapping[str, Any]
    ) -> Call[str]:
        schedule = make_schedule(name, task, args, rule)
        self._check_own(schedule)
        if schedule.rule.at_startup:
            raise ConfigurationError(
                f"schedule {name}: at_startup is for schedules that code defines: app.schedule(…)"
            )
        return calls.schedule(schedule.name, schedule.stored())

    def unschedule(self, name: str) -> bool:
        """Deletes a schedule and its history; whether there was one. Its jobs stay.

        One that code defines comes back when a worker of that app starts.
        """
        with self._own.connection() as connection:
            return run(connection, calls.unschedule(name))

    async def unschedule_async(self, name: str) -> bool:
        """`unschedule` for code in an event loop."""
        async with self._own.async_connection() as connection:
            return await run(connection, calls.unschedule(name))

    def pause_schedule(self, name: str) -> None:
        """Lets the due times of a schedule pass: they do not run, and do not count as missed. A deploy leaves it paused.

        Raises `UnknownSchedule`.
        """
        with self._own.connection() as connection:
            self._found(name, run(connection, calls.pause_schedule(name)))

    async def pause_schedule_async(self, name: str) -> None:
        """`pause_schedule` for code in an event loop."""
        async with self._own.async_connection() as connection:
            self._found(name, await run(connection, calls.pause_schedule(name)))

    def resume_schedule(self, name: str) -> None:
        """Lets a schedule run again that was paused, or that a problem has stopped. Due times count from now on.

        Raises `UnknownSchedule`.
        """
        with self._own.connection() as connection:
            self._found(name, run(connection, calls.resume_schedule(name)))

    async def resume_schedule_async(self, name: str) -> None:
        """`resume_schedule` for code in an event loop."""
        async with self._own.async_connection() as connection:
            self._found(name, await run(connection, calls.resume_schedule(name)))

    def run_schedule(self, name: str) -> Job:
        """Enqueues the job of a schedule now, beside its due times, also while it is paused.

        `created` is False when its last job is unfinished and `overlap` lets no other one run beside it: the job is
        then that one, or with "queue" the one that waits behind it. Raises `UnknownSchedule`.
        """
        with self._own.connection() as connection:
            ran = run(connection, calls.run_schedule(name))
        return self._job(name, ran)

    async def run_schedule_async(self, name: str) -> Job:
        """`run_schedule` for code in an event loop."""
        async with self._own.async_connection() as connection:
            ran = await run(connection, calls.run_schedule(name))
        return self._job(name, ran)

    def _job(self, name: str, ran: tuple[int, str] | None) -> Job:
        self._found(name, ran is not None)
        assert ran is not None
        id, outcome = ran
        return Job(id=id, created=outcome == "by_hand")

    def _found(self, name: str, is_there: bool) -> None:
        if not is_there:
            raise UnknownSchedule(
                f"there is no schedule {safe_repr(name)}{did_you_mean(str(name), self._schedules)}"
            )


def module_name(made: object, frame: FrameType | None) -> str:
    """The module whose code makes an object: `frame` is where its class was called, or a subclass of it.

    A script that is run has the name that it would have if it were imported: `python -m shop.tasks` and
    `pgqueue worker shop.tasks:app` name the same.
    """
    while (
        frame is not None
        and frame.f_code.co_name == "__init__"
        and any(value is made for value in frame.f_locals.values())
    ):
        frame = frame.f_back
    known: Mapping[str, Any] = {} if frame is None else frame.f_globals
    name = known.get("__name__", "__main__")
    if name != "__main__":
        return str(name)
    if (spec := known.get("__spec__")) is not None:
        return str(spec.name).removesuffix(".__main__")
    return Path(known.get("__file__", name)).stem
