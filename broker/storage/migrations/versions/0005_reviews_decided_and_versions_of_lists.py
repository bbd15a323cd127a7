"""reviews that people decide, blocks for whoever has no number, versions of lists, and alerts that were missed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Step forward. What a list said before is not known: its history begins with what stands on it."""
    op.add_column(
        "list_entries", sa.Column("blocks_version", sa.Integer(), server_default=sa.text("1"), nullable=False)
    )
    op.create_index(op.f("ix_list_entries_blocks_version"), "list_entries", ["blocks_version"], unique=False)
    op.add_column("alerts", sa.Column("withdrawn_rule", sa.String(), nullable=True))
    op.execute("UPDATE alerts SET withdrawn_rule = 'entry_taken_back' WHERE withdrawn_at IS NOT NULL")
    op.add_column("reviews", sa.Column("decision_sealed", sa.LargeBinary(), nullable=True))
    _create_visit_blocks()
    _create_list_versions()
    _create_missed_alerts()


def _create_visit_blocks() -> None:
    op.create_table(
        "visit_blocks",
        sa.Column("block", sa.LargeBinary(), nullable=False),
        sa.Column("visit_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_visit_blocks_owner")),
        sa.ForeignKeyConstraint(["visit_id"], ["visits.id"], name=op.f("fk_visit_blocks_visit_id")),
        sa.PrimaryKeyConstraint("block", "visit_id", name=op.f("pk_visit_blocks")),
    )
    op.create_index(op.f("ix_visit_blocks_visit_id"), "visit_blocks", ["visit_id"], unique=False)


def _create_list_versions() -> None:
    op.create_table(
        "list_versions",
        sa.Column("entry_id", sa.String(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("nhs_index", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("known_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("known_until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_list_versions_owner")),
        sa.PrimaryKeyConstraint("entry_id", "sequence", name=op.f("pk_list_versions")),
    )
    op.create_index(op.f("ix_list_versions_nhs_index"), "list_versions", ["nhs_index"], unique=False)
    op.execute(
        "INSERT INTO list_versions (entry_id, sequence, owner, authority, nhs_index, sealed, upload_id, known_from) "
        "SELECT id, 1, owner, authority, nhs_index, sealed, upload_id, changed_at FROM list_entries"
    )


def _create_missed_alerts() -> None:
    op.create_table(
        "missed_alerts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("visit_id", sa.String(), nullable=False),
        sa.Column("entry_id", sa.String(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("held_by", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("visited_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("alert_id", sa.String(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("decision", sa.String(), nullable=True),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_missed_alerts_state_known")),
        sa.CheckConstraint(
            "cause IN ('listed_after', 'list_number_corrected', 'list_row_corrected', 'visit_corrected', "
            "'unexplained')",
            name=op.f("ck_missed_alerts_cause_known"),
        ),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_missed_alerts_owner")),
        sa.ForeignKeyConstraint(["visit_id"], ["visits.id"], name=op.f("fk_missed_alerts_visit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_missed_alerts")),
        sa.UniqueConstraint("visit_id", "authority", name=op.f("uq_missed_alerts_visit_id_authority")),
    )
    op.create_index("ix_missed_alerts_owner_state", "missed_alerts", ["owner", "state"], unique=False)
