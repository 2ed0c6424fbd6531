"""The command as a whole: what it imports, what it says when something is wrong, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pgqueue import cli, drivers
from pgqueue.cli import output
from pgqueue.errors import ConfigurationError, DatabaseUnavailable, InvalidArgs, PgqueueError
from pgqueue.version import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
RUN = "from pgqueue.cli import main; main()"
NOT_CONFIGURED = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PGQUEUE_", "PG")) and name != "DATABASE_URL"
}


def run(
    *arguments: str, code: str = RUN, cwd: Path = REPOSITORY, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, where nothing is configured but `environment`."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=cwd,
        env={**NOT_CONFIGURED, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def raising(error: BaseException) -> tuple[int, str, str]:
    """Runs the outermost command with a subcommand that raises; returns the exit code, stdout, stderr."""

    @click.command()
    def broken() -> None:
        raise error

    group = cli.Main("pgqueue")
    group.get_command = lambda ctx, cmd_name: broken  # type: ignore[method-assign]  # noqa: ARG005
    result = CliRunner().invoke(group, ["broken"])
    return result.exit_code, result.stdout, result.stderr


# Help -----------------------------------------------------------------------------------------------


def test_the_version_is_the_packages() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pgqueue {__version__}\n", "")


def test_help_lists_every_command_and_imports_none() -> None:
    heavy = ["psycopg", "sqlalchemy", "alembic", "rich", "structlog", "msgspec", "asyncio", "pgqueue.drivers"]
    code = (
        "import sys\nfrom pgqueue.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = run(code=code)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +{re.escape(cli.SUMMARIES[name])}$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_of_the_list_exists_and_has_help(name: str) -> None:
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: pgqueue {name}")


@pytest.mark.parametrize("arguments", [(), ("db",)])
def test_a_group_alone_shows_its_help(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: pgqueue")


# What is misspelt -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["schedulse"], "No such command 'schedulse'. Did you mean 'schedules'? (see `pgqueue --help`)"),
        (["db", "upgarde"], "No such command 'upgarde'. Did you mean 'upgrade'? (see `pgqueue db --help`)"),
        (["db", "check", "--jsno"], "No such option '--jsno'. (Did you mean one of: '--dsn', '--json'?)"),
        (["--vresion"], "No such option '--vresion'. Did you mean '--version'? (see `pgqueue --help`)"),
        (["db", "upgrade", "--tries", "0"], "Invalid value for '--tries': 0 is not in the range"),
        (["db", "upgrade", "now"], "Got unexpected extra argument (now) (see `pgqueue db upgrade --help`)"),
    ],
)
def test_what_is_misspelt_is_named_with_what_was_meant(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {says}")
    assert done.stderr.count("\n") == 1


# Errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PgqueueError("so\nand so"), 1, "error: so\nerror: and so\n"),
        (DatabaseUnavailable("gone"), 1, "error: gone\n"),
        (ConfigurationError("wrong"), 2, "error: wrong\n"),
        (InvalidArgs("args: not JSON"), 2, "error: args: not JSON\n"),
        (click.BadParameter("no"), 2, "error: Invalid value: no (see `pgqueue broken --help`)\n"),
        (click.FileError("f", "no"), 1, "error: Could not open file 'f': no\n"),
        (click.exceptions.Exit(3), 3, ""),
        (KeyboardInterrupt(), 130, "\nerror: interrupted\n"),
        (
            ZeroDivisionError("x"),
            1,
            "error: unexpected ZeroDivisionError: x (PGQUEUE_TRACEBACK=1 shows where; please report it)\n",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_one_line_and_an_exit_code(error: BaseException, code: int, says: str) -> None:
    assert raising(error) == (code, "", says)


def test_a_libraries_error_is_told_as_pgqueues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "translate", lambda _error: DatabaseUnavailable("the server is gone"))
    assert raising(OSError("x")) == (1, "", "error: the server is gone\n")


def test_a_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_TRACEBACK", "1")
    code, _, err = raising(PgqueueError("so"))
    assert code == 1
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("error: so\n")


def test_a_command_without_a_database_names_every_remedy(tmp_path: Path) -> None:
    done = run("db", "status", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    for remedy in ("--dsn", "PGQUEUE_DSN", "DATABASE_URL", "pgqueue.toml", "`pgqueue dev`"):
        assert remedy in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_the_dsn_is_taken_from_wherever_it_is_given_and_its_password_never_shown(place: str) -> None:
    dsn = "postgresql://ann:s3cret@127.0.0.1:1/shop"
    match place:
        case "before":
            done = run("--dsn", dsn, "db", "status")
        case "after":
            done = run("db", "status", "--dsn", dsn)
        case _:
            done = run("db", "status", PGQUEUE_DSN=dsn)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot connect to postgresql://ann:***@127.0.0.1:1/shop: ")
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stderr


# Settings -------------------------------------------------------------------------------------------


def test_the_settings_are_shown_with_their_sources_and_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "pgqueue.toml").write_text('queues = ["email:20", "default"]\n')
    environment = {"PGQUEUE_DSN": "postgresql://ann:s3cret@h/shop", "PGQUEUE_CONCURRENCY": "7"}
    done = run("config", "show", "--json", cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert shown["dsn"] == {"value": "postgresql://ann:***@h/shop", "source": "PGQUEUE_DSN"}
    assert shown["concurrency"] == {"value": 7, "source": "PGQUEUE_CONCURRENCY"}
    assert shown["queues"] == {"value": ["email:20", "default"], "source": str(tmp_path / "pgqueue.toml")}
    assert shown["lease"]["source"] == "default"
    done = run("--dsn", "host=h password=s3cret", "config", "show", cwd=tmp_path, **environment)
    assert re.search(r"^dsn +host=h password=\*\*\* +flag *$", done.stdout, re.MULTILINE)
    assert "s3cret" not in done.stdout


def test_all_that_is_wrong_with_the_settings_is_said_at_once(tmp_path: Path) -> None:
    done = run("config", "show", cwd=tmp_path, PGQUEUE_CONCURRENCY="many", PGQUEUE_LEASE="-1s")
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(":")[:2] for line in sorted(done.stderr.splitlines())] == [
        ["error", " concurrency"],
        ["error", " lease"],
    ]


# How it ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["db", "sql"], ["--help"], ["--version"]])
def test_a_closed_pipe_is_quiet(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # before anything is written: the first write meets it, however small
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *arguments],
            cwd=REPOSITORY,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_ctrl_c_ends_a_command_without_a_traceback() -> None:
    code = (
        "import signal, click\nfrom pgqueue import cli\n"
        "@click.command()\n"
        "def wait():\n    print('waiting', flush=True); signal.pause()\n"
        # a shell starts what runs in its background with the signal ignored, and that is inherited
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.Main.get_command = lambda self, ctx, name: wait\n"
        "cli.main(['wait'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err.strip()) == (130, "error: interrupted")


# Output ---------------------------------------------------------------------------------------------


def test_a_table_in_a_pipe_is_neither_cut_nor_marked_up(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    output.print_table(["id", "error"], [(1, f"[red]{long}"), (2, None)])
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines() if line.strip(" ─━")] == [
        ["id", "error"],
        ["1", f"[red]{long}"],
        ["2", "-"],
    ]
    assert err == ""


def test_a_table_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["error"], [("a\x1b[2Jb\x00c",)])
    assert "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c" in capsys.readouterr().out


def test_an_empty_table_says_so_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["id"], [], empty="no dead letters")
    assert capsys.readouterr() == ("", "no dead letters\n")


def test_json_keeps_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    value: dict[str, Any] = {"id": 2**60, "text": "Zoë \x1b", "none": None, "list": [1.5]}
    output.print_json(value)
    assert json.loads(capsys.readouterr().out) == value
