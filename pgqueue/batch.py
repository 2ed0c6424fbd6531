"""What the handler of a batch task works on: one `BatchJob` for each job of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pgqueue.job import ClaimedJob

T = TypeVar("T")

MAX_SIZE = 10_000


class BatchJob(Generic[T]):
    """One job of a batch: what it was enqueued with, and its own outcome.

        @app.batch_task(size=100, wait="50ms")
        async def index(jobs: list[pgqueue.BatchJob[Document]]) -> None:
            refused = await search.index([job.item for job in jobs])
            for job in jobs:
                if job.item.id in refused:
                    job.end(pgqueue.Fail("the index refused it"))

    A job that is not ended here ends with the handler: completed when it returns, with its error when it raises.
    """

    __slots__ = ("_job", "is_cancelled", "item", "outcome")

    def __init__(self, item: T, job: ClaimedJob):
        self._job = job
        self.item = item
        """What the job was enqueued with."""
        self.outcome: BaseException | None = None
        """What `end` was given; None: the job ends as the handler does."""
        self.is_cancelled = False
        """Whether nobody waits for this job any more: it was cancelled while the handler ran."""

    @property
    def id(self) -> int:
        """The job's id, the same for its whole life."""
        return self._job.id

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self._job.attempt

    @property
    def max_attempts(self) -> int:
        """Attempts in all."""
        return self._job.max_attempts

    @property
    def queue(self) -> str:
        """The queue that the job was claimed from."""
        return self._job.queue

    @property
    def headers(self) -> Mapping[str, str]:
        """What went along with the enqueue for those who trace, such as `traceparent`; see `pgqueue.otel`."""
        return self._job.headers

    def end(self, outcome: BaseException) -> None:
        """Ends this job alone as if the handler had raised `outcome`: an error, or one of
        `Retry(after=…)`, `Snooze(…)`, `Fail(…)` and `Cancel(…)`.
        """
        if not isinstance(outcome, BaseException):
            raise TypeError(f"outcome: expected an exception such as pgqueue.Retry(), got {outcome!r}")
        self.outcome = outcome

    def __repr__(self) -> str:
        return f"<BatchJob {self.id} of task {self._job.task}, attempt {self.attempt}>"


def item_signature(hint: Any) -> Any:
    """A function whose only parameter is the item of a batch task: what its jobs' args must look like."""

    def takes(item: Any) -> None: ...

    takes.__annotations__ = {"item": hint}
    return takes
