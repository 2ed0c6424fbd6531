"""The pytest plugin, in a project of somebody else: found by pytest by itself, and silent until it is used."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import psycopg
import pytest

from pgqueue.testing import assert_enqueued
from tests.support import Databases

SHOP = """
import psycopg
import pgqueue

app = pgqueue.App()


@app.task(queue="email")
async def send_welcome(user_id: int) -> str:
    return f"welcome {user_id}"


def sign_up(connection: psycopg.Connection, user_id: int) -> None:
    send_welcome.enqueue(connection, user_id=user_id)
"""

TESTS = """
import psycopg
import pytest
from pgqueue.testing import assert_enqueued, drain, enqueued, perform
from shop import app, send_welcome, sign_up


@pytest.mark.parametrize("user_id", [7, 8])
def test_a_sign_up_sends_a_mail(pgqueue_connection, user_id):
    sign_up(pgqueue_connection, user_id)
    [job] = assert_enqueued(pgqueue_connection, send_welcome, args={"user_id": user_id}, queue="email")
    assert [job] == enqueued(pgqueue_connection)  # nothing of the test before
    [ran] = drain(app, pgqueue_connection).attempts
    assert ran.result == f"welcome {user_id}"


def test_without_a_database():
    assert perform(send_welcome, user_id=7) == "welcome 7"


def test_what_was_rolled_back_is_gone(pgqueue_dsn):
    with psycopg.connect(pgqueue_dsn) as connection:
        assert enqueued(connection) == []
        assert connection.execute("select count(*) from pgqueue.finished_jobs").fetchone() == (0,)


def test_a_failure_is_short(pgqueue_connection):
    sign_up(pgqueue_connection, 7)
    assert_enqueued(pgqueue_connection, send_welcome, args={"user_id": 8})
"""

STRANGER = """
import sys

def test_nothing_of_ours_was_imported():
    heavy = {"psycopg", "sqlalchemy", "alembic", "pgqueue.app", "pgqueue.testing"}
    assert not heavy & set(sys.modules)
    assert "pgqueue.pytest_plugin" in sys.modules
"""


def pytest_in(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest in a folder, where every warning is an error."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "PYTEST", "DATABASE"))
    }
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with tests."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\npythonpath = .\n")
    return tmp_path


def told(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def test_it_is_registered_with_pytest() -> None:
    assert entry_points(group="pytest11", name="pgqueue"), "the package was installed before: run `make test`"


def test_a_project_tests_on_the_database_that_it_names(project: Path, databases: Databases) -> None:
    dsn = databases.create_empty()
    done = pytest_in(project, PGQUEUE_TEST_DATABASE_URL=dsn)
    assert "4 passed, 1 failed" in told(done).replace("1 failed, 4 passed", "4 passed, 1 failed"), told(done)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select count(*) from pgqueue_bi.jobs").fetchone() == (0,)
    databases.drop(dsn)

    failure = done.stdout.partition("test_a_failure_is_short")[2]
    assert 'no job of send_welcome with args {"user_id": 8} enqueued' in failure
    assert "nearest, but args.user_id is 7, not 8" in failure
    assert "pgqueue/testing" not in failure  # the traceback ends in the test


def test_who_does_not_use_it_does_not_notice_it(tmp_path: Path) -> None:
    (tmp_path / "test_stranger.py").write_text(STRANGER)
    done = pytest_in(tmp_path)
    assert done.returncode == 0, told(done)


# The page of the documentation ------------------------------------------------------------------------

PAGE = (Path(__file__).resolve().parents[1] / "docs/howto/testing.md").read_text()


def files_of_the_page() -> dict[str, str]:
    """The Python of the page by the name of its file; blocks of one file follow each other."""
    files: dict[str, str] = {}
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.S):
        files[name] = files.get(name, "") + code
    assert PAGE.count("```python\n") == PAGE.count("```python\n# ")
    return files


def test_every_test_of_the_howto_page_passes_on_a_database_that_the_run_brings(tmp_path: Path) -> None:
    files = files_of_the_page()
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    done = pytest_in(tmp_path, "-o", "pythonpath=.")
    tests = sum(code.count("\ndef test_") for code in files.values())
    assert f"\n{tests} passed" in done.stdout, told(done)


def test_the_failure_on_the_howto_page_is_the_real_one(
    tmp_path: Path, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "howto_shop.py").write_text(files_of_the_page()["shop.py"])
    monkeypatch.syspath_prepend(tmp_path)
    shop = importlib.import_module("howto_shop")
    shop.sign_up(connection, user_id=7)
    with pytest.raises(AssertionError) as failure:
        assert_enqueued(connection, shop.send_welcome, args={"user_id": 8})
    shown = PAGE.partition("```text\n")[2].partition("\n```")[0]
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+\d\d:\d\d"
    assert re.sub(moment, "…", str(failure.value)) == re.sub(moment, "…", shown)
