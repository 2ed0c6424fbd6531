"""`pgqueue worker --metrics-port`: what probes hear in a worker's life, and a port that cannot be had."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.support import Databases, wait_until
from tests.worker.conftest import Service, service
from tests.worker.harness import PATIENCE, Worker


def asked(run: Service, path: str) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of one of the worker's pages."""
    port = run.worker.wait_for("metrics.listening")[0]["port"]
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, json.load(answer)
    except HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)


def test_a_worker_is_ready_until_it_is_told_to_stop_and_live_until_it_ends(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with service(databases, tmp_path_factory, metrics_port=0) as run:
        assert asked(run, "/livez") == (200, {"status": "live"})
        # started is logged when the child says so, a moment before anybody else can ask
        wait_until(lambda: asked(run, "/readyz")[0] == 200, PATIENCE, "the worker to be ready")
        wait_until(lambda: asked(run, "/health")[0] == 200, 4 * PATIENCE, "the fleet to be healthy")
        job = run.rows.enqueue("hold")
        run.history.wait_for("start", job)
        run.worker.stop()
        status, body = asked(run, "/readyz")
        assert (status, body["checks"]) == (503, {"worker": False, "database": True})
        assert asked(run, "/livez")[0] == 200
        run.history.open("hold")
        assert run.worker.wait() == 0
        with pytest.raises(OSError, match="refused"):
            asked(run, "/livez")


def test_a_port_that_is_taken_stops_the_worker_at_its_start(database: str, tmp_path: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = Worker(
            database, tmp_path, "--metrics-port", str(port), "--metrics-host", "127.0.0.1", metrics_port=1
        )
        try:
            assert worker.wait() == 2
            assert (
                f"metrics_port: cannot listen on 127.0.0.1, port {port}: Address already in use"
                in "".join(worker.noise)
            )
        finally:
            worker.kill()
