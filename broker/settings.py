"""Every setting, read once. Nothing else reads the environment."""

from __future__ import annotations

from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.delivery import MailTls

NOTIFY_URL = "https://api.notifications.service.gov.uk"


class Environment(StrEnum):
    """Where this runs: unsafe defaults start only in development."""

    PRODUCTION = "production"
    DEVELOPMENT = "development"


class Settings(BaseSettings):
    """Environment variables with the prefix ``CPIS_``, or a ``.env`` file. Units stand last in the name."""

    model_config = SettingsConfigDict(
        env_prefix="CPIS_", env_file=".env", frozen=True, extra="ignore", env_ignore_empty=True
    )

    environment: Environment = Field(default=Environment.PRODUCTION, description="production, or development")
    data_dir: Path = Field(default=Path("var"), description="Where the embedded engines and snapshots keep their files")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in the data directory")
    database_connections_max: int = Field(
        default=10,
        ge=2,
        le=200,
        description="Connections one process may hold; the dispatcher listens on one, the web part has one more",
    )

    kafka_bootstrap_servers: str = Field(default="", description="host:port,...; empty: the embedded log")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    kafka_ca_file: Path | None = Field(default=None, description="Certificate authority of the Kafka servers")
    kafka_certificate_file: Path | None = Field(default=None, description="Our certificate for Kafka")
    kafka_key_file: Path | None = Field(default=None, description="Its key")
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
    )
    kafka_sasl_username: str = Field(default="", description="SASL user name")
    kafka_sasl_password: SecretStr = Field(default=SecretStr(""), description="SASL password")
    kafka_prefix: str = Field(
        default="", pattern=r"^[a-zA-Z0-9._-]{0,100}$", description="Before every topic and group, on a shared Kafka"
    )
    kafka_replication_factor: int = Field(default=3, ge=1, le=9, description="Replicas of the topics we create")
    kafka_session_timeout_s: float = Field(
        default=10.0, ge=1, le=300, description="A silent member loses its partitions"
    )
    log_partitions: int = Field(default=4, ge=1, le=1000, description="Partitions of the topics we create")
    log_retention_days: float = Field(
        default=14.0, ge=1, le=3650, description="How long the log keeps what was handled; made into retention.ms"
    )
    longest_outage_days: float = Field(
        default=7.0, gt=0, le=3650, description="The longest outage you plan for; the log must keep more than that"
    )
    log_append_timeout_s: float = Field(default=10.0, gt=0, le=60, description="An append not confirmed by then failed")

    field_keys: SecretStr = Field(default=SecretStr(""), description="ID:BASE64,... 32 bytes each; the first seals")
    index_key: SecretStr = Field(default=SecretStr(""), description="BASE64, 32 bytes; blind indexes; never changes")

    http_host: str = Field(default="127.0.0.1", description="Where the pages and the FHIR doors listen")
    http_port: int = Field(default=8000, ge=0, le=65535, description="Port of the pages and the FHIR doors")
    http_body_bytes_max: int = Field(default=1_048_576, ge=1024, description="A larger request to the pages is refused")
    http_connections_max: int = Field(default=256, ge=1, description="Connections and requests at one time")
    http_head_timeout_s: float = Field(
        default=10.0, gt=0, le=600, description="A connection on which no whole request head came for so long is closed"
    )
    public_url: str = Field(default="http://127.0.0.1:8000", description="How people reach the pages")
    session_hours_max: float = Field(default=10.0, gt=0, le=24, description="A signed-in person signs in again after")
    session_idle_minutes_max: float = Field(
        default=30.0, gt=0, le=600, description="... or after so long without a click"
    )
    login_failures_max: int = Field(default=5, ge=1, le=100, description="Failures before a login rests")
    login_rest_s: float = Field(default=300.0, ge=0, le=86400, description="How long it rests")

    mllp_host: str = Field(default="127.0.0.1", description="Where MLLP listens")
    mllp_port: int = Field(default=2575, ge=0, le=65535, description="MLLP port")
    mllp_tls_certificate_file: Path | None = Field(
        default=None, description="Server certificate; required in production"
    )
    mllp_tls_key_file: Path | None = Field(default=None, description="Its key")
    mllp_tls_client_ca_file: Path | None = Field(default=None, description="When set, peers must show a certificate")
    mllp_frame_bytes_max: int = Field(
        default=2_097_152, ge=1024, le=4_000_000, description="A larger message is refused; the log takes no larger one"
    )
    mllp_connections_max: int = Field(default=512, ge=1, description="Connections at one time")
    mllp_pipelined_max: int = Field(default=64, ge=1, le=10_000, description="Unanswered messages per connection")
    mllp_idle_timeout_s: float = Field(default=600.0, gt=0, description="A silent connection is closed")
    mllp_frame_timeout_s: float = Field(default=30.0, gt=0, description="A message that arrives slower is refused")

    fhir_bundle_bytes_max: int = Field(
        default=4_000_000,
        ge=1024,
        le=4_000_000,
        description="A larger FHIR Bundle is refused; the log takes no larger one",
    )
    fhir_body_timeout_s: float = Field(default=30.0, gt=0, le=600, description="A body that arrives slower is refused")
    fhir_requests_max: int = Field(default=64, ge=1, le=1000, description="FHIR Bundles held at one time; others wait")

    batch_records_max: int = Field(default=500, ge=1, le=10_000, description="Messages in one transaction at most")
    poll_wait_s: float = Field(default=0.2, gt=0, le=5, description="How long a poll waits when nothing is there")
    contact_interval_s: float = Field(
        default=3.0, gt=0, le=60, description="How often the log is asked whether it lives"
    )
    silent_not_ready_s: float = Field(default=15.0, gt=0, description="A consumer silent so long is not ready")
    silent_exit_s: float = Field(default=25.0, gt=0, description="... and so long ends itself, to be started anew")
    poison_attempts_max: int = Field(default=3, ge=1, le=20, description="Unclean ends one message may cause")

    delivery_lease_s: float = Field(
        default=30.0, gt=0, description="How long a dispatcher holds a lane, even if it dies"
    )
    delivery_batch_max: int = Field(
        default=50, ge=1, le=1000, description="Deliveries of one lane sent under one lease"
    )
    delivery_lanes_max: int = Field(default=32, ge=1, le=1000, description="Lanes one dispatcher works on at one time")
    delivery_timeout_s: float = Field(default=10.0, gt=0, description="One attempt; at most a third of the lease")
    delivery_give_up_hours: float = Field(default=24.0 * 42, gt=0, description="Transient failures are retried so long")
    job_lease_s: float = Field(default=60.0, gt=0, description="How long one jobs part holds the work it claimed")
    dispatch_poll_s: float = Field(default=0.5, gt=0, le=60, description="Fallback when no notification comes")
    webhook_allowed_hosts: str = Field(default="", description="Comma-separated; empty: any public host")
    webhook_allow_private: bool = Field(
        default=False, description="Private addresses too: only for named hosts; in development for any, without TLS"
    )
    webhook_ca_file: Path | None = Field(default=None, description="Certificate authority of case systems")
    mllp_reply_tls: bool = Field(default=True, description="Replies over MLLP go encrypted; false only in development")
    mllp_reply_ca_file: Path | None = Field(default=None, description="Certificate authority of departments' listeners")
    fhir_reply_allowed_hosts: str = Field(default="", description="Comma-separated; empty: any public host")
    fhir_reply_allow_private: bool = Field(
        default=False, description="Private addresses too: only for named hosts; in development for any, without TLS"
    )
    fhir_reply_ca_file: Path | None = Field(
        default=None, description="Certificate authority of departments' FHIR servers"
    )

    smtp_host: str = Field(
        default="",
        description="Mail server for e-mails that say no more than 'sign in'; empty, or without a sender: none",
    )
    smtp_port: int = Field(
        default=587, ge=1, le=65535, description="Its port: 587 is that of submission with STARTTLS, 465 from the start"
    )
    smtp_tls: MailTls = Field(
        default=MailTls.STARTTLS, description="starttls, implicit, or in development none; never without by itself"
    )
    smtp_ca_file: Path | None = Field(
        default=None, description="Certificate authority of the mail server, where it is not public"
    )
    smtp_username: str = Field(default="", description="Name to sign in with; empty: no sign-in")
    smtp_password: SecretStr = Field(default=SecretStr(""), description="Its password")
    smtp_sender: str = Field(default="", description="The address that e-mails come from")
    notify_api_key: SecretStr = Field(
        default=SecretStr(""), description="API key of the service at GOV.UK Notify; empty: Notify sends nothing"
    )
    notify_email_template_id: str = Field(
        default="", description="Its e-mail template, whose text is ((message)); empty: no e-mails by Notify"
    )
    notify_text_template_id: str = Field(
        default="", description="Its text message template, whose text is ((message)); empty: no text messages"
    )
    notify_base_url: str = Field(default=NOTIFY_URL, description="Where Notify is; in development also on this machine")
    nudge_give_up_hours: float = Field(
        default=24.0,
        gt=0,
        le=168,
        description="What says 'sign in' and could not be sent is tried so long: by then a person has rung",
    )

    mesh_url: str = Field(default="", description="Where MESH is; empty: no lists by MESH. Needs the extra mesh")
    mesh_mailbox: str = Field(default="", description="Our mailbox; nobody else may take messages from it")
    mesh_password: SecretStr = Field(default=SecretStr(""), description="Password of the mailbox")
    mesh_shared_key: SecretStr = Field(default=SecretStr(""), description="MESH's key of the environment")
    mesh_ca_file: Path | None = Field(
        default=None, description="Certificate authority of MESH; without it NHS England's own for its addresses"
    )
    mesh_certificate_file: Path | None = Field(default=None, description="Our certificate for MESH")
    mesh_key_file: Path | None = Field(default=None, description="Its key")
    mesh_upload_workflow: str = Field(default="", description="Workflow id of child lists that come in")
    mesh_report_workflow: str = Field(default="", description="Workflow id of the reports that go back")
    mesh_senders: str = Field(default="", description="MAILBOX=AUTHORITY,...: whose lists come from which mailbox")
    mesh_poll_s: float = Field(default=60.0, gt=0, le=3600, description="How often the mailbox is looked into")
    mesh_timeout_s: float = Field(default=60.0, gt=0, le=600, description="One exchange with MESH")
    mesh_message_bytes_max: int = Field(
        default=67_108_864, ge=1024, description="A larger message stays in the mailbox, for a person to decide"
    )

    escalation_minutes: float = Field(
        default=15.0, gt=0, description="Unacknowledged alerts and reviews go to the duty desk"
    )
    look_back_hours: float = Field(default=72.0, gt=0, description="Visits a changed list entry is matched against")
    visit_stale_hours: float = Field(
        default=72.0, ge=24, le=8760, description="A visit of which nothing is heard for so long comes to rest"
    )
    visit_admitted_stale_days: float = Field(
        default=28.0, ge=1, le=365, description="... one whose person was admitted to a ward, after"
    )
    plan_shown_days: int = Field(default=365, ge=0, le=3650, description="A plan is shown so long after its end")
    unborn_plan_shown_days: int = Field(default=28, ge=0, le=3650, description="An unborn child's plan, after its end")
    review_weight_bits_min: float = Field(
        default=20.0,
        ge=10,
        le=40,
        description="Without a usable NHS number, a list entry that weighs so much goes to a person; by chance one "
        "stranger in 2 to this power does",
    )
    incident_retention_days: float = Field(
        default=730.0,
        ge=90,
        le=3660,
        description="Police incidents, notices and their record are dropped so long after the incident was heard of "
        "last, unless something is still due: two school years, for reports, complaints and the audit of a force; "
        "schools keep their own file of a child",
    )
    encompass_training_days: float = Field(
        default=730.0,
        ge=1,
        le=3660,
        description="Operation Encompass: a safeguarding lead whose training is older counts as not up to date in the "
        "report on schools; by default two years, as Keeping children safe in education asks",
    )
    no_record_reply_days: float = Field(
        default=7.0, ge=2, le=3650, description="Contents of replies without a match are kept so long"
    )
    list_stale_hours: float = Field(default=72.0, gt=0, description="An older list is named stale in replies")
    proclaimed_bank_holidays: str = Field(
        default="", description="2027-05-10,...: bank holidays that no rule gives; offices are closed"
    )
    look_up_escalation_hours: float = Field(
        default=24.0, gt=0, le=168, description="Unacknowledged alerts of a mere look-up go to the duty desk"
    )
    list_habit_factor: int = Field(
        default=3, ge=1, le=100, description="... and chased when it is older than so many of its usual intervals"
    )

    pds_base_url: str = Field(
        default="", description="PDS FHIR API, up to and with /personal-demographics/FHIR/R4; empty: nothing is traced"
    )
    pds_token_url: str = Field(default="", description="Where access tokens are given; empty: none is asked for")
    pds_api_key: SecretStr = Field(default=SecretStr(""), description="The application's API key")
    pds_key_id: str = Field(default="", description="The id (kid) under which its public key is registered")
    pds_private_key_file: Path | None = Field(default=None, description="Its private key, RSA, PEM")
    pds_ca_file: Path | None = Field(default=None, description="Certificate authority of PDS, where it is not public")
    pds_traces_per_s: float = Field(
        default=5.0, gt=0, le=100, description="Entries one jobs part traces; each asks up to seven questions"
    )
    pds_verified_again_days: int = Field(
        default=30, ge=1, le=3650, description="A verified entry is traced again after"
    )
    pds_others_again_hours: float = Field(default=24.0, gt=0, description="One that is not verified, after")
    coverage_unverified_days: int = Field(
        default=7, ge=0, le=3650, description="An entry that was not traced for so long is on the worklist"
    )
    coverage_escalation_hours: float = Field(
        default=72.0, gt=0, description="What list officers have not mended goes to the duty desk"
    )
    coverage_count_minutes: float = Field(
        default=60.0, gt=0, le=1440, description="How often a list is counted that did not change"
    )

    list_upload_bytes_max: int = Field(
        default=67_108_864, ge=1024, le=1_000_000_000, description="A larger child list is refused"
    )
    list_upload_timeout_s: float = Field(
        default=300.0, gt=0, le=3600, description="A child list that arrives slower is refused"
    )
    list_hold_percent: float = Field(
        default=5.0, ge=0, le=100, description="A list that ends or takes back more of the current entries is held"
    )
    list_hold_entries: int = Field(default=10, ge=0, description="... unless it is no more than so many entries")
    list_hold_hours: float = Field(
        default=4.0, gt=0, description="A held list that nobody decided on by then goes to the operators"
    )
    list_difference_days: float = Field(
        default=5.0, gt=0, description="A person decides by then on an entry that a full list left out"
    )

    @field_validator("delivery_timeout_s")
    @classmethod
    def _fits_in_lease(cls, timeout_s: float, others: ValidationInfo) -> float:
        """An attempt is begun only when the lease outlasts it twice over: with a shorter one nothing is ever sent."""
        if timeout_s * 3 > others.data.get("delivery_lease_s", 0):
            raise ValueError("must be at most a third of CPIS_DELIVERY_LEASE_S")
        return timeout_s

    @field_validator("proclaimed_bank_holidays")
    @classmethod
    def _are_days(cls, days: str) -> str:
        try:
            _read_days(days)
        except ValueError as error:
            raise ValueError("must be days like 2027-05-10, with commas between them") from error
        return days

    @property
    def proclaimed_days(self) -> frozenset[date]:
        """The bank holidays that no rule gives."""
        return _read_days(self.proclaimed_bank_holidays)

    @property
    def is_development(self) -> bool:
        """Whether unsafe defaults may start."""
        return self.environment is Environment.DEVELOPMENT

    @property
    def emails_enabled(self) -> bool:
        """Whether people are nudged by e-mail."""
        return bool(self.smtp_host and self.smtp_sender) or self.emails_by_notify

    @property
    def emails_by_notify(self) -> bool:
        """Whether GOV.UK Notify sends the e-mails."""
        return bool(self.notify_api_key.get_secret_value() and self.notify_email_template_id)

    @property
    def texts_enabled(self) -> bool:
        """Whether people are nudged by text message."""
        return bool(self.notify_api_key.get_secret_value() and self.notify_text_template_id)

    def name_on_log(self, name: str) -> str:
        """A topic's or group's name on the log of these settings."""
        return f"{self.kafka_prefix}{name}"

    @property
    def resolved_database_url(self) -> str:
        """The database URL, the default filled in."""
        return self.database_url or f"sqlite+aiosqlite:///{(self.data_dir / 'broker.sqlite').absolute()}"


def _read_days(days: str) -> frozenset[date]:
    return frozenset(date.fromisoformat(day.strip()) for day in days.split(",") if day.strip())
