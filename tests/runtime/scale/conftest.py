"""What tests of work in shards share."""

from __future__ import annotations

from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from thread_executor import use_threads
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.bundle import Limits, ThresholdLimits
from flawscope.runtime.scale.task import Task


@pytest.fixture
def parts_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a bundle whose score is the brightness and whose threshold is 150."""
    monkeypatch.chdir(tmp_path)
    limits = ThresholdLimits(Limits(50.0, 250.0), Limits(50.0, 250.0))
    thresholds = msgspec.structs.replace(tiny_thresholds(150.0), limits=limits)
    write_tiny_bundle(tmp_path / "t.flaw", thresholds=thresholds, min_area_px=1)
    for number in range(21):
        place = tmp_path / "parts" / f"{number % 3}" / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), np.full((16, 16, 3), 60 + 7 * number, np.uint8))
    (tmp_path / "parts" / "1" / "broken.png").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    return use_threads(monkeypatch)
