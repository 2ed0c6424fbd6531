"""The workers of the show: `pgqueue worker … --processes 2`, a real process with real children."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROCESSES = 2
DRAIN_SECONDS = 5.0
EXAMPLES = Path(__file__).resolve().parents[2]
"""The folder that `orders` lies in: the workers' working directory, and so on their path."""

_COMMAND = """
import ctypes, sys
if sys.platform == "linux":
    # PR_SET_PDEATHSIG, SIGTERM: the workers end with the show, even if that is killed
    ctypes.CDLL(None).prctl(1, 15)
from pgqueue.cli import main
main()
"""

Event = dict[str, Any]


class Workers:
    """The supervisor and its children, as their log tells of them."""

    def __init__(self, dsn: str, environment: dict[str, str], on_event: Callable[[Event], None]):
        self._environment = os.environ | environment | {"PGQUEUE_DSN": dsn}
        self._on_event = on_event
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._heard = asyncio.Condition()
        self.children: dict[int, int] = {}
        """Worker id: process id, of the children that are at work."""
        self.last_lines: deque[str] = deque(maxlen=20)

    async def __aenter__(self) -> Self:
        queues = ["-q", "payments:8", "-q", "default", "-q", "email"]
        options = ["--processes", str(PROCESSES), "--drain-limit", str(DRAIN_SECONDS)]
        options += [
            "--log-format",
            "json",
            "--log-level",
            "info",
        ]  # whatever the environment says: it is read
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _COMMAND, "worker", "orders.tasks:app", *queues, *options),
            cwd=EXAMPLES,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the show, which stops the workers in its own time
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def all_at_work(self) -> None:
        """Waits until every process has started."""
        async with self._heard:
            await self._heard.wait_for(lambda: len(self.children) >= PROCESSES)

    async def ended(self) -> int:
        """Waits for the end of the supervisor and of its log; returns its exit code."""
        assert self._process is not None
        assert self._reading is not None
        await asyncio.wait(
            [self._reading]
        )  # not awaited itself: who waits here may be cancelled, it must go on
        return await self._process.wait()

    async def stop(self) -> int:
        """Lets the running jobs end (SIGTERM), or kills what does not stop; returns the exit code."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(DRAIN_SECONDS + 5):
                return await self.ended()
        except TimeoutError:
            self._process.kill()
            return await self.ended()

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self.last_lines.append(text)
            try:
                event = json.loads(text)
            except ValueError:
                continue  # not of the log: what Python or a library says
            if not isinstance(event, dict):
                continue
            match event.get("event"):
                case "worker.started":
                    self.children[event["worker"]] = event["pid"]
                case "worker.child_died":
                    self.children.pop(event["worker"], None)
            self._on_event(event)
            async with self._heard:
                self._heard.notify_all()
