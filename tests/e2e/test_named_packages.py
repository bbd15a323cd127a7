"""The seven packages that this project is to be built on really carry it: six on the way of a message, one the tests.

Every part runs with a counter around each place where it uses a package. A message goes from the socket to the social
worker and back, one that nobody can read is opened by a person, and then the counters are read.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from mock_nhs.department import Department
from mock_nhs.fhir_link import FhirLink, FhirLinkOptions
from mock_nhs.journal import read_journal
from tests.conftest import Kafka
from tests.e2e.scenes import query
from tests.system import ALL_PARTS, SITE, System, open_system, until

pytestmark = pytest.mark.timeout(180)

USES: Final = {
    "aiokafka": [("aiokafka", "AIOKafkaProducer.send"), ("aiokafka", "AIOKafkaConsumer.getmany")],
    "fastapi": [("fastapi.routing", "run_endpoint_function")],
    "fhir.resources": [("fhir_core.fhirabstractmodel", "FHIRAbstractModel.model_validate")],
    "hl7apy": [("hl7apy.parser", "parse_message")],
    "httpx": [("httpx", "AsyncClient.send")],
    "sqlmodel": [("sqlmodel.main", "SQLModelMetaclass.__new__")],
}
"""Where each package does its work for us: module, and function in it."""
USED_BY: Final = {
    "intake": ("aiokafka",),
    "attendances": ("aiokafka", "fhir.resources", "sqlmodel"),
    "dispatch": ("httpx", "sqlmodel"),
    "jobs": ("sqlmodel",),
    "web": ("fastapi", "sqlmodel"),
}
"""What is counted in each part: it must not load more for being counted. hl7apy is counted in the command."""

COUNTED: Final = """
import atexit, importlib, inspect, json, os, sys

counts = {{}}

def count(package, module, path):
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    former = inspect.getattr_static(owner, name)
    function = getattr(former, "__func__", former)
    def counted(*arguments, **more):
        counts[package] = counts.get(package, 0) + 1
        return function(*arguments, **more)
    kind = type(former) if isinstance(former, (classmethod, staticmethod)) else lambda plain: plain
    setattr(owner, name, kind(counted))

for package, points in {uses!r}.items():
    for module, path in points:
        count(package, module, path)
atexit.register(lambda: open(os.path.join({directory!r}, f"{{os.getpid()}}.json"), "w").write(json.dumps(counts)))
from broker.cli import main
main()
"""


def _count_in(directory: Path, packages: Sequence[str]) -> tuple[str, str]:
    """Arguments of Python with which the product runs, and counts these packages."""
    uses = {package: USES[package] for package in packages}
    return ("-c", COUNTED.format(uses=uses, directory=str(directory)))


async def _send_by_fhir(system: System) -> None:
    """A listed child comes by FHIR."""
    listed = [person for person in system.town.people if system.town.authorities_listing(person.nhs_number)]
    site = next(site for site in system.town.sites if site.code == SITE)
    department = Department(site=SITE, credential=site.credential, people=system.town.people, seed=9, fhir=1.0)
    message = department.register(listed[-1])
    options = FhirLinkOptions(base=f"http://127.0.0.1:{system.http_port}", user=SITE, password=site.credential)
    answered: list[str] = []
    link = FhirLink(options, system.faults, lambda _message, code, _attempts: answered.append(code))
    link.start()
    await link.offer(message)
    async with asyncio.timeout(20):
        await link.settle()
    await link.stop()
    assert answered == ["202"]


async def test_each_package_carries_messages(kafka_server: Kafka, postgres_url: str, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    async with open_system(
        tmp_path / "system", database_url=postgres_url, kafka=kafka_server.bootstrap_servers
    ) as system:
        for part in ALL_PARTS:
            system.start(part, through=_count_in(counts, USED_BY[part]))
        await system.until_listening()
        await system.until_pages()
        listed = next(person for person in system.town.people if system.town.authorities_listing(person.nhs_number))
        await system.ed.offer(system.department.register(listed))
        await system.ed.offer(system.department.register(listed, readable=False))
        await _send_by_fhir(system)
        await until(
            lambda: (
                sum(line["what"] == "reply" for line in read_journal(tmp_path / "system" / "department.jsonl")) >= 2
            ),
            limit_s=40,
            what="two replies",
        )
        [(quarantined,)] = await query(system, "SELECT id FROM quarantine")
        shown = await asyncio.to_thread(
            subprocess.run,
            [
                sys.executable,
                *_count_in(counts, ("hl7apy",)),
                *("quarantine", "show", quarantined, "--by", "Sam Tester"),
            ],
            env=os.environ | system.environment,
            capture_output=True,
            check=False,
        )
        assert shown.returncode == 0, shown.stdout + shown.stderr
        await until(
            lambda: any(line["what"] == "alert" for line in read_journal(tmp_path / "system" / "case-system.jsonl")),
            limit_s=40,
            what="the alert",
        )
        await system.stop()
    found: dict[str, int] = {}
    for path in counts.glob("*.json"):
        for package, times in json.loads(path.read_text()).items():
            found[package] = found.get(package, 0) + times
    assert set(found) == set(USES), found
    assert all(times > 0 for times in found.values()), found


async def test_pytest_asyncio_runs_the_tests_that_wait(request: pytest.FixtureRequest) -> None:
    assert request.config.pluginmanager.hasplugin("asyncio")
    assert request.node.get_closest_marker("asyncio") is not None
    assert asyncio.get_running_loop().is_running()
