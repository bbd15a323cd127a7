"""replays: who asked for one, what came of it, and who a quarantined message is from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Step forward."""
    op.create_table(
        "replays",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("asked", sa.String(), nullable=False),
        sa.Column("ranges", sa.String(), nullable=False),
        sa.Column("requested_by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_replays_state_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_replays_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replays")),
    )
    op.create_index(op.f("ix_replays_owner"), "replays", ["owner"], unique=False)
    op.create_index("ix_replays_topic_asked", "replays", ["topic", "asked"], unique=False)
    op.add_column("handled_positions", sa.Column("replay_id", sa.String(), nullable=True))
    op.add_column("quarantine", sa.Column("sender", sa.String(), server_default=sa.text("''"), nullable=False))
    op.add_column("quarantine", sa.Column("attempts", sa.Integer(), server_default="0", nullable=False))
    op.add_column("quarantine", sa.Column("last_attempt_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("quarantine", sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("quarantine", sa.Column("decided_by", sa.String(), nullable=True))
    op.add_column("quarantine", sa.Column("decision", sa.String(), nullable=True))
    # Whose a message is stands in its position already.
    op.execute(
        "UPDATE quarantine SET sender = COALESCE((SELECT substr(handled_positions.owner, 14) FROM handled_positions "
        "WHERE handled_positions.topic = quarantine.topic AND handled_positions.log_id = quarantine.log_id "
        'AND handled_positions."partition" = quarantine."partition" '
        "AND handled_positions.position = quarantine.position "
        "AND handled_positions.owner LIKE 'organisation:%'), '')"
    )
