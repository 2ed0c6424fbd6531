"""An older dump is restored while workers run: they go on in the past, and nothing of what was forgotten harms it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue.embedded import find_binaries
from pgqueue.embedded.places import reachable, server_user
from tests.faults.forgotten import forget, probe
from tests.faults.scene import Scene
from tests.support.standby import MISSING
from tests.worker.harness import Worker

needs_programs = pytest.mark.skipif(bool(MISSING), reason=MISSING)


class Dumps:
    """Dumps the database of a scene, and restores it."""

    def __init__(self, dsn: str, folder: Path):
        self._dsn = dsn
        self._file = folder / "dump"
        user = server_user(folder)
        self._binaries = reachable(find_binaries(), user)
        self._name = str(conninfo_to_dict(dsn)["dbname"])
        self._server = make_conninfo(dsn, dbname="postgres")

    def hurry(self) -> None:
        """Sessions find out about deadlocks with a restore sooner than after a second each."""
        self._sql("alter database {} set deadlock_timeout = '50ms'", self._name)

    def take(self) -> None:
        """A dump of what there is."""
        problem = self._run("pg_dump", "--format=custom", f"--file={self._file}", f"--dbname={self._dsn}")
        assert not problem, problem

    def swap_in(self) -> None:
        """A database of the dump takes the place of the one there is, of which sessions are ended."""
        old, new = f"{self._name}_old", f"{self._name}_new"
        self._sql("create database {}", new)
        problem = self._restore(make_conninfo(self._dsn, dbname=new))
        assert not problem, problem
        self._sql("alter database {} allow_connections false", self._name)
        self._sql("alter database {} rename to {}", self._name, old, ending=self._name)
        self._sql("alter database {} rename to {}", new, self._name)
        self._sql("drop database {} with (force)", old)

    def restore_in_place(self) -> None:
        """The schemas are dropped and restored in one transaction, while sessions go on: again, after a deadlock with one."""
        for _ in range(20):
            problem = self._restore(self._dsn, "--clean", "--if-exists")
            if not problem:
                return
            assert "deadlock detected" in problem, problem
        raise AssertionError("a deadlock each time")

    def _restore(self, dsn: str, *options: str) -> str:
        return self._run("pg_restore", "--single-transaction", *options, f"--dbname={dsn}", str(self._file))

    def _run(self, program: str, *arguments: str) -> str:
        """Runs a program of the server's; returns what was wrong, nothing when it succeeded."""
        command = [str(self._binaries / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stderr if done.returncode else ""

    def _sql(self, statement: str, *names: str, ending: str = "") -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            if ending:
                query = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s"
                connection.execute(query, [ending])
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@needs_programs
@pytest.mark.fault(
    "an older dump takes the place of the database: what came after it is forgotten, and nothing else"
)
def test_a_database_of_an_older_dump_is_worked_on(scene: Scene, tmp_path: Path) -> None:
    dumps = Dumps(scene.dsn, tmp_path)
    later = restored(scene, dumps, dumps.swap_in)
    assert later.events("worker.declared_dead"), "the dump does not know of it"


@needs_programs
@pytest.mark.fault("an older dump is restored in place, in one transaction, under load")
def test_a_dump_that_is_restored_in_place_is_worked_on(scene: Scene, tmp_path: Path) -> None:
    dumps = Dumps(scene.dsn, tmp_path)
    dumps.hurry()
    restored(scene, dumps, dumps.restore_in_place)


def restored(scene: Scene, dumps: Dumps, restore: Callable[[], None]) -> Worker:
    """A dump is taken under load, and restored after some more of it; returns a worker that came in between."""
    worker = scene.start(processes=2)
    with scene.load(rate=8):
        scene.wait_for_ends(40)
        dumps.take()
        later = scene.start()
        scene.wait_for_ends(20)
        restore()
        restored_at = time.monotonic()
        probe(scene)
        scene.wait_for_ends(40)
    scene.settle()
    lost, again = forget(scene, restored_at)
    assert lost, "nothing was lost: this test shows nothing"
    assert again, "no ending was forgotten: this test shows too little"
    assert worker.events("worker.child_died") == []
    report = scene.check("raised", "refused")
    report.again = again
    print(f"{lost} jobs were forgotten")
    return later
