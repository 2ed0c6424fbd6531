"""pgqueue: a job queue that lives in your own PostgreSQL."""

from pgqueue import errors
from pgqueue.app import App
from pgqueue.context import Context
from pgqueue.job import Fail, Job, JobState, Retry, Snooze
from pgqueue.retry import Custom, Exponential, Fibonacci, Fixed, Linear
from pgqueue.version import __version__

__all__ = [
    "App",
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
