"""What an attempt's ending means. Pure: decide here, do in the settler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import structlog

from pgqueue.encoding import encode_result
from pgqueue.error_text import ErrorText, describe_error, one_line, safe_text
from pgqueue.errors import CannotDecrypt, ConfigurationError, InvalidOption, ProcessDied, UnknownKey
from pgqueue.job import MAX_DELAY, Cancel, ClaimedJob, Fail, Retry, Snooze
from pgqueue.retry import DEFAULT_RETRY, RetryPolicy, from_json
from pgqueue.task import Task

log = structlog.get_logger("pgqueue.worker")


@dataclass(frozen=True, slots=True)
class Completed:
    """The handler returned.

    `result`: what it returned as JSON, when its task keeps results and it can be kept; `reason`: why it cannot.
    """

    result: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed. `delay` seconds until the next one; None: a dead letter for `reason`."""

    error: ErrorText
    delay: float | None
    reason: str = "exhausted"


@dataclass(frozen=True, slots=True)
class Snoozed:
    """Put off by `delay` seconds, the attempt given back."""

    delay: float


@dataclass(frozen=True, slots=True)
class Released:
    """Given back untouched, for somebody else to run now."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Ended for good without an error. `reason` None: that of whoever asked for it."""

    reason: str | None = None


Ending: TypeAlias = Completed | Failed | Snoozed | Released | Cancelled

COMPLETED = Completed()
RELEASED = Released()
CANCELLED = Cancelled()


KEY_WAIT = 30.0
"""Seconds that a job waits whose args are encrypted with a key that this worker does not have."""

SUSPICIOUS = 2
"""Crashes that make a suspect. The first one may have been an accident (a kill, the machine, the memory): after that all
jobs of a worker start again at once, and only in its own process there is room for so many."""


def decide(job: ClaimedJob, task: Task[..., Any], error: BaseException | None) -> Ending:
    """The ending of an attempt that returned (`error` is None) or raised."""
    match error:
        case None:
            return COMPLETED
        # `delay` and `after` are checked by their constructors; a subclass may have made them anything.
        case Snooze(delay=float() as put_off) if 0 <= put_off <= MAX_DELAY:
            return Snoozed(put_off)
        case Cancel():
            return Cancelled(safe_text(error, 500) or "cancelled")
        case Fail():
            return Failed(_told(job, task, error), None, "failed")
        case Retry(after=float() as after) if 0 <= after <= MAX_DELAY:
            return Failed(_told(job, task, error), _unless_exhausted(job, after))
        case _ if isinstance(error, task.permanent):
            return Failed(_told(job, task, error), None, "permanent")
        case _:
            delay = _backoff(policy_of(job, task), job.attempt, error)
            return Failed(_told(job, task, error), None if delay is None else _unless_exhausted(job, delay))


def keep(job: ClaimedJob, task: Task[..., Any], result: Any) -> Completed:
    """The ending of an attempt that returned `result`, which its task keeps."""
    try:
        encoded = encode_result(result, limit=task.result_limit())
        return Completed(task.seal(encoded, "result", job.queue))
    except BaseException as error:  # noqa: BLE001 - what is read may be a property that raises anything
        # The work is done: what it returned cannot undo that.
        reason = one_line(error)
        log.warning("result.not_kept", job_id=job.id, task=job.task, queue=job.queue, reason=reason)
        return Completed(reason=reason)


def completions_json(completions: Sequence[tuple[ClaimedJob, Completed]]) -> str:
    """The argument of `pgqueue.complete_with_results`."""
    rows: list[dict[str, Any]] = []
    for job, ending in completions:
        row: dict[str, Any] = {"id": job.id, "lease": job.lease}
        if ending.result is not None:
            row["result"] = msgspec.Raw(ending.result.encode())
        if ending.reason is not None:
            row["reason"] = ending.reason
        rows.append(row)
    return msgspec.json.encode(rows).decode()


def is_suspect(job: ClaimedJob, task: Task[..., Any]) -> bool:
    """Whether a job may be one that kills its process, and whose task does not ask for one of its own."""
    return job.crashes >= SUSPICIOUS and task.executor != "process"


def died(job: ClaimedJob, task: Task[..., Any], error: ProcessDied) -> Failed:
    """The ending of an attempt whose process died while it ran."""
    ending = decide(job, task, error)
    assert isinstance(ending, Failed)
    text = ErrorText(
        "pgqueue.ProcessDied",
        ending.error.message,
        error.trace or ending.error.traceback,
        hashlib.sha256(str(error).encode()).hexdigest()[:16],
    )
    reason = "crashed" if ending.reason == "exhausted" else ending.reason
    return Failed(text, None if task.on_crash == "dead" else ending.delay, reason)


def misfit(job: ClaimedJob, task: Task[..., Any], error: BaseException) -> Failed:
    """The ending of a job whose args no longer fit its function: trying again cannot help."""
    return Failed(_told(job, task, error), None, "invalid_args")


def unopened(job: ClaimedJob, task: Task[..., Any]) -> Ending:
    """The ending of a job whose args are still sealed: put off while their key is missing here, else a dead letter."""
    try:
        task.unseal(job.args, "args", job.queue)
    except (UnknownKey, ConfigurationError) as error:
        log.warning("job.key_missing", job_id=job.id, task=job.task, queue=job.queue, error=str(error))
        return Snoozed(KEY_WAIT)
    except CannotDecrypt as error:
        return misfit(job, task, error)
    return RELEASED


def policy_of(job: ClaimedJob, task: Task[..., Any]) -> RetryPolicy:
    """The job's own retry policy if it was enqueued with one, else its task's."""
    if job.options is None or '"retry"' not in job.options:
        return task.retry
    try:
        return from_json(json.loads(job.options)["retry"])
    except (InvalidOption, LookupError, TypeError, ValueError):
        return task.retry  # written by another language or a newer release: the task's own still holds


def timeout_of(job: ClaimedJob, default: float | None) -> float | None:
    """How many seconds an attempt may take: the job's own if it was enqueued with one, else its task's."""
    if job.options is None or '"timeout"' not in job.options:
        return default
    try:
        timeout = float(json.loads(job.options)["timeout"])
    except (LookupError, TypeError, ValueError):
        return default  # written by another language or a newer release: the task's own still holds
    return timeout if 0 < timeout <= MAX_DELAY else default


def expires(job: ClaimedJob) -> bool:
    """Whether the job was enqueued with an end of the time in which it may start."""
    return job.options is not None and '"expires_' in job.options


def _told(job: ClaimedJob, task: Task[..., Any], error: BaseException) -> ErrorText:
    """What is stored and logged of an error, without what is not to be shown of the job's args."""
    return task.redact(describe_error(error), job.args)


def _backoff(policy: RetryPolicy, attempt: int, error: BaseException | None) -> float | None:
    """What the policy says; the default one's wait when it raises, or says what is no wait."""
    try:
        wait = policy.delay(attempt, error)
        if wait is None or 0 <= wait <= MAX_DELAY:  # false for NaN too
            return wait
    except BaseException:
        log.exception("retry.policy_failed", policy=type(policy).__name__)
    return DEFAULT_RETRY.delay(attempt)


def _unless_exhausted(job: ClaimedJob, delay: float) -> float | None:
    return delay if job.attempt < job.max_attempts else None
