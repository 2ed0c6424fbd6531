"""Whether a job is the one that was meant, and if not, how it differs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from pgqueue.encoding import encode_args
from pgqueue.error_text import did_you_mean, safe_repr
from pgqueue.errors import InvalidArgs, InvalidOption
from pgqueue.job import WaitingJob, seconds
from pgqueue.task import Enqueueable, Task

TOLERANCE = 5.0
"""Seconds, either way."""
SHOWN = 20
"""Jobs that a failure shows at the most."""


class Wanted:
    """A description of a job. `str` of it is what a failure calls it.

    Raises `InvalidArgs` for args that the task does not take, for a `refute_enqueued` with a misspelt name would
    never fail; `InvalidOption`.
    """

    def __init__(
        self,
        task: Enqueueable[Any] | str | None,
        *,
        args: Mapping[str, Any] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        unique_key: str | None = None,
        tags: Iterable[str] | None = None,
        run_at: Any = None,
        tolerance: Any = TOLERANCE,
    ):
        if task is not None and not isinstance(task, str | Enqueueable):
            raise InvalidOption(f"task: expected a task or its name, got {safe_repr(task)}")
        self.task = task.task.name if isinstance(task, Enqueueable) else task
        self._opener = task.task if isinstance(task, Enqueueable) and task.task.encrypt else None
        if isinstance(task, Enqueueable) and args is not None:
            _check_names(task, args)
        self._args = {} if args is None else {name: _stored(value) for name, value in args.items()}
        self._exactly = {
            name: value
            for name, value in (("queue", queue), ("priority", priority), ("unique_key", unique_key))
            if value is not None
        }
        self._tags = (tags,) if isinstance(tags, str) else tuple(tags or ())
        self._due = None if run_at is None else _Due(run_at, seconds(tolerance, name="tolerance"))

    def opened(self, jobs: Sequence[WaitingJob]) -> list[WaitingJob]:
        """The jobs, those of a task that encrypts with args that can be read; of a task's name alone they cannot."""
        return [
            job if self._opener is None or job.task != self.task else _opened(self._opener, job)
            for job in jobs
        ]

    def found_in(self, jobs: Sequence[WaitingJob]) -> list[WaitingJob]:
        """Those of the jobs that are meant."""
        return [job for job in jobs if self.task in (None, job.task) and not any(self.differences(job))]

    def differences(self, job: WaitingJob) -> Iterator[str]:
        """In what a job, of whatever task, is another than what was meant."""
        yield from _differences(self._args, job.args, "args")
        for name, wanted in self._exactly.items():
            if (value := getattr(job, name)) != wanted:
                yield f"{name} is {value!r}, not {wanted!r}"
        tags = job.options.get("tags") or ()
        if missing := [tag for tag in self._tags if tag not in tags]:
            yield f"it has no tag {', '.join(missing)}"
        if self._due is not None and not self._due.holds(job):
            yield f"it is due {_due_text(job)}, not {self._due}"

    def nearest(self, jobs: Sequence[WaitingJob]) -> tuple[WaitingJob, list[str]] | None:
        """The job of the task that differs least, and in what; None when there is none."""
        of_task = [job for job in jobs if self.task in (None, job.task)]
        differing = [(job, list(self.differences(job))) for job in of_task]
        differing = [(job, differences) for job, differences in differing if differences]
        return min(differing, key=lambda pair: len(pair[1]), default=None)

    def __str__(self) -> str:
        parts = [self.task or "any task"]
        if self._args:
            parts.append(f"with args {json.dumps(self._args, default=repr, ensure_ascii=False)}")
        parts += [f"with {name} {value!r}" for name, value in self._exactly.items()]
        if self._tags:
            parts.append(f"tagged {', '.join(self._tags)}")
        if self._due is not None:
            parts.append(f"due {self._due}")
        return " ".join(parts)


class _Due:
    """A window of time: of datetimes, or of seconds from now."""

    def __init__(self, run_at: Any, tolerance: float):
        is_window = isinstance(run_at, tuple | list)
        ends = run_at if is_window else (run_at, run_at)
        if len(ends) != 2:
            raise InvalidOption(f"run_at: expected a time, or two of them, got {safe_repr(run_at)}")
        self._first, self._last = (_moment(end) for end in ends)
        self._tolerance = 0.0 if is_window else tolerance

    def holds(self, job: WaitingJob) -> bool:
        return (
            -self._tolerance <= self._after(self._first, job)
            and self._after(self._last, job) <= self._tolerance
        )

    def _after(self, moment: datetime | float, job: WaitingJob) -> float:
        """By how many seconds the job is due after a moment."""
        if isinstance(moment, datetime):
            return (job.run_at - moment).total_seconds()
        return job.due_in - moment

    def __str__(self) -> str:
        first, last = (
            moment.isoformat(sep=" ") if isinstance(moment, datetime) else f"in {duration(moment)}"
            for moment in (self._first, self._last)
        )
        if self._first == self._last:
            return f"{first} (± {duration(self._tolerance)})"
        return f"between {first} and {last}"


def told(jobs: Sequence[WaitingJob], wanted: Wanted | None = None) -> str:
    """What waits, a line each, and with `wanted` what the nearest of them is instead."""
    if not jobs:
        return "nothing is enqueued"
    lines = [f"{len(jobs)} wait{'s' if len(jobs) == 1 else ''}:" if wanted else "found:"]
    nearest = wanted and wanted.nearest(jobs)
    shown = list(jobs[:SHOWN])
    if nearest and nearest[0] not in shown:
        shown.append(nearest[0])
    for job in shown:
        args = json.dumps(job.args, ensure_ascii=False)
        due = "ready" if job.state == "ready" else f"{job.state}, due {_due_text(job)}"
        lines.append(f"  #{job.id} {job.task} {args if len(args) <= 300 else args[:299] + '…'}")
        tags = f", tags {', '.join(map(str, job.options['tags']))}" if job.options.get("tags") else ""
        key = f", unique_key {job.unique_key!r}" if job.unique_key else ""
        lines.append(f"      queue {job.queue}, {due}, priority {job.priority}{tags}{key}")
        if nearest and job is nearest[0]:
            lines += [f"      nearest, but {difference}" for difference in nearest[1][:5]]
    if len(jobs) > len(shown):
        lines.append(f"  … and {len(jobs) - len(shown):,} more")
    return "\n".join(lines)


def duration(value: float) -> str:
    """Seconds as people write them: "3d", "1h 30m", "2.5s".

    >>> duration(5400)
    '1h 30m'
    """
    sign, rest = "-" if value < 0 else "", abs(value)
    if rest < 60:
        return f"{sign}{round(rest, 1):g}s"
    rest = round(rest)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        if number:
            parts.append(f"{number}{unit}")
    return sign + " ".join(parts[:2])


def _due_text(job: WaitingJob) -> str:
    """When a job is due, by both clocks that a test may think in."""
    return f"in {duration(job.due_in)} ({job.run_at.isoformat(sep=' ', timespec='seconds')})"


def _moment(value: Any) -> datetime | float:
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise InvalidOption(f"run_at: expected a datetime with a time zone, got {safe_repr(value)}")
        return value
    return seconds(value, name="run_at")


def _opened(task: Task[..., Any], job: WaitingJob) -> WaitingJob:
    return replace(job, args=json.loads(task.unseal(json.dumps(job.args), "args", job.queue)))


def _check_names(task: Enqueueable[Any], args: Mapping[str, Any]) -> None:
    takes = task.task.parameters.names
    for name in args:
        if takes is not None and name not in takes:
            raise InvalidArgs(
                f"task {task.task.name} takes no argument {name}{did_you_mean(str(name), takes)} "
                f"(it takes {', '.join(sorted(takes)) or 'none'})"
            )


def _stored(value: Any) -> Any:
    """A value as JSON gives it back; one that JSON does not know as it is, to be compared by `==`."""
    if isinstance(value, Mapping):
        return {key: _stored(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_stored(inner) for inner in value]
    try:
        return json.loads(encode_args({"": value}))[""]
    except InvalidArgs:
        return value


def _differences(wanted: Any, value: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            yield f"{path} is {safe_repr(value)}, no object"
            return
        for name, inner in wanted.items():
            if name in value:
                yield from _differences(inner, value[name], f"{path}.{name}")
            else:
                yield f"{path} has no {name}"
    elif not _equal(wanted, value):
        yield f"{path} is {safe_repr(value)}, not {safe_repr(wanted)}"


def _equal(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, list) and isinstance(value, list):
        return len(wanted) == len(value) and all(map(_equal, wanted, value))
    if isinstance(wanted, dict) and isinstance(value, dict):
        return wanted.keys() == value.keys() and all(_equal(wanted[name], value[name]) for name in wanted)
    if isinstance(wanted, bool) is not isinstance(value, bool) and isinstance(wanted, bool | int | float):
        return False  # 1 == True, but not in JSON
    return bool(wanted == value)
