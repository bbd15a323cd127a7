"""whose place is withheld: entries, and the alerts and doubts that rest on them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Step forward. What PDS has said of restrictions until now is taken over."""
    for name in ("list_entries", "alerts", "reviews"):
        op.add_column(name, sa.Column("is_restricted", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute(
        "UPDATE list_entries SET is_restricted = TRUE WHERE nhs_index IN (SELECT e.nhs_index FROM list_entries e "
        "JOIN entry_traces t ON t.entry_id = e.id WHERE t.state = 'restricted')"
    )
    op.execute(
        "UPDATE alerts SET is_restricted = TRUE WHERE id IN (SELECT g.alert_id FROM alert_entries g "
        "JOIN list_entries e ON e.id = g.entry_id WHERE e.is_restricted)"
    )
    op.execute(
        "UPDATE reviews SET is_restricted = TRUE WHERE entry_id IN (SELECT id FROM list_entries WHERE is_restricted)"
    )
