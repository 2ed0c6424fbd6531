"""How to reach a server, as `server.json` and `postmaster.pid` say it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from pgqueue.errors import ServerFailed

SUPERUSER = "postgres"


@dataclass(frozen=True)
class Address:
    """The contents of `server.json`."""

    pid: int
    port: int
    sockets: str
    password: str

    def dsn(self, database: str) -> str:
        folder, name = quote(self.sockets, safe=""), quote(database, safe="")
        return f"postgresql://{SUPERUSER}@/{name}?host={folder}&port={self.port}"

    def tcp(self, database: str) -> str:
        secret, name = quote(self.password, safe=""), quote(database, safe="")
        return f"postgresql://{SUPERUSER}:{secret}@127.0.0.1:{self.port}/{name}"

    def show(self, setting: str) -> str | None:
        """A setting of the server that answers at this address; None when none does."""
        try:
            with psycopg.connect(self.dsn(SUPERUSER), autocommit=True, connect_timeout=5) as connection:
                row = connection.execute("select current_setting(%s)", [setting]).fetchone()
        except psycopg.OperationalError:
            return None
        return str(row[0]) if row else None

    def set_password(self) -> None:
        """Gives the superuser this address's password, sent as a verifier: it may end up in the log."""
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(self.dsn(SUPERUSER), autocommit=True, options=options) as connection:
            verifier = connection.pgconn.encrypt_password(
                self.password.encode(), SUPERUSER.encode(), b"scram-sha-256"
            )
            role, literal = sql.Identifier(SUPERUSER), sql.Literal(verifier.decode())
            connection.execute(sql.SQL("alter role {} password {}").format(role, literal))

    def write(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)
        partial.replace(path)

    @staticmethod
    def read(path: Path) -> Address | None:
        try:
            return Address(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # absent, or torn by a power cut
            return None

    @staticmethod
    def read_pid_file(data: Path) -> Address | None:
        """What postmaster.pid says: a hint at best."""
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
            return Address(pid=abs(int(lines[0])), port=int(lines[3]), sockets=lines[4], password="")
        except (FileNotFoundError, ValueError, IndexError):
            return None


def free_port(preferred: int) -> int:
    """`preferred` when it is free on 127.0.0.1, else one that is."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ServerFailed("no free TCP port on 127.0.0.1")
