"""A primary of the test's own and a hot standby that streams from it, both from the embedded server's programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue.embedded import EmbeddedServer, find_binaries
from pgqueue.embedded.places import reachable, server_user
from pgqueue.embedded.processes import spawn
from pgqueue.errors import NoServer
from tests.support.databases import install
from tests.support.waiting import wait_until


def _missing() -> str:
    try:
        binaries = find_binaries()
    except NoServer as error:
        return f"no standby: {error}"
    return "" if (binaries / "pg_basebackup").is_file() else f"no standby: {binaries} has no pg_basebackup"


MISSING = _missing()
"""Why there can be no standby here; empty: there can."""


class Standby:
    """The pair. pgqueue's schema is in the database `postgres` of the primary before the standby is made."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="pgqueue-standby-", dir="/tmp"))
            )
            folder.chmod(0o755)
            server = stack.enter_context(EmbeddedServer(folder / "primary", durable=False))
            self.primary_dsn = server.dsn
            with self.primary() as connection:
                install(connection)
            self._start(stack, folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def primary(self) -> psycopg.Connection:
        """A session of the primary, in autocommit."""
        return psycopg.connect(self.primary_dsn, autocommit=True)

    def replica(self) -> psycopg.Connection:
        """A session of the standby, in autocommit."""
        return psycopg.connect(self.replica_dsn, autocommit=True)

    def _start(self, stack: contextlib.ExitStack, folder: Path) -> None:
        user = server_user(folder)
        binaries = reachable(find_binaries(), user)
        place = folder / "standby"
        place.mkdir(mode=0o700)
        if user:
            shutil.chown(place, user.uid, user.gid)
        given = {name: str(value) for name, value in conninfo_to_dict(self.primary_dsn).items()}
        copy = [
            str(binaries / "pg_basebackup"),
            "-h",
            given["host"],
            "-p",
            given["port"],
            "-U",
            given["user"],
        ]
        copy += ["-D", str(place / "data"), "-R", "-X", "stream", "-c", "fast", "--no-sync"]
        with spawn(copy, user, subprocess.PIPE) as copying:
            said, _ = copying.communicate(timeout=60)
        assert copying.returncode == 0, said.decode(errors="replace")

        command = [str(binaries / "postgres"), "-D", str(place / "data")]
        settings = {"listen_addresses": "", "port": given["port"], "unix_socket_directories": str(place)}
        settings |= {"fsync": "off", "max_connections": "200", "timezone": "UTC"}
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        log = os.open(folder / "standby.log", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            process = spawn(command, user, log)
        finally:
            os.close(log)
        stack.callback(_end, process)
        self.replica_dsn = make_conninfo(self.primary_dsn, host=str(place))
        wait_until(self._answers, 30, "the standby to answer")

    def _answers(self) -> bool:
        try:
            with self.replica():
                return True
        except psycopg.OperationalError:
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGQUIT)
    process.wait(30)
