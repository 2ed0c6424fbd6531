"""What a supervisor does to a child that has just died takes its exit code from nobody."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgqueue.worker.board import Board
from pgqueue.worker.child_process import ChildProcess
from tests.support import wait_until


@pytest.fixture
def _no_thread_waits() -> Iterator[None]:
    """The event loop waits for children itself. That of 3.11 has a thread for it, which no test can keep from being first."""
    if sys.version_info >= (3, 12):
        yield
        return
    before = asyncio.get_child_watcher()
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    yield
    asyncio.set_child_watcher(before)


@pytest.mark.usefixtures("_no_thread_waits")
@pytest.mark.skipif(
    not Path("/proc").exists(), reason="looks at /proc for a process that has died and was not waited for"
)
def test_a_signal_to_a_child_that_has_just_died_leaves_its_exit_code() -> None:
    async def scenario() -> int:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(7)")
        board = Board.create(1)
        ready: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        child = ChildProcess(0, 1, process, board, ready)
        # Nothing of the loop runs meanwhile, so that nobody has waited for it when it is sent the signal.
        wait_until(lambda: state(process.pid) == "Z", 30, "the child's end")
        child.send(signal.SIGTERM)
        child.kill()
        code = await process.wait()
        board.close()
        return code

    assert asyncio.run(scenario()) == 7


def state(pid: int) -> str:
    """Z: it has died, and its exit code waits to be asked for."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
