"""every version of a notice as it was sent, with its deadline."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Step forward."""
    op.create_table(
        "notice_sendings",
        sa.Column("notice_id", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("due_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["notice_id"], ["school_notices.id"], name=op.f("fk_notice_sendings_notice_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_notice_sendings_owner")),
        sa.PrimaryKeyConstraint("notice_id", "version", name=op.f("pk_notice_sendings")),
    )
    op.create_index(op.f("ix_notice_sendings_owner"), "notice_sendings", ["owner"], unique=False)
    op.create_index(op.f("ix_incidents_reported_at"), "incidents", ["reported_at"], unique=False)
