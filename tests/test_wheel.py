"""The wheel, installed where there is no checkout: everything that the command needs is in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgqueue.version import __version__
from tests.support import Databases

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = Path(sysconfig.get_path("purelib"))
CLEAN = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": "/nonexistent"}

WATCHED = """
import json, os, sys
checkout, packages, report, *arguments = sys.argv[1:]
opened = set()

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path = os.path.realpath(arguments[0])
        if path.startswith(checkout + os.sep) and not path.startswith(packages + os.sep):
            opened.add(path)

sys.addaudithook(watch)
try:
    import pgqueue.cli
    pgqueue.cli.main(arguments)
finally:
    import pgqueue.migrate.revisions
    files = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("pgqueue")}
    with open(report, "w") as file:
        json.dump({"opened": sorted(opened), "files": files, "root": str(pgqueue.migrate.revisions.root())}, file)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `bin` of a fresh environment with the wheel in it.

    The dependencies are those of the environment that runs the tests, found by path: nothing is
    downloaded, and what is installed there in editable mode is not seen.
    """
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            wheel,
        ],
        check=True,
    )
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{PACKAGES}\n")
    return folder / "bin"


@pytest.fixture
def empty(databases: Databases) -> Iterator[str]:
    dsn = databases.create_empty()
    yield dsn
    databases.drop(dsn)


def test_the_wheel_has_the_sql_and_the_migrations_and_nothing_else_of_the_checkout(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("sql", "migrations"):
        wanted = {
            f"pgqueue/_data/{path.relative_to(REPOSITORY).as_posix()}"
            for path in (REPOSITORY / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert wanted <= set(names)
    assert not [name for name in names if name.endswith((".pyc", ".so")) or "__pycache__" in name]
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pgqueue", f"pgqueue_jobs-{__version__}.dist-info"}


def test_the_command_runs_from_the_wheel_alone(installed: Path, tmp_path: Path, empty: str) -> None:
    def command(*arguments: str) -> str:
        done = subprocess.run(
            [installed / "pgqueue", *arguments],
            cwd=tmp_path,
            env={**CLEAN, "PGQUEUE_DSN": empty},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert command("--version") == f"pgqueue {__version__}\n"
    command("db", "upgrade")
    assert json.loads(command("db", "check", "--json"))["ok"] is True
    assert command("db", "sql").startswith(f"-- pgqueue-jobs {__version__}: ")


def test_no_file_of_the_checkout_is_used(installed: Path, tmp_path: Path, empty: str) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [installed / "python", "-c", WATCHED, REPOSITORY, PACKAGES, report, "db", "upgrade", "--dsn", empty],
        cwd=tmp_path,
        env=CLEAN,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(report.read_text())
    assert seen["opened"] == []
    here = str(installed.parent.resolve())
    assert "pgqueue.migrate" in seen["files"]
    assert all(path.startswith(here) for path in [*seen["files"].values(), seen["root"]]), seen
