"""plans that ended and entries taken back: who is told of them, what was withdrawn, and the mother of a newborn."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Step forward."""
    op.add_column(
        "authorities",
        sa.Column("alerts_for_ended_plans", sa.Boolean(), server_default=sa.true(), nullable=False),
    )
    op.add_column("visits", sa.Column("mother_index", sa.LargeBinary(), nullable=True))
    op.create_index(op.f("ix_visits_mother_index"), "visits", ["mother_index"], unique=False)
    op.add_column("visits", sa.Column("corrections", sa.Integer(), server_default="0", nullable=False))
    op.add_column("alerts", sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True))
