"""A clock, and a journal that has old rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from line_journals import SetClock
from sealed_rows import filled


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def folder(tmp_path: Path, clock: SetClock) -> Path:
    """A state folder whose journal has rows of two days, 40 days apart; it is the second of them."""
    place = tmp_path / "state"
    filled(place, clock)
    return place
