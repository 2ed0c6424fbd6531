"""What a leader's hooks have been told of health, and what they are to be told next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pgqueue.hooks import Alert
from pgqueue.info import HealthCheck


class Alerting:
    """The checks that were told to have failed. Kept by who leads, and forgotten with leadership."""

    def __init__(self) -> None:
        self._standing: dict[tuple[str, str | None], HealthCheck] = {}

    def changes(self, checks: Iterable[HealthCheck]) -> list[Alert]:
        """What to tell of these checks: what fails anew, and what fails no more, its threshold gone or not.

        >>> late = HealthCheck("mail", "depth", 9, 5, False, "ready jobs: 9, allowed: 5")
        >>> [(alert.check_name, alert.is_resolved) for alert in Alerting().changes([late])]
        [('depth', False)]
        """
        now = {(check.check_name, check.queue): check for check in checks}
        failing = {key: check for key, check in now.items() if not check.is_healthy}
        return [
            *(_alert(check) for key, check in failing.items() if key not in self._standing),
            *(
                _alert(now.get(key, check), is_resolved=True)
                for key, check in self._standing.items()
                if key not in failing
            ),
        ]

    def told(self, checks: Sequence[HealthCheck]) -> None:
        """The changes of these checks were told."""
        self._standing = {(check.check_name, check.queue): check for check in checks if not check.is_healthy}

    def forget(self) -> None:
        """Another supervisor leads, and tells."""
        self._standing.clear()


def _alert(check: HealthCheck, *, is_resolved: bool = False) -> Alert:
    return Alert(
        check_name=check.check_name,
        queue=check.queue,
        value=check.value,
        threshold=check.threshold,
        detail=check.detail,
        is_resolved=is_resolved,
    )
