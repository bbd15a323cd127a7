"""The demonstration as whoever tries the product sees it first: the whole evening, on both pairs of engines."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from broker.demo import set_stage
from tests.conftest import Kafka
from tests.e2e.conftest import Pair

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = (
    "is brought in",
    "The registrar saves twenty times",
    "and her baby is born",
    "Somebody without an NHS number",
    "A message nobody can read",
    "The dispatcher is killed",
    "A list changes",
    "The duty desk",
    "Saturday night: the police",
    "the schools that read in time",
    "The bell",
    "After the bell",
    "Counted on both sides",
)

pytestmark = pytest.mark.timeout(180)


async def test_the_evening_is_played_to_its_end_and_the_ledger_balances(tmp_path: Path) -> None:
    await play(Pair("", ""), tmp_path)


@pytest.mark.soak
async def test_the_evening_is_played_on_kafka_and_postgresql(
    kafka_server: Kafka, postgres_url: str, tmp_path: Path
) -> None:
    await play(Pair(kafka_server.bootstrap_servers, postgres_url), tmp_path)


def test_the_evening_takes_the_ports_of_the_settings_and_says_which_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("CPIS_HTTP_PORT", str(port))
    monkeypatch.setenv("CPIS_MLLP_PORT", "0")
    assert set_stage(once=False, seed=1, engines={}).url == f"http://127.0.0.1:{port}"
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with pytest.raises(SystemExit, match=f"port {port} is taken: .*CPIS_HTTP_PORT"):
            set_stage(once=False, seed=1, engines={})


async def play(pair: Pair, tmp_path: Path) -> None:
    """The body of the tests above."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CPIS_")}
    engines = {"CPIS_KAFKA_BOOTSTRAP_SERVERS": pair.kafka, "CPIS_DATABASE_URL": pair.database_url}
    options = ["--kafka"] if pair.kafka else []
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "broker", "demo", "--once", *options),
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(ROOT)} | (engines if pair.kafka else {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    text = printed.decode()
    assert process.returncode == 0, text
    places = [text.find(chapter) for chapter in CHAPTERS]
    assert -1 not in places and places == sorted(places), text
    assert "The ledger balances: nothing was lost." in text
    assert "operator@" in (tmp_path / "var" / "demo" / "town" / "operator.csv").read_text()
    assert "list. Social care is told." in " ".join(text.split()), "sentences are not cut at the terminal's edge"
