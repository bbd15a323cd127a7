"""what is told of a visit after its alert: the person left, although more was told of its end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"

KINDS = "kind IN ('left_before_treatment', 'admitted', 'transferred', 'died', 'cancelled', 'still_here', 'left')"
COLUMNS = "id, owner, alert_id, kind, is_urgent, raised_at"


def upgrade() -> None:
    """Step forward."""
    if op.get_bind().dialect.name == "sqlite":
        _make_notices_anew()
        return
    op.drop_constraint(op.f("ck_alert_notices_kind_known"), "alert_notices", type_="check")
    op.create_check_constraint(op.f("ck_alert_notices_kind_known"), "alert_notices", KINDS)


def _make_notices_anew() -> None:
    """SQLite cannot change a constraint. Nothing leads to notices."""
    op.execute(f"CREATE TEMPORARY TABLE notices_kept AS SELECT {COLUMNS} FROM alert_notices")  # noqa: S608 - a constant
    op.drop_table("alert_notices")
    op.create_table(
        "alert_notices",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("alert_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("is_urgent", sa.Boolean(), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(KINDS, name=op.f("ck_alert_notices_kind_known")),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"], name=op.f("fk_alert_notices_alert_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_alert_notices_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_notices")),
    )
    op.create_index(op.f("ix_alert_notices_alert_id"), "alert_notices", ["alert_id"], unique=False)
    op.execute(f"INSERT INTO alert_notices ({COLUMNS}) SELECT {COLUMNS} FROM notices_kept")  # noqa: S608 - a constant
    op.execute("DROP TABLE notices_kept")
