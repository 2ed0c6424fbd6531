"""Schedules as code defines them: all that is wrong is said where it is written, naming the field and the remedy."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner

import pgqueue
from pgqueue.cli import main
from pgqueue.context import Context
from pgqueue.errors import ConfigurationError, InvalidArgs, InvalidOption, PgqueueError
from pgqueue.job import ClaimedJob
from pgqueue.plan import Missed
from pgqueue.schedule import Overlap, Schedule, ScheduleOptions, duration
from pgqueue.worker.schedules import check_name, definitions

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture
def app() -> pgqueue.App:
    return pgqueue.App()


@pytest.fixture
def report(app: pgqueue.App) -> pgqueue.task.Task[[int, str], None]:
    @app.task
    def report(user_id: int, kind: str = "daily") -> None: ...

    return report


# Defining ---------------------------------------------------------------------------------------------


def test_the_decorator_goes_above_a_task_any_number_of_times_and_returns_it(app: pgqueue.App) -> None:
    @app.schedule(cron="0 3 * * *", tz="Europe/Paris")
    @app.schedule(name="often", every="30s")
    @app.task(queue="slow")
    async def clean_up() -> None: ...

    assert clean_up is app.tasks["clean_up"]
    assert {name: str(schedule.rule) for name, schedule in app.schedules.items()} == {
        "often": "every 30s",
        "clean_up": "0 3 * * * Europe/Paris",
    }


def test_a_batch_task_is_scheduled_with_its_item(app: pgqueue.App) -> None:
    @app.schedule(every="1h", args={"item": 7})
    @app.batch_task(size=10)
    async def index(jobs: list[pgqueue.BatchJob[int]]) -> None: ...

    assert json.loads(app.schedules["index"].stored()["args"]) == {"item": 7}


def test_what_is_stored_is_what_differs_from_the_defaults(app: pgqueue.App, report: Any) -> None:
    app.schedule("plain", report, every=90, args={"user_id": 7})
    bound = report.using(
        queue="slow", priority=2, tags=["a"], timeout="30s", retry=pgqueue.Fixed("1s", attempts=2)
    )
    paris = timezone(timedelta(hours=1))
    app.schedule(
        "full",
        bound,
        cron=" 30 0 3 * * * ",
        seconds="first",
        tz="Europe/Paris",
        starts_at=datetime(2027, 1, 1, 1, tzinfo=paris),
        ends_at=NEW_YEAR + timedelta(days=2),
        jitter="1m",
        grace=timedelta(minutes=2),
        missed="all",
        missed_limit=7,
        overlap="queue",
        args={"user_id": 7, "kind": "weekly"},
    )
    app.schedule("once", report, at=datetime(2027, 1, 1, 1, tzinfo=paris), args={"user_id": 7})
    app.schedule("first", report, at_startup=True, args={"user_id": 7})
    plain, full, once, first = json.loads(definitions(app.schedules.values()))
    common = {"task": "report", "args": {"user_id": 7}}
    assert plain == {"name": "plain", **common, "every": 90}
    assert once == {"name": "once", **common, "at": "2027-01-01T00:00:00+00:00"}
    assert first == {"name": "first", **common, "at_startup": True}
    assert full.pop("options").keys() == {"tags", "timeout", "retry"}
    assert full == {
        "name": "full",
        "task": "report",
        "args": {"user_id": 7, "kind": "weekly"},
        "queue": "slow",
        "priority": 2,
        "max_attempts": 2,
        "cron": "30 0 3 * * *",
        "seconds": "first",
        "tz": "Europe/Paris",
        "starts_at": "2027-01-01T00:00:00+00:00",
        "ends_at": "2027-01-03T00:00:00+00:00",
        "jitter": 60,
        "grace": 120,
        "missed": "all",
        "missed_limit": 7,
        "overlap": "queue",
    }


def test_none_is_the_same_as_not_given(app: pgqueue.App, report: Any) -> None:
    app.schedule("a", report, every=60, cron=None, at=None, at_startup=None, missed=None, args={"user_id": 7})
    assert str(app.schedules["a"].rule) == "every 1m"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "no timing: give one of cron, every, at, at_startup"),
        ({"at_startup": False}, "no timing: give one of"),
        ({"cron": "@daily", "every": "1h"}, "cron, every: given together: give one of"),
        ({"cron": "0 0 30 2 *"}, "cron: '0 0 30 2 *' never comes"),
        ({"cron": "@dayly"}, "cron: there is no '@dayly', did you mean @daily?"),
        ({"cron": "0 25 * * *"}, "cron: the hour field of '0 25 * * *' is '25', expected 0 to 23"),
        ({"cron": "0 0 3 * * *"}, 'has six fields: say where the seconds stand, seconds="first"'),
        ({"cron": 7}, "cron: expected text, got 7"),
        ({"every": "1h", "seconds": "last"}, "seconds: it says where the seconds of a cron expression stand"),
        ({"cron": "@daily", "seconds": "middle"}, "seconds: expected 'first', 'last', got 'middle'"),
        ({"cron": "@daily", "tz": "Europe/Pari"}, "tz: there is no zone 'Europe/Pari', did you mean Europe/Paris?"),
        ({"every": "1h", "tz": "Mars"}, "tz: there is no zone 'Mars'"),
        ({"every": 0.5}, "every: expected at least 1 s, got 0.5"),
        ({"every": "soon"}, "every: expected seconds, a timedelta or text such as '90s'"),
        ({"at": datetime(2027, 1, 1)}, "at: expected a datetime with a time zone"),  # noqa: DTZ001
        ({"at": "2027-01-01"}, "at: expected a datetime with a time zone"),
        ({"at_startup": 1}, "at_startup: expected True or False, got 1"),
        ({"every": 60, "starts_at": 7}, "starts_at: expected a datetime with a time zone"),
        (
            {"every": 60, "starts_at": NEW_YEAR, "ends_at": NEW_YEAR - timedelta(days=1)},
            "ends_at: 2026-12-31T00:00:00+00:00 lies before starts_at, 2027-01-01T00:00:00+00:00",
        ),
        (
            {"cron": "0 0 1 6 *", "starts_at": NEW_YEAR, "ends_at": NEW_YEAR + timedelta(days=99)},
            "starts_at, ends_at: no due time lies between them",
        ),
        ({"every": 60, "jitter": -1}, "jitter: expected between 0 and 10 years, got -1"),
        ({"every": 60, "grace": "long"}, "grace: expected seconds, a timedelta"),
        ({"every": 60, "missed": "never"}, "missed: expected 'skip', 'once', 'all', got 'never'"),
        ({"every": 60, "missed_limit": 0}, "missed_limit: expected an integer from 1 to 1000, got 0"),
        ({"every": 60, "missed_limit": True}, "missed_limit: expected an integer from 1 to 1000, got True"),
        ({"every": 60, "overlap": ["skip"]}, "overlap: expected 'allow', 'skip', 'queue', got ['skip']"),
        ({"every": 60, "overlapp": "skip"}, "overlapp: there is no such option, did you mean overlap?"),
        ({"every": 60, "queue": "slow"}, "queue: this is an option of its jobs: schedule task.using(queue=…)"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_is_refused_by_the_schedules_name(
    app: pgqueue.App, report: Any, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidOption, match=rf"^schedule nightly: .*{re.escape(told)}"):
        app.schedule("nightly", report, args={"user_id": 7}, **given)
    assert app.schedules == {}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (None, "argument user_id is missing"),
        ({"user_id": "7"}, "args.user_id: expected `int`, got `str`"),
        ({"user": 7, "user_id": 7}, "unknown argument user, did you mean user_id?"),
        ({"user_id": 7, "kind": float("nan")}, "args.kind: nan is not JSON"),
        ([7], "args: expected a mapping such as {'user_id': 7}, got [7]"),
    ],
)
def test_args_that_the_task_does_not_take_are_refused(
    app: pgqueue.App, report: Any, args: Any, told: str
) -> None:
    with pytest.raises(InvalidArgs, match=rf"^schedule nightly: .*{re.escape(told)}"):
        app.schedule("nightly", report, args=args, every=60)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"delay": "1m"}, "delay: the jobs of a schedule have none. It runs when it is due; jitter='5m'"),
        ({"run_at": NEW_YEAR}, "run_at: the jobs of a schedule have none. .* at=… for once"),
        (
            {"idempotency_key": "k"},
            "idempotency_key: the jobs of a schedule have none. A due time has one job",
        ),
        ({"unique_key": "k"}, "unique: .*overlap='skip' or overlap='queue'"),
        ({"unique": pgqueue.Unique()}, "unique: .*overlap='skip' or overlap='queue'"),
    ],
)
def test_options_that_a_schedules_jobs_cannot_have_are_refused_with_what_to_say_instead(
    app: pgqueue.App, report: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidOption, match=rf"^schedule nightly: {told}"):
        app.schedule("nightly", report.using(**options), every=60, args={"user_id": 7})


def test_a_unique_task_is_scheduled_by_saying_that_these_jobs_are_not(app: pgqueue.App) -> None:
    @app.task(unique=pgqueue.Unique())
    def refresh() -> None: ...

    with pytest.raises(InvalidOption, match=r"Its task says unique: task\.using\(unique=False\)"):
        app.schedule("refresh", refresh, every=60)
    app.schedule("refresh", refresh.using(unique=False), every=60, overlap="skip")
    assert "options" not in app.schedules["refresh"].stored()


def test_two_schedules_of_one_name_are_refused_naming_both(app: pgqueue.App, report: Any) -> None:
    @app.schedule(name="nightly", cron="@daily")
    @app.task
    def clean_up() -> None: ...

    with pytest.raises(
        ConfigurationError,
        match=r"two schedules are called nightly: the one of task clean_up, @daily UTC, and the one of task report, every 1m",
    ):
        app.schedule("nightly", report, every=60, args={"user_id": 7})


def test_what_is_no_task_of_this_app_is_refused(app: pgqueue.App, report: Any) -> None:
    def plain() -> None: ...

    wrong: Any = app.schedule
    with pytest.raises(ConfigurationError, match=r"@app\.schedule\(…\) goes above @app\.task"):
        wrong(every=60)(plain)
    with pytest.raises(ConfigurationError, match="expected a name and a task"):
        wrong(report)
    with pytest.raises(ConfigurationError, match="expected a name and a task"):
        wrong("nightly", report, name="other", every=60)
    with pytest.raises(
        ConfigurationError, match=r"schedule nightly of task report, every 1m: .* not one of this app"
    ):
        pgqueue.App().schedule("nightly", report, every=60, args={"user_id": 7})
    with pytest.raises(InvalidOption, match=r"schedule of task report: name: .* cannot be part of it"):
        app.schedule("it's", report, every=60, args={"user_id": 7})


def test_defining_reads_no_settings(monkeypatch: pytest.MonkeyPatch, app: pgqueue.App, report: Any) -> None:
    """They are loaded when they are first needed, and a module is imported before that."""
    monkeypatch.setenv("PGQUEUE_MAX_ARGS_BYTES", "nonsense")
    app.schedule("nightly", report, every=60, args={"user_id": 7})
    with pytest.raises(ConfigurationError):
        _ = app.settings


# Due times --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cron": "30 0 * * *", "tz": "Europe/Paris"}, ["01 23:30", "02 23:30"]),
        ({"every": "1h"}, ["01 00:30", "01 01:30"]),
        ({"every": "1h", "starts_at": NEW_YEAR}, ["01 00:00", "01 01:00"]),
        ({"every": "1h", "ends_at": NEW_YEAR + timedelta(hours=1)}, ["01 00:30"]),
        ({"at": NEW_YEAR}, ["01 00:00"]),
        ({"at": NEW_YEAR - timedelta(days=1)}, []),
        ({"at_startup": True}, []),
    ],
)
def test_the_next_due_times_are_told(
    app: pgqueue.App, report: Any, given: dict[str, Any], expected: list[str]
) -> None:
    after = NEW_YEAR - timedelta(minutes=30)
    schedule = app.schedule("nightly", report, args={"user_id": 7}, **given)
    assert [due.strftime("%d %H:%M") for due in schedule.due_after(after, 2)] == expected


def test_due_times_after_a_naive_moment_are_refused(app: pgqueue.App, report: Any) -> None:
    schedule: Schedule = app.schedule("nightly", report, args={"user_id": 7}, cron="@daily")
    with pytest.raises(InvalidOption, match="moment: expected a datetime with a time zone"):
        schedule.due_after(datetime(2027, 1, 1))  # noqa: DTZ001


def test_durations_are_told_as_they_are_written() -> None:
    assert [duration(value) for value in (0, 0.5, 45, 60, 5400, 7200, 86400, 90061)] == [
        "0s", "0.5s", "45s", "1m", "90m", "2h", "1d", "90061s",
    ]  # fmt: skip


# Whose they are ---------------------------------------------------------------------------------------


class Special(pgqueue.App):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)


def test_an_app_is_named_after_the_module_that_makes_it() -> None:
    assert pgqueue.App().name == Special().name == __name__
    assert Special(name="shop").name == "shop"
    with pytest.raises(InvalidOption, match="name: expected text of 1 to 100 characters"):
        pgqueue.App(name="")


def test_a_script_has_the_name_that_it_would_be_imported_by(tmp_path: Path) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("tasks", "__main__"):
        (package / f"{name}.py").write_text("import pgqueue; print(pgqueue.App().name)")

    def told(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert told("-m", "shop.tasks") == "shop.tasks"
    assert told("-m", "shop") == "shop"
    assert told("shop/tasks.py") == "tasks"
    assert told("-c", "import pgqueue; print(pgqueue.App().name)") == "__main__"


def test_two_apps_of_a_module_without_names_are_refused_when_one_has_schedules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = tmp_path / "two_apps.py"
    module.write_text(
        "import pgqueue\nshop = pgqueue.App()\nback = pgqueue.App()\n"
        "@shop.task\ndef clean_up() -> None: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import two_apps  # type: ignore[import-not-found]

    try:
        check_name(two_apps.back)
        two_apps.shop.schedule("clean-up", two_apps.clean_up, every=60)
        for app in (two_apps.shop, two_apps.back):
            with pytest.raises(
                ConfigurationError, match=r"module two_apps has another app, (shop|back), .* App\(name=…\)"
            ):
                check_name(app)
        with pytest.raises(ConfigurationError, match="has another app"):
            asyncio.run(pgqueue.Worker(two_apps.back).__aenter__())
        two_apps.back.name = "back"
        check_name(two_apps.shop)
    finally:
        del sys.modules["two_apps"]


# In a handler -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "schedule", "due_at"),
    [
        (None, None, None),
        ('{"schedule": "nightly", "due_at": "2027-01-01T01:00:00+01:00"}', "nightly", NEW_YEAR),
        ('{"schedule": "nightly", "due_at": "2027-01-01T00:00:00.5+00:00"}', "nightly", NEW_YEAR + timedelta(seconds=0.5)),
        ('{"schedule": 7, "due_at": "soon"}', None, None),
        ('{"due_at": "0001-01-01T00:00:00+10:00"}', None, None),
        ('{"due_at": 7}', None, None),
        ("[]", None, None),
    ],
)  # fmt: skip
def test_a_handler_knows_its_schedule_and_its_due_time(
    options: str | None, schedule: str | None, due_at: datetime | None
) -> None:
    job = ClaimedJob(1, 1, "default", 11, 1, "report", "{}", 1, 5, 0, options)
    context = Context[Any](job)
    assert (context.schedule, context.due_at) == (schedule, due_at)
    assert context.due_at is None or context.due_at.tzinfo is UTC


def test_an_unknown_schedule_is_a_lookup_error_of_the_tree() -> None:
    assert issubclass(pgqueue.errors.UnknownSchedule, PgqueueError)
    assert issubclass(pgqueue.errors.UnknownSchedule, LookupError)


# The page ---------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs/howto/schedules.md").read_text()


def test_what_the_howto_page_defines_can_be_defined() -> None:
    (code,) = re.findall(r"```python\n# shop\.py\n(.*?)```", PAGE, re.DOTALL)
    made: dict[str, Any] = {"__name__": "shop"}
    exec(compile(code, "shop.py", "exec"), made)
    assert {name: str(schedule.rule) for name, schedule in made["app"].schedules.items()} == {
        "clean_up": "0 3 * * * Europe/Paris",
        "refresh_rates": "every 30s",
        "weekly report": "0 8 * * mon Europe/Paris",
        "daily report": "@daily UTC",
        "new year": "at 2027-01-01 00:00:00+00:00",
        "warm up": "at startup",
    }


def test_the_preview_on_the_howto_page_is_what_the_command_prints() -> None:
    command, shown = re.findall(r"\$ pgqueue (schedules next --cron [^\n]*)\n(.*?)```", PAGE, re.DOTALL)[0]
    printed = CliRunner().invoke(main, shlex.split(command)).stdout.splitlines()
    rule = printed.pop(1)
    assert set(rule) == {"─"}
    assert [line.split() for line in printed] == [line.split() for line in shown.splitlines()]


def test_the_howto_page_names_every_option_and_every_outcome() -> None:
    for name in (*ScheduleOptions.__annotations__, *get_args(Missed), *get_args(Overlap)):
        assert re.search(rf"\b{name}\b", PAGE), name
    for outcome in ("caught_up", "overlapped", "joined"):
        assert f"`{outcome}`" in PAGE
