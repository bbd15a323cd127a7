"""blocks under which pupils are found who are written down a little differently; a list loaded anew fills them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Step forward."""
    op.create_table(
        "pupil_blocks",
        sa.Column("block", sa.LargeBinary(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("pupil_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["authority", "pupil_id"],
            ["pupils.authority", "pupils.pupil_id"],
            name=op.f("fk_pupil_blocks_authority"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_pupil_blocks_owner")),
        sa.PrimaryKeyConstraint("block", "authority", "pupil_id", name=op.f("pk_pupil_blocks")),
    )
    op.drop_index(op.f("ix_pupils_name_index"), "pupils")
    op.drop_column("pupils", "name_index")
