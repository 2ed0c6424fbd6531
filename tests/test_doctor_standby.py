"""`pgqueue doctor` on a primary whose standby holds old rows alive, and on that standby."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from pgqueue.cli import main
from pgqueue.cli.checks import CHECKS, server
from tests.support import wait_until
from tests.support.standby import MISSING, Standby


@pytest.fixture(scope="module")
def pair() -> Iterator[Standby]:
    """A primary and its streaming standby; skips where there are no programs for it."""
    if MISSING:
        pytest.skip(MISSING)
    with Standby() as pair:
        yield pair


def findings(dsn: str, *checks: str) -> list[dict[str, Any]]:
    """What the doctor says."""
    only = [argument for name in checks for argument in ("--only", name)]
    told = CliRunner().invoke(main, ["--dsn", dsn, "doctor", "--json", *only])
    assert told.stdout, told.output
    return list(json.loads(told.stdout)["findings"])


def said(pair: Standby, of: str) -> list[str]:
    """What is said about the snapshots of the primary, as far as it is about a standby or a slot."""
    return [found["what"] for found in findings(pair.primary_dsn, "snapshots") if of in found["what"]]


def test_a_standby_or_a_slot_that_holds_old_rows_is_named(
    pair: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SLOT_AGE", 20)
    with pair.primary() as primary, pair.replica() as replica, pair.replica() as reader:
        assert not said(pair, "standby") + said(pair, "replication slot")

        def tell(setting: str, value: str) -> None:
            replica.execute(f"alter system set {setting} = '{value}'")
            replica.execute("select pg_reload_conf()")

        # A long query there, of which the standby tells its primary.
        reader.execute("begin isolation level repeatable read")
        reader.execute("select count(*) from pg_class")
        tell("wal_receiver_status_interval", "1")
        tell("hot_standby_feedback", "on")
        for _ in range(30):
            primary.execute("select pg_current_xact_id()")
        (told,) = wait_until(lambda: said(pair, "standby"), 60, "the standby's snapshot")
        assert "the standby walreceiver holds a snapshot that is" in told

        # Through a slot it is the slot that holds the rows.
        primary.execute("select pg_create_physical_replication_slot('spare')")
        tell("primary_slot_name", "spare")
        (told,) = wait_until(lambda: said(pair, "replication slot"), 60, "the slot to be held")
        assert "the replication slot spare is" in told
        assert "transactions behind: no row" in told

        # And holds them on when nobody reads it any more.
        tell("primary_slot_name", "")
        abandoned = "select not active from pg_replication_slots where slot_name = 'spare'"
        wait_until(lambda: primary.execute(abandoned).fetchone() == (True,), 60, "the slot to be left")
        (told,) = said(pair, "replication slot")
        assert "and nobody reads it" in told
        primary.execute("select pg_drop_replication_slot('spare')")
        assert not said(pair, "replication slot")


def test_on_a_standby_every_check_looks_and_the_first_one_says_where_it_is(pair: Standby) -> None:
    told = findings(pair.replica_dsn)
    (first, *_) = told
    assert (first["check"], first["severity"]) == ("server", "info")
    assert "this is a standby" in first["what"]
    elsewhere = {found["check"] for found in findings(pair.primary_dsn)}
    assert {found["check"] for found in told} - {"server"} <= elsewhere <= set(CHECKS)
