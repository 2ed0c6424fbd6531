"""The watchdog: a thread that notices that the worker's loop does not run, and says which job keeps it.

While jobs run it asks the loop for a sign of life twice in a threshold; while none do, it looks at two counters and
sleeps again. The jobs' own path pays nothing for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import structlog

from pgqueue.context import current_job
from pgqueue.error_text import describe_stack, read_stack
from pgqueue.job import ClaimedJob
from pgqueue.worker.executors.threads import Threads
from pgqueue.worker.hand import Hand
from pgqueue.worker.slots import Slots

log = structlog.get_logger("pgqueue.worker")

MAX_PAUSE = 0.5
"""Seconds between two looks while jobs run, at the most; twice that while none do."""
LONG_SECONDS = 2.0
"""A loop that stands still for so long after it was noticed may do so for ever, or be killed: noted at once."""
MAX_SUSPECTS = 10
MAX_THREADS = 3

Note = Callable[[ClaimedJob, str], None]


class _Moment(NamedTuple):
    """`at` and the process's `cpu` seconds are on clocks of their own; `ended`: jobs that have ended so far."""

    at: float
    cpu: float
    ended: int


class Watchdog:
    """Watches the running event loop from `start` to `stop`.

    `threshold`: seconds that the loop may stand still without a word; 0: it is not watched. `note` adds a line to a
    job's record and is called in the loop, `note_now` does the same in the thread, while the loop stands still.
    """

    def __init__(
        self, *, threshold: float, hand: Hand, slots: Slots, threads: Threads, note: Note, note_now: Note
    ):
        self._threshold = threshold
        self._pause = max(0.02, min(MAX_PAUSE, threshold / 2))
        self._hand = hand
        self._slots = slots
        self._threads = threads
        self._note = note
        self._note_now = note_now
        self._stopping = threading.Event()
        self._answered = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._thread_id = 0

    def start(self) -> None:
        """Begins to watch the loop that this is called in."""
        if not self._threshold:
            return
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        context = contextvars.copy_context()  # the worker's id, in log lines
        watch = threading.Thread(target=context.run, args=(self._run,), name="pgqueue-watchdog", daemon=True)
        watch.start()

    def stop(self) -> None:
        """Ends the watch; the thread goes within a moment."""
        self._stopping.set()
        self._answered.set()

    def _run(self) -> None:
        while not self._stopping.is_set() and not self._loop.is_closed():
            try:
                self._watch()
            except Exception:  # the thread must not end in silence
                if not self._loop.is_closed():
                    log.exception("watchdog.failed")
                    self._stopping.wait(MAX_PAUSE)

    def _watch(self) -> None:
        begun, pause = -1, self._pause
        while True:
            before = self._moment()
            if self._stopping.wait(pause):
                return
            late = time.monotonic() - before.at - pause
            if begun == self._hand.begun and not self._hand.running:
                pause = 2 * self._pause  # idle: the loop is left alone
                continue
            if late > self._threshold:
                self._ask()
                self._report(before, is_starved=True)
            begun, pause, before = self._hand.begun, self._pause, self._moment()
            self._ask()
            if not self._answered.wait(self._threshold):
                late = time.monotonic() - before.at - self._threshold
                self._report(before, is_starved=late > self._threshold)

    def _moment(self) -> _Moment:
        return _Moment(time.monotonic(), time.process_time(), self._hand.begun - self._hand.running)

    def _ask(self) -> None:
        """Asks the loop for a sign of life."""
        self._answered.clear()
        self._loop.call_soon_threadsafe(self._answered.set)

    def _report(self, since: _Moment, *, is_starved: bool) -> None:
        """Says what the loop, which was asked, is kept by; and when it has answered, for how long.

        `is_starved`: this thread was kept from running as well, so the interpreter's lock was held, by the loop or
        by a handler's thread; or the whole process stood still: then nothing was computed, and nobody is to blame.
        """
        # At once: the threads may be running again.
        frames, running, now = sys._current_frames(), asyncio.current_task(self._loop), self._moment()
        here = read_stack(frames[self._thread_id])
        in_threads = [read_stack(frames[id]) for id in self._threads.busy(frames)] if is_starved else []
        del frames
        in_loop = self._job_of(running)
        suspects = self._slots.in_threads() if is_starved else []
        if in_loop in suspects:
            in_loop = None  # the loop is about to hand it to a thread, which has begun
        elif in_loop is not None:
            suspects.insert(0, in_loop)
        is_sure = True
        if is_starved:
            if now.cpu - since.cpu < (now.at - since.at) / 10:
                suspects = []
            # The job whose thread held the lock may be among those that have ended.
            is_sure = in_loop is not None or now.ended == since.ended
        # A thread that held the lock may have returned, and then nothing is to be seen of it.
        shown = [here] if in_loop is not None or not is_starved else in_threads[:MAX_THREADS]
        stack = "\n".join(map(describe_stack, shown))
        job = suspects[0] if len(suspects) == 1 and is_sure else None
        who = log
        if job is not None:
            who = log.bind(job_id=job.id, task=job.task, queue=job.queue)
        elif suspects:
            who = log.bind(suspects=[f"{job.task} {job.id}" for job in suspects[:MAX_SUSPECTS]])
        who.warning(
            "loop.blocked",
            seconds=round(now.at - since.at, 3),
            cpu_seconds=round(now.cpu - since.cpu, 3),
            stack=stack,
            remedy="await what waits; declare a handler that blocks as a plain def, one that computes as "
            "executor='process'",
        )
        noted = False
        while not self._answered.wait(LONG_SECONDS):
            if job is not None and not noted:
                noted = True
                self._note_now(job, _line("keeps", since, self._moment(), "so far", stack))
        if self._stopping.is_set():
            return
        now = self._moment()
        who.warning("loop.unblocked", seconds=round(now.at - since.at, 3))
        if job is not None and not noted:
            self._loop.call_soon_threadsafe(self._note, job, _line("kept", since, now, "in all", stack))

    def _job_of(self, task: asyncio.Task[Any] | None) -> ClaimedJob | None:
        """The job whose code an asyncio task runs, as far as that can be told."""
        if task is None:
            return None
        job = self._slots.job_of(task)
        if job is None and sys.version_info >= (3, 12):
            return task.get_context().get(current_job)  # a task that a handler has made
        return job


def _line(verb: str, since: _Moment, now: _Moment, told: str, stack: str) -> str:
    """What the job's record says."""
    seconds, cpu = now.at - since.at, now.cpu - since.cpu
    return f"{verb} the event loop from running: {seconds:.1f} s {told} (CPU {cpu:.1f} s)\n{stack}"
