"""Servers for the tests of the HTTP interface; what they need is imported where a test asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from http_here import Here

    here = Here(tmp_path_factory.mktemp("state"))
    yield here
    here.close()


@pytest.fixture
def here(shared: Any) -> Iterator[Any]:
    """One server for the tests that leave nothing open; each finds the stations as they were."""
    for station in shared.line.stations.values():
        station.state, station.verdict, station.actors, station.pushed = "ready", "accept", [], []
        station.sources = {}
    yield shared
    assert not any(station.open for station in shared.line.stations.values())


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Any]:
    from http_here import Here

    here = Here(tmp_path)
    yield here
    here.close()
