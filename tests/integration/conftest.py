"""The small world on both databases, and its pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.pages import Pages, open_pages
from tests.world import CASEY, World, hl7, open_world


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database, on each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """Two authorities, one department, no children listed yet."""
    async with open_world(database_url, tmp_path) as opened:
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
