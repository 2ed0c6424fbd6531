"""Tasks that fail while they hold a connection, for tests/badinput/test_secrets.py."""

from __future__ import annotations

import os
from typing import Any

import psycopg

import pgqueue
from pgqueue.retry import Fixed

app = pgqueue.App(name="secrets")
ONCE = Fixed(1, attempts=1)


@app.task(retry=ONCE)
def holds_connection() -> None:
    """Fails with an error that has its connection among its arguments, from one that a library has raised."""
    with psycopg.connect(os.environ["PGQUEUE_DSN"]) as connection:
        try:
            connection.execute("select * from nowhere")
        except psycopg.Error as error:
            raise RuntimeError("failed", connection, connection.info) from error


@app.task(retry=ONCE)
def wrong_password() -> None:
    """Fails with what the server says of a password that is wrong."""
    psycopg.connect(os.environ["PGQUEUE_DSN"], password="s3cret-of-somebody-else")


@app.task(retry=ONCE, transactional=True)
async def in_transaction(ctx: pgqueue.Context[psycopg.AsyncConnection[Any]]) -> None:
    """Fails in pgqueue's own transaction."""
    raise RuntimeError(ctx.connection)
