"""why a list cannot land, how many entries can alert, and indexes less that nobody asked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    """Step forward."""
    op.add_column("list_landings", sa.Column("problem", sa.String(), server_default=sa.text("''"), nullable=False))
    op.add_column("list_landings", sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("coverage_days", sa.Column("can_alert", sa.Integer(), nullable=True))
    # Where nothing is traced, every entry's trace is due for ever: other kinds must not be looked for among them.
    op.drop_index(op.f("ix_jobs_due_at"), table_name="jobs")
    op.create_index("ix_jobs_kind_state_due_at", "jobs", ["kind", "state", "due_at"], unique=False)
    for table in ("entry_blocks", "entry_traces", "jobs"):
        op.drop_index(op.f(f"ix_{table}_owner"), table_name=table)
    op.drop_index(op.f("ix_list_entries_nhs_index"), table_name="list_entries")
    op.create_index("ix_list_entries_nhs_index_owner", "list_entries", ["nhs_index", "owner"], unique=False)
