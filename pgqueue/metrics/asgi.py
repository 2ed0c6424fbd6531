"""The endpoint as an ASGI application, for web applications that already listen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from pgqueue.errors import MissingDSN
from pgqueue.metrics.endpoint import HEADERS, METHODS, Endpoint, Response, require
from pgqueue.observe.tally import process_tally

if TYPE_CHECKING:
    from pgqueue.app import App  # not loaded in a supervisor, which runs no user code

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Asgi:
    """An ASGI application; see `asgi`."""

    def __init__(self, app: App):
        require()
        process_tally.is_wanted = True
        self._app = app
        self._lock = threading.Lock()
        self._endpoint: Endpoint | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # only where it is the outermost application
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    def close(self) -> None:
        """Closes the connection to the database. As the outermost application it does so by itself."""
        with self._lock:
            endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.close()

    async def _answer(self, scope: Scope, send: Send) -> None:
        path = scope["path"]
        root = scope.get("root_path", "")
        # Some frameworks leave the prefix under which it is mounted in the path, some take it off.
        if root and path.startswith(f"{root}/"):
            path = path[len(root) :]
        accept = b",".join(value for name, value in scope["headers"] if name.lower() == b"accept")
        method = scope["method"]
        response = await asyncio.to_thread(self._respond, path, accept.decode("latin-1"), method)
        headers = [("Content-Type", response.content_type), ("Content-Length", str(len(response.body)))]
        headers += [*HEADERS, *([("Allow", ", ".join(METHODS))] if response.status == 405 else [])]
        await send(
            {
                "type": "http.response.start",
                "status": response.status,
                "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
            }
        )
        body = b"" if method == "HEAD" else response.body
        await send({"type": "http.response.body", "body": body})

    def _respond(self, path: str, accept: str, method: str) -> Response:
        with self._lock:
            if self._endpoint is None:
                dsn = self._app.settings.dsn
                if dsn is None:
                    raise MissingDSN(
                        "no database is configured: give App(dsn=…), or set PGQUEUE_DSN or DATABASE_URL"
                    )
                self._endpoint = Endpoint(dsn, process_tally)
            endpoint = self._endpoint
        return endpoint.respond(path, accept, method)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await asyncio.to_thread(self.close)
                await send({"type": "lifespan.shutdown.complete"})
                return


def asgi(app: App) -> Asgi:
    """/metrics, /livez, /readyz and /health as an ASGI application, to be mounted into FastAPI, Starlette or another.

    It has the fleet's figures, and those of the workers that run in this process. Make it before they start: from then on
    they count. It answers in a thread, and asks the database at most once in five seconds.

        web = FastAPI(lifespan=lifespan)
        web.mount("/pgqueue", pgqueue.metrics.asgi(app))

    Raises `ConfigurationError` when prometheus_client is not installed: pip install "pgqueue-jobs[metrics]".
    """
    return Asgi(app)
