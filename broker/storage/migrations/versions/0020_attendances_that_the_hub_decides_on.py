"""Attendances that speak of domestic abuse: what the hub sees of them, and how and why it released them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Step forward."""
    op.add_column("incidents", sa.Column("referral_sealed", sa.LargeBinary(), nullable=True))
    op.add_column("incidents", sa.Column("released_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("incidents", sa.Column("released_gateway", sa.String(), nullable=True))
    op.add_column("incidents", sa.Column("release_sealed", sa.LargeBinary(), nullable=True))
    op.add_column("incidents", sa.Column("authoriser_sealed", sa.LargeBinary(), nullable=True))
