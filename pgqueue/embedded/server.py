"""`EmbeddedServer`: who owns a data folder, who joins, and what both can ask for."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Literal, Self

import psycopg

from pgqueue.embedded.address import Address
from pgqueue.embedded.places import make_folder, server_user
from pgqueue.embedded.postmaster import Postmaster
from pgqueue.embedded.processes import POLL_SECONDS, START_SECONDS, cluster_name_of
from pgqueue.errors import NoServer, ServerFailed

if sys.platform != "win32":
    import fcntl


class EmbeddedServer:
    """A local PostgreSQL on `data_dir`, made there at the first start.

    `durable=False` is for tests: fsync, synchronous_commit and full_page_writes off, so that even `kill()`
    may lose the last commits; crash tests want it on. `settings` are server settings by name
    (`{"max_prepared_transactions": "10"}`); where the server listens and its cluster name are not open to
    change. Both apply when this process starts the server, not when it joins one. `binaries` is a `bin`
    folder, by default `find_binaries()`. `progress` receives one line per step.

    The superuser is `postgres`, without a password over the Unix socket. Encoding UTF8, locale C, time
    zone UTC.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        durable: bool = True,
        settings: Mapping[str, str] = MappingProxyType({}),
        binaries: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self._durable = durable
        self._settings = dict(settings)
        self._binaries = binaries
        self._progress = progress or (lambda _: None)
        self._lock: int | None = None
        self._owned: Postmaster | None = None
        self._joined: Address | None = None

    # What the user asks for.

    def start(self) -> None:
        """Starts the server, or joins the one that another process owns. Nothing when it is running.

        To be called from the main thread: the kernel takes the end of the *thread* that started the
        server for the end of its owner. Raises `NoServer` without binaries, `ServerFailed` otherwise.
        """
        if sys.platform == "win32":
            raise NoServer("the embedded PostgreSQL needs Linux or macOS; set PGQUEUE_DSN to a server")
        if threading.current_thread() is not threading.main_thread():
            raise ServerFailed("the embedded PostgreSQL must be started from the main thread")
        if self._owned is not None and self._owned.is_running:
            return
        try:
            if self._lock is None and not self._own_or_join():
                return
            self._postmaster("start").start()
        except (OSError, subprocess.SubprocessError, psycopg.Error) as error:
            self.stop()
            raise ServerFailed(f"no embedded PostgreSQL in {self.data_dir}: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server (fast shutdown) and gives up the folder; a process that joined just leaves."""
        if self._lock is None:
            self._owned = self._joined = None
            return
        if self._owned is not None:
            self._owned.end(signal.SIGINT)
            self._owned.remove_sockets()
            self._owned = None
        _owners.discard(self)
        atexit.unregister(self.stop)
        os.close(self._lock)
        self._lock = None

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stops and starts the server at the same address. "immediate" means recovery from the log."""
        self._postmaster("restart").end(signal.SIGQUIT if mode == "immediate" else signal.SIGINT)
        self.start()

    def kill(self) -> None:
        """SIGKILL for the postmaster and its children, for crash tests; `start()` brings it back."""
        self._postmaster("kill").kill()

    @property
    def dsn(self) -> str:
        """A libpq URI of the database `postgres` over the Unix socket, without a secret in it."""
        return self.dsn_for("postgres")

    def dsn_for(self, database: str) -> str:
        """As `dsn`, for another database of the server; it is not created."""
        return self._reached.dsn(database)

    @property
    def tcp_url(self) -> str:
        """A URI over 127.0.0.1 for tools that cannot use a Unix socket. It holds the password."""
        return self._reached.tcp("postgres")

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return self._reached.pid

    @property
    def is_owner(self) -> bool:
        """Whether the server ends with this process. False after joining, and before the start."""
        return self._lock is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Who owns the folder.

    @property
    def _reached(self) -> Address:
        address = self._owned.address if self._owned is not None else self._joined
        if address is None:
            raise ServerFailed("the embedded PostgreSQL is not started")
        return address

    def _postmaster(self, verb: str) -> Postmaster:
        if self._lock is None or self._owned is None:
            raise ServerFailed(f"only the process that owns the embedded PostgreSQL can {verb} it")
        return self._owned

    def _own_or_join(self) -> bool:
        """True with the lock in hand; False once connected to the server of the lock's holder."""
        make_folder(self.data_dir, server_user(self.data_dir))
        name = cluster_name_of(self.data_dir)
        lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            owner = self._lock_or_address(lock, name)
        except BaseException:
            os.close(lock)
            raise
        if owner is None:
            self._lock = lock
            self._joined = None
            self._owned = Postmaster(
                self.data_dir,
                name,
                durable=self._durable,
                settings=self._settings,
                binaries=self._binaries,
                progress=self._progress,
            )
            _owners.add(self)
            atexit.register(self.stop)
            return True
        os.close(lock)
        self._owned, self._joined = None, owner
        self._progress(
            f"joined the PostgreSQL of another process (pid {owner.pid}) at {owner.dsn('postgres')}"
        )
        return False

    def _lock_or_address(self, lock: int, cluster_name: str) -> Address | None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return None
            # The owner may be at its start still, or at its end: look at both until one is settled.
            address = Address.read(self.data_dir / "server.json")
            if address and address.show("cluster_name") == cluster_name:
                return address
            if time.monotonic() > deadline:
                raise ServerFailed(f"another process holds {self.data_dir}, and its server does not answer")
            time.sleep(POLL_SECONDS)


_owners: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _disown_after_fork() -> None:
    """A forked child is no owner: it must not stop the server, nor hold the lock after its parent."""
    for server in _owners:
        if server._lock is not None:
            os.close(server._lock)
            server._lock = None


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_disown_after_fork)
