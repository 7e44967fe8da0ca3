"""Images and masks of random pixels as files, and what the inspection of a folder of them finds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from flawscope.datasets import Inspection, inspect_dataset, open_dataset


def image(path: Path, seed: int = 0, size=(12, 16), channels=3, dtype=np.uint8) -> Path:
    shape = (*size, channels) if channels > 1 else size
    write(path, np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype))
    return path


def mask(path: Path, value: int = 255, size=(12, 16)) -> Path:
    image = np.zeros(size, np.uint8)
    image[2:5, 3:6] = value
    write(path, image)
    return path


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def inspected(root: Path) -> Inspection:
    return inspect_dataset(open_dataset(root))


def problems(root: Path) -> list[tuple[str, str, str]]:
    return [(p.severity, p.kind, p.path.relative_to(root).as_posix()) for p in inspected(root).problems]
