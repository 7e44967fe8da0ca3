"""A dataset small enough to train on in a second, in the layout of MVTec AD, and images broken on purpose."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.datasets.parts import render

CATEGORY = "steel"
SIDE = 64
TRAIN, GOOD, DEFECTIVE = 24, 6, 6
DEFECTS = ("pitting", "stain")
_FIRST_TEST = 1000


def write_rgb(path: Path, image: npt.NDArray[np.uint8]) -> Path:
    """Write uint8 [H, W, 3] RGB as the format the name asks for; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_written = cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert is_written, path
    return path


def write_tiny_dataset(root: Path) -> Path:
    """Write ROOT/steel with 24 training, 6 normal and 6 anomalous test images of 64x64 pixels; return ROOT."""
    folder = root / CATEGORY
    for index in range(TRAIN):
        write_rgb(folder / "train" / "good" / f"{index:03d}.png", render(CATEGORY, 0, index, SIDE)[0])
    for index in range(GOOD):
        image, _ = render(CATEGORY, 0, _FIRST_TEST + index, SIDE)
        write_rgb(folder / "test" / "good" / f"{index:03d}.png", image)
    for defect in DEFECTS:
        for index in range(DEFECTIVE // len(DEFECTS)):
            image, mask = render(CATEGORY, 0, index, SIDE, defect)
            write_rgb(folder / "test" / defect / f"{index:03d}.png", image)
            grey = mask.astype(np.uint8) * np.uint8(255)
            write_rgb(folder / "ground_truth" / defect / f"{index:03d}_mask.png", np.repeat(grey[..., None], 3, axis=2))
    return root


def normal_images(root: Path) -> list[Path]:
    """Return the normal test images of the tiny dataset."""
    return sorted((root / CATEGORY / "test" / "good").glob("*.png"))


def anomalous_images(root: Path) -> list[Path]:
    """Return the anomalous test images of the tiny dataset."""
    return sorted(path for defect in DEFECTS for path in (root / CATEGORY / "test" / defect).glob("*.png"))


def training_images(root: Path) -> list[Path]:
    """Return the training images of the tiny dataset."""
    return sorted((root / CATEGORY / "train" / "good").glob("*.png"))


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that announces a size and holds no pixels of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def broken_images() -> dict[str, tuple[str, bytes]]:
    """Return what images may be instead of images: name -> (file name, bytes)."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    dot = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    return {
        "text": ("text.png", b"this is a note, not a picture\n"),
        "empty": ("empty.png", b""),
        "truncated": ("truncated.jpg", jpeg[: len(jpeg) // 2]),
        "tiny": ("tiny.png", dot),
        "huge": ("huge.png", png_header(30_000, 30_000)),
    }
