"""lists that land in slices, entries that a file lists twice, and when a file last repeated an entry."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0012"


def upgrade() -> None:
    """Step forward."""
    op.add_column("list_entries", sa.Column("said_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("held_uploads", sa.Column("doubles", sa.Integer(), server_default="0", nullable=False))
    op.add_column("held_uploads", sa.Column("landing_upload_id", sa.String(), nullable=True))
    op.add_column("held_uploads", sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True))
