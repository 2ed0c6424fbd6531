"""PgBouncer in transaction mode before the tests' server: the pooler that workers meet most."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.support.waiting import wait_until

BINARY = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
"""Where it is installed; None: nowhere."""
MISSING = "PgBouncer is not installed (Debian: apt-get install pgbouncer)"
"""The reason for skipping what needs it."""


class PgBouncer:
    """Pools the connections to the database of `dsn`; clients connect to `.dsn`."""

    def __init__(self, dsn: str, *, pool_size: int = 20):
        options = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
        user, name = options.get("user", "postgres"), options["dbname"]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.folder = Path(tempfile.mkdtemp(prefix="pgqueue-pgbouncer-"))
        server = " ".join(
            f"{key}={options[key]}" for key in ("host", "port", "user", "password") if key in options
        )
        (self.folder / "users").write_text(f'"{user}" "{options.get("password", "")}"\n')
        (self.folder / "pgbouncer.ini").write_text(
            f"""[databases]
{name} = {server} dbname={name}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {self.folder}/users
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
logfile = {self.folder}/log
"""
        )
        query = {"host": "127.0.0.1", "port": port, "user": user, "dbname": name, "sslmode": "disable"}
        self.dsn = f"postgresql:///?{urlencode(query)}"

    def __enter__(self) -> Self:
        assert BINARY is not None, MISSING
        command = [BINARY, str(self.folder / "pgbouncer.ini")]
        account = None
        if os.geteuid() == 0:  # it refuses to be root
            account = next(name for name in ("postgres", "nobody") if _exists(name))
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, account)
        self._process = subprocess.Popen(
            command, user=account, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, message="PgBouncer")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        if error is not None and (log := self.folder / "log").exists():
            print(log.read_text()[-3000:])
        shutil.rmtree(self.folder)

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.dsn, autocommit=True, prepare_threshold=None) as connection:
                return connection.execute("select true").fetchone() == (True,)
        except psycopg.OperationalError:
            return False


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
