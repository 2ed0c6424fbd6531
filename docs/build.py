"""Writes the reference pages from what the code itself says: docstrings, click, and the comments in the database.

Run by `make docs`; a test holds the pages to it (`tests/test_docs.py`).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psycopg

import pgqueue
from docs.events import find_events
from pgqueue import metrics, otel, pytest_plugin, testing
from pgqueue import settings as settings_module
from pgqueue.bulk import Bulk
from pgqueue.cli import COMMANDS, main
from pgqueue.hooks import APP_EVENTS, EVENTS
from pgqueue.observe.events import LOG_EVENTS
from pgqueue.schedule import Schedule
from pgqueue.settings import Settings
from pgqueue.task import BoundTask, Item, Task

REFERENCE = Path(__file__).parent / "reference"
NOTICE = "<!-- Written by `make docs`; edit the docstrings or the SQL comments instead. -->\n"


def pages(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """The reference pages by file name; `connection` leads to a database with the schema."""
    return {
        "python.md": python_page(),
        "testing.md": testing_page(),
        "cli.md": cli_page(),
        "settings.md": settings_page(),
        "sql.md": sql_page(connection),
        "views.md": views_page(connection),
        "events.md": events_page(),
    }


# Python ---------------------------------------------------------------------------------------------


def python_page() -> str:
    """The public names, in the order in which a reader meets them."""
    parts = [NOTICE, "# Python\n", "Everything is imported from `pgqueue`.\n"]
    for thing, members in (
        (
            pgqueue.App,
            (
                "task",
                "on",
                "on_dead_letter",
                "on_alert",
                "middleware",
                "provide",
                "override",
                "enqueue",
                "enqueue_async",
                "enqueue_many",
                "enqueue_many_async",
                "bulk",
                "job",
                "job_async",
                "wait",
                "wait_async",
                "result",
                "result_async",
                "events",
                "schedule",
                "schedules",
                "add_schedule",
                "unschedule",
                "pause_schedule",
                "resume_schedule",
                "run_schedule",
                "close",
                "aclose",
            ),
        ),
        (Task, ("enqueue", "using", "item", "call")),
        (BoundTask, ()),
        (Item, ()),
        (Bulk, ("enqueue",)),
        (Schedule, ("due_after",)),
        (pgqueue.Job, ("outcome",)),
        (pgqueue.Unique, ()),
        (pgqueue.JobInfo, ("has_ended", "has_result", "result")),
        (pgqueue.Progress, ("fraction",)),
        (pgqueue.Event, ("id",)),
        (pgqueue.Context, ("progress", *_properties(pgqueue.Context))),
        (pgqueue.Worker, ("run", "stop", "wait")),
        (pgqueue.Retry, ()),
        (pgqueue.Snooze, ()),
        (pgqueue.Fail, ()),
        (pgqueue.Exponential, ()),
        (pgqueue.Linear, ()),
        (pgqueue.Fixed, ()),
        (pgqueue.Fibonacci, ()),
        (pgqueue.Custom, ()),
        (pgqueue.JobState, ()),
    ):
        parts.append(f"## {thing.__name__}\n")
        if thing.__module__ != "pgqueue.job" and inspect.isfunction(thing.__init__):
            parts.append(f"```python\n{thing.__name__}{_signature(thing)}\n```\n")
        parts.append(_prose(thing))
        for name in members:
            member = inspect.getattr_static(thing, name)
            parts.append(f"### {thing.__name__}.{name}\n")
            parts.append(_prose(member))
    parts.append("## PROVIDED\n")
    parts.append(
        "The default of a handler's parameter that the worker provides: no part of the job's args. See `App.provide`.\n"
    )
    parts.append("## hooks\n")
    parts.append(_prose(pgqueue.hooks))
    for event in (*EVENTS.values(), *APP_EVENTS.values()):
        parts.append(f"### hooks.{event.__name__}\n")
        fields = ", ".join(f"`{field.name}`" for field in dataclasses.fields(event))
        parts.append(f"{_prose(event)}\nFields: {fields}.\n")
    parts.append("## otel\n")
    parts.append(_prose(otel))
    parts.append("### otel.instrument\n")
    parts.append(f"```python\notel.instrument{_signature(otel.instrument)}\n```\n")
    parts.append(_prose(otel.instrument))
    parts.append("## metrics.asgi\n")
    parts.append(f"```python\nmetrics.asgi{_signature(metrics.asgi)}\n```\n")
    parts.append(_prose(metrics.asgi))
    parts.append("## errors\n")
    parts.append(_prose(pgqueue.errors))
    return "\n".join(parts)


def _properties(cls: type) -> Iterator[str]:
    return (name for name, member in vars(cls).items() if isinstance(member, property))


def _signature(thing: Any) -> str:
    signature = inspect.signature(thing)
    return str(signature.replace(return_annotation=inspect.Signature.empty)).replace("'", "")


def _prose(thing: Any) -> str:
    """A docstring as Markdown: indented blocks and doctests become code."""
    text = inspect.getdoc(thing) or ""
    blocks = []
    for block in text.split("\n\n"):
        if block.startswith("    ") and blocks and blocks[-1].endswith("\n```"):
            blocks[-1] = blocks[-1][:-4] + "\n\n" + inspect.cleandoc(block) + "\n```"
        elif block.startswith("    "):
            language = "text" if "├" in block or "──" in block else "python"
            blocks.append(f"```{language}\n" + inspect.cleandoc(block) + "\n```")
        elif block.startswith(">>>"):
            blocks.append("```python\n" + block + "\n```")
        else:
            blocks.append(block)
    return "\n\n".join(blocks) + "\n"


# Testing --------------------------------------------------------------------------------------------


def testing_page() -> str:
    """`pgqueue.testing` and the pytest plugin."""
    parts = [NOTICE, "# Testing\n", _prose(testing)]
    for name, thing in {
        "assert_enqueued": testing.assert_enqueued,
        "refute_enqueued": testing.refute_enqueued,
        "enqueued": testing.enqueued,
        "Criteria": testing.Criteria,
        "WaitingJob": testing.WaitingJob,
        "perform": testing.perform.__call__,
        "perform.using": testing.perform.using,
        "perform_async": testing.perform_async.__call__,
        "drain": testing.drain,
        "Drained": testing.Drained,
        "run_one": testing.run_one,
        "Ran": testing.Ran,
        "travel": testing.travel,
        "tick": testing.tick,
        "crash_after": testing.crash_after,
        "lend": testing.lend,
        "EndlessDrain": testing.EndlessDrain,
    }.items():
        parts.append(f"## {name}\n")
        if not inspect.isclass(thing):
            parts.append(f"```python\n{name}{_signature(thing)}\n```\n")
        parts.append(_prose(thing))
    parts += ["## The pytest plugin\n", _prose(pytest_plugin)]
    return "\n".join(parts)


# Command line ---------------------------------------------------------------------------------------


def cli_page() -> str:
    """Each command's help, as it prints it."""
    parts = [NOTICE, "# Command line\n"]
    # With the command's own settings, and for a terminal of 80 columns: click keeps the option of the help that it has
    # made first, so another one here would show in a process that has run the command before.
    context = click.Context(
        main, info_name="pgqueue", terminal_width=78, **{**main.context_settings, "max_content_width": 78}
    )
    parts.append(f"```text\n{main.get_help(context)}\n```\n")
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        parts += _command(command, click.Context(command, info_name=name, parent=context))
    return "\n".join(parts)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path}\n"
    yield f"```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(inner, click.Context(inner, info_name=name, parent=context))


# Settings -------------------------------------------------------------------------------------------


def settings_page() -> str:
    """Each setting with its default and what stands below it in the source."""
    meaning = _field_docs()
    rows = [
        f"| `{field.name}` | `PGQUEUE_{field.name.upper()}` | `{field.default!r}` | {meaning[field.name]} |"
        for field in dataclasses.fields(Settings)
        if field.name in meaning and field.name != "sources"
    ]
    return "\n".join(
        [
            NOTICE,
            "# Settings\n",
            "A flag of the command wins over the environment, that over `pgqueue.toml` (or `[tool.pgqueue]` in",
            "`pyproject.toml`) found from the current folder upwards, that over the default. `DATABASE_URL` stands in",
            "for `PGQUEUE_DSN`. Durations are seconds or text such as `25s`, `5m`. `pgqueue config show` says what holds",
            "and where it comes from.\n",
            "| setting | environment | default | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _field_docs() -> dict[str, str]:
    """The docstrings that stand below the fields of `Settings`."""
    tree = ast.parse(inspect.getsource(settings_module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    found = {}
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


# SQL ------------------------------------------------------------------------------------------------

_FUNCTIONS = """
    select p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), obj_description(p.oid, 'pg_proc'),
           coalesce(array(select a.grantee::regrole::text from aclexplode(p.proacl) as a
                           where a.grantee <> p.proowner and a.grantee <> 0 order by 1), '{}')
      from pg_proc as p where p.pronamespace = 'pgqueue'::regnamespace order by p.proname"""
_TABLES = """
    select c.relname, obj_description(c.oid, 'pg_class') from pg_class as c
     where c.relnamespace = 'pgqueue'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
       and c.relname <> 'alembic_version'
     order by c.relname"""
_COLUMNS = """
    select a.attname, format_type(a.atttypid, a.atttypmod), coalesce(col_description(a.attrelid, a.attnum), '')
      from pg_attribute as a where a.attrelid = %s::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum"""


def sql_page(connection: psycopg.Connection[Any]) -> str:
    """The functions by role, and the tables."""
    parts = [
        NOTICE,
        "# SQL\n",
        "Functions of schema `pgqueue`. Call them with named arguments; arguments and result columns are only ever",
        "appended. The roles are `pgqueue_producer`, `pgqueue_worker`, `pgqueue_monitor`, `pgqueue_admin`.\n"
        "A null or empty array names nothing, and nothing happens; what a bad call raises is in [SQLSTATEs](sqlstates.md).\n",
    ]
    for name, arguments, result, comment, grantees in connection.execute(_FUNCTIONS).fetchall():
        if not grantees:
            continue  # private
        who = ", ".join(f"`{grantee}`" for grantee in grantees if grantee.startswith("pgqueue_"))
        parts.append(f"## pgqueue.{name}\n")
        parts.append(f"```sql\npgqueue.{name}({arguments})\n    returns {result}\n```\n")
        parts.append(f"{comment}\n\nFor {who}.\n")
    parts.append("## Tables\n\nPrivate: read the [views](views.md). They are listed for the DBA.\n")
    for name, comment in connection.execute(_TABLES).fetchall():
        parts.append(f"- `{name}`: {comment}")
    return "\n".join(parts) + "\n"


def views_page(connection: psycopg.Connection[Any]) -> str:
    """The public views, column by column."""
    parts = [NOTICE, "# Views\n", "Schema `pgqueue_bi`, the stable reading side. For `pgqueue_monitor`.\n"]
    views = "select viewname from pg_views where schemaname = 'pgqueue_bi' order by viewname"
    for (name,) in connection.execute(views).fetchall():
        described = connection.execute(
            "select obj_description(%s::regclass, 'pg_class')", [f"pgqueue_bi.{name}"]
        )
        row = described.fetchone()
        assert row is not None
        parts += [
            f"## pgqueue_bi.{name}\n",
            f"{row[0]}\n",
            "| column | type | meaning |",
            "| --- | --- | --- |",
        ]
        for column, kind, comment in connection.execute(_COLUMNS, [f"pgqueue_bi.{name}"]).fetchall():
            parts.append(f"| `{column}` | {kind} | {comment} |")
        parts.append("")
    return "\n".join(parts)


# Log events -----------------------------------------------------------------------------------------


def events_page() -> str:
    """The events of the log in one table: their meaning is written once, the rest is what the source says."""
    found = find_events()
    rows = []
    for name, event in LOG_EVENTS.items():
        levels = ", ".join(found[name].levels)
        fields = ", ".join(f"`{field}`" for field in (*found[name].fields, *event.more_fields))
        rows.append(f"| `{name}` | {levels} | {event.when} | {fields} | {event.todo} |")
    return "\n".join(
        [
            NOTICE,
            "# Log events\n",
            "What pgqueue logs, through structlog. Names are stable; fields are only ever added, and some are there only where",
            "they mean something. Lines of a worker carry `worker` (its id) as well. `pgqueue worker --log-format json` writes",
            "one JSON object a line, with `event`, `level` and `timestamp`. What handlers log with `ctx.log` is theirs.\n",
            "| event | level | when | fields | what to do |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def write() -> None:
    """Starts a PostgreSQL for the comments and writes every page."""
    from pgqueue import migrate
    from pgqueue.embedded import EmbeddedServer

    with tempfile.TemporaryDirectory(prefix="pgqueue-docs-") as folder:
        Path(folder).chmod(0o755)
        with EmbeddedServer(Path(folder) / "data", durable=False) as server:
            migrate.upgrade(server.dsn)
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                for name, text in pages(connection).items():
                    (REFERENCE / name).write_text(text)


if __name__ == "__main__":
    write()
