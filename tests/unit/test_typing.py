"""mypy and pyright find each wrong enqueue of `tests/typing/expected_errors.py`, and nothing wrong in the rest."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CALLS = ROOT / "tests" / "typing" / "expected_errors.py"

Errors = set[tuple[int, str]]


def expected(checker: str) -> Errors:
    """The errors that the comments announce: line and code."""
    found = set()
    for number, line in enumerate(CALLS.read_text().splitlines(), 1):
        if match := re.search(r"# E: ([a-z, -]+) / ([\w, ]+)$", line):
            codes = match[1] if checker == "mypy" else match[2]
            found |= {(number, code.strip()) for code in codes.split(",")}
    return found


def test_the_comments_are_read() -> None:
    assert len(expected("mypy")) > 30
    assert len(expected("pyright")) > 30


def test_mypy_finds_the_wrong_calls_and_no_others() -> None:
    # With the repository's settings, which are strict: so it uses the cache that `make check` leaves behind.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context"),
            str(CALLS),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    found = set()
    for line in done.stdout.splitlines():
        if match := re.match(r".*expected_errors\.py:(\d+): error: .*\[([\w-]+)\]$", line):
            found.add((int(match[1]), match[2]))
        elif ": error: " in line:
            pytest.fail(f"an error elsewhere: {line}")
    assert found == expected("mypy"), done.stdout


def test_pyright_finds_the_wrong_calls_and_no_others(tmp_path: Path) -> None:
    # basedpyright brings its own node and can be told to judge as pyright does
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps(
            {
                "typeCheckingMode": "standard",
                "pythonVersion": "3.11",
                "include": [str(CALLS)],
                "extraPaths": [str(ROOT)],
                "reportUnusedExpression": "none",
            }
        )
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "basedpyright", "--outputjson"),
            *("--project", str(tmp_path), "--pythonpath", sys.executable),
        ],
        capture_output=True,
        text=True,
    )
    told = json.loads(done.stdout)
    assert told["summary"]["filesAnalyzed"] == 1, done.stdout + done.stderr
    errors = [one for one in told["generalDiagnostics"] if one["severity"] == "error"]
    found = {(one["range"]["start"]["line"] + 1, one["rule"]) for one in errors}
    assert found == expected("pyright"), "\n".join(
        f"{one['range']['start']['line'] + 1}: {one['message']} ({one.get('rule')})" for one in errors
    )
