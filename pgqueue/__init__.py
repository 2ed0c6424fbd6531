"""pgqueue: a job queue that lives in your own PostgreSQL."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pgqueue.version import __version__

if TYPE_CHECKING:
    from pgqueue import errors
    from pgqueue.app import App
    from pgqueue.context import Context
    from pgqueue.job import Cancel, Fail, Job, JobState, Retry, Snooze
    from pgqueue.retry import Custom, Exponential, Fibonacci, Fixed, Linear

__all__ = [
    "App",
    "Cancel",
    "Context",
    "Custom",
    "Exponential",
    "Fail",
    "Fibonacci",
    "Fixed",
    "Job",
    "JobState",
    "Linear",
    "Retry",
    "Snooze",
    "__version__",
    "errors",
]

_HOMES = {
    "app": ("App",),
    "context": ("Context",),
    "job": ("Cancel", "Fail", "Job", "JobState", "Retry", "Snooze"),
    "retry": ("Custom", "Exponential", "Fibonacci", "Fixed", "Linear"),
}


def __getattr__(name: str) -> object:
    # Found when asked for: `pgqueue --help` shall not wait for drivers, and a producer not for a worker.
    if name == "errors":
        return import_module("pgqueue.errors")
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"pgqueue.{home}"), name)
            return value
    raise AttributeError(f"module 'pgqueue' has no attribute {name!r}")
