"""pgqueue: a job queue that lives in your own PostgreSQL."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pgqueue.version import __version__

if TYPE_CHECKING:
    from pgqueue import errors, hooks, middleware
    from pgqueue.app import App
    from pgqueue.batch import BatchJob
    from pgqueue.context import Context
    from pgqueue.encryption import Keyring
    from pgqueue.info import Event, JobInfo, Progress
    from pgqueue.job import Cancel, Fail, Job, JobState, Retry, Snooze
    from pgqueue.parameters import PROVIDED
    from pgqueue.retry import Custom, Exponential, Fibonacci, Fixed, Linear
    from pgqueue.unique import Unique
    from pgqueue.worker.inprocess import Worker

__all__ = [
    "PROVIDED",
    "App",
    "BatchJob",
    "Cancel",
    "Context",
    "Custom",
    "Event",
    "Exponential",
    "Fail",
    "Fibonacci",
    "Fixed",
    "Job",
    "JobInfo",
    "JobState",
    "Keyring",
    "Linear",
    "Progress",
    "Retry",
    "Snooze",
    "Unique",
    "Worker",
    "__version__",
    "errors",
    "hooks",
    "middleware",
]

_HOMES = {
    "app": ("App",),
    "batch": ("BatchJob",),
    "context": ("Context",),
    "encryption": ("Keyring",),
    "info": ("Event", "JobInfo", "Progress"),
    "job": ("Cancel", "Fail", "Job", "JobState", "Retry", "Snooze"),
    "parameters": ("PROVIDED",),
    "retry": ("Custom", "Exponential", "Fibonacci", "Fixed", "Linear"),
    "unique": ("Unique",),
    "worker.inprocess": ("Worker",),
}


def __getattr__(name: str) -> object:
    # Found when asked for: `pgqueue --help` shall not wait for drivers, and a producer not for a worker.
    if name in ("errors", "hooks", "middleware"):
        return import_module(f"pgqueue.{name}")
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"pgqueue.{home}"), name)
            return value
    raise AttributeError(f"module 'pgqueue' has no attribute {name!r}")
