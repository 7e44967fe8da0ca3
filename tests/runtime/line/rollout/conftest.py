"""Keys, a registry, and lines that look often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from oci_registry import OciRegistry, oci_registry

if TYPE_CHECKING:
    from released_bundles import Maker


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    from released_bundles import Maker  # needs cryptography, without which the tests are skipped

    return Maker(tmp_path)


@pytest.fixture
def registry() -> Iterator[OciRegistry]:
    with oci_registry() as server:
        yield server


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often: what is tested waits for what it sees, and not for a time."""
    from flawscope.runtime.line.rollout import rollouts, view_rollout

    monkeypatch.setattr(rollouts, "_TURN_S", 0.02)
    monkeypatch.setattr(view_rollout, "_WAITS_S", 0.02)
