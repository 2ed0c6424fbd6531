"""`pgqueue jobs retry | cancel | delete`: what is done to jobs, by id or by filter."""

from __future__ import annotations

from typing import Any

import click
import psycopg

from pgqueue import calls
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.acting import act, act_options, agree, check_named, in_steps, note_ids
from pgqueue.cli.choosing import MOST, chosen, in_words, job_filters
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import json_option, note, print_json
from pgqueue.drivers import run
from pgqueue.job import JobState

__all__ = ["CANCELLABLE", "cancel", "delete", "retry"]

CANCELLABLE = ["scheduled", "ready", "blocked", "running"]
DELETABLE = [state.value for state in JobState if state is not JobState.RUNNING]


def wanted(
    connection: psycopg.Connection[Any],
    ids: tuple[int, ...],
    filters: dict[str, Any],
    states: list[str],
    verb: str,
    *,
    yes: bool,
) -> list[int]:
    """The jobs that were named; or those that match, when somebody agrees."""
    if ids:
        return list(dict.fromkeys(ids))
    matching = run(connection, calls.find_jobs(max_rows=MOST, **{"states": states, **filters}))
    agree(connection, verb, matching, yes=yes)
    return matching


@click.command()
@act_options
@job_filters(None)
@json_option
@dsn_option
def retry(ids: tuple[int, ...], all_matching: bool, yes: bool, as_json: bool, **given: Any) -> int:
    """Make scheduled jobs ready now, by id or all that match: those put off, and those that wait to be tried again.

    Exit code 1 when one that was named is not scheduled. Dead ones are replayed: pgqueue dead replay.
    """
    filters = chosen(given)
    check_named(ids, all_matching, filters, unfiltered=False)
    with connected(required_dsn(load_settings())) as connection:
        jobs = wanted(connection, ids, filters, ["scheduled"], "retry", yes=yes)
        retried: list[int] = []
        for step in in_steps(jobs, "done"):
            made_ready = act(connection, calls.retry(step), chosen_by=None if ids else in_words(given))
            retried += made_ready
        left = sorted(set(jobs) - set(retried))
        states = {info.id: info.state.value for info in run(connection, calls.look(left[:20]))}
    if as_json:
        print_json({"retried": sorted(retried), "left": left})
    else:
        note(f"{len(retried)} ready now")
        for id in left[:20]:
            remedy = f": pgqueue dead replay {id}" if states.get(id) == "dead" else ""
            note(f"job {id} is left as it is: {states.get(id, 'not on record')}{remedy}")
    return 1 if left and ids else 0


@click.command()
@act_options
@job_filters(CANCELLABLE)
@click.option("--reason", default="cancelled", show_default=True, help="Why, for the history.")
@json_option
@dsn_option
def cancel(
    ids: tuple[int, ...], all_matching: bool, reason: str, yes: bool, as_json: bool, **given: Any
) -> int:
    """Cancel jobs by id, in any state, or all that wait or run and match the filters.

    A job that runs is asked for: its worker is told, and it ends as cancelled, or as completed when it finishes first.
    Exit code 1 when one that was named is not on record or had ended before.
    """
    filters = chosen(given)
    check_named(ids, all_matching, filters, unfiltered=False)
    with connected(required_dsn(load_settings())) as connection:
        jobs = wanted(connection, ids, filters, CANCELLABLE, "cancel", yes=yes)
        outcomes: dict[int, str] = {}
        for step in in_steps(jobs, "done"):
            answered = act(connection, calls.cancel(step, reason), chosen_by=None if ids else in_words(given))
            outcomes |= {job.id: job.outcome for job in answered}
    done = {
        kind: sorted(id for id, outcome in outcomes.items() if outcome == kind)
        for kind in ("cancelled", "asked", "finished")
    }
    missing = sorted(set(jobs) - set(outcomes))
    if as_json:
        print_json(done | {"missing": missing})
    else:
        note(f"{len(done['cancelled'])} cancelled")
        note_ids(done["asked"], "asked for: their workers are told")
        note_ids(done["finished"], "had ended before")
        note_ids(missing, "not on record")
    return 1 if ids and (done["finished"] or missing) else 0


@click.command()
@act_options
@job_filters(DELETABLE)
@json_option
@dsn_option
def delete(ids: tuple[int, ...], all_matching: bool, yes: bool, as_json: bool, **given: Any) -> int:
    """Delete jobs in any state but running, by id or all that match: nothing of them is left.

    To keep a record of the end, cancel those that wait and discard those that are dead.
    Exit code 1 when one that was named runs, or is not on record.
    """
    filters = chosen(given)
    check_named(ids, all_matching, filters, unfiltered=False)
    with connected(required_dsn(load_settings())) as connection:
        jobs = wanted(connection, ids, filters, DELETABLE, "delete", yes=yes)
        outcomes: dict[int, str] = {}
        for step in in_steps(jobs, "done"):
            answered = act(connection, calls.delete_jobs(step), chosen_by=None if ids else in_words(given))
            outcomes |= answered
    deleted, running = (
        sorted(id for id, outcome in outcomes.items() if outcome == kind) for kind in ("deleted", "running")
    )
    missing = sorted(set(jobs) - set(outcomes))
    if as_json:
        print_json({"deleted": deleted, "running": running, "missing": missing})
    else:
        note(f"{len(deleted)} deleted")
        note_ids(running, "running, and left alone: cancel them first")
        note_ids(missing, "not on record")
    return 1 if ids and (running or missing) else 0
