"""The endpoint over HTTP, from the standard library's server and inside a web application."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pgqueue
from pgqueue.errors import ConfigurationError
from pgqueue.metrics import Endpoint, Server, asgi, serve
from pgqueue.metrics.asgi import Asgi
from pgqueue.observe.tally import Tally, process_tally
from tests.metrics.conftest import MakeEndpoint
from tests.support import wait_until

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
Ask = Callable[..., http.client.HTTPResponse]


@pytest.fixture(scope="module")
def serving(fleet: str) -> Iterator[Server]:
    """A server on a free port of this machine."""
    server = serve(Endpoint(fleet, Tally()), 0, "127.0.0.1")
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _answered() -> Iterator[None]:
    """No test ends while a request is answered: it would log to what pytest is about to close."""
    yield
    wait_for_answers()


def wait_for_answers() -> None:
    """Waits until no request is answered any more."""
    wait_until(
        lambda: not any("process_request_thread" in thread.name for thread in threading.enumerate()),
        message="the end of every request",
    )


@pytest.fixture
def ask(serving: Server) -> Iterator[Ask]:
    """Sends one request over a connection of its own."""
    opened: list[http.client.HTTPConnection] = []

    def ask(path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=30)
        opened.append(connection)
        connection.request(method, path, headers=headers)
        return connection.getresponse()

    yield ask
    for connection in opened:
        connection.close()


def test_a_page_over_http(ask: Ask) -> None:
    answer = ask("/metrics")
    body = answer.read()
    assert answer.status == 200
    assert answer.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.getheader("Content-Length") == str(len(body))
    assert answer.getheader("Cache-Control") == "no-store"
    assert b'pgqueue_queue_depth{queue="mail",state="ready"} 3.0' in body
    assert ask("/metrics", Accept="application/openmetrics-text").read().endswith(b"# EOF\n")


def test_a_probe_over_http(ask: Ask) -> None:
    answer = ask("/health?x=1")
    assert (answer.status, answer.getheader("Content-Type")) == (503, "application/json")
    assert json.load(answer)["status"] == "unhealthy"
    assert ask("/nothing").status == 404


def test_head_has_no_body_and_nothing_is_posted(ask: Ask) -> None:
    answer = ask("/livez", "HEAD")
    assert (answer.status, answer.read()) == (200, b"")
    assert int(answer.getheader("Content-Length") or 0) > 0
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = ask("/livez", method)
        assert (answer.status, answer.getheader("Allow")) == (405, "GET, HEAD")


def test_who_hangs_up_or_talks_nonsense_disturbs_nobody(
    serving: Server, ask: Ask, capfd: pytest.CaptureFixture[str]
) -> None:
    for said in (
        b"",
        b"GET /metrics HTTP/1.0\r\n",
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", serving.port), 30) as client:
            client.sendall(said)
    assert ask("/livez").status == 200
    wait_for_answers()  # and not only at the end: capfd is closed before the fixture waits
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_that_is_taken_is_named(serving: Server, endpoint: MakeEndpoint) -> None:
    with pytest.raises(ConfigurationError, match=f"metrics_port: .*127.0.0.1, port {serving.port}: Address"):
        serve(endpoint(NOWHERE), serving.port, "127.0.0.1")
    with pytest.raises(ConfigurationError, match=r"metrics_port: .*no\.such\.host\.invalid"):
        serve(endpoint(NOWHERE), 0, "no.such.host.invalid")


def test_a_port_is_free_again_once_its_server_is_closed(endpoint: MakeEndpoint) -> None:
    first = serve(endpoint(NOWHERE), 0, "localhost")
    first.close()
    second = serve(endpoint(NOWHERE), first.port, "localhost")
    assert second.port == first.port
    second.close()


# In a web application ---------------------------------------------------------------------------------


@pytest.fixture
def page(fleet: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asgi]:
    """The ASGI application on the folder's database."""
    monkeypatch.setattr(process_tally, "is_wanted", False)
    made = asgi(pgqueue.App(dsn=fleet))
    yield made
    made.close()


def requested(page: Asgi, path: str, method: str = "GET", **scope: Any) -> tuple[int, dict[str, str], bytes]:
    """What an ASGI server would send: the status, the headers, the body."""
    return asyncio.run(requested_async(page, path, method, **scope))


async def requested_async(
    page: Asgi, path: str, method: str = "GET", **scope: Any
) -> tuple[int, dict[str, str], bytes]:
    """The same, in an event loop that runs."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asked = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [], **scope}
    await page(asked, receive, send)
    start, body = sent
    assert (start["type"], body["type"]) == ("http.response.start", "http.response.body")
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert all(name == name.lower() for name in headers)
    return start["status"], headers, body["body"]


def test_a_web_application_answers_as_the_server_does(page: Asgi) -> None:
    status, headers, body = requested(page, "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert headers["content-length"] == str(len(body))
    assert b'pgqueue_queue_depth{queue="mail",state="ready"} 3.0' in body
    accept = [(b"accept", b"application/openmetrics-text")]
    assert requested(page, "/metrics", headers=accept)[2].endswith(b"# EOF\n")
    assert requested(page, "/livez")[0] == requested(page, "/readyz")[0] == 200
    assert requested(page, "/health")[0] == 503
    assert requested(page, "/livez", "HEAD")[2] == b""
    assert requested(page, "/livez", "POST")[:2][1]["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/livez", "/queue/livez"])
def test_it_is_mounted_anywhere(page: Asgi, path: str) -> None:
    """Some frameworks take the prefix off the path, some leave it."""
    assert requested(page, path, root_path="/queue")[0] == 200
    assert requested(page, "/queues", root_path="/queue")[0] == 404


def test_it_makes_workers_of_this_process_count(page: Asgi) -> None:
    assert page
    assert process_tally.is_wanted


def test_it_counts_what_a_worker_of_the_application_runs(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_tally, "is_wanted", False)
    app = pgqueue.App(dsn=database)

    @app.task
    async def greet() -> None: ...

    page = asgi(app)
    line = f'pgqueue_jobs_total{{outcome="completed",queue="default",task="{greet.name}"}} 1.0'

    async def serve_and_work() -> None:
        async with pgqueue.Worker(app, concurrency=2), asyncio.timeout(60):
            await app.enqueue_async(greet)
            while line not in (await requested_async(page, "/metrics"))[2].decode():  # noqa: ASYNC110 - over HTTP, as others see it
                await asyncio.sleep(0.05)
        await app.aclose()

    asyncio.run(serve_and_work())
    page.close()


def test_it_may_be_the_outermost_application(page: Asgi) -> None:
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    requested(page, "/readyz")
    asyncio.run(page({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    asyncio.run(page({"type": "websocket"}, receive, send))
    assert sent[-1] == "websocket.close"
