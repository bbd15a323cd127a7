"""on which days a sender marked messages as tests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Step forward."""
    op.create_table(
        "test_feeds",
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("seen_on", sa.Date(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_test_feeds_owner")),
        sa.PrimaryKeyConstraint("sender", "seen_on", name=op.f("pk_test_feeds")),
    )


def downgrade() -> None:
    """Step back: who marked messages as tests is forgotten."""
    op.drop_table("test_feeds")
