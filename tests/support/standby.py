"""A primary of the test's own and a hot standby that streams from it, both from the embedded server's programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
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


_SETTINGS = {"max_wal_size": "256MB"}

MISSING = _missing()
"""Why there can be no standby here; empty: there can."""


class Standby:
    """The pair. pgqueue's schema is in the database `postgres` of the primary before the standby is made.

    `durable`: what a server confirmed survives when its processes are killed. `dsn` leads to whichever can be written to.
    """

    def __init__(self, *, durable: bool = False):
        self._durable = durable

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="pgqueue-standby-", dir=_folder()))
            )
            folder.chmod(0o755)
            self._server = EmbeddedServer(folder / "primary", durable=self._durable, settings=_SETTINGS)
            stack.enter_context(self._server)
            self.primary_dsn = self._server.dsn
            with self.primary() as connection:
                install(connection)
            self._user = server_user(folder)
            self._binaries = reachable(find_binaries(), self._user)
            self._given = {name: str(value) for name, value in conninfo_to_dict(self.primary_dsn).items()}
            self._stack = stack
            self._copy(folder / "standby")
            self.replica_dsn = make_conninfo(self.primary_dsn, host=str(folder / "standby"))
            self._run(folder / "standby/data", folder / "standby", self.replica)
            hosts = f"{self._given['host']},{folder / 'standby'}"
            ports = f"{self._given['port']},{self._given['port']}"
            self.dsn = make_conninfo(
                self.primary_dsn, host=hosts, port=ports, target_session_attrs="read-write", connect_timeout=3
            )
            self._folder = folder
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def primary(self) -> psycopg.Connection:
        """A session of the first primary, in autocommit."""
        return psycopg.connect(self.primary_dsn, autocommit=True)

    def replica(self) -> psycopg.Connection:
        """A session of the standby, in autocommit."""
        return psycopg.connect(self.replica_dsn, autocommit=True)

    def wait_for_the_standby(self, commit: str) -> None:
        """From now on a commit is acknowledged when the standby has it: `synchronous_commit` = `commit`."""
        with self.primary() as connection:
            connection.execute(f"alter system set synchronous_commit = '{commit}'")
            connection.execute("alter system set synchronous_standby_names = '*'")
            connection.execute("select pg_reload_conf()")
            state = "select sync_state from pg_stat_replication"
            wait_until(
                lambda: connection.execute(state).fetchone() == ("sync",), 30, "the standby to be in step"
            )

    def cut(self) -> None:
        """The standby hears of nothing any more."""
        with self.replica() as connection:
            connection.execute("alter system set primary_conninfo = ''")
            connection.execute("select pg_reload_conf()")
            receiver = "select count(*) from pg_stat_wal_receiver"
            wait_until(
                lambda: connection.execute(receiver).fetchone() == (0,), 30, "the standby to be cut off"
            )

    def fail_over(self, pause: float = 0) -> None:
        """The primary is killed, and after a while the standby is promoted."""
        self._server.kill()
        time.sleep(pause)
        with self.replica() as connection:
            assert connection.execute("select pg_promote(true, 30)").fetchone() == (True,)

    def bring_the_first_back(self) -> None:
        """The first primary starts again where it was, as a standby that waits for its new primary: it can be read."""
        data = self._folder / "primary/data"
        (data / "standby.signal").touch()
        self._run(data, Path(self._given["host"]), self.primary)

    def _copy(self, place: Path) -> None:
        place.mkdir(mode=0o700)
        if self._user:
            shutil.chown(place, self._user.uid, self._user.gid)
        given = self._given
        copy = [str(self._binaries / "pg_basebackup"), "-h", given["host"], "-p", given["port"]]
        copy += [
            "-U",
            given["user"],
            "-D",
            str(place / "data"),
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
        ]
        with spawn(copy, self._user, subprocess.PIPE) as copying:
            said, _ = copying.communicate(timeout=60)
        assert copying.returncode == 0, said.decode(errors="replace")

    def _run(self, data: Path, sockets: Path, session: Callable[[], psycopg.Connection]) -> None:
        """Starts a server that is none of `EmbeddedServer`'s, and waits until a session can be had."""
        command = [str(self._binaries / "postgres"), "-D", str(data)]
        settings = {
            "listen_addresses": "",
            "port": self._given["port"],
            "unix_socket_directories": str(sockets),
        }
        settings |= {"fsync": "off", "max_connections": "200", "timezone": "UTC", **_SETTINGS}
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        log = os.open(data.parent / "standby.log", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            process = spawn(command, self._user, log)
        finally:
            os.close(log)
        self._stack.callback(_end, process)

        def answers() -> bool:
            try:
                session().close()
            except psycopg.OperationalError:
                return False
            return True

        wait_until(answers, 30, "the standby to answer")


def _folder() -> str:
    """Memory, where there is some."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGQUIT)
    process.wait(30)
