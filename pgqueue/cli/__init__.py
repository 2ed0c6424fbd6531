"""The command `pgqueue`: one file a noun, each imported only when its command runs.

What holds for every command:

- data goes to stdout, everything else to stderr (`pgqueue.cli.output`);
- an error is a line, `error: …`, and no traceback; PGQUEUE_TRACEBACK=1 shows one for a bug report;
- the exit code is 0, 1 when it went wrong, 2 for wrong usage or configuration, 130 after Ctrl-C;
- a reader that closes the pipe early (`| head`) is no error to speak of.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pgqueue.errors import ConfigurationError, InvalidJob, MissingDSN, PgqueueError
from pgqueue.version import __version__

if TYPE_CHECKING:
    from pgqueue.settings import Settings

__all__ = ["COMMANDS", "dsn_option", "load_settings", "main", "required_dsn"]

F = TypeVar("F", bound=Callable[..., Any])

COMMANDS = {
    "worker": "pgqueue.cli.worker:worker",
    "enqueue": "pgqueue.cli.enqueue:enqueue",
    "jobs": "pgqueue.cli.jobs:jobs",
    "dead": "pgqueue.cli.dead:dead",
    "queues": "pgqueue.cli.queues:queues",
    "schedules": "pgqueue.cli.schedules:schedules",
    "workers": "pgqueue.cli.workers:workers",
    "stats": "pgqueue.cli.stats:stats",
    "top": "pgqueue.cli.top:top",
    "health": "pgqueue.cli.health:health",
    "doctor": "pgqueue.cli.doctor:doctor",
    "audit": "pgqueue.cli.audit:audit",
    "keys": "pgqueue.cli.keys:keys",
    "db": "pgqueue.cli.db:db",
    "config": "pgqueue.cli.config:config",
    "dev": "pgqueue.cli.dev:dev",
    "demo": "pgqueue.cli.demo:demo",
    "bench": "pgqueue.cli.bench:bench",
}
"""Where each command lives, in the order of `pgqueue --help`."""

SUMMARIES = {
    "worker": "Run jobs.",
    "enqueue": "Enqueue a job from the command line.",
    "jobs": "List, show, follow, retry, cancel and delete jobs.",
    "dead": "List, show, replay and discard dead letters.",
    "queues": "List, pause, limit, set, drain and purge queues.",
    "schedules": "List, preview, make, pause and run schedules.",
    "workers": "List workers, and ask them to stop.",
    "stats": "What became of jobs lately, by queue or task.",
    "top": "Watch queues, workers and failures.",
    "health": "Say whether all is well, by the exit code.",
    "doctor": "Look for what keeps jobs from being run.",
    "audit": "List what operators did.",
    "keys": "Make, list and rotate encryption keys.",
    "db": "Install and upgrade the schema.",
    "config": "Show the settings and where each comes from.",
    "dev": "Run a local PostgreSQL and a worker, for development.",
    "demo": "Watch an order service at work, with faults.",
    "bench": "Measure this machine.",
}
"""What `pgqueue --help` says of each, so that it need not import them."""

MISSING_DSN = (
    "no database is configured: give --dsn, or set PGQUEUE_DSN or DATABASE_URL, or put dsn into pgqueue.toml; "
    "`pgqueue dev` runs a local one for development"
)


@dataclass
class Given:
    """What was given on the command line for every command (`ctx.obj` of the outermost context)."""

    dsn: str | None = None


class Main(click.Group):
    """The outermost command: finds the others when they are asked for, and reports every error."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES[name]) for name in COMMANDS])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command and ends the process with its exit code: an integer that it returns, or 0."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name or "pgqueue", complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()  # here and not at exit, where a closed pipe would be reported
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except Exception as error:  # noqa: BLE001 - the outermost handler: nothing is left to catch it
            code = _report(error)
        sys.exit(code if type(code) is int else 0)


def _report(error: Exception) -> int:
    """Says on stderr what went wrong, in one line; returns the exit code."""
    if os.environ.get("PGQUEUE_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    code = 1
    match error:
        case click.Abort():  # Ctrl-C, or the end of input at a prompt
            return _say("interrupted", 130)
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.UsageError(ctx=click.Context() as context):
            message = f"{error.format_message().rstrip('.')} (see `{context.command_path} --help`)"
            return _say(message, error.exit_code)
        case click.ClickException():
            return _say(error.format_message(), error.exit_code)
        case ConfigurationError() | InvalidJob():
            code = 2
        case PgqueueError():
            pass
        case _:
            from pgqueue.drivers import translate

            mapped = translate(error)
            if mapped is None:
                kind = type(error).__name__
                message = " ".join(f"unexpected {kind}: {error}".split())
                return _say(f"{message} (PGQUEUE_TRACEBACK=1 shows where; please report it)", 1)
            error = mapped
    return _say(str(error), code)


def _say(message: str, code: int) -> int:
    from pgqueue.error_text import plain

    for line in message.splitlines():  # settings report everything that is wrong with them at once
        click.echo(f"error: {plain(line.strip())}", err=True)
    return code


def _keep_dsn(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    given = context.find_root().ensure_object(Given)
    given.dsn = value or given.dsn


def dsn_option(function: F) -> F:
    """Adds `--dsn` to a command; `load_settings` and `required_dsn` know what was given."""
    return click.option(
        "--dsn",
        metavar="DSN",
        expose_value=False,
        callback=_keep_dsn,
        help="The database: postgresql://user@host/name or key=value pairs. Other users of the machine can "
        "read command lines: keep a password in PGQUEUE_DSN, PGPASSWORD or ~/.pgpass.",
    )(function)


def load_settings(**given: Any) -> Settings:
    """The settings: what the command line gave (None: nothing), over the environment, the file, the defaults.

    Raises `ConfigurationError` naming everything that is wrong.
    """
    from pgqueue import settings

    dsn = click.get_current_context().find_root().ensure_object(Given).dsn
    overrides = {name: value for name, value in {"dsn": dsn, **given}.items() if value is not None}
    return settings.load_settings(**overrides)


def required_dsn(settings: Settings) -> str:
    """The DSN of a command that does not start a database by itself. Raises `MissingDSN` with the remedies,
    and `ConfigurationError` for what is no connection string."""
    if not settings.dsn:
        raise MissingDSN(MISSING_DSN)
    from pgqueue.cli.connecting import parts_of

    parts_of(settings.dsn)
    return settings.dsn


@click.group(
    cls=Main,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `pgqueue demo`, or with `pgqueue dev` in a project of your own.",
)
@click.version_option(__version__, prog_name="pgqueue", message="%(prog)s %(version)s")
@dsn_option
def main() -> None:
    """A job queue that lives in your own PostgreSQL."""
