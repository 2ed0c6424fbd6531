"""`pgqueue jobs`: list jobs in any state, look at one, follow it to its end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from pgqueue import calls
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.choosing import chosen, job_filters, unknown_queue
from pgqueue.cli.connecting import connected
from pgqueue.cli.job_acts import cancel, delete, retry
from pgqueue.cli.output import ID, LIMIT, json_option, note, plain, print_json, print_table, print_values
from pgqueue.cli.showing import reveal_option, shown
from pgqueue.drivers import run
from pgqueue.info import JobInfo
from pgqueue.job import JobState
from pgqueue.settings import Settings

if TYPE_CHECKING:
    import psycopg

STEP = 500
"""Jobs that are looked at in one statement."""
FOLLOW_SECONDS = 0.25
STATES = [state.value for state in JobState]
EXIT_CODES = {JobState.COMPLETED: 0, JobState.DEAD: 1, JobState.CANCELLED: 3}
"""What `show --follow` ends with; 2 is wrong usage."""


@click.group()
def jobs() -> None:
    """List, show, follow, retry, cancel and delete jobs."""


for command in (retry, cancel, delete):
    jobs.add_command(command)


@jobs.command("list")
@job_filters(STATES)
@click.option("-n", "--limit", type=LIMIT, default=50, show_default=True, help="At most so many.")
@json_option
@dsn_option
def list_(limit: int, as_json: bool, **given: Any) -> None:
    """List jobs in any state, newest first."""
    settings = load_settings()
    with connected(required_dsn(settings)) as connection:
        ids = run(connection, calls.find_jobs(max_rows=limit, **chosen(given)))
        infos = [info for step in _steps(ids) for info in run(connection, calls.look(step))]
        queue = given.get("queue")
        unknown = unknown_queue(connection, queue) if queue is not None and not infos else None
    infos.sort(key=lambda info: -info.id)
    if as_json:
        print_json([_document(settings, info) for info in infos])
        return
    print_table(
        ("id", "state", "task", "queue", "attempts", "created", "due", "ended", "told"),
        [
            (
                info.id,
                info.state,
                info.task,
                info.queue,
                f"{info.attempt}/{info.max_attempts}",
                info.created_at,
                info.run_at,
                info.finished_at,
                _told(info),
            )
            for info in infos
        ],
        empty=unknown or "no jobs match",
    )


@jobs.command()
@click.argument("id", type=ID)
@click.option("--logs", is_flag=True, help="The last lines of ctx.log of each attempt as well.")
@click.option("-f", "--follow", is_flag=True, help="Watch its progress until it ends.")
@reveal_option
@json_option
@dsn_option
def show(id: int, logs: bool, follow: bool, reveal: bool, as_json: bool) -> int:
    """Show one job: its args, its result, how far it has come, the error of each attempt that failed.

    With --follow the exit code tells the end: 0 completed, 1 dead, 3 cancelled.
    """
    settings = load_settings()
    with connected(required_dsn(settings)) as connection:
        info = _follow(connection, id) if follow else _look(connection, id)
        record = run(connection, calls.job_record(id))
    if record is None:  # its day's history went between the two
        raise click.ClickException(f"job {id} is not on record")
    document = _document(settings, info, reveal=reveal) | _rest(record)
    document["args"] = shown(settings, record.args, "args", info.task, info.queue, reveal=reveal)
    reports = document.pop("reports")
    if logs:
        document["logs"] = [
            {"attempt": report["attempt"], **line} for report in reports for line in report["lines"] or ()
        ]
    if as_json:
        print_json(document)
    else:
        _print(document)
    return EXIT_CODES[info.state] if follow else 0


def _look(connection: psycopg.Connection[Any], id: int) -> JobInfo:
    infos = run(connection, calls.look([id]))
    if not infos:
        raise click.ClickException(f"job {id} is not on record")
    return infos[0]


# Following --------------------------------------------------------------------------------------------


def _follow(connection: psycopg.Connection[Any], id: int) -> JobInfo:
    """Looks at a job four times a second until it has ended, and shows how far it has come, on stderr."""
    with _Display() as display:
        while True:
            info = _look(connection, id)
            display.show(info)
            if info.has_ended:
                return info
            time.sleep(FOLLOW_SECONDS)


class _Display:
    """A progress bar on a terminal, elsewhere a line for whatever has changed."""

    def __enter__(self) -> _Display:
        self._said = ""
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True, highlight=False),
            )
            self._bar.start()
            self._line = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, info: JobInfo) -> None:
        """What a look has found."""
        progress = info.progress
        said = f"job {info.id} {info.state}, attempt {info.attempt}/{info.max_attempts}"
        message = f": {plain(progress.message)}" if progress is not None and progress.message else ""
        if self._bar is not None:
            done = None if progress is None else progress.done
            total = None if progress is None else progress.total
            self._bar.update(self._line, description=said + message, completed=done, total=total)
            return
        if progress is not None:
            of = "" if progress.total is None else f" of {progress.total:g}"
            said += f", {progress.done:g}{of}{message}"
        if said != self._said:
            self._said = said
            note(said)


# Printing ---------------------------------------------------------------------------------------------


def _document(settings: Settings, info: JobInfo, *, reveal: bool = False) -> dict[str, Any]:
    document = {field.name: getattr(info, field.name) for field in fields(info)}
    result = document.pop("_result")
    progress = info.progress
    document["tags"] = list(info.tags)
    document["result"] = (
        shown(settings, result, "result", info.task, info.queue, reveal=reveal)
        if result is not None
        else None
    )
    document["progress"] = progress and {
        field.name: getattr(progress, field.name) for field in fields(progress)
    }
    return document


def _rest(record: calls.JobRecord) -> dict[str, Any]:
    return {
        "options": json.loads(record.options) if record.options else None,
        "unique_key": record.unique_key,
        "failures": json.loads(record.failures),
        "reports": json.loads(record.reports),
    }


def _print(document: dict[str, Any]) -> None:
    failures, logs = document.pop("failures"), document.pop("logs", None)
    progress = document["progress"]
    document["progress"] = progress and _progress_text(progress)
    document["tags"] = ", ".join(document["tags"]) or None
    for name in ("args", "options", "result"):
        document[name] = None if document[name] is None else json.dumps(document[name], ensure_ascii=False)
    print_values(document)
    for failure in failures:
        click.echo(
            f"\nattempt {failure['attempt']} failed at {failure['failed_at']}: "
            f"{plain(failure['error'])}: {plain(failure['message'])}"
        )
        if failure.get("traceback"):
            click.echo(plain(failure["traceback"].rstrip()))
    if logs is not None:
        click.echo()
        for line in logs:
            click.echo(
                plain(f"{line['at']}  attempt {line['attempt']}  {line['level']!s:<8}  {line['text']}")
            )
        if not logs:
            note("no lines of ctx.log were kept; those of a running attempt come with its end")


def _progress_text(progress: dict[str, Any]) -> str:
    parts = [f"{progress['done']:g}" + (f" of {progress['total']:g}" if progress["total"] else "")]
    if progress["message"]:
        parts.append(progress["message"])
    if progress["metadata"]:
        parts.append(json.dumps(progress["metadata"], ensure_ascii=False))
    return "  ".join(parts)


def _told(info: JobInfo) -> str:
    """The last column of a list: what an operator wants to know at a glance."""
    if info.progress is not None and not info.has_ended:
        told = _progress_text(
            {
                "metadata": None,
                **{name: getattr(info.progress, name) for name in ("done", "total", "message")},
            }
        )
    elif info.state is JobState.COMPLETED:
        told = info.reason or ""
    else:
        told = ": ".join(part for part in (info.reason, info.error, info.message) if part)
    line = " ".join(told.split())
    return line if len(line) <= 80 else line[:79] + "…"


def _steps(ids: Iterable[int]) -> Iterator[list[int]]:
    every = list(ids)
    for start in range(0, len(every), STEP):
        yield every[start : start + STEP]
