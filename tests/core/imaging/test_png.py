"""PNG: channel order, grey levels, the bytes of OpenCV, and what cannot be encoded."""

from __future__ import annotations

import errno
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawscope.errors import ImageError, StorageError
from flawscope.imaging.images import decode_stored, read_image
from flawscope.imaging.masks import read_mask
from flawscope.imaging.png import encode_mask, encode_png, write_png

RED = np.broadcast_to(np.array([250, 20, 10], np.uint8), (9, 12, 3)).copy()


def test_rgb_and_bgr_say_the_same_in_another_order(tmp_path: Path) -> None:
    write_png(tmp_path / "new" / "red.png", RED)
    assert (read_image(tmp_path / "new" / "red.png") == RED).all()
    assert encode_png(RED[..., ::-1].copy(), is_bgr=True) == encode_png(RED)


def test_the_bytes_are_those_of_opencv() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    assert encode_png(noise) == cv2.imencode(".png", cv2.cvtColor(noise, cv2.COLOR_RGB2BGR))[1].tobytes()
    assert encode_png(noise[..., 0]) == cv2.imencode(".png", noise[..., 0])[1].tobytes()


def test_a_mask_has_two_values_and_one_channel(tmp_path: Path) -> None:
    mask = np.arange(9 * 12).reshape(9, 12) % 5 == 0
    stored = decode_stored(encode_mask(mask))
    assert stored.shape == (9, 12)
    assert set(np.unique(stored)) == {0, 255}
    (tmp_path / "mask.png").write_bytes(encode_mask(mask))
    assert (read_mask(tmp_path / "mask.png") == mask).all()


@pytest.mark.parametrize("shape", [(0, 9, 3), (9, 0), (1, 1_000_001)], ids=["empty", "empty-grey", "too-wide"])
def test_what_png_cannot_hold_is_refused_in_one_line(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 \[H, W\] .* got uint8") as raised:
        encode_png(np.zeros(shape, np.uint8))
    assert "\n" not in str(raised.value)


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "red.png"
    write_png(path, RED)

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_png(path, RED[..., ::-1].copy())
    monkeypatch.undo()
    assert (read_image(path) == RED).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["red.png"]
