"""Tells hooks what becomes of a worker's jobs: beside the jobs, bounded, and without a way back.

Whatever is said here is said by those who have something better to do (a slot, the settler), so `tell` only
puts the event down. Lanes of the loop take it from there, all events of one job by the same lane, so that they
are told in order.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog

from pgqueue.calls import CrashedJob
from pgqueue.error_text import ErrorText
from pgqueue.errors import CannotDecrypt, ConfigurationError
from pgqueue.hooks import (
    EVENTS,
    Alert,
    Cancelled,
    Dead,
    Failed,
    Hook,
    Hooks,
    JobEvent,
    Rescued,
    Retried,
    Started,
    Succeeded,
    args_of,
    hook_name,
    is_async,
    report,
    subject,
)
from pgqueue.job import ClaimedJob
from pgqueue.task import Task
from pgqueue.worker.executors.threads import Threads

log = structlog.get_logger("pgqueue.hooks")

LANES = 8
"""Hooks that are under way at the same time, at the most."""
BACKLOG = 5_000
"""Events that may wait for their hooks; what comes beyond is dropped, and said."""
HOOK_SECONDS = 30.0
"""What a hook may take, before nobody waits for it any more."""
CLOSE_SECONDS = 2.0
"""What hooks get at a worker's end to hear of what has happened."""

_OF_ENDING = {"complete": ("succeeded",), "fail": ("failed", "retried", "dead"), "cancel": ("cancelled",)}


class Telling:
    """The hooks of an app and its tasks, and the lanes that call them.

    Which task has which hooks is looked up once, here: tasks without hooks are told from the others by a look
    into a set.
    """

    def __init__(self, tasks: Mapping[str, Task[..., Any]], app_hooks: Hooks):
        self._hooks: dict[type[JobEvent], dict[str, tuple[Hook, ...]]] = {}
        for name, kind in EVENTS.items():
            of_tasks = {
                task.name: (*app_hooks.of(name), *task.hooks.of(name))
                for task in tasks.values()
                if app_hooks.of(name) or task.hooks.of(name)
            }
            self._hooks[kind] = of_tasks
        self._tasks = tasks
        self._alert_hooks = tuple(app_hooks.of("alert"))
        self._watched = {
            verb: frozenset[str]().union(*(self.watched(name) for name in names))
            for verb, names in _OF_ENDING.items()
        }
        self._lanes = [_Lane() for _ in range(LANES)]
        self._threads: Threads | None = None
        self._waiting = 0
        self._dropped = 0
        self._said_dropped_at = 0.0
        self._serving: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[None]] = set()

    def watched(self, event: str) -> Collection[str]:
        """The names of the tasks that have a hook for an event."""
        return self._hooks[EVENTS[event]].keys()

    @property
    def hears_alerts(self) -> bool:
        """Whether the app has hooks for alerts."""
        return bool(self._alert_hooks)

    # What is said

    def started(self, job: ClaimedJob) -> None:
        """An attempt begins. Said of jobs of watched tasks only."""
        self.tell(Started(**_attempt_of(job)))

    def succeeded(self, job: ClaimedJob) -> None:
        """An attempt has completed its job in its own transaction. Said of jobs of watched tasks only."""
        self.tell(Succeeded(**_attempt_of(job)))

    def cancelled(self, job: ClaimedJob, reason: str | None) -> None:
        """A job was ended as cancelled."""
        if job.task in self._watched["cancel"]:
            self.tell(Cancelled(**_attempt_of(job), reason=reason))

    def ended(self, verb: str, batch: Sequence[tuple[Any, ...]], accepted: Collection[int]) -> None:
        """The settler has recorded a batch of endings; those of `accepted` ids count."""
        watched = self._watched.get(verb)
        if not watched:
            return
        kept = set(accepted)
        for job, _, *how in batch:
            if job.task in watched and job.id in kept:
                kept.discard(job.id)  # the claim before this one may be in the same batch, its lease lost
                match verb:
                    case "complete":
                        self.succeeded(job)
                    case "cancel":
                        self.cancelled(job, how[0])
                    case "fail":
                        self._failed(job, how[0].error, how[0].delay, how[0].reason)

    def _failed(self, job: ClaimedJob, error: ErrorText, delay: float | None, reason: str) -> None:
        attempt = _attempt_of(job)
        self.tell(Failed(**attempt, error=error, retry_in=delay))
        if delay is None:
            self.tell(Dead(**attempt, error=error, reason=reason))
        else:
            self.tell(Retried(**attempt, error=error, delay=delay))

    @property
    def tells_of_crashes(self) -> bool:
        """Whether some task has a hook for what a crash leads to."""
        return bool(self.watched("rescued") or self.watched("dead"))

    def crashed(self, jobs: Iterable[CrashedJob]) -> None:
        """Whoever looks after this worker has taken these jobs back from dead ones."""
        for job in jobs:
            error = ErrorText(job.error, job.message, "", "crashed")
            attempt = _attempt_of(self._opened(job))
            if job.dead_reason is None:
                self.tell(Rescued(**attempt, crashes=job.crashes, error=error))
            else:
                self.tell(Dead(**attempt, error=error, reason=job.dead_reason))

    def _opened(self, job: CrashedJob) -> CrashedJob:
        task = self._tasks.get(job.task)
        if task is None:
            return job
        try:
            return job._replace(args=task.unseal(job.args, "args", job.queue))
        except (CannotDecrypt, ConfigurationError):
            return job  # nobody may be kept from being told

    def alert(self, alerts: Iterable[Alert]) -> None:
        """Checks of health have failed, or do not fail any more. One lane tells all of it, in order."""
        for alert in alerts:
            self._put(self._alert_hooks, alert, self._lanes[0])

    def tell(self, event: JobEvent) -> None:
        """Puts an event down for its hooks; there may be none. Never raises, and never waits."""
        hooks = self._hooks[type(event)].get(event.task)
        if hooks:
            self._put(hooks, event, self._lanes[event.id % LANES])

    def _put(self, hooks: tuple[Hook, ...], event: JobEvent | Alert, lane: _Lane) -> None:
        if not hooks:
            return
        if self._waiting >= BACKLOG:
            self._drop()
            return
        self._waiting += 1
        lane.events.append((hooks, event))
        lane.wanted.set()

    def _drop(self) -> None:
        self._dropped += 1
        if time.monotonic() - self._said_dropped_at > 1.0:
            self._say_dropped(f"hooks are slower than jobs: {BACKLOG:,} events wait for them")

    def _say_dropped(self, why: str) -> None:
        log.error("hooks.dropped", events=self._dropped, why=why)
        self._dropped, self._said_dropped_at = 0, time.monotonic()

    # The lanes

    def start(self) -> None:
        """Begins to call hooks, if there are any that a worker calls."""
        if self._alert_hooks or any(of_tasks for of_tasks in self._hooks.values()):
            self._serving = [
                asyncio.create_task(self._serve(lane), name="pgqueue hooks", context=contextvars.Context())
                for lane in self._lanes
            ]

    async def close(self) -> None:
        """Waits until all that was told has been heard, for a few seconds at most."""
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._waiting and time.monotonic() < deadline:  # noqa: ASYNC110 - hooks are told, and asked nothing
            await asyncio.sleep(0.01)
        self._dropped += self._waiting
        if self._dropped:
            self._say_dropped("the worker ends")
        for serving in (*self._serving, *self._calls):
            serving.cancel()
        if self._threads is not None:
            self._threads.stop()
            self._threads = None  # it may be started again

    async def _serve(self, lane: _Lane) -> None:
        while True:
            await lane.wanted.wait()
            lane.wanted.clear()
            while lane.events:
                hooks, event = lane.events.popleft()
                for hook in hooks:
                    await self._call(hook, event)
                self._waiting -= 1

    async def _call(self, hook: Hook, event: JobEvent | Alert) -> None:
        """Calls one hook, and waits for it a while. It has a task of its own: one may refuse its cancellation."""
        call = asyncio.create_task(self._contained(hook, event), context=contextvars.Context())
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        await asyncio.wait([call], timeout=HOOK_SECONDS)
        if not call.done():
            log.error(
                "hook.timeout",
                hook=hook_name(hook),
                **subject(event),
                seconds=HOOK_SECONDS,
            )
            call.cancel()

    async def _contained(self, hook: Hook, event: JobEvent | Alert) -> None:
        try:
            if is_async(hook):
                await hook(event)
            else:
                if self._threads is None:
                    self._threads = Threads(LANES)
                await self._threads.run(contextvars.Context(), partial(hook, event))
        except BaseException as error:  # SystemExit is the hook's, not the worker's
            call = asyncio.current_task()
            if call is not None and call.cancelling():
                raise  # it took too long, and that was said
            report(hook, event, error)


class _Lane:
    """Events that are told one after the other."""

    def __init__(self) -> None:
        self.events: deque[tuple[tuple[Hook, ...], JobEvent | Alert]] = deque()
        self.wanted = asyncio.Event()


def _attempt_of(job: ClaimedJob | CrashedJob) -> dict[str, Any]:
    """What an `AttemptEvent` says of a job."""
    return {
        "id": job.id,
        "task": job.task,
        "queue": job.queue,
        "args": args_of(job.args),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
    }
