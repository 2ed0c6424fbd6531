"""The two nights in which clocks are changed, lived through by a server and workers under a clock of the test's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from pgqueue.embedded import EmbeddedServer
from tests.faults.scene import BEAT, Scene
from tests.support import wait_until
from tests.support.databases import Databases
from tests.support.faketime import LIBRARY, MISSING, clock_off_by
from tests.support.own_server import own_server_in_memory

pytestmark = pytest.mark.skipif(LIBRARY is None, reason=MISSING)

RUNS = "select due_at, outcome, job_id, extract(epoch from ran_at - due_at)::float from pgqueue.schedule_runs"
NIGHTLY = """
    select pgqueue.schedule('nightly', 'plain', jsonb_build_object('n', %s), cron => '30 2 * * *', tz => 'Europe/Berlin')"""


class Night:
    """A server whose clock is the test's, and what it takes to give workers the same."""

    def __init__(self, server: EmbeddedServer, patch: pytest.MonkeyPatch):
        self.server = server
        self.environment: dict[str, str] = {}
        self._patch = patch

    def begin(self, at: datetime) -> None:
        """It is `at`, for the server and every worker that is started from now on."""
        self.environment = clock_off_by(at.timestamp() - time.time())
        self.server.stop()
        with self._patch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            self.server.start()


@pytest.fixture
def night(monkeypatch: pytest.MonkeyPatch) -> Iterator[Night]:
    """A server of the test's own, which a night can begin for."""
    with own_server_in_memory() as server:
        yield Night(server, monkeypatch)


def last_sunday(month: int) -> datetime:
    """One in the morning, UTC, of that Sunday next year: when the clocks of the European Union are changed."""
    last = datetime(datetime.now(UTC).year + 1, month, 31, 1, tzinfo=UTC)
    return last - timedelta(days=last.isoweekday() % 7)


SPRING, AUTUMN = last_sunday(3), last_sunday(10)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@pytest.fixture
def database(night: Night) -> str:
    """Where a scene plays: it is a minute before the clocks go forward."""
    night.begin(SPRING - MINUTE)
    databases = Databases(night.server.dsn)
    made = databases.create()
    databases.close()
    return made


def live_through(scene: Scene, night: Night, due: datetime) -> None:
    """Makes the schedule a minute before a due time, which comes when a worker runs."""
    night.begin(due - MINUTE)
    scene.ask(NIGHTLY, BEAT)
    night.begin(due - timedelta(seconds=3))
    scene.start(environment=night.environment)
    with scene.load(rate=4):
        (run,) = wait_until(lambda: scene.ask(RUNS), 60, "a run")
        scene.tried(run[3], within=1)
        scene.wait_for_ends(20)
    assert run[:2] == (due, "enqueued")
    scene.record.acknowledged[BEAT] = (run[2],)
    scene.settle()


def next_due(scene: Scene) -> datetime:
    """When the schedule is due again."""
    ((due,),) = scene.ask("select due_at from pgqueue.schedules")
    return due  # type: ignore[no-any-return]


@pytest.mark.fault(
    "the night in which 02:30 is skipped (Europe/Berlin), under the clock of server and workers"
)
def test_what_is_skipped_runs_at_the_moment_of_the_change(scene: Scene, night: Night) -> None:
    live_through(scene, night, SPRING)
    assert next_due(scene) == SPRING + DAY - MINUTE * 30
    scene.check()


@pytest.mark.fault(
    "the night in which 02:30 comes twice (Europe/Berlin), under the clock of server and workers"
)
def test_what_comes_twice_runs_the_first_time(scene: Scene, night: Night) -> None:
    first, second = AUTUMN - MINUTE * 30, AUTUMN + MINUTE * 30
    live_through(scene, night, first)
    worker = scene.workers.pop()
    worker.stop()
    assert worker.wait(30) == 0
    night.begin(second - timedelta(seconds=3))
    scene.start(environment=night.environment)
    over = "select 1 from pgqueue.leadership where led_at > %s"
    with scene.load(rate=4):
        wait_until(lambda: scene.ask(over, second + timedelta(seconds=1)), 60, "the second time to be over")
        scene.tried(scene.probe(), within=1)
    assert len(scene.ask(RUNS)) == 1
    assert next_due(scene) == second + DAY
    scene.check()
