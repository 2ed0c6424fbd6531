"""The SQL functions do what the model says (`model.py`), in random runs of several sessions (`machine.py`).

    PGQUEUE_MODEL_EXAMPLES=5000 python -m pytest tests/model

tries as many runs, others each time, and shows of every careless variant of a function that the runs find it. Without
it there are some dozens, the same each time, and some of the variants.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import EXAMPLES, SETTINGS, Machine
from tests.model.world import World
from tests.sql.acting import sabotaged
from tests.support import Databases


@pytest.fixture(scope="module")
def world(databases: Databases) -> Iterator[World]:
    """The database and the sessions of this file."""
    dsn = databases.create()
    world = World(dsn)
    Machine.world = world
    yield world
    world.close()
    databases.drop(dsn)


def test_the_functions_do_what_the_model_does(world: World) -> None:  # noqa: ARG001 - Machine's
    run_state_machine_as_test(Machine, settings=SETTINGS)


# What the model is worth ------------------------------------------------------------------------------

FENCE = ("h.id = e.id and h.lease = e.lease", "h.id = e.id")
SABOTAGE: dict[str, tuple[str, tuple[str, str]]] = {
    "complete without the fence": ("complete", FENCE),
    "fail without the fence": ("fail", (" and h.lease = e.lease::bigint", "")),
    "release without the fence": ("release", FENCE),
    "a release uses up the attempt": ("release", ("e.attempt - 1", "e.attempt")),
    "a release goes to the end of the line": ("release", ("e.lane & ~1", "e.lane")),
    "a snooze uses up the attempt": ("snooze", ("e.attempt - 1", "e.attempt")),
    "a claim does not count": ("claim", ("p.attempt + 1,", "p.attempt,")),
    "a claim takes the last first": ("claim", ("order by r.position\n", "order by r.position desc\n")),
    "a claim knows no pause": ("claim", ("q.paused_at is not null", "false")),
    "a failure counts no attempts": ("fail", ("g.attempt >= g.max_attempts", "false")),
    "a failure forgets who asked to cancel": (
        "fail",
        ("perform pgqueue.cancel_as_requested(accepted)", "null"),
    ),
    "a crash uses up the last attempt": ("rescue", ("least(j.attempt, j.max_attempts - 1)", "j.attempt")),
    "a crash is forgiven for ever": ("rescue", ("e.crashed and e.crashes >= 3 and", "false and")),
    "a promotion is too early": ("promote", ("s.run_at <= due_by", "true")),
    "a retry waits for who holds the job": ("retry", ("for update skip locked", "for update")),
    "a replay takes a key that is held": ("replay", ("<> 'created'", "= 'nobody'")),
    "a replay counts on": ("replay", ("g.lane, 0, g.max_attempts", "g.lane, 1, g.max_attempts")),
    "an enqueue takes a key that is held": ("unfinished_as", ("select 'ready' from", "select null from")),
    "an idempotency key is for ever": (
        "take_idempotency_key",
        ("k.expires_at <= clock_timestamp()", "false"),
    ),
    "a dead letter keeps its key": ("fail", ("perform pgqueue.free_keys(held_keys)", "null")),
    "a cancelled job keeps its key": (
        "cancel",
        ("perform pgqueue.free_keys(held_keys, with_periods => true)", "null"),
    ),
    "a deletion takes what runs": (
        "delete_jobs",
        (
            "waited as (",
            "x as (delete from pgqueue.running_jobs as j where j.id = any (missing)), waited as (",
        ),
    ),
    "a floor is the lowest row that can be seen": (
        "prove_floors",
        ("cardinality(pgqueue.writers('ready_jobs', record.lockers)) = 0", "true"),
    ),
}
"""Careless variants of functions, each with the text that is changed."""


OFTEN = (
    "release without the fence",
    "a claim takes the last first",
    "a crash uses up the last attempt",
    "a floor is the lowest row that can be seen",
    "an enqueue takes a key that is held",
)
"""Those that are found at once, and are looked for each time."""


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_careless_variant_fits_its_function(world: World, name: str) -> None:
    """Also those that are only looked for in long runs."""
    function, change = SABOTAGE[name]
    with sabotaged(world.observer, function, change):
        world.observer.execute("select")


@pytest.mark.parametrize("name", SABOTAGE if EXAMPLES else OFTEN)
def test_a_careless_function_is_found(world: World, name: str) -> None:
    """So the runs reach what they are for."""
    function, change = SABOTAGE[name]
    quick = settings(
        SETTINGS,
        phases=[Phase.generate],
        max_examples=500,
        derandomize=True,
        report_multiple_bugs=False,
        print_blob=False,
    )
    with sabotaged(world.observer, function, change), pytest.raises((AssertionError, psycopg.Error)):
        run_state_machine_as_test(Machine, settings=quick)
