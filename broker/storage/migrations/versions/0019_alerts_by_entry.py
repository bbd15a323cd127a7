"""an index from a list entry to the alerts that rest on it: whoever asks about a person is told who was told."""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Step forward."""
    op.create_index(op.f("ix_alert_entries_entry_id"), "alert_entries", ["entry_id"], unique=False)
