"""A DSN that names several hosts, of which one can be written to: everything that takes a DSN takes such a one."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import conninfo_to_dict

import pgqueue
from pgqueue.cli import main
from pgqueue.settings import Settings
from pgqueue.worker.link import keepalives
from tests.worker import tasks
from tests.worker.conftest import StartWorker
from tests.worker.harness import Rows
from tests.worker.process_tasks import in_process
from tests.worker.transactional_tasks import EFFECTS, KINDS

SECRET = "5ecret"


@pytest.fixture
def empty() -> Iterator[str]:
    """A folder in which no server listens."""
    with tempfile.TemporaryDirectory(prefix="pgqueue-no-server-", dir="/tmp") as folder:
        yield folder


@pytest.fixture(params=["URI", "pairs"])
def dsn(request: pytest.FixtureRequest, database: str, empty: str) -> str:
    """The test's database behind a host that is gone, with a password."""
    given = conninfo_to_dict(database)
    hosts, port = [empty, str(given["host"])], given["port"]
    rest = f"target_session_attrs=read-write&connect_timeout=2&sslmode={given.get('sslmode', 'prefer')}"
    if request.param == "URI":
        places = ",".join(f"{quote(host, safe='')}:{port}" for host in hosts)
        return f"postgresql://{given['user']}:{SECRET}@{places}/{given['dbname']}?{rest}"
    pairs = " ".join(rest.split("&"))
    return (
        f"host={','.join(hosts)} port={port},{port} user={given['user']} password='{SECRET}' "
        f"dbname={given['dbname']} {pairs}"
    )


def told(dsn: str, *arguments: str) -> Result:
    """What a command says, which has to succeed."""
    result = CliRunner().invoke(main, ["--dsn", dsn, *arguments])
    assert result.exit_code == 0, result.output
    assert SECRET not in result.output
    return result


def test_the_commands_reach_the_host_that_is_there_and_show_no_password(dsn: str) -> None:
    shown = json.loads(told(dsn, "config", "show", "--json").stdout)["dsn"]["value"]
    assert "***" in shown
    assert "read-write" in shown
    assert json.loads(told(dsn, "db", "status", "--json").stdout)["state"] != "missing"
    told(dsn, "enqueue", "quick")
    told(dsn, "stats")
    told(dsn, "doctor", "--only", "server", "--only", "listening")


def test_an_app_enqueues_over_it(dsn: str, rows: Rows) -> None:
    app = pgqueue.App(settings=Settings(dsn=dsn))
    quick = app.task(name="quick")(lambda: None)

    async def in_a_loop() -> int:
        job = await app.enqueue_async(quick)
        await app.aclose()
        return job.id

    ids = [app.enqueue(quick).id, asyncio.run(in_a_loop())]
    app.close()
    assert rows.states(*ids) == ["ready", "ready"]


@pytest.mark.parametrize("dsn", ["URI"], indirect=True)
def test_a_worker_listens_and_runs_every_kind_of_job_over_it(
    dsn: str, rows: Rows, start_worker: StartWorker
) -> None:
    rows.connection.execute(EFFECTS)
    worker = start_worker(dsn=dsn, app="tests.worker.transactional_tasks:app")
    assert worker.events("wake.poll") == []
    rows.wait_for("completed", *(task.enqueue(rows.connection).id for task in (tasks.quick, *KINDS)))
    apart = start_worker("-q", "apart", dsn=dsn, app="tests.worker.process_tasks:app")
    rows.wait_for("completed", in_process.using(queue="apart").enqueue(rows.connection).id)
    assert worker.events("database.unavailable") + apart.events("database.unavailable") == []
    assert SECRET not in worker.told() + apart.told()


def test_what_the_dsn_says_of_time_outs_is_what_counts() -> None:
    own = keepalives("host=a,b connect_timeout=3 keepalives_idle=1")
    assert not {"connect_timeout", "keepalives_idle"} & own.keys()
    assert keepalives("host=a,b")["connect_timeout"] == 10
