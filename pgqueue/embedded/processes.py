"""Processes of PostgreSQL: started so that they end with us, found again, and killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from pgqueue.embedded.places import ServerUser
from pgqueue.errors import ServerFailed

START_SECONDS = 120.0  # initdb, or the recovery of a large database after a crash
STOP_SECONDS = 30.0
POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1


def _end_with_owner() -> Callable[[], None] | None:
    """What the child runs before exec, so that the kernel stops it when its owner dies, even by SIGKILL.

    SIGINT is PostgreSQL's fast shutdown, and makes `initdb` clean up; SIGTERM would wait for clients.
    """
    if sys.platform != "linux":
        return None
    # Everything that allocates happens here: between fork and exec another thread's lock may be held.
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    owner = os.getpid()

    def before_exec() -> None:
        # After the change of user, which would clear it.
        prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
        if os.getppid() != owner:  # died before we asked
            os._exit(1)

    return before_exec


def _environment() -> dict[str, str]:
    """Ours without libpq's and the server's variables (PGDATA, PGPORT, PGOPTIONS …), in the C locale."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return inherited | {"LC_ALL": "C"}


def spawn(command: list[str], user: ServerUser | None, output: int) -> subprocess.Popen[bytes]:
    """Starts a program of PostgreSQL's as `user`, away from the terminal's Ctrl-C, tied to our life."""
    with warnings.catch_warnings():
        # Python 3.12 warns of fork in a process with threads; see `_end_with_owner` for why it is safe.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(
            command,
            cwd="/",
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
            start_new_session=True,
            preexec_fn=_end_with_owner(),
        )


def commands() -> Iterator[tuple[int, str]]:
    """Process id and command line of every process; the command line of a zombie is empty."""
    if sys.platform != "linux":
        listing = subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True, check=True)
        for line in listing.stdout.splitlines():
            number, _, command = line.strip().partition(" ")
            yield int(number), command
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                command_line = Path("/proc", entry, "cmdline").read_bytes()
                yield int(entry), command_line.replace(b"\0", b" ").decode(errors="replace").strip()


def cluster_name_of(folder: Path) -> str:
    """Marks a folder's server. By inode: the same under every path of the folder, another for a copy."""
    found = folder.stat()
    return f"pgqueue-{found.st_dev:x}-{found.st_ino:x}"


def postgres_named(cluster_name: str) -> list[int]:
    """The server's processes. Each shows `cluster_name`; /proc/*/cwd would need more rights in Docker."""
    found = ((pid, *command.partition(cluster_name)) for pid, command in commands())
    return [pid for pid, before, name, _ in found if name and ("postgres" in before or "initdb" in before)]


def kill_all(cluster_name: str) -> None:
    """SIGKILL for every process of the server, until none is left."""
    deadline = time.monotonic() + STOP_SECONDS
    while found := postgres_named(cluster_name):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ServerFailed(f"processes {found} of the embedded PostgreSQL survive SIGKILL")
        time.sleep(POLL_SECONDS)
