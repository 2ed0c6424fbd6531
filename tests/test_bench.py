"""`pgqueue bench` runs every measurement and reports it. What it measures depends on the machine, and is no test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue.bench.report import HEADINGS, cells, line, markdown
from pgqueue.bench.results import Result

RUN = "from pgqueue.cli import main; main()"
RATES = {
    "ceiling": 0.8,
    "drain": 1.0,
    "drain-sync": 0.25,
    "enqueue-single": 0.7,
    "enqueue-single-async": None,
    "enqueue-bulk": 0.5,
    "enqueue-32-asleep": 0.8,
    "enqueue-32-busy": 0.8,
    "timeout": 0.97,
    "batch": None,
    "transactional": None,
    "held": 0.8,
    "held-mix-rate": None,
    "bi-drain": 0.9,
}
"""Every rate that is reported, and its bar."""
DELAYS = {"loop-delay-p50", "loop-delay-p99"}
"""Times beside the same without a process of its own, in milliseconds."""
LIMITS = {"wake-p50": 1.0, "wake-p99": 4.0, "bi-queue-health": 200.0, "bi-jobs-by-id": 200.0}
"""Every time that has a limit, in milliseconds."""
BUFFERS = {"held-mix-claim", "held-mix-complete", "held-mix-enqueue", "held-mix-fail"}
"""Calls whose buffers are compared at least."""

FEW = {"idle-leader", "idle-follower"}
"""Transactions of two seconds, and what they are more with more workers: there may be none."""


def bench(*arguments: str, cwd: Path, dsn: str) -> subprocess.CompletedProcess[str]:
    """Runs `pgqueue bench` in a process of its own, as small as it gets."""
    return subprocess.run(
        [sys.executable, "-c", RUN, "bench", "--quick", "--scale", "0.004", *arguments],
        cwd=cwd,
        env={**os.environ, "PGQUEUE_DSN": dsn},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_every_measurement_is_reported_and_nothing_is_left_behind(server: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = bench("--json", "--report", str(page), cwd=tmp_path, dsn=server)
    assert done.returncode == 0, done.stderr

    document = json.loads(done.stdout)
    results: dict[str, dict[str, Any]] = {result["name"]: result for result in document["results"]}
    assert {name: results[name]["bar"] for name in RATES} == RATES
    assert {name: results[name]["ceiling"] for name in LIMITS} == LIMITS
    assert results.keys() >= BUFFERS | DELAYS
    for result in results.values():
        assert result["ours"] > 0 or result["name"] in FEW
        assert result["ratio"] > 0
        assert (result["verdict"] is None) == (result["bar"] is None)
    assert {"cores", "PostgreSQL", "fsync", "Python"} <= document["machine"].keys()
    assert document["load"].keys() == {
        "ceiling",
        "drain",
        "enqueue",
        "execution",
        "wake",
        "on-time",
        "idle",
        "held",
        "held-mix",
        "bi",
        "loop-delay",
    }

    text = page.read_text()
    for name in results:
        assert f"| {name} |" in text
    with psycopg.connect(server) as connection:
        left = connection.execute("select datname from pg_database where datname like 'pgqueue_bench_%'")
        assert left.fetchall() == []


def test_names_choose_the_measurements(server: str, tmp_path: Path) -> None:
    done = bench("ceiling", cwd=tmp_path, dsn=server)
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == [name for name in HEADINGS if name]
    assert [text.split()[0] for text in lines] == ["ceiling"]


def test_an_unknown_name_is_a_usage_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    done = bench("speed", cwd=tmp_path, dsn="postgresql://nowhere.invalid/x")
    assert done.returncode == 2
    assert "held-mix" in done.stderr


@pytest.mark.parametrize(
    ("ratio", "bar", "verdict"), [(0.8, 0.8, "ok"), (0.79, 0.8, "MISSED"), (0.1, None, "")]
)
def test_a_line_says_whether_its_bar_was_reached(ratio: float, bar: float | None, verdict: str) -> None:
    result = Result(
        name="x", ours=ratio * 1000, ceiling=1000.0, unit="/s", ratio=ratio, bar=bar, note="a note"
    )
    assert result.verdict == verdict
    told = line(cells(result)).split()
    figures = [f"{ratio * 1000:.1f}", "/s", "1,000", "/s", f"{ratio:.2f}"]
    bars = [] if bar is None else [f"{bar:.2f}", verdict]
    assert told == ["x", *figures, *bars, "a", "note"]


def test_the_page_describes_the_machine_without_a_date_or_a_name() -> None:
    result = Result(name="x", ours=0.5, ceiling=1.0, unit="ms", ratio=2.0, bar=1.0)
    page = markdown([result], {"cores": "2", "fsync": "on"}, {"x": 0.25}, quick=False)
    assert "- cores 2, fsync on\n" in page
    assert "load average when a measurement began: 0.2" in page
    assert page.endswith("| x | 0.50 ms | 1.00 ms | 2.00 | 1.00 | ok |  |\n")
