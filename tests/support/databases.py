"""A template database with the schema of `sql/`, and copies of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

_SQL = Path(__file__).resolve().parents[2] / "sql"


class Databases:
    """Makes databases with pgqueue's schema on one server, as copies of a template (15 ms each in memory).

    `server` is the DSN of a database whose role may create others; nothing in that one is touched. The
    schema's roles (`pgqueue_producer` …) belong to the whole server, and stay.
    """

    def __init__(self, server: str, way: Callable[[str], str] | None = None) -> None:
        """`way`: the DSN to hand out for a database, by its name: one that leads through a pooler."""
        self._server = server
        self._way = way
        self._prefix = f"pgqueue_test_{os.getpid()}"
        self._template = f"{self._prefix}_template"
        self._numbers = itertools.count(1)
        self._admin = psycopg.connect(server, autocommit=True)
        self._command("drop database if exists {} with (force)", self._template)
        self._command("create database {}", self._template)
        with psycopg.connect(self._direct(self._template), autocommit=True) as connection:
            install(connection)

    def create(self) -> str:
        """The DSN of a fresh database with the schema and no rows."""
        name = f"{self._prefix}_{next(self._numbers)}"
        self._command("drop database if exists {} with (force)", name)
        self._command("create database {} template {} strategy file_copy", name, self._template)
        return self.dsn_for(name)

    def create_empty(self, *, encoding: str | None = None) -> str:
        """The DSN of a fresh database without pgqueue's schema, in the server's `encoding` or another one."""
        name = f"{self._prefix}_{next(self._numbers)}"
        if encoding is None:
            self._command("create database {}", name)
        else:
            self._command(f"create database {{}} template template0 encoding {encoding} locale 'C'", name)
        return self.dsn_for(name)

    def drop(self, dsn: str) -> None:
        """Removes a database, and ends whoever is still connected to it."""
        self._command("drop database if exists {} with (force)", str(conninfo_to_dict(dsn)["dbname"]))

    def close(self) -> None:
        """Removes the template."""
        self._command("drop database if exists {} with (force)", self._template)
        self._admin.close()

    def dsn_for(self, database: str) -> str:
        """A URI for another database of the server, in the form that psycopg, asyncpg and libpq all read."""
        return self._direct(database) if self._way is None else self._way(database)

    def _direct(self, database: str) -> str:
        options = {name: str(value) for name, value in conninfo_to_dict(self._server).items()}
        options.pop("dbname", None)
        return f"postgresql:///{quote(database, safe='')}?{urlencode(options)}"

    def _command(self, text: str, *names: str) -> None:
        self._admin.execute(sql.SQL(text).format(*map(sql.Identifier, names)))


def install(connection: psycopg.Connection) -> None:
    """Runs the files of `sql/` in the order of `ls`, in one transaction."""
    with connection.transaction():
        for path in sorted(_SQL.rglob("*.sql")):
            connection.execute(path.read_text())  # type: ignore[call-overload]
