"""What analysts are given is true: every query of docs/howto/analyse.md and of the Grafana dashboard answers, as a monitor."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.sql.acting import call, claimed, enqueue_many, open_session, register, rows
from tests.sql.history import NOON, ended, failed, rolled_up
from tests.support import Databases

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/howto/analyse.md").read_text()
QUESTIONS = dict(
    re.findall(r"\*\*(.*?)\*\*(?:(?!\*\*).)*?```sql\n(.*?)```", PAGE.split("## Five questions")[1], re.S)
)
DASHBOARD = json.loads((ROOT / "examples/grafana/pgqueue.json").read_text())
PANELS: dict[str, dict[str, Any]] = {panel["title"]: panel for panel in DASHBOARD["panels"]}


@pytest.fixture(scope="module")
def monitor(databases: Databases) -> Iterator[psycopg.Connection]:
    """A monitor's session of a database in which everything has happened lately."""
    dsn = databases.create()
    with open_session(dsn) as connection:
        _live(connection)
        connection.execute("set role pgqueue_monitor")
        yield connection
    databases.drop(dsn)


def _live(connection: psycopg.Connection) -> None:
    now = (datetime.now(UTC).replace(second=0, microsecond=0) - NOON).total_seconds()
    connection.execute("insert into pgqueue.queues (name, target_wait) values ('mail', 2)")
    for minute in range(1, 91):
        ended(connection, now - 60 * minute, queue="mail", task="welcome", wait=minute / 10, run=0.5, jobs=2)
        ended(connection, now - 60 * minute, queue="images", task="resize", run=30)
    failed(connection, now - 100, queue="mail", task="welcome", message="refused", jobs=3)
    enqueue_many(connection, [{"task": "resize", "queue": "images"}] * 10)
    job = claimed(connection, register(connection, "mail"), queue="mail", task="welcome", max_attempts=1)
    call(
        connection, "fail", failures=Jsonb([{"id": job.id, "lease": job.lease, "error": "E", "message": "m"}])
    )
    call(connection, "schedule", name="nightly", task="clean", cron="0 2 * * *")
    call(connection, "count_depths")
    rolled_up(connection, now - 7200, now)
    assert len(rows(connection, "failure_groups")) == 1


def answer(monitor: psycopg.Connection, query: str) -> list[dict[str, Any]]:
    """The rows of a query."""
    return monitor.cursor(row_factory=dict_row).execute(query).fetchall()


def test_there_are_five_questions() -> None:
    assert len(QUESTIONS) == 5


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_has_an_answer(monitor: psycopg.Connection, question: str) -> None:
    assert answer(monitor, QUESTIONS[question])


def test_the_answers_are_right(monitor: psycopg.Connection) -> None:
    busy, growth, _, new, promises = (answer(monitor, query) for query in QUESTIONS.values())
    assert [(row["task"], row["jobs"]) for row in busy] == [("resize", 90), ("welcome", 180)]
    assert busy[0]["slot_hours"] == pytest.approx(90 * 30 / 3600)
    by_queue = {row["queue"]: row for row in growth}
    assert (by_queue["images"]["ended"], by_queue["images"]["unfinished"]) == (90, 10)
    assert by_queue["images"]["enqueued"] == 100
    assert [(row["sample_message"], row["failures"]) for row in new] == [("refused", 3)]
    (mail,) = promises
    assert (mail["completed"], float(mail["percent_in_time"])) == (120, 33.33)


# The dashboard ----------------------------------------------------------------------------------------


def as_grafana_does(query: str) -> str:
    """Macros and variables as Grafana fills them in."""
    last = datetime.now(UTC)
    first = last - timedelta(hours=6)
    query = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN '{first:%FT%TZ}' AND '{last:%FT%TZ}'", query)
    query = query.replace("${queue:sqlstring}", "'images','mail'").replace("$bucket", "minutely")
    assert "$" not in query
    return query


@pytest.mark.parametrize("title", PANELS)
def test_every_panels_query_answers(monitor: psycopg.Connection, title: str) -> None:
    targets = PANELS[title]["targets"]
    assert targets
    for target in targets:
        found = answer(monitor, as_grafana_does(target["rawSql"]))
        assert found
        if target["format"] == "time_series":
            assert isinstance(found[0]["time"], datetime)
            assert [row["time"] for row in found] == sorted(row["time"] for row in found)


def test_every_variable_of_the_dashboard_is_one_of_its_own_and_its_query_answers(
    monitor: psycopg.Connection,
) -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))) - {"__timeFilter"}
    assert used == variables.keys()
    assert answer(monitor, variables["queue"]["query"]) == [{"queue": "images"}, {"queue": "mail"}]
    for option in variables["bucket"]["options"]:
        assert answer(monitor, f"select count(*) from pgqueue_bi.job_throughput_{option['value']}")


def test_the_panels_lie_side_by_side_and_each_has_a_number_of_its_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len(PANELS)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(0 <= x < 24 for x, _ in cells)
