"""The small world on both databases, and its pages."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engines import PostgresServer
from tests.pages import Pages, open_pages
from tests.world import CASEY, World, hl7, open_world


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database, on each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="session")
def furnished_postgres(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a furnished database that worlds are copied from: making each anew takes five times as long."""
    name = "furnished"
    url = postgres_server.create_database(name)

    async def prepare() -> None:
        async with open_world(url, tmp_path_factory.mktemp(name)):
            pass

    # In a thread of its own, so that the tests' event loop is left alone.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, prepare()).result()
    return name


@pytest.fixture(params=["sqlite", "postgres"])
def world_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database for a world, on each engine in turn."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}"
        return
    template = request.getfixturevalue("furnished_postgres")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"world_{uuid.uuid4().hex[:12]}"
    yield server.create_database(name, template=template)
    server.drop_database(name)


@pytest.fixture
async def world(world_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """Two authorities, one department, no children listed yet."""
    async with open_world(world_url, tmp_path) as opened:
        yield opened


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The address of an empty database, where one engine is enough."""
    return f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}"


@pytest.fixture
async def pages(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Pages]:
    """The pages, with one alert of Casey's visit."""
    async with open_pages(sqlite_url, tmp_path) as opened:
        await opened.world.list_children(CASEY)
        await opened.world.receive(hl7())
        yield opened
