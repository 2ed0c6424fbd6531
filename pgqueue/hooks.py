"""Hooks: functions that are told what became of a job, app-wide or for one task.

    @app.on("failed")
    def count(event: pgqueue.hooks.Failed) -> None:
        failures.labels(event.task, event.error.type).inc()

    @send_mail.on("dead")
    async def alert(event: pgqueue.hooks.Dead) -> None:
        await chat.post(f"mail to user {event.args['user_id']} was given up: {event.error.message}")

A hook is told, and is asked nothing: what it returns is dropped, what it raises is logged, and neither
changes what became of the job.

    enqueued ─► started ─► succeeded
                   ├─────► failed ─► retried, or dead
                   ├─────► cancelled
                   └─────► rescued (its worker's process died), or dead after too many crashes

Of the whole, and not of a job: `alert`, when a check of the view `pgqueue_bi.health` fails, and when it no longer does.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, overload

import structlog

from pgqueue.error_text import ErrorText, describe_error, did_you_mean, safe_repr
from pgqueue.errors import ConfigurationError

log = structlog.get_logger("pgqueue.hooks")

Hook: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """What every hook is told: which job, and its args as they are stored (a JSON object)."""

    id: int
    task: str
    queue: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEvent(JobEvent):
    """An event of one attempt, which is counted from 1."""

    attempt: int
    max_attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued(JobEvent):
    """The job was made by this process: its statement succeeded, its transaction may still roll back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(AttemptEvent):
    """An attempt begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded(AttemptEvent):
    """The handler returned, and the job is recorded as completed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(AttemptEvent):
    """An attempt failed, and that is recorded. Told of every failed attempt; `retried` or `dead` comes next.

    `retry_in` is the number of seconds until the next attempt, None when there will be none.
    """

    error: ErrorText
    retry_in: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried(AttemptEvent):
    """The job will be tried again, `delay` seconds after its attempt failed."""

    error: ErrorText
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead(AttemptEvent):
    """The job is a dead letter: it will not be tried again by itself.

    `reason` is exhausted, permanent, failed, invalid_args, or crashed: then it is the last of too many
    crashes, and there is no `failed` before it.
    """

    error: ErrorText
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(AttemptEvent):
    """The job was cancelled while a worker had it, or had expired when its turn came.

    `reason` is what the handler gave to `pgqueue.Cancel`, or "expired"; None when it was cancelled from
    outside, for the reason that is in the database.
    """

    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescued(AttemptEvent):
    """The process that ran the job died, or lost its lease. The job was taken back, to be started again.

    `crashes` says how often that has happened to it, this time included.
    """

    crashes: int
    error: ErrorText


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A check of health has failed, or (`is_resolved`) one that had failed does not any more.

    - `check_name`: depth, oldest_age, failure_ratio, dead or workers, of `queue`; or leader, figures or schedules, of the
      whole: then `queue` is None.
    - `value`, `threshold`: what was found, and what it must not exceed; None: there is nothing to compare.
    - `detail`: a sentence for a person.
    """

    check_name: str
    queue: str | None
    value: float | None
    threshold: float | None
    detail: str
    is_resolved: bool = False


EVENTS: Mapping[str, type[JobEvent]] = {
    "enqueued": Enqueued,
    "started": Started,
    "succeeded": Succeeded,
    "failed": Failed,
    "retried": Retried,
    "dead": Dead,
    "cancelled": Cancelled,
    "rescued": Rescued,
}
"""The names of the events of jobs, and what their hooks are given."""

APP_EVENTS: Mapping[str, type[Alert]] = {"alert": Alert}
"""Those of the whole, of which an app's hooks are told, and no task's."""


class Hooks:
    """The hooks of an app (`of_app`) or of one task, by the name of the event."""

    __slots__ = ("_of", "enqueued")

    def __init__(self, *, of_app: bool = False) -> None:
        self._of: dict[str, list[Hook]] = {name: [] for name in (*EVENTS, *(APP_EVENTS if of_app else ()))}
        self.enqueued = self._of["enqueued"]
        """Looked at with every enqueue."""

    def add(self, event: str, hook: Hook) -> None:
        """Adds a hook. Raises `ConfigurationError` for an event that does not exist, or no function."""
        if event in APP_EVENTS and event not in self._of:
            raise ConfigurationError(f"{event} is of the whole and of no task: use @app.on({event!r})")
        if event not in self._of:
            raise ConfigurationError(
                f"there is no event {safe_repr(event)}{did_you_mean(str(event), self._of)}: "
                f"hooks are told of {', '.join(self._of)}"
            )
        if not callable(hook):
            raise ConfigurationError(f"a hook is a function of one event, got {safe_repr(hook)}")
        if event == "enqueued" and is_async(hook):
            raise ConfigurationError(
                f"hook {hook_name(hook)}: a hook of enqueued is called by whoever enqueues, who need not have "
                "an event loop: make it a sync function"
            )
        self._of[event].append(hook)

    def of(self, event: str) -> list[Hook]:
        """The hooks of an event, in the order in which they were added."""
        return self._of[event]


_E = TypeVar("_E", bound=Callable[[Enqueued], None])
_S = TypeVar("_S", bound=Callable[[Started], Any])
_U = TypeVar("_U", bound=Callable[[Succeeded], Any])
_F = TypeVar("_F", bound=Callable[[Failed], Any])
_R = TypeVar("_R", bound=Callable[[Retried], Any])
_D = TypeVar("_D", bound=Callable[[Dead], Any])
_C = TypeVar("_C", bound=Callable[[Cancelled], Any])
_X = TypeVar("_X", bound=Callable[[Rescued], Any])
_A = TypeVar("_A", bound=Callable[[Alert], Any])


class Hookable:
    """What an app and a task have in common: `on`."""

    hooks: Hooks

    @overload
    def on(self, event: Literal["enqueued"], /) -> Callable[[_E], _E]: ...
    @overload
    def on(self, event: Literal["started"], /) -> Callable[[_S], _S]: ...
    @overload
    def on(self, event: Literal["succeeded"], /) -> Callable[[_U], _U]: ...
    @overload
    def on(self, event: Literal["failed"], /) -> Callable[[_F], _F]: ...
    @overload
    def on(self, event: Literal["retried"], /) -> Callable[[_R], _R]: ...
    @overload
    def on(self, event: Literal["dead"], /) -> Callable[[_D], _D]: ...
    @overload
    def on(self, event: Literal["cancelled"], /) -> Callable[[_C], _C]: ...
    @overload
    def on(self, event: Literal["rescued"], /) -> Callable[[_X], _X]: ...
    @overload
    def on(self, event: Literal["alert"], /) -> Callable[[_A], _A]: ...
    def on(self, event: str, /) -> Any:
        """Registers a function, sync or async, that is told of an event: of all tasks, or of one.

            @app.on("failed")
            async def count(event: pgqueue.hooks.Failed) -> None: ...

            @send_mail.on("dead")
            def alert(event: pgqueue.hooks.Dead) -> None: ...

        `enqueued` is called by the process that enqueues, at once and inside its transaction, which may still
        roll back; it has to be sync. All others are called by a worker, beside its jobs: `started` when an
        attempt begins, the rest once the ending has been recorded. Hooks are told at most once: what a worker
        that is killed had not told yet is lost.

        `alert` is of the whole, and so of an app alone: see `App.on_alert`.

        What a hook raises is logged (`hook.failed`) and changes nothing; one that takes more than 30 s is
        cancelled (`hook.timeout`). Raises `ConfigurationError` for an event that does not exist.
        """

        def add(hook: Hook) -> Hook:
            self.hooks.add(event, hook)
            return hook

        return add

    def on_dead_letter(self, hook: _D, /) -> _D:
        """Registers a function, sync or async, that is told of each dead letter: `on("dead")` by another name.

            @app.on_dead_letter
            async def page(event: pgqueue.hooks.Dead) -> None:
                await chat.post(f"{event.task} {event.id} was given up: {event.error.message}")

        Of an app it is told of every task, of a task of that one.
        """
        self.hooks.add("dead", hook)
        return hook


def is_async(function: Any) -> bool:
    """Whether calling it gives a coroutine: an async function, or an object with an async `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - not whether it can be called, but how
    )


def hook_name(hook: Callable[..., Any]) -> str:
    """What log lines call a hook, or a middleware."""
    return f"{getattr(hook, '__module__', '?')}.{getattr(hook, '__qualname__', type(hook).__name__)}"


def args_of(text: str) -> Mapping[str, Any]:
    """A job's args for an event; empty when they cannot be read, for nobody may be kept from being told."""
    try:
        args = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return args if isinstance(args, dict) else {}


def subject(event: JobEvent | Alert) -> dict[str, Any]:
    """What log lines say an event is about."""
    about = (
        {"check": event.check_name, "queue": event.queue}
        if isinstance(event, Alert)
        else {"job_id": event.id, "task": event.task}
    )
    return {"told_of": type(event).__name__.lower(), **about}


def report(hook: Hook, event: JobEvent | Alert, error: BaseException) -> None:
    """Logs what a hook raised."""
    told = describe_error(error)
    log.error(
        "hook.failed",
        hook=hook_name(hook),
        **subject(event),
        error=told.type,
        message=told.message[:500],
        traceback=told.traceback,
    )


def tell_enqueued(hooks: Iterable[Hook], event: Enqueued) -> None:
    """Calls hooks of `enqueued`, in the process that enqueues."""
    for hook in hooks:
        try:
            hook(event)
        except Exception as error:  # noqa: BLE001
            # The job is enqueued already. KeyboardInterrupt and SystemExit are meant for the caller's process.
            report(hook, event, error)
