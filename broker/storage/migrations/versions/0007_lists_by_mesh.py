"""files that come by MESH: claimed, answered, and kept for a person where they cannot be read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Step forward."""
    op.create_table(
        "mesh_files",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("answer_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("answer_due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("answer_attempts", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held_by", sa.String(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("kept_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("handled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("decision", sa.String(), nullable=True),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_mesh_files_state_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_mesh_files_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mesh_files")),
    )
    op.create_index(op.f("ix_mesh_files_answer_due_at"), "mesh_files", ["answer_due_at"], unique=False)
    op.create_index(op.f("ix_mesh_files_owner"), "mesh_files", ["owner"], unique=False)
    op.create_index("ix_mesh_files_state_due_by", "mesh_files", ["state", "due_by"], unique=False)
