"""What is answered to whom: paths, statuses, bodies. Knows no HTTP server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from pgqueue.errors import ConfigurationError
from pgqueue.metrics.fleet import Fleet
from pgqueue.observe.tally import Tally

JSON = "application/json"
METHODS = ("GET", "HEAD")
HEADERS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
"""Of every answer."""

NOT_LIVE = "the process does not do its rounds any more: it should be started again"
NOT_READY = "the worker does not take jobs: it has not started yet, or it is on its way out"


@dataclass(frozen=True, slots=True)
class Response:
    """What to answer."""

    status: int
    content_type: str
    body: bytes


class Endpoint:
    """Answers for one process: `tally` has its figures, `dsn` leads to the fleet's. From any thread.

    `is_live`: whether it should go on; False asks for a restart. `is_ready`: whether it takes jobs.

    Raises `ConfigurationError` when prometheus_client is not installed. Close it: it keeps a connection.
    """

    def __init__(
        self,
        dsn: str,
        tally: Tally,
        is_live: Callable[[], bool] = lambda: True,
        is_ready: Callable[[], bool] = lambda: True,
    ):
        require()
        tally.is_wanted = True
        self._tally = tally
        self._is_live = is_live
        self._is_ready = is_ready
        self._fleet = Fleet(dsn)
        self._paths = {
            "/metrics": self._metrics,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/health": self._health,
        }

    def respond(self, path: str, accept: str = "", method: str = "GET") -> Response:
        """The answer to a request; `accept` is its Accept header. Blocks for up to five seconds, but for /livez.

        The answer to HEAD has the body of the one to GET: whoever sends it leaves that out.
        """
        handler = self._paths.get(path.partition("?")[0])
        if handler is None:
            return _json(404, {"detail": f"there is nothing here: try {', '.join(self._paths)}"})
        if method not in METHODS:
            return _json(405, {"detail": "this is read with GET"})
        return handler(accept)

    def close(self) -> None:
        """Closes the connection."""
        self._fleet.close()

    def _metrics(self, accept: str) -> Response:
        from pgqueue.metrics.page import page

        return Response(200, *page(self._tally.snapshot(), self._fleet.read(), accept))

    def _livez(self, _accept: str) -> Response:
        if self._is_live():
            return _json(200, {"status": "live"})
        return _json(503, {"status": "not live", "detail": NOT_LIVE})

    def _readyz(self, _accept: str) -> Response:
        is_ready, reading = self._is_ready(), self._fleet.read()
        checks = {"worker": is_ready, "database": reading.answers}
        if all(checks.values()):
            return _json(200, {"status": "ready", "checks": checks})
        detail = NOT_READY if not is_ready else reading.problem
        return _json(503, {"status": "not ready", "detail": detail, "checks": checks})

    def _health(self, _accept: str) -> Response:
        reading = self._fleet.read()
        if reading.figures is None:
            return _json(503, {"status": "unknown", "detail": reading.problem, "checks": []})
        # The unhealthy ones first: a page in a browser is read from the top.
        checks = sorted(
            reading.figures.checks,
            key=lambda check: (check.is_healthy, check.check_name, check.queue or ""),
        )
        failing = [check for check in checks if not check.is_healthy]
        if not failing:
            return _json(200, {"status": "healthy", "checks": checks})
        detail = "; ".join(check.detail for check in failing[:5])
        return _json(503, {"status": "unhealthy", "detail": detail, "checks": checks})


def require() -> None:
    """Raises `ConfigurationError` when prometheus_client is not installed."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            'metrics need the package prometheus_client: pip install "pgqueue-jobs[metrics]"'
        ) from error


def _json(status: int, body: dict[str, Any]) -> Response:
    return Response(status, JSON, msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n")
