"""a task for the hub: the department has taken back what was released."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"

KINDS = (
    "kind IN ('look_up', 'tell_officer', 'no_route', 'ring_school', 'release', 'contradiction', 'conflict', "
    "'disclosed', 'taken_back')"
)
COLUMNS = "id, owner, incident_id, kind, urn, sealed, held_by, level, state, opened_at, due_by, decided_at, decided_by, decision"


def upgrade() -> None:
    """Step forward."""
    if op.get_bind().dialect.name == "sqlite":
        _make_tasks_anew()
        return
    op.drop_constraint(op.f("ck_encompass_tasks_kind_known"), "encompass_tasks", type_="check")
    op.create_check_constraint(op.f("ck_encompass_tasks_kind_known"), "encompass_tasks", KINDS)


def _make_tasks_anew() -> None:
    """SQLite cannot change a constraint. Nothing leads to tasks."""
    op.execute(f"CREATE TEMPORARY TABLE tasks_kept AS SELECT {COLUMNS} FROM encompass_tasks")  # noqa: S608 - a constant
    op.drop_table("encompass_tasks")
    op.create_table(
        "encompass_tasks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("incident_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("urn", sa.String(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("held_by", sa.String(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("decision", sa.String(), nullable=True),
        sa.CheckConstraint(KINDS, name=op.f("ck_encompass_tasks_kind_known")),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_encompass_tasks_state_known")),
        sa.ForeignKeyConstraint(["incident_id"], ["incidents.id"], name=op.f("fk_encompass_tasks_incident_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_encompass_tasks_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_encompass_tasks")),
    )
    op.create_index(op.f("ix_encompass_tasks_incident_id"), "encompass_tasks", ["incident_id"], unique=False)
    op.create_index("ix_encompass_tasks_owner_state", "encompass_tasks", ["owner", "state"], unique=False)
    op.create_index("ix_encompass_tasks_state_due_by", "encompass_tasks", ["state", "due_by"], unique=False)
    op.execute(f"INSERT INTO encompass_tasks ({COLUMNS}) SELECT {COLUMNS} FROM tasks_kept")  # noqa: S608 - a constant
    op.execute("DROP TABLE tasks_kept")
