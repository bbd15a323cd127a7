"""identities and coverage: what PDS says of every entry, numbers that were superseded, and who is not covered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Step forward."""
    op.add_column("list_entries", sa.Column("dead_at", sa.DateTime(timezone=True), nullable=True))
    _create_entry_traces()
    _create_number_aliases()
    _create_coverage_items()
    op.create_table(
        "list_confirmations",
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_list_confirmations_owner")),
        sa.PrimaryKeyConstraint("authority", "confirmed_at", name=op.f("pk_list_confirmations")),
    )
    op.create_table(
        "coverage_days",
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("counted_on", sa.Date(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("covered", sa.Integer(), nullable=False),
        sa.Column("unverified", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_coverage_days_owner")),
        sa.PrimaryKeyConstraint("authority", "counted_on", name=op.f("pk_coverage_days")),
    )


def _create_entry_traces() -> None:
    op.create_table(
        "entry_traces",
        sa.Column("entry_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("identity", sa.LargeBinary(), nullable=False),
        sa.Column("nhs_index", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("code", sa.String(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('unverified', 'verified', 'superseded', 'restricted', 'invalidated', 'mismatch', 'not_found')",
            name=op.f("ck_entry_traces_state_known"),
        ),
        sa.ForeignKeyConstraint(["entry_id"], ["list_entries.id"], name=op.f("fk_entry_traces_entry_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_entry_traces_owner")),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("pk_entry_traces")),
    )
    op.create_index(op.f("ix_entry_traces_owner"), "entry_traces", ["owner"], unique=False)


def _create_number_aliases() -> None:
    op.create_table(
        "number_aliases",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("old_index", sa.LargeBinary(), nullable=False),
        sa.Column("new_index", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("undone_by", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_number_aliases_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_number_aliases")),
    )
    op.create_index(op.f("ix_number_aliases_owner"), "number_aliases", ["owner"], unique=False)
    op.create_index(op.f("ix_number_aliases_old_index"), "number_aliases", ["old_index"], unique=False)
    op.create_index(op.f("ix_number_aliases_new_index"), "number_aliases", ["new_index"], unique=False)


def _create_coverage_items() -> None:
    op.create_table(
        "coverage_items",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("entry_id", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("held_by", sa.String(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("noted_by", sa.String(), nullable=True),
        sa.CheckConstraint(
            "reason IN ('invalidated', 'mismatch', 'not_found', 'superseded', 'no_route', 'unverified', 'restricted', "
            "'list_stale')",
            name=op.f("ck_coverage_items_reason_known"),
        ),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_coverage_items_state_known")),
        sa.ForeignKeyConstraint(["entry_id"], ["list_entries.id"], name=op.f("fk_coverage_items_entry_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_coverage_items_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_coverage_items")),
    )
    op.create_index(op.f("ix_coverage_items_entry_id"), "coverage_items", ["entry_id"], unique=False)
    op.create_index("ix_coverage_items_owner_state", "coverage_items", ["owner", "state"], unique=False)
    op.create_index("ix_coverage_items_state_due_by", "coverage_items", ["state", "due_by"], unique=False)
