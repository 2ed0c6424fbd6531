"""What a leader tells of health: each change once, and an alert until it is resolved."""

from __future__ import annotations

from pgqueue.info import HealthCheck
from pgqueue.worker.alerting import Alerting


def check(name: str, queue: str | None = "mail", *, ok: bool = False, value: float = 9) -> HealthCheck:
    return HealthCheck(queue, name, value, 5, ok, f"{name} is {value:g}")


def told(alerting: Alerting, *checks: HealthCheck) -> list[tuple[str, str | None, bool]]:
    """What is told of these checks, and was."""
    alerts = alerting.changes(checks)
    alerting.told(checks)
    return [(alert.check_name, alert.queue, alert.is_resolved) for alert in alerts]


def test_a_check_that_fails_is_told_once_and_once_more_when_it_does_not() -> None:
    alerting = Alerting()
    assert told(alerting, check("depth", ok=True), check("leader", None, ok=True)) == []
    assert told(alerting, check("depth"), check("leader", None, ok=True)) == [("depth", "mail", False)]
    assert told(alerting, check("depth", value=10), check("leader", None)) == [("leader", None, False)]
    assert told(alerting, check("depth", ok=True), check("leader", None)) == [("depth", "mail", True)]
    assert told(alerting, check("depth"), check("leader", None)) == [("depth", "mail", False)]


def test_the_same_check_of_two_queues_is_two() -> None:
    alerting = Alerting()
    assert told(alerting, check("depth", "a"), check("depth", "b")) == [
        ("depth", "a", False),
        ("depth", "b", False),
    ]
    assert told(alerting, check("depth", "a", ok=True), check("depth", "b")) == [("depth", "a", True)]


def test_an_alert_whose_threshold_is_gone_is_resolved_as_it_was_last_told() -> None:
    alerting = Alerting()
    told(alerting, check("depth", value=10))
    (alert,) = alerting.changes([])
    assert (alert.check_name, alert.queue, alert.value, alert.threshold, alert.detail, alert.is_resolved) == (
        *("depth", "mail", 10, 5, "depth is 10"),
        True,
    )
    (alert,) = alerting.changes([check("depth", ok=True, value=2)])
    assert (alert.value, alert.is_resolved) == (2, True)


def test_what_nobody_heard_is_told_again_and_so_is_what_another_leader_may_have_told() -> None:
    alerting = Alerting()
    assert alerting.changes([check("depth")])
    assert told(alerting, check("depth")) == [("depth", "mail", False)]
    alerting.forget()
    assert told(alerting, check("depth")) == [("depth", "mail", False)]
    alerting.forget()
    assert told(alerting) == []
