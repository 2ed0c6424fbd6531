"""A server of a test's own, which it may stop, kill and restart."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pgqueue.embedded import EmbeddedServer
from tests.support.databases import Databases

_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def own_server_in_memory(**settings: str) -> Iterator[EmbeddedServer]:
    """Runs a server for the length of a block. It is durable: what it confirmed, it keeps."""
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="pgqueue-tests-", dir=place) as folder,
        EmbeddedServer(Path(folder), settings={"max_wal_size": "256MB", **settings}) as server,
    ):
        yield server


def databases_of(server: EmbeddedServer, count: int) -> list[str]:
    """Databases with pgqueue's schema, made while the server is whole: one a test. They go when it goes."""
    databases = Databases(server.dsn)
    made = [databases.create() for _ in range(count)]
    databases.close()
    return made
