"""Behind PgBouncer in transaction mode: a sample of the suite's core; `make pooled` runs all of it there."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from pgqueue import migrate
from tests.support import Databases
from tests.support.pgbouncer import BINARY, MISSING, PgBouncer
from tests.worker import tasks
from tests.worker.conftest import StartWorker
from tests.worker.harness import REPOSITORY, Rows

SAMPLE = ("tests/conformance/test_enqueue.py", "tests/worker/test_claiming.py")
POOLED = "PGQUEUE_TEST_POOLER"

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)


@pytest.mark.skipif(POOLED in os.environ, reason="this is behind a pooler already")
def test_a_sample_of_the_core_passes_behind_a_transaction_pooler() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SAMPLE],
        cwd=REPOSITORY,
        env=environment | {POOLED: "pgbouncer"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) > 300, run.stdout[-500:]


def test_a_worker_finds_the_pooler_by_itself(database: str, rows: Rows, start_worker: StartWorker) -> None:
    with PgBouncer(database) as pooler:
        worker = start_worker(dsn=pooler.dsn)
        assert worker.events("wake.poll")
        rows.wait_for("completed", tasks.quick.enqueue(rows.connection).id)
        worker.kill()
    assert worker.events("database.unavailable") == []


def test_the_schema_is_installed_through_it(databases: Databases) -> None:
    dsn = databases.create_empty()
    with PgBouncer(dsn) as pooler:
        assert migrate.upgrade(pooler.dsn) != ()
        assert migrate.check(pooler.dsn).pending == ()
    databases.drop(dsn)
