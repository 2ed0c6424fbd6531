"""What users may rely on: the names of the package, and the examples in its docstrings."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import pgqueue


def test_the_public_names_are_these() -> None:
    assert pgqueue.__all__ == [
        "PROVIDED",
        "App",
        "BatchJob",
        "Cancel",
        "Context",
        "Custom",
        "Event",
        "Exponential",
        "Fail",
        "Fibonacci",
        "Fixed",
        "Job",
        "JobInfo",
        "JobState",
        "Keyring",
        "Linear",
        "Progress",
        "Retry",
        "Snooze",
        "Unique",
        "Worker",
        "__version__",
        "errors",
        "hooks",
        "middleware",
    ]
    for name in pgqueue.__all__:
        assert hasattr(pgqueue, name)


@pytest.mark.parametrize(
    "module",
    [
        "job",
        "calls",
        "encoding",
        "dsn",
        "error_text",
        "retry",
        "unique",
        "settings",
        "context",
        "options",
        "parameters",
        "schedule",
        "task",
        "bulk",
        "app",
        "testing.matching",
    ],
)
def test_the_examples_run(module: str) -> None:
    tested = importlib.import_module(f"pgqueue.{module}")
    failures, _ = doctest.testmod(tested, optionflags=doctest.ELLIPSIS)
    assert failures == 0


def test_importing_the_package_loads_no_database_library() -> None:
    """A command's `--help` and a test of a task's function need none."""
    code = (
        "import sys, pgqueue; print(*{'psycopg', 'sqlalchemy', 'psycopg_pool', 'alembic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_transactional_task_that_asks_for_a_connection_of_psycopg_loads_no_sqlalchemy() -> None:
    """It is a third of a worker's start."""
    code = "import sys, tests.worker.step_tasks as tasks; print(tasks.in_a_transaction.transactional, 'sqlalchemy' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
