"""persons' messages and merges, where visits stand, and what is told after an alert."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Step forward. Where older visits stand is known again with their next message."""
    op.add_column("sites", sa.Column("registers_by", sa.String(), server_default=sa.text("''"), nullable=False))
    op.add_column("alerts", sa.Column("told_state", sa.String(), nullable=True))
    op.add_column("alerts", sa.Column("notices", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("visits", sa.Column("state", sa.String(), nullable=True))
    op.add_column("visits", sa.Column("joined_into", sa.String(), nullable=True))
    op.create_table(
        "person_messages",
        sa.Column("marker", sa.LargeBinary(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("patient_index", sa.LargeBinary(), nullable=False),
        sa.Column("former_index", sa.LargeBinary(), nullable=True),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_person_messages_owner")),
        sa.PrimaryKeyConstraint("marker", name=op.f("pk_person_messages")),
    )
    for column in ("patient_index", "former_index", "received_at"):
        op.create_index(op.f(f"ix_person_messages_{column}"), "person_messages", [column], unique=False)
    op.create_table(
        "alert_notices",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("alert_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("is_urgent", sa.Boolean(), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "kind IN ('left_before_treatment', 'admitted', 'transferred', 'died', 'cancelled', 'still_here')",
            name=op.f("ck_alert_notices_kind_known"),
        ),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"], name=op.f("fk_alert_notices_alert_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_alert_notices_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_notices")),
    )
    op.create_index(op.f("ix_alert_notices_alert_id"), "alert_notices", ["alert_id"], unique=False)


def downgrade() -> None:
    """Step back: what was told after alerts is forgotten, and joined visits stay joined."""
    for name in ("alert_notices", "person_messages"):
        op.drop_table(name)
    for table, column in (
        ("visits", "joined_into"),
        ("visits", "state"),
        ("alerts", "notices"),
        ("alerts", "told_state"),
        ("sites", "registers_by"),
    ):
        op.drop_column(table, column)
