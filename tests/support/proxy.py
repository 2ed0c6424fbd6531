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
from typing import Literal, Self
from urllib.parse import urlencode

from psycopg.conninfo import conninfo_to_dict

CAN_FALL_SILENT = sys.platform == "linux"
"""Whether `Proxy.fall_silent` works here."""
_SO_ATTACH_FILTER = 26
_DROP_EVERYTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""A socket filter of one instruction: of each packet, keep nothing."""
_SYNC = b"S\0\0\0\4"
"""The end of each request: with it the server commits a statement that is its own transaction."""
_READY = b"Z\0\0\0\5I"
"""The end of each answer: there is no transaction any more."""


class Point:
    """A point between a statement and its commit, or between that and its answer, at which a connection stands still.

    Its process can be killed there, and then the connection is `cut`; or it may `go_on` as if nothing had been.
    """

    def __init__(self, verb: str, place: Literal["before", "after"], says: bytes):
        self._marker = b"\0pgqueue_%s\0" % verb.encode()
        self._says = says
        self.place = place
        self.backend = 0
        """The process of the server that the connection talks to."""
        self.reached = threading.Event()
        """Set once a connection stands there."""
        self._asked: set[socket.socket] = set()  # whose last request was the statement
        self._decided = threading.Event()
        self._goes_on = False

    def cut(self) -> None:
        """The connection ends, to both sides."""
        self._decided.set()

    def go_on(self) -> None:
        """The connection goes on."""
        self._goes_on = True
        self._decided.set()

    def holds_request(self, client: socket.socket, data: bytes) -> bool:
        """Whether this request is to stand still before its last message."""
        self._asked.discard(client)
        if self._marker not in data or self.reached.is_set():
            return False
        self._asked.add(client)
        return self.place == "before" and data.endswith(_SYNC)

    def holds_answer(self, client: socket.socket, data: bytes) -> bool:
        """Whether this answer is to stand still."""
        return (
            self.place == "after"
            and client in self._asked
            and self._says in data
            and data.endswith(_READY)
            and not self.reached.is_set()
        )

    def stand(self, backend: int) -> bool:
        """Stands still until somebody has decided; whether it goes on."""
        self.backend = backend
        self.reached.set()
        self._decided.wait()
        return self._goes_on


class Proxy:
    """Passes connections on to the server of `dsn`; `lose`, `delay`, `fall_silent`, `stop_at` and `shut` do the harm."""

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
        self._point: Point | None = None
        self._backends: dict[socket.socket, int] = {}

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

    def stop_at(self, verb: str, place: Literal["before", "after"], *, says: bytes = b"") -> Point:
        """The next connection that calls a function of pgqueue's stands still before or after the commit of that call: the
        statement was carried out, or its answer (which contains `says`) is on its way. For prepared statements alone."""
        point = self._point = Point(verb, place, says)
        return point

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
                if answers and not self._backends.get(drain):
                    self._backends[drain] = _backend_of(data)
                if answers and self._is_to_be_lost(data):
                    break
                if (point := self._point) is not None:
                    if answers and point.holds_answer(drain, data) and not point.stand(self._backends[drain]):
                        break
                    if not answers and point.holds_request(source, data):
                        drain.sendall(data[: -len(_SYNC)])
                        if not point.stand(self._backends[source]):
                            break
                        data = _SYNC
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


def _backend_of(answer: bytes) -> int:
    """The process of the server that gave this answer to a start-up; 0 when it asks for a password first."""
    _, found, rest = answer.partition(b"K\0\0\0\x0c")
    return int.from_bytes(rest[:4]) if found else 0


def _cut(ours: socket.socket) -> None:
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)
    ours.close()
