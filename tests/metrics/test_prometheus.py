"""A real Prometheus scrapes a real worker, and promtool runs the alert rules' own tests."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support import Databases, wait_until
from tests.support.prometheus import BINARY, MISSING, PROMTOOL, Prometheus
from tests.worker.conftest import service

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/howto/monitor.md").read_text()
EXAMPLES = ROOT / "examples/prometheus"
RULES = yaml.safe_load((EXAMPLES / "pgqueue.rules.yml").read_text())["groups"][0]["rules"]
TESTS = yaml.safe_load((EXAMPLES / "pgqueue.rules.test.yml").read_text())["tests"]

needs_prometheus = pytest.mark.skipif(BINARY is None or PROMTOOL is None, reason=MISSING)


@needs_prometheus
def test_prometheus_scrapes_a_worker_and_evaluates_the_rules(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With the configuration of the documentation, but for the target and how often it is scraped."""
    (configuration,) = (
        yaml.safe_load(block)
        for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
        if "scrape_configs" in block
    )
    (scrape,) = configuration["scrape_configs"]
    with service(databases, tmp_path_factory, "--metrics-port", "0", processes=2) as run:
        port = run.worker.wait_for("metrics.listening")[0]["port"]
        scrape |= {"scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        configuration |= {
            "global": {"evaluation_interval": "1s"},
            "rule_files": [str(EXAMPLES / "pgqueue.rules.yml")],
        }
        run.rows.enqueue("quick", queue="elsewhere")
        run.rows.connection.execute("update pgqueue.ready_jobs set run_at = now() - interval '5 minutes'")
        run.rows.connection.execute("select pgqueue.count_depths()")  # and not some seconds later
        ids = [run.rows.enqueue("quick") for _ in range(25)]
        run.rows.wait_for("completed", *ids)
        with Prometheus(configuration) as prometheus:

            def value(expression: str) -> float | None:
                found = [*prometheus.query(expression).values()]
                return found[0] if len(found) == 1 else None

            completed = 'sum(pgqueue_jobs_total{job="pgqueue",task="quick",outcome="completed"})'
            wait_until(lambda: value(completed) == 25, 60, "the jobs to be counted")
            assert value('sum(pgqueue_job_duration_seconds_count{task="quick"})') == 25
            assert value('max by (job) (pgqueue_workers{queue="default"})') == 2
            assert value("pgqueue_database_up") == 1
            pending = 'ALERTS{alertname="PgqueueNoWorkers",queue="elsewhere"}'
            wait_until(lambda: value(pending) == 1, 60, "an alert for the queue that nobody serves")
            (group,) = prometheus.api("rules")["groups"]
            assert {rule["name"] for rule in group["rules"]} == {rule["alert"] for rule in RULES}
            wait_until(
                lambda: (
                    {rule["health"] for group in prometheus.api("rules")["groups"] for rule in group["rules"]}
                    == {"ok"}
                ),
                60,
                "every rule to be evaluated",
            )
            firing = [alert for alert in prometheus.api("alerts")["alerts"] if alert["state"] == "firing"]
            assert firing == []


# Alert rules ------------------------------------------------------------------------------------------


@needs_prometheus
@pytest.mark.parametrize("what", ["check", "test"])
def test_the_alert_rules_pass_their_own_tests(what: str) -> None:
    file = {"check": "pgqueue.rules.yml", "test": "pgqueue.rules.test.yml"}[what]
    assert PROMTOOL is not None
    ran = subprocess.run(
        [PROMTOOL, what, "rules", file], cwd=EXAMPLES, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "SUCCESS" in ran.stdout + ran.stderr


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", PAGE, re.M)}
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert {"summary", "description", "runbook_url"} == rule["annotations"].keys()
        page, _, heading = rule["annotations"]["runbook_url"].partition("#")
        assert page.endswith("/docs/howto/monitor.md")
        assert heading == rule["alert"].lower()
        assert heading in headings


def test_every_alert_is_tested_firing_and_silent() -> None:
    cases = [case for test in TESTS for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_the_rules_ask_for_metrics_that_there_are() -> None:
    listed = set(re.findall(r"^\| `(pgqueue_\w+)`", PAGE, re.M))
    asked = {name for rule in RULES for name in re.findall(r"\bpgqueue_\w+", rule["expr"])}
    assert asked <= listed
