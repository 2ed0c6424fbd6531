"""PgBouncer in transaction mode before the tests' server: the pooler that workers meet most."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from urllib.parse import quote, urlencode

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from tests.support.program import PATH, Program, free_port

BINARY = shutil.which("pgbouncer", path=PATH)
"""Where it is installed; None: nowhere."""
MISSING = "PgBouncer is not installed (Debian: apt-get install pgbouncer)"
"""The reason for skipping what needs it."""


class PgBouncer(Program):
    """Pools the connections to every database of the server of `dsn`; clients of that one's connect to `.dsn`."""

    def __init__(self, dsn: str, *, pool_size: int = 20):
        """`pool_size`: sessions of the server for each database."""
        super().__init__("pgbouncer", unprivileged=True)
        options = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
        self._user, self._name = options.get("user", "postgres"), options["dbname"]
        self._port = free_port()
        server = " ".join(
            f"{key}={options[key]}" for key in ("host", "port", "user", "password") if key in options
        )
        (self.folder / "users").write_text(f'"{self._user}" "{options.get("password", "")}"\n')
        (self.folder / "pgbouncer.ini").write_text(
            f"""[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self._port}
unix_socket_dir =
auth_type = trust
auth_file = {self.folder}/users
admin_users = {self._user}
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
server_login_retry = 0.2
ignore_startup_parameters = extra_float_digits, options
"""
        )
        self.dsn = self.dsn_for(self._name)

    def dsn_for(self, database: str) -> str:
        """The way to another database of the server, over this pooler."""
        query = {"host": "127.0.0.1", "port": self._port, "user": self._user, "sslmode": "disable"}
        return f"postgresql:///{quote(database, safe='')}?{urlencode(query)}"

    def command(self) -> Sequence[str]:
        assert BINARY is not None, MISSING
        return [BINARY, str(self.folder / "pgbouncer.ini")]

    def order(self, command: str) -> None:
        """An order to its console, such as PAUSE."""
        with psycopg.connect(self.dsn_for("pgbouncer"), autocommit=True, prepare_threshold=None) as console:
            answer = console.pgconn.exec_(command.encode())  # it knows the simple protocol alone
            assert answer.status == pq.ExecStatus.COMMAND_OK, answer.error_message.decode()

    def answers(self) -> bool:
        try:
            psycopg.connect(self.dsn, autocommit=True).close()
        except psycopg.OperationalError:
            return False
        return True
