"""The password of the DSN is nowhere but where the user has put it.

One worker, whose DSN has a password that is checked, runs jobs that fail with a connection in hand, loses its server and finds it
again. Then everything that it said, wrote and shows is searched.
"""

from __future__ import annotations

import contextlib
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue.cli import main
from tests.support import wait_until
from tests.support.own_server import databases_of, own_server_in_memory
from tests.worker.harness import Worker, children_of

SECRET = "s3cret-Pa55w0rd"
WRONG = "wr0ng-Pa55w0rd"
APP = "tests.badinput.secret_tasks:app"
UNREADABLE = ("an open bracket", "a broken escape", "a space")
TASKS = ("holds_connection", "wrong_password", "in_transaction")
COMMANDS = (
    "config show", "config show --json", "doctor", "db status", "workers list --json", "jobs list", "jobs show 1 --logs", "dead list",
    "dead show 2", "stats", "audit", "top --once", "health", "jobs lsit", "jobs show 99",
)  # fmt: skip


@dataclass
class Said:
    """What was said and kept, by where."""

    texts: dict[str, str] = field(default_factory=dict)
    environments: dict[int, set[str]] = field(default_factory=dict)
    """Of the supervisor and its children: the variables that hold the password."""

    def where(self, secret: str) -> list[str]:
        return [place for place, text in self.texts.items() if secret in text]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    folder = tmp_path_factory.mktemp("secrets")
    with own_server_in_memory() as server:
        (inside,) = databases_of(server, 1)
        with psycopg.connect(inside, autocommit=True) as admin:
            admin.execute(sql.SQL("create role shop login superuser password {}").format(SECRET))
        dbname = conninfo_to_dict(inside)["dbname"]
        at = conninfo_to_dict(server.tcp_url)
        dsn = f"postgresql://shop:{SECRET}@127.0.0.1:{at['port']}/{dbname}"
        said = Said()
        worker = Worker(dsn, folder, "--processes", "2", "--metrics-port", "0", app=APP, log_level="debug")
        others = []
        try:
            worker.wait_until_started(2)
            with psycopg.connect(inside, autocommit=True) as admin:
                for task in TASKS:
                    admin.execute("select pgqueue.enqueue(%s)", [task])
                dead = "select count(*) = %s from pgqueue_bi.dead_letters"
                wait_until(lambda: admin.execute(dead, [len(TASKS)]).fetchone() == (True,), 20, "all to die")
            server.restart("immediate")
            worker.wait_for("database.recovered", count=1)
            _look(said, worker, inside)
            for name, words in {command: command.split() for command in COMMANDS}.items():
                said.texts[f"pgqueue {name}"] = _pgqueue(dsn, *words)
            worker.stop()
            worker.wait()
            said.texts["the log"] = worker.told() + json.dumps(worker.log)
            # others that do not come up
            unread = f"postgresql://shop:{SECRET}@[127.0.0.1/{dbname}"
            bad = {
                "a wrong password": dsn.replace(SECRET, WRONG),
                "a bad host": f"postgresql://shop:{SECRET}@no-such-host.invalid/{dbname}",
                "a bad port": f"postgresql://shop:{SECRET}@127.0.0.1:1/{dbname}",
                "key=value pairs": make_conninfo(dsn, password=WRONG),
                "a bad option": f"host=127.0.0.1 password={SECRET} sslmode=perhaps",
                "an open bracket": unread,
                "a broken escape": f"postgresql://shop:{SECRET}%zz@127.0.0.1/{dbname}",
                "a space": f"postgresql://shop:{SECRET} x@127.0.0.1/{dbname}",
            }
            for name in ("a wrong password", "an open bracket"):
                other = Worker(bad[name], folder, app=APP, log_level="debug")
                others.append(other)
                assert other.wait(30) in (1, 2), other.told()
                said.texts[f"a worker with {name}"] = other.told() + json.dumps(other.log)
            for name, wrong in bad.items():
                words = ["jobs list", "config show", "doctor", "db upgrade"]
                words += ["worker x:y", "dev"] if name in UNREADABLE else []
                for line in words:
                    said.texts[f"pgqueue {line} with {name}"] = _pgqueue(wrong, *line.split())
        finally:
            for started in (worker, *others):
                started.kill()
    return said


def _pgqueue(dsn: str, *words: str) -> str:
    """What a command says, with a traceback if it makes one."""
    return CliRunner(env={"PGQUEUE_DSN": dsn, "PGQUEUE_TRACEBACK": "1"}).invoke(main, words).output


def _look(said: Said, worker: Worker, inside: str) -> None:
    """What a running worker shows: command lines, environments, its metrics, what the database says of it."""
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            said.texts[str(cmdline)] = cmdline.read_bytes().decode(errors="replace")
    pids = [worker.pid, *children_of(worker.pid)]
    pids += [grandchild for pid in pids[1:] for grandchild in children_of(pid)]
    for pid in pids:
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
            said.environments[pid] = {name.partition("=")[0] for name in variables if SECRET in name}
    port = worker.wait_for("metrics.listening")[0]["port"]
    for path in ("metrics", "health", "readyz", "livez"):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                said.texts[f"/{path}"] = answer.read().decode()
        except urllib.error.HTTPError as error:
            said.texts[f"/{path}"] = error.read().decode()
    with psycopg.connect(inside, autocommit=True) as admin:
        relations = admin.execute(
            "select n.nspname, c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace "
            "where n.nspname in ('pgqueue', 'pgqueue_bi') and c.relkind in ('r', 'p', 'v')"
        ).fetchall()
        for schema, name in [*relations, ("pg_catalog", "pg_stat_activity")]:
            query = sql.SQL("select coalesce(string_agg(t::text, chr(10)), '') from {} as t").format(
                sql.Identifier(schema, name)
            )
            (text,) = admin.execute(query).fetchone() or ("",)
            said.texts[f"{schema}.{name}"] = text


def test_the_password_is_nowhere(said: Said) -> None:
    assert said.where(SECRET) == []


def test_a_wrong_password_is_not_echoed(said: Said) -> None:
    assert said.where(WRONG) == []
    assert "password authentication failed" in said.texts["a worker with a wrong password"]


def test_children_have_it_only_where_the_user_has_put_it(said: Said) -> None:
    assert len(said.environments) >= 3
    for pid, names in said.environments.items():
        assert names == {"PGQUEUE_DSN"}, pid


def test_the_search_finds_what_there_is(said: Said) -> None:
    """What was to be searched was there: the errors of all three tasks, the role, the command lines, what stood in for it."""
    assert "shop" in said.texts["pg_catalog.pg_stat_activity"]
    assert "UndefinedTable" in said.texts["pgqueue.dead_letters"]
    assert "password authentication failed" in said.texts["pgqueue.dead_letters"]
    assert "pgqueue" in said.texts["/metrics"]
    assert "shop:***@127.0.0.1" in said.texts["pgqueue config show"]
    assert any(APP in text for place, text in said.texts.items() if place.endswith("/cmdline"))
    assert "worker.started" in said.texts["the log"]
    assert said.texts["pgqueue doctor"]
    assert len(said.texts) > 60
    assert os.environ.get("PGQUEUE_DSN") is None or SECRET not in os.environ["PGQUEUE_DSN"]
