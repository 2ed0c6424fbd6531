"""What the endpoint answers: pages for Prometheus, probes, health; also where the database is slow, shut or away."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from psycopg.conninfo import make_conninfo

import pgqueue
from pgqueue.errors import ConfigurationError
from pgqueue.metrics import Endpoint, asgi
from pgqueue.metrics import fleet as fleet_module
from pgqueue.observe.tally import BOUNDS, Histogram, Tally, TaskFigures
from tests.metrics.conftest import MakeEndpoint
from tests.support import wait_until
from tests.support.proxy import Proxy

PAGE = (Path(__file__).resolve().parents[2] / "docs/howto/monitor.md").read_text()
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
"""Where nobody listens."""
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"

Samples = dict[str, float]


def samples(text: str) -> Samples:
    """The samples of a page, by name and labels as they are written there."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def metrics(endpoint: Endpoint) -> Samples:
    """The samples of /metrics."""
    response = endpoint.respond("/metrics")
    assert (response.status, response.content_type.split(";")[0]) == (200, "text/plain")
    return samples(response.body.decode())


def asked(endpoint: Endpoint, path: str) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of a page."""
    response = endpoint.respond(path)
    assert response.content_type == "application/json"
    return response.status, json.loads(response.body)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is a new one."""
    monkeypatch.setattr(fleet_module, "FRESH_SECONDS", 0)
    monkeypatch.setattr(fleet_module, "FAILED_SECONDS", 0)


@pytest.fixture
def tally() -> Tally:
    """What a process has done."""
    tally = Tally()
    durations, waits = Histogram(), Histogram()
    for seconds in (0.02, 0.3, 10_000):
        durations.observe(seconds)
    waits.observe(0.0)
    tally.add([TaskFigures("mail", 'say "hi"\n', {"completed": 2, "failed": 1}, durations, waits)])
    return tally


# Metrics ----------------------------------------------------------------------------------------------


def test_the_page_has_what_this_process_did(fleet: str, endpoint: MakeEndpoint, tally: Tally) -> None:
    found = metrics(endpoint(fleet, tally))
    task = 'queue=mail,task=say "hi"\n'
    outcomes = {name: value for name, value in found.items() if name.startswith("pgqueue_jobs_total")}
    assert outcomes == {
        f"pgqueue_jobs_total{{outcome={outcome},{task}}}": count
        for outcome, count in {
            "completed": 2, "failed": 1, "dead": 0, "cancelled": 0, "snoozed": 0, "released": 0,
        }.items()
    }  # fmt: skip
    buckets = [
        value for name, value in found.items() if name.startswith("pgqueue_job_duration_seconds_bucket")
    ]
    assert len(buckets) == len(BOUNDS) + 1
    assert buckets == sorted(buckets)
    assert found[f"pgqueue_job_duration_seconds_bucket{{le=0.01,{task}}}"] == 0
    assert found[f"pgqueue_job_duration_seconds_bucket{{le=0.025,{task}}}"] == 1
    assert found[f"pgqueue_job_duration_seconds_bucket{{le=0.5,{task}}}"] == 2
    assert found[f"pgqueue_job_duration_seconds_bucket{{le=+Inf,{task}}}"] == 3
    assert found[f"pgqueue_job_duration_seconds_count{{{task}}}"] == 3
    assert found[f"pgqueue_job_duration_seconds_sum{{{task}}}"] == pytest.approx(10_000.32)
    assert found[f"pgqueue_job_wait_seconds_count{{{task}}}"] == 1
    assert found[f"pgqueue_build_info{{version={pgqueue.__version__}}}"] == 1


def test_the_page_has_what_the_database_says_of_the_fleet(fleet: str, endpoint: MakeEndpoint) -> None:
    found = metrics(endpoint(fleet))
    depth = {state: found[f"pgqueue_queue_depth{{queue=mail,state={state}}}"] for state in
             ("ready", "scheduled", "blocked", "running")}  # fmt: skip
    assert depth == {"ready": 3, "scheduled": 2, "blocked": 0, "running": 1}
    assert 100 <= found["pgqueue_oldest_ready_age_seconds{queue=mail}"] < 400
    assert found["pgqueue_oldest_ready_age_seconds{queue=bad}"] == 0
    assert (found["pgqueue_workers{queue=mail}"], found["pgqueue_workers{queue=paused}"]) == (1, 0)
    assert (found["pgqueue_queue_paused{queue=mail}"], found["pgqueue_queue_paused{queue=paused}"]) == (0, 1)
    assert (found["pgqueue_dead_letters{queue=mail}"], found["pgqueue_dead_letters{queue=bad}"]) == (0, 1)
    assert 200 <= found["pgqueue_schedule_overdue_seconds{schedule=late}"] < 500
    assert found["pgqueue_schedule_overdue_seconds{schedule=hourly}"] == 0
    assert 5 <= found["pgqueue_leader_age_seconds"] < 305
    assert 70 <= found["pgqueue_figures_age_seconds"] < 370
    assert found["pgqueue_database_up"] == 1
    assert found["pgqueue_healthy{check=schedules,queue=}"] == 0
    assert found["pgqueue_healthy{check=workers,queue=mail}"] == 1


def test_nobody_has_led_yet(connection: psycopg.Connection, endpoint: MakeEndpoint) -> None:
    found = metrics(endpoint(connection.info.dsn))
    assert found["pgqueue_leader_age_seconds"] == found["pgqueue_figures_age_seconds"] == float("inf")


def test_openmetrics_is_for_who_asks_for_it(fleet: str, endpoint: MakeEndpoint, tally: Tally) -> None:
    made = endpoint(fleet, tally)
    response = made.respond("/metrics", OPENMETRICS)
    assert response.content_type.startswith("application/openmetrics-text; version=1.")
    read: Any = openmetrics_parser.text_string_to_metric_families
    families = {family.name: family.type for family in read(response.body.decode())}
    assert families["pgqueue_jobs"] == "counter"
    assert families["pgqueue_build"] == "info"
    assert families["pgqueue_job_wait_seconds"] == "histogram"
    plain = {family.name for family in text_string_to_metric_families(made.respond("/metrics").body.decode())}
    assert {name.removesuffix("_info").removesuffix("_total") for name in plain} == set(families)


def test_no_label_is_an_id_or_an_errors_text(fleet: str, endpoint: MakeEndpoint, tally: Tally) -> None:
    text = endpoint(fleet, tally).respond("/metrics").body.decode()
    labels = {
        name for family in text_string_to_metric_families(text) for s in family.samples for name in s.labels
    }
    assert labels == {"queue", "task", "outcome", "state", "schedule", "check", "le", "version"}
    assert "secret" not in text


def test_the_documentation_lists_every_metric_with_its_labels(
    fleet: str, endpoint: MakeEndpoint, tally: Tally
) -> None:
    listed = {
        name: set(re.findall(r"\w+", labels))
        for name, labels in re.findall(r"^\| `(pgqueue_\w+)` \| ([\w, ]*?) ?\|", PAGE, re.M)
    }
    text = endpoint(fleet, tally).respond("/metrics").body.decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.setdefault(name, set()).update(
            name for s in family.samples for name in s.labels if name != "le"
        )
    assert listed == found


def test_many_scrapes_at_once_are_one_look(
    fleet: str, endpoint: MakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = [], fleet_module._figures

    def counted(connection: Any) -> Any:
        looks.append(connection)
        return look(connection)

    monkeypatch.setattr(fleet_module, "_figures", counted)
    monkeypatch.setattr(fleet_module, "FRESH_SECONDS", 3600)
    made = endpoint(fleet)
    with ThreadPoolExecutor(10) as threads:
        pages = list(threads.map(lambda _: metrics(made), range(10)))
    assert len(looks) == 1
    assert all(page["pgqueue_queue_depth{queue=mail,state=ready}"] == 3 for page in pages)
    monkeypatch.setattr(fleet_module, "FRESH_SECONDS", 0)
    metrics(made)
    assert [*{id(connection) for connection in looks}] == [id(looks[0])]  # and over one connection
    assert len(looks) == 2


# When the database does not do as it should -----------------------------------------------------------


def test_the_page_is_there_while_the_database_is_away(endpoint: MakeEndpoint, tally: Tally) -> None:
    made = endpoint(NOWHERE, tally)
    found = metrics(made)
    assert found["pgqueue_database_up"] == 0
    assert found['pgqueue_jobs_total{outcome=completed,queue=mail,task=say "hi"\n}'] == 2
    assert not [name for name in found if re.match("pgqueue_(queue|workers|leader|healthy|dead)", name)]
    status, body = asked(made, "/health")
    assert (status, body["status"]) == (503, "unknown")
    assert body["detail"] == "the database does not answer"
    assert asked(made, "/readyz") == (
        503,
        {"status": "not ready", "detail": body["detail"], "checks": {"worker": True, "database": False}},
    )
    assert asked(made, "/livez") == (200, {"status": "live"})


@pytest.mark.usefixtures("impatient")
def test_a_database_that_comes_back_is_seen_again(fleet: str, endpoint: MakeEndpoint) -> None:
    with Proxy(fleet) as proxy:
        made = endpoint(proxy.dsn)
        assert metrics(made)["pgqueue_database_up"] == 1
        proxy.shut()
        away = metrics(made)
        assert away["pgqueue_database_up"] == 0
        assert "pgqueue_leader_age_seconds" not in away  # nothing old
        proxy.open()
        assert metrics(made)["pgqueue_leader_age_seconds"] >= 5


@pytest.fixture
def locked(database: str) -> Iterator[psycopg.Connection]:
    """A transaction that no view can be read beside; roll it back to let them."""
    with psycopg.connect(database) as holder:
        holder.execute("lock table pgqueue.leadership in access exclusive mode")
        yield holder
        holder.rollback()


@pytest.mark.usefixtures("impatient")
def test_views_that_take_too_long_are_given_up(
    database: str, locked: psycopg.Connection, endpoint: MakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "STATEMENT_SECONDS", 0.1)
    monkeypatch.setattr(fleet_module, "PATIENCE_SECONDS", 60)
    made = endpoint(database)
    found = metrics(made)
    assert found["pgqueue_database_up"] == 1  # it answers, if not that
    assert "pgqueue_leader_age_seconds" not in found
    assert asked(made, "/readyz")[0] == 200
    status, body = asked(made, "/health")
    assert (status, body["detail"]) == (503, "the views did not answer within 0.1 s")
    locked.rollback()
    monkeypatch.setattr(fleet_module, "STATEMENT_SECONDS", 60)
    assert "pgqueue_leader_age_seconds" in metrics(made)


@pytest.mark.usefixtures("impatient")
def test_no_scrape_waits_as_long_as_the_database_does(
    database: str, locked: psycopg.Connection, endpoint: MakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none of them asks once more while the first one waits."""
    monkeypatch.setattr(fleet_module, "STATEMENT_SECONDS", 60)
    monkeypatch.setattr(fleet_module, "PATIENCE_SECONDS", 0.2)
    made = endpoint(database)
    began = time.monotonic()
    for _ in range(20):
        assert metrics(made)["pgqueue_database_up"] == 0
    assert time.monotonic() - began < 20
    assert sum(thread.name == "pgqueue metrics" for thread in threading.enumerate()) == 1
    locked.rollback()
    monkeypatch.setattr(fleet_module, "PATIENCE_SECONDS", 60)
    wait_until(lambda: metrics(made)["pgqueue_database_up"] == 1, 30, "the database to be seen again")


def test_a_role_that_may_not_read_the_views_is_told_which_right_it_needs(
    fleet: str, endpoint: MakeEndpoint
) -> None:
    made = endpoint(make_conninfo(fleet, options="-c role=pgqueue_worker"))
    found = metrics(made)
    assert found["pgqueue_database_up"] == 1
    assert "pgqueue_leader_age_seconds" not in found
    assert asked(made, "/readyz")[0] == 200
    status, body = asked(made, "/health")
    assert status == 503
    assert "grant pgqueue_monitor" in body["detail"]


def test_the_monitors_rights_are_enough(fleet: str, endpoint: MakeEndpoint) -> None:
    made = endpoint(make_conninfo(fleet, options="-c role=pgqueue_monitor"))
    assert metrics(made)["pgqueue_leader_age_seconds"] >= 5
    assert asked(made, "/health")[1]["checks"]


def test_a_database_without_the_schema_is_named(databases: Any, endpoint: MakeEndpoint) -> None:
    empty = databases.create_empty()
    made = endpoint(empty)
    status, body = asked(made, "/health")
    assert (status, "pgqueue db upgrade" in body["detail"]) == (503, True)
    made.close()
    databases.drop(empty)


# Probes and health ------------------------------------------------------------------------------------


def test_a_process_that_hangs_is_not_live(endpoint: MakeEndpoint) -> None:
    status, body = asked(endpoint(NOWHERE, is_live=lambda: False), "/livez")
    assert (status, body["status"]) == (503, "not live")
    assert "started again" in body["detail"]


def test_a_worker_that_drains_is_not_ready(fleet: str, endpoint: MakeEndpoint) -> None:
    made = endpoint(fleet, is_ready=lambda: False)
    status, body = asked(made, "/readyz")
    assert (status, body["checks"]) == (503, {"worker": False, "database": True})
    assert "does not take jobs" in body["detail"]
    ready = {"status": "ready", "checks": {"worker": True, "database": True}}
    assert asked(endpoint(fleet), "/readyz") == (200, ready)


def test_health_is_all_of_the_checks_the_failing_ones_first(fleet: str, endpoint: MakeEndpoint) -> None:
    status, body = asked(endpoint(fleet), "/health")
    assert (status, body["status"]) == (503, "unhealthy")
    first = body["checks"][0]
    assert (first["queue"], first["check_name"], first["is_healthy"]) == (None, "schedules", False)
    assert body["detail"] == first["detail"]
    assert "late" in first["detail"]
    assert {"value", "threshold"} <= first.keys()
    with psycopg.connect(fleet) as connection:
        (count,) = connection.execute("select count(*) from pgqueue_bi.health").fetchone() or (None,)
    assert len(body["checks"]) == count
    assert [check["is_healthy"] for check in body["checks"]] == [False] + [True] * (len(body["checks"]) - 1)


def test_all_is_well(database: str, endpoint: MakeEndpoint) -> None:
    status, body = asked(endpoint(database), "/health")
    assert (status, body["status"]) == (200, "healthy")


def test_there_is_nothing_else(endpoint: MakeEndpoint) -> None:
    made = endpoint(NOWHERE)
    assert asked(made, "/")[0] == asked(made, "/metrics/more")[0] == 404
    assert asked(made, "/livez?verbose=1")[0] == 200
    for method in ("POST", "DELETE"):
        assert made.respond("/livez", method=method).status == 405


# The extra --------------------------------------------------------------------------------------------


def test_who_lacks_the_extra_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for make in (lambda: Endpoint(NOWHERE, Tally()), lambda: asgi(pgqueue.App(dsn=NOWHERE))):
        with pytest.raises(ConfigurationError, match=re.escape('pip install "pgqueue-jobs[metrics]"')):
            make()


def test_nothing_needs_the_extra_until_metrics_are_wanted() -> None:
    code = "import sys, pgqueue.metrics, pgqueue.cli.worker, pgqueue.worker.supervisor, pgqueue.worker.child, pgqueue.worker.inprocess\n"
    code += "assert not [name for name in sys.modules if name.startswith('prometheus')]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_endpoint_makes_workers_count(endpoint: MakeEndpoint, tally: Tally) -> None:
    assert not tally.is_wanted
    endpoint(NOWHERE, tally)
    assert tally.is_wanted
