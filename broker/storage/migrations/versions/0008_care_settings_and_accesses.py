"""care settings of sites, office hours of authorities, and who looked at whose record."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Step forward."""
    hours, setting = sa.text("'Mon-Fri 09:00-17:00'"), sa.text("'not_classified'")
    op.add_column("authorities", sa.Column("office_hours", sa.String(), server_default=hours, nullable=False))
    op.add_column("sites", sa.Column("care_setting", sa.String(), server_default=setting, nullable=False))
    op.add_column("sites", sa.Column("notices_suppressed", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "accesses",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("nhs_index", sa.LargeBinary(), nullable=False),
        sa.Column("author_index", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_unscheduled", sa.Boolean(), nullable=False),
        sa.Column("is_counted", sa.Boolean(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_accesses_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accesses")),
    )
    op.create_index("ix_accesses_nhs_index_at", "accesses", ["nhs_index", "at"], unique=False)
