"""households as authorities record them, the pattern that goes by them, and accesses whose place is withheld; replies that were seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

KINDS = "kind IN ('visits', 'sites', 'left_before_treatment', 'sibling_visits')"


def upgrade() -> None:
    """Step forward. Entries have no household until their authority sends one."""
    op.add_column("list_entries", sa.Column("household_index", sa.LargeBinary(), nullable=True))
    op.create_index(op.f("ix_list_entries_household_index"), "list_entries", ["household_index"], unique=False)
    op.add_column("accesses", sa.Column("is_withheld", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("replies", sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("replies", sa.Column("seen_by", sa.String(), nullable=True))
    with op.batch_alter_table("pattern_rules") as rules:
        rules.drop_constraint(op.f("ck_pattern_rules_kind_known"), type_="check")
        rules.create_check_constraint(op.f("ck_pattern_rules_kind_known"), KINDS)
