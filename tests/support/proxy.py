"""A way to the server that can lose an answer, be slow, fall silent or be closed: the server lives on behind it."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys
import threading
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

from psycopg.conninfo import conninfo_to_dict

CAN_FALL_SILENT = sys.platform == "linux"
"""Whether `Proxy.fall_silent` works here."""
_SO_ATTACH_FILTER = 26
_DROP_EVERYTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""A socket filter of one instruction: of each packet, keep nothing."""


class Proxy:
    """Passes connections on to the server of `dsn`; `lose`, `delay`, `fall_silent` and `shut` do the harm."""

    def __init__(self, dsn: str):
        options = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
        host, port = options.pop("host"), options.pop("port", "5432")
        self._target = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = f"postgresql:///?{urlencode({**options, 'host': '127.0.0.1', 'port': self._listener.getsockname()[1], 'sslmode': 'disable', 'gssencmode': 'disable'})}"
        self._sockets: list[socket.socket] = []
        self._silent: set[socket.socket] = set()
        self._marker: bytes | None = None
        self._unless: bytes | None = None
        self._is_open = True
        self.delay = 0.0
        """Seconds that whatever passes is held back, each way."""
        self.lost = threading.Event()
        """Set once the answer was lost."""
        self._swallowed: bytes | None = None
        self.swallowed = threading.Event()
        """Set once the request was swallowed."""

    def lose(self, marker: bytes, *, unless: bytes | None = None) -> None:
        """The next answer that contains `marker` (and not `unless`) is dropped, and its connection is cut."""
        self.lost.clear()
        self._unless = unless
        self._marker = marker

    def fall_silent(self) -> None:
        """Every connection there is becomes half-open: nothing passes any more, not even an acknowledgement of
        TCP's. New ones work."""
        for ours in [*self._sockets]:
            self._silence(ours)

    def swallow(self, marker: bytes) -> None:
        """The next request that contains `marker` never arrives, and its connection becomes half-open."""
        self.swallowed.clear()
        self._swallowed = marker

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
                try:
                    server.connect(self._target)
                except OSError:  # the server is away: so is the way to it
                    server.close()
                    client.close()
                    continue
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [client, server]
                if not self._is_open:  # it was shut in this moment
                    _cut(client)
                    _cut(server)
                    continue
                for source, drain, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=(source, drain, answers), daemon=True).start()

    def _pass_on(self, source: socket.socket, drain: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if answers and self._is_to_be_lost(data):
                    break
                if not answers and self._swallowed is not None and self._swallowed in data:
                    self._swallowed = None
                    self._silence(source)
                    self._silence(drain)
                    self.swallowed.set()
                    return
                if self.delay:
                    time.sleep(self.delay)
                if drain not in self._silent:
                    drain.sendall(data)
        if source in self._silent or drain in self._silent:
            return  # whoever is there hears nothing of the end either
        _cut(source)
        _cut(drain)

    def _silence(self, ours: socket.socket) -> None:
        """No packet comes in any more, so that none is acknowledged; and we send none."""
        if ours in self._silent or ours.fileno() < 0:
            return
        self._silent.add(ours)
        if ours.family == socket.AF_INET:
            program = ctypes.create_string_buffer(_DROP_EVERYTHING, len(_DROP_EVERYTHING))
            asked = struct.pack("@HP", 1, ctypes.addressof(program))
            ours.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, asked)

    def _is_to_be_lost(self, answer: bytes) -> bool:
        marker, unless = self._marker, self._unless
        if marker is None or marker not in answer or (unless is not None and unless in answer):
            return False
        self._marker = None
        self.lost.set()
        return True


def _cut(ours: socket.socket) -> None:
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)
    ours.close()
