"""The nursery, shared by all crash tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Forks parts of the product."""
    opened = Nursery()
    yield opened
    opened.close()
