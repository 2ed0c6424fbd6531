"""`pgqueue enqueue`: one job from the command line."""

from __future__ import annotations

import json

import click

from pgqueue import calls
from pgqueue.cli import dsn_option, load_settings, required_dsn
from pgqueue.cli.connecting import connected
from pgqueue.cli.output import json_option, print_json
from pgqueue.drivers import run
from pgqueue.encoding import encode_args
from pgqueue.errors import ConfigurationError, InvalidArgs
from pgqueue.job import seconds
from pgqueue.options import DEFAULT_QUEUE


@click.command()
@click.argument("task")
@click.argument("args", default="{}", metavar="[ARGS]")
@click.option("-q", "--queue", help="Default: default.")
@click.option("-p", "--priority", type=click.IntRange(0, 9), help="0 (first) to 9. Default: 5.")
@click.option("--delay", metavar="DURATION", help="Run it later: 90s, 5m, 2h …")
@click.option("--max-attempts", type=click.IntRange(1, 32767), help="Default: 5.")
@click.option("--unique-key", help="At most one unfinished job of the task with this key.")
@click.option("--idempotency-key", help="The same key within 24 h makes one job.")
@click.option("--encrypt", is_flag=True, help="Store ARGS encrypted with the first of the encryption keys.")
@json_option
@dsn_option
def enqueue(
    task: str,
    args: str,
    queue: str | None,
    priority: int | None,
    delay: str | None,
    max_attempts: int | None,
    unique_key: str | None,
    idempotency_key: str | None,
    encrypt: bool,
    as_json: bool,
) -> None:
    """Enqueue a job of TASK with ARGS, a JSON object: pgqueue enqueue send_welcome '{"user_id": 7}'."""
    settings = load_settings()
    dsn = required_dsn(settings)
    try:
        given = json.loads(args)
    except ValueError as error:
        raise InvalidArgs(f"args: not JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidArgs("args: expected a JSON object, such as '{\"user_id\": 7}'")
    encoded = encode_args(given, limit=settings.max_args_bytes)
    if encrypt:
        keyring = settings.keyring()
        if keyring is None:
            raise ConfigurationError(
                "encryption_keys: no key is set here to encrypt with: `pgqueue keys generate`"
            )
        encoded = keyring.seal(encoded, "args", task, queue or DEFAULT_QUEUE)
    call = calls.enqueue(
        task=task,
        args=encoded,
        queue=queue,
        priority=priority,
        delay=None if delay is None else seconds(delay, name="delay"),
        max_attempts=max_attempts,
        unique_key=unique_key,
        idempotency_key=idempotency_key,
    )
    with connected(dsn) as connection:
        job = run(connection, call)
    if as_json:
        print_json({"id": job.id, "created": job.created})
    else:
        click.echo(f"job {job.id}" + ("" if job.created else " (exists already)"))
