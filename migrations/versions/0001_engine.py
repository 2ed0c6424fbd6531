"""The engine: tables, functions, views and grants as they were at the first release."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the change, then says again who may call what."""
    _run(".sql")
    _run(".grants.sql")


def downgrade() -> None:
    """Takes the change back."""
    _run(".down.sql")


def _run(suffix: str) -> None:
    # By psycopg itself: SQLAlchemy would read every `:` of the SQL as a parameter.
    op.get_bind().connection.driver_connection.execute(Path(__file__).with_suffix(suffix).read_bytes())
