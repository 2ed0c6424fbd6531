"""From an empty folder to a database cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from pgqueue.embedded.address import SUPERUSER
from pgqueue.embedded.places import ServerUser
from pgqueue.embedded.processes import START_SECONDS, spawn
from pgqueue.errors import ServerFailed


def initialise(
    data: Path,
    binaries: Path,
    user: ServerUser | None,
    *,
    cluster_name: str,
    durable: bool,
    progress: Callable[[str], None],
) -> None:
    """Makes `data/` beside its place and renames it, so that a kill leaves nothing half-made."""
    for leftover in data.parent.glob("new-pgqueue-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if (data / "PG_VERSION").exists():
        return
    progress(f"initialising {data}")
    # The name shows in initdb's command line, so that a start after a kill waits for its clean-up too.
    partial = Path(tempfile.mkdtemp(prefix=f"new-{cluster_name}-", dir=data.parent))
    if user:
        os.chown(partial, user.uid, user.gid)
    command = [str(binaries / "initdb"), "-D", str(partial), "-U", SUPERUSER, "-E", "UTF8", "--locale=C"]
    command += ["--auth-local=trust", "--auth-host=scram-sha-256", "--no-instructions"]
    command += [] if durable else ["--no-sync"]
    with spawn(command, user, subprocess.PIPE) as initdb:
        try:
            output, _ = initdb.communicate(timeout=START_SECONDS)
        except BaseException:
            initdb.terminate()
            raise
    if initdb.returncode != 0:
        said = "\n".join(output.decode(errors="replace").splitlines()[-10:])
        raise ServerFailed(f"initdb failed in {data.parent}; it says:\n{said}")
    partial.rename(data)
    if durable:
        folder = os.open(data.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
