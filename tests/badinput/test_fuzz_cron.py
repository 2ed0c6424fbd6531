"""Any text as a cron expression: refused by an error of ours in a line, or due at times that rise and that its fields name."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgqueue.cron import Cron
from pgqueue.errors import InvalidOption
from tests.badinput.fuzzing import fuzzed, texts
from tests.sql.acting import open_session
from tests.support import Databases

QUICK = 2.0
"""Seconds in which an expression is read and its next ten times are found, at the most."""
RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
_MOMENTS = st.integers(915148800, 3786912000).map(lambda second: datetime.fromtimestamp(second, UTC))
_atoms = st.one_of(
    st.sampled_from(["*", "*/5", "*/0", "0", "59", "60", "1-5", "5-1", "1-5/2", "L", "15W", "fri#2", "L5", "jan", "MON", "mon-fri", "H",
                     "R", "?", "1,2,3", ",", "-", "/", "*/", "1//2", "0-59/59", "30", "31", "29", "2", "99999999999", "\u0663", "1.5"]),
    st.text("0123456789*/-,LW#?HRmonjafebsutd \t\n@", max_size=8),
    texts,
)  # fmt: skip
expressions = st.one_of(
    st.lists(_atoms, min_size=5, max_size=5).map(" ".join),
    st.tuples(*(
        st.one_of(st.just("*"), st.integers(low, high).map(str), st.integers(1, high).map(lambda step: f"*/{step}"))
        for low, high in RANGES
    )).map(" ".join),
    st.lists(_atoms, max_size=8).map(" ".join),
    st.sampled_from(["@daily", "@reboot", "@every 5m", "@", "@yearly", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 29 2 *"]),
    texts,
)  # fmt: skip


@fuzzed(150, deadline=QUICK)
@given(
    expressions,
    st.sampled_from([None, "first", "last"]),
    st.sampled_from(ZONES),
    _MOMENTS,
)
def test_any_text_is_refused_in_a_line_or_rises(text: str, seconds: Any, zone: str, moment: datetime) -> None:
    began = time.process_time()
    try:
        cron = Cron(text, tz=zone, seconds=seconds)
    except InvalidOption as error:
        said = str(error)
        assert said.isprintable(), said
        assert len(said) < 500
        return
    due: datetime | None = moment
    found = []
    for _ in range(10):
        due = cron.after(due)
        if due is None:
            break
        found.append(due)
    assert all(one < other for one, other in pairwise(found))
    assert not found or found[0] > moment
    assert time.process_time() - began < QUICK


def named(field: str, low: int, high: int) -> set[int]:
    """The values of a plain field, worked out once more."""
    if field == "*":
        return set(range(low, high + 1))
    if field.startswith("*/"):
        return set(range(low, high + 1, int(field[2:])))
    return {int(field)}


_plain = st.tuples(*(
    st.one_of(st.just("*"), st.integers(low, min(high, 28)).map(str), st.integers(1, 7).map(lambda step: f"*/{step}"))
    for low, high in (*RANGES[:4], (0, 6))
))  # fmt: skip


@fuzzed(60, deadline=QUICK)
@given(
    _plain,
    st.sampled_from(["UTC", "Asia/Kathmandu"]),
    _MOMENTS,
)
def test_the_due_times_are_those_that_the_fields_name(
    fields: tuple[str, ...], zone: str, moment: datetime
) -> None:
    """In zones without a change of the clock: when an hour is skipped a fixed time is moved, as tests/unit/test_cron.py has it."""
    minutes, hours, days, months, weekdays = (
        named(field, low, high) for field, (low, high) in zip(fields, (*RANGES[:4], (0, 6)), strict=True)
    )
    cron, due = Cron(" ".join(fields), tz=zone), moment
    for _ in range(5):
        after = cron.after(due)
        if after is None:
            return
        due = after
        wall = due.astimezone(ZoneInfo(zone))
        on_day, on_weekday = wall.day in days, wall.isoweekday() % 7 in weekdays
        both = fields[2][0] == "*" or fields[4][0] == "*"
        assert wall.minute in minutes
        assert wall.hour in hours
        assert wall.month in months
        assert (on_day and on_weekday) if both else (on_day or on_weekday)
        assert (wall.second, wall.microsecond) == (0, 0)


@pytest.fixture(scope="module")
def session(databases: Databases) -> Any:
    dsn = databases.create()
    with open_session(dsn) as connection:
        yield connection
    databases.drop(dsn)


@fuzzed(40)
@given(expressions, st.sampled_from([None, "first", "last"]))
def test_what_python_takes_the_database_takes(session: psycopg.Connection, text: str, seconds: Any) -> None:
    """The database counts the fields and leaves the rest to the leader: it never refuses what is an expression."""
    if "\0" in text:
        return
    try:
        Cron(text, seconds=seconds)
    except InvalidOption:
        taken = False
    else:
        taken = True
    with session.transaction(force_rollback=True):
        try:
            with session.transaction():
                session.execute(
                    "select pgqueue.schedule('s', 't', cron => %s, seconds => %s)", [text, seconds]
                )
        except psycopg.Error as error:
            refused = error
        else:
            return
    assert refused.sqlstate == "PQ001"
    assert refused.diag.message_hint
    assert not taken, f"{text!r}: {refused.diag.message_primary}"
