"""What operators do from the command line: to jobs and dead letters by filter, and what the audit has of it."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgqueue import calls
from pgqueue.cli import acting, main
from pgqueue.drivers import run
from pgqueue.job import ClaimedJob
from tests.sql.acting import claimed, enqueue, register, row_of, rows, scalar, where

Session = psycopg.Connection
Invoke = Callable[..., Result]


@pytest.fixture
def pgqueue(database: str) -> Invoke:
    """Runs `pgqueue …` on the test's database, as a program would: nobody can be asked."""

    def invoke(*arguments: str, input: str | None = None) -> Result:
        return CliRunner().invoke(main, ["--dsn", database, *arguments], input=input)

    return invoke


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked can answer."""
    from click import testing

    monkeypatch.setattr(testing._NamedTextIOWrapper, "isatty", lambda _: True, raising=False)


def told(result: Result, code: int = 0) -> Any:
    """The JSON document of a command that ended so."""
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def fail(connection: Session, job: ClaimedJob, delay: float | None = None, fingerprint: str = "f") -> int:
    """Ends an attempt as failed: a dead letter, or with a delay a scheduled job."""
    failure = {
        "id": job.id, "lease": job.lease, "error": "ValueError", "message": "went wrong",
        "fingerprint": fingerprint, "delay": delay, "reason": "permanent",
    }  # fmt: skip
    assert run(connection, calls.fail(json.dumps([failure]))) == [job.id]
    return job.id


@pytest.fixture
def worker(connection: Session) -> int:
    return register(connection)


def dead(connection: Session, worker: int, fingerprint: str = "f", **options: Any) -> int:
    return fail(connection, claimed(connection, worker, **options), fingerprint=fingerprint)


# Filters ------------------------------------------------------------------------------------------------


@pytest.fixture
def various(connection: Session, worker: int) -> dict[str, int]:
    """Jobs that differ in what filters look at."""
    made = {
        "old": enqueue(connection, delay=3600),
        "for 7": enqueue(connection, args='{"user_id": 7, "how": {"a": 1}}', delay=3600),
        "tagged": enqueue(connection, options={"tags": ["eu"]}, delay=3600),
        "dead of f": dead(connection, worker),
        "dead of g": dead(connection, worker, "g", args='{"user_id": 7}'),
        "to be tried again": fail(connection, claimed(connection, worker), 3600, "g"),
    }
    connection.execute(
        "update pgqueue.scheduled_jobs set created_at = now() - interval '2 hours' where id = %s",
        [made["old"]],
    )
    return made


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--older-than", "1h"], ["old"]),
        (["--until", "1h"], ["old"]),
        (["--since", "1h", "--state", "scheduled"], ["for 7", "tagged", "to be tried again"]),
        (["--fingerprint", "g"], ["dead of g", "to be tried again"]),
        (["--fingerprint", "f"], ["dead of f"]),
        (["--fingerprint", "none"], []),
        (["--args-contain", '{"user_id": 7}'], ["for 7", "dead of g"]),
        (["--args-contain", '{"how": {"a": 1}}'], ["for 7"]),
        (["--args-contain", '{"user_id": 7}', "--fingerprint", "g"], ["dead of g"]),
        (["--args-contain", '{"user_id": "7"}'], []),
    ],
)
def test_jobs_are_found_by_age_fingerprint_and_args(
    arguments: list[str], expected: list[str], pgqueue: Invoke, various: dict[str, int]
) -> None:
    listed = told(pgqueue("jobs", "list", "--json", *arguments))
    assert {job["id"] for job in listed} == {various[name] for name in expected}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--fingerprint", "g"], ["dead of g"]),
        (["--args-contain", '{"user_id": 7}'], ["dead of g"]),
        (["--tag", "eu"], []),
        (["--older-than", "1h"], []),
        (["--since", "1h"], ["dead of f", "dead of g"]),
    ],
)
def test_dead_letters_are_found_by_the_same_filters(
    arguments: list[str], expected: list[str], pgqueue: Invoke, various: dict[str, int]
) -> None:
    listed = told(pgqueue("dead", "list", "--json", *arguments))
    assert {letter["id"] for letter in listed} == {various[name] for name in expected}


def test_a_dead_letter_is_found_by_its_fingerprint_after_its_failures_were_forgotten(
    connection: Session, pgqueue: Invoke, various: dict[str, int]
) -> None:
    connection.execute("delete from pgqueue.job_failures")
    listed = told(pgqueue("jobs", "list", "--json", "--fingerprint", "g"))
    assert [job["id"] for job in listed] == [various["dead of g"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--args-contain", "{"], "Invalid value for --args-contain: not JSON: "),
        (["--args-contain", "7"], "Invalid value for --args-contain: expected a JSON object"),
        (["--since", "soon"], "Invalid value for --since: 'soon': expected a time"),
    ],
)
def test_a_filter_that_says_nothing_is_refused(arguments: list[str], says: str, pgqueue: Invoke) -> None:
    for command in (["jobs", "list"], ["dead", "list"], ["jobs", "delete", "--all-matching"]):
        result = pgqueue(*command, *arguments)
        assert (result.exit_code, result.stderr[: len(says) + 7]) == (2, f"error: {says}")


# Consent ------------------------------------------------------------------------------------------------


ACTS = [("jobs", "retry"), ("jobs", "cancel"), ("jobs", "delete"), ("dead", "replay"), ("dead", "discard")]


@pytest.mark.parametrize("command", ACTS, ids=" ".join)
def test_what_is_done_by_filter_is_shown_and_needs_consent(
    command: tuple[str, str], connection: Session, pgqueue: Invoke, various: dict[str, int]
) -> None:
    before = {id: where(connection, id) for id in various.values()}
    result = pgqueue(*command, "--all-matching", "--since", "9h")
    assert result.exit_code == 2
    meant = {"retry": 4, "cancel": 4, "delete": 6, "replay": 2, "discard": 2}[command[1]]
    noun = "dead letters" if command[0] == "dead" else "jobs"
    assert (
        f"error: to {command[1]} {meant} {noun} takes consent: nobody can be asked here, so say --yes (see "
        in result.stderr
    )
    shown = [int(line.split()[0]) for line in result.stderr.splitlines() if line[:1].isdigit()]
    assert len(shown) == min(meant, 5)
    assert set(shown) <= set(various.values())
    assert ("… and 1 more" in result.stderr) == (meant == 6)
    assert {id: where(connection, id) for id in various.values()} == before


@pytest.mark.parametrize("command", ACTS, ids=" ".join)
@pytest.mark.parametrize("answer", ["n", "y"])
@pytest.mark.usefixtures("on_a_terminal")
def test_somebody_at_a_terminal_is_asked(
    answer: str, command: tuple[str, str], connection: Session, pgqueue: Invoke, various: dict[str, int]
) -> None:
    before = {id: where(connection, id) for id in various.values()}
    result = pgqueue(*command, "--all-matching", "--since", "9h", input=f"{answer}\n")
    assert f"{command[1]} " in result.stderr
    assert "? [y/N]" in result.stderr
    assert result.exit_code == (0 if answer == "y" else 130)
    assert ({id: where(connection, id) for id in various.values()} == before) == (answer == "n")


@pytest.mark.parametrize("command", ACTS, ids=" ".join)
def test_nothing_that_matches_needs_no_consent(command: tuple[str, str], pgqueue: Invoke) -> None:
    result = pgqueue(*command, "--all-matching", "--task", "nothing of that name")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("0 ")


# Retry and delete ---------------------------------------------------------------------------------------


def test_scheduled_jobs_are_made_ready_and_the_others_are_named(
    connection: Session, pgqueue: Invoke, various: dict[str, int]
) -> None:
    ids = [various["old"], various["to be tried again"]]
    assert told(pgqueue("jobs", "retry", *map(str, ids), "--json")) == {"retried": ids, "left": []}
    assert [where(connection, id) for id in ids] == [["ready_jobs"]] * 2
    corpse = various["dead of f"]
    result = pgqueue("jobs", "retry", str(ids[0]), str(corpse), "4711")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "0 ready now",
        f"job {ids[0]} is left as it is: ready",
        f"job {corpse} is left as it is: dead: pgqueue dead replay {corpse}",
        "job 4711 is left as it is: not on record",
    ]
    assert told(pgqueue("jobs", "retry", "--all-matching", "--tag", "eu", "-y", "--json")) == {
        "retried": [various["tagged"]],
        "left": [],
    }


def test_jobs_are_deleted_but_those_that_run(
    connection: Session, pgqueue: Invoke, worker: int, various: dict[str, int]
) -> None:
    runs = claimed(connection, worker).id
    result = pgqueue("jobs", "delete", str(various["old"]), str(runs), "4711", "--json")
    assert told(result, 1) == {"deleted": [various["old"]], "running": [runs], "missing": [4711]}
    again = pgqueue("jobs", "delete", str(runs))
    assert (again.exit_code, again.stderr) == (
        1,
        f"0 deleted\n1 running, and left alone: cancel them first ({runs})\n",
    )
    deleted = told(pgqueue("jobs", "delete", "--all-matching", "--state", "dead", "-y", "--json"))["deleted"]
    assert deleted == [various["dead of f"], various["dead of g"]]
    assert scalar(connection, "select count(*) from pgqueue_bi.jobs") == 4


def test_many_are_done_in_steps_that_are_told_of(
    connection: Session, pgqueue: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acting, "STEP", 3)
    for _ in range(7):
        enqueue(connection, delay=60)
    steps = ["3 of 7 done", "6 of 7 done", "7 of 7 done"]
    retried = pgqueue("jobs", "retry", "--all-matching", "--queue", "default", "--yes")
    assert retried.stderr.splitlines()[-4:] == [*steps, "7 ready now"]
    deleted = pgqueue("jobs", "delete", "--all-matching", "--queue", "default", "--yes")
    assert deleted.stderr.splitlines()[-4:] == [*steps, "7 deleted"]
    assert [row["jobs"] for row in rows(connection, "audit")] == [3, 3, 1] * 2


# Replay -------------------------------------------------------------------------------------------------


def test_letters_are_replayed_with_args_of_which_some_are_changed(
    connection: Session, pgqueue: Invoke, worker: int
) -> None:
    ids = [dead(connection, worker, args='{"user_id": 7, "card": 1, "name": "x"}') for _ in range(2)]
    edits = ["--set", "card=2", "--set", "name=Bo b", "--set", 'how={"a": [1]}']
    result = pgqueue("dead", "replay", "--all-matching", "-y", "--json", *edits)
    assert told(result) == {"replayed": ids, "left": []}
    for id in ids:
        args = row_of(connection, id)["args"]
        assert args == {"user_id": 7, "card": 2, "name": "Bo b", "how": {"a": [1]}}


def test_one_letter_is_replayed_with_other_args(connection: Session, pgqueue: Invoke, worker: int) -> None:
    id = dead(connection, worker, args='{"user_id": 7, "card": 1}')
    assert pgqueue("dead", "replay", str(id), "--args", '{"user_id": 8}').exit_code == 0
    assert row_of(connection, id)["args"] == {"user_id": 8}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--all-matching", "--args", "{}"], "--args goes with one id"),
        (["7", "8", "--args", "{}"], "--args goes with one id"),
        (["7", "--args", "{}", "--set", "a=1"], "--args goes with one id, and without --set"),
        (["7", "--args", "[1]"], "Invalid value for --args: expected a JSON object"),
        (["7", "--set", "a"], "Invalid value for '--set': 'a': expected name=value"),
        (["7", "--set", "a=NaN"], "args.a: nan is not JSON"),
        (["7", "--rate", "10"], "Invalid value for '--rate': '10': expected a rate such as 10/s"),
        (["7", "--rate", "0/s"], "Invalid value for '--rate'"),
        ([], "name the ids of jobs"),
        (["7", "--all-matching"], "name the ids of jobs"),
        (["7", "--queue", "mail"], "filters go with --all-matching"),
    ],
)
def test_a_replay_that_makes_no_sense_is_refused(arguments: list[str], says: str, pgqueue: Invoke) -> None:
    result = pgqueue("dead", "replay", "-y", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {says}")


@pytest.mark.parametrize(
    ("rate", "steps"),
    [("10/s", {0: 1, 0.1: 1, 0.2: 1, 0.3: 1, 0.4: 1}), ("20/s", {0: 2, 0.1: 2, 0.2: 1}), ("60/m", dict.fromkeys(range(5), 1))],
)  # fmt: skip
def test_a_throttled_replay_takes_its_time(
    rate: str,
    steps: dict[float, int],
    connection: Session,
    pgqueue: Invoke,
    worker: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = [dead(connection, worker) for _ in range(5)]
    now = 100.0
    replayed: dict[float, int] = {}

    class Clock:
        """Time that passes only while somebody sleeps, and what was replayed until then."""

        def monotonic(self) -> float:
            return now

        def sleep(self, seconds: float) -> None:
            nonlocal now
            replayed[round(now - 100, 6)] = scalar(connection, "select count(*) from pgqueue.ready_jobs")
            now += seconds

    monkeypatch.setattr(acting, "time", Clock())
    assert told(pgqueue("dead", "replay", "--all-matching", "-y", "--rate", rate, "--json")) == {
        "replayed": ids,
        "left": [],
    }
    so_far = 0
    for at, number in list(steps.items())[:-1]:
        so_far += number
        assert replayed[at] == so_far
    assert len(replayed) == len(steps) - 1


def test_a_letter_that_cannot_be_replayed_is_named(connection: Session, pgqueue: Invoke, worker: int) -> None:
    id = dead(connection, worker, unique_key="k")
    enqueue(connection, unique_key="k")
    result = pgqueue("dead", "replay", str(id))
    assert (result.exit_code, result.stdout) == (1, "")
    why = "left as they are: they are no dead letters or have a unique key that another job holds"
    assert result.stderr == f"0 replayed\n1 {why} ({id})\n"


# The audit ----------------------------------------------------------------------------------------------


def test_the_audit_has_who_did_what_to_which_jobs(
    connection: Session, pgqueue: Invoke, various: dict[str, int]
) -> None:
    pgqueue("jobs", "cancel", str(various["old"]), "--reason", "enough")
    pgqueue("jobs", "delete", "--all-matching", "-y", "--tag", "eu", "--state", "scheduled")
    pgqueue("dead", "replay", "-y", "--all-matching", "--args-contain", '{"user_id": 7}', "--set", "card=2")
    pgqueue("dead", "discard", str(various["dead of g"]))  # changes nothing
    listed = told(pgqueue("audit", "list", "--json"))
    assert [(row["verb"], row["jobs"], row["job_ids"], row["filter"], row["details"]) for row in listed] == [
        ("replay", 1, str(various["dead of g"]), "--args-contain user_id", {"edited_args": ["card"]}),
        ("delete_jobs", 1, str(various["tagged"]), "--tag eu --state scheduled", None),
        ("cancel", 1, str(various["old"]), None, {"reason": "enough"}),
    ]
    role = scalar(connection, "select session_user::text")
    actor = f"{getpass.getuser()}@{socket.gethostname()}"
    assert {(row["role"], row["actor"]) for row in listed} == {(role, actor)}
    assert [row["verb"] for row in told(pgqueue("audit", "list", "--json", "--verb", "cancel"))] == ["cancel"]
    assert len(told(pgqueue("audit", "list", "--json", "--who", getpass.getuser(), "-n", "2"))) == 2
    assert told(pgqueue("audit", "list", "--json", "--who", "somebody else")) == []
    assert told(pgqueue("audit", "list", "--json", "--until", "1h")) == []
    table = pgqueue("audit", "list", "--since", "1h")
    assert "--tag eu --state scheduled" in table.stdout
    assert pgqueue("audit", "list", "--verb", "none").stderr == "nothing was done that matches\n"
