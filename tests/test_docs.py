"""The documentation is held to the code: reference pages are current, links lead somewhere, the tutorial runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("sql/*.md"), *ROOT.glob("examples/**/*.md")]
)


def test_the_reference_pages_are_what_make_docs_would_write(connection: psycopg.Connection) -> None:
    from docs.build import REFERENCE, pages

    stale = [name for name, text in pages(connection).items() if (REFERENCE / name).read_text() != text]
    assert not stale, f"run `make docs`: {stale}"


def test_the_page_of_the_command_does_not_depend_on_what_has_run_before() -> None:
    """Click keeps the option of the help that it made first, and asks how wide the terminal is."""
    code = """
import sys
from click.testing import CliRunner
from pgqueue.cli import COMMANDS, main
for name in reversed(COMMANDS):
    assert CliRunner().invoke(main, [name, "--help"], terminal_width=150).exit_code == 0
from docs.build import cli_page
first = cli_page()
assert cli_page() == first
sys.stdout.write(first)
"""
    environment = {**os.environ, "COLUMNS": "150"}
    page = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    from docs.build import cli_page

    assert page.stdout == cli_page()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


def test_the_tutorials_program_does_what_the_tutorial_says(database: str, tmp_path: Path) -> None:
    """Every block of the tutorial that starts with a `# file.py` line is written down; then its script runs."""
    page = (ROOT / "docs/tutorial/first-queue.md").read_text()
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.S):
        (tmp_path / name).write_text(code)
    environment = {**os.environ, "PGQUEUE_DSN": database, "PYTHONPATH": str(tmp_path)}
    orders = subprocess.run(
        [sys.executable, "place_orders.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert orders.returncode == 0, orders.stderr
    with (
        subprocess.Popen(
            [sys.executable, "-m", "pgqueue", "worker", "shop:app"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as worker,
        psycopg.connect(database, autocommit=True) as connection,
    ):
        from tests.support import wait_until

        try:
            done = "select count(*) from pgqueue_bi.jobs where state = 'completed'"
            wait_until(lambda: connection.execute(done).fetchone() == (2,), 30, "the tutorial's two jobs")
            assert connection.execute("select id, state from orders order by id").fetchall() == [
                (1, "confirmed")
            ]
        finally:
            worker.terminate()
        output, _ = worker.communicate(timeout=30)
    assert output.splitlines() == ["thank you for order 1"]
