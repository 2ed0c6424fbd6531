"""Each pair of verbs on the same job, at the same time, arranged; what comes of it stands in `table.py`.

The first session calls its verb and keeps its transaction open. The second calls its own, and is seen to wait for the
first, or to return. Then the first commits, or rolls back.

    PGQUEUE_REWRITE_RACES=1 python -m pytest tests/races -k page

writes docs/explanation/races.md from the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.races.page import page
from tests.races.table import RACES, Race
from tests.races.verbs import SECOND, VERBS, Job, pairs, place, prepare
from tests.sql.acting import open_session, pid, scalar
from tests.support import Databases, wait_until

PAGE = Path(__file__).resolve().parents[2] / "docs/explanation/races.md"


class Arena:
    """Two sessions that race, and one that looks on."""

    def __init__(self, dsn: str):
        self.first, self.second, self.observer = (open_session(dsn) for _ in range(3))
        self.thread = ThreadPoolExecutor(max_workers=1)

    def close(self) -> None:
        self.thread.shutdown()
        for session in (self.first, self.second, self.observer):
            session.close()

    def run(self, state: str, first: str, second: str, end: str) -> tuple[bool, str]:
        """Whether the second waits for the first, and what it answers, with where the job is in the end."""
        job = prepare(self.observer, state)
        self.first.execute("begin")
        assert VERBS[first](self.first, job) not in ("nothing", "refused"), f"{first} does nothing"
        asked = self.thread.submit(self._answer, second, job)
        blocked = "select %s = any (pg_blocking_pids(%s))"
        pids = pid(self.first), pid(self.second)
        waits = False

        def shows() -> bool:
            nonlocal waits
            waits = not asked.done() and scalar(self.observer, blocked, *pids)
            return waits or asked.done()

        wait_until(shows, message=f"{second} to wait or to return")
        self.first.execute(end)
        answer = asked.result(20)
        return waits, f"{answer}: {place(self.observer, job)}"

    def _answer(self, verb: str, job: Job) -> str:
        try:
            return SECOND[verb](self.second, job)
        except psycopg.Error as error:
            return str(error.sqlstate)


@pytest.fixture(scope="module")
def arena(databases: Databases) -> Iterator[Arena]:
    """The sessions, which all races share: to plan the functions anew for each would take longer than the races."""
    dsn = databases.create()
    arena = Arena(dsn)
    yield arena
    arena.close()
    databases.drop(dsn)


@pytest.mark.parametrize("race", RACES, ids=lambda race: f"{race.state}: {race.first} - {race.second}")
def test_two_verbs_on_one_job_have_one_outcome(arena: Arena, race: Race) -> None:
    committed = arena.run(race.state, race.first, race.second, "commit")
    assert committed == (race.waits, race.if_committed)
    rolled_back = arena.run(race.state, race.first, race.second, "rollback")
    assert rolled_back == (race.waits, race.if_rolled_back)


def test_every_pair_of_verbs_has_one_row() -> None:
    listed = [(race.state, race.first, race.second) for race in RACES]
    assert sorted(listed) == sorted(pairs())


def test_no_race_ends_in_a_deadlock_or_another_error() -> None:
    """A row of the table that says so would be one to mend."""
    answers = {
        outcome.split(":")[0] for race in RACES for outcome in (race.if_committed, race.if_rolled_back)
    }
    assert not [answer for answer in answers if answer != answer.lower()]


def test_the_page_is_what_the_table_says() -> None:
    now = page(RACES)
    if os.environ.get("PGQUEUE_REWRITE_RACES"):
        PAGE.write_text(now)
    assert now == PAGE.read_text(), "PGQUEUE_REWRITE_RACES=1 python -m pytest tests/races -k page"
