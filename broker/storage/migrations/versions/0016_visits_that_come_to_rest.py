"""visits of which nothing is heard any more come to rest, and another visit may begin under their number."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Step forward."""
    op.add_column("visits", sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("visits", sa.Column("continued_as", sa.String(), nullable=True))
    under_way = sa.text("closed_at IS NULL")
    op.create_index(
        "ix_visits_under_way", "visits", ["heard_at"], unique=False, postgresql_where=under_way, sqlite_where=under_way
    )


def downgrade() -> None:
    """Step back: every visit counts as under way again."""
    op.drop_index("ix_visits_under_way", table_name="visits")
    for column in ("continued_as", "closed_at"):
        op.drop_column("visits", column)
