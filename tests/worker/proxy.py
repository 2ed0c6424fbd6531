"""A way to the server that can lose an answer, or be closed: the server lives on, and nobody reaches it."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

from psycopg.conninfo import conninfo_to_dict


class Proxy:
    """Passes connections on to the server of `dsn`; `lose` and `shut` do the harm."""

    def __init__(self, dsn: str):
        options = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
        host, port = options.pop("host"), options.pop("port", "5432")
        self._target = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = f"postgresql:///?{urlencode({**options, 'host': '127.0.0.1', 'port': self._listener.getsockname()[1], 'sslmode': 'disable', 'gssencmode': 'disable'})}"
        self._sockets: list[socket.socket] = []
        self._marker: bytes | None = None
        self._is_open = True
        self.lost = threading.Event()
        """Set once the answer was lost."""

    def lose(self, marker: bytes) -> None:
        """The next answer that contains `marker` is dropped, and its connection is cut."""
        self._marker = marker

    def shut(self) -> None:
        """Cuts every connection, and lets nobody through any more."""
        self._is_open = False
        for ours in self._sockets:
            _cut(ours)

    def open(self) -> None:
        """Lets connections through again."""
        self._is_open = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for ours in (self._listener, *self._sockets):
            _cut(ours)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self._is_open:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
                server.connect(self._target)
                self._sockets += [client, server]
                for source, drain, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=(source, drain, answers), daemon=True).start()

    def _pass_on(self, source: socket.socket, drain: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if answers and self._marker is not None and self._marker in data:
                    self._marker = None
                    self.lost.set()
                    break
                drain.sendall(data)
        _cut(source)
        _cut(drain)


def _cut(ours: socket.socket) -> None:
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)
    ours.close()
