"""The command line: what is misspelt, out of range, missing or hostile ends with a line and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pgqueue.cli import main
from tests.badinput.table import Case, table
from tests.sql.acting import open_session
from tests.support import Databases
from tests.test_cli import NOT_CONFIGURED, REPOSITORY, RUN

SECRET = "s3cret-Pa55"


def _line(given: str, code: int, message: str, *words: str, where: str | None = None) -> Case:
    """A command line, without the hint at --help that wrong usage ends with."""
    command = [word for word in words if not word.startswith("-")][:2]
    return Case(where or f"pgqueue {' '.join(command)}", given, f"exit code {code}", message, words)


CASES = table(
    "cli",
    _line("a command that is misspelt", 2, "No such command 'lsit'. Did you mean 'list'?", "jobs", "lsit", where="pgqueue jobs"),
    _line("an option that is misspelt", 2, "No such option '--jsno'. (Did you mean one of: '--dsn', '--json', '--since'?)", "jobs", "list", "--jsno"),
    _line("a state that is none", 2, "Invalid value for '-s' / '--state': 'deed' is not one of 'scheduled', 'ready', 'blocked', 'running', 'completed', 'cancelled', 'dead'", "jobs", "list", "--state", "deed"),
    _line("a limit of 0", 2, "Invalid value for '-n' / '--limit': 0 is not in the range 1<=x<=2147483647", "jobs", "list", "-n", "0"),
    _line("a limit beyond all integers", 2, "Invalid value for '-n' / '--limit': 4294967296 is not in the range 1<=x<=2147483647", "jobs", "list", "-n", "4294967296"),
    _line("an id beyond bigint", 2, "Invalid value for 'ID': 9223372036854775808 is not in the range 1<=x<=9223372036854775807", "jobs", "show", "9223372036854775808"),
    _line("a time that is none", 2, "Invalid value for --since: 'yesterday': expected a time such as 2026-11-23T09:00, or an age such as 2h", "jobs", "list", "--since", "yesterday"),
    _line("an age beyond ten years", 2, "--since: expected between 0 and 10 years, got '99999999999d'", "jobs", "list", "--since", "99999999999d"),
    _line("args that are no object", 2, "Invalid value for --args-contain: expected a JSON object, such as '{\"user_id\": 7}'", "jobs", "list", "--args-contain", "[1]"),
    _line("an id that is not on record", 1, "job 999 is not on record", "jobs", "show", "999"),
    _line("a job with an escape sequence for a tag", 0, "", "jobs", "list", "--tag", "\x1b[2J"),
    _line("nothing named", 2, "name the ids of jobs, or say --all-matching with a filter", "jobs", "retry"),
    _line("all, without a filter", 2, "--all-matching goes with a filter: --queue, --task, --state, --older-than, …", "jobs", "retry", "--all-matching"),
    _line("all, and nobody to ask", 2, "to retry 1 jobs takes consent: nobody can be asked here, so say --yes", "jobs", "retry", "--all-matching", "--task", "send"),
    _line("ids and a filter", 2, "filters go with --all-matching, not with ids", "jobs", "cancel", "1", "--task", "send"),
    _line("a queue that is misspelt", 1, "no queue 'mial' is known: it has neither jobs, nor workers, nor settings, did you mean mail?", "queues", "drain", "mial"),
    _line("a queue that is misspelt", 1, "no queue 'mial' is known: it has neither jobs, nor workers, nor settings, did you mean mail?", "queues", "purge", "mial"),
    _line("a queue that is misspelt", 1, "no queue 'mial' is known: it has neither jobs, nor workers, nor settings, did you mean mail?", "queues", "resume", "mial"),
    _line("a name that no queue can have", 2, "queue: 'a*b' is not a name", "queues", "pause", "a*b"),
    _line("a limit of 0", 2, "Invalid value for N: '0': expected 1 or more, or none", "queues", "limit", "mail", "0"),
    _line("a setting that is misspelt", 2, "Invalid value for NAME=VALUE: 'worker_limits=5': expected one of worker_limit, …, = and a value", "queues", "set", "mail", "worker_limits=5"),
    _line("args that are no JSON", 2, "args: not JSON: …", "enqueue", "send", "{", where="pgqueue enqueue"),
    _line("args that are a list", 2, "args: expected a JSON object, such as '{\"user_id\": 7}'", "enqueue", "send", "[]", where="pgqueue enqueue"),
    _line("NaN in the args", 2, "args.a: nan is not JSON, numbers have to be finite", "enqueue", "send", '{"a": NaN}', where="pgqueue enqueue"),
    _line("no name", 2, "task: '' is not a name", "enqueue", "", where="pgqueue enqueue"),
    _line("a priority out of range", 2, "Invalid value for '-p' / '--priority': 10 is not in the range 0<=x<=9", "enqueue", "send", "--priority", "10", where="pgqueue enqueue"),
    _line("a schedule that is misspelt", 1, "there is no schedule 'nighly', did you mean nightly?", "schedules", "show", "nighly"),
    _line("a rate that is none", 2, "Invalid value for '--rate': 'fast': expected a rate such as 10/s, 100/m or 5000/h", "dead", "replay", "1", "--rate", "fast"),
    _line("a change that is none", 2, "Invalid value for '--set': 'x': expected name=value", "dead", "replay", "1", "--set", "x"),
    _line("a span that is negative", 2, "--last: expected between 0 and 10 years, got '-1h'", "stats", "--last", "-1h", where="pgqueue stats"),
    _line("no app path", 2, "'a b' is no app path: expected module:attribute, such as myapp.tasks:app", "dev", "a b", where="pgqueue dev"),
    _line("a queue limit of 0", 2, "queues: 'mail:0': expected a limit of at least 1 after the colon, such as email:20", "worker", "shop:app", "-q", "mail:0", where="pgqueue worker"),
    _line("an escape sequence", 2, "Got unexpected extra argument (\N{REPLACEMENT CHARACTER}[2J)", "jobs", "show", "1", "\x1b[2J"),
)  # fmt: skip
HINT = " (see `main "


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[str]:
    """The DSN of a database with one job, of queue mail, and a schedule."""
    dsn = databases.create()
    with open_session(dsn) as connection:
        connection.execute("select pgqueue.enqueue('send', queue => 'mail', delay => 3600)")
        connection.execute(
            "select pgqueue.schedule('nightly', 'send', cron => '0 3 * * *'), pgqueue.count_depths()"
        )
    yield dsn
    databases.drop(dsn)


def pgqueue(dsn: str | None, *words: str) -> Result:
    return CliRunner().invoke(main, [*(("--dsn", dsn) if dsn else ()), *words])


@pytest.mark.parametrize("case", [case for case in CASES if case.where != "pgqueue dev"], ids=Case.id)
def test_a_bad_command_line_is_refused_in_a_line(case: Case, shop: str) -> None:
    result = pgqueue(shop, *case.input)
    assert f"exit code {result.exit_code}" == case.error, result.output
    if case.message:
        line = result.stderr.splitlines()[-1]
        assert case.says(line.removeprefix("error: ").split(HINT)[0]), line
    assert "\x1b" not in result.output
    assert "Traceback" not in result.output


def test_a_queue_that_is_misspelt_in_a_filter_is_told_of(shop: str) -> None:
    result = pgqueue(shop, "jobs", "list", "--queue", "mial")
    assert result.stderr == (
        "no queue 'mial' is known: it has neither jobs, nor workers, nor settings, did you mean mail?\n"
    )


def test_a_queue_that_is_set_before_its_first_job_is_told_of(databases: Databases) -> None:
    dsn = databases.create()
    told = pgqueue(dsn, "queues", "limit", "mail", "5").stderr
    assert told.splitlines() == [
        "until now no queue 'mail' is known: it has neither jobs, nor workers, nor settings",
        "mail: worker_limit=5",
    ]
    assert pgqueue(dsn, "queues", "limit", "mail", "6").stderr == "mail: worker_limit=6\n"
    databases.drop(dsn)


# Databases that cannot be reached --------------------------------------------------------------------------

DSNS = table(
    "cli",
    Case("--dsn", "nothing, anywhere", "exit code 2", "no database is configured: give --dsn, or set PGQUEUE_DSN or DATABASE_URL, or put dsn into pgqueue.toml; `pgqueue dev` runs a local one for development", None),
    Case("--dsn", "no connection string", "exit code 2", "dsn: expected postgresql://user@host/name or key=value pairs such as host=db dbname=app", f"nonsense {SECRET}"),
    Case("--dsn", "a URI that cannot be read", "exit code 2", "dsn: postgresql://ann:***@h/shop is no connection string", f"postgresql://ann:{SECRET}%zz@h/shop"),
    Case("--dsn", "an option that libpq does not know", "exit code 2", "dsn: … is no connection string", f"host=h password={SECRET} sslmoed=require"),
    Case("--dsn", "a host that refuses", "exit code 1", "…Connection refused…", f"postgresql://ann:{SECRET}@127.0.0.1:1/shop"),
    Case("--dsn", "a folder without a socket", "exit code 1", "…No such file or directory…", f"host=/nowhere user=ann password={SECRET}"),
)  # fmt: skip


@pytest.mark.parametrize("case", DSNS, ids=Case.id)
def test_a_database_that_cannot_be_reached_is_told_without_the_password(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PGQUEUE_DSN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    result = pgqueue(case.input, "jobs", "list")
    assert f"exit code {result.exit_code}" == case.error
    (line,) = result.stderr.splitlines()
    said = line.removeprefix("error: ")
    assert case.says(said) or case.message.strip("…") in said, line
    assert SECRET not in result.output


# Apps ------------------------------------------------------------------------------------------------------

APPS = {
    "raises.py": 'raise ValueError("no\\nway")',
    "one.py": "from two import app",
    "two.py": "from one import app",
    "broken.py": "def",
    "number.py": "app = 5",
}
APP_PATHS = table(
    "cli",
    Case("pgqueue worker", "a module that is not there", "exit code 2", "there is no module 'nowhere' (app path 'nowhere:app'): run the command from the folder that holds it, or install it", "nowhere:app"),
    Case("pgqueue worker", "an app that raises", "exit code 2", "app path 'raises:app': importing it raised ValueError: no way (…raises.py, line 1)", "raises:app"),
    Case("pgqueue worker", "an app that imports itself", "exit code 2", "app path 'one:app': importing it raised ImportError: cannot import name 'app' from partially initialized module 'one' (most likely due to a circular import) (…one.py) (…two.py, line 1)", "one:app"),
    Case("pgqueue worker", "an app that is no Python", "exit code 2", "app path 'broken:app': importing it raised SyntaxError: invalid syntax (broken.py, line 1)", "broken:app"),
    Case("pgqueue worker", "an attribute that is not there", "exit code 2", "module 'number' has no 'queue' (app path 'number:queue')", "number:queue"),
    Case("pgqueue worker", "an attribute that is no app", "exit code 2", "'number:app' is a int, not a pgqueue.App", "number:app"),
    Case("pgqueue worker", "no path", "exit code 2", "'./shop.py' is no app path: expected module:attribute, such as myapp.tasks:app", "./shop.py"),
)  # fmt: skip


@pytest.mark.parametrize("case", APP_PATHS, ids=Case.id)
def test_an_app_that_cannot_be_had_is_told_in_a_line(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the function that the worker's processes find the app with; tests/worker/test_refusals.py has whole workers."""
    from pgqueue.errors import AppNotFound
    from pgqueue.worker.loading import load_app

    for name, text in APPS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("sys.modules", dict(sys.modules))
    with pytest.raises(AppNotFound) as refused:
        load_app(case.input)
    assert case.says(str(refused.value)), refused.value
    assert "\n" not in str(refused.value)


# Output ----------------------------------------------------------------------------------------------------

HOSTILE = "\x1b[2J\x1b]0;title\x07\u202etxt\x9b31m"


@pytest.fixture(scope="module")
def hostile(databases: Databases) -> Iterator[str]:
    """The DSN of a database whose jobs try to write on the terminal of whoever looks at them, wherever a text is kept."""
    dsn = databases.create()
    named = "x\u202ey"  # of names only control characters are refused
    with open_session(dsn) as connection:
        connection.execute("select pgqueue.register(1, %s, 1, '0', %s, 1, 30, false)", [HOSTILE, [named]])
        for _ in range(2):
            connection.execute(
                "select pgqueue.enqueue(%s, %s, queue => %s, unique_key => null, options => %s)",
                [named, _json({HOSTILE: HOSTILE}), named, _json({"tags": [HOSTILE]})],
            )
        connection.execute("select pgqueue.claim(1, %s, '{2}', 2, null, 7)", [[named]])
        failure = {
            "id": 1,
            "lease": 7,
            "error": HOSTILE,
            "message": HOSTILE,
            "traceback": HOSTILE,
            "fingerprint": HOSTILE,
        }
        connection.execute("select pgqueue.fail(%s)", [_json([failure])])
        result = {"id": 2, "lease": 7, "result": HOSTILE}
        lines = {
            "id": 2,
            "lease": 7,
            "lines": [{"at": HOSTILE, "level": HOSTILE, "text": HOSTILE}],
            "progress": None,
        }
        connection.execute(
            "select pgqueue.note_reports(%s), pgqueue.complete_with_results(%s)",
            [_json([lines]), _json([result])],
        )
        connection.execute(
            "select pgqueue.enqueue(%s, delay => 60), pgqueue.cancel('{3}', %s)", [named, HOSTILE]
        )
        connection.execute(
            "select pgqueue.schedule(%s, %s, %s, every => 60)", [named, named, _json({"a": HOSTILE})]
        )
        connection.execute("select pgqueue.count_depths()")
    yield dsn
    databases.drop(dsn)


def _json(value: object) -> str:
    import json

    return json.dumps(value)


@pytest.mark.parametrize(
    "words",
    [
        "jobs list", "jobs show 1", "jobs show 2 --logs", "jobs show 3", "dead list", "dead show 1", "queues list", "workers list",
        "schedules list", "audit", "stats", "stats --by task", "doctor", "jobs show 99", "top --once",
        "jobs list --json", "jobs show 1 --json", "jobs show 2 --logs --json", "dead show 1 --json", "queues list --json",
        "workers list --json", "schedules list --json", "top --once --json",
    ],
)  # fmt: skip
def test_nothing_that_a_job_says_is_obeyed_by_a_terminal(words: str, hostile: str) -> None:
    result = pgqueue(hostile, *words.split())
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "No such" not in result.stderr
    for character in result.output:
        assert character.isprintable() or character == "\n", f"{character!r} in {result.output!r}"


def test_the_log_for_people_is_not_obeyed_by_a_terminal() -> None:
    code = (
        "import structlog\nfrom pgqueue.observe.logging import configure_logging\nconfigure_logging(format='console')\n"
        f"log = structlog.get_logger()\nlog.info({HOSTILE!r}, task={HOSTILE!r}, tags=[{HOSTILE!r}])\n"
        f"try:\n    raise ValueError({HOSTILE!r})\nexcept ValueError:\n    log.exception('failed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert "ValueError" in done.stderr
    for character in done.stderr:
        assert character.isprintable() or character == "\n", repr(character)


@pytest.mark.parametrize("words", [["jobs", "list", "-n", "5"], ["jobs", "list", "--json"]])
def test_a_reader_that_is_gone_makes_no_traceback(words: list[str], shop: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *words],
            cwd=REPOSITORY,
            env={**NOT_CONFIGURED, "PYTHONPATH": str(REPOSITORY), "PGQUEUE_DSN": shop},
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
