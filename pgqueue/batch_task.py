"""A batch task: a registered function that gets many jobs at once. Made by `@app.batch_task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar, get_args, get_origin

from pgqueue.batch import MAX_SIZE, BatchJob, item_signature
from pgqueue.error_text import safe_repr
from pgqueue.errors import ConfigurationError, InvalidOption
from pgqueue.job import seconds
from pgqueue.parameters import Parameters
from pgqueue.retry import Duration
from pgqueue.task import Task

R = TypeVar("R")
T = TypeVar("T")


class BatchTask(Task[[T], R], Generic[T, R]):
    """A task whose handler takes a list of `BatchJob`s; each job is enqueued with one item, of type T."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        size: int,
        wait: Duration,
        limit: Callable[[], int] | None = None,
        namespace: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        if options.get("transactional"):
            raise ConfigurationError("a batch task cannot be transactional: its jobs end one by one")
        if options.get("keep_result"):
            raise ConfigurationError(
                "a batch task keeps no results: its handler returns one thing for many jobs"
            )
        if options.get("middleware"):
            raise ConfigurationError("a batch task has no middleware: it is no one job, and has no Context")
        if options.get("executor") == "process":
            raise ConfigurationError(
                "a batch task cannot have executor='process', which runs one job at a time"
            )
        super().__init__(function, limit=limit, namespace=namespace, **options)
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
            raise InvalidOption(f"size: expected an integer from 1 to {MAX_SIZE:,}, got {safe_repr(size)}")
        self.size: int = size
        """Jobs of a batch, at the most."""
        self.wait: float = seconds(wait, name="wait")
        """Seconds that the first job of a batch waits for others, at the most."""

    def _parameters(self, function: Callable[..., Any], namespace: Mapping[str, Any] | None) -> Parameters:
        handler = Parameters(self.name, function, namespace)
        jobs = handler.only
        of = get_args(jobs)[0] if get_origin(jobs) is list else None
        if get_origin(of) is not BatchJob:
            raise ConfigurationError(
                f"task {self.name}: the handler of a batch task has one parameter of type "
                "list[pgqueue.BatchJob[…]], with the type of what its jobs are enqueued with"
            )
        item = Parameters(self.name, item_signature(get_args(of)[0]))
        item.provided = handler.provided
        return item

    def __call__(self, jobs: list[BatchJob[T]], /) -> R:  # type: ignore[override]
        """Runs the function itself; nothing is enqueued."""
        return self.function(jobs, **self._provided((jobs,), {}))  # type: ignore[no-any-return]


class BatchDecorator(Protocol):
    """What `@app.batch_task(…)` is: makes a `BatchTask` of a function."""

    def __call__(self, function: Callable[[list[BatchJob[T]]], R], /) -> BatchTask[T, R]: ...
