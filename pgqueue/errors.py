"""Everything that pgqueue raises, as one tree.

    PgqueueError
    ├── ConfigurationError          settings that cannot work, found before any work is done
    │   ├── MissingDSN              no database configured where one is needed
    │   ├── AppNotFound             the `module:app` path of a command leads nowhere
    │   ├── NoServer                no PostgreSQL binaries for the embedded server
    │   └── ServerFailed            the embedded server did not start
    ├── InvalidJob                  an enqueue that is refused; nothing was written
    │   ├── InvalidArgs             the arguments: not JSON, too large, not the task's signature
    │   ├── InvalidOption           queue, priority, delay, attempts, keys, tags …; cron, tz … of a schedule
    │   └── UnknownTask             a name that no task has
    ├── UnknownSchedule             a name that no schedule has
    ├── UnusableConnection          closed, read-only, aborted, or of a kind that cannot enqueue
    ├── SerializationConflict       the transaction has to be tried again as a whole (40001, 40P01)
    ├── DatabaseUnavailable         the server is gone or refuses; trying later may help
    ├── SchemaError                 the schema `pgqueue` does not fit this package
    │   ├── SchemaMissing           not there yet: `pgqueue db upgrade`
    │   ├── SchemaOutdated          older than this package: `pgqueue db upgrade`
    │   └── SchemaTooNew            newer than this package understands: upgrade pgqueue-jobs
    ├── NotPermitted                the database role lacks a right (42501)
    ├── UnknownWorker               the worker was declared dead; its jobs belong to others now
    ├── LeaseLost                   the claim has ended; whatever it says now is not recorded
    ├── CannotDecrypt               sealed args or a sealed result that cannot be opened
    │   └── UnknownKey              their key is not among the keys that are at hand
    ├── NoResult                    a job that was waited for gives no result
    │   ├── UnknownJob              there is no such job on record
    │   ├── NotFinished             it has not ended within the time
    │   ├── JobFailed               it is dead
    │   ├── JobCancelled            it was cancelled
    │   └── ResultNotKept           it completed, and nothing was stored
    ├── TimedOut                    an attempt took longer than its timeout
    └── ProcessDied                 the process that ran a job apart from others ended before the job did

Beside the tree stand the outcomes that a handler raises on purpose: `Retry`, `Snooze`, `Cancel`, `Fail`
(in `pgqueue.job`); they are control flow, not errors.
"""

from __future__ import annotations

from typing import Any


class PgqueueError(Exception):
    """The root: `except PgqueueError` catches all that pgqueue itself raises."""


class ConfigurationError(PgqueueError):
    """Settings that cannot work. The message names the setting and the remedy."""


class MissingDSN(ConfigurationError):
    """No database is configured, and the command is one that does not start its own."""


class AppNotFound(ConfigurationError):
    """The `module:attribute` path of an app cannot be imported or is no `pgqueue.App`."""


class NoServer(ConfigurationError):
    """No PostgreSQL binaries were found for the embedded server."""


class ServerFailed(ConfigurationError):
    """The embedded PostgreSQL did not start. The message ends with the last lines of its log."""


class InvalidJob(PgqueueError, ValueError):
    """An enqueue that is refused. Nothing was written; the caller's transaction is still usable."""


class InvalidArgs(InvalidJob):
    """Arguments that are not JSON, too large, or do not fit the task's signature."""


class InvalidOption(InvalidJob):
    """An option of an enqueue, a task or a schedule (queue, delay, keys, cron, tz …) outside its range."""


class UnknownTask(InvalidJob):
    """A task name that is not in the app's registry."""


class UnknownSchedule(PgqueueError, LookupError):
    """There is no schedule of that name in the database."""


class UnusableConnection(PgqueueError):
    """The connection cannot carry an enqueue: closed, read-only, aborted, or of an unknown kind."""


class SerializationConflict(PgqueueError):
    """The transaction met another one and has to be tried again as a whole (SQLSTATE 40001, 40P01)."""


class DatabaseUnavailable(PgqueueError):
    """The server is gone, restarting, or out of connections. The same call may work later."""


class SchemaError(PgqueueError):
    """The schema `pgqueue` in the database does not fit this package."""


class SchemaMissing(SchemaError):
    """The schema is not there. Remedy: `pgqueue db upgrade`."""


class SchemaOutdated(SchemaError):
    """The schema is older than this package. Remedy: `pgqueue db upgrade`."""


class SchemaTooNew(SchemaError):
    """The schema no longer serves this package. Remedy: upgrade `pgqueue-jobs`."""


class NotPermitted(PgqueueError):
    """The database role lacks a right (SQLSTATE 42501). The message says which role to grant."""


class UnknownWorker(PgqueueError):
    """The worker's row is gone: it was declared dead and its jobs were given to others."""


class LeaseLost(PgqueueError):
    """The claim has ended (rescued, released, cancelled): the result that came after it is dropped."""


class CannotDecrypt(PgqueueError):
    """What is stored encrypted cannot be opened: changed, moved to another task or queue, or sealed with another key."""


class UnknownKey(CannotDecrypt):
    """The key that sealed it is not in the keyring. The message names its id."""


class TimedOut(PgqueueError, TimeoutError):
    """An attempt took longer than its timeout. It counts as failed; in `permanent` it makes a dead letter."""


class ProcessDied(PgqueueError):
    """The process of a job that ran apart from others ended before the job did: a signal, `os._exit`, memory.

    It counts as failed, like an exception; `on_crash="dead"` makes a dead letter of it at once. The message names
    the signal or the exit code; `trace` is the Python stack at that moment where it is known, else empty.
    """

    def __init__(self, message: str, trace: str = ""):
        super().__init__(message)
        self.trace = trace


class NoResult(PgqueueError):
    """A job that was waited for gives no result. `job` is its `pgqueue.JobInfo`, None when nothing is known of it."""

    def __init__(self, message: str, job: Any = None):
        super().__init__(message)
        self.job = job


class UnknownJob(NoResult, LookupError):
    """There is no such job: it was never committed, or not yet, or its history is kept no longer."""


class NotFinished(NoResult, TimeoutError):
    """The job has not ended within the time. It goes on; wait again, or cancel it."""


class JobFailed(NoResult):
    """The job is dead: its attempts are used up, or its error was permanent. The message ends with that error."""


class JobCancelled(NoResult):
    """The job was cancelled."""


class ResultNotKept(NoResult):
    """The job completed and no result is stored: its task keeps none, or what it returned could not be kept."""
