"""Alembic's entry: runs the steps on the connection it is given."""

from __future__ import annotations

from alembic import context

from broker.storage import tables
from broker.storage.migrations import schema

assert tables
connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=schema(), compare_type=True, render_as_batch=False)
with context.begin_transaction():
    context.run_migrations()
