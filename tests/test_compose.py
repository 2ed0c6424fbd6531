"""docker-compose.yml: of the compose format, consistent, and its commands run as they stand there.

No container is started. The schema below is the compose specification's, reduced to what the file uses:
what it does not know is refused, so a misspelt key is found here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from pgqueue import migrate
from pgqueue.embedded import find_binaries
from tests.support import Databases

REPOSITORY = Path(__file__).resolve().parent.parent
DURATION = {"type": "string", "pattern": r"^(\d+(us|ms|s|m|h))+$"}
COMMAND = {"type": "array", "items": {"type": "string"}, "minItems": 1}
SERVICE = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "pattern": r"^[a-z0-9./_-]+:[\w.-]+$"},
        "build": {
            "type": "object",
            "properties": {"context": {"type": "string"}, "dockerfile": {"type": "string"}},
            "additionalProperties": False,
        },
        "command": COMMAND,
        "working_dir": {"type": "string", "pattern": "^/"},
        "environment": {
            "type": "object",
            "patternProperties": {r"^[A-Z_]+$": {"type": ["string", "number"]}},
            "additionalProperties": False,
        },
        "ports": {"type": "array", "items": {"type": "string", "pattern": r"^([\d.]+:)?\d+:\d+$"}},
        "volumes": {"type": "array", "items": {"type": "string", "pattern": r"^[a-z]+:/[\w/]+$"}},
        "healthcheck": {
            "type": "object",
            "properties": {
                "test": COMMAND,
                "interval": DURATION,
                "timeout": DURATION,
                "start_period": DURATION,
                "retries": {"type": "integer"},
            },
            "required": ["test"],
            "additionalProperties": False,
        },
        "depends_on": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {
                    "condition": {
                        "enum": ["service_started", "service_healthy", "service_completed_successfully"]
                    }
                },
                "required": ["condition"],
                "additionalProperties": False,
            },
        },
        "init": {"type": "boolean"},
        "restart": {"type": "string", "pattern": r"^(no|always|unless-stopped|on-failure(:\d+)?)$"},
        "stop_grace_period": DURATION,
        "profiles": {"type": "array", "items": {"type": "string"}},
    },
    "oneOf": [{"required": ["image"]}, {"required": ["build"]}],
    "additionalProperties": False,
}
COMPOSE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": {
            "type": "object",
            "patternProperties": {r"^[a-zA-Z0-9._-]+$": SERVICE},
            "additionalProperties": False,
            "minProperties": 1,
        },
        "volumes": {"type": "object", "additionalProperties": {"type": ["null", "object"]}},
    },
    "required": ["services"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    text = (REPOSITORY / "docker-compose.yml").read_text()
    loaded = yaml.safe_load(text)
    jsonschema.validate(loaded, COMPOSE)
    found: dict[str, Any] = loaded["services"]
    for service in found.values():
        named = [volume.split(":")[0] for volume in service.get("volumes", [])]
        assert set(named) <= set(loaded["volumes"])
    return found


@pytest.fixture
def empty(databases: Databases) -> Iterator[str]:
    dsn = databases.create_empty()
    yield dsn
    databases.drop(dsn)


def start(service: dict[str, Any], dsn: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Starts a service's command as it stands in the file, with its environment, on another database.

    /app of the image is the repository here (docker/Dockerfile copies examples/ there).
    """
    match service["command"]:
        case ["pgqueue", *rest]:
            command = ["-c", "from pgqueue.cli import main; main()", *rest]
        case ["python", *rest]:
            command = rest
        case other:
            raise AssertionError(f"an unknown program: {other}")
    return subprocess.Popen(
        [sys.executable, "-W", "error", *command, *arguments],
        cwd=REPOSITORY / Path(service.get("working_dir", "/app")).relative_to("/app"),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **service["environment"], "PGQUEUE_DSN": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_service_waits_only_for_what_can_happen(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, f"{name} depends on {other}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other} to be healthy"
            if how["condition"] == "service_completed_successfully":
                assert "restart" not in services[other], f"{name} waits for the end of {other}"


def test_nothing_listens_beyond_this_machine(services: dict[str, Any]) -> None:
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_dsn_is_the_one_of_the_postgres_service(services: dict[str, Any]) -> None:
    server = services["postgres"]["environment"]
    for service in services.values():
        if "build" not in service:
            continue
        dsn = conninfo_to_dict(service["environment"]["PGQUEUE_DSN"])
        assert dsn == {
            "host": "postgres",
            "user": server["POSTGRES_USER"],
            "password": server["POSTGRES_PASSWORD"],
            "dbname": server["POSTGRES_DB"],
        }


def test_what_is_built_exists(services: dict[str, Any]) -> None:
    for service in services.values():
        if "build" in service:
            dockerfile = REPOSITORY / service["build"]["context"] / service["build"]["dockerfile"]
            for line in dockerfile.read_text().splitlines():
                words = line.split()
                if words[:1] == ["COPY"] and not words[1].startswith("--"):
                    assert all((REPOSITORY / path).exists() for path in words[1:-1]), line


def test_the_worker_serves_the_queues_that_its_app_uses(services: dict[str, Any]) -> None:
    command = services["worker"]["command"]
    served = {value for option, value in pairwise(command) if option == "-q"}
    code = (
        f"from {command[2].replace(':', ' import ')}; print(*{{task.queue for task in app.tasks.values()}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY / "examples",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == served


def test_the_worker_is_given_the_time_of_a_drain(services: dict[str, Any]) -> None:
    assert int(services["worker"]["stop_grace_period"].removesuffix("s")) > 25


def test_the_health_check_passes_on_a_server_that_runs(services: dict[str, Any], server: str) -> None:
    how, program, *arguments = services["postgres"]["healthcheck"]["test"]
    assert how == "CMD"
    where = conninfo_to_dict(server)
    elsewhere = {"--host": where["host"], "--username": where["user"], "--dbname": where["dbname"]}
    given = [f"{name}={elsewhere[name]}" for name in (item.split("=")[0] for item in arguments)]
    command = [find_binaries() / program, *given, f"--port={where.get('port', 5432)}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_migrate_installs_the_schema_and_may_run_again(services: dict[str, Any], empty: str) -> None:
    for _ in range(2):
        process = start(services["migrate"], empty)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
    assert migrate.check(empty).state == "current"


def test_the_worker_starts_and_leaves_nothing_behind_when_it_is_stopped(
    services: dict[str, Any], database: str
) -> None:
    process = start(services["worker"], database, start_new_session=True)
    watchdog = threading.Timer(60, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        assert process.stderr is not None
        started: list[str] = []
        for line in process.stderr:
            started += [line] if "worker.started" in line else []
            if len(started) == 2:
                break
        assert len(started) == 2, process.communicate()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
        assert process.returncode == 0, out + err
    finally:
        watchdog.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    with psycopg.connect(database) as connection:
        assert connection.execute("select count(*) from pgqueue.workers").fetchone() == (0,)


def test_orders_are_placed_and_are_jobs_then(services: dict[str, Any], database: str) -> None:
    process = start(services["orders"], database, "-n", "20")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "select (select count(*) from orders), (select count(*) from pgqueue_bi.jobs where task like '%validate%')"
        ).fetchone()
    assert row is not None
    assert row[0] == row[1] > 0, (row, out)
