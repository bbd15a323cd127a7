"""What of the documents is made from the code. ``python -m tests.house.reference`` writes it anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, get_args

import msgspec
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from broker.bootstrap import check_safety
from broker.settings import Environment, Settings
from schemas.alert import AlertUpdated, AlertWithdrawn, ClinicianReply, CoverageNotice, SocialCareAlert
from schemas.encompass import (
    FullNotice,
    IncidentWithdrawal,
    MinimalNotice,
    PoliceIncident,
    ReferralNotice,
    SchoolNoticeNudge,
    SchoolNoticeWithdrawn,
    StandardNotice,
)
from schemas.upload import UploadReport

ROOT: Final = Path(__file__).parents[2]
REGENERATE: Final = "python -m tests.house.reference"

_GROUPS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "Where it runs": ("environment", "data", "database"),
        "Keys": ("field", "index"),
        "The log": ("kafka", "log", "longest"),
        "MLLP": ("mllp",),
        "FHIR": ("fhir",),
        "Pages": ("http", "public", "session", "login"),
        "Handling messages": ("batch", "poll", "contact", "silent", "poison"),
        "Sending": ("delivery", "dispatch", "webhook"),
        "Lists by MESH": ("mesh",),
        "Rules and jobs": (
            "escalation",
            "look",
            "visit",
            "plan",
            "unborn",
            "review",
            "list",
            "coverage",
            "job",
            "no",
            "proclaimed",
            "encompass",
            "incident",
        ),
        "Nudges": ("smtp", "notify", "nudge"),
        "Personal Demographics Service": ("pds",),
    }
)
"""Heading to the first words of the settings under it."""

_SETTINGS_HEAD: Final = f"""# Settings

This page is made from the code; change `broker/settings.py`, then run `{REGENERATE}`.

Settings are environment variables, or lines `NAME=value` of a file `.env` in the directory where the broker is
started. An environment variable wins over `.env`; one that is empty counts as not set. An environment variable whose
name is not known is passed over; `.env` may hold nothing but these settings. A value that is not valid ends the
command with exit code 2 and names the setting, never its value.

`cpis-broker check-config` shows every setting that was set, with where it came from, and checks it; `--all` shows the
others too. Secrets are shown as `set`.
"""


def render_settings() -> str:
    """docs/reference/settings.md."""
    parts = [_SETTINGS_HEAD, _render_production()]
    placed: set[str] = set()
    for heading, words in _GROUPS.items():
        named = {name: field for name, field in Settings.model_fields.items() if name.split("_")[0] in words}
        placed |= named.keys()
        rows = [_settings_row(name, field) for name, field in named.items()]
        parts.append(
            "\n".join([f"## {heading}", "", "| name | default | takes | what |", "|---|---|---|---|", *rows, ""])
        )
    assert placed == Settings.model_fields.keys(), "a setting without a group"
    return "\n".join(parts)


def _render_production() -> str:
    """What must be set outside development, in the words of the check itself."""
    default = Settings(_env_file=None, environment=Environment.PRODUCTION)  # type: ignore[call-arg]
    private = {"webhook_allow_private": True, "fhir_reply_allow_private": True}
    changes = {**private, "kafka_bootstrap_servers": "x:1", "kafka_replication_factor": 1, "mesh_url": "http://x"}
    unsafe = default.model_copy(update={**_defaults(), **changes, "environment": Environment.PRODUCTION})
    lines = ["## What production asks for", ""]
    lines += ["With `CPIS_ENVIRONMENT=production`, which is the default, nothing starts while one of these holds:", ""]
    lines += ["- `CPIS_FIELD_KEYS` or `CPIS_INDEX_KEY` is not set (`cpis-broker keys generate` makes both)"]
    lines += [f"- {_in_code(problem)}" for problem in check_safety(unsafe)]
    return "\n".join([*lines, ""])


def _defaults() -> dict[str, Any]:
    return {name: field.get_default() for name, field in Settings.model_fields.items()}


def _in_code(problem: str) -> str:
    return re.sub(r"CPIS_[A-Z_]+", lambda name: f"`{name[0]}`", problem)


def _settings_row(name: str, field: FieldInfo) -> str:
    default = _show_default(field.get_default())
    return f"| `CPIS_{name.upper()}` | {default} | {_describe_values(field)} | {field.description} |"


def _show_default(value: object) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _describe_values(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if kind is SecretStr:
        return "secret"
    if kind is bool:
        return "`true` or `false`"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return ", ".join(f"`{word.value}`" for word in kind)
    if kind in (int, float):
        return ("whole number" if kind is int else "number") + _describe_limits(field)
    if kind is Path or Path in get_args(kind):
        return "path"
    words = get_args(kind)
    return ", ".join(f"`{word}`" for word in words) if words else "text" + _describe_limits(field)


def _describe_limits(field: FieldInfo) -> str:
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below", "pattern": "like"}
    found = [
        f"{words[name]} {_show_default(getattr(limit, name)) or 0}".replace("` `", "")
        for limit in field.metadata
        for name in words
        if getattr(limit, name, None) is not None
    ]
    return f", {' '.join(found)}" if found else ""


def render_schema(model: type[msgspec.Struct], name: str) -> str:
    """The JSON Schema of what a recipient is sent, or a sender sends."""
    schema = msgspec.json.schema(model)
    _note_instants(schema["$defs"])
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:cpis-broker:schema:{name}",
        "$comment": f"Made from {model.__module__.replace('.', '/')}.py by: {REGENERATE}",
    }
    return msgspec.json.format(msgspec.json.encode(head | schema), indent=2).decode() + "\n"


def _note_instants(node: Any) -> None:
    """Names that end in ``_at`` are instants in UTC, which msgspec writes as RFC 3339 has them."""
    for name, described in node.get("properties", {}).items() if "properties" in node else node.items():
        if not isinstance(described, dict):
            continue
        if "properties" in described:
            _note_instants(described)
        elif name.endswith("_at"):
            for kind in described.get("anyOf", [described]):
                if kind.get("type") == "string":
                    kind["format"] = "date-time"


GENERATED: Final[Mapping[str, Callable[[], str]]] = MappingProxyType(
    {
        "docs/reference/settings.md": render_settings,
        "schemas/json/social-care-alert.json": lambda: render_schema(SocialCareAlert, "social-care-alert"),
        "schemas/json/coverage-notice.json": lambda: render_schema(CoverageNotice, "coverage-notice"),
        "schemas/json/alert-updated.json": lambda: render_schema(AlertUpdated, "alert-updated"),
        "schemas/json/alert-withdrawn.json": lambda: render_schema(AlertWithdrawn, "alert-withdrawn"),
        "schemas/json/clinician-reply.json": lambda: render_schema(ClinicianReply, "clinician-reply"),
        "schemas/json/police-incident.json": lambda: render_schema(PoliceIncident, "police-incident"),
        "schemas/json/incident-withdrawal.json": lambda: render_schema(IncidentWithdrawal, "incident-withdrawal"),
        "schemas/json/school-notice-minimal.json": lambda: render_schema(MinimalNotice, "school-notice-minimal"),
        "schemas/json/school-notice-standard.json": lambda: render_schema(StandardNotice, "school-notice-standard"),
        "schemas/json/school-notice-full.json": lambda: render_schema(FullNotice, "school-notice-full"),
        "schemas/json/school-notice-referral.json": lambda: render_schema(ReferralNotice, "school-notice-referral"),
        "schemas/json/school-notice-withdrawn.json": lambda: render_schema(
            SchoolNoticeWithdrawn, "school-notice-withdrawn"
        ),
        "schemas/json/school-notice-nudge.json": lambda: render_schema(SchoolNoticeNudge, "school-notice-nudge"),
        "schemas/json/child-list-report.json": lambda: render_schema(UploadReport, "child-list-report"),
    }
)
"""Path to what makes its text."""


def read_rows(path: str, heading: str = "") -> Iterator[list[str]]:
    """The cells of every table row under a heading of a document (empty: of the whole), header rows left out."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if heading:
        found = re.search(rf"^(#+) {re.escape(heading)}$(.*?)(?=^#{{1,4}} |\Z)", text, re.M | re.S)
        assert found is not None, f"{path} has no heading {heading}"
        text = found[2]
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not set(line) <= set("|-: ") and not set(following or "x") <= set("|-: "):
            yield [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def read_code(cell: str) -> list[str]:
    """What stands in code quotes in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def main() -> None:
    """Write every generated file."""
    for path, render in GENERATED.items():
        target = ROOT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(), encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
