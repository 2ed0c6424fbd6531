"""What SQLAlchemy's sessions keep in Python: written out before others look, read anew after others have written."""

from __future__ import annotations

import sys
from typing import Any


async def flush(target: Any) -> None:
    """Writes what a session has pending, as the commit would for which a worker waits."""
    session = session_of(target)
    if session is None:
        return
    from sqlalchemy.orm import Session

    if isinstance(session, Session):
        session.flush()
    else:
        await session.flush()


def expire(target: Any) -> None:
    """Lets a session read its objects anew, as after a commit, unless it is told to keep them then."""
    session = session_of(target)
    if session is not None:
        sync = getattr(session, "sync_session", session)
        if sync.expire_on_commit:
            sync.expire_all()


def session_of(target: Any) -> Any | None:
    """The `Session` or `AsyncSession` that `target` is, or stands for; None when it is neither."""
    if "sqlalchemy" not in sys.modules:
        return None
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(target, scoped_session | async_scoped_session):
        target = target.registry()
    return target if isinstance(target, Session | AsyncSession) else None
