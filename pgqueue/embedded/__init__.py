"""A PostgreSQL of one's own, for `pgqueue dev`, `pgqueue demo` and tests.

    with EmbeddedServer(default_data_dir(), progress=print) as server:
        psycopg.connect(server.dsn)

One process *owns* a running server: it holds the lock of the data folder, and the server ends with it.
Every other process that starts on the same folder *joins*: it uses the server and leaves it running.

What lies in the data folder:

    lock            flock of the owner; the kernel drops it however the owner dies
    server.json     how to reach the server (0600: holds the TCP password); left behind, and worth nothing
                    until a connection proves it
    server.log      what the server says
    data/           PGDATA; appears complete, by a rename
    run/            the Unix socket, 0700; a folder in /tmp instead where the path suits no socket

As root the server runs as the owner of `data/`, else as `postgres`, else as `nobody`: PostgreSQL refuses
root. That user gets `data/` and `run/`; everything else stays root's, so that a process of that user can
trick root into nothing. A data folder which that user cannot reach is refused, with the folder in the
way named; binaries which it cannot reach are copied to a public cache.
"""

from __future__ import annotations

from pgqueue.embedded.places import default_data_dir, find_binaries
from pgqueue.embedded.server import EmbeddedServer

__all__ = ["EmbeddedServer", "default_data_dir", "find_binaries"]
