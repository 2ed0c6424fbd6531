"""`pgqueue schedules`, and what `App` and the test kit offer for schedules: one database, no worker."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from click.testing import CliRunner, Result

import pgqueue as package
from pgqueue import calls
from pgqueue.cli import main
from pgqueue.drivers import run
from pgqueue.errors import ConfigurationError, InvalidOption, UnknownSchedule
from pgqueue.testing import drain, enqueued, tick
from pgqueue.worker.schedules import definitions
from tests.sql.acting import scalar

Session = psycopg.Connection

PARIS = ZoneInfo("Europe/Paris")
app = package.App(name="shop")
ran: list[tuple[str | None, datetime | None]] = []


@app.schedule(cron="0 3 * * *", tz="Europe/Paris", args={"days": 90})
@app.schedule(name="once", at=datetime(2027, 1, 1, tzinfo=UTC))
@app.schedule(name="start", at_startup=True)
@app.task
def clean_up(ctx: package.Context, days: int = 30) -> None:  # noqa: ARG001
    ran.append((ctx.schedule, ctx.due_at))


@app.schedule(every="90s", overlap="skip")
@app.task(queue="mail", priority=2)
async def remind() -> None: ...


@pytest.fixture
def pgqueue(database: str) -> Any:
    """Runs `pgqueue schedules …` on the test's database."""

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["--dsn", database, "schedules", *arguments])

    return invoke


@pytest.fixture
def brought(connection: Session) -> Session:
    """The app's schedules are in the database, as a worker's start brings them."""
    run(connection, calls.sync_schedules(app.name, definitions(app.schedules.values()), starts=False))
    return connection


def documents(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def plan(connection: Session, name: str, due_at: datetime) -> None:
    """What the leader writes when it has computed a due time."""
    connection.execute("update pgqueue.schedules set due_at = %s where name = %s", [due_at, name])


def tick_now(
    connection: Session, name: str, due_at: datetime, outcome: str = "enqueued", missed: int = 0
) -> None:
    """A tick of one due time, as the leader's."""
    plan(connection, name, due_at)
    connection.execute(
        "select pgqueue.tick(name, changed_at, due_at, array[due_at], array[%s], array[%s], null)"
        " from pgqueue.schedules where name = %s",
        [outcome, missed, name],
    )


# List and show ----------------------------------------------------------------------------------------


def test_the_list_says_when_each_is_due_in_its_own_zone(pgqueue: Any, brought: Session) -> None:
    plan(brought, "clean_up", datetime(2027, 7, 1, 1, tzinfo=UTC))
    tick_now(brought, "remind", datetime(2026, 11, 23, 2, tzinfo=UTC))
    run(brought, calls.pause_schedule("once"))
    brought.execute("select pgqueue.schedule('broken', 'clean_up', cron => '0 0 30 2 *')")
    brought.execute("update pgqueue.schedules set problem = 'cron: it never comes' where name = 'broken'")
    lines = pgqueue("list").stdout.splitlines()
    told = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[2:]}
    assert told == {
        "broken": "clean_up 0 0 30 2 * UTC - - - problem: cron: it never comes",
        "clean_up": "clean_up 0 3 * * * Europe/Paris 2027-07-01 03:00:00+02:00 - - -",
        "once": "clean_up at 2027-01-01 00:00:00+00:00 - - - paused",
        "remind": "remind every 90s - 2026-11-23 02:00:00+00:00 enqueued -",
        "start": "clean_up at startup - - - -",
    }
    listed = documents(pgqueue("list", "--json"))
    assert [(row["name"], row["owner"]) for row in listed] == [
        ("broken", None), ("clean_up", "shop"), ("once", "shop"), ("remind", "shop"), ("start", "shop"),
    ]  # fmt: skip


def test_an_empty_list_says_so(pgqueue: Any, connection: Session) -> None:  # noqa: ARG001
    result = pgqueue("list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "there are no schedules\n")
    assert documents(pgqueue("list", "--json")) == []


def test_one_is_shown_with_its_jobs_args_and_next_due_times(pgqueue: Any, brought: Session) -> None:
    plan(brought, "clean_up", datetime(2027, 3, 26, 2, tzinfo=UTC))
    document = documents(pgqueue("show", "clean_up", "--json"))
    assert (document["args"], document["options"], document["cron"]) == ({"days": 90}, None, "0 3 * * *")
    shown = pgqueue("show", "clean_up").stdout
    for part in ("the code of app shop", '{"days": 90}', "0 3 * * * Europe/Paris", "grace         15s"):
        assert part in shown
    assert shown.splitlines()[-5:] == [
        "next due      2027-03-26 03:00:00+01:00",
        "              2027-03-27 03:00:00+01:00",
        "              2027-03-28 03:00:00+02:00",
        "              2027-03-29 03:00:00+02:00",
        "              2027-03-30 03:00:00+02:00",
    ]


def test_one_that_cannot_run_is_shown_with_its_problem(pgqueue: Any, connection: Session) -> None:
    connection.execute(
        "select pgqueue.schedule('broken', 't', cron => '0 0 30 2 *', options => '{\"tags\": [\"a\"]}')"
    )
    connection.execute("update pgqueue.schedules set problem = 'cron: it never comes' where name = 'broken'")
    shown = pgqueue("show", "broken").stdout
    assert "cron: it never comes" in shown
    assert '{"tags": ["a"]}' in shown
    assert "next due" not in shown
    result = pgqueue("next", "broken")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cron: '0 0 30 2 *' never comes" in result.stderr


# Next -------------------------------------------------------------------------------------------------


def test_the_next_due_times_begin_with_the_stored_one(pgqueue: Any, brought: Session) -> None:
    late = datetime(2026, 1, 1, tzinfo=UTC)
    plan(brought, "clean_up", late)
    first, *rest = [
        datetime.fromisoformat(due["due_at"])
        for due in documents(pgqueue("next", "clean_up", "-n", "3", "--json"))
    ]
    now = scalar(brought, "select clock_timestamp()")
    assert first == late
    assert [due.astimezone(PARIS).hour for due in rest] == [3, 3]
    assert all(now < due < now + timedelta(days=3) for due in rest)


def test_an_interval_counts_from_the_making_by_the_databases_clock(pgqueue: Any, brought: Session) -> None:
    brought.execute(
        "update pgqueue.schedules set created_at = now() - interval '10 minutes' where name = 'remind'"
    )
    made = scalar(brought, "select created_at from pgqueue.schedules where name = 'remind'")
    dues = documents(pgqueue("next", "remind", "--json", "-n", "2"))
    found = [(datetime.fromisoformat(due["due_at"]) - made) / timedelta(seconds=90) for due in dues]
    assert found == [7, 8]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("start", "it is due when a worker of its app starts"),
        ("clean_up", "clean_up is paused: it runs at none of these before it is resumed"),
        ("past", "it is not due any more"),
    ],
)
def test_what_is_not_due_says_why(pgqueue: Any, brought: Session, name: str, told: str) -> None:
    run(brought, calls.pause_schedule("clean_up"))
    brought.execute("select pgqueue.sync_schedules('other', %s, false)", [
        '[{"name": "past", "task": "t", "at": "2026-01-01T00:00:00Z"}]'
    ])  # fmt: skip
    result = pgqueue("next", name)
    assert result.exit_code == 0
    assert result.stderr.strip() == told
    assert bool(result.stdout) == (name == "clean_up")


def test_an_expression_is_previewed_without_a_database() -> None:
    arguments = ["--cron", "30 2 * * *", "--tz", "Europe/Paris", "--after", "2027-03-27", "-n", "3"]
    result = CliRunner().invoke(main, ["schedules", "next", *arguments], env={"PGQUEUE_DSN": ""})
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()[2:]] == [
        ["2027-03-27", "02:30:00+01:00", "2027-03-27", "01:30:00"],
        ["2027-03-28", "03:00:00+02:00", "2027-03-28", "01:00:00"],
        ["2027-03-29", "02:30:00+02:00", "2027-03-29", "00:30:00"],
    ]
    result = CliRunner().invoke(
        main, ["schedules", "next", "--cron", "*/20 * * * * *", "--seconds", "first", "-n", "2", "--json"]
    )
    first, second = (datetime.fromisoformat(due["due_at"]) for due in documents(result))
    assert second - first == timedelta(seconds=20)
    assert first > datetime.now(UTC) - timedelta(seconds=20)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give the name of a schedule, or --cron"),
        (["nightly", "--cron", "@daily"], "give the name of a schedule, or --cron"),
        (["nightly", "--tz", "UTC"], "--seconds and --tz go with --cron"),
        (["--cron", "@dayly"], "cron: there is no '@dayly', did you mean @daily?"),
        (["--cron", "0 3 * * *", "--tz", "Europe/Pari"], "tz: there is no zone 'Europe/Pari', did you mean"),
        (["--cron", "@daily", "--after", "soon"], "'soon': expected a time such as 2026-11-23T09:00"),
    ],
)
def test_a_wrong_preview_is_refused(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(main, ["schedules", "next", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


# History ----------------------------------------------------------------------------------------------


def test_the_history_has_due_time_actual_time_job_and_outcome(pgqueue: Any, brought: Session) -> None:
    assert pgqueue("history", "clean_up").stderr == "clean_up has not been due yet\n"
    tick_now(brought, "clean_up", datetime(2026, 7, 1, 1, tzinfo=UTC))
    tick_now(brought, "clean_up", datetime(2026, 7, 3, 1, tzinfo=UTC), "missed", 2)
    missed, enqueued = documents(pgqueue("history", "clean_up", "--json"))
    assert (missed["outcome"], missed["missed"], missed["job_id"], missed["job_state"]) == (
        "missed",
        2,
        None,
        None,
    )
    assert (enqueued["outcome"], enqueued["missed"], enqueued["job_state"]) == ("enqueued", 0, "ready")
    assert enqueued["late_seconds"] > 0
    lines = pgqueue("history", "clean_up", "-n", "1").stdout.splitlines()[2:]
    assert len(lines) == 1
    assert lines[0].startswith("2026-07-03 03:00:00+02:00")


# Run, pause, resume, delete ---------------------------------------------------------------------------


def test_one_is_run_now(pgqueue: Any, brought: Session) -> None:
    run(brought, calls.pause_schedule("clean_up"))
    document = documents(pgqueue("run", "clean_up", "--json"))
    assert (document["schedule"], document["outcome"]) == ("clean_up", "by_hand")
    (job,) = enqueued(brought)
    assert (job.id, job.args, job.options["schedule"]) == (document["job_id"], {"days": 90}, "clean_up")
    (entry,) = documents(pgqueue("history", "clean_up", "--json"))
    assert (entry["outcome"], entry["job_id"]) == ("by_hand", job.id)
    assert pgqueue("run", "clean_up").stdout == f"job {job.id + 1}\n"


@pytest.mark.usefixtures("brought")
def test_one_whose_last_job_is_unfinished_is_not_run_beside_it(pgqueue: Any) -> None:
    job = documents(pgqueue("run", "remind", "--json"))["job_id"]
    result = pgqueue("run", "remind")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        result.stderr
        == f"nothing was enqueued: its job {job} is unfinished, and its overlap policy is skip\n"
    )


def test_one_is_paused_resumed_and_deleted(pgqueue: Any, brought: Session) -> None:
    paused = "select paused_at is not null from pgqueue.schedules where name = 'clean_up'"
    assert pgqueue("pause", "clean_up").stderr == "clean_up paused\n"
    assert scalar(brought, paused)
    assert pgqueue("resume", "clean_up").stderr == "clean_up resumed\n"
    assert not scalar(brought, paused)
    result = pgqueue("delete", "clean_up")
    assert result.exit_code == 0
    assert result.stderr.startswith("clean_up deleted\nthe code of app shop defines it")
    brought.execute("select pgqueue.schedule('by hand', 't', every => 60)")
    assert pgqueue("delete", "by hand").stderr == "by hand deleted\n"


@pytest.mark.parametrize("verb", ["show", "next", "history", "run", "pause", "resume", "delete"])
def test_an_unknown_name_is_told_with_the_nearest(pgqueue: Any, brought: Session, verb: str) -> None:  # noqa: ARG001
    result = pgqueue(verb, "clean-up")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: there is no schedule 'clean-up', did you mean clean_up?\n"


def test_an_unknown_name_is_told_when_there_are_none(pgqueue: Any, connection: Session) -> None:  # noqa: ARG001
    assert pgqueue("run", "x").stderr == "error: there is no schedule 'x', nor any other\n"


# Add --------------------------------------------------------------------------------------------------


def test_one_is_added_and_changed(pgqueue: Any, connection: Session) -> None:
    options = [
        *(
            "--cron",
            "0 0 8 * * mon",
            "--seconds",
            "first",
            "--tz",
            "Europe/Paris",
            "--jitter",
            "5m",
            "--grace",
            "1m",
        ),
        *("--missed", "all", "--missed-limit", "3", "--overlap", "queue", "--starts-at", "2027-01-01T00:00"),
        *("--ends-at", "2027-12-31T00:00Z", "-q", "reports", "-p", "1", "--max-attempts", "2"),
    ]
    assert documents(pgqueue("add", "weekly", "report", '{"user_id": 7}', *options, "--json")) == {
        "name": "weekly",
        "outcome": "created",
    }
    document = documents(pgqueue("show", "weekly", "--json"))
    expected = {
        "owner": None, "task": "report", "args": {"user_id": 7}, "queue": "reports", "priority": 1, "max_attempts": 2,
        "cron": "0 0 8 * * mon", "seconds": "first", "tz": "Europe/Paris", "jitter_seconds": 300, "grace_seconds": 60,
        "missed": "all", "missed_limit": 3, "overlap": "queue",
    }  # fmt: skip
    assert {name: document[name] for name in expected} == expected
    assert datetime.fromisoformat(document["starts_at"]) == datetime(2027, 1, 1, tzinfo=PARIS)
    assert pgqueue("add", "weekly", "report", "--every", "30").stderr == "weekly changed\n"
    document = documents(pgqueue("show", "weekly", "--json"))
    assert (document["every_seconds"], document["cron"], document["args"]) == (30, None, {})
    assert pgqueue("add", "weekly", "report", "--every", "30s").stderr == "weekly unchanged\n"
    assert (
        pgqueue("add", "party", "report", "--at", "2099-01-01T00:00", "--tz", "Europe/Paris").exit_code == 0
    )
    assert scalar(connection, "select at from pgqueue.schedules where name = 'party'") == datetime(
        2098, 12, 31, 23, tzinfo=UTC
    )


def test_one_of_the_code_that_is_changed_by_hand_is_told_to_stay_so(pgqueue: Any, brought: Session) -> None:
    result = pgqueue("add", "clean_up", "clean_up", "--cron", "0 4 * * *")
    assert result.exit_code == 0
    assert "it was defined by the code of app shop, and is yours now" in result.stderr
    outcomes = run(brought, calls.sync_schedules(app.name, definitions(app.schedules.values()), starts=False))
    assert ("clean_up", "foreign") in outcomes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["t"], "no timing: give one of cron, every, at, at_startup"),
        (["t", "--cron", "0 3 * *"], "cron: expected five fields"),
        (["t", "--every", "0.1s"], "every: expected at least 1 s"),
        (["t", "--at", "2020-01-01"], "has passed"),
        (["t", "[7]", "--every", "60"], "args: expected a JSON object"),
        (["t", "{7", "--every", "60"], "args: not JSON"),
        (["t", "--every", "60", "--missed", "never"], "'never' is not one of 'skip', 'once', 'all'"),
    ],
)
def test_what_cannot_be_is_not_added(
    pgqueue: Any, connection: Session, arguments: list[str], told: str
) -> None:
    result = pgqueue("add", "x", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert scalar(connection, "select count(*) from pgqueue.schedules") == 0


# In Python --------------------------------------------------------------------------------------------


def test_an_app_makes_pauses_runs_and_deletes_schedules(database: str, connection: Session) -> None:
    mine = package.App(dsn=database)

    @mine.task(queue="reports")
    def report(user_id: int) -> None: ...

    assert mine.add_schedule("report 7", report, cron="@weekly", args={"user_id": 7}) == "created"
    assert (
        mine.add_schedule("report 7", report.using(priority=1), cron="@weekly", args={"user_id": 7})
        == "changed"
    )
    assert mine.schedules == {}
    mine.pause_schedule("report 7")
    job = mine.run_schedule("report 7")
    assert job.created
    (waiting,) = enqueued(connection, report, args={"user_id": 7}, queue="reports", priority=1)
    assert waiting.id == job.id
    mine.resume_schedule("report 7")
    assert mine.unschedule("report 7")
    assert not mine.unschedule("report 7")
    for verb in (mine.pause_schedule, mine.resume_schedule, mine.run_schedule):
        with pytest.raises(UnknownSchedule, match="there is no schedule 'report 7'"):
            verb("report 7")
    with pytest.raises(InvalidOption, match=r"schedule late: at: .* has passed"):
        mine.add_schedule("late", report, at=datetime(2020, 1, 1, tzinfo=UTC), args={"user_id": 7})
    with pytest.raises(
        ConfigurationError, match="schedule first: at_startup is for schedules that code defines"
    ):
        mine.add_schedule("first", report, at_startup=True, args={"user_id": 7})
    mine.close()


def test_an_app_does_the_same_in_an_event_loop(database: str, connection: Session) -> None:
    mine = package.App(dsn=database)

    @mine.task
    def report() -> None: ...

    async def work() -> None:
        assert await mine.add_schedule_async("reports", report, every="1h", overlap="queue") == "created"
        await mine.pause_schedule_async("reports")
        await mine.resume_schedule_async("reports")
        jobs = [await mine.run_schedule_async("reports") for _ in range(2)]
        assert [job.created for job in jobs] == [True, False]
        assert jobs[0].id == jobs[1].id
        assert await mine.unschedule_async("reports")
        with pytest.raises(UnknownSchedule):
            await mine.pause_schedule_async("reports")
        await mine.aclose()

    asyncio.run(work())
    assert scalar(connection, "select count(*) from pgqueue.schedule_runs") == 0


# The test kit -----------------------------------------------------------------------------------------


def test_a_schedules_job_is_run_without_waiting(connection: Session) -> None:
    due_at = datetime(2027, 1, 1, 2, tzinfo=UTC)
    ran.clear()
    assert tick(app, connection, "clean_up", due_at=due_at).created
    tick(app, connection, "once")
    assert drain(app, connection).completed == 2
    (first, second) = ran
    assert first == ("clean_up", due_at)
    assert second[0] == "once"
    assert second[1] is not None
    with pytest.raises(UnknownSchedule, match="the app has no schedule 'cleanup', did you mean clean_up"):
        tick(app, connection, "cleanup")


@pytest.mark.parametrize("overlap", ["allow", "skip", "queue"])
def test_what_the_kit_ticks_is_what_the_database_ticks(connection: Session, overlap: Any) -> None:
    mine = package.App()

    @mine.schedule(every="1h", overlap=overlap, args={"days": 7})
    @mine.task(queue="slow", priority=1, retry=package.Fixed("1s", attempts=2), on_crash="dead")
    def work(days: int) -> None: ...

    run(connection, calls.sync_schedules(mine.name, definitions(mine.schedules.values()), starts=False))

    def made(by: Any) -> list[Any]:
        with connection.transaction(force_rollback=True):
            created = [by() for _ in range(2)]
            jobs = enqueued(connection)
            for job in jobs:
                assert job.options.pop("due_at")
            return [
                created,
                [
                    (
                        job.task,
                        job.args,
                        job.queue,
                        job.priority,
                        job.max_attempts,
                        job.unique_key,
                        job.options,
                    )
                    for job in jobs
                ],
            ]

    ticked = made(lambda: tick(mine, connection, "work").created)
    assert ticked == made(lambda: (run(connection, calls.run_schedule("work")) or (0, ""))[1] == "by_hand")
    assert len(ticked[1]) == (2 if overlap == "allow" else 1)
