"""Traces of a real worker: each of its processes hands over what it has traced before it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pgqueue import calls
from pgqueue.drivers import run
from tests.support import wait_until
from tests.worker import otel_tasks as tasks
from tests.worker.conftest import StartWorker
from tests.worker.harness import History, Rows

APP = "tests.worker.otel_tasks:app"


def spans(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What was exported, by name."""
    path = folder / "spans"
    found: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        span = json.loads(line)
        found.setdefault(span["name"], []).append(span)
    return found


def test_a_workers_processes_export_what_they_traced(
    start_worker: StartWorker, history: History, rows: Rows, tmp_path: Path
) -> None:
    worker = start_worker("--drain-limit", "0.2", app=APP)
    apart = tasks.apart.enqueue(rows.connection).id
    rows.wait_for("completed", apart, timeout=30)
    # Its process has served its time and leaves.
    wait_until(lambda: "process apart" in spans(tmp_path), 30, "the span of the process")
    outer = tasks.outer.enqueue(rows.connection).id
    history.wait_for("end", count=3, timeout=30)
    cancelled, released = (tasks.late.enqueue(rows.connection).id for _ in range(2))
    history.wait_for("start", count=2, timeout=30)
    run(rows.connection, calls.cancel([cancelled], "by hand"))
    rows.wait_for("cancelled", cancelled, timeout=30)
    assert set(spans(tmp_path)) == {"process apart"}

    worker.stop()
    assert worker.wait(30) == 0
    found = spans(tmp_path)
    assert set(found) == {"process apart", "process outer", "send default", "process inner", "process late"}
    # The job that a handler has enqueued is part of its trace, and leads on to the next one.
    (first,), (sent,), (last,) = found["process outer"], found["send default"], found["process inner"]
    assert sent["parent_id"] == first["context"]["span_id"]
    assert [link["context"]["span_id"] for link in last["links"]] == [sent["context"]["span_id"]]
    assert first["attributes"]["messaging.message.id"] == str(outer)
    late = found["process late"]
    ended = {
        span["attributes"]["messaging.message.id"]: span["attributes"]["pgqueue.outcome"] for span in late
    }
    assert ended == {str(cancelled): "cancelled", str(released): "released"}
    assert {span["status"]["status_code"] for span in late} == {"UNSET"}
    (said,) = worker.events("traced")
    assert f"0x{said['trace_id']}" == first["context"]["trace_id"]
