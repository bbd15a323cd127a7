"""docker-compose.yml as far as it can be tried without a container engine: its shape, and every service of the broker.

Each service runs as a process here with exactly its command and environment; only the names of hosts, and the place of
the data volume, are others.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from ruamel.yaml import YAML

from broker.settings import Settings
from mock_nhs.journal import read_journal
from tests import ledger
from tests.engines import KafkaServer, PostgresServer
from tests.system import until

ROOT: Final = Path(__file__).resolve().parents[2]
COMPOSE: Final = ROOT / "docker-compose.yml"
DATA: Final = "/var/lib/cpis-broker"
_HOSTS: Final = re.compile(r"(?:(?<=//)|(?<==))(?:intake|web|case-system|department)(?=$|[:/])")
"""Names of services where an address stands."""
PARTS: Final = ("intake", "attendances", "encompass", "dispatch", "jobs", "web")
OTHERS: Final = ("kafka", "postgres")

pytestmark = pytest.mark.timeout(180)


def _read_services() -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = YAML(typ="safe").load(COMPOSE)["services"]
    return services


SERVICES: Final = _read_services()
BROKERS: Final = [name for name in SERVICES if name not in OTHERS]


def test_the_file_keeps_to_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", BROKERS)
def test_every_variable_is_a_setting(name: str) -> None:
    known = {f"CPIS_{field.upper()}" for field in Settings.model_fields}
    assert set(SERVICES[name]["environment"]) <= known


@pytest.mark.parametrize("name", BROKERS)
def test_no_service_of_the_broker_may_change_itself_or_become_root(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["user"] == "10001:10001"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_every_part_has_a_service_and_says_whether_it_is_ready() -> None:
    for part in PARTS:
        service = SERVICES[part]
        assert service["command"] == ["serve", "--only", part]
        assert service["healthcheck"]["test"] == ["CMD", "cpis-broker", "health", "--part", part]
        assert service["image"] == SERVICES["migrate"]["image"]


def test_ports_are_published_to_this_machine_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published and all(port.startswith("127.0.0.1:") for port in published)


def test_the_image_runs_as_nobody_and_asks_after_its_health() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    last = text.rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in last
    assert "--require-hashes" in text
    assert "HEALTHCHECK" in last and '"cpis-broker", "health"' in last
    assert 'ENTRYPOINT ["cpis-broker"]' in last
    copied = re.findall(r"^COPY (\S+) \S+$", text, re.MULTILINE)
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"
    }
    assert set(copied) <= allowed


class Composition:
    """The services of the file as processes of this machine."""

    def __init__(self, directory: Path, servers: Mapping[str, str]) -> None:
        self.directory = directory
        self._servers = servers
        self._programs = directory / "bin"
        self._programs.mkdir()
        for name, module in (("cpis-broker", "-m broker "), ("python", "")):
            program = self._programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
            program.chmod(0o700)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, name: str) -> None:
        """Run a service to its end."""
        self.start(name)
        code = self.processes[name].wait(90)
        assert code == 0, f"{name} ended with {code}\n{self.said(name)}"

    def start(self, name: str) -> None:
        """Start a service."""
        service = SERVICES[name]
        entry = service.get("entrypoint", ["cpis-broker"])
        command = [self._place(word.replace("$$", "$")) for word in (*entry, *service["command"])]
        environment = {key: self._place(str(value)) for key, value in service["environment"].items()}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("CPIS_")}
        path = f"{self._programs}:{kept['PATH']}"
        with (self.directory / f"{name}.log").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                command, cwd=ROOT, env=kept | environment | {"PATH": path}, stdout=output, stderr=output
            )

    def health(self, name: str) -> int:
        """The exit code of the service's own health check."""
        service = SERVICES[name]
        environment = {key: self._place(str(value)) for key, value in service["environment"].items()}
        _, *command = service["healthcheck"]["test"]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("CPIS_")}
        path = f"{self._programs}:{kept['PATH']}"
        return subprocess.run(
            command, cwd=ROOT, env=kept | environment | {"PATH": path}, capture_output=True, check=False
        ).returncode

    def said(self, name: str) -> str:
        """What a service printed."""
        return (self.directory / f"{name}.log").read_text(errors="replace")[-3000:]

    def stop(self) -> dict[str, int]:
        """Ask every service to end; returns the exit codes."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        return {name: process.wait(60) for name, process in self.processes.items()}

    def _place(self, text: str) -> str:
        """The text with the hosts and the data volume of this machine."""
        text = text.replace(DATA, str(self.directory / "data")).replace("0.0.0.0", "127.0.0.1")
        for server, here in self._servers.items():
            text = text.replace(server, here)
        return _HOSTS.sub("127.0.0.1", text)


@contextmanager
def _composed(directory: Path, kafka: KafkaServer, postgres: PostgresServer) -> Iterator[Composition]:
    servers = {"kafka:9092": kafka.bootstrap_servers, "postgres:5432": f"127.0.0.1:{postgres.port}"}
    composition = Composition(directory, servers)
    try:
        yield composition
    finally:
        composition.stop()


async def _make_broker_role(postgres: PostgresServer) -> None:
    """What the image of PostgreSQL does with its three variables: an owner without rights elsewhere, and a database."""
    variables = SERVICES["postgres"]["environment"]
    owner = await asyncpg.connect(postgres.url("postgres").replace("+asyncpg", ""))
    try:
        await owner.execute(
            f"CREATE ROLE {variables['POSTGRES_USER']} LOGIN PASSWORD '{variables['POSTGRES_PASSWORD']}'"
        )
        await owner.execute(f"CREATE DATABASE {variables['POSTGRES_DB']} OWNER {variables['POSTGRES_USER']}")
    finally:
        await owner.close()


async def _is_healthy(composition: Composition, part: str) -> bool:
    return await asyncio.to_thread(composition.health, part) == 0


async def test_every_service_runs_as_written_until_hl7_and_fhir_have_gone_round(
    tmp_path: Path, own_kafka_server: KafkaServer, own_postgres_server: PostgresServer
) -> None:
    await _make_broker_role(own_postgres_server)
    with _composed(tmp_path, own_kafka_server, own_postgres_server) as composition:
        await asyncio.to_thread(composition.run, "migrate")
        for part in PARTS:
            composition.start(part)
        await asyncio.to_thread(composition.run, "town")
        composition.start("case-system")
        for part in PARTS:
            await until(partial(_is_healthy, composition, part), limit_s=60, what=f"{part} healthy", every_s=0.5)
        composition.start("department")
        department = tmp_path / "data" / "town" / "department.jsonl"

        def have_gone_round() -> bool:
            if not department.exists():
                return False
            lines = list(read_journal(department))
            replied = {line["visit_number"] for line in lines if line["what"] == "reply"}
            ways = {
                line["content_type"] for line in lines if line["what"] == "offered" and line["visit_number"] in replied
            }
            return len(ways) == 2

        await until(have_gone_round, limit_s=90, what="an answer to HL7 and to FHIR", every_s=0.5)
        composition.processes["department"].terminate()
        await asyncio.to_thread(composition.processes["department"].wait, 30)
        sources = ledger.Sources(
            database_url=f"postgresql+asyncpg://broker:broker@127.0.0.1:{own_postgres_server.port}/broker",
            log=own_kafka_server.bootstrap_servers,
            topic="attendances",
            department=department,
            case_system=tmp_path / "data" / "town" / "case-system.jsonl",
        )
        books = await ledger.reckon(sources, settled=False)
        assert not books.problems
        codes = composition.stop()
        assert {part: codes[part] for part in PARTS} == dict.fromkeys(PARTS, 0), json.dumps(codes)
