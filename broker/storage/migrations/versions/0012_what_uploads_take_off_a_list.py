"""how many entries each upload took off a list: many small files are held like a large one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Step forward."""
    op.add_column("list_uploads", sa.Column("entries_taken", sa.Integer(), server_default="0", nullable=False))
