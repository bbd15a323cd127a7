"""Operation Encompass: forces, schools and their people, incidents, notices and what a person has to do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Step forward."""
    op.create_table(
        "establishments",
        sa.Column("urn", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("merged_into", sa.String(), nullable=True),
        sa.Column("starts_at_local", sa.String(), nullable=True),
        sa.Column("office_telephone", sa.String(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('school', 'independent', 'alternative_provision', 'fe_college', '16_19_academy')",
            name=op.f("ck_establishments_kind_known"),
        ),
        sa.CheckConstraint("status IN ('open', 'closed', 'merged')", name=op.f("ck_establishments_status_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_establishments_owner")),
        sa.PrimaryKeyConstraint("urn", name=op.f("pk_establishments")),
    )
    op.create_index(op.f("ix_establishments_authority"), "establishments", ["authority"], unique=False)
    op.create_index(op.f("ix_establishments_owner"), "establishments", ["owner"], unique=False)
    op.create_table(
        "forces",
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("statement", sa.String(), nullable=False),
        sa.Column("withdrawn_statement", sa.String(), nullable=False),
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("under_school_age", sa.String(), nullable=False),
        sa.Column("confirmed_days_max", sa.Integer(), nullable=False),
        sa.Column("training_required", sa.Boolean(), nullable=False),
        sa.Column("peers", sa.String(), nullable=False),
        sa.Column("credential_digest", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("profile IN ('minimal', 'standard', 'full')", name=op.f("ck_forces_profile_known")),
        sa.CheckConstraint("release IN ('automatic', 'coordinator')", name=op.f("ck_forces_release_known")),
        sa.CheckConstraint(
            "under_school_age IN ('nobody', 'authority_officer')", name=op.f("ck_forces_under_school_age_known")
        ),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_forces_owner")),
        sa.PrimaryKeyConstraint("code", name=op.f("pk_forces")),
    )
    op.create_index(op.f("ix_forces_owner"), "forces", ["owner"], unique=False)
    op.create_table(
        "incidents",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("force", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("is_withdrawn", sa.Boolean(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("found_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("released_version", sa.Integer(), nullable=True),
        sa.Column("released_by", sa.String(), nullable=True),
        sa.Column("suppressed_by", sa.String(), nullable=True),
        sa.Column("suppressed_reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_incidents_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incidents")),
    )
    op.create_index(op.f("ix_incidents_owner"), "incidents", ["owner"], unique=False)
    op.create_index(op.f("ix_incidents_received_at"), "incidents", ["received_at"], unique=False)
    op.create_table(
        "pupils",
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("pupil_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name_index", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_pupils_owner")),
        sa.PrimaryKeyConstraint("authority", "pupil_id", name=op.f("pk_pupils")),
    )
    op.create_index(op.f("ix_pupils_name_index"), "pupils", ["name_index"], unique=False)
    op.create_index(op.f("ix_pupils_owner"), "pupils", ["owner"], unique=False)
    op.create_table(
        "school_days",
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("urn", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("first_on", sa.Date(), nullable=False),
        sa.Column("last_on", sa.Date(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('term', 'holiday', 'inset', 'closure', 'bank_holiday', 'open')",
            name=op.f("ck_school_days_kind_known"),
        ),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_school_days_owner")),
        sa.PrimaryKeyConstraint("authority", "urn", "kind", "first_on", name=op.f("pk_school_days")),
    )
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
        sa.CheckConstraint(
            "kind IN ('look_up', 'tell_officer', 'no_route', 'ring_school', 'release', 'contradiction', 'conflict', 'disclosed')",
            name=op.f("ck_encompass_tasks_kind_known"),
        ),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_encompass_tasks_state_known")),
        sa.ForeignKeyConstraint(["incident_id"], ["incidents.id"], name=op.f("fk_encompass_tasks_incident_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_encompass_tasks_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_encompass_tasks")),
    )
    op.create_index(op.f("ix_encompass_tasks_incident_id"), "encompass_tasks", ["incident_id"], unique=False)
    op.create_index("ix_encompass_tasks_owner_state", "encompass_tasks", ["owner", "state"], unique=False)
    op.create_index("ix_encompass_tasks_state_due_by", "encompass_tasks", ["state", "due_by"], unique=False)
    op.create_table(
        "incident_versions",
        sa.Column("marker", sa.LargeBinary(), nullable=False),
        sa.Column("incident_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("reception", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["incident_id"], ["incidents.id"], name=op.f("fk_incident_versions_incident_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_incident_versions_owner")),
        sa.PrimaryKeyConstraint("marker", name=op.f("pk_incident_versions")),
    )
    op.create_index(op.f("ix_incident_versions_incident_id"), "incident_versions", ["incident_id"], unique=False)
    op.create_table(
        "safeguarding_contacts",
        sa.Column("urn", sa.String(), nullable=False),
        sa.Column("contact_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("confirmed_on", sa.Date(), nullable=True),
        sa.Column("trained_on", sa.Date(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("role IN ('lead', 'deputy', 'office')", name=op.f("ck_safeguarding_contacts_role_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_safeguarding_contacts_owner")),
        sa.ForeignKeyConstraint(["urn"], ["establishments.urn"], name=op.f("fk_safeguarding_contacts_urn")),
        sa.PrimaryKeyConstraint("urn", "contact_id", name=op.f("pk_safeguarding_contacts")),
    )
    op.create_index(op.f("ix_safeguarding_contacts_owner"), "safeguarding_contacts", ["owner"], unique=False)
    op.create_table(
        "school_notices",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("incident_id", sa.String(), nullable=False),
        sa.Column("force", sa.String(), nullable=False),
        sa.Column("urn", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("hold", sa.String(), nullable=True),
        sa.Column("flag", sa.String(), nullable=True),
        sa.Column("calendar_is_assumed", sa.Boolean(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("planned_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("send_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("remind_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reminded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("rung_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_by", sa.String(), nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'held', 'sent', 'acknowledged', 'withdrawn')",
            name=op.f("ck_school_notices_state_known"),
        ),
        sa.ForeignKeyConstraint(["incident_id"], ["incidents.id"], name=op.f("fk_school_notices_incident_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_school_notices_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_school_notices")),
        sa.UniqueConstraint("incident_id", "urn", name=op.f("uq_school_notices_incident_id_urn")),
    )
    op.create_index(op.f("ix_school_notices_force"), "school_notices", ["force"], unique=False)
    op.create_index(op.f("ix_school_notices_next_at"), "school_notices", ["next_at"], unique=False)
    op.create_index("ix_school_notices_owner_state", "school_notices", ["owner", "state"], unique=False)
    op.create_table(
        "school_records",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("notice_id", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("written_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["notice_id"], ["school_notices.id"], name=op.f("fk_school_records_notice_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_school_records_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_school_records")),
    )
    op.create_index(op.f("ix_school_records_notice_id"), "school_records", ["notice_id"], unique=False)
    op.create_index(op.f("ix_school_records_owner"), "school_records", ["owner"], unique=False)
