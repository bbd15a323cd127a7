"""lists that land in slices, entries that a file lists twice, and when a file last repeated an entry."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Step forward."""
    op.add_column("list_entries", sa.Column("said_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("held_uploads", sa.Column("doubles", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "list_landings",
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("uploaded_by", sa.String(), nullable=False),
        sa.Column("uploaded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('changes', 'full')", name=op.f("ck_list_landings_kind_known")),
        sa.CheckConstraint("format IN ('csv', 'json', 'xml')", name=op.f("ck_list_landings_format_known")),
        sa.ForeignKeyConstraint(["upload_id"], ["list_uploads.id"], name=op.f("fk_list_landings_upload_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_list_landings_owner")),
        sa.PrimaryKeyConstraint("upload_id", name=op.f("pk_list_landings")),
    )
    op.create_index(op.f("ix_list_landings_owner"), "list_landings", ["owner"], unique=False)
    op.create_table(
        "list_landing_parts",
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["list_landings.upload_id"], name=op.f("fk_list_landing_parts_upload_id")
        ),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_list_landing_parts_owner")),
        sa.PrimaryKeyConstraint("upload_id", "number", name=op.f("pk_list_landing_parts")),
    )
    op.create_index(op.f("ix_list_landing_parts_owner"), "list_landing_parts", ["owner"], unique=False)
