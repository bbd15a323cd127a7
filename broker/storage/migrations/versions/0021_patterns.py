"""rules for patterns that an authority words and switches on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    """Step forward."""
    op.create_table(
        "pattern_rules",
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("count_min", sa.Integer(), nullable=False),
        sa.Column("window_h", sa.Integer(), nullable=False),
        sa.Column("words", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("previewed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_by", sa.String(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('visits', 'sites', 'left_before_treatment')", name=op.f("ck_pattern_rules_kind_known")
        ),
        sa.CheckConstraint("state IN ('draft', 'on', 'off')", name=op.f("ck_pattern_rules_state_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_pattern_rules_owner")),
        sa.PrimaryKeyConstraint("authority", "kind", "version", name=op.f("pk_pattern_rules")),
    )
