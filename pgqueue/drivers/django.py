"""Django: `django.db.connection`, or one of `django.db.connections`.

Inside `transaction.atomic()` the enqueue is part of it; outside, Django commits each statement, which is
its documented normal and not warned about. The connection is opened lazily by Django itself.
"""

from __future__ import annotations

from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionProxy

from pgqueue.calls import Call
from pgqueue.drivers.sqlstate import ABORTED, translate
from pgqueue.drivers.targets import Runner, unusable
from pgqueue.drivers.values import check
from pgqueue.errors import UnusableConnection


def runner_for(target: Any) -> Runner | None:
    """The function that runs calls on the type of `target`, or None when it is not Django's."""
    if isinstance(target, BaseDatabaseWrapper):
        return _run_connection
    if isinstance(target, ConnectionProxy):  # of `connection`; but `django.core.cache.cache` is one too
        return _run_proxy if hasattr(target, "vendor") else None
    if type(target).__name__ == "ConnectionHandler" and type(target).__module__.startswith("django."):
        raise unusable(target, "choose one: `connections['default']`")
    return None


def _run_proxy(proxy: Any, call: Call[Any]) -> Any:
    # each attribute of the proxy costs 3 us, so this thread's connection behind it is looked up once
    return _run_connection(connections[proxy.alias], call)


def _run_connection(connection: Any, call: Call[Any]) -> Any:
    check(call)
    vendor = getattr(connection, "vendor", None)
    if vendor != "postgresql":
        raise UnusableConnection(
            f"cannot enqueue on a Django connection to {vendor}: pgqueue lives in PostgreSQL"
        )
    if connection.in_atomic_block:
        if connection.closed_in_transaction:
            raise UnusableConnection("the connection was closed inside its atomic block")
        if connection.needs_rollback:
            raise UnusableConnection(ABORTED)
    try:
        with connection.cursor() as cursor:
            cursor.execute(call.verb.sql("format"), call.values)
            rows = cursor.fetchall()
    except (Error, UnicodeEncodeError) as error:
        if mapped := translate(error):
            raise mapped from error
        raise
    return call.decode(rows)
