"""what is to be asked of messages that a provider took; who could not be reached, since when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    """Step forward."""
    op.create_table(
        "receipts",
        sa.Column("delivery", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ask_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["delivery"], ["deliveries.id"], name=op.f("fk_receipts_delivery")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_receipts_owner")),
        sa.PrimaryKeyConstraint("delivery", name=op.f("pk_receipts")),
    )
    op.create_index(op.f("ix_receipts_ask_at"), "receipts", ["ask_at"], unique=False)
    op.add_column("lanes", sa.Column("unreached_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("lanes", sa.Column("unreached_code", sa.String(), nullable=True))
