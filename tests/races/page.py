"""docs/explanation/races.md, from the table of races."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from tests.races.table import Race

_HEAD = """\
<!-- Written by the tests from tests/races/table.py: PGQUEUE_REWRITE_RACES=1 python -m pytest tests/races -k page -->
# Races: what comes of two verbs at once

Two sessions do something with the same job, and neither knows of the other. Each of these races is arranged by a test
(`tests/races/`): the first calls its function and keeps its transaction open; the second calls its own, and waits for the
first or returns at once; then the first commits, or rolls back. None ends in a deadlock or another error.

What the tables come to:

- **A job has one ending.** Of two endings, rescues, operators or claims one is accepted, and the other is told that it was
  not. Whoever rolls back has done nothing: the second goes on as if it were alone.
- **Workers and upkeep do not wait for what they can leave out.** Claim, promote, retry and replay skip a job that another
  transaction holds. It is there for their next call, should that one roll back; a retry or replay says that it was not done.
- **What was asked for a job by its id waits, and then finds the job where it has gone.** A cancel or a deletion follows it
  through the tables. So whoever cancels or deletes in a long transaction is waited for, by the worker that runs the job, too:
  commit soon.
- **A request to cancel is carried out by any ending but `complete`**, which came first.
- **Verbs for several jobs lock them in one order**, so that two which meet the same jobs do not deadlock, whatever order they were
  given (`sql/README.md`, the order of locks, says which, and what is left to be run again).
- **Before a claim is committed, nobody has its lease**: an ending under it is refused. Who never heard the answer of a claim
  forgets the claim, which waits for it.

*Then* says what the second is told, where the job is after that, and how many of its attempts are counted: `ready/1`.
"""
_STATES = {
    "scheduled": "A job that is scheduled, and due",
    "ready": "A job that is ready",
    "blocked": "A job that waits for another one to end",
    "running": "A job that runs",
    "asked": "A job that runs, and that somebody has asked to cancel",
    "dead": "A dead letter",
    "finished": "A job that has completed",
}
_NOTES = {
    "blocked": "A job that was held when the other one ended gets its turn in the next round of upkeep.",
    "running": "A job that a deletion finds running is left alone. The failure is one after which the job is tried again at once.",
}


def page(races: Iterable[Race]) -> str:
    """The page's text."""
    parts = [_HEAD]
    for state, rows in itertools.groupby(races, key=lambda race: race.state):
        parts.append(f"## {_STATES[state]}\n")
        if state in _NOTES:
            parts.append(f"{_NOTES[state]}\n")
        parts.append("| first | second | the second | if the first commits, then | if it rolls back, then |")
        parts.append("| --- | --- | --- | --- | --- |")
        parts += [
            f"| {race.first} | {race.second} | {'waits' if race.waits else 'returns'} "
            f"| {_outcome(race.if_committed)} | {_outcome(race.if_rolled_back)} |"
            for race in rows
        ]
        parts.append("")
    return "\n".join(parts)


def _outcome(text: str) -> str:
    answer, place = text.split(": ")
    return f"{answer}: {place if place == 'gone' else f'`{place}`'}"
