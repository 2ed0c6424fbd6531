"""Whatever is typed: a command does it, or ends with an error in a line and a documented exit code; never a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.cli import COMMANDS, main
from tests.badinput.fuzzing import fuzzed, texts
from tests.sql.acting import open_session
from tests.support import Databases

CODES = {0, 1, 2, 3}
"""3: `jobs show --follow` of a job that was cancelled, and `health` without a worker."""

ENDLESS = {
    ("worker",),
    ("dev",),
    ("demo",),
    ("bench",),
    ("top",),
    ("queues", "drain"),
    ("db", "upgrade"),
    ("doctor",),
}
"""Their arguments are read, and that is all: they run for long, or start programs."""


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is no group, with the words that lead to it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


LEAVES = dict(leaves(main))
_values = st.one_of(
    st.sampled_from(
        ["1", "2", "999999999999999999999999", "-1", "0", "1.5", "nan", "inf", "1h", "10/s", "7d", "mail", "t", "default", "none",
         "ready", "dead", "key=1", "worker_limit=5", "timeout=1e400", "keep_dead=-1d", "=", "{}", '{"a": 1}', "[", "* * * * *",
         "0 0 30 2 *", "Europe/Paris", "Nowhere/At_All", "2026-01-01", "2026-13-45", "9999-12-31T23:59:59-14:00", "0001-01-01",
         "queue", "task", "app.tasks:app", ":", "a b", "--", "-", "-n", "\udcff"]
    ),
    texts,
    st.integers().map(str),
)  # fmt: skip


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command, mostly one that there is, with options that it mostly has."""
    path, command = draw(st.sampled_from(sorted(LEAVES.items(), key=lambda item: item[0])))
    words = list(path)
    if draw(st.integers(0, 20)) == 0:
        words = [
            draw(
                st.one_of(texts, st.sampled_from([*COMMANDS, "jbos", "db", "--help", "--version", "--nope"]))
            )
        ]
    options = [
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name[:1] == "-"
    ]
    options = [name for name in options if name != "--dsn"] + ["--nope", "--jsno", "-x", "--yes"]
    needed = [
        parameter
        for parameter in command.params
        if isinstance(parameter, click.Argument) and parameter.required
    ]
    words += [draw(_values) for _ in needed]
    for _ in range(draw(st.integers(0, 5))):
        words += draw(st.one_of(st.sampled_from(options).map(lambda name: [name]), _values.map(lambda value: [value]),
                                st.tuples(st.sampled_from(options), _values).map(list)))  # fmt: skip
    return [word.replace("\0", "") for word in words]


@pytest.fixture(scope="module")
def database(databases: Databases) -> Iterator[str]:
    """The DSN of a database with a job in each state that a producer and a schedule make."""
    dsn = databases.create()
    with open_session(dsn) as connection:
        connection.execute(
            "select pgqueue.register(1, 'h', 1, '0', '{default}', 1, 30, false), pgqueue.enqueue('t')"
        )
        connection.execute("select pgqueue.claim(1, '{default}', '{1}', 1, null, 7)")
        connection.execute('select pgqueue.fail(\'[{"id": 1, "lease": 7, "message": "\\u001b[2J"}]\')')
        connection.execute("select pgqueue.enqueue('t', queue => 'mail'), pgqueue.enqueue('t', delay => 9)")
        connection.execute("select pgqueue.schedule('s', 't', cron => '0 3 * * *')")
    yield dsn
    databases.drop(dsn)


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """Commands that run for long read their arguments and return."""
    kept = {path: LEAVES[path].callback for path in ENDLESS}
    for path in ENDLESS:
        LEAVES[path].callback = lambda **_: 0
    try:
        yield
    finally:
        for path, callback in kept.items():
            LEAVES[path].callback = callback


@fuzzed(150)
@given(command_lines())
def test_any_command_line_ends_with_a_documented_exit_code(database: str, words: list[str]) -> None:
    with harmless():
        result = CliRunner().invoke(main, ["--dsn", database, *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in CODES, result.output
    assert "Traceback" not in result.output
    assert "please report it" not in result.output, result.output
    for line in result.stderr.splitlines():
        assert "\x1b" not in line
    if result.exit_code == 2 and not result.stderr.startswith("Usage:"):
        assert result.stderr.startswith("error: ")
