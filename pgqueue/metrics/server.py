"""Serves an endpoint over HTTP from threads of its own, beside whatever the process does.

Not more than the standard library's server: it is asked a few times a minute, by those who run the fleet. It has no TLS and
no login; where others can reach the port, put a proxy before it.
"""

from __future__ import annotations

import errno
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog

from pgqueue.error_text import one_line
from pgqueue.errors import ConfigurationError
from pgqueue.metrics.endpoint import HEADERS, METHODS, Endpoint

log = structlog.get_logger("pgqueue.metrics")

REQUEST_SECONDS = 10.0
"""A client that takes longer to say what it wants is hung up on."""


class Server:
    """A server that runs. Close it: its port stays taken and its endpoint keeps a connection until then."""

    def __init__(self, endpoint: Endpoint, http: ThreadingHTTPServer):
        self._endpoint = endpoint
        self._http = http
        self.port: int = http.server_address[1]
        """Where it listens: the kernel's choice when 0 was asked for."""
        self._thread = threading.Thread(
            target=http.serve_forever, args=(0.25,), name="pgqueue metrics server", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops listening, within a quarter of a second, and closes the endpoint."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._endpoint.close()


def serve(endpoint: Endpoint, port: int, host: str = "0.0.0.0") -> Server:
    """Listens on a port (0: one that is free) of a host's address and answers from daemon threads.

    Raises `ConfigurationError` when it cannot listen there.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        http = _Http(endpoint, family, str(address[0]), port)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_port: cannot listen on {host}, port {port}: {error.strerror or error}"
            + ("; each worker of a machine needs one of its own" if error.errno == errno.EADDRINUSE else "")
        ) from error
    server = Server(endpoint, http)
    log.info("metrics.listening", host=host, port=server.port)
    return server


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endpoint: Endpoint, family: int, host: str, port: int):
        self.endpoint = endpoint
        self.address_family = family
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the DNS for this host's name and waits as long as that takes.
        socketserver.TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        error = sys.exception()
        if isinstance(error, OSError):
            log.debug("metrics.hung_up", error=one_line(error))  # who asked has gone
        else:
            log.exception("metrics.failed", error=one_line(error))


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        accept = ",".join(self.headers.get_all("Accept") or ())
        response = self.server.endpoint.respond(self.path, accept, self.command)
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        for name, value in HEADERS:
            self.send_header(name, value)
        if response.status == 405:
            self.send_header("Allow", ", ".join(METHODS))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # respond knows which may

    def version_string(self) -> str:
        return "pgqueue"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: every scrape would be a line."""
