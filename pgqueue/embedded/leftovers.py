"""What an owner that was killed left behind: a server that still runs, and a `postmaster.pid` that lies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pgqueue.embedded.address import Address
from pgqueue.embedded.processes import POLL_SECONDS, STOP_SECONDS, commands, kill_all, postgres_named

_CLUSTER_NAME = re.compile(r"pgqueue-[0-9a-f]+-[0-9a-f]+")


def end_server(data: Path, cluster_name: str, progress: Callable[[str], None]) -> None:
    """Waits for a server or an initdb whose owner was killed; ends it where the kernel did not (macOS).

    Two servers on the same data destroy it, and PostgreSQL's own guard does not see everything.
    """
    begun = time.monotonic()
    told: set[signal.Signals] = set()
    while found := postgres_named(cluster_name):
        waited = time.monotonic() - begun
        wanted = signal.SIGINT if waited < STOP_SECONDS else signal.SIGQUIT
        if wanted not in told:
            progress(f"waiting for the end of a server left behind (pid {min(found)})")
            told.add(wanted)
            # The postmaster; a backend takes SIGINT for the cancel of a query.
            postmaster = Address.read_pid_file(data)
            if postmaster and postmaster.pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(postmaster.pid, wanted)
        if waited > 2 * STOP_SECONDS:
            kill_all(cluster_name)
        time.sleep(POLL_SECONDS)


def remove_stale_pid_file(data: Path, progress: Callable[[str], None]) -> None:
    """Removes postmaster.pid where PostgreSQL would take a stranger, or a torn file, for a server.

    Called when no server of ours is left. In doubt the file stays, and PostgreSQL looks at it: it knows
    what to do when the process is gone, and refuses to start beside a server that was started by hand.
    """
    path = data / "postmaster.pid"
    if not path.exists():
        return
    if recorded := Address.read_pid_file(data):
        command = dict(commands()).get(recorded.pid)
        if command is None or ("postgres" in command and not _CLUSTER_NAME.search(command)):
            return
        if recorded.show("data_directory") == str(data):
            return
    path.unlink()
    progress("removed a stale postmaster.pid: its process is no PostgreSQL on this data")
