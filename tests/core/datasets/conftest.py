"""A faultless dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_files import image, mask


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    """A faultless category: 3 training images, 1 normal and 2 anomalous test images."""
    root = tmp_path / "tile"
    for i in range(3):
        image(root / f"train/good/{i}.png", i)
    image(root / "test/good/0.png", 10)
    for i in range(2):
        image(root / f"test/hole/{i}.png", 20 + i)
        mask(root / f"ground_truth/hole/{i}_mask.png")
    return root
