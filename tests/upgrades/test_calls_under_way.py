"""A call that is under way when its function is replaced goes on, if the function is renamed; it fails if that is dropped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgqueue import calls, drivers
from tests.support import wait_for_lock_wait
from tests.upgrades.release import LaterRelease, freeze


@pytest.mark.parametrize("how", ["renamed", "dropped"])
def test_an_enqueue_that_waits_for_a_revision_goes_on_if_its_function_is_only_renamed(
    later: LaterRelease, database: str, how: str
) -> None:
    with (
        psycopg.connect(database, autocommit=True) as observer,
        psycopg.connect(database) as upgrade,
        psycopg.connect(database, autocommit=True) as producer,
        ThreadPoolExecutor(max_workers=1) as threads,
    ):
        producer.prepare_threshold = 0
        first = drivers.run(producer, calls.enqueue(task="t"))
        for statement in later.statements:
            if statement.startswith("alter function") and how == "dropped":
                statement = "drop function pgqueue.enqueue;"
            upgrade.execute(statement.encode())
        under_way = threads.submit(drivers.run, producer, calls.enqueue(task="t"))
        wait_for_lock_wait(observer, producer.info.backend_pid)
        upgrade.commit()
        if how == "dropped":
            with pytest.raises(psycopg.errors.InternalError_, match="cache lookup failed for function"):
                under_way.result(20)
        else:
            assert under_way.result(20).id > first.id
        assert drivers.run(producer, calls.enqueue(task="t")).id > first.id


def test_a_revision_that_drops_a_function_is_not_released(
    later: LaterRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        later.write(
            [*later.statements, "drop function pgqueue.enqueue_until_0002;", "DROP FUNCTION pgqueue.later();"]
        )
        assert freeze(later.root, "--release") == 1
    finally:
        later.write(later.statements)
    assert capsys.readouterr().err == (
        "error: revision 0002 drops pgqueue.later, and calls that are under way would fail: rename it to later_until_0002,"
        " and let the revision after this one drop it\n"
    )
