"""the first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Step forward."""
    op.create_table(
        "handled_markers",
        sa.Column("marker", sa.LargeBinary(), nullable=False),
        sa.Column("handled_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("marker", name=op.f("pk_handled_markers")),
    )
    op.create_table(
        "log_gaps",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("group_name", sa.String(), nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("stored_log_id", sa.String(), nullable=False),
        sa.Column("stored_offset", sa.BigInteger(), nullable=False),
        sa.Column("found_log_id", sa.String(), nullable=False),
        sa.Column("found_first", sa.BigInteger(), nullable=False),
        sa.Column("found_end", sa.BigInteger(), nullable=False),
        sa.Column("noticed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_gaps")),
    )
    op.create_table(
        "owners",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_owners")),
    )
    op.create_table(
        "poison_attempts",
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("log_id", sa.String(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "log_id", "partition", "position", name=op.f("pk_poison_attempts")),
    )
    op.create_table(
        "stored_offsets",
        sa.Column("group_name", sa.String(), nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("log_id", sa.String(), nullable=False),
        sa.Column("first_offset", sa.BigInteger(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("skipped", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("stopped_cleanly", sa.Boolean(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("group_name", "topic", "partition", name=op.f("pk_stored_offsets")),
    )
    op.create_table(
        "audit",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_audit_owner")),
        sa.PrimaryKeyConstraint("owner", "sequence", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_subject"), "audit", ["subject"], unique=False)
    op.create_table(
        "audit_heads",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_audit_heads_owner")),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_audit_heads")),
    )
    op.create_table(
        "authorities",
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("office_telephone", sa.String(), nullable=False),
        sa.Column("emergency_telephone", sa.String(), nullable=False),
        sa.Column("webhook_url", sa.String(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_authorities_owner")),
        sa.PrimaryKeyConstraint("code", name=op.f("pk_authorities")),
    )
    op.create_index(op.f("ix_authorities_owner"), "authorities", ["owner"], unique=False)
    op.create_table(
        "handled_positions",
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("log_id", sa.String(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("marker", sa.LargeBinary(), nullable=False),
        sa.Column("visit_id", sa.String(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("handled_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('alerted', 'no_record', 'updated', 'under_review', 'silent_by_rule', 'ignored', 'quarantined')",
            name=op.f("ck_handled_positions_outcome_known"),
        ),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_handled_positions_owner")),
        sa.PrimaryKeyConstraint("topic", "log_id", "partition", "position", name=op.f("pk_handled_positions")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("barrier", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_jobs_state_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_jobs_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_due_at"), "jobs", ["due_at"], unique=False)
    op.create_index(op.f("ix_jobs_owner"), "jobs", ["owner"], unique=False)
    op.create_table(
        "lanes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("channel", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("next_due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("leased_by", sa.String(), nullable=True),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.CheckConstraint("channel IN ('webhook', 'hl7v2_reply', 'topic')", name=op.f("ck_lanes_channel_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_lanes_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lanes")),
    )
    op.create_index(op.f("ix_lanes_next_due_at"), "lanes", ["next_due_at"], unique=False)
    op.create_index(op.f("ix_lanes_owner"), "lanes", ["owner"], unique=False)
    op.create_table(
        "list_uploads",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("file_hash", sa.String(), nullable=False),
        sa.Column("uploaded_by", sa.String(), nullable=False),
        sa.Column("uploaded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rows_loaded", sa.Integer(), nullable=False),
        sa.Column("rows_refused", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_list_uploads_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_list_uploads")),
    )
    op.create_index(op.f("ix_list_uploads_authority"), "list_uploads", ["authority"], unique=False)
    op.create_index(op.f("ix_list_uploads_owner"), "list_uploads", ["owner"], unique=False)
    op.create_table(
        "logins",
        sa.Column("login", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("rests_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_logins_owner")),
        sa.PrimaryKeyConstraint("login", name=op.f("pk_logins")),
    )
    op.create_index(op.f("ix_logins_owner"), "logins", ["owner"], unique=False)
    op.create_table(
        "quarantine",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("log_id", sa.String(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("held_by", sa.String(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("kept_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_by", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_quarantine_state_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_quarantine_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantine")),
    )
    op.create_index(op.f("ix_quarantine_owner"), "quarantine", ["owner"], unique=False)
    op.create_table(
        "sites",
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("telephone", sa.String(), nullable=True),
        sa.Column("authorities", sa.String(), nullable=False),
        sa.Column("reply_host", sa.String(), nullable=True),
        sa.Column("reply_port", sa.Integer(), nullable=True),
        sa.Column("replies_for_adults", sa.Boolean(), nullable=False),
        sa.Column("peers", sa.String(), nullable=False),
        sa.Column("not_understood", sa.String(), nullable=False),
        sa.Column("credential_digest", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("not_understood IN ('AA', 'AE', 'AR')", name=op.f("ck_sites_not_understood_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_sites_owner")),
        sa.PrimaryKeyConstraint("code", name=op.f("pk_sites")),
    )
    op.create_index(op.f("ix_sites_owner"), "sites", ["owner"], unique=False)
    op.create_table(
        "visits",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("patient_index", sa.LargeBinary(), nullable=True),
        sa.Column("nhs_index", sa.LargeBinary(), nullable=True),
        sa.Column("birth_index", sa.LargeBinary(), nullable=True),
        sa.Column("reply_outcome", sa.String(), nullable=True),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heard_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_visits_owner")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_visits")),
    )
    op.create_index(op.f("ix_visits_birth_index"), "visits", ["birth_index"], unique=False)
    op.create_index(op.f("ix_visits_heard_at"), "visits", ["heard_at"], unique=False)
    op.create_index(op.f("ix_visits_nhs_index"), "visits", ["nhs_index"], unique=False)
    op.create_index(op.f("ix_visits_owner"), "visits", ["owner"], unique=False)
    op.create_index(op.f("ix_visits_patient_index"), "visits", ["patient_index"], unique=False)
    op.create_table(
        "workers",
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("team", sa.String(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_workers_owner")),
        sa.PrimaryKeyConstraint("authority", "code", name=op.f("pk_workers")),
    )
    op.create_index(op.f("ix_workers_owner"), "workers", ["owner"], unique=False)
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("visit_id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("held_by", sa.String(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("acknowledged_by", sa.String(), nullable=True),
        sa.Column("closed_rule", sa.String(), nullable=True),
        sa.CheckConstraint("state IN ('open', 'acknowledged', 'closed')", name=op.f("ck_alerts_state_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_alerts_owner")),
        sa.ForeignKeyConstraint(["visit_id"], ["visits.id"], name=op.f("fk_alerts_visit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
        sa.UniqueConstraint("visit_id", "authority", "role", name=op.f("uq_alerts_visit_id_authority_role")),
    )
    op.create_index("ix_alerts_owner_state_raised", "alerts", ["owner", "state", "raised_at"], unique=False)
    op.create_index("ix_alerts_state_due_by", "alerts", ["state", "due_by"], unique=False)
    op.create_table(
        "list_entries",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("authority", sa.String(), nullable=False),
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("nhs_index", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_list_entries_owner")),
        sa.ForeignKeyConstraint(["upload_id"], ["list_uploads.id"], name=op.f("fk_list_entries_upload_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_list_entries")),
    )
    op.create_index(op.f("ix_list_entries_nhs_index"), "list_entries", ["nhs_index"], unique=False)
    op.create_index(op.f("ix_list_entries_owner"), "list_entries", ["owner"], unique=False)
    op.create_table(
        "replies",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("visit_id", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("replied_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_replies_owner")),
        sa.ForeignKeyConstraint(["visit_id"], ["visits.id"], name=op.f("fk_replies_visit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replies")),
    )
    op.create_index("ix_replies_owner_replied", "replies", ["owner", "replied_at"], unique=False)
    op.create_index(op.f("ix_replies_visit_id"), "replies", ["visit_id"], unique=False)
    op.create_table(
        "reviews",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("visit_id", sa.String(), nullable=False),
        sa.Column("entry_id", sa.String(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("held_by", sa.String(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_by", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("decision", sa.String(), nullable=True),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_reviews_state_known")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_reviews_owner")),
        sa.ForeignKeyConstraint(["visit_id"], ["visits.id"], name=op.f("fk_reviews_visit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reviews")),
        sa.UniqueConstraint("visit_id", "entry_id", name=op.f("uq_reviews_visit_id_entry_id")),
    )
    op.create_index(op.f("ix_reviews_owner"), "reviews", ["owner"], unique=False)
    op.create_index("ix_reviews_state_due_by", "reviews", ["state", "due_by"], unique=False)
    op.create_table(
        "sessions",
        sa.Column("token_digest", sa.LargeBinary(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("login", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["login"], ["logins.login"], name=op.f("fk_sessions_login")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_sessions_owner")),
        sa.PrimaryKeyConstraint("token_digest", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_owner"), "sessions", ["owner"], unique=False)
    op.create_table(
        "visit_messages",
        sa.Column("visit_id", sa.String(), nullable=False),
        sa.Column("marker", sa.LargeBinary(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_visit_messages_owner")),
        sa.ForeignKeyConstraint(["visit_id"], ["visits.id"], name=op.f("fk_visit_messages_visit_id")),
        sa.PrimaryKeyConstraint("visit_id", "marker", name=op.f("pk_visit_messages")),
    )
    op.create_table(
        "alert_entries",
        sa.Column("alert_id", sa.String(), nullable=False),
        sa.Column("entry_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"], name=op.f("fk_alert_entries_alert_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_alert_entries_owner")),
        sa.PrimaryKeyConstraint("alert_id", "entry_id", name=op.f("pk_alert_entries")),
    )
    op.create_index(op.f("ix_alert_entries_owner"), "alert_entries", ["owner"], unique=False)
    op.create_index(op.f("ix_alert_entries_worker"), "alert_entries", ["worker"], unique=False)
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("event_type", sa.String(), nullable=False),
        sa.Column("alert_id", sa.String(), nullable=True),
        sa.Column("reply_id", sa.String(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_code", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'claimed', 'sent', 'failed', 'given_up')", name=op.f("ck_deliveries_state_known")
        ),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"], name=op.f("fk_deliveries_alert_id")),
        sa.ForeignKeyConstraint(["lane"], ["lanes.id"], name=op.f("fk_deliveries_lane")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_deliveries_owner")),
        sa.ForeignKeyConstraint(["reply_id"], ["replies.id"], name=op.f("fk_deliveries_reply_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index(op.f("ix_deliveries_alert_id"), "deliveries", ["alert_id"], unique=False)
    op.create_index("ix_deliveries_lane_due", "deliveries", ["lane", "state", "next_attempt_at"], unique=False)
    op.create_index(op.f("ix_deliveries_owner"), "deliveries", ["owner"], unique=False)
    op.create_index(op.f("ix_deliveries_reply_id"), "deliveries", ["reply_id"], unique=False)
    op.create_table(
        "entry_blocks",
        sa.Column("block", sa.LargeBinary(), nullable=False),
        sa.Column("entry_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["entry_id"], ["list_entries.id"], name=op.f("fk_entry_blocks_entry_id")),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name=op.f("fk_entry_blocks_owner")),
        sa.PrimaryKeyConstraint("block", "entry_id", name=op.f("pk_entry_blocks")),
    )
    op.create_index(op.f("ix_entry_blocks_entry_id"), "entry_blocks", ["entry_id"], unique=False)
    op.create_index(op.f("ix_entry_blocks_owner"), "entry_blocks", ["owner"], unique=False)
