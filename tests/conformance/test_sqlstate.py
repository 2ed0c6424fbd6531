"""Which error of ours stands for which SQLSTATE, as each library reports it from a real server."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg
import pytest

from pgqueue import errors
from pgqueue.drivers import is_unavailable, translate
from pgqueue.drivers.sqlstate import sqlstate
from tests.conformance.kinds import KINDS, Kind

ONE_A_LIBRARY = {
    name: KINDS[name]
    for name in (
        "psycopg Connection",
        "psycopg AsyncConnection",
        "sqlalchemy Session",
        "sqlalchemy over psycopg2",
        "sqlalchemy over asyncpg",
        "asyncpg Connection",
        "django",
    )
}

MAPPED = {
    "PQ001": errors.InvalidOption,
    "PQ002": errors.UnknownWorker,
    "PQ003": errors.InvalidArgs,
    "PQ004": errors.LeaseLost,
    "40001": errors.SerializationConflict,
    "40P01": errors.SerializationConflict,
    "42501": errors.NotPermitted,
    "25006": errors.UnusableConnection,
    "25P02": errors.UnusableConnection,
    "3F000": errors.SchemaMissing,
    "42883": errors.SchemaMissing,
    "42P01": errors.SchemaMissing,
    "08006": errors.DatabaseUnavailable,
    "28P01": errors.DatabaseUnavailable,
    "3D000": errors.DatabaseUnavailable,
    "53100": errors.DatabaseUnavailable,
    "53300": errors.DatabaseUnavailable,
    "57P01": errors.DatabaseUnavailable,
    "57P03": errors.DatabaseUnavailable,
    "57014": None,
    "55P03": None,
    "23505": None,
    "22P02": None,
    "XX000": None,
}


@pytest.fixture(params=ONE_A_LIBRARY.values(), ids=ONE_A_LIBRARY.keys())
def kind(request: pytest.FixtureRequest, database: str) -> Any:
    with request.param(database) as kind:
        yield kind


def raised(kind: Kind, state: str, message: str) -> BaseException:
    """What the library makes of an error that the server raises."""
    kind.begin()
    with pytest.raises(Exception, match=message) as caught:
        kind.execute(f"do $$ begin raise exception using errcode = '{state}', message = '{message}'; end $$")
    kind.rollback()
    return caught.value


def test_each_sqlstate_is_mapped_alike_for_every_library(kind: Kind) -> None:
    for state, expected in MAPPED.items():
        error = raised(kind, state, "function pgqueue.some")
        assert sqlstate(error) == state
        mapped = translate(error)
        assert type(mapped) is (expected or type(None)), state
        assert is_unavailable(error) is (expected is errors.DatabaseUnavailable)
        if mapped is not None:
            assert mapped.__cause__ is error
            assert "\n" not in str(mapped)
        if state.startswith("PQ"):
            assert str(mapped) == "function pgqueue.some"


def test_a_missing_object_that_is_not_ours_says_nothing_about_the_schema(kind: Kind) -> None:
    assert translate(raised(kind, "42P01", "relation customers")) is None


def test_our_own_errors_know_whether_the_server_is_away() -> None:
    assert is_unavailable(errors.DatabaseUnavailable("gone"))
    assert not is_unavailable(errors.UnusableConnection("closed"))


def test_an_error_without_a_state_is_a_lost_server_for_psycopg() -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect("host=127.0.0.1 port=1")
    assert is_unavailable(caught.value)
    assert isinstance(translate(caught.value), errors.DatabaseUnavailable)


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("y"), FileNotFoundError("z"), TimeoutError()])
def test_errors_of_other_things_are_left_alone(error: Exception) -> None:
    assert translate(error) is None
    assert not is_unavailable(error)


def test_an_error_of_the_applications_own_is_left_alone_whatever_it_was_raised_from() -> None:
    error = RuntimeError("a handler's")
    error.__cause__ = psycopg.OperationalError("the connection is lost")
    assert translate(error) is None
    assert translate(sqlite3.OperationalError("no such table")) is None


def test_a_chain_of_causes_that_is_a_cycle_ends() -> None:
    error, other = ValueError("a"), ValueError("b")
    error.__cause__, other.__cause__ = other, error
    assert translate(error) is None
