"""Sees what handlers return and raise, which a worker has no use for once it knows what that means."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pgqueue.batch import BatchJob
from pgqueue.batch_task import BatchTask
from pgqueue.invocation import Handler
from pgqueue.job import ClaimedJob
from pgqueue.task import Task
from pgqueue.testing.crashes import Crash

at: ContextVar[ClaimedJob] = ContextVar("pgqueue_at")
"""The job whose attempt begins in this asyncio task."""


class Watch:
    """Sees what handlers return and raise, which a worker has no use for once it knows what that means."""

    def __init__(self) -> None:
        self.results: dict[int, Any] = {}
        self.errors: dict[int, BaseException] = {}
        self.is_crashed = False
        self._dies: Callable[[ClaimedJob], bool] = lambda _: False

    def begin(self, dies: Callable[[ClaimedJob], bool]) -> None:
        """Forgets what it saw. `dies` says whether the worker dies after a handler's return."""
        self.results, self.errors, self.is_crashed, self._dies = {}, {}, False, dies

    def failed(self, job: ClaimedJob, error: BaseException) -> None:
        """An attempt has failed with an error, and the latest that is said of it is the one that counts."""
        self.errors[job.id] = error

    def handler(self, task: Task[..., Any], handler: Handler) -> Handler:
        """A handler that is watched."""
        function = handler.function
        watched = self._batch if isinstance(task, BatchTask) else self._job

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with watched(*args) as returned:
                returned(result := await function(*args, **kwargs))
                return result

        def call(*args: Any, **kwargs: Any) -> Any:
            with watched(*args) as returned:
                returned(result := function(*args, **kwargs))
                return result

        return handler._replace(function=call_async if task.is_async else call)

    def task(self, task: Task[..., Any]) -> Task[..., Any]:
        """A task whose reading of args is watched, and whose batch does not wait: all that there is was claimed."""
        task = copy.copy(task)
        decode = task.decode

        def watched_decode(args: str) -> dict[str, Any]:
            with self._job():
                return decode(args)

        task.decode = watched_decode
        if isinstance(task, BatchTask):
            task.wait = 0.0
        return task

    @contextmanager
    def _job(self, *_: Any) -> Iterator[Callable[[Any], None]]:
        try:
            yield self._returned
        except BaseException as error:
            self.failed(at.get(), error)
            raise

    @contextmanager
    def _batch(self, jobs: Sequence[BatchJob[Any]]) -> Iterator[Callable[[Any], None]]:
        try:
            yield self._returned
        except BaseException as error:
            self.errors.update((job.id, error) for job in jobs)
            raise
        finally:
            self.errors.update((job.id, job.outcome) for job in jobs if job.outcome is not None)

    def _returned(self, result: Any) -> None:
        job = at.get()
        if self._dies(job):
            self.is_crashed = True
            raise Crash("the worker died, as crash_after has arranged it")
        self.results[job.id] = result
