"""Settings: each is described, and what is unsafe starts only in development."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from broker.bootstrap import ConfigurationError, check_safety, load_keyring
from broker.bootstrap.channels import open_channels
from broker.keyring import generate_key
from broker.settings import Environment, Settings
from schemas.delivery import ChannelName


def read_settings(**values: Any) -> Settings:
    """Settings of these values and the environment, no ``.env`` read."""
    return Settings(_env_file=None, **values)  # type: ignore[call-arg]  # pydantic-settings' own argument


def production(**changes: Any) -> Settings:
    """Settings that are safe to run in production."""
    values: dict[str, Any] = {
        "environment": Environment.PRODUCTION,
        "field_keys": f"k1:{generate_key()}",
        "index_key": generate_key(),
        "public_url": "https://alerts.example.org",
        "mllp_tls_certificate_file": Path("server.pem"),
        "mllp_tls_key_file": Path("server.key"),
    }
    return read_settings(**(values | changes))


def test_every_setting_is_described_in_a_phrase() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.strip() == field.description, name


def test_every_number_has_limits_and_its_unit_in_its_name() -> None:
    for name, field in Settings.model_fields.items():
        if field.annotation in (int, float):
            assert field.metadata, f"{name} has no limits"
        if field.annotation is float:
            assert re.search(r"_(s|hours|minutes|days|bits|percent)(_max|_min)?$", name), f"{name} has no unit"


def test_every_secret_is_kept_out_of_what_is_shown() -> None:
    mesh = {"mesh_password": "SECRET", "mesh_shared_key": "SECRET"}
    known = {"field_keys": "k1:SECRET", "index_key": "SECRET", "kafka_sasl_password": "SECRET", "pds_api_key": "SECRET"}
    mail = {"smtp_password": "SECRET", "notify_api_key": "SECRET"}
    shown = repr(production(**known, **mesh, **mail))
    assert "SECRET" not in shown
    secret = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
    assert secret == {*known, *mesh, *mail}


def test_production_is_the_default() -> None:
    assert Settings.model_fields["environment"].default is Environment.PRODUCTION


def test_the_environment_is_read_and_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPIS_HTTP_PORT", "8123")
    monkeypatch.setenv("CPIS_MLLP_PORT", "")
    settings = read_settings()
    assert (settings.http_port, settings.mllp_port) == (8123, 2575)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("environment", "prodution"),
        ("http_port", 65536),
        ("batch_records_max", 0),
        ("escalation_minutes", 0),
        ("poll_wait_s", -1),
        ("session_hours_max", 25),
        ("kafka_security_protocol", "TLS"),
    ],
)
def test_what_cannot_be_right_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        production(**{name: value})


def test_settings_cannot_change_under_a_running_part() -> None:
    with pytest.raises(ValidationError):
        production().http_port = 1


@pytest.mark.parametrize(("lease_s", "timeout_s"), [(60.0, 31.0), (15.0, 10.0), (1.0, 0.6)])
def test_a_lease_that_ends_before_an_attempt_can_is_refused(lease_s: float, timeout_s: float) -> None:
    """Nothing would ever be sent, and nobody would be told."""
    with pytest.raises(ValidationError) as refused:
        production(delivery_lease_s=lease_s, delivery_timeout_s=timeout_s)
    assert [problem["loc"] for problem in refused.value.errors()] == [("delivery_timeout_s",)]


def test_a_short_lease_is_refused_beside_the_default_time_out() -> None:
    with pytest.raises(ValidationError):
        production(delivery_lease_s=15.0)


def test_one_connection_is_not_enough() -> None:
    """The dispatcher listens on one for as long as it lives."""
    with pytest.raises(ValidationError):
        production(database_connections_max=1)


def test_safe_settings_start_in_production() -> None:
    assert check_safety(production()) == []
    assert check_safety(production(kafka_bootstrap_servers="kafka:9092", kafka_security_protocol="SSL")) == []
    load_keyring(production())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mllp_tls_certificate_file": None}, "CPIS_MLLP_TLS_CERTIFICATE_FILE"),
        ({"mllp_tls_key_file": None}, "CPIS_MLLP_TLS_KEY_FILE"),
        ({"public_url": "http://alerts.example.org"}, "CPIS_PUBLIC_URL"),
        ({"webhook_allow_private": True}, "CPIS_WEBHOOK_ALLOW_PRIVATE"),
        ({"fhir_reply_allow_private": True}, "CPIS_FHIR_REPLY_ALLOW_PRIVATE"),
        ({"mllp_reply_tls": False}, "CPIS_MLLP_REPLY_TLS"),
        ({"kafka_bootstrap_servers": "kafka:9092"}, "CPIS_KAFKA_SECURITY_PROTOCOL"),
        (
            {"kafka_bootstrap_servers": "kafka:9092", "kafka_security_protocol": "SASL_PLAINTEXT"},
            "CPIS_KAFKA_SECURITY_PROTOCOL",
        ),
        (
            {"kafka_bootstrap_servers": "kafka:9092", "kafka_security_protocol": "SSL", "kafka_replication_factor": 2},
            "CPIS_KAFKA_REPLICATION_FACTOR",
        ),
    ],
)
def test_each_unsafe_setting_is_named_outside_development_only(changes: dict[str, Any], named: str) -> None:
    [problem] = check_safety(production(**changes))
    assert named in problem
    assert check_safety(production(environment=Environment.DEVELOPMENT, **changes)) == []


def test_the_defaults_alone_are_unsafe_outside_development() -> None:
    assert len(check_safety(read_settings())) >= 2
    with pytest.raises(ConfigurationError, match="CPIS_FIELD_KEYS"):
        load_keyring(read_settings())


@pytest.mark.parametrize("missing", ["field_keys", "index_key"])
@pytest.mark.parametrize("environment", Environment)
def test_half_a_set_of_keys_never_starts(missing: str, environment: Environment, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="CPIS_FIELD_KEYS and CPIS_INDEX_KEY"):
        load_keyring(production(environment=environment, data_dir=tmp_path, **{missing: ""}))


@pytest.mark.parametrize("name", ["field_keys", "index_key"])
def test_bad_keys_are_named_and_not_shown(name: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_keyring(production(**{name: "k1:NOTAKEYATALL"}))
    assert "NOTAKEYATALL" not in str(refused.value)
    assert "CPIS_FIELD_KEYS" in str(refused.value)


def test_development_makes_its_keys_once_and_keeps_them_to_its_user(tmp_path: Path) -> None:
    settings = read_settings(environment=Environment.DEVELOPMENT, data_dir=tmp_path / "new")
    sealed = load_keyring(settings).seal(b"plain", about="a")
    assert load_keyring(settings).open(sealed, about="a") == b"plain"
    [kept] = (tmp_path / "new").iterdir()
    assert kept.stat().st_mode & 0o077 == 0


def test_production_never_makes_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        load_keyring(production(field_keys="", index_key="", data_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


async def test_topics_are_served_only_where_there_is_a_kafka(tmp_path: Path) -> None:
    embedded = open_channels(production(data_dir=tmp_path))
    assert set(embedded) == {ChannelName.WEBHOOK, ChannelName.HL7V2_REPLY, ChannelName.FHIR_REPLY}
    for channel in embedded.values():
        await channel.close()


def test_the_database_stands_in_the_data_directory_unless_said_otherwise(tmp_path: Path) -> None:
    assert production(data_dir=tmp_path).resolved_database_url == f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}"
    assert production(database_url="postgresql+asyncpg://db/x").resolved_database_url == "postgresql+asyncpg://db/x"
