"""`pgqueue jobs`: what it lists, shows and follows, and what it cancels."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgqueue import calls
from pgqueue.cli import acting, main
from pgqueue.cli import jobs as jobs_cli
from pgqueue.drivers import run
from pgqueue.job import ClaimedJob
from tests.sql.acting import claim, claimed, enqueue, register, scalar

Session = psycopg.Connection


@pytest.fixture
def pgqueue(database: str) -> Any:
    """Runs `pgqueue jobs …` on the test's database."""

    def invoke(*arguments: str, input: str | None = None) -> Result:
        return CliRunner().invoke(main, ["--dsn", database, "jobs", *arguments], input=input)

    return invoke


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked can answer."""
    from click import testing

    monkeypatch.setattr(testing._NamedTextIOWrapper, "isatty", lambda _: True, raising=False)


def documents(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def complete(connection: Session, job: ClaimedJob, result: str | None = None) -> None:
    completion: dict[str, Any] = {"id": job.id, "lease": job.lease}
    if result is not None:
        completion["result"] = json.loads(result)
    assert run(connection, calls.complete_with_results(json.dumps([completion]))) == [job.id]


def fail(connection: Session, job: ClaimedJob, delay: float | None, message: str = "went wrong") -> None:
    failure = {
        "id": job.id, "lease": job.lease, "error": "ValueError", "message": message,
        "traceback": "Traceback:\n  here\n", "fingerprint": "f", "delay": delay, "reason": "permanent",
    }  # fmt: skip
    assert run(connection, calls.fail(json.dumps([failure]))) == [job.id]


def note_progress(connection: Session, job: ClaimedJob, **progress: Any) -> None:
    run(
        connection,
        calls.note_progress(json.dumps([{"id": job.id, "lease": job.lease, "progress": progress}])),
    )


@pytest.fixture
def seven(connection: Session) -> dict[str, int]:
    """A job in each state that a list knows; the ready one twice."""
    worker = register(connection)
    done = claimed(connection, worker, task="count", args="{}")
    complete(connection, done, '{"total": 7}')
    dead = claimed(connection, worker, task="charge")
    fail(connection, dead, None, "card \x1b[31mdeclined")
    runs = claimed(connection, worker, task="import", options={"tags": ["eu", "vip"]})
    note_progress(connection, runs, done=3, total=10, message="row 3")
    withdrawn = enqueue(connection, task="mail", queue="mail")
    run(connection, calls.cancel([withdrawn], "withdrawn"))
    return {
        "completed": done.id,
        "dead": dead.id,
        "running": runs.id,
        "cancelled": withdrawn,
        "scheduled": enqueue(connection, task="mail", queue="mail", delay=3600),
        "ready": enqueue(connection, task="mail", queue="mail", options={"tags": ["eu"]}),
        "ready too": enqueue(connection, task="count", queue="other"),
    }


# List ---------------------------------------------------------------------------------------------------


def test_the_list_has_every_state_newest_first(pgqueue: Any, seven: dict[str, int]) -> None:
    listed = documents(pgqueue("list", "--json"))
    assert [job["id"] for job in listed] == sorted(seven.values(), reverse=True)
    assert {job["id"]: job["state"] for job in listed} == {
        id: state.removesuffix(" too") for state, id in seven.items()
    }
    assert documents(pgqueue("list", "--json", "-n", "3")) == listed[:3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--state", "dead"], ["dead"]),
        (["-s", "completed", "-s", "cancelled"], ["completed", "cancelled"]),
        (["--queue", "mail"], ["cancelled", "scheduled", "ready"]),
        (["--task", "count"], ["completed", "ready too"]),
        (["--tag", "eu"], ["running", "ready"]),
        (["--tag", "eu", "--queue", "mail"], ["ready"]),
        (["--task", "nothing of that name"], []),
    ],
)
def test_the_list_is_filtered(
    arguments: list[str], expected: list[str], pgqueue: Any, seven: dict[str, int]
) -> None:
    listed = documents(pgqueue("list", "--json", *arguments))
    assert {job["id"] for job in listed} == {seven[name] for name in expected}


def test_a_list_for_people_is_a_table_that_moves_no_cursor(pgqueue: Any, seven: dict[str, int]) -> None:
    result = pgqueue("list")
    assert result.exit_code == 0
    lines = {int(line.split()[0]): line for line in result.stdout.splitlines() if line.split()[0].isdigit()}
    assert set(lines) == set(seven.values())
    assert "3 of 10 row 3" in lines[seven["running"]]
    assert "withdrawn" in lines[seven["cancelled"]]
    assert "permanent: ValueError: card" in lines[seven["dead"]]
    assert "\x1b" not in result.stdout
    nothing = pgqueue("list", "--tag", "none")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "no jobs match\n")


def test_the_history_is_read_back_day_after_day(connection: Session, pgqueue: Any) -> None:
    """Ids of yesterday that ended yesterday are listed after those of today, and only as many as asked for."""
    worker = register(connection)
    ids = []
    for _ in range(6):
        job = claimed(connection, worker)
        complete(connection, job)
        ids.append(job.id)
    connection.execute("select pgqueue.retain()")
    connection.execute(
        "update pgqueue.finished_jobs set day = (now() at time zone 'UTC')::date where id = any(%s)",
        [ids[3:]],
    )
    assert scalar(connection, "select count(distinct tableoid) from pgqueue.finished_jobs") == 2
    listed = [job["id"] for job in documents(pgqueue("list", "--json", "-s", "completed"))]
    assert listed == ids[::-1]
    listed = [job["id"] for job in documents(pgqueue("list", "--json", "-s", "completed", "-n", "2"))]
    assert listed == ids[:3:-1]


# Show ---------------------------------------------------------------------------------------------------


def test_a_job_is_shown_with_its_args_result_errors_and_lines(connection: Session, pgqueue: Any) -> None:
    worker = register(connection)
    id = enqueue(connection, task="count", args='{"path": "a.csv"}', unique_key="a", options={"tags": ["eu"]})
    (first,) = claim(connection, worker)
    lines = [{"at": "2027-01-01T00:00:00.000+00:00", "level": "info", "text": "began \x1b[31mrows=3"}]
    report = {"id": id, "lease": first.lease, "lines": lines, "progress": {"done": 1, "total": 4}}
    run(connection, calls.note_reports(json.dumps([report])))
    fail(connection, first, 0)
    connection.execute("select pgqueue.promote(10)")
    (second,) = claim(connection, worker)
    complete(connection, second, '{"total": 7}')

    shown = documents(pgqueue("show", str(id), "--logs", "--json"))
    assert shown["args"] == {"path": "a.csv"}
    assert (shown["state"], shown["attempt"], shown["result"]) == ("completed", 2, {"total": 7})
    assert (shown["tags"], shown["unique_key"], shown["progress"]) == (["eu"], "a", None)
    assert [(f["attempt"], f["error"], f["message"]) for f in shown["failures"]] == [
        (1, "ValueError", "went wrong")
    ]
    assert shown["logs"] == [{"attempt": 1, **lines[0]}]
    assert "logs" not in documents(pgqueue("show", str(id), "--json"))

    told = pgqueue("show", str(id), "--logs").stdout
    assert 'args          {"path": "a.csv"}\n' in told
    assert 'result        {"total": 7}\n' in told
    assert "attempt 1 failed at " in told
    assert "ValueError: went wrong\nTraceback:\n  here\n" in told
    assert "attempt 1  info      began \N{REPLACEMENT CHARACTER}[31mrows=3\n" in told


@pytest.mark.parametrize("state", ["completed", "dead", "running", "cancelled", "scheduled", "ready"])
def test_a_job_can_be_shown_in_every_state(state: str, pgqueue: Any, seven: dict[str, int]) -> None:
    shown = documents(pgqueue("show", str(seven[state]), "--json"))
    assert (shown["id"], shown["state"]) == (seven[state], state)
    assert pgqueue("show", str(seven[state])).exit_code == 0


def test_a_job_that_is_not_on_record_is_an_error(pgqueue: Any) -> None:
    for options in ([], ["--follow"]):
        result = pgqueue("show", "4711", *options)
        assert (result.exit_code, result.stderr) == (1, "error: job 4711 is not on record\n")


# Follow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "code"), [("completed", 0), ("dead", 1), ("cancelled", 3)])
def test_a_job_is_followed_to_its_end_which_the_exit_code_tells(
    ending: str, code: int, connection: Session, database: str, pgqueue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = register(connection)
    id = enqueue(connection, task="import")
    looks = 0
    pause = time.sleep

    def count_looks(_seconds: float) -> None:
        nonlocal looks
        looks += 1
        pause(0.01)

    monkeypatch.setattr(time, "sleep", count_looks)

    def look_again() -> None:
        """Waits for a look that has begun after this moment, and was shown."""
        seen = looks
        deadline = time.monotonic() + 10
        while looks < seen + 2 and time.monotonic() < deadline:
            pause(0.002)

    def act() -> None:
        with psycopg.connect(database, autocommit=True) as other:
            look_again()
            with other.transaction():
                (job,) = claim(other, worker)
                note_progress(other, job, done=3, total=10, message="row 3")
            look_again()
            match ending:
                case "completed":
                    complete(other, job, "7")
                case "dead":
                    fail(other, job, None)
                case _:
                    run(other, calls.end_cancelled([job.id], [job.lease], ["withdrawn"]))

    acting = threading.Thread(target=act)
    acting.start()
    result = pgqueue("show", str(id), "--follow", "--json")
    acting.join()
    assert result.exit_code == code
    assert json.loads(result.stdout)["state"] == ending
    assert result.stderr.splitlines() == [
        f"job {id} ready, attempt 0/5",
        f"job {id} running, attempt 1/5, 3 of 10: row 3",
        f"job {id} {ending}, attempt 1/5",
    ]


def test_on_a_terminal_progress_is_a_bar(
    connection: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = register(connection)
    job = claimed(connection, worker)
    note_progress(connection, job, done=3, total=10, message="row [bold]3")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with jobs_cli._Display() as display:
        (info,) = run(connection, calls.look([job.id]))
        display.show(info)
    told = capsys.readouterr().err
    assert "30%" in told
    assert f"job {job.id} running, attempt 1/5: row [bold]3" in told


# Cancel -------------------------------------------------------------------------------------------------


def test_jobs_are_cancelled_by_id_and_each_outcome_is_told(
    pgqueue: Any, seven: dict[str, int], connection: Session
) -> None:
    result = pgqueue("cancel", *(str(id) for id in seven.values()), "4711", "--reason", "enough", "--json")
    assert result.exit_code == 1
    waiting = sorted(seven[name] for name in ("scheduled", "ready", "ready too", "dead"))
    assert json.loads(result.stdout) == {
        "cancelled": waiting,
        "asked": [seven["running"]],
        "finished": sorted([seven["completed"], seven["cancelled"]]),
        "missing": [4711],
    }
    (info,) = run(connection, calls.look([seven["ready"]]))
    assert (info.state, info.reason) == ("cancelled", "enough")

    again = pgqueue("cancel", str(seven["ready"]), "4711")
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr.splitlines() == [
        "0 cancelled",
        f"1 had ended before ({seven['ready']})",
        "1 not on record (4711)",
    ]
    asked = pgqueue("cancel", str(seven["running"]))
    assert (asked.exit_code, asked.stderr) == (
        0,
        f"0 cancelled\n1 asked for: their workers are told ({seven['running']})\n",
    )


@pytest.mark.usefixtures("on_a_terminal")
def test_what_matches_is_counted_and_asked_for_before_it_is_cancelled(
    pgqueue: Any, seven: dict[str, int], connection: Session
) -> None:
    def states() -> list[str]:
        looked = run(connection, calls.look([seven["ready"], seven["scheduled"], seven["ready too"]]))
        return [info.state for info in looked]

    before = states()
    result = pgqueue("cancel", "--all-matching", "--queue", "mail", input="n\n")
    assert result.exit_code == 130
    assert "cancel 2 jobs? [y/N]" in result.stderr
    assert states() == before
    assert pgqueue("cancel", "--all-matching", "--queue", "mail", input="y\n").exit_code == 0
    assert sorted(states()) == ["cancelled", "cancelled", "ready"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--state", "scheduled"], ["scheduled"]),
        (["--tag", "eu"], ["running", "ready"]),
        (["--task", "count"], ["ready too"]),
        (["--state", "running", "--state", "ready"], ["running", "ready", "ready too"]),
    ],
)
def test_only_what_waits_or_runs_and_matches_is_cancelled(
    arguments: list[str], expected: list[str], pgqueue: Any, seven: dict[str, int]
) -> None:
    told = documents(pgqueue("cancel", "--all-matching", "-y", "--json", *arguments))
    assert sorted(told["cancelled"] + told["asked"]) == sorted(seven[name] for name in expected)
    assert (told["finished"], told["missing"]) == ([], [])


def test_many_are_cancelled_in_steps(
    connection: Session, pgqueue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acting, "STEP", 3)
    ids = [enqueue(connection) for _ in range(7)]
    result = pgqueue("cancel", *map(str, ids))
    assert result.exit_code == 0
    assert result.stderr.splitlines() == ["3 of 7 done", "6 of 7 done", "7 of 7 done", "7 cancelled"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name the ids of jobs, or say --all-matching with a filter"),
        (["7", "--all-matching"], "name the ids of jobs, or say --all-matching with a filter"),
        (["7", "--queue", "mail"], "filters go with --all-matching, not with ids"),
        (["--all-matching"], "--all-matching goes with a filter"),
        (["--all-matching", "--state", "dead"], "Invalid value for '-s' / '--state': 'dead' is not one of"),
        (["0"], "Invalid value for '[ID]...': 0 is not in the range"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_happens(
    arguments: list[str], says: str, pgqueue: Any, connection: Session
) -> None:
    id = enqueue(connection)
    result = pgqueue("cancel", "-y", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {says}")
    assert [info.state for info in run(connection, calls.look([id]))] == ["ready"]
