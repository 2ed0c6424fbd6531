"""What the log says of an outage: the first failure, and then how many there were, once in a while."""

from __future__ import annotations

import structlog

from pgqueue.errors import DatabaseUnavailable, PgqueueError
from pgqueue.worker.link import OutageLog

AWAY, REFUSED = DatabaseUnavailable("no route to host"), PgqueueError("permission denied")


def test_what_fails_again_at_once_is_not_said_again() -> None:
    outages = OutageLog("claims")
    with structlog.testing.capture_logs() as said:
        for _ in range(100):
            outages.report(AWAY)
    assert said == [
        {
            "event": "database.unavailable",
            "link": "claims",
            "error": "no route to host",
            "times": 1,
            "log_level": "warning",
        }
    ]


def test_a_refusal_is_said_beside_an_outage() -> None:
    outages = OutageLog("claims")
    with structlog.testing.capture_logs() as said:
        for error in (AWAY, REFUSED, AWAY, REFUSED):
            outages.report(error)
    assert [(line["event"], line["log_level"]) for line in said] == [
        ("database.unavailable", "warning"),
        ("database.refused", "error"),
    ]


def test_another_refusal_is_not_hidden_behind_the_one_before() -> None:
    outages = OutageLog("claims")
    with structlog.testing.capture_logs() as said:
        for error in (REFUSED, REFUSED, PgqueueError("a lock was waited for too long"), REFUSED):
            outages.report(error)
    assert [(line["error"], line["times"]) for line in said] == [
        ("permission denied", 1),
        ("a lock was waited for too long", 2),
        ("permission denied", 1),
    ]


def test_after_a_while_it_says_how_often() -> None:
    outages = OutageLog("claims", every=0.05)
    with structlog.testing.capture_logs() as said:
        tries = 0
        while len(said) < 3:
            outages.report(AWAY)
            tries += 1
    first, *more = (line["times"] for line in said)
    assert first == 1
    assert all(times > 1 for times in more)
    assert first + sum(more) == tries
