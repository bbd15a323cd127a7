"""lanes of text messages; where people who sign in are told to, and what they were told of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"

CHANNELS = "channel IN ('webhook', 'hl7v2_reply', 'fhir_reply', 'topic', 'email', 'text_message')"
COLUMNS = "id, channel, owner, contact, next_due_at, leased_by, leased_until, epoch"


def upgrade() -> None:
    """Step forward."""
    op.add_column("logins", sa.Column("reach_sealed", sa.LargeBinary(), nullable=True))
    op.create_table(
        "nudges",
        sa.Column("item", sa.String(), nullable=False),
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("delivery", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("nudged_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_nudges_owner")),
        sa.PrimaryKeyConstraint("item", "level", "delivery", name=op.f("pk_nudges")),
    )
    if op.get_bind().dialect.name == "sqlite":
        _make_lanes_anew()
        return
    op.drop_constraint(op.f("ck_lanes_channel_known"), "lanes", type_="check")
    op.create_check_constraint(op.f("ck_lanes_channel_known"), "lanes", CHANNELS)


def _make_lanes_anew() -> None:
    """SQLite cannot change a constraint. Deliveries lead to lanes: that is checked when all is done."""
    op.execute("PRAGMA defer_foreign_keys=ON")
    op.execute(f"CREATE TEMPORARY TABLE lanes_kept AS SELECT {COLUMNS} FROM lanes")  # noqa: S608 - a constant
    # Emptied first: rows that go with their table would count as missing although they come back.
    op.execute("DELETE FROM lanes")
    op.drop_table("lanes")
    op.create_table(
        "lanes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("channel", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("contact", sa.String(), nullable=True),
        sa.Column("next_due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("leased_by", sa.String(), nullable=True),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.CheckConstraint(CHANNELS, name=op.f("ck_lanes_channel_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_lanes_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lanes")),
    )
    op.create_index(op.f("ix_lanes_next_due_at"), "lanes", ["next_due_at"], unique=False)
    op.create_index(op.f("ix_lanes_owner"), "lanes", ["owner"], unique=False)
    op.execute(f"INSERT INTO lanes ({COLUMNS}) SELECT {COLUMNS} FROM lanes_kept")  # noqa: S608 - a constant
    op.execute("DROP TABLE lanes_kept")
