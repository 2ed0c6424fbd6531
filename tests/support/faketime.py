"""Processes whose clock is wrong: libfaketime, from Debian's package faketime, preloaded into them alone."""

from __future__ import annotations

from pathlib import Path

LIBRARY = next((str(path) for path in sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
"""Where it is installed; None: nowhere."""
MISSING = "libfaketime is not installed (Debian: apt-get install faketime)"
"""The reason for skipping what needs it."""


def clock_off_by(seconds: float) -> dict[str, str]:
    """The environment of a process that takes the time for so much later (negative: earlier). Its timers stay true."""
    assert LIBRARY is not None, MISSING
    return {
        "LD_PRELOAD": LIBRARY,
        "FAKETIME": f"{seconds:+.3f}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",  # the same in older ones
        "FAKETIME_DISABLE_SHM": "1",
        "NO_FAKE_STAT": "1",
    }
