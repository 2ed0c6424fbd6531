"""The server of a data folder that is ours, from nothing to one that answers, and its end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pgqueue.embedded import leftovers
from pgqueue.embedded.address import SUPERUSER, Address, free_port
from pgqueue.embedded.initdb import initialise
from pgqueue.embedded.places import ServerUser, find_binaries, reachable, server_user
from pgqueue.embedded.processes import POLL_SECONDS, START_SECONDS, STOP_SECONDS, kill_all, spawn
from pgqueue.errors import ServerFailed

_LOG_BYTES = 10_000_000
_SOCKET_PATH_BYTES = 103  # macOS; Linux has 107

_DEFAULTS = {"max_connections": "200", "timezone": "UTC", "log_timezone": "UTC"}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postmaster:
    """Runs the server on `data_dir`; whoever has one holds the folder's lock."""

    def __init__(
        self,
        data_dir: Path,
        cluster_name: str,
        *,
        durable: bool,
        settings: Mapping[str, str],
        binaries: Path | None,
        progress: Callable[[str], None],
    ) -> None:
        self.data_dir = data_dir
        self.cluster_name = cluster_name
        self._data = data_dir / "data"
        self._log = data_dir / "server.log"
        self._settings = _DEFAULTS | ({} if durable else _NOT_DURABLE) | dict(settings)
        self._durable = durable
        self._binaries = binaries
        self._progress = progress
        self._process: subprocess.Popen[bytes] | None = None
        self.address: Address | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Makes `data/` if there is none, ends what was left behind, and returns when the server answers."""
        user = server_user(self.data_dir)
        found = self._binaries or find_binaries()
        binaries = reachable(found, user)
        copied = "" if binaries == found else f", copied to {binaries} for the server's user"
        self._progress(f"found PostgreSQL in {found}{copied}")
        leftovers.end_server(self._data, self.cluster_name, self._progress)
        leftovers.remove_stale_pid_file(self._data, self._progress)
        initialise(
            self._data,
            binaries,
            user,
            cluster_name=self.cluster_name,
            durable=self._durable,
            progress=self._progress,
        )
        before = Address.read(self.data_dir / "server.json")
        for attempt in range(5):
            self.remove_sockets()
            address, log_start = self._launch(binaries, user, before)
            if self._answers(address):
                break
            tail = self._log_since(log_start)
            self.end(signal.SIGQUIT)
            # Between our look at the port and the server's, somebody else may have taken it.
            if "could not bind" not in tail or attempt == 4:
                raise ServerFailed(
                    f"PostgreSQL did not start on {self._data}; its log ({self._log}) says:\n{tail}"
                )
        address.set_password()
        address.write(self.data_dir / "server.json")
        version = address.show("server_version")
        self._progress(f"started PostgreSQL {version} (pid {address.pid}) on {address.dsn(SUPERUSER)}")

    def end(self, first: signal.Signals) -> None:
        """Ends the postmaster: the signal given, then an immediate shutdown, then SIGKILL for all."""
        process = self._process
        if process is None:
            return
        for wanted in (first, signal.SIGQUIT):
            process.send_signal(wanted)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
                self._process = None
                return
        self.kill()

    def kill(self) -> None:
        """SIGKILL for the postmaster and its children."""
        if self._process is not None:
            self._process.kill()  # first, or it would start new children and then recover by itself
            kill_all(self.cluster_name)
            self._process.wait()
            self._process = None

    def remove_sockets(self) -> None:
        """Removes what a crash left: the socket's own lock file has the stale pid's trouble too."""
        for folder in (self.data_dir / "run", *Path("/tmp").glob(f"{self.cluster_name}-*")):
            shutil.rmtree(folder, ignore_errors=True)

    def _launch(self, binaries: Path, user: ServerUser | None, before: Address | None) -> tuple[Address, int]:
        """Starts the postmaster; returns its address and where its log begins."""
        port = free_port(before.port if before else 0)
        sockets = self._make_sockets(user)
        settings = self._settings | {
            "cluster_name": self.cluster_name,
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": sockets,
            "logging_collector": "off",
        }
        command = [str(binaries / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            log_start = os.fstat(log).st_size
            self._process = spawn(command, user, log)
        finally:
            os.close(log)
        password = before.password if before else secrets.token_urlsafe(24)
        self.address = Address(self._process.pid, port, sockets, password)
        return self.address, log_start

    def _make_sockets(self, user: ServerUser | None) -> str:
        """An empty 0700 folder of the server's user for the Unix socket, with a path that sockets can take."""
        folder = self.data_dir / "run"
        address = os.fsencode(folder / ".s.PGSQL.65535")
        if len(address) > _SOCKET_PATH_BYTES or b"," in address:  # libpq takes a comma for two hosts
            folder = Path(tempfile.mkdtemp(prefix=f"{self.cluster_name}-", dir="/tmp"))
        else:
            folder.mkdir(mode=0o700)
        if user:
            os.chown(folder, user.uid, user.gid)
        return str(folder)

    def _answers(self, address: Address) -> bool:
        """Waits until the server answers; False when it ended instead, or the time is up."""
        process, deadline = self._process, time.monotonic() + START_SECONDS
        assert process is not None
        while time.monotonic() < deadline:
            if address.show("cluster_name") == self.cluster_name:
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
                return False
        return False

    def _log_since(self, start: int) -> str:
        with self._log.open("rb") as log:
            log.seek(start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-10:])
