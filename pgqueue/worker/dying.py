"""How the processes of a worker end: with their parent, before it when memory runs out, and in words."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from pathlib import Path


def die_with_parent() -> None:
    """On Linux the kernel kills this process when its parent dies; elsewhere the end of stdin has to do."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def go_first() -> None:
    """When the memory of the machine runs out, the kernel kills this process rather than the worker's others."""
    with contextlib.suppress(OSError):  # no Linux, or a worker that is to be killed even sooner
        Path("/proc/self/oom_score_adj").write_text("500")


def how_it_ended(code: int) -> str:
    """How a process ended, in words, from the code that `asyncio` and `subprocess` give.

    >>> how_it_ended(-11), how_it_ended(3)
    ('was killed by SIGSEGV', 'ended with exit code 3')
    """
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal_name(-code)}"


def signal_name(number: int) -> str:
    """The name of a signal; those of the real-time ones between the first and the last have none.

    >>> signal_name(9), signal_name(40)
    ('SIGKILL', 'signal 40')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
