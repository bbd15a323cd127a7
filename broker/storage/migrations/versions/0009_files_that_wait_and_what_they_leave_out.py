"""files that wait for a person, what full lists left out, and who may send a list."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Step forward."""
    op.add_column("authorities", sa.Column("list_version", sa.Integer(), server_default="0", nullable=False))
    op.add_column("authorities", sa.Column("list_credential_digest", sa.LargeBinary(), nullable=True))
    # Written out: SQLite takes a new column with its constraint, and no constraint by itself.
    op.execute(
        "ALTER TABLE list_uploads ADD COLUMN kind VARCHAR DEFAULT 'changes' NOT NULL "
        "CONSTRAINT ck_list_uploads_kind_known CHECK (kind IN ('changes', 'full'))"
    )
    op.add_column("list_uploads", sa.Column("confirmed_by", sa.String(), nullable=True))
    op.create_index("ix_list_uploads_authority_file_hash", "list_uploads", ["authority", "file_hash"], unique=False)
    op.create_index("ix_list_entries_authority_id", "list_entries", ["authority", "id"], unique=False)
    _make_held_uploads()
    _make_differences()


def _make_held_uploads() -> None:
    op.create_table(
        "held_uploads",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("file_hash", sa.String(), nullable=False),
        sa.Column("uploaded_by", sa.String(), nullable=False),
        sa.Column("uploaded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rows_good", sa.Integer(), nullable=False),
        sa.Column("rows_refused", sa.Integer(), nullable=False),
        sa.Column("ends", sa.Integer(), nullable=False),
        sa.Column("deletes", sa.Integer(), nullable=False),
        sa.Column("current", sa.Integer(), nullable=False),
        sa.Column("held_by", sa.String(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("due_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decision", sa.String(), nullable=True),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_held_uploads_state_known")),
        sa.CheckConstraint("kind IN ('changes', 'full')", name=op.f("ck_held_uploads_kind_known")),
        sa.CheckConstraint("format IN ('csv', 'json', 'xml')", name=op.f("ck_held_uploads_format_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_held_uploads_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_held_uploads")),
    )
    op.create_index(op.f("ix_held_uploads_owner"), "held_uploads", ["owner"], unique=False)
    op.create_index("ix_held_uploads_state_due_by", "held_uploads", ["state", "due_by"], unique=False)
    op.create_table(
        "held_upload_parts",
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_held_upload_parts_owner")),
        sa.ForeignKeyConstraint(["upload_id"], ["held_uploads.id"], name=op.f("fk_held_upload_parts_upload_id")),
        sa.PrimaryKeyConstraint("upload_id", "number", name=op.f("pk_held_upload_parts")),
    )
    op.create_index(op.f("ix_held_upload_parts_owner"), "held_upload_parts", ["owner"], unique=False)


def _make_differences() -> None:
    op.create_table(
        "list_differences",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("entry_id", sa.String(), nullable=False),
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("held_by", sa.String(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decision", sa.String(), nullable=True),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_list_differences_state_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_list_differences_owner")),
        sa.ForeignKeyConstraint(["upload_id"], ["list_uploads.id"], name=op.f("fk_list_differences_upload_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_list_differences")),
    )
    op.create_index(op.f("ix_list_differences_owner"), "list_differences", ["owner"], unique=False)
    op.create_index("ix_list_differences_state_due_by", "list_differences", ["state", "due_by"], unique=False)
