"""Alembic's environment: no ini file, no models, only the connection that `pgqueue.migrate` passes in.

The transaction, its locks and time-outs are `pgqueue.migrate`'s; it runs one revision a transaction.
"""

from __future__ import annotations

from typing import cast

import sqlalchemy
from alembic import context
from alembic.util import CommandError

if context.is_offline_mode():
    raise CommandError("the SQL of the migrations is printed by `pgqueue db sql`")

connection = cast(sqlalchemy.Connection, context.config.attributes["connection"])
context.configure(
    connection=connection,
    version_table="alembic_version",
    version_table_schema="pgqueue",
    # The version table lies in the schema that the first revision makes, so that revision makes both:
    # alembic would make the table before it, where there is no schema yet.
    dont_mutate=True,
)
with context.begin_transaction():
    context.run_migrations()

if not context.get_context().get_current_heads():
    # Back at the start. The version table had to outlive the last downgrade, which struck its row out.
    connection.exec_driver_sql("drop schema if exists pgqueue cascade")
