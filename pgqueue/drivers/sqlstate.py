"""From a server's SQLSTATE to an error of `pgqueue.errors`, whichever library reports it.

No library is imported here: an error is read by the attributes that each library gives it.
SQLSTATE and message are found on

    psycopg      `error.sqlstate`, `error.diag.message_primary`
    psycopg2     `error.pgcode`, `error.diag.message_primary`
    asyncpg      `error.sqlstate`, `error.message`
    SQLAlchemy   `error.orig`, which is one of the above (or wraps one, for asyncpg)
    Django       `error.__cause__`, which is one of the above
"""

from __future__ import annotations

from typing import Any

from pgqueue import errors

_OWN: dict[str, type[errors.PgqueueError]] = {
    "PQ001": errors.InvalidOption,
    "PQ002": errors.UnknownWorker,
    "PQ003": errors.InvalidArgs,
    "PQ004": errors.LeaseLost,
}
"""What the functions of `sql/` raise; the message is theirs."""

ABORTED = "the transaction was aborted by an earlier error: roll back first, nothing was enqueued"

_LIBRARIES = {"psycopg", "psycopg_pool", "psycopg2", "sqlalchemy", "asyncpg", "django"}
"""Whose errors are read."""

_CONFLICTS = {"40001", "40P01"}
_MISSING = {"3F000", "42883", "42P01"}
"""No such schema, function, table: ours when the message names pgqueue."""
_UNAVAILABLE = {"53100", "53200", "53300", "25P03", "25P04", "28000", "28P01", "3D000"}
"""No disk, no memory, no connection slot; a session that a time limit has ended; a login or database that is
refused (psycopg gives these no SQLSTATE at all, and they are treated alike)."""


def translate(error: BaseException) -> errors.PgqueueError | None:
    """The error of pgqueue that stands for a library's `error`, with `error` as its `__cause__`.

    Returns None for errors that say nothing about pgqueue (a statement timeout, a type error, a bug):
    those propagate as they are.

    >>> translate(ValueError("x")) is None
    True
    """
    mapped = _translate(error)
    if mapped is not None:
        mapped.__cause__ = error
    return mapped


def is_unavailable(error: BaseException) -> bool:
    """Whether `error` says that the server is gone, restarting or full, so that a later try may work.

    Takes errors of every library and `pgqueue.errors` itself.
    """
    if isinstance(error, errors.PgqueueError):
        return isinstance(error, errors.DatabaseUnavailable)
    return isinstance(_translate(error), errors.DatabaseUnavailable)


def sqlstate(error: BaseException) -> str | None:
    """The five characters of the server's error code, or None when the server said nothing."""
    for source in _sources(error):
        state = getattr(source, "sqlstate", None) or getattr(source, "pgcode", None)
        if isinstance(state, str):
            return state
    return None


def _translate(error: BaseException) -> errors.PgqueueError | None:
    state = sqlstate(error)
    if state is None:
        return _without_state(error)
    if own := _OWN.get(state):
        return own(_message(error))
    if state in _CONFLICTS:
        return errors.SerializationConflict(
            f"{_message(error)}: roll back, then run the whole transaction again"
        )
    if state == "42501":
        return errors.NotPermitted(
            f"{_message(error)}: the database role needs one of pgqueue's roles "
            "(grant pgqueue_producer to enqueue, pgqueue_worker to run jobs, pgqueue_monitor to read, "
            "pgqueue_admin to operate)"
        )
    if state == "25006":
        return errors.UnusableConnection(f"{_message(error)}: the transaction or the server is read-only")
    if state == "25P02":
        return errors.UnusableConnection(ABORTED)
    if state[:2] == "08" or state[:4] == "57P0" or state in _UNAVAILABLE:
        return errors.DatabaseUnavailable(_message(error))
    if state in _MISSING and "pgqueue" in _message(error):
        return errors.SchemaMissing(
            f"{_message(error)}: the schema pgqueue is not in this database, or is older than this package; "
            "run `pgqueue db upgrade`"
        )
    return None


_MISUSE: dict[str, str | None] = {
    # class name: what the user did. These have no SQLSTATE: the library itself refuses.
    "PipelineAborted": "the pipeline was aborted by an earlier error: sync it and roll back first",
    "PendingRollbackError": ABORTED,
    "TransactionManagementError": ABORTED,
    "ResourceClosedError": "the connection is closed",
    "MissingGreenlet": (
        "a synchronous Session or Connection of an async engine: pass the AsyncSession or "
        "AsyncConnection itself, and await the call"
    ),
    "UnboundExecutionError": (
        "the Session has no engine for a plain SQL statement (it is bound per mapper): pass "
        "session.connection(bind_arguments={'mapper': Model})"
    ),
    "AsyncContextNotStarted": "the connection was never opened: `async with engine.begin() as connection:`",
    # the rest of SQLAlchemy's complaints about the state of a Session or Connection, in its own words
    "InvalidRequestError": None,
}


def _without_state(error: BaseException) -> errors.PgqueueError | None:
    names = {kind.__name__ for source in _sources(error) for kind in type(source).__mro__}
    text = _message(error)
    for name, remedy in _MISUSE.items():
        if name in names:
            return errors.UnusableConnection(remedy or text)
    if "released back to the pool" in text:
        return errors.UnusableConnection("the connection has been released back to its pool")
    if "another operation is in progress" in text or "another command is already in progress" in text:
        return errors.UnusableConnection(
            "the connection is busy with another statement: it carries one at a time"
        )
    if isinstance(error, UnicodeEncodeError):
        return errors.UnusableConnection(
            f"the connection's client_encoding cannot carry the job ({text}): set it to UTF8"
        )
    if "OperationalError" in names:
        return errors.DatabaseUnavailable(text)
    if getattr(error, "connection_invalidated", False) or "connection is closed" in text:
        return errors.DatabaseUnavailable(text)
    return None


def _sources(error: BaseException) -> list[BaseException]:
    """`error` and the errors that its library wraps in it, outermost first; none for another's error.

    Hazard: a handler may raise an error of its own `from` a database's, or one of sqlite3's that is also
    called OperationalError. Neither says anything about our server.
    """
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and len(found) < 4 and type(current).__module__.partition(".")[0] in _LIBRARIES:
        found.append(current)
        inner: Any = getattr(current, "orig", None) or current.__cause__
        current = inner if isinstance(inner, BaseException) else None
    return found


def _message(error: BaseException) -> str:
    """The server's primary message in one line, without a library's additions."""
    for source in reversed(_sources(error)):
        for text in (
            getattr(getattr(source, "diag", None), "message_primary", None),
            getattr(source, "message", None),
        ):
            if isinstance(text, str) and text:
                return text
    inner = [error, *_sources(error)][-1]
    return (str(inner) or type(inner).__name__).strip().splitlines()[0]
