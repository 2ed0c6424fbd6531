"""What monitoring asks over HTTP: Prometheus metrics, and whether a process and the fleet are well.

    /metrics   the figures of this process, and what the database says of the fleet
    /livez     whether the process does its rounds; never asks the database
    /readyz    whether it works, and the database answers
    /health    every check of `pgqueue_bi.health`; 503 when one of them is unhealthy

`pgqueue worker --metrics-port 9464` serves them (`serve`), and `asgi(app)` puts them into a web application. Both go
through `Endpoint.respond`. The fleet is read by `fleet`, at most once in five seconds however many ask; `page` writes
it down for Prometheus, and is the only part that needs the extra: pip install "pgqueue-jobs[metrics]".
"""

from __future__ import annotations

from pgqueue.metrics.asgi import asgi
from pgqueue.metrics.endpoint import Endpoint, Response
from pgqueue.metrics.server import Server, serve

__all__ = ["Endpoint", "Response", "Server", "asgi", "serve"]
